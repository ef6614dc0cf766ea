"""The computation graph: what each operator gives forward and gets backward, and who is to blame for a NaN."""

from gradlab.graphs.computation import Graph, graph
from gradlab.graphs.record import Blame, Node, Statistics

__all__ = ["Blame", "Graph", "Node", "Statistics", "graph"]
