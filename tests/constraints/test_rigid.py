"""Rigid modes: rank, span, batches, fragments, nearly linear shapes, and what the core makes of them."""

from __future__ import annotations

import pytest
import torch

from sciopt.constraints import all_pairs, connected_fragments, distance_geometry_problem, rigid_modes, rigid_nullspace
from sciopt.params import ravel
from sciopt.problem import Minimize
from sciopt.problem.system import System
from tests.constraints.helpers import F64, normal, rotation

LINE = torch.tensor([[-1.16, 0.0, 0.0], [0.0, 0.0, 0.0], [1.2, 0.0, 0.0]], dtype=F64)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    ("shape", "rank"),
    [
        (normal(5, 3), 6),
        (normal(2, 3), 5),
        (LINE @ rotation().mT + 7.0, 5),
        (normal(1, 3), 3),
        (torch.full((4, 3), 1.7, dtype=F64), 3),
        (normal(4, 2), 3),
        (normal(1, 2), 2),
        (normal(3, 1), 1),
    ],
)
def test_columns_are_orthonormal_or_zero(shape, rank, dtype):
    modes = rigid_modes(shape.to(dtype))
    dim = shape.shape[-1]
    assert modes.shape == (shape.numel(), dim * (dim + 1) // 2)
    expected = torch.zeros(modes.shape[1], dtype=dtype)
    gram = modes.mT @ modes
    expected[gram.diagonal() > 0.5] = 1.0
    assert int(expected.sum()) == rank
    torch.testing.assert_close(gram, expected.diag(), rtol=0, atol=1e-5 if dtype == torch.float32 else 1e-10)


def test_span_is_that_of_finite_rigid_motions():
    x = normal(5, 3, seed=1)
    small = 1e-6
    turned = x @ torch.linalg.matrix_exp(small * torch.tensor([[0, -1, 2], [1, 0, -3], [-2, 3, 0]], dtype=F64)).mT
    motion = ((turned + small - x) / small).reshape(-1)
    modes = rigid_modes(x)
    torch.testing.assert_close(modes @ (modes.mT @ motion), motion, rtol=0, atol=1e-4)  # second order in `small`


def test_fragments_move_on_their_own_and_keep_flat_order():
    x = torch.cat([normal(4, 3), LINE + 5.0, normal(1, 3)])
    labels = torch.tensor([7, 7, 7, 7, 2, 2, 2, -1])
    shuffle = torch.tensor([3, 7, 0, 5, 1, 6, 2, 4])
    modes = rigid_modes(x[shuffle], labels[shuffle])
    assert modes.shape == (24, 18)
    assert int(torch.linalg.matrix_rank(modes)) == 6 + 5 + 3
    by_site = modes.reshape(8, 3, 3, 6)  # site, component, fragment (sorted labels), mode
    for number, label in enumerate((-1, 2, 7)):
        assert not by_site[labels[shuffle] != label][:, :, number].any()


def test_batch_equals_loop_and_vmap():
    x = normal(2, 3, 4, 3)
    labels = [0, 0, 1, 1]
    batched = rigid_modes(x, labels)
    looped = torch.stack([torch.stack([rigid_modes(b, labels) for b in a]) for a in x])
    torch.testing.assert_close(batched, looped)
    torch.testing.assert_close(torch.vmap(torch.vmap(lambda b: rigid_modes(b, labels)))(x), looped)


def test_one_bad_row_harms_no_other():
    x = normal(2, 4, 3)
    x[0, 0, 0] = torch.nan
    modes = rigid_modes(x)
    assert modes.isfinite().all()
    torch.testing.assert_close(modes[1], rigid_modes(x[1]))


@pytest.mark.parametrize(("bend", "rank"), [(1e-2, 6), (1e-4, 6), (1e-7, 5), (1e-12, 5), (0.0, 5)])
def test_nearly_linear_shapes_survive_the_core(bend, rank):
    """The core's own threshold sits at rounding; what counts as linear is decided here."""
    x = LINE.clone()
    x[1, 1] += bend
    x = x @ rotation(seed=3).mT
    problem = Minimize(lambda p, phi: p.sum(), nullspace=rigid_nullspace())
    layout, flat = ravel(x)
    outer = torch.zeros(1, dtype=F64)
    basis = System(problem, layout, ravel(outer)[0].spec, 1).nullspace(flat, [outer])
    assert basis is not None
    lengths = basis.square().sum(0)
    assert int((lengths > 0.5).sum()) == rank
    torch.testing.assert_close(basis.mT @ basis, (lengths > 0.5).to(F64).diag(), rtol=0, atol=1e-9)


def test_connected_fragments_of_a_long_chain_and_loose_sites():
    order = torch.randperm(500, generator=torch.Generator().manual_seed(0))
    chain = torch.stack([order[:-1], order[1:]], dim=-1)
    assert int(connected_fragments(chain, 500).max()) == 0
    assert connected_fragments(chain[:0], 3).tolist() == [0, 1, 2]
    cut = torch.cat([chain[:100], chain[101:]])
    labels = connected_fragments(cut, 502)
    assert labels.unique().tolist() == [0, 1, 2, 3]
    assert labels[order[:101]].unique().numel() == 1


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"rigid_modes: expected `positions` of shape \(\*batch, N, d\).*got \(12,\)"):
        rigid_modes(normal(12))
    with pytest.raises(ValueError, match=r"rigid_modes: expected `fragments` as integer labels of shape \(4,\)"):
        rigid_modes(normal(4, 3), [0, 1])
    problem = distance_geometry_problem(all_pairs(3), num_sites=3)
    assert problem.nullspace is not None
    with pytest.raises(ValueError, match="expected `fragments`"):
        problem.nullspace(normal(4, 3), None)
