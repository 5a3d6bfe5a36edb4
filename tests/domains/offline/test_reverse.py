"""Reverse mapping: exact likelihoods, a map that can be inverted, a cycle that is closed, and batches that may be tested."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sciopt import hypergradcheck
from sciopt.domains.offline import CategoricalSpace, Polish, Table, evaluate_batch, nk_landscape
from sciopt.domains.offline.distillation import GeneratorFamily, ReverseMapping, reverse_problem
from sciopt.domains.offline.distillation.generator import binned
from sciopt.domains.offline.distillation.reverse_training import gumbel, held_back, tuned_weight
from sciopt.hypergradients import Unrolled
from sciopt.inner import Adam
from tests.helpers import randn

F64 = torch.float64
TASK = nk_landscape(length=6, neighbours=1, alphabet="ACG", seed=3)
OPTIONS = ReverseMapping(network=GeneratorFamily(codes=4, width=16), train_steps=60, dtype=F64)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_bins_hold_every_row_once_and_weigh_high_scores(generator: torch.Generator) -> None:
    space, scores = TASK.space, randn(23, generator=generator)
    designs = space.random(23, generator)
    data = binned(space, designs, scores, bins=5, temperature=None)
    torch.testing.assert_close(data.shares.sum(), torch.tensor(1.0, dtype=F64))
    assert int((data.shares > 0).sum()) == 23 and data.scores.shape == (5,)
    torch.testing.assert_close(data.letters.sum((0, 1)), space.one_hot(designs).sum(0).flatten())
    torch.testing.assert_close((data.shares.sum(-1) * data.scores).sum(), scores.mean())
    hot = binned(space, designs, scores, bins=5, temperature=0.5)
    ratio = hot.shares[:, 0] / hot.shares[-1, 0]
    torch.testing.assert_close(ratio, ((data.scores - data.scores[-1]) / 0.5).exp())
    assert len(binned(space, designs, scores, bins=16, temperature=None).scores) == 12  # two rows each, none left over


def test_the_likelihood_is_the_mixture_by_hand(generator: torch.Generator) -> None:
    space = CategoricalSpace(length=2, alphabet="abc")
    made, weights = GeneratorFamily(codes=3, width=5).draw(space, generator=generator, like=torch.zeros((), dtype=F64))
    weights = {name: value + 0.5 * randn(*value.shape, generator=generator) for name, value in weights.items()}
    scores = torch.arange(9.0, dtype=F64) / 3
    data = binned(space, space.everything(), scores, bins=9, temperature=None)
    shares = made.log_shares(weights, scores).exp()
    torch.testing.assert_close(shares.sum(-1), torch.ones(9, 3, 2, dtype=F64))
    each = torch.stack([(shares[i, :, 0, i // 3] * shares[i, :, 1, i % 3]).mean() for i in range(9)])
    torch.testing.assert_close(made.log_likelihood(weights, data), each.log().mean() / 2)
    total = sum(  # of all designs at one score
        (shares[4, :, 0, a] * shares[4, :, 1, b]).mean() for a in range(3) for b in range(3)
    )
    torch.testing.assert_close(total, torch.tensor(1.0, dtype=F64))


def test_an_invertible_map_is_recovered() -> None:
    """A thermometer: score k is the design whose first k letters are b. Each score has one design, whatever the noise."""
    space = CategoricalSpace(length=6, alphabet="ab")
    designs = (torch.arange(7).unsqueeze(1) > torch.arange(6)).long()
    table = Table(designs=designs, scores=torch.arange(7.0, dtype=F64))
    options = replace(OPTIONS, cycle_weight=0.0, temperature=None, train_steps=400, bins=7)
    stated = reverse_problem(options, space, table, generator=seeded())
    shares = stated.generator.log_shares(stated.train(), stated.data.scores)
    assert bool((shares.argmax(-1) == designs.unsqueeze(1)).all())
    assert float(shares.exp().amax(-1).min()) > 0.8


def test_letters_are_chosen_in_the_cycle_and_its_derivative_goes_straight_through() -> None:
    stated = reverse_problem(OPTIONS, TASK.space, TASK.visible(), generator=seeded())
    weights = {name: value.clone().requires_grad_() for name, value in stated.start.items()}
    noisy = stated.generator.log_shares(weights, stated.levels) + stated.noise
    designs = noisy.argmax(-1).flatten(0, 1)
    expected = (stated.surrogate.predict(designs) - stated.surrogate.mean) / stated.surrogate.scale
    predicted = stated.predicted(weights)
    torch.testing.assert_close(predicted.flatten(), expected, rtol=1e-9, atol=1e-9)
    for one in (stated, replace(stated, linearised=True)):
        torch.testing.assert_close(one.cycle(weights), (predicted - stated.levels.unsqueeze(-1)).square().mean(-1))
    grads, same = (
        torch.autograd.grad(one.cycle(weights).sum(), list(weights.values()))
        for one in (stated, replace(stated, linearised=True))
    )
    for mine, theirs in zip(grads, same, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)
        assert bool((mine != 0).any())


def test_the_cycle_reaches_scores_that_no_row_has() -> None:
    table = TASK.visible()
    errors, asked = [], []
    for weight in (0.0, 0.3):
        stated = reverse_problem(
            replace(OPTIONS, cycle_weight=weight, reach=2.0), TASK.space, table, generator=seeded()
        )
        weights = stated.train()
        errors.append(float(stated.cycle(weights)[1:].mean()))
        asked.append(float(stated.asked(weights, 50, seeded()).max() - stated.levels[0]))
    assert errors[1] < 0.5 * errors[0]
    assert asked[1] > asked[0]


def test_scores_are_asked_for_as_far_as_they_can_be_trusted() -> None:
    table = TASK.visible()
    for trust, reached in ((1e-9, 0.0), (1e9, 3.0)):
        stated = reverse_problem(replace(OPTIONS, trust=trust), TASK.space, table, generator=seeded())
        asked = stated.asked(stated.start, 400, seeded()) - stated.levels[0]
        assert float(asked.min()) >= 0 and abs(float(asked.max()) - reached) < 0.05


def test_samples_follow_the_probabilities() -> None:
    stated = reverse_problem(OPTIONS, TASK.space, TASK.visible(), generator=seeded())
    weights = stated.train()
    scores = stated.levels[:1].expand(20_000)
    designs, shares = stated.sample(weights, scores, seeded())
    found = TASK.space.one_hot(designs).mean(0)
    torch.testing.assert_close(
        found, stated.generator.log_shares(weights, scores[:1]).exp()[0].mean(0), rtol=0, atol=0.02
    )
    assert shares.shape == (20_000, 6, 3)
    noise = gumbel((100_000,), seeded())
    assert abs(float(noise.mean()) - 0.5772) < 0.02  # Euler's constant


def test_the_hypergradient_of_the_cycle_weight_agrees_with_finite_differences(generator: torch.Generator) -> None:
    """Through 6 steps of Adam, a start at which no letter changes with so small a change of the weight."""
    stated, problem = held_back(OPTIONS, TASK.space, TASK.visible(), generator)
    check = hypergradcheck(
        problem, stated.log_weight(), init=stated.start, solver=Adam(step_size=1e-3),
        hypergradient=Unrolled(num_steps=6), eps=1e-3, rtol=1e-6,
    )  # fmt: skip
    assert check.max_error <= 1e-6


def test_the_cycle_weight_is_tuned_by_what_was_held_back(generator: torch.Generator) -> None:
    options = replace(OPTIONS, tune_steps=2, train_steps=10, cycle_weight=0.1)
    weight = tuned_weight(options, TASK.space, TASK.visible(), generator)
    assert 0.1 / 5 < weight < 0.1 * 5 and weight != 0.1
    made = options.propose(TASK.space, TASK.visible(), 8, generator=generator)
    assert len(torch.unique(made.designs, dim=0)) == 8


@pytest.mark.parametrize("search", [OPTIONS, replace(OPTIONS, polish=Polish(rounds=2))], ids=["plain", "polished"])
def test_batches_are_new_different_allowed_and_repeatable(search: ReverseMapping) -> None:
    odd = lambda designs: designs[:, 0] != designs[:, 1]  # noqa: E731
    table = TASK.visible()
    table = Table(designs=table.designs[odd(table.designs)], scores=table.scores[odd(table.designs)])
    constrained = replace(search, allowed=odd)
    one, two = (constrained.propose(TASK.space, table, 24, generator=seeded()) for _ in range(2))
    assert torch.equal(one.designs, two.designs) and bool(odd(one.designs).all())
    assert len(torch.unique(one.designs, dim=0)) == 24
    assert not bool(torch.isin(TASK.space.number(one.designs), TASK.space.number(table.designs)).any())
    assert one.predicted is not None and bool((one.predicted.diff() <= 1e-9).all())
    pool = TASK.space.everything()[::2]
    inside = search.propose(TASK.space, table, 24, generator=seeded(), pool=pool).designs
    assert bool(torch.isin(TASK.space.number(inside), TASK.space.number(pool)).all())


def test_proposals_are_better_than_what_is_known() -> None:
    table = TASK.visible()
    made = replace(OPTIONS, train_steps=150).propose(TASK.space, table, 24, generator=seeded())
    report, known = evaluate_batch(TASK, made.designs), evaluate_batch(TASK, table.best(24))
    assert report.median > known.best


def test_bad_requests_say_what_was_expected(generator: torch.Generator) -> None:
    table = TASK.visible()
    flat = Table(designs=table.designs, scores=torch.ones(len(table), dtype=F64))
    with pytest.raises(ValueError, match="expected `scores` that differ"):
        OPTIONS.propose(TASK.space, flat, 2, generator=generator)
    with pytest.raises(ValueError, match="ReverseMapping: expected a `pool` of at least `count` = 5 designs, got 2"):
        OPTIONS.propose(TASK.space, table, 5, generator=generator, pool=table.designs[:2])
    nothing = replace(OPTIONS, train_steps=1, allowed=lambda designs: designs.sum(-1) < 0)
    with pytest.raises(ValueError, match="ReverseMapping: expected `count` = 4 allowed designs .* got 0"):
        nothing.propose(TASK.space, table, 4, generator=generator)
    for wrong, message in (
        (lambda: ReverseMapping(temperature=0.0), "ReverseMapping: expected `temperature` > 0 or None, got 0.0"),
        (lambda: ReverseMapping(trust=0.0), "ReverseMapping: expected `trust` > 0, got 0.0"),
        (lambda: ReverseMapping(cycle_weight=-1.0), "ReverseMapping: expected `cycle_weight` >= 0, got -1.0"),
        (lambda: ReverseMapping(cycle_weight=0.0, tune_steps=1), "`cycle_weight` > 0 where it is tuned, got 0.0"),
        (lambda: ReverseMapping(bins=1), "ReverseMapping: expected `bins` >= 2, got 1"),
    ):
        with pytest.raises(ValueError, match=message):
            wrong()
    with pytest.raises(ValueError, match="GeneratorFamily: expected `codes` >= 1, got 0"):
        GeneratorFamily(codes=0)
