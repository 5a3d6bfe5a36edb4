"""Bidirectional learning on an embedding of sequences, with weights and steps that an auxiliary model chooses."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from sciopt.checks import check_option
from sciopt.domains.offline.bib_problem import SequenceProblem, sequence_problem
from sciopt.domains.offline.embeddings import AbstractEmbedding, OneHot
from sciopt.domains.offline.polish import Polish
from sciopt.domains.offline.search import AbstractSearch, Proposal, best_starts, check_request, nearest_allowed
from sciopt.domains.offline.spaces import CategoricalSpace
from sciopt.domains.offline.task import Table

__all__ = ["BIB"]


@final
@dataclass(frozen=True, kw_only=True)
class BIB(AbstractSearch):
    """Bidirectional learning for sequences: a linear head on an embedding instead of an infinitely wide network.

    Designs are logits of letters. The head fitted to the data should predict a preset high score for a design (forward),
    and the head fitted to that design alone, labelled with that score, should predict the data (backward); both in closed
    form. The weight of the two terms and the step size are outer variables of their own, one pair per design: an ensemble
    of networks trained on the same vectors says how good the design is after the next step, and the hypergradient of that
    in both moves them before the step is taken. At last the designs are polished on the real design space by the mean of
    both models. Each step costs one embedding of the designs and a product with the vectors' second moments.

    Differs from the publication where that matters: the hypergradient passes through the step of Adam that is taken (not
    through plain gradient descent in its place), the step size moves by a factor, and the batch is polished.

    Args:
        embedding: a differentiable one; it is standardised over the table.
        weight: of the forward term at first, in [0, 1]; the backward term has the rest.
        adaptive_weight: move the weight by its hypergradient.
        step_size: of Adam at first, in logits.
        adaptive_step: move the step size by its hypergradient.
        num_steps: of Adam.
        target: preset label, in standard deviations above the visible mean.
        ridge: penalty of the heads, relative to the mean squared length of a vector; published: 1e-6.
        straight_through: embed the likeliest letters and differentiate through their probabilities; else embed these.
        keep: smoothing of the letters at the start.
        members: networks of the auxiliary ensemble.
        rows: largest number of visible rows to train them on; more are sampled.
        train_steps: of their training.
        polish: local search at the end; None: the designs as they are, several perhaps equal or visible.

    Raises:
        ValueError: for options out of range.
        TypeError: for an embedding that is not differentiable.

    Example:
        >>> from sciopt.domains.offline import evaluate_batch, nk_landscape
        >>> task = nk_landscape(length=6, neighbours=0)
        >>> search = BIB(num_steps=5, train_steps=50, members=2)
        >>> made = search.propose(task.space, task.visible(), 4, generator=torch.Generator().manual_seed(0))
        >>> evaluate_batch(task, made.designs).best
        1.0

    References:
        Chen, Zhang, Liu, Coates. "Bidirectional learning for offline model-based biological sequence design". ICML 2023,
        sections 3 and 4 (Adaptive-gamma, Adaptive-eta).
    """

    embedding: AbstractEmbedding = field(default_factory=OneHot)
    weight: float = 0.5
    adaptive_weight: bool = True
    step_size: float = 0.1
    adaptive_step: bool = True
    num_steps: int = 100
    target: float = 10.0
    ridge: float = 1e-2
    straight_through: bool = True
    keep: float = 0.6
    members: int = 5
    rows: int = 4000
    train_steps: int = 300
    polish: Polish | None = field(default_factory=Polish)

    def __post_init__(self) -> None:
        check_option("BIB", "weight", self.weight, 0 <= self.weight <= 1, "in [0, 1]", "0.5 is published.")
        check_option("BIB", "step_size", self.step_size, self.step_size > 0, "> 0", "0.1 is published.")
        check_option("BIB", "ridge", self.ridge, self.ridge > 0, "> 0", "1e-6 is published.")
        check_option("BIB", "keep", self.keep, 0 < self.keep < 1, "in (0, 1)", "0.6 is a good start.")
        for name in ("num_steps", "members", "rows", "train_steps"):
            value = getattr(self, name)
            check_option("BIB", name, value, value >= 1, ">= 1", "Leave the default.")
        if not self.embedding.differentiable:
            raise TypeError(
                f"BIB: expected an `embedding` that takes probabilities of letters, got {type(self.embedding).__name__}, "
                "which embeds discrete designs alone. Wrap the module in LetterModel, or search with EmbeddingSearch."
            )

    def propose(
        self,
        space: CategoricalSpace,
        table: Table,
        count: int,
        *,
        generator: torch.Generator,
        pool: Tensor | None = None,
    ) -> Proposal:
        """See `AbstractSearch.propose`; the start is the best visible designs, chance trains the networks."""
        check_request("BIB", table, count, pool, space=space, generator=generator)
        first = best_starts("BIB", table, count)
        stated = sequence_problem(
            space,
            table,
            self.embedding,
            target=self.target,
            ridge=self.ridge,
            straight_through=self.straight_through,
            ensemble=(self.members, self.rows, self.train_steps),
            generator=generator,
        )
        designs = self.search(stated, first).argmax(-1)
        if self.polish is None:
            designs = nearest_allowed(designs, pool)
            return Proposal(designs=designs, predicted=stated.predict(designs))
        designs, predicted = self.polish.improve(
            stated.predict, space, table, designs, count, generator=generator, pool=pool
        )
        return Proposal(designs=designs, predicted=predicted)

    def search(self, stated: SequenceProblem, designs: Tensor) -> Tensor:
        """Logits ``(count, length, letters)`` after all steps from designs ``(count, length)``."""
        state = stated.start(designs, self.keep)
        weight = state["logits"].new_full((len(designs),), self.weight)
        log_step = torch.full_like(weight, self.step_size).log()
        bounds = tuple(float(log_step[0]) + change for change in LOG_STEP_RANGE) if len(log_step) else (0.0, 0.0)
        rule = torch.optim.Adam([weight, log_step], lr=OUTER_STEP)
        for t in range(self.num_steps):
            step = stated.step(state, t)
            if self.adaptive_weight or self.adaptive_step:
                slope = stated.outer(step, state, {"weight": weight, "log_step": log_step})
                weight.grad = slope["weight"] if self.adaptive_weight else None
                log_step.grad = slope["log_step"] if self.adaptive_step else None
                rule.step()
                weight.clamp_(0.0, 1.0)
                log_step.clamp_(*bounds)
            with torch.no_grad():
                state = step.run(state, {"weight": weight, "log_step": log_step})
        return state["logits"]


OUTER_STEP = 0.1  # of Adam on the weights and the logarithms of the steps; published for the weights
LOG_STEP_RANGE = (-6.9, 1.61)  # a thousandth to five times the first step size, published: 1e-4 to 0.5 for 0.1
