"""Inner problems whose solution is a formula: ridge, weighted least squares, kernel ridge, logistic Newton.

Plain differentiable functions: autograd and `torch.func` differentiate through them to any order, and leading dimensions
are batches. Systems are solved by Cholesky factorisation.

References:
    Chen et al. "Gradient-based Bi-level Optimization for Deep Learning: A Survey", sec. 4.4, eq. 45-48. Bertinetto et al.
    "Meta-learning with differentiable closed-form solvers". ICLR 2019.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor

from sciopt.checks import check_option, check_tree

__all__ = ["kernel_ridge", "logistic_newton", "ridge", "ridge_dual", "ridge_primal", "weighted_least_squares"]


def ridge(features: Tensor, targets: Tensor, penalty: Tensor | float) -> Tensor:
    """``argmin_w |features w - targets|^2 + penalty |w|^2``, by the smaller of the primal and the dual system.

    Use it as the head of a meta-learner or a surrogate. Costs ``n d min(n, d)``. A penalty per weight is taken too.

    Args:
        features: ``(*batch, n, d)``.
        targets: ``(*batch, n)`` or ``(*batch, n, k)``.
        penalty: a number, a tensor ``()`` or ``(*batch, 1)``, or one entry per weight ``(*batch, d)``; positive.

    Returns:
        Weights ``(*batch, d)`` or ``(*batch, d, k)``.

    Raises:
        ValueError: when shapes do not fit, or the system is singular.

    Example:
        >>> ridge(torch.eye(2), torch.tensor([1.0, 2.0]), 1.0)
        tensor([0.5000, 1.0000])

    References:
        Survey eq. 45-46 (primal), eq. 47-48 (dual, Woodbury).
    """
    n, d = features.shape[-2:]
    return ridge_primal(features, targets, penalty) if d <= n else ridge_dual(features, targets, penalty)


def ridge_primal(features: Tensor, targets: Tensor, penalty: Tensor | float) -> Tensor:
    """`ridge` by ``(X^T X + diag(penalty)) w = X^T y``: for no more features than rows.

    Args:
        features: ``(*batch, n, d)``.
        targets: ``(*batch, n)`` or ``(*batch, n, k)``.
        penalty: as for `ridge`; may be 0 where ``features`` has full column rank.

    Returns:
        Weights ``(*batch, d)`` or ``(*batch, d, k)``.

    Raises:
        ValueError: when shapes do not fit, or the system is singular.

    Example:
        >>> ridge_primal(torch.ones(4, 1), torch.ones(4), 0.0)
        tensor([1.])

    References:
        Survey eq. 45-46.
    """
    y, weights, vector = _prepare("ridge_primal", features, targets, penalty)
    gram = features.mT @ features + torch.diag_embed(weights)
    out = _solve("ridge_primal", gram, features.mT @ y)
    return out.squeeze(-1) if vector else out


def ridge_dual(features: Tensor, targets: Tensor, penalty: Tensor | float) -> Tensor:
    """`ridge` by ``w = P^-1 X^T (X P^-1 X^T + I)^-1 y``, P = diag(penalty): for more features than rows.

    Args:
        features: ``(*batch, n, d)``.
        targets: ``(*batch, n)`` or ``(*batch, n, k)``.
        penalty: as for `ridge`; every entry must be positive.

    Returns:
        Weights ``(*batch, d)`` or ``(*batch, d, k)``.

    Raises:
        ValueError: when shapes do not fit, or the system is singular.

    Example:
        >>> ridge_dual(torch.ones(1, 2), torch.ones(1), 2.0)
        tensor([0.2500, 0.2500])

    References:
        Survey eq. 47-48; Woodbury identity.
    """
    y, weights, vector = _prepare("ridge_dual", features, targets, penalty)
    # one common factor is taken out, so that a small penalty does not blow up the system
    unit = weights.mean(-1, keepdim=True)
    scaled = features * (unit / weights).unsqueeze(-2)
    eye = torch.eye(features.shape[-2], dtype=features.dtype, device=features.device)
    gram = scaled @ features.mT + unit.unsqueeze(-1) * eye
    out = scaled.mT @ _solve("ridge_dual", 0.5 * (gram + gram.mT), y)
    return out.squeeze(-1) if vector else out


def weighted_least_squares(features: Tensor, targets: Tensor, weights: Tensor, penalty: Tensor | float = 0.0) -> Tensor:
    """``argmin_w sum_i weights_i (features_i w - targets_i)^2 + penalty |w|^2``: instance weights as outer variables.

    Args:
        features: ``(*batch, n, d)``.
        targets: ``(*batch, n)`` or ``(*batch, n, k)``.
        weights: ``(*batch, n)``, not negative; zero leaves a row out.
        penalty: as for `ridge`; 0 needs full column rank among the rows of positive weight.

    Returns:
        Weights ``(*batch, d)`` or ``(*batch, d, k)``.

    Raises:
        ValueError: when shapes do not fit, or the system is singular.

    Example:
        >>> weighted_least_squares(torch.ones(2, 1), torch.tensor([0.0, 1.0]), torch.tensor([1.0, 3.0]))
        tensor([0.7500])

    References:
        Survey sec. 4.4 (linear models with instance weights).
    """
    y, ridge_weights, vector = _prepare("weighted_least_squares", features, targets, penalty)
    if weights.shape[-1:] != features.shape[-2:-1]:
        raise ValueError(
            f"weighted_least_squares: expected `weights` of shape (*batch, {features.shape[-2]}), got "
            f"{tuple(weights.shape)}. Give one weight per row of `features`."
        )
    weighted = features * weights.unsqueeze(-1)
    gram = weighted.mT @ features + torch.diag_embed(ridge_weights)
    out = _solve("weighted_least_squares", 0.5 * (gram + gram.mT), weighted.mT @ y)
    return out.squeeze(-1) if vector else out


def kernel_ridge(kernel: Tensor, targets: Tensor, penalty: Tensor | float) -> Tensor:
    """Dual weights ``(K + penalty I)^-1 y`` of kernel ridge regression; predictions are ``K(new, data) @ weights``.

    Args:
        kernel: symmetric positive semi-definite, ``(*batch, n, n)``.
        targets: ``(*batch, n)`` or ``(*batch, n, k)``.
        penalty: a number, a tensor ``()`` or ``(*batch, 1)``, or one entry per row ``(*batch, n)``.

    Returns:
        Dual weights, shaped as ``targets``.

    Raises:
        ValueError: when shapes do not fit, or the system is singular (duplicate rows with penalty 0).

    Example:
        >>> kernel_ridge(torch.eye(2), torch.tensor([2.0, 4.0]), 1.0)
        tensor([1., 2.])

    References:
        Survey eq. 48 with ``X X^T`` replaced by the kernel.
    """
    if kernel.shape[-1] != kernel.shape[-2]:
        raise ValueError(f"kernel_ridge: expected a square `kernel`, got {tuple(kernel.shape)}. Pass K(data, data).")
    y, weights, vector = _prepare("kernel_ridge", kernel, targets, penalty)
    out = _solve("kernel_ridge", kernel + torch.diag_embed(weights), y)
    return out.squeeze(-1) if vector else out


def logistic_newton(
    features: Tensor,
    labels: Tensor,
    penalty: Tensor | float,
    weights: Tensor | None = None,
    *,
    num_steps: int = 10,
    init: Tensor | None = None,
) -> Tensor:
    """``argmin_w sum_i weights_i softplus(-z_i features_i w) + penalty |w|^2 / 2``, z = +-1, by Newton's method.

    Each step is a weighted least-squares solve (survey sec. 4.4); the whole series is differentiable, and so is its
    result with respect to everything, to any order. Convergence is quadratic once close; with a positive penalty 10 steps
    reach rounding on ordinary data. In steps that would overshoot, the length is halved.

    Args:
        features: ``(*batch, n, d)``.
        labels: ``(*batch, n)``, 0 or 1.
        penalty: a number, a tensor ``()`` or ``(*batch, 1)``, or one entry per weight ``(*batch, d)``; positive.
        weights: ``(*batch, n)``, one weight per row; None: ones.
        num_steps: Newton steps, each ``n d min(n, d)``.
        init: start ``(*batch, d)``; None: zeros.

    Returns:
        Weights ``(*batch, d)``.

    Raises:
        ValueError: when shapes do not fit, or the system is singular.

    Example:
        >>> logistic_newton(torch.tensor([[1.0], [-1.0]]), torch.tensor([1.0, 0.0]), 1.0)
        tensor([0.6748])

    References:
        Bertinetto et al. "Meta-learning with differentiable closed-form solvers". ICLR 2019, sec. 3.2. Survey sec. 4.4.
    """
    check_option("logistic_newton", "num_steps", num_steps, num_steps >= 1, ">= 1", "10 is a good choice.")
    y, ridge_weights, vector = _prepare("logistic_newton", features, labels, penalty)
    if not vector:
        raise ValueError(
            f"logistic_newton: expected `labels` of shape (*batch, {features.shape[-2]}), got {tuple(labels.shape)}. "
            "Pass one 0 or 1 per row."
        )
    y = y.squeeze(-1)
    instance = torch.ones_like(y) if weights is None else weights
    batch = torch.broadcast_shapes(features.shape[:-2], y.shape[:-1], instance.shape[:-1], ridge_weights.shape[:-1])
    w = features.new_zeros(*batch, features.shape[-1]) if init is None else init

    def loss(w: Tensor) -> Tensor:
        z = (features @ w.unsqueeze(-1)).squeeze(-1)
        data = instance * (torch.nn.functional.softplus(z) - y * z)
        return (data.sum(-1) + 0.5 * (ridge_weights * w * w).sum(-1)).detach()

    for _ in range(num_steps):
        z = (features @ w.unsqueeze(-1)).squeeze(-1)
        p = torch.sigmoid(z)
        grad = (features.mT @ (instance * (p - y)).unsqueeze(-1)).squeeze(-1) + ridge_weights * w
        move = -_newton_solve(features, instance * p * (1 - p), ridge_weights, grad)
        before, length = loss(w), torch.ones_like(grad[..., :1])
        for _ in range(3):
            worse = loss(w + length * move) > before + 1e-6 * before.abs()
            length = torch.where(worse.unsqueeze(-1), 0.25 * length, length)
        w = w + length * move
    return w


def _newton_solve(features: Tensor, curvature: Tensor, penalty: Tensor, rhs: Tensor) -> Tensor:
    """``(X^T S X + P)^-1 rhs``, in the smaller of the two dimensions."""
    n, d = features.shape[-2:]
    weighted = features * curvature.unsqueeze(-1)
    if d <= n:
        gram = weighted.mT @ features + torch.diag_embed(penalty)
        return _solve("logistic_newton", 0.5 * (gram + gram.mT), rhs.unsqueeze(-1)).squeeze(-1)
    # Woodbury with R = S^(1/2), which stays regular where curvature vanishes
    used = curvature > 0
    root = torch.where(used, torch.where(used, curvature, 1.0).sqrt(), 0.0)
    rows = features * root.unsqueeze(-1)
    scaled = rows / penalty.unsqueeze(-2)
    small = scaled @ rows.mT
    eye = torch.eye(n, dtype=rhs.dtype, device=rhs.device)
    base = rhs / penalty
    inner = _solve("logistic_newton", 0.5 * (small + small.mT) + eye, rows @ base.unsqueeze(-1))
    return base - (scaled.mT @ inner).squeeze(-1)


def _prepare(owner: str, features: Tensor, targets: Tensor, penalty: Tensor | float) -> tuple[Tensor, Tensor, bool]:
    """Targets as columns, one penalty per column of ``features``, and whether the targets were a vector."""
    check_tree(owner, "features", features)
    check_tree(owner, "targets", targets, like=features)
    if features.ndim < 2:
        raise ValueError(
            f"{owner}: expected `features` of shape (*batch, n, d), got {tuple(features.shape)}. Pass a matrix per problem."
        )
    n, d = features.shape[-2:]
    vector = targets.ndim == features.ndim - 1
    if targets.ndim not in (features.ndim - 1, features.ndim) or targets.shape[features.ndim - 2] != n:
        raise ValueError(
            f"{owner}: expected `targets` of shape {(*features.shape[:-1],)} or {(*features.shape[:-1], 'k')}, got "
            f"{tuple(targets.shape)}. Give one target per row."
        )
    weights = torch.as_tensor(penalty, dtype=features.dtype, device=features.device)
    if weights.ndim == 0:
        weights = weights.expand(d)
    if weights.shape[-1] not in (1, d):
        raise ValueError(
            f"{owner}: expected `penalty` to be a scalar or to have {d} entries in its last dimension, got shape "
            f"{tuple(weights.shape)}. Add a last dimension of size 1 for one penalty per problem."
        )
    weights = weights.expand(*weights.shape[:-1], d)
    return (targets.unsqueeze(-1) if vector else targets), weights, vector


def _solve(owner: str, gram: Tensor, rhs: Tensor) -> Tensor:
    """Solve with a symmetric positive definite matrix."""
    factor, info = torch.linalg.cholesky_ex(gram)
    if is_functorch_wrapped_tensor(info):  # values cannot be read here: a singular system shows as NaN
        factor = torch.where((info == 0).unsqueeze(-1).unsqueeze(-1), factor, torch.nan)
    else:
        pivots = factor.detach().diagonal(dim1=-2, dim2=-1).square()
        lost = gram.shape[-1] * torch.finfo(gram.dtype).eps * gram.detach().diagonal(dim1=-2, dim2=-1)
        singular = (info != 0) | (pivots <= lost).any(-1)
        if bool((singular & torch.isfinite(gram.detach()).all(-1).all(-1)).any()):
            raise ValueError(
                f"{owner}: expected a positive definite system, got a singular one (rank-deficient data). Raise `penalty` "
                "above 0, or remove dependent columns and duplicate rows."
            )
    return torch.cholesky_solve(rhs, factor)
