"""``sciopt propose``: the next batch from a table of old results, with a report."""

from __future__ import annotations

import re
import shlex
import sys
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sciopt.campaign.errors import CampaignError
from sciopt.view.page import write_page

if TYPE_CHECKING:
    from sciopt.domains.offline.proposal.batch import ProposedBatch
    from sciopt.domains.offline.proposal.request import Request

__all__ = ["propose_command"]

SHOWN = 5  # columns of the best design on the screen
LONGEST = 100  # letters of each


@click.command("propose")
@click.argument("tables", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="TABLE...")
@click.option("--score", help="Column of the scores; empty cells wait for their result.")
@click.option("--design", multiple=True, help="A design column; several times for several. Default: found, and shown.")
@click.option(
    "-n",
    "--number",
    type=click.IntRange(min=1, max=100_000),
    default=128,
    show_default=True,
    help="Designs to propose.",
)
@click.option("-o", "--out", type=click.Path(path_type=Path), help="CSV or TSV file for the batch.")
@click.option("--report", type=click.Path(path_type=Path), help="HTML report; beside the batch by default.")
@click.option(
    "--overwrite", is_flag=True, help="Replace a batch and a report that exist; never one with results in it."
)
@click.option("--minimize", is_flag=True, help="The smallest score is the best.")
@click.option("--constraint", multiple=True, help="What a design has to satisfy, see above; several times for several.")
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
@click.option(
    "--seed", type=click.IntRange(min=0, max=2**64 - 1), default=0, show_default=True, help="Same seed, same batch."
)
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

    Constraints are comparisons in terms of the columns; names with blanks stand in backquotes:

    \b
    --constraint "temperature + 2 * ph <= 90"      --constraint "solvent in ('THF', 'DMF')"
    --constraint "gc(seq) <= 0.6"                  --constraint "'GAATTC' not in seq"

    Exit code: 0 when a batch was written, 2 for bad input, 130 after ^C.
    """
    from sciopt.domains.offline.proposal.batch_file import write_batch
    from sciopt.domains.offline.proposal.request import acquisition, read_request
    from sciopt.domains.offline.proposal.table_file import TableError

    started = time.monotonic()
    written: list[Path] = []
    try:
        report = _targets(tables, out, options)
        request = read_request(
            tables,
            score=options["score"],
            designs=options["design"],
            kinds=options["column"],
            bounds=options["bounds"],
            pool=options["pool"],
            minimize=options["minimize"],
            decimal_comma=options["decimal_comma"],
        )
        _show(request)
        request.check(constraints=options["constraint"], double_strand=options["double_strand"])
        chooser = acquisition(options["acquisition"], options["weight"])
        if options["dry_run"]:
            return
        assert out is not None and report is not None
        batch = request.propose(
            n=options["number"],
            constraints=options["constraint"],
            seed=options["seed"],
            acquisition=chooser,
            double_strand=options["double_strand"],
        )
        again = _next_command(tables, out, options)
        page = request.report(batch, command=again)
        _check_free(out, report, options)  # others may have written meanwhile
        written.append(
            write_batch(out, batch, request.score, like=request.tables[0], decimal_comma=options["decimal_comma"])
        )
        written.append(write_page(report, page))
    except TableError as error:
        raise CampaignError(str(error)) from error
    except KeyboardInterrupt:
        click.echo(f"stopped by ^C; {', '.join(map(str, written)) or 'nothing'} was written", err=True)
        sys.exit(130)
    _say(batch, request, out, report, time.monotonic() - started)
    click.echo(f"to continue, write results into `{options['score']}` of {out}, then:\n  {again}")


def _targets(tables: tuple[Path, ...], out: Path | None, options: dict[str, Any]) -> Path | None:
    """The report's path. Said before any work: names that are missing, exist, or would destroy results."""
    from sciopt.domains.offline.proposal.table_file import TableError

    if options["dry_run"]:
        return None
    if out is None or out.suffix.lower() not in (".csv", ".tsv", ".txt"):
        raise TableError(f"--out: expected a file name ending in .csv or .tsv, got {out or 'none'}. E.g. -o batch.csv.")
    report = options["report"] or out.with_suffix(".html")
    if report.suffix.lower() not in (".html", ".htm"):
        raise TableError(f"--report: expected a file name ending in .html, got {report}. E.g. --report batch.html.")
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
    _check_free(out, report, options)
    for option, path in (("--out", out), ("--report", report)):
        _check_writable(option, path)
    return report


def _check_free(out: Path, report: Path, options: dict[str, Any]) -> None:
    """Nothing is replaced unless it was said, and never results."""
    from sciopt.domains.offline.proposal.table_file import TableError

    for option, path in (("--out", out), ("--report", report)):
        if path.exists() and not options["overwrite"]:
            raise TableError(
                f"{option}: expected a new file, got {path}, which exists. Choose another name, or --overwrite."
            )
    if out.exists():
        _check_unfilled(out, options["score"])


def _check_writable(option: str, path: Path) -> None:
    """Before any work, by a file beside it, as it will be written."""
    from sciopt.domains.offline.proposal.table_file import TableError

    aside = path.with_name(f".{path.name}-{uuid.uuid4().hex[:8]}")
    try:
        aside.touch()
        aside.unlink()
    except OSError as error:
        raise TableError(
            f"{option}: expected a file that can be written, got {path} ({error.strerror}). Choose another folder or name."
        ) from error


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


def _show(request: Request) -> None:
    """What was found, before the fit."""
    for table in request.tables:
        click.echo(f"{table.path}: {_count(len(table), 'row')}")
    for line in [*request.columns_told, *request.told]:
        click.echo(f"  {line}")
    for note in request.observed.notes:
        click.echo(f"note: {note}")


def _say(batch: ProposedBatch, request: Request, out: Path, report: Path, seconds: float) -> None:
    from sciopt.domains.offline.proposal.batch_file import cell_text

    for note in batch.notes:
        if not any(note.startswith(f"{name}: ") for name in batch.space.names):  # those were shown before the fit
            click.echo(f"note: {note}")
    if batch.calibration is not None:
        seen, spread = batch.calibration, float(batch.calibration.observed.std(correction=0))
        click.echo(
            f"measured designs predicted without them ({seen.method}): error {seen.rmse:.4g} of a spread of {spread:.4g}, "
            f"rank correlation {seen.rank_correlation:.2f}"
        )
    first, predicted = batch.rows[0], f"{float(batch.predicted[0]):.4g} +- {float(batch.uncertainty[0]):.2g}"
    shown = ", ".join(f"{name} {cell_text(value)[:LONGEST]}" for name, value in list(first.items())[:SHOWN])
    click.echo(f"first: {shown}; predicted {request.score} {predicted}, best measured {batch.best_score:.4g}")
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
