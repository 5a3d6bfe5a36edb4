"""Quadratic programs as a layer: the solution and the multipliers, differentiable in every matrix."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from sciopt import best_response
from sciopt.checks import check_tree
from sciopt.hypergradients import Implicit
from sciopt.hypergradients.abstract import AbstractHypergradient
from sciopt.inner import InteriorPoint
from sciopt.linsolve import LU
from sciopt.problem import Program, QuadraticProgram
from sciopt.solution import Solution
from sciopt.transforms import under_transform

__all__ = ["DegenerateWarning", "quadratic_program"]

STRICT = 1e-5  # a multiplier and its slack both below this part of their largest: no clear active set


class DegenerateWarning(UserWarning):
    """A quadratic program whose solution has a kink at these data: its gradient is one of several one-sided ones."""


def quadratic_program(
    Q: Tensor,
    p: Tensor,
    G: Tensor | None = None,
    h: Tensor | None = None,
    A: Tensor | None = None,
    b: Tensor | None = None,
    *,
    solver: InteriorPoint | None = None,
    hypergradient: AbstractHypergradient | None = None,
    throw: bool = True,
) -> Solution:
    """``argmin_x 1/2 x'Qx + p'x`` subject to ``G x <= h`` and ``A x = b``, for a batch of programs at once.

    Use it as the last layer of a network that must obey constraints, for control, portfolios and projections, up to a
    thousand unknowns. Costs about ten batched Cholesky factorisations, and one LU of the optimality conditions for any
    number of gradients. Infeasible, unbounded and non-convex programs are a status of their row.

    Args:
        Q: ``(*batch, n, n)``, float32 or float64, of which the symmetric part counts; positive semi-definite along A's
            null space.
        p: ``(*batch, n)``; its shape is that of the batch, to which the others broadcast.
        G: inequalities ``(*batch, q, n)``, given together with h; None: none.
        h: their bounds ``(*batch, q)``.
        A: equalities ``(*batch, m, n)``, given together with b; None: none. Rows that repeat others do no harm to the value,
            but their multipliers are not unique and a derivative fails as SINGULAR: leave them out.
        b: their values ``(*batch, m)``.
        solver: None: ``InteriorPoint()``.
        hypergradient: None: ``Implicit(LU())``.
        throw: raise `SolveError` when a program fails, else return the `Solution` with one status per row.

    Returns:
        `Solution` whose ``value`` ``(*batch, n)`` and ``aux["equality_multipliers"]``, ``aux["inequality_multipliers"]`` are
        differentiable in all matrices, to any order.

    Raises:
        ValueError: for shapes that do not fit, or one of a pair G, h or A, b without the other.
        SolveError: with ``throw``, when a program has no solution.

    Example:
        >>> p = torch.tensor([1.0, -2.0], dtype=torch.float64, requires_grad=True)
        >>> eye = torch.eye(2, dtype=torch.float64)
        >>> x = quadratic_program(eye, p, G=-eye, h=torch.zeros(2, dtype=torch.float64)).value
        >>> x.sum().backward()
        >>> x.detach().abs().round(decimals=6), p.grad.abs()
        (tensor([0., 2.], dtype=torch.float64), tensor([0., 1.], dtype=torch.float64))

    References:
        Amos, Kolter. "OptNet: Differentiable optimization as a layer in neural networks". ICML 2017.
    """
    matrices = {"Q": Q, "p": p, "G": G, "h": h, "A": A, "b": b}
    for pair in (("G", "h"), ("A", "b")):
        if (matrices[pair[0]] is None) != (matrices[pair[1]] is None):
            raise ValueError(
                f"quadratic_program: expected `{pair[0]}` and `{pair[1]}` together, got one without the other. Pass both, or "
                "neither."
            )
    given = {name: matrix for name, matrix in matrices.items() if matrix is not None}
    check_tree("quadratic_program", "matrices", given)
    if p.ndim < 1:
        raise ValueError("quadratic_program: expected `p` of shape (*batch, n), got a number. Give it one dimension.")
    problem = QuadraticProgram(lambda outer: Program(**outer), batch_ndim=p.ndim - 1)
    solution = best_response(
        problem,
        given,
        init=torch.zeros_like(p).detach(),
        solver=InteriorPoint() if solver is None else solver,
        hypergradient=Implicit(LU()) if hypergradient is None else hypergradient,
        throw=throw,
    )
    if G is not None and h is not None and solution.value.requires_grad and not under_transform():
        warn_of_kinks(solution, given)
    return solution


@torch.no_grad()
def warn_of_kinks(solution: Solution, given: dict[str, Tensor]) -> None:
    """Warn where a multiplier and its slack both vanish: there the solution has no derivative."""
    multipliers = solution.aux["inequality_multipliers"]
    G = given["G"]
    slacks = given["h"] - (G @ solution.value.unsqueeze(-1)).squeeze(-1)
    if not multipliers.shape[-1]:
        return
    force, stiffness = given["p"].abs().amax(-1, keepdim=True), given["Q"].abs().amax((-2, -1)).unsqueeze(-1)
    reach = force * G.abs().amax((-2, -1)).unsqueeze(-1) / torch.where(stiffness > 0, stiffness, torch.inf)
    sizes = (
        torch.maximum(multipliers.amax(-1, keepdim=True), force),
        torch.maximum(slacks.amax(-1, keepdim=True), reach),
    )
    weak = (multipliers < STRICT * sizes[0]) & (slacks < STRICT * sizes[1])
    rows = weak.any(-1) & solution.converged
    if bool(rows.any()):
        named = torch.nonzero(rows.reshape(-1)).reshape(-1).tolist()
        warnings.warn(
            f"quadratic_program: expected strict complementarity, got a multiplier and a slack that both vanish in "
            f"{len(named)} of {rows.numel()} programs (rows {', '.join(map(str, named[:8]))}). The solution has a kink there: "
            "its gradient is one-sided. Drop redundant constraints, or smooth the loss.",
            DegenerateWarning,
            stacklevel=3,
        )
