"""The page on offline design runs as a reader would run it, and its figures are kept elsewhere as bars."""

from __future__ import annotations

import re
from pathlib import Path

import torch

ROOT = Path(__file__).parents[3]


def test_page_runs_and_states_what_comes_out() -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "offline.md").read_text(), flags=re.DOTALL)
    assert len(blocks) >= 4
    names: dict = {"print": lambda *words: None}
    for code in blocks:
        exec(code, names)
    batch = names["batch"]
    assert len(batch) == 3 and batch.pending == 1 and all(row["temperature"] <= 100 for row in batch.rows)
    visible = names["task"].visible()
    assert names["report"].best > 0.9 and names["report"].median > 0.65
    assert names["report"].distinct == 128 and len(visible) == 2048
    assert names["gradient"].status.name == "CONVERGED"
    before, after = (names["stated"].loss(names[name]) for name in ("start", "moved"))
    assert bool((after < before).all())
    assert names["draws"].shape == (100, 5)
    gain, step = names["gain"], 1e-4
    assert torch.isfinite(gain.grad)

    def error(value: float) -> float:
        network = names["DenseNetwork"](hidden_layers=2, activation=names["Erf"](), weight_variance=value)
        left_out = names["leave_one_out"](names["gram"](names["NTK"](network), names["x"]), names["y"], 1e-3)
        return float((left_out - names["y"]).square().mean())

    up, down = (error(float(torch.tensor(s * step, dtype=torch.float64).exp())) for s in (1, -1))
    assert abs(float(gain.grad) - (up - down) / (2 * step)) < 1e-5 * abs(float(gain.grad)) + 1e-12
