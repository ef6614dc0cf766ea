"""Test functions of numerical analysis and of quantum mechanics: systems of equations, a surface, wavefunctions."""

import jax
import jax.numpy as jnp

from gradlab.problems.record import Made, Problem

__all__ = ["PROBLEMS"]

Array = jax.Array


# Systems of equations.


def broyden_tridiagonal(x: Array) -> Array:
    """y[i] = (3 - 2 x[i]) x[i] - x[i-1] - 2 x[i+1] + 1, with zeros outside."""
    padded = jnp.pad(x, 1)
    return (3.0 - 2.0 * x) * x - padded[:-2] - 2.0 * padded[2:] + 1.0


def broyden_tridiagonal_jacobian(x: Array) -> Array:
    """3 - 4 x on the diagonal, -1 below it, -2 above it."""
    n = x.shape[0]
    return jnp.diag(3.0 - 4.0 * x) - jnp.eye(n, k=-1, dtype=x.dtype) - 2.0 * jnp.eye(n, k=1, dtype=x.dtype)


def _make_broyden_tridiagonal(key: Array, size: int) -> Made:
    return broyden_tridiagonal, (0.5 * jax.random.normal(key, (size,)) - 1.0,)


def brown_almost_linear(x: Array) -> Array:
    """y[i] = x[i] + Σ x[j] - (n + 1) for i < n, and y[n] = Π x[j] - 1."""
    linear = x[:-1] + jnp.sum(x) - (x.shape[0] + 1.0)
    return jnp.append(linear, jnp.prod(x) - 1.0)


def brown_almost_linear_jacobian(x: Array) -> Array:
    """I + 1 1ᵀ in all rows but the last, which is Π x / x[j]."""
    n = x.shape[0]
    linear = jnp.eye(n, dtype=x.dtype) + 1.0
    return linear.at[-1].set(jnp.prod(x) / x)


def _make_brown_almost_linear(key: Array, size: int) -> Made:
    # A spread of 1/√size keeps the product of any number of factors near 1.
    return brown_almost_linear, (jnp.exp(jax.random.normal(key, (size,)) / size**0.5),)


# A surface.


def _diagonals(heights: Array, frame: Array) -> tuple[Array, Array]:
    """The differences along both diagonals of each cell of the framed heights."""
    whole = frame.at[1:-1, 1:-1].set(heights)
    return whole[1:, 1:] - whole[:-1, :-1], whole[1:, :-1] - whole[:-1, 1:]


def minimal_surface(heights: Array, frame: Array) -> Array:
    """The area Σ √(h⁴ + ½ h² (d² + e²)) over the unit square's cells of side h, d and e the differences across each.

    heights[n n] are the free ones, and the edge of frame[n+2 n+2] holds them.
    """
    down, up = _diagonals(heights, frame)
    side = 1.0 / (frame.shape[0] - 1)
    return jnp.sum(jnp.sqrt(side**4 + 0.5 * side**2 * (down**2 + up**2)))


def minimal_surface_gradient(heights: Array, frame: Array) -> Array:
    """Each cell pulls its corners by ½ h² d / √… and ½ h² e / √…, one way and the other."""
    down, up = _diagonals(heights, frame)
    side = 1.0 / (frame.shape[0] - 1)
    pull = 0.5 * side**2 / jnp.sqrt(side**4 + 0.5 * side**2 * (down**2 + up**2))
    down, up = pull * down, pull * up
    return down[:-1, :-1] - down[1:, 1:] + up[:-1, 1:] - up[1:, :-1]


def _make_minimal_surface(key: Array, size: int) -> Made:
    place = jnp.linspace(0.0, 1.0, size + 2)
    frame = jnp.sin(3.0 * place)[:, None] + place[None] ** 2
    return minimal_surface, (frame[1:-1, 1:-1] + 0.05 * jax.random.normal(key, (size, size)), frame)


# Logarithms of wavefunctions: the local kinetic energy is -½ (Δ log ψ + |∇ log ψ|²).


def harmonic_trap(x: Array, stiffness: Array) -> Array:
    """log ψ = -½ xᵀ Ω x, the ground state of coupled oscillators."""
    return -0.5 * x @ stiffness @ x


def harmonic_trap_laplacian(x: Array, stiffness: Array) -> Array:
    """Δ log ψ = -tr Ω."""
    return -jnp.trace(stiffness)


def _make_harmonic_trap(key: Array, size: int) -> Made:
    for_x, for_stiffness = jax.random.split(key)
    factor = jax.random.normal(for_stiffness, (size, size)) / size**0.5
    return harmonic_trap, (jax.random.normal(for_x, (size,)), factor @ factor.T + jnp.eye(size))


def hydrogen(positions: Array) -> Array:
    """log ψ = -Σ |r[i]|, the ground state of electrons that do not meet, one to a proton, r[n 3] in Bohr radii."""
    return -jnp.sum(jnp.linalg.norm(positions, axis=1))


def hydrogen_laplacian(positions: Array) -> Array:
    """Δ log ψ = -Σ 2 / |r[i]|."""
    return -jnp.sum(2.0 / jnp.sqrt(jnp.sum(positions**2, axis=1)))


def _make_hydrogen(key: Array, size: int) -> Made:
    for_direction, for_radius = jax.random.split(key)
    direction = jax.random.normal(for_direction, (size, 3))
    radius = jax.random.uniform(for_radius, (size, 1), minval=0.5, maxval=3.0)
    return hydrogen, (radius * direction / jnp.linalg.norm(direction, axis=1, keepdims=True),)


def wavefunction(positions: Array, first: Array, second: Array, last: Array) -> Array:
    """log ψ = -Σ √(1 + |r[i]|²) + vᵀ tanh(W₂ tanh(W₁ r)), r[n 3]."""
    envelope = -jnp.sum(jnp.sqrt(1.0 + jnp.sum(positions**2, axis=1)))
    return envelope + last @ jnp.tanh(second @ jnp.tanh(first @ positions.reshape(-1)))


def _make_wavefunction(key: Array, size: int) -> Made:
    for_positions, for_first, for_second, for_last = jax.random.split(key, 4)
    first = jax.random.normal(for_first, (64, 3 * size)) / (3 * size) ** 0.5
    second = jax.random.normal(for_second, (64, 64)) / 8.0
    last = jax.random.normal(for_last, (64,)) / 8.0
    return wavefunction, (jax.random.normal(for_positions, (size, 3)), first, second, last)


_MORE = "Moré, Garbow and Hillstrom, Testing unconstrained optimization software, 1981"
_QUANTUM = "Griffiths, Introduction to Quantum Mechanics, 2nd edition, 2005"

PROBLEMS: tuple[Problem, ...] = (
    Problem(
        "broyden_tridiagonal",
        ("jacobian",),
        _make_broyden_tridiagonal,
        1000,
        "`size` equations in three neighbors each: a Jacobian of 3 diagonals",
        f"{_MORE}, problem 30",
        broyden_tridiagonal_jacobian,
    ),
    Problem(
        "brown_almost_linear",
        ("jacobian",),
        _make_brown_almost_linear,
        200,
        "`size` equations, all linear but a product: a dense Jacobian",
        f"{_MORE}, problem 27",
        brown_almost_linear_jacobian,
    ),
    Problem(
        "minimal_surface",
        ("gradient", "hessian", "hvp"),
        _make_minimal_surface,
        22,
        "the area of a surface over `size` x `size` cells that hangs from its frame: 9 entries in a row of the Hessian",
        "Averick, Carter, Moré and Xue, The MINPACK-2 test problem collection, 1992, section 4.3",
        minimal_surface_gradient,
    ),
    Problem(
        "harmonic_trap",
        ("laplacian", "hessian"),
        _make_harmonic_trap,
        128,
        "the log wavefunction of `size` coupled oscillators: a constant Laplacian",
        f"{_QUANTUM}, section 2.3",
        harmonic_trap_laplacian,
    ),
    Problem(
        "hydrogen",
        ("laplacian", "gradient"),
        _make_hydrogen,
        24,
        "the log wavefunction of `size` hydrogen atoms",
        f"{_QUANTUM}, section 4.2",
        hydrogen_laplacian,
    ),
    Problem(
        "wavefunction",
        ("laplacian", "gradient"),
        _make_wavefunction,
        16,
        "a neural log wavefunction of `size` particles in 3 dimensions",
        "Carleo and Troyer, Solving the quantum many-body problem with artificial neural networks, 2017",
    ),
)
