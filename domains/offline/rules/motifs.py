"""Motifs with spacings: letters at offsets that may stand anywhere in a design."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

__all__ = ["Motif"]


@final
@dataclass(frozen=True, kw_only=True)
class Motif:
    """Letters at fixed distances from each other, found wherever they stand.

    Args:
        letters: indices into the alphabet.
        offsets: of each letter from the first, ascending from 0.

    Raises:
        ValueError: for no letters, or offsets that do not ascend from 0, one for each letter.

    Example:
        >>> motif = Motif(letters=(0, 1), offsets=(0, 2))
        >>> motif.pattern("AB"), motif.matches(torch.tensor([[0, 0, 0, 1], [1, 1, 1, 0]]))
        ('A.B', tensor([2, 1]))
    """

    letters: tuple[int, ...]
    offsets: tuple[int, ...]

    def __post_init__(self) -> None:
        ascending = all(a < b for a, b in zip(self.offsets, self.offsets[1:], strict=False))
        if not self.letters or len(self.letters) != len(self.offsets) or self.offsets[0] != 0 or not ascending:
            raise ValueError(
                f"Motif: expected `offsets` that ascend from 0, one for each of `letters`, got {self.offsets} for "
                f"{self.letters}. Sort the elements, and count from the first."
            )

    def __len__(self) -> int:
        return len(self.letters)

    @property
    def span(self) -> int:
        """Positions from the first letter to the last, both counted."""
        return self.offsets[-1] + 1

    @property
    def elements(self) -> tuple[tuple[int, int], ...]:
        """Pairs of offset and letter."""
        return tuple(zip(self.offsets, self.letters, strict=True))

    def pattern(self, alphabet: str) -> str:
        """The motif as text, a dot where any letter may stand."""
        placed = dict(self.elements)
        return "".join(alphabet[placed[k]] if k in placed else "." for k in range(self.span))

    def found(self, designs: Tensor) -> Tensor:
        """Letters found for each start inside the design ``(n, length - span + 1)``, uint8 for up to 255 letters."""
        starts = designs.shape[1] - self.span + 1
        found = torch.zeros_like(designs[:, :starts], dtype=torch.uint8 if len(self) < 256 else torch.int64)
        for offset, letter in self.elements:
            wanted = torch.full_like(designs[:, :1], letter)  # ten times as fast as comparing with a number
            found += designs[:, offset : offset + starts] == wanted
        return found

    def matches(self, designs: Tensor) -> Tensor:
        """Most letters found at any one start, int64 ``(n,)``."""
        return self.found(designs).amax(-1).long()

    def without(self, element: tuple[int, int]) -> Motif:
        """The motif with one element less."""
        return motif_of([kept for kept in self.elements if kept != element])


def motif_of(elements: list[tuple[int, int]]) -> Motif:
    """A motif of pairs of offset and letter, shifted so that the first offset is 0."""
    ordered = sorted(elements)
    first = ordered[0][0]
    return Motif(letters=tuple(letter for _, letter in ordered), offsets=tuple(place - first for place, _ in ordered))
