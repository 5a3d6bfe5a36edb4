"""The letters of a table, packed so that passes over it are cheap."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import final

import torch
from torch import Tensor

from sciopt.domains.offline.spaces import CategoricalSpace

__all__ = ["Sites"]


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Sites:
    """Designs, position by position, in one byte per letter where that is enough.

    Args:
        columns: letters ``(length, n)`` of the smallest integer type that holds them, contiguous.
        letters: in the alphabet.

    Example:
        >>> Sites.of(CategoricalSpace(length=2, alphabet="ab"), torch.tensor([[0, 1], [1, 1], [1, 0]])).columns
        tensor([[0, 1, 1],
                [1, 1, 0]], dtype=torch.uint8)
    """

    columns: Tensor
    letters: int

    @classmethod
    def of(cls, space: CategoricalSpace, designs: Tensor) -> Sites:
        """The sites of designs ``(n, length)``."""
        return cls(columns=designs.mT.to(small(space.letters)).contiguous(), letters=space.letters)

    def __len__(self) -> int:
        return self.columns.shape[1]

    @property
    def length(self) -> int:
        """Positions of a design."""
        return len(self.columns)

    @property
    def designs(self) -> Tensor:
        """The designs ``(n, length)`` as a view, for `Motif.matches`."""
        return self.columns.mT

    @cached_property
    def cells(self) -> Tensor:
        """Place of each letter in a flat table of one row per design and one column per letter, ``(length, n)``."""
        first = torch.arange(len(self), device=self.columns.device) * self.letters
        return self.columns + first

    def renamed(self, names: Tensor) -> Sites:
        """Letters renamed at each position, by ``names`` ``(length, letters)``."""
        places = torch.arange(self.length, device=self.columns.device).unsqueeze(-1)
        return Sites(columns=names.to(self.columns.dtype)[places, self.columns.long()], letters=self.letters)


def small(values: int) -> torch.dtype:
    """The smallest integer type that holds as many values, from 0.

    Example:
        >>> small(256), small(257)
        (torch.uint8, torch.int16)
    """
    return torch.uint8 if values <= 1 << 8 else torch.int16 if values <= 1 << 15 else torch.int64
