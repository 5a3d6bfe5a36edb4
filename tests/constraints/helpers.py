"""Random rotations, shapes and Hessians for the tests of energies and geometry."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

F64 = torch.float64


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = F64) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=dtype)


def rotation(dim: int = 3, seed: int = 0, dtype: torch.dtype = F64) -> Tensor:
    q, r = torch.linalg.qr(normal(dim, dim, seed=seed))
    q = q * r.diagonal().sign()
    q[:, 0] *= torch.linalg.det(q)
    return q.to(dtype)


def hessian(energy: Callable[[Tensor], Tensor], positions: Tensor) -> Tensor:
    """Dense Hessian of a scalar energy in the flat positions."""
    return torch.func.hessian(lambda flat: energy(flat.reshape(positions.shape)))(positions.reshape(-1))


def null_dimension(matrix: Tensor, rtol: float = 1e-9) -> int:
    values = torch.linalg.eigvalsh(matrix).abs()
    return int((values < rtol * values.max()).sum())
