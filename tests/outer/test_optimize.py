"""`optimize` with torch optimizers and design steps reaches optima that are known in closed form."""

from __future__ import annotations

import math
import pickle
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from sciopt import BilevelProblem, Minimize, SolveError, Status, optimize
from sciopt.hypergradients import Implicit, Unrolled
from sciopt.inner import LBFGS, GradientDescent
from sciopt.outer import MMA, DecreasingTolerance, OptimalityCriteria, OptimizeError, StepRecord
from tests.outer.problems import F64, follower, shrinkage

DATA = torch.tensor([2.0, -3.0, 1.5], dtype=F64)
TARGETS = torch.tensor([1.0, -1.0, 0.3], dtype=F64)
ADAM = partial(torch.optim.Adam, lr=0.3, betas=(0.8, 0.99))
TORCH_LBFGS = partial(
    torch.optim.LBFGS, lr=1.0, max_iter=5, line_search_fn="strong_wolfe", tolerance_change=0.0, tolerance_grad=1e-10
)


@pytest.mark.parametrize(("outer", "steps"), [(ADAM, 200), (TORCH_LBFGS, 20)], ids=["Adam", "LBFGS"])
def test_torch_optimizers_reach_the_closed_form_optimum(outer: Any, steps: int) -> None:
    problem, optimum = shrinkage(TARGETS, DATA)
    start = torch.zeros(3, dtype=F64)
    result = optimize(problem, start, init=torch.zeros(3, dtype=F64), outer=outer, max_steps=steps, atol=1e-7)
    assert result.status is Status.CONVERGED, result.message
    torch.testing.assert_close(result.outer_params, optimum, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(result.inner_params, TARGETS, rtol=1e-6, atol=1e-6)
    assert torch.equal(start, torch.zeros(3, dtype=F64))
    assert {len(column) for column in result.history.values()} == {result.num_steps + 1}
    assert result.history["value"][-1] == result.value < 1e-12
    assert "history" not in repr(result) and len(repr(result)) < 500  # fits on the screen
    assert result.hypergradient is not None and result.hypergradient.certificate is not None
    assert result.hypergradient.error_bound < 1e-6


def test_a_tree_of_outer_params_equals_the_flat_run() -> None:
    problem, _ = shrinkage(TARGETS, DATA)

    def joined(theta: Tensor, phi: dict[str, Tensor]) -> Tensor:
        return problem.inner.objective(theta, torch.cat([phi["a"].reshape(-1), phi["b"]]))

    tree = BilevelProblem(inner=Minimize(joined), outer_loss=problem.outer_loss)
    init = torch.zeros(3, dtype=F64)
    phi = {"a": torch.zeros((), dtype=F64), "b": torch.zeros(2, dtype=F64)}
    one = optimize(problem, torch.zeros(3, dtype=F64), init=init, outer=ADAM, max_steps=20)
    two = optimize(tree, phi, init=init, outer=ADAM, max_steps=20)
    assert two.outer_params["a"].shape == ()
    both = torch.cat([two.outer_params["a"].reshape(-1), two.outer_params["b"]])
    torch.testing.assert_close(both, one.outer_params, rtol=1e-10, atol=1e-10)
    assert one.status is Status.MAX_STEPS and one.num_steps == 20


def test_float32_follows_the_input() -> None:
    problem, optimum = shrinkage(TARGETS.float(), DATA.float())
    result = optimize(problem, torch.zeros(3), init=torch.zeros(3), outer=ADAM, max_steps=60)
    assert result.outer_params.dtype == torch.float32
    torch.testing.assert_close(result.outer_params, optimum, rtol=1e-3, atol=1e-3)


def test_a_batch_of_tasks_shares_its_outer_params() -> None:
    data = torch.stack([DATA, DATA + 0.5, DATA - 0.25])
    inner = Minimize(
        lambda theta, phi: 0.5 * ((theta - data) ** 2).sum(-1) + 0.5 * (phi.exp() * theta**2).sum(-1), batch_ndim=1
    )
    problem = BilevelProblem(inner=inner, outer_loss=lambda theta, phi: ((theta - TARGETS) ** 2).sum(-1))
    init = torch.zeros(3, 3, dtype=F64)
    result = optimize(problem, torch.zeros(3, dtype=F64), init=init, outer=TORCH_LBFGS, max_steps=20, atol=1e-7)
    scale = data.square().sum(0) / (data * TARGETS).sum(0)  # least squares of data / (1 + e^phi) against the targets
    torch.testing.assert_close(result.outer_params, (scale - 1).log(), rtol=1e-5, atol=1e-5)
    assert result.inner_params.shape == (3, 3)


def test_bounds_clip_a_torch_optimizer_and_stop_it_there() -> None:
    problem, optimum = shrinkage(TARGETS, DATA)
    upper = torch.tensor([10.0, 0.5, 10.0], dtype=F64)
    phi, init = torch.zeros(3, dtype=F64), torch.zeros(3, dtype=F64)
    result = optimize(problem, phi, init=init, outer=ADAM, bounds=(None, upper), max_steps=200, atol=1e-7)
    assert result.status is Status.CONVERGED  # the gradient that the bound holds back does not count
    torch.testing.assert_close(result.outer_params, torch.minimum(optimum, upper), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("outer", [OptimalityCriteria(move=0.5), MMA()], ids=["OC", "MMA"])
def test_design_steps_meet_the_resource_bound(outer: Any) -> None:
    weights = torch.tensor([4.0, 1.0, 9.0], dtype=F64)
    used = []

    def volume(theta: Tensor, phi: Tensor) -> Tensor:
        used.append(1)
        return phi.sum()[None] - 3.0

    result = optimize(
        follower(weights),
        torch.ones(3, dtype=F64),
        init=torch.ones(3, dtype=F64),
        outer=outer,
        bounds=(1e-3, 5.0),
        inequality=volume,
        max_steps=60,
        change_atol=1e-9,
    )
    root = weights.sqrt()
    assert result.status is Status.CONVERGED, result.message
    torch.testing.assert_close(result.outer_params, 3.0 * root / root.sum(), rtol=1e-6, atol=0)
    assert result.history["violation"][-1] <= 1e-8
    assert result.history["grad_norm"][-1] < 1e-5 * result.history["grad_norm"][0] + 1e-5
    assert len(used) == result.num_steps + 1  # one evaluation for each step


def test_constraints_through_the_inner_solution_are_differentiated() -> None:
    weights = torch.tensor([4.0, 1.0, 9.0], dtype=F64)
    result = optimize(
        follower(weights),
        torch.ones(3, dtype=F64),
        init=torch.ones(3, dtype=F64),
        outer=MMA(),
        bounds=(1e-3, 5.0),
        inequality=lambda theta, phi: torch.stack([theta.sum() - 3.0, theta[2] - 1.2]),
        max_steps=80,
        change_atol=1e-9,
    )
    rest = 1.8 * torch.tensor([2.0, 1.0], dtype=F64) / 3.0
    torch.testing.assert_close(result.outer_params, torch.cat([rest, rest.new_tensor([1.2])]), rtol=1e-6, atol=0)


def test_warm_start_saves_inner_steps_and_changes_nothing_else() -> None:
    problem, _ = shrinkage(TARGETS, DATA)
    runs = [
        optimize(
            problem,
            torch.zeros(3, dtype=F64),
            init=torch.zeros(3, dtype=F64),
            outer=ADAM,
            max_steps=30,
            warm_start=warm,
            solver=GradientDescent(rtol=0.0, atol=1e-9, max_steps=2000),
            hypergradient=Implicit(),
        )
        for warm in (True, False)
    ]
    torch.testing.assert_close(runs[0].outer_params, runs[1].outer_params, rtol=1e-6, atol=1e-7)
    assert runs[0].history["inner_steps"][-1] < runs[1].history["inner_steps"][-1]


def test_unrolled_and_learned_starts_are_never_warm_started() -> None:
    problem, _ = shrinkage(TARGETS, DATA)
    seen = []
    walk = Unrolled(num_steps=3)
    inner, loss = GradientDescent(step_size=0.1), problem.outer_loss
    phi = torch.zeros(3, dtype=F64)
    result = optimize(problem, phi, init=phi, outer=ADAM, max_steps=5, solver=inner, hypergradient=walk)
    theta = torch.zeros(3, dtype=F64)
    for _ in range(3):  # three steps from the start that was given, not from the last theta
        theta = theta - 0.1 * (theta - DATA + result.outer_params.exp() * theta)
    torch.testing.assert_close(result.inner_params, theta, rtol=1e-12, atol=1e-12)

    def start(phi: Tensor) -> Tensor:  # MAML: phi is the start
        seen.append(phi.detach().clone())
        return phi

    task = Minimize(lambda theta, phi: 0.5 * ((theta - DATA) ** 2).sum() + 0.0 * phi.sum())
    maml = BilevelProblem(inner=task, outer_loss=loss)
    result = optimize(maml, phi, init=start, outer=ADAM, max_steps=300, solver=inner, hypergradient=walk, atol=1e-6)
    contraction = 0.9**3
    torch.testing.assert_close(
        result.outer_params, (TARGETS - (1 - contraction) * DATA) / contraction, rtol=1e-5, atol=1e-5
    )
    assert torch.equal(seen[-1], result.outer_params)


def test_callbacks_see_every_step_and_stop_the_run() -> None:
    problem, _ = shrinkage(TARGETS, DATA)
    seen: list[StepRecord] = []

    def watch(record: StepRecord) -> bool:
        seen.append(record)
        record.outer_params.fill_(float("nan"))  # a copy: spoiling it changes nothing
        return record.step == 7

    zeros = torch.zeros(3, dtype=F64)
    result = optimize(problem, zeros, init=zeros, outer=ADAM, max_steps=50, callbacks=[watch], progress=True)
    assert [record.step for record in seen] == list(range(8))
    assert result.num_steps == 7 and result.message == "stopped by a callback" and result.status is Status.MAX_STEPS
    assert [record.value for record in seen] == result.history["value"]
    done = optimize(problem, zeros, init=zeros, outer=ADAM, callbacks=[lambda record: Status.CONVERGED])
    assert done.status is Status.CONVERGED and done.num_steps == 0


def test_nan_keeps_the_last_good_design() -> None:
    inner = Minimize(lambda theta, phi: 0.5 * ((theta - phi) ** 2).sum())
    problem = BilevelProblem(inner=inner, outer_loss=lambda theta, phi: (theta - 0.55).sqrt().sum())
    phi, sgd = torch.ones(1, dtype=F64), partial(torch.optim.SGD, lr=0.1)
    result = optimize(problem, phi, init=phi, outer=sgd, throw=False)
    assert result.status is Status.NONFINITE and "outer loss" in result.message
    assert math.isfinite(result.value) and 0.55 < float(result.outer_params) < 1.0
    with pytest.raises(OptimizeError, match=r"optimize: step \d: outer loss: .*NONFINITE.*`result`") as caught:
        optimize(problem, phi, init=phi, outer=sgd)
    assert caught.value.result is not None
    assert torch.equal(caught.value.result.outer_params, result.outer_params)


def test_a_step_to_infinity_is_a_status() -> None:
    problem, _ = shrinkage(TARGETS, DATA)
    zeros = torch.zeros(3, dtype=F64)
    huge = partial(torch.optim.SGD, lr=float("inf"))
    result = optimize(problem, zeros, init=zeros, outer=huge, throw=False)
    assert result.status is Status.NONFINITE and torch.equal(result.outer_params, zeros)


def test_an_inner_failure_names_the_step_and_loses_nothing() -> None:
    problem, _ = shrinkage(TARGETS, DATA)
    zeros = torch.zeros(3, dtype=F64)
    stiff = partial(torch.optim.SGD, lr=1.0)
    solver = GradientDescent(step_size=0.6, max_steps=200, rtol=1e-8)  # diverges once 1 + e^phi > 2 / 0.6
    with pytest.raises(SolveError, match=r"optimize: step \d+: GradientDescent: expected status CONVERGED") as caught:
        optimize(problem, zeros, init=zeros, outer=stiff, solver=solver, hypergradient=Implicit())
    assert isinstance(caught.value, OptimizeError) and caught.value.result is not None
    kept = optimize(problem, zeros, init=zeros, outer=stiff, solver=solver, hypergradient=Implicit(), throw=False)
    assert kept.status not in (Status.CONVERGED, Status.MAX_STEPS) or "GradientDescent" in kept.message
    assert kept.num_steps > 0 and torch.equal(kept.outer_params, caught.value.result.outer_params)
    hopeless = LBFGS(max_steps=0)
    first = optimize(problem, zeros, init=zeros, outer=stiff, solver=hopeless, hypergradient=Implicit(), throw=False)
    assert math.isnan(first.value) and first.hypergradient is None and first.history["value"] == []


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"outer": None}, TypeError, "expected `outer` to be an optimizer class"),
        ({"outer": lambda params: params}, TypeError, "to make a torch.optim.Optimizer, got list"),
        ({"max_steps": -1}, ValueError, "expected `max_steps` to be an int >= 0"),
        ({"rtol": 2.0}, ValueError, r"expected `rtol` in \[0, 1\)"),
        ({"atol": -1.0}, ValueError, "expected `atol` >= 0"),
        ({"bounds": 3.0}, ValueError, r"expected `bounds` to be \(lower, upper\)"),
        ({"bounds": (1.0, 2.0)}, ValueError, "between the bounds, got 0.0 outside"),
        ({"bounds": (1.0, -1.0)}, ValueError, "crossed or NaN"),
        ({"bounds": (torch.zeros(2), None)}, ValueError, "broadcasts to"),
        ({"bounds": ({"a": 0.0}, None)}, ValueError, "structure of `outer_params`"),
        ({"inequality": lambda theta, phi: phi}, TypeError, "no `inequality` with a torch optimizer"),
        ({"outer": MMA(), "equality": lambda theta, phi: phi}, TypeError, "no `equality` with MMA"),
        ({"outer": MMA(), "bounds": (-1.0, 1.0), "inequality": lambda t, p: p.sum()}, ValueError, r"shape \(m,\)"),
        ({"problem": Minimize(lambda t, p: t.sum())}, TypeError, "expected `problem` to be a BilevelProblem"),
        ({"outer_params": torch.full((3,), float("nan"), dtype=F64)}, ValueError, "expected finite `outer_params`"),
    ],
)
def test_misuse_is_named(options: dict[str, Any], error: type[Exception], message: str) -> None:
    zeros = torch.zeros(3, dtype=F64)
    call = {"problem": shrinkage(TARGETS, DATA)[0], "outer_params": zeros, "init": zeros, "outer": ADAM, **options}
    with pytest.raises(error, match=message):
        optimize(call.pop("problem"), call.pop("outer_params"), **call)


def test_a_constant_outer_loss_is_refused() -> None:
    inner = Minimize(lambda theta, phi: ((theta - phi) ** 2).sum())
    problem = BilevelProblem(inner=inner, outer_loss=lambda theta, phi: torch.ones((), dtype=F64))
    with pytest.raises(ValueError, match="depends on the inner or outer parameters"):
        optimize(problem, torch.zeros(1, dtype=F64), init=torch.zeros(1, dtype=F64), outer=ADAM)


def test_a_nan_derivative_of_a_finite_loss_is_a_status() -> None:
    inner = Minimize(lambda theta, phi: 0.5 * ((theta - phi) ** 2).sum())
    problem = BilevelProblem(inner=inner, outer_loss=lambda theta, phi: theta.sum() + (phi * 0.0).sqrt().sum())
    ones = torch.ones(2, dtype=F64)
    result = optimize(problem, ones, init=ones, outer=ADAM, throw=False)
    assert result.status is Status.NONFINITE and result.message == "the hypergradient is NaN or Inf"
    assert torch.equal(result.outer_params, ones)
    with pytest.raises(OptimizeError, match="optimize: step 0: hypergradient: .*NONFINITE"):
        optimize(problem, ones, init=ones, outer=ADAM)


def test_the_error_survives_pickling() -> None:
    problem, _ = shrinkage(TARGETS, DATA)
    zeros = torch.zeros(3, dtype=F64)
    with pytest.raises(OptimizeError) as caught:
        optimize(problem, zeros, init=zeros, outer=ADAM, solver=LBFGS(max_steps=1), hypergradient=Implicit())
    back = pickle.loads(pickle.dumps(caught.value))
    assert str(back) == str(caught.value) and torch.equal(back.result.outer_params, zeros)


def test_a_decreasing_tolerance_saves_inner_steps_and_ends_at_the_optimum() -> None:
    problem, optimum = shrinkage(TARGETS, DATA)
    zeros = torch.zeros(3, dtype=F64)
    call: dict[str, Any] = {"outer": ADAM, "max_steps": 50, "solver": GradientDescent(), "warm_start": False}
    rule = DecreasingTolerance(first=0.1, factor=0.75, last=1e-8)
    loose = optimize(problem, zeros, init=zeros, inner_tolerance=rule, **call)
    tight = optimize(problem, zeros, init=zeros, **call)
    assert sum(loose.history["inner_steps"]) < 0.9 * sum(tight.history["inner_steps"])
    assert loose.history["inner_steps"][3] < 0.5 * tight.history["inner_steps"][3]
    torch.testing.assert_close(loose.outer_params, optimum, rtol=1e-2, atol=1e-2)
    assert max(loose.history["inner_residual"][-3:]) < 1e-4
    with pytest.raises(TypeError, match="DecreasingTolerance: expected an inner `solver` with `rtol`, got NoneType"):
        optimize(problem, zeros, init=zeros, outer=ADAM, inner_tolerance=rule)
    with pytest.raises(ValueError, match=r"`factor` in \(0, 1\)"):
        DecreasingTolerance(factor=1.5)
