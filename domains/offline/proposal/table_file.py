"""Tables as files: CSV and TSV as laboratories and spreadsheets write them, read with line numbers, written at once."""

from __future__ import annotations

import csv
import os
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

__all__ = ["TableError", "TableFile", "read_table", "write_table"]

DELIMITERS = (",", ";", "\t", "|")
LOOKED_AT = 50  # records that the delimiter is found by
LARGEST_CELL = 10_000_000


class TableError(ValueError):
    """Something in a user's file that the user can put right; the message names file, line and what to do.

    Example:
        >>> issubclass(TableError, ValueError)
        True
    """


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class TableFile:
    """A table as text: one list of cells for each column.

    Args:
        path: where it was read.
        cells: column name -> cells, without blanks around them; empty where there is nothing.
        lines: line of the file that each row begins at, from 1.
        delimiter: between cells.
        marked: whether the file begins with a byte-order mark, as spreadsheets write.
        notes: choices that were made while reading.

    Example:
        >>> TableFile(path=Path("t.csv"), cells={"x": ["1", "2"]}, lines=[2, 3]).place(1)
        't.csv, line 3'
    """

    path: Path
    cells: dict[str, list[str]]
    lines: list[int]
    delimiter: str = ","
    marked: bool = False
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.lines)

    def place(self, row: int) -> str:
        """File and line of a row, for messages."""
        return f"{self.path}, line {self.lines[row]}"


def read_table(path: str | Path) -> TableFile:
    """Read a table with column names in its first line.

    Commas, semicolons, tabs and bars are recognised as delimiters; byte-order marks, quoted cells, empty lines, lines of
    comments (``#``) above the names, a ``#`` before the names, short rows and rows of nothing are understood. The file is
    read as a stream, in UTF-8, or UTF-16 with its mark, or else Windows-1252 with a note.

    Args:
        path: of the file.

    Returns:
        `TableFile`.

    Raises:
        TableError: for what is no such file, with the line.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "t.csv"
        >>> _ = file.write_text("sequence;score\\nACGT;0.5\\n\\nACGA;\\n")
        >>> table = read_table(file)
        >>> table.cells, table.lines, table.delimiter
        ({'sequence': ['ACGT', 'ACGA'], 'score': ['0.5', '']}, [2, 4], ';')
    """
    path = Path(path)
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            raise TableError(
                f"{path}: expected a file, got a pipe or a device, which cannot be read twice. Save the table first."
            )
        with path.open("rb") as file:
            start = file.read(4)
    except OSError as error:
        raise TableError(f"{path}: expected a table, got none ({error.strerror}). Check the path.") from error
    if start[:2] == b"PK" or start == b"\xd0\xcf\x11\xe0":
        raise TableError(f"{path}: expected text, got a spreadsheet. Save it as CSV (UTF-8).")
    if start[:2] == b"\x1f\x8b":
        raise TableError(f"{path}: expected text, got a compressed file. Unpack it with gunzip.")
    encoding = "utf-16" if start[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    marked = start[:3] == b"\xef\xbb\xbf"
    try:
        return _read(path, encoding, marked, ())
    except UnicodeError as error:
        if encoding == "utf-16":
            raise TableError(
                f"{path}: expected UTF-16 text after its mark, got other bytes. Save it as UTF-8."
            ) from error
    note = f"{path}: it is not UTF-8 text and was read as Windows-1252; check accents and signs in the names"
    try:
        return _read(path, "cp1252", False, (note,))
    except UnicodeError as error:
        raise TableError(f"{path}: expected text, got bytes that are none. Save the table as CSV (UTF-8).") from error


def _read(path: Path, encoding: str, marked: bool, notes: tuple[str, ...]) -> TableFile:
    csv.field_size_limit(LARGEST_CELL)
    skipped, told, hashed = _preamble(path, encoding)
    delimiter = told or _delimiter(path, encoding, skipped)
    with path.open(encoding=encoding, newline="") as file:
        for _ in range(skipped):
            file.readline()
        reader = csv.reader(file, delimiter=delimiter, strict=True, skipinitialspace=True)
        names: list[str] = []
        columns: list[list[str]] = []
        lines: list[int] = []
        line = skipped + 1
        try:
            for record in reader:
                cells = [cell.strip() for cell in record]
                if any(cells):
                    if "\0" in "".join(cells):
                        raise TableError(
                            f"{path}, line {line}: expected text, got binary data. Save the table as CSV (UTF-8)."
                        )
                    if not names:
                        cells[0] = cells[0].lstrip("# ") if hashed else cells[0]
                        names = _names(path, line, cells)
                        columns = [[] for _ in names]
                    else:
                        _add(path, line, names, columns, cells)
                        lines.append(line)
                line = skipped + reader.line_num + 1
        except csv.Error as error:
            raise TableError(
                f"{path}, line {line}: expected cells separated by {_spoken(delimiter)}, got a row that cannot be read "
                f"({error}). A quotation mark that opens a cell must close it."
            ) from error
    if not names:
        raise TableError(
            f"{path}: expected column names in the first line, got an empty file. Write the table into it."
        )
    cells_of = {}
    for place, (name, column) in enumerate(zip(names, columns, strict=True), 1):
        if name or any(column):
            cells_of[name or f"column {place}"] = column
    return TableFile(path=path, cells=cells_of, lines=lines, delimiter=delimiter, marked=marked, notes=notes)


def _preamble(path: Path, encoding: str) -> tuple[int, str | None, bool]:
    """Lines above the names, the delimiter where a spreadsheet says it (``sep=;``), and whether a ``#`` precedes the names."""
    skipped, comment = 0, ""
    with path.open(encoding=encoding, newline="") as file:
        for text in file:
            told = text.strip().strip('"')
            if told[:4].lower() == "sep=" and len(told) == 5:
                return skipped + 1, told[4], False
            if text.strip() and not text.startswith("#"):
                return (skipped - 1, None, True) if _heads(comment, text) else (skipped, None, False)
            comment = text
            skipped += 1
    return skipped, None, False


def _heads(comment: str, text: str) -> bool:
    """Whether a comment holds the names of the cells in the line below it: as many, of which numbers stand below only."""
    for delimiter in DELIMITERS:
        names, cells = comment.strip().lstrip("# ").split(delimiter), text.split(delimiter)
        if len(names) == len(cells) > 1 and all(map(str.strip, names)):
            return any(map(_is_number, cells)) and not any(map(_is_number, names))
    return False


def _is_number(cell: str) -> bool:
    try:
        float(cell.strip().strip('"').replace(",", "."))
    except ValueError:
        return False
    return True


def _delimiter(path: Path, encoding: str, skipped: int) -> str:
    """The delimiter that gives most names, and as many cells in the rows below."""
    best, reached = ",", (0.0, 1)
    for candidate in DELIMITERS:
        widths: list[int] = []
        with path.open(encoding=encoding, newline="") as file:
            for _ in range(skipped):
                file.readline()
            try:
                for record in csv.reader(file, delimiter=candidate, skipinitialspace=True):
                    widths += [len(record)] if any(cell.strip() for cell in record) else []
                    if len(widths) > LOOKED_AT:
                        break
            except csv.Error:
                continue
        if not widths or widths[0] < 2:
            continue
        alike = sum(width == widths[0] for width in widths) / len(widths)
        if (alike, widths[0]) > reached:
            best, reached = candidate, (alike, widths[0])
    return best


def _names(path: Path, line: int, cells: list[str]) -> list[str]:
    """Column names, each once; nameless ones stay empty."""
    for place, name in enumerate(cells):
        if name and name in cells[:place]:
            raise TableError(
                f"{path}, line {line}: expected each column name once, got `{name}` in columns {cells.index(name) + 1} and "
                f"{place + 1}. Rename one."
            )
    return cells


def _add(path: Path, line: int, names: list[str], columns: list[list[str]], cells: list[str]) -> None:
    """One row; missing cells at its end are empty."""
    if any(cells[len(names) :]):
        raise TableError(
            f"{path}, line {line}: expected {len(names)} cells, as many as there are column names, got {len(cells)}. Put a "
            "cell that contains the delimiter into quotation marks."
        )
    for place, column in enumerate(columns):
        column.append(cells[place] if place < len(cells) else "")


def _spoken(delimiter: str) -> str:
    return {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}.get(delimiter, repr(delimiter))


def write_table(
    path: str | Path,
    names: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    delimiter: str = ",",
    marked: bool = False,
) -> Path:
    """Write a table in one stroke: under another name first, then renamed, so that no half of it is ever seen.

    Args:
        path: of the file; what stands there is replaced.
        names: of the columns.
        rows: of cells.
        delimiter: between cells.
        marked: begin with a byte-order mark, by which spreadsheets know UTF-8.

    Returns:
        The path.

    Example:
        >>> import tempfile
        >>> file = write_table(Path(tempfile.mkdtemp()) / "t.csv", ["x", "y"], [["a,b", "1"]])
        >>> file.read_text().splitlines()
        ['x,y', '"a,b",1']
    """
    path = Path(path)
    aside = path.with_name(f".{path.name}-{uuid.uuid4().hex[:8]}")
    try:
        with aside.open("w", encoding="utf-8-sig" if marked else "utf-8", newline="") as file:
            writer = csv.writer(file, delimiter=delimiter, lineterminator="\n")
            writer.writerow(names)
            writer.writerows(rows)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
    return path
