"""Functions with a right derivative, and functions with a planted defect and the verdict that it deserves."""

import jax
import jax.numpy as jnp
import numpy as np

KEY = jax.random.key(0)
X = np.linspace(0.3, 1.4, 5).astype(np.float32)
Z = np.array([1 + 2j, 3 - 1j], np.complex64)
MATRIX = np.arange(12.0, dtype=np.float32).reshape(3, 4) / 10


def backward(value, rule):
    """A function of one argument with a reverse rule of its own: `rule(x, cotangent)`."""
    f = jax.custom_vjp(value)
    f.defvjp(lambda x: (value(x), x), lambda x, w: (rule(x, w),))
    return f


def forward(value, rule):
    """A function of one argument with a forward rule of its own: `rule(x, tangent)`."""
    f = jax.custom_jvp(value)
    f.defjvp(lambda primals, tangents: (value(*primals), rule(primals[0], tangents[0])))
    return f


def loop(x):
    step = lambda state: (state[0] * x, state[1] + 1)
    return jax.lax.while_loop(lambda state: (state[0] < 30.0) & (state[1] < 99), step, (x, 0))[0]


def unrolled(x):
    return jax.lax.scan(lambda c, _: (jnp.sin(c) * x, c), x, length=6)[1]


def float32_only(x):
    return jax.lax.scan(lambda c, _: (c * jnp.float32(1.1), None), x, length=5)[0]


def mapped_otherwise(x):
    """The sine, whose rule under vmap is another function's."""
    f = jax.custom_batching.custom_vmap(lambda x: jnp.sin(x) * 1.0)
    f.def_vmap(lambda size, batched, x: (jnp.sin(x), batched[0]))
    return f(x)


def table_float32(x):
    """A custom rule that was written for float32 alone."""
    f = jax.custom_vjp(jnp.sin)
    f.defvjp(lambda x: (jnp.sin(x), x), lambda x, w: (jax.lax.mul(w, jnp.cos(x).astype(jnp.float32)),))
    return f(x)


def host_sine(x):
    shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
    f = jax.custom_jvp(lambda x: jax.pure_callback(lambda x: np.sin(np.asarray(x)), shape, x))
    f.defjvp(lambda primals, tangents: (f(*primals), jnp.cos(primals[0]) * tangents[0]))
    return f(x)


def solved(transposed):
    """z with A(x) z = b, by the implicit function theorem; its backward rule solves with Aᵀ, or wrongly with A."""
    system = lambda x: jnp.eye(3) * 2 + jnp.outer(x, jnp.arange(1.0, 4.0))
    value = lambda x: jnp.linalg.solve(system(x), jnp.ones(3))

    def rule(x, w):
        adjoint = jnp.linalg.solve(system(x).T if transposed else system(x), w)
        return jax.vjp(lambda x: -system(x) @ jax.lax.stop_gradient(value(x)), x)[1](adjoint)[0]

    return backward(value, rule)


def root(solves):
    """The fixed point z = cos(z x) / 2, differentiated implicitly, or as if one step were all."""
    step = lambda z, x: jnp.cos(z * x) / 2
    value = lambda x: jax.lax.fori_loop(0, 80, lambda _, z: step(z, x), jnp.zeros_like(x))

    def rule(x, t):
        z = value(x)
        by_z, by_x = -jnp.sin(z * x) * x / 2, -jnp.sin(z * x) * z / 2
        return t * by_x / (1 - by_z if solves else 1)

    return forward(value, rule)


def normalized(x):
    return (x - x.mean()) / jnp.sqrt(x.var() + 1e-5)


def normalized_with_stopped(what):
    """Layer norm whose mean or variance does not take part in the derivative."""
    stop = jax.lax.stop_gradient
    mean = (lambda x: stop(x.mean())) if what == "mean" else (lambda x: x.mean())
    var = (lambda x: stop(x.var())) if what == "variance" else (lambda x: x.var())
    return lambda x: (x - mean(x)) / jnp.sqrt(var(x) + 1e-5) * jnp.arange(1.0, 6.0)


def counted():
    """A function that is another one each time it is called."""
    calls = []

    def f(x):
        calls.append(1)
        return x * len(calls)

    return f


def batched_twice(x):
    """2 where a rule is called on a batch, as seen from a rule that reads it; 1 alone."""
    f = jax.custom_batching.custom_vmap(lambda x: jnp.ones(()) + 0 * x.sum())
    f.def_vmap(lambda size, batched, x: (2 * jnp.ones(size), True))
    return f(x)


def in_one_branch(rule):
    inner = backward(lambda x: x**2, rule)
    return lambda x: jax.lax.cond(x.sum() > 1, inner, jnp.sin, x)


# name: (function, arguments)
RIGHT = {
    "elementwise": (jnp.sin, (X,)),
    "six hundred outputs": (jnp.tanh, (np.linspace(-3, 3, 600, dtype=np.float32),)),
    "large input": (lambda x: x**3, (X * 1e6,)),
    "tiny input": (lambda x: x**3, (X * 1e-8,)),
    "leaves of unlike size": (lambda p: p["a"] * p["b"].sum(), ({"a": X * 1e6, "b": X * 1e-8},)),
    "edge of the domain": (lambda x: jnp.sqrt(x).sum(), (np.array([1e-8, 1.0], np.float32),)),
    "close to a pole": (lambda x: 1 / (1 - x), (np.float32(0.999),)),
    "power at its edge": (lambda x: x**2.5, (np.zeros(2, np.float32),)),
    "integer leaf": (lambda n, x: x**n, (3, X)),
    "boolean leaf": (lambda flag, x: jnp.where(flag, jnp.sin(x), x**2), (np.array([True, False] * 2 + [True]), X)),
    "random key": (lambda key, x: x * jax.random.normal(key, x.shape), (jax.random.key(0), X)),
    "forward only": (loop, (np.float32(1.5),)),
    "reverse only": (backward(jnp.sin, lambda x, w: w * jnp.cos(x)), (X,)),
    "bfloat16": (lambda x: jnp.tanh(x).sum(), (jnp.asarray(X, jnp.bfloat16),)),
    "complex": (lambda z: jnp.abs(z**2 * (1 + 2j)), (np.array([1 + 2j, 3 - 1j], np.complex64),)),
    "float32 only": (float32_only, (np.float32(1.2),)),
    "scan": (unrolled, (np.float32(0.7),)),
    "product of matrices": (lambda p: jnp.tanh(p["a"] @ p["b"]), ({"a": MATRIX, "b": MATRIX.T @ MATRIX},)),
    "constant": (lambda x: jnp.zeros(3) + 0 * x.sum(), (X,)),
    "piecewise, off its kinks": (lambda x: jnp.abs(x - 0.5).sum() + jax.nn.relu(x - 1.0).sum(), (X,)),
    "rounded, and flat": (lambda x: jnp.round(10 * x) + x, (X + 0.013,)),
    "saturated": (lambda x: jnp.tanh(3 * x), (X,)),
    "log of a sum": (jax.nn.logsumexp, (X * 100,)),
    "sort and gather": (lambda x: jnp.sort(x)[::2] * x[1], (X,)),
    "solve": (lambda a: jnp.linalg.solve(a @ a.T + jnp.eye(3), jnp.ones(3)), (MATRIX,)),
    "right rule by parts": (forward(lambda x: jnp.sum(x**3), lambda x, t: jnp.vdot(3 * x**2, t)), (X,)),
    "smooth join": (lambda x: x * jnp.abs(x), (np.zeros(2, np.float32),)),
    "one leaf of numbers far apart": (lambda x: jnp.log(x).sum(), (np.array([1e-18, 1.0, 1e15], np.float32),)),
    "close to a kink": (lambda x: jax.nn.relu(x).sum(), (np.array([1e-6, -1e-6, 2.0], np.float32),)),
    "close to another pole": (lambda x: jnp.log(jnp.abs(x - 1)), (np.float32(1.0001),)),
    "text and number that are no arrays": (lambda x, n, how: getattr(jnp, how)(x) * jnp.ones(n), (X, 5, "sin")),
    "no leaf in a place": (lambda p: p["a"] ** 2, ({"a": X, "b": None},)),
    "integer output beside": (lambda x: (jnp.argsort(x), jnp.sin(x)), (X,)),
    "float16": (lambda x: jnp.sin(x) * 2, (X.astype(np.float16),)),
    "float32 inside": (lambda x: jnp.sin(x.astype(jnp.float32)).astype(x.dtype) ** 2, (X,)),
    "holomorphic": (lambda z: jnp.exp(1j * z), (Z,)),
    "complex from real": (lambda x: jnp.fft.fft(x), (X,)),
    "dropout with its key": (lambda key, x: x * jax.random.bernoulli(key, 0.5, x.shape), (KEY, X)),
    "implicit solve": (solved(True), (X[:3],)),
    "implicit root": (root(True), (X,)),
    "rule for float32 alone": (table_float32, (X,)),
    "host callback with its rule": (host_sine, (X,)),
    "rematerialized": (jax.checkpoint(lambda x: jnp.sin(jnp.exp(x))), (X,)),
    "cond": (in_one_branch(lambda x, w: 2 * x * w), (X,)),
    "layer norm": (normalized, (X,)),
    "leaf without any effect": (lambda p: normalized(p["x"] + p["shift"]), ({"x": X, "shift": np.float32(0.3)},)),
    "eigenvalues": (lambda a: jnp.linalg.eigvalsh(a @ a.T + jnp.diag(jnp.arange(3.0))), (MATRIX,)),
    "flat minimum": (
        lambda x: jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2),
        (np.ones(4, np.float32),),
    ),
    "huge logits": (lambda z: jax.nn.log_softmax(z)[2], (np.array([1e4, -1e4, 9.999e3], np.float32),)),
    "many outputs": (lambda x: jnp.outer(x, x).ravel(), (np.linspace(0.1, 2, 100, dtype=np.float32),)),
    "another rule of batching": (mapped_otherwise, (X,)),
    "safe norm": (lambda x: jnp.where(x @ x > 0, jnp.sqrt(jnp.where(x @ x > 0, x @ x, 1)), 0), (X,)),
}

# name: (function, arguments, verdict)
WRONG = {
    "factor": (backward(jnp.sin, lambda x, w: 1.5 * w * jnp.cos(x)), (X,), "wrong"),
    "a thousandth": (backward(jnp.sin, lambda x, w: 1.001 * w * jnp.cos(x)), (X,), "wrong"),
    "sign": (forward(jnp.cos, lambda x, t: jnp.sin(x) * t), (X,), "wrong"),
    "all zero, many outputs": (
        forward(jnp.sin, lambda x, t: 0 * t),
        (np.linspace(0, 9, 600, dtype=np.float32),),
        "wrong",
    ),
    "straight through": (forward(lambda x: jnp.round(x), lambda x, t: t), (X,), "wrong"),
    "stop_gradient": (lambda x: x * jax.lax.stop_gradient(x), (X,), "wrong"),
    "one of ten thousand": (
        forward(lambda x: jnp.sum(x**3), lambda x, t: jnp.vdot((3 * x**2).at[7777].mul(1.5), t)),
        (np.linspace(0.5, 2, 10_000, dtype=np.float32),),
        "wrong",
    ),
    "cotangent squared": (backward(lambda x: jnp.sum(x**2), lambda x, w: w * w * 2 * x), (X,), "wrong"),
    "cotangent ignored": (backward(lambda x: jnp.sum(x**2), lambda x, w: 2 * x), (X,), "wrong"),
    "transposed": (backward(lambda a: a @ a, lambda a, w: w @ a + a @ w), (MATRIX[:, :3],), "wrong"),
    "forgotten sum": (backward(lambda x: x.sum() * jnp.ones(3), lambda x, w: w[0] * jnp.ones_like(x)), (X,), "wrong"),
    "residual of another input": (backward(lambda x: jnp.exp(x), lambda x, w: w * x), (X,), "wrong"),
    "batch norm without its mean": (
        backward(lambda x: x - x.mean(), lambda x, w: w),
        (X,),
        "wrong",
    ),
    "only in one branch": (
        backward(lambda x: jnp.where(x > 1, x**2, x), lambda x, w: w * jnp.where(x > 1, x, 1)),
        (X,),
        "wrong",
    ),
    "tiny leaf": (
        lambda p: backward(jnp.sin, lambda x, w: 2 * w * jnp.cos(x))(p["a"]) + p["b"].sum(),
        ({"a": X * 1e-6, "b": X * 10},),
        "wrong",
    ),
    "one output of many": (
        forward(lambda x: jnp.sin(x) * jnp.ones(600), lambda x, t: jnp.cos(x) * t * jnp.ones(600).at[321].set(0.9)),
        (np.float32(0.4),),
        "wrong",
    ),
    "one of very many outputs": (
        forward(lambda x: jnp.sin(x) * jnp.ones(9000), lambda x, t: jnp.cos(x) * t * jnp.ones(9000).at[4321].set(0)),
        (np.float32(0.4),),
        "wrong",
    ),
    "only under vmap": (
        backward(lambda x: jnp.sin(x), lambda x, w: w * jnp.cos(x) * batched_twice(x)),
        (X,),
        "wrong",
    ),
    "only in one branch of cond": (in_one_branch(lambda x, w: x * w), (X,), "wrong"),
    "inside a scan": (
        lambda x: jax.lax.scan(lambda c, _: (backward(jnp.sin, lambda x, w: w)(c), c), x, length=4)[1],
        (X,),
        "wrong",
    ),
    "implicit solve without transposing": (solved(False), (X[:3],), "wrong"),
    "implicit root by one step": (root(False), (X,), "wrong"),
    "mean stopped": (normalized_with_stopped("mean"), (X,), "wrong"),
    "variance stopped": (normalized_with_stopped("variance"), (X,), "wrong"),
    "everything stopped": (lambda x: jax.lax.stop_gradient(jnp.sin(x)), (X,), "wrong"),
    "conjugated": (backward(lambda z: z**2, lambda z, w: w * 2 * jnp.conj(z)), (Z,), "wrong"),
    "reversed sum not reversed": (backward(lambda x: jnp.cumsum(x), lambda x, w: jnp.cumsum(w)), (X,), "wrong"),
    "clipped inside": (backward(lambda x: x**3, lambda x, w: jnp.clip(w * 3 * x**2, -0.5, 0.5)), (X,), "wrong"),
    "sign of the cotangent": (backward(jnp.sin, lambda x, w: jnp.sign(w) * jnp.cos(x)), (X,), "wrong"),
    "swapped arguments": (
        lambda p: backward(lambda q: q[0] * jnp.sin(q[1]), lambda q, w: (w * q[0] * jnp.cos(q[1]), w * jnp.sin(q[1])))(
            p
        ),
        ((X, X[::-1].copy()),),
        "wrong",
    ),
    "symmetric alone": (
        backward(lambda a: (a @ a).sum(0), lambda a, w: jnp.outer(w, a.sum(0)) * 2),
        (MATRIX[:, :3],),
        "wrong",
    ),
    "a tenth in bfloat16": (
        forward(jnp.tanh, lambda x, t: 1.3 * (1 - jnp.tanh(x) ** 2) * t),
        (jnp.asarray(X, jnp.bfloat16),),
        "wrong",
    ),
    "wrong for a rule of float32": (
        backward(lambda x: jax.lax.mul(x, jnp.float32(3) * jnp.ones_like(x, jnp.float32)), lambda x, w: w * 2),
        (X,),
        "wrong",
    ),
    "mask of another draw": (
        lambda key, x: backward(
            lambda x: x * jax.random.bernoulli(key, 0.5, x.shape),
            lambda x, w: w * jax.random.bernoulli(jax.random.fold_in(key, 1), 0.5, x.shape),
        )(x),
        (KEY, np.linspace(1, 2, 32, dtype=np.float32)),
        "wrong",
    ),
    "norm at zero": (jnp.linalg.norm, (np.zeros(3, np.float32),), "nan"),
    "where with an unused root": (
        lambda x: jnp.where(x > 0, jnp.sqrt(x), 0.0).sum(),
        (np.array([-1.0, 2.0], np.float32),),
        "nan",
    ),
    "root at zero": (jnp.sqrt, (np.float32(0),), "nan"),
    "power at zero": (lambda x: jnp.sum(x**0.5), (np.array([0.0, 1.0], np.float32),), "nan"),
    "spread of equal numbers": (lambda x: jnp.std(x), (np.ones(4, np.float32),), "nan"),
    "rule that divides by zero": (forward(lambda x: x**2, lambda x, t: x**3 / x * 2 * t), (np.float32(0),), "nan"),
    "root of a square of zero": (lambda x: jnp.sqrt(x @ x) * 2, (np.zeros(3, np.float32),), "nan"),
    "overflow in the derivative alone": (lambda x: jnp.where(x < 100, x, jnp.exp(x * x)).sum(), (X * 40,), "nan"),
    "one of many at a kink": (lambda x: jnp.abs(x - 1).sum(), (np.linspace(0, 2, 1001, dtype=np.float32),), "kink"),
    "clip at its bound": (lambda x: jnp.clip(x, 0, 1) * 2, (np.array([0.5, 1.0], np.float32),), "kink"),
    "sort of equal numbers": (lambda x: jnp.sort(x)[0], (np.array([1.0, 1.0, 2.0], np.float32),), "kink"),
    "pieces that meet": (lambda x: jnp.where(x > 1, x**2, x), (np.float32(1),), "kink"),
    "abs at zero": (jnp.abs, (np.float32(0),), "kink"),
    "relu at zero": (lambda x: jax.nn.relu(x).sum(), (np.array([1.0, 0.0, -1.0], np.float32),), "kink"),
    "tie in a maximum": (lambda x: jnp.max(x), (np.array([1.0, 2.0, 2.0], np.float32),), "kink"),
    "not finite": (lambda x: x * jnp.nan, (X,), "undecided"),
    "random without a key": (lambda x: x * np.random.default_rng().normal(), (X,), "undecided"),
    "a step at the point": (lambda x: jnp.floor(x), (np.float32(2),), "undecided"),
    "cancellation in float32": (lambda x: x - jnp.log(jnp.exp(x) - 1), (np.float32(15),), "precision"),
    "pole": (lambda x: 1 / x, (np.float32(0),), "undecided"),
    "another function each time": (counted(), (X,), "undecided"),
    "tie of an argmax": (
        lambda x: jnp.arange(3.0)[jnp.argmax(x)],
        (np.array([2.0, 1.0, 2.0], np.float32),),
        "undecided",
    ),
    "moments far from zero": (lambda x: jnp.mean(x * x) - x.mean() ** 2, (300_000 + X,), "precision"),
    "cosine near zero": (lambda x: (1 - jnp.cos(x)) / x**2, (np.array([3e-4, 5e-4], np.float32),), "precision"),
    "sum in bfloat16": (
        lambda x: jax.lax.scan(lambda c, a: (c + a * a, None), jnp.zeros((), x.dtype), x)[0] ** 2 * 1e-2,
        (jnp.ones(4000, jnp.bfloat16),),
        "precision",
    ),
    "a sigmoid that saturates float32": (lambda x: jax.nn.sigmoid(50 * x), (X,), "precision"),
}

# right at first order
SECOND = {
    "slope stopped": forward(lambda x: jnp.sum(x**3), lambda x, t: jnp.vdot(jax.lax.stop_gradient(3 * x**2), t)),
    "slope stopped in reverse": backward(
        lambda x: jnp.sum(jnp.sin(x)), lambda x, w: w * jax.lax.stop_gradient(jnp.cos(x))
    ),
    "coupling lost": forward(
        lambda x: x[0] * x[1] ** 2, lambda x, t: jax.lax.stop_gradient(x[1] ** 2) * t[0] + 2 * x[0] * x[1] * t[1]
    ),
    "one of many": forward(
        lambda x: jnp.sum(x**3),
        lambda x, t: jnp.vdot(3 * jnp.where(jnp.arange(5) == 2, jax.lax.stop_gradient(x), x) ** 2, t),
    ),
    "curvature halved": forward(
        lambda x: jnp.sum(x**3), lambda x, t: jnp.vdot(1.5 * (x**2 + jax.lax.stop_gradient(x**2)), t)
    ),
}
