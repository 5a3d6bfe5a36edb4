"""``report.html`` of a proposed batch: what was decided, how far to trust it, and what to test, in one file."""

from __future__ import annotations

import io
import math
import time
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import torch

from sciopt.domains.offline.proposal.batch import ProposedBatch
from sciopt.domains.offline.proposal.columns import AbstractColumn, SequenceColumn
from sciopt.domains.offline.proposal.figures import calibration_figure, design_figures, scores_figure
from sciopt.domains.offline.proposal.pictures import write_picture
from sciopt.view.page import page, picture_tag, sortable_table, table_cell

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["calibration_figure", "design_figures", "render_proposal", "scores_figure"]

MOST_ROWS = 1000  # of the batch in the table
LONG = 40  # letters that a cell shows in one line


def render_proposal(
    batch: ProposedBatch,
    designs: Sequence[dict[str, Any]],
    scores: Sequence[float],
    *,
    score: str = "score",
    title: str = "The next batch",
    said: Sequence[str] = (),
    command: str = "",
) -> str:
    """The report as HTML text.

    Args:
        batch: what `propose` returned.
        designs: the rows that were given to it.
        scores: their scores; NaN where they are pending.
        score: name of the score.
        title: of the page.
        said: further lines on what was read and decided.
        command: that continues, shown at the end; empty: none.

    Example:
        >>> from sciopt.domains.offline.proposal import propose
        >>> designs, scores = [{"x": k / 8} for k in range(9)], [float(k) for k in range(9)]
        >>> text = render_proposal(propose(designs, scores, n=2), designs, scores)
        >>> text.count("data:image/png"), "<h1>The next batch</h1>" in text
        (3, True)
    """
    known = [(row, value) for row, value in zip(designs, scores, strict=True) if math.isfinite(value)]
    rows, values = [row for row, _ in known], torch.tensor([value for _, value in known], dtype=torch.float64)
    pictures = [("Scores", scores_figure(batch, values, name=score))]
    if batch.calibration is not None:
        pictures.insert(0, ("How far to trust the predictions", calibration_figure(batch, name=score)))
    parts = [
        _head(batch, score, title),
        "<h2>What was found and decided</h2>",
        '<div class="design">' + _decided(batch, said) + "</div>",
    ]
    for heading, figure in pictures:
        told = _trust(batch, score) if heading.startswith("How") else ""
        parts.append(f'<h2>{heading}</h2><div class="design">{told}{_tag(figure, heading)}</div>')
    parts.append("<h2>What the batch looks like</h2>")
    parts += [
        f'<div class="design">{_tag(figure, heading)}</div>'
        for heading, figure in design_figures(batch, rows, values, name=score)
    ]
    parts += [f"<h2>The batch</h2>{_batch_table(batch)}"]
    if command:
        parts.append(
            f"<footer>Test these, write the results into the column <code>{escape(score)}</code>, and continue:"
            f"<pre>{escape(command)}</pre></footer>"
        )
    return page(title, parts)


def _head(batch: ProposedBatch, score: str, title: str) -> str:
    sign = 1.0 if batch.maximize else -1.0
    top = sign * float((sign * batch.predicted).max())
    numbers = [
        (str(len(batch)), "designs to test"),
        (str(batch.measured), "different designs measured"),
        *([(str(batch.pending), "waiting for results")] if batch.pending else []),
        (f"{batch.best_score:.4g}", "best measured"),
        (f"{top:.4g}", "best predicted"),
        (f"{float(batch.predicted.median()):.4g}", "median predicted"),
        (f"{float(batch.novelty.median()):.2g}", "median novelty"),
        (f"{batch.diversity:.2g}", "diversity"),
    ]
    items = "".join(f"<li><b>{escape(number)}</b><span>{escape(what)}</span></li>" for number, what in numbers)
    aim = "largest" if batch.maximize else "smallest"
    return (
        f'<h1>{escape(title)}</h1><p class="lead">Proposed {time.strftime("%Y-%m-%d %H:%M")} for the {aim} '
        f'<code>{escape(score)}</code>.</p><ul class="numbers">{items}</ul>'
    )


def _decided(batch: ProposedBatch, said: Sequence[str]) -> str:
    """Columns, choices and the model, each as a list under its heading."""
    columns = [note for note in batch.notes if any(note.startswith(f"{name}: ") for name in batch.space.names)]
    choices = [note for note in batch.notes if note not in columns]
    found = ""
    for heading, lines in (("Columns", [*columns, *said]), ("Choices", choices), ("Model", batch.model)):
        if lines:
            found += f"<h3>{heading}</h3><ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"
    return found


def _trust(batch: ProposedBatch, score: str) -> str:
    """The calibration in words, with a warning where it deserves one."""
    seen = batch.calibration
    assert seen is not None
    spread = float(seen.observed.std(correction=0))
    inside = ", ".join(f"{reached:.0%} (promised {nominal:.0%})" for nominal, reached in sorted(seen.coverage.items()))
    told = seen.method if "rows" in seen.method else f"{seen.method}, {len(seen.observed)} designs"
    text = (
        f"<p>Measured designs were predicted without them ({escape(told)}): root mean square error {seen.rmse:.4g} where "
        f"{escape(score)} itself varies by {spread:.4g} (standard deviation); rank correlation {seen.rank_correlation:.2f}. "
        f"Inside the intervals: {inside}.</p>"
    )
    warnings = []
    if not seen.rank_correlation > 0.2:
        warnings.append(
            "The model hardly predicts rows that it has not seen: take the batch as exploration, and add results or columns "
            "that say more about the score."
        )
    widest = max(seen.coverage, default=None)
    if widest is not None:
        chance = 3 * math.sqrt(widest * (1 - widest) / len(seen.observed))
        if seen.coverage[widest] < widest - chance - 0.02:
            warnings.append("The uncertainties are too small: fewer rows lie inside the intervals than these promise.")
    return text + "".join(f'<p class="box">{warning}</p>' for warning in warnings)


def _batch_table(batch: ProposedBatch) -> str:
    names = ["rank", *batch.space.names, "predicted", "uncertainty", "novelty", "similarity within"]
    rows = []
    for place, row in enumerate(batch.rows[:MOST_ROWS]):
        cells = [table_cell(place + 1), *(_design_cell(column, row[column.name]) for column in batch.space.columns)]
        for values in (batch.predicted, batch.uncertainty, batch.novelty, batch.similarity_within):
            value = float(values[place])
            cells.append(f'<td class="n" data-value="{value!r}">{value:.4g}</td>')
        rows.append(cells)
    more = len(batch) - len(rows)
    note = f"<p>{more} more are in the table that was written.</p>" if more > 0 else ""
    return '<div class="scroll">' + sortable_table(names, rows) + "</div>" + note


def _design_cell(column: AbstractColumn, value: Any) -> str:
    """Sequences in letters of one width, broken where they are long."""
    if isinstance(column, SequenceColumn):
        lines = [value[i : i + LONG] for i in range(0, len(value), LONG)]
        return "<td><code>" + "<br>".join(map(escape, lines)) + "</code></td>"
    return table_cell(value)


def _tag(figure: Figure, text: str) -> str:
    return f"<figure>{picture_tag(_png(figure), text)}</figure>"


def _png(figure: Figure) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    file = io.BytesIO()
    write_picture(figure, file, dpi=150)
    return file.getvalue()
