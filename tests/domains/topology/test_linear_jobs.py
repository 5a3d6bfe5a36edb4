"""The jobs beyond compliance in two dimensions: what they improve, keep, certify and draw."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
import pytest
import torch

from sciopt import Minimize, best_response
from sciopt.campaign.registry import JobContext, JobResult
from sciopt.domains.topology import SIMP, ElasticEnergy, cantilever
from sciopt.domains.topology.grid import Grid
from sciopt.domains.topology.jobs import ComplianceOptions, problems
from sciopt.domains.topology.mechanisms import MECHANISMS
from sciopt.inner import NewtonCG

KINDS = {kind.name: kind for kind in problems()}


def run(name: str, options: dict, folder: Path) -> JobResult:
    kind = KINDS[name]
    context = JobContext(
        seed=0,
        generator=torch.Generator().manual_seed(0),
        workdir=folder,
        report_progress=lambda step, value, extra: None,
        threads=1,
    )
    result = kind.run(kind.options.model_validate(options), context)
    assert abs(float(result.certificate["hypergradient_error"])) < 1e-6
    assert float(result.certificate["inner_residual"]) < 1e-8
    assert float(result.certificate["volume_error"]) < 2e-3
    result.figures["density"](folder / "picture.png")
    assert (folder / "picture.png").read_bytes()[1:4] == b"PNG"
    return result


def test_three_dimensions_and_load_cases(tmp_path: Path) -> None:
    options = {"preset": "tower", "nx": 4, "ny": 4, "nz": 5, "filter_radius": 1.2, "volume_fraction": 0.4}
    result = run("topology.compliance", {**options, "max_steps": 8}, tmp_path)
    assert result.objective < 0.7 * result.history["compliance"][0]
    assert result.arrays["density"].shape == (5, 4, 4)
    # both winds are equally strong and the weight is central: the tower has the symmetry of its base
    np.testing.assert_allclose(result.arrays["density"], result.arrays["density"].transpose(0, 2, 1), atol=1e-6)


def test_own_weight_and_passive_regions_run(tmp_path: Path) -> None:
    options = {"preset": "l_bracket", "nx": 10, "ny": 10, "gravity": 0.01, "optimizer": "mma", "max_steps": 10}
    result = run("topology.compliance", {**options, "filter_radius": 1.5}, tmp_path)
    assert result.objective < result.history["compliance"][0] and result.arrays["design"].shape == (64,)


@pytest.mark.parametrize("preset", ["inverter", "gripper"])
def test_mechanisms_turn_the_push_around(preset: str, tmp_path: Path) -> None:
    options = {"preset": preset, "nx": 16, "ny": 8, "max_steps": 25}
    result = run("topology.mechanism", options, tmp_path)
    history = result.history["output displacement"]
    assert result.objective == history[-1] < -0.2 and result.objective < history[0]
    assert float(result.metrics["input displacement [length]"]) > 0


@pytest.mark.parametrize("move", [0.1, 0.5])
def test_large_moves_do_not_cut_the_output_of_a_mechanism_off(move: float, tmp_path: Path) -> None:
    options = {"preset": "inverter", "nx": 24, "ny": 12, "max_steps": 60, "move": move}
    result = run("topology.mechanism", options, tmp_path)
    assert result.objective < -0.6 and result.certificate["input_joined_to_output"] == 1
    assert not any("no mechanism" in warning for warning in result.warnings)


def test_a_mechanism_in_pieces_is_said_to_be_none(tmp_path: Path) -> None:
    result = run("topology.mechanism", {"nx": 24, "ny": 12, "max_steps": 2}, tmp_path)
    assert result.certificate["input_joined_to_output"] == 0
    assert any("this is no mechanism. Lower `move`" in warning for warning in result.warnings)
    with_gap = np.ones((12, 24))
    with_gap[:, 12] = 0.0
    mechanism = MECHANISMS["inverter"](Grid(nx=24, ny=12))
    assert mechanism.joined(np.ones((12, 24))) and not mechanism.joined(with_gap)
    unclamped = np.ones((12, 24))
    unclamped[-3:] = 0.0  # the rollers of the axis of symmetry are no support
    assert not mechanism.joined(unclamped)


def test_heat_is_led_to_the_sink(tmp_path: Path) -> None:
    result = run("topology.heat", {"nx": 12, "ny": 12, "max_steps": 20}, tmp_path)
    assert result.objective < 0.5 * result.history["thermal compliance"][0]
    density = result.arrays["density"]
    np.testing.assert_allclose(density, density[::-1], atol=1e-6)
    assert density[5:7, 0].min() > 0.9  # material where all heat leaves


@pytest.mark.parametrize("optimizer", ["mma", "gcmma"])
def test_stress_falls_and_its_norm_bounds_the_peak(optimizer: str, tmp_path: Path) -> None:
    result = run("topology.stress", {"nx": 10, "ny": 10, "max_steps": 20, "optimizer": optimizer}, tmp_path)
    history = result.history["stress norm"]
    assert optimizer == "mma" or all(b <= a for a, b in zip(history, history[1:], strict=False))
    assert result.objective < 0.7 * result.history["stress norm"][0]
    largest = float(result.metrics["largest stress [force / area]"])
    assert largest <= result.objective <= 64 ** (1 / 8) * largest


def test_the_fundamental_frequency_rises(tmp_path: Path) -> None:
    result = run("topology.eigenfrequency", {"nx": 14, "ny": 6, "max_steps": 20, "tip_mass": 10.0}, tmp_path)
    assert result.objective < 0.75 * result.history["fundamental period"][0]
    assert float(result.metrics["fundamental frequency [1 / time]"]) * result.objective == pytest.approx(1.0)


def test_the_truss_keeps_few_bars(tmp_path: Path) -> None:
    options = {"preset": "truss_arch", "nx": 4, "ny": 2, "reach": 2, "max_steps": 60}
    result = run("topology.truss", options, tmp_path)
    assert result.objective < 0.5 * result.history["compliance"][0]
    assert int(result.metrics["bars in use"]) < 0.5 * int(result.metrics["bars"])
    assert float(result.certificate["kkt_residual"]) < 0.1  # bars that fade count by their size alone


@pytest.mark.parametrize("name", sorted(KINDS))
def test_options_are_described_and_strict(name: str) -> None:
    model = KINDS[name].options
    assert all(field.description for field in model.model_fields.values())
    needed = {"layouts": [[[1.0, 0.5]]]} if name == "topology.layout" else {}
    made = model.model_validate(needed)
    assert model.model_validate(made.model_dump(mode="json")) == made
    with pytest.raises(pydantic.ValidationError, match="volume_fractoin"):
        model.model_validate({**needed, "volume_fractoin": 0.5})


def test_dimensions_and_presets_have_to_agree() -> None:
    for bad in ({"preset": "tower"}, {"preset": "mbb", "nz": 4}):
        with pytest.raises(pydantic.ValidationError, match="expected `nz` with the 3D structures alone"):
            ComplianceOptions.model_validate(bad)


def test_both_solvers_give_the_same_design(tmp_path: Path) -> None:
    options = {"preset": "bracket_3d", "nx": 10, "ny": 6, "nz": 8, "filter_radius": 1.2, "volume_fraction": 0.4}
    found = [
        run("topology.compliance", {**options, "solver": solver, "max_steps": 5}, tmp_path)
        for solver in ("direct", "multigrid")
    ]
    direct, multigrid = found
    assert direct.metrics["solver"] == "direct" and multigrid.metrics["solver"] == "multigrid"
    assert multigrid.objective == pytest.approx(direct.objective, rel=1e-6)
    assert multigrid.metrics["hierarchies"] == direct.metrics["factorizations"]
    assert 1 < float(multigrid.metrics["inner steps, mean"]) <= float(multigrid.metrics["inner steps, most"]) < 40
    assert float(multigrid.certificate["inner_steps"]) > 1 == float(direct.certificate["inner_steps"])
    assert float(multigrid.certificate["hypergradient_bound"]) < 1e-6
    np.testing.assert_allclose(multigrid.arrays["density"], direct.arrays["density"], rtol=0, atol=1e-6)


def test_mechanisms_and_heat_run_on_multigrid(tmp_path: Path) -> None:
    few = {"nx": 16, "ny": 8, "max_steps": 3, "solver": "multigrid"}
    assert run("topology.mechanism", few, tmp_path).metrics["hierarchies"]
    assert run("topology.heat", {**few, "nz": 4}, tmp_path).metrics["hierarchies"]


def test_sizes_are_refused_before_a_job_starts() -> None:
    def refused(message: str, **options: object) -> None:
        with pytest.raises(pydantic.ValidationError, match=message):
            ComplianceOptions.model_validate(options)

    refused("expected at least two elements, got 1 x 1", nx=1, ny=1)
    refused("expected at most 4,000,000 elements", preset="tower", nx=200, ny=200, nz=200)
    refused("with `solver` direct in 3 dimensions", preset="tower", nx=64, ny=32, nz=32, solver="direct")
    refused("bracket_3d: expected a `grid` of at least 8 x 6 x 8", preset="bracket_3d", nx=4, ny=4, nz=4)
    refused("michell", preset="michell", nx=1, ny=4)


REFUSED = [
    ("topology.uncertain", {"preset": "bridge_3d", "nx": 2, "ny": 2, "nz": 2}, "`volume_fraction` to leave material"),
    ("topology.network", {"preset": "bridge_3d", "nx": 2, "ny": 2, "nz": 2}, "`volume_fraction` to leave material"),
    ("topology.network", {"preset": "michell", "nx": 1, "ny": 3}, "`load` on at least one free unknown"),
    ("topology.large_deformation", {"preset": "bridge_3d", "nx": 2, "ny": 2, "nz": 2}, "to leave material"),
    ("topology.large_deformation", {"nx": 10, "ny": 5, "void": 1e-300}, "SIMP: expected `young_min`"),
    ("topology.large_deformation", {"nx": 2000, "ny": 2000, "solver": "direct"}, "with `solver` direct in 2"),
    ("topology.uncertain", {"preset": "bridge_3d", "nx": 2000, "ny": 2000, "nz": 9}, "expected at most 4,000,000"),
    ("topology.pneumatic", {"nx": 10, "ny": 6, "void": 1e-300}, "SIMP: expected `young_min`"),
    *(
        (f"topology.{name}", {"nx": 20, "ny": 12, "filter_radius": 21}, "radius is at most the longest side")
        for name in (
            *("compliance", "mechanism", "heat", "stress", "eigenfrequency"),
            *("large_deformation", "uncertain", "network", "pneumatic"),
        )
    ),
]


@pytest.mark.parametrize(("name", "options", "message"), REFUSED)
def test_what_a_problem_refuses_is_said_by_its_options(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(pydantic.ValidationError, match=message):
        KINDS[name].options.model_validate(options)


def test_gradients_are_not_lost_in_numbers() -> None:
    grid = Grid(nx=4, ny=2)
    made = cantilever(grid)
    load = torch.from_numpy(made.load).requires_grad_()
    with pytest.raises(TypeError, match="expected numbers for `load`, got a tensor that requires a gradient"):
        replace(made, load=load)
    poisson: Any = torch.tensor(0.3, requires_grad=True)
    with pytest.raises(TypeError, match="expected numbers for `poisson`"):
        ElasticEnergy(structure=made, modulus=SIMP(), poisson=poisson)
    # as the message says: the load as outer parameters; at equilibrium the gradient of the compliance is 2 u
    energy, density = ElasticEnergy(structure=made, modulus=SIMP()), torch.ones(2, 4, dtype=torch.float64)
    force = energy.load.clone().requires_grad_()
    inner = Minimize(lambda u, f: energy.strain_energy(u, density) - (f * u).sum())
    u = best_response(inner, force, init=torch.zeros_like(force), solver=NewtonCG()).value
    (force * u).sum().backward()
    assert force.grad is not None
    torch.testing.assert_close(force.grad, 2 * u.detach(), rtol=1e-6, atol=1e-4)
