"""Papermill and nbconvert: parameters in, executed notebooks and a rendered site out.

Knows notebooks and pages, not what is measured. Whatever leaves through here is scrubbed
first: addresses, this machine's paths and names, progress bars and run times.
"""

from __future__ import annotations

import contextlib
import difflib
import getpass
import html
import json
import os
import re
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bleach
import nbformat
import papermill
import psutil
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from nbconvert import HTMLExporter
from papermill.exceptions import PapermillExecutionError
from pygments.formatters import HtmlFormatter
from traitlets.config import Config

from . import progress, report
from .errors import ParameterError, ReportError, RunFailed

ADDRESS = re.compile(r"\b[a-z][a-z0-9+.-]*://[^\s'\"<>)\\]+", re.I)
ALLOWED = ("https://github.com/", "https://docs.", "https://doi.org/")
TAGS = {
    *("a", "b", "blockquote", "br", "code", "dd", "del", "div", "dl", "dt", "em", "hr", "i", "li"),
    *("h1", "h2", "h3", "h4", "h5", "h6", "ol", "p", "pre", "s", "span", "strong", "sub", "sup"),
    *("table", "tbody", "td", "th", "thead", "tr", "ul"),
}
ATTRIBUTES = {"*": ["class", "id", "title"], "a": ["href"], "td": ["align"], "th": ["align"]}
STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; }
body { font: 1rem/1.55 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem; }
nav { margin-bottom: 1.5rem; }
h1 { font-size: 1.6rem; line-height: 1.25; } h2 { font-size: 1.2rem; margin-top: 2rem; }
img { max-width: 100%; height: auto; background: #fff; border-radius: 4px; }
pre { overflow-x: auto; padding: .6rem .8rem; background: var(--soft); font-size: .85rem; }
code { font-size: .9em; }
table { border-collapse: collapse; font-size: .9rem; display: block; overflow-x: auto; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: left; }
td { font-variant-numeric: tabular-nums; } td:first-child { white-space: nowrap; }
.highlight { background: none; } .input_area pre { border-left: 3px solid var(--line); }
.anchor-link { display: none; }
.PASS { color: #00734d; font-weight: 600; } .FAIL { color: #b3261e; font-weight: 600; }
@media (prefers-color-scheme: dark) { .PASS { color: #5fd3a8; } .FAIL { color: #ff8a80; } }
@media print { nav { display: none; } pre { white-space: pre-wrap; } }
"""


@dataclass(frozen=True)
class Row:
    """One line of the index: a report and the page that shows it, relative to the site."""

    name: str
    date: str
    pool: str
    verdict: str
    ratio: str


def notebooks(folder: Path | None = None, pattern: str = "[0-9]*") -> list[Path]:
    """The notebooks in reading order, by glob. Raises `ReportError` where there is none.

    Parameters may choose among them, so that `pattern` must not lead to code elsewhere: raises
    `ParameterError`.
    """
    if not re.fullmatch(r"(?:\*(?!\*)|[\w?!\[\]-])+", pattern):
        raise ParameterError(
            f"notebooks: {pattern[:60]!r} is no choice among the project's own; write letters, "
            'digits, "_", "-" and the signs *, ?, [ and ], such as "0[2-8]*".'
        )
    folder = folder or report.root() / "notebooks"
    found = sorted(folder.glob(f"{pattern}.ipynb"))
    if not found:
        raise ReportError("no notebooks were found; run this inside the project's folder.")
    return found


def declared(notebook: Path) -> dict[str, Any]:
    """The parameters that a notebook declares, by name, as papermill reads them."""
    return dict(papermill.inspect_notebook(str(notebook)))


def check_keys(values: Iterable[str], known: Iterable[str], where: str) -> None:
    """Raise `ParameterError` for a key that no notebook declares: papermill only logs it."""
    known = list(known)
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(known)}."
            raise ParameterError(f"{where}: {key} is not a parameter; {hint}")


def execute(notebook: Path, target: Path, values: Mapping[str, Any]) -> None:
    """Run `notebook` with `values` into `target`, progress on standard error, scrubbed.

    Raises `RunFailed` with the sentence of the error that stopped it; the notebook as far
    as it came is in `target`.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    told = progress.for_a_child()
    kept = {name: os.environ.get(name) for name in told}
    os.environ.update(told)
    try:
        with _interrupting_kernel():
            papermill.execute_notebook(
                str(notebook),
                str(target),
                dict(values),
                cwd=str(report.root()),
                progress_bar=False,
                stderr_file=sys.stderr,
                # The kernel is spoken to through files of this user, not over a network port.
                config=Config({"KernelManager": {"transport": "ipc"}}),
            )
    except PapermillExecutionError as error:
        if error.ename == "KeyboardInterrupt":
            raise KeyboardInterrupt from None
        raise RunFailed(f"{notebook.stem}: {error.evalue}") from None
    except (DeadKernelError, CellTimeoutError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise RunFailed(f"{notebook.stem}: its kernel ended or did not start ({reason}).") from None
    finally:
        for name, value in kept.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        if target.exists():
            scrub_file(target, secrets(values))


@contextlib.contextmanager
def _interrupting_kernel() -> Iterator[None]:
    """Ctrl-C goes to the kernel first, where the run stops its engines and saves what it has.

    Left alone, papermill would have the kernel killed. A second one ends this process too.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    me = psutil.Process()
    before = set(me.children())
    pressed = 0

    def pass_on(*_: object) -> None:
        nonlocal pressed
        pressed += 1
        kernels = [child for child in me.children() if child not in before]
        if pressed > 1 or not kernels:
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
    found = [str(report.root().resolve()), str(Path.home()), socket.gethostname()]
    for provider in values.get("providers") or []:
        found += re.findall(r"://([^/\s]+)", str(provider.get("url") or ""))
        found += [str(provider.get(key) or "") for key in ("api_key_env", "ca_file")]
    prompts = values.get("prompts")
    if isinstance(prompts, list) and values.get("store_text") is False:
        # As they are, and as a notebook's code and papermill's hold them.
        forms = (str, lambda text: repr(text)[1:-1], lambda text: json.dumps(text)[1:-1])
        found += {form(text) for text in prompts for form in forms}
    user = getpass.getuser()
    # A short user name such as "root" is a word of every text; in a path it goes with home.
    return [word for word in [*found, user if len(user) > 5 else ""] if len(word) > 3]


def scrub(notebook: Any, words: Sequence[str]) -> Any:
    """Remove run times, progress, machine paths, names and addresses from a notebook."""
    notebook.metadata.pop("papermill", None)
    for cell in notebook.cells:
        for key in ("papermill", "execution", "collapsed"):
            cell.metadata.pop(key, None)
        if cell.cell_type != "code":
            continue
        cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
        cell.source = _clean(cell.source, words)
        for output in cell.outputs:
            if "text" in output:
                output.text = _clean(output.text, words)
            for kind, data in output.get("data", {}).items():
                if kind.startswith("text/") and isinstance(data, str):
                    output.data[kind] = _clean(data, words)
            if "traceback" in output:
                output.traceback = []
    return notebook


def scrub_file(path: Path, words: Sequence[str]) -> None:
    """`scrub` a notebook in place."""
    notebook = nbformat.read(path, as_version=4)
    nbformat.write(scrub(notebook, words), path)


def _clean(text: str, words: Sequence[str]) -> str:
    text = ADDRESS.sub(lambda m: m[0] if m[0].startswith(ALLOWED) else "address-removed", text)
    for word in sorted(words, key=len, reverse=True):
        text = text.replace(word, "removed")
    return text


def site(target: Path, groups: Mapping[str, Sequence[Path]], rows: Sequence[Row]) -> Path:
    """Render executed notebooks without running them; return the page to open.

    `groups` maps an experiment's name to its notebooks. The old site is replaced only when
    the new one is whole. Raises `ReportError` where it cannot be written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".site-") as temporary:
            fresh = Path(temporary) / "site"
            fresh.mkdir()
            for group, found in groups.items():
                for notebook in found:
                    page = fresh / group / f"{notebook.stem}.html"
                    page.parent.mkdir(exist_ok=True)
                    page.write_text(_page(notebook), encoding="utf-8")
            reports = fresh / "reports"
            reports.mkdir()
            for row in rows:
                # Written anew from validated records, never copied: nothing else can ride along.
                text = report.text(report.load(row.name)).encode("utf-8", "backslashreplace")
                (reports / f"{row.name}.json").write_bytes(text)
            (fresh / "index.html").write_text(_index(groups, rows), encoding="utf-8")
            if target.exists():
                shutil.rmtree(target)
            fresh.rename(target)
    except OSError as error:
        raise ReportError(
            f"{target.name}: the site cannot be written ({error.strerror})."
        ) from None
    return target / "index.html"


def title(notebook: Path) -> str:
    """The first heading of a notebook."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    text = "".join(cells[0]["source"]) if cells else ""
    return text.partition("\n")[0].lstrip("# ").strip() or notebook.stem


def cleaned(element: object) -> str:
    """HTML from a notebook with only what a page needs: text, tables, code; no script."""
    return bleach.clean(
        str(element), tags=TAGS, attributes=ATTRIBUTES, protocols={"http", "https"}, strip=True
    )


def _page(notebook: Path) -> str:
    exporter = HTMLExporter(
        template_name="basic",
        sanitize_html=True,
        filters={"clean_html": cleaned},
        exclude_input_prompt=True,
        exclude_output_prompt=True,
    )
    executed = scrub(nbformat.read(notebook, as_version=4), secrets({}))
    body, _ = exporter.from_notebook_node(executed)
    return _wrapped(title(notebook), '<nav><a href="../index.html">All results</a></nav>' + body)


def _index(groups: Mapping[str, Sequence[Path]], rows: Sequence[Row]) -> str:
    cells = "".join(
        f"<tr><td>{e(row.date)}</td><td>{e(row.name)}</td><td>{e(row.pool)}</td>"
        f"<td>{e(row.ratio)}</td><td class='{e(row.verdict)}'>{e(row.verdict)}</td>"
        f"<td><a href='reports/{e(row.name)}.json'>report</a></td></tr>"
        for row in rows
    )
    head = "<tr><th>Date<th>Experiment<th>Pool<th>Ratio to baseline<th>Gate<th>Data</tr>"
    lists = "".join(
        f"<h2>{e(group)}</h2><ul>"
        + "".join(
            f"<li><a href='{e(group)}/{e(n.stem)}.html'>{e(title(n))}</a></li>" for n in found
        )
        + "</ul>"
        for group, found in groups.items()
    )
    intro = (
        "<h1>What is gained when prompts are spread over several machines?</h1>"
        "<p>Each ratio is the time of a strategy over the time of the fastest machine alone, "
        "median over rounds with a 95 % interval: below 1 is a gain.</p>"
    )
    return _wrapped("poclib results", f"{intro}<table>{head}{cells}</table>{lists}")


def _wrapped(heading: str, body: str) -> str:
    light = HtmlFormatter(style="default").get_style_defs(".highlight")
    dark = HtmlFormatter(style="monokai").get_style_defs(".highlight")
    code = f"{light}\n@media (prefers-color-scheme: dark) {{ {dark} }}"
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        "<link rel='icon' href='data:,'>"
        f"<title>{e(heading)}</title><style>{code}\n{STYLE}</style></head>"
        f"<body>{body}</body></html>"
    )


def e(text: str) -> str:
    """Escaped for HTML."""
    return html.escape(text, quote=True)
