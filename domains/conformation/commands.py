"""``sciopt conformers``: conformers of SMILES strings and molecule files, into an SDF file."""

from __future__ import annotations

import itertools
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from sciopt.domains.conformation.generation import MoleculeEnsemble
    from sciopt.domains.conformation.io import MoleculeRecord, Preparation, ReadFailure

__all__ = ["conformers"]

ENDINGS = (".smi", ".smiles", ".ism", ".txt", ".sdf", ".sd", ".mol", ".csv", ".tsv", ".gz", ".pkl", ".pickle", ".pt")
SHOWN = 20  # molecules, failures and notes that are listed one by one


@dataclass
class Tally:
    """What has come out so far."""

    molecules: int = 0
    conformers: int = 0
    unconverged: int = 0
    highest: float = 0.0
    lines: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    rows: list[Any] = field(default_factory=list)
    failures: list[tuple[str, ReadFailure]] = field(default_factory=list)
    interrupted: bool = False

    def add(self, ensemble: MoleculeEnsemble, label: str) -> None:
        """Count one molecule."""
        self.molecules += 1
        self.conformers += len(ensemble.energies)
        self.unconverged += ensemble.num_unconverged
        self.highest = max(self.highest, float(ensemble.energies[-1] - ensemble.energies[0]))
        self.rows += ensemble.rows
        if len(self.lines) < SHOWN:
            self.lines.append(ensemble.describe())
        if len(self.notes) <= SHOWN:
            told = ("macrocycle of", f"{len(ensemble.energies)} distinct")  # seen in the molecule, and in its line
            self.notes += [f"{label}: {remark}" for remark in ensemble.remarks if not remark.startswith(told)]


@click.command()
@click.argument("inputs", nargs=-1, required=True, metavar="SMILES|FILE...")
@click.option("-n", "--number", type=click.IntRange(min=1), default=50, show_default=True, help="Conformers of each.")
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), required=True, help="SDF file to write, one record per conformer."
)
@click.option("--failures", type=click.Path(path_type=Path), help="CSV file for molecules without conformers, and why.")
@click.option("--table", type=click.Path(path_type=Path), help="CSV file with the energy and the fate of every start.")
@click.option("--overwrite", is_flag=True, help="Replace files that exist.")
@click.option(
    "--force-field", type=click.Choice(["MMFF94", "MMFF94s"], case_sensitive=False), default="MMFF94", show_default=True
)
@click.option(
    "--mixtures",
    type=click.Choice(["error", "largest", "keep"]),
    default="error",
    show_default=True,
    help="Salts and mixtures: refuse, keep the largest part, or keep all parts together.",
)
@click.option("--allow-radicals", is_flag=True, help="Take molecules with unpaired electrons.")
@click.option("--require-stereo", is_flag=True, help="Refuse molecules with unspecified stereo, instead of a note.")
@click.option("--max-atoms", type=click.IntRange(min=1), help="Refuse larger molecules, hydrogens counted.")
@click.option(
    "--energy-window", type=click.FloatRange(min=0.0), help="Leave out conformers higher above the lowest [kcal/mol]."
)
@click.option(
    "--rmsd",
    type=click.FloatRange(min=0.0),
    default=0.25,
    show_default=True,
    help="Conformers of one energy that are nearer than this are one [angstrom].",
)
@click.option(
    "--starts", type=click.FloatRange(min=1.0), default=2.0, show_default=True, help="Starts relaxed per conformer."
)
@click.option(
    "--max-seconds",
    type=click.IntRange(min=0),
    default=300,
    show_default=True,
    help="For embedding one molecule, of a thousand atoms say; 0: no limit.",
)
@click.option("--column", default="smiles", show_default=True, help="Column of .csv and .tsv files with the SMILES.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Same seed, same conformers.")
@click.option("--device", default="cpu", show_default=True, help="Where to relax: cpu, cuda, cuda:1, ...")
def conformers(inputs: tuple[str, ...], number: int, out: Path, **options: Any) -> None:
    """Generate low-energy conformers of molecules.

    Give SMILES strings (in quotes) or files: .smi, .sdf, .mol, .csv, .tsv. ETKDG starts are relaxed with MMFF94; those of
    the right configuration are pruned by RMSD, and N diverse ones are written, the lowest in energy first.

    \b
    sciopt conformers "CC(=O)Oc1ccccc1C(=O)O" -n 50 -o aspirin.sdf
    sciopt conformers drugs.smi more.sdf -n 20 -o all.sdf --failures failed.csv --mixtures largest

    ^C stops it; the molecules that are finished are written. Exit code: 0 when every molecule has conformers, 1 when some
    have none, 2 for bad input, 130 after ^C (143 after SIGTERM).
    """
    overwrite: bool = options["overwrite"]
    _check_targets([out, options["failures"], options["table"]], overwrite)
    if out.suffix.lower() not in (".sdf", ".sd"):
        raise click.UsageError(f"--out: expected a name ending in .sdf, got {out}. Choose one.")
    _check_device(options["device"])
    from sciopt.domains.conformation.generation.ensemble import rows_as_csv
    from sciopt.domains.conformation.io import MixturePolicy, Preparation, write_ensembles, write_failures

    rules = Preparation(
        mixtures=MixturePolicy(options["mixtures"]),
        allow_radicals=options["allow_radicals"],
        require_stereo=options["require_stereo"],
        max_atoms=options["max_atoms"],
    )
    items = _read(inputs, rules, options["column"])
    tally, started, stop = Tally(), time.monotonic(), Interrupt()
    with stop.watched():
        finished = _finished(items, number, options, tally, stop)
        first = next(finished, None)
        if first is not None:
            write_ensembles(out, itertools.chain([first], finished), overwrite=overwrite)
    if options["failures"] is not None:
        texts = [source for source, _ in tally.failures]
        write_failures(options["failures"], [f for _, f in tally.failures], sources=texts, overwrite=overwrite)
    if options["table"] is not None:
        options["table"].write_text(rows_as_csv(tally.rows), encoding="utf-8")
    _say(tally, len(items), out, options["failures"], time.monotonic() - started, stop.signum)
    sys.exit(128 + stop.signum if tally.interrupted else int(bool(tally.failures)))


class Interrupt:
    """^C and SIGTERM end the computation at once, and wait while a finished molecule is being written."""

    def __init__(self) -> None:
        self.computing = False
        self.asked = False
        self.signum = signal.SIGINT

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Replaces the handlers of both signals, where there are any to replace (not in other threads)."""

        def handle(signum: int, frame: Any) -> None:
            again, self.asked = self.asked, True
            self.signum = signal.Signals(signum)
            if self.computing or again:
                raise KeyboardInterrupt

        try:
            before = {signum: signal.signal(signum, handle) for signum in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:
            yield
            return
        try:
            yield
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)


def _finished(
    items: list[tuple[str, MoleculeRecord | ReadFailure]],
    number: int,
    options: dict[str, Any],
    tally: Tally,
    stop: Interrupt,
) -> Iterator[tuple[Any, Any]]:
    """Molecules with conformers and energies, as they come; failures go into the tally."""
    import torch
    from tqdm import tqdm

    from sciopt.domains.conformation.generation import MoleculeEnsemble, Sampling, generate_stream
    from sciopt.domains.conformation.mmff import Variant

    sampling = Sampling(
        starts_per_conformer=options["starts"],
        rmsd=options["rmsd"],
        energy_window=options["energy_window"],
        max_seconds=options["max_seconds"],
    )
    total = len(items) * sampling.starts(number)
    variant = next(v for v in Variant if v.value.lower() == options["force_field"].lower())
    with tqdm(total=total, unit="start", leave=False, disable=not sys.stderr.isatty(), delay=0.5) as bar:
        stream = generate_stream(
            (item for _, item in items),
            number,
            generator=torch.Generator().manual_seed(options["seed"]),
            force_field=variant,
            sampling=sampling,
            device=options["device"],
            report=bar.update,
        )
        for source, _ in items:
            try:
                stop.computing = True
                if stop.asked:
                    raise KeyboardInterrupt
                item = next(stream)
                stop.computing = False
            except KeyboardInterrupt:
                stop.computing, tally.interrupted = False, True
                return
            if isinstance(item, MoleculeEnsemble):
                tally.add(item, item.name)
                yield item.mol, item.energies
            else:
                tally.failures.append((source, replace(item, reason=_as_options(item.reason))))


def _check_targets(paths: list[Path | None], overwrite: bool) -> None:
    """Said before any work: files that exist, folders that do not."""
    wanted = [path for path in paths if path is not None]
    for path in wanted:
        if path.is_dir() or not path.parent.is_dir():
            raise click.UsageError(
                f"{path}: expected the name of a file in a folder that exists. Create the folder first."
            )
        if path.exists() and not overwrite:
            raise click.UsageError(
                f"{path}: expected a new file, got one that exists. Choose another name, or --overwrite."
            )
    if len({path.resolve() for path in wanted}) < len(wanted):
        raise click.UsageError("--out, --failures, --table: expected different files, got the same name twice.")


def _check_device(name: str) -> None:
    import torch

    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise click.UsageError(
            f"--device: expected a device of this machine, got {name!r} ({reason}). Use cpu."
        ) from error


def _read(inputs: tuple[str, ...], rules: Preparation, column: str) -> list[tuple[str, MoleculeRecord | ReadFailure]]:
    """Every record with its source, in the order of the command line."""
    from sciopt.domains.conformation.io import read_molecules, read_smiles_table
    from sciopt.domains.conformation.io.smiles import parse_smiles

    items: list[tuple[str, Any]] = []
    for place, text in enumerate(inputs):
        path = Path(text)
        if not text.lower().endswith(ENDINGS) and not _is_file(path):
            items.append((f"argument {place + 1}", parse_smiles(text, rules, index=place)))
            continue
        try:
            table = path.suffix.lower() in (".csv", ".tsv") and path.is_file()
            read = read_smiles_table(path, rules, column=column) if table else read_molecules(path, rules)
        except (ValueError, FileNotFoundError, UnicodeError) as error:
            message = str(error).replace("Pass `column`.", "Name it with --column.")
            raise click.UsageError(message) from error
        found = sorted((*read.records, *read.failures), key=lambda item: item.index)
        if not found:
            raise click.UsageError(f"{path}: expected at least one molecule, got an empty file.")
        items += [(str(path), item) for item in found]
    return items


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a SMILES string longer than a file name may be
        return False


def _say(tally: Tally, total: int, out: Path, failures: Path | None, seconds: float, signum: signal.Signals) -> None:
    if tally.molecules <= SHOWN:
        for line in tally.lines:
            click.echo(line)
    for note in tally.notes[:SHOWN]:
        click.echo(f"note: {note}", err=True)
    if len(tally.notes) > SHOWN:
        click.echo("note: further notes are not shown", err=True)
    for source, failure in tally.failures[:SHOWN]:
        text = failure.describe()
        if source.startswith("argument "):  # which is its number already
            text = text.partition(": ")[2]
        click.echo(f"failed: {source}: {text}", err=True)
    if more := len(tally.failures) - SHOWN:
        if more > 0:
            where = f"{failures} has all" if failures else "--failures FILE writes all"
            click.echo(f"failed: and {more} more; {where}", err=True)
    if tally.conformers:
        text = f"{out}: {_count(tally.conformers, 'conformer')} of {_count(tally.molecules, 'molecule')}"
        text += f" from {_count(len(tally.rows), 'start')} in {seconds:.1f} s"
        text += f", up to {tally.highest:.2f} kcal/mol above the lowest of its molecule" if tally.highest > 0 else ""
        click.echo(text)
    else:
        click.echo(f"nothing to write: {out} was not made", err=True)
    if tally.unconverged:
        click.echo(f"{_count(tally.unconverged, 'conformer')} not converged; see the item `status`", err=True)
    if tally.failures:
        click.echo(f"{_count(len(tally.failures), 'molecule')} of {total} without conformers", err=True)
    if tally.interrupted:
        left = total - tally.molecules - len(tally.failures)
        kept = f"the finished molecules are in {out}" if tally.conformers else "no molecule was finished"
        by = "^C" if signum is signal.SIGINT else signum.name
        click.echo(f"stopped by {by}; {kept}; {_count(left, 'molecule')} not done", err=True)


def _as_options(reason: str) -> str:
    """The advice of the library in the words of the command line."""
    for library, option in (
        ("set `allow_radicals`", "--allow-radicals takes it"),
        ("choose the policy `largest` or `keep`", "choose --mixtures largest or keep"),
        ("more than `max_atoms` =", "more than --max-atoms"),
        ("allow more time", "--max-seconds allows more"),
    ):
        reason = reason.replace(library, option)
    return reason


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"
