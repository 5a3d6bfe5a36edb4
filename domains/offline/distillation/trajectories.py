"""Matching of training trajectories: designs take networks where the data take them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import final

import torch
from torch import Tensor

from sciopt.checks import check_option
from sciopt.domains.offline.distillation.matching import (
    SMALL,
    AbstractDistance,
    AbstractMatching,
    Lesson,
    MatchingProblem,
    SquaredDistance,
    by_networks,
    check_steps,
)
from sciopt.domains.offline.distillation.networks import NetworkFamily, Weights, loss_gradient
from sciopt.hypergradients import Unrolled
from sciopt.problem import Recurrence
from sciopt.response import best_response

__all__ = ["TrajectoryMatching"]


@final
@dataclass(frozen=True, kw_only=True)
class TrajectoryMatching(AbstractMatching):
    """Designs that train a network, in a few steps, to where the data have trained it in many.

    Experts are trained on the data; a student starts from an expert's weights, takes ``num_steps`` on the designs and should
    land at the expert's weights ``expert_steps`` later. The hypergradient goes through the student's steps, and the student's
    step size is learned with the designs.

    Args:
        networks: the experts.
        num_steps: N, of the student, on the designs.
        expert_steps: M, of the expert, on the data.
        latest_start: starts are spread over the expert's first ``latest_start`` steps.
        expert_step_size: of gradient descent on the data.
        step_size: at which the student's learned step starts; None: at which the best visible designs come nearest.
        distance: between the displacements of student and expert.

    Raises:
        ValueError: for options out of range.

    Example:
        >>> from sciopt.domains.offline import nk_landscape
        >>> from sciopt.domains.offline.distillation import matching_lesson
        >>> task = nk_landscape(length=4, neighbours=0)
        >>> lesson = matching_lesson(task.space, task.visible())
        >>> stated = TrajectoryMatching(expert_steps=20).state(lesson, generator=torch.Generator().manual_seed(0))
        >>> start = lesson.points[:2].unsqueeze(1)
        >>> bool((stated.loss(stated.search(start, 20)) < stated.loss(start)).all())
        True

    References:
        Cazenavette, Wang, Torralba, Efros, Zhu. "Dataset distillation by matching training trajectories". CVPR 2022, eq. 2,
        algorithm 1.
    """

    networks: NetworkFamily = field(default_factory=lambda: NetworkFamily(count=3, width=16))
    num_steps: int = 2
    expert_steps: int = 100
    latest_start: int = 0
    expert_step_size: float = 0.1
    step_size: float | None = None
    distance: AbstractDistance = field(default_factory=SquaredDistance)

    def __post_init__(self) -> None:
        check_steps("TrajectoryMatching", "num_steps", self.num_steps, 1)
        check_steps("TrajectoryMatching", "expert_steps", self.expert_steps, 1)
        check_steps("TrajectoryMatching", "latest_start", self.latest_start, 0)
        for name in ("step_size", "expert_step_size"):
            value = getattr(self, name)
            ok = value is None or value > 0
            check_option("TrajectoryMatching", name, value, ok, "> 0", "Leave the default.")

    def state(self, lesson: Lesson, *, generator: torch.Generator) -> MatchingProblem:
        """See `AbstractMatching.state`; the experts are trained here."""
        weights = self.networks.draw(lesson.points.shape[1], generator=generator, like=lesson.points)
        first, wanted = self._experts(weights, lesson)
        other = sum((value.square().sum((-1, -2)) for value in wanted.values()), lesson.points.new_zeros(()))

        def mismatch(path: Weights, outer: dict[str, Tensor]) -> Tensor:
            moved = {name: value[-1] - value[0] for name, value in path.items()}
            product = sum((moved[name] * wanted[name]).sum((-1, -2)) for name in moved)
            own = sum(value.square().sum((-1, -2)) for value in moved.values())
            assert isinstance(product, Tensor) and isinstance(own, Tensor)
            return self.distance.between(product, own, other.expand(own.shape)).mean(-1)

        step_size = self._nearest_step(first, wanted, lesson) if self.step_size is None else self.step_size
        stated = by_networks(lesson, first, mismatch, num_steps=self.num_steps, step_size=step_size)
        return replace(stated, log_step=math.log(step_size))

    def _nearest_step(self, first: Weights, wanted: Weights, lesson: Lesson) -> float:
        """The step of least squares, to first order, for the best visible designs on their own; positive."""
        best = lesson.points[lesson.targets.argsort(descending=True)[:16]].unsqueeze(1)
        with torch.no_grad():
            pull = loss_gradient(first, best, lesson.target, 1.0)
            along = torch.stack([-(pull[name] * wanted[name]).sum((-1, -2)) for name in pull]).sum(0)
            own = torch.stack([value.square().sum((-1, -2)) for value in pull.values()]).sum(0)
            other = torch.stack([value.square().sum((-1, -2)) for value in wanted.values()]).sum(0)
            length = (other / (own + SMALL)).sqrt().mean()
            cosine = (along * torch.rsqrt(own * other + SMALL)).mean()
        return max(float(length * cosine.clamp(min=0.1)) / self.num_steps, 1e-12)

    def _experts(self, weights: Weights, lesson: Lesson) -> tuple[Weights, Weights]:
        """Where each student starts ``(1, networks, ...)``, and how far its expert goes from there."""
        data = {"points": lesson.points.unsqueeze(0), "targets": lesson.targets, "shares": lesson.shares}

        def step(now: Weights, data: Weights, _: int) -> Weights:
            gradient = loss_gradient(now, data["points"], data["targets"], data["shares"])
            return {name: value - self.expert_step_size * gradient[name] for name, value in now.items()}

        run = Recurrence(step, num_steps=self.latest_start + self.expert_steps, trajectory=True, batch_ndim=1)
        with torch.no_grad():
            path = best_response(run, data, init=weights, hypergradient=Unrolled()).value
        count = self.networks.count
        begin = torch.linspace(0, self.latest_start, count, device=lesson.points.device).round().long()
        each = torch.arange(count, device=begin.device)
        first = {name: value[begin, 0, each].unsqueeze(0) for name, value in path.items()}
        last = {name: value[begin + self.expert_steps, 0, each].unsqueeze(0) for name, value in path.items()}
        return first, {name: last[name] - first[name] for name in first}
