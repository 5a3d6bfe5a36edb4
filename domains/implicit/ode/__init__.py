"""Neural ordinary differential equations as layers, and models made of them."""

from sciopt.domains.implicit.ode.integrals import AbstractIntegral, Divergence, JacobianNorm, KineticEnergy
from sciopt.domains.implicit.ode.neural_ode import NeuralODE

__all__ = [
    "AbstractIntegral",
    "Divergence",
    "JacobianNorm",
    "KineticEnergy",
    "NeuralODE",
]
