"""Explicit Runge-Kutta methods as tables, and the step that any table gives."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Any, final

import torch
from torch import Tensor

from sciopt.steppers.abstract import AbstractOneStep, Attempt
from sciopt.steppers.field import Field

__all__ = ["AbstractExplicit", "Tableau", "Workspace", "hermite", "workspace"]


@final
@dataclass(frozen=True, eq=False)  # looked up by identity in every step
class Tableau:
    """Coefficients of an explicit method with s stages.

    Args:
        a: rows ``a[i]`` of length i + 1 for the stages 1 .. s - 1.
        b: weights of the result, length s.
        error: weights of the error estimate (result minus embedded result), length s; empty: none.
        dense: ``dense[i][p]``: coefficient of ``fraction ** (p + 1)`` in the weight of stage i.
        last: whether the last stage is taken at the result (``a[-1]`` holds ``b``), so that the next step starts with it.
    """

    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    error: tuple[float, ...]
    dense: tuple[tuple[float, ...], ...]
    last: bool

    @cached_property
    def stages(self) -> int:
        """Number of stages."""
        return len(self.b)

    @cached_property
    def c(self) -> tuple[float, ...]:
        """Fractions of the step at which the stages 1 .. s - 1 are taken."""
        return tuple(sum(row) for row in self.a)


def hermite(b: tuple[float, ...]) -> tuple[tuple[float, ...], ...]:
    """Weights of the cubic through both ends with both slopes, for a method whose last stage is taken at the result."""
    rows = [[0.0, 3.0 * w, -2.0 * w] for w in b]
    rows[0] = [rows[0][0] + 1.0, rows[0][1] - 2.0, rows[0][2] + 1.0]
    rows[-1] = [rows[-1][0], rows[-1][1] - 1.0, rows[-1][2] + 1.0]
    return tuple(tuple(row) for row in rows)


class AbstractExplicit(AbstractOneStep):
    """A one-step method given by its table; ``dense`` of its attempts is ``h`` times the stages, ``(rows, s, n)``.

    ``compiled`` is one more option: whether all but the right-hand side is done in compiled code, where that can be.
    """

    compiled: bool

    @property
    @abstractmethod
    def tableau(self) -> Tableau:
        """The table; concrete classes name it as a class variable."""

    def attempt(self, field: Field, t: Tensor, h: Tensor, y: Tensor, start: Tensor | None = None) -> Attempt:
        if field.lean and not torch.is_grad_enabled():
            return lean_attempt(self.tableau, field, t, h, y, start)
        return recorded_attempt(self.tableau, field, t, h, y)

    def interpolate(self, attempt: Attempt, t: Tensor, h: Tensor, y: Tensor, fraction: Tensor) -> Tensor:
        table = coefficients(self.tableau, y)
        powers = torch.stack([fraction ** (p + 1) for p in range(table.dense.shape[1])], -1)
        weights = powers @ table.dense.mT
        return y + (weights.unsqueeze(-2) @ attempt.dense[0]).squeeze(-2)


@dataclass(frozen=True, eq=False)
class Coefficients:
    """A `Tableau` as tensors."""

    a: list[Tensor]
    b: Tensor
    c: Tensor
    error: Tensor | None
    dense: Tensor


_known: dict[Any, Coefficients] = {}


def coefficients(tableau: Tableau, like: Tensor) -> Coefficients:
    """The table in a tensor's dtype, on its device; made once."""
    key = (tableau, like.dtype, like.device)
    if key not in _known:
        with torch.no_grad():
            make = lambda x: torch.tensor(x, dtype=like.dtype, device=like.device)  # noqa: E731
            _known[key] = Coefficients(
                a=[make(row) for row in tableau.a],
                b=make(tableau.b),
                c=make(tableau.c).unsqueeze(-1),
                error=make(tableau.error) if tableau.error else None,
                dense=make(tableau.dense),
            )
    return _known[key]


def recorded_attempt(tableau: Tableau, field: Field, t: Tensor, h: Tensor, y: Tensor) -> Attempt:
    """One step of plain tensor operations, for autograd and transforms."""
    table = coefficients(tableau, y)
    size = h.unsqueeze(-1)
    ks = [field(t, y)]
    moved = y
    count = tableau.stages - 1 if field.bare and tableau.last else tableau.stages
    for i, (row, c) in enumerate(zip(tableau.a, tableau.c, strict=True), 1):
        moved = torch.addcmul(y, size, combined(ks, row))
        if i < count:
            ks.append(field(t + c * h, moved))
    if not tableau.last:
        moved = torch.addcmul(y, size, combined(ks, tableau.b))
    if field.bare:
        return Attempt(moved)
    dense = h.reshape(-1, 1, 1) * torch.stack(ks, 1)
    error = None if table.error is None else (table.error.unsqueeze(-1) * dense).sum(-2)
    return Attempt(moved, error, (dense,), None, ks[-1] if tableau.last else None)


def combined(ks: list[Tensor], weights: tuple[float, ...]) -> Tensor:
    """Sum of the stages so far with their weights."""
    total = ks[0] * weights[0]
    for k, weight in zip(ks[1:], weights[1:], strict=False):
        if weight:
            total = torch.add(total, k, alpha=weight)
    return total


@dataclass(frozen=True, eq=False)
class Workspace:
    """Scratch space of the lean step: all stages in one matrix, and the views of it that the stages need."""

    stages: Tensor  # (s, rows, n)
    rows: list[Tensor]  # s of (rows, n)
    before: list[Tensor]  # s + 1 of (rows n, i)
    dense: Tensor  # (rows, s, n)


def workspace(tableau: Tableau, field: Field, y: Tensor) -> Workspace:
    """The field's scratch space for this table, made once."""
    known = field.scratch.get(tableau)
    if known is None or known.stages.shape[1:] != y.shape:
        stages = y.new_empty(tableau.stages, *y.shape)
        flat = stages.view(tableau.stages, -1)
        before = [flat[:i].T for i in range(tableau.stages + 1)]
        known = Workspace(stages, list(stages.unbind(0)), before, stages.transpose(0, 1))
        field.scratch[tableau] = known
    return known


def lean_attempt(tableau: Tableau, field: Field, t: Tensor, h: Tensor, y: Tensor, start: Tensor | None) -> Attempt:
    """One step in few operations: the stages are kept times h, so that each combination is one matrix product."""
    table, space = coefficients(tableau, y), workspace(tableau, field, y)
    shape, flat, size = y.shape, y.reshape(-1), h.unsqueeze(-1)
    instants, evaluate = (), field
    if tableau.a:
        instants = torch.addcmul(t, table.c, h)
        if field.time_shape is not None:
            instants, evaluate = instants.view(-1, *field.time_shape), field.at
            field.system.counter["dynamics"] += len(tableau.a)
        instants = instants.unbind(0)
    slope = field(t, y) if start is None else start
    torch.mul(slope, size, out=space.rows[0])
    moved = y
    for instant, before, row, out in zip(instants, space.before[1:], table.a, space.rows[1:], strict=False):
        moved = torch.addmv(flat, before, row).view(shape)
        slope = evaluate(instant, moved)
        torch.mul(slope, size, out=out)
    if not tableau.last:
        moved = torch.addmv(flat, space.before[-1], table.b).view(shape)
    error = None if table.error is None else torch.mv(space.before[-1], table.error).view(shape)
    return Attempt(moved, error, (space.dense,), None, slope if tableau.last else None)
