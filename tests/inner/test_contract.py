"""What every inner solver promises: answers, tolerances, independent rows, dtypes, statuses, immutability."""

from __future__ import annotations

import pickle
from dataclasses import FrozenInstanceError, replace
from typing import Any, cast

import pytest
import torch

from sciopt.inner import AbstractIterativeSolver
from sciopt.solution import Status
from tests.inner.cases import CASES, IDS, SIZE, Case, bind, solve

PHI = torch.tensor(
    [[1.0, -2.0, 0.5, 3.0, -1.0, 0.2], [0.1, 0.2, -0.1, 0.3, 0.1, -0.4], [-5.0, 4.0, 8.0, -3.0, 2.0, 9.0]],
    dtype=torch.float64,
)
START = torch.tensor([0.3, -0.2, 0.1, 0.4, 0.2, -0.1], dtype=torch.float64)

every_case = pytest.mark.parametrize("case", CASES, ids=IDS)


def with_options(case: Case, **options: Any) -> Any:
    return replace(cast(Any, case.solver), **options)


@every_case
@pytest.mark.parametrize("rtol", [1e-4, 1e-8])
def test_rtol_is_honoured_against_an_independent_residual(case: Case, rtol: float) -> None:
    solution = solve(with_options(case, rtol=rtol), case.problem(0), START, PHI[0])
    assert solution.status is Status.CONVERGED
    scale = max(1.0, float(cast(Any, solution.state)["scale"]))
    assert float(case.error(solution.value, PHI[0]).norm()) <= case.slack * rtol * scale


@every_case
def test_float32_stays_float32_and_converges(case: Case) -> None:
    phi = PHI[0].float()
    solution = solve(case.solver, case.problem(0), START.float(), phi)
    assert solution.status is Status.CONVERGED
    assert solution.value.dtype == solution.residual_norm.dtype == torch.float32
    scale = max(1.0, float(cast(Any, solution.state)["scale"]))
    assert float(case.error(solution.value, phi).norm()) <= case.slack * 1e-4 * scale


@every_case
def test_batch_of_three_equals_three_single_runs(case: Case) -> None:
    start = START.expand(3, SIZE)
    batch = solve(case.solver, case.problem(1), start, PHI)
    assert batch.status_code.tolist() == [0, 0, 0]
    for row in range(3):
        single = solve(case.solver, case.problem(0), START, PHI[row])
        torch.testing.assert_close(batch.value[row], single.value, rtol=1e-6, atol=1e-6)
        assert batch.num_steps[row] == pytest.approx(int(single.num_steps), abs=1 + 0.1 * int(single.num_steps))


@every_case
def test_a_row_of_nan_harms_no_other(case: Case) -> None:
    phi = PHI.clone()
    phi[1] = torch.nan
    bad = solve(case.solver, case.problem(1), START.expand(3, SIZE), phi)
    good = solve(case.solver, case.problem(1), START.expand(3, SIZE)[[0, 2]], PHI[[0, 2]])
    assert bad.status_code.tolist() == [0, int(Status.NONFINITE), 0]
    torch.testing.assert_close(bad.value[[0, 2]], good.value, rtol=1e-7, atol=1e-7)


@every_case
def test_a_solution_is_a_fixed_point_of_the_solver(case: Case) -> None:
    first = solve(with_options(case, rtol=1e-9), case.problem(0), START, PHI[0])
    problem = case.problem(0)
    oracle, x = bind(problem, START, PHI[0])
    again = with_options(case, rtol=1e-6, atol=1e-6).solve(oracle, first.value)
    assert again.status is Status.CONVERGED
    torch.testing.assert_close(again.value, first.value, rtol=1e-5, atol=1e-5)
    if isinstance(case.solver, AbstractIterativeSolver):
        assert int(again.num_steps) == 0


@every_case
def test_inputs_are_untouched_and_runs_repeat_to_the_bit(case: Case) -> None:
    start, phi = START.clone(), PHI[0].clone()
    first = solve(case.solver, case.problem(0), start, phi)
    second = solve(case.solver, case.problem(0), start, phi)
    assert torch.equal(start, START) and torch.equal(phi, PHI[0])
    assert torch.equal(first.value, second.value)
    assert not first.value.requires_grad


@every_case
def test_pickle_and_immutability(case: Case) -> None:
    assert pickle.loads(pickle.dumps(case.solver)) == case.solver
    with pytest.raises(FrozenInstanceError):
        cast(Any, case.solver).rtol = 1.0
    with pytest.raises(TypeError):
        type(case.solver)(tol=1e-3)  # type: ignore[call-arg]
    for option in ({"rtol": 2.0}, {"atol": -1.0}, {"max_steps": -1}):
        with pytest.raises(ValueError, match=f"{type(case.solver).__name__}: expected `{next(iter(option))}`"):
            with_options(case, **option)
    with pytest.raises(ValueError, match="expected `rtol` 0 or >="):
        solve(with_options(case, rtol=1e-15), case.problem(0), START, PHI[0])


ITERATIVE = [case for case in CASES if isinstance(case.solver, AbstractIterativeSolver)]


@pytest.mark.parametrize("case", ITERATIVE, ids=[case.name for case in ITERATIVE])
def test_a_spent_budget_is_a_status_with_the_last_point(case: Case) -> None:
    solution = solve(with_options(case, max_steps=1, rtol=1e-12), case.problem(0), START, PHI[2])
    assert solution.status is Status.MAX_STEPS
    assert int(solution.num_steps) == 1
    oracle, _ = bind(case.problem(0), START, PHI[2])
    torch.testing.assert_close(oracle.residual(solution.value).norm(), solution.residual_norm, rtol=1e-10, atol=0)


@pytest.mark.parametrize("case", ITERATIVE, ids=[case.name for case in ITERATIVE])
def test_dict_parameters_give_the_flat_answer(case: Case) -> None:
    if case.name.startswith(("ConstrainedNewton", "InteriorPoint")):
        pytest.skip("its unknown is a dict already")
    flat = case.problem(0)
    name = next(f for f in ("inner_loss", "residuals", "fixed_point_map", "residual") if hasattr(flat, f))
    function = getattr(flat, name)

    def on_dict(inner: Any, phi: Any) -> Any:
        out = function(torch.cat([inner["a"], inner["b"].reshape(-1)]), phi["p"])
        if name in ("inner_loss", "residuals"):
            return out
        return {"a": out[:2], "b": out[2:].reshape(2, 2)}

    problem = replace(cast(Any, flat), **{name: on_dict})
    tree = {"a": START[:2], "b": START[2:].reshape(2, 2)}
    solution = solve(case.solver, problem, tree, {"p": PHI[0]})
    reference = solve(case.solver, flat, START, PHI[0])
    torch.testing.assert_close(solution.value, reference.value, rtol=1e-7, atol=1e-7)
