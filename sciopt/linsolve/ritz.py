"""Curvature seen by a Krylov method: extreme eigenvalues of its tridiagonal matrix."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

__all__ = ["Coefficients", "cg_extremes", "lanczos_extremes"]

EXACT_SIZE = 128  # batch * k up to which dense eigenvalues are cheaper than counting
STORED = 2**23  # most coefficients kept


class Coefficients:
    """Scalars of a recurrence, one tensor ``(*batch,)`` per step and name, kept up to a bound on memory.

    Args:
        like: tensor ``(*batch,)``.
        steps: most steps to keep; default: what 2^23 numbers allow.
    """

    def __init__(self, like: Tensor, steps: int | None = None) -> None:
        self.like = like
        self.steps = STORED // max(1, like.numel()) if steps is None else steps
        self.rows: list[tuple[Tensor, ...]] = []

    def add(self, *scalars: Tensor) -> None:
        """Keep the scalars of one step."""
        if len(self.rows) < self.steps:
            self.rows.append(scalars)

    def stacked(self) -> list[Tensor]:
        """One tensor ``(*batch, k)`` per name."""
        return [torch.stack(column, -1) for column in zip(*self.rows, strict=True)]


def cg_extremes(alpha: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    """Extreme Ritz values of a CG run from its step lengths and ratios, to 1e-3 relative, from inside the spectrum.

    Args:
        alpha: step lengths ``(*batch, k)``; zero from where a row has stopped.
        beta: ratios ``(*batch, k)``.
    Returns:
        Smallest and largest value ``(*batch,)``; NaN for rows without a step.
    Example:
        >>> low, high = cg_extremes(torch.tensor([0.5, 0.5]), torch.tensor([0.0, 0.0]))
        >>> float(low), float(high)
        (2.0, 2.0)

    References:
        Saad. "Iterative methods for sparse linear systems". SIAM, 2003. Section 6.7.3.
    """
    valid = alpha > 0
    inverse = torch.where(valid, 1 / alpha, torch.nan)
    diagonal = inverse.clone()
    diagonal[..., 1:] += (beta * inverse)[..., :-1]
    return lanczos_extremes(diagonal, beta.sqrt() * inverse, valid, positive=True)


def lanczos_extremes(diagonal: Tensor, beside: Tensor, valid: Tensor, positive: bool = False) -> tuple[Tensor, Tensor]:
    """Smallest and largest eigenvalue of symmetric tridiagonal matrices, from inside their spectra.

    Eigenvalues of a Lanczos matrix (Ritz values) lie between the extreme eigenvalues of the operator: the smallest
    is an upper estimate of its smallest, the largest a lower estimate of its largest. Small matrices go through dense
    eigenvalues, others through bisection on the host, in a batch at many shifts at once.

    Args:
        diagonal: ``(*batch, k)``.
        beside: entries that couple step j to step j + 1 ``(*batch, k)``; the last one is not used.
        valid: which steps a row took ``(*batch, k)``.
        positive: whether the matrices are positive definite: then the smallest value is found to 1e-3 relative,
            otherwise to 1e-7 of the largest.
    Returns:
        Two tensors ``(*batch,)``; NaN for rows without a step.
    Example:
        >>> ones = torch.ones(2)
        >>> low, high = lanczos_extremes(2 * ones, ones, ones > 0)
        >>> round(float(low), 5), round(float(high), 5)
        (1.0, 3.0)

    References:
        Barth, Martin, Wilkinson. "Calculation of the eigenvalues of a symmetric tridiagonal matrix by the method of
        bisection". Numer. Math. 9, 1967.
    """
    valid = valid & torch.isfinite(diagonal)
    seen = valid[..., 0]
    diagonal = torch.where(valid, diagonal, torch.where(seen, diagonal[..., 0], 1).unsqueeze(-1))
    beside = beside[..., :-1]
    beside = torch.where(valid[..., :-1] & valid[..., 1:] & torch.isfinite(beside), beside, 0)
    if diagonal.numel() <= EXACT_SIZE:
        matrix = torch.diag_embed(diagonal)
        if beside.shape[-1]:
            matrix = matrix + torch.diag_embed(beside, offset=-1)
        values = torch.linalg.eigvalsh(matrix)
        low, high = values[..., 0], values[..., -1]
    else:
        main, side = (t.reshape(-1, t.shape[-1]).double().cpu().numpy().T for t in (diagonal, beside))
        ends = _single(main[:, 0], side[:, 0]) if main.shape[1] == 1 else _count(main.copy(), side.copy(), positive)
        low, high = (torch.from_numpy(end).to(diagonal).reshape(seen.shape) for end in ends)
    return torch.where(seen, low, torch.nan), torch.where(seen, high, torch.nan)


def _single(main: np.ndarray, side: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Extreme eigenvalues of one matrix by LAPACK's bisection."""
    from scipy.linalg import eigvalsh_tridiagonal  # here, because it takes a while to load

    def eigenvalue(index: int) -> np.ndarray:
        return np.asarray(eigvalsh_tridiagonal(main, side, select="i", select_range=(index, index)))

    return eigenvalue(0), eigenvalue(len(main) - 1)


def _count(main: np.ndarray, side: np.ndarray, positive: bool) -> tuple[np.ndarray, np.ndarray]:
    """Extreme eigenvalues by multisection; ``main`` is ``(k, rows)``, ``side`` ``(k - 1, rows)``."""
    rows = main.shape[1]
    shifts = 64 if rows <= 16 else 8
    fractions = np.arange(1, shifts + 1)[:, None] / (shifts + 1)
    squares = side * side
    reach = np.zeros_like(main)
    reach[:-1] += np.abs(side)
    reach[1:] += np.abs(side)
    # eigenvalues sit inside [low0, low1] and [high0, high1]; low1 and high0 are Rayleigh quotients
    low0, low1 = (main - reach).min(0), main.min(0)
    high0, high1 = main.max(0), (main + reach).max(0)
    if positive:
        low0 = np.maximum(low0, high1 * 1e-17)
    for _ in range(math.ceil(math.log(4e4 if positive else 1e8) / math.log(shifts + 1))):
        a = low0 * (low1 / low0) ** fractions if positive else low0 + (low1 - low0) * fractions
        b = high1 + (high0 - high1) * fractions
        below, above = _definite(main, squares, a, 1.0), _definite(main, squares, b, -1.0)
        low0, low1 = np.max(np.where(below, a, low0), 0), np.min(np.where(below, low1, a), 0)
        high1, high0 = np.min(np.where(above, b, high1), 0), np.max(np.where(above, high0, b), 0)
    return low1, high0


def _definite(main: np.ndarray, squares: np.ndarray, shift: np.ndarray, sign: float) -> np.ndarray:
    """Whether ``sign (T - shift)`` is positive definite, for ``shift`` ``(shifts, rows)``: all pivots positive."""
    with np.errstate(all="ignore"):
        pivot = sign * (main[0] - shift)
        least = pivot.copy()
        for j in range(1, len(main)):
            np.divide(squares[j - 1], pivot, out=pivot)
            np.subtract(sign * (main[j] - shift), pivot, out=pivot)
            np.minimum(least, pivot, out=least)  # NaN, from 0 / 0, counts as not positive
    return least > 0
