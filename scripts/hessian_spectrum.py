"""The curvature of a classifier of handwritten digits before and after training: trace, sharpness, all eigenvalues.

Run: python scripts/hessian_spectrum.py [--wide 965] [--images 512] [--steps 64]    draws out/hessian_spectrum.png

The Hessian is the sum of the Gauss-Newton matrix, which has no negative eigenvalue, and of the curvature of the model
itself, of which training leaves little. No matrix is formed: all comes of products with vectors.
"""

import argparse
import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from matplotlib.axes import Axes
from rich.console import Console
from rich.table import Table

import gradlab as gl
from gradlab import curvature
from gradlab.problems import digits

KEY = jax.random.key(0)


def describe(ax: Axes, title: str, model: gl.models.Model, params: Any, data: digits.Images, steps: int) -> None:
    """Print trace and sharpness; draw the eigenvalues of the Hessian and of the Gauss-Newton matrix."""
    loss = lambda params: digits.cross_entropy(model)(params, data)
    outer = lambda logits: jnp.mean(gl.losses.softmax_cross_entropy(logits, data.labels))
    gauss_newton: Any = partial(curvature.gauss_newton, outer=outer)
    trace, top = curvature.trace(loss, params, key=KEY), curvature.sharpness(loss, params, key=KEY)
    told = f"trace {trace.value:.1f} ± {trace.margin():.1f}, λ = {top.value:.2f}, 2/λ = {top.largest_rate:.2f}"
    print(f"{title}: {told}")
    gl.plots.spectrum(curvature.spectral_density(loss, params, key=KEY, steps=steps), ax, name="Hessian")
    logits = lambda params: model.apply(params, data.images)
    found = curvature.spectral_density(logits, params, key=KEY, steps=steps, product=gauss_newton)
    gl.plots.spectrum(found, ax, name="Gauss-Newton matrix")
    ax.set_title(f"{title}: {told}", loc="left", fontsize=9)
    ax.spines[["top", "right"]].set_visible(False)


def power_iteration(loss: Any, params: Any, length: int, key: jax.Array) -> jax.Array:
    """⟨v, H v⟩ for each v on the way: after so many products, the largest eigenvalue in absolute value."""
    flat, back = ravel_pytree(params)
    product = lambda v: ravel_pytree(gl.hvp(loss)(params, back(v)))[0]
    step = lambda v, _: ((w := product(v)) / jnp.linalg.norm(w), v @ w)
    start = jax.random.normal(key, flat.shape)
    return jax.lax.scan(step, start / jnp.linalg.norm(start), length=length)[1]


def race(loss: Any, params: Any, products: list[int]) -> Table:
    """The relative error of the largest eigenvalue after the same number of products, the median of eight starts."""
    table, most = Table("products", *map(str, products), title="after training, relative error of λ"), max(products)
    largest = lambda key, steps: curvature.sharpness(loss, params, key=key, steps=steps).value
    truth, keys = largest(KEY, 2 * most), jax.random.split(KEY, 8)
    powers = jax.jit(jax.vmap(partial(power_iteration, loss, params, most)))(keys).T
    lanczos = [jax.jit(jax.vmap(partial(largest, steps=k)))(keys) for k in products]
    for name, values in (("power iteration", [powers[k - 1] for k in products]), ("Lanczos", lanczos)):
        errors = [float(jnp.median(jnp.abs(value / truth - 1))) for value in values]
        table.add_row(name, *(f"{error:.0e}" if error > 1e-6 else "< 1e-06" for error in errors))
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wide", type=int, default=965, help="two hidden layers of a large mlp: a million parameters")
    parser.add_argument("--images", type=int, default=512, help="to train on, and to take the loss of")
    parser.add_argument("--steps", type=int, default=64, help="products from each random start of a spectral density")
    parser.add_argument("--products", type=int, nargs="+", default=[4, 8, 16, 32, 64], help="to find the largest with")
    parser.add_argument("--out", default="out/hessian_spectrum.png")
    options = parser.parse_args()
    data, model, optimizer = digits.load(KEY, options.images), digits.classifier("mlp"), digits.recipe("sgd")
    start, loss = model.init(jax.random.key(1)), lambda params: digits.cross_entropy(model)(params, data)
    trained = gl.descend(digits.cross_entropy(model), start, data=data, optimizer=optimizer, steps=400).params
    figure = gl.plots.figure(9.0, 7.0)
    above, below = figure.subplots(2, 1, sharex=True)
    describe(above, "before training", model, start, data, options.steps)
    describe(below, "after training", model, trained, data, options.steps)
    Console(width=80).print(race(loss, trained, options.products))
    large = gl.models.mlp((64, options.wide, options.wide, 10))
    params, begun = large.init(KEY), time.perf_counter()
    top = curvature.sharpness(lambda params: digits.cross_entropy(large)(params, data), params, key=KEY)
    told = f"λ = {top.value:.4f}, with a residual of {top.residual:.0e}, in {time.perf_counter() - begun:.1f} s"
    print(f"an mlp of {sum(leaf.size for leaf in jax.tree.leaves(params)):,} parameters: {told}, compiling included")
    print("drawn:", gl.plots.save(figure, options.out))


if __name__ == "__main__":
    main()
