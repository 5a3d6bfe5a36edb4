"""Randomised Nystrom preconditioner."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from sciopt.checks import check_option
from sciopt.linsolve.abstract import AbstractPreconditioner
from sciopt.linsolve.operator import LinearOperator, format_tags

__all__ = ["NystromPreconditioner"]


@final
@dataclass(frozen=True)
class NystromPreconditioner(AbstractPreconditioner):
    """Randomised low-rank preconditioner for positive definite operators with a fast-decaying spectrum.

    From the rank-l Nystrom approximation ``U diag(lam) U^T`` of ``A - shift I`` it applies

        P^-1 = (lam_l + shift) U diag(1 / (lam + shift)) U^T + (I - U U^T).

    For kernel matrices and Gauss-Newton or regularised Hessians ``A = H + shift I``: with l about twice the effective
    dimension of H the condition number is expected to fall below 28, whatever it was. ``rank`` products to build it,
    ``rank * n`` memory and ``4 rank n`` operations per step. A shared generator moves on with each build.

    Args:
        rank: l, number of random directions, at most n.
        generator: source of the random directions; drawn on its own device.
        shift: known multiple of the identity in A, >= 0, in units of A.
    Raises:
        ValueError: for options out of range; from `build`, for an operator not tagged POSITIVE_DEFINITE.
    Example:
        >>> from sciopt.linsolve import Tag, matrix_operator
        >>> A = matrix_operator(torch.diag(torch.tensor([100.0, 1.0, 1.0])), tags=(Tag.POSITIVE_DEFINITE,))
        >>> P = NystromPreconditioner(1, torch.Generator().manual_seed(0), shift=1.0)
        >>> P.build(A)(torch.ones(3)).round(decimals=3)
        tensor([1., 1., 1.])

    References:
        Frangella, Tropp, Udell. "Randomized Nystrom preconditioning". SIAM J. Matrix Anal. Appl. 44, 2023
        (arXiv:2110.02820). Algorithm 2.1; equation 5.3; theorem 5.1.
    """

    rank: int
    generator: torch.Generator
    shift: float = field(default=0.0, kw_only=True)

    def __post_init__(self) -> None:
        ok = isinstance(self.rank, int) and not isinstance(self.rank, bool) and self.rank >= 1
        check_option(
            "NystromPreconditioner", "rank", self.rank, ok, "to be an int >= 1", "Start with 20 and double it."
        )
        check_option(
            "NystromPreconditioner", "shift", self.shift, self.shift >= 0, ">= 0",
            "Pass the multiple of the identity that A contains, or 0.",
        )  # fmt: skip

    def build(self, operator: LinearOperator) -> Callable[[Tensor], Tensor]:
        """See `AbstractPreconditioner.build`."""
        if not operator.positive_definite:
            raise ValueError(
                "NystromPreconditioner: expected an operator tagged POSITIVE_DEFINITE, got tags "
                f"{format_tags(operator.tags)}. Use Jacobi, or tag the operator if you know it holds."
            )
        n = operator.shape[1]
        rank = min(self.rank, n)
        basis, values = self._sketch(operator, n, rank)
        gain = (values[..., -1:] + self.shift) / (values + self.shift) - 1
        gain = torch.where(torch.isfinite(gain), gain, 0)

        def apply(vector: Tensor) -> Tensor:
            inside = basis.mT @ vector.unsqueeze(-1)
            return vector + (basis @ (gain.unsqueeze(-1) * inside)).squeeze(-1)

        return apply

    def _sketch(self, operator: LinearOperator, n: int, rank: int) -> tuple[Tensor, Tensor]:
        """Eigenvectors ``(*batch, n, rank)`` and eigenvalues ``(*batch, rank)``, largest first."""
        shape = (*operator.batch_shape, n, rank)
        draw = torch.randn(shape, generator=self.generator, dtype=operator.dtype, device=self.generator.device)
        test = torch.linalg.qr(draw.to(operator.device))[0]
        sketch = operator.matmat(test) - self.shift * test
        # a row that is not finite gets the identity
        sound = torch.isfinite(sketch).all(-1).all(-1)[..., None, None]
        sketch = torch.where(sound, sketch, test)
        nu = torch.finfo(operator.dtype).eps * torch.linalg.matrix_norm(sketch)[..., None, None]
        lower, failed = _factor(test, sketch + nu * test)
        for _ in range(6):  # raise the stabilising shift where rounding still breaks the factorisation
            if not bool(failed.any()):
                break
            nu = torch.where(failed, 100 * nu, nu)
            lower, failed = _factor(test, sketch + nu * test)
        # rows that cannot be helped (an operator that is not positive definite) get the identity
        sketch, nu = torch.where(failed, test, sketch), torch.where(failed, 0, nu)
        shifted = sketch + nu * test
        lower = torch.where(failed, torch.eye(rank, dtype=test.dtype, device=test.device), lower)
        half = torch.linalg.solve_triangular(lower.mT, shifted, upper=True, left=False)
        left, singular, _ = torch.linalg.svd(half, full_matrices=False)
        return left, (singular.square() - nu[..., 0]).clamp(min=0)


def _factor(test: Tensor, sketch: Tensor) -> tuple[Tensor, Tensor]:
    """Cholesky factor of the core matrix, and which rows it failed for ``(*batch, 1, 1)``."""
    core = test.mT @ sketch
    lower, info = torch.linalg.cholesky_ex((core + core.mT) / 2)
    return lower, (info > 0)[..., None, None]
