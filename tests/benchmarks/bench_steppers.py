"""What a function evaluation costs a stepper besides the function: against torchdiffeq, whose 5(4) pair takes as many."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sciopt import InitialValue, best_response
from sciopt.steppers import Dopri5
from tests.benchmarks.table import Measured, bar, peer

ROWS, SIZE, RTOL, END = 256, 2, 1e-7, 20.0


def least(runs: dict[str, Callable[[], Any]], repeat: int) -> dict[str, float]:
    """Least CPU seconds of each function, taken in turns: the price of bookkeeping, not that of a busy machine."""
    found = dict.fromkeys(runs, float("inf"))
    for _ in range(repeat):
        for name, call in runs.items():
            begin = time.process_time()
            call()
            found[name] = min(found[name], time.process_time() - begin)
    return found


@bar("steppers: time per evaluation besides the function, torchdiffeq / ours, eager", tier="bench", bar=">= 3x")
def overhead() -> Measured:
    torchdiffeq = peer("torchdiffeq")
    torch.set_num_threads(1)
    counts = {"ours": 0, "torchdiffeq": 0}
    start = torch.randn(ROWS, SIZE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    times = torch.tensor([0.0, END], dtype=torch.float64)
    one = torch.ones((), dtype=torch.float64)

    def ours(t: Tensor, y: Tensor, phi: Tensor) -> Tensor:
        counts["ours"] += 1
        return y

    def theirs(t: Tensor, y: Tensor) -> Tensor:
        counts["torchdiffeq"] += 1
        return y

    problem, solver = InitialValue(ours, times, batch_ndim=1), Dopri5(rtol=RTOL, atol=RTOL)
    runs = {
        "ours": lambda: best_response(problem, one, init=start, solver=solver),
        "torchdiffeq": lambda: torchdiffeq.odeint(theirs, start, times, rtol=RTOL, atol=RTOL, method="dopri5"),
    }
    with torch.no_grad():
        for call in runs.values():
            call()
        evaluations = dict(counts)
        for name, call in runs.items():
            counts[name] = 0
            call()
            evaluations[name] = counts[name]
        seconds = least(runs, 30)
    mine, other = (1e6 * seconds[name] / evaluations[name] for name in ("ours", "torchdiffeq"))
    note = f"{mine:.1f} us (one step size per row) against {other:.1f} us (one for all), y' = y, {ROWS} rows"
    return Measured(other / mine, note)
