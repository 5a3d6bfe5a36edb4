"""Conservative models, adaptive sampling, CMA-ES: batches keep the contract, and each does what it is named for."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
import torch

from sciopt.domains.offline import (
    CMAES,
    CbAS,
    Conservative,
    Table,
    evaluate_batch,
    fit_relaxation,
    nk_landscape,
    train_conservative,
    train_ensemble,
)
from sciopt.domains.offline.baselines.adaptive_sampling import _drawn, _logarithm
from sciopt.domains.offline.relaxation import standardised

TASK = nk_landscape(length=5, neighbours=0, alphabet="ACGT", seed=2)
SMALL_CBAS = CbAS(members=2, hidden=16, train_steps=100, rounds=10, draws=300)
SMALL_CMAES = CMAES(members=2, hidden=16, train_steps=100, generations=25)
SMALL_CONSERVATIVE = Conservative(hidden=16, train_steps=100, ascent_steps=10, ascent_step_size=0.5)


@pytest.mark.parametrize("search", [SMALL_CBAS, SMALL_CMAES], ids=["CbAS", "CMAES"])
def test_batches_are_new_different_allowed_and_repeatable(search) -> None:
    pytest.importorskip("cma")
    table = TASK.visible()
    before = torch.get_rng_state()
    made = search.propose(TASK.space, table, 32, generator=torch.Generator().manual_seed(0))
    again = search.propose(TASK.space, table, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(made.designs, again.designs)
    other = search.propose(TASK.space, table, 32, generator=torch.Generator().manual_seed(1))
    assert not torch.equal(made.designs, other.designs)
    assert torch.equal(torch.get_rng_state(), before)  # all chance comes from the generator
    report = evaluate_batch(TASK, made.designs)
    assert report.distinct == 32 and report.unseen == 1.0
    assert report.median > 0.65  # random designs that are not visible: 0.6; the visible ones end at 0.48
    pool = TASK.space.everything()[::3]
    inside = search.propose(TASK.space, table, 32, generator=torch.Generator().manual_seed(0), pool=pool).designs
    assert bool(torch.isin(TASK.space.number(inside), TASK.space.number(pool)).all())


def test_conservative_networks_promise_less_where_ascent_leads() -> None:
    table = TASK.visible()
    relaxation = fit_relaxation(TASK.space, table, dtype=torch.float32)
    points = relaxation.points(table.designs)
    targets = standardised(table.scores)[0].float()
    starts = relaxation.points(table.best(16))

    def rise(weight: float) -> float:
        net = train_conservative(
            points, targets, starts, weight=weight, allowance=0.0, ascent_steps=8, hidden=16, max_steps=80,
            generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
        moved = starts.clone().requires_grad_()
        for _ in range(8):
            (slope,) = torch.autograd.grad(net.predict(moved)[0].sum(), moved)
            moved = (moved + slope).detach().requires_grad_()
        return float((net.predict(moved)[0].mean() - net.predict(starts)[0].mean()).detach())

    free, held = rise(0.0), rise(5.0)
    assert free > 1.0 and held < 0.5 * free


def test_a_conservative_model_without_penalty_is_an_ordinary_network() -> None:
    """The same start, the same loss, the same Adam: the same weights as `train_ensemble`, up to rounding."""
    x = torch.linspace(-1, 1, 30, dtype=torch.float64).unsqueeze(1)
    y = torch.sin(3 * x).squeeze(1)
    plain = train_ensemble(x, y, hidden=8, max_steps=40, generator=torch.Generator().manual_seed(4))
    bare = train_conservative(
        x, y, x[:2], weight=0.0, hidden=8, max_steps=40, ascent_steps=2, generator=torch.Generator().manual_seed(4)
    )
    torch.testing.assert_close(bare.predict(x), plain.predict(x), rtol=1e-9, atol=1e-9)


def test_conservative_searches_climb() -> None:
    table = TASK.visible()
    made = SMALL_CONSERVATIVE.propose(TASK.space, table, 16, generator=torch.Generator().manual_seed(3))
    again = SMALL_CONSERVATIVE.propose(TASK.space, table, 16, generator=torch.Generator().manual_seed(3))
    assert torch.equal(made.designs, again.designs)
    assert evaluate_batch(TASK, made.designs).median > evaluate_batch(TASK, table.best(16)).median
    assert made.predicted is not None and bool(torch.isfinite(made.predicted).all())


def test_adaptive_sampling_draws_by_the_frequencies_it_keeps(generator: torch.Generator) -> None:
    frequencies = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]], dtype=torch.float64)
    designs = _drawn(frequencies, 20_000, generator)
    share = torch.stack([(designs == letter).double().mean(0) for letter in range(3)], -1)
    torch.testing.assert_close(share, frequencies, rtol=0, atol=0.015)  # four standard deviations
    assert _logarithm(frequencies, torch.tensor([[0, 2]])).exp().item() == pytest.approx(0.56)
    space = nk_landscape(length=2, neighbours=0, alphabet="abc").space
    weights = torch.tensor([1.0, 3.0], dtype=torch.float64)
    fitted = CbAS(smoothing=0.3)._fitted(space, torch.tensor([[0, 1], [2, 1]]), weights)
    torch.testing.assert_close(fitted[0], torch.tensor([0.275, 0.1, 0.625], dtype=torch.float64))


def test_what_cannot_be_done_is_said(monkeypatch: pytest.MonkeyPatch, generator: torch.Generator) -> None:
    table = TASK.visible()
    for search in (SMALL_CBAS, SMALL_CONSERVATIVE):
        with pytest.raises(ValueError, match="expected `count` >= 1, got 0"):
            search.propose(TASK.space, table, 0, generator=generator)
        flat = Table(designs=table.designs, scores=torch.ones_like(table.scores))
        with pytest.raises(ValueError, match="expected `scores` that differ"):
            search.propose(TASK.space, flat, 4, generator=generator)
    for make in (lambda: CbAS(quantile=1.0), lambda: CMAES(population=1), lambda: Conservative(weight=-1.0)):
        with pytest.raises(ValueError, match="expected `(quantile|population|weight)`"):
            make()
    with pytest.raises(ValueError, match="expected `rounds` >= 1, got 0"):
        replace(SMALL_CBAS, rounds=0)
    monkeypatch.setitem(sys.modules, "cma", None)
    with pytest.raises(ImportError, match="CMAES: expected the package `cma`, got none. Install it"):
        SMALL_CMAES.propose(TASK.space, table, 4, generator=generator)
