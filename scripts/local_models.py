"""Local models of a function (equation 7.5): order k errs like the (k + 1)th power of the distance.

Run: python scripts/local_models.py    draws out/local_models.png
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

import gradlab as gl
from gradlab import plots

ORDERS = (1, 2, 3)
X0 = 0.8


def f(x: ArrayLike) -> jax.Array:
    return jnp.sin(2 * x) * jnp.exp(-0.3 * x)


def main() -> None:
    figure = plots.figure(12.0, 4.2)
    left, right = figure.subplots(1, 2)
    with jax.enable_x64(True):  # the smallest errors are below float32's rounding
        x = jnp.linspace(-0.5, 2.5, 300)
        left.plot(x, f(x), "k", label="f")
        steps = np.logspace(-2.5, -0.5, 15)
        print("order   fitted slope of log error over log distance")
        for order, color in zip(ORDERS, plots.COLORS, strict=False):
            model = gl.taylor(f, order)(X0)
            left.plot(x, jax.vmap(model)(x), "--", color=color, label=f"order {order}")
            errors = [abs(float(f(X0 + h) - model(X0 + h))) for h in steps]
            slope = np.polyfit(np.log(steps), np.log(errors), 1)[0]
            right.loglog(steps, errors, "o-", color=color, ms=4, label=f"order {order}: slope {slope:.2f}")
            print(f"{order:5}   {slope:.3f}")
    left.plot(X0, f(X0), "ko")
    left.set(title="local models", xlabel="x", ylim=(-1.5, 1.5))
    right.set(title="their error", xlabel="distance |x − x₀|", ylabel="|f − model|")
    left.legend(frameon=False)
    right.legend(frameon=False)
    print("drawn:", plots.save(figure, "out/local_models.png"))


if __name__ == "__main__":
    main()
