"""What runs one design: claim it, run the job with a heartbeat, publish the result, mark it done.

The same function runs in a worker process, in the calling process, or under any ``concurrent.futures.Executor``. The
worker publishes its own result, so that nothing is lost when whoever asked for it is gone.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
import time
import traceback
from pathlib import Path

from sciopt.campaign.errors import CampaignError
from sciopt.campaign.registry import JobContext, JobResult, find
from sciopt.campaign.results import publish
from sciopt.campaign.spec import Design
from sciopt.campaign.store import NAME, Store
from sciopt.campaign.versions import machine

__all__ = ["run_design", "serve"]

BEAT = 0.5  # seconds between looks at the progress; the lease is renewed at least every tenth look


class Progress:
    """What a job reports, kept as columns; a thread passes the newest entry on to the queue.

    Example:
        >>> progress = Progress()
        >>> progress.report(0, 2.0, {"change": 0.5})
        >>> progress.report(1, 1.0, {})
        >>> progress.history()
        {'step': [0.0, 1.0], 'objective': [2.0, 1.0], 'change': [0.5, nan]}
    """

    def __init__(self) -> None:
        self.entries: list[tuple[int, float, dict[str, float]]] = []

    def report(self, step: int, objective: float, extra: dict[str, float]) -> None:
        """Record one outer step."""
        self.entries.append((int(step), float(objective), {name: float(value) for name, value in extra.items()}))

    def history(self) -> dict[str, list[float]]:
        """The columns reported so far, of equal length."""
        if not self.entries:
            return {}
        names = dict.fromkeys(name for _, _, extra in self.entries for name in extra)
        columns = {
            "step": [float(step) for step, _, _ in self.entries],
            "objective": [objective for _, objective, _ in self.entries],
        }
        return columns | {name: [extra.get(name, float("nan")) for _, _, extra in self.entries] for name in names}


def run_design(directory: str, key: str, threads: int) -> str:
    """Run one design of a campaign folder, from claim to published result.

    Args:
        directory: the campaign folder.
        key: key of a design that waits in its queue.
        threads: CPU threads the job may use.

    Returns:
        ``DONE``, ``FAILED`` (the reason is in the queue), or ``TAKEN`` if the design was not waiting any more.
    """
    import torch  # noqa: F401  before the clock starts: the first design is not charged for it

    root = Path(directory)
    with Store(root / NAME) as store:
        if not store.claim(key):
            return "TAKEN"
        design = store.row(key).design
        progress, stop = Progress(), threading.Event()
        beat = threading.Thread(target=_beat, args=(root / NAME, key, progress, stop), daemon=True)
        beat.start()
        started = time.time()
        try:
            result = _run(root, design, threads, progress)
            seconds = time.time() - started
            run = {"started": _stamp(started), "seconds": round(seconds, 3), "threads": threads, **machine()}
            publish(root, design, result, run)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            store.fail(key, reason=reason, trace=traceback.format_exc(), seconds=time.time() - started)
            return "FAILED"
        finally:
            stop.set()
            beat.join()
        store.done(key, status=result.status, objective=float(result.objective), seconds=seconds)
        return "DONE"


def _run(root: Path, design: Design, threads: int, progress: Progress) -> JobResult:
    import torch

    kind = find(design.problem)
    if kind.version != design.version:
        raise CampaignError(
            f"{design.problem}: expected version {design.version}, got {kind.version}. "
            "The problem changed after the campaign was planned: run the same command again."
        )
    options = kind.options.model_validate_json(json.dumps(design.options), strict=True)
    scratch = root / "scratch" / f"{design.key[:16]}-{os.getpid()}"
    scratch.mkdir(parents=True, exist_ok=True)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        context = JobContext(
            seed=design.seed,
            generator=torch.Generator().manual_seed(design.seed),
            workdir=scratch,
            report_progress=progress.report,
            threads=threads,
        )
        result = kind.run(options, context)
    finally:
        torch.set_num_threads(before)
        shutil.rmtree(scratch, ignore_errors=True)
    if isinstance(result, JobResult) and not result.history:
        result.history.update(progress.history())
    return result


def _beat(path: Path, key: str, progress: Progress, stop: threading.Event) -> None:
    sent, quiet = 0, 0
    try:
        with Store(path) as store:
            while not stop.wait(BEAT):
                quiet += 1
                count = len(progress.entries)
                if count != sent or quiet >= 10:
                    step, objective, _ = progress.entries[count - 1] if count else (None, None, {})
                    store.beat(key, step, objective)
                    sent, quiet = count, 0
    except CampaignError:
        return  # the queue is gone or damaged; the result is published all the same


def _stamp(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def serve() -> None:
    """Main loop of a worker process: one JSON request per line on stdin, one answer per line on stdout.

    What jobs print goes to stderr, which the engine keeps in a log. The loop ends when stdin is closed.
    """
    import faulthandler
    import importlib

    faulthandler.enable()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    for line in sys.stdin:
        request = json.loads(line)
        try:
            module, _, name = request["call"].partition(":")
            answer = {"value": getattr(importlib.import_module(module), name)(*request["args"])}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()}
        try:
            answers.write(json.dumps(answer) + "\n")
            answers.flush()
        except BrokenPipeError:
            return
