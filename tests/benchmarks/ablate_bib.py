"""What the parts of bidirectional learning on embeddings are worth, and what a posterior buys against plain means."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from sciopt.domains.offline import (
    BIB,
    AbstractAcquisition,
    AbstractTask,
    Determinantal,
    Ehrlich,
    EvolutionarySearch,
    GreedyMean,
    Polish,
    PosteriorSearch,
    SampledExpectedImprovement,
    UpperConfidence,
)
from tests.benchmarks.ablation import Pair, ablation

SMALL = BIB(members=3, rows=1000, train_steps=200, num_steps=60, polish=None)


@ablation("BIB: weight of its terms by hypergradient")
def weight(task: AbstractTask) -> Pair:
    base = replace(SMALL, polish=_least(task), adaptive_step=False)
    return Pair(on=base, off=replace(base, adaptive_weight=False))


@ablation("BIB: step size by hypergradient")
def step(task: AbstractTask) -> Pair:
    base = replace(SMALL, polish=_least(task))
    return Pair(on=base, off=replace(base, adaptive_step=False))


@ablation("BIB: polish on the real design space")
def polish(task: AbstractTask) -> Pair:
    return Pair(on=replace(SMALL, polish=Polish(rounds=6, mutants=5000, allowed=_allowed(task))), off=SMALL)


@ablation("batch by upper confidence bounds")
def bounds(task: AbstractTask) -> Pair:
    return _against_means(task, UpperConfidence(weight=1.0))


@ablation("batch by sampled expected improvement")
def improvement(task: AbstractTask) -> Pair:
    return _against_means(task, SampledExpectedImprovement(draws=512))


@ablation("batch by diversity (log det)")
def diversity(task: AbstractTask) -> Pair:
    return _against_means(task, GreedyMean(diversity=Determinantal(weight=0.3)))


def _allowed(task: AbstractTask) -> Callable[[Tensor], Tensor] | None:
    return task.feasible if isinstance(task, Ehrlich) else None


def _against_means(task: AbstractTask, rule: AbstractAcquisition) -> Pair:
    """The same shortlist of 512, the batch by a rule and by the highest means."""
    shortlist = EvolutionarySearch(rounds=6, allowed=_allowed(task))
    return Pair(
        on=PosteriorSearch(acquisition=rule, candidates=512, shortlist=shortlist),
        off=PosteriorSearch(acquisition=GreedyMean(), candidates=512, shortlist=shortlist),
    )


def _least(task: AbstractTask) -> Polish | None:
    """None, but two rounds where designs of relaxed letters are infeasible as they are."""
    return Polish(rounds=2, mutants=5000, allowed=_allowed(task)) if isinstance(task, Ehrlich) else None
