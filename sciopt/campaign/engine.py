"""Where designs run: engines with the two methods of ``concurrent.futures.Executor`` that a campaign uses.

The standard process pool loses every waiting task when one worker dies. Here each worker is a process of its own, in
its own session, so that ^C in the terminal reaches the campaign alone; a worker that dies fails its own task and is
replaced.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import IO, Any, Protocol, final

__all__ = ["Engine", "InlineEngine", "ProcessEngine", "WorkerDied", "available_cores"]


class Engine(Protocol):
    """What a campaign needs of an engine; any ``concurrent.futures.Executor`` fits."""

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> Future[Any]:
        """Start ``fn(*args)`` somewhere; ``fn`` is a plain function of a module, ``args`` are words and numbers."""
        ...

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End; with ``cancel_futures`` also what runs now, where the engine can."""
        ...


class WorkerDied(RuntimeError):
    """A worker process ended in the middle of a task; the message says how."""


class WorkerFailed(RuntimeError):
    """The called function raised; `trace` holds the traceback of the worker."""

    def __init__(self, message: str, trace: str) -> None:
        super().__init__(message)
        self.trace = trace


@final
class InlineEngine:
    """Runs each task in the calling process, for debugging (``--workers 0``).

    Example:
        >>> InlineEngine().submit(max, 1, 2).result()
        2
    """

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> Future[Any]:
        """Run ``fn(*args)`` now."""
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args))
        except Exception as error:
            future.set_exception(error)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Nothing to end."""


@final
class ProcessEngine:
    """Worker processes on this machine, each started when it is first needed and again when it died.

    Args:
        workers: number of processes, at least 1.
        threads: CPU threads that numerical libraries may use in each.
        logs: folder for what the workers print, one file each.
    """

    def __init__(self, workers: int, *, threads: int, logs: Path) -> None:
        self._tasks: queue.SimpleQueue[tuple[Future[Any], str] | None] = queue.SimpleQueue()
        logs.mkdir(parents=True, exist_ok=True)
        self._workers = [_Worker(logs / f"worker-{i}.log", threads, self._tasks) for i in range(workers)]

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> Future[Any]:
        """Run ``fn(*args)`` in a worker; its exception is `WorkerDied` when the process ends under it."""
        future: Future[Any] = Future()
        request = json.dumps({"call": f"{fn.__module__}:{fn.__qualname__}", "args": args})
        self._tasks.put((future, request))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Let the workers end after their tasks, or end them now with ``cancel_futures``."""
        if cancel_futures:
            for worker in self._workers:
                worker.kill()
        for _ in self._workers:
            self._tasks.put(None)
        if wait or cancel_futures:
            for worker in self._workers:
                worker.thread.join()


class _Worker:
    """One process and the thread that talks to it."""

    def __init__(self, log: Path, threads: int, tasks: queue.SimpleQueue[tuple[Future[Any], str] | None]) -> None:
        self._log = log
        self._threads = threads
        self._tasks = tasks
        self._process: subprocess.Popen[str] | None = None
        self._stopped = False
        self._lock = threading.Lock()
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def kill(self) -> None:
        """End the process and whatever it started, now."""
        with self._lock:
            self._stopped = True
            if self._process is not None and self._process.poll() is None:
                _kill_session(self._process)

    def _serve(self) -> None:
        while (task := self._tasks.get()) is not None:
            future, request = task
            if self._stopped or not future.set_running_or_notify_cancel():
                future.cancel()
                continue
            try:
                answer = self._ask(request)
            except Exception as error:
                future.set_exception(error)
                continue
            if "error" in answer:
                future.set_exception(WorkerFailed(answer["error"], answer["trace"]))
            else:
                future.set_result(answer["value"])
        self._close()

    def _ask(self, request: str) -> dict[str, Any]:
        with self._lock:
            if self._stopped:
                raise WorkerDied("the campaign was stopped")
            if self._process is None or self._process.poll() is not None:
                self._close()
                self._process = self._start()
            process = self._process
        start = self._log.stat().st_size
        try:
            _pipe(process.stdin).write(request + "\n")
            _pipe(process.stdin).flush()
            answers = _pipe(process.stdout)
            # Look at the process too: what a job forked may hold the pipe open after the worker's death.
            while not select.select([answers], [], [], 0.5)[0] and process.poll() is None:
                pass
            line = answers.readline() if select.select([answers], [], [], 0.0)[0] else ""
        except OSError:
            line = ""
        if line.endswith("\n"):
            return json.loads(line)
        code = process.wait()
        _kill_session(process)
        raise WorkerDied(self._obituary(code, start))

    def _start(self) -> subprocess.Popen[str]:
        threads = str(self._threads)
        settings = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), threads)
        settings |= {"MPLBACKEND": "Agg", "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
        with self._log.open("a", encoding="utf-8") as log:
            return subprocess.Popen(
                [sys.executable, "-c", "from sciopt.campaign.worker import serve; serve()"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                encoding="utf-8",
                env={**os.environ, **settings},
                start_new_session=True,
            )

    def _obituary(self, code: int, start: int) -> str:
        how = f"exit code {code}"
        if code < 0:
            with contextlib.suppress(ValueError):
                how = signal.Signals(-code).name
        with self._log.open("rb") as file:
            file.seek(start)
            tail = file.read()[-2000:].decode("utf-8", "replace").strip()
        hint = " (often: out of memory)" if how == "SIGKILL" else ""
        return f"the worker process ended with {how}{hint}" + (f"\nIt last wrote:\n{tail}" if tail else "")

    def _close(self) -> None:
        process = self._process
        if process is None:
            return
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        process.wait()


def _pipe(pipe: IO[str] | None) -> IO[str]:
    if pipe is None:
        raise WorkerDied("the worker process has no pipe")
    return pipe


def _kill_session(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if os.name == "posix":
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()


def available_cores() -> int:
    """CPU cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
