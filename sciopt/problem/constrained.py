"""Minima under equality and inequality constraints, stated by their Karush-Kuhn-Tucker residual."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from sciopt.linsolve import Tag
from sciopt.problem.base import AbstractProblem, Tree

__all__ = ["Constrained"]


@final
@dataclass(frozen=True)
class Constrained(AbstractProblem):
    """``min inner_loss(theta, phi)`` subject to ``equality(theta, phi) = 0`` and ``inequality(theta, phi) <= 0``.

    The unknown is the triple of primal variables and multipliers; the residual is

        [ grad_theta L(theta, lambda, mu),  equality,  min(mu, -inequality) ],  L = inner_loss + lambda.h + mu.g

    which is differentiable where strict complementarity holds. The solution's ``value`` is the primal part; the
    multipliers are in ``aux["equality_multipliers"]`` and ``aux["inequality_multipliers"]``, differentiable too.

    Args:
        inner_loss: ``(inner_params, outer_params) -> (*batch,)``.
        equality: ``(inner_params, outer_params) -> (*batch, p)`` or None.
        inequality: ``(inner_params, outer_params) -> (*batch, q)``, feasible where <= 0, or None.
        batch_ndim: leading dimensions of every inner leaf that number independent problems.

    Raises:
        ValueError: when there is no constraint at all.

    Example:
        >>> problem = Constrained(lambda x, phi: (x**2).sum(), equality=lambda x, phi: x.sum(-1, keepdim=True) - phi)
        >>> problem.start(torch.zeros(2), torch.ones(1))["equality"]
        tensor([0.])

    References:
        Nocedal, Wright. "Numerical Optimization", 2nd ed., ch. 12. Residual with min(): Facchinei, Pang.
        "Finite-Dimensional Variational Inequalities and Complementarity Problems", ch. 1.5.
    """

    inner_loss: Callable[[Tree, Tree], Tensor]
    equality: Callable[[Tree, Tree], Tensor] | None = None
    inequality: Callable[[Tree, Tree], Tensor] | None = None
    batch_ndim: int = 0
    nullspace: Callable[[Tree, Tree], Tensor] | None = None

    def __post_init__(self) -> None:
        if self.equality is None and self.inequality is None:
            raise ValueError(
                "Constrained: expected `equality` or `inequality`, got neither. Use Minimize without constraints."
            )

    def _constraint(self, name: str, inner_params: Tree, outer_params: Tree) -> Tensor | None:
        function = getattr(self, name)
        if function is None:
            return None
        value = function(inner_params, outer_params)
        if value.ndim != self.batch_ndim + 1:
            raise ValueError(
                f"Constrained: expected `{name}` of shape (*batch, m) with {self.batch_ndim} batch dimensions, got "
                f"{tuple(value.shape)}. Return one vector of constraint values per problem."
            )
        return value

    def start(self, init: Tree, outer_params: Tree) -> dict[str, Any]:
        """Primal start with zero multipliers (one for each constraint)."""
        unknown: dict[str, Any] = {"primal": init}
        for name in ("equality", "inequality"):
            value = self._constraint(name, init, outer_params)
            if value is not None:
                unknown[name] = torch.zeros_like(value).detach()
        return unknown

    def finish(self, inner_params: Tree) -> tuple[Tree, dict[str, Tree]]:
        rest = {f"{k}_multipliers": v for k, v in inner_params.items() if k != "primal"}
        return inner_params["primal"], rest

    def lagrangian(self, inner_params: dict[str, Any], outer_params: Tree) -> Tensor:
        """``inner_loss + lambda.h + mu.g`` of the full unknown, shape ``(*batch,)``."""
        primal = inner_params["primal"]
        value = self.inner_loss(primal, outer_params)
        for name in ("equality", "inequality"):
            c = self._constraint(name, primal, outer_params)
            if c is not None:
                value = value + (inner_params[name] * c).sum(-1)
        return value

    def optimality(self, inner_params: dict[str, Any], outer_params: Tree) -> dict[str, Any]:
        multipliers = {k: v for k, v in inner_params.items() if k != "primal"}
        stationarity = torch.func.grad(lambda p: self.lagrangian({"primal": p, **multipliers}, outer_params).sum())
        residual: dict[str, Any] = {"primal": stationarity(inner_params["primal"])}
        h = self._constraint("equality", inner_params["primal"], outer_params)
        g = self._constraint("inequality", inner_params["primal"], outer_params)
        if h is not None:
            residual["equality"] = h
        if g is not None:
            residual["inequality"] = torch.where(inner_params["inequality"] < -g, inner_params["inequality"], -g)
        return residual

    def objective(self, inner_params: Tree, outer_params: Tree) -> Tensor:
        primal = inner_params["primal"] if isinstance(inner_params, dict) and "primal" in inner_params else inner_params
        return self.inner_loss(primal, outer_params)

    @property
    def jacobian_tags(self) -> frozenset[Tag]:
        return frozenset({Tag.SYMMETRIC}) if self.inequality is None else frozenset()
