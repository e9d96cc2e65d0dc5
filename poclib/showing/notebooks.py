"""Papermill: parameters in, executed notebooks out, fit to be shown to anyone.

Knows notebooks, not what is measured. Whatever leaves through here is scrubbed first:
addresses, this machine's paths and names, progress bars and run times.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import re
import socket
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nbformat
import papermill
from nbclient import NotebookClient
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from papermill.exceptions import PapermillExecutionError
from traitlets.config import Config

from .. import report
from ..errors import ParameterError, ReportError, RunFailed

ADDRESS = re.compile(r"\b[a-z][a-z0-9+.-]*://[^\s'\"<>)\\]+", re.I)
# The last is a name that every SVG file bears, and nothing that is asked for.
ALLOWED = ("https://github.com/", "https://docs.", "https://doi.org/", "http://www.w3.org/")
WIDGET = "application/vnd.jupyter.widget-view+json"

# A socket's whole path may have 103 bytes on macOS, 107 on Linux, and ours takes up to 40.
_LONGEST_BYTES = 60


def notebooks(pattern: str = "[0-9]*") -> list[Path]:
    """The project's notebooks in reading order, by glob. Raises `ReportError` where there is none.

    Parameters may choose among them, so that `pattern` must not lead to code elsewhere: raises
    `ParameterError`.
    """
    if not re.fullmatch(r"(?:\*(?!\*)|[\w?!\[\]-])+", pattern):
        raise ParameterError(
            f"notebooks: {pattern[:60]!r} is no choice among the project's own; write letters, "
            'digits, "_", "-" and the signs *, ?, [ and ], such as "0[2-8]*".'
        )
    paths = sorted((report.root() / "notebooks").glob(f"{pattern}.ipynb"))
    if not paths:
        raise ReportError("no notebooks were found; run this inside the project's folder.")
    return paths


def strategy_notebook() -> Path:
    """The notebook that is run once for each strategy. Raises `ReportError` where there is none."""
    return notebooks(pattern="[0-9]*_one_strategy")[0]


def declared(notebook: Path) -> dict[str, Any]:
    """The parameters that a notebook declares, by name, as papermill reads them."""
    return dict(papermill.inspect_notebook(str(notebook)))


class Kernel(contextlib.ExitStack):
    """A kernel for one notebook after the other, kept warm between them: a start takes seconds.

    Each finds it as a new one: no name, no figure, no style and no count is left of the one before,
    and after a notebook that failed another kernel is started.
    """

    _manager: Any = None

    def execute(self, notebook: Path, target: Path, values: Mapping[str, Any]) -> None:
        """Run `notebook` with `values` into `target`, scrubbed.

        Raises `RunFailed` with the sentence of the error that stopped it; the notebook as far
        as it came is in `target`.
        """
        target.parent.mkdir(parents=True, exist_ok=True)
        told: dict[str, Any] = {"progress_bar": False, "cwd": str(report.root())}
        whole = False
        try:
            # What papermill does not know it hands on, here that this kernel is to be used.
            told["km"] = self._ready()
            papermill.execute_notebook(str(notebook), str(target), dict(values), **told)
            whole = True
        except PapermillExecutionError as error:
            raise RunFailed(f"{target.stem}: {error.evalue}") from None
        except (DeadKernelError, CellTimeoutError, RuntimeError, TimeoutError) as error:
            why = f"its kernel ended or did not start ({str(error).partition(chr(10))[0]})"
            raise RunFailed(f"{target.stem}: {why}.") from None
        finally:
            if not whole:
                self._manager = None
                self.close()
            if target.exists():
                scrub_file(target)

    def _ready(self) -> Any:
        """A kernel that knows nothing of another notebook."""
        if self._manager is None:
            # The kernel is spoken to through files of this user, not over a network port; the
            # sockets lie beside the connection file.
            folder = self.enter_context(_kernel_folder())
            spoken = {"transport": "ipc", "connection_file": f"{folder}/kernel.json"}
            # Else one that is ended while it is busy tells the terminal of its own interruption.
            quiet = {"extra_arguments": ["--log-level=CRITICAL"], "shutdown_kernel": "immediate"}
            config = Config({"KernelManager": spoken, "NotebookClient": quiet})
            client = NotebookClient(nbformat.v4.new_notebook(), config=config)
            self.enter_context(client.setup_kernel(cwd=str(report.root())))
            self._manager = client.km
        else:
            speaker = self._manager.blocking_client()
            speaker.start_channels()
            try:
                speaker.wait_for_ready(timeout=_RESET_S)
                code = f"here = {str(report.root())!r}\n{_RESET}"
                speaker.execute(code, store_history=False, reply=True, timeout=_RESET_S)
            finally:
                speaker.stop_channels()
        return self._manager


class Kernels(contextlib.ExitStack):
    """Two kernels: a page takes about a core, and nothing is measured meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self._other = self.enter_context(Kernel()), self.enter_context(Kernel())

    def each(self, jobs: Iterable[Callable[[Kernel], None]]) -> None:
        """Do each job with one of the kernels, two at a time."""
        left = iter(list(jobs))  # a list's iterator hands each out once, to any thread

        def work(kernel: Kernel) -> None:
            for job in left:
                job(kernel)

        with ThreadPoolExecutor(1) as thread:
            try:
                beside = thread.submit(work, self._other)
                work(self.one)
                beside.result()
            finally:
                list(left)  # what stops one thread stops both


_RESET_S = 30  # a kernel that does not forget within this is given up
# Warnings need no care: what goes to standard error is scrubbed.
_RESET = """
import os, sys
os.chdir(here)
if "matplotlib" in sys.modules:
    import matplotlib.pyplot
    matplotlib.pyplot.close("all")
    matplotlib.rcdefaults()
get_ipython().display_formatter = type(get_ipython().display_formatter)(parent=get_ipython())
get_ipython().reset(new_session=True)
"""


@contextlib.contextmanager
def _kernel_folder() -> Iterator[str]:
    """A folder of one kernel's own, which nobody else may enter, gone with the block.

    In it, since sockets of one name in a folder of several kernels answer for each other.
    """
    here = tempfile.gettempdir()
    if len(os.fsencode(here)) > _LONGEST_BYTES:
        here = "/tmp"
    try:
        folder = tempfile.TemporaryDirectory(prefix="poc-", dir=here, ignore_cleanup_errors=True)
    except OSError as error:
        raise RunFailed(
            f"{here}: no folder for a kernel can be made there ({error.strerror}); set TMPDIR to "
            f"one that can be written, of at most {_LONGEST_BYTES} letters."
        ) from None
    with folder as path:
        yield path


def secrets() -> list[str]:
    """What must not leave this machine: its folders and names."""
    user = getpass.getuser()
    words = [str(report.root().resolve()), str(Path.home()), socket.gethostname()]
    # A short user name such as "root" is a word of every text; in a path it goes with home.
    return [word for word in (*words, user if len(user) > 5 else "") if len(word) > 3]


def scrub(notebook: Any) -> Any:
    """Remove run times, widgets, machine paths, names and addresses from a notebook."""
    words = secrets()
    notebook.metadata.pop("papermill", None)
    notebook.metadata.pop("widgets", None)  # a kernel's that is gone
    for cell in notebook.cells:
        for key in ("papermill", "execution", "collapsed"):
            cell.metadata.pop(key, None)
        if cell.cell_type != "code":
            continue
        cell.source = clean(cell.source, words)
        cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
        cell.outputs = [o for o in cell.outputs if WIDGET not in o.get("data", {})]
        for output in cell.outputs:
            output.update({"traceback": []} if "traceback" in output else {})
            output.update({"text": clean(output.text, words)} if "text" in output else {})
            for kind, data in output.get("data", {}).items():
                if kind.startswith(("text/", "image/svg")) and isinstance(data, str):
                    output.data[kind] = clean(data, words)
            for about in output.get("metadata", {}).values():
                if isinstance(about, dict) and "alt" in about:
                    about["alt"] = clean(str(about["alt"]), words)
    return notebook


def scrub_file(path: Path) -> None:
    """`scrub` a notebook in place."""
    nbformat.write(scrub(nbformat.read(path, as_version=4)), path)


def clean(text: str, words: Sequence[str]) -> str:
    """`text` without addresses, and without any of `words`."""
    text = ADDRESS.sub(lambda m: m[0] if m[0].startswith(ALLOWED) else "address-removed", text)
    for word in sorted(words, key=len, reverse=True):
        text = text.replace(word, "removed")
    return text


def title(notebook: Path) -> str:
    """The title that a notebook computed, where its parameters decide it; else its first line."""
    cells = nbformat.read(notebook, as_version=4).cells
    texts = [*filter(None, map(computed_title, cells)), *(cell.source for cell in cells[:1])]
    return texts[0].partition("\n")[0].lstrip("# ") if texts else notebook.stem


def computed_title(cell: Mapping[str, Any]) -> str:
    """The line that a cell shows as a heading of the first order; "" where it shows none."""
    shown = (output.get("data", {}).get("text/markdown", "") for output in cell.get("outputs", ()))
    return next((text for text in shown if re.fullmatch("# .+", text)), "")
