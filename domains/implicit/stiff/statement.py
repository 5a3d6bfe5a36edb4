"""How the ready problems are stated: parameters as one vector for all, or a row for each problem of a batch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sciopt.problem import InitialValue

__all__ = ["double", "shared"]

Function = Callable[[Tensor, Tensor, Tensor], Tensor]


def double(*numbers: float) -> Tensor:
    """A float64 vector."""
    return torch.tensor(numbers, dtype=torch.float64)


def shared(
    dynamics: Function,
    jacobian: Function | None,
    times: Tensor,
    batch_ndim: int,
    rows: Tensor | None = None,
) -> InitialValue:
    """The problem whose parameters are one vector for all rows, or one row each; finished rows can be dropped."""

    def chosen(phi: Tensor) -> Tensor:
        return phi if rows is None or phi.ndim == 1 else phi.index_select(0, rows)

    def restrict(some: Tensor) -> InitialValue:
        return shared(dynamics, jacobian, times, 1, some if rows is None else rows[some])

    return InitialValue(
        lambda t, y, phi: dynamics(t, y, chosen(phi)),
        times,
        batch_ndim=batch_ndim,
        jacobian=None if jacobian is None else lambda t, y, phi: jacobian(t, y, chosen(phi)),
        restrict=restrict if batch_ndim == 1 else None,
    )
