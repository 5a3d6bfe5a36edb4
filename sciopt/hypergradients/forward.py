"""Explicit gradient update in forward mode: carry d theta_t / d phi along with theta_t."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from sciopt.checks import check_option
from sciopt.hypergradients.abstract import AbstractHypergradient, AbstractReattached, Request
from sciopt.hypergradients.evolved import respond_evolved
from sciopt.hypergradients.products import push
from sciopt.hypergradients.steps import plan
from sciopt.problem import InitialValue
from sciopt.solution import Solution
from sciopt.transforms import carries_derivative, reverse_levels, under_transform

__all__ = ["ForwardUnrolled"]


@final
@dataclass(frozen=True, kw_only=True)
class ForwardUnrolled(AbstractHypergradient):
    """Forward mode through the inner steps, ``Z_t = A_t Z_{t-1} + B_{t-1}``: memory independent of their number.

    Use it for few outer parameters and long inner runs. Time m times that of the run for m outer numbers, memory that of
    m copies of the state (``chunk_size`` copies at a time). Under a forward-mode transform only the asked-for directions
    are carried. The derivative reaches ``init`` too.

    Args:
        num_steps: take exactly this many steps; None: as many as the solver's stopping rule takes.
        chunk_size: outer directions carried at a time; None: all.

    Example:
        >>> from sciopt import Recurrence, best_response
        >>> problem = Recurrence(lambda theta, phi, t: theta - 0.5 * (theta - phi), num_steps=2)
        >>> phi = torch.ones((), dtype=torch.float64, requires_grad=True)
        >>> init = torch.zeros((), dtype=torch.float64)
        >>> best_response(problem, phi, init=init, hypergradient=ForwardUnrolled()).value.backward()
        >>> phi.grad
        tensor(0.7500, dtype=torch.float64)

    References:
        Chen et al. "Gradient-based Bi-level Optimization for Deep Learning: A Survey", eq. 23-27. Franceschi et al.
        "Forward and reverse gradient-based hyperparameter optimization". ICML 2017.
    """

    num_steps: int | None = None
    chunk_size: int | None = None

    def __post_init__(self) -> None:
        for name in ("num_steps", "chunk_size"):
            value = getattr(self, name)
            if value is not None:
                ok = isinstance(value, int) and value >= (0 if name == "num_steps" else 1)
                check_option("ForwardUnrolled", name, value, ok, "to be a positive int or None", "Pass a count.")

    @property
    def needs_captures(self) -> bool:
        return True

    def respond(self, request: Request, x0: Tensor, args: Sequence[Tensor]) -> Solution:
        if isinstance(request.system.problem, InitialValue):
            if self.num_steps is not None:
                raise ValueError(
                    f"ForwardUnrolled: expected no `num_steps` for an InitialValue, got {self.num_steps}. Equal steps are an "
                    "option of the stepper."
                )
            return respond_evolved(request, x0, args, forward=True, chunk_size=self.chunk_size)
        # The number of steps is settled before anything is differentiated.
        path, total = plan(request, x0.detach(), [a.detach() for a in args], self.num_steps)
        count = total if path.limits is None else None
        method = Carried(num_steps=count, exact=self.num_steps is not None, chunk_size=self.chunk_size)
        plain = not under_transform() and not any(carries_derivative(t) for t in (x0, *args))
        if plain or (under_transform() and not reverse_levels() and not any(t.requires_grad for t in (x0, *args))):
            return method.solve(request, x0, args)
        return method.respond(request, x0, args)


@final
@dataclass(frozen=True, kw_only=True)
class Carried(AbstractReattached):
    """`ForwardUnrolled` with its number of steps settled (None: each row its own).

    Args:
        num_steps: number of steps.
        exact: whether the caller asked for this number, so that a spent budget is no failure.
        chunk_size: outer directions carried at a time.
    """

    num_steps: int | None
    exact: bool
    chunk_size: int | None

    @property
    def tolerates_budget(self) -> bool:
        return self.exact

    def solve(self, request: Request, x0: Tensor, args: Sequence[Tensor]) -> Solution:
        path, total = plan(request, x0, args, self.num_steps)
        x, state = path.begin(x0, args)
        x, state = path.advance(x, state, args, 0, total)
        return path.finish(x, state, total, exact=self.exact)

    def _run(self, request: Request, x0: Tensor, args: Sequence[Tensor]) -> Tensor:
        path, total = plan(request, x0.detach(), [a.detach() for a in args], self.num_steps)
        x, state = path.begin(x0, args)
        x, state = path.advance(x, state, args, 0, total)
        return path.finish(x, state, total, exact=self.exact).value

    def vjp(
        self, request: Request, x0: Tensor, x: Tensor, args: Sequence[Tensor], cotangent: Tensor, needs: Sequence[bool]
    ) -> tuple[Tensor | None, ...]:
        primals = (x0, *args)
        out: list[Tensor | None] = [None] * len(primals)
        for i, need in enumerate(needs):
            if need:
                out[i] = self._contract(request, primals, i, cotangent)
        return tuple(out)

    def _contract(self, request: Request, primals: Sequence[Tensor], index: int, cotangent: Tensor) -> Tensor:
        """``cotangent^T d theta_T / d primals[index]`` by directions, a chunk at a time."""
        point = primals[index]

        def along(direction: Tensor) -> Tensor:
            def moved(value: Tensor) -> Tensor:
                full = [*primals[:index], value, *primals[index + 1 :]]
                return self._run(request, full[0], full[1:])

            return (torch.func.jvp(moved, (point,), (direction,))[1] * cotangent).sum()

        if not point.numel():
            return torch.zeros_like(point)
        basis = torch.eye(point.numel(), dtype=point.dtype, device=point.device).reshape(-1, *point.shape)
        size = self.chunk_size or len(basis)
        parts = [torch.func.vmap(along)(part) for part in basis.split(size)]
        return torch.cat(parts).reshape(point.shape)

    def jvp(
        self, request: Request, x0: Tensor, x: Tensor, args: Sequence[Tensor], tangents: Sequence[Tensor | None]
    ) -> Tensor:
        return push(lambda *p: self._run(request, p[0], p[1:]), (x0, *args), tangents)
