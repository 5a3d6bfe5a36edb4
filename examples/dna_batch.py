# %% [markdown]
# # 128 DNA sequences from half a table
#
# A transcription factor (SIX6) was measured against all 65,536 DNA sequences of eight letters. Suppose that only the worse
# half of that table had been seen: which 128 sequences should be tested next? The searches below see the visible half alone;
# the full table says afterwards what their batches are worth. Some minutes on one core:
#
#     sciopt data fetch offline/tf_binding/SIX6_REF_R1_8mers.txt
#     python examples/dna_batch.py dna_batch.png

# %%
import os
import sys
import tempfile
import time
from pathlib import Path

import torch
from matplotlib.figure import Figure

from sciopt.data import DataError
from sciopt.domains.offline import (
    BDI,
    MutateTheBest,
    RandomSearch,
    ReverseComplement,
    Table,
    evaluate_batch,
    normalised,
    tf_bind_8,
)
from sciopt.domains.offline.proposal import propose
from sciopt.domains.offline.proposal.pictures import draw_letters

if any(argument.startswith("-") for argument in sys.argv[1:]):
    raise SystemExit("usage: python examples/dna_batch.py [dna_batch.png]")
out = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(tempfile.mkdtemp()) / "dna_batch.png"
if out.suffix != ".png" or not out.parent.is_dir():
    raise SystemExit(f"expected a name ending in .png in a folder that exists, got {out}. Create the folder first.")
smoke = bool(os.environ.get("SCIOPT_SMOKE"))  # small, for tests
count = 16 if smoke else 128

# %% The task: the full table is its oracle, the rows at or below the median are visible.
try:
    task = tf_bind_8("SIX6_REF_R1")
except DataError as error:
    raise SystemExit(
        f"The table could not be had: {error}\nFetch it once: sciopt data fetch offline/tf_binding/SIX6_REF_R1_8mers.txt"
    ) from error
table = task.visible()
if smoke:
    table = Table(designs=table.designs[::200], scores=table.scores[::200])
print(
    f"{len(table)} rows are visible; the best of them has {float(normalised(task, table.best(1))):.3f} of the full range"
)

# %% Three searches that anyone would compare with.
searches = {
    "random": RandomSearch(),
    "mutants of the best": MutateTheBest(),
    "BDI (Chen et al. 2022)": BDI(num_steps=2 if smoke else 200),
}
reports = {}


def judged(name: str, designs: torch.Tensor, started: float) -> None:
    """What the full table says of a batch."""
    report = reports[name] = evaluate_batch(task, designs)
    print(
        f"{name:24} best {report.best:.3f}  median {report.median:.3f}  novelty {report.novelty:.2f}  diversity "
        f"{report.diversity:.2f}  ({time.monotonic() - started:.0f} s)"
    )


for name, search in searches.items():
    started = time.monotonic()
    judged(name, search.propose(task.space, table, count, generator=torch.Generator().manual_seed(0)).designs, started)

# %% And what `sciopt propose` does with such a table; both strands of DNA are the same thing. Its uncertainties agree with
# errors within the visible half; above the best that was seen it promises little, and the batch turns out far better.
started = time.monotonic()
sequences, scores = task.space.decode(table.designs), table.scores
batch = propose(sequences, scores, n=count, symmetry=ReverseComplement())
chosen = task.space.encode([row["sequence"] for row in batch.rows])
judged("propose", chosen, started)
print("\n".join(batch.notes + batch.model))

# %% The batch, as it would go to the laboratory: both strands of the ten first, with what the model expects.
mirrored = task.space.decode(ReverseComplement().image(task.space, chosen))
for row, other, predicted in list(zip(batch.rows, mirrored, batch.predicted.tolist(), strict=True))[:10]:
    print(f"  {row['sequence']} / {other}  predicted {predicted:.3f}")

# %% The picture: every batch against what was known, prediction against truth, and the letters of the batch.
low, high = task.bounds
figure = Figure(figsize=(11, 6.6), layout="constrained")
grid = figure.add_gridspec(2, 2, height_ratios=[1.6, 1])
axes = figure.add_subplot(grid[0, 0])
rows = {"visible": normalised(task, table.designs[:: max(1, len(table) // 1000)])}
rows |= {name: report.scores for name, report in reports.items()}
shift = torch.Generator().manual_seed(0)
for place, (name, scores) in enumerate(rows.items()):
    height = place + 0.25 * (2 * torch.rand(len(scores), generator=shift) - 1)
    axes.scatter(scores, height, s=5, color="#9aa5ae" if name == "visible" else "#0b6e78", alpha=0.6, linewidths=0)
    axes.plot([float(scores.median())] * 2, [place - 0.35, place + 0.35], color="#c77700", lw=2)
axes.set_yticks(range(len(rows)), list(rows), fontsize=8)
axes.set(
    xlabel="score, over the range of the full table", title="each search: its batch, and its median", xlim=(0, 1.01)
)
axes = figure.add_subplot(grid[0, 1])
spread = batch.uncertainty / (high - low)
predicted = (batch.predicted - low) / (high - low)
axes.errorbar(
    predicted, reports["propose"].scores, xerr=spread, fmt="o", ms=3, lw=0.5, color="#0b6e78", ecolor="#9aa5ae"
)
axes.axhline(reports["random"].median, color="#c77700", lw=1, ls="--", label="median of random sequences")
axes.axhline(float(rows["visible"].max()), color="#9aa5ae", lw=1, ls="--", label="best visible")
axes.set(xlabel="predicted", ylabel="measured", title="the proposed batch: expected, and measured")
axes.legend(frameon=False, fontsize=8)
best = table.best(count)
for place, (designs, title) in enumerate(
    [(best, f"letters of the {count} best visible"), (chosen, "of the proposed batch")]
):
    axes = figure.add_subplot(grid[1, place])
    draw_letters(axes, task.space.decode(designs), letters="ACGT", length=8, title=title)
figure.savefig(out, dpi=130)
print(f"picture: {out}")
