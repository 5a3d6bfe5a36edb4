"""How far to trust a model: deviations that agree with the errors on rows it has not seen."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from sciopt.domains.offline.proposal.batch import NOMINAL, Calibration, rank_correlation
from sciopt.domains.offline.proposal.evidence import held_out
from sciopt.domains.offline.proposal.model import Observations, ScoreModel, fit_model
from sciopt.inner import merge_duplicates

__all__ = ["calibrate"]

HELD_OUT = 500  # rows of the test where leave-one-out is too dear; at most a tenth of them
OUTLIER = 4.0  # standardised errors beyond it count as this much
PRIOR_ROWS = 10.0  # rows that the model's own deviations count for


def calibrate(
    model: ScoreModel, data: Observations, generator: torch.Generator
) -> tuple[ScoreModel, Calibration, float]:
    """Stretch the model's deviations until they agree with its errors on rows it has not seen.

    By leave-one-out in closed form, or where there are too many rows for that, on 500 rows held out of a second fit.

    Args:
        model: fitted to the data.
        data: the rows.
        generator: draws the rows to hold out.

    Returns:
        The model with its stretch, its `Calibration`, and the mean log density of held-out scores, in nats per row.

    Example:
        See `sciopt.domains.offline.proposal.propose`.
    """
    if model.fit.factor is not None:
        points = model.points(data.codes)
        targets = model.latent(data.scores)
        _, ordered, _, rows = merge_duplicates(points, targets, data.mass)
        means, relative = held_out(model.fit.factor, ordered)
        mean, deviation = means[rows], (relative[rows] * model.gain).sqrt()
        tested, method = data, "leave-one-out"
    else:
        order = torch.randperm(len(data), generator=generator).to(data.codes.device)
        count = min(HELD_OUT, len(data) // 10)
        tested, rest = data.subset(order[:count]), data.subset(order[count:])
        ridge = model.noise / (model.gain * float(model.fit.kernel.diagonal(model.fit.points[:1024]).mean()))
        partial = fit_model(
            model.space, rest, model.family, model.weights, ridge, model.transform, strands=model.strands,
            maximize=model.scale > 0, dense_rows=0,
        )  # fmt: skip
        mean, covariance = partial.posterior(tested.codes)
        mean = (mean * partial.scale + partial.mean - model.mean) / model.scale
        deviation = (covariance.diagonal() + partial.noise / tested.mass).sqrt() * abs(partial.scale / model.scale)
        targets, method = model.latent(tested.scores), f"{len(tested)} rows held out"
    errors = (targets - mean) / deviation
    squares = float(errors.abs().clamp(max=OUTLIER).square().sum())
    stretch = math.sqrt((squares + PRIOR_ROWS) / (len(tested) + PRIOR_ROWS))
    deviation = deviation * stretch
    errors = errors / stretch
    slope = model.transform.log_slope(tested.scores) - math.log(abs(model.scale))
    density = float((slope - deviation.log() - 0.5 * errors.square() - 0.5 * math.log(2 * math.pi)).mean())
    made = replace(model, stretch=stretch)
    predicted, width = made.in_score_units(mean, deviation)
    normal = torch.distributions.Normal(0.0, 1.0)
    cover = {p: float((errors.abs() <= float(normal.icdf(torch.tensor(0.5 + p / 2)))).double().mean()) for p in NOMINAL}
    calibration = Calibration(
        rows=tested.rows,
        observed=tested.scores,
        predicted=predicted,
        deviation=width,
        coverage=cover,
        rmse=float((predicted - tested.scores).square().mean().sqrt()),
        rank_correlation=rank_correlation(predicted, tested.scores),
        method=method,
    )
    return made, calibration, density
