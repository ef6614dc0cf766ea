"""Handwritten digits, moved until a trained model takes them for others: accuracy against budget, and a few images.

Run: python scripts/adversarial.py [--steps 400] [--images 360] [--out FILE]    draws out/adversarial.png

Pixels go from 0 to 1. FGSM takes one step along the sign of the loss's gradient; PGD takes many small ones and comes
back to what the budget allows: so large a change of every pixel (linf), or so long a one of the image (l2).
"""

import argparse
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from rich.console import Console
from rich.table import Table

import gradlab as gl
from gradlab import attacks
from gradlab.problems import digits

COLORS = {"softmax": gl.plots.COLORS[0], "mlp": gl.plots.COLORS[1]}
PANELS: tuple[tuple[str, float, dict[str, Any]], ...] = (
    ("linf: every pixel by at most ε", 0.3, {"FGSM": attacks.fgsm, "PGD": attacks.pgd}),
    ("l2: an image by a length of at most ε", 1.8, {"PGD": partial(attacks.pgd, norm="l2")}),
)
SHOWN, BUDGET = 9, 0.15


def trained(name: str, data: digits.Images, steps: int) -> partial[jax.Array]:
    """The logits of a model, as a function of the images alone."""
    model, optimizer = digits.classifier(name), digits.recipe("adam")
    start, loss = model.init(jax.random.key(1)), digits.cross_entropy(model)
    done = gl.descend(loss, start, data=data, optimizer=optimizer, steps=steps, batch_size=64, key=jax.random.key(2))
    return partial(model.apply, done.params)


def curves(ax: Axes, title: str, largest: float, tried: dict[str, Any], models: dict, data: digits.Images) -> None:
    """Draw and print what each attack leaves of the accuracy, over the budgets."""
    epsilons = jnp.linspace(0.0, largest, 13)
    table = Table("model", "attack", *(f"{epsilon:.2f}" for epsilon in epsilons[::2]), title=title, width=76)
    for name, logits in models.items():
        for attack, run in tried.items():
            accuracy = attacks.robust_accuracy(logits, *data, epsilons=epsilons, attack=run)
            line = "--" if attack == "FGSM" else "-"
            ax.plot(epsilons, accuracy, line, color=COLORS[name], label=f"{name}, {attack}")
            table.add_row(name, attack, *(f"{share:.1%}" for share in accuracy[::2]))
    ax.set(xlabel="budget ε", ylabel="accuracy", ylim=(-0.02, 1.02), title=title)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False)
    Console(width=80).print(table)


def gallery(axes: np.ndarray, logits: partial[jax.Array], data: digits.Images) -> None:
    """Images, what PGD changes, and the sum, with what the model takes each for."""
    x, y = (leaf[:SHOWN] for leaf in data)
    loss = lambda x, y: gl.losses.softmax_cross_entropy(logits(x), y)
    attacked = attacks.pgd(loss, x, y, epsilon=BUDGET)
    styles = (("gray_r", 0, 1), ("RdBu_r", -1.5 * BUDGET, 1.5 * BUDGET), ("gray_r", 0, 1))
    for row, images, (cmap, low, high) in zip(axes, (x, attacked - x, attacked), styles, strict=True):
        for ax, image, answer, label in zip(row, images, jnp.argmax(logits(images), axis=-1), y, strict=True):
            ax.imshow(image.reshape(8, 8), cmap=cmap, vmin=low, vmax=high)
            ax.set(xticks=[], yticks=[])
            if low == 0:
                ax.set_xlabel(f"“{answer}”", color="#448361" if answer == label else "#c4314b", labelpad=2)
    for ax, name in zip(axes[:, 0], ("image", "change", "sum"), strict=True):
        ax.set_ylabel(name, rotation=0, ha="right", va="center", labelpad=8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400, help="of training")
    parser.add_argument("--images", type=int, default=360, help="to attack, unseen in training")
    parser.add_argument("--out", default="out/adversarial.png")
    options = parser.parse_args()
    data, unseen = digits.split(test=options.images)
    models = {name: trained(name, data, options.steps) for name in COLORS}
    figure = gl.plots.figure(9.5, 7.5)
    parts: Any = figure.subfigures(2, 1)
    above, below = parts
    for ax, panel in zip(above.subplots(1, 2), PANELS, strict=True):
        curves(ax, *panel, models, unseen)
    below.suptitle(f"the mlp's answers before and after PGD in linf, ε = {BUDGET}: red adds ink, blue removes it")
    gallery(below.subplots(3, SHOWN), models["mlp"], unseen)
    print("drawn:", gl.plots.save(figure, options.out))


if __name__ == "__main__":
    main()
