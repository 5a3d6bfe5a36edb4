"""Soft bodies in motion: free fall, dissipation, a closed-form oscillator, hypergradients, and recovery from a trajectory."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from sciopt import BilevelProblem, SolveError, best_response, hypergradcheck, optimize
from sciopt.domains.topology.nonlinear import (
    Fibre,
    HyperelasticEnergy,
    LinearElastic,
    NeoHookean,
    SaintVenantKirchhoff,
    SoftBody,
    block,
)
from sciopt.hypergradients import ForwardUnrolled, Unrolled
from sciopt.outer import GaussNewtonStep

F64 = torch.float64


def ones(young):
    return young[None]


def run(soft, phi, num_steps, init=None):
    init = soft.start() if init is None else init
    return best_response(soft.motion(num_steps), phi, init=init, hypergradient=Unrolled()).value


def arm(material=None, **more):
    """A clamped arm of rubber with a muscle along its upper half."""
    body = block((4, 2), (4.0, 1.0))
    body = replace(body, fixed=(2 * np.flatnonzero(body.nodes[:, 0] == 0)[:, None] + np.arange(2)).reshape(-1))
    upper = torch.from_numpy(body.nodes[body.cells].mean(1)[:, 1] > 0.5).to(F64)
    fibre = Fibre(direction=torch.tensor([1.0, 0.0], dtype=F64), tension=lambda d: d["tension"][..., None] * upper)
    return HyperelasticEnergy(
        body=body, material=material or NeoHookean(), modulus=lambda d: d["young"][..., None], fibre=fibre, **more
    )


def test_free_fall_is_that_of_implicit_euler_and_first_order_in_the_step():
    gravity, time = 9.81, 0.4
    body = block((3, 1), (3.0, 1.0))
    load = np.zeros(body.nodes.shape)
    load[:, 1] = -2.0 * gravity * body.node_volumes()
    errors = []
    for steps in (4, 8):
        h = time / steps
        energy = HyperelasticEnergy(body=replace(body, load=load.reshape(-1)), material=NeoHookean(), modulus=ones)
        soft = SoftBody(energy=energy, density=2.0, time_step=h)
        path = run(soft, torch.tensor(50.0, dtype=F64), steps, soft.start(velocity=(1.0, 2.0)))
        k = torch.arange(steps + 1, dtype=F64)
        nodes = path["displacements"].unflatten(-1, (-1, 2))
        fall = 2.0 * h * k - gravity * h**2 * k * (k + 1) / 2  # every node alike: no strain
        torch.testing.assert_close(nodes[..., 1], fall[:, None].expand(-1, 8), rtol=0, atol=1e-9)
        torch.testing.assert_close(nodes[..., 0], (h * k)[:, None].expand(-1, 8), rtol=0, atol=1e-9)
        errors.append(float((nodes[-1, 0, 1] - (2.0 * time - gravity * time**2 / 2)).abs()))
    assert errors[0] / errors[1] == pytest.approx(2.0, rel=1e-6)


def test_a_linear_mode_decays_as_implicit_euler_says():
    """In an eigenmode of K v = w^2 M v the amplitude follows q' = (q + h p) / (1 + h^2 w^2)."""
    energy = replace(arm(LinearElastic()), fibre=None, modulus=ones)
    h, young = 0.3, torch.tensor(3.0, dtype=F64)
    soft = SoftBody(energy=energy, density=1.5, time_step=h)
    root = soft.potential.mass.sqrt()
    stiffness = torch.func.hessian(energy)(torch.zeros(energy.size, dtype=F64), young)
    squares, modes = torch.linalg.eigh(stiffness / root / root[:, None])
    mode, square = modes[:, 0] / root, squares[0]
    path = run(soft, young, 6, {"displacements": mode.clone(), "velocities": torch.zeros_like(mode)})
    q, p = torch.ones((), dtype=F64), torch.zeros((), dtype=F64)
    for state in path["displacements"][1:]:
        after = (q + h * p) / (1 + h**2 * square)
        q, p = after, (after - q) / h
        torch.testing.assert_close(state, q * mode, rtol=0, atol=1e-9)


@pytest.mark.parametrize("material", [NeoHookean(), SaintVenantKirchhoff()], ids=repr)
def test_energy_never_grows_without_drive_and_momentum_is_kept_in_flight(material):
    body = block((4, 1), (4.0, 1.0))
    energy = HyperelasticEnergy(body=body, material=material, modulus=ones)
    soft, young = SoftBody(energy=energy, density=1.0, time_step=0.1), torch.tensor(10.0, dtype=F64)
    start = soft.start(velocity=(0.5, 0.0))
    spin = torch.from_numpy(np.asarray(body.nodes) - [2.0, 0.5]) @ torch.tensor([[0.0, 0.8], [-0.8, 0.0]], dtype=F64)
    start["velocities"] = start["velocities"] + (
        spin * (1 + 0.5 * torch.linspace(-1, 1, 10, dtype=F64)[:, None])
    ).reshape(-1)
    path = run(soft, young, 12, start)
    levels = soft.mechanical_energy(path, young)
    assert (levels.diff() <= 1e-10).all() and levels[-1] < 0.999 * levels[0]
    assert energy(path["displacements"], young).max() > 1e-3  # it did deform
    momentum = (soft.potential.mass * path["velocities"]).unflatten(-1, (-1, 2)).sum(-2)
    torch.testing.assert_close(momentum, momentum[:1].expand_as(momentum), rtol=0, atol=1e-9)


def test_hypergradient_through_the_steps_is_a_central_difference():
    soft = SoftBody(
        energy=arm(),
        density=1.0,
        time_step=0.2,
        control=lambda phi, t: {"young": phi["young"], "tension": phi["tension"][t]},
    )
    problem = BilevelProblem(
        inner=soft.motion(3), outer_loss=lambda path, phi: path["displacements"][:, -1].square().sum()
    )
    phi = {"young": torch.tensor(5.0, dtype=F64), "tension": torch.tensor([1.0, 0.5, -0.2], dtype=F64)}
    check = hypergradcheck(problem, phi, init=soft.start(), hypergradient=Unrolled(), directions=1, rtol=1e-6)
    assert check.max_error <= 1e-6


def test_forward_and_reverse_through_the_steps_agree():
    soft = SoftBody(energy=replace(arm(), fibre=None, modulus=ones), density=1.0, time_step=0.2)
    start = soft.start(velocity=(0.0, 1.0))
    young = torch.tensor(5.0, dtype=F64, requires_grad=True)
    grads = []
    for method in (Unrolled(), ForwardUnrolled()):
        path = best_response(soft.motion(3), young, init=start, hypergradient=method).value
        grads.append(torch.autograd.grad(path["displacements"][-1].square().sum(), young)[0])
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-8, atol=0)


def test_material_and_actuation_are_recovered_from_a_trajectory():
    steps = 4
    soft = SoftBody(
        energy=arm(),
        density=1.0,
        time_step=0.2,
        control=lambda phi, t: {"young": phi["log_young"].exp(), "tension": phi["tension"][t]},
    )
    truth = {
        "log_young": torch.tensor(6.0, dtype=F64).log(),
        "tension": torch.tensor([0.8, 1.5, 0.3, -0.5], dtype=F64),
    }
    seen = run(soft, truth, steps)["displacements"].detach()
    problem = BilevelProblem(
        inner=soft.motion(steps), outer_residuals=lambda path, phi: (path["displacements"] - seen)[1:].reshape(-1)
    )
    guess = {"log_young": torch.tensor(2.0, dtype=F64).log(), "tension": torch.zeros(steps, dtype=F64)}
    result = optimize(
        problem, guess, init=soft.start(), hypergradient=Unrolled(), outer=GaussNewtonStep(), max_steps=30, rtol=1e-9
    )
    found = result.outer_params
    torch.testing.assert_close(found["log_young"].exp(), torch.tensor(6.0, dtype=F64), rtol=1e-4, atol=0)
    torch.testing.assert_close(found["tension"], truth["tension"], rtol=0, atol=1e-4)


def test_a_failed_step_and_bad_options_are_named():
    soft = SoftBody(energy=replace(arm(), fibre=None, modulus=ones), density=1.0, time_step=0.2)
    with pytest.raises(SolveError, match="LoadStepping: expected status CONVERGED, got NONFINITE"):
        run(
            replace(soft, energy=replace(soft.energy, modulus=lambda y: y[None] / 0 - y[None] / 0)),
            torch.ones((), dtype=F64),
            1,
        )
    for name in ("density", "time_step"):
        with pytest.raises(ValueError, match=f"SoftBody: expected `{name}` > 0"):
            replace(soft, **{name: 0.0})
    with pytest.raises(ValueError, match="SoftBody: expected `velocity` of 2 numbers"):
        soft.start(velocity=(1.0, 0.0, 0.0))
