"""Matching of gradients: designs pull networks where the data pull them."""

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
    check_steps,
)
from sciopt.domains.offline.distillation.networks import NetworkFamily, Weights, loss_gradient, tangent

__all__ = ["GradientMatching"]


@final
@dataclass(frozen=True, kw_only=True)
class GradientMatching(AbstractMatching):
    """Designs on which networks' losses have the gradients that they have on the data.

    A network near its start pulls its weights where the high scores are; a design with a high label that pulls them there too
    has what high scores have in common. Layer by layer, as a mean over random networks, optionally along their training on the
    designs. Gradients are outer products and are compared as such, so that a step costs a few passes through the networks.

    Args:
        networks: the random networks.
        num_steps: further points of comparison while the networks are trained on the designs; each costs a pass over all rows
            for each set.
        step_size: of that training, by gradient descent.
        distance: between gradients, layer by layer.

    Raises:
        ValueError: for a negative ``num_steps``.

    Example:
        >>> from sciopt.domains.offline import nk_landscape
        >>> from sciopt.domains.offline.distillation import matching_lesson
        >>> task = nk_landscape(length=4, neighbours=0)
        >>> lesson = matching_lesson(task.space, task.visible())
        >>> stated = GradientMatching().state(lesson, generator=torch.Generator().manual_seed(0))
        >>> start = lesson.points[:2].unsqueeze(1)
        >>> bool((stated.loss(stated.search(start, 20)) < stated.loss(start)).all())
        True

    References:
        Zhao, Mopuri, Bilen. "Dataset condensation with gradient matching". ICLR 2021, eq. 9, 10.
    """

    networks: NetworkFamily = field(default_factory=NetworkFamily)
    num_steps: int = 0
    step_size: float = 0.01
    distance: AbstractDistance = field(default_factory=CosineDistance)

    def __post_init__(self) -> None:
        check_steps("GradientMatching", "num_steps", self.num_steps, 0)

    def state(self, lesson: Lesson, *, generator: torch.Generator) -> MatchingProblem:
        """See `AbstractMatching.state`."""
        weights = self.networks.draw(lesson.points.shape[1], generator=generator, like=lesson.points)
        data = lesson.points.unsqueeze(0)
        with torch.no_grad():
            first = loss_gradient(weights, data, lesson.targets, lesson.shares)

        def mismatch(path: Weights, outer: dict[str, Tensor]) -> Tensor:
            total = outer["designs"].new_zeros(len(outer["designs"]))
            for t in range(self.num_steps + 1):
                now = {name: value[t] for name, value in path.items()}
                wanted = first if t == 0 else loss_gradient(now, data, lesson.targets, lesson.shares)
                total = total + self._distance(now, wanted, outer["designs"], lesson.target)
            return total / (self.num_steps + 1)

        return by_networks(lesson, weights, mismatch, num_steps=self.num_steps, step_size=self.step_size)

    def _distance(self, weights: Weights, wanted: Weights, designs: Tensor, target: float) -> Tensor:
        """Mean over layers and networks of the distance between both gradients ``(sets,)``."""
        at = tangent(weights, designs)
        pull = (at.outputs - target) / designs.shape[1]
        parts = []
        for left, right, other in zip(at.inputs, at.deltas, wanted.values(), strict=True):
            along = (torch.einsum("skmi,skio->skmo", left, other) * right).sum(-1)
            product = (pull * along).sum(-1)
            gram = torch.einsum("skmi,skni->skmn", left, left) * torch.einsum("skmo,skno->skmn", right, right)
            own = torch.einsum("skm,skmn,skn->sk", pull, gram, pull)
            parts.append(self.distance.between(product, own, other.square().sum((-1, -2))))
        return torch.stack(parts).mean(0).mean(-1)
