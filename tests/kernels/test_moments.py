"""Row sums of a kernel matrix and of its squares against the stored matrix: values, gradients, second derivatives."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from sciopt.kernels import (
    NNGP,
    NTK,
    RBF,
    AbstractKernel,
    DenseNetwork,
    Erf,
    LeakyRelu,
    Linear,
    cross_matrix,
    kernel_moments,
)
from tests.helpers import randn

F64 = torch.float64
KERNELS: dict[str, AbstractKernel] = {
    "relu": NTK(DenseNetwork(hidden_layers=5)),
    "relu covariance": NNGP(DenseNetwork(hidden_layers=2)),
    "deep, by recursion": NTK(DenseNetwork(hidden_layers=30)),
    "leaky with biases": NTK(DenseNetwork(hidden_layers=2, activation=LeakyRelu(slope=0.2), bias_variance=0.2)),
    "erf": NNGP(DenseNetwork(hidden_layers=2, activation=Erf(), bias_variance=0.3)),
    "linear": Linear(bias=0.3),
    "without slopes": RBF(length_scale=2.0),
}


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
@pytest.mark.parametrize("tile", [7, 1 << 16])
def test_sums_and_gradients_are_those_of_the_stored_matrix(kernel, tile, generator: torch.Generator) -> None:
    right, columns, squares = (randn(9, d, generator=generator) for d in (4, 2, 3))
    left = randn(5, 4, generator=generator).requires_grad_()
    up = randn(5, 5, generator=generator)
    first, second = kernel_moments(kernel, left, right, columns, squares, tile=tile)
    matrix = cross_matrix(kernel, left, right)
    torch.testing.assert_close(first, matrix @ columns, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(second, matrix.square() @ squares, rtol=1e-12, atol=1e-12)
    (got,) = torch.autograd.grad((first * up[:, :2]).sum() + (second * up[:, 2:]).sum(), left)
    want = (matrix @ columns * up[:, :2]).sum() + (matrix.square() @ squares * up[:, 2:]).sum()
    torch.testing.assert_close(got, torch.autograd.grad(want, left)[0], rtol=1e-10, atol=1e-10)


def test_second_derivatives_and_gradients_in_everything(generator: torch.Generator) -> None:
    kernel = KERNELS["leaky with biases"]
    left, right, columns, squares = (
        randn(n, d, generator=generator).requires_grad_() for n, d in ((3, 4), (5, 4), (5, 2), (5, 1))
    )
    fixed = [t.detach() for t in (right, columns, squares)]
    gradgradcheck = partial(torch.autograd.gradgradcheck, fast_mode=True)
    assert gradgradcheck(lambda x: kernel_moments(kernel, x, *fixed), (left,))
    assert torch.autograd.gradcheck(
        lambda *args: kernel_moments(kernel, *args), (left, right, columns, squares), fast_mode=True
    )
    hessian = torch.func.hessian(lambda x: kernel_moments(kernel, x, *fixed)[1].sum())(left.detach())
    plain = torch.func.hessian(lambda x: (kernel.pair(x, fixed[0]).square() @ fixed[2]).sum())(left.detach())
    torch.testing.assert_close(hessian, plain)


def test_without_gradient_nothing_is_differentiated(generator: torch.Generator) -> None:
    left, right, columns = (randn(n, 4, generator=generator) for n in (3, 6, 6))
    first, second = kernel_moments(KERNELS["relu"], left, right, columns, columns)
    with torch.no_grad():
        again = kernel_moments(KERNELS["relu"], left.requires_grad_(), right, columns, columns)
    assert not first.requires_grad and not again[0].requires_grad
    assert torch.equal(first, again[0]) and torch.equal(second, again[1])


def test_bad_columns_are_refused() -> None:
    with pytest.raises(ValueError, match=r"kernel_moments: expected `squares` of shape \(3, k\)"):
        kernel_moments(Linear(), torch.ones(2, 4), torch.ones(3, 4), torch.ones(3, 1), torch.ones(2, 1))
