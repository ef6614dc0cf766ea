"""Adversarial inputs: small moves of the input, not the params, that raise the loss of a trained model.

All are pure functions of arrays that run under `jit` and `vmap`; the budget ε is a number that may be traced. n is the
number of examples, the leading axis of x. Whatever has no value yet, as under `jit`, is checked for its shape alone.

The loss is per example, `loss(x, y) -> [n]`, so that one gradient of its sum serves all examples and each keeps the
best input found for it. Examples must not see each other through it, as they do in a batch normalization that is still
training. A normalization of pixels belongs inside the loss: ε and the bounds then keep the units of x.
"""

from collections.abc import Callable
from functools import partial
from numbers import Real
from typing import Any, NamedTuple, assert_never, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from gradlab import inputs, trees
from gradlab.errors import (
    ArgumentError,
    NonFiniteError,
    NotDifferentiableError,
    NotScalarError,
    OptionError,
    ShapeError,
    StructureError,
    nearest,
)
from gradlab.losses import softmax_cross_entropy
from gradlab.operators import pullback
from gradlab.types import Norm, PyTree

Array = jax.Array
Losses = Callable[[Array, PyTree], Array]  # (x, y) ↦ one loss for each example
Attack = Callable[..., Array]  # (loss, x, y, *, epsilon) ↦ x'
Bounds = tuple[float, float]


class Best(NamedTuple):
    """The best input found for each example, shape `[n, ...]`, and what it gains, shape `[n]`."""

    x: Array
    gain: Array


def fgsm(
    loss: Losses, x: Array, y: PyTree, *, epsilon: ArrayLike, targeted: bool = False, bounds: Bounds = (0.0, 1.0)
) -> Array:
    """The fast gradient sign method: x' = clip(x + ε sign ∇ₓloss), one step to a corner of the ball.

    It is the worst case of |x' − x|∞ ≤ ε where the loss is linear in x.

    Args:
        loss: `loss(x, y) -> [n]`, one real number for each example.
        x: floating inputs of shape `[n, ...]`, within bounds.
        y: what the loss compares with, such as labels of shape `[n]`; with targeted, what it shall be taken for.
        epsilon: ε ≥ 0, the budget, in the units of x; rounded to the dtype of x.
        targeted: lower the loss of y instead of raising it.
        bounds: the smallest and the largest value that an input may have.

    Returns:
        x', of x's shape and dtype, within bounds and with |x' − x| ≤ ε in every entry, after rounding too.

    Raises:
        ArgumentError, NotScalarError: a loss that does not fit.
        StructureError, ShapeError, NotDifferentiableError, EmptyInputError, NonFiniteError: x or y that does not.
        OptionError: epsilon or bounds out of range, or x out of bounds.

    Source: Goodfellow, Shlens and Szegedy, Explaining and harnessing adversarial examples (2015), arXiv:1412.6572.

    >>> loss = lambda x, y: jnp.sum(x * jnp.array([2.0, -1.0]), axis=-1)
    >>> fgsm(loss, jnp.array([[0.5, 0.5], [0.9, 0.1]]), None, epsilon=0.25).tolist()
    [[0.75, 0.25], [1.0, 0.0]]
    """
    x, epsilon = _checked("fgsm", loss, x, y, epsilon, bounds)
    return _move(x, epsilon * _direction(_climb(loss, y, targeted)(x)[1], "linf"), bounds)


def pgd(
    loss: Losses,
    x: Array,
    y: PyTree,
    *,
    epsilon: ArrayLike,
    steps: int = 20,
    step_size: ArrayLike | None = None,
    norm: Norm = "linf",
    targeted: bool = False,
    key: Array | None = None,
    restarts: int = 1,
    bounds: Bounds = (0.0, 1.0),
) -> Array:
    """Projected gradient ascent: zₖ₊₁ = clip(x + Π(zₖ + α d(∇loss(zₖ)) − x)), of which each example keeps its best z.

    Π projects on the ball |z − x| ≤ ε; d is the steepest direction of the norm, sign g or g / |g|₂. The candidates are
    x, the one full step clip(x + ε d), which for `linf` is that of `fgsm`, and every zₖ: no loss falls below theirs.

    Each start takes steps + 1 gradients, and x two more. A call outside of `jit` compiles anew: jit what is repeated.

    Args:
        loss, x, y, epsilon, targeted, bounds: as for `fgsm`.
        steps: how many of them, each one gradient.
        step_size: α > 0, in the units of x; 2.5 ε / steps by default, which can cross the ball.
        norm: `"linf"`, the largest change of an entry, or `"l2"`, the Euclidean length of an example's change.
        key: draws z₀ uniformly from the ball; z₀ = x without one.
        restarts: how many z₀ are tried, one after the other; more than one needs a key.

    Returns:
        x', of x's shape and dtype, within bounds. For `linf`, |x' − x| ≤ ε in every entry, after rounding too; for
        `l2`, |x' − x|₂ ≤ ε up to the rounding of a norm.

    Raises:
        OptionError: also for steps, step_size, norm, restarts or key. The rest as for `fgsm`.

    Source: Madry et al., Towards deep learning models resistant to adversarial attacks (2018), arXiv:1706.06083.

    >>> loss = lambda x, y: jnp.sum(x * jnp.array([3.0, -4.0]), axis=-1)
    >>> [round(z, 4) for z in pgd(loss, jnp.array([[0.5, 0.5]]), None, epsilon=0.5, norm="l2")[0].tolist()]
    [0.8, 0.1]
    """
    _require_options(norm, steps, key, restarts)
    x, epsilon = _checked("pgd", loss, x, y, epsilon, bounds)
    if step_size is not None:
        _require_number(step_size, "step_size", "more than 0", lambda value: value > 0)
    stride = 2.5 * epsilon / steps if step_size is None else jnp.asarray(step_size, x.dtype)
    climb = _climb(loss, y, targeted)

    def step(_: Any, state: tuple[Array, Best]) -> tuple[Array, Best]:
        z, best = state
        gain, slope = climb(z)
        change = _project(z - x + stride * _direction(slope, norm), epsilon, norm)
        return _move(x, change, bounds), _better(best, z, gain)

    # The start is judged too, and the last move dropped: the program holds the model's gradient once, not twice.
    ascend = lambda best, start: jax.lax.fori_loop(0, steps + 1, step, (start, best))[1]
    gain, slope = climb(x)
    leap = _move(x, epsilon * _direction(slope, norm), bounds)
    best = _better(Best(x, gain), leap, climb(leap)[0])
    if key is None:
        return ascend(best, x).x
    draw = lambda key: _move(x, epsilon * _draw(key, x, norm), bounds)
    keys = jax.random.split(key, restarts)
    return jax.lax.scan(lambda best, key: (ascend(best, draw(key)), None), best, keys)[0].x


def robust_accuracy(
    logits: Callable[[Array], Array],
    x: Array,
    y: Array,
    *,
    epsilons: ArrayLike,
    attack: Attack | tuple[Attack, ...] = pgd,
    loss: Losses = softmax_cross_entropy,
) -> Array:
    """The share of examples that a classifier gets right whatever is tried: clean, and attacked within each budget.

    Logits with a NaN are never right. An example counts for ε if the largest logit is that of its label at x and at
    every attacked input of a budget up to ε, which is allowed for ε as well: so the accuracy never grows with ε. It
    bounds the true one from above. Of two inputs, the one with the higher cross-entropy is not always the wrong one:
    `attack=(fgsm, pgd)` counts both. The budgets run one after the other in one compiled loop, with the memory of one
    attack.

    Args:
        logits: the trained model, from x to logits of shape `[n, classes]`.
        x: floating inputs of shape `[n, ...]`.
        y: labels, integers of shape `[n]`.
        epsilons: budgets of at least 0, shape `[k]`, in any order.
        attack: `attack(loss, x, y, epsilon=ε) -> x'`, untargeted, or a tuple of several that all must fail. Options go
            in by `functools.partial(pgd, norm="l2", key=key)`.
        loss: `loss(logits, y) -> [n]`, which the attack raises.

    Returns:
        One accuracy for each budget, shape `[k]`, from 0 to 1.

    Raises:
        ArgumentError: logits or an attack is no function.
        ShapeError: labels, logits, budgets or an attacked input of a shape that does not fit.
        OptionError: a budget is negative or not finite. And whatever the attack raises.

    Source: Madry et al. (2018), equation 2.1; Carlini et al., On evaluating adversarial robustness (2019),
    arXiv:1902.06705.

    >>> logits = lambda x: jnp.stack([x, 1 - x], axis=-1)
    >>> robust_accuracy(logits, jnp.array([0.9, 0.7, 0.2]), jnp.array([0, 0, 1]), epsilons=[0.0, 0.25, 0.5]).tolist()
    [1.0, 0.666..., 0.0]
    """
    attacks = attack if isinstance(attack, tuple) else (attack,)
    x = _require_classifier(logits, x, y, attacks)
    _require_number(epsilons, "epsilons", "at least 0", lambda value: value >= 0, axes=1)
    budgets = jnp.asarray(epsilons, x.dtype)
    raised = lambda x, y: loss(logits(x), y)
    tried = [partial(one, raised, x, y) for one in attacks]
    for one in tried:
        _require_attack(one, budgets[0], x)

    def right(x: Array) -> Array:
        given = logits(x)
        return (jnp.argmax(given, axis=-1) == y) & ~jnp.any(jnp.isnan(given), axis=-1)

    withstands = lambda budget: jnp.stack([right(one(epsilon=budget)) for one in tried]).all(axis=0)
    each = right(x) & jax.lax.map(withstands, budgets)  # [k, n]
    beyond = budgets[:, None] < budgets  # [k, k]: what is too large for each budget does not count against it
    return jnp.mean(jnp.all(each | beyond[..., None], axis=1), axis=-1)


def _climb(loss: Losses, y: PyTree, targeted: bool) -> Callable[[Array], tuple[Array, Array]]:
    """z ↦ what each example gains, shape `[n]`, and the slope of it, of z's shape; a gain is the loss, or minus it."""
    sign = -1 if targeted else 1
    climb = pullback(lambda z: sign * loss(z, y))
    return lambda z: climb(z, jnp.ones(len(z)))


def _direction(slope: Array, norm: Norm) -> Array:
    """The point of the unit ball that is farthest along the slope; zeros where the slope is zero or NaN."""
    slope = jnp.where(jnp.isnan(slope), 0, slope)
    match norm:
        case "linf":
            return jnp.sign(slope)
        case "l2":
            return jax.vmap(trees.unit)(slope)
        case _:
            assert_never(norm)


def _project(change: Array, epsilon: Array, norm: Norm) -> Array:
    """The nearest change within the ball of radius ε."""
    match norm:
        case "linf":
            return jnp.clip(change, -epsilon, epsilon)
        case "l2":
            length = _column(jax.vmap(trees.norm)(change), change)
            far = length > epsilon
            return jnp.where(far, change * (epsilon / jnp.where(far, length, 1)), change)
        case _:
            assert_never(norm)


def _draw(key: Array, x: Array, norm: Norm) -> Array:
    """A uniform point of the unit ball for each example."""
    match norm:
        case "linf":
            return jax.random.uniform(key, x.shape, x.dtype, -1, 1)
        case "l2":
            for_direction, for_length = jax.random.split(key)
            size = x.size // len(x)
            length = jax.random.uniform(for_length, (len(x),), x.dtype) ** (1 / size)  # volume grows like its power
            return _column(length, x) * _direction(jax.random.normal(for_direction, x.shape, x.dtype), norm)
        case _:
            assert_never(norm)


def _move(x: Array, change: Array, bounds: Bounds) -> Array:
    """x + change within bounds, and in no entry farther from x than |change|.

    The sum may be rounded away from x; the next number towards x is then near enough. Clipping keeps all of it: x is
    within bounds, so an entry moves towards x or stays, and no norm of z − x grows.
    """
    z = jax.lax.optimization_barrier(x + change)  # the compiler takes (x + change) - x for change where x is a constant
    z = jnp.where(jnp.abs(z - x) > jnp.abs(change), jnp.nextafter(z, x), z)
    return jnp.clip(z, *map(float, bounds))


def _better(best: Best, z: Array, gain: Array) -> Best:
    """For each example the one that gains more; never one whose gain is NaN."""
    wins = gain > best.gain
    return Best(jnp.where(_column(wins, z), z, best.x), jnp.where(wins, gain, best.gain))


def _column(values: Array, x: Array) -> Array:
    """One number for each example, in a shape that goes along with x."""
    return values.reshape(-1, *(1,) * (x.ndim - 1))


def _checked(attack: str, loss: Losses, x: Array, y: PyTree, epsilon: ArrayLike, bounds: Bounds) -> tuple[Array, Array]:
    """x and ε as arrays of one dtype, after every check that needs no computing of the loss."""
    x = _require_examples(x, y)
    _require_number(epsilon, "epsilon", "at least 0", lambda value: value >= 0)
    _require_bounds(bounds, x)
    _require_losses(attack, loss, x, y)
    return x, jnp.asarray(epsilon, x.dtype)


def _require_examples(x: Any, y: PyTree) -> Array:
    if not isinstance(x, (jax.Array, np.ndarray)):
        raise StructureError(
            f"x must be one array of inputs, shape [n, ...], but got {type(x).__name__}: {x!r:.60}. Close over what is "
            "not to be changed, and join what is: jax.flatten_util.ravel_pytree under jax.vmap."
        )
    if not x.ndim:
        raise ShapeError("x must have a leading axis of examples, but has shape (). Give one example as x[None].")
    inputs.require_differentiable(x, "x")
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        raise NotDifferentiableError(f"x must be real, but has dtype {x.dtype}. Join its real and imaginary parts.")
    for path, leaf in jax.tree_util.tree_leaves_with_path(y):
        if jnp.shape(leaf)[:1] != x.shape[:1]:
            raise ShapeError(
                f"y{jax.tree_util.keystr(path)} has shape {jnp.shape(leaf)}, but x has {len(x)} examples; both need "
                "one leading axis of examples. Close over what is no example."
            )
    return jnp.asarray(x)


def _require_losses(attack: str, loss: Any, x: Array, y: PyTree) -> None:
    """Raise unless loss(x, y) is one real number for each example."""
    inputs.require_callable(loss, f"{attack}'s loss", "Give loss(x, y).")
    if error := inputs.misfit(loss, x, y):
        raise ArgumentError(f"The loss must be called as loss(x, y): {error}. Close over the params.") from error
    with inputs.tracing():
        given = jax.eval_shape(loss, x, y)
    shape = getattr(given, "shape", None)
    if shape != (len(x),) or not jnp.issubdtype(given.dtype, jnp.floating):
        cure = "Leave out its mean or sum over the examples." if shape == () else "Reduce all axes but the first."
        raise NotScalarError(
            f"The loss must return one real number for each of the {len(x)} examples, shape ({len(x)},), but it "
            f"returns {given!r:.80}. {cure}"
        )


def _require_number(value: Any, name: str, range_: str, fits: Callable[[Any], Any], axes: int = 0) -> None:
    """Raise unless these are finite real numbers in their range; of traced ones, the shape alone is known."""
    wanted = f"{name} must be {'numbers, shape [k],' if axes else 'one number'} of {range_}"
    traced = inputs.is_traced(value)
    if not traced and np.asarray(value).dtype.kind in "OSU":  # NumPy reads "0.1" as a number, and None as NaN
        raise OptionError(f"{wanted}, but got {value!r:.60}.")
    value = jnp.asarray(value) if traced else np.asarray(value, float)
    if value.ndim != axes or not value.size:
        cure = "Give at least one, in a list or an array." if axes else "Map over several with jax.vmap."
        raise ShapeError(f"{wanted}, but has shape {value.shape}. {cure}")
    if not traced and not np.all(np.isfinite(value) & fits(value)):
        raise OptionError(
            f"{wanted} and finite, but got {value.tolist()}. It is a length in the units of x, and needs to be no "
            "larger than the width of the bounds."
        )


def _require_bounds(bounds: Any, x: Array) -> None:
    if not isinstance(bounds, tuple) or len(bounds) != 2 or not all(isinstance(bound, Real) for bound in bounds):
        raise OptionError(f"bounds must be two numbers, (lowest, highest), but got {bounds!r:.60}.")
    low, high = bounds
    if not low < high:
        raise OptionError(f"bounds must be (lowest, highest), the lower one first, but got {bounds!r}.")
    if inputs.is_traced(x):
        return
    with jax.ensure_compile_time_eval():  # x may be a constant of what is being traced
        least, most = jnp.min(x), jnp.max(x)
        missing, fits = bool(jnp.isnan(least)), bool((least >= low) & (most <= high))
    if missing:
        raise NonFiniteError("x holds NaN, which no step can mend. Drop or fill them before the attack.")
    if not fits:
        raise OptionError(
            f"x goes from {float(least):.6g} to {float(most):.6g}, outside bounds={bounds!r}. Scale x, or give its own "
            "range: bounds=(lowest, highest), or (-jnp.inf, jnp.inf) where there is none."
        )


def _require_options(norm: object, steps: object, key: Any, restarts: object) -> None:
    known = get_args(Norm)
    if norm not in known:
        raise OptionError(f"There is no norm {norm!r} here; known are {', '.join(known)}.{nearest(norm, known)}")
    inputs.require_count(steps, "steps")
    inputs.require_count(restarts, "restarts")
    if key is None:
        if restarts != 1:
            raise OptionError(f"restarts={restarts} needs a key to draw from. Give key=jax.random.key(0).")
        return
    inputs.require_key(key)


def _require_classifier(logits: Any, x: Any, y: Any, attacks: tuple[Any, ...]) -> Array:
    """x as an array, after checking that labels and logits go with it."""
    for name, f in (("logits", logits), *(("attack", one) for one in attacks or (None,))):
        inputs.require_callable(f, name)
    x = _require_examples(x, y)
    if jnp.shape(y) != (len(x),) or not jnp.issubdtype(jnp.result_type(y), jnp.integer):
        raise ShapeError(
            f"y must be labels, integers of shape ({len(x)},), but is {jnp.result_type(y)} of shape {jnp.shape(y)}. "
            "Of probabilities, take jnp.argmax(y, axis=-1)."
        )
    with inputs.tracing():
        given = jax.eval_shape(logits, x)
    if getattr(given, "shape", ())[:1] != (len(x),) or given.ndim != 2:
        raise ShapeError(f"logits(x) must be one array of shape ({len(x)}, classes), but is {given!r:.80}.")
    return x


def _require_attack(attack: Callable[..., Any], budget: Array, x: Array) -> None:
    with inputs.tracing():
        given = jax.eval_shape(attack, epsilon=budget)
    if getattr(given, "shape", None) != x.shape:
        raise ShapeError(f"An attack must return inputs of x's shape {x.shape}, but one returns {given!r:.80}.")
