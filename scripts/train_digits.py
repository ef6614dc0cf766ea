"""Four optimizers side by side on handwritten digits: softmax regression, a network, attention.

Run: python scripts/train_digits.py [softmax mlp attention]    draws out/train_digits.png

The last panel is the loss of softmax regression over the plane that holds most of the four paths (the first two
principal components of their points, as in Li et al., Visualizing the loss landscape of neural nets, 2018), and the
paths in it.
"""

import sys

import jax
import numpy as np
from jax.flatten_util import ravel_pytree
from matplotlib.axes import Axes

import gradlab as gl
from gradlab.problems import digits
from gradlab.types import Loss, Params

COLORS = dict(zip(digits.OPTIMIZERS, gl.plots.COLORS, strict=False))
# Of batches of 64; a step of lbfgs sees all images, and makes more of them.
STEPS, LBFGS_STEPS = 1000, {"softmax": 30, "mlp": 60, "attention": 120}


def train(loss: Loss, start: Params, data: digits.Images, optimizer: str, steps: int) -> gl.Descent:
    return gl.descend(
        loss,
        start,
        data=data,
        optimizer=digits.recipe(optimizer),
        steps=steps,
        batch_size=None if optimizer == "lbfgs" else 64,
        key=jax.random.key(2),
    )


def compare(name: str, ax: Axes) -> None:
    """Train one model by each optimizer, print what it gets right, and draw how the loss fell."""
    model = digits.classifier(name)
    loss, start = digits.cross_entropy(model), model.init(jax.random.key(1))
    data, unseen = digits.split()
    for optimizer in digits.OPTIMIZERS:
        steps = LBFGS_STEPS[name] if optimizer == "lbfgs" else STEPS
        result = train(loss, start, data, optimizer, steps)
        right = digits.accuracy(model, result.params, unseen)
        print(f"{name:10} {optimizer:9} {result.status:10} {steps:5} steps   {right:.3f} of {len(unseen.labels)} right")
        every = steps // 30  # means, for the losses of single batches jump
        means = result.losses[: steps // every * every].reshape(-1, every).mean(axis=1)
        ax.plot(np.linspace(0, 1, len(means)), means, color=COLORS[optimizer], label=f"{optimizer}, {steps}")
    ax.set(yscale="log", xlabel="share of the steps", ylabel="loss", title=name)
    ax.legend(frameon=False, title="optimizer, steps")


def surface(ax: Axes) -> None:
    """The loss over the plane of the paths, and the paths."""
    model = digits.classifier("softmax")
    loss, start = digits.cross_entropy(model), model.init(jax.random.key(1))
    data, _ = digits.split()
    unravel = ravel_pytree(start)[1]
    paths = {
        name: path(loss, start, data, name, *((8, 1) if name == "lbfgs" else (30, 10))) for name in digits.OPTIMIZERS
    }
    every = np.concatenate(list(paths.values()))
    middle = every.mean(axis=0)
    plane = np.linalg.svd(every - middle, full_matrices=False)[2][:2]
    flat = {name: (points - middle) @ plane.T for name, points in paths.items()}
    low, high = (bound(np.concatenate(list(flat.values())), axis=0) for bound in (np.min, np.max))
    across, up = np.linspace(low - 0.15 * (high - low), high + 0.15 * (high - low), 50).T
    at = lambda a, b: loss(unravel(middle + a * plane[0] + b * plane[1]), data)
    values = jax.jit(jax.vmap(jax.vmap(at, (0, None)), (None, 0)))(across, up)
    drawn = ax.contourf(across, up, np.log10(values), levels=20, cmap="Greys")
    ax.figure.colorbar(drawn, ax=ax, label="log₁₀ loss")
    for name, points in flat.items():
        ax.plot(*points.T, "o-", ms=2.5, lw=1.2, color=COLORS[name], label=name)
    ax.set(xlabel="first component", ylabel="second component", title="softmax: paths over the loss")
    ax.legend(frameon=False)


def path(loss: Loss, start: Params, data: digits.Images, optimizer: str, points: int, stride: int) -> np.ndarray:
    """The params along the way, flat, shape `[points + 2, n]`: a descent that is resumed again and again."""
    result = train(loss, start, data, optimizer, 1)
    seen = [start, result.params]
    for _ in range(points):
        result = result.resume(stride)
        seen.append(result.params)
    return np.stack([ravel_pytree(params)[0] for params in seen])


def main(names: list[str]) -> None:
    figure = gl.plots.figure(6.0 * (len(names) + 1), 4.4)
    *panels, last = figure.subplots(1, len(names) + 1)
    for name, ax in zip(names, panels, strict=True):
        compare(name, ax)
    surface(last)
    print(f"drawn: {gl.plots.save(figure, 'out/train_digits.png')}")


if __name__ == "__main__":
    main(sys.argv[1:] or list(digits.CLASSIFIERS))
