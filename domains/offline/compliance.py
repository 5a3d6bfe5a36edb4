"""Structures as designs: a coarse grid of material choices, scored by the stiffness that the topology domain computes."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, final

import torch
from torch import Tensor

from sciopt.campaign.registry import JobContext, find
from sciopt.checks import check_option
from sciopt.domains.offline.search import without
from sciopt.domains.offline.spaces import CategoricalSpace
from sciopt.domains.offline.task import AbstractTask, Table

__all__ = ["ComplianceTask", "Material"]

SIGNS = ".:-=+*#%@"  # materials in the order they are given


@final
@dataclass(frozen=True, kw_only=True)
class Material:
    """A material that a cell may be made of.

    Args:
        modulus: Young's modulus, relative to the stiffest, > 0: void is a soft material, such as 0.01,
            for layouts in pieces to differ.
        weight: of a cell, relative to the heaviest, >= 0.

    Example:
        >>> Material(modulus=1.0, weight=1.0).weight
        1.0
    """

    modulus: float
    weight: float

    def __post_init__(self) -> None:
        check_option("Material", "modulus", self.modulus, self.modulus > 0, "> 0", "Give void a soft material.")
        check_option("Material", "weight", self.weight, self.weight >= 0, ">= 0", "Give void 0.")


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class ComplianceTask(AbstractTask):
    """The stiffest layout of materials within a weight, by the full block's compliance over the design's.

    Exact finite elements, through the job ``topology.layout`` of the campaign registry. A score of 1 is as stiff as the full
    block, which weighs too much unless ``budget`` is 1; designs above the budget are infeasible (-inf). Visible are random
    feasible layouts and mutants of the better ones, up to ``ceiling``.

    Args:
        columns: cells from left to right.
        rows_of_cells: cells from top to bottom.
        materials: choices for a cell, 2 to 9.
        budget: largest mean weight of the cells, in (0, 1].
        preset: of the structure: ``"cantilever"``, ``"mbb"``, ``"bridge"`` or ``"michell"``.
        refine: elements along each side of a cell.
        rows: visible designs.
        ceiling: largest visible score, in (0, 1].
        seed: of the visible designs.

    Raises:
        ValueError: for options out of range, or a budget that no layout meets.

    Example:
        >>> task = ComplianceTask(columns=4, rows_of_cells=2, budget=1.0, refine=2, rows=8)
        >>> task.score(task.space.encode(["########"]))
        tensor([1.], dtype=torch.float64)
    """

    columns: int = 6
    rows_of_cells: int = 4
    materials: tuple[Material, ...] = (Material(modulus=0.01, weight=0.0), Material(modulus=1.0, weight=1.0))
    budget: float = 0.5
    preset: Literal["cantilever", "mbb", "bridge", "michell"] = "cantilever"
    refine: int = 3
    rows: int = 500
    ceiling: float = 0.25
    seed: int = 0

    def __post_init__(self) -> None:
        owner, number = "ComplianceTask", len(self.materials)
        check_option(owner, "materials", number, 2 <= number <= len(SIGNS), "two to nine", "Void is one of them.")
        check_option(owner, "budget", self.budget, 0 < self.budget <= 1, "in (0, 1]", "0.5 is half of the full block.")
        check_option(owner, "ceiling", self.ceiling, 0 < self.ceiling <= 1, "in (0, 1]", "Leave the default.")
        least = min(material.weight for material in self.materials)
        check_option(owner, "budget", self.budget, least < self.budget, f"above {least:g}, the lightest", "Raise it.")
        for name in ("columns", "rows_of_cells"):
            check_option(owner, name, getattr(self, name), getattr(self, name) >= 1, ">= 1", "Pass cells.")
        ok = 2 <= self.rows <= self.space.size / 8
        check_option(owner, "rows", self.rows, ok, "at least 2 and few enough to be drawn", "Take more cells.")

    @property
    def space(self) -> CategoricalSpace:
        """See `AbstractTask.space`: cells row by row from the top; the last of two materials is ``#``."""
        signs = ".#" if len(self.materials) == 2 else SIGNS[: len(self.materials)]
        return CategoricalSpace(length=self.columns * self.rows_of_cells, alphabet=signs)

    @property
    def bounds(self) -> tuple[float, float]:
        """See `AbstractTask.bounds`: nothing, and the full block."""
        return 0.0, 1.0

    def pool(self) -> None:
        """See `AbstractTask.pool`: the whole space, of which `feasible` tells the allowed part."""
        return None

    def feasible(self, designs: Tensor) -> Tensor:
        """Which designs are within the budget, bool ``(n,)``."""
        weights = torch.tensor([material.weight for material in self.materials], dtype=torch.float64)
        return weights.to(designs.device)[self.space.check(designs)].mean(-1) <= self.budget + 1e-12

    def score(self, designs: Tensor) -> Tensor:
        """See `AbstractTask.score`."""
        out = torch.full((len(designs),), -torch.inf, dtype=torch.float64, device=designs.device)
        allowed = self.feasible(designs)
        if bool(allowed.any()):
            out[allowed] = self._full / self.compliance(designs[allowed])
        return out

    def compliance(self, designs: Tensor) -> Tensor:
        """Work of the load ``(n,)``, float64, of designs within the budget or not."""
        moduli = torch.tensor([material.modulus for material in self.materials], dtype=torch.float64)
        layouts = moduli[self.space.check(designs).cpu()].unflatten(1, (self.rows_of_cells, self.columns))
        kind = find("topology.layout")
        options = kind.options(layouts=layouts.tolist(), preset=self.preset, refine=self.refine)
        with tempfile.TemporaryDirectory() as folder:
            context = JobContext(
                seed=0, generator=torch.Generator().manual_seed(0), workdir=Path(folder),
                report_progress=lambda step, objective, extra: None, threads=1,
            )  # fmt: skip
            result = kind.run(options, context)
        return torch.from_numpy(result.arrays["compliance"]).to(designs.device)

    @cached_property
    def _full(self) -> Tensor:
        """Compliance of the block of the stiffest material."""
        stiffest = max(range(len(self.materials)), key=lambda k: self.materials[k].modulus)
        return self.compliance(torch.full((1, self.space.length), stiffest))[0]

    def visible(self) -> Table:
        """See `AbstractTask.visible`.

        Raises:
            ValueError: where so many different layouts cannot be found within budget and ceiling.
        """
        generator = torch.Generator().manual_seed(self.seed)
        designs = torch.empty(0, self.space.length, dtype=torch.int64)
        scores = torch.empty(0, dtype=torch.float64)
        wanted = self.rows // 2
        for _ in range(100):
            if len(designs) >= wanted:
                if wanted == self.rows:
                    return Table(designs=designs, scores=scores)
                wanted = min(self.rows, wanted + max(8, self.rows // 8))
            if len(designs) < self.rows // 2:
                fresh = self.space.random(4 * self.rows, generator)
            else:
                best = designs[scores.argsort(descending=True, stable=True)[: max(8, self.rows // 10)]]
                best = best.repeat(-(-2 * self.rows // len(best)), 1)
                fresh = self.space.mutated(best, 1 + self.space.length // 12, generator)
            fresh = without(fresh[self.feasible(fresh)], designs)
            fresh = fresh[torch.randperm(len(fresh), generator=generator)[: wanted - len(designs)]]
            found = self.score(fresh)
            designs = torch.cat([designs, fresh[found <= self.ceiling]])
            scores = torch.cat([scores, found[found <= self.ceiling]])
        raise ValueError(
            f"ComplianceTask: expected `rows` = {self.rows} layouts within budget and ceiling, got {len(designs)}. Lower "
            "rows, or raise budget or ceiling."
        )
