"""Hyperelastic energies: rotations, patch tests, the small-strain limit, assembled tangents, the blend in the void."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from sciopt.domains.topology import Grid, Structure, cantilever, q4_stiffness
from sciopt.domains.topology.nonlinear import (
    AbstractMaterial,
    Body,
    Fibre,
    HyperelasticEnergy,
    LinearElastic,
    LowDensityBlend,
    NeoHookean,
    SaintVenantKirchhoff,
    block,
    body_of,
)

F64 = torch.float64
FINITE = [SaintVenantKirchhoff(poisson=0.3), NeoHookean(poisson=0.4)]
MATERIALS = [LinearElastic(poisson=0.3), *FINITE]


def rotation(dim: int) -> Tensor:
    skew = torch.tensor([[0.0, -1.9, 0.4], [1.9, 0.0, -0.8], [-0.4, 0.8, 0.0]], dtype=F64)[:dim, :dim]
    return torch.linalg.matrix_exp(skew)


def crooked(dim: int) -> Body:
    """A block of distorted cells; its outer nodes stay in place."""
    body = block((3, 2, 2)[:dim], (3.0, 2.0, 2.0)[:dim])
    rng = np.random.default_rng(0)
    inside = np.setdiff1d(np.arange(len(body.nodes)), body.surface())
    nodes = np.array(body.nodes)
    nodes[inside] += rng.uniform(-0.2, 0.2, (len(inside), dim))
    return replace(body, nodes=nodes)


def energy_of(body: Body, material: AbstractMaterial, **more) -> HyperelasticEnergy:
    return HyperelasticEnergy(body=body, material=material, modulus=lambda design: design, **more)


def field_of(body: Body, motion) -> Tensor:
    """Free displacements that carry each node x to motion(x)."""
    nodes = torch.from_numpy(np.asarray(body.nodes))
    return (motion(nodes) - nodes).reshape(-1)[torch.from_numpy(body.free)]


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("material", FINITE, ids=repr)
def test_energies_do_not_see_a_rotation_of_a_deformed_body(material, dim, generator):
    body = crooked(dim)
    energy, young = energy_of(body, material), torch.rand(body.num_elements, generator=generator, dtype=F64) + 1
    wobble = 0.1 * torch.randn(body.nodes.shape, generator=generator, dtype=F64)
    turn, shift = rotation(dim), torch.arange(dim, dtype=F64)
    deformed = energy(field_of(body, lambda x: x + wobble), young)
    turned = energy(field_of(body, lambda x: (x + wobble) @ turn.T + shift), young)
    torch.testing.assert_close(turned, deformed, rtol=1e-12, atol=0)
    assert energy(field_of(body, lambda x: x @ turn.T + shift), young).abs() < 1e-14
    assert (
        energy_of(body, LinearElastic())(field_of(body, lambda x: x @ turn.T), young) > 1
    )  # which is why it is not here


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("material", MATERIALS, ids=repr)
def test_patch_of_distorted_elements_carries_a_uniform_finite_strain(material, dim):
    """Inner nodes of a homogeneous body under an affine motion feel no force, and the energy is density times volume."""
    body, young = crooked(dim), torch.full((1,), 2.0, dtype=F64)
    gradient = 0.3 * torch.tensor([[0.5, 0.2, 0.1], [-0.4, 0.3, 0.2], [0.1, -0.3, -0.5]], dtype=F64)[:dim, :dim]
    u = field_of(body, lambda x: x + x @ gradient.T).requires_grad_()
    value = energy_of(body, material)(u, young)
    expected = 2 * material(gradient) * float(body.volume.sum())
    torch.testing.assert_close(value, expected, rtol=1e-13, atol=0)
    force = torch.autograd.grad(value, u)[0].reshape(-1, dim)
    inside = np.setdiff1d(np.arange(len(body.nodes)), body.surface())
    assert len(inside) >= 2
    assert force[inside].abs().max() < 1e-13 < 1e-2 < force.abs().max()


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("material", FINITE, ids=repr)
def test_small_strains_are_linear_up_to_the_order_of_the_strain(material, dim, generator):
    body, young = crooked(dim), torch.ones(1, dtype=F64)
    linear = energy_of(body, LinearElastic(poisson=material.poisson))
    direction = torch.randn(body.size, generator=generator, dtype=F64)

    def gap(scale: float) -> float:
        u = scale * direction
        return float((energy_of(body, material)(u, young) / linear(u, young) - 1).abs())

    gaps = [gap(s) for s in (1e-3, 1e-4, 1e-5)]
    assert gaps[0] < 0.02
    for coarse, fine in zip(gaps, gaps[1:], strict=False):
        assert 5 < coarse / fine < 20  # first order; 10 in the limit


def test_linear_square_has_the_closed_form_stiffness():
    """Plane strain with (E, nu) is plane stress with (E / (1 - nu^2), nu / (1 - nu))."""
    nu = 0.3
    grid = Grid(nx=2, ny=1)
    body = replace(body_of(cantilever(grid)), fixed=[])
    energy = energy_of(body, LinearElastic(poisson=nu))
    (blocks,) = energy.tangents(torch.zeros(body.size, dtype=F64), torch.ones(1, dtype=F64))
    expected = q4_stiffness(nu / (1 - nu)) / (1 - nu**2)
    torch.testing.assert_close(blocks[0], torch.from_numpy(expected), rtol=0, atol=1e-15)


def test_solid_brick_stretches_by_its_modulus():
    """Pulling a 3D bar with free sides stores E e^2 / 2 V when its sides contract by Poisson's ratio."""
    body, strain, nu = block((2, 2, 2), (2.0, 1.0, 1.0)), 1e-6, 0.3
    stretch = torch.tensor([strain, -nu * strain, -nu * strain], dtype=F64)
    u = field_of(body, lambda x: x * (1 + stretch))
    for material in (LinearElastic(poisson=nu), NeoHookean(poisson=nu), SaintVenantKirchhoff(poisson=nu)):
        value = energy_of(body, material)(u, torch.tensor([7.0], dtype=F64))
        torch.testing.assert_close(value, torch.tensor(7 * strain**2 / 2 * 2, dtype=F64), rtol=1e-5, atol=0)


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("material", MATERIALS, ids=repr)
def test_assembled_tangent_is_the_hessian(material, dim, generator):
    body = replace(crooked(dim), fixed=np.arange(5), held=np.full(crooked(dim).num_dofs, 0.03))
    direction = torch.nn.functional.normalize(
        torch.randn(body.num_elements, dim, generator=generator, dtype=F64), dim=-1
    )
    fibre = Fibre(direction=direction, tension=lambda design: 0.3 * design)
    blend = LowDensityBlend(sharpness=5.0, threshold=0.2)
    energy = energy_of(body, material, fibre=fibre, blend=blend)
    young = torch.rand(body.num_elements, generator=generator, dtype=F64)
    u = 0.05 * torch.randn(2, body.size, generator=generator, dtype=F64)
    blocks = energy.tangents(u, young)
    assert blocks[0].shape == (2, body.num_elements, dim * 2**dim, dim * 2**dim)
    for row in range(2):
        assembled = energy.pattern.matrix([blocks[0][row].numpy()]).toarray()
        hessian = torch.func.hessian(energy)(u[row], young)
        np.testing.assert_allclose(assembled, hessian.numpy(), rtol=0, atol=1e-13)


def test_a_batch_is_its_rows(generator):
    body = crooked(2)
    energy = energy_of(body, NeoHookean())
    u = 0.05 * torch.randn(3, body.size, generator=generator, dtype=F64)
    young = torch.rand(3, body.num_elements, generator=generator, dtype=F64)
    single = torch.stack([energy(a, b) for a, b in zip(u, young, strict=True)])
    torch.testing.assert_close(energy(u, young), single, rtol=1e-14, atol=0)
    torch.testing.assert_close(torch.func.vmap(energy)(u, young), single, rtol=1e-14, atol=0)


@pytest.mark.parametrize("dim", [2, 3])
def test_neo_hookean_small_strains_do_not_cancel_in_float32(dim):
    gradient = 1e-4 * torch.tensor([[0.5, 0.2, 0.1], [-0.4, 0.3, 0.2], [0.1, -0.3, -0.5]], dtype=F64)[:dim, :dim]
    value, exact = NeoHookean()(gradient.float()), NeoHookean()(gradient)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), exact, rtol=1e-2, atol=0)


def test_blend_is_linear_in_the_void_and_the_material_in_the_solid():
    blend, gradient = LowDensityBlend(), torch.tensor([[0.4, 0.9], [-0.2, 0.3]], dtype=F64)
    density = torch.tensor([1e-3, 1.0], dtype=F64)
    energy = HyperelasticEnergy(
        body=replace(block((2, 1), (2.0, 1.0))),
        material=NeoHookean(),
        modulus=lambda d: torch.ones_like(d),
        blend=blend,
    )
    u = field_of(energy.body, lambda x: x + x @ gradient.T)
    expected = LinearElastic()(gradient) + NeoHookean()(gradient)
    torch.testing.assert_close(energy(u, density), expected, rtol=1e-3, atol=0)
    assert blend(density)[0] < 1e-3 and blend(density)[1] == 1
    inverted = field_of(energy.body, lambda x: x * torch.tensor([-0.5, 1.0], dtype=F64))
    assert torch.isnan(energy(inverted, density))
    assert torch.isfinite(energy(inverted, torch.full((2,), 1e-3, dtype=F64)))


def test_body_of_a_structure_keeps_its_supports_loads_and_order():
    structure = cantilever(Grid(nx=4, ny=2))
    body = body_of(structure)
    np.testing.assert_array_equal(body.free, structure.free)
    np.testing.assert_array_equal(body.force.numpy(), structure.load[structure.free])
    np.testing.assert_array_equal(body.nodes[body.cells].mean(1)[0], [0.5, 1.5])  # row 0 of the grid is on top


@pytest.mark.parametrize("dim", [2, 3])
def test_surface_is_closed_and_points_outwards(dim):
    from sciopt.domains.topology.nonlinear.follower import normals, spread

    body = crooked(dim)
    corners = torch.from_numpy(body.nodes[body.surface()])
    areas = torch.func.vmap(normals)(corners)
    torch.testing.assert_close(areas.sum((0, 1)), torch.zeros(dim, dtype=F64), rtol=0, atol=1e-13)
    volume = (torch.func.vmap(spread)(areas) * corners).sum() / dim  # divergence theorem
    torch.testing.assert_close(volume, body.volume.sum(), rtol=1e-13, atol=0)
    top = body.surface(lambda centre: centre[:, -1] == 2)
    assert len(top) == (3, 6)[dim - 2]
    np.testing.assert_allclose(body.node_volumes().sum(), float(body.volume.sum()), rtol=1e-14)


def test_energy_survives_pickling_where_its_functions_do():
    energy = HyperelasticEnergy(body=block((2, 1), (2.0, 1.0)), material=NeoHookean(), modulus=torch.square)
    _ = energy.pattern
    u, young = torch.linspace(0, 0.1, energy.size, dtype=F64), torch.ones(1, dtype=F64)
    assert pickle.loads(pickle.dumps(energy))(u, young) == energy(u, young)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cells": np.array([[0, 1, 4]])}, r"expected `cells` of shape \(num_elements, 4\)"),
        ({"cells": np.array([[0, 1, 4, 99]])}, r"expected `cells` in \[0, 6\)"),
        ({"cells": np.array([[0, 3, 4, 1]])}, "expected `cells` with positive volume everywhere, got -2 in cell 0"),
        ({"fixed": [0, 0]}, "expected `fixed` to be different numbers"),
        ({"held": np.full(12, np.nan)}, "expected finite `held`"),
        ({"load": np.zeros(3)}, r"expected `load` of shape \(12,\), got \(3,\)"),
    ],
)
def test_bodies_are_checked(change, message):
    body = block((2, 1), (8.0, 2.0)) if "positive" in message else block((2, 1), (2.0, 1.0))
    with pytest.raises(ValueError, match=message):
        replace(body, **change)


def test_options_are_checked():
    for kind in (LinearElastic, SaintVenantKirchhoff, NeoHookean):
        with pytest.raises(ValueError, match=rf"{kind.__name__}: expected `poisson` in \(-1, 0.5\), got 0.5"):
            kind(poisson=0.5)
    with pytest.raises(ValueError, match="LowDensityBlend: expected `threshold`"):
        LowDensityBlend(threshold=0.0)


def test_structure_and_body_agree_on_the_linear_compliance():
    """The linear energy of both, on the same displacements, up to plane strain for plane stress."""
    from sciopt.domains.topology import ElasticEnergy

    structure: Structure = cantilever(Grid(nx=4, ny=2))
    nu = 0.25
    flat = ElasticEnergy(structure=structure, modulus=lambda d: d, poisson=nu / (1 - nu))
    energy = energy_of(body_of(structure), LinearElastic(poisson=nu))
    u = torch.linspace(-1, 1, flat.size, dtype=F64)
    young = torch.linspace(1, 2, 8, dtype=F64)
    expected = flat.strain_energy(u, young.reshape(2, 4) / (1 - nu**2))
    torch.testing.assert_close(energy.strain_energy(u, young), expected, rtol=1e-13, atol=0)
    torch.testing.assert_close(energy.work(u), flat.work(u), rtol=1e-14, atol=0)


def test_bodies_of_3d_structures_are_theirs():
    """Whatever order of corners the grid has, the stiffness of its brick comes out."""
    from sciopt.domains.topology import ElasticEnergy, cantilever_3d

    structure = cantilever_3d(Grid(nx=3, ny=2, nz=2))
    flat = ElasticEnergy(structure=structure, modulus=lambda d: d)
    energy = energy_of(body_of(structure), LinearElastic(poisson=0.3))
    u, young = torch.linspace(-1, 1, flat.size, dtype=F64), torch.linspace(1, 2, 12, dtype=F64)
    expected = flat.strain_energy(u, young.reshape(structure.grid.shape))
    torch.testing.assert_close(energy.strain_energy(u, young), expected, rtol=1e-12, atol=0)
    with pytest.raises(ValueError, match="body_of: expected `case`"):
        body_of(structure, case=0)
