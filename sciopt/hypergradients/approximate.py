"""Cheap approximations, each with a known error: one inner step, no inner step, a finite difference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import final

import torch
from torch import Tensor

from sciopt.checks import check_option
from sciopt.hypergradients.abstract import AbstractReattached, Request, run_solver
from sciopt.hypergradients.products import pull_args, push
from sciopt.problem import LeastSquares, Minimize
from sciopt.problem.system import System
from sciopt.solution import Solution

__all__ = ["FiniteDifference", "FirstOrder", "OneStep"]


@final
@dataclass(frozen=True)
class OneStep(AbstractReattached):
    """Differentiate one step ``theta - step_size * F(theta, phi)`` at the solution and nothing before it.

    With F the gradient this is one gradient-descent step (the DARTS approximation); of a `FixedPoint`, with the default
    ``step_size``, one application of the map. Costs one mixed product. The indirect term is that of `Implicit` with
    the inverse Jacobian replaced by ``step_size * I``: relative error ``|I - step_size * A|`` along each eigenvector of A.

    Args:
        step_size: the inner learning rate eta.

    Example:
        >>> from sciopt import FixedPoint, best_response
        >>> from sciopt.inner import Picard
        >>> problem = FixedPoint(lambda theta, phi: 0.1 * theta + phi)
        >>> phi = torch.ones(1, dtype=torch.float64, requires_grad=True)
        >>> init = torch.zeros(1, dtype=torch.float64)
        >>> best_response(problem, phi, init=init, solver=Picard(), hypergradient=OneStep()).value.sum().backward()
        >>> phi.grad  # exact: 1 / 0.9
        tensor([1.], dtype=torch.float64)

    References:
        Chen et al. "Gradient-based Bi-level Optimization for Deep Learning: A Survey", eq. 19-20. Liu, Simonyan, Yang.
        "DARTS: differentiable architecture search". ICLR 2019.
    """

    step_size: float = 1.0

    def __post_init__(self) -> None:
        check_option("OneStep", "step_size", self.step_size, self.step_size > 0, "> 0", "Use the inner learning rate.")

    @property
    def tolerates_budget(self) -> bool:
        return True

    def solve(self, request: Request, x0: Tensor, args: Sequence[Tensor]) -> Solution:
        return run_solver(request, x0, args)

    def vjp(
        self, request: Request, x0: Tensor, x: Tensor, args: Sequence[Tensor], cotangent: Tensor, needs: Sequence[bool]
    ) -> tuple[Tensor | None, ...]:
        scaled = -self.step_size * cotangent
        return (None, *pull_args(lambda *a: request.system.residual(x, a), args, scaled, needs[1:]))

    def jvp(
        self, request: Request, x0: Tensor, x: Tensor, args: Sequence[Tensor], tangents: Sequence[Tensor | None]
    ) -> Tensor:
        return -self.step_size * push(lambda *a: request.system.residual(x, a), args, tangents[1:])


@final
@dataclass(frozen=True)
class FirstOrder(AbstractReattached):
    """Drop the indirect term: theta* is a constant in phi, except that it moves as ``init`` does.

    First-order DARTS (phi enters the outer loss directly) and first-order MAML (phi is the start). Costs nothing.

    Example:
        >>> from sciopt import Minimize, best_response
        >>> from sciopt.inner import GradientDescent
        >>> problem = Minimize(lambda theta, phi: ((theta - 1.0) ** 2).sum())
        >>> phi = torch.zeros(1, dtype=torch.float64, requires_grad=True)
        >>> solver = GradientDescent(step_size=0.1, max_steps=500)
        >>> best_response(problem, phi, init=phi, solver=solver, hypergradient=FirstOrder()).value.sum().backward()
        >>> phi.grad
        tensor([1.], dtype=torch.float64)

    References:
        Finn, Abbeel, Levine. "Model-agnostic meta-learning". ICML 2017, section 5.2. Liu, Simonyan, Yang. "DARTS". ICLR 2019.
    """

    @property
    def tolerates_budget(self) -> bool:
        return True

    def solve(self, request: Request, x0: Tensor, args: Sequence[Tensor]) -> Solution:
        return run_solver(request, x0, args)

    def vjp(
        self, request: Request, x0: Tensor, x: Tensor, args: Sequence[Tensor], cotangent: Tensor, needs: Sequence[bool]
    ) -> tuple[Tensor | None, ...]:
        return (
            cotangent if needs[0] else None,
            *(torch.zeros_like(a) if n else None for a, n in zip(args, needs[1:], strict=True)),
        )

    def jvp(
        self, request: Request, x0: Tensor, x: Tensor, args: Sequence[Tensor], tangents: Sequence[Tensor | None]
    ) -> Tensor:
        return torch.zeros_like(x) if tangents[0] is None else tangents[0]


@final
@dataclass(frozen=True)
class FiniteDifference(AbstractReattached):
    """`OneStep` with its mixed second derivative replaced by a central difference of first derivatives.

        -step_size * [d L_in(theta + eps v)/dphi - d L_in(theta - eps v)/dphi] / (2 eps),   v = dL_out/dtheta

    Two first-order gradients, no second derivative of the inner loss. The error of `OneStep` plus one of order eps^2
    (exactly none for an inner loss quadratic in theta). Reverse mode only, for `Minimize` and `LeastSquares`.

    Args:
        step_size: the inner learning rate eta.
        scale: ``eps = scale / |v|``, per problem of the batch.

    References:
        Chen et al. "Gradient-based Bi-level Optimization for Deep Learning: A Survey", eq. 21.

    Example:
        >>> from sciopt import Minimize, best_response
        >>> from sciopt.inner import LBFGS
        >>> problem = Minimize(lambda theta, phi: 0.5 * ((theta - phi) ** 2).sum())
        >>> phi = torch.ones(1, dtype=torch.float64, requires_grad=True)
        >>> init = torch.zeros(1, dtype=torch.float64)
        >>> method = FiniteDifference(step_size=0.5)
        >>> best_response(problem, phi, init=init, solver=LBFGS(), hypergradient=method).value.sum().backward()
        >>> round(float(phi.grad), 6)
        0.5
    """

    step_size: float = 1.0
    _: KW_ONLY
    scale: float = 1e-2

    def __post_init__(self) -> None:
        check_option(
            "FiniteDifference", "step_size", self.step_size, self.step_size > 0, "> 0", "Use the learning rate."
        )
        check_option("FiniteDifference", "scale", self.scale, self.scale > 0, "> 0", "The usual value is 0.01.")

    @property
    def tolerates_budget(self) -> bool:
        return True

    def solve(self, request: Request, x0: Tensor, args: Sequence[Tensor]) -> Solution:
        return run_solver(request, x0, args)

    def vjp(
        self, request: Request, x0: Tensor, x: Tensor, args: Sequence[Tensor], cotangent: Tensor, needs: Sequence[bool]
    ) -> tuple[Tensor | None, ...]:
        smooth_minimum(request.system)
        norm = torch.linalg.vector_norm(cotangent, dim=-1, keepdim=True)
        eps = self.scale / torch.where(norm > 0, norm, 1.0)
        weight = (self.step_size / (2 * eps)).squeeze(-1)

        def difference(*a: Tensor) -> Tensor:
            gap = request.system.value(x + eps * cotangent, a) - request.system.value(x - eps * cotangent, a)
            return -weight * gap

        rows = torch.ones_like(weight)
        return (None, *pull_args(difference, args, rows, needs[1:]))

    def jvp(
        self, request: Request, x0: Tensor, x: Tensor, args: Sequence[Tensor], tangents: Sequence[Tensor | None]
    ) -> Tensor:
        raise NotImplementedError(
            "FiniteDifference: expected reverse mode, got a forward-mode transform. Use OneStep, its exact form, instead."
        )


def smooth_minimum(system: System) -> None:
    """Refuse problems whose residual is not the gradient of an objective."""
    problem = system.problem
    if not (isinstance(problem, LeastSquares) or (isinstance(problem, Minimize) and problem.smooth)):
        raise TypeError(
            f"FiniteDifference: expected a smooth Minimize or LeastSquares problem, got {type(problem).__name__}. Use OneStep "
            "or Implicit."
        )
