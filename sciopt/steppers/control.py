"""Step sizes: one PI controller per row, and the first step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sciopt.steppers.abstract import AbstractOneStep, tolerances
from sciopt.steppers.field import Field

__all__ = ["Controller", "Progress", "first_step"]

SAFETY = 0.9
SHRINK, GROW = 0.2, 10.0
STRETCH = 1.01  # a step that nearly reaches the end is stretched or cut to end there
WORST = 1e10  # error ratio that stands for NaN


class Progress(NamedTuple):
    """Where every row stands: all that one step changes."""

    t: Tensor  # (rows,)
    h: Tensor  # (rows,) the next signed step; 0: the row has ended
    y: Tensor  # (rows, n)
    size: Tensor  # (rows, n) |y|
    start: Tensor | None  # (rows, n) f(t, y)
    memory: Tensor  # (rows,) what the controller remembers of the last accepted error
    ratio: Tensor  # (rows,) error of the last trial over the tolerance


@dataclass(frozen=True, eq=False)
class Controller:
    """Norms, acceptance and the next step size of all rows.

    The norm of an error is the root of the mean over the row's whole state of ``(e / (atol + rtol max(|y0|, |y1|)))^2``.

    References:
        Gustafsson. "Control theoretic techniques for stepsize selection in explicit Runge-Kutta methods". ACM TOMS 17 (1991).
        Hairer, Wanner. "Solving Ordinary Differential Equations II", IV.2.
    """

    rtol: float
    atol: Tensor  # ()
    worst: Tensor  # ()
    norm_scale: float
    integral: float
    accepted: float
    remembered: float

    @classmethod
    def of(cls, solver: AbstractOneStep, y: Tensor) -> Controller:
        """The controller of a solver for states like ``y``."""
        rtol, atol = tolerances(solver, y.dtype)
        q = max(1, solver.error_order)
        n = max(1, y.shape[-1])
        return cls(rtol, y.new_tensor(atol), y.new_tensor(WORST), n**-0.5, -1 / q, -0.7 / q, 0.4 / q)

    def norm(self, v: Tensor, size: Tensor) -> Tensor:
        """Scaled root-mean-square norms ``(rows,)``."""
        scale = torch.add(self.atol, size, alpha=self.rtol)
        return torch.linalg.vector_norm(v / scale, dim=-1) * self.norm_scale

    def advance(
        self, now: Progress, end: Tensor, y: Tensor, error: Tensor, ok: Tensor | None, slope: Tensor | None
    ) -> tuple[Progress, Tensor]:
        """The rows after a trial step to ``y`` with an error estimate, and which of them accepted it."""
        size = y.abs()
        ratio = torch.fmin(self.norm(error, torch.maximum(now.size, size)), self.worst)
        accept = ratio <= 1.0
        if ok is not None:
            accept = accept & ok
            ratio = torch.where(ok, ratio, self.worst)
        power = torch.where(accept, self.accepted, self.integral)
        factor = (SAFETY * ratio.pow(power)).mul_(torch.where(accept, now.memory, 1.0)).clamp_(SHRINK, GROW)
        memory = torch.where(accept, ratio.clamp(min=1e-4).pow_(self.remembered), now.memory)
        return self.land(now, end, y, size, slope, accept, now.h * factor, memory, ratio), accept

    def land(
        self,
        now: Progress,
        end: Tensor,
        y: Tensor,
        size: Tensor,
        slope: Tensor | None,
        accept: Tensor,
        h: Tensor,
        memory: Tensor,
        ratio: Tensor,
    ) -> Progress:
        """Move the accepted rows, and cut the next step ``h`` to what is left."""
        left = end - now.t
        t = torch.where(accept, torch.where(now.h == left, end, now.t + now.h), now.t)
        left = end - t
        h = torch.where(h.abs() * STRETCH >= left.abs(), left, h)
        column = accept.unsqueeze(-1)
        start = None if slope is None or now.start is None else torch.where(column, slope, now.start)
        return Progress(t, h, torch.where(column, y, now.y), torch.where(column, size, now.size), start, memory, ratio)


def first_step(
    solver: AbstractOneStep, control: Controller, field: Field, t: Tensor, end: Tensor, y: Tensor, slope: Tensor
) -> Tensor:
    """Signed first steps ``(rows,)``: from the sizes of the state, its slope, and the slope's change over a small step.

    References:
        Hairer, Norsett, Wanner. "Solving Ordinary Differential Equations I", II.4.
    """
    span = end - t
    if solver.first_step is not None:
        return torch.copysign(torch.clamp(span.abs(), max=solver.first_step), span)
    size = y.abs()
    d0, d1 = control.norm(y, size), control.norm(slope, size)
    tiny = (d0 < 1e-5) | (d1 < 1e-5)
    h0 = torch.where(tiny, 1e-6 * span.abs(), 0.01 * d0 / torch.where(tiny, 1.0, d1))
    h0 = torch.minimum(torch.nan_to_num(h0, 0.0, 0.0, 0.0), span.abs())
    step = torch.copysign(h0, span)
    moved = field(t + step, y + step.unsqueeze(-1) * slope)
    d2 = control.norm(moved - slope, size) / torch.where(h0 > 0, h0, 1.0)
    steep = torch.maximum(d1, d2)
    flat = ~(steep > 1e-15)
    guess = (0.01 / torch.where(flat, 1.0, steep)) ** (1 / (solver.order + 1))
    h1 = torch.where(flat, torch.maximum(1e-6 * span.abs(), h0 * 1e-3), guess)
    h = torch.minimum(torch.minimum(100 * h0, torch.nan_to_num(h1, 0.0, 0.0, 0.0)), span.abs())
    # a slope that is not finite leaves no measure: the error control takes over from a small step
    h = torch.where(torch.isfinite(d1 + d2) & (h > 0), h, torch.minimum(h0, 1e-6 * span.abs()))
    return torch.copysign(torch.where(span == 0, 0.0, h), span)
