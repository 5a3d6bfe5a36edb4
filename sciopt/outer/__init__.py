"""Outer loops: how a design moves, by hypergradients."""

from sciopt.outer.abstract import AbstractOuterStep
from sciopt.outer.checkpoint import CheckpointError
from sciopt.outer.gauss_newton import GaussNewtonStep
from sciopt.outer.kkt import KKTResidual, kkt_residual
from sciopt.outer.loop import optimize
from sciopt.outer.mma import MMA
from sciopt.outer.optimality_criteria import OptimalityCriteria
from sciopt.outer.result import OptimizeError, OptimizeResult, StepRecord
from sciopt.outer.scipy_loop import ScipyLBFGSB, ScipySLSQP
from sciopt.outer.settled import Settled
from sciopt.outer.tolerance import DecreasingTolerance
from sciopt.outer.transformed import TransformedGradient

__all__ = [
    "MMA",
    "AbstractOuterStep",
    "CheckpointError",
    "DecreasingTolerance",
    "GaussNewtonStep",
    "KKTResidual",
    "OptimalityCriteria",
    "OptimizeError",
    "OptimizeResult",
    "ScipyLBFGSB",
    "ScipySLSQP",
    "Settled",
    "StepRecord",
    "TransformedGradient",
    "kkt_residual",
    "optimize",
]
