"""Hyperparameters of logistic regression, n = 200, d = m = 10,000: time to a relative hypergradient error of 1e-3."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import torch

from tests.benchmarks.logistic import Logistic, make_logistic
from tests.benchmarks.logistic_routes import ROUTES, TORCH_PEERS
from tests.benchmarks.measure import side_by_side
from tests.benchmarks.table import Measured, PeerMissing, bar

ACCURACY = 1e-3
ROUNDS = 9
SECONDS_PER_ROUTE = 60.0


def best_setting(problem: Logistic, name: str) -> tuple[str, Callable[[], Any]] | None:
    """The fastest setting of a route that reaches the accuracy: one timed run of each, then a race of the best three."""
    good: list[tuple[float, str, Callable[[], Any]]] = []
    begin = time.perf_counter()
    for label, run in ROUTES[name](problem):
        start = time.perf_counter()
        grad = run()
        seconds = time.perf_counter() - start
        if problem.error(grad) <= ACCURACY:
            good.append((seconds, label, run))
        if time.perf_counter() - begin > SECONDS_PER_ROUTE:
            break
    if not good:
        return None
    finalists = {label: run for _, label, run in sorted(good, key=lambda entry: entry[0])[:3]}
    medians = side_by_side(finalists, repeat=3, warmup=0)
    label = min(medians, key=medians.__getitem__)
    return label, finalists[label]


@functools.cache
def race() -> tuple[dict[str, float], dict[str, str]]:
    """Median seconds of every route at its best setting, taken in turns on one thread, and those settings."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        problem = make_logistic()
        chosen: dict[str, Callable[[], Any]] = {}
        labels: dict[str, str] = {}
        for name in ROUTES:
            try:
                found = best_setting(problem, name)
            except PeerMissing as missing:
                labels[name] = str(missing)
                continue
            if found is None:
                labels[name] = f"no setting reached {ACCURACY:g}"
            else:
                labels[name], chosen[name] = found
        return side_by_side(chosen, repeat=ROUNDS), labels
    finally:
        torch.set_num_threads(threads)


def compared(name: str, times: dict[str, float], labels: dict[str, str]) -> str:
    """One route for the note."""
    return f"{name} {1e3 * times[name]:.0f} ms ({labels[name]})" if name in times else f"{name}: {labels[name]}"


@bar("logistic hyperparameters, best torch package / sciopt", tier="bench", bar=">= 3x")
def against_torch() -> Measured:
    times, labels = race()
    peers = [name for name in TORCH_PEERS if name in times]
    if not peers:
        raise PeerMissing("; ".join(f"{name}: {labels[name]}" for name in TORCH_PEERS))
    best = min(peers, key=times.__getitem__)
    note = "; ".join(compared(name, times, labels) for name in ("sciopt", *TORCH_PEERS))
    return Measured(times[best] / times["sciopt"], note)


@bar("logistic hyperparameters, sciopt / warm optimistix", tier="bench", bar="<= 1.5x")
def against_optimistix() -> Measured:
    times, labels = race()
    if "optimistix" not in times:
        raise PeerMissing(f"optimistix: {labels['optimistix']}")
    return Measured(times["sciopt"] / times["optimistix"], compared("optimistix", times, labels))


@bar("logistic hyperparameters, jaxopt / sciopt", tier="bench", bar=None)
def against_jaxopt() -> Measured:
    times, labels = race()
    if "jaxopt" not in times:
        raise PeerMissing(f"jaxopt: {labels['jaxopt']}")
    return Measured(times["jaxopt"] / times["sciopt"], compared("jaxopt", times, labels))


@bar("logistic hyperparameters, best hand-written torch / sciopt", tier="bench", bar=None)
def against_hand_written() -> Measured:
    times, labels = race()
    names = [name for name in times if name.startswith("by hand")]
    best = min(names, key=times.__getitem__)
    return Measured(times[best] / times["sciopt"], "; ".join(compared(name, times, labels) for name in names))
