"""The published protocol's figures of a proposed batch, with novelty and diversity."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from sciopt.domains.offline.task import AbstractTask

__all__ = ["BatchReport", "evaluate_batch", "hamming", "normalised"]


@final
@dataclass(frozen=True, kw_only=True)
class BatchReport:
    """What a batch is worth, by the oracle.

    Args:
        best: highest normalised score (the 100th percentile).
        median: the 50th percentile.
        distinct: number of different designs.
        unscored: designs that are infeasible or without a score; they count as 0.
        novelty: mean Hamming distance to the nearest visible design, over the length.
        unseen: share of the designs that are not visible.
        diversity: mean Hamming distance between two designs of the batch, over the length.
        scores: normalised scores ``(n,)``.

    Example:
        >>> from sciopt.domains.offline import nk_landscape
        >>> task = nk_landscape(length=4, neighbours=0)
        >>> evaluate_batch(task, task.space.everything()).best
        1.0

    References:
        Trabucco et al. "Design-Bench". ICML 2022, section 5. Chen et al. "Bidirectional learning for offline
        infinite-width model-based optimization". NeurIPS 2022, section 4.
    """

    best: float
    median: float
    distinct: int
    unscored: int
    novelty: float
    unseen: float
    diversity: float
    scores: Tensor


def normalised(task: AbstractTask, designs: Tensor) -> Tensor:
    """Oracle scores as ``(score - low) / (high - low)`` with the task's bounds, ``(n,)``; NaN and -inf stay.

    Raises:
        ValueError: for a task whose bounds or scores are not what `AbstractTask` says.

    Example:
        >>> from sciopt.domains.offline import nk_landscape
        >>> task = nk_landscape(length=4, neighbours=0)
        >>> float(normalised(task, task.space.everything()).min())
        0.0
    """
    low, high = task.bounds
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(
            f"{type(task).__name__}: expected `bounds` as two finite scores in order, got ({low}, {high}). Return the scores "
            "that are normalised to 0 and to 1."
        )
    scores = task.score(designs)
    if not isinstance(scores, Tensor) or scores.shape != designs.shape[:1]:
        got = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise ValueError(
            f"{type(task).__name__}: expected `score` to return {len(designs)} scores, one per design, got {got}. Return a "
            "tensor of shape (n,)."
        )
    return (scores - low) / (high - low)


def hamming(left: Tensor, right: Tensor) -> Tensor:
    """Differing positions between designs ``(n, length)`` and ``(m, length)``: int64 ``(n, m)``.

    Example:
        >>> hamming(torch.tensor([[0, 1]]), torch.tensor([[0, 1], [1, 0]]))
        tensor([[0, 2]])
    """
    out = torch.zeros(len(left), len(right), dtype=torch.int64, device=left.device)
    for k in range(left.shape[1]):
        out += left[:, k, None] != right[:, k]
    return out


def evaluate_batch(task: AbstractTask, designs: Tensor) -> BatchReport:
    """Score a batch with the oracle, by the published protocol. Call it once, after the search.

    Args:
        task: the task.
        designs: the batch, int64 ``(n, length)``.

    Returns:
        `BatchReport`.

    Raises:
        ValueError: for an empty batch, or designs outside the space.

    Example:
        >>> from sciopt.domains.offline import nk_landscape
        >>> task = nk_landscape(length=4, neighbours=0)
        >>> report = evaluate_batch(task, task.visible().designs)
        >>> report.unseen, report.distinct
        (0.0, 8)
    """
    if not len(task.space.check(designs)):
        raise ValueError("evaluate_batch: expected at least one design, got none. Propose a batch first.")
    raw = normalised(task, designs)
    known = torch.isfinite(raw)
    scores = torch.where(known, raw, 0.0)
    nearest = hamming(designs, task.visible().designs).amin(-1)
    between = hamming(designs, designs)
    pairs = max(1, len(designs) * (len(designs) - 1))
    return BatchReport(
        best=float(scores.max()),
        median=float(torch.quantile(scores, 0.5)),
        distinct=len(torch.unique(designs, dim=0)),
        unscored=int((~known).sum()),
        novelty=float(nearest.double().mean()) / task.space.length,
        unseen=float((nearest > 0).double().mean()),
        diversity=float(between.sum()) / pairs / task.space.length,
        scores=scores,
    )
