"""The steppers' interface: solvers of `InitialValue`, and the one step that most of them are made of."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sciopt.checks import check_option, check_tolerances
from sciopt.inner.abstract import AbstractSolver
from sciopt.problem.evolution import InitialValue
from sciopt.problem.system import Oracle
from sciopt.solution import Solution
from sciopt.steppers.field import Field

__all__ = ["AbstractOneStep", "AbstractStepper", "Attempt", "check_one_step", "tolerances"]


@dataclass(frozen=True, eq=False)
class Attempt:
    """One trial step of every row, accepted or not.

    Args:
        y: state at ``t + h``, ``(rows, n)``.
        error: estimate of its local error, ``(rows, n)``; None for methods without one.
        dense: what `AbstractOneStep.interpolate` needs, tensors with leading dimension ``rows``.
        ok: boolean ``(rows,)``: False where the step failed by itself (stages that did not converge); None: all went well.
        end: ``f(t + h, y)`` where the method knows it, ``(rows, n)``: the next step's ``start``.

    Example:
        >>> Attempt(torch.ones(3, 2), error=torch.zeros(3, 2)).ok is None
        True
    """

    y: Tensor
    error: Tensor | None = None
    dense: tuple[Tensor, ...] = ()
    ok: Tensor | None = None
    end: Tensor | None = None


class AbstractStepper(AbstractSolver):
    """A time integrator. Its flat ``value`` has shape ``(k, *batch, n)``, the start first.

    With an oracle that records (``oracle.differentiable``), `solve` of a stepper that is not an `AbstractOneStep` must be
    differentiable by autograd: that is what `Unrolled` then relies on.
    """

    solves: ClassVar = (InitialValue,)


class AbstractOneStep(AbstractStepper):
    """A method that goes from ``t`` to ``t + h`` by what it finds there. Concrete ones hold configuration only.

    Every field below is an option of every one-step method: tolerances of the local error (None: 1e-6 and 1e-9 in float64,
    1e-4 and 1e-6 in float32), ``max_steps``: trial steps of one row; ``first_step``: size of the first one (None: chosen);
    ``num_steps``: take this many equal steps from the first to the last time, without error control.

    ``order`` is the order of convergence; ``error_order`` the power of h with which the error estimate falls (5 for a 5(4)
    pair), 0 for methods without an estimate, which need ``num_steps``; ``dense_order`` the order of `interpolate`;
    ``first_same`` tells that ``end`` saves the next step an evaluation; ``takes_mass`` that the method solves problems with a
    mass matrix.
    """

    order: ClassVar[int]
    error_order: ClassVar[int]
    dense_order: ClassVar[int]
    first_same: ClassVar[bool] = False
    takes_mass: ClassVar[bool] = False
    rtol: float | None
    atol: float | None
    max_steps: int
    first_step: float | None
    num_steps: int | None

    @abstractmethod
    def attempt(self, field: Field, t: Tensor, h: Tensor, y: Tensor, start: Tensor | None = None) -> Attempt:
        """One trial step from ``y`` ``(rows, n)`` at ``t`` ``(rows,)`` with the signed sizes ``h`` ``(rows,)``.

        Pure in t, h, y and the field's arguments, differentiable to any order by autograd and `torch.func`. A row with
        h = 0 must return its ``y`` with the identity for derivative. ``start`` is ``f(t, y)`` where it is known, and given
        only where nothing is recorded; there (``field.lean``) the tensors of the attempt may be overwritten by the next
        one, ``y`` and ``end`` excepted.
        """

    @abstractmethod
    def interpolate(self, attempt: Attempt, t: Tensor, h: Tensor, y: Tensor, fraction: Tensor) -> Tensor:
        """State at ``t + fraction h`` of some attempt from ``y``, ``(rows, n)``; differentiable, ``fraction`` included."""

    def solve(self, oracle: Oracle, x: Tensor) -> Solution:
        from sciopt.steppers.engine import integrate

        return integrate(self, oracle, x)


def check_one_step(solver: AbstractOneStep) -> None:
    """Ranges of the options that every one-step method has; to be called by ``__post_init__``."""
    owner = type(solver).__name__
    check_tolerances(owner, solver.rtol, 0.0 if solver.atol is None else solver.atol, solver.max_steps)
    if solver.first_step is not None:
        check_option(owner, "first_step", solver.first_step, solver.first_step > 0, "> 0", "Give its length, unsigned.")
    count = solver.num_steps
    if count is not None:
        ok = isinstance(count, int) and not isinstance(count, bool) and count >= 1
        check_option(owner, "num_steps", count, ok, "to be an int >= 1 or None", "Pass the number of equal steps.")
    elif not type(solver).error_order:
        raise ValueError(
            f"{owner}: expected `num_steps`, got None. The method estimates no error: pass the number of equal steps, or use "
            "Tsit5."
        )
    if solver.rtol == 0 and solver.atol == 0 and count is None:
        raise ValueError(f"{owner}: expected `rtol` or `atol` above 0, got 0 and 0. Set at least one of them.")


def tolerances(solver: AbstractOneStep, dtype: torch.dtype) -> tuple[float, float]:
    """``(rtol, atol)`` for a dtype, the defaults filled in."""
    double = dtype == torch.float64
    rtol = (1e-6 if double else 1e-4) if solver.rtol is None else solver.rtol
    atol = (1e-9 if double else 1e-6) if solver.atol is None else solver.atol
    floor = 10 * torch.finfo(dtype).eps
    check_option(
        type(solver).__name__,
        "rtol",
        rtol,
        rtol == 0 or rtol >= floor,
        f"0 or >= {floor:.1e} for {dtype}",
        "Loosen it.",
    )
    return rtol, atol
