"""Losses and their derivatives (equations 5.1 to 5.9), and how little outliers move an L1 fit.

Run: python scripts/losses.py    draws out/losses.png
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import gradlab as gl
from gradlab import losses, models, plots

Loss = Callable[..., jax.Array]
LOSSES: dict[str, Loss] = {
    "L2": lambda z: losses.l2(z, 0.0),
    "L1": lambda z: losses.l1(z, 0.0),
    "Huber": lambda z: losses.huber(z, 0.0),
    "logistic, target 0": lambda z: losses.logistic(z, 0.0),
}


def fit(loss: Loss, x: jax.Array, y: jax.Array, steps: int = 4000) -> dict[str, jax.Array]:
    """The line that descent with a falling rate finds."""
    model = models.linear_regression(1)
    objective = lambda p: jnp.mean(loss(model.apply(p, x[:, None]), y))

    def step(params: Any, rate: jax.Array) -> tuple[Any, None]:
        slopes = gl.gradient(objective)(params)
        return jax.tree.map(lambda p, s: p - rate * s, params, slopes), None

    rates = 0.3 / jnp.sqrt(1.0 + jnp.arange(steps))
    return jax.jit(lambda p: jax.lax.scan(step, p, rates)[0])(model.init(jax.random.key(0)))


def main() -> None:
    z = jnp.linspace(-3.0, 3.0, 301)
    figure = plots.figure(13.0, 4.0)
    values, slopes, fits = figure.subplots(1, 3)
    for name, loss in LOSSES.items():
        values.plot(z, loss(z), label=name)
        slopes.plot(z, jax.vmap(gl.derivative(loss))(z), label=name)
    values.set(title="loss", xlabel="prediction − target, or logit", ylim=(0, 4))
    slopes.set(title="derivative", xlabel="prediction − target, or logit", ylim=(-3, 3))
    values.legend(frameon=False)

    x = jnp.linspace(-1.0, 1.0, 40)
    y = (2 * x + 0.5 + 0.1 * jax.random.normal(jax.random.key(1), x.shape)).at[-4:].add(6.0)
    fits.plot(x, y, "k.", label="data with four outliers")
    print(f"{'loss':8}{'slope':>8}{'intercept':>11}   (2 and 0.5 without the outliers)")
    fitted: dict[str, Loss] = {"L2": losses.l2, "L1": losses.l1, "Huber": losses.huber}
    for name, loss in fitted.items():
        line = fit(loss, x, y)
        slope, intercept = float(line["w"][0]), float(line["b"])
        fits.plot(x, slope * x + intercept, label=name)
        print(f"{name:8}{slope:8.2f}{intercept:11.2f}")
    fits.set(title="fits", xlabel="x", xticks=(-1, 0, 1))
    fits.legend(frameon=False)
    print("drawn:", plots.save(figure, "out/losses.png"))


if __name__ == "__main__":
    main()
