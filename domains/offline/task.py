"""What a task is: a design space, an exact oracle, and what is visible before the search."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from sciopt.checks import check_option
from sciopt.domains.offline.spaces import CategoricalSpace

__all__ = [
    "AbstractTask",
    "AbstractVisibleRule",
    "AtMostQuantile",
    "SampleBelow",
    "Table",
    "TableTask",
    "WithinMutations",
]

LARGEST_SCORE = 1e100
NUMBERED = 1 << 62  # larger spaces are compared row by row


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Table:
    """Designs with scores: what a laboratory has.

    Args:
        designs: int64 ``(n, length)``; equal rows are allowed. Other integers are converted.
        scores: ``(n,)``, float64, the higher the better. Integers are converted.

    Raises:
        TypeError: for designs that are no integers, or scores that are no real numbers.
        ValueError: for scores that are not finite, out of all range, or not one per design.

    Example:
        >>> len(Table(designs=torch.zeros(2, 3, dtype=torch.int64), scores=torch.zeros(2)))
        2
    """

    designs: Tensor
    scores: Tensor

    def __post_init__(self) -> None:
        for name, values in (("designs", self.designs), ("scores", self.scores)):
            if not isinstance(values, Tensor) or values.is_complex():
                got = str(values.dtype) if isinstance(values, Tensor) else type(values).__name__
                raise TypeError(f"Table: expected `{name}` as a tensor of real numbers, got {got}. Convert them first.")
        if self.designs.ndim != 2 or self.designs.is_floating_point() or self.designs.dtype == torch.bool:
            raise TypeError(
                f"Table: expected `designs` as integers of shape (n, length), got {tuple(self.designs.shape)} "
                f"{self.designs.dtype}. Make them with CategoricalSpace.encode()."
            )
        if self.designs.dtype != torch.int64:
            object.__setattr__(self, "designs", self.designs.long())
        if not self.scores.is_floating_point():
            object.__setattr__(self, "scores", self.scores.double())
        if self.scores.shape != self.designs.shape[:1] or not bool(torch.isfinite(self.scores).all()):
            bad = int((~torch.isfinite(self.scores)).sum())
            raise ValueError(
                f"Table: expected {len(self.designs)} finite `scores`, one per design, got {tuple(self.scores.shape)} with "
                f"{bad} that are NaN or infinite. Drop those rows."
            )
        if len(self.scores) and float(self.scores.abs().max()) > LARGEST_SCORE:
            raise ValueError(
                f"Table: expected `scores` of at most {LARGEST_SCORE:g} in size, got {float(self.scores.abs().max()):g}. "
                "Correct them, or change their unit."
            )

    def __len__(self) -> int:
        return len(self.designs)

    def best(self, count: int) -> Tensor:
        """The ``count`` distinct designs of highest score, best first, ties in the order of the table."""
        order = torch.sort(self.scores, descending=True, stable=True).indices
        seen: dict[tuple[int, ...], None] = {}
        for row in self.designs[order[: 4 * count + 64]].tolist():
            seen.setdefault(tuple(row))
        if len(seen) < count:
            seen = dict.fromkeys(map(tuple, self.designs[order].tolist()))
        rows = list(seen)[:count]
        return torch.tensor(rows, dtype=self.designs.dtype, device=self.designs.device).reshape(
            -1, self.designs.shape[1]
        )


class AbstractVisibleRule(ABC):
    """Which rows of a full table are known before the search."""

    @abstractmethod
    def rows(self, space: CategoricalSpace, table: Table) -> Tensor:
        """Indices of the visible rows, int64 ``(m,)``."""


@final
@dataclass(frozen=True, kw_only=True)
class AtMostQuantile(AbstractVisibleRule):
    """Rows whose score is at or below a quantile of the table: the published protocol of TF-Bind-8 with 0.5.

    Args:
        quantile: in (0, 1).

    Example:
        >>> table = Table(designs=torch.tensor([[0], [1], [1]]), scores=torch.tensor([0.0, 2.0, 1.0]))
        >>> AtMostQuantile(quantile=0.5).rows(CategoricalSpace(length=1, alphabet="ab"), table)
        tensor([0, 2])
    """

    quantile: float

    def __post_init__(self) -> None:
        check_option("AtMostQuantile", "quantile", self.quantile, 0 < self.quantile < 1, "in (0, 1)", "E.g. 0.5.")

    def rows(self, space: CategoricalSpace, table: Table) -> Tensor:
        """See `AbstractVisibleRule.rows`."""
        return torch.nonzero(table.scores <= torch.quantile(table.scores, self.quantile)).squeeze(-1)


@final
@dataclass(frozen=True, kw_only=True)
class SampleBelow(AbstractVisibleRule):
    """A random sample of the rows at or below a quantile: a small screen that has missed the best.

    Args:
        quantile: in (0, 1).
        count: rows.
        seed: of the sample.

    Example:
        >>> table = Table(designs=torch.arange(8).unsqueeze(1), scores=torch.arange(8.0))
        >>> len(SampleBelow(quantile=0.5, count=3, seed=0).rows(CategoricalSpace(length=1, alphabet="abcdefgh"), table))
        3
    """

    quantile: float
    count: int
    seed: int

    def __post_init__(self) -> None:
        check_option("SampleBelow", "quantile", self.quantile, 0 < self.quantile < 1, "in (0, 1)", "E.g. 0.5.")
        check_option("SampleBelow", "count", self.count, self.count >= 1, ">= 1", "Pass the number of rows.")

    def rows(self, space: CategoricalSpace, table: Table) -> Tensor:
        """See `AbstractVisibleRule.rows`."""
        low = AtMostQuantile(quantile=self.quantile).rows(space, table)
        order = torch.randperm(len(low), generator=torch.Generator().manual_seed(self.seed))
        return low[order[: self.count]].sort().values


@final
@dataclass(frozen=True, kw_only=True)
class WithinMutations(AbstractVisibleRule):
    """Rows within some mutations of one design: a library around the wild type.

    Args:
        reference: the design, as a sequence.
        mutations: largest Hamming distance.

    Example:
        >>> table = Table(designs=torch.tensor([[0, 0], [0, 1], [1, 1]]), scores=torch.zeros(3))
        >>> WithinMutations(reference="aa", mutations=1).rows(CategoricalSpace(length=2, alphabet="ab"), table)
        tensor([0, 1])
    """

    reference: str
    mutations: int

    def __post_init__(self) -> None:
        check_option("WithinMutations", "mutations", self.mutations, self.mutations >= 0, ">= 0", "E.g. 2.")

    def rows(self, space: CategoricalSpace, table: Table) -> Tensor:
        """See `AbstractVisibleRule.rows`."""
        distance = (table.designs != space.encode([self.reference]).to(table.designs.device)).sum(-1)
        return torch.nonzero(distance <= self.mutations).squeeze(-1)


class AbstractTask(ABC):
    """A design problem whose answer can be checked exactly. Subclass it, with these five, for a task of your own."""

    @property
    @abstractmethod
    def space(self) -> CategoricalSpace:
        """The designs."""

    @property
    @abstractmethod
    def bounds(self) -> tuple[float, float]:
        """The scores that are normalised to 0 and to 1."""

    @abstractmethod
    def visible(self) -> Table:
        """What is known before the search."""

    @abstractmethod
    def score(self, designs: Tensor) -> Tensor:
        """Oracle: scores ``(n,)``, float64, of designs ``(n, length)``; NaN where unknown, -inf where infeasible."""

    @abstractmethod
    def pool(self) -> Tensor | None:
        """The designs that may be proposed ``(m, length)``; None: the whole space."""


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class TableTask(AbstractTask):
    """A task whose oracle is a full table of measurements.

    Args:
        domain: the design space.
        table: all measurements; the scores of equal designs must be equal.
        rule: what is visible.
        floor: score that is normalised to 0; None: the lowest of the table.

    Example:
        >>> space = CategoricalSpace(length=1, alphabet="abc")
        >>> table = Table(designs=space.everything(), scores=torch.tensor([0.0, 1.0, 2.0]))
        >>> task = TableTask(domain=space, table=table, rule=AtMostQuantile(quantile=0.5))
        >>> task.visible().designs.flatten(), task.score(torch.tensor([[2]]))
        (tensor([0, 1]), tensor([2.]))
    """

    domain: CategoricalSpace
    table: Table
    rule: AbstractVisibleRule
    floor: float | None = None

    def __post_init__(self) -> None:
        self.domain.check(self.table.designs)
        check_option("TableTask", "table", len(self.table), len(self.table) >= 1, "with at least one row", "Pass data.")
        distinct, rows = torch.unique(self.table.designs, dim=0, return_inverse=True)
        scores = self.table.scores
        first = torch.full((len(distinct),), -torch.inf, dtype=scores.dtype, device=scores.device)
        highest = first.scatter_reduce(0, rows, scores, "amax")
        odd = torch.nonzero(scores != highest[rows])
        if len(odd):
            design = self.domain.decode(self.table.designs[odd[0]])[0]
            raise ValueError(
                f"TableTask: expected `table` with one score for each design, got {float(scores[int(odd[0])]):g} and "
                f"{float(highest[rows[int(odd[0])]]):g} for {design!r}. Average them first."
            )

    @property
    def space(self) -> CategoricalSpace:
        """See `AbstractTask.space`."""
        return self.domain

    @property
    def bounds(self) -> tuple[float, float]:
        """See `AbstractTask.bounds`."""
        low = float(self.table.scores.min()) if self.floor is None else self.floor
        return low, float(self.table.scores.max())

    def visible(self) -> Table:
        """See `AbstractTask.visible`."""
        rows = self.rule.rows(self.domain, self.table)
        if not len(rows):
            raise ValueError(f"TableTask: expected `rule` to leave visible rows, got none by {self.rule}. Loosen it.")
        return Table(designs=self.table.designs[rows], scores=self.table.scores[rows])

    def score(self, designs: Tensor) -> Tensor:
        """See `AbstractTask.score`."""
        have, wanted = self.table.designs, self.domain.check(designs).to(self.table.designs)
        if self.domain.size > NUMBERED:
            both = torch.unique(torch.cat([have, wanted]), dim=0, return_inverse=True)[1]
            numbers, wanted = both[: len(have)], both[len(have) :]
        else:
            numbers, wanted = self.domain.number(have), self.domain.number(wanted)
        known, order = numbers.sort()
        place = torch.searchsorted(known, wanted).clamp(max=len(known) - 1)
        return torch.where(known[place] == wanted, self.table.scores[order[place]], torch.nan)

    def pool(self) -> Tensor | None:
        """See `AbstractTask.pool`: the measured designs, where not all are."""
        distinct = torch.unique(self.table.designs, dim=0)
        return None if len(distinct) == self.domain.size else distinct
