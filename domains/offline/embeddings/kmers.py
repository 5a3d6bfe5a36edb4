"""Counts of words of k letters, wherever they stand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from sciopt.checks import check_option
from sciopt.domains.offline.embeddings.abstract import AbstractEmbedding, check_probabilities
from sciopt.domains.offline.spaces import CategoricalSpace

__all__ = ["KMer"]

MOST = 1 << 20  # numbers of one vector


@final
@dataclass(frozen=True, kw_only=True)
class KMer(AbstractEmbedding):
    """How often each word of ``k`` letters occurs, at any place: motifs that may stand anywhere.

    ``letters^k`` numbers per spacing. Relaxed, a count becomes its expectation when positions are independent, which is
    multilinear in the probabilities.

    Args:
        k: letters of a word, >= 1.
        gaps: free positions between neighbouring letters of a word, one block of counts each: (0,) counts contiguous words,
            (0, 1) also words with every second letter.

    Raises:
        ValueError: for options out of range, and for sequences shorter than a word.

    Example:
        >>> space = CategoricalSpace(length=3, alphabet="AB")
        >>> KMer(k=2)(space, ["AAB"])  # AA, AB, BA, BB
        tensor([[1., 1., 0., 0.]], dtype=torch.float64)
        >>> KMer(k=2, gaps=(1,))(space, ["AAB"])
        tensor([[0., 1., 0., 0.]], dtype=torch.float64)

    References:
        Leslie, Eskin, Noble. "The spectrum kernel". PSB 2002. Ghandi et al. "Enhanced regulatory sequence prediction using
        gapped k-mer features". PLoS Comput. Biol. 10, 2014.
    """

    k: int = 3
    gaps: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        check_option("KMer", "k", self.k, self.k >= 1, ">= 1", "3 is common.")
        ok = len(self.gaps) > 0 and min(self.gaps) >= 0 and len(set(self.gaps)) == len(self.gaps)
        check_option("KMer", "gaps", self.gaps, ok, "as different numbers >= 0", "(0,) counts contiguous words.")

    @property
    def differentiable(self) -> bool:
        """See `AbstractEmbedding.differentiable`."""
        return True

    def embed(self, space: CategoricalSpace, designs: Tensor) -> Tensor:
        """See `AbstractEmbedding.embed`."""
        words = self._words(space)
        powers = torch.tensor([space.letters**j for j in range(self.k - 1, -1, -1)], device=designs.device)
        counts = []
        for gap in self.gaps:
            numbers = designs.long().unfold(1, self._span(gap), 1)[..., :: gap + 1] @ powers
            zeros = torch.zeros(len(designs), words, dtype=torch.float64, device=designs.device)
            counts.append(zeros.scatter_add(1, numbers, torch.ones_like(numbers, dtype=torch.float64)))
        return torch.cat(counts, -1)

    def relaxed(self, space: CategoricalSpace, probabilities: Tensor) -> Tensor:
        """See `AbstractEmbedding.relaxed`."""
        self._words(space)
        given = check_probabilities("KMer", space, probabilities)
        counts = []
        for gap in self.gaps:
            places = space.length - self._span(gap) + 1
            parts = [given[:, j * (gap + 1) : j * (gap + 1) + places] for j in range(self.k)]
            head = torch.ones_like(parts[0][..., :1])
            for part in parts[:-1]:
                head = (head.unsqueeze(-1) * part.unsqueeze(-2)).flatten(-2)  # (n, places, letters^j)
            counts.append((head.mT @ parts[-1]).flatten(1))
        return torch.cat(counts, -1)

    def _span(self, gap: int) -> int:
        return (self.k - 1) * (gap + 1) + 1

    def _words(self, space: CategoricalSpace) -> int:
        """Numbers of one block, if the space has words of this kind."""
        span = self._span(max(self.gaps))
        check_option(
            "KMer", "k", self.k, span <= space.length, f"and `gaps` that span at most {space.length}", "Shorten words."
        )
        words = space.letters**self.k
        ok = words * len(self.gaps) <= MOST
        check_option("KMer", "k", self.k, ok, f"with letters^k * gaps of at most {MOST}", "Use shorter words.")
        return words
