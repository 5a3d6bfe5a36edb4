"""Bidirectional learning: designs such that they explain the data and the data explain them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import final

import torch
from torch import Tensor

from sciopt.bilevel import BilevelProblem
from sciopt.checks import check_option
from sciopt.domains.offline.polish import Polish
from sciopt.domains.offline.relaxation import LogitRelaxation, fit_relaxation, standardised
from sciopt.domains.offline.search import AbstractSearch, Proposal, best_starts, check_request, nearest_allowed
from sciopt.domains.offline.spaces import CategoricalSpace
from sciopt.domains.offline.task import Table
from sciopt.hypergradients import ClosedForm
from sciopt.inner import KernelFit, fit_kernel, merge_duplicates
from sciopt.kernels import NTK, AbstractKernel, DenseNetwork, kernel_moments
from sciopt.outer import optimize
from sciopt.problem import Minimize

__all__ = ["BDI", "BidirectionalProblem", "bidirectional_problem"]


@final
@dataclass(frozen=True, kw_only=True)
class BDI(AbstractSearch):
    """Bidirectional learning through an infinitely wide network, with its published protocol.

    Each of the designs has a bi-level problem of its own: train the network on that design, labelled with a preset high
    score (inner, in closed form), and choose the design so that the trained network predicts the visible data (backward:
    the design explains the data) and a network trained on the data predicts the preset score (forward: the data explain the
    design). All problems run in one batch. One solve over the visible points beforehand, for the forward term alone; then
    each step costs one pass over ``count * rows`` kernel values.

    Args:
        kernel: of the wide network.
        forward: use the forward term.
        backward: use the backward term.
        target: preset label, in standard deviations above the visible mean.
        ridge: penalty, relative to the kernel's mean diagonal.
        num_steps: steps of Adam.
        step_size: of Adam, in standardised logits; published: 0.1 for discrete tasks.
        keep: smoothing of letters, see `LogitRelaxation`.
        dtype: of the kernel; float32 halves the time and leaves designs and scores as they are to three digits.
        polish: local search on the real design space at the end, by the network trained on the data, or without the
            forward term by the backward one: a batch of distinct designs that are not visible. None: as published.

    Raises:
        ValueError: for options out of range, or no term at all.

    Example:
        >>> from sciopt.domains.offline import nk_landscape
        >>> task = nk_landscape(length=6, neighbours=0)
        >>> made = BDI(num_steps=5).propose(task.space, task.visible(), 4, generator=torch.Generator())
        >>> made.designs.shape, made.predicted.shape
        (torch.Size([4, 6]), torch.Size([4]))

    References:
        Chen, Zhang, Fu, Liu, Coates. "Bidirectional learning for offline infinite-width model-based optimization". NeurIPS
        2022, eq. 6-12, section 4.
    """

    kernel: AbstractKernel = field(default_factory=lambda: NTK(DenseNetwork(hidden_layers=5)))
    forward: bool = True
    backward: bool = True
    target: float = 10.0
    ridge: float = 1e-6
    num_steps: int = 200
    step_size: float = 0.1
    keep: float = 0.6
    dtype: torch.dtype = torch.float32
    polish: Polish | None = None

    def __post_init__(self) -> None:
        some = self.forward or self.backward
        check_option("BDI", "forward", self.forward, some, "or `backward` to be True", "Published: both.")
        check_option("BDI", "ridge", self.ridge, self.ridge > 0, "> 0", "1e-6 is published.")
        check_option("BDI", "step_size", self.step_size, self.step_size > 0, "> 0", "0.1 is published.")

    def propose(
        self,
        space: CategoricalSpace,
        table: Table,
        count: int,
        *,
        generator: torch.Generator,
        pool: Tensor | None = None,
    ) -> Proposal:
        """See `AbstractSearch.propose`; the start is the best visible designs, and only a large polish draws at random."""
        check_request("BDI", table, count, pool, space=space, generator=generator)
        first = best_starts("BDI", table, count)
        stated = bidirectional_problem(self, space, table)
        start = stated.relaxation.points(first)
        points = stated.search(start, self.num_steps)
        designs = stated.relaxation.designs(points)
        if self.polish is None:
            designs = nearest_allowed(designs, pool)
        else:
            designs, _ = self.polish.improve(stated.merit, space, table, designs, count, generator=generator, pool=pool)
        return Proposal(designs=designs, predicted=None if stated.fit is None else stated.merit(designs))


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class BidirectionalProblem:
    """The bi-level problem of a table, stated once: `search` moves any number of designs. Made by `bidirectional_problem`.

    Args:
        options: the `BDI`.
        relaxation: designs as points.
        points: distinct visible points ``(m, d)``.
        targets: their standardised scores ``(m,)``.
        weights: share of the table's rows that each stands for ``(m,)``.
        fit: the network trained on the data; None without the forward term.
        unstandardise: standardised scores to scores.

    Example:
        >>> from sciopt.domains.offline import nk_landscape
        >>> task = nk_landscape(length=6, neighbours=1)
        >>> stated = bidirectional_problem(BDI(), task.space, task.visible())
        >>> stated.loss(stated.points[:3]).shape
        torch.Size([3])
    """

    options: BDI
    relaxation: LogitRelaxation
    points: Tensor
    targets: Tensor
    weights: Tensor
    fit: KernelFit | None
    unstandardise: Callable[[Tensor], Tensor]

    @property
    def inner(self) -> Minimize:
        """Kernel ridge on one design each: dual weights ``(count, 1)``, a batch of ``count`` problems."""

        def energy(alpha: Tensor, designs: Tensor) -> Tensor:
            system = self._system(designs).unsqueeze(-1)
            return (0.5 * system * alpha * alpha - self.options.target * alpha).sum(-1)

        return Minimize(energy, batch_ndim=1)

    def formula(self, designs: Tensor) -> Tensor:
        """The inner solution ``(count, 1)`` of designs ``(count, d)``."""
        return (self.options.target / self._system(designs)).unsqueeze(-1)

    def loss(self, designs: Tensor, alpha: Tensor | None = None) -> Tensor:
        """The outer loss of each design ``(count, d)``, given its inner solution: ``(count,)``."""
        options = self.options
        given = self.formula(designs) if alpha is None else alpha
        # the backward error of row j is (alpha k_j - y_j)^2: its sum needs two moments of the kernel's row, not the row
        weighted = self.weights * self.targets
        columns = [weighted] if self.fit is None else [weighted, self.fit.coefficients]
        first, second = kernel_moments(
            options.kernel, designs, self.points, torch.stack(columns, -1), self.weights.unsqueeze(-1)
        )
        total = designs.new_zeros(len(designs))
        if options.backward:
            slope = given.squeeze(-1)
            rest = weighted @ self.targets
            total = total + 0.5 * (slope * slope * second[:, 0] - 2 * slope * first[:, 0] + rest)
        if self.fit is not None:
            total = total + 0.5 * (first[:, 1] - options.target) ** 2
        return total

    def merit(self, designs: Tensor) -> Tensor:
        """Predicted scores of designs ``(n, length)``; without the forward term, minus their loss: ``(n,)``, float64."""
        parts = [designs.new_empty(0, dtype=torch.float64)]
        with torch.no_grad():
            for chunk in designs.split(MERIT_CHUNK) if len(designs) else ():
                points = self.relaxation.points(chunk)
                value = -self.loss(points) if self.fit is None else self.unstandardise(self.fit.mean(points))
                parts.append(value.to(torch.float64))
        return torch.cat(parts)

    def problem(self) -> BilevelProblem:
        """The core's statement: the sum over independent designs."""
        return BilevelProblem(inner=self.inner, outer_loss=lambda alpha, designs: self.loss(designs, alpha).sum())

    def search(self, start: Tensor, num_steps: int) -> Tensor:
        """Points after Adam from points ``(count, d)``."""
        result = optimize(
            self.problem(),
            start,
            init=self.formula(start).detach(),
            outer=partial(torch.optim.Adam, lr=self.options.step_size),
            hypergradient=ClosedForm(self.formula),
            max_steps=num_steps,
            certificate=False,
        )
        return result.outer_params

    def _system(self, designs: Tensor) -> Tensor:
        return (1 + self.options.ridge) * self.options.kernel.diagonal(designs)


def bidirectional_problem(options: BDI, space: CategoricalSpace, table: Table) -> BidirectionalProblem:
    """State `BDI`'s problem for a table: standardise, merge duplicates, and solve once for the forward term.

    Args:
        options: the `BDI`.
        space: the designs.
        table: the visible rows.

    Returns:
        `BidirectionalProblem`.

    Raises:
        ValueError: for constant scores.

    Example:
        >>> from sciopt.domains.offline import nk_landscape
        >>> task = nk_landscape(length=6, neighbours=1)
        >>> bidirectional_problem(BDI(forward=False), task.space, task.visible()).fit is None
        True
    """
    relaxation = fit_relaxation(space, table, keep=options.keep, dtype=options.dtype)
    targets, mean, scale = standardised(table.scores.to(torch.float64))
    points, merged, mass, _ = merge_duplicates(relaxation.points(table.designs), targets.to(options.dtype))
    fit = None
    if options.forward:
        penalty = options.ridge * (mass @ options.kernel.diagonal(points)) / mass.sum()
        fit = fit_kernel(
            options.kernel,
            points,
            merged,
            penalty,
            mass,
            rtol=FIT_RTOL,
            stored_points=int((STORED_BYTES / points.element_size()) ** 0.5),
        )
    return BidirectionalProblem(
        options=options,
        relaxation=relaxation,
        points=points,
        targets=merged,
        weights=mass / mass.sum(),
        fit=fit,
        unstandardise=lambda values: values.to(torch.float64) * scale + mean,
    )


FIT_RTOL = 1e-3  # of the standardised scores: far below what the search can resolve
STORED_BYTES = 5e9  # of a kernel matrix that conjugate gradients may keep; a larger one is computed in every step
MERIT_CHUNK = 4096  # designs predicted at a time
