"""A conditional generator of designs: for a score, a mixture of independent letters, as a small network makes them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from sciopt.checks import check_option
from sciopt.domains.offline.spaces import CategoricalSpace

__all__ = ["Binned", "DesignGenerator", "GeneratorFamily", "binned"]

Weights = dict[str, Tensor]


@final
@dataclass(frozen=True, kw_only=True)
class GeneratorFamily:
    """Networks from (score, noise) to logits of letters; the noise is one of some codes, so that likelihoods are exact.

    Args:
        codes: components of the mixture.
        code_size: numbers in each code.
        width: of the two hidden layers.

    Raises:
        ValueError: for options out of range.

    Example:
        >>> space = CategoricalSpace(length=3, alphabet="ACGT")
        >>> made, weights = GeneratorFamily(codes=2).draw(
        ...     space, generator=torch.Generator().manual_seed(0), like=torch.zeros(())
        ... )
        >>> made.log_shares(weights, torch.zeros(5)).shape
        torch.Size([5, 2, 3, 4])
    """

    codes: int = 16
    code_size: int = 8
    width: int = 64

    def __post_init__(self) -> None:
        for name in ("codes", "code_size", "width"):
            value = getattr(self, name)
            check_option("GeneratorFamily", name, value, value >= 1, ">= 1", "Leave the default.")

    def draw(
        self, space: CategoricalSpace, *, generator: torch.Generator, like: Tensor
    ) -> tuple[DesignGenerator, Weights]:
        """A generator with random codes, and the start of its weights.

        Args:
            space: the designs.
            generator: source of codes and weights.
            like: tensor whose dtype and device they take.
        """
        sizes = (1 + self.code_size, self.width, self.width, space.length * space.letters)
        weights: Weights = {}
        for k, (inputs, outputs) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
            draw = torch.randn(inputs, outputs, generator=generator, device=generator.device, dtype=torch.float64)
            weights[f"w{k}"] = (draw * (2 / inputs) ** 0.5 * (0.1 if k == 2 else 1.0)).to(like)
            weights[f"b{k}"] = like.new_zeros(outputs)
        shape = (self.codes, self.code_size)
        codes = torch.randn(shape, generator=generator, device=generator.device, dtype=torch.float64)
        return DesignGenerator(space=space, codes=codes.to(like)), weights


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class DesignGenerator:
    """``p(design | score) = mean_c prod_l p(letter_l | score, code_c)``. Made by `GeneratorFamily.draw`.

    Args:
        space: the designs.
        codes: ``(codes, code_size)``.
    """

    space: CategoricalSpace
    codes: Tensor

    def log_shares(self, weights: Weights, scores: Tensor) -> Tensor:
        """Log-probabilities of letters ``(n, codes, length, letters)`` at standardised scores ``(n,)``."""
        count = len(self.codes)
        given = torch.cat([scores[:, None, None].expand(-1, count, 1), self.codes.expand(len(scores), -1, -1)], -1)
        hidden = torch.nn.functional.silu(given @ weights["w0"] + weights["b0"])
        hidden = torch.nn.functional.silu(hidden @ weights["w1"] + weights["b1"])
        logits = (hidden @ weights["w2"] + weights["b2"]).unflatten(-1, (self.space.length, self.space.letters))
        return torch.log_softmax(logits, -1)

    def log_likelihood(self, weights: Weights, data: Binned) -> Tensor:
        """Weighted mean of ``log p(design | score)`` over the rows, in nats for each letter: ``()``."""
        shares = self.log_shares(weights, data.scores).flatten(-2)  # (bins, codes, length * letters)
        each = torch.logsumexp(data.letters @ shares.mT, -1) - math.log(len(self.codes))
        return (data.shares * each).sum() / self.space.length


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Binned:
    """Rows of a table in bins of like score, on which a generator is conditioned. Made by `binned`.

    Args:
        scores: mean standardised score of each bin ``(bins,)``.
        letters: designs as zeros and ones, empty places zero, ``(bins, rows, length * letters)``.
        shares: weight of each row ``(bins, rows)``, sum 1, zero at empty places.
    """

    scores: Tensor
    letters: Tensor
    shares: Tensor


def binned(space: CategoricalSpace, designs: Tensor, scores: Tensor, *, bins: int, temperature: float | None) -> Binned:
    """Rows in bins with equal numbers of rows; high bins weigh more with a temperature.

    Args:
        space: the designs.
        designs: ``(n, length)``.
        scores: ``(n,)``, standardised.
        bins: their number, or the number of rows if that is less.
        temperature: a bin weighs ``exp(mean score / temperature)``; None: all alike.

    Returns:
        `Binned`, in the dtype of the scores.

    Example:
        >>> space = CategoricalSpace(length=1, alphabet="abc")
        >>> data = binned(space, space.everything(), torch.tensor([0.0, 1.0, 5.0]), bins=2, temperature=None)
        >>> data.scores, data.shares
        (tensor([0.5000, 5.0000]), tensor([[0.3333, 0.3333],
                [0.3333, 0.0000]]))

    References:
        Kumar, Levine. "Model inversion networks for model-based optimization". NeurIPS 2020, section 3.3 (bins of scores; with
        equal numbers of rows their factor for the size of a bin is the same everywhere).
    """
    bins = min(bins, len(scores))
    order = scores.argsort(stable=True)
    rows = -(-len(order) // bins)
    empty = rows * bins - len(order)
    place = torch.arange(rows * bins, device=scores.device)
    inside = (place < len(order)).to(scores.dtype).reshape(bins, rows)
    padded = torch.cat([order, order[-1:].expand(empty)])
    letters = space.one_hot(designs[padded], scores.dtype).flatten(1).unflatten(0, (bins, rows))
    value = scores[padded].reshape(bins, rows)
    full = inside.sum(-1) > 0  # rows that do not divide may leave the last bins empty
    letters, value, inside = letters[full] * inside[full].unsqueeze(-1), value[full], inside[full]
    mean = (value * inside).sum(-1) / inside.sum(-1)
    weight = torch.zeros_like(mean) if temperature is None else (mean - mean.max()) / temperature
    shares = weight.exp().unsqueeze(-1) * inside
    return Binned(scores=mean, letters=letters, shares=shares / shares.sum())
