"""What files there are: name, public URL, checksum, licence, size, units, description."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import final

__all__ = ["Entry", "entry", "registry"]


@final
@dataclass(frozen=True, kw_only=True)
class Entry:
    """One file of the registry.

    The licence is that of the repository the file is published in; the terms of the original measurements are for the
    user to check.

    Args:
        name: path inside the cache and inside a mirror folder, with forward slashes.
        url: address of exactly these bytes, or None where they are published nowhere (a converted file).
        source_url: where the file, or what it was converted from, comes from.
        sha256: checksum of the bytes, 64 hexadecimal digits.
        size: bytes.
        licence: SPDX name, with the copyright line where the licence asks for one.
        units: units of the numbers inside.
        description: what is inside, and its pitfalls.

    Example:
        >>> entry("molecules/chembl_1k.smi").licence
        'Apache-2.0'
    """

    name: str
    url: str | None
    source_url: str
    sha256: str
    size: int
    licence: str
    units: str
    description: str


@cache
def registry() -> Mapping[str, Entry]:
    """All entries by name, read-only.

    Returns:
        Mapping from `Entry.name` to `Entry`, in the order of the registry file.

    Example:
        >>> sum(name.endswith(".pdb") for name in registry() if name.startswith("proteins/ddg/pdbs/"))
        181
    """
    groups = json.loads(Path(__file__).with_name("registry.json").read_text(encoding="utf-8"))["groups"]
    entries = {}
    for group in groups:
        for file, (sha256, size) in group["files"].items():
            name = f"{group['folder']}/{file}"
            entries[name] = Entry(
                name=name,
                url=group["url"].replace("{name}", file) if group["url"] else None,
                source_url=group["source_url"],
                sha256=sha256,
                size=size,
                licence=group["licence"],
                units=group["units"],
                description=group["description"],
            )
    return MappingProxyType(entries)


def entry(name: str) -> Entry:
    """The entry of one file.

    Args:
        name: registry name, e.g. ``"molecules/chembl_1k.smi"``.

    Returns:
        The `Entry`.

    Raises:
        ValueError: for an unknown name; close names are suggested.

    Example:
        >>> entry("offline/gb1/four_mutations_full_data.csv.zip").units
        'fitness, unitless (wild type = 1)'
    """
    entries = registry()
    if name in entries:
        return entries[name]
    close = difflib.get_close_matches(name, entries, n=3, cutoff=0.6)
    close += [known for known in entries if known.rsplit("/", 1)[1].lower() == name.rsplit("/", 1)[-1].lower()]
    hint = f"Did you mean {' or '.join(f'`{c}`' for c in dict.fromkeys(close))}? " if close else ""
    raise ValueError(
        f"entry: expected `name` to be a name of the data registry, got {name!r}. {hint}"
        "`sciopt data list` shows all names."
    )
