"""The Jacobian of softmax and its pullback (equations 6.2 to 6.8), by closed form and by automatic differentiation.

Run: python scripts/softmax_pullback.py    draws out/softmax_pullback.png
"""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np

import gradlab as gl
from gradlab import losses, plots


def pytorch_pullback(x: jax.Array, v: jax.Array) -> np.ndarray:
    import torch

    leaf = torch.tensor(np.asarray(x), requires_grad=True)
    (slope,) = torch.autograd.grad(torch.softmax(leaf, -1), leaf, torch.tensor(np.asarray(v)))
    return slope.numpy()


def main() -> None:
    x = jnp.array([2.0, 0.5, -1.0, 0.0, 1.2, -0.3])
    v = jax.random.normal(jax.random.key(0), x.shape)
    o = jax.nn.softmax(x)
    jacobian = gl.jacobian(jax.nn.softmax)(x)
    _, back = gl.pullback(jax.nn.softmax)(x, v)
    apart = lambda a, b: f"{float(np.abs(np.asarray(a) - np.asarray(b)).max()):.1e}"
    print("largest difference")
    print("  Jacobian against diag(o) − o oᵀ        ", apart(jacobian, losses.softmax_jacobian(o)))
    print("  pullback against Jᵀ v                  ", apart(back, jacobian.T @ v))
    print("  pullback against its closed form       ", apart(back, losses.softmax_pullback(o, v)))
    if importlib.util.find_spec("torch"):
        print("  pullback against PyTorch's             ", apart(back, pytorch_pullback(x, v)))
    else:
        print('  pullback against PyTorch\'s: pip install "gradlab-jax[peers]" to compare')

    figure = plots.figure(11.0, 4.0)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.3))
    limit = float(jnp.abs(jacobian).max())
    picture = left.imshow(jacobian, cmap="RdBu_r", vmin=-limit, vmax=limit)
    figure.colorbar(picture, ax=left)
    left.set(title="J = diag(o) − o oᵀ", xlabel="input j", ylabel="output i")
    places = np.arange(x.size)
    for i, (name, values) in enumerate({"o": o, "v = ∂loss/∂o": v, "Jᵀv = ∂loss/∂x": back}.items()):
        right.bar(places + 0.27 * (i - 1), values, 0.25, label=name, color=plots.COLORS[i])
    right.axhline(0, color="gray", lw=0.8)
    right.set(title="a cotangent pulled back", xlabel="entry")
    right.legend(frameon=False)
    print("drawn:", plots.save(figure, "out/softmax_pullback.png"))


if __name__ == "__main__":
    main()
