"""The ``sciopt`` command: run campaigns, look at them, report on them, list problems, examine the machine.

Every command imports what it needs when it runs, so that ``sciopt --help`` is there at once.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from sciopt.campaign.runner import Outcome

__all__ = ["main"]

_LAZY = {
    "conformers": (
        "sciopt.domains.conformation.commands",
        "conformers",
        "Generate low-energy conformers of molecules.",
    ),
    "data": ("sciopt.data.commands", "data", "List, fetch and verify the data files of the registry."),
    "propose": (
        "sciopt.domains.offline.proposal.commands",
        "propose_command",
        "Propose the designs to test next, from tables of designs and scores.",
    ),
}


class LazyGroup(click.Group):
    """A group that knows some of its commands by module name, and imports them when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), *_LAZY])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _LAZY:
            return super().get_command(ctx, cmd_name)
        module, attribute, _ = _LAZY[cmd_name]
        return getattr(importlib.import_module(module), attribute)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in self.list_commands(ctx):
            from sciopt.campaign.registry import did_you_mean

            ctx.fail(f"expected a command, got `{args[0]}`. {did_you_mean(args[0], self.list_commands(ctx))}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = []
        for name in self.list_commands(ctx):
            command = None if name in _LAZY else self.get_command(ctx, name)
            rows.append((name, command.get_short_help_str(100) if command else _LAZY[name][2]))
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def invoke(self, ctx: click.Context) -> Any:
        from sciopt.campaign.errors import CampaignError

        try:
            return super().invoke(ctx)
        except CampaignError as error:
            lines = str(error).splitlines()
        except BrokenPipeError:  # the reader of the output has gone, as with `| head`; click ends quietly
            raise
        except OSError as error:  # no space, no permission
            lines = [f"{error.filename or 'file system'}: expected to read and write, got: {error.strerror or error}."]
        for line in lines:
            click.echo(f"sciopt: error: {line}", err=True)
        ctx.exit(2)


def _print_version(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from sciopt.campaign.versions import sciopt_version

        click.echo(f"sciopt {sciopt_version()}")
        ctx.exit()


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version", is_flag=True, callback=_print_version, expose_value=False, is_eager=True, help="Show the version."
)
def main() -> None:
    """Scientific design by gradient-based bi-level optimization."""


@main.command()
@click.argument("spec", type=click.Path(path_type=Path))
@click.option(
    "--out", type=click.Path(path_type=Path), help="Folder of the campaign; runs/<name of the spec> by default."
)
@click.option("--workers", type=click.IntRange(min=0), help="Worker processes, one per core by default; 0: none.")
def run(spec: Path, out: Path | None, workers: int | None) -> None:
    """Run the campaign of a YAML file; the same command continues it.

    ^C stops it: finished designs are kept, running ones are queued again. Designs that failed are tried again by the
    next run. Exit code: 0 when all designs are finished, 1 when some failed, 2 for bad input, 130 after ^C.
    """
    from sciopt.campaign.progress import Bar, Lines
    from sciopt.campaign.runner import run_campaign
    from sciopt.campaign.spec import load_plan

    plan = load_plan(spec)
    directory = out or Path("runs") / plan.name
    watch = Bar() if sys.stderr.isatty() else Lines()
    try:
        outcome = run_campaign(plan, directory, workers=workers, watch=watch)
    finally:
        watch.close()
    report_path = _write_report(directory)
    click.echo(_summary(outcome))
    click.echo(f"report: {report_path}")
    if outcome.interrupted:
        click.echo("stopped by ^C; the same command continues", err=True)
    sys.exit(130 if outcome.interrupted else int(outcome.failed > 0))


@main.command()
@click.argument("directory", type=click.Path(path_type=Path))
def status(directory: Path) -> None:
    """Show how far the campaign in DIRECTORY is; `sciopt run` prints which folder that was."""
    from sciopt.campaign.folder import look

    seen = look(directory)
    counts = {state: seen.count(state) for state in ("DONE", "RUNNING", "PENDING", "FAILED", "DAMAGED")}
    click.echo(f"{seen.name}: {len(seen.entries)} designs in {directory}")
    click.echo("  " + ", ".join(f"{count} {state.lower()}" for state, count in counts.items() if count))
    click.echo(f"  run by {seen.runner}" if seen.runner else "  nobody is running it")
    if seen.removed:
        click.echo(f"  {seen.removed} finished designs of earlier specs are kept in the folder")
    for remark in seen.remarks:
        click.echo(f"  note: {remark}")
    for entry in seen.entries:
        text = entry.state
        if entry.result is not None:
            text += (
                f" {entry.result.status}, objective {entry.result.objective:.6g}, {entry.result.run['seconds']:.1f} s"
            )
        elif entry.state == "RUNNING" and entry.step is not None:
            text += f" step {entry.step}, objective {entry.objective:.6g}"
        elif entry.reason:
            text += f" {entry.reason.splitlines()[0]}"
        click.echo(f"  {entry.design.key[:8]}  {entry.design.label}: {text}")


@main.command()
@click.argument("directory", type=click.Path(path_type=Path))
def report(directory: Path) -> None:
    """Write report.html of a campaign folder anew, also while it runs."""
    click.echo(f"report: {_write_report(directory)}")


@main.command()
@click.argument("name", required=False)
def problems(name: str | None) -> None:
    """List the problems that campaigns can run, or describe those of a domain or one of them."""
    from sciopt.campaign.describe import describe
    from sciopt.campaign.errors import SpecError
    from sciopt.campaign.registry import domains, find, kinds

    if name is None:
        broken = []
        for domain in domains():
            try:
                for kind in kinds(domain).values():
                    click.echo(f"{kind.name}  {kind.summary}")
            except SpecError as error:
                broken.append(str(error))
        click.echo("\n`sciopt problems NAME` shows the options.")
        if broken:
            raise SpecError("\n".join(broken))
        return
    chosen = [find(name)] if "." in name else list(kinds(name).values())
    click.echo("\n\n".join(describe(kind) for kind in chosen))


@main.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs"), help="Folder to write campaigns in.")
def doctor(out: Path) -> None:
    """Examine this machine; exit code 1 if something has to be put right."""
    from sciopt.campaign.doctor import examine

    bad = 0
    for finding in examine(out):
        bad += finding.level == "PROBLEM"
        click.echo(f"{finding.level:8}{finding.what:22}{finding.text}")
    click.echo(f"{bad} problem{'s' * (bad != 1)} found" if bad else "all is well")
    sys.exit(int(bad > 0))


def _write_report(directory: Path) -> Path:
    from sciopt.campaign.folder import look
    from sciopt.view.report import write_report

    return write_report(look(directory))


def _summary(outcome: Outcome) -> str:
    finished = outcome.reused + outcome.computed
    text = f"{finished} of {outcome.total} designs finished ({outcome.computed} now, {outcome.reused} before)"
    return text + (f", {outcome.failed} failed" if outcome.failed else "")


if __name__ == "__main__":
    main()
