"""Patterns and rules of good designs, and searches that use them as a prior."""

from sciopt.domains.offline.rules.compose import compose
from sciopt.domains.offline.rules.discovery import Discovery, MotifModel, discover
from sciopt.domains.offline.rules.exchange import ExchangeDistillation
from sciopt.domains.offline.rules.extract import distilled_rules, extract_rules
from sciopt.domains.offline.rules.feedback import CheckedRules, rules_by_distillation
from sciopt.domains.offline.rules.motifs import Motif
from sciopt.domains.offline.rules.remeasure import remeasured
from sciopt.domains.offline.rules.rules import LetterRule, MotifRule, Rules
from sciopt.domains.offline.rules.scales import AbstractScale, AdditiveScale, Effects, LogScale, ProductScale
from sciopt.domains.offline.rules.search import DistilledRuleSearch, MotifSearch, composed_designs

__all__ = [
    "AbstractScale",
    "AdditiveScale",
    "CheckedRules",
    "DistilledRuleSearch",
    "Discovery",
    "Effects",
    "ExchangeDistillation",
    "LetterRule",
    "LogScale",
    "Motif",
    "MotifModel",
    "MotifRule",
    "MotifSearch",
    "ProductScale",
    "Rules",
    "compose",
    "composed_designs",
    "discover",
    "distilled_rules",
    "extract_rules",
    "remeasured",
    "rules_by_distillation",
]
