"""Files on this machine: from the cache, from a mirror folder, or from their public address; always verified."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any

from sciopt.data.catalogue import Entry, entry

__all__ = ["CACHE_VARIABLE", "MIRROR_VARIABLE", "DataError", "FileState", "cache_dir", "fetch", "mirror_dir", "verify"]

CACHE_VARIABLE = "SCIOPT_DATA_DIR"
MIRROR_VARIABLE = "SCIOPT_DATA_MIRROR"
RETRIES = 3


class DataError(RuntimeError):
    """A data file cannot be had, or is not what the registry says; the message says what to do.

    Example:
        >>> issubclass(DataError, RuntimeError)
        True
    """


class FileState(Enum):
    """What `verify` found.

    Example:
        >>> FileState.CORRUPT.value
        'corrupt'
    """

    OK = "ok"
    MISSING = "missing"
    CORRUPT = "corrupt"


def cache_dir() -> Path:
    """Folder where fetched files lie: ``$SCIOPT_DATA_DIR``, or the user's cache folder of the operating system.

    Example:
        >>> cache_dir().is_absolute()
        True
    """
    given = os.environ.get(CACHE_VARIABLE)
    if given:
        return Path(given).expanduser().absolute()
    import platformdirs

    return platformdirs.user_cache_path("sciopt", appauthor=False).absolute() / "data"


def mirror_dir() -> Path | None:
    """Folder of ready files named by ``$SCIOPT_DATA_MIRROR``, laid out by registry names; None when it is not set.

    Raises:
        DataError: when the variable names something that is not a folder.

    Example:
        >>> folder = mirror_dir()
        >>> folder is None or folder.is_dir()
        True
    """
    given = os.environ.get(MIRROR_VARIABLE)
    if not given:
        return None
    folder = Path(given).expanduser().absolute()
    if not folder.is_dir():
        raise DataError(
            f"mirror_dir: expected `{MIRROR_VARIABLE}` to name a folder, got {given!r}. Correct or unset the variable."
        )
    return folder


def verify(name: str, folder: Path | None = None) -> FileState:
    """Compare one file on disk with the registry's checksum; downloads nothing.

    Args:
        name: registry name.
        folder: where to look, laid out by registry names; the cache by default.

    Returns:
        `FileState`: ok, missing or corrupt.

    Raises:
        ValueError: for an unknown name.

    Example:
        >>> verify("molecules/chembl_1k.smi", folder=Path("no-such-folder"))
        <FileState.MISSING: 'missing'>
    """
    item = entry(name)
    path = (folder or cache_dir()) / item.name
    if not path.is_file():
        return FileState.MISSING
    return FileState.OK if _matches(path, item) else FileState.CORRUPT


def fetch(name: str) -> Path:
    """Path of a verified local copy, fetched first if need be.

    Looks in the cache, then in the mirror folder ``$SCIOPT_DATA_MIRROR``, then downloads. Bytes go to a temporary file
    in the target's folder, are compared with the SHA-256 of the registry, and only then renamed: an interrupted or
    wrong download leaves no file under the final name, and processes that fetch the same file at once do no harm. A
    corrupt file in the cache is replaced; a corrupt file in the mirror is refused.

    Args:
        name: registry name, e.g. ``"molecules/chembl_1k.smi"``.

    Returns:
        Path inside the cache folder (``$SCIOPT_DATA_DIR``, see `cache_dir`).

    Raises:
        ValueError: for an unknown name.
        DataError: when the file cannot be had; the message names the address, the place and the variable.

    Example:
        >>> fetch("molecules/chembl_1k.smi").name  # doctest: +SKIP
        'chembl_1k.smi'
    """
    item = entry(name)
    path = cache_dir() / item.name
    if path.is_file() and _matches(path, item):
        return path
    mirror = mirror_dir()
    if mirror is not None and (source := mirror / item.name).is_file():
        if not _matches(source, item):
            raise DataError(
                f"fetch: expected {source} to have SHA-256 {item.sha256}, got other contents. Replace the file in the "
                f"mirror, or unset `{MIRROR_VARIABLE}` to download it."
            )
        _retrieve(item, path, str(source), downloader=_copy, retries=0)
    elif item.url is None:
        raise DataError(
            f"fetch: expected a copy of `{item.name}` in the cache or a mirror, got none. This file was converted from "
            f"{item.source_url} and has no public address of its own. {_advice(item, path)}"
        )
    else:
        _retrieve(item, path, item.url, downloader=_download, retries=RETRIES)
    return path


def _advice(item: Entry, path: Path) -> str:
    return (
        f"Place the file (SHA-256 {item.sha256}, {item.size} bytes) at {path}, or set `{MIRROR_VARIABLE}` to a folder "
        f"that holds {item.name}."
    )


def _matches(path: Path, item: Entry) -> bool:
    if path.stat().st_size != item.size:
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == item.sha256


def _copy(source: str, output_file: Any, pooch: Any) -> None:
    """A pooch downloader for a local file."""
    shutil.copyfile(source, output_file)
    os.chmod(output_file, 0o644)  # pooch's temporary files are private, a cache may be shared


def _download(url: str, output_file: Any, pooch: Any) -> None:
    """A pooch downloader that closes its connection also when the answer is an error or cut short; pooch's leaks it."""
    import requests

    with requests.get(url, stream=True, timeout=30) as response, open(output_file, "wb") as file:
        response.raise_for_status()
        for chunk in response.iter_content(1 << 20):
            file.write(chunk)
    os.chmod(output_file, 0o644)


def _retrieve(item: Entry, path: Path, url: str, *, downloader: Callable[..., None], retries: int) -> None:
    """Through pooch: temporary file, checksum, rename, retries."""
    import pooch
    import requests

    root = path.parents[len(Path(item.name).parts) - 1]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fetcher = pooch.create(
            root, "", registry={item.name: f"sha256:{item.sha256}"}, urls={item.name: url}, retry_if_failed=retries
        )
        fetcher.fetch(item.name, downloader=downloader)
    except (ValueError, OSError, requests.exceptions.RequestException) as error:
        retried = retries and isinstance(error, (ValueError, requests.exceptions.RequestException))
        attempts = f"{retries + 1} attempts" if retried else "one attempt"
        raise DataError(
            f"fetch: expected `{item.name}` from {url}, got {type(error).__name__} after {attempts} ({error}). "
            f"Download {item.url or item.source_url} by hand. {_advice(item, path)}"
        ) from error
