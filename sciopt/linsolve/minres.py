"""MINRES for symmetric systems, definite or not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from sciopt.checks import check_tolerances
from sciopt.linsolve.abstract import AbstractLinearSolver, AbstractPreconditioner
from sciopt.linsolve.iteration import Product, Progress, dot, preconditioning, probe_norm, run
from sciopt.linsolve.operator import LinearOperator, format_tags
from sciopt.linsolve.ritz import Coefficients, lanczos_extremes
from sciopt.solution import Solution, Status

__all__ = ["MINRES"]


@final
@dataclass(frozen=True, kw_only=True)
class MINRES(AbstractLinearSolver):
    """Smallest residual over the Krylov space of a symmetric operator, batched.

    The method for symmetric indefinite systems (saddle points, Hessians that may have negative curvature); one product
    per step, seven vectors of memory. A right-hand side outside the range of A is the status SINGULAR;
    use LSMR for the least-squares solution.

    Args:
        rtol: relative tolerance on ``|b - A x| / |b|``, unitless; default 1e-8 in float64, 1e-4 in float32.
        atol: absolute tolerance on ``|b - A x|``, in units of b.
        max_steps: step budget; default ``10 n``, between 100 and 10,000.
        preconditioner: symmetric positive definite approximation of the inverse (of ``|A|``).
        ritz: compute the curvature seen; in large batches it costs about as much as the steps.
    Returns:
        From `solve`: `Solution`; ``aux["min_ritz"]`` and ``aux["max_ritz"]`` ``(*batch,)`` are the extreme curvatures
        of A that were seen: Ritz values, or with a preconditioner the extreme Rayleigh quotients of the Lanczos
        vectors. NaN for rows without a step.
    Raises:
        ValueError: for options out of range, or an operator not tagged SYMMETRIC.
    Example:
        >>> from sciopt.linsolve import Tag, matrix_operator
        >>> A = matrix_operator(torch.tensor([[0.0, 2.0], [2.0, 0.0]]), tags=(Tag.SYMMETRIC,))
        >>> MINRES().solve(A, torch.tensor([2.0, 4.0])).value.round(decimals=4)
        tensor([2., 1.])

    References:
        Paige, Saunders. "Solution of sparse indefinite systems of linear equations". SIAM J. Numer. Anal. 12, 1975.
        Choi, Paige, Saunders. "MINRES-QLP". SIAM J. Sci. Comput. 33, 2011. Section 2 (residual, norm of A r).
    """

    rtol: float | None = None
    atol: float = 0.0
    max_steps: int | None = None
    preconditioner: AbstractPreconditioner | None = None
    ritz: bool = True

    def __post_init__(self) -> None:
        check_tolerances("MINRES", self.rtol, self.atol, self.max_steps)

    def solve(self, operator: LinearOperator, rhs: Tensor, *, x0: Tensor | None = None) -> Solution:
        """See `AbstractLinearSolver.solve`."""
        if not operator.symmetric:
            raise ValueError(
                f"MINRES: expected an operator tagged SYMMETRIC, got tags {format_tags(operator.tags)}. "
                "Use GMRES or BiCGSTAB, or tag the operator if you know it holds."
            )
        with torch.no_grad():
            apply = preconditioning(operator, self.preconditioner)

        def recurrence(progress: Progress, budget: int) -> None:
            iterate(operator, apply, progress, budget, self.ritz)

        return run(
            "MINRES", operator, rhs, x0, rtol=self.rtol, atol=self.atol, max_steps=self.max_steps, recurrence=recurrence
        )


def iterate(operator: LinearOperator, apply: Product | None, progress: Progress, budget: int, ritz: bool) -> None:
    """One run of the Lanczos process with its QR factorisation over the running rows.

    Stopped rows have zero vectors and zero coefficients.
    """
    eps = torch.finfo(progress.x.dtype).eps
    x, r = progress.x, progress.residual
    older, newer = torch.zeros_like(r), r.clone()  # unnormalised Lanczos vectors
    z = apply(newer).clone() if apply else newer
    active = progress.reject(torch.isfinite(dot(newer, z)), newer, z) if apply else progress.running
    w1, w2 = torch.zeros_like(r), torch.zeros_like(r)
    beta = dot(newer, z).clamp(min=0).sqrt()
    zero = torch.zeros_like(beta)
    last_beta, dbar, epsilon, cs, sn, phibar = zero, zero, zero, zero - 1, zero, beta
    low, high = torch.full_like(beta, torch.nan), torch.full_like(beta, torch.nan)
    coefficients = Coefficients(beta)
    probe = probe_norm(operator, x)
    size = zero if apply else probe
    count = int(active.sum())
    for k in range(budget):
        if not count:
            break
        inverse = torch.where(active, 1 / beta, 0)
        v = z * inverse.unsqueeze(-1)
        y = progress.guard(operator.project(operator.mv(v)))
        if k:
            y = torch.addcmul(y, older, torch.where(active, beta / last_beta, 0).unsqueeze(-1), value=-1)
        alpha = dot(v, y)
        y = torch.addcmul(y, newer, (alpha * inverse).unsqueeze(-1), value=-1)
        older, newer = newer, y
        z = progress.guard(apply(newer)) if apply else newer
        last_beta, square = beta, dot(newer, z)
        beta = square.clamp(min=0).sqrt()
        size = torch.fmax(size, torch.hypot(torch.hypot(alpha, beta), last_beta if k else zero))
        beta = torch.where(beta <= eps * size, 0, beta)  # the Krylov space is exhausted

        last_epsilon, delta = epsilon, cs * dbar + sn * alpha
        gbar = sn * dbar - cs * alpha
        epsilon, dbar = sn * beta, -cs * beta
        gamma = torch.hypot(gbar, beta)
        flat = torch.hypot(gbar, dbar) <= eps**0.75 * size  # |A r| / |r| of the residual before this step
        ok = active & ~flat & (gamma > 0) & torch.isfinite(alpha) & (square > -eps * size)
        scale = torch.where(ok, 1 / gamma, 0)
        cs, sn = torch.where(ok, gbar * scale, 0), torch.where(ok, beta * scale, 0)
        phi, phibar = cs * phibar, torch.where(ok, sn * phibar, phibar)
        w1.mul_((-last_epsilon * scale).unsqueeze(-1)).addcmul_(w2, torch.where(ok, -delta * scale, 0).unsqueeze(-1))
        w1.addcmul_(torch.where(ok.unsqueeze(-1), v, 0) if apply else v, scale.unsqueeze(-1))
        w1, w2 = w2, w1
        x.addcmul_(w2, phi.unsqueeze(-1))
        if apply:
            r.mul_((sn * sn).unsqueeze(-1)).addcmul_(
                newer, torch.where(ok & (beta > 0), -phibar * cs / beta, 0).unsqueeze(-1)
            )
            norm = torch.linalg.vector_norm(r, dim=-1)
            rayleigh = alpha / dot(v, v)
            low, high = torch.fmin(low, rayleigh), torch.fmax(high, rayleigh)
        else:
            norm = phibar.abs()
            if ritz:
                coefficients.add(alpha, beta, active)
        lost = torch.linalg.vector_norm(x, dim=-1) * (50 * eps * probe) > progress.rhs_norm  # A x = 0 to rounding
        go = ok & (norm > progress.threshold) & (beta > 0) & ~lost
        running = int(go.sum())  # the one host sync of the step
        if running != count:
            stopped = active & ~go
            progress.settle(stopped & ok, Status.CONVERGED, k + 1)
            progress.settle(stopped & ~ok, Status.SINGULAR, k)
            progress.settle(stopped & ok & lost, Status.SINGULAR)
            progress.settle(stopped & ~ok & (norm <= 10 * eps * progress.rhs_norm), Status.STAGNATED)
            progress.settle(stopped & (square <= -eps * size), Status.BREAKDOWN)
            broken = stopped & ~(torch.isfinite(alpha) & torch.isfinite(square))
            progress.settle(broken, Status.NONFINITE)
            progress.poison(broken)
            still = ~go.unsqueeze(-1)
            older, newer = older.masked_fill(still, 0), newer.masked_fill(still, 0)
            z = z.masked_fill(still, 0) if apply else newer
            for vector in (r, w1, w2):
                vector.masked_fill_(still, 0)
            beta, dbar, epsilon, cs, sn = (torch.where(go, c, 0) for c in (beta, dbar, epsilon, cs, sn))
            active, count = go, running
    else:
        progress.steps = torch.where(active, progress.steps + budget, progress.steps)
    if coefficients.rows:
        diagonal, beside, valid = coefficients.stacked()
        first, last = lanczos_extremes(diagonal, beside, valid)
        low, high = torch.fmin(low, first), torch.fmax(high, last)
    progress.operator_norm = torch.fmax(progress.operator_norm, size if not apply else zero)
    progress.note(min_ritz=low, max_ritz=high)
