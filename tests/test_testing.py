"""The assertion fails with the report, and runs where it is told to."""

import jax
import jax.numpy as jnp
import pytest

from gradlab import errors, testing


def test_a_right_derivative_returns_its_check():
    assert testing.assert_derivatives(jnp.sin, 0.3, order=2).ok


def test_a_wrong_one_raises_an_assertion_with_the_report():
    with pytest.raises(AssertionError, match=r"kink at args\[0\]") as caught:
        testing.assert_derivatives(jnp.abs, 0.0)
    assert isinstance(caught.value, errors.GradlabError)


def test_options_are_those_of_check():
    assert testing.assert_derivatives(lambda x: x * jax.lax.stop_gradient(x), 2.0, allow_stop_gradient=True).ok


def test_a_platform_is_a_scope():
    with testing.on_platform("cpu"):
        assert jnp.ones(()).device.platform == "cpu"
    with pytest.raises(RuntimeError), testing.on_platform("no such platform"):
        pass
