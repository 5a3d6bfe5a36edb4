"""Anderson acceleration in difference form, with a regularisation relative to the size of the differences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from sciopt.checks import check_option, check_tolerances
from sciopt.inner.abstract import AbstractIterativeSolver
from sciopt.inner.differences import empty_differences, forget, mixing_weights, remember
from sciopt.inner.picard import equation_start
from sciopt.inner.rows import check_growth, norm, quotient, safe_norm, select, solve_rows, unset, verdict
from sciopt.problem.equations import FixedPoint, RootFind
from sciopt.problem.minimize import LeastSquares, Minimize
from sciopt.problem.system import Oracle
from sciopt.solution import Status

__all__ = ["Anderson"]

STALE_AFTER = 200


@final
@dataclass(frozen=True, kw_only=True)
class Anderson(AbstractIterativeSolver):
    """Picard iteration accelerated by the last few differences of residuals.

    Use it for fixed points that contract slowly, and mild expansions: equilibrium layers, self-consistent fields. One
    evaluation per step (and one at the start), memory ``2 history`` vectors. The small least-squares problem is solved in
    differences scaled to unit length, so that its regularisation keeps its meaning as residuals fall. When the residual
    outgrows the best one a hundredfold, the row returns to its best point and forgets its history.

    With ``every=3`` two plain steps stand between two extrapolations. For maps that contract, however slowly, that costs less
    per step and often needs fewer steps, as plain steps bring new directions into a short history. Leave it at 1 for maps
    that expand.

    Args:
        history: number of differences kept.
        every: extrapolate at each step of this number, with plain damped steps between.
        damping: weight of the new residual, in (0, 1].
        regularization: relative ridge on the scaled differences; None: ``eps**0.75`` (2e-12 in float64).
        rtol: tolerance on ``|f(x) - x| / |x|`` (for other problems, on the residual over its norm at the start); None:
            1e-8 in float64, 1e-4 in float32.
        atol: absolute tolerance on the residual norm.
        max_steps: step budget.

    Raises:
        ValueError: for options out of range.

    Example:
        >>> from sciopt import FixedPoint, best_response
        >>> problem = FixedPoint(lambda x, phi: torch.cos(x) * phi)
        >>> best_response(problem, torch.ones(1), init=torch.ones(1), solver=Anderson(rtol=1e-5)).status.name
        'CONVERGED'

    References:
        Anderson. "Iterative procedures for nonlinear integral equations". J. ACM 12 (1965). Walker, Ni. "Anderson
        acceleration for fixed-point iterations". SIAM J. Numer. Anal. 49 (2011), difference form, eq. 2.3. Pratapa,
        Suryanarayana, Pask. "Anderson acceleration of the Jacobi iterative method". J. Comput. Phys. 306 (2016) (``every``).
    """

    solves: ClassVar = (FixedPoint, RootFind, Minimize, LeastSquares)
    nonsmooth: ClassVar = True
    looks_after: ClassVar = True
    history: int = 5
    every: int = 1
    damping: float = 1.0
    regularization: float | None = None
    rtol: float | None = None
    atol: float = 0.0
    max_steps: int = 1_000

    def __post_init__(self) -> None:
        check_tolerances("Anderson", self.rtol, self.atol, self.max_steps)
        for name, advice in (("history", "5 is a good choice."), ("every", "Use 1 to extrapolate at each step.")):
            value = getattr(self, name)
            ok = isinstance(value, int) and not isinstance(value, bool) and value >= 1
            check_option("Anderson", name, value, ok, "to be an int >= 1", advice)
        check_option("Anderson", "damping", self.damping, 0 < self.damping <= 1, "in (0, 1]", "Use 1 for no damping.")
        ok = self.regularization is None or self.regularization >= 0
        check_option("Anderson", "regularization", self.regularization, ok, ">= 0 or None", "Use None.")

    def init(self, oracle: Oracle, x: Tensor) -> dict[str, Any]:
        state = equation_start(oracle, x, oracle.residual(x))
        m = self._kept(x)
        count = torch.zeros_like(state["status_code"])
        best = {"best": x, "best_residual": state["residual"], "best_norm": state["residual_norm"]}
        state |= {**best, "used": count, "stale": count}  # `used` counts the differences that a row still trusts
        if oracle.in_place:
            return {**state, "turn": 0, **empty_differences(x, m)}
        zeros = x.new_zeros(*x.shape[:-1], m, x.shape[-1])
        return {**state, "written": count, "points": zeros, "changes": zeros}

    def step(self, oracle: Oracle, x: Tensor, state: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        recorded = "points" in state  # the last look of a recorded run records nothing itself
        residual = state["residual"]
        ridge = torch.finfo(x.dtype).eps ** 0.75 if self.regularization is None else self.regularization
        moved = torch.sub(x, residual, alpha=self.damping)
        if recorded:
            weights, mix = recorded_weights(state, ridge, self.damping, self.every)
            moved = moved - (weights.unsqueeze(-2) @ mix).squeeze(-2)
        elif state["turn"] and state["turn"] % self.every == 0:
            weights = mixing_weights(state, state["turn"], self.every, ridge)
            moved -= (weights.unsqueeze(-2) @ state["mix"]).squeeze(-2)
        fresh = oracle.residual(moved)
        size, best = norm(fresh), state["best_norm"]

        lost, better = ~(size <= 100 * best), size < best
        held = not recorded and unset(lost)  # reading a flag is cheaper than rows that nothing changes
        gained = not recorded and unset(~better)
        point, new_residual, length, used = moved, fresh, size, state["used"] + 1
        if not held:
            lost = lost & (state["used"] > 0)
            point, new_residual = select(lost, state["best"], moved), select(lost, state["best_residual"], fresh)
            length, used = torch.where(lost, best, size), used.masked_fill(lost, 0)
        new = {
            **state,
            "residual": new_residual,
            "used": used,
            "best": moved if gained else select(better, moved, state["best"]),
            "best_residual": fresh if gained else select(better, fresh, state["best_residual"]),
            "best_norm": size if gained else torch.where(better, size, best),
            "residual_norm": length,
            "stale": (state["stale"] + 1).masked_fill_(size < 0.9 * best, 0),
        }
        shift, change = moved - x, fresh - residual
        if recorded:
            new |= recorded_differences(state, shift, change)
        else:
            remember(state, state["turn"], shift.sub_(change, alpha=self.damping), change)
            new["turn"] = state["turn"] + 1
            if not held:
                forget(state, lost)
        if isinstance(oracle.problem, FixedPoint):
            new["scale"] = norm(point)
        # a trial from which the row goes back to its best point says nothing about the iteration
        code = check_growth(state["status_code"], length, state["start"])
        new["status_code"] = verdict(code, new["stale"] >= STALE_AFTER, Status.STAGNATED)
        return point, new

    def _kept(self, x: Tensor) -> int:
        """Differences kept: more than n of them are dependent, whatever the map."""
        return max(1, min(self.history, x.shape[-1]))


def recorded_weights(state: dict[str, Any], ridge: float, damping: float, every: int) -> tuple[Tensor, Tensor]:
    """`mixing_weights` and what they weigh, from tensors that autograd may follow; zero between two extrapolations."""
    points, changes, written = state["points"], state["changes"], state["written"].unsqueeze(-1)
    m = changes.shape[-2]
    slots = torch.arange(m, device=changes.device)
    age = (written - 1 - slots) % m  # 0: the newest
    lengths = safe_norm(changes)
    trusted = (age < state["used"].unsqueeze(-1)) & (slots < written) & (lengths > 0) & torch.isfinite(lengths)
    inverse = torch.where(trusted, quotient(torch.ones_like(lengths), lengths), 0.0)
    scaled = torch.where(trusted.unsqueeze(-1), changes, 0.0) * inverse.unsqueeze(-1)
    gram = scaled @ scaled.mT + torch.diag_embed(torch.where(trusted, ridge, 1.0).to(changes.dtype))
    rhs = (scaled @ state["residual"].unsqueeze(-1)).squeeze(-1)
    weights = solve_rows(gram, rhs)[0]
    weights = torch.where(torch.isfinite(weights) & (written % every == 0), weights, 0.0) * inverse
    return weights, torch.where(trusted.unsqueeze(-1), points - damping * changes, 0.0)


def recorded_differences(state: dict[str, Any], shift: Tensor, change: Tensor) -> dict[str, Any]:
    """The histories with one entry more, in new tensors."""
    written = state["written"]
    m = state["points"].shape[-2]
    slot = (torch.arange(m, device=shift.device) == written.unsqueeze(-1) % m).unsqueeze(-1)
    return {
        "written": written + 1,
        "points": torch.where(slot, shift.unsqueeze(-2), state["points"]),
        "changes": torch.where(slot, change.unsqueeze(-2), state["changes"]),
    }
