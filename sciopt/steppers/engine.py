"""One loop for every one-step method: per-row steps, one host synchronisation per step, finished rows dropped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sciopt.problem.system import Oracle, System
from sciopt.solution import Solution, Status
from sciopt.steppers.abstract import AbstractOneStep, Attempt
from sciopt.steppers.algebraic import start_trouble
from sciopt.steppers.control import TINY, TINY_OF_SPAN, Controller, Progress, first_step
from sciopt.steppers.event import locate
from sciopt.steppers.field import Field
from sciopt.steppers.native_step import native_for
from sciopt.steppers.tape import Segment, Tape, borrowed
from sciopt.transforms import is_wrapped, under_transform

__all__ = ["integrate", "march"]

SHARE = 0.85  # of the rows that still run; below it dropping the others is cheaper than carrying them
LOOK_EVERY = 16  # steps between two looks for rows whose step has vanished
RUNNING = int(Status.RUNNING)


def integrate(stepper: AbstractOneStep, oracle: Oracle, x: Tensor) -> Solution:
    """The solution of an `InitialValue`, nothing recorded; ``value`` is ``(planes, *batch, n)``.

    The planes are the output times and, for a problem with an event, the state there and the time there (in the first
    entry of every row).
    """
    return march(stepper, oracle.system, oracle.args, x, keep=False)[0]


def march(
    stepper: AbstractOneStep,
    system: System,
    args: Sequence[Tensor],
    x: Tensor,
    *,
    keep: bool,
    moving: bool = False,
) -> tuple[Solution, Tape | None]:
    """Integrate all rows.

    Args:
        stepper: the method.
        system: the problem.
        args: its arguments.
        x: start ``(*batch, n)``.
        keep: whether the steps are kept for a derivative.
        moving: whether the output times carry one.
    """
    with torch.no_grad():
        run = Run(stepper, system, [a.detach() for a in args], x.detach(), keep, moving)
        run.advance()
        solution = run.solution()
        if keep:
            run.tape.cut_off(run.books[0] != int(Status.CONVERGED), run.origin, run.times[0])
        return solution, run.tape if keep else None


@dataclass(eq=False)
class Crossing:
    """Where the event function stands, and where it crossed, over the whole batch."""

    value: Tensor  # (running rows,)
    slot: Tensor  # (rows,)
    fraction: Tensor
    time: Tensor
    state: Tensor  # (rows, n)


class Run:
    """One integration: the rows that run, and the whole batch as it was left."""

    def __init__(
        self, stepper: AbstractOneStep, system: System, args: Sequence[Tensor], x: Tensor, keep: bool, moving: bool
    ) -> None:
        lean = not under_transform() and not any(is_wrapped(c) for c in system.captured)
        field = Field(system, args, lean=lean)
        if field.mass is not None and not type(stepper).takes_mass:
            raise ValueError(
                f"{type(stepper).__name__}: expected a problem without `mass`, got a matrix {tuple(field.mass.shape)}. Use "
                "Rodas5P or Kvaerno5, or multiply the right-hand side by its inverse."
            )
        self.stepper, self.system, self.keep = stepper, system, keep
        self.field, self.shape = field, system.batch_shape
        y = x.reshape(field.rows, field.size)
        self.start = self.origin = y
        times = field.times(y).contiguous()
        self.times, self.inner = times, self.interior(times, moving)
        count = y.shape[0]
        self.control = Controller.of(stepper, y, times[-1] - times[0])
        self.span = (times[-1] - times[0]).abs()
        self.native, self.note = native_for(stepper, field, self.control, y, self.span)
        self.rows: Tensor | None = None  # of the whole batch that still run; None: all
        self.code = torch.where(field.sound(), RUNNING, int(Status.INFEASIBLE))
        nothing = torch.zeros(count, dtype=torch.int64, device=y.device)
        self.last = y.clone()
        self.last_time = times[0].clone()
        self.ratio = torch.zeros_like(times[0])
        self.reported: list[tuple[Tensor, Tensor, Tensor]] = []
        self.reached = nothing.clone()  # outputs of each running row that are done
        slots = torch.full(times.shape, -1, dtype=torch.int64, device=y.device)
        self.tape = Tape([Segment(field, None)], slots)
        self.count = 0
        self.end = torch.where(self.code == RUNNING, times[-1], times[0])
        self.used = 0
        self.undefined: Tensor | None = None  # rows without a finite slope at their start
        self.now = self.begin(y, times[0])
        if self.native is not None:
            self.now = self.now._replace(memory=self.now.memory.log())
        self.accepted = nothing.clone()
        # of every running row: status, and as it ended: steps, evaluations and tries (before: -1)
        self.book = torch.stack((self.code, nothing, nothing, nothing - 1))
        self.books = self.book  # of the whole batch, as it was left
        self.crossing = self.watch(y, times[0])

    def interior(self, times: Tensor, moving: bool) -> Tensor | None:
        """Times ``(rows, m)``, sign changed to grow, at which outputs are interpolated; None when there are none."""
        between = times[1:] if moving else times[1:-1]  # without a derivative the last is the state at the end
        if not len(between):
            return None
        sign = torch.sign(times[-1] - times[0])
        return (between * sign).T.contiguous()

    def begin(self, y: Tensor, t: Tensor) -> Progress:
        """The first slope and step of every row."""
        stepper, field, end = self.stepper, self.field, self.end
        before = field.system.counter["dynamics"]
        if stepper.num_steps is not None:
            h = (end - t) / stepper.num_steps
            slope = field(t, y) if type(stepper).first_same else None
        else:
            slope = field(t, y)
            h = first_step(stepper, self.control, field, t, end, y, slope)
        self.used = field.system.counter["dynamics"] - before
        if slope is not None:
            bad = ~torch.isfinite(slope).all(-1) & (self.code == RUNNING)
            self.code = torch.where(bad, int(Status.NONFINITE), self.code)
            h = torch.where(bad, 0.0, h)
            slope = torch.where(bad.unsqueeze(-1), 0.0, slope)
            if self.keep and bool(bad.any()):
                self.undefined, self.origin = bad, borrowed(y, ~bad)
        if field.mass is not None:
            trouble = start_trouble(field, t, y, self.control.norm)
            self.code = torch.where((trouble != int(Status.CONVERGED)) & (self.code == RUNNING), trouble, self.code)
            h = torch.where(trouble != int(Status.CONVERGED), 0.0, h)
        self.code = torch.where((self.code == RUNNING) & (t == end), int(Status.CONVERGED), self.code)
        start = slope if type(stepper).first_same else None
        memory = torch.full_like(t, self.control.limit**self.control.remembered)
        return Progress(t, end - t, h, y, start, memory, torch.zeros_like(t))

    def watch(self, y: Tensor, t: Tensor) -> Crossing | None:
        """The event function at the start."""
        if self.field.problem.event is None:
            return None
        none = torch.full_like(self.accepted, -1)
        return Crossing(self.field.event(t, y), none, torch.zeros_like(t), self.times[-1].clone(), y.clone())

    def advance(self) -> None:
        """Step until every row has ended."""
        stepper, field = self.stepper, self.field
        active = self.settle(int(torch.count_nonzero(self.now.h)), -1)
        while active:
            if self.count >= stepper.max_steps and stepper.num_steps is None:
                self.fail(self.now.h != 0, Status.MAX_STEPS)
                break
            field, now, before = self.field, self.now, self.field.system.counter["dynamics"]
            if self.native is not None and self.inner is None and self.crossing is None and self.undefined is None:
                most = min(LOOK_EVERY - self.count % LOOK_EVERY, stepper.max_steps - self.count)
                kept = self.tape.segments[-1] if self.keep else None
                self.now, left, taken, _ = self.native.several(field, now, self.end, self.accepted, most, active, kept)
                self.used += field.system.counter["dynamics"] - before
                self.count += taken
                active = self.settle(self.look_again(left), active)
                continue
            known: int | None = None
            if self.native is not None:
                new, accept, known, trial = self.native.step(field, now, self.end, self.accepted)
            else:
                trial = stepper.attempt(field, now.t, now.h, now.y, now.start)
                if stepper.num_steps is None:
                    assert trial.error is not None
                    new, accept = self.control.advance(now, self.end, trial.y, trial.error, trial.ok, trial.end)
                else:
                    new, accept = self.equal_step(now, trial)
                self.accepted.add_(accept)
            if self.keep:
                segment = self.tape.segments[-1]
                segment.t.append(now.t)
                segment.h.append(now.h)
                segment.y.append(now.y if self.undefined is None else borrowed(now.y, ~self.undefined))
                segment.accept.append(accept)
            if self.crossing is not None:
                new, known = self.stop_at_event(self.crossing, now, new, trial, accept), None
            self.now = new
            self.used += field.system.counter["dynamics"] - before
            if self.inner is None:
                left = int(torch.count_nonzero(new.h)) if known is None else known
            else:
                running = torch.count_nonzero(new.h)
                reached = torch.searchsorted(self.inner, self.horizon(now, new).unsqueeze(-1), right=True).squeeze(-1)
                left, due = torch.stack((running, (reached - self.reached).sum())).tolist()
                if due:
                    self.report(now, trial, reached, due)
            self.count += 1
            active = self.settle(self.look_again(left), active)

    def equal_step(self, now: Progress, trial: Attempt) -> tuple[Progress, Tensor]:
        """The rows after a step without error control; one that is not finite ends."""
        accept = torch.isfinite(trial.y).all(-1)
        if trial.ok is not None:
            accept = accept & trial.ok
        bad = ~accept & (now.h != 0)
        last = self.count + 1 >= (self.stepper.num_steps or 1)
        h = torch.where(bad, 0.0, self.end - now.t if last else now.h)
        wrong = torch.where(torch.isfinite(trial.y).all(-1), 2.0, self.control.worst)
        ratio = torch.where(bad, wrong, now.ratio)
        left = torch.zeros_like(now.left) if last else now.left - now.h
        left = torch.where(accept, left, now.left)
        if last:
            h = torch.zeros_like(h)
        column = accept.unsqueeze(-1)
        start = None if trial.end is None or now.start is None else torch.where(column, trial.end, now.start)
        moved = torch.where(column, trial.y, now.y)
        return Progress(self.end - left, left, h, moved, start, now.memory, ratio), accept

    def horizon(self, now: Progress, new: Progress) -> Tensor:
        """How far each row's outputs are known, in growing time."""
        sign = torch.sign(self.end - self.times_of(0))
        if self.crossing is None:
            return new.t * sign
        at = self.crossing if self.rows is None else None
        slot = self.crossing.slot if at is not None else self.crossing.slot[self.rows]
        time = self.crossing.time if at is not None else self.crossing.time[self.rows]
        ended = slot >= 0
        before = torch.nextafter(
            time * sign, torch.full_like(time, -torch.inf)
        )  # at the event the state is that of the event
        return torch.where(ended, before, new.t * sign)

    def times_of(self, k: int) -> Tensor:
        """Output time k of the running rows."""
        return self.times[k] if self.rows is None else self.times[k].index_select(0, self.rows)

    def report(self, now: Progress, trial: Attempt, reached: Tensor, due: int) -> None:
        """Interpolate the outputs that lie in this step."""
        assert self.inner is not None
        counts = reached - self.reached
        index = torch.arange(len(counts), device=counts.device)
        row = torch.repeat_interleave(index, counts, output_size=due)
        offset = torch.arange(due, device=counts.device) - (counts.cumsum(0) - counts).index_select(0, row)
        k = self.reached.index_select(0, row) + offset + 1  # the first output is the start
        whole = row if self.rows is None else self.rows.index_select(0, row)
        t, h, y = (v.index_select(0, row) for v in (now.t, now.h, now.y))
        dense = tuple(d.index_select(0, row) for d in trial.dense)
        part = Attempt(trial.y.index_select(0, row), None, dense)
        fraction = (self.times[k, whole] - t) / torch.where(h == 0, 1.0, h)
        self.reported.append((k, whole, self.stepper.interpolate(part, t, h, y, fraction)))
        self.tape.slot[k, whole] = self.count
        self.reached = reached

    def stop_at_event(
        self, crossing: Crossing, now: Progress, new: Progress, trial: Attempt, accept: Tensor
    ) -> Progress:
        """End the rows whose event function has changed its sign in an accepted step."""
        direction = self.field.problem.event_direction
        before, after = crossing.value, self.field.event(new.t, new.y)
        rising, falling = (before < 0) & (after >= 0), (before > 0) & (after <= 0)
        hit = rising if direction > 0 else falling if direction < 0 else rising | falling
        hit = hit & accept & (now.h != 0)
        crossing.value = torch.where(accept & (after != 0), after, before)
        if not bool(hit.any()):
            return new
        fraction = locate(self.stepper, self.field, trial, now.t, now.h, now.y, before)
        state = self.stepper.interpolate(trial, now.t, now.h, now.y, fraction)
        time = now.t + fraction * now.h
        for name, value in (
            ("slot", torch.full_like(self.accepted, self.count)),
            ("fraction", fraction),
            ("time", time),
        ):
            self.write(getattr(crossing, name), value, hit)
        self.write(crossing.state, state, hit)
        column = hit.unsqueeze(-1)
        return new._replace(
            h=torch.where(hit, 0.0, new.h), y=torch.where(column, state, new.y), t=torch.where(hit, time, new.t)
        )

    def write(self, whole: Tensor, value: Tensor, mask: Tensor) -> None:
        """Write running rows of ``mask`` into a tensor of the whole batch."""
        column = mask.reshape(-1, *(1,) * (value.ndim - 1))
        if self.rows is None:
            whole.copy_(torch.where(column, value, whole))
        else:
            whole.index_copy_(0, self.rows, torch.where(column, value, whole.index_select(0, self.rows)))

    def look_again(self, left: int) -> int:
        """How many rows go on, after a look at them now and then."""
        if not left or self.count % LOOK_EVERY or not (self.native is None or self.native.suspects):
            return left
        return self.look(left)

    def look(self, left: int) -> int:
        """Fail the rows whose steps have become too small to go on."""
        now = self.now
        eps = torch.finfo(now.t.dtype).eps
        span = self.span if self.rows is None else self.span.index_select(0, self.rows)
        floor = torch.maximum(TINY * eps * now.t.abs(), TINY_OF_SPAN * span)
        stuck = (now.h != 0) & (now.h.abs() <= floor) & (now.h != self.end - now.t)
        if not bool(stuck.any()):
            return left
        start = self.start if self.rows is None else self.start.index_select(0, self.rows)
        grown = now.y.abs().amax(-1) > 1e6 * (1 + start.abs().amax(-1))
        self.fail(stuck & grown, Status.DIVERGED)
        ahead = self.field(now.t + 64 * torch.copysign(floor, now.h), now.y)
        bad = (now.ratio >= self.control.worst) | ~torch.isfinite(ahead).all(-1)
        self.fail(stuck & ~grown & bad, Status.NONFINITE)
        self.fail(stuck & ~grown & ~bad, Status.STAGNATED)
        return int(torch.count_nonzero(self.now.h))

    def fail(self, mask: Tensor, status: Status) -> None:
        """End running rows with a status."""
        self.book[0].masked_fill_(mask & (self.book[0] == RUNNING), int(status))
        self.now = self.now._replace(h=torch.where(mask, 0.0, self.now.h))

    def settle(self, left: int, before: int) -> int:
        """Note the rows that have just ended, and drop ended rows when there are enough of them."""
        now = self.now
        if left == before:
            return left
        code = self.book[0]
        ended = (now.h == 0) & (self.book[3] < 0)
        arrived = now.t == self.end
        if self.crossing is not None:
            slot = self.crossing.slot
            arrived = arrived | ((slot if self.rows is None else slot.index_select(0, self.rows)) >= 0)
        if self.stepper.num_steps is not None:
            failed = torch.where(now.ratio >= self.control.worst, int(Status.NONFINITE), int(Status.STAGNATED))
            outcome = torch.where(now.ratio > 1, failed, int(Status.CONVERGED))
        else:
            outcome = torch.where(arrived, int(Status.CONVERGED), int(Status.STAGNATED))
        self.book[0].copy_(torch.where(ended & (code == RUNNING), outcome, code))
        self.book[1].copy_(torch.where(ended, self.accepted, self.book[1]))
        self.book[2].masked_fill_(ended, self.used)
        self.book[3].masked_fill_(ended, self.count)
        if not left or left > SHARE * len(now.t) or not self.system.restrictable or not self.field.direct:
            return left
        self.shrink(now.h != 0)
        return left

    def shrink(self, keep: Tensor) -> None:
        """Go on with some rows."""
        self.leave()
        chosen = torch.nonzero(keep).squeeze(-1)
        self.rows = chosen if self.rows is None else self.rows.index_select(0, chosen)
        take = lambda v: v.index_select(0, chosen)  # noqa: E731
        now = self.now
        self.now = Progress(*(None if v is None else take(v) for v in now))  # pyright: ignore[reportArgumentType]
        self.end, self.accepted, self.reached = take(self.end), take(self.accepted), take(self.reached)
        self.book = self.book.index_select(1, chosen)
        self.inner = None if self.inner is None else take(self.inner)
        self.undefined = None  # they have ended
        if self.crossing is not None:
            self.crossing.value = take(self.crossing.value)
        whole = Field(self.system, self.field.args, lean=self.field.lean)
        self.field = whole.restricted(self.rows)
        self.tape.segments.append(Segment(self.field, self.rows))

    def leave(self) -> None:
        """Write what is known of the running rows into the whole batch."""
        everything = torch.ones_like(self.now.h, dtype=torch.bool)
        for whole, value in ((self.last, self.now.y), (self.last_time, self.now.t), (self.ratio, self.now.ratio)):
            self.write(whole, value, everything)
        if self.rows is not None:
            self.books.index_copy_(1, self.rows, self.book)

    def solution(self) -> Solution:
        """All rows' outputs."""
        self.settle(0, 1)
        self.leave()
        count = len(self.times)
        out = self.last.unsqueeze(0).repeat(count + 2 * (self.crossing is not None), 1, 1)
        out[0] = self.start
        if self.reported:
            k, rows, values = (torch.cat(parts) for parts in zip(*self.reported, strict=True))
            out[k, rows] = values
        if self.crossing is not None:
            out[count] = self.last
            out[count + 1] = 0.0
            time = torch.where(self.crossing.slot >= 0, self.crossing.time, self.last_time)
            out[count + 1, :, 0] = time
            self.tape.event_slot, self.tape.event_fraction = self.crossing.slot, self.crossing.fraction
        shape = self.shape
        code, steps, evaluations, tries = (v.reshape(shape) for v in self.books)
        aux: dict[str, Any] = {
            "rejected": (tries - steps).clamp(min=0),
            "evaluations": evaluations,
        }
        if self.note and not under_transform():  # vmap returns tensors only
            aux["compiled"] = self.note
        return Solution(
            value=out.reshape(len(out), *shape, self.field.size),
            status_code=code,
            residual_norm=(self.ratio / self.control.limit).reshape(shape),
            num_steps=steps,
            aux=aux,
        )
