"""Steps in compiled code are the eager ones: values, gradients, verdicts; and a machine without a compiler does without."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from sciopt import InitialValue, Solution, Status, best_response
from sciopt.domains.implicit import NeuralODE
from sciopt.params import ravel
from sciopt.problem.system import System
from sciopt.steppers import Bosh3, Dopri5, Tsit5, native_library
from sciopt.steppers.control import Controller, Progress
from sciopt.steppers.field import Field
from sciopt.steppers.native_step import native_for
from tests.helpers import randn
from tests.steppers.cases import F64

found, note = native_library.library()
needs_compiler = pytest.mark.skipif(found is None, reason=f"compiled steps: {note}")
each = pytest.mark.parametrize("kind", [Tsit5, Dopri5, Bosh3], ids=lambda kind: kind.__name__)
Method = Tsit5 | Dopri5 | Bosh3


def both(solver: Method, solve: Callable[[Method], Any]) -> tuple[Any, Any]:
    """The same by eager steps and by compiled ones."""
    return solve(solver), solve(dataclasses.replace(solver, compiled=True))


def swing(t: Tensor, y: Tensor, rate: Tensor) -> Tensor:
    """Damped oscillators of different speeds, pushed."""
    speed = rate * torch.linspace(1, 6, len(y), dtype=y.dtype).unsqueeze(-1)
    x, v = y[:, :1], y[:, 1:]
    return torch.cat([speed * v, torch.cos(t) - speed * x - 0.3 * v], -1)


def start(dtype: torch.dtype = F64) -> Tensor:
    return torch.stack([torch.linspace(-1, 1, 7, dtype=dtype), torch.linspace(0.5, -2, 7, dtype=dtype)], -1)


@needs_compiler
@each
@pytest.mark.parametrize(
    "times", [[0.0, 1.5], [0.0, 0.4, 0.4, 1.0, 1.5], [2.0, 1.5, 0.5]], ids=["end", "course", "back"]
)
def test_values_and_gradients_are_the_eager_ones(kind: type[Method], times: list[float]) -> None:
    rate = torch.tensor(1.3, dtype=F64, requires_grad=True)
    y0 = start().requires_grad_()
    problem = InitialValue(swing, torch.tensor(times, dtype=F64), batch_ndim=1)

    def solve(solver: Method) -> tuple[Solution, tuple[Tensor, ...]]:
        solution = best_response(problem, rate, init=y0, solver=solver)
        return solution, torch.autograd.grad(solution.value.square().sum(), [y0, rate])

    (a, da), (b, db) = both(kind(rtol=1e-6, atol=1e-8), solve)
    assert b.aux["compiled"].startswith("compiled by") and "compiled" not in a.aux
    assert torch.equal(a.num_steps, b.num_steps) and torch.equal(a.aux["rejected"], b.aux["rejected"])
    assert torch.equal(a.aux["evaluations"], b.aux["evaluations"])
    # steps are chosen by error estimates that rounding has a part in: they differ by far less than the tolerance
    for x, y in zip((a.value, *da), (b.value, *db), strict=True):
        assert_close(y, x, rtol=0, atol=2e-12 * float(x.detach().abs().max()))


@needs_compiler
@each
def test_one_step_equals_the_eager_one_to_rounding(kind: type[Method], generator: torch.Generator) -> None:
    """All that a step changes, accepted or not, from states in the middle of a run."""
    solver, rate = kind(rtol=1e-5, atol=1e-6), torch.tensor(1.3, dtype=F64)
    layout, y = ravel(randn(7, 2, generator=generator), 1)
    problem = InitialValue(swing, torch.tensor([0.0, 9.0], dtype=F64), batch_ndim=1)
    field = Field(System(problem=problem, layout=layout, outer_spec=layout.spec, num_outer=1), [rate], lean=True)
    t, h = torch.rand(7, generator=generator, dtype=F64), torch.logspace(-2, 0, 7, dtype=F64)
    end = torch.full((7,), 9.0, dtype=F64)
    control = Controller.of(solver, y, end)
    memory = 0.5 + torch.rand(7, generator=generator, dtype=F64)
    now = Progress(t, end - t, h, y, field(t, y), memory, torch.zeros_like(t))
    with torch.no_grad():
        trial = solver.attempt(field, now.t, now.h, now.y, now.start)
        assert trial.error is not None
        a, accept = control.advance(now, end, trial.y, trial.error, None, trial.end)
        dense = trial.dense[0].clone()
        step, _ = native_for(dataclasses.replace(solver, compiled=True), field, control, y, end)
        assert step is not None
        count = torch.zeros(7, dtype=torch.int64)
        b, accepted, running, other = step.step(field, now._replace(memory=memory.log()), end, count)
    assert 0 < int(accept.sum()) < 7 and running == 7
    assert torch.equal(accepted, accept) and torch.equal(count, accept.long())
    b = b._replace(memory=b.memory.exp())
    exact = ((a.t, b.t), (a.left, b.left), (a.y, b.y), (a.start, b.start), (trial.y, other.y), (dense, other.dense[0]))
    for x, z in exact:
        assert x is not None and z is not None
        assert_close(z, x, rtol=0, atol=1e-14 * float(x.abs().max()))
    for x, z in ((a.h, b.h), (a.memory, b.memory), (a.ratio, b.ratio)):  # of a difference of nearly equal numbers
        assert_close(z, x, rtol=1e-6, atol=0)


@needs_compiler
def test_a_network_whose_rows_end_apart(generator: torch.Generator) -> None:
    """Rows are dropped, times differ row by row and in direction, the state is a tree, the field a module."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    z0, speed = randn(40, 3, generator=generator), torch.logspace(0, 1.5, 40, dtype=F64).unsqueeze(-1)

    def solve(solver: Method) -> tuple[Tensor, ...]:
        z = NeuralODE(lambda t, z, s: s * net(z) * torch.cos(t), solver=solver)(z0, None, speed)
        return z.detach(), *torch.autograd.grad(z.square().sum(), list(net.parameters()))

    for a, b in zip(*both(Tsit5(rtol=1e-6), solve), strict=True):
        assert_close(b, a, rtol=1e-12, atol=1e-13 * float(a.abs().max()))

    def tree(t: Tensor, y: dict[str, Tensor], phi: Tensor) -> dict[str, Tensor]:
        return {"a": phi * y["b"], "b": -y["a"].sum(-1, keepdim=True).expand(2, 2).flip(-1) * t}

    init = {"a": randn(2, 2, generator=generator), "b": randn(2, 2, generator=generator)}
    times = torch.tensor([[0.0, 1.0], [1.0, -0.5]], dtype=F64)
    problem = InitialValue(tree, times, batch_ndim=1)
    one = torch.ones((), dtype=F64)
    a, b = both(Dopri5(), lambda solver: best_response(problem, one, init=init, solver=solver).value)
    for name in a:
        assert_close(b[name], a[name], rtol=1e-13, atol=1e-14)


@needs_compiler
def test_an_event_ends_a_fall() -> None:
    g = torch.tensor(9.81, dtype=F64, requires_grad=True)
    times = torch.tensor([0.0, 1.0, 10.0], dtype=F64)
    fall = InitialValue(lambda t, y, g: torch.stack([y[1], -g]), times, event=lambda t, y, g: y[0])
    init = torch.tensor([20.0, 0.0], dtype=F64)
    time = best_response(fall, g, init=init, solver=Tsit5(compiled=True)).aux["event_time"]
    assert_close(time, (2 * 20 / g).sqrt(), rtol=1e-12, atol=0)
    assert_close(torch.autograd.grad(time, g)[0], -time.detach() / (2 * g.detach()), rtol=1e-11, atol=0)


@needs_compiler
@each
def test_failures_are_the_same_and_single_precision_serves(kind: type[Method]) -> None:
    """A row that explodes, one whose slope is not a number, one that does nothing; a spent budget; float32."""

    def hard(t: Tensor, y: Tensor, phi: Tensor) -> Tensor:
        row = torch.arange(len(y)).unsqueeze(-1)
        wild = torch.where(y > 3.0, torch.nan, torch.ones_like(y))
        return torch.where(row == 0, y**2, torch.where(row == 1, wild, torch.where(row == 2, 0.0 * y, -y))) * phi

    times = torch.tensor([0.0, 5.0], dtype=F64)
    one = torch.ones((), dtype=F64)
    problem = InitialValue(hard, times, batch_ndim=1)
    init = torch.ones(4, 1, dtype=F64)
    loose = kind(rtol=1e-3, atol=1e-4)
    a, b = both(loose, lambda solver: best_response(problem, one, init=init, solver=solver, throw=False))
    walls = (int(Status.NONFINITE), int(Status.STAGNATED))  # rounding decides from which side the wall is met last
    assert [int(s.status_code[k]) for s in (a, b) for k in (0, 2, 3)] == [int(a.status_code[0]), 0, 0] * 2
    assert int(a.status_code[0]) != 0 and int(a.status_code[1]) in walls and int(b.status_code[1]) in walls
    assert_close(b.value[-1, 2:], a.value[-1, 2:], rtol=1e-14, atol=0)
    few = best_response(problem, one, init=init, solver=kind(max_steps=5, compiled=True), throw=False)
    assert few.status is Status.MAX_STEPS and int((few.num_steps + few.aux["rejected"]).max()) == 5

    y0 = start(torch.float32)
    problem = InitialValue(swing, torch.tensor([0.0, 2.0]), batch_ndim=1)
    a, b = both(kind(), lambda solver: best_response(problem, torch.ones(()), init=y0, solver=solver).value)
    assert b.dtype == torch.float32
    assert_close(b, a, rtol=0, atol=2e-5)


@needs_compiler
def test_under_transforms_the_steps_are_eager() -> None:
    problem = InitialValue(lambda t, y, rate: -rate * y, torch.tensor([0.0, 1.0], dtype=F64))
    solver = Tsit5(rtol=1e-9, compiled=True)
    rates = torch.tensor([0.5, 2.0], dtype=F64)

    def last(rate: Tensor) -> Tensor:
        return best_response(problem, rate, init=torch.ones((), dtype=F64), solver=solver).value[-1]

    assert_close(torch.vmap(last)(rates), torch.exp(-rates), rtol=1e-8, atol=0)
    assert_close(torch.func.grad(last)(rates[0]), -torch.exp(-rates[0]), rtol=1e-7, atol=0)
    assert_close(torch.func.hessian(last)(rates[1]), torch.exp(-rates[1]), rtol=1e-6, atol=0)
    assert pickle.loads(pickle.dumps(solver)) == solver


def test_no_compiler_is_no_obstacle(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    native_library.library.cache_clear()
    try:
        problem = InitialValue(lambda t, y, rate: -rate * y, torch.tensor([0.0, 1.0], dtype=F64))
        one = torch.ones((), dtype=F64)
        solution = best_response(problem, one, init=one, solver=Tsit5(compiled=True))
        assert solution.aux["compiled"].startswith("eager: no C compiler found")
        assert_close(solution.value[-1], torch.exp(-one), rtol=1e-5, atol=0)
        monkeypatch.setattr("shutil.which", lambda name: "/bin/false")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        native_library.library.cache_clear()
        solution = best_response(problem, one, init=one, solver=Tsit5(compiled=True))
        assert solution.aux["compiled"].startswith("eager: /bin/false failed")
        equal = best_response(problem, one, init=one, solver=Tsit5(num_steps=5, compiled=True))
        assert equal.aux["compiled"] == "eager: equal steps are not compiled"
    finally:
        monkeypatch.undo()
        native_library.library.cache_clear()
