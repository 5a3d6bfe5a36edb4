"""Kvaerno5: a singly diagonally implicit Runge-Kutta method with an explicit first stage, for stiff systems."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import ClassVar, final

import torch
from torch import Tensor

from sciopt.checks import check_option
from sciopt.steppers.abstract import AbstractOneStep, Attempt, check_one_step, tolerances
from sciopt.steppers.field import Field
from sciopt.steppers.stage_solve import factored, implicit_matrix
from sciopt.transforms import is_wrapped, under_transform

__all__ = ["Kvaerno5"]

GAMMA = 0.26
NODES = (0.0, 0.52, 1.230333209967908, 0.8957659843500759, 0.43639360985864756, 1.0, 1.0)
# Rows: a_ij of stage i below the diagonal; the diagonal is GAMMA, of the first stage zero.
ARGUMENTS = (
    (),
    (0.26,),
    (0.13, 0.84033320996790809),
    (0.22371961478320505, 0.47675532319799699, -0.06470895363112615),
    (0.16648564323248321, 0.10450018841591720, 0.03631482272098715, -0.13090704451073998),
    (0.13855640231268224, 0.0, -0.04245337201752043, 0.02446657898003141, 0.61943039072480676),
    (0.13659751177640291, 0.0, -0.05496908796538376, -0.04118626728321046, 0.62993304899016403, 0.06962479448202728),
)
CAUTION = 5.0  # the difference of the pair is smaller than the error at the steps it allows: measured on DETEST A2
MIDDLE = 1  # the stage that the parabola of the dense output goes through, at NODES[1]


@final
@dataclass(frozen=True, kw_only=True)
class Kvaerno5(AbstractOneStep):
    """Kvaerno's 5(4) ESDIRK method: seven stages, six of them implicit, one factorisation for all of them.

    A-stable, L-stable and stiffly accurate. Its stages are solved by simplified Newton iterations to well below the
    tolerance and differentiated by the implicit function theorem, up to second order. `Rodas5P` is usually faster; this
    one is the check by a method of another kind, and the choice where the Jacobian is only roughly known (its error slows
    the iterations and does not enter the value). Dense output: cubic Hermite, of order 3; of order 2 with a mass matrix.

    Args:
        rtol: relative tolerance of the local error; default 1e-6 in float64, 1e-4 in float32.
        atol: absolute tolerance of the local error, in units of the state; default 1e-9 in float64, 1e-6 in float32.
        max_steps: largest number of trial steps of one problem.
        first_step: length of the first step, in units of time; None: chosen from the first slopes.
        num_steps: take this many equal steps without error control; None: adaptive steps.
        newton_steps: largest number of Newton iterations of a stage; the step is rejected when they do not suffice.
        newton_tolerance: size of the last Newton update, as a fraction of the tolerances.
        nonnegative: reject steps that end with a component below ``-atol``; see `Rodas5P`.

    Raises:
        ValueError: for options out of range.

    Example:
        >>> from sciopt import InitialValue, best_response
        >>> times = torch.tensor([0.0, 1.0], dtype=torch.float64)
        >>> fast = InitialValue(lambda t, y, rate: -rate * (y - torch.cos(t)), times)
        >>> rate = torch.tensor(1e6, dtype=torch.float64)
        >>> solution = best_response(fast, rate, init=torch.zeros(1, dtype=torch.float64), solver=Kvaerno5())
        >>> round(solution.value[-1].item(), 6), bool(solution.num_steps < 60)  # cos(1)
        (0.540303, True)

    References:
        Kvaerno. "Singly diagonally implicit Runge-Kutta methods with an explicit first stage". BIT Numerical Mathematics
        44, 2004. Hairer, Wanner. "Solving Ordinary Differential Equations II". Springer 1996. Section IV.8.
    """

    order: ClassVar[int] = 5
    error_order: ClassVar[int] = 5
    dense_order: ClassVar[int] = 2
    takes_mass: ClassVar[bool] = True
    rtol: float | None = None
    atol: float | None = None
    max_steps: int = 10_000
    first_step: float | None = None
    num_steps: int | None = None
    newton_steps: int = 10
    newton_tolerance: float = 1e-4
    nonnegative: bool = False

    def __post_init__(self) -> None:
        check_one_step(self)
        count, size = self.newton_steps, self.newton_tolerance
        ok = isinstance(count, int) and not isinstance(count, bool) and count >= 1
        check_option("Kvaerno5", "newton_steps", count, ok, "to be an int >= 1", "Use about ten.")
        check_option("Kvaerno5", "newton_tolerance", size, 0 < size < 1, "in (0, 1)", "Leave the default.")

    def attempt(self, field: Field, t: Tensor, h: Tensor, y: Tensor, start: Tensor | None = None) -> Attempt:
        """See `AbstractOneStep.attempt`."""
        first = h.unsqueeze(-1) * (field(t, y) if start is None else start)
        quiet = field if field.lean else field.bind([a.detach() for a in field.args])
        with torch.no_grad():
            run, ok = self._settled(Stages(quiet, t.detach(), h.detach(), y.detach(), first.detach()))
        if torch.is_grad_enabled() or under_transform():
            # the steps of a backward pass are differentiated once
            order = 1 if field.lean and not under_transform() else 2
            run = attached(Stages(field, t, h, y, first), run.places, order)
        if self.nonnegative:
            ok = ok & (run.places[-1] >= -tolerances(self, y.dtype)[1]).all(-1).detach()
        dense = (run.slopes[0], run.slopes[-1]) if field.mass is None else (run.places[MIDDLE],)
        return Attempt(y=run.places[-1], error=CAUTION * (run.places[-1] - run.places[-2]), dense=dense, ok=ok)

    def interpolate(self, attempt: Attempt, t: Tensor, h: Tensor, y: Tensor, fraction: Tensor) -> Tensor:
        """See `AbstractOneStep.interpolate`."""
        s = fraction.unsqueeze(-1)
        if len(attempt.dense) == 2:
            first, last = attempt.dense
            rise = attempt.y - y
            return y + s * rise + s * (1 - s) * ((1 - s) * (first - rise) - s * (last - rise))
        c = NODES[MIDDLE]
        middle, end = attempt.dense[0] - y, attempt.y - y
        return y + s * (1 - s) / (c * (1 - c)) * middle + s * (s - c) / (1 - c) * end

    def _newton_size(self, y: Tensor) -> Tensor:
        """Largest last update of the iterations, ``(rows, n)``; without error control as small as rounding lets it."""
        eps = torch.finfo(y.dtype).eps
        largest = y.abs().amax(-1, keepdim=True)
        if self.num_steps is not None:
            return 100 * eps * (1 + largest).expand_as(y)
        rtol, atol = tolerances(self, y.dtype)
        return torch.maximum(self.newton_tolerance * (atol + rtol * y.abs()), 10 * eps * largest)

    def _chord(self, run: Stages, i: int, place: Tensor) -> Callable[[Tensor], Tensor]:
        """The solve with the Jacobian at a place of stage i."""
        jacobian = run.field.jacobian(run.t + NODES[i] * run.h, place)
        return factored(implicit_matrix(run.field, jacobian, GAMMA * run.h))

    def _settled(self, run: Stages) -> tuple[Stages, Tensor]:
        """All stages by simplified Newton iterations, and in which rows all of them came to rest."""
        size = self._newton_size(run.y)
        chord = self._chord(run, 0, run.y)
        ok = torch.ones_like(run.h, dtype=torch.bool)
        for i in range(1, len(NODES)):
            run.open(i)
            place = run.predicted(i)
            done = torch.zeros_like(ok)
            for _ in range(self.newton_steps):
                if self.num_steps is not None:  # a step that cannot be made smaller has to be solved
                    chord = self._chord(run, i, place)
                update = chord(run.residual(i, place))
                place = torch.where(done.unsqueeze(-1), place, place - update)
                done = done | ((update / size).square().mean(-1) <= 1)
                # elsewhere looking costs a synchronisation
                if done.device.type == "cpu" and not is_wrapped(done) and bool(done.all()):
                    break
            ok = ok & done & torch.isfinite(place).all(-1)
            run.close(place)
        return run, ok


def attached(run: Stages, places: list[Tensor], order: int) -> Stages:
    """The same stages with derivatives in everything they depend on, up to ``order``.

    A Newton step at a root has the derivative of the root, and its own Jacobian matters from the second order on.
    """
    for i in range(1, len(NODES)):
        run.open(i)
        place = places[i].detach()
        if order == 1:
            with torch.no_grad():
                place = run.corrected(i, place, frozen=True)
        else:
            place = run.corrected(i, place)
        run.close(run.corrected(i, place, frozen=order == 1))
    return run


class Stages:
    """The stages of one step as far as they are known: their places Y_i and scaled slopes ``z_i = h f(Y_i) = h M Y_i'``."""

    def __init__(self, field: Field, t: Tensor, h: Tensor, y: Tensor, first: Tensor) -> None:
        self.field, self.t, self.h, self.y = field, t, h, y
        self.step = h.unsqueeze(-1)
        self.slopes = [first]
        self.places = [y]
        self.known = first

    def open(self, i: int) -> None:
        """Begin stage i: the sum over the slopes before it."""
        self.known = torch.stack(self.slopes, -1) @ self.y.new_tensor(ARGUMENTS[i])

    def predicted(self, i: int) -> Tensor:
        """Place of stage i by extrapolation of the ones before."""
        if i == 1:
            return self.y
        if i == len(NODES) - 1:
            return self.places[-1]
        weights = self.y.new_tensor(extrapolation(i))
        return torch.stack(self.places, -1) @ weights

    def residual(self, i: int, place: Tensor) -> Tensor:
        """``M (Y - y) - sum_j a_ij z_j - gamma h f(t + c_i h, Y)``, zero at the stage."""
        return self.moved(place) - self.known - GAMMA * self.step * self.field(self.t + NODES[i] * self.h, place)

    def moved(self, place: Tensor) -> Tensor:
        """``M (Y - y)``."""
        return place - self.y if self.field.mass is None else (place - self.y) @ self.field.mass.to(place).mT

    def corrected(self, i: int, place: Tensor, *, frozen: bool = False) -> Tensor:
        """A Newton step with the Jacobian of the place itself, which is not differentiated if ``frozen``."""
        residual = self.residual(i, place)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            jacobian = self.field.jacobian(self.t + NODES[i] * self.h, place)
            matrix = implicit_matrix(self.field, jacobian, GAMMA * self.h)
        return place - factored(matrix)(residual)

    def close(self, place: Tensor) -> None:
        """Settle the stage: its slope follows from its place without the noise of another evaluation."""
        self.places.append(place)
        self.slopes.append((self.moved(place) - self.known) / GAMMA)


def extrapolation(i: int) -> list[float]:
    """Weights of the places before stage i in the polynomial through them, at its node."""
    nodes = NODES[:i]
    return [
        prod((NODES[i] - other) / (node - other) for k, other in enumerate(nodes) if k != j)
        for j, node in enumerate(nodes)
    ]
