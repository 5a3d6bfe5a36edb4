"""Weights of columns and noise by the evidence of a Gaussian process: a bi-level problem with a closed inner form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from sciopt import BilevelProblem, Minimize, optimize
from sciopt.hypergradients import ClosedForm
from sciopt.inner import kernel_ridge
from sciopt.kernels import AbstractKernel, gram
from sciopt.outer import ScipyLBFGSB
from sciopt.solution import Status

__all__ = ["Evidence", "Learned", "held_out", "held_out_together"]

WEIGHT_SPREAD = 1.0  # prior standard deviations of logarithms, unless given
RIDGE, RIDGE_SPREAD = 1e-2, 2.0
LEAST, MOST = 1e-6, 1e2  # of the ridge, relative to the kernel's mean diagonal


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Learned:
    """Hyperparameters found by `Evidence.maximise`.

    Args:
        weights: of the columns ``(c,)``.
        ridge: noise variance over the kernel's variance, for a row of multiplicity 1.
        status: of the outer loop.
        evidence: log evidence plus log prior, in nats, up to a constant.

    Example:
        >>> Learned(weights=torch.ones(1), ridge=0.1, status=Status.CONVERGED, evidence=0.0).ridge
        0.1
    """

    weights: Tensor
    ridge: float
    status: Status
    evidence: float


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Evidence:
    """``argmax_phi log p(targets | theta*(phi), phi) p(phi)``, where theta* is kernel ridge regression in dual form.

    Outer: the logarithms of the columns' weights and of the ridge; inner: the dual weights, in closed form; the kernel's
    variance is profiled out. Priors are log-normal around ``typical`` and 0.01.

    Args:
        kernel: on points.
        points: ``weights (c,) -> (n, *point)``, differentiable.
        targets: ``(n,)``, standardised.
        mass: multiplicities ``(n,)``.
        typical: prior medians of the weights ``(c,)``.
        spread: prior standard deviations of their logarithms ``(c,)``; None: 1.

    Example:
        >>> from sciopt.kernels import RBF
        >>> x = torch.linspace(0, 1, 12, dtype=torch.float64).unsqueeze(-1)
        >>> task = Evidence(
        ...     kernel=RBF(), points=lambda weights: x * weights, targets=torch.sin(6 * x[:, 0]),
        ...     mass=torch.ones(12, dtype=torch.float64), typical=torch.tensor([3.0], dtype=torch.float64),
        ... )
        >>> task.maximise(max_steps=20).ridge < 1e-3
        True

    References:
        Rasmussen, Williams. "Gaussian processes for machine learning". MIT Press, 2006, eq. 5.8.
    """

    kernel: AbstractKernel
    points: Callable[[Tensor], Tensor]
    targets: Tensor
    mass: Tensor
    typical: Tensor
    spread: Tensor | None = None

    def matrix(self, phi: dict[str, Tensor]) -> Tensor:
        """``K / mean diagonal + ridge / mass``."""
        points = self.points(phi["weights"].exp())
        values = gram(self.kernel, points)
        values = values / values.diagonal().mean()
        return values + torch.diag_embed(phi["ridge"].exp() / self.mass)

    def problem(self) -> BilevelProblem:
        """Minus the log evidence and prior over the rows, as a bi-level problem."""

        def inner(theta: Tensor, phi: dict[str, Tensor]) -> Tensor:
            return 0.5 * theta @ self.matrix(phi) @ theta - theta @ self.targets

        def outer(theta: Tensor, phi: dict[str, Tensor]) -> Tensor:
            factor, _ = torch.linalg.cholesky_ex(self.matrix(phi))
            count = len(self.targets)
            fitted = 0.5 * count * (self.targets @ theta / count).log() + factor.diagonal().log().sum()
            width = WEIGHT_SPREAD if self.spread is None else self.spread
            pull = ((phi["weights"] - self.typical.log()) / width).square().sum()
            return fitted + 0.5 * (pull + ((phi["ridge"].exp() / RIDGE).log() / RIDGE_SPREAD).square())

        return BilevelProblem(inner=Minimize(inner), outer_loss=outer)

    def formula(self, phi: dict[str, Tensor]) -> Tensor:
        """theta*(phi)."""
        return kernel_ridge(self.matrix(phi), self.targets, 1e-10)

    def maximise(self, *, max_steps: int = 40) -> Learned:
        """Hyperparameters of largest posterior density.

        Args:
            max_steps: of L-BFGS-B.

        Returns:
            `Learned`; a status other than CONVERGED still holds the best found.
        """
        start = {"weights": self.typical.log(), "ridge": self.typical.new_tensor(RIDGE).log()}
        span = 4 * WEIGHT_SPREAD
        low = {"weights": start["weights"] - span, "ridge": start["ridge"].new_tensor(LEAST).log()}
        high = {"weights": start["weights"] + span, "ridge": start["ridge"].new_tensor(MOST).log()}
        result = optimize(
            self.problem(),
            start,
            init=torch.zeros_like(self.targets),
            outer=ScipyLBFGSB(ftol=1e-7, gtol=1e-3),
            hypergradient=ClosedForm(self.formula, rtol=1e-4),
            bounds=(low, high),
            max_steps=max_steps,
            warm_start=False,
            certificate=False,
            throw=False,
        )
        phi = result.outer_params
        return Learned(
            weights=phi["weights"].exp().detach(),
            ridge=float(phi["ridge"].exp()),
            status=result.status,
            evidence=-float(result.value),
        )


def held_out(factor: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Leave-one-out means and relative variances of new measurements, from the Cholesky factor of ``K + noise``.

    Args:
        factor: lower triangular ``(n, n)``.
        targets: ``(n,)``.

    Returns:
        Means ``(n,)`` as `sciopt.inner.leave_one_out`, and ``1 / ((K + noise)^-1)_ii``.

    Example:
        >>> held_out(torch.eye(2) * 2, torch.ones(2))
        (tensor([0., 0.]), tensor([4., 4.]))

    References:
        Rasmussen, Williams. "Gaussian processes for machine learning". MIT Press, 2006, eq. 5.12.
    """
    inverse = torch.cholesky_inverse(factor)
    variance = 1 / inverse.diagonal()
    return targets - (inverse @ targets) * variance, variance


def held_out_together(factor: Tensor, targets: Tensor, rows: Tensor) -> Tensor:
    """Means of some rows given all others, from the Cholesky factor of ``K + noise`` of all.

    Args:
        factor: lower triangular ``(n, n)``.
        targets: ``(n,)``.
        rows: sets of rows to hold out, one set after another, int64 ``(sets, k)``.

    Returns:
        Their means ``(sets, k)``.

    Example:
        >>> held_out_together(torch.eye(3) * 2, torch.ones(3), torch.tensor([[0, 2]]))
        tensor([[0., 0.]])

    References:
        Rasmussen, Williams. "Gaussian processes for machine learning". MIT Press, 2006, eq. A.12 (the partitioned inverse).
    """
    inverse = torch.cholesky_inverse(factor)
    among = inverse[rows.unsqueeze(-1), rows.unsqueeze(-2)]
    pull = (inverse @ targets)[rows]
    return targets[rows] - torch.cholesky_solve(pull.unsqueeze(-1), torch.linalg.cholesky(among)).squeeze(-1)
