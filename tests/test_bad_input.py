"""Bad input to the core: one clear error or status that names the thing and says what to do."""

from __future__ import annotations

import warnings

import pytest
import torch

from sciopt import (
    BilevelProblem,
    Constrained,
    Eigen,
    FixedPoint,
    InitialValue,
    LeastSquares,
    Minimize,
    Recurrence,
    RootFind,
    SolveError,
    best_response,
    hypergradient,
)
from sciopt.hypergradients import Auto, FiniteDifference, HypergradientWarning, Implicit, Unrolled
from sciopt.inner import LBFGS, GradientDescent, NewtonCG, Picard
from sciopt.linsolve import CG

F64 = torch.float64
ZERO = torch.zeros(2, dtype=F64)
ONE = torch.ones(2, dtype=F64)
BOWL = Minimize(lambda t, p: ((t - p) ** 2).sum())


def phi():
    return torch.ones(2, dtype=F64, requires_grad=True)


@pytest.mark.parametrize(
    ("outer", "init", "error", "message"),
    [
        (torch.ones(2), ZERO, TypeError, "expected `init` all in torch.float32 .* got torch.float64 .* Convert"),
        ({"a": ONE, "b": torch.ones(2)}, ZERO, TypeError, "expected `outer_params` all in torch.float64"),
        (torch.ones(2, dtype=torch.int64), ZERO, TypeError, "real floating-point dtype, got torch.int64"),
        ([1.0, 2.0], ZERO, TypeError, "to be a tensor or a dict of tensors, got float"),
        ({}, ZERO, ValueError, "to hold at least one tensor"),
        (
            torch.tensor([1.0, float("nan")], dtype=F64),
            ZERO,
            ValueError,
            r"finite `outer_params`, got 1 .* index \[1\]",
        ),
        (ONE, torch.tensor([float("inf"), 0.0], dtype=F64), ValueError, "finite `init`, got 1 NaN or Inf"),
    ],
)
def test_inputs_are_checked_at_the_entry(outer, init, error, message):
    with pytest.raises(error, match=message):
        best_response(BOWL, outer, init=init)


@pytest.mark.parametrize(
    ("problem", "init", "message"),
    [
        (Minimize(lambda t, p: (t - p) ** 2), ZERO, r"batch shape \(\), got \(2,\)"),
        (Minimize(lambda t, p: p.tolist()), ZERO, r"batch shape \(\), got list"),
        (
            Minimize(lambda t, p: (t - p).square().sum(), batch_ndim=1),
            torch.zeros(3, 2, dtype=F64),
            r"shape \(3,\), got \(\)",
        ),
        (FixedPoint(lambda t, p: t[:1] * p[0]), ZERO, r"expected a leaf of shape \(2,\), got \(1,\)"),
        (FixedPoint(lambda t, p: {"x": t}), ZERO, "structure|Return"),
        (LeastSquares(lambda t, p: (t - p).square().sum()), ZERO, r"residuals of shape \(\*batch, m\)"),
        (Constrained(lambda t, p: t.sum(), equality=lambda t, p: t.sum()), ZERO, r"expected `equality` of shape"),
    ],
)
def test_functions_that_return_wrong_shapes(problem, init, message):
    with pytest.raises(ValueError, match=message):
        best_response(problem, ONE, init=init)


def test_batch_dimensions_that_disagree():
    problem = Minimize(lambda t, p: t["a"].sum(-1), batch_ndim=1)
    with pytest.raises(ValueError, match="same 1 leading batch dimensions"):
        best_response(problem, ONE, init={"a": torch.zeros(3, 2, dtype=F64), "b": torch.zeros(4, 2, dtype=F64)})


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"solver": LBFGS}, r"expected `solver` to be a AbstractSolver.* Pass an object"),
        ({"hypergradient": Implicit}, "expected `hypergradient` to be .* not its class"),
        ({"hypergradient": "implicit"}, "got 'implicit'"),
        ({"solver": Picard()}, None),
        ({"solver": LBFGS(), "tolerance": 1e-3}, "unexpected keyword argument 'tolerance'"),
    ],
)
def test_strategies_are_objects(kwargs, message):
    if message is None:
        return
    with pytest.raises(TypeError, match=message):
        best_response(BOWL, ONE, init=ZERO, **kwargs)


def test_solver_for_another_kind_of_problem():
    with pytest.raises(TypeError, match="LBFGS: expected a problem of class Minimize, LeastSquares, got RootFind"):
        best_response(RootFind(lambda t, p: t - p), ONE, init=ZERO, solver=LBFGS())
    with pytest.raises(TypeError, match="expected a smooth Minimize"):
        best_response(Minimize(lambda t, p: (t - p).square().sum(), box=(0, 1)), ONE, init=ZERO, solver=LBFGS())


@pytest.mark.parametrize(
    "make",
    [
        lambda: Implicit(linear_solvr=CG()),  # pyright: ignore[reportCallIssue]
        lambda: Unrolled(steps=3),  # pyright: ignore[reportCallIssue]
        lambda: LBFGS(tol=1e-3),  # pyright: ignore[reportCallIssue]
        lambda: Auto(memry=1),  # pyright: ignore[reportCallIssue]
        lambda: Minimize(lambda t, p: t, bx=(0, 1)),  # pyright: ignore[reportCallIssue]
    ],
)
def test_misspelt_options_are_type_errors(make):
    with pytest.raises(TypeError, match="unexpected keyword argument"):
        make()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Unrolled(truncate=0), "expected `truncate` to be a positive int"),
        (lambda: Unrolled(truncate=2, checkpoints=2), "at most one of `truncate` and `checkpoints`"),
        (lambda: FiniteDifference(-1.0), "expected `step_size` > 0, got -1.0"),
        (lambda: Implicit(accuracy=2.0), r"expected `accuracy` in \(0, 1\)"),
        (lambda: LBFGS(rtol=-1.0), "expected `rtol` in"),
        (lambda: Minimize(lambda t, p: t, box=(0, 1), prox=lambda t, s, p: t), "at most one of `box` and `prox`"),
        (lambda: Constrained(lambda t, p: t), "expected `equality` or `inequality`"),
        (lambda: Recurrence(lambda t, p, d: t, num_steps=3, data=torch.zeros(2)), "leading dimension num_steps = 3"),
    ],
)
def test_options_out_of_range(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_implicit_refuses_something_that_is_no_linear_solver():
    with pytest.raises(TypeError, match="Implicit: expected `linear_solver` to be a linear solver, got 'cg'"):
        Implicit("cg")  # pyright: ignore[reportArgumentType]


def test_rtol_below_rounding():
    with pytest.raises(ValueError, match=r"expected `rtol` 0 or >= 1.2e-06 for torch.float32"):
        best_response(BOWL, torch.ones(2), init=torch.zeros(2), solver=LBFGS(rtol=1e-9))


def test_inner_problem_that_ignores_the_outer_variable():
    p = phi()
    sol = best_response(Minimize(lambda t, o: (t**2).sum()), p, init=ONE, solver=LBFGS(), hypergradient=Implicit())
    with pytest.raises(ValueError, match="depends on `outer_params`, got one that ignores them"):
        sol.value.sum().backward()
    problem = BilevelProblem(inner=Minimize(lambda t, o: (t**2).sum()), outer_loss=lambda t, o: t.sum())
    with pytest.raises(ValueError, match="ignores them"):
        hypergradient(problem, ONE, init=ONE, hypergradient=Implicit())


def test_outer_loss_that_is_constant_or_not_finite():
    with pytest.raises(ValueError, match="got a constant"):
        hypergradient(BilevelProblem(inner=BOWL, outer_loss=lambda t, o: torch.ones(())), ONE, init=ZERO)
    with pytest.raises(ValueError, match="expected a finite scalar outer loss, got inf"):
        hypergradient(BilevelProblem(inner=BOWL, outer_loss=lambda t, o: t.sum() / 0), ONE, init=ZERO)


def saddle() -> Minimize:
    """Stationary at the start, with curvature -1 along the second axis."""
    return Minimize(lambda t, p: 0.5 * t[0] ** 2 - 0.5 * t[1] ** 2 + 0 * p.sum() + 0.1 * (t * t * p).sum())


def test_indefinite_hessian_is_a_status_not_a_number_passed_on():
    p = phi()
    sol = best_response(saddle(), p, init=ZERO, solver=LBFGS(), hypergradient=Implicit())
    with pytest.raises(SolveError, match="adjoint: expected status CONVERGED, got INDEFINITE.*curvature is negative"):
        sol.value.sum().backward()
    problem = BilevelProblem(inner=saddle(), outer_loss=lambda t, o: t.sum())
    with pytest.warns(HypergradientWarning, match="INDEFINITE"):
        hg = hypergradient(problem, ONE, init=ZERO, throw=False)
    assert hg.status.name == "INDEFINITE"


def test_singular_hessian_is_a_status():
    flat = Minimize(lambda t, p: (t[0] + t[1] - p[0]) ** 2)
    p = phi()
    sol = best_response(flat, p, init=ZERO, solver=LBFGS(), hypergradient=Implicit())
    with pytest.raises(SolveError, match="got SINGULAR.*declare the null space"):
        sol.value[0].backward()


def test_declared_null_space_reports_an_outer_loss_that_is_not_invariant():
    modes = lambda t, p: torch.tensor([[1.0], [-1.0]], dtype=F64)  # noqa: E731
    flat = Minimize(lambda t, p: (t[0] + t[1] - p[0]) ** 2, nullspace=modes)
    p = phi()
    sol = best_response(flat, p, init=ZERO, solver=LBFGS(), hypergradient=Implicit())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sol.value.sum().backward(retain_graph=True)
    torch.testing.assert_close(p.grad, torch.tensor([1.0, 0.0], dtype=F64))
    with pytest.warns(HypergradientWarning, match="constant along the declared `nullspace`"):
        sol.value[0].backward()


def test_diverging_fixed_point():
    with pytest.raises(
        SolveError, match="Picard: expected status CONVERGED, got DIVERGED.*check that the map contracts"
    ):
        best_response(FixedPoint(lambda t, p: 3 * t + p), ONE, init=ZERO, solver=Picard())


def test_exhausted_budget_keeps_what_was_reached():
    hard = Minimize(lambda t, p: ((t - p) ** 4).sum() + (t[0] - 2 * t[1]) ** 2)
    with pytest.raises(SolveError, match="got MAX_STEPS after 3 steps.*raise max_steps") as caught:
        best_response(hard, ONE, init=ZERO - 3, solver=LBFGS(max_steps=3))
    assert torch.isfinite(caught.value.solution.value).all()
    sol = best_response(hard, ONE, init=ZERO - 3, solver=LBFGS(max_steps=3), throw=False)
    assert sol.status.name == "MAX_STEPS" and int(sol.num_steps) == 3


def test_nan_inside_the_loss_is_a_status_of_its_own():
    with pytest.raises(SolveError, match="got NONFINITE.*NaN or Inf appeared"):
        best_response(Minimize(lambda t, p: (t - p).sqrt().sum()), ONE, init=ZERO, solver=NewtonCG())


def test_recurrence_has_no_residual_for_implicit():
    problem = Recurrence(lambda t, p, d: t * p, num_steps=2)
    with pytest.raises(TypeError, match="Recurrence: expected a method that differentiates the steps"):
        best_response(problem, ONE, init=ONE, hypergradient=Implicit())
    with pytest.raises(ValueError, match="trajectory"):
        trajectory = Recurrence(lambda t, p, d: t * p, num_steps=2, trajectory=True)
        best_response(trajectory, phi(), init=ONE, hypergradient=Unrolled(checkpoints=2))


def test_unrolling_a_direct_solver_is_refused():
    pair = Eigen(lambda v, p: p * v)
    with pytest.raises(TypeError, match="expected an iterative inner solver"):
        best_response(pair, ONE, init=ONE, hypergradient=Unrolled())


def test_cg_refuses_a_problem_that_does_not_declare_a_minimum():
    p = phi()
    sol = best_response(
        FixedPoint(lambda t, o: 0.1 * t + o), p, init=ZERO, solver=Picard(), hypergradient=Implicit(CG())
    )
    with pytest.raises(ValueError, match="CG: expected an operator tagged POSITIVE_DEFINITE"):
        sol.value.sum().backward()


def test_inputs_are_left_untouched():
    p, start = phi(), ZERO.clone()
    best_response(
        BOWL, p, init=start, solver=GradientDescent(step_size=0.3), hypergradient=Unrolled()
    ).value.sum().backward()
    assert torch.equal(start, ZERO) and torch.equal(p.detach(), ONE)


def test_inner_loss_that_was_detached():
    with pytest.raises(ValueError, match="Minimize: expected a loss that depends on the inner parameters"):
        best_response(Minimize(lambda t, p: ((t - p) ** 2).sum().detach()), ONE, init=ZERO)


def test_statement_of_an_ode_says_what_differentiates_it():
    ode = InitialValue(lambda t, y, p: -p * y, times=torch.tensor([0.0, 1.0], dtype=F64))
    with pytest.raises(
        TypeError, match="differentiates the steps, got one that needs an optimality residual. Use Unrolled"
    ):
        best_response(ode, ONE, init=ONE, hypergradient=Implicit())
