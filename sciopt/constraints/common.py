"""What the energies share: pair lists, distances that stay differentiable at coincident points, named parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["all_pairs", "check_indices", "named_params", "safe_sqrt", "squared_distances"]


def all_pairs(num_sites: int, device: torch.device | None = None) -> Tensor:
    """Every pair ``i < j`` of ``num_sites`` sites, the pair list of a complete distance matrix.

    Args:
        num_sites: number of sites N.
        device: where the list lives; put it where the positions are.

    Returns:
        Integer tensor ``(N (N - 1) / 2, 2)``.

    Example:
        >>> all_pairs(3).tolist()
        [[0, 1], [0, 2], [1, 2]]
    """
    return torch.triu_indices(num_sites, num_sites, offset=1, device=device).T.contiguous()


def check_indices(owner: str, name: str, indices: Any, width: int) -> Tensor:
    """An integer tensor ``(m, width)`` of distinct, non-negative site numbers per row.

    Raises:
        TypeError: when it is not an integer tensor.
        ValueError: for another shape, a negative number, or a site that occurs twice in a row.
    """
    if not isinstance(indices, Tensor) or indices.is_floating_point() or indices.dtype == torch.bool:
        got = indices.dtype if isinstance(indices, Tensor) else type(indices).__name__
        raise TypeError(
            f"{owner}: expected `{name}` as an integer tensor, got {got}. Use torch.tensor([...]) of site numbers."
        )
    if indices.ndim != 2 or indices.shape[1] != width:
        raise ValueError(
            f"{owner}: expected `{name}` of shape (m, {width}), got {tuple(indices.shape)}. "
            "List one row of sites per term."
        )
    ordered = indices.long().sort(dim=-1).values
    if bool((ordered < 0).any()) or bool((ordered[:, 1:] == ordered[:, :-1]).any()):
        bad = int(((ordered < 0).any(-1) | (ordered[:, 1:] == ordered[:, :-1]).any(-1)).nonzero()[0])
        raise ValueError(
            f"{owner}: expected `{name}` to hold distinct non-negative sites per row, got {indices[bad].tolist()} in "
            f"row {bad}. Remove the term or renumber the sites."
        )
    return indices.long()


def squared_distances(positions: Tensor, pairs: Tensor) -> Tensor:
    """Squared distance of each pair: ``(*batch, N, d)`` and ``(P, 2)`` to ``(*batch, P)``; smooth everywhere."""
    pairs = pairs.to(positions.device)
    difference = positions.index_select(-2, pairs[:, 0]) - positions.index_select(-2, pairs[:, 1])
    return difference.square().sum(-1)


def safe_sqrt(square: Tensor) -> Tensor:
    """Square root whose derivatives of every order are zero, not NaN, at zero.

    The distance of two coincident points has no direction; zero is the mean of its one-sided derivatives. Values below
    the square root of the smallest normal number count as zero, so that second derivatives do not overflow.
    """
    zero = square <= torch.finfo(square.dtype).tiny ** 0.5  # False for NaN, which stays NaN
    return torch.where(zero, 0.0, torch.where(zero, 1.0, square).sqrt())


def named_params(
    owner: str,
    outer_params: Any,
    fixed: Mapping[str, Any],
    required: Sequence[str],
    optional: Sequence[str] = (),
    main: str | None = None,
) -> dict[str, Any]:
    """One dict of parameters: those given at construction, overridden by the outer ones.

    Args:
        owner: who asks, for the error.
        outer_params: dict by name; a bare tensor stands for ``main``; None for no outer parameter.
        fixed: parameters given at construction.
        required: names that must be there.
        optional: names that may be there.
        main: the name that a bare tensor stands for.

    Raises:
        TypeError: for something that is neither a dict nor a tensor nor None.
        ValueError: for unknown or missing names.
    """
    if outer_params is None:
        outer: Mapping[str, Any] = {}
    elif isinstance(outer_params, Tensor) and main is not None:
        outer = {main: outer_params}
    elif isinstance(outer_params, Mapping):
        outer = outer_params
    else:
        bare = f" or a tensor (`{main}`)" if main is not None else ""
        raise TypeError(
            f"{owner}: expected `outer_params` as a dict of tensors{bare}, got {type(outer_params).__name__}. "
            f"Name the parameters: {', '.join((*required, *optional))}."
        )
    params = {**fixed, **outer}
    known = (*required, *optional)
    for name in params:
        if name not in known:
            raise ValueError(
                f"{owner}: expected parameters among {', '.join(known)}, got `{name}`. Rename or remove it."
            )
    missing = [name for name in required if name not in params]
    if missing:
        raise ValueError(
            f"{owner}: expected the parameters {', '.join(required)}, got none named `{missing[0]}`. Give it in "
            "`outer_params`, or at construction if it is no design variable."
        )
    return params


def per_term(owner: str, name: str, value: Any, count: int, like: Tensor) -> Tensor:
    """A parameter as a tensor that broadcasts against ``(*batch, count)``."""
    tensor = value if isinstance(value, Tensor) else torch.as_tensor(value, dtype=like.dtype, device=like.device)
    if tensor.ndim and tensor.shape[-1] not in (1, count):
        raise ValueError(
            f"{owner}: expected `{name}` as a number or of shape (*batch, {count}), one per term, got "
            f"{tuple(tensor.shape)}. Order it as the list of terms."
        )
    return tensor
