"""Which columns of a table file are designs, which is the score, and what its cells mean."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

from sciopt.campaign.registry import did_you_mean
from sciopt.domains.offline.proposal.cells import as_number, cell_values, mostly_numbers, score_value
from sciopt.domains.offline.proposal.detection import ALPHABETS, LetterError, detected_column
from sciopt.domains.offline.proposal.table_file import TableError, TableFile

__all__ = ["BATCH_COLUMNS", "ColumnRole", "Observations", "design_rows", "observations"]

BATCH_COLUMNS = ("rank", "predicted", "uncertainty", "novelty")  # what a batch says beside designs and scores
LABELS = {
    "id",
    "ids",
    "index",
    "idx",
    "name",
    "names",
    "label",
    "date",
    "timestamp",
    "comment",
    "comments",
    "note",
    "notes",
}
LABELS |= {"remark", "remarks", "barcode", "well", "plate", "operator", "user", "author", "replicate", "batch", "round"}
LABELS |= {
    "run",
    "sample",
    "sample name",
    "no",
    "nr",
    "uuid",
    "key",
    "file",
    "filename",
    "source",
    "reference",
    "doi",
    "url",
}
ENDINGS = {"id", "ids", "idx", "index", "date", "comment", "comments", "note", "notes", "barcode", "uuid"}
MONTH = r"(jan|feb|mar|apr|ma[yi]|jun|jul|aug|sep|o[ck]t|nov|de[cz])[a-z]*"
DATE = re.compile(
    r"\d{4}-\d\d?-\d\d?([T ].*)?|\d{1,2}[./-]\d{1,2}[./-](\d{4}|\d\d)( .*)?"
    rf"|\d{{1,2}}[ .-]+{MONTH}[ .,-]+\d\d(\d\d)?|{MONTH} \d{{1,2}},? \d{{4}}",
    re.IGNORECASE,
)


@final
@dataclass(frozen=True, kw_only=True)
class ColumnRole:
    """What a column is taken for.

    Args:
        name: of the column.
        role: ``design``, ``score`` or ``left out``.
        reason: why it is left out; empty otherwise.

    Example:
        >>> str(ColumnRole(name="date", role="left out", reason="its cells are dates"))
        'date: left out, its cells are dates'
    """

    name: str
    role: str
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.name}: {self.role}" + (f", {self.reason}" if self.reason else "")


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Observations:
    """What table files say, ready for `propose`.

    Args:
        designs: one row for each of the tables: column -> value.
        scores: one for each row; NaN where a row waits for its score.
        places: file and line of each row.
        roles: what each column is taken for.
        notes: choices that were made while reading.

    Example:
        >>> Observations(designs=[{"x": 1.0}], scores=[math.nan], places=["t.csv, line 2"], roles=[]).pending
        1
    """

    designs: list[dict[str, Any]]
    scores: list[float]
    places: list[str]
    roles: list[ColumnRole]
    notes: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        """The design columns."""
        return list(self.designs[0])

    @property
    def pending(self) -> int:
        """Rows that wait for their score."""
        return sum(map(math.isnan, self.scores))


def observations(
    tables: Sequence[TableFile],
    *,
    score: str,
    designs: Sequence[str] = (),
    words: Sequence[str] = (),
    numbers: Sequence[str] = (),
    decimal_comma: bool = False,
) -> Observations:
    """Designs and scores of one or more tables; rows without a score are pending.

    Args:
        tables: that together hold what is known.
        score: column of the scores; cells that are empty, or say NA, NaN or ``pending``, wait for their score.
        designs: the design columns; none: all but the score and what are obviously no designs, with the reason.
        words: columns that are designs, and are read as text whatever they look like.
        numbers: columns that are designs, and must be numbers.
        decimal_comma: read ``0,5`` as one half.

    Returns:
        `Observations`.

    Raises:
        TableError: for missing columns and for cells that cannot be read, with file and line.

    Example:
        >>> from pathlib import Path
        >>> cells = {"id": ["a", "b"], "seq": ["ACGT", "ACGA"], "score": ["0.5", ""]}
        >>> got = observations([TableFile(path=Path("t.csv"), cells=cells, lines=[2, 3])], score="score")
        >>> got.designs, got.scores, [str(role) for role in got.roles]
        ([{'seq': 'ACGT'}, {'seq': 'ACGA'}], [0.5, nan], ['id: left out, labels by its name', 'seq: design', 'score: score'])
    """
    declared = [*words, *numbers]
    for table in tables:
        _check_columns(table, [score, *designs, *declared])
        if not len(table):
            raise TableError(f"{table.path}: expected rows below the column names, got none. Add results.")
    if score in designs or len(set(designs)) < len(designs):
        raise TableError(
            f"columns: expected different ones for designs and score, got {', '.join([*designs, score])}. Name each once."
        )
    names, roles = _roles(tables, score, list(designs), declared)
    rows = cell_values(tables, names, set(words), set(numbers), decimal_comma)
    scores = [
        score_value(table, row, score, cell, decimal_comma)
        for table in tables
        for row, cell in enumerate(table.cells[score])
    ]
    if all(map(math.isnan, scores)):
        raise TableError(
            f"{', '.join(str(table.path) for table in tables)}: expected scores in `{score}`, got {len(rows)} rows without "
            "one. Add results."
        )
    return Observations(
        designs=rows,
        scores=scores,
        places=[table.place(row) for table in tables for row in range(len(table))],
        roles=roles,
        notes=tuple(note for table in tables for note in table.notes),
    )


def design_rows(
    table: TableFile,
    names: Sequence[str],
    *,
    words: Sequence[str] = (),
    numbers: Sequence[str] = (),
    decimal_comma: bool = False,
) -> list[dict[str, Any]]:
    """The designs of a table, such as a pool of allowed ones; other columns are not looked at.

    Example:
        >>> from pathlib import Path
        >>> table = TableFile(path=Path("pool.csv"), cells={"x": ["1", "2"], "who": ["a", "b"]}, lines=[2, 3])
        >>> design_rows(table, ["x"])
        [{'x': 1}, {'x': 2}]
    """
    _check_columns(table, names)
    return cell_values([table], list(names), set(words), set(numbers), decimal_comma)


def _check_columns(table: TableFile, wanted: Sequence[str]) -> None:
    for name in wanted:
        if name in table.cells:
            continue
        found = list(table.cells)
        if any(as_number(cell, True) is not None for cell in found):
            raise TableError(
                f"{table.path}: expected column names in the first line, got {', '.join(found[:4])}, which look like data. "
                "Add a line of names above them."
            )
        if len(found) == 1 and len(found[0].split()) > 1:
            raise TableError(
                f"{table.path}: expected a column `{name}`, got one column `{found[0][:60]}`. Separate the cells by commas, "
                "semicolons or tabs."
            )
        known = f" Columns: {', '.join(found)}." if len(found) <= 30 else ""
        alike = [other for other in found if other.lower() == name.lower()]
        hint = f"Did you mean `{alike[0]}`?" if alike else did_you_mean(name, found)
        raise TableError(
            f"{table.path}: expected a column `{name}`, got none of that name. "
            + (hint + known if hint.startswith("Did") else known.strip() or hint)
        )


def _roles(
    tables: Sequence[TableFile], score: str, designs: list[str], declared: list[str]
) -> tuple[list[str], list[ColumnRole]]:
    """Design columns, and what each column of the first table is taken for."""
    weak: list[str] = []
    reasons: dict[str, str] = {}
    for name in tables[0].cells:
        if name == score or name in designs:
            continue
        if designs:
            reasons[name] = "not named by --design"
            continue
        if name in declared:
            continue
        without = [str(table.path) for table in tables if name not in table.cells]
        cells = [cell for table in tables for cell in table.cells.get(name, [])]
        reason, sure = (f"{without[0]} has no such column", True) if without else _why_not(name, cells)
        if reason:
            reasons[name] = reason
            weak += [] if sure else [name]
    kept = designs or [name for name in tables[0].cells if name != score and name not in reasons]
    if not kept:  # a doubtful design column is better than none
        kept = weak
        for name in weak:
            del reasons[name]
    if not kept:
        told = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        raise TableError(
            f"{tables[0].path}: expected design columns beside `{score}`, got none ({told or 'there is no other'}). Name them "
            "with --design."
        )
    roles = []
    for name in tables[0].cells:
        if name in reasons:
            roles.append(ColumnRole(name=name, role="left out", reason=reasons[name]))
        else:
            roles.append(ColumnRole(name=name, role="score" if name == score else "design"))
    return kept, roles


def _odd_letters(distinct: set[str]) -> str:
    """The one or two signs that keep words from being sequences of DNA, RNA or protein; empty for none, or for many."""
    letters = set("".join(distinct))
    odd = sorted(letter for letter in letters if not letter.isalpha())
    plain = {letter.upper() for letter in letters} - set(odd)
    if not 0 < len(odd) <= 2 or min(map(len, distinct)) < 6 or not any(plain <= set(a) for a in ALPHABETS.values()):
        return ""
    return " and ".join(map(repr, odd))


def _why_not(name: str, cells: list[str]) -> tuple[str, bool]:
    """Why a column is no design, and whether that is sure; empty if it may be one."""
    filled = [cell for cell in cells if cell]
    distinct = set(filled)
    tokens = re.sub(r"[^a-z0-9]+", " ", re.sub(r"([a-z])([A-Z])", r"\1 \2", name).lower()).split()
    if not filled:
        return "its cells are empty", True
    if name.removesuffix(" (batch)") in BATCH_COLUMNS:
        return "written beside an earlier batch", True
    if re.fullmatch(r"column \d+", name):
        return "it has no name", True
    if " ".join(tokens) in LABELS or (tokens and tokens[-1] in ENDINGS):
        return "labels by its name", True
    if all(DATE.fullmatch(cell) for cell in distinct):
        return "its cells are dates", True
    if len(distinct) == 1 and len(cells) > 1:
        return f"it is {filled[0][:40]} in every row", False
    numbers = [as_number(cell, True) for cell in filled]
    if all(value is not None for value in numbers):
        steps = {b - a for a, b in zip(numbers, numbers[1:], strict=False) if a is not None and b is not None}
        if len(filled) == len(cells) > 2 and steps == {1.0} and numbers[0] in (0.0, 1.0):
            return "its cells count the rows", False
        return "", True
    if not mostly_numbers(filled):
        try:
            detected_column(name, filled)
        except LetterError:  # a design with mistakes, which are told when all columns are known
            return "", True
        except ValueError:
            odd = _odd_letters(distinct)
            if odd:
                return f"sequences with {odd}; --column {name}=sequence takes these for letters", True
            letters, sizes = set("".join(distinct)), [len(cell) for cell in distinct]
            if max(sizes) >= 20 and any(
                letters <= set(kind) or letters <= set(kind.lower()) for kind in ALPHABETS.values()
            ):
                told = f"sequences of {min(sizes)} to {max(sizes)} letters, too different to be padded unasked"
                return f"{told}; --column {name}=sequence pads them", True
            if all(re.search(r"\s", cell) for cell in distinct):
                return "its cells are free text", True
            if any(re.search(r"[()=#\[\]]", cell) for cell in distinct):
                return "it looks like SMILES or formulas; describe them by columns of numbers", True
            return f"{len(distinct)} different words in {len(filled)} rows, like labels; --column declares it", True
    return "", True
