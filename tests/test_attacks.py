"""Attacks stay within their budget and range, are as strong as the mathematics allows, and name what does not fit."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gradlab as gl
from gradlab.attacks import fgsm, pgd, robust_accuracy
from gradlab.errors import (
    ArgumentError,
    EmptyInputError,
    NonFiniteError,
    NotDifferentiableError,
    NotScalarError,
    OptionError,
    ShapeError,
    StructureError,
)
from gradlab.losses import softmax_cross_entropy
from gradlab.problems import digits

KEY, LABELS = jax.random.key(0), jnp.zeros(5, int)
W = jnp.array([[3.0, -1.0], [0.0, 0.25], [-2.0, 4.0]])  # of shape [3, 2], as one input
X = jax.random.uniform(jax.random.key(1), (5, 3, 2))
X16 = 16 * X
EVERYWHERE = (-jnp.inf, jnp.inf)
ATTACKS = {
    "fgsm": fgsm,
    "pgd": partial(pgd, key=KEY, restarts=2),
    "pgd in l2": partial(pgd, norm="l2", key=KEY, restarts=2),
}


def linear(x, y=None):
    """One number for each example: ⟨w, x⟩."""
    return jnp.sum(x * W.astype(x.dtype), axis=(1, 2))


@pytest.fixture(scope="module")
def trained():
    """The logits of a trained network, its loss of each image, and images that it has not seen."""
    model = digits.classifier("mlp")
    train, test = digits.split(test=200)
    start = model.init(jax.random.key(1))
    options = {"optimizer": digits.recipe("adam"), "steps": 300, "batch_size": 64, "key": jax.random.key(2)}
    logits = partial(model.apply, gl.descend(digits.cross_entropy(model), start, data=train, **options).params)
    return logits, lambda x, y: softmax_cross_entropy(logits(x), y), test


def length(change, norm):
    """The norm of each example's change, in float64."""
    flat = np.asarray(change).reshape(len(change), -1)
    return np.linalg.norm(flat, ord=np.inf if norm == "linf" else 2, axis=1)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_accuracy_falls_with_the_budget_from_the_clean_one_to_nothing(trained, norm):
    logits, _, (x, y) = trained
    epsilons = jnp.array([0.0, 0.05, 0.1, 0.2, 0.4]) * (1 if norm == "linf" else 4)
    accuracy = robust_accuracy(logits, x, y, epsilons=epsilons, attack=partial(pgd, norm=norm))
    clean = np.mean(np.argmax(logits(x), axis=-1) == y)
    assert clean > 0.9 and float(accuracy[0]) == pytest.approx(clean)
    assert bool(jnp.all(jnp.diff(accuracy) < 0)) and float(accuracy[-1]) < 0.01
    assert float(accuracy[3]) < 0.5 * clean  # a fifth of the range


def test_pgd_is_never_weaker_than_fgsm(trained):
    logits, loss, (x, y) = trained
    epsilons = jnp.array([0.01, 0.05, 0.1, 0.15, 0.2])
    losses = lambda attack: jax.lax.map(lambda epsilon: loss(attack(loss, x, y, epsilon=epsilon), y), epsilons)
    one_step, many = losses(fgsm), losses(pgd)
    assert bool(jnp.all(many >= one_step * (1 - 1e-6) - 1e-7))  # every image, every budget
    assert bool(jnp.all(jnp.mean(many, axis=1) > jnp.mean(one_step, axis=1)))
    accuracy = partial(robust_accuracy, logits, x, y, epsilons=epsilons)
    weaker, stronger, both = accuracy(attack=fgsm), accuracy(attack=pgd), accuracy(attack=(fgsm, pgd))
    assert bool(jnp.all(stronger <= weaker)) and bool(jnp.all(both <= stronger))


def test_more_starts_find_no_less():
    bumpy = lambda x, y: jnp.sum(jnp.sin(40 * x), axis=(1, 2))
    gain = lambda **options: bumpy(pgd(bumpy, X, None, epsilon=0.3, **options), None) - bumpy(X, None)
    none, many = gain(), gain(key=KEY, restarts=10)
    assert bool(jnp.all(none >= 0)) and bool(jnp.all(many >= 0)) and float(jnp.mean(many)) > float(jnp.mean(none))


@pytest.mark.parametrize("name", ATTACKS)
def test_an_adversarial_image_is_within_its_budget_and_its_range(trained, name):
    _, loss, (x, y) = trained
    x, y = x[:40] * 0.98 + 0.01, y[:40]  # digits are whole sixteenths, whose sums would need no rounding
    attack = jax.jit(lambda x, epsilon: ATTACKS[name](loss, x, y, epsilon=epsilon))
    for epsilon in jnp.array([0.0, 1e-6, 0.1, 0.7]):
        adversarial = attack(x, epsilon)
        assert adversarial.shape == x.shape and adversarial.dtype == x.dtype
        assert float(adversarial.min()) >= 0 and float(adversarial.max()) <= 1
        if "l2" in name:
            change = np.asarray(adversarial, np.float64) - np.asarray(x, np.float64)
            assert length(change, "l2").max() <= float(epsilon) * (1 + 1e-6)
        else:
            assert bool(jnp.all(jnp.abs(adversarial - x) <= epsilon))  # to the last bit


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_rounding_never_breaks_the_budget(name):
    x = jax.random.uniform(KEY, (400, 3, 2), jnp.dtype(name))
    for attack in (fgsm, partial(pgd, steps=3, key=KEY)):
        run = jax.jit(partial(attack, linear, x, None, bounds=EVERYWHERE))
        for epsilon in jnp.array([1e-3, 0.1, 1.7], x.dtype):
            change = run(epsilon=epsilon) - x
            assert change.dtype == x.dtype and bool(jnp.all(jnp.abs(change) <= epsilon))


def test_fgsm_is_the_worst_case_of_a_linear_loss_and_pgd_reaches_it(dtype, same):
    x = X.astype(dtype)
    worst = linear(x) + 0.3 * jnp.sum(jnp.abs(W.astype(dtype)))
    for attack in (fgsm, pgd):
        same(linear(jax.jit(partial(attack, linear, epsilon=0.3, bounds=EVERYWHERE))(x, None)), worst)
    corner = jnp.where(W > 0, jnp.minimum(x + 0.3, 1), jnp.maximum(x - 0.3, 0)).astype(dtype)
    same(linear(jax.jit(partial(pgd, linear, epsilon=0.3, key=KEY))(x, None)), linear(corner))  # in the range, too


def test_pgd_in_l2_reaches_the_point_along_the_gradient(dtype, same):
    x, w = X.astype(dtype), W.astype(dtype)
    for targeted, sign in ((False, 1), (True, -1)):
        attack = jax.jit(partial(pgd, linear, epsilon=0.3, norm="l2", targeted=targeted, bounds=EVERYWHERE))
        same(attack(x, None), x + sign * 0.3 * w / jnp.linalg.norm(w))


def test_steps_find_a_maximum_inside_the_ball():
    bowl = lambda x, y: -jnp.sum((x - y) ** 2, axis=1)
    x, y = jnp.full((2, 3), 0.5), jnp.array([[0.6, 0.5, 0.4], [0.5, 0.5, 0.5]])
    np.testing.assert_allclose(pgd(bowl, x, y, epsilon=0.3, steps=300), y, atol=3e-3)


def test_steps_find_a_maximum_on_the_sphere():
    slope, curvature = jnp.array([1.0, 1.0]), jnp.array([4.0, 0.0])
    curved = lambda x, y: x @ slope - 0.5 * x**2 @ curvature
    highest = slope / (curvature + 1)  # where the gradient, slope - curvature x, is x itself
    radius = float(jnp.linalg.norm(highest))
    found = pgd(curved, jnp.zeros((1, 2)), None, epsilon=radius, norm="l2", steps=100, bounds=EVERYWHERE)
    np.testing.assert_allclose(found[0], highest, atol=1e-3)


@pytest.mark.parametrize("name", ATTACKS)
def test_a_targeted_attack_lowers_the_loss_of_the_target(trained, name):
    logits, loss, (x, y) = trained
    x, target = x[:50], (y[:50] + 1) % 10
    epsilon = 1.2 if "l2" in name else 0.2
    adversarial = jax.jit(partial(ATTACKS[name], loss, epsilon=epsilon, targeted=True))(x, target)
    assert float(jnp.mean(loss(adversarial, target))) < 0.7 * float(jnp.mean(loss(x, target)))
    if name != "fgsm":
        assert bool(jnp.all(loss(adversarial, target) <= loss(x, target) + 1e-6))
        assert float(jnp.mean(jnp.argmax(logits(adversarial), axis=-1) == target)) > 0.5


def test_same_key_same_bits_and_another_key_another_start():
    options = {"epsilon": 0.3, "steps": 1, "step_size": 1e-3}
    bumpy = lambda x, y: jnp.sum(jnp.sin(40 * x), axis=(1, 2))
    one, again, other = (pgd(bumpy, X, None, key=jax.random.key(k), **options) for k in (1, 1, 2))
    assert np.array_equal(one, again) and not np.array_equal(one, other)
    raw = pgd(bumpy, X, None, key=jax.random.PRNGKey(1), **options)
    assert np.array_equal(raw, one)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_starts_fill_the_ball(norm):
    flat = lambda x, y: jnp.where(jnp.sum(jnp.abs(x - 0.5), axis=1) > 0, 1.0, 0.0) + 0 * jnp.sum(x, axis=1)
    x, draw = jnp.full((2000, 2), 0.5), lambda x: pgd(flat, x, None, epsilon=0.4, steps=1, norm=norm, key=KEY)
    distance = length(jax.jit(draw)(x) - x, norm) / 0.4
    assert distance.max() <= 1 + 1e-6
    assert np.mean(distance < 0.5) == pytest.approx(0.25, abs=0.04)  # half the side, a quarter of the area


@pytest.mark.parametrize("name", ATTACKS)
def test_jit_and_vmap_over_the_budget_agree_with_the_plain_call(name, same):
    bumpy = lambda x, y: jnp.sum(jnp.sin(3 * x) * W, axis=(1, 2)) * y
    attack = lambda epsilon: ATTACKS[name](bumpy, X, jnp.linspace(0.5, 1.5, len(X)), epsilon=epsilon)
    for one, epsilon in zip(jax.jit(jax.vmap(attack))(jnp.array([0.0, 0.02, 0.5])), (0.0, 0.02, 0.5), strict=True):
        same(one, jax.jit(attack)(epsilon))
    same(one, attack(0.5))


def test_robust_accuracy_runs_under_jit_and_vmap(same):
    logits = lambda w, x: jnp.stack([linear(x * w), jnp.full(len(x), 1.0)], axis=-1)
    y = jnp.array([0, 1, 0, 1, 0])
    accuracy = lambda w, epsilons: robust_accuracy(partial(logits, w), X, y, epsilons=epsilons)
    epsilons, ws = jnp.array([0.3, 0.0, 0.1]), jnp.array([1.0, -1.0])
    mapped = jax.jit(jax.vmap(accuracy, (0, None)))(ws, epsilons)
    same(mapped[1], accuracy(ws[1], epsilons))
    assert bool(jnp.all((mapped[:, 0] <= mapped[:, 2]) & (mapped[:, 2] <= mapped[:, 1])))  # in the order of epsilons


def test_an_example_counts_only_if_no_attack_of_a_smaller_budget_succeeds():
    logits = lambda x: jnp.stack([x, jnp.zeros(len(x))], axis=-1)
    x, y = jnp.array([0.5, 0.5]), jnp.array([0, 1])
    jump = lambda loss, x, y, epsilon: jnp.where(epsilon == 0.2, -1.0, x)  # turns the first at one budget alone
    assert robust_accuracy(logits, x, y, epsilons=[0.3, 0.2, 0.1], attack=jump).tolist() == [0.0, 0.0, 0.5]


def test_a_model_is_no_constant_of_the_loop_over_budgets():
    big = jnp.ones((3, 400))
    program = jax.make_jaxpr(lambda x: robust_accuracy(lambda x: x @ big, x, jnp.zeros(4, int), epsilons=[0.1]))(
        jnp.full((4, 3), 0.5)
    )
    loops = [e for e in program.eqns if e.primitive.name == "scan"]
    assert len(loops) == 1 and not any(np.shape(c) == big.shape for c in loops[0].params["jaxpr"].consts)


def call(attack=fgsm, loss=linear, x=X, y=None, epsilon=0.1, **options):
    return attack(loss, x, y, epsilon=epsilon, **options)


def accuracy(logits=lambda x: x[:, 0], x=X, y=LABELS, epsilons=(0.1,), **options):
    return robust_accuracy(logits, x, y, epsilons=epsilons, **options)


@pytest.mark.parametrize(
    ("error", "text", "attack"),
    [
        (OptionError, r"epsilon must be one number of at least 0 and finite, but got -0.1", lambda: call(epsilon=-0.1)),
        (OptionError, "epsilon must be .* got nan", lambda: call(epsilon=float("nan"))),
        (OptionError, "width of the bounds", lambda: call(epsilon=jnp.inf)),
        (OptionError, "epsilon must be one number of at least 0, but got 'much'", lambda: call(epsilon="much")),
        (ShapeError, r"epsilon .* has shape \(2,\). Map over several with jax.vmap", lambda: call(epsilon=[0.1, 0.2])),
        (OptionError, "steps must be an integer of at least 1", lambda: call(pgd, steps=0)),
        (OptionError, "step_size must be one number of more than 0", lambda: call(pgd, step_size=0.0)),
        (OptionError, "no norm 'l_2' here; known are linf, l2. Did you mean 'l2'", lambda: call(pgd, norm="l_2")),
        (OptionError, "restarts=2 needs a key", lambda: call(pgd, restarts=2)),
        (OptionError, "restarts must be an integer", lambda: call(pgd, restarts=0)),
        (OptionError, "key must be one random key", lambda: call(pgd, key=3)),
        (OptionError, "the lower one first", lambda: call(bounds=(1.0, 0.0))),
        (OptionError, "bounds must be two numbers", lambda: call(bounds=1.0)),
        (OptionError, r"x goes from .* to .*, outside bounds=\(0.0, 0.5\)", lambda: call(bounds=(0.0, 0.5))),
        (OptionError, "outside bounds", lambda: jax.jit(lambda e: call(x=X16, epsilon=e))(0.1)),
        (NonFiniteError, "x holds NaN", lambda: call(x=X.at[0, 0, 0].set(jnp.nan))),
        (NotDifferentiableError, "x has dtype int32", lambda: call(x=jnp.zeros((5, 3, 2), int))),
        (NotDifferentiableError, "x must be real", lambda: call(x=X + 0j)),
        (StructureError, "x must be one array .* but got dict", lambda: call(x={"image": X})),
        (ShapeError, r"Give one example as x\[None\]", lambda: call(x=jnp.zeros(()))),
        (EmptyInputError, "holds no number", lambda: call(x=jnp.zeros((0, 3, 2)))),
        (ShapeError, r"y\['label'\] has shape \(4,\), but x has 5", lambda: call(y={"label": jnp.ones(4)})),
        (NotScalarError, r"shape \(5,\), but it returns .*shape=\(\).* Leave out its mean", lambda: mean(call)),
        (NotScalarError, r"Reduce all axes but the first", lambda: call(loss=lambda x, y: x[:, 0])),
        (NotScalarError, r"it returns \(", lambda: call(loss=lambda x, y: (linear(x), 1.0))),
        (NotScalarError, "int32", lambda: call(loss=lambda x, y: jnp.argmax(x[:, 0], axis=1))),
        (ArgumentError, r"called as loss\(x, y\)", lambda: call(pgd, loss=lambda x: linear(x))),
        (ArgumentError, r"pgd's loss must be .* got float: 0.5. Give loss\(x, y\)", lambda: call(pgd, loss=0.5)),
        (ArgumentError, "cannot be traced", lambda: call(loss=lambda x, y: x if x.sum() > 0 else -x)),
        (OptionError, "epsilon must be one number of at least 0, but got '0.1'", lambda: call(epsilon="0.1")),
        (OptionError, "epsilon must be .* but got None", lambda: call(epsilon=None)),
        (ShapeError, "epsilons must be numbers", lambda: accuracy(epsilons=0.1)),
        (ShapeError, "Give at least one", lambda: accuracy(epsilons=[])),
        (OptionError, "epsilons must be", lambda: accuracy(epsilons=[0.1, -0.1])),
        (ShapeError, r"take jnp.argmax\(y, axis=-1\)", lambda: accuracy(y=jnp.ones((5, 2)))),
        (ShapeError, r"logits\(x\) must be one array of shape \(5, classes\)", lambda: accuracy(lambda x: x)),
        (ArgumentError, "logits must be a function", lambda: accuracy(3)),
        (ArgumentError, "attack must be a function", lambda: accuracy(attack=(fgsm, "pgd"))),
        (ArgumentError, "attack must be a function", lambda: accuracy(attack=())),
        (ShapeError, "An attack must return", lambda: accuracy(attack=lambda loss, x, y, epsilon: x[0])),
        (OptionError, "outside bounds", lambda: accuracy(x=2 * X)),
    ],
)
def test_a_mistake_is_named_before_anything_runs(error, text, attack):
    with pytest.raises(error, match=text):
        attack()


def mean(attack):
    return attack(loss=lambda x, y: jnp.mean(linear(x)))


def test_a_slope_that_is_nan_moves_nothing_and_logits_that_are_nan_are_wrong():
    apart = lambda x, y: jnp.linalg.norm(x - y, axis=-1)
    x = jnp.full((1, 2), 0.5)
    assert fgsm(apart, x, x, epsilon=0.1).tolist() == x.tolist()
    lost = robust_accuracy(lambda x: x * jnp.nan, jnp.full((3, 2), 0.5), jnp.array([0, 0, 1]), epsilons=[0.0])
    assert lost.tolist() == [0.0]
