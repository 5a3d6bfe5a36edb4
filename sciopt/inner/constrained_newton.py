"""Primal-dual interior-point Newton for `Constrained`: equalities and inequalities, batched."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, final

import torch
from torch import Tensor

from sciopt.checks import check_option, check_tolerances
from sciopt.inner.abstract import AbstractIterativeSolver
from sciopt.inner.rows import any_row, base_state, dot, norm, quotient, select, solve_rows, verdict
from sciopt.params import tree_leaves
from sciopt.problem.constrained import Constrained
from sciopt.problem.system import Oracle
from sciopt.solution import Status

__all__ = ["ConstrainedNewton"]

MAX_TRIALS = 25
STALE_AFTER = 25
TO_BORDER = 0.995
RUNAWAY = 1e10  # multipliers beyond this, away from the feasible set, say that the set is empty


class Parts(NamedTuple):
    """Flat indices of the primal variables and the two kinds of multipliers."""

    primal: Tensor
    equality: Tensor
    inequality: Tensor


@final
@dataclass(frozen=True, kw_only=True)
class ConstrainedNewton(AbstractIterativeSolver):
    """Primal-dual interior-point method with slacks; without inequalities, Newton on the Lagrangian.

    Use it for quadratic programs and smooth nonlinear ones with up to about two thousand variables: a step costs one
    linearization, n products and one dense factorisation. Negative curvature is convexified, steps are accepted by an l1
    merit function. A row that stands still away from the feasible set ends as `Status.INFEASIBLE`.

    Args:
        rtol: tolerance on the norm of the Karush-Kuhn-Tucker residual relative to its start; None: 1e-8 in float64, 1e-4
            in float32.
        atol: absolute tolerance on it.
        max_steps: step budget.

    Raises:
        ValueError: for options out of range.

    Example:
        >>> from sciopt import Constrained, best_response
        >>> problem = Constrained(lambda x, phi: ((x - phi) ** 2).sum(), inequality=lambda x, phi: -x)
        >>> phi, init = torch.tensor([-1.0, 2.0]).double(), torch.zeros(2).double()
        >>> best_response(problem, phi, init=init, solver=ConstrainedNewton()).status.name
        'CONVERGED'

    References:
        Nocedal, Wright. "Numerical Optimization", 2nd ed., sec. 19.2-19.3 (primal-dual system 19.12, merit function).
        Waechter, Biegler. "On the implementation of an interior-point filter line-search algorithm". Math. Programming
        106 (2006), inertia correction.
    """

    solves: ClassVar = (Constrained,)
    rtol: float | None = None
    atol: float = 0.0
    max_steps: int = 200

    def __post_init__(self) -> None:
        check_tolerances("ConstrainedNewton", self.rtol, self.atol, self.max_steps)
        check_option("ConstrainedNewton", "max_steps", self.max_steps, self.max_steps >= 0, ">= 0", "Use 200.")

    def init(self, oracle: Oracle, x: Tensor) -> dict[str, Any]:
        residual = oracle.residual(x)
        start = norm(residual)
        parts = split(oracle, x)
        h, g = constraints(oracle, x)
        far = 0.1 * g.abs().amax(-1, keepdim=True).clamp_min(1.0) if g.shape[-1] else g
        slack = torch.maximum(-g, far)
        multipliers = x[..., parts.inequality].clamp_min(1.0)
        violation = norm(torch.cat([h, g.clamp_min(0.0)], -1))
        return base_state(
            start,
            start,
            slack=slack,
            multipliers=multipliers,
            penalty=torch.ones_like(start),
            lift=torch.zeros_like(start),
            best=torch.full_like(start, torch.inf),
            violation=violation,
            stale=torch.zeros_like(start, dtype=torch.int64),
            floor=torch.zeros_like(start),
        )

    def step(self, oracle: Oracle, x: Tensor, state: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        parts = split(oracle, x)
        n, p, q = (index.shape[0] for index in parts)
        s, z = state["slack"], state["multipliers"]
        x = x.index_copy(-1, parts.inequality, z) if q else x
        stationarity, hessian, jac_h, jac_g = derivatives(oracle, x, parts)
        h, g = constraints(oracle, x)
        y = x[..., parts.equality]
        gap = dot(s, z) / max(q, 1)
        barrier = 0.1 * gap if q else torch.zeros_like(gap)
        barrier = torch.minimum(barrier, gap**1.5)

        sigma = z / s
        off = g + s
        fixed = barrier.unsqueeze(-1) / s - z + sigma * off
        gram = hessian + jac_g.mT @ (sigma.unsqueeze(-1) * jac_g)
        gradient = stationarity - product(jac_h.mT, y) - product(jac_g.mT, z)
        stiffness = quotient(norm(gradient), norm(x[..., parts.primal]).clamp_min(1.0))
        stiffness = torch.maximum(stiffness, torch.linalg.vector_norm(hessian.detach(), dim=-1).amax(-1))
        gram, shift = convexify(gram, jac_h, state["lift"], stiffness)
        dx, dy = solve_saddle(gram, jac_h, -(stationarity + product(jac_g.mT, fixed)), -h)
        slope_g = product(jac_g, dx)
        ds = -off - slope_g
        dz = fixed + sigma * slope_g
        top_s, top_z = to_border(s, ds), to_border(z, dz)

        objective_slope = dot(gradient, dx)
        barrier_slope = objective_slope - (barrier.unsqueeze(-1) * quotient(ds, s)).sum(-1)
        wrong = h.abs().sum(-1) + off.abs().sum(-1)
        bending = dot(dx, product(gram, dx)).clamp_min(0.0)
        needed = quotient(barrier_slope + 0.5 * bending, 0.7 * wrong)
        penalty = torch.where((needed > state["penalty"]) & (wrong > 0), 1.5 * needed, state["penalty"]).detach()
        slope = barrier_slope - penalty * wrong

        def merit(x: Tensor, s: Tensor, h: Tensor, g: Tensor) -> Tensor:
            logs = s.clamp_min(torch.finfo(s.dtype).tiny).log().sum(-1)
            return oracle.value(x) - barrier * logs + penalty * (h.abs().sum(-1) + (g + s).abs().sum(-1))

        before = merit(x, s, h, g)
        noise = 100 * torch.finfo(x.dtype).eps * (before.abs() + penalty * (1 + g.abs().sum(-1)))
        length, open_rows = top_s, torch.isfinite(before)
        moved, new_s, taken = x, s, torch.zeros_like(length)
        for _ in range(MAX_TRIALS):
            column = length.unsqueeze(-1)
            trial = x.index_add(-1, parts.primal, column * dx)
            trial_h, trial_g = constraints(oracle, trial)
            # a slack may grow to what the constraint allows: never worse for the merit
            trial_s = torch.maximum(s + column * ds, -trial_g)
            value = merit(trial, trial_s, trial_h, trial_g)
            good = open_rows & torch.isfinite(value) & (value <= before + 1e-4 * length * slope.clamp_max(0.0) + noise)
            moved, new_s = select(good, trial, moved), select(good, trial_s, new_s)
            taken = torch.where(good, length, taken)
            open_rows = open_rows & ~good
            if not any_row(open_rows):
                break
            length = torch.where(open_rows, 0.5 * length, length)

        dual = torch.where(taken > 0, top_z, 0.0).unsqueeze(-1)
        new_z = z + dual * dz
        if q:  # keep s z within reach of the barrier (Waechter, Biegler, eq. 16)
            target = quotient(barrier.unsqueeze(-1), new_s)
            new_z = torch.minimum(
                torch.maximum(new_z, target / 1e10), torch.maximum(1e10 * target, 0 * target + 1e-300)
            )
            moved = moved.index_copy(-1, parts.inequality, new_z)
        moved = moved.index_add(-1, parts.equality, taken.unsqueeze(-1) * dy) if p else moved
        residual = oracle.residual(moved)
        new = {**state, "slack": new_s, "multipliers": new_z, "penalty": penalty}
        higher = torch.maximum(10 * torch.maximum(shift, state["lift"]), 1e-3 * stiffness)
        lower = torch.where(state["lift"] > 1e-6 * stiffness, 0.1 * state["lift"], 0.0)
        new["lift"] = torch.where(taken < 1e-2 * top_s, higher, lower).detach()  # a bad step asks for a stiffer model
        h, g = constraints(oracle, moved)
        multipliers = norm(moved[..., torch.cat([parts.equality, parts.inequality])])
        self._judge(state, new, norm(residual), norm(torch.cat([h, g.clamp_min(0.0)], -1)), multipliers)
        size = norm(stationarity) + norm(jac_h.flatten(-2)) * norm(y) + norm(jac_g.flatten(-2)) * norm(z)
        size = size + norm(hessian.flatten(-2)) * norm(moved[..., parts.primal])
        eps = torch.finfo(x.dtype).eps  # runaway multipliers of infeasible problems excuse nothing
        new["floor"] = torch.where(torch.isfinite(size), torch.minimum(eps * size, eps**0.6 * state["scale"]), 0.0)
        return moved, new

    @torch.no_grad()
    def _judge(
        self, state: dict[str, Any], new: dict[str, Any], size: Tensor, violation: Tensor, multipliers: Tensor
    ) -> None:
        new["residual_norm"] = size
        progress = (size < 0.9 * state["best"]) | (violation < 0.9 * state["violation"])
        new["best"] = torch.minimum(size, state["best"])
        new["violation"] = torch.minimum(violation, state["violation"])
        new["stale"] = torch.where(progress, 0, state["stale"] + 1)
        stuck = new["stale"] >= STALE_AFTER
        outside = violation > 10 * torch.finfo(size.dtype).eps ** 0.5
        runaway = ~(multipliers <= RUNAWAY * (1 + state["scale"])) & torch.isfinite(state["scale"])
        code = verdict(state["status_code"], (stuck | runaway) & outside, Status.INFEASIBLE)
        new["status_code"] = verdict(code, stuck, Status.STAGNATED)


def split(oracle: Oracle, x: Tensor) -> Parts:
    """Where the parts of the full unknown lie in the flat vector."""
    tree = oracle.system.layout.unflatten(torch.arange(x.shape[-1], device=x.device))
    none = torch.zeros(0, dtype=torch.int64, device=x.device)
    primal = [leaf.reshape(-1) for leaf in tree_leaves(tree["primal"])]
    return Parts(torch.cat(primal), tree.get("equality", none).reshape(-1), tree.get("inequality", none).reshape(-1))


def constraints(oracle: Oracle, x: Tensor) -> tuple[Tensor, Tensor]:
    """Values of the equalities ``(*batch, p)`` and inequalities ``(*batch, q)``; empty where there are none."""
    problem = oracle.problem
    assert isinstance(problem, Constrained)
    values = []
    for function in (problem.equality, problem.inequality):
        if function is None:
            values.append(x.new_zeros(*x.shape[:-1], 0))
            continue

        def on_primal(tree: Any, outer: Any, function: Any = function) -> Tensor:
            return function(tree["primal"], outer)

        with torch.set_grad_enabled(oracle.differentiable):
            values.append(oracle.system.call(on_primal, x, oracle.args))
    return values[0], values[1]


def derivatives(oracle: Oracle, x: Tensor, parts: Parts) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradient of the Lagrangian, its Hessian, and the Jacobians of both constraints: the primal rows of the system."""
    residual, jacobian = oracle.linearize(x)
    n = parts.primal.shape[0]
    columns = torch.zeros(x.shape[-1], n, dtype=x.dtype, device=x.device)
    columns = columns.index_put(
        (parts.primal, torch.arange(n, device=x.device)), torch.ones((), dtype=x.dtype, device=x.device)
    )
    rows = jacobian.transpose().matmat(columns.expand(*x.shape[:-1], *columns.shape)).mT
    hessian = rows[..., parts.primal]
    return (
        residual[..., parts.primal],
        0.5 * (hessian + hessian.mT),
        rows[..., parts.equality].mT,
        rows[..., parts.inequality].mT,
    )


def product(matrix: Tensor, vector: Tensor) -> Tensor:
    """Matrix times vector, batched."""
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)


def to_border(v: Tensor, dv: Tensor) -> Tensor:
    """Longest step in (0, 1] that leaves a twentieth of a percent to the border of the positive orthant."""
    if not v.shape[-1]:
        return torch.ones(v.shape[:-1], dtype=v.dtype, device=v.device)
    limit = torch.where(dv < 0, TO_BORDER * quotient(-v, torch.where(dv < 0, dv, -1.0)), 1.0)
    return limit.amin(-1).clamp_max(1.0)


def convexify(gram: Tensor, jac_h: Tensor, lift: Tensor, stiffness: Tensor) -> tuple[Tensor, Tensor]:
    """Add at least ``lift`` times the identity, more until the matrix is positive definite along the equalities."""
    size = stiffness.detach()  # of the Lagrangian alone: barrier terms grow without bound and are convex anyway
    eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    slope2 = torch.linalg.vector_norm(jac_h.detach(), dim=(-2, -1)) ** 2 if jac_h.shape[-2] else torch.ones_like(size)
    tested = gram.detach() + quotient(1e3 * size, slope2).unsqueeze(-1).unsqueeze(-1) * (jac_h.mT @ jac_h).detach()
    tested = torch.where(torch.isfinite(tested), tested, 0.0)
    shift = lift
    noise = 10 * torch.finfo(gram.dtype).eps * torch.linalg.vector_norm(tested, dim=-1).amax(-1)
    margin = 1e-10 if gram.dtype == torch.float64 else 1e-6
    base = noise - margin * size - torch.finfo(gram.dtype).tiny
    for _ in range(24):
        trial = tested + (shift + base).unsqueeze(-1).unsqueeze(-1) * eye
        bad = torch.linalg.cholesky_ex(trial)[1] != 0
        if not any_row(bad):
            break
        shift = torch.where(bad, torch.maximum(4 * shift, 1e-4 * size), shift)
    return gram + shift.unsqueeze(-1).unsqueeze(-1) * eye, shift


def solve_saddle(gram: Tensor, jac_h: Tensor, top: Tensor, bottom: Tensor) -> tuple[Tensor, Tensor]:
    """Solve ``[[gram, jac_h^T], [jac_h, 0]]``; dependent equalities are regularised at rounding level."""
    n, p = gram.shape[-1], jac_h.shape[-2]
    size = torch.linalg.vector_norm(jac_h.detach(), dim=(-2, -1)).square() if p else gram.new_zeros(gram.shape[:-2])
    ridge = quotient(size, torch.linalg.vector_norm(gram.detach(), dim=(-2, -1))) * 1e-12
    if gram.dtype != torch.float64:
        ridge = ridge * 1e6
    eye = torch.eye(p, dtype=gram.dtype, device=gram.device)
    lower = torch.cat([jac_h, -ridge.unsqueeze(-1).unsqueeze(-1) * eye.expand(*jac_h.shape[:-2], p, p)], -1)
    matrix = torch.cat([torch.cat([gram, jac_h.mT], -1), lower], -2)
    finite = torch.isfinite(matrix).all(-1).all(-1)
    matrix = select(finite, matrix, torch.eye(n + p, dtype=gram.dtype, device=gram.device))
    solution, _ = solve_rows(matrix, torch.cat([top, bottom], -1))
    solution = torch.where(torch.isfinite(solution), solution, 0.0)
    return solution[..., :n], solution[..., n:]
