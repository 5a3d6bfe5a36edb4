"""Importance weights that follow a search: train the model where the search is, not where the table is."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import final

import torch
from torch import Tensor

from sciopt.bilevel import BilevelProblem
from sciopt.checks import check_finite, check_option
from sciopt.domains.offline.spaces import CategoricalSpace
from sciopt.domains.offline.tuning.models import AbstractModel, KernelPredictor, ProxyData
from sciopt.domains.offline.tuning.weighting import effective_size
from sciopt.hypergradients import ClosedForm
from sciopt.inner import fit_kernel, left_out_errors, weighted_kernel_ridge
from sciopt.outer import optimize
from sciopt.problem import Minimize

__all__ = ["Autofocus", "Flattened", "FocusProblem", "flattened", "letter_log_densities"]

HALVINGS = 60  # of [0, 1]: the exponent to rounding


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Flattened:
    """Importance weights that keep a least effective sample size. Made by `flattened`.

    Args:
        weights: ``(*batch, n)``, positive, of mean 1.
        exponent: what the ratios were raised to ``(*batch,)``, in [0, 1]; 1 where they were left alone.
        size: effective sample size of the weights ``(*batch,)``.
        acted: where the guard had to flatten them, bool ``(*batch,)``.

    Example:
        >>> flattened(torch.tensor([0.0, 0.0]), 0.5).acted
        tensor(False)
    """

    weights: Tensor
    exponent: Tensor
    size: Tensor
    acted: Tensor


def flattened(log_ratios: Tensor, fraction: float) -> Flattened:
    """Weights ``ratio^exponent`` with the largest exponent in [0, 1] whose effective sample size is ``fraction n``.

    The effective size falls steadily with the exponent, from n at 0: the exponent is found by bisection, all of the batch at
    once.

    Args:
        log_ratios: logarithms of density ratios ``(*batch, n)``.
        fraction: least share of n that the effective sample size may have, in [0, 1); 0: no guard.

    Returns:
        `Flattened`.

    Raises:
        ValueError: for a ``fraction`` out of range, or ratios that are not finite.

    Example:
        >>> made = flattened(torch.tensor([3.0, 0.0, 0.0, 0.0], dtype=torch.float64), 0.5)
        >>> made.acted, made.size.round(decimals=6)
        (tensor(True), tensor(2., dtype=torch.float64))

    References:
        Fannjiang, Listgarten. "Autofocused oracles for model-based design". NeurIPS 2020, section 4 and supplement S4
        (flattened weights, effective sample size).
    """
    check_option("flattened", "fraction", fraction, 0 <= fraction < 1, "in [0, 1)", "0.3 is a good start.")
    check_finite("flattened", "log_ratios", [log_ratios])
    logs = log_ratios - log_ratios.amax(-1, keepdim=True)
    least = fraction * logs.shape[-1]
    acted = effective_size(logs.exp()) < least
    low, high = torch.zeros_like(logs[..., 0]), torch.ones_like(logs[..., 0])
    for _ in range(HALVINGS):
        middle = 0.5 * (low + high)
        enough = effective_size((middle.unsqueeze(-1) * logs).exp()) >= least
        low, high = torch.where(enough, middle, low), torch.where(enough, high, middle)
    exponent = torch.where(acted, low, 1.0)
    weights = (exponent.unsqueeze(-1) * logs).exp()
    weights = weights / weights.mean(-1, keepdim=True)
    return Flattened(weights=weights, exponent=exponent, size=effective_size(weights), acted=acted)


def letter_log_densities(space: CategoricalSpace, sample: Tensor, at: Tensor, pseudocount: float) -> Tensor:
    """Log densities ``(n,)`` at designs ``(n, length)`` of independent letters, with the frequencies of a sample.

    Args:
        space: the designs.
        sample: ``(m, length)``.
        at: ``(n, length)``.
        pseudocount: added to the count of each letter, spread evenly over the letters; > 0.

    Example:
        >>> space = CategoricalSpace(length=1, alphabet="ab")
        >>> letter_log_densities(space, torch.tensor([[0], [0], [1]]), torch.tensor([[0], [1]]), 1.0).exp()
        tensor([0.6250, 0.3750], dtype=torch.float64)
    """
    counts = space.one_hot(sample).sum(0) + pseudocount / space.letters
    logs = (counts / counts.sum(-1, keepdim=True)).log()
    return logs.expand(len(at), -1, -1).gather(-1, at.unsqueeze(-1)).squeeze(-1).sum(-1)


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class FocusProblem:
    """How far to follow importance weights: kernel ridge weighted by ``exp(share logs)``, judged where the search is.

    Inner: weighted kernel ridge. Outer: leave-one-out errors, weighted by the whole ratios; outer variable: the logit of the
    share, a tensor ``()``, 0 at the start.

    Args:
        kernel: between rows ``(n, n)``.
        targets: standardised scores ``(n,)``.
        mass: measurements behind each row ``(n,)``.
        logs: logarithms of the importance weights ``(n,)``.
        ridge: penalty ``()``.

    Example:
        >>> one = torch.ones(3, dtype=torch.float64)
        >>> stated = FocusProblem(kernel=torch.diag(one), targets=one, mass=one, logs=0 * one, ridge=one[0])
        >>> stated.share(stated.start()), stated.formula(stated.start())
        (tensor(0.5000, dtype=torch.float64), tensor([0.5000, 0.5000, 0.5000], dtype=torch.float64))
    """

    kernel: Tensor
    targets: Tensor
    mass: Tensor
    logs: Tensor
    ridge: Tensor

    def start(self) -> Tensor:
        """Half of the logarithms."""
        return torch.zeros_like(self.ridge)

    def share(self, outer: Tensor) -> Tensor:
        """The share, in (0, 1)."""
        return torch.sigmoid(outer)

    def weights(self, outer: Tensor) -> Tensor:
        """Of the rows ``(n,)``, with mean 1 over them."""
        weights = (self.share(outer) * self.logs).exp()
        return self.mass * weights / weights.mean()

    @property
    def inner(self) -> Minimize:
        """Weighted kernel ridge in its dual weights ``(n,)``."""

        def energy(alpha: Tensor, outer: Tensor) -> Tensor:
            fitted = self.kernel @ alpha
            return (self.weights(outer) * (fitted - self.targets).square()).sum() + self.ridge * (alpha * fitted).sum()

        return Minimize(energy)

    def formula(self, outer: Tensor) -> Tensor:
        """The inner solution ``(n,)``."""
        return weighted_kernel_ridge(self.kernel, self.targets, self.weights(outer), self.ridge)

    def loss(self, alpha: Tensor, outer: Tensor) -> Tensor:
        """Mean squared leave-one-out error under the search distribution."""
        error = left_out_errors(self.kernel, alpha, self.weights(outer), self.ridge)
        judge = self.mass * self.logs.exp()
        return (judge * error.square()).sum() / judge.sum()

    def problem(self) -> BilevelProblem:
        """The core's statement."""
        return BilevelProblem(inner=self.inner, outer_loss=self.loss)

    def tune(self, num_steps: int, step_size: float) -> Tensor:
        """The outer variable after Adam, by hypergradients through the closed form."""
        return optimize(
            self.problem(), self.start(), init=torch.zeros_like(self.targets),
            outer=partial(torch.optim.Adam, lr=step_size), hypergradient=ClosedForm(self.formula), max_steps=num_steps,
            warm_start=False, certificate=False,
        ).outer_params  # fmt: skip


@final
@dataclass(frozen=True, kw_only=True)
class Autofocus(AbstractModel):
    """Kernel ridge on all rows, weighted by how much more often the search would draw a row than the table does.

    Both distributions are independent letters, fitted to the best current designs and to the table. A kernel that can follow
    all rows has little to win from importance weights and much data to lose, so the share of their logarithms that is used
    is an outer variable: leave-one-out errors, weighted by the ratios, choose it by hypergradient.

    Args:
        fraction: guard: least effective sample size, as a share of the rows; the ratios are flattened until it is met; 0
            lets them be.
        elite: current designs that the search distribution is fitted to, the best.
        rows: largest number of visible rows in that choice; more are sampled.
        num_steps: of Adam in that choice; 0: the whole logarithms are used, as published.
        step_size: of Adam.
        pseudocount: designs' worth of evenly spread letters in both distributions; > 0.

    Raises:
        ValueError: for options out of range.

    Example:
        >>> from sciopt.domains.offline import nk_landscape
        >>> from sciopt.domains.offline.tuning import proxy_data
        >>> task = nk_landscape(length=6, neighbours=1)
        >>> data = proxy_data(task.space, task.visible())
        >>> Autofocus(fraction=0.5).fit(data, data.designs[:4], torch.Generator()).notes()
        ('importance weights flattened by the exponent 0.93 to an effective sample size of 16 of 32 rows',)

    References:
        Fannjiang, Listgarten. "Autofocused oracles for model-based design". NeurIPS 2020, algorithm 1. Sugiyama, Krauledat,
        Mueller. "Covariate shift adaptation by importance weighted cross validation". JMLR 8, 2007, section 3.
    """

    fraction: float = 0.5
    elite: int = 128
    rows: int = 300
    num_steps: int = 12
    step_size: float = 0.5
    pseudocount: float = 4.0

    def __post_init__(self) -> None:
        ok = 0 <= self.fraction < 1
        check_option("Autofocus", "fraction", self.fraction, ok, "in [0, 1)", "0.5 is a good start.")
        for name, least in (("elite", 1), ("rows", 2), ("num_steps", 0)):
            value = getattr(self, name)
            check_option("Autofocus", name, value, value >= least, f">= {least}", "Leave the default.")
        check_option("Autofocus", "step_size", self.step_size, self.step_size > 0, "> 0", "0.5 is a good start.")
        check_option("Autofocus", "pseudocount", self.pseudocount, self.pseudocount > 0, "> 0", "4 is a good start.")

    @property
    def moves(self) -> bool:
        """See `AbstractModel.moves`."""
        return True

    def importance(self, data: ProxyData, current: Tensor) -> Flattened:
        """Weights of the rows of ``data``, for a search at ``current``."""
        target = letter_log_densities(data.space, current[: self.elite], data.designs, self.pseudocount)
        source = letter_log_densities(data.space, data.table.designs, data.designs, self.pseudocount)
        return flattened(target - source, self.fraction)

    def state(self, data: ProxyData, chosen: Tensor, importance: Flattened) -> FocusProblem:
        """The choice of the share, over some rows of ``data``, indices ``(n,)``."""
        return FocusProblem(
            kernel=data.matrix(chosen, data.points[:0]), targets=data.targets[chosen], mass=data.mass[chosen],
            logs=importance.weights[chosen].clamp(min=1e-12).log(), ridge=data.ridge,
        )  # fmt: skip

    def fit(self, data: ProxyData, current: Tensor, generator: torch.Generator) -> KernelPredictor:
        """See `AbstractModel.fit`."""
        made = self.importance(data, current)
        share = data.ridge.new_ones(())
        if self.num_steps:
            order = torch.randperm(len(data.points), generator=generator, device=generator.device)[: self.rows]
            stated = self.state(data, order.to(data.points.device), made)
            share = stated.share(stated.tune(self.num_steps, self.step_size))
        least = made.weights.clamp(min=1e-12) ** share
        least = least / least.mean()
        fit = fit_kernel(data.kernel, data.points, data.targets, data.ridge, data.mass * least, rtol=1e-6)
        remarks: tuple[str, ...] = ()
        if bool(made.acted):
            remarks = (
                f"importance weights flattened by the exponent {float(made.exponent):.2g} to an effective sample size of "
                f"{float(made.size):.0f} of {len(data.points)} rows",
            )
        return KernelPredictor(data=data, points=fit.points, coefficients=fit.coefficients, remarks=remarks)
