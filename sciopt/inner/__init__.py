"""How to find the settled state: one solver per file, and closed forms."""

from sciopt.inner.abstract import AbstractIterativeSolver, AbstractSolver, run
from sciopt.inner.adam import Adam
from sciopt.inner.anderson import Anderson
from sciopt.inner.broyden import Broyden
from sciopt.inner.closed_form import (
    kernel_ridge,
    logistic_newton,
    ridge,
    ridge_dual,
    ridge_primal,
    weighted_least_squares,
)
from sciopt.inner.constrained_newton import ConstrainedNewton
from sciopt.inner.dual_newton import logistic_dual
from sciopt.inner.eigen_solve import EigenSolve
from sciopt.inner.gauss_newton import GaussNewton
from sciopt.inner.gradient_descent import GradientDescent
from sciopt.inner.interior_point import InteriorPoint
from sciopt.inner.kernel_fit import KernelFit, fit_kernel, merge_duplicates
from sciopt.inner.kernel_forms import gradient_flow, leave_one_out, weighted_kernel_ridge
from sciopt.inner.lbfgs import LBFGS
from sciopt.inner.linear_solve import LinearSolve
from sciopt.inner.newton import Newton
from sciopt.inner.newton_cg import NewtonCG
from sciopt.inner.picard import Picard
from sciopt.inner.proximal_gradient import ProximalGradient
from sciopt.inner.scalar_root import ScalarRoot
from sciopt.inner.smoother_forms import bent_kernel, left_out_errors

__all__ = [
    "AbstractIterativeSolver",
    "AbstractSolver",
    "Adam",
    "Anderson",
    "Broyden",
    "ConstrainedNewton",
    "EigenSolve",
    "GaussNewton",
    "GradientDescent",
    "InteriorPoint",
    "KernelFit",
    "LBFGS",
    "LinearSolve",
    "Newton",
    "NewtonCG",
    "Picard",
    "ProximalGradient",
    "ScalarRoot",
    "bent_kernel",
    "fit_kernel",
    "gradient_flow",
    "kernel_ridge",
    "leave_one_out",
    "left_out_errors",
    "logistic_dual",
    "logistic_newton",
    "merge_duplicates",
    "ridge",
    "ridge_dual",
    "ridge_primal",
    "run",
    "weighted_kernel_ridge",
    "weighted_least_squares",
]
