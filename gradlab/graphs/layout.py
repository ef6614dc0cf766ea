"""Where to draw the nodes of a graph: in layers from top to bottom, with few crossings.

Source: Sugiyama, Tagawa and Toda, IEEE Transactions on Systems, Man, and Cybernetics 11 (1981).
"""

from collections.abc import Sequence

import networkx as nx
import numpy as np

from gradlab.graphs.record import Node

SWEEPS = 8


def edges(nodes: Sequence[Node]) -> list[tuple[int, int, bool]]:
    """Pairs of nodes, from what is read to what reads it, and whether it is read.

    The last operators inside of a function with a rule of its own lead to the node that stands for the rule, unread.
    """
    read = {i for node in nodes for i in node.inputs if node.owner is not None}
    inner = [(n.id, n.owner, False) for n in nodes if n.owner is not None and n.id not in read]
    return [(i, node.id, True) for node in nodes for i in dict.fromkeys(node.inputs)] + inner


def layout(nodes: Sequence[Node]) -> dict[int, tuple[float, float]]:
    """Column and row of every node, by id; the rows count from 0 at the top, the columns lie around 0.

    An input lies one row above the first operator that reads it, not at the very top.

    >>> import jax.numpy as jnp
    >>> from gradlab.graphs import graph
    >>> layout(graph(lambda x: jnp.sin(x) * 2.0, 1.0).nodes)
    {0: (0.0, 0.0), 1: (0.0, 1.0), 2: (0.0, 2.0)}
    """
    network = nx.DiGraph()
    network.add_nodes_from(node.id for node in nodes)
    network.add_edges_from((i, j) for i, j, _ in edges(nodes))
    row = {i: depth for depth, layer in enumerate(nx.topological_generations(network)) for i in layer}
    for i in row:
        if not network.in_degree(i) and network.out_degree(i):
            row[i] = min(row[j] for j in network.successors(i)) - 1
    layers: dict[int, list[int]] = {}
    for i in sorted(row):
        layers.setdefault(row[i], []).append(i)
    column = {i: k - (len(layer) - 1) / 2 for layer in layers.values() for k, i in enumerate(layer)}
    for sweep in range(SWEEPS):
        down = sweep % 2 == 0
        beside = network.predecessors if down else network.successors
        for depth in sorted(layers, reverse=not down):
            wanted = {i: float(np.mean([column[j] for j in beside(i)] or [column[i]])) for i in layers[depth]}
            column.update(_placed(wanted))
    return {i: (column[i], float(row[i])) for i in sorted(row)}


def _placed(wanted: dict[int, float]) -> dict[int, float]:
    """Columns as near to those that are wanted as neighbors of distance 1 allow, in the same order."""
    order = sorted(wanted, key=lambda i: wanted[i])
    at = np.array([wanted[i] for i in order])
    steps = np.arange(len(order))
    spread = np.maximum.accumulate(at - steps) + steps
    return dict(zip(order, (spread + np.mean(at - spread)).tolist(), strict=True))
