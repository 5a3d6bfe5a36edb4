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
rows = -(-len(finished) // columns)
figure = Figure(figsize=(3.0 * columns, 1.7 * rows), layout="constrained")
grid = figure.add_gridspec(rows, columns)
for place, result in enumerate(finished):
    assert result.arrays is not None
    axes = figure.add_subplot(grid[place // columns, place % columns])
    options = result.design.options
    axes.set_axis_off()
    if "smiles" in options:  # conformers, overlaid
        axes.imshow(imread(result.figures["lowest conformers"]))
        axes.set_title(f"{result.design.label}\n{result.metrics['conformers']} conformers", fontsize=9)
        continue
    if "courses" in result.figures:  # a fit: three axes, which take the rest of the row
        axes.set_subplotspec(grid[place // columns, place % columns :])
        axes.imshow(imread(result.figures["courses"]))
        axes.set_title(f"{result.design.label}\n{result.metrics['next times [time]']} next", fontsize=9)
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
