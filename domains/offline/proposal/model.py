"""The fitted model of scores: a Gaussian process on mixed columns, with deviations that agree with held-out errors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from sciopt.domains.offline.proposal.design_space import DesignSpace
from sciopt.domains.offline.proposal.families import AbstractFamily, StrandKernel
from sciopt.domains.offline.proposal.score_transforms import AbstractScoreTransform
from sciopt.domains.offline.proposal.strands import Strands
from sciopt.inner import KernelFit, fit_kernel, merge_duplicates
from sciopt.kernels import AbstractKernel, cross_matrix

__all__ = ["DENSE_ROWS", "Observations", "ScoreModel", "fit_model"]

DENSE_ROWS = 6_000  # float64 and posterior deviations by Cholesky up to here; above, float32 and conjugate gradients
LOCAL_ROWS = 2_000  # rows that deviations are conditioned on above it
STORED_ROWS = 40_000
CHUNK = 2_048


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Observations:
    """Different designs with the mean of their measured scores.

    Args:
        codes: ``(m, width)``, distinct.
        scores: ``(m,)``, in the user's units.
        mass: measurements behind each ``(m,)``.
        rows: index of the first of them in the user's table ``(m,)``, int64.
        spread: pooled variance of repeated measurements; None: there are none.

    Example:
        >>> o = torch.ones(1, dtype=torch.float64)
        >>> len(Observations(codes=o.unsqueeze(-1), scores=o, mass=o, rows=torch.arange(1)))
        1
    """

    codes: Tensor
    scores: Tensor
    mass: Tensor
    rows: Tensor
    spread: float | None = None

    def __len__(self) -> int:
        return len(self.scores)

    def subset(self, rows: Tensor) -> Observations:
        """Some of them."""
        return Observations(
            codes=self.codes[rows], scores=self.scores[rows], mass=self.mass[rows], rows=self.rows[rows], spread=self.spread
        )  # fmt: skip


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class ScoreModel:
    """A posterior over scores. Made by `fit_model`.

    Latent values are transformed scores, standardised; with ``maximize=False`` their sign is turned, so that higher is
    always better.

    Args:
        space: the columns.
        family: of the kernel.
        weights: of the columns ``(c,)``, or of the groups of features ``(g,)``, see `DesignSpace.groups`.
        centre: of the features ``(f,)``.
        strands: the symmetry, or None.
        transform: of scores.
        mean: of the transformed scores.
        scale: their standard deviation, negative when lower scores are better.
        fit: kernel ridge regression on latent values.
        gain: prior variance per unit of the kernel.
        noise: variance of a measurement, latent.
        stretch: what deviations are multiplied by, see `sciopt.domains.offline.proposal.calibrated`.

    Example:
        >>> from sciopt.domains.offline.proposal import NumberColumn
        >>> from sciopt.domains.offline.proposal.families import Gaussian
        >>> from sciopt.domains.offline.proposal.score_transforms import PlainScores
        >>> x = torch.linspace(0, 1, 9, dtype=torch.float64)
        >>> data = Observations(
        ...     codes=x.unsqueeze(-1), scores=10 * x, mass=torch.ones(9, dtype=torch.float64), rows=torch.arange(9)
        ... )
        >>> space, weights = DesignSpace((NumberColumn(name="x", low=0, high=1),)), torch.ones(1, dtype=torch.float64)
        >>> model = fit_model(space, data, Gaussian(), weights, 1e-4, PlainScores())
        >>> model.predict(torch.tensor([[0.33]], dtype=torch.float64))[0].round(decimals=1)
        tensor([3.3000], dtype=torch.float64)
    """

    space: DesignSpace
    family: AbstractFamily
    weights: Tensor
    centre: Tensor
    strands: Strands | None
    transform: AbstractScoreTransform
    mean: float
    scale: float
    fit: KernelFit
    gain: float
    noise: float
    stretch: float = 1.0

    @property
    def is_dense(self) -> bool:
        """Whether all rows count for deviations."""
        return self.fit.factor is not None

    def latent(self, scores: Tensor) -> Tensor:
        """Scores as latent values."""
        return (self.transform.forward(scores) - self.mean) / self.scale

    def points(self, codes: Tensor) -> Tensor:
        """The kernel's points of designs ``(n, width)``."""
        return design_points(self.space, codes, self.family, self.weights, self.centre, self.strands).to(
            self.fit.points
        )

    def latent_mean(self, codes: Tensor) -> Tensor:
        """Posterior means of designs ``(n, width)``: ``(n,)``, float64."""
        with torch.no_grad():
            parts = [self.fit.mean(self.points(chunk)) for chunk in codes.split(CHUNK)]
        return torch.cat(parts).to(torch.float64) if parts else codes.new_zeros(0)

    def latent_deviation(self, codes: Tensor) -> Tensor:
        """Posterior standard deviations without noise ``(n,)``; on the dense route only."""
        with torch.no_grad():
            parts = [self.fit.variance(self.points(chunk)) for chunk in codes.split(CHUNK)]
        return (torch.cat(parts) * self.gain).sqrt() * self.stretch if parts else codes.new_zeros(0)

    def posterior(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Joint posterior of a few thousand designs: means ``(q,)`` and covariance ``(q, q)``, latent.

        Where the rows are too many for a Cholesky factor, the covariance is that given the 2,000 rows most correlated with
        the designs, which is never less than the one given all.
        """
        mean = self.latent_mean(codes)
        with torch.no_grad():
            fit = self.fit if self.is_dense else self._local(self.points(codes))
            covariance = fit.covariance(self.points(codes).to(fit.points)).to(torch.float64)
        return mean, covariance * (self.gain * self.stretch**2)

    def predict(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Predicted scores ``(n,)`` and standard deviations of new measurements ``(n,)``, in the scores' units."""
        mean = self.latent_mean(codes)
        if self.is_dense:
            variance = self.latent_deviation(codes).square()
        else:
            variance = torch.cat([self.posterior(chunk)[1].diagonal() for chunk in codes.split(CHUNK)])
        return self.in_score_units(mean, (variance + self.noise * self.stretch**2).sqrt())

    def in_score_units(self, mean: Tensor, deviation: Tensor) -> tuple[Tensor, Tensor]:
        """Latent means and deviations as scores: the median, and half the width of the interval of one deviation."""
        middle, width = mean * self.scale + self.mean, deviation * abs(self.scale)
        ends = [self.transform.inverse(middle + sign * width) for sign in (1.0, -1.0)]
        return self.transform.inverse(middle), 0.5 * (ends[0] - ends[1])

    def _local(self, points: Tensor) -> KernelFit:
        """A dense fit of the rows most correlated with some points."""
        best = torch.stack(
            [cross_matrix(self.fit.kernel, chunk, self.fit.points).amax(0) for chunk in points.split(CHUNK)]
        ).amax(0)
        rows = best.topk(min(LOCAL_ROWS, len(best))).indices
        chosen, noise = self.fit.points[rows].to(torch.float64), self.fit.noise[rows].to(torch.float64)
        least = float(noise.min())
        return fit_kernel(self.fit.kernel, chosen, torch.zeros_like(noise), least, least / noise)


def design_points(
    space: DesignSpace, codes: Tensor, family: AbstractFamily, weights: Tensor, centre: Tensor, strands: Strands | None
) -> Tensor:
    """Weighted features of designs as the family's points; a pair of them where designs have two forms.

    Example:
        >>> from sciopt.domains.offline.proposal import NumberColumn
        >>> from sciopt.domains.offline.proposal.families import Gaussian
        >>> space, one = DesignSpace((NumberColumn(name="x", low=0, high=2),)), torch.ones(1)
        >>> design_points(space, torch.ones(1, 1), Gaussian(), 3 * one, 0 * one, None)
        tensor([[1.5000]])
    """
    owner = space.feature_owner if len(weights) == len(space.columns) else space.feature_group
    spread = weights[owner.to(weights.device)]
    forms = [codes] if strands is None else [codes, strands.image(codes)]
    made = [family.points(space, space.features(form), spread, centre) for form in forms]
    return made[0] if strands is None else torch.stack(made, 1)


def feature_centre(space: DesignSpace, codes: Tensor, strands: Strands | None) -> Tensor:
    """Mean features of the measured designs, in both forms where there are two."""
    centre = space.features(codes).mean(0)
    return centre if strands is None else 0.5 * (centre + space.features(strands.image(codes)).mean(0))


def fit_model(
    space: DesignSpace,
    data: Observations,
    family: AbstractFamily,
    weights: Tensor,
    ridge: float,
    transform: AbstractScoreTransform,
    *,
    strands: Strands | None = None,
    maximize: bool = True,
    dense_rows: int = DENSE_ROWS,
) -> ScoreModel:
    """Fit kernel ridge regression with given weights and ridge.

    Args:
        space: the columns.
        data: what was measured, at least two different scores.
        family: of the kernel.
        weights: of the columns ``(c,)``, or of the groups of features ``(g,)``, see `DesignSpace.groups`.
        ridge: noise variance of one measurement over the kernel's mean diagonal; raised to the spread of repeats.
        transform: of the scores.
        strands: the symmetry, or None.
        maximize: whether higher is better.
        dense_rows: rows up to which float64 and a Cholesky factor are used.

    Returns:
        `ScoreModel`, not yet calibrated.

    Raises:
        ValueError: for constant scores.

    Example:
        See `ScoreModel`.
    """
    latent = transform.forward(data.scores)
    mean, spread = float(latent.mean()), float(latent.std(correction=0))
    if not spread > 1e-12 * max(1e-300, float(latent.abs().max())):
        raise ValueError(
            f"fit_model: expected `data` with scores that differ, got {len(data)} times {float(data.scores[0]):.6g}. Nothing "
            "can be learned from them."
        )
    scale = spread if maximize else -spread
    centre = feature_centre(space, data.codes, strands)
    points = design_points(space, data.codes, family, weights, centre, strands)
    kernel: AbstractKernel = family.kernel if strands is None else StrandKernel(family.kernel)
    targets = (latent - mean) / scale
    dense = len(data) <= dense_rows
    if not dense:
        points, targets = points.float(), targets.float()
    unit = float(kernel.diagonal(points).mean())
    least = 0.0
    if data.spread is not None:
        slope = transform.log_slope(data.scores).mean().exp()
        least = data.spread * float(slope) ** 2 / spread**2
    weight = data.mass.to(points)
    points, targets, weight, _ = merge_duplicates(points, targets, weight)

    def fitted(ridge: float) -> tuple[KernelFit, float]:
        fit = fit_kernel(
            kernel, points, targets, ridge * unit, weight, rtol=None if dense else 1e-3, dense_points=dense_rows,
            stored_points=STORED_ROWS,
        )  # fmt: skip
        return fit, float((targets.double() * fit.coefficients.double()).mean())

    fit, gain = fitted(ridge)
    for _ in range(6):  # more noise explains more of the scores: the kernel's variance falls with it
        if ridge * unit * gain >= 0.99 * least:
            break
        ridge *= 1.2 * least / (ridge * unit * gain)
        fit, gain = fitted(ridge)
    return ScoreModel(
        space=space, family=family, weights=weights, centre=centre, strands=strands, transform=transform, mean=mean,
        scale=scale, fit=fit, gain=gain, noise=ridge * unit * gain,
    )  # fmt: skip
