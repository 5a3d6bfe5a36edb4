"""One campaign process per folder: a lock that the operating system drops when its holder dies."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from sciopt.campaign.errors import LockError

__all__ = ["campaign_lock", "lock_holder"]

_NAME = "campaign.lock"


@contextmanager
def campaign_lock(directory: Path) -> Iterator[None]:
    """Hold the folder for one `sciopt run`.

    The lock is on the open file, not in its content, so one left behind by a killed process is free at once.

    Raises:
        LockError: when another process holds it, with its process id.
    """
    path = directory / _NAME
    with path.open("a+", encoding="utf-8") as file:
        for _ in range(5):  # `sciopt status` looks at the lock for a moment
            if _acquire(file):
                break
            time.sleep(0.02)
        else:
            raise LockError(
                f"{directory}: expected a folder nobody is running in, got one held by {_describe(path)}. "
                "Wait for it or stop it with ^C, or choose another folder with --out."
            )
        file.truncate(0)
        file.write(json.dumps({"pid": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}))
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def lock_holder(directory: Path) -> str | None:
    """Who runs in this folder now, in words, or None."""
    path = directory / _NAME
    try:
        with path.open("r+", encoding="utf-8") as file:
            return None if _acquire(file) else _describe(path)
    except OSError:
        return None


def _describe(path: Path) -> str:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return f"process {content['pid']} since {content['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def _acquire(file: IO[str]) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
