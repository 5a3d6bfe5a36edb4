"""Searches led by rules: designs composed of all motifs, and rules of distilled designs fed back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import final

import torch
from torch import Tensor

from sciopt.checks import check_option
from sciopt.domains.offline.bdi import BDI
from sciopt.domains.offline.evolution import EvolutionarySearch, evolve
from sciopt.domains.offline.ranking import fit_surrogate
from sciopt.domains.offline.rules.compose import compose
from sciopt.domains.offline.rules.discovery import Discovery
from sciopt.domains.offline.rules.extract import distilled_rules, extract_rules
from sciopt.domains.offline.rules.rules import Rules
from sciopt.domains.offline.rules.scales import AbstractScale
from sciopt.domains.offline.search import AbstractSearch, Proposal, check_request, without
from sciopt.domains.offline.spaces import CategoricalSpace
from sciopt.domains.offline.task import Table

__all__ = ["DistilledRuleSearch", "MotifSearch", "composed_designs"]


def composed_designs(rules: Rules, count: int, generator: torch.Generator) -> Tensor:
    """Up to ``count`` designs that hold every motif of the rules, or without the weakest ones where not all fit together.

    Where some transitions are forbidden, only those that were seen are used; gaps are filled with letters that follow each
    other as they do in the table.

    Args:
        rules: with at least one motif.
        count: designs wanted.
        generator: the source of chance.

    Example:
        >>> from sciopt.domains.offline import Ehrlich
        >>> task = Ehrlich(states=8, length=12, motifs=2, motif_length=3, rows=1000)
        >>> generator = torch.Generator().manual_seed(0)
        >>> rules = extract_rules(task.space, task.visible(), generator=generator)
        >>> float(task.score(composed_designs(rules, 16, generator)).min())
        1.0
    """
    seen = rules.transitions.to(torch.float64)
    weights = seen if bool(rules.forbidden.any()) else seen + 1
    motifs = [rule.motif for rule in rules.motifs]
    while motifs:
        made = compose(motifs, rules.space.length, weights, count, generator)
        if len(made):
            return made
        motifs.pop()
    return torch.empty(0, rules.space.length, dtype=torch.int64, device=seen.device)


@final
@dataclass(frozen=True, kw_only=True)
class MotifSearch(AbstractSearch):
    """Extracts motifs from the table and composes designs that hold all of them; another search where there are none.

    For sequences whose score depends on spaced motifs that may stand anywhere, all of them rarely seen together. Feasibility
    is inferred from transitions that never occur, or told by ``allowed``. Where motifs do not explain the table, a kernel
    surrogate of what they leave leads the last steps. Costs some hundred passes over ``rows * length^2`` integers.

    Args:
        discovery: see `Discovery`.
        scales: see `extract_rules`.
        fallback: the search where no motif stands out, or for what motifs leave unexplained.
        allowed: ``designs (n, length) -> bool (n,)``, known constraints; None: only what the table tells.
        candidates: composed designs from which the batch is chosen.

    Raises:
        ValueError: for options out of range, or constraints that leave too few designs.

    Example:
        >>> from sciopt.domains.offline import Ehrlich, evaluate_batch
        >>> task = Ehrlich(states=8, length=12, motifs=2, motif_length=3, rows=1000)
        >>> generator = torch.Generator().manual_seed(0)
        >>> evaluate_batch(task, MotifSearch().propose(task.space, task.visible(), 16, generator=generator).designs).median
        1.0
    """

    discovery: Discovery = field(default_factory=Discovery)
    scales: tuple[AbstractScale, ...] | None = None
    fallback: EvolutionarySearch = field(default_factory=EvolutionarySearch)
    allowed: Callable[[Tensor], Tensor] | None = None
    candidates: int = 1024

    def __post_init__(self) -> None:
        check_option("MotifSearch", "candidates", self.candidates, self.candidates >= 1, ">= 1", "Leave the default.")

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
        check_request("MotifSearch", table, count, pool)
        rules = extract_rules(space, table, generator=generator, discovery=self.discovery, scales=self.scales)
        fallback = self.fallback if self.allowed is None else replace(self.fallback, allowed=self.allowed)
        if fallback.allowed is None and bool(rules.forbidden.any()):
            fallback = replace(fallback, allowed=lambda designs: rules.breaches(designs) == 0)
        if not rules.motifs:
            made = fallback.propose(space, table, count, generator=generator, pool=pool)
            return replace(made, notes=("no motif stands out from chance: the fallback alone searched", *made.notes))
        made = composed_designs(rules, max(self.candidates, 4 * count), generator)
        made = self.kept(space, made, table.designs, pool)
        if rules.model.explained > NOTHING_LEFT and len(made) >= count:
            made = made[torch.randperm(len(made), generator=generator, device=generator.device).to(made.device)]
            predicted = rules.predict(made)
            order = predicted.argsort(descending=True, stable=True)[:count]
            return Proposal(designs=made[order], predicted=predicted[order], notes=tuple(rules.describe().splitlines()))
        left = Table(designs=table.designs, scores=table.scores - rules.predict(table.designs))
        surrogate = fit_surrogate(
            space, left, kernel=fallback.kernel, ridge=fallback.ridge, dtype=fallback.dtype, rtol=1e-3
        )

        def predict(designs: Tensor) -> Tensor:
            return rules.predict(designs) + surrogate.predict(designs)

        start = torch.cat([made[predict(made).argsort(descending=True)], table.best(fallback.population)])
        found, _ = evolve(fallback, predict, space, table, count, generator=generator, pool=pool, start=start)
        designs = torch.unique(torch.cat([made, found]), dim=0)
        predicted = predict(designs)
        order = predicted.argsort(descending=True, stable=True)[:count]
        notes = (
            *rules.describe().splitlines(),
            "motifs leave much unexplained: a surrogate of the rest led the search",
        )
        return Proposal(designs=designs[order], predicted=predicted[order], notes=notes)

    def kept(self, space: CategoricalSpace, designs: Tensor, known: Tensor, pool: Tensor | None) -> Tensor:
        """The designs that are new and allowed."""
        fresh = without(designs, known)
        if self.allowed is not None:
            fresh = fresh[self.allowed(fresh)]
        return fresh if pool is None else fresh[torch.isin(space.number(fresh), space.number(pool))]


@final
@dataclass(frozen=True, kw_only=True)
class DistilledRuleSearch(AbstractSearch):
    """Distils designs by `BDI`, extracts what sets them apart from the table, and feeds it back as a prior of a search.

    Args:
        distil: makes the designs.
        designs: number of them, at most the distinct rows of the table.
        search: of the batch; its own ``prior`` is replaced.
        weight: of the prior, in standard deviations of the scores per standard deviation of the prior over the table; 0:
            without.
        discovery: see `Discovery`.

    Example:
        >>> from sciopt.domains.offline import nk_landscape
        >>> task = nk_landscape(length=6, neighbours=1, alphabet="ACGT")
        >>> search = DistilledRuleSearch(distil=BDI(num_steps=5), designs=32, search=EvolutionarySearch(rounds=3))
        >>> made = search.propose(task.space, task.visible(), 4, generator=torch.Generator().manual_seed(0))
        >>> made.designs.shape
        torch.Size([4, 6])
    """

    distil: BDI = field(default_factory=BDI)
    designs: int = 256
    search: EvolutionarySearch = field(default_factory=EvolutionarySearch)
    weight: float = 0.5
    discovery: Discovery = field(default_factory=lambda: Discovery(motifs=4))

    def __post_init__(self) -> None:
        check_option("DistilledRuleSearch", "designs", self.designs, self.designs >= 8, ">= 8", "256 is a good start.")
        check_option("DistilledRuleSearch", "weight", self.weight, self.weight >= 0, ">= 0", "0.5 is a good start.")

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
        check_request("DistilledRuleSearch", table, count, pool)
        wanted = min(self.designs, len(torch.unique(table.designs, dim=0)))
        distilled = torch.unique(
            self.distil.propose(space, table, wanted, generator=generator, pool=pool).designs, dim=0
        )
        rules = distilled_rules(space, distilled, table.designs, generator=generator, discovery=self.discovery)
        scale = self.weight * float(table.scores.std(correction=0))
        spread = max(float(rules.prior(table.designs).std(correction=0)), 1e-12)
        search = replace(self.search, prior=lambda designs: scale / spread * rules.prior(designs))
        return search.propose(space, table, count, generator=generator, pool=pool)


NOTHING_LEFT = 0.99  # share of the variance at which a surrogate has nothing to add
