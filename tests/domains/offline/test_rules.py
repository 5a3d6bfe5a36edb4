"""Rules: planted motifs come back exactly, chance yields none, and what they say is what a table shows."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from sciopt.domains.offline import (
    CategoricalSpace,
    Discovery,
    Ehrlich,
    EvolutionarySearch,
    Motif,
    Table,
    distilled_rules,
    extract_rules,
    nk_landscape,
)
from sciopt.domains.offline.rules import AdditiveScale, LogScale, ProductScale, scales, screening
from sciopt.domains.offline.rules.motifs import motif_of
from sciopt.domains.offline.rules.screening import centred, extension_gains, foremost, level_gain, pair_statistics, tail
from sciopt.domains.offline.rules.sites import Sites

SIZES = [
    dict(states=8, length=12, motifs=2, motif_length=3, seed=0),
    dict(states=8, length=12, motifs=2, motif_length=3, seed=1),
    dict(states=16, length=24, motifs=3, motif_length=4, seed=1),
]


def planted(task: Ehrlich) -> set[tuple[tuple[int, ...], tuple[int, ...]]]:
    return {(tuple(letters), tuple(offsets)) for letters, offsets in map(task.motif, range(task.motifs))}


def found(rules) -> set[tuple[tuple[int, ...], tuple[int, ...]]]:
    return {(rule.motif.letters, rule.motif.offsets) for rule in rules.motifs}


@pytest.mark.parametrize("size", SIZES, ids=lambda s: f"{s['states']}-{s['length']}-{s['motifs']}-{s['seed']}")
def test_planted_motifs_come_back_exactly(size) -> None:
    task = Ehrlich(rows=1000, **size)
    table = task.visible()
    assert float(table.scores.max()) <= 0.5
    rules = extract_rules(task.space, table, generator=torch.Generator().manual_seed(0))
    assert found(rules) == planted(task)
    assert rules.model.explained > 0.999 and max(rule.chance for rule in rules.motifs) < 0.01
    banned = task.transitions == 0
    wrong = int((rules.forbidden & ~banned).sum())  # allowed by the task, but next to never used
    assert int(rules.forbidden.sum()) > 10 and wrong <= 0.1 * int(rules.forbidden.sum())
    torch.testing.assert_close(rules.predict(table.designs), table.scores, rtol=0, atol=0.02)
    for rule in rules.motifs:
        assert sum(rule.support) == len(table) and rule.support[rule.most] > 0 and rule.lift > 0
        assert rule.motif.pattern(task.space.alphabet) in rules.describe()


def test_motifs_come_back_under_noise() -> None:
    task = Ehrlich(rows=2000, **SIZES[0])
    table = task.visible()
    noise = torch.randn(len(table), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    noisy = Table(designs=table.designs, scores=table.scores + 0.5 * table.scores.std() * noise)
    rules = extract_rules(task.space, noisy, generator=torch.Generator().manual_seed(0))
    assert found(rules) == planted(task)
    assert 0.6 < rules.model.explained < 0.9  # 0.8 is what noise leaves to be explained


def test_chance_yields_no_rules() -> None:
    space, wrong = CategoricalSpace(length=10, alphabet="ACGT"), 0
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        scores = torch.randn(400, generator=generator, dtype=torch.float64)
        table = Table(designs=space.random(400, generator), scores=scores)
        rules = extract_rules(space, table, generator=generator)
        wrong += bool(rules.motifs) or bool(rules.letters) or bool(rules.forbidden.any())
    assert wrong <= 2  # 20 tables, three kinds of rule at a level of 0.01: more has a chance of 0.02


@pytest.mark.parametrize("seed", range(3))
def test_effects_of_positions_are_no_motifs(seed: int) -> None:
    task = nk_landscape(length=6, neighbours=2, alphabet="ACGT", seed=seed)
    rules = extract_rules(task.space, task.visible(), generator=torch.Generator().manual_seed(seed))
    assert not rules.motifs and rules.letters
    assert rules.describe().startswith("No motif that may stand anywhere stands out from chance.")


def test_letters_at_positions_have_their_effects() -> None:
    space = CategoricalSpace(length=4, alphabet="ABC")
    designs = space.everything()
    scores = 2.0 * (designs[:, 1] == 2) - 1.0 * (designs[:, 3] == 0)
    rules = extract_rules(
        space, Table(designs=designs, scores=scores.to(torch.float64)), generator=torch.Generator().manual_seed(0)
    )
    effects = {(rule.position, rule.letter): rule.effect for rule in rules.letters}
    assert effects[(1, 2)] == pytest.approx(2.0) and effects[(3, 0)] == pytest.approx(-1.0)
    assert {place for place, _ in effects} == {1, 3} and not rules.motifs
    prior = rules.prior(designs)
    assert int(scores[prior.argmax()]) == 2 and int(scores[prior.argmin()]) == -1


def test_forbidden_neighbours_cost_what_chance_expected() -> None:
    task = Ehrlich(rows=1000, **SIZES[0])
    rules = extract_rules(task.space, task.visible(), generator=torch.Generator().manual_seed(0))
    visible = task.visible().designs
    assert int(rules.breaches(visible).sum()) == 0
    random = task.space.random(500, torch.Generator().manual_seed(2))
    infeasible = rules.breaches(random) > 0
    assert not bool(task.feasible(random[infeasible]).any())
    assert float(rules.prior(random[infeasible]).max()) < float(rules.prior(visible).min())


def test_distilled_designs_give_rules() -> None:
    space = CategoricalSpace(length=10, alphabet="ABCD")
    background = space.random(2000, torch.Generator().manual_seed(0))
    motif = Motif(letters=(0, 2, 3), offsets=(0, 1, 4))
    distilled = background[motif.matches(background) == 3]
    assert len(distilled) > 50
    rules = distilled_rules(space, distilled, background, generator=torch.Generator().manual_seed(0))
    assert found(rules) == {(motif.letters, motif.offsets)}


@pytest.mark.parametrize("weights", ["uneven", "even", "zeros"])
@pytest.mark.parametrize("cells", [1 << 20, 9 * 64])  # tables of pairs for all designs, or for 64 at a time
def test_pair_statistics_are_differences_of_means(
    weights: str, cells: int, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(screening, "CELLS", cells)
    space = CategoricalSpace(length=5, alphabet="ABC")
    designs = space.random(200, generator)
    value = torch.randn(200, generator=generator, dtype=torch.float64)
    random = torch.rand(200, generator=generator, dtype=torch.float64)
    weight = {"uneven": random, "even": 0.25 * (random > -1), "zeros": 3.0 * (random > 0.3)}[weights].to(value)
    table = pair_statistics(Sites.of(space, designs), value, weight, 4)
    for shift, one, two in itertools.product((1, 2, 3), range(3), range(3)):
        present = Motif(letters=(one, two), offsets=(0, shift)).matches(designs) == 2
        left, total = centred(value, weight), weight.sum()
        mass = weight[present].sum()
        own = (weight * left)[present].sum() / (mass * (1 - mass / total)).sqrt()
        assert float(table[shift - 1, one, two]) == pytest.approx(float(own), rel=1e-9, abs=1e-9)


def test_letters_found_are_those_of_each_start() -> None:
    space = CategoricalSpace(length=5, alphabet="ABC")
    designs = space.everything()
    motif = Motif(letters=(2, 0, 1), offsets=(0, 1, 3))
    own = [
        [sum(row[start + offset] == letter for offset, letter in motif.elements) for start in range(2)]
        for row in designs.tolist()
    ]
    for kept in (designs, Sites.of(space, designs).designs):
        assert motif.found(kept).tolist() == own
        assert motif.matches(kept).tolist() == [max(starts) for starts in own]


def test_equal_worth_is_settled_by_order_not_by_rounding() -> None:
    values = torch.tensor([1.0, 7.0, 7.0 * (1 + 1e-6), 6.9])
    assert int(values.argmax()) == 2 and foremost(values) == 1
    assert foremost(torch.tensor([1.0, 7.0, 7.01])) == 2


def test_many_combinations_of_levels_are_told_apart(generator: torch.Generator) -> None:
    space = CategoricalSpace(length=14, alphabet="AB")
    designs = space.random(3000, generator)
    motifs = [Motif(letters=(0, 1, 1), offsets=(0, k, k + 1)) for k in range(1, 13)]  # 4^12 combinations
    levels = torch.stack([motif.matches(designs) for motif in motifs], -1)
    rows, place, count = scales.distinct(motifs, designs)
    own, inverse, number = torch.unique(levels, dim=0, return_inverse=True, return_counts=True)
    assert torch.equal(rows, own) and torch.equal(place, inverse) and torch.equal(count, number.double())
    rows, place, count = scales.distinct([], designs)
    assert rows.shape == (1, 0) and count.tolist() == [3000.0] and not bool(place.any())


def test_extension_gains_are_those_of_the_longer_motif(generator: torch.Generator) -> None:
    space = CategoricalSpace(length=9, alphabet="ABC")
    designs = space.random(300, generator)
    weight = torch.rand(300, generator=generator, dtype=torch.float64)
    left = centred(torch.randn(300, generator=generator, dtype=torch.float64), weight)
    motif, sites = Motif(letters=(0, 2), offsets=(0, 3)), Sites.of(space, designs)
    places, gains = extension_gains(motif, sites, left, weight, 7)
    assert places.tolist() == [-3, -2, -1, 1, 2, 4, 5, 6]
    for row, place in enumerate(places.tolist()):
        for letter in range(3):
            own = level_gain(motif_of([*motif.elements, (place, letter)]), sites, left, weight)
            assert float(gains[row, letter]) == pytest.approx(own, rel=1e-3, abs=1e-4)


def test_a_motif_as_long_as_its_span_has_no_extension(generator: torch.Generator) -> None:
    space = CategoricalSpace(length=3, alphabet="AB")
    designs, full = space.random(40, generator), Motif(letters=(0, 1, 0), offsets=(0, 1, 2))
    ones = torch.ones(40, dtype=torch.float64)
    places, gains = extension_gains(full, Sites.of(space, designs), ones, ones, 3)
    assert places.numel() == 0 and gains.shape == (0, 2)


def test_scales_recover_their_own_effects(generator: torch.Generator) -> None:
    space = CategoricalSpace(length=6, alphabet="AB")
    designs = space.everything().repeat(4, 1)
    motifs = [Motif(letters=(0, 1), offsets=(0, 2)), Motif(letters=(1, 1, 1), offsets=(0, 1, 2))]
    level = [motif.matches(designs).to(torch.float64) for motif in motifs]
    additive = 1.0 + 0.5 * level[0] + 2.0 * level[1]
    fit = AdditiveScale().fit(motifs, designs, additive)
    torch.testing.assert_close(fit.total(motifs, designs), additive, rtol=0, atol=1e-3)
    product = torch.exp(0.3 * level[0] - 1.0 + 0.5 * level[1])
    for scale in (LogScale(), ProductScale()):
        fit = scale.fit(motifs, designs, product)
        torch.testing.assert_close(scale.score(fit.total(motifs, designs)), product, rtol=1e-3, atol=0)
        assert fit.explained > 0.9999 and len(fit.steps[1]) == 3
        assert float(fit.steps[1][1:].sum()) == pytest.approx(1.0, abs=0.01)


def test_tail_is_a_probability_of_maxima() -> None:
    uniform = torch.rand(20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    maxima = 3.0 - 0.5 * torch.log(-torch.log(uniform))  # Gumbel
    for statistic in (3.0, 4.0, 5.0):
        assert tail(statistic, maxima) == pytest.approx(float((maxima > statistic).double().mean()), abs=0.01)


def test_priors_lead_the_evolutionary_search() -> None:
    task = nk_landscape(length=8, neighbours=0, seed=3)
    plain = EvolutionarySearch(rounds=6)
    first = lambda designs: 10.0 * (designs[:, 0] == 1)  # noqa: E731
    led = EvolutionarySearch(rounds=6, prior=first)
    designs = led.propose(task.space, task.visible(), 8, generator=torch.Generator().manual_seed(0))
    assert bool((designs.designs[:, 0] == 1).all()) and designs.predicted is not None
    assert float(designs.predicted.max()) < 2.0  # the surrogate's own prediction, without the prior
    nothing = EvolutionarySearch(rounds=6, prior=lambda designs: torch.zeros(len(designs), dtype=torch.float64))
    one = plain.propose(task.space, task.visible(), 8, generator=torch.Generator().manual_seed(0))
    two = nothing.propose(task.space, task.visible(), 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(one.designs, two.designs)


def test_bad_requests_are_refused(generator: torch.Generator) -> None:
    space = CategoricalSpace(length=3, alphabet="AB")
    constant = Table(designs=space.everything(), scores=torch.ones(8, dtype=torch.float64))
    with pytest.raises(ValueError, match="expected `scores` that differ"):
        extract_rules(space, constant, generator=generator)
    with pytest.raises(ValueError, match=r"Motif: expected `offsets` that ascend from 0"):
        Motif(letters=(0, 1), offsets=(0, 0))
    refused: dict[str, Any] = {"span": 1, "letters": 1, "level": 0.0, "draws": 3, "motifs": 0, "sweeps": -1}
    for name, value in refused.items():
        with pytest.raises(ValueError, match=f"Discovery: expected `{name}`"):
            Discovery(**{name: value})
    with pytest.raises(ValueError, match="extract_rules: expected `permutations` >= 10"):
        extract_rules(space, constant, generator=generator, permutations=2)
