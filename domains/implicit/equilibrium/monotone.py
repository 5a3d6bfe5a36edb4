"""Monotone operator equilibrium layers: well posed whatever the parameters are."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, overload

import torch
from torch import Tensor, nn

from sciopt import Solution
from sciopt.checks import check_option
from sciopt.domains.implicit.equilibrium.layer import DEQ, strategies
from sciopt.hypergradients import AbstractHypergradient
from sciopt.inner.abstract import AbstractSolver

__all__ = ["MonotoneDEQ"]


class MonotoneDEQ(nn.Module):
    """``z* = relu(W z* + U x + b)``, ``W = (1 - margin) I - A^T A + B - B^T``: one equilibrium, whatever A, B, U and b are.

    Use it where training must never lose the equilibrium: ``I - W`` is monotone by construction (its symmetric part is at
    least ``margin``), so no spectral norm is watched. Solved by Peaceman-Rachford splitting, which converges linearly from
    every start: one matrix inverse per call, one product per iteration. The implicit gradient uses the splitting's own
    derivative.

    Args:
        inputs: features of x.
        size: features of z.
        margin: strong monotonicity m, > 0; larger is faster and less expressive.
        step_size: alpha of the splitting, > 0; about ``1 / |I - W|`` is best.
        solver: `Picard` is the splitting itself, `Anderson` (default) accelerates it.
        hypergradient: as for `DEQ`.
        throw: as for `DEQ`.
        generator: source of the initial parameters, on the CPU; None: torch's own.
        dtype: of the parameters; None: torch's default.
        device: of the parameters.

    Raises:
        ValueError: for a margin or step size that is not positive.

    Example:
        >>> layer = MonotoneDEQ(3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> x = torch.ones(2, 3, dtype=torch.float64)
        >>> z = layer(x)
        >>> bool(torch.allclose(z, torch.relu(z @ layer.weight().T + layer.inject(x))))
        True

    References:
        Winston, Kolter. "Monotone operator equilibrium networks". NeurIPS 2020, propositions 1 and 2, algorithm 2.
    """

    def __init__(
        self,
        inputs: int,
        size: int,
        *,
        margin: float = 0.1,
        step_size: float = 1.0,
        solver: AbstractSolver | None = None,
        hypergradient: AbstractHypergradient | None = None,
        throw: bool = True,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        check_option("MonotoneDEQ", "margin", margin, margin > 0, "> 0", "0.1 is a good choice.")
        check_option("MonotoneDEQ", "step_size", step_size, step_size > 0, "> 0", "1 is a good choice.")
        self.margin, self.step_size, self.throw = margin, step_size, throw
        self.solver, self.hypergradient = strategies("MonotoneDEQ", solver, hypergradient)

        def draw(scale: float) -> nn.Parameter:
            return nn.Parameter((scale * torch.randn(size, size, generator=generator, dtype=dtype)).to(device))

        self.A, self.B = draw(0.5 / size**0.5), draw(0.5 / size**0.5)
        self.inject = nn.Linear(inputs, size, dtype=dtype, device=device)
        with torch.no_grad():
            weight = torch.randn(size, inputs, generator=generator, dtype=dtype) / inputs**0.5
            self.inject.weight.copy_(weight)
            self.inject.bias.zero_()

    def weight(self) -> Tensor:
        """W, ``(size, size)``."""
        eye = torch.eye(self.A.shape[0], dtype=self.A.dtype, device=self.A.device)
        return (1 - self.margin) * eye - self.A.mT @ self.A + self.B - self.B.mT

    @overload
    def forward(
        self, x: Tensor, *, init: Tensor | None = None, return_solution: Literal[False] = False
    ) -> Tensor: ...  # pragma: no cover

    @overload
    def forward(
        self, x: Tensor, *, init: Tensor | None = None, return_solution: Literal[True]
    ) -> tuple[Tensor, Solution]: ...  # pragma: no cover

    def forward(
        self, x: Tensor, *, init: Tensor | None = None, return_solution: bool = False
    ) -> Tensor | tuple[Tensor, Solution]:
        """The equilibrium of every sample.

        Args:
            x: ``(batch, inputs)``.
            init: z to start from ``(batch, size)``; None: zeros.
            return_solution: also return the `Solution` (its residual is that of the splitting's variable).

        Returns:
            ``z`` ``(batch, size)``, or ``(z, solution)``.

        Raises:
            SolveError: with ``throw``, when a sample does not converge within the solver's budget.
        """
        W, bias, alpha = self.weight(), self.inject(x), self.step_size
        eye = torch.eye(W.shape[0], dtype=W.dtype, device=W.device)
        resolvent = torch.linalg.inv(eye + alpha * (eye - W)).mT

        def splitting(u: Tensor, bias: Tensor) -> Tensor:
            reflected = 2 * torch.relu(u) - u
            return 2 * ((reflected + alpha * bias) @ resolvent) - reflected

        start = torch.zeros_like(bias) if init is None else init + alpha * (init @ W.mT + bias - init)
        layer = DEQ(splitting, solver=self.solver, hypergradient=self.hypergradient, throw=self.throw)
        if not return_solution:
            return torch.relu(layer(bias, init=start.detach()))
        u, solution = layer(bias, init=start.detach(), return_solution=True)
        z = torch.relu(u)
        return z, replace(solution, value=z)
