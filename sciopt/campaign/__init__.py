"""Campaigns: one design is one function call, a campaign is that call mapped over a spec."""

from sciopt.campaign.errors import CampaignError, LockError, SpecError, StoreError
from sciopt.campaign.registry import JobContext, JobResult, ProblemKind

__all__ = ["CampaignError", "JobContext", "JobResult", "LockError", "ProblemKind", "SpecError", "StoreError"]
