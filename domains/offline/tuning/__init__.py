"""Tuning parameters chosen by validation: sample weights, pseudo-labels, importance weights, smoothness."""

from sciopt.domains.offline.tuning.focus import Autofocus, Flattened, FocusProblem, flattened
from sciopt.domains.offline.tuning.guided import GuidedSearch
from sciopt.domains.offline.tuning.leads import AbstractLead, EvolutionLead, GradientLead, PolicyLead
from sciopt.domains.offline.tuning.local_problem import LocalProblem
from sciopt.domains.offline.tuning.local_proxy import LocalModel, LocalProxy, fit_local_proxy
from sciopt.domains.offline.tuning.models import (
    AbstractModel,
    AbstractPredictor,
    GlobalModel,
    KernelPredictor,
    ProxyData,
    proxy_data,
)
from sciopt.domains.offline.tuning.policies import (
    AbstractPolicy,
    AutoregressivePolicy,
    FactorisedPolicy,
    policy_gradient_loss,
)
from sciopt.domains.offline.tuning.smoothness import (
    AbstractRoughness,
    MixedChanges,
    NeighbourChanges,
    SmoothModel,
    SmoothProblem,
)
from sciopt.domains.offline.tuning.validation import AbstractValidation, RankError, SquaredError
from sciopt.domains.offline.tuning.weighting import (
    AbstractWeighting,
    FreeWeights,
    WeightingFunction,
    effective_size,
)

__all__ = [
    "AbstractLead",
    "AbstractModel",
    "AbstractPolicy",
    "AbstractPredictor",
    "AbstractRoughness",
    "AbstractValidation",
    "AbstractWeighting",
    "Autofocus",
    "AutoregressivePolicy",
    "EvolutionLead",
    "FactorisedPolicy",
    "Flattened",
    "FocusProblem",
    "FreeWeights",
    "GlobalModel",
    "GradientLead",
    "GuidedSearch",
    "KernelPredictor",
    "LocalModel",
    "LocalProblem",
    "LocalProxy",
    "MixedChanges",
    "NeighbourChanges",
    "PolicyLead",
    "ProxyData",
    "RankError",
    "SmoothModel",
    "SmoothProblem",
    "SquaredError",
    "WeightingFunction",
    "effective_size",
    "fit_local_proxy",
    "flattened",
    "policy_gradient_loss",
    "proxy_data",
]
