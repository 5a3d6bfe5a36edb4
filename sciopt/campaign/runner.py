"""Run a campaign: plan against what is finished, hand designs to an engine, survive whatever dies on the way."""

from __future__ import annotations

import os
import shutil
import time
import traceback
from collections import Counter
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from sciopt.campaign.engine import Engine, InlineEngine, ProcessEngine, WorkerDied, WorkerFailed, available_cores
from sciopt.campaign.errors import CampaignError
from sciopt.campaign.folder import save_plan
from sciopt.campaign.lock import campaign_lock
from sciopt.campaign.results import DamagedResult, finished_keys, read_result, result_folder, set_aside
from sciopt.campaign.spec import Plan
from sciopt.campaign.store import Row, Store, open_store, process_alive
from sciopt.campaign.worker import run_design

__all__ = ["MAX_ATTEMPTS", "Observer", "Outcome", "Silent", "run_campaign"]

MAX_ATTEMPTS = 3  # a design whose worker died is tried this often in one run
_POLL = 0.25


class Observer(Protocol):
    """Who watches a run; every method is called in the process that runs the campaign."""

    def started(self, outcome: Outcome, workers: int, threads: int) -> None:
        """The plan is checked and the folder is ready."""
        ...

    def note(self, text: str) -> None:
        """Something the user should know."""
        ...

    def settled(self, row: Row, done: int, total: int) -> None:
        """A design is done or failed."""
        ...

    def running(self, rows: list[Row]) -> None:
        """What runs now; called a few times per second."""
        ...


class Silent:
    """Watches and says nothing: the observer of campaigns run from Python.

    Example:
        >>> Silent().note("nothing is printed")
    """

    def started(self, outcome: Outcome, workers: int, threads: int) -> None:
        """Says nothing."""

    def note(self, text: str) -> None:
        """Says nothing."""

    def settled(self, row: Row, done: int, total: int) -> None:
        """Says nothing."""

    def running(self, rows: list[Row]) -> None:
        """Says nothing."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a run ended.

    Args:
        directory: the campaign folder.
        total: designs in the plan.
        reused: designs that were finished before.
        computed: designs finished by this run.
        failed: designs that failed.
        removed: finished designs in the folder that the plan does not ask for.
        interrupted: whether ^C ended the run.
    """

    directory: Path
    total: int
    reused: int
    computed: int = 0
    failed: int = 0
    removed: int = 0
    interrupted: bool = False


def run_campaign(
    plan: Plan,
    directory: Path,
    *,
    workers: int | None = None,
    engine: Engine | None = None,
    watch: Observer | None = None,
) -> Outcome:
    """Run what is not finished yet; the same call goes on where the last one stopped.

    Args:
        plan: the checked campaign.
        directory: its folder, created if missing.
        workers: processes; 0 runs in this process, None uses one per core.
        engine: runs the designs instead of worker processes; ``workers`` then bounds how many it is given at a time.
        watch: told what happens; None: nobody is.

    Returns:
        How the run ended. Designs that raise, or whose worker dies `MAX_ATTEMPTS` times, are counted, not raised.

    Raises:
        LockError: when another process runs in this folder.
        StoreError: when the queue cannot be used.
    """
    if workers is not None and workers < 0:
        raise CampaignError(f"run: expected `workers` >= 0, got {workers}. Use 0 to run in this process.")
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CampaignError(f"{directory}: expected a folder to write in, got: {error.strerror}. Use --out.") from error
    watch = Silent() if watch is None else watch
    with campaign_lock(directory):
        finished, damaged = _take_stock(plan, directory)
        store, remark = open_store(directory)
        with store:
            if remark:
                watch.note(remark)
            store.synchronise(plan.designs, finished)
            save_plan(directory, plan)
            for text in (*plan.notes, *damaged):
                watch.note(text)
            removed = len(set(finished_keys(directory)) - {design.key for design in plan.designs})
            if removed:
                watch.note(
                    f"{removed} finished designs are not in this spec: kept in the folder, left out of the report."
                )
            outcome = Outcome(directory=directory, total=len(plan.designs), reused=len(finished), removed=removed)
            waiting = outcome.total - outcome.reused
            count = min(available_cores() if workers is None else workers, max(waiting, 1))
            threads = _threads(count)
            watch.started(outcome, count, threads)
            if not waiting:
                return outcome
            if engine is None:
                logs = directory / "logs"
                engine = ProcessEngine(count, threads=threads, logs=logs) if count else InlineEngine()
            run = _Run(store, engine, watch, outcome, slots=max(count, 1), threads=threads, told=set(finished))
            return run.go()


class _Run:
    """The loop of one run: what is in flight, and what comes back."""

    def __init__(
        self,
        store: Store,
        engine: Engine,
        watch: Observer,
        outcome: Outcome,
        *,
        slots: int,
        threads: int,
        told: set[str],
    ) -> None:
        self._store, self._engine, self._watch, self._outcome = store, engine, watch, outcome
        self._slots, self._threads, self._told = slots, threads, told
        self._directory = outcome.directory
        self._flying: dict[Future[Any], str] = {}
        self._running: set[str] = set()
        self._deaths: Counter[str] = Counter()
        self._said = False

    def go(self) -> Outcome:
        """Until nothing waits and nothing runs, or ^C."""
        try:
            while self._step():
                pass
        except KeyboardInterrupt:
            self._engine.shutdown(wait=True, cancel_futures=True)
            mine = {row.key for row in self._store.rows(state="RUNNING") if row.pid == os.getpid()}
            for key in mine.union(self._flying.values()):
                if not self._published(key):
                    self._store.release(key)
            return self._count(interrupted=True)
        except BaseException:
            self._engine.shutdown(wait=True, cancel_futures=True)
            raise
        self._engine.shutdown(wait=True)
        return self._count(interrupted=False)

    def _step(self) -> bool:
        taken = set(self._flying.values())
        for row in self._store.rows(state="PENDING", limit=2 * self._slots):
            if row.key not in taken and len(self._flying) < self._slots:
                future = self._engine.submit(run_design, str(self._directory), row.key, self._threads)
                self._flying[future] = row.key
        for future in wait(self._flying, timeout=_POLL, return_when=FIRST_COMPLETED).done if self._flying else ():
            key = self._flying.pop(future)
            self._land(future, key)
            self._tell(key)
        running = self._store.rows(state="RUNNING")
        for key in self._running - {row.key for row in running}:
            self._tell(key)
        self._running = {row.key for row in running}
        self._watch.running(running)
        if self._flying or self._store.rows(state="PENDING", limit=1):
            return True
        if running:
            self._await_orphans(running)
        return bool(running)

    def _land(self, future: Future[Any], key: str) -> None:
        error = future.exception()
        if error is None or self._published(key):
            return
        label = self._store.row(key).design.label
        if isinstance(error, WorkerDied):
            self._deaths[key] += 1
            count = self._deaths[key]
            if count < MAX_ATTEMPTS:
                first = str(error).partition("\n")[0]
                self._watch.note(f"{label}: {first}; queued again (attempt {count + 1} of {MAX_ATTEMPTS}).")
                self._store.release(key)
            else:
                reason, _, said = str(error).partition("\n")
                self._store.fail(key, reason=f"{reason} in each of {count} attempts", trace=said)
        else:
            trace = error.trace if isinstance(error, WorkerFailed) else "".join(traceback.format_exception(error))
            self._store.fail(key, reason=str(error), trace=trace)

    def _published(self, key: str) -> bool:
        """Whether the result is there all the same: its worker died between publishing it and saying so."""
        if not result_folder(self._directory, key).is_dir():
            return False
        try:
            result = read_result(self._directory, key)
        except DamagedResult:
            return False
        self._store.done(key, status=result.status, objective=result.objective, seconds=result.run.get("seconds", 0.0))
        return True

    def _await_orphans(self, running: list[Row]) -> None:
        """Wait for designs that a worker of an earlier, killed run still computes; queue them when it is gone."""
        if not self._said:
            self._said = True
            pids = ", ".join(str(row.pid) for row in running)
            self._watch.note(
                f"waiting for {len(running)} designs that workers of an earlier run compute (process {pids})"
            )
        for row in running:
            if not row.alive and not self._published(row.key):
                self._store.release(row.key)
        time.sleep(_POLL)

    def _tell(self, key: str) -> None:
        row = self._store.row(key)
        if row.state in ("DONE", "FAILED") and key not in self._told:
            self._told.add(key)
            self._watch.settled(row, len(self._told), self._outcome.total)

    def _count(self, *, interrupted: bool) -> Outcome:
        rows = self._store.rows()
        return replace(
            self._outcome,
            computed=sum(row.state == "DONE" for row in rows) - self._outcome.reused,
            failed=sum(row.state == "FAILED" for row in rows),
            interrupted=interrupted,
        )


def _take_stock(plan: Plan, directory: Path) -> tuple[dict[str, tuple[str, float, float]], list[str]]:
    """What is finished and whole; damaged results are moved aside, leftovers of dead workers are removed."""
    for folder in (directory / "designs", directory / "scratch"):
        for path in list(folder.iterdir()) if folder.is_dir() else ():
            owner = path.name.split("-")[1] if path.name.startswith(".tmp-") else path.name.rpartition("-")[2]
            mine = path.name.startswith(".tmp-") or folder.name == "scratch"
            if mine and owner.isdigit() and (not process_alive(int(owner)) or int(owner) == os.getpid()):
                shutil.rmtree(path, ignore_errors=True)
    finished, notes = {}, []
    there = set(finished_keys(directory))
    for design in plan.designs:
        if design.key in there:
            try:
                result = read_result(directory, design.key)
                finished[design.key] = (result.status, result.objective, float(result.run.get("seconds", 0.0)))
            except DamagedResult as error:
                moved = set_aside(directory, design.key)
                notes.append(f"{design.label}: its result is damaged ({error}); moved to {moved.name}, computed anew.")
    return finished, notes


def _threads(workers: int) -> int:
    threads = max(1, available_cores() // max(workers, 1))
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return min(threads, int(asked)) if asked.isdigit() and int(asked) > 0 else threads
