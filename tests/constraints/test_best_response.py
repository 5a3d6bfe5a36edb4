"""Energies and projections as they stand in `best_response`: values and hypergradients."""

from __future__ import annotations

import pytest
import torch

from sciopt.constraints import (
    HarmonicNetwork,
    LennardJones,
    PairEnergy,
    QuadraticForm,
    all_pairs,
    box_problem,
    constrained_to,
    distance_geometry_problem,
    kabsch,
    l1_ball_problem,
    project_box,
    project_l1_ball,
    project_simplex,
    project_volume,
    simplex_problem,
    volume_problem,
)
from sciopt.hypergradients import Implicit
from sciopt.inner import LBFGS, NewtonCG
from sciopt.linsolve import CG
from sciopt.response import best_response
from tests.constraints.helpers import F64, normal

TIGHT = {"solver": NewtonCG(rtol=0.0, atol=1e-10), "hypergradient": Implicit(CG(rtol=1e-10))}


def central(function, phi, index, step=1e-5):
    shift = torch.zeros_like(phi)
    shift[index] = step
    with torch.no_grad():
        return (function(phi + shift) - function(phi - shift)) / (2 * step)


def check(function, phi, indices, rtol=1e-6, atol=1e-7):
    phi = phi.detach().requires_grad_()
    (grad,) = torch.autograd.grad(function(phi), phi)
    for index in indices:
        torch.testing.assert_close(grad[index], central(function, phi, index), rtol=rtol, atol=atol)


def test_distance_geometry_batch_with_aligned_outer_loss():
    """Survey row (j): conformations from distances, compared with references after superposition."""
    pairs = all_pairs(5)
    start, reference = normal(2, 5, 3), normal(2, 5, 3, seed=1)
    target = (start[:, pairs[:, 0]] - start[:, pairs[:, 1]]).norm(dim=-1) + 0.1 * normal(2, 10, seed=2)
    problem = distance_geometry_problem(pairs, num_sites=5, batch_ndim=1)

    def loss(target):
        return kabsch(best_response(problem, target, init=start, **TIGHT).value, reference).msd.sum()

    check(loss, target, [(0, 3), (1, 8)])


def test_lennard_jones_cluster_per_pair_parameters():
    tetrahedron = torch.tensor([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]], dtype=F64) * 0.4
    energy = PairEnergy(pairs=all_pairs(4), potential=LennardJones(), params={"epsilon": 1.0})
    problem = energy.problem(num_sites=4)

    def loss(sigma):
        x = best_response(problem, {"sigma": sigma}, init=tetrahedron, **TIGHT).value
        return (x[0] - x[1]).norm() + (x - x.mean(0)).square().sum()

    sigma = torch.tensor([1.0, 1.02, 0.98, 1.01, 1.0, 0.99], dtype=F64)
    check(loss, sigma, [0, 2])
    even = best_response(problem, {"sigma": torch.ones(6, dtype=F64)}, init=tetrahedron, **TIGHT).value
    torch.testing.assert_close((even[0] - even[1]).norm(), torch.tensor(2 ** (1 / 6), dtype=F64))


def test_anchored_network_under_load():
    places = torch.tensor([[0.0, 0.0], [2.0, 0.0]], dtype=F64)
    nodes = torch.tensor([[0.0, 0.0], [2.0, 0.0], [1.0, -1.0]], dtype=F64)
    network = HarmonicNetwork(
        edges=torch.tensor([[0, 2], [1, 2]]),
        anchors=torch.tensor([0, 1]),
        params={"stiffness": 5.0, "anchor_positions": places, "anchor_stiffness": 100.0},
    )
    problem = network.problem(num_sites=3, loaded=True)
    load = torch.zeros(3, 2, dtype=F64)
    load[2, 1] = -1.0

    def sag(length):
        return best_response(problem, {"length": length, "load": load}, init=nodes, **TIGHT).value[2, 1]

    check(sag, torch.tensor([1.3, 1.2], dtype=F64), [0, 1])


def test_quadratic_form_of_a_free_chain():
    """A singular matrix with its null space declared: the displacement under balanced loads."""
    chain = torch.tensor([[1.0, -1.0, 0.0], [-1.0, 2.0, -1.0], [0.0, -1.0, 1.0]], dtype=F64)
    problem = QuadraticForm(matrix=chain).problem(nullspace=lambda x, phi: torch.ones(3, 1, dtype=F64))
    load = torch.tensor([1.0, 0.0, -1.0], dtype=F64, requires_grad=True)
    sol = best_response(problem, load, init=torch.zeros(3, dtype=F64), solver=LBFGS(), hypergradient=Implicit(CG()))
    torch.testing.assert_close(sol.value, torch.tensor([1.0, 0.0, -1.0], dtype=F64))
    (grad,) = torch.autograd.grad(sol.value[0] - sol.value[2], load)
    torch.testing.assert_close(grad, torch.tensor([1.0, 0.0, -1.0], dtype=F64))


@pytest.mark.parametrize(
    ("problem", "projection"),
    [
        (simplex_problem(), project_simplex),
        (simplex_problem(1.5, upper=0.8), lambda p: project_simplex(p, 1.5, upper=0.8)),
        (volume_problem(2.0), lambda p: project_volume(p, 2.0)),
        (volume_problem(2.0, equality=False), lambda p: project_volume(p, 2.0, equality=False)),
        (box_problem(0.0, 1.0), lambda p: project_box(p, 0.0, 1.0)),
        (l1_ball_problem(1.3), lambda p: project_l1_ball(p, 1.3)),
        (constrained_to(lambda x, phi: project_simplex(x)), project_simplex),
    ],
)
def test_projection_problems_solve_to_the_functions(problem, projection):
    point = torch.tensor([0.9, -0.4, 0.35, 1.6, 0.1], dtype=F64, requires_grad=True)
    sol = best_response(problem, point, init=torch.full((5,), 0.3, dtype=F64), hypergradient=Implicit())
    expected = projection(point)
    torch.testing.assert_close(sol.value, expected, rtol=0, atol=1e-6)
    v = normal(5)
    got, want = (torch.autograd.grad(y @ v, point)[0] for y in (sol.value, expected))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-6)


def test_every_part_of_a_volume_projection_may_be_a_design_variable():
    outer = {
        "point": torch.tensor([[0.9, -0.4, 0.35, 1.6, 0.1], [0.2, 0.8, 0.7, 0.3, -0.5]], dtype=F64),
        "volume": torch.tensor([2.0, 1.2], dtype=F64),
        "upper": torch.tensor([1.0, 0.9, 0.8, 0.85, 1.0], dtype=F64),
        "weights": torch.tensor([1.0, 2.0, 0.5, 1.5, 1.0], dtype=F64),
    }
    outer = {name: value.requires_grad_() for name, value in outer.items()}
    problem = volume_problem(1.0, batch_ndim=1)
    init = torch.full((2, 5), 0.3, dtype=F64)
    sol = best_response(problem, outer, init=init, hypergradient=Implicit())
    expected = project_volume(outer["point"], outer["volume"], upper=outer["upper"], weights=outer["weights"])
    torch.testing.assert_close(sol.value, expected, rtol=0, atol=1e-6)
    v = normal(2, 5)
    got, want = (torch.autograd.grad((y * v).sum(), list(outer.values())) for y in (sol.value, expected))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-6)
