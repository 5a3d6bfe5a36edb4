"""``sciopt data list | fetch | verify``: the registry on the command line."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path

import click

from sciopt.data.catalogue import Entry, entry, registry
from sciopt.data.fetcher import DataError, FileState, cache_dir, fetch, verify

__all__ = ["data"]


@click.group()
def data() -> None:
    """List, fetch and verify the data files of the registry.

    NAMES are registry names or patterns such as 'proteins/formats/*'.
    """


def _select(names: tuple[str, ...]) -> list[Entry]:
    """Entries of the given names and patterns, each once; all when none is given."""
    chosen: dict[str, Entry] = {}
    for name in names or ("*",):
        found = {known: item for known, item in registry().items() if fnmatchcase(known, name)}
        if not found:
            try:
                found = {name: entry(name)}
            except ValueError as error:
                raise click.UsageError(str(error)) from error
        chosen |= found
    return list(chosen.values())


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"


@data.command("list")
@click.argument("names", nargs=-1)
@click.option("--long", "-l", "details", is_flag=True, help="Show address, checksum, units and description too.")
def list_(names: tuple[str, ...], details: bool) -> None:
    """Show names, sizes and licences, and which files are in the cache."""
    chosen = _select(names)
    width = max(len(item.name) for item in chosen)
    for item in chosen:
        cached = "cached" if (cache_dir() / item.name).is_file() else "-"
        click.echo(f"{item.name:{width}}  {_size(item.size):>9}  {cached:6}  {item.licence}")
        if details:
            click.echo(f"    {item.description}")
            click.echo(f"    units: {item.units}")
            click.echo(f"    url: {item.url or 'none, converted from ' + item.source_url}")
            click.echo(f"    sha256: {item.sha256}")
    click.echo(f"{len(chosen)} files, {_size(sum(item.size for item in chosen))}; cache: {cache_dir()}")


@data.command("fetch")
@click.argument("names", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Fetch every file of the registry.")
def fetch_(names: tuple[str, ...], everything: bool) -> None:
    """Bring files into the cache and verify them."""
    if not names and not everything:
        raise click.UsageError("data fetch: expected NAMES or --all, got neither. `sciopt data list` shows the names.")
    failed = 0
    for item in _select(() if everything else names):
        try:
            click.echo(fetch(item.name))
        except DataError as error:
            failed += 1
            click.echo(f"error: {error}", err=True)
    if failed:
        raise click.ClickException(f"data fetch: {failed} files could not be had; see above.")


@data.command("verify")
@click.argument("names", nargs=-1)
@click.option(
    "--folder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Check this folder (a mirror, say) instead of the cache.",
)
def verify_(names: tuple[str, ...], folder: Path | None) -> None:
    """Compare files with the registry's checksums.

    Fails when a file is corrupt, or when one that NAMES asks for is missing.
    """
    states = {item.name: verify(item.name, folder) for item in _select(names)}
    shown = states if names else {name: state for name, state in states.items() if state is not FileState.MISSING}
    for name, state in shown.items():
        click.echo(f"{state.value:7}  {name}")
    counts = {state: list(states.values()).count(state) for state in FileState}
    click.echo(", ".join(f"{count} {state.value}" for state, count in counts.items()) + f" in {folder or cache_dir()}")
    if counts[FileState.CORRUPT]:
        raise click.ClickException("data verify: corrupt files; `sciopt data fetch NAME` replaces one in the cache.")
    if names and counts[FileState.MISSING]:
        raise click.ClickException("data verify: missing files; `sciopt data fetch NAME` brings one into the cache.")
