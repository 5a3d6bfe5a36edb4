"""The adjoint equation marched backwards from output time to output time, and the quadrature for the arguments."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Any, final

import torch
from numpy.polynomial.legendre import leggauss
from torch import Tensor

from sciopt.hypergradients.abstract import Request
from sciopt.hypergradients.continuous import Trial, check_backward
from sciopt.params import ravel
from sciopt.problem import InitialValue
from sciopt.problem.system import System
from sciopt.solution import Solution
from sciopt.steppers.abstract import AbstractOneStep
from sciopt.steppers.adjoint import walk_back
from sciopt.steppers.engine import march
from sciopt.steppers.field import Field
from sciopt.steppers.tape import Tape
from sciopt.transforms import under_transform

__all__ = ["Law", "exact_walk", "one_step_of", "pull_backwards"]


@final
@dataclass(frozen=True, eq=False)
class Law:
    """How the state is known while the adjoint is marched.

    Args:
        width: entries of the marched state: n for the adjoint alone, 2 n with the state beside it.
        look: ``(t, marched, rows) -> (y, adjoint)``, both ``(m, n)``; ``rows`` numbers them in the batch.
        begin: ``(k, adjoint) -> marched`` at output time k.
    """

    width: int
    look: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
    begin: Callable[[int, Tensor], Tensor]


def one_step_of(owner: str, solver: Any, what: str) -> AbstractOneStep:
    """A solver that must be a one-step method."""
    if not isinstance(solver, AbstractOneStep):
        raise TypeError(
            f"{owner}: expected `{what}` to be one of the project's one-step methods, got {type(solver).__name__}. Use Tsit5, "
            "or TorchDiffEqAdjoint with TorchDiffEq."
        )
    return solver


def pull_backwards(owner: str, trial: Trial, stepper: AbstractOneStep, law: Law, cotangent: Tensor) -> list[Tensor]:
    """Cotangents of ``(x0, *trial.inputs)`` from those of the planes ``(k, *batch, n)``."""
    field, rows = trial.field, trial.field.rows
    seeds = cotangent.reshape(len(cotangent), rows, field.size)
    planes = trial.value.reshape(seeds.shape)
    with torch.no_grad():
        times = field.times(planes[0])
    totals, adjoint = trial.totals(), torch.zeros_like(planes[0])
    moved = torch.zeros_like(times)
    moving = any(c is field.problem.times for c in field.system.captured)
    count = len(times)
    if stepper.num_steps is not None and count > 2:
        stepper = replace(stepper, num_steps=ceil(stepper.num_steps / (count - 1)))  # pyright: ignore[reportArgumentType]
    for k in range(count - 1, 0, -1):
        if moving:
            moved[k] = (seeds[k] * slope(field, times[k], planes[k])).sum(-1)
        adjoint = adjoint + seeds[k]
        span = torch.stack([times[k], torch.where(trial.good, times[k - 1], times[k])])
        solution, tape = solve_segment(stepper, trial, law, span, law.begin(k, adjoint))
        check_backward(trial.request, owner, solution)
        adjoint = solution.value[-1].reshape(rows, law.width)[:, -field.size :]
        integrate_arguments(stepper, tape, trial, law, totals)
    if moving:
        moved[0] = -(adjoint * slope(field, times[0], planes[0])).sum(-1)
        add_times(trial, moved, totals)
    return [(adjoint + seeds[0]).reshape(cotangent.shape[1:]), *totals]


def slope(field: Field, t: Tensor, y: Tensor) -> Tensor:
    """The right-hand side, without a derivative."""
    with torch.no_grad():
        return field(t, y)


def restricted(field: Field, rows: Tensor | None) -> Field:
    """The field of some rows of the batch, bound to the same tensors."""
    return field if rows is None else field.restricted(rows)


def adjoint_problem(trial: Trial, law: Law, span: Tensor) -> InitialValue:
    """The adjoint equation of all rows, which can drop some."""
    everything = torch.arange(trial.field.rows, device=span.device)

    def of(rows: Tensor | None) -> InitialValue:
        field = restricted(trial.field, rows)
        whole = everything if rows is None else rows

        def dynamics(t: Tensor, marched: Tensor, phi: Tensor) -> Tensor:
            t = t.reshape(-1)
            y, adjoint = law.look(t, marched, whole)
            if under_transform():  # an implicit stepper asks for derivatives of this in its turn
                out, pull = torch.func.vjp(lambda y: field(t, y), y)[:2]
                pulled = pull(adjoint)[0]
                return -pulled if law.width == field.size else torch.cat([out, -pulled], -1)
            with torch.enable_grad():
                y = y.detach().requires_grad_()
                out = field(t, y)
                (pulled,) = torch.autograd.grad(out, y, adjoint, allow_unused=True, materialize_grads=True)
            return -pulled if law.width == field.size else torch.cat([out.detach(), -pulled], -1)

        restrict = of if rows is None and trial.field.system.restrictable and trial.field.direct else None
        chosen = span if rows is None else span.index_select(1, rows)
        return InitialValue(dynamics, chosen, batch_ndim=1, restrict=restrict)

    return of(None)


def solve_segment(
    stepper: AbstractOneStep, trial: Trial, law: Law, span: Tensor, marched: Tensor
) -> tuple[Solution, Tape]:
    """From one output time to the one before."""
    layout, x = ravel(marched, 1)
    system = System(
        problem=adjoint_problem(trial, law, span), layout=layout, outer_spec=layout.spec, num_outer=1, counter=Counter()
    )
    solution, tape = march(stepper, system, [x.new_zeros(())], x, keep=True)
    assert tape is not None
    return solution, tape


def integrate_arguments(
    stepper: AbstractOneStep, tape: Tape, trial: Trial, law: Law, totals: list[Tensor], nodes: int = 3
) -> None:
    """Add ``integral adjoint^T df/d(args) dt`` over the steps of a tape, by Gauss quadrature on their dense output."""
    if not trial.inputs:
        return
    points, weights = leggauss(nodes)
    everything = torch.arange(trial.field.rows, device=totals[0].device)
    for segment in tape.segments:
        if not segment.t:
            continue
        whole = everything if segment.rows is None else segment.rows
        field = restricted(trial.field, segment.rows)
        used = torch.stack(segment.accept).any(1).tolist()
        for j, h in enumerate(segment.sizes().unbind(0)):
            if not used[j]:
                continue
            t, state = segment.t[j], segment.y[j]
            with torch.no_grad():
                attempt = stepper.attempt(segment.field, t, h, state)
            for point, weight in zip(points, weights, strict=True):
                fraction = torch.full_like(t, float((point + 1) / 2))
                with torch.no_grad():
                    marched = stepper.interpolate(attempt, t, h, state, fraction)
                    y, adjoint = law.look(t + fraction * h, marched, whole)
                with torch.enable_grad():
                    out = field(t + fraction * h, y.detach())
                    if not out.requires_grad:
                        return  # the arguments do not enter
                seed = adjoint * (-0.5 * float(weight) * h).unsqueeze(-1)
                add(totals, torch.autograd.grad(out, trial.inputs, seed, allow_unused=True))


def add(totals: list[Tensor], found: Sequence[Tensor | None]) -> None:
    """Sum what was found into the totals."""
    for total, part in zip(totals, found, strict=True):
        if part is not None:
            total.add_(part)


def add_times(trial: Trial, moved: Tensor, totals: list[Tensor]) -> None:
    """Add what the derivatives in every row's times mean for the tensor of times."""
    with torch.enable_grad():
        times = trial.field.times(trial.value[0])
    if times.requires_grad:
        add(totals, torch.autograd.grad(times, trial.inputs, moved, allow_unused=True))


def exact_walk(stepper: AbstractOneStep, tape: Tape, trial: Trial, cotangent: Tensor) -> list[Tensor]:
    """Cotangents of ``(x0, *trial.inputs)`` of the steps that were taken."""
    if not tape.segments[0].field.lean:
        raise NotImplementedError(
            "AbstractContinuousAdjoint: expected `measure` outside torch.func transforms, got a call inside. Measure by "
            "plain autograd."
        )
    needs = [True, *(i in trial.wanted for i in range(len(trial.args)))]
    found = walk_back(stepper, tape, trial.args, cotangent, needs)
    return [t if t is not None else torch.zeros_like(cotangent[0]) for t in found if t is not None]


def forward(request: Request, x0: Tensor, args: Sequence[Tensor], *, keep: bool) -> tuple[Solution, Tape | None]:
    """The forward solve, with ``keep`` its steps."""
    assert isinstance(request.solver, AbstractOneStep)
    return march(request.solver, request.system, args, x0, keep=keep)
