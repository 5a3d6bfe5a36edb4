"""From molecules to conformers, a window of molecules at a time: embed, relax together, check, choose."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from rdkit import Chem

from sciopt.checks import check_option
from sciopt.domains.conformation.generation.ensemble import GenerationResult, MoleculeEnsemble
from sciopt.domains.conformation.generation.sampling import Sampling, embed
from sciopt.domains.conformation.generation.window import Start, Work, failed, settle
from sciopt.domains.conformation.io import FailureKind, MoleculeRecord, Preparation, ReadFailure, ReadResult
from sciopt.domains.conformation.io.preparation import without_parameters
from sciopt.domains.conformation.io.smiles import parse_smiles
from sciopt.domains.conformation.mmff import Variant
from sciopt.domains.conformation.stereo import stereo_terms

__all__ = ["Source", "generate", "generate_stream"]

Source = str | Chem.Mol | MoleculeRecord | ReadFailure | None
WINDOW = 512  # starts that wait for each other, so that molecules of one size are relaxed together
LARGE = 200  # atoms from which a molecule takes minutes to embed: nothing finished waits for it, nor it for others


def generate(
    molecules: Source | Iterable[Source] | ReadResult,
    n: int = 50,
    *,
    generator: torch.Generator | None = None,
    force_field: Variant = Variant.MMFF94,
    sampling: Sampling | None = None,
    preparation: Preparation | None = None,
    device: torch.device | str | None = None,
    report: Callable[[int], object] | None = None,
) -> GenerationResult:
    """Low-energy conformers of molecules, all of them relaxed in batches; one bad molecule never stops the others.

    ETKDG starts are minimised with MMFF94 by the core's L-BFGS. Of the minima those with the configuration that was asked
    for are kept, each once, and when more than ``n`` are left, the lowest of each of ``n`` clusters. A rigid molecule has
    fewer than ``n``; its ``remarks`` say so. For long lists that need not stay in memory see `generate_stream`.

    Args:
        molecules: a SMILES string, an RDKit molecule (missing hydrogens are added, conformers are not used), a record, a
            list of these, or what `read_molecules` returned, whose failures are passed on.
        n: conformers of each molecule, >= 1.
        generator: of the embedding, on the CPU; None: seeded with 0. The same state gives the same bits.
        force_field: MMFF94, or MMFF94s with flatter conjugated nitrogens.
        sampling: budgets and thresholds.
        preparation: rules for salts, radicals and size, for strings and RDKit molecules; the default refuses mixtures.
        device: where to relax; None: the CPU.
        report: called with the number of starts that have been relaxed or given up, as they are.

    Returns:
        `GenerationResult`: molecules with conformers and energies, failures with reasons, the fate of every start.

    Raises:
        ValueError: for ``n`` below 1.
        TypeError: for something that is no molecule.

    Example:
        >>> result = generate(["CCC[C@@H](O)CC", "", "[Na+].[Cl-]"], 5)
        >>> result.molecules[0].GetNumConformers(), [failure.kind.name for failure in result.failures]
        (5, ['EMPTY', 'MIXTURE'])
        >>> bool(result.energies[0][0] <= result.energies[0][-1])
        True

    References:
        Wang, Witek, Landrum, Riniker. "Improving conformer generation for small rings and macrocycles". JCIM, 2020.
        Halgren. "Merck molecular force field. I". J. Comput. Chem., 1996.
    """
    items = list(
        generate_stream(
            molecules,
            n,
            generator=generator,
            force_field=force_field,
            sampling=sampling,
            preparation=preparation,
            device=device,
            report=report,
        )
    )
    return GenerationResult(
        ensembles=tuple(item for item in items if isinstance(item, MoleculeEnsemble)),
        failures=tuple(item for item in items if isinstance(item, ReadFailure)),
    )


def generate_stream(
    molecules: Source | Iterable[Source] | ReadResult,
    n: int = 50,
    *,
    generator: torch.Generator | None = None,
    force_field: Variant = Variant.MMFF94,
    sampling: Sampling | None = None,
    preparation: Preparation | None = None,
    device: torch.device | str | None = None,
    report: Callable[[int], object] | None = None,
) -> Iterator[MoleculeEnsemble | ReadFailure]:
    """The same as `generate`, one molecule after the other in the order of the source, as they are finished.

    A few hundred conformers are held at a time, however long the list is.

    Args:
        molecules: see `generate`; an iterator is read as far as needed.
        n: see `generate`.
        generator: see `generate`.
        force_field: see `generate`.
        sampling: see `generate`.
        preparation: see `generate`.
        device: see `generate`.
        report: see `generate`.

    Yields:
        `MoleculeEnsemble` or `ReadFailure`.

    Raises:
        ValueError: for ``n`` below 1.
        TypeError: for something that is no molecule.

    Example:
        >>> [len(item.energies) for item in generate_stream(["C", "CC"], 3)]
        [1, 1]
    """
    whole = isinstance(n, int) and not isinstance(n, bool)
    check_option("generate", "n", n, whole and n >= 1, "to be an int >= 1", "Ask for at least one conformer.")
    if not isinstance(force_field, Variant):
        raise TypeError(
            f"generate: expected `force_field` to be a Variant, got {force_field!r}. Use Variant.MMFF94 or MMFF94S."
        )
    source = generator if generator is not None else torch.Generator(device="cpu").manual_seed(0)
    seed = 1 + int(torch.randint(2_000_000_000, (1,), generator=source))  # conformer i takes seed + i
    rules = preparation or Preparation()
    work = Work(n, seed, force_field, sampling or Sampling(), torch.device(device or "cpu"), report or (lambda _: None))
    return _windows(_listed(molecules), rules, work)


def _listed(molecules: Any) -> Iterable[Any]:
    if isinstance(molecules, ReadResult):
        return sorted((*molecules.records, *molecules.failures), key=lambda item: item.index)
    if molecules is None or isinstance(molecules, (str, Chem.Mol, MoleculeRecord, ReadFailure)):
        return [molecules]
    if not isinstance(molecules, Iterable):
        raise TypeError(
            f"generate: expected SMILES or RDKit molecules, got {type(molecules).__name__}. Pass one, or a list of them."
        )
    return molecules


def _windows(molecules: Iterable[Any], rules: Preparation, work: Work) -> Iterator[MoleculeEnsemble | ReadFailure]:
    held: list[Start | ReadFailure] = []
    waiting = 0
    for index, item in enumerate(molecules):
        record = _record(item, index, rules)
        large = isinstance(record, MoleculeRecord) and record.mol.GetNumAtoms() >= LARGE
        if large and held:
            yield from settle(held, work)
            held, waiting = [], 0
        made = _start(record, work)
        held.append(made)
        waiting += made.positions.shape[0] if isinstance(made, Start) else 0
        if waiting >= WINDOW or not waiting or large:
            yield from settle(held, work)
            held, waiting = [], 0
    yield from settle(held, work)


def _record(item: Any, index: int, rules: Preparation) -> MoleculeRecord | ReadFailure:
    if isinstance(item, (MoleculeRecord, ReadFailure)):
        return item
    if isinstance(item, str):
        return parse_smiles(item, rules, index=index)
    if item is None:
        return ReadFailure(index=index, kind=FailureKind.SYNTAX, reason="None: RDKit could not read this molecule")
    if isinstance(item, Chem.Mol):
        name = item.GetProp("_Name") if item.HasProp("_Name") else ""
        item.UpdatePropertyCache(strict=False)
        return rules.apply(item, index=index, name=name)
    raise TypeError(
        f"generate: expected SMILES or RDKit molecules, got {type(item).__name__} as number {index}. Convert it first."
    )


def _start(record: MoleculeRecord | ReadFailure, work: Work) -> Start | ReadFailure:
    """Embedded conformers of one molecule."""
    count = work.sampling.starts(work.n)
    if isinstance(record, ReadFailure):
        work.report(count)
        return record
    if missing := without_parameters(record.mol):
        work.report(count)
        reason = f"{work.force_field.value} has no parameters for {missing}"
        return failed(record, FailureKind.NO_PARAMETERS, reason)
    positions, short = embed(record.mol, count, work.seed, work.sampling)
    work.report(count - positions.shape[0])
    if positions.shape[0] == 0:
        return failed(record, FailureKind.EMBEDDING, short)
    terms = stereo_terms(record.mol)
    remarks = [*record.remarks, *([short] if short else [])]
    if terms.unchecked:
        remarks.append(f"configuration not checked at {', '.join(terms.unchecked)}")
    return Start(record=record, positions=positions, terms=terms, remarks=tuple(remarks))
