"""Mehrotra's predictor-corrector interior point for convex quadratic programs, batched and dense."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from sciopt.checks import check_tolerances
from sciopt.inner.abstract import AbstractIterativeSolver
from sciopt.inner.constrained_newton import Parts, constraints, derivatives, product, split
from sciopt.inner.rows import any_row, base_state, dot, norm, quotient, select, verdict
from sciopt.problem.constrained import Constrained
from sciopt.problem.quadratic import QuadraticProgram
from sciopt.problem.system import Oracle
from sciopt.solution import Status
from sciopt.transforms import under_transform

__all__ = ["InteriorPoint"]

STALE_AFTER = 15
CERTIFIED = 1e-7  # relative error allowed in a proof of infeasibility or unboundedness


@final
@dataclass(frozen=True, kw_only=True)
class InteriorPoint(AbstractIterativeSolver):
    """Primal-dual interior point with Mehrotra's predictor and corrector, for `Constrained` with a quadratic loss.

    Use it for convex quadratic (and linear) programs of up to a thousand variables, many at once: the problem's matrices
    are read off once by n products, after which a step is one batched Cholesky factorisation and two solves. About ten
    steps reach 1e-8; the start is the method's own, ``init`` only gives shapes (and ends the run where it is optimal).
    A set of constraints proved empty ends as `Status.INFEASIBLE`, a loss proved unbounded as `Status.DIVERGED`, negative
    curvature as `Status.INDEFINITE`. `ConstrainedNewton` solves problems that are not quadratic.

    Args:
        rtol: tolerance on the norm of the Karush-Kuhn-Tucker residual relative to its start; None: 1e-8 in float64, 1e-4
            in float32.
        atol: absolute tolerance on it.
        max_steps: step budget.

    Raises:
        ValueError: for options out of range; while solving, for a loss that is not quadratic or constraints not affine.

    Example:
        >>> from sciopt import Constrained, best_response
        >>> problem = Constrained(lambda x, phi: ((x - phi) ** 2).sum(), inequality=lambda x, phi: -x)
        >>> phi, init = torch.tensor([-1.0, 2.0]).double(), torch.zeros(2).double()
        >>> best_response(problem, phi, init=init, solver=InteriorPoint()).value.round(decimals=6).abs()
        tensor([0., 2.], dtype=torch.float64)

    References:
        Mehrotra. "On the implementation of a primal-dual interior point method". SIAM J. Optimization 2 (1992).
        Nocedal, Wright. "Numerical Optimization", 2nd ed., algorithm 16.4. Vandenberghe. "The CVXOPT linear and quadratic
        cone program solvers" (2010), section 5.3 (start), 7.1 (certificates).
    """

    solves: ClassVar = (QuadraticProgram, Constrained)
    rtol: float | None = None
    atol: float = 0.0
    max_steps: int = 100

    def __post_init__(self) -> None:
        check_tolerances("InteriorPoint", self.rtol, self.atol, self.max_steps)

    def init(self, oracle: Oracle, x: Tensor) -> dict[str, Any]:
        start = norm(oracle.residual(x))
        parts = split(oracle, x)
        data = read_off(oracle, x, parts)
        finite = torch.stack([torch.isfinite(t.detach()).flatten(start.ndim).all(-1) for t in data.values()]).all(0)
        data = {k: select(finite, v, torch.zeros_like(v)) for k, v in data.items()}
        with torch.no_grad():
            sizes = {f"size_{k}": largest(data[k]) for k in "QAG"} | {"size_AA": largest(data["A"] @ data["A"].mT)}
        data |= sizes
        ones = torch.ones_like(data["h"])
        factors = factorise(data, ones)
        theta, y, z = saddle(data, factors, ones, -data["p"], data["b"], data["h"])
        s, z = inside(-z), inside(z)
        state = base_state(
            torch.where(finite, start, torch.nan),
            torch.where(finite, start, torch.nan),
            **data,
            theta=theta,
            y=y,
            z=z,
            s=s,
            least=torch.finfo(x.dtype).eps ** 0.9 * dot(s, z).detach() / max(1, z.shape[-1]),
            best=torch.full_like(start, torch.inf),
            stale=torch.zeros_like(start, dtype=torch.int64),
            floor=torch.zeros_like(start),
        )
        concave = finite & ~convex(data["Q"], data["A"])
        state["status_code"] = verdict(state["status_code"], concave, Status.INDEFINITE)
        return state

    def step(self, oracle: Oracle, x: Tensor, state: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        data = state
        theta, y, z, s = state["theta"], state["y"], state["z"], state["s"]
        q = max(1, z.shape[-1])
        dual = product(data["Q"], theta) + data["p"] + product(data["A"].mT, y) + product(data["G"].mT, z)
        equal = product(data["A"], theta) - data["b"]
        slack = product(data["G"], theta) + s - data["h"]
        weights = z / s
        factors = factorise(data, weights)

        def direction(complementarity: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
            """Newton direction for ``s z = complementarity`` to first order."""
            shifted = quotient(complementarity, z)  # eliminates ds = shifted - (s / z) dz - s
            dx, dy, dz = saddle(data, factors, weights, -dual, -equal, -slack - shifted + s)
            return dx, dy, dz, -slack - product(data["G"], dx)

        mu = dot(s, z) / q
        _, _, dz, ds = direction(torch.zeros_like(s))
        length = torch.minimum(to_border(s, ds), to_border(z, dz)).unsqueeze(-1)
        predicted = dot(s + length * ds, z + length * dz) / q
        centring = quotient(predicted, mu).clamp(0.0, 1.0) ** 3
        target = torch.maximum(centring * mu, state["least"])  # below it rounding pulls the point off the path
        dx, dy, dz, ds = direction(target.unsqueeze(-1) - ds * dz)
        reserve = torch.clamp(1 - mu.detach(), 0.99, 0.999)
        length = (reserve * torch.minimum(to_border(s, ds), to_border(z, dz))).unsqueeze(-1)
        if z.shape[-1] == 0:
            length = torch.ones_like(length)
        sound = torch.isfinite(torch.cat([dx, dy, dz, ds], -1)).all(-1, keepdim=True)
        move = torch.where(sound, length, 0.0)
        dx, dy, dz, ds = (torch.where(sound, d, 0.0) for d in (dx, dy, dz, ds))
        theta, y, z, s = theta + move * dx, y + move * dy, z + move * dz, s + move * ds
        least = torch.finfo(x.dtype).tiny ** 0.25  # what has gone that far need not go farther
        z, s = z.clamp_min(least), s.clamp_min(least)

        parts = split(oracle, x)
        moved = x.index_copy(-1, parts.primal, theta)
        moved = moved.index_copy(-1, parts.equality, y).index_copy(-1, parts.inequality, z)
        size = norm(optimality(oracle, data, theta, y, z))
        with torch.no_grad():
            reached = torch.maximum(size, norm(torch.minimum(s, z)))
            lost = ~(reached <= 1e3 * state["best"])  # rounding: the point before was better
        moved = select(lost, x, moved)
        kept = {"theta": theta, "y": y, "z": z, "s": s}
        new = {**state, **{name: select(lost, state[name], value) for name, value in kept.items()}}
        with torch.no_grad():
            new["residual_norm"] = torch.where(lost, state["residual_norm"], size)
            new["best"] = torch.minimum(reached, state["best"])
            gained = reached < 0.9 * state["best"]
            new["stale"] = torch.where(gained, 0, state["stale"] + 1)
            new["least"] = torch.where(new["stale"] < 2, 1.0, 0.1) * state["least"]  # degenerate rows need the square
            new["floor"] = rounding(data, theta, y, z)
            code = verdict(state["status_code"], empty(data, y, z), Status.INFEASIBLE)
            code = verdict(code, unbounded(data, theta), Status.DIVERGED)
            stuck = lost | (new["stale"] >= STALE_AFTER)
            code = verdict(code, stuck & outside(data, new["theta"]), Status.INFEASIBLE)
            new["status_code"] = verdict(code, stuck, Status.STAGNATED)
        return moved, new


def read_off(oracle: Oracle, x: Tensor, parts: Parts) -> dict[str, Tensor]:
    """The matrices of the program: as given, or found by differentiation at ``x``."""
    problem = oracle.problem
    if isinstance(problem, QuadraticProgram):
        with torch.set_grad_enabled(oracle.differentiable):
            return oracle.system.call(problem.data, x, oracle.args)._asdict()
    stationarity, Q, A, G = derivatives(oracle, x, parts)
    equal, unequal = constraints(oracle, x)
    theta, y, z = x[..., parts.primal], x[..., parts.equality], x[..., parts.inequality]
    p = stationarity - product(Q, theta) - product(A.mT, y) - product(G.mT, z)
    data = {"Q": Q, "p": p, "A": A, "b": product(A, theta) - equal, "G": G, "h": product(G, theta) - unequal}
    check_quadratic(oracle, x, parts, data)
    return data


def factorise(data: dict[str, Tensor], weights: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Cholesky factors of ``H = Q + G' diag(weights) G + r A'A`` and of ``A H^-1 A'``, with ``H^-1 A'`` and r.

    Adding ``r A'A`` changes no solution, and makes H positive definite wherever the saddle matrix is regular.
    """
    Q, A, G = data["Q"], data["A"], data["G"]
    eps = torch.finfo(Q.dtype).eps
    curvature, slope = data["size_Q"], data["size_AA"]
    ratio = quotient(torch.where(curvature > 0, curvature, 1.0), slope)
    H = Q + G.mT @ (weights.unsqueeze(-1) * G) + grow(ratio) * (A.mT @ A)
    held = torch.where(curvature > 0, curvature, data["size_G"] ** 2 + slope)
    tiny = grow(eps * held + torch.finfo(Q.dtype).tiny)
    outer = safe_cholesky(H, tiny)
    inverse = torch.cholesky_solve(A.mT, outer)
    schur = A @ inverse
    scale = schur.detach().diagonal(dim1=-2, dim2=-1).amax(-1) if A.shape[-2] else curvature
    inner = safe_cholesky(schur, grow(eps * scale + torch.finfo(Q.dtype).tiny))
    return outer, inner, inverse, ratio


def saddle(
    data: dict[str, Tensor], factors: tuple[Tensor, ...], weights: Tensor, top: Tensor, middle: Tensor, bottom: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Solve ``[[Q, A', G'], [A, 0, 0], [G, 0, -1 / weights]] (x, y, z) = (top, middle, bottom)``, refined once."""
    Q, A, G = data["Q"], data["A"], data["G"]
    outer, inner, inverse, ratio = factors

    def solve(top: Tensor, middle: Tensor, bottom: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        first = top + product(G.mT, weights * bottom) + ratio.unsqueeze(-1) * product(A.mT, middle)
        x = torch.cholesky_solve(first.unsqueeze(-1), outer).squeeze(-1)
        y = torch.cholesky_solve((product(A, x) - middle).unsqueeze(-1), inner).squeeze(-1)
        x = x - product(inverse, y)
        return x, y, weights * (product(G, x) - bottom)

    x, y, z = solve(top, middle, bottom)
    dx, dy, dz = solve(
        top - product(Q, x) - product(A.mT, y) - product(G.mT, z),
        middle - product(A, x),
        bottom - product(G, x) + quotient(z, weights),
    )
    return x + dx, y + dy, z + dz


def safe_cholesky(matrix: Tensor, tiny: Tensor) -> Tensor:
    """Cholesky factor of ``matrix + tiny``, with more added in rows that need it; the identity where nothing helps."""
    n = matrix.shape[-1]
    eye = torch.eye(n, dtype=matrix.dtype, device=matrix.device)
    shift = tiny.detach()
    factor, info = torch.linalg.cholesky_ex(matrix + shift * eye)
    for _ in range(4):
        if not any_row(info != 0):
            break
        shift = torch.where(grow(info != 0), 1e3 * shift, shift)
        factor, info = torch.linalg.cholesky_ex(matrix + shift * eye)
    return select(info != 0, eye, factor)


def optimality(oracle: Oracle, data: dict[str, Tensor], theta: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """The problem's residual, as a vector up to signs, from the matrices."""
    oracle.counter["residual"] += 1
    excess = product(data["G"], theta) - data["h"]
    active = z >= -excess
    pushing = torch.where(active, z, 0.0) if isinstance(oracle.problem, QuadraticProgram) else z
    balance = product(data["Q"], theta) + data["p"] + product(data["A"].mT, y) + product(data["G"].mT, pushing)
    return torch.cat([balance, product(data["A"], theta) - data["b"], torch.where(active, excess, z)], -1)


def inside(v: Tensor) -> Tensor:
    """The point itself where it is positive, else shifted so that its smallest entry is one."""
    if not v.shape[-1]:
        return v
    lowest = v.amin(-1, keepdim=True)
    return torch.where(lowest > 0, v, v - lowest + 1.0)


def to_border(v: Tensor, dv: Tensor) -> Tensor:
    """Longest step in (0, 1] that stays in the positive orthant."""
    if not v.shape[-1]:
        return torch.ones(v.shape[:-1], dtype=v.dtype, device=v.device)
    return torch.where(dv < 0, quotient(-v, torch.where(dv < 0, dv, -1.0)), 1.0).amin(-1).clamp_max(1.0)


def grow(v: Tensor) -> Tensor:
    """``(*batch,)`` to ``(*batch, 1, 1)``."""
    return v.unsqueeze(-1).unsqueeze(-1)


def largest(matrix: Tensor) -> Tensor:
    """Largest absolute entry of each matrix, cut off from the graph; 0 for empty ones."""
    if not matrix.shape[-1] * matrix.shape[-2]:
        return torch.zeros(matrix.shape[:-2], dtype=matrix.dtype, device=matrix.device)
    return matrix.detach().abs().amax((-2, -1))


@torch.no_grad()
def convex(Q: Tensor, A: Tensor) -> Tensor:
    """Whether Q is positive semi-definite along the equalities, to rounding."""
    size = largest(Q)
    slope = quotient(1e3 * size, largest(A @ A.mT))
    tested = Q + grow(slope) * (A.mT @ A)
    margin = 10 * Q.shape[-1] * torch.finfo(Q.dtype).eps * largest(tested) + torch.finfo(Q.dtype).tiny
    eye = torch.eye(Q.shape[-1], dtype=Q.dtype, device=Q.device)
    return torch.linalg.cholesky_ex(tested + grow(margin) * eye)[1] == 0


def empty(data: dict[str, Tensor], y: Tensor, z: Tensor) -> Tensor:
    """Whether the multipliers prove the constraints inconsistent: ``A'y + G'z = 0`` while ``b.y + h.z < 0``."""
    size = norm(torch.cat([y, z], -1))
    combination = norm(product(data["A"].mT, y) + product(data["G"].mT, z))
    bound = dot(data["b"], y) + dot(data["h"], z)
    slopes = torch.maximum(data["size_A"], data["size_G"])
    heights = norm(torch.cat([data["b"], data["h"]], -1))
    return (combination <= CERTIFIED * slopes * size) & (bound < -1e3 * CERTIFIED * heights * size)


def outside(data: dict[str, Tensor], theta: Tensor) -> Tensor:
    """Whether the point violates the constraints by far more than rounding."""
    excess = (product(data["G"], theta) - data["h"]).clamp_min(0.0)
    violation = norm(torch.cat([product(data["A"], theta) - data["b"], excess], -1))
    size = torch.maximum(data["size_A"], data["size_G"]) * norm(theta) + norm(data["b"])
    return violation > torch.finfo(theta.dtype).eps ** 0.4 * size


def unbounded(data: dict[str, Tensor], theta: Tensor) -> Tensor:
    """Whether the loss falls for ever along theta: ``Q d = 0``, ``A d = 0``, ``G d <= 0`` while ``p.d < 0``."""
    size = norm(theta)
    flat = norm(product(data["Q"], theta)) <= CERTIFIED * data["size_Q"] * size
    held = norm(product(data["A"], theta)) <= CERTIFIED * data["size_A"] * size
    free = norm(product(data["G"], theta).clamp_min(0.0)) <= CERTIFIED * data["size_G"] * size
    falls = dot(data["p"], theta) < -1e3 * CERTIFIED * norm(data["p"]) * size
    return flat & held & free & falls & (size > 0)


def rounding(data: dict[str, Tensor], theta: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """The residual that rounding of the point alone explains; none for a point that runs away."""
    size = data["size_Q"] * norm(theta) + data["size_A"] * norm(y) + data["size_G"] * norm(z)
    floor = 10 * torch.finfo(theta.dtype).eps * size
    limit = torch.finfo(theta.dtype).eps ** 0.6 * (norm(data["p"]) + norm(data["b"]))
    return torch.where(torch.isfinite(floor), torch.minimum(floor, limit), 0.0)


@torch.no_grad()
def check_quadratic(oracle: Oracle, x: Tensor, parts: Parts, data: dict[str, Tensor]) -> None:
    """Refuse problems whose matrices change from point to point: one more residual tells."""
    if under_transform():
        return
    wave = torch.sin(1.0 + torch.arange(x.shape[-1], dtype=x.dtype, device=x.device))
    there = x + wave * (1 + x.abs().amax(-1, keepdim=True))
    theta, y, z = there[..., parts.primal], there[..., parts.equality], there[..., parts.inequality]
    residual = oracle.residual(there)[..., parts.primal]
    equal, unequal = constraints(oracle, there)
    terms = [product(data["Q"], theta), data["p"], product(data["A"].mT, y), product(data["G"].mT, z)]
    found = torch.cat([residual, equal, unequal], -1)
    expected = [sum(terms[1:], terms[0]), product(data["A"], theta) - data["b"], product(data["G"], theta) - data["h"]]
    gap = norm(found - torch.cat(expected, -1))
    size = norm(torch.cat([*terms, data["b"], data["h"]], -1)) + norm(found)
    if bool((gap > 1e3 * torch.finfo(x.dtype).eps * x.shape[-1] * size).any()):
        raise ValueError(
            "InteriorPoint: expected a quadratic `inner_loss` and affine constraints, got ones whose derivatives change from "
            "point to point. Use ConstrainedNewton."
        )
