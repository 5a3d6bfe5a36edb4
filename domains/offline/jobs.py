"""The problems of this domain as jobs for campaigns and the command line."""

from __future__ import annotations

from sciopt.campaign.registry import ProblemKind
from sciopt.domains.offline.proposal.job import ProposeOptions, run_propose

__all__ = ["problems"]


def problems() -> list[ProblemKind]:
    """The problems of this domain, for the registry.

    Example:
        >>> [kind.name for kind in problems()]
        ['offline.propose']
    """
    return [
        ProblemKind(
            name="offline.propose",
            summary="the designs to test next, from a table of designs and scores",
            options=ProposeOptions,
            run=run_propose,
            version="1",
        ),
    ]
