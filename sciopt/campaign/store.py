"""The queue of a campaign folder: which designs wait, run, are done or failed; a SQLite file in WAL mode.

The queue is a convenience, the result folders are the truth: a store that is missing or damaged is put aside and
rebuilt from them. Processes meet only here; every change is one transaction, and a running design carries a lease that
its worker renews, so that a design whose worker died is seen and queued again.
"""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from sciopt.campaign.errors import StoreError
from sciopt.campaign.spec import Design

__all__ = ["Row", "Store", "open_store", "set_store_aside"]

NAME = "campaign.sqlite"
LEASE = 60.0  # seconds a running design is left alone after its last sign of life
_SCHEMA = 1
_TABLE = """
CREATE TABLE designs (
    key TEXT PRIMARY KEY, position INTEGER NOT NULL, design TEXT NOT NULL, wanted INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('PENDING', 'RUNNING', 'DONE', 'FAILED')), attempts INTEGER NOT NULL DEFAULT 0,
    pid INTEGER, host TEXT, lease REAL, step INTEGER, objective REAL, status TEXT, seconds REAL, reason TEXT, trace TEXT
)
"""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One design as the queue sees it; ``objective`` and ``step`` are the last ones its worker reported."""

    key: str
    design: Design
    wanted: bool
    state: str
    attempts: int
    pid: int | None
    host: str | None
    lease: float | None
    step: int | None
    objective: float | None
    status: str | None
    seconds: float | None
    reason: str | None
    trace: str | None

    @property
    def alive(self) -> bool:
        """Whether the worker of a running design still shows signs of life."""
        if self.lease is None or self.lease < time.time():
            return False
        return self.host != socket.gethostname() or (self.pid is not None and process_alive(self.pid))


class Store:
    """An open queue; use it in the thread that opened it. `open_store` makes one.

    Raises:
        StoreError: from every method, when the file turns out to be damaged.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._guard():
            self._db = sqlite3.connect(path, timeout=30.0, isolation_level=None)
        self._db.row_factory = sqlite3.Row

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; the queue stays as it is."""
        self._db.close()

    def prepare(self) -> None:
        """Make the table if it is missing, and check that the file is whole.

        Raises:
            StoreError: when it is damaged or of another format.
        """
        with self._guard():
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            tables = [row[0] for row in self._db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            if version == 0 and not tables:
                self._db.execute("PRAGMA journal_mode = WAL")
                with self._change():
                    self._db.execute(_TABLE)
                    self._db.execute(f"PRAGMA user_version = {_SCHEMA}")
            elif version != _SCHEMA or tables != ["designs"]:
                raise StoreError(
                    f"{self._path}: expected a queue of format {_SCHEMA}, got format {version} with {tables}."
                )
            check = self._db.execute("PRAGMA quick_check(1)").fetchone()[0]
            if check != "ok":
                raise StoreError(f"{self._path}: expected a whole database, got: {check}.")
            self.rows()

    def synchronise(self, designs: Iterable[Design], finished: Mapping[str, tuple[str, float, float]]) -> None:
        """Make the queue say what the plan and the result folders say.

        New designs are added, finished ones marked, failed ones queued again with fresh attempts, and running ones
        whose worker is dead queued again. Designs that left the plan are kept, unwanted.

        Args:
            designs: the plan, in order.
            finished: status, objective and seconds of each published result, by key.
        """
        with self._guard(), self._change():
            self._db.execute("UPDATE designs SET wanted = 0")
            for position, design in enumerate(designs):
                self._db.execute(
                    "INSERT INTO designs (key, position, design, wanted, state) VALUES (?, ?, ?, 1, 'PENDING') "
                    "ON CONFLICT (key) DO UPDATE SET position = excluded.position, design = excluded.design, "
                    "wanted = 1",
                    (design.key, position, json.dumps(asdict(design))),
                )
            for row in self.rows(wanted=False):
                if row.key in finished:
                    self._db.execute(
                        "UPDATE designs SET state = 'DONE', status = ?, objective = ?, seconds = ?, reason = NULL, "
                        "trace = NULL WHERE key = ?",
                        (*finished[row.key], row.key),
                    )
                elif not (row.state == "RUNNING" and row.alive and row.pid != os.getpid()):
                    self._db.execute(
                        "UPDATE designs SET state = 'PENDING', attempts = 0, pid = NULL, lease = NULL, step = NULL, "
                        "objective = NULL, status = NULL, seconds = NULL, reason = NULL, trace = NULL WHERE key = ?",
                        (row.key,),
                    )

    def rows(self, *, wanted: bool = True, state: str | None = None, limit: int = -1) -> list[Row]:
        """Designs in the plan's order; with ``wanted=False`` also those that left the plan."""
        with self._guard():
            found = self._db.execute(
                "SELECT * FROM designs WHERE wanted >= ? AND (? IS NULL OR state = ?) "
                "ORDER BY wanted DESC, position LIMIT ?",
                (int(wanted), state, state, limit),
            )
            return [_row(item) for item in found]

    def row(self, key: str) -> Row:
        """One design."""
        with self._guard():
            found = self._db.execute("SELECT * FROM designs WHERE key = ?", (key,)).fetchone()
            if found is None:
                raise StoreError(f"{self._path}: expected the design {key[:12]} in the queue, got none.")
            return _row(found)

    def claim(self, key: str) -> bool:
        """Take a waiting design for this process; False if it is not waiting any more."""
        with self._guard(), self._change():
            done = self._db.execute(
                "UPDATE designs SET state = 'RUNNING', attempts = attempts + 1, pid = ?, host = ?, lease = ?, "
                "step = NULL, objective = NULL, reason = NULL, trace = NULL WHERE key = ? AND state = 'PENDING'",
                (os.getpid(), socket.gethostname(), time.time() + LEASE, key),
            )
            return done.rowcount == 1

    def beat(self, key: str, step: int | None, objective: float | None) -> None:
        """Sign of life of the process that claimed the design, with its progress."""
        with self._guard(), self._change():
            self._db.execute(
                "UPDATE designs SET lease = ?, step = ?, objective = ? WHERE key = ? AND state = 'RUNNING' AND pid = ?",
                (time.time() + LEASE, step, objective, key, os.getpid()),
            )

    def done(self, key: str, *, status: str, objective: float, seconds: float) -> None:
        """The design's result is published."""
        with self._guard(), self._change():
            self._db.execute(
                "UPDATE designs SET state = 'DONE', status = ?, objective = ?, seconds = ?, reason = NULL, "
                "trace = NULL WHERE key = ?",
                (status, objective, seconds, key),
            )

    def fail(self, key: str, *, reason: str, trace: str, seconds: float | None = None) -> None:
        """The design failed for good in this run."""
        with self._guard(), self._change():
            self._db.execute(
                "UPDATE designs SET state = 'FAILED', reason = ?, trace = ?, seconds = ? "
                "WHERE key = ? AND state != 'DONE'",
                (reason, trace, seconds, key),
            )

    def release(self, key: str) -> None:
        """Put a running design back into the queue."""
        with self._guard(), self._change():
            self._db.execute(
                "UPDATE designs SET state = 'PENDING', pid = NULL, lease = NULL WHERE key = ? AND state = 'RUNNING'",
                (key,),
            )

    @contextmanager
    def _change(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    @contextmanager
    def _guard(self) -> Iterator[None]:
        try:
            yield
        except StoreError:
            raise
        except sqlite3.OperationalError as error:
            raise StoreError(
                f"{self._path}: expected to read and write the queue, got: {error}. "
                "Check free space and permissions; finished designs are safe, and the same command goes on."
            ) from error
        except (sqlite3.DatabaseError, ValueError, TypeError) as error:
            raise StoreError(
                f"{self._path}: expected a whole database, got: {error}. "
                "Finished designs are safe; run the same command again to rebuild the queue."
            ) from error


def open_store(directory: Path) -> tuple[Store, str | None]:
    """Open the queue of a campaign folder; a damaged one is put aside and replaced by an empty one.

    Returns:
        The store, and a sentence for the user when the old one had to be put aside.
    """
    path = directory / NAME
    store = Store(path)
    try:
        store.prepare()
        return store, None
    except StoreError as error:
        store.close()
        if isinstance(error.__cause__, sqlite3.OperationalError) and not _looks_damaged(path):
            raise
        moved = set_store_aside(directory)
        store = Store(path)
        store.prepare()
        why = error.__cause__ or error
        return store, f"{path} was damaged ({why}): put aside as {moved.name}, rebuilt from the finished designs."


def set_store_aside(directory: Path) -> Path:
    """Rename the queue's files to ``.corrupt-<time>``; returns the new name of the main one."""
    suffix = f".corrupt-{time.strftime('%Y%m%d-%H%M%S')}"
    while (directory / (NAME + suffix)).exists():
        suffix += "x"
    for extra in ("", "-wal", "-shm"):
        old = directory / (NAME + extra)
        if old.exists():
            old.rename(directory / (NAME + suffix + extra))
    return directory / (NAME + suffix)


def process_alive(pid: int) -> bool:
    """Whether a process of this machine exists."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _looks_damaged(path: Path) -> bool:
    try:
        with closing(sqlite3.connect(path, timeout=1.0)) as db:
            return db.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok"
    except sqlite3.OperationalError as error:
        return "malformed" in str(error) or "no such column" in str(error)
    except sqlite3.DatabaseError:
        return True


def _row(item: sqlite3.Row) -> Row:
    values: dict[str, Any] = dict(item)
    values["design"] = Design(**json.loads(values["design"]))
    values["wanted"] = bool(values["wanted"])
    del values["position"]
    return Row(**values)
