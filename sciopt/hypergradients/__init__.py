"""How theta*(phi) is differentiated: the survey's explicit, implicit and closed-form updates and their approximations."""

from sciopt.hypergradients.abstract import AbstractHypergradient, AbstractReattached
from sciopt.hypergradients.adjoint import HypergradientWarning
from sciopt.hypergradients.approximate import FiniteDifference, FirstOrder, OneStep
from sciopt.hypergradients.auto import Auto
from sciopt.hypergradients.cascade import Cascade
from sciopt.hypergradients.closed_form import ClosedForm
from sciopt.hypergradients.contraction import NeumannOrKrylov
from sciopt.hypergradients.forward import ForwardUnrolled
from sciopt.hypergradients.implicit import Implicit
from sciopt.hypergradients.interpolated import Backsolve, InterpolatedAdjoint
from sciopt.hypergradients.torchdiffeq_adjoint import TorchDiffEqAdjoint
from sciopt.hypergradients.unrolled import Unrolled

__all__ = [
    "AbstractHypergradient",
    "AbstractReattached",
    "Auto",
    "Backsolve",
    "Cascade",
    "ClosedForm",
    "FiniteDifference",
    "FirstOrder",
    "ForwardUnrolled",
    "HypergradientWarning",
    "Implicit",
    "InterpolatedAdjoint",
    "NeumannOrKrylov",
    "OneStep",
    "TorchDiffEqAdjoint",
    "Unrolled",
]
