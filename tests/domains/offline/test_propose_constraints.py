"""Constraints as text against Python's own evaluation, and the repair of designs that break them."""

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
    RowTest,
    Rule,
    SequenceColumn,
    as_constraint,
)
from sciopt.domains.offline.proposal.constraints import repaired

SPACE = DesignSpace(
    (
        NumberColumn(name="a", low=0.5, high=9),
        NumberColumn(name="b", low=1, high=5, integer=True),
        NumberColumn(name="flow rate", low=0.01, high=10, log=True),
        CategoryColumn(name="solvent", levels=("water", "THF", "DMF")),
        CategoryColumn(name="charge", levels=(-1, 0, 1)),
        SequenceColumn(name="seq", length=6, alphabet="ACGT"),
        SequenceColumn(name="tag", length=4, alphabet="GC", gap="-", shortest=1),
    )
)
TEXTS = [
    "a + 2 * b <= 9",
    "a - b/2 > 1 and b != 3",
    "1 < a <= 4 or b == 5",
    "not (a < b)",
    "abs(a - b) >= 1",
    "min(a, b, 3) == 3",
    "max(a, b) - sqrt(a) < log(b) + exp(-1)",
    "b % 2 == 1",
    "a ** 2 < 20",
    "`flow rate` * 10 < a",
    "solvent != 'water'",
    "'THF' == solvent",
    "solvent in ('THF', 'DMF')",
    "solvent not in ['THF']",
    "charge == -1",
    "charge in (0, 1)",
    "'CG' in seq",
    "'AAA' not in seq and a > 2",
    "seq[0] == 'A'",
    "seq[-1] != 'T'",
    "seq[1:3] == 'CG'",
    "seq[3] in ('A', 'C')",
    "seq[0] == seq[5]",
    "gc(seq) <= 0.4",
    "gc(tag) >= 1",
    "count(seq, 'A') >= 2",
    "count(seq, 'AA') < count(seq, 'C') + 1",
    "len(tag) > 2",
    "tag[-1] == 'C'",
    "tag[-1] != 'G' and tag[0] == 'G'",
    "tag[0:1] == 'G'",
    "tag == 'GC'",
    "-a < -2",
    "+b >= 3",
]


def overlapping(text: str, part: str) -> int:
    """How often a part stands in a text, overlaps counted."""
    return sum(text.startswith(part, k) for k in range(len(text)))


FUNCTIONS = {
    "gc": lambda text: sum(letter in "GC" for letter in text) / len(text),
    "count": overlapping,
    "sqrt": math.sqrt,
    "log": math.log,
    "exp": math.exp,
}


@settings(max_examples=60, deadline=None)
@given(text=st.sampled_from(TEXTS), seed=st.integers(0, 10_000))
def test_texts_mean_what_python_says(text: str, seed: int) -> None:
    codes = SPACE.random(40, torch.Generator().manual_seed(seed))
    plain = text.replace("`flow rate`", "flow_rate")
    expected = []
    for row in SPACE.decode(codes):
        names = {name.replace(" ", "_"): value for name, value in row.items()}
        expected.append(bool(eval(plain, dict(FUNCTIONS), names)))  # the reference is Python itself
    rule = Rule(text)
    rule.check(SPACE)
    assert rule.holds(SPACE, codes).tolist() == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a + <= 3", "as an expression"),
        ("temperature < 3", "one of the columns a, b, flow rate, solvent, charge, seq, tag, got 'temperature'"),
        ("a + b", "a condition, true or false"),
        ("solvent < 3", "numbers on both sides"),
        ("solvent == 'acid'", "a level of `solvent`: 'water', 'THF', 'DMF', got 'acid'"),
        ("a + solvent < 3", "a number, got 'solvent'"),
        ("a == 'three'", "two values of one kind"),
        ("seq[9] == 'A'", "positions of `seq` from 0 to 5, got '9'"),
        ("seq[a] == 'A'", "whole numbers as positions"),
        ("seq[0] == 'X'", "letters of ACGT for `seq`, got 'X'"),
        ("'AX' not in seq", "letters of ACGT for `seq`"),
        ("gc(a) < 1", "a sequence column, got 'a'"),
        ("seq == 'AAAAAAAA'", "a text of at most 6 letters"),
        ("a in seq", "`in` with a sequence column or a list"),
        ("a is b", "one of < <= > >= == != in|numbers on both sides|Is"),
        ("__import__('os').system('true') == 0", "columns, numbers, texts"),
        ("open('x') == 1", "got 'open' of 1 values"),
        ("a.real < 1", "columns, numbers, texts"),
        ("(lambda: 1)() == 1", "columns, numbers, texts"),
        ("[x for x in (1, 2)] == 1", "columns, numbers, texts"),
        ("not a", "a condition, true or false, got 'a'"),
        ("count(seq, '') > 1", "count of a sequence and a text"),
        ("a <= 1" + 400 * "0", "numbers of at most 1e.300, got a larger one"),
        ("a <= 1e999", "numbers of at most 1e.300"),
        ("a * " * 600 + "a <= 1", "at most 2000 characters, got 2406"),
        ("not " * 480 + "a <= 1", "fewer nested parts|as an expression"),
        ("(" * 300 + "a" + ")" * 300 + " <= 1", "as an expression"),
        ("solvent in ()", "`in` with a sequence column or a list"),
        ("seq[::2] == 'AAA'", "positions without a step, got '::2'"),
        ("seq[1.5] == 'A'", "whole numbers as positions"),
        ("tag[:-1] == 'G'", "slices counted from the start"),
    ],
)
def test_texts_that_mean_nothing_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Rule(text).check(SPACE)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("1 / (a - b) <= 3", [False, False, True]),
        ("a / 0 <= 1", [False] * 3),
        ("sqrt(a - 2) <= 9", [False, True, True]),
    ],
)
def test_what_is_no_number_breaks_a_constraint(text: str, kept: list[bool]) -> None:
    space = DesignSpace((NumberColumn(name="a", low=0, high=9), NumberColumn(name="b", low=0, high=9)))
    assert Rule(text).holds(space, torch.tensor([[1.0, 1.0], [2.0, 2.0], [3.0, 2.0]])).tolist() == kept


def test_functions_of_rows_are_constraints() -> None:
    codes = SPACE.random(20, torch.Generator().manual_seed(0))
    rule = as_constraint(lambda rows: [row["b"] > 3 for row in rows])
    assert isinstance(rule, RowTest)
    torch.testing.assert_close(rule.holds(SPACE, codes), Rule("b > 3").holds(SPACE, codes))
    with pytest.raises(ValueError, match="to return 2 truth values, one per row"):
        as_constraint(lambda rows: True).check(SPACE)
    with pytest.raises(TypeError, match="as texts, functions of rows or constraints, got int"):
        as_constraint(3)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), total=st.floats(0.7, 2.0), part=st.floats(0.1, 0.6))
def test_mixtures_are_repaired_to_sums_and_shares(seed: int, total: float, part: float) -> None:
    total, part = round(total, 3), round(part, 2)
    space = DesignSpace(tuple(NumberColumn(name=name, low=0, high=1) for name in "uvw"))
    rules = [Rule(f"u + v + w == {total}"), Rule(f"u <= {part}")]
    codes = space.random(30, torch.Generator().manual_seed(seed))
    made = repaired(space, rules, codes)
    for rule in rules:
        assert bool(rule.holds(space, made).all())
    torch.testing.assert_close(made.sum(-1), torch.full((30,), total, dtype=torch.float64), rtol=0, atol=2e-6)
    assert float(made.min()) >= 0 and float(made.max()) <= 1
    good = torch.stack([rule.holds(space, codes) for rule in rules]).all(0)
    torch.testing.assert_close(made[good], codes[good], rtol=0, atol=1e-9)  # what holds is left alone


def test_repair_reaches_the_nearest_point_of_a_half_space() -> None:
    space = DesignSpace((NumberColumn(name="u", low=0, high=1), NumberColumn(name="v", low=0, high=1)))
    made = repaired(
        space, [Rule("u + v <= 0.5")], torch.tensor([[0.6, 0.4], [0.1, 0.2], [1.0, 0.2]], dtype=torch.float64)
    )
    torch.testing.assert_close(
        made, torch.tensor([[0.35, 0.15], [0.1, 0.2], [0.5, 0.0]], dtype=torch.float64), rtol=0, atol=1e-4
    )


def test_repair_leaves_letters_and_whole_numbers() -> None:
    codes = SPACE.random(50, torch.Generator().manual_seed(1))
    rules = [Rule("a + b <= 6"), Rule("solvent != 'water'")]
    made = repaired(SPACE, rules, codes)
    changed = (made != codes).any(0)
    assert changed.nonzero().flatten().tolist() == [0]
    fixable = SPACE.decode(codes)
    holds = rules[0].holds(SPACE, made)
    assert holds.tolist() == [row["b"] <= 5.5 for row in fixable]
