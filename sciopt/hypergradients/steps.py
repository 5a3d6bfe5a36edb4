"""The inner iterations as a path that can be walked in parts: what the explicit methods differentiate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor

from sciopt.checks import check_rtol_dtype
from sciopt.hypergradients.abstract import AbstractReattached, Request, Response, run_solver, solve_plain
from sciopt.inner.abstract import AbstractIterativeSolver, Stepwise
from sciopt.inner.rows import select
from sciopt.params import tree_map
from sciopt.problem import Recurrence
from sciopt.problem.system import Oracle
from sciopt.solution import Solution, Status
from sciopt.transforms import under_transform

__all__ = ["Path", "plan"]


@dataclass(eq=False)
class Path:
    """The steps of an iterative solver, or of a `Recurrence`, from a start.

    ``limits`` ``(*batch,)`` is the number of steps after which each row stands still (None: none does); ``visited`` collects
    the states when the problem asks for its trajectory; ``length`` is the whole number of steps, where it is known;
    ``counts`` are the different numbers of steps in the batch; ``truncate`` is how many steps of each row are recorded
    (0: all).
    """

    request: Request
    limits: Tensor | None = None
    length: int = -1
    visited: list[Tensor] = field(default_factory=list)
    counts: set[int] = field(default_factory=set)
    truncate: int = 0

    def __post_init__(self) -> None:
        solver = self.request.solver
        if self.recurrence is None and not isinstance(solver, AbstractIterativeSolver):
            raise TypeError(
                f"Unrolled: expected an iterative inner solver, got {type(solver).__name__}. Use Implicit() with a direct "
                "solver, or an iterative solver such as GradientDescent or LBFGS."
            )

    @property
    def recurrence(self) -> Recurrence | None:
        problem = self.request.system.problem
        return problem if isinstance(problem, Recurrence) else None

    def begin(self, x0: Tensor, args: Sequence[Tensor]) -> tuple[Tensor, Any]:
        """The start and the solver's state there."""
        if self.recurrence is not None:
            self.visited.append(x0)
            return x0, None
        solver = self.request.solver
        assert isinstance(solver, AbstractIterativeSolver)
        return x0, solver.init(self.oracle(args), x0)

    def oracle(self, args: Sequence[Tensor]) -> Oracle:
        """An oracle that records when recording is on."""
        return Oracle(self.request.system, args, differentiable=torch.is_grad_enabled() or under_transform())

    def advance(
        self, x: Tensor, state: Any, args: Sequence[Tensor], start: int, stop: int, *, recorded: bool = True
    ) -> tuple[Tensor, Any]:
        """Steps ``start .. stop - 1``; with ``recorded=False`` the result is detached from everything before."""
        if not recorded:
            detach = lambda t: t.detach() if isinstance(t, Tensor) else t  # noqa: E731
            with torch.no_grad():
                x, state = self.advance(x.detach(), tree_map(detach, state), [a.detach() for a in args], start, stop)
                self.visited = [v.detach() for v in self.visited]
                return x.detach(), tree_map(detach, state)
        if self.recurrence is not None:
            return self._recur(x, args, start, stop), None
        solver = self.request.solver
        assert isinstance(solver, AbstractIterativeSolver)
        oracle = self.oracle(args)
        for k in range(start, stop):
            if k and self.truncate and oracle.differentiable and k + self.truncate in self.counts:
                x, state = self.cut(oracle, x, state, k + self.truncate)
            if k == self.length - 1 and solver.looks_after and not under_transform():
                oracle = Oracle(self.request.system, args)  # nothing is differentiated after the last move
            moved, after = solver.step(oracle, x, state)
            if self.limits is None:
                x, state = moved, after
                continue
            active = self.limits > k
            x = torch.where(active.unsqueeze(-1), moved, x)
            norm = torch.where(active, after["residual_norm"], state["residual_norm"])
            state = {**after, "residual_norm": norm}
        return x, state

    def cut(self, oracle: Oracle, x: Tensor, state: dict[str, Any], count: int) -> tuple[Tensor, dict[str, Any]]:
        """Start to record, anew, the rows that stop after ``count`` steps.

        Solvers move by what they saw before, so what the oracle says of the present point is asked again, attached to the
        arguments.
        """
        solver = self.request.solver
        assert isinstance(solver, AbstractIterativeSolver)
        rows = torch.full_like(state["status_code"], count) == count if self.limits is None else self.limits == count
        x = select(rows, x.detach(), x)
        floats = {k: t for k, t in state.items() if isinstance(t, Tensor) and t.is_floating_point()}
        state = {**state, **{k: select(rows, t.detach(), t) for k, t in floats.items()}}
        fresh = solver.init(oracle, state.get("point", x))
        asked = {k: select(rows, fresh[k], state[k]) for k in ("value", "grad", "residual") if k in state}
        return x, {**state, **asked}

    def _recur(self, x: Tensor, args: Sequence[Tensor], start: int, stop: int) -> Tensor:
        problem, system = self.recurrence, self.request.system
        assert problem is not None
        for t in range(start, stop):
            x = system.call(lambda inner, outer, t=t: system.layout.flatten(problem.at(inner, outer, t)), x, args)
            if problem.trajectory:
                self.visited.append(x)
        return x

    def finish(self, x: Tensor, state: Any, total: int, *, exact: bool) -> Solution:
        """The flat solution; a spent budget is no failure when the number of steps was asked for (``exact``)."""
        request = self.request
        if self.recurrence is not None:
            value = torch.stack(self.visited) if self.recurrence.trajectory else x
            last = x.detach()
            norm = torch.zeros_like(last[..., 0])
            finite = torch.isfinite(last).all(-1)
            code = torch.where(finite, int(Status.CONVERGED), int(Status.NONFINITE))
        else:
            solver = request.solver
            assert isinstance(solver, AbstractIterativeSolver)
            value, norm = x, state["residual_norm"].detach()
            code = solver.terminate(x, state, check_rtol_dtype(type(solver).__name__, solver.rtol, x.dtype))
            code = torch.where(code == int(Status.RUNNING), int(Status.MAX_STEPS), code)
        steps = torch.full_like(code, total) if self.limits is None else self.limits
        solution = Solution(value=value, status_code=code, residual_norm=norm, num_steps=steps, state=state)
        if not under_transform():
            request.record.inner = solution
            request.raise_if_failed("Unrolled", solution, tolerate_budget=exact)
        return solution


def plan(request: Request, x0: Tensor, args: Sequence[Tensor], num_steps: int | None) -> tuple[Path, int]:
    """The path and its length: as asked for, as the recurrence states, or as the solver's own rule takes."""
    path = Path(request)
    if path.recurrence is not None:
        num_steps = path.recurrence.num_steps
    if num_steps is not None:
        path.length, path.counts = num_steps, {num_steps}
        return path, num_steps
    assert request.solver is not None
    quiet = Request(request.system, Stepwise(request.solver), False, request.record)  # counts what will be recorded
    if under_transform():
        path.limits = Response.apply(Settle(), quiet, x0.detach(), *(a.detach() for a in args))[3]
    else:
        path.limits = solve_plain(Settle(), quiet, x0, args).num_steps
    assert request.record.inner is not None
    counts = request.record.inner.num_steps
    path.counts = set(counts.reshape(-1).tolist()) or {0}
    total = max(path.counts)
    if len(path.counts) == 1:
        path.limits = None
        path.length = total
    return path, total


@final
@dataclass(frozen=True)
class Settle(AbstractReattached):
    """A solve without a derivative: counts the steps of the solver's own stopping rule."""

    @property
    def tolerates_budget(self) -> bool:
        return False

    def solve(self, request: Request, x0: Tensor, args: Sequence[Tensor]) -> Solution:
        return run_solver(request, x0, args)

    def vjp(self, request: Any, x0: Any, x: Any, args: Any, cotangent: Any, needs: Any) -> tuple[None, ...]:
        return (None,) * (1 + len(args))

    def jvp(self, request: Any, x0: Any, x: Tensor, args: Any, tangents: Any) -> Tensor:
        return torch.zeros_like(x)
