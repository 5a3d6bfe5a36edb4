"""What a sparse solver asks of an inner problem in displacements: element tangents, and where they go."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from torch import Tensor

__all__ = ["AbstractBalance", "SparsePattern"]


class AbstractBalance(ABC):
    """A balance of forces whose Jacobian is a sum of small dense blocks over elements, faces, nodes."""

    @property
    @abstractmethod
    def size(self) -> int:
        """Number of unknowns n."""

    @property
    @abstractmethod
    def stacks(self) -> tuple[Tensor, ...]:
        """Unknowns ``(k, m)`` of the blocks of each kind; numbers >= n are held and drop out."""

    @abstractmethod
    def tangents(self, displacements: Tensor, outer_params: Any) -> tuple[Tensor, ...]:
        """Blocks of each kind, ``(*batch, k, m, m)``."""

    @cached_property
    def pattern(self) -> SparsePattern:
        """Sparsity of the Jacobian."""
        return SparsePattern([stack.numpy() for stack in self.stacks], self.size)

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "pattern"}  # found again where it is needed


class SparsePattern:
    """Column-compressed pattern of a sum of blocks: each entry of each block has its slot among the nonzeros.

    Args:
        stacks: unknowns ``(k, m)`` of the blocks of each kind.
        size: number of unknowns n; blocks' rows and columns with numbers >= n are dropped.

    Example:
        >>> pattern = SparsePattern([np.array([[0, 1], [1, 2]])], 2)
        >>> pattern.matrix([np.ones((2, 2, 2))]).toarray().tolist()
        [[1.0, 1.0], [1.0, 2.0]]
    """

    def __init__(self, stacks: Sequence[np.ndarray], size: int) -> None:
        self.size = size
        pairs, places = [], []
        for stack in stacks:
            m = stack.shape[1]
            rows, columns = np.repeat(stack, m, axis=1).reshape(-1), np.tile(stack, (1, m)).reshape(-1)
            kept = np.flatnonzero((rows < size) & (columns < size))
            pairs.append(kept)
            places.append(columns[kept] * size + rows[kept])
        unique, self._slot = np.unique(np.concatenate(places), return_inverse=True)
        self._pairs = pairs
        self._row = (unique % size).astype(np.int32)
        self._start = np.searchsorted(unique, np.arange(size + 1) * size).astype(np.int32)

    def matrix(self, blocks: Sequence[np.ndarray]) -> Any:
        """The SciPy CSC matrix ``(n, n)`` of blocks ``(k, m, m)`` of each kind."""
        from scipy.sparse import csc_matrix

        values = np.concatenate([b.reshape(-1)[kept] for b, kept in zip(blocks, self._pairs, strict=True)])
        data = np.bincount(self._slot, weights=values, minlength=self._row.size)
        return csc_matrix((data, self._row, self._start), shape=(self.size, self.size))
