"""Functions from physics, chemistry and engineering: differential equations, energies, cameras, kinematics."""

import jax
import jax.numpy as jnp
import numpy as np

from gradlab.problems.record import Made, Problem
from gradlab.types import PyTree

__all__ = ["PROBLEMS"]

Array = jax.Array


# Differential equations.


def lotka_volterra(rates: Array, start: Array, steps: Array) -> Array:
    """Prey and predators y[t 2] after each Runge-Kutta step of y' = (a p - b p q, d p q - c q), rates (a, b, c, d)."""

    def slope(state: Array) -> Array:
        prey, predators = state
        growth, predation, death, feeding = rates
        return jnp.stack([growth * prey - predation * prey * predators, feeding * prey * predators - death * predators])

    def advance(state: Array, step: Array) -> tuple[Array, Array]:
        first = slope(state)
        second = slope(state + 0.5 * step * first)
        third = slope(state + 0.5 * step * second)
        fourth = slope(state + step * third)
        state = state + step / 6.0 * (first + 2.0 * second + 2.0 * third + fourth)
        return state, state

    return jax.lax.scan(advance, start, steps)[1]


def _make_lotka_volterra(key: Array, size: int) -> Made:
    for_rates, for_start = jax.random.split(key)
    rates = jnp.asarray([1.5, 1.0, 3.0, 1.0]) * jax.random.uniform(for_rates, (4,), minval=0.8, maxval=1.2)
    start = jax.random.uniform(for_start, (2,), minval=0.8, maxval=1.6)
    return lotka_volterra, (rates, start, jnp.full((size,), 0.02))


def brusselator(fields: Array, previous: Array, step: Array) -> Array:
    """The residual r[2 n n] of an implicit Euler step of u' = 1 + u² v - 4 u + α Δu, v' = 3 u - u² v + α Δv.

    α = 1/50, on the unit square with periodic sides, Δ by five points.
    """
    u, v = fields
    diffusion = sum(jnp.roll(fields, shift, axis) for shift in (1, -1) for axis in (1, 2)) - 4.0 * fields
    reaction = jnp.stack([1.0 + u**2 * v - 4.0 * u, 3.0 * u - u**2 * v])
    return fields - previous - step * (reaction + 0.02 * u.shape[0] ** 2 * diffusion)


def _make_brusselator(key: Array, size: int) -> Made:
    for_fields, for_change = jax.random.split(key)
    fields = jax.random.uniform(for_fields, (2, size, size), minval=0.5, maxval=3.0)
    previous = fields + 0.1 * jax.random.normal(for_change, fields.shape)
    return brusselator, (fields, previous, jnp.asarray(0.01))


# Energies.


def lennard_jones(positions: Array) -> Array:
    """E = Σ_{i<j} 4 (r⁻¹² - r⁻⁶), r = |x[i] - x[j]|, x[n 3], in units of ε and σ."""
    # The pairs come from the shape alone, so no particle meets itself and no distance is zero.
    first, second = np.triu_indices(positions.shape[0], 1)
    attraction = jnp.sum((positions[first] - positions[second]) ** 2, axis=1) ** -3
    return jnp.sum(4.0 * (attraction**2 - attraction))


def lennard_jones_gradient(positions: Array) -> Array:
    """∂E/∂x[i] = Σ_j -24 (2 r⁻¹² - r⁻⁶) (x[i] - x[j]) / r²."""
    difference = positions[:, None] - positions[None]
    own = jnp.eye(positions.shape[0], dtype=bool)
    square = jnp.where(own, 1.0, jnp.sum(difference**2, axis=-1))
    pull = jnp.where(own, 0.0, -24.0 * (2.0 * square**-6 - square**-3) / square)
    return jnp.sum(pull[..., None] * difference, axis=1)


def _make_lennard_jones(key: Array, size: int) -> Made:
    side = next(side for side in range(1, size + 1) if side**3 >= size)
    lattice = np.stack(np.unravel_index(np.arange(size), (side,) * 3), axis=1)
    return lennard_jones, (1.12 * jnp.asarray(lattice, float) + 0.05 * jax.random.normal(key, (size, 3)),)


_UPPER, _LOWER = 1.0 + 2.0**0.5, 1.0 - 2.0**0.5


def helmholtz(x: Array, covolume: Array, matrix: Array) -> Array:
    """F = Σ x log(x / (1 - bᵀx)) - xᵀAx / (√8 bᵀx) log((1 + (1 + √2) bᵀx) / (1 + (1 - √2) bᵀx)), RT = 1."""
    volume = covolume @ x
    logarithm = jnp.log((1.0 + _UPPER * volume) / (1.0 + _LOWER * volume))
    return jnp.sum(x * jnp.log(x / (1.0 - volume))) - x @ matrix @ x / (8.0**0.5 * volume) * logarithm


def helmholtz_gradient(x: Array, covolume: Array, matrix: Array) -> Array:
    """∇F term by term: with s = bᵀx and L the logarithm, the last is -(A + Aᵀ)x L/(√8 s) - xᵀAx b (L'/s - L/s²)/√8."""
    volume = covolume @ x
    logarithm = jnp.log((1.0 + _UPPER * volume) / (1.0 + _LOWER * volume))
    slope = _UPPER / (1.0 + _UPPER * volume) - _LOWER / (1.0 + _LOWER * volume)
    entropy = jnp.log(x / (1.0 - volume)) + 1.0 + covolume * jnp.sum(x) / (1.0 - volume)
    pairs = (matrix + matrix.T) @ x * logarithm / volume
    crowding = x @ matrix @ x * covolume * (slope / volume - logarithm / volume**2)
    return entropy - (pairs + crowding) / 8.0**0.5


def _make_helmholtz(key: Array, size: int) -> Made:
    for_x, for_covolume, for_matrix = jax.random.split(key, 3)
    x = jax.random.uniform(for_x, (size,), minval=0.5, maxval=1.5) / size
    covolume = jax.random.uniform(for_covolume, (size,), minval=0.1, maxval=0.5)
    half = jax.random.uniform(for_matrix, (size, size))
    return helmholtz, (x, covolume, 0.5 * (half + half.T))


# Geometry.


def rotate(rotation: Array, points: Array) -> Array:
    """Rodrigues' formula: points[p 3] turned by |r| about the axis r / |r|, rotation[p 3]."""
    square = jnp.sum(rotation**2, axis=-1, keepdims=True)
    # At r = 0 both branches stay finite, so that the unused one cannot send a NaN back.
    turning = square > 0.0
    angle = jnp.sqrt(jnp.where(turning, square, 1.0))
    axis = rotation / angle
    along = jnp.sum(axis * points, axis=-1, keepdims=True) * axis
    turned = points * jnp.cos(angle) + jnp.cross(axis, points) * jnp.sin(angle) + along * (1.0 - jnp.cos(angle))
    return jnp.where(turning, turned, points + jnp.cross(rotation, points))


def bundle_adjustment(params: PyTree, seen: Array, camera_of: Array, point_of: Array) -> PyTree:
    """Reprojection errors w (project(camera, X) - seen)[o 2] and weight errors (1 - w²)[o] of o observations.

    A camera is rotation (3), center (3), focal length, principal point (2), radial distortion (k1, k2): with
    q = R (X - C) / depth and L = 1 + k1 |q|² + k2 |q|⁴ it sees focal L q + principal point.
    """
    camera, weight = params["cameras"][camera_of], params["weights"]
    inside = rotate(camera[:, :3], params["points"][point_of] - camera[:, 3:6])
    flat = inside[:, :2] / inside[:, 2:]
    square = jnp.sum(flat**2, axis=1, keepdims=True)
    distortion = 1.0 + camera[:, 9:10] * square + camera[:, 10:11] * square**2
    pixel = camera[:, 6:7] * distortion * flat + camera[:, 7:9]
    return {"reprojection": weight[:, None] * (pixel - seen), "weights": 1.0 - weight**2}


def _make_bundle_adjustment(key: Array, size: int) -> Made:
    for_points, for_cameras, for_weights, for_seen = jax.random.split(key, 4)
    cameras = max(2, size // 8)
    middle = jnp.asarray([0.0, 0.0, 0.0, 0.0, 0.0, -5.0, 1.0, 0.0, 0.0, 0.1, 0.05])
    spread = jnp.asarray([0.2, 0.2, 0.2, 0.3, 0.3, 0.3, 0.1, 0.1, 0.1, 0.02, 0.02])
    params = {
        "cameras": middle + spread * jax.random.normal(for_cameras, (cameras, 11)),
        "points": jax.random.uniform(for_points, (size, 3), minval=-1.0, maxval=1.0),
        "weights": jax.random.uniform(for_weights, (2 * size,), minval=0.5, maxval=1.5),
    }
    observation = np.arange(2 * size)
    camera_of, point_of = jnp.asarray((observation // 2 + observation % 2) % cameras), jnp.asarray(observation // 2)
    return bundle_adjustment, (params, 0.3 * jax.random.normal(for_seen, (2 * size, 2)), camera_of, point_of)


def robot_arm(angles: Array, lengths: Array) -> Array:
    """The hand's place (Σ l cos c, Σ l sin c), with c the running sum of the joints' angles."""
    heading = jnp.cumsum(angles)
    return jnp.stack([lengths @ jnp.cos(heading), lengths @ jnp.sin(heading)])


def robot_arm_jacobian(angles: Array, lengths: Array) -> Array:
    """J[:, j] = Σ_{i≥j} l[i] (-sin c[i], cos c[i]): the arm beyond joint j, turned by a right angle."""
    heading = jnp.cumsum(angles)
    links = lengths * jnp.stack([-jnp.sin(heading), jnp.cos(heading)])
    return jnp.cumsum(links[:, ::-1], axis=1)[:, ::-1]


def _make_robot_arm(key: Array, size: int) -> Made:
    for_angles, for_lengths = jax.random.split(key)
    angles = jax.random.uniform(for_angles, (size,), minval=-1.5, maxval=1.5)
    return robot_arm, (angles, jax.random.uniform(for_lengths, (size,), minval=0.5, maxval=1.5))


_ADBENCH = "Šrajer, Kukelova and Fitzgibbon, A benchmark of selected algorithmic differentiation tools, 2018"

PROBLEMS: tuple[Problem, ...] = (
    Problem(
        "lennard_jones",
        ("gradient", "hessian", "hvp", "laplacian"),
        _make_lennard_jones,
        32,
        "the energy of `size` atoms on a shaken lattice",
        "Lennard-Jones, Cohesion, 1931; Allen and Tildesley, Computer Simulation of Liquids, chapter 1",
        lennard_jones_gradient,
    ),
    Problem(
        "helmholtz",
        ("gradient", "hessian", "hvp"),
        _make_helmholtz,
        200,
        "the Helmholtz energy of a mixture of `size` species by the Peng-Robinson equation of state",
        "Griewank, On automatic differentiation, 1989",
        helmholtz_gradient,
    ),
    Problem(
        "lotka_volterra",
        ("jacobian",),
        _make_lotka_volterra,
        300,
        "4 rates to the 2 populations at `size` times, through a scan of Runge-Kutta steps",
        "Lotka, Elements of Physical Biology, 1925; Hairer, Nørsett and Wanner, Solving ODEs I, section II.1",
    ),
    Problem(
        "brusselator",
        ("jacobian",),
        _make_brusselator,
        24,
        "an implicit step of reaction and diffusion on `size` x `size` cells: 6 entries in each row of the Jacobian",
        "Hairer and Wanner, Solving Ordinary Differential Equations II, section IV.10",
    ),
    Problem(
        "bundle_adjustment",
        ("jacobian",),
        _make_bundle_adjustment,
        64,
        "residuals of `size` points, each seen by two cameras, in a pytree of cameras, points and weights",
        _ADBENCH,
    ),
    Problem(
        "robot_arm",
        ("jacobian",),
        _make_robot_arm,
        3,
        "`size` joint angles to the 2 coordinates of the hand",
        "Siciliano, Sciavicco, Villani and Oriolo, Robotics, 2009, chapter 3",
        robot_arm_jacobian,
    ),
)
