"""Conservative objective models: a network that is trained not to promise much where ascent on it leads."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import final

import torch
from torch import Tensor

from sciopt import BilevelProblem, optimize
from sciopt.checks import check_option
from sciopt.domains.offline.ascent import Ensemble, forward, initial_weights, prepared
from sciopt.domains.offline.search import AbstractSearch, Proposal
from sciopt.domains.offline.spaces import CategoricalSpace
from sciopt.domains.offline.task import Table
from sciopt.hypergradients import FirstOrder
from sciopt.inner import GradientDescent
from sciopt.problem import Minimize
from sciopt.response import best_response

__all__ = ["Conservative", "train_conservative"]


def train_conservative(
    points: Tensor,
    targets: Tensor,
    starts: Tensor,
    *,
    weight: float = 1.0,
    allowance: float = 2.0,
    ascent_steps: int = 20,
    ascent_step_size: float = 1.0,
    hidden: int = 64,
    step_size: float = 3e-3,
    max_steps: int = 300,
    generator: torch.Generator,
) -> Ensemble:
    """Fit one network while its own adversarial designs are held down.

        inner:  x*(w) = ascent on f_w from each start, a fixed number of steps
        outer:  min_w  mean (f_w(x_i) - y_i)^2 + weight max(0, mean f_w(x*(w)) - mean f_w(starts) - allowance)

    The indirect term is dropped (`FirstOrder`), as published: ``x*`` is data to the penalty. The published penalty weight
    moves until the gap meets the allowance; here it is fixed and charges only what exceeds the allowance.

    Args:
        points: ``(n, d)``.
        targets: ``(n,)``, standardised.
        starts: where ascents begin, ``(m, d)``.
        weight: of the penalty, >= 0; 0 trains an ordinary network.
        allowance: how far predictions may rise along an ascent, in standard deviations of the targets.
        ascent_steps: of each ascent.
        ascent_step_size: of each ascent, in standardised logits per unit of slope.
        hidden: width of both hidden layers.
        step_size: of Adam on the weights.
        max_steps: of Adam on the weights.
        generator: source of the start.

    Returns:
        `Ensemble` of one member.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> x = torch.linspace(-1, 1, 40).unsqueeze(1)
        >>> net = train_conservative(x, x.squeeze(1), x[-4:], max_steps=40, generator=generator)
        >>> net.predict(x).shape
        torch.Size([1, 40])

    References:
        Trabucco, Kumar, Geng, Levine. "Conservative objective models for effective offline model-based optimization". ICML
        2021, eq. 2-4 and algorithm 1.
    """
    points, targets, starts = points.detach(), targets.detach(), starts.detach()
    weights = initial_weights(points, members=1, hidden=hidden, generator=generator)

    def lost(designs: Tensor, weights: dict[str, Tensor]) -> Tensor:
        return -forward(weights, designs)[0]

    def outer_loss(designs: Tensor, weights: dict[str, Tensor]) -> Tensor:
        error = (forward(weights, points)[0] - targets).square().mean()
        gap = forward(weights, designs)[0].mean() - forward(weights, starts)[0].mean()
        return error + weight * torch.relu(gap - allowance)

    problem = BilevelProblem(inner=Minimize(lost, batch_ndim=1), outer_loss=outer_loss)
    result = optimize(
        problem, weights, init=lambda _: starts, outer=partial(torch.optim.Adam, lr=step_size), max_steps=max_steps,
        solver=GradientDescent(step_size=ascent_step_size, max_steps=ascent_steps, atol=1e-12),
        hypergradient=FirstOrder(), throw=False, certificate=False,
    )  # fmt: skip
    trained = {name: value.detach() for name, value in result.outer_params.items()}
    with torch.no_grad():
        loss = (forward(trained, points) - targets).square().mean(-1)
    return Ensemble(weights=trained, loss=loss, status=result.status)


@final
@dataclass(frozen=True, kw_only=True)
class Conservative(AbstractSearch):
    """Ascent on a conservative objective model, from the best visible designs.

    Safer than `GradientAscent`: the network is punished, while it is trained, for high values where the same ascent would
    lead. Costs ``train_steps * ascent_steps`` gradients of a batch of ``particles`` designs.

    Args:
        weight: of the penalty, >= 0.
        allowance: rise of the predictions along an ascent that is not charged, in standard deviations of the scores.
        particles: designs that are moved in training: the best half of them best visible ones, the others drawn.
        hidden: width of both hidden layers.
        rows: largest number of visible rows to train on; more are sampled.
        train_steps: of full-batch Adam.
        ascent_steps: of each ascent, in training and in the search.
        ascent_step_size: of each ascent, times the root of the number of logits.
        keep: smoothing of letters, see `LogitRelaxation`.

    Raises:
        ValueError: for options out of range.

    Example:
        >>> from sciopt.domains.offline import nk_landscape
        >>> task = nk_landscape(length=6, neighbours=0)
        >>> search = Conservative(train_steps=20, ascent_steps=3)
        >>> search.propose(task.space, task.visible(), 4, generator=torch.Generator().manual_seed(0)).designs.shape
        torch.Size([4, 6])

    References:
        Trabucco, Kumar, Geng, Levine. "Conservative objective models for effective offline model-based optimization". ICML
        2021.
    """

    weight: float = 1.0
    allowance: float = 2.0
    particles: int = 128
    hidden: int = 64
    rows: int = 5_000
    train_steps: int = 300
    ascent_steps: int = 20
    ascent_step_size: float = 0.3
    keep: float = 0.6

    def __post_init__(self) -> None:
        owner = "Conservative"
        check_option(owner, "weight", self.weight, self.weight >= 0, ">= 0", "1 is a good start.")
        check_option(owner, "particles", self.particles, self.particles >= 2, ">= 2", "128 is a good start.")
        for name in ("ascent_steps", "train_steps", "rows", "hidden"):
            check_option(owner, name, getattr(self, name), getattr(self, name) >= 1, ">= 1", "Leave the default.")
        ok = self.ascent_step_size > 0
        check_option(owner, "ascent_step_size", self.ascent_step_size, ok, "> 0", "0.3 is a good start.")

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
            "Conservative", space, table, count, pool=pool, keep=self.keep, rows=self.rows, generator=generator
        )
        drawn = climb.order[: self.particles - self.particles // 2]
        step = self.ascent_step_size * climb.relaxation.mean.numel() ** 0.5
        moved = climb.relaxation.points(torch.cat([table.best(self.particles // 2), table.designs[drawn]]))
        net = train_conservative(
            climb.points, climb.targets, moved,
            weight=self.weight, allowance=self.allowance, ascent_steps=self.ascent_steps, ascent_step_size=step,
            hidden=self.hidden, max_steps=self.train_steps, generator=generator,
        )  # fmt: skip
        ascent = Minimize(lambda designs, weights: -forward(weights, designs)[0], batch_ndim=1)
        solver = GradientDescent(step_size=step, max_steps=self.ascent_steps, atol=1e-12)
        solution = best_response(
            ascent, net.weights, init=climb.start, solver=solver, hypergradient=FirstOrder(), throw=False
        )
        return climb.proposal(solution.value, lambda points: net.predict(points)[0])
