"""L-BFGS for one problem: the method of the batched step with its scalars on the host, one synchronisation per step.

A batch needs every scalar as a tensor; for one problem some hundred tiny operations per step would cost more than many an
evaluation. Here a step is one evaluation, one product with the stored vectors, and one combination of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf, isfinite, isinf, sqrt
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sciopt.inner.line_search import ARMIJO, first_step_size
from sciopt.problem.system import Oracle
from sciopt.solution import Solution, Status

if TYPE_CHECKING:
    from sciopt.inner.lbfgs import LBFGS

__all__ = ["solve_single"]

RESET_AFTER = 8
STUCK_AFTER = 40
STALE_AFTER = 60
RUNAWAY = 1e10


@dataclass
class Pairs:
    """Products of the curvature pairs by slot; `slots` lists the slots in use, oldest first."""

    size: int
    slots: list[int] = field(default_factory=list)
    cross: list[list[float]] = field(default_factory=list)  # s_i . y_j, right for i not younger than j
    inner: list[list[float]] = field(default_factory=list)  # y_i . y_j

    def __post_init__(self) -> None:
        self.cross = [[0.0] * self.size for _ in range(self.size)]
        self.inner = [[0.0] * self.size for _ in range(self.size)]

    def take(self, s_y: list[float], y_y: list[float], sy: float, yy: float) -> int:
        """Enter the products of a new pair with the old ones; returns its slot."""
        full = len(self.slots) == self.size
        slot = self.slots.pop(0) if full else next(k for k in range(self.size) if k not in self.slots)
        for k in self.slots:
            self.cross[k][slot] = s_y[k]
            self.inner[k][slot] = self.inner[slot][k] = y_y[k]
        self.cross[slot][slot], self.inner[slot][slot] = sy, yy
        self.slots.append(slot)
        return slot

    def weights(self, s_g: list[float], y_g: list[float], gamma: float) -> tuple[list[float], float]:
        """Coefficients c of ``H g = gamma g + c . (s, y)``, and ``g . H g``, by the two loops in products alone."""
        m, slots, cross = self.size, self.slots, self.cross
        alpha: dict[int, float] = {}
        for position in range(len(slots) - 1, -1, -1):
            i = slots[position]
            row = cross[i]
            total = s_g[i]
            for j in slots[position + 1 :]:
                total -= alpha[j] * row[j]
            alpha[i] = total / row[i]
        out = [0.0] * (2 * m)
        done: list[int] = []
        product = 0.0
        for i in slots:
            row = self.inner[i]
            total = y_g[i]
            for j in slots:
                total -= alpha[j] * row[j]
            total *= gamma
            for k in done:
                total += out[k] * cross[k][i]
            out[i] = alpha[i] - total / cross[i][i]
            out[m + i] = -gamma * alpha[i]
            product += out[i] * s_g[i] + out[m + i] * y_g[i]
            done.append(i)
        return out, product


@torch.no_grad()
def solve_single(solver: LBFGS, oracle: Oracle, x: Tensor, rtol: float) -> Solution:
    """Minimise from ``x`` of shape ``(n,)``."""
    eps = torch.finfo(x.dtype).eps
    n = x.shape[-1]
    m = min(solver.history, max(n, 1))
    value, grad = oracle.value_and_grad(x)
    f, gg, gamma, xx = torch.stack([value, grad.dot(grad), first_step_size(x, value, grad), x.dot(x)]).tolist()
    rows = x.new_zeros(2 * m + 3, n)  # s, y, and the direction, change and gradient of the trial
    pairs = Pairs(m)
    norm = start = best = sqrt(gg) if gg >= 0 else gg
    direction, descent = limited(solver, -gamma * grad, -gamma * gg)
    length = 1.0
    reach = RUNAWAY * max(sqrt(xx), 1.0) if isfinite(xx) else inf
    curvature, floor, rejections, stale, steps = inf, 0.0, 0, 0, 0
    code = verdict(Status.RUNNING, norm, solver.atol + rtol * start, floor)
    while code == Status.RUNNING and steps < solver.max_steps:
        steps += 1
        trial = torch.add(x, direction, alpha=length)
        trial_value, trial_grad = oracle.value_and_grad(trial)
        rows[2 * m] = direction
        torch.sub(trial_grad, grad, out=rows[2 * m + 1])
        rows[2 * m + 2] = trial_grad
        products = rows @ rows[2 * m + 1 :].T
        numbers = torch.cat(
            [products.flatten(), torch.stack([direction.dot(direction), trial_value, trial.dot(trial)])]
        ).tolist()
        by_change, by_grad = numbers[: 4 * m + 6 : 2], numbers[1 : 4 * m + 6 : 2]
        dd, trial_f, trial_xx = numbers[-3:]
        dy, dg = by_change[2 * m], by_grad[2 * m]
        yy, gg = by_change[2 * m + 1], by_grad[2 * m + 2]
        slope = dg - dy if isfinite(dg - dy) and dg - dy < 0 else descent
        accept = acceptable(f, slope, length, trial_f, dg, eps) and isfinite(gg)

        plain = not pairs.slots
        if accept:
            sy = length * dy
            rejections = 0
        else:
            sy = 0.0
            rejections += 1
        ss = length * length * dd
        shift = sqrt(ss) if ss >= 0 else inf
        size = sqrt(trial_xx) if accept and trial_xx >= 0 else sqrt(xx)
        if isfinite(yy) and isfinite(shift) and shift > sqrt(eps) * size:
            seen = sqrt(yy) / shift
            if accept:
                curvature = seen if plain or isinf(curvature) else max(seen, 0.9 * curvature)
            else:
                curvature = min(curvature, seen)
        gained = False
        if accept:
            if yy > 0 and sy > sqrt(eps) * sqrt(ss * yy):
                slot = pairs.take(by_change[:m], by_change[m : 2 * m], sy, yy)
                torch.mul(direction, length, out=rows[slot])
                rows[m + slot] = rows[2 * m + 1]
                by_grad[slot], by_grad[m + slot] = length * dg, by_grad[2 * m + 1]
                gamma = sy / yy
            elif plain:
                gamma *= 4 * length
            gained = sqrt(gg) < 0.9 * best or f - trial_f > 10 * eps * abs(trial_f)
            x, f, grad, xx, norm, length = trial, trial_f, trial_grad, trial_xx, sqrt(gg), 1.0
            best = min(best, norm)
            weights, product = pairs.weights(by_grad[:m], by_grad[m : 2 * m], gamma)
            descent = -gamma * gg - product
            if descent < 0:
                combination = torch.tensor(weights, dtype=x.dtype, device=x.device)
                direction = torch.addmv(grad, rows[: 2 * m].T, combination, beta=-gamma, alpha=-1)
                direction, descent = limited(solver, direction, descent)
        else:
            length *= shortening(f, slope, length, trial_f, dg)
        if (accept and not descent < 0) or (not plain and rejections >= RESET_AFTER):
            pairs.slots.clear()
            rejections, length = 0, 1.0
            direction, descent = limited(solver, -gamma * grad, -gamma * norm * norm)
        stuck = rejections >= STUCK_AFTER
        stale = 0 if gained else stale + accept
        bound = 10 * eps * curvature * sqrt(xx) if (accept or stuck) and isfinite(curvature) else 0.0
        floor = bound if isfinite(bound) else 0.0
        if stuck or stale >= STALE_AFTER:
            code = Status.STAGNATED
        if sqrt(xx) > reach or trial_f == -inf:
            code = Status.DIVERGED if code == Status.RUNNING else code
        code = verdict(code, norm, solver.atol + rtol * start, floor)
    code = Status.MAX_STEPS if code == Status.RUNNING else code

    def scalar(number: float) -> Tensor:
        return x.new_tensor(number)

    status = torch.tensor(int(code), device=x.device)
    state = {
        "residual_norm": scalar(norm),
        "scale": scalar(start),
        "status_code": status,
        "floor": scalar(floor),
        "value": scalar(f),
        "grad": grad,
        "gamma": scalar(gamma),
        "curvature": scalar(curvature),
    }
    count = torch.tensor(steps, device=x.device)
    return Solution(value=x, status_code=status, residual_norm=scalar(norm), num_steps=count, state=state)


def limited(solver: LBFGS, direction: Tensor, descent: float) -> tuple[Tensor, float]:
    """The direction, shortened to ``max_change`` in its largest entry, and its slope."""
    if solver.max_change is None:
        return direction, descent
    largest = float(direction.abs().max())
    factor = min(1.0, solver.max_change / largest) if largest > 0 else 1.0
    return direction * factor, descent * factor


def verdict(code: Status, norm: float, limit: float, floor: float) -> Status:
    """As `AbstractIterativeSolver.terminate`, on numbers."""
    if code <= Status.STAGNATED and norm <= max(limit, floor):
        return Status.CONVERGED
    return Status.NONFINITE if code == Status.RUNNING and not isfinite(norm) else code


def acceptable(f: float, slope: float, length: float, trial_f: float, trial_slope: float, eps: float) -> bool:
    """As `line_search.acceptable`, on numbers."""
    if not (isfinite(trial_f) and isfinite(trial_slope)):
        return False
    if trial_f <= f + ARMIJO * length * slope and f - trial_f > 10 * eps * abs(f):
        return True
    return trial_f <= f + eps ** (2 / 3) * abs(f) and trial_slope <= -0.9 * slope


def shortening(f: float, slope: float, length: float, trial_f: float, trial_slope: float) -> float:
    """As `line_search.shorten`, on numbers: the factor in [0.1, 0.5]."""
    a = slope + trial_slope - 3 * (trial_f - f) / length
    square = a * a - slope * trial_slope
    root = sqrt(square) if square > 0 else 0.0
    bottom = trial_slope - slope + 2 * root
    ratio = 1 - (trial_slope + root - a) / bottom if bottom else 1.0
    return min(max(ratio, 0.1), 0.5) if isfinite(ratio) else 0.1
