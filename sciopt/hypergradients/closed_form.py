"""Closed-form update: theta*(phi) as a formula that autograd differentiates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, final

import torch
from torch import Tensor

from sciopt.checks import check_rtol_dtype
from sciopt.hypergradients.abstract import AbstractHypergradient, Request
from sciopt.params import under_transform
from sciopt.problem.system import Oracle
from sciopt.solution import Solution, Status

__all__ = ["ClosedForm"]


@final
@dataclass(frozen=True)
class ClosedForm(AbstractHypergradient):
    """The solution by a differentiable formula, checked against the problem's optimality residual.

    Use it for ridge regression, kernel ridge and what else `sciopt.inner.closed_form` holds: exact to any order, no inner
    solver. A formula that does not solve the stated problem gets `Status.STAGNATED`. Write formulas with
    `torch.cholesky_solve` or `torch.linalg.inv`: torch 2.13 loses a term of `torch.linalg.solve` in reverse over forward mode.

    Args:
        formula: ``outer_params -> inner_params``.
        rtol: the residual may be ``rtol`` times the residual at ``init``; None: 1e-6 in float64, 1e-3 in float32.

    Example:
        >>> from sciopt import Minimize, best_response
        >>> problem = Minimize(lambda theta, phi: ((theta - 3 * phi) ** 2).sum())
        >>> phi = torch.ones(2, dtype=torch.float64, requires_grad=True)
        >>> init = torch.zeros(2, dtype=torch.float64)
        >>> sol = best_response(problem, phi, init=init, hypergradient=ClosedForm(lambda phi: 3 * phi))
        >>> sol.value.sum().backward()
        >>> phi.grad
        tensor([3., 3.], dtype=torch.float64)

    References:
        Chen et al. "Gradient-based Bi-level Optimization for Deep Learning: A Survey", section 4.4, eq. 45-48.
    """

    formula: Callable[[Any], Any]
    _: KW_ONLY
    rtol: float | None = None

    @property
    def needs_captures(self) -> bool:
        return False

    def respond(self, request: Request, x0: Tensor, args: Sequence[Tensor]) -> Solution:
        system = request.system
        x = system.layout.flatten(self.formula(system.outer(args)))
        with torch.no_grad():
            oracle = Oracle(system, [a.detach() for a in args], differentiable=under_transform())
            norm = torch.linalg.vector_norm(oracle.residual(x.detach()), dim=-1).detach()
            scale = torch.linalg.vector_norm(oracle.residual(x0.detach()), dim=-1).detach()
        rtol = check_rtol_dtype("ClosedForm", self.rtol, x.dtype) if self.rtol is not None else None
        limit = (rtol or (1e-6 if x.dtype == torch.float64 else 1e-3)) * scale + 100 * torch.finfo(x.dtype).eps
        code = torch.where(norm <= limit, int(Status.CONVERGED), int(Status.STAGNATED))
        code = torch.where(torch.isfinite(norm), code, int(Status.NONFINITE))
        solution = Solution(value=x, status_code=code, residual_norm=norm, num_steps=torch.zeros_like(code))
        if not under_transform():
            request.record.inner = solution
            request.raise_if_failed("ClosedForm", solution)
        return solution
