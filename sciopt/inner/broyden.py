"""Broyden's method with limited memory that grows only as steps are taken."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from sciopt.checks import check_option, check_tolerances
from sciopt.inner.abstract import AbstractIterativeSolver
from sciopt.inner.picard import equation_start
from sciopt.inner.rank_one import RankOneTerms, apply
from sciopt.inner.rows import dot, norm, quotient, safe_norm, select, unset, verdict
from sciopt.problem.equations import FixedPoint, RootFind
from sciopt.problem.minimize import LeastSquares, Minimize
from sciopt.problem.system import Oracle
from sciopt.solution import Status

__all__ = ["Broyden"]

MAX_REJECTIONS = 60
STALE_AFTER = 200
RUNAWAY = 1e12


@final
@dataclass(frozen=True, kw_only=True)
class Broyden(AbstractIterativeSolver):
    """Broyden's "good" quasi-Newton method for fixed points and roots, with a derivative-free safeguard.

    Use it for equations without cheap derivatives, when `Anderson` is too slow. One evaluation per step (and one at the
    start). Memory grows by two vectors per step up to ``2 history``; a row whose memory is full starts it anew. A trial
    that raises the residual beyond a summable allowance is not taken, but still teaches the method (its secant is kept).

    Args:
        history: most rank-one terms kept.
        rtol: tolerance on ``|f(x) - x| / |x|`` (for other problems, on the residual over its norm at the start); None:
            1e-8 in float64, 1e-4 in float32.
        atol: absolute tolerance on the residual norm.
        max_steps: step budget.

    Raises:
        ValueError: for options out of range.

    Example:
        >>> from sciopt import RootFind, best_response
        >>> problem = RootFind(lambda x, phi: x**3 + x - phi)
        >>> best_response(problem, torch.ones(1), init=torch.ones(1), solver=Broyden()).status.name
        'CONVERGED'

    References:
        Broyden. "A class of methods for solving nonlinear simultaneous equations". Math. Comp. 19 (1965). Kelley.
        "Iterative methods for linear and nonlinear equations" (1995), ch. 7. Li, Fukushima. "A derivative-free line search
        and global convergence of Broyden-like method for nonlinear equations". Optim. Methods Softw. 13 (2000).
    """

    solves: ClassVar = (FixedPoint, RootFind, Minimize, LeastSquares)
    nonsmooth: ClassVar = True
    looks_after: ClassVar = True
    history: int = 50
    rtol: float | None = None
    atol: float = 0.0
    max_steps: int = 1_000

    def __post_init__(self) -> None:
        check_tolerances("Broyden", self.rtol, self.atol, self.max_steps)
        ok = isinstance(self.history, int) and self.history >= 1
        check_option("Broyden", "history", self.history, ok, "to be an int >= 1", "50 is a good choice.")

    def init(self, oracle: Oracle, x: Tensor) -> dict[str, Any]:
        residual = oracle.residual(x)
        state = equation_start(oracle, x, residual)
        norm0, size = state["residual_norm"], safe_norm(x)
        # a fixed point has a Jacobian near the identity; other equations have units of their own
        guess = quotient(0.1 * torch.where(size > 0, size, 1.0), safe_norm(residual), 1.0)
        gamma = torch.ones_like(norm0) if isinstance(oracle.problem, FixedPoint) else guess
        none = x.new_zeros(*x.shape[:-1], 0, x.shape[-1])
        terms = {"left": none, "right": none}
        if oracle.in_place:
            terms = RankOneTerms.empty(x, residual, gamma, self.history)
        count = torch.zeros_like(state["status_code"])
        return {
            **state,
            **terms,
            "gamma": gamma,
            "direction": -gamma.unsqueeze(-1) * residual,
            "length": torch.ones_like(gamma),
            "used": count,
            "steps": count,
            "rejections": count,
            "stale": count,
            "best": norm0,
            "reach": RUNAWAY * torch.where(size > 0, size, 1.0).detach(),
        }

    def step(self, oracle: Oracle, x: Tensor, state: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        residual = state["residual"]
        shift = state["length"].unsqueeze(-1) * state["direction"]
        trial = x + shift
        fresh = oracle.residual(trial)
        old, size = state["residual_norm"], norm(fresh)
        allowance = 1 + (1.0 + state["steps"]).to(x.dtype) ** -1.5
        accept = (size <= allowance * old) & torch.isfinite(size)
        held = "image" in state and unset(~accept)  # asking is cheaper than writing rows that nothing changes
        moved, current = (trial, fresh) if held else (select(accept, trial, x), select(accept, fresh, residual))
        change = fresh - residual

        finite = torch.isfinite(size)
        safe = change if "image" in state and unset(~finite) else select(finite, change, torch.zeros_like(change))
        if "image" in state:
            terms = RankOneTerms.learn(state, self.history, finite, accept, shift, safe, fresh)
            direction = -terms["image"]
        else:
            terms = self._learn(state, finite, shift, safe)
            direction = -apply(terms["left"], terms["right"], terms["gamma"], current)
        where = norm(moved)
        # steps longer than everything seen so far come from a bad secant
        cap = 10 * torch.maximum(safe_norm(moved), safe_norm(shift)) + torch.finfo(x.dtype).tiny
        longest = safe_norm(direction)
        direction = direction * torch.where(longest > cap, quotient(cap, longest, 1.0), 1.0).unsqueeze(-1)
        rejections = torch.where(accept, 0, state["rejections"] + 1)
        forget = (rejections > 0) & (rejections % 5 == 0)
        new = {
            **state,
            **terms,
            "residual": current,
            "residual_norm": torch.where(accept, size, old),
            "direction": direction,
            "length": torch.where(accept, 1.0, 0.5 * state["length"]).to(x.dtype),
            "steps": state["steps"] + 1,
            "rejections": rejections,
        }
        if "image" not in state or not unset(forget):
            plain = terms["gamma"].unsqueeze(-1) * current
            new["used"] = torch.where(forget, 0, terms["used"])
            new["direction"] = select(forget, -plain, direction)
            new["left"] = select(forget, torch.zeros_like(terms["left"]), terms["left"])
            if "image" in state:
                new["image"] = select(forget, plain, terms["image"])
        if isinstance(oracle.problem, FixedPoint):
            new["scale"] = where
        new["stale"] = torch.where(size < 0.9 * state["best"], 0, state["stale"] + 1)
        new["best"] = torch.where(size < state["best"], size, state["best"])
        stuck = (rejections >= MAX_REJECTIONS) | (new["stale"] >= STALE_AFTER)
        code = verdict(state["status_code"], stuck, Status.STAGNATED)
        new["status_code"] = verdict(code, where > state["reach"], Status.DIVERGED)
        return moved, new

    def _learn(self, state: dict[str, Any], finite: Tensor, s: Tensor, y: Tensor) -> dict[str, Any]:
        """Add the secant ``H y = s`` as the rank-one term ``(s - H y) (s^T H) / (s^T H y)``; autograd may follow."""
        left, right, gamma, used = state["left"], state["right"], state["gamma"], state["used"]
        full = used >= self.history
        if left.shape[-2]:
            left = select(full, torch.zeros_like(left), left)
        used = torch.where(full, 0, used)
        # the first secant of an empty memory sets the scale, and its sign
        sy, yy = dot(s, y), dot(y, y)
        first = (state["steps"] == 0) & finite & (sy.abs() > 0.1 * norm(s) * norm(y))
        gamma = torch.where(first, quotient(sy, yy, 1.0), gamma)
        image = apply(left, right, gamma, y)
        covector = apply(right, left, gamma, s)
        bottom = dot(s, image)
        usable = finite & (bottom.abs() > 1e-8 * norm(s) * norm(image)) & (yy > 0)
        column = select(
            usable, (s - image) * quotient(torch.ones_like(bottom), bottom).unsqueeze(-1), torch.zeros_like(s)
        )
        covector = select(usable, covector, torch.zeros_like(s))
        column, covector = column.unsqueeze(-2), covector.unsqueeze(-2)
        if left.shape[-2] < self.history:
            left, right = torch.cat([left, column], -2), torch.cat([right, covector], -2)
        else:
            slot = state["steps"].unsqueeze(-1) % self.history == torch.arange(self.history, device=s.device)
            slot = slot.unsqueeze(-1)
            left, right = torch.where(slot, column, left), torch.where(slot, covector, right)
        return {"left": left, "right": right, "gamma": gamma, "used": used + 1}
