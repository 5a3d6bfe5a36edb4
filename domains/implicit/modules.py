"""The modules behind a callable, wherever it keeps them."""

from __future__ import annotations

import functools
import sys
from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import Any

import numpy as np
from torch import Tensor, nn

__all__ = ["modules_of"]

LIBRARIES = sys.stdlib_module_names | {"torch", "torch_geometric", "numpy", "scipy", "pandas", "pytest", "hypothesis"}
CLASSES = LIBRARIES | {"sciopt"}  # whose methods name no network; their objects may hold one
LEAVES = (Tensor, np.ndarray, np.generic, str, bytes, int, float, complex, type(None), BuiltinFunctionType)
MANY = 10_000  # a container with more entries holds data
BUILTIN = (dict, OrderedDict, list, tuple, set, frozenset)
OWN = {"_parameters", "_buffers", "_modules"}


def modules_of(f: Any) -> list[nn.Module]:
    """All modules that a map can reach, parts included, those named first in front.

    Followed are: modules with all their attributes, closures, default arguments, partials, owners of bound methods,
    attributes of plain objects and of their classes, lists, tuples, sets, dicts, and the globals that a function names. Code
    of libraries and containers with more than ten thousand entries are not searched.

    Args:
        f: any callable.

    Returns:
        Every module once.

    Example:
        >>> nets = {"deep": [nn.Linear(2, 2)]}
        >>> def outer():
        ...     def inner(z):
        ...         return nets["deep"][0](z)
        ...     return lambda z: inner(z)
        >>> modules_of(outer())
        [Linear(in_features=2, out_features=2, bias=True)]
    """
    found: list[nn.Module] = []
    seen: set[int] = set()
    kept: list[Any] = []  # alive while its id is in use
    stack = [f]
    while stack:
        value = stack.pop()
        if isinstance(value, LEAVES) or id(value) in seen or type(value) in BUILTIN and not value:
            continue
        seen.add(id(value))
        kept.append(value)
        if isinstance(value, nn.Module):
            found.append(value)
        stack += reversed(list(reached(value)))
    return found


def reached(value: Any) -> Iterator[Any]:
    """What a value holds, one step away."""
    if isinstance(value, FunctionType):
        yield from of_function(value)
    elif isinstance(value, MethodType):
        yield value.__self__
        yield value.__func__
    elif isinstance(value, functools.partial):
        yield value.func
        yield value.args
        yield value.keywords
    elif isinstance(value, Mapping | list | tuple | set | frozenset | deque):
        if len(value) <= MANY:
            yield from value.values() if isinstance(value, Mapping) else value
        if type(value) not in BUILTIN:
            yield from of_object(value)
    elif isinstance(value, nn.Module):
        yield from value._modules.values()
        yield from of_object(value)
    elif not isinstance(value, type | ModuleType):
        yield from of_object(value)


def of_function(function: FunctionType) -> Iterator[Any]:
    """What a function closes over, has as defaults and attributes, and names."""
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # a variable that is not assigned yet
            continue
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()
    yield from vars(function).values()
    if is_library(function.__globals__.get("__name__")):
        return
    names = named(function.__code__)
    for name in sorted(names & function.__globals__.keys()):
        value = function.__globals__[name]
        if isinstance(value, ModuleType) and not is_library(value.__name__):
            yield from (vars(value)[other] for other in sorted(names & vars(value).keys()))
        else:
            yield value


def of_object(value: Any) -> Iterator[Any]:
    """Attributes of an object and of its class; a library's own objects are left alone, modules and their hooks are not."""
    module = isinstance(value, nn.Module)
    own = getattr(value, "__dict__", {})
    if module or isinstance(value, SimpleNamespace) or "__wrapped__" in own or not is_library(type(value).__module__):
        yield from (held for name, held in list(own.items()) if not (module and name in OWN))
    for kind in type(value).__mro__:
        if is_library(kind.__module__, CLASSES):
            continue
        slots = kind.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            yield getattr(value, name, None)
        for name, held in list(vars(kind).items()):
            if isinstance(held, staticmethod | classmethod):
                yield held.__func__
            elif isinstance(held, property):
                yield held.fget
            elif isinstance(held, FunctionType | nn.Module | list | tuple | dict) and name != "__slots__":
                yield held


@functools.lru_cache(4096)
def named(code: CodeType) -> frozenset[str]:
    """Names that a function and the functions defined in it look up."""
    return frozenset(code.co_names).union(*(named(c) for c in code.co_consts if isinstance(c, CodeType)))


@functools.lru_cache(4096)
def is_library(name: Any, libraries: frozenset[str] = LIBRARIES) -> bool:
    """Whether a Python module belongs to a library that knows nothing of the user's networks."""
    return isinstance(name, str) and name != "__main__" and name.partition(".")[0] in libraries
