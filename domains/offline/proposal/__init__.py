"""The next batch from a user's own table: columns, constraints, a fitted model, and a batch with its uncertainty."""

from sciopt.domains.offline.proposal.batch import Calibration, ProposedBatch
from sciopt.domains.offline.proposal.columns import AbstractColumn, CategoryColumn, NumberColumn, SequenceColumn
from sciopt.domains.offline.proposal.design_space import DesignSpace
from sciopt.domains.offline.proposal.detection import detect_columns
from sciopt.domains.offline.proposal.next_batch import propose

__all__ = [
    "AbstractColumn",
    "Calibration",
    "CategoryColumn",
    "DesignSpace",
    "NumberColumn",
    "ProposedBatch",
    "SequenceColumn",
    "detect_columns",
    "propose",
]
