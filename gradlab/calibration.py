"""Measure what this machine takes for each kind of work, so that predictions fit it.

Small programs that each do mostly one kind of work are read as `auto` reads a derivative, and timed; the rates are
those for which the predicted times fit the measured ones best, in the least squares of logarithms.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import least_squares

from gradlab.jaxprs import Work, hoist, trace, work
from gradlab.mode import cost
from gradlab.mode.cost import Rates
from gradlab.report import to_json, write_atomically
from gradlab.timing import compiled, interleaved

Case = tuple[Callable[..., Any], tuple[Any, ...]]
# A rate that no program pins down stays near its default: a factor of e counts like a misfit of this much.
PRIOR = 0.05


def cases() -> list[Case]:
    """Programs of one kind of work each, in small and large."""
    line = lambda *shape: jnp.linspace(0.1, 1.0, int(np.prod(shape))).reshape(shape)
    places = lambda n: jnp.asarray(np.random.default_rng(0).permutation(n))
    found: list[Case] = [(lambda x: x + 1.0, (line(n),)) for n in (1, 10_000, 100_000, 1_000_000, 4_000_000)]
    found += [(partial(_chain, function, 4), (line(n),)) for function in _SLOW for n in (1_000, 30_000, 300_000)]
    found += [
        (partial(_chain, lambda x: x * 0.9 + 0.1, count), (line(n),)) for count in (4, 30) for n in (1_000, 200_000)
    ]
    found += [(partial(_reduced, count), (line(16),)) for count in (2, 20, 80)]
    found += [
        (partial(_scanned, length, count), (line(size),))
        for length in (10, 1000)
        for count in (1, 6)
        for size in (8, 100, 600)
    ]
    found += [(lambda a, b: a @ b, (line(m, k), line(k, n))) for m, k, n in _PRODUCTS]
    found += [(lambda a, b: a @ b, (line(*shape), line(*shape))) for shape in _BATCHES]
    found += [(lambda x, i: x[i] * 2.0, (line(n), places(n))) for n in (1_000, 100_000)]
    found += [(lambda x, i: jnp.zeros_like(x).at[i].add(x), (line(n), places(n))) for n in (1_000, 30_000)]
    rows = lambda n: lambda w, i: jnp.zeros((len(w), n)).at[:, i % n].add(w)
    found += [(rows(n), (line(200, 300), places(300))) for n in (1000, 1024)]
    found += [(jnp.cumsum, (line(n),)) for n in (500, 50_000)] + [(partial(jnp.cumsum, axis=1), (line(300, 300),))]
    found += [(jnp.sort, (line(n)[::-1],)) for n in (500, 20_000)]
    found += [(lambda x: jnp.fft.fft(x).real, (line(n),)) for n in (512, 65_536)]
    found += [(lambda x: jnp.sum(x, axis=0), (line(n, n),)) for n in (100, 1_000)]
    found += [(lambda x: x[:, None] * jnp.eye(x.size) + x, (line(n),)) for n in (100, 1_000)]
    convolve = lambda x, w: jax.lax.conv_general_dilated(x, w, (1,) * (x.ndim - 2), "SAME")
    found += [(convolve, (line(n, 1, 400), line(1, 1, 7))) for n in (1, 100)]
    found += [(convolve, (line(n, 4, 16, 16), line(4, 4, 3, 3))) for n in (1, 50)]
    definite = lambda n: jnp.eye(n) * n + line(n, n)
    found += [(jnp.linalg.solve, (definite(n), line(n, n))) for n in (16, 200)]
    return [*found, *((jnp.linalg.cholesky, (definite(n) + definite(n).T,)) for n in (16, 200))]


_SLOW = (jnp.exp, jnp.tanh, jnp.sin, jnp.log1p)
_PRODUCTS = (
    (8, 8, 8),
    (512, 3, 3),
    (512, 16, 3),
    (64, 64, 64),
    (256, 256, 256),
    (512, 512, 512),
    (1024, 16, 1024),
    (16, 1024, 1024),
    (500, 500, 1),
)


_BATCHES = ((2000, 2, 2), (1000, 6, 6), (1000, 8, 8), (200, 32, 32))


def _chain(function: Callable[[Any], Any], count: int, x: jax.Array) -> jax.Array:
    for _ in range(count):
        x = function(x)
    return x


def _reduced(count: int, x: jax.Array) -> jax.Array:
    """Kernels one after the other, none of which can join the next."""
    for _ in range(count):
        x = x - jnp.sum(x)
    return x


def _scanned(length: int, count: int, x: jax.Array) -> jax.Array:
    return jax.lax.scan(lambda c, _: (_reduced(count, c * 0.5), c[0]), x, length=length)[0]


def calibrate(budget: float = 20.0) -> tuple[Rates, float]:
    """Rates that fit this machine, and the median factor by which they miss the programs they were fitted to.

    Args:
        budget: seconds of timing, for all programs together.
    """
    works, runs = [], []
    for f, args in cases():
        body, constants = hoist(f, *args)
        works.append(work(trace(body, constants, *args)))
        runs.append(partial(compiled(f, *args), *args))
    # Each for itself: among so many others it would find what it needs displaced, and take up to twice as long as a
    # derivative does that is called again and again.
    times = np.array([interleaved([run], budget=budget / len(runs))[0].seconds for run in runs])
    return fitted(works, times, cost.DEFAULTS[cost.platform()])


def fitted(works: list[Work], times: np.ndarray, start: Rates) -> tuple[Rates, float]:
    """The rates for which predicted times fit measured ones, and the median factor of the misfit.

    Args:
        works: what the programs do.
        times: seconds that they took, `[len(works)]`.
        start: rates to start from, and to stay near where the programs do not tell.

    >>> from gradlab.mode.cost import DEFAULTS, seconds
    >>> known = [work(trace(lambda x: x + 1, jax.ShapeDtypeStruct((n,), "float32"))) for n in (1, 10**7)]
    >>> rates, factor = fitted(known, np.array([1e-5, 1e-2]), DEFAULTS["cpu"])
    >>> factor < 1.1
    True
    """
    names = list(cost.to_dict(start))
    origin = np.log(list(cost.to_dict(start).values()))

    def misfit(logs: np.ndarray) -> np.ndarray:
        table = cost.from_dict(dict(zip(names, np.exp(logs), strict=True)))
        predicted = np.array([cost.seconds(one, table) for one in works])
        return np.concatenate([np.log(predicted / times), PRIOR * (logs - origin)])

    found = least_squares(misfit, origin, loss="soft_l1")
    factor = float(np.exp(np.median(np.abs(misfit(found.x)[: len(works)]))))
    return cost.from_dict(dict(zip(names, map(float, np.exp(found.x)), strict=True))), factor


def keep(measured: Rates) -> Path:
    """Write rates to the user's cache folder, where predictions find them; the file's path."""
    file = cost.cache_file(cost.platform())
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, to_json(cost.to_dict(measured)))
    cost.forget()
    return file
