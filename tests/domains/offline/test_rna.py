"""RNA tasks against ViennaRNA called by hand, and by the thermodynamics of two states."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import pytest
import torch

from sciopt.domains.offline import (
    AbstractFoldScore,
    EvolutionarySearch,
    FoldStability,
    RandomSearch,
    RNATask,
    TargetBinding,
    TargetFold,
    evaluate_batch,
)

vienna = pytest.importorskip("RNA")
HAIRPIN, SHAPE = "GGGGAAAACCCC", "((((....))))"


@final
@dataclass(frozen=True, kw_only=True)
class AllGood(AbstractFoldScore):
    """Every sequence is as good as the best."""

    def length(self, wanted: int | None) -> int:
        return 6

    def values(self, sequences: Sequence[str]) -> list[float]:
        return [1.0] * len(sequences)

    def top(self, length: int) -> float:
        return 1.0


def test_a_hairpin_has_the_energy_of_the_package() -> None:
    task = RNATask(goal=FoldStability(), length=12, rows=50)
    shape, energy = vienna.fold(HAIRPIN)
    assert shape == SHAPE and energy == pytest.approx(-5.4, abs=0.051)  # published stacks -3.3 each and a loop of 4.5
    designs = task.space.encode([HAIRPIN, "A" * 12])
    assert task.score(designs).tolist() == [-energy, 0.0]
    assert task.bounds == (0.0, -energy)  # the task's own good design
    assert evaluate_batch(task, designs).best == 1.0


def test_a_wanted_fold_is_scored_by_its_probability() -> None:
    task = RNATask(goal=TargetFold(structure=SHAPE), rows=50)
    energy, ensemble = vienna.fold(HAIRPIN)[1], vienna.pf_fold(HAIRPIN)[1]
    share = math.exp(-(energy - ensemble) / (1.98717e-3 * 310.15))
    got = task.score(task.space.encode([HAIRPIN, "A" * 12, "GGGCAAAAGCCC"]))
    assert float(got[0]) == pytest.approx(share, rel=1e-4) and float(got[1]) < 1e-6
    assert 0 < float(got[2]) < 1 and task.bounds == (0.0, 1.0)


def test_binding_is_the_mean_of_the_duplexes() -> None:
    targets = ("GGGGAUUCGCAGG", "CUGACUAAGGCCA")
    task = RNATask(goal=TargetBinding(targets=targets), length=8, rows=50)
    design = "CCUGCGAA"  # pairs with the first target's end
    energies = [vienna.duplexfold(design, target).energy for target in targets]
    assert float(task.score(task.space.encode([design]))[0]) == pytest.approx(-sum(energies) / 2)
    alone = RNATask(goal=TargetBinding(targets=targets[:1]), length=8, rows=50)
    assert 0.5 < float(alone.score(alone.space.encode([design]))[0]) / alone.bounds[1] <= 1


def test_what_is_visible_is_low_distinct_and_repeatable() -> None:
    task = RNATask(goal=FoldStability(), length=16, rows=100, ceiling=0.4, seed=3)
    table = task.visible()
    assert len(table) == 100 == len(torch.unique(table.designs, dim=0))
    torch.testing.assert_close(task.score(table.designs), table.scores)
    again = RNATask(goal=FoldStability(), length=16, rows=100, ceiling=0.4, seed=3).visible()
    assert torch.equal(again.designs, table.designs)
    assert not torch.equal(RNATask(goal=FoldStability(), length=16, rows=100, seed=4).visible().designs, table.designs)
    assert 0.2 * task.bounds[1] < float(table.scores.max()) <= 0.4 * task.bounds[1]


def test_a_search_finds_more_stable_folds_than_chance() -> None:
    task = RNATask(goal=FoldStability(), length=14, rows=300)
    table = task.visible()
    made = EvolutionarySearch(rounds=8, children=256).propose(
        task.space, table, 16, generator=torch.Generator().manual_seed(0)
    )
    blind = RandomSearch().propose(task.space, table, 16, generator=torch.Generator().manual_seed(0))
    assert evaluate_batch(task, made.designs).median > evaluate_batch(task, blind.designs).median + 0.2


def test_what_cannot_be_done_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for shape in ("((..)", "())(", "((x))", ""):
        with pytest.raises(ValueError, match=r"expected `structure` of matching \( \) and dots"):
            TargetFold(structure=shape)
    with pytest.raises(ValueError, match="expected `length` 12, that of `structure`, got 10"):
        RNATask(goal=TargetFold(structure=SHAPE), length=10)
    with pytest.raises(ValueError, match="expected `targets` sequences of ACGU"):
        TargetBinding(targets=("ACGT",))
    with pytest.raises(ValueError, match="expected `length` at most 4, the shortest target, got 6"):
        RNATask(goal=TargetBinding(targets=("ACGU",)), length=6)
    with pytest.raises(ValueError, match="expected `rows` at least 2 and few enough"):
        RNATask(goal=FoldStability(), length=5, rows=1000)
    with pytest.raises(
        ValueError, match="expected `rows` = 20 designs with scores up to `ceiling` = 0.5 of the best, got 0"
    ):
        RNATask(goal=AllGood(), rows=20).visible()
    monkeypatch.setitem(sys.modules, "RNA", None)
    with pytest.raises(ImportError, match="RNATask: expected the package ViennaRNA, got none. Install it"):
        RNATask(goal=FoldStability())
