"""Matrix-free geometric multigrid for elasticity on regular lattices of squares or cubes."""

from sciopt.domains.topology.multigrid.box import Box, BoxStructure, box_cantilever
from sciopt.domains.topology.multigrid.elements import element_stiffness, h8_stiffness, solid_elasticity
from sciopt.domains.topology.multigrid.energy import LatticeEnergy
from sciopt.domains.topology.multigrid.equilibrium import HierarchyCache, MultigridAdjoint, MultigridEquilibrium
from sciopt.domains.topology.multigrid.hierarchy import Hierarchy, VCycle
from sciopt.domains.topology.multigrid.lattice import Lattice
from sciopt.domains.topology.multigrid.pcg import Outcome, solve_fields
from sciopt.domains.topology.multigrid.stencil import StencilOperator
from sciopt.domains.topology.multigrid.stiffness import StiffnessOperator

__all__ = [
    "Box",
    "BoxStructure",
    "Hierarchy",
    "HierarchyCache",
    "Lattice",
    "LatticeEnergy",
    "MultigridAdjoint",
    "MultigridEquilibrium",
    "Outcome",
    "StencilOperator",
    "StiffnessOperator",
    "VCycle",
    "box_cantilever",
    "element_stiffness",
    "h8_stiffness",
    "solid_elasticity",
    "solve_fields",
]
