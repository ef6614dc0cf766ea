"""Properties of the table of problems, each at a small size."""

import dataclasses
import sys
import typing
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import drawing, drawn, each_problem, hasty

from gradlab import problems
from gradlab.errors import GradlabError, MissingExtraError, OptionError, TargetError
from gradlab.problems import Problem
from gradlab.types import Quantity

KINDS = typing.get_args(Quantity)
SIZES = (3, 8)
every_problem = each_problem()
every_known_truth = each_problem(p for p in problems.TABLE if p.truth)


def build(problem, *, seed=0, size=5):
    return drawn(problem, size, seed)


def shapes_of(problem, size):
    draw, made = drawing(problem, size)
    shapes = jax.eval_shape(draw, jax.random.key(0))
    return made[0], shapes


def to_float64(tree):
    return jax.tree.map(lambda leaf: leaf.astype(float) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, tree)


def same(one, other):
    one, other = jax.tree.leaves(one), jax.tree.leaves(other)
    return len(one) == len(other) and all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def forward(f, args):
    return jax.jvp(lambda x: f(x, *args[1:]), (args[0],), (args[0],))[1]


def reverse(f, args):
    value, pullback = jax.vjp(lambda x: f(x, *args[1:]), args[0])
    return pullback(value)[0]


@cache
def along_itself(problem, direction):
    """A product of the derivative, of float32 arguments."""
    f, args = build(problem)
    return jax.tree.map(np.asarray, hasty(lambda args: direction(f, args))(args))


def plain_laplacian(f, *args):
    hessian = jax.hessian(lambda flat: f(flat.reshape(args[0].shape), *args[1:]))(args[0].ravel())
    return jnp.trace(hessian)


def plain_derivative(problem, f, args):
    one_way = jax.jacrev if "forward" in problem.unsupported else jax.jacfwd
    match problem.of[0]:
        case "gradient":
            return jax.grad(f)(*args)
        case "jacobian":
            return one_way(f)(*args)
        case "hessian":
            return jax.hessian(f)(*args)
        case "laplacian":
            return plain_laplacian(f, *args)
    raise AssertionError(f"no plain derivative for {problem.of[0]}")


def test_the_table_holds_at_least_26_problems_with_different_names():
    assert len(problems.TABLE) >= 26
    assert len(set(problems.names())) == len(problems.TABLE)


def test_every_quantity_has_a_problem_for_which_it_is_the_main_one_or_one_of_several():
    for kind in KINDS:
        assert problems.for_quantity(kind)
    assert {problem.of[0] for problem in problems.TABLE} == {"gradient", "jacobian", "hessian", "laplacian"}


@every_problem
def test_a_record_is_frozen_and_described(problem):
    with pytest.raises(dataclasses.FrozenInstanceError):
        problem.name = "other"
    assert problem.description and problem.source and "\n" not in problem.description
    assert problem.of and set(problem.of) <= set(KINDS) and len(set(problem.of)) == len(problem.of)
    assert set(problem.unsupported) < {"forward", "reverse"}


@every_problem
def test_a_problem_is_finite_and_jit_does_not_change_it(problem):
    f, args = build(problem)
    eager, compiled = f(*args), hasty(f)(*args)
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(eager))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), eager, compiled)


@every_problem
def test_scalar_quantities_have_a_scalar_function_and_jacobians_do_not(problem):
    f, args = build(problem)
    shapes = [leaf.shape for leaf in jax.tree.leaves(jax.eval_shape(f, *args))]
    assert (shapes == [()]) == ("jacobian" not in problem.of)


@every_problem
def test_one_key_gives_one_function_and_one_set_of_arguments(problem):
    (f, args), (again, same_args), (_, other_args) = (
        problem.build(size=5),
        problem.build(size=5),
        build(problem, seed=1),
    )
    assert f is again and same(args, same_args)
    assert not same(args[0], other_args[0])


@every_problem
def test_the_size_changes_the_arguments_and_not_the_function(problem):
    (small, small_args), (large, large_args) = shapes_of(problem, 3), shapes_of(problem, 8)
    assert small is large
    assert [leaf.shape for leaf in jax.tree.leaves(small_args)] != [leaf.shape for leaf in jax.tree.leaves(large_args)]


@every_problem
def test_the_first_argument_is_floating(problem):
    _, args = build(problem)
    leaves = jax.tree.leaves(args[0])
    assert leaves and all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves)


@every_problem
def test_float64_arguments_give_float64_values(problem):
    f, args = build(problem)
    with jax.enable_x64(True):
        values = jax.eval_shape(f, *to_float64(args))
    assert {leaf.dtype for leaf in jax.tree.leaves(values)} == {np.dtype("float64")}


@every_problem
def test_float32_arguments_give_float32_values_even_where_float64_is_enabled(problem):
    f, args = build(problem)
    with jax.enable_x64(True):
        values = jax.eval_shape(f, *args)
    assert {leaf.dtype for leaf in jax.tree.leaves(values)} == {np.dtype("float32")}


@every_problem
def test_float32_derivatives_are_those_of_float64(problem):
    f, args = build(problem)
    direction = forward if "reverse" in problem.unsupported else reverse
    single = along_itself(problem, direction)
    with jax.enable_x64(True):
        double = jax.tree.map(np.asarray, hasty(lambda args: direction(f, args))(to_float64(args)))
    for a, b in zip(jax.tree.leaves(single), jax.tree.leaves(double), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * (np.abs(b).max() + 1e-3))


@every_known_truth
@pytest.mark.parametrize("size", SIZES)
def test_the_truth_is_the_derivative_jax_takes(problem, size):
    f, args = build(problem, size=size)
    with jax.enable_x64(True):
        args = to_float64(args)
        both = hasty(lambda args: (problem.truth(*args), plain_derivative(problem, f, args)))(args)
        truth, derivative = jax.tree.map(np.asarray, both)
    assert jax.tree.structure(truth) == jax.tree.structure(derivative)
    for a, b in zip(jax.tree.leaves(truth), jax.tree.leaves(derivative), strict=True):
        assert a.dtype == b.dtype == np.dtype("float64") and a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)


@every_problem
@pytest.mark.parametrize("direction", [forward, reverse], ids=["forward", "reverse"])
def test_a_direction_fails_exactly_where_it_is_listed_as_unsupported(problem, direction):
    if direction.__name__ in problem.unsupported:
        with pytest.raises((TypeError, ValueError)):
            along_itself(problem, direction)
    else:
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(along_itself(problem, direction)))


def test_a_rotation_by_nothing_has_a_finite_derivative():
    f, (params, *data) = problems.get("bundle_adjustment").build(size=3)
    still = {**params, "cameras": params["cameras"].at[:, :3].set(0.0)}
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(jax.jit(jax.jacrev(f))(still, *data)))


def test_get_finds_each_problem_by_its_name():
    assert tuple(problems.get(name) for name in problems.names()) == problems.TABLE


def test_an_unknown_name_lists_the_problems_and_suggests_the_nearest():
    with pytest.raises(TargetError, match="Did you mean 'rosenbrock'") as caught:
        problems.get("rosenbrok")
    assert "lennard_jones" in str(caught.value)
    assert isinstance(caught.value, GradlabError) and isinstance(caught.value, ValueError)


def test_for_quantity_selects_by_kind_and_refuses_an_unknown_one():
    assert all("hvp" in problem.of for problem in problems.for_quantity("hvp"))
    with pytest.raises(OptionError, match="Did you mean 'jacobian'"):
        problems.for_quantity("jacobean")


@pytest.mark.parametrize("size", [0, 1, -3, 2.5, True, "4"])
def test_a_size_that_is_no_integer_of_at_least_two_is_refused(size):
    with pytest.raises(OptionError, match="at least 2"):
        problems.get("softmax").build(size=size)


def test_more_digits_than_there_are_is_refused():
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    with pytest.raises(OptionError, match="1797"):
        problems.get("digits_mlp").build(size=2000)


def test_a_missing_scikit_learn_names_the_extra_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(MissingExtraError, match=r'pip install "gradlab-jax\[data\]"'):
        problems.get("digits_softmax").build(size=4)


def test_a_record_shows_its_name_kinds_and_size():
    shown = repr(problems.get("robot_arm"))
    assert shown == "Problem('robot_arm', of=('jacobian',), size=3)"
    assert isinstance(problems.get("robot_arm"), Problem)
