"""The tutorial's equations, as facts about gradlab's own functions; the id of each test is the number of its row."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gradlab as gl
from gradlab import fused, losses, models, symbolic
from gradlab.timing import compiled

FACTS = {}


def row(*numbers):
    """Register a fact under the numbers of its rows."""

    def register(fact):
        for number in numbers:
            assert number not in FACTS
            FACTS[number] = fact
        return fact

    return register


def slope(errors, steps):
    """The order of an error: the slope of log(error) over log(step)."""
    return np.polyfit(np.log(steps), np.log(errors), 1)[0]


SURFACE = lambda x: jnp.sin(x[0]) * x[1] ** 2 + x[0]
POINT = np.array([0.6, 1.3])
WAVE = lambda x: jnp.sin(3 * x) + x**2
DIRECTIONS = np.stack([np.cos(np.linspace(0, 2 * np.pi, 360, False)), np.sin(np.linspace(0, 2 * np.pi, 360, False))], 1)


@row("2.1")
def the_difference_quotient_converges_until_round_off_takes_over():
    with jax.enable_x64(True):
        exact = float(gl.derivative(WAVE)(0.7))
        steps = 2.0 ** -np.arange(2, 50)
        errors = np.array([abs(float((WAVE(0.7 + h) - WAVE(0.7)) / h) - exact) for h in steps])
    falling, rising = (steps < 1e-1) & (steps > 1e-6), steps < 1e-10
    assert slope(errors[falling], steps[falling]) == pytest.approx(1.0, abs=0.05)
    best = errors.argmin()
    assert 1e-10 < steps[best] < 1e-6
    # Round-off: the error is about eps/h, so it grows as h falls.
    noise = errors[rising] * steps[rising] / np.finfo(float).eps
    assert errors[rising].max() > 1e3 * errors[best] and noise.max() < 10


@row("2.2", "2.3")
def the_directional_derivatives_along_minus_and_plus_one_are_minus_and_plus_the_derivative():
    for x in (-1.2, 0.0, 0.7):
        along = lambda v, x=x: float(gl.directional_derivative(WAVE)(x, v))
        assert along(1.0) == float(gl.derivative(WAVE)(x)) == -along(-1.0)


@row("2.4")
def the_gradient_is_the_direction_of_the_largest_directional_derivative():
    for x in (-1.2, 0.7):
        best = max((-1.0, 1.0), key=lambda v: float(gl.directional_derivative(WAVE)(x, v)))
        assert float(gl.steepest_direction(WAVE)(x)) == best == np.sign(float(gl.derivative(WAVE)(x)))
    assert float(gl.steepest_direction(lambda x: x**2)(0.0)) == 0.0


@row("3.1", "3.2")
def partial_and_directional_derivatives_are_limits_of_quotients():
    with jax.enable_x64(True):
        h = 1e-6
        for v in DIRECTIONS[::45]:
            quotient = (SURFACE(POINT + h * v) - SURFACE(POINT - h * v)) / (2 * h)
            assert float(gl.directional_derivative(SURFACE)(POINT, v)) == pytest.approx(float(quotient), abs=1e-8)
        x, y = POINT
        partials = [np.cos(x) * y**2 + 1, 2 * np.sin(x) * y]
        np.testing.assert_allclose(gl.gradient(SURFACE)(POINT), partials, rtol=1e-12)


@row("3.3", "3.4")
def partial_derivatives_are_directional_derivatives_along_the_axes():
    g = gl.gradient(SURFACE)(jnp.asarray(POINT))
    along = gl.directional_derivative(SURFACE)
    np.testing.assert_allclose(along(POINT, jnp.array([1.0, 0.0])), g[0], rtol=1e-6)
    np.testing.assert_allclose(along(POINT, jnp.array([0.0, 1.0])), g[1], rtol=1e-6)


@row("3.5")
def the_directional_derivative_is_the_inner_product_with_the_gradient():
    g = np.asarray(gl.gradient(SURFACE)(jnp.asarray(POINT)))
    slopes = np.asarray(jax.vmap(lambda v: gl.directional_derivative(SURFACE)(POINT, v))(jnp.asarray(DIRECTIONS)))
    np.testing.assert_allclose(slopes, DIRECTIONS @ g, rtol=1e-5, atol=1e-5)
    unit = np.asarray(gl.steepest_direction(SURFACE)(jnp.asarray(POINT)))
    along = gl.directional_derivative(SURFACE)
    np.testing.assert_allclose(DIRECTIONS[slopes.argmax()] @ unit, 1, atol=2e-4)
    np.testing.assert_allclose(DIRECTIONS[slopes.argmin()] @ unit, -1, atol=2e-4)
    assert float(along(POINT, jnp.array([-unit[1], unit[0]]))) == pytest.approx(0, abs=1e-5)
    assert abs(int((slopes > 0).sum()) - len(slopes) // 2) <= 2


@row("a.1", "a.2", "a.3", "a.4", "a.5")
def the_remainder_of_the_linear_model_falls_like_the_square_of_the_step():
    with jax.enable_x64(True):
        v = DIRECTIONS[50]
        rate = float(gl.directional_derivative(SURFACE)(POINT, v))
        steps = 10.0 ** -np.arange(1, 5)
        errors = [abs(float(SURFACE(POINT + h * v) - SURFACE(POINT)) - h * rate) for h in steps]
    assert slope(errors, steps) == pytest.approx(2.0, abs=0.02)


@row("4.1")
def one_step_of_gradient_descent_worked():
    model = lambda theta: theta * 2.0
    loss = lambda theta: losses.l2(model(theta), 9.0)
    value, gradient = gl.value_and_gradient(loss)(5.0)
    assert (float(model(5.0)), float(value), float(gradient)) == (10.0, 1.0, 4.0)
    assert float(gl.derivative(lambda y: losses.l2(y, 9.0))(10.0)) == 2.0
    assert float(gl.derivative(model)(5.0)) == 2.0
    update, _ = optax.sgd(0.125).update(gradient, optax.sgd(0.125).init(5.0))
    assert float(optax.apply_updates(5.0, update)) == 4.5
    nodes = {node.operator: (float(node.value), float(node.adjoint)) for node in gl.graph(loss, 5.0).nodes}
    assert nodes == {"input": (5, 4), "mul": (10, 2), "sub": (1, 2), "square": (1, 1)}


@row("4.2")
def the_compiled_gradient_does_not_compute_the_loss_value():
    loss = lambda w: jnp.sum(jnp.tanh(w) * jnp.log(2.0 + jnp.cosh(w[0])))
    last = lambda w: jnp.exp(jnp.sum(w**2))  # its derivative needs the value; sum(w²) alone does not
    x = jnp.linspace(0.1, 1.0, 50)
    text = lambda f: compiled(f, x).compiled.as_text()
    square = lambda w: jnp.sum((w - 0.3) ** 2)
    assert "reduce(" in text(square) and "reduce(" not in text(gl.gradient(square))
    assert "exponential" in text(gl.gradient(last))
    assert bool(jnp.all(jnp.isfinite(gl.gradient(loss)(x))))


@row("5.1", "5.2")
def l2_and_its_derivative():
    prediction = jnp.linspace(-2.0, 4.0, 13)
    np.testing.assert_allclose(losses.l2(prediction, 1.0), (prediction - 1) ** 2)
    automatic = jax.vmap(gl.derivative(lambda p: losses.l2(p, 1.0)))(prediction)
    np.testing.assert_allclose(automatic, 2 * (prediction - 1))


def line_fit(loss, targets, x):
    """The slope and the intercept that descent on a loss finds."""
    objective = lambda p: jnp.mean(loss(p[0] * x + p[1], targets))
    step = lambda p, rate: (p - rate * gl.gradient(objective)(p), None)
    return jax.lax.scan(step, jnp.zeros(2), 0.3 / jnp.sqrt(1 + jnp.arange(4000.0)))[0]


@row("5.3", "5.4")
def l1_and_its_derivative_and_how_little_outliers_move_it():
    prediction = jnp.linspace(-2.0, 4.0, 13)
    assert 1.0 in prediction
    np.testing.assert_allclose(losses.l1(prediction, 1.0), np.abs(prediction - 1))
    automatic = jax.vmap(gl.derivative(lambda p: losses.l1(p, 1.0)))(prediction)
    np.testing.assert_array_equal(automatic, np.sign(prediction - 1))
    x = jnp.linspace(-1.0, 1.0, 40)
    clean = 2 * x + 0.5
    dirty = clean.at[-4:].add(20.0)
    moved = {
        loss.__name__: float(jnp.linalg.norm(line_fit(loss, dirty, x) - jnp.array([2.0, 0.5])))
        for loss in (losses.l1, losses.l2)
    }
    assert moved["l2"] > 3 and moved["l1"] < moved["l2"] / 20


@row("5.5", "5.6")
def sigmoid_and_its_derivative_and_their_limits():
    with jax.enable_x64(True):
        z = jnp.linspace(-12.0, 12.0, 97)
        s = losses.sigmoid(z)
        np.testing.assert_allclose(jax.vmap(gl.derivative(losses.sigmoid))(z), s * (1 - s), rtol=1e-10)
        np.testing.assert_allclose(losses.sigmoid_derivative(z), s * (1 - s), rtol=1e-10)
    assert [float(losses.sigmoid(v)) for v in (-jnp.inf, jnp.inf)] == [0.0, 1.0]
    assert [float(losses.sigmoid_derivative(v)) for v in (-jnp.inf, jnp.inf)] == [0.0, 0.0]
    assert (
        float(losses.sigmoid_derivative(jnp.linspace(-12.0, 12.0, 97)).max())
        == float(losses.sigmoid_derivative(0.0))
        == 0.25
    )


@row("5.7", "5.8", "5.9")
def logistic_loss_of_a_logit_and_its_derivative():
    z = jnp.concatenate([jnp.array([-1e4, 1e4]), jnp.linspace(-9.0, 9.0, 41)])
    for y in (0.0, 1.0):
        automatic = jax.vmap(gl.derivative(lambda z, y=y: losses.logistic(z, y)))(z)
        np.testing.assert_allclose(automatic, losses.sigmoid(z) - y, atol=1e-6)
        right = (z > 0) == (y == 1)
        size = np.abs(automatic)[z != 0]
        assert np.all(size[right[z != 0]] <= 0.5) and np.all(size[~right[z != 0]] >= 0.5) and np.all(size <= 1)
    assert [float(losses.logistic(1e4, y)) for y in (1.0, 0.0)] == [0.0, 1e4]


@row("5.2 ~ 5.9")
def linear_and_logistic_regression_share_the_form_of_their_gradient():
    features = jax.random.normal(jax.random.key(0), (20, 3))
    y = (features[:, 0] > 0).astype(jnp.float32)
    model = models.linear_regression(3)
    params = {"w": jnp.array([0.3, -0.2, 0.5]), "b": jnp.array(0.1)}
    scores = model.apply(params, features)
    for loss, prediction, factor in ((losses.l2, scores, 2), (losses.logistic, losses.sigmoid(scores), 1)):
        g = gl.gradient(lambda p, loss=loss: jnp.sum(loss(model.apply(p, features), y)))(params)
        np.testing.assert_allclose(g["w"], factor * (prediction - y) @ features, rtol=1e-4, atol=1e-4)


@row("5.10", "5.11")
def softmax_cross_entropy_and_its_derivative():
    logits = jax.random.normal(jax.random.key(1), (50, 6)) * 3
    target = jnp.arange(50) % 6
    g = jax.vmap(gl.gradient(losses.softmax_cross_entropy))(logits, target)
    hot = jax.nn.one_hot(target, 6)
    np.testing.assert_allclose(g, jax.nn.softmax(logits) - hot, atol=1e-6)
    assert np.all(np.abs(g) <= 1)
    # Descent goes along −g: the target's logit rises, every other falls.
    assert np.all((g < 0) == (hot == 1))
    for big in (1e4, -1e4):
        assert bool(jnp.all(jnp.isfinite(gl.gradient(losses.softmax_cross_entropy)(jnp.array([big, 0.0, -big]), 1))))


def reaching_input(depth, activation, residual, weight):
    """The size of the gradient at the input of a chain of layers of width one, over that of no layer."""
    model = models.mlp(
        (1,) * (depth + 2),
        activation=activation,
        residual=residual,
        initializer=jax.nn.initializers.constant(weight),
    )
    params = model.init(jax.random.key(0))
    head = abs(float(params[-1]["w"][0, 0]))
    return float(jnp.abs(gl.gradient(lambda x: model.apply(params, x)[0])(jnp.ones(1)))[0]) / head


@row("5.12")
def gradients_vanish_through_sigmoids_and_survive_relu_and_residuals():
    for depth in (2, 8, 20):
        for weight in (0.5, 1.0, 2.0):
            assert reaching_input(depth, losses.sigmoid, False, weight) <= (weight / 4) ** depth
        assert reaching_input(depth, jax.nn.relu, False, 1.0) == pytest.approx(1.0)
        assert reaching_input(depth, losses.sigmoid, True, 1.0) >= 1.0
    # Initialization decides the rest: a ReLU chain vanishes, keeps or explodes with its weights.
    sizes = [reaching_input(10, jax.nn.relu, False, weight) for weight in (0.5, 1.0, 2.0)]
    np.testing.assert_allclose(sizes, [2.0**-10, 1, 2.0**10], rtol=1e-5)


@row("6.1")
def the_chain_rule_is_a_dot_product():
    path = lambda t: jnp.stack([jnp.cos(t), t**2])
    t = 0.8
    inner = gl.derivative(path)(t)
    outer = gl.gradient(SURFACE)(path(t))
    np.testing.assert_allclose(gl.derivative(lambda t: SURFACE(path(t)))(t), jnp.dot(outer, inner), rtol=1e-5)


LOGITS = jax.random.normal(jax.random.key(5), (5,))
PULL = jax.random.normal(jax.random.key(6), (5,))


@row("6.2", "6.3", "6.4")
def the_partials_of_softmax_and_the_loss_derivative_as_their_sum():
    o = jax.nn.softmax(LOGITS)
    jac = gl.jacobian(jax.nn.softmax)(LOGITS)
    for i in range(5):
        for j in range(5):
            assert float(jac[i, j]) == pytest.approx(float(o[i] * ((i == j) - o[j])), abs=1e-6)
    g = gl.gradient(lambda x: jnp.dot(PULL, jax.nn.softmax(x)))(LOGITS)
    np.testing.assert_allclose(g, [sum(PULL[i] * jac[i, j] for i in range(5)) for j in range(5)], atol=1e-6)


@row("6.6")
def the_jacobian_of_softmax_is_diag_o_minus_o_o():
    o = jax.nn.softmax(LOGITS)
    for mode in ("forward", "reverse"):
        jac = gl.jacobian(jax.nn.softmax, mode=mode)(LOGITS)
        np.testing.assert_allclose(jac, jnp.diag(o) - jnp.outer(o, o), atol=1e-6)
    np.testing.assert_allclose(losses.softmax_jacobian(o), jnp.diag(o) - jnp.outer(o, o), atol=1e-7)
    tall = gl.jacobian(lambda x: jnp.stack([x[0], x[1], x[0] * x[1]]))(jnp.ones(2))
    assert tall.shape == (3, 2)


@row("6.7")
def the_vector_jacobian_product_is_the_derivative_of_the_loss():
    loss = lambda o: jnp.sum(o**3)
    v = gl.gradient(loss)(jax.nn.softmax(LOGITS))
    _, back = gl.pullback(jax.nn.softmax)(LOGITS, v)
    np.testing.assert_allclose(back, gl.gradient(lambda x: loss(jax.nn.softmax(x)))(LOGITS), atol=1e-6)
    np.testing.assert_allclose(back, gl.jacobian(jax.nn.softmax)(LOGITS).T @ v, atol=1e-6)


@row("6.8")
def the_softmax_pullback_agrees_with_automatic_differentiation_and_with_pytorch():
    x = np.random.default_rng(8).normal(size=(20, 7)).astype(np.float32)
    w = np.random.default_rng(9).normal(size=(20, 7)).astype(np.float32)
    closed = losses.softmax_pullback(jax.nn.softmax(x), w)
    _, automatic = gl.pullback(jax.nn.softmax)(x, w)
    np.testing.assert_allclose(closed, automatic, atol=1e-6)
    torch = pytest.importorskip("torch", reason='PyTorch is the peer here: pip install "gradlab-jax[peers]"')
    leaf = torch.tensor(x, requires_grad=True)
    torch.softmax(leaf, -1).backward(torch.tensor(w))
    np.testing.assert_allclose(closed, leaf.grad.numpy(), atol=1e-6)


@row("7.1")
def symbolic_derivatives_swell_and_automatic_ones_grow_by_the_same_operators_a_step():
    found = symbolic.swell(lambda x: 4 * x * (1 - x), [2, 4, 6, 8])
    assert len(set(np.diff(found.automatic))) == 1
    assert all(later > 4 * earlier for earlier, later in itertools.pairwise(found.symbolic))
    shares = np.array(found.symbolic) / np.array(found.shared)
    assert (np.diff(shares) > 0).all() and shares[-1] > 50  # names for what repeats take most of it back
    assert all(later > 2 * earlier for earlier, later in zip(found.shared, found.shared[2:], strict=False))


@row("7.2")
def a_program_is_an_acyclic_graph_of_operators_each_with_a_forward_and_a_backward():
    f = lambda w, x: losses.l2(jnp.tanh(x @ w), 1.0).sum()
    graph = gl.graph(f, jnp.ones((3, 2)) / 3, jnp.arange(12.0).reshape(4, 3) / 10)
    assert all(i < node.id for node in graph.nodes for i in node.inputs)
    assert all(node.value is not None and node.adjoint is not None for node in graph.nodes)
    for part in ("forward", "backward"):
        assert part in graph.to_html()


def primitives(q, k, v):
    scores = q @ k.T / jnp.sqrt(q.shape[-1])
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
    return weights / weights.sum(-1, keepdims=True) @ v


@row("7.3")
def attention_at_three_granularities_has_one_gradient_and_more_operators_the_finer_it_is():
    keys = jax.random.split(jax.random.key(0), 5)
    weights, x = [jax.random.normal(key, (4, 4)) / 2 for key in keys[:4]], jax.random.normal(keys[4], (6, 4))
    attend = {
        "one operator": fused.attention,
        "operators": lambda q, k, v: fused.softmax(q @ k.T / 2) @ v,
        "primitives": primitives,
    }
    gradients, sizes = {}, {}
    for name, core in attend.items():
        loss = lambda w, x, core=core: jnp.sum(jnp.sin(core(x @ w[0], x @ w[1], x @ w[2]) @ w[3]))
        gradients[name] = jnp.stack(gl.gradient(loss)(weights, x))
        sizes[name] = sum(node.owner is None for node in gl.graph(loss, weights, x).nodes)  # none inside a rule
    for found in gradients.values():
        np.testing.assert_allclose(found, gradients["primitives"], atol=1e-5)
    assert sizes["one operator"] < sizes["operators"] < sizes["primitives"]


@row("7.4")
def reverse_mode_is_the_transposed_jacobian_and_forward_mode_the_jacobian():
    f = lambda x: jnp.stack([jnp.sin(x[0]) * x[1], x[2] ** 2, x[0] + x[1] * x[2], x[1]])
    x, v, w = jnp.array([0.3, 1.1, -0.7]), jnp.array([1.0, -2.0, 0.5]), jnp.array([0.2, 1.0, -1.0, 3.0])
    jac = jax.jit(gl.jacobian(f))(x)
    assert jac.shape == (4, 3)
    np.testing.assert_allclose(gl.pushforward(f)(x, v)[1], jac @ v, rtol=1e-5)
    np.testing.assert_allclose(gl.pullback(f)(x, w)[1], jac.T @ w, rtol=1e-5)
    costs = {}
    for name, shape in {"tall": (200, 2), "wide": (2, 200)}.items():
        matrix = jnp.ones(shape)
        f = lambda x, m: jnp.cumsum(jnp.tanh(m @ jnp.cumsum(x)))
        result = gl.compare(f, jnp.ones(shape[1]) / 200, matrix, repeats=1)
        costs[name] = {row.mode: row.flops for row in result.rows}
    assert costs["tall"]["forward"] < costs["tall"]["reverse"]
    assert costs["wide"]["reverse"] < costs["wide"]["forward"]


@row("7.5")
def local_models_err_like_the_next_power_of_the_step():
    with jax.enable_x64(True):
        x, d = jnp.asarray(POINT), jnp.asarray(DIRECTIONS[20])
        steps = 10.0 ** -np.linspace(0.5, 2.5, 9)
        for order in (1, 2, 3):
            model = gl.taylor(SURFACE, order)(x)
            error = jax.jit(lambda h, model=model: abs(SURFACE(x + h * d) - model(x + h * d)))
            errors = [float(error(h)) for h in steps]
            assert slope(errors, steps) == pytest.approx(order + 1, abs=0.1)
        second = SURFACE(x) + gl.gradient(SURFACE)(x) @ d + d @ gl.hessian(SURFACE)(x) @ d / 2
        np.testing.assert_allclose(gl.taylor(SURFACE, 2)(x)(x + d), second, rtol=1e-12)


@pytest.mark.parametrize("number", FACTS)
def test_equation(number):
    FACTS[number]()


def test_every_row_has_its_test():
    sections = {"2": 4, "3": 5, "a": 5, "4": 2, "5": 12, "6": 8, "7": 5}
    rows = {f"{section}.{i}" for section, last in sections.items() for i in range(1, last + 1)}
    assert rows - {"6.5"} | {"5.2 ~ 5.9"} == set(FACTS)  # the tutorial has no equation 6.5
