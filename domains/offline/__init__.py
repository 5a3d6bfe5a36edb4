"""Offline design: propose the next batch from a table of old results."""

from sciopt.domains.offline.ehrlich import Ehrlich
from sciopt.domains.offline.landscapes import nk_landscape, rough_mount_fuji
from sciopt.domains.offline.measured import gb1, tf_bind_8, transcription_factors
from sciopt.domains.offline.metrics import BatchReport, evaluate_batch, hamming, normalised
from sciopt.domains.offline.spaces import AMINO_ACIDS, DNA, CategoricalSpace
from sciopt.domains.offline.task import (
    AbstractTask,
    AbstractVisibleRule,
    AtMostQuantile,
    SampleBelow,
    Table,
    TableTask,
    WithinMutations,
)

__all__ = [
    "AMINO_ACIDS",
    "DNA",
    "AbstractTask",
    "AbstractVisibleRule",
    "AtMostQuantile",
    "BatchReport",
    "CategoricalSpace",
    "Ehrlich",
    "SampleBelow",
    "Table",
    "TableTask",
    "WithinMutations",
    "evaluate_batch",
    "gb1",
    "hamming",
    "nk_landscape",
    "normalised",
    "rough_mount_fuji",
    "tf_bind_8",
    "transcription_factors",
]
