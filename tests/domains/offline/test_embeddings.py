"""Embeddings: by brute force, relaxed at the corners and between them, and what a broken model is told."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from sciopt.domains.offline import (
    AMINO_ACIDS,
    CategoricalSpace,
    KMer,
    LetterModel,
    LetterPairs,
    OneHot,
    PhysicalProperties,
    SequenceModel,
    SideBySide,
    SpacedPairs,
    embedding,
    embedding_names,
    fit_standardised,
    register_embedding,
)
from sciopt.domains.offline.embeddings.letters import AMINO_ACID_PROPERTIES
from tests.helpers import randn

F64 = torch.float64
SPACE = CategoricalSpace(length=7, alphabet="ACGT")
PEPTIDES = CategoricalSpace(length=5, alphabet=AMINO_ACIDS)
EVERY = {
    "one-hot": (OneHot(), SPACE),
    "properties": (PhysicalProperties(), PEPTIDES),
    "3-mer": (KMer(k=3), SPACE),
    "gapped": (KMer(k=2, gaps=(0, 2, 1)), PEPTIDES),
    "side by side": (SideBySide(parts=(OneHot(), KMer(k=2))), SPACE),
    "pairs": (LetterPairs(reach=2), SPACE),
    "spaced pairs": (SpacedPairs(reach=4), SPACE),
    "module": (LetterModel(model=lambda p: torch.tanh(p.mean(1))), SPACE),
}


@pytest.fixture(params=EVERY)
def made(request):
    return EVERY[request.param]


@pytest.mark.parametrize(("k", "gaps"), [(1, (0,)), (2, (0,)), (3, (0,)), (3, (1,)), (2, (0, 1, 4))])
def test_words_are_those_of_a_count_by_hand(k: int, gaps: tuple[int, ...], generator: torch.Generator) -> None:
    designs = SPACE.random(20, generator)
    vectors = KMer(k=k, gaps=gaps)(SPACE, designs)
    for row, text in enumerate(SPACE.decode(designs)):
        expected = []
        for gap in gaps:
            found = [text[i :: gap + 1][:k] for i in range(len(text) - (k - 1) * (gap + 1))]
            expected += [float(found.count("".join(word))) for word in product(SPACE.alphabet, repeat=k)]
        assert vectors[row].tolist() == expected


def test_relaxed_counts_are_expected_counts(generator: torch.Generator) -> None:
    """Against the sum over all designs, weighted with their probabilities."""
    space = CategoricalSpace(length=4, alphabet="ABC")
    rule = KMer(k=2, gaps=(0, 1))
    probabilities = randn(1, 4, 3, generator=generator).softmax(-1)
    every = space.everything()
    weight = probabilities[0, torch.arange(4), every].prod(-1)
    torch.testing.assert_close(rule.relaxed(space, probabilities)[0], weight @ rule(space, every))


def test_pairs_are_those_of_a_count_by_hand(generator: torch.Generator) -> None:
    designs = SPACE.random(5, generator)
    vectors = LetterPairs()(SPACE, designs)
    assert vectors.shape == (5, 21 * 16)
    for row, text in enumerate(SPACE.decode(designs)):
        expected = [
            float(text[i] == a and text[j] == b)
            for i in range(7)
            for j in range(i + 1, 7)
            for a in "ACGT"
            for b in "ACGT"
        ]
        assert vectors[row].tolist() == expected
    assert LetterPairs(reach=1)(SPACE, designs).shape == (5, 6 * 16)
    with pytest.raises(ValueError, match="LetterPairs: expected `reach` for vectors of 1 to 262144 numbers, got None"):
        LetterPairs()(CategoricalSpace(length=80, alphabet=AMINO_ACIDS), ["A" * 80])


def test_spaced_pairs_are_those_found_by_hand(generator: torch.Generator) -> None:
    designs = SPACE.random(20, generator)
    vectors = SpacedPairs()(SPACE, designs)
    assert vectors.shape == (20, 6 * 16) and float(vectors.max()) == 1.0
    for row, text in enumerate(SPACE.decode(designs)):
        expected = [
            float(any(text[i] == a and text[i + s] == b for i in range(7 - s)))
            for s in range(1, 7)
            for a in "ACGT"
            for b in "ACGT"
        ]
        assert vectors[row].tolist() == expected
    torch.testing.assert_close(SpacedPairs(reach=2)(SPACE, designs), vectors[:, :32])
    torch.testing.assert_close(SpacedPairs(reach=99)(SPACE, designs), vectors)
    counts = KMer(k=2, gaps=tuple(range(6)))(SPACE, designs)
    torch.testing.assert_close(vectors, counts.clamp(max=1.0))


def test_slopes_of_spaced_pairs_are_effects_of_letters(generator: torch.Generator) -> None:
    """The linear head's gradient at a design against the effect of one letter more, or less; pairs of equals aside."""
    rule, head = SpacedPairs(), randn(6, 4, 4, generator=generator)
    head = (head * (1 - torch.eye(4, dtype=F64))).flatten()
    letters = SPACE.one_hot(SPACE.random(1, generator)).requires_grad_()
    value = rule.relaxed(SPACE, letters) @ head
    (slope,) = torch.autograd.grad(value, letters)
    for place in range(7):
        for letter in range(4):
            other = letters.detach().clone()
            change = 1 - 2 * float(other[0, place, letter])
            other[0, place, letter] += change
            exact = change * float((rule.relaxed(SPACE, other) @ head - value).detach())
            assert float(slope[0, place, letter]) == pytest.approx(exact, abs=1e-12)


def test_a_spaced_pair_needs_two_letters() -> None:
    with pytest.raises(ValueError, match="SpacedPairs: expected `reach` >= 1 or None, got 0"):
        SpacedPairs(reach=0)
    with pytest.raises(ValueError, match="SpacedPairs: expected `reach` for vectors of 1 to 262144 numbers, got None"):
        SpacedPairs()(CategoricalSpace(length=1, alphabet="AB"), ["A"])
    long = CategoricalSpace(length=1000, alphabet=AMINO_ACIDS)
    with pytest.raises(ValueError, match="SpacedPairs: expected `reach` for vectors of 1 to 262144 numbers, got None"):
        SpacedPairs()(long, ["A" * 1000])
    assert SpacedPairs(reach=2)(long, ["A" * 1000]).sum() == 2


def test_at_the_corners_the_relaxation_is_the_embedding(made, generator: torch.Generator) -> None:
    rule, space = made
    designs = space.random(9, generator)
    torch.testing.assert_close(rule.relaxed(space, space.one_hot(designs)), rule(space, designs))
    torch.testing.assert_close(rule(space, space.decode(designs)), rule(space, designs))
    assert rule.differentiable and rule(space, designs).dtype == F64
    standard = fit_standardised(rule, space, designs)
    vectors = standard(space, designs)
    torch.testing.assert_close(vectors.mean(0), torch.zeros(vectors.shape[1], dtype=F64), rtol=0, atol=1e-12)
    spread = vectors.std(0, correction=0)
    torch.testing.assert_close(spread[spread > 1e-9], torch.ones_like(spread[spread > 1e-9]))
    torch.testing.assert_close(standard.relaxed(space, space.one_hot(designs)), vectors)


def test_relaxations_have_their_gradients(made, generator: torch.Generator) -> None:
    rule, space = made
    logits = randn(2, space.length, space.letters, generator=generator).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: rule.relaxed(space, x.softmax(-1)), logits, fast_mode=True)
    single = rule.relaxed(space, logits.detach().float().softmax(-1))
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), rule.relaxed(space, logits.detach().softmax(-1)), rtol=1e-4, atol=1e-5)


def test_properties_are_the_published_ones_standardised() -> None:
    table = AMINO_ACID_PROPERTIES
    assert set(table) == set(AMINO_ACIDS)
    hydropathy = torch.tensor([table[letter][0] for letter in AMINO_ACIDS], dtype=F64)
    assert abs(float(hydropathy.mean()) + 0.49) < 1e-9  # the mean of the published scale
    assert sum(row[3] for row in table.values()) == 0 and {k for k in table if table[k][4]} == set("FHWY")
    vectors = PhysicalProperties()(PEPTIDES, ["IRGWD"]).reshape(5, 5)
    letters = (hydropathy - hydropathy.mean()) / hydropathy.std(correction=0)
    expected = torch.stack([letters[AMINO_ACIDS.index(letter)] for letter in "IRGWD"])
    torch.testing.assert_close(vectors[:, 0], expected)
    assert int(vectors[:, 2].argmax()) == 3 and int(vectors[:, 2].argmin()) == 2  # W is largest, G smallest
    own = PhysicalProperties(table={"A": (1.0,), "B": (3.0,)})
    assert own(CategoricalSpace(length=2, alphabet="AB"), ["AB"]).tolist() == [[-1.0, 1.0]]
    with pytest.raises(ValueError, match=r"expected properties of all letters in 'ACGT', got none for \['G'\]"):
        PhysicalProperties(table={"A": (1.0,), "C": (2.0,), "T": (0.0,)})(SPACE, ["ACGTACG"])
    with pytest.raises(ValueError, match=r"equally many numbers for each letter, got \[1, 2\]"):
        PhysicalProperties(table={"A": (1.0,), "B": (3.0, 1.0)})


def test_models_are_called_in_batches_and_once_per_sequence() -> None:
    calls: list[list[str]] = []

    def model(texts: list[str]) -> Tensor:
        calls.append(texts)
        return torch.tensor([[float(text.count("A")), float(len(text))] for text in texts])

    space = CategoricalSpace(length=2, alphabet="AB")
    rule = SequenceModel(model=model, batch_size=2)
    first = rule(space, ["AA", "AB", "AA", "BB"])
    assert first.tolist() == [[2.0, 2.0], [1.0, 2.0], [2.0, 2.0], [0.0, 2.0]]
    assert calls == [["AA", "AB"], ["BB"]]
    assert torch.equal(rule(space, ["BB", "BA"]), torch.tensor([[0.0, 2.0], [1.0, 2.0]], dtype=F64))
    assert calls[2:] == [["BA"]]
    forgetful = SequenceModel(model=model, remembered=1)
    calls.clear()
    forgetful(space, ["AA", "BB"])
    forgetful(space, ["BB"])
    forgetful(space, ["AA"])
    assert calls == [["AA", "BB"], ["AA"]]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda texts: torch.zeros(len(texts)), r"a floating-point tensor of shape \(2, d\), got \(2,\) torch.float32"),
        (lambda texts: torch.zeros(1, 3), r"of shape \(2, d\), got \(1, 3\)"),
        (lambda texts: [0.0], r"of shape \(2, d\), got list"),
        (lambda texts: torch.zeros(len(texts), 3, dtype=torch.int64), r"got \(2, 3\) torch.int64"),
        (lambda texts: torch.tensor([[0.0], [torch.nan]]), "NaN or infinity for 1 of 2 sequences, the first 'AB'"),
    ],
)
def test_broken_models_are_named(model, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SequenceModel(model=model)(CategoricalSpace(length=2, alphabet="AB"), ["AA", "AB"])


def test_a_model_that_changes_its_width_is_named() -> None:
    widths = iter([3, 4])
    rule = SequenceModel(model=lambda texts: torch.zeros(len(texts), next(widths)), batch_size=1)
    with pytest.raises(ValueError, match=r"of shape \(1, 3\), got \(1, 4\)"):
        rule(CategoricalSpace(length=2, alphabet="AB"), ["AA", "AB"])


def test_black_boxes_are_for_discrete_search_alone() -> None:
    rule = SequenceModel(model=lambda texts: torch.zeros(len(texts), 1))
    assert not rule.differentiable and not SideBySide(parts=(OneHot(), rule)).differentiable
    with pytest.raises(TypeError, match="got a black box on strings. Search the real design space with it"):
        rule.relaxed(SPACE, SPACE.one_hot(SPACE.everything()[:2]))


def test_bad_requests_say_what_was_expected() -> None:
    with pytest.raises(ValueError, match="KMer: expected `k` >= 1, got 0"):
        KMer(k=0)
    with pytest.raises(ValueError, match=r"KMer: expected `gaps` as different numbers >= 0, got \(1, 1\)"):
        KMer(gaps=(1, 1))
    with pytest.raises(ValueError, match="expected `k` and `gaps` that span at most 7, got 3"):
        KMer(k=3, gaps=(3,))(SPACE, ["ACGTACG"])
    with pytest.raises(ValueError, match="letters.k . gaps of at most 1048576"):
        KMer(k=5)(PEPTIDES, ["AAAAA"])
    with pytest.raises(ValueError, match=r"expected `probabilities` of shape \(n, 7, 4\)"):
        OneHot().relaxed(SPACE, torch.zeros(1, 4, 7))
    with pytest.raises(ValueError, match="expected sequences of 7 letters out of 'ACGT', got 'ACGU'"):
        OneHot()(SPACE, ["ACGU"])


def test_names_stand_for_embeddings(monkeypatch: pytest.MonkeyPatch) -> None:
    from sciopt.domains.offline.embeddings import registry

    monkeypatch.setattr(registry, "FACTORIES", dict(registry.FACTORIES))
    assert "2-mer" in embedding_names() and embedding("2-mer") == KMer(k=2)
    for name in embedding_names():
        assert embedding(name).differentiable
    register_embedding("mine", OneHot)
    assert isinstance(embedding("mine"), OneHot)
    with pytest.raises(ValueError, match="register_embedding: expected `name` to be new, got 'mine'"):
        register_embedding("mine", OneHot)
    with pytest.raises(ValueError, match="embedding: expected `name` among .*'one-hot'.*, got 'esm'"):
        embedding("esm")
    register_embedding("wrong", lambda: lambda texts: texts)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="to make an AbstractEmbedding, got function"):
        embedding("wrong")
