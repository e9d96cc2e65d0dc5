"""A file of parameters as text: changes values in it and leaves comments and order as they are.

Knows YAML only, not what a parameter means. Imports `errors`.
"""

from __future__ import annotations

from collections.abc import Mapping

import yaml

from .errors import ParameterError


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
