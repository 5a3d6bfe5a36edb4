"""What the dense solvers share: masking bad rows, refinement, the verdict, extreme eigenvalues."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sciopt.checks import check_rtol_dtype
from sciopt.linsolve.iteration import check_system, power_of_two
from sciopt.linsolve.operator import LinearOperator
from sciopt.solution import Solution, Status

__all__ = ["solve_dense"]

SPECTRUM_SIZE = 512  # largest matrix whose extreme eigenvalues are computed
SPECTRUM_WORK = 2**28  # largest batch * n^3 for the same


@torch.no_grad()
def solve_dense(
    owner: str,
    operator: LinearOperator,
    rhs: Tensor,
    x0: Tensor | None,
    *,
    rtol: float | None,
    atol: float,
    factor: Callable[[Tensor], tuple[Callable[[Tensor], Tensor], Tensor]],
) -> Solution:
    """Solve through a factorisation of the dense matrix.

    ``factor(A)`` returns the product with the inverse on ``(*batch, n)`` and the codes of its own trouble
    ``(*batch,)``; it must keep rows apart. A declared null space Q enters as ``A + s Q Q^T``.
    """
    check_system(owner, operator, rhs, x0)
    rtol = check_rtol_dtype(owner, rtol, operator.dtype)
    if rhs.shape[-1] == 0:
        none = rhs.new_zeros(rhs.shape[:-1])
        count = none.to(torch.int64)
        return Solution(value=rhs.clone(), status_code=count, residual_norm=none, num_steps=count)
    matrix = operator.as_matrix()
    magnitude = power_of_two(rhs.abs().amax(-1))
    rhs = rhs / magnitude.unsqueeze(-1)
    b = operator.project(rhs)
    finite_b, finite_a = torch.isfinite(b).all(-1), torch.isfinite(matrix).all(-1).all(-1)
    b = b.masked_fill(~finite_b.unsqueeze(-1), 0)
    size = torch.where(finite_a, matrix.abs().amax((-2, -1)), 1)
    n = operator.shape[1]
    safe = torch.where(finite_a[..., None, None], matrix, torch.eye(n, dtype=matrix.dtype, device=matrix.device))
    full = safe
    if operator.nullspace is not None:
        rank = max(1, n - operator.nullspace.shape[-1])
        spread = torch.linalg.matrix_norm(safe) / rank**0.5  # root mean square eigenvalue
        full = safe + spread[..., None, None] * (operator.nullspace @ operator.nullspace.mT)
    inverse, trouble = factor(full) if n > 1 else _divide(full, operator.positive_definite)

    def residual(x: Tensor) -> Tensor:
        return b - operator.project((safe @ x.unsqueeze(-1)).squeeze(-1))

    scale = torch.linalg.vector_norm(b, dim=-1)
    leak = None
    if operator.nullspace is not None:
        total = torch.linalg.vector_norm(rhs.masked_fill(~finite_b.unsqueeze(-1), 0), dim=-1)
        outside = scale <= 10 * torch.finfo(b.dtype).eps * total
        b, scale = b.masked_fill(outside.unsqueeze(-1), 0), scale.masked_fill(outside, 0)
        component = torch.linalg.vector_norm((operator.nullspace.mT @ rhs.unsqueeze(-1)).squeeze(-1), dim=-1)
        leak = torch.where(total > 0, component / total, torch.zeros_like(total))
    zero = scale == 0
    x = operator.project(inverse(b))
    x = torch.where(torch.isfinite(x).all(-1, keepdim=True) & ~zero.unsqueeze(-1), x, 0)
    r = residual(x)
    norm = torch.linalg.vector_norm(r, dim=-1)
    # one step of iterative refinement where it helps
    better = x + operator.project(inverse(r))
    r = residual(better)
    refined = torch.linalg.vector_norm(r, dim=-1)
    x = torch.where((refined < norm).unsqueeze(-1), better, x)
    norm = torch.fmin(norm, refined)

    threshold = atol / magnitude + rtol * scale
    good = norm <= threshold
    code = torch.full(norm.shape, int(Status.STAGNATED), device=norm.device)
    code = torch.where(trouble != int(Status.CONVERGED), trouble, code)
    code = code.masked_fill(good & (trouble != int(Status.INDEFINITE)), int(Status.CONVERGED))
    if n == 1:  # one division has no better answer
        code = code.masked_fill((trouble == int(Status.CONVERGED)) & torch.isfinite(norm), int(Status.CONVERGED))
    code = code.masked_fill(zero, int(Status.CONVERGED))
    code = code.masked_fill(~(finite_a | zero) | ~finite_b, int(Status.NONFINITE))
    norm = norm.masked_fill(code == int(Status.NONFINITE), torch.nan)
    aux = _spectrum(operator, safe, finite_a & torch.isfinite(size))
    if leak is not None:
        aux["nullspace_component"] = leak
    steps = (~zero & (code != int(Status.NONFINITE))).to(torch.int64)
    value = x * magnitude.unsqueeze(-1)
    return Solution(value=value, status_code=code, residual_norm=norm * magnitude, num_steps=steps, aux=aux)


def _divide(matrix: Tensor, definite: bool) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """Inverse product and trouble codes of 1x1 matrices."""
    a = matrix[..., 0]
    codes = torch.where(a[..., 0] == 0, int(Status.SINGULAR), int(Status.CONVERGED))
    if definite:
        codes = codes.masked_fill(a[..., 0] < 0, int(Status.INDEFINITE))
    return lambda vector: torch.where(a == 0, 0, vector / a), codes


def _spectrum(operator: LinearOperator, matrix: Tensor, known: Tensor) -> dict[str, Tensor]:
    """Extreme eigenvalues (symmetric) or singular values of matrices of moderate size."""
    n = matrix.shape[-1]
    if not 0 < n <= SPECTRUM_SIZE or known.numel() * n**3 > SPECTRUM_WORK:
        return {}
    basis = operator.nullspace
    if not operator.symmetric:
        values, names = torch.linalg.svdvals(matrix), ("max_singular", "min_singular")
    else:
        if basis is not None:  # move the null space to the mean of the other eigenvalues
            mean = matrix.diagonal(dim1=-2, dim2=-1).sum(-1) / max(1, n - basis.shape[-1])
            matrix = matrix + mean[..., None, None] * (basis @ basis.mT)
        values, names = torch.linalg.eigvalsh(matrix), ("min_ritz", "max_ritz")
    return {name: torch.where(known, values[..., i], torch.nan) for name, i in zip(names, (0, -1), strict=True)}
