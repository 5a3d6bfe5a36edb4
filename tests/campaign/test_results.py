"""Publishing a result: whole or not at all, and never over a good one."""

import json

import numpy as np
import pytest

from sciopt.campaign import JobResult
from sciopt.campaign.results import (
    DamagedResult,
    _checksum,
    finished_keys,
    publish,
    read_result,
    set_aside,
    write_json,
)
from sciopt.campaign.spec import Design

DESIGN = Design(key="ab" * 32, label="a", problem="fake.square", version="1", options={"x": 1.0}, seed=0)
RUN = {"started": "now", "seconds": 1.0}


def result(**changes):
    return JobResult(**{"objective": 1.0, "status": "CONVERGED", **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"status": "FINE"}, "expected `status` to be one of"),
        ({"history": {"step": [0, 1], "objective": [1.0]}}, "expected `history` columns of equal length"),
        ({"metrics": {"volume": [1, 2]}}, r"expected `metrics\['volume'\]` to be a number"),
        ({"certificate": {"residual": None}}, r"expected `certificate\['residual'\]`"),
        ({"arrays": {"density": [1.0]}}, "expected the array `density` to be a numeric numpy array, got list"),
        ({"arrays": {"density": np.array([{}])}}, "numeric numpy array"),
        ({"objective": "good"}, "could not convert"),
        ({"files": {"../design.stl": print}}, "expected `files` by plain names that differ, got .*design.stl"),
        ({"files": {".hidden": print}}, "expected `files` by plain names"),
        ({"files": {"a.csv": print, "A.csv": print}}, "expected `files` by plain names that differ"),
    ],
)
def test_what_cannot_be_stored_leaves_nothing_behind(tmp_path, changes, message):
    with pytest.raises((TypeError, ValueError), match=message):
        publish(tmp_path, DESIGN, result(**changes), RUN)
    assert finished_keys(tmp_path) == [] and not list((tmp_path / "designs").glob(".*"))


def test_not_a_result(tmp_path):
    with pytest.raises(TypeError, match="to return a JobResult, got dict"):
        publish(tmp_path, DESIGN, {"objective": 1.0}, RUN)  # type: ignore[arg-type]


@pytest.mark.parametrize("step", ["write_json", "_sync", "_rename"])
def test_death_before_the_rename_publishes_nothing(tmp_path, monkeypatch, step):
    def die(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(f"sciopt.campaign.results.{step}", die)
        with pytest.raises(KeyboardInterrupt):
            publish(tmp_path, DESIGN, result(arrays={"a": np.zeros(3)}), RUN)
    assert finished_keys(tmp_path) == []
    publish(tmp_path, DESIGN, result(), RUN)
    assert read_result(tmp_path, DESIGN.key).objective == 1.0


def test_a_good_result_is_kept_and_a_damaged_one_replaced(tmp_path):
    folder = publish(tmp_path, DESIGN, result(), RUN)
    publish(tmp_path, DESIGN, result(objective=2.0), RUN)
    assert read_result(tmp_path, DESIGN.key).objective == 1.0
    (folder / "result.json").write_text("{}")
    publish(tmp_path, DESIGN, result(objective=2.0), RUN)
    assert read_result(tmp_path, DESIGN.key).objective == 2.0
    assert len(list((tmp_path / "designs").glob(".damaged-*"))) == 1


def test_files_are_kept_with_their_checksums(tmp_path):
    def broken(path):
        path.write_text("half")
        raise OSError("no space")

    files = {"design.stl": lambda path: path.write_bytes(b"abc"), "bad.vti": broken, "none.csv": lambda path: None}
    folder = publish(tmp_path, DESIGN, result(files=files), RUN)
    back = read_result(tmp_path, DESIGN.key)
    assert back.files == {"design.stl": folder / "files" / "design.stl"}
    assert back.files["design.stl"].read_bytes() == b"abc" and len(list((folder / "files").iterdir())) == 1
    assert [text.split(":")[0] for text in back.warnings] == [
        "The file `bad.vti` could not be written",
        "The file `none.csv` could not be written",
    ]
    back.files["design.stl"].write_bytes(b"abd")
    with pytest.raises(DamagedResult, match="design.stl: expected the recorded SHA-256"):
        read_result(tmp_path, DESIGN.key)


def test_results_from_before_there_were_files_are_read(tmp_path):
    folder = publish(tmp_path, DESIGN, result(), RUN)
    content = json.loads((folder / "result.json").read_text())
    del content["checksum"], content["extra"]
    write_json(folder / "result.json", {"checksum": _checksum(content), **content})
    assert read_result(tmp_path, DESIGN.key).files == {}


def test_numbers_of_all_kinds_come_back(tmp_path):
    metrics = {"a": np.float32(0.5), "b": np.int64(3), "c": float("inf"), "d": np.bool_(True), "e": "word"}
    history = {"objective": [float("nan"), float("-inf"), 1.0]}
    publish(tmp_path, DESIGN, result(metrics=metrics, history=history, objective=float("nan")), RUN)
    back = read_result(tmp_path, DESIGN.key)
    assert back.metrics == {"a": 0.5, "b": 3, "c": "inf", "d": True, "e": "word"}
    np.testing.assert_array_equal(back.history["objective"], [np.nan, -np.inf, 1.0])
    assert np.isnan(back.objective)
    json.loads((back.folder / "result.json").read_text(), parse_constant=lambda name: pytest.fail(name))


@pytest.mark.parametrize("content", ["", "[]", "null", '{"checksum": 1}', '{"checksum": "x", "format": 1}', "\x00"])
def test_nonsense_is_damage_not_a_crash(tmp_path, content):
    folder = publish(tmp_path, DESIGN, result(), RUN)
    (folder / "result.json").write_text(content)
    with pytest.raises(DamagedResult):
        read_result(tmp_path, DESIGN.key)
    set_aside(tmp_path, DESIGN.key)
    assert finished_keys(tmp_path) == []
