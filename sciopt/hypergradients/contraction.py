"""A linear solver for ``I - M``: the fixed-point iteration where it is seen to contract well, Krylov where it is not."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil, inf, log
from typing import final

import torch
from torch import Tensor

from sciopt.checks import check_option, check_rtol_dtype, check_tolerances
from sciopt.hypergradients.cascade import DENSE_LIMIT, Cascade
from sciopt.linsolve import BiCGSTAB, LinearOperator
from sciopt.linsolve.abstract import AbstractLinearSolver
from sciopt.linsolve.iteration import Progress, run
from sciopt.linsolve.neumann import iterate
from sciopt.solution import Solution, Status

__all__ = ["NeumannOrKrylov"]

SHORT = 300  # steps of BiCGSTAB, two products each, before the long recurrences are tried


@final
@dataclass(frozen=True, kw_only=True)
class NeumannOrKrylov(AbstractLinearSolver):
    """A few Neumann terms, whose residuals tell how well ``M = I - A`` contracts; then more of them, or a Krylov method.

    For adjoints of fixed points, where A is the identity minus the derivative of the map. A Neumann term costs one product
    and no inner products but one; a map that contracts well needs few of them. Where the worst row would need more than
    ``patience`` terms from where it stands, `BiCGSTAB` goes on from there: a map that contracts at all has the eigenvalues of
    A in the disc ``|1 - z| < 1``, where its short recurrence is as good as a long one. What it fails on, and small systems,
    `Cascade` solves (dense, GMRES). Nothing is lost by trying: the first terms are a start for Krylov; rows that were made
    worse start anew.

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
        trial = Trial(operator, rtol, self.trial, self.patience)
        most = self.trial + 2 * self.patience + 2
        first = run(
            "NeumannOrKrylov", operator, rhs, x0, rtol=rtol, atol=0.0, max_steps=most, recurrence=trial.recurrence
        )
        rate = torch.zeros_like(first.residual_norm) if trial.rate is None else trial.rate
        aux = {**first.aux, "contraction_rate": rate}
        nonfinite = first.status_code == int(Status.NONFINITE)
        if bool((first.converged | nonfinite).all()):
            return self._report(first, aux, "Neumann", trial.slowest)
        bad = nonfinite | (first.status_code == int(Status.DIVERGED))
        start = torch.where(bad.unsqueeze(-1), 0.0, first.value)
        if operator.shape[1] > DENSE_LIMIT and not operator.symmetric:
            second = BiCGSTAB(rtol=rtol, max_steps=SHORT).solve(operator, rhs, x0=start)
            second = replace(second, num_steps=first.num_steps + second.num_steps)
            if bool(second.converged.all()):
                return self._report(second, {**second.aux, **aux}, "BiCGSTAB", trial.slowest)
            better = second.converged | (second.residual_norm < first.residual_norm)
            start, first = torch.where(better.unsqueeze(-1), second.value, start), second
        krylov = Cascade(rtol=rtol).solve(operator, rhs, x0=start)
        krylov = replace(krylov, num_steps=first.num_steps + krylov.num_steps)
        return self._report(krylov, {**krylov.aux, **aux}, "Cascade", trial.slowest)

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


class Trial:
    """A Neumann series that gives up when its first terms say that it would take too long.

    Args:
        operator: ``I - M``.
        rtol: relative tolerance.
        terms: terms before the decision.
        patience: most further terms.
    """

    def __init__(self, operator: LinearOperator, rtol: float, terms: int, patience: int) -> None:
        self.operator, self.rtol, self.terms, self.patience = operator, rtol, terms, patience
        self.rate: Tensor | None = None
        self.slowest = 0.0
        self.decided = False

    def recurrence(self, progress: Progress, budget: int) -> None:
        """See `sciopt.linsolve.iteration.run`."""
        if self.decided:  # the series stalled short of the tolerance
            progress.settle(progress.running, Status.STAGNATED)
            return
        self.decided = True
        start = torch.linalg.vector_norm(progress.residual, dim=-1)
        iterate(self.operator, None, progress, min(self.terms, budget), 1.0, True)
        norm = torch.linalg.vector_norm(progress.residual, dim=-1)
        shrunk = torch.where(start > 0, norm / torch.where(start > 0, start, 1.0), 0.0)
        self.rate = torch.where(progress.steps > 0, shrunk ** (1 / progress.steps.clamp_min(1)), 0.0)
        running = progress.running
        over = torch.where(running, norm / torch.where(running, progress.threshold, 1.0), 0.0)
        slow = torch.where(running, self.rate, 0.0)
        self.slowest, far = torch.stack([slow.max(), over.max()]).tolist()
        if far == 0.0:
            return
        more = ceil(log(far) / -log(self.slowest)) if 0 < self.slowest < 1 and 1 <= far < inf else self.patience + 1
        if more > self.patience:
            progress.settle(running, Status.STAGNATED)
            return
        progress.residual = torch.where(running.unsqueeze(-1), progress.residual, 0.0)
        iterate(self.operator, None, progress, min(2 * more + 2, budget - self.terms), 1.0, True)
