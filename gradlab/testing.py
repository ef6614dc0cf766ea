"""Gradient tests: one assertion for any test runner, and the devices that it may run on."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax

from gradlab.checking import Check, check
from gradlab.types import Fn, PyTree


def assert_derivatives(f: Fn, *args: PyTree, order: int = 1, **options: Any) -> Check:
    """Assert that the derivative of f that JAX takes at args is right.

    Args:
        f, args, order: as for `gradlab.check`.
        options: its other options.

    Returns:
        The check, whose `.power` says how small an error would have failed.

    Raises:
        WrongDerivativeError: an `AssertionError` with the report; for every verdict but `ok`.

    >>> import jax.numpy as jnp
    >>> assert_derivatives(jnp.sin, 0.5).verdict
    'ok'
    >>> assert_derivatives(jnp.abs, 0.0)
    Traceback (most recent call last):
    gradlab.errors.WrongDerivativeError: derivative of abs: kink ...
    """
    result = check(f, *args, order=order, **options)
    result.raise_if_failed()
    return result


@contextmanager
def on_platform(platform: str | None) -> Iterator[None]:
    """Run on the first device of a platform: `"cpu"`, `"gpu"` or `"tpu"`; None is JAX's own choice.

    Raises:
        RuntimeError: JAX's own, where there is no such device.

    >>> with on_platform("cpu"):
    ...     jax.numpy.ones(()).device.platform
    'cpu'
    """
    if platform is None:
        yield
        return
    with jax.default_device(jax.devices(platform)[0]):
        yield
