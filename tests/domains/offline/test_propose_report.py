"""The report of a batch and its pictures, drawn from batches made by hand: no fit is needed to look at one."""

import math
import re

import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from sciopt.domains.offline.proposal import (
    Calibration,
    CategoryColumn,
    DesignSpace,
    NumberColumn,
    ProposedBatch,
    SequenceColumn,
    read_table,
    render_proposal,
    write_batch,
)
from sciopt.domains.offline.proposal.pictures import (
    draw_coverage,
    draw_letters,
    draw_scores,
    draw_values,
    letter_shares,
)


def made(columns, rows, *, calibration=True, maximize=True, uncertainty=0.5, count=30, coverage=None):
    n = len(rows)
    observed = torch.linspace(0, 1, count, dtype=torch.float64)
    seen = Calibration(
        rows=torch.arange(count),
        observed=observed,
        predicted=observed + 0.1,
        deviation=torch.full_like(observed, 0.2),
        coverage=coverage or {0.5: 0.5, 0.8: 0.8, 0.95: 0.95},
        rmse=0.1,
        rank_correlation=0.9,
        method="leave-one-out",
    )
    space = DesignSpace(tuple(columns))
    return ProposedBatch(
        rows=rows,
        predicted=torch.linspace(2, 1, n, dtype=torch.float64),
        uncertainty=torch.full((n,), uncertainty, dtype=torch.float64),
        novelty=torch.full((n,), 0.25, dtype=torch.float64),
        similarity_within=torch.zeros(n, dtype=torch.float64),
        diversity=0.5,
        calibration=seen if calibration else None,
        notes=[*space.describe(), "two rows were <dropped>"],
        model=["a model"],
        space=space,
        codes=space.encode(rows),
        measured=count,
        pending=2,
        best_row=rows[0],
        best_score=1.0,
        maximize=maximize,
    )


def mixed(n, length=6):
    columns = [
        SequenceColumn(name="seq", length=length, alphabet="ACGT"),
        NumberColumn(name="dose", low=0.01, high=10, log=True),
        CategoryColumn(name="<base>", levels=("KOH", "NaOH")),
    ]
    rows = [
        {"seq": ("ACGTTT" * length)[k : k + length], "dose": 0.01 * 2**k, "<base>": ["KOH", "NaOH"][k % 2]}
        for k in range(n)
    ]
    return columns, rows


@pytest.mark.parametrize(("n", "length"), [(1, 1), (5, 6), (4, 200)])
def test_a_report_has_every_part_and_escapes_what_is_not_its_own(n, length):
    columns, rows = mixed(n, length)
    batch = made(columns, rows)
    scores = [float(k) for k in range(8)] + [math.nan]
    text = render_proposal(
        batch, mixed(9, length)[1], scores, score="y<1", said=["id: left out"], command="sciopt <again>"
    )
    assert text.count("data:image/png;base64") == 4, "calibration, scores, letters, columns"
    for part in (
        "two rows were &lt;dropped&gt;",
        "<li>a model</li>",
        "&lt;base&gt;",
        "y&lt;1",
        "sciopt &lt;again&gt;",
        "id: left out",
    ):
        assert part in text
    assert "<dropped>" not in text and "<base>" not in text and not re.search(r"https?://", text)
    body = text[text.index("<tbody>") :]
    assert body.count("<tr>") == n and "waiting for results" in text
    assert rows[0]["seq"][:40] in body, "long sequences are broken, not cut"


NAMES = ["price in $ or $_bad", r"cost $\frac$", "温度 🧪", "a name " * 60, "two\nlines"]


@pytest.mark.parametrize("name", NAMES)
def test_names_are_drawn_as_they_are_and_make_no_formula(name):
    columns = [
        SequenceColumn(name=name, length=3, alphabet="AC"),
        CategoryColumn(name=name + " ", levels=(r"$\bad", "$a$", "温")),
        NumberColumn(name=name + "  ", low=0, high=9),
    ]
    rows = [dict(zip([c.name for c in columns], row, strict=True)) for row in (("ACA", "$a$", 1.0), ("CCC", "温", 2.0))]
    text = render_proposal(made(columns, rows), rows, [1.0, 2.0], score=name, title=name)
    assert text.count("data:image/png") == 4


def test_scores_close_together_far_from_zero_are_counted_in_their_bars():
    axes = Figure().add_subplot()
    old = 1e9 + torch.linspace(0, 1e-3, 20, dtype=torch.float64)
    draw_scores(axes, old, old[:2] + 1e-3)
    heights = [bar.get_height() for bar in axes.patches if isinstance(bar, Rectangle)]
    assert sum(heights) == pytest.approx(2.0), "each row of the table and of the batch is in a bar"


def test_a_batch_of_which_nothing_is_known_is_still_drawn():
    columns, rows = mixed(3)
    batch = made(columns, rows, calibration=False, uncertainty=math.inf)
    text = render_proposal(batch, rows[:1], [1.0])
    assert "How far to trust" not in text and ">inf<" in text and text.count("data:image/png") == 3


def test_bad_calibration_is_said():
    columns, rows = mixed(3)
    told = render_proposal(made(columns, rows, count=200, coverage={0.5: 0.2, 0.95: 0.6}), rows, [1.0, 2.0, 3.0])
    assert "The uncertainties are too small" in told
    assert "too small" not in render_proposal(made(columns, rows), rows, [1.0, 2.0, 3.0])


def test_the_batch_as_a_table_is_read_again(tmp_path):
    columns, rows = mixed(3)
    columns[1] = NumberColumn(name="rank", low=0, high=9)
    rows = [{"seq": row["seq"], "rank": 0.1 + k, "<base>": row["<base>"]} for k, row in enumerate(rows)]
    got = read_table(write_batch(tmp_path / "b.csv", made(columns, rows), "predicted"))
    names = ["rank (batch)", "seq", "rank", "<base>", "predicted", "predicted (batch)", "uncertainty", "novelty"]
    assert list(got.cells) == names, "a user's names come first"
    assert got.cells["rank"] == ["0.1", "1.1", "2.1"] and set(got.cells["predicted"]) == {""}


def test_shares_of_letters_and_their_picture():
    share = letter_shares(["AC", "AT", "A"], "ACGT", 3)
    assert share[:, 0].tolist() == [1, 0, 0, 0] and share[:, 1].sum() == pytest.approx(2 / 3) and not share[:, 2].any()
    axes = Figure().add_subplot()
    draw_letters(axes, ["AC", "AT"], letters="ACGT", length=2, against=["GC", "GT"])
    assert [text.get_text() for text in axes.texts] == ["A"], "only what has become more frequent is named"
    change = axes.images[0].get_array()
    assert change is not None and change.min() == -1


def test_long_names_keep_their_ends_which_tell_them_apart():
    levels = [f"a level of long name {k}" for k in range(4)]
    axes = Figure().add_subplot()
    draw_values(axes, levels, torch.arange(4.0), levels[:3], torch.ones(3), name="kind", levels=levels)
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert len(set(labels)) == 4 and max(map(len, labels)) == 14 and labels[2].endswith(" 2")


def test_panels_of_numbers_and_many_levels():
    axes = Figure().add_subplot()
    levels = [f"a level of long name {k}" for k in range(40)]
    draw_values(axes, levels, torch.arange(40.0), levels[:3], torch.ones(3), name="kind", levels=levels)
    assert len(axes.get_xticks()) == 10 and all(len(label.get_text()) <= 14 for label in axes.get_xticklabels())
    axes = Figure().add_subplot()
    draw_values(axes, [0.1, 10.0], torch.ones(2), [1.0], torch.ones(1), name="dose", log=True)
    assert axes.get_xscale() == "log" and len(axes.collections) == 2
    axes = Figure().add_subplot()
    draw_coverage(axes, [0.9, 0.5], [0.8, 0.4])
    assert axes.lines[-1].get_xdata() == pytest.approx([0.5, 0.9]), "in order"
