"""Other people's models as embeddings: a language model on strings, or a module on probabilities of letters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from sciopt.checks import check_option
from sciopt.domains.offline.embeddings.abstract import AbstractEmbedding, check_probabilities
from sciopt.domains.offline.spaces import CategoricalSpace

__all__ = ["LetterModel", "SequenceModel"]


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class SequenceModel(AbstractEmbedding):
    """Any function from strings to vectors, such as the mean hidden state of a language model.

    It is called in batches, without gradients, and once per sequence as long as the memory lasts. It embeds discrete
    designs alone: use it with `EmbeddingSearch`.

    Args:
        model: ``list of n strings -> (n, d)``, the same d always.
        batch_size: strings per call.
        remembered: sequences kept in memory, the oldest forgotten first; 0: none.

    Raises:
        ValueError: for options out of range; when called, for vectors of a wrong shape or with NaN.

    Example:
        >>> space = CategoricalSpace(length=3, alphabet="AB")
        >>> count = SequenceModel(model=lambda texts: torch.tensor([[float(t.count("A"))] for t in texts]))
        >>> count(space, ["AAB", "BBB"])
        tensor([[2.],
                [0.]], dtype=torch.float64)
    """

    model: Callable[[list[str]], Tensor]
    batch_size: int = 64
    remembered: int = 100_000
    memory: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        check_option("SequenceModel", "batch_size", self.batch_size, self.batch_size >= 1, ">= 1", "E.g. 64.")
        check_option("SequenceModel", "remembered", self.remembered, self.remembered >= 0, ">= 0", "0 keeps none.")

    @property
    def differentiable(self) -> bool:
        """See `AbstractEmbedding.differentiable`."""
        return False

    def embed(self, space: CategoricalSpace, designs: Tensor) -> Tensor:
        """See `AbstractEmbedding.embed`."""
        texts = space.decode(designs)
        found = {text: self.memory[text] for text in texts if text in self.memory}
        missing = [text for text in dict.fromkeys(texts) if text not in found]
        for start in range(0, len(missing), self.batch_size):
            batch = missing[start : start + self.batch_size]
            with torch.no_grad():
                vectors = self.model(batch)
            width = len(next(iter(found.values()))) if found else None
            found.update(zip(batch, _checked("SequenceModel", vectors, len(batch), width, batch), strict=True))
        self._remember({text: found[text] for text in missing})
        if not texts:
            return torch.zeros(0, 0, dtype=torch.float64, device=designs.device)
        return torch.stack([found[text] for text in texts]).to(designs.device)

    def relaxed(self, space: CategoricalSpace, probabilities: Tensor) -> Tensor:
        """See `AbstractEmbedding.relaxed`; raises."""
        raise TypeError(
            "SequenceModel: expected an embedding that takes probabilities of letters, got a black box on strings. Search "
            "the real design space with it (EmbeddingSearch), or wrap the module in LetterModel."
        )

    def _remember(self, fresh: dict[str, Tensor]) -> None:
        self.memory.update(fresh)
        for text in list(self.memory)[: max(0, len(self.memory) - self.remembered)]:
            del self.memory[text]


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class LetterModel(AbstractEmbedding):
    """A differentiable function of letters' probabilities, such as a language model fed with mixed token vectors.

    A transformer takes probabilities when its token embedding is a matrix product instead of a look-up:
    ``probabilities @ token_vectors``.

    Args:
        model: ``probabilities (n, length, letters) -> (n, d)``, in their dtype, row by row.

    Example:
        >>> space = CategoricalSpace(length=3, alphabet="AB")
        >>> model = LetterModel(model=lambda p: p.mean(1).square())
        >>> model(space, ["AAB"])
        tensor([[0.4444, 0.1111]], dtype=torch.float64)

    References:
        Chen, Zhang, Liu, Coates. "Bidirectional learning for offline model-based biological sequence design". ICML 2023,
        section 4 (a language model on relaxed letters).
    """

    model: Callable[[Tensor], Tensor]

    @property
    def differentiable(self) -> bool:
        """See `AbstractEmbedding.differentiable`."""
        return True

    def embed(self, space: CategoricalSpace, designs: Tensor) -> Tensor:
        """See `AbstractEmbedding.embed`."""
        with torch.no_grad():
            vectors = self.model(space.one_hot(designs))
        return _checked("LetterModel", vectors, len(designs), None, None).to(designs.device)

    def relaxed(self, space: CategoricalSpace, probabilities: Tensor) -> Tensor:
        """See `AbstractEmbedding.relaxed`."""
        vectors = self.model(check_probabilities("LetterModel", space, probabilities))
        _shaped("LetterModel", vectors, len(probabilities), None)
        return vectors


def _shaped(owner: str, vectors: object, rows: int, width: int | None) -> Tensor:
    ok = isinstance(vectors, Tensor) and vectors.ndim == 2 and len(vectors) == rows and vectors.is_floating_point()
    if not (ok and isinstance(vectors, Tensor) and vectors.shape[1] >= 1 and width in (None, vectors.shape[1])):
        got = f"{tuple(vectors.shape)} {vectors.dtype}" if isinstance(vectors, Tensor) else type(vectors).__name__
        raise ValueError(
            f"{owner}: expected `model` to return a floating-point tensor of shape ({rows}, {width or 'd'}), got {got}. "
            "Return one vector per sequence, e.g. the mean over positions."
        )
    return vectors


def _checked(owner: str, vectors: object, rows: int, width: int | None, texts: list[str] | None) -> Tensor:
    """The vectors in float64, if they are finite and of the right shape."""
    given = _shaped(owner, vectors, rows, width).detach().to(torch.float64)
    bad = ~torch.isfinite(given).all(-1)
    if bool(bad.any()):
        row = int(torch.nonzero(bad)[0])
        raise ValueError(
            f"{owner}: expected `model` to return finite vectors, got NaN or infinity for {int(bad.sum())} of {rows} "
            f"sequences, the first {texts[row] if texts else f'in row {row}'!r}. Check the model on it."
        )
    return given
