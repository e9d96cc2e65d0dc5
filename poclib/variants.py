"""Sets of runs that belong together: one experiment's parameters with named changes.

Starts and measures nothing. Imports `records`.
"""

from __future__ import annotations

from typing import Any

from .records import Parameters


def failure_mode(parameters: Parameters, live: bool = False) -> list[Parameters]:
    """The failure, then its cures: the same prompts under other strategies, rules and engines.

    Everything at once on `bare` engines; one at a time on each; everything at once again, through
    a limit that adapts; and everything at once on engines that batch. Each is an experiment of
    its own, by its engines' name. A `live` one never takes the name of the committed samples.
    """
    name = "live" if live and parameters.experiment == "sample" else parameters.experiment
    cases: list[tuple[str, str, dict[str, Any]]] = [
        ("bare", "all-parallel", {"engine": "bare", "adaptive": "off"}),
        ("bare", "serial-per-provider", {"engine": "bare", "adaptive": "off"}),
        ("adaptive", "all-parallel", {"engine": "bare", "adaptive": "forced"}),
        ("batched", "all-parallel", {"engine": "batched", "adaptive": "off"}),
    ]
    return [
        parameters.model_copy(
            update={
                "experiment": f"{name}-{case}",
                "strategy": strategy,
                "providers": [p.model_copy(update=changes) for p in parameters.providers],
            }
        )
        for case, strategy, changes in cases
    ]
