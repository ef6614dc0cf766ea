"""Functions assembled over a graph or a mesh: each piece gathers its ends, and is added where they lie.

Each has its derivative in closed form, assembled in the same way.
"""

import jax
import jax.numpy as jnp
import numpy as np

from gradlab.problems.record import Made, Problem

__all__ = ["PROBLEMS"]

Array = jax.Array


def lattice(size: int) -> tuple[np.ndarray, np.ndarray]:
    """The `size` x `size` points with whole coordinates, `[p 2]`, and the corners around each square, `[s 4]`."""
    index = np.arange(size * size).reshape(size, size)
    points = np.stack(np.unravel_index(index.ravel(), index.shape), axis=1)
    corners = [index[:-1, :-1], index[1:, :-1], index[1:, 1:], index[:-1, 1:]]
    return points, np.stack([corner.ravel() for corner in corners], axis=1)


# A net of springs.


def springs(positions: Array, ends: Array, stiffness: Array, lengths: Array) -> Array:
    """E = Σ ½ k (|x[i] - x[j]| - l)² over springs from i to j, x[p 2], ends[s 2]."""
    stretch = positions[ends[:, 1]] - positions[ends[:, 0]]
    return jnp.sum(0.5 * stiffness * (jnp.linalg.norm(stretch, axis=1) - lengths) ** 2)


def springs_gradient(positions: Array, ends: Array, stiffness: Array, lengths: Array) -> Array:
    """∂E/∂x[j] = Σ k (1 - l / r) (x[j] - x[i]), over the springs at j."""
    stretch = positions[ends[:, 1]] - positions[ends[:, 0]]
    tension = stiffness * (1.0 - lengths / jnp.linalg.norm(stretch, axis=1))
    pull = tension[:, None] * stretch
    return jnp.zeros_like(positions).at[ends[:, 1]].add(pull).at[ends[:, 0]].add(-pull)


def _make_springs(key: Array, size: int) -> Made:
    for_positions, for_stiffness, for_lengths = jax.random.split(key, 3)
    points, squares = lattice(size)
    sides = np.concatenate([squares[:, [a, b]] for a, b in ((0, 1), (1, 2), (3, 2), (0, 3), (0, 2), (1, 3))])
    ends = np.unique(sides, axis=0)
    positions = jnp.asarray(points, float) + 0.1 * jax.random.normal(for_positions, points.shape)
    stiffness = jax.random.uniform(for_stiffness, (len(ends),), minval=0.5, maxval=2.0)
    lengths = jax.random.uniform(for_lengths, (len(ends),), minval=0.8, maxval=1.2)
    return springs, (positions, jnp.asarray(ends), stiffness, lengths)


# Finite elements.


def _hats(corners: Array) -> tuple[Array, Array]:
    """The area of each triangle, corners[t 3 2], and the gradients[t 3 2] of its three linear shape functions."""
    across = jnp.roll(corners, -2, axis=1) - jnp.roll(corners, -1, axis=1)
    double = across[:, 0, 0] * across[:, 1, 1] - across[:, 0, 1] * across[:, 1, 0]
    turned = jnp.stack([-across[..., 1], across[..., 0]], axis=-1)
    return 0.5 * double, turned / double[:, None, None]


def finite_elements(u: Array, points: Array, triangles: Array, load: Array) -> Array:
    """The residual of -∇·((1 + u²) ∇u) + u = load at each point: linear triangles[t 3], one quadrature point each."""
    area, hats = _hats(points[triangles])
    corner = u[triangles]
    middle = jnp.mean(corner, axis=1)
    slope = jnp.einsum("ta,tad->td", corner, hats)
    flux = jnp.einsum("tad,td->ta", hats, (1.0 + middle**2)[:, None] * slope)
    source = (middle - jnp.mean(load[triangles], axis=1)) / 3.0
    return jnp.zeros_like(u).at[triangles].add(area[:, None] * (flux + source[:, None]))


def finite_elements_jacobian(u: Array, points: Array, triangles: Array, load: Array) -> Array:
    """Σ area ((1 + ū²) G Gᵀ + ⅔ ū G ∇u 1ᵀ + 1/9 1 1ᵀ), with G[3 2] the gradients and ū the mean on a triangle."""
    area, hats = _hats(points[triangles])
    corner = u[triangles]
    middle = jnp.mean(corner, axis=1)[:, None, None]
    slope = jnp.einsum("ta,tad->td", corner, hats)
    stiffness = (1.0 + middle**2) * jnp.einsum("tad,tbd->tab", hats, hats)
    piece = stiffness + 2.0 / 3.0 * middle * jnp.einsum("tad,td->ta", hats, slope)[:, :, None] + 1.0 / 9.0
    rows, columns = triangles[:, :, None], triangles[:, None, :]
    return jnp.zeros((u.size, u.size), u.dtype).at[rows, columns].add(area[:, None, None] * piece)


def _make_finite_elements(key: Array, size: int) -> Made:
    for_u, for_points, for_order, for_load = jax.random.split(key, 4)
    points, squares = lattice(size)
    # The points of a mesh come in no order.
    order = jax.random.permutation(for_order, len(points))
    triangles = order[np.concatenate([squares[:, [0, 1, 2]], squares[:, [0, 2, 3]]])]
    shaken = jnp.asarray(points, float) + jax.random.uniform(for_points, points.shape, minval=-0.2, maxval=0.2)
    mesh = jnp.zeros_like(shaken).at[order].set(shaken)
    u, load = jax.random.normal(for_u, (len(points),)), jax.random.normal(for_load, (len(points),))
    return finite_elements, (u, mesh, triangles, load)


# Maps of places seen from each other.


def pose_graph(poses: Array, pairs: Array, seen: Array) -> Array:
    """The errors[m 3] (R(θ[i])ᵀ (x[j] - x[i]), θ[j] - θ[i]) - seen, of pairs[m 2] of poses[n 3], each (x, y, θ)."""
    here, there = poses[pairs[:, 0]], poses[pairs[:, 1]]
    cos, sin = jnp.cos(here[:, 2]), jnp.sin(here[:, 2])
    east, north, turn = (there - here).T
    return jnp.stack([cos * east + sin * north, cos * north - sin * east, turn], axis=1) - seen


def pose_graph_jacobian(poses: Array, pairs: Array, seen: Array) -> Array:
    """The block of pose j is R(θ[i])ᵀ, and that of i its negative with the derivative by θ[i] of what is seen."""
    here, there = poses[pairs[:, 0]], poses[pairs[:, 1]]
    cos, sin = jnp.cos(here[:, 2]), jnp.sin(here[:, 2])
    east, north, _ = (there - here).T
    none, one = jnp.zeros_like(cos), jnp.ones_like(cos)
    blocks = lambda rows: jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=-2)
    of_there = blocks([[cos, sin, none], [-sin, cos, none], [none, none, one]])
    by_angle = blocks(
        [[none, none, cos * north - sin * east], [none, none, -sin * north - cos * east], [none, none, none]]
    )
    index = jnp.arange(len(pairs))
    empty = jnp.zeros((len(pairs), len(poses), 3, 3), poses.dtype)
    filled = empty.at[index, pairs[:, 1]].add(of_there).at[index, pairs[:, 0]].add(by_angle - of_there)
    return jnp.swapaxes(filled, 1, 2)


def _make_pose_graph(key: Array, size: int) -> Made:
    for_poses, for_seen = jax.random.split(key)
    # A walk in circles of 16 steps, where each place is seen from the next one and from one circle later.
    step = np.arange(size)
    angle = step * (2.0 * np.pi / 16.0)
    walk = jnp.asarray(np.stack([3.0 * np.cos(angle), 3.0 * np.sin(angle), angle + 0.5 * np.pi], axis=1))
    pairs = np.concatenate([np.stack([step[:-lag], step[lag:]], axis=1) for lag in (1, 16) if lag < size])
    poses = walk.astype(float) + 0.1 * jax.random.normal(for_poses, walk.shape)
    exact = pose_graph(walk.astype(float), jnp.asarray(pairs), jnp.zeros(()))
    return pose_graph, (poses, jnp.asarray(pairs), exact + 0.05 * jax.random.normal(for_seen, exact.shape))


# Chemistry.


def reaction_network(amounts: Array, rates: Array, used: Array, made: Array) -> Array:
    """dc/dt of c[s] by mass action: reaction r turns used[r 2] into made[r 2] at the speed k c[used[0]] c[used[1]]."""
    speed = rates * jnp.prod(amounts[used], axis=1)
    return jnp.zeros_like(amounts).at[made].add(speed[:, None]).at[used].add(-speed[:, None])


def reaction_network_jacobian(amounts: Array, rates: Array, used: Array, made: Array) -> Array:
    """Each reaction adds k c[other] for either of the two used: to the rows of the made, and from those of the used."""
    by_used = rates[:, None, None] * amounts[used][:, None, ::-1]
    empty = jnp.zeros((amounts.size, amounts.size), amounts.dtype)
    columns = used[:, None, :]
    return empty.at[made[:, :, None], columns].add(by_used).at[used[:, :, None], columns].add(-by_used)


def _make_reaction_network(key: Array, size: int) -> Made:
    for_amounts, for_rates, for_used, for_made = jax.random.split(key, 4)
    amounts = jax.random.uniform(for_amounts, (size,), minval=0.1, maxval=1.0)
    rates = jax.random.uniform(for_rates, (2 * size,), minval=0.1, maxval=2.0)
    used = jax.random.randint(for_used, (2 * size, 2), 0, size)
    return reaction_network, (amounts, rates, used, jax.random.randint(for_made, used.shape, 0, size))


PROBLEMS: tuple[Problem, ...] = (
    Problem(
        "springs",
        ("gradient", "hessian", "hvp"),
        _make_springs,
        12,
        "the energy of a net of springs between `size` x `size` points of the plane",
        "Nocedal and Wright, Numerical Optimization, 2nd edition, 2006, section 7.4: partially separable functions",
        springs_gradient,
    ),
    Problem(
        "finite_elements",
        ("jacobian",),
        _make_finite_elements,
        24,
        "nonlinear diffusion on triangles over `size` x `size` points in no order: 7 entries in a row of the Jacobian",
        "Hughes, The Finite Element Method, 2000, chapters 1 to 3",
        finite_elements_jacobian,
    ),
    Problem(
        "pose_graph",
        ("jacobian",),
        _make_pose_graph,
        120,
        "errors of what was seen between `size` poses in the plane, in circles of 16: 2 blocks in each row",
        "Grisetti, Kümmerle, Stachniss and Burgard, A tutorial on graph-based SLAM, 2010",
        pose_graph_jacobian,
    ),
    Problem(
        "reaction_network",
        ("jacobian",),
        _make_reaction_network,
        300,
        "the rates of change of `size` species in 2 `size` reactions of two with two, at random",
        "Érdi and Tóth, Mathematical Models of Chemical Reactions, 1989",
        reaction_network_jacobian,
    ),
)
