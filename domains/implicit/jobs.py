"""The problems of this domain as jobs for campaigns and the command line."""

from __future__ import annotations

from sciopt.campaign.registry import ProblemKind
from sciopt.domains.implicit.science.kinetics_job import KineticsOptions, run_kinetics
from sciopt.domains.implicit.science.permittivity_job import PermittivityOptions, run_permittivity

__all__ = ["problems"]


def problems() -> list[ProblemKind]:
    """The problems of this domain, for the registry.

    Example:
        >>> [kind.name for kind in problems()]
        ['implicit.kinetics', 'implicit.permittivity']
    """
    return [
        ProblemKind(
            name="implicit.kinetics",
            summary="rate constants of a stiff mechanism, their uncertainties, and the best next measurement times",
            options=KineticsOptions,
            run=run_kinetics,
            version="1",
        ),
        ProblemKind(
            name="implicit.permittivity",
            summary="a permittivity field from noisy potentials, by the discrepancy principle",
            options=PermittivityOptions,
            run=run_permittivity,
            version="1",
        ),
    ]
