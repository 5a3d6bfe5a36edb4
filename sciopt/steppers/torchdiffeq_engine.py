"""torchdiffeq as a stepper: the reference engine, with one step size for the whole batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, final

import torch
from torch import Tensor

from sciopt.checks import check_option, check_tolerances
from sciopt.problem.evolution import InitialValue
from sciopt.problem.system import Oracle, System
from sciopt.solution import Solution, Status
from sciopt.steppers.abstract import AbstractStepper
from sciopt.steppers.field import Field
from sciopt.transforms import carries_derivative, is_wrapped, top_level, under_transform

__all__ = ["Outcome", "TorchDiffEq", "TorchDiffEqMethod", "engine_options", "run_engine"]


class TorchDiffEqMethod(Enum):
    """The methods of torchdiffeq: adaptive ones first, then those of fixed step.

    Example:
        >>> TorchDiffEqMethod.RK4.fixed, TorchDiffEqMethod.DOPRI5.fixed
        (True, False)
    """

    DOPRI5 = "dopri5"
    DOPRI8 = "dopri8"
    BOSH3 = "bosh3"
    FEHLBERG2 = "fehlberg2"
    ADAPTIVE_HEUN = "adaptive_heun"
    EULER = "euler"
    MIDPOINT = "midpoint"
    RK4 = "rk4"
    IMPLICIT_ADAMS = "implicit_adams"

    @property
    def fixed(self) -> bool:
        """Whether the method takes equal steps."""
        return self in tuple(TorchDiffEqMethod)[5:]


@final
@dataclass(frozen=True, kw_only=True)
class TorchDiffEq(AbstractStepper):
    """Integrate with torchdiffeq: the engine to compare with, and its high-order and Adams methods.

    One step size for the whole batch, chosen by a norm over all of it: a hard problem slows the others down, and the others
    hide its error. `Tsit5` gives every problem its own. Differentiated by `Unrolled` (autograd through its steps, memory
    grows with them) or `TorchDiffEqAdjoint`. Its failures become a status, which all problems of the batch share; its
    output times are shared too. No events, no mass matrix, and no `torch.func`
    transforms but through `TorchDiffEqAdjoint`.

    Args:
        method: which of torchdiffeq's methods.
        rtol: relative tolerance of the local error; None: 1e-6 in float64, 1e-4 in float32.
        atol: absolute tolerance; None: 1e-9 in float64, 1e-6 in float32.
        max_steps: trial steps between two output times.
        first_step: length of the first step; None: chosen by torchdiffeq.
        num_steps: number of equal steps, for methods of fixed step, which need it.

    Raises:
        ValueError: for options out of range.

    Example:
        >>> from sciopt import InitialValue, best_response
        >>> growth = InitialValue(lambda t, y, rate: rate * y, times=torch.tensor([0.0, 1.0], dtype=torch.float64))
        >>> one = torch.ones((), dtype=torch.float64)
        >>> f"{best_response(growth, one, init=one, solver=TorchDiffEq(rtol=1e-8)).value[-1].item():.6f}"
        '2.718282'

    References:
        Chen. "torchdiffeq". https://github.com/rtqichen/torchdiffeq. Chen et al. "Neural ordinary differential equations".
        NeurIPS 2018.
    """

    method: TorchDiffEqMethod = TorchDiffEqMethod.DOPRI5
    rtol: float | None = None
    atol: float | None = None
    max_steps: int = 100_000
    first_step: float | None = None
    num_steps: int | None = None

    def __post_init__(self) -> None:
        known = isinstance(self.method, TorchDiffEqMethod)
        check_option("TorchDiffEq", "method", self.method, known, "a TorchDiffEqMethod", "Pass a member of it.")
        check_tolerances("TorchDiffEq", self.rtol, 0.0 if self.atol is None else self.atol, self.max_steps)
        first, count = self.first_step, self.num_steps
        check_option("TorchDiffEq", "first_step", first, first is None or first > 0, "> 0 or None", "Leave it out.")
        fits = (count is not None) == self.method.fixed and (count is None or (isinstance(count, int) and count >= 1))
        what = "an int >= 1 with methods of fixed step, None with others"
        check_option("TorchDiffEq", "num_steps", count, fits, what, "Give the number of equal steps, or use DOPRI5.")

    def solve(self, oracle: Oracle, x: Tensor) -> Solution:
        lean = not under_transform() and not any(is_wrapped(c) for c in oracle.system.captured)
        field = Field(oracle.system, oracle.args, lean=lean)
        with torch.set_grad_enabled(oracle.differentiable and torch.is_grad_enabled()):
            return run_engine(self, field, x, odeint()).solution(x)


def odeint() -> Callable[..., Any]:
    """torchdiffeq's entry, imported when it is first needed."""
    from torchdiffeq import odeint

    return odeint


def engine_options(solver: TorchDiffEq, dtype: torch.dtype, span: float) -> tuple[float, float, dict[str, Any]]:
    """``(rtol, atol, options)`` as torchdiffeq takes them."""
    double = dtype == torch.float64
    rtol = (1e-6 if double else 1e-4) if solver.rtol is None else solver.rtol
    atol = (1e-9 if double else 1e-6) if solver.atol is None else solver.atol
    if solver.num_steps is not None:
        return rtol, atol, {"step_size": span / solver.num_steps, "interp": "cubic"}
    options: dict[str, Any] = {"max_num_steps": solver.max_steps}
    if solver.first_step is not None:
        options["first_step"] = solver.first_step
    return rtol, atol, options


@dataclass(eq=False)
class Outcome:
    """What a run of torchdiffeq left: outputs or the last state, and counts."""

    field: Field
    planes: Tensor
    status: Status = Status.CONVERGED
    evaluations: int = 0
    steps: int = 0
    rejected: int = 0

    def solution(self, x: Tensor) -> Solution:
        """The solution on the batch ``x`` ``(*batch, n)`` started from."""
        shape = x.shape[:-1]
        value = self.planes.reshape(len(self.planes), *x.shape)
        code = torch.full(shape, int(self.status), device=x.device)
        good = torch.isfinite(value.detach()).all(-1).all(0)
        value = torch.where(good.unsqueeze(-1), value, x)
        code = torch.where(good | (code != int(Status.CONVERGED)), code, int(Status.NONFINITE))
        count = {"rejected": self.rejected, "evaluations": self.evaluations}
        aux: dict[str, Any] = {k: torch.full(shape, v, device=x.device) for k, v in count.items()}
        if self.status == Status.STAGNATED:
            aux["advice"] = (
                "torchdiffeq's step has shrunk to nothing: the system is stiff, discontinuous, or the tolerance too tight. "
                "Use an implicit stepper (Kvaerno5, Rodas5P), or loosen rtol."
            )
        norm = torch.zeros(shape, dtype=x.dtype, device=x.device)
        return Solution(
            value=value,
            status_code=code,
            residual_norm=norm,
            num_steps=torch.full(shape, self.steps, device=x.device),
            aux=aux,
        )


def check_supported(system: System) -> InitialValue:
    """Refuse what torchdiffeq's interface cannot say."""
    problem = system.problem
    assert isinstance(problem, InitialValue)
    times = problem.times
    trouble = (
        (times.ndim > 1, "output times shared by all problems", f"times of shape {tuple(times.shape)}"),
        (carries_derivative(times), "`times` without a derivative", "some with one"),
        (problem.event is not None, "no `event`", "one"),
        (problem.mass is not None, "no `mass`", "one"),
        (top_level() > 0, "a call outside torch.func transforms", "one inside"),
    )
    for wrong, what, got in trouble:
        if wrong:
            raise TypeError(
                f"TorchDiffEq: expected {what}, got {got}. Use one of the project's steppers, such as Tsit5."
            )
    return problem


def run_engine(solver: TorchDiffEq, field: Field, x: Tensor, entry: Callable[..., Any], **options: Any) -> Outcome:
    """All output times by torchdiffeq; ``entry`` is its ``odeint`` or ``odeint_adjoint`` (with ``options`` of its own)."""
    problem = check_supported(field.system)
    y0 = x.reshape(field.rows, field.size)
    times, places = torch.unique_consecutive(problem.times.detach(), return_inverse=True)
    run = Counted(field, y0)
    if not solver.method.fixed:  # torchdiffeq warns where it would not call it
        run.callback_reject_step = run.count_rejected
    if len(times) == 1:
        return Outcome(field, y0.expand(len(places), *y0.shape))
    span = float((times[-1] - times[0]).abs())
    rtol, atol, chosen = engine_options(solver, y0.dtype, span)
    found = Outcome(field, y0)
    try:
        planes = entry(
            run, y0, times.to(y0.dtype), rtol=rtol, atol=atol, method=solver.method.value, options=chosen, **options
        )
        found.planes = planes[places]
    except AssertionError as error:
        found.status = run.verdict(str(error))
        found.planes = torch.cat([y0.unsqueeze(0), run.last.expand(len(places) - 1, *y0.shape)])
    found.evaluations, found.steps, found.rejected = run.evaluations, run.tries - run.rejected, run.rejected
    return found


class Counted:
    """The right-hand side as torchdiffeq calls it, which counts and remembers the last state."""

    callback_reject_step: Callable[..., None]

    def __init__(self, field: Field, y0: Tensor) -> None:
        self.field, self.last, self.size = field, y0, None
        self.evaluations = self.tries = self.rejected = 0

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        self.evaluations += 1
        return self.field(t.to(y.dtype).expand(self.field.rows), y)

    def callback_step(self, t0: Tensor, y0: Tensor, dt: Tensor) -> None:
        self.last, self.size = y0, dt
        self.tries += 1

    def count_rejected(self, t0: Tensor, y0: Tensor, dt: Tensor) -> None:
        """One more trial step was not accepted."""
        self.rejected += 1

    def verdict(self, message: str) -> Status:
        """The status behind one of torchdiffeq's assertions."""
        if "max_num_steps" in message:
            return Status.MAX_STEPS
        if "underflow" in message:  # a step that is not finite is replaced by its smallest step, none
            return Status.NONFINITE if self.size is not None and float(self.size) == 0 else Status.STAGNATED
        if "non-finite" in message:
            return Status.NONFINITE
        raise AssertionError(message)
