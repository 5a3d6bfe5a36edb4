"""Matching of kernel regressions: designs on which an infinitely wide network learns the data."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import final

import torch
from torch import Tensor

from sciopt.checks import check_option
from sciopt.domains.offline.bdi import BDI, bidirectional_problem
from sciopt.domains.offline.distillation.matching import (
    AbstractMatching,
    Lesson,
    MatchingProblem,
)
from sciopt.hypergradients import ClosedForm

__all__ = ["KernelMatching"]


@final
@dataclass(frozen=True, kw_only=True)
class KernelMatching(AbstractMatching):
    """Designs on which an infinitely wide network learns the data: `BDI` as one of the matchings, for sets of one design.

    Args:
        bdi: kernel, ridge and terms; its label, smoothing, dtype and steps are those of the lesson and the search.

    Example:
        >>> from sciopt.domains.offline import nk_landscape
        >>> from sciopt.domains.offline.distillation import matching_lesson
        >>> task = nk_landscape(length=4, neighbours=0)
        >>> lesson = matching_lesson(task.space, task.visible())
        >>> stated = KernelMatching().state(lesson, generator=torch.Generator())
        >>> stated.loss(lesson.points[:2].unsqueeze(1)).shape
        torch.Size([2])

    References:
        Chen, Zhang, Fu, Liu, Coates. "Bidirectional learning for offline infinite-width model-based optimization". NeurIPS
        2022, eq. 6-12.
    """

    bdi: BDI = field(default_factory=BDI)

    def state(self, lesson: Lesson, *, generator: torch.Generator) -> MatchingProblem:
        """See `AbstractMatching.state`; nothing is drawn."""
        relaxation = lesson.relaxation
        options = replace(self.bdi, target=lesson.target, keep=relaxation.keep, dtype=lesson.points.dtype)
        stated = bidirectional_problem(options, lesson.space, lesson.table)

        def one(outer: dict[str, Tensor]) -> Tensor:
            designs = outer["designs"]
            ok = designs.shape[1] == 1
            check_option("KernelMatching", "set_size", designs.shape[1], ok, "of 1", "Each design has its own problem.")
            return designs.squeeze(1)

        inner = replace(stated.inner, inner_loss=lambda alpha, outer: stated.inner.inner_loss(alpha, one(outer)))
        return MatchingProblem(
            lesson=lesson,
            inner=inner,
            start=lambda outer: stated.formula(one(outer)).detach(),
            mismatch=lambda alpha, outer: stated.loss(one(outer), alpha),
            method=ClosedForm(lambda outer: stated.formula(one(outer))),
        )
