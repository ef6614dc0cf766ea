"""Thirty layers (equation 5.12): the gradient through sigmoids, ReLUs and residual connections, in three scales.

Run: python scripts/vanishing_gradients.py    draws out/vanishing_gradients.png
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import gradlab as gl
from gradlab import plots

DEPTH, WIDTH = 30, 64
SCALES = {"0.1 / √n": 0.1, "1 / √n (LeCun)": 1.0, "√2 / √n (He)": 2**0.5}
LAYERS: dict[str, Callable[[Any], Any]] = {
    "sigmoid": lambda x: jax.nn.sigmoid(x),
    "ReLU": lambda x: jax.nn.relu(x),
    "residual tanh": lambda x: jnp.tanh(x),
}


def network(kind: str) -> Callable[[Any, Any], Any]:
    """A function of 30 weight matrices and an input, one named scope a layer."""

    def f(weights: Any, x: Any) -> Any:
        for i, w in enumerate(weights):
            with jax.named_scope(f"layer{i + 1}"):
                y = LAYERS[kind](x @ w)
                x = x + y if kind.startswith("residual") else y
        return jnp.mean(x)

    f.__name__ = kind
    return f


def main() -> None:
    x = jax.random.normal(jax.random.key(1), (16, WIDTH))
    unit = jax.random.normal(jax.random.key(0), (DEPTH, WIDTH, WIDTH)) / WIDTH**0.5
    figure = plots.figure(15.0, 4.2)
    panels = figure.subplots(1, len(SCALES), sharey=True)
    print("what the gradient is multiplied by from layer to layer, backward (geometric mean); its size at the first")
    for (scale, factor), ax in zip(SCALES.items(), panels, strict=True):
        flows = [gl.graph(network(kind), list(factor * unit), x).flow("scope") for kind in LAYERS]
        for flow in flows:
            first, last = flow.layers[0].adjoint, flow.layers[-1].adjoint
            mean = (first / last) ** (1 / (DEPTH - 1))
            print(f"  weights {scale:16} {flow.name:15} {mean:8.3f}   {first:9.2e}")
        plots.flow(flows, ax)
        ax.get_legend().remove()
        ax.set_title(f"weights of size {scale}")
    handles, labels = panels[-1].get_legend_handles_labels()
    panels[-1].legend(handles, labels, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    panels[0].set_ylim(bottom=1e-45)  # nothing in float32 is smaller
    print("drawn:", plots.save(figure, "out/vanishing_gradients.png"))


if __name__ == "__main__":
    main()
