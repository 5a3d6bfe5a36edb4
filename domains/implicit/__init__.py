"""Implicit layers: equilibrium networks, neural ODEs, stiff systems and optimization layers, on one differentiable core."""

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
    "MassAction",
    "Speciation",
    "StiffExample",
    "acid_base",
    "brusselator",
    "brusselator_line",
    "enzyme_cascade",
    "hires",
    "oregonator",
    "reactions",
    "robertson",
    "robertson_dae",
    "van_der_pol",
]
