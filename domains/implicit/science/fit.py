"""Rate constants from noisy courses: Gauss-Newton through the sensitivities, uncertainties from the exact Hessian."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from sciopt import BilevelProblem, Status, optimize
from sciopt.domains.implicit.science.experiments import Experiments, KineticModel
from sciopt.domains.implicit.science.identifiability import Identifiability, identifiability
from sciopt.outer import GaussNewtonStep

__all__ = ["KineticFit", "fit_rates"]

MANY_ROWS = 16  # residuals per parameter beyond which tangents are cheaper than adjoints


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class KineticFit:
    """Fitted rate constants, how well they are known, and what stays unknown.

    Args:
        names: of the r rate constants.
        log_rates: natural logarithms ``(r,)`` at the maximum of the posterior.
        covariance: Laplace's, of the log-rates: inverse of the exact Hessian ``(r, r)``; infinite where that is not
            positive definite.
        covariance_gauss_newton: inverse of ``J'J`` (with the prior), ``(r, r)``.
        hessian: exact Hessian of the negative logarithm of the posterior ``(r, r)``.
        fisher: ``J'J`` with the prior ``(r, r)``.
        chi2: sum of the squared residuals, without the prior.
        freedom: measurements less parameters.
        identifiability: stiff and sloppy directions, of the exact Hessian.
        status: of the outer loop.
        history: columns of the outer loop.
        predicted: ``(k, e, m)``.

    Example:
        >>> KineticFit.__name__
        'KineticFit'
    """

    names: tuple[str, ...]
    log_rates: Tensor
    covariance: Tensor
    covariance_gauss_newton: Tensor
    hessian: Tensor
    fisher: Tensor
    chi2: float
    freedom: int
    identifiability: Identifiability
    status: Status
    history: dict[str, list[float]]
    predicted: Tensor

    @property
    def rates(self) -> Tensor:
        """Rate constants ``(r,)``."""
        return self.log_rates.exp()

    @property
    def errors(self) -> Tensor:
        """Standard errors of the log-rates ``(r,)``: 0.1 is ten percent."""
        return self.covariance.diagonal().sqrt()

    @property
    def errors_gauss_newton(self) -> Tensor:
        """The same from ``J'J`` ``(r,)``."""
        return self.covariance_gauss_newton.diagonal().sqrt()

    def table(self) -> str:
        """One line per rate constant: value, factor of uncertainty, and that of Gauss-Newton."""
        lines = [f"{'rate constant':<14}{'value':>12}{'factor':>10}{'(from JtJ)':>12}"]
        for i, name in enumerate(self.names):
            factor, plain = (float(e[i].exp()) for e in (self.errors, self.errors_gauss_newton))
            lines.append(f"{name:<14}{float(self.rates[i]):>12.4g}{factor:>10.3g}{plain:>12.3g}")
        return "\n".join(lines)


def fit_rates(
    model: KineticModel,
    experiments: Experiments,
    *,
    start: Tensor,
    prior: tuple[Tensor, Tensor | float] | None = None,
    max_steps: int = 50,
    change_atol: float = 1e-4,
    callbacks: Sequence[Callable[[Any], Any]] = (),
    throw: bool = True,
) -> KineticFit:
    """Maximum-posterior rate constants of a mechanism, given noisy courses of some of its species.

    Use it for stiff mechanisms, many experiments at once (they are one batch with steps of their own). The log-rates are
    fitted by Levenberg-Marquardt with the exact Jacobian of the frozen steps; the uncertainties come from the exact Hessian,
    second derivatives through the solver included, next to those that Gauss-Newton would report. Each step costs one
    solve and r tangents of it; the Hessian at the end about 3 r solves.

    Args:
        model: the mechanism and what is measured.
        experiments: the data.
        start: natural logarithms of the rate constants ``(r,)`` to start from.
        prior: mean ``(r,)`` and standard deviation (a number or ``(r,)``) of a Gaussian prior on the log-rates; None: flat.
        max_steps: largest number of steps.
        change_atol: stop when no log-rate changed by more than this in a step; 1e-4 is a hundredth of a percent.
        callbacks: functions of a `StepRecord`.
        throw: raise when the fit fails, else say so in ``status``.

    Returns:
        `KineticFit`.

    Raises:
        ValueError: for a start of another length.
        OptimizeError: with ``throw``, when the fit fails.

    Example:
        >>> from sciopt.domains.implicit.science import Noise, mass_action_model, simulate
        >>> from sciopt.domains.implicit.stiff import reactions
        >>> model, start = mass_action_model(reactions("A -> B")), torch.tensor([[1.0, 0.0]], dtype=torch.float64)
        >>> times, gen = torch.linspace(0, 2, 9, dtype=torch.float64), torch.Generator().manual_seed(0)
        >>> truth = torch.zeros(1, dtype=torch.float64)
        >>> courses = simulate(model, truth, start, times, Noise(absolute=0.01), gen)
        >>> fit = fit_rates(model, courses, start=truth + 1)
        >>> bool((fit.log_rates - truth).abs() < 4 * fit.errors)
        True

    References:
        Marquardt 1963. MacKay. "Information Theory, Inference, and Learning Algorithms" (2003), ch. 27 (Laplace).
    """
    count = len(model.parameters)
    if tuple(start.shape) != (count,):
        raise ValueError(
            f"fit_rates: expected `start` of shape ({count},), got {tuple(start.shape)}. Give one logarithm for each of "
            f"{', '.join(model.parameters)}."
        )
    known = None if prior is None else (prior[0].to(start), torch.as_tensor(prior[1]).to(start).expand(count))

    def all_residuals(states: Tensor, log_rates: Tensor) -> Tensor:
        residuals = experiments.residuals(model.observe(states[1:]))
        if known is None:
            return residuals
        return torch.cat([residuals, (log_rates - known[0]) / known[1]])

    run = optimize(
        BilevelProblem(inner=model.statement(experiments.times), outer_residuals=all_residuals),
        start,
        init=experiments.init,
        outer=GaussNewtonStep(),
        solver=model.solver,
        max_steps=max_steps,
        change_atol=change_atol,
        callbacks=callbacks,
        throw=throw,
        certificate=False,
    )
    found = run.outer_params.detach()

    def vector(log_rates: Tensor) -> Tensor:
        residuals = experiments.residuals(model.predict(log_rates, experiments.init, experiments.times))
        return residuals if known is None else torch.cat([residuals, (log_rates - known[0]) / known[1]])

    J = sensitivities(vector, found)
    hessian = torch.func.jacrev(torch.func.grad(lambda phi: 0.5 * vector(phi).square().sum()))(found).detach()
    hessian = 0.5 * (hessian + hessian.mT)
    with torch.no_grad():
        predicted = model.predict(found, experiments.init, experiments.times)
        chi2 = float(experiments.residuals(predicted).square().sum())
    return KineticFit(
        names=model.parameters,
        log_rates=found,
        covariance=inverse(hessian),
        covariance_gauss_newton=inverse(J.mT @ J),
        hessian=hessian,
        fisher=J.mT @ J,
        chi2=chi2,
        freedom=experiments.count - count,
        identifiability=identifiability(hessian, model.parameters),
        status=run.status,
        history=run.history,
        predicted=predicted,
    )


def sensitivities(function: Callable[[Tensor], Tensor], point: Tensor) -> Tensor:
    """Jacobian ``(k, r)`` by adjoints, or by tangents where there are many more residuals than parameters."""
    with torch.no_grad():
        rows = function(point).numel()
    take = torch.func.jacfwd if rows > MANY_ROWS * point.numel() else torch.func.jacrev
    return take(function)(point).detach()


def inverse(matrix: Tensor) -> Tensor:
    """The inverse of a symmetric matrix; infinite variances where it is not positive definite."""
    factor, info = torch.linalg.cholesky_ex(matrix)
    if int(info) != 0:
        return torch.diag(torch.full_like(matrix[0], torch.inf))
    return torch.cholesky_inverse(factor)
