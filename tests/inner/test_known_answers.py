"""Solvers against answers known from elsewhere: SciPy, the literature, formulas."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import scipy.linalg
import scipy.optimize
import torch
from torch import Tensor

from sciopt.inner import (
    LBFGS,
    Anderson,
    Broyden,
    ConstrainedNewton,
    EigenSolve,
    GaussNewton,
    GradientDescent,
    Newton,
    NewtonCG,
    Picard,
    ProximalGradient,
)
from sciopt.problem import Constrained, Eigen, FixedPoint, LeastSquares, Minimize, RootFind
from sciopt.solution import Status
from tests.helpers import randn, with_spectrum
from tests.inner.cases import bind, solve

NONE = torch.zeros(1, dtype=torch.float64)


def chain(x: Tensor, _: Tensor) -> Tensor:
    """Rosenbrock's function, chained over the last dimension."""
    return (100 * (x[..., 1:] - x[..., :-1] ** 2) ** 2 + (1 - x[..., :-1]) ** 2).sum(-1)


def himmelblau(x: Tensor, _: Tensor) -> Tensor:
    return (x[..., 0] ** 2 + x[..., 1] - 11) ** 2 + (x[..., 0] + x[..., 1] ** 2 - 7) ** 2


SMOOTH = pytest.mark.parametrize("solver", [LBFGS(rtol=1e-10), NewtonCG(rtol=1e-10)], ids=["LBFGS", "NewtonCG"])


@SMOOTH
def test_rosenbrock_in_a_hundred_dimensions(solver) -> None:
    start = torch.full((100,), -1.2, dtype=torch.float64)
    solution = solve(solver, Minimize(chain), start, NONE)
    assert solution.status is Status.CONVERGED
    # a second, local minimum exists near (-1, 1, ..., 1)
    assert float(chain(solution.value, NONE)) < 4.0


@SMOOTH
def test_rosenbrock_from_many_starts(solver) -> None:
    starts = torch.tensor([[-1.2, 1.0], [0.0, 0.0], [2.0, 2.0], [-3.0, -4.0], [10.0, -10.0]], dtype=torch.float64)
    solution = solve(solver, Minimize(chain, batch_ndim=1), starts, NONE)
    assert solution.status is Status.CONVERGED
    torch.testing.assert_close(solution.value, torch.ones_like(starts), rtol=0, atol=1e-5)


@SMOOTH
def test_himmelblau_reaches_one_of_its_four_minima(solver) -> None:
    starts = torch.tensor([[0.0, 0.0], [-3.0, 3.0], [-4.0, -4.0], [4.0, -2.0]], dtype=torch.float64)
    minima = torch.tensor(
        [[3.0, 2.0], [-2.805118, 3.131312], [-3.779310, -3.283186], [3.584428, -1.848126]], dtype=torch.float64
    )
    solution = solve(solver, Minimize(himmelblau, batch_ndim=1), starts, NONE)
    assert solution.status is Status.CONVERGED
    assert float(torch.cdist(solution.value, minima).amin(-1).max()) < 1e-5


@SMOOTH
@pytest.mark.parametrize("condition", [1e2, 1e4])
def test_quadratic_to_ten_digits(solver, condition: float, generator: torch.Generator) -> None:
    n = 40
    A = with_spectrum(torch.logspace(0, np.log10(condition), n, dtype=torch.float64), generator)
    b = randn(n, generator=generator)
    problem = Minimize(lambda x, phi: 0.5 * (x * (A @ x)).sum() - (x * phi).sum())
    solution = solve(solver, problem, torch.zeros_like(b), b)
    assert solution.status is Status.CONVERGED
    assert float((A @ solution.value - b).norm()) <= 1.01e-10 * float(b.norm())


@SMOOTH
def test_logistic_regression_equals_scipy(solver, generator: torch.Generator) -> None:
    X, y = randn(80, 30, generator=generator), torch.sign(randn(80, generator=generator))
    problem = Minimize(lambda w, phi: torch.nn.functional.softplus(-y * (X @ w)).sum() + 0.5 * (phi * w * w).sum())
    penalty = torch.full((30,), 0.1, dtype=torch.float64)
    oracle, x = bind(problem, torch.zeros(30, dtype=torch.float64), penalty)
    solution = solver.solve(oracle, x)
    assert solution.status is Status.CONVERGED

    def loss(w: np.ndarray) -> tuple[float, np.ndarray]:
        z = -y.numpy() * (X.numpy() @ w)
        grad = X.numpy().T @ (-y.numpy() / (1 + np.exp(-z))) + 0.1 * w
        return float(np.logaddexp(0, z).sum() + 0.05 * w @ w), grad

    reference = scipy.optimize.minimize(loss, np.zeros(30), jac=True, method="BFGS", options={"gtol": 1e-9})
    torch.testing.assert_close(solution.value, torch.from_numpy(reference.x), rtol=0, atol=1e-8)


def test_lbfgs_needs_no_more_evaluations_than_scipy(generator: torch.Generator) -> None:
    X, y = randn(100, 500, generator=generator) / 8, torch.sign(randn(100, generator=generator))
    problem = Minimize(lambda w, phi: torch.nn.functional.softplus(-y * (X @ w)).sum() + 0.5 * phi * (w * w).sum())
    oracle, x = bind(problem, torch.zeros(500, dtype=torch.float64), torch.tensor(0.05, dtype=torch.float64))
    start = float(oracle.value_and_grad(x)[1].norm())
    before = oracle.counter["gradient"]
    solution = LBFGS(rtol=1e-8).solve(oracle, x)
    mine = oracle.counter["gradient"] - before
    assert solution.status is Status.CONVERGED

    def loss(w: np.ndarray) -> tuple[float, np.ndarray]:
        value, grad = oracle.value_and_grad(torch.from_numpy(w))
        return float(value), grad.numpy()

    options = {"maxcor": 10, "ftol": 0.0, "gtol": 1e-8 * start / 500**0.5, "maxiter": 1000}
    theirs = scipy.optimize.minimize(loss, np.zeros(500), jac=True, method="L-BFGS-B", options=options).nfev
    assert mine <= 1.3 * theirs + 3


@pytest.mark.parametrize("solver", [LBFGS(), NewtonCG(), GradientDescent()], ids=lambda s: type(s).__name__)
def test_a_start_at_the_solution_to_rounding_is_converged_not_stagnated(solver, generator) -> None:
    A = with_spectrum(torch.logspace(0, 3, 30, dtype=torch.float64), generator)
    b = randn(30, generator=generator)
    problem = Minimize(lambda x, phi: 0.5 * (x * (A @ x)).sum() - (x * phi).sum())
    best = torch.linalg.solve(A, b)
    solution = solve(solver, problem, best, b)
    assert solution.status is Status.CONVERGED
    torch.testing.assert_close(solution.value, best, rtol=1e-10, atol=1e-10)


def test_a_kink_is_stagnation() -> None:
    kink = Minimize(lambda x, phi: torch.maximum(x - phi, 2 * (phi - x)).sum())
    phi = torch.tensor([0.3, -0.7], dtype=torch.float64)
    assert solve(LBFGS(), kink, torch.zeros(2, dtype=torch.float64), phi).status is Status.STAGNATED


@pytest.mark.parametrize(
    "solver", [LBFGS(), NewtonCG(), GradientDescent(), GradientDescent(step_size=0.1)], ids=lambda s: str(s)[:24]
)
def test_an_unbounded_loss_diverges_quickly(solver) -> None:
    problem = Minimize(lambda x, phi: -(x**2).sum() * phi.sum())
    start = torch.full((3,), 0.1, dtype=torch.float64)
    solution = solve(solver, problem, start, torch.ones(1, dtype=torch.float64))
    assert solution.status is Status.DIVERGED
    assert int(solution.num_steps) < 500


def test_a_diverging_map_is_told_from_a_converging_neighbour() -> None:
    problem = FixedPoint(lambda x, phi: phi * x + 1, batch_ndim=1)
    slopes = torch.tensor([[0.5], [2.0], [-0.5]], dtype=torch.float64)
    solution = solve(Picard(), problem, torch.ones(3, 1, dtype=torch.float64), slopes)
    assert solution.status_code.tolist() == [0, int(Status.DIVERGED), 0]
    assert int(solution.num_steps[1]) < 60
    # Newton does not need a contraction
    roots = solve(Newton(rtol=1e-12), problem, torch.ones(3, 1, dtype=torch.float64), slopes)
    torch.testing.assert_close(roots.value, 1 / (1 - slopes), rtol=1e-10, atol=0)


@pytest.mark.parametrize("solver", [Picard(rtol=1e-12), Anderson(rtol=1e-12), Broyden(rtol=1e-12), Newton(rtol=1e-12)])
def test_the_fixed_point_of_the_cosine(solver) -> None:
    solution = solve(solver, FixedPoint(lambda x, phi: torch.cos(x)), torch.ones(1, dtype=torch.float64), NONE)
    assert solution.status is Status.CONVERGED
    assert float(solution.value) == pytest.approx(0.7390851332151607, abs=1e-11)


def test_a_fixed_point_at_the_origin_is_reached() -> None:
    solution = solve(Picard(), FixedPoint(lambda x, phi: 0.5 * x), torch.ones(2, dtype=torch.float64), NONE)
    assert solution.status is Status.CONVERGED
    assert float(solution.value.abs().max()) < 1e-14


def test_anderson_and_broyden_beat_picard_on_a_slow_map(generator: torch.Generator) -> None:
    M = with_spectrum(torch.linspace(-0.9, 0.98, 40, dtype=torch.float64), generator)
    b = randn(40, generator=generator)
    problem = FixedPoint(lambda x, phi: M @ x + phi)
    exact = torch.linalg.solve(torch.eye(40, dtype=torch.float64) - M, b)
    counts = {}
    for solver in (Picard(rtol=1e-12, max_steps=3000), Anderson(rtol=1e-12), Broyden(rtol=1e-12)):
        solution = solve(solver, problem, torch.zeros_like(b), b)
        assert solution.status is Status.CONVERGED
        torch.testing.assert_close(solution.value, exact, rtol=1e-8, atol=1e-8)
        counts[type(solver).__name__] = int(solution.num_steps)
    assert counts["Anderson"] < 0.4 * counts["Picard"]
    assert counts["Broyden"] < 0.2 * counts["Picard"]


def test_broyden_memory_grows_with_the_steps_up_to_its_limit() -> None:
    def residual(x: Tensor, _: Tensor) -> Tensor:
        wide = torch.nn.functional.pad(x, (1, 1))
        return (3 - 2 * x) * x - wide[:-2] - 2 * wide[2:] + 1

    start = -torch.ones(50, dtype=torch.float64)
    few = solve(Broyden(max_steps=3), RootFind(residual), start, NONE)
    assert few.state["left"].shape == (8, 50)  # room for the first few; far less than the history
    limited = solve(Broyden(history=6, rtol=1e-10), RootFind(residual), start, NONE)
    assert limited.status is Status.CONVERGED
    assert limited.state["left"].shape == (6, 50)


def test_a_root_of_an_equation_in_large_units_with_negative_slope() -> None:
    problem = RootFind(lambda x, phi: -1000 * (x**3 + x - phi))
    phi = torch.tensor([1.0, 10.0, 100.0], dtype=torch.float64)
    reference = [np.roots([1, 0, 1, -p]) for p in phi.tolist()]
    exact = torch.tensor([float(r[np.abs(r.imag) < 1e-12].real[0]) for r in reference], dtype=torch.float64)
    for solver in (Broyden(rtol=1e-12), Newton(rtol=1e-12)):
        solution = solve(solver, problem, torch.ones(3, dtype=torch.float64), phi)
        torch.testing.assert_close(solution.value, exact, rtol=1e-9, atol=0)


def test_an_equation_without_a_root_is_no_success() -> None:
    start = torch.ones(1, dtype=torch.float64)
    problem = RootFind(lambda x, phi: x**2 + 1)
    assert solve(Newton(), problem, start, NONE).status in (Status.SINGULAR, Status.STAGNATED)
    assert solve(Broyden(), problem, start, NONE).status is Status.STAGNATED
    line = RootFind(lambda x, phi: torch.stack([x[0] + x[1], x[0] + x[1] - 1]))
    assert solve(Newton(), line, torch.ones(2, dtype=torch.float64), NONE).status is Status.SINGULAR


@pytest.mark.parametrize("dense_limit", [256, 0])
def test_exponential_fit_by_gauss_newton_equals_scipy(dense_limit: int) -> None:
    t = torch.linspace(0, 2, 30, dtype=torch.float64)
    y = 2 * torch.exp(-1.5 * t) + 0.3 + 0.01 * torch.cos(40 * t)
    problem = LeastSquares(lambda p, phi: p[..., :1] * torch.exp(-p[..., 1:2] * t) + p[..., 2:] - phi, batch_ndim=1)
    starts = torch.tensor([[1.0, 1.0, 0.0], [5.0, 0.1, 3.0]], dtype=torch.float64)
    solution = solve(GaussNewton(rtol=1e-10, dense_limit=dense_limit), problem, starts, y)
    assert solution.status is Status.CONVERGED
    reference = scipy.optimize.least_squares(
        lambda p: p[0] * np.exp(-p[1] * t.numpy()) + p[2] - y.numpy(), [1.0, 1.0, 0.0], xtol=1e-15, gtol=1e-14
    )
    torch.testing.assert_close(solution.value, torch.from_numpy(reference.x).expand(2, 3), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("accelerated", [True, False])
def test_lasso_satisfies_its_optimality_conditions(accelerated: bool, generator: torch.Generator) -> None:
    X, w = randn(40, 60, generator=generator), torch.zeros(60, dtype=torch.float64)
    w[:5] = 3.0
    y = X @ w + 0.1 * randn(40, generator=generator)

    def soft(x: Tensor, step, phi: Tensor) -> Tensor:
        return torch.sign(x) * (x.abs() - step * phi).clamp_min(0.0)

    problem = Minimize(lambda x, phi: 0.5 * ((X @ x - y) ** 2).sum(), prox=soft)
    penalty = torch.tensor(4.0, dtype=torch.float64)
    solver = ProximalGradient(rtol=1e-9, accelerated=accelerated)
    solution = solve(solver, problem, torch.zeros(60, dtype=torch.float64), penalty)
    assert solution.status is Status.CONVERGED
    slope = X.T @ (y - X @ solution.value)
    support = solution.value != 0
    assert 5 <= int(support.sum()) < 30
    torch.testing.assert_close(slope[support], 4.0 * torch.sign(solution.value[support]), rtol=0, atol=1e-5)
    assert float(slope.abs().max()) <= 4.0 + 1e-5


def test_non_negative_least_squares_equals_scipy(generator: torch.Generator) -> None:
    X, y = randn(40, 20, generator=generator).abs(), randn(40, generator=generator)
    problem = Minimize(lambda x, phi: 0.5 * ((X @ x - phi) ** 2).sum(), box=(0.0, None))
    solution = solve(ProximalGradient(rtol=1e-10), problem, torch.zeros(20, dtype=torch.float64), y)
    reference, _ = scipy.optimize.nnls(X.numpy(), y.numpy())
    torch.testing.assert_close(solution.value, torch.from_numpy(reference), rtol=0, atol=1e-8)


def test_smooth_solvers_refuse_a_box() -> None:
    problem = Minimize(lambda x, phi: (x**2).sum(), box=(0.0, None))
    with pytest.raises(TypeError, match="LBFGS: expected a smooth Minimize without `box` or `prox`"):
        LBFGS().check(problem)
    with pytest.raises(TypeError, match="LBFGS: expected a problem of class Minimize, LeastSquares, got FixedPoint"):
        LBFGS().check(FixedPoint(lambda x, phi: x))
    ProximalGradient().check(problem)


def test_the_point_of_a_circle_and_its_multiplier() -> None:
    problem = Constrained(
        lambda x, phi: (x * phi).sum(-1), equality=lambda x, phi: (x * x).sum(-1, keepdim=True) - 1, batch_ndim=1
    )
    starts = torch.tensor([[1.0, 0.1], [0.0, -1.0], [0.6, 0.8], [3.0, 5.0]], dtype=torch.float64)
    solution = solve(ConstrainedNewton(rtol=1e-10), problem, starts, torch.ones(2, dtype=torch.float64))
    assert solution.status is Status.CONVERGED
    half = 0.5**0.5
    exact = torch.tensor([-half, -half, half], dtype=torch.float64).expand(4, 3)
    torch.testing.assert_close(solution.value, exact, rtol=0, atol=1e-8)


def test_hock_schittkowski_71() -> None:
    problem = Constrained(
        lambda x, phi: x[0] * x[3] * (x[0] + x[1] + x[2]) + x[2],
        equality=lambda x, phi: ((x * x).sum() - 40).reshape(1),
        inequality=lambda x, phi: torch.cat([(25 - x.prod()).reshape(1), 1 - x, x - 5]),
    )
    start = torch.tensor([1.0, 5.0, 5.0, 1.0], dtype=torch.float64)
    solution = solve(ConstrainedNewton(rtol=1e-10), problem, start, NONE)
    assert solution.status is Status.CONVERGED
    exact = torch.tensor([1.0, 4.74299963, 3.82114998, 1.37940829], dtype=torch.float64)
    torch.testing.assert_close(solution.value[:4], exact, rtol=0, atol=1e-7)


def test_quadratic_programs_equal_an_enumeration_of_active_sets(generator: torch.Generator) -> None:
    Q = with_spectrum(torch.tensor([1.0, 3.0, 10.0], dtype=torch.float64), generator)
    linear = 5 * randn(4, 3, generator=generator)
    problem = Constrained(
        lambda x, phi: 0.5 * ((x @ Q) * x).sum(-1) + (x * phi).sum(-1),
        inequality=lambda x, phi: torch.cat([-x, x.sum(-1, keepdim=True) - 1], -1),
        batch_ndim=1,
    )
    solution = solve(ConstrainedNewton(rtol=1e-10), problem, torch.zeros(4, 3, dtype=torch.float64), linear)
    assert solution.status is Status.CONVERGED
    rows = torch.cat([-torch.eye(3, dtype=torch.float64), torch.ones(1, 3, dtype=torch.float64)])
    bounds = torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=torch.float64)
    for i in range(4):
        best = None
        for mask in range(8 * 2):
            active = [k for k in range(4) if mask >> k & 1]
            if len(active) > 3:
                continue
            G = rows[active]
            k = len(active)
            saddle = torch.cat([torch.cat([Q, G.T], 1), torch.cat([G, torch.zeros(k, k, dtype=Q.dtype)], 1)])
            z = torch.linalg.solve(saddle, torch.cat([-linear[i], bounds[active]]))
            if bool((rows @ z[:3] <= bounds + 1e-9).all()) and bool((z[3:] >= -1e-9).all()):
                best = z, active
        assert best is not None
        multipliers = torch.zeros(4, dtype=torch.float64)
        multipliers[best[1]] = best[0][3:]
        torch.testing.assert_close(solution.value[i, :3], best[0][:3], rtol=0, atol=1e-8)
        torch.testing.assert_close(solution.value[i, 3:], multipliers, rtol=0, atol=1e-7)


def test_contradictory_constraints_are_infeasible() -> None:
    both = Constrained(lambda x, phi: (x * x).sum(-1), inequality=lambda x, phi: torch.cat([1 - x, x], -1))
    start = torch.tensor([0.3], dtype=torch.float64)
    assert solve(ConstrainedNewton(), both, start, NONE).status is Status.INFEASIBLE
    none = Constrained(lambda x, phi: (x * x).sum(-1), equality=lambda x, phi: (x * x).sum(-1, keepdim=True) + 1)
    assert solve(ConstrainedNewton(), none, start, NONE).status is Status.INFEASIBLE


@pytest.mark.parametrize("index", [0, 2, -1])
@pytest.mark.parametrize("dense_limit", [1500, 0])
def test_vibration_modes_equal_scipy(index: int, dense_limit: int) -> None:
    n = 24
    off = torch.diag(torch.ones(n - 1, dtype=torch.float64), 1)
    K = 2 * torch.eye(n, dtype=torch.float64) - off - off.mT
    M = torch.diag(torch.linspace(0.5, 1.5, n, dtype=torch.float64))
    problem = Eigen(lambda v, phi: v @ K, mass=lambda v, phi: v @ M, index=index)
    solution = solve(EigenSolve(dense_limit=dense_limit), problem, torch.ones(n, dtype=torch.float64), NONE)
    values, vectors = scipy.linalg.eigh(K.numpy(), M.numpy())
    assert solution.status is Status.CONVERGED
    assert float(solution.value[0]) == pytest.approx(values[index], rel=1e-8)
    overlap = solution.value[1:] @ M @ torch.from_numpy(vectors[:, index])
    assert abs(float(overlap)) == pytest.approx(1.0, abs=1e-7)


@pytest.mark.parametrize("dense_limit", [1500, 0])
def test_a_multiple_eigenvalue_is_singular(dense_limit: int) -> None:
    weights = torch.cat([torch.ones(2), torch.arange(2.0, 30.0)]).double()
    solution = solve(
        EigenSolve(dense_limit=dense_limit), Eigen(lambda v, phi: v * weights), torch.ones(30).double(), NONE
    )
    assert solution.status is Status.SINGULAR


def test_eigen_refuses_an_unsymmetric_operator() -> None:
    A = torch.tensor([[1.0, 2.0], [0.0, 3.0]], dtype=torch.float64)
    with pytest.raises(ValueError, match="EigenSolve: expected a symmetric `operator`"):
        solve(EigenSolve(), Eigen(lambda v, phi: A @ v), torch.ones(2, dtype=torch.float64), NONE)


def test_a_declared_null_space_is_kept_out_of_the_steps(generator: torch.Generator) -> None:
    """A ring of springs: uniform shifts cost nothing, and the solver adds none."""
    rest = 1 + 0.1 * randn(8, generator=generator)
    problem = Minimize(
        lambda x, phi: ((x.roll(-1, -1) - x - phi) ** 2).sum() + ((x.roll(-1, -1) - x) ** 4).sum(),
        nullspace=lambda x, phi: torch.ones(8, 1, dtype=torch.float64),
    )
    start = randn(8, generator=generator)
    solution = solve(NewtonCG(rtol=1e-10), problem, start, rest)
    assert solution.status is Status.CONVERGED
    assert float(solution.value.mean()) == pytest.approx(float(start.mean()), abs=1e-12)


def test_easy_rows_are_unharmed_by_a_hard_one() -> None:
    scales = torch.tensor([[1.0, 1.0], [1.0, 1e6], [2.0, 3.0]], dtype=torch.float64)
    problem = Minimize(lambda x, phi: (phi * (x - 1) ** 2).sum(-1) + 0.1 * (x**4).sum(-1), batch_ndim=1)
    for solver in (LBFGS(rtol=1e-9), NewtonCG(rtol=1e-9)):
        batch = solve(solver, problem, torch.zeros(3, 2, dtype=torch.float64), scales)
        easy = solve(solver, problem, torch.zeros(2, 2, dtype=torch.float64), scales[[0, 2]])
        assert torch.equal(batch.value[[0, 2]], easy.value)
        assert torch.equal(batch.num_steps[[0, 2]], easy.num_steps)


@pytest.mark.parametrize("batch_ndim", [0, 1])
def test_lbfgs_moves_no_unknown_by_more_than_max_change(batch_ndim):
    """From the valley of 0 a long step would land in another valley of the cosine."""
    problem = Minimize(lambda x, phi: (1e-3 * x**2 - 20 * torch.cos(x - phi)).sum(-1), batch_ndim=batch_ndim)
    start = torch.full((1,) * batch_ndim + (3,), 0.5, dtype=torch.float64)
    seen = []
    watched = replace(problem, inner_loss=lambda x, phi: seen.append(x.detach().clone()) or problem.inner_loss(x, phi))
    phi = torch.tensor([2.5, 2.0, 1.5], dtype=torch.float64)
    found = solve(LBFGS(max_change=0.25), watched, start, phi)
    assert found.status is Status.CONVERGED
    torch.testing.assert_close(found.value, phi.expand_as(start), rtol=0, atol=1e-3)
    assert max(float((b - a).abs().max()) for a, b in pairwise(seen)) <= 0.25 + 1e-12
