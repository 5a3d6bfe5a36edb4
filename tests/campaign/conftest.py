"""The fake problem, registered for this process and for its workers."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from sciopt.campaign.registry import ENVIRONMENT


@pytest.fixture(autouse=True)
def fake_problem(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(Path(__file__).parent), *sys.path])
    monkeypatch.setenv(ENVIRONMENT, "fake=sciopt_fake:problems")


@pytest.fixture
def tally(tmp_path):
    folder = tmp_path / "tally"
    folder.mkdir()
    return folder
