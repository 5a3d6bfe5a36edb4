"""A column of numbers: bounds, whole numbers, logarithmic scales, and how finely they are proposed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from sciopt.checks import check_option
from sciopt.domains.offline.proposal.abstract_column import AbstractColumn, shown

__all__ = ["NumberColumn"]

WIDEST = 1e300  # of a number's range
DIGITS = 4  # proposed numbers are rounded to about this many digits of the column's range


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
        check_option(
            "NumberColumn", f"low, high` of `{self.name}", bounds, ok, f"at most {WIDEST:g} apart", "Change the unit."
        )
        if self.integer:
            ok = all(float(value).is_integer() for value in bounds)
            check_option("NumberColumn", "low, high", bounds, ok, "whole with integer=True", "Round them.")
        if self.log:
            check_option("NumberColumn", "low", self.low, self.low > 0, "> 0 with log=True", "Leave out log.")
            ok = self.low >= 1 / WIDEST
            check_option(
                "NumberColumn",
                f"low` of `{self.name}",
                self.low,
                ok,
                f">= {1 / WIDEST:g} with log=True",
                "Change the unit.",
            )

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
