"""Loads that follow the surface: the elastica, closed forms, tangents and hypergradients."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from sciopt import BilevelProblem, RootFind, best_response, hypergradcheck, hypergradient
from sciopt.domains.topology.nonlinear import (
    FollowerBalance,
    HyperelasticEnergy,
    LoadStepping,
    NeoHookean,
    NormalForce,
    Pressure,
    SaintVenantKirchhoff,
    SparseAdjoint,
    block,
)
from sciopt.hypergradients import Implicit
from sciopt.linsolve import GMRES
from tests.domains.topology.nonlinear_cases import F64, SIMP3, clamped, ones, tip


def test_cantilever_under_a_follower_load_is_the_elastica_integrated_from_its_tip():
    length, young, width, patch = 40.0, 1200.0, 1.0, 0.25
    stiffness, force = young / 12, 3.0 * young / 12 / length**2
    body = clamped((160, 1), (length, width))
    top = body.surface(lambda c: (c[:, 1] == width) & (c[:, 0] > length - patch))
    energy = HyperelasticEnergy(
        body=body, material=SaintVenantKirchhoff(poisson=0.0), modulus=lambda p: young + 0 * p[None]
    )
    load = NormalForce(faces=top, value=lambda p: p)
    balance = FollowerBalance(energy=energy, loads=(load,))
    solver = LoadStepping(balance=balance, first_step=0.25)
    p = torch.tensor(force / patch, dtype=F64)
    solution = best_response(RootFind(balance), p, init=p.new_zeros(body.size), solver=solver)
    # In the frame of the loaded point, axes back along the beam and across it, the force is known for good: with s counted
    # from that point, theta' = -F x / EI, x' = cos(theta), y' = sin(theta) is an initial value problem.
    arm = length - patch / 2
    softer = 1 + 0.5 * (patch / width) ** 2  # how much too stiff bilinear elements are in bending, as above
    x, y, theta = solve_ivp(
        lambda s, z: [np.cos(z[2]), np.sin(z[2]), -force * z[0] / (stiffness * softer)],
        (0, arm),
        np.zeros(3),
        rtol=1e-10,
    ).y[:, -1]
    # Seen from the root, whose tangent there is the x axis: along it and across it, downwards.
    across = abs(-np.sin(theta) * x + np.cos(theta) * y)
    along = np.cos(theta) * x + np.sin(theta) * y
    near = np.flatnonzero(np.abs(np.asarray(body.nodes)[:, 0] - arm) < patch)
    found = (body.nodal(solution.value) + torch.from_numpy(np.asarray(body.nodes)))[near].mean(0).numpy()
    assert theta < -1.0  # it has turned by more than a radian
    np.testing.assert_allclose(found, [along, 0.5 * width - across], rtol=0, atol=2e-3 * length)


@pytest.mark.parametrize("kind", [Pressure, NormalForce])
@pytest.mark.parametrize("dim", [2, 3])
def test_hypergradients_of_follower_loads_by_lu_and_gmres(kind, dim, generator):
    body = clamped((5, 2), (5.0, 1.0)) if dim == 2 else clamped((3, 1, 1), (3.0, 1.0, 1.0))
    energy = HyperelasticEnergy(body=body, material=NeoHookean(), modulus=lambda phi: SIMP3(phi["density"]))
    top = body.surface(lambda c: c[:, -1] == 1)
    balance = FollowerBalance(energy=energy, loads=(kind(faces=top, value=lambda phi: 1e-3 * phi["pressure"]),))
    density = 0.5 + 0.5 * torch.rand(body.num_elements, generator=generator, dtype=F64)
    phi = {"density": density, "pressure": torch.tensor(0.5, dtype=F64)}
    problem = BilevelProblem(inner=RootFind(balance), outer_loss=lambda u, phi: tip(body, u).square().sum())
    start, solver = density.new_zeros(balance.size), LoadStepping(balance=balance, rtol=1e-12)
    adjoint = Implicit(SparseAdjoint(balance=balance))
    check = hypergradcheck(
        problem, phi, init=start, solver=solver, hypergradient=adjoint, directions=4 - dim, eps=0.02, rtol=1e-6
    )
    assert check.max_error <= 1e-6
    direct = hypergradient(problem, phi, init=start, solver=solver, hypergradient=adjoint).grad
    krylov = Implicit(GMRES(rtol=1e-10, restart=balance.size))
    matrix_free = hypergradient(problem, phi, init=start, solver=solver, hypergradient=krylov).grad
    for name in phi:
        torch.testing.assert_close(
            matrix_free[name], direct[name], rtol=1e-6, atol=1e-9 * float(direct[name].abs().max())
        )


@pytest.mark.parametrize("kind", [Pressure, NormalForce])
@pytest.mark.parametrize("dim", [2, 3])
def test_follower_tangent_is_the_jacobian_and_not_symmetric(kind, dim, generator):
    body = clamped((3, 1), (3.0, 1.0)) if dim == 2 else clamped((2, 1, 1), (2.0, 1.0, 1.0))
    energy = HyperelasticEnergy(body=body, material=NeoHookean(), modulus=ones)
    balance = FollowerBalance(
        energy=energy, loads=(kind(faces=body.surface(lambda c: c[:, -1] == 1), value=lambda p: p),)
    )
    u, p = 0.05 * torch.randn(body.size, generator=generator, dtype=F64), torch.tensor(0.7, dtype=F64)
    assembled = balance.pattern.matrix([block.numpy() for block in balance.tangents(u, p)]).toarray()
    jacobian = torch.func.jacrev(balance)(u, p).numpy()
    np.testing.assert_allclose(assembled, jacobian, rtol=0, atol=1e-13)
    assert np.abs(jacobian - jacobian.T).max() > 1e-2


def test_pressure_all_around_compresses_evenly():
    """A free block in a fluid: J follows from the material law, whatever the (symmetric) pressure does on the way."""
    body = block((2, 2), (1.0, 1.0))
    body = replace(body, fixed=[0, 1, 5])  # no rigid motion, no reaction
    energy = HyperelasticEnergy(body=body, material=NeoHookean(poisson=0.3), modulus=lambda p: torch.ones_like(p)[None])
    balance = FollowerBalance(energy=energy, loads=(Pressure(faces=body.surface(), value=lambda p: p),))
    p = torch.tensor(0.5, dtype=F64)
    u = best_response(RootFind(balance), p, init=p.new_zeros(body.size), solver=LoadStepping(balance=balance)).value
    gradient = energy.gradient(u)
    stretch = 1 + gradient[0, 0, 0, 0]
    torch.testing.assert_close(gradient, gradient[0, 0].expand_as(gradient), rtol=0, atol=1e-9)
    lame, shear = NeoHookean(poisson=0.3).lame
    cauchy = (shear * (stretch**2 - 1) + lame * 2 * stretch.log()) / stretch**2  # plane strain, J = stretch^2
    torch.testing.assert_close(cauchy, -p, rtol=1e-8, atol=0)
