"""Offline design: propose the next batch from a table of old results."""

from sciopt.domains.offline.acquisition import (
    AbstractAcquisition,
    GreedyMean,
    SampledExpectedImprovement,
    UpperConfidence,
)
from sciopt.domains.offline.ascent import Ensemble, GradientAscent, train_ensemble
from sciopt.domains.offline.baselines import CMAES, CbAS, Conservative, MutateTheBest, RandomSearch, train_conservative
from sciopt.domains.offline.bdi import BDI, BidirectionalProblem, bidirectional_problem
from sciopt.domains.offline.bib import BIB
from sciopt.domains.offline.bib_problem import SequenceProblem, sequence_problem
from sciopt.domains.offline.committee import AbstractMember, CommitteeRanking, LogLetters, WideNetwork
from sciopt.domains.offline.compliance import ComplianceTask, Material
from sciopt.domains.offline.diversity import AbstractDiversity, Determinantal, SimilarityPenalty
from sciopt.domains.offline.ehrlich import Ehrlich
from sciopt.domains.offline.embeddings import (
    AMINO_ACID_PROPERTIES,
    AbstractEmbedding,
    KMer,
    LetterModel,
    LetterPairs,
    OneHot,
    PhysicalProperties,
    SequenceModel,
    SideBySide,
    StandardisedEmbedding,
    embedding,
    embedding_names,
    fit_standardised,
    register_embedding,
)
from sciopt.domains.offline.evolution import EvolutionarySearch
from sciopt.domains.offline.landscapes import nk_landscape, rough_mount_fuji
from sciopt.domains.offline.measured import gb1, tf_bind_8, transcription_factors
from sciopt.domains.offline.metrics import BatchReport, evaluate_batch, hamming, normalised
from sciopt.domains.offline.polish import Polish
from sciopt.domains.offline.posterior_search import PosteriorSearch
from sciopt.domains.offline.proposal import (
    AbstractColumn,
    AbstractConstraint,
    Calibration,
    CategoryColumn,
    DesignSpace,
    NumberColumn,
    ProposalOptions,
    ProposedBatch,
    RowTest,
    Rule,
    SequenceColumn,
    detect_columns,
    propose,
)
from sciopt.domains.offline.ranking import ExhaustiveRanking, Surrogate, fit_surrogate
from sciopt.domains.offline.relaxation import LogitRelaxation, fit_relaxation, standardised
from sciopt.domains.offline.rna import RNA, AbstractFoldScore, FoldStability, RNATask, TargetBinding, TargetFold
from sciopt.domains.offline.search import AbstractSearch, Proposal
from sciopt.domains.offline.spaces import AMINO_ACIDS, DNA, CategoricalSpace
from sciopt.domains.offline.symmetry import AbstractSymmetry, ReverseComplement
from sciopt.domains.offline.task import (
    AbstractTask,
    AbstractVisibleRule,
    AtMostQuantile,
    SampleBelow,
    Table,
    TableTask,
    WithinMutations,
)

__all__ = [
    "AMINO_ACIDS",
    "AMINO_ACID_PROPERTIES",
    "BDI",
    "BIB",
    "CMAES",
    "DNA",
    "RNA",
    "AbstractAcquisition",
    "AbstractColumn",
    "AbstractConstraint",
    "AbstractDiversity",
    "AbstractEmbedding",
    "AbstractFoldScore",
    "AbstractMember",
    "AbstractSearch",
    "AbstractSymmetry",
    "AbstractTask",
    "AbstractVisibleRule",
    "AtMostQuantile",
    "BatchReport",
    "BidirectionalProblem",
    "Calibration",
    "CategoricalSpace",
    "CategoryColumn",
    "CbAS",
    "CommitteeRanking",
    "ComplianceTask",
    "Conservative",
    "DesignSpace",
    "Determinantal",
    "Ehrlich",
    "Ensemble",
    "EvolutionarySearch",
    "ExhaustiveRanking",
    "FoldStability",
    "GradientAscent",
    "GreedyMean",
    "KMer",
    "LetterModel",
    "LetterPairs",
    "LogLetters",
    "LogitRelaxation",
    "Material",
    "MutateTheBest",
    "NumberColumn",
    "OneHot",
    "PhysicalProperties",
    "Polish",
    "PosteriorSearch",
    "Proposal",
    "ProposalOptions",
    "ProposedBatch",
    "RNATask",
    "RandomSearch",
    "ReverseComplement",
    "RowTest",
    "Rule",
    "SampleBelow",
    "SampledExpectedImprovement",
    "SequenceColumn",
    "SequenceModel",
    "SequenceProblem",
    "SideBySide",
    "SimilarityPenalty",
    "StandardisedEmbedding",
    "Surrogate",
    "Table",
    "TableTask",
    "TargetBinding",
    "TargetFold",
    "UpperConfidence",
    "WideNetwork",
    "WithinMutations",
    "bidirectional_problem",
    "detect_columns",
    "embedding",
    "embedding_names",
    "evaluate_batch",
    "fit_relaxation",
    "fit_standardised",
    "fit_surrogate",
    "gb1",
    "hamming",
    "nk_landscape",
    "normalised",
    "propose",
    "register_embedding",
    "rough_mount_fuji",
    "sequence_problem",
    "standardised",
    "tf_bind_8",
    "train_conservative",
    "train_ensemble",
    "transcription_factors",
]
