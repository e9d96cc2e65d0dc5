"""A file of parameters as text: reads it, and changes values but leaves all else as it is.

Knows YAML only, not what a parameter means. Imports `errors`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

from .errors import ParameterError

# What a text may hold once its aliases are written out: a few lines of them can stand for more
# than any memory holds.
MOST_CHARACTERS, MOST_VALUES, DEEPEST = 2**21, 200_000, 40


class _Loader(yaml.SafeLoader):
    """Data only, and a word is what it looks like.

    To the YAML of 2005, `010` is 8, `1:30` is 90, `no` is false and 2026-01-02 a date; to that of
    today, and here, they are texts, which no parameter takes for a number or a switch.
    """


_Loader.yaml_implicit_resolvers = {}
for _kind, _pattern, _first in (
    ("bool", "true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", "~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", "[-+]?(0|[1-9][0-9_]*)", "-+0123456789"),
    (
        "float",
        "[-+]?(((0|[1-9][0-9_]*)([.][0-9]*)?|[.][0-9]+)([eE][-+]?[0-9]+)?|[.](inf|Inf|INF))"
        "|[.](nan|NaN|NAN)",
        "-+0123456789.",
    ),
    ("merge", "<<", "<"),
):
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_kind}", re.compile(f"(?:{_pattern})$"), list(_first)
    )


def values(text: str, where: str) -> Any:
    """What a YAML text holds; data only, no code in it is run.

    Raises `ParameterError` that says `where`, and the line where the YAML is wrong.
    """
    try:
        loader = _Loader(text)
        try:
            if (root := loader.get_single_node()) is None:
                return None
            _bound(root, where)
            return loader.construct_document(root)
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "it cannot be parsed"
        raise ParameterError(f"{where}{line}: not valid YAML: {problem}.") from None
    except RecursionError:
        raise ParameterError(f"{where}: nested too deeply.") from None
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        raise ParameterError(
            f"{where}: not valid YAML: a number, date or other value is not what it is written "
            "as; put quotes around it if it is a text."
        ) from None


def _bound(root: yaml.Node, where: str) -> None:
    """Raise `ParameterError` where aliases, written out, make too much of it, or a key is unfit."""
    characters = count = 0
    waiting: list[tuple[yaml.Node, int]] = [(root, 0)]
    while waiting:
        node, depth = waiting.pop()
        count += 1
        if isinstance(node, yaml.ScalarNode):
            characters += len(node.value)
        elif isinstance(node, yaml.MappingNode):
            keys: set[str] = set()
            for key, _ in node.value:  # messages name keys as they are
                if not isinstance(key, yaml.ScalarNode):
                    continue
                if not key.value.isprintable():
                    raise ParameterError(f"{where}: a key holds what cannot be printed; remove it.")
                if key.value in keys and key.value != "<<":
                    raise ParameterError(
                        f"{where}, line {key.start_mark.line + 1}: {key.value:.60} stands there "
                        "twice, and only one would count; remove the other."
                    )
                keys.add(key.value)
            waiting += [(one, depth + 1) for pair in node.value for one in pair]
        else:
            waiting += [(one, depth + 1) for one in node.value]
        if depth > DEEPEST:
            raise ParameterError(f"{where}: nested too deeply.")
        if count > MOST_VALUES or characters > MOST_CHARACTERS:
            raise ParameterError(f"{where}: too large once its aliases (*) are written out.")


def with_capacities(text: str, capacities: Mapping[str, int]) -> str:
    """`text` with `capacity` set for each provider named; every other character stays.

    Where a provider has none yet it is added behind its name. Raises `ParameterError` where a
    provider is not in the text.
    """
    edits: list[tuple[int, int, str]] = []
    missing = dict(capacities)
    for node in _providers(text):
        pairs = {key.value: (key, value) for key, value in node.value}
        name = pairs["name"][1] if "name" in pairs else None
        if name is None or name.value not in missing:
            continue
        wanted = missing.pop(name.value)
        if "capacity" in pairs:
            value = pairs["capacity"][1]
            edits.append((value.start_mark.index, value.end_mark.index, str(wanted)))
        elif node.flow_style:
            edits.append((name.end_mark.index, name.end_mark.index, f", capacity: {wanted}"))
        else:
            end = text.find("\n", name.end_mark.index)
            end = len(text) if end < 0 else end
            indent = " " * pairs["name"][0].start_mark.column
            edits.append((end, end, f"\n{indent}capacity: {wanted}"))
    if missing:
        raise ParameterError(f"providers: {', '.join(missing)} cannot be found in the file's text.")
    for start, end, new in sorted(edits, reverse=True):
        text = text[:start] + new + text[end:]
    return text


def _providers(text: str) -> list[yaml.MappingNode]:
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    if isinstance(root, yaml.MappingNode):
        for key, value in root.value:
            if key.value == "providers" and isinstance(value, yaml.SequenceNode):
                return [one for one in value.value if isinstance(one, yaml.MappingNode)]
    return []
