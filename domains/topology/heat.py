"""Heat conduction: where to put a good conductor so that a heated plate stays cool."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import final

import numpy as np
import torch
from torch import Tensor

from sciopt.bilevel import BilevelProblem
from sciopt.domains.topology.assembly import gather_places
from sciopt.domains.topology.connectivity import describe_place, reached
from sciopt.domains.topology.elements import conductance
from sciopt.domains.topology.filters import AbstractDensityMap, SensitivityFilter
from sciopt.domains.topology.grid import Grid
from sciopt.domains.topology.material import RAMP, SIMP
from sciopt.domains.topology.multigrid.placement import Placement, stored_energy
from sciopt.domains.topology.space import DesignSpace
from sciopt.outer.abstract import AbstractOuterStep
from sciopt.problem import Minimize

__all__ = ["Conductor", "ConductionEnergy", "HeatProblem", "heat_sink"]


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Conductor:
    """A grid with sinks held at temperature zero and a heat source.

    Args:
        grid: the elements, in two or three dimensions.
        sinks: numbers of the nodes that are held at zero.
        heat: heat per time into each node, ``(num_nodes,)``.
        name: what messages and reports call it.

    Raises:
        ValueError: without sinks, for nodes out of range, or heat that is not finite or reaches no free node.

    Example:
        >>> grid = Grid(nx=2, ny=1)
        >>> Conductor(grid=grid, sinks=np.array([0]), heat=np.ones(6)).free.size
        5
    """

    grid: Grid
    sinks: np.ndarray
    heat: np.ndarray
    name: str = "conductor"

    def __post_init__(self) -> None:
        n, owner = self.grid.num_nodes, f"Conductor {self.name!r}"
        sinks = np.unique(np.asarray(self.sinks, dtype=np.int64).reshape(-1))
        heat = np.array(self.heat, dtype=np.float64)
        object.__setattr__(self, "sinks", sinks)
        object.__setattr__(self, "heat", heat)
        if not sinks.size or sinks[0] < 0 or sinks[-1] >= n:
            got = f"{sinks[0]}..{sinks[-1]}" if sinks.size else "none, which leaves free: the level of temperature"
            raise ValueError(f"{owner}: expected `sinks` in [0, {n}), got {got}. Hold the temperature of some nodes.")
        if heat.shape != (n,) or not np.isfinite(heat).all():
            raise ValueError(
                f"{owner}: expected a finite `heat` of shape ({n},), got shape {heat.shape}. Give one number per node."
            )
        if not heat[self.free].any():
            raise ValueError(f"{owner}: expected `heat` at a node that is no sink, got zero there. Heat another node.")

    @property
    def free(self) -> np.ndarray:
        """Numbers of the nodes whose temperature is not held, ascending."""
        return np.setdiff1d(np.arange(self.grid.num_nodes), self.sinks, assume_unique=True)


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class ConductionEnergy:
    """``1/2 t^T K(density) t - q^T t`` over the free temperatures t, matrix-free; its minimum is the steady state.

    Args:
        conductor: grid, sinks and heat.
        conductivity: of each element from the design, of the grid's shape.

    Example:
        >>> energy = ConductionEnergy(conductor=heat_sink(Grid(nx=4, ny=4)), conductivity=SIMP(young_min=1e-3))
        >>> energy(torch.zeros(energy.size), torch.ones(4, 4)).item()
        0.0
    """

    conductor: Conductor
    conductivity: Callable[[Tensor], Tensor]
    placement: Placement = field(init=False, repr=False)
    element: Tensor = field(init=False, repr=False)
    load: Tensor = field(init=False, repr=False)
    springs: Tensor | None = field(init=False, repr=False, default=None)

    def __post_init__(self) -> None:
        grid, free = self.conductor.grid, self.conductor.free
        element = conductance(grid.ndim)
        object.__setattr__(self, "placement", Placement.of(grid, element, free))
        object.__setattr__(self, "element", torch.from_numpy(element))
        object.__setattr__(self, "load", torch.from_numpy(self.conductor.heat[free]))

    @property
    def size(self) -> int:
        """Number of free temperatures."""
        return self.load.numel()

    @property
    def gather(self) -> Tensor:
        """Free temperatures of each element, ``(elements, 2^d)``, see `gather_places`: for assembly."""
        return self._gather

    @cached_property
    def _gather(self) -> Tensor:
        grid = self.conductor.grid
        return gather_places(self.conductor.free, grid.num_nodes, grid.element_nodes())

    def moduli(self, temperatures: Tensor, density: Tensor) -> Tensor:
        """Conductivity of each element, ``(*batch, num_elements)``."""
        return self.conductivity(density).flatten(-self.conductor.grid.ndim)

    def dissipation(self, temperatures: Tensor) -> Tensor:
        """``q^T t``, shape ``(*batch,)``; at the steady state the thermal compliance."""
        return (temperatures * self.load.to(temperatures)).sum(-1)

    def held(self, material: np.ndarray, loaded: np.ndarray) -> np.ndarray:
        """Which free temperatures ``(n,)`` lie on material (bool, ``(elements,)``) that touches a sink."""
        grid = self.conductor.grid
        return reached(grid, material.reshape(grid.shape), self.conductor.sinks)[self.conductor.free]

    def stored(self, moduli: Tensor, unknowns: Tensor) -> Tensor:
        """Energy ``(*batch,)`` in elements of these moduli, ``(*batch, elements)`` as from `moduli`, springs apart."""
        return stored_energy(self.placement, moduli.unflatten(-1, self.placement.lattice.shape), unknowns)

    def place_of(self, unknown: int) -> str:
        """Coordinates of a free temperature's node, in element sides, for messages."""
        return describe_place(self.conductor.grid.positions()[self.conductor.free[unknown]])

    def __call__(self, temperatures: Tensor, density: Tensor) -> Tensor:
        """Energy ``(*batch,)`` of temperatures ``(*batch, n)`` for a design."""
        stored = stored_energy(self.placement, self.conductivity(density), temperatures)
        return stored - self.dissipation(temperatures)


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class HeatProblem:
    """The coolest plate for a given volume of a good conductor: minimise the heat-weighted temperature.

        inner:  t*(x) = argmin_t  1/2 t^T K(x) t - q^T t        steady conduction
        outer:  min_x q^T t*(x)   s.t.  sum(physical(x)) <= volume_fraction * elements,   0 <= x <= 1

    Args:
        structure: grid, sinks and heat.
        volume_fraction: share of the domain that may be filled, in (0, 1).
        material: conductivity of an intermediate density.
        filter: a map of densities, or a `Chain` of them, is part of the problem; a `SensitivityFilter` alters the outer step.

    Raises:
        ValueError: for a volume fraction outside (0, 1).

    Example:
        >>> problem = HeatProblem(structure=heat_sink(Grid(nx=6, ny=6)), volume_fraction=0.4)
        >>> problem.rest(problem.start()).shape
        torch.Size([48])

    References:
        Bendsoe, Sigmund. "Topology Optimization: Theory, Methods and Applications". 2003. Section 5.1.6.
    """

    structure: Conductor
    volume_fraction: float
    material: SIMP | RAMP = field(default_factory=lambda: SIMP(young_min=1e-3))
    filter: AbstractDensityMap | SensitivityFilter | None = None
    space: DesignSpace = field(init=False, repr=False)

    def __post_init__(self) -> None:
        shape = self.structure.grid.shape
        space = DesignSpace(owner="HeatProblem", shape=shape, volume_fraction=self.volume_fraction, filter=self.filter)
        object.__setattr__(self, "space", space)

    def physical(self, density: Tensor) -> Tensor:
        """The density that is built, of the grid's shape."""
        return self.space.physical(density)

    def conductivity(self, density: Tensor) -> Tensor:
        """Conductivity of each element for a design, of the grid's shape."""
        return self.material(self.physical(density))

    @cached_property
    def energy(self) -> ConductionEnergy:
        """The inner loss."""
        return ConductionEnergy(conductor=self.structure, conductivity=self.conductivity)

    @cached_property
    def bilevel(self) -> BilevelProblem:
        """The statement in the core's nouns."""
        return BilevelProblem(inner=Minimize(self.energy), outer_loss=self.compliance)

    def compliance(self, temperatures: Tensor, density: Tensor) -> Tensor:
        """``q^T t``, heat per time times temperature, shape ``(*batch,)``."""
        return self.energy.dissipation(temperatures)

    def volume(self, density: Tensor) -> Tensor:
        """Constraint ``(1,)``, <= 0 where the volume is kept."""
        return self.space.volume(density)

    def start(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """The even distribution of the allowed volume."""
        return self.space.start(dtype)

    def rest(self, density: Tensor) -> Tensor:
        """Zero temperatures ``(n,)``: the start of the inner solve."""
        return density.new_zeros(self.energy.size)

    def step(self, base: AbstractOuterStep) -> AbstractOuterStep:
        """``base``, driven by filtered sensitivities if the problem has a `SensitivityFilter`."""
        return self.space.step(base)

    def check(self, density: Tensor) -> None:
        """Check a design before a long solve; raises as `DesignSpace.check`."""
        self.space.check(density)


def heat_sink(grid: Grid) -> Conductor:
    """A box heated evenly by a total of 1, cooled at the middle fifth of its left side.

    Example:
        >>> heat_sink(Grid(nx=10, ny=10)).sinks.size
        3

    References:
        Bendsoe, Sigmund. "Topology Optimization: Theory, Methods and Applications". 2003. Fig. 5.7.
    """
    corners = grid.element_nodes()
    heat = np.bincount(corners.reshape(-1), minlength=grid.num_nodes) / corners.size
    place = grid.positions()
    middle = np.abs(place[:, 1:] - np.array(grid.sides[1:]) / 2) <= np.maximum(0.5, np.array(grid.sides[1:]) / 10)
    sinks = np.flatnonzero((place[:, 0] == 0) & middle.all(axis=1))
    return Conductor(grid=grid, sinks=sinks, heat=heat, name="heat_sink")
