"""Adam, exactly as `torch.optim.Adam` computes it, differentiable through every step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from sciopt.checks import check_option, check_tolerances
from sciopt.inner.abstract import AbstractIterativeSolver
from sciopt.inner.rows import base_state, norm
from sciopt.problem.minimize import LeastSquares, Minimize
from sciopt.problem.system import Oracle

__all__ = ["Adam"]


@final
@dataclass(frozen=True, kw_only=True)
class Adam(AbstractIterativeSolver):
    """Adam with bias correction; the update of `torch.optim.Adam`, unrolled without NaN at zero gradients.

    Use it for noisy or badly scaled losses and for meta-learning that trains with Adam; it does not converge to tight
    tolerances with a fixed step. One gradient evaluation per step (and one at the start), memory of three vectors.

    Args:
        step_size: learning rate, positive.
        betas: decay of the first and second moment, each in [0, 1).
        eps: added to the root of the second moment, positive.
        rtol: tolerance on ``|grad|`` relative to its norm at the start; None: 1e-8 in float64, 1e-4 in float32.
        atol: absolute tolerance on ``|grad|``.
        max_steps: step budget.

    Raises:
        ValueError: for options out of range.

    Example:
        >>> from sciopt import Minimize, best_response
        >>> problem = Minimize(lambda theta, phi: ((theta - phi) ** 2).sum())
        >>> solver = Adam(step_size=0.1, atol=1e-3, max_steps=500)
        >>> best_response(problem, torch.ones(2), init=torch.zeros(2), solver=solver).status.name
        'CONVERGED'

    References:
        Kingma, Ba. "Adam: a method for stochastic optimization". ICLR 2015, algorithm 1.
    """

    solves: ClassVar = (Minimize, LeastSquares)
    looks_after: ClassVar = True
    step_size: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    rtol: float | None = None
    atol: float = 0.0
    max_steps: int = 10_000

    def __post_init__(self) -> None:
        check_tolerances("Adam", self.rtol, self.atol, self.max_steps)
        check_option("Adam", "step_size", self.step_size, self.step_size > 0, "> 0", "Use 1e-3 to start with.")
        check_option("Adam", "eps", self.eps, self.eps > 0, "> 0", "Use 1e-8.")
        ok = len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas)
        check_option("Adam", "betas", self.betas, ok, "to be two numbers in [0, 1)", "Use (0.9, 0.999).")

    def init(self, oracle: Oracle, x: Tensor) -> dict[str, Any]:
        grad = oracle.value_and_grad(x)[1]
        start = norm(grad)
        zeros = torch.zeros_like(grad)
        count = torch.zeros_like(start, dtype=torch.int64)
        return base_state(start, start, grad=grad, first=zeros, second=zeros, count=count)

    def step(self, oracle: Oracle, x: Tensor, state: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        (beta1, beta2), grad = self.betas, state["grad"]
        count = state["count"] + 1
        first = torch.lerp(state["first"], grad, 1 - beta1)
        second = beta2 * state["second"] + (1 - beta2) * grad * grad
        power = count.to(x.dtype).unsqueeze(-1)
        used = second > 0
        root = torch.where(used, torch.where(used, second, 1.0).sqrt(), 0.0)
        denominator = root / (1 - beta2**power).sqrt() + self.eps
        moved = x - self.step_size / (1 - beta1**power) * (first / denominator)
        grad = oracle.value_and_grad(moved)[1]
        size = norm(grad)
        return moved, {
            **state, "grad": grad, "first": first, "second": second, "count": count, "residual_norm": size
        }  # fmt: skip
