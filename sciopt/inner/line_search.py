"""Line searches, one for each problem of the batch: first length, verdict on a trial, next length."""

from __future__ import annotations

import torch
from torch import Tensor

from sciopt.inner.rows import quotient, safe_norm

__all__ = ["acceptable", "first_step_size", "shorten"]

ARMIJO = 1e-4


def first_step_size(x: Tensor, value: Tensor, grad: Tensor) -> Tensor:
    """A cautious first step length for each row: a hundredth of ``|x|``, or what ``|value|`` suggests at the origin."""
    size, slope = safe_norm(x), safe_norm(grad)
    from_value = quotient(value.abs(), slope * slope)
    guess = torch.where(from_value > 0, from_value, quotient(torch.ones_like(slope), slope, 1.0))
    return torch.where(size > 0, quotient(0.01 * size, slope, 1.0), guess)


def acceptable(value: Tensor, slope: Tensor, length: Tensor, trial_value: Tensor, trial_slope: Tensor) -> Tensor:
    """Sufficient decrease where values can show it; near rounding, a slope that does not rise beyond where it began."""
    eps = torch.finfo(value.dtype).eps
    size = value.abs()
    decrease = (trial_value <= value + ARMIJO * length * slope) & (value - trial_value > 10 * eps * size)
    flat = (trial_value <= value + eps ** (2 / 3) * size) & (trial_slope <= -0.9 * slope)
    return (decrease | flat) & torch.isfinite(trial_value) & torch.isfinite(trial_slope)


def shorten(value: Tensor, slope: Tensor, length: Tensor, trial_value: Tensor, trial_slope: Tensor) -> Tensor:
    """Next trial after a rejected one: the minimiser of a cubic, kept in [0.1, 0.5] of the length."""
    a = slope + trial_slope - 3 * quotient(trial_value - value, length)
    square = a * a - slope * trial_slope
    root = torch.where(square > 0, torch.where(square > 0, square, 1.0).sqrt(), 0.0)
    ratio = 1 - quotient(trial_slope + root - a, trial_slope - slope + 2 * root)
    usable = torch.isfinite(ratio)
    return length * torch.where(usable, torch.where(usable, ratio, 0.5).clamp(0.1, 0.5), 0.1)
