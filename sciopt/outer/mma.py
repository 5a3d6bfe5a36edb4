"""The method of moving asymptotes: convex separable approximations of objective and constraints, one per step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from sciopt.checks import check_option
from sciopt.outer.abstract import AbstractOuterStep, check_bounds
from sciopt.outer.mma_subproblem import Subproblem, solve_subproblem

__all__ = ["MMA"]

_ALPHA = 0.1  # a variable keeps this fraction of its distance to an asymptote
_RAA = 1e-5  # convexity added to every approximation
_FARTHEST = 10.0  # distance of an asymptote, in ranges of the variable


@final
@dataclass(frozen=True, kw_only=True)
class MMA(AbstractOuterStep):
    """Svanberg's method of moving asymptotes for a smooth objective, m smooth constraints and finite bounds.

    The standard choice when optimality criteria do not apply: several constraints, objectives that are not monotone,
    n up to millions with m small (each subproblem solves m x m systems). It is not globalised: a run may cycle on hard
    problems. Constraint violations are penalised, so an infeasible start is fine.

    Args:
        move: largest change of a variable in one step, as a fraction of its range.
        first_distance: distance of the asymptotes in the first two steps, as a fraction of the range.
        widen: factor on that distance for a variable that keeps its direction.
        narrow: factor for a variable that turns around.
        nearest: smallest distance of an asymptote, as a fraction of the range; a variable whose optimum lies between
            its bounds for no constraint's sake is found to about this accuracy.
        penalty: linear cost of a constraint violation, in the units of the normalised problem.
        normalize: divide objective and constraints by the largest entries of their gradients, in the first step or now,
            whichever is larger, so that ``penalty`` means the same in every unit.

    Raises:
        ValueError: in ``init`` for bounds that are not finite or leave a variable no range.

    Example:
        >>> rule = MMA()
        >>> x = torch.full((2,), 0.5, dtype=torch.float64)
        >>> state = rule.init(x, 0.1, 2.0)
        >>> one = torch.ones(1, 2, dtype=x.dtype)
        >>> for _ in range(20):  # min |x|^2 with x0 + x1 >= 2
        ...     x, state = rule.step(x, x @ x, 2 * x, 2 - x.sum()[None], -one, state)
        >>> x.round(decimals=4), state["multipliers"].round(decimals=3)
        (tensor([1., 1.], dtype=torch.float64), tensor([2.], dtype=torch.float64))

    References:
        Svanberg. "The method of moving asymptotes - a new method for structural optimization". Int. J. Numer. Meth.
        Eng. 24, 1987. Svanberg. "MMA and GCMMA - two methods for nonlinear optimization". KTH, 2007. Sections 2-3
        (without the artificial variable z, which is zero for constraints of this form).
    """

    move: float = 0.5
    first_distance: float = 0.5
    widen: float = 1.2
    narrow: float = 0.7
    nearest: float = 0.01
    penalty: float = 1000.0
    normalize: bool = True

    def __post_init__(self) -> None:
        check_option("MMA", "move", self.move, 0 < self.move <= 1, "in (0, 1]", "0.5 is the usual choice.")
        check_option("MMA", "nearest", self.nearest, 0 < self.nearest < 1, "in (0, 1)", "0.01 is the usual choice.")
        ok = self.nearest <= self.first_distance <= _FARTHEST
        check_option("MMA", "first_distance", self.first_distance, ok, "in [nearest, 10]", "0.5 is the usual choice.")
        check_option("MMA", "widen", self.widen, self.widen >= 1, ">= 1", "1.2 is the usual choice.")
        check_option("MMA", "narrow", self.narrow, 0 < self.narrow <= 1, "in (0, 1]", "0.7 is the usual choice.")
        check_option("MMA", "penalty", self.penalty, self.penalty > 0, "> 0", "1000 is the usual choice.")

    def init(self, params: Tensor, lower: Tensor | float, upper: Tensor | float) -> dict[str, Tensor]:
        low, high = check_bounds("MMA", params, lower, upper)
        if bool((low == high).any()):
            i = int(torch.nonzero(low == high)[0])
            raise ValueError(
                f"MMA: expected `lower` < `upper`, got both {low[i]} at index {i}. "
                "Leave fixed variables out of the params."
            )
        spread = self.first_distance * (high - low)
        return {
            "lower": low,
            "upper": high,
            "multipliers": params.new_zeros(0),
            "low_asymptote": params - spread,
            "high_asymptote": params + spread,
            "previous": params.detach().clone(),
            "before_previous": params.detach().clone(),
            "count": torch.zeros((), dtype=torch.int64),
        }

    def step(
        self,
        params: Tensor,
        value: Tensor,
        grad: Tensor,
        constraints: Tensor,
        constraint_grads: Tensor,
        state: dict[str, Tensor],
    ) -> tuple[Tensor, dict[str, Tensor]]:
        state = dict(state)
        f_scale, g_scale = self._scales(grad, constraint_grads, state)
        low, high = self._asymptotes(params, state)
        slopes = torch.cat([(grad / f_scale)[None], constraint_grads / g_scale[:, None]])
        subproblem = self._approximate(params, constraints / g_scale, slopes, low, high, state)
        moved, multipliers = solve_subproblem(subproblem)
        state |= {
            "low_asymptote": low,
            "high_asymptote": high,
            "before_previous": state["previous"],
            "previous": params.detach().clone(),
            "count": state["count"] + 1,
            "multipliers": multipliers * f_scale / g_scale,
        }
        return moved, state

    def _scales(self, grad: Tensor, constraint_grads: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Largest gradient entries, of the first step or of this one; the first are noted in ``state``."""
        if not self.normalize:
            return grad.new_ones(()), grad.new_ones(constraint_grads.shape[0])
        f, g = (torch.where(t > 0, t, 1.0) for t in (grad.abs().max(), constraint_grads.abs().amax(-1)))
        first = state.setdefault("first_scales", torch.cat([f[None], g]))
        return torch.maximum(first[0], f), torch.maximum(first[1:], g)

    def _asymptotes(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Eq. 3.11-3.14 of the 2007 paper; ``count`` lives on the CPU, so reading it does not wait for a device."""
        span = state["upper"] - state["lower"]
        if int(state["count"]) < 2:
            return x - self.first_distance * span, x + self.first_distance * span
        turn = (x - state["previous"]) * (state["previous"] - state["before_previous"])
        factor = torch.where(turn > 0, self.widen, torch.where(turn < 0, self.narrow, 1.0))
        below = factor * (state["previous"] - state["low_asymptote"])
        above = factor * (state["high_asymptote"] - state["previous"])
        below, above = (torch.minimum(torch.maximum(d, self.nearest * span), _FARTHEST * span) for d in (below, above))
        return x - below, x + above

    def _approximate(
        self, x: Tensor, constraints: Tensor, slopes: Tensor, low: Tensor, high: Tensor, state: dict[str, Tensor]
    ) -> Subproblem:
        """Eq. 3.1-3.9: rows of ``slopes`` are the objective and the constraints."""
        span = state["upper"] - state["lower"]
        rising, falling = slopes.clamp(min=0), (-slopes).clamp(min=0)
        p = (high - x) ** 2 * (1.001 * rising + 0.001 * falling + _RAA / span)
        q = (x - low) ** 2 * (0.001 * rising + 1.001 * falling + _RAA / span)
        at_x = (p / (high - x) + q / (x - low)).sum(-1)
        floor = torch.maximum(torch.maximum(state["lower"], low + _ALPHA * (x - low)), x - self.move * span)
        ceiling = torch.minimum(torch.minimum(state["upper"], high - _ALPHA * (high - x)), x + self.move * span)
        return Subproblem(
            p=p,
            q=q,
            bound=at_x[1:] - constraints,
            low=low,
            high=high,
            floor=floor,
            ceiling=ceiling,
            penalty=self.penalty,
        )
