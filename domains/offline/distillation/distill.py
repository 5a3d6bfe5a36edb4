"""Search by distillation: designs with a preset high label that hold what the data know of high scores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import final

import torch
from torch import Tensor

from sciopt.checks import check_option
from sciopt.domains.offline.distillation.finishing import Finish, letter_by_letter
from sciopt.domains.offline.distillation.gradients import GradientMatching
from sciopt.domains.offline.distillation.matching import AbstractMatching, MatchingProblem, matching_lesson
from sciopt.domains.offline.polish import Polish
from sciopt.domains.offline.ranking import fit_surrogate
from sciopt.domains.offline.search import AbstractSearch, Proposal, best_starts, check_request, shuffled
from sciopt.domains.offline.spaces import CategoricalSpace
from sciopt.domains.offline.task import Table

__all__ = ["Distillation"]

CHUNK = 512  # designs whose mismatch is computed at a time


@final
@dataclass(frozen=True, kw_only=True)
class Distillation(AbstractSearch):
    """Move the best visible designs, as relaxed letters, until they match what the data do to networks.

    Each set of designs bears a preset high label and has a bi-level problem of its own, all in one batch: networks settle on
    the set (inner), and the set is chosen so that they do what networks do on the data (outer). What then is new and allowed
    is the batch; gaps are filled with the neighbours that match best, or, with ``polish``, all is improved on the real design
    space by a kernel surrogate.

    Args:
        matching: what the designs share with the data: `GradientMatching`, `DistributionMatching`, `TrajectoryMatching`, or
            `KernelMatching`, which is `BDI`.
        target: preset label, in standard deviations above the visible mean.
        temperature: rows weigh ``exp(score / temperature)``, scores in standard deviations; None: all alike.
        set_size: designs that are distilled together.
        num_steps: of Adam; 0 leaves the starts as they are.
        step_size: of Adam, in standardised logits.
        rows: largest number of visible rows to learn from; more are sampled, the best always kept.
        polish: local search from the distilled designs by a kernel surrogate's prediction; None: none.
        allowed: ``designs (n, length) -> bool (n,)``, known constraints such as feasibility; None: everything.
        keep: smoothing of letters, see `LogitRelaxation`.
        dtype: of networks and kernels.

    Raises:
        ValueError: for options out of range, or constraints that leave too few designs.

    Example:
        >>> from sciopt.domains.offline import nk_landscape
        >>> from sciopt.domains.offline.distillation import DistributionMatching
        >>> task = nk_landscape(length=6, neighbours=0)
        >>> search = Distillation(matching=DistributionMatching(), num_steps=20)
        >>> search.propose(task.space, task.visible(), 4, generator=torch.Generator().manual_seed(0)).designs.shape
        torch.Size([4, 6])

    References:
        Chen et al. "Gradient-based Bi-level Optimization for Deep Learning: A Survey", section 5.1 (design optimization).
    """

    matching: AbstractMatching = field(default_factory=GradientMatching)
    target: float = 10.0
    temperature: float | None = None
    set_size: int = 1
    num_steps: int = 50
    step_size: float = 0.1
    rows: int = 10_000
    polish: Polish | None = None
    allowed: Callable[[Tensor], Tensor] | None = None
    keep: float = 0.6
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        ok = self.temperature is None or self.temperature > 0
        check_option("Distillation", "temperature", self.temperature, ok, "> 0 or None", "1 is a good start.")
        check_option("Distillation", "step_size", self.step_size, self.step_size > 0, "> 0", "0.1 is a good start.")
        for name, least in (("set_size", 1), ("num_steps", 0), ("rows", 2)):
            value = getattr(self, name)
            check_option("Distillation", name, value, value >= least, f">= {least}", "Leave the default.")

    def propose(
        self,
        space: CategoricalSpace,
        table: Table,
        count: int,
        *,
        generator: torch.Generator,
        pool: Tensor | None = None,
    ) -> Proposal:
        """See `AbstractSearch.propose`; starts from the best visible designs."""
        check_request("Distillation", table, count, pool, space=space, generator=generator)
        start = best_starts("Distillation", table, count)
        part = sampled(table, self.rows, generator)
        lesson = matching_lesson(
            space, part, target=self.target, temperature=self.temperature, keep=self.keep, dtype=self.dtype
        )
        stated = self.matching.state(lesson, generator=generator)
        points = lesson.relaxation.points(start)
        sets = -(-count // self.set_size)
        whole = points.repeat(-(-sets * self.set_size // count), 1)[: sets * self.set_size]
        moved = stated.search(whole.unflatten(0, (sets, self.set_size)), self.num_steps, self.step_size)
        logits = lesson.relaxation.logits(moved.flatten(0, 1)[:count])
        gain = logits.amax(-1) - logits.gather(-1, start.unsqueeze(-1)).squeeze(-1)
        designs = letter_by_letter(start, logits.argmax(-1), gain, self.allowed)
        if self.polish is None:
            finish = Finish(
                owner="Distillation", space=space, known=table.designs, merit=single_merit(stated), allowed=self.allowed,
                pool=pool,
            )  # fmt: skip
            return Proposal(designs=finish.batch(designs, count, generator))
        surrogate = fit_surrogate(space, part, dtype=self.dtype, rtol=1e-3)
        polish = self.polish if self.allowed is None else replace(self.polish, allowed=self.allowed)
        better, value = polish.improve(surrogate.predict, space, table, designs, count, generator=generator, pool=pool)
        return Proposal(designs=better, predicted=value)


def single_merit(stated: MatchingProblem) -> Callable[[Tensor], Tensor]:
    """How well each design ``(n, length)`` matches on its own ``(n,)``, the higher the better."""

    def merit(designs: Tensor) -> Tensor:
        points = stated.lesson.relaxation.points(designs).unsqueeze(1)
        return torch.cat([-stated.loss(chunk) for chunk in points.split(CHUNK)]).to(torch.float64)

    return merit


def sampled(table: Table, rows: int, generator: torch.Generator) -> Table:
    """The table, or its best half of ``rows`` and a random sample of the rest."""
    if len(table) <= rows:
        return table
    order = table.scores.argsort(descending=True, stable=True)
    best, rest = order[: rows // 2], order[rows // 2 :]
    chosen = torch.cat([best, shuffled(rest.unsqueeze(-1), generator).squeeze(-1)[: rows - rows // 2]])
    return Table(designs=table.designs[chosen], scores=table.scores[chosen])
