"""The Solver noun: configuration with ``init`` and ``step``, and the one loop that runs every iterative solver."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from sciopt.checks import check_rtol_dtype
from sciopt.inner.compaction import RowBook, worth_compacting
from sciopt.problem.base import AbstractProblem
from sciopt.problem.minimize import Minimize
from sciopt.problem.system import Oracle
from sciopt.solution import Solution, Status
from sciopt.transforms import under_transform

__all__ = ["AbstractIterativeSolver", "AbstractSolver", "Stepwise", "run"]


class AbstractSolver(ABC):
    """How to find theta*. Concrete solvers are frozen dataclasses that hold configuration only.

    ``solves`` lists the problem classes; ``nonsmooth`` says whether `Minimize` with ``box`` or ``prox`` is among them.
    """

    solves: ClassVar[tuple[type[AbstractProblem], ...]]
    nonsmooth: ClassVar[bool] = False

    @abstractmethod
    def solve(self, oracle: Oracle, x: Tensor) -> Solution:
        """Solve from flat ``x`` of shape ``(*batch, n)``; never raises for numerical trouble."""

    def check(self, problem: AbstractProblem) -> None:
        """Raise TypeError when this solver does not solve this class of problem."""
        if not isinstance(problem, self.solves):
            names = ", ".join(kind.__name__ for kind in self.solves)
            raise TypeError(
                f"{type(self).__name__}: expected a problem of class {names}, got {type(problem).__name__}. "
                "Pick a solver that lists this class in `solves`."
            )
        if isinstance(problem, Minimize) and not problem.smooth and not self.nonsmooth:
            raise TypeError(
                f"{type(self).__name__}: expected a smooth Minimize without `box` or `prox`, got one with it. "
                "Use ProximalGradient, which respects both."
            )


class AbstractIterativeSolver(AbstractSolver):
    """A solver that steps. Its state is a dict of tensors with leading ``*batch`` dimensions, replaced at every step.

    Every state holds at least

    - ``residual_norm`` ``(*batch,)``: norm of the optimality residual at the current point;
    - ``scale`` ``(*batch,)``: what ``rtol`` refers to (set once, or updated);
    - ``status_code`` ``(*batch,)`` int64: `Status.RUNNING`, or an outcome that the step itself found out;

    and may hold ``floor`` ``(*batch,)``: a residual that rounding explains, at which a row counts as converged.

    `step` moves first, by what the state knows, and looks (asks the oracle) at the new point afterwards. It is written
    with torch operations that `Unrolled` can differentiate, and each row depends on that row alone. A solver whose move
    needs no oracle sets ``looks_after``: the last look of a run of fixed length then needs no graph. A solver that has a
    faster way for one problem that is not recorded names it as ``single``: ``(solver, oracle, x, rtol)`` to `Solution`.
    """

    looks_after: ClassVar[bool] = False
    single: ClassVar[Callable[[Any, Oracle, Tensor, float], Solution] | None] = None
    rtol: float | None
    atol: float
    max_steps: int

    @abstractmethod
    def init(self, oracle: Oracle, x: Tensor) -> dict[str, Any]:
        """State at the start."""

    @abstractmethod
    def step(self, oracle: Oracle, x: Tensor, state: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """One step of every row."""

    def terminate(self, x: Tensor, state: dict[str, Any], rtol: float) -> Tensor:
        """Status codes ``(*batch,)`` after a step: converged, a step's own verdict, NaN, or running."""
        code = state["status_code"]
        norm = state["residual_norm"].detach()
        limit = self.atol + rtol * state["scale"].detach()
        if "floor" in state:
            limit = torch.maximum(limit, state["floor"].detach())
        done = (norm <= limit) & (code <= int(Status.STAGNATED))  # a row that stands still may stand on the solution
        code = code.masked_fill(done, int(Status.CONVERGED))
        return code.masked_fill((code == int(Status.RUNNING)) & ~torch.isfinite(norm), int(Status.NONFINITE))

    def solve(self, oracle: Oracle, x: Tensor) -> Solution:
        return run(self, oracle, x)


def run(
    solver: AbstractIterativeSolver,
    oracle: Oracle,
    x: Tensor,
    *,
    num_steps: int | None = None,
    check_every: int = 1,
    stepwise: bool = False,
) -> Solution:
    """Step until every row has ended; a finished row keeps its point, and is dropped if the problem says how.

    Args:
        solver: the solver.
        oracle: the problem.
        x: start ``(*batch, n)``.
        num_steps: take exactly this many steps, with no stopping and no host synchronisation (status by the last test).
        check_every: steps between two looks at the statuses.
        stepwise: use the solver's steps even where it has a faster way for a lone problem.

    Returns:
        `Solution` with flat ``value``; ``state`` is the solver's last state.

    Example:
        >>> from sciopt.inner import GradientDescent
        >>> from sciopt.params import ravel
        >>> from sciopt.problem.system import System
        >>> layout, x = ravel(torch.zeros(2))
        >>> problem = Minimize(lambda theta, phi: ((theta - 1.0) ** 2).sum())
        >>> system = System(problem=problem, layout=layout, outer_spec=layout.spec, num_outer=1)
        >>> run(GradientDescent(step_size=0.5), Oracle(system, [x]), x).value
        tensor([1., 1.])
    """
    rtol = check_rtol_dtype(type(solver).__name__, solver.rtol, x.dtype)
    if num_steps is not None:
        return _run_fixed(solver, oracle, x, num_steps, rtol)
    single = type(solver).single
    if isinstance(oracle.problem, Minimize) and oracle.problem.model_hessian is not None:
        single = None  # the shortcut knows no model
    if single is not None and not stepwise and x.ndim == 1 and not oracle.differentiable and not under_transform():
        return single(solver, oracle, x, rtol)
    if not oracle.differentiable and not under_transform():
        oracle = Oracle(oracle.system, oracle.args)
        oracle.in_place = True
    state = solver.init(oracle, x)
    code = solver.terminate(x, state, rtol)
    steps = torch.zeros_like(code)
    norm = state["residual_norm"]
    running = code == int(Status.RUNNING)
    exact = check_every == 1
    active = -1
    idle = 0.0  # looks spent on rows that had ended, in whole batches: one is as dear as a compaction
    book: RowBook | None = None
    for k in range(solver.max_steps):
        if k % check_every == 0:
            active = int(running.sum())
            if active == 0:
                break
            idle += 1 - active / running.numel()
            if idle >= 1 and worth_compacting(oracle, x, state, active):
                book = RowBook(oracle) if book is None else book
                oracle, (x, norm, steps, code, state) = book.shrink((x, norm, steps, code, state), running)
                running = torch.ones_like(running[: x.shape[0]])
                active, idle = running.numel(), 0.0
        moved, state = solver.step(oracle, x, state)
        if exact and active == running.numel():  # every row runs: nothing to freeze
            x, norm, steps = moved, state["residual_norm"], steps + 1
            code = solver.terminate(x, state, rtol)
        else:
            x = torch.where(running.unsqueeze(-1), moved, x)
            norm = torch.where(running, state["residual_norm"], norm)
            steps = steps + running
            code = torch.where(running, solver.terminate(x, state, rtol), code)
        running = code == int(Status.RUNNING)
    code = torch.where(running, int(Status.MAX_STEPS), code)
    if book is not None:
        x, norm, steps, code, state = book.whole_of((x, norm, steps, code, state))
    return Solution(value=x, status_code=code, residual_norm=norm.detach(), num_steps=steps, state=state)


@final
@dataclass(frozen=True)
class Stepwise(AbstractSolver):
    """A solver's own steps and stopping rule, with no shortcut: takes as many steps as a recorded run of it will."""

    solves: ClassVar = (AbstractProblem,)
    nonsmooth: ClassVar = True
    solver: AbstractSolver

    def solve(self, oracle: Oracle, x: Tensor) -> Solution:
        if isinstance(self.solver, AbstractIterativeSolver):
            return run(self.solver, oracle, x, stepwise=True)
        return self.solver.solve(oracle, x)


def _run_fixed(solver: AbstractIterativeSolver, oracle: Oracle, x: Tensor, num_steps: int, rtol: float) -> Solution:
    state = solver.init(oracle, x)
    last = oracle
    if solver.looks_after and oracle.differentiable and not under_transform():
        last = Oracle(oracle.system, oracle.args)  # this look serves the certificate alone
    for k in range(num_steps):
        x, state = solver.step(oracle if k < num_steps - 1 else last, x, state)
    code = solver.terminate(x, state, rtol)
    code = torch.where(code == int(Status.RUNNING), int(Status.MAX_STEPS), code)
    steps = torch.full_like(code, num_steps)
    return Solution(
        value=x, status_code=code, residual_norm=state["residual_norm"].detach(), num_steps=steps, state=state
    )
