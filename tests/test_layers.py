"""Imports point one way: a file imports only from the layers above its own."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "gradlab"
LAYERS = (
    ("errors", "types"),
    ("trees", "jaxprs"),
    ("inputs",),
    ("mode",),
    ("operators",),
    ("finite", "prediction"),
    ("losses", "models", "attacks", "fused", "symbolic"),
    ("timing",),
    ("checking", "reference", "comparison", "graphs", "descent", "distributed", "curvature"),
    ("problems",),
    ("report", "plots", "testing", "targets", "calibration"),
    ("tour",),
    ("cli", "pytest_plugin", "__main__"),
)
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def unit(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported(path: Path) -> set[str]:
    """Full names of every module that a file imports.

    A result's own `plot()`, `to_html()` and `str()` load their renderer when they are called, so that a comparison can
    be made without one: those two imports alone may point down, and only from inside a function.
    """
    tree = ast.parse(path.read_text())
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= names if node in tree.body else names - {"gradlab.report", "gradlab.plots"}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_imports_only_from_the_layers_above_its_own(path):
    own = unit(path)
    for name in imported(path):
        parts = name.split(".")
        if parts == ["gradlab"]:  # the public names, for those below all of them
            assert RANK[own] >= RANK["tour"]
        elif parts[0] == "gradlab" and parts[1] in RANK and parts[1] != own:
            assert RANK[parts[1]] < RANK[own] or (RANK[parts[1]] == RANK[own] and not cyclic(parts[1], own)), name


def cyclic(other: str, own: str) -> bool:
    paths = [path for path in FILES if unit(path) == other]
    return any(name.split(".")[:2] == ["gradlab", own] for path in paths for name in imported(path))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_jaxprs_reads_the_intermediate_representation(path):
    names = imported(path)
    assert not any(name.startswith("jax._src") for name in names)
    if unit(path) != "jaxprs":
        assert not any(name.startswith(("jax.extend", "jax.core", "jax.interpreters")) for name in names)


def test_every_file_has_its_layer():
    assert {unit(path) for path in FILES} <= set(RANK)
