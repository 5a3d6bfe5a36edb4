"""Distillation by finite networks against kernels and against a polish alone; a generator with and without its cycle."""

from __future__ import annotations

from dataclasses import replace

from sciopt.domains.offline import AbstractTask, Ehrlich, Polish
from sciopt.domains.offline.distillation import (
    AbstractMatching,
    Distillation,
    DistributionMatching,
    GradientMatching,
    KernelMatching,
    ReverseMapping,
    TrajectoryMatching,
)
from tests.benchmarks.ablation import Pair, ablation

POLISH = Polish(rounds=3, mutants=3000)


def search(task: AbstractTask, matching: AbstractMatching) -> Distillation:
    """Thirty steps from the best visible designs."""
    allowed = task.feasible if isinstance(task, Ehrlich) else None
    return Distillation(matching=matching, num_steps=30, step_size=0.2, allowed=allowed)


def against_kernel(task: AbstractTask, matching: AbstractMatching) -> Pair:
    """Kernel distillation, which is BDI with both terms, takes the same steps and fills its gaps in the same way."""
    return Pair(on=search(task, matching), off=search(task, KernelMatching()))


def before_a_polish(task: AbstractTask, matching: AbstractMatching) -> Pair:
    """The same polish of designs that were distilled, and of the best visible ones."""
    on = replace(search(task, matching), polish=POLISH)
    return Pair(on=on, off=replace(on, num_steps=0))


@ablation("gradient matching instead of kernel distillation")
def gradients(task: AbstractTask) -> Pair:
    return against_kernel(task, GradientMatching())


@ablation("distribution matching instead of kernel distillation")
def distributions(task: AbstractTask) -> Pair:
    return against_kernel(task, DistributionMatching())


@ablation("trajectory matching instead of kernel distillation")
def trajectories(task: AbstractTask) -> Pair:
    return against_kernel(task, TrajectoryMatching())


@ablation("gradient matching before a short polish")
def polished_gradients(task: AbstractTask) -> Pair:
    return before_a_polish(task, GradientMatching())


@ablation("distribution matching before a short polish")
def polished_distributions(task: AbstractTask) -> Pair:
    return before_a_polish(task, DistributionMatching())


@ablation("trajectory matching before a short polish")
def polished_trajectories(task: AbstractTask) -> Pair:
    return before_a_polish(task, TrajectoryMatching())


@ablation("cycle consistency of a reverse mapping")
def cycle(task: AbstractTask) -> Pair:
    allowed = task.feasible if isinstance(task, Ehrlich) else None
    on = ReverseMapping(train_steps=150, samples=8, allowed=allowed)
    return Pair(on=on, off=replace(on, cycle_weight=0.0))


@ablation("weights of high scores in a reverse mapping")
def weights(task: AbstractTask) -> Pair:
    allowed = task.feasible if isinstance(task, Ehrlich) else None
    on = ReverseMapping(train_steps=150, samples=8, allowed=allowed)
    return Pair(on=on, off=replace(on, temperature=None))
