"""A simple eigenpair as an inner problem: vibration modes, stability, principal components."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

from torch import Tensor

from sciopt.linsolve import Tag
from sciopt.problem.base import AbstractProblem, Tree, no_objective

__all__ = ["Eigen"]


@final
@dataclass(frozen=True)
class Eigen(AbstractProblem):
    """Simple eigenpair ``A(phi) v = lambda M(phi) v`` of symmetric A, positive definite M, with ``v.M v = 1``.

    The unknown is ``{"value": (*batch, 1), "vector": (*batch, n)}``; the bordered residual

        [ (1 - v.M v) / 2,  A v - lambda M v ]

    has a symmetric Jacobian, regular when the eigenvalue is simple (a multiple one is reported as `Status.SINGULAR`).

    Args:
        operator: ``(vector, outer_params) -> A(phi) vector``, shapes ``(*batch, n)``; linear and symmetric in ``vector``.
        mass: the same for M; None for the identity.
        index: which eigenvalue, counted from the smallest (0) or, negative, from the largest (-1).
        batch_ndim: leading dimensions that number independent problems.

    Example:
        >>> import torch
        >>> problem = Eigen(lambda v, phi: phi * v)
        >>> pair = {"value": torch.tensor([3.0]), "vector": torch.tensor([0.0, 1.0])}
        >>> problem.optimality(pair, torch.tensor([5.0, 3.0]))["vector"]
        tensor([0., 0.])

    References:
        Nelson. "Simplified calculation of eigenvector derivatives". AIAA Journal 14 (1976).
    """

    operator: Callable[[Tensor, Tree], Tensor]
    mass: Callable[[Tensor, Tree], Tensor] | None = None
    index: int = 0
    batch_ndim: int = 0
    nullspace: Callable[[Tree, Tree], Tensor] | None = None

    def apply_mass(self, vector: Tensor, outer_params: Tree) -> Tensor:
        """``M(phi) vector``."""
        return vector if self.mass is None else self.mass(vector, outer_params)

    def start(self, init: Tree, outer_params: Tree) -> dict[str, Any]:
        """A vector start becomes the pair with its Rayleigh quotient; a pair is taken as it is."""
        if isinstance(init, dict):
            return init
        mv = self.apply_mass(init, outer_params)
        norm2 = (init * mv).sum(-1, keepdim=True)
        quotient = (init * self.operator(init, outer_params)).sum(-1, keepdim=True) / norm2
        return {"value": quotient, "vector": init / norm2.sqrt()}

    def optimality(self, inner_params: Tree, outer_params: Tree) -> dict[str, Tensor]:
        value, vector = inner_params["value"], inner_params["vector"]
        mv = self.apply_mass(vector, outer_params)
        return {
            "value": 0.5 * (1.0 - (vector * mv).sum(-1, keepdim=True)),
            "vector": self.operator(vector, outer_params) - value * mv,
        }

    def objective(self, inner_params: Tree, outer_params: Tree) -> Tensor:
        raise no_objective(self)

    def finish(self, inner_params: Tree) -> tuple[Tree, dict[str, Tree]]:
        return inner_params, {}

    @property
    def jacobian_tags(self) -> frozenset[Tag]:
        return frozenset({Tag.SYMMETRIC})
