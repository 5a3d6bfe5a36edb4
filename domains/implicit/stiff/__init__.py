"""Stiff kinetics: reaction networks and ready problems."""

from sciopt.domains.implicit.stiff.acid_base import Speciation, acid_base
from sciopt.domains.implicit.stiff.brusselator_problems import brusselator, brusselator_line
from sciopt.domains.implicit.stiff.cascade import enzyme_cascade
from sciopt.domains.implicit.stiff.classics import hires, oregonator, robertson, robertson_dae, van_der_pol
from sciopt.domains.implicit.stiff.example import StiffExample
from sciopt.domains.implicit.stiff.mass_action import MassAction, reactions

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
