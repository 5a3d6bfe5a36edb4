"""Gauss-Newton outer steps: exact Jacobian through the inner solve, quadratic convergence, damping, bounds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sciopt import BilevelProblem, Minimize, Status, optimize
from sciopt.hypergradients import Implicit, Unrolled
from sciopt.inner import LBFGS, GradientDescent
from sciopt.linsolve import CG
from sciopt.outer import GaussNewtonStep
from sciopt.outer.evaluate import Evaluator
from sciopt.outer.jacobian import adjoint_product, dense_jacobian, tangent_product
from sciopt.params import ravel
from tests.outer.problems import F64

TIMES = torch.linspace(0.0, 2.0, 7, dtype=F64)


def state(phi: Tensor) -> Tensor:
    """theta*(phi): the inner problem below has the closed form amplitude * exp(-rate t)."""
    return phi[0] * (-phi[1] * TIMES).exp()


def decay(data: Tensor) -> BilevelProblem:
    inner = Minimize(lambda theta, phi: 0.5 * ((theta - state(phi)) ** 2 * (1 + TIMES)).sum())
    return BilevelProblem(inner=inner, outer_residuals=lambda theta, phi: theta - data)


TRUTH = torch.tensor([2.0, 1.3], dtype=F64)
START = torch.tensor([1.0, 0.3], dtype=F64)
TIGHT = LBFGS(rtol=1e-13, max_steps=200)


def test_convergence_is_quadratic_on_a_nonlinear_problem() -> None:
    points: list[Tensor] = []
    result = optimize(
        decay(state(TRUTH)),
        START,
        init=torch.zeros_like(TIMES),
        outer=GaussNewtonStep(),
        solver=TIGHT,
        atol=1e-11,
        max_steps=30,
        callbacks=[lambda record: points.append(record.outer_params)],
    )
    assert result.status is Status.CONVERGED and result.num_steps <= 12
    torch.testing.assert_close(result.outer_params, TRUTH, rtol=1e-10, atol=0)
    errors = [float((p - TRUTH).norm()) for p in points]
    order = [(a, b) for a, b in zip(errors, errors[1:], strict=False) if 1e-5 < a < 0.2]
    assert order and all(b <= 2.0 * a**2 for a, b in order), errors
    assert result.value == pytest.approx(0.5 * float((result.inner_params - state(TRUTH)).square().sum()))


def test_noisy_data_end_at_the_least_squares_estimate(generator: torch.Generator) -> None:
    data = state(TRUTH) + 0.05 * torch.randn(7, generator=generator, dtype=F64)
    dense, free = (
        optimize(decay(data), START, init=torch.zeros_like(TIMES), outer=step, atol=1e-7, max_steps=50)
        for step in (GaussNewtonStep(), GaussNewtonStep(CG(rtol=1e-6)))
    )
    jacobian = torch.func.jacrev(state)(dense.outer_params)
    assert float((jacobian.T @ (state(dense.outer_params) - data)).norm()) < 1e-6  # stationary by the closed form
    assert dense.status is free.status is Status.CONVERGED
    torch.testing.assert_close(free.outer_params, dense.outer_params, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("wide", [False, True], ids=["tangents", "adjoints"])
@pytest.mark.parametrize("method", [Implicit(), Unrolled()], ids=["Implicit", "Unrolled"])
def test_the_jacobian_is_exact_both_ways(wide: bool, method: Any, generator: torch.Generator) -> None:
    size = 5
    A = torch.randn(4, size, generator=generator, dtype=F64)
    inner = Minimize(lambda theta, phi: 0.5 * ((theta - torch.sin(A @ phi["x"])) ** 2).sum() * (1 + phi["s"] ** 2))
    keep = 3 if wide else 4
    repeat = 1 if wide else 2

    def residuals(theta: Tensor, phi: dict[str, Tensor]) -> Tensor:
        return torch.cat([theta[:keep] * phi["s"]] * repeat)

    problem = BilevelProblem(inner=inner, outer_residuals=residuals)
    phi = {"s": torch.tensor(0.7, dtype=F64), "x": torch.randn(size, generator=generator, dtype=F64)}
    layout, point = ravel(phi)
    solver = GradientDescent(rtol=1e-12, max_steps=500)
    evaluator = Evaluator(
        problem=problem, layout=layout, init=torch.zeros(4, dtype=F64), solver=solver, hypergradient=method
    )
    evaluation = evaluator(point, least_squares=True)

    def closed(point: Tensor) -> Tensor:
        phi = layout.unflatten(point)
        return residuals(torch.sin(A @ phi["x"]), phi)

    expected = torch.func.jacrev(closed)(point)
    for chunk in (2, 64):
        torch.testing.assert_close(dense_jacobian(evaluator, evaluation, chunk), expected, rtol=1e-8, atol=1e-9)
    v = torch.randn(expected.shape[1], generator=generator, dtype=F64)
    u = torch.randn(expected.shape[0], generator=generator, dtype=F64)
    torch.testing.assert_close(tangent_product(evaluator, evaluation, v), expected @ v, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(adjoint_product(evaluation, u), expected.T @ u, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("wide", [False, True], ids=["tangents", "adjoints"])
def test_the_jacobian_is_one_batched_solve(wide: bool, generator: torch.Generator, monkeypatch: Any) -> None:
    from sciopt.outer import jacobian

    rows, columns = (3, 6) if wide else (6, 3)
    A = torch.randn(rows, columns, generator=generator, dtype=F64)
    inner = Minimize(lambda theta, phi: 0.5 * ((theta - torch.tanh(A @ phi)) ** 2).sum())
    problem = BilevelProblem(inner=inner, outer_residuals=lambda theta, phi: theta)
    layout, point = ravel(torch.ones(columns, dtype=F64))
    evaluator = Evaluator(
        problem=problem, layout=layout, init=torch.zeros(rows, dtype=F64), solver=None, hypergradient=Implicit()
    )
    evaluation = evaluator(point, least_squares=True)
    calls: list[str] = []
    for name in ("tangent_product", "adjoint_product"):
        product = getattr(jacobian, name)
        monkeypatch.setattr(jacobian, name, lambda *args, f=product, n=name: calls.append(n) or f(*args))
    expected = torch.func.jacrev(lambda phi: torch.tanh(A @ phi))(point)
    torch.testing.assert_close(dense_jacobian(evaluator, evaluation, 64), expected, rtol=1e-6, atol=1e-7)
    assert calls == ["adjoint_product" if wide else "tangent_product"]


def test_bounds_hold_and_the_rest_is_fitted() -> None:
    outer, init = GaussNewtonStep(), torch.zeros_like(TIMES)
    result = optimize(decay(state(TRUTH)), START, init=init, outer=outer, bounds=(None, 1.0), atol=1e-6)
    assert result.status is Status.CONVERGED, result.message
    assert result.outer_params[0] == 1.0
    rates = torch.linspace(0.0, 1.0, 20001, dtype=F64)
    values = ((-rates[:, None] * TIMES).exp() - state(TRUTH)).square().sum(-1)
    assert abs(float(result.outer_params[1]) - float(rates[values.argmin()])) < 1e-4


def test_more_outer_numbers_than_residuals_gives_zero_residuals(generator: torch.Generator) -> None:
    A = torch.randn(3, 8, generator=generator, dtype=F64)
    inner = Minimize(lambda theta, phi: 0.5 * ((theta - torch.tanh(A @ phi)) ** 2).sum())
    problem = BilevelProblem(inner=inner, outer_residuals=lambda theta, phi: theta - 0.3)
    for step in (GaussNewtonStep(), GaussNewtonStep(dense_limit=0)):
        zeros = torch.zeros(8, dtype=F64)
        result = optimize(problem, zeros, init=torch.zeros(3, dtype=F64), outer=step, atol=1e-8, max_steps=40)
        assert result.status is Status.CONVERGED, (step, result.message)
        torch.testing.assert_close(torch.tanh(A @ result.outer_params), A.new_full((3,), 0.3), rtol=0, atol=1e-7)


def test_trial_points_that_cannot_be_solved_are_rejected() -> None:
    inner = Minimize(lambda theta, phi: 0.5 * ((theta - phi.log()) ** 2).sum())  # NaN for phi <= 0
    problem = BilevelProblem(inner=inner, outer_residuals=lambda theta, phi: theta + 2.0)
    start = torch.full((1,), 5.0, dtype=F64)  # the first full step goes to phi = -13
    result = optimize(problem, start, init=torch.zeros(1, dtype=F64), outer=GaussNewtonStep(), atol=1e-9)
    assert result.status is Status.CONVERGED
    torch.testing.assert_close(result.outer_params, start.new_tensor([-2.0]).exp(), rtol=1e-8, atol=0)


def test_the_end_of_progress_is_a_status() -> None:
    problem = decay(state(TRUTH) + torch.cos(9 * TIMES))
    for atol, status in ((1e-15, Status.STAGNATED), (0.0, Status.CONVERGED)):
        init, step = torch.zeros_like(TIMES), GaussNewtonStep()
        result = optimize(problem, START, init=init, outer=step, max_steps=200, atol=atol)
        assert result.status is status and result.num_steps < 200
        assert result.history["grad_norm"][-1] < 1e-5


def test_steps_cut_off_by_bounds_turn_into_projected_gradient_steps() -> None:
    """More unknowns than residuals and a target out of reach: every unknown ends at its bound."""
    A = torch.tensor([[1.0, -0.9, -0.8, 1.0], [0.9, 0.2, -0.8, 1.0]], dtype=F64)
    inner = Minimize(lambda theta, phi: 0.5 * ((theta - A @ phi) ** 2).sum())
    problem = BilevelProblem(inner=inner, outer_residuals=lambda theta, phi: theta + 10.0)
    start = torch.full((4,), 0.9, dtype=F64)
    result = optimize(
        problem, start, init=torch.zeros(2, dtype=F64), outer=GaussNewtonStep(), bounds=(0.0, 2.0), max_steps=50
    )
    grad = A.mT @ (A @ result.outer_params + 10.0)
    expected = torch.where(grad > 0, 0.0, 2.0)
    torch.testing.assert_close(result.outer_params, expected.to(F64), rtol=0, atol=1e-8)


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path) -> None:
    call: dict[str, Any] = {"init": torch.zeros_like(TIMES), "outer": GaussNewtonStep()}
    problem, file = decay(state(TRUTH)), tmp_path / "run"
    whole = optimize(problem, START, max_steps=5, **call)
    optimize(problem, START, max_steps=2, checkpoint=file, **call)
    resumed = optimize(problem, START, max_steps=5, checkpoint=file, resume=True, **call)
    assert torch.equal(whole.outer_params, resumed.outer_params) and whole.value == resumed.value
    assert whole.history["value"] == resumed.history["value"]


def test_misuse_is_named() -> None:
    inner = Minimize(lambda theta, phi: ((theta - phi) ** 2).sum())
    plain = BilevelProblem(inner=inner, outer_loss=lambda theta, phi: theta.sum())
    zeros = torch.zeros(2, dtype=F64)
    with pytest.raises(TypeError, match="expected a problem with `outer_residuals`"):
        optimize(plain, zeros, init=zeros, outer=GaussNewtonStep())
    with pytest.raises(TypeError, match="no `inequality` with GaussNewtonStep"):
        optimize(plain, zeros, init=zeros, outer=GaussNewtonStep(), inequality=lambda theta, phi: phi)
    with pytest.raises(TypeError, match="`linear_solver` to be a linear solver"):
        GaussNewtonStep(CG)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`damping` > 0"):
        GaussNewtonStep(damping=0.0)
