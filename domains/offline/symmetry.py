"""Designs that are the same thing: the two strands of DNA."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from sciopt.checks import check_option
from sciopt.domains.offline.search import check_request, without
from sciopt.domains.offline.spaces import CategoricalSpace
from sciopt.domains.offline.task import Table

__all__ = ["AbstractSymmetry", "ReverseComplement", "averaged", "one_of_each", "unseen"]


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


def unseen(
    owner: str,
    space: CategoricalSpace,
    table: Table,
    count: int,
    *,
    pool: Tensor | None,
    symmetry: AbstractSymmetry | None,
) -> Tensor:
    """Every allowed design that the table does not know, neither itself nor its image, one of each.

    Args:
        owner: who asks, for error messages.
        space: the designs, of which there are at most four million, or a pool.
        table: what is known.
        count: designs wanted.
        pool: what is allowed; None: the whole space.
        symmetry: designs of equal score; None: there are none.

    Returns:
        Designs ``(n, length)``, at least ``count``.

    Raises:
        ValueError: for a bad request, or fewer designs than ``count``.

    Example:
        >>> space = CategoricalSpace(length=2, alphabet="AT")
        >>> table = Table(designs=space.encode(["AA", "AT"]), scores=torch.tensor([0.0, 1.0]))
        >>> space.decode(unseen("mine", space, table, 1, pool=None, symmetry=ReverseComplement(pairs=("AT",))))
        ['TA']
    """
    check_request(owner, table, count, pool, space=space)
    designs = without(space.everything() if pool is None else pool, table.designs)
    if symmetry is not None:
        designs = without(designs, symmetry.image(space, table.designs))
        designs = one_of_each(symmetry, space, designs)
    if len(designs) < count:
        raise ValueError(
            f"{owner}: expected at least `count` = {count} allowed designs outside the table, got {len(designs)}. "
            "Propose fewer."
        )
    return designs


def averaged(
    predict: Callable[[Tensor], Tensor], space: CategoricalSpace, designs: Tensor, symmetry: AbstractSymmetry | None
) -> Tensor:
    """Predictions ``(n,)`` of designs ``(n, length)``, as means over each design and its image.

    Example:
        >>> space = CategoricalSpace(length=2, alphabet="ACGT")
        >>> averaged(lambda designs: designs[:, 0].double(), space, space.encode(["AC"]), ReverseComplement())
        tensor([1.], dtype=torch.float64)
    """
    values = predict(designs)
    return values if symmetry is None else 0.5 * (values + predict(symmetry.image(space, designs)))
