"""Two losses that the tests of descents share: a line through 50 examples, and Rosenbrock's valley."""

import jax
import jax.numpy as jnp

X = jax.random.normal(jax.random.key(1), (50, 3))
Y = X @ jnp.array([1.0, -2.0, 0.5]) + 0.3
DATA = {"x": X, "y": Y}
START = {"w": jnp.zeros(3), "b": jnp.zeros(())}


def l2(params, batch):
    return jnp.mean((batch["x"] @ params["w"] + params["b"] - batch["y"]) ** 2)


def rosenbrock(x):
    return jnp.sum(100.0 * (x[1:] - x[:-1] ** 2) ** 2 + (1.0 - x[:-1]) ** 2)
