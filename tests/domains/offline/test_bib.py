"""Bidirectional learning on embeddings: its terms by hand, both hypergradients by finite differences, and the polish."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor

from sciopt import hypergradcheck
from sciopt.bilevel import BilevelProblem
from sciopt.domains.offline import (
    BIB,
    AbstractEmbedding,
    CategoricalSpace,
    Ehrlich,
    EmbeddingSearch,
    EvolutionarySearch,
    KMer,
    LetterPairs,
    OneHot,
    Polish,
    SequenceModel,
    Table,
    evaluate_batch,
    hamming,
    nk_landscape,
    sequence_problem,
)
from sciopt.domains.offline.bib_problem import SequenceProblem
from sciopt.domains.offline.polish import single_mutants
from sciopt.domains.offline.search import without
from sciopt.hypergradients import ClosedForm, Unrolled
from tests.helpers import randn

F64 = torch.float64
TASK = nk_landscape(length=5, neighbours=2, alphabet="ABC", seed=1)
QUICK = BIB(num_steps=10, members=2, rows=200, train_steps=60)


def source(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def problem(embedding: AbstractEmbedding, straight_through: bool = False) -> SequenceProblem:
    return sequence_problem(
        TASK.space, TASK.visible(), embedding, ridge=1e-2, straight_through=straight_through, ensemble=(2, 200, 80),
        generator=source(),
    )  # fmt: skip


@pytest.mark.parametrize("embedding", [OneHot(), LetterPairs()], ids=["narrow", "wide"])
def test_both_terms_are_ridge_regressions_over_the_table(embedding, generator: torch.Generator) -> None:
    table = TASK.visible()
    rows = slice(None) if isinstance(embedding, OneHot) else slice(0, None, 4)  # 30 rows and 90 numbers
    table = Table(designs=table.designs[rows], scores=table.scores[rows])
    stated = sequence_problem(
        TASK.space, table, embedding, ridge=1e-2, straight_through=False, ensemble=(1, 20, 2), generator=source()
    )
    vectors = stated.embedding(TASK.space, table.designs)
    y = (table.scores - table.scores.mean()) / table.scores.std(correction=0)
    logits = randn(3, 5, 3, generator=generator)
    gram = vectors @ vectors.mT
    dual = torch.linalg.solve(gram + 1e-2 * gram.diagonal().mean() * torch.eye(len(y), dtype=F64), y)
    for k, vector in enumerate(stated.embedding.relaxed(TASK.space, logits.softmax(-1))):
        forward = 0.5 * ((vectors @ vector) @ dual - 10.0) ** 2
        alone = 10.0 * vector / (vector @ vector * 1.01)
        backward = 0.5 * ((vectors @ alone - y) ** 2).mean()
        torch.testing.assert_close(stated.forward(logits)[k], forward)
        torch.testing.assert_close(stated.backward(logits)[k], backward)


def test_the_backward_hypergradient_agrees_with_finite_differences(generator: torch.Generator) -> None:
    stated = problem(KMer(k=2))
    logits = randn(3, 5, 3, generator=generator)
    bilevel = BilevelProblem(inner=stated.inner, outer_loss=lambda alpha, x: stated.backward(x, alpha).sum())
    checked = hypergradcheck(
        bilevel, logits, init=torch.zeros(3, 1, dtype=F64), hypergradient=ClosedForm(stated.formula), rtol=1e-6
    )
    assert checked.max_error <= 1e-6
    given = logits.clone().requires_grad_()
    (backward,) = torch.autograd.grad(stated.backward(given).sum(), given)
    torch.testing.assert_close(stated.slopes(logits)[1], backward)


@pytest.mark.parametrize("t", [0, 3])
def test_hypergradients_of_weight_and_step_agree_with_finite_differences(t: int, generator: torch.Generator) -> None:
    stated = problem(KMer(k=2))
    logits = randn(4, 5, 3, generator=generator)
    state = {
        "logits": logits,
        "moment": randn(4, 5, 3, generator=generator) * (t > 0),
        "square": randn(4, 5, 3, generator=generator).square() * (t > 0),
    }
    outer = {"weight": torch.tensor([0.2, 0.5, 0.6, 0.9], dtype=F64), "log_step": randn(4, generator=generator) - 2}
    step = stated.step(state, t)
    found = stated.outer(step, state, outer)
    bilevel = BilevelProblem(inner=step, outer_loss=lambda moved, _: -stated.judged(moved["logits"]).sum())
    checked = hypergradcheck(bilevel, outer, init=state, hypergradient=Unrolled(), rtol=1e-6)
    assert checked.max_error <= 1e-6

    def value(weight: Tensor, log_step: Tensor) -> float:  # the step once more, by hand
        forward, backward = stated.slopes(logits)
        mixed = weight[:, None, None] * forward + (1 - weight)[:, None, None] * backward
        moment = (0.9 * state["moment"] + 0.1 * mixed) / (1 - 0.9 ** (t + 1))
        square = (0.999 * state["square"] + 0.001 * mixed**2) / (1 - 0.999 ** (t + 1))
        moved = logits - log_step.exp()[:, None, None] * moment / (square.sqrt() + 1e-8)
        vectors = stated.embedding.relaxed(TASK.space, moved.softmax(-1))
        return -float(stated.auxiliary.predict(vectors).mean(0).sum())

    for name, k in product(outer, range(4)):
        size = 1e-5
        up, down = ({n: v.clone() for n, v in outer.items()} for _ in range(2))
        up[name][k] += size
        down[name][k] -= size
        slope = (value(**up) - value(**down)) / (2 * size)
        assert abs(slope - float(found[name][k])) <= 1e-6 * max(1.0, float(found[name].abs().max()))
    assert float(found["log_step"].abs().min()) > 0 and (t == 0 or float(found["weight"].abs().max()) > 1e-6)


def test_straight_through_embeds_letters_and_keeps_the_slope(generator: torch.Generator) -> None:
    soft, hard = problem(OneHot()), problem(OneHot(), straight_through=True)
    logits = randn(3, 5, 3, generator=generator).requires_grad_()
    letters = hard.embedding(TASK.space, logits.argmax(-1))
    torch.testing.assert_close(hard.vectors(logits), letters)
    direction = randn(*letters.shape, generator=generator)
    slopes = [torch.autograd.grad((s.vectors(logits) * direction).sum(), logits)[0] for s in (soft, hard)]
    torch.testing.assert_close(slopes[0], slopes[1])  # linear in the letters: the same


def test_steps_lower_the_weighted_terms_and_designs_are_independent() -> None:
    stated = problem(OneHot())
    options = replace(QUICK, adaptive_weight=False, adaptive_step=False, step_size=0.02, num_steps=30)
    designs = TASK.visible().best(4)
    before, after = stated.start(designs, 0.6)["logits"], options.search(stated, designs)
    loss = [0.5 * stated.forward(x) + 0.5 * stated.backward(x) for x in (before, after)]
    assert bool((loss[1] < loss[0]).all())
    for search in (options, QUICK):
        whole = search.search(stated, designs)
        alone = torch.cat([search.search(stated, designs[k : k + 1]) for k in range(4)])
        torch.testing.assert_close(whole, alone, rtol=1e-7, atol=1e-7)


def test_what_is_adapted_raises_the_auxiliary_prediction() -> None:
    stated = problem(OneHot())
    designs = TASK.visible().best(8)
    fixed = replace(QUICK, adaptive_weight=False, adaptive_step=False)
    reached = [float(stated.judged(s.search(stated, designs)).mean()) for s in (fixed, QUICK)]
    assert reached[1] > reached[0] + 0.05


@pytest.mark.parametrize("embedding", [OneHot(), KMer(k=2)], ids=["one-hot", "k-mer"])
def test_batches_are_new_different_allowed_and_repeatable(embedding) -> None:
    table, search = TASK.visible(), replace(QUICK, embedding=embedding)
    made = search.propose(TASK.space, table, 32, generator=source())
    assert torch.equal(made.designs, search.propose(TASK.space, table, 32, generator=source()).designs)
    report = evaluate_batch(TASK, made.designs)
    assert report.distinct == 32 and report.unseen == 1.0 and made.predicted is not None
    assert bool((made.predicted[:-1] >= made.predicted[1:]).all())
    pool = TASK.space.everything()[::3]
    for polish in (Polish(), None):
        inside = replace(search, polish=polish).propose(TASK.space, table, 20, generator=source(), pool=pool).designs
        assert bool(torch.isin(TASK.space.number(inside), TASK.space.number(pool)).all())
    task = Ehrlich(states=8, length=10, motifs=2, motif_length=3, rows=200, seed=0)
    strict = replace(QUICK, polish=Polish(allowed=task.feasible))
    assert bool(task.feasible(strict.propose(task.space, task.visible(), 16, generator=source()).designs).all())


def test_the_polish_ends_where_no_mutation_improves(generator: torch.Generator) -> None:
    table = TASK.visible()
    values = randn(TASK.space.size, generator=generator)

    def predict(designs: Tensor) -> Tensor:
        return values[TASK.space.number(designs)]

    start = table.best(6)
    designs, predicted = Polish().improve(predict, TASK.space, table, start, 6, generator=source())
    torch.testing.assert_close(predict(designs), predicted)
    near = without(single_mutants(TASK.space, designs), torch.cat([table.designs, designs]))
    assert len(near) == 0 or float(predict(near).max()) <= float(predicted.min())
    additive = nk_landscape(length=5, neighbours=0, alphabet="ABC", seed=3)
    rest = without(additive.space.everything(), table.designs)
    best = rest[additive.score(rest).argsort(descending=True)[:6]]
    found, _ = Polish().improve(additive.score, additive.space, table, start, 6, generator=source())
    assert torch.equal(additive.score(found), additive.score(best))  # no design to be lost on the way
    few = Polish(mutants=5, rounds=3).improve(additive.score, additive.space, table, start, 2, generator=source())[0]
    assert len(without(few, table.designs)) == 2


def test_where_the_search_ends_on_forbidden_designs_the_visible_ones_are_polished() -> None:
    task = Ehrlich(states=8, length=10, motifs=2, motif_length=3, rows=200, seed=0)
    every = task.space.random(400, source())
    lost = every[~task.feasible(every)][:8]
    lost = lost[~task.feasible(single_mutants(task.space, lost)).reshape(len(lost), -1).any(-1)]
    assert len(lost) > 0
    found, predicted = Polish(allowed=task.feasible, rounds=3).improve(
        lambda designs: designs.double().mean(-1), task.space, task.visible(), lost, 16, generator=source()
    )
    assert bool(task.feasible(found).all()) and len(without(found, task.visible().designs)) == len(predicted) == 16


def test_single_mutants_are_all_at_distance_one(generator: torch.Generator) -> None:
    space = CategoricalSpace(length=3, alphabet="ABCD")
    designs = space.random(2, generator)
    for design in designs:
        mutants = single_mutants(space, design.unsqueeze(0))
        every = space.everything()
        expected = every[(hamming(every, design.unsqueeze(0)) == 1).squeeze(1)]
        assert torch.equal(torch.unique(mutants, dim=0), expected) and len(mutants) == 9


def test_black_boxes_lead_a_search_of_the_real_space() -> None:
    """A model that knows the landscape's own terms, as strings; a linear head on it is right."""
    task = nk_landscape(length=6, neighbours=0, alphabet="ABC", seed=5)

    def model(texts: list[str]) -> Tensor:
        return torch.tensor([[float(text[i] == a) for i in range(6) for a in "ABC"] for text in texts])

    search = EmbeddingSearch(
        embedding=SequenceModel(model=model), members=1, train_steps=20, evolution=EvolutionarySearch(rounds=10)
    )
    made = search.propose(task.space, task.visible(), 8, generator=source())
    report = evaluate_batch(task, made.designs)
    assert report.best == 1.0 and report.distinct == 8 and report.unseen == 1.0 and made.predicted is not None
    rest = without(task.space.everything(), task.visible().designs)
    assert report.median > float(evaluate_batch(task, rest).scores.quantile(0.9))
    with pytest.raises(ValueError, match="EmbeddingSearch: expected `members` >= 1, got 0"):
        EmbeddingSearch(members=0)


def test_bad_requests_say_what_was_expected() -> None:
    table = TASK.visible()
    with pytest.raises(TypeError, match="BIB: expected an `embedding` that takes probabilities .*, got SequenceModel"):
        BIB(embedding=SequenceModel(model=lambda texts: torch.zeros(len(texts), 1)))
    with pytest.raises(ValueError, match=r"BIB: expected `weight` in \[0, 1\], got 2"):
        BIB(weight=2.0)
    with pytest.raises(ValueError, match="BIB: expected `rows` >= 1, got 0"):
        BIB(rows=0)
    with pytest.raises(ValueError, match="Polish: expected `rounds` >= 1, got 0"):
        Polish(rounds=0)
    with pytest.raises(ValueError, match="expected `scores` that differ, got 8 times 1"):
        constant = Table(designs=table.designs[:8], scores=torch.ones(8, dtype=F64))
        QUICK.propose(TASK.space, constant, 2, generator=source())
    nothing = replace(QUICK, polish=Polish(allowed=lambda designs: torch.zeros(len(designs), dtype=torch.bool)))
    with pytest.raises(ValueError, match="Polish: expected `count` = 2 allowed designs outside the table, got 0"):
        nothing.propose(TASK.space, table, 2, generator=source())
