"""Symbolic derivatives swell with depth and automatic ones do not, and both are the same derivative."""

import itertools
import json
import sys

import jax
import jax.numpy as jnp
import pytest
import sympy

import gradlab as gl
from gradlab.errors import ArgumentError, MissingExtraError, NotScalarError, OptionError
from gradlab.symbolic import compose, expression, operations, swell


def logistic_map(x):
    return 4 * x * (1 - x)


def newton(x):
    """One step towards √2: it reads its argument twice, too."""
    return 0.5 * (x + 2 / x)


TWICE = {"logistic_map": logistic_map, "newton": newton}
ONCE = {"sigmoid": jax.nn.sigmoid, "tanh": jnp.tanh, "sin": jnp.sin}
STEPS = TWICE | ONCE
DEPTHS = range(1, 9)
# Every word that is read, at points in (0.1, 0.9).
WORDS = {
    "exponentials": lambda x: jnp.exp(x) + jnp.exp2(x) * jnp.expm1(x) - jnp.log(x) / jnp.log1p(x),
    "circular": lambda x: jnp.sin(x) * jnp.cos(x) + jnp.tan(x) - jnp.arcsin(x) * jnp.arccos(x) + jnp.arctan(x),
    "hyperbolic": lambda x: jnp.sinh(x) * jnp.cosh(x) - jnp.tanh(x) + jnp.arcsinh(x) * jnp.arctanh(x),
    "two arguments": lambda x: jnp.arctan2(x, 2 + x) + jnp.arccosh(1 + x) + x**x,
    "powers": lambda x: x**3 + x**-2 + x**0.3 + jnp.sqrt(x) + jax.lax.rsqrt(x) + jnp.square(x),
    "special": lambda x: jax.scipy.special.erf(x) + jax.scipy.special.erfc(x) + jax.nn.sigmoid(x),
    "gamma": lambda x: jax.scipy.special.gammaln(x) + jax.lax.digamma(x),
    "pieces": lambda x: jnp.abs(x - 0.5) * jnp.maximum(x, 0.4) + jnp.minimum(x, 0.7) * jnp.sign(x) + jax.nn.relu(-x),
    "called": jax.jit(lambda x: jax.checkpoint(jnp.sin)(x) * jax.nn.gelu(x)),
    "a derivative": lambda x: x - jnp.tanh(x) / jax.grad(jnp.tanh)(x),
}


def differences(numbers, order=1):
    for _ in range(order):
        numbers = [b - a for a, b in itertools.pairwise(numbers)]
    return set(numbers)


@pytest.mark.parametrize("name", STEPS)
def test_each_step_adds_the_same_few_operators_to_the_automatic_derivative(name):
    found = swell(STEPS[name], DEPTHS)
    assert len(differences(found.function)) == len(differences(found.automatic)) == 1
    assert found.automatic[-1] <= 5 * found.function[-1]


@pytest.mark.parametrize("name", TWICE)
def test_a_step_that_reads_its_argument_twice_swells_exponentially(name):
    found = swell(TWICE[name], DEPTHS)
    assert all(b > 2 * a for a, b in itertools.pairwise(found.symbolic))


@pytest.mark.parametrize("name", ONCE)
def test_a_step_that_reads_its_argument_once_swells_with_the_square_of_the_depth(name):
    (second,) = differences(swell(ONCE[name], range(2, 9)).symbolic, order=2)
    assert second > 0


@pytest.mark.parametrize("name", TWICE)
def test_naming_what_repeats_lies_between_the_two(name):
    found = swell(TWICE[name], range(4, 11))
    rows = zip(found.depths, found.automatic, found.shared, found.symbolic, strict=True)
    assert all(automatic < shared < min(symbolic, 4 * depth**2) for depth, automatic, shared, symbolic in rows)


def assert_same_derivative(f):
    """SymPy's value and slope of f, in 30 digits, are JAX's in float64."""
    with jax.enable_x64(True):
        points = jax.random.uniform(jax.random.key(0), (5,), minval=0.1, maxval=0.9)
        x = sympy.Symbol("x", real=True)
        y = expression(f, x)
        for point in points:
            exact = [float(e.subs(x, sympy.Float(float(point), 30)).evalf(30)) for e in (y, y.diff(x))]
            assert [float(f(point)), float(gl.derivative(f)(point))] == pytest.approx(exact, rel=1e-11, abs=1e-13)


@pytest.mark.parametrize("name", STEPS)
def test_the_symbolic_derivative_of_a_composition_is_the_automatic_one(name):
    assert_same_derivative(compose(STEPS[name], 4))


@pytest.mark.parametrize("name", WORDS)
def test_every_word_means_the_same_in_both(name):
    assert_same_derivative(WORDS[name])


@pytest.mark.parametrize("depth", [1, 2, 3, 5])
@pytest.mark.parametrize("name", STEPS)
def test_counting_each_part_once_equals_walking_through_all_that_is_written(name, depth):
    derivative = expression(compose(STEPS[name], depth), "x").diff()
    walked = sum(max(1, len(part.args) - 1) for part in sympy.preorder_traversal(derivative) if part.args)
    assert operations(derivative) == walked


def test_what_is_too_long_to_be_written_is_counted():
    x = sympy.Symbol("x")
    for _ in range(50):
        x = sympy.Function("f")(x, x)
    assert operations(x) == 2**50 - 1


def test_operations_of_what_is_no_expression_or_too_deep_are_refused():
    with pytest.raises(ArgumentError, match=r"takes a SymPy expression, but got PjitFunction.*operations\(expression"):
        operations(jnp.sin)
    x = sympy.Symbol("x")
    for _ in range(3000):
        x = sympy.Function("f")(x)
    with pytest.raises(OptionError, match="nests deeper"):
        operations(x)


def test_an_expression_is_exact_where_a_number_is_short():
    assert str(expression(lambda x: 0.75 * x**0.5 + 2.0, "u")) == "3*sqrt(u)/4 + 2"
    assert expression(logistic_map, sympy.Rational(1, 4)) == sympy.Rational(3, 4)
    assert expression(lambda x: jnp.float32(3.0), "x") == 3


def test_depths_come_out_ascending_and_once():
    assert swell(jnp.sin, [3, 1, 3]).depths == (1, 3)


@pytest.mark.parametrize("depths", [[], 3, "12", [0], [2, -1], [1.5], [True], None])
def test_depths_must_be_positive_integers(depths):
    with pytest.raises(OptionError, match="depths"):
        swell(jnp.sin, depths)


def test_a_depth_that_is_none_is_refused():
    with pytest.raises(OptionError, match="depth must be an integer of at least 1, but got 0"):
        compose(jnp.sin, 0)


def test_a_composition_too_deep_for_sympy_is_refused():
    with pytest.raises(OptionError, match=r"At depth 400, the expression nests deeper .* Compose fewer steps"):
        swell(jax.nn.sigmoid, [400])
    with pytest.raises(OptionError, match="The expression nests deeper"):
        expression(compose(jax.nn.sigmoid, 400), "x")


@pytest.mark.parametrize("word", ["floor", "scan", "while", "ne", "broadcast_in_dim", "convert_element_type"])
def test_an_operator_that_cannot_be_written_is_named_with_its_line(word):
    step = {
        "floor": lambda x: x - jnp.floor(x),
        "scan": lambda x: jax.lax.fori_loop(0, 3, lambda _, y: jnp.sin(y), x),
        "while": lambda x: jax.lax.while_loop(lambda y: y > 1, lambda y: y / 2, x),
        "ne": lambda x: jnp.where(x != 0, jnp.sin(x), x),
        "broadcast_in_dim": lambda x: jnp.sum(jnp.broadcast_to(x, (3,))),
        "convert_element_type": lambda x: x * x.astype(int),
    }[word]
    with pytest.raises(ArgumentError, match=rf"The operator {word} at \S*test_symbolic.py:\d+"):
        swell(step, [1])


@pytest.mark.parametrize(
    ("step", "error", "match"),
    [
        (3.0, ArgumentError, "takes a function"),
        (lambda x: jnp.stack([x, x]), NotScalarError, r"shape \(2,\)"),
        (lambda x: x * 1j, NotScalarError, "complex"),
        (lambda x: x if x > 0 else -x, ArgumentError, "cannot be traced"),
    ],
)
def test_a_step_must_be_a_traceable_function_from_a_number_to_a_number(step, error, match):
    with pytest.raises(error, match=match):
        swell(step, [1])
    with pytest.raises(error, match=match):
        expression(step, "x")


def test_an_expression_needs_a_name_or_an_expression():
    with pytest.raises(ArgumentError, match="x must be a name or a SymPy expression, but got float"):
        expression(jnp.sin, 1.0)


def test_a_missing_sympy_names_the_extra_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sympy", None)
    for use in (lambda: swell(jnp.sin, [1]), lambda: expression(jnp.sin, "x")):
        with pytest.raises(MissingExtraError, match=r'pip install "gradlab-jax\[symbolic\]"'):
            use()


def test_the_result_is_a_table_a_record_and_a_picture():
    found = swell(logistic_map, [1, 2, 3])
    assert str(found).splitlines()[1:] == [
        "depth  function  automatic  shared  symbolic",
        *(
            f"{d:5}  {f:8}  {a:9}  {c:6}  {s:8}"
            for d, f, a, c, s in zip((1, 2, 3), (3, 6, 9), (8, 16, 24), found.shared, found.symbolic, strict=True)
        ),
    ]
    assert json.loads(json.dumps(found.to_dict()))["automatic"] == [8, 16, 24]
    assert repr(found) == "Swell(logistic_map: depths 1 … 3)" and "<pre>" in found._repr_html_()
    ax = found.plot()
    assert ax.get_yscale() == "log" and len(ax.lines) == 4
    assert found.plot(ax) is ax


def test_a_constant_keeps_the_digits_that_were_written():
    assert str(expression(lambda x: 0.1 * x, "x")) == "0.1*x"
