"""Losses and their derivatives (equations 5.1 to 5.9).

Run: python scripts/losses.py    draws out/losses.png
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

import gradlab as gl
from gradlab import losses, plots

Loss = Callable[..., jax.Array]
LOSSES: dict[str, Loss] = {
    "L2": lambda z: losses.l2(z, 0.0),
    "L1": lambda z: losses.l1(z, 0.0),
    "Huber": lambda z: losses.huber(z, 0.0),
    "logistic, target 0": lambda z: losses.logistic(z, 0.0),
}


def main() -> None:
    z = jnp.linspace(-3.0, 3.0, 301)
    figure = plots.figure(9.0, 4.0)
    values, slopes = figure.subplots(1, 2)
    for name, loss in LOSSES.items():
        values.plot(z, loss(z), label=name)
        slopes.plot(z, jax.vmap(gl.derivative(loss))(z), label=name)
    values.set(title="loss", xlabel="prediction − target, or logit", ylim=(0, 4))
    slopes.set(title="derivative", xlabel="prediction − target, or logit", ylim=(-3, 3))
    values.legend(frameon=False)

    print("drawn:", plots.save(figure, "out/losses.png"))


if __name__ == "__main__":
    main()
