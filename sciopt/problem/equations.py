"""Equations: fixed points and roots."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

from torch import Tensor

from sciopt.linsolve import Tag
from sciopt.params import ravel
from sciopt.problem.base import AbstractProblem, Tree, check_restrict, no_objective

__all__ = ["FixedPoint", "RootFind"]


@final
@dataclass(frozen=True)
class FixedPoint(AbstractProblem):
    """``theta* = fixed_point_map(theta*, phi)``: equilibrium layers, self-consistent fields.

    The residual is ``theta - fixed_point_map(theta, phi)``. The map need not contract when a Newton-type solver is used.

    Args:
        fixed_point_map: ``(inner_params, outer_params) -> inner_params`` (same structure and shapes).
        batch_ndim: leading dimensions of every inner leaf that number independent problems.
        nullspace: must be None unless the Jacobian of the residual is symmetric; as for `Minimize`.
        restrict: with ``batch_ndim=1``, ``rows -> FixedPoint``: the same problem for some of its rows only, as for
            `Minimize`; iterative solvers then drop the rows that have ended.

    Raises:
        ValueError: for ``restrict`` without one batch dimension.

    Example:
        >>> import torch
        >>> problem = FixedPoint(lambda theta, phi: 0.5 * theta + phi)
        >>> problem.optimality(torch.tensor([2.0]), torch.tensor([1.0]))
        tensor([0.])
    """

    fixed_point_map: Callable[[Tree, Tree], Tree]
    batch_ndim: int = 0
    nullspace: Callable[[Tree, Tree], Tensor] | None = None
    restrict: Callable[[Tensor], FixedPoint] | None = None

    def __post_init__(self) -> None:
        check_restrict(self)

    def optimality(self, inner_params: Tree, outer_params: Tree) -> Tree:
        image = self.fixed_point_map(inner_params, outer_params)
        if isinstance(inner_params, Tensor) and isinstance(image, Tensor) and image.shape == inner_params.shape:
            return inner_params - image
        layout, flat = ravel(inner_params, self.batch_ndim)
        return layout.unflatten(flat - layout.flatten(image))

    def objective(self, inner_params: Tree, outer_params: Tree) -> Tensor:
        raise no_objective(self)

    def start(self, init: Tree, outer_params: Tree) -> Tree:
        return init

    def finish(self, inner_params: Tree) -> tuple[Tree, dict[str, Tree]]:
        return inner_params, {}

    @property
    def jacobian_tags(self) -> frozenset[Tag]:
        return frozenset()


@final
@dataclass(frozen=True)
class RootFind(AbstractProblem):
    """``residual(theta*, phi) = 0``: force balances without a potential, steady states.

    Args:
        residual: ``(inner_params, outer_params) -> tree like inner_params``.
        batch_ndim: leading dimensions of every inner leaf that number independent problems.
        tags: declared structure of the Jacobian in ``inner_params``, e.g. ``{Tag.SYMMETRIC}``.
        nullspace: as for `Minimize`, for symmetric Jacobians.

    Example:
        >>> import torch
        >>> RootFind(lambda theta, phi: theta**2 - phi).optimality(torch.tensor([2.0]), torch.tensor([4.0]))
        tensor([0.])
    """

    residual: Callable[[Tree, Tree], Tree]
    batch_ndim: int = 0
    tags: frozenset[Tag] = frozenset()
    nullspace: Callable[[Tree, Tree], Tensor] | None = None

    def optimality(self, inner_params: Tree, outer_params: Tree) -> Tree:
        return self.residual(inner_params, outer_params)

    def objective(self, inner_params: Tree, outer_params: Tree) -> Tensor:
        raise no_objective(self)

    def start(self, init: Tree, outer_params: Tree) -> Tree:
        return init

    def finish(self, inner_params: Tree) -> tuple[Tree, dict[str, Tree]]:
        return inner_params, {}

    @property
    def jacobian_tags(self) -> frozenset[Tag]:
        return frozenset(self.tags)
