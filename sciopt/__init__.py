"""sciopt: scientific design by gradient-based bi-level optimization.

A state settles (inner problem) and a design is chosen so that the settled state is good (outer problem); the derivative
goes through the settling.
"""

from sciopt.bilevel import BilevelProblem, Hypergradient, hypergradient
from sciopt.problem import (
    Constrained,
    Eigen,
    FixedPoint,
    InitialValue,
    LeastSquares,
    Minimize,
    Recurrence,
    RootFind,
)
from sciopt.response import best_response
from sciopt.solution import Solution, SolveError, Status

__all__ = [
    "BilevelProblem",
    "Constrained",
    "Eigen",
    "FixedPoint",
    "Hypergradient",
    "InitialValue",
    "LeastSquares",
    "Minimize",
    "Recurrence",
    "RootFind",
    "Solution",
    "SolveError",
    "Status",
    "best_response",
    "hypergradient",
]
