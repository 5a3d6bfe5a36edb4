"""Kinds of functions that scores may be of the columns: what the model chooses among."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from sciopt.checks import check_option
from sciopt.domains.offline.proposal.columns import NumberColumn
from sciopt.domains.offline.proposal.design_space import DesignSpace
from sciopt.kernels import NTK, RBF, AbstractKernel, DenseNetwork

__all__ = ["AbstractFamily", "Gaussian", "StrandKernel", "WideNetwork"]


class AbstractFamily(ABC):
    """A kernel on features whose columns have learned weights. Concrete ones are frozen dataclasses."""

    @property
    @abstractmethod
    def kernel(self) -> AbstractKernel:
        """On what `points` makes."""

    @abstractmethod
    def points(self, space: DesignSpace, features: Tensor, weights: Tensor, centre: Tensor) -> Tensor:
        """The kernel's points ``(n, d)`` of designs.

        Args:
            space: the columns.
            features: of designs ``(n, f)``, see `DesignSpace.features`.
            weights: of the features ``(f,)``, equal in each group of them.
            centre: mean of the features ``(f,)``.
        """

    @abstractmethod
    def typical_weights(self, space: DesignSpace) -> Tensor:
        """Weights that are right for scores of average roughness ``(columns,)``: the median of the prior."""

    @abstractmethod
    def describe(self) -> str:
        """A few words for people."""


@final
@dataclass(frozen=True)
class Gaussian(AbstractFamily):
    """Smooth functions: the RBF kernel, one length scale per column.

    On letters and levels it is the exponential of minus the number of mismatches.

    Example:
        >>> from sciopt.domains.offline.proposal import NumberColumn
        >>> Gaussian().typical_weights(DesignSpace((NumberColumn(name="x", low=0, high=1),)))
        tensor([3.4641], dtype=torch.float64)

    References:
        Hvarfner, Hellsten, Nardi. "Vanilla Bayesian optimization performs great in high dimensions". ICML 2024 (length
        scales that grow with the square root of the dimension).
    """

    @property
    def kernel(self) -> AbstractKernel:
        """See `AbstractFamily.kernel`."""
        return RBF()

    def points(self, space: DesignSpace, features: Tensor, weights: Tensor, centre: Tensor) -> Tensor:
        """See `AbstractFamily.points`."""
        return (features - centre) * weights

    def typical_weights(self, space: DesignSpace) -> Tensor:
        """See `AbstractFamily.typical_weights`: two random designs then have correlation exp(-1)."""
        return (2 / (len(space.columns) * 2 * _variances(space))).sqrt()

    def describe(self) -> str:
        """See `AbstractFamily.describe`."""
        return "a Gaussian kernel with one length scale per column"


@final
@dataclass(frozen=True, kw_only=True)
class WideNetwork(AbstractFamily):
    """Functions that an infinitely wide ReLU network learns: the neural tangent kernel, one weight per column.

    Args:
        hidden_layers: of the network, >= 1.

    Example:
        >>> from sciopt.domains.offline.proposal import NumberColumn
        >>> space, one = DesignSpace((NumberColumn(name="x", low=0, high=1),)), torch.ones(1)
        >>> WideNetwork(hidden_layers=2).points(space, torch.zeros(1, 1), one, 0 * one)
        tensor([[0., 1.]])
    """

    hidden_layers: int = 5

    def __post_init__(self) -> None:
        check_option("WideNetwork", "hidden_layers", self.hidden_layers, self.hidden_layers >= 1, ">= 1", "5 is good.")

    @property
    def kernel(self) -> AbstractKernel:
        """See `AbstractFamily.kernel`."""
        return NTK(DenseNetwork(hidden_layers=self.hidden_layers))

    def points(self, space: DesignSpace, features: Tensor, weights: Tensor, centre: Tensor) -> Tensor:
        """See `AbstractFamily.points`: a constant is added, without which the network would be homogeneous."""
        return torch.cat([(features - centre) * weights, torch.ones_like(features[:, :1])], -1)

    def typical_weights(self, space: DesignSpace) -> Tensor:
        """See `AbstractFamily.typical_weights`: features then have a mean square of 4 beside the constant."""
        return (4 / (len(space.columns) * _variances(space))).sqrt()

    def describe(self) -> str:
        """See `AbstractFamily.describe`."""
        return f"the kernel of an infinitely wide network with {self.hidden_layers} hidden layers"


def _variances(space: DesignSpace) -> Tensor:
    """Total variance of each column's features over the whole space ``(columns,)``."""
    values = [
        1 / 12 if isinstance(column, NumberColumn) else 0.5 * (1 - 1 / max(2, column.choices))
        for column in space.columns
    ]
    return torch.tensor(values, dtype=torch.float64)


@final
@dataclass(frozen=True)
class StrandKernel(AbstractKernel):
    """A kernel between designs that come in two equivalent forms: ``(k(x, x') + k(x, gx')) / 2`` with g the symmetry.

    Functions drawn from it have the same value on both forms. The inner kernel has to be a function of inner products or
    distances that g leaves alone, as it permutes features. Points are ``(n, 2, d)``: a design and its image.

    Args:
        kernel: on ``(n, d)``.

    Example:
        >>> x = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
        >>> StrandKernel(RBF()).pair(x, x.flip(1)), StrandKernel(RBF()).diagonal(x)
        (tensor([[0.6839]]), tensor([0.6839]))

    References:
        Ginsbourger et al. "On degeneracy and invariances of random fields paths". Stoch. Process. Appl. 126, 2016.
    """

    kernel: AbstractKernel

    def pair(self, left: Tensor, right: Tensor) -> Tensor:
        """See `AbstractKernel.pair`."""
        return 0.5 * (self.kernel.pair(left[:, 0], right[:, 0]) + self.kernel.pair(left[:, 0], right[:, 1]))

    def diagonal(self, points: Tensor) -> Tensor:
        """See `AbstractKernel.diagonal`."""

        def value(here: Tensor, there: Tensor) -> Tensor:
            return self.kernel.pair(here.unsqueeze(0), there.unsqueeze(0)).squeeze()

        crossed = torch.func.vmap(value)(points[:, 0], points[:, 1])
        return 0.5 * (self.kernel.diagonal(points[:, 0]) + crossed)

    def slopes(self, left: Tensor, right: Tensor) -> None:
        """None: autograd differentiates it."""
        return None
