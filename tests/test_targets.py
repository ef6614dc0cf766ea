"""A target's name leads to a function with arguments that fit it, or to an error that says which name went wrong."""

import jax.numpy as jnp
import pytest

from gradlab import problems, targets
from gradlab.errors import TargetError

MODULE = """
import jax.numpy as jnp
FACTOR = 2.0
ARGS = (jnp.ones(3), 2.0)
ONE = jnp.ones(3)
TEXT = "abc"
def scaled(x, factor=FACTOR): return x * factor
def loss(x): return (x ** 2).sum()
def make(): return (jnp.ones(2),)
def broken(): raise RuntimeError("no data")
class Model:
    @staticmethod
    def loss(x): return x.sum()
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "user_functions.py").write_text(MODULE)
    (tmp_path / "user_broken.py").write_text("1 / 0")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)


def test_a_problem_brings_its_arguments_and_its_main_derivative():
    f, args, of = targets.resolve("softplus_sum", None)
    assert of == problems.get("softplus_sum").of[0]
    assert f(*args).shape == ()


@pytest.mark.parametrize(
    ("target", "arguments", "of"),
    [
        ("user_functions:scaled", "user_functions:ARGS", "jacobian"),
        ("user_functions:scaled", "user_functions:ONE", "jacobian"),
        ("user_functions:loss", "user_functions:make", "gradient"),
        ("user_functions:Model.loss", "user_functions:ONE", "gradient"),
    ],
)
def test_functions_of_the_working_folder_are_found(module, target, arguments, of):
    f, args, found = targets.resolve(target, arguments)
    assert found == of
    assert jnp.all(jnp.isfinite(f(*args)))


@pytest.mark.parametrize(
    ("target", "arguments", "words"),
    [
        ("rosenbrok", None, "Did you mean 'rosenbrock'?"),
        ("rosenbrock", "user_functions:ARGS", "has its own arguments"),
        ("user_functions:loss", None, "add --args"),
        ("user_functions:los", "user_functions:ONE", "Did you mean 'loss'?"),
        ("no_such_module:f", "user_functions:ONE", "no module named 'no_such_module'"),
        ("user_broken:f", "user_functions:ONE", "ZeroDivisionError"),
        (":f", "user_functions:ONE", "package.module:name"),
        ("user_functions:FACTOR", "user_functions:ONE", "not a function"),
        ("user_functions:loss", "user_functions", "--args must look like"),
        ("user_functions:loss", "user_functions:NONE", "Did you mean 'ONE'?"),
        ("user_functions:loss", "user_functions:broken", "no data"),
        ("user_functions:loss", "user_functions:ARGS", "do not fit"),
        ("user_functions:scaled", "problems_missing:x", "--args"),
        ("user_functions:loss", "user_functions:loss", "--args"),
        ("user_functions:loss", "user_functions:TEXT", "cannot be traced"),
    ],
)
def test_a_name_that_leads_nowhere_is_named(module, target, arguments, words):
    with pytest.raises(TargetError) as caught:
        targets.resolve(target, arguments)
    assert words in str(caught.value)


def test_the_derivative_is_one_of_the_known():
    assert targets.quantity(None) is None
    assert targets.quantity("hvp") == "hvp"
    with pytest.raises(TargetError, match="Did you mean 'hessian'"):
        targets.quantity("hesian")
