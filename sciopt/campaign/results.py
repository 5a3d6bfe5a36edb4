"""One folder per finished design: written aside, synced, renamed into place, and checked when it is read.

``designs/<key>/`` holds ``result.json``, ``arrays.safetensors``, ``figures/*.png`` and ``files/*``. ``result.json`` carries
the SHA-256 of the other files and of itself. These folders are the truth of a campaign; its queue is rebuilt from them.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sciopt.campaign.errors import StoreError
from sciopt.campaign.registry import JobResult
from sciopt.campaign.spec import Design

__all__ = ["DamagedResult", "FinishedDesign", "finished_keys", "publish", "read_result", "set_aside", "write_json"]

FORMAT = 1
FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")


class DamagedResult(StoreError):
    """A result folder whose files are missing, unreadable or not what their checksums say."""


@dataclass(frozen=True, kw_only=True)
class FinishedDesign:
    """A finished design as read from its folder; ``run`` says when, how long and with which versions."""

    folder: Path
    design: Design
    objective: float
    status: str
    advice: str
    metrics: dict[str, Any]
    certificate: dict[str, Any]
    history: dict[str, list[float]]
    warnings: list[str]
    figures: dict[str, Path]
    arrays: Path | None
    files: dict[str, Path]
    run: dict[str, Any]


def result_folder(root: Path, key: str) -> Path:
    """Where the result of this key is published."""
    return root / "designs" / key


def publish(root: Path, design: Design, result: JobResult, run: dict[str, Any]) -> Path:
    """Write the result aside, sync it to disk and rename it into place, so that it is there whole or not at all.

    Figures and files are made here; one that fails becomes a warning, because a picture must not cost the result.

    Returns:
        The published folder. A valid one that is there already is kept.

    Raises:
        TypeError: for entries of the result that cannot be stored, by name.
        ValueError: for an unknown status or history columns of different lengths.
    """
    advice = _check_result(design, result)
    designs = root / "designs"
    designs.mkdir(parents=True, exist_ok=True)
    folder = designs / f".tmp-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    folder.mkdir()
    try:
        warnings = list(result.warnings)
        figures = _draw(folder, result, warnings)
        extra = _write_files(folder, result, warnings)
        arrays = None
        if result.arrays:
            arrays = "arrays.safetensors"
            _save_arrays(folder / arrays, result.arrays, design.problem)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        for path in files:
            _sync(path)
        content = {
            "format": FORMAT,
            "design": asdict(design),
            "objective": _number(result.objective),
            "status": result.status,
            "advice": advice,
            "metrics": _plain(result.metrics, "metrics"),
            "certificate": _plain(result.certificate, "certificate"),
            "history": {name: [_number(value) for value in column] for name, column in result.history.items()},
            "warnings": warnings,
            "figures": figures,
            "arrays": arrays,
            "extra": extra,
            "run": run,
            "files": {path.relative_to(folder).as_posix(): _sha256(path) for path in files},
        }
        write_json(folder / "result.json", {"checksum": _checksum(content), **content})
        for path in (folder / "figures", folder / "files", folder):
            if path.is_dir():
                _sync(path)
        target = result_folder(root, design.key)
        _rename(root, folder, target, design.key)
        _sync(designs)
        return target
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def read_result(root: Path, key: str) -> FinishedDesign:
    """Read one finished design and check every byte of it.

    Raises:
        DamagedResult: when a file is missing, unreadable or differs from its checksum.
    """
    folder = result_folder(root, key)
    try:
        content = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        checksum = content.pop("checksum")
        if content["format"] != FORMAT:
            raise DamagedResult(f"{folder}: expected result format {FORMAT}, got {content['format']!r}.")
        if checksum != _checksum(content) or content["design"]["key"] != key:
            raise DamagedResult(f"{folder / 'result.json'}: expected the recorded checksum, got changed content.")
        for name, digest in content["files"].items():
            if _sha256(folder / name) != digest:
                raise DamagedResult(f"{folder / name}: expected the recorded SHA-256, got changed content.")
        return FinishedDesign(
            folder=folder,
            design=Design(**content["design"]),
            objective=float(content["objective"]),
            status=content["status"],
            advice=content["advice"],
            metrics=content["metrics"],
            certificate=content["certificate"],
            history={name: [float(value) for value in column] for name, column in content["history"].items()},
            warnings=content["warnings"],
            figures={name: folder / path for name, path in content["figures"].items()},
            arrays=folder / content["arrays"] if content["arrays"] else None,
            files={name: folder / path for name, path in content.get("extra", {}).items()},
            run=content["run"],
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, DamagedResult):
            raise
        raise DamagedResult(f"{folder}: expected a whole result, got {type(error).__name__}: {error}.") from error


def finished_keys(root: Path) -> list[str]:
    """Keys that have a published folder, damaged or not."""
    designs = root / "designs"
    if not designs.is_dir():
        return []
    return sorted(path.name for path in designs.iterdir() if path.is_dir() and not path.name.startswith("."))


def set_aside(root: Path, key: str) -> Path:
    """Move a damaged result out of the way, so that it can be looked at and computed anew; returns where it went."""
    target = root / "designs" / f".damaged-{key[:12]}-{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:4]}"
    result_folder(root, key).rename(target)
    return target


def write_json(path: Path, content: Any) -> None:
    """Write JSON through a synced temporary file and a rename, so that a reader never sees half of it."""
    aside = path.with_name(f".{path.name}-{uuid.uuid4().hex[:8]}")
    with aside.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=1, ensure_ascii=False)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


def _check_result(design: Design, result: Any) -> str:
    from sciopt.solution import Status

    if not isinstance(result, JobResult):
        raise TypeError(f"{design.problem}: expected the job to return a JobResult, got {type(result).__name__}.")
    if result.status not in Status.__members__:
        known = ", ".join(Status.__members__)
        raise ValueError(f"{design.problem}: expected `status` to be one of {known}, got {result.status!r}.")
    lengths = {name: len(column) for name, column in result.history.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{design.problem}: expected `history` columns of equal length, got {lengths}.")
    odd = [name for name in result.files if not isinstance(name, str) or not FILE_NAME.fullmatch(name)]
    if odd or len({name.lower() for name in result.files}) < len(result.files):
        raise ValueError(
            f"{design.problem}: expected `files` by plain names that differ, got {odd or list(result.files)}. "
            "Use letters, digits, dots, dashes and underscores, no folders."
        )
    return Status[result.status].advice


def _draw(folder: Path, result: JobResult, warnings: list[str]) -> dict[str, str]:
    figures: dict[str, str] = {}
    for number, (name, draw) in enumerate(result.figures.items()):
        relative = f"figures/{number:02d}.png"
        path = folder / relative
        path.parent.mkdir(exist_ok=True)
        try:
            draw(path)
            if not path.read_bytes().startswith(b"\x89PNG"):
                raise ValueError("what it wrote is not a PNG")
            figures[name] = relative
        except Exception as error:
            path.unlink(missing_ok=True)
            warnings.append(f"The figure `{name}` could not be drawn: {type(error).__name__}: {error}")
    return figures


def _write_files(folder: Path, result: JobResult, warnings: list[str]) -> dict[str, str]:
    files: dict[str, str] = {}
    for name, write in result.files.items():
        path = folder / "files" / name
        path.parent.mkdir(exist_ok=True)
        try:
            write(path)
            if not path.is_file():
                raise ValueError("nothing was written")
            files[name] = f"files/{name}"
        except Exception as error:
            path.unlink(missing_ok=True)
            warnings.append(f"The file `{name}` could not be written: {type(error).__name__}: {error}")
    return files


def _save_arrays(path: Path, arrays: Mapping[str, Any], owner: str) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    for name, array in arrays.items():
        if not isinstance(array, np.ndarray) or array.dtype == object:
            raise TypeError(
                f"{owner}: expected the array `{name}` to be a numeric numpy array, got {type(array).__name__}."
            )
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, path)


def _rename(root: Path, folder: Path, target: Path, key: str) -> None:
    for _ in range(3):
        try:
            folder.rename(target)
            return
        except OSError:
            if not target.exists():
                raise
        try:
            read_result(root, key)
            return
        except DamagedResult:
            set_aside(root, key)
    raise StoreError(f"{target}: expected to publish the result, got a folder in the way each time. Remove it.")


def _plain(values: Mapping[str, Any], what: str) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    for name, value in values.items():
        if hasattr(value, "item") and not isinstance(value, (str, bytes)):
            value = value.item()
        if not isinstance(value, (bool, int, float, str)):
            raise TypeError(f"JobResult: expected `{what}[{name!r}]` to be a number, word or bool, got {value!r}.")
        plain[str(name)] = _number(value) if isinstance(value, float) else value
    return plain


def _number(value: Any) -> float | str:
    """A float JSON can hold; NaN and infinities become words."""
    value = float(value)
    return value if math.isfinite(value) else str(value)


def _checksum(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
