"""Does a model choose well? Kernel and noise by what a batch is for, on rows left out as a batch is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from sciopt.domains.offline.proposal.calibration import calibrate
from sciopt.domains.offline.proposal.design_space import DesignSpace
from sciopt.domains.offline.proposal.evidence import Learned, held_out_together
from sciopt.domains.offline.proposal.families import AbstractFamily
from sciopt.domains.offline.proposal.model import Observations, ScoreModel, fit_model
from sciopt.domains.offline.proposal.score_transforms import AbstractScoreTransform
from sciopt.domains.offline.proposal.strands import Strands
from sciopt.inner import merge_duplicates

__all__ = ["Purpose"]

TOP = 0.05  # share of rows, the best predicted ones, that stands for a batch
HIDDEN = 0.1  # share of rows, the best ones, that are left out all together
PARTS = 4  # in which the other rows are left out with them
NOISES = (1.0, 0.3, 0.1, 0.03)  # times the learned ridge
SLACK = 0.03  # nats per row that a lower noise may lose for a better choice of the best


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Purpose:
    """What the best predicted 5 % of left-out rows score: what a batch is for, where the density is not.

    Where most designs hardly score, the held-out density of all rows says how well a model knows those. And a kernel that
    interpolates well may find nothing beyond the data, where a batch is looked for.

    Args:
        space: the columns.
        data: rows, more than weights and noise were learned from, few enough for a Cholesky factor.
        transform: of the scores.
        strands: the symmetry, or None.
        maximize: whether higher is better.
        generator: says which rows are left out together.

    Example:
        See `sciopt.domains.offline.proposal.propose`.
    """

    space: DesignSpace
    data: Observations
    transform: AbstractScoreTransform
    strands: Strands | None
    maximize: bool
    generator: torch.Generator

    def kernel(
        self, tried: Sequence[tuple[AbstractFamily, Learned]], chosen: int
    ) -> tuple[AbstractFamily, Learned, list[str]]:
        """The kernel that finds the best tenth of the rows without having seen any of them.

        The best rows are left out all together, and with them a quarter of the others after another.

        Args:
            tried: kernels with what was learned for them.
            chosen: index of the one that stays unless another finds more.

        Returns:
            The kernel, what was learned for it, and a sentence if it is another.
        """
        count = max(1, int(HIDDEN * len(self.data)))
        order = self.data.scores.argsort(descending=self.maximize, stable=True)
        top, rest = order[:count], order[count:]
        drawn = torch.randperm(len(rest), generator=self.generator).to(rest.device)
        rest = rest[drawn[: len(rest) // PARTS * PARTS]].reshape(PARTS, -1)
        models = [self._fitted(family, learned.weights, learned.ridge) for family, learned in tried]
        found = [self._found(model, top, rest) for model in models]
        means = torch.stack([scores.mean() for scores in found])
        best = int(means.argmax() if self.maximize else means.argmin())
        if bool(means[best] == means[chosen]):
            return *tried[chosen], []
        return *tried[best], [
            f"The kernel was chosen for what it finds: with the best {HIDDEN:.0%} of {len(self.data)} rows unseen, the "
            f"{TOP:.0%} of rows that it predicts best score {float(means[best]):.3g} on average, those of "
            f"{tried[chosen][0].describe()} {float(means[chosen]):.3g}."
        ]

    def noise(self, family: AbstractFamily, learned: Learned) -> tuple[float, list[str]]:
        """The ridge, not above the learned one, by which the best predicted rows score most, each row left out once.

        Noise learned from a part of the rows holds what that part could not tell apart.

        Returns:
            The ridge, whose held-out density is within 0.03 nats per row of the best, and a sentence if it is another.
        """
        found: list[tuple[float, float, float]] = []  # mean score, density, factor
        sign = 1.0 if self.maximize else -1.0
        for factor in NOISES:
            model = self._fitted(family, learned.weights, factor * learned.ridge)
            _, calibration, density = calibrate(model, self.data, self.generator)
            found.append((sign * float(self._best(calibration.predicted).mean()), density, factor))
        bound = max(density for _, density, _ in found) - SLACK
        score, density, factor = max(row for row in found if row[1] >= bound)
        if factor == 1.0:
            return learned.ridge, []
        return factor * learned.ridge, [
            f"The noise is {factor:g} of what was learned: of {len(self.data)} rows, each left out once, the {TOP:.0%} with "
            f"the best predictions then score {sign * score:.3g} on average, before {sign * found[0][0]:.3g}; the log "
            f"density of all of them is {density:.3f} each, before {found[0][1]:.3f}."
        ]

    def _fitted(self, family: AbstractFamily, weights: Tensor, ridge: float) -> ScoreModel:
        return fit_model(
            self.space, self.data, family, weights, ridge, self.transform, strands=self.strands, maximize=self.maximize
        )

    def _best(self, predicted: Tensor) -> Tensor:
        """Scores of the rows with the best predictions."""
        count = max(2, int(TOP * len(self.data)))
        return self.data.scores[predicted.topk(count, largest=self.maximize).indices]

    def _found(self, model: ScoreModel, top: Tensor, rest: Tensor) -> Tensor:
        """Scores of the rows that a model takes for the best without having seen those ``top``; of ``rest`` row by row."""
        if model.fit.factor is None:
            raise ValueError(
                f"Purpose: expected `data` with few enough rows for a Cholesky factor, got {len(self.data)}. Pass a part."
            )
        targets = model.latent(self.data.scores)
        _, ordered, _, place = merge_duplicates(model.points(self.data.codes), targets, self.data.mass)
        rows = torch.cat([top.expand(len(rest), -1), rest], 1)
        means = held_out_together(model.fit.factor, ordered, place[rows])
        predicted = torch.full_like(targets, -torch.inf)
        predicted[rest.flatten()] = means[:, len(top) :].flatten()
        predicted[top] = means[:, : len(top)].mean(0)
        return self.data.scores[predicted.topk(max(2, int(TOP * len(self.data)))).indices]
