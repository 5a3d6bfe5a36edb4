"""Science on implicit layers: rate constants, the next measurements, a permittivity field."""

from sciopt.domains.implicit.science.design import (
    MeasurementPlan,
    TimeWindow,
    fisher_information,
    plan_measurements,
)
from sciopt.domains.implicit.science.experiments import Experiments, KineticModel, Noise, mass_action_model, simulate
from sciopt.domains.implicit.science.fit import KineticFit, fit_rates
from sciopt.domains.implicit.science.identifiability import Identifiability, identifiability
from sciopt.domains.implicit.science.permittivity import FieldFit, SmoothPrior, infer_permittivity
from sciopt.domains.implicit.science.poisson import Poisson

__all__ = [
    "Experiments",
    "FieldFit",
    "Identifiability",
    "KineticFit",
    "KineticModel",
    "MeasurementPlan",
    "Noise",
    "Poisson",
    "SmoothPrior",
    "TimeWindow",
    "fisher_information",
    "fit_rates",
    "identifiability",
    "infer_permittivity",
    "mass_action_model",
    "plan_measurements",
    "simulate",
]
