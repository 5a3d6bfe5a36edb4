"""Sequences whose letters are more or less alike: a product over positions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from sciopt.checks import check_option
from sciopt.kernels.abstract import AbstractKernel, check_points
from sciopt.transforms import under_transform

__all__ = ["AlikeLetters"]


@final
@dataclass(frozen=True, kw_only=True)
class AlikeLetters(AbstractKernel):
    """``prod_i (share + (1 - share) s(x_i, x'_i))`` over the positions of one-hot sequences.

    Multiplied out, it is a sum over sets of interacting positions, each set of m weighted by ``share^(L - m) (1 - share)^m``:
    near 1 the functions are almost additive over positions, with small interactions; at 0 only whole sequences count. What
    is learned of a letter carries over to letters alike. Relaxed designs count by the logarithms of the factors, averaged
    over their letters.

    Args:
        similarity: s, ``(letters, letters)``, symmetric positive semi-definite with values in [0, 1] and ones on the
            diagonal; the identity: no two letters are alike.
        share: of what all letters have in common, in (0, 1).

    Raises:
        ValueError: for a matrix that is not square, or numbers out of range.

    Example:
        >>> kernel = AlikeLetters(similarity=torch.eye(2), share=0.5)
        >>> kernel.pair(torch.tensor([[1.0, 0.0, 1.0, 0.0]]), torch.tensor([[1.0, 0.0, 0.0, 1.0]]))
        tensor([[0.5000]])

    References:
        Duvenaud, Nickisch, Rasmussen. "Additive Gaussian processes". NeurIPS 2011, section 3 (all orders of interaction as a
        product).
    """

    similarity: Tensor
    share: float | Tensor = 0.9

    def __post_init__(self) -> None:
        s = self.similarity
        if s.ndim != 2 or s.shape[0] != s.shape[1]:
            raise ValueError(
                f"AlikeLetters: expected `similarity` of shape (letters, letters), got {tuple(s.shape)}. Pass a square matrix."
            )
        if not under_transform():
            share = float(self.share.detach()) if isinstance(self.share, Tensor) else self.share
            check_option("AlikeLetters", "share", share, 0 < share < 1, "in (0, 1)", "0.9 is nearly additive.")
            low, high = float(s.detach().min()), float(s.detach().max())
            ok = low >= 0 and high <= 1 + 1e-6
            check_option("AlikeLetters", "similarity", (low, high), ok, "in [0, 1]", "Divide by its diagonal.")

    def pair(self, left: Tensor, right: Tensor) -> Tensor:
        """See `AbstractKernel.pair`; points are one-hot ``(n, positions * letters)`` or ``(n, positions, letters)``."""
        check_points("AlikeLetters", left, right)
        return torch.exp(self._weighted(left) @ right.flatten(1).mT)

    def diagonal(self, points: Tensor) -> Tensor:
        """See `AbstractKernel.diagonal`."""
        return torch.exp((self._weighted(points) * points.flatten(1)).sum(-1))

    def slopes(self, left: Tensor, right: Tensor) -> None:
        """None: autograd differentiates it."""
        return None

    def _weighted(self, points: Tensor) -> Tensor:
        """Points times the logarithms of the factors, ``(n, positions * letters)``."""
        letters = len(self.similarity)
        flat = points.flatten(1)
        if flat.shape[1] % letters:
            raise ValueError(
                f"AlikeLetters: expected points of positions * {letters} numbers, got {flat.shape[1]}. Encode them one-hot."
            )
        factors = torch.log(self.share + (1 - self.share) * self.similarity.to(flat))
        return (flat.unflatten(1, (-1, letters)) @ factors).flatten(1)
