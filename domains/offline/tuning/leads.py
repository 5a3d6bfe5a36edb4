"""How a predictor is climbed: by evolution, by gradients in relaxed logits, or by a policy that learns from its samples."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from sciopt.checks import check_option
from sciopt.domains.offline.evolution import children
from sciopt.domains.offline.tuning.models import AbstractPredictor, ProxyData
from sciopt.domains.offline.tuning.policies import AbstractPolicy, FactorisedPolicy, policy_gradient_loss

__all__ = ["AbstractLead", "EvolutionLead", "GradientLead", "PolicyLead"]

Allowed = Callable[[Tensor], Tensor]


class AbstractLead(ABC):
    """A way from current designs to better ones. Concrete ones are frozen dataclasses of options."""

    @abstractmethod
    def move(
        self,
        data: ProxyData,
        predictor: AbstractPredictor,
        current: Tensor,
        allowed: Allowed,
        generator: torch.Generator,
    ) -> Tensor:
        """Designs met ``(m, length)``, with repetition, the forbidden and the known among them.

        Args:
            data: the table.
            predictor: what to climb.
            current: designs ``(k, length)``, best first.
            allowed: designs to bool ``(n,)``.
            generator: the one source of chance.
        """


@final
@dataclass(frozen=True, kw_only=True)
class EvolutionLead(AbstractLead):
    """Mutants and crossovers of the current designs, some generations of them.

    Args:
        children: new designs in each generation.
        mutations: mean number of mutations of a child, > 0.
        generations: number.
        population: parents kept from one to the next.

    Example:
        >>> EvolutionLead(children=64).generations
        3
    """

    children: int = 512
    mutations: float = 1.0
    generations: int = 3
    population: int = 256

    def __post_init__(self) -> None:
        for name in ("children", "generations", "population"):
            value = getattr(self, name)
            check_option("EvolutionLead", name, value, value >= 1, ">= 1", "Leave the default.")
        check_option("EvolutionLead", "mutations", self.mutations, self.mutations > 0, "> 0", "1 is a good start.")

    def move(
        self,
        data: ProxyData,
        predictor: AbstractPredictor,
        current: Tensor,
        allowed: Allowed,
        generator: torch.Generator,
    ) -> Tensor:
        """See `AbstractLead.move`."""
        parents, met = current, []
        values = predictor.predict(parents)
        for _ in range(self.generations):
            fresh = children(data.space, parents, self.children, self.mutations, generator)
            fresh = torch.unique(fresh[allowed(fresh)], dim=0)
            met.append(fresh)
            values = torch.cat([values, predictor.predict(fresh)]) if len(fresh) else values
            order = values.argsort(descending=True, stable=True)[: self.population]
            parents, values = torch.cat([parents, fresh])[order], values[order]
        return torch.cat(met)


@final
@dataclass(frozen=True, kw_only=True)
class GradientLead(AbstractLead):
    """Adam on the relaxed logits of the current designs; what they decode to on the way is met.

    Args:
        starts: current designs that are moved, the best.
        num_steps: of Adam.
        step_size: of Adam, in standardised logits.

    Example:
        >>> GradientLead(num_steps=10).starts
        128
    """

    starts: int = 128
    num_steps: int = 20
    step_size: float = 0.1

    def __post_init__(self) -> None:
        for name in ("starts", "num_steps"):
            value = getattr(self, name)
            check_option("GradientLead", name, value, value >= 1, ">= 1", "Leave the default.")
        check_option("GradientLead", "step_size", self.step_size, self.step_size > 0, "> 0", "0.1 is a good start.")

    def move(
        self,
        data: ProxyData,
        predictor: AbstractPredictor,
        current: Tensor,
        allowed: Allowed,
        generator: torch.Generator,
    ) -> Tensor:
        """See `AbstractLead.move`; nothing is drawn at random."""
        points = data.relaxation.points(current[: self.starts]).requires_grad_()
        adam, met = torch.optim.Adam([points], lr=self.step_size), []
        for _ in range(self.num_steps):
            (points.grad,) = torch.autograd.grad(-predictor.values(points).sum(), points)
            adam.step()
            met.append(data.relaxation.designs(points.detach()))
        return torch.cat(met)


@final
@dataclass(frozen=True, kw_only=True)
class PolicyLead(AbstractLead):
    """Policy gradients: one distribution around each of the best current designs, taught by the predictions of its samples.

    Args:
        policy: the kind of distribution.
        centres: current designs with a policy each, the best.
        samples: of each policy in a step; two or more.
        num_steps: of Adam.
        step_size: of Adam, in logits.
        entropy: weight of the policy's entropy, against predictions in standard deviations of the scores.

    Example:
        >>> PolicyLead(policy=FactorisedPolicy(mutations=2.0)).samples
        32
    """

    policy: AbstractPolicy = field(default_factory=FactorisedPolicy)
    centres: int = 16
    samples: int = 32
    num_steps: int = 8
    step_size: float = 0.2
    entropy: float = 0.02

    def __post_init__(self) -> None:
        for name, least in (("centres", 1), ("samples", 2), ("num_steps", 1)):
            value = getattr(self, name)
            check_option("PolicyLead", name, value, value >= least, f">= {least}", "Leave the default.")
        check_option("PolicyLead", "step_size", self.step_size, self.step_size > 0, "> 0", "0.2 is a good start.")
        check_option("PolicyLead", "entropy", self.entropy, self.entropy >= 0, ">= 0", "0.02 is a good start.")

    def move(
        self,
        data: ProxyData,
        predictor: AbstractPredictor,
        current: Tensor,
        allowed: Allowed,
        generator: torch.Generator,
    ) -> Tensor:
        """See `AbstractLead.move`; forbidden samples earn one standard deviation less than the worst allowed one."""
        start = self.policy.start(data.space, current[: self.centres])
        parameters = {name: value.clone().requires_grad_() for name, value in start.items()}
        adam, met = torch.optim.Adam(parameters.values(), lr=self.step_size), []
        for _ in range(self.num_steps):
            designs = self.policy.sample(parameters, self.samples, generator)
            flat = designs.flatten(0, 1)
            met.append(flat)
            reward = (predictor.predict(flat) - data.centre) / data.scale
            reward = torch.where(allowed(flat), reward, reward.min() - 1).reshape(designs.shape[:2])
            loss = policy_gradient_loss(self.policy.log_probability(parameters, designs), reward, self.entropy)
            for value, gradient in zip(
                parameters.values(), torch.autograd.grad(loss, list(parameters.values())), strict=True
            ):
                value.grad = gradient
            adam.step()
        return torch.cat(met)
