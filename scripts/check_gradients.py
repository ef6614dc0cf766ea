"""One function for each verdict of `check`: what it says, and how small an error it would have seen.

Run: python scripts/check_gradients.py
"""

import jax
import jax.numpy as jnp

import gradlab as gl


@jax.custom_vjp
def softplus(x: jax.Array) -> jax.Array:
    return jnp.logaddexp(x, 0.0)


# The derivative is σ(x); this backward rule takes the tangent hyperbolic for it.
softplus.defvjp(lambda x: (softplus(x), x), lambda x, w: (w * jnp.tanh(x),))


@jax.custom_jvp
def cube(x: jax.Array) -> jax.Array:
    return x**3


# Right, but what it returns does not depend on x as far as JAX can see.
cube.defjvp(lambda primals, tangents: (cube(*primals), 3 * jax.lax.stop_gradient(primals[0]) ** 2 * tangents[0]))

POINTS = jnp.array([0.3, 0.9, 1.6])
CASES = [
    ("ok", lambda x: jnp.sum(jnp.tanh(x) ** 2), POINTS, 1),
    ("wrong", lambda x: softplus(x).sum(), POINTS, 1),
    ("nan", lambda x: jnp.linalg.norm(x), jnp.zeros(3), 1),
    ("kink", lambda x: jax.nn.relu(x).sum(), jnp.array([0.5, 0.0]), 1),
    ("second", lambda x: cube(x).sum(), POINTS, 2),
    ("precision", lambda x: jnp.log(jnp.exp(x) - 1) - x, jnp.float32(15.0), 1),
    ("undecided", lambda x: jnp.floor(x), jnp.float32(2.0), 1),
]


def main() -> None:
    for verdict, f, x, order in CASES:
        result = gl.check(f, x, order=order)
        print(f"{verdict}\n{result}\n")
        assert result.verdict == verdict


if __name__ == "__main__":
    main()
