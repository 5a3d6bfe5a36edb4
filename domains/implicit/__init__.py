"""Implicit layers: equilibrium networks, neural ODEs, stiff systems and optimization layers, on one differentiable core."""

from sciopt.domains.implicit.equilibrium import (
    DEQ,
    GradientError,
    gradient_error,
    jacobian_penalty,
    phantom_gradient,
    spectral_radius,
)
from sciopt.domains.implicit.stiff import (
    MassAction,
    Speciation,
    StiffExample,
    acid_base,
    brusselator,
    brusselator_line,
    enzyme_cascade,
    hires,
    oregonator,
    reactions,
    robertson,
    robertson_dae,
    van_der_pol,
)

__all__ = [
    "DEQ",
    "GradientError",
    "MassAction",
    "Speciation",
    "StiffExample",
    "acid_base",
    "brusselator",
    "brusselator_line",
    "enzyme_cascade",
    "gradient_error",
    "hires",
    "jacobian_penalty",
    "oregonator",
    "phantom_gradient",
    "reactions",
    "robertson",
    "robertson_dae",
    "spectral_radius",
    "van_der_pol",
]
