"""A user's designs and scores, whatever they come in, as rows and one tensor."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import torch
from torch import Tensor

from sciopt.domains.offline.proposal.cells import MISSING
from sciopt.domains.offline.proposal.columns import AbstractColumn, shown

__all__ = ["read_count", "read_designs", "read_scores", "read_seed"]

OWNER = "propose"
LARGEST_SCORE = 1e100
LARGEST_BATCH = 100_000


def read_count(n: Any, owner: str = OWNER) -> int:
    """A number of designs, whatever kind of integer it is.

    Raises:
        ValueError: for anything but a whole number from 1 to 100,000.

    Example:
        >>> read_count(torch.tensor(3))
        3
    """
    try:
        count = 0 if isinstance(n, bool) else operator.index(n)
    except (TypeError, ValueError, RuntimeError):
        count = 0
    if count < 1:
        raise ValueError(f"{owner}: expected `n` as a whole number >= 1, got {shown(n)}. Pass the size of the batch.")
    if count > LARGEST_BATCH:
        raise ValueError(
            f"{owner}: expected `n` of at most {LARGEST_BATCH:,}, got {count:,}. Larger batches are searches, not "
            "experiments: propose fewer."
        )
    return count


def read_seed(seed: Any, owner: str = OWNER) -> int:
    """A seed, whatever kind of integer it is.

    Raises:
        ValueError: for anything but a whole number of 64 bits.

    Example:
        >>> read_seed(7)
        7
    """
    try:
        value = -1 if isinstance(seed, bool) else operator.index(seed)
    except (TypeError, ValueError, RuntimeError):
        value = -1
    if not 0 <= value < 1 << 64:
        raise ValueError(f"{owner}: expected `seed` as a whole number in [0, 2^64), got {shown(seed)}. E.g. 0.")
    return value


def read_designs(designs: Any, columns: Sequence[AbstractColumn] = (), owner: str = OWNER) -> list[dict[str, Any]]:
    """Designs as one dict per row.

    Args:
        designs: a list of strings (one column, ``sequence`` unless declared), a list of dicts, a dict of columns, a tensor,
            an array or lists ``(n, d)`` (columns ``x0`` ... unless declared), or a data frame.
        columns: declared columns, which name the columns of strings and numbers.
        owner: whom errors name.

    Returns:
        The rows, values as they came.

    Raises:
        ValueError: for columns of different lengths, or rows with other keys.
        TypeError: for anything else.

    Example:
        >>> read_designs(["ACG"]), read_designs({"a": [1, 2], "b": ["u", "v"]})
        ([{'sequence': 'ACG'}], [{'a': 1, 'b': 'u'}, {'a': 2, 'b': 'v'}])
    """
    odd = [column for column in columns if not isinstance(column, AbstractColumn)]
    if odd:
        raise TypeError(
            f"{owner}: expected `columns` as a list of columns, got {shown(odd[0])} in it. E.g. [NumberColumn(name='x', "
            "low=0, high=1)]."
        )
    names = [column.name for column in columns]
    if not isinstance(designs, Mapping) and callable(getattr(designs, "to_dict", None)):
        designs = designs.to_dict("list")  # a data frame
    if isinstance(designs, Mapping):
        _check_names(designs, owner)
        lists = {str(name): _listed(values) for name, values in designs.items()}
        lengths = {name: len(values) for name, values in lists.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(
                f"{owner}: expected `designs` with columns of one length, got {lengths}. Give each row a value."
            )
        return [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]
    if isinstance(designs, Tensor) or hasattr(designs, "__array__"):
        designs = designs.tolist()
    if isinstance(designs, str | bytes | AbstractSet) or not isinstance(designs, Iterable):
        raise TypeError(
            f"{owner}: expected `designs` as a list of strings or dicts, a dict of columns, or a tensor, got "
            f"{type(designs).__name__}. Convert it first."
        )
    listed = list(designs)
    kinds = [Mapping if isinstance(row, Mapping) else list if isinstance(row, list | tuple) else str for row in listed]
    if len(set(kinds)) > 1:
        raise TypeError(
            f"{owner}: expected `designs` with rows of one kind, all strings, all lists or all dicts, got "
            f"{', '.join(sorted({type(row).__name__ for row in listed}))}. Name the columns: a list of dicts."
        )
    if kinds[:1] == [list]:
        return _numbered(listed, names, owner)
    if kinds[:1] == [str]:
        return _single(listed, names, owner)
    _check_names(listed[0] if listed else {}, owner)
    for index, row in enumerate(listed):
        if set(row) != set(listed[0]):
            odd = sorted(map(str, set(row) ^ set(listed[0])))
            raise ValueError(
                f"{owner}: expected `designs` with the same columns in each row, got a difference in {odd} in row {index}. "
                "Complete the rows."
            )
    return [{str(name): row[name] for name in listed[0]} for row in listed]


def read_scores(scores: Any, rows: int, owner: str = OWNER) -> Tensor:
    """Scores as float64 ``(rows,)``; NaN where a score is missing (None, an empty string, ``NA``, ``pending`` and the like).

    Args:
        scores: a tensor, an array, or a list of numbers, strings or None.
        rows: how many there should be.
        owner: whom errors name.

    Returns:
        The scores, on the device they came on.

    Raises:
        ValueError: for another number of them, text that is no number, or numbers out of all range, naming the row.
        TypeError: for anything that is no list of numbers.

    Example:
        >>> read_scores([1, "2.5", None], 3)
        tensor([1.0000, 2.5000,    nan], dtype=torch.float64)
    """
    listed = isinstance(scores, Iterable) and not isinstance(scores, str | bytes | Mapping | AbstractSet)
    if not listed or (isinstance(scores, Tensor) and scores.is_complex()):
        raise TypeError(
            f"{owner}: expected `scores` as a list or tensor of numbers in the order of the designs, got "
            f"{'complex numbers' if isinstance(scores, Tensor) else type(scores).__name__}. Convert them first."
        )
    if isinstance(scores, Tensor):
        out = scores.detach().to(torch.float64)
    else:
        values = []
        for index, value in enumerate(_listed(scores)):
            if value is None or str(value).strip().lower() in MISSING:
                value = math.nan
            try:
                values.append(float(value))
            except (TypeError, ValueError, OverflowError) as error:
                raise ValueError(
                    f"{owner}: expected `scores` as numbers, got {shown(value)} in row {index}. Leave it empty if it is not "
                    "measured yet."
                ) from error
        out = torch.tensor(values, dtype=torch.float64)
    if out.shape != (rows,):
        raise ValueError(
            f"{owner}: expected `scores` of shape ({rows},), one per design, got {tuple(out.shape)}. Leave a score empty "
            "(None or NaN) if it is not measured yet."
        )
    large = torch.nonzero(torch.isfinite(out) & (out.abs() > LARGEST_SCORE))
    if len(large):
        row = int(large[0])
        raise ValueError(
            f"{owner}: expected `scores` of at most {LARGEST_SCORE:g} in size, got {float(out[row]):g} in row {row}. Correct "
            "it, or change their unit."
        )
    return out


def _check_names(row: Mapping[Any, Any], owner: str) -> None:
    names = [str(name) for name in row]
    if len(set(names)) < len(names):
        raise ValueError(f"{owner}: expected `designs` with different names of columns, got {names}. Rename one.")


def _listed(values: Any) -> list[Any]:
    return values.tolist() if hasattr(values, "tolist") else list(values)


def _single(values: list[Any], names: list[str], owner: str) -> list[dict[str, Any]]:
    if len(names) > 1:
        raise ValueError(
            f"{owner}: expected `designs` with the columns {', '.join(names)}, got one value per row. Pass a list of dicts."
        )
    name = names[0] if names else ("sequence" if values and isinstance(values[0], str) else "x0")
    return [{name: value} for value in values]


def _numbered(rows: list[Any], names: list[str], owner: str) -> list[dict[str, Any]]:
    named = names or [f"x{k}" for k in range(len(rows[0]))]
    for index, row in enumerate(rows):
        if len(row) != len(named):
            raise ValueError(
                f"{owner}: expected `designs` with {len(named)} values in each row, got {len(row)} in row {index}. "
                "Complete the rows, and declare all columns or none."
            )
    return [dict(zip(named, row, strict=True)) for row in rows]
