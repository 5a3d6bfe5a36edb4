"""Kernels of sequences with alike letters: the product, its expansion into interactions, gradients, refusals."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from torch import Tensor

from sciopt.kernels import AlikeLetters, Hamming, gram

SIMILARITY = torch.tensor([[1.0, 0.6, 0.1], [0.6, 1.0, 0.3], [0.1, 0.3, 1.0]], dtype=torch.float64)


def one_hot(designs: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(designs, 3).double().flatten(1)


def test_it_is_the_product_over_positions(generator: torch.Generator) -> None:
    designs = torch.randint(3, (7, 4), generator=generator)
    factors = 0.8 + 0.2 * SIMILARITY[designs.unsqueeze(1), designs]
    kernel = AlikeLetters(similarity=SIMILARITY, share=0.8)
    torch.testing.assert_close(kernel.pair(one_hot(designs), one_hot(designs)), factors.prod(-1), rtol=1e-13, atol=0)
    torch.testing.assert_close(gram(kernel, one_hot(designs)), factors.prod(-1), rtol=1e-13, atol=0)
    torch.testing.assert_close(
        kernel.diagonal(one_hot(designs)), torch.ones(7, dtype=torch.float64), rtol=1e-13, atol=0
    )
    whole = one_hot(designs).unflatten(1, (4, 3))
    torch.testing.assert_close(kernel.pair(whole, whole), kernel.pair(one_hot(designs), one_hot(designs)))


def test_it_is_a_sum_over_sets_of_interacting_positions(generator: torch.Generator) -> None:
    designs, share = torch.randint(3, (5, 4), generator=generator), 0.7
    alike = SIMILARITY[designs.unsqueeze(1), designs]
    total = torch.zeros(5, 5, dtype=torch.float64)
    for size in range(5):
        for places in combinations(range(4), size):
            total += share ** (4 - size) * (1 - share) ** size * alike[:, :, list(places)].prod(-1)
    kernel = AlikeLetters(similarity=SIMILARITY, share=share)
    torch.testing.assert_close(kernel.pair(one_hot(designs), one_hot(designs)), total, rtol=1e-13, atol=0)
    assert float(torch.linalg.eigvalsh(total).min()) > -1e-12


def test_without_alike_letters_it_is_a_hamming_kernel(generator: torch.Generator) -> None:
    points = one_hot(torch.randint(3, (6, 5), generator=generator))
    kernel = AlikeLetters(similarity=torch.eye(3, dtype=torch.float64), share=0.4)
    same = Hamming(positions=5, length_scale=-1 / torch.log(torch.tensor(0.4, dtype=torch.float64)))
    torch.testing.assert_close(kernel.pair(points, points), same.pair(points, points), rtol=1e-13, atol=0)


def test_gradients_in_share_similarity_and_relaxed_points(generator: torch.Generator) -> None:
    points = torch.softmax(torch.randn(4, 2, 3, generator=generator, dtype=torch.float64), -1).requires_grad_()
    share = torch.tensor(0.6, dtype=torch.float64, requires_grad=True)
    similarity = (0.9 * SIMILARITY).requires_grad_()

    def value(points: Tensor, share: Tensor, similarity: Tensor) -> Tensor:
        return gram(AlikeLetters(similarity=similarity, share=share), points.flatten(1))

    assert torch.autograd.gradcheck(value, (points, share, similarity))


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected `similarity` of shape \(letters, letters\), got \(2, 3\)"):
        AlikeLetters(similarity=torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"expected `share` in \(0, 1\), got 1"):
        AlikeLetters(similarity=torch.eye(2), share=1.0)
    with pytest.raises(ValueError, match=r"expected `similarity` in \[0, 1\]"):
        AlikeLetters(similarity=2 * torch.eye(2))
    with pytest.raises(ValueError, match=r"points of positions \* 3 numbers, got 4"):
        AlikeLetters(similarity=SIMILARITY).pair(torch.zeros(1, 4).double(), torch.zeros(1, 4).double())
