"""Which two letters stand at each distance, anywhere: linear models on them know motifs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from sciopt.checks import check_option
from sciopt.domains.offline.embeddings.abstract import AbstractEmbedding, check_probabilities
from sciopt.domains.offline.spaces import CategoricalSpace

__all__ = ["SpacedPairs"]

MOST = 1 << 18  # numbers of one vector


@final
@dataclass(frozen=True, kw_only=True)
class SpacedPairs(AbstractEmbedding):
    """Whether letter a stands anywhere with letter b at a given distance after it, ``letters^2`` numbers per distance.

    For DNA, peptides and other sequences whose motifs, gaps included, may stand anywhere: what one position teaches holds
    at all others. Unlike the counts of `KMer` a number stays 1 when the pair comes again, so that a design is best that
    holds many good pairs, not one of them many times. Relaxed, it is ``1 - prod_i (1 - p_i(a) p_(i + s)(b))``, linear in
    each letter's probability where a differs from b: the gradient at a design tells which letters are missed, and which are
    needed only once. Costs ``n * length * reach * letters^2`` products.

    Args:
        reach: largest distance between the two letters; None: all, ``length - 1``.

    Raises:
        ValueError: for options out of range, sequences of one letter, or vectors of more than 262,144 numbers.

    Example:
        >>> space = CategoricalSpace(length=3, alphabet="AB")
        >>> SpacedPairs()(space, ["AAB"])  # AA, AB, BA, BB, then A.A, A.B, B.A, B.B
        tensor([[1., 1., 0., 0., 0., 1., 0., 0.]], dtype=torch.float64)

    References:
        Leslie, Kuang. "Fast string kernels using inexact matching for protein sequences". JMLR 5, 2004 (gappy kernels).
    """

    reach: int | None = None

    def __post_init__(self) -> None:
        ok = self.reach is None or self.reach >= 1
        check_option("SpacedPairs", "reach", self.reach, ok, ">= 1 or None", "1 takes neighbours.")

    @property
    def differentiable(self) -> bool:
        """See `AbstractEmbedding.differentiable`."""
        return True

    def embed(self, space: CategoricalSpace, designs: Tensor) -> Tensor:
        """See `AbstractEmbedding.embed`."""
        distances, square = self._distances(space), space.letters**2
        present = torch.zeros(len(designs), len(distances) * square, dtype=torch.float64, device=designs.device)
        for row, distance in enumerate(distances):
            pairs = designs[:, :-distance] * space.letters + designs[:, distance:] + row * square
            present.scatter_(1, pairs, 1.0)
        return present

    def relaxed(self, space: CategoricalSpace, probabilities: Tensor) -> Tensor:
        """See `AbstractEmbedding.relaxed`."""
        given = check_probabilities("SpacedPairs", space, probabilities)
        one = given.new_ones(())
        blocks = []
        for distance in self._distances(space):
            absent = one
            for place in range(space.length - distance):  # as a product by turns: `prod` is slow where factors are 0
                first, second = given[:, place].unsqueeze(-1), given[:, place + distance].unsqueeze(-2)
                absent = absent * torch.addcmul(one, first, second, value=-1)
            blocks.append(absent.flatten(1))
        return 1 - torch.cat(blocks, -1)

    def _distances(self, space: CategoricalSpace) -> range:
        """The distances, if the space has them and vectors are not too long."""
        most = min(space.length - 1, self.reach or space.length)
        ok = 1 <= most * space.letters**2 <= MOST
        check_option("SpacedPairs", "reach", self.reach, ok, f"for vectors of 1 to {MOST} numbers", "Shorten it.")
        return range(1, most + 1)
