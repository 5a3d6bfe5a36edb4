"""Symplectic integration: half kick, drift, half kick."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from sciopt.steppers.abstract import AbstractOneStep, Attempt, check_one_step
from sciopt.steppers.field import Field

__all__ = ["Leapfrog"]


@final
@dataclass(frozen=True, kw_only=True)
class Leapfrog(AbstractOneStep):
    """Leapfrog (Stoermer-Verlet), order 2, equal steps: for separable Hamiltonian systems over long times.

    The flat state is positions, then as many momenta (velocities); the slope of the positions must depend on the momenta
    alone and that of the momenta on the positions alone (and both on t). Then each step is symplectic and reversible: the
    energy oscillates by O(h^2) and does not drift. Three evaluations of the whole right-hand side a step.

    Args:
        num_steps: take this many equal steps (needed).
        rtol: not read: the method estimates no error.
        atol: not read.
        max_steps: not read.
        first_step: not read.

    Raises:
        ValueError: without ``num_steps``, for options out of range, for a state of odd length.

    Example:
        >>> from sciopt import InitialValue, best_response
        >>> turn = InitialValue(lambda t, y, w: torch.stack([y[1], -w * y[0]]), torch.tensor([0.0, 100.0]))
        >>> start = torch.tensor([1.0, 0.0])
        >>> y = best_response(turn, torch.tensor(1.0), init=start, solver=Leapfrog(num_steps=2000)).value[-1]
        >>> f"{float(y.square().sum()):.3f}"  # a hundred units of time later
        '1.000'

    References:
        Hairer, Lubich, Wanner. "Geometric numerical integration illustrated by the Stoermer-Verlet method". Acta Numerica 12
        (2003).
    """

    order: ClassVar = 2
    error_order: ClassVar = 0
    dense_order: ClassVar = 3
    first_same: ClassVar = True
    num_steps: int | None = None
    rtol: float | None = None
    atol: float | None = None
    max_steps: int = 100_000
    first_step: float | None = None

    def __post_init__(self) -> None:
        check_one_step(self)

    def attempt(self, field: Field, t: Tensor, h: Tensor, y: Tensor, start: Tensor | None = None) -> Attempt:
        half = halves(y)
        size = h.unsqueeze(-1)
        slope = field(t, y) if start is None else start
        q, p = y[:, :half], y[:, half:]
        p = p + 0.5 * size * slope[:, half:]
        q = q + size * field(t + 0.5 * h, torch.cat([q, p], -1))[:, :half]
        p = p + 0.5 * size * field(t + h, torch.cat([q, p], -1))[:, half:]
        moved = torch.cat([q, p], -1)
        if field.bare:
            return Attempt(moved)
        end = field(t + h, moved)
        return Attempt(moved, None, (size * slope, moved, size * end), None, end)

    def interpolate(self, attempt: Attempt, t: Tensor, h: Tensor, y: Tensor, fraction: Tensor) -> Tensor:
        first, moved, last = attempt.dense
        s = fraction.unsqueeze(-1)
        chord = moved - y
        return y + s * (chord + (s - 1) * ((1 - 2 * s) * chord + (s - 1) * first + s * last))


def halves(y: Tensor) -> int:
    """Number of positions in a flat state."""
    if y.shape[-1] % 2:
        raise ValueError(
            f"Leapfrog: expected a state of positions and as many momenta, got {y.shape[-1]} numbers. Stack them so."
        )
    return y.shape[-1] // 2
