"""Distributions over designs that are learned: one categorical for each position, or each letter given those before it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from sciopt.checks import check_option
from sciopt.domains.offline.spaces import CategoricalSpace

__all__ = ["AbstractPolicy", "AutoregressivePolicy", "FactorisedPolicy", "policy_gradient_loss"]

Parameters = dict[str, Tensor]


class AbstractPolicy(ABC):
    """A batch of c distributions over the designs of a space. Concrete ones are frozen dataclasses; parameters are apart."""

    @abstractmethod
    def start(self, space: CategoricalSpace, centres: Tensor) -> Parameters:
        """Parameters, each with leading dimension c, of distributions around designs ``(c, length)``."""

    @abstractmethod
    def sample(self, parameters: Parameters, count: int, generator: torch.Generator) -> Tensor:
        """Designs ``(c, count, length)``, int64, without gradient."""

    @abstractmethod
    def log_probability(self, parameters: Parameters, designs: Tensor) -> Tensor:
        """``(c, count)`` for designs ``(c, count, length)``, differentiable in the parameters."""


@final
@dataclass(frozen=True, kw_only=True)
class FactorisedPolicy(AbstractPolicy):
    """Independent letters.

    Args:
        mutations: expected number of positions in which a first sample differs from its centre; > 0.

    Example:
        >>> space = CategoricalSpace(length=4, alphabet="abc")
        >>> policy = FactorisedPolicy(mutations=1.0)
        >>> parameters = policy.start(space, torch.zeros(1, 4, dtype=torch.int64))
        >>> policy.log_probability(parameters, torch.zeros(1, 1, 4, dtype=torch.int64)).exp()  # 0.75 ** 4
        tensor([[0.3164]], dtype=torch.float64)
    """

    mutations: float = 1.5

    def __post_init__(self) -> None:
        check_option("FactorisedPolicy", "mutations", self.mutations, self.mutations > 0, "> 0", "1.5 is a good start.")

    def start(self, space: CategoricalSpace, centres: Tensor) -> Parameters:
        """See `AbstractPolicy.start`: ``logits`` ``(c, length, letters)``."""
        return {"logits": peaked(space, centres, self.mutations)}

    def sample(self, parameters: Parameters, count: int, generator: torch.Generator) -> Tensor:
        """See `AbstractPolicy.sample`."""
        share = parameters["logits"].detach().softmax(-1)
        drawn = torch.multinomial(
            share.flatten(0, 1).to(generator.device), count, replacement=True, generator=generator
        )
        return drawn.to(share.device).unflatten(0, share.shape[:2]).mT

    def log_probability(self, parameters: Parameters, designs: Tensor) -> Tensor:
        """See `AbstractPolicy.log_probability`."""
        logs = parameters["logits"].log_softmax(-1).unsqueeze(1).expand(*designs.shape, -1)
        return logs.gather(-1, designs.unsqueeze(-1)).squeeze(-1).sum(-1)


@final
@dataclass(frozen=True, kw_only=True)
class AutoregressivePolicy(AbstractPolicy):
    """Each letter given all before it, by logits that are linear in them: learns which letters go together.

    Args:
        mutations: expected number of positions in which a first sample differs from its centre; > 0.

    Example:
        >>> space = CategoricalSpace(length=2, alphabet="ab")
        >>> policy = AutoregressivePolicy()
        >>> parameters = policy.start(space, torch.zeros(1, 2, dtype=torch.int64))
        >>> policy.log_probability(parameters, space.everything().unsqueeze(0)).exp().sum().round(decimals=6)
        tensor(1., dtype=torch.float64)

    References:
        Frey. "Graphical models for machine learning and digital communication". MIT Press, 1998 (fully visible sigmoid
        belief networks).
    """

    mutations: float = 1.5

    def __post_init__(self) -> None:
        ok = self.mutations > 0
        check_option("AutoregressivePolicy", "mutations", self.mutations, ok, "> 0", "1.5 is a good start.")

    def start(self, space: CategoricalSpace, centres: Tensor) -> Parameters:
        """See `AbstractPolicy.start`: ``logits`` ``(c, length, letters)``, and ``pairs`` with two more."""
        logits = peaked(space, centres, self.mutations)
        return {"logits": logits, "pairs": logits.new_zeros(*logits.shape, *logits.shape[1:])}

    def sample(self, parameters: Parameters, count: int, generator: torch.Generator) -> Tensor:
        """See `AbstractPolicy.sample`: one position after the other."""
        logits, pairs = (parameters[name].detach() for name in ("logits", "pairs"))
        c, length, letters = logits.shape
        known = logits.new_zeros(c, count, length, letters)
        columns = []
        for k in range(length):
            given = torch.einsum("canb,cnbl->cal", known[:, :, :k], pairs[:, :k, :, k])
            share = (logits[:, None, k] + given).softmax(-1)
            drawn = torch.multinomial(share.flatten(0, 1).to(generator.device), 1, generator=generator)
            columns.append(drawn.to(logits.device).reshape(c, count))
            known[:, :, k] = torch.nn.functional.one_hot(columns[-1], letters).to(known)
        return torch.stack(columns, -1)

    def log_probability(self, parameters: Parameters, designs: Tensor) -> Tensor:
        """See `AbstractPolicy.log_probability`: all positions at once."""
        logits, pairs = parameters["logits"], parameters["pairs"]
        length = logits.shape[1]
        known = torch.nn.functional.one_hot(designs, logits.shape[-1]).to(logits)
        before = torch.ones(length, length, dtype=logits.dtype, device=logits.device).triu(1)
        given = torch.einsum("canb,cnbkl,nk->cakl", known, pairs, before)
        return ((logits.unsqueeze(1) + given).log_softmax(-1) * known).sum((-1, -2))


def peaked(space: CategoricalSpace, centres: Tensor, mutations: float) -> Tensor:
    """Logits ``(c, length, letters)``, float64, with an expected number of mutations of each centre."""
    miss = min(mutations / space.length, (space.letters - 1) / space.letters)
    return torch.log((1 - miss - miss / (space.letters - 1)) * space.one_hot(centres) + miss / (space.letters - 1))


def policy_gradient_loss(log_probability: Tensor, reward: Tensor, entropy: float) -> Tensor:
    """A function whose gradient estimates that of ``-E[reward] - entropy H``, without bias, from two or more samples.

    REINFORCE with the mean of the other samples as baseline, which lowers the variance and adds no bias. The entropy's
    gradient is estimated the same way, as a reward of ``-entropy log p``.

    Args:
        log_probability: of samples from the policy ``(c, count)``, differentiable in its parameters.
        reward: ``(c, count)``; no gradient is taken through it.
        entropy: weight of the entropy H, >= 0.

    Returns:
        A scalar, the sum over c policies; only its gradient means something.

    Raises:
        ValueError: for fewer than two samples.

    Example:
        >>> logs = torch.tensor([[0.5, 0.5]]).log().requires_grad_()
        >>> policy_gradient_loss(logs, torch.tensor([[1.0, 0.0]]), 0.0).backward()
        >>> logs.grad
        tensor([[-0.5000,  0.5000]])

    References:
        Williams. "Simple statistical gradient-following algorithms for connectionist reinforcement learning". Machine
        Learning 8, 1992. Kool, van Hoof, Welling. "Buy 4 REINFORCE samples, get a baseline for free". 2019.
    """
    count = reward.shape[-1]
    check_option("policy_gradient_loss", "reward", count, count >= 2, "with two or more samples", "Draw more.")
    total = (reward - entropy * log_probability).detach()
    others = (total.sum(-1, keepdim=True) - total) / (count - 1)
    return -((total - others) * log_probability).mean(-1).sum()
