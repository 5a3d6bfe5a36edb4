"""Relaxed conformers: minima, statuses, restraints, and gradients through the minimum."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from rdkit import Chem
from rdkit.Chem import rdDistGeom, rdForceFieldHelpers, rdMolTransforms
from torch import Tensor
from torch.testing import assert_close

from sciopt import best_response
from sciopt.domains.conformation.batch import ConformerBatch
from sciopt.domains.conformation.mmff import MMFF
from sciopt.domains.conformation.relaxation import HessianAdjoint, relax, relaxation_problem
from sciopt.domains.conformation.restraints import DistanceRestraint, PositionRestraint, TorsionRestraint, dihedral
from sciopt.domains.conformation.rigid import batch_nullspace, fragment_labels
from sciopt.domains.conformation.terms.energy import AbstractEnergy
from sciopt.domains.conformation.terms.total import EnergySum
from sciopt.hypergradients import Implicit
from sciopt.inner import LBFGS


def embedded(smiles: str, count: int = 1) -> Chem.Mol:
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    assert len(rdDistGeom.EmbedMultipleConfs(mol, count, randomSeed=7)) == count
    return mol


@pytest.fixture(scope="module")
def batch() -> ConformerBatch:
    return ConformerBatch.from_mols([embedded("CC(=O)Oc1ccccc1C(=O)O", 2), embedded("CCO", 2), embedded("C#N", 1)])


def restraints(batch: ConformerBatch) -> list[AbstractEnergy]:
    rows, width = batch.positions.shape[:2]
    one = torch.ones(rows, 1, dtype=torch.float64)
    line = torch.arange(4).view(1, 4, 1).expand(rows, 4, 1)
    generator = torch.Generator().manual_seed(3)
    place = torch.randn(rows, width, 3, generator=generator, dtype=torch.float64)
    return [
        DistanceRestraint(atoms=line[:, ::3], lower=1.2 * one, upper=1.5 * one, stiffness=7 * one, num_atoms=width),
        TorsionRestraint(atoms=line, target=0.7 * one, stiffness=3 * one, num_atoms=width),
        PositionRestraint(target=place, stiffness=batch.mask.to(torch.float64)),
    ]


def test_restraints_have_right_gradients_and_hessians(batch: ConformerBatch) -> None:
    some = batch.rows(torch.tensor([0, 1]))
    noise = torch.randn(some.positions.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    x = (some.positions + 0.1 * noise).requires_grad_()
    whole = EnergySum(parts=tuple(restraints(some)))
    for energy in (*restraints(some), whole, MMFF.of(some) + whole):
        value, gradient = energy.value_and_gradient(x.detach(), {})
        assert_close(value, energy.value(x, {}).detach(), rtol=1e-12, atol=1e-10)
        (plain,) = torch.autograd.grad(energy.value(x, {}).sum(), x)
        assert_close(gradient, plain, rtol=1e-9, atol=1e-8)
        assert float(gradient.abs().max()) > 0.1
        hessian = energy.curvature(x.detach(), {}, exact=True)
        way, step = noise, 1e-5
        ahead = energy.value_and_gradient(x.detach() + step * way, {})[1]
        behind = energy.value_and_gradient(x.detach() - step * way, {})[1]
        product = (hessian @ way.flatten(1).unsqueeze(-1)).view_as(way)
        assert_close(product, (ahead - behind) / (2 * step), rtol=1e-5, atol=1e-3)
        model = energy.curvature(x.detach(), {}, exact=False)
        assert float(torch.linalg.eigvalsh(model).min()) > -1e-8


def test_dihedrals_are_those_of_rdkit(batch: ConformerBatch) -> None:
    mol = batch.mols[0]
    points = torch.as_tensor(mol.GetConformer().GetPositions())[[0, 1, 3, 4]].view(4, 3, 1, 1)
    assert_close(
        float(dihedral(points)), rdMolTransforms.GetDihedralRad(mol.GetConformer(), 0, 1, 3, 4), rtol=0, atol=1e-9
    )


def test_sums_flatten_and_refuse_what_does_not_fit(batch: ConformerBatch) -> None:
    field, (ties, turns, places) = MMFF.of(batch), restraints(batch)
    total = field + ties + (turns + places)
    assert isinstance(total, EnergySum) and len(total.parts) == 4
    x = batch.positions
    assert_close(total(x), field(x) + ties(x) + turns(x) + places(x), rtol=1e-12, atol=1e-9)
    rows = torch.tensor([3, 0])
    assert_close(total.select(rows)(x[rows]), total(x)[rows], rtol=1e-12, atol=1e-9)
    with pytest.raises(ValueError, match="EnergySum: expected parameter names of one part only, got `distance_lower`"):
        _ = ties + ties
    with pytest.raises(ValueError, match="EnergySum: expected `parts` of the same rows"):
        _ = ties + field.select(rows)
    with pytest.raises(ValueError, match="EnergySum: expected `parts` with at least one"):
        EnergySum(parts=())
    with pytest.raises(ValueError, match="DistanceRestraint: expected `atoms` between 0 and 2"):
        DistanceRestraint(
            atoms=torch.full((1, 2, 1), 3),
            lower=torch.ones(1, 1),
            upper=torch.ones(1, 1),
            stiffness=torch.ones(1, 1),
            num_atoms=3,
        )


def test_minima_are_those_of_rdkit(batch: ConformerBatch) -> None:
    relaxed = relax(batch)
    assert bool(relaxed.converged.all()) and relaxed.reasons == [""] * len(batch)
    assert float(relaxed.residual_norm.max()) <= 1e-2
    for row in range(len(batch)):
        mol = Chem.Mol(batch.mols[int(batch.molecule[row])])
        conformer = int(batch.conformer[row])
        props = rdForceFieldHelpers.MMFFGetMoleculeProperties(mol)
        field = rdForceFieldHelpers.MMFFGetMoleculeForceField(mol, props, confId=conformer)
        field.Minimize(maxIts=2000)
        assert float(relaxed.energy[row]) < field.CalcEnergy() + 0.01
    again = relax(batch)
    assert torch.equal(again.batch.positions, relaxed.batch.positions)
    assert bool((relaxed.batch.positions[~batch.mask] == 0).all())


def test_each_row_has_its_own_budget_and_reason(batch: ConformerBatch) -> None:
    relaxed = relax(batch, solver=LBFGS(rtol=0.0, atol=1e-2, max_steps=12))
    assert relaxed.converged.tolist() != [True] * 5
    assert relaxed.reasons[0].startswith("MAX_STEPS: The step budget is spent")
    assert int(relaxed.num_steps.max()) == 12
    broken = batch.with_positions(batch.positions.clone())
    broken.positions[0, 1] = broken.positions[0, 0]  # two atoms in one place: a start that no row should suffer from
    assert bool(relax(broken).converged[2:].all())


def test_a_fixed_core_stays_and_a_torsion_turns() -> None:
    batch = ConformerBatch.from_mols([embedded("CCCC")])
    rows, width = batch.positions.shape[:2]
    core = torch.zeros(rows, width, dtype=torch.float64)
    core[:, :2] = 1e4
    atoms = torch.arange(4).view(1, 4, 1)
    one = torch.ones(1, 1, dtype=torch.float64)
    hold = PositionRestraint(target=batch.positions, stiffness=core)
    turn = TorsionRestraint(atoms=atoms, target=torch.pi / 2 * one, stiffness=500 * one, num_atoms=width)
    relaxed = relax(batch, lambda part: MMFF.of(part) + hold + turn, free=False)
    assert bool(relaxed.converged.all())
    assert_close(relaxed.batch.positions[:, :2], batch.positions[:, :2], rtol=0, atol=2e-3)
    angle = dihedral(relaxed.batch.positions[0, :4].view(4, 3, 1, 1))
    assert abs(float(angle) - np.pi / 2) < 0.05


def test_rigid_motions_are_counted_per_fragment() -> None:
    line = torch.tensor([[0.0, 0.0, -1.16], [0.0, 0.0, 0.0], [0.0, 0.0, 1.16]], dtype=torch.float64)
    bent = torch.tensor([[0.0, 0.9, -0.4], [0.0, 0.0, 0.0], [0.0, 0.9, 0.4]], dtype=torch.float64)
    pad = torch.zeros(3, 3, dtype=torch.float64)
    positions = torch.stack([torch.cat([bent, line + 4.0]), torch.cat([line, pad]), torch.cat([bent, pad])])
    labels = torch.tensor([[0, 0, 0, 1, 1, 1], [0, 0, 0, -1, -1, -1], [0, 0, 0, -1, -1, -1]])
    modes = batch_nullspace(labels)(positions, None)
    assert torch.linalg.matrix_rank(modes).tolist() == [11, 5, 6]
    assert bool((modes[1:, 9:] == 0).all())
    batch = ConformerBatch.from_mols([embedded("CCO.O=C=O"), embedded("CO")])
    assert fragment_labels(batch)[:, [0, 3, 8]].tolist() == [[0, 1, 0], [0, 0, -1]]
    relaxed = relax(batch, solver=LBFGS(rtol=0.0, atol=1e-8)).batch
    hessian = MMFF.of(relaxed).curvature(relaxed.positions, {}, exact=True)
    still = hessian @ batch_nullspace(fragment_labels(relaxed))(relaxed.positions, None)
    assert float(still.abs().max()) < 1e-6


def outer_loss(x: Tensor) -> Tensor:
    """Invariant under rigid motion: some distances."""
    return (
        torch.linalg.vector_norm(x[:, 0] - x[:, 3], dim=-1).sum()
        + torch.linalg.vector_norm(x[:, 1] - x[:, 4], dim=-1).sum()
    )


@pytest.mark.parametrize("direct", [True, False])
def test_hypergradients_agree_with_finite_differences(direct: bool) -> None:
    batch = ConformerBatch.from_mols([embedded("CC(=O)N"), embedded("CCO")])
    energy = MMFF.of(batch)
    problem = relaxation_problem(energy, batch)
    solver = LBFGS(rtol=0.0, atol=1e-9, max_steps=500)
    params = {name: energy.parameters()[name] for name in ("torsion", "bond_length", "charges")}
    way = {
        name: torch.randn(t.shape, generator=torch.Generator().manual_seed(4), dtype=t.dtype)
        for name, t in params.items()
    }
    method = Implicit(HessianAdjoint(energy=energy)) if direct else Implicit()

    def settled(step: float, start: Tensor) -> Tensor:
        moved = {name: t + step * t.abs() * way[name] for name, t in params.items()}
        return best_response(problem, moved, init=start, solver=solver, throw=False).value

    start = settled(0.0, batch.positions)
    leaves = {name: t.clone().requires_grad_() for name, t in params.items()}
    sol = best_response(problem, leaves, init=start, solver=solver, hypergradient=method, throw=False)
    outer_loss(sol.value).backward()
    slope = sum(
        float((leaf.grad * leaf.detach().abs() * way[name]).sum())
        for name, leaf in leaves.items()
        if leaf.grad is not None
    )
    step = 1e-4
    difference = float(outer_loss(settled(step, start)) - outer_loss(settled(-step, start))) / (2 * step)
    assert abs(slope) > 1e-3
    assert abs(slope - difference) < 1e-5 * abs(difference) + 1e-7


def test_problems_of_other_batches_are_refused(batch: ConformerBatch) -> None:
    with pytest.raises(ValueError, match="relaxation_problem: expected an energy of"):
        relaxation_problem(MMFF.of(batch), batch.rows(torch.tensor([0])))


LINEAR = ["C#N", "C#C", "O=C=O", "C#CC#C", "N#CC#N", "CC#CC", "FC#CF", "C=C=C"]


def test_linear_molecules_relax_in_few_evaluations() -> None:
    batch = ConformerBatch.from_mols([embedded(smiles, 3) for smiles in LINEAR])
    relaxed = relax(batch)
    assert bool(relaxed.converged.all())
    assert int(relaxed.num_steps.max()) <= 15  # of hundreds while straight centres had no spring out of their plane
    for row in range(0, len(batch), 3):
        mol = Chem.Mol(batch.mols[int(batch.molecule[row])])
        field = rdForceFieldHelpers.MMFFGetMoleculeForceField(mol, rdForceFieldHelpers.MMFFGetMoleculeProperties(mol))
        field.Minimize(maxIts=2000, forceTol=1e-6)
        assert_close(float(relaxed.energy[row]), field.CalcEnergy(), rtol=0, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_straight_molecules_have_finite_gradients_and_whole_models(dtype: torch.dtype) -> None:
    """Carbon dioxide along an axis: bends in both planes are as stiff in the model as in the Hessian."""
    mol = Chem.MolFromSmiles("O=C=O")
    energy = MMFF.of_mols([mol], torch.zeros(1, dtype=torch.int64), dtype=dtype)
    x = torch.zeros(1, 3, 3, dtype=dtype)
    x[0, :, 0] = torch.tensor([-1.0, 0.0, 1.0]) * float(energy.tables.bond_length[0, 0])  # no bond pulls
    value, gradient = energy.value_and_gradient(x, {})
    assert bool(torch.isfinite(value).all() and torch.isfinite(gradient).all())
    assert float(gradient[..., 1:].abs().max()) < 1e-3  # nothing bends it
    model, exact = (energy.curvature(x, {}, exact=exact)[0].double() for exact in (False, True))
    for axis in (1, 2):
        bend = torch.zeros(3, 3, dtype=torch.float64)
        bend[:, axis] = torch.tensor([1.0, -2.0, 1.0])
        stiff = [float(bend.flatten() @ matrix @ bend.flatten()) for matrix in (model, exact)]
        assert stiff[0] == pytest.approx(stiff[1], rel=0.1) and stiff[1] > 100


def test_the_direct_adjoint_serves_both_precisions() -> None:
    """In float32 too it counts as solved (a warning would fail the test), and its gradient agrees to what that resolves."""
    start = ConformerBatch.from_mols([embedded("CCO", 1), embedded("CC(N)=O", 1)])
    found = []
    for dtype in (torch.float64, torch.float32):
        batch = start.with_positions(start.positions.to(dtype))
        energy = MMFF.of(batch)
        outer = {"bond_length": energy.parameters()["bond_length"].requires_grad_()}
        sol = best_response(
            relaxation_problem(energy, batch),
            outer,
            init=relax(start).batch.positions.to(dtype),
            solver=LBFGS(rtol=0.0, atol=1e-6 if dtype == torch.float64 else 2e-2),
            hypergradient=Implicit(HessianAdjoint(energy=energy)),
        )
        (sol.value[:, 0] - sol.value[:, 1]).norm(dim=-1).sum().backward()
        assert outer["bond_length"].grad is not None
        found.append(outer["bond_length"].grad.double())
    assert_close(found[1], found[0], rtol=0, atol=2e-3)
    with pytest.raises(ValueError, match="HessianAdjoint: expected `rtol`"):
        HessianAdjoint(energy=MMFF.of(start), rtol=-1.0)


def test_long_chains_leave_float32_in_time() -> None:
    """Coordinates of hundreds of angstrom cannot be resolved to the usual gradient in float32: the last steps are float64's.

    Two hundred carbons as a stretched zigzag, disturbed; with the short chain's tolerance it took 551 evaluations.
    """
    count = 200
    mol = Chem.AddHs(Chem.MolFromSmiles("C" * count))
    x = torch.zeros(1, mol.GetNumAtoms(), 3, dtype=torch.float64)
    place = torch.arange(count, dtype=torch.float64)
    side = 1 - 2 * (place.remainder(2) == 0).double()
    x[0, :count, 0], x[0, :count, 1] = 1.27 * place, 0.43 * side
    seen = [0] * count
    for atom in list(mol.GetAtoms())[count:]:
        carbon = atom.GetNeighbors()[0].GetIdx()
        out = -1.0 if carbon == 0 else 1.0
        steps = [(0.0, 0.6 * side[carbon], 0.9), (0.0, 0.6 * side[carbon], -0.9), (0.9 * out, -0.5 * side[carbon], 0.0)]
        x[0, atom.GetIdx()] = x[0, carbon] + torch.tensor([float(v) for v in steps[seen[carbon]]], dtype=torch.float64)
        seen[carbon] += 1
    x += 0.05 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    one = torch.zeros(1, dtype=torch.int64)
    relaxed = relax(ConformerBatch(mols=(mol,), positions=x, molecule=one, conformer=one))
    assert relaxed.converged.tolist() == [True] and int(relaxed.num_steps) <= 60
