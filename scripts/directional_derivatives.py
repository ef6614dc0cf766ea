"""Directional derivatives (equations 2.1 to 3.5): the gradient is the direction of the steepest ascent.

Run: python scripts/directional_derivatives.py    draws out/directional_derivatives.png
"""

import jax
import jax.numpy as jnp

import gradlab as gl
from gradlab import plots


def surface(x: jax.Array) -> jax.Array:
    return jnp.sin(1.5 * x[0]) * jnp.cos(x[1]) + 0.2 * x[0]


def main() -> None:
    point = jnp.array([0.4, 0.7])
    gradient = gl.gradient(surface)(point)
    steepest = gl.steepest_direction(surface)(point)
    angles = jnp.linspace(0.0, 2 * jnp.pi, 361)
    directions = jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=1)
    rates = jax.vmap(lambda v: gl.directional_derivative(surface)(point, v))(directions)

    steepest_angle = float(jnp.rad2deg(jnp.arctan2(steepest[1], steepest[0])))
    print(f"∇f = {gradient}, |∇f| = {float(jnp.linalg.norm(gradient)):.4f}, at {steepest_angle:.1f}°")
    best = int(rates.argmax())
    print(f"largest directional derivative {float(rates[best]):.4f}, at {float(jnp.rad2deg(angles[best])):.1f}°")
    print(f"∇ᵥf − ⟨∇f, v⟩ over all directions: at most {float(jnp.abs(rates - directions @ gradient).max()):.1e}")
    print(f"directions that ascend: {float(jnp.mean(rates[:-1] > 0)):.1%}")

    figure = plots.figure(12.0, 4.6)
    left, right = figure.subplots(1, 2)
    side = jnp.linspace(-1.5, 2.0, 121)
    grid = jnp.stack(jnp.meshgrid(side, side), axis=-1)
    heights = jax.vmap(jax.vmap(surface))(grid)
    left.contourf(side, side, heights, levels=24, cmap="viridis")
    left.plot(*point, "wo")
    for v, rate in zip(directions[::15], rates[::15], strict=True):
        color = "white" if rate > 0 else "black"
        left.plot(*zip(point, point + 0.4 * abs(rate) * v, strict=True), color=color, lw=1.2, alpha=0.9)
    left.annotate("", point + 0.75 * steepest, point, arrowprops={"color": "#d9730d", "width": 2, "headwidth": 8})
    left.set(title="f; white directions ascend, black descend", xlabel="x", ylabel="y", aspect="equal")
    right.plot(jnp.rad2deg(angles), rates)
    right.axvline(steepest_angle % 360, color="#d9730d", ls="--", label="∇f")
    right.axhline(0, color="gray", lw=0.8)
    right.set(title="directional derivative", xlabel="direction [degrees]", ylabel="∇ᵥf")
    right.legend(frameon=False)
    print("drawn:", plots.save(figure, "out/directional_derivatives.png"))


if __name__ == "__main__":
    main()
