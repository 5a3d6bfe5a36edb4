"""What is solved: minima, equations, constrained minima, eigenpairs, recurrences, initial values."""

from sciopt.problem.base import AbstractProblem
from sciopt.problem.constrained import Constrained
from sciopt.problem.eigen import Eigen
from sciopt.problem.equations import FixedPoint, RootFind
from sciopt.problem.evolution import InitialValue, Recurrence
from sciopt.problem.minimize import LeastSquares, Minimize
from sciopt.problem.quadratic import Program, QuadraticProgram

__all__ = [
    "AbstractProblem",
    "Constrained",
    "Eigen",
    "FixedPoint",
    "InitialValue",
    "LeastSquares",
    "Minimize",
    "Program",
    "QuadraticProgram",
    "Recurrence",
    "RootFind",
]
