"""What determines a run, in a form that two runs can compare: code, configuration and data by their digests."""

from __future__ import annotations

import functools
import hashlib
import types
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor

__all__ = ["describe", "digest_of"]


def digest_of(tensor: Tensor) -> str:
    """SHA-256 of a tensor's numbers, with dtype and shape.

    Example:
        >>> digest_of(torch.zeros(2)) == digest_of(torch.zeros(2)), digest_of(torch.zeros(2)) == digest_of(torch.ones(2))
        (True, False)
    """
    data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return f"{tensor.dtype} {list(tensor.shape)} {hashlib.sha256(data).hexdigest()}"


def describe(thing: Any, seen: tuple[int, ...] = ()) -> Any:
    """A JSON value that stays the same from process to process for the same code, configuration and data.

    Functions are told by their name, bytecode, constants and what they capture (closure cells, defaults, global tensors
    and numbers); frozen configuration by its fields; modules by their tensors; anything else by its class.

    Example:
        >>> a, b = (lambda x, k=k: k * x for k in (1.0, 2.0))
        >>> describe(a) == describe(b), describe(a) == describe(a)
        (False, True)
    """
    if thing is None or isinstance(thing, (bool, int, float, str)):
        return thing if not isinstance(thing, Enum) else str(thing)
    if id(thing) in seen:
        return "..."
    seen = (*seen, id(thing))
    name = name_of(thing if isinstance(thing, (type, types.FunctionType, types.BuiltinFunctionType)) else type(thing))
    if isinstance(thing, Tensor):
        return digest_of(thing)
    if isinstance(thing, type):
        return name
    if isinstance(thing, types.FunctionType):
        return [name, describe_function(thing, seen)]
    if isinstance(thing, types.MethodType):
        return [describe(thing.__func__, seen), describe(thing.__self__, seen)]
    if isinstance(thing, functools.partial):
        return [name, describe(thing.func, seen), describe(thing.args, seen), describe(thing.keywords, seen)]
    if isinstance(thing, torch.nn.Module):
        return [name, describe(dict(thing.state_dict()), seen)]
    if is_dataclass(thing):
        return [name, {f.name: describe(getattr(thing, f.name), seen) for f in fields(thing) if f.compare}]
    if isinstance(thing, (list, tuple)):
        return [describe(item, seen) for item in thing]
    if isinstance(thing, dict):
        return {str(key): describe(value, seen) for key, value in thing.items()}
    if isinstance(thing, (torch.dtype, torch.device)):
        return str(thing)
    return name


def describe_function(function: types.FunctionType, seen: tuple[int, ...]) -> dict[str, Any]:
    """Code, constants and captured values of a function."""
    code = function.__code__
    captured: dict[str, Any] = {}
    for key, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        try:
            captured[key] = describe(cell.cell_contents, seen)
        except ValueError:  # a cell that was never filled
            captured[key] = "empty"
    for key in code.co_names:
        value = function.__globals__.get(key)
        if isinstance(value, (Tensor, int, float, types.FunctionType)):
            captured[key] = describe(value, seen)
    return {
        "code": code_digest(code),
        "captured": captured,
        "defaults": describe([function.__defaults__, function.__kwdefaults__], seen),
    }


def code_digest(code: types.CodeType) -> str:
    """SHA-256 of bytecode, names and constants, nested code included."""
    constants = [code_digest(c) if isinstance(c, types.CodeType) else repr(c) for c in code.co_consts]
    return hashlib.sha256(repr((code.co_code, code.co_names, constants)).encode()).hexdigest()


def name_of(thing: Any) -> str:
    """Module and qualified name."""
    return f"{thing.__module__}.{thing.__qualname__}"
