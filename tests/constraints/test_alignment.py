"""Kabsch: against SciPy, derivatives of first and second order, and every degenerate case."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch.autograd import gradcheck, gradgradcheck

from sciopt.constraints import kabsch
from tests.constraints.helpers import F64, normal, rotation

CUBE = torch.tensor([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], dtype=F64)
FLAT = normal(6, 3, seed=5) * torch.tensor([1.0, 1.0, 0.0], dtype=F64)
LINE = torch.linspace(-1, 1, 5, dtype=F64)[:, None] * torch.tensor([[1.0, 2.0, 3.0]], dtype=F64)


def weighted(seed: int = 9, count: int = 6) -> torch.Tensor:
    return torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=F64) + 0.1


@pytest.mark.parametrize("reflected", [False, True])
def test_agrees_with_scipy(reflected):
    x, y = normal(6, 3), normal(6, 3, seed=1)
    if reflected:  # a target whose best orthogonal map is a reflection
        y = x * torch.tensor([1.0, 1.0, -1.0], dtype=F64) + 0.1 * y
    w = weighted()
    fit = kabsch(x, y, w)
    xc, yc = (x - (w / w.sum()) @ x).numpy(), (y - (w / w.sum()) @ y).numpy()
    expected, rssd, *_ = Rotation.align_vectors(yc, xc, weights=w.numpy())
    np.testing.assert_allclose(fit.rotation.numpy(), expected.as_matrix(), atol=1e-10)
    np.testing.assert_allclose(float(fit.rmsd), rssd / np.sqrt(float(w.sum())), rtol=1e-10)
    torch.testing.assert_close(fit.aligned, x @ fit.rotation.mT + fit.translation)
    torch.testing.assert_close(torch.linalg.det(fit.rotation), torch.tensor(1.0, dtype=F64))
    torch.testing.assert_close(fit.msd, (w / w.sum()) @ (fit.aligned - y).square().sum(-1))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("dim", [2, 3])
def test_recovers_a_known_motion(dim, dtype):
    x = normal(2, 7, dim, dtype=dtype)
    q = torch.stack([rotation(dim, seed=1), rotation(dim, seed=2)]).to(dtype)
    fit = kabsch(x, x @ q.mT + 3.0)
    tol = 1e-5 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(fit.rotation, q, rtol=0, atol=tol)
    torch.testing.assert_close(fit.translation, torch.full((2, dim), 3.0, dtype=dtype), rtol=0, atol=tol)
    assert float(fit.rmsd.max()) < tol


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("field", ["rotation", "translation", "aligned", "rmsd", "msd"])
def test_first_and_second_derivatives(field, dim):
    leaves = tuple(
        t.requires_grad_() for t in (normal(4, dim), normal(4, dim, seed=1), torch.linspace(0.5, 1.5, 4, dtype=F64))
    )

    def value(x, y, w):
        return getattr(kabsch(x, y, w), field)

    assert gradcheck(value, leaves, check_forward_ad=True, fast_mode=True)
    assert gradgradcheck(value, leaves, check_fwd_over_rev=True, fast_mode=True)


def test_third_derivative_of_the_rotation_and_forward_over_forward():
    x, y, v = normal(5, 3), normal(5, 3, seed=1), normal(5, 3, seed=2)

    def entry(t):
        return kabsch(x + t * v, y).rotation[0, 1]

    orders = [entry]
    for _ in range(3):
        orders.append(torch.func.grad(orders[-1]))
    zero, h = torch.tensor(0.0, dtype=F64), 1e-4
    for k in (1, 2, 3):
        difference = (orders[k - 1](zero + h) - orders[k - 1](zero - h)) / (2 * h)
        torch.testing.assert_close(orders[k](zero), difference, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(torch.func.jacfwd(torch.func.jacfwd(entry))(zero), orders[2](zero))


def test_gradient_at_an_exact_superposition():
    x = normal(5, 3)
    y = x @ rotation().mT + 1.0
    grads = torch.func.grad(lambda p: kabsch(p, y).msd)(x), torch.func.grad(lambda p: kabsch(p, y).rmsd)(x)
    assert all(float(g.abs().max()) < 1e-14 for g in grads)
    moved = kabsch(x + 1e-6 * normal(5, 3, seed=3), y)
    assert 1e-7 < float(moved.rmsd) < 1e-5
    # The rotation is smooth there; its derivative along a rotation of the mobile set is known.
    spin = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]], dtype=F64)
    centred = x - x.mean(0)
    tangent = torch.func.jvp(lambda p: kabsch(p, y).rotation, (x,), (centred @ spin.mT,))[1]
    torch.testing.assert_close(tangent, -rotation() @ spin, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("mobile", "target"),
    [
        (CUBE, CUBE @ rotation(seed=4).mT),  # three equal singular values
        (CUBE, CUBE @ rotation(seed=4).mT + 0.3 * normal(8, 3, seed=6)),
        (FLAT, FLAT @ rotation(seed=4).mT + 2.0),  # planar: one singular value zero
        (FLAT, normal(6, 3, seed=7)),
        (normal(6, 3, seed=7), FLAT),
    ],
)
def test_degenerate_singular_values_are_exact(mobile, target):
    x = mobile.clone().requires_grad_()
    assert gradcheck(lambda p: kabsch(p, target).msd, (x,))
    assert gradcheck(lambda p: kabsch(p, target).rotation, (x,), atol=1e-4)
    assert gradgradcheck(lambda p: kabsch(p, target).msd, (x,), atol=1e-4)


def test_linear_sets():
    """About the axis the rotation is undetermined: nothing blows up, and the deviation stays exact."""
    target = (LINE + 0.2 * LINE[:, :1].square() * LINE[-1]) @ rotation(seed=8).mT  # on a line, unevenly
    x = LINE.clone().requires_grad_()
    assert gradcheck(lambda p: kabsch(p, target).msd, (x,))
    fit = kabsch(LINE, LINE @ rotation(seed=8).mT - 1.0)
    assert float(fit.rmsd) < 1e-12
    torch.testing.assert_close(torch.linalg.det(fit.rotation), torch.tensor(1.0, dtype=F64))
    jacobian = torch.func.jacrev(lambda p: kabsch(p, normal(5, 3)).rotation)(LINE)
    assert jacobian.isfinite().all() and float(jacobian.abs().max()) < 10
    single = torch.func.grad(lambda p: kabsch(p, normal(1, 3)).rmsd)(normal(1, 3, seed=2))
    assert not single.any()


def test_where_a_mirror_image_fits_as_well_the_derivative_is_finite():
    """s_2 - s_3 = 0 with a reflection excluded: the rotation jumps, its derivative is cut to the determined axes."""
    x = normal(6, 3)
    x = torch.linalg.qr(x - x.mean(0))[0] * torch.tensor([2.0, 1.0, 1.0], dtype=F64)
    y = x * torch.tensor([1.0, 1.0, -1.0], dtype=F64)
    fit = kabsch(x, y)
    torch.testing.assert_close(torch.linalg.det(fit.rotation), torch.tensor(1.0, dtype=F64))
    jacobian = torch.func.jacrev(lambda p: kabsch(p, y).rotation)(x)
    assert jacobian.isfinite().all() and 1e-3 < float(jacobian.abs().max()) < 10
    near = torch.func.grad(lambda p: kabsch(p, y).msd)(x)
    torch.testing.assert_close(near, 2 / 6 * (fit.aligned - y) @ fit.rotation, rtol=0, atol=1e-12)


def test_batch_loop_vmap_and_a_bad_row():
    x, y = normal(3, 5, 3), normal(5, 3, seed=1)
    fit = kabsch(x, y)
    for k in range(3):
        for got, one in zip(fit, kabsch(x[k], y), strict=True):
            torch.testing.assert_close(got[k], one)
    mapped = torch.vmap(lambda p: kabsch(p, y))(x)
    torch.testing.assert_close(mapped.rotation, fit.rotation)
    grads = torch.vmap(torch.func.grad(lambda p: kabsch(p, y).rmsd))(x)
    torch.testing.assert_close(grads, torch.func.grad(lambda p: kabsch(p, y).rmsd.sum())(x))
    x[0, 0, 0] = torch.nan
    spoilt = kabsch(x, y)
    assert spoilt.rmsd[0].isnan() and torch.equal(spoilt.rmsd[1:], fit.rmsd[1:])


def test_bad_input_is_named():
    with pytest.raises(
        ValueError, match=r"kabsch: expected `mobile` and `target` of the same shape.*\(4, 3\) and \(5, 3\)"
    ):
        kabsch(normal(4, 3), normal(5, 3))
    with pytest.raises(ValueError, match="with d = 2 or 3"):
        kabsch(normal(4, 4), normal(4, 4))
