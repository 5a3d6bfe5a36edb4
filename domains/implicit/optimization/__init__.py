"""Optimization problems as layers: quadratic programs, nonlinear least squares, entropic transport."""

from sciopt.domains.implicit.optimization.fitting import CurveFit, curve_fit
from sciopt.domains.implicit.optimization.quadratic import DegenerateWarning, quadratic_program
from sciopt.domains.implicit.optimization.transport import Transport, entropic_transport

__all__ = [
    "CurveFit",
    "DegenerateWarning",
    "Transport",
    "curve_fit",
    "entropic_transport",
    "quadratic_program",
]
