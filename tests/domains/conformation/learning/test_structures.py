"""The inner problem: exact distances give back the structure, and derivatives are those of the minimum."""

from __future__ import annotations

import pytest
import torch

from sciopt.domains.conformation.learning import (
    DistancePrediction,
    DistanceTargets,
    GivenStart,
    InnerOptions,
    SpectralStart,
    aligned_rmsd,
    distance_energy,
    graph_batch,
    match_table,
    reconstruct,
)
from sciopt.domains.conformation.learning.objectives import EndToEnd
from sciopt.domains.conformation.learning.starts import handedness
from sciopt.domains.conformation.stereo import stereo_errors
from sciopt.hypergradients import OneStep, Unrolled
from sciopt.inner import LBFGS
from tests.domains.conformation.learning.molecules import batch_of, noise, references
from tests.domains.conformation.learning.test_graphs import network

TIGHT = LBFGS(rtol=0.0, atol=1e-8, max_steps=3_000)


def rows_of(known):
    batch = batch_of(known)
    return (
        batch,
        graph_batch(batch),
        match_table([item.mol for item in known], like=batch.positions).rows(batch.molecule),
    )


def test_exact_distances_give_the_structure_back(generator):
    batch, rows, matches = rows_of(references(2))
    distances = rows.distances(batch.positions)
    start = batch.with_positions(
        batch.positions + noise(batch.positions.shape, generator, 0.05) * batch.mask.unsqueeze(-1)
    )
    settled = reconstruct(start, rows, DistancePrediction(distances, torch.full_like(distances, 0.05)))
    assert settled.trusted.all(), settled.reasons
    assert float(aligned_rmsd(settled.positions, batch.positions, matches).max()) < 0.01
    assert float(settled.energy.max()) < 1e-4


def test_dropping_rows_keeps_their_outer_variables(generator):
    batch, rows, _ = rows_of(references(1))
    distances = rows.distances(batch.positions) * 1.02
    energy, params = distance_energy(rows, DistancePrediction(distances, torch.full_like(distances, 0.05)))
    whole = energy.value_and_gradient(batch.positions, params)
    some = torch.tensor([5, 2])
    part = energy.select(some).value_and_gradient(batch.positions[some], params)
    torch.testing.assert_close(part[0], whole[0][some], rtol=0, atol=0)
    torch.testing.assert_close(part[1], whole[1][some], rtol=0, atol=0)
    again = energy.select(torch.tensor([6, 5, 2])).select(torch.tensor([1])).value(batch.positions[some[:1]], params)
    torch.testing.assert_close(again, whole[0][some[:1]], rtol=1e-12, atol=1e-12)


def test_energy_is_the_likelihood_and_its_gradient_the_slope():
    batch, rows, _ = rows_of(references(1, ("CCO",)))
    distances = rows.distances(batch.positions)
    scale = torch.full_like(distances, 0.1)
    energy, params = distance_energy(rows, DistancePrediction(distances + 0.1, scale), contact=0.0)
    assert float(energy(batch.positions, params)) == pytest.approx(0.593 * 0.5 * distances.shape[0])
    x = batch.positions.clone().requires_grad_()
    (slope,) = torch.autograd.grad(energy.value(x, params).sum(), x)
    torch.testing.assert_close(energy.value_and_gradient(batch.positions, params)[1], slope)


def test_tables_that_do_not_fit_are_refused():
    one = torch.ones(1, 1)
    with pytest.raises(ValueError, match="one of each per pair"):
        DistanceTargets(atoms=torch.zeros(1, 2, 2, dtype=torch.int64), distances=one, stiffness=one, num_atoms=2)


def test_gradients_of_weights_agree_with_central_differences(generator):
    """End-to-end loss of a small network, differentiated through the minimum, in a random direction of all weights."""
    known = references(1, ("CCO", "CC(=O)N", "C1CCC1O"))
    batch, rows, matches = rows_of(known)
    model = network()
    objective = EndToEnd(inner=InnerOptions(solver=TIGHT), alignment_weight=3.0)

    def loss():
        parts = objective.losses(model, batch, rows, matches, batch.positions, torch.Generator().manual_seed(8), 0)
        assert (parts.status_code == 0).all()
        return parts.total.mean()

    loss().backward()
    weights = list(model.parameters())
    way = [noise(p.shape, generator, 1.0) for p in weights]
    slope = sum(float((p.grad * v).sum()) for p, v in zip(weights, way, strict=True) if p.grad is not None)
    step, values = 1e-5, []
    for sign in (1, -1):
        with torch.no_grad():
            for p, v in zip(weights, way, strict=True):
                p.add_(sign * step * v)
            values.append(float(loss()))
            for p, v in zip(weights, way, strict=True):
                p.sub_(sign * step * v)
    assert slope == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-5)


def test_published_update_differs_from_the_exact_one(generator):
    known = references(1, ("CCO", "C1CCC1O"))
    batch, rows, matches = rows_of(known)
    distances = rows.distances(batch.positions)
    off = distances + noise(distances.shape, generator, 0.05)
    start = batch.with_positions(batch.positions + noise(batch.positions.shape, generator, 0.05))

    def slope(options):
        leaf = off.clone().requires_grad_()
        settled = reconstruct(start, rows, DistancePrediction(leaf, torch.full_like(leaf, 0.1)), options)
        return torch.autograd.grad(aligned_rmsd(settled.positions, batch.positions, matches).sum(), leaf)[0]

    exact = slope(InnerOptions(solver=TIGHT))
    unrolled = slope(InnerOptions(solver=LBFGS(rtol=0.0, atol=1e-8, max_steps=60), hypergradient=Unrolled()))
    one = slope(InnerOptions(solver=TIGHT, hypergradient=OneStep(step_size=1e-3)))
    torch.testing.assert_close(unrolled, exact, rtol=1e-3, atol=1e-4)
    assert float((one - exact).norm() / exact.norm()) > 0.5


def test_failed_rows_are_masked_and_counted():
    batch, rows, matches = rows_of(references(1))
    objective = EndToEnd(inner=InnerOptions(solver=LBFGS(rtol=0.0, atol=1e-8, max_steps=2)))
    model = network()
    losses = objective.losses(model, batch, rows, matches, batch.positions, torch.Generator().manual_seed(0), 0)
    assert (losses.status_code != 0).all()
    assert losses.rmsd.isnan().all()
    losses.total.mean().backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(bool(torch.isfinite(g).all()) for g in grads)
    assert bool(torch.isfinite(losses.total).all())


def test_spectral_start_rebuilds_complete_distances(generator):
    """Of a molecule whose pairs are all within three bonds, classical scaling is exact up to a mirror."""
    batch, rows, matches = rows_of(references(1, ("CC#N",)))
    distances = rows.distances(batch.positions)
    assert distances.shape[0] == 15
    prediction = DistancePrediction(distances, torch.full_like(distances, 0.05))
    found = SpectralStart(noise=0.0).positions(batch, rows, prediction, generator)
    torch.testing.assert_close(rows.distances(found), distances, rtol=1e-6, atol=1e-6)


def test_alignment_knows_equivalent_atoms():
    known = references(1, ("CC(C)(C)O",))
    batch, _, matches = rows_of(known)
    swapped = batch.positions.clone()
    swapped[:, [0, 2, 3]] = batch.positions[:, [2, 3, 0]]
    assert float(aligned_rmsd(swapped, batch.positions, matches)) < 0.05
    plain = match_table([known[0].mol], symmetric=False, like=batch.positions).rows(batch.molecule)
    assert float(aligned_rmsd(batch.positions, batch.positions, plain)) == 0.0


def test_mirror_images_count_where_they_are_told_to():
    known = references(1, ("C[C@H](N)C(=O)O",))
    batch, rows, matches = rows_of(known)
    model = network()
    near = batch.positions * batch.positions.new_tensor([1.0, 1.0, -1.0])

    def off(mirrors):
        objective = EndToEnd(start=GivenStart(), mirrors=mirrors, inner=InnerOptions(chiral=0.0))
        parts = objective.losses(model, batch, rows, matches, near, torch.Generator().manual_seed(0), 0)
        return float(parts.rmsd)

    assert off(True) < 0.7 * off(False)


def test_springs_and_contacts_agree_with_derivatives(generator):
    """Gradient and both Hessians of targets with contacts, from a start where some contacts are violated."""
    batch, rows, _ = rows_of(references(1, ("CCCCC", "CCO")))
    distances = rows.distances(batch.positions) * 1.05
    energy, params = distance_energy(rows, DistancePrediction(distances, torch.full_like(distances, 0.1)))
    x = 0.6 * batch.positions + noise(batch.positions.shape, generator, 0.1) * batch.mask.unsqueeze(-1)
    plain, _ = distance_energy(rows, DistancePrediction(distances, torch.full_like(distances, 0.1)), contact=0.0)
    assert bool((energy(x) > plain(x))[0])  # pentane has atoms more than three bonds apart
    slope = torch.autograd.functional.jacobian(lambda y: energy.value(y, params), x).sum(1)
    torch.testing.assert_close(energy.value_and_gradient(x, params)[1], slope)
    whole = torch.func.hessian(lambda y: energy.value(y, params).sum())(x)
    own = torch.stack([whole[k, :, :, k].flatten(2).flatten(0, 1) for k in range(len(batch))])
    torch.testing.assert_close(energy.curvature(x, params, exact=True), own, rtol=1e-9, atol=1e-7)
    model = torch.linalg.eigvalsh(energy.curvature(x, params, exact=False))
    assert float(model.min()) > -1e-9 * float(model.max())


def test_centres_settle_the_right_way_round():
    """From a start in the wrong hand; without volumes the mirror image stays."""
    known = references(1, ("C[C@H](N)C(=O)O", "C[C@@H]1CC[C@H](C)O1"))
    batch, rows, _ = rows_of(known)
    distances = rows.distances(batch.positions)
    prediction = DistancePrediction(distances, torch.full_like(distances, 0.05))
    wrong = batch.with_positions(-batch.positions)

    def right(options):
        settled = reconstruct(wrong, rows, prediction, options).positions
        made = [settled[k : k + 1, : item.mol.GetNumAtoms()] for k, item in enumerate(known)]
        return [bool(stereo_errors(item.mol, x).ok.all()) for item, x in zip(known, made, strict=True)]

    assert right(InnerOptions()) == [True, True]
    assert right(InnerOptions(chiral=0.0)) == [False, False]


def test_spectral_starts_take_the_hand_of_the_centres():
    known = references(1, ("C[C@H](N)C(=O)O", "C[C@@H](N)C(=O)O"))
    batch, rows, _ = rows_of(known)
    distances = rows.distances(batch.positions)
    prediction = DistancePrediction(distances, torch.full_like(distances, 0.05))
    assert handedness(rows, batch.positions).tolist() == [1.0, 1.0]
    for seed in range(4):
        found = SpectralStart(noise=0.0).positions(batch, rows, prediction, torch.Generator().manual_seed(seed))
        assert handedness(rows, found).tolist() == [1.0, 1.0]
