"""Acquisition batches: closed forms, refits, exhaustive search over batches, and known answers of diversity."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from torch import Tensor

from sciopt.domains.offline import (
    Determinantal,
    GreedyMean,
    SampledExpectedImprovement,
    SimilarityPenalty,
    UpperConfidence,
)
from sciopt.domains.offline.acquisition import posterior_root
from sciopt.domains.offline.diversity import Conditional
from sciopt.inner import fit_kernel
from sciopt.kernels import RBF, gram
from tests.helpers import randn

F64 = torch.float64
EVERY = (GreedyMean(), UpperConfidence(), SampledExpectedImprovement(draws=64))


def posterior(generator: torch.Generator, q: int = 12) -> tuple[Tensor, Tensor]:
    """Means and covariance of a Gaussian process at points on a line, after three observations."""
    x = torch.linspace(0, 4, q, dtype=F64).unsqueeze(1)
    fit = fit_kernel(RBF(length_scale=0.7), x[[1, 4, 9]], randn(3, generator=generator), 1e-2)
    return fit.mean(x), fit.covariance(x)


def source(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_conditioning_is_a_refit(noise: float, generator: torch.Generator) -> None:
    x = randn(9, 2, generator=generator)
    kernel = RBF(length_scale=1.5)
    state = Conditional(gram(kernel, x), 4, noise)
    for rows in ([2], [2, 7], [2, 7, 0], [2, 7, 0, 2]):
        state.observe(torch.tensor(rows[-1:]))
        refit = fit_kernel(kernel, x[rows], torch.zeros(len(rows), dtype=F64), max(noise, 1e-12))
        torch.testing.assert_close(state.variance, refit.variance(x), rtol=0, atol=1e-9)


def test_confidence_batches_are_those_of_refits(generator: torch.Generator) -> None:
    x = torch.linspace(0, 4, 15, dtype=F64).unsqueeze(1)
    kernel, noise = RBF(length_scale=0.7), 0.05
    seen, targets = x[[1, 4, 9]], randn(3, generator=generator)
    fit = fit_kernel(kernel, seen, targets, noise)
    chosen = UpperConfidence(weight=2.0, noise=noise).choose(fit.mean(x), fit.covariance(x), 0.0, 5, generator=source())
    open_ = torch.zeros(15, dtype=F64)
    for expected in chosen:  # each choice by a new fit to all points so far, hallucinated at the mean
        again = fit_kernel(kernel, seen, targets, noise)
        torch.testing.assert_close(again.mean(x), fit.mean(x), rtol=0, atol=1e-8)
        bound = fit.mean(x) + 2.0 * again.variance(x).sqrt() + open_
        assert int(bound.argmax()) == int(expected)
        open_[expected] = -torch.inf
        seen = torch.cat([seen, x[expected].reshape(1, 1)])
        targets = torch.cat([targets, fit.mean(x)[expected].reshape(1)])


def test_expected_improvement_of_one_is_the_closed_form(generator: torch.Generator) -> None:
    mean, covariance = posterior(generator)
    deviation, best, draws = covariance.diagonal().clamp(min=0).sqrt(), float(mean.max()) - 0.2, 40_000
    z = (mean - best) / deviation
    normal = torch.distributions.Normal(torch.zeros((), dtype=F64), torch.ones((), dtype=F64))
    exact = (mean - best) * normal.cdf(z) + deviation * normal.log_prob(z).exp()
    root = posterior_root(covariance)
    sampled = mean + torch.randn(draws, len(mean), generator=source(3), dtype=F64) @ root.mT
    gain = (sampled - best).clamp(min=0)
    error = gain.std(0) / draws**0.5
    assert bool(((gain.mean(0) - exact).abs() <= 4 * error + 1e-12).all()) and float((error / exact.max()).max()) < 0.02
    chosen = SampledExpectedImprovement(draws=draws).choose(mean, covariance, best, 1, generator=source(3))
    assert int(chosen) == int(gain.mean(0).argmax())  # the same draws
    assert float(exact[chosen]) >= float(exact.max()) - 8 * float(error.max())


def test_greedy_improvement_is_near_the_best_batch(generator: torch.Generator) -> None:
    mean, covariance = posterior(generator)
    draws, best = 4000, float(mean.max()) - 0.2
    sampled = mean + torch.randn(draws, len(mean), generator=source(5), dtype=F64) @ posterior_root(covariance).mT

    def value(batch: list[int]) -> float:
        return float((sampled[:, batch].amax(-1) - best).clamp(min=0).mean())

    chosen = SampledExpectedImprovement(draws=draws).choose(mean, covariance, best, 3, generator=source(5)).tolist()
    exhaustive = max(value(list(batch)) for batch in combinations(range(len(mean)), 3))
    alone = sampled.sub(best).clamp(min=0).mean(0).argsort(descending=True)[:3].tolist()
    assert value(chosen) >= (1 - 1 / 2.718281828) * exhaustive and value(chosen) >= 0.97 * exhaustive
    assert value(chosen) >= value(alone)
    twins = torch.tensor(
        [[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.8]], dtype=F64
    )  # what improves, improves together
    batch = SampledExpectedImprovement(draws=draws).choose(
        torch.zeros(3, dtype=F64), twins, 0.0, 2, generator=source(5)
    )
    assert set(batch.tolist()) in ({0, 2}, {1, 2})


def test_where_no_draw_improves_the_highest_means_fill_up() -> None:
    mean = torch.tensor([0.0, 3.0, 1.0, 2.0], dtype=F64)
    chosen = SampledExpectedImprovement(draws=8).choose(
        mean, 1e-6 * torch.eye(4, dtype=F64), 9.0, 3, generator=source()
    )
    assert chosen.tolist() == [1, 3, 2]
    certain = SampledExpectedImprovement(draws=8).choose(mean, torch.zeros(4, 4, dtype=F64), 0.0, 4, generator=source())
    assert certain.tolist() == [1, 3, 2, 0]


def test_means_alone_are_greedy(generator: torch.Generator) -> None:
    mean, covariance = posterior(generator)
    order = mean.argsort(descending=True)[:5]
    for rule in (GreedyMean(), UpperConfidence(weight=0.0)):
        assert torch.equal(rule.choose(mean, covariance, 0.0, 5, generator=source()), order)


def test_a_penalty_and_a_determinant_know_what_is_alike() -> None:
    mean = torch.tensor([1.0, 0.99, 0.5, 0.4], dtype=F64)
    twins = torch.eye(4, dtype=F64)
    twins[0, 1] = twins[1, 0] = 1.0
    for rule in (SimilarityPenalty(weight=5.0), Determinantal(weight=5.0)):
        chosen = GreedyMean(diversity=rule).choose(mean, twins, 0.0, 4, generator=source(), similarity=twins)
        assert chosen.tolist() == [0, 2, 3, 1]
    for rule in (SimilarityPenalty(weight=0.0), Determinantal(weight=0.0)):
        chosen = GreedyMean(diversity=rule).choose(mean, twins, 0.0, 4, generator=source(), similarity=twins)
        assert chosen.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("power", [1, 3])
def test_the_determinantal_terms_are_gains_of_log_det(power: int, generator: torch.Generator) -> None:
    designs = torch.randint(3, (9, 6), generator=generator)
    similarity = (designs[:, None] == designs).double().mean(-1)
    rule = Determinantal(weight=1.0, power=power)
    state, batch = rule.start(similarity, 3), []
    similarity = similarity**power
    for index in (4, 1, 8):
        state = rule.update(state, torch.tensor([index]))
        batch.append(index)
        before = torch.logdet(similarity[batch][:, batch])
        for other in set(range(9)) - set(batch):
            grown = [*batch, other]
            gain = torch.logdet(similarity[grown][:, grown]) - before
            torch.testing.assert_close(rule.terms(state)[other], gain, rtol=1e-9, atol=1e-9)


def test_a_batch_larger_than_the_letters_dimensions_still_has_preferences() -> None:
    every = torch.cartesian_prod(*[torch.arange(2)] * 6)  # 64 designs in 7 dimensions
    similarity = (every[:, None] == every).double().mean(-1)
    near = torch.arange(64) < 32
    mean = torch.where(near, 0.1, 0.0).double()
    chosen = GreedyMean(diversity=Determinantal(weight=5.0)).choose(
        mean, similarity, 0.0, 30, generator=source(), similarity=similarity
    )
    assert 8 <= int((chosen < 32).sum()) <= 22
    flat = GreedyMean(diversity=Determinantal(weight=5.0, power=1)).choose(
        mean, similarity, 0.0, 30, generator=source(), similarity=similarity
    )
    assert int((flat < 32).sum()) > 22


@pytest.mark.parametrize("rule", EVERY, ids=lambda r: type(r).__name__)
def test_batches_are_distinct_repeatable_and_leave_their_input(rule, generator: torch.Generator) -> None:
    for dtype in (F64, torch.float32):
        mean, covariance = (part.to(dtype) for part in posterior(generator))
        kept = mean.clone(), covariance.clone()
        chosen = rule.choose(mean, covariance, 0.0, 12, generator=source())
        assert sorted(chosen.tolist()) == list(range(12)) and chosen.dtype == torch.int64
        assert torch.equal(chosen, rule.choose(mean, covariance, 0.0, 12, generator=source()))
        assert torch.equal(mean, kept[0]) and torch.equal(covariance, kept[1])


@pytest.mark.parametrize("rule", EVERY, ids=lambda r: type(r).__name__)
def test_bad_requests_say_what_was_expected(rule) -> None:
    mean, covariance = torch.zeros(3, dtype=F64), torch.eye(3, dtype=F64)
    name = type(rule).__name__
    with pytest.raises(ValueError, match=rf"{name}: expected `count` in \[1, 3\], the number of candidates, got 4"):
        rule.choose(mean, covariance, 0.0, 4, generator=source())
    with pytest.raises(
        ValueError, match=rf"{name}: expected `mean` of shape \(q,\) and `covariance` of shape \(q, q\)"
    ):
        rule.choose(mean, covariance[:2], 0.0, 1, generator=source())
    with pytest.raises(ValueError, match=f"{name}: expected finite `covariance`, got 1 NaN"):
        rule.choose(
            mean,
            covariance.index_put((torch.tensor(0), torch.tensor(1)), torch.tensor(torch.nan, dtype=F64)),
            0.0,
            1,
            generator=source(),
        )
    with pytest.raises(ValueError, match=f"{name}: expected `best` to be finite, got nan"):
        rule.choose(mean, covariance, float("nan"), 1, generator=source())
    diverse = type(rule)(diversity=Determinantal())
    with pytest.raises(ValueError, match=rf"{name}: expected `similarity` of shape \(3, 3\) for `diversity`, got None"):
        diverse.choose(mean, covariance, 0.0, 1, generator=source())


def test_a_matrix_that_is_no_covariance_is_refused() -> None:
    with pytest.raises(ValueError, match="posterior_root: expected `covariance` to be positive semi-definite"):
        posterior_root(torch.tensor([[1.0, 2.0], [2.0, 1.0]], dtype=F64))
    with pytest.raises(ValueError, match="UpperConfidence: expected `weight` finite and >= 0, got -1"):
        UpperConfidence(weight=-1.0)
    with pytest.raises(ValueError, match="UpperConfidence: expected `noise` >= 0, got -1"):
        UpperConfidence(noise=-1.0)
    with pytest.raises(ValueError, match="Determinantal: expected `power` to be an int >= 1, got 0"):
        Determinantal(power=0)
    with pytest.raises(ValueError, match="SampledExpectedImprovement: expected `draws` >= 1, got 0"):
        SampledExpectedImprovement(draws=0)
