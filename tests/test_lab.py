"""JupyterLab as a person uses it: open a notebook, run all of it, see that it worked."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import browser
import nbformat
import psutil
import pytest

from poclib import report
from poclib.showing import notebooks as publish

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(browser.found() is None, reason=browser.NONE_HERE),
]
# On loopback, a port and a token of its own choosing, asking nobody for news.
OPTIONS = [
    *("--no-browser", "--allow-root", "--ServerApp.ip=127.0.0.1", "--ServerApp.port=0"),
    *("--LabApp.news_url=None", "--LabApp.expose_app_in_browser=True"),
    "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    f"--LabApp.extra_labextensions_path={report.root() / 'lab'}",
]
START = publish.notebooks("00_start")[0]
NOTEBOOK = publish.strategy_notebook()


def code_of(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[tuple[Path, str, str]]:
    """A copy of the notebooks, and where JupyterLab shows it: folder, address, token."""
    folder, settings = tmp_path / "notebooks", tmp_path / "settings"
    folder.mkdir()
    settings.mkdir()
    for notebook in (START, NOTEBOOK):
        cleared = nbformat.read(notebook, as_version=4)
        for cell in code_of(cleared):
            cell.outputs, cell.execution_count = [], None
        nbformat.write(cleared, folder / notebook.name)
    # As the command has it, in which case nobody is asked about news.
    script = (report.root() / "run-poc.sh").read_text("utf-8")
    (told,) = re.findall("^LAB_SETTINGS='(.*)'$", script, re.M)
    (settings / "overrides.json").write_text(told)
    own = {f"JUPYTER_{kind}_DIR": str(tmp_path / kind) for kind in ("RUNTIME", "CONFIG", "DATA")}
    own |= {"POCLIB_HOME": str(report.root()), "JUPYTER_PREFER_ENV_PATH": "1"}
    with (tmp_path / "log").open("wb") as log:
        command = [sys.executable, "-m", "jupyterlab", *OPTIONS, str(folder)]
        command.insert(3, f"--LabApp.app_settings_dir={settings}")
        quiet = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
        server = subprocess.Popen(command, env={**os.environ, **own}, **quiet)
        try:
            told = tmp_path / "RUNTIME" / f"jpserver-{server.pid}.json"
            ends_s = time.monotonic() + browser.PATIENCE_S
            while not told.exists() or not told.read_text("utf-8").endswith("}"):
                problem = (tmp_path / "log").read_text("utf-8")[-2000:]
                assert server.poll() is None and time.monotonic() < ends_s, problem
                time.sleep(0.1)
            facts = json.loads(told.read_text("utf-8"))
            yield folder, facts["url"], facts["token"]
        finally:
            kernels = psutil.Process(server.pid).children(recursive=True)
            for process in (server, *kernels):
                process.kill()
            server.wait()


CURRENT = "jupyterapp.shell.currentWidget"
RUN = f"{CURRENT}.content.widgets.every(c => c.model.type !== 'code' || c.model.executionCount)"


def opened(one: browser.Browser, address: str, name: str) -> None:
    """Show the notebook `name`, its kernel at rest."""
    one.open(address, 1280)
    one.until(f"!!window.jupyterapp && {CURRENT}?.context?.path === '{name}'")
    one.until(f"{CURRENT}.sessionContext.session?.kernel?.status === 'idle'")


def test_the_start_page_runs_and_a_click_in_its_explorer_changes_the_picture(
    lab: tuple[Path, str, str],
) -> None:
    """It runs by itself when it is opened, and what that changes is nothing to be saved."""
    folder, address, token = lab
    before = (folder / START.name).read_bytes()
    with browser.browser() as one:
        opened(one, f"{address}lab/tree/{START.name}?token={token}", START.name)
        one.until(f"!{CURRENT}.context.model.dirty && {RUN}")
        assert (folder / START.name).read_bytes() == before
        assert one.tell("document.querySelector('.jp-WindowedPanel-outer').scrollTop") == 0
        cells = code_of(nbformat.read(START, as_version=4))
        (place,) = (n for n, c in enumerate(cells) if "Explorer(" in c.source)
        cell = f"{CURRENT}.content.widgets.filter(c => c.model.type === 'code')[{place}]"
        one.tell(f"{CURRENT}.content.scrollToCell({cell})")  # else it is not drawn
        picture = "document.querySelector('.widget-html img')"
        one.until(f"{picture}?.alt.includes('requests drawn')")
        one.tell(
            "[...document.querySelectorAll('button')].find(b => b.textContent.trim() === "
            "'breakdown').click()"
        )
        one.until(f"{picture}.alt.includes('means')")
        assert one.tell(f"{picture}.naturalWidth") > 300, "it is drawn, not only named"
        select = "const select = document.querySelectorAll('.widget-dropdown select')[1];"
        which = "[...select.options].findIndex(one => one.textContent === 'sequential')"
        change = "select.dispatchEvent(new Event('change', {bubbles: true}))"
        one.tell(f"{{ {select} select.selectedIndex = {which}; {change}; }}")
        one.until(f"{picture}.alt.startsWith('A local request')")
        red = "document.querySelectorAll('.jp-OutputArea [data-mime-type*=error]').length"
        assert one.tell(red) == 0 and not one.tell("document.body.textContent.includes('news?')")
        one.tell(f"{CURRENT}.content.scrollToItem(0)")
        link = "document.querySelector('.jp-RenderedMarkdown td a[href*=one_strategy]')"
        one.until(f"!!{link}")
        one.tell(f"{link}.click()")
        one.until(f"{CURRENT}?.context?.path === '{NOTEBOOK.name}'")


def test_a_notebook_runs_from_top_to_bottom_in_jupyterlab(lab: tuple[Path, str, str]) -> None:
    folder, address, token = lab
    assert urlparse(address).hostname == "127.0.0.1" and len(token) > 30
    name = NOTEBOOK.name
    with browser.browser() as one:
        opened(one, f"{address}lab/tree/{name}?token={token}", name)
        one.tell("jupyterapp.commands.execute('notebook:run-all-cells')")
        one.tell("jupyterapp.commands.execute('docmanager:save')")
        strangers = [url for url in one.asked if urlparse(url).hostname not in ("127.0.0.1", None)]
        assert strangers == []
        # What a person sees: charts with their findings, and nothing red.
        shown = "document.querySelectorAll('.jp-RenderedSVG, .jp-RenderedImage').length"
        red = "document.querySelectorAll('.jp-OutputArea [data-mime-type*=error]').length"
        assert one.tell(shown) and one.tell(red) == 0
    kinds = []
    for path in (folder / name, NOTEBOOK):
        cells = code_of(nbformat.read(path, as_version=4))
        assert [c.execution_count for c in cells] == [*range(1, len(cells) + 1)]
        kinds.append([[sorted(o.get("data", [o.output_type])) for o in c.outputs] for c in cells])
    assert kinds[0] == kinds[1]
