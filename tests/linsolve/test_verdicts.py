"""Whether the status tells the truth: curvature, singularity, standstill, truncation, null spaces."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sciopt.linsolve import (
    CG,
    GMRES,
    LSMR,
    LU,
    MINRES,
    BiCGSTAB,
    Cholesky,
    Jacobi,
    LinearOperator,
    Neumann,
    Tag,
    function_operator,
    matrix_operator,
)
from sciopt.solution import Status
from tests.helpers import LINEAR_CASES, PD, SYMMETRIC, randn, with_spectrum


@pytest.mark.parametrize("solver", [CG(), Cholesky()], ids=["CG", "Cholesky"])
@pytest.mark.parametrize("tags, shown", [(SYMMETRIC, r"\{SYMMETRIC\}"), ((), r"\{\}")])
def test_definite_solvers_refuse_other_operators(solver, tags, shown):
    with pytest.raises(ValueError, match=f"expected an operator tagged POSITIVE_DEFINITE, got tags {shown}. Use"):
        solver.solve(matrix_operator(torch.eye(2), tags=tags), torch.ones(2))


def test_minres_refuses_an_operator_without_tag():
    with pytest.raises(ValueError, match=r"MINRES: expected an operator tagged SYMMETRIC, got tags \{\}. Use GMRES"):
        MINRES().solve(matrix_operator(torch.eye(2)), torch.ones(2))


@pytest.mark.parametrize("solver", [CG(), CG(preconditioner=Jacobi()), Cholesky()], ids=["CG", "CG+Jacobi", "Cholesky"])
def test_negative_curvature_is_reported(solver, dtype, device, generator):
    sizes = torch.linspace(0.5, 2.0, 12).expand(3, 12).clone()
    sizes[1, 4] = -0.3
    sizes[2] = -1.0
    A = with_spectrum(sizes.double(), generator).to(dtype=dtype, device=device)
    b = randn(3, 12, generator=generator, dtype=dtype, device=device)
    solution = solver.solve(matrix_operator(A, tags=PD), b)
    assert solution.status_code.tolist() == [0, Status.INDEFINITE, Status.INDEFINITE]
    assert solution.value.isfinite().all()
    assert (solution.aux["min_ritz"][1:] < 0).all() and solution.aux["min_ritz"][0] > 0


def test_cg_keeps_the_last_good_iterate_before_negative_curvature():
    A = matrix_operator(torch.diag(torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64)), tags=PD)
    b = torch.tensor([3.0, 1.0, 1.0], dtype=torch.float64)
    solution = CG().solve(A, b)
    step = (b @ b) / (b @ A.mv(b))
    assert solution.status is Status.INDEFINITE and solution.num_steps == 1
    torch.testing.assert_close(solution.value, step * b, rtol=1e-14, atol=0.0)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_cg_returns_the_iterate_after_the_last_update(steps, generator):
    """The k-th iterate minimises the energy over the k-dimensional Krylov space."""
    A = with_spectrum(torch.linspace(0.1, 3.0, 20, dtype=torch.float64), generator)
    b = randn(20, generator=generator)
    columns = [b]
    for _ in range(steps - 1):
        columns.append(A @ columns[-1])
    V = torch.linalg.qr(torch.stack(columns, -1))[0]
    best = V @ torch.linalg.solve(V.mT @ A @ V, V.mT @ b)
    solution = CG(rtol=0.0, max_steps=steps).solve(matrix_operator(A, tags=PD), b)
    assert solution.status is Status.MAX_STEPS and solution.num_steps == steps
    torch.testing.assert_close(solution.value, best, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("solver", [MINRES(), GMRES()], ids=["MINRES", "GMRES"])
@pytest.mark.parametrize("steps", [1, 4])
def test_minimal_residual_methods_minimise_the_residual(solver, steps, generator):
    sizes = torch.linspace(0.1, 3.0, 20, dtype=torch.float64) * torch.where(torch.arange(20) % 2 == 0, -1.0, 1.0)
    A = with_spectrum(sizes, generator)
    b = randn(20, generator=generator)
    columns = [b]
    for _ in range(steps - 1):
        columns.append(A @ columns[-1])
    V = torch.linalg.qr(torch.stack(columns, -1))[0]
    best = V @ torch.linalg.lstsq(A @ V, b.unsqueeze(-1)).solution.squeeze(-1)
    solution = type(solver)(rtol=0.0, max_steps=steps).solve(matrix_operator(A, tags=SYMMETRIC), b)
    torch.testing.assert_close(solution.value, best, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("terms", [1, 3, 10])
def test_neumann_sums_exactly_the_terms_asked_for(terms, generator):
    A = with_spectrum(torch.linspace(0.2, 1.8, 8, dtype=torch.float64), generator)
    b = randn(8, generator=generator)
    calls = []
    operator = function_operator(lambda x: (calls.append(1), A @ x)[1], b)
    solution = Neumann(step_size=0.5, rtol=0.0, atol=0.0, max_steps=terms).solve(operator, b)
    series = sum(0.5 * torch.linalg.matrix_power(torch.eye(8) - 0.5 * A, k) @ b for k in range(terms))
    torch.testing.assert_close(solution.value, series, rtol=1e-12, atol=1e-12)
    assert solution.status is Status.MAX_STEPS and solution.num_steps == terms and len(calls) == terms
    torch.testing.assert_close(solution.residual_norm, (b - A @ series).norm(), rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("rtol", [None, 0.0])
def test_neumann_that_does_not_contract_diverges(rtol, generator):
    A = torch.stack([torch.eye(3) * 3, torch.eye(3)]).double()
    solution = Neumann(rtol=rtol, max_steps=20).solve(matrix_operator(A), torch.ones(2, 3, dtype=torch.float64))
    assert solution.status_code.tolist() == [Status.DIVERGED, Status.CONVERGED]


SINGULAR = [CG(), MINRES(), MINRES(preconditioner=Jacobi()), GMRES(restart=20), BiCGSTAB(), LSMR(), Cholesky(), LU()]


@pytest.mark.parametrize("solver", SINGULAR, ids=lambda s: type(s).__name__)
def test_inconsistent_system_is_singular(solver, dtype, device, generator):
    sizes = torch.linspace(1.0, 3.0, 12, dtype=torch.float64).expand(2, 12).clone()
    sizes[1, :2] = 0
    A = with_spectrum(sizes, generator).to(dtype=dtype, device=device)
    b = randn(2, 12, generator=generator, dtype=dtype, device=device)
    solution = solver.solve(matrix_operator(A, tags=PD), b)
    assert solution.status_code.tolist() == [0, Status.SINGULAR]


@pytest.mark.parametrize("solver", [s for s in SINGULAR if not isinstance(s, Cholesky | LU)])
def test_consistent_singular_system_is_solved(solver, device, generator):
    sizes = torch.linspace(0.0, 3.0, 12, dtype=torch.float64)
    A = with_spectrum(sizes, generator).to(device)
    b = A @ randn(12, generator=generator, device=device)
    solution = solver.solve(matrix_operator(A, tags=PD), b)
    assert solution.status is Status.CONVERGED
    if not getattr(solver, "preconditioner", None):  # from zero, iterates stay in the range of A
        torch.testing.assert_close(solution.value, torch.linalg.pinv(A, hermitian=True) @ b, rtol=1e-5, atol=1e-6)


def test_zero_matrix_is_singular():
    A = torch.zeros(4, 4, dtype=torch.float64)
    for case in LINEAR_CASES:
        solution = case.solver.solve(case.operator(A), torch.ones(4, dtype=torch.float64))
        assert solution.status in (Status.SINGULAR, Status.STAGNATED), str(case)
        assert solution.value.isfinite().all(), str(case)


@pytest.mark.parametrize("solver", [CG(rtol=1e-14), LU(rtol=1e-14), GMRES(rtol=1e-14), BiCGSTAB(rtol=1e-14)])
def test_what_rounding_forbids_is_stagnation_not_success(solver, generator):
    A = with_spectrum(torch.logspace(-10, 0, 30, dtype=torch.float64), generator)
    b = randn(30, generator=generator)
    solution = solver.solve(matrix_operator(A, tags=PD), b)
    assert solution.status in (Status.STAGNATED, Status.MAX_STEPS)
    assert (b - A @ solution.value).norm() > 1e-14 * b.norm()


def test_a_drifted_recurrence_is_restarted_until_the_true_residual_is_small(generator):
    """From a start that is off by 1e9 rounding alone keeps the first run of the recurrence above the tolerance."""
    A = with_spectrum(torch.linspace(0.5, 2.0, 20, dtype=torch.float64), generator)
    b = randn(20, generator=generator)
    for solver in (CG(rtol=1e-10), MINRES(rtol=1e-10), BiCGSTAB(rtol=1e-10)):
        solution = solver.solve(matrix_operator(A, tags=PD), b, x0=1e9 * randn(20, generator=generator))
        assert solution.status is Status.CONVERGED, solver
        assert (b - A @ solution.value).norm() <= 1.01e-10 * b.norm(), solver


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    index=st.integers(0, len(LINEAR_CASES) - 1),
    log_condition=st.floats(0, 14),
    rtol=st.sampled_from([1e-3, 1e-6, 1e-10, 1e-13]),
    single=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_converged_means_a_small_true_residual(index, log_condition, rtol, single, seed):
    case = LINEAR_CASES[index]
    dtype = torch.float32 if single else torch.float64
    rtol = max(rtol, 1e-5) if single else rtol
    g = torch.Generator().manual_seed(seed)
    A = with_spectrum(torch.logspace(-log_condition, 0, 12, dtype=torch.float64), g).to(dtype)
    b = randn(3, 12, generator=g, dtype=dtype)
    options = {} if case.direct else {"max_steps": 200}
    solution = type(case.solver)(rtol=rtol, **options).solve(matrix_operator(A.expand(3, 12, 12), tags=PD), b)
    true = (b.double() - solution.value.double() @ A.double()).norm(dim=-1)
    slack = 20 * torch.finfo(dtype).eps * solution.value.double().norm(dim=-1)  # rounding of the product itself
    least_squares = case.solver.__class__ is LSMR
    assert ((true <= 1.01 * rtol * b.norm(dim=-1) + slack) | ~solution.converged).all() or least_squares
    assert solution.status is not Status.NONFINITE and solution.value.isfinite().all()
    assert (solution.status_code >= 0).all()


def test_gmres_restart_matters(generator):
    shift = torch.eye(10, dtype=torch.float64).roll(1, 0)
    b = torch.eye(10, dtype=torch.float64)[0]
    operator = matrix_operator(shift)
    assert GMRES(restart=9).solve(operator, b).status is Status.STAGNATED
    full = GMRES(restart=50).solve(operator, b)
    assert full.status is Status.CONVERGED and full.num_steps == 10
    with pytest.raises(ValueError, match="GMRES: expected `restart` to be an int >= 1, got 0"):
        GMRES(restart=0)
    A = with_spectrum(torch.linspace(0.05, 2.0, 40, dtype=torch.float64), generator)
    rhs = randn(40, generator=generator)
    short, long = (GMRES(restart=r, max_steps=2000).solve(matrix_operator(A), rhs) for r in (5, 40))
    assert short.status is long.status is Status.CONVERGED and short.num_steps > long.num_steps


def test_bicgstab_breaks_down_on_a_rotation():
    rotation = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
    solution = BiCGSTAB().solve(matrix_operator(rotation), torch.tensor([1.0, 0.0], dtype=torch.float64))
    assert solution.status is Status.BREAKDOWN and "GMRES" in solution.status.advice


@pytest.mark.parametrize("solver", [CG(), MINRES(), Cholesky(), LU()], ids=lambda s: type(s).__name__)
def test_curvature_seen_is_that_of_the_matrix(solver, device, generator):
    sizes = torch.stack([torch.linspace(0.5, 4.0, 20), torch.linspace(2.0, 3.0, 20)]).double()
    A = with_spectrum(sizes, generator).to(device)
    b = randn(2, 20, generator=generator, device=device)
    krylov = isinstance(solver, CG | MINRES)
    options = {"rtol": 1e-13} if krylov else {}
    aux = type(solver)(**options).solve(matrix_operator(A, tags=PD), b).aux
    values = torch.linalg.eigvalsh(A)
    rtol = 1e-4 if krylov else 1e-10  # the narrow spectrum is solved before its edges are found exactly
    torch.testing.assert_close(aux["min_ritz"], values[:, 0], rtol=rtol, atol=0.0)
    torch.testing.assert_close(aux["max_ritz"], values[:, -1], rtol=rtol, atol=0.0)


@pytest.mark.parametrize("solver", [CG, MINRES], ids=["CG", "MINRES"])
@pytest.mark.parametrize("preconditioner", [None, Jacobi()], ids=["plain", "Jacobi"])
def test_early_ritz_values_lie_inside_the_spectrum(solver, preconditioner, generator):
    A = with_spectrum(torch.linspace(0.1, 4.0, 30, dtype=torch.float64), generator)
    aux = (
        solver(max_steps=4, preconditioner=preconditioner)
        .solve(matrix_operator(A, tags=PD), randn(30, generator=generator))
        .aux
    )
    assert 0.1 <= aux["min_ritz"] <= aux["max_ritz"] <= 4.0 + 1e-12


def test_singular_values_of_a_general_matrix(generator):
    A = randn(2, 7, 7, generator=generator)
    aux = LU().solve(matrix_operator(A), randn(2, 7, generator=generator)).aux
    values = torch.linalg.svdvals(A)
    torch.testing.assert_close(aux["min_singular"], values[:, -1])
    torch.testing.assert_close(aux["max_singular"], values[:, 0])


def chain(batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Free chains of springs of different stiffness, and their null space."""
    n = 10
    stiffness = 1 + torch.arange(n - 1, dtype=torch.float64) / n + torch.arange(batch).double().unsqueeze(-1)
    difference = torch.eye(n, dtype=torch.float64)[1:] - torch.eye(n, dtype=torch.float64)[:-1]
    A = difference.mT @ (stiffness.unsqueeze(-1) * difference)
    return A, torch.full((batch, n, 1), n**-0.5, dtype=torch.float64)


NULLSPACE = [
    CG(), CG(preconditioner=Jacobi()), MINRES(), MINRES(preconditioner=Jacobi()), GMRES(restart=10), BiCGSTAB(), LSMR(),
    Neumann(step_size=0.1, max_steps=20_000, rtol=1e-6), Cholesky(), LU(),
]  # fmt: skip


@pytest.mark.parametrize("solver", NULLSPACE, ids=lambda s: type(s).__name__)
def test_declared_nullspace_is_projected_out(solver, device, generator):
    A, basis = (t.to(device) for t in chain(3))
    b = randn(3, 10, generator=generator, device=device)
    b[2] = basis[2, :, 0] * 5
    operator = matrix_operator(A, tags=PD, nullspace=basis)
    x0 = randn(3, 10, generator=generator, device=device)
    solution = solver.solve(operator, b, x0=x0)
    assert solution.status is Status.CONVERGED
    expected = (torch.linalg.pinv(A, hermitian=True) @ b.unsqueeze(-1)).squeeze(-1)
    rough = isinstance(solver, Neumann)
    torch.testing.assert_close(solution.value, expected, rtol=1e-5, atol=1e-3 if rough else 1e-6)
    assert torch.equal(solution.value[2], torch.zeros_like(b[2])) and solution.num_steps[2] == 0
    component = (basis.mT @ b.unsqueeze(-1)).squeeze(-1).norm(dim=-1) / b.norm(dim=-1)
    torch.testing.assert_close(solution.aux["nullspace_component"], component)
    values = torch.linalg.eigvalsh(A)
    if isinstance(solver, Cholesky | LU):
        torch.testing.assert_close(solution.aux["min_ritz"], values[:, 1])
        torch.testing.assert_close(solution.aux["max_ritz"], values[:, -1])
    elif "min_ritz" in solution.aux:  # the null space is not part of the curvature seen
        assert (solution.aux["min_ritz"][:2] >= values[:2, 1] * (1 - 1e-9)).all()


def test_undeclared_nullspace_of_a_chain_is_singular():
    A, _ = chain(1)
    b = torch.ones(1, 10, dtype=torch.float64) + torch.arange(10)
    assert CG().solve(matrix_operator(A, tags=PD), b).status is Status.SINGULAR


def test_a_solver_that_never_sees_a_tensor_with_graph(generator):
    """Products by repeated autograd.grad over one retained graph."""
    A = with_spectrum(torch.linspace(0.5, 2.0, 6, dtype=torch.float64), generator)
    theta = randn(6, generator=generator).requires_grad_()
    (gradient,) = torch.autograd.grad(0.5 * theta @ A @ theta, theta, create_graph=True)

    def hvp(v):
        return torch.autograd.grad(gradient, theta, v, retain_graph=True)[0]

    b = randn(6, generator=generator)
    for case in LINEAR_CASES:
        if case.kind == "definite" or isinstance(case.solver, MINRES | GMRES | LU):
            operator = function_operator(hvp, b, tags=PD, diagonal=lambda: A.diagonal())
            solution = case.solver.solve(operator, b)
            torch.testing.assert_close(solution.value, torch.linalg.solve(A, b), rtol=1e-6, atol=1e-7, msg=str(case))
            assert isinstance(operator, LinearOperator) and not solution.value.requires_grad


def test_tag_positive_definite_implies_symmetric():
    assert matrix_operator(torch.eye(2), tags=[Tag.POSITIVE_DEFINITE]).tags == set(Tag)
