"""What a run leaves behind: the steps as they were taken, frozen, from which every derivative is computed."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from sciopt.steppers.field import Field
from sciopt.transforms import under_transform

__all__ = ["Cut", "Grid", "Segment", "Tape", "borrowed"]


def borrowed(y: Tensor, sound: Tensor) -> Tensor:
    """States ``(rows, n)`` at which the right-hand side is defined: rows that are not ``sound`` get that of one that is.

    Nothing flows through them, but 0 * NaN would: a row may stand still where its own right-hand side is not defined.
    """
    if not y.shape[0]:
        return y
    chosen = sound.to(torch.int8).argmax().reshape(1)
    return torch.where(sound.unsqueeze(-1), y, y.detach().index_select(0, chosen))


@dataclass(eq=False)
class Segment:
    """Consecutive trial steps of some rows; ``rows`` numbers them in the whole batch (None: all)."""

    field: Field
    rows: Tensor | None
    t: list[Tensor] = dataclasses.field(default_factory=list)  # (m,) each
    h: list[Tensor] = dataclasses.field(default_factory=list)
    y: list[Tensor] = dataclasses.field(default_factory=list)  # (m, n) each
    accept: list[Tensor] = dataclasses.field(default_factory=list)

    def sizes(self) -> Tensor:
        """Step sizes ``(slots, m)``, zero where the trial was rejected or the row had ended."""
        return torch.where(torch.stack(self.accept), torch.stack(self.h), 0.0)


@dataclass(eq=False)
class Cut:
    """Rows that failed, and a place of each at which its right-hand side has a derivative: the middle of its steps.

    They count for nothing in a derivative, yet are evaluated along with the others: where they ended 0 * NaN would spread.

    Args:
        failed: ``(rows,)``.
        t: times of the places ``(rows,)``.
        y: states there ``(rows, n)``.
    """

    failed: Tensor
    t: Tensor
    y: Tensor

    def restricted(self, rows: Tensor | None) -> Cut:
        """The same for some rows of the batch; None: all."""
        return self if rows is None else Cut(*(v.index_select(0, rows) for v in (self.failed, self.t, self.y)))

    def apart(self, t: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The start of a step with the failed rows at their places."""
        return torch.where(self.failed, self.t, t), torch.where(self.failed.unsqueeze(-1), self.y, y)


@dataclass(eq=False)
class Tape:
    """All steps of a run.

    Args:
        segments: the steps, in their order.
        slot: ``(k, rows)`` int64: number of the step in which each output lies; -1: it is the state at the end.
        event_slot: ``(rows,)`` number of the step in which the event lies; -1: none.
        event_fraction: ``(rows,)`` where in that step.
        cut: the rows that failed; None: none did.
    """

    segments: list[Segment]
    slot: Tensor
    event_slot: Tensor | None = None
    event_fraction: Tensor | None = None
    cut: Cut | None = None

    @property
    def steps(self) -> int:
        """Number of slots."""
        return sum(len(segment.t) for segment in self.segments)

    def cut_off(self, failed: Tensor, start: Tensor, t: Tensor) -> None:
        """Take rows ``failed`` out of every derivative; ``start`` and ``t`` are where all rows began."""
        if not bool(failed.any()):
            return
        rest_y, rest_t = start.clone(), t.clone()
        grid = self.grid()
        taken = grid.h != 0
        if len(taken):
            count = taken.cumsum(0)
            middle = (taken & (count == (count[-1] + 1) // 2) & failed).to(torch.int8)
            place = torch.where(middle.any(0), middle.argmax(0), -1)
            first = 0
            for segment in self.segments:
                rows = torch.arange(len(t), device=t.device) if segment.rows is None else segment.rows
                mine = place.index_select(0, rows) - first
                for slot in mine[(mine >= 0) & (mine < len(segment.t))].unique().tolist():
                    here = mine == slot
                    rest_y[rows[here]], rest_t[rows[here]] = segment.y[slot][here], segment.t[slot][here]
                first += len(segment.t)
        if not under_transform():  # one that failed at once may stand where its right-hand side has no derivative
            field = self.segments[0].field
            with torch.enable_grad():
                point = rest_y.detach().requires_grad_()
                out = field(rest_t, point)
            if out.requires_grad:
                slope = torch.autograd.grad(out, point, torch.zeros_like(out))[0]
                rest_y = borrowed(rest_y, ~(failed & ~torch.isfinite(slope).all(-1)))
        self.cut = Cut(failed, rest_t, rest_y)

    def grid(self) -> Grid:
        """The steps as tensors over the whole batch."""
        rows = self.slot.shape[1]
        ts, hs = [], []
        for segment in self.segments:
            if not segment.t:
                continue
            t, h = torch.stack(segment.t), segment.sizes()
            if segment.rows is not None:
                t = t.new_zeros(len(t), rows).index_copy_(1, segment.rows, t)
                h = h.new_zeros(len(h), rows).index_copy_(1, segment.rows, h)
            ts.append(t)
            hs.append(h)
        failed = torch.zeros_like(self.slot[0], dtype=torch.bool)
        rest = self.slot.new_zeros(rows, self.segments[0].field.size)
        if self.cut is not None:
            failed, rest = self.cut.failed, self.cut.y
            ts = [torch.where(failed, self.cut.t, t) for t in ts]
            hs = [torch.where(failed, 0.0, h) for h in hs]
        empty = self.slot.new_zeros(0, rows)
        slot = self.event_slot
        fraction = self.event_fraction
        return Grid(
            torch.cat(ts) if ts else empty,
            torch.cat(hs) if hs else empty,
            self.slot,
            torch.full_like(self.slot[0], -1) if slot is None else slot,
            torch.zeros_like(self.slot[0]) if fraction is None else fraction,
            failed,
            rest,
        )


@dataclass(eq=False)
class Grid:
    """The frozen steps as tensors: what a differentiable replay needs.

    Args:
        t: starts of the steps ``(slots, rows)``.
        h: their signed sizes ``(slots, rows)``, zero where the row stands still.
        slot: as in `Tape`.
        event_slot: as in `Tape`.
        event_fraction: as in `Tape`.
        failed: rows that have no derivative ``(rows,)``.
        rest: where those stand ``(rows, n)``; their ``t`` is the time there.
    """

    t: Tensor
    h: Tensor
    slot: Tensor
    event_slot: Tensor
    event_fraction: Tensor
    failed: Tensor
    rest: Tensor
