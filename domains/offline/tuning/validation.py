"""How predictions of rows that a fit has not seen are judged."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from sciopt.checks import check_option

__all__ = ["AbstractValidation", "RankError", "SquaredError"]


class AbstractValidation(ABC):
    """A loss of predictions; concrete ones are frozen dataclasses."""

    @abstractmethod
    def loss(self, predicted: Tensor, targets: Tensor, share: Tensor) -> Tensor:
        """``(c,)`` for predictions and targets ``(c, n)`` that count with ``share`` ``(c, n)``, which sums to 1."""


@final
@dataclass(frozen=True, kw_only=True)
class SquaredError(AbstractValidation):
    """Weighted mean of squared errors.

    Example:
        >>> SquaredError().loss(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 0.0]]), torch.tensor([[0.5, 0.5]]))
        tensor([2.5000])
    """

    def loss(self, predicted: Tensor, targets: Tensor, share: Tensor) -> Tensor:
        """See `AbstractValidation.loss`."""
        return (share * (predicted - targets).square()).sum(-1)


@final
@dataclass(frozen=True, kw_only=True)
class RankError(AbstractValidation):
    """How often, smoothly counted, two rows come out in the wrong order: what a search needs, deaf to skewed scores.

    Pairs are compared by the logistic loss of the difference of their predictions over ``softness`` standard deviations of
    all predictions, so that neither shift nor scale of the predictions matters.

    Args:
        softness: > 0; the smaller, the more alike to counting.

    Example:
        >>> even = torch.tensor([[0.5, 0.5]])
        >>> right, wrong = torch.tensor([[1.0, 2.0]]), torch.tensor([[2.0, 1.0]])
        >>> float(RankError().loss(right, right, even)) < float(RankError().loss(wrong, right, even))
        True

    References:
        Burges et al. "Learning to rank using gradient descent". ICML 2005, section 3.
    """

    softness: float = 0.5

    def __post_init__(self) -> None:
        check_option("RankError", "softness", self.softness, self.softness > 0, "> 0", "0.5 is a good start.")

    def loss(self, predicted: Tensor, targets: Tensor, share: Tensor) -> Tensor:
        """See `AbstractValidation.loss`."""
        mean = (share * predicted).sum(-1, keepdim=True)
        spread = (share * (predicted - mean).square()).sum(-1, keepdim=True).clamp(min=1e-24).sqrt()
        scaled = predicted / (self.softness * spread)
        above = (targets.unsqueeze(-1) > targets.unsqueeze(-2)).to(predicted)
        pairs = share.unsqueeze(-1) * share.unsqueeze(-2) * above
        wrong = torch.nn.functional.softplus(scaled.unsqueeze(-2) - scaled.unsqueeze(-1))
        total = pairs.sum((-1, -2)).clamp(min=torch.finfo(share.dtype).tiny)
        return (pairs * wrong).sum((-1, -2)) / total
