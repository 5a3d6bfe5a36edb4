"""Errors that a campaign reports to its user in one line."""

from __future__ import annotations

__all__ = ["CampaignError", "LockError", "SpecError", "StoreError"]


class CampaignError(ValueError):
    """Something the user of a campaign can put right; the message says what and how.

    Example:
        >>> isinstance(SpecError("bad"), CampaignError)
        True
    """


class SpecError(CampaignError):
    """A campaign file, a problem name or a problem option that cannot be used."""


class LockError(CampaignError):
    """Another process is at work in the same campaign folder."""


class StoreError(CampaignError):
    """The queue of a campaign folder cannot be used or was damaged."""
