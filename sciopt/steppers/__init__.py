"""Time integration for `InitialValue`: per-sample steps, dense output, events, and exact discrete adjoints."""

from sciopt.steppers.abstract import AbstractOneStep, AbstractStepper, Attempt
from sciopt.steppers.algebraic import consistent_start, steady_state
from sciopt.steppers.explicit import RK4, Bosh3, Dopri5, Euler, Midpoint, Tsit5
from sciopt.steppers.field import Field
from sciopt.steppers.kvaerno5 import Kvaerno5
from sciopt.steppers.leapfrog import Leapfrog
from sciopt.steppers.rodas5p import Rodas5P
from sciopt.steppers.torchdiffeq_engine import TorchDiffEq, TorchDiffEqMethod

__all__ = [
    "AbstractOneStep",
    "AbstractStepper",
    "Attempt",
    "Bosh3",
    "Dopri5",
    "Euler",
    "Field",
    "Kvaerno5",
    "Leapfrog",
    "Midpoint",
    "RK4",
    "Rodas5P",
    "TorchDiffEq",
    "TorchDiffEqMethod",
    "Tsit5",
    "consistent_start",
    "steady_state",
]
