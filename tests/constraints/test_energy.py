"""Quadratic forms, pair potentials, elastic networks: known values, derivatives, invariance, coincident points."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from sciopt.constraints import (
    Harmonic,
    HarmonicNetwork,
    LennardJones,
    Morse,
    PairEnergy,
    QuadraticForm,
    all_pairs,
    rigid_modes,
)
from tests.constraints.helpers import F64, hessian, normal, null_dimension, rotation

POTENTIALS = [
    (Harmonic(), {"stiffness": 2.0, "length": 1.1}),
    (LennardJones(), {"epsilon": 0.7, "sigma": 0.9}),
    (Morse(), {"depth": 1.3, "decay": 1.7, "length": 1.2}),
]


def spread(*batch: int) -> torch.Tensor:
    """Five sites, none close to another."""
    frame = torch.tensor([[0, 0, 0], [1.1, 0, 0], [0, 1.2, 0], [0, 0, 1.3], [1.0, 1.0, 1.1]], dtype=F64)
    return frame + 0.05 * normal(*batch, 5, 3, seed=4)


def test_quadratic_form_by_matrix_operator_and_outer_parameters():
    a = normal(4, 4)
    spd = a @ a.mT + torch.eye(4, dtype=F64)
    b, x = normal(4, seed=1), normal(3, 4, seed=2)
    expected = 0.5 * torch.einsum("bi,ij,bj->b", x, spd, x) - x @ b
    torch.testing.assert_close(QuadraticForm(matrix=spd, linear=b)(x), expected)
    torch.testing.assert_close(QuadraticForm(matrix=lambda v: v @ spd)(x, b), expected)
    torch.testing.assert_close(QuadraticForm()(x, {"matrix": spd.expand(3, 4, 4), "linear": b}), expected)
    solution = torch.linalg.solve(spd, b)
    residual = QuadraticForm(matrix=spd).problem().optimality(solution, b)
    torch.testing.assert_close(residual, torch.zeros_like(b), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("potential", "params"), POTENTIALS)
def test_pair_potentials_against_their_formula(potential, params):
    r = torch.linspace(0.7, 3.0, 7, dtype=F64)
    if isinstance(potential, Harmonic):
        expected = 0.5 * params["stiffness"] * (r - params["length"]) ** 2
    elif isinstance(potential, LennardJones):
        expected = 4 * params["epsilon"] * ((params["sigma"] / r) ** 12 - (params["sigma"] / r) ** 6)
    else:
        expected = params["depth"] * (1 - torch.exp(-params["decay"] * (r - params["length"]))) ** 2 - params["depth"]
    got = potential.energy(r.square(), {k: torch.tensor(v, dtype=F64) for k, v in params.items()})
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("potential", "params"), POTENTIALS)
def test_pair_energy_derivatives_and_invariance(potential, params):
    energy = PairEnergy(pairs=all_pairs(5), potential=potential)
    x = spread(2).requires_grad_()
    leaves = [torch.full((10,), v, dtype=F64, requires_grad=True) for v in params.values()]

    def value(x, *leaves):
        return energy(x, dict(zip(params, leaves, strict=True)))

    assert gradcheck(value, (x, *leaves), check_forward_ad=True)
    assert gradgradcheck(value, (x[:1].detach().requires_grad_(), *leaves))
    torch.testing.assert_close(value(x @ rotation().mT + 3.0, *leaves), value(x, *leaves), rtol=1e-10, atol=1e-10)
    force = -torch.autograd.grad(value(x, *leaves).sum(), x)[0]
    torch.testing.assert_close(force.sum(-2), torch.zeros(2, 3, dtype=F64), rtol=0, atol=1e-10)
    torch.testing.assert_close(value(x, *leaves)[1], value(x[1], *leaves))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("potential", "params"), POTENTIALS)
def test_coincident_points_give_finite_derivatives(potential, params, dtype):
    energy = PairEnergy(pairs=all_pairs(4), potential=potential, params=params)
    x = torch.zeros(4, 3, dtype=dtype)
    x[3] = 1.0
    assert energy(x).isfinite()
    grad = torch.func.grad(energy)(x)
    assert grad.isfinite().all()
    assert grad[3].all()  # the distinct pairs still pull
    assert hessian(energy, x).isfinite().all()
    at_one_point = torch.func.grad(energy)(torch.ones(4, 3, dtype=dtype))
    assert not at_one_point.any()  # no direction to prefer
    assert energy(x * torch.nan).isnan()


def test_soft_core_is_twice_continuous():
    params = {"epsilon": torch.tensor(1.0, dtype=F64), "sigma": torch.tensor(1.0, dtype=F64)}

    def energy(r):
        return LennardJones(core=0.8).energy(r.square(), params)

    derivatives = [energy, torch.func.grad(energy), torch.func.grad(torch.func.grad(energy))]
    edge = torch.tensor(0.8, dtype=F64)
    for function in derivatives:
        torch.testing.assert_close(function(edge - 1e-9), function(edge + 1e-9), rtol=1e-6, atol=0)
    with pytest.raises(ValueError, match=r"LennardJones: expected `core` in \(0, 1\), got 1.5"):
        LennardJones(core=1.5)


def test_network_at_rest_has_the_rigid_modes_as_null_space():
    x = spread()
    edges = all_pairs(5)
    length = (x[edges[:, 0]] - x[edges[:, 1]]).norm(dim=-1)
    network = HarmonicNetwork(edges=edges, params={"stiffness": 1.5})
    problem = network.problem(num_sites=5)
    assert float(problem.objective(x, length)) < 1e-28
    h = hessian(lambda p: network(p, length), x)
    assert null_dimension(h) == 6
    assert problem.nullspace is not None
    torch.testing.assert_close(h @ problem.nullspace(x, length), torch.zeros(15, 6, dtype=F64), rtol=0, atol=1e-12)


def test_network_with_anchor_and_load_finds_the_hanging_spring():
    network = HarmonicNetwork(
        edges=torch.tensor([[0, 1]]),
        anchors=torch.tensor([0]),
        params={
            "stiffness": 4.0,
            "length": 1.0,
            "anchor_positions": torch.zeros(1, 2, dtype=F64),
            "anchor_stiffness": 8.0,
        },
    )
    problem = network.problem(num_sites=2, loaded=True)
    assert problem.nullspace is None
    load = torch.tensor([[0.0, 0.0], [0.0, -2.0]], dtype=F64)
    rest = torch.tensor([[0.0, -0.25], [0.0, -1.75]], dtype=F64)  # 2 / 8 at the anchor, 2 / 4 in the spring
    torch.testing.assert_close(
        problem.optimality(rest, {"load": load}), torch.zeros(2, 2, dtype=F64), rtol=0, atol=1e-12
    )


def test_fragmented_pair_problem_declares_every_part():
    energy = PairEnergy(
        pairs=torch.tensor([[0, 1], [2, 3], [3, 4], [2, 4]]), potential=Harmonic(), params={"stiffness": 1.0}
    )
    problem = energy.problem(num_sites=6, batch_ndim=1)
    assert problem.nullspace is not None
    modes = problem.nullspace(normal(2, 6, 3), None)
    assert torch.linalg.matrix_rank(modes).tolist() == [5 + 6 + 3] * 2
    torch.testing.assert_close(modes, rigid_modes(normal(2, 6, 3), [0, 0, 1, 1, 1, 2]))


def test_bad_input_is_named():
    pairs = torch.tensor([[0, 1]])
    energy = PairEnergy(pairs=pairs, potential=Harmonic(), params={"stiffness": 1.0})
    with pytest.raises(ValueError, match="PairEnergy: expected the parameters stiffness, .*, got none named `length`"):
        energy(normal(2, 3))
    with pytest.raises(ValueError, match="PairEnergy: expected parameters among stiffness, length, got `lenght`"):
        energy(normal(2, 3), {"lenght": torch.ones(1)})
    with pytest.raises(ValueError, match=r"expected `length` as a number or of shape \(\*batch, 1\).*got \(3,\)"):
        energy(normal(2, 3), {"length": torch.ones(3)})
    with pytest.raises(TypeError, match="PairEnergy: expected `outer_params` as a dict of tensors, got Tensor"):
        energy(normal(2, 3), torch.ones(1))
    with pytest.raises(ValueError, match=r"distinct non-negative sites per row, got \[2, 2\] in row 1"):
        PairEnergy(pairs=torch.tensor([[0, 1], [2, 2]]), potential=Harmonic())
    with pytest.raises(TypeError, match="expected `edges` as an integer tensor, got torch.float32"):
        HarmonicNetwork(edges=torch.ones(1, 2))
    with pytest.raises(ValueError, match=r"expected `pairs` of shape \(m, 2\), got \(2,\)"):
        PairEnergy(pairs=pairs[0], potential=Harmonic())
    with pytest.raises(ValueError, match=r"QuadraticForm: expected `matrix` of shape \(\*batch, 3, 3\), got \(2, 2\)"):
        QuadraticForm(matrix=torch.eye(2))(torch.ones(3))
