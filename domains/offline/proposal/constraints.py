"""Constraints on designs: as text, as functions of rows, and as a test of codes."""

from __future__ import annotations

import ast
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor

from sciopt.domains.offline.proposal.columns import NumberColumn
from sciopt.domains.offline.proposal.constraint_values import Place, evaluate
from sciopt.domains.offline.proposal.design_space import DesignSpace

__all__ = ["AbstractConstraint", "Rule", "RowTest", "as_constraint", "repaired"]

QUOTED = re.compile(r"`([^`]+)`")
STEPS = 20  # of the repair, alternating among constraints
LONGEST = 2_000  # characters of a constraint


class AbstractConstraint(ABC):
    """What a design has to satisfy. Concrete ones are frozen dataclasses."""

    @abstractmethod
    def holds(self, space: DesignSpace, codes: Tensor) -> Tensor:
        """For designs ``(n, width)``, bool ``(n,)``."""

    @abstractmethod
    def check(self, space: DesignSpace) -> None:
        """Raise ValueError where the constraint does not fit the columns, before any work."""

    @abstractmethod
    def describe(self) -> str:
        """The constraint, for people."""


@final
@dataclass(frozen=True)
class Rule(AbstractConstraint):
    """A constraint as text, in terms of the columns; read as an expression, never executed as code.

    - numbers: ``temperature + 2 * ph <= 90``, ``a != b``, ``0.1 < a / b < 3``, with ``abs min max log exp sqrt``;
      ``a + b + c == 1`` is kept to 1 part in a million;
    - categories: ``solvent != 'water'``, ``solvent in ('THF', 'DMF')``;
    - sequences: ``'GAATTC' not in seq``, ``seq[3] == 'A'`` (positions from 0, also from the end), ``seq[2:5] == 'ACG'``,
      ``gc(seq) <= 0.6`` (the share of G and C), ``count(seq, 'A') >= 2``, ``len(seq) > 5``;
    - ``and``, ``or``, ``not``, brackets; names with blanks in backquotes: ```flow rate` < 3``.

    Args:
        text: the expression.

    Raises:
        ValueError: for text that cannot be read.

    Example:
        >>> from sciopt.domains.offline.proposal import NumberColumn
        >>> space = DesignSpace((NumberColumn(name="a", low=0, high=9), NumberColumn(name="b", low=0, high=9)))
        >>> Rule("a + b <= 5").holds(space, torch.tensor([[1.0, 2.0], [4.0, 2.0]]))
        tensor([ True, False])
    """

    text: str
    tree: ast.expr = field(init=False, repr=False, compare=False)
    names: tuple[str, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        names = tuple(dict.fromkeys(QUOTED.findall(self.text)))
        plain = QUOTED.sub(lambda found: f"quoted_{names.index(found.group(1))}_", self.text)
        if len(self.text) > LONGEST:
            raise ValueError(
                f"Rule: expected `text` of at most {LONGEST} characters, got {len(self.text)}. Give several constraints, or a "
                "function of rows."
            )
        try:
            tree = ast.parse(plain.strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise ValueError(
                f'Rule: expected `text` as an expression such as "a + b <= 5", got {self.text!r}. Correct it; names with '
                "blanks need backquotes."
            ) from error
        object.__setattr__(self, "tree", tree)
        object.__setattr__(self, "names", names)

    def _place(self, space: DesignSpace, codes: Tensor) -> Place:
        names = {f"quoted_{k}_": name for k, name in enumerate(self.names)}
        return Place(space=space, codes=codes, text=self.text, aliases=names)

    def holds(self, space: DesignSpace, codes: Tensor) -> Tensor:
        """See `AbstractConstraint.holds`."""
        try:
            value = evaluate(self.tree, self._place(space, codes))
        except RecursionError as error:
            raise ValueError(
                f"Rule: expected `text` with fewer nested parts, got {self.text[:40]!r}... Give several constraints."
            ) from error
        if not isinstance(value, Tensor) or value.dtype != torch.bool:
            raise ValueError(
                f"Rule: expected a condition, true or false, got {self.text!r}. Compare with <=, ==, in or a function of it."
            )
        return value.expand(len(codes))

    def check(self, space: DesignSpace) -> None:
        """See `AbstractConstraint.check`."""
        self.holds(space, space.random(2, torch.Generator().manual_seed(0)))

    def describe(self) -> str:
        """See `AbstractConstraint.describe`."""
        return self.text

    def excesses(self) -> list[tuple[ast.expr, ast.expr, bool]]:
        """Comparisons that all have to hold, as ``left <= right`` or, with True, ``left == right``."""
        parts = (
            self.tree.values if isinstance(self.tree, ast.BoolOp) and isinstance(self.tree.op, ast.And) else [self.tree]
        )
        found = []
        for part in parts:
            if not isinstance(part, ast.Compare):
                continue
            sides = [part.left, *part.comparators]
            for op, one, two in zip(part.ops, sides[:-1], sides[1:], strict=True):
                if isinstance(op, ast.Lt | ast.LtE):
                    found.append((one, two, False))
                elif isinstance(op, ast.Gt | ast.GtE):
                    found.append((two, one, False))
                elif isinstance(op, ast.Eq):
                    found.append((one, two, True))
        return found

    def gaps(self, space: DesignSpace, codes: Tensor) -> list[tuple[Tensor, bool]]:
        """For its comparisons of numbers: ``left - right`` ``(n,)``, differentiable, and whether it is to be 0 or <= 0."""
        out = []
        place = self._place(space, codes)
        for left, right, equal in self.excesses():
            sides = [evaluate(side, place) for side in (left, right)]
            if all(isinstance(side, Tensor) and side.is_floating_point() for side in sides):
                out.append((sides[0] - sides[1], equal))
        return out


@final
@dataclass(frozen=True)
class RowTest(AbstractConstraint):
    """A constraint as a Python function.

    Args:
        test: ``rows -> bool`` for each: a list of dicts to a list, array or tensor of truth values.

    Raises:
        ValueError: (when used) for another number of answers than rows.

    Example:
        >>> from sciopt.domains.offline.proposal import NumberColumn
        >>> space = DesignSpace((NumberColumn(name="a", low=0, high=9),))
        >>> RowTest(lambda rows: [row["a"] > 3 for row in rows]).holds(space, torch.tensor([[1.0], [4.0]]))
        tensor([False,  True])
    """

    test: Callable[[list[dict[str, Any]]], Any]

    def holds(self, space: DesignSpace, codes: Tensor) -> Tensor:
        """See `AbstractConstraint.holds`."""
        if not len(codes):
            return torch.zeros(0, dtype=torch.bool, device=codes.device)
        told = self.test(space.decode(codes))
        try:
            answers = torch.as_tensor(told, dtype=torch.bool, device=codes.device)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"RowTest: expected `test` to return {len(codes)} truth values, one per row, got {type(told).__name__}. It is "
                "given a list of rows, not one row."
            ) from error
        if answers.shape != (len(codes),):
            raise ValueError(
                f"RowTest: expected `test` to return {len(codes)} truth values, one per row, got shape "
                f"{tuple(answers.shape)}. It is given a list of rows, not one row."
            )
        return answers

    def check(self, space: DesignSpace) -> None:
        """See `AbstractConstraint.check`."""
        self.holds(space, space.random(2, torch.Generator().manual_seed(0)))

    def describe(self) -> str:
        """See `AbstractConstraint.describe`."""
        return f"the function {getattr(self.test, '__name__', 'given')}"


def as_constraint(given: Any) -> AbstractConstraint:
    """Text, a function of rows, or a constraint as a constraint.

    Raises:
        TypeError: for anything else.

    Example:
        >>> as_constraint("a <= b")
        Rule(text='a <= b')
    """
    if isinstance(given, AbstractConstraint):
        return given
    if isinstance(given, str):
        return Rule(given)
    if callable(given):
        return RowTest(given)
    raise TypeError(
        f"propose: expected `constraints` as texts, functions of rows or constraints, got {type(given).__name__}. E.g. "
        '["a + b <= 5"].'
    )


def repaired(space: DesignSpace, rules: Sequence[AbstractConstraint], codes: Tensor) -> Tensor:
    """Designs moved along real numbers until comparisons of numbers hold, as far as bounds allow.

    Gauss-Newton steps onto each violated comparison in turn, in shares of the ranges; then numbers are rounded, except where
    that would break a sum that has to be equal.

    Args:
        space: the columns.
        rules: constraints; only comparisons of numbers in a `Rule` move designs.
        codes: ``(n, width)``.

    Returns:
        ``(n, width)``; designs that cannot be repaired come back somewhere between.

    Example:
        >>> from sciopt.domains.offline.proposal import NumberColumn
        >>> space = DesignSpace((NumberColumn(name="a", low=0, high=1), NumberColumn(name="b", low=0, high=1)))
        >>> repaired(space, [Rule("a + b == 1")], torch.tensor([[0.2, 0.2]], dtype=torch.float64))
        tensor([[0.5000, 0.5000]], dtype=torch.float64)
    """
    pieces = zip(space.columns, space.slices, strict=True)
    parts = [(c, part.start) for c, part in pieces if isinstance(c, NumberColumn) and not c.integer]
    texts = [rule for rule in rules if isinstance(rule, Rule) and rule.excesses()]
    if not parts or not texts or not len(codes):
        return space.settled(codes)
    fine = _moved(space, parts, texts, codes, single=False)
    rounded = space.settled(fine)
    # rounding may have left an equality: one number makes up for it
    closed = _moved(space, parts, texts, rounded, single=True)
    out = fine
    for option in (closed, rounded):
        good = torch.stack([rule.holds(space, option) for rule in texts]).all(0)
        out = torch.where(good.unsqueeze(-1), option, out)
    return out


def _moved(
    space: DesignSpace,
    parts: Sequence[tuple[NumberColumn, int]],
    rules: Sequence[Rule],
    codes: Tensor,
    *,
    single: bool,
) -> Tensor:
    """Gauss-Newton steps onto one violated comparison after another, of all numbers or of the one with most room."""
    places = [place for _, place in parts]

    def designs(units: Tensor) -> Tensor:
        columns = list(codes.unbind(-1))
        for k, (column, place) in enumerate(parts):
            columns[place] = column.value(units[:, k])
        return torch.stack(columns, -1)

    units = space.units(codes)[:, places].clamp(0, 1)
    room = torch.minimum(units, 1 - units)
    for _ in range(STEPS):
        worst = 0.0
        for rule in rules:
            for k in range(len(rule.gaps(space, codes[:1]))):
                at = units.clone().requires_grad_(True)
                with torch.enable_grad():
                    gap, equal = rule.gaps(space, designs(at))[k]
                if not gap.requires_grad:
                    continue
                slope = torch.autograd.grad(gap.sum(), at)[0]
                over = gap.detach() if equal else (gap.detach() + 1e-9).clamp(min=0)
                # a number at its bound cannot move further out
                out_low, out_high = slope * over.unsqueeze(-1) > 0, slope * over.unsqueeze(-1) < 0
                slope = torch.where(((units <= 0) & out_low) | ((units >= 1) & out_high), 0.0, slope)
                if single:
                    best = (slope.abs() * room).argmax(-1, keepdim=True)
                    slope = torch.zeros_like(slope).scatter(1, best, slope.gather(1, best))
                size = slope.square().sum(-1, keepdim=True)
                step = over.unsqueeze(-1) * slope / size.clamp(min=1e-30)
                units = torch.where((size > 0) & torch.isfinite(step), units - step, units).clamp(0, 1)
                worst = max(worst, float(over.abs().amax()))
        if worst < 1e-12:
            break
    out = designs(units).detach()
    for k, (column, place) in enumerate(parts):
        if single:  # shares of a range bring back 0.30000000000000004 for 0.3
            scale = 10.0 ** (12 - math.ceil(math.log10(max(abs(column.low), abs(column.high), 1e-300))))
            tidy = ((out[:, place] * scale).round() / scale).clamp(column.low, column.high)
            out[:, place] = torch.where(
                (units[:, k] - space.units(codes)[:, place]).abs() > 1e-13, tidy, codes[:, place]
            )
    return out
