"""From a table of old results to the next batch, with every choice named."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from sciopt.checks import check_option
from sciopt.domains.offline.acquisition import AbstractAcquisition, UpperConfidence
from sciopt.domains.offline.proposal.batch import Calibration, ProposedBatch
from sciopt.domains.offline.proposal.calibrated import choose_model
from sciopt.domains.offline.proposal.columns import AbstractColumn
from sciopt.domains.offline.proposal.constraints import AbstractConstraint, as_constraint, repaired
from sciopt.domains.offline.proposal.families import AbstractFamily
from sciopt.domains.offline.proposal.intake import read_count, read_seed
from sciopt.domains.offline.proposal.model import DENSE_ROWS, Observations, ScoreModel
from sciopt.domains.offline.proposal.search import Allowed, Evolution, best_candidates, polished
from sciopt.domains.offline.proposal.spread import spread_out
from sciopt.domains.offline.proposal.tables import PreparedTable, prepared_table
from sciopt.domains.offline.symmetry import AbstractSymmetry
from sciopt.solution import Status

__all__ = ["ProposalOptions", "propose"]

JOINT = 2_048  # designs among which a batch is chosen jointly
POOR = 0.2  # relative residual of a fit that is said to have failed
TILE = 4_000_000  # distances at a time
TILE_ROWS = 256
CHEAP = 1e11  # kernel products up to which deviations of all candidates are computed


@final
@dataclass(frozen=True, kw_only=True)
class ProposalOptions:
    """How `propose` models and searches; the defaults are meant for everyone.

    Args:
        families: kernels among which rows left out choose, see `choose_model`; empty: alike letters and a wide network for
            proteins, a wide network and a Gaussian one for other columns.
        evolution: search of spaces that are too large to list.
        polish: designs whose numbers follow the gradient at the end.
        dense_rows: different designs up to which the posterior is computed in float64 by a Cholesky factor; above it by
            conjugate gradients in float32, with deviations given the 2,000 most correlated rows.
        most_rows: different designs that are learned from: of more, the best tenth of these many and others at random. Time
            and memory grow with their square: 30,000 take a minute or two on one core, and 4 GB.

    Raises:
        ValueError: for options out of range.

    Example:
        >>> ProposalOptions(polish=0).evolution.rounds
        40
    """

    families: tuple[AbstractFamily, ...] = ()
    evolution: Evolution = Evolution()
    polish: int = 32
    dense_rows: int = DENSE_ROWS
    most_rows: int = 30_000

    def __post_init__(self) -> None:
        owner = "ProposalOptions"
        check_option(owner, "most_rows", self.most_rows, self.most_rows >= 2, ">= 2", "Leave the default.")
        check_option(owner, "polish", self.polish, self.polish >= 0, ">= 0", "Leave the default.")
        check_option(owner, "dense_rows", self.dense_rows, self.dense_rows >= 0, ">= 0", "Leave the default.")


def propose(
    designs: Any,
    scores: Any,
    *,
    n: int = 128,
    columns: Sequence[AbstractColumn] = (),
    constraints: Sequence[AbstractConstraint | str | Callable[[list[dict[str, Any]]], Any]] = (),
    pool: Any = None,
    maximize: bool = True,
    seed: int = 0,
    acquisition: AbstractAcquisition | None = None,
    symmetry: AbstractSymmetry | None = None,
    options: ProposalOptions | None = None,
) -> ProposedBatch:
    """The next ``n`` designs to test, from a table of old results: fits, calibrates, searches, and chooses the batch jointly.

    Columns may be sequences, categories, numbers or a mix. Weights of columns and noise come from the evidence of a Gaussian
    process (hypergradients of kernel ridge regression in closed form), kernel and score transform from rows left out,
    and deviations are stretched to agree with held-out errors. Spaces of up to 300,000 designs and pools are ranked whole;
    larger ones are searched by evolution with constraints, then numbers follow the gradient. Measured and pending designs
    are never proposed. Test the batch, append the results, call again. Every choice about the table stands in the notes:

    - equal rows are merged; their scores are averaged, and their spread is the least noise;
    - a score that is None, NaN or an empty string means pending; infinite scores are dropped;
    - a single measured design, or constant scores, tell nothing: the batch is then spread out, predicted by their mean, with
      infinite uncertainty and no calibration;
    - fewer allowed designs than ``n``: all of them are proposed;
    - sequences of different lengths are padded at their right end.

    Args:
        designs: measured designs: a list of strings or dicts, a dict of columns, a tensor or array ``(n, d)``, or a data
            frame.
        scores: one per design, ``(n,)``; empty where the result is pending.
        n: designs to propose.
        columns: declared columns; the others are detected, see `detect_columns`. Numbers are searched in their bounds,
            which are the measured range unless declared.
        constraints: texts such as ``"temperature + 2 * ph <= 90"`` (see `Rule`), or functions of a list of rows.
        pool: allowed designs, in a form of ``designs``; None: the whole space.
        maximize: whether higher scores are better.
        seed: of the one source of chance.
        acquisition: how the batch is chosen among the candidates, on standardised scores; None: `UpperConfidence` with
            weight 0.5 and the model's noise.
        symmetry: designs that are the same thing, such as `ReverseComplement`, for tables with one sequence column.
        options: how to model and search; None: the defaults.

    Returns:
        `ProposedBatch`.

    Raises:
        ValueError: for values that do not belong, naming row and column; no finite score; constraints that fit no column;
            no allowed design left.
        TypeError: for inputs of another kind.

    Example:
        >>> rows = [{"ph": ph, "base": base} for ph in (2, 4, 6, 8) for base in ("KOH", "NaOH")]
        >>> scores = [-((row["ph"] - 5) ** 2) - (row["base"] == "KOH") for row in rows]
        >>> batch = propose(rows, scores, n=2, constraints=["ph <= 7"])
        >>> batch.rows[0], [bool(row["ph"] <= 7) for row in batch.rows], batch.space.describe()
        ({'ph': 5, 'base': 'NaOH'}, [True, True], ['ph: whole numbers from 2 to 8', "base: one of 'KOH', 'NaOH'"])

    References:
        Rasmussen, Williams. "Gaussian processes for machine learning". MIT Press, 2006, sections 2.2, 5.4. Chen et al.
        "Gradient-based Bi-level Optimization for Deep Learning: A Survey", sections 4.4 and 5.1.
    """
    n, seed = read_count(n), read_seed(seed)
    if acquisition is not None and not isinstance(acquisition, AbstractAcquisition):
        raise TypeError(f"propose: expected an `acquisition` such as UpperConfidence(), got {acquisition!r}. Make one.")
    given = ProposalOptions() if options is None else options
    generator = torch.Generator().manual_seed(seed)
    rules = [as_constraint(rule) for rule in ([constraints] if isinstance(constraints, str) else constraints)]
    table = prepared_table(designs, scores, columns=columns, pool=pool, symmetry=symmetry)
    space, data, notes = table.space, table.data, list(table.notes)
    for rule in rules:
        rule.check(space)
        broken = int((~rule.holds(space, data.codes)).sum())
        if broken:
            notes.append(f"{broken} of {len(data)} measured designs break the constraint {rule.describe()}.")
    allowed = Allowed(
        space=space,
        excluded=torch.cat([data.codes, table.pending]),
        test=(lambda codes: torch.stack([rule.holds(space, codes) for rule in rules]).all(0)) if rules else None,
        repair=(lambda codes: repaired(space, rules, codes)) if rules else None,
        canonical=None if table.strands is None else table.strands.canonical,
    )
    if len(data) < 2 or float(data.scores.std(correction=0)) <= 1e-12 * float(data.scores.abs().max()):
        codes, said = _blind(table, allowed, n, given, generator)
        notes += said
        level = torch.full((len(codes),), float(data.scores.mean()), dtype=torch.float64, device=codes.device)
        return _batch(table, codes, level, torch.full_like(level, torch.inf), None, notes, [], maximize)
    part = _learned_from(data, given.most_rows, maximize, generator)
    if len(part) < len(data):
        notes.append(
            f"Of {len(data)} different designs {len(part)} are learned from: the best {given.most_rows // 10}, and others at "
            "random (`most_rows`). None of the rest is proposed either."
        )
    model, calibration, lines = choose_model(
        space, part, strands=table.strands, maximize=maximize, generator=generator, families=given.families,
        dense_rows=given.dense_rows,
    )  # fmt: skip
    if model.fit.status not in (Status.CONVERGED, Status.STAGNATED) or not model.fit.residual < POOR:
        notes.append(
            f"The fit failed ({model.fit.status.name}, relative residual {model.fit.residual:.1e}): do not trust these "
            "predictions. Propose from fewer rows, or tell the maintainers."
        )
    chooser = UpperConfidence(weight=0.5, noise=model.noise * model.stretch**2) if acquisition is None else acquisition
    weight = chooser.weight if isinstance(chooser, UpperConfidence) else 1.0
    short = _shortlist(table, model, allowed, weight, n, given, generator)
    if len(short) < n:
        notes.append(_few(len(short), n))
    count = min(n, len(short))
    if count > JOINT:
        notes.append(f"A batch of more than {JOINT} is the top of a ranking; it is not chosen jointly.")
        codes = short[:count]
    else:
        short = short[:JOINT]
        mean, covariance = model.posterior(short)
        similarity = 1 - space.distance(short, short)
        best = float(model.latent(data.scores).max())
        picks = chooser.choose(mean, covariance, best, count, generator=generator, similarity=similarity)
        codes = short[picks.to(short.device)]
    predicted, uncertainty = model.predict(codes)
    notes.append(_reach(table, codes))
    return _batch(table, codes, predicted, uncertainty, calibration, notes, lines, maximize)


def _learned_from(data: Observations, most: int, maximize: bool, generator: torch.Generator) -> Observations:
    """The data, or of too many the best tenth of ``most`` and others at random."""
    if len(data) <= most:
        return data
    order = data.scores.argsort(descending=maximize, stable=True)
    best, rest = order[: most // 10], order[most // 10 :]
    some = torch.randperm(len(rest), generator=generator, device=generator.device)[: most - len(best)].to(rest.device)
    return data.subset(torch.cat([best, rest[some]]).sort().values)


def _shortlist(
    table: PreparedTable,
    model: ScoreModel,
    allowed: Allowed,
    weight: float,
    n: int,
    options: ProposalOptions,
    generator: torch.Generator,
) -> Tensor:
    """Allowed designs of high mean plus deviations, best first, at least n where there are so many."""
    space, rows = table.space, len(model.fit.points)
    wanted, searched = max(n, min(64 * n, JOINT)), max(n, min(8 * n, JOINT))
    bounded = weight > 0 and model.is_dense

    def optimistic(codes: Tensor) -> Tensor:
        value = model.latent_mean(codes)
        return value + weight * model.latent_deviation(codes) if bounded else value

    if table.pool is not None or space.is_enumerable:
        codes = allowed.among(space.everything().to(table.data.codes) if table.pool is None else table.pool)
        if not len(codes):
            raise ValueError(_none_left("the pool" if table.pool is not None else "the space"))
        if bounded and float(len(codes)) * rows**2 > CHEAP:
            codes = best_candidates(space, model.latent_mean, codes, 8 * wanted)[: 8 * wanted]
        return best_candidates(space, optimistic, codes, 2 * n)[:wanted]
    cheap = optimistic if rows <= JOINT else model.latent_mean
    order = model.latent(table.data.scores).argsort(descending=True, stable=True)
    parents = table.data.codes[order[: max(options.evolution.population, 2 * n)]]
    codes = options.evolution.run(allowed, cheap, parents, searched, generator)
    if not len(codes):
        raise ValueError(_none_left("the search"))
    if options.polish:
        best = space.settled(polished(model, codes[: options.polish], weight))
        codes = torch.cat([allowed.among(best, repair=True), codes])
    return best_candidates(space, optimistic, codes, 2 * n)[:wanted]


def _blind(
    table: PreparedTable, allowed: Allowed, n: int, options: ProposalOptions, generator: torch.Generator
) -> tuple[Tensor, list[str]]:
    """A batch that is spread out, where the scores tell nothing."""
    space, data = table.space, table.data
    why = (
        f"{len(data)} different designs all score {float(data.scores[0]):.6g}"
        if len(data) > 1
        else "One design is measured"
    )
    notes = [f"{why}: nothing can be learned, so the batch is spread out and its uncertainty is infinite."]
    if table.pool is not None or space.is_enumerable:
        codes = allowed.among(space.everything().to(data.codes) if table.pool is None else table.pool)
    else:
        draws = max(4 * n, options.evolution.children)
        codes = allowed.among(space.random(draws, generator).to(data.codes), repair=True)
    if not len(codes):
        raise ValueError(_none_left("the pool" if table.pool is not None else "the space"))
    if len(codes) < n:
        notes.append(_few(len(codes), n))
    return spread_out(space, codes, torch.cat([data.codes, table.pending]), min(n, len(codes)), generator), notes


def _reach(table: PreparedTable, codes: Tensor) -> str:
    """How far the batch lies from what the calibration was checked on."""
    space, known = table.space, table.data.codes
    at_once = max(1, TILE // len(known))
    away = torch.cat([space.distance(part, known).amin(-1) for part in codes.split(at_once)]).mean()
    few = max(16, min(256, 8 * at_once))
    some = known[:: max(1, len(known) // few)][:few]
    among = torch.cat(
        [space.distance(part, known).topk(2, largest=False).values[:, 1] for part in some.split(at_once)]
    ).mean()
    return (
        f"Uncertainties are checked on measured designs that were left out, whose nearest neighbour is {float(among):.3f} "
        f"away (0: equal, 1: different in everything); the batch is {float(away):.3f} away from the nearest measured design. "
        "A prediction above every measured score is an extrapolation that nothing checks."
    )


def _few(found: int, n: int) -> str:
    return f"Only {found} allowed designs are left that are neither measured nor pending: all are proposed, not {n}."


def _none_left(where: str) -> str:
    return (
        f"propose: expected designs that satisfy the constraints and are neither measured nor pending, got none in {where}. "
        "Loosen the constraints, widen the columns, or enlarge the pool."
    )


def _batch(
    table: PreparedTable,
    codes: Tensor,
    predicted: Tensor,
    uncertainty: Tensor,
    calibration: Calibration | None,
    notes: list[str],
    lines: list[str],
    maximize: bool,
) -> ProposedBatch:
    space, data = table.space, table.data
    total, nearest = 0.0, []
    for start, part in enumerate(codes.split(TILE_ROWS)):
        between = space.distance(part, codes)
        total += float(between.sum())
        own = torch.arange(len(part), device=codes.device)
        between[own, own + start * TILE_ROWS] = torch.inf
        nearest.append(between.amin(-1))
    within = 1 - torch.cat(nearest)
    at_once = max(1, TILE // len(data))
    top = int(data.scores.argmax() if maximize else data.scores.argmin())
    return ProposedBatch(
        rows=space.decode(codes),
        predicted=predicted,
        uncertainty=uncertainty,
        novelty=torch.cat([space.distance(part, data.codes).amin(-1) for part in codes.split(at_once)]),
        similarity_within=within.clamp(min=0),
        diversity=total / max(1, len(codes) * (len(codes) - 1)),
        calibration=calibration,
        notes=notes,
        model=lines,
        space=space,
        codes=codes,
        measured=len(data),
        pending=len(table.pending),
        best_row=space.decode(data.codes[top : top + 1])[0],
        best_score=float(data.scores[top]),
        maximize=maximize,
    )
