"""Which kind of column the values of a table are, with the reason in one line."""

from __future__ import annotations

import math
import statistics
from collections.abc import Hashable, Sequence
from typing import Any

from sciopt.domains.offline.proposal.columns import (
    AbstractColumn,
    CategoryColumn,
    NumberColumn,
    SequenceColumn,
    shown,
)
from sciopt.domains.offline.spaces import AMINO_ACIDS, DNA

__all__ = ["LetterError", "detect_columns", "detected_column"]

ALPHABETS = {"DNA": DNA, "RNA": "ACGU", "protein": AMINO_ACIDS}
GAP = "-"
LEVELS = 30  # more levels than rows to learn them from are no category
SPREAD = 100.0  # positive numbers over two decades are taken as logarithmic


class LetterError(ValueError):
    """A few sequences of a column hold letters that the others do not.

    Example:
        >>> detected_column("seq", ["ACG" + letter + tail for letter in "ACGT" for tail in "ACG"] + ["ACGNA"])
        Traceback (most recent call last):
        sciopt.domains.offline.proposal.detection.LetterError: detect_columns: expected `seq` in letters of ACGT (DNA), ...
    """


def detect_columns(
    rows: Sequence[dict[str, Any]], *, given: Sequence[AbstractColumn] = ()
) -> tuple[tuple[AbstractColumn, ...], list[str]]:
    """Columns of a table of designs, and why: sequences, categories, whole and real numbers.

    Numbers become `NumberColumn` with the measured range as bounds, whole if all are, logarithmic if they are positive, span
    two decades, and have their median nearer to the logarithmic middle; strings that read as numbers count as such. Strings of
    the letters of DNA, RNA or protein, or of at most 30 other letters, of which most differ, become `SequenceColumn`; if their
    lengths differ by up to a factor of two, they are padded with gaps at the right end. Other strings and truth values become
    `CategoryColumn`.

    Args:
        rows: the designs, each with the same keys.
        given: columns that are declared already: they replace what would be detected under their names.

    Returns:
        The columns in the order of the first row, and one line for each that names its kind and the reason.

    Raises:
        ValueError: for no rows, missing values, or a column that tells nothing, such as names of samples.

    Example:
        >>> columns, reasons = detect_columns([{"seq": "ACGT", "ph": "7.5"}, {"seq": "ACGA", "ph": "4"}])
        >>> for reason in reasons:
        ...     print(reason)
        seq: sequences of 4 letters of ACGT (2 different, all letters are of DNA)
        ph: numbers from 4 to 7.5 (the measured range)
    """
    if not rows:
        raise ValueError("detect_columns: expected at least one row, got none. Pass the measured designs.")
    declared = {column.name: column for column in given}
    unknown = [name for name in declared if name not in rows[0]]
    if unknown:
        raise ValueError(
            f"detect_columns: expected columns among {', '.join(rows[0])}, got {unknown[0]!r}. Correct the name."
        )
    columns, reasons = [], []
    for name in rows[0]:
        if name in declared:
            columns.append(declared[name])
            reasons.append(f"{declared[name].describe()} (declared)")
            continue
        values = []
        for index, row in enumerate(rows):
            value = row.get(name)
            if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
                raise ValueError(
                    f"detect_columns: expected a value of `{name}` in each row, got none in row {index}. Complete or drop "
                    "that row, or leave the column out."
                )
            if isinstance(value, complex) or (isinstance(value, float) and not math.isfinite(value)):
                raise ValueError(
                    f"detect_columns: expected `{name}` as finite numbers or text, got {value!r} in row {index}. Correct or "
                    "drop that row."
                )
            values.append(value)
        column, reason = detected_column(name, values)
        columns.append(column)
        reasons.append(f"{column.describe()} ({reason})")
    return tuple(columns), reasons


def detected_column(name: str, values: Sequence[Any]) -> tuple[AbstractColumn, str]:
    """One column and the reason, see `detect_columns`.

    Example:
        >>> detected_column("solvent", ["THF", "DMF", "THF", "water"])[0].levels
        ('DMF', 'THF', 'water')
    """
    numbers = [_number(value) for value in values]
    if all(number is not None for number in numbers):
        return _number_column(name, [number for number in numbers if number is not None])
    if 2 * sum(number is not None for number in numbers) > len(values):
        row = next(row for row, number in enumerate(numbers) if number is None)
        raise ValueError(
            f"detect_columns: expected `{name}` as numbers, as in most of {len(values)} rows, got {shown(values[row])} in row "
            f"{row}. Correct or drop that row, or declare the column."
        )
    for row, value in enumerate(values):
        if not isinstance(value, Hashable) or isinstance(value, bytes):
            raise ValueError(
                f"detect_columns: expected `{name}` as plain texts, numbers or truth values, got {type(value).__name__} in "
                f"row {row}. Give each part a column of its own."
            )
    texts = [value if isinstance(value, str) else str(value) for value in values]
    distinct = sorted(set(texts))
    if all(isinstance(value, str) for value in values):
        found = _sequence_column(name, values, distinct)
        if found is not None:
            return found
    if len(distinct) > max(LEVELS, len(values) // 2) or (len(distinct) == len(values) > 8):
        raise ValueError(
            f"detect_columns: expected `{name}` as numbers, sequences or a category whose levels repeat, got {len(distinct)} "
            f"different values in {len(values)} rows, such as {shown(distinct[0])}. Leave it out if it names samples, or "
            "declare the column."
        )
    levels = tuple(sorted(set(values), key=str))
    alike = len({text.casefold() for text in distinct}) < len(distinct)
    why = f"{len(levels)} different values in {len(values)} rows" + (", some differ in capitals alone" if alike else "")
    return CategoryColumn(name=name, levels=levels), why


def _number(value: Any) -> float | None:
    """A finite number, or None; truth values are none."""
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _number_column(name: str, numbers: list[float]) -> tuple[AbstractColumn, str]:
    low, high = min(numbers), max(numbers)
    integer = all(number.is_integer() for number in numbers)
    log = False
    if low > 0 and high / low >= SPREAD and not integer:
        # equally spaced exponents have their median in the middle of the logarithms, not of the numbers
        middle = statistics.median(numbers)
        plain, logarithmic = (middle - low) / (high - low), math.log(middle / low) / math.log(high / low)
        log = abs(logarithmic - 0.5) < abs(plain - 0.5)
    reason = "the measured range" + (", over two decades with its median in the logarithmic middle" if log else "")
    return NumberColumn(name=name, low=low, high=high, integer=integer, log=log), reason


def _check_letters(name: str, values: Sequence[str], distinct: list[str]) -> None:
    """Refuse the few values with other letters, where most are DNA, RNA or protein: they are mistakes, no wider alphabet."""
    if len(distinct) < 8 or min(map(len, distinct)) < 4:
        return
    for kind, alphabet in ALPHABETS.items():
        wrong = [row for row, value in enumerate(values) if not set(value) <= {*alphabet, GAP}]
        if wrong and len(wrong) <= 0.2 * len(values):
            value = values[wrong[0]]
            letter = next(letter for letter in value if letter not in alphabet)
            raise LetterError(
                f"detect_columns: expected `{name}` in letters of {alphabet} ({kind}), as in {len(values) - len(wrong)} of "
                f"{len(values)} rows, got {letter!r} in {shown(value)} in row {wrong[0]}. Correct or drop that row, or "
                "declare the column."
            )
        if not wrong:
            return


def _check_kinds(name: str, values: Sequence[str], letters: set[str]) -> None:
    """Refuse DNA beside RNA, and small letters beside capitals, which are one alphabet to nobody but a computer."""
    capitals = set("".join(letters).upper())
    for kind, alphabet in ALPHABETS.items():
        if letters <= {*alphabet, *alphabet.lower()} and capitals != letters and not letters <= set(alphabet.lower()):
            row = next(row for row, value in enumerate(values) if value != value.upper())
            raise LetterError(
                f"detect_columns: expected `{name}` in capitals or in small letters ({kind}), got both, e.g. "
                f"{shown(values[row])} in row {row}. Write one of them, or declare the column."
            )
    if capitals == set("ACGTU"):
        row = next(row for row, value in enumerate(values) if "U" in value.upper())
        raise LetterError(
            f"detect_columns: expected `{name}` as DNA or as RNA, got T in some rows and U in others, e.g. "
            f"{shown(values[row])} in row {row}. Write one of them, or declare the column."
        )


def _sequence_column(name: str, values: Sequence[str], distinct: list[str]) -> tuple[AbstractColumn, str] | None:
    """A sequence column, or None where the strings look like levels of a category."""
    _check_letters(name, values, distinct)
    letters = set("".join(distinct))
    shortest, longest = min(map(len, distinct)), max(map(len, distinct))
    kind = next((kind for kind, alphabet in ALPHABETS.items() if letters <= set(alphabet)), None)
    kind = kind or next((k for k, alphabet in ALPHABETS.items() if letters <= set(alphabet.lower())), None)
    aligned = GAP in letters and next((k for k, a in ALPHABETS.items() if letters - {GAP} <= set(a)), None)
    compact = all(letter.isalpha() for letter in letters) and len(letters) <= LEVELS
    many = 2 * len(distinct) > len(values) or len(distinct) > LEVELS
    many = many or (kind is not None and shortest == longest >= 6 and len(distinct) >= 8)  # each measured several times
    # short words, or words of many lengths, are levels unless the letters say otherwise
    if shortest < (3 if kind in ("DNA", "RNA") else 4) or not many or 2 * shortest < longest:
        return None
    if kind is None and not aligned and not (compact and shortest == longest):
        return None
    if kind is None and compact and not all(text.isupper() or text.islower() for text in distinct):
        if shortest < 6:
            return None  # such as NaCl and LiBr
    if kind is None and shortest >= 4:
        _check_kinds(name, values, letters)
    if kind == "protein" and shortest < longest and longest < 8:
        return None
    if kind is not None:
        alphabet = ALPHABETS[kind] if letters <= set(ALPHABETS[kind]) else ALPHABETS[kind].lower()
    else:
        alphabet = "".join(sorted(letters))
        if aligned and shortest == longest:
            alphabet = ALPHABETS[aligned] + GAP
    if len(alphabet) < 2:
        return None
    why = f"{len(distinct)} different, " + (f"all letters are of {kind}" if kind else f"{len(letters)} letters")
    if shortest == longest:
        return SequenceColumn(name=name, length=longest, alphabet=alphabet), why
    gap = next(letter for letter in "-_.*~" if letter not in letters)
    made = SequenceColumn(name=name, length=longest, alphabet=alphabet, gap=gap, shortest=shortest)
    return made, why
