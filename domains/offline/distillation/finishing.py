"""From relaxed designs to a batch: allowed letters, no repeats, nothing that is known, the gaps filled with neighbours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from sciopt.domains.offline.search import nearest_allowed, without
from sciopt.domains.offline.spaces import CategoricalSpace

__all__ = ["Finish", "letter_by_letter"]

CHILDREN = 8  # for each design of the batch, in each round
ATTEMPTS = 60


def letter_by_letter(start: Tensor, wanted: Tensor, gain: Tensor, allowed: Callable[[Tensor], Tensor] | None) -> Tensor:
    """The wanted letters, or as many of them as can be set one by one without leaving the allowed designs.

    The letters that gain most are set first; a second pass sets what has become possible.

    Args:
        start: allowed designs ``(n, length)``.
        wanted: designs ``(n, length)``.
        gain: of each wanted letter over the one at the start ``(n, length)``.
        allowed: ``designs (n, length) -> bool (n,)``; None: everything.

    Returns:
        Designs ``(n, length)``.

    Example:
        >>> start, wanted = torch.tensor([[0, 0, 0]]), torch.tensor([[1, 1, 1]])
        >>> letter_by_letter(start, wanted, torch.tensor([[3.0, 1.0, 2.0]]), lambda x: x.sum(-1) < 3)
        tensor([[1, 0, 1]])
    """
    if allowed is None:
        return wanted
    order = gain.argsort(dim=-1, descending=True, stable=True)
    now = start
    for place in (*order.unbind(-1), *order.unbind(-1)):
        column = place.unsqueeze(-1)
        trial = now.scatter(-1, column, wanted.gather(-1, column))
        now = torch.where(allowed(trial).unsqueeze(-1), trial, now)
    return now


def among(designs: Tensor, others: Tensor) -> Tensor:
    """Which designs ``(n, length)`` are among others, bool ``(n,)``; for spaces whose designs have no numbers too.

    Example:
        >>> among(torch.tensor([[0, 1], [1, 1]]), torch.tensor([[1, 1], [2, 2]]))
        tensor([False,  True])
    """
    both, rows = torch.unique(torch.cat([designs, others]), dim=0, return_inverse=True)
    seen = torch.zeros(len(both), dtype=torch.bool, device=designs.device)
    seen[rows[len(designs) :]] = True
    return seen[rows[: len(designs)]]


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Finish:
    """What a batch may hold, and how it is made full. The merit of designs is whatever the search believes in.

    Args:
        owner: name of the search, for messages.
        space: the designs.
        known: designs that are not proposed again ``(m, length)``.
        merit: ``designs (n, length) -> (n,)``, the higher the better.
        allowed: ``designs (n, length) -> bool (n,)``; None: everything.
        pool: allowed designs; None: the whole space.
    """

    owner: str
    space: CategoricalSpace
    known: Tensor
    merit: Callable[[Tensor], Tensor]
    allowed: Callable[[Tensor], Tensor] | None = None
    pool: Tensor | None = None

    def new(self, designs: Tensor, met: Tensor) -> Tensor:
        """The distinct designs that may be proposed and were not met."""
        fresh = without(designs, torch.cat([self.known, met]))
        if self.allowed is not None and len(fresh):
            fresh = fresh[self.allowed(fresh)]
        if self.pool is not None and len(fresh):
            fresh = fresh[among(fresh, self.pool)]
        return fresh

    def batch(self, designs: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """A full batch from proposed designs, which may repeat, be known, or be out of bounds.

        Every proposed design that may be kept is kept; mutants and crossovers of the best fill the gaps, those of most merit.

        Args:
            designs: ``(n, length)``.
            count: size of the batch.
            generator: the one source of chance.

        Returns:
            Designs ``(count, length)``, the best first.

        Raises:
            ValueError: where too few new designs are allowed.
        """
        nearest = designs
        if self.pool is not None:
            out = ~among(designs, self.pool)
            nearest = designs.clone()
            if bool(out.any()):
                nearest[out] = nearest_allowed(designs[out], self.pool)
        met = self.new(nearest, designs[:0])
        merit = self.merit(met) if len(met) else torch.empty(0, dtype=torch.float64, device=designs.device)
        first = len(met)
        for attempt in range(ATTEMPTS):
            if len(met) >= count:
                break
            order = merit.argsort(descending=True, stable=True)[: 2 * count]
            parents = torch.cat([met[order], nearest])
            fresh = self.new(self._children(parents, CHILDREN * count, 1 + attempt // 10, generator), met)
            if len(fresh):
                met, merit = torch.cat([met, fresh]), torch.cat([merit, self.merit(fresh)])
        if len(met) < count:
            raise ValueError(
                f"{self.owner}: expected `count` = {count} allowed designs outside the table, got {len(met)} after many "
                "mutations of the proposed ones. Propose fewer, or loosen `allowed` or the pool."
            )
        kept = torch.arange(len(met), device=met.device) < first
        order = merit.argsort(descending=True, stable=True)
        order = order[kept[order].long().argsort(descending=True, stable=True)][:count]
        return met[order[merit[order].argsort(descending=True, stable=True)]]

    def _children(self, parents: Tensor, count: int, mutations: int, generator: torch.Generator) -> Tensor:
        """Half mutants, half crossovers, better parents more often."""
        device, here = parents.device, generator.device
        draw = torch.rand(2, count, generator=generator, device=here).square() * len(parents)
        one, two = draw.long().clamp(max=len(parents) - 1).to(device)
        places = torch.arange(self.space.length, device=device)
        cut = (
            torch.randint(0, self.space.length + 1, (count, 2), generator=generator, device=here)
            .sort(-1)
            .values.to(device)
        )
        cut[: count // 2] = 0  # an empty middle: no crossover
        inside = (places >= cut[:, :1]) & (places < cut[:, 1:])
        mixed = torch.where(inside, parents[two], parents[one])
        pure, mutated = mixed[count // 2 :], mixed[: count // 2]
        number = min(self.space.length, mutations)
        return torch.cat([pure, self.space.mutated(mutated, number, generator)])
