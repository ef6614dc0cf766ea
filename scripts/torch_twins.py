"""The functions of gradlab's problem table in PyTorch: the same f, so that the two libraries can be timed on one task.

    f = TWINS["lennard_jones"]
    energy, forces = f(*args), torch.func.jacrev(f)(*args)        # args = to_torch(what problems.get(...).build() gave)

Each twin is written by hand as a user of PyTorch would, from the docstring of the problem of that name, and takes
the same arguments, pytrees of tensors. All are differentiated in args[0] by `torch.func.jacrev`, `jacfwd` and
`hessian`, and mapped by `vmap`: they write into no tensor, and make new ones where their arguments lie. Functions that
have a rule of their own in JAX are plain programs here; loops are Python's, over as many steps as always suffice.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["TWINS", "to_torch"]

PyTree = Any


def to_torch(tree: PyTree, *, dtype: torch.dtype = torch.float32, device: str = "cpu") -> PyTree:
    """Copy dicts, lists and tuples of arrays to tensors: floating ones in `dtype`, integers in int64."""
    if isinstance(tree, dict):
        return {key: to_torch(value, dtype=dtype, device=device) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(to_torch(value, dtype=dtype, device=device) for value in tree)
    array = np.asarray(tree)
    match array.dtype.kind:
        case "f":
            return torch.tensor(array, dtype=dtype, device=device)
        case "i" | "u":
            return torch.tensor(array, dtype=torch.int64, device=device)
        case kind:
            raise TypeError(f"A leaf of kind {kind!r} was given; expected floating numbers or integers.")


# Functions chosen for the shape of their derivative.


def rosenbrock(x: Tensor) -> Tensor:
    return torch.sum(100.0 * (x[1:] - x[:-1] ** 2) ** 2 + (1.0 - x[:-1]) ** 2)


def speelpenning(x: Tensor) -> Tensor:
    return torch.prod(x)


def quadratic_form(x: Tensor, matrix: Tensor, slope: Tensor) -> Tensor:
    return 0.5 * x @ (matrix @ x) + slope @ x


def network(x: Tensor, *weights: Tensor) -> Tensor:
    for weight in weights:
        x = torch.tanh(weight @ x)
    return x


def softmax(x: Tensor) -> Tensor:
    return torch.softmax(x, 0)


def elementwise(x: Tensor) -> Tensor:
    return torch.sin(x) * torch.exp(-0.5 * x**2)


def convolution(x: Tensor, kernel: Tensor) -> Tensor:
    """`conv1d` correlates, hence the reversed kernel."""
    return torch.tanh(F.conv1d(x[None, None], kernel.flip(0)[None, None], padding="same")[0, 0])


def dft(x: Tensor) -> Tensor:
    spectrum = torch.fft.fft(x, norm="ortho")
    return torch.stack([spectrum.real, spectrum.imag])


def layer(params: PyTree, x: Tensor) -> Tensor:
    weight, bias = params["affine"]
    return params["scale"] * torch.tanh(x @ weight + bias)


# Functions that JAX differentiates in one direction only.


def softplus_sum(x: Tensor) -> Tensor:
    """`F.softplus` is linear above its threshold, which float64 can tell from the logarithm; `logsigmoid` is not."""
    return -torch.sum(F.logsigmoid(-x))


def kepler(mean_anomaly: Tensor, eccentricity: Tensor) -> Tensor:
    """Five steps of Newton's method leave errors of rounding alone, in float64, for eccentricities up to 0.7."""
    anomaly = mean_anomaly + eccentricity * torch.sin(mean_anomaly)
    for _ in range(5):
        residual = anomaly - eccentricity * torch.sin(anomaly) - mean_anomaly
        anomaly = anomaly - residual / (1.0 - eccentricity * torch.cos(anomaly))
    return anomaly


def equilibrium(x: Tensor, weight: Tensor) -> Tensor:
    """Differentiated through all 64 steps: the rule by the implicit function theorem is JAX's alone."""
    z = torch.zeros_like(x)
    for _ in range(64):
        z = torch.tanh(weight @ z + x)
    return z


# Systems of equations, a surface, wavefunctions.


def broyden_tridiagonal(x: Tensor) -> Tensor:
    padded = F.pad(x, (1, 1))
    return (3.0 - 2.0 * x) * x - padded[:-2] - 2.0 * padded[2:] + 1.0


def brown_almost_linear(x: Tensor) -> Tensor:
    linear = x[:-1] + torch.sum(x) - (x.shape[0] + 1.0)
    return torch.cat([linear, torch.prod(x)[None] - 1.0])


def minimal_surface(heights: Tensor, frame: Tensor) -> Tensor:
    side = 1.0 / (frame.shape[0] - 1)
    middle = torch.cat([frame[1:-1, :1], heights, frame[1:-1, -1:]], dim=1)
    whole = torch.cat([frame[:1], middle, frame[-1:]])
    down, up = whole[1:, 1:] - whole[:-1, :-1], whole[1:, :-1] - whole[:-1, 1:]
    return torch.sum(torch.sqrt(side**4 + 0.5 * side**2 * (down**2 + up**2)))


def harmonic_trap(x: Tensor, stiffness: Tensor) -> Tensor:
    return -0.5 * x @ stiffness @ x


def hydrogen(positions: Tensor) -> Tensor:
    return -torch.sum(torch.linalg.vector_norm(positions, dim=1))


def wavefunction(positions: Tensor, first: Tensor, second: Tensor, last: Tensor) -> Tensor:
    envelope = -torch.sum(torch.sqrt(1.0 + torch.sum(positions**2, dim=1)))
    return envelope + last @ torch.tanh(second @ torch.tanh(first @ positions.reshape(-1)))


# Physics, chemistry and engineering.


def lotka_volterra(rates: Tensor, start: Tensor, steps: Tensor) -> Tensor:
    growth, predation, death, feeding = rates.unbind()

    def slope(state: Tensor) -> Tensor:
        prey, predators = state.unbind()
        meetings = prey * predators
        return torch.stack([growth * prey - predation * meetings, feeding * meetings - death * predators])

    state, states = start, []
    for step in steps.unbind():
        first = slope(state)
        second = slope(state + 0.5 * step * first)
        third = slope(state + 0.5 * step * second)
        fourth = slope(state + step * third)
        state = state + step / 6.0 * (first + 2.0 * second + 2.0 * third + fourth)
        states.append(state)
    return torch.stack(states)


def brusselator(fields: Tensor, previous: Tensor, step: Tensor) -> Tensor:
    u, v = fields.unbind()
    down_and_up = torch.roll(fields, 1, 1) + torch.roll(fields, -1, 1)
    left_and_right = torch.roll(fields, 1, 2) + torch.roll(fields, -1, 2)
    diffusion = down_and_up + left_and_right - 4.0 * fields
    together = u**2 * v
    reaction = torch.stack([1.0 + together - 4.0 * u, 3.0 * u - together])
    return fields - previous - step * (reaction + 0.02 * u.shape[0] ** 2 * diffusion)


def lennard_jones(positions: Tensor) -> Tensor:
    """By pairs of indices: `torch.pdist` has no second derivative."""
    n = positions.shape[0]
    first, second = torch.triu_indices(n, n, 1, device=positions.device)
    attraction = torch.sum((positions[first] - positions[second]) ** 2, dim=1) ** -3
    return torch.sum(4.0 * (attraction**2 - attraction))


def helmholtz(x: Tensor, covolume: Tensor, matrix: Tensor) -> Tensor:
    volume = covolume @ x
    logarithm = torch.log((1.0 + (1.0 + 2.0**0.5) * volume) / (1.0 + (1.0 - 2.0**0.5) * volume))
    return torch.sum(x * torch.log(x / (1.0 - volume))) - x @ matrix @ x / (8.0**0.5 * volume) * logarithm


def rotate(rotation: Tensor, points: Tensor) -> Tensor:
    square = torch.sum(rotation**2, dim=-1, keepdim=True)
    # At r = 0 both branches stay finite, so that the unused one cannot send a NaN back.
    turning = square > 0.0
    angle = torch.sqrt(torch.where(turning, square, 1.0))
    axis = rotation / angle
    along = torch.sum(axis * points, dim=-1, keepdim=True) * axis
    across = torch.linalg.cross(axis, points)
    turned = points * torch.cos(angle) + across * torch.sin(angle) + along * (1.0 - torch.cos(angle))
    return torch.where(turning, turned, points + torch.linalg.cross(rotation, points))


def bundle_adjustment(params: PyTree, seen: Tensor, camera_of: Tensor, point_of: Tensor) -> PyTree:
    camera, weight = params["cameras"][camera_of], params["weights"]
    rotation, center, focal, principal, near, far = camera.split([3, 3, 1, 2, 1, 1], dim=1)
    inside = rotate(rotation, params["points"][point_of] - center)
    flat = inside[:, :2] / inside[:, 2:]
    square = torch.sum(flat**2, dim=1, keepdim=True)
    pixel = focal * (1.0 + near * square + far * square**2) * flat + principal
    return {"reprojection": weight[:, None] * (pixel - seen), "weights": 1.0 - weight**2}


def robot_arm(angles: Tensor, lengths: Tensor) -> Tensor:
    heading = torch.cumsum(angles, 0)
    return torch.stack([lengths @ torch.cos(heading), lengths @ torch.sin(heading)])


# Assembled over a graph or a mesh.


def springs(positions: Tensor, ends: Tensor, stiffness: Tensor, lengths: Tensor) -> Tensor:
    stretch = positions[ends[:, 1]] - positions[ends[:, 0]]
    return torch.sum(0.5 * stiffness * (torch.linalg.vector_norm(stretch, dim=1) - lengths) ** 2)


def finite_elements(u: Tensor, points: Tensor, triangles: Tensor, load: Tensor) -> Tensor:
    corners = points[triangles]
    across = torch.roll(corners, -2, 1) - torch.roll(corners, -1, 1)
    double = across[:, 0, 0] * across[:, 1, 1] - across[:, 0, 1] * across[:, 1, 0]
    hats = torch.stack([-across[..., 1], across[..., 0]], dim=-1) / double[:, None, None]
    corner = u[triangles]
    middle = torch.mean(corner, dim=1)
    slope = torch.einsum("ta,tad->td", corner, hats)
    flux = torch.einsum("tad,td->ta", hats, (1.0 + middle**2)[:, None] * slope)
    source = (middle - torch.mean(load[triangles], dim=1)) / 3.0
    pieces = 0.5 * double[:, None] * (flux + source[:, None])
    return torch.index_add(torch.zeros_like(u), 0, triangles.flatten(), pieces.flatten())


def pose_graph(poses: Tensor, pairs: Tensor, seen: Tensor) -> Tensor:
    here, there = poses[pairs[:, 0]], poses[pairs[:, 1]]
    cos, sin = torch.cos(here[:, 2]), torch.sin(here[:, 2])
    east, north, turn = (there - here).unbind(dim=1)
    return torch.stack([cos * east + sin * north, cos * north - sin * east, turn], dim=1) - seen


def reaction_network(amounts: Tensor, rates: Tensor, used: Tensor, made: Tensor) -> Tensor:
    speed = rates * torch.prod(amounts[used], dim=1)
    change = torch.index_add(torch.zeros_like(amounts), 0, made.flatten(), torch.repeat_interleave(speed, 2))
    return torch.index_add(change, 0, used.flatten(), -torch.repeat_interleave(speed, 2))


# Sequences.


def kalman_filter(log_variances: Tensor, series: Tensor) -> Tensor:
    noise, *drift = torch.exp(log_variances).unbind()
    advance = torch.tensor([[1.0, 1.0], [0.0, 1.0]], dtype=series.dtype, device=series.device)
    restless = torch.diag(torch.stack(drift))
    values = series.unbind()
    mean = torch.stack([values[0], torch.zeros_like(values[0])])
    covariance = 10.0 * torch.eye(2, dtype=series.dtype, device=series.device)
    total = torch.zeros_like(noise)
    for seen in values:
        mean, covariance = advance @ mean, advance @ covariance @ advance.T + restless
        error, variance = seen - mean[0], covariance[0, 0] + noise
        gain = covariance[:, 0] / variance
        mean, covariance = mean + gain * error, covariance - torch.outer(gain, covariance[0])
        total = total + 0.5 * (error**2 / variance + torch.log(2.0 * math.pi * variance))
    return total


def cart_pole(state: Tensor, force: Tensor) -> Tensor:
    _, angle, speed, spin = state.unbind(dim=-1)
    sin, cos = torch.sin(angle), torch.cos(angle)
    inertia = 1.0 + 0.3 * (1.0 - cos**2)
    push = force + 0.3 * 0.5 * sin * spin**2
    acceleration = (push + 0.3 * 9.81 * cos * sin) / inertia
    return torch.stack([speed, spin, acceleration, -(push * cos + 1.3 * 9.81 * sin) / (0.5 * inertia)], dim=-1)


def collocation(path: PyTree, step: Tensor) -> Tensor:
    states = path["states"]
    slopes = cart_pole(states, path["forces"])
    return states[1:] - states[:-1] - 0.5 * step * (slopes[1:] + slopes[:-1])


def backbone(torsions: Tensor, bend: Tensor) -> Tensor:
    none, one = torch.zeros_like(bend), torch.ones_like(bend)
    cos, sin = torch.cos(bend), torch.sin(bend)
    fold = torch.stack([cos, -sin, none, sin, cos, none, none, none, one]).reshape(3, 3)
    frame = torch.eye(3, dtype=torsions.dtype, device=torsions.device)
    place, atoms = torch.zeros_like(frame[0]), []
    for torsion in torsions.unbind():
        cos, sin = torch.cos(torsion), torch.sin(torsion)
        twist = torch.stack([one, none, none, none, cos, -sin, none, sin, cos]).reshape(3, 3)
        frame = frame @ twist @ fold
        place = place + frame[:, 0]
        atoms.append(place)
    return torch.stack(atoms)


# Losses of machine learning.


def digits_softmax(params: PyTree, images: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(images @ params["weight"] + params["bias"], labels)


def digits_mlp(params: PyTree, images: Tensor, labels: Tensor) -> Tensor:
    hidden = images
    for weight, bias in params[:-1]:
        hidden = torch.tanh(hidden @ weight + bias)
    weight, bias = params[-1]
    return F.cross_entropy(hidden @ weight + bias, labels)


def digits_attention(params: PyTree, images: Tensor, labels: Tensor) -> Tensor:
    """`F.scaled_dot_product_attention` has neither a forward mode nor a batched reverse one on the CPU."""
    tokens = images.reshape(-1, 8, 8) @ params["embed"] + params["position"]
    query, key, value = (torch.einsum("btd,hde->bhte", tokens, params[name]) for name in ("query", "key", "value"))
    attention = torch.softmax(query @ key.mT / query.shape[-1] ** 0.5, dim=-1)
    mixed = attention @ value
    tokens = tokens + torch.einsum("bhte,hed->btd", mixed, params["output"])
    return F.cross_entropy(torch.mean(tokens, dim=1) @ params["classify"], labels)


def logistic_regression(weight: Tensor, features: Tensor, labels: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(features @ weight, labels)


def gmm(params: PyTree, points: Tensor) -> Tensor:
    alphas, means, icf = params["alphas"], params["means"], params["icf"]
    (n, d), k = points.shape, alphas.shape[0]
    log_diagonal, below = icf[:, :d], icf[:, d:]
    column, row = torch.triu_indices(d, d, 1, device=icf.device)
    every = torch.arange(k, device=icf.device)[:, None]
    lower = torch.index_put(icf.new_zeros(k, d, d), (every, row, column), below)
    difference = points[:, None] - means
    spread = torch.exp(log_diagonal) * difference + torch.einsum("kde,nke->nkd", lower, difference)
    inner = alphas + torch.sum(log_diagonal, dim=1) - 0.5 * torch.sum(spread**2, dim=2)
    likelihood = torch.sum(torch.logsumexp(inner, dim=1)) - n * torch.logsumexp(alphas, dim=0)
    prior = 0.5 * (torch.sum(torch.exp(2.0 * log_diagonal)) + torch.sum(below**2))
    # With γ = 1 and one degree of freedom more than dimensions.
    log_gamma = 0.25 * d * (d - 1) * math.log(math.pi) + sum(math.lgamma(0.5 * (d + 1 - j)) for j in range(d))
    wishart = -0.5 * (d + 1) * d * math.log(2.0) - log_gamma
    return likelihood + prior - 0.5 * n * d * math.log(2.0 * math.pi) - k * wishart


def kmeans(centers: Tensor, points: Tensor) -> Tensor:
    return torch.sum(torch.amin(torch.sum((points[:, None] - centers) ** 2, dim=2), dim=1))


def lstm(params: PyTree, state: tuple[Tensor, Tensor], sequence: Tensor) -> Tensor:
    """Only what depends on the step before is in the loop: the predictions are made from all steps at once."""
    below_all = sequence[:-1] * params["into"]
    weights, biases = (params[name].unflatten(1, (4, -1)).unbind() for name in ("weight", "bias"))
    hiddens, cells = (list(of_layer.unbind()) for of_layer in state)
    tops = []
    for below in below_all.unbind():
        for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
            forget = torch.sigmoid(below * weight[0] + bias[0])
            admit = torch.sigmoid(hiddens[i] * weight[1] + bias[1])
            release = torch.sigmoid(below * weight[2] + bias[2])
            change = torch.tanh(hiddens[i] * weight[3] + bias[3])
            cells[i] = forget * cells[i] + admit * change
            below = hiddens[i] = release * torch.tanh(cells[i])
        tops.append(below)
    prediction = torch.stack(tops) * params["out"] + params["shift"]
    scores = prediction - torch.log(2.0 + torch.sum(torch.exp(prediction), dim=1, keepdim=True))
    return -torch.mean(sequence[1:] * scores)


TWINS: dict[str, Callable] = {
    "rosenbrock": rosenbrock,
    "speelpenning": speelpenning,
    "quadratic_form": quadratic_form,
    "tall_net": network,
    "wide_net": network,
    "square_net": network,
    "bottleneck": network,
    "autoencoder": network,
    "softmax": softmax,
    "elementwise": elementwise,
    "convolution": convolution,
    "dft": dft,
    "layer": layer,
    "softplus_sum": softplus_sum,
    "kepler": kepler,
    "equilibrium": equilibrium,
    "broyden_tridiagonal": broyden_tridiagonal,
    "brown_almost_linear": brown_almost_linear,
    "minimal_surface": minimal_surface,
    "harmonic_trap": harmonic_trap,
    "hydrogen": hydrogen,
    "wavefunction": wavefunction,
    "lennard_jones": lennard_jones,
    "helmholtz": helmholtz,
    "lotka_volterra": lotka_volterra,
    "brusselator": brusselator,
    "bundle_adjustment": bundle_adjustment,
    "robot_arm": robot_arm,
    "springs": springs,
    "finite_elements": finite_elements,
    "pose_graph": pose_graph,
    "reaction_network": reaction_network,
    "kalman_filter": kalman_filter,
    "collocation": collocation,
    "backbone": backbone,
    "digits_softmax": digits_softmax,
    "digits_mlp": digits_mlp,
    "digits_attention": digits_attention,
    "logistic_regression": logistic_regression,
    "gmm": gmm,
    "kmeans": kmeans,
    "lstm": lstm,
}
