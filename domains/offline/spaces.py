"""Spaces of discrete designs: sequences of letters as integers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from sciopt.checks import check_option

__all__ = ["AMINO_ACIDS", "DNA", "CategoricalSpace"]

DNA = "ACGT"
AMINO_ACIDS = "ACDEFGHIKLMNPQRSTVWY"
ENUMERABLE = 1 << 22


@final
@dataclass(frozen=True, kw_only=True)
class CategoricalSpace:
    """All sequences of ``length`` letters; designs are integer tensors ``(n, length)``.

    Args:
        length: number of positions, >= 1.
        alphabet: the letters, each once, at least two.

    Raises:
        ValueError: for an empty length or repeated letters.

    Example:
        >>> space = CategoricalSpace(length=3, alphabet="ACGT")
        >>> space.encode(["ACT"]), space.decode(torch.tensor([[0, 1, 3]]))
        (tensor([[0, 1, 3]]), ['ACT'])
    """

    length: int
    alphabet: str

    def __post_init__(self) -> None:
        whole = isinstance(self.length, int) and not isinstance(self.length, bool)
        check_option("CategoricalSpace", "length", self.length, whole, "as a whole number", "Pass the sequence length.")
        check_option("CategoricalSpace", "length", self.length, self.length >= 1, ">= 1", "Pass the sequence length.")
        ok = isinstance(self.alphabet, str)
        check_option("CategoricalSpace", "alphabet", self.alphabet, ok, "as one text of all letters", "E.g. ACGT.")
        ok = len(set(self.alphabet)) == len(self.alphabet) >= 2
        check_option(
            "CategoricalSpace", "alphabet", self.alphabet, ok, "with two or more different letters", "E.g. ACGT."
        )

    @property
    def letters(self) -> int:
        """Number of letters."""
        return len(self.alphabet)

    @property
    def size(self) -> int:
        """Number of designs."""
        return self.letters**self.length

    def encode(self, sequences: Sequence[str]) -> Tensor:
        """Sequences as int64 ``(n, length)``.

        Raises:
            ValueError: for a sequence of another length or with an unknown letter, naming it.
        """
        places = {letter: k for k, letter in enumerate(self.alphabet)}
        for row, sequence in enumerate(sequences):
            if (
                not isinstance(sequence, str)
                or len(sequence) != self.length
                or any(letter not in places for letter in sequence)
            ):
                raise ValueError(
                    f"CategoricalSpace: expected sequences of {self.length} letters out of {self.alphabet!r}, got "
                    f"{sequence!r} in row {row}. Correct or drop it."
                )
        codes = [[places[letter] for letter in sequence] for sequence in sequences]
        return torch.tensor(codes, dtype=torch.int64).reshape(len(sequences), self.length)

    def decode(self, designs: Tensor) -> list[str]:
        """Designs ``(n, length)`` as sequences."""
        return ["".join(self.alphabet[k] for k in row) for row in self.check(designs).tolist()]

    def check(self, designs: Tensor) -> Tensor:
        """The designs themselves, if they are designs of this space.

        Raises:
            ValueError: for another shape or dtype, or integers that are no letters.
        """
        if not isinstance(designs, Tensor):
            raise TypeError(
                f"CategoricalSpace: expected `designs` as a tensor of integers, got {type(designs).__name__}. Make them with "
                "encode()."
            )
        shaped = designs.ndim == 2 and designs.shape[1] == self.length
        shaped = shaped and not (designs.is_floating_point() or designs.is_complex() or designs.dtype == torch.bool)
        low, high = (int(designs.min()), int(designs.max())) if shaped and designs.numel() else (0, 0)
        if not shaped or low < 0 or high >= self.letters:
            letters = "" if not shaped else f" from {low} to {high}"
            raise ValueError(
                f"CategoricalSpace: expected `designs` as integers in [0, {self.letters}) of shape (n, {self.length}), got "
                f"{tuple(designs.shape)} {designs.dtype}{letters}. Make them with encode()."
            )
        return designs

    def one_hot(self, designs: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
        """``(n, length, letters)``."""
        return torch.nn.functional.one_hot(self.check(designs).long(), self.letters).to(dtype)

    def number(self, designs: Tensor) -> Tensor:
        """One integer per design, ``(n,)``, in lexicographic order.

        Raises:
            ValueError: for a space of more than 2^62 designs.
        """
        ok = self.size <= 1 << 62
        check_option(
            "CategoricalSpace", "size", self.size, ok, "at most 2^62 to number designs", "Compare rows instead."
        )
        powers = torch.tensor([self.letters**k for k in range(self.length - 1, -1, -1)], device=designs.device)
        return (self.check(designs) * powers).sum(-1)

    def everything(self) -> Tensor:
        """All designs in lexicographic order, ``(size, length)``, of a space of at most four million.

        Raises:
            ValueError: for a larger space.
        """
        ok = self.size <= ENUMERABLE
        check_option("CategoricalSpace", "size", self.size, ok, f"at most {ENUMERABLE} to enumerate", "Sample instead.")
        rest, columns = torch.arange(self.size), []
        for _ in range(self.length):
            columns.append(rest % self.letters)
            rest = rest // self.letters
        return torch.stack(columns[::-1], -1)

    def random(self, count: int, generator: torch.Generator) -> Tensor:
        """Uniform designs ``(count, length)``, with repetition."""
        return torch.randint(self.letters, (count, self.length), generator=generator, device=generator.device)

    def mutated(self, designs: Tensor, mutations: int, generator: torch.Generator) -> Tensor:
        """The designs with ``mutations`` positions each set to another letter."""
        out = self.check(designs).clone()
        order = torch.rand(out.shape, generator=generator, device=generator.device).argsort(-1)[:, :mutations]
        shift = torch.randint(1, self.letters, order.shape, generator=generator, device=generator.device)
        order, shift = order.to(out.device), shift.to(out.device)
        return out.scatter(1, order, (out.gather(1, order) + shift) % self.letters)
