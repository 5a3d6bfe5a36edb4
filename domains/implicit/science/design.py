"""The best next measurements: times, and amounts to start from, by D-optimality through the solver."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from sciopt import Minimize, Status, best_response
from sciopt.domains.implicit.science.experiments import KineticModel, Noise
from sciopt.inner import LBFGS

__all__ = ["MeasurementPlan", "TimeWindow", "fisher_information", "plan_measurements"]


@final
@dataclass(frozen=True, kw_only=True)
class TimeWindow:
    """When measurements can be made.

    Args:
        first: earliest time, > 0 when ``logarithmic``.
        last: latest time.
        spacing: least distance of two measurements; the least ratio, >= 1, when ``logarithmic``.
        logarithmic: whether times are varied in their logarithm, as courses over decades want.

    Raises:
        ValueError: for an empty window or an impossible spacing.

    Example:
        >>> TimeWindow(first=1.0, last=100.0, spacing=10.0, logarithmic=True).grid(3).round().tolist()
        [1.0, 10.0, 100.0]
    """

    first: float
    last: float
    spacing: float = 0.0
    logarithmic: bool = False

    def __post_init__(self) -> None:
        least = 1.0 if self.logarithmic else 0.0
        if self.logarithmic and self.spacing == 0.0:
            object.__setattr__(self, "spacing", 1.0)
        if not self.first < self.last or self.spacing < least or (self.logarithmic and self.first <= 0):
            raise ValueError(
                f"TimeWindow: expected `first` < `last` (> 0 when logarithmic) and `spacing` >= {least:g}, got "
                f"{self.first!r}, {self.last!r} and {self.spacing!r}. Spacing is a difference, or a ratio when logarithmic."
            )

    @property
    def ends(self) -> Tensor:
        """Both ends on the scale of the variation ``(2,)``, float64."""
        ends = torch.tensor([self.first, self.last], dtype=torch.float64)
        return ends.log() if self.logarithmic else ends

    @property
    def least(self) -> float:
        """The spacing on that scale."""
        return float(torch.tensor(self.spacing, dtype=torch.float64).log()) if self.logarithmic else self.spacing

    def grid(self, count: int) -> Tensor:
        """Evenly spaced times ``(count,)`` on the scale of the variation, float64."""
        return self.back(torch.linspace(0, 1, count, dtype=torch.float64) * self.ends.diff() + self.ends[0])

    def back(self, place: Tensor) -> Tensor:
        """From the scale of the variation to times."""
        return place.exp() if self.logarithmic else place

    def place(self, times: Tensor) -> Tensor:
        """From times to the scale of the variation."""
        return times.log() if self.logarithmic else times

    def times(self, gaps: Tensor) -> Tensor:
        """Times ``(k,)`` within the window and its spacing, from any numbers ``(k + 1,)``."""
        count = gaps.shape[-1] - 1
        low, high = self.ends.to(gaps).unbind(-1)
        room = high - low - (count - 1) * self.least
        shares = torch.softmax(gaps, -1)[..., :-1].cumsum(-1) * room
        return self.back(low + shares + self.least * torch.arange(count, dtype=gaps.dtype, device=gaps.device))

    def gaps(self, times: Tensor) -> Tensor:
        """Numbers ``(k + 1,)`` that `times` turns into these times, or, at the border, into ones just inside."""
        ends = self.ends.to(times)
        place = torch.cat([ends[:1], self.place(times), ends[1:]])
        spare = place.diff()
        spare = torch.cat([spare[:1], spare[1:-1] - self.least, spare[-1:]])
        return (spare / spare.sum()).clamp_min(1e-4).log()


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class MeasurementPlan:
    """What to measure next, and what it will tell.

    Args:
        times: the start, then the k times ``(k + 1,)``.
        init: amounts to start from ``(e, n)``.
        information: expected information of the log-rates with what is known already ``(r, r)``.
        known: what was known already ``(r, r)``.
        grid_times: the best choice from the grid of candidates, where the refinement began ``(k,)``.
        log_det: logarithm of the determinant of ``information``: reached, and at the choice from the grid.
        status: of the refinement.

    Example:
        >>> MeasurementPlan.__name__
        'MeasurementPlan'
    """

    times: Tensor
    init: Tensor
    information: Tensor
    known: Tensor
    grid_times: Tensor
    log_det: tuple[float, float]
    status: Status

    @property
    def errors(self) -> Tensor:
        """Expected standard errors of the log-rates after the measurements ``(r,)``."""
        return torch.linalg.inv(self.information).diagonal().sqrt()

    @property
    def gain(self) -> float:
        """Information gained about the log-rates, nats: the expected shrinking of the logarithm of their volume."""
        return 0.5 * float(torch.logdet(self.information) - torch.logdet(self.known))


def fisher_information(model: KineticModel, log_rates: Tensor, init: Tensor, times: Tensor, noise: Noise) -> Tensor:
    """Fisher information ``(r, r)`` of measurements at all but the first of the times, for errors of known size.

    Differentiable in the times, the start and the log-rates: its derivative is a second one through the solver.

    Args:
        model: the mechanism.
        log_rates: natural logarithms of the rate constants ``(r,)``.
        init: ``(e, n)``.
        times: ``(k + 1,)``, the start first.
        noise: the errors, at the predicted values.

    Returns:
        ``sum_i (dy_i/dphi)' (dy_i/dphi) / sigma_i^2``.

    Example:
        >>> from sciopt.domains.implicit.science import mass_action_model
        >>> from sciopt.domains.implicit.stiff import reactions
        >>> model, start = mass_action_model(reactions("A -> B"), observed=("A",)), torch.tensor([[1.0, 0.0]]).double()
        >>> times = torch.tensor([0.0, 1.0], dtype=torch.float64)
        >>> known = fisher_information(model, torch.zeros(1, dtype=torch.float64), start, times, Noise(absolute=0.1))
        >>> round(known.item(), 3)  # (exp(-1) / 0.1)^2
        13.534

    References:
        Atkinson, Donev, Tobias. "Optimum Experimental Designs, with SAS" (2007), ch. 17.
    """

    def predicted(log_rates: Tensor) -> tuple[Tensor, Tensor]:
        values = model.predict(log_rates, init, times)
        return values, values

    jacobian, values = torch.func.jacfwd(predicted, has_aux=True)(log_rates)
    scaled = (jacobian / noise.sigma(values).unsqueeze(-1)).flatten(0, -2)
    return scaled.mT @ scaled


def plan_measurements(
    model: KineticModel,
    log_rates: Tensor,
    *,
    init: Tensor,
    window: TimeWindow,
    count: int,
    noise: Noise,
    known: Tensor | None = None,
    amounts: tuple[Tensor, Tensor] | None = None,
    start: float = 0.0,
    candidates: int = 40,
    max_steps: int = 10,
) -> MeasurementPlan:
    """The ``count`` measurement times, and the amounts to start from, that tell most about the rate constants.

    Use it after a fit, with the information of that fit: times that are best alone are often worthless together. The
    logarithm of the determinant of the information (D-optimality) is maximised in two stages: exchanges on a grid of
    candidates, whose sensitivities take one solve, then L-BFGS in the continuous times, each step of which differentiates
    the sensitivities through the solver.

    Args:
        model: the mechanism.
        log_rates: the best guess of the logarithms of the rate constants ``(r,)``.
        init: amounts to start from ``(e, n)``; all e experiments are measured at the same times.
        window: when measurements can be made.
        count: number k of times.
        noise: expected errors.
        known: information ``(r, r)`` that is there already (``fit.hessian``); None: none.
        amounts: least and greatest amounts ``(e, n)`` to start from; equal where nothing may be varied. None: ``init``.
        start: time of the start.
        candidates: points of the grid.
        max_steps: steps of the refinement; 0: the grid alone.

    Returns:
        `MeasurementPlan`.

    Raises:
        ValueError: when the times do not fit into the window, or the grid is too small.

    Example:
        >>> from sciopt.domains.implicit.science import mass_action_model
        >>> from sciopt.domains.implicit.stiff import reactions
        >>> model, start = mass_action_model(reactions("A -> B"), observed=("A",)), torch.tensor([[1.0, 0.0]]).double()
        >>> window, rate = TimeWindow(first=0.1, last=4.0), torch.zeros(1, dtype=torch.float64)
        >>> plan = plan_measurements(model, rate, init=start, window=window, count=1, noise=Noise(absolute=0.1))
        >>> [round(t, 2) for t in plan.times.tolist()]  # the derivative t exp(-t) is largest at t = 1
        [0.0, 1.0]

    References:
        Fedorov. "Theory of Optimal Experiments" (1972) (exchange). Atkinson, Donev, Tobias 2007, ch. 11, 17.
    """
    ends = window.ends
    if count < 1 or float(ends.diff()) <= (count - 1) * window.least or candidates < count:
        raise ValueError(
            f"plan_measurements: expected `count` >= 1 times that fit into the window with their spacing, and at least as "
            f"many `candidates`, got {count} and {candidates}. Widen the window, or lower the spacing."
        )
    r = log_rates.shape[-1]
    given = torch.zeros(r, r).to(log_rates) if known is None else known.detach().to(log_rates)
    first = torch.full((1,), start).to(log_rates)
    with torch.no_grad():
        grid = window.grid(candidates).to(log_rates)
        pieces = pointwise_information(model, log_rates, init, torch.cat([first, grid]), noise)
    ridge = 1e-9 * pieces.sum(0).diagonal().amax() * torch.eye(r).to(log_rates)
    chosen = exchange(pieces, given + ridge, window.place(grid), count, window.least)
    grid_times = grid[chosen]
    lower, upper = (init, init) if amounts is None else (a.to(init) for a in amounts)

    def unpack(unknown: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        share = torch.sigmoid(unknown["amounts"])
        return torch.cat([first, window.times(unknown["gaps"])]), lower + (upper - lower) * share

    def loss(unknown: dict[str, Tensor], outer: dict[str, Tensor]) -> Tensor:
        times, amount = unpack(unknown)
        gained = fisher_information(model, outer["log_rates"], amount, times, noise)
        return -torch.logdet(outer["known"] + gained)

    share = torch.where(upper > lower, (init - lower) / torch.where(upper > lower, upper - lower, 1.0), 0.5)
    unknown = {"gaps": window.gaps(grid_times), "amounts": torch.logit(share.clamp(0.1, 0.9))}
    outer = {"log_rates": log_rates.detach(), "known": given + ridge}
    best = torch.cat([first, grid_times]), init
    information = outer["known"] + fisher_information(model, log_rates, best[1], best[0], noise)
    before, status = float(torch.logdet(information)), Status.CONVERGED
    if max_steps > 0:
        solver = LBFGS(rtol=1e-2, atol=1e-3, max_steps=max_steps, max_change=1.0)
        found = best_response(Minimize(loss), outer, init=unknown, solver=solver, throw=False)
        status = found.status
        with torch.no_grad():
            refined = unpack(found.value)
            reached = outer["known"] + fisher_information(model, log_rates, refined[1], refined[0], noise)
        if float(torch.logdet(reached)) > before:  # the refinement starts just inside the border
            best, information = refined, reached
    times, amount = best
    return MeasurementPlan(
        times=times,
        init=amount,
        information=information,
        known=outer["known"],
        grid_times=grid_times,
        log_det=(float(torch.logdet(information)), before),
        status=status,
    )


def pointwise_information(model: KineticModel, log_rates: Tensor, init: Tensor, times: Tensor, noise: Noise) -> Tensor:
    """The information of each of the times alone ``(k, r, r)``."""
    jacobian = torch.func.jacfwd(lambda phi: model.predict(phi, init, times))(log_rates)
    sigma = noise.sigma(model.predict(log_rates, init, times))
    scaled = (jacobian / sigma.unsqueeze(-1)).flatten(1, -2)
    return scaled.mT @ scaled


def exchange(pieces: Tensor, known: Tensor, place: Tensor, count: int, least: float) -> Tensor:
    """Indices ``(count,)`` of the best choice found by greedy growth and exchanges; sorted."""
    chosen: list[int] = []

    def best_addition(others: list[int]) -> tuple[int, float]:
        total = known + (pieces[others].sum(0) if others else 0.0)
        value = torch.logdet(total + pieces)
        near = (place.unsqueeze(-1) - place[others]).abs().amin(-1) if others else torch.full_like(place, torch.inf)
        left = torch.where(near >= max(least * (1 - 1e-9), 1e-12), value, -torch.inf)
        index = int(left.argmax())
        return index, float(left[index])

    for _ in range(count):
        index, value = best_addition(chosen)
        if value == -torch.inf:  # greedy growth can block itself: begin evenly spread
            chosen = torch.linspace(0, len(place) - 1, count).round().int().tolist()
            break
        chosen.append(index)
    for _ in range(20):
        before = list(chosen)
        for i in range(len(chosen)):
            others = chosen[:i] + chosen[i + 1 :]
            index, value = best_addition(others)
            now = float(torch.logdet(known + pieces[chosen].sum(0)))
            if value > now + 1e-9 * abs(now):
                chosen[i] = index
        if chosen == before:
            break
    return torch.tensor(sorted(chosen), device=place.device)
