"""What a column of a table of designs is: a sequence, a category or a number."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from sciopt.checks import check_option

__all__ = ["AbstractColumn", "CategoryColumn", "NumberColumn", "SequenceColumn", "shown"]

WIDEST = 1e300  # of a number's range
DIGITS = 4  # proposed numbers are rounded to about this many digits of the column's range


def shown(value: Any, most: int = 60) -> str:
    """A value for messages, cut where it is long.

    Example:
        >>> shown("ACGT"), shown("A" * 500, 10)
        ("'ACGT'", "'AAAAAAAAAA...' (500 letters)")
    """
    if isinstance(value, str) and len(value) > most:
        return f"{value[:most] + '...'!r} ({len(value)} letters)"
    text = repr(value)
    return text if len(text) <= most + 2 or isinstance(value, str) else text[:most] + "..."


class AbstractColumn(ABC):
    """One column of a design. Codes are float64: a letter's or level's index, or the number itself."""

    name: str

    @property
    @abstractmethod
    def width(self) -> int:
        """Codes per design."""

    @property
    @abstractmethod
    def choices(self) -> int:
        """Values that a code can take; 0: a number."""

    @abstractmethod
    def encode(self, values: Sequence[Any]) -> Tensor:
        """Values as codes ``(n, width)``; a ValueError names the row of a value that does not belong."""

    @abstractmethod
    def decode(self, codes: Tensor) -> list[Any]:
        """Codes ``(n, width)`` as values."""

    @abstractmethod
    def describe(self) -> str:
        """One line for people."""


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


@final
@dataclass(frozen=True, kw_only=True)
class NumberColumn(AbstractColumn):
    """A number between two bounds.

    Args:
        name: of the column.
        low: least value that may be proposed.
        high: largest one.
        integer: whole numbers only.
        log: equal ratios count alike, as for concentrations; needs ``low > 0``.

    Raises:
        ValueError: for bounds that are not finite or in order, or not whole for whole numbers.

    Example:
        >>> column = NumberColumn(name="temperature", low=20, high=80)
        >>> column.encode([25, "30.5"]).flatten(), column.describe()
        (tensor([25.0000, 30.5000], dtype=torch.float64), 'temperature: numbers from 20 to 80')
    """

    name: str
    low: float
    high: float
    integer: bool = False
    log: bool = False

    def __post_init__(self) -> None:
        bounds = (self.low, self.high)
        ok = all(math.isfinite(value) for value in bounds) and self.low <= self.high
        check_option("NumberColumn", "low, high", bounds, ok, "finite and in order", "Pass the range to search in.")
        ok = self.high - self.low <= WIDEST
        check_option("NumberColumn", "low, high", bounds, ok, f"at most {WIDEST:g} apart", "Change the unit.")
        if self.integer:
            ok = all(float(value).is_integer() for value in bounds)
            check_option("NumberColumn", "low, high", bounds, ok, "whole with integer=True", "Round them.")
        if self.log:
            check_option("NumberColumn", "low", self.low, self.low > 0, "> 0 with log=True", "Leave out log.")
            ok = self.low >= 1 / WIDEST
            check_option("NumberColumn", "low", self.low, ok, f">= {1 / WIDEST:g} with log=True", "Change the unit.")

    @property
    def width(self) -> int:
        """See `AbstractColumn.width`."""
        return 1

    @property
    def choices(self) -> int:
        """See `AbstractColumn.choices`."""
        return 0

    def encode(self, values: Sequence[Any]) -> Tensor:
        """See `AbstractColumn.encode`; measured numbers may lie outside the bounds."""
        out = []
        for row, value in enumerate(values):
            try:
                number = float(value)
            except (TypeError, ValueError, OverflowError):
                number = math.nan
            if not math.isfinite(number) or (self.log and number <= 0) or (self.integer and not number.is_integer()):
                kind = "a whole number" if self.integer else "a number"
                raise ValueError(
                    f"NumberColumn: expected `{self.name}` as {kind}{' > 0' if self.log else ''}, got {shown(value)} in row "
                    f"{row}. Correct or drop that row, or declare another column."
                )
            out.append(number)
        return torch.tensor(out, dtype=torch.float64, device="cpu").reshape(-1, 1)

    def decode(self, codes: Tensor) -> list[Any]:
        """See `AbstractColumn.decode`."""
        values = codes[:, 0].tolist()
        return [int(value) for value in values] if self.integer else values

    def describe(self) -> str:
        """See `AbstractColumn.describe`."""
        kind = "whole numbers" if self.integer else "numbers"
        scale = ", on a logarithmic scale" if self.log else ""
        return f"{self.name}: {kind} from {self.low:g} to {self.high:g}{scale}"

    def unit(self, values: Tensor) -> Tensor:
        """Values as shares of the range, in [0, 1] inside the bounds."""
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        scaled = values.log() if self.log else values
        return (scaled - low) / ((high - low) or 1.0)

    def value(self, unit: Tensor) -> Tensor:
        """Shares of the range as values, in the bounds; whole where they have to be."""
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        scaled = low + unit.clamp(0, 1) * (high - low)
        values = scaled.exp() if self.log else scaled
        return (values.round() if self.integer else values).clamp(self.low, self.high)

    def rounded(self, values: Tensor) -> Tensor:
        """Values with about four digits of the range (of themselves on a logarithmic scale), in the bounds.

        Example:
            >>> NumberColumn(name="x", low=0, high=1).rounded(torch.tensor([0.123456]))
            tensor([0.1235])
        """
        if self.integer:
            return values.round().clamp(self.low, self.high)
        if self.log:
            power = torch.floor(values.log10()) - DIGITS + 1
        else:
            size = math.floor(math.log10(self.high - self.low)) if self.high > self.low else 0
            power = torch.full_like(values, size - DIGITS)
        # dividing by a power of ten gives the decimal number nearest to it: 0.3, not 0.30000000000000004
        fine, coarse = 10.0**-power, 10.0**power
        out = torch.where(power < 0, (values * fine).round() / fine, (values / coarse).round() * coarse)
        return out.clamp(self.low, self.high)
