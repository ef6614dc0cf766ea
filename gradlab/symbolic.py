"""What a symbolic derivative of a deep composition costs to write down, beside the program that JAX makes of it.

The derivative of x₀ ↦ xₙ with xₖ₊₁ = s(xₖ) is one product, s'(x₀) s'(x₁) ⋯ s'(xₙ₋₁). Written out as an expression of
x₀, every factor holds the whole nest below it: a step that reads its argument once gives a length that grows with n²,
and one that reads it twice, as 4 x (1 − x) does, a length that grows like 2ⁿ or faster. Naming what repeats takes most
of that back. Automatic differentiation never writes the expression: it keeps each xₖ, so each step adds the same few
operators.
"""

import operator
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from html import escape
from importlib import import_module
from math import isfinite
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from gradlab import inputs
from gradlab.errors import ArgumentError, MissingExtraError, OptionError
from gradlab.jaxprs import Listing, Operator, listing, place, trace, user_frame
from gradlab.operators import gradient
from gradlab.types import ScalarFn

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Expression = Any  # a SymPy expression; SymPy is optional, so its types are not named here

COLUMNS = {
    "function": "the function in JAX",
    "automatic": "automatic derivative in JAX",
    "shared": "symbolic derivative, repeats named",
    "symbolic": "symbolic derivative, written out",
}


@dataclass(frozen=True)
class Swell:
    """Lengths of the derivative of a composition, in operators, one entry a depth.

    Attributes:
        depths: how many times the step is applied, ascending.
        function: operators of the composition's program in JAX.
        automatic: of its gradient's, by reverse mode.
        shared: of the symbolic derivative once common subexpressions have names.
        symbolic: of the symbolic derivative, written out.
        name: the step's name.
    """

    depths: tuple[int, ...]
    function: tuple[int, ...]
    automatic: tuple[int, ...]
    shared: tuple[int, ...]
    symbolic: tuple[int, ...]
    name: str

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON scalars, lists and dicts."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Draw the lengths over the depth, on a logarithmic scale."""
        from gradlab import plots

        ax = plots.axes() if ax is None else ax
        for (column, label), color in zip(reversed(COLUMNS.items()), plots.COLORS, strict=False):
            ax.plot(self.depths, getattr(self, column), "o-", ms=4, color=color, label=label)
        ax.set(yscale="log", xlabel="depth", ylabel="operators", title=self.name)
        ax.grid(alpha=0.25)
        ax.legend(frameon=False)
        return ax

    def __str__(self) -> str:
        rows = zip(*(map(str, column) for column in (self.depths, *self._columns())), strict=True)
        table = [("depth", *COLUMNS), *rows]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = ["  ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)) for row in table]
        return "\n".join([f"operators in the derivative of {self.name}, composed with itself", *lines])

    def __repr__(self) -> str:
        return f"Swell({self.name}: depths {self.depths[0]} … {self.depths[-1]})"

    def _repr_html_(self) -> str:
        return f"<pre>{escape(str(self))}</pre>"

    def _columns(self) -> list[tuple[int, ...]]:
        return [getattr(self, column) for column in COLUMNS]


def swell(step: ScalarFn, depths: Iterable[int]) -> Swell:
    """How long the derivative of sⁿ = s ∘ s ∘ … ∘ s is: as an expression in SymPy, and as a program in JAX.

    The expression is what `sympy.diff` returns, unsimplified, counted by `operations`; the program is that of
    `gradient`. SymPy's time grows with the expression: for 4 x (1 − x), depth 12 takes a second and depth 16 a minute.

    Args:
        step: s, a JAX function of one real number that returns one, made of arithmetic and elementary functions.
        depths: each n, positive.

    Returns:
        The lengths at each depth.

    Raises:
        MissingExtraError: SymPy is not installed.
        OptionError: depths holds nothing, or something other than positive integers, or one too deep for SymPy.
        ArgumentError: step is no function, or uses an operator that SymPy has no word for here.
        NotScalarError: step does not return one real number.

    Source: row 7.1 of the tutorial; Baydin et al., Automatic differentiation in machine learning: a survey, JMLR 18
    (2018), table 1, which writes out the logistic map below.

    >>> logistic_map = lambda x: 4 * x * (1 - x)
    >>> found = swell(logistic_map, [1, 2, 4, 8])
    >>> found.automatic
    (8, 16, 32, 64)
    >>> found.symbolic
    (2, 25, 316, 16576)
    """
    inputs.require_function(step, "swell")
    depths = _ascending(depths)
    sympy = _sympy()
    with inputs.tracing():
        inputs.require_scalar(step, _scalar(), "swell")
    name = getattr(step, "__name__", type(step).__name__).replace("<lambda>", "the step")
    x = sympy.Symbol("x", real=True)
    rows = [_lengths(sympy, compose(step, depth), x, depth) for depth in depths]
    function, automatic, shared, symbolic = zip(*rows, strict=True)
    return Swell(depths, function, automatic, shared, symbolic, name)


def compose(step: Callable[[Any], Any], depth: int) -> Callable[[Any], Any]:
    """sⁿ: the step applied n times, x ↦ s(s(… s(x))), unrolled.

    Args:
        step: s, from any set to itself.
        depth: n, at least 1.

    Raises:
        OptionError: depth is not a positive integer.

    Source: row 7.1 of the tutorial.

    >>> compose(lambda x: 2 * x, 10)(1)
    1024
    """
    inputs.require_count(depth, "depth")

    def composed(x: Any) -> Any:
        for _ in range(depth):
            x = step(x)
        return x

    return composed


def expression(f: ScalarFn, x: str | Expression) -> Expression:
    """f(x) as a SymPy expression: f is traced by JAX, and its operators are read in SymPy's words.

    Integers and fractions with a small power of two below the line are exact; other numbers are floats.

    Args:
        f: a JAX function of one real number that returns one.
        x: what stands for the number: a name, which becomes a real symbol, or any SymPy expression.

    Raises:
        MissingExtraError: SymPy is not installed.
        ArgumentError: f is no function, or uses an operator that SymPy has no word for here; x is neither.
        NotScalarError: f does not return one real number.
        OptionError: f nests deeper than SymPy can follow.

    Source: Griewank and Walther, Evaluating Derivatives (2nd ed., 2008), section 2.2: a program is a list of operators.

    >>> y = expression(lambda x: jnp.tanh(x) ** 2 + 0.5 * x, "x")
    >>> y
    x/2 + tanh(x)**2
    >>> y.diff()
    (2 - 2*tanh(x)**2)*tanh(x) + 1/2
    """
    inputs.require_function(f, "expression")
    sympy = _sympy()
    if isinstance(x, str):
        x = sympy.Symbol(x, real=True)
    if not isinstance(x, sympy.Expr):
        raise ArgumentError(f"x must be a name or a SymPy expression, but got {type(x).__name__}: {x!r:.60}. Try 'x'.")
    with inputs.tracing():
        inputs.require_scalar(f, _scalar(), "expression")
    with _followed("The expression"):
        return _read(sympy, listing(trace(f, _scalar())), x)


def operations(expression: Expression) -> int:
    """How many operators a SymPy expression has when it is written out: a sum or product of k terms has k − 1.

    Each distinct part is walked through once, however often it is written: a derivative of millions of operators is
    counted from its hundreds of parts.

    Args:
        expression: any SymPy expression.

    Raises:
        ArgumentError: it is none.
        OptionError: it nests deeper than Python's recursion limit.

    Source: Griewank and Walther, Evaluating Derivatives (2nd ed., 2008), section 1: expressions swell, programs do not.

    >>> import sympy
    >>> x, y = sympy.symbols("x y")
    >>> operations(sympy.sin(x * y) + x * y + 1)
    5
    """
    counted: dict[Expression, int] = {}

    def count(part: Expression) -> int:
        if part not in counted:
            own = max(1, len(part.args) - 1) if part.args else 0
            counted[part] = own + sum(count(arg) for arg in part.args)
        return counted[part]

    if not hasattr(expression, "args"):
        raise ArgumentError(
            f"operations takes a SymPy expression, but got {type(expression).__name__}: {expression!r:.60}. "
            "Of a JAX function, take operations(expression(f, 'x'))."
        )
    with _followed("The expression"):
        return count(expression)


def _lengths(sympy: Any, f: ScalarFn, x: Expression, depth: int) -> tuple[int, int, int, int]:
    """Operators of f, of its gradient, and of its symbolic derivative with and without names for what repeats."""
    program = listing(trace(f, _scalar()))
    with _followed(f"At depth {depth}, the expression"):
        derivative = sympy.diff(_read(sympy, program, x), x)
        named, (rest,) = sympy.cse(derivative)
        shared = operations(rest) + sum(operations(part) for _, part in named)
        written_out = operations(derivative)
    return _length(program), _length(listing(trace(gradient(f), _scalar()))), shared, written_out


@contextmanager
def _followed(what: str) -> Iterator[None]:
    """A scope in which SymPy walks through an expression by recursion; one too deep for it gets an error that says so.

    Raises:
        OptionError: Python's recursion limit is met.
    """
    try:
        yield
    except RecursionError as error:
        raise OptionError(
            f"{what} nests deeper than SymPy can follow within Python's recursion limit. "
            "Compose fewer steps: how the derivative grows shows within the first ten."
        ) from error


def _length(program: Listing) -> int:
    """Operators; one that only stands for the rule of those before it is none."""
    return sum(op.taken is None for op in program.operators)


def _read(sympy: Any, program: Listing, x: Expression) -> Expression:
    """Run a program of one number on a SymPy expression."""
    words = _words(sympy)
    values: dict[int, Expression] = {program.inputs[0]: x}
    read = lambda slot: values[slot] if slot in values else _number(sympy, np.asarray(program.constants[slot])[()])
    for op in program.operators:
        if op.taken is not None:
            values.update((slot, read(taken)) for slot, taken in zip(op.results, op.taken, strict=True))
            continue
        _require_word(op, words)
        operands = [read(slot) for slot in op.operands]
        if op.name == "integer_pow":
            operands.append(int(op.options.removeprefix("y=")))
        values[op.results[0]] = words[op.name](*operands)
    return read(program.outputs[0])


def _words(sympy: Any) -> dict[str, Callable[..., Expression]]:
    """JAX's operators on real numbers in SymPy's words."""
    circular, hyperbolic = ("sin", "cos", "tan", "asin", "acos", "atan", "atan2"), ("sinh", "cosh", "tanh")
    inverse, other = ("asinh", "acosh", "atanh"), ("exp", "log", "sqrt", "erf", "erfc", "digamma", "sign")
    return {name: getattr(sympy, name) for name in (*circular, *hyperbolic, *inverse, *other)} | {
        "add": operator.add,
        "add_any": operator.add,
        "sub": operator.sub,
        "mul": operator.mul,
        "div": operator.truediv,
        "neg": operator.neg,
        "pow": operator.pow,
        "integer_pow": operator.pow,
        "square": lambda a: a**2,
        "rsqrt": lambda a: 1 / sympy.sqrt(a),
        "exp2": lambda a: 2**a,
        "expm1": lambda a: sympy.exp(a) - 1,
        "log1p": lambda a: sympy.log(1 + a),
        "logistic": lambda a: 1 / (1 + sympy.exp(-a)),
        "one_minus_square": lambda a: 1 - a**2,  # of newer JAX
        "lgamma": sympy.loggamma,
        "abs": sympy.Abs,
        "max": sympy.Max,
        "min": sympy.Min,
        "convert_element_type": lambda a: a,
        "copy": lambda a: a,
    }


def _require_word(op: Operator, words: dict[str, Callable[..., Expression]]) -> None:
    """Raise `ArgumentError` unless an operator gives one real number, and SymPy has a word for it."""
    one = len(op.shapes) == 1 and op.shapes[0].shape == () and jnp.issubdtype(op.shapes[0].dtype, jnp.floating)
    if one and op.name in words:
        return
    given = ", ".join(f"{s.dtype}{list(s.shape)}" for s in op.shapes)
    source = place(user_frame(op.frames))
    raise ArgumentError(
        f"The operator {op.name}{f' at {source}' if source else ''}, which returns {given}, cannot be read in SymPy's "
        "words. Make f of arithmetic, powers and elementary functions of real numbers, without arrays, loops, branches."
    )


def _number(sympy: Any, value: Any) -> Expression:
    """A constant: exact where that is short, so that SymPy sees the 1/2 in a power and cancels; else as written."""
    exact = float(value)
    if isfinite(exact) and exact.as_integer_ratio()[1] <= 1024:
        return sympy.Rational(*exact.as_integer_ratio())
    return sympy.Float(str(value)) if isfinite(exact) else sympy.Float(exact)


def _ascending(depths: Iterable[int]) -> tuple[int, ...]:
    if not isinstance(depths, Iterable) or isinstance(depths, (str, bytes)):
        raise OptionError(f"depths must be a sequence of positive integers, but got {depths!r}. Try range(1, 9).")
    given = tuple(int(depth) if isinstance(depth, np.integer) else depth for depth in depths)
    if not given:
        raise OptionError("depths holds nothing; expected positive integers. Try range(1, 9).")
    for i, depth in enumerate(given):
        inputs.require_count(depth, f"depths[{i}]")
    return tuple(sorted(set(given)))


def _scalar() -> jax.ShapeDtypeStruct:
    """One real number in the default precision."""
    return jax.ShapeDtypeStruct((), jnp.result_type(float))


def _sympy() -> Any:
    try:
        return import_module("sympy")
    except ImportError as error:
        raise MissingExtraError(
            "Symbolic derivatives are taken by SymPy, which cannot be imported here. "
            'Install it with: pip install "gradlab-jax[symbolic]".'
        ) from error
