"""Search on the real design space, led by a kernel surrogate: for spaces too large to rank."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from sciopt.checks import check_option
from sciopt.domains.offline.ranking import fit_surrogate
from sciopt.domains.offline.search import AbstractSearch, Proposal, check_request, without
from sciopt.domains.offline.spaces import CategoricalSpace
from sciopt.domains.offline.task import Table
from sciopt.kernels import NTK, AbstractKernel, DenseNetwork

__all__ = ["EvolutionarySearch", "children", "evolve"]


@final
@dataclass(frozen=True, kw_only=True)
class EvolutionarySearch(AbstractSearch):
    """Mutants and crossovers of the best, ranked by the surrogate, round after round; designs stay designs.

    Starts from the best visible designs. Each round recombines the population, mutates the children, and keeps the highest
    predictions among old and new; it ends when a round changes nothing among the best, or after ``rounds``. The batch is the
    best of all that was met and is not visible. Costs ``rounds * children * rows`` kernel values.

    Args:
        kernel: of the surrogate.
        ridge: see `fit_surrogate`.
        population: designs kept from round to round, at least the size of the batch is kept.
        children: new designs in each round.
        mutations: mean number of mutations of a child, > 0.
        rounds: largest number.
        allowed: ``designs (n, length) -> bool (n,)``, known constraints such as feasibility; None: everything.
        dtype: of the kernel.
        prior: ``designs (n, length) -> (n,)``, in units of the scores, added to the surrogate's predictions while searching,
            such as rules of good designs; None: nothing.

    Raises:
        ValueError: for options out of range, or constraints that leave too few designs.

    Example:
        >>> from sciopt.domains.offline import evaluate_batch, nk_landscape
        >>> task = nk_landscape(length=8, neighbours=0)
        >>> made = EvolutionarySearch(rounds=10).propose(
        ...     task.space, task.visible(), 4, generator=torch.Generator().manual_seed(0)
        ... )
        >>> evaluate_batch(task, made.designs).best
        1.0
    """

    kernel: AbstractKernel = field(default_factory=lambda: NTK(DenseNetwork(hidden_layers=5)))
    ridge: float = 1e-6
    population: int = 256
    children: int = 1024
    mutations: float = 1.0
    rounds: int = 50
    allowed: Callable[[Tensor], Tensor] | None = None
    dtype: torch.dtype = torch.float32
    prior: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        for name in ("population", "children", "rounds"):
            value = getattr(self, name)
            check_option("EvolutionarySearch", name, value, value >= 1, ">= 1", "Leave the default.")
        check_option("EvolutionarySearch", "mutations", self.mutations, self.mutations > 0, "> 0", "1 is a good start.")

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
        check_request("EvolutionarySearch", table, count, pool, space=space, generator=generator)
        surrogate = fit_surrogate(space, table, kernel=self.kernel, ridge=self.ridge, dtype=self.dtype, rtol=1e-3)
        prior = self.prior

        def led(designs: Tensor) -> Tensor:
            predicted = surrogate.predict(designs)
            return predicted if prior is None else predicted + prior(designs).to(predicted)

        designs, predicted = evolve(self, led, space, table, count, generator=generator, pool=pool)
        if prior is not None:
            predicted = surrogate.predict(designs[:count])
        return Proposal(designs=designs[:count], predicted=predicted[:count])


def evolve(
    options: EvolutionarySearch,
    predict: Callable[[Tensor], Tensor],
    space: CategoricalSpace,
    table: Table,
    count: int,
    *,
    generator: torch.Generator,
    pool: Tensor | None = None,
    start: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The rounds of `EvolutionarySearch`, led by any predictor of scores.

    Args:
        options: population, children, mutations, rounds and constraints; its kernel is not used.
        predict: designs ``(n, length)`` to predictions ``(n,)``, float64, the higher the better.
        space: the designs.
        table: visible rows, which are no result.
        count: designs wanted.
        generator: the one source of chance.
        pool: allowed designs; None: the whole space.
        start: first parents ``(n, length)``, better ones first; None: the best visible designs.

    Returns:
        Designs ``(m, length)``, at least ``count`` and at most ``max(population, 2 count)``, new and allowed, and their
        predictions ``(m,)``, best first.

    Raises:
        ValueError: for constraints that leave too few designs.

    Example:
        >>> from sciopt.domains.offline import nk_landscape
        >>> task = nk_landscape(length=6, neighbours=0)
        >>> options = EvolutionarySearch(rounds=3, population=8, children=64)
        >>> count_ones = lambda designs: designs.sum(-1).double()
        >>> generator = torch.Generator().manual_seed(0)
        >>> designs, predicted = evolve(options, count_ones, task.space, task.visible(), 4, generator=generator)
        >>> bool((predicted[:-1] >= predicted[1:]).all())
        True
    """
    keep = max(options.population, 2 * count)
    parents = table.best(keep) if start is None else start
    met = torch.empty(0, space.length, dtype=torch.int64, device=table.designs.device)
    predicted = torch.empty(0, dtype=torch.float64, device=table.designs.device)
    quiet = 0
    for _ in range(options.rounds):
        fresh = children(space, parents, options.children, options.mutations, generator)
        fresh = without(fresh, torch.cat([table.designs, met]))
        if options.allowed is not None:
            fresh = fresh[options.allowed(fresh)]
        if pool is not None:
            fresh = fresh[torch.isin(space.number(fresh), space.number(pool))]
        if len(fresh):
            met = torch.cat([met, fresh])
            predicted = torch.cat([predicted, predict(fresh)])
        order = predicted.argsort(descending=True, stable=True)[:keep]
        changed = bool((order[:count] >= len(met) - len(fresh)).any())
        met, predicted = met[order], predicted[order]
        parents = torch.cat([met, table.best(max(8, keep - len(met)))])
        quiet = 0 if changed or len(met) < count else quiet + 1
        if quiet == 5:
            break
    if len(met) < count:
        raise ValueError(
            f"EvolutionarySearch: expected `count` = {count} allowed designs outside the table, got {len(met)}. Propose "
            "fewer, raise `rounds` or `children`, or loosen `allowed` or the pool."
        )
    return met, predicted


def children(
    space: CategoricalSpace, parents: Tensor, count: int, mutations: float, generator: torch.Generator
) -> Tensor:
    """Recombined and mutated designs ``(count, length)``, of the first parents more often.

    Args:
        space: the designs.
        parents: ``(n, length)``, better ones first.
        count: designs to make.
        mutations: mean number of mutations of each.
        generator: the one source of chance.

    Returns:
        Designs, with repetition.

    Example:
        >>> space = CategoricalSpace(length=4, alphabet="ab")
        >>> children(space, torch.zeros(1, 4, dtype=torch.int64), 3, 1.0, torch.Generator().manual_seed(0)).shape
        torch.Size([3, 4])
    """
    length = space.length
    one, two = (
        (torch.rand(count, generator=generator, device=generator.device).square() * len(parents)).long()
        for _ in range(2)
    )
    cut = torch.randint(0, length + 1, (count, 2), generator=generator, device=generator.device).sort(-1).values
    one, two, cut = (part.to(parents.device) for part in (one, two, cut))
    place = torch.arange(length, device=parents.device)
    middle = (place >= cut[:, :1]) & (place < cut[:, 1:])
    mixed = torch.where(middle, parents[two], parents[one])
    hit = torch.rand(count, length, generator=generator, device=generator.device) < min(1.0, mutations / length)
    shift = torch.randint(1, space.letters, hit.shape, generator=generator, device=generator.device)
    hit, shift = hit.to(mixed.device), shift.to(mixed.device)
    return torch.where(hit, (mixed + shift) % space.letters, mixed)
