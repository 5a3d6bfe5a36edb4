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
INTEGRAL, PROPORTIONAL = 0.7, 0.4  # exponents over the order: of this error, of the last one
WORST = 1e10  # error ratio that stands for NaN
TINY, TINY_OF_SPAN = 4.0, 1e-22  # a step below 4 eps of the time, or this part of the whole, does not go on


class Progress(NamedTuple):
    """Where every row stands: all that one step changes."""

    t: Tensor  # (rows,)
    left: Tensor  # (rows,) signed time to the end
    h: Tensor  # (rows,) the next signed step; 0: the row has ended
    y: Tensor  # (rows, n)
    start: Tensor | None  # (rows, n) f(t, y)
    memory: Tensor  # (rows,) what the controller remembers of the last error
    ratio: Tensor  # (rows,) error of the last trial, 1 where it equals the tolerance, times `Controller.limit`


@dataclass(frozen=True, eq=False)
class Controller:
    """Norms, acceptance and the next step size of all rows.

    The norm of an error is the root of the mean over the row's whole state of ``(e / (atol + rtol max(|y0|, |y1|)))^2``. The
    next step is ``h SAFETY norm^(-0.7/q) last_norm^(0.4/q)``, q the power of h with which the error falls. Norms are kept
    times ``limit``, chosen such that its powers make up the safety factor.

    Args:
        rtol: relative tolerance, divided by ``limit / sqrt(n)``.
        atol: absolute tolerance, the same.
        worst: what replaces NaN.
        limit: norm of an error that equals the tolerance.
        power: exponent of this error's norm.
        remembered: exponent of the last one's.
        direction: 1 or -1 when all rows go forwards or backwards, else 0.

    References:
        Gustafsson. "Control theoretic techniques for stepsize selection in explicit Runge-Kutta methods". ACM TOMS 17 (1991).
        Hairer, Wanner. "Solving Ordinary Differential Equations II", IV.2.
    """

    rtol: float
    atol: Tensor  # ()
    worst: Tensor  # ()
    limit: float
    power: float
    remembered: float
    direction: int

    @classmethod
    def of(cls, solver: AbstractOneStep, y: Tensor, span: Tensor) -> Controller:
        """The controller of a solver for states like ``y`` and signed lengths of time ``span``."""
        rtol, atol = tolerances(solver, y.dtype)
        q = max(1, solver.error_order)
        limit = SAFETY ** (-q / (INTEGRAL - PROPORTIONAL))
        shrink = max(1, y.shape[-1]) ** 0.5 / limit
        forwards, backwards = torch.stack(((span >= 0).all(), (span <= 0).all())).tolist()
        direction = 1 if forwards else -1 if backwards else 0
        worst = y.new_tensor(WORST * limit)
        power, remembered = -INTEGRAL / q, PROPORTIONAL / q
        return cls(rtol * shrink, y.new_tensor(atol * shrink), worst, limit, power, remembered, direction)

    def norm(self, v: Tensor, size: Tensor) -> Tensor:
        """Scaled norms ``(rows,)``, times ``limit``."""
        return torch.linalg.vector_norm(v / torch.add(self.atol, size, alpha=self.rtol), dim=-1)

    def advance(
        self, now: Progress, end: Tensor, y: Tensor, error: Tensor, ok: Tensor | None, slope: Tensor | None
    ) -> tuple[Progress, Tensor]:
        """The rows after a trial step to ``y`` with an error estimate, and which of them accepted it."""
        ratio = torch.fmin(self.norm(error, torch.maximum(now.y.abs(), y.abs())), self.worst)
        if ok is not None:
            ratio = torch.where(ok, ratio, self.worst)
        accept = ratio <= self.limit
        factor = ratio.pow(self.power).mul_(now.memory).clamp_(SHRINK, GROW)
        memory = ratio.clamp(1e-4 * self.limit, self.limit).pow_(self.remembered)
        left = now.left - now.h * accept
        h = self.cut(now.h * factor, left)
        column = accept.unsqueeze(-1)
        start = None if slope is None or now.start is None else torch.where(column, slope, now.start)
        return Progress(end - left, left, h, torch.where(column, y, now.y), start, memory, ratio), accept

    def cut(self, h: Tensor, left: Tensor) -> Tensor:
        """Steps that do not pass the end."""
        if self.direction > 0:
            return torch.minimum(h, left)
        if self.direction < 0:
            return torch.maximum(h, left)
        return torch.where(h.abs() >= left.abs(), left, h)


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
    d0, d1 = control.norm(y, size) / control.limit, control.norm(slope, size) / control.limit
    tiny = (d0 < 1e-5) | (d1 < 1e-5)
    h0 = torch.where(tiny, 1e-6 * span.abs(), 0.01 * d0 / torch.where(tiny, 1.0, d1))
    h0 = torch.minimum(torch.nan_to_num(h0, 0.0, 0.0, 0.0), span.abs())
    step = torch.copysign(h0, span)
    moved = field(t + step, y + step.unsqueeze(-1) * slope)
    d2 = control.norm(moved - slope, size) / control.limit / torch.where(h0 > 0, h0, 1.0)
    steep = torch.maximum(d1, d2)
    flat = ~(steep > 1e-15)
    guess = (0.01 / torch.where(flat, 1.0, steep)) ** (1 / (solver.order + 1))
    h1 = torch.where(flat, torch.maximum(1e-6 * span.abs(), h0 * 1e-3), guess)
    h = torch.minimum(torch.minimum(100 * h0, torch.nan_to_num(h1, 0.0, 0.0, 0.0)), span.abs())
    # a slope that is not finite leaves no measure: the error control takes over from a small step
    h = torch.where(torch.isfinite(d1 + d2) & (h > 0), h, torch.minimum(h0, 1e-6 * span.abs()))
    return torch.copysign(torch.where(span == 0, 0.0, h), span)
