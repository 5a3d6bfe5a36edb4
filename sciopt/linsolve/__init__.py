"""Linear operators with declared structure, and batched solvers that keep one verdict per problem."""

from sciopt.linsolve.abstract import AbstractLinearSolver, AbstractPreconditioner
from sciopt.linsolve.bicgstab import BiCGSTAB
from sciopt.linsolve.cg import CG
from sciopt.linsolve.cholesky import Cholesky
from sciopt.linsolve.gmres import GMRES
from sciopt.linsolve.jacobi import Jacobi
from sciopt.linsolve.lsmr import LSMR
from sciopt.linsolve.lu import LU
from sciopt.linsolve.minres import MINRES
from sciopt.linsolve.neumann import Neumann
from sciopt.linsolve.nystrom import NystromPreconditioner
from sciopt.linsolve.operator import LinearOperator, Tag, function_operator, matrix_operator
from sciopt.linsolve.solve import default_solver, linear_solve
from sciopt.linsolve.sparse_lu import SparseFactors, SparseLU

__all__ = [
    "CG",
    "GMRES",
    "LSMR",
    "LU",
    "MINRES",
    "AbstractLinearSolver",
    "AbstractPreconditioner",
    "BiCGSTAB",
    "Cholesky",
    "Jacobi",
    "LinearOperator",
    "Neumann",
    "NystromPreconditioner",
    "SparseFactors",
    "SparseLU",
    "Tag",
    "default_solver",
    "function_operator",
    "linear_solve",
    "matrix_operator",
]
