"""What a person sees while a campaign runs: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, final

if TYPE_CHECKING:
    from sciopt.campaign.runner import Outcome
    from sciopt.campaign.store import Row

__all__ = ["Bar", "Lines", "Quiet", "settled_line"]


def settled_line(row: Row, done: int, total: int) -> str:
    """One line on a design that is done or failed."""
    head = f"[{done}/{total}] {row.design.label}: "
    if row.state == "FAILED":
        return head + f"FAILED: {(row.reason or '').splitlines()[0] if row.reason else 'no reason recorded'}"
    objective = "" if row.objective is None else f", objective {row.objective:.6g}"
    seconds = "" if row.seconds is None else f", {row.seconds:.1f} s"
    return head + f"{row.status}{objective}{seconds}"


def _opening(outcome: Outcome, workers: int, threads: int) -> str:
    todo = outcome.total - outcome.reused
    if todo == 0:
        return f"{outcome.total} designs, all finished before; nothing to run"
    where = "in this process" if workers == 0 else f"on {workers} worker{'s' * (workers != 1)}"
    kept = f", {outcome.reused} already finished" if outcome.reused else ""
    return f"{outcome.total} designs{kept}; {todo} to run {where} with {threads} thread{'s' * (threads != 1)} each"


@final
class Quiet:
    """Says nothing.

    Example:
        >>> Quiet().note("unheard")
    """

    def started(self, outcome: Outcome, workers: int, threads: int) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""

    def settled(self, row: Row, done: int, total: int) -> None:
        """Nothing."""

    def running(self, rows: list[Row]) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


@final
class Lines:
    """One line per event, for logs and pipes."""

    def started(self, outcome: Outcome, workers: int, threads: int) -> None:
        """Say what will run."""
        print(_opening(outcome, workers, threads), flush=True)

    def note(self, text: str) -> None:
        """Say it on stderr."""
        print(f"note: {text}", file=sys.stderr, flush=True)

    def settled(self, row: Row, done: int, total: int) -> None:
        """Say how the design ended."""
        print(settled_line(row, done, total), flush=True)

    def running(self, rows: list[Row]) -> None:
        """Nothing: lines are for what has settled."""

    def close(self) -> None:
        """Nothing."""


@final
class Bar:
    """A progress bar that shows how far the running designs are."""

    def __init__(self) -> None:
        self._bar: Any = None

    def started(self, outcome: Outcome, workers: int, threads: int) -> None:
        """Open the bar."""
        from tqdm import tqdm

        print(_opening(outcome, workers, threads), flush=True)
        self._bar = tqdm(total=outcome.total, initial=outcome.reused, unit="design", dynamic_ncols=True, leave=False)

    def note(self, text: str) -> None:
        """Say it above the bar."""
        self._write(f"note: {text}")

    def settled(self, row: Row, done: int, total: int) -> None:
        """Say how the design ended, and move the bar."""
        self._write(settled_line(row, done, total))
        if self._bar is not None:
            self._bar.update(1)

    def running(self, rows: list[Row]) -> None:
        """Show the steps of what runs."""
        if self._bar is not None:
            shown = [f"{row.design.label}: step {row.step}" for row in rows if row.step is not None]
            self._bar.set_postfix_str("; ".join(shown[:3]), refresh=True)

    def close(self) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()

    def _write(self, text: str) -> None:
        if self._bar is None:
            print(text, flush=True)
        else:
            self._bar.write(text)
