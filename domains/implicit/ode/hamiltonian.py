"""Layers whose flow is that of a learned energy."""

from __future__ import annotations

from collections.abc import Callable
from typing import final

import torch
from torch import Tensor, nn

__all__ = ["HamiltonianField"]


@final
class HamiltonianField(nn.Module):
    """``dq/dt = dH/dp, dp/dt = -dH/dq`` of an energy ``H(q, p)``: a right-hand side for `NeuralODE` that conserves H.

    The flow keeps the energy and the volume of phase space whatever the network is. Adaptive steppers keep them to their
    tolerance; for long times and a separable ``H = T(p) + V(q)`` use `sciopt.steppers.Leapfrog`, whose error does not grow.

    Args:
        energy: ``(q, p) -> (batch,)``, row by row, q and p ``(batch, d)``; any module or callable.

    Example:
        >>> from sciopt.domains.implicit.ode import NeuralODE
        >>> from sciopt.steppers import Leapfrog
        >>> spring = HamiltonianField(lambda q, p: (0.5 * q**2 + 0.5 * p**2).sum(-1))
        >>> swing = NeuralODE(spring, solver=Leapfrog(num_steps=100), times=torch.tensor([0.0, torch.pi]))
        >>> torch.round(swing(torch.tensor([[1.0, 0.0]])), decimals=2).abs()  # half a swing: q to -q
        tensor([[1., 0.]])

    References:
        Greydanus, Dzamba, Yosinski. "Hamiltonian neural networks". NeurIPS 2019.
    """

    def __init__(self, energy: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.energy = energy

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        """The slope of ``z = (q, p)``, ``(batch, 2 d)``."""
        if z.shape[-1] % 2:
            raise ValueError(
                f"HamiltonianField: expected positions and as many momenta in the last dimension, got {z.shape[-1]} numbers. "
                "Concatenate q and p."
            )
        half = z.shape[-1] // 2

        def total(z: Tensor) -> Tensor:
            return self.energy(z[..., :half], z[..., half:]).sum()

        grad = torch.func.grad(total)(z)
        return torch.cat([grad[..., half:], -grad[..., :half]], -1)
