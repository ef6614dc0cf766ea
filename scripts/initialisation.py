"""Initialization decides the rest (equation 5.12): sizes of values and gradients through 50 layers, as a heat map.

Run: python scripts/initialisation.py [--layers 50] [--width 64] [--out FILE]    draws out/initialisation.png

A network is a stack of equal layers x ↦ φ(x W). Values keep their size where a weight's variance σ² undoes what φ
takes: near 1/n for tanh, 2/n for ReLU. Gradients ask for the same, and vanish or explode unseen where φ is bounded:
the values of sigmoid, and of tanh with large weights, look well. ReLU passes nothing back through values that are 0.
"""

import argparse
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import initializers
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, Normalize

import gradlab as gl

INITIALIZERS = {
    "normal, σ = 0.01": initializers.normal(0.01),
    "uniform, σ² = 1/(3n)": initializers.variance_scaling(1 / 3, "fan_in", "uniform"),  # within ±1/√n, as in PyTorch
    "Glorot, σ² = 1/n": initializers.glorot_normal(),
    "orthogonal, σ² = 1/n": initializers.orthogonal(),
    "He, σ² = 2/n": initializers.he_normal(),
    "normal, σ² = 4/n": initializers.variance_scaling(4.0, "fan_in", "normal"),
}
GELU = partial(jax.nn.gelu, approximate=False)
ACTIVATIONS: dict[str, Any] = {"sigmoid": jax.nn.sigmoid, "tanh": jnp.tanh, "ReLU": jax.nn.relu, "GELU": GELU}
DECADES = 8  # where the colors end


def sizes(activation: Any, initializer: Any, layers: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Root mean squares, over the layers, of values relative to the first one's and of adjoints to the last one's."""
    for_weights, for_x, for_cotangent = jax.random.split(jax.random.key(0), 3)
    weights = [initializer(key, (width, width)) for key in jax.random.split(for_weights, layers)]

    def network(weights: Any, x: jax.Array) -> jax.Array:
        for i, w in enumerate(weights):
            with jax.named_scope(f"layer{i + 1}"):
                x = activation(x @ w)
        return x

    x, cotangent = (jax.random.normal(key, (16, width)) for key in (for_x, for_cotangent))
    flow = gl.graph(network, weights, x, cotangent=cotangent).flow("scope")
    values, adjoints = np.array([(layer.value, layer.adjoint) for layer in flow.layers]).T
    return values / values[0], adjoints / adjoints[-1]


def heat(ax: Axes, table: np.ndarray, title: str) -> Any:
    """Rows of sizes as colors on a logarithmic scale; zeros are black, and what is no number is gray."""
    with np.errstate(divide="ignore"):
        decades = np.log10(table)
    extent = (0.5, table.shape[1] + 0.5, len(table), 0)
    drawn = ax.imshow(decades, cmap="RdBu_r", norm=Normalize(-DECADES, DECADES), extent=extent)
    ax.imshow(np.ma.masked_where(table != 0, table), cmap=ListedColormap(["black"]), extent=extent)
    ax.set_facecolor("#a0a0a0")
    for group in range(1, len(ACTIVATIONS)):
        ax.axhline(group * len(INITIALIZERS), color="black", lw=1.5)
    ax.set_yticks(np.arange(len(table)) + 0.5, list(INITIALIZERS) * len(ACTIVATIONS), fontsize=8)
    ax.tick_params(left=False)
    ax.set(xlabel="layer", title=title, aspect="auto")
    return drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=50)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--out", default="out/initialisation.png")
    options = parser.parse_args()
    print("activation  initializer           values, last / first   gradients, first / last")
    rows = []
    for activation, phi in ACTIVATIONS.items():
        for name, initializer in INITIALIZERS.items():
            rows.append(sizes(phi, initializer, options.layers, options.width))
            print(f"{activation:10}  {name:20}  {rows[-1][0][-1]:20.1e}   {rows[-1][1][0]:23.1e}", flush=True)
    values, adjoints = np.array(rows).swapaxes(0, 1)
    figure = gl.plots.figure(12.5, 6.5)
    left, right = figure.subplots(1, 2, sharey=True)
    heat(left, values, "values, over the first layer's →")
    drawn = heat(right, adjoints, "← gradients, over the last layer's")
    for i, activation in enumerate(ACTIVATIONS):
        middle = (i + 0.5) * len(INITIALIZERS)
        left.text(-0.36, middle, activation, transform=left.get_yaxis_transform(), rotation=90, va="center")
    figure.colorbar(drawn, ax=[left, right], extend="both", label="log₁₀ of the relative size (black: 0 in float32)")
    print("drawn:", gl.plots.save(figure, options.out))


if __name__ == "__main__":
    main()
