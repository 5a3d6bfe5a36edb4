"""What several test modules share: tolerances, random inputs, and the list that contract tests run over."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import Tensor

from sciopt.linsolve import (
    CG,
    GMRES,
    LSMR,
    LU,
    MINRES,
    AbstractLinearSolver,
    BiCGSTAB,
    Cholesky,
    Jacobi,
    LinearOperator,
    Neumann,
    NystromPreconditioner,
    Tag,
    matrix_operator,
)

PD = (Tag.POSITIVE_DEFINITE,)
SYMMETRIC = (Tag.SYMMETRIC,)


class Tolerance(TypedDict):
    """Keyword arguments of `torch.testing.assert_close`."""

    rtol: float
    atol: float


def tol(dtype: torch.dtype) -> Tolerance:
    """Tolerances of `torch.testing.assert_close` for results of a well-conditioned solve at the default ``rtol``."""
    return {"rtol": 1e-6, "atol": 1e-7} if dtype == torch.float64 else {"rtol": 2e-3, "atol": 2e-3}


def randn(*shape: int, generator: torch.Generator, dtype=torch.float64, device=None) -> Tensor:
    """Standard normal numbers, the same on every device (default: the one the tests run on)."""
    device = torch.get_default_device() if device is None else device
    return torch.randn(*shape, generator=generator, dtype=torch.float64, device="cpu").to(dtype=dtype, device=device)


def with_spectrum(eigenvalues: Tensor, generator: torch.Generator) -> Tensor:
    """Random symmetric matrices ``(*batch, n, n)`` with the given eigenvalues ``(*batch, n)``."""
    n = eigenvalues.shape[-1]
    like = eigenvalues
    basis = torch.linalg.qr(randn(*like.shape, n, generator=generator))[0].to(like)
    matrix = (basis * like.unsqueeze(-2)) @ basis.mT
    return (matrix + matrix.mT) / 2


@dataclass(frozen=True)
class LinearCase:
    """A linear solver with the structure it needs and the kind of matrix it is tried on."""

    solver: AbstractLinearSolver
    tags: tuple[Tag, ...] = ()
    kind: str = "general"
    direct: bool = False

    def __str__(self) -> str:
        preconditioner = getattr(self.solver, "preconditioner", None)
        suffix = f"+{type(preconditioner).__name__}" if preconditioner else ""
        return f"{type(self.solver).__name__}{suffix}-{self.kind}"

    def matrix(self, *batch: int, n: int, generator: torch.Generator, dtype=torch.float64, device="cpu") -> Tensor:
        """Matrices ``(*batch, n, n)`` of condition about 10 and norm about 2."""
        sizes = torch.linspace(0.2, 2.0, n, dtype=torch.float64).expand(*batch, n)
        if self.kind == "indefinite":
            sizes = sizes * torch.where(torch.arange(n) % 3 == 0, -1.0, 1.0)
        matrix = with_spectrum(sizes, generator)
        if self.kind == "general":
            skew = randn(*batch, n, n, generator=generator) * (0.3 / n**0.5)
            matrix = matrix + (skew - skew.mT) / 2
        return matrix.to(dtype=dtype, device=device)

    def operator(self, matrix: Tensor) -> LinearOperator:
        """The matrix with this case's tags."""
        return matrix_operator(matrix, tags=self.tags)


def _nystrom() -> NystromPreconditioner:
    return NystromPreconditioner(5, torch.Generator().manual_seed(0))


# every linear solver is in this list; contract tests run over it
LINEAR_CASES = [
    LinearCase(CG(), PD, "definite"),
    LinearCase(CG(preconditioner=Jacobi()), PD, "definite"),
    LinearCase(CG(preconditioner=_nystrom()), PD, "definite"),
    LinearCase(MINRES(), SYMMETRIC, "indefinite"),
    LinearCase(MINRES(preconditioner=Jacobi()), SYMMETRIC, "indefinite"),
    LinearCase(GMRES(restart=30)),
    LinearCase(GMRES(restart=30, preconditioner=Jacobi())),
    LinearCase(GMRES(restart=30), SYMMETRIC, "indefinite"),
    LinearCase(BiCGSTAB()),
    LinearCase(BiCGSTAB(preconditioner=Jacobi())),
    LinearCase(LSMR()),
    LinearCase(LSMR(), SYMMETRIC, "indefinite"),
    LinearCase(Neumann(step_size=0.8, max_steps=1000)),
    LinearCase(Cholesky(), PD, "definite", direct=True),
    LinearCase(LU(), (), "general", direct=True),
    LinearCase(LU(), SYMMETRIC, "indefinite", direct=True),
]
ITERATIVE_CASES = [case for case in LINEAR_CASES if not case.direct]
