"""The potential energy of an elastic structure: what the inner problem minimises."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import final

import numpy as np
import torch
from torch import Tensor

from sciopt.domains.topology.assembly import gather_places, gathered
from sciopt.domains.topology.connectivity import describe_place, held_nodes, marked
from sciopt.domains.topology.elements import elastic_stiffness
from sciopt.domains.topology.multigrid.placement import Placement, stored_energy
from sciopt.domains.topology.structure import Structure, refuse_gradient

__all__ = ["ElasticEnergy"]


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class ElasticEnergy:
    """``1/2 u^T K(density) u - f^T u`` over the free displacements u, matrix-free: a sum over elements.

    A callable ``(displacements, density) -> energy`` for `sciopt.Minimize`, in two and three dimensions. It never forms
    K: its derivatives of every order are products of the same kind, so that autograd keeps a few vectors and no element
    matrices, for a million elements too. The solvers of this domain (see `settle`) build what they need from `modulus`,
    and check it against this energy by the residual they report. With several load cases the
    displacements are ``(cases, n)`` and the energy ``(cases,)``: a `Minimize` with ``batch_ndim=1`` over one K.

    Args:
        structure: grid, supports and loads.
        modulus: Young's modulus of each element from the design, of the grid's shape after the design's batch.
        poisson: Poisson's ratio of every element.
        weight: weight of each element from the design, likewise, in units of force; None: none. It acts against the last
            axis, a 2^d-th of it on each corner, in every load case.
        modulus_by_case: with load cases: ``modulus`` gives a field for each of them, ``(*batch, cases, *grid.shape)``.

    Example:
        >>> from sciopt.domains.topology import Grid, SIMP, cantilever
        >>> energy = ElasticEnergy(structure=cantilever(Grid(nx=4, ny=2)), modulus=SIMP())
        >>> energy(torch.zeros(energy.size), torch.ones(2, 4)).item()
        0.0
    """

    structure: Structure
    modulus: Callable[[Tensor], Tensor]
    poisson: float = 0.3
    weight: Callable[[Tensor], Tensor] | None = None
    modulus_by_case: bool = False
    placement: Placement = field(init=False, repr=False)
    element: Tensor = field(init=False, repr=False)
    load: Tensor = field(init=False, repr=False)
    springs: Tensor | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        refuse_gradient("ElasticEnergy", "poisson", self.poisson)
        structure, grid = self.structure, self.structure.grid
        free = structure.free
        element = elastic_stiffness(grid.ndim, self.poisson)
        springs = None if structure.springs is None else torch.from_numpy(structure.springs[free])
        placement = Placement.of(grid, element, free, structure.springs)
        object.__setattr__(self, "placement", placement)
        object.__setattr__(self, "element", torch.from_numpy(element))
        object.__setattr__(self, "load", torch.from_numpy(structure.load[..., free]))
        object.__setattr__(self, "springs", springs)

    @property
    def size(self) -> int:
        """Number of free displacements."""
        return self.load.shape[-1]

    @property
    def batch_ndim(self) -> int:
        """1 with load cases, else 0: leading dimensions of the displacements for `sciopt.Minimize`."""
        return self.load.ndim - 1

    @property
    def gather(self) -> Tensor:
        """Free displacements of each element, ``(elements, d 2^d)``, see `gather_places`: for assembly, and stresses."""
        return self._gather

    @cached_property
    def _gather(self) -> Tensor:
        grid = self.structure.grid
        return gather_places(self.structure.free, grid.num_dofs, grid.element_dofs())

    def _per_case(self, values: Tensor) -> Tensor:
        return values.unsqueeze(-1 - self.structure.grid.ndim) if self.batch_ndim else values

    def _per_element(self, values: Tensor) -> Tensor:
        flat = values.flatten(-self.structure.grid.ndim)
        return flat.unsqueeze(-2) if self.batch_ndim else flat

    def moduli(self, displacements: Tensor, density: Tensor) -> Tensor:
        """Young's modulus of each element, flat ``(*batch, num_elements)``, with a dimension of one in the place of the
        load cases if there are any (and they share it); arguments as for the energy."""
        if self.modulus_by_case:
            return self.modulus(density).flatten(-self.structure.grid.ndim)
        return self._per_element(self.modulus(density))

    def element_displacements(self, displacements: Tensor) -> Tensor:
        """Displacements of each element's corners, ``(*batch, n)`` to ``(*batch, num_elements, d 2^d)``."""
        return gathered(displacements, self.gather)

    def strain_energy(self, displacements: Tensor, density: Tensor) -> Tensor:
        """``1/2 u^T K u``, shape ``(*batch,)``."""
        modulus = self.modulus(density)
        moduli = modulus if self.modulus_by_case else self._per_case(modulus)
        stored = stored_energy(self.placement, moduli, displacements)
        if self.springs is None:
            return stored
        return stored + 0.5 * (self.springs.to(displacements) * displacements.square()).sum(-1)

    def work(self, displacements: Tensor, density: Tensor | None = None) -> Tensor:
        """``f^T u``, the work of the load (and, given the density, of the weight), shape ``(*batch,)``; at equilibrium the
        compliance."""
        done = (displacements * self.load.to(displacements)).sum(-1)
        if self.weight is None or density is None:
            return done
        vertical, node = self._vertical
        weight = nodal(self._per_case(self.weight(density)), self.structure.grid.ndim).flatten(
            -self.structure.grid.ndim
        )
        weight = weight.index_select(-1, node.to(weight.device))
        return done - (weight * displacements.index_select(-1, vertical.to(weight.device))).sum(-1)

    @cached_property
    def _vertical(self) -> tuple[Tensor, Tensor]:
        """Places of the free displacements along the last axis, and their nodes in the lattice's order."""
        component = torch.div(self.placement.place, self.placement.lattice.num_nodes, rounding_mode="floor")
        vertical = torch.nonzero(component == self.structure.grid.ndim - 1).reshape(-1)
        return vertical, self.placement.place[vertical] % self.placement.lattice.num_nodes

    def __call__(self, displacements: Tensor, density: Tensor) -> Tensor:
        """Potential energy ``(*batch,)`` of displacements ``(*batch, n)`` for a design ``(*batch, ny, nx)``, 3D
        ``(*batch, nz, ny, nx)``."""
        return self.strain_energy(displacements, density) - self.work(displacements, density)

    def held(self, material: np.ndarray, loaded: np.ndarray) -> np.ndarray:
        """Which free displacements ``(n,)`` lie on material (bool, ``(elements,)``) that supports and springs hold against
        every rigid motion; of islands with ``loaded`` ones ``(n,)``. A sprung displacement is held by its spring."""
        structure, grid = self.structure, self.structure.grid
        wanted = marked(structure.free[loaded] // grid.ndim, grid.num_nodes)
        found = held_nodes(grid, material.reshape(grid.shape), structure.held, wanted)[structure.free // grid.ndim]
        return found if self.springs is None else found | (self.springs > 0).numpy()

    def stored(self, moduli: Tensor, unknowns: Tensor) -> Tensor:
        """Energy ``(*batch,)`` in elements of these moduli, ``(*batch, elements)`` as from `moduli`, springs apart."""
        return stored_energy(self.placement, moduli.unflatten(-1, self.placement.lattice.shape), unknowns)

    def place_of(self, unknown: int) -> str:
        """Coordinates of a free displacement's node, in element sides, for messages."""
        grid = self.structure.grid
        return describe_place(grid.positions()[self.structure.free[unknown] // grid.ndim])

    def full_displacements(self, displacements: Tensor) -> Tensor:
        """Displacements of all nodes ``(*batch, num_nodes, d)``, held ones zero."""
        grid = self.structure.grid
        full = displacements.new_zeros(*displacements.shape[:-1], grid.num_dofs)
        full[..., torch.from_numpy(self.structure.free).to(full.device)] = displacements
        return full.unflatten(-1, (grid.num_nodes, grid.ndim))


def nodal(values: Tensor, ndim: int) -> Tensor:
    """Values of elements ``(*batch, *shape)``, a 2^d-th of each on every corner, ``(*batch, *nodes)``.

    Example:
        >>> nodal(torch.tensor([[4.0, 8.0]]), 2)
        tensor([[1., 3., 2.],
                [1., 3., 2.]])
    """
    for axis in range(-ndim, 0):
        ahead = [0, 0] * (-1 - axis)
        low, high = (torch.nn.functional.pad(values, [*ahead, *ends]) for ends in ((0, 1), (1, 0)))
        values = 0.5 * (low + high)
    return values
