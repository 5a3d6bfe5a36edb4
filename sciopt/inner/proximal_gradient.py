"""Proximal gradient with acceleration and restart (ISTA, FISTA), for boxes and non-smooth terms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from sciopt.checks import check_option, check_tolerances
from sciopt.inner.abstract import AbstractIterativeSolver
from sciopt.inner.line_search import first_step_size
from sciopt.inner.rows import base_state, check_growth, dot, norm, quotient, rounding_floor, select, verdict
from sciopt.problem.minimize import LeastSquares, Minimize
from sciopt.problem.system import Oracle
from sciopt.solution import Status

__all__ = ["ProximalGradient"]

MAX_REJECTIONS = 80


@final
@dataclass(frozen=True, kw_only=True)
class ProximalGradient(AbstractIterativeSolver):
    """``x <- prox(y - t grad(y), t)`` with extrapolated y (FISTA), restarted when the extrapolation points backwards.

    Use it for `Minimize` with a ``box`` or a ``prox`` (lasso, non-negative least squares). Costs one gradient per step,
    two when accelerated. Convergence is measured by ``|x - prox(x - grad(x), 1)|``.

    Args:
        step_size: fixed t, at most 1 / Lipschitz constant of the gradient; None: backtracking for each problem.
        accelerated: False for plain proximal gradient (ISTA).
        rtol: tolerance on the residual relative to its norm at the start; None: 1e-8 in float64, 1e-4 in float32.
        atol: absolute tolerance on the residual norm.
        max_steps: step budget.

    Raises:
        ValueError: for options out of range.

    Example:
        >>> from sciopt import Minimize, best_response
        >>> problem = Minimize(lambda theta, phi: ((theta - phi) ** 2).sum(), box=(0.0, None))
        >>> best_response(problem, torch.tensor([-1.0, 2.0]), init=torch.zeros(2), solver=ProximalGradient()).value
        tensor([0., 2.])

    References:
        Beck, Teboulle. "A fast iterative shrinkage-thresholding algorithm for linear inverse problems". SIAM J. Imaging
        Sci. 2 (2009). O'Donoghue, Candes. "Adaptive restart for accelerated gradient schemes". FoCM 15 (2015), eq. 13.
    """

    solves: ClassVar = (Minimize, LeastSquares)
    nonsmooth: ClassVar = True
    step_size: float | None = None
    accelerated: bool = True
    rtol: float | None = None
    atol: float = 0.0
    max_steps: int = 10_000

    def __post_init__(self) -> None:
        check_tolerances("ProximalGradient", self.rtol, self.atol, self.max_steps)
        ok = self.step_size is None or self.step_size > 0
        check_option("ProximalGradient", "step_size", self.step_size, ok, "> 0 or None", "Use None for backtracking.")

    def init(self, oracle: Oracle, x: Tensor) -> dict[str, Any]:
        value, grad = oracle.value_and_grad(x)
        start = norm(x - oracle.project(x - grad, 1.0))
        length = first_step_size(x, value, grad) if self.step_size is None else torch.full_like(value, self.step_size)
        return base_state(
            start,
            start,
            point=x,
            value=value,
            grad=grad,
            length=length,
            weight=torch.ones_like(length),
            shrunk=torch.zeros_like(start, dtype=torch.bool),
            rejections=torch.zeros_like(start, dtype=torch.int64),
            floor=torch.zeros_like(start),
        )

    def step(self, oracle: Oracle, x: Tensor, state: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        point, value, grad, length = state["point"], state["value"], state["grad"], state["length"]
        column = length.unsqueeze(-1)
        trial = oracle.project(point - column * grad, column)
        trial_value, trial_grad = oracle.value_and_grad(trial)
        shift, change = trial - point, trial_grad - grad
        square = dot(shift, shift)
        if self.step_size is None:
            eps = torch.finfo(x.dtype).eps
            bound = value + dot(grad, shift) + quotient(square, 2 * length)
            near = (trial_value - value).abs() <= eps ** (2 / 3) * value.abs()  # values tell nothing: ask the slopes
            accept = torch.where(near, dot(change, shift) <= quotient(square, length), trial_value <= bound)
            accept = (accept | (square == 0)) & torch.isfinite(trial_value) & torch.isfinite(norm(trial_grad))
        else:
            accept = torch.ones_like(state["shrunk"])

        moved = select(accept, trial, x)
        weight = state["weight"]
        backwards = (dot(point - trial, trial - x) > 0) | (not self.accelerated)
        larger = 0.5 * (1 + (1 + 4 * weight * weight).sqrt())
        push = torch.where(backwards, 0.0, (weight - 1) / larger)
        target = select(accept, trial + push.unsqueeze(-1) * (trial - x), point)
        new = {**state, "point": target, "weight": torch.where(accept, torch.where(backwards, 1.0, larger), weight)}
        if self.step_size is None:
            again = torch.where(backwards, 1.25, 1.0) if self.accelerated else 1.1  # a restart may try a longer step
            growth = torch.where(state["shrunk"], again, 2.0)
            new["length"] = length * torch.where(accept, growth, 0.5)
            new["shrunk"] = state["shrunk"] | ~accept
            new["rejections"] = torch.where(accept, 0, state["rejections"] + 1)
        if self.accelerated:
            new["value"], new["grad"] = oracle.value_and_grad(target)
        else:
            new["value"] = torch.where(accept, trial_value, value)
            new["grad"] = select(accept, trial_grad, grad)
        residual = norm(trial - oracle.project(trial - trial_grad, 1.0))
        new["residual_norm"] = torch.where(accept, residual, state["residual_norm"])
        floor = rounding_floor(quotient(norm(change), norm(shift)), norm(moved))
        new["floor"] = torch.where(accept, floor, 0.0)
        code = verdict(state["status_code"], new["rejections"] >= MAX_REJECTIONS, Status.STAGNATED)
        new["status_code"] = check_growth(code, new["residual_norm"], 1e4 * state["scale"])
        return moved, new
