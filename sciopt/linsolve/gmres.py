"""Restarted GMRES for general square systems."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from sciopt.checks import check_option, check_tolerances
from sciopt.linsolve.abstract import AbstractLinearSolver, AbstractPreconditioner
from sciopt.linsolve.iteration import Product, Progress, preconditioning, run
from sciopt.linsolve.operator import LinearOperator
from sciopt.solution import Solution, Status

__all__ = ["GMRES"]


@final
@dataclass(frozen=True, kw_only=True)
class GMRES(AbstractLinearSolver):
    """Restarted GMRES, batched, with right preconditioning.

    For general square systems: smallest residual over the Krylov space, one product per step, ``restart + 1`` vectors
    of memory, orthogonalisation of cost ``restart * n`` per step. It can stand still when the restart length is too
    small: the status is then STAGNATED (or SINGULAR, when the residual is seen to lie outside the range of A).

    Args:
        rtol: relative tolerance on ``|b - A x| / |b|``, unitless; default 1e-8 in float64, 1e-4 in float32.
        atol: absolute tolerance on ``|b - A x|``, in units of b.
        max_steps: budget of products over all cycles; default ``10 n``, between 100 and 10,000.
        restart: length of a cycle.
        preconditioner: approximation of the inverse.
    Returns:
        From `solve`: `Solution` with the true residual norm.
    Raises:
        ValueError: for options out of range, or an operator that is not square.
    Example:
        >>> from sciopt.linsolve import matrix_operator
        >>> solution = GMRES().solve(matrix_operator(torch.tensor([[0.0, 2.0], [1.0, 0.0]])), torch.tensor([2.0, 3.0]))
        >>> solution.value.round(decimals=3)
        tensor([3., 1.])

    References:
        Saad, Schultz. "GMRES". SIAM J. Sci. Stat. Comput. 7, 1986. Classical Gram-Schmidt is applied twice.
    """

    rtol: float | None = None
    atol: float = 0.0
    max_steps: int | None = None
    restart: int = 30
    preconditioner: AbstractPreconditioner | None = None

    def __post_init__(self) -> None:
        check_tolerances("GMRES", self.rtol, self.atol, self.max_steps)
        ok = isinstance(self.restart, int) and not isinstance(self.restart, bool) and self.restart >= 1
        check_option("GMRES", "restart", self.restart, ok, "to be an int >= 1", "Pass the length of a cycle, e.g. 30.")

    def solve(self, operator: LinearOperator, rhs: Tensor, *, x0: Tensor | None = None) -> Solution:
        """See `AbstractLinearSolver.solve`."""
        with torch.no_grad():
            apply = preconditioning(operator, self.preconditioner)

        def recurrence(progress: Progress, budget: int) -> None:
            cycle(operator, apply, progress, min(self.restart, budget, operator.shape[1]))

        return run(
            "GMRES", operator, rhs, x0, rtol=self.rtol, atol=self.atol, max_steps=self.max_steps, recurrence=recurrence
        )


def cycle(operator: LinearOperator, apply: Product | None, progress: Progress, length: int) -> None:
    """One cycle of at most ``length`` steps from the current residual; the rotations are kept as one matrix."""
    r = progress.residual
    batch, n = r.shape[:-1], r.shape[-1]
    eps = torch.finfo(r.dtype).eps
    active = progress.running
    gamma = torch.linalg.vector_norm(r, dim=-1)
    basis = r.new_empty(*batch, length + 1, n)
    basis[..., 0, :] = torch.where(active.unsqueeze(-1), r / gamma.unsqueeze(-1), 0)
    triangle = torch.eye(length, dtype=r.dtype, device=r.device).expand(*batch, length, length).clone()
    rotations = torch.eye(length + 1, dtype=r.dtype, device=r.device).expand(*batch, length + 1, length + 1).clone()
    reduced = r.new_zeros(*batch, length)
    count, used = int(active.sum()), 0
    for j in range(length):
        if not count:
            break
        direction = basis[..., j, :]
        w = operator.project(operator.mv(apply(direction) if apply else direction)).unsqueeze(-1)
        known = basis[..., : j + 1, :]
        size = torch.linalg.vector_norm(w, dim=(-2, -1))
        h = known @ w
        w = w - known.mT @ h
        again = known @ w
        w = (w - known.mT @ again).squeeze(-1)
        column = (rotations[..., : j + 1, : j + 1] @ (h + again)).squeeze(-1)
        beside = torch.linalg.vector_norm(w, dim=-1)
        beside = torch.where(beside <= 10 * eps * size, 0, beside)  # the Krylov space is exhausted
        progress.operator_norm = torch.fmax(progress.operator_norm, size)
        rho = torch.hypot(column[..., j], beside)
        ok = active & (rho > 50 * eps * progress.operator_norm)
        c, s = torch.where(ok, column[..., j] / rho, 1), torch.where(ok, beside / rho, 0)
        entry = torch.cat([column[..., :j], rho.unsqueeze(-1)], -1)
        triangle[..., : j + 1, j] = torch.where(ok.unsqueeze(-1), entry, triangle[..., : j + 1, j])
        reduced[..., j] = torch.where(ok, c * gamma, 0)
        gamma = torch.where(ok, -s * gamma, gamma)
        upper, lower = rotations[..., j, :].clone(), rotations[..., j + 1, :].clone()
        c1, s1 = c.unsqueeze(-1), s.unsqueeze(-1)
        rotations[..., j, :], rotations[..., j + 1, :] = c1 * upper + s1 * lower, c1 * lower - s1 * upper
        go = ok & (gamma.abs() > progress.threshold) & (beside > 0)
        basis[..., j + 1, :] = torch.where(go.unsqueeze(-1), w / beside.unsqueeze(-1), 0)
        used = j + 1
        running = int(go.sum())  # the one host sync of the step
        if running != count:
            stopped = active & ~go
            progress.settle(stopped & ok, Status.CONVERGED, j + 1)
            progress.settle(stopped & ~ok, Status.SINGULAR, j)
            progress.settle(stopped & ~torch.isfinite(size), Status.NONFINITE)
            active, count = go, running
    progress.steps = torch.where(active, progress.steps + used, progress.steps)
    if used:
        y = torch.linalg.solve_triangular(triangle[..., :used, :used], reduced[..., :used].unsqueeze(-1), upper=True)
        update = (basis[..., :used, :].mT @ y).squeeze(-1)
        if apply:
            poisoned = (progress.status == int(Status.NONFINITE)).unsqueeze(-1)
            update = apply(update).masked_fill(poisoned, 0)
        progress.x.add_(update)
