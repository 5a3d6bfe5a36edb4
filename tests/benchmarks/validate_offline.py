"""Published figures of offline design on TF-Bind-8, and the project's own bars there."""

from __future__ import annotations

from functools import lru_cache

import torch

from sciopt.domains.offline import (
    BDI,
    BatchReport,
    ExhaustiveRanking,
    ReverseComplement,
    bidirectional_problem,
    evaluate_batch,
    tf_bind_8,
)
from tests.benchmarks.table import Measured, bar

DESIGNS = 128


def note(report: BatchReport) -> str:
    return (
        f"best {report.best:.4f}, median {report.median:.4f}, {report.distinct} distinct, novelty {report.novelty:.3f}, "
        f"diversity {report.diversity:.3f}"
    )


def bidirectional(forward: bool) -> BatchReport:
    """BDI's published protocol on SIX6; backward always on."""
    task = tf_bind_8()
    visible = task.visible()
    options = BDI(forward=forward)
    stated = bidirectional_problem(options, task.space, visible)
    points = stated.search(stated.relaxation.points(visible.best(DESIGNS)), options.num_steps)
    return evaluate_batch(task, stated.relaxation.designs(points))


@bar("BDI on TF-Bind-8, both terms: distance of its best from the published 0.973", tier="validate", bar="<= 0.0005")
def both() -> Measured:
    report = bidirectional(True)
    return Measured(abs(report.best - 0.973), note(report))


@bar(
    "BDI on TF-Bind-8, backward alone: distance of its best from the published 0.984", tier="validate", bar="<= 0.0005"
)
def backward() -> Measured:
    report = bidirectional(False)
    return Measured(abs(report.best - 0.984), note(report))


@lru_cache
def ranked() -> BatchReport:
    """The project's ranking of all designs of SIX6, which leaves nothing to chance."""
    task = tf_bind_8()
    search = ExhaustiveRanking(symmetry=ReverseComplement())
    made = search.propose(task.space, task.visible(), DESIGNS, generator=torch.Generator())
    return evaluate_batch(task, made.designs)


@bar("ranking on TF-Bind-8: best of 128", tier="validate", bar=">= 0.98")
def best() -> Measured:
    return Measured(ranked().best, note(ranked()))


@bar("ranking on TF-Bind-8: median of 128", tier="validate", bar=">= 0.85")
def median() -> Measured:
    return Measured(ranked().median, note(ranked()))
