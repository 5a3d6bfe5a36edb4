"""The frame of the benchmark tables: what is met, missed, raised or not installed is reported as such."""

import math
import re
from dataclasses import replace

import pytest
import torch

from tests.benchmarks import run as runner
from tests.benchmarks.measure import peak_bytes, side_by_side
from tests.benchmarks.table import BARS, Bars, Bound, Measured, PeerMissing, peer, render


@pytest.fixture
def bars() -> Bars:
    """One bar of each fate, and one of the other tier."""
    found = Bars()

    @found.bar("met", tier="bench", bar="<= 1.5x")
    def met() -> Measured:
        return Measured(1.4999, "ours 3 s")

    @found.bar("missed", tier="bench", bar=">= 3x")
    def missed() -> Measured:
        return Measured(2.9)

    @found.bar("nan", tier="bench", bar="< 1e-3")
    def nan() -> Measured:
        return Measured(math.nan)

    @found.bar("raises", tier="bench", bar="<= 1x")
    def raises() -> Measured:
        raise RuntimeError("a | b\nc")

    @found.bar("no peer", tier="bench", bar=">= 10x")
    def no_peer() -> Measured:
        return peer("no_such_package_anywhere.part")

    @found.bar("reported", tier="bench", bar=None)
    def reported() -> Measured:
        return Measured(2.5, "a multiple of one gradient")

    @found.bar("other tier", tier="validate", bar="<= 1e-6")
    def other() -> Measured:
        return Measured(1e-7)

    return found


def cells(text: str) -> dict[str, list[str]]:
    """Rows of the Markdown table by name."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    assert len({len(row) for row in rows}) == 1
    return {row[0]: row for row in rows[2:]}


def test_each_fate_is_a_row(bars, capsys):
    rows = cells(render(runner.run(bars, "bench")))
    assert {name: row[3] for name, row in rows.items()} == {
        "met": "yes",
        "missed": "NO",
        "nan": "NO",
        "raises": "ERROR",
        "no peer": "-",
        "reported": "-",
    }
    assert rows["met"][1:3] == ["1.5x", "<= 1.5x"]
    assert rows["met"][5] == "ours 3 s"
    assert rows["raises"][5] == r"raised RuntimeError: a \| b c"
    assert rows["no peer"][5] == "peer not installed: no_such_package_anywhere"
    assert "RuntimeError" in capsys.readouterr().err


def test_kept_table_has_date_commit_and_hardware(bars, tmp_path, capsys):
    assert runner.main(["--tier", "bench"], bars, tmp_path) == 1
    text = (tmp_path / "bench.md").read_text()
    assert text in capsys.readouterr().out
    for fact in ("date: 2", "commit: ", "CPU: ", "RAM: ", f"torch: {torch.__version__}", "peers: ", "GPU: "):
        assert f"- {fact}" in text
    assert "6 bars, 3 missed or failed." in text


def test_status_is_zero_when_nothing_is_missed(bars, tmp_path):
    assert runner.main(["--tier", "validate"], bars, tmp_path) == 0
    assert cells((tmp_path / "validate.md").read_text())["other tier"][3] == "yes"


def test_a_missing_peer_is_no_failure(bars, tmp_path):
    assert runner.main(["--tier", "bench", "--only", "no peer"], bars, tmp_path) == 0


def test_part_of_a_tier_leaves_the_kept_table_alone(bars, tmp_path, capsys):
    assert runner.main(["--tier", "bench", "--only", "me*"], bars, tmp_path) == 0
    assert list(cells(capsys.readouterr().out)) == ["met"]
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(SystemExit):
        runner.main(["--tier", "bench", "--only", "mett"], bars, tmp_path)
    assert "matches 'mett', got none" in capsys.readouterr().err


def test_rows_run_later_take_their_place_in_the_kept_table(bars, tmp_path, capsys):
    runner.main(["--tier", "bench"], bars=bars, results=tmp_path)
    before = (tmp_path / "bench.md").read_text().splitlines()
    bars.by_name["missed"] = replace(bars.by_name["missed"], measure=lambda: Measured(3.5, "faster"))
    bars.bar("new", tier="bench", bar="<= 1x")(lambda: Measured(0.5))
    runner.main(["--tier", "bench", "--only", "missed", "--merge"], bars=bars, results=tmp_path)
    assert runner.main(["--tier", "bench", "--only", "new", "--merge"], bars=bars, results=tmp_path) == 0
    after = (tmp_path / "bench.md").read_text().splitlines()
    (changed,) = (line for line in after if line.startswith("| missed "))
    assert re.search(r"\| 3\.5x +\| >= 3x +\| yes +\| .* faster \[\d{4}-\d\d-\d\d, .+\] \|", changed)
    assert sum(line not in after for line in before) == 2  # the row and the count
    assert after[-1] == "7 bars, 2 missed or failed." and after[-3].startswith("| new ")
    assert before[-1] == "6 bars, 3 missed or failed."


def test_a_tier_without_bars_proves_nothing(tmp_path):
    with pytest.raises(SystemExit, match="2"):
        runner.main(["--tier", "validate"], Bars(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_registering_twice_or_with_a_wrong_bound_is_refused(bars):
    with pytest.raises(ValueError, match="expected `name` to be unique, got 'met' twice"):
        bars.bar("met", tier="bench", bar="<= 1x")(lambda: Measured(1.0))
    with pytest.raises(ValueError, match="expected `bar` like '<= 1.5x', got 'fast'"):
        bars.bar("new", tier="bench", bar="fast")
    with pytest.raises(ValueError, match=r"expected `tier` to be one of .*, got 'speed'"):
        bars.bar("new", tier="speed", bar="<= 1x")


@pytest.mark.parametrize(
    ("text", "value", "holds"),
    [("<= 2x", 2.0, True), ("< 2x", 2.0, False), (">= 1e-3", 9e-4, False), ("> 0.5 designs/s", 0.6, True)],
)
def test_bounds(text, value, holds):
    assert Bound.parse(text).holds(value) is holds


def test_a_peer_that_breaks_inside_is_an_error_not_a_missing_peer(tmp_path, monkeypatch):
    (tmp_path / "broken_peer.py").write_text("import no_such_dependency")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_dependency"):
        peer("broken_peer")
    with pytest.raises(PeerMissing):
        peer("no_such_package_anywhere")


def test_the_bars_of_this_repository_can_be_loaded():
    """Without any peer installed, with unique names, in both tiers; the like-for-like rows are the ones with a bar."""
    runner.load_bars()
    assert {item.tier for item in BARS.by_name.values()} == {"validate", "bench"}
    bounds = {name: item.bound for name, item in BARS.by_name.items() if name.startswith("logistic")}
    held = {name for name, bound in bounds.items() if bound is not None}
    assert held and all("black box" in name for name in held)


def test_times_are_medians_of_rounds_in_turn():
    calls = []
    times = side_by_side({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeat=3, warmup=1)
    assert calls == ["a", "b"] * 4
    assert all(seconds >= 0 for seconds in times.values())


def test_peak_memory_grows_with_what_is_kept_and_only_with_it():
    start = torch.zeros(1000, dtype=torch.float64, requires_grad=True)

    def unrolled(steps: int) -> None:
        x = start
        for _ in range(steps):
            x = torch.sin(x)
        x.sum().backward()

    def kept_nothing(steps: int) -> None:
        x = start.detach()
        for _ in range(steps):
            x = torch.sin(x)

    assert peak_bytes(lambda: unrolled(50)) - peak_bytes(lambda: unrolled(20)) == 30 * 8000
    assert peak_bytes(lambda: kept_nothing(50)) == peak_bytes(lambda: kept_nothing(20)) == 16000
