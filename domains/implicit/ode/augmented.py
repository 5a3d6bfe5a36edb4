"""Neural ODEs in a larger space: what a flow cannot do in d dimensions it can do in d + p."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor, nn

from sciopt.domains.implicit.ode.neural_ode import NeuralODE

__all__ = ["AugmentedODE"]


@final
class AugmentedODE(nn.Module):
    """ANODE: append ``extra`` zeros to the input, integrate, and return the input's part of the result.

    Trajectories of an ODE do not cross, so a `NeuralODE` cannot reflect a line or separate a shell from what it encloses;
    with dimensions to move aside it can, and the field stays simpler (fewer evaluations).

    Args:
        ode: the layer on ``(batch, d + extra)``; returns the last state.
        extra: number of dimensions appended.
        keep: return all ``d + extra`` entries instead, for a head that reads them.

    Raises:
        ValueError: for a negative ``extra``, or a layer that returns trajectories.

    Example:
        >>> turn = torch.tensor([[0.0, 1.0], [-1.0, 0.0]]) * torch.pi
        >>> flip = AugmentedODE(NeuralODE(lambda t, z: z @ turn), extra=1)
        >>> torch.round(flip(torch.tensor([[1.0], [-2.0]])), decimals=2)  # z to -z, which no flow of a line can do
        tensor([[-1.],
                [ 2.]])

    References:
        Dupont, Doucet, Teh. "Augmented neural ODEs". NeurIPS 2019.
    """

    def __init__(self, ode: NeuralODE, *, extra: int, keep: bool = False) -> None:
        super().__init__()
        if not isinstance(extra, int) or extra < 0:
            raise ValueError(f"AugmentedODE: expected `extra` to be an int >= 0, got {extra!r}. Start with 1.")
        if ode.trajectory or ode.with_solution:
            raise ValueError(
                "AugmentedODE: expected `ode` to return the last state, got one with `trajectory` or `with_solution`. Leave "
                "both out."
            )
        self.ode, self.extra, self.keep = ode, extra, keep

    def forward(self, z0: Tensor, times: Tensor | None = None, x: Any = None) -> Tensor:
        """``(batch, d)`` to ``(batch, d)``, or ``(batch, d + extra)`` with ``keep``; arguments as `NeuralODE.forward`."""
        out = self.ode(torch.cat([z0, z0.new_zeros(*z0.shape[:-1], self.extra)], -1), times, x)
        return out if self.keep else out[..., : z0.shape[-1]]
