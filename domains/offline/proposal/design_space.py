"""Designs of several columns as codes: encoding, distances, features, and moves that stay in the space."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, final

import torch
from torch import Tensor

from sciopt.checks import check_option
from sciopt.domains.offline.proposal.columns import AbstractColumn, NumberColumn, SequenceColumn

__all__ = ["DesignSpace"]

ENUMERABLE = 300_000
POSITIONS = 16  # longer sequences have one weight for all of their letters
Row = Mapping[str, Any]


@final
@dataclass(frozen=True)
class DesignSpace:
    """All designs of the given columns; codes are float64 ``(n, width)``, one number per letter, level or number.

    Args:
        columns: at least one, with different names.

    Raises:
        ValueError: for no column, or names that repeat.

    Example:
        >>> from sciopt.domains.offline.proposal import CategoryColumn, NumberColumn
        >>> space = DesignSpace(
        ...     (NumberColumn(name="ph", low=2, high=10), CategoryColumn(name="base", levels=("KOH", "NaOH")))
        ... )
        >>> codes = space.encode([{"ph": 7, "base": "NaOH"}, {"ph": 3, "base": "KOH"}])
        >>> codes, space.decode(codes)[0], space.size
        (tensor([[7., 1.],
                [3., 0.]], dtype=torch.float64), {'ph': 7.0, 'base': 'NaOH'}, None)
        >>> space.distance(codes, codes)
        tensor([[0.0000, 0.7500],
                [0.7500, 0.0000]], dtype=torch.float64)
    """

    columns: tuple[AbstractColumn, ...]

    def __post_init__(self) -> None:
        names = [column.name for column in self.columns]
        ok = len(set(names)) == len(names) >= 1
        check_option(
            "DesignSpace", "columns", names, ok, "with different names, at least one", "Rename or add columns."
        )

    @property
    def names(self) -> list[str]:
        """Names of the columns."""
        return [column.name for column in self.columns]

    @cached_property
    def slices(self) -> list[slice]:
        """Where the codes of each column stand."""
        ends = [0]
        for column in self.columns:
            ends.append(ends[-1] + column.width)
        return [slice(a, b) for a, b in zip(ends[:-1], ends[1:], strict=True)]

    @property
    def width(self) -> int:
        """Codes per design."""
        return self.slices[-1].stop

    @cached_property
    def choices(self) -> Tensor:
        """Values that each code can take, int64 ``(width,)``; 0 for numbers."""
        return torch.tensor([column.choices for column in self.columns for _ in range(column.width)], device="cpu")

    @property
    def size(self) -> int | None:
        """Number of designs; None where a column holds real numbers."""
        total = 1
        for column in self.columns:
            if isinstance(column, NumberColumn):
                if not column.integer and column.high > column.low:
                    return None
                total *= int(column.high - column.low) + 1
            elif isinstance(column, SequenceColumn):
                total *= sum(len(column.alphabet) ** k for k in range(column.least, column.length + 1))
            else:
                total *= column.choices
        return total

    def describe(self) -> list[str]:
        """One line per column, for people."""
        return [column.describe() for column in self.columns]

    def encode(self, rows: Sequence[Row]) -> Tensor:
        """Rows as codes ``(n, width)``.

        Raises:
            ValueError: for a row without one of the columns, or a value that does not belong, naming it.
        """
        for index, row in enumerate(rows):
            missing = [name for name in self.names if name not in row or row[name] is None]
            if missing:
                raise ValueError(
                    f"DesignSpace: expected a value of `{missing[0]}` in each row, got none in row {index}. Complete or drop "
                    "that row."
                )
        return torch.cat([column.encode([row[column.name] for row in rows]) for column in self.columns], -1)

    def decode(self, codes: Tensor) -> list[dict[str, Any]]:
        """Codes ``(n, width)`` as rows."""
        values = [column.decode(codes[:, part]) for column, part in zip(self.columns, self.slices, strict=True)]
        return [dict(zip(self.names, row, strict=True)) for row in zip(*values, strict=True)]

    def units(self, codes: Tensor) -> Tensor:
        """Codes with numbers as shares of their range; letters and levels stay."""
        out = codes.clone()
        for column, part in zip(self.columns, self.slices, strict=True):
            if isinstance(column, NumberColumn):
                out[:, part] = column.unit(codes[:, part])
        return out

    def features(self, codes: Tensor) -> Tensor:
        """Points for kernels ``(n, features)``: every column spans a distance of at most 1 (root of the mean over letters).

        Letters and levels become one-hot over the square root of 2, so that two different ones are 1 apart; letters share
        the weight of their sequence; numbers are shares of their range.
        """
        parts = []
        for column, part in zip(self.columns, self.slices, strict=True):
            if isinstance(column, NumberColumn):
                parts.append(column.unit(codes[:, part]))
            else:
                hot = torch.nn.functional.one_hot(codes[:, part].long(), column.choices).to(codes.dtype)
                parts.append(hot.flatten(1) / math.sqrt(2 * column.width))
        return torch.cat(parts, -1)

    @cached_property
    def feature_owner(self) -> Tensor:
        """Index of the column of each feature, int64 ``(features,)``."""
        counts = torch.tensor([column.width * max(1, column.choices) for column in self.columns], device="cpu")
        return torch.arange(len(self.columns), device="cpu").repeat_interleave(counts)

    @cached_property
    def groups(self) -> list[tuple[int, int]]:
        """Column and position of each group of features that may have a weight of its own.

        Positions of sequences of up to 16 letters count apart; other columns are one group each.
        """
        apart = [(k, c) for k, c in enumerate(self.columns)]
        return [(k, at) for k, c in apart for at in range(c.width if c.width <= POSITIONS else 1)]

    @cached_property
    def feature_group(self) -> Tensor:
        """Index of the group of each feature, int64 ``(features,)``."""
        counts = []
        for k, at in self.groups:
            column = self.columns[k]
            whole = column.width if column.width > POSITIONS and at == 0 else 1
            counts.append(whole * max(1, column.choices))
        return torch.arange(len(counts), device="cpu").repeat_interleave(torch.tensor(counts, device="cpu"))

    def distance(self, left: Tensor, right: Tensor) -> Tensor:
        """Mean difference over the columns, in [0, 1]: ``(n, m)``.

        Of a sequence the share of differing positions, of a category 0 or 1, of a number the share of its range.
        """
        out = left.new_zeros(len(left), len(right))
        one, two = self.units(left), self.units(right)
        for column, part in zip(self.columns, self.slices, strict=True):
            for k in range(part.start, part.stop):
                apart = one[:, k, None] - two[:, k]
                if column.choices:
                    out += (apart != 0).to(out) / (column.width * len(self.columns))
                else:
                    out += apart.abs().clamp(max=1) / len(self.columns)
        return out

    def settled(self, codes: Tensor) -> Tensor:
        """The nearest codes that can be proposed: numbers rounded and in their bounds, gaps at the right end."""
        out = codes.clone()
        for column, part in zip(self.columns, self.slices, strict=True):
            if isinstance(column, NumberColumn):
                out[:, part] = column.rounded(codes[:, part])
            elif isinstance(column, SequenceColumn) and column.gap is not None:
                gap = len(column.alphabet)
                letters = codes[:, part]
                order = (letters == gap).to(torch.int8).sort(dim=-1, stable=True).indices
                letters = letters.gather(1, order)
                early = torch.arange(column.length, device=codes.device) < column.least
                out[:, part] = torch.where(early & (letters == gap), 0.0, letters)
        return out

    def random(self, count: int, generator: torch.Generator) -> Tensor:
        """Uniform designs ``(count, width)``, with repetition; on the generator's device."""
        device = generator.device
        unit = torch.rand(count, self.width, generator=generator, device=device, dtype=torch.float64)
        out = torch.floor(unit * self.choices.to(device))
        for column, part in zip(self.columns, self.slices, strict=True):
            if isinstance(column, NumberColumn):
                whole = column.integer and not column.log
                spread = (column.high - column.low + 1) if whole else 0
                out[:, part] = (
                    (torch.floor(unit[:, part] * spread) + column.low) if whole else column.value(unit[:, part])
                )
        return self.settled(out)

    def everything(self) -> Tensor:
        """All designs ``(size, width)`` in lexicographic order, of a space of at most 300,000.

        Raises:
            ValueError: for a larger or an infinite space.
        """
        size, grid = self.size, 1
        values: list[Tensor] = []
        for column in self.columns:
            if isinstance(column, NumberColumn):
                values.append(torch.arange(column.low, column.high + 1, dtype=torch.float64, device="cpu"))
            else:
                values += [torch.arange(column.choices, dtype=torch.float64, device="cpu")] * column.width
        for value in values:
            grid *= len(value)
        ok = size is not None and grid <= 2 * ENUMERABLE
        check_option(
            "DesignSpace", "size", size, ok, f"at most {ENUMERABLE} to enumerate", "Sample with random() instead."
        )
        return torch.unique(self.settled(torch.cartesian_prod(*values).reshape(-1, self.width)), dim=0)

    @property
    def is_enumerable(self) -> bool:
        """Whether `everything` lists it."""
        size, grid = self.size, 1
        for column in self.columns:
            whole = isinstance(column, NumberColumn)
            grid *= (int(column.high - column.low) + 1) if whole else column.choices**column.width
            if grid > 2 * ENUMERABLE:
                return False
        return size is not None and size <= ENUMERABLE

    def crossed(self, first: Tensor, second: Tensor, generator: torch.Generator) -> Tensor:
        """Children ``(n, width)`` that take a run of neighbouring codes from the second parents, or numbers in between."""
        n, device = len(first), generator.device
        cut = torch.randint(0, self.width + 1, (n, 2), generator=generator, device=device).sort(-1).values
        share = torch.rand(n, self.width, generator=generator, device=device, dtype=torch.float64).to(first.device)
        cut = cut.to(first.device)
        place = torch.arange(self.width, device=first.device)
        middle = (place >= cut[:, :1]) & (place < cut[:, 1:])
        out = torch.where(middle, second, first)
        one, two = self.units(first), self.units(second)
        for column, part in zip(self.columns, self.slices, strict=True):
            if isinstance(column, NumberColumn):
                mixed = column.value(one[:, part] + share[:, part] * (two[:, part] - one[:, part]))
                out[:, part] = torch.where(middle[:, part], mixed, first[:, part])
        return self.settled(out)

    def mutated(self, codes: Tensor, generator: torch.Generator, *, changes: float = 1.0, step: float = 0.1) -> Tensor:
        """The designs with on average ``changes`` codes changed, at least one: another letter or level, a Gaussian step.

        Args:
            codes: ``(n, width)``.
            generator: the source of chance.
            changes: mean number of codes that change, > 0.
            step: standard deviation of a number's step, as a share of its range.
        """
        n, device = len(codes), generator.device
        draw = {"generator": generator, "device": device, "dtype": torch.float64}
        chance = torch.rand(n, self.width, **draw)
        hit = (chance < changes / self.width) | (chance == chance.amin(-1, keepdim=True))
        choices = self.choices.to(device)
        shift = 1 + torch.floor(torch.rand(n, self.width, **draw) * (choices - 1).clamp(min=0))
        jump = torch.randn(n, self.width, **draw) * step
        hit, shift, jump, choices = (part.to(codes.device) for part in (hit, shift, jump, choices))
        out = torch.where(hit & (choices > 0), (codes + shift) % choices.clamp(min=1), codes)
        unit = self.units(codes)
        for column, part in zip(self.columns, self.slices, strict=True):
            if isinstance(column, NumberColumn):
                moved = column.value(unit[:, part] + jump[:, part])
                if column.integer:  # a step that rounds to nothing would waste the child
                    sign = jump[:, part].sign()
                    moved = torch.where(moved == codes[:, part], codes[:, part] + sign, moved)
                    moved = moved.clamp(column.low, column.high)
                out[:, part] = torch.where(hit[:, part], moved, codes[:, part])
        return self.settled(out)
