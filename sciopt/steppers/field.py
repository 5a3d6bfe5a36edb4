"""The right-hand side of an `InitialValue` as steppers see it: flat rows, bound to its arguments, counted."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from sciopt.problem.base import Tree
from sciopt.problem.evolution import InitialValue
from sciopt.problem.system import System

__all__ = ["Field"]


class Field:
    """``f(t, y)`` with t ``(rows,)`` and y ``(rows, n)``: all problems of all batch dimensions in one.

    Args:
        system: the flat problem.
        args: its arguments: outer leaves and captured tensors.
        lean: True where nothing is recorded and captured tensors stand for themselves: the fast way; scratch space may then
            be kept in ``scratch`` from call to call.
        bare: True where only ``y`` of an attempt is used: its error, dense output and end may be left out.

    Example:
        >>> from sciopt.params import ravel
        >>> layout, y = ravel(torch.ones(2, 3), batch_ndim=1)
        >>> problem = InitialValue(lambda t, y, rate: -rate * y, torch.tensor([0.0, 1.0]), batch_ndim=1)
        >>> system = System(problem=problem, layout=layout, outer_spec=layout.spec, num_outer=1)
        >>> field = Field(system, [torch.tensor(2.0)])
        >>> field(torch.zeros(2), y)[0], field.jacobian(torch.zeros(2), y).shape
        (tensor([-2., -2., -2.]), torch.Size([2, 3, 3]))
    """

    def __init__(self, system: System, args: Sequence[Tensor], *, lean: bool = False, bare: bool = False) -> None:
        assert isinstance(system.problem, InitialValue)
        self.system, self.args, self.problem = system, tuple(args), system.problem
        self.lean = lean and not system.lanes
        self.bare = bare
        self.direct = not system.lanes and (self.lean or not system.captured)
        self.scratch: dict[Any, Any] = {}
        layout = system.layout
        self.shape = system.batch_shape
        self.rows = prod(self.shape)
        self.size = layout.size
        events = {len(shape) for shape in layout.shapes}
        ndim = self.problem.batch_ndim
        self._ones = (1,) * events.pop() if len(events) == 1 and ndim else ()
        self._time_shape = (*layout.batch_shape, *self._ones)
        leaf = len(layout.shapes) == 1 and layout.spec.is_leaf()
        self._leaf_shape = (*layout.batch_shape, *layout.shapes[0]) if leaf else None
        self._same = leaf and self._leaf_shape == (self.rows, self.size)
        self._outer = system.outer(self.args)
        self.mass = self._bound_mass()

    def bind(self, args: Sequence[Tensor], *, lean: bool = False, bare: bool = False) -> Field:
        """The same field with other arguments."""
        return Field(self.system, args, lean=lean, bare=bare)

    def restricted(self, rows: Tensor) -> Field:
        """The field of some rows, int64 ``(m,)``, with the same arguments."""
        return Field(self.system.restricted(rows), self.args, lean=self.lean)

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        """``f(t, y)``, shape ``(rows, n)``."""
        self.system.counter["dynamics"] += 1
        if not self.direct:
            return self._mapped(self._dynamics, t, y)
        leaf = self._leaf_shape
        if leaf is None:
            inner = self.system.layout.unflatten(y.reshape(*self.shape, self.size))
            return self._dynamics(inner, self._outer, t).reshape(self.rows, self.size)
        return self.at(t.reshape(self._time_shape), y)

    @property
    def time_shape(self) -> tuple[int, ...] | None:
        """Shape in which `at` takes the times; None where `at` cannot be called."""
        return self._time_shape if self.direct and self._leaf_shape is not None else None

    def at(self, t: Tensor, y: Tensor) -> Tensor:
        """``f(t, y)`` for times that are already in ``time_shape``: the shortest way, not counted."""
        leaf = self._leaf_shape
        out = self.problem.dynamics(t, y if self._same else y.reshape(leaf), self._outer)  # pyright: ignore[reportCallIssue, reportArgumentType]
        if not isinstance(out, Tensor) or out.shape != leaf or out.dtype != y.dtype:
            out = self._checked(out, y)
        return out if self._same else out.reshape(self.rows, self.size)

    def jacobian(self, t: Tensor, y: Tensor) -> Tensor:
        """``df/dy``, shape ``(rows, n, n)``: as declared by the problem, or by n products."""
        declared = self.problem.jacobian
        self.system.counter["jacobian"] += 1
        if declared is not None:

            def flat(inner: Tree, outer: Tree, t: Tensor) -> Tensor:
                return declared(t.reshape(self._time_shape), inner, outer)

            out = self._mapped(flat, t, y, extra=1)
            if out.shape != (*y.shape, y.shape[-1]):
                raise ValueError(
                    f"InitialValue: expected `jacobian` to return (*batch, n, n) = {(*y.shape, y.shape[-1])}, got "
                    f"{tuple(out.shape)}. Give one matrix per problem, in the flat order of the state."
                )
            return out
        pull = torch.func.vjp(lambda v: self(t, v), y)[1]
        basis = torch.eye(y.shape[-1], dtype=y.dtype, device=y.device).unsqueeze(1).expand(-1, *y.shape)
        return torch.vmap(lambda u: pull(u)[0])(basis).movedim(0, 1)

    def time_derivative(self, t: Tensor, y: Tensor) -> Tensor:
        """``df/dt``, shape ``(rows, n)``."""
        out, pull = torch.func.vjp(lambda s: self(s, y), t)[:2]
        return torch.func.vjp(lambda u: pull(u)[0], torch.zeros_like(out))[1](torch.ones_like(t))[0]

    def event(self, t: Tensor, y: Tensor) -> Tensor:
        """The event function, ``(rows,)``."""
        event = self.problem.event
        assert event is not None

        def flat(inner: Tree, outer: Tree, t: Tensor) -> Tensor:
            out = event(t.reshape(self._time_shape), inner, outer)
            if not isinstance(out, Tensor) or out.shape != t.shape:
                raise ValueError(
                    f"InitialValue: expected `event` to return one number per problem, shape {tuple(t.shape)}, got "
                    f"{tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__}. Reduce it over the state."
                )
            return out

        return self._mapped(flat, t, y, extra=-1)

    def times(self, like: Tensor) -> Tensor:
        """Output times ``(k, rows)``, differentiable; all at the start for rows whose times are not `sound`."""
        times = self._times(like)
        if self.problem.times.ndim == 1 and not self.system.lanes:
            return times  # looked at when the problem was stated
        return torch.where(self.sound(times.detach()), times, torch.nan_to_num(times[:1].detach(), 0.0, 0.0, 0.0))

    def sound(self, times: Tensor | None = None) -> Tensor:
        """Which rows have finite times that do not turn back, ``(rows,)``."""
        if times is None:
            with torch.no_grad():
                times = self._times(self.args[0].new_zeros(self.rows, self.size))
        steps = times.diff(dim=0)
        return ((steps >= 0).all(0) | (steps <= 0).all(0)) & torch.isfinite(times).all(0)

    def _times(self, like: Tensor) -> Tensor:
        y = like.reshape(*self.shape, self.size)

        def flat(inner: Tree, outer: Tree) -> Tensor:
            times = self.problem.times.to(like.dtype) * 1  # an operation, so that a captured tensor is seen
            shape = self.system.layout.batch_shape
            wide = times.reshape(-1, *(1,) * len(shape)).expand(-1, *shape) if times.ndim == 1 else times
            return wide.movedim(0, -1)

        out = flat(None, None) if self.direct else self.system.call(flat, y, self.args)
        return out.reshape(self.rows, out.shape[-1]).movedim(-1, 0)

    def _bound_mass(self) -> Tensor | None:
        """The mass matrix ``(n, n)``, as an argument where it carries a derivative; None when there is none."""
        mass, count = self.problem.mass, self.system.num_outer
        for i, captured in enumerate(self.system.captured):
            if captured is mass:
                if any(dims[count + i] is not None for dims in self.system.lanes):
                    raise ValueError(
                        "InitialValue: expected one `mass` for all problems of a vmap, got a batch of them. Multiply the "
                        "right-hand side by their inverses."
                    )
                return self.args[count + i]
        return mass

    def _mapped(self, flat: Any, t: Tensor, y: Tensor, extra: int = 0) -> Tensor:
        """Call ``flat(inner, outer, t)`` through the batch dimensions and the vmap levels."""
        y, t = y.reshape(*self.shape, self.size), t.reshape(self.shape)
        if self.lean:
            out = flat(self.system.layout.unflatten(y), self._outer, t)
        else:
            out = self.system.call(flat, y, self.args, t)
        return out.reshape(self.rows, *(self.size,) * (1 + extra))

    def _dynamics(self, inner: Tree, outer: Tree, t: Tensor) -> Tensor:
        out = self.problem.dynamics(t.reshape(self._time_shape), inner, outer)
        return self.system.layout.flatten(out).reshape(*self.system.layout.batch_shape, self.size)

    def _checked(self, out: Any, y: Tensor) -> Tensor:
        assert self._leaf_shape is not None
        out = self.system.layout.flatten(out).reshape(self._leaf_shape)
        if out.dtype != y.dtype:
            raise TypeError(
                f"InitialValue: expected `dynamics` to return {y.dtype} as the state, got {out.dtype}. Convert inside it."
            )
        return out
