"""`best_response`: theta*(phi), attached to autograd by the method the caller names."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch.utils import _pytree as pytree

from sciopt.checks import check_finite, check_tree
from sciopt.hypergradients.abstract import AbstractHypergradient, Record, Request
from sciopt.hypergradients.auto import Auto
from sciopt.inner.abstract import AbstractSolver
from sciopt.params import ravel
from sciopt.problem import (
    AbstractProblem,
    Constrained,
    Eigen,
    FixedPoint,
    InitialValue,
    LeastSquares,
    Minimize,
    QuadraticProgram,
    Recurrence,
    RootFind,
)
from sciopt.problem.captures import find_captures
from sciopt.problem.system import System
from sciopt.solution import Solution
from sciopt.steppers.field import Field
from sciopt.transforms import plain, under_transform

__all__ = ["best_response", "respond"]


def best_response(
    problem: AbstractProblem,
    outer_params: Any,
    *,
    init: Any,
    solver: AbstractSolver | None = None,
    hypergradient: AbstractHypergradient | None = None,
    throw: bool = True,
) -> Solution:
    """The inner solution ``theta*(phi)``, differentiable in ``phi``: the entry on which everything stands.

    Compose it with losses, other calls of itself, and `torch.func` transforms (grad, vjp, jvp, vmap, jacrev, jacfwd, second
    order in every mix but forward over forward). Problems carry a leading ``*batch`` shape (``problem.batch_ndim``), with
    one status each.

    Args:
        problem: what is solved; its functions take ``(inner_params, outer_params)``.
        outer_params: phi, a floating-point tensor or (nested) dict of tensors of one dtype and device.
        init: start of the inner solve, a tensor or tree with the structure, shapes ``(*batch, ...)``, dtype and device of
            theta.
        solver: how theta* is found; None: L-BFGS for minima, Newton for equations, Tsit5 for `InitialValue` (not needed by
            `Recurrence` and `ClosedForm`).
        hypergradient: how it is differentiated; None: `Auto`.
        throw: raise `SolveError` when a solve fails (inner, or adjoint during the backward pass), else return the `Solution`
            with its status (and warn about the adjoint).

    Returns:
        `Solution`; ``value`` has the structure of ``init``. Multipliers of `Constrained` are in ``aux``.

    Raises:
        TypeError: for leaves that are no floating-point tensors, of mixed dtype or device, for a solver that does not
            solve this class of problem, and for captured tensors that cannot be lifted.
        ValueError: for NaN or Inf in the inputs, or functions that return wrong shapes.
        SolveError: with ``throw``, when a solve fails.

    Example:
        >>> from sciopt import Minimize
        >>> from sciopt.inner import LBFGS
        >>> from sciopt.hypergradients import Implicit
        >>> ridge = Minimize(lambda theta, phi: ((theta - 1.0) ** 2).sum() + (phi.exp() * theta**2).sum())
        >>> phi = torch.zeros(3, dtype=torch.float64, requires_grad=True)
        >>> sol = best_response(ridge, phi, init=torch.zeros_like(phi), solver=LBFGS(), hypergradient=Implicit())
        >>> sol.value.sum().backward()
        >>> phi.grad
        tensor([-0.2500, -0.2500, -0.2500], dtype=torch.float64)
    """
    return respond(problem, outer_params, init, solver, hypergradient, throw, Record())


def respond(
    problem: AbstractProblem,
    outer_params: Any,
    init: Any,
    solver: AbstractSolver | None,
    hypergradient: AbstractHypergradient | None,
    throw: bool,
    record: Record,
) -> Solution:
    """`best_response` with a record of what happened."""
    solver, method = resolve(problem, solver, hypergradient)
    owner = "best_response"
    if isinstance(problem, InitialValue):
        problem = problem.settled()
    check_recording(owner)
    outer_leaves = check_tree(owner, "outer_params", outer_params)
    if outer_leaves[0].dtype not in (torch.float32, torch.float64):
        raise TypeError(
            f"best_response: expected `outer_params` and `init` in float32 or float64, got {outer_leaves[0].dtype}. Convert "
            "them; keep lower precision for the inside of the losses."
        )
    init_leaves = check_tree(owner, "init", init, like=outer_leaves[0])
    check_finite(owner, "outer_params", outer_leaves)
    check_finite(owner, "init", init_leaves)
    check_batch(problem, init_leaves)
    layout, x0 = ravel(problem.start(init, outer_params), problem.batch_ndim)
    if isinstance(problem, InitialValue):
        problem.check(layout.batch_shape, layout.size)
    x0 = x0.clone()  # so that neither the value nor the graph shares memory with the caller's `init`
    leaves, spec = pytree.tree_flatten(outer_params)
    system = System(problem=problem, layout=layout, outer_spec=spec, num_outer=len(leaves))
    if isinstance(method, Auto):  # before captures are looked for, which not every method needs
        method, reason = method.choose(problem, x0.numel(), x0.element_size())
        record.notes.append(reason)
    captured: tuple[torch.Tensor, ...] = ()
    asked: list[tuple[torch.Tensor, ...]] = []
    if method.needs_captures or isinstance(problem, InitialValue):
        captured, asked = captures_of(system, x0, leaves)
    system = replace(system, captured=captured, asked=asked)
    request = Request(system, solver, throw, record)
    record.request, record.args = request, (*leaves, *captured)
    solution = method.respond(request, x0, record.args)
    value, aux = problem.finish(layout.unflatten(solution.value))
    if record.notes and not under_transform():  # vmap returns tensors only
        aux["method"] = record.notes[0]
    return Solution(
        value=value,
        status_code=solution.status_code,
        residual_norm=solution.residual_norm,
        num_steps=solution.num_steps,
        state=solution.state,
        aux={**solution.aux, **aux},
    )


def check_recording(owner: str) -> None:
    """Refuse inference mode, in which nothing can be differentiated, inner gradients included."""
    if torch.is_inference_mode_enabled():
        raise RuntimeError(
            f"{owner}: expected a call outside torch.inference_mode(), got one inside, where inner gradients cannot be taken. "
            "Use torch.no_grad() instead."
        )


def resolve(
    problem: AbstractProblem, solver: AbstractSolver | None, hypergradient: AbstractHypergradient | None
) -> tuple[Any, AbstractHypergradient]:
    """Check the strategies and fill in the defaults."""
    for name, value, kind, advice in (
        ("problem", problem, AbstractProblem, "Pass one of Minimize, FixedPoint, RootFind, LeastSquares, ..."),
        ("solver", solver, AbstractSolver, "Pass an object of sciopt.inner, for example LBFGS()."),
        ("hypergradient", hypergradient, AbstractHypergradient, "Pass an object such as Implicit(), not its class."),
    ):
        if value is None and name != "problem":
            continue
        if not isinstance(value, kind):
            raise TypeError(f"best_response: expected `{name}` to be a {kind.__name__}, got {value!r}. {advice}")
    method = Auto() if hypergradient is None else hypergradient
    if isinstance(problem, Recurrence):
        return solver, method
    chosen = default_solver(problem) if solver is None else solver
    chosen.check(problem)
    return chosen, method


def default_solver(problem: AbstractProblem) -> AbstractSolver:
    """The inner solver used when none is named."""
    from sciopt.inner import LBFGS, ConstrainedNewton, EigenSolve, InteriorPoint, Newton, ProximalGradient
    from sciopt.steppers import Tsit5

    if isinstance(problem, Minimize):
        return LBFGS() if problem.smooth else ProximalGradient()
    if isinstance(problem, LeastSquares):
        return LBFGS()
    if isinstance(problem, Constrained):
        return ConstrainedNewton()
    if isinstance(problem, QuadraticProgram):
        return InteriorPoint()
    if isinstance(problem, Eigen):
        return EigenSolve()
    if isinstance(problem, InitialValue):
        return Tsit5()
    assert isinstance(problem, (FixedPoint, RootFind))
    return Newton()


def check_batch(problem: AbstractProblem, leaves: list[torch.Tensor]) -> None:
    """Every leaf must carry the same batch dimensions."""
    ndim = problem.batch_ndim
    shapes = {tuple(leaf.shape[:ndim]) if leaf.ndim >= ndim else None for leaf in leaves}
    if len(shapes) != 1 or None in shapes:
        raise ValueError(
            f"best_response: expected every leaf of `init` to have the same {ndim} leading batch dimensions, got shapes "
            f"{[tuple(leaf.shape) for leaf in leaves]}. Add the batch dimension, or set `batch_ndim` of the problem."
        )


def captures_of(
    system: System, x0: torch.Tensor, leaves: list[torch.Tensor]
) -> tuple[tuple[torch.Tensor, ...], list[tuple[torch.Tensor, ...]]]:
    """Captured tensors with derivatives that the problem's functions use; and the residual at the start, if it was asked."""
    problem = system.problem

    def probe(x: torch.Tensor, *args: torch.Tensor) -> Any:
        inner, outer = system.layout.unflatten(x), system.outer(args)
        if isinstance(problem, Recurrence):
            return problem.at(inner, outer, 0) if problem.num_steps else inner
        if isinstance(problem, InitialValue):
            return probe_field(Field(system, args), x)
        if isinstance(problem, (Minimize, LeastSquares)):
            value = problem.objective(inner, outer)
            moved = problem.project(inner, 1.0, outer) if isinstance(problem, Minimize) else inner
            return value, moved
        return problem.optimality(inner, outer)

    before = rng_states(x0)
    captured, out = find_captures(type(problem).__name__, probe, [plain(x0), *(plain(leaf) for leaf in leaves)])
    if any(not torch.equal(a, b) for a, b in zip(before, rng_states(x0), strict=True)):
        raise ValueError(
            f"{type(problem).__name__}: expected inner functions that return the same for the same arguments, got one that "
            "draws random numbers (dropout, noise, sampling). Put modules in eval mode, draw the numbers outside and pass "
            "them in, or use Unrolled() without `checkpoints`."
        )
    if isinstance(problem, (FixedPoint, RootFind)) and not under_transform():
        return captured, [(system.layout.flatten(out).detach(), x0, *leaves)]
    return captured, []


def probe_field(field: Field, x: torch.Tensor) -> Any:
    """Everything that integration asks of an `InitialValue`, once."""
    problem = field.problem
    y = x.reshape(field.rows, field.size)
    times = field.times(y)
    seen = [field(times[0], y), times]
    if problem.event is not None:
        seen.append(field.event(times[0], y))
    if problem.jacobian is not None:
        seen.append(field.jacobian(times[0], y))
    return seen if problem.mass is None else [*seen, problem.mass * 1]


def rng_states(like: torch.Tensor) -> list[torch.Tensor]:
    """States of the global generators that a function of this tensor may draw from."""
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(like.device)] if like.is_cuda else states
