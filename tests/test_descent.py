"""Descents: the pure loop is optax's own loop, and `descend` is the pure loop, watched and stopped."""

import itertools
import signal

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from descents import DATA, START, l2, rosenbrock

import gradlab as gl
from gradlab.descent import batches
from gradlab.descent.optimizers import Known, describe
from gradlab.errors import OptionError


def rows(tree, start, stop):
    return jax.tree.map(lambda leaf: leaf[start:stop], tree)


def bits(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


OPTIMIZERS = {
    "sgd": lambda: optax.sgd(0.1),
    "momentum": lambda: optax.sgd(0.05, momentum=0.9, nesterov=True),
    "adam": lambda: optax.adam(0.1),
    "clipped adamw": lambda: optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(optax.linear_schedule(0.1, 0.0, 40))
    ),
    "lbfgs": lambda: optax.lbfgs(),
    "backtracking": lambda: optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(20, store_grad=True)),
    "plateau": lambda: optax.chain(optax.adam(0.3), optax.contrib.reduce_on_plateau(patience=3)),
    "polyak": lambda: optax.polyak_sgd(),
    "noisy": lambda: optax.noisy_sgd(0.05, key=jax.random.key(3)),
}


def by_hand(loss, params, optimizer, steps):
    """optax's loop as its documentation has it, in Python."""
    optimizer = optax.with_extra_args_support(optimizer)

    @jax.jit
    def step(params, state):
        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradient, state, params, value=value, grad=gradient, value_fn=loss)
        return optax.apply_updates(params, updates), state, value, gradient

    state, losses, norms = optimizer.init(params), [], []
    for _ in range(steps):
        params, state, value, gradient = step(params, state)
        losses.append(value)
        norms.append(optax.global_norm(gradient))
    return params, losses, norms


# The loop.


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_loop_is_the_one_of_optax(name, same):
    optimizer, loss = OPTIMIZERS[name](), lambda params: l2(params, DATA)
    params, losses, norms = by_hand(loss, START, optimizer, 12)
    found, _, history = jax.jit(gl.descent_loop(loss, optimizer, steps=12))(START)
    same(found, params, 1e-3)
    same(history.losses, jnp.stack(losses), 1e-3)
    same(history.gradient_norms, jnp.stack(norms), 1e-3)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_descend_has_the_bits_of_a_loop_of_another_length(name):
    optimizer = OPTIMIZERS[name]()
    make = lambda steps: gl.descend(l2, START, data=DATA, optimizer=optimizer, steps=steps)
    whole, part = make(30), make(11)
    assert whole.status == "max_steps" and whole.steps == 30 == len(whole.losses)
    assert bits(whole.losses[:11]) == bits(part.losses)
    assert bits((part.resume(19).params, part.resume(19).gradient_norms)) == bits((whole.params, whole.gradient_norms))


def test_the_worked_step_of_the_tutorial():
    params, _, history = gl.descent_loop(lambda theta: (2.0 * theta - 9.0) ** 2, optax.sgd(0.125), steps=1)(5.0)
    assert (float(params), history.losses.tolist(), history.gradient_norms.tolist()) == (4.5, [1.0], [4.0])


def test_the_loop_maps_over_rates_seeds_and_starts(same):
    rates = jnp.array([0.01, 0.1, 0.5])
    run = lambda rate, key, start: gl.descent_loop(l2, optax.sgd(rate), steps=9, batch_size=7, key=key)(start, DATA)
    keys = jax.random.split(jax.random.key(5), 3)
    starts = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf + 1, leaf - 1]), START)
    together = jax.jit(jax.vmap(run))(rates, keys, starts)
    for i in range(3):
        start = jax.tree.map(lambda leaf: leaf[0], rows(starts, i, i + 1))
        alone = run(rates[i], keys[i], start)
        same(rows(together, i, i + 1), jax.tree.map(lambda leaf: leaf[None], alone))


def test_the_loop_has_a_derivative_by_the_learning_rate():
    last = lambda rate: gl.descent_loop(lambda x: 0.5 * x**2, optax.sgd(rate), steps=3)(2.0)[0]
    assert float(jax.grad(last)(0.25)) == pytest.approx(-3 * 2.0 * 0.75**2)


@pytest.mark.parametrize("batch_size", [None, 16])
def test_the_loop_exports_for_every_platform(batch_size):
    loop = jax.jit(gl.descent_loop(l2, optax.adam(0.1), steps=5, batch_size=batch_size))
    exported = jax.export.export(loop, platforms=("cpu", "cuda", "tpu"))(START, DATA)
    assert set(exported.platforms) == {"cpu", "cuda", "tpu"}


def test_complex_params_descend():
    target = 3.0 - 2.0j
    result = gl.descend(lambda z: jnp.abs(z - target) ** 2, 0j, optimizer=optax.sgd(0.25), tol=1e-4)
    assert result.status == "converged" and abs(complex(result.params) - target) < 1e-3


def test_half_precision_keeps_its_dtype_and_its_norms():
    result = gl.descend(lambda x: jnp.sum(x**2), jnp.full(4, 300.0, jnp.float16), optimizer=optax.sgd(0.25), steps=3)
    assert result.status == "diverged"  # the loss, a float16, overflows
    result = gl.descend(lambda x: jnp.sum(300 * x), jnp.ones(4, jnp.float16), optimizer=optax.sgd(1e-3), steps=3)
    assert result.params.dtype == jnp.float16 and result.gradient_norms.tolist() == [600.0] * 3


# Batches.


@pytest.mark.parametrize(("examples", "size"), [(10, 5), (10, 3), (7, 7), (5, 4), (9, 1)])
def test_no_example_is_left_out_of_an_epoch(examples, size):
    steps = 3 * examples
    order = np.asarray(batches.rows(jax.random.key(2), steps, size, examples)).reshape(-1)
    for epoch in order[: len(order) // examples * examples].reshape(-1, examples):
        assert sorted(epoch) == list(range(examples))
    assert len({tuple(epoch) for epoch in order.reshape(-1, examples)[:3]}) > 1 or examples == 1


@pytest.mark.parametrize(("examples", "size", "capacity"), [(10, 3, 8), (7, 7, 4), (50, 4, 6), (5, 4, 1)])
def test_each_step_finds_its_examples_wherever_its_call_begins(examples, size, capacity):
    every = batches.rows(jax.random.key(2), 40, size, examples)
    for starts in (range(0, 40, capacity), [0, 3, 4, 11, 30, 17, 2]):
        orders = batches.Orders(jax.random.key(2), size, examples, capacity)
        for step in starts:
            order, offset = orders.around(step)
            for i in range(min(capacity, 40 - step)):
                assert (order[offset + i * size :][:size] == every[step + i]).all()


def test_batches_are_those_of_the_pure_loop_also_across_stretches():
    options = {"batch_size": 16, "key": jax.random.key(7)}
    result = gl.descend(l2, START, data=DATA, optimizer=optax.adam(0.05), steps=1500, **options)
    loop = gl.descent_loop(l2, optax.adam(0.05), steps=1500, **options)
    np.testing.assert_allclose(result.losses, jax.jit(loop)(START, DATA)[2].losses, rtol=1e-4, atol=1e-6)


def test_another_key_draws_other_batches():
    run = lambda key: gl.descend(l2, START, data=DATA, steps=5, batch_size=4, key=jax.random.key(key)).losses
    assert bits(run(1)) == bits(run(1)) != bits(run(2))


def test_a_stream_gives_what_its_batches_give():
    drawn = [jax.tree.map(np.asarray, rows(DATA, i, i + 8)) for i in range(40)]
    result = gl.descend(l2, START, data=iter(drawn), optimizer=optax.adam(0.1), steps=100)
    params, state = START, optax.adam(0.1).init(START)
    for batch in drawn:
        updates, state = optax.adam(0.1).update(jax.grad(l2)(params, batch), state, params)
        params = optax.apply_updates(params, updates)
    assert result.steps == 40 and result.status == "max_steps" and "ended before step 41" in result.message
    np.testing.assert_allclose(result.params["w"], params["w"], rtol=1e-5)


def test_a_stream_is_drawn_no_further_than_one_ahead_and_goes_on():
    drawn = []

    def numbers():
        for i in range(100):
            drawn.append(i)
            yield jnp.full(2, float(i))

    distance = lambda params, batch: jnp.sum((params - batch) ** 2)
    part = gl.descend(distance, jnp.zeros(2), data=numbers(), steps=10)
    assert part.steps == 10 and len(drawn) <= 11
    whole = gl.descend(distance, jnp.zeros(2), data=(jnp.full(2, float(i)) for i in range(100)), steps=30)
    assert bits(part.resume(20).params) == bits(whole.params)


def test_a_stream_may_end_with_a_smaller_batch_and_search_along_lines():
    parts = [rows(DATA, i, i + 20) for i in (0, 20, 40)]
    result = gl.descend(l2, START, data=iter(parts * 4), optimizer=optax.lbfgs(), steps=50)
    assert result.steps == 12 and result.losses[-1] < result.losses[0]


# Where it ends.


def test_it_converges_at_the_first_step_below_tol_and_moves_no_further():
    run = lambda **options: gl.descend(rosenbrock, jnp.zeros(4), optimizer=optax.adam(0.05), **options)
    free = run(steps=2000)
    first = int(np.argmax(free.gradient_norms <= 0.5))
    result = run(steps=2000, tol=0.5)
    assert result.status == "converged" and result.steps == first + 1
    assert bits(result.gradient_norms) == bits(free.gradient_norms[: first + 1])
    assert float(optax.global_norm(jax.grad(rosenbrock)(result.params))) == pytest.approx(
        result.gradient_norms[-1], 1e-4
    )
    assert result.resume(10) is result


@pytest.mark.parametrize(
    ("loss", "start", "rate", "said"),
    [
        (lambda x: x**4, 1.0, 1.0, "the loss of step"),
        (jnp.log, 1.0, 0.3, "the loss of step 4 is nan"),
        (lambda x: jnp.where(x > 0.5, x, jnp.sqrt(jnp.maximum(x, 0.0))), 1.0, 0.5, "the gradient of step"),
    ],
)
def test_it_stops_at_the_first_step_that_is_not_finite_with_the_last_finite_params(loss, start, rate, said):
    result = gl.descend(loss, start, optimizer=optax.sgd(rate), steps=500)
    assert result.status == "diverged" and said in result.message and "smaller learning rate" in result.message
    seen = np.stack([result.losses, result.gradient_norms])
    assert np.isfinite(seen[:, :-1]).all() and not np.isfinite(seen[:, -1]).all()
    assert jnp.isfinite(result.params) and float(loss(result.params)) == pytest.approx(float(result.losses[-2]), 1e-5)
    with pytest.raises(OptionError, match="would again"):
        result.resume(10)


def test_a_gradient_whose_squares_overflow_is_finite_all_the_same():
    steep = lambda x: 1e25 * jnp.sum(x)
    result = gl.descend(steep, jnp.ones(4), optimizer=optax.sgd(1e-26), steps=3)
    assert result.status == "max_steps" and result.gradient_norms == pytest.approx([2e25] * 3)


def test_a_last_update_that_overflows_is_seen():
    result = gl.descend(lambda x: 1e10 * x, 1.0, optimizer=optax.sgd(1e30), steps=1)
    assert result.status == "diverged" and "update of step 1" in result.message and float(result.params) == 1.0


def test_a_loss_that_starts_at_nan_is_named_as_such():
    result = gl.descend(jnp.log, -1.0, steps=5)
    assert result.status == "diverged" and result.steps == 1 and "at the very start" in result.message


def test_ctrl_c_gives_what_was_reached_and_leaves_the_handler_alone():
    def numbers():
        for i in itertools.count():
            if i == 5:
                signal.raise_signal(signal.SIGINT)
            yield np.float32(1.0)

    # Python's own handler: a process that was started in the background ignores the signal, and so would descend.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        # More steps than any stretch has.
        result = gl.descend(lambda p, b: (p - b) ** 2, 0.0, data=numbers(), steps=10**5)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert result.status == "interrupted" and 0 < result.steps < 10**5 and "goes on" in result.message
    assert result.resume(3).steps == result.steps + 3


def test_no_step_at_all():
    result = gl.descend(l2, START, data=DATA, steps=0)
    assert result.steps == 0 and bits(result.params) == bits(START) and "nothing was computed" in str(result)


# What it costs the caller.


def test_a_second_call_compiles_nothing_and_does_not_even_trace():
    traces = []

    def loss(x):
        traces.append(1)
        return jnp.sum(x**2)

    gl.descend(loss, jnp.ones(3), optimizer=optax.adam(1e-2), steps=20)
    count = len(traces)
    gl.descend(loss, jnp.zeros(3) + 2, optimizer=optax.adam(1e-2), steps=700, tol=1e-9)
    assert len(traces) == count
    gl.descend(loss, jnp.ones(4), optimizer=optax.adam(1e-2), steps=20)
    assert len(traces) > count


def test_the_params_and_the_result_stay_the_callers():
    start = jax.tree.map(jnp.copy, START)
    part = gl.descend(l2, start, data=DATA, steps=5)
    part.resume(5), part.resume(5)
    assert bits(start) == bits(START) and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(part.params))


@pytest.mark.parametrize("compiled", [False, True])
def test_large_arrays_that_a_loss_closes_over_are_not_compiled_in(compiled):
    from gradlab.descent import programs

    table = jax.random.normal(jax.random.key(0), (200, 20))
    loss = lambda x: jnp.mean((table @ x - 1.0) ** 2)
    loss = jax.jit(loss) if compiled else loss
    gl.descend(loss, jnp.zeros(20), steps=3)
    (program,) = programs._KEPT[loss].values()
    assert [constant.shape for constant in program.constants] == [(200, 20)]


def test_custom_rules_hold_in_a_loss_that_closes_over_an_array():
    table = jnp.arange(100.0)

    @jax.custom_vjp
    def straight(x):
        return jnp.round(x)

    straight.defvjp(lambda x: (jnp.round(x), None), lambda _, w: (w,))
    result = gl.descend(
        lambda x: jnp.sum((straight(x) - table) ** 2), jnp.zeros(100), optimizer=optax.sgd(0.5), steps=1
    )
    assert bits(result.params) == bits(table)


def test_an_optimizer_is_told_by_the_names_of_its_numbers_too():
    make = lambda low, high: optax.GradientTransformation(optax.identity().init, _bounded(low, high))
    assert Known(make(None, 1.0)) == Known(make(None, 1.0)) != Known(make(1.0, None))
    tables = lambda: optax.GradientTransformation(optax.identity().init, _bounded(([1.0],), {"a": {2}}))
    assert isinstance(hash(Known(tables())), int)


def _bounded(low, high):
    """An update of optax's own making, as far as can be seen, that closes over two values."""

    def update(updates, state, params=None):
        del params
        return jax.tree.map(lambda u: jnp.clip(u, low, high), updates), state

    update.__module__ = "optax.bounded"
    return update


@pytest.mark.parametrize("names", [("value", "grad"), ("params", "count")])
def test_params_may_have_the_names_of_what_a_line_search_keeps(names):
    bowl = lambda params: sum(jnp.sum((leaf - 1.0) ** 2) for leaf in params.values())
    result = gl.descend(bowl, dict.fromkeys(names, jnp.zeros(2)), optimizer=optax.lbfgs(), tol=1e-4, steps=20)
    assert result.status == "converged"


def test_optimizers_are_the_same_where_their_code_and_numbers_are():
    for name, make in OPTIMIZERS.items():
        assert Known(make()) == Known(make()) or name in ("clipped adamw", "plateau"), name
        assert describe(make()) == describe(make())
    schedule = lambda step: 0.1
    assert Known(optax.adam(schedule)) == Known(optax.adam(schedule)) != Known(optax.adam(lambda step: 0.1))
    assert Known(optax.adam(0.1)) != Known(optax.adam(0.2)) != Known(optax.sgd(0.2))


# What it looks like.


def test_a_result_tells_what_happened(tmp_path):
    result = gl.descend(l2, START, data=DATA, steps=20)
    assert repr(result).startswith("Descent(max_steps, steps=20, loss=")
    assert str(result).startswith("max_steps after 20 steps: the loss went from")
    assert result.to_dict()["losses"] == result.losses.tolist() and "<b>max_steps</b>" in result._repr_html_()
    ax = result.plot()
    assert ax.get_yscale() == "log" and len(ax.lines[0].get_xdata()) == 20


def test_a_bar_is_shown_on_request(capsys):
    gl.descend(l2, START, data=DATA, steps=20, progress=True)
    shown = capsys.readouterr()
    assert "20/20" in shown.err and "loss" in shown.err and not shown.out
