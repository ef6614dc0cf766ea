"""The computation graph: values and adjoints are those of JAX, operator by operator, whatever holds the operators."""

import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import drawn, hasty
from jax.extend import core

import gradlab as gl
from gradlab import problems
from gradlab.errors import ArgumentError, NotScalarError, OptionError, ShapeError, StructureError
from gradlab.graphs import passes
from gradlab.graphs.blocks import blocks
from gradlab.graphs.record import Statistics
from gradlab.jaxprs import listing, trace

SCALAR = [p.name for p in problems.TABLE if "gradient" in p.of]
PERTURBED = ["rosenbrock", "gmm", "digits_mlp", "lennard_jones", "logistic_regression"]
X = np.linspace(0.3, 1.7, 4).astype(np.float32)


def unrolled_net(x):
    for _ in range(400):
        x = jnp.sin(x) * 0.5 + x
    return jnp.sum(x)


def test_the_worked_step_has_its_numbers_on_its_nodes():
    graph = gl.graph(lambda theta: (2.0 * theta - 9.0) ** 2, 5.0)
    numbers = {node.operator: (float(node.value), float(node.adjoint)) for node in graph.nodes}
    assert numbers == {"input": (5, 4), "mul": (10, 2), "sub": (1, 2), "integer_pow": (1, 1)}


@pytest.mark.parametrize("name", SCALAR)
@pytest.mark.parametrize("open_calls", [True, False])
def test_adjoints_of_the_inputs_are_the_gradient(name, open_calls, same):
    problem = problems.get(name)
    f, args = drawn(problem, min(problem.size, 16))
    graph = gl.graph(f, *args, open_calls=open_calls)
    wanted = jax.tree.leaves(hasty(jax.grad(f))(*args))
    for node, expected in zip(graph.inputs, wanted, strict=False):
        same(jnp.asarray(node.adjoint), expected, 2e-5)


@pytest.mark.parametrize("name", PERTURBED)
def test_an_adjoint_is_the_derivative_by_what_is_added_to_its_node(name, same):
    problem = problems.get(name)
    f, args = drawn(problem, min(problem.size, 8))
    leaves, structure = jax.tree.flatten(args)
    moving = [i for i, leaf in enumerate(leaves) if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)]

    def flat(*moved):
        full = list(leaves)
        for i, a in zip(moving, moved, strict=True):
            full[i] = a
        return f(*jax.tree.unflatten(structure, full))

    closed = jax.make_jaxpr(flat)(*[leaves[i] for i in moving])
    jaxpr = getattr(closed, "jaxpr", closed)

    def perturbed(added, at):
        values = dict(zip(jaxpr.invars, [leaves[i] for i in moving], strict=True))
        values.update(zip(jaxpr.constvars, closed.consts, strict=True))
        for k, eqn in enumerate(jaxpr.eqns):
            operands = [v.val if isinstance(v, core.Literal) else values[v] for v in eqn.invars]
            results = eqn.primitive.bind(*operands, **eqn.primitive.get_bind_params(eqn.params))
            results = list(results) if eqn.primitive.multiple_results else [results]
            results[0] = results[0] + added if k == at else results[0]
            values.update(zip(eqn.outvars, results, strict=True))
        return values[jaxpr.outvars[0]]

    graph = gl.graph(f, *args, open_calls=False, keep_values=True)
    operators = [node for node in graph.nodes if node.operator not in ("input", "constant")]
    assert [node.operator for node in operators] == [eqn.primitive.name for eqn in jaxpr.eqns]
    smooth = [k for k, node in enumerate(operators) if isinstance(node.adjoint, np.ndarray)]
    for k in smooth[:: max(1, len(smooth) // 5)]:
        wanted = jax.grad(perturbed)(jnp.zeros(operators[k].shape, operators[k].dtype), k)
        same(jnp.asarray(operators[k].adjoint), wanted, 2e-5)


@pytest.mark.parametrize("limit", [0, 2**30])
def test_values_that_are_computed_anew_give_the_same_graph(limit, monkeypatch, same):
    monkeypatch.setattr(passes, "RESIDENT_BYTES", limit)
    graph = gl.graph(unrolled_net, X)
    same(jnp.asarray(graph.inputs[0].adjoint), jax.grad(unrolled_net)(X), 1e-4)
    assert len(graph.nodes) == 1202 and all(node.adjoint is not None for node in graph.nodes)


def test_a_loop_that_python_unrolled_is_compiled_a_few_times():
    made = blocks(listing(trace(unrolled_net, X)))
    assert len(made) > 4 and len({block.key for block in made}) <= 2


def test_literals_and_parameters_tell_blocks_apart():
    functions = (lambda x: x**-1, lambda x: x**-2, lambda x: x * 2.0, lambda x: x * 3.0)
    keys = {blocks(listing(trace(f, X)))[0].key for f in functions}
    assert len(keys) == len(functions)


def test_operators_get_the_numbers_of_the_one_before_not_what_a_compiler_makes_of_both():
    graph = gl.graph(lambda x: jnp.log(jnp.exp(x)), 1000.0)
    assert [float(node.value) for node in graph.nodes] == [1000, np.inf, np.inf]


def test_large_arrays_are_shown_as_statistics_and_inputs_whole():
    x = jnp.linspace(-1.0, 3.0, 5000)
    graph = gl.graph(lambda x: jnp.sum(2.0 * x), x)
    doubled = graph.nodes[1]
    assert isinstance(doubled.value, Statistics) and (doubled.value.min, doubled.value.max) == (-2, 6)
    np.testing.assert_allclose(doubled.value.rms, np.sqrt(np.mean(4 * np.asarray(x) ** 2)), rtol=1e-5)
    assert graph.inputs[0].adjoint.shape == (5000,)
    kept = gl.graph(lambda x: jnp.sum(2.0 * x), x, keep_values=True).nodes[1]
    np.testing.assert_array_equal(kept.value, 2 * np.asarray(x))


def scanned(w, xs):
    return jnp.sum(jax.lax.scan(lambda c, x: (jnp.tanh(w * c + x), c * x), 0.1, xs)[1])


@pytest.mark.parametrize("reverse", [False, True])
def test_a_scan_opened_at_an_iteration_has_the_adjoints_of_that_iteration(reverse, same):
    def f(xs, shift):
        body = lambda carry, x: (jnp.sin(carry[0] * x[0]) + x[1], carry[0])
        run = lambda c, both: (lambda new, y: ((new,), y))(*body(c, both))
        return jnp.sum(jax.lax.scan(run, (0.5,), (xs, shift), reverse=reverse)[1] ** 2)

    shift = jnp.zeros(4)
    graph = gl.graph(f, X, shift)
    scan = next(node for node in graph.nodes if node.operator == "scan")
    by_shift = jax.grad(f, 1)(X, shift)
    for k in range(4):
        opened = graph.open(scan, k)
        index = 3 - k if reverse else k
        same(jnp.asarray(opened.inputs[-1].adjoint), by_shift[index])
        same(jnp.asarray(opened.inputs[-2].value), jnp.asarray(X[index]))


def test_a_while_loop_is_pulled_back_though_jax_cannot(same):
    def f(x):
        return jax.lax.while_loop(lambda s: s[0] < 3, lambda s: (s[0] + 1, jnp.sin(s[1]) * x), (0, x))[1]

    def same_unrolled(x):
        y = x
        for _ in range(3):
            y = jnp.sin(y) * x
        return y

    graph = gl.graph(f, 0.7)
    same(jnp.asarray(graph.inputs[0].adjoint), jax.grad(same_unrolled)(0.7))
    loop = next(node for node in graph.nodes if node.operator == "while")
    assert float(graph.open(loop, 0).outputs[-1].value) == pytest.approx(np.sin(0.7) * 0.7)


def test_a_cond_opens_as_the_branch_that_was_taken():
    f = lambda x: jax.lax.cond(x > 0, jnp.sin, jnp.cos, x)
    graph = gl.graph(f, 0.5)
    branch = graph.open(next(node for node in graph.nodes if node.operator == "cond"))
    assert [node.operator for node in branch.nodes] == ["input", "sin"]
    assert float(branch.inputs[0].adjoint) == pytest.approx(np.cos(0.5))


def test_opening_what_holds_nothing_says_so():
    graph = gl.graph(jnp.sin, 0.5)
    with pytest.raises(OptionError, match="holds no program"):
        graph.open(1)
    with pytest.raises(OptionError, match="must be an operator"):
        graph.open(0)
    looped = gl.graph(scanned, 0.5, X)
    with pytest.raises(OptionError, match=r"0 … 3"):
        looped.open(next(node for node in looped.nodes if node.operator == "scan"), 4)


def test_a_rule_takes_the_place_of_the_operators_inside():
    double = jax.custom_vjp(lambda x: jnp.sin(x))
    double.defvjp(lambda x: (double(x), None), lambda _, w: (7.0 * w,))
    graph = gl.graph(lambda x: double(x) * 2.0, 0.3)
    inside = next(node for node in graph.nodes if node.operator == "sin")
    rule = graph.nodes[inside.owner]
    assert inside.adjoint is None and float(rule.adjoint) == 2 and float(graph.inputs[0].adjoint) == 14
    assert float(rule.value) == float(inside.value)


def test_an_operator_without_a_rule_is_a_node_without_a_pullback():
    shape = jax.ShapeDtypeStruct((), jnp.float32)
    f = lambda x: jax.pure_callback(lambda x: np.sin(np.asarray(x)), shape, x) * 2.0 + x
    graph = gl.graph(f, jnp.float32(0.5))
    callback = next(node for node in graph.nodes if "callback" in node.operator)
    assert callback.note and float(callback.adjoint) == 2 and graph.inputs[0].adjoint is None
    assert callback.note in str(graph) and graph.blame() is None


def test_integers_keys_and_python_values_are_held_fixed(same):
    def f(x, key, count, name):
        assert name == "plain"
        return jnp.sum(x[:count] * jax.random.normal(key, (count,)))

    args = (X, jax.random.key(1), 3, "plain")
    graph = gl.graph(f, *args)
    assert [node.label for node in graph.inputs] == ["args[0]"]
    same(jnp.asarray(graph.inputs[0].adjoint), jax.grad(lambda x: f(x, *args[1:]))(X))


def test_a_cotangent_gives_adjoints_to_any_output(same):
    f = lambda p: {"y": jnp.outer(p["a"], p["b"]), "n": jnp.argmax(p["a"])}
    p = {"a": X, "b": X[:3]}
    w = {"y": jnp.ones((4, 3)), "n": False}
    graph = gl.graph(f, p, cotangent=w)
    expected = jax.vjp(lambda p: f(p)["y"], p)[1](w["y"])[0]
    for node, leaf in zip(graph.inputs, jax.tree.leaves(expected), strict=True):
        same(jnp.asarray(node.adjoint), leaf)
    with pytest.raises(ShapeError, match=r"cotangent\['y'\]"):
        gl.graph(f, p, cotangent={"y": jnp.ones(3), "n": False})
    with pytest.raises(StructureError, match="cotangent must have the structure"):
        gl.graph(f, p, cotangent=jnp.ones(3))


def test_without_a_cotangent_a_vector_has_values_alone():
    graph = gl.graph(jnp.sin, X)
    assert all(node.adjoint is None for node in graph.nodes)
    with pytest.raises(NotScalarError, match="pass cotangent="):
        graph.blame()


def test_aux_is_not_pulled_back():
    graph = gl.graph(lambda x: (x**2, jnp.exp(x)), 3.0, has_aux=True)
    assert float(graph.inputs[0].adjoint) == 6
    with pytest.raises(OptionError, match="must return a pair"):
        gl.graph(jnp.sin, 3.0, has_aux=True)


def test_what_cannot_be_traced_is_said_before_anything_runs():
    with pytest.raises(ArgumentError, match="takes a function"):
        gl.graph(3.0)
    with pytest.raises(ArgumentError, match=r"jnp\.where"):
        gl.graph(lambda x: x if x > 0 else -x, 1.0)
    with pytest.raises(ArgumentError, match="outside of jit"):
        jax.jit(lambda x: gl.graph(jnp.sin, x).nodes[0].value)(1.0)


def test_scopes_lines_flops_and_dtypes_are_on_the_nodes():
    def f(x, w):
        with jax.named_scope("first"):
            y = x @ w
        return jnp.sum(y.astype(jnp.bfloat16))

    graph = gl.graph(f, jnp.ones((5, 3)), jnp.ones((3, 2)))
    product = next(node for node in graph.nodes if node.operator == "dot_general")
    assert (product.scope, product.flops, product.shape) == ("first", 60, (5, 2))
    assert re.search(r"test_graphs\.py:\d+$", product.source)
    assert any(str(node.dtype) == "bfloat16" for node in graph.nodes)


def test_the_same_jitted_helper_called_twice_names_each_caller():
    helper = jax.jit(lambda x: jnp.sin(x))
    first = lambda x: helper(x)
    second = lambda x: helper(x)
    lines = [gl.graph(f, 1.0).nodes[-1].source for f in (first, second)]
    here = [int(line.rpartition(":")[2]) for line in lines]
    assert here[0] == here[1]  # the line inside of the helper, whoever called it first
    caught = [gl.graph(lambda x, g=g: jnp.linalg.norm(g(x)), jnp.ones(2)).nodes[-1].source for g in (first, second)]
    assert caught[0] == caught[1] and caught[0] != lines[0]


def test_flow_shrinks_through_sigmoids_and_not_along_residuals():
    def deep(activation, residual):
        def f(x, weights):
            for i, w in enumerate(weights):
                with jax.named_scope(f"layer{i}"):
                    x = activation(x @ w) + (x if residual else 0.0)
            return jnp.sum(x)

        return f

    weights = list(0.1 * jax.random.normal(jax.random.key(0), (12, 16, 16)))
    args = (jnp.ones((2, 16)), weights)
    sigmoid = gl.graph(deep(jax.nn.sigmoid, False), *args).flow()
    residual = gl.graph(deep(jnp.tanh, True), *args).flow("scope")
    assert [layer.name for layer in sigmoid.layers] == [f"layer{i}" for i in range(12)]
    assert all(layer.ratio < 0.25 for layer in sigmoid.layers[:-1])
    assert all(0.5 < layer.ratio < 2 for layer in residual.layers[:-1])
    by_depth = gl.graph(lambda x: jnp.sum(jnp.sin(x) * 2.0), X).flow()
    assert by_depth.by == "depth" and [layer.name for layer in by_depth.layers] == ["1", "2", "3"]
    np.testing.assert_allclose(by_depth.layers[0].adjoint, 2.0)
    with pytest.raises(OptionError, match="named_scope"):
        gl.graph(jnp.sin, 1.0).flow("scope")
    with pytest.raises(OptionError, match="by must be"):
        gl.graph(jnp.sin, 1.0).flow("layers")


def test_views_show_every_node():
    def f(p, x):
        with jax.named_scope('a "quoted" <scope>'):
            return jnp.sum(jax.nn.relu(x @ p["w"]))

    graph = gl.graph(f, {"w": jnp.ones((3, 2))}, jnp.ones((4, 3)))
    text, dot, page = str(graph), graph.to_dot(), graph.to_html()
    assert all(f"\n{node.id:2} " in text for node in graph.nodes)
    assert dot.count("label=") == len(graph.nodes) + 1 and dot.count("{") == dot.count("}")
    assert page.count('<g class="node') == len(graph.nodes)
    assert not re.search(r"https?://", page) and "<scope>" not in page
    ax = graph.plot()
    assert len(ax.texts) > len(graph.nodes)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ax.figure.canvas.draw()
    assert len(graph.flow().plot().lines) == 2
    assert "<table>" in graph._repr_html_() and repr(graph) == f"Graph(f: {len(graph.nodes)} nodes)"


def test_a_long_table_leaves_out_its_middle():
    text = str(gl.graph(unrolled_net, X))
    assert "1122 more" in text and len(text.splitlines()) < 100
