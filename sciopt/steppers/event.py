"""Where an event function crosses zero inside a step, and the derivative of that place."""

from __future__ import annotations

import torch
from torch import Tensor

from sciopt.steppers.abstract import AbstractOneStep, Attempt
from sciopt.steppers.field import Field

__all__ = ["attached_fraction", "locate"]

HALVINGS = 60


def locate(
    stepper: AbstractOneStep, field: Field, attempt: Attempt, t: Tensor, h: Tensor, y: Tensor, before: Tensor
) -> Tensor:
    """Fraction ``(rows,)`` of the step at which the event function changes its sign, by bisection with secant steps.

    ``before`` ``(rows,)`` is its value at the start of the step. The result is on the far side of the crossing.
    """
    low, high = torch.zeros_like(h), torch.ones_like(h)
    at_low = before
    at_high = value_at(stepper, field, attempt, t, h, y, high)
    for k in range(HALVINGS):
        guess = 0.5 * (low + high)
        if k % 3:  # secant, kept off the ends
            slope = at_high - at_low
            secant = low - at_low * (high - low) / torch.where(slope == 0, 1.0, slope)
            margin = 1e-3 * (high - low)
            usable = (slope != 0) & torch.isfinite(secant)
            guess = torch.where(usable, torch.minimum(torch.maximum(secant, low + margin), high - margin), guess)
        value = value_at(stepper, field, attempt, t, h, y, guess)
        same = torch.sign(value) == torch.sign(before)
        low, at_low = torch.where(same, guess, low), torch.where(same, value, at_low)
        high, at_high = torch.where(same, high, guess), torch.where(same, at_high, value)
    return high


def value_at(
    stepper: AbstractOneStep, field: Field, attempt: Attempt, t: Tensor, h: Tensor, y: Tensor, fraction: Tensor
) -> Tensor:
    """The event function inside the step, ``(rows,)``."""
    return field.event(t + fraction * h, stepper.interpolate(attempt, t, h, y, fraction))


def attached_fraction(
    stepper: AbstractOneStep,
    field: Field,
    attempt: Attempt,
    t: Tensor,
    h: Tensor,
    y: Tensor,
    fraction: Tensor,
    hit: Tensor,
) -> Tensor:
    """The fraction as a differentiable function of everything else, by two Newton steps from its known value.

    Each step doubles the order to which the derivatives are those of the root: two are exact to third order. Rows outside
    ``hit`` keep their fraction.
    """
    for _ in range(2):

        def along(s: Tensor) -> Tensor:
            return value_at(stepper, field, attempt, t, h, y, s)

        value, pull = torch.func.vjp(along, fraction)[:2]
        slope = pull(torch.ones_like(value))[0]  # rows are independent
        usable = hit & (slope != 0)
        fraction = fraction - torch.where(usable, value / torch.where(usable, slope, 1.0), 0.0)
    return fraction
