"""Rules of distilled designs: planted motifs come back, chance yields none, and the prior is worth what held-out rows say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from sciopt.domains.offline import (
    BDI,
    BIB,
    CategoricalSpace,
    Discovery,
    DistilledRuleSearch,
    Ehrlich,
    EvolutionarySearch,
    ExchangeDistillation,
    Motif,
    OneHot,
    SequenceModel,
    SpacedPairs,
    Table,
    distilled_rules,
    evaluate_batch,
    extract_rules,
    nk_landscape,
    rules_by_distillation,
)
from sciopt.domains.offline.rules import AdditiveScale, LogScale, remeasured
from sciopt.domains.offline.rules.exchange import _state
from sciopt.domains.offline.rules.rules import count_transitions, never_seen

SMALL = dict(states=8, length=12, motifs=2, motif_length=3, rows=400)
F64 = torch.float64


def planted(task: Ehrlich) -> list[Motif]:
    return [
        Motif(letters=tuple(letters), offsets=tuple(offsets))
        for letters, offsets in map(task.motif, range(task.motifs))
    ]


def agreeing(one: Motif, two: Motif) -> int:
    """Most letters that two motifs share at the same spacing, if at least two."""
    shifts = range(-one.span, two.span + 1)
    most = max(len(set(two.elements) & {(o + shift, a) for o, a in one.elements}) for shift in shifts)
    return most if most >= 2 else 0


def recovered(truth: Sequence[Motif], found: Sequence[Motif]) -> tuple[float, float]:
    """Share of planted letters that some found motif has at the right spacing, and share of found letters that are planted."""
    share = sum(max((agreeing(motif, other) for other in found), default=0) for motif in truth) / sum(map(len, truth))
    right = sum(max(agreeing(other, motif) for motif in truth) for other in found)
    return share, right / max(1, sum(map(len, found)))


def distilled_alone(task: Ehrlich, table: Table, seed: int) -> tuple[float, float]:
    """What is recovered where only the distillation speaks: its scores of distilled designs and of their starts."""
    generator = torch.Generator().manual_seed(seed)
    start = table.best(300)
    made = ExchangeDistillation().propose(task.space, table, 300, generator=generator)
    still = ExchangeDistillation(num_steps=0).propose(task.space, table, 300, generator=generator)
    assert torch.equal(still.designs, start)
    rules = distilled_rules(
        task.space,
        made.designs,
        start,
        generator=generator,
        predicted=made.predicted,
        measured=still.predicted,
        discovery=Discovery(motifs=4),
    )
    return recovered(planted(task), rules.model.motifs)


def test_planted_motifs_are_recovered_from_distilled_designs() -> None:
    alone, chance, beside = [], [], []
    for seed in range(21, 25):
        task = Ehrlich(states=12, length=16, motifs=2, motif_length=4, rows=600, seed=seed)
        table, truth, generator = task.visible(), planted(task), torch.Generator().manual_seed(seed)
        alone.append(distilled_alone(task, table, seed)[0])
        order = torch.randperm(len(table), generator=generator)
        chance.append(distilled_alone(task, Table(designs=table.designs, scores=table.scores[order]), seed)[0])
        made = ExchangeDistillation().propose(task.space, table, 300, generator=generator)
        held = torch.stack([motif.matches(made.designs) - motif.matches(table.best(300)) for motif in truth])
        assert float(held.sum(0).to(F64).mean()) > 0.5  # more letters of motifs than where the designs started from
        rules = distilled_rules(
            task.space,
            made.designs,
            table.designs,
            generator=generator,
            predicted=made.predicted,
            measured=table.scores,
            discovery=Discovery(motifs=4),
        )
        share, precision = recovered(truth, remeasured(rules, table).model.motifs)
        assert share >= 0.75 and precision >= 0.7
        beside.append(share)
    assert sum(beside) / 4 >= 0.9  # beside the measured scores of the table
    assert sum(alone) / 4 >= 0.6 and sum(alone) > sum(chance) + 1.2


def test_rules_of_distilled_designs_hold_on_held_out_rows() -> None:
    task = Ehrlich(**SMALL, seed=32)
    table, generator = task.visible(), torch.Generator().manual_seed(0)
    found = rules_by_distillation(task.space, table, distil=ExchangeDistillation(), generator=generator)
    assert found.rules is not None and found.chance < 1e-6 and 0.5 < found.weight < 1.2 and found.explained > 0.2
    share, precision = recovered(planted(task), found.rules.model.motifs)
    assert share >= 0.8 and precision >= 0.6
    assert found.describe().endswith(found.rules.describe()) and "do not" not in found.describe()
    fresh = task.initial(2000, torch.Generator().manual_seed(5))
    error = found.rules.predict(fresh) - task.score(fresh)
    assert float(error.var()) < 0.4 * float(task.score(fresh).var())


@pytest.mark.parametrize("seed", [21, 22, 23])
def test_shuffled_scores_yield_no_rules_and_leave_the_search_as_it_is(seed: int) -> None:
    task = Ehrlich(**SMALL, seed=seed)
    table = task.visible()
    order = torch.randperm(len(table), generator=torch.Generator().manual_seed(seed))
    shuffled = Table(designs=table.designs, scores=table.scores[order])
    search = EvolutionarySearch(rounds=2, children=128, population=32)
    own = torch.Generator().manual_seed(seed)
    made = DistilledRuleSearch(search=search, designs=200).propose(task.space, shuffled, 8, generator=own)
    assert len(made.notes) == 1 and "do not hold on held-out rows" in made.notes[0] and made.notes[0].endswith("kept.")
    plain = search.propose(task.space, shuffled, 8, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(made.designs, plain.designs) and made.predicted is not None and plain.predicted is not None
    assert torch.equal(made.predicted, plain.predicted)


def test_rules_of_distilled_designs_lead_the_search() -> None:
    task = Ehrlich(**SMALL, seed=31)
    table = task.visible()
    plain = EvolutionarySearch(rounds=3, children=256, population=64, allowed=task.feasible)
    reports = []
    for search in (
        plain,
        DistilledRuleSearch(search=plain, designs=200, parents=False),
        DistilledRuleSearch(search=plain, designs=200),
        DistilledRuleSearch(search=plain, designs=200, weight=1.0),
    ):
        made = search.propose(task.space, table, 32, generator=torch.Generator().manual_seed(0))
        reports.append(evaluate_batch(task, made.designs))
        assert bool(task.feasible(made.designs).all())
    assert reports[1].median >= reports[0].median
    assert min(reports[2].median, reports[3].median) > reports[0].median and reports[2].best == 1.0
    nothing = DistilledRuleSearch(search=plain, weight=0.0)
    made = nothing.propose(task.space, table, 32, generator=torch.Generator().manual_seed(0))
    again = plain.propose(task.space, table, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(made.designs, again.designs)


@pytest.mark.parametrize(
    "distil",
    [
        BDI(num_steps=10),
        BDI(num_steps=10, forward=False),  # which predicts nothing
        BIB(embedding=SpacedPairs(), num_steps=4, members=1, train_steps=10, polish=None),
    ],
    ids=["BDI", "backward", "BIB"],
)
def test_any_search_that_distils_will_do(distil) -> None:
    task = nk_landscape(length=6, neighbours=1, alphabet="ACGT")
    search = DistilledRuleSearch(
        distil=distil, designs=64, search=EvolutionarySearch(rounds=4), discovery=Discovery(motifs=2)
    )
    made = search.propose(task.space, task.visible(), 16, generator=torch.Generator().manual_seed(0))
    report = evaluate_batch(task, made.designs)
    assert report.distinct == 16 and report.unseen == 1.0 and report.best > 0.9


def test_gains_are_those_of_the_outer_loss() -> None:
    """The hypergradient against finite differences of the outer loss with the inner solution written out."""
    task = nk_landscape(length=5, neighbours=1, alphabet="ABC", seed=2)
    table = task.visible()
    options = ExchangeDistillation(dtype=F64, embedding=SpacedPairs(), weight=0.3)
    stated = _state(options, task.space, table)
    vectors = stated.embedding(task.space, table.designs)
    targets = (table.scores - table.scores.mean()) / table.scores.std(correction=0)
    penalty = options.ridge * vectors.square().sum(-1).mean()
    gram = vectors @ vectors.mT
    dual = torch.linalg.solve(gram + penalty * torch.eye(len(gram), dtype=F64), targets)
    torch.testing.assert_close(stated.head, vectors.mT @ dual, rtol=1e-8, atol=1e-10)

    def loss(letters: torch.Tensor) -> float:
        v = stated.embedding.relaxed(task.space, letters)[0]
        alone = v * (options.target / ((1 + options.ridge) * v.square().sum()))  # the head trained on the design alone
        backward = 0.5 * (vectors @ alone - targets).square().mean()
        forward = 0.5 * (v @ stated.head - options.target).square()
        return float(options.weight * forward + (1 - options.weight) * backward)

    design = table.designs[3:4]
    gains, hot, step = stated.gains(design), task.space.one_hot(design), 1e-5
    assert bool((gains.gather(-1, design.unsqueeze(-1)) == 0).all())
    for place in range(5):
        for letter in range(3):
            move = torch.zeros_like(hot)
            move[0, place, letter] += step
            move[0, place, design[0, place]] -= step
            slope = (loss(hot - move) - loss(hot + move)) / (2 * step)
            assert float(gains[0, place, letter]) == pytest.approx(slope, rel=1e-6, abs=1e-7)


def test_exchanges_stay_within_what_is_known() -> None:
    task = Ehrlich(**SMALL, seed=4)
    table = task.visible()
    generator = torch.Generator().manual_seed(0)
    start = table.best(100)
    still = ExchangeDistillation(num_steps=0).propose(task.space, table, 100, generator=generator)
    assert torch.equal(still.designs, start)
    free = ExchangeDistillation(num_steps=3).propose(task.space, table, 100, generator=generator)
    changed = (free.designs != start).sum(-1)
    assert int(changed.max()) <= 3 and float(changed.double().mean()) > 2
    assert free.predicted is not None and still.predicted is not None
    assert float(free.predicted.mean()) > float(still.predicted.mean())
    never = never_seen(count_transitions(task.space, table.designs), 0.01)
    assert not bool(never[free.designs[:, :-1], free.designs[:, 1:]].any()) and int(never.sum()) > 10
    even = lambda designs: designs.sum(-1) % 2 == 0  # noqa: E731
    kept = ExchangeDistillation(num_steps=3, allowed=even).propose(task.space, table, 100, generator=generator).designs
    moved = (kept != start).any(-1)
    assert bool(even(kept[moved]).all()) and int(moved.sum()) > 50
    pool = torch.cat([table.designs[:50], task.initial(200, generator)])
    inside = ExchangeDistillation(num_steps=3).propose(task.space, table, 20, generator=generator, pool=pool).designs
    assert bool(torch.isin(task.space.number(inside), task.space.number(pool)).all())


def test_remeasured_rules_are_those_that_the_table_needs(generator: torch.Generator) -> None:
    space = CategoricalSpace(length=9, alphabet="ABCD")
    designs = space.random(3000, generator)
    truth = Motif(letters=(0, 2, 3), offsets=(0, 1, 4))
    level = truth.matches(designs).to(F64)
    longer, false = Motif(letters=(0, 2, 3, 1), offsets=(0, 1, 4, 6)), Motif(letters=(1, 1), offsets=(0, 2))
    rules = extract_rules(space, Table(designs=designs, scores=level), generator=generator)
    effects = AdditiveScale().fit([longer, false], designs, level)
    model = replace(rules.model, motifs=(longer, false), chances=(0.001, 0.002), effects=effects)
    wrong = replace(rules, model=model)
    noise = 0.1 * torch.randn(3000, generator=generator, dtype=F64)
    made = remeasured(wrong, Table(designs=designs, scores=5.0 + 2.0 * level + noise))
    assert made.model.motifs == (truth,) and made.model.chances == (0.001,) and made.rows == 3000
    assert isinstance(made.model.scale, AdditiveScale) and made.motifs[0].effect == pytest.approx(6.0, rel=0.1)
    few = level < 3  # no whole motif: its last letter adds what the one before did
    some = Table(designs=designs[few], scores=torch.exp(level[few] * 0.7))
    bold = remeasured(wrong, some)
    assert isinstance(bold.model.scale, LogScale) and bold.model.motifs == (truth,)
    whole = designs[level == 3]
    torch.testing.assert_close(bold.predict(whole), torch.full((len(whole),), 2.1, dtype=F64).exp(), rtol=1e-3, atol=0)
    random = Table(designs=designs, scores=torch.randn(3000, generator=generator, dtype=F64))
    assert not remeasured(wrong, random).model.motifs


def test_letters_are_remeasured_with_their_sign(generator: torch.Generator) -> None:
    space = CategoricalSpace(length=4, alphabet="ABC")
    designs = space.random(600, generator)
    one, two = (designs[:, 1] == 2).to(F64), (designs[:, 3] == 0).to(F64)
    rules = extract_rules(space, Table(designs=designs, scores=one - two), generator=generator)
    table = Table(designs=designs, scores=3.0 * one + 2.0 * two)
    letters = {(rule.position, rule.letter): rule.effect for rule in remeasured(rules, table).letters}
    assert letters[(1, 2)] == pytest.approx(3.0, abs=0.5) and (3, 0) not in letters


def test_small_and_constant_tables_have_no_rules(generator: torch.Generator) -> None:
    task = nk_landscape(length=5, neighbours=0)
    table = task.visible()
    few = Table(designs=table.designs[:10], scores=table.scores[:10])
    found = rules_by_distillation(task.space, few, distil=ExchangeDistillation(), generator=generator)
    assert found.rules is None and found.weight == 0 and not len(found.distilled)
    space = CategoricalSpace(length=6, alphabet="ABC")
    one = torch.zeros(100, dtype=F64)
    one[0] = 1.0  # all scores but one are equal: those of a part are constant
    flat = Table(designs=space.random(100, generator), scores=one)
    assert rules_by_distillation(space, flat, distil=ExchangeDistillation(), generator=generator).rules is None


def test_bad_options_are_refused(generator: torch.Generator) -> None:
    space = CategoricalSpace(length=3, alphabet="AB")
    table = Table(designs=space.everything(), scores=torch.arange(8, dtype=F64))
    refused: dict[str, Any] = {"weight": 2.0, "ridge": 0.0, "num_steps": -1, "rows": 1}
    for name, value in refused.items():
        with pytest.raises(ValueError, match=f"ExchangeDistillation: expected `{name}`"):
            ExchangeDistillation(**{name: value})
    model = SequenceModel(model=lambda texts: torch.zeros(len(texts), 1))
    with pytest.raises(TypeError, match="ExchangeDistillation: expected an `embedding` that takes probabilities"):
        ExchangeDistillation(embedding=model)
    with pytest.raises(ValueError, match="ExchangeDistillation: expected `count` of at most 8"):
        ExchangeDistillation(embedding=OneHot()).propose(space, table, 9, generator=generator)
    options: dict[str, Any] = {"designs": 2, "folds": 1, "level": 0.0}
    for name, value in options.items():
        with pytest.raises(ValueError, match=f"rules_by_distillation: expected `{name}`"):
            rules_by_distillation(space, table, distil=ExchangeDistillation(), generator=generator, **{name: value})
    with pytest.raises(ValueError, match="distilled_rules: expected `predicted` and `measured` together, got True and"):
        distilled_rules(space, table.designs, table.designs, predicted=table.scores, generator=generator)
    with pytest.raises(ValueError, match="DistilledRuleSearch: expected `weight` >= 0"):
        DistilledRuleSearch(weight=-1.0)
    with pytest.raises(ValueError, match="DistilledRuleSearch: expected `designs` >= 8"):
        DistilledRuleSearch(designs=2)
    with pytest.raises(ValueError, match="DistilledRuleSearch: expected `folds` >= 2"):
        DistilledRuleSearch(folds=1)
