"""Nonlinear least squares as a layer: fitted parameters, differentiable in data, weights and what the model takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sciopt import LeastSquares, best_response
from sciopt.hypergradients.abstract import AbstractHypergradient
from sciopt.inner import GaussNewton
from sciopt.solution import Solution

__all__ = ["CurveFit", "curve_fit"]


class CurveFit(NamedTuple):
    """Fitted parameters with their covariance.

    Example:
        >>> CurveFit._fields
        ('value', 'covariance', 'solution')
    """

    value: Tensor  # (*batch, n), differentiable
    covariance: Tensor  # (*batch, n, n), of the linearised model, detached
    solution: Solution  # its status and certificate


def curve_fit(
    model: Callable[[Tensor, Any], Tensor],
    targets: Tensor,
    *,
    init: Tensor,
    outer_params: Any = None,
    sigma: Tensor | float = 1.0,
    solver: GaussNewton | None = None,
    hypergradient: AbstractHypergradient | None = None,
    throw: bool = True,
) -> CurveFit:
    """``argmin_theta 1/2 sum_i ((model(theta)_i - targets_i) / sigma_i)^2``, one fit per row of a batch.

    Use it where a network proposes data, weights or a model's inputs and a physical curve must be fitted to them.
    Levenberg-Marquardt with one damping per row; the gradient is exact whatever path the fit took.

    Args:
        model: ``(theta, outer_params) -> (*batch, m)``, predictions for ``theta`` of shape ``(*batch, n)``.
        targets: data ``(*batch, m)``; differentiable.
        init: start ``(*batch, n)``.
        outer_params: what else the model takes, a tensor or tree of tensors; differentiable. None: nothing.
        sigma: standard errors, a number or ``(*batch, m)`` broadcastable; differentiable when a tensor.
        solver: None: ``GaussNewton()``.
        hypergradient: None: `Implicit`.
        throw: raise `SolveError` when a fit fails, else say so in the status of its row.

    Returns:
        `CurveFit`.

    Raises:
        ValueError: for shapes that do not fit.
        SolveError: with ``throw``, when a fit fails.

    Example:
        >>> t = torch.linspace(0, 1, 5, dtype=torch.float64)
        >>> y = (2 * torch.exp(-3 * t)).requires_grad_()
        >>> fit = curve_fit(lambda th, _: th[0] * torch.exp(-th[1] * t), y, init=torch.ones(2, dtype=torch.float64))
        >>> fit.value[1].backward()
        >>> fit.value.detach().round(decimals=4), y.grad.shape
        (tensor([2., 3.], dtype=torch.float64), torch.Size([5]))

    References:
        Marquardt. "An algorithm for least-squares estimation of nonlinear parameters". J. SIAM 11 (1963).
    """
    if targets.ndim != init.ndim:
        raise ValueError(
            f"curve_fit: expected `targets` (*batch, m) and `init` (*batch, n) of one batch shape, got {tuple(targets.shape)} "
            f"and {tuple(init.shape)}. Give one row of both for each fit."
        )
    outer: dict[str, Any] = {"targets": targets, "sigma": torch.as_tensor(sigma, dtype=init.dtype, device=init.device)}
    if outer_params is not None:
        outer["model"] = outer_params
    if bool((outer["sigma"] <= 0).any()):
        raise ValueError("curve_fit: expected positive `sigma`, got an entry <= 0. Pass standard errors.")

    def residuals(theta: Tensor, outer: dict[str, Any]) -> Tensor:
        return (model(theta, outer.get("model")) - outer["targets"]) / outer["sigma"]

    problem = LeastSquares(residuals, batch_ndim=init.ndim - 1)
    solver = GaussNewton() if solver is None else solver
    solution = best_response(problem, outer, init=init, solver=solver, hypergradient=hypergradient, throw=throw)
    with torch.no_grad():
        jacobian = jacobian_of(lambda theta: residuals(theta, outer), solution.value.detach())
        gram = jacobian.mT @ jacobian
        covariance = torch.linalg.pinv(gram, hermitian=True)
    return CurveFit(solution.value, covariance, solution)


def jacobian_of(function: Callable[[Tensor], Tensor], theta: Tensor) -> Tensor:
    """``(*batch, m, n)`` of a function whose rows are independent: n tangents."""
    eye = torch.eye(theta.shape[-1], dtype=theta.dtype, device=theta.device)
    columns = [torch.func.jvp(function, (theta,), (direction.expand_as(theta),))[1] for direction in eye]
    return torch.stack(columns, -1).detach()
