"""Embeddings made of embeddings: side by side, and standardised by a table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from sciopt.checks import check_option
from sciopt.domains.offline.embeddings.abstract import AbstractEmbedding
from sciopt.domains.offline.spaces import CategoricalSpace

__all__ = ["SideBySide", "StandardisedEmbedding", "fit_standardised"]


@final
@dataclass(frozen=True, kw_only=True)
class SideBySide(AbstractEmbedding):
    """The vectors of several embeddings, one after another.

    Args:
        parts: at least one.

    Example:
        >>> from sciopt.domains.offline import KMer, OneHot
        >>> space = CategoricalSpace(length=3, alphabet="AB")
        >>> SideBySide(parts=(OneHot(), KMer(k=2)))(space, ["AAB"])
        tensor([[1., 0., 1., 0., 0., 1., 1., 1., 0., 0.]], dtype=torch.float64)
    """

    parts: tuple[AbstractEmbedding, ...]

    def __post_init__(self) -> None:
        check_option("SideBySide", "parts", self.parts, len(self.parts) >= 1, "with an embedding", "E.g. (OneHot(),).")

    @property
    def differentiable(self) -> bool:
        """See `AbstractEmbedding.differentiable`."""
        return all(part.differentiable for part in self.parts)

    def embed(self, space: CategoricalSpace, designs: Tensor) -> Tensor:
        """See `AbstractEmbedding.embed`."""
        return torch.cat([part(space, designs) for part in self.parts], -1)

    def relaxed(self, space: CategoricalSpace, probabilities: Tensor) -> Tensor:
        """See `AbstractEmbedding.relaxed`."""
        return torch.cat([part.relaxed(space, probabilities) for part in self.parts], -1)


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class StandardisedEmbedding(AbstractEmbedding):
    """``(base - mean) / scale``. Made by `fit_standardised`.

    Args:
        base: the embedding.
        mean: of its vectors over a table ``(d,)``.
        scale: their standard deviation, 1 where it vanishes ``(d,)``.

    Example:
        >>> from sciopt.domains.offline import OneHot
        >>> made = StandardisedEmbedding(base=OneHot(), mean=torch.zeros(2), scale=torch.full((2,), 2.0))
        >>> made(CategoricalSpace(length=1, alphabet="AB"), ["B"])
        tensor([[0.0000, 0.5000]], dtype=torch.float64)
    """

    base: AbstractEmbedding
    mean: Tensor
    scale: Tensor

    @property
    def differentiable(self) -> bool:
        """See `AbstractEmbedding.differentiable`."""
        return self.base.differentiable

    def embed(self, space: CategoricalSpace, designs: Tensor) -> Tensor:
        """See `AbstractEmbedding.embed`."""
        vectors = self.base(space, designs)
        return (vectors - self.mean.to(vectors)) / self.scale.to(vectors)

    def relaxed(self, space: CategoricalSpace, probabilities: Tensor) -> Tensor:
        """See `AbstractEmbedding.relaxed`."""
        vectors = self.base.relaxed(space, probabilities)
        return (vectors - self.mean.to(vectors)) / self.scale.to(vectors)


def fit_standardised(embedding: AbstractEmbedding, space: CategoricalSpace, designs: Tensor) -> StandardisedEmbedding:
    """The embedding with mean 0 and standard deviation 1 over the given designs, number by number.

    Args:
        embedding: what is standardised.
        space: the designs.
        designs: the visible ones ``(n, length)``.

    Returns:
        `StandardisedEmbedding`; numbers that never vary over the designs stay unscaled.

    Raises:
        ValueError: without designs.

    Example:
        >>> from sciopt.domains.offline import OneHot
        >>> space = CategoricalSpace(length=1, alphabet="AB")
        >>> fit_standardised(OneHot(), space, space.everything())(space, ["A"])
        tensor([[ 1., -1.]], dtype=torch.float64)
    """
    check_option("fit_standardised", "designs", len(designs), len(designs) >= 1, "with at least one", "Pass a table.")
    vectors = embedding(space, designs)
    scale = vectors.std(0, correction=0)
    scale = torch.where(scale > 1e-12 * vectors.abs().amax().clamp(min=1.0), scale, 1.0)
    return StandardisedEmbedding(base=embedding, mean=vectors.mean(0), scale=scale)
