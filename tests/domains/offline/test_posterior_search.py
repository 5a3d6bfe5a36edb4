"""Batches from a posterior: the posterior by its definition, the ranking as a special case, and what diversity buys."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sciopt.domains.offline import (
    Determinantal,
    EvolutionarySearch,
    ExhaustiveRanking,
    GreedyMean,
    PosteriorSearch,
    SampledExpectedImprovement,
    Table,
    UpperConfidence,
    evaluate_batch,
    fit_surrogate,
    hamming,
    nk_landscape,
)
from sciopt.domains.offline.search import without
from sciopt.kernels import RBF, gram

F64 = torch.float64
TASK = nk_landscape(length=5, neighbours=1, alphabet="ACGT", seed=4)


def source() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_posteriors_are_those_of_a_gaussian_process_of_maximum_likelihood() -> None:
    table, kernel = TASK.visible(), RBF(length_scale=4.0)
    surrogate = fit_surrogate(TASK.space, table, kernel=kernel, ridge=1e-2)
    new = without(TASK.space.everything(), table.designs)[:20]
    mean, covariance = surrogate.posterior(new)
    x, z = surrogate.relaxation.points(table.designs), surrogate.relaxation.points(new)
    y = (table.scores - table.scores.mean()) / table.scores.std(correction=0)

    def system(amplitude: float) -> torch.Tensor:
        return amplitude * (gram(kernel, x) + 1e-2 * torch.eye(len(y), dtype=F64))

    def likelihood(amplitude: float) -> float:
        return float(-0.5 * y @ torch.linalg.solve(system(amplitude), y) - 0.5 * torch.logdet(system(amplitude)))

    a = float(surrogate.amplitude)
    assert likelihood(a) > likelihood(1.001 * a) and likelihood(a) > likelihood(0.999 * a)
    every = a * gram(kernel, torch.cat([x, z]))
    cross = every[len(x) :, : len(x)]
    expected = every[len(x) :, len(x) :] - cross @ torch.linalg.solve(system(a), cross.mT)
    torch.testing.assert_close(covariance, expected * table.scores.var(correction=0), rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(mean, surrogate.predict(new))


def test_with_plain_means_it_is_the_ranking() -> None:
    table = TASK.visible()
    ranked = ExhaustiveRanking(dtype=F64, rtol=None).propose(TASK.space, table, 16, generator=source())
    made = PosteriorSearch(acquisition=GreedyMean(), candidates=64).propose(TASK.space, table, 16, generator=source())
    assert torch.equal(made.designs, ranked.designs)
    assert made.predicted is not None and ranked.predicted is not None
    torch.testing.assert_close(made.predicted, ranked.predicted, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    "rule", [UpperConfidence(), SampledExpectedImprovement(draws=64)], ids=lambda rule: type(rule).__name__
)
def test_batches_are_new_different_and_allowed(rule) -> None:
    table, pool = TASK.visible(), TASK.space.everything()[::3]
    search = PosteriorSearch(acquisition=rule, candidates=200)
    made = search.propose(TASK.space, table, 24, generator=source(), pool=pool).designs
    assert torch.equal(made, search.propose(TASK.space, table, 24, generator=source(), pool=pool).designs)
    assert len(without(made, table.designs)) == 24
    assert bool(torch.isin(TASK.space.number(made), TASK.space.number(pool)).all())


def test_of_long_tables_the_nearest_rows_make_the_covariance() -> None:
    table = TASK.visible()
    ranked = ExhaustiveRanking(dtype=F64, rtol=None).propose(TASK.space, table, 64, generator=source())
    distance = hamming(table.designs, ranked.designs).amin(-1)
    search = PosteriorSearch(acquisition=GreedyMean(), candidates=64, rows=100, shortlist=ExhaustiveRanking(dtype=F64))
    made = search.propose(TASK.space, table, 64, generator=source())
    assert torch.equal(made.designs, ranked.designs)  # the means are those of all rows
    rows = distance.argsort(stable=True)[:100].sort().values
    assert int(distance[rows].max()) <= int(distance.sort().values[100])
    near = Table(designs=table.designs[rows], scores=table.scores[rows])
    found = torch.unique(ranked.designs, dim=0)
    covariance = fit_surrogate(TASK.space, near).posterior(found)[1]
    mean = fit_surrogate(TASK.space, table).predict(found)
    expected = UpperConfidence(weight=2.0).choose(mean, covariance, 0.0, 12, generator=source())
    bold = replace(search, acquisition=UpperConfidence(weight=2.0))
    assert torch.equal(bold.propose(TASK.space, table, 12, generator=source()).designs, found[expected])


def test_diversity_is_bought_with_predicted_score() -> None:
    table = TASK.visible()
    near = PosteriorSearch(acquisition=GreedyMean()).propose(TASK.space, table, 16, generator=source())
    far = PosteriorSearch(acquisition=GreedyMean(diversity=Determinantal(weight=2.0))).propose(
        TASK.space, table, 16, generator=source()
    )
    assert near.predicted is not None and far.predicted is not None
    assert float(far.predicted.mean()) < float(near.predicted.mean())
    assert evaluate_batch(TASK, far.designs).diversity > evaluate_batch(TASK, near.designs).diversity + 0.05


def test_shortlists_come_from_any_search_and_too_few_designs_are_told() -> None:
    table = TASK.visible()
    search = PosteriorSearch(shortlist=EvolutionarySearch(rounds=4), candidates=40)
    assert len(without(search.propose(TASK.space, table, 8, generator=source()).designs, table.designs)) == 8
    with pytest.raises(ValueError, match="expected at least `count` = 600 allowed designs outside the table, got 512"):
        PosteriorSearch().propose(TASK.space, table, 600, generator=source())
    with pytest.raises(ValueError, match="PosteriorSearch: expected `candidates` >= 1, got 0"):
        PosteriorSearch(candidates=0)
    with pytest.raises(ValueError, match="PosteriorSearch: expected `rows` >= 2, got 1"):
        PosteriorSearch(rows=1)
