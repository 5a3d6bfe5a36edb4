"""The fitted model: closed forms against refits, hypergradients against differences, intervals against fresh data."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sciopt import hypergradcheck
from sciopt.domains.offline import ReverseComplement
from sciopt.domains.offline.proposal import CategoryColumn, DesignSpace, NumberColumn, SequenceColumn
from sciopt.domains.offline.proposal.calibrated import calibrate, choose_model
from sciopt.domains.offline.proposal.evidence import RIDGE, RIDGE_SPREAD, Evidence, held_out
from sciopt.domains.offline.proposal.families import Gaussian, StrandKernel, WideNetwork
from sciopt.domains.offline.proposal.model import Observations, fit_model
from sciopt.domains.offline.proposal.score_transforms import Logarithm, PlainScores, YeoJohnson, fit_yeo_johnson
from sciopt.domains.offline.proposal.strands import Strands
from sciopt.hypergradients import ClosedForm
from sciopt.inner import leave_one_out
from sciopt.kernels import RBF, gram
from tests.helpers import randn

SQUARE = DesignSpace((NumberColumn(name="a", low=0, high=1), NumberColumn(name="b", low=0, high=1)))
DNA = DesignSpace((SequenceColumn(name="s", length=4, alphabet="ACGT"),))


def observed(codes: Tensor, scores: Tensor, spread: float | None = None) -> Observations:
    return Observations(
        codes=codes, scores=scores, mass=torch.ones_like(scores), rows=torch.arange(len(scores)), spread=spread
    )


def evidence(kernel, generator: torch.Generator, rows: int = 14) -> Evidence:
    space = DesignSpace((NumberColumn(name="a", low=0, high=1), CategoryColumn(name="c", levels=(0, 1, 2))))
    codes = space.random(rows, generator)
    family = kernel()
    features = space.features(codes)
    targets = randn(rows, generator=generator) + 2 * codes[:, 0]
    return Evidence(
        kernel=family.kernel,
        points=lambda weights: family.points(space, features, weights[space.feature_owner], features.mean(0)),
        targets=(targets - targets.mean()) / targets.std(correction=0),
        mass=torch.arange(1.0, rows + 1, dtype=torch.float64) % 3 + 1,
        typical=family.typical_weights(space),
    )


def loss(task: Evidence, phi: dict[str, Tensor]) -> Tensor:
    outer = task.problem().outer_loss
    assert outer is not None
    return outer(task.formula(phi), phi)


def start(task: Evidence) -> dict[str, Tensor]:
    return {"weights": task.typical.log() + 0.3, "ridge": torch.tensor(-2.0, dtype=torch.float64)}


@pytest.mark.parametrize("family", [Gaussian, WideNetwork])
def test_evidence_is_the_density_of_a_normal_with_its_variance_profiled_out(family, generator: torch.Generator) -> None:
    task = evidence(family, generator)
    phi = start(task)
    matrix, count = task.matrix(phi), len(task.targets)
    variance = task.targets @ torch.linalg.inv(matrix) @ task.targets / count
    normal = torch.distributions.MultivariateNormal(torch.zeros_like(task.targets), variance * matrix)
    prior = 0.5 * (0.3**2 * 2 + ((-2 - math.log(RIDGE)) / RIDGE_SPREAD) ** 2)
    constant = 0.5 * count * (1 + math.log(2 * math.pi))
    value = loss(task, phi)
    torch.testing.assert_close(value, -normal.log_prob(task.targets) + prior - constant, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("family", [Gaussian, WideNetwork])
def test_hypergradients_of_weights_and_noise_agree_with_differences(family, generator: torch.Generator) -> None:
    task = evidence(family, generator)
    check = hypergradcheck(
        task.problem(), start(task), init=torch.zeros_like(task.targets), hypergradient=ClosedForm(task.formula)
    )
    assert check.max_error < 1e-6


def test_maximising_the_evidence_finds_what_matters(generator: torch.Generator) -> None:
    codes = SQUARE.random(60, generator)
    targets = torch.sin(9 * codes[:, 0]) + 0.05 * randn(60, generator=generator)
    targets = (targets - targets.mean()) / targets.std(correction=0)
    family = Gaussian()
    task = Evidence(
        kernel=family.kernel, points=lambda weights: codes * weights, targets=targets, mass=torch.ones_like(targets),
        typical=family.typical_weights(SQUARE),
    )  # fmt: skip
    learned = task.maximise()
    assert float(learned.weights[0] / learned.weights[1]) > 8 and 1e-4 < learned.ridge < 2e-2
    at = {"weights": learned.weights.log(), "ridge": torch.tensor(learned.ridge, dtype=torch.float64).log()}
    best = loss(task, at)
    for shift in (0.3, -0.3):
        moved = {"weights": at["weights"] + torch.tensor([shift, 0.0]), "ridge": at["ridge"]}
        assert float(loss(task, moved)) > float(best)


def test_held_out_predictions_are_those_of_refits(generator: torch.Generator) -> None:
    x, y = randn(9, 2, generator=generator), randn(9, generator=generator)
    matrix = gram(RBF(), x) + 0.1 * torch.eye(9, dtype=torch.float64)
    mean, variance = held_out(torch.linalg.cholesky(matrix), y)
    torch.testing.assert_close(mean, leave_one_out(gram(RBF(), x), y, 0.1))
    for k in range(9):
        rest = [i for i in range(9) if i != k]
        solved = torch.linalg.inv(matrix[rest][:, rest]) @ torch.stack([y[rest], matrix[rest, k]], 1)
        torch.testing.assert_close(mean[k], matrix[k, rest] @ solved[:, 0])
        torch.testing.assert_close(variance[k], matrix[k, k] - matrix[k, rest] @ solved[:, 1])


def test_calibration_leaves_each_row_out(generator: torch.Generator) -> None:
    codes = SQUARE.random(12, generator)
    scores = 5 + 3 * torch.sin(4 * codes[:, 0]) + codes[:, 1]
    family = Gaussian()
    data, weights = observed(codes, scores), torch.tensor([2.0, 1.0], dtype=torch.float64)
    model, calibration, _ = calibrate(fit_model(SQUARE, data, family, weights, 1e-3, PlainScores()), data, generator)
    assert calibration.method == "leave-one-out" and calibration.rows.tolist() == list(range(12))
    matrix = gram(RBF(), SQUARE.features(codes) * weights) + 1e-3 * torch.eye(12, dtype=torch.float64)
    centred = scores - scores.mean()  # the level of the scores is that of all rows
    for k in range(12):
        rest = [i for i in range(12) if i != k]
        expected = scores.mean() + matrix[k, rest] @ torch.linalg.inv(matrix[rest][:, rest]) @ centred[rest]
        torch.testing.assert_close(calibration.predicted[k], expected, rtol=1e-8, atol=1e-8)
    inside = ((calibration.predicted - scores).abs() <= 1.2815515655446004 * calibration.deviation).double().mean()
    assert calibration.coverage[0.8] == float(inside)
    torch.testing.assert_close(
        torch.tensor(calibration.rmse, dtype=torch.float64), (calibration.predicted - scores).square().mean().sqrt()
    )


def test_intervals_hold_what_they_promise_on_fresh_draws_of_a_process() -> None:
    normal, shares = torch.distributions.Normal(0.0, 1.0), []
    for seed in range(8):
        generator = torch.Generator().manual_seed(seed)
        codes = SQUARE.random(120, generator)
        matrix = gram(RBF(length_scale=0.4), codes) + 1e-9 * torch.eye(120, dtype=torch.float64)
        drawn = torch.linalg.cholesky(matrix) @ randn(120, generator=generator)
        scores = 3 + 2 * (drawn + 0.1 * randn(120, generator=generator))
        data = observed(codes[:40], scores[:40])
        model, calibration, _ = choose_model(
            SQUARE, data, strands=None, maximize=True, generator=generator, families=(Gaussian(),), dense_rows=100
        )
        mean, deviation = model.predict(codes[40:])
        errors = ((scores[40:] - mean) / deviation).abs()
        limits = [float(normal.icdf(torch.tensor(0.5 + p / 2))) for p in calibration.coverage]
        shares.append([float((errors < limit).double().mean()) for limit in limits])
    # 640 new measurements, those of one draw correlated: as many as 80 independent ones
    for share, nominal in zip(torch.tensor(shares).mean(0).tolist(), (0.5, 0.8, 0.95), strict=True):
        assert abs(share - nominal) < 2.5 * (nominal * (1 - nominal) / 80) ** 0.5


def test_scores_that_are_ratios_are_modelled_by_their_logarithm(generator: torch.Generator) -> None:
    codes = SQUARE.random(60, generator)
    scores = (4 * torch.sin(5 * codes[:, 0]) + 0.3 * randn(60, generator=generator)).exp()
    model, calibration, lines = choose_model(
        SQUARE, observed(codes, scores), strands=None, maximize=True, generator=generator, dense_rows=100
    )
    assert isinstance(model.transform, Logarithm) and "logarithm" in lines[0]
    assert calibration.rank_correlation > 0.9
    mean, deviation = model.predict(codes)
    assert float(mean.min()) > 0 and bool(torch.isfinite(deviation).all())


@pytest.mark.parametrize("transform", [PlainScores(), Logarithm(), YeoJohnson(power=0.4, centre=1.0, scale=2.0)])
def test_transforms_go_back_and_know_their_slope(transform) -> None:
    scores = torch.linspace(0.2, 9.0, 40, dtype=torch.float64, requires_grad=True)
    latent = transform.forward(scores)
    torch.testing.assert_close(transform.inverse(latent), scores)
    slope = torch.autograd.grad(latent.sum(), scores)[0]
    torch.testing.assert_close(transform.log_slope(scores), slope.log())


def test_powers_undo_skew(generator: torch.Generator) -> None:
    straight = randn(500, generator=generator)
    assert abs(fit_yeo_johnson(straight).power - 1) < 0.15
    assert fit_yeo_johnson(straight.exp()).power < 0.6 and fit_yeo_johnson(-straight.exp()).power > 1.4


def test_repeats_bound_the_noise_from_below(generator: torch.Generator) -> None:
    codes = SQUARE.random(20, generator)
    scores = codes.sum(-1)
    weights = Gaussian().typical_weights(SQUARE)
    model = fit_model(SQUARE, observed(codes, scores, spread=0.04), Gaussian(), weights, 1e-5, PlainScores())
    noise = model.noise * model.scale**2
    assert noise >= 0.99 * 0.04
    free = fit_model(SQUARE, observed(codes, scores), Gaussian(), weights, 1e-5, PlainScores())
    assert free.noise * free.scale**2 < 1e-3


@pytest.mark.parametrize("family", [Gaussian(), WideNetwork(hidden_layers=2)])
def test_both_strands_score_alike(family, generator: torch.Generator) -> None:
    strands = Strands(space=DNA, symmetry=ReverseComplement())
    codes = torch.unique(strands.canonical(DNA.random(60, generator)), dim=0)
    image = strands.image(codes)
    assert torch.equal(strands.image(image), codes)
    assert torch.equal(strands.canonical(image), codes)
    scores = codes.sum(-1) + image.sum(-1) + randn(len(codes), generator=generator)
    weights = family.typical_weights(DNA)
    model = fit_model(DNA, observed(codes, scores), family, weights, 1e-2, PlainScores(), strands=strands)
    for one, two in zip(model.predict(codes), model.predict(image), strict=True):
        torch.testing.assert_close(one, two)
    points = model.points(torch.cat([codes, image]))
    matrix = gram(model.fit.kernel, points)
    torch.testing.assert_close(matrix, matrix.mT)
    assert isinstance(model.fit.kernel, StrandKernel)
    torch.testing.assert_close(model.fit.kernel.diagonal(points), matrix.diagonal(), rtol=1e-6, atol=1e-9)
    assert float(torch.linalg.eigvalsh(matrix).min()) > -1e-7  # a function of the pair: half of the rank


def test_the_route_for_many_rows_agrees_with_the_dense_one(generator: torch.Generator) -> None:
    codes = SQUARE.random(400, generator)
    scores = torch.sin(4 * codes[:, 0]) * codes[:, 1] + 0.05 * randn(400, generator=generator)
    data, weights = observed(codes, scores), torch.tensor([3.0, 2.0], dtype=torch.float64)
    dense = fit_model(SQUARE, data, Gaussian(), weights, 1e-2, PlainScores())
    many = fit_model(SQUARE, data, Gaussian(), weights, 1e-2, PlainScores(), dense_rows=100)
    assert dense.is_dense and not many.is_dense and many.fit.points.dtype == torch.float32
    new = SQUARE.random(50, generator)
    torch.testing.assert_close(many.latent_mean(new), dense.latent_mean(new), rtol=0, atol=2e-2)
    (_, exact), (_, local) = dense.posterior(new), many.posterior(new)
    torch.testing.assert_close(local.diagonal(), exact.diagonal(), rtol=0.1, atol=1e-3)
    torch.testing.assert_close(many.predict(new)[1], dense.predict(new)[1], rtol=0.05, atol=0)
    made, calibration, _ = calibrate(many, data, generator)
    assert calibration.method.endswith("rows held out") and len(calibration.observed) < 400
    assert abs(calibration.rmse - 0.05) < 0.02 and 0.7 < made.stretch < 1.4


def test_positions_of_sequences_have_weights_of_their_own(generator: torch.Generator) -> None:
    space = DesignSpace((SequenceColumn(name="s", length=4, alphabet="ACGT"), NumberColumn(name="x", low=0, high=1)))
    assert space.groups == [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0)]
    assert torch.bincount(space.feature_group).tolist() == [4, 4, 4, 4, 1]
    long = DesignSpace(
        (SequenceColumn(name="s", length=30, alphabet="AC"), CategoryColumn(name="c", levels=("u", "v")))
    )
    assert long.groups == [(0, 0), (1, 0)] and torch.bincount(long.feature_group).tolist() == [60, 2]
    codes = space.random(80, generator)
    scores = (codes[:, 2] == 1) * 2.0 + (codes[:, 2] == 3) * (codes[:, 1] == 0) + 0.1 * randn(80, generator=generator)
    model, calibration, lines = choose_model(
        space,
        observed(codes, scores),
        strands=None,
        maximize=True,
        generator=generator,
        families=(Gaussian(),),
        dense_rows=99,
    )
    position = model.weights[:4]
    assert int(position.argmax()) == 2 and float(position[2]) > 2 * float(position[3])
    assert "(by position)" in lines[1] and calibration.rmse < 0.2  # the noise is 0.1
