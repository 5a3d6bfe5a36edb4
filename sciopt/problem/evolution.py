"""Problems stated by how the state evolves: recurrences and initial values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor

from sciopt.linsolve import Tag
from sciopt.params import tree_leaves, tree_map
from sciopt.problem.base import AbstractProblem, Tree, no_objective
from sciopt.transforms import carries_derivative, is_wrapped, unwrapped

__all__ = ["InitialValue", "Recurrence"]


@final
@dataclass(frozen=True)
class Recurrence(AbstractProblem):
    """``theta_t = step(theta_{t-1}, phi_t, data_t)``, t = 1..num_steps: an optimizer run, a simulation, a hidden state.

    There is no equation to differentiate implicitly; use `Unrolled` or `ForwardUnrolled`. The state may be a dict of
    parameters, momentum, hidden state.

    Args:
        step: ``(inner_params, outer_params, data_t) -> inner_params``.
        num_steps: number of steps T.
        data: tree of tensors with leading dimension T, of which step t gets slice t; None: step t gets the integer t.
        scheduled: True when every leaf of the outer parameters has leading dimension T and step t gets slice t.
        trajectory: True when the value is the whole trajectory, leaves ``(T + 1, *shape)`` with the start first.
        batch_ndim: leading dimensions of every inner leaf that number independent problems.

    Raises:
        ValueError: for a negative ``num_steps`` or data of another length.

    Example:
        >>> problem = Recurrence(lambda theta, phi, t: theta * phi, num_steps=3)
        >>> problem.run(torch.tensor(1.0), torch.tensor(2.0))
        tensor(8.)

    References:
        Chen et al. "Gradient-based Bi-level Optimization for Deep Learning: A Survey", eq. 18.
    """

    step: Callable[[Tree, Tree, Any], Tree]
    num_steps: int
    data: Tree = None
    scheduled: bool = False
    trajectory: bool = False
    batch_ndim: int = 0
    nullspace: Callable[[Tree, Tree], Tensor] | None = None

    def __post_init__(self) -> None:
        ok = isinstance(self.num_steps, int) and not isinstance(self.num_steps, bool) and self.num_steps >= 0
        if not ok:
            raise ValueError(
                f"Recurrence: expected `num_steps` to be an int >= 0, got {self.num_steps!r}. Pass the number of steps."
            )
        if self.data is not None:
            self._check_length("data", self.data)

    def _check_length(self, name: str, tree: Tree) -> None:
        for leaf in tree_leaves(tree):
            shape = tuple(leaf.shape) if isinstance(leaf, Tensor) else None
            if not shape or shape[0] != self.num_steps:
                raise ValueError(
                    f"Recurrence: expected `{name}` with leading dimension num_steps = {self.num_steps}, got "
                    f"{f'shape {shape}' if shape is not None else type(leaf).__name__}. Stack one entry per step."
                )

    def at(self, inner_params: Tree, outer_params: Tree, t: int) -> Tree:
        """The state after step ``t`` (0-based) from the state before it."""
        if self.scheduled and t == 0:
            self._check_length("outer_params", outer_params)
        data = t if self.data is None else tree_map(lambda leaf: leaf[t], self.data)
        outer = tree_map(lambda leaf: leaf[t], outer_params) if self.scheduled else outer_params
        return self.step(inner_params, outer, data)

    def run(self, init: Tree, outer_params: Tree) -> Tree:
        """All steps; the last state, or with ``trajectory`` the stacked states."""
        state, states = init, [init]
        for t in range(self.num_steps):
            state = self.at(state, outer_params, t)
            if self.trajectory:
                states.append(state)
        return tree_map(lambda *leaves: torch.stack(leaves), *states) if self.trajectory else state

    def optimality(self, inner_params: Tree, outer_params: Tree) -> Tree:
        raise TypeError(
            "Recurrence: expected a method that differentiates the steps, got one that needs an optimality residual. "
            "Use Unrolled() or ForwardUnrolled()."
        )

    def objective(self, inner_params: Tree, outer_params: Tree) -> Tensor:
        raise no_objective(self)

    def start(self, init: Tree, outer_params: Tree) -> Tree:
        return init

    def finish(self, inner_params: Tree) -> tuple[Tree, dict[str, Tree]]:
        return inner_params, {}

    @property
    def jacobian_tags(self) -> frozenset[Tag]:
        return frozenset()


@final
@dataclass(frozen=True)
class InitialValue(AbstractProblem):
    """``d theta / dt = dynamics(t, theta, phi)`` from ``theta(t_0)``, observed at ``times``: an initial-value problem.

    Solved by the steppers of `sciopt.steppers`; ``init`` is the state at the first time. The right-hand side takes the time
    first, as integrators do. The value has leaves ``(k, *batch, ...)``, the start first; a problem that fails holds its last
    good state from there on. ``aux`` tells ``rejected`` steps and ``evaluations`` of each problem and, with an ``event``,
    ``event_time`` ``(*batch,)`` and ``event_state``, with gradients.

    Args:
        dynamics: ``(t, inner_params, outer_params) -> inner_params``. Without a batch t has shape (); with one every problem
            has a time of its own: t is ``(*batch, 1, ..., 1)`` and broadcasts against a leaf when all leaves have one number
            of dimensions, else it is ``(*batch,)``.
        times: instants ``(k,)``, k >= 2, the first being the start, or ``(k, *batch)`` for times of each problem's own;
            growing or falling (backwards in time), repetitions allowed. They may require a gradient.
        batch_ndim: leading dimensions of every inner leaf that number independent problems.
        restrict: ``rows -> InitialValue``, the problem of some rows (int64 ``(m,)``) of a batch with ``batch_ndim=1``, which
            must capture the same tensors: finished problems are then dropped. Its ``times`` are not read. Where all problems
            share one right-hand side it is ``lambda rows: problem``.
        mass: constant matrix M ``(n, n)`` of ``M d theta/dt = f`` in the flat order of the state; singular M: an index-1
            differential-algebraic equation. For implicit steppers.
        jacobian: ``(t, inner_params, outer_params) -> (*batch, n, n)``, df/dtheta in the flat order; None: by autograd.
        event: ``(t, inner_params, outer_params) -> (*batch,)``: a problem ends where this crosses zero, and holds its state
            there at later ``times``.
        event_direction: 1: crossings from below count, -1: from above, 0: both.

    Raises:
        ValueError: for times that are not finite and monotone, or fewer than two; for per-problem times the affected
            problems get `Status.INFEASIBLE` instead.

    Example:
        >>> from sciopt import best_response
        >>> decay = InitialValue(lambda t, y, rate: -rate * y, times=torch.tensor([0.0, 1.0], dtype=torch.float64))
        >>> rate = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
        >>> solution = best_response(decay, rate, init=torch.ones((), dtype=torch.float64))
        >>> solution.value[-1].backward()
        >>> round(rate.grad.item(), 5)  # -exp(-2)
        -0.13534

    References:
        Chen et al. "Gradient-based Bi-level Optimization for Deep Learning: A Survey", table 1 row (n) and eq. 22. Chen et
        al. "Neural ordinary differential equations". NeurIPS 2018.
    """

    dynamics: Callable[[Tensor, Tree, Tree], Tree]
    times: Tensor
    batch_ndim: int = 0
    restrict: Callable[[Tensor], InitialValue] | None = None
    mass: Tensor | None = None
    jacobian: Callable[[Tensor, Tree, Tree], Tensor] | None = None
    event: Callable[[Tensor, Tree, Tree], Tensor] | None = None
    event_direction: int = 0
    nullspace: Callable[[Tree, Tree], Tensor] | None = None

    def __post_init__(self) -> None:
        times: Any = self.times
        ok = isinstance(times, Tensor) and times.is_floating_point() and times.ndim in (1, 1 + self.batch_ndim)
        ok = ok and len(times) >= 2
        if ok and times.ndim == 1 and not is_wrapped(times):
            steps = times.detach().diff()
            ok = bool((steps >= 0).all()) or bool((steps <= 0).all())
        if not ok:
            raise ValueError(
                f"InitialValue: expected `times` to be a monotone floating-point tensor (k,) or (k, *batch), k >= 2, got "
                f"{describe(times)}. Sort them, and put the start first."
            )
        if self.event_direction not in (-1, 0, 1):
            raise ValueError(
                f"InitialValue: expected `event_direction` to be -1, 0 or 1, got {self.event_direction!r}. Use 0 to stop at "
                "any crossing."
            )
        if self.restrict is not None and self.batch_ndim != 1:
            raise ValueError(
                f"InitialValue: expected `batch_ndim=1` with `restrict`, got {self.batch_ndim}. Flatten the batch."
            )

    def settled(self) -> InitialValue:
        """The problem free of transforms that its tensors passed without a derivative: a wrapper dies with its level."""
        changed = {
            name: unwrapped(tensor)
            for name, tensor in (("times", self.times), ("mass", self.mass))
            if tensor is not None and is_wrapped(tensor) and not carries_derivative(tensor)
        }
        return replace(self, **changed) if changed else self

    def check(self, shape: tuple[int, ...], size: int) -> None:
        """Shapes of what was declared, against the batch and the length n of the flat state."""
        if self.times.ndim > 1 and tuple(self.times.shape[1:]) != shape:
            raise ValueError(
                f"InitialValue: expected `times` of shape (k,) or (k, *batch) with batch {shape}, got "
                f"{tuple(self.times.shape)}. Give every problem its own times, or all of them the same."
            )
        if self.mass is not None and tuple(self.mass.shape) != (size, size):
            raise ValueError(
                f"InitialValue: expected `mass` of shape {(size, size)}, got {tuple(self.mass.shape)}. Give one row per entry "
                "of the flat state."
            )

    def optimality(self, inner_params: Tree, outer_params: Tree) -> Tree:
        raise TypeError(
            "InitialValue: expected a method that differentiates the steps, got one that needs an optimality residual. "
            "Use Unrolled() or ForwardUnrolled(); for a steady state solve a RootFind of the right-hand side."
        )

    def objective(self, inner_params: Tree, outer_params: Tree) -> Tensor:
        raise no_objective(self)

    def start(self, init: Tree, outer_params: Tree) -> Tree:
        return init

    def finish(self, inner_params: Tree) -> tuple[Tree, dict[str, Tree]]:
        if self.event is None:
            return inner_params, {}
        count = len(self.times)
        first = tree_leaves(inner_params)[0][count + 1]
        time = first.reshape(*first.shape[: self.batch_ndim], -1)[..., 0]
        state = tree_map(lambda leaf: leaf[count], inner_params)
        return tree_map(lambda leaf: leaf[:count], inner_params), {"event_time": time, "event_state": state}

    @property
    def jacobian_tags(self) -> frozenset[Tag]:
        return frozenset()


def describe(times: Any) -> str:
    """What was given for the times, shortly."""
    if not isinstance(times, Tensor):
        return repr(times)
    return str(times.tolist()) if times.ndim == 1 and times.numel() <= 12 else f"shape {tuple(times.shape)}"
