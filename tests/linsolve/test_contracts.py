"""What every linear solver promises."""

import pickle
from dataclasses import replace

import pytest
import torch

from sciopt.linsolve import CG, AbstractLinearSolver, NystromPreconditioner, matrix_operator
from sciopt.solution import Status
from tests.helpers import ITERATIVE_CASES, LINEAR_CASES, randn, tol

every = pytest.mark.parametrize("case", LINEAR_CASES, ids=str)
iterative = pytest.mark.parametrize("case", ITERATIVE_CASES, ids=str)


def relative_residual(A, x, b):
    return (b - (A @ x.unsqueeze(-1)).squeeze(-1)).norm(dim=-1) / b.norm(dim=-1)


@every
def test_known_answer(case, dtype, device, generator):
    A = case.matrix(n=24, generator=generator, dtype=dtype, device=device)
    b = randn(24, generator=generator, dtype=dtype, device=device)
    solution = case.solver.solve(case.operator(A), b)
    assert solution.status is Status.CONVERGED
    assert solution.value.dtype == dtype and solution.value.device == A.device
    assert solution.status_code.shape == solution.residual_norm.shape == solution.num_steps.shape == ()
    torch.testing.assert_close(solution.value, torch.linalg.solve(A, b), **tol(dtype))
    residual = relative_residual(A, solution.value, b)
    assert residual <= (1.01e-8 if dtype == torch.float64 else 1.1e-4)
    if not case.direct:  # a direct residual is at rounding level, where it has no digits
        torch.testing.assert_close(solution.residual_norm, residual * b.norm(), rtol=0.1, atol=0.0)


@iterative
def test_rtol_is_honoured_at_two_levels(case, device, generator):
    A = case.matrix(n=24, generator=generator, device=device)
    b = randn(24, generator=generator, device=device)
    loose, tight = (replace(case.solver, rtol=rtol).solve(case.operator(A), b) for rtol in (1e-3, 1e-10))
    assert relative_residual(A, tight.value, b) <= 1.01e-10 < relative_residual(A, loose.value, b) <= 1.01e-3
    assert loose.num_steps < tight.num_steps


@iterative
def test_atol_in_units_of_the_right_hand_side(case, device, generator):
    A = case.matrix(n=24, generator=generator, device=device)
    b = 1e-3 * randn(24, generator=generator, device=device)
    solution = replace(case.solver, rtol=0.0, atol=1e-6).solve(case.operator(A), b)
    assert solution.status is Status.CONVERGED
    assert 1e-12 < relative_residual(A, solution.value, b) * b.norm() <= 1.01e-6


@every
def test_batch_equals_single_runs(case, device, generator):
    A = case.matrix(3, n=16, generator=generator, device=device)
    b = randn(3, 16, generator=generator, device=device)
    b[1] *= 1e6
    solver = fresh(case.solver)
    together = solver.solve(case.operator(A), b)
    alone = [fresh(case.solver).solve(case.operator(A[i]), b[i]) for i in range(3)]
    assert together.status is Status.CONVERGED
    for i, one in enumerate(alone):
        torch.testing.assert_close(together.value[i], one.value, rtol=1e-6, atol=1e-7 * float(b[i].abs().max()))
        if not is_random(case.solver):
            assert abs(int(together.num_steps[i] - one.num_steps)) <= 1


@every
@pytest.mark.parametrize("poison", ["rhs", "matrix"])
def test_a_bad_row_and_a_solved_row_leave_the_others_alone(case, poison, device, generator):
    A = case.matrix(4, n=16, generator=generator, device=device)
    b = randn(4, 16, generator=generator, device=device)
    if poison == "rhs":
        b[0, 3] = torch.nan
    else:
        A[0, 2, 3] = A[0, 3, 2] = torch.nan
    b[2] = 0
    x0 = torch.zeros_like(b)
    x0[3] = torch.linalg.solve(A[3], b[3])
    clean = fresh(case.solver).solve(case.operator(A[1]), b[1])
    solution = fresh(case.solver).solve(case.operator(A), b, x0=x0)
    assert solution.status_code.tolist() == [Status.NONFINITE, 0, 0, 0]
    assert solution.value.isfinite().all() and solution.residual_norm[0].isnan()
    torch.testing.assert_close(solution.value[1], clean.value, rtol=1e-6, atol=1e-7)
    assert torch.equal(solution.value[2], torch.zeros_like(b[2])) and solution.residual_norm[2] == 0
    torch.testing.assert_close(solution.value[3], x0[3], rtol=1e-12, atol=1e-12)
    if not case.direct:
        assert solution.num_steps.tolist()[2:] == [0, 0]


def test_a_zero_right_hand_side_survives_a_matrix_of_nan():
    for case in LINEAR_CASES:
        A = torch.full((2, 5, 5), torch.nan, dtype=torch.float64)
        A[1] = torch.eye(5)
        b = torch.stack([torch.zeros(5), torch.ones(5)]).double()
        solution = fresh(case.solver).solve(case.operator(A), b)
        assert solution.status is Status.CONVERGED, str(case)
        torch.testing.assert_close(solution.value, b, rtol=1e-7, atol=0.0)


@every
def test_zero_right_hand_side_is_exactly_zero(case, device, dtype):
    A = torch.eye(4, dtype=dtype, device=device) * 1.5
    zero = torch.zeros(4, dtype=dtype, device=device)
    strict = replace(fresh(case.solver), rtol=0.0, atol=0.0)
    solution = strict.solve(case.operator(A), zero, x0=torch.ones_like(zero))
    assert solution.status is Status.CONVERGED and solution.num_steps == 0
    assert torch.equal(solution.value, zero) and solution.residual_norm == 0


@iterative
def test_exact_start_takes_no_step(case, device, generator):
    x = randn(6, generator=generator, device=device)
    A = 2 * torch.eye(6, dtype=torch.float64, device=device)
    strict = replace(fresh(case.solver), rtol=0.0, atol=0.0)
    solution = strict.solve(case.operator(A), 2 * x, x0=x)
    assert solution.status is Status.CONVERGED and solution.num_steps == 0
    assert torch.equal(solution.value, x)


@every
def test_one_by_one_is_exact(case, dtype, device):
    A = torch.tensor([[[3.0]], [[7.0]]], dtype=dtype, device=device)
    b = torch.tensor([[2.0], [-1e-20]], dtype=dtype, device=device)
    solution = fresh(case.solver).solve(case.operator(A), b)
    assert solution.status is Status.CONVERGED
    assert torch.equal(solution.value, b / A[..., 0])


@every
@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_scale_of_the_right_hand_side_does_not_matter(case, scale, device, generator):
    A = case.matrix(n=12, generator=generator, dtype=torch.float32, device=device)
    b = randn(12, generator=generator, dtype=torch.float32, device=device)
    solution = fresh(case.solver).solve(case.operator(A), b * scale)  # squares leave the range of float32
    assert solution.status is Status.CONVERGED
    torch.testing.assert_close(solution.value / scale, torch.linalg.solve(A, b), **tol(torch.float32))


@every
def test_inputs_are_untouched(case, device, generator):
    A = case.matrix(2, n=10, generator=generator, device=device)
    b, x0 = (randn(2, 10, generator=generator, device=device) for _ in range(2))
    copies = [t.clone() for t in (A, b, x0)]
    solution = fresh(case.solver).solve(case.operator(A), b, x0=x0)
    assert all(torch.equal(t, c) for t, c in zip((A, b, x0), copies, strict=True))
    assert not solution.value.requires_grad and solution.value.data_ptr() not in (b.data_ptr(), x0.data_ptr())


@every
@pytest.mark.parametrize("shape", [(0, 3), (2, 0)], ids=["no problem", "no unknown"])
def test_nothing_to_solve(case, shape):
    A = torch.zeros(*shape, shape[-1], dtype=torch.float64)
    solution = fresh(case.solver).solve(case.operator(A), torch.zeros(shape, dtype=torch.float64))
    assert solution.value.shape == shape and solution.status_code.shape == shape[:1] and solution.converged.all()


@every
def test_product_may_return_its_argument(case):
    from sciopt.linsolve import function_operator

    b = torch.arange(1.0, 6.0, dtype=torch.float64)
    operator = function_operator(lambda x: x, b, tags=case.tags, diagonal=lambda: torch.ones_like(b))
    solution = fresh(case.solver).solve(operator, b)
    torch.testing.assert_close(solution.value, b, rtol=1e-7, atol=0.0)


@every
def test_same_seed_same_bits(case, device, generator):
    A = case.matrix(2, n=10, generator=generator, device=device)
    b = randn(2, 10, generator=generator, device=device)
    first, second = (fresh(case.solver).solve(case.operator(A), b) for _ in range(2))
    assert torch.equal(first.value, second.value) and torch.equal(first.num_steps, second.num_steps)


@every
def test_pickle_round_trip(case, generator):
    copy, other = (pickle.loads(pickle.dumps(case.solver)) for _ in range(2))
    A = case.matrix(n=10, generator=generator)
    b = randn(10, generator=generator)
    if not is_random(case.solver):
        assert copy == case.solver
    assert torch.equal(copy.solve(case.operator(A), b).value, other.solve(case.operator(A), b).value)


@iterative
def test_spent_budget_is_told(case, device, generator):
    A = case.matrix(2, n=24, generator=generator, device=device)
    b = randn(2, 24, generator=generator, device=device)
    b[0] = 0
    solution = replace(fresh(case.solver), max_steps=3).solve(case.operator(A), b)
    assert solution.status_code.tolist() == [0, Status.MAX_STEPS] and solution.num_steps.tolist() == [0, 3]
    norm = relative_residual(A, solution.value, b)[1] * b[1].norm()
    torch.testing.assert_close(solution.residual_norm[1], norm, rtol=1e-9, atol=0.0)
    none = replace(fresh(case.solver), max_steps=0).solve(case.operator(A), b)
    assert none.status_code.tolist() == [0, Status.MAX_STEPS] and torch.equal(none.value, torch.zeros_like(b))


@every
def test_misspelt_option_is_a_type_error(case):
    with pytest.raises(TypeError, match="rtoll"):
        type(case.solver)(rtoll=1e-3)


@every
def test_misuse(case):
    A = case.operator(torch.eye(3, dtype=torch.float64).expand(2, 3, 3))
    solver = fresh(case.solver)
    with pytest.raises(ValueError, match=r"expected `rhs` of shape \(2, 3\), got \(3,\)"):
        solver.solve(A, torch.ones(3, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"expected `x0` of shape \(2, 3\), got \(2, 4\)"):
        solver.solve(A, torch.ones(2, 3, dtype=torch.float64), x0=torch.ones(2, 4, dtype=torch.float64))
    with pytest.raises(TypeError, match=r"expected `rhs` in torch.float64 on cpu, got torch.float32"):
        solver.solve(A, torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"expected `rtol` in \[0, 1\), got 2"):
        replace(solver, rtol=2.0)
    with pytest.raises(ValueError, match="expected `atol` >= 0, got -1"):
        replace(solver, atol=-1.0)
    with pytest.raises(ValueError, match="expected `rtol` 0 or >= .* for torch.float64, got 1e-18"):
        replace(solver, rtol=1e-18).solve(A, torch.ones(2, 3, dtype=torch.float64))


def test_every_solver_is_final_frozen_and_listed():
    def subclasses(cls):
        return {c for c in cls.__subclasses__() if c.__module__.startswith("sciopt.linsolve")}

    found = subclasses(AbstractLinearSolver)
    # one made for a problem cannot solve any other matrix: tests of its own
    assert {c for c in found if not c.tailored} == {type(case.solver) for case in LINEAR_CASES}
    for cls in found:
        assert getattr(cls, "__final__", False) and getattr(cls, "__dataclass_params__").frozen  # noqa: B009
        assert cls.__mro__[1] is AbstractLinearSolver


def test_max_steps_must_be_an_int():
    with pytest.raises(ValueError, match="CG: expected `max_steps` to be an int >= 0, got 1.5"):
        CG(max_steps=1.5)  # type: ignore[arg-type]


def is_random(solver) -> bool:
    return isinstance(getattr(solver, "preconditioner", None), NystromPreconditioner)


def fresh(solver):
    """The solver with its random preconditioner rewound: a shared generator moves on with each use."""
    if not is_random(solver):
        return solver
    old = solver.preconditioner
    return replace(solver, preconditioner=NystromPreconditioner(old.rank, torch.Generator().manual_seed(0)))


def test_matrix_operator_is_what_the_contract_tests_use(generator):
    A = randn(3, 4, generator=generator)
    assert torch.equal(matrix_operator(A).as_matrix(), A)
