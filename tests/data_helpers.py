"""How a test asks for a data file."""

import os
from pathlib import Path

import pytest

from sciopt.data import DataError, FileState, fetch, verify
from sciopt.data.fetcher import MIRROR_VARIABLE, mirror_dir

REQUIRE_VARIABLE = "SCIOPT_REQUIRE_DATA"


def require_data(name: str) -> Path:
    """Path of the file, from the cache or the mirror; skips the test where neither has it.

    Never downloads. With ``SCIOPT_REQUIRE_DATA=1`` a missing file fails the test; a corrupt mirror fails it always.
    """
    try:
        mirror = mirror_dir()
        if verify(name) is FileState.OK or (mirror is not None and verify(name, mirror) is not FileState.MISSING):
            return fetch(name)
    except DataError as error:
        pytest.fail(str(error))
    reason = (
        f"data file {name} is neither in the cache nor in a mirror: set {MIRROR_VARIABLE}, or `sciopt data fetch` it"
    )
    if os.environ.get(REQUIRE_VARIABLE) == "1":
        pytest.fail(f"{reason} ({REQUIRE_VARIABLE}=1 forbids to skip)")
    pytest.skip(reason)
