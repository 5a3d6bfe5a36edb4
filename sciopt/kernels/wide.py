"""The two kernels of an infinitely wide network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from torch import Tensor

from sciopt.kernels.abstract import AbstractKernel, AbstractNetwork

__all__ = ["NNGP", "NTK"]


@final
@dataclass(frozen=True)
class NTK(AbstractKernel):
    """Neural tangent kernel: what a wide network does under gradient descent on all of its parameters.

    Args:
        network: the architecture, `DenseNetwork` or `ConvNetwork`.

    Example:
        >>> import torch
        >>> from sciopt.kernels import DenseNetwork
        >>> kernel = NTK(DenseNetwork(hidden_layers=2))
        >>> kernel.pair(torch.eye(2), torch.eye(2))
        tensor([[0.3750, 0.0857],
                [0.0857, 0.3750]])

    References:
        Jacot, Gabriel, Hongler. "Neural tangent kernel". NeurIPS 2018.
    """

    network: AbstractNetwork

    def pair(self, left: Tensor, right: Tensor) -> Tensor:
        """See `AbstractKernel.pair`."""
        return self.network.covariance(left, right, tangent_kernel=True)

    def diagonal(self, points: Tensor) -> Tensor:
        """See `AbstractKernel.diagonal`."""
        return self.network.variances(points)[1]

    def slopes(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
        """See `AbstractKernel.slopes`."""
        return self.network.covariance_slopes(left, right, tangent_kernel=True)


@final
@dataclass(frozen=True)
class NNGP(AbstractKernel):
    """Covariance of a wide network at random initialisation: what training its readout alone does.

    Args:
        network: the architecture, `DenseNetwork` or `ConvNetwork`.

    Example:
        >>> import torch
        >>> from sciopt.kernels import DenseNetwork
        >>> NNGP(DenseNetwork(hidden_layers=1)).diagonal(torch.ones(2, 3))
        tensor([0.5000, 0.5000])

    References:
        Lee et al. "Deep neural networks as Gaussian processes". ICLR 2018.
    """

    network: AbstractNetwork

    def pair(self, left: Tensor, right: Tensor) -> Tensor:
        """See `AbstractKernel.pair`."""
        return self.network.covariance(left, right, tangent_kernel=False)

    def diagonal(self, points: Tensor) -> Tensor:
        """See `AbstractKernel.diagonal`."""
        return self.network.variances(points)[0]

    def slopes(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
        """See `AbstractKernel.slopes`."""
        return self.network.covariance_slopes(left, right, tangent_kernel=False)
