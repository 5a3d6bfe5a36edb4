"""Distillation as one bi-level problem: designs that do to networks what the data do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, final

import torch
from torch import Tensor

from sciopt.bilevel import BilevelProblem
from sciopt.checks import check_option
from sciopt.domains.offline.distillation.networks import Weights, loss_gradient
from sciopt.domains.offline.relaxation import LogitRelaxation, fit_relaxation, standardised
from sciopt.domains.offline.spaces import CategoricalSpace
from sciopt.domains.offline.task import Table
from sciopt.hypergradients import AbstractHypergradient, Unrolled
from sciopt.outer import optimize
from sciopt.problem import AbstractProblem, Recurrence
from sciopt.response import best_response

__all__ = [
    "AbstractDistance",
    "AbstractMatching",
    "CosineDistance",
    "Lesson",
    "MatchingProblem",
    "SquaredDistance",
    "by_networks",
    "matching_lesson",
    "training",
]

SMALL = 1e-30


class AbstractDistance(ABC):
    """How two vectors, known by their products, differ."""

    @abstractmethod
    def between(self, product: Tensor, own: Tensor, other: Tensor) -> Tensor:
        """From ``<a, b>``, ``<a, a>`` and ``<b, b>``, of equal shapes; zero where a matches b."""


@final
@dataclass(frozen=True, kw_only=True)
class CosineDistance(AbstractDistance):
    """``1 - cos(a, b)``: directions are matched, sizes are free.

    Example:
        >>> CosineDistance().between(torch.tensor(2.0), torch.tensor(4.0), torch.tensor(1.0))
        tensor(0.)

    References:
        Zhao, Mopuri, Bilen. "Dataset condensation with gradient matching". ICLR 2021, eq. 10.
    """

    def between(self, product: Tensor, own: Tensor, other: Tensor) -> Tensor:
        """See `AbstractDistance.between`."""
        return 1 - product * torch.rsqrt(own * other + SMALL)


@final
@dataclass(frozen=True, kw_only=True)
class SquaredDistance(AbstractDistance):
    """``|a - b|^2 / |b|^2``: sizes are matched too.

    Example:
        >>> SquaredDistance().between(torch.tensor(2.0), torch.tensor(4.0), torch.tensor(1.0))
        tensor(1.)

    References:
        Cazenavette, Wang, Torralba, Efros, Zhu. "Dataset distillation by matching training trajectories". CVPR 2022, eq. 2.
    """

    def between(self, product: Tensor, own: Tensor, other: Tensor) -> Tensor:
        """See `AbstractDistance.between`."""
        return (own - 2 * product + other) / (other + SMALL)


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Lesson:
    """What is to be distilled: standardised data and the label that the distilled designs bear. Made by `matching_lesson`.

    Args:
        space: the designs.
        table: the rows used.
        relaxation: designs as points.
        points: the rows as points ``(n, d)``.
        targets: standardised scores ``(n,)``.
        shares: weight of each row ``(n,)``, sum 1.
        target: preset label, in standard deviations above the mean.
        scale: standard deviation of the scores; with ``mean``, the way back to their units.
        mean: of the scores.
    """

    space: CategoricalSpace
    table: Table
    relaxation: LogitRelaxation
    points: Tensor
    targets: Tensor
    shares: Tensor
    target: float
    scale: Tensor
    mean: Tensor


def matching_lesson(
    space: CategoricalSpace,
    table: Table,
    *,
    target: float = 10.0,
    temperature: float | None = None,
    keep: float = 0.6,
    dtype: torch.dtype = torch.float64,
) -> Lesson:
    """Standardise a table, and weigh its rows by score.

    Args:
        space: the designs.
        table: the visible rows.
        target: preset label, in standard deviations above the mean.
        temperature: rows weigh ``exp(score / temperature)``, scores in standard deviations; None: all alike.
        keep: smoothing of letters, see `LogitRelaxation`.
        dtype: of the points.

    Returns:
        `Lesson`.

    Raises:
        ValueError: for constant scores.

    Example:
        >>> from sciopt.domains.offline import nk_landscape
        >>> task = nk_landscape(length=4, neighbours=0)
        >>> lesson = matching_lesson(task.space, task.visible(), temperature=1.0)
        >>> lesson.points.shape, round(float(lesson.shares.sum()), 6)
        (torch.Size([8, 4]), 1.0)
    """
    relaxation = fit_relaxation(space, table, keep=keep, dtype=dtype)
    targets, mean, scale = standardised(table.scores.to(torch.float64))
    shares = torch.softmax(torch.zeros_like(targets) if temperature is None else targets / temperature, 0)
    points = relaxation.points(table.designs)
    return Lesson(
        space=space, table=table, relaxation=relaxation, points=points, targets=targets.to(dtype), shares=shares.to(dtype),
        target=target, scale=scale, mean=mean,
    )  # fmt: skip


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class MatchingProblem:
    """The bi-level problem of a lesson; `search` moves any number of sets of designs. Made by `AbstractMatching.state`.

    Outer parameters are ``{"designs": (sets, m, d)}`` and, where it is learned, ``"log_step": (sets,)``. Sets are independent.

    Args:
        lesson: what is distilled.
        inner: how networks (or a kernel's dual weights) settle on the designs, one problem for each set.
        start: outer parameters to the start of the inner problem.
        mismatch: ``(inner_params, outer_params) -> (sets,)``, the outer loss of each set.
        method: how the inner solution is differentiated.
        log_step: start of the learned inner step; None: nothing is learned but the designs.

    Example:
        >>> from sciopt.domains.offline import nk_landscape
        >>> from sciopt.domains.offline.distillation import DistributionMatching
        >>> task = nk_landscape(length=4, neighbours=0)
        >>> lesson = matching_lesson(task.space, task.visible())
        >>> stated = DistributionMatching().state(lesson, generator=torch.Generator().manual_seed(0))
        >>> stated.loss(lesson.points[:6].reshape(3, 2, 4)).shape
        torch.Size([3])
    """

    lesson: Lesson
    inner: AbstractProblem
    start: Callable[[dict[str, Tensor]], Any]
    mismatch: Callable[[Any, dict[str, Tensor]], Tensor]
    method: AbstractHypergradient
    log_step: float | None = None

    def outer(self, points: Tensor) -> dict[str, Tensor]:
        """Outer parameters of sets of points ``(sets, m, d)``."""
        outer = {"designs": points}
        if self.log_step is not None:
            outer["log_step"] = points.new_full((len(points),), self.log_step)
        return outer

    def problem(self) -> BilevelProblem:
        """The core's statement: the sum over independent sets."""
        return BilevelProblem(inner=self.inner, outer_loss=lambda theta, phi: self.mismatch(theta, phi).sum())

    def loss(self, points: Tensor) -> Tensor:
        """The outer loss of each set ``(sets, m, d)`` at the inner solution: ``(sets,)``, without a derivative."""
        with torch.no_grad():
            outer = self.outer(points)
            settled = best_response(self.inner, outer, init=self.start(outer), hypergradient=self.method)
            return self.mismatch(settled.value, outer)

    def search(self, start: Tensor, num_steps: int, step_size: float = 0.1) -> Tensor:
        """Points after Adam from sets of points ``(sets, m, d)``."""
        result = optimize(
            self.problem(),
            self.outer(start),
            init=self.start,
            outer=partial(torch.optim.Adam, lr=step_size),
            hypergradient=self.method,
            max_steps=num_steps,
            certificate=False,
        )
        return result.outer_params["designs"]


class AbstractMatching(ABC):
    """What distilled designs should share with the data."""

    @abstractmethod
    def state(self, lesson: Lesson, *, generator: torch.Generator) -> MatchingProblem:
        """State the bi-level problem of a lesson.

        Args:
            lesson: what is distilled.
            generator: source of the networks.
        """


def training(num_steps: int, step_size: float, target: float) -> Recurrence:
    """The inner problem of all matchings by networks: train on a set of designs, labelled alike, for some steps.

    Weights are ``(sets, networks, ...)``, and the value is their trajectory ``(num_steps + 1, sets, networks, ...)``.

    Args:
        num_steps: 0 leaves the networks as they are.
        step_size: of gradient descent, unless the outer parameters hold a ``"log_step"``.
        target: the designs' label.

    Example:
        >>> problem = training(1, 0.5, target=2.0)
        >>> weights = {"layer0": torch.zeros(1, 1, 3, 1)}
        >>> problem.run(weights, {"designs": torch.ones(1, 4, 2)})["layer0"][-1].flatten()
        tensor([1., 1., 1.])
    """

    def step(weights: Weights, outer: dict[str, Tensor], _: int) -> Weights:
        designs = outer["designs"]
        gradient = loss_gradient(weights, designs, target, 1.0 / designs.shape[1])
        length = outer["log_step"].exp()[:, None, None, None] if "log_step" in outer else step_size
        return {name: value - length * gradient[name] for name, value in weights.items()}

    return Recurrence(step, num_steps=num_steps, trajectory=True, batch_ndim=1)


def by_networks(
    lesson: Lesson,
    weights: Weights,
    mismatch: Callable[[Any, dict[str, Tensor]], Tensor],
    *,
    num_steps: int = 0,
    step_size: float = 1.0,
) -> MatchingProblem:
    """State a matching by networks: they are trained on the designs for some steps, which are unrolled.

    Args:
        lesson: what is distilled.
        weights: of the networks before ``(1, networks, ...)``.
        mismatch: ``(path, outer_params) -> (sets,)``, of the trajectory of the weights, see `training`.
        num_steps: of their training; at 0 the sets share the networks as they are.
        step_size: see `training`.
    """

    def start(outer: dict[str, Tensor]) -> Weights:
        sets = len(outer["designs"]) if num_steps else 1
        return {name: value.expand(sets, *value.shape[1:]) for name, value in weights.items()}

    inner = training(num_steps, step_size, lesson.target)
    return MatchingProblem(lesson=lesson, inner=inner, start=start, mismatch=mismatch, method=Unrolled())


def check_steps(owner: str, name: str, value: int, least: int) -> None:
    """A number of inner steps."""
    check_option(owner, name, value, isinstance(value, int) and value >= least, f"to be an int >= {least}", "E.g. 5.")
