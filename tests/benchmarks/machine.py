"""Where a table was measured: commit, processor, memory, versions."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import torch

PEERS = (
    *("torchopt", "higher", "jaxopt", "optimistix", "lineax", "jax", "pyamg", "pypardiso", "torch-fem"),
    *("torchdiffeq", "torchode", "diffrax", "torchdeq", "qpth", "gpytorch", "rdkit"),
)


def describe() -> dict[str, str]:
    """Facts for the head of a table; never fails for what a platform does not tell."""
    facts = {
        "commit": _commit(),
        "CPU": f"{_cpu()}, {_cores()} cores available",
        "RAM": _memory(),
        "OS": f"{platform.system()} {platform.release()}",
        "Python": platform.python_version(),
        "torch": f"{torch.__version__}, {torch.get_num_threads()} threads",
        "peers": ", ".join(f"{name} {version}" for name in PEERS if (version := _version(name))) or "none installed",
    }
    if torch.cuda.is_available():
        facts["GPU"] = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    else:
        facts["GPU"] = "none"
    return facts


def _commit() -> str:
    def git(*words: str) -> str:
        root = Path(__file__).parents[2]
        return subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!tests/benchmarks/results")
        return git("rev-parse", "--short=12", "HEAD") + (" with uncommitted changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown (not a git checkout)"


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _memory() -> str:
    try:
        return f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB"
    except (ValueError, OSError, AttributeError):
        return "unknown"


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
