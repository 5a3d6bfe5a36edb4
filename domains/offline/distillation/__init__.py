"""Designs distilled from data by matching gradients, distributions and trajectories; reverse mapping."""

from sciopt.domains.offline.distillation.distill import Distillation
from sciopt.domains.offline.distillation.distributions import DistributionMatching, tilted
from sciopt.domains.offline.distillation.generator import GeneratorFamily
from sciopt.domains.offline.distillation.gradients import GradientMatching
from sciopt.domains.offline.distillation.kernel_regressions import KernelMatching
from sciopt.domains.offline.distillation.matching import (
    AbstractDistance,
    AbstractMatching,
    CosineDistance,
    Lesson,
    MatchingProblem,
    SquaredDistance,
    matching_lesson,
)
from sciopt.domains.offline.distillation.networks import NetworkFamily
from sciopt.domains.offline.distillation.reverse import ReverseMapping
from sciopt.domains.offline.distillation.reverse_training import ReverseProblem, reverse_problem
from sciopt.domains.offline.distillation.trajectories import TrajectoryMatching

__all__ = [
    "AbstractDistance",
    "AbstractMatching",
    "CosineDistance",
    "Distillation",
    "DistributionMatching",
    "GeneratorFamily",
    "GradientMatching",
    "KernelMatching",
    "Lesson",
    "MatchingProblem",
    "NetworkFamily",
    "ReverseMapping",
    "ReverseProblem",
    "SquaredDistance",
    "TrajectoryMatching",
    "matching_lesson",
    "reverse_problem",
    "tilted",
]
