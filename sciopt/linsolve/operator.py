"""Linear operators: a product, its transpose, and the structure the caller declares."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, final

import torch
from torch import Tensor

from sciopt.checks import check_option, check_tree
from sciopt.params import Layout, ravel, under_transform

__all__ = ["LinearOperator", "Tag", "format_tags", "function_operator", "matrix_operator"]

CHUNK_ELEMENTS = 1 << 22  # entries of one block of columns when an operator is materialised


class Tag(Enum):
    """Structure that the caller declares; POSITIVE_DEFINITE implies SYMMETRIC.

    With a declared null space POSITIVE_DEFINITE speaks of the complement of that space.

    Example:
        >>> matrix_operator(torch.eye(2), tags=(Tag.POSITIVE_DEFINITE,)).symmetric
        True
    """

    SYMMETRIC = "symmetric"
    POSITIVE_DEFINITE = "positive definite"


def format_tags(tags: Iterable[Tag]) -> str:
    """Tags as they appear in messages, e.g. ``{SYMMETRIC}``."""
    return "{" + ", ".join(sorted(tag.name for tag in tags)) + "}"


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class LinearOperator:
    """A batched linear map ``(*batch, n) -> (*batch, m)`` given by its products.

    Build it with `matrix_operator` or `function_operator`. Rows of the batch are independent problems: row i of
    a product depends on row i of the input alone.

    Args:
        mv: product with A, ``(*batch, n)`` to ``(*batch, m)``; must not modify its input.
        shape: ``(m, n)``.
        dtype: floating-point dtype of vectors.
        device: device of vectors.
        rmv: product with the transpose, ``(*batch, m)`` to ``(*batch, n)``; None if unknown. Set to ``mv`` for
            symmetric operators.
        batch_shape: ``*batch``.
        tags: declared structure.
        nullspace: orthonormal basis ``(*batch, n, k)`` of the null space of a symmetric operator; columns of zeros where a
            problem of the batch has fewer than k.
        diagonal: returns the diagonal ``(*batch, n)``, for `Jacobi`.
        layout: structure of the tree that vectors stand for, when built on trees.
        out_layout: the same for products, where it differs.
        broadcasts: whether ``mv`` accepts further leading dimensions.
        evaluate: for the Jacobian of a problem: ``evaluate(function)`` is ``function(inner_params, outer_params)`` at
            the point of linearization, ``(*batch, ...)``, for a linear solver that knows the problem's structure.
        matrix: returns the dense matrix ``(*batch, m, n)`` where there is a formula for it; else it costs n products.
    Raises:
        ValueError: for a symmetric operator that is not square, or a null space of wrong shape, not orthonormal,
            or declared for an operator that is not symmetric.
    Example:
        >>> A = matrix_operator(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        >>> A.mv(torch.tensor([1.0, 0.0])), A.transpose().mv(torch.tensor([1.0, 0.0]))
        (tensor([1., 3.]), tensor([1., 2.]))
    """

    mv: Callable[[Tensor], Tensor]
    shape: tuple[int, int]
    dtype: torch.dtype
    device: torch.device
    rmv: Callable[[Tensor], Tensor] | None = None
    batch_shape: tuple[int, ...] = ()
    tags: frozenset[Tag] = frozenset()
    nullspace: Tensor | None = None
    diagonal: Callable[[], Tensor] | None = None
    layout: Layout | None = None
    out_layout: Layout | None = None
    broadcasts: bool = False
    evaluate: Callable[[Callable[[Any, Any], Any]], Any] | None = None
    matrix: Callable[[], Tensor] | None = None

    def __post_init__(self) -> None:
        tags = frozenset(self.tags)
        if Tag.POSITIVE_DEFINITE in tags:
            tags |= {Tag.SYMMETRIC}
        object.__setattr__(self, "tags", tags)
        m, n = self.shape
        if self.symmetric:
            if m != n:
                raise ValueError(
                    f"LinearOperator: expected a square operator for `tags` {format_tags(tags)}, got shape "
                    f"{self.shape}. Drop the tag, or solve with LSMR."
                )
            object.__setattr__(self, "rmv", self.mv)
        if self.nullspace is not None:
            self._check_nullspace(self.nullspace)

    def _check_nullspace(self, basis: Tensor) -> None:
        if not self.symmetric:
            raise ValueError(
                f"LinearOperator: expected a SYMMETRIC operator with `nullspace`, got tags {format_tags(self.tags)}. "
                "Tag the operator, or drop the null space."
            )
        if basis.ndim < 2 or tuple(basis.shape[:-1]) != (*self.batch_shape, self.shape[1]):
            raise ValueError(
                f"LinearOperator: expected `nullspace` of shape (*batch, n, k) with (*batch, n) = "
                f"{(*self.batch_shape, self.shape[1])}, got {tuple(basis.shape)}. Give one column per null vector."
            )
        if under_transform():
            return
        gram = basis.mT @ basis  # a column of zeros fills up where the rows of a batch differ in rank
        gram = gram - torch.diag_embed((gram.diagonal(dim1=-2, dim2=-1) > 0.5).to(gram))
        error = float(gram.detach().abs().max()) if gram.numel() else 0.0
        check_option(
            "LinearOperator", "nullspace", error, error <= 100 * torch.finfo(self.dtype).eps ** 0.75,
            "to be orthonormal (columns of norm 1 or 0, |q_i . q_j| near 0)", "Orthonormalise it with torch.linalg.qr.",
        )  # fmt: skip

    @property
    def symmetric(self) -> bool:
        """Whether the operator is declared symmetric."""
        return Tag.SYMMETRIC in self.tags or Tag.POSITIVE_DEFINITE in self.tags

    @property
    def positive_definite(self) -> bool:
        """Whether the operator is declared positive definite (on the complement of its null space)."""
        return Tag.POSITIVE_DEFINITE in self.tags

    def transpose(self) -> LinearOperator:
        """The transposed operator; the operator itself when symmetric.

        Raises:
            ValueError: when ``rmv`` is not known.
        """
        if self.symmetric:
            return self
        if self.rmv is None:
            raise ValueError(
                "LinearOperator: expected `rmv` for a transpose, got None. Pass rmv=, or tag the operator SYMMETRIC."
            )
        matrix = self.matrix
        return replace(
            self,
            mv=self.rmv,
            rmv=self.mv,
            shape=self.shape[::-1],
            layout=self.out_layout,
            out_layout=self.layout,
            matrix=None if matrix is None else (lambda: matrix().mT),
        )

    def project(self, vector: Tensor) -> Tensor:
        """``(I - Q Q^T) v`` for ``(*batch, n)`` and the declared null space; the vector itself without one."""
        if self.nullspace is None:
            return vector
        basis = self.nullspace
        return vector - (basis @ (basis.mT @ vector.unsqueeze(-1))).squeeze(-1)

    def matmat(self, columns: Tensor) -> Tensor:
        """Product with several columns, ``(*batch, n, k)`` to ``(*batch, m, k)``.

        Columns go through ``mv`` in blocks, by extra leading dimensions or `torch.func.vmap`; one by one when the
        product allows neither.
        """
        stacked = columns.movedim(-1, 0)
        block = max(1, CHUNK_ELEMENTS // max(1, stacked[0].numel())) if len(stacked) else 1
        parts = [self._block(part) for part in stacked.split(block)]
        return torch.cat(parts).movedim(0, -1)

    def _block(self, stacked: Tensor) -> Tensor:
        if self.broadcasts:
            return self.mv(stacked)
        if len(stacked) > 1:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    return torch.func.vmap(self.mv)(stacked)
            except RuntimeError:  # an operation without a batching rule, or one that reads values on the host
                pass
        return torch.stack([self.mv(column) for column in stacked])

    def as_matrix(self) -> Tensor:
        """The dense matrix, ``(*batch, m, n)``: costs n products and the memory of the matrix."""
        if self.matrix is not None:
            return self.matrix()
        n = self.shape[1]
        eye = torch.eye(n, dtype=self.dtype, device=self.device)
        return self.matmat(eye.expand(*self.batch_shape, n, n))


def matrix_operator(A: Tensor, *, tags: Iterable[Tag] = (), nullspace: Tensor | None = None) -> LinearOperator:
    """Operator of a dense matrix or a batch of them.

    Args:
        A: ``(*batch, m, n)``, floating point.
        tags: declared structure; it is believed, not checked.
        nullspace: orthonormal basis ``(*batch, n, k)`` of the null space of a symmetric matrix.
    Returns:
        `LinearOperator` with transpose and diagonal.
    Raises:
        TypeError: for something else than a floating-point tensor.
        ValueError: for fewer than two dimensions, or tags that the shape contradicts.
    Example:
        >>> matrix_operator(torch.ones(5, 3, 2)).shape
        (3, 2)
    """
    check_tree("matrix_operator", "A", A)
    if A.ndim < 2:
        raise ValueError(
            f"matrix_operator: expected `A` of shape (*batch, m, n), got {tuple(A.shape)}. Pass one matrix per problem."
        )
    square = A.shape[-1] == A.shape[-2]
    one = A.ndim == 2  # several vectors are then one matrix product, not one pass over A for each
    return LinearOperator(
        mv=lambda x: x @ A.mT if one else (A @ x.unsqueeze(-1)).squeeze(-1),
        rmv=lambda y: y @ A if one else (A.mT @ y.unsqueeze(-1)).squeeze(-1),
        shape=(A.shape[-2], A.shape[-1]),
        batch_shape=tuple(A.shape[:-2]),
        dtype=A.dtype,
        device=A.device,
        tags=frozenset(tags),
        nullspace=nullspace,
        diagonal=(lambda: A.diagonal(dim1=-2, dim2=-1)) if square else None,
        broadcasts=True,
    )


def function_operator(
    mv: Callable[[Any], Any],
    like: Any,
    *,
    tags: Iterable[Tag] = (),
    rmv: Callable[[Any], Any] | None = None,
    nullspace: Tensor | None = None,
    diagonal: Callable[[], Tensor] | None = None,
    out_like: Any = None,
    batch_ndim: int | None = None,
    broadcasts: bool = False,
) -> LinearOperator:
    """Operator of a function that computes products, on tensors or trees of tensors.

    Args:
        mv: linear function; takes and returns tensors ``(*batch, n)``, or trees whose leaves are ``(*batch, ...)``.
        like: a tensor or tree shaped as the argument of ``mv``: gives shapes, dtype and device.
        tags: declared structure; it is believed, not checked.
        rmv: product with the transpose. Without it, and without a SYMMETRIC tag, the transpose is the
            vector-Jacobian product of ``mv``, recorded once at the first use; ``mv`` must then be differentiable.
        nullspace: orthonormal basis ``(*batch, n, k)`` of the null space of a symmetric operator, flat.
        diagonal: returns the flat diagonal ``(*batch, n)``.
        out_like: a tensor or tree shaped as the result of ``mv``; default: as ``like``.
        batch_ndim: leading batch dimensions of every leaf; default: all but the last for a tensor, none for a tree.
        broadcasts: whether ``mv`` accepts further leading dimensions (makes `LinearOperator.as_matrix` faster).
    Returns:
        `LinearOperator` on flat vectors.
    Raises:
        TypeError: for leaves that are not floating-point tensors; while solving, for a product of another dtype.
        ValueError: while solving, for a product of the wrong shape.
    Example:
        >>> A = function_operator(lambda x: 2 * x, torch.zeros(3), tags=(Tag.POSITIVE_DEFINITE,))
        >>> A.as_matrix().diagonal()
        tensor([2., 2., 2.])
    """
    first = check_tree("function_operator", "like", like)[0]
    if out_like is None:
        out_like = like
    check_tree("function_operator", "out_like", out_like, like=first)
    plain = isinstance(like, Tensor) and isinstance(out_like, Tensor)
    if batch_ndim is None:
        batch_ndim = first.ndim - 1 if isinstance(like, Tensor) else 0
    check_option(
        "function_operator", "batch_ndim", batch_ndim, 0 <= batch_ndim < max(first.ndim, 1),
        f"in [0, {first.ndim})", "Pass vectors of shape (*batch, n).",
    )  # fmt: skip
    flat_tensors = plain and batch_ndim == first.ndim - 1 and out_like.ndim == first.ndim
    layout, flat = ravel(like, batch_ndim)
    out_layout, out_flat = ravel(out_like, batch_ndim)
    tags = frozenset(tags)
    symmetric = Tag.SYMMETRIC in tags or Tag.POSITIVE_DEFINITE in tags

    def on_flat(
        function: Callable[[Any], Any], source: Layout, target: Layout, name: str
    ) -> Callable[[Tensor], Tensor]:
        if not flat_tensors:
            return lambda x: _checked(target.flatten(function(source.unflatten(x))), x, target.size, name)
        return lambda x: _checked(function(x), x, target.size, name)

    flat_mv = on_flat(mv, layout, out_layout, "mv")
    if rmv is not None:
        flat_rmv = on_flat(rmv, out_layout, layout, "rmv")
    else:
        flat_rmv = None if symmetric else _transposed(flat_mv, flat)
    return LinearOperator(
        mv=flat_mv,
        rmv=flat_rmv,
        shape=(out_flat.shape[-1], flat.shape[-1]),
        batch_shape=tuple(flat.shape[:-1]),
        dtype=flat.dtype,
        device=flat.device,
        tags=tags,
        nullspace=nullspace,
        diagonal=diagonal,
        layout=None if flat_tensors else layout,
        out_layout=None if flat_tensors else out_layout,
        broadcasts=broadcasts and flat_tensors,
    )


def _checked(product: Tensor, vector: Tensor, size: int, name: str) -> Tensor:
    expected = (*vector.shape[:-1], size)
    if tuple(product.shape) != expected:
        raise ValueError(
            f"function_operator: expected `{name}` to return shape {expected}, got {tuple(product.shape)}. "
            "Return one entry per row of the operator, or describe the result with out_like."
        )
    if product.dtype != vector.dtype:
        raise TypeError(
            f"function_operator: expected `{name}` to return {vector.dtype}, got {product.dtype}. "
            "Compute the product in the dtype of its argument."
        )
    return product


def _transposed(mv: Callable[[Tensor], Tensor], like: Tensor) -> Callable[[Tensor], Tensor]:
    """Transpose product as the vjp of a linear ``mv``; the graph is recorded once and kept."""
    record: list[tuple[Tensor, Tensor]] = []

    def rmv(cotangent: Tensor) -> Tensor:
        if under_transform():
            return torch.func.vjp(mv, torch.zeros_like(like))[1](cotangent)[0]
        if not record:
            with torch.enable_grad():
                point = torch.zeros_like(like).detach().requires_grad_()
                record.append((point, mv(point)))
        point, product = record[0]
        if not product.requires_grad:
            raise ValueError(
                "function_operator: expected an `mv` that autograd can transpose, got one whose result has no graph. "
                "Pass rmv=, tag the operator SYMMETRIC, or compute the product with create_graph=True."
            )
        create = torch.is_grad_enabled() and cotangent.requires_grad
        (grad,) = torch.autograd.grad(
            product, point, cotangent, retain_graph=True, create_graph=create, materialize_grads=True
        )
        return grad

    return rmv
