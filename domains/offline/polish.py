"""The last steps of a search, on the real design space: single mutations, as long as a model sees them improve."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from sciopt.checks import check_option
from sciopt.domains.offline.search import without
from sciopt.domains.offline.spaces import CategoricalSpace
from sciopt.domains.offline.task import Table

__all__ = ["Polish", "single_mutants"]


@final
@dataclass(frozen=True, kw_only=True)
class Polish:
    """Local search from given designs: the batch and all its single mutants, the best kept, until none is better.

    A search by gradients ends on letters that are likely, several designs often on the same ones; this makes them a batch
    of different, allowed designs that are not visible. Every design of the batch is expanded once; costs
    ``length * (letters - 1)`` predictions for each.

    Args:
        rounds: largest number.
        mutants: largest number per round, a random sample of all that there are.
        allowed: ``designs (n, length) -> bool (n,)``, known constraints; None: everything.

    Raises:
        ValueError: for options out of range.

    Example:
        >>> space = CategoricalSpace(length=4, alphabet="ab")
        >>> table = Table(designs=torch.zeros(1, 4, dtype=torch.int64), scores=torch.zeros(1))
        >>> ones = lambda designs: designs.sum(-1).double()
        >>> generator = torch.Generator().manual_seed(0)
        >>> Polish().improve(ones, space, table, table.designs, 2, generator=generator)
        (tensor([[1, 1, 1, 1],
                [0, 1, 1, 1]]), tensor([4., 3.], dtype=torch.float64))
    """

    rounds: int = 30
    mutants: int = 50_000
    allowed: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        check_option("Polish", "rounds", self.rounds, self.rounds >= 1, ">= 1", "30 is ample.")
        check_option("Polish", "mutants", self.mutants, self.mutants >= 1, ">= 1", "Leave the default.")

    def improve(
        self,
        predict: Callable[[Tensor], Tensor],
        space: CategoricalSpace,
        table: Table,
        start: Tensor,
        count: int,
        *,
        generator: torch.Generator,
        pool: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The best distinct, allowed designs outside the table that the local search meets.

        Args:
            predict: designs ``(n, length)`` to predictions ``(n,)``, the higher the better.
            space: the designs.
            table: visible rows, which are no result.
            start: designs ``(n, length)`` to start from, of which some may be visible or equal.
            count: designs wanted.
            generator: the one source of chance, used where there are more than ``mutants``.
            pool: allowed designs; None: the whole space. Where the search meets too few, the rest of the pool is ranked.

        Returns:
            Designs ``(count, length)`` and their predictions ``(count,)``, best first.

        Raises:
            ValueError: for constraints that leave too few designs.
        """
        met, values = start.new_empty(0, space.length), torch.empty(0, dtype=torch.float64, device=start.device)
        known, expanded = table.designs, start.new_empty(0, space.length)
        fresh = start
        for _ in range(self.rounds):
            fresh = self._open(without(fresh, torch.cat([known, met])), pool)
            if len(fresh):
                met, values = torch.cat([met, fresh]), torch.cat([values, predict(fresh).to(values)])
                order = values.argsort(descending=True, stable=True)[:count]
                met, values = met[order], values[order]
            # visible designs are allowed, which those that a search ends on may not be
            more = torch.cat([start, met, table.best(count)])
            parents = without(met if len(met) >= count else more, expanded)
            if not len(parents):
                break
            expanded = torch.cat([expanded, parents])
            fresh = single_mutants(space, parents)
            if len(fresh) > self.mutants:
                some = torch.randperm(len(fresh), generator=generator, device=generator.device)[: self.mutants]
                fresh = fresh[some.to(fresh.device)]
        if len(met) < count and pool is not None:
            rest = self._open(without(pool, torch.cat([known, met])), None)
            met, values = torch.cat([met, rest]), torch.cat([values, predict(rest).to(values)])
            order = values.argsort(descending=True, stable=True)[:count]
            met, values = met[order], values[order]
        if len(met) < count:
            raise ValueError(
                f"Polish: expected `count` = {count} allowed designs outside the table, got {len(met)}. Propose fewer, raise "
                "`rounds` or `mutants`, or loosen `allowed` or the pool."
            )
        return met, values

    def _open(self, designs: Tensor, pool: Tensor | None) -> Tensor:
        """Those that are allowed."""
        if self.allowed is not None and len(designs):
            designs = designs[self.allowed(designs)]
        if pool is not None and len(designs):
            designs = _inside(designs, pool)
        return designs


def single_mutants(space: CategoricalSpace, designs: Tensor) -> Tensor:
    """All designs that differ from one of the given ones at one position, ``(n * length * (letters - 1), length)``.

    Example:
        >>> single_mutants(CategoricalSpace(length=2, alphabet="ab"), torch.tensor([[0, 1]]))
        tensor([[1, 1],
                [0, 0]])
    """
    shift = torch.arange(1, space.letters, device=designs.device)
    place = torch.eye(space.length, dtype=designs.dtype, device=designs.device)
    moves = (place.unsqueeze(1) * shift.reshape(1, -1, 1)).reshape(-1, space.length)
    return ((designs.unsqueeze(1) + moves) % space.letters).reshape(-1, space.length)


def _inside(designs: Tensor, pool: Tensor) -> Tensor:
    """The distinct designs that are in the pool, which need not have numbers."""
    outside = without(designs, pool)
    return without(designs, outside)
