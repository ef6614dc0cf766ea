"""From a function to its graph, and from an operator that holds a program to the graph of that."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp

from gradlab import inputs
from gradlab.errors import ArgumentError, OptionError
from gradlab.graphs.passes import Passes, Reading, Runner, Watched
from gradlab.graphs.record import Node
from gradlab.jaxprs import (
    Frames,
    Listing,
    Operator,
    Traced,
    body_of,
    listing,
    moves,
    place,
    trace,
    unrolled,
    user_frame,
)
from gradlab.types import Fn, PyTree


@dataclass(frozen=True, eq=False)
class Made:
    """A listing that was run, and its nodes: what a graph is drawn from, and blame walks through.

    Attributes:
        runner, passes: how it was run, and what was seen.
        names: of the inputs.
        scope: around all operators.
        open_calls: whether calls are listed by what they call.
    """

    runner: Runner
    passes: Passes
    names: tuple[str, ...]
    scope: str = ""
    open_calls: bool = True

    @property
    def listing(self) -> Listing:
        """What was run."""
        return self.runner.listing

    @cached_property
    def held(self) -> tuple[int, ...]:
        """The slots that nodes of no operator hold: inputs, what f closes over, and outputs that are literals."""
        listing = self.listing
        literals = [s for s in listing.outputs if s in listing.constants and s not in listing.named]
        return (*listing.inputs, *listing.named, *dict.fromkeys(literals))

    @cached_property
    def node_of(self) -> dict[int, int]:
        """The id of the node that holds a slot; literals have none."""
        found = {slot: i for i, slot in enumerate(self.held)}
        for i, op in enumerate(self.listing.operators):
            found |= dict.fromkeys(op.results, len(self.held) + i)
        return found

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        """Inputs, constants and operators, as a graph shows them."""
        held = [self._held(i, slot) for i, slot in enumerate(self.held)]
        return (*held, *(self._operator(i, op) for i, op in enumerate(self.listing.operators)))

    def node(self, i: int) -> Node:
        """The node of the i-th operator."""
        return self.nodes[len(self.held) + i]

    def _held(self, i: int, slot: int) -> Node:
        name = self.names[i] if i < len(self.names) else ""
        value = self.runner.inputs[i] if i < len(self.names) else self.listing.constants[slot]
        kind = "input" if i < len(self.names) else "constant"
        shape, dtype = jnp.shape(value), jnp.result_type(value)
        return Node(i, kind, name, (), name or kind, shape, dtype, self.scope, "", *self._seen((slot,)), 0.0)

    def _operator(self, i: int, op: Operator) -> Node:
        first = len(self.held)
        shapes = tuple(s.shape for s in op.shapes)
        dtypes = tuple(s.dtype for s in op.shapes)
        read = tuple(self.node_of[s] for s in op.operands if s in self.node_of)
        return Node(
            id=first + i,
            operator=op.name,
            label=op.label,
            inputs=read,
            expression=self._expression(op),
            shape=shapes[0] if len(shapes) == 1 else shapes,
            dtype=dtypes[0] if len(dtypes) == 1 else dtypes,
            scope=op.scope,
            source=place(user_frame(op.frames)),
            value=self._seen(op.results)[0],
            adjoint=self._seen(op.results)[1] if op.owner is None else None,
            flops=op.flops,
            owner=None if op.owner is None else first + op.owner,
            note=self.passes.reasons.get(i, ""),
        )

    def _seen(self, slots: Sequence[int]) -> tuple[Any, Any]:
        """The values and the adjoints of some slots, as a node shows them."""
        shown = lambda found: _one([reading.shown if (reading := found.get(s)) else None for s in slots])
        return shown(self.passes.values), shown(self.passes.adjoints)

    def _expression(self, op: Operator) -> str:
        name = op.label or op.name
        options = f"[{op.options}]" if op.options else ""
        constants = self.listing.constants
        operands = [f"%{self.node_of[s]}" if s in self.node_of else f"{constants[s]}" for s in op.operands]
        return f"{name}{options}({', '.join(operands)})"

    def met(self, *chosen: int) -> dict[int, Watched]:
        """Some operators with their operands and cotangents, by running everything once more."""
        return self.runner.run(frozenset(chosen)).watched

    def pullback_texts(self) -> dict[int, str]:
        """The program of every operator's pullback as text, by node."""
        return {len(self.held) + i: pullback.program.text for i, pullback in self.passes.pullbacks.items()}

    def reading(self, slot: int) -> Reading | None:
        """The adjoint of a slot."""
        return self.passes.adjoints.get(slot)


def _one(found: list[Any]) -> Any:
    return found[0] if len(found) == 1 else None if all(a is None for a in found) else tuple(found)


def made(
    program: Traced,
    operands: Sequence[Any],
    seeds: Sequence[Any],
    names: tuple[str, ...],
    *,
    frames: Frames = (),
    scope: str = "",
    open_calls: bool = True,
    keep: bool = False,
) -> Made:
    """Run a traced program at flat operands, with cotangents of its flat outputs (none: forward alone)."""
    listed = listing(program, open_calls=open_calls, frames=frames, scope=scope)
    runner = Runner(listed, list(operands), list(seeds), keep)
    names = names or tuple(f"operand {j}" for j in range(len(operands)))
    return Made(runner, runner.run(), names, scope, open_calls)


def made_of(
    f: Fn, args: tuple, *, cotangent: PyTree = None, has_aux: bool = False, open_calls: bool = True, keep: bool = False
) -> Made:
    """Trace f at args, and run it. See `graph`."""
    inputs.require_function(f, "graph")
    leaves, structure = jax.tree_util.tree_flatten_with_path(args)
    if any(isinstance(leaf, jax.core.Tracer) for _, leaf in leaves):
        raise ArgumentError(
            "graph runs f and shows numbers, which a trace does not have; call it outside of jit and grad."
        )
    moving = [i for i, (_, leaf) in enumerate(leaves) if moves(leaf)]
    names = tuple(f"args{jax.tree_util.keystr(leaves[i][0])}" for i in moving)

    def of_moving(*moved: Any) -> PyTree:
        full = [leaf for _, leaf in leaves]
        for i, a in zip(moving, moved, strict=True):
            full[i] = a
        return f(*jax.tree.unflatten(structure, full))

    point = [jnp.asarray(leaves[i][1]) for i in moving]
    with inputs.tracing():
        program = trace(of_moving, *point)
    seeds = _seeds(program.shape, cotangent, has_aux)
    return made(program, point, seeds, names, open_calls=open_calls, keep=keep)


def _seeds(shape: PyTree, cotangent: PyTree, has_aux: bool) -> list[Any]:
    """Cotangents of the flat outputs: as given, one for a real scalar, or none at all."""
    if has_aux and not (isinstance(shape, tuple) and len(shape) == 2):
        raise OptionError(f"With has_aux=True, f must return a pair (value, aux), but it returns {shape!r:.80}.")
    main, rest = shape if has_aux else (shape, ())
    leaves = jax.tree.leaves(main)
    unseeded = [None] * len(jax.tree.leaves(rest))
    if cotangent is not None:
        fixed = jax.tree.map(lambda y: jnp.zeros(y.shape, y.dtype if moves(y) else bool), main)
        given = inputs.require_like(cotangent, fixed, "cotangent", "the output of f")
        return [w if moves(y) else None for w, y in zip(jax.tree.leaves(given), leaves, strict=True)] + unseeded
    scalar = len(leaves) == 1 and leaves[0].shape == () and jnp.issubdtype(leaves[0].dtype, jnp.floating)
    return [jnp.ones((), leaves[0].dtype), *unseeded] if scalar else []


def opened(whole: Made, i: int, iteration: int | None = None, watched: Watched | None = None) -> Made:
    """What the i-th operator holds, run at the operands and cotangents that it met.

    Args:
        whole: where the operator is.
        i: which operator.
        iteration: of a loop, in the order of execution; the last one where None.
        watched: the operator's operands and cotangents, where they are known.

    Raises:
        OptionError: there is no program inside, or the loop has no such iteration.
    """
    op = whole.listing.operators[i]
    watched = watched or whole.met(i)[i]
    # Through what a rule takes the place of, nothing is pulled back.
    seeds = [] if op.kind == "rule" else watched.cotangents
    loop = op.loop(watched.operands)
    if loop is None:
        found = op.inner(watched.operands)
        if found is None:
            raise OptionError(f"{op.name} holds no program to open; calls, scan, while and cond do.")
        program, own = found
        operands = [watched.operands[j] for j in own]
        names = tuple(f"operand {j} of {op.name}" for j in own)
        return within(op, program, operands, seeds, names, open_calls=whole.open_calls)
    k = loop.length - 1 if iteration is None else iteration
    if not 0 <= k < loop.length:
        raise OptionError(f"iteration must lie in 0 … {loop.length - 1}, but got {iteration!r}.")
    seen = unrolled(loop, seeds or None)
    cotangents = [None if w is None else w[k] for w in seen.cotangents]
    parts = (("constant", loop.constants), ("carry", loop.carry), ("x", loop.xs))
    names = tuple(f"{name} {j} of iteration {k}" for name, of in parts for j in range(len(of)))
    operands = loop.iteration(k, seen.states)
    return within(op, body_of(loop), operands, cotangents, names, open_calls=whole.open_calls)


def within(
    op: Operator,
    program: Traced,
    operands: Sequence[Any],
    seeds: Sequence[Any] = (),
    names: tuple[str, ...] = (),
    *,
    open_calls: bool = True,
) -> Made:
    """Run a program that an operator holds: the operator's own line and scope lie around it."""
    return made(program, operands, seeds, names, frames=op.frames, scope=op.scope, open_calls=open_calls)
