"""Jacobi preconditioner."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from sciopt.linsolve.abstract import AbstractPreconditioner
from sciopt.linsolve.operator import LinearOperator

__all__ = ["Jacobi"]


@final
@dataclass(frozen=True, kw_only=True)
class Jacobi(AbstractPreconditioner):
    """Division by the absolute diagonal; entries that are zero or not finite count as one.

    For badly scaled unknowns; positive definite for every operator. Costs one product of vectors per step.

    Raises:
        ValueError: from `build`, for an operator without ``diagonal``.
    Example:
        >>> from sciopt.linsolve import matrix_operator
        >>> Jacobi().build(matrix_operator(torch.diag(torch.tensor([2.0, 4.0]))))(torch.ones(2))
        tensor([0.5000, 0.2500])

    References:
        Saad. "Iterative methods for sparse linear systems". SIAM, 2003. Section 10.2.
    """

    def build(self, operator: LinearOperator) -> Callable[[Tensor], Tensor]:
        """See `AbstractPreconditioner.build`."""
        if operator.diagonal is None:
            raise ValueError(
                "Jacobi: expected an operator with `diagonal`, got None. Pass diagonal= to function_operator, or use "
                "NystromPreconditioner."
            )
        size = operator.diagonal().detach().abs()
        inverse = torch.where(torch.isfinite(size) & (size > 0), 1 / size, 1)
        return lambda vector: vector * inverse
