"""Local proxies: hypergradients, planted answers, and what a model with all weights 1 must be."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sciopt import hypergradcheck
from sciopt.domains.offline import CategoricalSpace, Table, nk_landscape
from sciopt.domains.offline.tuning import (
    FreeWeights,
    GlobalModel,
    LocalModel,
    RankError,
    SquaredError,
    WeightingFunction,
    effective_size,
    fit_local_proxy,
    proxy_data,
)
from sciopt.domains.offline.tuning.local_proxy import spread
from sciopt.domains.offline.tuning.surroundings import local_problem
from sciopt.hypergradients import ClosedForm, Implicit
from sciopt.inner import weighted_kernel_ridge
from sciopt.kernels import RBF, cross_matrix, gram
from sciopt.linsolve import LU

TASK = nk_landscape(length=7, neighbours=1, alphabet="ABC", seed=1)


def data(ridge: float = 1e-2):
    table = TASK.visible()
    few = Table(designs=table.designs[::9], scores=table.scores[::9])
    return proxy_data(TASK.space, few, kernel=RBF(length_scale=3.0), ridge=ridge)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("weighting", [FreeWeights(), WeightingFunction()], ids=lambda w: type(w).__name__)
@pytest.mark.parametrize("validation", [SquaredError(), RankError()], ids=lambda v: type(v).__name__)
def test_hypergradients_are_finite_differences(weighting, validation) -> None:
    made = data()
    options = LocalModel(rows=12, context=20, neighbours=4, weighting=weighting, validation=validation)
    stated, _ = local_problem(options, made, made.designs[:2], seeded())
    draw = seeded(1)
    outer = {
        name: value + 0.3 * torch.randn(value.shape, generator=draw, dtype=torch.float64)
        for name, value in stated.start().items()
    }
    init = torch.zeros_like(stated.kernel[..., 0])
    check = hypergradcheck(
        stated.problem(), outer, init=init, hypergradient=ClosedForm(stated.formula), rtol=1e-6, eps=1e-2
    )
    assert check.ok and sorted(outer) == ["labels", "penalty", "weights"]


def test_the_formula_solves_the_stated_problem() -> None:
    """The same hypergradient by the implicit function theorem, which knows the inner loss alone."""
    from sciopt import hypergradient

    made = data(ridge=0.3)
    options = LocalModel(rows=8, context=10, neighbours=3, validation=SquaredError())
    stated, _ = local_problem(options, made, made.designs[:2], seeded())
    start = stated.start()
    known = stated.formula(start).detach()
    closed = hypergradient(stated.problem(), start, init=known, hypergradient=ClosedForm(stated.formula))
    implicit = hypergradient(stated.problem(), start, init=known, hypergradient=Implicit(LU()))
    for name in start:
        torch.testing.assert_close(implicit.grad[name], closed.grad[name], rtol=1e-6, atol=1e-8)


def test_without_tuning_it_is_the_model_of_all_rows() -> None:
    made = data()
    whole = GlobalModel().fit(made, made.designs, seeded()).predict(TASK.space.everything())
    options = LocalModel(centres=3, rows=20, neighbours=0, weighting=None, num_steps=0)
    proxy = options.fit(made, made.designs, seeded())
    torch.testing.assert_close(proxy.predict(TASK.space.everything()), whole, rtol=1e-8, atol=1e-8)
    assert not bool(proxy.accepted.any()) and "turned down" in proxy.notes()[0]
    torch.testing.assert_close(proxy.effective_size, torch.full((3,), 20.0, dtype=torch.float64))


def test_predictions_are_those_of_one_weighted_fit() -> None:
    """Near and far rows and labelled neighbours in one system, built without a Schur complement."""
    made = data()
    options = LocalModel(rows=15, neighbours=5, shrinkage=0.0, checked=0.0, num_steps=4, step_size=0.3)
    proxy = fit_local_proxy(options, made, made.designs[:1], seeded(3))
    assert bool(proxy.accepted.all()) and float((proxy.weights - 1).abs().max()) > 0.05
    stated, near = local_problem(options, made, made.designs[:1], seeded(3))
    penalty = stated.penalty(stated.tune(4, 0.3).outer_params)[0]
    designs = torch.cat([made.designs[near.rows[0]], near.neighbours[0], made.designs[near.far[0]]])
    points = made.relaxation.points(designs)
    labels = (proxy.labels[0] - made.centre) / made.scale
    targets = torch.cat([made.targets[near.rows[0]], labels, made.targets[near.far[0]]])
    shares = [proxy.weights[0], torch.full_like(labels, options.trust), (penalty / made.ridge).expand(len(near.far[0]))]
    dual = weighted_kernel_ridge(gram(made.kernel, points), targets, torch.cat(shares), penalty)
    every = made.relaxation.points(TASK.space.everything())
    expected = cross_matrix(made.kernel, every, points) @ dual * made.scale + made.centre
    torch.testing.assert_close(proxy.predict(TASK.space.everything()), expected, rtol=1e-7, atol=1e-7)


def test_corrupted_rows_lose_their_weight() -> None:
    space = CategoricalSpace(length=6, alphabet="ABC")
    draw = seeded(5)
    effect = torch.randn(6, 3, generator=draw, dtype=torch.float64)
    designs = space.everything()[torch.randperm(space.size, generator=draw)[:150]]
    scores = (space.one_hot(designs) * effect).sum((1, 2))
    bad = torch.arange(150) % 10 == 0
    scores[bad] += 6.0 * torch.where(torch.arange(150) % 20 == 0, 1.0, -1.0)[bad]
    made = proxy_data(space, Table(designs=designs, scores=scores), kernel=RBF(length_scale=6.0), ridge=0.05)
    corrupted = torch.isin(space.number(made.designs), space.number(designs[bad]))
    options = LocalModel(
        rows=150,
        neighbours=0,
        weighting=FreeWeights(),
        validation=SquaredError(),
        shrinkage=0.3,
        checked=0.0,
        num_steps=30,
    )
    proxy = fit_local_proxy(options, made, made.designs[:2], seeded())
    for row in range(2):
        weights, planted = proxy.weights[row], corrupted[proxy.rows[row]]
        assert float(weights[planted].median()) < 0.7 < 1.0 < float(weights[~planted].median())
        assert float((weights[planted] < 1).double().mean()) > 0.8
    every = space.everything()
    truth = (space.one_hot(every) * effect).sum((1, 2))
    found = (proxy.predict(every) - truth).square().mean()
    before = (GlobalModel().fit(made, designs, seeded()).predict(every) - truth).square().mean()
    assert float(found) < 0.9 * float(before)


def test_local_weights_help_near_the_centre() -> None:
    """Two halves of a space with opposite effects, and a kernel that spans both: near rows are to be believed."""
    space = CategoricalSpace(length=9, alphabet="AB")
    every = space.everything()
    effect = torch.randn(9, generator=seeded(2), dtype=torch.float64)
    side = torch.where(every[:, :4].sum(-1) >= 2, 1.0, -1.0)
    truth = side * ((2.0 * every.double() - 1) @ effect)
    chosen = torch.randperm(space.size, generator=seeded(3))[:160]
    table = Table(designs=every[chosen], scores=truth[chosen])
    made = proxy_data(space, table, kernel=RBF(length_scale=12.0), ridge=0.3)
    centre = torch.ones(1, 9, dtype=torch.int64)
    options = LocalModel(
        rows=160, neighbours=0, validation=SquaredError(), shrinkage=1e-3, checked=0.0, num_steps=60, step_size=0.2
    )
    proxy = fit_local_proxy(options, made, centre, seeded())
    assert bool(proxy.accepted.all()) and float(proxy.after) < 0.8 * float(proxy.before)
    near = (every != centre).sum(-1) <= 2
    error = (proxy.predict(every[near]) - truth[near]).square().mean()
    whole = (GlobalModel().fit(made, centre, seeded()).predict(every[near]) - truth[near]).square().mean()
    assert float(error) < 0.8 * float(whole)
    away = (proxy.data.designs[proxy.rows[0]] != centre).sum(-1)
    assert float(proxy.weights[0][away <= 3].mean()) > 2 * float(proxy.weights[0][away >= 6].mean())


def test_tuning_that_unseen_rows_refute_is_turned_down() -> None:
    space = CategoricalSpace(length=6, alphabet="AB")
    noise = Table(designs=space.everything(), scores=torch.randn(64, generator=seeded(1), dtype=torch.float64))
    made = proxy_data(space, noise, kernel=RBF(length_scale=2.0), ridge=1e-3)
    options = LocalModel(weighting=FreeWeights(), validation=SquaredError(), shrinkage=0.0, checked=0.5, num_steps=30)
    proxy = fit_local_proxy(options, made, spread(made.designs, 6), seeded())
    assert bool((proxy.after <= proxy.before)[proxy.accepted].all()) and bool(
        (proxy.after > proxy.before)[~proxy.accepted].all()
    )
    assert bool((proxy.weights[~proxy.accepted] == 1).all()) and not bool(proxy.accepted.all())


def test_centres_are_good_and_apart() -> None:
    designs = TASK.space.everything()
    chosen = spread(designs, 4)
    assert torch.equal(chosen[0], designs[0]) and len(torch.unique(chosen, dim=0)) == 4
    assert bool((TASK.space.number(chosen) < 32).all())
    assert len(spread(designs[:2], 5)) == 2


def test_ranks_are_judged_without_scale() -> None:
    draw = seeded(4)
    predicted, targets = (torch.randn(2, 9, generator=draw, dtype=torch.float64) for _ in range(2))
    share = torch.rand(2, 9, generator=draw, dtype=torch.float64)
    share = share / share.sum(-1, keepdim=True)
    found = RankError().loss(predicted, targets, share)
    torch.testing.assert_close(RankError().loss(5 * predicted - 2, targets, share), found)
    torch.testing.assert_close(RankError().loss(predicted, targets.exp(), share), found)
    hard = RankError(softness=1e-6).loss(predicted, targets, share)
    assert float(hard.min()) > 1e3  # wrong pairs count without bound as the softness vanishes
    assert float(RankError(softness=1e-6).loss(targets, targets, share).max()) < 1e-12


def test_effective_size_between_one_and_all() -> None:
    assert float(effective_size(torch.tensor([1.0, 1.0, 0.0, 0.0]))) == 2.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": 3}, "expected `rows` >= 4"),
        ({"checked": 1.0}, "expected `checked` in"),
        ({"trust": 0.0}, "expected `trust` > 0"),
    ],
)
def test_refusals(change, message) -> None:
    with pytest.raises(ValueError, match=message):
        replace(LocalModel(), **change)
