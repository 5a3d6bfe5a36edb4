"""Linear operators with declared structure, and batched solvers that keep one verdict per problem."""

from sciopt.linsolve.abstract import AbstractLinearSolver, AbstractPreconditioner
from sciopt.linsolve.cg import CG
from sciopt.linsolve.cholesky import Cholesky
from sciopt.linsolve.gmres import GMRES
from sciopt.linsolve.lu import LU
from sciopt.linsolve.operator import LinearOperator, Tag, function_operator, matrix_operator

__all__ = [
    "CG",
    "GMRES",
    "LU",
    "AbstractLinearSolver",
    "AbstractPreconditioner",
    "Cholesky",
    "LinearOperator",
    "Tag",
    "function_operator",
    "matrix_operator",
]
