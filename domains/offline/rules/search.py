"""Searches led by rules: designs composed of all motifs, and rules of distilled designs fed back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import final

import torch
from torch import Tensor

from sciopt.checks import check_option
from sciopt.domains.offline.evolution import EvolutionarySearch, evolve
from sciopt.domains.offline.ranking import fit_surrogate
from sciopt.domains.offline.rules.compose import compose
from sciopt.domains.offline.rules.discovery import Discovery
from sciopt.domains.offline.rules.exchange import ExchangeDistillation
from sciopt.domains.offline.rules.extract import extract_rules
from sciopt.domains.offline.rules.feedback import rules_by_distillation
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
        check_request("MotifSearch", table, count, pool, space=space, generator=generator)
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
    """Distils designs, extracts what sets them apart from the table, and feeds it back as a prior of a search.

    Rules and the prior's weight are checked on rows that the distillation did not see, see `rules_by_distillation`: where
    rules do not hold, or add nothing to the surrogate, the search is run as it is. Otherwise the surrogate is fitted to what
    the prior leaves, and both lead the search together.

    Args:
        distil: makes the designs: any search that distils, such as `BIB` or `BDI`; None: `ExchangeDistillation` within the
            constraints of ``search``.
        designs: number of them, at most the distinct rows of the table.
        search: of the batch; its own ``prior`` is replaced.
        weight: of the prior, in standard deviations of the scores per standard deviation of the prior over the table; 0:
            without; None: by validation.
        discovery: see `Discovery`.
        folds: parts of the table that are held out in turn.
        parents: where rules are used, distilled designs, and designs composed of their motifs, are among the first parents of
            the search.

    Raises:
        ValueError: for options out of range.

    Example:
        >>> from sciopt.domains.offline import Ehrlich, evaluate_batch
        >>> task = Ehrlich(states=8, length=12, motifs=2, motif_length=3, rows=400)
        >>> plain = EvolutionarySearch(rounds=5, allowed=task.feasible)
        >>> made = [
        ...     search.propose(task.space, task.visible(), 16, generator=torch.Generator().manual_seed(0)).designs
        ...     for search in (plain, DistilledRuleSearch(search=plain))
        ... ]
        >>> evaluate_batch(task, made[0]).median < evaluate_batch(task, made[1]).median
        True
    """

    distil: AbstractSearch | None = None
    designs: int = 1000
    search: EvolutionarySearch = field(default_factory=EvolutionarySearch)
    weight: float | None = None
    discovery: Discovery = field(default_factory=lambda: Discovery(motifs=6))
    folds: int = 2
    parents: bool = True

    def __post_init__(self) -> None:
        owner = "DistilledRuleSearch"
        check_option(owner, "designs", self.designs, self.designs >= 8, ">= 8", "1000 is a good start.")
        ok = self.weight is None or self.weight >= 0
        check_option(owner, "weight", self.weight, ok, ">= 0 or None", "None chooses it by validation.")
        check_option(owner, "folds", self.folds, self.folds >= 2, ">= 2", "2 is cheapest.")

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
        check_request("DistilledRuleSearch", table, count, pool, space=space, generator=generator)
        options = self.search
        if self.weight == 0:
            return replace(options, prior=None).propose(space, table, count, generator=generator, pool=pool)
        own = torch.Generator(generator.device).set_state(
            generator.get_state()
        )  # without rules the search is as it was
        found = rules_by_distillation(
            space,
            table,
            distil=ExchangeDistillation(allowed=options.allowed) if self.distil is None else self.distil,
            generator=own,
            designs=self.designs,
            discovery=self.discovery,
            kernel=options.kernel,
            ridge=options.ridge,
            dtype=options.dtype,
            folds=self.folds,
            pool=pool,
        )
        notes, rules, weight = tuple(found.describe().splitlines()), found.rules, found.weight
        if rules is not None:  # from scores per score to scores per unit of the prior
            weight = weight * rules.spread if self.weight is None else self.weight * _spread(rules, table)
        if rules is None or weight == 0:
            made = replace(options, prior=None).propose(space, table, count, generator=generator, pool=pool)
            return replace(made, notes=(*notes, *made.notes))
        prior = rules.prior
        left = Table(designs=table.designs, scores=table.scores - weight * prior(table.designs))
        surrogate = fit_surrogate(
            space, left, kernel=options.kernel, ridge=options.ridge, dtype=options.dtype, rtol=1e-3
        )

        def predict(designs: Tensor) -> Tensor:
            return weight * prior(designs) + surrogate.predict(designs)

        start = None
        if self.parents:
            own = found.distilled
            if rules.motifs:
                own = torch.cat([own, composed_designs(rules, len(own), generator)])
            own = own if options.allowed is None else own[options.allowed(own)]
            own = own[predict(own).argsort(descending=True, stable=True)]
            start = torch.cat([own, table.best(max(options.population, 2 * count))])
        designs, predicted = evolve(options, predict, space, table, count, generator=generator, pool=pool, start=start)
        return Proposal(designs=designs[:count], predicted=predicted[:count], notes=notes)


def _spread(rules: Rules, table: Table) -> float:
    """Standard deviations of the scores per standard deviation of the prior over a table."""
    return float(table.scores.std(correction=0)) / max(float(rules.prior(table.designs).std(correction=0)), 1e-12)


NOTHING_LEFT = 0.99  # share of the variance at which a surrogate has nothing to add
