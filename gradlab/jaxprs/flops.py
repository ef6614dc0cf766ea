"""Arithmetic operations of one operator, by counting: what the mathematics needs, whatever a compiler makes of it."""

from math import log2, prod
from typing import Any

from gradlab.jaxprs.reading import CALLS, CUMULATES, REDUCES, called, jaxpr_of, programs

# What moves or makes numbers without arithmetic.
_MOVES = """broadcast_in_dim reshape transpose squeeze expand_dims slice dynamic_slice dynamic_update_slice gather
concatenate pad rev iota copy copy_p convert_element_type bitcast_convert_type stop_gradient select_n split real imag
complex random_seed random_wrap random_unwrap random_bits random_fold_in random_split threefry2x32 device_put
optimization_barrier debug_callback reduce_precision"""
# Cubic in the side of a matrix: Golub and Van Loan, Matrix Computations (4th ed.), sections 3.2, 4.2, 5.2, 8.3, 8.6.
_CUBIC = {"cholesky": 1 / 3, "lu": 2 / 3, "qr": 4 / 3, "geqrf": 4 / 3, "eigh": 9.0, "eig": 25.0, "svd": 22.0}


def flops(eqn: Any) -> float | None:
    """Operations of one operator; None where that is not known: a `while`, a custom call, what is new.

    A multiplication and an addition are two; a function such as the sine counts as one.
    """
    name = eqn.primitive.name
    if name in _MOVES.split():
        return 0.0
    if name == "dot_general":
        return _dot(eqn)
    if name == "conv_general_dilated":
        return _convolution(eqn)
    if name in REDUCES | CUMULATES:  # one operation for each number that goes in
        return float(_size(eqn.invars[0]))
    if name in CALLS:
        return program_flops(called(eqn))
    if name == "scan":
        inner = program_flops(eqn.params["jaxpr"])
        return None if inner is None else eqn.params["length"] * inner
    if name == "cond":
        known = [program_flops(branch) for branch in eqn.params["branches"]]
        return None if None in known else max((k for k in known if k is not None), default=0.0)
    return _other(eqn, name)


def program_flops(closed: Any) -> float | None:
    """The sum over a program's operators; None where one is not known."""
    counts = [flops(eqn) for eqn in jaxpr_of(closed).eqns]
    return None if None in counts else float(sum(count for count in counts if count is not None))


def _other(eqn: Any, name: str) -> float | None:
    if name in _CUBIC:
        shape = eqn.invars[0].aval.shape
        return _CUBIC[name] * prod(shape[:-1]) * min(shape[-2:]) * (shape[-1] / max(1, min(shape[-2:])))
    if name == "triangular_solve":
        return float(prod(eqn.invars[0].aval.shape[-2:])) * prod(eqn.invars[1].aval.shape[:-2]) * _columns(eqn)
    if name == "fft":
        n = prod(eqn.params["fft_lengths"])
        return 5 * _size(eqn.invars[0]) * log2(max(2, n))
    if name == "sort":
        axis = eqn.invars[0].aval.shape[eqn.params["dimension"]]
        return _size(eqn.invars[0]) * log2(max(2, axis))
    if name == "integer_pow":
        return float(_size(eqn.outvars[0]) * max(1, abs(eqn.params["y"]).bit_length()))
    if name.startswith("scatter"):
        return float(_size(eqn.invars[2]))
    if any(True for _ in programs(eqn)):
        return None
    sizes = {_size(v) for v in eqn.outvars}
    elementwise = all(_size(v) in (*sizes, 1) for v in eqn.invars)
    return float(max(sizes)) if sizes and elementwise else None


def _size(atom: Any) -> int:
    return prod(getattr(atom.aval, "shape", ()))


def _columns(eqn: Any) -> int:
    shape = eqn.invars[1].aval.shape
    return shape[-1] if eqn.params.get("left_side", True) else shape[-2]


def _dot(eqn: Any) -> float:
    (contracted, _), _ = eqn.params["dimension_numbers"]
    shape = eqn.invars[0].aval.shape
    return 2.0 * _size(eqn.outvars[0]) * prod(shape[i] for i in contracted)


def _convolution(eqn: Any) -> float:
    kernel = eqn.invars[1].aval.shape
    outputs = kernel[eqn.params["dimension_numbers"].rhs_spec[0]]
    return 2.0 * _size(eqn.outvars[0]) * prod(kernel) / max(1, outputs)
