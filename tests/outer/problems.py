"""Bi-level problems with outer optima that are known."""

from __future__ import annotations

import torch
from torch import Tensor

from sciopt import BilevelProblem, Minimize

F64 = torch.float64


def shrinkage(targets: Tensor, data: Tensor) -> tuple[BilevelProblem, Tensor]:
    """Ridge with one penalty per weight, ``theta* = data / (1 + e^phi)``; the optimum is ``phi = log(data/targets - 1)``."""
    inner = Minimize(lambda theta, phi: 0.5 * ((theta - data) ** 2).sum() + 0.5 * (phi.exp() * theta**2).sum())
    problem = BilevelProblem(inner=inner, outer_loss=lambda theta, phi: 0.5 * ((theta - targets) ** 2).sum())
    return problem, (data / targets - 1).log()


def follower(weights: Tensor) -> BilevelProblem:
    """``theta* = phi``; outer loss ``weights . 1 / theta``, falling in every variable: a compliance in small."""
    inner = Minimize(lambda theta, phi: 0.5 * ((theta - phi) ** 2).sum())
    return BilevelProblem(inner=inner, outer_loss=lambda theta, phi: (weights / theta).sum())
