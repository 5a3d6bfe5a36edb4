"""Tables on disk, and what a user said about their columns, as one request that can be answered."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from sciopt.domains.offline.acquisition import (
    AbstractAcquisition,
    GreedyMean,
    SampledExpectedImprovement,
    UpperConfidence,
)
from sciopt.domains.offline.proposal.batch import ProposedBatch
from sciopt.domains.offline.proposal.columns import AbstractColumn, SequenceColumn
from sciopt.domains.offline.proposal.constraints import Rule
from sciopt.domains.offline.proposal.declarations import declared_columns, read_bounds, read_kinds
from sciopt.domains.offline.proposal.design_space import DesignSpace
from sciopt.domains.offline.proposal.detection import detect_columns
from sciopt.domains.offline.proposal.next_batch import propose
from sciopt.domains.offline.proposal.roles import Observations, design_rows, observations
from sciopt.domains.offline.proposal.table_file import TableError, TableFile, read_table
from sciopt.domains.offline.symmetry import ReverseComplement

__all__ = ["Request", "acquisition", "double_strands", "read_request"]


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Request:
    """What is proposed from. Made by `read_request`.

    Args:
        tables: as they were read.
        observed: their designs and scores.
        score: column of the scores.
        minimize: whether the smallest score is the best.
        columns: those that the user declared.
        columns_told: one line for each design column.
        told: one line for each other column, and for the pool.
        pool: the only designs that may be proposed; None: all.
        detected: all design columns.
        pool_places: file and line of each row of the pool.

    Example:
        >>> Request.__name__
        'Request'
    """

    tables: list[TableFile]
    observed: Observations
    score: str
    minimize: bool
    columns: list[AbstractColumn]
    columns_told: list[str]
    told: list[str]
    pool: list[dict[str, Any]] | None = None
    detected: tuple[AbstractColumn, ...] = ()
    pool_places: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """Of the report."""
        return f"Next batch for {', '.join(table.path.name for table in self.tables)}"

    def propose(
        self,
        *,
        n: int,
        constraints: Sequence[str] = (),
        seed: int = 0,
        acquisition: AbstractAcquisition | None = None,
        double_strand: bool = False,
    ) -> ProposedBatch:
        """The next batch; see `sciopt.domains.offline.proposal.propose`.

        Raises:
            TableError: for what cannot be answered, with file and line where a row is to blame.
        """
        symmetry = double_strands(self.detected) if double_strand else None
        try:
            return propose(
                self.observed.designs,
                self.observed.scores,
                n=n,
                columns=self.columns,
                constraints=constraints,
                pool=self.pool,
                maximize=not self.minimize,
                seed=seed,
                acquisition=acquisition,
                symmetry=symmetry,
            )
        except ValueError as error:
            raise _located(error, self.observed.places, self.pool_places) from error

    def check(self, *, constraints: Sequence[str] = (), double_strand: bool = False) -> None:
        """Refuse what does not fit the columns, without any work.

        Raises:
            TableError: for a constraint that cannot be read, or strands of what has none.
        """
        if double_strand:
            double_strands(self.detected)
        try:
            for text in constraints:
                Rule(text).check(DesignSpace(self.detected))
        except ValueError as error:
            raise _located(error, (), ()) from error

    def report(self, batch: ProposedBatch, *, command: str = "") -> str:
        """The report of a batch as HTML text."""
        from sciopt.domains.offline.proposal.report import render_proposal

        return render_proposal(
            batch,
            self.observed.designs,
            self.observed.scores,
            score=self.score,
            title=self.title,
            said=[*self.told, *self.observed.notes],
            command=command,
        )


def read_request(
    tables: Sequence[str | Path],
    *,
    score: str | None,
    designs: Sequence[str] = (),
    kinds: Sequence[str] = (),
    bounds: Sequence[str] = (),
    pool: str | Path | None = None,
    minimize: bool = False,
    decimal_comma: bool = False,
) -> Request:
    """Read tables, decide what their columns are, and say so.

    Args:
        tables: CSV or TSV files that together hold what is known, such as a table and the batches that followed it.
        score: column of the scores.
        designs: the design columns; none: found, see `observations`.
        kinds: ``name=kind`` texts, see `read_kinds`.
        bounds: ``name=low:high`` texts, see `read_bounds`.
        pool: a table of the only designs that may be proposed.
        minimize: whether the smallest score is the best.
        decimal_comma: read ``0,5`` as one half.

    Returns:
        `Request`.

    Raises:
        TableError: one sentence with file and line, and what to do.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "t.csv"
        >>> _ = file.write_text("ph,yield\\n4.5,0.1\\n7,0.5\\n")
        >>> request = read_request([file], score="yield", bounds=["ph=2:12"])
        >>> print(*request.columns_told, *request.told, sep="; ")
        ph: numbers from 2 to 12 (declared); yield: the score, the larger the better
    """
    paths = [Path(path) for path in tables]
    for place, path in enumerate(paths):
        if path.resolve() in [other.resolve() for other in paths[:place]]:
            raise TableError(f"{path}: expected each table once, got it twice. Name it once.")
    known = [read_table(path) for path in paths]
    if score is None:
        raise TableError(f"--score: expected the column of the scores, got none. Columns: {', '.join(known[0].cells)}.")
    spoken = read_kinds(kinds, list(known[0].cells))
    limits = read_bounds(bounds, list(known[0].cells))
    words = [name for name, kind in spoken.items() if kind in ("sequence", "category")]
    numbers = [name for name in (*spoken, *limits) if name not in words]
    read = {"words": words, "numbers": numbers, "decimal_comma": decimal_comma}
    observed = observations(known, score=score, designs=designs, **read)
    read_kinds(kinds, observed.names)
    read_bounds(bounds, observed.names)
    pools = None if pool is None else read_table(pool)
    allowed = None if pools is None else design_rows(pools, observed.names, **read)
    pool_places = () if pools is None else tuple(pools.place(row) for row in range(len(pools)))
    if allowed is not None and not allowed:
        raise TableError(f"{pool}: expected designs that may be proposed, got none. Leave out --pool, or add rows.")
    both = [*observed.designs, *(allowed or [])]
    try:
        columns = declared_columns(both, spoken, limits)
        detected, reasons = detect_columns(both, given=columns)
    except TableError:
        raise
    except ValueError as error:
        raise _located(error, observed.places, pool_places) from error
    told = [str(role) for role in observed.roles if role.role == "left out"]
    aim = f"{score}: the score, the {'smaller' if minimize else 'larger'} the better"
    if observed.pending:
        aim += f"; {observed.pending} row{'s' * (observed.pending > 1)} without one: pending, not proposed again"
    told.append(aim)
    if allowed is not None:
        told.append(f"pool: {pool}, {len(allowed)} row{'s' * (len(allowed) != 1)}; nothing else is proposed")
    return Request(
        tables=known,
        observed=observed,
        score=score,
        minimize=minimize,
        columns=columns,
        columns_told=reasons,
        told=told,
        pool=allowed,
        detected=detected,
        pool_places=pool_places,
    )


def acquisition(name: str | None, weight: float | None) -> AbstractAcquisition | None:
    """The acquisition of this name; None for None, which leaves the choice to `propose`.

    Args:
        name: ``ucb``, ``ei``, ``greedy`` or None.
        weight: of the uncertainty in ``ucb``.

    Raises:
        TableError: for a weight where there is none.

    Example:
        >>> acquisition("ucb", 2.0).weight
        2.0
    """
    if weight is not None and name not in (None, "ucb"):
        raise TableError(f"--weight: expected it with --acquisition ucb, got {name}. Leave it out.")
    if weight is not None and not 0 <= weight < math.inf:
        raise TableError(f"--weight: expected a finite number >= 0, got {weight}. 0.5 is the default.")
    if name == "ucb" or weight is not None:
        return UpperConfidence() if weight is None else UpperConfidence(weight=weight)
    return {None: None, "ei": SampledExpectedImprovement(), "greedy": GreedyMean()}[name]


def double_strands(columns: Sequence[AbstractColumn]) -> ReverseComplement:
    """The symmetry of the one column of DNA or RNA sequences.

    Args:
        columns: all design columns.

    Raises:
        TableError: for none, several, sequences of different lengths, or other letters.

    Example:
        >>> from sciopt.domains.offline.proposal.columns import SequenceColumn
        >>> double_strands([SequenceColumn(name="seq", length=8, alphabet="acgu")]).pairs
        ('au', 'cg')
    """
    found = [column for column in columns if isinstance(column, SequenceColumn)]
    if len(found) == 1 and found[0].gap is None:
        letters = set(found[0].alphabet)
        for pairs in (("AT", "CG"), ("AU", "CG"), ("at", "cg"), ("au", "cg")):
            if letters == set("".join(pairs)):
                return ReverseComplement(pairs=pairs)
    got = "; ".join(column.describe() for column in found) or "no column of sequences"
    raise TableError(
        f"--double-strand: expected one column of DNA or RNA sequences of one length, got {got}. Leave it out."
    )


def _located(error: ValueError, places: Sequence[str], pool_places: Sequence[str]) -> TableError:
    """The error with file and line of the row that it names, which are counted over the tables and then the pool."""
    text = re.sub(r"^Rule: ", "--constraint: ", str(error))
    text = re.sub(r"^\w+: ", "", text)  # the name of a function says nothing to those who wrote a table
    found = re.search(r"in row (\d+)", text)
    named = pool_places if "expected `pool`" in text else [*places, *pool_places]
    if found and int(found[1]) < len(named):
        text = text.replace(found[0], f"in {named[int(found[1])]}", 1)
    for advice, option in (("declare the column", "--column"), ("widen the columns", "--bounds")):
        text = text.replace(f"{advice}.", f"{advice} ({option}).").replace(f"{advice},", f"{advice} ({option}),")
    return TableError(text)
