"""What can be moved by hand: the numbers of each are computed here, by the library, when the site is built.

`explore.js` looks them up and draws them, on the stages of `stage.js`. Neither computes a derivative.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

import gradlab as gl
from gradlab import plots
from gradlab.graphs.rules import RULES

Array = jax.Array


@dataclass(frozen=True)
class Explorable:
    """A table of numbers, and what `explore.js` shows of it.

    Attributes:
        title: of the section.
        summary: what there is to see, and how it is moved.
        data: computes the numbers, as JSON.
    """

    title: str
    summary: str
    data: Callable[[], dict[str, Any]]


def rounded(numbers: Any, digits: int = 4) -> Any:
    """Arrays as nested lists of so many significant digits, None for what is not finite.

    >>> rounded(np.array([[1.0, 2 / 3], [1e-9 / 3, np.inf]]), 3)
    [[1, 0.667], [3.33e-10, None]]
    """
    array = np.asarray(numbers)
    if array.ndim:
        return [rounded(row, digits) for row in array]
    if not np.isfinite(array):
        return None
    short = float(f"{float(array):.{digits}g}")
    return int(short) if short == int(short) else short


def _pairs(side: np.ndarray) -> np.ndarray:
    """All points of a square grid, shape `[n², 2]`; the second coordinate varies faster."""
    return np.stack(np.meshgrid(side, side, indexing="ij"), axis=-1).reshape(-1, 2)


def _contours(f: Callable[[Any], Any], edge: float, levels: Sequence[float]) -> list[list[Any]]:
    """For each level the rings around what lies below it, in the square from -edge to edge."""
    side = np.linspace(-edge, edge, 45)
    heights = np.asarray(f(_pairs(side).T)).reshape(len(side), -1).T
    ax, bottom = plots.axes(), float(heights.min()) - 1
    areas = [ax.contourf(side, side, heights, levels=[bottom, level]).get_paths()[0] for level in levels]
    return [[rounded(np.asarray(ring).round(2)) for ring in area.to_polygons()] for area in areas]


# A point and its tangent


def curve(x: Any) -> Any:
    """The function of one variable."""
    return jnp.sin(3 * x) + x**2


def _tangent() -> dict[str, Any]:
    xs, wide = np.linspace(-1.5, 1.5, 121), np.linspace(-1.7, 2.6, 130)
    steps = np.array([1, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01, *10.0 ** -np.arange(3, 14)])
    with jax.enable_x64(True):
        values, slopes, line = curve(xs), jax.vmap(gl.derivative(curve))(jnp.asarray(xs)), curve(wide)
        quotients = (curve(xs[:, None] + steps) - values[:, None]) / steps
        errors = jnp.abs(quotients - slopes[:, None])
    return {
        "x": rounded(xs),
        "h": rounded(steps),
        "value": rounded(values, 6),
        "slope": rounded(slopes, 6),
        "quotient": rounded(quotients, 6),
        "error": rounded(errors, 3),
        "curve": rounded(np.stack([wide, line], axis=1)),
        "start": [68, 1],
    }


# Slopes in all directions


def landscape(p: Any) -> Any:
    """The function of two variables."""
    return jnp.sin(p[0]) * p[1] ** 2 + p[0]


def _direction() -> dict[str, Any]:
    side, angles = np.linspace(-2, 2, 17), np.arange(0, 360, 6)
    points = _pairs(side)
    directions = np.stack([np.cos(np.radians(angles)), np.sin(np.radians(angles))], axis=1)
    rate = lambda p, v: gl.directional_derivative(landscape)(p, v)
    with jax.enable_x64(True):
        rates = jax.vmap(jax.vmap(rate, (None, 0)), (0, None))(points, directions)
        gradients = jax.vmap(gl.gradient(landscape))(points)
        steepest = jax.vmap(gl.steepest_direction(landscape))(points)
        heights = landscape(points.T)
    return {
        "side": rounded(side),
        "angle": rounded(angles),
        "v": rounded(directions),
        "height": rounded(heights),
        "gradient": rounded(gradients),
        "size": rounded(np.linalg.norm(gradients, axis=1)),
        "top": rounded(np.degrees(np.arctan2(steepest[:, 1], steepest[:, 0])) % 360),
        "rate": rounded(np.where(np.abs(rates) < 1e-12, 0, rates)),
        "contours": _contours(landscape, 2.2, [0.75 * level for level in range(-5, 6)]),
        "start": [10, 13, 12],
    }


# Learning rates

RATES = np.array([0.01, 0.05, 0.1, 0.14, 0.18, 0.22, 0.24, 0.25, 0.26, 0.28, 0.32])
STARTS = np.array([-1.5, -0.5, 0.5, 1.5])
TOLERANCE = 0.05


def bowl(p: Any) -> Any:
    """A quadratic loss with curvatures 8 and 1."""
    return 2 * (p[0] - p[1]) ** 2 + 0.25 * (p[0] + p[1]) ** 2


def valleys(p: Any) -> Any:
    """A loss with two minima, at (1, 1) and (-1, -1)."""
    return 0.85 * (p[0] ** 2 - 1) ** 2 + 0.5 * (p[1] - p[0]) ** 2


def _learning_rate() -> dict[str, Any]:
    return {
        "rate": rounded(RATES),
        "side": rounded(STARTS),
        "surfaces": [_surface("a bowl", bowl, [0.0, 0.0]), _surface("two valleys", valleys, [1.0, 1.0])],
        "start": [5, 0, 2],
    }


def _surface(name: str, loss: Callable[[Any], Any], minimum: list[float]) -> dict[str, Any]:
    starts = jnp.asarray(_pairs(STARTS))
    paths = jax.vmap(lambda rate: jax.vmap(lambda start: descent(loss, rate, start))(starts))
    found = jax.device_get(jax.jit(paths)(jnp.asarray(RATES)))
    sharpness = np.linalg.eigvalsh(gl.hessian(loss)(jnp.asarray(minimum)))[-1]
    return {
        "name": name,
        "sharpness": rounded(sharpness),
        "edge": rounded(2 / sharpness),
        "contours": _contours(loss, 2.2, [0.05, 0.2, 0.5, 1, 2, 4, 7, 11, 16]),
        "runs": [[_run(*(part[i, j] for part in found)) for j in range(len(starts))] for i in range(len(RATES))],
    }


def descent(loss: Callable[[Any], Any], rate: Any, start: Any, steps: int = 24) -> tuple[Array, Array, Array]:
    """The points that gradient descent goes through, their losses and gradient norms; one step at a time."""
    loop = gl.descent_loop(loss, optax.sgd(rate), steps=1)

    def step(at: Array, _: None) -> tuple[Array, tuple[Array, Array, Array]]:
        after, _, history = loop(at)
        return after, (at, history.losses[0], history.gradient_norms[0])

    return jax.lax.scan(step, start, length=steps + 1)[1]


def _run(points: np.ndarray, losses: np.ndarray, norms: np.ndarray) -> dict[str, Any]:
    """One descent up to its end: where the gradient is small, or where it has left the map for good."""
    still, lost = norms <= TOLERANCE, ~(losses < 1e3)
    ended = still | lost
    length = int(ended.argmax()) + 1 if ended.any() else len(losses)
    moves = np.diff(points[:length], axis=0)
    turns = np.sum(moves[1:] * moves[:-1], axis=1)[-4:] < 0
    if still[length - 1]:
        status = "converged"
    elif lost[length - 1] or losses[length - 1] > losses[0]:
        status = "diverges"
    else:
        status = "oscillates" if turns.any() else "still on its way"
    kept = length - int(lost[length - 1])
    return {
        "status": status,
        "path": rounded(np.round(points[:kept].astype(float).ravel(), 2)),
        "loss": rounded(losses[:kept], 2),
    }


# Depth

LAYERS, WIDTH, BATCH = 30, 64, 8
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {"sigmoid": jax.nn.sigmoid, "tanh": jnp.tanh, "ReLU": jax.nn.relu}
SCALES = {"0.5 / √n": 0.5, "1 / √n (Glorot)": 1.0, "√2 / √n (He)": 2**0.5}


def layers() -> tuple[Array, Array]:
    """Weights of 30 layers, for values of one size from layer to layer, and a batch of inputs."""
    weights = jax.random.normal(jax.random.key(0), (LAYERS, WIDTH, WIDTH)) / WIDTH**0.5
    return weights, jax.random.normal(jax.random.key(1), (BATCH, WIDTH))


def sizes(activation: Callable[[Array], Array], depth: Any, residual: Any, scale: Any) -> Array:
    """The size (root mean square) of the gradient by each layer's output, of the sum of the last one's outputs.

    All 30 layers are there, and those beyond depth pass on what they get: so one program serves all depths.
    """
    weights, x = layers()

    def network(shifts: Array) -> Array:
        def layer(x: Array, given: tuple[Array, Array, Array]) -> tuple[Array, None]:
            w, shift, i = given
            y = residual * x + activation(scale * x @ w)
            return jnp.where(i < depth, y, x) + shift, None

        return jnp.sum(jax.lax.scan(layer, x, (weights, shifts, jnp.arange(LAYERS)))[0])

    gradient = gl.gradient(network)(jnp.zeros((LAYERS, *x.shape)))
    return jnp.sqrt(jnp.mean(gradient**2, axis=(1, 2)))


def _depth() -> dict[str, Any]:
    size, factor = {}, {}
    for name, activation in ACTIVATIONS.items():
        with jax.enable_x64(True):  # the squares of the smallest are zero in float32
            cases = jnp.meshgrid(
                jnp.arange(1, LAYERS + 1), jnp.arange(2.0), jnp.array([*SCALES.values()]), indexing="ij"
            )
            every = jax.jit(jax.vmap(partial(sizes, activation)))(*(case.ravel() for case in cases))
        table = np.asarray(every).reshape(*cases[0].shape, LAYERS)
        size[name] = [[[rounded(row[: n + 1], 3) for row in case] for case in table[n]] for n in range(LAYERS)]
        # From the last layer to the first, as the mean over the steps between; one layer has none.
        factor[name] = [
            rounded(table[n, :, :, 0] ** (1 / n) if n else np.full((2, 3), np.nan), 3) for n in range(LAYERS)
        ]
    return {
        "activation": [*ACTIVATIONS],
        "scale": [*SCALES],
        "size": size,
        "factor": factor,
        "start": [19, 0, 1],
    }


# One step, operator by operator

LEARNING_RATE = 0.125
# How the nodes are called; and for each operator its forward and its backward with the numbers put in: a and b are its
# operands, y is its result, and da, db, dy are the adjoints.
NAMES = ("θ", "x", "y", "ŷ = θ x", "d = ŷ − y", "loss = d²")
FORWARD = {"mul": "ŷ = {a} · {b} = {y}", "sub": "d = {a} − {b} = {y}", "integer_pow": "loss = {a}² = {y}"}
BACKWARD = {
    "mul": ("∂loss/∂θ = {dy} · {b} = {da}", "∂loss/∂x = {dy} · {a} = {db}"),
    "sub": ("∂loss/∂ŷ = ∂loss/∂d = {da}", "∂loss/∂y = −∂loss/∂d = {db}"),
    "integer_pow": ("∂loss/∂d = {dy} · 2 · {a} = {da}",),
}


def worked(theta: Any, x: Any, y: Any) -> Any:
    """The loss of the worked step."""
    return (theta * x - y) ** 2


def _steps() -> dict[str, Any]:
    theta, x, y = 5.0, 2.0, 9.0
    loss = lambda theta: worked(theta, x, y)
    nodes = gl.graph(worked, theta, x, y).nodes
    operators = [node for node in nodes if node.inputs]
    after = float(gl.descent_loop(loss, optax.sgd(LEARNING_RATE), steps=1)(theta)[0])
    frames = [
        {"phase": "given", "says": [f"Given: θ = {theta:g}, x = {x:g}, y = {y:g}."]},
        *(_frame(nodes, node, "forward") for node in operators),
        {"phase": "backward", "node": operators[-1].id, "says": ["∂loss/∂loss = 1"]},
        *(_frame(nodes, node, "backward") for node in reversed(operators)),
    ]
    update = f"θ ← {theta:g} − {LEARNING_RATE} · {float(nodes[0].adjoint):g} = {after:g}"
    frames += [{"phase": "update", "node": 0, "says": [update, f"The loss there is {float(loss(after)):g}."]}]
    return {
        "nodes": [
            {"name": name, "inputs": node.inputs, "value": rounded(node.value), "adjoint": rounded(node.adjoint)}
            for name, node in zip(NAMES, nodes, strict=True)
        ],
        "frames": [frame | _known(nodes, frames[: i + 1]) for i, frame in enumerate(frames)],
        "after": rounded(after),
    }


def _frame(nodes: Sequence[gl.Node], node: gl.Node, phase: Literal["forward", "backward"]) -> dict[str, Any]:
    """One operator at work: its rule as such, and with its numbers."""
    pairs = [("y", node), *zip("ab", (nodes[i] for i in node.inputs), strict=False)]
    numbers = {name: f"{float(one.value):g}" for name, one in pairs}
    numbers |= {f"d{name}": f"{float(one.adjoint):g}".replace("-", "−") for name, one in pairs}
    forward, backward = RULES[node.operator]
    rule, texts = (forward, (FORWARD[node.operator],)) if phase == "forward" else (backward, BACKWARD[node.operator])
    return {"phase": phase, "node": node.id, "rule": rule, "says": [text.format(**numbers) for text in texts]}


def _known(nodes: Sequence[gl.Node], past: Sequence[dict[str, Any]]) -> dict[str, list[int]]:
    """The nodes whose values, and whose adjoints, are there at the end of some frames."""
    values = {node.id for node in nodes if not node.inputs}
    values |= {frame["node"] for frame in past if frame["phase"] == "forward"}
    back = [frame for frame in past if frame["phase"] == "backward"]
    # The first one is the output's own adjoint; every rule then gives those of its operands.
    adjoints = {i for frame in back for i in (nodes[frame["node"]].inputs if "rule" in frame else [frame["node"]])}
    return {"values": sorted(values), "adjoints": sorted(adjoints)}


EXPLORABLES = {
    "tangent": Explorable(
        "A point and its tangent",
        "A curve with its tangent at a point, the line through a second point, and the error of that line's slope. "
        "Drag in the pictures, or use the arrow keys.",
        _tangent,
    ),
    "direction": Explorable(
        "The slope in every direction",
        "A map of contour lines with a point, its gradient and a direction; and the slope over all directions. Drag "
        "the point or the tip of v, or use the arrow keys; with Shift they turn v.",
        _direction,
    ),
    "learning_rate": Explorable(
        "How large a step?",
        "The path of gradient descent over a map of its loss, the loss after each step, and what other rates reach. "
        "Drag the start and the rate, or use the arrow keys.",
        _learning_rate,
    ),
    "depth": Explorable(
        "Gradients through many layers",
        "The size of the gradient at each layer of a network, on a logarithmic scale. The arrow keys add layers and "
        "take them away.",
        _depth,
    ),
    "steps": Explorable(
        "One step, operator by operator",
        "A computation graph on which values appear from the inputs to the loss, and adjoints on the way back. Go "
        "through it by the buttons or the arrow keys.",
        _steps,
    ),
}
