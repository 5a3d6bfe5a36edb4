"""Bidirectional learning: its loss by hand, its hypergradient by finite differences, and the published protocol."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sciopt import hypergradcheck
from sciopt.domains.offline import (
    BDI,
    Polish,
    Table,
    bidirectional_problem,
    evaluate_batch,
    fit_relaxation,
    nk_landscape,
    tf_bind_8,
)
from sciopt.domains.offline.polish import single_mutants
from sciopt.domains.offline.search import without
from sciopt.hypergradients import ClosedForm
from sciopt.kernels import NTK, DenseNetwork, gram
from tests.data_helpers import require_data
from tests.helpers import randn

F64 = torch.float64
TASK = nk_landscape(length=5, neighbours=2, alphabet="ABC", seed=1)
OPTIONS = BDI(kernel=NTK(DenseNetwork(hidden_layers=2)), ridge=1e-3, dtype=F64, num_steps=20)


def twice(table: Table) -> Table:
    """A table with rows that come twice, as the palindromes of TF-Bind-8."""
    return Table(
        designs=torch.cat([table.designs, table.designs[:7]]), scores=torch.cat([table.scores, table.scores[:7]])
    )


def test_the_relaxation_is_the_published_one() -> None:
    space, table = TASK.space, twice(TASK.visible())
    relaxation = fit_relaxation(space, table)
    smooth = torch.log(0.6 * space.one_hot(table.designs) + 0.4 / 3)
    logits = (smooth - smooth[..., :1])[..., 1:].reshape(len(table), 10)
    points = relaxation.points(table.designs)
    torch.testing.assert_close(points, (logits - logits.mean(0)) / logits.std(0, correction=0))
    assert torch.equal(relaxation.designs(points), table.designs)
    assert torch.equal(
        relaxation.designs(points + 0.1 * randn(*points.shape, generator=torch.Generator())), table.designs
    )


@pytest.mark.parametrize(("forward", "backward"), [(True, False), (False, True), (True, True)])
def test_the_loss_is_the_definition_over_all_rows(forward: bool, backward: bool, generator: torch.Generator) -> None:
    table = twice(TASK.visible())
    options = replace(OPTIONS, forward=forward, backward=backward)
    stated = bidirectional_problem(options, TASK.space, table)
    x = fit_relaxation(TASK.space, table).points(table.designs)
    y = (table.scores - table.scores.mean()) / table.scores.std(correction=0)
    design = randn(2, 10, generator=generator)
    expected = torch.zeros(2, dtype=F64)
    for k in range(2):
        K = gram(options.kernel, torch.cat([design[k : k + 1], x]))
        if backward:
            explained = K[1:, 0] * 10.0 / (K[0, 0] * (1 + 1e-3))
            expected[k] += 0.5 * ((explained - y) ** 2).mean()
        if forward:
            ridge = 1e-3 * K.diagonal()[1:].mean()
            score = K[0, 1:] @ torch.linalg.solve(K[1:, 1:] + ridge * torch.eye(len(y), dtype=F64), y)
            expected[k] += 0.5 * (score - 10.0) ** 2
    torch.testing.assert_close(stated.loss(design), expected, rtol=1e-9, atol=1e-10)


def test_the_hypergradient_agrees_with_finite_differences(generator: torch.Generator) -> None:
    stated = bidirectional_problem(OPTIONS, TASK.space, TASK.visible())
    start = stated.points[:3] + 0.1 * randn(3, 10, generator=generator)
    method = ClosedForm(stated.formula)
    init = torch.zeros(3, 1, dtype=F64)
    assert hypergradcheck(stated.problem(), start, init=init, hypergradient=method, rtol=1e-6).max_error <= 1e-6


def test_designs_of_a_batch_are_independent_and_single_precision_agrees() -> None:
    stated = bidirectional_problem(OPTIONS, TASK.space, TASK.visible())
    start = stated.points[:4]
    whole = stated.search(start, 20)
    alone = torch.cat([stated.search(start[k : k + 1], 20) for k in range(4)])
    torch.testing.assert_close(whole, alone, rtol=1e-9, atol=1e-9)
    before, after = stated.loss(start), stated.loss(whole)
    assert bool((after < before).all())
    single = bidirectional_problem(replace(OPTIONS, dtype=torch.float32), TASK.space, TASK.visible())
    torch.testing.assert_close(single.search(start.float(), 20).double(), whole, rtol=0, atol=0.02)


def test_proposals_predict_their_scores_and_keep_to_the_pool(generator: torch.Generator) -> None:
    table = TASK.visible()
    made = BDI(num_steps=10).propose(TASK.space, table, 8, generator=generator)
    assert made.designs.shape == (8, 5) and made.predicted is not None and made.predicted.shape == (8,)
    pool = TASK.space.random(20, generator)
    kept = BDI(num_steps=10, forward=False).propose(TASK.space, table, 8, generator=generator, pool=pool)
    assert kept.predicted is None
    assert bool(torch.isin(TASK.space.number(kept.designs), TASK.space.number(pool)).all())


@pytest.mark.parametrize("forward", [True, False])
def test_a_polish_leaves_no_better_neighbour_and_none_twice(forward: bool, generator: torch.Generator) -> None:
    table, options = TASK.visible(), replace(OPTIONS, forward=forward, polish=Polish())
    made = options.propose(TASK.space, table, 12, generator=generator).designs
    stated = bidirectional_problem(options, TASK.space, table)
    assert len(without(made, table.designs)) == 12
    near = without(single_mutants(TASK.space, made), torch.cat([table.designs, made]))
    assert float(stated.merit(near).max()) <= float(stated.merit(made).min())
    unpolished = replace(options, polish=None).propose(TASK.space, table, 12, generator=generator).designs
    passed = without(unpolished, torch.cat([table.designs, made]))
    assert bool((stated.merit(passed) <= stated.merit(made).min()).all())
    pool = TASK.space.everything()[::2]
    inside = options.propose(TASK.space, table, 12, generator=generator, pool=pool).designs
    assert bool(torch.isin(TASK.space.number(inside), TASK.space.number(pool)).all())


def test_bad_requests_say_what_was_expected(generator: torch.Generator) -> None:
    table = TASK.visible()
    with pytest.raises(ValueError, match="expected `forward` or `backward` to be True"):
        BDI(forward=False, backward=False)
    with pytest.raises(ValueError, match="expected `scores` that differ, got 8 times 1"):
        BDI().propose(
            TASK.space, Table(designs=table.designs[:8], scores=torch.ones(8, dtype=F64)), 2, generator=generator
        )
    with pytest.raises(ValueError, match="expected a `pool` of at least `count` = 5 designs, got 2"):
        BDI().propose(TASK.space, table, 5, generator=generator, pool=table.designs[:2])


def test_published_protocol_on_a_sample_of_tf_bind_8() -> None:
    """The whole table takes minutes: it is a bar of `make validate`. A small part of it tells a broken protocol apart."""
    require_data("offline/tf_binding/SIX6_REF_R1_8mers.txt")
    task = tf_bind_8()
    visible = task.visible()
    best = visible.scores.argsort(descending=True)
    rows = torch.cat(
        [best[:128], best[128:][torch.randperm(32_770, generator=torch.Generator().manual_seed(0))[:2000]]]
    )
    part = Table(designs=visible.designs[rows], scores=visible.scores[rows])
    made = BDI(num_steps=50).propose(task.space, part, 128, generator=torch.Generator())
    report = evaluate_batch(task, made.designs)
    assert report.best > 0.9 and report.median > 0.47  # the start has 0.439 and 0.439
    assert report.distinct > 100
