"""What a domain registers for campaigns, and how campaigns and the command line find it.

A domain lists its problems under an entry point of the group ``sciopt.problems``; the entry point's name is the domain,
its value a list of `ProblemKind`, or a function without arguments that returns one::

    [project.entry-points."sciopt.problems"]
    topology = "sciopt.domains.topology.jobs:problems"

Problems are named ``<domain>.<problem>``, so that looking one up imports one domain. Problems that are not packaged are
named in the environment variable ``SCIOPT_PROBLEMS``: ``mine=my_module:problems``, several separated by commas.
"""

from __future__ import annotations

import difflib
import importlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sciopt.campaign.errors import SpecError

if TYPE_CHECKING:
    import numpy as np
    import pydantic
    import torch

__all__ = ["ENVIRONMENT", "GROUP", "JobContext", "JobResult", "ProblemKind", "did_you_mean", "domains", "find", "kinds"]

GROUP = "sciopt.problems"
ENVIRONMENT = "SCIOPT_PROBLEMS"
# Used where no installed package registers the domain: a checkout that runs without an install.
BUILT_IN = {
    "conformation": "sciopt.domains.conformation.jobs:problems",
    "implicit": "sciopt.domains.implicit.jobs:problems",
    "offline": "sciopt.domains.offline.jobs:problems",
    "topology": "sciopt.domains.topology.jobs:problems",
}


@dataclass(frozen=True, kw_only=True)
class JobContext:
    """What a job is given besides its options.

    Args:
        seed: seed of this design.
        generator: the only source of randomness, on the CPU, seeded with ``seed``.
        workdir: scratch folder of this design; emptied when the design is done.
        report_progress: call it as ``report_progress(step, objective, extra)`` after each outer step; cheap. What is
            reported becomes the convergence history when the result has none of its own.
        threads: CPU threads this job may use; torch is already set to it.

    Example:
        >>> import torch
        >>> context = JobContext(seed=0, generator=torch.Generator().manual_seed(0), workdir=Path("."),
        ...                      report_progress=lambda step, objective, extra: None, threads=1)
        >>> context.report_progress(0, 1.0, {"change": 0.2})
    """

    seed: int
    generator: torch.Generator
    workdir: Path
    report_progress: Callable[[int, float, dict[str, float]], None]
    threads: int


@dataclass(frozen=True, kw_only=True)
class JobResult:
    """What a job returns; everything here is stored and shown in the report.

    Args:
        objective: the outer loss of the final design, in the units the problem states.
        metrics: further numbers or words by name, with the unit in the name if there is one: ``{"volume [1]": 0.5}``.
        history: columns of equal length, one entry per outer step; a column ``step`` becomes the horizontal axis.
        certificate: what says how far to trust the result, e.g. ``inner_residual``, ``adjoint_residual``,
            ``kkt_residual``, ``volume_error``.
        status: name of the `sciopt.Status` that the outer loop ended with.
        arrays: numpy arrays by name, saved as safetensors.
        figures: functions by name, each of which writes one PNG to the path it is given; called in the worker.
        files: functions by file name (``"design.stl"``), each of which writes that file to the path it is given; called in
            the worker, kept with checksums beside the result and linked in the report.
        warnings: sentences for the reader of the report.

    Example:
        >>> JobResult(objective=1.0, status="CONVERGED", metrics={"volume [1]": 0.5}).history
        {}
    """

    objective: float
    status: str
    metrics: dict[str, float | int | str | bool] = field(default_factory=dict)
    history: dict[str, list[float]] = field(default_factory=dict)
    certificate: dict[str, float | int | str] = field(default_factory=dict)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    figures: dict[str, Callable[[Path], object]] = field(default_factory=dict)
    files: dict[str, Callable[[Path], object]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class ProblemKind:
    """One kind of design problem that campaigns can run.

    Args:
        name: ``<domain>.<problem>``, e.g. ``topology.compliance``.
        summary: one line for ``sciopt problems``.
        options: pydantic model of the options, with ``extra="forbid"`` and a description, with units, for each field;
            its values must survive ``model_dump(mode="json")`` and back.
        run: the job, ``run(options, context) -> JobResult``; an exception fails this design alone.
        version: changes when the results change; finished designs of another version are computed anew.

    Example:
        >>> import pydantic
        >>> class Options(pydantic.BaseModel, extra="forbid"):
        ...     height: float = pydantic.Field(default=1.0, description="height of the arch [m]", gt=0)
        >>> kind = ProblemKind(name="arch.weight", summary="the lightest arch", options=Options, version="1",
        ...                    run=lambda options, context: JobResult(objective=options.height, status="CONVERGED"))
        >>> kind.domain
        'arch'
    """

    name: str
    summary: str
    options: type[pydantic.BaseModel]
    run: Callable[[Any, JobContext], JobResult]
    version: str

    @property
    def domain(self) -> str:
        """The part of the name before the first dot."""
        return self.name.partition(".")[0]


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A sentence that names the nearest known words, or lists all of them.

    Example:
        >>> did_you_mean("volum_fraction", ["volume_fraction", "penalty"])
        'Did you mean `volume_fraction`?'
    """
    known = list(known)
    near = difflib.get_close_matches(word, known, n=2, cutoff=0.6)
    if near:
        return f"Did you mean {' or '.join(f'`{name}`' for name in near)}?"
    return f"Known: {', '.join(known)}." if known else "There are none."


def domains() -> dict[str, str]:
    """Domains by name, with where their problems are (``module:attribute``); imports none of them.

    Example:
        >>> "topology" in domains()
        True
    """
    found = dict(BUILT_IN)
    found |= {point.name: point.value for point in entry_points(group=GROUP)}
    for item in filter(None, (part.strip() for part in os.environ.get(ENVIRONMENT, "").split(","))):
        name, equals, target = item.partition("=")
        if not equals or ":" not in target:
            raise SpecError(
                f"{ENVIRONMENT}: expected `name=module:attribute` items separated by commas, got {item!r}. "
                "Correct or unset it."
            )
        found[name.strip()] = target.strip()
    return dict(sorted(found.items()))


def kinds(domain: str) -> dict[str, ProblemKind]:
    """The problems of one domain by full name; imports that domain alone.

    Raises:
        SpecError: for a domain nobody registers, or whose module cannot be imported.
    """
    known = domains()
    if domain not in known:
        raise SpecError(f"problems: expected a registered domain, got `{domain}`. {did_you_mean(domain, known)}")
    return dict(_load(domain, known[domain]))


def find(name: str) -> ProblemKind:
    """The problem kind of this full name, e.g. ``topology.compliance``; imports its domain alone.

    Raises:
        SpecError: for an unknown name, with the nearest known one.
    """
    known = domains()
    domain = name.partition(".")[0]
    if domain not in known:
        raise SpecError(
            f"problem: expected `<domain>.<problem>` of a registered domain, got `{name}`. "
            f"{did_you_mean(domain, known)} `sciopt problems` lists what there is."
        )
    found = kinds(domain)
    if name not in found:
        hint = did_you_mean(name, found)
        raise SpecError(f"problem: expected a problem of the domain `{domain}`, got `{name}`. {hint}")
    return found[name]


@cache
def _load(domain: str, target: str) -> dict[str, ProblemKind]:
    module_name, _, attribute = target.partition(":")
    try:
        listed: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            listed = getattr(listed, part)
        if not isinstance(listed, (list, tuple)):
            listed = listed()
    except Exception as error:
        raise SpecError(
            f"problems of `{domain}`: expected {target} to give ProblemKinds, got {type(error).__name__}: {error}. "
            "Install what it needs (`sciopt doctor` shows what is there) or correct its entry point."
        ) from error
    for kind in listed:
        _check(kind, domain, target)
    return {kind.name: kind for kind in listed}


def _check(kind: Any, domain: str, target: str) -> None:
    if not isinstance(kind, ProblemKind) or not kind.name.startswith(f"{domain}."):
        got = kind.name if isinstance(kind, ProblemKind) else type(kind).__name__
        raise SpecError(f"problems of `{domain}`: expected ProblemKinds `{domain}.<problem>`, got {got} from {target}.")
    if kind.options.model_config.get("extra") != "forbid":
        raise SpecError(
            f"{kind.name}: expected options with extra='forbid', got {kind.options.model_config.get('extra')!r}. "
            "A misspelt option must be an error."
        )
