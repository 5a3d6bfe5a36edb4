"""More closed forms on a kernel matrix: sample weights, leave-one-out, finite-time gradient flow.

Differentiable to any order in everything, batched over leading dimensions; ``n^3`` operations.

References:
    Chen et al. "Gradient-based Bi-level Optimization for Deep Learning: A Survey", sec. 4.4.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sciopt.checks import check_option, check_tree
from sciopt.transforms import under_transform

__all__ = ["gradient_flow", "leave_one_out", "weighted_kernel_ridge"]


def weighted_kernel_ridge(kernel: Tensor, targets: Tensor, weights: Tensor, penalty: Tensor | float) -> Tensor:
    """Dual weights of ``argmin_f sum_i weights_i (f(x_i) - targets_i)^2 + penalty |f|^2``.

    Instance weights, free or from a weighting network, as outer variables: ``(W K + penalty I) alpha = W targets``, which is
    smooth where a weight is zero. By LU factorisation, twice the cost of `kernel_ridge`.

    Args:
        kernel: symmetric positive semi-definite, ``(*batch, n, n)``.
        targets: ``(*batch, n)`` or ``(*batch, n, k)``.
        weights: ``(*batch, n)``, not negative; zero leaves a row out.
        penalty: a number, a tensor ``()`` or ``(*batch, 1)``; positive.

    Returns:
        Dual weights, shaped as ``targets``; predictions are ``K(new, data) @ weights``.

    Raises:
        ValueError: when shapes do not fit, or a weight is negative.

    Example:
        >>> weighted_kernel_ridge(torch.eye(2), torch.tensor([2.0, 4.0]), torch.tensor([1.0, 0.0]), 1.0)
        tensor([1., 0.])

    References:
        Survey sec. 4.4 (linear models with instance weights), in its dual form.
    """
    y, matrix, vector = _weighted("weighted_kernel_ridge", kernel, targets, weights, penalty)
    factor, pivots = torch.linalg.lu_factor(matrix)
    out = torch.linalg.lu_solve(factor, pivots, weights.unsqueeze(-1) * y)
    return out.squeeze(-1) if vector else out


def leave_one_out(kernel: Tensor, targets: Tensor, penalty: Tensor | float, weights: Tensor | None = None) -> Tensor:
    """What kernel ridge without row i predicts for row i, for all rows from one factorisation.

    With ``M = (W K + penalty I)^-1`` the error of the fit without row i is ``(M^T y)_i / M_ii``. Use the mean of its square as
    a validation loss for penalty, weights and kernel parameters.

    Args:
        kernel: symmetric positive semi-definite, ``(*batch, n, n)``.
        targets: ``(*batch, n)`` or ``(*batch, n, k)``.
        penalty: a number, a tensor ``()`` or ``(*batch, 1)``; positive.
        weights: ``(*batch, n)``, not negative; None: ones. For a row of weight zero the ordinary prediction comes out.

    Returns:
        Predictions, shaped as ``targets``.

    Raises:
        ValueError: when shapes do not fit, or a weight is negative.

    Example:
        >>> leave_one_out(torch.ones(2, 2), torch.tensor([1.0, 3.0]), 1.0)
        tensor([1.5000, 0.5000])

    References:
        Allen. "The relationship between variable selection and data augmentation and a method for prediction". 1974.
        Rasmussen, Williams. "Gaussian processes for machine learning". MIT Press, 2006, eq. 5.12.
    """
    given = kernel.new_ones(kernel.shape[:-1]) if weights is None else weights
    y, matrix, vector = _weighted("leave_one_out", kernel, targets, given, penalty)
    inverse = torch.linalg.inv(matrix)
    out = y - inverse.mT @ y / inverse.diagonal(dim1=-2, dim2=-1).unsqueeze(-1)
    return out.squeeze(-1) if vector else out


def gradient_flow(kernel: Tensor, targets: Tensor, time: Tensor | float, penalty: Tensor | float = 0.0) -> Tensor:
    """Dual weights after gradient flow for a finite time: ``K^-1 (I - exp(-K time)) targets``.

    A wide network with tangent kernel K, zero at the start and trained on ``1/2 sum (f - y)^2``, predicts ``K(new, data) @
    weights`` at that time; long times give `kernel_ridge` with ``penalty``, short ones regularise. By the exponential of an
    augmented matrix, which needs neither an inverse nor separate eigenvalues, so that K may be singular and all derivatives
    exist. Costs ``n^3 log2(time |K|)``.

    Args:
        kernel: symmetric positive semi-definite, ``(*batch, n, n)``.
        targets: ``(*batch, n)`` or ``(*batch, n, k)``.
        time: >= 0, a number or a tensor ``()``; learning rate times steps.
        penalty: weight decay: the flow is that of ``1/2 sum (f - y)^2 + penalty/2 |f|^2``; >= 0.

    Returns:
        Dual weights, shaped as ``targets``.

    Raises:
        ValueError: when shapes do not fit, or ``time`` is negative.

    Example:
        >>> gradient_flow(torch.eye(1), torch.tensor([1.0]), 1.0)
        tensor([0.6321])

    References:
        Lee et al. "Wide neural networks of any depth evolve as linear models under gradient descent". NeurIPS 2019, eq. 14.
        Higham. "Functions of matrices". SIAM, 2008, section 10.7.4 (phi functions).
    """
    y, vector = _checked("gradient_flow", kernel, targets)
    if not isinstance(time, Tensor) or not under_transform():
        number = float(time.detach()) if isinstance(time, Tensor) else float(time)
        check_option(
            "gradient_flow", "time", number, 0 <= number < float("inf"), "finite and >= 0", "Use kernel_ridge."
        )
    n, k = y.shape[-2:]
    eye = torch.eye(n, dtype=y.dtype, device=y.device)
    matrix = kernel + torch.as_tensor(penalty, dtype=y.dtype, device=y.device).unsqueeze(-1).unsqueeze(-1) * eye
    # exp([[-A t, Y], [0, 0]]) holds phi_1(-A t) Y, and t phi_1(-A t) = A^-1 (I - exp(-A t))
    size = y.detach().abs().amax((-2, -1), keepdim=True).clamp(min=torch.finfo(y.dtype).tiny)
    top = torch.cat([-time * matrix, (y / size).expand(*matrix.shape[:-2], n, k)], -1)
    augmented = torch.cat([top, top.new_zeros(*top.shape[:-2], k, n + k)], -2)
    out = time * size * torch.linalg.matrix_exp(augmented)[..., :n, n:]
    return out.squeeze(-1) if vector else out


def _checked(owner: str, kernel: Tensor, targets: Tensor) -> tuple[Tensor, bool]:
    """Targets as columns, and whether they were a vector."""
    check_tree(owner, "kernel", kernel)
    check_tree(owner, "targets", targets, like=kernel)
    if kernel.ndim < 2 or kernel.shape[-1] != kernel.shape[-2]:
        raise ValueError(f"{owner}: expected a square `kernel`, got {tuple(kernel.shape)}. Pass K(data, data).")
    n, vector = kernel.shape[-1], targets.ndim == kernel.ndim - 1
    if targets.ndim not in (kernel.ndim - 1, kernel.ndim) or targets.shape[kernel.ndim - 2] != n:
        raise ValueError(
            f"{owner}: expected `targets` of shape (*batch, {n}) or (*batch, {n}, k), got {tuple(targets.shape)}. Give one "
            "target per row."
        )
    return (targets.unsqueeze(-1) if vector else targets), vector


def _weighted(
    owner: str, kernel: Tensor, targets: Tensor, weights: Tensor, penalty: Tensor | float
) -> tuple[Tensor, Tensor, bool]:
    """Targets as columns, ``W K + penalty I``, and whether the targets were a vector."""
    y, vector = _checked(owner, kernel, targets)
    check_tree(owner, "weights", weights, like=kernel)
    n = kernel.shape[-1]
    if weights.shape[-1:] != (n,):
        raise ValueError(
            f"{owner}: expected `weights` of shape (*batch, {n}), got {tuple(weights.shape)}. Give one weight per row."
        )
    shift = torch.as_tensor(penalty, dtype=y.dtype, device=y.device)
    if not under_transform():
        low, least = float(weights.detach().min()), float(shift.detach().min())
        check_option(owner, "weights", low, low >= 0, "not negative", "Pass them through softplus or exp.")
        check_option(owner, "penalty", least, least > 0, "> 0", "1e-6 of the mean diagonal is small.")
    eye = torch.eye(n, dtype=y.dtype, device=y.device)
    return (
        y,
        weights.unsqueeze(-1) * kernel + shift.reshape(*shift.shape, *[1] * (2 - min(shift.ndim, 1))) * eye,
        vector,
    )
