"""Deep equilibrium layers: the output is the fixed point of a network, differentiated by the implicit function theorem."""

from sciopt.domains.implicit.equilibrium.estimates import jacobian_penalty, spectral_radius
from sciopt.domains.implicit.equilibrium.gradients import GradientError, gradient_error, phantom_gradient
from sciopt.domains.implicit.equilibrium.graph import GraphDEQ
from sciopt.domains.implicit.equilibrium.implicit_gnn import ImplicitGNN
from sciopt.domains.implicit.equilibrium.layer import DEQ
from sciopt.domains.implicit.equilibrium.monotone import MonotoneDEQ

__all__ = [
    "DEQ",
    "GradientError",
    "GraphDEQ",
    "ImplicitGNN",
    "MonotoneDEQ",
    "gradient_error",
    "jacobian_penalty",
    "phantom_gradient",
    "spectral_radius",
]
