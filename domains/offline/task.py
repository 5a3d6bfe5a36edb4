"""What a task is: a design space, an exact oracle, and what is visible before the search."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

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


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Table:
    """Designs with scores: what a laboratory has.

    Args:
        designs: int64 ``(n, length)``; equal rows are allowed.
        scores: ``(n,)``, float64, the higher the better.

    Raises:
        ValueError: for scores that are not finite, or not one per design.

    Example:
        >>> len(Table(designs=torch.zeros(2, 3, dtype=torch.int64), scores=torch.zeros(2)))
        2
    """

    designs: Tensor
    scores: Tensor

    def __post_init__(self) -> None:
        if self.scores.shape != self.designs.shape[:1] or not bool(torch.isfinite(self.scores).all()):
            bad = int((~torch.isfinite(self.scores)).sum())
            raise ValueError(
                f"Table: expected {len(self.designs)} finite `scores`, one per design, got {tuple(self.scores.shape)} with "
                f"{bad} that are NaN or infinite. Drop those rows."
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
        known, order = self.domain.number(self.table.designs).sort()
        wanted = self.domain.number(designs)
        place = torch.searchsorted(known, wanted).clamp(max=len(known) - 1)
        return torch.where(known[place] == wanted, self.table.scores[order[place]], torch.nan)

    def pool(self) -> Tensor | None:
        """See `AbstractTask.pool`: the measured designs, where not all are."""
        distinct = torch.unique(self.table.designs, dim=0)
        return None if len(distinct) == self.domain.size else distinct
