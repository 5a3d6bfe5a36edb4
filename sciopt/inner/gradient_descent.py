"""Gradient descent: a fixed step that unrolls into the textbook formula, or a line search for each problem."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from sciopt.checks import check_option, check_tolerances
from sciopt.inner.abstract import AbstractIterativeSolver
from sciopt.inner.line_search import acceptable, first_step_size
from sciopt.inner.rows import (
    base_state,
    check_growth,
    dot,
    norm,
    quotient,
    rounding_floor,
    select,
    track_curvature,
    verdict,
)
from sciopt.problem.minimize import LeastSquares, Minimize
from sciopt.problem.system import Oracle
from sciopt.solution import Status

__all__ = ["GradientDescent"]

MAX_REJECTIONS = 60
STALE_AFTER = 300  # trials without progress in value or gradient


@final
@dataclass(frozen=True, kw_only=True)
class GradientDescent(AbstractIterativeSolver):
    """``theta <- theta - step_size * velocity`` with ``velocity <- momentum * velocity + grad``, as `torch.optim.SGD`.

    Use it with a fixed step for short unrolled runs (MAML), where a derivative of exactly this update is wanted;
    `LBFGS` finds minima in far fewer evaluations. One gradient evaluation per step (and one at the start), memory of
    three vectors. Without a step size, an Armijo line search per problem shrinks and grows the step; a rejected trial
    is a step that does not move.

    Args:
        step_size: fixed step, positive; None: line search.
        momentum: factor of the velocity, in [0, 1).
        nesterov: look ahead along the velocity; needs ``momentum > 0``.
        rtol: tolerance on ``|grad|`` relative to its norm at the start; None: 1e-8 in float64, 1e-4 in float32.
        atol: absolute tolerance on ``|grad|``.
        max_steps: step budget.

    Raises:
        ValueError: for options out of range.

    Example:
        >>> from sciopt import Minimize, best_response
        >>> problem = Minimize(lambda theta, phi: ((theta - phi) ** 2).sum())
        >>> best_response(problem, torch.ones(2), init=torch.zeros(2), solver=GradientDescent(step_size=0.5)).value
        tensor([1., 1.])

    References:
        Armijo. "Minimization of functions having Lipschitz continuous first partial derivatives". Pacific J. Math. 16
        (1966). Sutskever et al. "On the importance of initialization and momentum in deep learning". ICML 2013.
    """

    solves: ClassVar = (Minimize, LeastSquares)
    looks_after: ClassVar = True
    step_size: float | None = None
    momentum: float = 0.0
    nesterov: bool = False
    rtol: float | None = None
    atol: float = 0.0
    max_steps: int = 10_000

    def __post_init__(self) -> None:
        check_tolerances("GradientDescent", self.rtol, self.atol, self.max_steps)
        if self.step_size is not None:
            check_option(
                "GradientDescent", "step_size", self.step_size, self.step_size > 0, "> 0", "Use None for a line search."
            )
        ok = 0 <= self.momentum < 1
        check_option("GradientDescent", "momentum", self.momentum, ok, "in [0, 1)", "Common values are 0 and 0.9.")
        ok = not self.nesterov or self.momentum > 0
        check_option("GradientDescent", "nesterov", self.nesterov, ok, "False without momentum", "Set momentum > 0.")

    def init(self, oracle: Oracle, x: Tensor) -> dict[str, Any]:
        value, grad = oracle.value_and_grad(x)
        start = norm(grad)
        state = base_state(start, start, grad=grad, floor=torch.zeros_like(start))
        if self.momentum:
            state["velocity"] = torch.zeros_like(grad)
        if self.step_size is None:
            length = first_step_size(x, value, grad)
            state |= {"value": value, "length": length, "shrunk": torch.zeros_like(start, dtype=torch.bool)}
            count = torch.zeros_like(state["status_code"])
            state |= {"rejections": count, "accepted": count, "curvature": torch.full_like(start, torch.inf)}
            state |= {"stale": count, "best": start, "unit": torch.finfo(x.dtype).eps * value.detach().abs()}
        return state

    def step(self, oracle: Oracle, x: Tensor, state: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        grad = direction = state["grad"]
        new = dict(state)
        if self.momentum:
            new["velocity"] = direction = self.momentum * state["velocity"] + grad
            if self.nesterov:
                direction = grad + self.momentum * direction
        if self.step_size is None:
            return self._search(oracle, x, state, new, direction)
        moved = torch.add(x, direction, alpha=-self.step_size)
        _, new["grad"] = oracle.value_and_grad(moved)
        new["residual_norm"] = norm(new["grad"])
        if not oracle.differentiable:
            new["status_code"] = check_growth(state["status_code"], new["residual_norm"], 1e4 * state["scale"])
            curvature = quotient(norm(new["grad"] - grad), self.step_size * norm(direction))
            stable = curvature.clamp_max(2 / self.step_size)  # a longer step would not converge at all
            new["floor"] = rounding_floor(stable, norm(moved))
        return moved, new

    def _search(
        self, oracle: Oracle, x: Tensor, state: dict[str, Any], new: dict[str, Any], direction: Tensor
    ) -> tuple[Tensor, dict[str, Any]]:
        """One trial of every row's own Armijo search."""
        grad, length = state["grad"], state["length"]
        slope = dot(grad, direction)
        velocity = state.get("velocity")
        if velocity is not None:
            descent = slope > 0  # a velocity that points uphill is dropped
            direction = select(descent, direction, grad)
            slope = torch.where(descent, slope, dot(grad, grad))
            velocity = select(descent, new["velocity"], grad)
        trial = x - length.unsqueeze(-1) * direction
        value, trial_grad = oracle.value_and_grad(trial)
        accept = acceptable(state["value"], -slope, length, value, -dot(trial_grad, direction))
        moved = select(accept, trial, x)
        new["grad"] = select(accept, trial_grad, grad)
        new["value"] = torch.where(accept, value, state["value"])
        if velocity is not None:
            new["velocity"] = select(accept, velocity, state["velocity"])
        new["shrunk"] = state["shrunk"] | ~accept
        growth = torch.where(state["shrunk"], 1.25, 4.0)
        new["length"] = length * torch.where(accept, growth, 0.5)
        new["rejections"] = torch.where(accept, 0, state["rejections"] + 1)
        new["residual_norm"] = norm(new["grad"])
        eps = torch.finfo(x.dtype).eps
        visible = 10 * eps * torch.maximum(new["value"].abs(), state["unit"] / eps**0.5)
        gained = (new["residual_norm"] < 0.9 * state["best"]) | (state["value"] - new["value"] > visible).detach()
        new["best"] = torch.minimum(new["residual_norm"], state["best"])
        new["stale"] = torch.where(gained, 0, state["stale"] + 1)
        stuck = (new["rejections"] > MAX_REJECTIONS) | (new["stale"] >= STALE_AFTER)
        code = verdict(state["status_code"], stuck, Status.STAGNATED)
        new["status_code"] = verdict(code, torch.isneginf(value), Status.DIVERGED)
        if not oracle.differentiable:
            size, first = norm(moved), state["accepted"] == 0
            change, shift = trial_grad - grad, trial - x
            new["curvature"] = track_curvature(state["curvature"], accept, first, change, shift, size)
            new["accepted"] = state["accepted"] + accept
            new["floor"] = torch.where(accept | stuck, rounding_floor(new["curvature"], size), 0.0)
        return moved, new
