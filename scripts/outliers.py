"""Row 5.3 of the tutorial: a line fitted to points of which some are far off, by the L2 loss, Huber's and the L1 loss.

Run: python scripts/outliers.py    draws out/outliers.png

The derivative of L2 grows with the distance, so a few outliers pull the line; that of L1 has one size for all of them;
Huber's is L2's near the line and L1's beyond.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

import gradlab as gl

SLOPE, SHIFT, POINTS, OUTLIERS = 2.0, -1.0, 60, 9


def points(key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Points near the line y = 2 x - 1, the last few of them moved up."""
    for_x, for_noise = jax.random.split(key)
    x = jnp.sort(jax.random.uniform(for_x, (POINTS,), minval=-1.0, maxval=2.0))
    y = SLOPE * x + SHIFT + 0.15 * jax.random.normal(for_noise, (POINTS,))
    return x, y.at[-OUTLIERS:].add(6.0)


def fit(loss_of_one: Callable[..., jax.Array], x: jax.Array, y: jax.Array) -> gl.Descent:
    model = gl.models.linear_regression(1)
    loss = lambda params, batch: jnp.mean(loss_of_one(model.apply(params, batch[0][:, None]), batch[1]))
    # A rate that falls to zero: the gradient of L1 does not, however near the line is.
    optimizer = optax.adam(optax.cosine_decay_schedule(0.1, 2000))
    return gl.descend(loss, model.init(jax.random.key(1)), data=(x, y), optimizer=optimizer, steps=2000)


def main() -> None:
    x, y = points(jax.random.key(0))
    ax = gl.plots.axes()
    ax.plot(x, y, "o", ms=4, color="#787774", label=f"{POINTS} points, {OUTLIERS} of them outliers")
    ax.plot(x, SLOPE * x + SHIFT, ":", color="#1b1f24", label="the line that they come from")
    print(f"the line:  y = {SLOPE:.2f} x {SHIFT:+.2f}")
    losses = {"L2": gl.losses.l2, "Huber": gl.losses.huber, "L1": gl.losses.l1}
    for (name, loss), color in zip(losses.items(), gl.plots.COLORS, strict=False):
        found = fit(loss, x, y).params
        slope, shift = float(found["w"][0]), float(found["b"])
        off = float(jnp.max(jnp.abs((slope - SLOPE) * x + shift - SHIFT)))
        print(f"{name:5} finds: y = {slope:.2f} x {shift:+.2f}, at most {off:.2f} from it")
        ax.plot(x, slope * x + shift, color=color, label=f"{name}: y = {slope:.2f} x {shift:+.2f}")
    ax.legend(frameon=False)
    ax.set(xlabel="x", ylabel="y")
    print(f"drawn: {gl.plots.save(ax, 'out/outliers.png')}")


if __name__ == "__main__":
    main()
