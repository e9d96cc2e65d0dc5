"""Kernels as `poc run` starts them: several at once, killed, and refused by another run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest

from poclib import cli, recording, report
from poclib.errors import RunFailed
from poclib.showing import notebooks as publish

ROOT = report.root()
PATIENCE_S = 300  # only ends a hung test
EXECUTE = """
import sys
from pathlib import Path
from poclib.showing import notebooks
with notebooks.Kernel() as kernel:
    kernel.execute(Path(sys.argv[1]), Path(sys.argv[2]), {})
"""
# Where this kernel's sockets lie, and all that the working folder holds.
SHOW = """
from pathlib import Path
from ipykernel.connect import get_connection_file
here = Path(get_connection_file()).parent
assert here.stat().st_mode & 0o077 == 0
print(here.name, len(list(here.glob("kernel-ipc-*"))), sorted(p.name for p in Path().iterdir()))
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project's folder of a test's own."""
    (tmp_path / "home" / "data" / "reports").mkdir(parents=True)
    monkeypatch.setenv("POCLIB_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return tmp_path / "home"


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """As short as the usual one: pytest's own may have no room left for a socket's name."""
    with tempfile.TemporaryDirectory() as folder:
        monkeypatch.setenv("TMPDIR", folder)
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)


def notebook(folder: Path, *codes: str) -> Path:
    made = nbformat.v4.new_notebook(cells=list(map(nbformat.v4.new_code_cell, codes)))
    made.metadata["kernelspec"] = {"name": "python3", "display_name": "p", "language": "python"}
    nbformat.write(made, folder / "01_shown.ipynb")
    return folder / "01_shown.ipynb"


def execute(notebook: Path, target: Path) -> None:
    with publish.Kernel() as kernel:
        kernel.execute(notebook, target, {})


def printed(target: Path) -> str:
    return str(nbformat.read(target, as_version=4).cells[-1].outputs[0].text)


@pytest.mark.slow
def test_notebooks_begun_at_once_have_their_own_kernels(
    home: Path, tmp_path: Path, temporary: Path
) -> None:
    source = notebook(tmp_path, SHOW)
    targets = [tmp_path / f"{number}.ipynb" for number in range(4)]
    command = [sys.executable, "-c", EXECUTE, str(source)]
    running = [subprocess.Popen([*command, str(target)]) for target in targets]
    assert [one.wait(PATIENCE_S) for one in running] == [0] * 4
    told = {printed(target) for target in targets}
    assert len(told) == 4 and all(text.endswith("5 ['data']\n") for text in told), told
    assert not list(temporary.iterdir())


@pytest.mark.slow
def test_a_long_folder_for_temporary_files_is_passed_over(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("long" * 25)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    execute(notebook(tmp_path, SHOW), tmp_path / "done.ipynb")
    assert printed(tmp_path / "done.ipynb").startswith("poc-") and not list(long.iterdir())


def test_no_folder_at_all_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    with pytest.raises(RunFailed, match="no folder for a kernel can be made there"):
        execute(notebook(tmp_path, SHOW), tmp_path / "done.ipynb")


# What a notebook may leave behind: a name, another folder, a style, an open figure, a way to show.
LEFT = """
left = 1
import os, matplotlib.pyplot as plt
from poclib.showing import charts
charts.use_style()
plt.rcParams["font.size"] = 99
plt.plot([1, 2]), os.chdir("/"), print(os.getpid())
"""
FOUND = """
import os, matplotlib, matplotlib.pyplot as plt
print("left" in globals(), matplotlib.rcParams["font.size"], plt.get_fignums(), os.getcwd())
formatter = get_ipython().display_formatter.formatters["image/svg+xml"]
print(plt.Figure in formatter.type_printers, len(In), os.getpid())
"""


@pytest.mark.slow
def test_a_kernel_kept_warm_is_to_each_notebook_a_new_one(home: Path, tmp_path: Path) -> None:
    with publish.Kernel() as kernel:
        kernel.execute(notebook(tmp_path, LEFT, "1 + 1"), tmp_path / "left.ipynb", {})
        kernel.execute(notebook(tmp_path, FOUND), tmp_path / "found.ipynb", {})
        # One that failed ends its kernel: what it left behind nobody knows.
        with pytest.raises(RunFailed, match="left: no more"):
            kernel.execute(
                notebook(tmp_path, "raise OSError('no more')"), tmp_path / "left.ipynb", {}
            )
        kernel.execute(notebook(tmp_path, FOUND), tmp_path / "again.ipynb", {})
    execute(notebook(tmp_path, FOUND), tmp_path / "alone.ipynb")
    found, again, alone = (printed(tmp_path / f"{n}.ipynb") for n in ("found", "again", "alone"))
    *told, process = found.split()
    assert told[0] == "False" and told == alone.split()[:-1] == again.split()[:-1]
    assert (
        process != again.split()[-1]
        and nbformat.read(tmp_path / "found.ipynb", as_version=4).cells[0].execution_count == 1
    )


RUN = """
experiment: second
rounds: 1
strategy: shared-queue
providers: [{name: local, kind: embedded}]
"""


@pytest.mark.parametrize(
    ("word", "more", "lock"),
    [
        ("run", "", recording.COMMAND),
        ("sweep", "sweep: {max_tokens: [4, 8]}", recording.COMMAND),
        ("run", "", ".lock"),
        ("sweep", "sweep: {max_tokens: [4, 8]}", ".lock"),
    ],
)
def test_a_second_command_is_refused(
    home: Path, word: str, more: str, lock: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Before it asks a provider; beside a notebook that measures, at its first measurement."""
    shutil.copytree(ROOT / "notebooks", home / "notebooks")
    (home / "my.yaml").write_text(f"{RUN}{more}")
    with recording.only_one(home / "data" / "runs", lock), pytest.raises(SystemExit) as ended:
        cli.main([word, str(home / "my.yaml")])
    told = capfd.readouterr()
    assert ended.value.code == 3 and told.out == "" and not list(home.rglob("second*.jsonl"))
    last = told.err.splitlines()[-1]
    assert last.startswith(f"poc: another run (process {os.getpid()}) is writing")
    assert ("[1/" in told.err) is (lock == ".lock")
    assert "[2/" not in told.err and "failed" not in told.err
