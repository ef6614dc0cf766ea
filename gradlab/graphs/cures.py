"""What to say about an operator that is to blame: what happened at which numbers, and the usual cure."""

from typing import Any

import numpy as np

from gradlab.graphs.cutting import Cut, Reason
from gradlab.graphs.nonfinite import Fault
from gradlab.jaxprs import Operator, called

_WHERE = "put a where on both sides: the operand first, jnp.where(ok, x, 1.0), then the result"
_CLIP = f"clip the operand inside ±(1 − ε), or {_WHERE}."
_ROW = "a row of nothing but −inf has no softmax; keep one entry of every row, or mask with a large finite number."
# For the function of JAX that the user's line calls.
_BY_FUNCTION = {
    "norm": f"the norm of a zero vector has no derivative; add a small ε² inside the root, or {_WHERE}.",
    "std": "the standard deviation of equal numbers has no derivative; take jnp.sqrt(jnp.var(x) + ε).",
    "arctan2": f"the angle of a zero vector has no derivative; {_WHERE}.",
    "hypot": f"the length of a zero vector has no derivative; {_WHERE}.",
    **dict.fromkeys(("logsumexp", "softmax", "log_softmax"), _ROW),
}
_SINGULAR = "the matrix is singular, or nearly so; add a small multiple of the identity, or solve a regularized system."
_EQUAL = (
    "two eigenvalues or singular values are equal, and the vectors have no derivative there; split them, or use a "
    "function of the matrix that needs no vectors."
)
_OVERFLOW = (
    "it overflows; use the form that does not (jax.nn.logsumexp, softmax, log_softmax, softplus, sigmoid), or subtract "
    "the largest number first."
)
_POLE = f"it is infinite at 0 and at the negative integers; {_WHERE}."
_STEEP = f"its slope is infinite at ±1, and there is none beyond; {_CLIP}"
_BY_OPERATOR = {
    "sqrt": f"the slope of a root is infinite at 0, and there is none below; add a small ε inside it, or {_WHERE}.",
    "rsqrt": f"1/√x has no finite value or slope at 0; add a small ε inside the root, or {_WHERE}.",
    "cbrt": f"the slope of a cube root is infinite at 0; {_WHERE}.",
    "log": f"a logarithm needs what is above 0; {_WHERE}, or use jax.scipy.special.xlogy, or jax.nn.log_softmax.",
    "log1p": f"log1p needs what is above −1; clip the operand away from −1, or {_WHERE}.",
    "div": f"a division by zero, or by what is close to it; add a small ε to the denominator, or {_WHERE}.",
    "rem": f"a remainder by zero; {_WHERE}.",
    "pow": f"a power at 0, or of a negative number, has no finite value or slope; {_WHERE}, or use integer exponents.",
    "integer_pow": f"a negative power at 0; {_WHERE}.",
    **dict.fromkeys(("exp", "exp2", "expm1", "sinh", "cosh"), _OVERFLOW),
    **dict.fromkeys(("asin", "acos"), _STEEP),
    **dict.fromkeys(("atanh", "erf_inv"), f"it needs what lies inside ±1; {_CLIP}"),
    "acosh": f"it needs what lies above 1; clip the operand above 1 + ε, or {_WHERE}.",
    "atan2": f"the angle of (0, 0) has no derivative; {_WHERE}.",
    **dict.fromkeys(("lgamma", "digamma", "polygamma"), _POLE),
    "mul": "an infinite factor times zero is NaN, and large factors overflow; keep them in range, or add logarithms.",
    "add": "infinite terms of opposite sign, or a sum that overflows; keep the terms in range.",
    "sub": "the difference of two infinite numbers is NaN; mask with a large finite number instead of infinity.",
    "reduce_sum": "the sum overflows, or holds infinite terms of opposite sign; keep the terms in range.",
    "reduce_prod": "the product overflows; sum logarithms instead.",
    "dot_general": "the products overflow, or an infinite entry meets a zero; keep the entries in range.",
    "convert_element_type": "the number does not fit this dtype; scale it first, or keep the wider dtype here.",
    "cholesky": "the matrix is not positive definite; add a small multiple of the identity.",
    **dict.fromkeys(("lu", "triangular_solve", "custom_linear_solve"), _SINGULAR),
    **dict.fromkeys(("eigh", "eig", "svd"), _EQUAL),
}
_CUTS: dict[Reason, str] = {
    "vanished": "is the last one to get something back: on the way to it, the gradient has shrunk below the smallest "
    "number. Look at Graph.flow(); use residual connections, another activation, or larger initial weights.",
    "saturated": "is so far out that its slope is rounded to exactly zero. Scale its operand down (normalize, smaller "
    "initial weights), or use a loss of the logit (softplus, log_softmax).",
    "dead": "passes nothing on: all of its operand is on the flat side. Look at the scale and the sign of what comes "
    "in, lower the learning rate, or use a leaky variant.",
    "branch": "takes the other branch everywhere, so nothing comes back to this one. Look at the condition.",
    "stopped": "cuts the path on purpose: what passes through it counts as a constant. Remove it if this input should "
    "move.",
    "rounded": "is constant between its jumps, so its slope is zero. Use a straight-through estimator, "
    "x + stop_gradient(round(x) − x), or a smooth function.",
    "rule": "has a rule of its own, which gives zero here. Look at what the rule returns for this argument.",
    "overwritten": "takes other entries, or writes over these, so nothing comes back to them. Look at the indices.",
    "cast": "turns it into integers, which have no derivative. Keep floating numbers up to here.",
    "index": "gives indices, which have no derivative. Use a softmax in place of an argmax.",
    "comparison": "compares, and a comparison has no derivative. Use a smooth step, such as a sigmoid.",
    "discrete": "gives numbers without a derivative. Keep floating numbers up to here.",
    "untaken": "does not use it on the way that is taken here.",
    "factor": "multiplies by what is exactly zero, here and nearby. Look at its other operand.",
    "cancelled": "gives shares that add up to zero, here and nearby: the output does not depend on this input.",
    "unused": "the output does not depend on this input: no operator on the way to it reads it. Use it, or drop it.",
}


def nonfinite(fault: Fault) -> str:
    """One or two sentences on a fault: what happened, at which numbers, and the cure."""
    if fault.operator is None:
        return "what came in is not finite already: look at the inputs, at what f closes over, and at the cotangent."
    op = fault.made.listing.operators[fault.operator]
    what = _called(op) if fault.forward else f"the pullback of {_called(op)}"
    return f"{what} gives a number that is not finite{_numbers(fault)}: {_cure(op)}"


def _numbers(fault: Fault) -> str:
    known = [_number(a) for a in fault.operands if a is not None]
    index = f" at {list(fault.index)}" if fault.index else ""
    read = f" for {' and '.join(known)}" if known else ""
    came = f", where {_number(fault.cotangent)} came back" if fault.cotangent is not None else ""
    return f"{index}{read}{came}"


def _number(a: Any) -> str:
    return f"{np.asarray(a)[()]:.6g}" if np.asarray(a).dtype.kind in "fiuc" else str(a)


def _cure(op: Operator) -> str:
    return (
        _BY_FUNCTION.get(called(op.frames))
        or _BY_OPERATOR.get(op.name)
        or f"keep its operands away from there, or {_WHERE}."
    )


def _called(op: Operator) -> str:
    """The operator, and the function of JAX that the user's line calls to reach it."""
    own, via = op.label or op.name, called(op.frames)
    return f"{own} (in {via})" if via and via not in (own, op.name) else own


def zero(cut: Cut) -> str:
    """One or two sentences on a cut: what cut the path, and the cure."""
    if cut.operator is None:
        return _CUTS["unused"]
    op = cut.made.listing.operators[cut.operator]
    largest = f", whose largest operand is {cut.largest:.3g}," if cut.reason == "saturated" else ""
    return f"{_called(op)}{largest} {_CUTS[cut.reason]}"
