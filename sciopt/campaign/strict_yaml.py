"""YAML as a person means it: the YAML 1.2 core schema, no duplicate keys, a line number for everything.

PyYAML follows YAML 1.1: it reads ``1e-3`` as text and ``no`` as False, and keeps the last of two equal keys without a
word. Here plain scalars follow the core schema of YAML 1.2.2, section 10.3.2, and every refusal names file and line.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from sciopt.campaign.errors import SpecError
from sciopt.campaign.registry import did_you_mean

__all__ = ["Document", "load_yaml"]

_MAX_NODES = 200_000
_NULL = re.compile(r"null|Null|NULL|~|")
_TRUE = re.compile(r"true|True|TRUE")
_FALSE = re.compile(r"false|False|FALSE")
_INT = re.compile(r"[-+]?[0-9]+")
_OCTAL = re.compile(r"0o[0-7]+")
_HEX = re.compile(r"0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_INFINITY = re.compile(r"[-+]?\.(inf|Inf|INF)")
_NAN = re.compile(r"\.(nan|NaN|NAN)")

Path = tuple[str | int, ...]


@dataclass(frozen=True, kw_only=True)
class Document:
    """A parsed file: its data, and the line of each entry by its path, e.g. ``("designs", 0, "problem")``."""

    name: str
    data: Any
    lines: dict[Path, int]

    def where(self, path: Path) -> str:
        """``file:line`` of the entry, or of the nearest one above it.

        Example:
            >>> load_yaml("a: 1\\nb: [2, 3]", "spec.yaml").where(("b", 1))
            'spec.yaml:2'
        """
        while path and path not in self.lines:
            path = path[:-1]
        return f"{self.name}:{self.lines.get(path, 1)}"


def plain_scalar(text: str) -> Any:
    """The value of an unquoted word by the YAML 1.2 core schema.

    Example:
        >>> plain_scalar("1e-3"), plain_scalar("no"), plain_scalar("0x10"), plain_scalar("~")
        (0.001, 'no', 16, None)
    """
    if _NULL.fullmatch(text):
        return None
    if _TRUE.fullmatch(text):
        return True
    if _FALSE.fullmatch(text):
        return False
    if _INT.fullmatch(text):
        return int(text)
    if _OCTAL.fullmatch(text):
        return int(text[2:], 8)
    if _HEX.fullmatch(text):
        return int(text[2:], 16)
    if _FLOAT.fullmatch(text):
        return float(text)
    if _INFINITY.fullmatch(text) or _NAN.fullmatch(text):
        return float(text.replace(".", ""))
    return text


def load_yaml(text: str, name: str) -> Document:
    """Parse one YAML document; ``name`` is what error messages call the file.

    Raises:
        SpecError: for text that is not YAML, duplicate keys, keys that are not text, several documents, or tags.

    Example:
        >>> load_yaml("rtol: 1e-3\\nanswer: no", "spec.yaml").data
        {'rtol': 0.001, 'answer': 'no'}
    """
    import yaml

    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        what = (error.problem or "not YAML").strip()
        column = f", column {mark.column + 1}" if mark else ""
        raise SpecError(
            f"{name}:{line}: expected YAML, got a syntax error{column}: {what}. "
            "Check the indentation, brackets and quotes there."
        ) from error
    except yaml.YAMLError as error:
        raise SpecError(
            f"{name}: expected YAML text, got: {' '.join(str(error).split())}. Save it as UTF-8 text."
        ) from error
    except RecursionError as error:
        raise SpecError(f"{name}: expected a campaign, got brackets nested hundreds deep. Flatten it.") from error
    lines: dict[Path, int] = {}
    data = None if node is None else _convert(node, (), lines, name, frozenset())
    return Document(name=name, data=data, lines=lines)


def _convert(node: Any, path: Path, lines: dict[Path, int], name: str, above: frozenset[int]) -> Any:
    import yaml

    line = node.start_mark.line + 1
    lines.setdefault(path, line)
    if len(lines) > _MAX_NODES or id(node) in above:
        raise SpecError(f"{name}:{line}: expected at most {_MAX_NODES} entries, got aliases that expand without end.")
    above = above | {id(node)}
    if isinstance(node, yaml.ScalarNode):
        return _scalar(node, name, line)
    standard = "tag:yaml.org,2002:" + ("seq" if isinstance(node, yaml.SequenceNode) else "map")
    if node.tag != standard:
        raise SpecError(f"{name}:{line}: expected plain YAML, got the tag {node.tag}. Remove the tag.")
    if isinstance(node, yaml.SequenceNode):
        return [_convert(item, (*path, i), lines, name, above) for i, item in enumerate(node.value)]
    result: dict[str, Any] = {}
    first: dict[str, int] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        key = _scalar(key_node, name, line) if isinstance(key_node, yaml.ScalarNode) else None
        if not isinstance(key, str):
            shown = key_node.value if isinstance(key_node, yaml.ScalarNode) else "a list or mapping"
            raise SpecError(f"{name}:{line}: expected a word as key, got {shown}. Put it in quotes if it is meant.")
        if key in result:
            raise SpecError(
                f"{name}:{line}: expected each key once, got `{key}` again (first on line {first[key]}). "
                "Remove one of the two."
            )
        first[key] = lines[(*path, key)] = line
        result[key] = _convert(value_node, (*path, key), lines, name, above)
    return result


def _scalar(node: Any, name: str, line: int) -> Any:
    tag = node.tag.removeprefix("tag:yaml.org,2002:")
    if tag not in ("str", "int", "float", "bool", "null", "timestamp", "merge", "value"):
        raise SpecError(f"{name}:{line}: expected plain YAML, got the tag {node.tag}. Remove the tag.")
    if node.style is not None:
        return node.value
    try:
        return plain_scalar(node.value)
    except ValueError as error:  # Python reads no integers of thousands of digits
        raise SpecError(f"{name}:{line}: expected a number, got {len(node.value)} digits. Shorten it.") from error


def unknown_key(document: Document, path: Path, known: list[str]) -> str:
    """The message for a key nobody asked for.

    Example:
        >>> unknown_key(load_yaml("sed: 1", "spec.yaml"), ("sed",), ["name", "seed"])
        'spec.yaml:1: expected a known key, got `sed`. Did you mean `seed`?'
    """
    return f"{document.where(path)}: expected a known key, got `{path[-1]}`. {did_you_mean(str(path[-1]), known)}"
