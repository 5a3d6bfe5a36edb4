"""Continuous adjoints on the per-sample engine: along the stored forward solution, or with the state solved back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from sciopt.hypergradients.abstract import Request
from sciopt.hypergradients.adjoint_march import Law, exact_walk, forward, one_step_of, pull_backwards
from sciopt.hypergradients.continuous import AbstractContinuousAdjoint, Trial, run_continuous
from sciopt.solution import Solution
from sciopt.steppers.abstract import AbstractOneStep, Attempt
from sciopt.steppers.kvaerno5 import Kvaerno5
from sciopt.steppers.rodas5p import Rodas5P
from sciopt.steppers.tape import Tape

__all__ = ["Backsolve", "InterpolatedAdjoint"]


@final
@dataclass(frozen=True, kw_only=True)
class InterpolatedAdjoint(AbstractContinuousAdjoint):
    """Solve the adjoint equation backwards along the forward solution's dense output, every row with steps of its own.

    An approximation: it converges to the derivative with the tolerances, and ``measure`` tells how far it is from the exact
    derivative of the steps. Its steps are chosen for the adjoint, so it suits problems whose adjoint is smoother or rougher
    than their state; on others `Unrolled` is exact and costs less (a sixth, on 256 trajectories of a small network). Memory:
    the forward states and, in the backward pass, the dense output.

    Args:
        solver: the stepper of the adjoint equation; None: that of the state, but `Kvaerno5` of the same tolerances for a state
            by `Rodas5P`: Rosenbrock methods use the slope in time, and take small steps across the interpolant's kinks.
        measure: note the relative error against the exact discrete adjoint, at its cost.

    Raises:
        SolveError: in the backward pass, when the adjoint solve fails and the call has ``throw=True``.

    Example:
        >>> from sciopt import InitialValue, best_response
        >>> decay = InitialValue(lambda t, y, rate: -rate * y, times=torch.tensor([0.0, 1.0], dtype=torch.float64))
        >>> rate = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
        >>> one = torch.ones((), dtype=torch.float64)
        >>> best_response(decay, rate, init=one, hypergradient=InterpolatedAdjoint()).value[-1].backward()
        >>> round(rate.grad.item(), 5)  # -exp(-2)
        -0.13534

    References:
        Hindmarsh et al. "SUNDIALS". ACM TOMS 31 (2005), CVODES' adjoint with interpolated checkpoints. Quadrature along the
        adjoint: Norcliffe, Deisenroth. "Faster training of neural ODEs using Gauss-Legendre quadrature". TMLR 2023.
    """

    solver: AbstractOneStep | None = None
    measure: bool = False

    def respond(self, request: Request, x0: Tensor, args: Sequence[Tensor]) -> Solution:
        one_step_of("InterpolatedAdjoint", request.solver, "solver")
        return run_continuous(self, request, x0, args)

    def begin(self, request: Request, x0: Tensor, args: Sequence[Tensor]) -> tuple[Solution, Any]:
        return forward(request, x0, args, keep=True)

    def pull(self, trial: Trial, memory: Any, cotangent: Tensor) -> list[Tensor]:
        forward_stepper = one_step_of("InterpolatedAdjoint", trial.request.solver, "solver")
        path = Path.of(forward_stepper, memory, trial)

        def look(t: Tensor, marched: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
            return path.at(t, rows), marched

        law = Law(trial.field.size, look, lambda k, adjoint: adjoint)
        return pull_backwards("InterpolatedAdjoint", trial, self.solver or backwards(forward_stepper), law, cotangent)

    def exact(self, trial: Trial, memory: Any, cotangent: Tensor) -> list[Tensor]:
        return exact_walk(one_step_of("InterpolatedAdjoint", trial.request.solver, "solver"), memory, trial, cotangent)


def backwards(stepper: AbstractOneStep) -> AbstractOneStep:
    """What solves the adjoint of a state by this stepper."""
    if not isinstance(stepper, Rodas5P) or stepper.num_steps is not None:
        return stepper
    return Kvaerno5(rtol=stepper.rtol, atol=stepper.atol, max_steps=stepper.max_steps)


@final
@dataclass(frozen=True, kw_only=True)
class Backsolve(AbstractContinuousAdjoint):
    """Solve state and adjoint backwards together, from each output time to the one before; no forward step is remembered.

    Between the passes only the outputs are kept. The least to trust: where the forward flow contracts, the backward one
    expands, and its error grows like the contraction. ``measure`` tells how far the result is from the exact derivative of
    the steps (and keeps those). On 256 trajectories of a small network it took 3.4 times as long as `Unrolled`, and as much
    memory at its peak.

    Args:
        solver: the stepper of the backward solve; None: that of the state.
        measure: note the relative error against the exact discrete adjoint, at its cost and memory.

    Raises:
        SolveError: in the backward pass, when the backward solve fails and the call has ``throw=True``.

    Example:
        >>> from sciopt import InitialValue, best_response
        >>> decay = InitialValue(lambda t, y, rate: -rate * y, times=torch.tensor([0.0, 1.0], dtype=torch.float64))
        >>> rate = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
        >>> one = torch.ones((), dtype=torch.float64)
        >>> best_response(decay, rate, init=one, hypergradient=Backsolve()).value[-1].backward()
        >>> round(rate.grad.item(), 5)  # -exp(-2)
        -0.13534

    References:
        Chen et al. "Neural ordinary differential equations". NeurIPS 2018, algorithm 1.
    """

    solver: AbstractOneStep | None = None
    measure: bool = False

    def respond(self, request: Request, x0: Tensor, args: Sequence[Tensor]) -> Solution:
        one_step_of("Backsolve", request.solver, "solver")
        return run_continuous(self, request, x0, args)

    def begin(self, request: Request, x0: Tensor, args: Sequence[Tensor]) -> tuple[Solution, Any]:
        return forward(request, x0, args, keep=self.measure)

    def pull(self, trial: Trial, memory: Any, cotangent: Tensor) -> list[Tensor]:
        size, planes = trial.field.size, trial.value.reshape(len(trial.value), trial.field.rows, -1)

        def look(t: Tensor, marched: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
            return marched[:, :size], marched[:, size:]

        law = Law(2 * size, look, lambda k, adjoint: torch.cat([planes[k], adjoint], -1))
        stepper = self.solver or one_step_of("Backsolve", trial.request.solver, "solver")
        return pull_backwards("Backsolve", trial, stepper, law, cotangent)

    def exact(self, trial: Trial, memory: Any, cotangent: Tensor) -> list[Tensor]:
        return exact_walk(one_step_of("Backsolve", trial.request.solver, "solver"), memory, trial, cotangent)


@final
@dataclass(frozen=True, eq=False)
class Path:
    """The forward solution of every row at any time: its accepted steps, one after the other, with their dense output."""

    stepper: AbstractOneStep
    sign: Tensor  # (rows,) direction of time
    begins: Tensor  # (rows, steps) starts of the steps, times the sign; inf beyond the last
    t: Tensor  # (steps, rows)
    h: Tensor
    y: Tensor  # (steps, rows, n)
    end: Tensor  # (steps, rows, n)
    dense: tuple[Tensor, ...]  # (steps, rows, ...)

    @classmethod
    def of(cls, stepper: AbstractOneStep, tape: Tape, trial: Trial) -> Path:
        """From the steps of a run, tried once more."""
        rows, size = trial.field.rows, trial.field.size
        parts: list[list[Tensor]] = []
        for segment in tape.segments:
            for t, h, y in zip(segment.t, segment.sizes().unbind(0) if segment.t else (), segment.y, strict=True):
                with torch.no_grad():
                    tried = stepper.attempt(segment.field, t, h, y)
                some = [t, h, y, tried.y, *tried.dense]
                parts.append([widened(v.clone(), segment.rows, rows) for v in some])
        if not parts:
            zero = trial.x0.new_zeros(1, rows)
            still = trial.x0.reshape(1, rows, size)
            return cls(stepper, zero[0] + 1, zero.T, zero, zero, still, still, ())
        t, h, y, end, *dense = (torch.stack(v) for v in zip(*parts, strict=True))
        order = torch.argsort((h == 0).to(torch.int8), dim=0, stable=True)[: int((h != 0).sum(0).max().clamp(min=1))]
        t, h, y, end, *dense = (pick(v, order) for v in (t, h, y, end, *dense))
        sign = torch.where(h[0] < 0, -1.0, 1.0).to(t.dtype)
        begins = torch.where(h != 0, t * sign, torch.inf).T.contiguous()
        return cls(stepper, sign, begins, t, h, y, end, tuple(dense))

    def at(self, t: Tensor, rows: Tensor) -> Tensor:
        """States ``(m, n)`` of some rows at times of their own."""
        if not self.dense:
            return self.y[0].index_select(0, rows)
        place = torch.searchsorted(self.begins[rows], (t * self.sign[rows]).unsqueeze(-1), right=True).squeeze(-1)
        place = (place - 1).clamp(min=0)
        t0, h, y, end = (v[place, rows] for v in (self.t, self.h, self.y, self.end))
        dense = tuple(d[place, rows] for d in self.dense)
        still = h == 0
        fraction = torch.where(still, 0.0, (t - t0) / torch.where(still, 1.0, h)).clamp(0.0, 1.0)
        return self.stepper.interpolate(Attempt(end, None, dense), t0, h, y, fraction)


def widened(value: Tensor, rows: Tensor | None, count: int) -> Tensor:
    """Values of some rows as values of all, zero elsewhere."""
    return value if rows is None else value.new_zeros(count, *value.shape[1:]).index_copy_(0, rows, value)


def pick(value: Tensor, order: Tensor) -> Tensor:
    """Entries of each row in the given order of its steps."""
    index = order.reshape(*order.shape, *(1,) * (value.ndim - 2)).expand(*order.shape, *value.shape[2:])
    return torch.gather(value, 0, index)
