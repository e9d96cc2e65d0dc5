"""Measure what is gained when independent prompts are spread over several LLM servers.

The names in `__all__` are the public face; each is imported where it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .errors import PocError
    from .measure.experiment import obtain
    from .measure.strategies import STRATEGIES
    from .parameters import Parameters, ProviderSettings
    from .reading.many import read_many
    from .reading.reading import Reading, experiment, of, read, within
    from .records import Report
    from .stats import Headline

__version__ = "0.1.0"
__all__ = ["STRATEGIES", "Headline", "Parameters", "PocError", "ProviderSettings", "Reading"]
__all__ += ["Report", "experiment", "obtain", "of", "read", "read_many", "within"]
_HOMES = {
    "errors": ["PocError"],
    "measure.experiment": ["obtain"],
    "measure.strategies": ["STRATEGIES"],
    "parameters": ["Parameters", "ProviderSettings"],
    "reading.many": ["read_many"],
    "reading.reading": ["Reading", "experiment", "of", "read", "within"],
    "records": ["Report"],
    "stats": ["Headline"],
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
