"""The public names: those of the design, documented, and loaded only when they are used."""

import inspect
import subprocess
import sys

import pytest

import gradlab as gl

OPERATORS = (
    "derivative",
    "directional_derivative",
    "gradient",
    "value_and_gradient",
    "steepest_direction",
    "pushforward",
    "pullback",
    "jacobian",
    "hessian",
    "hvp",
    "laplacian",
    "taylor",
    "modes",
)
FUNCTIONS = [name for name in gl.__all__ if inspect.isroutine(getattr(gl, name))]
HEAVY = ("matplotlib", "networkx", "typer", "rich", "sklearn", "asdex", "matfree", "folx", "orbax", "sympy", "torch")


@pytest.mark.parametrize(
    "name",
    [
        *OPERATORS,
        "compare",
        "check",
        "Check",
        "descend",
        "descent_loop",
        "Descent",
        "graph",
        "Graph",
        "Node",
        "Blame",
        "distributed",
        "testing",
        "losses",
        "models",
        "problems",
        "plots",
        "attacks",
        "curvature",
        "fused",
        "symbolic",
        "GradlabError",
    ],
)
def test_a_name_of_the_design_is_public(name):
    assert name in gl.__all__ and name in dir(gl)
    assert getattr(gl, name) is not None


def test_importing_loads_neither_pictures_nor_terminal_nor_extras():
    code = (
        "import sys, gradlab, gradlab.operators, gradlab.comparison; gradlab.gradient(lambda x: x**2.0)(1.0); "
        "gradlab.graph(lambda x: x**2.0, 1.0).blame(); "
        f"loaded = [m for m in {HEAVY!r} if m in sys.modules]; assert not loaded, loaded"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_importing_gradlab_alone_does_not_even_load_jax():
    subprocess.run([sys.executable, "-c", "import sys, gradlab; assert 'jax' not in sys.modules"], check=True)


def test_no_module_takes_the_name_of_a_public_function():
    code = (
        "import pkgutil, importlib, gradlab, inspect\n"
        "for m in pkgutil.walk_packages(gradlab.__path__, 'gradlab.'):\n"
        "    if not m.name.endswith('__main__'): importlib.import_module(m.name)\n"
        f"assert all(inspect.isroutine(getattr(gradlab, name)) for name in {FUNCTIONS!r})"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(AttributeError, match="public names are"):
        gl.jacobean  # noqa: B018


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_public_function_has_options_by_keyword_a_source_and_an_example(name):
    f = getattr(gl, name)
    text = inspect.getdoc(f)
    assert ">>>" in text
    assert "Source:" in text or name == "modes"
    for parameter in inspect.signature(f).parameters.values():
        positional = parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
        assert not positional or parameter.default is inspect.Parameter.empty or parameter.name == "argnums"


@pytest.mark.parametrize("of", ["gradient", "jacobian", "hessian", "hvp", "laplacian"])
def test_modes_are_those_that_the_operator_takes(of):
    for mode in gl.modes(of):
        assert callable(getattr(gl, of)(lambda x: x, mode=mode))


def test_every_error_is_also_a_builtin():
    errors = [e for e in vars(gl.errors).values() if inspect.isclass(e) and issubclass(e, gl.GradlabError)]
    assert len(errors) > 5
    for error in errors:
        if error is not gl.GradlabError:
            assert issubclass(error, (TypeError, ValueError, ImportError, RuntimeError, AssertionError))
