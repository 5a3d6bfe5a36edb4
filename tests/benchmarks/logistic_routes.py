"""Ways to the hypergradient of the logistic problem: ours, and each peer's with a grid of settings.

A grid maps a setting to a function that returns the hypergradient, inner solve included. Peers get step sizes and momenta
from the known spectrum, and the cheapest setting that reaches the accuracy is searched for each; everything runs on one
thread in float64.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sciopt import Minimize, best_response
from sciopt.hypergradients import Auto, Implicit
from sciopt.inner import LBFGS, NewtonCG, logistic_dual
from sciopt.inner.abstract import AbstractSolver
from sciopt.linsolve import CG
from tests.benchmarks.logistic import Logistic
from tests.benchmarks.table import peer

__all__ = ["HAND_WRITTEN", "OURS", "ROUTES", "TORCH_PEERS"]

Run = Callable[[], Any]
Grid = Iterator[tuple[str, Run]]
INNER_STEPS = (60, 70, 80, 90, 100, 120, 150, 200)
ADJOINT_STEPS = (30, 33, 36, 40)


def momentum(problem: Logistic) -> list[tuple[float, float]]:
    """Step sizes and Nesterov momenta for the spectrum at the solution, and half-way to that at the start (top 1)."""
    low, high = problem.spectrum
    return [(1 / top, (top**0.5 - low**0.5) / (top**0.5 + low**0.5)) for top in (high, high**0.5)]


def ours(problem: Logistic) -> Grid:
    """`best_response` on the loss as a black box."""
    inner = Minimize(problem.inner_loss)

    def run(solver: AbstractSolver, adjoint: CG) -> Tensor:
        phi = problem.phi.clone().requires_grad_()
        solution = best_response(inner, phi, init=problem.start, solver=solver, hypergradient=Implicit(adjoint))
        problem.outer_loss(solution.value).backward()
        assert phi.grad is not None
        return phi.grad

    for rtol in (3e-4, 1e-4, 5e-5, 2e-5):
        for adjoint in (7e-4, 4e-4, 1e-4):
            for solver in (LBFGS(rtol=rtol), LBFGS(rtol=rtol, history=20), NewtonCG(rtol=rtol)):
                history = f", history={solver.history}" if isinstance(solver, LBFGS) else ""
                label = f"{type(solver).__name__}(rtol={rtol:g}{history}), Implicit(CG(rtol={adjoint:g}))"
                yield label, functools.partial(run, solver, CG(rtol=adjoint))


def ours_closed_form(problem: Logistic) -> Grid:
    """The dual Newton formula as a `ClosedForm`, checked against the loss."""
    ones = torch.ones_like(problem.train[:, 0])

    def formula(phi: Tensor) -> Tensor:
        return logistic_dual(problem.train, ones, phi.exp(), ones / len(ones), order=1)

    def run() -> Tensor:
        phi = problem.phi.clone().requires_grad_()
        inner = Minimize(problem.inner_loss, closed_form=formula)
        problem.outer_loss(best_response(inner, phi, init=problem.start, hypergradient=Auto()).value).backward()
        assert phi.grad is not None
        return phi.grad

    yield "logistic_dual", run


def descend(problem: Logistic, steps: int, step_size: float, beta: float) -> Tensor:
    """Nesterov's method by `torch.optim.SGD`."""
    theta = problem.start.requires_grad_()
    optimizer = torch.optim.SGD([theta], lr=step_size, momentum=beta, nesterov=True)
    for _ in range(steps):
        optimizer.zero_grad()
        problem.inner_loss(theta, problem.phi).backward()
        optimizer.step()
    return theta.detach()


def quasi_newton(problem: Logistic, steps: int) -> Tensor:
    """`torch.optim.LBFGS` with unit steps."""
    theta = problem.start.requires_grad_()
    optimizer = torch.optim.LBFGS([theta], max_iter=steps, history_size=20, tolerance_grad=0, tolerance_change=0)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = problem.inner_loss(theta, problem.phi)
        loss.backward()
        return loss

    optimizer.step(closure)  # pyright: ignore[reportArgumentType]
    return theta.detach()


def adjoint_by_hand(problem: Logistic, theta: Tensor, steps: int) -> Tensor:
    """Conjugate gradients on a retained graph: the usual thirty lines."""
    theta = theta.requires_grad_()
    phi = problem.phi.clone().requires_grad_()
    (grad,) = torch.autograd.grad(problem.inner_loss(theta, phi), theta, create_graph=True)
    (residual,) = torch.autograd.grad(problem.outer_loss(theta), theta)
    x, direction, square = torch.zeros_like(residual), residual.clone(), residual @ residual
    for _ in range(steps):
        (image,) = torch.autograd.grad(grad, theta, direction, retain_graph=True)
        alpha = square / (direction @ image)
        x, residual = x + alpha * direction, residual - alpha * image
        fresh = residual @ residual
        direction, square = residual + (fresh / square) * direction, fresh
    return -torch.autograd.grad(grad, phi, x)[0]


def by_hand_sgd(problem: Logistic) -> Grid:
    """Plain torch: Nesterov's method, then conjugate gradients."""
    for step_size, beta in momentum(problem):
        for steps in INNER_STEPS:
            for count in ADJOINT_STEPS:

                def run(a: Any = (steps, step_size, beta), count: int = count) -> Tensor:
                    return adjoint_by_hand(problem, descend(problem, *a), count)

                yield f"T={steps}, step {step_size:.2g}, K={count}", run


def by_hand_lbfgs(problem: Logistic) -> Grid:
    """Plain torch: `torch.optim.LBFGS`, then conjugate gradients."""
    for steps in (35, 40, 45, 50, 60):
        for count in ADJOINT_STEPS:
            yield (
                f"T={steps}, K={count}",
                lambda s=steps, k=count: adjoint_by_hand(problem, quasi_newton(problem, s), k),
            )


def torchopt_implicit(problem: Logistic, solve: Callable[[int], Any], counts: tuple[int, ...]) -> Grid:
    """torchopt's `custom_root` around Nesterov's method by its own functional SGD."""
    torchopt = peer("torchopt")
    from torchopt.diff.implicit import custom_root  # pyright: ignore[reportMissingImports]

    def inner(steps: int, step_size: float, beta: float, theta: Tensor, phi: Tensor) -> Tensor:
        params = (theta.clone().requires_grad_(),)
        optimizer = torchopt.sgd(lr=step_size, momentum=beta, nesterov=True)
        state = optimizer.init(params)
        for _ in range(steps):
            with torch.enable_grad():
                grads = torch.autograd.grad(problem.inner_loss(params[0], phi.detach()), params)
            updates, state = optimizer.update(grads, state, params=params, inplace=True)
            params = torchopt.apply_updates(params, updates, inplace=True)
        return params[0].detach()

    stationary = torch.func.grad(problem.inner_loss)
    for step_size, beta in momentum(problem):
        for steps in INNER_STEPS:
            for count in counts:
                rooted = custom_root(stationary, argnums=1, has_aux=False, solve=solve(count))

                def run(
                    rooted: Any = rooted, steps: int = steps, size: float = step_size, beta: float = beta
                ) -> Tensor:
                    phi = problem.phi.clone().requires_grad_()
                    theta = rooted(lambda t, p: inner(steps, size, beta, t, p))(problem.start, phi)
                    problem.outer_loss(theta).backward()
                    assert phi.grad is not None
                    return phi.grad

                yield f"T={steps}, step {step_size:.2g}, K={count}", run


def torchopt_cg(problem: Logistic) -> Grid:
    """torchopt, adjoint by its conjugate gradients."""
    solve = peer("torchopt").linear_solve.solve_cg
    return torchopt_implicit(problem, lambda count: solve(maxiter=count, atol=0.0), ADJOINT_STEPS)


def torchopt_neumann(problem: Logistic) -> Grid:
    """torchopt, adjoint by its Neumann series with the best step size."""
    solve = peer("torchopt").linear_solve.solve_inv
    alpha = 1.9 / sum(problem.spectrum)
    return torchopt_implicit(problem, lambda count: solve(ns=True, maxiter=count, alpha=alpha), (200, 400))


def higher_unrolled(problem: Logistic) -> Grid:
    """higher: backpropagation through Nesterov's method."""
    higher = peer("higher")

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.theta = torch.nn.Parameter(problem.start)

        def forward(self, phi: Tensor) -> Tensor:
            return problem.inner_loss(self.theta, phi)

    def run(steps: int, step_size: float, beta: float) -> Tensor:
        model, phi = Model(), problem.phi.clone().requires_grad_()
        optimizer = torch.optim.SGD(model.parameters(), lr=step_size, momentum=beta, nesterov=True)
        with higher.innerloop_ctx(model, optimizer, copy_initial_weights=False) as (functional, stepper):
            for _ in range(steps):
                stepper.step(functional(phi))
            return torch.autograd.grad(problem.outer_loss(functional.theta), phi)[0]

    for step_size, beta in momentum(problem):
        for steps in INNER_STEPS:
            yield f"T={steps}, step {step_size:.2g}", functools.partial(run, steps, step_size, beta)


def jax_of(problem: Logistic) -> tuple[Any, Any, Any, Any, Any]:
    """jax, both losses, phi and the start, in float64 on one thread."""
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")
    jax = peer("jax")
    jax.config.update("jax_enable_x64", True)
    train, validation, phi, start = (
        jax.numpy.asarray(t.numpy()) for t in (problem.train, problem.validation, problem.phi, problem.start)
    )

    def inner(theta: Any, phi: Any) -> Any:
        return jax.nn.softplus(-(train @ theta)).mean() + 0.5 * (jax.numpy.exp(phi) * theta * theta).sum()

    def outer(theta: Any) -> Any:
        return jax.nn.softplus(-(validation @ theta)).mean()

    return jax, inner, outer, phi, start


def warm(jitted: Any, phi: Any) -> Run:
    """A jitted function compiled before it is timed."""
    jitted(phi).block_until_ready()
    return lambda: torch.from_numpy(np.array(jitted(phi).block_until_ready()))


def optimistix(problem: Logistic) -> Grid:
    """optimistix with lineax' conjugate gradients, jitted and warm."""
    optx, lx = peer("optimistix"), peer("lineax")
    jax, inner, outer, phi, start = jax_of(problem)
    for tolerance in (3e-5, 1e-5, 1e-4, 3e-6):
        for history in (10, 20):
            for adjoint in (1e-3, 3e-4):
                solver = optx.LBFGS(rtol=tolerance, atol=tolerance, history_length=history)
                implicit = optx.ImplicitAdjoint(lx.CG(rtol=adjoint, atol=0.0))

                def total(phi: Any, solver: Any = solver, implicit: Any = implicit) -> Any:
                    tags = frozenset({lx.positive_semidefinite_tag})
                    solution = optx.minimise(
                        inner, solver, start, args=phi, max_steps=2000, throw=False, tags=tags, adjoint=implicit
                    )
                    return outer(solution.value)

                yield f"LBFGS({tolerance:g}, history {history}), CG({adjoint:g})", warm(jax.jit(jax.grad(total)), phi)


def jaxopt(problem: Logistic) -> Grid:
    """jaxopt's L-BFGS with conjugate gradients, jitted and warm."""
    package = peer("jaxopt")
    jax, inner, outer, phi, start = jax_of(problem)
    for steps in (40, 50, 60, 80):
        for count in (33, 36, 40):
            solve = functools.partial(package.linear_solve.solve_cg, maxiter=count, tol=1e-12)
            solver = package.LBFGS(
                inner, maxiter=steps, tol=0.0, history_size=20, implicit_diff_solve=solve, jit=True, unroll=False
            )
            total = jax.jit(jax.grad(lambda phi, solver=solver: outer(solver.run(start, phi).params)))
            yield f"T={steps}, K={count}", warm(total, phi)


OURS = ("sciopt, closed form", "sciopt, loss as a black box")
HAND_WRITTEN = ("by hand, SGD + CG", "by hand, torch.optim.LBFGS + CG")
TORCH_PEERS = ("torchopt CG", "torchopt Neumann", "higher")
ROUTES: dict[str, Callable[[Logistic], Grid]] = {
    "sciopt, closed form": ours_closed_form,
    "sciopt, loss as a black box": ours,
    "torchopt CG": torchopt_cg,
    "torchopt Neumann": torchopt_neumann,
    "higher": higher_unrolled,
    "by hand, SGD + CG": by_hand_sgd,
    "by hand, torch.optim.LBFGS + CG": by_hand_lbfgs,
    "optimistix": optimistix,
    "jaxopt": jaxopt,
}
