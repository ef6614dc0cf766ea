"""Functions of a sequence: a filter over a time series, a path to be planned, a chain of atoms."""

import math

import jax
import jax.numpy as jnp

from gradlab.problems.record import Made, Problem
from gradlab.types import PyTree

__all__ = ["PROBLEMS"]

Array = jax.Array


# A filter.


def kalman_filter(log_variances: Array, series: Array) -> Array:
    """-log p(y) of a local linear trend, by the Kalman filter: logs of the variances of noise, level and slope, y[t].

    The state (level, slope) starts at (y[0], 0) with variances 10.
    """
    noise, *drift = jnp.exp(log_variances)
    advance = jnp.asarray([[1.0, 1.0], [0.0, 1.0]], series.dtype)

    def step(state: tuple[Array, Array], seen: Array) -> tuple[tuple[Array, Array], Array]:
        mean, covariance = state
        mean, covariance = advance @ mean, advance @ covariance @ advance.T + jnp.diag(jnp.stack(drift))
        error, variance = seen - mean[0], covariance[0, 0] + noise
        gain = covariance[:, 0] / variance
        state = mean + gain * error, covariance - jnp.outer(gain, covariance[0])
        return state, 0.5 * (error**2 / variance + jnp.log(2.0 * math.pi * variance))

    start = jnp.stack([series[0], jnp.zeros_like(series[0])]), 10.0 * jnp.eye(2, dtype=series.dtype)
    return jnp.sum(jax.lax.scan(step, start, series)[1])


def _make_kalman_filter(key: Array, size: int) -> Made:
    for_variances, for_slope, for_noise = jax.random.split(key, 3)
    log_variances = jnp.asarray([-1.0, -2.0, -3.0]) + 0.3 * jax.random.normal(for_variances, (3,))
    slope = jnp.cumsum(0.2 * jax.random.normal(for_slope, (size,)))
    return kalman_filter, (log_variances, jnp.cumsum(slope) + 0.6 * jax.random.normal(for_noise, (size,)))


# A path.


def _cart_pole(state: Array, force: Array) -> Array:
    """The slope of (place, angle, speed, angular speed): cart of mass 1, pole of mass 0.3 and length 0.5, g = 9.81."""
    _, angle, speed, spin = state
    sin, cos = jnp.sin(angle), jnp.cos(angle)
    inertia = 1.0 + 0.3 * (1.0 - cos**2)
    push = force + 0.3 * 0.5 * sin * spin**2
    acceleration = (push + 0.3 * 9.81 * cos * sin) / inertia
    return jnp.stack([speed, spin, acceleration, -(push * cos + 1.3 * 9.81 * sin) / (0.5 * inertia)])


def collocation(path: PyTree, step: Array) -> Array:
    """The defects[n-1 4] of x[k+1] - x[k] = ½ h (f(x[k], u[k]) + f(x[k+1], u[k+1])), with steps h.

    The path is {"states": x[n 4], "forces": u[n]}, and f the motion of a pole that hangs from a cart.
    """
    slopes = jax.vmap(_cart_pole)(path["states"], path["forces"])
    return path["states"][1:] - path["states"][:-1] - 0.5 * step * (slopes[1:] + slopes[:-1])


def _make_collocation(key: Array, size: int) -> Made:
    for_states, for_forces = jax.random.split(key)
    swing = jnp.linspace(0.0, 1.0, size)[:, None] * jnp.asarray([1.0, math.pi, 0.0, 0.0])
    path = {
        "forces": jax.random.normal(for_forces, (size,)),
        "states": swing + 0.1 * jax.random.normal(for_states, swing.shape),
    }
    return collocation, (path, jnp.asarray(2.0 / size))


# A chain.


def _bonds(torsions: Array, bend: Array) -> tuple[Array, Array]:
    """The frame[n 3 3] at each atom, its columns (along the bond, normal, binormal), and the atoms[n 3]."""

    def extend(state: tuple[Array, Array], torsion: Array) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        frame, place = state
        cos, sin, none = jnp.cos(torsion), jnp.sin(torsion), jnp.zeros_like(torsion)
        twist = jnp.stack([none + 1.0, none, none, none, cos, -sin, none, sin, cos]).reshape(3, 3)
        frame = frame @ twist @ fold
        place = place + frame[:, 0]
        return (frame, place), (frame, place)

    cos, sin, none = jnp.cos(bend), jnp.sin(bend), jnp.zeros_like(bend)
    fold = jnp.stack([cos, -sin, none, sin, cos, none, none, none, none + 1.0]).reshape(3, 3)
    start = jnp.eye(3, dtype=torsions.dtype), jnp.zeros(3, torsions.dtype)
    return jax.lax.scan(extend, start, torsions)[1]


def backbone(torsions: Array, bend: Array) -> Array:
    """The atoms[n 3] of a chain from its torsion angles[n], each bond of length 1 bent by one angle from the last."""
    return _bonds(torsions, bend)[1]


def backbone_jacobian(torsions: Array, bend: Array) -> Array:
    """∂x[j]/∂t[i] = a[i] × (x[j] - o[i]) for j ≥ i: all that follows turns about the bond a[i] that ends at o[i]."""
    frames, atoms = _bonds(torsions, bend)
    first = jnp.eye(1, 3, dtype=torsions.dtype)
    axes = jnp.concatenate([first, frames[:-1, :, 0]])
    ends = jnp.concatenate([jnp.zeros_like(first), atoms[:-1]])
    turned = jnp.cross(axes[None], atoms[:, None] - ends[None])
    after = jnp.tril(jnp.ones((len(atoms), len(atoms)), bool))
    return jnp.swapaxes(jnp.where(after[..., None], turned, 0.0), 1, 2)


def _make_backbone(key: Array, size: int) -> Made:
    torsions = jax.random.uniform(key, (size,), minval=-math.pi, maxval=math.pi)
    return backbone, (torsions, jnp.asarray(1.2))


PROBLEMS: tuple[Problem, ...] = (
    Problem(
        "kalman_filter",
        ("gradient", "hessian"),
        _make_kalman_filter,
        200,
        "minus the log-likelihood of a time series of `size` values in 3 variances, by a filter in a scan",
        "Durbin and Koopman, Time Series Analysis by State Space Methods, 2nd edition, 2012, chapters 4 and 7",
    ),
    Problem(
        "collocation",
        ("jacobian",),
        _make_collocation,
        60,
        "the defects of a path of `size` states and forces of a cart with a pole, by the trapezoidal rule",
        "Kelly, An introduction to trajectory optimization: how to do your own direct collocation, 2017",
    ),
    Problem(
        "backbone",
        ("jacobian",),
        _make_backbone,
        64,
        "`size` torsion angles to the places of as many atoms, through a scan of rotations: half of it zero",
        "Parsons, Holmes, Rojas, Tsai and Strauss, Practical conversion from torsion space to Cartesian space, 2005",
        backbone_jacobian,
    ),
)
