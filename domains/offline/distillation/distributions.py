"""Matching of distributions: designs have the mean features of data with the preset score."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from sciopt.domains.offline.distillation.matching import (
    AbstractDistance,
    AbstractMatching,
    CosineDistance,
    Lesson,
    MatchingProblem,
    by_networks,
)
from sciopt.domains.offline.distillation.networks import NetworkFamily, Weights, features

__all__ = ["DistributionMatching", "tilted"]


@final
@dataclass(frozen=True, kw_only=True)
class DistributionMatching(AbstractMatching):
    """Sets of designs whose mean features, in random networks, are those of data with the preset score.

    The data are weighted so that their mean score is the preset label (see `tilted`), which beyond the highest scores
    extrapolates the features; nothing is trained.

    Args:
        networks: the random networks; their last hidden layers are the features.
        distance: between displacements from the mean of all data; with `SquaredDistance` the size counts too, which sets of
            several designs can meet and a single one cannot.

    Example:
        >>> from sciopt.domains.offline import nk_landscape
        >>> from sciopt.domains.offline.distillation import matching_lesson
        >>> task = nk_landscape(length=4, neighbours=0)
        >>> lesson = matching_lesson(task.space, task.visible(), target=2.0)
        >>> stated = DistributionMatching().state(lesson, generator=torch.Generator().manual_seed(0))
        >>> start = lesson.points[:4].reshape(1, 4, 4)
        >>> bool((stated.loss(stated.search(start, 20)) < stated.loss(start)).all())
        True

    References:
        Zhao, Bilen. "Dataset condensation with distribution matching". WACV 2023, eq. 4, 5.
    """

    networks: NetworkFamily = field(default_factory=lambda: NetworkFamily(count=16))
    distance: AbstractDistance = field(default_factory=CosineDistance)

    def state(self, lesson: Lesson, *, generator: torch.Generator) -> MatchingProblem:
        """See `AbstractMatching.state`."""
        weights = self.networks.draw(lesson.points.shape[1], generator=generator, like=lesson.points)
        with torch.no_grad():
            seen = features(weights, lesson.points.unsqueeze(0))[0]  # (networks, n, width)
            centre = torch.einsum("knw,n->kw", seen, lesson.shares)
            wanted = torch.einsum("knw,n->kw", seen, tilted(lesson.shares, lesson.targets, lesson.target)) - centre

        def mismatch(path: Weights, outer: dict[str, Tensor]) -> Tensor:
            own = features({name: value[0] for name, value in path.items()}, outer["designs"]).mean(-2) - centre
            product, other = (own * wanted).sum(-1), wanted.square().sum(-1).expand(own.shape[:-1])
            return self.distance.between(product, own.square().sum(-1), other).mean(-1)

        return by_networks(lesson, weights, mismatch)


def tilted(shares: Tensor, targets: Tensor, label: float) -> Tensor:
    """The weights nearest to the shares, in chi-square, whose mean target is the label: ``(n,)``, sum 1.

    A label beyond the data needs weights below zero on the lowest targets: the mean is extrapolated.

    Args:
        shares: ``(n,)``, positive, sum 1.
        targets: ``(n,)``, not all alike.
        label: the mean that is wanted.

    Example:
        >>> w = tilted(torch.full((3,), 1 / 3), torch.tensor([-1.0, 0.0, 1.0]), 0.5)
        >>> w, w @ torch.tensor([-1.0, 0.0, 1.0])
        (tensor([0.0833, 0.3333, 0.5833]), tensor(0.5000))
    """
    mean = shares @ targets
    centred = targets - mean
    return shares * (1 + (label - mean) / (shares @ centred.square()) * centred)
