"""Structures as designs: scores against the topology domain's own problem, bars of closed form, feasibility."""

from __future__ import annotations

import pydantic
import pytest
import torch

from sciopt import best_response
from sciopt.campaign.registry import find
from sciopt.domains.offline import ComplianceTask, EvolutionarySearch, Material, evaluate_batch
from sciopt.domains.topology import ComplianceProblem, Grid, cantilever, mbb, settle

TASK = ComplianceTask(columns=4, rows_of_cells=3, refine=2, rows=40)


def work_of(problem: ComplianceProblem, density: torch.Tensor) -> float:
    solver = settle(problem.energy).solver
    settled = best_response(problem.bilevel.inner, density, init=problem.rest(density), solver=solver).value
    return float(problem.compliance(settled, density))


def test_the_full_block_is_that_of_the_topology_domain() -> None:
    tasks = (
        (ComplianceTask(columns=4, rows_of_cells=3, refine=2, budget=1.0, rows=40), cantilever),
        (ComplianceTask(columns=4, rows_of_cells=3, refine=2, budget=1.0, preset="mbb", rows=40), mbb),
    )
    for task, make in tasks:
        full = task.space.encode(["#" * 12])
        problem = ComplianceProblem(structure=make(Grid(nx=8, ny=6)), volume_fraction=0.5)
        density = torch.ones(6, 8, dtype=torch.float64)
        assert float(task.compliance(full)[0]) == pytest.approx(work_of(problem, density), rel=1e-6)
        assert task.score(full).tolist() == [1.0]


def test_letters_are_cells_from_the_top_left() -> None:
    design = TASK.space.encode(["####....####"])  # two flanges
    moduli = torch.tensor([1.0, 0.01, 1.0], dtype=torch.float64).repeat_interleave(2).unsqueeze(1).expand(6, 8)
    problem = ComplianceProblem(structure=cantilever(Grid(nx=8, ny=6)), volume_fraction=0.5, material=Itself())  # pyright: ignore
    assert float(TASK.compliance(design)[0]) == pytest.approx(work_of(problem, moduli), rel=1e-6)
    tied = TASK.space.encode(["####.#.#####", "#####.#.####"])
    assert float(TASK.compliance(tied)[0]) != pytest.approx(float(TASK.compliance(tied)[1]), rel=1e-3)
    top, bottom = TASK.compliance(TASK.space.encode(["#####.......", ".......#####"]))
    assert float(top) != pytest.approx(float(bottom), rel=1e-3)


class Itself:
    """A material whose density is its modulus."""

    def __call__(self, density: torch.Tensor) -> torch.Tensor:
        return density


def test_stiffness_is_proportional_to_the_modulus() -> None:
    soft = ComplianceTask(
        columns=4, rows_of_cells=3, refine=2, rows=40, budget=0.9,
        materials=(Material(modulus=0.25, weight=0.5), Material(modulus=1.0, weight=1.0)),
    )  # fmt: skip
    assert float(soft.score(soft.space.encode(["." * 12]))[0]) == pytest.approx(0.25, rel=1e-9)
    assert soft.score(soft.space.encode(["#" * 12])).tolist() == [-torch.inf]  # too heavy


def test_what_is_visible_is_feasible_distinct_and_repeatable() -> None:
    table = TASK.visible()
    assert len(table) == 40 == len(torch.unique(table.designs, dim=0))
    assert bool(TASK.feasible(table.designs).all()) and float(table.scores.max()) <= TASK.ceiling
    torch.testing.assert_close(TASK.score(table.designs), table.scores, rtol=1e-9, atol=0)
    again = ComplianceTask(columns=4, rows_of_cells=3, refine=2, rows=40).visible()
    assert torch.equal(again.designs, table.designs)


def test_a_search_finds_stiffer_layouts_than_chance() -> None:
    table = TASK.visible()
    search = EvolutionarySearch(rounds=8, children=256, allowed=TASK.feasible)
    made = search.propose(TASK.space, table, 16, generator=torch.Generator().manual_seed(0))
    report = evaluate_batch(TASK, made.designs)
    blind = TASK.space.random(64, torch.Generator().manual_seed(0))
    blind = blind[TASK.feasible(blind)]
    assert report.unscored == 0 and report.median > 1.5 * evaluate_batch(TASK, blind).median


def test_what_cannot_be_done_is_said() -> None:
    with pytest.raises(ValueError, match="expected `modulus` > 0, got 0"):
        Material(modulus=0.0, weight=0.0)
    with pytest.raises(ValueError, match="expected `materials` two to nine, got 1"):
        ComplianceTask(materials=(Material(modulus=1.0, weight=1.0),))
    with pytest.raises(ValueError, match="expected `budget` above 0.5, the lightest, got 0.4"):
        heavy = (Material(modulus=0.1, weight=0.5), Material(modulus=1.0, weight=1.0))
        ComplianceTask(materials=heavy, budget=0.4)
    with pytest.raises(ValueError, match="expected `rows` at least 2 and few enough"):
        ComplianceTask(columns=2, rows_of_cells=2)
    options = find("topology.layout").options
    for layouts, message in (
        ([[[1.0, 1.0], [1.0]]], "of 2 rows with 2 cells"),
        ([[[1.0, 0.0], [1.0, 1.0]]], "moduli > 0 within a factor"),
        ([[[1.0] * 100] * 100], "at most 20,000 elements"),
    ):
        with pytest.raises(pydantic.ValidationError, match=message):
            options(layouts=layouts)
