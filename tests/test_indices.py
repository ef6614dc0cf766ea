"""What NumPy computes of a program's known numbers is what JAX computes of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from gradlab.jaxprs.indices import computed
from gradlab.jaxprs.reading import jaxpr_of

NUMBERS = {
    "int32": np.array([[-7, -1, 0], [2, 3, 12]], np.int32),
    "uint8": np.array([[0, 1, 250], [7, 9, 3]], np.uint8),
    "float32": np.array([[-1.5, 0.0, np.inf], [0.25, 7.0, -3.5]], np.float32),
}
OTHERS = {
    "int32": np.array([[2, -3, 5], [-4, 1, 7]], np.int32),
    "uint8": np.array([[2, 3, 9], [1, 200, 3]], np.uint8),
    "float32": np.array([[2.0, -0.5, 3.0], [0.0, -2.0, 0.75]], np.float32),
}
BINARY = (lax.add, lax.sub, lax.mul, lax.div, lax.rem, lax.max, lax.min, lax.lt, lax.le, lax.gt, lax.ge, lax.eq, lax.ne)
UNARY = {
    "sign": lax.sign,
    "convert": lambda a: lax.convert_element_type(a, jnp.int16),
    "reshape": lambda a: lax.reshape(a, (3, 2)),
    "transpose": lambda a: lax.transpose(a, (1, 0)),
    "rev": lambda a: lax.rev(a, (1,)),
    "broadcast": lambda a: lax.broadcast_in_dim(a, (2, 4, 3), (0, 2)),
    "slice": lambda a: lax.slice(a, (0, 0), (2, 3), (1, 2)),
    "concatenate": lambda a: lax.concatenate([a, a], 1),
    "clamp": lambda a: lax.clamp(a.dtype.type(1), a, a.dtype.type(5)),
    "select": lambda a: lax.select(a > 2, a, a * 2),
    "sum": lambda a: a.sum(axis=0, dtype=a.dtype),
    "max": lambda a: jnp.max(a, axis=1),
    "min": lambda a: jnp.min(a),
    "any": lambda a: jnp.any(a > 2, axis=0),
    "all": lambda a: jnp.all(a > 2, axis=1),
}
FUNCTIONS = {f.__name__: f for f in BINARY} | UNARY


def by_numpy(closed, args):
    """The program's result by `computed` alone; None where it does not know an operator."""
    program = jaxpr_of(closed)
    values = dict(zip(program.invars, args, strict=True))
    for eqn in program.eqns:
        read = [np.asarray(v.val) if hasattr(v, "val") else values[v] for v in eqn.invars]
        values[eqn.outvars[0]] = computed(eqn, read)
    return values[program.outvars[0]]


@pytest.mark.parametrize("kind", NUMBERS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_numbers_are_those_of_jax(name, kind):
    f = FUNCTIONS[name]
    args = (NUMBERS[kind], OTHERS[kind]) if f in BINARY else (NUMBERS[kind],)
    if name == "convert" and kind == "float32":
        args = (np.clip(*args, -5, 5),)  # what an infinity becomes is the platform's own
    if name in ("div", "rem") and kind != "float32":
        args = (args[0], np.where(args[1] == 0, 1, args[1]).astype(args[1].dtype))
    expected = np.asarray(jax.jit(f)(*args))
    given = by_numpy(jax.make_jaxpr(f)(*args), args)
    assert given.dtype == expected.dtype
    np.testing.assert_array_equal(given, expected)


def test_what_is_not_known_and_what_has_no_rule_is_not_computed():
    a = NUMBERS["float32"]
    [add] = jaxpr_of(jax.make_jaxpr(lax.add)(a, a)).eqns
    [sine] = jaxpr_of(jax.make_jaxpr(lax.sin)(a)).eqns
    assert computed(add, [a, None]) is None
    assert computed(sine, [a]) is None
