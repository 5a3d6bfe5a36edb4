"""Expressions over the columns, evaluated on many designs at once."""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn, final

import torch
from torch import Tensor

from sciopt.domains.offline.proposal.columns import CategoryColumn, NumberColumn, SequenceColumn, shown
from sciopt.domains.offline.proposal.design_space import DesignSpace

__all__ = ["Place", "evaluate"]

LARGEST = 1e300
EQUAL = 1e-6  # part of the larger side by which the sides of == may differ

ARITHMETIC: dict[type[ast.operator], Callable[[Tensor, Tensor], Tensor]] = {
    ast.Add: torch.add,
    ast.Sub: torch.sub,
    ast.Mult: torch.mul,
    ast.Div: torch.div,
    ast.Pow: torch.pow,
    ast.Mod: torch.remainder,
}
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "abs": torch.abs,
    "log": torch.log,
    "exp": torch.exp,
    "sqrt": torch.sqrt,
}


@final
@dataclass(frozen=True, kw_only=True)
class Letters:
    """Letters of a sequence column ``(n, k)`` as codes."""

    column: SequenceColumn
    codes: Tensor

    def code(self, letter: str, fail: Callable[[str, str], NoReturn]) -> int:
        """The code of a letter of the alphabet."""
        if letter not in self.column.alphabet:
            fail(f"letters of {self.column.alphabet} for `{self.column.name}`", f"{letter!r}")
        return self.column.alphabet.index(letter)


@final
@dataclass(frozen=True, kw_only=True)
class Levels:
    """A category column ``(n,)`` as codes."""

    column: CategoryColumn
    codes: Tensor


@final
@dataclass(frozen=True, kw_only=True)
class Place:
    """Where an expression is evaluated.

    Args:
        space: the columns.
        codes: designs ``(n, width)``.
        text: the whole expression, for errors.
        aliases: names in the expression that stand for columns with blanks.

    Example:
        >>> space = DesignSpace((NumberColumn(name="a", low=0, high=9),))
        >>> place = Place(space=space, codes=torch.tensor([[2.0]]), text="a * 2", aliases={})
        >>> evaluate(ast.parse("a * 2", mode="eval").body, place)
        tensor([4.])
    """

    space: DesignSpace
    codes: Tensor
    text: str
    aliases: dict[str, str]

    def fail(self, expected: str, got: str) -> NoReturn:
        """Raise ValueError in the project's form."""
        raise ValueError(f"Rule: expected {expected}, got {got} in {self.text!r}. Correct the constraint.")

    def column(self, name: str) -> Any:
        """The values of a column."""
        wanted = self.aliases.get(name, name)
        if wanted not in self.space.names:
            self.fail(f"one of the columns {', '.join(self.space.names)}", f"{wanted!r}")
        index = self.space.names.index(wanted)
        column, values = self.space.columns[index], self.codes[:, self.space.slices[index]]
        if isinstance(column, NumberColumn):
            return values[:, 0]
        if isinstance(column, CategoryColumn):
            return Levels(column=column, codes=values[:, 0])
        assert isinstance(column, SequenceColumn)
        return Letters(column=column, codes=values)


def evaluate(node: ast.expr, place: Place) -> Any:
    """The value of an expression: numbers ``(n,)`` or ``()``, truth values ``(n,)``, letters, levels, text or a tuple.

    Args:
        node: the expression.
        place: the designs.

    Raises:
        ValueError: for anything that is not arithmetic, a comparison, or a function of sequences, naming it.

    Example:
        See `Place`.
    """
    match node:
        case ast.Constant(value=str() as value):
            return value
        case ast.Constant(value=bool() as value):
            return value
        case ast.Constant(value=int() | float() as value):
            if not abs(value) <= LARGEST:
                place.fail(f"numbers of at most {LARGEST:g}", "a larger one")
            return torch.tensor(float(value), dtype=place.codes.dtype, device=place.codes.device)
        case ast.Name(id=name):
            return place.column(name)
        case ast.Tuple(elts=items) | ast.List(elts=items) | ast.Set(elts=items):
            return tuple(evaluate(item, place) for item in items)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_number(operand, place)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return _number(operand, place)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return ~_truth(operand, place)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in ARITHMETIC:
            return ARITHMETIC[type(op)](_number(left, place), _number(right, place))
        case ast.BoolOp(op=op, values=values):
            parts = torch.stack([_truth(value, place) for value in values])
            return parts.all(0) if isinstance(op, ast.And) else parts.any(0)
        case ast.Compare(left=first, ops=ops, comparators=others):
            sides = [evaluate(side, place) for side in (first, *others)]
            parts = [_compared(op, a, b, place) for op, a, b in zip(ops, sides[:-1], sides[1:], strict=True)]
            return torch.stack(parts).all(0)
        case ast.Subscript(value=value, slice=index):
            return _subscript(value, index, place)
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]):
            return _call(name, arguments, place)
    place.fail("columns, numbers, texts, comparisons, arithmetic and known functions", f"{ast.unparse(node)!r}")


def _number(node: ast.expr, place: Place) -> Tensor:
    value = evaluate(node, place)
    if not isinstance(value, Tensor) or not value.is_floating_point():
        place.fail("a number", f"{ast.unparse(node)!r}")
    return value


def _truth(node: ast.expr, place: Place) -> Tensor:
    value = evaluate(node, place)
    if not isinstance(value, Tensor) or value.dtype != torch.bool:
        place.fail("a condition, true or false", f"{ast.unparse(node)!r}")
    return value


def _compared(op: ast.cmpop, left: Any, right: Any, place: Place) -> Tensor:
    """One comparison of values of any kind, bool ``(n,)``."""
    count = len(place.codes)
    if isinstance(op, ast.In | ast.NotIn):
        if isinstance(right, Letters) and isinstance(left, str):
            found = _contains(right, left, place)
        elif isinstance(right, tuple) and right:
            found = torch.stack([_equal(left, item, place) for item in right]).any(0)
        else:
            place.fail("`in` with a sequence column or a list on its right", "something else")
        return found if isinstance(op, ast.In) else ~found
    if isinstance(op, ast.Eq | ast.NotEq):
        same = _equal(left, right, place)
        return same if isinstance(op, ast.Eq) else ~same
    if not all(isinstance(side, Tensor) and side.is_floating_point() for side in (left, right)):
        place.fail("numbers on both sides of <, <=, > and >=", "something else")
    slack = 1e-9 * torch.maximum(left.abs(), right.abs())  # 0.1 + 0.2 <= 0.3 is meant to hold
    slack = torch.where(torch.isfinite(slack), slack, 0.0)  # 1 / 0 <= 3 is not
    match op:
        case ast.Lt():
            out = left < right
        case ast.LtE():
            out = left <= right + slack
        case ast.Gt():
            out = left > right
        case ast.GtE():
            out = left + slack >= right
        case _:
            place.fail("one of < <= > >= == != in", type(op).__name__)
    return out.expand(count)


def _equal(left: Any, right: Any, place: Place) -> Tensor:
    """Equality of two values of any kind, bool ``(n,)``."""
    count = len(place.codes)
    if isinstance(right, Levels | Letters) and not isinstance(left, Levels | Letters):
        left, right = right, left
    if isinstance(left, Levels):
        if isinstance(right, Levels):
            levels = {level: k for k, level in enumerate(right.column.levels)}
            table = torch.tensor([levels.get(level, -1) for level in left.column.levels], device=left.codes.device)
            return table[left.codes.long()] == right.codes.long()
        value = right.tolist() if isinstance(right, Tensor) else right
        if value not in left.column.levels:
            levels = ", ".join(shown(level, 30) for level in left.column.levels[:20])
            place.fail(f"a level of `{left.column.name}`: {levels}", f"{value!r}")
        return left.codes == left.column.levels.index(value)
    if isinstance(left, Letters):
        if isinstance(right, Letters):
            if left.column.alphabet != right.column.alphabet or left.codes.shape != right.codes.shape:
                place.fail("sequences of one length and alphabet on both sides of ==", "others")
            return (left.codes == right.codes).all(-1)
        if not isinstance(right, str) or len(right) > left.codes.shape[1]:
            place.fail(f"a text of at most {left.codes.shape[1]} letters for `{left.column.name}`", f"{right!r}")
        same = torch.ones(count, dtype=torch.bool, device=place.codes.device)
        for k in range(left.codes.shape[1]):  # shorter texts match where only gaps follow
            code = left.code(right[k], place.fail) if k < len(right) else len(left.column.alphabet)
            same = same & (left.codes[:, k] == code)
        return same
    if isinstance(left, Tensor) and isinstance(right, Tensor) and left.is_floating_point() == right.is_floating_point():
        if not left.is_floating_point():
            return (left == right).expand(count)
        apart, size = (left - right).abs(), torch.maximum(left.abs(), right.abs())
        whole = (left == left.round()) & (right == right.round())  # 100000 and 100001 are two numbers
        return (apart <= torch.where(whole, 0.0, EQUAL * size)).expand(count)
    place.fail("two values of one kind on both sides of ==", "a number and a text")


def _contains(letters: Letters, text: str, place: Place) -> Tensor:
    """Where a text stands anywhere in a sequence."""
    wanted = [letters.code(letter, place.fail) for letter in text]
    count, length = letters.codes.shape
    found = torch.full((count,), not wanted, device=letters.codes.device)
    for start in range(length - len(wanted) + 1):
        here = torch.ones_like(found)
        for k, code in enumerate(wanted):
            here = here & (letters.codes[:, start + k] == code)
        found = found | here
    return found


def _letters(node: ast.expr, place: Place) -> Letters:
    value = evaluate(node, place)
    if not isinstance(value, Letters):
        place.fail("a sequence column", f"{ast.unparse(node)!r}")
    return value


def _subscript(node: ast.expr, index: ast.expr, place: Place) -> Letters:
    letters = _letters(node, place)
    length = letters.codes.shape[1]
    if isinstance(index, ast.Slice):
        if index.step is not None:
            place.fail("positions without a step", f"{ast.unparse(index)!r}")
        ends = [None if end is None else _position(end, place) for end in (index.lower, index.upper)]
        if letters.column.gap is not None and any(end is not None and end < 0 for end in ends):
            place.fail("slices counted from the start, for sequences of different lengths", f"{ast.unparse(index)!r}")
        chosen = letters.codes[:, slice(*ends)]
    else:
        at = _position(index, place)
        chosen = letters.codes[:, at].unsqueeze(-1) if -length <= at < length else letters.codes[:, :0]
        if at < 0 and chosen.shape[1]:  # from the last letter, not from the gaps that follow it
            gap = letters.codes.new_full((len(letters.codes), 1), len(letters.column.alphabet))
            ends_at = (letters.codes < len(letters.column.alphabet)).sum(-1, keepdim=True)
            places = ends_at + at
            chosen = torch.where(places < 0, gap, letters.codes.gather(1, places.clamp(min=0)))
    if not chosen.shape[1]:
        place.fail(f"positions of `{letters.column.name}` from 0 to {length - 1}", f"{ast.unparse(index)!r}")
    return Letters(column=letters.column, codes=chosen)


def _position(node: ast.expr, place: Place) -> int:
    try:
        value = ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError):
        value = None
    if type(value) is not int:
        place.fail("whole numbers as positions", f"{ast.unparse(node)!r}")
    return value


def _call(name: str, arguments: list[ast.expr], place: Place) -> Tensor:
    dtype = place.codes.dtype
    match name, arguments:
        case (("abs" | "log" | "exp" | "sqrt"), [argument]):
            return FUNCTIONS[name](_number(argument, place))
        case (("min" | "max"), [_, _, *_]):
            values = torch.stack(torch.broadcast_tensors(*[_number(argument, place) for argument in arguments]))
            return values.amin(0) if name == "min" else values.amax(0)
        case (("len" | "length"), [argument]):
            letters = _letters(argument, place)
            return (letters.codes < len(letters.column.alphabet)).sum(-1).to(dtype)
        case "gc", [argument]:
            letters = _letters(argument, place)
            alphabet = letters.column.alphabet
            codes = [k for k, letter in enumerate(alphabet) if letter in "GCgc"]
            if not codes:
                place.fail(f"a sequence with G or C for gc({letters.column.name})", f"the alphabet {alphabet}")
            share = torch.isin(letters.codes, torch.tensor(codes, device=place.codes.device, dtype=dtype)).sum(-1)
            return share.to(dtype) / (letters.codes < len(alphabet)).sum(-1).clamp(min=1)
        case "count", [argument, ast.Constant(value=str() as text)] if text:
            letters = _letters(argument, place)
            length = letters.codes.shape[1] - len(text) + 1
            windows = [Letters(column=letters.column, codes=letters.codes[:, k : k + len(text)]) for k in range(length)]
            hits = [_contains(window, text, place) for window in windows]
            return torch.stack(hits).sum(0).to(dtype) if hits else place.codes.new_zeros(len(place.codes))
    known = (
        "abs, log, exp, sqrt of a number; min, max of numbers; len, gc of a sequence; count of a sequence and a text"
    )
    place.fail(known, f"{name!r} of {len(arguments)} values")
