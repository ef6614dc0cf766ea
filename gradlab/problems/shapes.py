"""Functions chosen for the shape of their derivative: tall, wide, narrow-waisted, banded, diagonal, one direction only.

Each has its derivative in closed form.
"""

import jax
import jax.numpy as jnp

from gradlab.problems.record import Made, Problem
from gradlab.types import PyTree

__all__ = ["PROBLEMS"]

Array = jax.Array


# Scalar functions.


def rosenbrock(x: Array) -> Array:
    """f(x) = Σ 100 (x[i+1] - x[i]²)² + (1 - x[i])²."""
    return jnp.sum(100.0 * (x[1:] - x[:-1] ** 2) ** 2 + (1.0 - x[:-1]) ** 2)


def rosenbrock_gradient(x: Array) -> Array:
    """∂f/∂x[i] = 200 (x[i] - x[i-1]²) - 400 x[i] (x[i+1] - x[i]²) - 2 (1 - x[i]), each term where it exists."""
    gap = x[1:] - x[:-1] ** 2
    inner = -400.0 * x[:-1] * gap - 2.0 * (1.0 - x[:-1])
    return jnp.pad(200.0 * gap, (1, 0)) + jnp.pad(inner, (0, 1))


def _make_rosenbrock(key: Array, size: int) -> Made:
    return rosenbrock, (jax.random.uniform(key, (size,), minval=-1.5, maxval=1.5),)


def speelpenning(x: Array) -> Array:
    """f(x) = Π x[i]."""
    return jnp.prod(x)


def speelpenning_gradient(x: Array) -> Array:
    """∂f/∂x[i] = f(x) / x[i], for x without zeros."""
    return jnp.prod(x) / x


def _make_speelpenning(key: Array, size: int) -> Made:
    # A spread of 1/√size keeps the product of any number of factors near 1.
    return speelpenning, (jnp.exp(jax.random.normal(key, (size,)) / size**0.5),)


def quadratic_form(x: Array, matrix: Array, slope: Array) -> Array:
    """f(x) = ½ xᵀ A x + bᵀ x, with A not symmetric."""
    return 0.5 * x @ (matrix @ x) + slope @ x


def quadratic_form_hessian(x: Array, matrix: Array, slope: Array) -> Array:
    """H = ½ (A + Aᵀ)."""
    return 0.5 * (matrix + matrix.T)


def _make_quadratic_form(key: Array, size: int) -> Made:
    for_x, for_matrix, for_slope = jax.random.split(key, 3)
    matrix = jax.random.normal(for_matrix, (size, size)) / size**0.5
    return quadratic_form, (jax.random.normal(for_x, (size,)), matrix, jax.random.normal(for_slope, (size,)))


# Networks: one function, five shapes.


def network(x: Array, *weights: Array) -> Array:
    """y = tanh(W[k] … tanh(W[1] x)), x[n], W[1][h n], y[m]."""
    for weight in weights:
        x = jnp.tanh(weight @ x)
    return x


def network_jacobian(x: Array, *weights: Array) -> Array:
    """J = D[k] W[k] … D[1] W[1], D = diag(1 - a²) at each layer's output a."""
    jacobian = jnp.eye(x.shape[0], dtype=x.dtype)
    for weight in weights:
        x = jnp.tanh(weight @ x)
        jacobian = (1.0 - x**2)[:, None] * (weight @ jacobian)
    return jacobian


def _make_network(key: Array, widths: tuple[int, ...]) -> Made:
    for_x, *for_weights = jax.random.split(key, len(widths))
    weights = tuple(
        jax.random.normal(layer_key, (wide_out, wide_in)) / wide_in**0.5
        for layer_key, wide_in, wide_out in zip(for_weights, widths[:-1], widths[1:], strict=True)
    )
    return network, (jax.random.normal(for_x, (widths[0],)), *weights)


def _make_tall(key: Array, size: int) -> Made:
    return _make_network(key, (size, 32, 64 * size))


def _make_wide(key: Array, size: int) -> Made:
    return _make_network(key, (64 * size, 32, size))


def _make_square(key: Array, size: int) -> Made:
    return _make_network(key, (size, size, size))


def _make_bottleneck(key: Array, size: int) -> Made:
    return _make_network(key, (size, min(16, size // 2), size))


def _make_autoencoder(key: Array, size: int) -> Made:
    narrowing = [max(1, round(size * width / 784)) for width in (784, 1000, 500, 250, 30)]
    return _make_network(key, (*narrowing, *narrowing[-2::-1]))


# Vector functions.


def softmax(x: Array) -> Array:
    """o[i] = exp(x[i]) / Σ exp(x[j])."""
    return jax.nn.softmax(x)


def softmax_jacobian(x: Array) -> Array:
    """J = diag(o) - o oᵀ."""
    shifted = jnp.exp(x - jnp.max(x))
    o = shifted / jnp.sum(shifted)
    return jnp.diag(o) - jnp.outer(o, o)


def _make_softmax(key: Array, size: int) -> Made:
    return softmax, (jax.random.normal(key, (size,)),)


def elementwise(x: Array) -> Array:
    """y[i] = sin(x[i]) exp(-x[i]² / 2)."""
    return jnp.sin(x) * jnp.exp(-0.5 * x**2)


def elementwise_jacobian(x: Array) -> Array:
    """J = diag((cos x - x sin x) exp(-x² / 2))."""
    return jnp.diag((jnp.cos(x) - x * jnp.sin(x)) * jnp.exp(-0.5 * x**2))


def _make_elementwise(key: Array, size: int) -> Made:
    return elementwise, (jax.random.normal(key, (size,)),)


def convolution(x: Array, kernel: Array) -> Array:
    """y[i] = tanh(Σ_k w[k] x[i - k + r]), zero outside, for a kernel w of 2r + 1 points."""
    return jnp.tanh(jnp.convolve(jnp.pad(x, kernel.shape[0] // 2), kernel, mode="valid"))


def convolution_jacobian(x: Array, kernel: Array) -> Array:
    """J[i, j] = (1 - y[i]²) w[i - j + r]: a band of 2r + 1 diagonals."""
    n, radius = x.shape[0], kernel.shape[0] // 2
    toeplitz = sum(kernel[k] * jnp.eye(n, k=radius - k, dtype=x.dtype) for k in range(kernel.shape[0]))
    return (1.0 - jnp.tanh(toeplitz @ x) ** 2)[:, None] * toeplitz


def _make_convolution(key: Array, size: int) -> Made:
    for_x, for_kernel = jax.random.split(key)
    return convolution, (jax.random.normal(for_x, (size,)), jax.random.normal(for_kernel, (7,)) / 7**0.5)


def dft(x: Array) -> Array:
    """y[0] + i y[1] = the discrete Fourier transform of a real signal, over √n: y[2 n]."""
    spectrum = jnp.fft.fft(x) / x.shape[0] ** 0.5
    return jnp.stack([spectrum.real, spectrum.imag])


def dft_jacobian(x: Array) -> Array:
    """J[:, k, j] = (cos, -sin)(2π k j / n) / √n."""
    n = x.shape[0]
    # The product is reduced modulo n while it is still an integer: the angle then loses no digits.
    turns = jnp.outer(jnp.arange(n), jnp.arange(n)) % n
    angle = turns.astype(x.dtype) * (2.0 * jnp.pi / n)
    return jnp.stack([jnp.cos(angle), -jnp.sin(angle)]) / n**0.5


def _make_dft(key: Array, size: int) -> Made:
    return dft, (jax.random.normal(key, (size,)),)


def layer(params: PyTree, x: Array) -> Array:
    """y = s tanh(x W + b), differentiated in the pytree {"affine": (W, b), "scale": s}."""
    weight, bias = params["affine"]
    return params["scale"] * jnp.tanh(x @ weight + bias)


def layer_jacobian(params: PyTree, x: Array) -> PyTree:
    """∂y[i]/∂W[m, j] = s (1 - a[i]²) x[m] δ[i, j], ∂y/∂b = s diag(1 - a²), ∂y/∂s = a, for a = tanh(x W + b)."""
    weight, bias = params["affine"]
    a = jnp.tanh(x @ weight + bias)
    to_bias = params["scale"] * jnp.diag(1.0 - a**2)
    return {"affine": (jnp.einsum("ij,m->imj", to_bias, x), to_bias), "scale": a}


def _make_layer(key: Array, size: int) -> Made:
    for_weight, for_bias, for_scale, for_x = jax.random.split(key, 4)
    weight = jax.random.normal(for_weight, (size + 3, size)) / (size + 3) ** 0.5
    bias = jax.random.normal(for_bias, (size,))
    scale = jax.random.uniform(for_scale, (), minval=0.5, maxval=2.0)
    return layer, ({"affine": (weight, bias), "scale": scale}, jax.random.normal(for_x, (size + 3,)))


_GRIEWANK = "Griewank and Walther, Evaluating Derivatives, 2nd edition, 2008"
_NETWORK = f"{_GRIEWANK}, chapter 3: the cost of forward and of reverse propagation"

PROBLEMS: tuple[Problem, ...] = (
    Problem(
        "rosenbrock",
        ("gradient", "hessian", "hvp"),
        _make_rosenbrock,
        500,
        "the curved valley in `size` variables: a tridiagonal Hessian",
        "Rosenbrock, An automatic method for finding the greatest or least value of a function, 1960",
        rosenbrock_gradient,
    ),
    Problem(
        "speelpenning",
        ("gradient", "hessian", "hvp"),
        _make_speelpenning,
        200,
        "the product of `size` variables: every partial derivative shares its factors",
        "Speelpenning, Compiling Fast Partial Derivatives of Functions Given by Algorithms, 1980",
        speelpenning_gradient,
    ),
    Problem(
        "quadratic_form",
        ("hessian", "gradient", "hvp"),
        _make_quadratic_form,
        300,
        "a quadratic in `size` variables with a matrix that is not symmetric: a constant dense Hessian",
        "Nocedal and Wright, Numerical Optimization, 2nd edition, 2006, chapter 2",
        quadratic_form_hessian,
    ),
    Problem(
        "tall_net",
        ("jacobian",),
        _make_tall,
        16,
        "a network from `size` inputs to 64 `size` outputs",
        _NETWORK,
        network_jacobian,
    ),
    Problem(
        "wide_net",
        ("jacobian",),
        _make_wide,
        16,
        "a network from 64 `size` inputs to `size` outputs",
        _NETWORK,
        network_jacobian,
    ),
    Problem(
        "square_net",
        ("jacobian",),
        _make_square,
        256,
        "a network from `size` inputs to `size` outputs",
        _NETWORK,
        network_jacobian,
    ),
    Problem(
        "bottleneck",
        ("jacobian",),
        _make_bottleneck,
        2048,
        "a network from `size` inputs through at most 16 numbers to `size` outputs",
        f"{_GRIEWANK}, chapter 10: Jacobian and Hessian accumulation",
        network_jacobian,
    ),
    Problem(
        "autoencoder",
        ("jacobian",),
        _make_autoencoder,
        784,
        "a deep network from `size` inputs through 0.04 `size` numbers back to `size` outputs",
        "Hinton and Salakhutdinov, Reducing the dimensionality of data with neural networks, Science 313, 2006",
        network_jacobian,
    ),
    Problem(
        "softmax",
        ("jacobian",),
        _make_softmax,
        500,
        "probabilities of `size` logits: a dense symmetric Jacobian of rank size - 1",
        "Bishop, Pattern Recognition and Machine Learning, 2006, equation 4.106",
        softmax_jacobian,
    ),
    Problem(
        "elementwise",
        ("jacobian",),
        _make_elementwise,
        1000,
        "one smooth function of each of `size` entries: a diagonal Jacobian",
        f"{_GRIEWANK}, chapter 8: sparsity and compression",
        elementwise_jacobian,
    ),
    Problem(
        "convolution",
        ("jacobian",),
        _make_convolution,
        1200,
        "a 7-point convolution of `size` samples and a tanh: a Jacobian of 7 diagonals",
        "Goodfellow, Bengio and Courville, Deep Learning, 2016, section 9.1",
        convolution_jacobian,
    ),
    Problem(
        "dft",
        ("jacobian",),
        _make_dft,
        512,
        "the Fourier transform of `size` real samples: linear, dense, complex inside",
        "Cooley and Tukey, An algorithm for the machine calculation of complex Fourier series, 1965",
        dft_jacobian,
    ),
    Problem(
        "layer",
        ("jacobian",),
        _make_layer,
        32,
        "a scaled tanh layer of `size` outputs, differentiated in a nested pytree of parameters",
        "Goodfellow, Bengio and Courville, Deep Learning, 2016, section 6.5",
        layer_jacobian,
    ),
)
