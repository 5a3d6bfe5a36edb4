"""What every solve returns: a value, and an honest word on how far to trust it."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from sciopt.transforms import is_wrapped

__all__ = ["SolveError", "Solution", "Status", "worst"]


class Status(IntEnum):
    """Outcome of one solve; the larger the number, the less the value is worth.

    Solvers write these codes into an integer tensor with one entry per problem of the batch.

    Example:
        >>> Status.INDEFINITE.advice.startswith("The curvature is negative")
        True
    """

    RUNNING = -1
    CONVERGED = 0
    MAX_STEPS = 1
    STAGNATED = 2
    BREAKDOWN = 3
    SINGULAR = 4
    INDEFINITE = 5
    INFEASIBLE = 6
    DIVERGED = 7
    NONFINITE = 8

    @property
    def advice(self) -> str:
        """One sentence on what to do about this outcome."""
        return _ADVICE[self]


_ADVICE = {
    Status.RUNNING: "The solve was read before it ended.",
    Status.CONVERGED: "The residual is below atol + rtol * scale.",
    Status.MAX_STEPS: "The step budget is spent: raise max_steps, loosen rtol or atol, or start closer (warm start).",
    Status.STAGNATED: (
        "The residual no longer falls: rounding limits it, so loosen rtol or use float64; otherwise rescale the problem "
        "or add a preconditioner."
    ),
    Status.BREAKDOWN: "The recurrence broke down: use another method (GMRES, MINRES or a dense solver), or restart.",
    Status.SINGULAR: (
        "The system is singular and the right-hand side is not in its range: declare the null space, or regularise the "
        "inner problem."
    ),
    Status.INDEFINITE: (
        "The curvature is negative: the point is not a strict minimum. Solve the inner problem further, add a proximal "
        "term, or use MINRES or GMRES if a saddle is what you want."
    ),
    Status.INFEASIBLE: "The constraints could not be met: check that they are consistent, or start from a feasible point.",
    Status.DIVERGED: "The iterates run away: lower the step size, damp the iteration, or check that the map contracts.",
    Status.NONFINITE: "NaN or Inf appeared: check data and parameters, the domain of the functions, and the step size.",
}


def worst(codes: Tensor) -> Status:
    """The worst status of a tensor of codes; `Status.CONVERGED` for an empty batch.

    Example:
        >>> worst(torch.tensor([0, 1, 0])).name
        'MAX_STEPS'
    """
    return Status(int(codes.max())) if codes.numel() else Status.CONVERGED


@dataclass(frozen=True, kw_only=True)
class Solution:
    """Result of a solve: the value with its certificate, a registered pytree of tensors.

    Args:
        value: the solution, a tensor or a dict of tensors as the start was given.
        status_code: `Status` codes, int64, shape ``(*batch,)``.
        residual_norm: norm of the residual at ``value``, shape ``(*batch,)``.
        num_steps: steps taken by each problem, int64, shape ``(*batch,)``.
        state: what a warm start may use (solver specific), or None.
        aux: further tensors by name, e.g. ``min_ritz`` and ``max_ritz`` of a Krylov solve; and ``advice``, where a solver
            can say better than the status what went wrong.

    Example:
        >>> code = torch.tensor(0)
        >>> Solution(value=torch.ones(2), status_code=code, residual_norm=torch.tensor(0.0), num_steps=code).status.name
        'CONVERGED'
    """

    value: Any
    status_code: Tensor
    residual_norm: Tensor
    num_steps: Tensor
    state: Any = field(default=None, repr=False)
    aux: dict[str, Any] = field(default_factory=dict)

    @property
    def status(self) -> Status:
        """The `Status`; of a batch, the worst one. Not available inside `torch.func` transforms."""
        if is_wrapped(self.status_code):
            raise RuntimeError(
                "Solution: expected `status` to be read outside torch.func transforms, got a transformed tensor. "
                "Read `status_code`, or return the Solution from the transform and read `status` there."
            )
        return worst(self.status_code)

    @property
    def converged(self) -> Tensor:
        """Boolean tensor ``(*batch,)``: which problems converged."""
        return self.status_code == int(Status.CONVERGED)

    @property
    def failed_rows(self) -> list[int]:
        """Indices, into the flattened batch, of the problems that did not converge."""
        return torch.nonzero(~self.converged.reshape(-1)).reshape(-1).tolist()


def _flatten(solution: Solution) -> tuple[list[Any], tuple[str, ...]]:
    names = tuple(
        f.name for f in fields(Solution) if getattr(solution, f.name) is not None
    )  # vmap returns tensors only
    return [getattr(solution, name) for name in names], names


def _unflatten(leaves: Any, names: tuple[str, ...]) -> Solution:
    return Solution(**dict(zip(names, leaves, strict=True)))


pytree.register_pytree_node(Solution, _flatten, _unflatten, serialized_type_name="sciopt.Solution")


class SolveError(RuntimeError):
    """A solve that failed, raised by public entries with ``throw=True``; `solution` holds what was reached.

    Example:
        >>> one = torch.tensor(1)
        >>> s = Solution(value=torch.ones(1), status_code=one, residual_norm=torch.tensor(0.5), num_steps=one)
        >>> str(SolveError("CG", s))[:27]
        'CG: expected status CONVERG'
    """

    def __init__(self, what: str, solution: Solution) -> None:
        self.what = what
        self.solution = solution
        status = solution.status
        where = ""
        if solution.status_code.ndim:
            rows = solution.failed_rows
            shown = ", ".join(map(str, rows[:8])) + (", ..." if len(rows) > 8 else "")
            where = f" in {len(rows)} of {solution.status_code.numel()} problems (rows {shown})"
        steps = int(solution.num_steps.max()) if solution.num_steps.numel() else 0
        residual = float(solution.residual_norm.max()) if solution.residual_norm.numel() else 0.0
        super().__init__(
            f"{what}: expected status CONVERGED, got {status.name}{where} after {steps} steps, "
            f"residual norm {residual:.3e}. {solution.aux.get('advice', status.advice)}"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return SolveError, (self.what, self.solution)
