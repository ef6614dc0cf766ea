"""Functions whose derivative is NaN, infinite or zero, each with the one line that is to blame, and healthy ones.

The line carries the comment `# <name of the function>`, in the function itself or in one that it calls.
"""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

FAULTS = {}
HEALTHY = {}
ZERO3 = jnp.zeros(3)
ONES3 = jnp.ones(3)
RANGE3 = jnp.array([0.5, 1.0, 2.0])


def fault(kind, *args, where="args[0]"):
    def add(f):
        FAULTS[f.__name__] = (f, args, kind, where)
        return f

    return add


def healthy(*args):
    def add(f):
        HEALTHY[f.__name__] = (f, args)
        return f

    return add


@functools.cache
def lines():
    """The line to blame for each fault, by name."""
    marked = (line.rpartition("# ") for line in Path(__file__).read_text().splitlines())
    return {name: number for number, (_, mark, name) in enumerate(marked, 1) if mark and name in FAULTS}


# Not finite.


@fault("nan", ZERO3)
def norm_of_zero(x):
    y = 2.0 * x
    n = jnp.linalg.norm(y)  # norm_of_zero
    return n + jnp.sum(y)


@fault("inf", jnp.array([4.0, 0.0]))
def root_at_zero(x):
    y = jnp.sqrt(x)  # root_at_zero
    return jnp.sum(3.0 * y)


@fault("nan", jnp.array([2.0, 0.0]))
def single_where(x):
    safe = x > 0
    y = jnp.log(x)  # single_where
    z = jnp.where(safe, y, 0.0)
    return jnp.sum(z)


@fault("nan", jnp.array([0.0, 1.0]))
def entropy(p):
    logs = jnp.log(p)  # entropy
    terms = p * logs
    return -jnp.sum(terms)


@fault("nan", jnp.array([1.0, 1000.0]))
def sigmoid_by_hand(x):
    e = jnp.exp(x)  # sigmoid_by_hand
    p = e / (1.0 + e)
    return jnp.sum(p)


@fault("inf", jnp.array([2.0, 0.0]))
def fractional_power(x):
    y = jnp.abs(x)
    z = y**0.3  # fractional_power
    return jnp.sum(z)


@fault("inf", jnp.array([0.5, 1.0]))
def angle(x):
    cosine = jnp.clip(x, -1.0, 1.0)
    angles = jnp.arccos(cosine)  # angle
    return jnp.sum(angles)


@fault("nan", ZERO3, RANGE3)
def spread(x, w):
    s = jnp.std(x)  # spread
    return s * jnp.sum(w)


@fault("nan", jnp.array([[1.0, 2.0], [3.0, 4.0]]))
def masked_row(scores):
    mask = jnp.array([[True, False], [False, False]])
    kept = jnp.where(mask, scores, -jnp.inf)
    p = jax.nn.softmax(kept, axis=-1)  # masked_row
    return jnp.sum(p * scores)


@fault("nan", jnp.eye(3))
def equal_eigenvalues(a):
    values, vectors = jnp.linalg.eigh(a)  # equal_eigenvalues
    return jnp.sum(values * vectors[0])


@jax.jit
def _reciprocal(x):
    shifted = x - 1.0
    return 1.0 / shifted  # inside_jit


@fault("inf", ONES3)
def inside_jit(x):
    return jnp.sum(jnp.sin(_reciprocal(x + 1.0))) + jnp.sum(_reciprocal(x))


@fault("inf", jnp.array([1.0, 0.0, 2.0]))
def inside_scan(x):
    def body(carry, t):
        carry = 0.5 * carry + 1.0
        seen = jnp.log(t)  # inside_scan
        return carry, carry * seen

    return jnp.sum(lax.scan(body, 0.0, x)[1])


@fault("nan", jnp.array(3.0))
def carried_in_scan(x):
    def body(state, i):
        gap = state - i
        state = jnp.sqrt(gap)  # carried_in_scan
        return state + i, state

    return lax.scan(body, x, jnp.array([1.0, 2.0, 3.0 + 0.4142135, 9.0]))[0]


@fault("nan", jnp.array([[3.0, 4.0], [0.0, 0.0]]))
def inside_vmap(points):
    def length(p):
        squares = p * p
        return jnp.sqrt(jnp.sum(squares))  # inside_vmap

    return jnp.sum(jax.vmap(length)(points))


@fault("inf", jnp.array(0.0))
def inside_cond(x):
    def down(x):
        return jnp.log(x) * 0.5  # inside_cond

    return lax.cond(x > 1.0, lambda x: x * x, down, x) + x


@fault("nan", jnp.array(2.0))
def inside_while(x):
    def body(state):
        i, y = state
        return i + 1, jnp.sqrt(y - 1.0)  # inside_while

    return lax.while_loop(lambda state: state[0] < 3, body, (0, x))[1]


@jax.custom_vjp
def _ruled(x):
    return jnp.abs(x)


def _ruled_backward(x, w):
    size = jnp.abs(x)
    return (w * x / size,)  # inside_a_backward_rule


_ruled.defvjp(lambda x: (_ruled(x), x), _ruled_backward)


@fault("nan", jnp.array([1.0, 0.0]))
def inside_a_backward_rule(x):
    y = _ruled(3.0 * x)
    return jnp.sum(y)


@jax.custom_jvp
def _pushed(x):
    return jnp.cbrt(x)


@_pushed.defjvp
def _pushed_rule(primals, tangents):
    y = _pushed(*primals)
    return y, tangents[0] / (3.0 * y * y)  # inside_a_forward_rule


@fault("inf", jnp.array([8.0, 0.0]))
def inside_a_forward_rule(x):
    return jnp.sum(_pushed(x) + x)


def _distance(a, b):
    difference = a - b
    return jnp.sqrt(jnp.sum(difference**2))  # second_call_of_a_helper


@fault("nan", ZERO3, ONES3)
def second_call_of_a_helper(a, b):
    near = _distance(a, b)
    return near + _distance(a, jnp.zeros(3))


@fault("nan", {"w": jnp.array([1.0, 2.0]), "scale": jnp.array(0.0)}, ONES3[:2], where="args[0]['scale']")
def in_a_pytree(params, x):
    z = jnp.sum(params["w"] * x) - 3.0
    return z / params["scale"]  # in_a_pytree


@fault("nan", RANGE3, jnp.array(0.0))
def inside_checkpoint(x, shift):
    def block(x):
        centered = x - x
        return centered / jnp.sum(centered)  # inside_checkpoint

    return jnp.sum(jax.checkpoint(block)(x)) + shift


@fault("nan", jnp.array([100.0, 1.0]))
def overflow(x):
    powers = jnp.exp(x)  # overflow
    total = jnp.sum(powers)
    return jnp.log(total)


@fault("nan", jnp.array([0.1, 0.2]))
def cholesky_of_indefinite(x):
    a = jnp.array([[1.0, 2.0], [2.0, 1.0]]) + jnp.diag(x)
    factor = jnp.linalg.cholesky(a)  # cholesky_of_indefinite
    return jnp.sum(factor)


@fault("inf", jnp.linspace(0.0, 1.0, 5000))
def one_of_many(x):
    y = jnp.sin(x)
    z = jnp.log(y)  # one_of_many
    return jnp.mean(z)


# Zero.


@fault("zero", RANGE3)
def stopped(x):
    y = jnp.sin(x)
    z = lax.stop_gradient(y)  # stopped
    return jnp.sum(z**2)


@fault("zero", RANGE3)
def rounded(x):
    y = 10.0 * x
    levels = jnp.round(y)  # rounded
    return jnp.sum(levels / 10.0)


@fault("zero", RANGE3)
def counted(x):
    y = 7.3 * x
    whole = y.astype(jnp.int32)  # counted
    return jnp.sum(whole * 1.5)


@fault("zero", RANGE3, jnp.arange(9.0).reshape(3, 3))
def hard_choice(logits, table):
    best = jnp.argmax(logits)  # hard_choice
    return jnp.sum(table[best])


@fault("zero", RANGE3)
def threshold(x):
    above = x > 0.7  # threshold
    return jnp.mean(above.astype(jnp.float32))


@fault("zero", {"w": jnp.full((3, 4), -1.0), "v": jnp.ones(4)}, ONES3, where="args[0]['w']")
def dead_relu(params, x):
    before = x @ params["w"] - 2.0
    hidden = jax.nn.relu(before)  # dead_relu
    return hidden @ params["v"] + jnp.sum(params["v"])


@fault("zero", {"w": jnp.full((3, 4), -1.0), "v": jnp.ones(4)}, ONES3, where="args[0]['v']")
def after_a_dead_relu(params, x):
    before = x @ params["w"]
    hidden = jnp.maximum(before, 0.0)  # after_a_dead_relu
    return hidden @ params["v"]


@fault("zero", jnp.array([200.0, 300.0]))
def saturated(x):
    logit = 3.0 * x
    p = jax.nn.sigmoid(logit)  # saturated
    return jnp.sum(jnp.square(p))


@fault("zero", RANGE3, ONES3, where="args[1]")
def unused(x, y):
    return jnp.sum(x) + y.shape[0]


@fault("zero", RANGE3)
def other_branch(x):
    flag = jnp.array([False, False, False])
    y = jnp.where(flag, x * x, 1.0)  # other_branch
    return jnp.sum(y)


@fault("zero", jnp.array(0.3), jnp.arange(4.0))
def dropped_entry(first, rest):
    row = jnp.concatenate([first[None], rest])
    doubled = 2.0 * row
    tail = doubled[1:]  # dropped_entry
    return jnp.sum(tail)


@fault("zero", jnp.array(0.3), RANGE3)
def overwritten(first, x):
    row = x.at[0].set(first)
    row = row.at[0].set(1.0)  # overwritten
    return jnp.sum(row * row)


@fault("zero", jnp.array(2.0), RANGE3)
def cut_in_a_scan(scale, x):
    def body(carry, t):
        level = jnp.floor(scale * t)  # cut_in_a_scan
        return carry + level, None

    return lax.scan(body, 0.0, x)[0]


@fault("zero", jnp.array(1.5), jnp.array(-1.0))
def branch_without_it(x, flag):
    y = 2.0 * x
    return lax.cond(flag > 0, lambda y: y**2, lambda y: 3.0 * jnp.ones(()), y)  # branch_without_it


@fault("zero", RANGE3)
def times_nothing(x):
    y = jnp.exp(x)
    z = y * jnp.zeros(3)  # times_nothing
    return jnp.sum(z + 1.0)


# Nothing wrong.


@healthy(ZERO3)
def stationary(x):
    return jnp.sum(x**2)


@healthy(jnp.array(0.0), jnp.array(0.0))
def saddle(x, y):
    return x * y


@healthy({"down": RANGE3[:, None], "up": jnp.zeros((1, 3))}, ONES3)
def low_rank_update(params, x):
    return jnp.sum((x + x @ params["down"] @ params["up"] - 2.0) ** 2)


@healthy(jnp.array([2.0, -1.0]))
def double_where(x):
    safe = jnp.where(x > 0, x, 1.0)
    return jnp.sum(jnp.where(x > 0, jnp.log(safe), 0.0))


@healthy(jnp.arange(9.0).reshape(3, 3))
def causal_attention(scores):
    mask = jnp.tril(jnp.ones((3, 3), bool))
    return jnp.sum(jax.nn.softmax(jnp.where(mask, scores, -jnp.inf)) * jnp.arange(3.0))


@healthy(RANGE3)
def straight_through(x):
    y = x + lax.stop_gradient(jnp.round(x) - x)
    return jnp.sum(y * y)


@healthy(jnp.array([-1.0, 2.0]))
def half_dead(x):
    return jnp.sum(jax.nn.relu(x))


@healthy(RANGE3)
def harmless_infinity(x):
    limit = lax.stop_gradient(jnp.log(x - x))
    return jnp.sum(jnp.maximum(x, limit))


@healthy(jnp.array(0.3), jax.random.key(0), 4)
def noisy(x, key, count):
    return jnp.sum(jnp.tanh(x + jax.random.normal(key, (count,))))


@healthy(np.float32(0.1))
def loop(x):
    return lax.fori_loop(0, 5, lambda _, y: jnp.sin(y) + x, x)
