"""What a function evaluation costs a stepper besides the function: against torchdiffeq, whose 5(4) pair takes as many."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sciopt import InitialValue, best_response
from sciopt.steppers import Dopri5
from sciopt.steppers.native_library import library
from tests.benchmarks.table import Measured, PeerMissing, bar, peer

ROWS, SIZE, RTOL, END = 256, 2, 1e-7, 60.0


def least(runs: dict[str, Callable[[], Any]], repeat: int) -> dict[str, float]:
    """Least CPU seconds of each function, taken in turns: the price of bookkeeping, not that of a busy machine."""
    found = dict.fromkeys(runs, float("inf"))
    for _ in range(repeat):
        for name, call in runs.items():
            begin = time.process_time()
            call()
            found[name] = min(found[name], time.process_time() - begin)
    return found


@functools.cache
def measured() -> dict[str, float]:
    """Microseconds of an evaluation of each engine, the function itself costing nothing."""
    torchdiffeq = peer("torchdiffeq")
    torch.set_num_threads(1)
    count = [0]
    start = torch.randn(ROWS, SIZE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    times = torch.tensor([0.0, END], dtype=torch.float64)
    one = torch.ones((), dtype=torch.float64)

    def ours(t: Tensor, y: Tensor, phi: Tensor) -> Tensor:
        count[0] += 1
        return y

    def theirs(t: Tensor, y: Tensor) -> Tensor:
        count[0] += 1
        return y

    problem = InitialValue(ours, times, batch_ndim=1)
    eager, compiled = (Dopri5(rtol=RTOL, atol=RTOL, compiled=flag) for flag in (False, True))
    runs = {
        "eager": lambda: best_response(problem, one, init=start, solver=eager),
        "compiled": lambda: best_response(problem, one, init=start, solver=compiled),
        "torchdiffeq": lambda: torchdiffeq.odeint(theirs, start, times, rtol=RTOL, atol=RTOL, method="dopri5"),
    }
    with torch.no_grad():
        evaluations = {}
        for name, call in runs.items():
            call()
            count[0] = 0
            call()
            evaluations[name] = count[0]
        seconds = least(runs, 20)
    return {name: 1e6 * seconds[name] / evaluations[name] for name in runs}


def against(engine: str) -> Measured:
    """How many times torchdiffeq's price one of ours is."""
    costs = measured()
    note = (
        f"{costs[engine]:.1f} us (one step size per row) against {costs['torchdiffeq']:.1f} us (one for all), y' = y, "
    )
    return Measured(costs["torchdiffeq"] / costs[engine], note + f"{ROWS} rows")


@bar("steppers: time per evaluation besides the function, torchdiffeq / ours, eager", tier="bench", bar=">= 3x")
def overhead() -> Measured:
    return against("eager")


@bar("steppers: time per evaluation besides the function, torchdiffeq / ours, compiled", tier="bench", bar=">= 10x")
def overhead_compiled() -> Measured:
    found, note = library()
    if found is None:
        raise PeerMissing(f"compiled steps: {note}")
    return against("compiled")
