"""Histories as comma-separated values, for spreadsheets and other plotting programs."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from sciopt.domains.topology.export.fields import replacing

__all__ = ["read_history", "write_history"]


def write_history(path: Path | str, history: Mapping[str, Sequence[float]]) -> Path:
    """Write columns of numbers under their names; every float comes back to the bit.

    Args:
        path: file to write, in a folder that exists; replaced as a whole or not at all.
        history: columns of equal length by name, e.g. that of a `JobResult`.

    Returns:
        The path.

    Raises:
        ValueError: for no columns, or columns of different lengths.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = write_history(Path(folder) / "a.csv", {"step": [0, 1], "compliance": [2.5, 0.1]})
        ...     path.read_text().split()
        ['step,compliance', '0,2.5', '1,0.1']
    """
    lengths = {name: len(column) for name, column in history.items()}
    if len(set(lengths.values())) != 1:
        raise ValueError(
            f"write_history: expected `history` with columns of equal length, got {lengths}. Give one number per step."
        )
    with replacing(path) as aside, aside.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(history)
        for row in zip(*history.values(), strict=True):
            table.writerow([value if isinstance(value, int) else repr(float(value)) for value in row])
    return Path(path)


def read_history(path: Path | str) -> dict[str, list[float]]:
    """Columns of a file that `write_history` or a spreadsheet wrote, in order, as floats.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: for cells that are no numbers, rows of other lengths, or names used twice, with the line.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     read_history(write_history(Path(folder) / "a.csv", {"change": [0.2, float("inf")]}))
        {'change': [0.2, inf]}
    """
    try:
        with Path(path).open(newline="", encoding="utf-8-sig") as file:
            names, *rows = csv.reader(file)
    except (ValueError, csv.Error) as error:  # no line at all, or no text
        raise ValueError(
            f"read_history: expected `path` to be a table with names in the first line, got {path} ({error}). Export it anew."
        ) from None
    if len(set(names)) != len(names):
        raise ValueError(
            f"read_history: expected each name once in the first line of `path`, got {names}. Rename columns."
        )
    columns: dict[str, list[float]] = {name: [] for name in names}
    for line, row in enumerate(rows, 2):
        try:
            for name, cell in zip(names, row, strict=True):
                columns[name].append(float(cell))
        except ValueError:
            raise ValueError(
                f"read_history: expected {len(names)} numbers in line {line} of `path`, got {row} in {path}. Correct it."
            ) from None
    return columns
