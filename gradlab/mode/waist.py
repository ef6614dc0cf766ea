"""Dense Jacobians cut where few numbers cross: J = J₂ J₁ through w numbers takes 2 w passes, not min(n, m).

A program is a chain of segments between places; everything that is still needed crosses a place, so that skip
connections and inputs used again are exact. Each segment has its Jacobian in its own best mode, and the matrices are
multiplied in the cheapest order, all found by dynamic programming before anything runs. The last product takes 2 n w m
operations, whatever the segments are: the longer they are, the more a cut saves.

Source: Griewank and Naumann, Accumulating Jacobians as chained sparse matrix products, Mathematical Programming 95
(2003); Naumann, The Art of Differentiating Computer Programs (2012), section 3.3.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any, NamedTuple, assert_never

import jax
import jax.numpy as jnp

from gradlab import trees
from gradlab.errors import ArgumentError, UnsupportedModeError
from gradlab.jaxprs import Traced, place, trace, user_frame
from gradlab.jaxprs.segments import Flow, Schedule, Values, flow_of
from gradlab.mode.chain import Chain, Part, Route, lacking_rules, narrow_order, parts_of
from gradlab.mode.dense import DIRECTIONS, in_chunks
from gradlab.mode.support import Unary
from gradlab.types import PyTree

# A plan must need less than this share of the work of the better dense mode: the work is an estimate.
_WORTH = 0.75


@dataclass(frozen=True)
class Cut:
    """A place where a program is cut.

    Attributes:
        width: how many numbers cross.
        scope: the path of `jax.named_scope`s of the operator before it.
        source: the user's line of that operator, as `file.py:12 (function)`; "" where it is not known.
    """

    width: int
    scope: str
    source: str

    def __str__(self) -> str:
        where = [part for part in (self.scope, self.source.rpartition(" (")[0]) if part]
        return f"{self.width} numbers" + (f" ({', '.join(where)})" if where else "")


@dataclass(frozen=True, eq=False)
class Plan:
    """How a Jacobian is taken: where to cut, in which mode each segment, and which product first. It holds no array.

    Attributes:
        cuts: in the order of execution.
        passes: over segments of the program, in all.
        work: estimated operations and numbers written.
        dense_work: the same for the better dense mode that can run; infinite where none can.
    """

    cuts: tuple[Cut, ...]
    passes: int
    work: float
    dense_work: float
    route: Route = field(repr=False)
    order: tuple[int, ...] = field(repr=False)

    def __str__(self) -> str:
        return f"cut at {', then '.join(str(cut) for cut in self.cuts)}"


def plan(f: Unary, x: PyTree, *, has_aux: bool = False) -> Plan:
    """Where to cut f at x, decided by tracing; nothing runs.

    Everything that is still needed crosses a place: it counts w numbers there, and J = J₂ J₁ with J₁ of shape `[w, n]`
    and J₂ of shape `[m, w]`; each side may be cut again.

    Args:
        f: a function of one pytree.
        x: the point, or its shapes; n numbers in all.
        has_aux: f returns `(y, aux)`; y holds m numbers.

    Raises:
        UnsupportedModeError: no place is narrower than n and m, or worth a cut; or f lacks a rule for both modes.

    Source: Naumann (2012), section 3.3: the dense Jacobian chain product with bracketing.

    >>> found = plan(lambda x: jnp.exp(jnp.sin(jnp.sum(x**2)) * jnp.arange(30.0)), jnp.ones(40))
    >>> [cut.width for cut in found.cuts], found.passes
    ([1], 2)
    """
    traced = _trace(f, x, has_aux)
    _require_real(x, traced.shape)
    flow = flow_of(traced.program, traced.targets)
    _require_pure(flow)
    lacking = lacking_rules(flow)
    passes = {"forward": trees.size(x), "reverse": trees.size(traced.shape)}
    dense = [passes[d] for d in DIRECTIONS if not lacking[d]]
    limit = min(dense, default=inf)
    narrow = narrow_order(flow, limit)
    orders = [tuple(range(len(flow.middle))), *([narrow] if narrow else [])]
    chains = [Chain(flow.ordered(order), lacking) for order in orders]
    chain, order = min(zip(chains, orders, strict=True), key=lambda pair: pair[0].best[0])
    work, route = chain.best
    dense_work = limit * chain.schedule.works[-1] if dense else inf
    if isinstance(route, Part) or not work < _WORTH * dense_work:
        raise UnsupportedModeError(_refusal(chains, limit, work, dense_work))
    cuts = tuple(_cut(chain.schedule, part.start) for part in parts_of(route)[1:])
    return Plan(cuts, sum(map(chain.passes, parts_of(route))), work, dense_work, route, order)


def jacobian(f: Unary, x: PyTree, plan: Plan, *, has_aux: bool = False, chunk_size: int | None = None) -> Any:
    """The Jacobian of f at x by a plan for f, in the structure that `jax.jacobian` gives.

    Args:
        f: a function of one pytree.
        x: the point.
        plan: of `plan(f, x)`.
        has_aux: f returns `(y, aux)`, and the result is `(J, aux)`.
        chunk_size: so many directions at a time, or None for all at once.

    Raises:
        ArgumentError: the plan was made for another program.

    >>> f = lambda x: jnp.exp(jnp.sin(jnp.sum(x**2)) * jnp.arange(30.0))
    >>> jacobian(f, jnp.zeros(40), plan(f, jnp.zeros(40))).shape
    (30, 40)
    """
    traced = _trace(f, x, has_aux)
    flow = flow_of(traced.program, traced.targets)
    if len(flow.middle) != len(plan.order):
        raise ArgumentError(
            f"The plan is for a program of {len(plan.order)} operators, but f has {len(flow.middle)} at this x. "
            "Make it with plan(f, x) for the same f and shapes."
        )
    schedule = flow.ordered(plan.order)
    leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(x)]
    values = flow.start(leaves)
    blocks = {}
    for part in parts_of(plan.route):
        blocks[part], values = _block(schedule, part, values, chunk_size)
    jac = _assembled(schedule, _product(plan.route, blocks), x, traced.shape)
    # Without aux, what is left to run are effects, such as prints.
    extras = flow.finish(values)
    return (jac, traced.aux(extras)) if has_aux else jac


class _Call(NamedTuple):
    """f as a program of flat outputs: those of y first, then the arrays of aux."""

    program: Traced
    shape: PyTree
    targets: int
    aux: Callable[[list[Any]], Any]


def _trace(f: Unary, x: PyTree, has_aux: bool) -> _Call:
    seen: list[Any] = []

    def flat(x: PyTree) -> tuple[PyTree, list[Any]]:
        y, aux = f(x) if has_aux else (f(x), ())
        seen[:] = jax.tree.flatten(aux)
        return y, [leaf for leaf in seen[0] if isinstance(leaf, jax.Array)]

    program = trace(flat, x)
    leaves, structure = seen

    def rebuilt(arrays: list[Any]) -> Any:
        # What is no array is returned as it is.
        own = iter(arrays)
        return jax.tree.unflatten(structure, [next(own) if isinstance(a, jax.Array) else a for a in leaves])

    return _Call(program, program.shape[0], len(jax.tree.leaves(program.shape[0])), rebuilt)


def _require_real(x: PyTree, y: PyTree) -> None:
    for name, tree in (("input", x), ("output", y)):
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
                raise UnsupportedModeError(
                    f"jacobian(mode='waist') multiplies real matrices, but the {name}{jax.tree_util.keystr(path)} has "
                    f"dtype {jnp.result_type(leaf)}; expected a real floating one. Use mode='auto'."
                )


def _require_pure(flow: Flow) -> None:
    for step in flow.middle:
        if step.has_effects and flow.carries(step):
            where = place(user_frame(step.frames))
            raise UnsupportedModeError(
                f"jacobian(mode='waist') would run the effects inside the {step.name} at {where} more than once, which "
                "they must not. Move the print or callback out of it, or use mode='auto'."
            )


def _cut(schedule: Schedule, k: int) -> Cut:
    step = schedule.steps[k - 1]
    frame = user_frame(step.frames)
    return Cut(int(schedule.widths[k]), step.scope, f"{place(frame)} ({frame.function})" if frame else "")


def _refusal(chains: Sequence[Chain], limit: float, work: float, dense_work: float) -> str:
    head, tail = "jacobian cannot use mode 'waist' for this function: ", ". Use mode='auto'."
    found = [(*chain.narrowest, chain) for chain in chains if chain.narrowest]
    width, k, chain = min(found, key=lambda entry: entry[0], default=(inf, 0, None))
    if chain is None or width == inf:
        return f"{head}there is no place between two operators where only real numbers cross{tail}"
    if limit == inf:
        return f"{head}no cut leaves each side with one mode that can run{tail}"
    narrowest = str(_cut(chain.schedule, k))
    if width >= limit:
        return f"{head}there is no place where fewer than {limit} numbers cross; the narrowest is {narrowest}{tail}"
    share = f"{work / dense_work:.0%} of the work of a dense mode" if 0 < work < inf else "more work than it saves"
    return f"{head}a cut at the narrowest place, {narrowest}, would take {share}{tail}"


def _block(schedule: Schedule, part: Part, values: Values, chunk_size: int | None) -> tuple[jax.Array, Values]:
    """The Jacobian of one segment, shape `[w_stop, w_start]`, and the values behind it."""
    apply, kept = schedule.segment(part.start, part.stop, values)
    incoming, outgoing = schedule.crossing(part.start), schedule.crossing(part.stop)
    moved = [values[s] for s in incoming]
    match part.direction:
        case "forward":
            results, push, others = jax.linearize(apply, *moved, has_aux=True)
            block = _rows(lambda e: push(*e), moved, chunk_size).T
        case "reverse":
            results, pull, others = jax.vjp(apply, *moved, has_aux=True)
            block = _rows(lambda w: list(pull(w)), results, chunk_size)
        case _:
            assert_never(part.direction)
    return block, {**values, **dict(zip([*outgoing, *kept], [*results, *others], strict=True))}


def _rows(apply: Callable[[list[Any]], list[Any]], space: list[Any], chunk_size: int | None) -> jax.Array:
    """What a linear map makes of each unit vector of a space, one a row, in the widest dtype."""
    n = trees.size(space)
    if chunk_size is None or chunk_size >= n:
        images = jax.vmap(apply)(trees.basis(space, jnp.arange(n)))
    else:
        images = in_chunks(apply, space, chunk_size, axis=0)
    dtype = jnp.result_type(jnp.float32, *(a.dtype for a in images))
    return jnp.concatenate([a.reshape(n, -1).astype(dtype) for a in images], axis=1)


def _product(route: Route, blocks: dict[Part, jax.Array]) -> jax.Array:
    """The chain product, in the order of the route."""
    if isinstance(route, Part):
        return blocks[route]
    before, after = (_product(side, blocks) for side in route)
    return jnp.matmul(after, before, precision=jax.lax.Precision.HIGHEST)


def _assembled(schedule: Schedule, matrix: jax.Array, x: PyTree, y: PyTree) -> PyTree:
    """A matrix of what moves as JAX's nested structure; zeros where an output does not depend on an input."""
    flow = schedule.flow
    rows = _offsets(flow, schedule.crossing(len(schedule.steps)))
    columns = _offsets(flow, schedule.crossing(0))
    (outs, outer), (ins, inner) = jax.tree.flatten(y), jax.tree.flatten(x)

    def block(out: Any, target: int, leaf: Any, source: int) -> jax.Array:
        shape, dtype = (*jnp.shape(out), *jnp.shape(leaf)), jnp.result_type(leaf)
        if target not in rows or source not in columns:
            return jnp.zeros(shape, dtype)
        return matrix[rows[target], columns[source]].reshape(shape).astype(dtype)

    row = lambda out, target: [block(out, target, *pair) for pair in zip(ins, flow.inputs, strict=True)]
    found = [jax.tree.unflatten(inner, row(*pair)) for pair in zip(outs, flow.targets, strict=True)]
    return jax.tree.unflatten(outer, found)


def _offsets(flow: Flow, slots: Sequence[int]) -> dict[int, slice]:
    """Where each slot lies in the flat vector of all."""
    found, offset = {}, 0
    for slot in slots:
        found[slot] = slice(offset, offset + flow.size(slot))
        offset += flow.size(slot)
    return found
