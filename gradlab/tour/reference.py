"""The reference: every public name from its docstring, and the operators in one table."""

import inspect
from html import escape
from pathlib import Path

import pdoc
import pdoc.render

import gradlab as gl

# operator: (input, output, shape of the result for x of shape [n] and f(x) of shape [m])
OPERATORS = {
    "derivative": ("a real number", "f′(x)", "[m]"),
    "directional_derivative": ("x and a direction v", "J v", "[m]"),
    "gradient": ("x, any pytree", "∇f(x)", "[n]"),
    "value_and_gradient": ("x, any pytree", "f(x) and ∇f(x)", "() and [n]"),
    "steepest_direction": ("x, any pytree", "∇f/|∇f|, zeros where ∇f = 0", "[n]"),
    "pushforward": ("x and a tangent v", "f(x) and J v", "[m] and [m]"),
    "pullback": ("x and a cotangent w", "f(x) and Jᵀ w", "[m] and [n]"),
    "jacobian": ("x, any pytree", "J", "[m, n]"),
    "hessian": ("x, any pytree", "H", "[n, n]"),
    "hvp": ("x and a direction v", "H v", "[n]"),
    "laplacian": ("x, any pytree", "tr H", "()"),
    "taylor": ("x₀, then x", "the local polynomial", "[m]"),
}
# Those whose modes go by the name of another quantity.
SHARED = {"value_and_gradient": "gradient"}


def operators() -> str:
    """The table operator × input × output × shape × modes, as HTML."""
    head = "".join(f"<th>{name}</th>" for name in ("operator", "input", "output", "shape", "modes"))
    rows = "".join(_row(name, *cells) for name, cells in OPERATORS.items())
    return (
        "<h1>Operators</h1><p>Each takes a function f and returns a function. x has n numbers and f(x) has m; pytrees "
        "give pytrees, with these shapes leaf by leaf. What a mode costs on your machine: "
        f'<a href="compare.html">compare</a>.</p><div class="wide"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _row(name: str, given: str, result: str, shape: str) -> str:
    modes = " ".join(f"<code>{mode}</code>" for mode in gl.types.MODES.get(SHARED.get(name, name), ()))
    signature = inspect.signature(getattr(gl, name)).replace(return_annotation=inspect.Signature.empty)
    link = f'<a href="api/gradlab.html#{name}" title="{escape(f"{name}{signature}")}"><code>{name}</code></a>'
    cells = "".join(f"<td>{cell}</td>" for cell in (link, escape(given), escape(result), escape(shape), modes))
    return f"<tr>{cells}</tr>"


def write(folder: Path) -> None:
    """Every public name of gradlab, by pdoc, as pages that load nothing from elsewhere."""
    pdoc.render.configure(docformat="google", show_source=False, footer_text=f"gradlab {gl.__version__}")
    pdoc.pdoc("gradlab", output_directory=folder)
