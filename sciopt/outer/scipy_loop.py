"""SciPy's L-BFGS-B and SLSQP as outer methods: they ask for points, hypergradients answer."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, final

import torch
from torch import Tensor

from sciopt.bilevel import solution_of
from sciopt.checks import check_option
from sciopt.outer.checkpoint import CheckpointError
from sciopt.outer.evaluate import Evaluation
from sciopt.outer.run import Ending, Run
from sciopt.solution import SolveError, Status

__all__ = ["ScipyLBFGSB", "ScipySLSQP", "drive_scipy"]


@final
@dataclass(frozen=True, kw_only=True)
class ScipyLBFGSB:
    """SciPy's L-BFGS-B: limited-memory quasi-Newton with a line search under bounds.

    The first choice for smooth deterministic outer losses without constraints. SciPy computes in float64 on the host;
    evaluations keep the dtype and device of the outer parameters.

    Args:
        memory: number of curvature pairs.
        ftol: SciPy's relative tolerance on the decrease of the loss.
        gtol: SciPy's tolerance on the largest entry of the projected gradient.
        max_line_search: evaluations in one line search.

    Example:
        >>> from sciopt import BilevelProblem, Minimize, optimize
        >>> inner = Minimize(lambda theta, phi: ((theta - phi) ** 2).sum())
        >>> problem = BilevelProblem(inner=inner, outer_loss=lambda theta, phi: ((theta - 3.0) ** 2).sum())
        >>> phi = torch.zeros(2, dtype=torch.float64)
        >>> optimize(problem, phi, init=phi, outer=ScipyLBFGSB(), bounds=(None, torch.tensor([2.0, 9.0]))).outer_params
        tensor([2.0000, 3.0000], dtype=torch.float64)

    References:
        Byrd, Lu, Nocedal, Zhu. "A limited memory algorithm for bound constrained optimization". SIAM J. Sci. Comput. 16,
        1995.
    """

    memory: int = 10
    ftol: float = 1e-12
    gtol: float = 1e-8
    max_line_search: int = 20

    def __post_init__(self) -> None:
        for name in ("memory", "max_line_search"):
            check_option(
                "ScipyLBFGSB", name, getattr(self, name), getattr(self, name) >= 1, ">= 1", "Leave the default."
            )
        for name in ("ftol", "gtol"):
            check_option(
                "ScipyLBFGSB", name, getattr(self, name), getattr(self, name) >= 0, ">= 0", "Leave the default."
            )


@final
@dataclass(frozen=True, kw_only=True)
class ScipySLSQP:
    """SciPy's SLSQP: sequential quadratic programming with ``inequality`` and ``equality`` constraints and bounds.

    For up to some hundred outer numbers: it keeps a dense matrix and solves a dense least-squares problem in every step.

    Args:
        ftol: SciPy's tolerance on the loss and on the constraint violation.

    Example:
        >>> from sciopt import BilevelProblem, Minimize, optimize
        >>> inner = Minimize(lambda theta, phi: ((theta - phi) ** 2).sum())
        >>> problem = BilevelProblem(inner=inner, outer_loss=lambda theta, phi: (theta**2).sum())
        >>> phi = torch.zeros(2, dtype=torch.float64)
        >>> one = lambda theta, phi: theta.sum()[None] - 1.0
        >>> optimize(problem, phi, init=phi, outer=ScipySLSQP(), equality=one).outer_params
        tensor([0.5000, 0.5000], dtype=torch.float64)

    References:
        Kraft. "A software package for sequential quadratic programming". DFVLR-FB 88-28, 1988.
    """

    ftol: float = 1e-10

    def __post_init__(self) -> None:
        check_option("ScipySLSQP", "ftol", self.ftol, self.ftol > 0, "> 0", "Leave the default.")


class _Stop(Exception):
    """Leaves SciPy's loop."""

    def __init__(self, ending: Ending) -> None:
        self.ending = ending


@dataclass(eq=False)
class _Answer:
    """What SciPy is told about a point, and what the history is told when it becomes an iterate."""

    x: Tensor
    value: float
    grad: Tensor
    constraints: Tensor
    constraint_grads: Tensor
    num_equalities: int
    numbers: dict[str, float]
    evaluation: Evaluation | None = field(default=None, repr=False)

    def entry(self) -> dict[str, Any]:
        """The plain form for a checkpoint."""
        return {k: v for k, v in vars(self).items() if k != "evaluation"}


class _Loop:
    """Answers SciPy; replays the answers of a checkpoint first, since SciPy's own state cannot be saved."""

    def __init__(self, run: Run, log: list[dict[str, Any]]) -> None:
        self.run = run
        self.log = [_Answer(**entry) for entry in log]
        self.cursor = 0
        self.here: _Answer | None = None  # at the last point asked for
        self.iterate: _Answer | None = None

    def at(self, x: Any) -> _Answer:
        point = self.run.clip(torch.as_tensor(x.copy()).to(self.run.point))
        if self.here is not None and torch.equal(self.here.x, point):
            return self.here
        if self.cursor < len(self.log):
            self.here = self.log[self.cursor]
            if not torch.equal(self.here.x, point):
                raise CheckpointError(
                    f"optimize: expected SciPy to ask for the points of the checkpoint, got another one at evaluation "
                    f"{self.cursor}. Use the SciPy version that wrote it, or delete it to start anew."
                )
        else:
            if self.run.save is not None:
                self.run.save(self.run, {"log": [answer.entry() for answer in self.log]}, self.cursor)
            self.here = self._ask(point)
            if self.run.save is not None:
                self.log.append(replace(self.here, evaluation=None))
                self.cursor += 1
            return self.here
        self.cursor += 1
        return self.here

    def _ask(self, point: Tensor) -> _Answer:
        ev = self.run.evaluate(point)
        numbers = self.run.numbers(ev, lagrangian_gradient(self.run, ev))
        if not numbers.pop("finite"):
            failed = solution_of(self.run.evaluator.hypergradient_at(ev, certificate=False))
            raise SolveError("hypergradient", failed)
        grad, constraints, slopes = (t.to("cpu", torch.float64) for t in (ev.grad, ev.constraints, ev.constraint_grads))
        return _Answer(point, numbers["value"], grad, constraints, slopes, ev.num_equalities, numbers, ev)

    def accept(self, x: Any) -> None:
        """Enter an iterate into the history; leave SciPy when the run is to stop."""
        answer = self.at(x)
        previous = self.iterate
        if previous is not None:
            if torch.equal(previous.x, answer.x):
                return
            self.run.step += 1
        moved = float("nan") if previous is None else float((answer.x - previous.x).abs().max())
        self.iterate = answer
        ending = self.run.enter({**answer.numbers, "step": self.run.step, "change": moved}, answer.evaluation)
        if ending is not None:
            raise _Stop(ending)


def drive_scipy(run: Run, method: ScipyLBFGSB | ScipySLSQP, log: list[dict[str, Any]]) -> Ending:
    """Run SciPy's method to its end; ``log`` holds the answers of an interrupted run."""
    loop = _Loop(run, log)
    try:
        ending = minimize(run, method, loop)
    except _Stop as stop:
        ending = stop.ending
    except SolveError as error:
        ending = Ending(error.solution.status, str(error), (error.what, error.solution))
    last = loop.iterate
    if last is not None:
        run.good = last.evaluation if last.evaluation is not None else run.evaluate(last.x)
    return ending


def minimize(run: Run, method: ScipyLBFGSB | ScipySLSQP, loop: _Loop) -> Ending:
    """Call SciPy and translate its outcome."""
    from scipy import optimize

    budget = run.stopping.max_steps + 1
    bounds = None
    if run.lower is not None and run.upper is not None:
        low, high = (b.to("cpu", torch.float64).tolist() for b in (run.lower, run.upper))
        bounds = list(zip(low, high, strict=True))
    x0 = run.point.to("cpu", torch.float64).numpy()
    loop.accept(x0)
    value, slope = (lambda x: loop.at(x).value), (lambda x: loop.at(x).grad.numpy())
    if isinstance(method, ScipyLBFGSB):
        options = {"maxcor": method.memory, "ftol": method.ftol, "gtol": method.gtol, "maxls": method.max_line_search}
        options |= {"maxiter": budget, "maxfun": 10**9}
        out = optimize.minimize(
            value, x0, jac=slope, method="L-BFGS-B", bounds=bounds, callback=loop.accept, options=options
        )
        status = {0: Status.CONVERGED, 1: Status.MAX_STEPS}.get(out.status, Status.STAGNATED)
    else:

        def slope_at_iterate(x: Any) -> Any:  # SLSQP asks for gradients at iterates, for values in between
            loop.accept(x)
            return slope(x)

        options = {"ftol": method.ftol, "maxiter": budget}
        out = optimize.minimize(
            value,
            x0,
            jac=slope_at_iterate,
            method="SLSQP",
            bounds=bounds,
            constraints=constraints_of(run, loop, x0),
            options=options,
        )
        known = {0: Status.CONVERGED, 4: Status.INFEASIBLE, 8: Status.STAGNATED, 9: Status.MAX_STEPS}
        status = known.get(out.status, Status.BREAKDOWN)
    loop.accept(out.x)
    if status in (Status.CONVERGED, Status.STAGNATED) and run.history["violation"][-1] > run.stopping.feasibility_atol:
        status = Status.INFEASIBLE
    return Ending(status, f"SciPy: {out.message}")


def constraints_of(run: Run, loop: _Loop, x0: Any) -> list[dict[str, Any]]:
    """The constraints in SciPy's form, which is feasible where >= 0."""
    first = loop.at(x0)
    count = first.constraints.numel() - first.num_equalities
    kinds = []
    for kind, sign, part in (("ineq", -1.0, slice(0, count)), ("eq", 1.0, slice(count, None))):
        if first.constraints[part].numel():
            kinds.append(
                {
                    "type": kind,
                    "fun": lambda x, s=sign, p=part: s * loop.at(x).constraints[p].numpy(),
                    "jac": lambda x, s=sign, p=part: s * loop.at(x).constraint_grads[p].numpy(),
                }
            )
    return kinds


def lagrangian_gradient(run: Run, evaluation: Evaluation) -> Tensor:
    """Projected gradient of the Lagrangian with the multipliers that make it smallest."""
    ev = evaluation
    if not ev.constraints.numel():
        return run.projected(ev.point, ev.grad)
    inequality = (
        torch.arange(ev.constraints.numel(), device=ev.grad.device) < ev.constraints.numel() - ev.num_equalities
    )
    size = ev.constraint_grads.abs().amax(-1)
    active = ~inequality | (ev.constraints > -1e-6 * (1 + size))
    free = torch.ones_like(ev.point, dtype=torch.bool)
    if run.lower is not None and run.upper is not None:
        free = (ev.point > run.lower) & (ev.point < run.upper)
    matrix = torch.where(active[:, None] & free, ev.constraint_grads, 0.0)
    multipliers = torch.linalg.pinv(matrix.mT) @ -(ev.grad * free)
    multipliers = torch.where(inequality, multipliers.clamp_min(0), multipliers)
    return run.projected(ev.point, ev.grad + multipliers @ torch.where(active[:, None], ev.constraint_grads, 0.0))
