"""The Hypergradient noun: how theta*(phi) gets its derivative.

Two families. *Traced* methods (`Unrolled`, `ClosedForm`) let autograd record the computation of theta*. *Reattached* methods
(`Implicit`, `OneStep`, ...) solve without recording and state the two products with d theta*/d phi; one autograd function
carries them through reverse mode, forward mode, vmap and their compositions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sciopt.hypergradients.precision import full_precision
from sciopt.inner.abstract import AbstractSolver
from sciopt.linsolve.abstract import AbstractLinearSolver
from sciopt.problem import InitialValue, Recurrence
from sciopt.problem.base import AbstractProblem
from sciopt.problem.captures import mark_derived
from sciopt.problem.system import Oracle, System
from sciopt.solution import Solution, SolveError, Status
from sciopt.transforms import carries_derivative, forward_levels, under_transform

__all__ = ["AbstractHypergradient", "AbstractReattached", "Record", "Request"]


@dataclass
class Record:
    """What happened during one response and its differentiation; filled as the passes run.

    ``truncated`` says beforehand that spent budgets are on purpose; the adjoint solves, in their order, then start from
    ``adjoint_starts`` where there are such, and leave their solutions in ``adjoints``.
    """

    request: Request | None = None
    args: tuple[Tensor, ...] = ()
    inner: Solution | None = None
    adjoint: Solution | None = None
    linear_solver: AbstractLinearSolver | None = None
    notes: list[str] = field(default_factory=list)
    truncated: bool = False
    adjoint_starts: Sequence[Tensor] = ()
    adjoints: list[Tensor] = field(default_factory=list)

    def adjoint_start(self, rhs: Tensor) -> Tensor | None:
        """Where the next adjoint solve starts."""
        place = len(self.adjoints)
        if place >= len(self.adjoint_starts) or self.adjoint_starts[place].shape != rhs.shape:
            return None
        return self.adjoint_starts[place]


@dataclass(frozen=True, eq=False)
class Request:
    """One call of `best_response`: the flat problem, its solver, and where to note what happens."""

    system: System
    solver: AbstractSolver | None  # None for problems that need none (Recurrence)
    throw: bool
    record: Record

    def raise_if_failed(self, what: str, solution: Solution, *, tolerate_budget: bool = False) -> None:
        """Raise `SolveError` for a failed solve when the caller asked for it."""
        code = solution.status_code
        bad = code != int(Status.CONVERGED)
        if tolerate_budget or self.record.truncated:
            bad = bad & (code != int(Status.MAX_STEPS))
        if self.throw and bool(bad.any()):
            raise SolveError(what, solution)


class AbstractHypergradient(ABC):
    """How theta*(phi) is differentiated. Concrete methods are frozen dataclasses of configuration."""

    @abstractmethod
    def respond(self, request: Request, x0: Tensor, args: Sequence[Tensor]) -> Solution:
        """Flat solution from ``x0`` ``(*batch, n)``, its ``value`` attached to ``args`` (and ``x0`` where it matters)."""

    @property
    @abstractmethod
    def needs_captures(self) -> bool:
        """Whether captured tensors must be lifted into arguments (autograd sees them by itself when tracing)."""


class AbstractReattached(AbstractHypergradient):
    """A method given by its products with the Jacobian of (x0, args) -> theta*."""

    @property
    def needs_captures(self) -> bool:
        return True

    @property
    @abstractmethod
    def tolerates_budget(self) -> bool:
        """Whether an inner run that spent its budget is what the method is made for."""

    @abstractmethod
    def solve(self, request: Request, x0: Tensor, args: Sequence[Tensor]) -> Solution:
        """The inner solve, on plain tensors."""

    @abstractmethod
    def vjp(
        self, request: Request, x0: Tensor, x: Tensor, args: Sequence[Tensor], cotangent: Tensor, needs: Sequence[bool]
    ) -> tuple[Tensor | None, ...]:
        """Cotangents of ``(x0, *args)``; differentiable. ``needs`` tells which are wanted."""

    @abstractmethod
    def jvp(
        self,
        request: Request,
        x0: Tensor,
        x: Tensor,
        args: Sequence[Tensor],
        tangents: Sequence[Tensor | None],
    ) -> Tensor:
        """Tangent of theta* for tangents of ``(x0, *args)`` (None: zero); differentiable."""

    def respond(self, request: Request, x0: Tensor, args: Sequence[Tensor]) -> Solution:
        if not under_transform() and not any(carries_derivative(t) for t in (x0, *args)):
            return solve_plain(self, request, x0, args)
        refuse_forward_over_forward()
        # An alias lets an enclosing recorder or substitution see the arguments, which Function.apply hides.
        x, code, norm, steps = Response.apply(self, request, x0.view_as(x0), *(a.view_as(a) for a in args))
        mark_derived((x, code, norm, steps))
        inner = request.record.inner
        plain = inner if inner is not None and not under_transform() else None
        return Solution(
            value=x,
            status_code=code,
            residual_norm=norm,
            num_steps=steps,
            state=plain.state if plain else None,
            aux=plain.aux if plain else {},
        )


def run_solver(request: Request, x0: Tensor, args: Sequence[Tensor]) -> Solution:
    """The inner solve by the request's solver, for methods that start from a residual."""
    if isinstance(request.system.problem, (Recurrence, InitialValue)):
        request.system.problem.optimality(None, None)  # raises: there is no equation to solve
    assert request.solver is not None
    return request.solver.solve(Oracle(request.system, args), x0)


def solve_plain(method: AbstractReattached, request: Request, x0: Tensor, args: Sequence[Tensor]) -> Solution:
    """Run the inner solve on detached tensors, note it, and raise if it failed and the caller wants that."""
    solution = method.solve(request, x0.detach(), [a.detach() for a in args])
    request.record.inner = solution
    request.raise_if_failed(type(request.solver).__name__, solution, tolerate_budget=method.tolerates_budget)
    return solution


def ignored(problem: AbstractProblem) -> ValueError:
    """What to raise when theta* does not depend on anything that asks for a derivative."""
    return ValueError(
        f"{type(problem).__name__}: expected an inner problem that depends on `outer_params`, got one that ignores them: its "
        "hypergradient is zero. Use `outer_params` inside the inner function, or differentiate the outer loss directly."
    )


def refuse_forward_over_forward() -> None:
    """torch silently drops the second derivative of a custom function under jvp of jvp: refuse it."""
    if forward_levels() > 1:
        raise NotImplementedError(
            "best_response: expected at most one forward-mode transform (jvp, jacfwd) around a solve, got nested ones, for "
            "which torch silently drops the second derivative. Use jacrev or grad for one of the two levels."
        )


class Response(torch.autograd.Function):
    """(x0, args) -> theta*, with the derivative that an `AbstractReattached` method states."""

    @staticmethod
    def forward(method: AbstractReattached, request: Request, x0: Tensor, *args: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            solution = solve_plain(method, request, x0, args)
        value = solution.value
        if any(value is t for t in (x0, *args)) or value._is_view():
            value = value.clone()
        return value, solution.status_code.clone(), solution.residual_norm.clone(), solution.num_steps.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        method, request, x0, *args = inputs
        x, code, norm, steps = output
        ctx.method, ctx.request = method, request
        ctx.mark_non_differentiable(code, norm, steps)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, x0, *args)
        ctx.save_for_forward(x, x0, *args)

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad: Tensor | None, *_: Any
    ) -> tuple[Any, ...]:
        x, x0, *args = ctx.saved_tensors
        if grad is None:
            return (None,) * (3 + len(args))
        with full_precision(x):
            return (None, None, *ctx.method.vjp(ctx.request, x0, x, args, grad, ctx.needs_input_grad[2:]))

    @staticmethod
    def jvp(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, _method: Any, _request: Any, *tangents: Tensor | None
    ) -> tuple[Any, ...]:
        x, x0, *args = ctx.saved_tensors
        with full_precision(x):
            return ctx.method.jvp(ctx.request, x0, x, args, tangents), None, None, None

    @staticmethod
    def vmap(  # pyright: ignore[reportIncompatibleMethodOverride]
        info: Any, in_dims: tuple[Any, ...], method: Any, request: Request, x0: Tensor, *args: Tensor
    ) -> Any:
        lifted = lift(request, in_dims[3:], info.batch_size)
        out = Response.apply(method, lifted, to_front(x0, in_dims[2], info.batch_size), *args)
        problem = request.system.problem
        steps_first = isinstance(problem, InitialValue) or (isinstance(problem, Recurrence) and problem.trajectory)
        return out, (int(steps_first), 0, 0, 0)


def lift(request: Request, in_dims: Sequence[int | None], size: int) -> Request:
    """The request whose system has one more leading batch dimension."""
    return Request(request.system.vmapped(in_dims, size), request.solver, request.throw, request.record)


def to_front(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    """Move a vmapped dimension to the front, or expand an unmapped tensor."""
    return tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
