"""Leave-one-out errors from dual weights, and the bent kernel, against fits made one by one."""

from __future__ import annotations

import pytest
import torch

from sciopt.inner import bent_kernel, leave_one_out, left_out_errors, weighted_kernel_ridge
from tests.helpers import randn


def made(generator: torch.Generator, *batch: int, n: int = 7) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x = randn(*batch, n, 3, generator=generator)
    kernel = torch.exp(-0.5 * torch.cdist(x, x).square())
    return kernel, randn(*batch, n, generator=generator), randn(*batch, n, generator=generator).exp()


def test_left_out_errors_are_those_of_fits_without_each_row(generator: torch.Generator) -> None:
    kernel, targets, weights = made(generator)
    dual = weighted_kernel_ridge(kernel, targets, weights, 0.3)
    found = left_out_errors(kernel, dual, weights, 0.3)
    for k in range(7):
        rest = torch.arange(7) != k
        alone = weighted_kernel_ridge(kernel[rest][:, rest], targets[rest], weights[rest], 0.3)
        torch.testing.assert_close(found[k], targets[k] - kernel[k, rest] @ alone, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(found, targets - leave_one_out(kernel, targets, 0.3, weights), rtol=1e-11, atol=1e-12)


def test_left_out_errors_in_a_batch_with_a_penalty_each(generator: torch.Generator) -> None:
    kernel, targets, weights = made(generator, 3)
    penalty = torch.tensor([[0.1], [1.0], [3.0]], dtype=torch.float64)
    found = left_out_errors(kernel, weighted_kernel_ridge(kernel, targets, weights, penalty), weights, penalty)
    for k in range(3):
        dual = weighted_kernel_ridge(kernel[k], targets[k], weights[k], penalty[k, 0])
        alone = left_out_errors(kernel[k], dual, weights[k], penalty[k, 0])
        torch.testing.assert_close(found[k], alone, rtol=1e-11, atol=1e-12)


def test_bent_kernel_solves_the_penalised_problem(generator: torch.Generator) -> None:
    """Against the normal equations of ``sum w (f - y)^2 + penalty (a' K a + s f' L f)`` in all dual weights."""
    kernel, targets, weights = made(generator)
    edges = randn(9, 7, generator=generator)
    quadratic, seen, penalty, strength = edges.mT @ edges, 4, 0.2, 0.7
    bent, transposed = bent_kernel(kernel, quadratic, strength)
    torch.testing.assert_close(bent, bent.mT)
    dual = weighted_kernel_ridge(bent[:seen, :seen], targets[:seen], weights[:seen], penalty)
    found = transposed[:, :seen] @ dual
    share = torch.diag(torch.where(torch.arange(7) < seen, weights, 0.0))
    normal = kernel @ share @ kernel + penalty * (kernel + strength * kernel @ quadratic @ kernel)
    reference = torch.linalg.solve(normal, kernel @ share @ targets)
    torch.testing.assert_close(kernel @ found, kernel @ reference, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(bent[:, :seen] @ dual, kernel @ reference, rtol=1e-8, atol=1e-9)


def test_bent_kernel_without_strength_is_the_kernel(generator: torch.Generator) -> None:
    kernel = made(generator, 2)[0]
    bent, transposed = bent_kernel(kernel, kernel, 0.0)
    torch.testing.assert_close(bent, kernel, rtol=0, atol=1e-15)
    torch.testing.assert_close(transposed, torch.eye(7, dtype=torch.float64).expand(2, 7, 7), rtol=0, atol=0)


def test_derivatives(generator: torch.Generator) -> None:
    kernel, targets, weights = made(generator, n=4)
    laplacian = torch.diag(kernel.sum(-1)) - kernel

    def both(logs: torch.Tensor, strength: torch.Tensor, penalty: torch.Tensor) -> torch.Tensor:
        bent, _ = bent_kernel(kernel, laplacian, strength.exp())
        dual = weighted_kernel_ridge(bent, targets, logs.exp(), penalty.exp())
        return left_out_errors(bent, dual, logs.exp(), penalty.exp())

    inputs = (weights.log().requires_grad_(), *(torch.tensor(v).double().requires_grad_() for v in (0.1, -1.0)))
    assert torch.autograd.gradcheck(both, inputs, atol=1e-7, rtol=1e-6)


def test_refusals(generator: torch.Generator) -> None:
    kernel, targets, weights = made(generator)
    with pytest.raises(ValueError, match="expected `weights` > 0"):
        left_out_errors(kernel, targets, 0 * weights, 1.0)
    with pytest.raises(ValueError, match="expected `dual` of shape"):
        left_out_errors(kernel, targets[:3], weights, 1.0)
    with pytest.raises(ValueError, match="expected a square `kernel`"):
        bent_kernel(kernel[:3], kernel, 1.0)
    with pytest.raises(ValueError, match="expected `quadratic` of shape"):
        bent_kernel(kernel, kernel[:3, :3], 1.0)
    with pytest.raises(ValueError, match="expected `strength` >= 0"):
        bent_kernel(kernel, kernel, -1.0)
