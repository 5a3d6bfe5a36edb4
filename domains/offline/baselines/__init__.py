"""Searches that anyone would ask for: random, mutants of the best, conservative models, adaptive sampling, CMA-ES."""

from sciopt.domains.offline.baselines.adaptive_sampling import CbAS
from sciopt.domains.offline.baselines.conservative import Conservative, train_conservative
from sciopt.domains.offline.baselines.evolution_strategy import CMAES
from sciopt.domains.offline.baselines.simple import MutateTheBest, RandomSearch

__all__ = ["CMAES", "CbAS", "Conservative", "MutateTheBest", "RandomSearch", "train_conservative"]
