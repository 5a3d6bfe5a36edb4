"""What validation-driven tuning, importance weights and smoothness are worth, and local models against one for all."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from sciopt.domains.offline import AbstractTask, Ehrlich
from sciopt.domains.offline.tuning import (
    AbstractLead,
    AbstractModel,
    Autofocus,
    EvolutionLead,
    GlobalModel,
    GradientLead,
    GuidedSearch,
    LocalModel,
    PolicyLead,
    SmoothModel,
    WeightingFunction,
)
from tests.benchmarks.ablation import Pair, ablation

NOISE = 0.3  # ridge at which importance weights can matter


def allowed(task: AbstractTask) -> Callable[[Tensor], Tensor] | None:
    return task.feasible if isinstance(task, Ehrlich) else None


def search(
    task: AbstractTask, model: AbstractModel, lead: AbstractLead | None = None, ridge: float = 1e-2
) -> GuidedSearch:
    lead = EvolutionLead(generations=4) if lead is None else lead
    return GuidedSearch(model=model, lead=lead, rounds=3, ridge=ridge, allowed=allowed(task))


def local(*, weights: bool = True, labels: bool = True) -> LocalModel:
    return LocalModel(
        centres=3,
        rows=128,
        neighbours=24 if labels else 0,
        weighting=WeightingFunction() if weights else None,
        num_steps=8,
    )


@ablation("sample weights by validation")
def sample_weights(task: AbstractTask) -> Pair:
    return Pair(on=search(task, local()), off=search(task, local(weights=False)))


@ablation("pseudo-labels of neighbours")
def pseudo_labels(task: AbstractTask) -> Pair:
    return Pair(on=search(task, local()), off=search(task, local(labels=False)))


@ablation("local proxy, evolution")
def evolution(task: AbstractTask) -> Pair:
    return Pair(on=search(task, local()), off=search(task, GlobalModel()))


@ablation("local proxy, gradients")
def gradients(task: AbstractTask) -> Pair:
    lead = GradientLead(starts=256, num_steps=20, step_size=0.3)
    return Pair(on=search(task, local(), lead), off=search(task, GlobalModel(), lead))


@ablation("local proxy, policy gradients")
def policy(task: AbstractTask) -> Pair:
    return Pair(on=search(task, local(), PolicyLead()), off=search(task, GlobalModel(), PolicyLead()))


@ablation("autofocus")
def autofocus(task: AbstractTask) -> Pair:
    return Pair(on=search(task, Autofocus(), ridge=NOISE), off=search(task, GlobalModel(), ridge=NOISE))


@ablation("guard on the effective sample size")
def guard(task: AbstractTask) -> Pair:
    """Of the weights as published, none of them chosen by validation."""
    published = {fraction: Autofocus(fraction=fraction, num_steps=0) for fraction in (0.5, 0.0)}
    return Pair(on=search(task, published[0.5], ridge=NOISE), off=search(task, published[0.0], ridge=NOISE))


@ablation("smoothness prior")
def smoothness(task: AbstractTask) -> Pair:
    return Pair(on=search(task, SmoothModel(rows=200, num_steps=6)), off=search(task, GlobalModel()))
