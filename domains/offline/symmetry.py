"""Designs that are the same thing: the two strands of DNA."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from sciopt.checks import check_option
from sciopt.domains.offline.spaces import CategoricalSpace

__all__ = ["AbstractSymmetry", "ReverseComplement", "one_of_each"]


class AbstractSymmetry(ABC):
    """A map of designs to designs of the same score, which twice applied is the identity.

    Declare it where science says so: predictions are then averaged over both, and only one of them is proposed, for testing
    the other would tell nothing new.
    """

    @abstractmethod
    def image(self, space: CategoricalSpace, designs: Tensor) -> Tensor:
        """The equivalent designs ``(n, length)``, row by row."""


@final
@dataclass(frozen=True, kw_only=True)
class ReverseComplement(AbstractSymmetry):
    """Double-stranded DNA or RNA: reading the other strand.

    Args:
        pairs: letters that pair, each once.

    Example:
        >>> space = CategoricalSpace(length=4, alphabet="ACGT")
        >>> space.decode(ReverseComplement().image(space, space.encode(["AACG"])))
        ['CGTT']
    """

    pairs: tuple[str, ...] = ("AT", "CG")

    def image(self, space: CategoricalSpace, designs: Tensor) -> Tensor:
        """See `AbstractSymmetry.image`."""
        partner = {a: b for pair in self.pairs for a, b in (pair, pair[::-1])}
        ok = set(partner) == set(space.alphabet)
        check_option(
            "ReverseComplement", "pairs", self.pairs, ok, f"to pair the letters {space.alphabet}", "E.g. AT and CG."
        )
        table = torch.tensor([space.alphabet.index(partner[a]) for a in space.alphabet], device=designs.device)
        return table[space.check(designs).flip(-1)]


def one_of_each(symmetry: AbstractSymmetry, space: CategoricalSpace, designs: Tensor) -> Tensor:
    """Of designs that are images of each other, the lexicographically first; others stay as they are.

    Example:
        >>> space = CategoricalSpace(length=2, alphabet="ACGT")
        >>> kept = one_of_each(ReverseComplement(), space, space.encode(["AC", "GT", "AT", "TT"]))
        >>> space.decode(kept)
        ['AC', 'AT', 'TT']
    """
    here, there = space.number(designs), space.number(symmetry.image(space, designs))
    return designs[(here <= there) | ~torch.isin(there, here)]
