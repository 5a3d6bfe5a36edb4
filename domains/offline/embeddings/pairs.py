"""Letters at pairs of positions: linear models on them know epistasis."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from sciopt.checks import check_option
from sciopt.domains.offline.embeddings.abstract import AbstractEmbedding, check_probabilities
from sciopt.domains.offline.spaces import CategoricalSpace

__all__ = ["LetterPairs"]

MOST = 1 << 18  # numbers of one vector


@final
@dataclass(frozen=True, kw_only=True)
class LetterPairs(AbstractEmbedding):
    """Which two letters stand at each pair of positions, ``letters^2`` numbers per pair; for short sequences.

    Args:
        reach: largest distance between the two positions; None: all pairs.

    Raises:
        ValueError: for options out of range, or vectors of more than 262,144 numbers.

    Example:
        >>> space = CategoricalSpace(length=2, alphabet="AB")
        >>> LetterPairs()(space, ["AB"])  # AA, AB, BA, BB
        tensor([[0., 1., 0., 0.]], dtype=torch.float64)
    """

    reach: int | None = None

    def __post_init__(self) -> None:
        ok = self.reach is None or self.reach >= 1
        check_option("LetterPairs", "reach", self.reach, ok, ">= 1 or None", "1 takes neighbours.")

    @property
    def differentiable(self) -> bool:
        """See `AbstractEmbedding.differentiable`."""
        return True

    def embed(self, space: CategoricalSpace, designs: Tensor) -> Tensor:
        """See `AbstractEmbedding.embed`."""
        return self.relaxed(space, space.one_hot(designs))

    def relaxed(self, space: CategoricalSpace, probabilities: Tensor) -> Tensor:
        """See `AbstractEmbedding.relaxed`."""
        given = check_probabilities("LetterPairs", space, probabilities)
        left, right = torch.triu_indices(space.length, space.length, 1, device=given.device)
        if self.reach is not None:
            near = right - left <= self.reach
            left, right = left[near], right[near]
        numbers = len(left) * space.letters**2
        ok = 1 <= numbers <= MOST
        check_option("LetterPairs", "reach", self.reach, ok, f"for vectors of 1 to {MOST} numbers", "Shorten it.")
        return (given[:, left].unsqueeze(-1) * given[:, right].unsqueeze(-2)).flatten(1)
