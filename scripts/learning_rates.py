"""64 learning rates in one compiled program, and the edge beyond which gradient descent cannot be stable.

Run: python scripts/learning_rates.py    draws out/learning_rates.png

Near a minimum, a step of rate η multiplies the error along an eigenvector of the Hessian by 1 - η λ, which grows where
η > 2/λ: the largest eigenvalue sets the edge. A quadratic loss obeys it to the digit. A network does at its start; it
then moves to where λ is near 2/η, and trains beyond the first edge (Cohen et al., Gradient descent on neural networks
typically occurs at the edge of stability, 2021).
"""

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from matplotlib.axes import Axes

import gradlab as gl
from gradlab.types import Loss, Params

RATES, STEPS = jnp.logspace(-3, 1.5, 64), 200


def final_losses(loss: Loss, params: Params) -> jax.Array:
    """The loss after each of the learning rates, all in one program."""
    run = lambda rate: gl.descent_loop(loss, optax.sgd(rate), steps=STEPS)(params)[2].losses[-1]
    return jax.jit(jax.vmap(run))(RATES)


@jax.jit(static_argnums=0)
def largest_eigenvalue(loss: Loss, params: Params) -> jax.Array:
    """λmax of the Hessian, by 50 power iterations: v ← H v / |H v|."""
    flat, unravel = ravel_pytree(params)
    product = gl.hvp(lambda x: loss(unravel(x)))

    def step(v: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        image = product(flat, v)
        return image / jnp.linalg.norm(image), v @ image

    start = jax.random.normal(jax.random.key(0), flat.shape)
    return jax.lax.scan(step, start / jnp.linalg.norm(start), length=50)[1][-1]


def losses() -> dict[str, tuple[Loss, Params]]:
    """A quadratic loss and that of a small network, on handwritten digits."""
    train, _ = gl.problems.digits.split()
    images, target = train.images[:256], jax.nn.one_hot(train.labels[:256], 10)
    line, net = gl.models.softmax_regression(64, 10), gl.models.mlp((64, 32, 10), activation=jnp.tanh)
    square = lambda model: lambda params: jnp.mean(gl.losses.l2(model.apply(params, images), target))
    return {
        "linear regression": (square(line), line.init(jax.random.key(1))),
        "a network of 32 units": (square(net), net.init(jax.random.key(1))),
    }


def draw(ax: Axes, name: str, last: jax.Array, edge: float) -> None:
    stable = jnp.isfinite(last)
    ax.loglog(RATES[stable], last[stable], "o", ms=4, color=gl.plots.COLORS[0], label=f"loss after {STEPS} steps")
    ax.loglog(
        RATES[~stable], jnp.full(int(jnp.sum(~stable)), 1.0), "x", ms=5, color=gl.plots.COLORS[1], label="not finite"
    )
    ax.axvline(edge, color="#1b1f24", ls="--", lw=1, label=f"2/λmax at the start = {edge:.3g}")
    ax.set(xlabel="learning rate", ylabel="loss", ylim=(1e-2, 3.0), title=name)
    ax.legend(frameon=False)


def main() -> None:
    figure = gl.plots.figure(12.0, 4.0)
    for ax, (name, (loss, params)) in zip(figure.subplots(1, 2), losses().items(), strict=True):
        edge = 2.0 / float(largest_eigenvalue(loss, params))
        last = final_losses(loss, params)
        falls = RATES[jnp.isfinite(last) & (last < loss(params))]
        print(f"{name}: 2/λmax = {edge:.3g}; the largest of 64 rates that lowers the loss is {float(falls.max()):.3g}")
        draw(ax, name, last, edge)
    print(f"drawn: {gl.plots.save(figure, 'out/learning_rates.png')}")


if __name__ == "__main__":
    main()
