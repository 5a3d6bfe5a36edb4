"""What it costs a batch to hold designs that are alike: terms for a greedy choice, one pass per chosen design."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from sciopt.checks import check_option

__all__ = ["AbstractDiversity", "Conditional", "Determinantal", "SimilarityPenalty"]

FLOOR = 1e-12  # of a conditional variance, before its logarithm


class Conditional:
    """Variances of a Gaussian vector while its entries are observed one after another: iteration state of a greedy choice.

    Each observation is a rank-one downdate of the covariance. Only its columns are made, and only when their entry is
    observed, so that the k-th costs ``k * q`` and the matrix itself is never written to.

    Args:
        covariance: ``(q, q)``, positive semi-definite.
        count: largest number of observations.
        noise: variance of an observation, >= 0; with 0 an observed entry is known.

    Example:
        >>> state = Conditional(torch.tensor([[1.0, 0.5], [0.5, 1.0]]), 1)
        >>> state.observe(torch.tensor([0]))
        >>> state.variance
        tensor([0.0000, 0.7500])

    References:
        Rasmussen, Williams. "Gaussian processes for machine learning". MIT Press, 2006, eq. 2.24 and A.6.
    """

    def __init__(self, covariance: Tensor, count: int, noise: float = 0.0) -> None:
        self.covariance = covariance
        self.noise = noise
        self.variance = covariance.diagonal().clone().clamp(min=0)
        self.rows = covariance.new_zeros(count, len(covariance))
        self.seen = 0
        self.floor = torch.finfo(covariance.dtype).eps * self.variance.amax()

    def observe(self, index: Tensor) -> None:
        """Condition on entry ``index``, int64 ``(1,)``."""
        known = self.rows[: self.seen]
        column = self.covariance.index_select(1, index).squeeze(1) - known.index_select(1, index).squeeze(1) @ known
        pivot = column.index_select(0, index) + self.noise
        row = torch.where(pivot > self.floor, column * pivot.clamp(min=self.floor).rsqrt(), 0.0)
        self.rows[self.seen] = row
        self.seen += 1
        self.variance = (self.variance - row * row).clamp(min=0)


class AbstractDiversity(ABC):
    """How alike a candidate is to what is chosen. Concrete ones are frozen dataclasses of options."""

    @abstractmethod
    def start(self, similarity: Tensor, count: int) -> object:
        """State of a greedy choice of ``count`` among candidates with similarities ``(q, q)`` in [0, 1]."""

    @abstractmethod
    def terms(self, state: object) -> Tensor:
        """What each candidate would add to the value of the batch, ``(q,)``; at most 0, and 0 where nothing is alike."""

    @abstractmethod
    def update(self, state: object, index: Tensor) -> object:
        """The state after candidate ``index``, int64 ``(1,)``, is chosen."""


@final
@dataclass(frozen=True, kw_only=True)
class SimilarityPenalty(AbstractDiversity):
    """``-weight`` times the similarity to the most similar chosen design.

    Args:
        weight: in standard deviations of the acquisition over the candidates, >= 0.

    Example:
        >>> chosen = SimilarityPenalty(weight=2.0)
        >>> state = chosen.update(chosen.start(torch.tensor([[1.0, 0.5], [0.5, 1.0]]), 1), torch.tensor([0]))
        >>> chosen.terms(state)
        tensor([-2., -1.])

    References:
        Carbonell, Goldstein. "The use of MMR, diversity-based reranking". SIGIR, 1998.
    """

    weight: float = 1.0

    def __post_init__(self) -> None:
        check_option("SimilarityPenalty", "weight", self.weight, self.weight >= 0, ">= 0", "1 is a good start.")

    def start(self, similarity: Tensor, count: int) -> object:
        """See `AbstractDiversity.start`."""
        return similarity, similarity.new_zeros(len(similarity))

    def terms(self, state: object) -> Tensor:
        """See `AbstractDiversity.terms`."""
        assert isinstance(state, tuple)
        return -self.weight * state[1]

    def update(self, state: object, index: Tensor) -> object:
        """See `AbstractDiversity.update`."""
        assert isinstance(state, tuple)
        return state[0], torch.maximum(state[1], state[0].index_select(1, index).squeeze(1))


@final
@dataclass(frozen=True, kw_only=True)
class Determinantal(AbstractDiversity):
    """``weight`` times the gain in ``log det`` of the similarities of the batch: the greedy mode of a determinantal process.

    Sees more than pairs: a design between two chosen ones is worth less than one beside a single chosen one.

    Args:
        weight: in standard deviations of the acquisition over the candidates, >= 0.
        power: to which each similarity is raised first, >= 1. Shares of equal letters span ``length * (letters - 1) + 1``
            dimensions alone: with power 1 larger batches have determinant 0 and no preference.

    Example:
        >>> chosen = Determinantal(power=1)
        >>> state = chosen.update(chosen.start(torch.tensor([[1.0, 0.5], [0.5, 1.0]]), 1), torch.tensor([0]))
        >>> chosen.terms(state)[1].exp()
        tensor(0.7500)

    References:
        Kulesza, Taskar. "Determinantal point processes for machine learning". 2012, section 4.2. Chen, Zhang, Zhou. "Fast
        greedy MAP inference for determinantal point process". NeurIPS 2018, algorithm 1.
    """

    weight: float = 1.0
    power: int = 4

    def __post_init__(self) -> None:
        check_option("Determinantal", "weight", self.weight, self.weight >= 0, ">= 0", "1 is a good start.")
        ok = (
            isinstance(self.power, int) and self.power >= 1
        )  # an entrywise product of positive semi-definite ones is one
        check_option("Determinantal", "power", self.power, ok, "to be an int >= 1", "4 is a good start.")

    def start(self, similarity: Tensor, count: int) -> object:
        """See `AbstractDiversity.start`."""
        return Conditional(similarity**self.power, count)

    def terms(self, state: object) -> Tensor:
        """See `AbstractDiversity.terms`."""
        assert isinstance(state, Conditional)
        return self.weight * state.variance.clamp(min=FLOOR).log()

    def update(self, state: object, index: Tensor) -> object:
        """See `AbstractDiversity.update`."""
        assert isinstance(state, Conditional)
        state.observe(index)
        return state
