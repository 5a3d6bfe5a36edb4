"""The exactness table: inner problems, each with a reference for theta*(phi) that is independent of the core.

The reference takes Newton steps with dense torch Jacobians from the settled state. k steps from an exact solution have exact
derivatives up to order 2^k - 1, so two of them serve first and second order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sciopt import FixedPoint, Minimize
from sciopt.inner import LBFGS, GradientDescent, Picard
from sciopt.inner.abstract import AbstractSolver
from tests.helpers import randn, with_spectrum


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    name: str
    problem: Any
    init: Tensor
    phi: Tensor
    outer_loss: Callable[[Tensor, Tensor], Tensor]
    residual: Callable[[Tensor, Tensor], Tensor]  # flat, independent of the problem object
    solver: AbstractSolver
    unroller: AbstractSolver  # an iterative solver whose path converges to the same derivative
    formula: Callable[[Tensor], Tensor] | None = None

    def settled(self, phi: Tensor, steps: int = 50) -> Tensor:
        """theta*(phi) by dense Newton from the start, to rounding."""
        x = self.init.reshape(-1)
        for _ in range(steps):
            jacobian = torch.func.jacrev(self.residual)(x, phi)
            x = x - torch.linalg.pinv(jacobian, rtol=1e-10) @ self.residual(x, phi)
        return x

    def reference(self, settled: Tensor) -> Callable[[Tensor], Tensor]:
        """h(phi), differentiable twice around the phi of ``settled``."""

        def h(phi: Tensor) -> Tensor:
            x = settled
            for _ in range(2):
                jacobian = torch.func.jacrev(self.residual)(x, phi)
                modes = self.modes(settled)
                lifted = jacobian if modes is None else jacobian + modes @ modes.mT
                x = x - torch.linalg.solve(lifted, self.residual(x, phi))
            return self.outer_loss(x.reshape(self.init.shape), phi)

        return h

    def modes(self, x: Tensor) -> Tensor | None:
        """Orthonormal null space, where the problem has one."""
        if self.problem.nullspace is None:
            return None
        return torch.linalg.qr(self.problem.nullspace(x.reshape(self.init.shape), self.phi))[0]


def positive_solve(A: Tensor, b: Tensor) -> Tensor:
    """A^-1 b by Cholesky: reverse over forward mode of torch.linalg.solve is silently wrong in torch 2.13."""
    return torch.cholesky_solve(b.unsqueeze(-1), torch.linalg.cholesky(A)).squeeze(-1)


def ridge(g: torch.Generator) -> Case:
    X, y, V, z = randn(30, 6, generator=g), randn(30, generator=g), randn(12, 6, generator=g), randn(12, generator=g)

    def loss(theta: Tensor, phi: Tensor) -> Tensor:
        return 0.5 * ((X @ theta - y) ** 2).mean() + 0.5 * (phi.exp() * theta**2).sum()

    def formula(phi: Tensor) -> Tensor:
        return positive_solve(X.mT @ X / 30 + torch.diag(phi.exp()), X.mT @ y / 30)

    return Case(
        name="ridge",
        problem=Minimize(loss),
        init=torch.zeros(6, dtype=torch.float64),
        phi=0.3 * randn(6, generator=g),
        outer_loss=lambda theta, phi: ((V @ theta - z) ** 2).mean() + 0.1 * phi.square().sum(),
        residual=lambda x, phi: X.mT @ (X @ x - y) / 30 + phi.exp() * x,
        solver=LBFGS(rtol=1e-13, max_steps=300),
        unroller=GradientDescent(step_size=0.25, rtol=1e-14, max_steps=400),
        formula=formula,
    )


def logistic(g: torch.Generator) -> Case:
    X, V = randn(40, 5, generator=g), randn(20, 5, generator=g)
    y = (randn(40, generator=g) + X[:, 0] > 0).double()
    z = (randn(20, generator=g) + V[:, 0] > 0).double()

    def loss(theta: Tensor, phi: Tensor) -> Tensor:
        s = X @ theta
        return (torch.nn.functional.softplus(s) - y * s).mean() + 0.5 * (phi.exp() * theta**2).sum()

    def outer(theta: Tensor, phi: Tensor) -> Tensor:
        s = V @ theta
        return (torch.nn.functional.softplus(s) - z * s).mean()

    return Case(
        name="logistic",
        problem=Minimize(loss),
        init=torch.zeros(5, dtype=torch.float64),
        phi=-1.0 + 0.2 * randn(5, generator=g),
        outer_loss=outer,
        residual=lambda x, phi: X.mT @ (torch.sigmoid(X @ x) - y) / 40 + phi.exp() * x,
        solver=LBFGS(rtol=1e-13, max_steps=300),
        unroller=GradientDescent(step_size=1.0, rtol=1e-14, max_steps=300),
    )


def quadratic(g: torch.Generator, size: int = 52, condition: float = 30.0) -> Case:
    A = with_spectrum(torch.logspace(0, torch.log10(torch.tensor(condition)).item(), size, dtype=torch.float64), g)
    B, M, c = randn(size, 4, generator=g), randn(size, size, generator=g) / size**0.5, randn(size, generator=g)
    return Case(
        name="quadratic",
        problem=Minimize(lambda theta, phi: 0.5 * theta @ (A @ theta) - theta @ (B @ phi.exp())),
        init=torch.zeros(size, dtype=torch.float64),
        phi=0.3 * randn(4, generator=g),
        outer_loss=lambda theta, phi: 0.5 * (M @ theta).square().sum() + c @ theta,
        residual=lambda x, phi: A @ x - B @ phi.exp(),
        solver=LBFGS(rtol=1e-13, max_steps=500),
        unroller=GradientDescent(step_size=2 / (1 + condition), momentum=0.6, rtol=1e-13, max_steps=400),
        formula=lambda phi: positive_solve(A, B @ phi.exp()),
    )


def molecule(g: torch.Generator) -> Case:
    atoms = 6
    x0 = 1.5 * randn(atoms, 3, generator=g)
    i, j = torch.triu_indices(atoms, atoms, 1)

    def lengths(x: Tensor) -> Tensor:
        return (x[..., i, :] - x[..., j, :]).square().sum(-1).sqrt()

    def energy(x: Tensor, phi: Tensor) -> Tensor:
        return 0.5 * (lengths(x) - phi).square().sum()

    def modes(x: Tensor, phi: Tensor) -> Tensor:
        c = x - x.mean(0)
        eye = torch.eye(3, dtype=x.dtype)
        turns = [torch.linalg.cross(eye[k].expand_as(c), c).reshape(-1) for k in range(3)]
        return torch.cat([eye.repeat(atoms, 1), torch.stack(turns, -1)], -1)

    def residual(x: Tensor, phi: Tensor) -> Tensor:
        p = x.reshape(atoms, 3)
        d = p[i] - p[j]
        length = d.square().sum(-1).sqrt()
        force = ((length - phi) / length).unsqueeze(-1) * d
        return torch.zeros_like(p).index_add(0, i, force).index_add(0, j, -force).reshape(-1)

    return Case(
        name="molecule",
        problem=Minimize(energy, nullspace=modes),
        init=x0,
        phi=lengths(x0) + 0.05 * randn(len(i), generator=g),
        outer_loss=lambda x, phi: (lengths(x) ** 3).sum() + 0.1 * phi.square().sum(),
        residual=residual,
        solver=LBFGS(rtol=1e-13, max_steps=500),
        unroller=GradientDescent(step_size=0.2, momentum=0.7, rtol=1e-12, max_steps=400),
    )


def deq(g: torch.Generator) -> Case:
    W, U, w = randn(8, 8, generator=g) * 0.15, randn(8, 4, generator=g), randn(8, generator=g)

    def layer(z: Tensor, phi: Tensor) -> Tensor:
        return torch.tanh(W @ z + U @ phi)

    return Case(
        name="deq",
        problem=FixedPoint(layer),
        init=torch.zeros(8, dtype=torch.float64),
        phi=randn(4, generator=g),
        outer_loss=lambda z, phi: w @ z + (z**2).sum(),
        residual=lambda x, phi: x - torch.tanh(W @ x + U @ phi),
        solver=Picard(rtol=1e-14, max_steps=500),
        unroller=Picard(rtol=1e-14, max_steps=200),
    )


CASES = {"ridge": ridge, "logistic": logistic, "quadratic": quadratic, "molecule": molecule, "deq": deq}
