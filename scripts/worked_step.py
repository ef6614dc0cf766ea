"""One step of gradient descent, worked (equation 4.1): x = 2, θ = 5, y = 9, learning rate 0.125.

Run: python scripts/worked_step.py    draws out/worked_step.png
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

import gradlab as gl
from gradlab import losses, plots

X, TARGET, START, RATE = 2.0, 9.0, 5.0, 0.125


def model(theta: Any) -> Any:
    return theta * X


def loss(theta: Any) -> Any:
    return losses.l2(model(theta), TARGET)


def main() -> None:
    prediction = model(START)
    value, slope = gl.value_and_gradient(loss)(START)
    outer = gl.derivative(lambda y: losses.l2(y, TARGET))(prediction)
    inner = gl.derivative(model)(START)
    optimizer = optax.sgd(RATE)
    update, _ = optimizer.update(slope, optimizer.init(START))
    after = optax.apply_updates(START, update)
    print(f"forward    ŷ = θ x = {prediction:g}         loss = (ŷ − y)² = {value:g}")
    print(f"backward   ∂loss/∂ŷ = {outer:g}          ∂ŷ/∂θ = {inner:g}          ∂loss/∂θ = {outer * inner:g}")
    print(f"gradlab    ∂loss/∂θ = {slope:g}")
    print(f"step       θ ← {START:g} − {RATE:g} · {slope:g} = {after:g}         loss there = {loss(after):g}")

    theta = jnp.linspace(3.6, 5.4, 200)
    ax = plots.axes()
    ax.plot(theta, loss(theta), color=plots.COLORS[0], label="loss")
    ax.plot(theta, jax.vmap(gl.taylor(loss, 1)(START))(theta), "--", color=plots.COLORS[1], label="slope at θ = 5")
    ax.annotate("", (float(after), float(loss(after))), (START, float(value)), arrowprops={"arrowstyle": "->"})
    ax.plot([START, float(after)], [float(value), float(loss(after))], "o", color=plots.COLORS[2], label="one step")
    ax.set(xlabel="θ", ylabel="loss", ylim=(-0.5, 4), title="One step of gradient descent")
    ax.legend(frameon=False)
    print("drawn:", plots.save(ax, "out/worked_step.png"))


if __name__ == "__main__":
    main()
