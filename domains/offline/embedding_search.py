"""Search of the real design space by models on an embedding, which may be a black box such as a language model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from sciopt.checks import check_option
from sciopt.domains.offline.bib_problem import sequence_problem
from sciopt.domains.offline.embeddings import AbstractEmbedding, OneHot
from sciopt.domains.offline.evolution import EvolutionarySearch, evolve
from sciopt.domains.offline.search import AbstractSearch, Proposal, check_request
from sciopt.domains.offline.spaces import CategoricalSpace
from sciopt.domains.offline.task import Table

__all__ = ["EmbeddingSearch"]


@final
@dataclass(frozen=True, kw_only=True)
class EmbeddingSearch(AbstractSearch):
    """Mutants and crossovers, led by the mean of a linear head and an ensemble of networks on any embedding.

    The models are those of `BIB`; nothing is asked of the embedding but vectors of designs. Each round embeds its children:
    with a language model that is the cost, so lower ``children`` and ``rounds`` of the evolution.

    Args:
        embedding: any, standardised over the table.
        ridge: penalty of the head, relative to the mean squared length of a vector.
        members: networks of the ensemble.
        rows: largest number of visible rows to train them on; more are sampled.
        train_steps: of their training.
        evolution: population, children, mutations, rounds and constraints; its kernel is not used.

    Raises:
        ValueError: for options out of range.

    Example:
        >>> from sciopt.domains.offline import SequenceModel, evaluate_batch, nk_landscape
        >>> task = nk_landscape(length=6, neighbours=0)
        >>> model = lambda texts: torch.tensor([[float(letter) for letter in text] for text in texts])
        >>> search = EmbeddingSearch(embedding=SequenceModel(model=model), members=2, train_steps=50)
        >>> made = search.propose(task.space, task.visible(), 4, generator=torch.Generator().manual_seed(0))
        >>> evaluate_batch(task, made.designs).best
        1.0
    """

    embedding: AbstractEmbedding = field(default_factory=OneHot)
    ridge: float = 1e-2
    members: int = 5
    rows: int = 4000
    train_steps: int = 300
    evolution: EvolutionarySearch = field(default_factory=EvolutionarySearch)

    def __post_init__(self) -> None:
        check_option("EmbeddingSearch", "ridge", self.ridge, self.ridge > 0, "> 0", "1e-2 is a good start.")
        for name in ("members", "rows", "train_steps"):
            value = getattr(self, name)
            check_option("EmbeddingSearch", name, value, value >= 1, ">= 1", "Leave the default.")

    def propose(
        self,
        space: CategoricalSpace,
        table: Table,
        count: int,
        *,
        generator: torch.Generator,
        pool: Tensor | None = None,
    ) -> Proposal:
        """See `AbstractSearch.propose`."""
        check_request("EmbeddingSearch", table, count, pool, space=space, generator=generator)
        stated = sequence_problem(
            space,
            table,
            self.embedding,
            ridge=self.ridge,
            ensemble=(self.members, self.rows, self.train_steps),
            generator=generator,
        )
        designs, predicted = evolve(self.evolution, stated.predict, space, table, count, generator=generator, pool=pool)
        return Proposal(designs=designs[:count], predicted=predicted[:count])
