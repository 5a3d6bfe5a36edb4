"""What a campaign folder says, for `sciopt status` and the report; reads without running or repairing anything."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from sciopt.campaign.errors import CampaignError, StoreError
from sciopt.campaign.lock import lock_holder
from sciopt.campaign.results import DamagedResult, FinishedDesign, finished_keys, read_result, write_json
from sciopt.campaign.spec import Design, Plan
from sciopt.campaign.store import NAME, Row, Store

__all__ = ["Entry", "Overview", "look", "save_plan"]

_PLAN = "campaign.json"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One planned design with what is known of it.

    Args:
        design: the design.
        state: ``DONE``, ``FAILED``, ``RUNNING``, ``PENDING`` or ``DAMAGED``.
        result: the finished design, if there is a whole one.
        reason: why it failed or what is damaged.
        trace: traceback of a failure.
        attempts: how often it was started in the last run.
        step: last outer step reported by a running one.
        objective: objective at that step.
    """

    design: Design
    state: str
    result: FinishedDesign | None = None
    reason: str | None = None
    trace: str | None = None
    attempts: int = 0
    step: int | None = None
    objective: float | None = None


@dataclass(frozen=True, kw_only=True)
class Overview:
    """A whole campaign folder.

    Args:
        name: name of the campaign.
        directory: its folder.
        entries: the planned designs in order.
        removed: finished designs of earlier specs that the present one does not ask for.
        remarks: sentences for the user, e.g. on a damaged queue.
        runner: who runs in the folder now, in words, or None.
    """

    name: str
    directory: Path
    entries: tuple[Entry, ...]
    removed: int
    remarks: tuple[str, ...]
    runner: str | None

    def count(self, state: str) -> int:
        """How many designs are in this state."""
        return sum(entry.state == state for entry in self.entries)


def save_plan(directory: Path, plan: Plan) -> None:
    """Keep the plan in the folder, so that status and report need no spec."""
    write_json(directory / _PLAN, {"name": plan.name, "designs": [asdict(design) for design in plan.designs]})


def look(directory: Path) -> Overview:
    """Read a campaign folder: its plan, its queue if that is whole, and every finished result, checked.

    Raises:
        CampaignError: when the folder holds no campaign.
    """
    path = directory / _PLAN
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        designs = [Design(**item) for item in content["designs"]]
        name = str(content["name"])
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CampaignError(
            f"{directory}: expected a campaign folder, got no {_PLAN} there. Give the folder that `sciopt run` printed."
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CampaignError(
            f"{path}: expected the plan of a campaign, got {type(error).__name__}: {error}. "
            "Run `sciopt run` with its spec again; finished designs are kept."
        ) from error
    runner = lock_holder(directory)
    rows, remarks = _rows(directory, runner)
    published = set(finished_keys(directory))
    entries = tuple(_entry(directory, design, rows.get(design.key), published) for design in designs)
    removed = len(published - {design.key for design in designs})
    return Overview(name=name, directory=directory, entries=entries, removed=removed, remarks=remarks, runner=runner)


def _rows(directory: Path, runner: str | None) -> tuple[dict[str, Row], tuple[str, ...]]:
    if not (directory / NAME).exists():
        return {}, ("The queue is missing; `sciopt run` rebuilds it from the finished designs.",)
    try:
        with Store(directory / NAME) as store:
            found = {row.key: row for row in store.rows(wanted=False)}
    except StoreError as error:
        return {}, (
            f"The queue cannot be read ({error.__cause__}); `sciopt run` rebuilds it from the finished designs.",
        )
    if runner is None:  # left running by a campaign that was killed
        found = {
            key: replace(row, state="PENDING") if row.state == "RUNNING" and not row.alive else row
            for key, row in found.items()
        }
    return found, ()


def _entry(directory: Path, design: Design, row: Row | None, published: set[str]) -> Entry:
    if design.key in published:
        try:
            result = read_result(directory, design.key)
            return Entry(design=design, state="DONE", result=result, attempts=row.attempts if row else 1)
        except DamagedResult as error:
            return Entry(design=design, state="DAMAGED", reason=f"{error} `sciopt run` computes it anew.")
    if row is None or row.state == "DONE":
        return Entry(design=design, state="PENDING")
    return Entry(
        design=design,
        state=row.state,
        reason=row.reason,
        trace=row.trace,
        attempts=row.attempts,
        step=row.step,
        objective=row.objective,
    )
