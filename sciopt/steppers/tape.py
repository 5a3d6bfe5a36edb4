"""What a run leaves behind: the steps as they were taken, frozen, from which every derivative is computed."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from sciopt.steppers.field import Field

__all__ = ["Grid", "Segment", "Tape", "borrowed"]


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
class Tape:
    """All steps of a run.

    Args:
        segments: the steps, in their order.
        slot: ``(k, rows)`` int64: number of the step in which each output lies; -1: it is the state at the end.
        event_slot: ``(rows,)`` number of the step in which the event lies; -1: none.
        event_fraction: ``(rows,)`` where in that step.
    """

    segments: list[Segment]
    slot: Tensor
    event_slot: Tensor | None = None
    event_fraction: Tensor | None = None

    @property
    def steps(self) -> int:
        """Number of slots."""
        return sum(len(segment.t) for segment in self.segments)

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
        empty = self.slot.new_zeros(0, rows)
        slot = self.event_slot
        fraction = self.event_fraction
        return Grid(
            torch.cat(ts) if ts else empty,
            torch.cat(hs) if hs else empty,
            self.slot,
            torch.full_like(self.slot[0], -1) if slot is None else slot,
            torch.zeros_like(self.slot[0]) if fraction is None else fraction,
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
    """

    t: Tensor
    h: Tensor
    slot: Tensor
    event_slot: Tensor
    event_fraction: Tensor
