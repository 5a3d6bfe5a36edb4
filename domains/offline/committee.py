"""Ranking by several surrogates that see the scores differently: what they agree on goes first."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from sciopt.checks import check_option
from sciopt.domains.offline.embeddings import AMINO_ACID_PROPERTIES
from sciopt.domains.offline.ranking import CHUNK, fit_surrogate
from sciopt.domains.offline.relaxation import standardised
from sciopt.domains.offline.search import AbstractSearch, Proposal
from sciopt.domains.offline.spaces import AMINO_ACIDS, CategoricalSpace
from sciopt.domains.offline.symmetry import AbstractSymmetry, averaged, unseen
from sciopt.domains.offline.task import Table
from sciopt.inner import fit_kernel
from sciopt.kernels import NTK, AlikeLetters, DenseNetwork

__all__ = ["AbstractMember", "CommitteeRanking", "LogLetters", "WideNetwork", "letter_similarity"]


class AbstractMember(ABC):
    """One surrogate of a committee. Concrete ones are frozen dataclasses of options."""

    @abstractmethod
    def fit(self, space: CategoricalSpace, table: Table, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
        """A function from designs ``(n, length)`` to predicted scores ``(n,)``, float64, in units of the table."""


@final
@dataclass(frozen=True, kw_only=True)
class WideNetwork(AbstractMember):
    """An infinitely wide ReLU network on standardised logits, fitted to the scores as they are; see `fit_surrogate`.

    Args:
        hidden_layers: few extrapolate further, many interpolate better.
        ridge: relative to the kernel's mean diagonal, > 0.

    Example:
        >>> from sciopt.domains.offline import nk_landscape
        >>> task = nk_landscape(length=4, neighbours=0)
        >>> WideNetwork().fit(task.space, task.visible(), torch.Generator())(task.space.everything()).shape
        torch.Size([16])
    """

    hidden_layers: int = 1
    ridge: float = 1e-6

    def __post_init__(self) -> None:
        check_option("WideNetwork", "ridge", self.ridge, self.ridge > 0, "> 0", "1e-6 is a good start.")

    def fit(self, space: CategoricalSpace, table: Table, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
        """See `AbstractMember.fit`."""
        kernel = NTK(DenseNetwork(hidden_layers=self.hidden_layers))
        return fit_surrogate(space, table, kernel=kernel, ridge=self.ridge, dtype=torch.float32, rtol=1e-3).predict


@final
@dataclass(frozen=True, kw_only=True)
class LogLetters(AbstractMember):
    """Almost additive over positions, with alike letters, in the logarithm of the score above the lowest.

    Where a score is a product of what each position contributes, its logarithm is a sum, which reaches beyond the data.

    Args:
        properties: numbers of each letter; None: physical properties where the letters are the twenty amino acids,
            otherwise no two letters are alike.
        length_scale: distance at which letters are alike, in root mean squares of the standardised properties, > 0.
        share: see `AlikeLetters`.
        offset: added before the logarithm, as a share of the scores' range, > 0: about the noise of the lowest scores.
        ridge: relative to the variance of the logarithms, > 0.
        rows: largest number of visible rows to fit; of more, the better half are the best and the others are drawn.

    Raises:
        ValueError: for options out of range, or properties that lack a letter.

    Example:
        >>> from sciopt.domains.offline import nk_landscape
        >>> task = nk_landscape(length=4, neighbours=0)
        >>> LogLetters().fit(task.space, task.visible(), torch.Generator())(task.space.everything()).shape
        torch.Size([16])
    """

    properties: dict[str, tuple[float, ...]] | None = None
    length_scale: float = 0.5
    share: float = 0.9
    offset: float = 1e-3
    ridge: float = 1e-4
    rows: int = 5000

    def __post_init__(self) -> None:
        for name in ("length_scale", "offset", "ridge"):
            value = getattr(self, name)
            check_option("LogLetters", name, value, value > 0, "> 0", "Leave the default.")
        check_option("LogLetters", "share", self.share, 0 < self.share < 1, "in (0, 1)", "0.9 is a good start.")
        check_option("LogLetters", "rows", self.rows, self.rows >= 2, ">= 2", "Leave the default.")

    def fit(self, space: CategoricalSpace, table: Table, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
        """See `AbstractMember.fit`."""
        designs, scores = table.designs, table.scores.to(torch.float64)
        low, span = scores.min(), (scores.max() - scores.min()).clamp(min=torch.finfo(torch.float64).tiny)
        if len(table) > self.rows:
            order = scores.argsort(descending=True, stable=True)
            best, rest = order[: self.rows // 2], order[self.rows // 2 :]
            drawn = torch.randperm(len(rest), generator=generator, device=generator.device).to(rest.device)
            kept = torch.cat([best, rest[drawn[: self.rows - len(best)]]])
            designs, scores = designs[kept], scores[kept]
        targets, mean, scale = standardised(torch.log((scores - low) / span + self.offset))
        kernel = AlikeLetters(
            similarity=letter_similarity(space, self.properties, self.length_scale).to(designs.device), share=self.share
        )
        fitted = fit_kernel(kernel, space.one_hot(designs).flatten(1), targets, self.ridge)

        def predict(wanted: Tensor) -> Tensor:
            with torch.no_grad():
                parts = [fitted.mean(space.one_hot(chunk).flatten(1)) for chunk in wanted.split(CHUNK)]
            return low + span * (torch.exp(torch.cat(parts) * scale + mean) - self.offset)

        return predict


@final
@dataclass(frozen=True, kw_only=True)
class CommitteeRanking(AbstractSearch):
    """The allowed designs that are not visible, by the geometric mean of their ranks among the members.

    For scores that are skewed, such as fitness with many dead variants, and for tables from which the best is far: a
    surrogate of the logarithm extrapolates, one of the score itself knows the best rows; what both put high is high.
    Everything is ranked, as in `ExhaustiveRanking`.

    Args:
        members: the surrogates.
        symmetry: designs of equal score: ranks are of means over both, one of them is proposed, none whose image is visible.

    Raises:
        ValueError: for no members.

    Example:
        >>> from sciopt.domains.offline import evaluate_batch, nk_landscape
        >>> task = nk_landscape(length=6, neighbours=0)
        >>> made = CommitteeRanking().propose(task.space, task.visible(), 3, generator=torch.Generator())
        >>> evaluate_batch(task, made.designs).best
        1.0
    """

    members: tuple[AbstractMember, ...] = (LogLetters(), WideNetwork())
    symmetry: AbstractSymmetry | None = None

    def __post_init__(self) -> None:
        check_option(
            "CommitteeRanking", "members", self.members, len(self.members) >= 1, "with a member", "Leave it out."
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
        """See `AbstractSearch.propose`; predictions are means over the members."""
        candidates = unseen("CommitteeRanking", space, table, count, pool=pool, symmetry=self.symmetry)
        standardised(table.scores)  # refuses constant scores before any long work
        total = torch.zeros(len(candidates), dtype=torch.float64, device=candidates.device)
        predicted = torch.zeros_like(total)
        for member in self.members:
            values = averaged(member.fit(space, table, generator), space, candidates, self.symmetry)
            order = values.argsort(descending=True, stable=True)
            ranks = torch.empty_like(total)
            ranks[order] = torch.arange(1, len(order) + 1, dtype=total.dtype, device=total.device)
            total += ranks.log()
            predicted += values / len(self.members)
        chosen = total.argsort(stable=True)[:count]
        return Proposal(designs=candidates[chosen], predicted=predicted[chosen])


def letter_similarity(
    space: CategoricalSpace, properties: dict[str, tuple[float, ...]] | None, length_scale: float
) -> Tensor:
    """How alike the letters of a space are: ``exp(-d^2 / (2 length_scale^2))`` of their standardised properties.

    Args:
        space: with its letters.
        properties: numbers of each letter; None: see `LogLetters`.
        length_scale: in root mean squares over the properties.

    Returns:
        ``(letters, letters)``, float64, ones on the diagonal.

    Example:
        >>> letter_similarity(CategoricalSpace(length=1, alphabet="ACGT"), None, 0.5).diagonal()
        tensor([1., 1., 1., 1.], dtype=torch.float64)
    """
    if properties is None and set(space.alphabet) != set(AMINO_ACIDS):
        return torch.eye(space.letters, dtype=torch.float64)
    known = AMINO_ACID_PROPERTIES if properties is None else properties
    missing = [letter for letter in space.alphabet if letter not in known]
    if missing:
        raise ValueError(
            f"letter_similarity: expected `properties` of all letters {space.alphabet!r}, got none for {missing[0]!r}. "
            "Complete them, or leave them out."
        )
    rows = torch.tensor([known[letter] for letter in space.alphabet], dtype=torch.float64)
    rows = (rows - rows.mean(0)) / rows.std(0, correction=0).clamp(min=1e-12)
    distances = (rows.unsqueeze(1) - rows).square().mean(-1)
    return torch.exp(-0.5 * distances / length_scale**2)
