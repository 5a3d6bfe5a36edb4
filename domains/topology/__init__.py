"""Topology design: the best distribution of a limited amount of material, by elastic equilibrium and its adjoint."""

from sciopt.domains.topology.direct import DirectAdjoint, DirectEquilibrium, FactorCache
from sciopt.domains.topology.elements import plane_stress, q4_stiffness
from sciopt.domains.topology.energy import ElasticEnergy
from sciopt.domains.topology.filters import DensityFilter, SensitivityFilter, cone_sum
from sciopt.domains.topology.grid import Grid
from sciopt.domains.topology.material import SIMP
from sciopt.domains.topology.problem import ComplianceProblem
from sciopt.domains.topology.structure import PRESETS, Structure, bridge, cantilever, mbb

__all__ = [
    "PRESETS",
    "SIMP",
    "ComplianceProblem",
    "DensityFilter",
    "DirectAdjoint",
    "DirectEquilibrium",
    "ElasticEnergy",
    "FactorCache",
    "Grid",
    "SensitivityFilter",
    "Structure",
    "bridge",
    "cantilever",
    "cone_sum",
    "mbb",
    "plane_stress",
    "q4_stiffness",
]
