# %% [markdown]
# # The picture of the quickstart campaign
#
# `make demo` runs `examples/quickstart.yaml`; this script draws its designs on one sheet, `docs/quickstart.png`:
#
#     python examples/quickstart_picture.py runs/quickstart docs/quickstart.png

# %%
import sys
import tempfile
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.image import imread
from safetensors.numpy import load_file

from sciopt.campaign.folder import look
from sciopt.campaign.runner import run_campaign
from sciopt.campaign.spec import CampaignSpec, DesignSpec, plan
from sciopt.domains.offline.proposal import read_table
from sciopt.domains.offline.proposal.pictures import draw_letters


def campaign_folder() -> Path:
    """The campaign named on the command line, or a small one made here."""
    if len(sys.argv) > 1:
        return Path(sys.argv[1])
    folder = Path(tempfile.mkdtemp()) / "small"
    options = {"preset": "cantilever", "nx": 24, "ny": 12, "filter_radius": 1.5, "max_steps": 15}
    design = DesignSpec(problem="topology.compliance", options=options, sweep={"volume_fraction": [0.3, 0.5]})
    run_campaign(plan(CampaignSpec(name="small", designs=[design])), folder, workers=0)
    return folder


# %% Every finished design with what it reached, in the order of the spec.
overview = look(campaign_folder())
finished = [entry.result for entry in overview.entries if entry.result is not None]
columns = min(4 if len(finished) <= 12 else 5, len(finished))
cells, cell = [], 0
for result in finished:
    wide = min(columns, 2 if "courses" in result.figures else 1)  # a fit has three axes
    cell += (wide > columns - cell % columns) * (columns - cell % columns)
    cells.append((cell // columns, slice(cell % columns, cell % columns + wide)))
    cell += wide
rows = -(-cell // columns)
figure = Figure(figsize=(3.0 * columns, 1.7 * rows), layout="constrained")
grid = figure.add_gridspec(rows, columns)
for result, place in zip(finished, cells, strict=True):
    assert result.arrays is not None
    axes = figure.add_subplot(grid[place])
    options = result.design.options
    axes.set_axis_off()
    if "smiles" in options:  # conformers, overlaid
        axes.imshow(imread(result.figures["lowest conformers"]))
        axes.set_title(f"{result.design.label}\n{result.metrics['conformers']} conformers", fontsize=9)
        continue
    if "courses" in result.figures:
        axes.imshow(imread(result.figures["courses"]))
        axes.set_title(f"{result.design.label}\n{result.metrics['next times [time]']} next", fontsize=9)
        continue
    if "batch.csv" in result.files:  # designs to test next: their letters
        axes.set_axis_on()
        sequences = read_table(result.files["batch.csv"]).cells["sequence"]
        draw_letters(axes, sequences, letters="ACGT", length=len(sequences[0]))
        axes.set_xlabel("")
        axes.set_title(f"{result.design.label}\n{len(sequences)} designs", fontsize=9)
        continue
    density = load_file(result.arrays)["density"]
    if density.ndim == 3:  # its surface, as the campaign drew it, without the title
        drawn = imread(result.figures["surface"])
        axes.imshow(drawn[len(drawn) // 20 :])
    else:
        axes.imshow(density, cmap="gray_r", vmin=0, vmax=1)
    axes.set_title(
        f"{options['preset']}, volume {options['volume_fraction']:g}\ncompliance {result.objective:.2f}", fontsize=9
    )

# %%
target = Path(sys.argv[2]) if len(sys.argv) > 2 else overview.directory / "picture.png"
figure.savefig(target, dpi=110)
print(target)
