"""Closed forms around kernel ridge: errors of all leave-one-out fits from dual weights, and a kernel bent by a graph.

Differentiable to any order in everything, batched over leading dimensions; ``n^3`` operations.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sciopt.checks import check_option, check_tree
from sciopt.transforms import under_transform

__all__ = ["bent_kernel", "left_out_errors"]


def left_out_errors(kernel: Tensor, dual: Tensor, weights: Tensor, penalty: Tensor | float) -> Tensor:
    """``targets_i - f_without_i(x_i)`` for all rows, from the dual weights of the fit with all of them.

    With ``M = (W K + penalty I)^-1`` and ``dual = M W targets`` the error is ``dual_i / (weights_i M_ii)``. The outer loss
    of a bi-level problem whose inner solution is `weighted_kernel_ridge`: it reads the solution, and what the outer
    variables do to M.

    Args:
        kernel: symmetric positive semi-definite, ``(*batch, n, n)``.
        dual: dual weights of `weighted_kernel_ridge`, ``(*batch, n)``.
        weights: ``(*batch, n)``, positive.
        penalty: a number, a tensor ``()`` or ``(*batch, 1)``; positive.

    Returns:
        Errors ``(*batch, n)``.

    Raises:
        ValueError: when shapes do not fit, or a weight or the penalty is not positive.

    Example:
        >>> from sciopt.inner import weighted_kernel_ridge
        >>> kernel, targets, weights = torch.ones(2, 2), torch.tensor([1.0, 3.0]), torch.ones(2)
        >>> left_out_errors(kernel, weighted_kernel_ridge(kernel, targets, weights, 1.0), weights, 1.0)
        tensor([-0.5000,  2.5000])

    References:
        Rasmussen, Williams. "Gaussian processes for machine learning". MIT Press, 2006, eq. 5.12.
    """
    owner = "left_out_errors"
    n = _square(owner, kernel)
    for name, value in (("dual", dual), ("weights", weights)):
        check_tree(owner, name, value, like=kernel)
        if value.shape[-1:] != (n,):
            raise ValueError(
                f"{owner}: expected `{name}` of shape (*batch, {n}), got {tuple(value.shape)}. Give one number per row."
            )
    shift = torch.as_tensor(penalty, dtype=kernel.dtype, device=kernel.device)
    if not under_transform():
        low, least = float(weights.detach().min()), float(shift.detach().min())
        check_option(owner, "weights", low, low > 0, "> 0", "Use leave_one_out() where rows are left out.")
        check_option(owner, "penalty", least, least > 0, "> 0", "1e-6 of the mean diagonal is small.")
    root = weights.sqrt()
    eye = torch.eye(n, dtype=kernel.dtype, device=kernel.device)
    system = root.unsqueeze(-1) * kernel * root.unsqueeze(-2)
    system = system + shift.reshape(*shift.shape, *[1] * (2 - min(shift.ndim, 1))) * eye
    inverse = torch.linalg.inv(system)  # has the diagonal of M, and is symmetric
    return dual / (weights * inverse.diagonal(dim1=-2, dim2=-1))


def bent_kernel(kernel: Tensor, quadratic: Tensor, strength: Tensor | float) -> tuple[Tensor, Tensor]:
    """The kernel of the norm ``|f|^2 + strength f(z)^T L f(z)``: a smoothness prior without a change of the solver.

    Ridge regression on the rows that have a target with this kernel is Laplacian-regularised kernel ridge on all points,
    with or without targets: ``argmin_f sum_i w_i (f(x_i) - y_i)^2 + penalty (|f|^2 + strength f^T L f)``. All closed forms
    (weights, leave-one-out, posterior) hold for it.

    Args:
        kernel: ``K`` between all points z, ``(*batch, n, n)``.
        quadratic: ``L``, symmetric positive semi-definite, ``(*batch, n, n)``, such as a graph's Laplacian.
        strength: >= 0, a number or a tensor ``()`` or ``(*batch, 1)``.

    Returns:
        The bent kernel ``B K`` and ``B^T`` with ``B = (I + strength K L)^-1``, each ``(*batch, n, n)``. A model with dual
        weights ``a`` of the bent kernel predicts ``k(new, z) @ (B^T a)``, where ``k`` is the kernel before.

    Raises:
        ValueError: when shapes do not fit, or ``strength`` is negative.

    Example:
        >>> edge = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
        >>> bent_kernel(torch.eye(2), edge, 1.0)[0]
        tensor([[0.6667, 0.3333],
                [0.3333, 0.6667]])

    References:
        Sindhwani, Niyogi, Belkin. "Beyond the point cloud: from transductive to semi-supervised learning". ICML 2005, eq. 7.
        Belkin, Niyogi, Sindhwani. "Manifold regularization". JMLR 7, 2006, section 4.2.
    """
    owner = "bent_kernel"
    n = _square(owner, kernel)
    check_tree(owner, "quadratic", quadratic, like=kernel)
    if quadratic.shape[-2:] != (n, n):
        raise ValueError(
            f"{owner}: expected `quadratic` of shape (*batch, {n}, {n}), got {tuple(quadratic.shape)}. Give one row per point."
        )
    amount = torch.as_tensor(strength, dtype=kernel.dtype, device=kernel.device)
    if not under_transform():
        least = float(amount.detach().min())
        check_option(owner, "strength", least, least >= 0, ">= 0", "Optimise its logarithm.")
    eye = torch.eye(n, dtype=kernel.dtype, device=kernel.device)
    scale = amount.reshape(*amount.shape, *[1] * (2 - min(amount.ndim, 1)))
    transposed = torch.linalg.inv(eye + scale * (quadratic @ kernel))  # B^T: K and L are symmetric
    bent = kernel @ transposed
    return 0.5 * (bent + bent.mT), transposed


def _square(owner: str, kernel: Tensor) -> int:
    check_tree(owner, "kernel", kernel)
    if kernel.ndim < 2 or kernel.shape[-1] != kernel.shape[-2]:
        raise ValueError(f"{owner}: expected a square `kernel`, got {tuple(kernel.shape)}. Pass K(data, data).")
    return kernel.shape[-1]
