"""The convex separable subproblem of the method of moving asymptotes, by a primal-dual interior-point method.

    min   sum_j p_0j / (U_j - x_j) + q_0j / (x_j - L_j)  +  sum_i c y_i + y_i^2 / 2
    s.t.  sum_j p_ij / (U_j - x_j) + q_ij / (x_j - L_j) - y_i <= b_i,   alpha <= x <= beta,   y >= 0

Newton's method on the relaxed optimality conditions, whose relaxation goes to zero; x and y are eliminated, so that a
step costs O(n m^2) and one m x m system.

References:
    Svanberg. "MMA and GCMMA - two methods for nonlinear optimization". KTH, 2007. Section 5.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple, final

import torch
from torch import Tensor

__all__ = ["Subproblem", "solve_subproblem"]


@final
@dataclass(frozen=True, kw_only=True)
class Subproblem:
    """Data of one subproblem; rows of ``p`` and ``q`` ``(1 + m, n)`` are the objective and the constraints.

    Args:
        p: coefficients of ``1 / (high - x)``, positive, ``(1 + m, n)``.
        q: coefficients of ``1 / (x - low)``, positive, ``(1 + m, n)``.
        bound: right-hand sides ``(m,)``.
        low: lower asymptotes ``(n,)``.
        high: upper asymptotes ``(n,)``.
        floor: lower bounds ``(n,)``, above ``low``.
        ceiling: upper bounds ``(n,)``, below ``high``, above ``floor``.
        penalty: linear cost c of the violations y.
    """

    p: Tensor
    q: Tensor
    bound: Tensor
    low: Tensor
    high: Tensor
    floor: Tensor
    ceiling: Tensor
    penalty: float


class _Point(NamedTuple):
    """Unknowns: design, violations, multipliers of constraints, bounds and y >= 0, and slacks."""

    x: Tensor  # (n,)
    y: Tensor  # (m,)
    multiplier: Tensor  # (m,)
    at_floor: Tensor  # (n,)
    at_ceiling: Tensor  # (n,)
    at_zero: Tensor  # (m,)
    slack: Tensor  # (m,)

    def moved(self, step: _Point, length: Tensor) -> _Point:
        return _Point(*(a + length * b for a, b in zip(self, step, strict=True)))


def solve_subproblem(problem: Subproblem, *, max_newton: int = 60) -> tuple[Tensor, Tensor]:
    """Minimiser ``(n,)`` and constraint multipliers ``(m,)`` of a subproblem.

    Args:
        problem: the data.
        max_newton: Newton steps for each value of the relaxation.

    Returns:
        Design and multipliers, accurate to about 1e-9 in float64 and 1e-5 in float32, relative.

    Example:
        >>> two = torch.tensor([[1.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
        >>> one = torch.ones(2, dtype=two.dtype)
        >>> data = Subproblem(p=two, q=2 * two, bound=two[0, :1] * 100, low=-one, high=one, floor=-0.9 * one,
        ...                   ceiling=0.9 * one, penalty=1e3)
        >>> solve_subproblem(data)[0].round(decimals=6)  # (1 + x)^2 = 2 (1 - x)^2
        tensor([0.1716, 0.1716], dtype=torch.float64)
    """
    centre, half = 0.5 * (problem.low + problem.high), 0.5 * (problem.high - problem.low)
    x, multiplier = _interior_point(_scaled(problem, centre, half), max_newton)
    return (centre + half * x).clamp(problem.floor, problem.ceiling), multiplier


def _scaled(problem: Subproblem, centre: Tensor, half: Tensor) -> Subproblem:
    """The problem in variables from -1 to 1 between their asymptotes, so that narrow ones are well conditioned."""
    return replace(
        problem,
        p=problem.p / half,
        q=problem.q / half,
        low=-torch.ones_like(half),
        high=torch.ones_like(half),
        floor=(problem.floor - centre) / half,
        ceiling=(problem.ceiling - centre) / half,
    )


def _interior_point(problem: Subproblem, max_newton: int) -> tuple[Tensor, Tensor]:
    m = problem.bound.numel()
    x = 0.5 * (problem.floor + problem.ceiling)
    one = x.new_ones(m)
    point = _Point(
        x=x,
        y=one,
        multiplier=one,
        at_floor=(1 / (x - problem.floor)).clamp(min=1.0),
        at_ceiling=(1 / (problem.ceiling - x)).clamp(min=1.0),
        at_zero=one * max(1.0, 0.5 * problem.penalty),
        slack=one,
    )
    eps = torch.finfo(x.dtype).eps
    relaxation, last = 1.0, max(1e-9, 4 * eps)
    while True:
        norm, largest = _residual(problem, point, relaxation)
        for _ in range(max_newton):
            if float(largest) < 0.9 * relaxation:
                break
            step = _newton(problem, point, relaxation)
            length = _longest(problem, point, step)
            for _ in range(30):
                trial = point.moved(step, length)
                trial_norm, largest = _residual(problem, trial, relaxation)
                if bool(trial_norm < norm):
                    break
                length = 0.5 * length
            else:
                return point.x, point.multiplier  # rounding allows no further descent
            point, norm = trial, trial_norm
        if relaxation <= last:
            return point.x, point.multiplier
        relaxation = max(0.1 * relaxation, last)


def _values(problem: Subproblem, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Distances to the asymptotes, values of the constraints ``(m,)`` and slopes of all rows ``(1 + m, n)``."""
    above, below = problem.high - x, x - problem.low
    values = (problem.p[1:] / above + problem.q[1:] / below).sum(-1)
    return above, below, values, problem.p / above**2 - problem.q / below**2


def _weighted(rows: Tensor, multiplier: Tensor) -> Tensor:
    return rows[0] + multiplier @ rows[1:]


def _residual(problem: Subproblem, w: _Point, relaxation: float) -> tuple[Tensor, Tensor]:
    """Euclidean and largest-entry norms of the relaxed optimality conditions."""
    _, _, values, slopes = _values(problem, w.x)
    parts = [
        _weighted(slopes, w.multiplier) - w.at_floor + w.at_ceiling,
        problem.penalty + w.y - w.multiplier - w.at_zero,
        values - w.y + w.slack - problem.bound,
        w.at_floor * (w.x - problem.floor) - relaxation,
        w.at_ceiling * (problem.ceiling - w.x) - relaxation,
        w.at_zero * w.y - relaxation,
        w.multiplier * w.slack - relaxation,
    ]
    residual = torch.cat(parts)
    return torch.linalg.vector_norm(residual), torch.linalg.vector_norm(residual, ord=torch.inf)


def _newton(problem: Subproblem, w: _Point, relaxation: float) -> _Point:
    above, below, values, slopes = _values(problem, w.x)
    to_floor, to_ceiling = w.x - problem.floor, problem.ceiling - w.x
    bend = 2 * (_weighted(problem.p, w.multiplier) / above**3 + _weighted(problem.q, w.multiplier) / below**3)
    d_x = bend + w.at_floor / to_floor + w.at_ceiling / to_ceiling
    d_y = 1 + w.at_zero / w.y
    r_x = _weighted(slopes, w.multiplier) - relaxation / to_floor + relaxation / to_ceiling
    r_y = problem.penalty + w.y - w.multiplier - relaxation / w.y
    r_m = values - w.y - problem.bound + relaxation / w.multiplier
    jac = slopes[1:]
    matrix = (jac / d_x) @ jac.mT + torch.diag(1 / d_y + w.slack / w.multiplier)
    multiplier = torch.linalg.solve(matrix, r_m + r_y / d_y - jac @ (r_x / d_x))
    x = -(r_x + multiplier @ jac) / d_x
    return _Point(
        x=x,
        y=(multiplier - r_y) / d_y,
        multiplier=multiplier,
        at_floor=-w.at_floor + (relaxation - w.at_floor * x) / to_floor,
        at_ceiling=-w.at_ceiling + (relaxation + w.at_ceiling * x) / to_ceiling,
        at_zero=-w.at_zero + (relaxation - w.at_zero * (multiplier - r_y) / d_y) / w.y,
        slack=-w.slack + (relaxation - w.slack * multiplier) / w.multiplier,
    )


def _longest(problem: Subproblem, w: _Point, step: _Point) -> Tensor:
    """The step length, at most 1, that keeps every positive quantity above a hundredth of its value."""
    ratios = [-d / v for d, v in zip(step[1:], w[1:], strict=True)]
    ratios += [-step.x / (w.x - problem.floor), step.x / (problem.ceiling - w.x), w.x.new_ones(1) / 1.01]
    return 1 / (1.01 * torch.cat(ratios).max())
