"""Papermill: parameters in, executed notebooks out, fit to be shown to anyone.

Knows notebooks, not what is measured. Whatever leaves through here is scrubbed first:
addresses, this machine's paths and names, progress bars and run times.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import re
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import nbformat
import papermill
import psutil
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from papermill.exceptions import PapermillExecutionError
from traitlets.config import Config

from .. import progress, recording, report
from ..errors import FolderHeld, ParameterError, ReportError, RunFailed

ADDRESS = re.compile(r"\b[a-z][a-z0-9+.-]*://[^\s'\"<>)\\]+", re.I)
# The last is a name that every SVG file bears, and nothing that is asked for.
ALLOWED = ("https://github.com/", "https://docs.", "https://doi.org/", "http://www.w3.org/")

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


def execute(notebook: Path, target: Path, values: Mapping[str, Any]) -> None:
    """Run `notebook` with `values` into `target`, progress on standard error, scrubbed.

    Raises `RunFailed` with the sentence of the error that stopped it; the notebook as far
    as it came is in `target`. Raises `FolderHeld` where it was another run that did.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    os.environ.update(progress.for_a_child())
    try:
        with _kernel_folder() as folder, _interrupting_kernel():
            # The kernel is spoken to through files of this user, not over a network port; the
            # sockets lie beside the connection file.
            spoken = {"transport": "ipc", "connection_file": f"{folder}/kernel.json"}
            papermill.execute_notebook(
                str(notebook),
                str(target),
                dict(values),
                cwd=str(report.root()),
                progress_bar=False,
                stderr_file=sys.stderr,
                config=Config({"KernelManager": spoken}),
            )
    except PapermillExecutionError as error:
        if error.ename == "KeyboardInterrupt":
            raise KeyboardInterrupt from None
        if error.ename == FolderHeld.__name__:
            raise FolderHeld(error.evalue) from None
        raise RunFailed(f"{target.stem}: {error.evalue}") from None
    except (DeadKernelError, CellTimeoutError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise RunFailed(f"{target.stem}: its kernel ended or did not start ({reason}).") from None
    finally:
        os.environ.pop(progress.VARIABLE)
        if target.exists():
            scrub_file(target, secrets(values))


@contextlib.contextmanager
def _kernel_folder() -> Iterator[str]:
    """A folder of one kernel's own, which nobody else may enter, gone with the block.

    In it, since sockets of one name in a folder of several kernels answer for each other. What a
    killed process left behind is removed by the next.
    """
    here = tempfile.gettempdir()
    if len(os.fsencode(here)) > _LONGEST_BYTES:
        here = "/tmp"
    for left in Path(here).glob("poc-*-*"):
        pid = left.name.split("-")[1]
        if pid.isdecimal() and not psutil.pid_exists(int(pid)):
            shutil.rmtree(left, ignore_errors=True)
    try:
        prefix = f"poc-{os.getpid()}-"
        folder = tempfile.TemporaryDirectory(prefix=prefix, dir=here, ignore_cleanup_errors=True)
    except OSError as error:
        raise RunFailed(
            f"{here}: no folder for a kernel can be made there ({error.strerror}); set TMPDIR to "
            f"one that can be written, of at most {_LONGEST_BYTES} letters."
        ) from None
    with folder as path:
        yield path


@contextlib.contextmanager
def _interrupting_kernel() -> Iterator[None]:
    """Ctrl-C goes to a kernel that measures, whose run stops its engines and saves what it has.

    Left alone, papermill would have the kernel killed. That is right where it measures nothing:
    one that still starts, or is between two cells, would not heed it and go on for ever. A second
    Ctrl-C ends this process too.
    """
    process = psutil.Process()
    before = set(process.children())
    pressed = 0

    def pass_on(*_: object) -> None:
        nonlocal pressed
        pressed += 1
        kernels = [child for child in process.children() if child not in before]
        if pressed > 1 or not kernels or not recording.held(report.root() / "data" / "runs"):
            raise KeyboardInterrupt
        for kernel in kernels:
            kernel.send_signal(signal.SIGINT)

    usual = signal.signal(signal.SIGINT, pass_on)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)
    if pressed:
        raise KeyboardInterrupt


def secrets(values: Mapping[str, Any]) -> list[str]:
    """What must not leave this machine: its folders and names, and the providers' hosts."""
    words = [str(report.root().resolve()), str(Path.home()), socket.gethostname()]
    for provider in values.get("providers") or []:
        words += re.findall(r"://([^/\s]+)", str(provider.get("url") or ""))
        words += [str(provider.get(key) or "") for key in ("api_key_env", "ca_file")]
    prompts = values.get("prompts")
    if isinstance(prompts, list) and values.get("store_text") is False:
        # As they are, and as a notebook's code and papermill's hold them.
        for text in prompts:
            words += [text, repr(text)[1:-1], json.dumps(text)[1:-1]]
    user = getpass.getuser()
    # A short user name such as "root" is a word of every text; in a path it goes with home.
    words += [user] if len(user) > 5 else []
    return [word for word in words if len(word) > 3]


def scrub(notebook: Any, words: Sequence[str]) -> Any:
    """Remove run times, progress, machine paths, names and addresses from a notebook."""
    notebook.metadata.pop("papermill", None)
    for cell in notebook.cells:
        for key in ("papermill", "execution", "collapsed"):
            cell.metadata.pop(key, None)
        if cell.cell_type != "code":
            continue
        cell.source = clean(cell.source, words)
        cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
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


def scrub_file(path: Path, words: Sequence[str]) -> None:
    """`scrub` a notebook in place."""
    nbformat.write(scrub(nbformat.read(path, as_version=4), words), path)


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
