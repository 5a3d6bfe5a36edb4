"""The problems of this domain as jobs for campaigns and the command line."""

from __future__ import annotations

from sciopt.campaign.registry import ProblemKind
from sciopt.domains.conformation.fitting_job import FitOptions, run_fit
from sciopt.domains.conformation.generation_job import GenerateOptions, run_generate
from sciopt.domains.conformation.training_job import TrainOptions, run_train

__all__ = ["problems"]


def problems() -> list[ProblemKind]:
    """The problems of this domain, for the registry.

    Example:
        >>> problems()[0].name
        'conformation.generate'
    """
    return [
        ProblemKind(
            name="conformation.generate",
            summary="low-energy conformers of one molecule, relaxed with MMFF94 from ETKDG starts",
            options=GenerateOptions,
            run=run_generate,
            version="1",
        ),
        ProblemKind(
            name="conformation.fit",
            summary="MMFF94 parameters fitted to reference conformers through relaxed geometries",
            options=FitOptions,
            run=run_fit,
            version="1",
        ),
        ProblemKind(
            name="conformation.train",
            summary="a network trained on reference conformers through the inner problem, scored on held-out scaffolds",
            options=TrainOptions,
            run=run_train,
            version="1",
        ),
    ]
