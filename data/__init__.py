"""Data files by name: a registry with checksums, and a fetcher that verifies. Import as ``sciopt.data``."""

if __name__ == "data":
    raise ImportError(
        "data: expected to be imported as `sciopt.data`, got a bare `import data`. "
        "Write `import sciopt.data`, or take the repository root's `data/` off sys.path."
    )

from sciopt.data.catalogue import Entry, entry, registry
from sciopt.data.fetcher import DataError, FileState, cache_dir, fetch, verify
from sciopt.data.shipped import shipped

__all__ = ["DataError", "Entry", "FileState", "cache_dir", "entry", "fetch", "registry", "shipped", "verify"]
