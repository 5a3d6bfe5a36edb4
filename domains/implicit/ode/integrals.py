"""Quantities integrated along a trajectory: regularisers of the path, and the change of log-density of a flow."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from sciopt.checks import check_option

__all__ = ["AbstractIntegral", "Divergence", "JacobianNorm", "KineticEnergy"]

Pull = Callable[[Tensor], Tensor]


class AbstractIntegral(ABC):
    """The rate of a quantity that `NeuralODE` integrates beside its state.

    `rate` is called with the slope ``dz`` ``(rows, ...)`` and ``pull``, the product ``u -> u^T df/dz``; ``noise`` is what
    `noise` drew at the start of the solve and is the same at all of its times.
    """

    @abstractmethod
    def noise(self, z: Tensor, generator: torch.Generator | None) -> Tensor | None:
        """Random numbers for one solve, ``(rows, ...)``, or None."""

    @abstractmethod
    def rate(self, dz: Tensor, pull: Pull, noise: Tensor | None) -> Tensor:
        """Rate of the quantity, ``(rows,)``."""

    @property
    @abstractmethod
    def pulls(self) -> bool:
        """Whether ``pull`` is used: without it an evaluation is cheaper."""


@final
@dataclass(frozen=True, kw_only=True)
class KineticEnergy(AbstractIntegral):
    """``integral |f|^2 dt`` (mean over the entries of the state): the transport cost of the path.

    Added to a loss it straightens trajectories, so that fewer evaluations follow them.

    Example:
        >>> KineticEnergy().rate(torch.full((3, 2), 2.0), lambda u: u, None)
        tensor([4., 4., 4.])

    References:
        Finlay et al. "How to train your neural ODE: the world of Jacobian and kinetic regularization". ICML 2020, eq. 6.
    """

    def noise(self, z: Tensor, generator: torch.Generator | None) -> Tensor | None:
        return None

    def rate(self, dz: Tensor, pull: Pull, noise: Tensor | None) -> Tensor:
        return dz.flatten(1).square().mean(-1)

    @property
    def pulls(self) -> bool:
        return False


@final
@dataclass(frozen=True, kw_only=True)
class JacobianNorm(AbstractIntegral):
    """``integral |eps^T df/dz|^2 dt`` (divided by the state's length): estimates the squared Frobenius norm of df/dz.

    ``eps`` is one standard normal vector per sample and solve; the mean over it is exact. Costs one product with the
    transposed Jacobian at each evaluation.

    Example:
        >>> JacobianNorm().rate(torch.ones(2, 3), lambda u: 2 * u, torch.ones(2, 3))
        tensor([4., 4.])

    References:
        Finlay et al. "How to train your neural ODE: the world of Jacobian and kinetic regularization". ICML 2020, eq. 7.
    """

    def noise(self, z: Tensor, generator: torch.Generator | None) -> Tensor | None:
        return torch.empty_like(z).normal_(generator=generator)

    def rate(self, dz: Tensor, pull: Pull, noise: Tensor | None) -> Tensor:
        assert noise is not None
        return pull(noise).flatten(1).square().mean(-1)

    @property
    def pulls(self) -> bool:
        return True


@final
@dataclass(frozen=True, kw_only=True)
class Divergence(AbstractIntegral):
    """``integral tr(df/dz) dt``: minus the change of log-density along the flow.

    Exact with one product per entry of the state; with ``samples`` Hutchinson's estimate from that many random sign vectors,
    drawn once per solve, whose variance is twice the sum of the squared off-diagonal entries (of the symmetric part) over
    ``samples``.

    Args:
        samples: number of random vectors; None: exact.

    Example:
        >>> Divergence().rate(torch.ones(2, 3), lambda u: 2 * u, None)
        tensor([6., 6.])

    References:
        Grathwohl et al. "FFJORD: free-form continuous dynamics for scalable reversible generative models". ICLR 2019, eq. 8.
    """

    samples: int | None = None

    def __post_init__(self) -> None:
        ok = self.samples is None or (isinstance(self.samples, int) and self.samples >= 1)
        check_option("Divergence", "samples", self.samples, ok, "an int >= 1 or None", "Use None for the exact trace.")

    def noise(self, z: Tensor, generator: torch.Generator | None) -> Tensor | None:
        if self.samples is None:
            return None
        signs = torch.empty(len(z), self.samples, *z.shape[1:], dtype=z.dtype, device=z.device)
        return signs.bernoulli_(0.5, generator=generator) * 2 - 1

    def rate(self, dz: Tensor, pull: Pull, noise: Tensor | None) -> Tensor:
        if noise is not None:
            probes = noise.movedim(1, 0)
            return (torch.vmap(pull)(probes) * probes).flatten(2).sum(-1).mean(0)
        size = dz[0].numel()
        basis = torch.eye(size, dtype=dz.dtype, device=dz.device).reshape(size, 1, *dz.shape[1:]).expand(-1, *dz.shape)
        rows = torch.vmap(pull)(basis)  # (n, rows, ...): row i of every Jacobian
        return (rows * basis).flatten(2).sum(-1).sum(0)

    @property
    def pulls(self) -> bool:
        return True
