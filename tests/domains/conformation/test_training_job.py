"""The job ``conformation.train``: scores beside the baseline, checkpoints that load, and clear refusals."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from sciopt.campaign.folder import look
from sciopt.campaign.progress import Quiet
from sciopt.campaign.registry import find
from sciopt.campaign.runner import run_campaign
from sciopt.campaign.spec import CampaignSpec, DesignSpec, plan
from sciopt.domains.conformation.io import Gfn2Group, load_gfn2_conformers
from sciopt.domains.conformation.learning import load_model, sample
from sciopt.view import write_report

SMALL = {"molecules": 12, "epochs": 3, "warmup": 2, "hidden": 16, "latent": 2, "layers": 1, "conformers": 2}


def test_a_campaign_that_trains(tmp_path: Path) -> None:
    designs = [
        DesignSpec(problem="conformation.train", options={**SMALL, "objective": "recall"}),
        DesignSpec(problem="conformation.train", options={**SMALL, "references": "no-such-file.sdf"}),
    ]
    outcome = run_campaign(plan(CampaignSpec(name="c", designs=designs)), tmp_path / "c", workers=0, watch=Quiet())
    assert (outcome.computed, outcome.failed) == (1, 1)
    seen = look(tmp_path / "c")
    assert "no-such-file.sdf" in (seen.entries[1].reason or "")
    result = seen.entries[0].result
    assert result is not None and result.status == "CONVERGED"
    assert result.objective == result.metrics["MAT-R [angstrom]"]
    assert 0.0 < result.objective < 1.5
    assert 0.0 < result.metrics["MAT-R, RDKit then cluster [angstrom]"] < 1.0
    assert result.history["likelihood"][-1] < result.history["likelihood"][0]
    model = load_model(result.files["best.safetensors"])
    assert model.config.hidden == 16
    molecule = load_gfn2_conformers(Gfn2Group.SMALL).sets[20].record.mol
    assert sample(model.double(), molecule, 1).positions.shape == (1, molecule.GetNumAtoms(), 3)
    assert len(result.files["scores.csv"].read_text().splitlines()) == 3
    assert result.figures["training"].read_bytes()[1:4] == b"PNG"
    assert "best.safetensors" in write_report(seen).read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": "best"}, "'two stages', 'end to end' or 'recall'"),
        ({"epochs": 0}, "greater than or equal to 1"),
        ({"epoch": 3}, "Extra inputs"),
        ({"test_share": 0.9}, "less than 0.8"),
    ],
)
def test_bad_options_are_refused_before_any_work(options, message) -> None:
    with pytest.raises(ValidationError, match=message):
        find("conformation.train").options(**options)


def test_each_objective_is_what_it_says() -> None:
    from sciopt.domains.conformation.learning import EndToEnd, EndToEndRecall, InnerOptions, SpectralStart, TwoStage
    from sciopt.domains.conformation.training_job import TrainOptions, objective

    kinds = {"two stages": TwoStage, "end to end": EndToEnd, "recall": EndToEndRecall}
    for name, kind in kinds.items():
        options = TrainOptions.model_validate({"objective": name, "divergence_weight": 0.5})
        made = objective(options, InnerOptions(), SpectralStart())
        assert isinstance(made, kind)
        assert made.divergence_weight == 0.5  # pyright: ignore[reportAttributeAccessIssue]
