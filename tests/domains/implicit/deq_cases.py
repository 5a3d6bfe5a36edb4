"""A small equilibrium layer with everything in it, and the unrolled truth in float64."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

SIZE = 6


class Cell(nn.Module):
    """``tanh(W z + U x + b)`` with W scaled to a spectral radius."""

    def __init__(self, generator: torch.Generator, radius: float = 0.6, size: int = SIZE) -> None:
        super().__init__()
        draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
        W = draw(size, size)
        W = W + W.T
        self.W = nn.Parameter(radius * W / torch.linalg.eigvalsh(W).abs().max())
        self.U = nn.Parameter(draw(size, size) / size**0.5)
        self.b = nn.Parameter(0.1 * draw(size))

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(z @ self.W.T + x @ self.U.T + self.b)


def unrolled(f: Callable[[Tensor, Tensor], Tensor], x: Tensor, steps: int = 150, start: Tensor | None = None) -> Tensor:
    """The map applied until rounding is all that moves, recorded."""
    z = torch.zeros_like(x) if start is None else start
    for _ in range(steps):
        z = f(z, x)
    return z


def relative(found: Tensor, truth: Tensor) -> float:
    """Relative error in the 2-norm."""
    return float((found - truth).detach().norm() / truth.detach().norm())
