"""How rows of a table get weights: one free number each, or a small function of what a row looks like."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from sciopt.checks import check_option

__all__ = ["AbstractWeighting", "FreeWeights", "WeightingFunction", "effective_size"]


class AbstractWeighting(ABC):
    """Logarithms of sample weights from outer variables; all are 0 at the start."""

    @abstractmethod
    def start(self, features: Tensor) -> Tensor:
        """Outer variables ``(c, a)``, zeros, for features ``(c, n, q)`` of n rows around c centres."""

    @abstractmethod
    def log_weights(self, variables: Tensor, features: Tensor) -> Tensor:
        """Logarithms of weights ``(c, n)``."""


@final
@dataclass(frozen=True, kw_only=True)
class FreeWeights(AbstractWeighting):
    """One weight for each row: finds single bad rows, and has as many numbers to overfit as there are rows.

    Args:
        limit: largest absolute logarithm, approached smoothly; > 0.

    Example:
        >>> FreeWeights().log_weights(torch.tensor([[0.0, 100.0]]), torch.zeros(1, 2, 3))
        tensor([[0., 5.]])
    """

    limit: float = 5.0

    def __post_init__(self) -> None:
        check_option("FreeWeights", "limit", self.limit, self.limit > 0, "> 0", "5 lets a row nearly vanish.")

    def start(self, features: Tensor) -> Tensor:
        """See `AbstractWeighting.start`: ``a = n``."""
        return torch.zeros_like(features[..., 0])

    def log_weights(self, variables: Tensor, features: Tensor) -> Tensor:
        """See `AbstractWeighting.log_weights`."""
        return self.limit * torch.tanh(variables / self.limit)


@final
@dataclass(frozen=True, kw_only=True)
class WeightingFunction(AbstractWeighting):
    """A log-linear function of a row's features: a few numbers for each centre, whatever the number of rows.

    Args:
        limit: largest absolute logarithm, approached smoothly; > 0.

    Example:
        >>> function = WeightingFunction()
        >>> function.start(torch.zeros(1, 5, 3)).shape
        torch.Size([1, 3])
        >>> function.log_weights(torch.tensor([[0.0, -1.0]]), torch.tensor([[[2.0, 0.0], [0.0, 0.1]]])).round(decimals=2)
        tensor([[ 0.0000, -0.1000]])

    References:
        Shu et al. "Meta-Weight-Net: learning an explicit mapping for sample weighting". NeurIPS 2019, section 3 (a
        weighting function in place of free weights).
    """

    limit: float = 5.0

    def __post_init__(self) -> None:
        check_option("WeightingFunction", "limit", self.limit, self.limit > 0, "> 0", "5 lets a row nearly vanish.")

    def start(self, features: Tensor) -> Tensor:
        """See `AbstractWeighting.start`: ``a = q``."""
        return torch.zeros_like(features[:, 0])

    def log_weights(self, variables: Tensor, features: Tensor) -> Tensor:
        """See `AbstractWeighting.log_weights`."""
        return self.limit * torch.tanh((features @ variables.unsqueeze(-1)).squeeze(-1) / self.limit)


def effective_size(weights: Tensor) -> Tensor:
    """Kish's effective sample size ``(sum w)^2 / sum w^2`` along the last dimension.

    Example:
        >>> effective_size(torch.tensor([[1.0, 1.0, 1.0], [2.0, 0.0, 0.0]]))
        tensor([3., 1.])

    References:
        Kish. "Survey sampling". Wiley, 1965.
    """
    return weights.sum(-1).square() / weights.square().sum(-1)
