"""The problems of bidirectional learning on an embedding: a head per design, one step of the designs, and what it is worth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from sciopt.bilevel import BilevelProblem, hypergradient
from sciopt.domains.offline.ascent import Ensemble, train_ensemble
from sciopt.domains.offline.embeddings import AbstractEmbedding, StandardisedEmbedding, fit_standardised
from sciopt.domains.offline.relaxation import standardised
from sciopt.domains.offline.spaces import CategoricalSpace
from sciopt.domains.offline.task import Table
from sciopt.hypergradients import ClosedForm, Unrolled
from sciopt.inner import ridge as ridge_regression
from sciopt.problem import Minimize, Recurrence

__all__ = ["SequenceProblem", "sequence_problem"]

BETAS = (0.9, 0.999)  # of Adam
CHUNK = 4096  # designs predicted at a time


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class SequenceProblem:
    """Everything that `BIB` asks of a table, stated once. Made by `sequence_problem`.

    Args:
        space: the designs.
        embedding: standardised over the table.
        head: the linear head fitted to the table ``(d,)``.
        second: ``F^T F / n`` of the visible vectors ``(d, d)``, or where d > n their factor ``F / sqrt(n)``, ``(n, d)``.
        first: ``F^T y / n``, ``(d,)``.
        rest: ``y^T y / n``.
        auxiliary: the networks that judge a step.
        target: preset label.
        ridge: see `BIB`.
        straight_through: see `BIB`.
        mean: of the visible scores.
        scale: their standard deviation.

    Example:
        >>> from sciopt.domains.offline import OneHot, nk_landscape
        >>> task = nk_landscape(length=6, neighbours=0)
        >>> stated = sequence_problem(
        ...     task.space, task.visible(), OneHot(), ensemble=(1, 32, 5), generator=torch.Generator().manual_seed(0)
        ... )
        >>> state = stated.start(task.visible().best(3), 0.6)
        >>> stated.forward(state["logits"]).shape, stated.backward(state["logits"]).shape
        (torch.Size([3]), torch.Size([3]))
    """

    space: CategoricalSpace
    embedding: StandardisedEmbedding
    head: Tensor
    second: Tensor
    first: Tensor
    rest: Tensor
    auxiliary: Ensemble
    target: float
    ridge: float
    straight_through: bool
    mean: Tensor
    scale: Tensor

    def start(self, designs: Tensor, keep: float) -> dict[str, Tensor]:
        """State before the first step: logits of smoothed letters ``(count, length, letters)``, and Adam's two moments."""
        logits = torch.log(keep * self.space.one_hot(designs) + (1 - keep) / self.space.letters)
        return {"logits": logits, "moment": torch.zeros_like(logits), "square": torch.zeros_like(logits)}

    def vectors(self, logits: Tensor) -> Tensor:
        """Embedded logits ``(count, d)``."""
        probabilities = logits.softmax(-1)
        if self.straight_through:
            hard = torch.nn.functional.one_hot(logits.argmax(-1), self.space.letters).to(probabilities)
            probabilities = hard + (probabilities - probabilities.detach())
        return self.embedding.relaxed(self.space, probabilities)

    def forward(self, logits: Tensor) -> Tensor:
        """How far the head's prediction of each design is from the target: ``(count,)``."""
        return 0.5 * (self.vectors(logits) @ self.head - self.target) ** 2

    def backward(self, logits: Tensor, alpha: Tensor | None = None) -> Tensor:
        """Mean squared error over the table of the head fitted to each design alone, by its dual weight: ``(count,)``."""
        vectors = self.vectors(logits)
        dual = (self.formula(logits) if alpha is None else alpha).squeeze(-1)
        if len(self.second) == len(self.head) and self.second.shape[1] == len(self.second):
            quadratic = ((vectors @ self.second) * vectors).sum(-1)
        else:
            quadratic = (vectors @ self.second.mT).square().sum(-1)
        return 0.5 * (dual * dual * quadratic - 2 * dual * (vectors @ self.first) + self.rest)

    @property
    def inner(self) -> Minimize:
        """Ridge regression on one design each: dual weights ``(count, 1)``, a batch of ``count`` problems."""

        def energy(alpha: Tensor, logits: Tensor) -> Tensor:
            return (0.5 * self._system(logits) * alpha * alpha - self.target * alpha).sum(-1)

        return Minimize(energy, batch_ndim=1)

    def formula(self, logits: Tensor) -> Tensor:
        """The inner solution ``(count, 1)``."""
        return self.target / self._system(logits)

    def slopes(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of the forward and of the backward term in the logits, the latter by hypergradient."""
        given = logits.detach().requires_grad_()
        with torch.enable_grad():
            (forward,) = torch.autograd.grad(self.forward(given).sum(), given)
        problem = BilevelProblem(inner=self.inner, outer_loss=lambda alpha, x: self.backward(x, alpha).sum())
        found = hypergradient(
            problem,
            logits.detach(),
            init=logits.new_zeros(len(logits), 1),
            hypergradient=ClosedForm(self.formula),
            certificate=False,
        )
        return forward, found.grad

    def step(self, state: dict[str, Tensor], t: int) -> Recurrence:
        """One step of Adam on the weighted terms, as a map of ``{"weight": (count,), "log_step": (count,)}``."""
        forward, backward = self.slopes(state["logits"])
        lean = 1 - BETAS[0] ** (t + 1), 1 - BETAS[1] ** (t + 1)

        def move(current: dict[str, Tensor], outer: dict[str, Tensor], index: Tensor) -> dict[str, Tensor]:
            weight = outer["weight"].reshape(-1, 1, 1)
            slope = weight * forward + (1 - weight) * backward
            moment = BETAS[0] * current["moment"] + (1 - BETAS[0]) * slope
            square = BETAS[1] * current["square"] + (1 - BETAS[1]) * slope * slope
            direction = (moment / lean[0]) / ((square / lean[1] + TINY).sqrt() + 1e-8)
            logits = current["logits"] - outer["log_step"].exp().reshape(-1, 1, 1) * direction
            return {"logits": logits, "moment": moment, "square": square}

        return Recurrence(move, num_steps=1, batch_ndim=1)

    def outer(self, step: Recurrence, state: dict[str, Tensor], outer: dict[str, Tensor]) -> dict[str, Tensor]:
        """Hypergradient of minus the auxiliary prediction after the step, in the weights and the logarithms of the steps."""
        problem = BilevelProblem(inner=step, outer_loss=lambda moved, _: -self.judged(moved["logits"]).sum())
        found = hypergradient(
            problem,
            {name: value.detach() for name, value in outer.items()},
            init={name: value.detach() for name, value in state.items()},
            hypergradient=Unrolled(),
            certificate=False,
        )
        return found.grad

    def judged(self, logits: Tensor) -> Tensor:
        """The auxiliary prediction of each design, in standardised scores: ``(count,)``."""
        return self.auxiliary.predict(self.vectors(logits)).mean(0)

    def predict(self, designs: Tensor) -> Tensor:
        """Scores of designs ``(n, length)`` by the mean of the head and the auxiliary networks: ``(n,)``, in score units."""
        parts = []
        with torch.no_grad():
            for chunk in designs.split(CHUNK):
                vectors = self.embedding(self.space, chunk)
                parts.append(0.5 * (vectors @ self.head + self.auxiliary.predict(vectors).mean(0)))
        return torch.cat(parts) * self.scale + self.mean if parts else self.head.new_empty(0)

    def _system(self, logits: Tensor) -> Tensor:
        return (1 + self.ridge) * self.vectors(logits).square().sum(-1, keepdim=True)


def sequence_problem(
    space: CategoricalSpace,
    table: Table,
    embedding: AbstractEmbedding,
    *,
    target: float = 10.0,
    ridge: float = 1e-2,
    straight_through: bool = True,
    ensemble: tuple[int, int, int] = (5, 4000, 300),
    generator: torch.Generator,
) -> SequenceProblem:
    """State `BIB`'s problems for a table: embed, standardise, fit the head, train the auxiliary networks.

    Args:
        space: the designs.
        table: the visible rows.
        embedding: a differentiable one.
        target: preset label, in standard deviations.
        ridge: see `BIB`.
        straight_through: see `BIB`.
        ensemble: networks, largest number of rows and steps of their training.
        generator: the one source of chance.

    Returns:
        `SequenceProblem`.

    Raises:
        ValueError: for constant scores.

    Example:
        >>> from sciopt.domains.offline import KMer, nk_landscape
        >>> task = nk_landscape(length=6, neighbours=0)
        >>> options = {"ensemble": (1, 32, 5), "generator": torch.Generator().manual_seed(0)}
        >>> sequence_problem(task.space, task.visible(), KMer(k=2), **options).head.shape
        torch.Size([4])
    """
    targets, mean, scale = standardised(table.scores.to(torch.float64))
    standard = fit_standardised(embedding, space, table.designs)
    vectors = standard(space, table.designs)
    head = ridge_regression(vectors, targets, ridge * vectors.square().sum(-1).mean())
    members, rows, train_steps = ensemble
    some = torch.randperm(len(vectors), generator=generator, device=generator.device)[:rows].to(vectors.device)
    networks = train_ensemble(vectors[some], targets[some], members=members, max_steps=train_steps, generator=generator)
    n, d = vectors.shape
    return SequenceProblem(
        space=space,
        embedding=standard,
        head=head,
        second=vectors.mT @ vectors / n if d <= n else vectors / n**0.5,
        first=targets @ vectors / n,
        rest=targets @ targets / n,
        auxiliary=networks,
        target=target,
        ridge=ridge,
        straight_through=straight_through,
        mean=mean,
        scale=scale,
    )


TINY = 1e-40  # the square root of an exact 0 has no derivative
