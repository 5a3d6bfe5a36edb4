"""Curvature seen by a Lanczos process: extreme eigenvalues of its tridiagonal matrix."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Lanczos"]

WORK = 2**27  # batch * k^3 of the eigenvalue computation: about as long as the solve that fills it
LARGEST = 512


class Lanczos:
    """Collects the coefficients of a batched Lanczos process and gives its extreme Ritz values.

    Keeps the first ``k <= 512`` steps, fewer for large batches (``batch * k^3 <= 2^27``). Ritz values of a leading
    block lie between the extreme eigenvalues of the operator: the smallest is an upper estimate of the smallest
    eigenvalue, the largest a lower estimate of the largest.

    Args:
        like: tensor ``(*batch,)``.

    Example:
        >>> process = Lanczos(torch.zeros(()))
        >>> process.add(torch.tensor(2.0), torch.tensor(1.0), torch.tensor(True))
        >>> process.add(torch.tensor(2.0), torch.tensor(0.0), torch.tensor(True))
        >>> [round(float(v), 6) for v in process.extremes()]
        [1.0, 3.0]
    """

    def __init__(self, like: Tensor) -> None:
        self.like = like
        self.limit = int(min(LARGEST, (WORK / max(1, like.numel())) ** (1 / 3)))
        self.diagonal: list[Tensor] = []
        self.off_diagonal: list[Tensor] = []
        self.valid: list[Tensor] = []

    @property
    def full(self) -> bool:
        """Whether further steps are dropped."""
        return len(self.diagonal) >= self.limit

    def add(self, diagonal: Tensor, off_diagonal: Tensor, valid: Tensor) -> None:
        """One step: the diagonal entry, the entry that couples it to the next step, and which rows took it."""
        if not self.full:
            self.diagonal.append(diagonal)
            self.off_diagonal.append(off_diagonal)
            self.valid.append(valid)

    def extremes(self) -> tuple[Tensor, Tensor]:
        """Smallest and largest Ritz value ``(*batch,)``; NaN for rows that took no step."""
        nan = torch.full_like(self.like, torch.nan)
        if not self.diagonal:
            return nan, nan
        valid = torch.stack(self.valid, -1)
        diagonal = torch.stack(self.diagonal, -1)
        valid = valid & torch.isfinite(diagonal)
        seen = valid[..., 0]
        first = torch.where(seen, diagonal[..., 0], 0)
        diagonal = torch.where(valid, diagonal, first.unsqueeze(-1))
        coupled = valid[..., :-1] & valid[..., 1:]
        beside = torch.stack(self.off_diagonal, -1)[..., :-1]
        beside = torch.where(coupled & torch.isfinite(beside), beside, 0)
        matrix = torch.diag_embed(diagonal)
        if beside.shape[-1]:
            matrix = matrix + torch.diag_embed(beside, offset=-1)
        values = torch.linalg.eigvalsh(matrix)
        return torch.where(seen, values[..., 0], nan), torch.where(seen, values[..., -1], nan)
