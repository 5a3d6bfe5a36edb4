"""The compiled part of a step: built once with the machine's C compiler, kept in the user's cache, optional."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

from sciopt.steppers.native_source import SOURCE

__all__ = ["compiler", "library"]

FLAGS = ("-O3", "-fPIC", "-shared", "-std=c11")  # for any machine of the architecture: several may share the cache


def compiler() -> str | None:
    """Path of a C compiler: that of the variable CC, else cc, gcc or clang; None when there is none."""
    named = os.environ.get("CC", "").split()[:1]
    return next((path for name in (*named, "cc", "gcc", "clang") if (path := shutil.which(name))), None)


def folder() -> Path:
    """Where built libraries are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "sciopt" / "native"


@cache
def library() -> tuple[ctypes.CDLL | None, str]:
    """The library, and how it came or why there is none."""
    if sys.platform == "win32":
        return None, "not offered on Windows"
    path = compiler()
    if path is None:
        return None, "no C compiler found (cc, gcc, clang, or the variable CC)"
    key = hashlib.sha256("\0".join((SOURCE, path, *FLAGS, os.uname().machine)).encode()).hexdigest()[:20]
    try:
        kept = writable(folder()) / f"step-{key}.so"
        if not kept.exists():
            build(path, kept)
        return ctypes.CDLL(str(kept)), f"compiled by {path}"
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        return None, f"{path} failed: {said.strip().splitlines()[-1] if said.strip() else type(error).__name__}"


def writable(kept: Path) -> Path:
    """The folder, or a temporary one where it cannot be written."""
    try:
        kept.mkdir(parents=True, exist_ok=True)
    except OSError:
        return Path(tempfile.mkdtemp(prefix="sciopt-"))
    return kept if os.access(kept, os.W_OK) else Path(tempfile.mkdtemp(prefix="sciopt-"))


def build(path: str, target: Path) -> None:
    """Compile to a temporary name and rename, so that another process never sees half a file."""
    with tempfile.TemporaryDirectory(dir=target.parent) as place:
        source, made = Path(place) / "step.c", Path(place) / "step.so"
        source.write_text(SOURCE)
        command = [path, *FLAGS, str(source), "-o", str(made), "-lm"]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
        os.replace(made, target)
