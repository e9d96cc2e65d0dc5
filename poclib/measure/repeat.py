"""A saved report's experiment, ready to be measured again: its parameters, prompts and order.

A report holds no address: those of a person's own servers come from elsewhere. Measures nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import ParameterError, ReportError
from ..parameters import Parameters, ProviderSettings, put
from ..records import Report
from ..report import name
from ..workload import sha256, texts
from .strategies import STRATEGIES

# A rerun is saved beside the first, under its name behind this.
PREFIX = "rerun-"
# What of a provider a report leaves out.
_PRIVATE = ("url", "api_key_env", "ca_file")


def parameters(report: Report, given: Mapping[str, Any], changes: Mapping[str, Any]) -> Parameters:
    """What `report` was measured with. Addresses come from `given`, a file of parameters.

    `changes` by dotted key are on top. Raises `ReportError` where the report cannot be measured
    again, `ParameterError` where an address or the prompts are missing.
    """
    saved = report.parameters
    if saved is None or report.strategy not in STRATEGIES:
        raise ReportError(f"{name(report)} holds no parameters of a run, so it cannot be rerun.")
    struck = any(arm.struck_ms for one in report.rounds for arm in one.arms)
    if struck and saved.strike is None:
        raise ReportError(
            f"{name(report)}: engines were killed in it by an older poclib, so it cannot be rerun; "
            "`strike` in the parameters does the same in a new run."
        )
    values = saved.model_dump()
    values["experiment"] = f"{PREFIX}{report.experiment.removeprefix(PREFIX)}"[:64]
    values["strategy"] = report.strategy
    values["prompts"] = report.prompts or len(report.prompt_sha256)
    values["providers"] = [_addressed(one, given) for one in saved.providers]
    for key, value in changes.items():
        put(values, key, value)
    missing = [
        one["name"] for one in values["providers"] if one["kind"] != "embedded" and not one["url"]
    ]
    if missing:
        example = f"--set {missing[0]}.url=http://192.168.1.20:11434"
        raise ParameterError(
            f"{name(report)} holds no addresses: give those of {', '.join(missing)} with "
            f"--params FILE, which has providers of these names, or each with {example}."
        )
    found = Parameters.read(values, name(report))
    if "prompts" not in changes:
        _same_prompts(report, found)
    return found


def _addressed(settings: ProviderSettings, given: Mapping[str, Any]) -> dict[str, Any]:
    values = settings.model_dump() | dict.fromkeys(_PRIVATE)
    for one in given.get("providers") or ():
        if isinstance(one, Mapping) and one.get("name") == settings.name:
            values |= {key: one[key] for key in _PRIVATE if key in one}
    return values


def _same_prompts(report: Report, found: Parameters) -> None:
    """Where texts were not stored, the built-in ones stand in if their digests fit."""
    if [sha256(text) for text in texts(found.prompts)] != report.prompt_sha256:
        raise ParameterError(
            f"{name(report)}: its prompts were not stored, and they are not the built-in ones; "
            "give them with --set prompts=FILE."
        )
