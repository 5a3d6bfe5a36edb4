"""Gauss-Newton with Levenberg-Marquardt damping, one damping for each problem."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from sciopt.checks import check_option, check_tolerances
from sciopt.inner.abstract import AbstractIterativeSolver
from sciopt.inner.rows import any_row, base_state, dot, norm, quotient, rounding_floor, select, verdict
from sciopt.linsolve import LinearOperator
from sciopt.problem.minimize import LeastSquares
from sciopt.problem.system import Oracle
from sciopt.solution import Status

__all__ = ["GaussNewton"]

STALE_AFTER = 15


@final
@dataclass(frozen=True, kw_only=True)
class GaussNewton(AbstractIterativeSolver):
    """Levenberg-Marquardt: ``(J^T J + damping D) p = -J^T r``; the solver for `LeastSquares`.

    Use it when residuals are small at the solution: it converges quadratically without second derivatives. A step costs
    one linearization, one gradient, and either ``min(m, n)`` products and a Cholesky factorisation (up to ``dense_limit``
    unknowns, D the diagonal of ``J^T J``), or conjugate gradients on the normal equations.

    Args:
        damping: damping at the start, relative to the curvature.
        dense_limit: most unknowns for the dense solve.
        cg_steps: most products of the iterative solve; None: ``min(10 n, 1000)``.
        rtol: tolerance on ``|J^T r|`` relative to its norm at the start; None: 1e-8 in float64, 1e-4 in float32.
        atol: absolute tolerance on ``|J^T r|``.
        max_steps: step budget.

    Raises:
        ValueError: for options out of range.

    Example:
        >>> from sciopt import LeastSquares, best_response
        >>> problem = LeastSquares(lambda theta, phi: torch.exp(theta) - phi)
        >>> best_response(problem, torch.ones(2), init=torch.ones(2), solver=GaussNewton()).status.name
        'CONVERGED'

    References:
        Marquardt. "An algorithm for least-squares estimation of nonlinear parameters". J. SIAM 11 (1963). Nielsen.
        "Damping parameter in Marquardt's method". Technical University of Denmark (1999), damping update.
    """

    solves: ClassVar = (LeastSquares,)
    damping: float = 1e-3
    dense_limit: int = 256
    cg_steps: int | None = None
    rtol: float | None = None
    atol: float = 0.0
    max_steps: int = 200

    def __post_init__(self) -> None:
        check_tolerances("GaussNewton", self.rtol, self.atol, self.max_steps)
        check_option("GaussNewton", "damping", self.damping, self.damping > 0, "> 0", "Use 1e-3.")
        check_option("GaussNewton", "dense_limit", self.dense_limit, self.dense_limit >= 0, ">= 0", "Use 256.")
        ok = self.cg_steps is None or self.cg_steps >= 1
        check_option("GaussNewton", "cg_steps", self.cg_steps, ok, ">= 1 or None", "Pass the most products per step.")

    def init(self, oracle: Oracle, x: Tensor) -> dict[str, Any]:
        value, grad = oracle.value_and_grad(x)
        start = norm(grad)
        return base_state(
            start,
            start,
            value=value,
            grad=grad,
            damping=torch.full_like(start, self.damping),
            boost=torch.full_like(start, 2.0),
            floor=torch.zeros_like(start),
            best=start,
            stale=torch.zeros_like(start, dtype=torch.int64),
        )

    def step(self, oracle: Oracle, x: Tensor, state: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        value, damping = state["value"], state["damping"]
        residuals, jacobian = oracle.jacobian(x)
        assert jacobian.rmv is not None
        grad = jacobian.rmv(residuals)
        if x.shape[-1] <= self.dense_limit:
            move, curvature = dense_move(jacobian, grad, damping)
        else:
            limit = self.cg_steps or min(10 * x.shape[-1], 1000)
            move, curvature = iterative_move(jacobian, grad, damping, limit)
        image = jacobian.mv(move)
        predicted = -dot(grad, move) - 0.5 * dot(image, image)
        trial = x + move
        trial_value, trial_grad = oracle.value_and_grad(trial)

        eps = torch.finfo(x.dtype).eps
        slack = 10 * eps * value.abs()
        ratio = quotient(value - trial_value + slack, predicted + slack, -1.0).detach()
        size = norm(grad)
        close = (value - trial_value).abs() <= eps ** (2 / 3) * value.abs()
        better = close & (norm(trial_grad) < size)
        finite = torch.isfinite(trial_value) & torch.isfinite(norm(trial_grad))
        accept = finite & ((ratio > 1e-4) | better)
        ratio = torch.where(better, ratio.clamp_min(1.0), ratio)
        moved = select(accept, trial, x)
        less = damping * (1 - (2 * ratio - 1) ** 3).clamp(1 / 3, 2.0)
        grad_now = select(accept, trial_grad, state["grad"])
        reached, where = norm(grad_now), norm(moved)
        gained = (reached < 0.9 * state["best"]) | (accept & (value - trial_value > 10 * eps * value.abs()))
        stale = torch.where(gained, 0, state["stale"] + 1)
        new_damping = torch.where(accept, less.clamp_min(1e-15), damping * state["boost"])
        stuck = (stale >= STALE_AFTER) | (new_damping > 1 / eps**2)
        new = {
            **state,
            "value": torch.where(accept, trial_value, value),
            "grad": grad_now,
            "damping": new_damping,
            "boost": torch.where(accept, 2.0, 2 * state["boost"]),
            "best": torch.minimum(state["best"], reached),
            "stale": stale,
            "residual_norm": reached,
            "floor": rounding_floor(curvature.detach(), where),
            "status_code": verdict(state["status_code"], stuck, Status.STAGNATED),
        }
        return moved, new


def dense_move(jacobian: LinearOperator, grad: Tensor, damping: Tensor) -> tuple[Tensor, Tensor]:
    """The damped step by Cholesky, and the largest diagonal entry of ``J^T J``."""
    m, n = jacobian.shape
    matrix = jacobian.as_matrix() if n <= m else jacobian.transpose().as_matrix().mT
    gram = matrix.mT @ matrix
    diagonal = gram.diagonal(dim1=-2, dim2=-1)
    top = diagonal.amax(-1)
    weights = torch.maximum(diagonal, 1e-6 * top.unsqueeze(-1)) * damping.unsqueeze(-1)
    tiny = torch.finfo(grad.dtype).eps * top.unsqueeze(-1) + torch.finfo(grad.dtype).tiny
    factor, info = torch.linalg.cholesky_ex(gram + torch.diag_embed(weights + tiny))
    bad = (info != 0) | ~torch.isfinite(top)
    eye = torch.eye(n, dtype=grad.dtype, device=grad.device)
    move = -torch.cholesky_solve(grad.unsqueeze(-1), select(bad, eye, factor)).squeeze(-1)
    return select(bad, -quotient(torch.ones_like(top), top).unsqueeze(-1) * grad, move), top


def iterative_move(jacobian: LinearOperator, grad: Tensor, damping: Tensor, limit: int) -> tuple[Tensor, Tensor]:
    """The damped step by conjugate gradients on the normal equations, D a multiple of the identity."""
    assert jacobian.rmv is not None
    image = jacobian.mv(grad)
    curvature = quotient(dot(image, image), dot(grad, grad))
    shift = (damping * curvature).unsqueeze(-1)
    move, residual = torch.zeros_like(grad), -grad
    direction, square = residual, dot(residual, residual)
    stop = 1e-6 * square.detach()
    active = square > stop
    for _ in range(limit):
        if not any_row(active):
            break
        product = jacobian.rmv(jacobian.mv(direction)) + shift * direction
        bottom = dot(direction, product)
        length = torch.where(active, quotient(square, bottom), 0.0).unsqueeze(-1)
        move, residual = move + length * direction, residual - length * product
        fresh = dot(residual, residual)
        direction = residual + quotient(fresh, square).unsqueeze(-1) * direction
        square = fresh
        active = active & (fresh > stop) & (bottom > 0)
    return move, curvature
