"""What `propose` returns: the batch, and how far its predictions can be trusted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from sciopt.domains.offline.proposal.design_space import DesignSpace

__all__ = ["Calibration", "ProposedBatch", "rank_correlation"]

NOMINAL = (0.5, 0.8, 0.95)


def rank_correlation(left: Tensor, right: Tensor) -> float:
    """Spearman's rank correlation, ties ranked by their mean; NaN where one side is constant.

    Args:
        left: ``(n,)``.
        right: ``(n,)``.

    Example:
        >>> round(rank_correlation(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 4.0, 9.0])), 9)
        1.0
    """
    one, two = (_ranks(side.to(torch.float64)) for side in (left, right))
    one, two = one - one.mean(), two - two.mean()
    scale = float(one.norm() * two.norm())
    return float(one @ two) / scale if scale > 0 else float("nan")


def _ranks(values: Tensor) -> Tensor:
    _, inverse, counts = torch.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum(0).to(torch.float64)
    return (last - 0.5 * (counts - 1))[inverse]


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Calibration:
    """Predictions for measured rows by the model without them.

    Args:
        rows: indices of the rows in the user's table ``(m,)``, int64; of merged rows the first.
        observed: their scores ``(m,)``.
        predicted: predictions without the row ``(m,)``.
        deviation: the standard deviations that the model gave ``(m,)``, in score units.
        coverage: for each nominal share (0.5, 0.8, 0.95) the share of scores inside that interval.
        rmse: root mean square error of the predictions, in score units.
        rank_correlation: Spearman's, between predicted and observed.
        method: how it was done, e.g. ``leave-one-out``.

    Example:
        >>> Calibration(
        ...     rows=torch.arange(2), observed=torch.ones(2), predicted=torch.ones(2), deviation=torch.ones(2),
        ...     coverage={0.5: 1.0}, rmse=0.0, rank_correlation=1.0, method="leave-one-out",
        ... ).rmse
        0.0
    """

    rows: Tensor
    observed: Tensor
    predicted: Tensor
    deviation: Tensor
    coverage: dict[float, float]
    rmse: float
    rank_correlation: float
    method: str


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class ProposedBatch:
    """The next designs to test. Made by `propose`.

    Args:
        rows: one dict per design, by the table's column names, the most promising first.
        predicted: predicted scores ``(n,)``, float64, in the scores' units.
        uncertainty: standard deviation of a new measurement's score about the prediction ``(n,)``, the same units.
        novelty: distance to the nearest measured design ``(n,)``, in [0, 1], see `DesignSpace.distance`.
        similarity_within: 1 - distance to the nearest other design of the batch ``(n,)``; 0 for a batch of one.
        diversity: mean distance between two designs of the batch.
        calibration: how well the model predicts measured rows that it has not seen; None where nothing was learned.
        notes: every choice that was made about the table, in sentences.
        model: what was fitted, in sentences.
        space: the columns.
        codes: the designs as codes of the space ``(n, width)``.
        measured: different designs with a score.
        pending: different designs without one, which are not proposed again.
        best_row: the measured design of best score.
        best_score: that score (the mean of its measurements).
        maximize: whether higher scores are better.

    Example:
        >>> from sciopt.domains.offline.proposal import propose
        >>> x = torch.linspace(0, 1, 9, dtype=torch.float64).unsqueeze(-1)
        >>> batch = propose(x, -((x[:, 0] - 0.55) ** 2), n=2)
        >>> 0.4 < batch.rows[0]["x0"] < 0.7, batch.measured, len(batch)
        (True, 9, 2)
    """

    rows: list[dict[str, Any]]
    predicted: Tensor
    uncertainty: Tensor
    novelty: Tensor
    similarity_within: Tensor
    diversity: float
    calibration: Calibration | None
    notes: list[str]
    model: list[str]
    space: DesignSpace
    codes: Tensor
    measured: int
    pending: int
    best_row: dict[str, Any]
    best_score: float
    maximize: bool

    def __len__(self) -> int:
        return len(self.rows)
