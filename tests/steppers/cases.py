"""Every stepper with what the contract tests need to know of it, and textbook problems with closed solutions."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sciopt import InitialValue, best_response
from sciopt.solution import Solution
from sciopt.steppers import RK4, AbstractOneStep, Bosh3, Dopri5, Euler, Kvaerno5, Midpoint, Rodas5P, Tsit5

F64 = torch.float64


@dataclass(frozen=True)
class StepperCase:
    """A one-step method, and two numbers of equal steps between which its order shows."""

    kind: type[AbstractOneStep]
    coarse: int
    fine: int

    def __str__(self) -> str:
        return self.kind.__name__

    def fixed(self, count: int) -> AbstractOneStep:
        """The method with equal steps."""
        return self.kind(num_steps=count)  # pyright: ignore[reportCallIssue]

    def adaptive(self, **options: Any) -> AbstractOneStep:
        """The method with error control."""
        return self.kind(**options)


# every one-step method is in this list; contract tests run over it
STEPPER_CASES = [
    StepperCase(Tsit5, 128, 256),
    StepperCase(Dopri5, 64, 128),
    StepperCase(Bosh3, 32, 64),
    StepperCase(RK4, 16, 32),
    StepperCase(Midpoint, 64, 128),
    StepperCase(Euler, 256, 512),
    StepperCase(Rodas5P, 32, 64),
    StepperCase(Kvaerno5, 16, 32),
]
ADAPTIVE_CASES = [case for case in STEPPER_CASES if case.kind.error_order]


@dataclass(frozen=True)
class Textbook:
    """``y' = slope(t, y)`` with its solution."""

    name: str
    slope: Callable[[Tensor, Tensor], Tensor]
    exact: Callable[[Tensor], Tensor]
    end: float

    def __str__(self) -> str:
        return self.name


TEXTBOOK = [
    Textbook("constant", lambda t, y: torch.full_like(y, 2.0), lambda t: 1 + 2 * t, 5.0),
    Textbook("sine", lambda t, y: torch.cos(t) + 0 * y, torch.sin, 5.0),
    Textbook("linear", lambda t, y: t - y, lambda t: t - 1 + 2 * torch.exp(-t), 5.0),
    Textbook("exponential", lambda t, y: y, torch.exp, 3.0),
    Textbook("DETEST A1", lambda t, y: -y, lambda t: torch.exp(-t), 3.0),
    Textbook("DETEST A2", lambda t, y: -(y**3) / 2, lambda t: 1 / torch.sqrt(1 + t), 20.0),
    Textbook("DETEST A3", lambda t, y: y * torch.cos(t), lambda t: torch.exp(torch.sin(t)), 20.0),
    Textbook("DETEST A4", lambda t, y: y / 4 * (1 - y / 20), lambda t: 20 / (1 + 19 * torch.exp(-t / 4)), 20.0),
]


def spiral(t: Tensor, y: Tensor) -> Tensor:
    """DETEST A5, ``y' = (y - t) / (y + t)`` from y(0) = 4: this is constant along its solution, and zero."""
    return torch.log(torch.hypot(t, y)) + torch.atan2(y, t) - math.log(4.0) - math.pi / 2


def solve(
    dynamics: Callable[[Tensor, Any, Any], Any], times: Tensor, init: Any, outer: Any = None, **options: Any
) -> Solution:
    """`best_response` to an initial-value problem; ``solver``, ``hypergradient`` and ``throw`` are the entry's options."""
    entry = {name: options.pop(name) for name in ("solver", "hypergradient", "throw") if name in options}
    outer = torch.ones((), dtype=times.dtype, device=times.device) if outer is None else outer
    return best_response(InitialValue(dynamics, times, **options), outer, init=init, **entry)
