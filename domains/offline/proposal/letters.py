"""Letters that are alike: scores that are nearly sums over the positions of proteins."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from sciopt.checks import check_option
from sciopt.domains.offline.embeddings import AMINO_ACID_PROPERTIES
from sciopt.domains.offline.proposal.columns import SequenceColumn
from sciopt.domains.offline.proposal.design_space import DesignSpace
from sciopt.domains.offline.proposal.families import AbstractFamily, Gaussian
from sciopt.kernels import AbstractKernel
from sciopt.kernels.abstract import check_points

__all__ = ["LogBilinear", "SimilarLetters", "has_amino_acids"]

NUCLEOTIDES = frozenset("ACGTURYSWKMBDHVN")  # with the codes of several


@final
@dataclass(frozen=True, kw_only=True)
class SimilarLetters(AbstractFamily):
    """Nearly a sum over the positions of sequences, with alike letters; other columns as in `Gaussian`.

    ``prod_i (1 + a_i s(x_i, x'_i)) / (1 + a_i)`` over the positions of a sequence, which is a sum over all sets of interacting
    positions, weighted by the products of their a. Where a score is a product of what each position contributes, its
    logarithm is a sum, which reaches beyond the data; what is learned of a letter carries over to letters alike. Amino acids
    are alike by their physical properties; of other alphabets, and of gaps, no two letters are alike.

    Args:
        length_scale: distance at which amino acids are alike, in root mean squares of the standardised properties, > 0.

    Raises:
        ValueError: for a length scale that is not positive.

    Example:
        >>> column = SequenceColumn(name="s", length=2, alphabet="ILD")
        >>> space, family = DesignSpace((column,)), SimilarLetters()
        >>> features = space.features(space.encode([{"s": text} for text in ("II", "LL", "DD")]))
        >>> points = family.points(space, features, torch.full((6,), 2.0), features.mean(0))
        >>> family.kernel.pair(points, points)[0]
        tensor([1.0000, 0.9722, 0.2500], dtype=torch.float64)

    References:
        Duvenaud, Nickisch, Rasmussen. "Additive Gaussian processes". NeurIPS 2011, section 3.
    """

    length_scale: float = 0.5

    def __post_init__(self) -> None:
        check_option("SimilarLetters", "length_scale", self.length_scale, self.length_scale > 0, "> 0", "0.5 is good.")

    @property
    def kernel(self) -> AbstractKernel:
        """See `AbstractFamily.kernel`."""
        return LogBilinear()

    def points(self, space: DesignSpace, features: Tensor, weights: Tensor, centre: Tensor) -> Tensor:
        """See `AbstractFamily.points`: two halves, with the logarithm of the kernel as their inner product."""
        plain, folded, start = [], [], 0
        squares = torch.zeros_like(features[:, :1])
        for column in space.columns:
            part = slice(start, start + column.width * max(1, column.choices))
            start = part.stop
            if isinstance(column, SequenceColumn):
                hot = features[:, part].unflatten(1, (column.width, -1)) * math.sqrt(2 * column.width)
                strength = (weights[part].reshape(column.width, -1)[:, :1] ** 2 / (2 * column.width)).unsqueeze(-1)
                alike = self.similarity(column).to(features)
                factors = torch.log1p(strength * alike) - torch.log1p(strength)  # (positions, letters, letters)
                plain.append(hot.flatten(1))
                folded.append(torch.einsum("npl,plk->npk", hot, factors.expand(column.width, -1, -1)).flatten(1))
            else:
                moved = (features[:, part] - centre[part]) * weights[part]
                squares = squares - 0.5 * moved.square().sum(-1, keepdim=True)
                plain.append(moved)
                folded.append(moved)
        one = torch.ones_like(squares)
        return torch.cat([*plain, one, squares, *folded, squares, one], -1)

    def similarity(self, column: SequenceColumn) -> Tensor:
        """How alike the letters of a column are, and its gap: ``(choices, choices)``, float64, ones on the diagonal."""
        made = torch.eye(column.choices, dtype=torch.float64)
        if not _is_protein(column):
            return made
        table = torch.tensor(list(AMINO_ACID_PROPERTIES.values()), dtype=torch.float64)
        known = [k for k, letter in enumerate(column.alphabet) if letter in AMINO_ACID_PROPERTIES]
        rows = torch.tensor([AMINO_ACID_PROPERTIES[column.alphabet[k]] for k in known], dtype=torch.float64)
        rows = rows / table.std(0, correction=0)
        distances = (rows.unsqueeze(1) - rows).square().mean(-1)
        where = torch.tensor(known)
        made[where.unsqueeze(1), where] = torch.exp(-0.5 * distances / self.length_scale**2)
        return made

    def typical_weights(self, space: DesignSpace) -> Tensor:
        """See `AbstractFamily.typical_weights`."""
        return Gaussian().typical_weights(space)

    def describe(self) -> str:
        """See `AbstractFamily.describe`."""
        return "a kernel that is nearly a sum over positions, with amino acids alike by their physical properties"


def has_amino_acids(space: DesignSpace) -> bool:
    """Whether a sequence column holds proteins: amino acids, some of which are no codes of nucleotides.

    Example:
        >>> columns = [SequenceColumn(name="s", length=4, alphabet=letters) for letters in ("ACGT", "ACDEFGHIKL", "ABCDEF")]
        >>> [has_amino_acids(DesignSpace((column,))) for column in columns]
        [False, True, False]
    """
    return any(isinstance(column, SequenceColumn) and _is_protein(column) for column in space.columns)


def _is_protein(column: SequenceColumn) -> bool:
    letters = set(column.alphabet) - set("*X-")  # a stop, an unknown one, a gap
    return letters <= set(AMINO_ACID_PROPERTIES) and not letters <= NUCLEOTIDES


@final
@dataclass(frozen=True)
class LogBilinear(AbstractKernel):
    """``exp(<p, q'>)`` for points ``(p, q)``, two halves of one vector, where ``<p, q'> = <p', q>``.

    For products of factors that depend on one letter each: p is one-hot, q holds the logarithms of the factors.

    Example:
        >>> x = torch.tensor([[1.0, 0.0, -0.5, -2.0], [0.0, 1.0, -2.0, -0.5]])
        >>> LogBilinear().pair(x, x), LogBilinear().diagonal(x)
        (tensor([[0.6065, 0.1353],
                [0.1353, 0.6065]]), tensor([0.6065, 0.6065]))
    """

    def pair(self, left: Tensor, right: Tensor) -> Tensor:
        """See `AbstractKernel.pair`."""
        check_points("LogBilinear", left, right, 2)
        half = left.shape[1] // 2
        return torch.exp(left[:, half:] @ right[:, :half].mT)

    def diagonal(self, points: Tensor) -> Tensor:
        """See `AbstractKernel.diagonal`."""
        half = points.shape[1] // 2
        return torch.exp((points[:, half:] * points[:, :half]).sum(-1))

    def slopes(self, left: Tensor, right: Tensor) -> None:
        """None: autograd differentiates it."""
        return None
