"""One step of gradient descent, worked on its computation graph (equation 4.1): x = 2, θ = 5, y = 9, rate 0.125.

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
    graph = gl.graph(loss, START)
    theta, prediction, _, output = graph.nodes
    slope = float(theta.adjoint)
    print(f"{'node':20}{'forward':>10}{'backward':>10}")
    for node in graph.nodes:
        print(f"{node.expression:20}{float(node.value):10g}{float(node.adjoint):10g}")
    print()
    print(f"forward    ŷ = θ x = {float(prediction.value):g}         loss = (ŷ − y)² = {float(output.value):g}")
    inner = gl.derivative(model)(START)
    print(
        f"backward   ∂loss/∂ŷ = {float(prediction.adjoint):g}          ∂ŷ/∂θ = {inner:g}          ∂loss/∂θ = {slope:g}"
    )
    optimizer = optax.sgd(RATE)
    update, _ = optimizer.update(slope, optimizer.init(START))
    after = float(optax.apply_updates(START, update))
    print(f"step       θ ← {START:g} − {RATE:g} · {slope:g} = {after:g}         loss there = {loss(after):g}")

    figure = plots.figure(10.0, 4.0)
    left, right = figure.subplots(1, 2)
    graph.plot(left)
    thetas = jnp.linspace(3.6, 5.4, 200)
    right.plot(thetas, loss(thetas), color=plots.COLORS[0], label="loss")
    tangent = gl.taylor(loss, 1)(START)
    right.plot(thetas, jax.vmap(tangent)(thetas), "--", color=plots.COLORS[1], label="slope at θ = 5")
    right.annotate("", (after, float(loss(after))), (START, float(output.value)), arrowprops={"arrowstyle": "->"})
    right.plot([START, after], [loss(START), loss(after)], "o", color=plots.COLORS[2], label="one step")
    right.set(xlabel="θ", ylabel="loss", ylim=(-0.5, 4), title="One step of gradient descent")
    right.legend(frameon=False)
    print("drawn:", plots.save(figure, "out/worked_step.png"))


if __name__ == "__main__":
    main()
