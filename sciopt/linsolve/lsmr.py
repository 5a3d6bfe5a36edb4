"""LSMR for least squares and systems of any shape."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from sciopt.checks import check_tolerances, default_rtol
from sciopt.linsolve.abstract import AbstractLinearSolver
from sciopt.linsolve.iteration import Progress, normal_tolerance, run
from sciopt.linsolve.operator import LinearOperator
from sciopt.solution import Solution, Status

__all__ = ["LSMR"]


@final
@dataclass(frozen=True, kw_only=True)
class LSMR(AbstractLinearSolver):
    """Least squares by Golub-Kahan bidiagonalisation, batched: MINRES on the normal equations, better conditioned.

    For rectangular or rank-deficient operators; from a zero start it finds the solution of smallest norm. One product
    and one transposed product per step; convergence depends on the square of the condition number.

    Converged means ``|b - A x| <= atol + rtol |b|``, or, with more equations than unknowns,
    ``|A^T (b - A x)| <= rtol |A| |b - A x|``. A least-squares solution that leaves a residual where there are at least
    as many unknowns as equations has the status SINGULAR.

    Args:
        rtol: relative tolerance, unitless; default 1e-8 in float64, 1e-4 in float32.
        atol: absolute tolerance on ``|b - A x|``, in units of b.
        max_steps: step budget; default ``10 n``, between 100 and 10,000.
    Returns:
        From `solve`: `Solution`; ``aux["normal_residual_norm"]`` is ``|A^T (b - A x)|`` ``(*batch,)``.
    Raises:
        ValueError: for options out of range, or an operator without transpose.
    Example:
        >>> from sciopt.linsolve import matrix_operator
        >>> A = matrix_operator(torch.tensor([[1.0, 0.0], [1.0, 1.0], [1.0, 2.0]]))
        >>> LSMR().solve(A, torch.tensor([1.0, 3.0, 5.0])).value.round(decimals=3)
        tensor([1., 2.])

    References:
        Fong, Saunders. "LSMR: an iterative algorithm for sparse least-squares problems". SIAM J. Sci. Comput. 33, 2011.
        Sections 2 and 3 (estimates of ``|r|``, ``|A^T r|`` and ``|A|``).
    """

    rtol: float | None = None
    atol: float = 0.0
    max_steps: int | None = None

    def __post_init__(self) -> None:
        check_tolerances("LSMR", self.rtol, self.atol, self.max_steps)

    def solve(self, operator: LinearOperator, rhs: Tensor, *, x0: Tensor | None = None) -> Solution:
        """See `AbstractLinearSolver.solve`."""
        operator.transpose()  # refuses an operator without one
        rtol = self.rtol

        def recurrence(progress: Progress, budget: int) -> None:
            relative = default_rtol(operator.dtype) if rtol is None else rtol
            iterate(operator, progress, budget, normal_tolerance(operator, relative))

        return run(
            "LSMR", operator, rhs, x0, rtol=rtol, atol=self.atol, max_steps=self.max_steps, recurrence=recurrence,
            least_squares=True,
        )  # fmt: skip


def rotation(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``c, s, r`` with ``c a + s b = r >= 0``; the identity where both are zero."""
    r = torch.hypot(a, b)
    some = r > 0
    return torch.where(some, a / r, 1), torch.where(some, b / r, 0), r


def iterate(operator: LinearOperator, progress: Progress, budget: int, normal_tol: float) -> None:
    """One run of the recurrence over the running rows; stopped rows have zero vectors."""
    eps = torch.finfo(progress.x.dtype).eps
    transposed = operator.transpose()
    active = progress.running
    x = progress.x

    def normalise(vector: Tensor, scale: Tensor | float) -> tuple[Tensor, Tensor]:
        norm = torch.linalg.vector_norm(vector, dim=-1)
        norm = torch.where(norm <= eps * scale, 0, norm)
        return vector * torch.where(active & (norm > 0), 1 / norm, 0).unsqueeze(-1), norm

    u, beta = normalise(progress.residual, 0.0)
    v, alpha = normalise(operator.project(transposed.mv(u)), 0.0)
    sound = torch.isfinite(alpha)
    progress.settle(active & ~sound, Status.NONFINITE)
    progress.poison(~sound)
    active = active & sound
    v, alpha = torch.where(active.unsqueeze(-1), v, 0), torch.where(active, alpha, 0)
    zero = torch.zeros_like(alpha)
    one = zero + 1
    alphabar, zetabar, rho, rhobar, cbar, sbar = alpha, alpha * beta, one, one, one, zero
    h, hbar = v.clone(), torch.zeros_like(v)
    betadd, betad, rhod_old, tau_old, theta_tilde, zeta = beta, zero, one, zero, zero, zero
    square = alpha * alpha
    count = int(active.sum())
    for k in range(budget):
        if not count:
            break
        size = square.sqrt()
        raw = progress.guard(operator.project(operator.mv(v)))
        u, beta = normalise(torch.addcmul(raw, u, alpha.unsqueeze(-1), value=-1), size)
        raw = progress.guard(operator.project(transposed.mv(u)))
        v, alpha = normalise(torch.addcmul(raw, v, beta.unsqueeze(-1), value=-1), size)

        rho_old, rhobar_old, zeta_old = rho, rhobar, zeta
        c, s, rho = rotation(alphabar, beta)
        theta, alphabar = s * alpha, c * alpha
        thetabar = sbar * rho
        cbar, sbar, rhobar = rotation(cbar * rho, theta)
        zeta, zetabar = cbar * zetabar, -sbar * zetabar
        ok = active & torch.isfinite(alpha) & torch.isfinite(beta) & (rho > 0) & (rhobar > 0)
        hbar.mul_(torch.where(ok, -thetabar * rho / (rho_old * rhobar_old), 0).unsqueeze(-1)).add_(h)
        x.addcmul_(hbar, torch.where(ok, zeta / (rho * rhobar), 0).unsqueeze(-1))
        h.mul_(torch.where(ok, -theta / rho, 0).unsqueeze(-1)).add_(v)

        betahat, betadd = c * betadd, -s * betadd
        ct, st, rho_tilde = rotation(rhod_old, thetabar)
        theta_tilde_old, theta_tilde = theta_tilde, st * rhobar
        rhod_old = ct * rhobar
        betad = -st * betad + ct * betahat
        tau_old = (zeta_old - theta_tilde_old * tau_old) / rho_tilde
        tau = (zeta - theta_tilde * tau_old) / rhod_old
        norm = torch.hypot(betad - tau, betadd)
        square = square + beta * beta
        size = square.sqrt()
        square = square + alpha * alpha
        solved = norm <= progress.threshold
        flat = zetabar.abs() <= normal_tol * size * norm
        go = ok & ~(solved | flat) & (alpha > 0)
        progress.operator_norm = torch.where(ok, size, progress.operator_norm)
        running = int(go.sum())  # the one host sync of the step
        if running != count:
            stopped = active & ~go
            progress.settle(stopped, Status.CONVERGED, k + 1)
            progress.settle(stopped & ~ok, Status.SINGULAR)
            broken = stopped & ~(torch.isfinite(alpha) & torch.isfinite(beta))
            progress.settle(broken, Status.NONFINITE)
            progress.poison(broken)
            still = ~go.unsqueeze(-1)
            u, v = u.masked_fill(still, 0), v.masked_fill(still, 0)
            h.masked_fill_(still, 0)
            hbar.masked_fill_(still, 0)
            alpha, beta = torch.where(go, alpha, 0), torch.where(go, beta, 0)
            active, count = go, running
    else:
        progress.steps = torch.where(active, progress.steps + budget, progress.steps)
