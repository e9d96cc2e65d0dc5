"""What holds for every test, however the suite was started."""

import os
import sys
from pathlib import Path

os.environ.pop("POCLIB_HOME", None)  # tests read what is committed here
if sys.__stdin__ is None:  # it was closed, which pytest's stand-in for it does not foresee
    sys.__stdin__ = Path(os.devnull).open()  # type: ignore[misc]  # noqa: SIM115


def of_others(folder: str, names: list[str]) -> set[str]:
    """For `copytree`: what whoever uses this checkout has measured in it, which no test may see."""
    kept = ("sample-", "published-")
    here = Path(folder).name == "reports"
    own = {name for name in names if here and ".json" in name and not name.startswith(kept)}
    return own | {"runs", "older", "answers"}
