"""gradlab: take, check, compare, show and descend the derivatives of plain JAX functions.

The public names are loaded when they are first used, so `import gradlab` costs what `import jax` costs.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

_HOME = {
    "operators": (
        "derivative",
        "directional_derivative",
        "gradient",
        "hessian",
        "hvp",
        "jacobian",
        "laplacian",
        "modes",
        "pullback",
        "pushforward",
        "sparsity",
        "steepest_direction",
        "taylor",
        "value_and_gradient",
    ),
    "checking": ("Check", "Finding", "check"),
    "comparison": ("Comparison", "Row", "compare"),
    "descent": ("Descent", "descend", "descent_loop"),
    "prediction": ("Prediction", "predict"),
    "mode.sparsity": ("Sparsity",),
    "errors": ("GradlabError",),
    "graphs": ("Blame", "Graph", "Node", "graph"),
}
_MODULES = (
    "attacks",
    "curvature",
    "distributed",
    "errors",
    "fused",
    "losses",
    "models",
    "plots",
    "problems",
    "symbolic",
    "testing",
    "types",
)
_OWNER = {name: module for module, names in _HOME.items() for name in names}

__version__ = "0.1.0"
__all__ = tuple(sorted(_OWNER) + list(_MODULES))

if TYPE_CHECKING:
    from gradlab import attacks as attacks
    from gradlab import curvature as curvature
    from gradlab import distributed as distributed
    from gradlab import errors as errors
    from gradlab import fused as fused
    from gradlab import losses as losses
    from gradlab import models as models
    from gradlab import plots as plots
    from gradlab import problems as problems
    from gradlab import symbolic as symbolic
    from gradlab import testing as testing
    from gradlab import types as types
    from gradlab.checking import Check, Finding, check
    from gradlab.comparison import Comparison, Row, compare
    from gradlab.descent import Descent, descend, descent_loop
    from gradlab.errors import GradlabError
    from gradlab.graphs import Blame, Graph, Node, graph
    from gradlab.mode.sparsity import Sparsity
    from gradlab.operators import (
        derivative,
        directional_derivative,
        gradient,
        hessian,
        hvp,
        jacobian,
        laplacian,
        modes,
        pullback,
        pushforward,
        sparsity,
        steepest_direction,
        taylor,
        value_and_gradient,
    )
    from gradlab.prediction import Prediction, predict


def __getattr__(name: str) -> Any:
    if name in _OWNER:
        value = getattr(import_module(f"gradlab.{_OWNER[name]}"), name)
    elif name in _MODULES:
        value = import_module(f"gradlab.{name}")
    else:
        raise AttributeError(f"module 'gradlab' has no attribute {name!r}; public names are {', '.join(__all__)}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
