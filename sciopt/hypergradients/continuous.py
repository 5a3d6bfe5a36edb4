"""Continuous adjoints: the adjoint equation of the exact solution, solved numerically; approximations of the derivative."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor

from sciopt.hypergradients.abstract import AbstractHypergradient, AbstractReattached, Request, lift, to_front
from sciopt.hypergradients.adjoint import HypergradientWarning
from sciopt.problem import InitialValue
from sciopt.problem.system import System
from sciopt.solution import Solution, SolveError, Status
from sciopt.steppers.field import Field
from sciopt.transforms import is_wrapped

__all__ = ["AbstractContinuousAdjoint", "Pulled", "Trial", "bound", "run_continuous"]


class AbstractContinuousAdjoint(AbstractHypergradient):
    """A first derivative of an `InitialValue` by solving its adjoint equation backwards in time.

    It converges to the derivative as the tolerances of both solves go to zero, and is not the derivative of what was
    computed: `Unrolled` is. Reverse mode, first order; `torch.func.grad` and vmap of it included.

    Concrete ones take ``measure``: whether each backward pass also computes the derivative of the steps that were taken and
    notes the relative difference (in `sciopt.hypergradient`'s notes).
    """

    measure: bool

    @property
    def needs_captures(self) -> bool:
        return True

    @abstractmethod
    def begin(self, request: Request, x0: Tensor, args: Sequence[Tensor]) -> tuple[Solution, Any]:
        """Solve forward on plain tensors; the solution and what `pull` wants to know of the run."""

    @abstractmethod
    def pull(self, trial: Trial, memory: Any, cotangent: Tensor) -> list[Tensor]:
        """Cotangents of ``(x0, *trial.inputs)``, of plain tensors."""

    @abstractmethod
    def exact(self, trial: Trial, memory: Any, cotangent: Tensor) -> list[Tensor]:
        """The same, of the steps that were taken."""


@final
@dataclass(frozen=True, eq=False)
class Trial:
    """One backward pass: the field bound to tensors that record, and which of them are wanted.

    Args:
        request: the call.
        field: bound to ``args``.
        args: outer leaves and captured tensors.
        wanted: numbers of the arguments whose cotangents are wanted.
        inputs: the tensors that stand for them in ``field``.
        x0: start ``(*batch, n)``.
        value: the solution's planes ``(k, *batch, n)``.
        good: ``(rows,)``: rows whose solve succeeded.
    """

    request: Request
    field: Field
    args: Sequence[Tensor]
    wanted: list[int]
    inputs: list[Tensor]
    x0: Tensor
    value: Tensor
    good: Tensor

    def totals(self) -> list[Tensor]:
        """Zeros like the inputs."""
        return [torch.zeros_like(i) for i in self.inputs]


def bound(system: System, args: Sequence[Tensor], wanted: Sequence[int]) -> tuple[Field, list[Tensor]]:
    """A field for recording, and the tensors that stand for the wanted arguments in it."""
    leaves = [a.detach().requires_grad_(i in wanted) for i, a in enumerate(args)]
    if any(is_wrapped(c) for c in system.captured) or system.lanes:
        return Field(system, leaves), [leaves[i] for i in wanted]
    live = [*leaves[: system.num_outer], *system.captured]  # captured tensors stand for themselves
    return Field(system, live, lean=True), [live[i] for i in wanted]


def run_continuous(method: AbstractContinuousAdjoint, request: Request, x0: Tensor, args: Sequence[Tensor]) -> Solution:
    """One response."""
    problem, name = request.system.problem, type(method).__name__
    if not isinstance(problem, InitialValue):
        raise TypeError(
            f"{name}: expected an InitialValue, got {type(problem).__name__}. Use Implicit() or Unrolled() for this problem."
        )
    problem.check(request.system.layout.batch_shape, request.system.layout.size)
    for wrong, what in ((problem.event is not None, "event"), (problem.mass is not None, "mass")):
        if wrong:
            raise TypeError(f"{name}: expected an InitialValue without `{what}`, got one with it. Use Unrolled().")
    request.record.notes.append(f"{name}: the continuous adjoint, an approximation of the derivative of the steps")
    return Run(method).respond(request, x0, args)


@final
@dataclass(frozen=True)
class Run(AbstractReattached):
    """One response by a continuous adjoint, with what its forward solve left."""

    method: AbstractContinuousAdjoint
    kept: list[tuple[Request, Solution, Any]] = field(default_factory=list)

    @property
    def tolerates_budget(self) -> bool:
        return False

    def solve(self, request: Request, x0: Tensor, args: Sequence[Tensor]) -> Solution:
        solution, memory = self.method.begin(request, x0, args)
        self.kept[:] = [(request, solution, memory)]
        return solution

    def vjp(
        self, request: Request, x0: Tensor, x: Tensor, args: Sequence[Tensor], cotangent: Tensor, needs: Sequence[bool]
    ) -> tuple[Tensor | None, ...]:
        wanted = [i for i, need in enumerate(needs[1:]) if need]
        start, *found = Pulled.apply(self, request, tuple(wanted), x0, cotangent, *args)
        out: list[Tensor | None] = [None] * len(needs)
        out[0] = start
        for i, value in zip(wanted, found, strict=True):
            out[1 + i] = value
        return tuple(out)

    def jvp(
        self, request: Request, x0: Tensor, x: Tensor, args: Sequence[Tensor], tangents: Sequence[Tensor | None]
    ) -> Tensor:
        raise NotImplementedError(
            f"{type(self.method).__name__}: expected reverse mode, got a forward-mode transform. Use Unrolled(), which has "
            "both, or ForwardUnrolled()."
        )

    def pulled(
        self, request: Request, wanted: Sequence[int], x0: Tensor, cotangent: Tensor, args: Sequence[Tensor]
    ) -> list[Tensor]:
        """Cotangents of ``(x0, *wanted)`` on plain tensors."""
        if self.kept and self.kept[0][0] is request:
            _, solution, memory = self.kept[0]
        else:
            with torch.no_grad():
                solution, memory = self.method.begin(request, x0.detach(), [a.detach() for a in args])
        bound_field, inputs = bound(request.system, args, wanted)
        good = solution.converged.reshape(-1)
        trial = Trial(request, bound_field, args, list(wanted), inputs, x0, solution.value.detach(), good)
        rows = good.reshape(*solution.converged.shape, 1)
        seeds = torch.where(rows, cotangent, 0.0)
        found = self.method.pull(trial, memory, seeds)
        if self.method.measure:
            self.note(request, found, self.method.exact(trial, memory, seeds))
        found[0] = torch.where(rows, found[0], 0.0)  # a failed row counts for nothing, as in the exact adjoint
        return found

    def note(self, request: Request, found: Sequence[Tensor], exact: Sequence[Tensor]) -> None:
        """Note how far the two derivatives lie apart."""
        gap = torch.stack([(a - b).square().sum() for a, b in zip(found, exact, strict=True)]).sum()
        size = torch.stack([b.square().sum() for b in exact]).sum()
        error = float((gap / size.clamp(min=torch.finfo(size.dtype).tiny)).sqrt())
        name = type(self.method).__name__
        request.record.notes.append(f"{name}: measured relative error {error:.1e} against the exact discrete adjoint")


class Pulled(torch.autograd.Function):
    """Cotangents by a continuous adjoint, under every transform; not differentiable again."""

    @staticmethod
    def forward(
        run: Run, request: Request, wanted: tuple[int, ...], x0: Tensor, cotangent: Tensor, *args: Tensor
    ) -> tuple[Tensor, ...]:
        return tuple(t.detach().clone() for t in run.pulled(request, wanted, x0, cotangent, args))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.name = type(inputs[0].method).__name__

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        raise NotImplementedError(
            f"{ctx.name}: expected first derivatives, got a second. Use Unrolled(), which is exact to any order."
        )

    @staticmethod
    def jvp(ctx: Any, *_: Any) -> Any:
        raise NotImplementedError(
            f"{ctx.name}: expected first derivatives, got a second. Use Unrolled(), which is exact to any order."
        )

    @staticmethod
    def vmap(  # pyright: ignore[reportIncompatibleMethodOverride]
        info: Any,
        in_dims: tuple[Any, ...],
        run: Run,
        request: Request,
        wanted: tuple[int, ...],
        x0: Tensor,
        cotangent: Tensor,
        *args: Tensor,
    ) -> Any:
        size = info.batch_size
        lifted = lift(request, (0,) * len(args), size)  # every lane has a derivative of its own
        each = [to_front(a, dim, size) for a, dim in zip(args, in_dims[5:], strict=True)]
        seeds = to_front(cotangent, in_dims[4], size).movedim(0, 1)
        out = Pulled.apply(run, lifted, wanted, to_front(x0, in_dims[3], size), seeds, *each)
        return out, (0,) * len(out)


def check_backward(request: Request, what: str, solution: Solution) -> None:
    """Raise, or warn, when an adjoint solve failed."""
    request.record.adjoint = solution
    if solution.status == Status.CONVERGED:
        return
    if request.throw:
        raise SolveError(f"{what}: adjoint", solution)
    warnings.warn(str(SolveError(f"{what}: adjoint", solution)), HypergradientWarning, stacklevel=2)
