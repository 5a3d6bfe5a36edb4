"""``sciopt propose``: the next batch from a table of old results, with a report."""

from __future__ import annotations

import re
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sciopt.campaign.errors import CampaignError
from sciopt.view.page import write_page

if TYPE_CHECKING:
    from sciopt.domains.offline.acquisition import AbstractAcquisition
    from sciopt.domains.offline.proposal.batch import ProposedBatch
    from sciopt.domains.offline.proposal.columns import AbstractColumn
    from sciopt.domains.offline.proposal.roles import Observations
    from sciopt.domains.offline.proposal.table_file import TableFile

__all__ = ["propose_command"]

SHOWN = 5  # designs of the batch on the screen


@click.command("propose")
@click.argument("tables", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="TABLE...")
@click.option("--score", help="Column of the scores; empty cells wait for their result.")
@click.option("--design", multiple=True, help="A design column; several times for several. Default: found, and shown.")
@click.option("-n", "--number", type=click.IntRange(min=1), default=128, show_default=True, help="Designs to propose.")
@click.option("-o", "--out", type=click.Path(path_type=Path), help="CSV or TSV file for the batch.")
@click.option("--report", type=click.Path(path_type=Path), help="HTML report; beside the batch by default.")
@click.option(
    "--overwrite", is_flag=True, help="Replace a batch and a report that exist; never one with results in it."
)
@click.option("--minimize", is_flag=True, help="The smallest score is the best.")
@click.option("--constraint", multiple=True, help="What a design has to satisfy, see below; several times for several.")
@click.option("--pool", type=click.Path(path_type=Path), help="Table of the only designs that may be proposed.")
@click.option("--column", multiple=True, metavar="NAME=KIND", help="sequence, category, number, integer or log.")
@click.option(
    "--bounds", multiple=True, metavar="NAME=LOW:HIGH", help="Range of a number; the measured one by default."
)
@click.option("--double-strand", is_flag=True, help="DNA and its reverse complement are one design.")
@click.option(
    "--acquisition",
    type=click.Choice(["ucb", "ei", "greedy"]),
    help="Choose by prediction plus uncertainty, by expected improvement, or by prediction alone.",
)
@click.option("--weight", type=click.FloatRange(min=0.0), help="Of the uncertainty in ucb.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Same seed, same batch.")
@click.option("--decimal-comma", is_flag=True, help="Numbers are written as 0,5.")
@click.option("--dry-run", is_flag=True, help="Show what the columns are taken for, and stop.")
def propose_command(tables: tuple[Path, ...], out: Path | None, **options: Any) -> None:
    """Propose the designs to test next, from tables of designs and scores.

    Tables are CSV or TSV with column names in the first line. A model is fitted to the rows with a score; the batch is
    written best first, with an empty column for its results, and a report says how far to trust it.

    \b
    sciopt propose table.csv --design seq --score affinity -n 128 -o batch.csv
    sciopt propose table.csv batch.csv --design seq --score affinity -n 128 -o batch2.csv

    The second line continues, when results stand in batch.csv: rows that have a score are learned from, rows that have
    none are pending, and neither is proposed again.

    Exit code: 0 when a batch was written, 2 for bad input, 130 after ^C.
    """
    from sciopt.domains.offline.proposal.batch_file import write_batch
    from sciopt.domains.offline.proposal.table_file import TableError

    started = time.monotonic()
    try:
        known = _known(tables, options)
        report = _targets(tables, out, options)
        asked = _asked(known, options)
        if options["dry_run"]:
            return
        assert out is not None and report is not None
        batch = _proposed(asked, options)
        again = _next_command(tables, out, options)
        write_batch(out, batch, options["score"], like=known[0], decimal_comma=options["decimal_comma"])
        write_page(report, _rendered(batch, asked, options, tables, again))
    except TableError as error:
        raise CampaignError(str(error)) from error
    except KeyboardInterrupt:
        click.echo("stopped by ^C; nothing was written", err=True)
        sys.exit(130)
    _say(batch, asked, options["score"], out, report, time.monotonic() - started)
    click.echo(f"to continue, write results into `{options['score']}` of {out}, then:\n  {again}")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is proposed from."""

    observed: Observations
    columns: list[AbstractColumn]
    pool: list[dict[str, Any]] | None
    told: list[str]  # what was said about the columns


def _known(tables: tuple[Path, ...], options: dict[str, Any]) -> list[TableFile]:
    from sciopt.domains.offline.proposal.table_file import TableError, read_table

    twice = next((path for k, path in enumerate(tables) if path.resolve() in [p.resolve() for p in tables[:k]]), None)
    if twice is not None:
        raise TableError(f"{twice}: expected each table once, got it twice. Name it once.")
    known = [read_table(path) for path in tables]
    if options["score"] is None:
        raise TableError(f"--score: expected the column of the scores, got none. Columns: {', '.join(known[0].cells)}.")
    return known


def _targets(tables: tuple[Path, ...], out: Path | None, options: dict[str, Any]) -> Path | None:
    """The report's path. Said before any work: names that are missing, exist, or would destroy results."""
    from sciopt.domains.offline.proposal.table_file import TableError

    if options["dry_run"]:
        return None
    if out is None or out.suffix.lower() not in (".csv", ".tsv", ".txt"):
        raise TableError(f"--out: expected a file name ending in .csv or .tsv, got {out}. E.g. -o batch.csv.")
    report = options["report"] or out.with_suffix(".html")
    inputs = {path.resolve() for path in (*tables, *([options["pool"]] if options["pool"] else []))}
    for option, path in (("--out", out), ("--report", report)):
        if path.is_dir() or not path.parent.is_dir():
            raise TableError(
                f"{option}: expected a file name in a folder that exists, got {path}. Create the folder first."
            )
        if path.resolve() in inputs or (option == "--report" and path.resolve() == out.resolve()):
            raise TableError(
                f"{option}: expected another file than the tables and the batch, got {path}. Choose another name."
            )
        if path.exists() and not options["overwrite"]:
            raise TableError(
                f"{option}: expected a new file, got {path}, which exists. Choose another name, or --overwrite."
            )
    if out.exists():
        _check_unfilled(out, options["score"])
    return report


def _check_unfilled(path: Path, score: str) -> None:
    """A batch may be replaced as long as nobody has written results into it."""
    from sciopt.domains.offline.proposal.table_file import TableError, read_table

    try:
        cells = read_table(path).cells.get(score)
    except TableError:
        cells = None
    if cells is None or any(cells):
        what = "results" if cells else f"no empty column `{score}`"
        raise TableError(
            f"--overwrite: expected a batch without results, got {path} with {what}. Pass it as a table beside the others, "
            "and choose another name for the batch."
        )


def _asked(known: list[TableFile], options: dict[str, Any]) -> Asked:
    """Everything that is read, and shown line by line."""
    from sciopt.domains.offline.proposal.declarations import declared_columns, read_bounds, read_kinds
    from sciopt.domains.offline.proposal.detection import detect_columns
    from sciopt.domains.offline.proposal.roles import design_rows, observations
    from sciopt.domains.offline.proposal.table_file import read_table

    everywhere = list(known[0].cells)
    kinds = read_kinds(options["column"], everywhere)
    bounds = read_bounds(options["bounds"], everywhere)
    words = [name for name, kind in kinds.items() if kind in ("sequence", "category")]
    numbers = [name for name, kind in kinds.items() if kind not in ("sequence", "category")] + list(bounds)
    comma = options["decimal_comma"]
    observed = observations(
        known, score=options["score"], designs=options["design"], words=words, numbers=numbers, decimal_comma=comma
    )
    read_kinds(options["column"], observed.names)
    read_bounds(options["bounds"], observed.names)
    pool = None
    if options["pool"]:
        pool = design_rows(
            read_table(options["pool"]), observed.names, words=words, numbers=numbers, decimal_comma=comma
        )
    columns = declared_columns([*observed.designs, *(pool or [])], kinds, bounds)
    for table in known:
        click.echo(f"{table.path}: {_count(len(table), 'row')}")
    told = [str(role) for role in observed.roles if role.role == "left out"]
    told += [f"{options['score']}: the score, the {'smaller' if options['minimize'] else 'larger'} the better"]
    if observed.pending:
        told[-1] += f"; {_count(observed.pending, 'row')} without one: pending, not proposed again"
    try:
        _, reasons = detect_columns(observed.designs, given=columns)
    except ValueError as error:
        raise _located(error, observed) from error
    for line in [*reasons, *told]:
        click.echo(f"  {line}")
    if pool is not None:
        told.append(f"pool: {options['pool']}, {_count(len(pool), 'row')}; nothing else is proposed")
        click.echo(f"  {told[-1]}")
    return Asked(observed=observed, columns=columns, pool=pool, told=[*told, *observed.notes])


def _proposed(asked: Asked, options: dict[str, Any]) -> ProposedBatch:
    from sciopt.domains.offline.proposal.next_batch import propose

    try:
        return propose(
            asked.observed.designs,
            asked.observed.scores,
            n=options["number"],
            columns=asked.columns,
            constraints=options["constraint"],
            pool=asked.pool,
            maximize=not options["minimize"],
            seed=options["seed"],
            acquisition=acquisition(options["acquisition"], options["weight"]),
        )
    except ValueError as error:
        raise _located(error, asked.observed) from error


def acquisition(name: str | None, weight: float | None) -> AbstractAcquisition | None:
    """The acquisition of this name; None for None, which leaves the choice to `propose`.

    Example:
        >>> acquisition("ucb", 2.0).weight
        2.0
    """
    from sciopt.domains.offline.acquisition import GreedyMean, SampledExpectedImprovement, UpperConfidence
    from sciopt.domains.offline.proposal.table_file import TableError

    if weight is not None and name not in (None, "ucb"):
        raise TableError(f"--weight: expected it with --acquisition ucb, got {name}. Leave it out.")
    if name == "ucb" or weight is not None:
        return UpperConfidence() if weight is None else UpperConfidence(weight=weight)
    return {None: None, "ei": SampledExpectedImprovement(), "greedy": GreedyMean()}[name]


def _located(error: ValueError, observed: Observations) -> ValueError:
    """The error with file and line of the row that it names, and options as they are written here."""
    from sciopt.domains.offline.proposal.table_file import TableError

    text = str(error)
    found = re.search(r"in row (\d+)", text)
    if found and int(found[1]) < len(observed.places):
        text = text.replace(found[0], f"in {observed.places[int(found[1])]}", 1)
    return TableError(text)


def _rendered(batch: ProposedBatch, asked: Asked, options: dict[str, Any], tables: tuple[Path, ...], again: str) -> str:
    from sciopt.domains.offline.proposal.report import render_proposal

    return render_proposal(
        batch,
        asked.observed.designs,
        asked.observed.scores,
        score=options["score"],
        title=f"Next batch for {', '.join(path.name for path in tables)}",
        said=asked.told,
        command=again,
    )


def _say(batch: ProposedBatch, asked: Asked, score: str, out: Path, report: Path, seconds: float) -> None:
    from sciopt.domains.offline.proposal.batch_file import cell_text

    for note in batch.notes:
        if not any(note.startswith(f"{name}: ") for name in batch.space.names):  # those were shown before the fit
            click.echo(f"note: {note}")
    for note in asked.observed.notes:
        click.echo(f"note: {note}")
    if batch.calibration is not None:
        seen, spread = batch.calibration, float(batch.calibration.observed.std(correction=0))
        click.echo(
            f"each row predicted without it: error {seen.rmse:.4g} of a spread of {spread:.4g}, rank correlation "
            f"{seen.rank_correlation:.2f}"
        )
    first = batch.rows[0]
    shown = ", ".join(f"{name} {cell_text(value)}" for name, value in list(first.items())[:SHOWN])
    click.echo(
        f"first: {shown}; predicted {score} {float(batch.predicted[0]):.4g} +- {float(batch.uncertainty[0]):.2g}, best "
        f"measured {batch.best_score:.4g}"
    )
    click.echo(f"{out}: {_count(len(batch), 'design')} in {seconds:.1f} s\nreport: {report}")


def _next_command(tables: tuple[Path, ...], out: Path, options: dict[str, Any]) -> str:
    """The same command with the batch as one more table, and the next name for the next batch."""
    stem, number = re.fullmatch(r"(.*?)(\d*)", out.stem).groups()  # pyright: ignore[reportOptionalMemberAccess]
    following = out.with_name(f"{stem}{int(number or 1) + 1}{out.suffix}")
    words = ["sciopt", "propose", *map(str, tables), str(out)]
    for name in options["design"]:
        words += ["--design", name]
    words += ["--score", options["score"], "-n", str(options["number"])]
    for name in ("constraint", "column", "bounds"):
        for text in options[name]:
            words += [f"--{name}", text]
    for name in ("pool", "acquisition", "weight"):
        if options[name] is not None:
            words += [f"--{name}", str(options[name])]
    words += [f"--{name.replace('_', '-')}" for name in ("minimize", "double_strand", "decimal_comma") if options[name]]
    words += ["--seed", str(options["seed"])] if options["seed"] else []
    return " ".join(map(shlex.quote, [*words, "-o", str(following)]))


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"
