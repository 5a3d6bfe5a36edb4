"""A linear solver for ``I - M``: the fixed-point iteration where it is seen to contract well, Krylov where it is not."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, log
from typing import final

import torch
from torch import Tensor

from sciopt.checks import check_option, check_rtol_dtype, check_tolerances
from sciopt.hypergradients.cascade import Cascade
from sciopt.linsolve import LinearOperator, Neumann
from sciopt.linsolve.abstract import AbstractLinearSolver
from sciopt.solution import Solution, Status

__all__ = ["NeumannOrKrylov"]


@final
@dataclass(frozen=True, kw_only=True)
class NeumannOrKrylov(AbstractLinearSolver):
    """A few Neumann terms, whose residuals tell how well ``M = I - A`` contracts; then more of them, or `Cascade`.

    For adjoints of fixed points, where A is the identity minus the derivative of the map. A Neumann term costs one product
    and no inner products but one; a map that contracts well needs few of them. Where the worst row would need more than
    ``patience`` terms from where it stands, `Cascade` (dense, GMRES, BiCGSTAB) goes on from there. Nothing is lost by
    trying: the first terms are a start for Krylov; rows that the series makes worse start anew.

    Args:
        rtol: relative tolerance on ``|b - A x| / |b|``; None: default of the dtype (as part of `Implicit`: a tenth of the
            relative inner residual).
        trial: Neumann terms before the decision.
        patience: most further terms that are preferred to Krylov.

    Returns:
        From `solve`: `Solution` with ``aux["contraction_rate"]`` ``(*batch,)``, the factor by which a term shrank the
        residual (0 for a row that needed none), and ``aux["note"]``.

    Raises:
        ValueError: for options out of range.

    Example:
        >>> from sciopt.linsolve import matrix_operator
        >>> A = matrix_operator(torch.eye(60) - 0.1 * torch.diag(torch.ones(59), 1))
        >>> solution = NeumannOrKrylov().solve(A, torch.ones(60))
        >>> solution.status.name, solution.aux["note"][:24]
        ('CONVERGED', 'NeumannOrKrylov: Neumann')

    References:
        Bai, Kolter, Koltun. "Deep equilibrium models". NeurIPS 2019, eq. 12 (the fixed-point form of the adjoint).
    """

    rtol: float | None = None
    trial: int = 6
    patience: int = 25

    def __post_init__(self) -> None:
        check_tolerances("NeumannOrKrylov", self.rtol, 0.0)
        for name in ("trial", "patience"):
            value = getattr(self, name)
            ok = isinstance(value, int) and not isinstance(value, bool) and value >= 1
            check_option("NeumannOrKrylov", name, value, ok, "to be an int >= 1", "Leave the default.")

    def solve(self, operator: LinearOperator, rhs: Tensor, *, x0: Tensor | None = None) -> Solution:
        """See `AbstractLinearSolver.solve`."""
        rtol = check_rtol_dtype("NeumannOrKrylov", self.rtol, operator.dtype)
        size = torch.linalg.vector_norm(rhs, dim=-1)
        first = Neumann(rtol=rtol, max_steps=self.trial).solve(operator, rhs, x0=x0)
        ratio = torch.where(size > 0, first.residual_norm / torch.where(size > 0, size, 1.0), 0.0)
        rate = torch.where(first.num_steps > 0, ratio ** (1 / first.num_steps.clamp_min(1)), 0.0)
        left = first.status_code > int(Status.CONVERGED)
        hopeless = first.status_code == int(Status.NONFINITE)
        slowest = float(torch.where(left & ~hopeless, rate, 0.0).max()) if rate.numel() else 0.0
        worst = float(torch.where(left & ~hopeless, ratio, 0.0).max()) if rate.numel() else 0.0
        aux = {**first.aux, "contraction_rate": rate}
        if worst == 0.0:
            return self._report(first, aux, "Neumann", slowest)
        terms = ceil(log(max(rtol, 1e-300) / worst) / log(slowest)) if slowest < 1 else self.patience + 1
        bad = (first.status_code == int(Status.DIVERGED)) | hopeless
        start = torch.where(bad.unsqueeze(-1), 0.0, first.value)
        if terms <= self.patience:
            more = Neumann(rtol=rtol, max_steps=2 * terms + 2).solve(operator, rhs, x0=start)
            if bool((more.converged | hopeless).all()):
                return self._report(joined(first, more), {**more.aux, **aux}, "Neumann", slowest)
            start = torch.where((more.status_code == int(Status.MAX_STEPS)).unsqueeze(-1), more.value, start)
            first = joined(first, more)
        krylov = Cascade(rtol=rtol).solve(operator, rhs, x0=start)
        return self._report(joined(first, krylov), {**krylov.aux, **aux}, "Cascade", slowest)

    def _report(self, solution: Solution, aux: dict[str, object], what: str, rate: float) -> Solution:
        note = f"NeumannOrKrylov: {what} at an observed contraction rate of {rate:.2f}"
        if "note" in aux:
            note += f"; {aux['note']}"
        return Solution(
            value=solution.value,
            status_code=solution.status_code,
            residual_norm=solution.residual_norm,
            num_steps=solution.num_steps,
            aux={**aux, "note": note},
        )


def joined(first: Solution, second: Solution) -> Solution:
    """The second solve's answer with the steps of both."""
    return Solution(
        value=second.value,
        status_code=second.status_code,
        residual_norm=second.residual_norm,
        num_steps=first.num_steps + second.num_steps,
        aux=second.aux,
    )
