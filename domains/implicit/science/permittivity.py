"""A permittivity field from noisy potentials: Gauss-Newton, a Gaussian prior, and Morozov's discrepancy principle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, final

import torch
from torch import Tensor

from sciopt import BilevelProblem, Minimize, Status, optimize
from sciopt.domains.implicit.science.poisson import Poisson
from sciopt.hypergradients import Implicit
from sciopt.inner import LinearSolve
from sciopt.linsolve import CG, AbstractLinearSolver
from sciopt.outer import GaussNewtonStep

__all__ = ["FieldFit", "SmoothPrior", "infer_permittivity"]

CLOSE = 0.03  # how near to one the misfit is to be: a spread that data of a thousand measurements have themselves


@final
@dataclass(frozen=True, kw_only=True)
class SmoothPrior:
    """Gaussian random fields on n x n cells: cosine modes whose weights fall with their wave number.

    The field is ``mean + std * normalised sum_k w_k (1 + (length |k|)^2)^(-order) mode_k`` with independent standard normal
    weights w: Tikhonov regularisation of the weights is regularisation of smoothness in the field.

    Args:
        cells: n.
        length: distance over which the field varies, in sides of the square.
        std: root mean square of the field's variation, natural logarithm.
        mean: of the logarithm.
        order: how fast fine modes are damped.

    Example:
        >>> SmoothPrior(cells=8).field(torch.zeros(8, 8, dtype=torch.float64)).abs().max()
        tensor(0., dtype=torch.float64)

    References:
        Stuart. "Inverse problems: a Bayesian perspective". Acta Numerica 19 (2010), section 6.
    """

    cells: int
    length: float = 0.15
    std: float = 1.0
    mean: float = 0.0
    order: float = 1.5

    def field(self, weights: Tensor) -> Tensor:
        """The field ``(n, n)`` of weights ``(n, n)``."""
        modes, spectrum = (table.to(weights) for table in self._tables)
        return self.mean + modes @ (spectrum * weights) @ modes.mT

    @cached_property
    def _tables(self) -> tuple[Tensor, Tensor]:
        """Cosine modes as columns ``(n, n)``, orthonormal on the unit interval, and their spectrum ``(n, n)``."""
        n = self.cells
        place = (torch.arange(n, dtype=torch.float64) + 0.5) / n
        wave = torch.pi * torch.arange(n, dtype=torch.float64)
        modes = torch.cos(place.unsqueeze(-1) * wave) * 2**0.5
        modes[:, 0] = 1.0
        spectrum = (1 + self.length**2 * (wave.unsqueeze(-1) ** 2 + wave**2)) ** -self.order
        return modes, self.std * spectrum / spectrum.square().sum().sqrt()


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class FieldFit:
    """An inferred field, and how far the data and the discrepancy principle carry it.

    Args:
        log_field: logarithm of the permittivity ``(n, n)``.
        weights: of the prior's modes ``(n, n)``.
        alpha: weight of the regularisation at the end.
        misfit: squared residuals per measurement; the principle asks for one.
        potentials: predicted ``(s, n n)``.
        trail: (alpha, misfit) of every weight that was tried.
        status: of the last outer loop; `Status.STAGNATED` also where no weight meets the principle.

    Example:
        >>> FieldFit.__name__
        'FieldFit'
    """

    log_field: Tensor
    weights: Tensor
    alpha: float
    misfit: float
    potentials: Tensor
    trail: list[tuple[float, float]]
    status: Status

    def error(self, truth: Tensor) -> float:
        """Relative error of the logarithm of the field, ``|m - truth| / |truth - its mean|``."""
        return float(torch.linalg.norm(self.log_field - truth) / torch.linalg.norm(truth - truth.mean()))


def infer_permittivity(
    poisson: Poisson,
    data: Tensor,
    sigma: Tensor | float,
    *,
    sensors: Tensor | None = None,
    prior: SmoothPrior | None = None,
    linear_solver: AbstractLinearSolver | None = None,
    alpha: float = 100.0,
    max_steps: int = 12,
    callbacks: Sequence[Callable[[Any], Any]] = (),
) -> FieldFit:
    """The smoothest permittivity whose potentials fit the data as well as their errors allow, and no better.

    The inner problem is the potential of least energy (one sparse factorisation for all sources and all derivatives), the
    outer one Gauss-Newton on the residuals and the prior, matrix-free, for a falling weight ``alpha`` of the prior until
    the misfit is that of the noise (Morozov). Fields of 64 x 64 cells take seconds.

    Args:
        poisson: the equation and its sources.
        data: measured potentials ``(s, k)`` at the sensors.
        sigma: their standard errors, a number or ``(s, k)``.
        sensors: cells that were measured, int64 ``(k,)``; None: all.
        prior: None: ``SmoothPrior(cells=n)``.
        linear_solver: for the potentials and their derivatives; None: the sparse LU of ``poisson``, which works on the CPU.
            ``CG(rtol=1e-10)`` stays on any device.
        alpha: first weight of the prior; it is lowered tenfold until the data are fitted, then raised as far as they allow.
        max_steps: Gauss-Newton steps for each weight.
        callbacks: functions of a `StepRecord`.

    Returns:
        `FieldFit`.

    Raises:
        ValueError: for data of another shape, or errors that are not positive.

    Example:
        >>> box = Poisson(cells=6, sources=torch.ones(1, 36, dtype=torch.float64))
        >>> exact = torch.full((1, 36), 0.0, dtype=torch.float64)
        >>> fit = infer_permittivity(box, exact, 1.0)  # errors far above the potentials: nothing to learn
        >>> fit.misfit < 1, fit.alpha
        (True, 100.0)

    References:
        Engl, Hanke, Neubauer. "Regularization of Inverse Problems" (1996), sections 4.3 and 11.2. Stuart 2010.
    """
    count = poisson.sources.shape[0]
    places = torch.arange(poisson.cells**2, device=data.device) if sensors is None else sensors
    errors = torch.as_tensor(sigma, dtype=data.dtype, device=data.device)
    if tuple(data.shape) != (count, len(places)) or bool((errors <= 0).any()):
        raise ValueError(
            f"infer_permittivity: expected `data` of shape ({count}, {len(places)}) with positive `sigma`, got "
            f"{tuple(data.shape)}. Give one row per source, one entry per sensor."
        )
    prior = SmoothPrior(cells=poisson.cells) if prior is None else prior
    prior._tables  # made here, outside every transform  # noqa: B018
    stated = Minimize(lambda u, weights: poisson.energy(u, prior.field(weights)), batch_ndim=1)
    if linear_solver is None:
        linear_solver = replace(poisson.direct, entries=lambda u, weights: poisson.entries(u, prior.field(weights)))

    def misfits(u: Tensor) -> Tensor:
        return ((u[:, places] - data) / errors).reshape(-1)

    def solve(alpha: float, start: Tensor, init: Tensor) -> Any:
        root = alpha**0.5

        def residuals(u: Tensor, weights: Tensor) -> Tensor:
            return torch.cat([misfits(u), root * weights.reshape(-1)])

        return optimize(
            BilevelProblem(inner=stated, outer_residuals=residuals),
            start,
            init=init,
            outer=GaussNewtonStep(CG(rtol=1e-2, max_steps=200), damping=1e-6),
            solver=LinearSolve(linear_solver),
            hypergradient=Implicit(linear_solver),
            max_steps=max_steps,
            change_atol=0.05,  # of weights whose prior is of unit width
            callbacks=callbacks,
            throw=False,
            certificate=False,
        )

    weights = torch.zeros(poisson.cells, poisson.cells, dtype=data.dtype, device=data.device)
    u = torch.zeros(count, poisson.cells**2, dtype=data.dtype, device=data.device)
    trail: list[tuple[float, float]] = []

    def tried(alpha: float, start: Tensor, init: Tensor) -> tuple[Any, float]:
        run = solve(alpha, start, init)
        misfit = float(misfits(run.inner_params).square().mean())
        trail.append((alpha, misfit))
        return run, misfit

    run, misfit = tried(alpha, weights, u)
    above = None  # the smallest weight known to fit too loosely
    while misfit > 1 + CLOSE and len(trail) < 12:
        above = trail[-1]
        alpha = alpha / 10
        run, misfit = tried(alpha, run.outer_params, run.inner_params)
        if misfit > 0.98 * above[1]:  # no freedom left that would help
            break
    below = trail[-1]
    while above is not None and misfit < 1 - CLOSE and len(trail) < 16:
        share = (1 - below[1]) / (above[1] - below[1])  # secant in the logarithm of the weight
        share = min(max(share, 0.1), 0.9)
        alpha = below[0] * (above[0] / below[0]) ** share
        candidate, misfit = tried(alpha, run.outer_params, run.inner_params)
        if misfit <= 1 + CLOSE:
            run, below = candidate, trail[-1]
        else:
            above, misfit = trail[-1], below[1]
    met = below[1] <= 1 + CLOSE
    return FieldFit(
        log_field=prior.field(run.outer_params).detach(),
        weights=run.outer_params,
        alpha=below[0],
        misfit=below[1],
        potentials=run.inner_params,
        trail=trail,
        status=run.status if met else Status.STAGNATED,
    )
