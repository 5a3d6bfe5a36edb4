"""What an embedding is: designs of a space as vectors, on which a linear model is a good one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from sciopt.domains.offline.spaces import CategoricalSpace

__all__ = ["AbstractEmbedding", "check_probabilities"]

CHUNK = 1024  # designs embedded at a time, so that a table is never held as products of letters


class AbstractEmbedding(ABC):
    """A map from designs to vectors; call it with a space and designs or strings.

    Concrete ones are frozen dataclasses of options. Where the map extends to probabilities of letters it can be searched
    by gradients; at one-hot probabilities the extension is the embedding itself.

    Example:
        >>> from sciopt.domains.offline import OneHot
        >>> space = CategoricalSpace(length=2, alphabet="ACGT")
        >>> OneHot()(space, ["AC"])
        tensor([[1., 0., 0., 0., 0., 1., 0., 0.]], dtype=torch.float64)
    """

    @property
    @abstractmethod
    def differentiable(self) -> bool:
        """Whether `relaxed` exists: the embedding of probabilities, with its gradient."""

    @abstractmethod
    def embed(self, space: CategoricalSpace, designs: Tensor) -> Tensor:
        """Vectors of designs ``(n, length)``: ``(n, d)``, float64; use the call, which checks."""

    @abstractmethod
    def relaxed(self, space: CategoricalSpace, probabilities: Tensor) -> Tensor:
        """Vectors ``(n, d)`` of probabilities ``(n, length, letters)``, in their dtype, differentiable in them.

        Raises:
            TypeError: for an embedding of discrete designs alone.
        """

    @final
    def __call__(self, space: CategoricalSpace, designs: Tensor | Sequence[str]) -> Tensor:
        """Vectors of designs ``(n, length)`` or of as many strings.

        Returns:
            ``(n, d)``, float64, on the device of the designs.

        Raises:
            ValueError: for designs or strings that are not of the space, and for vectors that are not finite.
        """
        given = designs if isinstance(designs, Tensor) else space.encode(designs)
        parts = [self.embed(space, chunk) for chunk in space.check(given).split(CHUNK)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def check_probabilities(owner: str, space: CategoricalSpace, probabilities: Tensor) -> Tensor:
    """The probabilities themselves, if they are of this space.

    Example:
        >>> space = CategoricalSpace(length=2, alphabet="AB")
        >>> check_probabilities("mine", space, torch.full((1, 2, 2), 0.5)).shape
        torch.Size([1, 2, 2])
    """
    shape = (space.length, space.letters)
    if probabilities.ndim != 3 or probabilities.shape[1:] != shape or not probabilities.is_floating_point():
        raise ValueError(
            f"{owner}: expected `probabilities` of shape (n, {shape[0]}, {shape[1]}) in a floating-point dtype, got "
            f"{tuple(probabilities.shape)} {probabilities.dtype}. Give one number per letter at each position."
        )
    return probabilities
