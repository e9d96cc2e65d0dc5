"""The shape of the project: who may import whom, and what no committed file may hold."""

import ast
import json
import re
import subprocess
import sys
import tempfile
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from poclib import cli
from poclib.reading import reading
from poclib.showing import documents

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "poclib"

# The architecture, by folder: the ground floor is what both halves share; the measuring half
# (engines, providers, measure) and the reading half (reading, showing) meet only there.
FOLDERS: dict[str, set[str]] = {
    "": {""},
    "engines": {""},
    "providers": {""},
    "measure": {"", "engines", "providers"},
    "reading": {""},
    "showing": {"", "reading"},
}
ON_TOP = {"__init__", "__main__", "cli", "suite"}  # they join the two halves

# By room, what it imports of ours (".x": a room of its own folder). A new module gets a line here.
ROOMS = """
__main__: cli
contention: records
errors:
pacing: records stats
parameters: errors
progress:
recording: errors records report
records: parameters
report: errors parameters records
stats: errors
suite: errors measure.experiment measure.strategies measure.sweep parameters reading.reading
    recording report showing.curves showing.documents showing.format showing.notebooks
    showing.site showing.words
workload: errors parameters records report
engines.keeper: .link errors
engines.link:
engines.llama: errors parameters
engines.pool: .llama errors parameters
providers: .ollama .openai .provider
providers.fake: errors records
providers.ollama: .provider records
providers.openai: .provider .transport errors records
providers.provider: .transport errors parameters records
providers.transport: errors records
measure.adaptive: .attempt records
measure.attempt: errors records
measure.calibration: .attempt .dispatch .forecast .machine .strategies contention errors pacing
    parameters progress recording records report workload
measure.dispatch: .adaptive .attempt .strategies errors records
measure.experiment: .calibration .run .strategies engines.pool errors parameters progress
    providers recording records report workload
measure.forecast: .strategies pacing records
measure.machine: records
measure.ruler: .attempt .dispatch .machine .strategies errors parameters providers records report
measure.run: .adaptive .calibration .dispatch .forecast .machine .ruler .strategies errors pacing
    parameters progress providers recording records report workload
measure.strategies: errors
measure.stub:
measure.sweep: .experiment errors parameters records report workload
reading.belief: .phases records
reading.causes: .reading contention records stats
reading.compare: .reading records stats
reading.headline: .belief .phases .reading contention pacing records report stats
reading.phases: records stats
reading.reading: .belief .causes .headline .tables errors records report stats
reading.tables: .headline .phases .reading errors pacing records report
showing.charts: .documents .format .style .words reading.phases reading.reading records stats
showing.curves: .charts .format .style .words contention parameters reading.reading records stats
showing.documents: .format .warnings .words errors reading.compare reading.phases reading.reading
    records report stats
showing.format:
showing.notebooks: errors report
showing.site: .notebooks recording records report
showing.style: reading.phases
showing.warnings: .format pacing reading.reading records stats
showing.words: .format .warnings contention pacing reading.phases reading.reading reading.tables
    records stats
"""


def _rooms() -> dict[str, set[str] | None]:
    allowed: dict[str, set[str] | None] = {"cli": None, "__init__": None}
    allowed |= {folder: set() for folder in FOLDERS if folder}
    for line in ROOMS.replace("\n    ", " ").strip().splitlines():
        room, _, names = line.partition(":")
        folder = room.partition(".")[0]
        allowed[room] = {folder + n if n.startswith(".") else n for n in names.split()}
    return allowed


ALLOWED = _rooms()
# Heavy libraries, and the only modules that may load them.
ONLY_IN = {
    "matplotlib": {"showing"},
    "pandas": {"reading", "showing", "cli"},
    "papermill": {"showing.notebooks"},
    "nbconvert": {"showing.site"},
}


def modules() -> dict[str, Path]:
    """Every module by its name in the package; a folder is one, too: its `__init__`."""
    files = {path.relative_to(PACKAGE).with_suffix(""): path for path in PACKAGE.rglob("*.py")}
    return {".".join(p.parts).removesuffix(".__init__"): path for p, path in files.items()}


MODULES = sorted(modules())


def imports(module: str) -> tuple[set[str], set[str]]:
    """The modules of ours and the outside packages that `module` imports, wherever it does."""
    ours: set[str] = set()
    outside: set[str] = set()
    there = modules()
    folders = ["poclib", *(part for part in module.split(".") if part != "__init__")]
    for node in ast.walk(ast.parse(there[module].read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = len(folders) - node.level + (there[module].name == "__init__.py")
            start = folders[:above] if node.level else []
            base = ".".join([*start, *(node.module or "").split(".")]).rstrip(".")
            # `from . import report` names modules, `from .report import save` names one.
            within = [f"{base}.{a.name}" for a in node.names]
            names = [one if one.removeprefix("poclib.") in there else base for one in within]
        else:
            continue
        for name in names:
            top, _, rest = name.partition(".")
            if top != "poclib":
                outside.add(top)
            elif rest:
                ours.add(rest)
    return ours & there.keys(), outside


def test_imports_are_read_in_every_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "room").mkdir()
    for name in ("errors", "records", "report", "stats", "room/door", "room/__init__"):
        (tmp_path / f"{name}.py").touch()
    text = (
        "from . import __version__, errors\nfrom .records import Report\nimport poclib.stats\n"
        "import pandas.io\ndef late():\n    from poclib import report\n    from yaml import load\n"
    )
    (tmp_path / "sample.py").write_text(
        text + "from .room import door\nfrom .room.door import key\n"
    )
    inside = text.replace("from .", "from ..") + "from . import door\nfrom .door import key\n"
    (tmp_path / "room" / "inside.py").write_text(inside)
    monkeypatch.setattr(f"{__name__}.PACKAGE", tmp_path)
    ours = {"errors", "records", "report", "stats", "room.door"}
    assert imports("sample") == imports("room.inside") == (ours, {"pandas", "yaml"})


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_what_its_layer_may(module: str) -> None:
    assert module in ALLOWED, f"{module}.py is new: add it to ALLOWED, with what it may import"
    allowed = ALLOWED[module]
    ours, outside = imports(module)
    assert allowed is None or ours <= allowed, f"{module} may not import {ours - allowed}"
    for library, homes in ONLY_IN.items():
        assert library not in outside or {module, module.partition(".")[0]} & homes, (
            f"{library} only in {sorted(homes)}"
        )


@pytest.mark.parametrize("module", [m for m in MODULES if m not in ON_TOP])
def test_a_folder_imports_only_what_lies_below_it(module: str) -> None:
    ours, _ = imports(module)
    mine = module.partition(".")[0] if "." in module or module in FOLDERS else ""
    others = {name.partition(".")[0] if "." in name else "" for name in ours - FOLDERS.keys()}
    assert others <= FOLDERS[mine] | {mine}, f"{module} reaches into {others}"


@pytest.mark.parametrize("module", MODULES)
def test_a_module_says_first_what_it_is_for(module: str) -> None:
    words = ast.get_docstring(ast.parse(modules()[module].read_text("utf-8")))
    assert words and words.splitlines()[0].endswith("."), f"{module}.py needs a first sentence"


def test_every_library_that_is_imported_is_declared() -> None:
    """A package that is only there because another one needs it may be gone tomorrow."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    declared = {canonicalize_name(Requirement(word).name) for group in groups for word in group}
    homes = packages_distributions()
    used = set().union(*(imports(module)[1] for module in MODULES)) - sys.stdlib_module_names
    distributions = {name: homes.get(name, [name]) for name in used}
    loose = [n for n, d in distributions.items() if not declared & set(map(canonicalize_name, d))]
    assert loose == []


# ---- What no committed file may hold ------------------------------------------------------

HOSTS = re.compile(r"https?://[^\s\"')>]*(/simple\b|/packages/|\.whl\b|\.tar\.gz\b)|file:///")


def tracked() -> list[Path]:
    """Files of the project: what git has or would add; without git, what is not ignored by name."""
    ask = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(ask, cwd=ROOT, capture_output=True, check=True, timeout=60).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this copy of the project is not a git repository")
    paths = [ROOT / name for name in listed.decode().split("\0") if name]
    return [path for path in paths if path.is_file()]


def texts() -> list[tuple[str, str]]:
    """Name and text of every file that is text."""
    found = []
    for path in tracked():
        data = path.read_bytes()
        if b"\0" not in data and path != Path(__file__):
            found.append((str(path.relative_to(ROOT)), data.decode(errors="replace")))
    return found


def test_no_file_names_a_path_of_this_machine() -> None:
    """Folders that many machines have, such as /tmp, would prove nothing."""
    here = {str(Path.home()), str(ROOT.parent), str(ROOT)} - {"/", "/tmp", tempfile.gettempdir()}
    telling = "|".join(map(re.escape, here))
    path = re.compile(rf"(?<![\w.~-])({telling})(?=[/\"'\s:,)]|$)", re.M)
    found = [f"{name}: {hit[0]}" for name, text in texts() for hit in path.finditer(text)]
    assert found == []


def test_no_file_names_a_package_index_or_a_download() -> None:
    found = [f"{name}: {hit[0]}" for name, text in texts() for hit in HOSTS.finditer(text)]
    assert found == []


@pytest.mark.parametrize("notebook", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=str)
def test_a_committed_notebook_has_been_executed(notebook: Path) -> None:
    """nbval compares nothing in a cell that never ran, so a cleared notebook would pass."""
    cells = json.loads(notebook.read_text("utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code" and "".join(cell["source"])]
    assert code, "a notebook without code"
    counts = [cell["execution_count"] for cell in code]
    assert counts == list(range(1, len(code) + 1)), "run it from top to bottom and save it"
    failed = [o for cell in code for o in cell["outputs"] if o["output_type"] == "error"]
    assert failed == []


def test_the_readme_says_what_the_committed_reports_give() -> None:
    samples = reading.experiment("sample", ROOT / "data" / "reports")
    text = (ROOT / "README.md").read_text("utf-8")
    assert documents.readme(text, samples) == text
    said = re.sub(r"\]\([^)]*\)", "]", text)
    for linked in re.findall(r"\]\(([^)]+)\)", text):
        assert (ROOT / linked).exists(), f"README.md links {linked}"
    for command in re.findall(r"\./run-poc\.sh (doctor|show|gate|lab|test|refresh)\b", said):
        assert command in cli.poc.commands or command in {"lab", "test"}
