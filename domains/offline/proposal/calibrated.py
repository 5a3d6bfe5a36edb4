"""Which model, and how far to trust it: held-out predictions choose both."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from sciopt.domains.offline.proposal.batch import NOMINAL, Calibration, rank_correlation
from sciopt.domains.offline.proposal.columns import SequenceColumn
from sciopt.domains.offline.proposal.design_space import DesignSpace
from sciopt.domains.offline.proposal.evidence import WEIGHT_SPREAD, Evidence, Learned, held_out
from sciopt.domains.offline.proposal.families import AbstractFamily, Gaussian, StrandKernel, WideNetwork
from sciopt.domains.offline.proposal.model import Observations, ScoreModel, design_points, feature_centre, fit_model
from sciopt.domains.offline.proposal.score_transforms import (
    AbstractScoreTransform,
    Logarithm,
    PlainScores,
    fit_yeo_johnson,
)
from sciopt.domains.offline.proposal.strands import Strands
from sciopt.inner import merge_duplicates
from sciopt.solution import Status

__all__ = ["calibrate", "choose_model"]

LEARNING_ROWS = 600  # rows from which weights, noise, family and transform are learned
HELD_OUT = 500  # rows of the test where leave-one-out is too dear; at most a tenth of them
ROWS_PER_GROUP = 10  # rows for each weight that positions of sequences need to have their own
POSITION_SPREAD = 0.5  # prior standard deviation of the logarithms of their weights
FEW = 5  # rows below which nothing but the prior chooses
OUTLIER = 4.0  # standardised errors beyond it count as this much
PRIOR_ROWS = 10.0  # rows that the model's own deviations count for
GAIN = 3.0  # nats of held-out density that another kernel or a transform has to bring


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


def choose_model(
    space: DesignSpace,
    data: Observations,
    *,
    strands: Strands | None,
    maximize: bool,
    generator: torch.Generator,
    families: Sequence[AbstractFamily] = (),
    dense_rows: int,
) -> tuple[ScoreModel, Calibration, list[str]]:
    """Learn weights of columns and noise by evidence, choose kernel and score transform by held-out density, fit, calibrate.

    Args:
        space: the columns.
        data: what was measured, at least two different scores.
        strands: the symmetry, or None.
        maximize: whether higher is better.
        generator: draws the rows to learn from where there are more than 600.
        families: kernels to choose among, the first unless another brings 3 nats of held-out density; empty: a wide network
            and a Gaussian kernel, in this order where there are sequences, in the other where there are none.
        dense_rows: see `fit_model`.

    Returns:
        The model, its `Calibration`, and what was chosen, in sentences.

    Example:
        See `sciopt.domains.offline.proposal.propose`.
    """
    if not families:
        lettered = any(isinstance(column, SequenceColumn) for column in space.columns)
        families = (WideNetwork(), Gaussian()) if lettered else (Gaussian(), WideNetwork())
    some = data
    if len(data) > LEARNING_ROWS:
        order = torch.randperm(len(data), generator=generator).to(data.codes.device)
        some = data.subset(order[:LEARNING_ROWS].sort().values)
    lines = []
    best: tuple[float, AbstractFamily, AbstractScoreTransform, Learned] | None = None
    for transform in _transforms(data.scores) if len(data) >= 4 * FEW else [PlainScores()]:
        chosen = families if best is None else [best[1]]
        for family in chosen:
            learned = _learned(space, some, family, transform, strands, maximize)
            model = fit_model(
                space, some, family, learned.weights, learned.ridge, transform, strands=strands, maximize=maximize
            )
            total = calibrate(model, some, generator)[2] * len(some)
            if best is None or total > best[0] + GAIN:
                best = (total, family, transform, learned)
    assert best is not None
    _, family, transform, learned = best
    model = fit_model(
        space, data, family, learned.weights, learned.ridge, transform, strands=strands, maximize=maximize,
        dense_rows=dense_rows,
    )  # fmt: skip
    model, calibration, _ = calibrate(model, data, generator)
    lines.append(f"A Gaussian process with {family.describe()}, on {transform.describe()}.")
    learned_from = "" if some is data else f", learned from {len(some)} of {len(data)} rows"
    shown = _shown(space, learned.weights, family)
    if len(data) < FEW:
        lines.append(
            f"With {len(data)} rows nothing was learned but the level of the scores; kernel and noise are typical."
        )
    else:
        lines.append(f"Weights of the columns, 1 is typical{learned_from}: {shown}.")
    noise = model.noise**0.5 * abs(model.scale)
    if isinstance(transform, PlainScores):
        lines.append(f"A measurement has a standard deviation of {noise * model.stretch:.3g} in score units.")
    lines.append(
        f"Standard deviations were multiplied by {model.stretch:.2f} to agree with the errors of {calibration.method}."
    )
    if learned.status not in (Status.CONVERGED, Status.MAX_STEPS):
        lines.append(f"The search for weights and noise ended early ({learned.status.name}).")
    if model.fit.status not in (Status.CONVERGED, Status.STAGNATED):
        lines.append(
            f"The solve for {len(data)} rows ended with {model.fit.status.name}, residual {model.fit.residual:.1e}."
        )
    return model, calibration, lines


def _shown(space: DesignSpace, weights: Tensor, family: AbstractFamily) -> str:
    """Weights over typical ones; of a sequence with weights by position the range."""
    typical = family.typical_weights(space).tolist()
    groups = space.groups if len(weights) == len(space.groups) else [(k, 0) for k in range(len(space.columns))]
    texts = []
    for index, name in enumerate(space.names):
        pairs = zip(groups, weights.tolist(), strict=True)
        mine = [f"{weight / typical[index]:.2g}" for (column, _), weight in pairs if column == index]
        texts.append(f"{name} {mine[0]}" if len(mine) == 1 else f"{name} {' '.join(mine)} (by position)")
    return ", ".join(texts)


def _transforms(scores: Tensor) -> list[AbstractScoreTransform]:
    """The scores as they are, and what else their distribution suggests."""
    found: list[AbstractScoreTransform] = [PlainScores()]
    low, high = float(scores.min()), float(scores.max())
    if low > 0 and high / low >= 10:
        found.append(Logarithm())
    power = fit_yeo_johnson(scores)
    if abs(power.power - 1) >= 0.15:
        found.append(power)
    return found


def _learned(
    space: DesignSpace,
    data: Observations,
    family: AbstractFamily,
    transform: AbstractScoreTransform,
    strands: Strands | None,
    maximize: bool,
) -> Learned:
    """Weights and ridge by evidence; the typical ones for a few rows."""
    typical, spread = family.typical_weights(space).to(data.scores), None
    if len(data) < FEW:
        return Learned(weights=typical, ridge=1e-2, status=Status.CONVERGED, evidence=0.0)
    if strands is None and len(space.groups) > len(space.columns) and len(data) >= ROWS_PER_GROUP * len(space.groups):
        owners = torch.tensor([column for column, _ in space.groups], device=typical.device)
        several = torch.bincount(owners)[owners] > 1
        typical, spread = typical[owners], torch.where(several, POSITION_SPREAD, WEIGHT_SPREAD).to(typical)
    latent = transform.forward(data.scores)
    targets = (latent - latent.mean()) / latent.std(correction=0)
    centre = feature_centre(space, data.codes, strands)
    problem = Evidence(
        kernel=family.kernel if strands is None else StrandKernel(family.kernel),
        points=lambda weights: design_points(space, data.codes, family, weights, centre, strands),
        targets=targets if maximize else -targets,
        mass=data.mass,
        typical=typical,
        spread=spread,
    )
    return problem.maximise()
