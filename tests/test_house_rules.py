"""Rules of the house that a machine can hold us to: abstract or final, every public name with an example, module names."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from typing import Any

import pytest

import sciopt
from sciopt.hypergradients import AbstractHypergradient
from sciopt.inner.abstract import AbstractSolver
from sciopt.kernels import AbstractActivation, AbstractKernel, AbstractNetwork
from sciopt.linsolve import AbstractLinearSolver, AbstractPreconditioner
from sciopt.outer import AbstractRisk
from sciopt.outer.abstract import AbstractOuterStep
from sciopt.problem import AbstractProblem

PUBLIC = ("sciopt", "sciopt.inner", "sciopt.linsolve", "sciopt.hypergradients", "sciopt.constraints", "sciopt.outer")
PUBLIC += ("sciopt.steppers", "sciopt.kernels")
NOUNS = (
    AbstractProblem,
    AbstractSolver,
    AbstractHypergradient,
    AbstractLinearSolver,
    AbstractPreconditioner,
    AbstractOuterStep,
    AbstractRisk,
    AbstractKernel,
    AbstractActivation,
    AbstractNetwork,
)
CORE = (
    "bilevel",
    "checks",
    "constraints",
    "hypergradients",
    "inner",
    "linsolve",
    "memory",
    "outer",
    "params",
    "problem",
)
CORE += ("kernels", "response", "solution", "steppers", "transforms", "verify")


def modules() -> list[Any]:
    """Every module of the core."""
    found = []
    for part in CORE:
        module = importlib.import_module(f"sciopt.{part}")
        found.append(module)
        if hasattr(module, "__path__"):
            names = [m.name for m in pkgutil.walk_packages(module.__path__, f"sciopt.{part}.")]
            found += [importlib.import_module(name) for name in names]
    return found


def descendants(kind: type) -> Iterator[type]:
    for child in kind.__subclasses__():
        if child.__module__.startswith("sciopt."):
            yield child
        yield from descendants(child)


modules()  # so that every subclass is known
STRATEGIES = sorted({c for noun in NOUNS for c in descendants(noun)}, key=lambda c: c.__qualname__)


def overridden(cls: type) -> list[str]:
    """Names of concrete methods of a parent that the class replaces."""
    wrong = []
    for name, member in vars(cls).items():
        if name.startswith("__") or not (
            inspect.isfunction(member) or isinstance(member, (property, classmethod, staticmethod))
        ):
            continue
        for parent in cls.__mro__[1:]:
            if name in vars(parent):
                if vars(parent)[name] is not None and not getattr(vars(parent)[name], "__isabstractmethod__", False):
                    wrong.append(f"{parent.__name__}.{name}")
                break
    return wrong


@pytest.mark.parametrize("cls", STRATEGIES, ids=lambda c: c.__name__)
def test_strategies_are_abstract_or_final(cls: Any):
    if cls.__name__.startswith("Abstract"):
        assert inspect.isabstract(cls) and not dataclasses.is_dataclass(cls)
    else:
        assert getattr(cls, "__final__", False), "decorate with @final"
        frozen = getattr(getattr(cls, "__dataclass_params__", None), "frozen", False)
        assert frozen, "decorate with @dataclass(frozen=True)"
    assert not overridden(cls), "concrete methods are never overridden: wrap, or make the parent's method abstract"


def test_the_walk_would_notice():
    class Loose(AbstractPreconditioner):
        def build(self, operator):
            return lambda v: v

    class Looser(Loose):
        def build(self, operator):
            return lambda v: 2 * v

    assert not overridden(Loose) and overridden(Looser) == ["Loose.build"]


def public_names() -> list[tuple[str, str]]:
    return [(package, name) for package in PUBLIC for name in importlib.import_module(package).__all__]


@pytest.mark.parametrize(("package", "name"), public_names())
def test_public_names_are_documented_with_an_example(package, name):
    member = getattr(importlib.import_module(package), name)
    doc = inspect.getdoc(member) or ""
    assert doc and doc.split("\n")[0].rstrip().endswith((".", ":", "``")), "one line that says what it is"
    if inspect.isclass(member) and (inspect.isabstract(member) or issubclass(member, (Exception, Warning))):
        return  # nothing to construct
    assert ">>>" in doc, "an example that runs"


@pytest.mark.parametrize("module", modules(), ids=lambda m: m.__name__)
def test_no_module_bears_the_name_of_a_function_it_exports(module):
    last = module.__name__.rsplit(".", 1)[-1]
    assert not inspect.isfunction(getattr(module, last, None))


@pytest.mark.parametrize("module", modules(), ids=lambda m: m.__name__)
def test_modules_say_what_they_are_and_export_what_exists(module):
    assert (module.__doc__ or "").strip()
    for name in getattr(module, "__all__", []):
        assert hasattr(module, name)


def test_the_public_face():
    promised = (
        "Minimize FixedPoint RootFind LeastSquares Constrained Recurrence InitialValue BilevelProblem best_response "
    )
    promised += "hypergradient hypergradcheck optimize Solution Status SolveError"
    assert set(promised.split()) <= set(sciopt.__all__) <= set(dir(sciopt))
    assert all(getattr(sciopt, name) is not None for name in sciopt.__all__)
