"""sciopt: scientific design by gradient-based bi-level optimization.

A state settles (inner problem) and a design is chosen so that the settled state is good (outer problem); the derivative
goes through the settling.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sciopt.bilevel import BilevelProblem, Hypergradient, hypergradient
    from sciopt.outer import OptimizeResult, optimize
    from sciopt.problem import (
        Constrained,
        Eigen,
        FixedPoint,
        InitialValue,
        LeastSquares,
        Minimize,
        Recurrence,
        RootFind,
    )
    from sciopt.response import best_response
    from sciopt.solution import Solution, SolveError, Status
    from sciopt.verify import hypergradcheck

__all__ = [
    "BilevelProblem",
    "Constrained",
    "Eigen",
    "FixedPoint",
    "Hypergradient",
    "InitialValue",
    "LeastSquares",
    "Minimize",
    "OptimizeResult",
    "Recurrence",
    "RootFind",
    "Solution",
    "SolveError",
    "Status",
    "best_response",
    "hypergradcheck",
    "hypergradient",
    "optimize",
]

# Names load when they are first used, so that the command line starts without torch.
_HOMES = {
    "BilevelProblem": "sciopt.bilevel",
    "Hypergradient": "sciopt.bilevel",
    "hypergradient": "sciopt.bilevel",
    "hypergradcheck": "sciopt.verify",
    "OptimizeResult": "sciopt.outer",
    "optimize": "sciopt.outer",
    "Constrained": "sciopt.problem",
    "Eigen": "sciopt.problem",
    "FixedPoint": "sciopt.problem",
    "InitialValue": "sciopt.problem",
    "LeastSquares": "sciopt.problem",
    "Minimize": "sciopt.problem",
    "Recurrence": "sciopt.problem",
    "RootFind": "sciopt.problem",
    "best_response": "sciopt.response",
    "Solution": "sciopt.solution",
    "SolveError": "sciopt.solution",
    "Status": "sciopt.solution",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sciopt' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
