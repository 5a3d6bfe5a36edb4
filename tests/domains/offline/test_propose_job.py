"""The campaign job ``offline.propose``: checked before anything starts, with files, pictures and an oracle's verdict."""

from pathlib import Path

import pytest

from sciopt.campaign.errors import SpecError
from sciopt.campaign.folder import look
from sciopt.campaign.progress import Quiet
from sciopt.campaign.runner import run_campaign
from sciopt.campaign.spec import CampaignSpec, DesignSpec, load_plan, plan
from sciopt.domains.offline.proposal import read_table

LINE = "x,y\n" + "".join(f"{k / 8},{-((k / 8 - 0.63) ** 2):.6f}\n" for k in range(9))


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("t.csv").write_text(LINE)


def run(options, name="c"):
    design = DesignSpec(problem="offline.propose", options=options)
    outcome = run_campaign(plan(CampaignSpec(name="s", designs=[design])), Path(name), workers=0, watch=Quiet())
    entry = look(Path(name)).entries[-1]
    assert entry.result is not None, entry.trace or entry.reason
    return outcome, entry.result


def test_a_table_in_a_campaign_and_results_that_are_added():
    options = {"tables": ["t.csv"], "score": "y", "n": 2, "bounds": ["x=0:2"]}
    _, result = run(options)
    batch = read_table(result.files["batch.csv"])
    assert list(batch.cells) == ["rank", "x", "y", "predicted", "uncertainty", "novelty"] and len(batch) == 2
    assert "How far to trust" in result.files["report.html"].read_text()
    assert set(result.figures) == {"calibration", "scores", "y against the columns"}
    assert result.objective == pytest.approx(-max(float(v) for v in batch.cells["predicted"]), rel=1e-5)
    assert run(options)[0].computed == 0, "the same table is not computed again"
    Path("t.csv").write_text(LINE + "0.7,-0.004\n")
    outcome, result = run(options)
    assert outcome.computed == 1 and result.metrics["measured designs"] == 10, "an appended one is"


def test_a_task_is_judged_by_its_oracle():
    _, result = run({"task": "nk", "length": 4, "known": 60, "n": 8})
    low, median, best = (
        result.metrics[f"{name}, normalised [1]"] for name in ("best measured", "oracle's median", "oracle's best")
    )
    assert 0 < low < 1 and 0 < median <= best <= 1 and best > low, "better than anything it saw"
    assert result.certificate["rank correlation"] > 0 and result.arrays is not None


def test_a_bad_campaign_file_is_said_with_its_line():
    Path("bad.yaml").write_text(
        "name: bad\n"
        "designs:\n"
        "  - problem: offline.propose\n"
        "    options: {tables: [t.csv], score: Y, n: 2}\n"
        "  - problem: offline.propose\n"
        "    options: {tables: [no.csv]}\n"
        "  - problem: offline.propose\n"
        "    options: {}\n"
        "  - problem: offline.propose\n"
        "    options: {task: tf_bind_8, factor: SIX}\n"
        "  - problem: offline.propose\n"
        "    options: {task: nk, n: 0, acquisition: ie}\n"
        "  - problem: offline.propose\n"
        "    options: {tables: [t.csv], score: y, constraints: [z < 3]}\n"
        "  - problem: offline.propose\n"
        "    options: {tables: [t.csv], score: y, double_strand: true}\n"
    )
    with pytest.raises(SpecError) as error:
        load_plan(Path("bad.yaml"))
    lines = str(error.value).splitlines()
    for number, text in (
        (4, "t.csv: expected a column `Y`, got none of that name. Did you mean `y`?"),
        (6, "no.csv: expected a table, got none (No such file or directory)"),
        (8, "expected either `tables` or a `task`, got none and none"),
        (10, "expected `factor` out of CRX_REF_R1"),
        (12, "`n`: "),
        (12, "`acquisition`: "),
        (14, "--constraint: expected one of the columns"),
        (16, "--double-strand: expected one column of DNA or RNA"),
    ):
        assert any(line.startswith(f"bad.yaml:{number}: ") and text in line for line in lines), (number, text, lines)


def test_a_table_that_changes_under_a_running_campaign_is_noticed():
    from sciopt.domains.offline.proposal.job import ProposeOptions

    options = ProposeOptions(tables=["t.csv"], score="y")
    assert options.checksum is not None and ProposeOptions(**options.model_dump()) == options
    Path("t.csv").write_text(LINE + "0.7,-0.004\n")
    with pytest.raises(ValueError, match="expected the files to be those of `checksum`"):
        ProposeOptions(**options.model_dump())
