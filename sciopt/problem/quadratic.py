"""Convex quadratic programs, stated by their matrices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from sciopt.linsolve import Tag
from sciopt.problem.base import AbstractProblem, Tree

__all__ = ["Program", "QuadraticProgram"]


class Program(NamedTuple):
    """The data of ``min 1/2 x'Qx + p'x`` subject to ``G x <= h`` and ``A x = b``; None for what is absent.

    Example:
        >>> Program(Q=torch.eye(2), p=torch.ones(2)).filled(torch.zeros(2)).G.shape
        torch.Size([0, 2])
    """

    Q: Tensor  # (*batch, n, n), of which the symmetric part counts
    p: Tensor  # (*batch, n)
    G: Tensor | None = None  # (*batch, q, n)
    h: Tensor | None = None  # (*batch, q)
    A: Tensor | None = None  # (*batch, m, n)
    b: Tensor | None = None  # (*batch, m)

    def filled(self, like: Tensor) -> Filled:
        """The same with empty blocks for None and the batch shape of ``like`` ``(*batch, n)``; Q made symmetric."""
        batch, n = tuple(like.shape[:-1]), like.shape[-1]

        def block(name: str, shape: tuple[int, ...]) -> Tensor:
            value = getattr(self, name)
            if value is None:
                return like.new_zeros(*batch, *shape)
            own = value.shape[-len(shape) :] == shape and value.ndim <= like.ndim - 1 + len(shape)
            if not own or any(
                d not in (1, e) for d, e in zip(value.shape[: -len(shape)][::-1], batch[::-1], strict=False)
            ):
                wanted = f"(*batch, {', '.join(map(str, shape))}) with *batch = {batch}"
                raise ValueError(
                    f"QuadraticProgram: expected `{name}` of shape {wanted}, got {tuple(value.shape)}. Give G with h, A with "
                    "b, one row per constraint, one column per unknown."
                )
            return value.expand(*batch, *shape)

        q, m = (0 if matrix is None else matrix.shape[-2] for matrix in (self.G, self.A))
        Q = block("Q", (n, n))
        symmetric = 0.5 * (Q + Q.mT)
        blocks = block("G", (q, n)), block("h", (q,)), block("A", (m, n)), block("b", (m,))
        return Filled(symmetric, block("p", (n,)), *blocks)


class Filled(NamedTuple):
    """A `Program` with no block missing."""

    Q: Tensor
    p: Tensor
    G: Tensor
    h: Tensor
    A: Tensor
    b: Tensor


@final
@dataclass(frozen=True)
class QuadraticProgram(AbstractProblem):
    """``min 1/2 x'Qx + p'x`` subject to ``G x <= h`` and ``A x = b``, Q positive semi-definite along the equalities.

    Use it instead of `Constrained` where the loss is quadratic and the constraints are affine: matrices are given, not
    found by differentiation, and the Jacobian of the optimality conditions is symmetric. The unknown holds x and the
    multipliers y of the equalities and z of the inequalities; with the active set ``a = (z >= h - G x)`` the residual is

        [ Q x + p + A'y + G'(a z),  A x - b,  G x - h where active, -z elsewhere ]

    The solution's ``value`` is x; multipliers stand in ``aux["equality_multipliers"]`` and
    ``aux["inequality_multipliers"]``. The implicit hypergradient is that of the active set, one-sided where a multiplier and
    its slack both vanish.

    Args:
        program: ``outer_params -> Program``.
        batch_ndim: leading dimensions that number independent programs.

    Raises:
        ValueError: for matrices whose shapes do not fit.

    Example:
        >>> from sciopt import best_response
        >>> problem = QuadraticProgram(lambda phi: Program(Q=torch.eye(2).to(phi), p=-phi, G=torch.eye(2).to(phi), h=0 * phi))
        >>> phi = torch.tensor([-1.0, 2.0], dtype=torch.float64)
        >>> best_response(problem, phi, init=torch.zeros_like(phi)).value.round(decimals=6).abs()
        tensor([1., 0.], dtype=torch.float64)

    References:
        Amos, Kolter. "OptNet: Differentiable optimization as a layer in neural networks". ICML 2017, section 3.
    """

    program: Callable[[Tree], Program]
    batch_ndim: int = 0
    nullspace: Callable[[Tree, Tree], Tensor] | None = None

    def data(self, inner_params: dict[str, Tensor], outer_params: Tree) -> Filled:
        """The program at these outer parameters, with no block missing."""
        return self.program(outer_params).filled(inner_params["primal"])

    def start(self, init: Tree, outer_params: Tree) -> dict[str, Tensor]:
        """The start with zero multipliers."""
        if not isinstance(init, Tensor) or init.ndim != self.batch_ndim + 1:
            got = tuple(init.shape) if isinstance(init, Tensor) else type(init).__name__
            raise ValueError(
                f"QuadraticProgram: expected `init` of shape (*batch, n) with {self.batch_ndim} batch dimensions, got {got}. "
                "Flatten the unknowns of each program into one dimension."
            )
        data = self.program(outer_params).filled(init)
        return {
            "primal": init,
            "equality": torch.zeros_like(data.b).detach(),
            "inequality": torch.zeros_like(data.h).detach(),
        }

    def finish(self, inner_params: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tree]]:
        rest = {f"{k}_multipliers": v for k, v in inner_params.items() if k != "primal"}
        return inner_params["primal"], rest

    def optimality(self, inner_params: dict[str, Tensor], outer_params: Tree) -> dict[str, Any]:
        data = self.data(inner_params, outer_params)
        x, y, z = (inner_params[k] for k in ("primal", "equality", "inequality"))
        excess = product(data.G, x) - data.h
        active = (z >= -excess).detach()
        forces = product(data.A.mT, y) + product(data.G.mT, torch.where(active, z, 0.0))
        return {
            "primal": product(data.Q, x) + data.p + forces,
            "equality": product(data.A, x) - data.b,
            "inequality": torch.where(active, excess, -z),
        }

    def jacobian(self, inner_params: dict[str, Tensor], outer_params: Tree) -> Tensor:
        """The symmetric Jacobian of `optimality`, ``(*batch, n + q + m, n + q + m)``, in the flat order of the leaves.

        Dict leaves are ordered as they were inserted: x, y, z.
        """
        data = self.data(inner_params, outer_params)
        active = inner_params["inequality"] >= data.h - product(data.G, inner_params["primal"])
        G = torch.where(active.unsqueeze(-1), data.G, 0.0)
        m, q = data.A.shape[-2], data.G.shape[-2]
        corner = data.Q.new_zeros(*data.Q.shape[:-2], m, m + q)
        lower = torch.cat([data.Q.new_zeros(*data.Q.shape[:-2], q, m), torch.diag_embed((~active).to(G) * -1.0)], -1)
        left = torch.cat([data.Q, data.A, G], -2)
        right = torch.cat([torch.cat([data.A.mT, G.mT], -1), corner, lower], -2)
        return torch.cat([left, right], -1)

    def objective(self, inner_params: Tree, outer_params: Tree) -> Tensor:
        x = inner_params["primal"] if isinstance(inner_params, dict) else inner_params
        data = self.program(outer_params).filled(x)
        return (x * (0.5 * product(data.Q, x) + data.p)).sum(-1)

    @property
    def jacobian_tags(self) -> frozenset[Tag]:
        return frozenset({Tag.SYMMETRIC})


def product(matrix: Tensor, vector: Tensor) -> Tensor:
    """Matrix times vector, batched."""
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)
