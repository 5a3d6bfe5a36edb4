"""Baselines and rankings: new, different, allowed designs, and the optimum where a surrogate cannot miss it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sciopt.domains.offline import (
    BDI,
    EvolutionarySearch,
    ExhaustiveRanking,
    GradientAscent,
    MutateTheBest,
    RandomSearch,
    ReverseComplement,
    Table,
    evaluate_batch,
    fit_surrogate,
    hamming,
    nk_landscape,
    train_ensemble,
)
from sciopt.domains.offline.search import nearest_allowed, without
from tests.helpers import randn

TASK = nk_landscape(length=5, neighbours=0, alphabet="ACGT", seed=2)


@pytest.mark.parametrize(
    "search",
    [RandomSearch(), MutateTheBest(), ExhaustiveRanking(), EvolutionarySearch(rounds=8)],
    ids=lambda s: type(s).__name__,
)
def test_batches_are_new_different_allowed_and_repeatable(search) -> None:
    table = TASK.visible()
    made = search.propose(TASK.space, table, 32, generator=torch.Generator().manual_seed(0))
    again = search.propose(TASK.space, table, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(made.designs, again.designs)
    report = evaluate_batch(TASK, made.designs)
    assert report.distinct == 32 and report.unseen == 1.0 and report.unscored == 0
    pool = TASK.space.everything()[::3]
    inside = search.propose(TASK.space, table, 32, generator=torch.Generator().manual_seed(0), pool=pool).designs
    assert bool(torch.isin(TASK.space.number(inside), TASK.space.number(pool)).all())
    assert len(without(inside, table.designs)) == 32


def test_ranking_finds_the_best_of_an_additive_landscape() -> None:
    table = TASK.visible()
    made = ExhaustiveRanking(dtype=torch.float64, rtol=None).propose(TASK.space, table, 64, generator=torch.Generator())
    report = evaluate_batch(TASK, made.designs)
    assert report.best == 1.0 and report.median > 0.8  # the median of all that is not visible is 0.6
    assert made.predicted is not None
    surrogate = fit_surrogate(TASK.space, table)
    torch.testing.assert_close(surrogate.predict(made.designs), made.predicted, rtol=1e-9, atol=1e-9)
    others = surrogate.predict(without(TASK.space.everything(), torch.cat([table.designs, made.designs])))
    assert float(others.max()) <= float(made.predicted.min())


@pytest.mark.parametrize(
    "search",
    [
        GradientAscent(train_steps=150, num_steps=60),
        GradientAscent(members=3, least=True, train_steps=150, num_steps=60),
    ],
    ids=["one", "least"],
)
def test_ascent_climbs_what_it_has_learned(search) -> None:
    table = TASK.visible()
    made = search.propose(TASK.space, table, 16, generator=torch.Generator().manual_seed(3))
    report = evaluate_batch(TASK, made.designs)
    assert report.median > evaluate_batch(TASK, table.best(16)).best
    assert made.predicted is not None and float(made.predicted.min()) > float(table.scores.mean())


def test_ensembles_are_their_members(generator: torch.Generator) -> None:
    x, y = randn(60, 3, generator=generator), randn(60, generator=generator)
    nets = train_ensemble(x, y, members=3, hidden=8, max_steps=40, generator=generator)
    assert nets.status.name == "MAX_STEPS" and nets.loss.shape == (3,)
    torch.testing.assert_close((nets.predict(x) - y).square().mean(-1), nets.loss)
    assert len(set(nets.loss.tolist())) == 3
    second = {name: value[1] for name, value in nets.weights.items()}
    hidden = torch.relu(torch.relu(x @ second["w0"] + second["b0"]) @ second["w1"] + second["b1"])
    torch.testing.assert_close((hidden @ second["w2"] + second["b2"]).squeeze(-1), nets.predict(x)[1])


def test_mutants_are_near_their_parents() -> None:
    table = TASK.visible()
    made = MutateTheBest(parents=4, mutations=1).propose(
        TASK.space, table, 8, generator=torch.Generator().manual_seed(1)
    )
    assert int(hamming(made.designs, table.best(4)).amin(-1).max()) == 1


def test_surrogates_interpolate_and_merge_duplicates() -> None:
    table = TASK.visible()
    double = Table(designs=table.designs.repeat(2, 1), scores=torch.cat([table.scores, table.scores + 0.2]))
    surrogate = fit_surrogate(TASK.space, double)
    assert len(surrogate.fit.points) == len(table)
    torch.testing.assert_close(surrogate.predict(table.designs), table.scores + 0.1, rtol=0, atol=1e-3)


def test_symmetric_designs_are_predicted_alike_and_proposed_once() -> None:
    space, strands = TASK.space, ReverseComplement()
    every = space.everything()
    assert torch.equal(strands.image(space, strands.image(space, every)), every)
    scores = TASK.score(every) + TASK.score(strands.image(space, every))
    low = torch.nonzero(scores <= scores.quantile(0.5)).squeeze(-1)
    table = Table(designs=every[low], scores=scores[low])
    made = ExhaustiveRanking(symmetry=strands).propose(space, table, 64, generator=torch.Generator()).designs
    image = space.number(strands.image(space, made))
    assert not bool(torch.isin(image[image != space.number(made)], space.number(made)).any())
    assert len(without(strands.image(space, made), table.designs)) == 64
    with pytest.raises(ValueError, match="to pair the letters 01"):
        strands.image(nk_landscape(length=2, neighbours=0).space, torch.zeros(1, 2, dtype=torch.int64))


def test_evolution_reaches_what_ranking_finds_and_keeps_to_constraints() -> None:
    table, space = TASK.visible(), TASK.space
    ranked = ExhaustiveRanking().propose(space, table, 32, generator=torch.Generator())
    search = EvolutionarySearch(rounds=20, children=512)
    made = search.propose(space, table, 32, generator=torch.Generator().manual_seed(0))
    assert len(without(made.designs, ranked.designs)) <= 1
    odd = replace(search, allowed=lambda designs: designs.sum(-1) % 2 == 1)
    constrained = odd.propose(space, table, 32, generator=torch.Generator().manual_seed(0))
    assert bool((constrained.designs.sum(-1) % 2 == 1).all())
    nothing = replace(search, rounds=2, allowed=lambda designs: designs.sum(-1) < 0)
    with pytest.raises(ValueError, match="got 0. Propose fewer"):
        nothing.propose(space, table, 32, generator=torch.Generator())


def test_small_tools() -> None:
    a = torch.tensor([[0, 1], [2, 3], [0, 1]])
    assert without(a, torch.tensor([[2, 3], [9, 9]])).tolist() == [[0, 1]]
    assert nearest_allowed(a, None) is a
    assert nearest_allowed(a, torch.tensor([[2, 2], [0, 0]])).tolist() == [[0, 0], [2, 2], [0, 0]]


def test_what_cannot_be_done_is_said(generator: torch.Generator) -> None:
    space = nk_landscape(length=2, neighbours=0).space
    full = Table(designs=space.everything(), scores=torch.arange(4.0, dtype=torch.float64))
    for search in (RandomSearch(), MutateTheBest(), ExhaustiveRanking()):
        with pytest.raises(ValueError, match="outside the table"):
            search.propose(space, full, 2, generator=generator)
    for search in (BDI(), GradientAscent()):
        with pytest.raises(ValueError, match="expected `count` of at most 4, the number of distinct visible designs"):
            search.propose(space, full, 5, generator=generator)
    with pytest.raises(ValueError, match="expected `count` >= 1, got 0"):
        BDI().propose(space, full, 0, generator=generator)
    with pytest.raises(
        ValueError, match="RandomSearch: expected a `pool` of at least `count` = 2 designs outside the table"
    ):
        few = Table(designs=full.designs[:3], scores=full.scores[:3])
        RandomSearch().propose(space, few, 2, generator=generator, pool=full.designs[2:])
    with pytest.raises(ValueError, match="expected `table` with at least two rows, got 1"):
        RandomSearch().propose(space, Table(designs=full.designs[:1], scores=full.scores[:1]), 1, generator=generator)


SEARCHES = [RandomSearch(), MutateTheBest(), ExhaustiveRanking(), EvolutionarySearch(), BDI(), GradientAscent()]
SPACE = TASK.space
BAD = {
    "expected `count` as a whole number, got 2.5": {"count": 2.5},
    "expected `count` as a whole number, got True": {"count": True},
    "expected `generator` as a torch.Generator, got None": {"generator": None},
    "expected `generator` as a torch.Generator, got 0": {"generator": 0},
    "expected `pool` as a tensor of designs, got list": {"pool": ["ACGTA"] * 9},
    "a `pool` of at least `count` = 4 designs, got 2": {"pool": SPACE.everything()[:2].repeat(9, 1)},
    "a `pool` of at least `count` = 4 designs, got 0": {"pool": SPACE.everything()[:0]},
    "of shape .n, 5., got .9, 4. torch.int64": {"pool": torch.zeros(9, 4, dtype=torch.int64)},
    "integers in .0, 4. of shape .n, 5., got .9, 5. torch.int64 from 7 to 7": {"pool": torch.full((9, 5), 7)},
    "got .9, 5. torch.float64": {"pool": torch.zeros(9, 5, dtype=torch.float64)},
    "torch.int64 from -1 to 2": {"table": Table(designs=SPACE.everything()[:40] - 1, scores=torch.arange(40.0))},
    "of shape .n, 5., got .40, 3.": {"table": Table(designs=SPACE.everything()[:40, :3], scores=torch.arange(40.0))},
    "a `table` with two different designs at least, got one 5 times": {
        "table": Table(designs=SPACE.everything()[:1].repeat(5, 1), scores=torch.arange(5.0))
    },
}


PAIRS = [(s, m) for s in SEARCHES for m in BAD if "generator" not in BAD[m] or not isinstance(s, ExhaustiveRanking)]


@pytest.mark.parametrize(
    ("search", "message"), PAIRS, ids=lambda value: type(value).__name__
)  # a ranking draws nothing
def test_bad_requests_are_said_before_any_work(search, message: str) -> None:
    given = {"table": TASK.visible(), "count": 4, "generator": torch.Generator().manual_seed(0), "pool": None} | BAD[
        message
    ]
    table, count = given.pop("table"), given.pop("count")
    with pytest.raises((ValueError, TypeError), match=message):
        search.propose(SPACE, table, count, **given)
