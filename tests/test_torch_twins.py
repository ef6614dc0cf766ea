"""The PyTorch twins are the functions of the problem table: equal values and derivatives under every transform."""

import functools
import importlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import each_problem, hasty

from gradlab import problems

torch = pytest.importorskip("torch", reason="the twins are written in PyTorch")
SCRIPTS = Path(__file__).parent.parent / "scripts"
SECOND = tuple(p for p in problems.TABLE if {"hessian", "laplacian"} & set(p.of))
every_problem = each_problem()
every_second = each_problem(SECOND)


@pytest.fixture
def twins(monkeypatch):
    """The module, in a scope of float64: outside it, `same` would ask for the agreement of float32 alone."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    with jax.enable_x64(True):
        yield importlib.import_module("torch_twins")


@functools.cache
def solved(problem):
    """Arguments of 5 pieces in float64, and JAX's value and derivatives there.

    One program for all: drawing the numbers one by one costs more than the tests do.
    """
    if problem.requires == "data":
        pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    jacobian = jax.jacfwd if "reverse" in problem.unsupported else jax.jacrev

    def everything():
        f, args = problem.build(size=5)
        return args, f(*args), jacobian(f)(*args), jax.hessian(f)(*args) if problem in SECOND else None

    return jax.device_get(hasty(everything)())


def at_point(twins, problem):
    """The twin as a function of args[0] alone, and its point."""
    twin, tensors = twins.TWINS[problem.name], twins.to_torch(solved(problem)[0], dtype=torch.float64)
    return (lambda x: twin(x, *tensors[1:])), tensors[0]


def to_numpy(tree):
    """Through JAX's pytrees, whose dicts are sorted by key as PyTorch's are not."""
    return jax.tree.map(lambda tensor: tensor.numpy(), tree)


def test_every_problem_has_a_twin(twins):
    assert tuple(twins.TWINS) == problems.names()


@every_problem
def test_a_twin_has_the_value_and_the_jacobian_of_its_problem(twins, problem, same):
    (twin, point), (_, value, jacobian, _) = at_point(twins, problem), solved(problem)
    same(to_numpy(twin(point)), value)
    same(to_numpy(torch.func.jacrev(twin)(point)), jacobian)
    same(to_numpy(torch.func.jacfwd(twin)(point)), jacobian)


@every_second
def test_a_twin_has_the_hessian_of_its_problem(twins, problem, same):
    (twin, point), (*_, hessian) = at_point(twins, problem), solved(problem)
    same(to_numpy(torch.func.hessian(twin)(point)), hessian)


@every_problem
def test_vmap_of_a_twin_stacks_its_values(twins, problem, same):
    twin, point = at_point(twins, problem)
    other = jax.tree.map(lambda leaf: 1.01 * leaf, point)
    both = torch.func.vmap(twin)(jax.tree.map(lambda a, b: torch.stack([a, b]), point, other))
    same(to_numpy(both), to_numpy(jax.tree.map(lambda a, b: torch.stack([a, b]), twin(point), twin(other))))


@every_problem
def test_a_twin_keeps_the_dtype_and_the_device_of_its_arguments(twins, problem):
    # A tensor made elsewhere than the arguments would raise: meta tensors meet no others.
    for value in jax.tree.leaves(twins.TWINS[problem.name](*twins.to_torch(solved(problem)[0], device="meta"))):
        assert (value.dtype, value.device.type) == (torch.float32, "meta")


def test_kepler_has_converged_at_the_largest_eccentricity(twins):
    mean_anomaly = torch.linspace(-3.0, 3.0, 10_001, dtype=torch.float64)
    anomaly = twins.TWINS["kepler"](mean_anomaly, torch.full_like(mean_anomaly, 0.7))
    assert torch.max(torch.abs(anomaly - 0.7 * torch.sin(anomaly) - mean_anomaly)) < 2e-15


def test_to_torch_keeps_the_structure_and_copies(twins):
    array = np.ones((2, 3))
    tree = twins.to_torch({"b": (array, [jnp.arange(4)]), "a": 0.5})
    assert list(tree) == ["b", "a"] and isinstance(tree["b"], tuple) and isinstance(tree["b"][1], list)
    assert (tree["b"][0].dtype, tree["b"][1][0].dtype, tree["a"].dtype) == (torch.float32, torch.int64, torch.float32)
    array[:] = 7.0
    assert torch.all(tree["b"][0] == 1.0)


def test_to_torch_refuses_leaves_that_are_not_numbers(twins):
    with pytest.raises(TypeError, match="expected floating numbers or integers"):
        twins.to_torch({"a": np.asarray("words")})
