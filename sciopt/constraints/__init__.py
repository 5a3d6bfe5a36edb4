"""Energies and geometry as inner problems: energies, distance geometry, rigid motions, alignment, projections."""

from sciopt.constraints.alignment import Alignment, kabsch
from sciopt.constraints.common import all_pairs
from sciopt.constraints.distance_geometry import (
    AbstractStress,
    DistanceGeometry,
    DistanceStress,
    SquaredStress,
    distance_geometry_problem,
    signed_volumes,
)
from sciopt.constraints.energy import HarmonicNetwork, PairEnergy, QuadraticForm
from sciopt.constraints.potentials import AbstractPairPotential, Harmonic, LennardJones, Morse
from sciopt.constraints.projection_problems import (
    box_problem,
    constrained_to,
    l1_ball_problem,
    simplex_problem,
    volume_problem,
)
from sciopt.constraints.projections import project_box, project_l1_ball, project_simplex, project_volume
from sciopt.constraints.rigid import connected_fragments, rigid_modes, rigid_nullspace

__all__ = [
    "AbstractPairPotential",
    "AbstractStress",
    "Alignment",
    "DistanceGeometry",
    "DistanceStress",
    "Harmonic",
    "HarmonicNetwork",
    "LennardJones",
    "Morse",
    "PairEnergy",
    "QuadraticForm",
    "SquaredStress",
    "all_pairs",
    "box_problem",
    "connected_fragments",
    "constrained_to",
    "distance_geometry_problem",
    "kabsch",
    "l1_ball_problem",
    "project_box",
    "project_l1_ball",
    "project_simplex",
    "project_volume",
    "rigid_modes",
    "rigid_nullspace",
    "signed_volumes",
    "simplex_problem",
    "volume_problem",
]
