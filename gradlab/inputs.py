"""What is checked before anything is computed: every mistake gets its name, its place and its cure here.

Shapes are found with `jax.eval_shape`, so a wrong call costs a trace and never a computation.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gradlab.errors import (
    ArgumentError,
    DtypeError,
    EmptyInputError,
    NotDifferentiableError,
    NotScalarError,
    OptionError,
    ShapeError,
    StructureError,
    UnknownModeError,
    first_sentence,
    nearest,
)
from gradlab.types import MODES, Argnums, Fn, PyTree


class Focus(NamedTuple):
    """f seen as a function of the differentiated arguments alone, and those arguments."""

    f: Callable[[PyTree], Any]
    x: PyTree


def require_function(f: object, operator: str) -> None:
    """Raise `ArgumentError` unless f can be called."""
    if not callable(f):
        raise ArgumentError(
            f"{operator} takes a function as its first argument, but got {type(f).__name__}: {f!r:.60}. "
            f"Pass the function itself, and its arguments to what {operator} returns: {operator}(f)(x)."
        )


def require_callable(f: object, name: str, cure: str = "") -> None:
    """Raise `ArgumentError` unless the argument of this name can be called."""
    if not callable(f):
        raise ArgumentError(f"{name} must be a function, but got {type(f).__name__}: {f!r:.60}. {cure}".rstrip())


def misfit(f: Callable[..., Any], *args: Any) -> TypeError | None:
    """Why f cannot be called with these arguments; None where it can, or has no signature: then a trace will tell.

    >>> misfit(lambda x: x, 1, 2)
    TypeError('too many positional arguments')
    """
    try:
        inspect.signature(f).bind(*args)
    except TypeError as error:
        return error
    except ValueError:
        pass
    return None


# What others call the two directions; by its letters alone "backward" is nearest to "forward".
_ELSEWHERE = {"jvp": "forward", "jacfwd": "forward", **dict.fromkeys(("backward", "vjp", "jacrev"), "reverse")}


def require_mode(mode: object, of: str) -> None:
    """Raise `UnknownModeError` unless `mode` is one of `modes(of)`."""
    require_quantity(of)
    if mode not in MODES[of]:
        meant = nearest(_ELSEWHERE.get(str(mode), mode), MODES[of])
        raise UnknownModeError(f"{of} has no mode {mode!r}; known are {', '.join(MODES[of])}.{meant}")


def require_quantity(of: object) -> None:
    """Raise `UnknownModeError` unless `of` is a derivative that has modes."""
    if of not in MODES:
        raise UnknownModeError(f"There is no quantity {of!r}; known are {', '.join(MODES)}.{nearest(of, MODES)}")


def require_count(value: object, name: str, *, least: int = 1, none: bool = False) -> None:
    """Raise `OptionError` unless `value` is an integer of at least `least` (or None, where that is allowed)."""
    if none and value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        allowed = f"an integer of at least {least}" + (" or None" if none else "")
        raise OptionError(f"{name} must be {allowed}, but got {value!r}.")


def require_key(key: Any) -> None:
    """Raise `OptionError` unless `key` is one random key, of the new kind or the old."""
    dtype = getattr(key, "dtype", None)
    typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key) and key.shape == ()
    raw = dtype == jnp.uint32 and jnp.ndim(key) == 1
    if not (typed or raw):
        raise OptionError(f"key must be one random key, such as jax.random.key(0), but got {key!r:.60}.")


def require_argnums(argnums: object) -> None:
    """Raise `OptionError` unless argnums is an integer or a tuple of different integers."""
    numbers = argnums if isinstance(argnums, tuple) else (argnums,)
    if not numbers or any(isinstance(i, bool) or not isinstance(i, int) for i in numbers):
        raise OptionError(f"argnums must be an integer or a tuple of integers, but got {argnums!r}.")
    if len(set(numbers)) < len(numbers):
        raise OptionError(f"argnums must name each argument once, but got {argnums!r}.")


def focus(f: Fn, argnums: Argnums, args: tuple, kwargs: dict) -> Focus:
    """Bind every argument that is not differentiated, and check those that are.

    Args:
        f: the function.
        argnums: which positional arguments are differentiated; negative ones count from the end.
        args, kwargs: the call.

    Returns:
        `(g, x)` with `g(x) == f(*args, **kwargs)`; x is `args[argnums]`, or a tuple of them for a tuple.

    Raises:
        ArgumentError: argnums points past the arguments.
        NotDifferentiableError, EmptyInputError: see `require_differentiable`.
    """
    single = isinstance(argnums, int)
    numbers = (argnums,) if isinstance(argnums, int) else argnums
    for i in numbers:
        if not -len(args) <= i < len(args):
            raise ArgumentError(
                f"argnums={argnums} points at args[{i}], but the call has {len(args)} positional argument(s). "
                "Pass what is differentiated by position."
            )
    places = [i % len(args) for i in numbers]
    if len(set(places)) < len(places):
        raise OptionError(f"argnums={argnums} names one argument twice in a call of {len(args)} arguments.")
    for i in places:
        require_differentiable(args[i], f"args[{i}]")

    def g(x: PyTree) -> Any:
        full = list(args)
        for i, value in zip(places, (x,) if single else x, strict=True):
            full[i] = value
        return f(*full, **kwargs)

    return Focus(g, args[places[0]] if single else tuple(args[i] for i in places))


def require_differentiable(x: PyTree, name: str) -> None:
    """Raise unless x holds at least one array, and only floating or complex ones.

    Raises:
        EmptyInputError: x has no leaf, or only leaves of size zero.
        NotDifferentiableError: a leaf is no number, or of an integer, bool or key dtype.
    """
    leaves = jax.tree_util.tree_leaves_with_path(x)
    if not leaves:
        raise EmptyInputError(f"{name} is an empty pytree ({x!r:.40}): there is nothing to differentiate by.")
    for path, leaf in leaves:
        where = name + jax.tree_util.keystr(path)
        dtype = _dtype(leaf, where)
        if not jnp.issubdtype(dtype, jnp.inexact):
            raise NotDifferentiableError(
                f"{where} has dtype {dtype}, which has no tangent; expected a floating or complex array. {_cure(dtype)}"
            )
    if all(jnp.size(leaf) == 0 for _, leaf in leaves):
        raise EmptyInputError(f"{name} holds no number (every leaf has size 0): there is nothing to differentiate by.")


def _dtype(leaf: Any, where: str) -> Any:
    # A string has a NumPy dtype, so it is asked for before the dtype.
    if hasattr(leaf, "dtype") or isinstance(leaf, (bool, int, float, complex)):
        return jnp.result_type(leaf)
    raise NotDifferentiableError(
        f"{where} is a {type(leaf).__name__}, not an array: {leaf!r:.60}. Expected a floating or complex array; "
        "close over it, or leave it out of argnums."
    )


def _cure(dtype: Any) -> str:
    if jnp.issubdtype(dtype, jax.dtypes.prng_key):
        return "Close over the key, or leave it out of argnums."
    return "Convert it with jnp.asarray(x, jnp.float32), or leave it out of argnums."


def require_like(v: PyTree, x: PyTree, name: str, of: str) -> PyTree:
    """Return v with the dtypes of x, after checking that it lives in the same space.

    Args:
        v: a tangent or cotangent.
        x: the pytree (or shapes) it belongs to.
        name, of: what v and x are called in the error.

    Raises:
        StructureError: another pytree structure.
        ShapeError: a leaf of another shape.
        DtypeError: a leaf that cannot be cast without loss of kind (complex to real).
    """
    given: Any = jax.tree.structure(v)
    expected: Any = jax.tree.structure(x)
    if given != expected:
        raise StructureError(
            f"{name} must have the structure of {of}, {expected}, but has {given}. "
            f"Build it with jax.tree.map(jnp.ones_like, …) from {of}."
        )
    return jax.tree_util.tree_map_with_path(lambda path, a, b: _leaf_like(a, b, name, of, path), v, x)


def _leaf_like(a: Any, b: Any, name: str, of: str, path: tuple) -> jax.Array:
    where, there = name + jax.tree_util.keystr(path), of + jax.tree_util.keystr(path)
    dtype, wanted = _dtype(a, where), jnp.result_type(b)
    if jnp.shape(a) != jnp.shape(b):
        raise ShapeError(f"{where} has shape {jnp.shape(a)}, but {there} has shape {jnp.shape(b)}; they must be equal.")
    if not jnp.can_cast(dtype, wanted, "same_kind"):
        raise DtypeError(f"{where} has dtype {dtype}, which {there} of dtype {wanted} cannot hold.")
    return jnp.asarray(a, wanted)


def is_traced(tree: PyTree) -> bool:
    """Whether a leaf has no value yet, as under `jit`, `vmap` or `grad`."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))


@contextmanager
def tracing() -> Iterator[None]:
    """A scope in which a function is traced; one that Python steers by a traced value gets an error that says so.

    Raises:
        ArgumentError: f needs values where a trace has none.
    """
    try:
        yield
    except (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError) as error:
        raise ArgumentError(
            f"f cannot be traced: {first_sentence(error)}. Python's if, float() and NumPy need values, which a trace "
            "lacks. Use jnp.where, jax.lax.cond or jax.numpy; integers, bools and strings may stay arguments."
        ) from error


def output_shape(f: Callable[[PyTree], Any], x: PyTree) -> PyTree:
    """The output of f as a pytree of `jax.ShapeDtypeStruct`, found without computing.

    Raises:
        EmptyInputError: f returns no array.
        NotDifferentiableError: f returns an array of integers, bools or keys.
    """
    y = jax.eval_shape(f, x)
    leaves = jax.tree_util.tree_leaves_with_path(y)
    if not leaves:
        raise EmptyInputError(f"f returns no array ({y!r:.40}): there is nothing to differentiate. Return a value.")
    for path, leaf in leaves:
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            raise NotDifferentiableError(
                f"The output{jax.tree_util.keystr(path)} of f has dtype {leaf.dtype}, which has no derivative; "
                "expected floating or complex. Return such values through has_aux=True, or cast them."
            )
    return y


def require_scalar(f: Callable[[PyTree], Any], x: PyTree, operator: str) -> Any:
    """Raise `NotScalarError` unless f(x) is one real number of shape `()`; return its shape and dtype."""
    y = output_shape(f, x)
    leaves = jax.tree.leaves(y)
    if not isinstance(y, jax.ShapeDtypeStruct) or y.shape != ():
        given = f"shape {leaves[0].shape}" if len(leaves) == 1 else f"a pytree of {len(leaves)} arrays, {_listed(y)}"
        raise NotScalarError(
            f"{operator} needs a function with one real scalar output, but f returns {given}. "
            "Reduce it (sum, mean), return extra values through has_aux=True, or take gradlab.jacobian."
        )
    if jnp.issubdtype(y.dtype, jnp.complexfloating):
        raise NotScalarError(
            f"{operator} needs a real scalar output, but f returns {y.dtype}. "
            "Return its real part, or jnp.abs(z) ** 2; for holomorphic functions, use jax.grad(f, holomorphic=True)."
        )
    return y


def _listed(tree: PyTree, most: int = 4) -> str:
    """The first leaves of a pytree of shapes, each with its place.

    >>> _listed({"a": jax.ShapeDtypeStruct((2, 3), "float32"), "b": (jax.ShapeDtypeStruct((), "int32"),)})
    "['a'] of shape (2, 3), ['b'][0] of shape ()"
    """
    named = jax.tree_util.tree_leaves_with_path(tree)
    parts = [f"{jax.tree_util.keystr(path)} of shape {leaf.shape}" for path, leaf in named[:most]]
    return ", ".join(parts) + ", ..." * (len(named) > most)


def require_fit(f: Callable[[PyTree], Any], x: PyTree, of: str) -> None:
    """Raise the error that says so where f has no derivative of this kind at x."""
    if of == "jacobian":
        output_shape(f, x)
    elif of == "hessian":
        require_real(x, output_shape(f, x), of)
    else:
        y = require_scalar(f, x, of)
        if of != "gradient":
            require_real(x, y, of)


def split_aux(f: Callable[[PyTree], Any], has_aux: bool) -> Callable[[PyTree], Any]:
    """The part of f that is differentiated: f itself, or the first of its two outputs.

    Raises:
        StructureError: has_aux=True, and f does not return a pair (raised when the result is called).
    """
    if not has_aux:
        return f

    def first(x: PyTree) -> Any:
        result = f(x)
        if not isinstance(result, tuple) or len(result) != 2:
            raise StructureError(
                f"With has_aux=True, f must return a pair (value, aux), but it returns {type(result).__name__}. "
                "Return two values, or drop has_aux."
            )
        return result[0]

    return first


def require_convention(x: PyTree, y: PyTree, mode: str) -> None:
    """Raise `NotDifferentiableError` where complex values leave a dense Jacobian without a meaning in this mode.

    Forward mode needs real inputs and reverse mode real outputs; a function from complex to complex has a complex
    Jacobian only when it is holomorphic, which cannot be seen from outside.
    """
    inward, outward = _any_complex(x), _any_complex(y)
    either = inward or outward
    blocked = {"forward": inward, "reverse": outward, "auto": inward and outward}.get(mode, either)
    if blocked:
        side = "complex inputs" if inward and mode != "reverse" else "complex outputs"
        raise NotDifferentiableError(
            f"jacobian(mode={mode!r}) got {side} (inputs {'complex' if inward else 'real'}, outputs "
            f"{'complex' if outward else 'real'}); forward mode needs real inputs and reverse mode real outputs. "
            "Use the other mode, differentiate real and imaginary parts, or jax.jacfwd(f, holomorphic=True)."
        )


def require_real(x: PyTree, y: PyTree, operator: str) -> None:
    """Raise `NotDifferentiableError` unless inputs and outputs are real: second derivatives have no convention else."""
    if _any_complex(x) or _any_complex(y):
        raise NotDifferentiableError(
            f"{operator} needs real inputs and outputs, but got complex ones. "
            "Differentiate by the real and imaginary parts: f(re + 1j * im)."
        )


def _any_complex(tree: PyTree) -> bool:
    return any(jnp.issubdtype(jnp.result_type(leaf), jnp.complexfloating) for leaf in jax.tree.leaves(tree))
