"""Hyperparameters of logistic regression, n = 200, d = m = 10,000: time to a relative hypergradient error of 1e-3."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch

from tests.benchmarks.logistic import Logistic, make_logistic
from tests.benchmarks.logistic_routes import HAND_WRITTEN, OURS, ROUTES, TORCH_PEERS
from tests.benchmarks.measure import side_by_side
from tests.benchmarks.table import Measured, PeerMissing, bar

ACCURACY = 1e-3
ROUNDS = 9
SECONDS_PER_ROUTE = 45.0


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


def fastest(names: Iterable[str], times: dict[str, float]) -> str:
    """The fastest of those that ran; `PeerMissing` where none did."""
    ran = [name for name in names if name in times]
    if not ran:
        raise PeerMissing(f"none of {', '.join(names)} ran")
    return min(ran, key=times.__getitem__)


def ratio(above: Iterable[str], below: Iterable[str]) -> Measured:
    """Time of the fastest of ``above`` over that of the fastest of ``below``; everybody's setting in the note."""
    times, labels = race()
    value = times[fastest(above, times)] / times[fastest(below, times)]
    return Measured(value, "; ".join(compared(name, times, labels) for name in (*below, *above)))


@bar("logistic hyperparameters, best torch package / sciopt as a black box", tier="bench", bar=">= 3x")
def black_box_against_torch() -> Measured:
    """The like-for-like comparison: every route sees the loss only."""
    found = ratio(TORCH_PEERS, OURS[1:])
    tried = (
        "tried: L-BFGS-preconditioned and Galerkin-seeded CG (1 to 3 of 18 products saved), host-side scalars (kept)"
    )
    return Measured(found.value, f"{found.note}; {tried}")


@bar("logistic hyperparameters, best torch package / sciopt's closed form", tier="bench", bar=None)
def closed_form_against_torch() -> Measured:
    """Not like for like: the formula uses that there are fewer rows than weights, which no peer is told."""
    return ratio(TORCH_PEERS, OURS[:1])


@bar("logistic hyperparameters, best hand-written torch / sciopt's best", tier="bench", bar=None)
def against_hand_written() -> Measured:
    return ratio(HAND_WRITTEN, OURS)


@bar("logistic hyperparameters, sciopt as a black box / warm optimistix", tier="bench", bar="<= 1.5x")
def against_optimistix() -> Measured:
    return ratio(OURS[1:], ("optimistix",))


@bar("logistic hyperparameters, sciopt as a black box / warm jaxopt", tier="bench", bar=None)
def against_jaxopt() -> Measured:
    return ratio(OURS[1:], ("jaxopt",))
