"""Embeddings by name, so that a configuration file or a command line can name one, a language model too."""

from __future__ import annotations

from collections.abc import Callable

from sciopt.domains.offline.embeddings.abstract import AbstractEmbedding
from sciopt.domains.offline.embeddings.combined import SideBySide
from sciopt.domains.offline.embeddings.kmers import KMer
from sciopt.domains.offline.embeddings.letters import OneHot, PhysicalProperties
from sciopt.domains.offline.embeddings.pairs import LetterPairs
from sciopt.domains.offline.embeddings.spaced import SpacedPairs

__all__ = ["embedding", "embedding_names", "register_embedding"]

FACTORIES: dict[str, Callable[[], AbstractEmbedding]] = {
    "one-hot": OneHot,
    "properties": PhysicalProperties,
    "2-mer": lambda: KMer(k=2),
    "3-mer": lambda: KMer(k=3),
    "gapped-2-mer": lambda: KMer(k=2, gaps=(0, 1, 2)),
    "pairs": lambda: SideBySide(parts=(OneHot(), LetterPairs())),
    "spaced-pairs": SpacedPairs,
    "one-hot+2-mer": lambda: SideBySide(parts=(OneHot(), KMer(k=2))),
}


def register_embedding(name: str, factory: Callable[[], AbstractEmbedding]) -> None:
    """Give an embedding a name. The factory runs when the embedding is asked for, so that a model loads no earlier.

    Args:
        name: not taken yet.
        factory: without arguments.

    Raises:
        ValueError: for a name that is taken.

    Example:
        >>> import torch
        >>> from sciopt.domains.offline import SequenceModel
        >>> load = lambda: SequenceModel(model=lambda texts: torch.tensor([[float(len(t))] for t in texts]))
        >>> register_embedding("length", load)
        >>> embedding("length").differentiable, FACTORIES.pop("length") is load
        (False, True)
    """
    if name in FACTORIES:
        raise ValueError(
            f"register_embedding: expected `name` to be new, got {name!r}, which is taken. Choose another name."
        )
    FACTORIES[name] = factory


def embedding(name: str) -> AbstractEmbedding:
    """The embedding of this name.

    Raises:
        ValueError: for an unknown name, listing the known ones.
        TypeError: when its factory makes something else.

    Example:
        >>> embedding("3-mer")
        KMer(k=3, gaps=(0,))
    """
    if name not in FACTORIES:
        raise ValueError(
            f"embedding: expected `name` among {embedding_names()}, got {name!r}. Name your own by register_embedding."
        )
    made = FACTORIES[name]()
    if not isinstance(made, AbstractEmbedding):
        raise TypeError(
            f"embedding: expected the factory of {name!r} to make an AbstractEmbedding, got {type(made).__name__}. Wrap a "
            "function of strings in SequenceModel."
        )
    return made


def embedding_names() -> list[str]:
    """All names, sorted.

    Example:
        >>> "one-hot" in embedding_names()
        True
    """
    return sorted(FACTORIES)
