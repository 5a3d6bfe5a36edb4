"""Columns as a user declares them in text: ``seq=sequence``, ``dose=log``, ``dose=0.1:100``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from sciopt.campaign.registry import did_you_mean
from sciopt.domains.offline.proposal.columns import AbstractColumn, CategoryColumn, NumberColumn, SequenceColumn
from sciopt.domains.offline.proposal.detection import ALPHABETS, detected_column
from sciopt.domains.offline.proposal.table_file import TableError

__all__ = ["KINDS", "declared_columns", "read_bounds", "read_kinds"]

KINDS = ("sequence", "category", "number", "integer", "log")


def read_kinds(texts: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """``name=kind`` texts as a dict.

    Args:
        texts: what was written.
        names: of the columns there are.

    Raises:
        TableError: for an unknown column or kind.

    Example:
        >>> read_kinds(["dose=log"], ["dose"])
        {'dose': 'log'}
    """
    found = {}
    for text in texts:
        name, _, kind = text.rpartition("=")
        if kind not in KINDS or not name:
            raise TableError(
                f"--column: expected `name=kind` with a kind out of {', '.join(KINDS)}, got {text!r}. E.g. --column "
                f"{(names or ['dose'])[0]}=category."
            )
        _check_name("--column", name, names, found)
        found[name] = kind
    return found


def read_bounds(texts: Sequence[str], names: Sequence[str]) -> dict[str, tuple[float, float]]:
    """``name=low:high`` texts as a dict.

    Args:
        texts: what was written.
        names: of the columns there are.

    Raises:
        TableError: for an unknown column, or bounds that are not two numbers in order.

    Example:
        >>> read_bounds(["dose=0.1:100"], ["dose"])
        {'dose': (0.1, 100.0)}
    """
    found = {}
    for text in texts:
        name, _, span = text.rpartition("=")
        low, _, high = span.partition(":")
        try:
            bounds = (float(low), float(high))
        except ValueError:
            bounds = (1.0, 0.0)
        if not name or not bounds[0] <= bounds[1] or not math.isfinite(bounds[1] - bounds[0]):
            raise TableError(
                f"--bounds: expected `name=low:high` with two finite numbers in order, got {text!r}. E.g. --bounds "
                f"{(names or ['dose'])[0]}=0:10."
            )
        _check_name("--bounds", name, names, found)
        found[name] = bounds
    return found


def _check_name(option: str, name: str, names: Sequence[str], said: Mapping[str, Any]) -> None:
    if name in said:
        raise TableError(f"{option}: expected each column once, got `{name}` twice. Say it once.")
    if name not in names:
        raise TableError(f"{option}: expected a design column, got `{name}`. {did_you_mean(name, names)}")


def declared_columns(
    rows: Sequence[Mapping[str, Any]], kinds: Mapping[str, str], bounds: Mapping[str, tuple[float, float]]
) -> list[AbstractColumn]:
    """The columns that a user declared, filled up by what the rows hold.

    Args:
        rows: measured and pending designs, and those of a pool.
        kinds: column -> one of sequence, category, number, integer, log.
        bounds: column -> least and largest number that may be proposed.

    Returns:
        Only the declared columns; the others are left to be detected.

    Raises:
        TableError: for bounds of what is no number, or numbers that do not fit their kind.

    Example:
        >>> declared_columns([{"x": 1}, {"x": 4}], {"x": "integer"}, {"x": (0.0, 9.0)})
        [NumberColumn(name='x', low=0.0, high=9.0, integer=True, log=False)]
    """
    made: list[AbstractColumn] = []
    for name in rows[0]:
        kind = kinds.get(name)
        if kind is None and name not in bounds:
            continue
        values = [row[name] for row in rows]
        if kind in ("sequence", "category"):
            if name in bounds:
                raise TableError(f"--bounds: expected a column of numbers, got `{name}`, a {kind}. Leave them out.")
            texts = [str(value) for value in values]
            made.append(_sequence(name, texts) if kind == "sequence" else _category(name, texts))
            continue
        if not all(isinstance(value, (int, float)) for value in values):
            raise TableError(f"--bounds: expected a column of numbers, got `{name}`, which holds text. Leave them out.")
        made.append(_number(name, values, kind, bounds.get(name)))
    return made


def _sequence(name: str, texts: Sequence[str]) -> SequenceColumn:
    letters = set("".join(texts))
    alphabet = next((known for known in ALPHABETS.values() if letters <= set(known)), "".join(sorted(letters)))
    shortest, longest = min(map(len, texts)), max(map(len, texts))
    if len(alphabet) < 2:
        raise TableError(
            f"--column: expected `{name}` with two letters at least, got {alphabet!r} alone. Leave it out."
        )
    if shortest == longest:
        return SequenceColumn(name=name, length=longest, alphabet=alphabet)
    gap = next(letter for letter in "-_.*~|" if letter not in letters)
    return SequenceColumn(name=name, length=longest, alphabet=alphabet, gap=gap, shortest=shortest)


def _category(name: str, texts: Sequence[str]) -> CategoryColumn:
    return CategoryColumn(name=name, levels=tuple(sorted(set(texts))))


def _number(name: str, values: Sequence[float], kind: str | None, bounds: tuple[float, float] | None) -> AbstractColumn:
    found, _ = detected_column(name, values)
    assert isinstance(found, NumberColumn)
    low, high = bounds if bounds is not None else (found.low, found.high)
    integer = kind == "integer" or (kind is None and found.integer and low.is_integer() and high.is_integer())
    log = kind == "log" or (kind is None and found.log and low > 0)
    if integer and not (found.integer and float(low).is_integer() and float(high).is_integer()):
        raise TableError(f"--column: expected whole numbers in `{name}`, got others. Declare {name}=number.")
    if log and (low <= 0 or found.low <= 0):
        raise TableError(
            f"--column: expected numbers > 0 in `{name}`, got {min(low, found.low):g}. Declare {name}=number."
        )
    return replace(found, low=float(low), high=float(high), integer=integer, log=log)
