"""Neural ordinary differential equations as layers, and models made of them."""

from sciopt.domains.implicit.ode.augmented import AugmentedODE
from sciopt.domains.implicit.ode.flow import ContinuousFlow
from sciopt.domains.implicit.ode.hamiltonian import HamiltonianField
from sciopt.domains.implicit.ode.integrals import AbstractIntegral, Divergence, JacobianNorm, KineticEnergy
from sciopt.domains.implicit.ode.latent import LatentODE
from sciopt.domains.implicit.ode.neural_ode import NeuralODE

__all__ = [
    "AbstractIntegral",
    "AugmentedODE",
    "ContinuousFlow",
    "Divergence",
    "HamiltonianField",
    "JacobianNorm",
    "KineticEnergy",
    "LatentODE",
    "NeuralODE",
]
