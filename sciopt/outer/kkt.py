"""First-order optimality of a design under bounds and constraints, as one number per condition."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

__all__ = ["KKTResidual", "kkt_residual"]


@final
@dataclass(frozen=True, kw_only=True)
class KKTResidual:
    """How far a design is from the Karush-Kuhn-Tucker conditions; each entry is zero at an optimum.

    Args:
        stationarity: largest entry of the projected gradient of the Lagrangian relative to the largest of ``grad``.
        feasibility: largest constraint violation, in the constraint's unit.
        complementarity: largest ``|multiplier * constraint|`` relative to ``max(1, |value|)``.

    Example:
        >>> KKTResidual(stationarity=0.0, feasibility=1e-3, complementarity=0.0).feasibility
        0.001
    """

    stationarity: float
    feasibility: float
    complementarity: float


def kkt_residual(
    params: Tensor,
    value: Tensor,
    grad: Tensor,
    constraints: Tensor,
    constraint_grads: Tensor,
    *,
    multipliers: Tensor,
    lower: Tensor | float,
    upper: Tensor | float,
) -> KKTResidual:
    """KKT residual of ``min f(x)``, ``g(x) <= 0``, ``lower <= x <= upper`` for given multipliers of ``g``.

    A component of the Lagrangian's gradient counts only where a bound does not hold it back.

    Args:
        params: design ``(n,)``.
        value: objective ``()``.
        grad: its gradient ``(n,)``.
        constraints: ``(m,)``.
        constraint_grads: ``(m, n)``.
        multipliers: ``(m,)``, >= 0.
        lower: lower bound, a number or ``(n,)``.
        upper: upper bound, a number or ``(n,)``.

    Returns:
        `KKTResidual` of Python floats (one host synchronisation).

    Example:
        >>> x = torch.tensor([0.0, 1.0])  # min x0 + (x1 - 2)^2 on [0, 1]^2: both bounds hold
        >>> kkt_residual(x, torch.tensor(1.0), torch.tensor([1.0, -2.0]), torch.zeros(0), torch.zeros(0, 2),
        ...              multipliers=torch.zeros(0), lower=0.0, upper=1.0).stationarity
        0.0

    References:
        Nocedal, Wright. "Numerical Optimization", 2nd ed., eq. 12.34.
    """
    lagrangian = grad + multipliers @ constraint_grads
    low, high = (torch.as_tensor(b, dtype=params.dtype, device=params.device).expand_as(params) for b in (lower, upper))
    held = ((params <= low) & (lagrangian > 0)) | ((params >= high) & (lagrangian < 0))
    stationarity = torch.where(held, 0.0, lagrangian).abs().max() / grad.abs().max().clamp(
        min=torch.finfo(grad.dtype).tiny
    )
    zero = params.new_zeros(1)
    feasibility = torch.cat([constraints, zero]).max()
    complementarity = torch.cat([(multipliers * constraints).abs(), zero]).max() / value.abs().clamp(min=1.0)
    s, f, c = torch.stack([stationarity, feasibility, complementarity]).tolist()
    return KKTResidual(stationarity=s, feasibility=f, complementarity=c)
