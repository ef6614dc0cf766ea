"""Functions that JAX can differentiate in one direction only: a `while_loop` has no reverse, a `custom_vjp` no forward.

Each has its derivative in closed form.
"""

import jax
import jax.numpy as jnp

from gradlab.problems.record import Made, Problem

__all__ = ["PROBLEMS"]

Array = jax.Array


@jax.custom_vjp
def log1pexp(x: Array) -> Array:
    """log(1 + exp(x)) elementwise, with the backward rule x̄ = ȳ σ(x) written by hand."""
    return jnp.logaddexp(x, 0.0)


def _log1pexp_forward(x: Array) -> tuple[Array, Array]:
    return log1pexp(x), x


def _log1pexp_backward(x: Array, cotangent: Array) -> tuple[Array]:
    return (cotangent * jax.nn.sigmoid(x),)


log1pexp.defvjp(_log1pexp_forward, _log1pexp_backward)


def softplus_sum(x: Array) -> Array:
    """f(x) = Σ log(1 + exp(x[i])), over entries whose exponential may overflow."""
    return jnp.sum(log1pexp(x))


def softplus_sum_gradient(x: Array) -> Array:
    """∂f/∂x[i] = 1 / (1 + exp(-x[i])) = ½ (1 + tanh(x[i] / 2))."""
    return 0.5 * (1.0 + jnp.tanh(0.5 * x))


def _make_softplus_sum(key: Array, size: int) -> Made:
    return softplus_sum, (30.0 * jax.random.normal(key, (size,)),)


def kepler(mean_anomaly: Array, eccentricity: Array) -> Array:
    """The eccentric anomaly E with E - e sin E = M, by Newton's method until the last step is below √eps."""
    enough = float(jnp.finfo(mean_anomaly.dtype).eps) ** 0.5

    def newton_step(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        anomaly, _, count = state
        residual = anomaly - eccentricity * jnp.sin(anomaly) - mean_anomaly
        step = residual / (1.0 - eccentricity * jnp.cos(anomaly))
        return anomaly - step, jnp.max(jnp.abs(step)), count + 1

    def unfinished(state: tuple[Array, Array, Array]) -> Array:
        _, last_step, count = state
        return (last_step > enough) & (count < 50)

    start = mean_anomaly + eccentricity * jnp.sin(mean_anomaly)
    infinite = jnp.asarray(jnp.inf, mean_anomaly.dtype)
    return jax.lax.while_loop(unfinished, newton_step, (start, infinite, jnp.asarray(0)))[0]


def kepler_jacobian(mean_anomaly: Array, eccentricity: Array) -> Array:
    """J = diag(1 / (1 - e cos E)), by the implicit function theorem."""
    return jnp.diag(1.0 / (1.0 - eccentricity * jnp.cos(kepler(mean_anomaly, eccentricity))))


def _make_kepler(key: Array, size: int) -> Made:
    for_anomaly, for_eccentricity = jax.random.split(key)
    mean_anomaly = jax.random.uniform(for_anomaly, (size,), minval=-3.0, maxval=3.0)
    return kepler, (mean_anomaly, jax.random.uniform(for_eccentricity, (size,), maxval=0.7))


@jax.custom_vjp
def equilibrium(x: Array, weight: Array) -> Array:
    """The fixed point z = tanh(W z + x) of a contraction, differentiated by the implicit function theorem."""
    # |W| is near ½, so 64 steps leave an error near 2⁻⁶⁴.
    return jax.lax.fori_loop(0, 64, lambda _, z: jnp.tanh(weight @ z + x), jnp.zeros_like(x))


def _equilibrium_forward(x: Array, weight: Array) -> tuple[Array, tuple[Array, Array]]:
    z = equilibrium(x, weight)
    return z, (z, weight)


def _equilibrium_backward(saved: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    z, weight = saved
    slope = 1.0 - z**2
    system = jnp.eye(z.shape[0], dtype=z.dtype) - slope[:, None] * weight
    to_x = slope * jnp.linalg.solve(system.T, cotangent)
    return to_x, jnp.outer(to_x, z)


equilibrium.defvjp(_equilibrium_forward, _equilibrium_backward)


def equilibrium_jacobian(x: Array, weight: Array) -> Array:
    """J = (I - D W)⁻¹ D, D = diag(1 - z²)."""
    diagonal = jnp.diag(1.0 - equilibrium(x, weight) ** 2)
    return jnp.linalg.solve(jnp.eye(x.shape[0], dtype=x.dtype) - diagonal @ weight, diagonal)


def _make_equilibrium(key: Array, size: int) -> Made:
    for_x, for_weight = jax.random.split(key)
    return equilibrium, (
        jax.random.normal(for_x, (size,)),
        jax.random.normal(for_weight, (size, size)) / (4 * size**0.5),
    )


PROBLEMS: tuple[Problem, ...] = (
    Problem(
        "softplus_sum",
        ("gradient",),
        _make_softplus_sum,
        10_000,
        "a stable sum of log(1 + exp x) over `size` entries with a custom_vjp: no forward mode",
        "Mächler, Accurately computing log(1 - exp(-|a|)), 2012",
        softplus_sum_gradient,
        unsupported=("forward",),
    ),
    Problem(
        "kepler",
        ("jacobian",),
        _make_kepler,
        500,
        "Kepler's equation for `size` bodies by Newton's method in a while_loop: no reverse mode",
        "Murray and Dermott, Solar System Dynamics, 1999, section 2.4",
        kepler_jacobian,
        unsupported=("reverse",),
    ),
    Problem(
        "equilibrium",
        ("jacobian",),
        _make_equilibrium,
        64,
        "a fixed point of `size` units with an implicit custom_vjp: no forward mode",
        "Bai, Kolter and Koltun, Deep Equilibrium Models, 2019",
        equilibrium_jacobian,
        unsupported=("forward",),
    ),
)
