"""Columns, their detection, and the space of mixed designs: what is encoded comes back, moves stay inside."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sciopt.domains.offline.proposal import (
    CategoryColumn,
    DesignSpace,
    NumberColumn,
    SequenceColumn,
    detect_columns,
)
from sciopt.domains.offline.proposal.intake import read_designs, read_scores

COLUMNS = {
    "dna": SequenceColumn(name="dna", length=5, alphabet="ACGT"),
    "ragged": SequenceColumn(name="ragged", length=4, alphabet="ab", gap="-", shortest=2),
    "solvent": CategoryColumn(name="solvent", levels=("water", "THF", 3)),
    "ph": NumberColumn(name="ph", low=-2, high=14),
    "dose": NumberColumn(name="dose", low=1e-3, high=50, log=True),
    "shots": NumberColumn(name="shots", low=1, high=6, integer=True),
}
spaces = st.lists(st.sampled_from(list(COLUMNS.values())), min_size=1, unique=True).map(lambda c: DesignSpace(tuple(c)))


def inside(space: DesignSpace, codes: torch.Tensor) -> None:
    """Decoding and encoding again is the identity, and every value is one that a user would accept."""
    rows = space.decode(codes)
    torch.testing.assert_close(space.encode(rows), codes, rtol=0, atol=0)
    for row in rows:
        if "ragged" in row:
            assert 2 <= len(row["ragged"]) <= 4 and set(row["ragged"]) <= set("ab")
        if "shots" in row:
            assert isinstance(row["shots"], int) and 1 <= row["shots"] <= 6
        if "ph" in row:
            assert -2 <= row["ph"] <= 14
        if "dose" in row:
            assert 1e-3 <= row["dose"] <= 50


@settings(max_examples=30, deadline=None)
@given(space=spaces, seed=st.integers(0, 1000))
def test_what_is_drawn_crossed_and_mutated_stays_in_the_space(space: DesignSpace, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    drawn = space.random(20, generator)
    inside(space, drawn)
    crossed = space.crossed(drawn, drawn.flip(0), generator)
    inside(space, crossed)
    mutated = space.mutated(drawn, generator, step=0.3)
    inside(space, mutated)
    torch.testing.assert_close(space.settled(mutated), mutated, rtol=0, atol=0)
    assert torch.equal(space.settled(drawn), drawn)
    apart = space.distance(drawn, mutated)
    assert float(apart.min()) >= 0 and float(apart.max()) <= 1
    torch.testing.assert_close(space.distance(drawn, drawn).diagonal(), torch.zeros(20, dtype=torch.float64))
    torch.testing.assert_close(apart, space.distance(mutated, drawn).mT)


@settings(max_examples=15, deadline=None)
@given(names=st.lists(st.sampled_from(["ragged", "solvent", "shots"]), min_size=1, unique=True))
def test_everything_lists_each_design_once(names: list[str]) -> None:
    space = DesignSpace(tuple(COLUMNS[name] for name in names))
    listed = space.everything()
    assert len(listed) == space.size == len(torch.unique(listed, dim=0))
    inside(space, listed)
    assert space.is_enumerable


def test_sizes_and_limits() -> None:
    assert DesignSpace((COLUMNS["dna"], COLUMNS["solvent"])).size == 4**5 * 3
    assert DesignSpace((COLUMNS["ragged"],)).size == 4 + 8 + 16
    endless = DesignSpace((COLUMNS["ph"],))
    assert endless.size is None and not endless.is_enumerable
    large = DesignSpace((SequenceColumn(name="s", length=20, alphabet="ACGT"),))
    assert large.size == 4**20 and not large.is_enumerable
    with pytest.raises(ValueError, match="at most 300000 to enumerate"):
        large.everything()


def test_distances_and_features_give_each_column_the_same_weight() -> None:
    space = DesignSpace(tuple(COLUMNS.values()))
    rows = [
        {"dna": "AAAAA", "ragged": "aaaa", "solvent": "water", "ph": -2, "dose": 1e-3, "shots": 1},
        {"dna": "CCCCC", "ragged": "bbbb", "solvent": 3, "ph": 14, "dose": 50, "shots": 6},
        {"dna": "AAAAC", "ragged": "aa", "solvent": "water", "ph": 6, "dose": 1e-3, "shots": 1},
    ]
    codes = space.encode(rows)
    apart = space.distance(codes, codes)
    torch.testing.assert_close(apart[0, 1], torch.tensor(1.0, dtype=torch.float64))
    torch.testing.assert_close(apart[0, 2], torch.tensor((0.2 + 0.5 + 0.5) / 6, dtype=torch.float64))
    squares = (space.features(codes[:1]) - space.features(codes[1:2])).square().squeeze(0)
    columns = torch.zeros(6, dtype=torch.float64).index_add(0, space.feature_owner, squares)
    torch.testing.assert_close(columns, torch.ones(6, dtype=torch.float64))


def test_mutations_change_every_design_and_numbers_take_gaussian_steps() -> None:
    generator = torch.Generator().manual_seed(0)
    space = DesignSpace((COLUMNS["dna"], COLUMNS["ph"]))
    codes = space.encode([{"dna": "ACGTA", "ph": 6.0}]).expand(4000, -1)
    moved = space.mutated(codes, generator, step=0.05)
    changed = moved != codes
    assert bool(changed.any(-1).all())
    assert 1.0 < float(changed.double().sum(-1).mean()) < 1.6  # one on average, and at least one
    steps = (moved[:, 5] - 6.0)[changed[:, 5]] / 16
    assert abs(float(steps.mean())) < 0.01 and abs(float(steps.std()) - 0.05) < 0.005


def test_numbers_are_rounded_as_people_write_them() -> None:
    plain, log = NumberColumn(name="x", low=0, high=1), NumberColumn(name="x", low=1e-6, high=1e6, log=True)
    assert plain.rounded(torch.tensor([0.3000000004, 1.2, 0.123449], dtype=torch.float64)).tolist() == [
        0.3,
        1.0,
        0.1234,
    ]
    assert log.rounded(torch.tensor([1.23456e-5, 123456.0], dtype=torch.float64)).tolist() == [1.235e-5, 123500.0]
    assert NumberColumn(name="x", low=5, high=5).rounded(torch.tensor([5.0])).tolist() == [5.0]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["ACGT", "ACGA", "TTTT"], "sequences of 4 letters of ACGT (3 different, all letters are of DNA)"),
        (["ACGU", "ACGA"], "sequences of 4 letters of ACGU"),
        (["acgt", "acga"], "sequences of 4 letters of acgt"),
        (["VDGV", "ADGV", "WWLA"], "sequences of 4 letters of ACDEFGHIKLMNPQRSTVWY"),
        (["ACG-T", "A--GT", "TTTTT"], "sequences of 5 letters of ACGT- ("),
        (["ACGTA", "ACG", "TTTT"], "sequences of 3 to 5 letters of ACGT, padded at the right end"),
        (["THF", "DMF", "THF", "water"], "one of 'DMF', 'THF', 'water' (3 different values in 4 rows)"),
        (["THF", "DMF", "DMA"], "one of 'DMA', 'DMF', 'THF'"),
        (["NaCl", "LiCl", "NaCN"], "one of 'LiCl', 'NaCN', 'NaCl'"),
        (
            ["True", "TRUE", "no"],
            "one of 'TRUE', 'True', 'no' (3 different values in 3 rows, some differ in capitals alone)",
        ),
        (["A" * 500, "B" * 100], f"one of '{'A' * 15}...{'A' * 15}' (500 letters), '{'B' * 15}...{'B' * 15}' (100 l"),
        ([True, False, True], "one of False, True"),
        ([1, 2, 5], "whole numbers from 1 to 5 (the measured range)"),
        (["1", "2.5", "-3e1"], "numbers from -30 to 2.5"),
        ([0.001, 0.01, 0.1, 1.5], "numbers from 0.001 to 1.5, on a logarithmic scale"),
        ([0.001, 0.2, 0.5, 0.7, 0.99], "numbers from 0.001 to 0.99 (the measured range)"),
    ],
)
def test_columns_are_detected_with_their_reason(values: list, expected: str) -> None:
    columns, reasons = detect_columns([{"c": value} for value in values])
    assert reasons[0].startswith(f"c: {expected}"), reasons
    space = DesignSpace(columns)
    shown = space.decode(space.encode([{"c": value} for value in values]))
    as_given = [float(v) if isinstance(columns[0], NumberColumn) else v for v in values]
    assert [row["c"] for row in shown] == as_given


def test_declared_columns_replace_detected_ones() -> None:
    wide = NumberColumn(name="b", low=0, high=100)
    columns, reasons = detect_columns([{"a": 1, "b": 2}, {"a": 3, "b": 5}], given=[wide])
    assert columns[1] is wide and reasons[1].endswith("(declared)")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "at least one row"),
        ([{"a": 1}, {"a": None}], "a value of `a` in each row, got none in row 1"),
        ([{"id": f"sample {k}"} for k in range(12)], "Leave it out if it names samples"),
        (
            [{"s": "ACGTAC"}, {"s": "ACGTAA"}, {"s": "acgtaa"}],
            "in capitals or in small letters .DNA., got both, e.g. 'acgtaa' in row 2",
        ),
        (
            [{"s": "ACGTACGt"}, {"s": "ACGTACGA"}],
            "in capitals or in small letters .DNA., got both, e.g. 'ACGTACGt' in row 0",
        ),
        (
            [{"s": "ACGTAC"}, {"s": "ACGUAC"}],
            "as DNA or as RNA, got T in some rows and U in others, e.g. 'ACGUAC' in row 1",
        ),
        ([{"s": [1, 2]}, {"s": [1, 3]}], "`s` as plain texts, numbers or truth values, got list in row 0"),
        ([{"x": 1.0}, {"x": math.inf}], "`x` as finite numbers or text, got inf in row 1"),
        ([{"x": 1.0}, {"x": 1j}], "`x` as finite numbers or text, got 1j in row 1"),
        ([{"x": 1.0}, {"x": 2.0}, {"x": "hot"}], "`x` as numbers, as in most of 3 rows, got 'hot' in row 2"),
        ([{"x": 1}, {"x": 2}, {"x": 10**400}], "`x` as numbers, as in most of 3 rows, got 1000"),
        ([{"s": b"ACGT"}, {"s": b"ACGA"}], "`s` as plain texts, numbers or truth values, got bytes in row 0"),
    ],
)
def test_tables_that_tell_nothing_are_refused(rows: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        detect_columns(rows)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        (COLUMNS["dna"], "ACGTX", "letters of ACGT, got 'X' at position 4 of 'ACGTX' in row 1"),
        (COLUMNS["dna"], "ACG", "5 letters of ACGT, got 'ACG' in row 1"),
        (COLUMNS["ragged"], "a", "2 to 4 letters"),
        (COLUMNS["ragged"], "aa-", "2 to 4 letters"),
        (COLUMNS["solvent"], "acid", "one of 'water', 'THF', 3, got 'acid' in row 1"),
        (COLUMNS["ph"], "acid", "`ph` as a number, got 'acid' in row 1"),
        (COLUMNS["dose"], 0.0, "`dose` as a number > 0"),
        (COLUMNS["shots"], 1.5, "`shots` as a whole number"),
    ],
)
def test_values_that_do_not_belong_name_row_and_value(column, value, message: str) -> None:
    space = DesignSpace((column,))
    good = space.decode(space.random(1, torch.Generator().manual_seed(0)))[0]
    with pytest.raises(ValueError, match=message):
        space.encode([good, {column.name: value}])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SequenceColumn(name="s", length=3, alphabet="AA"), "different letters"),
        (lambda: SequenceColumn(name="s", length=3, alphabet="AC", gap="A"), "outside the alphabet"),
        (lambda: SequenceColumn(name="s", length=3, alphabet="AC", shortest=2), "with a gap"),
        (lambda: CategoryColumn(name="c", levels=("a", "a")), "different values"),
        (lambda: NumberColumn(name="x", low=2, high=1), "finite and in order"),
        (lambda: NumberColumn(name="x", low=0, high=1, log=True), "> 0 with log=True"),
        (lambda: NumberColumn(name="x", low=-1e308, high=1e308), "at most 1e.300 apart"),
        (lambda: NumberColumn(name="x", low=1e-320, high=1, log=True), ">= 1e-300 with log=True"),
        (lambda: NumberColumn(name="x", low=0.5, high=3, integer=True), "whole with integer=True"),
        (lambda: DesignSpace(()), "at least one"),
        (lambda: DesignSpace((COLUMNS["ph"], COLUMNS["ph"])), "different names"),
    ],
)
def test_columns_that_make_no_sense_are_refused(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


class Frame:
    """What a data frame looks like from outside."""

    def to_dict(self, orient: str) -> dict[str, list]:
        assert orient == "list"
        return {"a": [1, 2], "b": ["u", "v"]}


def test_designs_come_in_many_forms() -> None:
    expected = [{"a": 1, "b": "u"}, {"a": 2, "b": "v"}]
    assert read_designs(expected) == read_designs({"a": [1, 2], "b": ["u", "v"]}) == read_designs(Frame()) == expected
    numbers = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert (
        read_designs(numbers)
        == read_designs(numbers.numpy())
        == read_designs(numbers.tolist())
        == [{"x0": 1, "x1": 2}, {"x0": 3, "x1": 4}]
    )
    named = [NumberColumn(name="u", low=0, high=9), NumberColumn(name="v", low=0, high=9)]
    assert read_designs(numbers, named)[0] == {"u": 1, "v": 2}
    assert read_designs(["AC", "GT"]) == [{"sequence": "AC"}, {"sequence": "GT"}]
    assert read_scores(["1", None, "", 2.5], 4).isnan().tolist() == [False, True, True, False]


@pytest.mark.parametrize(
    ("designs", "error", "message"),
    [
        ({"a": [1, 2], "b": [1]}, ValueError, "columns of one length"),
        ([{"a": 1}, {"b": 1}], ValueError, r"a difference in \['a', 'b'\] in row 1"),
        ([["a"], {"b": 1}], TypeError, "rows of one kind"),
        ([[1, 2], [3]], ValueError, "2 values in each row, got 1 in row 1"),
        ("ACGT", TypeError, "a list of strings or dicts"),
        (3, TypeError, "a list of strings or dicts"),
    ],
)
def test_designs_in_no_form_are_refused(designs, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        read_designs(designs)
