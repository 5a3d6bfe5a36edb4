"""Policies, leads and searches: exact expectations, repeatable batches, and that proxies are refitted where a search goes."""

from __future__ import annotations

import itertools

import pytest
import torch

from sciopt.domains.offline import CategoricalSpace, evaluate_batch, nk_landscape
from sciopt.domains.offline.search import without
from sciopt.domains.offline.tuning import (
    Autofocus,
    AutoregressivePolicy,
    EvolutionLead,
    FactorisedPolicy,
    GlobalModel,
    GradientLead,
    GuidedSearch,
    LocalModel,
    PolicyLead,
    SmoothModel,
    policy_gradient_loss,
    proxy_data,
)

TASK = nk_landscape(length=6, neighbours=0, alphabet="ABC", seed=2)
SMALL = LocalModel(centres=2, rows=32, neighbours=8, num_steps=3)
LEADS = [
    EvolutionLead(children=64, generations=2),
    GradientLead(starts=32, num_steps=10, step_size=0.4),
    PolicyLead(centres=8, num_steps=4),
    PolicyLead(policy=AutoregressivePolicy(mutations=2.0), centres=8, num_steps=4),
]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def perturbed(policy, space: CategoricalSpace) -> dict[str, torch.Tensor]:
    draw = seeded(4)
    start = policy.start(space, torch.zeros(1, space.length, dtype=torch.int64))
    return {
        name: (value + 0.7 * torch.randn(value.shape, generator=draw, dtype=torch.float64)).requires_grad_()
        for name, value in start.items()
    }


@pytest.mark.parametrize("policy", [FactorisedPolicy(), AutoregressivePolicy()], ids=lambda p: type(p).__name__)
def test_policy_gradients_are_unbiased(policy) -> None:
    """The estimate averaged over every batch of three designs, each with its probability, is the gradient itself."""
    space = CategoricalSpace(length=2, alphabet="AB")
    parameters = perturbed(policy, space)
    every = space.everything()
    reward = torch.tensor([0.3, -1.0, 2.0, 0.7], dtype=torch.float64)
    entropy = 0.4
    logs = policy.log_probability(parameters, every.unsqueeze(0))[0]
    torch.testing.assert_close(logs.exp().sum(), torch.tensor(1.0, dtype=torch.float64))
    exact = torch.autograd.grad(
        -(logs.exp() * (reward - entropy * logs)).sum(), list(parameters.values()), retain_graph=True
    )
    mean = [torch.zeros_like(value) for value in parameters.values()]
    for batch in itertools.product(range(4), repeat=3):
        rows = torch.tensor(batch)
        share = float(logs[rows].sum().exp().detach())
        loss = policy_gradient_loss(
            policy.log_probability(parameters, every[rows].unsqueeze(0)), reward[rows].unsqueeze(0), entropy
        )
        for total, gradient in zip(mean, torch.autograd.grad(loss, list(parameters.values())), strict=True):
            total += share * gradient
    for found, expected in zip(mean, exact, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("policy", [FactorisedPolicy(), AutoregressivePolicy()], ids=lambda p: type(p).__name__)
def test_samples_follow_the_probabilities(policy) -> None:
    space = CategoricalSpace(length=3, alphabet="AB")
    parameters = perturbed(policy, space)
    drawn = policy.sample(parameters, 20_000, seeded(1))
    assert drawn.shape == (1, 20_000, 3) and drawn.dtype == torch.int64
    count = torch.bincount(space.number(drawn[0]), minlength=8).double()
    expected = 20_000 * policy.log_probability(parameters, space.everything().unsqueeze(0))[0].exp().detach()
    chi = ((count - expected).square() / expected).sum()
    assert float(chi) < 24.3  # 0.1 % of the chi-squared distribution with 7 degrees of freedom
    assert torch.equal(drawn, policy.sample(parameters, 20_000, seeded(1)))


def test_policies_start_around_their_centres() -> None:
    space = CategoricalSpace(length=8, alphabet="ABCD")
    centres = space.random(3, seeded(2))
    for policy in (FactorisedPolicy(mutations=1.5), AutoregressivePolicy(mutations=1.5)):
        drawn = policy.sample(policy.start(space, centres), 4000, seeded(3))
        away = (drawn != centres.unsqueeze(1)).sum(-1).double().mean(-1)
        torch.testing.assert_close(away, torch.full((3,), 1.5, dtype=torch.float64), rtol=0, atol=0.1)


def test_one_sample_has_no_baseline() -> None:
    with pytest.raises(ValueError, match="expected `reward` with two or more samples"):
        policy_gradient_loss(torch.zeros(1, 1), torch.zeros(1, 1), 0.0)


@pytest.mark.parametrize("lead", LEADS, ids=["evolution", "gradient", "policy", "autoregressive"])
def test_batches_are_new_different_allowed_and_repeatable(lead) -> None:
    table = TASK.visible()
    search = GuidedSearch(model=SMALL, lead=lead, rounds=2)
    made = search.propose(TASK.space, table, 12, generator=seeded())
    assert torch.equal(made.designs, search.propose(TASK.space, table, 12, generator=seeded()).designs)
    assert len(torch.unique(made.designs, dim=0)) == 12 and len(without(made.designs, table.designs)) == 12
    assert made.predicted is not None and bool((made.predicted[:-1] >= made.predicted[1:]).all())
    assert evaluate_batch(TASK, made.designs).median > evaluate_batch(TASK, table.best(12)).best
    pool = TASK.space.everything()[::2]
    inside = GuidedSearch(model=SMALL, lead=lead, rounds=2, allowed=lambda designs: designs[:, 0] != 1).propose(
        TASK.space, table, 4, generator=seeded(), pool=pool
    )
    assert bool(torch.isin(TASK.space.number(inside.designs), TASK.space.number(pool)).all())
    assert not bool((inside.designs[:, 0] == 1).any())


@pytest.mark.parametrize(
    "model", [GlobalModel(), SMALL, Autofocus(), SmoothModel(parents=4, num_steps=3)], ids=lambda m: type(m).__name__
)
def test_every_model_leads_to_the_optimum_of_an_additive_landscape(model) -> None:
    search = GuidedSearch(model=model, lead=EvolutionLead(children=128), rounds=2)
    made = search.propose(TASK.space, TASK.visible(), 16, generator=seeded())
    assert evaluate_batch(TASK, made.designs).best == 1.0


def test_what_a_fit_has_to_say_reaches_the_user() -> None:
    search = GuidedSearch(model=Autofocus(fraction=0.9), lead=EvolutionLead(children=128), rounds=2)
    made = search.propose(TASK.space, TASK.visible(), 8, generator=seeded())
    assert any("effective" in note for note in made.notes) and len(set(made.notes)) == len(made.notes)


def test_gradients_of_predictors_are_those_of_their_values() -> None:
    data = proxy_data(TASK.space, TASK.visible())
    proxy = SMALL.fit(data, data.designs, seeded())
    away = 0.3 * torch.randn(2, data.points.shape[1], generator=seeded(1), dtype=torch.float64)  # the kernel has kinks
    points = (data.relaxation.points(data.designs[5:7]) + away).requires_grad_()
    assert torch.autograd.gradcheck(proxy.values, points, atol=1e-6, rtol=1e-6)
    points = data.relaxation.points(data.designs[5:7])
    torch.testing.assert_close(
        proxy.values(points) * data.scale + data.centre,
        proxy.predict(data.designs[5:7]),
        rtol=1e-12,
        atol=1e-12,
    )


def test_too_few_designs_are_refused() -> None:
    with pytest.raises(ValueError, match="expected `count` = 5 allowed designs outside the table"):
        GuidedSearch(model=GlobalModel(), rounds=1, allowed=lambda designs: designs.sum(-1) < 1).propose(
            TASK.space, TASK.visible(), 5, generator=seeded()
        )
