"""Properties of arrays and Jacobians on a mesh, for a pytest with eight devices: `test_sharded.py` starts one."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import gradlab as gl
from gradlab import distributed

MATRICES = np.random.default_rng(0).normal(size=(4, 256, 256)).astype(np.float32) / 16
MODES = ("forward", "reverse", "auto")


def whole(f, argnums=0, by=jax.jacfwd):
    """JAX's own Jacobian, as one program: operator by operator takes seconds."""
    return jax.jit(by(f, argnums))


def chain(x):
    for matrix in MATRICES:
        x = jnp.tanh(matrix @ x)
    return x


def loop(x):
    return jax.lax.scan(lambda c, matrix: (jnp.tanh(matrix @ c), None), x, MATRICES)[0]


def wavy(p, rate, power=2, *, bent=True):
    z = p["w"] @ p["v"] * rate
    return {"y": jnp.sin(z) if bent else z, "t": (jnp.sum(z) ** power,)}


def params():
    return {"w": jnp.linspace(-1.0, 1.0, 48).reshape(3, 16), "v": jnp.linspace(0.0, 1.0, 16)}


@pytest.mark.parametrize(("mode", "f"), [("forward", chain), ("reverse", loop)])
def test_the_work_of_a_device_falls_as_one_over_their_number(mode, f):
    x = jnp.ones(256)

    def flops(count):
        mesh = distributed.mesh(devices=jax.devices()[:count])
        cost = jax.jit(gl.jacobian(f, mode=mode, mesh=mesh)).lower(x).compile().cost_analysis()
        return (cost[0] if isinstance(cost, list) else cost)["flops"]

    work = {count: flops(count) for count in (1, 2, 4, 8)}
    for count in (2, 4, 8):
        # f itself is computed on every device: that is 1 of the 257 shares.
        assert work[1] / count <= work[count] <= 1.05 * work[1] / count


def test_devices_say_nothing_to_each_other():
    text = jax.jit(gl.jacobian(chain, mode="forward", mesh=distributed.mesh())).lower(jnp.ones(256)).compile().as_text()
    assert "all-" not in text and "collective" not in text


@pytest.mark.parametrize("mode", ["forward", "reverse"])
@pytest.mark.parametrize(("size", "axes"), [(2, {"a": 2, "b": 2, "c": 2}), (7, None), (24, {"data": 4, "model": -1})])
def test_a_mesh_changes_no_jacobian_of_any_size(size, axes, mode, same):
    f = lambda x: (x[0] * x[:, None] * jnp.arange(3.0))[1:]
    x = jnp.linspace(0.1, 1.0, size)
    same(gl.jacobian(f, mode=mode, mesh=distributed.mesh(axes))(x), whole(f)(x))


@pytest.mark.parametrize(("mode", "rate"), [("forward", 2.0), ("reverse", np.float32(2.0)), ("auto", 2.0)])
def test_a_mesh_changes_no_jacobian_of_a_pytree(mode, rate, same):
    take = gl.jacobian(wavy, (0, 1), mode=mode, mesh=distributed.mesh({"data": 4, "model": -1}))
    expected = whole(lambda p, rate: wavy(p, rate, 3, bent=False), (0, 1))(params(), rate)
    same(take(params(), rate, 3, bent=False), expected)
    same(jax.jit(take, static_argnums=2, static_argnames="bent")(params(), rate, 3, bent=False), expected)


@pytest.mark.parametrize("mode", ["forward", "reverse"])
def test_a_mesh_keeps_float64(mode, same):
    with jax.enable_x64(True):
        x = jnp.linspace(0.1, 1.0, 11)
        same(gl.jacobian(jnp.sin, mode=mode, mesh=distributed.mesh())(x), whole(jnp.sin)(x))


@pytest.mark.parametrize("mode", MODES)
def test_a_mesh_leaves_what_else_f_returns(mode, same):
    f = lambda x, n: (jnp.sin(x), {"n": n, "sum": jnp.sum(x)})
    jac, aux = gl.jacobian(f, mode=mode, has_aux=True, mesh=distributed.mesh())(jnp.arange(3.0), 2)
    same(jac, whole(jnp.sin)(jnp.arange(3.0)))
    assert int(aux["n"]) == 2 and float(aux["sum"]) == 3.0


def test_complex_values_follow_the_convention_of_jax(same):
    x = jnp.array([1.0 + 1j, 2.0])
    same(gl.jacobian(jnp.abs, mode="reverse", mesh=distributed.mesh())(x), whole(jnp.abs, by=jax.jacrev)(x))
    rotate = lambda t: jnp.exp(1j * t)
    same(gl.jacobian(rotate, mode="forward", mesh=distributed.mesh())(x.real), whole(rotate)(x.real))


@pytest.mark.parametrize(("mode", "spec"), [("forward", (None, "data")), ("reverse", ("data",))])
def test_the_result_is_split_along_its_columns_or_rows(mode, spec):
    jac = gl.jacobian(chain, mode=mode, mesh=distributed.mesh())(jnp.ones(256))
    assert jac.sharding.is_equivalent_to(NamedSharding(distributed.mesh(), PartitionSpec(*spec)), jac.ndim)
    odd = gl.jacobian(jnp.sin, mode=mode, mesh=distributed.mesh())(jnp.ones(7))
    assert odd.sharding.is_fully_replicated and odd.sharding.device_set == set(jax.devices())


def test_axes_of_the_mesh_go_where_they_divide():
    mesh = distributed.mesh({"a": 4, "b": 2})
    jac = gl.jacobian(jnp.sin, mode="forward", mesh=mesh)(jnp.ones((4, 6)))
    assert jac.sharding.is_equivalent_to(NamedSharding(mesh, PartitionSpec(None, None, "a", "b")), jac.ndim)


@pytest.mark.parametrize("mode", ["forward", "reverse"])
def test_an_input_that_is_placed_stays_there(mode, same):
    mesh = distributed.mesh({"data": 4, "model": 2})
    rows = distributed.shard(jnp.linspace(0.0, 1.0, 48).reshape(24, 2), mesh)
    f = lambda w, rows: jnp.tanh(rows @ w)
    take = gl.jacobian(f, mode=mode, mesh=mesh)
    for jac in (take(jnp.ones(2), rows), jax.jit(take)(jnp.ones(2), rows)):
        same(jac, whole(f)(jnp.ones(2), np.asarray(rows)))
    assert rows.sharding.spec == PartitionSpec("data")


def test_a_mesh_goes_with_vmap_and_grad(same):
    f = lambda x: x[0] * jnp.sin(x)
    take = gl.jacobian(f, mesh=distributed.mesh())
    xs = jnp.linspace(0.0, 1.0, 24).reshape(3, 8)
    same(jax.vmap(take)(xs), jax.vmap(whole(f))(xs))
    same(jax.grad(lambda x: jnp.sum(take(x)))(xs[0]), jax.grad(lambda x: jnp.sum(whole(f)(x)))(xs[0]))


def test_a_program_is_traced_once_for_arguments_alike():
    traced = []
    take = gl.jacobian(lambda x, n: traced.append(n) or x * n, mode="forward", mesh=distributed.mesh())
    take(jnp.ones(8), 1)
    before = len(traced)
    take(jnp.zeros(8), 1)
    assert len(traced) == before
    # True == 1, and they are not the same argument.
    assert take(jnp.zeros(8), True).dtype == jnp.float32 and traced[-1] is True


def test_auto_takes_the_direction_with_fewer_passes():
    wide = gl.jacobian(lambda x: jnp.sum(jnp.sin(x)), mesh=distributed.mesh())(jnp.ones(512))
    tall = gl.jacobian(lambda t: jnp.sin(t * jnp.ones(512)), mesh=distributed.mesh())(1.0)
    # One row, or one column, has nothing to split.
    assert wide.sharding.is_fully_replicated and tall.sharding.is_fully_replicated


def test_a_mode_without_a_rule_says_which_one_has_it():
    f = lambda x: jax.lax.while_loop(lambda c: c[0] < 3.0, lambda c: c * 2.0, x)
    with pytest.raises(gl.errors.UnsupportedModeError, match="These modes can run here: forward"):
        gl.jacobian(f, mode="reverse", mesh=distributed.mesh())(jnp.ones(3))
    assert gl.jacobian(f, mesh=distributed.mesh())(jnp.ones(3))[0, 0] == 4.0


def test_an_array_that_lies_elsewhere_is_named():
    x = {"w": jax.device_put(jnp.ones(3), jax.devices()[1])}
    with pytest.raises(gl.errors.OptionError, match=r"args\[0\]\['w'\] was put on 1 device"):
        gl.jacobian(lambda p: p["w"] ** 2, mesh=distributed.mesh())(x)


def test_an_argument_that_cannot_be_hashed_is_named():
    with pytest.raises(gl.errors.ArgumentError, match=r"kwargs\['s'\] is a set"):
        gl.jacobian(lambda x, s: x, mesh=distributed.mesh())(jnp.ones(3), s={1})


def test_a_mesh_has_the_shape_that_was_asked_for():
    assert dict(distributed.mesh().shape) == {"data": 8}
    assert dict(distributed.mesh({"a": 2, "b": -1}).shape) == {"a": 2, "b": 4}
    assert dict(distributed.mesh({"a": 2}, devices=jax.devices()[:2]).shape) == {"a": 2}
    assert set(distributed.mesh({"a": 2, "b": 4}).axis_types) == {AxisType.Auto}
    for wrong in ({"a": 4}, {"a": 16}, {"a": 3, "b": -1}, {"a": -1, "b": -1}):
        with pytest.raises(gl.errors.OptionError, match="number of devices, which is 8"):
            distributed.mesh(wrong)


def tree():
    return {
        "x": np.linspace(0.0, 1.0, 48, dtype=np.float32).reshape(16, 3),
        "n": np.arange(8),
        "nan": [np.full(8, np.nan)],
    }


@pytest.mark.parametrize("axis", ["data", "model", ("data", "model")])
def test_placing_keeps_values_and_splits_rows(axis):
    mesh = distributed.mesh({"data": 4, "model": 2})
    for placed in (distributed.shard(tree(), mesh, axis), distributed.from_local(tree(), mesh, axis)):
        jax.tree.map(np.testing.assert_array_equal, placed, tree())
        for leaf in jax.tree.leaves(placed):
            assert leaf.sharding.is_equivalent_to(NamedSharding(mesh, PartitionSpec(axis)), leaf.ndim)


def test_replicating_keeps_values_on_every_device():
    copies = distributed.replicate({**tree(), "rate": 0.5, "key": jax.random.key(3)}, distributed.mesh())
    assert jax.random.key_data(copies.pop("key")).tolist() == [0, 3]
    jax.tree.map(np.testing.assert_array_equal, copies, {**tree(), "rate": 0.5})
    for leaf in jax.tree.leaves(copies):
        assert leaf.sharding.is_fully_replicated and len(leaf.sharding.device_set) == 8


@pytest.mark.parametrize("place", [distributed.shard, distributed.from_local])
def test_rows_that_do_not_divide_are_named(place):
    with pytest.raises(gl.errors.ShapeError, match=r"data\['x'\]\[0\] has shape \(12, 2\).*Drop 4 of them, or add 4"):
        place({"x": [np.ones((12, 2))]}, distributed.mesh())
    with pytest.raises(gl.errors.ShapeError, match=r"data\['s'\] has shape \(\)"):
        place({"s": 1.0}, distributed.mesh())
    with pytest.raises(gl.errors.OptionError, match=r"no axis 'dat'; it has 'data'\. Did you mean 'data'"):
        place(np.ones(8), distributed.mesh(), "dat")


# Descents.

ROWS = np.random.default_rng(1).normal(size=(64, 32)).astype(np.float32)
START = {"w": np.random.default_rng(2).normal(size=(32, 16)).astype(np.float32) / 6, "b": np.zeros(16, np.float32)}


def residue(params, rows):
    return jnp.mean((jnp.tanh(rows @ params["w"] + params["b"])[:, 0] - rows[:, 0]) ** 2)


def placed(mesh):
    """Data split over one axis of the mesh, and the columns of a matrix over the other."""
    columns = NamedSharding(mesh, PartitionSpec(None, "model"))
    start = {"w": jax.device_put(START["w"], columns), "b": distributed.replicate(START["b"], mesh)}
    return start, distributed.shard(ROWS, mesh)


@pytest.mark.parametrize(("name", "batch_size"), [("adam", 12), ("lbfgs", None)])
def test_a_descent_on_a_mesh_is_the_one_of_one_device_and_stays_placed(same, name, batch_size):
    mesh = distributed.mesh({"data": 4, "model": 2})
    start, rows = placed(mesh)
    optimizer = {"adam": optax.adam(0.01), "lbfgs": optax.lbfgs()}[name]
    run = lambda start, rows: gl.descend(residue, start, data=rows, optimizer=optimizer, steps=8, batch_size=batch_size)
    alone, spread = run(START, ROWS), run(start, rows)
    same(jax.device_get(spread.params), jax.device_get(alone.params), 1e-4)
    same(spread.losses, alone.losses, 1e-4)
    assert spread.params["w"].sharding.is_equivalent_to(start["w"].sharding, 2)
    assert all(len(leaf.sharding.device_set) == 8 for leaf in jax.tree.leaves((spread.params, spread.state)))
    assert spread.resume(3).steps == 11


def test_a_descent_on_a_mesh_goes_on_from_its_checkpoint(tmp_path):
    start, rows = placed(distributed.mesh({"data": 4, "model": 2}))
    run = lambda steps, folder: gl.descend(residue, start, data=rows, steps=steps, checkpoint_dir=folder)
    run(7, tmp_path)
    resumed, unbroken = run(20, tmp_path), run(20, None)
    assert all(map(np.array_equal, *map(jax.tree.leaves, (resumed.params, unbroken.params))))
    assert resumed.params["w"].sharding == start["w"].sharding


def test_a_stream_of_unplaced_batches_goes_where_the_params_are(same):
    start, _ = placed(distributed.mesh({"data": 4, "model": 2}))
    stream = lambda: (ROWS[i : i + 8] for i in range(0, 64, 8))
    alone, spread = (gl.descend(residue, params, data=stream(), steps=8) for params in (START, start))
    same(jax.device_get(spread.params), jax.device_get(alone.params), 1e-4)


@pytest.mark.parametrize("kind", ["arrays", "stream"])
def test_params_that_are_on_no_mesh_go_to_that_of_the_data(same, kind):
    rows = distributed.shard(ROWS, distributed.mesh())
    data = lambda rows: rows if kind == "arrays" else iter([rows] * 5)
    alone, spread = (gl.descend(residue, START, data=data(x), steps=5) for x in (ROWS, rows))
    same(jax.device_get(spread.params), jax.device_get(alone.params), 1e-4)
    assert len(spread.params["w"].sharding.device_set) == 8


def test_the_work_of_a_descent_falls_as_one_over_the_devices():
    rows = np.random.default_rng(3).normal(size=(4096, 32)).astype(np.float32)
    loop = jax.jit(gl.descent_loop(residue, optax.sgd(0.1), steps=2))

    def flops(count):
        mesh = distributed.mesh(devices=jax.devices()[:count])
        cost = loop.lower(distributed.replicate(START, mesh), distributed.shard(rows, mesh)).compile().cost_analysis()
        return (cost[0] if isinstance(cost, list) else cost)["flops"]

    one = flops(1)
    for count in (2, 4, 8):
        assert one / flops(count) > 0.9 * count


def test_seeds_are_split_over_the_devices(same):
    mesh = distributed.mesh()
    rates = np.linspace(0.01, 0.2, 16, dtype=np.float32)
    run = jax.jit(jax.vmap(lambda rate: gl.descent_loop(residue, optax.sgd(rate), steps=5)(START, ROWS)[0]))
    same(jax.device_get(run(distributed.shard(rates, mesh))), jax.device_get(run(rates)), 1e-4)
