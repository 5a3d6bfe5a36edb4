"""Rankings by committee: what its members are for, how their ranks are joined, and the contract of searches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import pytest
import torch
from torch import Tensor

from sciopt.domains.offline import (
    AMINO_ACIDS,
    AbstractMember,
    CategoricalSpace,
    CommitteeRanking,
    LogLetters,
    ReverseComplement,
    Table,
    WideNetwork,
    evaluate_batch,
    nk_landscape,
)
from sciopt.domains.offline.committee import letter_similarity
from sciopt.domains.offline.search import without

TASK = nk_landscape(length=5, neighbours=0, alphabet="ACGT", seed=2)


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Fixed(AbstractMember):
    """A member that says what it is told."""

    values: Tensor

    def fit(self, space: CategoricalSpace, table: Table, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
        return lambda designs: self.values[space.number(designs)]


def test_batches_keep_the_contract() -> None:
    table, search = TASK.visible(), CommitteeRanking()
    made = search.propose(TASK.space, table, 32, generator=torch.Generator().manual_seed(0))
    again = search.propose(TASK.space, table, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(made.designs, again.designs)
    report = evaluate_batch(TASK, made.designs)
    assert report.distinct == 32 and report.unseen == 1.0 and report.best == 1.0 and report.median > 0.8
    pool = TASK.space.everything()[::3]
    inside = search.propose(TASK.space, table, 32, generator=torch.Generator(), pool=pool).designs
    assert bool(torch.isin(TASK.space.number(inside), TASK.space.number(pool)).all())
    strands = ReverseComplement()
    made = CommitteeRanking(symmetry=strands).propose(TASK.space, table, 32, generator=torch.Generator()).designs
    image = TASK.space.number(strands.image(TASK.space, made))
    assert not bool(torch.isin(image[image != TASK.space.number(made)], TASK.space.number(made)).any())
    assert len(without(strands.image(TASK.space, made), table.designs)) == 32


def test_ranks_are_joined_by_their_geometric_mean() -> None:
    space = CategoricalSpace(length=1, alphabet="abcdef")
    table = Table(designs=torch.tensor([[4], [5]]), scores=torch.tensor([0.0, 1.0], dtype=torch.float64))
    one = torch.tensor([9.0, 8.0, 7.0, 6.0, 0.0, 0.0], dtype=torch.float64)  # ranks 1 2 3 4
    two = torch.tensor([0.0, 3.0, 2.0, 5.0, 0.0, 0.0], dtype=torch.float64)  # ranks 4 2 3 1; products 4 4 9 4
    committee = CommitteeRanking(members=(Fixed(values=one), Fixed(values=two)))
    made = committee.propose(space, table, 4, generator=torch.Generator())
    assert made.designs.flatten().tolist() == [0, 1, 3, 2]  # ties in lexicographic order
    assert made.predicted is not None and made.predicted.tolist() == [4.5, 5.5, 5.5, 4.5]


def test_logarithms_reach_beyond_the_data_where_scores_are_products() -> None:
    """All mutants of one design with at most two changes; scores multiply over five positions. Five such landscapes."""
    space = CategoricalSpace(length=5, alphabet="abcd")
    every = space.everything()
    found = 0
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        factors = torch.rand(5, 4, generator=generator, dtype=torch.float64).mul(2).exp()
        scores = factors.gather(1, every.mT).prod(0)
        known = (every != factors.argsort(-1)[:, 1]).sum(-1) <= 2
        table = Table(designs=every[known], scores=scores[known])
        assert float(table.scores.max()) < 0.6 * float(scores.max())
        predict = LogLetters(ridge=1e-6).fit(space, table, generator)
        best = predict(every[~known]).argsort(descending=True)[:10]
        truth = scores[~known].argsort(descending=True)[:10]
        found += len(set(best.tolist()) & set(truth.tolist()))
    assert found >= 38  # of 50, where 1 is chance


def test_large_tables_are_thinned_and_keep_their_best() -> None:
    table = TASK.visible()
    member = LogLetters(rows=40)
    predict = member.fit(TASK.space, table, torch.Generator().manual_seed(0))
    best = table.best(20)
    torch.testing.assert_close(predict(best), TASK.score(best), rtol=0.02, atol=0)  # they were fitted
    other = member.fit(TASK.space, table, torch.Generator().manual_seed(1))
    assert not torch.equal(predict(table.designs), other(table.designs))


def test_alike_letters_are_those_of_like_properties() -> None:
    space = CategoricalSpace(length=1, alphabet=AMINO_ACIDS)
    alike = letter_similarity(space, None, 0.5)
    place = {letter: k for k, letter in enumerate(AMINO_ACIDS)}
    assert float(alike[place["I"], place["V"]]) > 0.5 > float(alike[place["I"], place["D"]])
    assert torch.equal(alike, alike.mT) and float(torch.linalg.eigvalsh(alike).min()) > -1e-12
    assert torch.equal(letter_similarity(TASK.space, None, 0.5), torch.eye(4, dtype=torch.float64))  # ACGT is DNA
    two = CategoricalSpace(length=1, alphabet="xy")
    given = letter_similarity(two, {"x": (0.0,), "y": (3.0,)}, 1.0)  # standardised: -1 and 1, at distance 2
    assert float(given[0, 1]) == pytest.approx(torch.exp(torch.tensor(-2.0)).item(), rel=1e-6)


def test_what_cannot_be_done_is_said() -> None:
    table = TASK.visible()
    with pytest.raises(ValueError, match="expected `members` with a member"):
        CommitteeRanking(members=())
    with pytest.raises(ValueError, match=r"expected `share` in \(0, 1\), got 0"):
        LogLetters(share=0.0)
    with pytest.raises(ValueError, match="expected `ridge` > 0"):
        WideNetwork(ridge=0.0)
    with pytest.raises(ValueError, match="expected `properties` of all letters 'ACGT', got none for 'C'"):
        member = LogLetters(properties={"A": (1.0,)})
        CommitteeRanking(members=(member,)).propose(TASK.space, table, 4, generator=torch.Generator())
    flat = Table(designs=table.designs, scores=torch.ones_like(table.scores))
    with pytest.raises(ValueError, match="expected `scores` that differ"):
        CommitteeRanking().propose(TASK.space, flat, 4, generator=torch.Generator())
    full = Table(designs=TASK.space.everything(), scores=TASK.score(TASK.space.everything()))
    with pytest.raises(ValueError, match="designs outside the table, got 0. Propose fewer"):
        CommitteeRanking().propose(TASK.space, full, 4, generator=torch.Generator())
