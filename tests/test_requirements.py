"""A call that makes no sense is named before anything runs: what was given, what was expected, what to do next."""

import jax
import jax.numpy as jnp
import optax
import pytest
from descents import DATA, START, X, Y, l2, rosenbrock

import gradlab as gl
from gradlab.errors import (
    ArgumentError,
    EmptyInputError,
    NonFiniteError,
    NotDifferentiableError,
    NotScalarError,
    OptionError,
    ShapeError,
)


@pytest.mark.parametrize(
    ("error", "text", "call"),
    [
        (
            NotScalarError,
            r"one real number of shape \(\), but it returns float32 of shape \(3,\)",
            lambda: gl.descend(jnp.sin, jnp.ones(3)),
        ),
        (NotScalarError, "returns complex64", lambda: gl.descend(lambda x: x * 1j, 1.0)),
        (NotScalarError, "2 arrays", lambda: gl.descend(lambda x: (x, x), 1.0)),
        (
            NotDifferentiableError,
            r"params\['a'\] has dtype int32",
            lambda: gl.descend(lambda p: p["a"] * 1.0, {"a": jnp.arange(3)}),
        ),
        (EmptyInputError, "params is an empty pytree", lambda: gl.descend(lambda p: 1.0, {})),
        (OptionError, "steps must be an integer", lambda: gl.descend(jnp.sin, 1.0, steps=-1)),
        (OptionError, "steps must be an integer", lambda: gl.descend(jnp.sin, 1.0, steps=1e3)),
        (OptionError, "tol must be a number", lambda: gl.descend(jnp.sin, 1.0, tol=-1e-3)),
        (OptionError, "without data", lambda: gl.descend(jnp.sin, 1.0, batch_size=3)),
        (OptionError, "more than the 50 examples", lambda: gl.descend(l2, START, data=DATA, batch_size=51)),
        (OptionError, "batch_size must be an integer", lambda: gl.descend(l2, START, data=DATA, batch_size=0)),
        (
            ShapeError,
            r"data\['x'\] has 50, data\['y'\] has 49",
            lambda: gl.descend(l2, START, data={**DATA, "y": Y[1:]}, batch_size=8),
        ),
        (
            ShapeError,
            r"data\['c'\] is a single number",
            lambda: gl.descend(l2, START, data={**DATA, "c": 1.0}, batch_size=8),
        ),
        (
            NonFiniteError,
            r"data\['x'\] holds 1 of 150 numbers that are NaN",
            lambda: gl.descend(l2, START, data={**DATA, "x": X.at[0, 0].set(jnp.nan)}),
        ),
        (
            NonFiniteError,
            r"params\['w'\] holds 3 of 3",
            lambda: gl.descend(l2, {**START, "w": jnp.full(3, jnp.inf)}, data=DATA),
        ),
        (OptionError, "key must be one random key", lambda: gl.descend(l2, START, data=DATA, key=3)),
        (ArgumentError, "Give data=", lambda: gl.descend(l2, START)),
        (ArgumentError, "loss\\(params, batch\\)", lambda: gl.descend(rosenbrock, jnp.ones(3), data=X)),
        (ArgumentError, "optax.sgd\\(learning_rate\\)", lambda: gl.descend(jnp.sin, 1.0, optimizer=0.1)),
        (ArgumentError, "takes a function", lambda: gl.descend(3.0, 1.0)),
        (ArgumentError, "descent_loop", lambda: jax.jit(lambda x: gl.descend(jnp.sin, x).params)(1.0)),
        (
            ArgumentError,
            "descent_loop",
            lambda: jax.jit(lambda x: gl.descend(lambda y: jnp.sum(x * y), jnp.ones(80)).params)(jnp.ones(80)),
        ),
        (ArgumentError, "cannot be traced", lambda: gl.descend(lambda x: x if x > 0 else -x, 1.0)),
        (OptionError, "size of their own|size", lambda: gl.descend(l2, START, data=iter([DATA]), batch_size=3)),
        (ArgumentError, "A batch of the data holds a str", lambda: gl.descend(l2, START, data=iter(["text"]))),
        (OptionError, "without checkpoint_dir", lambda: gl.descend(jnp.sin, 1.0, checkpoint_every=3)),
        (OptionError, "steps must be an integer", lambda: gl.descent_loop(jnp.sin, optax.sgd(0.1), steps=-1)),
        (
            OptionError,
            "more than the 50 examples",
            lambda: gl.descent_loop(l2, optax.sgd(0.1), steps=1, batch_size=51)(START, DATA),
        ),
        (NotScalarError, "one real number", lambda: gl.descent_loop(jnp.sin, optax.sgd(0.1), steps=1)(jnp.ones(3))),
    ],
)
def test_a_mistake_is_named_before_anything_runs(error, text, call):
    with pytest.raises(error, match=text):
        call()
