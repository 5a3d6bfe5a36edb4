"""Figures of a proposed batch: its calibration, its scores, and its designs against those of the table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from sciopt.domains.offline.proposal.batch import ProposedBatch
from sciopt.domains.offline.proposal.columns import AbstractColumn, CategoryColumn, NumberColumn, SequenceColumn
from sciopt.domains.offline.proposal.pictures import (
    draw_calibration,
    draw_coverage,
    draw_letters,
    draw_novelty,
    draw_scores,
    draw_values,
    literal,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["calibration_figure", "design_figures", "scores_figure"]

MOST_PANELS = 24  # columns with a picture
LONGEST = 40  # letters of a name


def calibration_figure(batch: ProposedBatch, *, name: str = "score") -> Figure:
    """Left-out predictions and the coverage of their intervals, side by side.

    Args:
        batch: with a calibration.
        name: of the score.

    Example:
        >>> from sciopt.domains.offline.proposal import propose
        >>> batch = propose([{"x": k / 8} for k in range(9)], [float(k) for k in range(9)], n=2)
        >>> len(calibration_figure(batch).axes)
        2
    """
    from matplotlib.figure import Figure

    seen = batch.calibration
    if seen is None:
        raise ValueError(
            "calibration_figure: expected `batch` with a calibration, got none. Propose with more results."
        )
    figure = Figure(figsize=(9.0, 4.0), layout="constrained")
    left, right = figure.subplots(1, 2)
    draw_calibration(left, seen.observed, seen.predicted, seen.deviation, name=name)
    draw_coverage(right, list(seen.coverage), list(seen.coverage.values()), count=len(seen.observed))
    return figure


def scores_figure(batch: ProposedBatch, scores: torch.Tensor, *, name: str = "score") -> Figure:
    """Scores of the table and of the batch, and how new the batch is.

    Args:
        batch: what was proposed.
        scores: measured ``(n,)``.
        name: of the score.

    Example:
        >>> from sciopt.domains.offline.proposal import propose
        >>> batch = propose([{"x": k / 8} for k in range(9)], [float(k) for k in range(9)], n=2)
        >>> scores_figure(batch, torch.arange(9.0)).axes[0].get_xlabel()
        'score'
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    draw_scores(left, scores, batch.predicted, name=name, maximize=batch.maximize, best=batch.best_score)
    draw_novelty(right, batch.novelty, batch.predicted, batch.uncertainty, best=batch.best_score, name=name)
    return figure


def design_figures(
    batch: ProposedBatch, designs: Sequence[dict[str, Any]], scores: torch.Tensor, *, name: str = "score"
) -> list[tuple[str, Figure]]:
    """A heat map of letters for each column of sequences, and one panel for each other column, with headings.

    Args:
        batch: what was proposed.
        designs: measured rows.
        scores: theirs ``(n,)``.
        name: of the score.

    Example:
        >>> from sciopt.domains.offline.proposal import propose
        >>> rows, scores = ["AAC", "AAT", "ATT", "TTT"], torch.arange(4.0, dtype=torch.float64)
        >>> batch = propose(rows, scores, n=2)
        >>> [heading for heading, _ in design_figures(batch, [{"sequence": row} for row in rows], scores)]
        ['Letters of sequence']
    """
    columns = list(batch.space.columns)
    found = [
        (f"Letters of {column.name}", _letters(column, batch, designs, scores))
        for column in columns
        if isinstance(column, SequenceColumn)
    ]
    others = [column for column in columns if not isinstance(column, SequenceColumn)]
    if others:
        found.append((f"{name} against the columns", _panels(others[:MOST_PANELS], batch, designs, scores, name)))
    return found


def _letters(
    column: SequenceColumn, batch: ProposedBatch, designs: Sequence[dict[str, Any]], scores: torch.Tensor
) -> Figure:
    """Shares of the letters in the table, its best tenth and the batch, and what has changed, one below the other."""
    from matplotlib.figure import Figure

    best = (scores if batch.maximize else -scores).argsort(descending=True)[: max(10, len(scores) // 10)].tolist()
    sequences = [str(row[column.name]) for row in designs]
    proposed = [str(row[column.name]) for row in batch.rows]
    kinds = [
        (f"{_cut(column.name)}: the table ({len(sequences)})", sequences, None),
        (f"its best {len(best)}", [sequences[i] for i in best], None),
        (f"the batch ({len(batch)})", proposed, None),
        ("the batch minus the table: what has become more frequent (blue) and less (red)", proposed, sequences),
    ]
    if len(sequences) <= 20:
        kinds.pop(1)
    tall = 0.55 + 0.11 * max(4, len(column.alphabet))
    figure = Figure(figsize=(9.0, tall * len(kinds) + 0.3), layout="constrained")
    for axes, (title, shown, other) in zip(figure.subplots(len(kinds), 1, squeeze=False)[:, 0], kinds, strict=True):
        draw_letters(axes, shown, letters=column.alphabet, length=column.length, title=title, against=other)
        axes.set_xlabel("")
        bar = figure.colorbar(
            axes.images[0], ax=axes, pad=0.01, aspect=12, ticks=[0, 1] if other is None else [-1, 0, 1]
        )
        bar.ax.tick_params(labelsize=7)
    figure.axes[len(kinds) - 1].set_xlabel("position")
    return figure


def _panels(
    columns: Sequence[AbstractColumn],
    batch: ProposedBatch,
    designs: Sequence[dict[str, Any]],
    scores: torch.Tensor,
    name: str,
) -> Figure:
    from matplotlib.figure import Figure

    across = min(4, len(columns))
    down = -(-len(columns) // across)
    figure = Figure(figsize=(9.0 if across > 2 else 4.5 * across, 2.4 * down + 0.3), layout="constrained")
    for place, column in enumerate(columns):
        axes = figure.add_subplot(down, across, place + 1)
        draw_values(
            axes,
            [_plain(column, row[column.name]) for row in designs],
            scores,
            [_plain(column, row[column.name]) for row in batch.rows],
            batch.predicted,
            name=column.name,
            log=isinstance(column, NumberColumn) and column.log,
            levels=column.levels if isinstance(column, CategoryColumn) else None,
        )
    figure.supylabel(literal(_cut(name)), fontsize=9)
    figure.suptitle("grey: measured; coloured: proposed, at the predicted score", fontsize=9)
    return figure


def _plain(column: AbstractColumn, value: Any) -> Any:
    return float(value) if isinstance(column, NumberColumn) else value


def _cut(name: str) -> str:
    return name if len(name) <= LONGEST else name[: LONGEST - 3] + "..."
