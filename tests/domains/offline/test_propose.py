"""`propose`: better designs than were measured, allowed, new, repeatable; every choice about a table named."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sciopt.domains.offline import GreedyMean, ReverseComplement, SampledExpectedImprovement, nk_landscape
from sciopt.domains.offline.proposal import (
    CategoryColumn,
    NumberColumn,
    ProposalOptions,
    SequenceColumn,
    propose,
)
from sciopt.domains.offline.proposal.families import Gaussian
from sciopt.domains.offline.proposal.search import Evolution, known_rows
from sciopt.solution import Status

QUICK = ProposalOptions(families=(Gaussian(),), evolution=Evolution(population=64, children=128, rounds=8), polish=4)
OPTIMUM = torch.tensor([0.3, 0.6], dtype=torch.float64)


def square(count: int, generator: torch.Generator) -> Tensor:
    return torch.rand(count, 2, generator=generator, dtype=torch.float64)


def hill(x: Tensor) -> Tensor:
    return 5 - 20 * (x - OPTIMUM).square().sum(-1)


def test_a_quadratic_is_solved_from_thirty_points(generator: torch.Generator) -> None:
    x = square(30, generator)
    batch = propose(x, hill(x), n=16)
    made = hill(batch.codes)
    random = hill(square(1000, generator))
    assert float(made.max()) > 4.999 > float(hill(x).max())
    assert float(made.median()) > float(torch.quantile(random, 0.98))
    errors = (batch.predicted - made).abs() / batch.uncertainty
    assert float((errors < 3).double().mean()) > 0.9
    assert batch.calibration is not None and batch.calibration.rank_correlation > 0.9
    torch.testing.assert_close(
        batch.codes, torch.tensor([list(row.values()) for row in batch.rows], dtype=torch.float64)
    )


def test_low_scores_are_sought_as_high_ones_mirrored(generator: torch.Generator) -> None:
    x = square(15, generator)
    high, low = propose(x, hill(x), n=4, options=QUICK), propose(x, -hill(x), n=4, maximize=False, options=QUICK)
    assert high.rows == low.rows
    torch.testing.assert_close(high.predicted, -low.predicted)
    torch.testing.assert_close(high.uncertainty, low.uncertainty)
    assert high.best_row == low.best_row and high.best_score == -low.best_score


def chemistry(row: dict) -> float:
    """The best temperature depends on the solvent, and one catalyst works in one solvent only."""
    best = {"water": 40, "THF": 65, "DMF": 90}[row["solvent"]]
    bonus = 2.0 * (row["catalyst"] == "Pd" and row["solvent"] == "DMF")
    return 5 + bonus - ((row["temperature"] - best) / 20) ** 2 - (torch.tensor(row["dose"]).log10().item() + 1) ** 2


def reactions(count: int, generator: torch.Generator) -> list[dict]:
    draws = torch.rand(count, 4, generator=generator, dtype=torch.float64).tolist()
    return [
        {
            "temperature": round(20 + 80 * a, 1),
            "dose": round(10 ** (-3 + 3 * b), 5),
            "solvent": ("water", "THF", "DMF")[int(3 * c)],
            "catalyst": ("Pd", "Ni")[int(2 * d)],
        }
        for a, b, c, d in draws
    ]


def test_interactions_of_categories_and_numbers_are_found() -> None:
    generator = torch.Generator().manual_seed(3)
    rows = reactions(60, generator)
    scores = [chemistry(row) for row in rows]
    rules = ["temperature <= 85", "catalyst != 'Ni' or solvent != 'DMF'"]
    batch = propose(rows, scores, n=8, constraints=rules)
    made = [chemistry(row) for row in batch.rows]
    possible = 7 - 0.0625  # DMF with Pd at 85 degrees
    assert max(made) > possible - 0.05 and min(made) > max(scores) - 1
    assert all(row["temperature"] <= 85 for row in batch.rows)
    assert {(row["solvent"], row["catalyst"]) for row in batch.rows[:4]} == {("DMF", "Pd")}


@settings(max_examples=4, deadline=None)
@given(limit=st.integers(3, 12), seed=st.integers(0, 100), letter=st.sampled_from("ACGT"))
def test_constraints_hold_and_nothing_measured_comes_back(limit: int, seed: int, letter: str) -> None:
    generator = torch.Generator().manual_seed(seed)
    columns = [
        SequenceColumn(name="seq", length=6, alphabet="ACGT"),
        NumberColumn(name="a", low=0, high=10),
        NumberColumn(name="b", low=0, high=5, integer=True),
        CategoryColumn(name="c", levels=("u", "v")),
    ]
    draws = torch.rand(12, 9, generator=generator, dtype=torch.float64).tolist()
    rows = [
        {
            "seq": "".join("ACGT"[int(4 * u)] for u in d[:6]),
            "a": 10 * d[6],
            "b": int(6 * d[7]),
            "c": "uv"[int(2 * d[8])],
        }
        for d in draws
    ]
    scores = [row["seq"].count("A") + row["a"] + row["b"] for row in rows]
    rules = [f"a + b <= {limit}", f"seq[2] == '{letter}'", "'AA' not in seq", "gc(seq) <= 0.7"]
    batch = propose(rows, scores, n=6, columns=columns, constraints=rules, seed=seed, options=QUICK)
    assert len(batch) == 6 and len({str(row) for row in batch.rows}) == 6
    for row in batch.rows:
        assert row["a"] + row["b"] <= limit + 1e-6 and row["seq"][2] == letter and "AA" not in row["seq"]
        assert sum(x in "GC" for x in row["seq"]) <= 0.7 * 6 and 0 <= row["a"] <= 10 and row["c"] in "uv"
        assert row not in rows


def test_the_same_seed_gives_the_same_batch(generator: torch.Generator) -> None:
    x = square(15, generator)
    one, two, other = (propose(x, hill(x), n=5, seed=seed, options=QUICK) for seed in (1, 1, 2))
    assert one.rows == two.rows and torch.equal(one.predicted, two.predicted)
    assert one.rows != other.rows


def test_rounds_of_proposals_climb() -> None:
    task = nk_landscape(length=6, neighbours=1, alphabet="ACGT", seed=3)
    generator = torch.Generator().manual_seed(0)
    designs = task.space.random(40, generator)
    sequences = task.space.decode(designs)
    scores = task.score(designs).tolist()
    low, high = task.bounds
    found = []
    for round_ in range(3):
        batch = propose(sequences, scores, n=20, seed=round_, options=QUICK)
        new = [row["sequence"] for row in batch.rows]
        assert not set(new) & set(sequences)
        made = task.score(task.space.encode(new)).tolist()
        found.append((sum(made) / 20 - low) / (high - low))
        sequences, scores = sequences + new, scores + made
    assert found[2] > found[1] > found[0] + 0.05
    best, start = ((max(part) - low) / (high - low) for part in (scores, scores[:40]))
    assert best > 0.99 and start < 0.8


@pytest.mark.parametrize(
    "acquisition", [GreedyMean(), SampledExpectedImprovement(draws=128)], ids=["mean", "improvement"]
)
def test_other_ways_to_choose(acquisition, generator: torch.Generator) -> None:
    x = square(20, generator)
    batch = propose(x, hill(x), n=4, acquisition=acquisition, options=QUICK)
    assert float(hill(batch.codes).max()) > float(hill(x).max())


def test_both_strands_count_as_one(generator: torch.Generator) -> None:
    strands = ReverseComplement()
    task = nk_landscape(length=5, neighbours=0, alphabet="ACGT", seed=0)
    designs = task.space.random(60, generator)
    images = strands.image(task.space, designs)
    scores = task.score(designs) + task.score(images)
    sequences = task.space.decode(designs)
    batch = propose(sequences, scores, n=100, symmetry=strands, options=QUICK)
    made = task.space.encode([row["sequence"] for row in batch.rows])
    other = set(task.space.decode(strands.image(task.space, made)))
    mine, seen = set(task.space.decode(made)), set(sequences) | set(task.space.decode(images))
    assert len(mine) == 100 and not (mine | other) & seen
    assert all(
        word == task.space.decode(strands.image(task.space, task.space.encode([word])))[0] for word in mine & other
    )
    with pytest.raises(ValueError, match="one sequence column without gaps"):
        propose([[1.0, 2.0]], [1.0], symmetry=strands)


def test_a_small_batch_does_not_test_one_point_many_times(generator: torch.Generator) -> None:
    x = square(30, generator)
    rows = [{"x": float(a), "steps": round(200 * float(b))} for a, b in x]
    batch = propose(rows, hill(x), n=8, options=QUICK)
    units = batch.space.units(batch.codes)
    apart = (units[:, None] - units).abs().amax(-1).fill_diagonal_(1.0)
    assert float(apart.min()) > 0.9 / 100  # whole numbers are spread as well
    assert batch.rows[0]["steps"] == pytest.approx(120, abs=4)


def test_notes_say_how_far_the_batch_is_from_what_was_checked() -> None:
    designs = torch.arange(9, dtype=torch.float64).unsqueeze(-1)
    column = NumberColumn(name="x0", low=0.0, high=10.0)
    batch = propose(designs, list(range(9)), n=1, columns=[column], options=QUICK)
    (said,) = (line for line in batch.notes if line.startswith("Uncertainties are checked"))
    assert "nearest neighbour is 0.100 away" in said  # neighbours are 1 apart on a range of 10
    assert f"the batch is {float(batch.novelty[0]):.3f} away" in said


def notes(designs, scores, **changes) -> str:
    return " ".join(propose(designs, scores, **({"n": 3, "options": QUICK} | changes)).notes)


def test_contradictory_repeats_are_averaged_and_their_spread_is_the_least_noise() -> None:
    x = torch.linspace(0, 1, 8, dtype=torch.float64).repeat(2).unsqueeze(-1)
    scores = 10 * x[:, 0] + torch.tensor([1.0, -1.0], dtype=torch.float64).repeat_interleave(8)
    batch = propose(x, scores, n=3, options=QUICK)
    assert batch.measured == 8 and batch.calibration is not None
    torch.testing.assert_close(batch.calibration.observed.sort().values, 10 * x[:8, 0])
    said = " ".join(batch.notes)
    assert "16 rows with scores hold 8 different designs" in said
    assert "8 designs have scores that differ between repeats: averaged; the spread of 1.41" in said
    assert float(batch.uncertainty.min()) > 1.0  # one more measurement is as uncertain as the others were


def test_rows_without_a_score_are_pending_and_infinite_ones_dropped() -> None:
    words = ["AAA", "AAC", "AAG", "AAT", "ACA", "ACC", "CCC", "TTT"]
    scores = [1, 2, 3, float("nan"), "pending", "n/a", 5, float("inf")]
    batch = propose(words, scores, n=56)
    assert (batch.measured, batch.pending, len(batch)) == (4, 4, 56)
    assert not {row["sequence"] for row in batch.rows} & set(words)
    said = " ".join(batch.notes)
    assert "3 designs without a score are taken as pending" in said and "1 row with an infinite score dropped" in said


@pytest.mark.parametrize(("rows", "scores"), [(1, [2.0]), (5, [2.0] * 5)])
def test_where_nothing_can_be_learned_the_batch_is_spread_out(rows: int, scores: list[float]) -> None:
    columns = [NumberColumn(name="a", low=0, high=1), NumberColumn(name="b", low=0, high=1)]
    x = torch.rand(rows, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    batch = propose(x, scores, n=8, columns=columns, constraints=["a + b <= 1.5"])
    assert batch.calibration is None and bool((batch.uncertainty == torch.inf).all())
    torch.testing.assert_close(batch.predicted, torch.full((8,), 2.0, dtype=torch.float64))
    assert float(batch.novelty.min()) > 0.1 and float(batch.similarity_within.max()) < 0.9
    assert float(batch.codes.sum(-1).max()) <= 1.5
    assert "nothing can be learned" in batch.notes[-1]


def test_two_rows_are_enough_for_a_guess() -> None:
    batch = propose([[0.0], [1.0]], [0.0, 1.0], n=2, columns=[NumberColumn(name="x", low=0, high=2)])
    assert len(batch) == 2 and bool(torch.isfinite(batch.uncertainty).all())


def test_a_pool_is_kept_to_and_may_be_smaller_than_the_batch() -> None:
    words = ["AAA", "AAC", "ACC", "CCC", "AGT"]
    pool = ["TTT", "GGG", "AAA", "TTT", "CCA"]
    batch = propose(words, [1.0, 2.0, 3.0, 4.0, 2.5], n=10, pool=pool, options=QUICK)
    assert {row["sequence"] for row in batch.rows} == {"TTT", "GGG", "CCA"}
    assert "Only 3 allowed designs are left" in " ".join(batch.notes)
    alone = propose(words, [1.0, 2.0, 3.0, 4.0, 2.5], n=1, pool=["TTT"], options=QUICK)
    assert len(alone) == 1 and alone.diversity == 0.0 and alone.similarity_within.tolist() == [0.0]
    with pytest.raises(ValueError, match="got none in the pool. Loosen"):
        propose(words, [1.0, 2.0, 3.0, 4.0, 2.5], pool=["AAA"], options=QUICK)
    with pytest.raises(ValueError, match="`pool` with the columns sequence, got other"):
        propose(words, [1.0, 2.0, 3.0, 4.0, 2.5], pool=[{"other": 1}])


def test_a_pool_is_kept_to_inside_the_bounds() -> None:
    columns = [NumberColumn(name="x", low=0, high=10)]
    batch = propose([[1.0], [2.0], [3.0]], [1.0, 2.0, 2.5], n=5, columns=columns, pool=[[50.0], [2.5]], options=QUICK)
    assert batch.rows == [{"x": 2.5}]
    assert "1 design of the pool has `x` outside 0 to 10: not proposed." in batch.notes


def test_of_too_many_rows_the_best_and_others_are_learned_from() -> None:
    x = torch.linspace(0, 1, 400, dtype=torch.float64).unsqueeze(-1)
    options = ProposalOptions(most_rows=40, families=(Gaussian(),))
    batch = propose(x, -((x[:, 0] - 0.6) ** 2), n=3, columns=[NumberColumn(name="x", low=0, high=1)], options=options)
    assert "Of 400 different designs 40 are learned from: the best 4, and others at random" in " ".join(batch.notes)
    assert batch.measured == 400 and batch.calibration is not None and len(batch.calibration.rows) <= 40
    assert not torch.isin(batch.codes, x).any() and float((batch.codes - 0.6).abs().max()) < 0.2
    with pytest.raises(ValueError, match="ProposalOptions: expected `most_rows` >= 2, got 1"):
        ProposalOptions(most_rows=1)


def test_a_fit_that_failed_is_said(monkeypatch) -> None:
    from sciopt.domains.offline.proposal import next_batch

    def failing(*args, **changes):
        model, *rest = choose(*args, **changes)
        return replace(model, fit=replace(model.fit, status=Status.BREAKDOWN, residual=3.0)), *rest

    choose = next_batch.choose_model
    monkeypatch.setattr(next_batch, "choose_model", failing)
    assert "The fit failed (BREAKDOWN, relative residual 3.0e+00): do not trust" in notes(
        ["AAA", "AAC", "CCA"], [1, 2, 3]
    )


def test_large_batches_are_compared_in_parts() -> None:
    words = ["".join(letters) for letters in product("ACGT", repeat=5)]
    batch = propose(words[::2], [word.count("A") for word in words[::2]], n=500, options=QUICK)
    between = batch.space.distance(batch.codes, batch.codes)
    assert batch.diversity == pytest.approx(float(between.sum()) / 500 / 499)
    between.fill_diagonal_(torch.inf)
    torch.testing.assert_close(batch.similarity_within, 1 - between.amin(-1))


def test_designs_are_told_apart_by_one_number_each() -> None:
    codes = torch.cartesian_prod(*[torch.arange(4.0, dtype=torch.float64)] * 8)
    assert known_rows(codes, codes[::3]).tolist() == [k % 3 == 0 for k in range(len(codes))]
    assert not known_rows(codes + 0.5, codes).any() and known_rows(-0.0 * codes[:1], codes[:1]).all()


def test_ragged_sequences_are_padded_and_proposed_in_measured_lengths() -> None:
    words = ["ACGTA", "ACG", "TTTA", "GGGAA", "CATT", "TAC"]
    batch = propose(words, [1.0, 2.0, 0.5, 3.0, 2.5, 0.1], n=12, options=QUICK)
    assert {len(row["sequence"]) for row in batch.rows} <= {3, 4, 5}
    assert "short ones are padded at the right end" in " ".join(batch.notes)


def test_measurements_outside_the_bounds_are_learned_from() -> None:
    x = torch.linspace(0, 2, 9, dtype=torch.float64).unsqueeze(-1)
    batch = propose(x, x[:, 0], n=2, columns=[NumberColumn(name="x", low=0, high=1)], options=QUICK)
    assert float(batch.codes.max()) <= 1 and "4 rows have `x` outside 0 to 1" in " ".join(batch.notes)


def test_broken_constraints_are_counted() -> None:
    said = notes(torch.linspace(0, 1, 9, dtype=torch.float64).unsqueeze(-1), list(range(9)), constraints="x0 <= 0.5")
    assert "4 of 9 measured designs break the constraint x0 <= 0.5." in said


@pytest.mark.parametrize(
    ("designs", "scores", "changes", "error", "message"),
    [
        (["AAA", "AAC"], [1.0, 2.0], {"n": 0}, ValueError, "`n` as a whole number >= 1"),
        (["AAA", "AAC"], [1.0], {}, ValueError, r"`scores` of shape \(2,\), one per design, got \(1,\)"),
        (["AAA", "AAC"], [1.0, "high"], {}, ValueError, "`scores` as numbers, got 'high' in row 1"),
        (["AAA", "AAC"], [None, None], {}, ValueError, "at least one row with a finite score, got 2 rows"),
        ([], [], {}, ValueError, "at least one row with a finite score, got 0 rows"),
        (
            ["AAAA", "AAXC"], [1.0, 2.0], {"columns": [SequenceColumn(name="s", length=4, alphabet="ACGT")]},
            ValueError, "letters of ACGT, got 'X' at position 2 of 'AAXC' in row 1",
        ),
        (["AAA", "AAC"], [1.0, 2.0], {"constraints": ["ph < 3"]}, ValueError, "one of the columns sequence, got 'ph'"),
        (["AAA", "AAC"], [1.0, 2.0], {"constraints": [3]}, TypeError, "got int"),
        (["AAA", "AAC"], [1.0, 2.0], {"constraints": ["sequence == 'AAA'"]}, ValueError, "got none"),
        (
            torch.rand(4, 2), [1.0, 2.0, 3.0, 4.0], {"constraints": ["x0 > 5"], "options": QUICK}, ValueError,
            "got none in the search",
        ),
        (torch.rand(4, 2), [1.0, 2.0], {}, ValueError, "one per design"),
        (["AAA", "AAC"], {"AAA": 1.0, "AAC": 2.0}, {}, TypeError, "`scores` as a list or tensor .* got dict"),
        (["AAA", "AAC"], "12", {}, TypeError, "`scores` as a list or tensor .* got str"),
        (["AAA", "AAC"], 5.0, {}, TypeError, "`scores` as a list or tensor .* got float"),
        (["AAA", "AAC"], torch.tensor([1j, 2j]), {}, TypeError, "got complex numbers"),
        (["AAA", "AAC"], [1.0, 1e200], {}, ValueError, r"`scores` of at most 1e\+100 in size, got 1e\+200 in row 1"),
        (["AAA", "AAC"], [1e-200, 3e-200], {}, ValueError, "`scores` that differ by 1e-100 at least"),
        (["AAA", "AAC"], [1.0, 2.0], {"n": True}, ValueError, "`n` as a whole number >= 1, got True"),
        (["AAA", "AAC"], [1.0, 2.0], {"n": 10**9}, ValueError, "`n` of at most 100,000, got 1,000,000,000"),
        (["AAA", "AAC"], [1.0, 2.0], {"n": 2.0}, ValueError, "`n` as a whole number >= 1, got 2.0"),
        (["AAA", "AAC"], [1.0, 2.0], {"seed": 1.5}, ValueError, "`seed` as a whole number"),
        (["AAA", "AAC"], [1.0, 2.0], {"seed": 1 << 70}, ValueError, "`seed` as a whole number"),
        (["AAA", "AAC"], [1.0, 2.0], {"acquisition": "ei"}, TypeError, "an `acquisition` such as"),
        (["AAA", "AAC"], [1.0, 2.0], {"symmetry": ReverseComplement}, TypeError, "a `symmetry` such as"),
        (["AAA", "AAC"], [1.0, 2.0], {"columns": [SequenceColumn]}, TypeError, "`columns` as a list of columns, got <class"),
        (["AAA", "AAC"], [1.0, 2.0], {"constraints": [lambda rows: None]}, ValueError, "2 truth values, .* got NoneType"),
        (["AAA", "AAC"], [1.0, 2.0], {"constraints": [lambda rows: ["yes"] * len(rows)]}, ValueError, "got list"),
        ({"AAA", "AAC"}, [1.0, 2.0], {}, TypeError, "got set"),
        ([{1: 1.0, "1": 2.0}, {1: 2.0, "1": 3.0}], [1.0, 2.0], {}, ValueError, "different names of columns"),
        (
            [[1.0], [2.0]], [1.0, 2.0], {"columns": [NumberColumn(name="x", low=0, high=9)], "pool": [[10.0]]}, ValueError,
            "none in the pool",
        ),
        (torch.tensor([[1.0], [float("nan")]]), [1.0, 2.0], {}, ValueError, "got none in row 1"),
    ],
)  # fmt: skip
def test_bad_requests_are_refused(designs, scores, changes: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        propose(designs, scores, **changes)
