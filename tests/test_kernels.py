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
from poclib.errors import FolderHeld, RunFailed
from poclib.measure import sweep
from poclib.showing import notebooks as publish
from poclib.showing import site as pages

ROOT = report.root()
PATIENCE_S = 300  # only ends a hung test
EXECUTE = """
import sys
from pathlib import Path
from poclib.showing import notebooks
notebooks.execute(Path(sys.argv[1]), Path(sys.argv[2]), {})
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


def notebook(folder: Path, code: str) -> Path:
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    made.metadata["kernelspec"] = {"name": "python3", "display_name": "p", "language": "python"}
    nbformat.write(made, folder / "01_shown.ipynb")
    return folder / "01_shown.ipynb"


def begun(source: Path, target: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", EXECUTE, str(source), str(target)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def printed(target: Path) -> str:
    return str(nbformat.read(target, as_version=4).cells[-1].outputs[0].text)


@pytest.mark.slow
def test_notebooks_begun_at_the_same_moment_each_have_their_own_kernel(
    home: Path, tmp_path: Path, temporary: Path
) -> None:
    source = notebook(tmp_path, SHOW)
    targets = [tmp_path / f"{number}.ipynb" for number in range(4)]
    running = [begun(source, target) for target in targets]
    ended = [(one.communicate(timeout=PATIENCE_S)[1], one.returncode) for one in running]
    assert [code for _, code in ended] == [0] * 4, ended
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
    publish.execute(notebook(tmp_path, SHOW), tmp_path / "done.ipynb", {})
    assert printed(tmp_path / "done.ipynb").startswith("poc-")
    assert not list(long.iterdir())


def test_no_folder_for_temporary_files_is_one_sentence(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    with pytest.raises(RunFailed, match="no folder for a kernel can be made there"):
        publish.execute(notebook(tmp_path, SHOW), tmp_path / "done.ipynb", {})


# ---- Another run measures -------------------------------------------------------------------

RUN = """
experiment: second
rounds: 1
strategy: shared-queue
providers: [{name: local, kind: embedded}]
"""


@pytest.mark.parametrize(
    ("word", "more", "holder"),
    [
        ("run", "", recording.COMMAND),
        ("sweep", "sweep: {max_tokens: [4, 8]}", recording.COMMAND),
        ("run", "", ""),
    ],
)
def test_a_second_command_is_refused(
    home: Path, word: str, more: str, holder: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Before it asks a provider; beside a notebook that measures, at its first strategy."""
    shutil.copytree(ROOT / "notebooks", home / "notebooks")
    (home / "my.yaml").write_text(f"{RUN}{more}")
    runs, held = home / "data" / "runs", [holder] if holder else []
    with recording.only_one(runs, *held), pytest.raises(SystemExit) as ended:
        cli.main([word, str(home / "my.yaml")])
    told = capfd.readouterr()
    assert ended.value.code == 3 and told.out == ""
    last = f"poc: another run (process {os.getpid()}) is writing"
    assert told.err.splitlines()[-1].startswith(last)
    assert ("[1/" in told.err) is not bool(holder)
    assert "failed" not in told.err
    assert not list(home.rglob("second*.jsonl"))


def test_a_refused_point_ends_the_sweep(home: Path) -> None:
    tried: list[str] = []

    def busy(point: sweep.Point, folder: Path) -> None:
        tried.append(point.name)
        raise FolderHeld("another run (process 1) is writing to the folder runs.")

    given = {"sweep": {"seed": [1, 2]}, "strategy": "shared-queue", "providers": [{"name": "a"}]}
    points = sweep.points(given, "grid.yaml")
    with pytest.raises(FolderHeld):
        list(sweep.run(points, home / "grid", busy))
    assert tried == [points[0].name]


# ---- What a run found, in words -------------------------------------------------------------


def test_a_runs_result_is_on_the_site_without_an_address(tmp_path: Path) -> None:
    shown = notebook(tmp_path, "1")
    shown.with_name(report.RESULT).write_text("# Phase 0 result\nhttp://192.168.77.20:11434\n")
    index = pages.site(tmp_path / "site", {"mine": [shown], "sample": []}, [])
    assert f"href='mine/{report.RESULT}'" in index.read_text("utf-8")
    text = (tmp_path / "site" / "mine" / report.RESULT).read_text("utf-8")
    assert text.startswith("# Phase 0 result") and "192.168" not in text
