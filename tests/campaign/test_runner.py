"""Campaigns in this process: what is finished stays, what is damaged is computed anew, what fails says why."""

import json
import sqlite3

import numpy as np
import pytest
from safetensors.numpy import load_file

from sciopt.campaign import CampaignError, LockError, StoreError
from sciopt.campaign.folder import look
from sciopt.campaign.lock import campaign_lock, lock_holder
from sciopt.campaign.progress import Quiet
from sciopt.campaign.results import DamagedResult, read_result
from sciopt.campaign.runner import run_campaign
from sciopt.campaign.spec import CampaignSpec, DesignSpec, plan


class Watch:
    def __init__(self):
        self.notes, self.lines = [], []

    def started(self, outcome, workers, threads):
        self.workers = workers

    def note(self, text):
        self.notes.append(text)

    def settled(self, row, done, total):
        self.lines.append((row.design.label, row.state, done, total))

    def running(self, rows):
        pass


def squares(tally, *, modes=("ok",), values=(1.0, 2.0)):
    return plan(
        CampaignSpec(
            name="squares",
            designs=[
                DesignSpec(
                    problem="fake.square", options={"tally": str(tally)}, sweep={"x": list(values), "mode": list(modes)}
                )
            ],
        )
    )


def run(the_plan, directory, watch=None):
    return run_campaign(the_plan, directory, workers=0, watch=watch or Watch())


def executions(tally):
    return len(list(tally.iterdir()))


def test_results_are_stored_whole(tmp_path, tally):
    watch = Watch()
    outcome = run(squares(tally), tmp_path / "c", watch)
    assert (outcome.total, outcome.computed, outcome.failed, outcome.reused) == (2, 2, 0, 0)
    assert [line[1:] for line in watch.lines] == [("DONE", 1, 2), ("DONE", 2, 2)]
    entry = look(tmp_path / "c").entries[1]
    result = entry.result
    assert result is not None and entry.state == "DONE"
    assert result.objective == 4.0 and result.status == "CONVERGED" and result.advice
    assert result.history == {"step": [0, 1, 2], "objective": [2.0, 1.0, 2 / 3], "change": [1.0, 0.5, 1 / 3]}
    assert result.certificate == {"inner_residual": 1e-12, "kkt_residual": "nan"}
    assert result.arrays is not None
    np.testing.assert_array_equal(load_file(result.arrays)["density"], np.full((2, 3), 2.0))
    assert result.figures["design"].read_bytes().startswith(b"\x89PNG")
    assert set(result.run) >= {"started", "seconds", "threads", "versions", "platform"}
    assert not list((tmp_path / "c" / "scratch").iterdir())
    assert not [path for path in (tmp_path / "c" / "designs").iterdir() if path.name.startswith(".")]


def test_same_seed_same_result(tmp_path, tally):
    run(squares(tally), tmp_path / "a")
    run(squares(tally), tmp_path / "b")
    one, two = (look(tmp_path / name).entries[0].result for name in "ab")
    assert one is not None and two is not None and one.metrics == two.metrics


def test_second_run_recomputes_nothing(tmp_path, tally):
    run(squares(tally), tmp_path / "c")
    again = run(squares(tally), tmp_path / "c")
    assert (again.reused, again.computed, executions(tally)) == (2, 0, 2)


def test_one_failure_stops_no_other_and_keeps_its_traceback(tmp_path, tally):
    watch = Watch()
    outcome = run(squares(tally, modes=("raise", "ok", "bad_status")), tmp_path / "c", watch)
    assert (outcome.computed, outcome.failed) == (2, 4)
    entry = look(tmp_path / "c").entries[0]
    assert entry.state == "FAILED" and entry.reason == "ArithmeticError: x <b>cannot</b> be settled"
    assert entry.trace is not None and "sciopt_fake.py" in entry.trace
    status = look(tmp_path / "c").entries[2]
    assert status.reason is not None and "expected `status` to be one of RUNNING, CONVERGED" in status.reason
    retried = run(squares(tally, modes=("raise", "ok", "bad_status")), tmp_path / "c")
    assert (retried.reused, retried.failed, executions(tally)) == (2, 4, 6 + 4)


def test_a_bad_figure_costs_a_warning_not_the_result(tmp_path, tally):
    assert run(squares(tally, modes=("bad_figure",), values=(1.0,)), tmp_path / "c").computed == 1
    result = look(tmp_path / "c").entries[0].result
    assert result is not None and not result.figures
    assert result.warnings[-1] == "The figure `design` could not be drawn: ValueError: what it wrote is not a PNG"


def test_changed_spec_reuses_adds_and_leaves(tmp_path, tally):
    run(squares(tally), tmp_path / "c")
    watch = Watch()
    outcome = run(squares(tally, values=(2.0, 3.0)), tmp_path / "c", watch)
    assert (outcome.reused, outcome.computed, outcome.removed, executions(tally)) == (1, 1, 1, 3)
    assert any("1 finished designs are not in this spec" in note for note in watch.notes)
    assert [entry.design.options["x"] for entry in look(tmp_path / "c").entries] == [2.0, 3.0]
    assert run(squares(tally), tmp_path / "c").reused == 2 and executions(tally) == 3


@pytest.mark.parametrize("damage", ["garbage", "truncated", "missing", "schema"])
def test_damaged_queue_is_put_aside_and_rebuilt(tmp_path, tally, damage):
    directory = tmp_path / "c"
    run(squares(tally), directory)
    store = directory / "campaign.sqlite"
    if damage == "garbage":
        store.write_bytes(b"not a database, by no means" * 100)
    elif damage == "truncated":
        store.write_bytes(store.read_bytes()[:5000])
    elif damage == "missing":
        store.unlink()
    else:
        with sqlite3.connect(store) as db:
            db.execute("DROP TABLE designs")
        db.close()
    seen = look(directory)
    assert seen.count("DONE") == 2 and bool(seen.remarks)
    watch = Watch()
    outcome = run(squares(tally, values=(1.0, 2.0, 3.0)), directory, watch)
    assert (outcome.reused, outcome.computed, executions(tally)) == (2, 1, 3)
    if damage != "missing":
        assert any("was damaged" in note and "rebuilt from the finished designs" in note for note in watch.notes)
        assert len(list(directory.glob("campaign.sqlite.corrupt-*"))) >= 1


@pytest.mark.parametrize("name", ["result.json", "arrays.safetensors", "figures/00.png"])
@pytest.mark.parametrize("damage", ["flip", "empty", "gone"])
def test_damaged_result_is_noticed_kept_aside_and_recomputed(tmp_path, tally, name, damage):
    directory = tmp_path / "c"
    run(squares(tally), directory)
    key = look(directory).entries[0].design.key
    path = directory / "designs" / key / name
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        path.unlink()
    with pytest.raises(DamagedResult):
        read_result(directory, key)
    assert look(directory).entries[0].state == "DAMAGED"
    watch = Watch()
    outcome = run(squares(tally), directory, watch)
    assert (outcome.reused, outcome.computed, executions(tally)) == (1, 1, 3)
    assert any("its result is damaged" in note for note in watch.notes)
    assert look(directory).count("DONE") == 2
    assert len(list((directory / "designs").glob(".damaged-*"))) == 1


def test_half_written_results_of_dead_workers_are_ignored_and_swept(tmp_path, tally):
    directory = tmp_path / "c"
    half = directory / "designs" / ".tmp-999999999-abc"
    half.mkdir(parents=True)
    (half / "result.json").write_text("{")
    assert run(squares(tally), directory).computed == 2
    assert not half.exists()


def test_result_published_but_not_marked_is_found(tmp_path, tally):
    directory = tmp_path / "c"
    run(squares(tally), directory)
    with sqlite3.connect(directory / "campaign.sqlite") as db:
        db.execute("UPDATE designs SET state = 'RUNNING', pid = 999999999, lease = 9e9")
    db.close()
    assert look(directory).count("DONE") == 2
    assert run(squares(tally), directory).reused == 2 and executions(tally) == 2


def test_second_campaign_in_the_same_folder_is_refused(tmp_path, tally):
    directory = tmp_path / "c"
    directory.mkdir()
    with campaign_lock(directory):
        assert "process" in str(lock_holder(directory))
        with pytest.raises(LockError, match="held by process .* Wait for it or stop it"):
            run(squares(tally), directory)
    assert lock_holder(directory) is None
    (directory / "campaign.lock").write_text(json.dumps({"pid": 999999999, "since": "long ago"}))  # a stale one
    assert run(squares(tally), directory).computed == 2


def test_interrupt_in_process_requeues(tmp_path, tally, monkeypatch):
    import sciopt_fake  # type: ignore[import-not-found]

    the_plan = squares(tally)
    calls = []

    def interrupt(options, context):
        calls.append(options.x)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return sciopt_fake.run(options, context)

    from sciopt.campaign.registry import find

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(find("fake.square").__dict__, "run", interrupt)
        outcome = run(the_plan, tmp_path / "c")
    assert outcome.interrupted and outcome.computed == 1
    seen = look(tmp_path / "c")
    assert (seen.count("DONE"), seen.count("PENDING")) == (1, 1)
    assert run(the_plan, tmp_path / "c").computed == 1


def test_refusals(tmp_path, tally):
    with pytest.raises(CampaignError, match="expected `workers` >= 0"):
        run_campaign(squares(tally), tmp_path / "c", workers=-1, watch=Quiet())
    (tmp_path / "file").write_text("")
    with pytest.raises(CampaignError, match="expected a folder to write in"):
        run(squares(tally), tmp_path / "file")
    with pytest.raises(CampaignError, match=r"got no campaign\.json there"):
        look(tmp_path)
    (tmp_path / "campaign.json").write_text("{")
    with pytest.raises(CampaignError, match="expected the plan of a campaign"):
        look(tmp_path)


def test_queue_that_cannot_be_written_says_so(tmp_path, tally):
    directory = tmp_path / "c"
    (directory / "campaign.sqlite").mkdir(parents=True)
    with pytest.raises(StoreError, match="finished designs are safe"):
        run(squares(tally), directory)
