"""Entropy-regularised optimal transport as a layer, in the log domain."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sciopt import Minimize, best_response
from sciopt.checks import check_tree
from sciopt.hypergradients.abstract import AbstractHypergradient
from sciopt.inner import LBFGS
from sciopt.inner.abstract import AbstractSolver
from sciopt.solution import Solution
from sciopt.transforms import under_transform

__all__ = ["Transport", "entropic_transport"]


class Transport(NamedTuple):
    """A transport plan with what belongs to it; plan, cost and potentials are differentiable.

    Example:
        >>> Transport._fields
        ('plan', 'cost', 'source_potential', 'target_potential', 'solution')
    """

    plan: Tensor  # (*batch, n, m)
    cost: Tensor  # (*batch,), <plan, cost matrix>, without the entropy
    source_potential: Tensor  # (*batch, n), of mean zero
    target_potential: Tensor  # (*batch, m)
    solution: Solution


def entropic_transport(
    cost: Tensor,
    source: Tensor,
    target: Tensor,
    epsilon: Tensor | float,
    *,
    solver: AbstractSolver | None = None,
    hypergradient: AbstractHypergradient | None = None,
    throw: bool = True,
) -> Transport:
    """``argmin_P <P, C> + epsilon KL(P | source x target)`` over plans with the two marginals.

    Use it to match distributions, sort softly, or assign with gradients. The concave dual over the source potential is
    climbed by L-BFGS, the target potential is eliminated in closed form; a step costs one log-sum-exp of the matrix, and
    the number of steps grows slowly as ``epsilon`` falls where Sinkhorn's grows like ``1 / epsilon``. Potentials are
    determined up to a constant, which is declared as null space.

    Args:
        cost: C ``(*batch, n, m)``, float32 or float64.
        source: masses ``(*batch, n)``, positive.
        target: masses ``(*batch, m)``, positive, with the same sum as ``source``.
        epsilon: weight of the entropy in the units of ``cost``, positive; a number or ``(*batch,)``.
        solver: for a smooth `Minimize`; None: L-BFGS to 1e-10 of the first error of the marginals.
        hypergradient: None: `Implicit`.
        throw: raise `SolveError` when a row fails, else say so in its status.

    Returns:
        `Transport`, differentiable in cost, masses and epsilon to any order.

    Raises:
        ValueError: for shapes that do not fit, masses that are not positive or of different sums, epsilon <= 0.
        SolveError: with ``throw``, when a solve fails.

    Example:
        >>> cost = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
        >>> half = torch.full((2,), 0.5, dtype=torch.float64)
        >>> entropic_transport(cost, half, half, 0.5).plan.round(decimals=4)  # 1 / (1 + e^2) of each mass crosses
        tensor([[0.4404, 0.0596],
                [0.0596, 0.4404]], dtype=torch.float64)

    References:
        Cuturi. "Sinkhorn distances: lightspeed computation of optimal transport". NeurIPS 2013. Cuturi, Peyre. "Semidual
        regularized optimal transport". SIAM Review 60 (2018), eq. 2.6.
    """
    outer = {"cost": cost, "source": source, "target": target}
    check_tree("entropic_transport", "arguments", outer)
    outer["epsilon"] = torch.as_tensor(epsilon, dtype=cost.dtype, device=cost.device)
    check(outer)

    def loss(u: Tensor, outer: dict[str, Tensor]) -> Tensor:
        a, b, _ = shares(outer)
        return -(a * u).sum(-1) - (b * answer(u, outer)).sum(-1)

    problem = Minimize(loss, batch_ndim=source.ndim - 1, nullspace=lambda u, outer: torch.ones_like(u).unsqueeze(-1))
    if solver is None:
        solver = LBFGS(rtol=1e-10, atol=1e-13) if cost.dtype == torch.float64 else LBFGS(atol=1e-6)
    start = torch.zeros_like(source).detach()
    solution = best_response(problem, outer, init=start, solver=solver, hypergradient=hypergradient, throw=throw)
    u = solution.value - solution.value.mean(-1, keepdim=True)
    v = answer(u, outer)
    a, b, mass = shares(outer)
    width = outer["epsilon"].unsqueeze(-1)
    scaled = cost / width.unsqueeze(-1)
    logs = a.log().unsqueeze(-1) + b.log().unsqueeze(-2) + u.unsqueeze(-1) + v.unsqueeze(-2) - scaled
    plan = mass.unsqueeze(-1) * logs.exp()
    return Transport(plan, (plan * cost).sum((-2, -1)), width * u, width * v, solution)


def shares(outer: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Both marginals as shares of one, and the mass ``(*batch, 1)``."""
    mass = outer["source"].sum(-1, keepdim=True)
    return outer["source"] / mass, outer["target"] / outer["target"].sum(-1, keepdim=True), mass


def answer(u: Tensor, outer: dict[str, Tensor]) -> Tensor:
    """The best target potential for a source potential, both in units of epsilon."""
    a, _, _ = shares(outer)
    scaled = outer["cost"] / outer["epsilon"].unsqueeze(-1).unsqueeze(-1)
    return -torch.logsumexp((a.log() + u).unsqueeze(-1) - scaled, -2)


def check(outer: dict[str, Tensor]) -> None:
    """Refuse what has no plan."""
    cost, source, target, epsilon = (outer[k] for k in ("cost", "source", "target", "epsilon"))
    name = "entropic_transport"
    if cost.shape != (*source.shape, target.shape[-1]) or source.shape[:-1] != target.shape[:-1]:
        raise ValueError(
            f"{name}: expected `cost` (*batch, n, m), `source` (*batch, n) and `target` (*batch, m), got "
            f"{tuple(cost.shape)}, {tuple(source.shape)} and {tuple(target.shape)}. Give every row both marginals."
        )
    if epsilon.ndim and epsilon.shape != source.shape[:-1]:
        raise ValueError(
            f"{name}: expected `epsilon` to be a number or one per row {tuple(source.shape[:-1])}, got "
            f"{tuple(epsilon.shape)}. Pass a number."
        )
    if under_transform():
        return
    if bool((epsilon <= 0).any()):
        raise ValueError(f"{name}: expected `epsilon` > 0, got {float(epsilon.min()):.3g}. Pass a positive one.")
    if bool((source <= 0).any()) or bool((target <= 0).any()):
        raise ValueError(
            f"{name}: expected positive masses in `source` and `target`, got one <= 0. Leave empty bins out."
        )
    total = source.sum(-1)
    gap = ((total - target.sum(-1)).abs() / total).max() if total.numel() else 0.0
    if gap > 1e3 * torch.finfo(source.dtype).eps * max(source.shape[-1], target.shape[-1]):
        raise ValueError(
            f"{name}: expected `source` and `target` of the same sum, got sums that differ by {float(gap):.1e} of it. "
            "Normalise them."
        )
