"""What holds for every test, however the suite was started."""

import os
import sys
from pathlib import Path

os.environ.pop("POCLIB_HOME", None)  # tests read what is committed here
if sys.__stdin__ is None:  # it was closed, which pytest's stand-in for it does not foresee
    sys.__stdin__ = Path(os.devnull).open()  # type: ignore[misc]  # noqa: SIM115
