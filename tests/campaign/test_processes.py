"""Campaigns in worker processes, and what happens when somebody kills one of them, or all."""

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sciopt.campaign.folder import look
from sciopt.campaign.runner import run_campaign
from sciopt.campaign.spec import CampaignSpec, DesignSpec, plan
from sciopt.campaign.worker import run_design

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX systems")


class Notes:
    def __init__(self):
        self.notes = []

    def started(self, outcome, workers, threads):
        pass

    def note(self, text):
        self.notes.append(text)

    def settled(self, row, done, total):
        pass

    def running(self, rows):
        pass


def wait_for(what: Callable[[], Any], seconds: float = 180.0) -> Any:
    """Poll until true; the tests themselves need a fraction of a second."""
    end = time.monotonic() + seconds
    while not (found := what()):
        if time.monotonic() > end:
            raise TimeoutError("the campaign did not get there")
        time.sleep(0.01)
    return found


def worker_of(directory: Path, mode: str) -> int | None:
    """Process id of the worker that runs the design of this mode."""
    if not (directory / "campaign.sqlite").exists():
        return None
    db = sqlite3.connect(directory / "campaign.sqlite", timeout=10)
    try:
        found = db.execute(
            "SELECT pid FROM designs WHERE state = 'RUNNING' AND json_extract(design, '$.options.mode') = ?", (mode,)
        ).fetchone()
    except sqlite3.OperationalError:  # the table is not there yet
        return None
    finally:
        db.close()
    return found[0] if found else None


def executions(tally, mode=""):
    return len([path for path in tally.iterdir() if f"-{mode}" in path.name])


def spec_file(tmp_path, tally, modes):
    path = tmp_path / "spec.yaml"
    path.write_text(
        f"name: processes\ndesigns:\n  - problem: fake.square\n    options: {{tally: {tally}}}\n"
        f"    sweep: {{mode: [{', '.join(modes)}]}}\n"
    )
    return path


def command(spec, directory, *more):
    return subprocess.Popen(
        [sys.executable, "-m", "sciopt.cli", "run", str(spec), "--out", str(directory), "--workers", "1", *more],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, os.getcwd()])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_killed_workers_are_replaced_and_their_designs_tried_again(tmp_path, tally, monkeypatch):
    monkeypatch.setattr("sciopt.campaign.runner.MAX_ATTEMPTS", 2)
    directory = tmp_path / "c"
    modes = ["ok", "wait", "die", "raise", "slow"]
    spec = DesignSpec(problem="fake.square", options={"tally": str(tally)}, sweep={"mode": list(modes)})
    watch = Notes()

    def kill():
        pid = wait_for(lambda: executions(tally, "wait") == 1 and worker_of(directory, "wait"))
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: executions(tally, "wait") == 2)
        (tally / "go").touch()

    killer = threading.Thread(target=kill)
    killer.start()
    outcome = run_campaign(plan(CampaignSpec(name="k", designs=[spec])), directory, workers=1, watch=watch)
    killer.join()
    assert (outcome.computed, outcome.failed, outcome.total) == (3, 2, 5)
    assert [executions(tally, mode) for mode in modes] == [1, 2, 2, 1, 1]
    assert any("ended with SIGKILL" in note and "attempt 2 of 2" in note for note in watch.notes)
    seen = look(directory)
    assert [entry.state for entry in seen.entries] == ["DONE", "DONE", "FAILED", "FAILED", "DONE"]
    assert seen.entries[1].attempts == 2
    reason = seen.entries[2].reason
    assert reason is not None and "ended with SIGKILL" in reason and "in each of 2 attempts" in reason


def test_interrupt_keeps_what_is_finished_and_the_same_command_continues(tmp_path, tally):
    directory = tmp_path / "c"
    spec = spec_file(tmp_path, tally, ["ok", "wait"])
    first = command(spec, directory)
    pid = wait_for(lambda: executions(tally, "wait") == 1 and worker_of(directory, "wait"))

    second = command(spec, directory)  # while the first is at work
    _, err = second.communicate(timeout=180)
    assert second.returncode == 2 and f"held by process {first.pid}" in err and "Traceback" not in err

    os.killpg(first.pid, signal.SIGINT)  # what ^C in a terminal does
    out, err = first.communicate(timeout=180)
    assert first.returncode == 130, err
    assert "1 of 2 designs finished (1 now, 0 before)" in out and "the same command continues" in err
    assert "Traceback" not in err + out
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    seen = look(directory)
    assert (seen.count("DONE"), seen.count("PENDING"), seen.runner) == (1, 1, None)
    assert (directory / "report.html").exists()

    (tally / "go").touch()
    third = command(spec, directory)
    out, err = third.communicate(timeout=180)
    assert third.returncode == 0, err
    assert "2 of 2 designs finished (1 now, 1 before)" in out
    assert (executions(tally, "ok"), executions(tally, "wait")) == (1, 2)


def test_killed_campaign_leaves_its_worker_to_finish_and_is_continued(tmp_path, tally):
    directory = tmp_path / "c"
    spec = spec_file(tmp_path, tally, ["wait", "ok"])
    first = command(spec, directory)
    wait_for(lambda: executions(tally, "wait") == 1)
    first.kill()
    first.communicate()
    again = command(spec, directory)
    wait_for(lambda: executions(tally, "ok") == 1)  # the rest runs while the orphan is left alone
    (tally / "go").touch()
    out, err = again.communicate(timeout=180)
    assert again.returncode == 0, err
    assert "2 of 2 designs finished" in out
    assert (executions(tally, "ok"), executions(tally, "wait")) == (1, 1)


def test_two_workers_never_share_a_design(tmp_path, tally):
    directory = tmp_path / "c"
    spec = DesignSpec(problem="fake.square", options={"tally": str(tally)})
    the_plan = plan(CampaignSpec(name="k", designs=[spec]))
    run_campaign(the_plan, directory, workers=0, watch=Notes())
    assert run_design(str(directory), the_plan.designs[0].key, 1) == "TAKEN" and executions(tally) == 1
