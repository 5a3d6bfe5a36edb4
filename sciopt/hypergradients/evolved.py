"""The derivative of an integrated `InitialValue`: that of its frozen steps, in reverse or in forward mode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, final

import torch
from torch import Tensor

from sciopt.hypergradients.abstract import AbstractReattached, Request, lift, to_front
from sciopt.hypergradients.products import push
from sciopt.problem import InitialValue
from sciopt.problem.system import Oracle
from sciopt.solution import Solution
from sciopt.steppers.abstract import AbstractOneStep, AbstractStepper
from sciopt.steppers.adjoint import replay, walk_back
from sciopt.steppers.engine import march
from sciopt.steppers.field import Field
from sciopt.steppers.tape import Grid, Tape
from sciopt.transforms import carries_derivative, under_transform

__all__ = ["Discrete", "respond_evolved"]


def respond_evolved(
    request: Request, x0: Tensor, args: Sequence[Tensor], *, forward: bool = False, chunk_size: int | None = None
) -> Solution:
    """The flat solution of an `InitialValue`, attached by the derivative of the steps that were taken."""
    problem, solver = request.system.problem, request.solver
    assert isinstance(problem, InitialValue) and isinstance(solver, AbstractStepper)
    if isinstance(solver, AbstractOneStep):
        moving = carries_derivative(problem.times)
        kept = any(carries_derivative(t) for t in (x0, *args))
        return Discrete(forward=forward, chunk_size=chunk_size, moving=moving, differentiated=kept).respond(
            request, x0, args
        )
    if forward:
        raise TypeError(
            f"ForwardUnrolled: expected a one-step method, got {type(solver).__name__}. Use Tsit5, or Unrolled()."
        )
    recorded = torch.is_grad_enabled() and any(carries_derivative(t) for t in (x0, *args))
    solution = solver.solve(Oracle(request.system, args, differentiable=recorded or under_transform()), x0)
    if not under_transform():
        request.record.inner = solution
        request.raise_if_failed(type(solver).__name__, solution)
    return solution


@final
@dataclass(frozen=True, kw_only=True)
class Discrete(AbstractReattached):
    """The derivative of the accepted steps, their sizes frozen: exact for what was computed. Made for one response.

    Reverse mode keeps one state per trial step and records one step at a time; second derivatives and transforms replay
    the steps by plain operations.

    Args:
        forward: carry directions forward instead.
        chunk_size: directions carried at a time; None: all.
        moving: whether the output times carry a derivative.
        differentiated: whether anything does: else no step is kept.
        tapes: the run, once it is made.
    """

    forward: bool = False
    chunk_size: int | None = None
    moving: bool = False
    differentiated: bool = False
    tapes: list[Tape] = field(default_factory=list)

    @property
    def tolerates_budget(self) -> bool:
        return False

    def solve(self, request: Request, x0: Tensor, args: Sequence[Tensor]) -> Solution:
        assert isinstance(request.solver, AbstractOneStep)
        keep = self.differentiated and not self.forward
        solution, tape = march(request.solver, request.system, args, x0, keep=keep, moving=self.moving)
        self.tapes[:] = [] if tape is None else [tape]
        return solution

    def vjp(
        self, request: Request, x0: Tensor, x: Tensor, args: Sequence[Tensor], cotangent: Tensor, needs: Sequence[bool]
    ) -> tuple[Tensor | None, ...]:
        assert isinstance(request.solver, AbstractOneStep)
        if self.forward:
            run = self.frozen(request, x0, args)
            return tuple(
                self.contract(run, (x0, *args), i, cotangent) if need else None for i, need in enumerate(needs)
            )
        lean = self.tapes and self.tapes[0].segments[0].field.lean and not request.system.lanes
        if lean and not under_transform() and not torch.is_grad_enabled():
            return walk_back(request.solver, self.tapes[0], args, cotangent, needs)
        pulled = torch.func.vjp(self.frozen(request, x0, args), x0, *args)[1](cotangent)
        return tuple(p if need else None for p, need in zip(pulled, needs, strict=True))

    def jvp(
        self, request: Request, x0: Tensor, x: Tensor, args: Sequence[Tensor], tangents: Sequence[Tensor | None]
    ) -> Tensor:
        return push(self.frozen(request, x0, args), (x0, *args), tangents)

    def frozen(self, request: Request, x0: Tensor, args: Sequence[Tensor]) -> Any:
        """``(x0, *args) -> value`` with the steps that were taken."""
        solver, system = request.solver, request.system
        assert isinstance(solver, AbstractOneStep) and isinstance(system.problem, InitialValue)
        if self.tapes and not under_transform():
            grid = self.tapes[0].grid()
        else:
            parts = Steps.apply(request, self.moving, x0.detach(), *(a.detach() for a in args))
            rows = prod(system.batch_shape)
            t, h, slot = (part.reshape(len(part), rows) for part in parts[:3])
            event, fraction, failed = (part.reshape(rows) for part in parts[3:6])
            grid = Grid(t, h, slot, event, fraction, failed, parts[6].reshape(rows, parts[6].shape[-1]))
        inner = len(system.problem.times) > 2 or self.moving

        def run(x0: Tensor, *args: Tensor) -> Tensor:
            bound = Field(system, args)
            planes = replay(solver, bound, grid, x0.reshape(bound.rows, bound.size), inner=inner)
            return planes.reshape(len(planes), *system.batch_shape, bound.size)

        return run

    def contract(self, run: Any, primals: tuple[Tensor, ...], index: int, cotangent: Tensor) -> Tensor:
        """``cotangent^T d value / d primals[index]`` by directions, a chunk at a time."""
        point = primals[index]
        if not point.numel():
            return torch.zeros_like(point)

        def along(direction: Tensor) -> Tensor:
            def moved(value: Tensor) -> Tensor:
                return run(*primals[:index], value, *primals[index + 1 :])

            return (torch.func.jvp(moved, (point,), (direction,))[1] * cotangent).sum()

        basis = torch.eye(point.numel(), dtype=point.dtype, device=point.device).reshape(-1, *point.shape)
        parts = [torch.func.vmap(along)(part) for part in basis.split(self.chunk_size or len(basis))]
        return torch.cat(parts).reshape(point.shape)


class Steps(torch.autograd.Function):
    """The frozen steps of a run as tensors without a derivative, under every transform."""

    @staticmethod
    def forward(request: Request, moving: bool, x0: Tensor, *args: Tensor) -> tuple[Tensor, ...]:
        assert isinstance(request.solver, AbstractOneStep)
        tape = march(request.solver, request.system, args, x0, keep=True, moving=moving)[1]
        assert tape is not None
        grid = tape.grid()
        shape = request.system.batch_shape
        stacked = (part.reshape(len(part), *shape) for part in (grid.t, grid.h, grid.slot))
        single = (part.reshape(shape) for part in (grid.event_slot, grid.event_fraction, grid.failed))
        return (*stacked, *single, grid.rest.reshape(*shape, grid.rest.shape[-1]))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(*output)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> tuple[None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return (None,) * len(ctx.needs_input_grad)

    @staticmethod
    def jvp(ctx: Any, *_: Any) -> tuple[None, ...]:
        return (None,) * 7

    @staticmethod
    def vmap(  # pyright: ignore[reportIncompatibleMethodOverride]
        info: Any, in_dims: tuple[Any, ...], request: Request, moving: bool, x0: Tensor, *args: Tensor
    ) -> Any:
        lifted = lift(request, in_dims[3:], info.batch_size)
        out = Steps.apply(lifted, moving, to_front(x0, in_dims[2], info.batch_size), *args)
        return out, (1, 1, 1, 0, 0, 0, 0)
