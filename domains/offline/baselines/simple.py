"""Searches that anyone would try first: random designs, and mutants of the best."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from sciopt.checks import check_option
from sciopt.domains.offline.search import AbstractSearch, Proposal, check_request, shuffled, without
from sciopt.domains.offline.spaces import CategoricalSpace
from sciopt.domains.offline.task import Table

__all__ = ["MutateTheBest", "RandomSearch"]


@final
@dataclass(frozen=True, kw_only=True)
class RandomSearch(AbstractSearch):
    """Uniform designs that are not visible, all different: what every method has to beat.

    Example:
        >>> from sciopt.domains.offline import nk_landscape
        >>> task = nk_landscape(length=6, neighbours=0)
        >>> made = RandomSearch().propose(task.space, task.visible(), 5, generator=torch.Generator().manual_seed(0))
        >>> made.designs.shape
        torch.Size([5, 6])
    """

    def propose(
        self,
        space: CategoricalSpace,
        table: Table,
        count: int,
        *,
        generator: torch.Generator,
        pool: Tensor | None = None,
    ) -> Proposal:
        """See `AbstractSearch.propose`."""
        check_request("RandomSearch", table, count, pool, space=space, generator=generator)
        if pool is not None:
            left = without(pool, table.designs)
            if len(left) < count:
                raise ValueError(
                    f"RandomSearch: expected a `pool` of at least `count` = {count} designs outside the table, got "
                    f"{len(left)}. Propose fewer, or allow more."
                )
            return Proposal(designs=shuffled(left, generator)[:count])
        found = torch.empty(0, space.length, dtype=torch.int64, device=table.designs.device)
        for _ in range(1000):
            fresh = without(space.random(2 * count, generator).to(found.device), torch.cat([table.designs, found]))
            found = torch.cat([found, shuffled(fresh, generator)])
            if len(found) >= count:
                return Proposal(designs=found[:count])
        raise ValueError(
            f"RandomSearch: expected `count` = {count} designs outside the table, got {len(found)} after many draws. Propose "
            "fewer."
        )


@final
@dataclass(frozen=True, kw_only=True)
class MutateTheBest(AbstractSearch):
    """Different mutants of the best visible designs, none of them visible: one round of directed evolution.

    Args:
        parents: number of best designs that are mutated.
        mutations: positions changed in each.

    Example:
        >>> from sciopt.domains.offline import nk_landscape
        >>> task = nk_landscape(length=6, neighbours=0)
        >>> search = MutateTheBest(parents=8)
        >>> search.propose(task.space, task.visible(), 5, generator=torch.Generator().manual_seed(0)).designs.shape
        torch.Size([5, 6])
    """

    parents: int = 32
    mutations: int = 1

    def __post_init__(self) -> None:
        check_option("MutateTheBest", "parents", self.parents, self.parents >= 1, ">= 1", "32 is a good start.")
        check_option("MutateTheBest", "mutations", self.mutations, self.mutations >= 1, ">= 1", "1 is careful.")

    def propose(
        self,
        space: CategoricalSpace,
        table: Table,
        count: int,
        *,
        generator: torch.Generator,
        pool: Tensor | None = None,
    ) -> Proposal:
        """See `AbstractSearch.propose`; more mutations are made where too few mutants are new."""
        check_request("MutateTheBest", table, count, pool, space=space, generator=generator)
        best = table.best(self.parents)
        found = torch.empty(0, space.length, dtype=torch.int64, device=table.designs.device)
        for attempt in range(200):
            number = min(space.length, self.mutations + attempt // 20)
            mutants = space.mutated(best.repeat(-(-4 * count // len(best)), 1), number, generator)
            fresh = without(mutants, torch.cat([table.designs, found]))
            if pool is not None:
                fresh = fresh[torch.isin(space.number(fresh), space.number(pool))]
            found = torch.cat([found, shuffled(fresh, generator)])
            if len(found) >= count:
                return Proposal(designs=found[:count])
        raise ValueError(
            f"MutateTheBest: expected `count` = {count} mutants outside the table, got {len(found)}. Propose fewer, or raise "
            "`parents` or `mutations`."
        )
