"""Equations that go with an initial-value problem: steady states, consistent starts of differential-algebraic systems."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sciopt.params import Layout, ravel
from sciopt.problem.base import Tree
from sciopt.problem.equations import RootFind
from sciopt.problem.evolution import InitialValue
from sciopt.solution import Status
from sciopt.steppers.field import Field
from sciopt.transforms import plain

__all__ = ["consistent_start", "start_trouble", "steady_state"]

RANK = 1e-10  # singular values below this share of the largest are zero


def steady_state(problem: InitialValue, conservation: Tensor | None = None) -> RootFind:
    """The states at which an autonomous system rests, as a root with implicit gradients.

    Conservation laws make the Jacobian singular: every law replaces one equation that the others imply by the law itself,
    ``conservation @ theta = totals``, exactly. Newton's method finds the steady state near its start; start from an
    integrated state to get the one that the system reaches.

    Args:
        problem: the system; the last of its times is inserted where its right-hand side asks for the time.
        conservation: linear invariants in the flat order of the state, rows ``(c, n)``, linearly independent, such as
            `MassAction.conservation`; None: there are none.

    Returns:
        `RootFind` with the outer parameters of ``problem`` or, with ``conservation``, a dict of ``outer_params`` (those of
        ``problem``) and ``totals`` ``(c,)`` or ``(*batch, c)``.

    Raises:
        ValueError: for laws of another shape or that depend on each other.

    Example:
        >>> from sciopt import best_response
        >>> from sciopt.inner import Newton
        >>> swap = InitialValue(lambda t, y, k: torch.stack([k[1] * y[1] - k[0] * y[0], k[0] * y[0] - k[1] * y[1]]),
        ...                     times=torch.tensor([0.0, 1.0]))
        >>> phi = {"outer_params": torch.tensor([3.0, 1.0]), "totals": torch.tensor([2.0])}
        >>> best_response(steady_state(swap, torch.ones(1, 2)), phi, init=torch.ones(2), solver=Newton()).value
        tensor([0.5000, 1.5000])

    References:
        Feinberg. "Foundations of Chemical Reaction Network Theory". Springer 2019. Chapter 3.
    """
    if conservation is None:
        return RootFind(lambda theta, phi: problem.dynamics(last_time(problem, theta), theta, phi), problem.batch_ndim)
    laws: Any = conservation
    if not isinstance(laws, Tensor) or laws.ndim != 2 or torch.linalg.matrix_rank(laws.double()) < len(laws):
        given = tuple(laws.shape) if isinstance(laws, Tensor) else laws
        raise ValueError(
            f"steady_state: expected `conservation` as independent rows (c, n), got {given!r}. Give each law once."
        )
    rows = implied_rows(laws)

    def residual(theta: Tree, outer: Tree) -> Tree:
        layout, flat = ravel(theta, problem.batch_ndim)
        rate = layout.flatten(problem.dynamics(last_time(problem, theta), theta, outer["outer_params"]))
        if flat.shape[-1] != laws.shape[-1]:
            raise ValueError(
                f"steady_state: expected `conservation` with {flat.shape[-1]} columns, got {laws.shape[-1]}. Give the laws "
                "in the flat order of the state."
            )
        gap = flat @ laws.to(flat).mT - outer["totals"]
        return layout.unflatten(
            rate.index_copy(-1, torch.tensor(rows, device=flat.device), gap.expand(*rate.shape[:-1], -1))
        )

    return RootFind(residual, problem.batch_ndim)


def implied_rows(laws: Tensor) -> list[int]:
    """One equation for each law that the other equations imply, by elimination with pivoting."""
    rest, rows = laws.detach().double().cpu().clone(), []
    for k in range(len(rest)):
        pivot = int(rest[k].abs().argmax())
        rows.append(pivot)
        rest = rest - torch.outer(rest[:, pivot] / rest[k, pivot] * (torch.arange(len(rest)) != k), rest[k])
    return rows


def consistent_start(problem: InitialValue) -> RootFind:
    """The start of a differential-algebraic system that meets its algebraic equations and keeps ``M theta``.

    The algebraic unknowns move, the differential ones stay. The root depends smoothly on the guess and the parameters.

    Args:
        problem: a system with a singular ``mass``, of index 1.

    Returns:
        `RootFind` with a dict for its outer parameters: ``start``, a guess with the structure of the state, and
        ``outer_params``, those of ``problem``.

    Raises:
        ValueError: for a problem without a mass matrix.

    Example:
        >>> from sciopt import best_response
        >>> from sciopt.inner import Newton
        >>> mass = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
        >>> times = torch.tensor([0.0, 1.0])
        >>> root = InitialValue(lambda t, y, a: torch.stack([-y[0], y[1] ** 2 - a * y[0]]), times, mass=mass)
        >>> guess = torch.tensor([4.0, 1.0])
        >>> phi = {"start": guess, "outer_params": torch.tensor(1.0)}
        >>> best_response(consistent_start(root), phi, init=guess, solver=Newton()).value
        tensor([4., 2.])

    References:
        Hairer, Wanner. "Solving Ordinary Differential Equations II". Springer 1996. Section VI.1.
    """
    if problem.mass is None:
        raise ValueError(
            "consistent_start: expected a problem with a `mass` matrix, got None. Any start is consistent."
        )
    mass: Tensor = problem.mass

    def residual(theta: Tree, outer: Tree) -> Tree:
        layout, flat = ravel(theta, problem.batch_ndim)
        rate = layout.flatten(problem.dynamics(first_time(problem, theta), theta, outer["outer_params"]))
        left = null_spaces(mass)[0].to(flat)
        moved = (flat - layout.flatten(outer["start"])) @ mass.to(flat).mT
        return layout.unflatten(moved + (rate @ left) @ left.mT)

    return RootFind(residual, problem.batch_ndim)


def start_trouble(field: Field, t: Tensor, y: Tensor, norm: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Codes ``(rows,)`` of starts that cannot be integrated: not consistent (INFEASIBLE), or not of index 1 (SINGULAR).

    Args:
        field: the right-hand side; its mass matrix is not None.
        t: first times ``(rows,)``.
        y: starts ``(rows, n)``.
        norm: ``(error, size) -> (rows,)``: the error in units of the tolerances.
    """
    code = torch.full(t.shape, int(Status.CONVERGED), dtype=torch.int64, device=t.device)
    assert field.mass is not None
    left, right = (basis.to(y) for basis in null_spaces(field.mass))
    if not left.shape[-1]:
        return code
    reduced = left.mT @ field.jacobian(t, y) @ right
    algebraic = field(t, y) @ left
    packed, pivots, info = torch.linalg.lu_factor_ex(reduced)
    diagonal = packed.diagonal(dim1=-2, dim2=-1).abs()
    regular = (info == 0) & (diagonal.amin(-1) > RANK * diagonal.amax(-1))
    packed = torch.where(regular[:, None, None], packed, torch.eye(packed.shape[-1]).to(packed))
    shift = torch.linalg.lu_solve(packed, pivots, algebraic.unsqueeze(-1)).squeeze(-1) @ right.mT
    far = norm(shift, y.abs()) > 1
    code = torch.where(far, int(Status.INFEASIBLE), code)
    return torch.where(regular, code, int(Status.SINGULAR))


def null_spaces(mass: Tensor) -> tuple[Tensor, Tensor]:
    """Orthonormal bases ``(n, m)`` of what ``M^T`` and ``M`` map to zero."""
    u, s, v = torch.linalg.svd(plain(mass).double())
    zero = s <= RANK * s.amax()
    return u[:, zero], v[zero].mT


def first_time(problem: InitialValue, theta: Tree) -> Tensor:
    """The first time in the shape in which the right-hand side expects it."""
    return shaped_time(problem, theta, 0)


def last_time(problem: InitialValue, theta: Tree) -> Tensor:
    """The last time in the shape in which the right-hand side expects it."""
    return shaped_time(problem, theta, -1)


def shaped_time(problem: InitialValue, theta: Tree, k: int) -> Tensor:
    """Time k of every problem, ``(*batch, 1, ..., 1)``."""
    layout: Layout = ravel(theta, problem.batch_ndim)[0]
    depths = {len(shape) for shape in layout.shapes}
    ones = (1,) * depths.pop() if len(depths) == 1 and problem.batch_ndim else ()
    time = problem.times[k]
    wide = time.expand(layout.batch_shape) if time.ndim == 0 else time
    return wide.reshape((*layout.batch_shape, *ones))
