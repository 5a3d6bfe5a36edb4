"""The linear systems of implicit steps: one factorisation per step and row, differentiable to any order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sciopt.steppers.field import Field
from sciopt.transforms import under_transform

__all__ = ["factored", "implicit_matrix"]


def implicit_matrix(field: Field, jacobian: Tensor, scaled_step: Tensor) -> Tensor:
    """``M - s J`` with s ``(rows,)``; the identity where s is zero and M may be singular."""
    n = jacobian.shape[-1]
    eye = torch.eye(n, dtype=jacobian.dtype, device=jacobian.device)
    step = scaled_step[:, None, None]
    if field.mass is None:
        return eye - step * jacobian
    mass = field.mass.to(jacobian)
    return torch.where(step == 0, eye, mass - step * jacobian)


def factored(matrix: Tensor) -> Callable[[Tensor], Tensor]:
    """``b -> A^-1 b`` for A ``(rows, n, n)`` and b ``(rows, n)``, with derivatives in A and b of every order.

    A singular matrix gives numbers that are not finite. Under transforms the inverse is formed: torch has no rule for
    batched pivots there.
    """
    if under_transform():
        inverse = torch.linalg.inv_ex(matrix)[0]
        return lambda b: (inverse @ b.unsqueeze(-1)).squeeze(-1)
    packed, pivots, _ = torch.linalg.lu_factor_ex(matrix.detach())
    if torch.is_grad_enabled():
        return lambda b: FactoredSolve.apply(matrix, b, packed, pivots, False)
    return lambda b: torch.linalg.lu_solve(packed, pivots, b.unsqueeze(-1)).squeeze(-1)


class FactoredSolve(torch.autograd.Function):
    """``A^-1 b`` or, with ``adjoint``, ``A^-T b``: each is the other's derivative, and both use one factorisation."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, b: Tensor, packed: Tensor, pivots: Tensor, adjoint: bool) -> Tensor:
        x = torch.linalg.lu_solve(packed, pivots, b.unsqueeze(-1), adjoint=adjoint).squeeze(-1)
        ctx.save_for_backward(matrix, packed, pivots, x)
        ctx.adjoint = adjoint
        return x

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        matrix, packed, pivots, x = ctx.saved_tensors
        dual = FactoredSolve.apply(matrix, cotangents[0], packed, pivots, not ctx.adjoint)
        left, right = (x, dual) if ctx.adjoint else (dual, x)
        outer = -left.unsqueeze(-1) * right.unsqueeze(-2) if ctx.needs_input_grad[0] else None
        return outer, dual, None, None, None
