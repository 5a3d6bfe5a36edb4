"""The problem of the logistic bars: one log-penalty for each of 10,000 weights, 200 rows, condition about 100."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import final

import torch
from torch import Tensor
from torch.nn.functional import softplus

__all__ = ["Logistic", "make_logistic"]


@final
@dataclass(frozen=True)
class Logistic:
    """Inner: ``mean softplus(-A theta) + 1/2 sum exp(phi) theta^2``; outer: the same mean on other rows, no penalty.

    Args:
        train: rows times labels ``(n, d)``.
        validation: rows times labels ``(n, d)``.
        phi: log-penalties ``(d,)`` at which the hypergradient is taken.
    """

    train: Tensor
    validation: Tensor
    phi: Tensor

    def inner_loss(self, theta: Tensor, phi: Tensor) -> Tensor:
        """Penalised training loss."""
        return softplus(-(self.train @ theta)).mean() + 0.5 * (phi.exp() * theta * theta).sum()

    def outer_loss(self, theta: Tensor) -> Tensor:
        """Validation loss."""
        return softplus(-(self.validation @ theta)).mean()

    @property
    def start(self) -> Tensor:
        """Zero weights."""
        return torch.zeros_like(self.phi)

    @cached_property
    def _solution(self) -> tuple[Tensor, Tensor, Tensor]:
        """theta*, the curvatures of the rows, and the hypergradient: Newton in the n x n dual, to rounding."""
        n, penalty = len(self.train), self.phi.exp()
        gram = (self.train / penalty) @ self.train.T

        def solve(curvature: Tensor, rhs: Tensor) -> Tensor:
            inner = torch.linalg.solve(torch.diag(1 / curvature) + gram, self.train @ (rhs / penalty))
            return (rhs - self.train.T @ inner) / penalty

        theta, curvature = self.start, torch.full_like(self.train[:, 0], 0.25 / n)
        for _ in range(30):
            slope = torch.sigmoid(-(self.train @ theta))
            curvature = slope * (1 - slope) / n
            theta = theta - solve(curvature, penalty * theta - self.train.T @ slope / n)
        outside = -self.validation.T @ torch.sigmoid(-(self.validation @ theta)) / len(self.validation)
        return theta, curvature, -solve(curvature, outside) * penalty * theta

    @property
    def reference(self) -> Tensor:
        """The hypergradient, exact to rounding."""
        return self._solution[2]

    @cached_property
    def spectrum(self) -> tuple[float, float]:
        """Smallest and largest eigenvalue of the Hessian at theta* (power iteration; the smallest penalty)."""
        _, curvature, _ = self._solution
        vector = torch.ones_like(self.phi)
        for _ in range(200):
            vector = vector / vector.norm()
            vector = self.train.T @ (curvature * (self.train @ vector)) + self.phi.exp() * vector
        return float(self.phi.exp().min()), float(vector.norm())

    def error(self, grad: Tensor) -> float:
        """Relative error of a hypergradient."""
        return float((grad - self.reference).norm() / self.reference.norm())


def make_logistic(n: int = 200, d: int = 10_000, spread: float = 300.0, seed: int = 0) -> Logistic:
    """Random data whose Hessian has eigenvalues spread evenly on a log scale over two decades (a hard spectrum).

    Args:
        n: rows for training and for validation.
        d: weights.
        spread: largest squared singular value over the typical penalty; 300 gives condition 102.
        seed: of the data.
    """
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    basis = torch.linalg.qr(randn(d, n))[0]
    scales = torch.logspace(0, -math.log10(spread), n, dtype=torch.float64).sqrt()
    coordinates = torch.cat([torch.linalg.qr(randn(n, n))[0], randn(n, n) / math.sqrt(n)])
    rows = (coordinates * scales) @ basis.T * math.sqrt(4 * n)
    score = rows @ basis @ (randn(n) / scales)
    chance = torch.sigmoid(3 * score / score.std())
    labels = torch.where(chance > torch.rand(2 * n, generator=generator, dtype=torch.float64), 1.0, -1.0)
    signed = rows * labels.double().unsqueeze(-1)
    jitter = 2 * torch.rand(d, generator=generator, dtype=torch.float64) - 1
    return Logistic(signed[:n].clone(), signed[n:].clone(), 0.3 * jitter - math.log(spread))
