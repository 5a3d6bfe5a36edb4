"""What rules of the visible table, and of distilled designs, are worth as a prior of the evolutionary search."""

from __future__ import annotations

import torch

from sciopt.domains.offline import (
    AbstractTask,
    DistilledRuleSearch,
    Ehrlich,
    EvolutionarySearch,
    MotifSearch,
    extract_rules,
)
from tests.benchmarks.ablation import Pair, ablation

ROUNDS = 10


def plain(task: AbstractTask) -> EvolutionarySearch:
    return EvolutionarySearch(rounds=ROUNDS, allowed=task.feasible if isinstance(task, Ehrlich) else None)


@ablation("rules of the table as a prior of evolution")
def prior(task: AbstractTask) -> Pair:
    search, table = plain(task), task.visible()
    rules = extract_rules(task.space, table, generator=torch.Generator().manual_seed(0))
    spread = float(table.scores.std(correction=0))
    led = EvolutionarySearch(
        rounds=ROUNDS, allowed=search.allowed, prior=lambda designs: 0.5 * spread * rules.prior(designs)
    )
    return Pair(on=led, off=search)


@ablation("composed motifs instead of evolution alone")
def composed(task: AbstractTask) -> Pair:
    search = plain(task)
    return Pair(on=MotifSearch(fallback=search, allowed=search.allowed), off=search)


@ablation("rules of distilled designs as a prior of evolution")
def distilled(task: AbstractTask) -> Pair:
    search = plain(task)
    return Pair(on=DistilledRuleSearch(search=search, parents=False), off=search)


@ablation("rules of distilled designs as a prior, and these designs and their motifs as parents")
def distilled_parents(task: AbstractTask) -> Pair:
    search = plain(task)
    return Pair(on=DistilledRuleSearch(search=search), off=search)
