"""Problems stated by how the state evolves: recurrences and initial values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from sciopt.linsolve import Tag
from sciopt.params import tree_leaves, tree_map
from sciopt.problem.base import AbstractProblem, Tree, no_objective

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
class InitialValue:
    """``d theta / dt = dynamics(t, theta, phi)`` from ``theta(t_0)``, observed at ``times``: the statement of an ODE.

    It states the problem for the steppers; its right-hand side takes the time first, as integrators do.

    Args:
        dynamics: ``(t, inner_params, outer_params) -> inner_params``.
        times: monotone instants, shape ``(k,)``, k >= 2, the first being the start.
        batch_ndim: leading dimensions of every inner leaf that number independent problems.

    Raises:
        ValueError: for times that are not strictly monotone or fewer than two.

    Example:
        >>> InitialValue(lambda t, y, phi: -phi * y, times=torch.tensor([0.0, 1.0])).times
        tensor([0., 1.])

    References:
        Chen et al. "Gradient-based Bi-level Optimization for Deep Learning: A Survey", table 1 row (n) and eq. 22.
    """

    dynamics: Callable[[Tensor, Tree, Tree], Tree]
    times: Tensor
    batch_ndim: int = 0

    def __post_init__(self) -> None:
        times: Any = self.times
        ok = isinstance(times, Tensor) and times.ndim == 1 and len(times) >= 2
        if not ok or not (bool((times.diff() > 0).all()) or bool((times.diff() < 0).all())):
            raise ValueError(
                "InitialValue: expected `times` to be a strictly monotone tensor of shape (k,), k >= 2, got "
                f"{times.tolist() if isinstance(times, Tensor) else times!r}. Sort them, remove duplicates, and put the start "
                "first."
            )
