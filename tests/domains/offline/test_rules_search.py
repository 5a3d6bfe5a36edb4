"""Designs composed of motifs: all motifs in, feasible, new, and the optimum where motifs are all there is."""

from __future__ import annotations

import pytest
import torch

from sciopt.domains.offline import (
    Ehrlich,
    EvolutionarySearch,
    Motif,
    MotifSearch,
    evaluate_batch,
    extract_rules,
    nk_landscape,
)
from sciopt.domains.offline.rules import compose, composed_designs
from sciopt.domains.offline.rules.compose import filled, layouts

TASK = Ehrlich(states=8, length=12, motifs=2, motif_length=3, rows=1000)


def test_the_whole_batch_is_optimal_without_a_word_on_the_task() -> None:
    table = TASK.visible()
    made = MotifSearch().propose(TASK.space, table, 32, generator=torch.Generator().manual_seed(0))
    again = MotifSearch().propose(TASK.space, table, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(made.designs, again.designs)
    report = evaluate_batch(TASK, made.designs)
    assert report.best == report.median == 1.0 and report.unscored == 0
    assert report.distinct == 32 and report.unseen == 1.0 and report.diversity > 0.3
    assert made.notes[0].startswith("2 motifs that may stand anywhere")
    assert made.predicted is not None and bool((made.predicted >= table.scores.max()).all())


def test_constraints_and_pools_are_kept() -> None:
    table = TASK.visible()
    odd = MotifSearch(allowed=lambda designs: TASK.feasible(designs) & (designs.sum(-1) % 2 == 1))
    made = odd.propose(TASK.space, table, 16, generator=torch.Generator().manual_seed(0))
    assert bool((made.designs.sum(-1) % 2 == 1).all()) and evaluate_batch(TASK, made.designs).median == 1.0
    pool = torch.cat([made.designs, TASK.initial(200, torch.Generator().manual_seed(1))])
    inside = MotifSearch(fallback=EvolutionarySearch(rounds=2, children=64, population=16))
    batch = inside.propose(TASK.space, table, 4, generator=torch.Generator().manual_seed(0), pool=pool)
    assert bool(torch.isin(TASK.space.number(batch.designs), TASK.space.number(pool)).all())


def test_without_motifs_the_fallback_searches() -> None:
    task = nk_landscape(length=5, neighbours=1, alphabet="ACGT", seed=1)
    search = MotifSearch(fallback=EvolutionarySearch(rounds=3, children=256))
    made = search.propose(task.space, task.visible(), 32, generator=torch.Generator().manual_seed(0))
    report = evaluate_batch(task, made.designs)
    assert (
        report.distinct == 32
        and report.unseen == 1.0
        and report.median > evaluate_batch(task, task.visible().best(32)).best
    )
    assert made.notes == ("no motif stands out from chance: the fallback alone searched",)


def test_layouts_are_all_that_fit() -> None:
    every = torch.ones(3, 3, dtype=torch.bool)
    one, two = Motif(letters=(0, 1), offsets=(0, 1)), Motif(letters=(1, 2), offsets=(0, 1))
    placed = layouts([one, two], 3, every, torch.Generator().manual_seed(0))
    assert placed.tolist() == [[0, 1, 2]]  # they may share a letter, but not a place
    assert len(layouts([one, two], 4, every, torch.Generator().manual_seed(0))) == 2 + 2
    closed = every.clone()
    closed[1, 2] = False
    assert not len(layouts([one, two], 4, closed, torch.Generator().manual_seed(0)))
    far = Motif(letters=(0, 0), offsets=(0, 5))
    assert not len(layouts([far], 4, every, torch.Generator().manual_seed(0)))


def test_gaps_are_filled_by_the_conditional_chain() -> None:
    chain = torch.tensor([[0.0, 2.0, 1.0], [1.0, 0.0, 1.0], [1.0, 1.0, 0.0]])
    partial = torch.tensor([[0, -1, -1, 0]]).repeat(6000, 1)
    made = filled(partial, chain, torch.Generator().manual_seed(0))
    share = {(1, 2): 2.0, (2, 1): 1.0}  # weights of 0-1-2-0 and 0-2-1-0; 0-1-0-0 and others are forbidden
    inner = [tuple(row) for row in made[:, 1:3].tolist()]
    assert set(inner) == set(share)
    assert inner.count((1, 2)) / len(inner) == pytest.approx(2 / 3, abs=0.03)


def test_composed_designs_hold_their_motifs_or_the_strongest() -> None:
    task = Ehrlich(states=12, length=20, motifs=3, motif_length=4, seed=4)
    motifs = [Motif(letters=tuple(a), offsets=tuple(b)) for a, b in map(task.motif, range(3))]
    made = compose(motifs, 20, task.transitions, 50, torch.Generator().manual_seed(0))
    assert len(made) == 50 and bool((task.score(made) == 1.0).all())
    rules = extract_rules(TASK.space, TASK.visible(), generator=torch.Generator().manual_seed(0))
    assert float(TASK.score(composed_designs(rules, 20, torch.Generator().manual_seed(0))).min()) == 1.0
    short = Motif(letters=(0,) * 9, offsets=tuple(range(9)))
    clash = Motif(letters=(1,) * 9, offsets=tuple(range(9)))
    assert not len(compose([short, clash], 12, torch.ones(2, 2), 4, torch.Generator().manual_seed(0)))


def test_bad_options_are_refused() -> None:
    with pytest.raises(ValueError, match="MotifSearch: expected `candidates` >= 1, got 0"):
        MotifSearch(candidates=0)
