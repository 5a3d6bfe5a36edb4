"""Proteins with few that work: alike letters, shifted logarithms, and choices by what a batch is for."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sciopt import hypergradcheck
from sciopt.domains.offline import CategoricalSpace
from sciopt.domains.offline.committee import letter_similarity
from sciopt.domains.offline.embeddings import AMINO_ACID_PROPERTIES
from sciopt.domains.offline.proposal import CategoryColumn, DesignSpace, NumberColumn, SequenceColumn, calibrated
from sciopt.domains.offline.proposal.calibrated import choose_model
from sciopt.domains.offline.proposal.evidence import Evidence, Learned, held_out_together
from sciopt.domains.offline.proposal.families import Gaussian
from sciopt.domains.offline.proposal.letters import SimilarLetters, has_amino_acids
from sciopt.domains.offline.proposal.model import Observations
from sciopt.domains.offline.proposal.purpose import Purpose
from sciopt.domains.offline.proposal.score_transforms import (
    PlainScores,
    ShiftedLogarithm,
    YeoJohnson,
    fit_shifted_logarithm,
    suggested_transforms,
)
from sciopt.hypergradients import ClosedForm
from sciopt.kernels import RBF, AlikeLetters, gram
from sciopt.solution import Status
from tests.helpers import randn

AMINO = "ACDEFGHIKLMNPQRSTVWY"
PROTEIN = DesignSpace((SequenceColumn(name="s", length=4, alphabet=AMINO),))
MIXED = DesignSpace(
    (
        SequenceColumn(name="s", length=3, alphabet="ILDE", gap="-"),
        CategoryColumn(name="c", levels=("u", "v", "w")),
        NumberColumn(name="x", low=0, high=1),
    )
)


def observed(codes: Tensor, scores: Tensor) -> Observations:
    return Observations(codes=codes, scores=scores, mass=torch.ones_like(scores), rows=torch.arange(len(scores)))


def points(space: DesignSpace, codes: Tensor, weights: Tensor) -> Tensor:
    features = space.features(codes)
    return SimilarLetters().points(space, features, weights[space.feature_group], features.mean(0))


def fitness(codes: Tensor, generator: torch.Generator) -> Tensor:
    """Products of what each letter contributes by its hydropathy and volume: a few are far above the rest."""
    table = torch.tensor([AMINO_ACID_PROPERTIES[letter] for letter in AMINO], dtype=torch.float64)
    table = (table - table.mean(0)) / table.std(0)
    slopes = torch.tensor([0.9, -0.6, 0.8, 0.4], dtype=torch.float64)
    total = (table[codes.long()][..., 0] * slopes).sum(-1) + table[codes.long()[:, 1], 2]
    return (2 * total + 0.5 * randn(len(codes), generator=generator)).exp()


def test_equal_weights_make_the_product_kernel_of_alike_letters(generator: torch.Generator) -> None:
    codes = PROTEIN.random(20, generator)
    strength = 0.1 / 0.9  # of a share of 0.9
    made = points(PROTEIN, codes, torch.full((4,), math.sqrt(strength * 2 * 4), dtype=torch.float64))
    letters = CategoricalSpace(length=4, alphabet=AMINO)
    known = AlikeLetters(similarity=letter_similarity(letters, None, 0.5), share=0.9)
    torch.testing.assert_close(
        gram(SimilarLetters().kernel, made), gram(known, letters.one_hot(codes.long()).flatten(1))
    )


def test_mixed_columns_multiply_with_gaps_and_the_gaussian_factors_of_the_others(generator: torch.Generator) -> None:
    codes = torch.tensor(
        [[0, 1, 4, 0, 0.2], [1, 1, 4, 0, 0.2], [0, 4, 4, 0, 0.2], [0, 1, 4, 2, 0.7]], dtype=torch.float64
    )
    weights = torch.tensor([1.0, 2.0, 3.0, 1.5, 2.5], dtype=torch.float64)
    kernel = gram(SimilarLetters().kernel, points(MIXED, codes, weights))
    torch.testing.assert_close(kernel.diagonal(), torch.ones(4, dtype=torch.float64))
    column = MIXED.columns[0]
    assert isinstance(column, SequenceColumn)
    alike = SimilarLetters().similarity(column)
    assert float(alike[0, 1]) > 0.8 > 0.1 > float(alike[0, 2]) and alike[4].tolist() == [0, 0, 0, 0, 1]
    one, two = 1.0 / 6, 4.0 / 6  # weights squared over twice the length
    expected = [(1 + one * float(alike[0, 1])) / (1 + one), 1 / (1 + two), math.exp(-0.5 * (1.5**2 + (2.5 * 0.5) ** 2))]
    torch.testing.assert_close(kernel[0, 1:], torch.tensor(expected, dtype=torch.float64))
    many = MIXED.random(60, generator)
    assert float(torch.linalg.eigvalsh(gram(SimilarLetters().kernel, points(MIXED, many, weights))).min()) > -1e-10


def test_letters_of_other_alphabets_are_not_alike() -> None:
    for alphabet, protein in (("ACGT", False), ("ACGU", False), ("ACGTN", False), ("ABCDEF", False), ("AVLIF*", True)):
        column = SequenceColumn(name="s", length=2, alphabet=alphabet)
        assert has_amino_acids(DesignSpace((column,))) == protein
        same = torch.equal(SimilarLetters().similarity(column), torch.eye(len(alphabet), dtype=torch.float64))
        assert same != protein
    assert not has_amino_acids(DesignSpace((NumberColumn(name="x", low=0, high=1),)))


def test_hypergradients_of_alike_letters_agree_with_differences(generator: torch.Generator) -> None:
    codes, family = MIXED.random(16, generator), SimilarLetters()
    targets = randn(16, generator=generator)
    task = Evidence(
        kernel=family.kernel, points=lambda weights: points(MIXED, codes, weights), targets=targets,
        mass=torch.ones_like(targets), typical=torch.full((5,), 1.5, dtype=torch.float64),
    )  # fmt: skip
    start = {"weights": task.typical.log() + 0.2, "ridge": torch.tensor(-2.0, dtype=torch.float64)}
    hypergradient = ClosedForm(task.formula)
    check = hypergradcheck(task.problem(), start, init=torch.zeros_like(targets), hypergradient=hypergradient)
    assert check.max_error < 1e-6


def test_shifted_logarithms_go_back_know_their_slope_and_respect_equal_scores() -> None:
    transform = ShiftedLogarithm(low=-1.0, offset=0.3)
    scores = torch.linspace(-0.9, 9.0, 40, dtype=torch.float64, requires_grad=True)
    latent = transform.forward(scores)
    torch.testing.assert_close(transform.inverse(latent), scores)
    slope = torch.autograd.grad(latent.sum(), scores)[0]
    torch.testing.assert_close(transform.log_slope(scores), slope.log())
    normal = torch.special.ndtri(torch.linspace(0.001, 0.999, 800, dtype=torch.float64))
    for width, low, high in (
        (1.0, 1e-3, 3e-3),
        (0.5, 3e-2, 1e-1),
    ):  # logarithms from -3.1 to 3.1 widths, shifted to zero
        skewed = (width * normal).exp() - math.exp(-3.09 * width)
        assert low <= 1.01 * fit_shifted_logarithm(skewed).offset / float(skewed.max() - skewed.min()) <= 1.03 * high
    dead = torch.cat([torch.zeros(500, dtype=torch.float64), torch.tensor([0.125, 0.25, 1.0], dtype=torch.float64)])
    assert fit_shifted_logarithm(dead).offset == 0.125  # nothing is resolved below it
    with pytest.raises(ValueError, match="`offset` > 0"):
        ShiftedLogarithm(low=0.0, offset=0.0)


def test_shifted_logarithms_are_tried_where_they_fit(generator: torch.Generator) -> None:
    bell = randn(300, generator=generator)
    assert not any(isinstance(found, ShiftedLogarithm) for found in suggested_transforms(bell))
    dead = torch.cat([bell[:200].abs() * 0.01, (2 * bell[200:]).exp()])
    kinds = [type(found) for found in suggested_transforms(dead - dead.min())]
    assert kinds == [PlainScores, YeoJohnson, ShiftedLogarithm]


def test_rows_held_out_together_are_predicted_as_by_a_refit(generator: torch.Generator) -> None:
    x, y = randn(9, 2, generator=generator), randn(9, generator=generator)
    matrix = gram(RBF(), x) + 0.1 * torch.eye(9, dtype=torch.float64)
    sets = torch.tensor([[0, 3, 4], [8, 0, 1]])
    means = held_out_together(torch.linalg.cholesky(matrix), y, sets)
    for mean, rows in zip(means, sets.tolist(), strict=True):
        rest = [k for k in range(9) if k not in rows]
        expected = matrix[rows][:, rest] @ torch.linalg.inv(matrix[rest][:, rest]) @ y[rest]
        torch.testing.assert_close(mean, expected)


@pytest.mark.parametrize("maximize", [True, False])
def test_purpose_takes_the_kernel_that_finds_the_unseen_best(maximize: bool, generator: torch.Generator) -> None:
    space = DesignSpace((NumberColumn(name="a", low=0, high=1), NumberColumn(name="b", low=0, high=1)))
    codes = space.random(400, generator)
    scores = (codes.sum(-1) + 0.02 * randn(400, generator=generator)) * (1 if maximize else -1)

    def learned(weight: float, ridge: float) -> Learned:
        weights = torch.full((2,), weight, dtype=torch.float64)
        return Learned(weights=weights, ridge=ridge, status=Status.CONVERGED, evidence=0.0)

    rough, smooth = (Gaussian(), learned(40.0, 1e-2)), (Gaussian(), learned(0.5, 1e-4))
    purpose = Purpose(
        space=space, data=observed(codes, scores), transform=PlainScores(), strands=None, maximize=maximize,
        generator=generator,
    )  # fmt: skip
    _, kept, said = purpose.kernel([rough, smooth], 0)
    assert kept is smooth[1] and "best 10% of 400 rows unseen" in said[0]
    _, kept, said = purpose.kernel([smooth, rough], 0)
    assert kept is smooth[1] and said == []
    ridge, said = purpose.noise(Gaussian(), learned(0.5, 1e-6))  # less would lose density
    assert 1e-8 < ridge <= 1e-6 and len(said) == (ridge < 1e-6)


def test_skewed_proteins_are_modelled_by_alike_letters_and_the_best_are_found(
    generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrated, "LEARNING_ROWS", 240)  # of 600 that a small test can afford
    codes = torch.unique(PROTEIN.random(1200, generator), dim=0)
    codes = codes[torch.randperm(len(codes), generator=generator)]
    scores = fitness(codes, generator)
    shown = scores < scores.quantile(0.9)  # the best are hidden
    data = observed(codes[shown][:600], scores[shown][:600])
    model, calibration, lines = choose_model(
        PROTEIN, data, strands=None, maximize=True, generator=generator, families=(SimilarLetters(),), dense_rows=6000
    )
    assert not isinstance(model.transform, PlainScores)
    assert "amino acids alike" in lines[0] and "learned from 240 of 600 rows" in lines[1]
    for nominal, share in calibration.coverage.items():
        assert abs(share - nominal) < 0.1
    unseen = torch.cat([codes[shown][600:], codes[~shown]])
    hidden = torch.arange(len(unseen)) >= int(shown.sum()) - 600
    found = model.latent_mean(unseen).topk(60).indices
    assert float(hidden[found].double().mean()) > 2 * float(hidden.double().mean())
