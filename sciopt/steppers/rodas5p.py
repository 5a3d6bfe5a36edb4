"""Rodas5P: a Rosenbrock method of order five for stiff systems and index-1 differential-algebraic equations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from sciopt.steppers.abstract import AbstractOneStep, Attempt, check_one_step, tolerances
from sciopt.steppers.field import Field
from sciopt.steppers.rosenbrock_stages import Stages, coefficients, lean_stages, plain_stages
from sciopt.steppers.rosenbrock_tableau import DENSE
from sciopt.transforms import under_transform

__all__ = ["Rodas5P"]


@final
@dataclass(frozen=True, kw_only=True)
class Rodas5P(AbstractOneStep):
    """Rosenbrock-Wanner method of order 5(4) with stiff dense output of order 4: the default for stiff systems.

    L-stable and stiffly accurate, without Newton iterations: each step takes one Jacobian, one LU factorisation and eight
    solves per problem. It keeps linear invariants up to the rounding of the right-hand side, and solves index-1
    differential-algebraic equations (`InitialValue` with a singular ``mass``) from consistent initial values. Give the
    problem its ``jacobian`` where there is a formula: n products by autograd cost more than the rest of a small step. For
    hundreds of unknowns the dense matrices dominate.

    Args:
        rtol: relative tolerance of the local error; default 1e-6 in float64, 1e-4 in float32.
        atol: absolute tolerance of the local error, in units of the state; default 1e-9 in float64, 1e-6 in float32.
        max_steps: largest number of trial steps of one problem.
        first_step: length of the first step, in units of time; None: chosen from the first slopes.
        num_steps: take this many equal steps without error control; None: adaptive steps.
        nonnegative: reject steps that end with a component below ``-atol``, and try a smaller one. Nothing is clipped:
            clipping would break conservation laws and derivatives. A field that pushes a zero component below zero then
            ends with `Status.STAGNATED`.

    Raises:
        ValueError: for options out of range.

    Example:
        >>> from sciopt import InitialValue, best_response
        >>> times = torch.tensor([0.0, 1.0], dtype=torch.float64)
        >>> fast = InitialValue(lambda t, y, rate: -rate * (y - torch.cos(t)), times)
        >>> rate = torch.tensor(1e6, dtype=torch.float64)
        >>> solution = best_response(fast, rate, init=torch.zeros(1, dtype=torch.float64), solver=Rodas5P())
        >>> round(solution.value[-1].item(), 6), bool(solution.num_steps < 60)  # cos(1)
        (0.540303, True)

    References:
        Steinebach. "Construction of Rosenbrock-Wanner method Rodas5P and numerical benchmarks within the Julia Differential
        Equations package". BIT Numerical Mathematics 63:27, 2023. Hairer, Wanner. "Solving Ordinary Differential Equations
        II". Springer 1996. Section IV.7.
    """

    order: ClassVar[int] = 5
    error_order: ClassVar[int] = 5
    dense_order: ClassVar[int] = 4
    takes_mass: ClassVar[bool] = True
    rtol: float | None = None
    atol: float | None = None
    max_steps: int = 10_000
    first_step: float | None = None
    num_steps: int | None = None
    nonnegative: bool = False

    def __post_init__(self) -> None:
        check_one_step(self)

    def attempt(self, field: Field, t: Tensor, h: Tensor, y: Tensor, start: Tensor | None = None) -> Attempt:
        """See `AbstractOneStep.attempt`."""
        moving = h.requires_grad or (field.mass is not None and field.mass.requires_grad)
        if not field.lean or (torch.is_grad_enabled() and (moving or under_transform())):
            stages = plain_stages(field, t, h, y)
        elif torch.is_grad_enabled():
            stages = Stages.apply(field, t, h, y, *field.args).permute(1, 2, 0)
        else:
            stages = lean_stages(field, t, h, y, start).permute(1, 2, 0)
        end = y + stages @ coefficients(y, field)["end"]
        error = stages[..., -1]
        ok = (end >= -tolerances(self, y.dtype)[1]).all(-1) if self.nonnegative else None
        return Attempt(y=end, error=error, dense=(stages,), ok=ok)

    def interpolate(self, attempt: Attempt, t: Tensor, h: Tensor, y: Tensor, fraction: Tensor) -> Tensor:
        """See `AbstractOneStep.interpolate`."""
        k = attempt.dense[0] @ y.new_tensor(DENSE).mT
        s = fraction.unsqueeze(-1)
        bend = k[..., 0] + s * (k[..., 1] + s * k[..., 2])
        return (1 - s) * y + s * (attempt.y + (1 - s) * bend)
