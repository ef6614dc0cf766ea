"""What `auto` takes is predicted without running anything, runs wherever some mode does, and is the same derivative."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import why_no_asdex

import gradlab as gl
from gradlab.mode import cost

needs_asdex = pytest.mark.skipif(bool(why_no_asdex()), reason=why_no_asdex())
shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.float32)
chain = lambda x: jnp.sin(x[1:] * x[:-1])
valley = lambda x: jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


def narrow(x, a, b):
    return jnp.sin(jnp.exp(jnp.cos(jnp.sin(x)) @ a) @ b) ** 3


def unavailable(monkeypatch, *names):
    for name in names:
        monkeypatch.setitem(sys.modules, name, None)


def test_nothing_runs():
    def f(x):
        return jax.pure_callback(lambda a: pytest.fail("it ran"), shape(3), x) * jnp.sum(x)

    f = jax.custom_jvp(f)
    f.defjvp(lambda x, v: (f(x[0]), f(x[0]) * jnp.sum(v[0])))
    assert gl.predict(f, jnp.ones(4)).choice in gl.modes("jacobian")


@pytest.mark.parametrize("of", ["gradient", "hessian", "hvp", "laplacian"])
def test_shapes_are_enough(of):
    found = gl.predict(valley, shape(6), of=of)
    assert {row.mode for row in found.rows} <= set(gl.modes(of))
    able = [row for row in found.rows if row.status == "ok"]
    assert [row.seconds for row in able] == sorted(row.seconds for row in able)
    assert found.choice in [row.mode for row in able]
    assert all(row.bytes > 0 for row in able)


def test_a_prediction_says_why_and_by_which_rates():
    found = gl.predict(lambda t: t * jnp.ones(1000), 2.0)
    text = str(found)
    assert "auto takes forward" in text and "× faster than reverse" in text
    assert found.rates in text
    assert found.to_dict()["choice"] == "forward"
    assert "<script" not in found._repr_html_() and "forward" in found._repr_html_()


def test_a_mode_that_is_taken_for_being_simpler_is_not_called_faster():
    step = lambda w: lambda h, _: (jnp.tanh(w @ h), None)
    recurrent = lambda w: jnp.sum(jax.lax.scan(step(w), jnp.ones(8), None, length=50)[0] ** 2)
    found = gl.predict(recurrent, shape(8, 8), of="hvp")
    fastest, taken = found.rows[0], next(row for row in found.rows if row.mode == found.choice)
    slower = taken.seconds / fastest.seconds - 1
    assert slower > 0.005
    assert f"{slower:.0%} slower than {fastest.mode}: too close to call" in str(found)


@pytest.mark.parametrize("of", ["jacobian", "hessian"])
def test_modes_of_as_many_passes_go_by_the_prediction_alone(of):
    rising = lambda x: jnp.cumsum(jnp.tanh(x) * x)
    heavy = lambda x, points: jnp.sum(jnp.log1p((points @ x) ** 2))
    args = (shape(32),) if of == "jacobian" else (shape(128), shape(256, 128))
    found = gl.predict(rising if of == "jacobian" else heavy, *args, of=of)
    assert found.choice == found.rows[0].mode
    assert found.rows[1].seconds < 1.1 * found.rows[0].seconds  # else every margin would do


@needs_asdex
def test_few_entries_make_auto_sparse():
    assert gl.predict(lambda x: jnp.sum(jnp.sin(x[1:] * x[:-1])), shape(3000), of="hessian").choice == "sparse"


def test_a_waist_makes_auto_cut():
    found = gl.predict(narrow, shape(900), shape(900, 3), shape(3, 900))
    assert found.choice == "waist"
    assert "cut at 3 numbers" in found.reason


@pytest.mark.parametrize("extras", [(), ("asdex", "folx")])
def test_auto_is_the_derivative_with_and_without_extras(extras, monkeypatch, same):
    unavailable(monkeypatch, *extras)
    x = jnp.linspace(0.1, 1.0, 40)
    same(gl.jacobian(chain)(x), jax.jacobian(chain)(x))
    same(jax.jit(gl.hessian(valley))(x), jax.hessian(valley)(x))
    same(gl.laplacian(valley)(x), jnp.trace(jax.hessian(valley)(x)))
    if extras:
        rows = {row.mode: row for row in gl.predict(lambda x: x[1:] * jnp.exp(x[:-1]), jnp.ones(400)).rows}
        assert rows["sparse"].status in ("unavailable", "unsupported") and "asdex" in rows["sparse"].reason


def test_auto_takes_what_can_run(same):
    loop = lambda x: jax.lax.while_loop(lambda c: jnp.sum(c) < 50.0, lambda c: c * x[0] + x, x)
    x = jnp.array([1.2, 0.7, 0.9])
    same(gl.jacobian(loop)(x), jax.jacfwd(loop)(x))
    assert gl.predict(loop, x).choice == "forward"


def test_auto_under_jit_with_values_that_an_outer_trace_holds(same):
    def outer(x, s):
        return gl.jacobian(lambda x: s * chain(x) + jnp.cos(s))(x)

    x = jnp.linspace(0.1, 1.0, 30)
    same(jax.jit(outer)(x, 2.0), 2.0 * jax.jacobian(chain)(x))
    same(jax.jacfwd(lambda s: outer(x, s))(2.0), jax.jacobian(chain)(x))


def test_a_second_call_does_not_choose_again():
    traced = []

    def f(x):
        traced.append(x.shape)
        return jnp.sin(jnp.cumsum(x))

    jac = gl.jacobian(f)
    jac(jnp.ones(5))
    first = len(traced)
    jac(jnp.zeros(5))
    assert len(traced) - first < first
    jac(jnp.ones(6))
    assert (6,) in traced


def test_a_function_that_becomes_another_is_chosen_for_anew(same):
    kind = {"loop": False}

    def f(x):
        if kind["loop"]:
            return jax.lax.while_loop(lambda c: c[0] < 9.0, lambda c: c * x[0], x)[:1]
        return jnp.sum(x**2)[None]

    jac, x = gl.jacobian(f), jnp.array([1.5, 0.3])
    same(jac(x), jax.jacrev(f)(x))
    kind["loop"] = True
    same(jac(x), jax.jacfwd(f)(x))


@pytest.mark.parametrize("limit", [2**22, 2**20])
def test_a_limit_of_memory_turns_on_chunks(limit, same):
    f = lambda x: jnp.tanh(jnp.sin(jnp.outer(x, x)) @ jnp.cos(x))
    x = jnp.linspace(0.1, 1.0, 200)
    found = gl.predict(f, x, memory_limit=limit)
    free = gl.predict(f, x)
    row = lambda p: next(row for row in p.rows if row.mode == p.choice)
    assert row(free).bytes > limit > row(found).bytes
    same(gl.jacobian(f, memory_limit=limit)(x), jax.jacobian(f)(x))


def test_calibrated_rates_are_read_from_the_cache_folder(monkeypatch, tmp_path):
    from gradlab import calibration

    monkeypatch.setenv("GRADLAB_CACHE_DIR", str(tmp_path))
    assert cost.origin().startswith("built in")
    content = {name: 2 * value for name, value in cost.to_dict(cost.rates()).items()}
    calibration.keep(cost.from_dict(content))
    assert cost.to_dict(cost.rates()) == content and cost.origin() == "calibrated"
    cost.cache_file(cost.platform()).write_text("{}")
    cost.forget()
    assert cost.origin().startswith("built in")


def test_a_fit_finds_the_rates_that_made_the_times():
    from gradlab import calibration
    from gradlab.jaxprs import trace, work

    true = cost.from_dict({name: 3 * value for name, value in cost.to_dict(cost.DEFAULTS["cpu"]).items()})
    works = [work(trace(f, shape(n))) for f in (jnp.sin, jnp.cumsum, jnp.sort, jnp.sum) for n in (10, 10**4, 10**6)]
    times = np.array([cost.seconds(one, true) for one in works])
    _, factor = calibration.fitted(works, times, cost.DEFAULTS["cpu"])
    assert factor < 1.2


@needs_asdex
@pytest.mark.parametrize("of", ["jacobian", "hessian"])
def test_a_kept_pattern_serves_its_function_and_no_other(of, same, tmp_path):
    f, other = (chain, lambda x: chain(x) * x[-1]) if of == "jacobian" else (valley, lambda x: valley(x) * x[-1])
    take, x = getattr(gl, of), jnp.linspace(0.1, 1.0, 40)
    gl.sparsity(f, x, of=of).save(tmp_path / "pattern.npz")
    kept = gl.Sparsity.load(tmp_path / "pattern.npz")
    expected = getattr(jax, of)(f)(x)
    same(take(f, mode="sparse", sparsity=kept)(x), expected)
    same(jax.jit(take(f, mode="sparse", sparsity=kept))(x), expected)
    same(take(f, output="bcoo", sparsity=kept)(x).todense(), expected)
    with pytest.raises(gl.errors.UnsupportedModeError, match="misses an entry"):
        take(other, mode="sparse", sparsity=kept)(x)
    with pytest.raises(gl.errors.ShapeError, match="has shape"):
        take(f, mode="sparse", sparsity=kept)(x[1:])


@pytest.mark.parametrize(("call", "words"), [
    (lambda: gl.predict(3, 1.0), "function"),
    (lambda: gl.predict(jnp.sin, 1.0, of="jacobean"), "Did you mean 'jacobian'"),
    (lambda: gl.predict(jnp.sin, jnp.ones(2), of="hvp"), "shape"),
    (lambda: gl.predict(jnp.sin, jnp.arange(3)), "int32"),
    (lambda: gl.predict(jnp.sin, 1.0, memory_limit=0), "memory_limit must be an integer"),
    (lambda: gl.jacobian(jnp.sin, mode="forward", output="bcoo"), "goes with mode='sparse'"),
    (lambda: gl.jacobian(jnp.sin, output="csr"), "output must be 'dense' or 'bcoo'"),
    (lambda: gl.hessian(jnp.sum, sparsity="tridiagonal"), "gradlab.Sparsity"),
    (lambda: gl.sparsity(chain, jnp.ones(9), of="hvp"), "'jacobian' or 'hessian'"),
])  # fmt: skip
def test_mistakes_are_named_before_anything_is_computed(call, words):
    with pytest.raises(gl.GradlabError, match=words):
        call()
