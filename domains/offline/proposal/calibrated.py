"""Which model: evidence learns it, rows left out choose its kernel, score transform and noise."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sciopt.domains.offline.proposal.batch import Calibration
from sciopt.domains.offline.proposal.calibration import calibrate
from sciopt.domains.offline.proposal.columns import SequenceColumn
from sciopt.domains.offline.proposal.design_space import DesignSpace
from sciopt.domains.offline.proposal.evidence import WEIGHT_SPREAD, Evidence, Learned
from sciopt.domains.offline.proposal.families import AbstractFamily, Gaussian, StrandKernel, WideNetwork
from sciopt.domains.offline.proposal.letters import SimilarLetters, has_amino_acids
from sciopt.domains.offline.proposal.model import Observations, ScoreModel, design_points, feature_centre, fit_model
from sciopt.domains.offline.proposal.purpose import Purpose
from sciopt.domains.offline.proposal.score_transforms import AbstractScoreTransform, PlainScores, suggested_transforms
from sciopt.domains.offline.proposal.strands import Strands
from sciopt.solution import Status

__all__ = ["calibrate", "choose_model"]

LEARNING_ROWS = 600  # rows from which weights, noise, family and transform are learned
PURPOSE_ROWS = 2_000  # rows on which kernel and noise are looked at again where there are more than that
ROWS_PER_GROUP = 10  # rows for each weight that positions of sequences need to have their own
POSITION_SPREAD = 0.5  # prior standard deviation of the logarithms of their weights
FEW = 5  # rows below which nothing but the prior chooses
GAIN = 3.0  # nats of held-out density that another kernel or a transform has to bring


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
    """Learn weights of columns and noise by evidence, choose score transform and kernel by held-out density, fit, calibrate.

    Where 600 of more rows are learned from, up to 2,000 say whether kernel and noise choose well, see `Purpose`.

    Args:
        space: the columns.
        data: what was measured, at least two different scores.
        strands: the symmetry, or None.
        maximize: whether higher is better.
        generator: draws the rows to learn from where there are more than 600.
        families: kernels to choose among, the first unless another brings 3 nats of held-out density; empty: `SimilarLetters`
            and a wide network for proteins, a wide network and a Gaussian kernel for other sequences, and these two in the
            other order where there are none.
        dense_rows: see `fit_model`.

    Returns:
        The model, its `Calibration`, and what was chosen, in sentences.

    Example:
        See `sciopt.domains.offline.proposal.propose`.
    """
    if not families:
        lettered = any(isinstance(column, SequenceColumn) for column in space.columns)
        families = (WideNetwork(), Gaussian()) if lettered else (Gaussian(), WideNetwork())
        families = (SimilarLetters(), WideNetwork()) if has_amino_acids(space) else families
    order = torch.randperm(len(data), generator=generator).to(data.codes.device)
    some = data if len(data) <= LEARNING_ROWS else data.subset(order[:LEARNING_ROWS].sort().values)
    lines = []
    transforms = suggested_transforms(data.scores, GAIN) if len(data) >= 4 * FEW else [PlainScores()]
    tried: list[tuple[AbstractFamily, Learned]] = []
    most, chosen, transform = -math.inf, 0, transforms[0]
    for family in families:
        kept: Learned | None = None
        for other in transforms:
            learned = _learned(space, some, family, other, strands, maximize)
            model = fit_model(
                space, some, family, learned.weights, learned.ridge, other, strands=strands, maximize=maximize
            )
            total = calibrate(model, some, generator)[2] * len(some)
            if kept is None or total > most + GAIN:
                kept, transform = learned, other
            if total > most + GAIN:
                most, chosen = total, len(tried)
        assert kept is not None
        tried.append((family, kept))
        transforms = [transform]
    family, learned = tried[chosen]
    ridge, said = learned.ridge, []
    if len(some) < len(data) <= dense_rows:
        many = data if len(data) <= PURPOSE_ROWS else data.subset(order[:PURPOSE_ROWS].sort().values)
        purpose = Purpose(
            space=space, data=many, transform=transform, strands=strands, maximize=maximize, generator=generator
        )
        family, learned, said = purpose.kernel(tried, chosen)
        ridge, more = purpose.noise(family, learned)
        said += more
    model = fit_model(
        space, data, family, learned.weights, ridge, transform, strands=strands, maximize=maximize,
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
    lines += said
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
