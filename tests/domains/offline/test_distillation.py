"""Matching of gradients, distributions and trajectories: by formulas where there are any, and by finite differences."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sciopt import hypergradcheck, hypergradient
from sciopt.domains.offline import BDI, Polish, Table, bidirectional_problem, evaluate_batch, nk_landscape
from sciopt.domains.offline.distillation import (
    CosineDistance,
    Distillation,
    DistributionMatching,
    GradientMatching,
    KernelMatching,
    MatchingProblem,
    NetworkFamily,
    SquaredDistance,
    TrajectoryMatching,
    matching_lesson,
    tilted,
)
from sciopt.domains.offline.distillation.finishing import letter_by_letter
from sciopt.domains.offline.distillation.networks import features, loss_gradient, predict
from sciopt.kernels import NTK, DenseNetwork
from tests.helpers import randn

F64 = torch.float64
TASK = nk_landscape(length=5, neighbours=2, alphabet="ABC", seed=1)
LESSON = matching_lesson(TASK.space, TASK.visible(), target=3.0, temperature=2.0)
SMALL = NetworkFamily(count=3, width=6)
LINEAR = NetworkFamily(count=2, hidden_layers=0, output_scale=0.0)  # predicts zero
COSINE, SQUARED = CosineDistance(), SquaredDistance()
KERNEL = KernelMatching(bdi=BDI(kernel=NTK(DenseNetwork(hidden_layers=2)), ridge=1e-3))
MATCHINGS = {
    "gradients": GradientMatching(networks=SMALL),
    "gradients, sizes too": GradientMatching(networks=SMALL, distance=SQUARED),
    "gradients along training": GradientMatching(networks=SMALL, num_steps=2, step_size=0.05),
    "distributions": DistributionMatching(networks=SMALL, distance=SQUARED),
    "distributions, directions": DistributionMatching(networks=SMALL, distance=COSINE),
    "trajectories": TrajectoryMatching(networks=SMALL, num_steps=3, expert_steps=7, latest_start=4),
    "trajectories, directions": TrajectoryMatching(networks=SMALL, num_steps=1, expert_steps=7, distance=COSINE),
    "kernels": KERNEL,
}


def stated(name: str) -> MatchingProblem:
    return MATCHINGS[name].state(LESSON, generator=torch.Generator().manual_seed(0))


def starts(name: str, sets: int, generator: torch.Generator) -> Tensor:
    size = 1 if name == "kernels" else 2
    return LESSON.points[: sets * size].unflatten(0, (sets, size)) + 0.3 * randn(sets, size, 10, generator=generator)


def test_gradients_in_factors_are_those_of_autograd(generator: torch.Generator) -> None:
    weights = NetworkFamily(count=3, hidden_layers=2, width=4, output_scale=1.0).draw(
        5, generator=generator, like=torch.zeros((), dtype=F64)
    )
    points, labels, shares = randn(2, 6, 5, generator=generator), randn(6, generator=generator), torch.rand(6).to(F64)
    ours = loss_gradient(weights, points, labels, shares)
    for s in range(2):
        for k in range(3):
            own = [value[0, k].clone().requires_grad_() for value in weights.values()]
            hidden = points[s]
            for layer in own[:-1]:
                hidden = torch.nn.functional.silu(hidden @ layer[:-1] + layer[-1])
            output = (hidden @ own[-1][:-1] + own[-1][-1]).squeeze(-1)
            torch.testing.assert_close(predict(weights, points)[s, k], output)
            torch.testing.assert_close(features(weights, points)[s, k], hidden)
            expected = torch.autograd.grad((0.5 * shares * (output - labels) ** 2).sum(), own)
            for mine, theirs in zip(ours.values(), expected, strict=True):
                torch.testing.assert_close(mine[s, k], theirs, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", MATCHINGS)
def test_hypergradients_agree_with_finite_differences(name: str, generator: torch.Generator) -> None:
    problem = stated(name)
    outer = problem.outer(starts(name, 2, generator))
    check = hypergradcheck(
        problem.problem(), outer, init=problem.start, hypergradient=problem.method, rtol=1e-6, eps=0.05
    )
    assert check.max_error <= 1e-6


@pytest.mark.parametrize("name", MATCHINGS)
def test_sets_of_a_batch_are_independent_and_the_search_descends(name: str, generator: torch.Generator) -> None:
    problem = stated(name)
    start = starts(name, 3, generator)
    whole = problem.search(start, 8)
    alone = torch.cat([problem.search(start[k : k + 1], 8) for k in range(3)])
    torch.testing.assert_close(whole, alone, rtol=1e-8, atol=1e-9)
    assert bool((problem.loss(whole) < problem.loss(start)).all())


def test_linear_gradient_matching_has_its_closed_form(generator: torch.Generator) -> None:
    """At zero weights the loss of a design x labelled t has the gradient -t (x, 1); the data's is -sum w y (x, 1)."""
    problem = GradientMatching(networks=LINEAR, distance=SQUARED).state(LESSON, generator=generator)
    pull = LESSON.shares * LESSON.targets
    known = (pull @ LESSON.points / LESSON.target)[None, None]
    start = problem.outer(known)
    hg = hypergradient(problem.problem(), start, init=problem.start, hypergradient=problem.method)
    assert float(hg.grad["designs"].abs().max()) < 1e-12
    bias, total = (LESSON.target - pull.sum()) ** 2, (pull @ LESSON.points).square().sum() + pull.sum() ** 2
    torch.testing.assert_close(hg.value, bias / total)
    found = problem.search(known + 0.5 * randn(1, 1, 10, generator=generator), 150, 0.03)
    torch.testing.assert_close(found, known, rtol=0, atol=1e-3)


def test_matching_identity_features_finds_the_weighted_mean(generator: torch.Generator) -> None:
    problem = DistributionMatching(networks=LINEAR, distance=SQUARED).state(LESSON, generator=generator)
    weights = tilted(LESSON.shares, LESSON.targets, LESSON.target)
    torch.testing.assert_close(weights @ LESSON.targets, torch.tensor(3.0, dtype=F64))
    found = problem.search(LESSON.points[None, :4], 200, 0.08)
    torch.testing.assert_close(found.mean(1)[0], weights @ LESSON.points, rtol=0, atol=1e-3)
    assert float(problem.loss(found)) < 1e-6
    assert float(found.std(1).max()) > 0.3  # the set is not one design


def test_tilted_weights_are_the_nearest(generator: torch.Generator) -> None:
    shares = torch.softmax(randn(7, generator=generator), 0)
    targets = randn(7, generator=generator)
    rows = torch.stack([torch.ones(7, dtype=F64), targets])
    system = torch.zeros(9, 9, dtype=F64)  # stationarity of sum (w - p)^2 / p under both constraints
    system[:7, :7], system[:7, 7:], system[7:, :7] = torch.diag(2 / shares), rows.mT, rows
    right = torch.cat([torch.full((7,), 2.0, dtype=F64), torch.tensor([1.0, 4.0], dtype=F64)])
    torch.testing.assert_close(tilted(shares, targets, 4.0), (torch.linalg.inv(system) @ right)[:7])


def test_one_linear_step_of_a_trajectory_has_its_closed_form(generator: torch.Generator) -> None:
    """The student goes to a t (x, 1), the expert, in one step, to b sum w y (x, 1)."""
    options = TrajectoryMatching(networks=LINEAR, num_steps=1, expert_steps=1, expert_step_size=0.7, step_size=0.2)
    problem = options.state(LESSON, generator=generator)
    pull = LESSON.shares * LESSON.targets
    expert = 0.7 * torch.cat([pull @ LESSON.points, pull.sum()[None]])
    design = randn(1, 1, 10, generator=generator)
    student = 0.2 * 3.0 * torch.cat([design.flatten(), torch.ones(1, dtype=F64)])
    expected = (student - expert).square().sum() / expert.square().sum()
    torch.testing.assert_close(problem.loss(design), expected[None])
    best = problem.outer((expert[:-1] / (0.2 * 3.0))[None, None])
    hg = hypergradient(problem.problem(), best, init=problem.start, hypergradient=problem.method)
    assert float(hg.grad["designs"].abs().max()) < 1e-12
    slope = 2 * (0.6 * (0.6 - expert[-1])) / expert.square().sum()  # of the step's logarithm: the bias alone is off
    torch.testing.assert_close(hg.grad["log_step"], slope[None])


def test_kernel_matching_is_bidirectional_learning() -> None:
    problem = stated("kernels")
    lesson = matching_lesson(TASK.space, TASK.visible(), target=3.0)
    options = replace(KERNEL.bdi, target=3.0, dtype=F64)
    expected = bidirectional_problem(options, TASK.space, TASK.visible())
    torch.testing.assert_close(problem.loss(lesson.points[:4].unsqueeze(1)), expected.loss(lesson.points[:4]))


SEARCHES = [
    Distillation(matching=GradientMatching(networks=SMALL), num_steps=15),
    Distillation(matching=DistributionMatching(networks=SMALL, distance=SQUARED), set_size=5, target=3.0, num_steps=15),
    Distillation(matching=TrajectoryMatching(networks=SMALL, expert_steps=20), num_steps=10, polish=Polish(rounds=3)),
    Distillation(matching=KernelMatching(), num_steps=10),
]


@pytest.mark.parametrize("search", SEARCHES, ids=lambda s: type(s.matching).__name__)
def test_batches_are_new_different_allowed_and_repeatable(search: Distillation) -> None:
    table = TASK.visible()
    odd = replace(search, allowed=lambda designs: designs[:, 0] != designs[:, 1])
    table = Table(designs=table.designs[odd.allowed(table.designs)], scores=table.scores[odd.allowed(table.designs)])  # type: ignore[misc]
    one, two = (odd.propose(TASK.space, table, 24, generator=torch.Generator().manual_seed(0)) for _ in range(2))
    assert torch.equal(one.designs, two.designs)
    assert bool((one.designs[:, 0] != one.designs[:, 1]).all()) and len(torch.unique(one.designs, dim=0)) == 24
    assert not bool(torch.isin(TASK.space.number(one.designs), TASK.space.number(table.designs)).any())
    assert (one.predicted is not None) == (search.polish is not None)
    pool = TASK.space.everything()[::2]
    inside = search.propose(TASK.space, table, 24, generator=torch.Generator().manual_seed(0), pool=pool).designs
    assert bool(torch.isin(TASK.space.number(inside), TASK.space.number(pool)).all())


@pytest.mark.parametrize("matching", [GradientMatching(), DistributionMatching(), TrajectoryMatching()])
def test_what_is_distilled_scores_high_where_letters_add_up(matching) -> None:
    task = nk_landscape(length=6, neighbours=0, alphabet="ACGT", seed=2)
    table = task.visible()
    part = Table(designs=table.designs[::4], scores=table.scores[::4])
    made = Distillation(matching=matching, num_steps=30).propose(
        task.space, part, 32, generator=torch.Generator().manual_seed(0)
    )
    report = evaluate_batch(task, made.designs)
    assert evaluate_batch(task, part.best(32)).best < 0.5  # what was visible; the median of all designs is 0.55
    assert report.best > 0.9 and report.median > 0.65


def test_letters_are_set_one_by_one_within_what_is_allowed(generator: torch.Generator) -> None:
    space = TASK.space
    start = torch.zeros(50, 5, dtype=torch.int64)
    wanted, gain = space.random(50, generator), randn(50, 5, generator=generator)
    allowed = lambda designs: (designs[:, :-1] - designs[:, 1:]).abs().amax(-1) < 2  # noqa: E731
    assert letter_by_letter(start, wanted, gain, None) is wanted
    made = letter_by_letter(start, wanted, gain, allowed)
    assert bool(allowed(made).all()) and bool(((made == wanted) | (made == start)).all())
    fine = allowed(wanted)
    assert bool((made != wanted)[~fine].any(-1).all()) and int((made == wanted).sum()) > int((start == wanted).sum())


def test_bad_requests_say_what_was_expected(generator: torch.Generator) -> None:
    table = TASK.visible()
    flat = Table(designs=table.designs, scores=torch.ones(len(table), dtype=F64))
    with pytest.raises(ValueError, match="expected `scores` that differ"):
        Distillation().propose(TASK.space, flat, 2, generator=generator)
    with pytest.raises(ValueError, match="Distillation: expected a `pool` of at least `count` = 5 designs, got 2"):
        Distillation().propose(TASK.space, table, 5, generator=generator, pool=table.designs[:2])
    with pytest.raises(ValueError, match="Distillation: expected `count` of at most"):
        Distillation().propose(TASK.space, table, len(table) + 1, generator=generator)
    with pytest.raises(ValueError, match="KernelMatching: expected `set_size` of 1, got 2"):
        Distillation(matching=KernelMatching(), set_size=2).propose(TASK.space, table, 4, generator=generator)
    nothing = Distillation(num_steps=1, allowed=lambda designs: designs.sum(-1) < 0)
    with pytest.raises(ValueError, match="got 0 after many mutations"):
        nothing.propose(TASK.space, table, 4, generator=generator)
    for wrong, message in (
        (lambda: Distillation(temperature=0.0), "Distillation: expected `temperature` > 0 or None, got 0.0"),
        (lambda: Distillation(set_size=0), "Distillation: expected `set_size` >= 1, got 0"),
        (lambda: NetworkFamily(count=0), "NetworkFamily: expected `count` >= 1, got 0"),
        (lambda: TrajectoryMatching(num_steps=0), "TrajectoryMatching: expected `num_steps` to be an int >= 1, got 0"),
        (lambda: TrajectoryMatching(step_size=0.0), "TrajectoryMatching: expected `step_size` > 0, got 0.0"),
        (lambda: GradientMatching(num_steps=-1), "GradientMatching: expected `num_steps` to be an int >= 0, got -1"),
    ):
        with pytest.raises(ValueError, match=message):
            wrong()
