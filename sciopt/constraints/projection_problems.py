"""The projections stated as inner problems, and any projection as the constraint set of a minimum."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any

import torch
from torch import Tensor

from sciopt.constraints.common import named_params
from sciopt.constraints.projections import Bound, project_l1_ball
from sciopt.problem import Constrained, Minimize

__all__ = ["box_problem", "constrained_to", "l1_ball_problem", "simplex_problem", "volume_problem"]


def constrained_to(
    projection: Callable[[Tensor, Any], Tensor],
    inner_loss: Callable[[Any, Any], Tensor] | None = None,
    *,
    batch_ndim: int = 0,
) -> Minimize:
    """Minimum of a loss over a set given by its projection, for proximal-gradient solvers.

    Args:
        projection: ``(inner_params, outer_params) -> inner_params``, e.g. ``lambda x, phi: project_simplex(x)``.
        inner_loss: ``(inner_params, outer_params) -> (*batch,)``; None for ``1/2 |x - phi|^2``, whose minimum is the
            projection of ``phi`` itself.
        batch_ndim: leading dimensions of the inner parameters that number independent problems.

    Returns:
        `Minimize` with the projection as its proximal map (it does not depend on the step size).

    Example:
        >>> from sciopt.constraints import project_simplex
        >>> problem = constrained_to(lambda x, phi: project_simplex(x))
        >>> problem.optimality(torch.tensor([0.0, 1.0, 0.0]), torch.tensor([0.5, 1.5, -1.0]))
        tensor([0., 0., 0.])
    """

    def prox(inner_params: Tensor, step_size: float | Tensor, outer_params: Any) -> Tensor:
        return projection(inner_params, outer_params)

    loss = inner_loss or half_squared_distance
    return Minimize(loss, batch_ndim=batch_ndim, prox=prox)


def half_squared_distance(inner_params: Tensor, outer_params: Any) -> Tensor:
    """``1/2 |x - phi|^2`` over the last dimension; ``phi`` is a tensor or ``outer_params["point"]``."""
    if isinstance(outer_params, dict) and "point" not in outer_params:
        raise ValueError(
            f"half_squared_distance: expected `point` in `outer_params`, got {sorted(outer_params)}. Name what is projected."
        )
    point = outer_params["point"] if isinstance(outer_params, dict) else outer_params
    return 0.5 * (inner_params - point).square().sum(-1)


def box_problem(lower: Bound = -inf, upper: Bound = inf, *, batch_ndim: int = 0) -> Minimize:
    """`project_box` as an inner problem: ``min 1/2 |x - phi|^2`` with ``lower <= x <= upper``.

    Outer parameters: ``phi`` ``(*batch, n)``, or a dict with ``point`` and, to make them design variables, ``lower``
    and ``upper``.

    Example:
        >>> box_problem(0.0, 1.0).optimality(torch.tensor([0.0, 0.5]), torch.tensor([-2.0, 0.5]))
        tensor([0., 0.])
    """

    def box(outer_params: Any) -> tuple[Bound, Bound]:
        params = _params("box_problem", outer_params, {"lower": lower, "upper": upper})
        return params["lower"], params["upper"]

    return Minimize(half_squared_distance, batch_ndim=batch_ndim, box=box)


def l1_ball_problem(radius: Bound = 1.0, *, batch_ndim: int = 0) -> Minimize:
    """`project_l1_ball` as an inner problem: ``min 1/2 |x - phi|^2`` with ``sum |x| <= radius``, by its proximal map.

    Outer parameters: ``phi`` ``(*batch, n)``, or a dict with ``point`` and ``radius`` ``(*batch,)``.

    Example:
        >>> l1_ball_problem().optimality(torch.tensor([0.75, -0.25]), torch.tensor([2.0, -1.5]))
        tensor([0., 0.])
    """

    def projection(x: Tensor, outer_params: Any) -> Tensor:
        return project_l1_ball(x, _params("l1_ball_problem", outer_params, {"radius": radius})["radius"])

    return constrained_to(projection, batch_ndim=batch_ndim)


def simplex_problem(radius: Bound = 1.0, *, upper: Bound | None = None, batch_ndim: int = 0) -> Constrained:
    """`project_simplex` as an inner problem, stated by its optimality (KKT) conditions.

    ``min 1/2 |x - phi|^2`` with ``sum(x) = radius``, ``-x <= 0`` and, when capped, ``x - upper <= 0``. For a loss of
    your own use `constrained_to` with `project_simplex`, or these constraints in a `Constrained` of your own.

    Outer parameters: ``phi`` ``(*batch, n)``, or a dict with ``point`` and, to make them design variables, ``radius``
    ``(*batch,)`` and (when capped) ``upper``.

    Example:
        >>> problem = simplex_problem()
        >>> multipliers = {"equality": torch.tensor([0.5]), "inequality": torch.tensor([0.0, 0.5])}
        >>> problem.optimality({"primal": torch.tensor([1.0, 0.0]), **multipliers}, torch.tensor([1.5, 0.0]))["primal"]
        tensor([0., 0.])
    """
    fixed = {"radius": radius} if upper is None else {"radius": radius, "upper": upper}
    return _volume_statement("simplex_problem", fixed, True, batch_ndim, volume="radius")


def volume_problem(
    volume: Bound,
    *,
    lower: Bound = 0.0,
    upper: Bound = 1.0,
    weights: Bound = 1.0,
    equality: bool = True,
    batch_ndim: int = 0,
) -> Constrained:
    """`project_volume` as an inner problem, stated by its optimality (KKT) conditions.

    ``min 1/2 |x - phi|^2`` with ``lower <= x <= upper`` and ``weights . x = volume`` (or ``<=``). Multipliers of the
    inequalities come in the order: lower bounds, upper bounds, volume (without ``equality``).

    Args:
        volume: number or ``(*batch,)``.
        lower: number or ``(*batch, n)``, finite.
        upper: the same, finite.
        weights: number or ``(*batch, n)``.
        equality: False for ``weights . x <= volume``.
        batch_ndim: leading dimensions of the inner parameters that number independent problems.

    Returns:
        `Constrained`. Outer parameters: ``phi`` ``(*batch, n)``, or a dict with ``point`` and any of ``volume``,
        ``lower``, ``upper``, ``weights`` that are design variables.

    Example:
        >>> problem = volume_problem(1.0, equality=False)
        >>> problem.inequality(torch.tensor([0.5, 0.75]), torch.tensor([2.0, 2.0]))
        tensor([-0.5000, -0.7500, -0.5000, -0.2500,  0.2500])
    """
    fixed = {"volume": volume, "lower": lower, "upper": upper, "weights": weights}
    return _volume_statement("volume_problem", fixed, equality, batch_ndim)


def _volume_statement(
    owner: str, fixed: dict[str, Any], equality: bool, batch_ndim: int, volume: str = "volume"
) -> Constrained:
    def total(x: Tensor, outer_params: Any) -> Tensor:
        params = _params(owner, outer_params, fixed)
        return ((params.get("weights", 1.0) * x).sum(-1) - params[volume]).unsqueeze(-1)

    def bounds(x: Tensor, outer_params: Any) -> Tensor:
        params = _params(owner, outer_params, fixed)
        parts = [params.get("lower", 0.0) - x]
        if "upper" in params:
            parts.append(x - params["upper"])
        if not equality:
            parts.append(total(x, outer_params))
        return torch.cat(parts, dim=-1)

    return Constrained(
        half_squared_distance, equality=total if equality else None, inequality=bounds, batch_ndim=batch_ndim
    )


def _params(owner: str, outer_params: Any, fixed: dict[str, Any]) -> dict[str, Any]:
    return named_params(owner, outer_params, fixed, ("point",), tuple(fixed), main="point")
