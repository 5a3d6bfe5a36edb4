"""The fundamental eigenfrequency: closed forms, dense references, hypergradients, localized and multiple modes."""

from __future__ import annotations

from math import pi

import numpy as np
import pytest
import scipy.linalg
import torch

from sciopt import SolveError
from sciopt.bilevel import hypergradient
from sciopt.domains.topology import Box, Builder, DensityFilter, Grid, Structure, VibrationProblem, cantilever
from sciopt.domains.topology.modes import DirectEigenAdjoint, DirectModes, ModeMatrices
from sciopt.domains.topology.vibration import safe_mass
from sciopt.hypergradients import Implicit
from sciopt.inner import EigenSolve
from tests.domains.topology.checks import assert_hypergradient, random_design, total

F64 = torch.float64


def strategies(problem: VibrationProblem) -> dict:
    matrices = ModeMatrices(problem)
    return {"solver": DirectModes(matrices=matrices), "hypergradient": Implicit(DirectEigenAdjoint(matrices=matrices))}


def tip_mass(structure: Structure, mass: float) -> np.ndarray:
    return np.abs(structure.load) * mass + np.abs(np.roll(structure.load, -1)) * mass


@pytest.mark.parametrize("sizes", [{"nx": 6, "ny": 3}, {"nx": 3, "ny": 1, "nz": 2}])
def test_hypergradient_of_the_fundamental_period(sizes: dict) -> None:
    grid = Grid(**sizes)
    if grid.ndim == 2:
        structure = cantilever(grid)
        masses = tip_mass(structure, 3.0)
    else:
        structure = Builder(grid=grid).hold(Box(x=0)).build(loaded_elsewhere=True)
        masses = None
    problem = VibrationProblem(
        structure=structure, volume_fraction=0.5, filter=DensityFilter(1.4, grid.ndim), masses=masses
    )
    hg = assert_hypergradient(problem, **strategies(problem))
    dense = hypergradient(
        problem.bilevel,
        random_design(problem),
        init=problem.rest(random_design(problem)),
        solver=EigenSolve(),
        hypergradient=Implicit(),
        certificate=False,
    )
    torch.testing.assert_close(hg.value, dense.value, rtol=1e-10, atol=0)
    torch.testing.assert_close(hg.grad, dense.grad, rtol=1e-7, atol=1e-9 * float(dense.grad.abs().max()))


def test_the_eigenpair_is_that_of_dense_matrices() -> None:
    problem = VibrationProblem(structure=cantilever(Grid(nx=5, ny=3)), volume_fraction=0.5, density=2.0)
    density = random_design(problem)
    density[0, 3:] = 0.01
    matrices = ModeMatrices(problem)
    k, m = matrices.pencil(problem.weights(None, density).numpy())
    vector = torch.randn(problem.energy.size, dtype=F64, generator=torch.Generator().manual_seed(0))
    np.testing.assert_allclose(problem.stiffness(vector, density), k @ vector.numpy(), rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(problem.inertia(vector, density), m @ vector.numpy(), rtol=1e-11, atol=1e-13)
    lowest = scipy.linalg.eigh(k.toarray(), m.toarray(), eigvals_only=True)[0]
    hg = total(problem, density, **strategies(problem))
    assert float(hg.value) == pytest.approx(2 * pi / np.sqrt(lowest), rel=1e-9)
    v = hg.inner_params["vector"].numpy()
    assert v @ (m @ v) == pytest.approx(1.0, rel=1e-12)


def test_a_rod_swings_lengthwise_at_its_closed_form() -> None:
    """Held sideways and at one end: w = (pi / 2L) sqrt(E / rho), consistent mass overestimates it by (pi h / 2L)^2 / 24."""
    length = 40
    made = Builder(grid=Grid(nx=length, ny=1)).hold(Box(), "y").hold(Box(x=0), "x").build(loaded_elsewhere=True)
    problem = VibrationProblem(structure=made, volume_fraction=0.5, poisson=0.0, density=2.0)
    hg = total(problem, torch.ones(1, length, dtype=F64), **strategies(problem))
    exact = pi / (2 * length) * np.sqrt(1 / 2.0)
    assert 2 * pi / float(hg.value) == pytest.approx(exact * (1 + (pi / (2 * length)) ** 2 / 24), rel=1e-6)


def test_void_has_no_modes_of_its_own() -> None:
    """With mass in proportion to density a nearly empty region swings first; the interpolation keeps it out."""
    problem = VibrationProblem(structure=cantilever(Grid(nx=12, ny=8)), volume_fraction=0.5)
    density = torch.full((8, 12), 1e-2, dtype=F64)
    density[3:5] = 1.0
    beam = VibrationProblem(
        structure=Builder(grid=Grid(nx=12, ny=2)).hold(Box(x=0)).build(loaded_elsewhere=True), volume_fraction=0.5
    )
    alone = float(total(beam, torch.ones(2, 12, dtype=F64), **strategies(beam)).value)
    assert float(total(problem, density, **strategies(problem)).value) == pytest.approx(alone, rel=1e-3)
    weights = problem.weights(None, density).numpy()
    weights[1] = density.reshape(-1).numpy()
    k, m = ModeMatrices(problem).pencil(weights)
    naive = scipy.linalg.eigh(k.toarray(), m.toarray(), eigvals_only=True)[0]
    assert 2 * pi / np.sqrt(naive) > 1.5 * alone
    x = torch.tensor([0.1 - 1e-9, 0.1, 0.1 + 1e-9], dtype=F64, requires_grad=True)  # once continuously differentiable
    torch.testing.assert_close(safe_mass(x).detach(), x.detach(), rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(
        torch.autograd.grad(safe_mass(x).sum(), x)[0], torch.ones(3, dtype=F64), rtol=1e-6, atol=0
    )


def test_a_multiple_eigenvalue_is_said_and_never_differentiated() -> None:
    square = Builder(grid=Grid(nx=2, ny=2, nz=5)).hold(Box(z=0)).build(loaded_elsewhere=True)
    problem = VibrationProblem(structure=square, volume_fraction=0.5)
    with pytest.raises(SolveError, match="SINGULAR"):
        total(problem, problem.start(), **strategies(problem))


def test_bad_vibrations_are_refused() -> None:
    structure = cantilever(Grid(nx=4, ny=2))
    with pytest.raises(ValueError, match="VibrationProblem: expected `density` > 0"):
        VibrationProblem(structure=structure, volume_fraction=0.5, density=0.0)
    with pytest.raises(ValueError, match="VibrationProblem: expected `masses` >= 0"):
        VibrationProblem(structure=structure, volume_fraction=0.5, masses=np.ones(3))
    with pytest.raises(ValueError, match="VibrationProblem: expected `volume_fraction`"):
        VibrationProblem(structure=structure, volume_fraction=0.0)
