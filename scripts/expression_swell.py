"""Symbolic derivatives of deep compositions swell (row 7.1); automatic ones grow by the same few operators a step.

Run: python scripts/expression_swell.py [--depth 12] [--out FILE]    draws out/expression_swell.png

The logistic map reads its argument twice, and its derivative, written out, has a length that grows exponentially; the
sigmoid reads it once, and the length grows with the square of the depth. Needs pip install "gradlab-jax[symbolic]".
"""

import argparse

import jax

import gradlab as gl
from gradlab.symbolic import compose, expression, swell


def logistic_map(x: jax.Array) -> jax.Array:
    return 4 * x * (1 - x)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depth", type=int, default=12)
    parser.add_argument("--out", default="out/expression_swell.png")
    options = parser.parse_args()
    print("the derivative of the logistic map, composed 2 times:")
    print(" ", expression(compose(logistic_map, 2), "x").diff(), "\n")
    figure = gl.plots.figure(11.0, 4.2)
    panels = figure.subplots(1, 2, sharey=True)
    for step, ax in zip((logistic_map, jax.nn.sigmoid), panels, strict=True):
        found = swell(step, range(1, options.depth + 1))
        print(found, "\n")
        found.plot(ax)
    panels[0].set_title("x ↦ 4 x (1 − x)")
    panels[1].set_title("x ↦ 1 / (1 + exp(−x))")
    panels[1].get_legend().remove()
    print("drawn:", gl.plots.save(figure, options.out))


if __name__ == "__main__":
    main()
