"""A proposed batch as a table: designs, an empty column for their results, and what is expected of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sciopt.domains.offline.proposal.batch import ProposedBatch
from sciopt.domains.offline.proposal.roles import BATCH_COLUMNS
from sciopt.domains.offline.proposal.table_file import TableFile, write_table

__all__ = ["cell_text", "write_batch"]


def write_batch(
    path: str | Path,
    batch: ProposedBatch,
    score: str,
    *,
    like: TableFile | None = None,
    decimal_comma: bool = False,
) -> Path:
    """Write a batch as CSV (or TSV, by its name), through a rename.

    Columns: ``rank``, the design columns, the score, empty, for the results, ``predicted``, ``uncertainty`` (standard
    deviation of a new measurement about the prediction) and ``novelty``. With results in it, or without, it is a table that
    `read_table` and ``sciopt propose`` read.

    Args:
        path: of the file; what stands there is replaced.
        batch: what was proposed.
        score: name of the score.
        like: a table whose delimiter and mark are kept, so that the same program opens both.
        decimal_comma: write one half as ``0,5``.

    Returns:
        The path.

    Example:
        >>> import tempfile
        >>> from sciopt.domains.offline.proposal import propose
        >>> batch = propose([{"x": k / 8} for k in range(9)], [float(k) for k in range(9)], n=2)
        >>> write_batch(Path(tempfile.mkdtemp()) / "batch.csv", batch, "yield").read_text().splitlines()[0]
        'rank,x,yield,predicted,uncertainty,novelty'
    """
    path = Path(path)
    taken = {*batch.space.names, score}
    rank, *expected = (name if name not in taken else f"{name} (batch)" for name in BATCH_COLUMNS)
    rows = []
    told = zip(batch.predicted.tolist(), batch.uncertainty.tolist(), batch.novelty.tolist(), strict=True)
    for place, (row, numbers) in enumerate(zip(batch.rows, told, strict=True), 1):
        cells = [str(place), *(cell_text(row[name]) for name in batch.space.names), "", *(f"{v:.6g}" for v in numbers)]
        if decimal_comma:
            real = [False, *(isinstance(row[name], float) for name in batch.space.names), False, True, True, True]
            cells = [c.replace(".", ",") if is_real else c for c, is_real in zip(cells, real, strict=True)]
        rows.append(cells)
    delimiter = like.delimiter if like is not None and like.delimiter in ",;" else ";" if decimal_comma else ","
    return write_table(
        path,
        [rank, *batch.space.names, score, *expected],
        rows,
        delimiter="\t" if path.suffix.lower() == ".tsv" else delimiter,
        marked=like is not None and like.marked,
    )


def cell_text(value: Any) -> str:
    """A value as it stands in a cell; numbers in full, and short where they are short.

    Example:
        >>> cell_text(0.1), cell_text(3.0), cell_text("ACGT")
        ('0.1', '3', 'ACGT')
    """
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)
    return str(value)
