"""What a program does is read from its operators, and what that costs is predicted without running it."""

import jax
import jax.numpy as jnp
import pytest

from gradlab.jaxprs import density, trace, work
from gradlab.mode import cost

shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.float32)
kinds = lambda f, *args: [kernel.kind for kernel in work(trace(f, *args)).kernels]


def predicted(f, *args):
    return cost.seconds(work(trace(f, *args)), cost.DEFAULTS["cpu"])


def test_elementwise_operators_are_one_kernel():
    assert kinds(lambda x: jnp.tanh(2.0 * x + 1.0) ** 2, shape(100)) == ["map"]


def test_what_nobody_needs_costs_nothing():
    def f(x):
        jnp.sort(x)
        return 2.0 * x

    assert kinds(f, shape(100)) == ["map"]


def test_a_scatter_is_a_kernel_that_writes_each_of_its_numbers():
    places = jnp.array([3, 1, 3, 0, 2])
    pulled = trace(lambda w: jax.vjp(lambda x: x[places], jnp.ones(4))[1](w), shape(5))
    [scatter] = [kernel for kernel in work(pulled).kernels if kernel.kind != "map"]
    assert (scatter.kind, scatter.flops, scatter.count) == ("scatter", 5, 1)


def test_a_scatter_a_page_apart_costs_more():
    pulled = lambda n: jax.vmap(jax.vjp(lambda x: x[jnp.arange(300) % 7], jnp.ones(n))[1])
    assert predicted(pulled(1024), shape(300, 300)) > 3 * predicted(pulled(1000), shape(300, 300))


def test_a_loop_costs_its_iterations():
    loop = lambda length: lambda x: jax.lax.scan(lambda c, _: (jnp.sin(c), None), x, length=length)[0]
    assert 5 < predicted(loop(100_000), shape(8)) / predicted(loop(10_000), shape(8)) < 11


def test_a_product_counts_its_operations():
    (kernel,) = work(trace(jnp.matmul, shape(3, 5), shape(5, 7))).kernels
    assert (kernel.kind, kernel.flops) == ("product", 2 * 3 * 5 * 7)


@pytest.mark.parametrize(("left", "right", "calls", "rows", "tiny"), [
    ((9, 8, 7), (9, 7, 8), 9, 72, 0),
    ((8, 7), (7, 8), 1, 8, 0),
    ((4, 4), (4, 4), 1, 4, 0),
    ((3, 3), (3, 3), 0, 0, 2 * 27),
    ((9, 3, 2), (9, 2, 6), 0, 0, 2 * 9 * 3 * 2 * 6),
    ((800, 700), (700,), 0, 0, 0),
])  # fmt: skip
def test_a_product_of_matrices_calls_a_library_unless_they_are_tiny(left, right, calls, rows, tiny):
    (kernel,) = work(trace(jnp.matmul, shape(*left), shape(*right))).kernels
    assert (kernel.calls, kernel.rows, kernel.tiny) == (calls, rows, tiny)
    assert (kernel.flops > 0) == (tiny == 0)


def test_to_call_a_library_inside_of_a_loop_takes_less_than_outside():
    def unrolled(x, w):
        for _ in range(50):
            x = x @ w
        return x

    looped = lambda x, w: jax.lax.scan(lambda x, _: (x @ w, None), x, length=50)[0]
    sizes = shape(64, 8), shape(8, 8)
    assert work(trace(unrolled, *sizes)).kernels[0].calls == 1
    assert predicted(looped, *sizes) < 0.8 * predicted(unrolled, *sizes)


def loop(size):
    body = lambda c, _: (jnp.sin(c) * 0.5 + jnp.sum(c), c)
    return work(trace(lambda c: jax.lax.scan(body, c, length=50)[1], shape(size))).kernels


def test_a_loop_over_few_numbers_is_one_kernel_and_one_over_many_stacks_its_results_by_another():
    small, large = loop(4), loop(4000)
    assert {k.small for k in small if k.inner} == {True} and {k.small for k in large if k.inner} == {False}
    assert sum(k.count for k in large if k.inner) - sum(k.count for k in small if k.inner) == 50


@pytest.mark.parametrize(("f", "sizes", "times"), [
    (jnp.sin, (100,), 50),
    (jnp.sin, (50, 1), 1),
    (jnp.sin, (), 1),
    (jnp.tanh, (100,), 1),
])  # fmt: skip
def test_what_is_broadcast_is_computed_anew_where_it_counts_as_cheap(f, sizes, times):
    (mapped,) = work(trace(lambda x, y: f(x) * y, shape(*sizes), shape(50, 100))).kernels
    (summed,) = work(trace(lambda x, y: jnp.sum(f(x) * y, axis=1), shape(*sizes), shape(50, 100))).kernels
    size = max(1, *sizes) if sizes else 1
    assert (mapped.slow, summed.slow) == (size * times, size)


def test_empty_arrays_cost_next_to_nothing_and_depend_on_nothing():
    assert predicted(lambda x: (jnp.sin(x[:0]), 2.0 * x), shape(4)) < 1e-3

    def f(x):
        none = x[:0].at[jnp.array([0, 1])].add(x[:2])  # out of bounds, and dropped
        return jnp.concatenate([none, jnp.cos(x)])

    push = trace(lambda v, x: jax.jvp(f, (x,), (v,))[1], jnp.ones(4), jnp.ones(4))
    assert density(push) == 1 / 4


def test_a_transposition_reads_across_the_rows_of_what_is_stored():
    turned = lambda *sizes: work(trace(lambda x: jnp.moveaxis(x, 0, -1) + 1.0, shape(*sizes))).kernels[0].turned
    assert turned(300, 200) == 300 * 200 and turned(300, 1) == turned(1, 300) == 0
    assert turned(256, 1024) > 3 * turned(256, 1000)
    assert work(trace(lambda x: (x[:, None] * jnp.arange(300.0)).T + 1.0, shape(200))).kernels[0].turned < 1000


@pytest.mark.parametrize(("f", "better", "worse"), [
    (lambda t: t[0] * jnp.sin(jnp.arange(2000.0)), jax.jacfwd, jax.jacrev),
    (lambda x: jnp.sum(jnp.sin(x)), jax.jacrev, jax.jacfwd),
])  # fmt: skip
def test_the_direction_with_fewer_passes_is_cheaper(f, better, worse):
    x = shape(1) if better is jax.jacfwd else shape(2000)
    assert predicted(better(f), x) < predicted(worse(f), x)


def test_memory_counts_what_is_alive():
    many = lambda x: jnp.sum(jnp.sort(x[:, None] * x[None, :], axis=0) @ x)
    assert work(trace(many, shape(1000))).peak_bytes >= 2 * 4 * 1000**2


def test_a_call_needs_no_more_memory_than_what_it_holds():
    body = lambda x: jnp.cumsum(x) * 2.0
    nested = jax.jit(jax.jit(jax.jit(body)))
    assert work(trace(nested, shape(1000))).peak_bytes == work(trace(body, shape(1000))).peak_bytes


def test_a_loop_writes_over_what_it_carries():
    filled = lambda x: jax.lax.fori_loop(0, 1000, lambda i, a: a.at[i].set(jnp.sin(x)), jnp.zeros((1000, 1000)))
    matrix = 4 * 1000**2
    assert matrix <= work(trace(filled, shape(1000))).peak_bytes < 1.1 * matrix


# Of 150 springs between 64 points.
ENDS = jax.random.randint(jax.random.key(0), (150, 2), 0, 64)


@pytest.mark.parametrize(("f", "entries"), [
    (jnp.sin, 1 / 256),
    (lambda x: x[1:] - x[:-1], 2 / 256),
    (lambda x: jnp.roll(x, 1) + x, 2 / 256),
    (lambda x: jnp.convolve(x, jnp.ones(7), mode="same"), 7 / 256),
    (lambda x: jax.lax.scan(lambda c, a: (c, a * 2.0), 0.0, x)[1], 1 / 256),
    (lambda x: jnp.ones((9, 256)) @ x, 1.0),
    (lambda x: x / jnp.sum(x), 1.0),
    (lambda x: jnp.linalg.solve(jnp.eye(256), x), 1.0),
    (jnp.cumsum, 0.5),
    (jnp.sort, 1 / 256),
    (lambda x: jnp.stack(jnp.unstack(x.reshape(64, 4), axis=1)), 1 / 256),
    (lambda x: x.reshape(64, 4)[ENDS].sum(axis=1), 2 / 256),
    (lambda x: jax.vmap(lambda row, i: row[i])(x.reshape(64, 4), ENDS[:64] % 4), 1 / 256),
    (lambda x: jax.lax.dynamic_slice(x.reshape(64, 4), (9, 0), (32, 4)).sum(axis=1), 4 / 256),
    (lambda x: jax.lax.dynamic_update_slice(x, 2 * x[:128], (9,)), 1 / 256),
    (lambda x: jnp.zeros(256).at[jnp.arange(256)[::-1]].add(x), 1 / 256),
    (lambda x: jnp.zeros((64, 4)).at[ENDS[:, 0]].add((x.reshape(64, 4)[ENDS] ** 2).sum(axis=1)), 3 / 256),
    (lambda x: jax.vmap(lambda row, i: jnp.ones(4).at[i].add(row[:2]))(x.reshape(64, 4), ENDS[:64] % 4), 0.5 / 256),
])  # fmt: skip
def test_the_density_of_a_jacobian_is_estimated(f, entries):
    push = trace(lambda v, x: jax.jvp(f, (x,), (v,))[1], jnp.ones(256), jnp.ones(256))
    assert entries / 1.5 <= density(push) <= entries * 1.5


def energy(x, ends):
    return jnp.sum((x[ends[:, 0]] - x[ends[:, 1]]) ** 4)


def along(f):
    return lambda v, x, *rest: jax.jvp(lambda x: jax.grad(f)(x, *rest), (x,), (v,))[1]


@pytest.mark.parametrize("f", [
    lambda x: energy(x, ENDS),
    lambda x: energy(x, ENDS[::-1].reshape(-1, 2) - 64),
    lambda x: energy(x, jnp.stack(jnp.divmod(jnp.arange(300) * 7 % 4096, 64), axis=1)),
    jax.jit(lambda x: energy(x.at[ENDS[:9, 0]].mul(2.0), jnp.concatenate([ENDS, jnp.clip(ENDS + 3, 0, 60)]))),
    lambda x: jnp.sum(jnp.take(x, ENDS[:, 0]) ** 3 * x[-1]),
    lambda x: jax.lax.scan(lambda c, pair: (c + (x[pair[0]] * x[pair[1]]) ** 2, None), 0.0, ENDS[:20])[0],
    lambda x: jax.lax.fori_loop(0, 20, lambda i, c: c + jnp.sum(jax.lax.dynamic_slice(x, (i,), (3,))) ** 2, 0.0),
])  # fmt: skip
def test_where_indices_are_known_the_density_is_that_of_the_pattern(f):
    # As many columns as there are samples, so that nothing is estimated.
    x = jnp.linspace(0.5, 1.5, 64)
    hessian = jax.hessian(f)(x)
    assert density(trace(along(f), x, x)) == jnp.mean(hessian != 0.0)


def test_indices_that_are_not_known_are_the_same_ones_wherever_one_variable_holds_them():
    ends = jax.ShapeDtypeStruct(ENDS.shape, ENDS.dtype)
    push = trace(along(energy), jnp.ones(64), jnp.ones(64), ends)
    pattern = jax.hessian(energy)(jnp.linspace(0.5, 1.5, 64), ENDS) != 0.0
    assert 0.8 <= density(push) / jnp.mean(pattern) <= 1.2
