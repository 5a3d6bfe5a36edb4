"""What the cells of a table mean: numbers, words, and scores that are not there yet."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from sciopt.domains.offline.proposal.columns import shown
from sciopt.domains.offline.proposal.table_file import TableError, TableFile

__all__ = ["as_number", "cell_values", "mostly_numbers", "score_value"]

MISSING = {"", "na", "n/a", "nan", "null", "none", "-", "--", "?", "pending", "tbd", "#n/a", "<na>", "nat"}
THOUSANDS = re.compile(r"[-+]?[1-9]\d{0,2}(,\d{3})+(\.\d+)?")
DOTTED = re.compile(r"[-+]?[1-9]\d{0,2}(\.\d{3})+(,\d+)?")  # the same where the comma is the decimal sign
COMMA = re.compile(r"[-+]?\d+,\d+([eE][-+]?\d+)?")


def cell_values(
    tables: Sequence[TableFile], names: list[str], words: set[str], numbers: set[str], decimal_comma: bool
) -> list[dict[str, Any]]:
    """Cells as values: numbers where a column holds numbers, text otherwise."""
    columns = []
    for name in names:
        cells = [(table, row, cell) for table in tables for row, cell in enumerate(table.cells[name])]
        for table, row, cell in cells:
            if not cell:
                raise TableError(
                    f"{table.place(row)}: expected a value of `{name}`, got an empty cell. Fill it, drop the row, or choose "
                    "the design columns with --design."
                )
        texts = [cell for _, _, cell in cells]
        digits = len({len(text) for text in texts}) == 1 < len(texts[0]) and all(text.isdigit() for text in texts)
        spelt = digits and any(text[0] == "0" for text in texts) and len(texts[0]) >= 4
        if name in words or (name not in numbers and (spelt or not mostly_numbers(texts))):
            columns.append(texts)
        else:
            columns.append([_required(table, row, name, cell, decimal_comma) for table, row, cell in cells])
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def mostly_numbers(texts: list[str]) -> bool:
    """Most cells are numbers, so that the others are mistakes."""
    return sum(as_number(text, True) is not None for text in texts) * 2 > len(texts)


def as_number(text: str, decimal_comma: bool) -> int | float | None:
    """A finite number, an integer where it is written as one; None for anything else."""
    text = text.replace("\u2212", "-")  # the minus sign of typesetters and spreadsheets
    if decimal_comma and COMMA.fullmatch(text):
        text = text.replace(",", ".")
    if "_" in text:  # which Python reads as a separator of thousands
        return None
    try:
        value = float(text)
    except ValueError:
        return None
    if not math.isfinite(value):
        return None
    return int(text) if re.fullmatch(r"[-+]?\d{1,15}", text) else value


def _required(table: TableFile, row: int, name: str, cell: str, decimal_comma: bool) -> int | float:
    value = None if decimal_comma and DOTTED.fullmatch(cell) else as_number(cell, decimal_comma)
    if value is None:
        advice = _advice(cell, name, decimal_comma)
        raise TableError(f"{table.place(row)}: expected a number in `{name}`, got {shown(cell)}. {advice}")
    return value


def score_value(table: TableFile, row: int, name: str, cell: str, decimal_comma: bool) -> float:
    """The score of a cell; NaN where there is none yet."""
    if cell.lower() in MISSING:
        return math.nan
    value = None if decimal_comma and DOTTED.fullmatch(cell) else as_number(cell, decimal_comma)
    if value is None:
        advice = (
            _advice(cell, name, decimal_comma).partition(", or --column")[0].rstrip(".") + ", or leave the cell empty."
        )
        raise TableError(f"{table.place(row)}: expected a finite number in `{name}`, got {shown(cell)}. {advice}")
    return float(value)


def _advice(cell: str, name: str, decimal_comma: bool) -> str:
    if decimal_comma and DOTTED.fullmatch(cell):
        return f"Write {cell.replace('.', '')}, or with a comma if the point is meant as one."
    if THOUSANDS.fullmatch(cell):
        plain = f"Write {cell.replace(',', '')}, without separators of thousands"
        return plain + (", or pass --decimal-comma." if COMMA.fullmatch(cell) else ".")
    if COMMA.fullmatch(cell):
        return f"Write {cell.replace(',', '.')}, or pass --decimal-comma."
    if re.fullmatch(r"[<>]=?\s*[-+.\d]+", cell):
        return "Censored values are not modelled: write the limit itself."
    return f"Correct it, or --column {name}=category if these are names."
