"""Training: the loss falls, checkpoints return the same bits, and an interrupted run ends where it would have."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from rdkit import Chem

from sciopt.constraints import kabsch
from sciopt.domains.conformation import ReferenceEnsemble, evaluate, stereo_errors
from sciopt.domains.conformation.learning import (
    EndToEnd,
    EndToEndRecall,
    FromStart,
    ModelConfig,
    SampleOptions,
    SpectralStart,
    TrainConfig,
    TwoStage,
    load_model,
    match_table,
    molecule_graph,
    reconstruct,
    sample,
    sample_many,
    save_model,
    train,
)
from sciopt.domains.conformation.learning.objectives import variational
from sciopt.domains.conformation.learning.training import Prepared, nearest_guesses, parts_of
from sciopt.domains.conformation.metrics import EtkdgBaseline, score_ensemble
from sciopt.outer.checkpoint import CheckpointError
from tests.domains.conformation.learning.molecules import references
from tests.domains.conformation.learning.test_graphs import network

SMALL = ModelConfig(hidden=16, latent=2, layers=2)
CONFIG = TrainConfig(
    objective=EndToEnd(warmup=2),
    model=SMALL,
    epochs=4,
    batch_size=4,
    learning_rate=5e-3,
    shares=(0.75, 0.25, 0.0),
    seed=4,
)


@pytest.fixture(scope="module")
def known():
    return references(2)


@pytest.fixture(scope="module")
def result(known, tmp_path_factory):
    return train(known, CONFIG, folder=tmp_path_factory.mktemp("run"))


def test_the_loss_falls_and_the_record_is_whole(result):
    curves = result.curves()
    assert len(result.history) == 4
    assert curves["likelihood"][-1] < curves["likelihood"][0] - 0.3
    assert math.isnan(curves["rmsd"][0])  # warming up
    assert curves["rmsd"][-1] < 1.0
    assert curves["failed"] == [0.0] * 4
    assert curves["skipped"] == [0.0] * 4
    assert all(math.isfinite(value) for value in curves["validation"])
    assert not set(result.split.train) & set(result.split.validation)


def test_an_interrupted_run_ends_where_it_would_have(known, result, tmp_path):
    train(known, replace(CONFIG, epochs=2), folder=tmp_path)
    resumed = train(known, CONFIG, folder=tmp_path)
    for name, tensor in result.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name
    assert all(torch.equal(result.best[name], resumed.best[name]) for name in result.best)
    same = [
        (a.loss, a.validation) == (b.loss, b.validation) for a, b in zip(result.history, resumed.history, strict=True)
    ]
    assert all(same)


def test_models_on_disk_are_the_same_bits(result, tmp_path):
    path = tmp_path / "deep" / "model.safetensors"
    save_model(result.model, path)
    back = load_model(path)
    assert back.config == result.model.config
    assert all(torch.equal(tensor, back.state_dict()[name]) for name, tensor in result.model.state_dict().items())
    data = bytearray(path.read_bytes())
    data[-9] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(CheckpointError, match="^load_model: expected a whole checkpoint"):
        load_model(path)


def test_a_checkpoint_of_another_run_is_refused(known, tmp_path):
    quick = replace(CONFIG, objective=TwoStage(), epochs=1)
    train(known, quick, folder=tmp_path)
    with pytest.raises(CheckpointError, match="^train: .*`config`"):
        train(known, replace(quick, learning_rate=1e-2), folder=tmp_path)
    with pytest.raises(CheckpointError, match="`dataset`"):
        train(known[:-1], quick, folder=tmp_path)
    assert load_model(tmp_path / "best.safetensors").config == SMALL


def test_bad_data_is_refused_before_work(known):
    with pytest.raises(ValueError, match="at least one molecule"):
        train([])
    empty = ReferenceEnsemble(name="none", mol=known[0].mol, positions=known[0].positions[:0])
    with pytest.raises(ValueError, match=r"number 1 \(none\)"):
        train([known[0], empty])
    broken = ReferenceEnsemble(name="nan", mol=known[0].mol, positions=known[0].positions * float("nan"))
    with pytest.raises(ValueError, match="finite"):
        train([broken])
    with pytest.raises(ValueError, match="`epochs`"):
        TrainConfig(epochs=0)


def test_samples_have_the_stereochemistry_asked_for(result):
    mol = Chem.AddHs(Chem.MolFromSmiles("C[C@H](N)C(=O)O"))
    for options in (
        SampleOptions(seed=1),
        SampleOptions(seed=1, latent=FromStart()),
        SampleOptions(seed=1, start=SpectralStart()),
        SampleOptions(seed=1, polish=True),
    ):
        made = sample(result.model, mol, 2, options)
        assert made.positions.shape == (2, 13, 3), made.failure
        assert made.mol.GetNumConformers() == 2
        assert bool(stereo_errors(mol, made.positions).ok.all())
        assert bool(torch.isfinite(made.energy).all())
    again = sample(result.model, mol, 2, options)
    assert torch.equal(made.positions, again.positions)


def test_the_network_is_scored_beside_the_baseline(result, known):
    def generate(mol, count):
        return sample(result.best_model(), mol, count).generated()

    scores = evaluate(generate, known[:1], per_reference=1, baseline=EtkdgBaseline(oversample=2), name="network")
    assert "network" in scores.table()
    assert scores.scores[0].matching_recall < 1.0


def test_what_cannot_be_sampled_is_said():
    model = network()
    with pytest.raises(ValueError, match="two atoms"):
        sample(model, Chem.MolFromSmiles("[Ar]"), 1)
    with pytest.raises(ValueError, match="`count`"):
        sample(model, Chem.AddHs(Chem.MolFromSmiles("CO")), 0)
    with pytest.raises(ValueError, match="implicit"):
        sample(model, Chem.MolFromSmiles("CO"), 1)


def test_single_precision_trains_and_counts_failures(known):
    config = replace(CONFIG, objective=EndToEnd(), epochs=1, dtype=torch.float32)
    result = train(known, config)
    assert next(result.model.parameters()).dtype == torch.float32
    assert result.history[0].failed + result.history[0].saddles < 0.5
    assert math.isfinite(result.history[0].rmsd)


def test_corrections_are_learned_from_the_nearest_guess(known):
    guesses = nearest_guesses(known[2], 8, seed=1)
    other = nearest_guesses(known[2], 1, seed=1)
    fit = [float(kabsch(x, known[2].positions).rmsd.mean()) for x in (guesses, other)]
    assert 0.0 < fit[0] < fit[1]
    assert bool(stereo_errors(known[2].mol, guesses).ok.all())
    assert torch.equal(nearest_guesses(known[2], 0, seed=1), known[2].positions)
    config = replace(CONFIG, objective=EndToEnd(), epochs=2, guesses=3)
    curves = train(known, config).curves()
    assert curves["loss"][1] < curves["loss"][0]
    assert curves["failed"] == [0.0, 0.0]


def test_recall_is_trained_through_the_inner_problem(known):
    """The objective's value is MAT-R of its own draws, and its gradient reaches the prior."""
    config = TrainConfig(objective=EndToEndRecall(), model=SMALL, conformers=2, repeats=2, batch_size=8, seed=4)
    like = next(network().parameters()).detach()
    prepared = Prepared(
        known,
        [molecule_graph(item.mol) for item in known],
        match_table([item.mol for item in known], like=like),
        [item.positions for item in known],
        like,
    )
    rows = [(molecule, conformer) for molecule in (2, 5) for conformer in range(2)]
    (part,) = parts_of(rows, config)
    assert part == [row for row in rows for _ in range(2)]
    batch, graphs, matches, guess = prepared.rows(part)
    model = network()

    def losses(**options):
        return EndToEndRecall(alignment_weight=1.0, distance_weight=0.0, divergence_weight=0.0, **options).losses(
            model, batch, graphs, matches, guess, torch.Generator().manual_seed(3), 0
        )

    recall, precision = losses(precision=0.0), losses(precision=1.0)
    assert (recall.status_code == 0).all()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        variational(model, graphs, graphs.distances(batch.positions), graphs.distances(guess), 0.0, generator)
        prediction = model.decode(graphs, model.prior(graphs).sample(generator))
        start = batch.with_positions(SpectralStart().positions(batch, graphs, prediction, generator))
        drawn = reconstruct(start, graphs, prediction).positions
    for molecule, item in enumerate((known[2], known[5])):
        own = batch.molecule == molecule
        made = drawn[own][:, : item.mol.GetNumAtoms()]
        both = score_ensemble(item.mol, torch.cat([made, -made]), item.positions[:2])
        assert float(recall.total[own].mean().detach()) == pytest.approx(both.matching_recall, abs=1e-3)
        nearest = [score_ensemble(item.mol, torch.stack([x, -x]), item.positions[:2]).best for x in made]
        assert precision.total[own].tolist() == pytest.approx(nearest, abs=1e-3)
    recall.total.mean().backward()
    slopes = [p.grad for p in model.prior_head.parameters() if p.grad is not None]
    assert sum(float(slope.square().sum()) for slope in slopes) > 0.0
    assert all(p.grad is None or bool(torch.isfinite(p.grad).all()) for p in model.parameters())


def test_many_molecules_are_sampled_at_once(result):
    mols = [Chem.AddHs(Chem.MolFromSmiles(smiles)) for smiles in ("CCO", "C[C@H](N)C(=O)O", "CCCC")]
    made = sample_many(result.model, mols, [3, 2, 1], SampleOptions(start=SpectralStart(), batch_size=4))
    assert [item.positions.shape for item in made] == [(3, 9, 3), (2, 13, 3), (1, 14, 3)]
    assert all(bool(stereo_errors(mol, item.positions).ok.all()) for mol, item in zip(mols, made, strict=True))
    again = sample_many(result.model, mols, [3, 2, 1], SampleOptions(start=SpectralStart(), batch_size=4))
    assert all(torch.equal(a.positions, b.positions) for a, b in zip(made, again, strict=True))
    with pytest.raises(ValueError, match="one of `counts`"):
        sample_many(result.model, mols, [1])


def test_training_goes_on_from_given_weights(known, tmp_path):
    quick = replace(CONFIG, objective=TwoStage(), epochs=1, learning_rate=1e-12)
    base = train(known, replace(quick, epochs=4, learning_rate=5e-3))
    more = train(known, quick, initial=base.model, folder=tmp_path)
    assert more.history[0].likelihood < base.history[1].likelihood  # not from the beginning
    for name, tensor in base.model.state_dict().items():
        torch.testing.assert_close(more.model.state_dict()[name], tensor, rtol=0, atol=1e-9)
    with pytest.raises(CheckpointError, match="`initial`"):
        train(known, quick, folder=tmp_path)
    with pytest.raises(ValueError, match="`initial` of the configured sizes"):
        train(known, replace(quick, model=ModelConfig(hidden=8)), initial=base.model)
