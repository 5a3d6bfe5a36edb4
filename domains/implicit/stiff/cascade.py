"""The MAP kinase cascade of Huang and Ferrell: an enzyme cascade with a switch-like steady state."""

from __future__ import annotations

import torch

from sciopt.domains.implicit.stiff.example import StiffExample
from sciopt.domains.implicit.stiff.mass_action import reactions
from sciopt.domains.implicit.stiff.statement import double

__all__ = ["enzyme_cascade"]

# enzyme, substrate, product
STEPS = (
    ("E1", "KKK", "KKK'"),
    ("E2", "KKK'", "KKK"),
    ("KKK'", "KK", "KKp"),
    ("KKPase", "KKp", "KK"),
    ("KKK'", "KKp", "KKpp"),
    ("KKPase", "KKpp", "KKp"),
    ("KKpp", "K", "Kp"),
    ("KPase", "Kp", "K"),
    ("KKpp", "Kp", "Kpp"),
    ("KPase", "Kpp", "Kp"),
)
TOTALS = {"E2": 3e-4, "KKK": 3e-3, "KK": 1.2, "KKPase": 3e-4, "K": 1.2, "KPase": 0.12}


def enzyme_cascade(stimulus: float = 3e-5, *, batch_ndim: int = 0) -> StiffExample:
    """Huang and Ferrell's MAP kinase cascade: ten enzymatic reactions, 22 species, seven conservation laws.

    Every reaction is ``E + S <-> ES -> E + P`` with 1,000 per micromolar, 150 and 150 per unit of time (K_m = 300 nM). At
    the steady state the active kinase ``Kpp`` answers the ``stimulus`` like a cooperative enzyme with a Hill coefficient of
    4.9, though no reaction is cooperative.

    Args:
        stimulus: concentration of the enzyme E1, micromolar.
        batch_ndim: 1 for a batch of starts ``(batch, 22)`` or of rate constants ``(batch, 30)``.

    Returns:
        `StiffExample` with times 0 and 100; concentrations in micromolar, time in the unit of the rate constants (seconds
        in the BioModels entry). Parameters: association, dissociation and turnover of each of the ten reactions.

    Example:
        >>> example = enzyme_cascade()
        >>> len(example.names), example.network.conservation.shape[0]
        (22, 7)

    References:
        Huang, Ferrell. "Ultrasensitivity in the mitogen-activated protein kinase cascade". PNAS 93, 1996. BioModels
        BIOMD0000000009.
    """
    texts = []
    for enzyme, substrate, product in STEPS:
        texts += [f"{enzyme} + {substrate} <-> {enzyme}_{substrate}", f"{enzyme}_{substrate} -> {enzyme} + {product}"]
    network = reactions(*texts)
    init = torch.zeros(len(network.species), dtype=torch.float64)
    for name, total in {"E1": stimulus, **TOTALS}.items():
        init[network.species.index(name)] = total
    return StiffExample(
        problem=network.problem(double(0.0, 100.0), batch_ndim=batch_ndim),
        init=init,
        outer_params=double(1000.0, 150.0, 150.0).repeat(len(STEPS)),
        names=network.species,
        parameter_names=tuple(f"{kind}{i}" for i in range(1, len(STEPS) + 1) for kind in "adk"),
        units="micromolar; time in the unit of the rate constants",
        source="Huang, Ferrell. PNAS 93, 1996; BioModels BIOMD0000000009.",
        network=network,
    )
