"""Continuous normalizing flows: densities carried along a differential equation."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor, nn

from sciopt.domains.implicit.ode.integrals import AbstractIntegral, Divergence
from sciopt.domains.implicit.ode.neural_ode import NeuralODE
from sciopt.hypergradients import AbstractHypergradient
from sciopt.steppers import AbstractStepper

__all__ = ["ContinuousFlow"]


@final
class ContinuousFlow(nn.Module):
    """A density: a standard normal at time 0 carried by ``dz/dt = f(t, z)`` to time 1.

        log p(x) = log N(z(0)) - integral_0^1 tr(df/dz) dt,   z(1) = x

    Any f will do; the trace is exact (one product per dimension) or Hutchinson's estimate, whose gradient is unbiased.
    Options are those of `NeuralODE`.

    Args:
        field: ``f(t, z)`` or ``f(t, z, x)``, on ``(batch, d)``.
        trace: ``Divergence()`` or ``Divergence(samples=1)``.
        solver: a stepper; None: ``Tsit5()``.
        hypergradient: None: the exact derivative of the steps.
        integrals: further integrals, e.g. `KineticEnergy` and `JacobianNorm` as regularisers; see `log_prob_and_integrals`.

    Example:
        >>> flow = ContinuousFlow(lambda t, z: 0.5 * z)  # z(1) = exp(0.5) z(0): a wider normal
        >>> expected = torch.distributions.Normal(0.0, math.exp(0.5)).log_prob(torch.ones(()))
        >>> bool(torch.isclose(flow.log_prob(torch.ones(1, 1)), expected, rtol=1e-3).all())
        True
        >>> flow.sample(5, like=torch.zeros(3), generator=torch.Generator().manual_seed(0)).shape
        torch.Size([5, 3])

    References:
        Chen et al. "Neural ordinary differential equations". NeurIPS 2018, theorem 1. Grathwohl et al. "FFJORD". ICLR 2019.
    """

    def __init__(
        self,
        field: Callable[..., Tensor],
        *,
        trace: Divergence | None = None,
        solver: AbstractStepper | None = None,
        hypergradient: AbstractHypergradient | None = None,
        integrals: tuple[AbstractIntegral, ...] = (),
    ) -> None:
        super().__init__()
        trace = Divergence() if trace is None else trace
        common: dict[str, Any] = {"solver": solver, "hypergradient": hypergradient}
        self.density = NeuralODE(field, integrals=(trace, *integrals), with_solution=True, **common)
        self.transport = NeuralODE(field, **common)

    def log_prob(self, value: Tensor, x: Any = None, *, generator: torch.Generator | None = None) -> Tensor:
        """Log-density ``(batch,)`` at ``value`` ``(batch, d)``; x and generator as `NeuralODE.forward` takes them."""
        return self.log_prob_and_integrals(value, x, generator=generator)[0]

    def log_prob_and_integrals(
        self, value: Tensor, x: Any = None, *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Log-density ``(batch,)``, and the further integrals along the way ``(batch, number)``, from time 0 to 1."""
        back = torch.tensor([1.0, 0.0], dtype=value.dtype, device=value.device)
        z0, solution = self.density(value, back, x, generator=generator)
        totals = -solution.aux["integrals"]  # integrated from 1 to 0
        base = -0.5 * (z0.square() + math.log(2 * math.pi)).sum(-1)
        return base - totals[:, 0], totals[:, 1:]

    def sample(self, count: int, *, like: Tensor, x: Any = None, generator: torch.Generator | None = None) -> Tensor:
        """Draws ``(count, d)``, with the length d, dtype and device of ``like`` ``(d,)``."""
        z0 = torch.empty(count, *like.shape, dtype=like.dtype, device=like.device).normal_(generator=generator)
        return self.transport(z0, None, x)
