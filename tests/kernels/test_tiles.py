"""Tiles against the whole: values, products, gradients to second order, and what a solve makes of them."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from sciopt.kernels import (
    NNGP,
    NTK,
    RBF,
    ConvNetwork,
    DenseNetwork,
    Embedded,
    EmpiricalNTK,
    Erf,
    Hamming,
    LeakyRelu,
    Linear,
    cross_matrix,
    gram,
    kernel_operator,
    kernel_product,
    kernel_tensors,
    with_kernel_tensors,
)
from sciopt.linsolve import CG, NystromPreconditioner, linear_solve
from tests.helpers import randn

F64 = torch.float64
gradcheck = partial(torch.autograd.gradcheck, fast_mode=True)
gradgradcheck = partial(torch.autograd.gradgradcheck, fast_mode=True)


def number(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=F64, requires_grad=True)


def smooth() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2)).double()


KERNELS = {
    "relu": lambda: NTK(DenseNetwork(hidden_layers=2)),
    "relu-tensors": lambda: NTK(
        DenseNetwork(hidden_layers=2, weight_variance=torch.tensor([1.0, 2.0, 1.5], dtype=F64, requires_grad=True))
    ),
    "erf": lambda: NNGP(
        DenseNetwork(hidden_layers=2, activation=Erf(), weight_variance=number(1.2), bias_variance=number(0.3))
    ),
    "leaky": lambda: NTK(DenseNetwork(hidden_layers=2, activation=LeakyRelu(slope=0.2), bias_variance=0.2)),
    "rbf": lambda: RBF(
        length_scale=torch.tensor([0.8, 1.0, 2.0, 3.0], dtype=F64, requires_grad=True), variance=number(2.0)
    ),
    "linear": lambda: Linear(variance=number(2.0), bias=number(0.1)),
    "hamming": lambda: Hamming(positions=2, length_scale=number(1.5)),
    "embedded": lambda: Embedded(embedding=torch.sin, kernel=RBF(length_scale=number(0.7))),
    "empirical": lambda: EmpiricalNTK(smooth()),
}


@pytest.mark.parametrize("name", KERNELS)
def test_tiles_equal_the_whole_and_differentiate(name: str, generator: torch.Generator) -> None:
    torch.manual_seed(0)
    kernel = KERNELS[name]()
    x, z = (randn(n, 4, generator=generator).requires_grad_() for n in (5, 4))
    c, e = randn(4, 2, generator=generator).requires_grad_(), randn(5, generator=generator).requires_grad_()
    torch.testing.assert_close(cross_matrix(kernel, x, z, tile=6), kernel.pair(x, z), rtol=1e-12, atol=1e-13)
    whole = gram(kernel, x)
    torch.testing.assert_close(gram(kernel, x, tile=6), whole, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(kernel_product(kernel, x, z, c, tile=6), kernel.pair(x, z) @ c, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(kernel_product(kernel, x, None, e, tile=6), whole @ e, rtol=1e-12, atol=1e-13)
    tensors = kernel_tensors(kernel)

    def of(value):
        return lambda *args: value(with_kernel_tensors(kernel, list(args[: len(tensors)])), *args[len(tensors) :])

    # the second argument alone asks for both slopes in one pass, three ask for everything
    assert gradcheck(lambda x: cross_matrix(kernel, x, z.detach(), tile=6), (x,))
    assert gradcheck(of(lambda k, x, z: cross_matrix(k, x, z, tile=6)), (*tensors, x, z))
    assert gradcheck(of(lambda k, x: gram(k, x, tile=6)), (*tensors, x))
    assert gradcheck(of(lambda k, x, z, c: kernel_product(k, x, z, c, tile=6)), (*tensors, x, z, c))
    assert gradcheck(of(lambda k, x, e: kernel_product(k, x, None, e, tile=6)), (*tensors, x, e))


def test_slopes_serve_several_point_gradients(generator: torch.Generator) -> None:
    x, z = (randn(n, 4, generator=generator).requires_grad_() for n in (5, 4))
    for kernel in (NTK(DenseNetwork(hidden_layers=3)), NNGP(DenseNetwork(hidden_layers=2, bias_variance=0.4))):
        assert kernel.slopes(x, z) is not None
        assert gradcheck(lambda x, z, k=kernel: cross_matrix(k, x, z, tile=6), (x, z))
        assert gradcheck(lambda x, k=kernel: gram(k, x, tile=6), (x,))


def test_second_derivatives_and_transforms(generator: torch.Generator) -> None:
    x, z = randn(3, 4, generator=generator).requires_grad_(), randn(2, 4, generator=generator)
    kernel = NNGP(DenseNetwork(hidden_layers=1, activation=Erf(), weight_variance=number(1.2)))
    (w,) = kernel_tensors(kernel)
    assert gradgradcheck(lambda x, w: cross_matrix(with_kernel_tensors(kernel, [w]), x, z), (x, w))
    assert gradgradcheck(lambda x: gram(kernel, x), (x,))
    fixed = NNGP(DenseNetwork(hidden_layers=1, activation=Erf()))
    assert gradgradcheck(lambda x: cross_matrix(fixed, x, z), (x,))
    batch = randn(5, 3, 4, generator=generator)
    stacked = torch.func.vmap(lambda b: gram(fixed, b))(batch)
    torch.testing.assert_close(stacked, torch.stack([gram(fixed, b) for b in batch]))
    jacobian = torch.func.jacfwd(lambda b: cross_matrix(fixed, b, z))(batch[0])
    torch.testing.assert_close(jacobian, torch.func.jacrev(lambda b: fixed.pair(b, z))(batch[0]))


def test_sequences(generator: torch.Generator) -> None:
    kernel = NTK(ConvNetwork(hidden_layers=2, weight_variance=number(1.3)))
    x = randn(5, 4, 3, generator=generator).requires_grad_()
    (w,) = kernel_tensors(kernel)
    torch.testing.assert_close(gram(kernel, x, tile=64), kernel.pair(x, x), rtol=1e-12, atol=1e-12)
    assert gradcheck(lambda x, w: gram(with_kernel_tensors(kernel, [w]), x, tile=64), (x, w))


def test_operator_never_stored_solves_with_nystrom(generator: torch.Generator) -> None:
    x, y = randn(400, 8, generator=generator), randn(400, generator=generator)
    kernel = NTK(DenseNetwork(hidden_layers=3))
    operator = kernel_operator(kernel, x, 1e-3, tile=5000)
    dense = gram(kernel, x) + 1e-3 * torch.eye(400, dtype=F64)
    torch.testing.assert_close(operator.as_matrix(), dense, rtol=1e-12, atol=1e-12)
    assert operator.diagonal is not None
    torch.testing.assert_close(operator.diagonal(), dense.diagonal())
    solution = linear_solve(
        operator, y, CG(rtol=1e-11, preconditioner=NystromPreconditioner(100, generator, shift=1e-3))
    )
    torch.testing.assert_close(solution.value, torch.linalg.solve(dense, y), rtol=1e-8, atol=1e-8)
    single = kernel_operator(kernel, x.float(), 1e-3, dtype=F64)
    assert single.mv(y).dtype == F64
    torch.testing.assert_close(single.mv(y), dense @ y, rtol=1e-4, atol=1e-5)


def test_hamming_counts_letters_and_rbf_survives_offsets() -> None:
    words = torch.nn.functional.one_hot(torch.tensor([[0, 1, 2], [0, 1, 3], [3, 3, 3]]), 4).double()
    expected = torch.exp(-torch.tensor([[0.0, 1, 3], [1, 0, 2], [3, 2, 0]], dtype=F64) / 2)
    torch.testing.assert_close(gram(Hamming(positions=3, length_scale=2.0), words), expected)
    near = 1e6 + torch.tensor([[0.0], [1.0]], dtype=F64)
    assert float(RBF().pair(near[:1], near)[0, 1]) == pytest.approx(0.6065306597126334, rel=1e-12)


def test_bad_calls_say_what_was_expected() -> None:
    x = torch.ones(3, 2)
    with pytest.raises(ValueError, match="RBF: expected `length_scale` > 0, got 0.0"):
        RBF(length_scale=0.0)
    with pytest.raises(ValueError, match="with points of one shape"):
        cross_matrix(Linear(), x, torch.ones(3, 3))
    with pytest.raises(TypeError, match="expected `left` as a floating-point tensor, got torch.int64"):
        gram(Linear(), torch.ones(3, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"expected `columns` of shape \(3,\)"):
        kernel_product(Linear(), x, None, torch.ones(2))
    with pytest.raises(ValueError, match="kernel_operator: expected `shift` > 0"):
        kernel_operator(Linear(), x, 0.0)
    with pytest.raises(ValueError, match=r"Embedded: expected `embedding` to return \(3, features\), got \(2, 2\)"):
        gram(Embedded(embedding=lambda p: p[:2], kernel=Linear()), x)
    with pytest.raises(ValueError, match="with_kernel_tensors: expected 0 `tensors`, got 1"):
        with_kernel_tensors(Linear(), [torch.ones(())])


def test_an_empty_set_of_points_gives_an_empty_matrix() -> None:
    some, none = torch.ones(3, 4, dtype=F64), torch.ones(0, 4, dtype=F64)
    kernel = KERNELS["relu"]()
    assert cross_matrix(kernel, none, some).shape == (0, 3) and cross_matrix(kernel, some, none).shape == (3, 0)
    assert torch.equal(kernel_product(kernel, some, none, torch.ones(0, dtype=F64)), torch.zeros(3, dtype=F64))
