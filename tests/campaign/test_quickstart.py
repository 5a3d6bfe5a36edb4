"""The shipped campaign is valid, and its problem runs through the registry."""

from pathlib import Path

from sciopt.campaign.folder import look
from sciopt.campaign.progress import Quiet
from sciopt.campaign.runner import run_campaign
from sciopt.campaign.spec import CampaignSpec, DesignSpec, load_plan, plan

QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart.yaml"


def test_the_quickstart_is_a_valid_campaign():
    got = load_plan(QUICKSTART)
    stiff = [design for design in got.designs if design.problem == "topology.compliance"]
    presets = {design.options["preset"] for design in stiff}
    assert not got.notes and presets == {"mbb", "cantilever", "bridge", "bracket_3d"}
    assert [design.problem for design in got.designs if design not in stiff] == [
        "conformation.generate",
        "implicit.kinetics",
        "offline.propose",
    ]
    published = [design.options for design in stiff if design.options["filter_radius"] == 2.4]
    assert [(o["nx"], o["ny"], o["volume_fraction"], o["penalty"]) for o in published] == [(60, 20, 0.5, 3.0)] * 2


def test_a_real_design_comes_with_picture_history_and_certificate(tmp_path):
    spec = DesignSpec(problem="topology.compliance", options={"nx": 12, "ny": 4, "filter_radius": 1.5, "max_steps": 8})
    outcome = run_campaign(plan(CampaignSpec(name="s", designs=[spec])), tmp_path / "c", workers=0, watch=Quiet())
    result = look(tmp_path / "c").entries[0].result
    assert outcome.computed == 1 and result is not None
    assert result.figures["density"].stat().st_size > 1000 and result.arrays is not None
    assert len(result.history["step"]) >= 2 and float(result.certificate["inner_residual"]) < 1e-9
