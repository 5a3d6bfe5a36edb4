"""Embeddings that are linear in the letters: one-hot, and physical properties of amino acids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from sciopt.domains.offline.embeddings.abstract import AbstractEmbedding, check_probabilities
from sciopt.domains.offline.spaces import CategoricalSpace

__all__ = ["AMINO_ACID_PROPERTIES", "PhysicalProperties", "OneHot"]

# hydropathy (Kyte and Doolittle 1982), side-chain polarity and volume in cubic angstrom (Grantham 1974), charge at pH 7,
# aromatic side chain
AMINO_ACID_PROPERTIES: dict[str, tuple[float, ...]] = {
    "A": (1.8, 8.1, 31.0, 0.0, 0.0),
    "C": (2.5, 5.5, 55.0, 0.0, 0.0),
    "D": (-3.5, 13.0, 54.0, -1.0, 0.0),
    "E": (-3.5, 12.3, 83.0, -1.0, 0.0),
    "F": (2.8, 5.2, 132.0, 0.0, 1.0),
    "G": (-0.4, 9.0, 3.0, 0.0, 0.0),
    "H": (-3.2, 10.4, 96.0, 0.0, 1.0),
    "I": (4.5, 5.2, 111.0, 0.0, 0.0),
    "K": (-3.9, 11.3, 119.0, 1.0, 0.0),
    "L": (3.8, 4.9, 111.0, 0.0, 0.0),
    "M": (1.9, 5.7, 105.0, 0.0, 0.0),
    "N": (-3.5, 11.6, 56.0, 0.0, 0.0),
    "P": (-1.6, 8.0, 32.5, 0.0, 0.0),
    "Q": (-3.5, 10.5, 85.0, 0.0, 0.0),
    "R": (-4.5, 10.5, 124.0, 1.0, 0.0),
    "S": (-0.8, 9.2, 32.0, 0.0, 0.0),
    "T": (-0.7, 8.6, 61.0, 0.0, 0.0),
    "V": (4.2, 5.9, 84.0, 0.0, 0.0),
    "W": (-0.9, 5.4, 170.0, 0.0, 1.0),
    "Y": (-1.3, 6.2, 136.0, 0.0, 1.0),
}


@final
@dataclass(frozen=True, kw_only=True)
class OneHot(AbstractEmbedding):
    """Each position's letter, ``length * letters`` numbers: a linear model on it is additive over positions.

    Example:
        >>> space = CategoricalSpace(length=1, alphabet="AB")
        >>> OneHot().relaxed(space, torch.tensor([[[0.25, 0.75]]]))
        tensor([[0.2500, 0.7500]])
    """

    @property
    def differentiable(self) -> bool:
        """See `AbstractEmbedding.differentiable`."""
        return True

    def embed(self, space: CategoricalSpace, designs: Tensor) -> Tensor:
        """See `AbstractEmbedding.embed`."""
        return space.one_hot(designs).flatten(1)

    def relaxed(self, space: CategoricalSpace, probabilities: Tensor) -> Tensor:
        """See `AbstractEmbedding.relaxed`."""
        return check_probabilities("OneHot", space, probabilities).flatten(1)


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class PhysicalProperties(AbstractEmbedding):
    """Each position's properties, standardised over the letters: what alike letters do is alike.

    Args:
        table: one tuple of numbers per letter; None: hydropathy, polarity, volume, charge and aromaticity of the twenty
            amino acids (`AMINO_ACID_PROPERTIES`).

    Raises:
        ValueError: for tuples of different lengths.

    Example:
        >>> space = CategoricalSpace(length=2, alphabet="ACDEFGHIKLMNPQRSTVWY")
        >>> PhysicalProperties()(space, ["VD"]).shape
        torch.Size([1, 10])

    References:
        Kyte, Doolittle. "A simple method for displaying the hydropathic character of a protein". J. Mol. Biol. 157, 1982.
        Grantham. "Amino acid difference formula to help explain protein evolution". Science 185, 1974.
    """

    table: dict[str, tuple[float, ...]] | None = None

    def __post_init__(self) -> None:
        widths = sorted({len(row) for row in self._table.values()})
        if len(widths) != 1 or widths[0] == 0:
            raise ValueError(
                f"PhysicalProperties: expected `table` with equally many numbers for each letter, got {widths}. Complete it."
            )

    @property
    def _table(self) -> dict[str, tuple[float, ...]]:
        return AMINO_ACID_PROPERTIES if self.table is None else self.table

    @property
    def differentiable(self) -> bool:
        """See `AbstractEmbedding.differentiable`."""
        return True

    def embed(self, space: CategoricalSpace, designs: Tensor) -> Tensor:
        """See `AbstractEmbedding.embed`."""
        return self._matrix(space, designs.new_zeros(0, dtype=torch.float64))[designs].flatten(1)

    def relaxed(self, space: CategoricalSpace, probabilities: Tensor) -> Tensor:
        """See `AbstractEmbedding.relaxed`."""
        given = check_probabilities("PhysicalProperties", space, probabilities)
        return (given @ self._matrix(space, given)).flatten(1)

    def _matrix(self, space: CategoricalSpace, like: Tensor) -> Tensor:
        """``(letters, properties)``, each property with mean 0 and standard deviation 1."""
        missing = [letter for letter in space.alphabet if letter not in self._table]
        if missing:
            raise ValueError(
                f"PhysicalProperties: expected properties of all letters in {space.alphabet!r}, got none for {missing}. Pass "
                "them as `table`, or use OneHot."
            )
        rows = like.new_tensor([self._table[letter] for letter in space.alphabet])
        spread = rows.std(0, correction=0)
        return (rows - rows.mean(0)) / torch.where(spread > 0, spread, 1.0)
