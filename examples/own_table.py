# %% [markdown]
# # A table of one's own: propose, measure, append, again
#
# A dozen reactions have been run, with temperature, catalyst loading, solvent and base; their yields stand in a CSV file, with
# columns of dates and labels. What to run next? Each round fits the table, proposes four reactions, "runs" them (here a
# formula with noise stands in for the laboratory) and writes the yields into the batch. On the command line, a round is
#
#     sciopt propose reactions.csv --score yield -n 4 -o batch.csv
#     (fill in the column `yield` of batch.csv)
#     sciopt propose reactions.csv batch.csv --score yield -n 4 -o batch2.csv
#
# and here it is in Python:
#
#     python examples/own_table.py own_table

# %%
import csv
import math
import os
import sys
import tempfile
from pathlib import Path

import torch
from matplotlib.figure import Figure

from sciopt.domains.offline.proposal import read_request, write_batch
from sciopt.domains.offline.proposal.pictures import draw_calibration

if any(argument.startswith("-") for argument in sys.argv[1:]):
    raise SystemExit("usage: python examples/own_table.py [folder]")
smoke = bool(os.environ.get("SCIOPT_SMOKE"))  # small, for tests
known, rounds, per_round = 12, *((2, 2) if smoke else (6, 4))
folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(tempfile.mkdtemp())
folder.mkdir(parents=True, exist_ok=True)


# %% The laboratory: what it would measure. Nothing below looks inside.
def laboratory(row: dict, noise: torch.Generator) -> float:
    """Yield in percent, with a standard error of 1.5."""
    solvent = {"water": 0.55, "THF": 0.8, "DMF": 1.0, "toluene": 0.6}[row["solvent"]]
    base = {"KOH": 0.9, "NEt3": 0.75, "DBU": 1.0}[row["base"]]
    base *= 0.7 if (row["solvent"], row["base"]) == ("DMF", "KOH") else 1.0
    warm = math.exp(-(((row["temperature"] - 92) / 28) ** 2))
    load = row["catalyst"] / (row["catalyst"] + 0.4) * math.exp(-row["catalyst"] / 12)
    return 100 * solvent * base * warm * load + 1.5 * float(torch.randn((), generator=noise))


chance = torch.Generator().manual_seed(3)


def random_reaction() -> dict:
    """Anywhere in the ranges that the equipment allows."""
    u = torch.rand(4, generator=chance).tolist()
    return {
        "temperature": round(20 + 110 * u[0], 1),
        "catalyst": float(f"{0.05 * 200 ** u[1]:.3g}"),
        "solvent": ["water", "THF", "DMF", "toluene"][int(4 * u[2])],
        "base": ["KOH", "NEt3", "DBU"][int(3 * u[3])],
    }


# %% The table, as somebody would keep it.
table = folder / "reactions.csv"
with table.open("w", newline="", encoding="utf-8") as file:
    writer = csv.DictWriter(file, ["experiment", "date", "temperature", "catalyst", "solvent", "base", "yield"])
    writer.writeheader()
    for k in range(known):
        row = random_reaction()
        told = {"experiment": f"R-{k:03d}", "date": f"2024-05-{k + 1:02d}", "yield": f"{laboratory(row, chance):.1f}"}
        writer.writerow({**row, **told})

# %% Rounds: read, propose, write, measure. The bounds are the equipment's, wider than what was tried.
tables, best, errors, calibrations = [table], [], [], []
for number in range(1, rounds + 1):
    request = read_request(tables, score="yield", bounds=["temperature=20:130", "catalyst=0.05:10"])
    if number == 1:
        print("\n".join([*request.columns_told, *request.told]))
    batch = request.propose(n=per_round)
    out = write_batch(folder / f"batch{number}.csv", batch, "yield", like=request.tables[0])
    assert batch.calibration is not None
    calibrations.append(batch.calibration)
    best.append(batch.best_score)

    # the laboratory fills in the empty column
    with out.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    measured = [laboratory(row, chance) for row in batch.rows]
    with out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows({**row, "yield": f"{value:.1f}"} for row, value in zip(rows, measured, strict=True))
    tables.append(out)
    (folder / f"report{number}.html").write_text(request.report(batch), encoding="utf-8")
    errors.append((batch.predicted, batch.uncertainty, torch.tensor(measured)))
    print(
        f"round {number}: best so far {batch.best_score:5.1f}, proposed {float(batch.predicted.max()):5.1f} at best, measured "
        f"{max(measured):5.1f}; rank correlation of left-out rows {batch.calibration.rank_correlation:.2f}"
    )
best.append(max(best[-1], float(errors[-1][2].max())))

# %% Beside it: as many reactions at random, the mean of a hundred tries.
tries = []
for _ in range(100):
    top = [best[0]]
    for _ in range(rounds):
        top.append(max([top[-1], *(laboratory(random_reaction(), chance) for _ in range(per_round))]))
    tries.append(top)
blind = torch.tensor(tries).mean(0).tolist()
print(f"best yield after {rounds * per_round} reactions: {best[-1]:.1f} proposed, {blind[-1]:.1f} at random")

# %% The picture: is it getting better, was the model right about rows it had not seen, and about what it proposed?
figure = Figure(figsize=(11, 3.5), layout="constrained")
left, middle, right = figure.subplots(1, 3)
left.plot(range(rounds + 1), best, "o-", color="#0b6e78", label="proposed")
left.plot(range(rounds + 1), blind, "o--", color="#9aa5ae", label="at random, mean of 100")
left.set(xlabel="round", ylabel="best yield measured [%]", title="progress")
left.set_xticks(range(rounds + 1))
left.legend(frameon=False, fontsize=8)
last = calibrations[-1]
draw_calibration(middle, last.observed, last.predicted, last.deviation, name="yield")
middle.set_title(f"rows left out, round {rounds}", fontsize=10)
for number, (predicted, deviation, seen) in enumerate(errors):
    colour = f"C{number}"
    right.errorbar(predicted, seen, xerr=deviation, fmt="o", ms=3, lw=0.7, color=colour, label=f"round {number + 1}")
ends = [min(right.get_xlim()[0], right.get_ylim()[0]), max(right.get_xlim()[1], right.get_ylim()[1])]
right.plot(ends, ends, color="#17202a", lw=0.8)
right.set(xlabel="yield, predicted", ylabel="yield, measured afterwards", title="the batches")
right.legend(frameon=False, fontsize=8)
figure.savefig(folder / "own_table.png", dpi=130)
print(f"in {folder}: own_table.png, reactions.csv, the batches and a report of each")
