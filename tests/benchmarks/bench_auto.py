"""`Auto` against the best of the exact methods, on each problem of the exactness table."""

from __future__ import annotations

from dataclasses import replace

import torch

from sciopt import Minimize, best_response
from sciopt.hypergradients import Auto, ClosedForm, Implicit, Unrolled
from sciopt.hypergradients.abstract import AbstractHypergradient
from sciopt.inner.abstract import AbstractSolver
from sciopt.linsolve import CG, GMRES, LU, MINRES, BiCGSTAB, Cholesky
from tests.benchmarks.measure import side_by_side
from tests.benchmarks.table import Measured, bar
from tests.hypergradients.cases import CASES, Case


def rivals(case: Case) -> dict[str, AbstractHypergradient]:
    """Every exact method that works on the problem (forward mode left out: many times slower on all of them)."""
    tagged = isinstance(case.problem, Minimize)
    out: dict[str, AbstractHypergradient] = {
        "Implicit(GMRES)": Implicit(GMRES()),
        "Implicit(LU)": Implicit(LU()),
        "Unrolled": Unrolled(),
        "Unrolled(checkpoints)": Unrolled(checkpoints=7),
    }
    if tagged:
        out |= {
            "Implicit(CG)": Implicit(CG()),
            "Implicit(Cholesky)": Implicit(Cholesky()),
            "Implicit(MINRES)": Implicit(MINRES()),
        }
    else:
        out |= {"Implicit(BiCGSTAB)": Implicit(BiCGSTAB())}
    if case.name == "molecule":  # singular: the null space is declared to symmetric solvers only, and a path is long
        out = {k: v for k, v in out.items() if k in {"Implicit(CG)", "Implicit(MINRES)", "Implicit(Cholesky)"}}
    if case.formula is not None:
        out["ClosedForm"] = ClosedForm(case.formula)
    return out


def gradient(case: Case, method: AbstractHypergradient, solver: AbstractSolver) -> None:
    """One solve with one hypergradient."""
    phi = case.phi.clone().requires_grad_()
    sol = best_response(case.problem, phi, init=case.init, solver=solver, hypergradient=method)
    case.outer_loss(sol.value, phi).backward()


def ratio(name: str) -> Measured:
    """Time of `Auto` over that of the fastest rival."""
    case = CASES[name](torch.Generator().manual_seed(20))
    solver = replace(case.solver, rtol=1e-9)
    if case.formula is not None:
        case = replace(case, problem=replace(case.problem, closed_form=case.formula))
    methods = {"Auto": Auto(), **rivals(case)}
    runs = {k: (lambda m=m: gradient(case, m, solver)) for k, m in methods.items()}
    times = side_by_side(runs, repeat=15, warmup=2)
    best = min((k for k in times if k != "Auto"), key=lambda k: times[k])
    return Measured(
        times["Auto"] / times[best], f"Auto {1e3 * times['Auto']:.2f} ms, best rival {best} {1e3 * times[best]:.2f} ms"
    )


@bar("Auto against the best exact method: ridge", tier="bench", bar="<= 1.5x")
def ridge() -> Measured:
    return ratio("ridge")


@bar("Auto against the best exact method: logistic", tier="bench", bar="<= 1.5x")
def logistic() -> Measured:
    return ratio("logistic")


@bar("Auto against the best exact method: quadratic", tier="bench", bar="<= 1.5x")
def quadratic() -> Measured:
    return ratio("quadratic")


@bar("Auto against the best exact method: molecule", tier="bench", bar="<= 1.5x")
def molecule() -> Measured:
    return ratio("molecule")


@bar("Auto against the best exact method: deq", tier="bench", bar="<= 1.5x")
def deq() -> Measured:
    return ratio("deq")
