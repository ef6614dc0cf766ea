"""What every test file shares: tolerances by dtype and platform, and comparison of pytrees."""

from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradlab import problems
from gradlab.errors import MissingExtraError
from gradlab.mode.sparsity import asdex


def tolerance(dtype: Any) -> float:
    """1e-12 in float64 and 1e-5 in float32; 2e-3 where float32 products may be rounded to tf32 or bfloat16."""
    if jnp.finfo(dtype).bits == 64:
        return 1e-12
    return 1e-5 if jax.default_backend() == "cpu" else 2e-3


def same(given: Any, expected: Any, tol: float | None = None) -> None:
    """Assert one structure, shapes and dtypes, and values equal relative to the largest entry of each leaf."""
    assert jax.tree.structure(given) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(given), jax.tree.leaves(expected), strict=True):
        assert jnp.shape(a) == jnp.shape(b)
        assert jnp.result_type(a) == jnp.result_type(b)
        limit = tolerance(jnp.result_type(b)) if tol is None else tol
        size = max(float(np.max(np.abs(b), initial=0.0)), 1.0)
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=limit, atol=limit * size)


@pytest.fixture(autouse=True, scope="session")
def built_in_rates(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What auto takes in a test does not hang on how this machine has been calibrated."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADLAB_CACHE_DIR", str(tmp_path_factory.mktemp("rates")))
        yield


# Modules whose examples need it.
NEED_ASDEX = ("sparse.py", "sparsity.py", "pattern.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the examples that need asdex where it is not to be had."""
    examples = [i for i in items if isinstance(i, pytest.DoctestItem) and i.path.name in NEED_ASDEX]
    reason = why_no_asdex() if examples else ""
    for item in examples if reason else []:
        item.add_marker(pytest.mark.skip(reason=reason))


def why_no_asdex() -> str:
    """Why asdex is not there, or nothing."""
    try:
        asdex()
    except MissingExtraError as error:
        return str(error)
    return ""


@pytest.fixture(name="same")
def same_fixture() -> Callable[..., None]:
    return same


@pytest.fixture(params=["float32", "float64"])
def dtype(request: pytest.FixtureRequest) -> Any:
    """Both precisions; float64 is a scope around the test."""
    if request.param == "float32":
        yield jnp.float32
        return
    with jax.enable_x64(True):
        yield jnp.float64


def hasty(f: Callable) -> Any:
    """`jax.jit` for a program that runs once or twice: most of the time would go into making it fast."""
    return jax.jit(
        f, compiler_options={"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    )


@cache
def drawn(problem: problems.Problem, size: int, seed: int = 0) -> problems.record.Made:
    """What the problem builds, as one program: drawing number after number takes longer than most tests."""
    draw, made = drawing(problem, size)
    with jax.enable_x64(False):  # whoever asks first, all get the same
        args = hasty(draw)(jax.random.key(seed))
    return made[0], args


@cache
def drawing(problem: problems.Problem, size: int) -> tuple[Callable[[jax.Array], Any], list[Callable]]:
    """What draws the problem's arguments from a key, and where it leaves the function when it is traced."""
    if problem.requires == "data":
        pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    made: list[Callable] = []

    def draw(key: jax.Array) -> Any:
        f, args = problem.build(key=key, size=size)
        made.append(f)
        return args

    return draw, made


def each_problem(of: Iterable[problems.Problem] = problems.TABLE) -> Any:
    """Parametrize a test by problem. All tests of one share a process, and with it what JAX has compiled for it."""
    return pytest.mark.parametrize("problem", [of_problem(p) for p in of])


def of_problem(problem: problems.Problem, *more: Any, marks: Iterable[Any] = ()) -> Any:
    """The parameters of one test of a problem."""
    name = "-".join([problem.name, *map(str, more)])
    return pytest.param(problem, *more, id=name, marks=[pytest.mark.xdist_group(problem.name), *marks])


def cast(tree: Any, dtype: Any) -> Any:
    """Floating leaves in another precision, the rest as it is."""
    return jax.tree.map(
        lambda a: jnp.asarray(a, dtype) if jnp.issubdtype(jnp.result_type(a), jnp.floating) else a, tree
    )
