"""`hypergradcheck` passes right hypergradients, catches wrong ones, and says when it cannot tell."""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from sciopt import BilevelProblem, FixedPoint, Minimize, Recurrence, SolveError, hypergradcheck
from sciopt.hypergradients import FirstOrder, Implicit, OneStep, Unrolled
from sciopt.inner import LBFGS, GradientDescent
from sciopt.verify import HypergradientMismatch

F64 = torch.float64
TIGHT = LBFGS(rtol=1e-12)


def ridge(generator: torch.Generator) -> tuple[BilevelProblem, Tensor]:
    X, y = torch.randn(8, 4, generator=generator, dtype=F64), torch.randn(8, generator=generator, dtype=F64)
    V, z = torch.randn(6, 4, generator=generator, dtype=F64), torch.randn(6, generator=generator, dtype=F64)
    inner = Minimize(lambda theta, phi: ((X @ theta - y) ** 2).mean() + (phi.exp() * theta**2).sum())
    loss = lambda theta, phi: ((V @ theta - z) ** 2).mean() + 0.1 * phi.square().sum()  # noqa: E731
    return BilevelProblem(inner=inner, outer_loss=loss), torch.zeros(4, dtype=F64)


@pytest.mark.parametrize("method", [None, Implicit(), Unrolled()], ids=["Auto", "Implicit", "Unrolled"])
def test_right_hypergradients_pass(method: Any, generator: torch.Generator) -> None:
    problem, init = ridge(generator)
    phi = torch.full((4,), -1.0, dtype=F64)
    check = hypergradcheck(problem, phi, init=init, solver=TIGHT, hypergradient=method, generator=generator)
    assert check.ok and check.max_error < 1e-7
    assert check.analytic.shape == (3,) and bool((check.finite_difference_error < 1e-6).all())


@pytest.mark.parametrize("method", [OneStep(step_size=0.05), FirstOrder()], ids=["OneStep", "FirstOrder"])
def test_biased_hypergradients_are_caught(method: Any, generator: torch.Generator) -> None:
    problem, init = ridge(generator)
    phi = torch.full((4,), -1.0, dtype=F64)
    call: dict[str, Any] = {"init": init, "solver": TIGHT, "hypergradient": method}
    with pytest.raises(HypergradientMismatch, match="expected a relative error <= 1.0e-04.*biased by nature") as caught:
        hypergradcheck(problem, phi, **call)
    check = hypergradcheck(problem, phi, throw=False, **call)
    assert not check.ok and check.max_error > 1e-2
    assert torch.equal(check.relative_error, caught.value.check.relative_error)  # the same directions every time
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_a_forgotten_dependence_is_caught() -> None:
    def loss(theta: Tensor, phi: Tensor) -> Tensor:
        return (theta * phi.detach()).sum()

    problem = BilevelProblem(inner=Minimize(lambda theta, phi: ((theta - phi) ** 2).sum()), outer_loss=loss)
    ones = torch.ones(2, dtype=F64)
    with pytest.raises(HypergradientMismatch, match="captured copies"):
        hypergradcheck(problem, ones, init=ones)


def test_a_loose_inner_solve_is_told_from_a_wrong_hypergradient(generator: torch.Generator) -> None:
    problem, init = ridge(generator)
    phi = torch.full((4,), -1.0, dtype=F64)
    loose = GradientDescent(rtol=1e-2)
    with pytest.raises(HypergradientMismatch, match="certificate admits an error of .*tighten `rtol`") as caught:
        hypergradcheck(problem, phi, init=init, solver=loose, hypergradient=Implicit())
    assert caught.value.check.error_bound > 1e-3
    check = caught.value.check
    jagged = replace(check, finite_difference_error=check.analytic.abs())
    assert "too noisy to tell" in str(HypergradientMismatch(jagged))


def test_trees_starts_recurrences_equations_and_directions(generator: torch.Generator) -> None:
    phi = {"a": torch.ones((), dtype=F64), "b": torch.full((2,), 0.3, dtype=F64)}
    equation = FixedPoint(lambda theta, phi: 0.5 * torch.tanh(theta) * phi["a"] + phi["b"])
    problem = BilevelProblem(inner=equation, outer_loss=lambda theta, phi: theta.square().sum())
    zeros = torch.zeros(2, dtype=F64)
    one = {"a": torch.ones((), dtype=F64), "b": torch.zeros(2, dtype=F64)}
    assert hypergradcheck(problem, phi, init=zeros, directions=[one]).analytic.shape == (1,)
    walk = Recurrence(lambda theta, phi, t: theta - 0.1 * (theta - 3.0), num_steps=4)
    maml = BilevelProblem(inner=walk, outer_loss=lambda theta, phi: theta.square().sum())
    assert hypergradcheck(maml, zeros + 1, init=lambda phi: phi).ok


def test_float32_and_a_given_step() -> None:
    problem = BilevelProblem(
        inner=Minimize(lambda theta, phi: ((theta - phi**2) ** 2).sum()),
        outer_loss=lambda theta, phi: theta.sin().sum(),
    )
    assert hypergradcheck(problem, torch.ones(2), init=torch.zeros(2)).ok
    assert hypergradcheck(problem, torch.ones(2, dtype=F64), init=torch.zeros(2, dtype=F64), eps=1e-2).ok


def test_steps_stay_in_the_domain() -> None:
    inner = Minimize(lambda theta, phi: ((theta - (phi[0] - 0.999).log()) ** 2).sum())
    problem = BilevelProblem(inner=inner, outer_loss=lambda theta, phi: theta.sum() + 0 * phi.sum())
    ones, zeros = torch.ones(1, dtype=F64), torch.zeros(1, dtype=F64)
    assert hypergradcheck(problem, ones, init=zeros, directions=1).ok  # the first step, 0.02, would leave it
    with pytest.raises(SolveError):
        hypergradcheck(problem, ones, init=zeros, directions=1, eps=1e6)


def test_misuse_is_named() -> None:
    problem = BilevelProblem(inner=Minimize(lambda t, p: ((t - p) ** 2).sum()), outer_loss=lambda t, p: t.sum())
    ones = torch.ones(2, dtype=F64)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"rtol": 0.0}, "`rtol` > 0"),
        ({"eps": -1.0}, "`eps` > 0"),
        ({"directions": 0}, "`directions` >= 1"),
        ({"directions": [torch.zeros(2, dtype=F64)]}, "`directions` not to be zero"),
    ]
    for options, message in cases:
        with pytest.raises(ValueError, match=message):
            hypergradcheck(problem, ones, init=ones, **options)
