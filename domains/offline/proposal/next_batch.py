"""From a table of old results to the next batch, with every choice named."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sciopt.checks import check_option
from sciopt.domains.offline.acquisition import AbstractAcquisition, UpperConfidence
from sciopt.domains.offline.proposal.batch import NOMINAL, Calibration, ProposedBatch, rank_correlation
from sciopt.domains.offline.proposal.columns import AbstractColumn
from sciopt.domains.offline.proposal.design_space import DesignSpace
from sciopt.domains.offline.proposal.detection import detect_columns
from sciopt.domains.offline.proposal.intake import read_designs, read_scores
from sciopt.inner import fit_kernel, leave_one_out, merge_duplicates
from sciopt.kernels import RBF, gram

__all__ = ["propose"]


def propose(
    designs: Any,
    scores: Any,
    *,
    n: int = 128,
    columns: Sequence[AbstractColumn] = (),
    constraints: Sequence[Any] = (),
    pool: Any = None,
    maximize: bool = True,
    seed: int = 0,
    acquisition: AbstractAcquisition | None = None,
) -> ProposedBatch:
    """The next ``n`` designs to test.

    Args:
        designs: measured designs: a list of strings or dicts, a dict of columns, a tensor ``(n, d)``, or a data frame.
        scores: their scores ``(n,)``; empty (None, NaN) where the result is pending.
        n: designs to propose.
        columns: declared columns; the others are detected.
        constraints: what a design has to satisfy.
        pool: allowed designs, in a form of ``designs``; None: the whole space.
        maximize: whether higher scores are better.
        seed: of the one source of chance.
        acquisition: how the batch is chosen.

    Returns:
        `ProposedBatch`.

    Example:
        >>> batch = propose(["AAC", "AAT", "ATT", "TTT"], [1.0, 2.0, 3.0, 4.0], n=2)
        >>> len(batch.rows), batch.space.describe()
        (2, ['sequence: sequences of 3 letters of ACGT'])
    """
    check_option("propose", "n", n, n >= 1, ">= 1", "Pass the size of the batch.")
    generator = torch.Generator().manual_seed(seed)
    rows = read_designs(designs, columns)
    values = read_scores(scores, len(rows))
    found, reasons = detect_columns(rows, given=columns)
    space = DesignSpace(found)
    codes = space.encode(rows)
    notes = list(reasons)
    known = torch.isfinite(values)
    pending = codes[~known]
    sign = 1.0 if maximize else -1.0
    distinct, targets, _, _ = merge_duplicates(codes[known], sign * values[known])
    mean, scale = targets.mean(), targets.std(correction=0).clamp(min=1e-12)
    y, kernel = (targets - mean) / scale, RBF(length_scale=0.5)
    x = space.features(distinct)
    fit = fit_kernel(kernel, x, y, 1e-2)
    candidates = space.everything() if space.is_enumerable else space.random(4096, generator)
    if pool is not None:
        candidates = space.encode(read_designs(pool, found))
    both = torch.cat([distinct, pending])
    candidates = candidates[(candidates[:, None] != both).any(-1).all(-1)]
    points = space.features(candidates)
    short = fit.mean(points).topk(min(len(points), 4 * n)).indices
    candidates, points = candidates[short], points[short]
    chosen = (acquisition or UpperConfidence()).choose(
        fit.mean(points), fit.covariance(points), float(y.max()), min(n, len(points)), generator=generator
    )
    batch = candidates[chosen]
    covered = leave_one_out(gram(kernel, x), y, 1e-2)
    deviation = torch.full_like(y, float((covered - y).std()))
    inside = {p: float(((covered - y).abs() < deviation).double().mean()) for p in NOMINAL}
    predicted = sign * (fit.mean(points[chosen]) * scale + mean)
    apart = space.distance(batch, batch) + torch.diag_embed(torch.full((len(batch),), torch.inf, dtype=torch.float64))
    top = int(targets.argmax())
    within: Tensor = 1 - apart.amin(-1)
    pairs = max(1, len(batch) * (len(batch) - 1))
    return ProposedBatch(
        rows=space.decode(batch),
        predicted=predicted,
        uncertainty=(fit.variance(points[chosen]) + 1e-2).sqrt() * scale,
        novelty=space.distance(batch, distinct).amin(-1),
        similarity_within=within.clamp(min=0),
        diversity=float(space.distance(batch, batch).sum()) / pairs,
        calibration=Calibration(
            rows=torch.arange(len(y)),
            observed=sign * targets,
            predicted=sign * (covered * scale + mean),
            deviation=deviation * scale,
            coverage=inside,
            rmse=float((covered - y).square().mean().sqrt() * scale),
            rank_correlation=rank_correlation(covered, y),
            method="leave-one-out",
        ),
        notes=notes,
        model=["a Gaussian process"],
        space=space,
        codes=batch,
        measured=len(distinct),
        pending=len(pending),
        best_row=space.decode(distinct[top : top + 1])[0],
        best_score=sign * float(targets[top]),
        maximize=maximize,
    )
