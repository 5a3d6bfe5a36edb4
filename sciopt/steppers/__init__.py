"""Time integration for `InitialValue`: per-sample steps, dense output, events, and exact discrete adjoints."""

from sciopt.steppers.abstract import AbstractOneStep, AbstractStepper, Attempt
from sciopt.steppers.explicit import RK4, Bosh3, Dopri5, Euler, Midpoint, Tsit5
from sciopt.steppers.field import Field

__all__ = [
    "AbstractOneStep",
    "AbstractStepper",
    "Attempt",
    "Bosh3",
    "Dopri5",
    "Euler",
    "Field",
    "Midpoint",
    "RK4",
    "Tsit5",
]
