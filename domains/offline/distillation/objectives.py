"""Matching of gradients, of distributions, of training trajectories, and of kernel regressions."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import final

import torch
from torch import Tensor

from sciopt.checks import check_option
from sciopt.domains.offline.bdi import BDI, bidirectional_problem
from sciopt.domains.offline.distillation.matching import (
    SMALL,
    UNROLLED,
    AbstractDistance,
    AbstractMatching,
    CosineDistance,
    Lesson,
    MatchingProblem,
    SquaredDistance,
    check_steps,
    settled_start,
    training,
)
from sciopt.domains.offline.distillation.networks import NetworkFamily, Weights, features, loss_gradient, tangent
from sciopt.hypergradients import ClosedForm, Unrolled
from sciopt.problem import Recurrence
from sciopt.response import best_response

__all__ = ["DistributionMatching", "GradientMatching", "KernelMatching", "TrajectoryMatching", "tilted"]


@final
@dataclass(frozen=True, kw_only=True)
class GradientMatching(AbstractMatching):
    """Designs on which networks' losses have the gradients that they have on the data.

    A network near its start pulls its weights where the high scores are; a design with a high label that pulls them there too
    has what high scores have in common. Layer by layer, as a mean over random networks, optionally along their training on the
    designs. Gradients are outer products and are compared as such, so that a step costs a few passes through the networks.

    Args:
        networks: the random networks.
        num_steps: further points of comparison while the networks are trained on the designs; each costs a pass over all rows
            for each set.
        step_size: of that training, by gradient descent.
        distance: between gradients, layer by layer.

    Raises:
        ValueError: for a negative ``num_steps``.

    Example:
        >>> from sciopt.domains.offline import nk_landscape
        >>> from sciopt.domains.offline.distillation import matching_lesson
        >>> task = nk_landscape(length=4, neighbours=0)
        >>> lesson = matching_lesson(task.space, task.visible())
        >>> stated = GradientMatching().state(lesson, generator=torch.Generator().manual_seed(0))
        >>> start = lesson.points[:2].unsqueeze(1)
        >>> bool((stated.loss(stated.search(start, 20)) < stated.loss(start)).all())
        True

    References:
        Zhao, Mopuri, Bilen. "Dataset condensation with gradient matching". ICLR 2021, eq. 9, 10.
    """

    networks: NetworkFamily = field(default_factory=NetworkFamily)
    num_steps: int = 0
    step_size: float = 0.01
    distance: AbstractDistance = field(default_factory=CosineDistance)

    def __post_init__(self) -> None:
        check_steps("GradientMatching", "num_steps", self.num_steps, 0)

    def state(self, lesson: Lesson, *, generator: torch.Generator) -> MatchingProblem:
        """See `AbstractMatching.state`."""
        weights = self.networks.draw(lesson.points.shape[1], generator=generator, like=lesson.points)
        data = lesson.points.unsqueeze(0)
        with torch.no_grad():
            first = loss_gradient(weights, data, lesson.targets, lesson.shares)

        def mismatch(path: Weights, outer: dict[str, Tensor]) -> Tensor:
            total = outer["designs"].new_zeros(len(outer["designs"]))
            for t in range(self.num_steps + 1):
                now = {name: value[t] for name, value in path.items()}
                wanted = first if t == 0 else loss_gradient(now, data, lesson.targets, lesson.shares)
                total = total + self._distance(now, wanted, outer["designs"], lesson.target)
            return total / (self.num_steps + 1)

        return MatchingProblem(
            lesson=lesson,
            inner=training(self.num_steps, self.step_size, lesson.target),
            start=settled_start(weights, self.num_steps),
            mismatch=mismatch,
            method=UNROLLED,
        )

    def _distance(self, weights: Weights, wanted: Weights, designs: Tensor, target: float) -> Tensor:
        """Mean over layers and networks of the distance between both gradients ``(sets,)``."""
        at = tangent(weights, designs)
        pull = (at.outputs - target) / designs.shape[1]
        parts = []
        for left, right, other in zip(at.inputs, at.deltas, wanted.values(), strict=True):
            along = (torch.einsum("skmi,skio->skmo", left, other) * right).sum(-1)
            product = (pull * along).sum(-1)
            gram = torch.einsum("skmi,skni->skmn", left, left) * torch.einsum("skmo,skno->skmn", right, right)
            own = torch.einsum("skm,skmn,skn->sk", pull, gram, pull)
            parts.append(self.distance.between(product, own, other.square().sum((-1, -2))))
        return torch.stack(parts).mean(0).mean(-1)


def tilted(shares: Tensor, targets: Tensor, label: float) -> Tensor:
    """The weights nearest to the shares, in chi-square, whose mean target is the label: ``(n,)``, sum 1.

    A label beyond the data needs weights below zero on the lowest targets: the mean is extrapolated.

    Args:
        shares: ``(n,)``, positive, sum 1.
        targets: ``(n,)``, not all alike.
        label: the mean that is wanted.

    Example:
        >>> w = tilted(torch.full((3,), 1 / 3), torch.tensor([-1.0, 0.0, 1.0]), 0.5)
        >>> w, w @ torch.tensor([-1.0, 0.0, 1.0])
        (tensor([0.0833, 0.3333, 0.5833]), tensor(0.5000))
    """
    mean = shares @ targets
    centred = targets - mean
    return shares * (1 + (label - mean) / (shares @ centred.square()) * centred)


@final
@dataclass(frozen=True, kw_only=True)
class DistributionMatching(AbstractMatching):
    """Sets of designs whose mean features, in random networks, are those of data with the preset score.

    The data are weighted so that their mean score is the preset label (see `tilted`), which beyond the highest scores
    extrapolates the features; nothing is trained.

    Args:
        networks: the random networks; their last hidden layers are the features.
        distance: between displacements from the mean of all data; with `SquaredDistance` the size counts too, which sets of
            several designs can meet and a single one cannot.

    Example:
        >>> from sciopt.domains.offline import nk_landscape
        >>> from sciopt.domains.offline.distillation import matching_lesson
        >>> task = nk_landscape(length=4, neighbours=0)
        >>> lesson = matching_lesson(task.space, task.visible(), target=2.0)
        >>> stated = DistributionMatching().state(lesson, generator=torch.Generator().manual_seed(0))
        >>> start = lesson.points[:4].reshape(1, 4, 4)
        >>> bool((stated.loss(stated.search(start, 20)) < stated.loss(start)).all())
        True

    References:
        Zhao, Bilen. "Dataset condensation with distribution matching". WACV 2023, eq. 4, 5.
    """

    networks: NetworkFamily = field(default_factory=lambda: NetworkFamily(count=16))
    distance: AbstractDistance = field(default_factory=CosineDistance)

    def state(self, lesson: Lesson, *, generator: torch.Generator) -> MatchingProblem:
        """See `AbstractMatching.state`."""
        weights = self.networks.draw(lesson.points.shape[1], generator=generator, like=lesson.points)
        with torch.no_grad():
            seen = features(weights, lesson.points.unsqueeze(0))[0]  # (networks, n, width)
            centre = torch.einsum("knw,n->kw", seen, lesson.shares)
            wanted = torch.einsum("knw,n->kw", seen, tilted(lesson.shares, lesson.targets, lesson.target)) - centre

        def mismatch(path: Weights, outer: dict[str, Tensor]) -> Tensor:
            own = features({name: value[0] for name, value in path.items()}, outer["designs"]).mean(-2) - centre
            product, other = (own * wanted).sum(-1), wanted.square().sum(-1).expand(own.shape[:-1])
            return self.distance.between(product, own.square().sum(-1), other).mean(-1)

        return MatchingProblem(
            lesson=lesson,
            inner=training(0, 1.0, lesson.target),
            start=settled_start(weights, 0),
            mismatch=mismatch,
            method=UNROLLED,
        )


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
        return MatchingProblem(
            lesson=lesson,
            inner=training(self.num_steps, step_size, lesson.target),
            start=settled_start(first, self.num_steps),
            mismatch=mismatch,
            method=UNROLLED,
            log_step=math.log(step_size),
        )

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
