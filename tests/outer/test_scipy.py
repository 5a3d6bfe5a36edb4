"""SciPy's optimizers under hypergradients: known optima, bounds, constraints, exact resume by replay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sciopt import BilevelProblem, Minimize, OptimizeResult, Status, optimize
from sciopt.outer import CheckpointError, OptimizeError, ScipyLBFGSB, ScipySLSQP, StepRecord
from tests.outer.problems import F64, follower, shrinkage

DATA = torch.tensor([2.0, -3.0, 1.5], dtype=F64)
TARGETS = torch.tensor([1.0, -1.0, 0.3], dtype=F64)
ZEROS = torch.zeros(3, dtype=F64)


def test_lbfgsb_reaches_the_closed_form_optimum() -> None:
    problem, optimum = shrinkage(TARGETS, DATA)
    result = optimize(problem, ZEROS, init=ZEROS, outer=ScipyLBFGSB(), atol=1e-9)
    assert result.status is Status.CONVERGED
    torch.testing.assert_close(result.outer_params, optimum, rtol=1e-6, atol=1e-7)
    assert result.num_steps < 30 and len(result.history["value"]) == result.num_steps + 1
    assert result.history["value"] == sorted(result.history["value"], reverse=True)
    assert result.hypergradient is not None and result.hypergradient.certificate is not None


def test_lbfgsb_stands_on_the_bounds() -> None:
    problem, optimum = shrinkage(TARGETS, DATA)
    upper = torch.tensor([10.0, 0.5, 1.0], dtype=F64)
    result = optimize(problem, ZEROS, init=ZEROS, outer=ScipyLBFGSB(), bounds=(-1.0, upper))
    assert result.status is Status.CONVERGED
    torch.testing.assert_close(result.outer_params, torch.minimum(optimum, upper), rtol=1e-6, atol=1e-7)
    assert torch.equal(result.outer_params[1:], upper[1:]) and result.history["grad_norm"][-1] < 1e-6


def test_lbfgsb_in_float32_on_a_tree() -> None:
    inner = Minimize(lambda theta, phi: 0.5 * ((theta - phi["a"] * phi["b"]) ** 2).sum())
    problem = BilevelProblem(inner=inner, outer_loss=lambda theta, phi: ((theta - 3) ** 2).sum() + (phi["b"] - 2) ** 2)
    phi = {"a": torch.ones(2), "b": torch.ones(())}
    result = optimize(problem, phi, init=torch.zeros(2), outer=ScipyLBFGSB(ftol=1e-7, gtol=1e-4))
    assert result.outer_params["a"].dtype == torch.float32
    torch.testing.assert_close(result.outer_params["a"], torch.full((2,), 1.5), rtol=1e-2, atol=1e-2)


def test_slsqp_meets_an_inequality_through_the_inner_solution() -> None:
    weights = torch.tensor([4.0, 1.0, 9.0], dtype=F64)
    ones, calls = torch.ones(3, dtype=F64), []

    def budget(theta: Tensor, phi: Tensor) -> Tensor:
        calls.append(1)
        return theta.sum()[None] - 3.0

    result = optimize(
        follower(weights), ones * 0.5, init=ones, outer=ScipySLSQP(), bounds=(0.01, None), inequality=budget
    )
    root = weights.sqrt()
    assert result.status is Status.CONVERGED, result.message
    torch.testing.assert_close(result.outer_params, 3.0 * root / root.sum(), rtol=1e-5, atol=0)
    assert abs(result.history["violation"][-1]) < 1e-8 and result.history["grad_norm"][-1] < 1e-3


def test_slsqp_with_both_kinds_of_constraints_and_bounds() -> None:
    problem = BilevelProblem(
        inner=Minimize(lambda theta, phi: 0.5 * ((theta - phi) ** 2).sum()),
        outer_loss=lambda theta, phi: ((theta - torch.arange(3.0, dtype=F64)) ** 2).sum(),
    )
    result = optimize(
        problem,
        ZEROS,
        init=ZEROS,
        outer=ScipySLSQP(),
        equality=lambda theta, phi: theta.sum()[None] - 2.0,
        inequality=lambda theta, phi: torch.stack([theta[1] - 0.4, phi[0] - 100.0]),
        bounds=(-0.05, None),
    )
    # min |x - (0, 1, 2)|^2, sum x = 2, x1 <= 0.4, x0 >= -0.05: the rest splits by x0 = -0.2 + t, bound active.
    torch.testing.assert_close(result.outer_params, ZEROS.new_tensor([-0.05, 0.4, 1.65]), rtol=0, atol=1e-6)
    assert result.status is Status.CONVERGED and result.history["grad_norm"][-1] < 1e-6


def test_slsqp_reports_constraints_that_contradict() -> None:
    clash = lambda theta, phi: torch.stack([theta[0] - 1.0, 2.0 - theta[0]])  # noqa: E731
    ones = torch.ones(3, dtype=F64)
    result = optimize(follower(ones), ones, init=ones, outer=ScipySLSQP(), inequality=clash, bounds=(0.1, 5.0))
    assert result.status is Status.INFEASIBLE, result.message


@pytest.mark.parametrize("outer", [ScipyLBFGSB(), ScipySLSQP()], ids=["L-BFGS-B", "SLSQP"])
def test_max_steps_callbacks_and_failures(outer: Any) -> None:
    problem, _ = shrinkage(TARGETS, DATA)
    result = optimize(problem, ZEROS, init=ZEROS, outer=outer, max_steps=2)
    assert result.status is Status.MAX_STEPS and result.num_steps == 2 and len(result.history["step"]) == 3
    zero = optimize(problem, ZEROS, init=ZEROS, outer=outer, max_steps=0)
    assert zero.num_steps == 0 and torch.equal(zero.outer_params, ZEROS)
    seen: list[StepRecord] = []
    result = optimize(problem, ZEROS, init=ZEROS, outer=outer, callbacks=[lambda r: seen.append(r) or r.step == 1])
    assert result.message == "stopped by a callback" and [r.step for r in seen] == [0, 1]
    torch.testing.assert_close(seen[1].outer_params, result.outer_params, rtol=0, atol=0)
    broken = BilevelProblem(
        inner=Minimize(lambda theta, phi: 0.5 * ((theta - phi) ** 2).sum()),
        outer_loss=lambda theta, phi: (theta - 0.9).sqrt().sum(),
    )
    ones = torch.ones(1, dtype=F64)
    with pytest.raises(OptimizeError, match="optimize: step 0: outer loss.*NONFINITE") as caught:
        optimize(broken, ones, init=ones, outer=outer)
    assert caught.value.result is not None and torch.equal(caught.value.result.outer_params, ones)


class Killed(Exception):
    """Stands for whatever ends a process."""


@pytest.mark.parametrize("outer", [ScipyLBFGSB(), ScipySLSQP()], ids=["L-BFGS-B", "SLSQP"])
def test_a_resume_replays_and_equals_the_uninterrupted_run(tmp_path: Path, outer: Any) -> None:
    problem, _ = shrinkage(TARGETS, DATA)
    evaluated: list[int] = []

    def kill(record: StepRecord) -> None:
        evaluated.append(record.step)
        if len(evaluated) == 4:
            raise Killed

    def run(**options: Any) -> OptimizeResult:
        return optimize(problem, ZEROS, init=ZEROS, outer=outer, max_steps=9, **options)

    whole = run()
    file = tmp_path / "run"
    with pytest.raises(Killed):
        run(checkpoint=file, callbacks=[kill])
    resumed = run(checkpoint=file, resume=True, callbacks=[kill])
    assert evaluated == [*range(4), *range(3, whole.num_steps + 1)]  # replayed steps are not shown again
    again = run(checkpoint=file, resume=True)
    for other in (resumed, again):
        assert torch.equal(other.outer_params, whole.outer_params) and torch.equal(
            other.inner_params, whole.inner_params
        )
        assert (other.value, other.num_steps, other.message) == (whole.value, whole.num_steps, whole.message)
        for name in ("value", "grad_norm", "inner_residual", "inner_steps"):
            assert other.history[name] == whole.history[name], name


def test_a_replay_that_does_not_fit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sciopt.outer import loop

    problem, _ = shrinkage(TARGETS, DATA)
    optimize(problem, ZEROS, init=ZEROS, outer=ScipyLBFGSB(memory=2), max_steps=5, checkpoint=tmp_path / "run")
    monkeypatch.setattr(loop, "describe", lambda thing: "")
    file = tmp_path / "other"
    optimize(problem, ZEROS, init=ZEROS, outer=ScipyLBFGSB(), max_steps=5, checkpoint=file)
    with pytest.raises(CheckpointError, match="expected SciPy to ask for the points of the checkpoint"):
        optimize(problem, ZEROS + 0.1, init=ZEROS, outer=ScipyLBFGSB(), max_steps=5, checkpoint=file, resume=True)


def test_lbfgsb_refuses_constraints() -> None:
    problem, _ = shrinkage(TARGETS, DATA)
    with pytest.raises(TypeError, match="no `equality` with ScipyLBFGSB.*ScipySLSQP"):
        optimize(problem, ZEROS, init=ZEROS, outer=ScipyLBFGSB(), equality=lambda theta, phi: phi)
    with pytest.raises(ValueError, match="ScipySLSQP: expected `ftol` > 0"):
        ScipySLSQP(ftol=0.0)
    with pytest.raises(ValueError, match="ScipyLBFGSB: expected `memory` >= 1"):
        ScipyLBFGSB(memory=0)
