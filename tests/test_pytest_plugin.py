"""The plugin costs nothing until a test asks, skips by platform, and reports every check, also from workers."""

import subprocess
import sys
from importlib import metadata

import pytest

INSTALLED = any(e.value == "gradlab.pytest_plugin" for e in metadata.entry_points(group="pytest11"))
pytestmark = pytest.mark.skipif(not INSTALLED, reason="gradlab is on the path, but not installed with its entry point")

TESTS = """
import jax, jax.numpy as jnp, pytest

def test_right(assert_derivatives):
    assert assert_derivatives(jnp.sin, 0.3).ok

def test_kink(assert_derivatives):
    assert_derivatives(jnp.abs, 0.0)

@pytest.mark.derivatives(allow_stop_gradient=True)
def test_default_of_the_marker(assert_derivatives):
    assert_derivatives(lambda x: x * jax.lax.stop_gradient(x), 2.0)

def test_of_something_else():
    pass
"""


def test_loading_it_imports_neither_jax_nor_the_rest_of_gradlab():
    code = (
        "import sys, gradlab.pytest_plugin; "
        "assert 'jax' not in sys.modules; "
        "assert not [m for m in sys.modules if m.startswith('gradlab.') and m != 'gradlab.pytest_plugin']"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_checks_are_summed_up_with_verdict_and_power(pytester):
    pytester.makepyfile(TESTS)
    result = pytester.runpytest("-q")
    result.assert_outcomes(passed=3, failed=1)
    result.stdout.fnmatch_lines(
        [
            "*WrongDerivativeError: derivative of abs: kink*",
            "*gradlab: derivatives*",
            "ok *sin, an error of *",
            "kink *abs*",
        ]
    )


def test_checks_come_back_from_workers(pytester):
    pytester.makepyfile("import jax.numpy as jnp\ndef test_it(assert_derivatives): assert_derivatives(jnp.sin, 0.3)")
    result = pytester.runpytest_subprocess("-q", "-n", "1")
    result.stdout.fnmatch_lines(["*gradlab: derivatives*", "ok *sin, an error of *"])


def test_an_absent_platform_skips_the_tests_of_derivatives_alone(pytester):
    pytester.makepyfile(TESTS)
    result = pytester.runpytest("-q", "-rs", "--gradlab-platform", "tpu")
    result.assert_outcomes(skipped=3, passed=1)
    result.stdout.fnmatch_lines(["*--gradlab-platform tpu:*"])


def test_a_platform_that_is_there_is_used(pytester):
    pytester.makepyfile(TESTS.split("def test_kink")[0])
    pytester.runpytest("-q", "--gradlab-platform", "cpu").assert_outcomes(passed=1)


def test_the_marker_is_known_and_can_be_selected(pytester):
    pytester.makepyfile(TESTS)
    pytester.runpytest("-q", "--strict-markers", "-m", "derivatives").assert_outcomes(passed=1, deselected=3)
