"""A pytree is one vector: the algebra agrees with that of its concatenated leaves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradlab import trees

TREE = {"a": jnp.linspace(-1.0, 2.0, 6).reshape(2, 3), "b": (jnp.array(3.0), jnp.array([0.5]))}
OTHER = jax.tree.map(lambda leaf: jnp.cos(leaf) + 1, TREE)


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def test_algebra_is_that_of_the_concatenated_leaves():
    a, b = flat(TREE), flat(OTHER)
    np.testing.assert_allclose(trees.vdot(TREE, OTHER), a @ b, rtol=1e-6)
    np.testing.assert_allclose(trees.norm(TREE), np.linalg.norm(a), rtol=1e-6)
    np.testing.assert_allclose(flat(trees.axpy(0.3, TREE, OTHER)), 0.3 * a + b, rtol=1e-6)
    np.testing.assert_allclose(flat(trees.scale(-2.0, TREE)), -2 * a, rtol=1e-6)
    assert trees.size(TREE) == a.size


def test_vdot_conjugates_its_first_argument():
    assert complex(trees.vdot((jnp.array(1j),), (jnp.array(1j),))) == 1


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_norm_neither_overflows_nor_underflows(size):
    np.testing.assert_allclose(trees.norm({"a": jnp.array([3.0, 4.0]) * size}) / size, 5.0, rtol=1e-6)


def test_norm_has_a_finite_derivative_at_zero_and_the_unit_vector_elsewhere():
    np.testing.assert_array_equal(jax.grad(trees.norm)(jnp.zeros(3)), 0)
    np.testing.assert_allclose(jax.grad(trees.norm)(jnp.array([3.0, 4.0])), [0.6, 0.8], rtol=1e-6)


def test_unit_has_length_one_and_zero_stays_zero():
    np.testing.assert_allclose(trees.norm(trees.unit(TREE)), 1.0, rtol=1e-6)
    assert not np.any(flat(trees.unit(trees.scale(0.0, TREE))))


def test_basis_is_the_identity_in_the_order_of_ravel():
    n = trees.size(TREE)
    vectors = trees.basis(TREE, jnp.arange(n))
    np.testing.assert_array_equal(jax.vmap(lambda v: trees.ravel(v)[0])(vectors), np.eye(n))


def test_random_vectors_differ_by_leaf_and_by_seed():
    drawn = trees.random_like(0, (jnp.zeros(4), jnp.zeros(4)))
    assert not np.array_equal(*drawn)
    assert not np.array_equal(drawn[0], trees.random_like(1, (jnp.zeros(4),))[0])


def test_ravel_comes_back():
    vector, back = trees.ravel(TREE)
    assert jax.tree.structure(back(vector)) == jax.tree.structure(TREE)
    np.testing.assert_array_equal(flat(back(vector)), flat(TREE))
