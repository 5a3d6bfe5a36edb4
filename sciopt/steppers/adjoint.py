"""The exact derivative of what a run computed: its frozen steps replayed, or walked backwards one at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sciopt.steppers.abstract import AbstractOneStep, Attempt
from sciopt.steppers.event import attached_fraction
from sciopt.steppers.field import Field
from sciopt.steppers.tape import Grid, Segment, Tape, borrowed

__all__ = ["replay", "walk_back"]


def replay(stepper: AbstractOneStep, field: Field, grid: Grid, x0: Tensor, *, inner: bool) -> Tensor:
    """All planes ``(planes, rows, n)`` by plain operations on the frozen steps, for autograd and every transform.

    Args:
        stepper: the method.
        field: the right-hand side, bound to the arguments that are differentiated.
        grid: the frozen steps.
        x0: the start ``(rows, n)``.
        inner: whether outputs are interpolated (else all but the start are the state at the end).
    """
    times = field.times(x0)
    shift = times[0] - times[0].detach()
    bare = field.bind(field.args, bare=True)
    y, visited = x0, []
    starts, cut = grid.t + shift, grid.failed.unsqueeze(-1)
    for t, h in zip(starts, grid.h, strict=True):
        visited.append(y)
        goes = h != 0
        at = torch.where(cut, grid.rest, borrowed(y, goes))
        y = torch.where(goes.unsqueeze(-1), stepper.attempt(bare, t, h, at).y, y)
    before = torch.stack(visited) if visited else x0.unsqueeze(0)
    place = Place(stepper, field, grid, starts, before)
    end, time = y, None
    if field.problem.event is not None:
        hit = grid.event_slot >= 0
        part, t, h, y = place.at(grid.event_slot)
        fraction = attached_fraction(stepper, field, part, t, h, y, grid.event_fraction, hit)
        state = stepper.interpolate(part, t, h, y, fraction)
        end = torch.where(hit.unsqueeze(-1), state, end)
        time = torch.where(hit, t + fraction * h, times[-1])
    planes = [x0]
    for k in range(1, len(times)):
        if not inner:
            planes.append(end)
            continue
        slot = grid.slot[k]
        part, t, h, y = place.at(slot)
        value = stepper.interpolate(part, t, h, y, (times[k] - t) / h)
        planes.append(torch.where((slot >= 0).unsqueeze(-1), value, end))
    if time is not None:
        planes += [planes[-1], torch.cat([time.unsqueeze(-1), torch.zeros_like(end[:, 1:])], -1)]
    out = torch.stack(planes)
    return torch.where(cut, out.detach(), out)


@dataclass(frozen=True, eq=False)
class Place:
    """Any step of each row, tried again with its dense output."""

    stepper: AbstractOneStep
    field: Field
    grid: Grid
    t: Tensor
    y: Tensor

    def at(self, slot: Tensor) -> tuple[Attempt, Tensor, Tensor, Tensor]:
        """The attempts from step ``slot`` ``(rows,)`` (those of -1 mean nothing), their starts, sizes and states."""
        index = slot.clamp(min=0).unsqueeze(0)
        if not len(self.t):
            zero = torch.zeros_like(self.field.times(self.y[0])[0])
            t, h, y = zero, torch.ones_like(zero), self.y[0]
        else:
            t = torch.gather(self.t, 0, index).squeeze(0)
            h = torch.gather(self.grid.h, 0, index).squeeze(0)
            y = torch.gather(self.y, 0, index.unsqueeze(-1).expand(1, *self.y.shape[1:])).squeeze(0)
        h = torch.where(h == 0, torch.ones_like(h), h)
        failed = self.grid.failed
        asked = (slot >= 0) & ~failed
        h = torch.where(asked, h, 1e-6 * h)
        y = torch.where(failed.unsqueeze(-1), self.grid.rest, borrowed(y, asked))
        return self.stepper.attempt(self.field, t, torch.where(failed, 0.0, h), y), t, h, y


def walk_back(
    stepper: AbstractOneStep,
    tape: Tape,
    args: Sequence[Tensor],
    cotangent: Tensor,
    needs: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """Cotangents of ``(x0, *args)``: one product with the transposed derivative per step, batched over the rows.

    Memory: the states of the tape, and the record of one step.

    Args:
        stepper: the method.
        tape: the run.
        args: outer leaves and captured tensors.
        cotangent: of all planes, ``(planes, *batch, n)``.
        needs: which of ``(x0, *args)`` are wanted.
    """
    return Walk(stepper, tape, args, cotangent, needs).run()


class Walk:
    """One backward pass."""

    def __init__(
        self, stepper: AbstractOneStep, tape: Tape, args: Sequence[Tensor], cotangent: Tensor, needs: Sequence[bool]
    ) -> None:
        field = tape.segments[0].field
        system = field.system
        self.stepper, self.tape, self.field, self.shape = stepper, tape, field, cotangent.shape[1:]
        self.seeds = cotangent.reshape(len(cotangent), field.rows, field.size)
        if tape.cut is not None:
            self.seeds = torch.where(tape.cut.failed.unsqueeze(-1), 0.0, self.seeds)
        if (
            tape.event_slot is not None
        ):  # the state at the event is the last output: that is the end, or held from there
            last = tape.slot.shape[0] - 1
            self.seeds = self.seeds.clone()
            self.seeds[last] += self.seeds[last + 1]
        count = system.num_outer
        self.leaves = [a.detach().requires_grad_(need) for a, need in zip(args, needs[1:], strict=True)]
        # in the lean field captured tensors stand for themselves
        live = [*self.leaves[:count], *system.captured]
        self.wanted = [i for i, need in enumerate(needs[1:]) if need and live[i] is not field.problem.times]
        self.inputs = [live[i] for i in self.wanted]
        self.totals: list[Tensor | None] = [None] * len(self.inputs)
        places = [count + i for i, c in enumerate(system.captured) if c is field.problem.times]
        self.times_at = places[0] if places and needs[1 + places[0]] else None
        with torch.no_grad():
            self.instants = field.times(self.seeds[0])
        self.instants.requires_grad_(self.times_at is not None)
        self.moved: Tensor | None = torch.zeros_like(self.instants) if self.times_at is not None else None
        self.pairs = self.group()
        self.local = torch.arange(field.rows, device=cotangent.device)

    def group(self) -> list[tuple[Tensor, Tensor]] | None:
        """For every slot the outputs ``(k, row)`` that lie in it; None when no output does."""
        slot, steps = self.tape.slot, self.tape.steps
        if slot.shape[0] == 2 and self.times_at is None:
            return None
        k, row = torch.nonzero(slot >= 0, as_tuple=True)
        if not len(k):
            return None
        lies = slot[k, row]
        order = torch.argsort(lies, stable=True)
        counts = torch.bincount(lies, minlength=steps).tolist()
        return list(zip(k[order].split(counts), row[order].split(counts), strict=True))

    def run(self) -> tuple[Tensor | None, ...]:
        tape, count = self.tape, self.tape.slot.shape[0]
        # an output that lies in no step is the state at the end
        held = (tape.slot[1:] < 0).unsqueeze(-1)
        final = self.seeds[1] if count == 2 and self.pairs is None else (self.seeds[1:count] * held).sum(0)
        bar = final
        self.event_seed: Tensor | None = None
        if tape.event_slot is not None:
            hit = (tape.event_slot >= 0).unsqueeze(-1)
            self.event_seed = final
            bar = torch.where(hit, 0.0, self.event_seed)
            if self.moved is not None:
                self.moved[-1] += torch.where(hit.squeeze(-1), 0.0, self.seeds[count + 1, :, 0])
        stop = tape.steps
        for segment in reversed(tape.segments):
            start = stop - len(segment.t)
            if segment.t:
                bar = self.segment(segment, start, bar)
            stop = start
        out: list[Tensor | None] = [None] * (1 + len(self.leaves))
        bar = bar + self.seeds[0]
        if tape.cut is not None:
            bar = torch.where(tape.cut.failed.unsqueeze(-1), 0.0, bar)
        out[0] = bar.reshape(self.shape)
        for place, total, leaf in zip(self.wanted, self.totals, self.inputs, strict=True):
            out[1 + place] = torch.zeros_like(leaf) if total is None else total
        if self.times_at is not None:
            out[1 + self.times_at] = self.pull_times()
        return tuple(out)

    def pull_times(self) -> Tensor:
        """From derivatives in the times of every row to those in the problem's tensor."""
        times = self.field.problem.times
        with torch.enable_grad():
            leaf = times.detach().requires_grad_()
            batch = self.field.system.layout.batch_shape
            wide = leaf.reshape(-1, *(1,) * len(batch)).expand(-1, *batch) if leaf.ndim == 1 else leaf
            assert self.moved is not None
            return torch.autograd.grad(wide.reshape(len(leaf), -1), leaf, self.moved.to(leaf.dtype))[0]

    def segment(self, segment: Segment, start: int, bar: Tensor) -> Tensor:
        """Walk the steps of a segment, the last first."""
        rows = segment.rows
        accept = torch.stack(segment.accept)
        cut = None if self.tape.cut is None else self.tape.cut.restricted(rows)
        if cut is not None:
            accept = accept & ~cut.failed
        used = accept.any(1).tolist()
        sizes = torch.where(accept, torch.stack(segment.h), 0.0).unbind(0)
        if rows is None:
            torch.arange(len(self.local), out=self.local)
        else:
            self.local[rows] = torch.arange(len(rows), device=rows.device)
        some = bar if rows is None else bar.index_select(0, rows)
        args = [*self.leaves[: self.field.system.num_outer], *self.field.system.captured]
        full = Field(segment.field.system, args, lean=True)
        bare = Field(segment.field.system, args, lean=True, bare=True)
        for j in reversed(range(len(used))):
            if used[j]:
                pairs = None if self.pairs is None else self.pairs[start + j]
                t, y = (segment.t[j], segment.y[j]) if cut is None else cut.apart(segment.t[j], segment.y[j])
                some = self.step(full, bare, t, sizes[j], y, rows, start + j, pairs, some)
        return some if rows is None else bar.index_copy(0, rows, some)

    def step(
        self,
        full: Field,
        bare: Field,
        t: Tensor,
        h: Tensor,
        y: Tensor,
        rows: Tensor | None,
        slot: int,
        pairs: tuple[Tensor, Tensor] | None,
        bar: Tensor,
    ) -> Tensor:
        """The cotangent of the state before a step from that of the state after it."""
        stepper = self.stepper
        dense = (pairs is not None and len(pairs[0]) > 0) or self.event_seed is not None
        moving = self.moved is not None
        with torch.enable_grad():
            y = y.detach().requires_grad_()
            t = t.detach().requires_grad_(moving)
            attempt = stepper.attempt(full if dense else bare, t, h, y)
            outputs, seeds = [attempt.y], [bar]
            if pairs is not None and len(pairs[0]):
                k, whole = pairs
                row = self.local.index_select(0, whole)
                part = Attempt(
                    attempt.y.index_select(0, row), None, tuple(d.index_select(0, row) for d in attempt.dense)
                )
                t1, h1, y1 = (v.index_select(0, row) for v in (t, h, y))
                fraction = (self.instants[k, whole] - t1) / torch.where(h1 == 0, 1.0, h1)
                outputs.append(stepper.interpolate(part, t1, h1, y1, fraction))
                seeds.append(self.seeds[k, whole])
            if self.event_seed is not None:
                more = self.at_event(full, attempt, t, h, y, rows, slot)
                outputs += [o for o, _ in more]
                seeds += [s for _, s in more]
        inputs = [y, *self.inputs]
        if moving:
            inputs += [t, self.instants]
        live = [(o, s) for o, s in zip(outputs, seeds, strict=True) if o.requires_grad]
        grads = torch.autograd.grad([o for o, _ in live], inputs, [s for _, s in live], allow_unused=True)
        for i, grad in enumerate(grads[1 : 1 + len(self.inputs)]):
            if grad is not None:
                total = self.totals[i]
                self.totals[i] = grad if total is None else total.add_(grad) if total._version else total + grad
        if moving:
            assert self.moved is not None
            if grads[-2] is not None:
                if rows is None:
                    self.moved[0] += grads[-2]
                else:
                    self.moved[0].index_add_(0, rows, grads[-2])
            if grads[-1] is not None:
                self.moved += grads[-1]
        assert grads[0] is not None
        return grads[0]

    def at_event(
        self, field: Field, attempt: Attempt, t: Tensor, h: Tensor, y: Tensor, rows: Tensor | None, slot: int
    ) -> list[tuple[Tensor, Tensor]]:
        """The event's state and time where it lies in this step, with their cotangents."""
        tape, count = self.tape, self.tape.slot.shape[0]
        assert tape.event_slot is not None and tape.event_fraction is not None and self.event_seed is not None
        pick = (lambda v: v) if rows is None else (lambda v: v.index_select(0, rows))
        hit = pick(tape.event_slot) == slot
        if not bool(hit.any()):
            return []
        fraction = attached_fraction(self.stepper, field, attempt, t, h, y, pick(tape.event_fraction), hit)
        state = self.stepper.interpolate(attempt, t, h, y, fraction)
        return [
            (state, torch.where(hit.unsqueeze(-1), pick(self.event_seed), 0.0)),
            (t + fraction * h, torch.where(hit, pick(self.seeds[count + 1, :, 0]), 0.0)),
        ]
