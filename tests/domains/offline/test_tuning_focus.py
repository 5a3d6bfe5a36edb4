"""Importance weights and smoothness: known answers, references solved densely, hypergradients."""

from __future__ import annotations

import pytest
import torch

from sciopt import hypergradcheck
from sciopt.domains.offline import CategoricalSpace, Table, nk_landscape
from sciopt.domains.offline.tuning import (
    Autofocus,
    GlobalModel,
    MixedChanges,
    NeighbourChanges,
    SmoothModel,
    effective_size,
    flattened,
    proxy_data,
)
from sciopt.domains.offline.tuning.focus import letter_log_densities
from sciopt.hypergradients import ClosedForm
from sciopt.kernels import RBF, cross_matrix, gram

TASK = nk_landscape(length=6, neighbours=1, alphabet="ABC", seed=3)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def data(ridge: float = 0.1):
    table = TASK.visible()
    few = Table(designs=table.designs[::8], scores=table.scores[::8])
    return proxy_data(TASK.space, few, kernel=RBF(length_scale=3.0), ridge=ridge)


def test_the_guard_meets_its_size_exactly() -> None:
    """k rows at ratio r, the others at 1: size = (k u + m)^2 / (k u^2 + m) with u = r^exponent, a quadratic in u."""
    k, m, ratio, fraction = 3, 17, 50.0, 0.4
    logs = torch.zeros(k + m, dtype=torch.float64)
    logs[:k] = torch.tensor(ratio, dtype=torch.float64).log()
    size = fraction * (k + m)
    a, b, c = k * (k - size), 2 * k * m, m * (m - size)
    u = (-b - (b * b - 4 * a * c) ** 0.5) / (2 * a)
    made = flattened(logs, fraction)
    assert u > 1 and bool(made.acted)
    torch.testing.assert_close(made.exponent, torch.tensor(u, dtype=torch.float64).log() / logs[0], rtol=1e-12, atol=0)
    torch.testing.assert_close(made.size, torch.tensor(size, dtype=torch.float64), rtol=1e-12, atol=0)
    torch.testing.assert_close(made.weights.mean(), torch.tensor(1.0).double())
    torch.testing.assert_close(
        made.weights[0] / made.weights[-1], torch.tensor(u, dtype=torch.float64), rtol=1e-12, atol=0
    )


def test_the_guard_rests_where_it_is_not_needed() -> None:
    logs = torch.tensor([[0.1, 0.0, -0.1], [9.0, 0.0, 0.0]], dtype=torch.float64)
    made = flattened(logs, 0.6)
    assert made.acted.tolist() == [False, True] and float(made.exponent[0]) == 1.0
    torch.testing.assert_close(made.weights[0], logs[0].exp() / logs[0].exp().mean())
    free = flattened(logs, 0.0)
    assert not bool(free.acted.any())
    torch.testing.assert_close(free.size, effective_size(logs.exp()))
    huge = flattened(torch.tensor([5000.0, 0.0, -5000.0], dtype=torch.float64), 0.5)
    torch.testing.assert_close(huge.size, torch.tensor(1.5).double())


def test_guard_refusals() -> None:
    with pytest.raises(ValueError, match=r"expected `fraction` in \[0, 1\)"):
        flattened(torch.zeros(3), 1.0)
    with pytest.raises(ValueError, match="log_ratios"):
        flattened(torch.tensor([0.0, float("nan")]), 0.5)


def test_letter_densities_are_distributions() -> None:
    space = CategoricalSpace(length=3, alphabet="ABC")
    sample = space.random(7, seeded(1))
    logs = letter_log_densities(space, sample, space.everything(), 2.0)
    torch.testing.assert_close(logs.exp().sum(), torch.tensor(1.0).double())
    one = torch.tensor([[0, 1, 2]])
    shares = [(float((sample[:, k] == one[0, k]).sum()) + 2 / 3) / 9 for k in range(3)]
    expected = torch.tensor(shares).double().log().sum()
    torch.testing.assert_close(letter_log_densities(space, sample, one, 2.0)[0], expected)


def test_autofocus_is_the_weighted_fit() -> None:
    made = data()
    current = made.designs[:5]
    model = Autofocus(fraction=0.5, pseudocount=2.0, num_steps=0)
    predictor = model.fit(made, current, seeded())
    source = letter_log_densities(TASK.space, made.table.designs, made.designs, 2.0)
    ratio = letter_log_densities(TASK.space, current, made.designs, 2.0) - source
    weights = flattened(ratio, 0.5).weights
    kernel = gram(made.kernel, made.points)
    dual = torch.linalg.solve(kernel + torch.diag(made.ridge / weights), made.targets)
    every = TASK.space.everything()
    expected = cross_matrix(made.kernel, made.relaxation.points(every), made.points) @ dual * made.scale + made.centre
    torch.testing.assert_close(predictor.predict(every), expected, rtol=1e-9, atol=1e-9)
    assert "effective sample size of" in predictor.notes()[0]
    assert Autofocus(fraction=0.0).fit(made, current, seeded()).notes() == ()


def test_autofocus_believes_the_rows_where_the_search_is() -> None:
    """Contradictory effects on two halves and a kernel that must average them: the error falls on the searched half."""
    space = CategoricalSpace(length=7, alphabet="AB")
    every = space.everything()
    effect = torch.tensor([0.0, 2.0, -1.0, 1.0, 0.5, -0.5, 1.0], dtype=torch.float64)
    truth = torch.where(every[:, 0] == 1, 1.0, -1.0) * ((2.0 * every.double() - 1) @ effect)
    chosen = torch.randperm(128, generator=seeded(1))[:90]
    made = proxy_data(
        space, Table(designs=every[chosen], scores=truth[chosen]), kernel=RBF(length_scale=20.0), ridge=0.5
    )
    half = every[:, 0] == 1
    current = every[half]
    found = Autofocus(fraction=0.4, pseudocount=1.0).fit(made, current, seeded()).predict(every)
    whole = GlobalModel().fit(made, current, seeded()).predict(every)
    error, before = ((values - truth)[half].square().mean() for values in (found, whole))
    assert float(error) < 0.7 * float(before)


def test_hypergradient_of_the_share() -> None:
    made = data()
    model = Autofocus(fraction=0.3)
    stated = model.state(made, torch.arange(20), model.importance(made, made.designs[:5]))
    start = torch.tensor(-0.4, dtype=torch.float64)
    check = hypergradcheck(
        stated.problem(), start, init=0 * stated.targets, hypergradient=ClosedForm(stated.formula), rtol=1e-6, eps=1e-2
    )
    assert check.ok


def test_the_share_falls_where_weights_only_lose_data() -> None:
    """A kernel that fits the noise-free scores everywhere needs no weights; one that must average two halves does."""
    space = CategoricalSpace(length=7, alphabet="AB")
    every = space.everything()
    signs = 2.0 * every.double() - 1
    effect = torch.tensor([0.0, 2.0, -1.0, 1.0, 0.5, -0.5, 1.0], dtype=torch.float64)
    noise = torch.randn(128, generator=seeded(4), dtype=torch.float64)
    shares, chosen = [], torch.randperm(128, generator=seeded(1))[:90]
    for scores, length in ((signs @ effect + noise, 20.0), (signs[:, 0] * (signs @ effect), 20.0)):
        made = proxy_data(
            space, Table(designs=every[chosen], scores=scores[chosen]), kernel=RBF(length_scale=length), ridge=0.5
        )
        model = Autofocus(fraction=0.4, pseudocount=1.0)
        stated = model.state(made, torch.arange(90), model.importance(made, every[every[:, 0] == 1]))
        shares.append(float(stated.share(stated.tune(20, 0.5))))
    assert shares[0] < 0.35 and shares[1] > 0.8, shares


def test_changes_between_neighbours_are_counted() -> None:
    designs = torch.unique(TASK.space.random(20, seeded(2)), dim=0)
    laplacian = NeighbourChanges(distance=2).quadratic(designs[:5], designs[5:])
    values = torch.randn(len(designs), generator=seeded(3), dtype=torch.float64)
    away = (designs.unsqueeze(1) != designs).sum(-1)
    edges = ((away <= 2) & (away > 0)).double()
    total = 0.5 * (edges * (values.unsqueeze(0) - values.unsqueeze(1)).square()).sum() / edges.sum(-1).mean()
    torch.testing.assert_close(values @ laplacian @ values, total)
    assert float((laplacian.sum(-1)).abs().max()) < 1e-12  # nothing against a constant


def test_mixed_changes_are_epistasis_alone() -> None:
    space, prior = TASK.space, MixedChanges(pairs=3)
    parents = space.random(4, seeded(2))
    square = prior.around(space, parents, seeded(3)).unflatten(0, (12, 4))
    assert torch.equal(square[::3, 0], parents)
    away = (square.unsqueeze(1) != square.unsqueeze(2)).sum(-1)
    assert bool((away == torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1], [1, 2, 0, 1], [2, 1, 1, 0]])).all())
    form = prior.quadratic(parents, square.flatten(0, 1))
    values = torch.randn(4 + 48, generator=seeded(4), dtype=torch.float64)
    corners = values[4:].unflatten(0, (12, 4))
    expected = (corners[:, 0] - corners[:, 1] - corners[:, 2] + corners[:, 3]).square().sum()
    torch.testing.assert_close(values @ form @ values, expected)
    effect = torch.randn(space.length, space.letters, generator=seeded(5), dtype=torch.float64)
    additive = (space.one_hot(torch.cat([parents, square.flatten(0, 1)])) * effect).sum((1, 2))
    assert abs(float(additive @ form @ additive)) < 1e-20


@pytest.mark.parametrize("roughness", [NeighbourChanges(mutants=4), MixedChanges()], ids=lambda r: type(r).__name__)
def test_smoothness_is_the_dense_penalised_solution(roughness) -> None:
    made = data()
    model = SmoothModel(parents=3, roughness=roughness, strength=0.7, num_steps=0)
    predictor = model.fit(made, made.designs, seeded(5))
    mutants = predictor.points[len(made.points) :]
    points = torch.cat([made.points, mutants])
    kernel = gram(made.kernel, points)
    laplacian = roughness.quadratic(made.designs, made.relaxation.designs(mutants))
    n = len(made.points)
    known = torch.diag((torch.arange(len(points)) < n).double())
    targets = torch.cat([made.targets, torch.zeros(len(mutants), dtype=torch.float64)])
    system = (known + 0.7 * laplacian) @ kernel + made.ridge * torch.eye(len(points), dtype=torch.float64)
    dual = torch.linalg.solve(system, targets)
    every = made.relaxation.points(TASK.space.everything())
    expected = cross_matrix(made.kernel, every, points) @ dual
    torch.testing.assert_close(predictor.values(every), expected, rtol=1e-8, atol=1e-8)
    rough = SmoothModel(parents=3, roughness=roughness, strength=1e-12, num_steps=0).fit(made, made.designs, seeded(5))
    plain = GlobalModel().fit(made, made.designs, seeded()).predict(TASK.space.everything())
    torch.testing.assert_close(rough.predict(TASK.space.everything()), plain, rtol=1e-6, atol=1e-6)


def test_hypergradients_of_strength_and_ridge() -> None:
    made = data()
    stated = SmoothModel().state(made, torch.arange(15), TASK.space.random(8, seeded(7)))
    outer = {"strength": torch.tensor(0.4).double(), "penalty": torch.tensor(-0.3).double()}
    init = torch.zeros(15, dtype=torch.float64)
    check = hypergradcheck(
        stated.problem(), outer, init=init, hypergradient=ClosedForm(stated.formula), rtol=1e-6, eps=1e-2
    )
    assert check.ok


def test_strength_is_chosen_by_what_is_left_out() -> None:
    """Effects that add up under a kernel that is too rough ask for the prior against epistasis; pure epistasis does not."""
    space = CategoricalSpace(length=6, alphabet="AB")
    every = space.everything()
    signs = 2.0 * every.double() - 1
    additive = signs @ torch.tensor([1.0, -0.5, 2.0, 1.5, -1.0, 0.7], dtype=torch.float64)
    found, rows = [], torch.randperm(64, generator=seeded(2))[:32]
    for scores in (additive, signs[:, :2].prod(-1) + signs[:, 2:4].prod(-1)):
        table = Table(designs=every[rows], scores=scores[rows])
        made = proxy_data(space, table, kernel=RBF(length_scale=2.0), ridge=1e-2)
        model = SmoothModel(roughness=MixedChanges(pairs=2))
        around = model.roughness.around(space, every, seeded(1))
        found.append(float(model.state(made, torch.arange(32), around).tune(30, 0.3)["strength"]))
    assert found[0] > 0.0 and found[1] < -1.0, found
