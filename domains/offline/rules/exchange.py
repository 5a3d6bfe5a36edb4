"""Distillation by exchanging letters: bidirectional learning on an embedding that shares positions, on real designs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from sciopt.bilevel import BilevelProblem, hypergradient
from sciopt.checks import check_option
from sciopt.domains.offline.distillation.distill import sampled
from sciopt.domains.offline.embeddings import (
    AbstractEmbedding,
    OneHot,
    SideBySide,
    SpacedPairs,
    StandardisedEmbedding,
    fit_standardised,
)
from sciopt.domains.offline.relaxation import standardised
from sciopt.domains.offline.rules.rules import count_transitions, never_seen
from sciopt.domains.offline.search import AbstractSearch, Proposal, best_starts, check_request, nearest_allowed
from sciopt.domains.offline.spaces import CategoricalSpace
from sciopt.domains.offline.task import Table
from sciopt.hypergradients import ClosedForm
from sciopt.inner import ridge as ridge_regression
from sciopt.problem import Minimize

__all__ = ["ExchangeDistillation"]

CHUNK = 128  # designs moved together
TRIED = 8  # best exchanges of a design that are offered to known constraints
REACH = 10  # of the default embedding


@final
@dataclass(frozen=True, kw_only=True)
class ExchangeDistillation(AbstractSearch):
    """Distils the best visible designs letter by letter, through a linear model that knows motifs wherever they stand.

    The bi-level problem of each design is that of bidirectional learning: the model trained on that design alone, labelled
    with a preset high score, should predict the table (backward), and the model trained on the table should predict that
    score (forward); both inner problems in closed form. Each step exchanges the one letter whose exchange lowers the outer
    loss most, to first order, so designs stay designs, near those they started from. What is good at one position is tried at
    all others, as no dense network on letters at positions does: rules of such designs recover motifs. Neighbours that the
    table never shows, though chance would have made them, are avoided. Costs ``num_steps`` embeddings of the designs.

    Args:
        embedding: a differentiable one, standardised over the table; letters at positions and `SpacedPairs` as it is.
        weight: of the forward term, in [0, 1]; the backward term has the rest.
        target: preset label, in standard deviations above the visible mean.
        ridge: penalty of the models, relative to the mean squared length of a vector.
        num_steps: exchanges per design; 0 leaves the starts as they are.
        rows: largest number of visible rows to learn from; more are sampled, the best always kept.
        allowed: ``designs (n, length) -> bool (n,)``, known constraints such as feasibility; None: everything.
        dtype: of the search; the model is fitted in float64.

    Raises:
        ValueError: for options out of range.
        TypeError: for an embedding that is not differentiable.

    Example:
        >>> from sciopt.domains.offline import nk_landscape
        >>> task = nk_landscape(length=6, neighbours=0)
        >>> made = ExchangeDistillation().propose(task.space, task.visible(), 4, generator=torch.Generator())
        >>> bool(task.score(made.designs).mean() > task.score(task.visible().best(4)).mean())
        True

    References:
        Chen, Zhang, Liu, Coates. "Bidirectional learning for offline model-based biological sequence design". ICML 2023,
        section 3 (both terms on an embedding). Chen et al. "Gradient-based Bi-level Optimization for Deep Learning: A
        Survey", section 5.1 (patterns of distilled designs).
    """

    embedding: AbstractEmbedding = field(default_factory=lambda: SideBySide(parts=(OneHot(), SpacedPairs(reach=REACH))))
    weight: float = 0.5
    target: float = 10.0
    ridge: float = 0.1
    num_steps: int = 5
    rows: int = 10_000
    allowed: Callable[[Tensor], Tensor] | None = None
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        owner = "ExchangeDistillation"
        check_option(owner, "weight", self.weight, 0 <= self.weight <= 1, "in [0, 1]", "0.5 is a good start.")
        check_option(owner, "ridge", self.ridge, self.ridge > 0, "> 0", "0.1 is a good start.")
        check_option(owner, "num_steps", self.num_steps, self.num_steps >= 0, ">= 0", "5 is a good start.")
        check_option(owner, "rows", self.rows, self.rows >= 2, ">= 2", "Leave the default.")
        if not self.embedding.differentiable:
            raise TypeError(
                f"{owner}: expected an `embedding` that takes probabilities of letters, got {type(self.embedding).__name__}, "
                "which embeds discrete designs alone. Wrap the module in LetterModel."
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
        """See `AbstractSearch.propose`; starts from the best visible designs, several of which may end as the same one."""
        check_request("ExchangeDistillation", table, count, pool, space=space, generator=generator)
        start = best_starts("ExchangeDistillation", table, count)
        stated = _state(self, space, sampled(table, self.rows, generator))
        designs = torch.cat([stated.moved(chunk) for chunk in start.split(CHUNK)])
        designs = nearest_allowed(designs, pool)
        return Proposal(designs=designs, predicted=stated.predict(designs))


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class _Stated:
    """The problem of a table: its standardised embedding, its head, and the moments that the backward term needs."""

    options: ExchangeDistillation
    space: CategoricalSpace
    embedding: StandardisedEmbedding
    head: Tensor  # (d,), float64
    factor: Tensor  # (m, d), whose product with itself is the vectors' second moment
    first: Tensor  # (d,), mean product of vectors and targets
    rest: Tensor  # mean square of the targets
    mean: Tensor
    scale: Tensor
    never: Tensor  # (letters, letters), neighbours to avoid

    def predict(self, designs: Tensor) -> Tensor:
        """Scores ``(n,)`` by the head fitted to the table."""
        with torch.no_grad():
            return (self.embedding(self.space, designs) @ self.head) * self.scale + self.mean

    def slope(self, vectors: Tensor) -> Tensor:
        """Gradient of the outer loss in the vectors ``(n, d)``, that of the backward term by hypergradient."""
        options, head = self.options, self.head.to(vectors)

        def system(v: Tensor) -> Tensor:
            return (1 + options.ridge) * v.square().sum(-1, keepdim=True)

        def energy(alpha: Tensor, v: Tensor) -> Tensor:
            return (0.5 * system(v) * alpha * alpha - options.target * alpha).sum(-1)

        def outer(alpha: Tensor, v: Tensor) -> Tensor:
            dual = alpha.squeeze(-1)
            explained = dual * dual * (v @ self.factor.mT).square().sum(-1) - 2 * dual * (v @ self.first) + self.rest
            forward = 0.5 * (v @ head - options.target).square()
            return (options.weight * forward + (1 - options.weight) * 0.5 * explained).sum()

        found = hypergradient(
            BilevelProblem(inner=Minimize(energy, batch_ndim=1), outer_loss=outer),
            vectors,
            init=vectors.new_zeros(len(vectors), 1),
            hypergradient=ClosedForm(lambda v: options.target / system(v)),
            certificate=False,
        )
        return found.grad

    def gains(self, designs: Tensor) -> Tensor:
        """What each exchange of a letter lowers the outer loss by, to first order: ``(n, length, letters)``."""
        letters = self.space.one_hot(designs, self.options.dtype).requires_grad_()
        with torch.enable_grad():
            vectors = self.embedding.relaxed(self.space, letters)
        (slope,) = torch.autograd.grad(vectors, letters, self.slope(vectors.detach()))
        gain = slope.gather(-1, designs.unsqueeze(-1)) - slope
        gain[:, 1:].masked_fill_(self.never[designs[:, :-1]], -torch.inf)
        gain[:, :-1].masked_fill_(self.never.mT[designs[:, 1:]], -torch.inf)
        return gain

    def moved(self, designs: Tensor) -> Tensor:
        """Designs ``(n, length)`` after all exchanges."""
        for _ in range(self.options.num_steps):
            best, moves = self.gains(designs).flatten(1).topk(min(TRIED, self.space.length * self.space.letters))
            place, letter = moves // self.space.letters, moves % self.space.letters
            tried = (
                designs.unsqueeze(1).repeat(1, moves.shape[1], 1).scatter(2, place.unsqueeze(-1), letter.unsqueeze(-1))
            )
            good = best > 0
            if self.options.allowed is not None:
                good = good & self.options.allowed(tried.flatten(0, 1)).reshape(good.shape)
            chosen = good.to(torch.uint8).argmax(-1)  # the first that is good
            taken = tried[torch.arange(len(designs), device=designs.device), chosen]
            designs = torch.where(good.any(-1, keepdim=True), taken, designs)
        return designs


def _state(options: ExchangeDistillation, space: CategoricalSpace, table: Table) -> _Stated:
    """Embed, standardise, and fit the head to the table."""
    targets, mean, scale = standardised(table.scores.to(torch.float64))
    standard = fit_standardised(options.embedding, space, table.designs)
    vectors = standard(space, table.designs)
    n = len(vectors)
    head = ridge_regression(vectors, targets, options.ridge * vectors.square().sum(-1).mean())
    return _Stated(
        options=options,
        space=space,
        embedding=standard,
        head=head,
        factor=(vectors / n**0.5).to(options.dtype),
        first=(targets @ vectors / n).to(options.dtype),
        rest=(targets @ targets / n).to(options.dtype),
        mean=mean,
        scale=scale,
        never=never_seen(count_transitions(space, table.designs), LEVEL),
    )


LEVEL = 0.01  # largest chance of any neighbours avoided that could have been seen
