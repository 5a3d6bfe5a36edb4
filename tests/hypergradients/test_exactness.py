"""Every exact method on every problem of the table: first and second order, every transform, batched and looped."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.func import grad, jacfwd, jacrev, vmap

from sciopt import best_response
from sciopt.hypergradients import Auto, ClosedForm, ForwardUnrolled, Implicit, Unrolled
from sciopt.linsolve import CG, GMRES, LSMR, LU, MINRES, BiCGSTAB, Cholesky, Neumann
from tests.hypergradients.cases import CASES, Case

# name -> (method, problems it is made for (None: all), relative tolerance at first and second order)
METHODS = {
    "Auto": (Auto(), None, 1e-9, 1e-8),
    "Implicit": (Implicit(), None, 1e-9, 1e-8),
    "Implicit(CG)": (
        Implicit(CG(rtol=1e-13, max_steps=500)),
        ("ridge", "logistic", "quadratic", "molecule"),
        1e-9,
        1e-8,
    ),
    "Implicit(MINRES)": (Implicit(MINRES(rtol=1e-12, max_steps=500)), ("ridge", "quadratic", "molecule"), 1e-9, 1e-8),
    "Implicit(GMRES)": (Implicit(GMRES(rtol=1e-13)), ("ridge", "logistic", "deq"), 1e-9, 1e-8),
    "Implicit(BiCGSTAB)": (Implicit(BiCGSTAB(rtol=1e-13)), ("ridge", "deq"), 1e-9, 1e-8),
    "Implicit(LSMR)": (Implicit(LSMR(rtol=1e-13, max_steps=500)), ("ridge", "deq"), 1e-9, 1e-8),
    "Implicit(LU)": (Implicit(LU()), ("ridge", "logistic", "quadratic", "deq"), 1e-9, 1e-8),
    "Implicit(Cholesky)": (Implicit(Cholesky()), ("ridge", "logistic", "quadratic", "molecule"), 1e-9, 1e-8),
    "Implicit(Neumann)": (Implicit(Neumann(rtol=1e-13, max_steps=500)), ("deq",), 1e-9, 1e-8),
    # The path of an unroll converges with the inner rate: its derivative is a little behind its value.
    "Unrolled": (Unrolled(), None, 1e-8, 1e-6),
    "Unrolled(checkpoints)": (Unrolled(checkpoints=7), None, 1e-8, 1e-6),
    "ForwardUnrolled": (ForwardUnrolled(), ("ridge", "logistic", "deq"), 1e-8, 1e-6),
    "ClosedForm": (None, ("ridge", "quadratic"), 1e-11, 1e-11),
}
TABLE = [(m, c) for m, (_, only, *_) in METHODS.items() for c in CASES if only is None or c in only]


def build(method: str, case_name: str):
    """The case, h(phi) through the core, and the reference's first and second derivative."""
    case = CASES[case_name](torch.Generator().manual_seed(20))
    strategy = METHODS[method][0]
    if strategy is None:
        assert case.formula is not None
        strategy = ClosedForm(case.formula)
    solver = case.unroller if "nrolled" in method else case.solver

    def h(phi: Tensor) -> Tensor:
        sol = best_response(case.problem, phi, init=case.init, solver=solver, hypergradient=strategy)
        return case.outer_loss(sol.value, phi)

    return case, h


_references: dict[str, tuple[Tensor, Tensor]] = {}


def reference(case: Case) -> tuple[Tensor, Tensor]:
    """Gradient and Hessian of the reference, computed once for each problem."""
    if case.name not in _references:
        truth = case.reference(case.settled(case.phi))
        _references[case.name] = grad(truth)(case.phi), jacrev(grad(truth))(case.phi)
    return _references[case.name]


def assert_near(actual: Tensor, expected: Tensor, rtol: float) -> None:
    """Relative to the size of the whole tensor: single entries may be small."""
    assert torch.linalg.vector_norm(actual - expected) <= rtol * torch.linalg.vector_norm(expected)


@pytest.mark.parametrize(("method", "name"), TABLE)
def test_first_and_second_order_in_reverse(method, name):
    case, h = build(method, name)
    first, second = reference(case)
    phi = case.phi.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(h(phi), phi, create_graph=True)
    assert_near(gradient.detach(), first, METHODS[method][2])
    (row,) = torch.autograd.grad(gradient[0], phi, retain_graph=True)
    assert_near(row, second[0], METHODS[method][3])


@pytest.mark.parametrize(
    ("method", "name"),
    [(m, c) for m, c in TABLE if (m, c) not in {("Unrolled", "quadratic"), ("Unrolled(checkpoints)", "quadratic")}],
)
def test_under_func_transforms(method, name):
    case, h = build(method, name)
    first, second = reference(case)
    rtol, rtol2 = METHODS[method][2:]
    direction = torch.linspace(-1, 1, case.phi.numel(), dtype=torch.float64)
    assert_near(grad(h)(case.phi), first, rtol)
    assert_near(torch.func.jvp(h, (case.phi,), (direction,))[1], first @ direction, rtol)
    if "nrolled" not in method:  # the mixes of an unroll are torch's own; the core's are below
        assert_near(jacfwd(grad(h))(case.phi), second, rtol2)  # forward over reverse
        assert_near(jacrev(grad(h))(case.phi), second, rtol2)  # reverse over reverse
        assert_near(grad(lambda p: torch.func.jvp(h, (p,), (direction,))[1])(case.phi), second @ direction, rtol2)


@pytest.mark.parametrize(
    ("method", "name"), [(m, c) for m, c in TABLE if "(checkpoints)" not in m and c != "quadratic"]
)
def test_vmapped_equals_looped(method, name):
    case, h = build(method, name)
    phis = torch.stack([case.phi, case.phi * 1.02, case.phi - 0.01])
    looped = torch.stack([grad(h)(phi) for phi in phis])
    assert_near(vmap(grad(h))(phis), looped, METHODS[method][2])


@pytest.mark.parametrize("name", CASES)
def test_central_differences_of_the_resolved_problem(name):
    case, h = build("Implicit", name)
    direction = torch.sin(torch.arange(case.phi.numel(), dtype=torch.float64) + 1)
    eps = 1e-5  # far above the noise of a solve at 1e-13, far below the scale of phi
    with torch.no_grad():
        slope = (h(case.phi + eps * direction) - h(case.phi - eps * direction)) / (2 * eps)
    assert_near(grad(h)(case.phi) @ direction, slope, 1e-6)


def test_forward_over_forward_is_refused():
    case, h = build("Implicit", "ridge")
    with pytest.raises(NotImplementedError, match="nested ones, for which torch silently drops"):
        jacfwd(jacfwd(h))(case.phi)


def test_direct_formula_agrees_with_its_autograd():
    case, h = build("Implicit", "ridge")
    formula = case.formula
    assert formula is not None
    assert_near(grad(h)(case.phi), grad(lambda p: case.outer_loss(formula(p), p))(case.phi), 1e-10)
