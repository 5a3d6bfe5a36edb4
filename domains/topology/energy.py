"""The potential energy of an elastic structure: what the inner problem minimises."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import final

import numpy as np
import torch
from torch import Tensor

from sciopt.domains.topology.elements import q4_stiffness
from sciopt.domains.topology.structure import Structure

__all__ = ["ElasticEnergy"]


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class ElasticEnergy:
    """``1/2 u^T K(density) u - f^T u`` over the free displacements u, matrix-free: a sum over elements.

    A callable ``(displacements, density) -> energy`` for `sciopt.Minimize`. It never forms K; the solvers of this domain
    build K from `modulus`, and check it against this energy by the residual they report.

    Args:
        structure: grid, supports and load.
        modulus: Young's modulus of each element from the design, ``(*batch, ny, nx)`` to the same shape.
        poisson: Poisson's ratio of every element.

    Example:
        >>> from sciopt.domains.topology import Grid, SIMP, cantilever
        >>> energy = ElasticEnergy(structure=cantilever(Grid(nx=4, ny=2)), modulus=SIMP())
        >>> energy(torch.zeros(energy.size), torch.ones(2, 4)).item()
        0.0
    """

    structure: Structure
    modulus: Callable[[Tensor], Tensor]
    poisson: float = 0.3
    gather: Tensor = field(init=False, repr=False)
    element: Tensor = field(init=False, repr=False)
    load: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        free = self.structure.free
        place = np.full(self.structure.grid.num_dofs, free.size)  # held unknowns share the zero after the last free one
        place[free] = np.arange(free.size)
        object.__setattr__(self, "gather", torch.from_numpy(place[self.structure.grid.element_dofs()]))
        object.__setattr__(self, "element", torch.from_numpy(q4_stiffness(self.poisson)))
        object.__setattr__(self, "load", torch.from_numpy(self.structure.load[free]))

    @property
    def size(self) -> int:
        """Number of free displacements."""
        return self.load.numel()

    def moduli(self, displacements: Tensor, density: Tensor) -> Tensor:
        """Young's modulus of each element, flat ``(*batch, num_elements)``; arguments as for the energy."""
        return self.modulus(density).flatten(-2)

    def element_displacements(self, displacements: Tensor) -> Tensor:
        """Displacements of each element's corners, ``(*batch, n)`` to ``(*batch, num_elements, 8)``."""
        padded = torch.nn.functional.pad(displacements, (0, 1))
        gather = self.gather.to(displacements.device)
        return padded.index_select(-1, gather.reshape(-1)).unflatten(-1, tuple(gather.shape))

    def strain_energy(self, displacements: Tensor, density: Tensor) -> Tensor:
        """``1/2 u^T K u``, shape ``(*batch,)``."""
        local = self.element_displacements(displacements)
        per_element = ((local @ self.element.to(local)) * local).sum(-1)
        return 0.5 * (self.moduli(displacements, density) * per_element).sum(-1)

    def work(self, displacements: Tensor) -> Tensor:
        """``f^T u``, the work of the load, shape ``(*batch,)``; at equilibrium the compliance."""
        return (displacements * self.load.to(displacements)).sum(-1)

    def __call__(self, displacements: Tensor, density: Tensor) -> Tensor:
        """Potential energy ``(*batch,)`` of displacements ``(*batch, n)`` for densities ``(*batch, ny, nx)``."""
        return self.strain_energy(displacements, density) - self.work(displacements)

    def full_displacements(self, displacements: Tensor) -> Tensor:
        """Displacements of all nodes ``(*batch, num_nodes, 2)``, held ones zero."""
        grid = self.structure.grid
        full = displacements.new_zeros(*displacements.shape[:-1], grid.num_dofs)
        full[..., torch.from_numpy(self.structure.free).to(full.device)] = displacements
        return full.unflatten(-1, (grid.num_nodes, 2))
