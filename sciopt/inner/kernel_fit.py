"""Kernel ridge regression as a model: fitted dense or matrix-free, with its Gaussian-process posterior."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import final

import torch
from torch import Tensor

from sciopt.checks import check_finite, check_option, check_rtol_dtype
from sciopt.kernels import AbstractKernel, ColumnNystrom, cross_matrix, gram, kernel_operator, kernel_product
from sciopt.linsolve import (
    CG,
    AbstractPreconditioner,
    LinearOperator,
    Tag,
    linear_solve,
    matrix_operator,
)
from sciopt.solution import Status

__all__ = ["KernelFit", "fit_kernel", "merge_duplicates"]

MOST_COLUMNS = 2_000  # of the preconditioner
DENSE_POINTS = 15_000  # a float64 matrix and its factor take 3.6 GB


def merge_duplicates(
    points: Tensor, targets: Tensor, weights: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Equal points become one, with their weighted mean as target and the sum of their weights.

    A squared loss has the same minimiser before and after; a kernel matrix with equal rows is singular, one without is not.

    Args:
        points: ``(n, *point)``.
        targets: ``(n,)`` or ``(n, k)``.
        weights: ``(n,)``, positive; None: ones.

    Returns:
        Distinct points ``(m, *point)`` in lexicographic order, targets, weights ``(m,)``, and for each input row the index
        of its point ``(n,)``.

    Example:
        >>> x, y, w, rows = merge_duplicates(torch.tensor([[1.0], [0.0], [1.0]]), torch.tensor([1.0, 5.0, 3.0]))
        >>> x.flatten(), y, w, rows
        (tensor([0., 1.]), tensor([5., 2.]), tensor([1., 2.]), tensor([1, 0, 1]))
    """
    given = points.new_ones(len(points)) if weights is None else weights
    distinct, rows = torch.unique(points, dim=0, return_inverse=True)
    mass = given.new_zeros(len(distinct)).index_add(0, rows, given)
    column = given if targets.ndim == 1 else given.unsqueeze(-1)
    total = mass if targets.ndim == 1 else mass.unsqueeze(-1)
    sums = targets.new_zeros(len(distinct), *targets.shape[1:]).index_add(0, rows, column * targets)
    return distinct, sums / total, mass, rows


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class KernelFit:
    """A fitted kernel ridge regression, which is also the posterior of a Gaussian process. Made by `fit_kernel`.

    Args:
        kernel: the kernel.
        points: distinct training points ``(m, *point)``.
        coefficients: dual weights ``(m,)`` or ``(m, k)``.
        noise: variance of each training target ``(m,)``: penalty over weight.
        status: of the solve.
        residual: its relative residual.
        num_steps: steps of CG; 0 for a dense solve.
        rtol: tolerance of further solves.
        factor: Cholesky factor of ``K + diag(noise)``, or None where the matrix is not stored.
        apply: the preconditioner where it is not.

    Example:
        >>> from sciopt.kernels import RBF
        >>> fit = fit_kernel(RBF(), torch.tensor([[0.0], [1.0]]), torch.tensor([0.0, 1.0]), 1e-6)
        >>> fit.mean(torch.tensor([[1.0]])), fit.variance(torch.tensor([[1.0], [9.0]])).round(decimals=3)
        (tensor([1.0000]), tensor([0., 1.]))

    References:
        Rasmussen, Williams. "Gaussian processes for machine learning". MIT Press, 2006, eq. 2.25, 2.26.
    """

    kernel: AbstractKernel
    points: Tensor
    coefficients: Tensor
    noise: Tensor
    status: Status
    residual: float
    num_steps: int = 0
    rtol: float | None = None
    factor: Tensor | None = field(default=None, repr=False)
    apply: Callable[[Tensor], Tensor] | None = field(default=None, repr=False)

    def mean(self, points: Tensor) -> Tensor:
        """Predictions at new points ``(q, *point)``: ``(q,)`` or ``(q, k)``, differentiable in them, K not stored."""
        return kernel_product(self.kernel, points, self.points, self.coefficients)

    def variance(self, points: Tensor) -> Tensor:
        """Posterior variance of the function (without noise) at new points ``(q, *point)``: ``(q,)``."""
        cross = cross_matrix(self.kernel, points, self.points)
        return (self.kernel.diagonal(points) - (cross * self._solve(cross)).sum(-1)).clamp(min=0)

    def covariance(self, points: Tensor) -> Tensor:
        """Joint posterior covariance at new points ``(q, *point)``: ``(q, q)``."""
        cross = cross_matrix(self.kernel, points, self.points)
        matrix = gram(self.kernel, points) - self._solve(cross) @ cross.mT
        return 0.5 * (matrix + matrix.mT)

    def sample(self, points: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """Joint draws of the function at new points ``(q, *point)``: ``(count, q)``, or ``(count, q, k)`` for k targets."""
        mean = self.mean(points)
        values, vectors = torch.linalg.eigh(self.covariance(points))  # a posterior is often singular: no Cholesky
        root = vectors * values.clamp(min=0).sqrt()
        shape = (count, *mean.shape) if mean.ndim == 2 else (count, len(mean), 1)
        noise = torch.randn(shape, generator=generator, dtype=mean.dtype, device=generator.device).to(mean.device)
        drawn = root @ noise
        return mean + (drawn if mean.ndim == 2 else drawn.squeeze(-1))

    def _solve(self, rows: Tensor) -> Tensor:
        """``(K + noise)^-1`` times each row, ``(q, m)``."""
        if self.factor is not None:
            return torch.cholesky_solve(rows.mT, self.factor).mT
        operator = replace(kernel_operator(self.kernel, self.points, self.noise), batch_shape=(len(rows),))
        assert self.apply is not None
        return linear_solve(
            operator, rows, CG(rtol=self.rtol, preconditioner=_Built(apply=self.apply), ritz=False)
        ).value


@final
@dataclass(frozen=True, kw_only=True)
class _Built(AbstractPreconditioner):
    """A preconditioner that exists already."""

    apply: Callable[[Tensor], Tensor]

    def build(self, operator: LinearOperator) -> Callable[[Tensor], Tensor]:
        """See `AbstractPreconditioner.build`."""
        return self.apply


def fit_kernel(
    kernel: AbstractKernel,
    points: Tensor,
    targets: Tensor,
    penalty: Tensor | float,
    weights: Tensor | None = None,
    *,
    rtol: float | None = None,
    dense_points: int = DENSE_POINTS,
    stored_points: int = 0,
    rank: int | None = None,
    generator: torch.Generator | None = None,
) -> KernelFit:
    """``argmin_f sum_i weights_i (f(x_i) - targets_i)^2 + penalty |f|^2``: dense up to 15,000 points, then matrix-free.

    Duplicates are merged, rows of weight zero left out. The dense route differentiates in targets, penalty and the kernel's
    tensors; above ``dense_points`` nothing does, and the kernel is computed anew in each step of conjugate gradients,
    preconditioned by a Nystrom approximation of it from some of its columns (`ColumnNystrom`). For hypergradients there,
    state the problem as a `Minimize` over `kernel_product` and let `Implicit` with the same `CG` differentiate it.

    Args:
        kernel: the kernel.
        points: ``(n, *point)``.
        targets: ``(n,)``, or ``(n, k)`` on the dense route.
        penalty: > 0; as the noise variance of a Gaussian process it belongs to a row of weight 1.
        weights: ``(n,)``, not negative; None: ones.
        rtol: of conjugate gradients; None: 1e-8 in float64, 1e-4 in float32.
        dense_points: largest number of distinct points for the dense route.
        stored_points: largest number for which conjugate gradients multiply by a stored matrix instead: ``n^2`` numbers
            of memory, and a step costs one pass over them.
        rank: columns of the preconditioner; None: a sixteenth of the points, at most 2,000.
        generator: draws them; None: seed 0.

    Returns:
        `KernelFit`, with the status of its solve. A float32 solve with a stored matrix that rounding stops early is STAGNATED
        and usable; without one, vectors are float64, only entries of K and the coefficients at the end are rounded.

    Raises:
        ValueError: for NaN, shapes that do not fit, negative weights, no row of positive weight, or ``penalty <= 0``.

    Example:
        >>> from sciopt.kernels import Linear
        >>> fit = fit_kernel(Linear(), torch.tensor([[1.0], [2.0]]), torch.tensor([1.0, 2.0]), 1e-3)
        >>> fit.mean(torch.tensor([[3.0]])).round(decimals=2)
        tensor([3.])

    References:
        Diaz, Epperly, Frangella, Tropp, Webber. "Robust, randomized preconditioning for kernel ridge regression".
        arXiv:2304.12465.
    """
    owner = "fit_kernel"
    check_finite(owner, "points", [points])
    check_finite(owner, "targets", [targets])
    if len(targets) != len(points) or targets.dtype != points.dtype:
        raise ValueError(
            f"{owner}: expected `targets` with {len(points)} rows in {points.dtype}, got {tuple(targets.shape)} in "
            f"{targets.dtype}. Give one target per point."
        )
    amount = torch.as_tensor(penalty, dtype=points.dtype, device=points.device)
    number = float(amount.detach())
    check_option(owner, "penalty", number, number > 0, "> 0", "1e-6 of the mean diagonal is small.")
    rtol = check_rtol_dtype(owner, rtol, points.dtype)
    if weights is not None:
        check_finite(owner, "weights", [weights])
        low = float(weights.detach().min()) if len(weights) == len(points) else -1.0
        check_option(owner, "weights", low, low >= 0, f"to be {len(points)} numbers >= 0", "Zero leaves a row out.")
        kept = weights > 0
        points, targets, weights = points[kept], targets[kept], weights[kept]
    if not len(points):
        raise ValueError(f"{owner}: expected at least one row of positive weight, got none. Pass data.")
    points, targets, mass, _ = merge_duplicates(points, targets, weights)
    noise = amount / mass
    if len(points) <= dense_points:
        matrix = gram(kernel, points)
        shifted = matrix + torch.diag_embed(noise)
        factor, info = torch.linalg.cholesky_ex(shifted)
        if int(info):
            raise ValueError(
                f"{owner}: expected a positive definite `K + penalty`, got a matrix whose pivot {int(info)} is not positive "
                f"with penalty {number:.3g} in {points.dtype}. Raise `penalty`, or use float64."
            )
        wide = targets if targets.ndim == 2 else targets.unsqueeze(-1)
        solved = torch.cholesky_solve(wide, factor)
        error = torch.linalg.matrix_norm((shifted @ solved - wide).detach())
        scale = torch.linalg.matrix_norm(wide.detach()).clamp(min=torch.finfo(wide.dtype).tiny)
        coefficients = solved if targets.ndim == 2 else solved.squeeze(-1)
        return KernelFit(
            kernel=kernel, points=points, coefficients=coefficients, noise=noise, status=Status.CONVERGED,
            residual=float(error / scale), rtol=rtol, factor=factor,
        )  # fmt: skip
    if targets.ndim != 1:
        raise ValueError(
            f"{owner}: expected `targets` of shape (n,) above {dense_points} points, got {tuple(targets.shape)}. Fit one "
            "column at a time, or raise `dense_points`."
        )
    operator = kernel_operator(kernel, points, noise.to(torch.float64), dtype=torch.float64)
    if len(points) <= stored_points:
        with torch.no_grad():
            stored = gram(kernel, points)
            stored.diagonal().add_(noise)
        operator = matrix_operator(stored, tags=(Tag.POSITIVE_DEFINITE,))
    source = torch.Generator().manual_seed(0) if generator is None else generator
    with torch.no_grad():
        columns = max(1, min(len(points) // 16, MOST_COLUMNS)) if rank is None else rank
        nystrom = ColumnNystrom(kernel=kernel, points=points, noise=noise, rank=columns, generator=source)
        apply = nystrom.build(operator)
        solver = CG(rtol=rtol, preconditioner=_Built(apply=apply), ritz=False)
        solution = linear_solve(operator, targets.to(operator.dtype), solver, throw=False)
    scale = float(torch.linalg.vector_norm(targets)) or 1.0
    return KernelFit(
        kernel=kernel, points=points, coefficients=solution.value.to(points.dtype), noise=noise, status=solution.status,
        residual=float(solution.residual_norm) / scale, num_steps=int(solution.num_steps), rtol=rtol, apply=apply,
    )  # fmt: skip
