"""A user's table made ready to learn from: encoded, cleaned and merged, each choice noted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from sciopt.domains.offline.proposal.columns import AbstractColumn, NumberColumn, SequenceColumn
from sciopt.domains.offline.proposal.design_space import DesignSpace
from sciopt.domains.offline.proposal.detection import detect_columns
from sciopt.domains.offline.proposal.intake import read_designs, read_scores
from sciopt.domains.offline.proposal.model import Observations
from sciopt.domains.offline.proposal.strands import Strands
from sciopt.domains.offline.symmetry import AbstractSymmetry

__all__ = ["PreparedTable", "merged", "prepared_table"]

SMALLEST_SPAN = 1e-100  # squares of smaller differences vanish


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class PreparedTable:
    """What `prepared_table` made of a user's table.

    Args:
        space: the columns.
        data: different designs with scores.
        pending: different designs without a usable score ``(k, width)``.
        pool: allowed designs ``(p, width)``, or None.
        strands: the symmetry, or None.
        notes: what was done, in sentences.

    Example:
        >>> table = prepared_table(["AAC", "AAC", "AAT"], [1.0, 3.0, None])
        >>> table.data.scores, len(table.pending), table.notes[-1]
        (tensor([2.], dtype=torch.float64), 1, '1 design without a score is taken as pending: it is not proposed again.')
    """

    space: DesignSpace
    data: Observations
    pending: Tensor
    pool: Tensor | None
    strands: Strands | None
    notes: list[str]


def prepared_table(
    designs: Any,
    scores: Any,
    *,
    columns: Sequence[AbstractColumn] = (),
    pool: Any = None,
    symmetry: AbstractSymmetry | None = None,
) -> PreparedTable:
    """Read designs, scores and a pool; detect columns; drop and merge rows, with a note for each choice.

    Args:
        designs: see `propose`.
        scores: see `propose`.
        columns: declared columns.
        pool: allowed designs, or None.
        symmetry: of the sequence column, or None.

    Returns:
        `PreparedTable`.

    Raises:
        ValueError: for values that do not belong, or a table without a finite score.

    Example:
        See `PreparedTable`.
    """
    rows = read_designs(designs, columns)
    values = read_scores(scores, len(rows))
    extra = [] if pool is None else read_designs(pool, columns)
    if extra and rows and set(extra[0]) != set(rows[0]):
        raise ValueError(
            f"propose: expected `pool` with the columns {', '.join(rows[0])}, got {', '.join(extra[0])}. Name them alike."
        )
    if not bool(torch.isfinite(values).any()):
        raise ValueError(
            f"propose: expected at least one row with a finite score, got {len(rows)} rows without. Measure some designs "
            "first; random ones will do."
        )
    span = float(values[torch.isfinite(values)].max() - values[torch.isfinite(values)].min())
    if 0 < span < SMALLEST_SPAN:
        raise ValueError(
            f"propose: expected `scores` that differ by {SMALLEST_SPAN:g} at least, or not at all, got a span of {span:g}. "
            "Change their unit."
        )
    found, notes = detect_columns([*rows, *extra], given=columns)
    space = DesignSpace(found)
    device = values.device
    codes = space.encode(rows).to(device)
    allowed = _pool_codes(space, extra, device) if pool is not None else None
    if symmetry is not None and not isinstance(symmetry, AbstractSymmetry):
        raise TypeError(f"propose: expected a `symmetry` such as ReverseComplement(), got {symmetry!r}. Make one.")
    strands = None if symmetry is None else Strands(space=space, symmetry=symmetry)
    if strands is not None:
        codes = strands.canonical(codes)
        notes.append("Designs that are images of each other count as one; one of them is proposed.")
        allowed = None if allowed is None else strands.canonical(allowed)
    for column in found:
        if isinstance(column, SequenceColumn) and column.gap is not None:
            notes.append(
                f"`{column.name}` has sequences of {column.least} to {column.length} letters: short ones are padded at the "
                "right end, and proposals have lengths in that range."
            )
    for column, part in zip(found, space.slices, strict=True):
        if isinstance(column, NumberColumn):
            out = (codes[:, part] < column.low) | (codes[:, part] > column.high)
            if allowed is not None:
                inside = (allowed[:, part.start] >= column.low) & (allowed[:, part.start] <= column.high)
                beyond, allowed = int((~inside).sum()), allowed[inside]
                if beyond:
                    notes.append(
                        f"{_count(beyond, 'design of the pool has', 'designs of the pool have')} `{column.name}` outside "
                        f"{column.low:g} to {column.high:g}: not proposed."
                    )
            if int(out.sum()):
                notes.append(
                    f"{_count(int(out.sum()), 'row has', 'rows have')} `{column.name}` outside {column.low:g} to "
                    f"{column.high:g}: they are learned from, proposals stay inside."
                )
    known = torch.isfinite(values)
    data, made = merged(codes, values, known)
    infinite = int(torch.isinf(values).sum())
    if infinite:
        notes.append(f"{_count(infinite, 'row', 'rows')} with an infinite score dropped; not proposed again.")
    notes += made
    pending = torch.unique(codes[~known], dim=0)
    both = torch.cat([data.codes, pending])
    again = torch.unique(both, dim=0, return_inverse=True)[1]
    pending = pending[~torch.isin(again[len(data) :], again[: len(data)])]
    waiting = int(torch.isnan(values).sum())
    if waiting:
        single = "design without a score is taken as pending: it is not proposed again."
        notes.append(
            _count(waiting, single, "designs without a score are taken as pending: they are not proposed again.")
        )
    return PreparedTable(space=space, data=data, pending=pending, pool=allowed, strands=strands, notes=notes)


def merged(codes: Tensor, scores: Tensor, known: Tensor) -> tuple[Observations, list[str]]:
    """Rows of equal designs as one, with the mean of their scores and the pooled spread of repeats.

    Args:
        codes: ``(n, width)``.
        scores: ``(n,)``.
        known: rows to use, bool ``(n,)``.

    Returns:
        `Observations`, and notes.

    Example:
        >>> x, y = torch.tensor([[1.0], [1.0]]), torch.tensor([1.0, 3.0], dtype=torch.float64)
        >>> data, notes = merged(x, y, torch.ones(2, dtype=torch.bool))
        >>> data.scores, data.spread
        (tensor([2.], dtype=torch.float64), 2.0)
    """
    index = torch.nonzero(known).squeeze(-1)
    used, values = codes[index], scores[index]
    distinct, rows = torch.unique(used, dim=0, return_inverse=True)
    mass = values.new_zeros(len(distinct)).index_add(0, rows, torch.ones_like(values))
    mean = values.new_zeros(len(distinct)).index_add(0, rows, values) / mass
    first = torch.full((len(distinct),), len(codes), device=codes.device).scatter_reduce(0, rows, index, "amin")
    notes, spread = [], None
    repeats = len(values) - len(distinct)
    if repeats:
        squares = (values - mean[rows]).square()
        spread = float(squares.sum() / repeats)
        apart = values.new_zeros(len(distinct)).index_add(0, rows, squares) > 0
        notes.append(
            f"{len(values)} rows with scores hold {len(distinct)} different designs: repeated ones are merged, with their "
            "mean score and a weight for their number."
        )
        if spread > 0:
            notes.append(
                f"{_count(int(apart.sum()), 'design has', 'designs have')} scores that differ between repeats: averaged; "
                f"the spread of {math.sqrt(spread):.3g} (standard deviation) is the least noise that the model may assume."
            )
        else:
            spread = None
    return Observations(codes=distinct, scores=mean, mass=mass, rows=first, spread=spread), notes


def _pool_codes(space: DesignSpace, rows: list[dict[str, Any]], device: torch.device) -> Tensor:
    try:
        codes = space.encode(rows)
    except ValueError as error:
        raise ValueError(
            f"propose: expected `pool` with designs of the table's columns, got a problem: {error}"
        ) from error
    return torch.unique(codes.to(device), dim=0)


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"
