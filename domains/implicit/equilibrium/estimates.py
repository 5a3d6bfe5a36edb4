"""What the map's derivative at the equilibrium is like: its size, as a penalty for training, and its spectral radius."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sciopt.checks import check_option
from sciopt.inner.rows import quotient

__all__ = ["jacobian_penalty", "spectral_radius"]

Map = Callable[[Tensor, Any], Tensor]


def jacobian_penalty(f: Map, z: Tensor, x: Any, *, generator: torch.Generator, num_samples: int = 1) -> Tensor:
    """Unbiased estimate of ``|df/dz|_F^2 / n`` per sample: add it to the loss to keep an equilibrium easy to find.

    Hutchinson's estimate by products with random vectors; differentiable in z, x and the parameters of f, so in training pass
    the layer's own z. Each sample of the estimate costs a backward pass through f, and one more for its gradient.

    Args:
        f: the layer's map; each sample's output must depend on that sample alone.
        z: equilibrium ``(batch, ...)``.
        x: input as for the layer.
        generator: source of the random vectors, on the CPU or on z's device.
        num_samples: random vectors per sample; the variance falls in proportion.

    Returns:
        Estimates ``(batch,)``.

    Raises:
        ValueError: for ``num_samples`` below 1.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> z = torch.zeros(3, 5, dtype=torch.float64)
        >>> jacobian_penalty(lambda z, x: 0.5 * z + x, z, z, generator=g, num_samples=4).shape
        torch.Size([3])

    References:
        Bai, Koltun, Kolter. "Stabilizing equilibrium models by Jacobian regularization". ICML 2021, eq. 4.
    """
    ok = isinstance(num_samples, int) and num_samples >= 1
    check_option("jacobian_penalty", "num_samples", num_samples, ok, "to be an int >= 1", "1 is enough in training.")
    pull = torch.func.vjp(lambda y: f(y, x), z)[1]
    total = None
    for _ in range(num_samples):
        image = pull(random_like(z, generator))[0].reshape(z.shape[0], -1)
        square = image.square().sum(-1) / max(image.shape[-1], 1)
        total = square if total is None else total + square
    assert total is not None
    return total / num_samples


@torch.no_grad()
def spectral_radius(
    f: Map, z: Tensor, x: Any, *, generator: torch.Generator, rtol: float = 1e-3, max_steps: int = 200
) -> Tensor:
    """Spectral radius of ``df/dz`` per sample: below 1 plain iteration converges at this rate; near 1 the layer is hard.

    Power iteration with the transposed derivative, one backward pass through f per step. Every step fits the recurrence
    ``v'' = a v' + b v`` to the last three vectors, whose roots are the dominant eigenvalue or complex pair. Eigenvalues of
    nearly the same size slow it down: it then returns the best estimate after ``max_steps``, from below as a rule.

    Args:
        f: the layer's map; each sample's output must depend on that sample alone.
        z: equilibrium ``(batch, ...)``.
        x: input as for the layer.
        generator: source of the start vectors, on the CPU or on z's device.
        rtol: relative change over five steps that ends the iteration.
        max_steps: most backward passes.

    Returns:
        Radii ``(batch,)``, detached.

    Raises:
        ValueError: for options out of range.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> turn = torch.tensor([[0.0, -0.9], [0.9, 0.0]], dtype=torch.float64)  # eigenvalues +-0.9 i
        >>> z = torch.zeros(1, 2, dtype=torch.float64)
        >>> spectral_radius(lambda z, x: z @ turn.T, z, None, generator=g)
        tensor([0.9000], dtype=torch.float64)

    References:
        Golub, Van Loan. "Matrix computations", section 7.3 (power iteration). Wilkinson. "The algebraic eigenvalue problem"
        (1965), ch. 9 (complex pairs from three iterates).
    """
    check_option("spectral_radius", "rtol", rtol, 0 < rtol < 1, "in (0, 1)", "1e-3 is a good choice.")
    check_option("spectral_radius", "max_steps", max_steps, max_steps >= 2, ">= 2", "Leave the default.")
    with torch.enable_grad():
        point = z.detach().requires_grad_()
        out = f(point, x)
    if not out.requires_grad:
        return z.new_zeros(z.shape[0])

    def apply(v: Tensor) -> Tensor:
        (image,) = torch.autograd.grad(out, point, v.reshape(z.shape), retain_graph=True, materialize_grads=True)
        return image.reshape(v.shape)

    rows = z.shape[0]
    first = unit(random_like(z, generator).reshape(rows, -1))[0]
    second, growth = unit(apply(first))
    radius, before = growth, growth
    for k in range(max_steps - 1):
        third, next_growth = unit(apply(second))
        # in units of `first`: v = first, v' = growth second, v'' = growth next_growth third
        radius = torch.where(growth * next_growth > 0, dominant(first, second, third, growth, next_growth), 0.0)
        if k % 5 == 4:
            if bool(((radius - before).abs() <= rtol * radius).all()):
                break
            before = radius
        first, second, growth = second, third, next_growth
    return radius


def dominant(u: Tensor, v: Tensor, w: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Largest modulus of the roots of ``t^2 = a t + b`` fitted to ``A u = first v``, ``A v = second w`` (unit rows)."""
    # least squares for  second w = a v + (b / first) u
    c = (u * v).sum(-1)
    p, q = second * (v * w).sum(-1), second * (u * w).sum(-1)
    det = 1 - c.square()
    regular = det > 1e-12  # else u and v are parallel: one real eigenvalue
    a = torch.where(regular, quotient(p - c * q, det), p)
    b = torch.where(regular, first * quotient(q - c * p, det), 0.0)
    half = a / 2
    disc = half.square() + b
    real = half.abs() + disc.clamp_min(0).sqrt()
    return torch.where(disc >= 0, real, (-b).clamp_min(0).sqrt())


def unit(v: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of unit length, and their lengths."""
    length = torch.linalg.vector_norm(v, dim=-1)
    return v * quotient(torch.ones_like(length), length).unsqueeze(-1), length


def random_like(z: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal numbers shaped as ``z``, from a generator on the CPU or on its device."""
    noise = torch.randn(z.shape, generator=generator, dtype=z.dtype, device=generator.device)
    return noise.to(z.device)
