"""Choose the method from declared structure, sizes and a cost model, and say why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from math import isqrt
from typing import final

from torch import Tensor

from sciopt.checks import check_option
from sciopt.hypergradients.abstract import AbstractHypergradient, Request
from sciopt.hypergradients.closed_form import ClosedForm
from sciopt.hypergradients.implicit import Implicit
from sciopt.hypergradients.unrolled import Unrolled
from sciopt.problem import InitialValue, Minimize, Recurrence
from sciopt.problem.base import AbstractProblem
from sciopt.solution import Solution

__all__ = ["Auto"]

COPIES_PER_STEP = 12  # recorded intermediates of one step, in copies of the state (measured on small networks: 8 to 15)


@final
@dataclass(frozen=True)
class Auto(AbstractHypergradient):
    """Pick an exact method: closed form where declared, implicit where there is a residual, unrolled where there is none.

    | problem | choice |
    | --- | --- |
    | `Minimize` with a declared ``closed_form`` | `ClosedForm` |
    | anything with an optimality residual | `Implicit` with `Cascade`, which falls back when a solve fails |
    | `Recurrence` whose record fits in ``memory`` | `Unrolled` |
    | a longer `Recurrence` | `Unrolled` with sqrt(T) checkpoints |
    | `InitialValue` | `Unrolled`: one state per time step |

    The choice and its reason stand in ``solution.aux["method"]`` and in the notes of `sciopt.hypergradient`.

    Args:
        memory: bytes that the record of an unrolled run may take.

    Example:
        >>> from sciopt import Minimize
        >>> Auto().choose(Minimize(lambda theta, phi: ((theta - phi) ** 2).sum()), 10, 8)[1]
        'Implicit: the problem has an optimality residual'

    References:
        Costs: Chen et al. "Gradient-based Bi-level Optimization for Deep Learning: A Survey", table 6.
    """

    _: KW_ONLY
    memory: int = 2**30

    def __post_init__(self) -> None:
        check_option("Auto", "memory", self.memory, self.memory > 0, "> 0 bytes", "Leave the default of 1 GiB.")

    @property
    def needs_captures(self) -> bool:
        return True

    def choose(self, problem: AbstractProblem, size: int, itemsize: int) -> tuple[AbstractHypergradient, str]:
        """The method and the reason, for a state of ``size`` numbers (all problems of the batch together)."""
        if isinstance(problem, Recurrence):
            need = problem.num_steps * size * itemsize * COPIES_PER_STEP
            if need <= self.memory or problem.trajectory:
                return (
                    Unrolled(),
                    f"Unrolled: a recurrence of {problem.num_steps} steps, about {need / 2**20:.0f} MiB recorded",
                )
            count = max(1, isqrt(problem.num_steps))
            return (
                Unrolled(checkpoints=count),
                f"Unrolled(checkpoints={count}): recording {problem.num_steps} steps would take {need / 2**20:.0f} MiB",
            )
        if isinstance(problem, InitialValue):
            return Unrolled(), "Unrolled: the exact derivative of the time steps, from one state per step"
        if isinstance(problem, Minimize) and problem.closed_form is not None:
            return ClosedForm(problem.closed_form), "ClosedForm: the problem declares its solution as a formula"
        return Implicit(), "Implicit: the problem has an optimality residual"

    def respond(self, request: Request, x0: Tensor, args: Sequence[Tensor]) -> Solution:
        method, reason = self.choose(request.system.problem, x0.numel(), x0.element_size())
        request.record.notes.append(reason)
        return method.respond(request, x0, args)
