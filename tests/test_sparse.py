"""Compressed derivatives are the dense ones, in fewer passes; a pattern that would make them wrong is refused."""

import dataclasses
import importlib.util
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import cast, hasty, why_no_asdex
from jax import lax
from jax.experimental.sparse import BCOO

from gradlab.errors import MissingExtraError, OptionError, ShapeError, UnsupportedModeError
from gradlab.mode import sparse
from gradlab.mode.dense import MIXTURES
from gradlab.mode.product import product
from gradlab.mode.sparsity import Sparsity, asdex, detect, found

REASON = why_no_asdex()
needs_asdex = pytest.mark.skipif(bool(REASON), reason=REASON)

N = 23
KERNEL = np.array([0.5, -1.0, 2.0], np.float32)
# In int32: JAX 0.10 cannot index by an int64 array of NumPy first without and then with x64.
PLACES = np.array([3, 1, 7, 7, 0, 20, 22, 11, 12, 13, 14, 5], np.int32)


def products(x):
    """Tridiagonal in x, one row less than columns."""
    return jnp.sin(x[1:]) * x[:-1] ** 2


def convolved(x):
    return jnp.convolve(x**2, KERNEL.astype(x.dtype), mode="valid")


def chain(x):
    return jnp.sum(100.0 * (x[1:] - x[:-1] ** 2) ** 2 + (1.0 - x[:-1]) ** 2)


def branched(tree):
    a, b = tree["a"], tree["b"]
    return {"u": a**2, "v": (jnp.sin(b) * b, a[:4] * jnp.sum(b, axis=1))}


def looped(x):
    """Three steps of a loop that mixes neighbors, with a scan and a branch after it."""
    y = lax.fori_loop(0, 3, lambda _, c: c * 0.5 + jnp.roll(c, 1) ** 2, x)
    _, z = lax.scan(lambda c, a: (c + 1.0, jnp.sin(a) * c), jnp.ones((), x.dtype), y)
    return lax.cond(x[0] > 0, lambda t: t**2, lambda t: t[::-1], z)


TREE = {"a": np.linspace(0.5, 2.0, 11), "b": np.linspace(-1.0, 1.0, 12).reshape(4, 3)}
LINE = np.linspace(-1.0, 1.5, N)
FUNCTIONS = {
    "products": (products, LINE),
    "convolved": (convolved, LINE),
    "branched": (branched, TREE),
    "looped": (looped, LINE),
    "gathered": (lambda x: x[PLACES] * 3.0, LINE),
    "scattered": (lambda x: jnp.zeros(30, x.dtype).at[PLACES].add(x[:12] ** 2), LINE),
    "matrix": (lambda x: {"y": jnp.where(jnp.arange(N) % 2 == 0, x, x**2).reshape(N, 1)}, LINE),
}


def points(name, dtype):
    f, x = FUNCTIONS[name]
    return f, cast(jax.tree.map(jnp.asarray, x), dtype)


def densified(tree):
    return jax.tree.map(lambda b: b.todense(), tree, is_leaf=lambda b: isinstance(b, BCOO))


def require_dense(f, x, direction, same):
    """Compressed, as arrays and as blocks, the Jacobian is the dense one."""
    found = detect(f, x, "jacobian", direction)
    assert found.direction == direction
    dense = jax.jacfwd(f) if direction == "forward" else jax.jacrev(f)

    def every(x):
        blocks = sparse.jacobian(f, x, found, output="bcoo")
        return sparse.jacobian(f, x, found), densified(blocks), dense(x)

    given, unpacked, expected = hasty(every)(x)
    same(given, expected)
    same(unpacked, expected)


@needs_asdex
@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_compressed_jacobian_is_the_dense_one(name, direction, same):
    require_dense(*points(name, jnp.float32), direction, same)


@needs_asdex
@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_a_compressed_jacobian_is_the_dense_one_in_double_precision(direction, same):
    with jax.enable_x64(True):
        require_dense(*points("branched", jnp.float64), direction, same)


@needs_asdex
def test_a_compressed_hessian_is_the_dense_one_in_every_mixture(dtype, same):
    f = lambda t: chain(t["x"]) + jnp.sum(t["y"] ** 3) * t["x"][2]
    x = {"x": jnp.linspace(-1.0, 1.0, 17, dtype=dtype), "y": jnp.ones((2, 2), dtype)}
    found = detect(f, x, "hessian")

    def every(x):
        whole = [sparse.hessian(f, x, found, mode=mode) for mode in MIXTURES]
        blocks = sparse.hessian(f, x, found, chunk_size=2, output="bcoo")
        return [*whole, densified(blocks)], jax.hessian(f)(x)

    given, dense = hasty(every)(x)
    for one in given:
        same(one, dense, 1e-4 if dtype == jnp.float32 else None)


@needs_asdex
def test_an_arrow_needs_two_products_and_not_n(same):
    f = lambda x: jnp.sum(x[0] * x[1:] ** 2)
    found = detect(f, jnp.ones(40), "hessian")
    assert found.colors <= 2
    same(*hasty(lambda x: (sparse.hessian(f, x, found), jax.hessian(f)(x)))(jnp.arange(40.0)))


@needs_asdex
def test_a_full_block_is_not_scattered(dtype, same):
    tree = cast({"few": np.linspace(0.1, 0.4, 3), "many": LINE, "one": np.float32(0.3)}, dtype)

    def f(p):
        return jnp.sum(jnp.exp(p["one"]) * jnp.sin(jnp.sum(p["few"]) * p["many"]) + p["one"] * p["many"] ** 3)

    compressed = lambda p: sparse.hessian(f, p, detect(f, tree, "hessian"))
    same(hasty(compressed)(tree), hasty(jax.hessian(f))(tree))
    assert str(jax.make_jaxpr(compressed)(tree)).count("= scatter[") == 1  # the diagonal block of many


@needs_asdex
def test_a_sparsity_says_what_it_holds():
    found = detect(products, jnp.ones(N), "jacobian")
    assert str(found) == "22 x 23 with 44 entries, 2 forward passes"
    assert found.shape == (22, 23) and found.nnz == 44 and found.colors == 2
    assert len(found.rows) == len(found.columns) == 44
    assert np.all(found.columns - found.rows <= 1) and np.all(found.columns >= found.rows)
    assert "colored" not in repr(found)


@needs_asdex
@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_chunks_change_nothing(direction, same):
    f, x = points("branched", jnp.float32)
    found = detect(f, x, "jacobian", direction)
    whole, *chunked = hasty(lambda x: [sparse.jacobian(f, x, found, chunk_size=s) for s in (None, 1, 2, 100)])(x)
    for one in chunked:
        same(one, whole)


@needs_asdex
def test_mixed_dtypes_keep_their_own(same):
    x = (jnp.linspace(0.0, 1.0, 12, dtype=jnp.float16), jnp.linspace(1.0, 2.0, 12, dtype=jnp.float32))
    f = lambda t: (t[0] * 2, t[1] * t[0].astype(jnp.float32))
    for direction, dense in (("forward", jax.jacfwd(f)), ("reverse", jax.jacrev(f))):
        found = detect(f, x, "jacobian", direction)
        given, expected = hasty(lambda x, d=dense, s=found: (sparse.jacobian(f, x, s), d(x)))(x)
        same(given, expected, 1e-3)


@needs_asdex
def test_the_pattern_is_that_of_the_rule_and_not_of_the_function(same):
    rounded = jax.custom_jvp(lambda x: jnp.round(x))
    rounded.defjvp(lambda primals, tangents: (rounded(primals[0]), tangents[0]))
    f = lambda x: rounded(x) * 3.0
    x = jnp.linspace(0.0, 4.0, N)
    found = detect(f, x, "jacobian")
    assert found.nnz == N
    same(hasty(lambda x: sparse.jacobian(f, x, found))(x), 3.0 * jnp.eye(N))


@needs_asdex
def test_a_function_with_a_reverse_rule_alone_goes_in_reverse(same):
    flipped = jax.custom_vjp(lambda x: x[::-1] ** 2)
    flipped.defvjp(lambda x: (flipped(x), x), lambda x, w: (2 * x * w[::-1],))
    x = jnp.arange(float(N))
    found = detect(flipped, x, "jacobian")
    assert found.direction == "reverse"
    same(*hasty(lambda x: (sparse.jacobian(flipped, x, found), jax.jacrev(flipped)(x)))(x))
    sparse.probe(flipped, x, found)
    with pytest.raises(UnsupportedModeError, match="custom_vjp"):
        detect(flipped, x, "jacobian", "forward")


@needs_asdex
def test_a_while_loop_goes_forward(same):
    f = lambda x: lax.while_loop(lambda c: jnp.sum(c) < 50.0, lambda c: c * 2.0, jnp.abs(x) + 0.1)
    x = jnp.linspace(-1.0, 1.0, N)
    found = detect(f, x, "jacobian")
    assert found.direction == "forward" and found.nnz == N
    same(*hasty(lambda x: (sparse.jacobian(f, x, found), jax.jacfwd(f)(x)))(x))


def shared(x, i):
    return lax.dynamic_slice(x, (i,), (2,))


def condition_first(x):
    """A loop whose condition and whose body close over different parts of x."""
    limit, factor = jnp.max(x) * 0 + 5.0, x[4:8]
    return lax.while_loop(lambda c: c[1] < limit, lambda c: (c[0] * factor, c[1] + 1.0), (x[:4], 0.0))[0]


inner = jax.jit(lambda x, i: x[i])
TRAPS = {
    "loop": condition_first,
    "call": lambda x: jnp.stack([inner(x, jnp.int32(0)), inner(x, jnp.argmax(x))]),
    "branch": lambda x: jnp.concatenate(
        [lax.cond(x[0] > 0, shared, shared, x, i) for i in (jnp.int32(3), jnp.argmax(x))]
    ),
    "slice": lambda x: lax.dynamic_slice(x, (N - 1,), (4,)) ** 2,
    "clip": lambda x: jnp.zeros(12).at[np.array([0, 90, 2])].add(x[:3], mode="clip"),
    "pulled": lambda x: x.at[np.array([0, 90, 2])].get(mode="clip") ** 2,
}


@needs_asdex
@pytest.mark.parametrize("name", TRAPS)
def test_no_entry_is_missed(name, same):
    f = TRAPS[name]
    batch = jax.random.normal(jax.random.key(0), (3, N))
    found = detect(f, batch[0], "jacobian")
    both = jax.vmap(lambda x: (sparse.jacobian(f, x, found), jax.jacfwd(f)(x)))
    same(*hasty(both)(batch))


@needs_asdex
def test_a_constant_function_has_zeros_of_the_right_structure(same):
    f = lambda t: (jnp.ones(3), {"k": t["a"] * 0.0 + 1.0})
    x = {"a": jnp.ones(12), "b": jnp.ones((2, 2))}
    found = detect(lambda t: jnp.ones((3, 4)), x, "jacobian")
    assert found.nnz == found.colors == 0
    g = lambda t: jnp.ones((3, 4))
    given, blocks, zeros = hasty(
        lambda x: (sparse.jacobian(g, x, found), sparse.jacobian(g, x, found, output="bcoo"), jax.jacobian(g)(x))
    )(x)
    same(given, zeros)
    same(densified(blocks), zeros)
    second = detect(f, x, "jacobian")
    same(*hasty(lambda x: (sparse.jacobian(f, x, second), jax.jacobian(f)(x)))(x))


@needs_asdex
def test_detection_inside_jit_reads_shapes_alone_and_leaks_nothing(same):
    def f(x, data):
        return x[PLACES] * data[: len(PLACES)] * jnp.take(data, jnp.array([2]))

    @hasty
    def both(x, data):
        g = lambda t: f(t, data)
        found = detect(g, x, "jacobian")
        seen.append(found)
        return sparse.jacobian(g, x, found), sparse.hessian(lambda t: chain(t * data), x, detect_hessian(x, data))

    detect_hessian = lambda x, data: detect(lambda t: chain(t * data), x, "hessian")
    seen: list[Sparsity] = []
    x, data = jnp.linspace(0.5, 1.0, N), jnp.linspace(1.0, 2.0, N)
    with jax.checking_leaks():
        jac, hess = both(x, data)
    dense = hasty(lambda x: (jax.jacobian(f)(x, data), jax.hessian(lambda t: chain(t * data))(x)))(x)
    same(jac, dense[0])
    same(hess, dense[1], 1e-4)
    # Found in the trace, it serves outside of it.
    same(hasty(lambda x: sparse.jacobian(lambda t: f(t, data), x, seen[0]))(x), jac)
    assert seen[0].nnz == len(PLACES)


@needs_asdex
def test_shapes_are_enough_to_detect():
    found = detect(products, jax.ShapeDtypeStruct((N,), jnp.float32), "jacobian")
    assert found.shape == (N - 1, N)


@needs_asdex
def test_a_compressed_derivative_is_a_function_like_any_other(same):
    first, second = detect(products, jnp.ones(N), "jacobian"), detect(chain, jnp.ones(N), "hessian")
    batch = jax.random.normal(jax.random.key(1), (5, N))

    def every(jac, hess):
        energy = lambda x: jnp.sum(jac(x) ** 2) + 1e-4 * jnp.sum(hess(x) ** 2)
        return hasty(lambda batch: (jax.vmap(jac)(batch), jax.grad(energy)(batch[0])))(batch)

    compressed = every(lambda x: sparse.jacobian(products, x, first), lambda x: sparse.hessian(chain, x, second))
    same(compressed, every(jax.jacobian(products), jax.hessian(chain)), 1e-4)


@needs_asdex
def test_auxiliary_values_come_along(same):
    f = lambda x: (products(x), {"n": x.size, "sum": jnp.sum(x)})
    found = detect(products, jnp.ones(N), "jacobian")
    take = lambda x: (*sparse.jacobian(f, x, found, has_aux=True), jax.jacobian(products)(x))
    jac, aux, dense = hasty(take)(jnp.arange(float(N)))
    same(jac, dense)
    assert aux["n"] == N and float(aux["sum"]) == N * (N - 1) / 2


@needs_asdex
def test_saved_and_loaded_it_is_the_same(tmp_path, same):
    for of, f in (("jacobian", products), ("hessian", chain)):
        found = detect(f, jnp.ones(N), of)
        file = tmp_path / f"{of}.npz"
        found.save(file)
        back = Sparsity.load(file)
        assert back.of == of and str(back) == str(found)
        for part in ("rows", "columns", "color", "places"):
            np.testing.assert_array_equal(getattr(back, part), getattr(found, part))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hessian.npz", "jacobian.npz"]
    same(*hasty(lambda x: (sparse.hessian(chain, x, back), sparse.hessian(chain, x, found)))(jnp.ones(N)))


@needs_asdex
def test_a_wrong_file_is_named(tmp_path):
    text, other = tmp_path / "notes.txt", tmp_path / "other.npz"
    text.write_text("not a pattern")
    np.savez(other, a=np.ones(3))
    for path in (text, other, tmp_path / "absent.npz"):
        with pytest.raises(OptionError, match=path.name):
            Sparsity.load(path)


@needs_asdex
def test_a_file_whose_indices_lie_outside_is_refused(tmp_path):
    file = tmp_path / "pattern.npz"
    detect(products, jnp.ones(N), "jacobian").save(file)
    parts = dict(np.load(file))
    parts["rows"] = parts["rows"][::-1]
    np.savez(file, **parts)
    with pytest.raises(OptionError, match=r"pattern\.npz"):
        Sparsity.load(file)


@needs_asdex
def test_a_pattern_of_something_else_is_refused():
    found = detect(products, jnp.ones(N), "jacobian")
    with pytest.raises(ShapeError, match="has shape"):
        sparse.jacobian(products, jnp.ones(N + 1), found)
    with pytest.raises(OptionError, match="belongs to a jacobian"):
        sparse.hessian(chain, jnp.ones(N), found)


def without(found: Sparsity, entry: int) -> Sparsity:
    """The pattern less one entry (of a Hessian: and its image)."""
    library = asdex()
    r, c = int(found.rows[entry]), int(found.columns[entry])
    gone = (found.rows == r) & (found.columns == c)
    if found.of == "hessian":
        gone |= (found.rows == c) & (found.columns == r)
    pattern = library.SparsityPattern.from_coo(found.rows[~gone], found.columns[~gone], found.shape)
    if found.of == "hessian":
        return dataclasses.replace(found, colored=library.hessian_coloring_from_sparsity(pattern))
    mode = "fwd" if found.direction == "forward" else "rev"
    return dataclasses.replace(found, colored=library.jacobian_coloring_from_sparsity(pattern, mode=mode))


@needs_asdex
@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_a_probe_finds_a_missing_entry(direction):
    x = jnp.linspace(0.5, 1.5, N)
    found = detect(products, x, "jacobian", direction)
    sparse.probe(products, x, found)
    for entry in (0, 20):
        with pytest.raises(UnsupportedModeError, match="misses"):
            sparse.probe(products, x, without(found, entry))


@needs_asdex
def test_a_probe_finds_a_missing_entry_of_a_hessian_and_trusts_nan_with_nothing():
    x = jnp.linspace(0.5, 1.5, N)
    found = detect(chain, x, "hessian")
    sparse.probe(chain, x, found)
    with pytest.raises(UnsupportedModeError, match="misses"):
        sparse.probe(chain, x, without(found, 1))
    root = lambda x: jnp.sqrt(x)
    sparse.probe(root, jnp.zeros(N), detect(root, x, "jacobian"))


@needs_asdex
@pytest.mark.parametrize(
    ("f", "shape", "of"),
    [
        (lambda x: jnp.cumsum(jnp.sort(x)), (60,), "jacobian"),
        (lambda x: jnp.sort(x.reshape(60, 1), axis=0)[:40, 0], (60,), "jacobian"),
        (lambda x: jnp.tanh(jnp.sum(x)) * x, (300,), "jacobian"),
        (lambda x: jnp.sum(x) ** 2, (300,), "hessian"),
        (lambda x: jnp.sum(x) * x, (3,), "jacobian"),
        (lambda x: jnp.sum(x) ** 2, (4,), "hessian"),
    ],
)
def test_a_dense_derivative_is_refused_before_it_is_colored(f, shape, of):
    with pytest.raises(UnsupportedModeError, match=r"is dense: at least \d+ passes of \d+"):
        detect(f, jnp.ones(shape), of)


@needs_asdex
def test_a_dense_coloring_makes_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert detect(lambda x: x[jnp.array([0, 1])] * x[1:], jnp.ones(3), "jacobian").nnz == 4


@needs_asdex
def test_what_asdex_cannot_read_is_named():
    with pytest.raises(UnsupportedModeError, match="'fft'"):
        detect(lambda x: jnp.fft.rfft(x).real, jnp.ones(16), "jacobian")


@needs_asdex
def test_fewer_reverse_passes_win_only_by_half():
    wide = lambda x: jnp.sum(x.reshape(10, 7) ** 2, axis=1)
    assert detect(wide, jnp.ones(70), "jacobian").direction == "reverse"
    assert detect(lambda x: jnp.sum(x.reshape(35, 2) ** 2, axis=1), jnp.ones(70), "jacobian").direction == "reverse"
    assert detect(lambda x: jnp.tile(x, 3), jnp.ones(70), "jacobian").direction == "forward"
    assert detect(lambda x: x**2, jnp.ones(70), "jacobian").direction == "forward"


@needs_asdex
def test_a_fingerprint_changes_with_the_program_alone():
    x = jnp.ones(N)
    table = jnp.arange(float(N))
    named = lambda f, of="jacobian": product(f, x, of).fingerprint
    twin = jnp.array(table)
    assert named(lambda x: x * table) == named(lambda t: t * twin)
    assert named(lambda x: x * table) != named(lambda x: x * (table + 1))
    assert named(lambda x: x[PLACES]) != named(lambda x: x[PLACES[::-1]])
    assert named(chain) != named(chain, "hessian")
    rule = jax.custom_jvp(jnp.sin)
    rule.defjvp(lambda p, t: (rule(p[0]), t[0]))
    assert named(lambda x: rule(x)) == named(lambda x: rule(x))
    inside = []
    jax.jit(lambda data: inside.append(named(lambda x: x * data)))(table)
    jax.jit(lambda data: inside.append(named(lambda x: x * data)))(table + 1)
    assert inside[0] == inside[1]


@needs_asdex
def test_the_pattern_of_one_program_is_looked_for_once():
    first = found(lambda x: x**2, jnp.ones(N), "jacobian")
    assert found(lambda t: t**2, jnp.zeros(N), "jacobian") is first
    assert found(lambda x: x**2, jnp.ones(N + 1), "jacobian").shape == (N + 1, N + 1)


@needs_asdex
def test_memory_grows_with_the_entries_and_not_with_the_matrix():
    n = 200_000
    rows = np.arange(n)
    library = asdex()
    near = [(rows[max(0, -d) : n - max(0, d)], d) for d in (-1, 0, 1)]
    keys = np.sort(np.concatenate([r * n + r + d for r, d in near]))
    pattern = library.SparsityPattern.from_coo(keys // n, keys % n, (n, n))
    found = Sparsity("hessian", library.hessian_coloring_from_sparsity(pattern))
    take = jax.jit(lambda x: sparse.hessian(chain, x, found, output="bcoo"))
    shape = take.eval_shape(jax.ShapeDtypeStruct((n,), jnp.float32))
    assert shape.data.shape == (found.nnz,) and shape.shape == (n, n)
    memory = take.lower(jax.ShapeDtypeStruct((n,), jnp.float32)).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 200 * n and memory.output_size_in_bytes < 100 * n


def test_a_missing_library_names_its_command():
    if not REASON:
        pytest.skip("asdex is installed")
    assert importlib.util.find_spec("asdex") is None or "cannot be imported" in REASON
    with pytest.raises(MissingExtraError, match=r'pip install "gradlab-jax\[sparse\]"'):
        detect(products, jnp.ones(N), "jacobian")
