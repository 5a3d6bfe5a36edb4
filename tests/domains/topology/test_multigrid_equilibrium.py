"""Multigrid as inner solver and adjoint: known compliances, the direct solver, finite differences."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from torch import Tensor

from sciopt import Minimize, SolveError, best_response
from sciopt.domains.topology import (
    SIMP,
    DirectAdjoint,
    DirectEquilibrium,
    ElasticEnergy,
    FactorCache,
    Grid,
    cantilever,
    mbb,
)
from sciopt.domains.topology.multigrid import (
    Box,
    BoxStructure,
    HierarchyCache,
    LatticeEnergy,
    MultigridAdjoint,
    MultigridEquilibrium,
    VCycle,
    box_cantilever,
)
from sciopt.hypergradients import Implicit
from sciopt.linsolve import CG, Tag, matrix_operator

F64 = torch.float64
SMALL = VCycle(coarsest=60)


def density_of(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64) * 0.9 + 0.1


def settle(energy, density: Tensor, rtol: float = 1e-10, init: Tensor | None = None, **options):
    cache = options.pop("cache", None) or HierarchyCache(energy, SMALL)
    solver = MultigridEquilibrium(cache=cache, rtol=rtol)
    method = Implicit(MultigridAdjoint(cache=cache, rtol=rtol))
    init = density.new_zeros(energy.size) if init is None else init
    return best_response(Minimize(energy, **options), density, init=init, solver=solver, hypergradient=method)


def box_energy(nx: int = 6, ny: int = 3, nz: int = 4) -> LatticeEnergy:
    return LatticeEnergy(structure=box_cantilever(Box(nx=nx, ny=ny, nz=nz)), modulus=SIMP(young_min=1e-3))


@pytest.mark.parametrize("sizes", [(24, 4, 6), (9, 5, 3)])
def test_bar_under_axial_load(sizes: tuple[int, int, int]) -> None:
    """A solid bar, free to contract: compliance F^2 L / (E A)."""
    box = Box(nx=sizes[0], ny=sizes[1], nz=sizes[2])
    root, end = box.face(0, 0), box.face(0, 1)
    load = np.zeros(3 * box.num_nodes)
    k, j, _ = np.unravel_index(end, box.lattice.node_shape)
    weight = np.where(k % box.nz == 0, 0.5, 1.0) * np.where(j % box.ny == 0, 0.5, 1.0)
    load[box.dof(end, 0)] = weight
    fixed = np.concatenate(
        [box.dof(root, 0), box.dof(box.node(0, 0, 0), 1).reshape(1), box.dof(box.node(0, np.array([0, box.ny]), 0), 2)]
    )
    energy = LatticeEnergy(structure=BoxStructure(box=box, fixed=fixed, load=load), modulus=lambda x: 2.5 * x)
    density = torch.ones(box.shape, dtype=F64)
    solution = settle(energy, density, rtol=1e-13)
    area = box.ny * box.nz
    assert load.sum() == pytest.approx(area)
    expected = area**2 * box.nx / (2.5 * area)
    assert energy.work(solution.value).item() == pytest.approx(expected, rel=1e-12)
    stretch = energy.full_displacements(solution.value)[0, 0, :, 0]
    torch.testing.assert_close(stretch, torch.arange(box.nx + 1, dtype=F64) / 2.5, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("structure", [mbb(Grid(nx=15, ny=8)), cantilever(Grid(nx=12, ny=7))], ids=lambda s: s.name)
def test_agrees_with_the_direct_solver(structure) -> None:
    energy = ElasticEnergy(structure=structure, modulus=SIMP())
    target = torch.linspace(-1, 1, energy.size, dtype=F64)
    density = density_of(structure.grid.ny, structure.grid.nx)
    factors = FactorCache(energy)
    results = []
    for direct in (True, False):
        x = density.clone().requires_grad_()
        if direct:
            solver, adjoint = DirectEquilibrium(cache=factors), DirectAdjoint(cache=factors)
            init = torch.zeros(energy.size, dtype=F64)
            solution = best_response(Minimize(energy), x, init=init, solver=solver, hypergradient=Implicit(adjoint))
        else:
            solution = settle(energy, x, rtol=1e-11)
        (solution.value * target).sum().backward()  # not self-adjoint
        assert x.grad is not None
        results.append((solution.value.detach(), x.grad))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(b, a, rtol=0, atol=1e-9 * float(a.abs().max()))


def test_lattice_energy_agrees_with_the_sum_over_elements() -> None:
    """An energy made of dense algebra, element by element."""
    energy = box_energy(3, 2, 2)
    box, u, density = energy.structure.box, torch.randn(energy.size, dtype=F64), density_of(2, 2, 3)
    full = energy.full_displacements(u)
    total = torch.zeros((), dtype=F64)
    for k in range(box.nz):
        for j in range(box.ny):
            for i in range(box.nx):
                local = full[k : k + 2, j : j + 2, i : i + 2].reshape(-1)
                total += 0.5 * energy.modulus(density[k, j, i]) * local @ energy.placement.element @ local
    assert float(energy.strain_energy(u, density)) == pytest.approx(float(total), rel=1e-13)


def test_derivatives_of_every_order() -> None:
    energy = box_energy(2, 1, 1)
    u = torch.randn(2, energy.size, dtype=F64, requires_grad=True)
    density = density_of(2, 1, 1, 2).requires_grad_()
    assert torch.autograd.gradcheck(energy.strain_energy, (u, density), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(energy.strain_energy, (u, density))
    shared = density_of(1, 1, 2).requires_grad_()  # one density for all rows
    assert torch.autograd.gradcheck(energy.strain_energy, (u, shared))
    rows = torch.vmap(energy.strain_energy, in_dims=(0, None))(u, shared)
    torch.testing.assert_close(rows, energy.strain_energy(u, shared))
    grad = torch.func.grad(lambda u: torch.vmap(energy.strain_energy)(u, density).sum())(u.detach())
    (expected,) = torch.autograd.grad(energy.strain_energy(u, density).sum(), u)
    torch.testing.assert_close(grad, expected)


def test_hypergradient_against_differences() -> None:
    energy = box_energy()
    density, direction = density_of(4, 3, 6), density_of(4, 3, 6, seed=1) - 0.5

    def outer(density: Tensor) -> Tensor:
        value = settle(energy, density, rtol=1e-12).value
        return (value**2).sum().sqrt() + energy.work(value)

    x = density.clone().requires_grad_()
    outer(x).backward()
    assert x.grad is not None
    h = 1e-5
    with torch.no_grad():
        difference = (outer(density + h * direction) - outer(density - h * direction)) / (2 * h)
    assert float((x.grad * direction).sum()) == pytest.approx(float(difference), rel=1e-7)


def test_adjoint_of_the_compliance_is_free() -> None:
    energy = box_energy()
    cache = HierarchyCache(energy, SMALL)
    density = density_of(4, 3, 6).requires_grad_()
    solution = settle(energy, density, cache=cache)
    steps: list[Tensor] = []
    solve = cache.solve
    cache.solve = lambda *a, **k: (steps.append((out := solve(*a, **k)).num_steps), out)[1]  # pyright: ignore
    energy.work(solution.value).backward()
    assert [int(s) for s in steps] == [0] and cache.hierarchies == 1
    u, rho = solution.value.detach(), density.detach().requires_grad_()
    (strain,) = torch.autograd.grad(energy.strain_energy(u, rho), rho)
    assert density.grad is not None
    torch.testing.assert_close(density.grad, -2 * strain, rtol=1e-7, atol=1e-9)


def test_warm_start() -> None:
    energy = box_energy()
    density = density_of(4, 3, 6)
    first = settle(energy, density)
    again = settle(energy, density, init=first.value)
    near = settle(energy, density + 1e-4, init=first.value)
    assert again.num_steps == 0 and 0 < near.num_steps < first.num_steps


def test_batches_of_densities() -> None:
    energy = box_energy()
    density = density_of(3, 4, 3, 6)
    many = settle(energy, density, init=torch.zeros(3, energy.size, dtype=F64), batch_ndim=1)
    for row in range(3):
        one = settle(energy, density[row])
        torch.testing.assert_close(many.value[row], one.value, rtol=0, atol=1e-7 * float(one.value.abs().max()))


def test_float32() -> None:
    energy = box_energy()
    density = density_of(4, 3, 6)
    expected = settle(energy, density).value
    x = density.float().requires_grad_()
    solution = settle(energy, x, rtol=1e-4)
    assert solution.value.dtype == torch.float32
    torch.testing.assert_close(solution.value.double(), expected, rtol=0, atol=1e-3 * float(expected.abs().max()))
    energy.work(solution.value).backward()
    assert x.grad is not None and x.grad.dtype == torch.float32


def test_pickle() -> None:
    energy = LatticeEnergy(structure=box_cantilever(Box(nx=4, ny=2, nz=2)), modulus=SIMP())
    cache = HierarchyCache(energy)
    first = settle(energy, density_of(2, 2, 4), cache=cache).value
    copy = pickle.loads(pickle.dumps(cache))
    assert torch.equal(settle(copy.energy, density_of(2, 2, 4), cache=copy).value, first)


def test_failures_are_told() -> None:
    energy = box_energy()
    density = density_of(4, 3, 6)
    bad = density.clone()
    bad[0, 0, 0] = torch.nan
    cache = HierarchyCache(energy, SMALL)
    out = cache.solve(bad.reshape(-1), energy.load, rtol=1e-8)
    assert out.status_code.item() == 8
    init = torch.zeros(energy.size, dtype=F64)
    with pytest.raises(SolveError, match="MAX_STEPS"):
        best_response(
            Minimize(energy), density, init=init, solver=MultigridEquilibrium(cache=cache, rtol=1e-12, max_steps=2)
        )
    operator = matrix_operator(torch.eye(3, dtype=F64), tags=(Tag.POSITIVE_DEFINITE,))
    with pytest.raises(ValueError, match="got one without `evaluate`"):
        MultigridAdjoint(cache=cache).solve(operator, torch.ones(3, dtype=F64))
    assert CG().solve(operator, torch.ones(3, dtype=F64)).converged


def test_structures_are_checked() -> None:
    box = Box(nx=2, ny=2, nz=2)
    load = np.zeros(3 * box.num_nodes)
    load[-1] = 1.0
    rollers = np.concatenate([box.dof(box.face(axis, 0), axis) for axis in range(3)])
    assert BoxStructure(box=box, fixed=rollers, load=load).free.size == 54
    with pytest.raises(ValueError, match="leaves free: rotation"):
        BoxStructure(box=box, fixed=np.array([box.dof(0, axis) for axis in range(3)]), load=load)
    with pytest.raises(ValueError, match="leaves free: translation in z"):
        BoxStructure(box=box, fixed=rollers[:18], load=load)
    with pytest.raises(ValueError, match="expected `fixed` in"):
        BoxStructure(box=box, fixed=np.array([1000]), load=load)
    with pytest.raises(ValueError, match="at least one free displacement"):
        BoxStructure(box=box, fixed=rollers, load=np.zeros(load.size))
    with pytest.raises(ValueError, match="expected a finite `load`"):
        BoxStructure(box=box, fixed=rollers, load=np.full(load.size, np.nan))
    with pytest.raises(ValueError, match="expected `load` of shape"):
        BoxStructure(box=box, fixed=rollers, load=np.ones(3))
    with pytest.raises(ValueError, match="expected `nx` to be an int"):
        Box(nx=0, ny=1, nz=1)
