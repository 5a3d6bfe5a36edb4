"""How to find the settled state: one solver per file, and closed forms."""

from sciopt.inner.abstract import AbstractIterativeSolver, AbstractSolver, run
from sciopt.inner.gradient_descent import GradientDescent
from sciopt.inner.lbfgs import LBFGS
from sciopt.inner.newton_cg import NewtonCG
from sciopt.inner.picard import Picard

__all__ = [
    "AbstractIterativeSolver",
    "AbstractSolver",
    "GradientDescent",
    "LBFGS",
    "NewtonCG",
    "Picard",
    "run",
]
