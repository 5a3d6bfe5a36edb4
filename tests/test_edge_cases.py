"""Unusual but legitimate uses of the core, and illegitimate ones that must say so in one sentence."""

from __future__ import annotations

import pickle
import warnings
from collections import namedtuple

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap

from sciopt import (
    BilevelProblem,
    FixedPoint,
    Minimize,
    Recurrence,
    Solution,
    SolveError,
    best_response,
    hypergradient,
)
from sciopt.hypergradients import (
    Auto,
    FiniteDifference,
    FirstOrder,
    ForwardUnrolled,
    Implicit,
    OneStep,
    Unrolled,
)
from sciopt.inner import LBFGS, GradientDescent, Picard

F64 = torch.float64
TIGHT = LBFGS(rtol=1e-13, max_steps=300)
PHI = torch.tensor([0.3, -0.7, 1.1], dtype=F64)
ZERO = torch.zeros(3, dtype=F64)
CURVED = Minimize(lambda t, o: ((t - 2 * o) ** 2).sum() + (o.exp() * t**2).sum())
BOWL = Minimize(lambda t, o: ((t - o) ** 2).sum())
METHODS = [Implicit(), Unrolled(), Unrolled(checkpoints=2), ForwardUnrolled(), OneStep(0.5), FirstOrder(), Auto()]
METHODS.append(FiniteDifference(0.5))


def truth(p: Tensor) -> Tensor:
    return 2 * p / (1 + p.exp())


def curved(p: Tensor) -> Tensor:
    return best_response(CURVED, p, init=torch.zeros_like(p), solver=TIGHT, hypergradient=Implicit()).value


def assert_near(a, b, rtol=1e-7, atol=1e-9):
    torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


def test_zero_dimensional_parameters():
    p = torch.tensor(0.3, dtype=F64)
    assert_near(grad(curved)(p), grad(truth)(p))
    assert_near(grad(grad(curved))(p), grad(grad(truth))(p))
    assert_near(jvp(curved, (p,), (torch.ones_like(p),))[1], grad(truth)(p))
    assert_near(vmap(grad(curved))(PHI), vmap(grad(truth))(PHI))


@pytest.mark.parametrize("method", METHODS, ids=lambda m: repr(m))
def test_empty_batches_and_empty_parameters(method):
    rows = Minimize(lambda t, o: ((t - o) ** 2).sum(-1), batch_ndim=1)
    for phi in (torch.ones(0, 2, dtype=F64), torch.ones(2, dtype=F64)):
        p = phi.clone().requires_grad_()
        value = best_response(rows, p, init=torch.zeros(0, 2, dtype=F64), hypergradient=method).value
        assert_near(torch.autograd.grad(value.sum(), p)[0], torch.zeros_like(phi))
    p = torch.ones(0, dtype=F64, requires_grad=True)
    problem = Minimize(lambda t, o: ((t - 1 - o.sum()) ** 2).sum())
    value = best_response(problem, p, init=ZERO, solver=GradientDescent(step_size=0.4), hypergradient=method).value
    assert torch.autograd.grad(value.sum(), p)[0].shape == (0,)


@pytest.mark.parametrize("method", [Implicit(), Unrolled(), Unrolled(num_steps=2)], ids=repr)
def test_hypergradient_of_an_inner_problem_that_ignores_the_outer_parameters(method):
    problem = BilevelProblem(inner=Minimize(lambda t, o: ((t - 1) ** 2).sum()), outer_loss=lambda t, o: (t * o).sum())
    with pytest.raises(ValueError, match="Minimize: expected an inner problem that depends on `outer_params`"):
        hypergradient(problem, PHI, init=ZERO, solver=GradientDescent(), hypergradient=method, throw=False)


def test_an_empty_vmap():
    assert vmap(curved)(torch.zeros(0, 3, dtype=F64)).shape == (0, 3)


def test_an_empty_batch_makes_a_message():
    none = torch.zeros(0, dtype=torch.int64)
    empty = Solution(value=ZERO, status_code=none, residual_norm=torch.zeros(0), num_steps=none)
    assert "after 0 steps" in str(SolveError("CG", empty))


Pair = namedtuple("Pair", "left right")


@pytest.mark.parametrize("box", [None, (-1.0, 0.5), (Pair(None, -1.0), Pair(0.5, None))])
def test_named_tuples(box):
    p = torch.full((2,), 0.3, dtype=F64, requires_grad=True)
    problem = Minimize(lambda t, o: ((t.left - o) ** 2).sum() + ((t.right - 2 * o) ** 2).sum(), box=box)
    value = best_response(problem, p, init=Pair(ZERO[:2], ZERO[:2])).value
    assert type(value) is Pair
    expected = torch.full((2,), 1.0 if box == (-1.0, 0.5) else 3.0, dtype=F64)  # the upper bound holds `right` at 0.5
    assert_near(torch.autograd.grad((value.left + value.right).sum(), p)[0], expected)


def test_bounds_that_cross_are_refused():
    for box in [(1.0, -1.0), (float("nan"), 1.0), lambda o: (o, o - 1e-3)]:
        with pytest.raises(ValueError, match="Minimize: expected `box` as .lower, upper. with lower <= upper"):
            best_response(Minimize(lambda t, o: ((t - o) ** 2).sum(), box=box), PHI, init=ZERO)


def test_dual_levels_without_torch_func():
    q = PHI.clone().requires_grad_()
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(q, torch.ones_like(PHI))
        tangent = forward_ad.unpack_dual(curved(dual)).tangent
        assert tangent is not None
        second = torch.autograd.grad(tangent.sum(), q)[0]
    assert_near(tangent.detach(), jvp(truth, (PHI,), (torch.ones_like(PHI),))[1])
    assert_near(second, hessian(lambda p: truth(p).sum())(PHI).sum(0))


def test_fourth_order_and_repeated_backward():
    q = PHI.clone().requires_grad_()
    value, f = curved(q).square().sum(), lambda p: truth(p).square().sum()
    for _ in range(3):
        mine = torch.autograd.grad(value, q, retain_graph=True, create_graph=True)[0]
        assert_near(mine.detach(), grad(f)(PHI), rtol=1e-6, atol=1e-6)
        again = torch.autograd.grad(value, q, retain_graph=True)[0]
        assert torch.equal(again, mine.detach()) or torch.allclose(again, mine.detach(), rtol=1e-12)
        value, f = mine.sum(), lambda p, f=f: grad(f)(p).sum()


@pytest.mark.parametrize("mode", [jacrev, jacfwd])
def test_vmap_of_second_derivatives_and_other_dimensions(mode):
    rows = torch.stack([PHI, 2 * PHI, -PHI])
    expected = vmap(hessian(lambda p: truth(p).square().sum()))(rows)
    assert_near(vmap(mode(grad(lambda p: curved(p).square().sum())))(rows), expected)
    columns = rows.mT.contiguous()
    assert_near(vmap(mode(grad(lambda p: curved(p).square().sum())), in_dims=1)(columns), expected)
    assert_near(jacrev(vmap(curved))(rows), jacrev(vmap(truth))(rows))


def test_captured_integers_and_masks_under_vmap():
    def picked(index: Tensor, mask: Tensor) -> Tensor:
        problem = Minimize(lambda t, o: ((t - torch.where(mask, o[index], 0.0)) ** 2).sum())
        return grad(lambda p: best_response(problem, p, init=ZERO, solver=TIGHT).value @ PHI)(PHI)

    index = torch.tensor([[0, 1, 2], [2, 1, 0]])
    mask = torch.tensor([[True, False, True], [True, True, False]])
    expected = [
        torch.zeros(3, dtype=F64).index_put((i,), PHI * m, accumulate=True) for i, m in zip(index, mask, strict=True)
    ]
    assert_near(vmap(picked)(index, mask), torch.stack(expected))


def test_only_some_leaves_require_a_gradient():
    problem = Minimize(lambda t, o: ((t - o["a"] * o["b"]) ** 2).sum())
    for method in METHODS:
        a, b = PHI.clone().requires_grad_(), torch.full((3,), 2.0, dtype=F64)
        solver = GradientDescent(step_size=0.3, rtol=1e-12, max_steps=200)
        value = best_response(problem, {"a": a, "b": b}, init=ZERO, solver=solver, hypergradient=method).value
        value.sum().backward()
        if not isinstance(method, FirstOrder):
            assert_near(a.grad, b, rtol=1e-6, atol=1e-6)
        assert b.grad is None


def test_a_tensor_both_captured_and_passed():
    for method in [Implicit(), Unrolled(), Unrolled(checkpoints=3), ForwardUnrolled()]:

        def h(p: Tensor, method=method) -> Tensor:
            problem = Minimize(lambda t, o: ((t - o * p) ** 2).sum())
            solver = GradientDescent(step_size=0.3, rtol=1e-12, max_steps=200)
            return best_response(problem, p, init=ZERO, solver=solver, hypergradient=method).value.sum()

        q = PHI.clone().requires_grad_()
        assert_near(torch.autograd.grad(h(q), q)[0], 2 * PHI)
        assert_near(grad(h)(PHI), 2 * PHI)
        assert_near(jvp(h, (PHI,), (PHI,))[1], 2 * (PHI @ PHI))


def test_in_place_changes_between_the_passes():
    q, start = PHI.clone().requires_grad_(), ZERO.clone()
    total = best_response(CURVED, q, init=start, solver=TIGHT, hypergradient=Implicit()).value.sum()
    start.add_(1.0)  # the start is a copy of the caller's
    assert_near(torch.autograd.grad(total, q, retain_graph=True)[0], grad(lambda p: truth(p).sum())(PHI))
    with torch.no_grad():
        q.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        total.backward()


def test_the_value_shares_no_memory_with_the_start():
    start = PHI.clone()
    best_response(BOWL, PHI, init=start).value.add_(1.0)  # the start is the solution
    assert_near(start, PHI)


def test_inner_loss_with_its_own_derivative():
    def loss(t: Tensor, o: Tensor) -> Tensor:
        slope = grad(lambda u: (u**3).sum() / 3 + (u * o).sum())(t)
        return (slope**2).sum() + (t - o).square().sum()

    q = PHI.clone().requires_grad_()
    value = best_response(Minimize(loss), q, init=ZERO, solver=TIGHT).value
    t = value.detach()
    assert_near(torch.autograd.grad(value.sum(), q)[0], -(4 * t - 2) / (12 * t**2 + 4 * PHI + 2))


def test_randomness_inside_the_inner_functions_is_refused():
    dropout = torch.nn.Dropout(0.5)
    noisy = Minimize(lambda t, o: ((dropout(t) - o) ** 2).sum() + (t**2).sum())
    with pytest.raises(
        ValueError, match="Minimize: expected inner functions that return the same .* draws random numbers"
    ):
        best_response(noisy, PHI.clone().requires_grad_(), init=ZERO)
    walk = Recurrence(lambda t, o, k: 0.5 * t + o * torch.rand_like(t), num_steps=4)
    with pytest.raises(ValueError, match="Recurrence: .* draws random numbers"):
        best_response(walk, PHI.clone().requires_grad_(), init=ZERO, hypergradient=Unrolled(checkpoints=2))
    q = PHI.clone().requires_grad_()
    best_response(walk, q, init=ZERO, hypergradient=Unrolled()).value.sum().backward()  # what was drawn is recorded
    assert q.grad is not None and torch.isfinite(q.grad).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_is_refused(dtype):
    with pytest.raises(TypeError, match="best_response: expected .* in float32 or float64, got torch.*float16"):
        best_response(BOWL, PHI.to(dtype), init=ZERO.to(dtype))


def test_inference_mode_is_refused():
    problem = BilevelProblem(inner=BOWL, outer_loss=lambda t, o: t.sum())
    with torch.inference_mode():
        with pytest.raises(RuntimeError, match="best_response: expected a call outside torch.inference_mode"):
            best_response(BOWL, PHI, init=ZERO)
        with pytest.raises(RuntimeError, match="hypergradient: expected a call outside torch.inference_mode"):
            hypergradient(problem, PHI, init=ZERO)


def test_hypergradient_as_a_value_is_refused_under_transforms():
    problem = BilevelProblem(inner=BOWL, outer_loss=lambda t, o: t.sum())
    with pytest.raises(RuntimeError, match="hypergradient: expected a call outside torch.func transforms"):
        vmap(lambda p: hypergradient(problem, p, init=ZERO).grad)(PHI.expand(2, 3))


def test_no_grad_outside_leaves_transforms_and_values_intact():
    with torch.no_grad():
        assert_near(curved(PHI.clone().requires_grad_()), truth(PHI))
        assert_near(grad(lambda p: curved(p).sum())(PHI), grad(lambda p: truth(p).sum())(PHI))


@pytest.mark.parametrize("method", METHODS, ids=lambda m: repr(m))
def test_failed_solves_without_throwing(method):
    undefined = Minimize(lambda t, o: (t - o.abs()).sqrt().sum())
    q = PHI.clone().requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        solution = best_response(undefined, q, init=ZERO, hypergradient=method, throw=False)
        assert solution.status.name == "NONFINITE"
        assert torch.autograd.grad(solution.value.sum(), q)[0].shape == (3,)  # a tensor, not a confusing error
        with pytest.raises(SolveError, match="NONFINITE") as caught:
            best_response(undefined, q, init=ZERO, hypergradient=method)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_slow_fixed_point():
    M = torch.diag(torch.tensor([0.999, -0.999, 0.5], dtype=F64))
    p = torch.ones(3, dtype=F64, requires_grad=True)
    solution = best_response(
        FixedPoint(lambda t, o: M @ t + o),
        p,
        init=ZERO,
        solver=Picard(rtol=1e-4),
        hypergradient=Implicit(),
        throw=False,
    )
    assert_near(torch.autograd.grad(solution.value.sum(), p)[0], 1 / (1 - M.diagonal()))
