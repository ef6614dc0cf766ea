"""Derivatives assembled from every direction: ∇f, J, H and Δf.

Options are checked at once; arguments are checked, by tracing, when the result is called. n is how many numbers x
holds over all leaves, m how many f returns. Every returned function raises `NotDifferentiableError` for integers and
bools, `EmptyInputError` for a pytree without arrays, and `UnsupportedModeError` where f lacks the differentiation rules
that a mode needs.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from typing import Any, get_args

import jax.numpy as jnp  # noqa: F401 - the examples use it
from jax.sharding import Mesh

from gradlab import inputs, trees
from gradlab.errors import OptionError
from gradlab.mode import gradient as gradient_modes
from gradlab.mode import hessian as hessian_modes
from gradlab.mode import jacobian as jacobian_modes
from gradlab.mode import laplacian as laplacian_modes
from gradlab.mode import sharded
from gradlab.mode.checkpoint import require_policy
from gradlab.mode.choice import Memory
from gradlab.mode.dense import DIRECTIONS
from gradlab.mode.jacobian import Options
from gradlab.mode.sparsity import Sparsity
from gradlab.types import (
    Argnums,
    CheckpointPolicy,
    Fn,
    GradientMode,
    HessianMode,
    JacobianMode,
    LaplacianMode,
    Output,
    Params,
    PyTree,
    Quantity,
    Scalar,
    ScalarFn,
)


def gradient(
    f: Fn,
    argnums: Argnums = 0,
    *,
    has_aux: bool = False,
    mode: GradientMode = "reverse",
    policy: CheckpointPolicy | None = None,
) -> Callable[..., Params]:
    """The gradient of a scalar function: x ↦ ∇f(x), with ⟨∇f, v⟩ the directional derivative along every v.

    Args:
        f: a function with one real scalar output; with has_aux, a pair of it and anything else.
        argnums: which positional argument to differentiate, or a tuple of them.
        has_aux: return `(∇f, aux)`.
        mode: `"reverse"` (one pass backward), `"checkpoint"` (the same, keeping less and computing it again) or
            `"forward"` (n passes, no intermediate values kept).
        policy: what `"checkpoint"` keeps. `"segments"`, the default, keeps √n of the n states of every `scan`;
            `"dots"` the results of matrix products; `"everything"` recomputes all within a step; `"none"` nothing.

    Returns:
        A function of f's arguments; the result has the structure, shapes and dtypes of `args[argnums]`. For a complex
        argument it is JAX's convention: the conjugate of the direction of steepest ascent.

    Raises:
        UnknownModeError, OptionError: an option that does not exist; at once.
        NotScalarError: f does not return one real number.

    Source: equation 3.5; Griewank and Walther (2008), chapters 3 and 12.

    >>> gradient(lambda w, x: (w["a"] * x) ** 2)({"a": 3.0}, 2.0)["a"]
    Array(24., dtype=float32, weak_type=True)
    """
    return _gradient(f, argnums, has_aux, mode, policy, value=False, operator="gradient")


def value_and_gradient(
    f: Fn,
    argnums: Argnums = 0,
    *,
    has_aux: bool = False,
    mode: GradientMode = "reverse",
    policy: CheckpointPolicy | None = None,
) -> Callable[..., tuple[Any, Params]]:
    """The value of a scalar function and its gradient, in one evaluation: x ↦ (f(x), ∇f(x)).

    Args, Raises and the gradient are those of `gradient`.

    Returns:
        A function of f's arguments: `(value, ∇f)`, or `((value, aux), ∇f)` with has_aux.

    Source: equation 3.5.

    >>> [float(v) for v in value_and_gradient(lambda x: x**3)(2.0)]
    [8.0, 12.0]
    """
    return _gradient(f, argnums, has_aux, mode, policy, value=True, operator="value_and_gradient")


def _gradient(
    f: Fn,
    argnums: Argnums,
    has_aux: bool,
    mode: GradientMode,
    policy: CheckpointPolicy | None,
    *,
    value: bool,
    operator: str,
) -> Fn:
    inputs.require_function(f, operator)
    inputs.require_mode(mode, "gradient")
    inputs.require_argnums(argnums)
    if policy is not None:
        require_policy(policy)
        if mode != "checkpoint":
            raise OptionError(
                f"policy={policy!r} goes with mode='checkpoint', but mode={mode!r}. Leave one of them out."
            )

    @wraps(f)
    def take(*args: Any, **kwargs: Any) -> Any:
        g, x = inputs.focus(f, argnums, args, kwargs)
        inputs.require_scalar(inputs.split_aux(g, has_aux), x, operator)
        return gradient_modes.compute(g, x, mode, has_aux, value, policy or "segments")

    return take


def steepest_direction(f: ScalarFn) -> Callable[[PyTree], PyTree]:
    """The unit vector along which f rises fastest: x ↦ ∇f/|∇f|, and zeros where ∇f = 0.

    Args:
        f: a function of one pytree with one real scalar output.

    Returns:
        A function of x with x's structure and shapes; the norm of the result, over all leaves, is 1 or 0.

    Raises:
        NotScalarError: f does not return one real number.

    Source: equations 2.4 and 3.5.

    >>> [round(float(d), 4) for d in steepest_direction(lambda x: 3 * x[0] + 4 * x[1])(jnp.zeros(2))]
    [0.6, 0.8]
    """
    slope = gradient(f)
    return lambda x: trees.unit(slope(x))


def jacobian(
    f: Fn,
    argnums: Argnums = 0,
    *,
    mode: JacobianMode = "auto",
    chunk_size: int | None = None,
    has_aux: bool = False,
    output: Output = "dense",
    sparsity: Sparsity | None = None,
    memory_limit: int | None = None,
    mesh: Mesh | None = None,
) -> Callable[..., PyTree]:
    """All first derivatives at once: x ↦ J with J[i, j] = ∂fᵢ/∂xⱼ.

    Args:
        f: a function of pytrees to a pytree; with has_aux, to a pair of it and anything else.
        argnums: which positional argument to differentiate, or a tuple of them.
        mode: `"forward"` (n passes), `"reverse"` (m passes), `"sparse"` (as many as the coloring of J's pattern needs,
            with asdex), `"waist"` (2 w passes, where w numbers cross between two parts of f), or `"auto"`: the one that
            is predicted to be the fastest of those that can run, decided while tracing; `predict` shows the prediction.
        chunk_size: that many directions at a time instead of all: less memory, the same result.
        has_aux: return `(J, aux)`.
        output: `"dense"` arrays, or `"bcoo"`: `jax.experimental.sparse.BCOO` matrices by mode `"sparse"`, of memory in
            proportion to the nonzeros.
        sparsity: the pattern, as `gradlab.sparsity` found it; else it is looked for once for each program.
        memory_limit: bytes. Where more would be needed, `"auto"` takes fewer directions at a time; None for what the
            device says that it has.
        mesh: devices, such as `gradlab.distributed.mesh()`, over all of which the columns of mode `"forward"` or the
            rows of `"reverse"` are spread; `"auto"` takes one of these two. As under `jit`, f's arguments
            are traced and the program is compiled once for their shapes; what f closes over counts as constant.

    Returns:
        A function of f's arguments. The result has the structure that `jax.jacobian` gives: f's output, with the
        input's structure at each leaf, and leaves of shape `[*output.shape, *input.shape]`. With a mesh, each leaf is
        split along its columns or rows wherever the mesh's axes divide their number, and whole everywhere else.

    Raises:
        UnknownModeError, OptionError: an option that does not exist; at once.
        MissingExtraError: mode `"sparse"` without asdex.

    Source: equations 6.6 and 7.4; Griewank and Walther (2008), chapters 3 and 8; Naumann (2012), section 3.3.

    >>> jacobian(lambda x: jnp.stack([x[0] * x[1], x[1], x[0]]))(jnp.array([2.0, 3.0]))
    Array([[3., 2.],
           [0., 1.],
           [1., 0.]], dtype=float32)
    """
    _require_dense_options(f, "jacobian", mode, argnums, chunk_size, memory_limit)
    _require_sparse_options("jacobian", mode, output, sparsity)
    if mesh is not None:
        sharded.require_mesh(mesh)
        _require_mesh_alone(mode, chunk_size, output, sparsity, memory_limit)
    options = Options(chunk_size, has_aux, output, sparsity, memory_limit, mesh)
    memory = Memory()

    @wraps(f)
    def take(*args: Any, **kwargs: Any) -> PyTree:
        g, x = inputs.focus(f, argnums, args, kwargs)
        y = inputs.output_shape(inputs.split_aux(g, has_aux), x)
        inputs.require_convention(x, y, mode)
        compute = lambda mode, chunk: jacobian_modes.compute(g, x, mode, replace(options, chunk_size=chunk))
        if mode != "auto":
            return compute(mode, chunk_size)
        return memory.run((args, kwargs), x, lambda: jacobian_modes.choose(g, x, options), compute)

    return take if mesh is None else sharded.compiled(take, mesh)


def hessian(
    f: Fn,
    argnums: Argnums = 0,
    *,
    mode: HessianMode = "auto",
    chunk_size: int | None = None,
    output: Output = "dense",
    sparsity: Sparsity | None = None,
    memory_limit: int | None = None,
) -> Callable[..., PyTree]:
    """All second derivatives at once: x ↦ H with H[j, k] = ∂²f/∂xⱼ∂xₖ.

    Args:
        f: a function with a real scalar output (an array output gives one Hessian for each of its numbers).
        argnums: which positional argument to differentiate, or a tuple of them.
        mode: one of the four mixtures, outer over inner, `"sparse"` (as many Hessian–vector products as the coloring of
            H's pattern needs, with asdex), or `"auto"`: the one that is predicted to be the fastest of those that can
            run.
        chunk_size, output, sparsity, memory_limit: as for `jacobian`.

    Returns:
        A function of f's arguments. The result has the structure that `jax.hessian` gives; for one array x, shape
        `[*x.shape, *x.shape]`.

    Raises:
        UnknownModeError, OptionError: an option that does not exist; at once.
        MissingExtraError: mode `"sparse"` without asdex.

    Source: equation 7.5; Griewank and Walther (2008), sections 5.1 and 8.3.

    >>> hessian(lambda x: x[0] ** 2 * x[1])(jnp.array([2.0, 3.0]))
    Array([[6., 4.],
           [4., 0.]], dtype=float32)
    """
    _require_dense_options(f, "hessian", mode, argnums, chunk_size, memory_limit)
    _require_sparse_options("hessian", mode, output, sparsity)
    options = Options(chunk_size, False, output, sparsity, memory_limit)
    memory = Memory()

    @wraps(f)
    def take(*args: Any, **kwargs: Any) -> PyTree:
        g, x = inputs.focus(f, argnums, args, kwargs)
        inputs.require_real(x, inputs.output_shape(g, x), "hessian")
        compute = lambda mode, chunk: hessian_modes.compute(g, x, mode, replace(options, chunk_size=chunk))
        if mode != "auto":
            return compute(mode, chunk_size)
        return memory.run((args, kwargs), x, lambda: hessian_modes.choose(g, x, options), compute)

    return take


def laplacian(
    f: ScalarFn, *, mode: LaplacianMode = "auto", chunk_size: int | None = None, memory_limit: int | None = None
) -> Callable[[PyTree], Scalar]:
    """The sum of the unmixed second derivatives: x ↦ Δf = tr H = Σⱼ ∂²f/∂xⱼ².

    Args:
        f: a function of one pytree with one real scalar output.
        mode: `"hessian_trace"` (a dense Hessian), `"forward_over_reverse"` (n Hessian–vector products), `"taylor"` (n
            second-order Taylor expansions, no reverse mode), `"forward_laplacian"` (folx: one pass that carries the
            Jacobian and the Laplacian of every intermediate value), or `"auto"`: the one that is predicted to be the
            fastest of those that can run.
        chunk_size: that many directions at a time instead of all n: less memory, the same result.
        memory_limit: as for `jacobian`.

    Returns:
        A function of x with a scalar result, shape `()`.

    Raises:
        UnknownModeError, OptionError: an option that does not exist; at once.
        MissingExtraError: `"forward_laplacian"` without folx.
        NotScalarError: f does not return one real number.

    Source: Griewank, Utke and Walther, Mathematics of Computation 69 (2000); Li et al., Nature Machine Intelligence 6
    (2024).

    >>> float(laplacian(lambda x: jnp.sum(x**2))(jnp.ones(3)))
    6.0
    """
    inputs.require_function(f, "laplacian")
    inputs.require_mode(mode, "laplacian")
    inputs.require_count(chunk_size, "chunk_size", none=True)
    inputs.require_count(memory_limit, "memory_limit", none=True)
    memory = Memory()

    def total(x: PyTree) -> Scalar:
        g, x = inputs.focus(f, 0, (x,), {})
        inputs.require_real(x, inputs.require_scalar(g, x, "laplacian"), "laplacian")
        compute = lambda mode, chunk: laplacian_modes.compute(g, x, mode, chunk)
        if mode != "auto":
            return compute(mode, chunk_size)
        return memory.run(x, x, lambda: laplacian_modes.choose(g, x, chunk_size, memory_limit), compute)

    return total


def _require_dense_options(
    f: Fn, of: Quantity, mode: str, argnums: Argnums, chunk_size: int | None, memory_limit: int | None
) -> None:
    inputs.require_function(f, of)
    inputs.require_mode(mode, of)
    inputs.require_argnums(argnums)
    inputs.require_count(chunk_size, "chunk_size", none=True)
    inputs.require_count(memory_limit, "memory_limit", none=True)


def _require_sparse_options(of: Quantity, mode: str, output: object, sparsity: object) -> None:
    if output not in get_args(Output):
        raise OptionError(f"output must be 'dense' or 'bcoo', but got {output!r}.")
    if sparsity is not None and not isinstance(sparsity, Sparsity):
        raise OptionError(f"sparsity must be a gradlab.Sparsity or None, but got {sparsity!r:.80}.")
    for name, given in (("output='bcoo'", output == "bcoo"), ("sparsity=", sparsity is not None)):
        if given and mode not in ("sparse", "auto"):
            raise OptionError(f"{of}({name}) goes with mode='sparse' or 'auto', but mode={mode!r}.")


def _require_mesh_alone(
    mode: str, chunk_size: int | None, output: Output, sparsity: Sparsity | None, memory_limit: int | None
) -> None:
    if mode not in (*DIRECTIONS, "auto"):
        raise OptionError(
            f"jacobian(mesh=) spreads the directions of mode='forward', 'reverse' or 'auto', but mode={mode!r} has "
            "directions of its own. Leave one of them out."
        )
    named = {"chunk_size": chunk_size, "sparsity": sparsity, "memory_limit": memory_limit}
    given = [f"{name}={value!r:.40}" for name, value in named.items() if value is not None]
    given += ["output='bcoo'"] if output == "bcoo" else []
    if given:
        raise OptionError(
            f"jacobian(mesh=) does not go with {given[0]}: every device takes its share at once. Leave one of them out."
        )
