"""The command line, with the fake problem of the campaign tests."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from sciopt.campaign.registry import ENVIRONMENT
from sciopt.cli import main

SPEC = """
name: lines
designs:
  - problem: fake.square
    options: {tally: TALLY}
    sweep: {x: [1, 2], mode: [MODES]}
"""


@pytest.fixture(autouse=True)
def fake_problem(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "path", [str(Path(__file__).parent / "campaign"), *sys.path])
    monkeypatch.setenv(ENVIRONMENT, "fake=sciopt_fake:problems")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tally").mkdir()


def spec(modes="ok"):
    Path("spec.yaml").write_text(SPEC.replace("MODES", modes).replace("TALLY", str(Path("tally").resolve())))
    return "spec.yaml"


def call(*args, code=0):
    result = CliRunner().invoke(main, [str(arg) for arg in args])
    assert result.exit_code == code, (result.exit_code, result.output, result.exception)
    assert "Traceback" not in result.output
    return result.output


def test_help_imports_no_torch():
    code = (
        "import sys; from sciopt.cli import main\n"
        "try:\n    main(['--help'])\n"
        "except SystemExit:\n    pass\n"
        "sys.exit(bool({'torch', 'pydantic', 'numpy', 'sciopt.data.commands'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parent.parent, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for name in ("run", "status", "report", "problems", "doctor", "data"):
        assert f"\n  {name} " in done.stdout


def test_run_status_report():
    out = call("run", spec(), "--workers", 0)
    assert "2 of 2 designs finished (2 now, 0 before)" in out and "runs/lines/report.html" in out
    assert Path("runs/lines/report.html").exists()
    assert "(0 now, 2 before)" in call("run", spec(), "--workers", 0)
    assert len(list(Path("tally").iterdir())) == 2
    status = call("status", "runs/lines")
    assert "2 done" in status and "CONVERGED, objective 4" in status and "nobody is running it" in status
    Path("runs/lines/report.html").unlink()
    assert "report: runs/lines/report.html" in call("report", "runs/lines")
    assert "x=2 mode=ok" in Path("runs/lines/report.html").read_text(encoding="utf-8")


def test_a_failed_design_gives_exit_code_1_and_is_in_the_report():
    out = call("run", spec("raise, ok"), "--workers", 0, "--out", "there", code=1)
    assert "2 of 4 designs finished" in out and "2 failed" in out and "FAILED: ArithmeticError" in out
    report = Path("there/report.html").read_text(encoding="utf-8")
    assert "x &lt;b&gt;cannot&lt;/b&gt; be settled" in report and "sciopt_fake.py" in report
    assert "2 failed" in call("status", "there")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["run", "missing.yaml"], "sciopt: error: missing.yaml: expected a campaign file"),
        (
            ["run", "bad.yaml"],
            "sciopt: error: bad.yaml:2: expected a known key, got `desings`. Did you mean `designs`?",
        ),
        (["run", "spec.yaml", "--wrokers", "1"], "No such option"),
        (["run", "spec.yaml", "--workers", "-1"], "Invalid value"),
        (["runn"], "Did you mean `run`?"),
        (["status", "nowhere"], "sciopt: error: nowhere: expected a campaign folder"),
        (["report", "nowhere"], "sciopt: error: nowhere: expected a campaign folder"),
        (["problems", "fke"], "Did you mean `fake`?"),
        (["problems", "fake.sqare"], "Did you mean `fake.square`?"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(args, message):
    spec()
    Path("bad.yaml").write_text("name: a\ndesings: []\n")
    assert message in call(*args, code=2)


def test_a_reader_that_goes_away_is_no_error():
    """``sciopt problems | head -0``: nothing on stderr."""
    command = "import sys; from sciopt.cli import main; sys.stdin.read(); main(['problems'])"
    process = subprocess.Popen(
        [sys.executable, "-c", command],
        cwd=Path(__file__).parent.parent,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent / "campaign")},
    )
    assert process.stdin and process.stdout and process.stderr
    with process:
        process.stdout.close()
        process.stdin.close()  # it prints only now
        assert process.stderr.read() == b""
    assert process.returncode == 1


def test_a_file_is_no_campaign_folder():
    Path("file").touch()
    assert "expected a campaign folder" in call("status", "file", code=2)


def test_nothing_left_to_run_is_said():
    call("run", spec(), "--workers", 0)
    assert "2 designs, all finished before; nothing to run" in call("run", spec(), "--workers", 0)


def test_problems():
    assert "fake.square  the square of x" in CliRunner().invoke(main, ["problems"]).output
    for name in ("fake", "fake.square"):
        out = call("problems", name)
        assert "number > 0 and <= 100, default 1.0" in out and "position [m]" in out and "inner.max_steps" in out


def test_version():
    assert call("--version").startswith("sciopt ")


def test_doctor(monkeypatch):
    monkeypatch.setenv("SCIOPT_DATA_MIRROR", "nowhere")
    out = call("doctor", code=1)
    assert "PROBLEM data mirror" in out and "problems of fake" in out and "write access" in out
    monkeypatch.setattr("sciopt.campaign.registry.BUILT_IN", {"broken": "nowhere:problems"})
    assert "PROBLEM problems of broken" in call("doctor", code=1)


def test_data_is_mounted():
    assert "fetch" in call("data", "--help")
