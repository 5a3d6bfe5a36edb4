"""Gradient ascent on finite networks: the usual baseline, with one network or a cautious ensemble."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from sciopt.checks import check_option
from sciopt.domains.offline.relaxation import LogitRelaxation, fit_relaxation, standardised
from sciopt.domains.offline.search import AbstractSearch, Proposal, best_starts, check_request, nearest_allowed
from sciopt.domains.offline.spaces import CategoricalSpace
from sciopt.domains.offline.task import Table
from sciopt.hypergradients import FirstOrder
from sciopt.inner import Adam
from sciopt.problem import Minimize
from sciopt.response import best_response
from sciopt.solution import Status

__all__ = ["Climb", "Ensemble", "GradientAscent", "forward", "initial_weights", "prepared", "train_ensemble"]


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Ensemble:
    """Trained networks of two hidden layers. Made by `train_ensemble`.

    Args:
        weights: tensors with a leading dimension over members.
        loss: mean squared error of each member on its training data ``(members,)``.
        status: of the training; MAX_STEPS is its ordinary end.

    Example:
        >>> x = torch.linspace(-1, 1, 50).unsqueeze(1)
        >>> nets = train_ensemble(x, x.squeeze(1), members=2, max_steps=300, generator=torch.Generator().manual_seed(0))
        >>> bool(nets.loss.max() < 0.01), nets.predict(x).shape
        (True, torch.Size([2, 50]))
    """

    weights: dict[str, Tensor]
    loss: Tensor
    status: Status

    def predict(self, points: Tensor) -> Tensor:
        """Predictions of each member ``(members, n)`` at points ``(n, d)``."""
        return forward(self.weights, points)


def train_ensemble(
    points: Tensor,
    targets: Tensor,
    *,
    members: int = 1,
    hidden: int = 64,
    step_size: float = 3e-3,
    max_steps: int = 500,
    generator: torch.Generator,
) -> Ensemble:
    """Fit networks to the same data from different starts, all in one batch, by full-batch Adam.

    Args:
        points: ``(n, d)``.
        targets: ``(n,)``.
        members: number of networks.
        hidden: width of both hidden layers.
        step_size: of Adam.
        max_steps: of Adam.
        generator: source of the starts.

    Returns:
        `Ensemble`.

    Example:
        >>> x = torch.eye(3)
        >>> nets = train_ensemble(x, torch.ones(3), max_steps=5, generator=torch.Generator().manual_seed(0))
        >>> nets.predict(x).shape
        torch.Size([1, 3])
    """
    init = initial_weights(points, members=members, hidden=hidden, generator=generator)

    def loss(weights: dict[str, Tensor], data: dict[str, Tensor]) -> Tensor:
        return (forward(weights, data["points"]) - data["targets"]).square().mean(-1)

    data = {"points": points.detach(), "targets": targets.detach()}
    solver = Adam(step_size=step_size, max_steps=max_steps)
    solution = best_response(
        Minimize(loss, batch_ndim=1), data, init=init, solver=solver, hypergradient=FirstOrder(), throw=False
    )
    weights = {name: value.detach() for name, value in solution.value.items()}
    return Ensemble(weights=weights, loss=loss(weights, data), status=solution.status)


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Climb:
    """What networks are trained on, and the best visible designs from which they are climbed. Made by `prepared`.

    Args:
        relaxation: designs as points.
        order: rows of the table in random order ``(n,)``.
        points: of the rows to train on ``(rows, d)``, float32.
        targets: their standardised scores ``(rows,)``, float32.
        start: points of the best visible designs ``(count, d)``.
        mean: of the scores.
        scale: their standard deviation.
        pool: designs that are allowed; None: all.

    Example:
        >>> from sciopt.domains.offline import nk_landscape
        >>> task, generator = nk_landscape(length=6, neighbours=0), torch.Generator().manual_seed(0)
        >>> climb = prepared("mine", task.space, task.visible(), 4, pool=None, keep=0.6, rows=8, generator=generator)
        >>> climb.points.shape, climb.start.shape
        (torch.Size([8, 6]), torch.Size([4, 6]))
    """

    relaxation: LogitRelaxation
    order: Tensor
    points: Tensor
    targets: Tensor
    start: Tensor
    mean: Tensor
    scale: Tensor
    pool: Tensor | None

    def proposal(self, points: Tensor, value: Callable[[Tensor], Tensor]) -> Proposal:
        """The designs at the end ``(count, d)``, with what the function of points predicts for them, in score units."""
        designs = nearest_allowed(self.relaxation.designs(points.detach()), self.pool)
        with torch.no_grad():
            predicted = value(self.relaxation.points(designs)).to(torch.float64) * self.scale + self.mean
        return Proposal(designs=designs, predicted=predicted)


def prepared(
    owner: str,
    space: CategoricalSpace,
    table: Table,
    count: int,
    *,
    pool: Tensor | None,
    keep: float,
    rows: int,
    generator: torch.Generator,
) -> Climb:
    """Check a request and make ready for training and ascent; see `Climb`.

    Args:
        owner: who asks, for error messages.
        space: the designs.
        table: what is known.
        count: designs wanted, each from a start of its own.
        pool: designs that are allowed; None: all.
        keep: smoothing of letters, see `LogitRelaxation`.
        rows: most rows to train on; of more, as many are drawn.
        generator: the source of chance.

    Returns:
        `Climb`.

    Raises:
        ValueError: for a bad request, constant scores, or fewer distinct visible designs than ``count``.
    """
    check_request(owner, table, count, pool, space=space, generator=generator)
    start = best_starts(owner, table, count)
    relaxation = fit_relaxation(space, table, keep=keep, dtype=torch.float32)
    targets, mean, scale = standardised(table.scores.to(torch.float64))
    order = torch.randperm(len(table), generator=generator, device=generator.device).to(table.designs.device)
    return Climb(
        relaxation=relaxation,
        order=order,
        points=relaxation.points(table.designs[order[:rows]]),
        targets=targets[order[:rows]].to(torch.float32),
        start=relaxation.points(start),
        mean=mean,
        scale=scale,
        pool=pool,
    )


@final
@dataclass(frozen=True, kw_only=True)
class GradientAscent(AbstractSearch):
    """Move the best visible designs uphill on trained networks, letter by relaxed letter.

    Networks are wrong where there is no data, and ascent finds where they are wrong upwards: an ensemble's mean, and more so
    its least member, is harder to fool.

    Args:
        members: number of networks.
        least: climb the least prediction of the members instead of their mean.
        hidden: width of both hidden layers.
        rows: largest number of visible rows to train on; more are sampled.
        train_steps: of full-batch Adam.
        num_steps: of the ascent, by Adam.
        step_size: of the ascent, in standardised logits.
        keep: smoothing of letters, see `LogitRelaxation`.

    Raises:
        ValueError: for options out of range.

    Example:
        >>> from sciopt.domains.offline import nk_landscape
        >>> task = nk_landscape(length=6, neighbours=0)
        >>> search = GradientAscent(train_steps=50, num_steps=5)
        >>> search.propose(task.space, task.visible(), 4, generator=torch.Generator().manual_seed(0)).designs.shape
        torch.Size([4, 6])

    References:
        Trabucco et al. "Design-Bench". ICML 2022, section 5 (gradient ascent, mean and min ensemble).
    """

    members: int = 1
    least: bool = False
    hidden: int = 64
    rows: int = 10_000
    train_steps: int = 500
    num_steps: int = 200
    step_size: float = 0.1
    keep: float = 0.6

    def __post_init__(self) -> None:
        check_option("GradientAscent", "members", self.members, self.members >= 1, ">= 1", "5 is common.")
        check_option("GradientAscent", "step_size", self.step_size, self.step_size > 0, "> 0", "0.1 is a good start.")

    def propose(
        self,
        space: CategoricalSpace,
        table: Table,
        count: int,
        *,
        generator: torch.Generator,
        pool: Tensor | None = None,
    ) -> Proposal:
        """See `AbstractSearch.propose`."""
        climb = prepared(
            "GradientAscent", space, table, count, pool=pool, keep=self.keep, rows=self.rows, generator=generator
        )
        nets = train_ensemble(
            climb.points, climb.targets, members=self.members, hidden=self.hidden, max_steps=self.train_steps,
            generator=generator,
        )  # fmt: skip

        def value(points: Tensor) -> Tensor:
            each = nets.predict(points)
            return each.amin(0) if self.least else each.mean(0)

        points = climb.start.clone().requires_grad_()
        adam = torch.optim.Adam([points], lr=self.step_size)
        for _ in range(self.num_steps):
            (points.grad,) = torch.autograd.grad(-value(points).sum(), points)
            adam.step()
        return climb.proposal(points, value)


def initial_weights(points: Tensor, *, members: int, hidden: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Random starts of networks of two hidden layers, in dtype and device of the points ``(n, d)``."""
    sizes = (points.shape[1], hidden, hidden, 1)
    init: dict[str, Tensor] = {}
    for k, (fan_in, fan_out) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
        draw = torch.randn(members, fan_in, fan_out, generator=generator, device=generator.device, dtype=points.dtype)
        init[f"w{k}"] = (draw * (2 / fan_in) ** 0.5).to(points.device)
        init[f"b{k}"] = points.new_zeros(members, 1, fan_out)
    return init


def forward(weights: dict[str, Tensor], points: Tensor) -> Tensor:
    """Predictions of each member ``(members, n)`` at points ``(n, d)``."""
    hidden = points
    for k in range(3):
        hidden = hidden @ weights[f"w{k}"] + weights[f"b{k}"]
        hidden = torch.relu(hidden) if k < 2 else hidden
    return hidden.squeeze(-1)
