"""Random quadratic inner problems with exact hypergradients, for the statistics of the error bound."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from sciopt import BilevelProblem, Minimize, hypergradient
from sciopt.bilevel import Hypergradient
from sciopt.hypergradients import Implicit
from sciopt.inner import LBFGS
from sciopt.linsolve import CG

__all__ = ["Quadratic", "Trial", "random_quadratics", "trials"]


@final
@dataclass(frozen=True)
class Quadratic:
    """Inner ``1/2 theta' (A + w diag(exp(phi))) theta - (c + (1 - w) phi)' theta``; outer: a smooth loss of both levels.

    Args:
        matrix: A, symmetric positive definite ``(n, n)``.
        offset: c ``(n,)``.
        target: of the outer loss ``(n,)``.
        phi: where the hypergradient is taken ``(n,)``.
        weight: w; 0: phi shifts the minimum, above 0: phi bends the bowl too.
        quartic: weight of the non-quadratic part of the outer loss.
    """

    matrix: Tensor
    offset: Tensor
    target: Tensor
    phi: Tensor
    weight: float
    quartic: float

    def hessian(self, phi: Tensor) -> Tensor:
        """Hessian of the inner loss."""
        return self.matrix + self.weight * torch.diag(phi.exp())

    def inner_loss(self, theta: Tensor, phi: Tensor) -> Tensor:
        bowl = 0.5 * theta @ (self.matrix @ theta) + 0.5 * self.weight * (phi.exp() * theta**2).sum()
        return bowl - (self.offset + (1 - self.weight) * phi) @ theta

    def outer_loss(self, theta: Tensor, phi: Tensor) -> Tensor:
        miss = theta - self.target
        return 0.5 * (miss**2).sum() + self.quartic * (torch.cosh(miss.tanh()) - 1).sum() + 0.05 * (phi**2).sum()

    def exact(self) -> Tensor:
        """The hypergradient by dense solves."""
        phi = self.phi.clone().requires_grad_()
        theta = torch.linalg.solve(self.hessian(phi), self.offset + (1 - self.weight) * phi)
        (grad,) = torch.autograd.grad(self.outer_loss(theta, phi), phi)
        return grad


def random_quadratics(count: int, sizes: tuple[int, int], seed: int) -> Iterator[Quadratic]:
    """Sizes and condition numbers (1 to 1e4) drawn evenly on a log scale."""
    generator = torch.Generator().manual_seed(seed)

    def rand() -> float:
        return float(torch.rand((), generator=generator))

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    for _ in range(count):
        n = round(sizes[0] * (sizes[1] / sizes[0]) ** rand())
        exponents = torch.rand(n, generator=generator, dtype=torch.float64)
        exponents[0], exponents[-1] = 0.0, 1.0
        basis = torch.linalg.qr(randn(n, n))[0]
        matrix = (basis * 10 ** (-4 * rand() * exponents)) @ basis.T
        weight = 0.0 if rand() < 0.5 else 0.01
        yield Quadratic(
            0.5 * (matrix + matrix.T), randn(n), randn(n), 0.5 * randn(n), weight, 0.0 if rand() < 0.5 else 1.0
        )


@final
@dataclass(frozen=True)
class Trial:
    """One hypergradient with its bound and its true error."""

    result: Hypergradient
    error: float

    @property
    def tightness(self) -> float:
        """Bound over true error; at least 1 for a bound that holds."""
        return self.result.error_bound / self.error if self.error > 0 else 1.0


def trials(count: int, sizes: tuple[int, int] = (5, 200), seed: int = 0) -> list[Trial]:
    """Hypergradients with inner tolerances from 1e-2 to 1e-10; every third with an adjoint as loose."""
    generator = torch.Generator().manual_seed(seed + 1)
    out = []
    for i, case in enumerate(random_quadratics(count, sizes, seed)):
        inner, adjoint = (10 ** (-2 - 8 * float(torch.rand((), generator=generator))) for _ in range(2))
        method = Implicit(CG(rtol=adjoint)) if i % 3 == 0 else Implicit()
        result = hypergradient(
            BilevelProblem(inner=Minimize(case.inner_loss), outer_loss=case.outer_loss),
            case.phi,
            init=torch.zeros_like(case.phi),
            solver=LBFGS(rtol=inner),
            hypergradient=method,
        )
        out.append(Trial(result, float((result.grad - case.exact()).norm())))
    return out
