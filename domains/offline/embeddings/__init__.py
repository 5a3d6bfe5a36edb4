"""Designs as vectors: one-hot, k-mers, physical properties, and any language model by registry."""

from sciopt.domains.offline.embeddings.abstract import AbstractEmbedding
from sciopt.domains.offline.embeddings.combined import SideBySide, StandardisedEmbedding, fit_standardised
from sciopt.domains.offline.embeddings.kmers import KMer
from sciopt.domains.offline.embeddings.letters import AMINO_ACID_PROPERTIES, OneHot, PhysicalProperties
from sciopt.domains.offline.embeddings.models import LetterModel, SequenceModel
from sciopt.domains.offline.embeddings.pairs import LetterPairs
from sciopt.domains.offline.embeddings.registry import embedding, embedding_names, register_embedding
from sciopt.domains.offline.embeddings.spaced import SpacedPairs

__all__ = [
    "AMINO_ACID_PROPERTIES",
    "AbstractEmbedding",
    "KMer",
    "LetterModel",
    "LetterPairs",
    "PhysicalProperties",
    "OneHot",
    "SequenceModel",
    "SideBySide",
    "SpacedPairs",
    "StandardisedEmbedding",
    "embedding",
    "embedding_names",
    "fit_standardised",
    "register_embedding",
]
