"""What a column of a table of designs is: a sequence, a category or a number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from sciopt.checks import check_option
from sciopt.domains.offline.proposal.abstract_column import AbstractColumn, shown
from sciopt.domains.offline.proposal.number_column import NumberColumn

__all__ = ["AbstractColumn", "CategoryColumn", "NumberColumn", "SequenceColumn", "shown"]


@final
@dataclass(frozen=True, kw_only=True)
class SequenceColumn(AbstractColumn):
    """Sequences of letters, of one length, or padded with gaps at their right end.

    Args:
        name: of the column.
        length: letters; the largest number of them if there is a gap.
        alphabet: the letters, each once, at least two.
        gap: a letter outside the alphabet that fills short sequences up to ``length``; it is never written: decoded
            sequences are as long as they are. None: all sequences have the same length.
        shortest: least number of letters with a gap; None: one.

    Raises:
        ValueError: for options that do not fit together.

    Example:
        >>> column = SequenceColumn(name="seq", length=4, alphabet="ACGT", gap="-")
        >>> column.encode(["ACGT", "AC"])
        tensor([[0., 1., 2., 3.],
                [0., 1., 4., 4.]], dtype=torch.float64)
        >>> column.decode(column.encode(["AC"])), column.describe()
        (['AC'], 'seq: sequences of 1 to 4 letters of ACGT, padded at the right end')
    """

    name: str
    length: int
    alphabet: str
    gap: str | None = None
    shortest: int | None = None

    def __post_init__(self) -> None:
        owner = "SequenceColumn"
        check_option(owner, "length", self.length, self.length >= 1, ">= 1", "Pass the number of letters.")
        ok = len(set(self.alphabet)) == len(self.alphabet) >= 2
        check_option(owner, "alphabet", self.alphabet, ok, "with two or more different letters", "E.g. ACGT.")
        ok = self.gap is None or (len(self.gap) == 1 and self.gap not in self.alphabet)
        check_option(owner, "gap", self.gap, ok, "to be one letter outside the alphabet", "E.g. '-'.")
        ok = self.shortest is None or (self.gap is not None and 1 <= self.shortest <= self.length)
        check_option(owner, "shortest", self.shortest, ok, f"in [1, {self.length}], with a gap", "Leave it out.")

    @property
    def width(self) -> int:
        """See `AbstractColumn.width`."""
        return self.length

    @property
    def choices(self) -> int:
        """See `AbstractColumn.choices`."""
        return len(self.alphabet) + (self.gap is not None)

    @property
    def least(self) -> int:
        """Fewest letters."""
        return self.length if self.gap is None else self.shortest or 1

    def encode(self, values: Sequence[Any]) -> Tensor:
        """See `AbstractColumn.encode`."""
        fill = self.gap or "\0"
        for row, value in enumerate(values):
            if not isinstance(value, str) or not self.least <= len(value) <= self.length or value.endswith(fill):
                length = str(self.length) if self.gap is None else f"{self.least} to {self.length}"
                raise ValueError(
                    f"SequenceColumn: expected `{self.name}` with {length} letters of {self.alphabet}, got "
                    f"{shown(value)} in row {row}. Correct or drop it, or declare the column yourself."
                )
        # utf-32 makes one integer of each letter: the whole table is translated at once
        text = "".join(value.ljust(self.length, fill) for value in values).encode("utf-32-le")
        raw = bytearray(text) if text else bytearray(4)
        letters = torch.frombuffer(raw, dtype=torch.int32)[: len(values) * self.length]
        known = torch.tensor(
            [ord(letter) for letter in self.alphabet + (self.gap or "")], dtype=torch.int32, device="cpu"
        )
        ordered, place = known.sort()
        where = torch.searchsorted(ordered, letters).clamp(max=len(known) - 1)
        wrong = torch.nonzero(ordered[where] != letters)
        if len(wrong):
            at = int(wrong[0])
            row, position = divmod(at, self.length)
            raise ValueError(
                f"SequenceColumn: expected `{self.name}` in letters of {self.alphabet}, got {values[row][position]!r} at "
                f"position {position} of {shown(values[row])} in row {row}. Correct or drop that row, or declare "
                "another alphabet."
            )
        return place[where].reshape(len(values), self.length).to(torch.float64)

    def decode(self, codes: Tensor) -> list[Any]:
        """See `AbstractColumn.decode`."""
        letters = self.alphabet + (self.gap or "")
        made = ["".join(letters[int(k)] for k in row) for row in codes.long().tolist()]
        return made if self.gap is None else [text.replace(self.gap, "") for text in made]

    def describe(self) -> str:
        """See `AbstractColumn.describe`."""
        if self.gap is None:
            return f"{self.name}: sequences of {self.length} letters of {self.alphabet}"
        return f"{self.name}: sequences of {self.least} to {self.length} letters of {self.alphabet}, padded at the right end"


@final
@dataclass(frozen=True, kw_only=True)
class CategoryColumn(AbstractColumn):
    """One of a few levels without order.

    Args:
        name: of the column.
        levels: the levels, each once, strings or other plain values.

    Raises:
        ValueError: for no level, or a repeated one.

    Example:
        >>> column = CategoryColumn(name="solvent", levels=("water", "THF"))
        >>> column.encode(["THF"]), column.describe()
        (tensor([[1.]], dtype=torch.float64), "solvent: one of 'water', 'THF'")
    """

    name: str
    levels: tuple[Any, ...]

    def __post_init__(self) -> None:
        ok = len(set(self.levels)) == len(self.levels) >= 1
        check_option(
            "CategoryColumn", "levels", self.levels, ok, "as different values, at least one", "List each once."
        )

    @property
    def width(self) -> int:
        """See `AbstractColumn.width`."""
        return 1

    @property
    def choices(self) -> int:
        """See `AbstractColumn.choices`."""
        return len(self.levels)

    def encode(self, values: Sequence[Any]) -> Tensor:
        """See `AbstractColumn.encode`."""
        places = {level: k for k, level in enumerate(self.levels)}
        for row, value in enumerate(values):
            if value not in places:
                raise ValueError(
                    f"CategoryColumn: expected `{self.name}` as one of {self._listed()}, got {shown(value)} in "
                    f"row {row}. Correct or drop that row, or declare the column with this level."
                )
        return torch.tensor([places[value] for value in values], dtype=torch.float64, device="cpu").reshape(-1, 1)

    def decode(self, codes: Tensor) -> list[Any]:
        """See `AbstractColumn.decode`."""
        return [self.levels[int(k)] for k in codes[:, 0].long().tolist()]

    def describe(self) -> str:
        """See `AbstractColumn.describe`."""
        many = f"{len(self.levels)}: " if len(self.levels) > 8 else ""
        return f"{self.name}: one of {many}{self._listed()}"

    def _listed(self) -> str:
        return ", ".join(shown(level, 30) for level in self.levels[:8]) + (", ..." if len(self.levels) > 8 else "")
