"""The next batch from a user's own table: columns, constraints, a fitted model, and a batch with its uncertainty."""

from sciopt.domains.offline.proposal.batch import Calibration, ProposedBatch
from sciopt.domains.offline.proposal.batch_file import write_batch
from sciopt.domains.offline.proposal.columns import AbstractColumn, CategoryColumn, NumberColumn, SequenceColumn
from sciopt.domains.offline.proposal.constraints import AbstractConstraint, RowTest, Rule, as_constraint
from sciopt.domains.offline.proposal.design_space import DesignSpace
from sciopt.domains.offline.proposal.detection import detect_columns
from sciopt.domains.offline.proposal.next_batch import ProposalOptions, propose
from sciopt.domains.offline.proposal.report import render_proposal
from sciopt.domains.offline.proposal.request import Request, read_request
from sciopt.domains.offline.proposal.table_file import TableError, read_table

__all__ = [
    "AbstractColumn",
    "AbstractConstraint",
    "Calibration",
    "CategoryColumn",
    "DesignSpace",
    "NumberColumn",
    "ProposalOptions",
    "ProposedBatch",
    "RowTest",
    "Rule",
    "Request",
    "SequenceColumn",
    "TableError",
    "as_constraint",
    "detect_columns",
    "propose",
    "read_request",
    "read_table",
    "render_proposal",
    "write_batch",
]
