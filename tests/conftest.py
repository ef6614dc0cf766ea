"""What every test file shares: tolerances by dtype and platform, and comparison of pytrees."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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


def cast(tree: Any, dtype: Any) -> Any:
    """Floating leaves in another precision, the rest as it is."""
    return jax.tree.map(
        lambda a: jnp.asarray(a, dtype) if jnp.issubdtype(jnp.result_type(a), jnp.floating) else a, tree
    )
