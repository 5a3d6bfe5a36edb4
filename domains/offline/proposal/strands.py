"""A symmetry of sequences as a symmetry of designs with a sequence column."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from sciopt.checks import check_option
from sciopt.domains.offline.proposal.columns import SequenceColumn
from sciopt.domains.offline.proposal.design_space import DesignSpace
from sciopt.domains.offline.spaces import CategoricalSpace
from sciopt.domains.offline.symmetry import AbstractSymmetry

__all__ = ["Strands"]


@final
@dataclass(frozen=True, kw_only=True)
class Strands:
    """Designs that are the same thing when their one sequence column is replaced by its image.

    Args:
        space: the columns, one of them a sequence without gap.
        symmetry: of sequences.

    Raises:
        ValueError: for no sequence column, several, or one with a gap.

    Example:
        >>> from sciopt.domains.offline import ReverseComplement
        >>> space = DesignSpace((SequenceColumn(name="seq", length=3, alphabet="ACGT"),))
        >>> strands = Strands(space=space, symmetry=ReverseComplement())
        >>> space.decode(strands.image(space.encode([{"seq": "AAC"}])))
        [{'seq': 'GTT'}]
    """

    space: DesignSpace
    symmetry: AbstractSymmetry

    def __post_init__(self) -> None:
        found = self._sequences()
        ok = len(found) == 1 and found[0][1].gap is None
        got = [column.describe() for _, column in found]
        check_option("Strands", "space", got, ok, "with one sequence column without gaps", "Leave out `symmetry`.")

    def _sequences(self) -> Sequence[tuple[slice, SequenceColumn]]:
        both = zip(self.space.slices, self.space.columns, strict=True)
        return [(part, column) for part, column in both if isinstance(column, SequenceColumn)]

    def image(self, codes: Tensor) -> Tensor:
        """The equivalent designs ``(n, width)``."""
        part, column = self._sequences()[0]
        letters = CategoricalSpace(length=column.length, alphabet=column.alphabet)
        out = codes.clone()
        out[:, part] = self.symmetry.image(letters, codes[:, part].long()).to(codes)
        return out

    def canonical(self, codes: Tensor) -> Tensor:
        """Of both forms the lexicographically first, row by row."""
        other = self.image(codes)
        apart = codes - other
        first = (apart != 0).to(torch.int8).argmax(-1, keepdim=True)
        return torch.where(apart.gather(1, first) > 0, other, codes)
