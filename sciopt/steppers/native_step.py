"""One adaptive explicit step in a few calls of compiled code; the right-hand side alone is left to PyTorch."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from sciopt.steppers.abstract import AbstractOneStep, Attempt
from sciopt.steppers.control import GROW, SHRINK, TINY, TINY_OF_SPAN, Controller, Progress
from sciopt.steppers.field import Field
from sciopt.steppers.native_library import library
from sciopt.steppers.tableau import AbstractExplicit, Tableau, Workspace, workspace
from sciopt.steppers.tape import Segment

__all__ = ["NativeStep", "native_for"]

REALS = {torch.float64: ("f64", ctypes.c_double), torch.float32: ("f32", ctypes.c_float)}


def native_for(
    stepper: AbstractOneStep, field: Field, control: Controller, y: Tensor, span: Tensor
) -> tuple[NativeStep | None, str]:
    """The compiled step for this run, and a note; None where it is not wanted or cannot serve."""
    if not isinstance(stepper, AbstractExplicit) or not stepper.compiled:
        return None, ""
    table = stepper.tableau
    if stepper.num_steps is not None or not table.error or not table.last:
        return None, "eager: equal steps are not compiled"
    if not field.lean or y.device.type != "cpu" or y.dtype not in REALS:
        return None, f"eager: compiled steps serve tensors on the CPU outside transforms, not {y.dtype} on {y.device}"
    found, note = library()
    if found is None:
        return None, f"eager: {note}"
    longest = float(span.max()) if span.numel() else 0.0
    return NativeStep(found, table, control, longest, y.dtype), note


class NativeStep:
    """A table and a controller as the compiled code reads them; the controller's memory is kept as a logarithm here.

    Args:
        found: the library.
        table: a method whose last stage is taken at the result, with an error estimate.
        control: the run's controller.
        span: longest time from start to end.
        dtype: float64 or float32.
    """

    def __init__(
        self, found: ctypes.CDLL, table: Tableau, control: Controller, span: float, dtype: torch.dtype
    ) -> None:
        name, real = REALS[dtype]
        s = table.stages
        self.table, self.count = table, s
        self.space: Workspace | None = None
        self.size = ctypes.sizeof(real)
        rows = [w for row in table.a for w in (*row, *(0.0,) * (s - len(row)))]
        # the plan holds addresses only: the arrays must live as long
        self.arrays = [(real * len(values))(*values) for values in (rows, table.c, table.error)]
        integers = [(k, ctypes.c_int64) for k in ("rows", "n", "stages", "direction")]
        pointers = [(k, ctypes.c_void_p) for k in ("a", "c", "e")]
        numbers = {
            "rtol": control.rtol,
            "atol": float(control.atol),
            "worst": float(control.worst),
            "limit": control.limit,
            "power": control.power,
            "remembered": control.remembered,
            "shrink": SHRINK,
            "grow": GROW,
            "span": TINY_OF_SPAN * span,
            "eps": TINY * torch.finfo(dtype).eps,
        }
        fields = [*integers, *pointers, *((k, real) for k in numbers), ("tiny", ctypes.c_int64)]
        kind: Any = type("Plan", (ctypes.Structure,), {"_fields_": fields})
        places = [ctypes.addressof(array) for array in self.arrays]
        self.plan = kind(0, 0, s, control.direction, *places, *numbers.values(), 0)
        address, whole = ctypes.c_void_p, ctypes.c_int64
        parts = ("begin", "stage", "finish")
        self.begin, self.stage, self.finish = (getattr(found, f"{name}_{part}") for part in parts)
        self.begin.argtypes, self.begin.restype = [address] * 8, None
        self.stage.argtypes, self.stage.restype = [address, whole, *[address] * 5], None
        self.finish.argtypes, self.finish.restype = [address] * 13, whole
        self.at = ctypes.addressof(self.plan)

    def step(self, field: Field, now: Progress, end: Tensor, accepted: Tensor) -> tuple[Progress, Tensor, int, Attempt]:
        """One trial step of every row, what was accepted, how many rows go on, and the attempt.

        Args:
            field: the right-hand side.
            now: where the rows stand.
            end: their last times ``(rows,)``.
            accepted: counts of accepted steps ``(rows,)`` int64, raised in place.
        """
        kept = Segment(field, None)
        new, running, _, (moved, slope) = self.several(field, now, end, accepted, 1, -1, kept)
        assert self.space is not None
        return new, kept.accept[0], running, Attempt(moved, None, (self.space.dense,), None, slope)

    def several(
        self, field: Field, now: Progress, end: Tensor, accepted: Tensor, most: int, active: int, kept: Segment | None
    ) -> tuple[Progress, int, int, tuple[Tensor, Tensor]]:
        """Trial steps of all rows, until ``most`` were taken or the number of rows that go on is no longer ``active``.

        Args:
            field: the right-hand side.
            now: where the rows stand.
            end: their last times ``(rows,)``.
            accepted: counts of accepted steps ``(rows,)`` int64, raised in place.
            most: at most so many.
            active: number of rows that go on.
            kept: where the steps are noted for a derivative; None: nowhere.

        Returns:
            Where the rows stand, how many go on, steps taken, and the last step's result with the slope there.
        """
        start = field(now.t, now.y) if now.start is None else now.start
        # at hand, so that their memory lives until the last call
        end, state, y, start = solid(end), torch.stack(now[:3] + now[5:7]), solid(now.y), solid(start)
        rows, n = y.shape
        last, plan, at, size = self.count - 1, self.plan, self.at, self.size
        if self.space is None or self.space.stages.shape[1:] != y.shape:
            self.space = workspace(self.table, field, y)
            plan.rows, plan.n = rows, n
        k, end_at, accepted_at = (v.data_ptr() for v in (self.space.stages, end, accepted))
        stride = rows * n * size
        stage, times, evaluate = self.stage, (last, rows), field
        if field.time_shape is not None:
            evaluate, times = field.at, (last, *field.time_shape)
        accept = torch.empty(rows, dtype=torch.bool)
        spare: tuple[Tensor, Tensor, Tensor] | None = None
        running, taken, moved, slope = active, 0, y, start
        while taken < most and (running == active or not taken):
            block, instants = y.new_empty(last, rows, n), y.new_empty(times)
            to, state_at, y_at = block.data_ptr(), state.data_ptr(), y.data_ptr()
            h_at, start_at = state_at + 2 * rows * size, start.data_ptr()
            self.begin(at, state_at, h_at, y_at, start_at, k, instants.data_ptr(), to)
            i = 0
            for instant, moved in zip(instants.unbind(0), block.unbind(0), strict=True):
                slope = evaluate(instant, moved)
                if not slope.is_contiguous() or slope.is_neg():
                    slope = solid(slope)
                i += 1
                to += stride
                if i < last:
                    stage(at, i, slope.data_ptr(), h_at, y_at, k, to)
            if kept is not None:
                t, _, h, _, _ = state.unbind(0)
                accept = torch.empty(rows, dtype=torch.bool)
                for notes, value in ((kept.t, t), (kept.h, h), (kept.y, y), (kept.accept, accept)):
                    notes.append(value)
            if kept is not None or spare is None:
                new = torch.empty_like(state), torch.empty_like(y), torch.empty_like(y)
            else:
                new = spare
            running = self.finish(
                at, slope.data_ptr(), state_at, y_at, start_at, end_at, k, to - stride, new[0].data_ptr(),
                new[1].data_ptr(), new[2].data_ptr(), accept.data_ptr(), accepted_at,
            )  # fmt: skip
            spare = (state, y, start) if taken else None  # what came from outside stays as it was
            state, y, start = new
            taken += 1
        if field.time_shape is not None:
            field.system.counter["dynamics"] += last * taken
        t, left, h, memory, ratio = state.unbind(0)
        return Progress(t, left, h, y, start, memory, ratio), running, taken, (moved, slope)

    @property
    def suspects(self) -> bool:
        """Whether a row goes on with a step that may be too small to be one."""
        return bool(self.plan.tiny)


def solid(tensor: Tensor) -> Tensor:
    """The tensor as its memory alone tells it."""
    if tensor.is_contiguous() and not tensor.is_neg():
        return tensor
    return tensor.resolve_neg().contiguous()
