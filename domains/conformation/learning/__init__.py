"""Learning conformers: a network that predicts distances, trained through the structures that they settle into."""

from sciopt.domains.conformation.learning.checkpoints import load_model, save_model
from sciopt.domains.conformation.learning.graphs import GraphBatch, MoleculeGraph, graph_batch, molecule_graph
from sciopt.domains.conformation.learning.network import (
    DistanceModel,
    DistancePrediction,
    Latent,
    ModelConfig,
    kl_divergence,
)
from sciopt.domains.conformation.learning.objectives import (
    AbstractObjective,
    EndToEnd,
    EndToEndRecall,
    RowLosses,
    TwoStage,
    aligned_rmsd,
    match_table,
)
from sciopt.domains.conformation.learning.sampling import (
    AbstractLatentSource,
    FromPrior,
    FromStart,
    SampledEnsemble,
    SampleOptions,
    sample,
    sample_many,
)
from sciopt.domains.conformation.learning.starts import AbstractStart, GivenStart, RandomStart, SpectralStart
from sciopt.domains.conformation.learning.structures import (
    DistanceTargets,
    InnerOptions,
    distance_energy,
    reconstruct,
)
from sciopt.domains.conformation.learning.training import EpochRecord, TrainConfig, TrainResult, train

__all__ = [
    "AbstractLatentSource",
    "AbstractObjective",
    "AbstractStart",
    "DistanceModel",
    "DistancePrediction",
    "DistanceTargets",
    "EndToEnd",
    "EndToEndRecall",
    "EpochRecord",
    "FromPrior",
    "FromStart",
    "GivenStart",
    "GraphBatch",
    "InnerOptions",
    "Latent",
    "ModelConfig",
    "MoleculeGraph",
    "RandomStart",
    "RowLosses",
    "SampleOptions",
    "SampledEnsemble",
    "SpectralStart",
    "TrainConfig",
    "TrainResult",
    "TwoStage",
    "aligned_rmsd",
    "distance_energy",
    "graph_batch",
    "kl_divergence",
    "load_model",
    "match_table",
    "molecule_graph",
    "reconstruct",
    "sample",
    "sample_many",
    "save_model",
    "train",
]
