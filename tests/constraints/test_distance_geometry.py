"""Distance geometry: known minima, null spaces of dimension 6, 5 and 12, bounds, chirality, hypergradients."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from sciopt.constraints import (
    DistanceGeometry,
    DistanceStress,
    SquaredStress,
    all_pairs,
    distance_geometry_problem,
    rigid_modes,
    signed_volumes,
)
from tests.constraints.helpers import F64, hessian, normal, null_dimension, rotation

LINE = torch.tensor([[-1.2, 0.4, 0.1], [0.0, 0.0, 0.0], [2.4, -0.8, -0.2]], dtype=F64)
STRESSES = [SquaredStress(), DistanceStress()]


def distances(x: torch.Tensor, pairs: torch.Tensor) -> torch.Tensor:
    return (x[..., pairs[:, 0], :] - x[..., pairs[:, 1], :]).norm(dim=-1)


def newton(energy, x, steps=60):
    """Minimum on the complement of the rigid modes, by damped Newton with a dense Hessian."""
    for _ in range(steps):
        grad = torch.func.grad(energy)(x).reshape(-1)
        if float(grad.norm()) < 1e-13:
            break
        values, vectors = torch.linalg.eigh(hessian(energy, x))
        values = values.abs()
        keep = values > 1e-9 * values.max()
        move = -(vectors[:, keep] @ ((vectors[:, keep].mT @ grad) / values[keep])).reshape(x.shape)
        scale = 1.0
        while energy(x + scale * move) > energy(x) and scale > 1e-6:
            scale *= 0.5
        x = x + scale * move
    return x


@pytest.mark.parametrize("stress", STRESSES)
@pytest.mark.parametrize(
    ("positions", "links", "dimension"),
    [
        (normal(5, 3), None, 6),
        (LINE, None, 5),
        (torch.cat([normal(4, 3), normal(4, 3, seed=1) + 4.0]), [(0, 4), (4, 8)], 12),
        (torch.cat([normal(4, 3), LINE + 4.0]), [(0, 4), (4, 7)], 11),
        (normal(5, 2), None, 3),
    ],
)
def test_hessian_null_space_is_that_of_the_rigid_modes(stress, positions, links, dimension):
    count = positions.shape[0]
    parts = [all_pairs(end - start) + start for start, end in (links or [(0, count)])]
    pairs = torch.cat(parts)
    problem = distance_geometry_problem(pairs, num_sites=count, stress=stress)
    target = distances(positions, pairs)
    assert problem.nullspace is not None
    modes = problem.nullspace(positions, target)
    h = hessian(lambda p: problem.objective(p, target), positions)
    if dimension in (5, 11):  # first-order flexible: a bond angle of 180 degrees bends at no cost in first order
        values, vectors = torch.linalg.eigh(h)
        flat = vectors[:, values.abs() < 1e-9 * values.max()]
        torch.testing.assert_close(flat @ (flat.mT @ modes), modes, rtol=0, atol=1e-9)
    else:
        assert null_dimension(h) == dimension
    assert int(torch.linalg.matrix_rank(modes)) == dimension
    torch.testing.assert_close(h @ modes, torch.zeros_like(modes), rtol=0, atol=1e-9)


@pytest.mark.parametrize("stress", STRESSES)
def test_linear_molecule_with_stretched_ends_has_exactly_five_modes(stress):
    """With the end distance a little too long the line is a strict minimum: bending costs energy."""
    pairs = all_pairs(3)
    target = distances(LINE, pairs) * torch.tensor([1.0, 1.05, 1.0], dtype=F64)
    problem = distance_geometry_problem(pairs, num_sites=3, stress=stress)
    rest = newton(lambda p: problem.objective(p, target), LINE)
    h = hessian(lambda p: problem.objective(p, target), rest)
    values, vectors = torch.linalg.eigh(h)
    assert null_dimension(h) == 5 and float(values[5]) > 1e-3
    modes = rigid_modes(rest)
    flat = vectors[:, :5]
    torch.testing.assert_close(modes @ modes.mT, flat @ flat.mT, rtol=0, atol=1e-7)


@pytest.mark.parametrize("noise", [0.0, 1e-12, 1e-8, 1e-6])
def test_convergence_noise_does_not_turn_a_linear_molecule_into_a_bent_one(noise):
    """A sixth column would be made of noise: a bending mode of real stiffness, projected out of the adjoint."""
    pairs = all_pairs(3)
    target = distances(LINE, pairs) * torch.tensor([1.0, 1.05, 1.0], dtype=F64)
    problem = distance_geometry_problem(pairs, num_sites=3)
    rest = newton(lambda p: problem.objective(p, target), LINE) + noise * normal(3, 3, seed=2)
    modes = rigid_modes(rest)
    assert int(torch.linalg.matrix_rank(modes)) == 5
    stiffness = (hessian(lambda p: problem.objective(p, target), rest) @ modes).abs().max()
    assert float(stiffness) < 1e-12 + 100 * noise


@pytest.mark.parametrize("stress", STRESSES)
def test_energy_values_derivatives_and_invariance(stress):
    pairs = all_pairs(5)
    energy = DistanceGeometry(pairs=pairs, stress=stress)
    x, target = normal(2, 5, 3), distances(normal(5, 3, seed=1), pairs)
    weights = torch.linspace(0.5, 2.0, 10, dtype=F64)
    d = distances(x, pairs)
    error = d.square() - target.square() if isinstance(stress, SquaredStress) else d - target
    torch.testing.assert_close(energy(x, {"distances": target, "weights": weights}), (weights * error.square()).sum(-1))
    torch.testing.assert_close(energy(x, target), error.square().sum(-1))
    torch.testing.assert_close(energy(x @ rotation().mT - 2.0, target), energy(x, target), rtol=1e-10, atol=0)
    torch.testing.assert_close(energy(x, target)[0], energy(x[0], target))
    torch.testing.assert_close(torch.vmap(lambda p: energy(p, target))(x), energy(x, target))
    leaves = tuple(t.clone().requires_grad_() for t in (x[:1], target, weights))

    def value(x, target, weights):
        return energy(x, {"distances": target, "weights": weights})

    assert gradcheck(value, leaves, check_forward_ad=True) and gradgradcheck(value, leaves)


def test_hypergradient_through_the_declared_null_space_matches_finite_differences():
    """Inconsistent distances; adjoint on the complement of the rigid modes against re-solved problems."""
    pairs = all_pairs(5)
    x0 = normal(5, 3)
    target = distances(x0, pairs) + 0.1 * normal(10, seed=2)
    problem = distance_geometry_problem(pairs, num_sites=5)

    def settled(target):
        return newton(lambda p: problem.objective(p, target), x0)

    def outer(x):
        return (x - x.mean(0)).square().sum() * 0.3 + x[0].sub(x[1]).norm() ** 3

    x = settled(target)
    assert problem.nullspace is not None
    q = problem.nullspace(x, target)
    h = hessian(lambda p: problem.objective(p, target), x)
    adjoint = torch.linalg.solve(h + q @ q.mT, torch.func.grad(outer)(x).reshape(-1))
    pull = torch.func.vjp(lambda t: problem.optimality(x, t).reshape(-1), target)[1]
    hypergradient = -pull(adjoint)[0]
    step = 1e-5
    for k in (0, 4, 9):
        shift = step * torch.eye(10, dtype=F64)[k]
        difference = (outer(settled(target + shift)) - outer(settled(target - shift))) / (2 * step)
        torch.testing.assert_close(hypergradient[k], difference, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("stress", STRESSES)
def test_flat_bottom_bounds(stress):
    energy = DistanceGeometry(pairs=torch.tensor([[0, 1]]), stress=stress)
    bounds = {"lower": torch.tensor([1.0], dtype=F64), "upper": torch.tensor([2.0], dtype=F64)}

    def at(d, **more):
        x = torch.tensor([[0.0, 0.0, 0.0], [d, 0.0, 0.0]], dtype=F64)
        return float(energy(x, {**bounds, **more}))

    squared = isinstance(stress, SquaredStress)
    assert at(1.5) == at(1.0) == at(2.0) == 0.0
    assert at(3.0) == (25.0 if squared else 1.0)
    assert at(0.5) == pytest.approx(0.5625 if squared else 0.25)
    assert at(3.0, upper=torch.tensor([torch.inf], dtype=F64)) == 0.0
    assert at(0.5, lower=torch.tensor([-1.0], dtype=F64)) == 0.0


def test_infinite_upper_bound_has_zero_derivative():
    energy = DistanceGeometry(pairs=all_pairs(3), params={"lower": 0.0})
    upper = torch.tensor([1.0, torch.inf, 0.5], dtype=F64)
    grads = torch.func.grad(lambda x, u: energy(x, {"upper": u}), argnums=(0, 1))(normal(3, 3), upper)
    assert all(g.isfinite().all() for g in grads)
    assert float(grads[1][1]) == 0.0 and float(grads[1][2]) != 0.0


def test_mirror_flips_signed_volumes_and_chirality_tells_hands_apart():
    x = normal(3, 5, 3)
    quadruples = torch.tensor([[0, 1, 2, 3], [1, 0, 2, 3], [4, 2, 1, 0]])
    volume = signed_volumes(x, quadruples)
    mirror = x * torch.tensor([1.0, -1.0, 1.0], dtype=F64)
    torch.testing.assert_close(signed_volumes(mirror, quadruples), -volume)
    torch.testing.assert_close(volume[:, 1], -volume[:, 0])
    torch.testing.assert_close(signed_volumes(x @ rotation().mT + 1.0, quadruples), volume, rtol=1e-9, atol=1e-10)
    edges = torch.stack([x[:, 0] - x[:, 3], x[:, 1] - x[:, 3], x[:, 2] - x[:, 3]], dim=-2)
    torch.testing.assert_close(volume[:, 0], torch.linalg.det(edges))

    pairs = all_pairs(5)
    target = {"distances": distances(x[0], pairs), "volumes": volume[0]}
    problem = distance_geometry_problem(pairs, num_sites=5, chirality=quadruples)
    assert float(problem.objective(x[0], target)) < 1e-24
    assert float(problem.objective(mirror[0], target)) > 1e-2
    assert null_dimension(hessian(lambda p: problem.objective(p, target), x[0])) == 6
    wide = {"distances": target["distances"], "volume_lower": volume[0] - 1.0, "volume_upper": volume[0] + 1.0}
    assert float(problem.objective(x[0], wide)) < 1e-24


def test_coincident_points_and_float32():
    for stress in STRESSES:
        energy = DistanceGeometry(pairs=all_pairs(3), stress=stress)
        x = torch.zeros(3, 3)
        value, grad = torch.func.grad_and_value(energy)(x, torch.ones(3))[::-1]
        assert value.dtype == torch.float32 and float(value) == 3.0
        assert not grad.any()
        assert hessian(lambda p, e=energy: e(p, torch.ones(3)), x).isfinite().all()


def test_bad_input_is_named():
    energy = DistanceGeometry(pairs=all_pairs(3))
    with pytest.raises(ValueError, match="expected `distances`, `lower` or `upper`, got none of them"):
        energy(normal(3, 3), {"weights": torch.ones(3)})
    with pytest.raises(ValueError, match="expected parameters among distances, lower, upper, weights, got `volumes`"):
        energy(normal(3, 3), {"distances": torch.ones(3), "volumes": torch.ones(1)})
    with pytest.raises(ValueError, match=r"expected `distances` as a number or of shape \(\*batch, 3\).*got \(4,\)"):
        energy(normal(3, 3), torch.ones(4))
    handed = DistanceGeometry(pairs=all_pairs(4), chirality=torch.tensor([[0, 1, 2, 3]]))
    with pytest.raises(ValueError, match="expected `volumes`, `volume_lower` or `volume_upper` with `chirality`"):
        handed(normal(4, 3), torch.ones(6))
    with pytest.raises(ValueError, match="signed_volumes: expected `positions` in three dimensions"):
        signed_volumes(normal(4, 2), torch.tensor([[0, 1, 2, 3]]))
