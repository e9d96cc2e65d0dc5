"""Parameters as a person writes them: a YAML file, and single values by their dotted keys.

Reads a file, reads and changes single values, and writes capacities into a file's text. A dotted
key means the same everywhere (`--set`, sweeps, charts):

    rounds, strike.after                    a parameter of the run
    remote.speed, remote.link.jitter_ms     a setting of the provider with that name
    speed, link.round_trip_ms               a setting of every provider
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from .errors import ParameterError
from .records import Parameters, ProviderSettings

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


def changes(given: Sequence[str], where: str = "--set") -> dict[str, Any]:
    """Each `KEY=VALUE` as its key and its value. Raises `ParameterError`."""
    found = {}
    for change in given:
        key, equals, value = change.partition("=")
        if not equals:
            raise ParameterError(f"{where} {change}: write it as KEY=VALUE.")
        found[key.strip()] = values(value, f"{where} {key}")
    return found


def put(parameters: dict[str, Any], key: str, value: Any, before: str = "--set ") -> None:
    """Set the value of a dotted `key`; see the top of this file.

    Raises `ParameterError`, with `before` in front of the key, where it is no key.
    """
    places, path = _places(parameters, key)
    if not places:
        names = [one["name"] for one in _named(parameters)]
        known = [*ProviderSettings.model_fields, *Parameters.model_fields, *names, "engines"]
        near = difflib.get_close_matches(path[0], known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"the providers are: {', '.join(names)}."
        raise ParameterError(f"{before}{key} is not a parameter; {hint}")
    for place in places:
        for step in path[:-1]:
            inner = place.get(step)
            place[step] = dict(inner) if isinstance(inner, dict) else {}
            place = place[step]
        place[path[-1]] = value


def get(parameters: Mapping[str, Any], key: str) -> Any:
    """The value of a dotted `key`; None where there is none, or providers have different ones."""
    places, path = _places(parameters, key)
    for step in path:
        places = [place.get(step) if isinstance(place, Mapping) else None for place in places]
    return places[0] if places and all(one == places[0] for one in places) else None


def _places(parameters: Mapping[str, Any], key: str) -> tuple[list[Any], list[str]]:
    """Where a dotted key points: to the run or to providers, and the steps from there."""
    providers = _named(parameters)
    mine = [one for one in providers if key.startswith(f"{one['name']}.")]
    if mine:  # a name may hold a dot: the longest one that fits
        owner = max(mine, key=lambda one: len(one["name"]))
        return [owner], key[len(owner["name"]) + 1 :].split(".")
    path = key.split(".")
    if path[0] in Parameters.model_fields or path[0] in parameters:
        return [parameters], path
    return (providers if path[0] in ProviderSettings.model_fields else []), path


def _named(parameters: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The providers, as far as they are what they should be."""
    given = parameters.get("providers")
    listed = given if isinstance(given, list) else []
    return [p for p in listed if isinstance(p, dict) and isinstance(p.get("name"), str)]


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
