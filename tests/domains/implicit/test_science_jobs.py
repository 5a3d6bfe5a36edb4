"""The jobs of the domain: reports with pictures, a data file, and options that are refused before any work."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from sciopt.campaign.registry import JobContext, find

DECAY = {"reactions": ["A -> B"], "amounts": [{"A": 1.0}], "observed": ["B"], "errors": [0.01]}


def context(folder: Path, reported: list) -> JobContext:
    return JobContext(
        seed=0,
        generator=torch.Generator().manual_seed(0),
        workdir=folder,
        report_progress=lambda step, objective, extra: reported.append((step, objective)),
        threads=1,
    )


def test_a_kinetics_job_reports_rates_errors_and_the_next_time(tmp_path):
    kind = find("implicit.kinetics")
    options = {**DECAY, "rates": [2.0], "first_time": 0.05, "last_time": 2.0, "measurements": 6, "next_times": 1}
    reported = []
    result = kind.run(kind.options(**options, rtol=1e-4, refinements=0), context(tmp_path, reported))
    assert result.status == "CONVERGED" and reported
    assert result.metrics["k1"] == pytest.approx(2.0, rel=0.05)
    error, expected = (
        float(result.metrics[f"k1, {name} [1]"])
        for name in ("standard error of the logarithm", "expected after the next measurements")
    )
    assert 0 < expected < error < 0.05
    assert float(result.arrays["next_times"][0]) == pytest.approx(0.5, abs=0.1)  # t exp(-2 t) is largest there
    for name, draw in result.figures.items():
        draw(tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").read_bytes()[1:4] == b"PNG"
    result.files["rates.txt"](tmp_path / "rates.txt")
    assert "k1" in (tmp_path / "rates.txt").read_text(encoding="utf-8")


def test_a_kinetics_job_reads_data_with_gaps(tmp_path):
    times = [0.2, 0.5, 1.0, 1.5]
    lines = [f"1,{t},{1 - np.exp(-0.7 * t):.6f}" for t in times] + ["2,1.0,", f"2,2.0,{2 - 2 * np.exp(-1.4):.6f}"]
    (tmp_path / "data.csv").write_text("experiment,time,B\n" + "\n".join(lines) + "\n", encoding="utf-8")
    kind = find("implicit.kinetics")
    options = {**DECAY, "rates": [1.0], "amounts": [{"A": 1.0}, {"A": 2.0}], "next_times": 0, "rtol": 1e-4}
    result = kind.run(kind.options(**options, data=str(tmp_path / "data.csv")), context(tmp_path, []))
    assert result.metrics["k1"] == pytest.approx(0.7, rel=1e-3)
    assert np.isnan(result.arrays["data"]).sum() == 5 and "next_times" not in result.arrays
    (tmp_path / "data.csv").write_text("experiment,time\n1,1.0\n", encoding="utf-8")
    with pytest.raises(ValueError, match="expected `data` with the columns"):
        kind.options(**options, data=str(tmp_path / "data.csv"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "experiment,time,B\n1,1,0.5\n1,soon,0.4\n",
            r"csv, line 3: expected `data` with a number in `time`, got 'soon'",
        ),
        ("experiment,time,B\n1,1.0,nan\n", r"line 2: expected `data` with a number in `B`, got 'nan'"),
        ("experiment,time,B\n\n3,1.0,0.5\n", r"line 3: expected `data` with an `experiment` from 1 to 1, got '3'"),
        ("experiment,time,B\n1,-1,0.5\n", r"line 2: expected `data` with a `time` > 0, got '-1'"),
        ("experiment,time,B\n1\n", r"line 2: expected `data` with a number in `time`, got ''"),
        ("", r"line 1: expected `data` with the columns .*, got an empty file"),
        (None, r"bad.csv: expected `data` with a CSV file in UTF-8, got .*No such file"),
    ],
)
def test_bad_data_are_refused_before_any_work(text, said, tmp_path):
    path = tmp_path / "bad.csv"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=said):
        find("implicit.kinetics").options(
            reactions=["A -> B"], rates=[1.0], amounts=[{"A": 1.0}], observed=["B"], errors=[0.1], data=str(path)
        )


def test_a_permittivity_job_reports_its_error(tmp_path):
    kind = find("implicit.permittivity")
    result = kind.run(kind.options(cells=12, sensor_spacing=2, max_steps=4), context(tmp_path, []))
    assert result.status == "CONVERGED" and result.objective <= 1.03
    assert float(result.metrics["relative error of the field [1]"]) < 0.5
    result.figures["field"](tmp_path / "field.png")
    assert (tmp_path / "field.png").stat().st_size > 5000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rates": [1.0]}, "expected 3 positive `rates`"),
        ({"observed": ["A", "X", "C"]}, "name species among"),
        ({"errors": [0.1]}, "one positive number in `errors`"),
        ({"first_time": 10.0, "last_time": 1.0}, "`first_time` < `last_time`"),
        ({"next_times": 50, "spacing": 2.0}, "expected `next_times` that fit"),
        ({"reactions": ["A => B"]}, "expected one arrow"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValidationError, match=message):
        find("implicit.kinetics").options(**options)
