"""Newton's method with conjugate gradients inside a trust region, one region for each problem."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, final

import torch
from torch import Tensor

from sciopt.checks import check_option, check_rtol_dtype, check_tolerances
from sciopt.inner.abstract import AbstractIterativeSolver
from sciopt.inner.rows import any_row, base_state, dot, norm, quotient, rounding_floor, safe_norm, select, verdict
from sciopt.linsolve import LinearOperator
from sciopt.problem.minimize import LeastSquares, Minimize
from sciopt.problem.system import Oracle
from sciopt.solution import Status

__all__ = ["NewtonCG", "steihaug"]

STALE_AFTER = 12


class TrustStep(NamedTuple):
    """A step, the decrease its model promises, whether it ends on the border, and the curvatures met."""

    step: Tensor
    predicted: Tensor
    border: Tensor
    max_curvature: Tensor
    min_curvature: Tensor


@final
@dataclass(frozen=True, kw_only=True)
class NewtonCG(AbstractIterativeSolver):
    """Trust-region Newton with Steihaug's truncated conjugate gradients; quadratic convergence without a matrix.

    Use it for ill-conditioned minima, for tight tolerances, and for energies with a declared null space (steps stay on
    its complement). A step costs one linearization, up to ``cg_steps`` Hessian-vector products and one gradient.
    Negative curvature is followed to the border of the region, so saddles are left behind.

    Args:
        cg_steps: most products per step; None: ``min(10 n, 1000)``.
        rtol: tolerance on ``|grad|`` relative to its norm at the start; None: 1e-8 in float64, 1e-4 in float32.
        atol: absolute tolerance on ``|grad|``.
        max_steps: step budget.

    Raises:
        ValueError: for options out of range.

    Example:
        >>> from sciopt import Minimize, best_response
        >>> problem = Minimize(lambda theta, phi: (theta**4).sum() + ((theta - phi) ** 2).sum())
        >>> best_response(problem, torch.ones(3), init=torch.zeros(3), solver=NewtonCG()).status.name
        'CONVERGED'

    References:
        Steihaug. "The conjugate gradient method and trust regions in large scale optimization". SIAM J. Numer. Anal. 20
        (1983). Conn, Gould, Toint. "Trust-region methods" (2000), ch. 6, and sec. 17.4.2 for rounding in the ratio.
    """

    solves: ClassVar = (Minimize, LeastSquares)
    cg_steps: int | None = None
    rtol: float | None = None
    atol: float = 0.0
    max_steps: int = 500

    def __post_init__(self) -> None:
        check_tolerances("NewtonCG", self.rtol, self.atol, self.max_steps)
        ok = self.cg_steps is None or self.cg_steps >= 1
        check_option("NewtonCG", "cg_steps", self.cg_steps, ok, ">= 1 or None", "Pass the most products per step.")

    def init(self, oracle: Oracle, x: Tensor) -> dict[str, Any]:
        value, grad = oracle.value_and_grad(x)
        start, size = norm(grad), safe_norm(x)
        zeros = torch.zeros_like(start)
        radius = torch.where(size > 0, size, 1.0)
        count = torch.zeros_like(start, dtype=torch.int64)
        return base_state(
            start,
            start,
            value=value,
            grad=grad,
            radius=radius,
            floor=zeros,
            stale=count,
            best=start,
            reach=1e10 * radius.detach(),
        )

    def step(self, oracle: Oracle, x: Tensor, state: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        value, radius = state["value"], state["radius"]
        grad, hessian = oracle.linearize(x)
        grad = hessian.project(grad)
        size = norm(grad)
        rtol = check_rtol_dtype("NewtonCG", self.rtol, x.dtype)
        target = quotient(0.1 * (self.atol + rtol * state["scale"]), size)
        forcing = torch.maximum(quotient(size, state["scale"]).clamp_min(0).sqrt().clamp_max(0.5), target)
        limit = self.cg_steps or min(10 * x.shape[-1], 1000)
        taken = steihaug(hessian, grad, radius, forcing.clamp_max(0.5), limit)
        trial = x + taken.step
        trial_value, trial_grad = oracle.value_and_grad(trial)

        slack = 10 * torch.finfo(x.dtype).eps * value.abs()
        ratio = quotient(value - trial_value + slack, taken.predicted + slack, -1.0).detach()
        close = (value - trial_value).abs() <= torch.finfo(x.dtype).eps ** (2 / 3) * value.abs()
        better = close & (norm(trial_grad) < size)  # values differ by rounding only: ask the gradient
        finite = torch.isfinite(trial_value) & torch.isfinite(norm(trial_grad))
        accept = ((ratio > 1e-4) | better) & finite
        moved = select(accept, trial, x)
        length = safe_norm(taken.step)
        shrink = ~finite | ((ratio < 0.25) & ~better)
        growth = torch.where(taken.border & (ratio > 0.75), torch.where(ratio > 0.9, 4.0, 2.0), 1.0)
        new = {
            **state,
            "value": torch.where(accept, trial_value, value),
            "grad": select(accept, trial_grad, state["grad"]),
            "radius": torch.where(shrink, 0.25 * torch.minimum(length, radius), growth * radius),
        }
        new["residual_norm"] = grad_norm = norm(new["grad"])
        where = norm(moved)
        new["floor"] = rounding_floor(taken.max_curvature.detach(), where)
        eps = torch.finfo(x.dtype).eps
        gained = (grad_norm < 0.9 * state["best"]) | (value - new["value"] > 10 * eps * value.abs()).detach()
        new["best"] = torch.minimum(state["best"], grad_norm)
        new["stale"] = torch.where(gained, 0, state["stale"] + 1)
        stuck = (new["radius"] <= eps * torch.maximum(where, norm(taken.step))).detach() & ~accept
        stuck = stuck | (new["radius"] < torch.finfo(x.dtype).tiny) | (new["stale"] >= 4 * STALE_AFTER)
        stuck = stuck | (accept & (new["stale"] >= STALE_AFTER))
        code = verdict(state["status_code"], stuck, Status.STAGNATED)
        new["status_code"] = verdict(code, (where > state["reach"]) | torch.isneginf(trial_value), Status.DIVERGED)
        return moved, new


def steihaug(hessian: LinearOperator, grad: Tensor, radius: Tensor, forcing: Tensor, limit: int) -> TrustStep:
    """Minimise the quadratic model by conjugate gradients until ``|r| <= forcing |grad|``, the border, or ``limit``."""
    step = torch.zeros_like(grad)
    residual = -grad
    direction = residual
    square = dot(residual, residual)
    stop = (forcing * square.sqrt().detach()) ** 2
    active = (square > stop) & torch.isfinite(square)
    border = torch.zeros_like(active)
    zeros = torch.zeros_like(radius)
    lowest, highest = torch.full_like(radius, torch.inf), zeros
    for _ in range(limit):
        if not any_row(active):
            break
        image = hessian.project(hessian.mv(direction))
        curvature = dot(direction, image)
        length2 = dot(direction, direction)
        rayleigh = quotient(curvature, length2).detach()
        lowest = torch.where(active, torch.minimum(lowest, rayleigh), lowest)
        highest = torch.where(active, torch.maximum(highest, rayleigh.abs()), highest)
        negative = ~(rayleigh > torch.finfo(grad.dtype).eps * highest)
        alpha = quotient(square, torch.where(negative, 0.0, curvature))
        inner, step2 = dot(step, direction), dot(step, step)
        ahead = step2 + 2 * alpha * inner + alpha * alpha * length2
        hits = active & (negative | (ahead >= radius * radius))
        room = torch.where(hits, (radius * radius - step2).clamp_min(0.0), 1.0)
        root = torch.where(hits, inner * inner + length2 * room, 1.0)
        root = torch.where(root > 0, torch.where(root > 0, root, 1.0).sqrt(), 0.0)
        # two forms of the positive root, each free of cancellation for its sign of `inner`
        far = torch.where(inner > 0, quotient(room, inner + root), quotient(root - inner, length2))
        move = torch.where(active, torch.where(hits, far, alpha), 0.0).unsqueeze(-1)
        step = step + move * direction
        residual = residual - move * select(active, image, torch.zeros_like(image))
        border = border | hits
        fresh = dot(residual, residual)
        active = active & ~hits & (fresh > stop)
        beta = torch.where(active, quotient(fresh, square), 0.0)
        direction = select(active, residual + beta.unsqueeze(-1) * direction, direction)
        square = torch.where(active, fresh, square)
    predicted = -0.5 * (dot(grad, step) - dot(step, residual))
    return TrustStep(step, predicted, border, highest, lowest)
