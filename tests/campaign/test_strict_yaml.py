import math

import pytest

from sciopt.campaign import SpecError
from sciopt.campaign.strict_yaml import load_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("1E5", 1e5),
        ("-.5", -0.5),
        ("1.", 1.0),
        ("+2", 2),
        ("010", 10),
        ("0o17", 15),
        ("0x1F", 31),
        ("no", "no"),
        ("on", "on"),
        ("yes", "yes"),
        ("true", True),
        ("False", False),
        ("~", None),
        ("", None),
        ("12:30", "12:30"),
        ("2020-01-01", "2020-01-01"),
        ("1_000", "1_000"),
        (".inf", math.inf),
        ("-.inf", -math.inf),
        ("'1e-3'", "1e-3"),
        ('"true"', "true"),
        ("e5", "e5"),
        ("1e", "1e"),
    ],
)
def test_scalars_follow_the_core_schema(text, value):
    got = load_yaml(f"a: {text}", "f").data["a"]
    assert got == value and type(got) is type(value)


def test_nan():
    assert math.isnan(load_yaml("a: .nan", "f").data["a"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", r"f:3: expected each key once, got `a` again \(first on line 1\)"),
        ("d:\n  - x: 1\n    x: 2", r"f:3: expected each key once, got `x` again \(first on line 2\)"),
        ("d: {x: 1, x: 2}", "f:1: expected each key once, got `x`"),
        ("1: a", "f:1: expected a word as key, got 1"),
        ("? [a]\n: 1", "f:1: expected a word as key, got a list"),
        ("a: [1, 2", "f:.*syntax error"),
        ("a:\n\t- b", "f:2: expected YAML, got a syntax error"),
        ("a: 1\n---\nb: 2", "f:2: expected YAML, got a syntax error.*"),
        ("a: !!python/object:os.system x", "f:1: expected plain YAML, got the tag"),
        ("a: !mine {b: 1}", "f:1: expected plain YAML, got the tag !mine"),
        ("a: &x [*x]", "f:1: .*aliases that expand without end"),
        ("a: \x00", "f: expected YAML text"),
        ("a: " + "1" * 5000, "f:1: expected a number, got 5000 digits"),
        ("[" * 5000, "nested hundreds deep"),
    ],
)
def test_refusals_name_file_and_line(text, message):
    with pytest.raises(SpecError, match=message):
        load_yaml(text, "f")


def test_aliases_may_be_shared_but_not_explode():
    assert load_yaml("a: &o {x: 1}\nb: *o", "f").data["b"] == {"x": 1}
    bomb = "a0: &a0 [1,1,1,1,1,1,1,1,1,1]\n" + "\n".join(
        f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)
    )
    with pytest.raises(SpecError, match="expand without end"):
        load_yaml(bomb, "f")


def test_lines():
    document = load_yaml("name: x\ndesigns:\n  - problem: p\n    options:\n      nx: 3\n", "f")
    assert document.where(("designs", 0, "options", "nx")) == "f:5"
    assert document.where(("designs", 0, "options", "other")) == "f:4"
    assert document.where(()) == "f:1"
