"""From global unknowns to those of each element, and what the direct solver asks of an energy."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch import Tensor

__all__ = ["QuadraticEnergy", "gather_places", "gathered"]


class QuadraticEnergy(Protocol):
    """A potential energy ``sum_e moduli_e 1/2 u_e^T K_e u_e + 1/2 u^T diag(springs) u - f^T u`` of free unknowns u.

    What `FactorCache` assembles: elastic structures, conductors and trusses are of this kind.
    """

    @property
    def gather(self) -> Tensor:
        """Free unknowns of each element, ``(elements, k)``; held ones have the number ``size``."""
        ...

    @property
    def element(self) -> Tensor:
        """K_e of unit modulus: ``(k, k)``, or ``(elements, k, k)`` when elements differ; float64."""
        ...

    @property
    def springs(self) -> Tensor | None:
        """Diagonal ``(size,)`` that does not depend on the design; None: zero."""
        ...

    @property
    def size(self) -> int:
        """Number of free unknowns."""
        ...

    def moduli(self, state: Tensor, design: Tensor, /) -> Tensor:
        """Factor of each element's matrix, ``(*batch, elements)``."""
        ...


def gather_places(free: np.ndarray, num_dofs: int, element_dofs: np.ndarray) -> Tensor:
    """Places of each element's unknowns among the free ones; held ones share the zero after the last free one.

    Example:
        >>> gather_places(np.array([1, 2]), 3, np.array([[0, 1], [1, 2]])).tolist()
        [[2, 0], [0, 1]]
    """
    place = np.full(num_dofs, free.size)
    place[free] = np.arange(free.size)
    return torch.from_numpy(place[element_dofs])


def gathered(values: Tensor, gather: Tensor) -> Tensor:
    """Values of free unknowns ``(*batch, n)`` at each element, ``(*batch, elements, k)``.

    Example:
        >>> gathered(torch.tensor([5.0, 7.0]), torch.tensor([[2, 0], [0, 1]]))
        tensor([[0., 5.],
                [5., 7.]])
    """
    padded = torch.nn.functional.pad(values, (0, 1))
    gather = gather.to(values.device)
    return padded.index_select(-1, gather.reshape(-1)).unflatten(-1, tuple(gather.shape))
