"""The shape of the project: who may import whom, and what no committed file may hold."""

import ast
import json
import re
import subprocess
import sys
import tempfile
import tomllib
from importlib.metadata import packages_distributions
from importlib.util import resolve_name
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from poclib import cli
from poclib.reading import reading
from poclib.showing import documents

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "poclib"
LONGEST = 400  # lines of a file

# The architecture, by folder: the ground floor is what both halves share; the measuring half
# (engines, providers, measure) and the reading half (reading, showing) meet only there.
FOLDERS: dict[str, set[str]] = {
    "": {""},
    "engines": {""},
    "providers": {""},
    "measure": {"", "engines", "providers"},
    "reading": {""},
    "showing": {"", "reading"},
    "simulate": {"", "measure"},
}
ON_TOP = {"__init__", "__main__", "cli", "cluster", "firstuse", "suite"}  # they join the two halves
FREE = {"__init__", "cli"}  # of every room
# Heavy libraries, and the only folders and rooms that may load them.
ONLY_IN = {
    "distributed": {"cluster"},
    "matplotlib": {"showing"},
    "pandas": {"reading", "showing", "cli"},
    "papermill": {"showing.notebooks"},
    "nbconvert": {"showing.page"},
    "ipywidgets": {"showing.explorer"},
    "simpy": {"simulate"},
}

# By room, what it imports of ours (".x": a room of its own folder). A new module gets a line here.
ROOMS = """
__main__: cli
addresses: errors
arrivals: errors
asked:
batchfiles: errors
cluster: errors measure.beside measure.experiment measure.sweep recording report simulate workload
contention: records stats
errors:
firstuse: errors parameters providers.discover report showing.format
pacing: records stats
parameters: asked errors
points: errors records report
progress:
recording: errors records report
records: asked parameters
report: errors parameters records
serving: parameters records stats
stats: errors
suite: cluster errors measure.batch measure.experiment measure.serve measure.strategies
    measure.sweep parameters reading.reading recording records report showing.curves
    showing.documents showing.format showing.notebooks showing.served showing.simulated
    showing.site showing.words simulate.scenario
workload: batchfiles errors parameters records report
engines:
engines.keeper: .link .sharded errors
engines.link:
engines.llama: errors parameters
engines.pool: .keeper .llama .sharded asked errors parameters
engines.sharded: .link .llama addresses errors parameters
providers: .ollama .openai .provider
providers.connection: errors records
providers.discover: .connection .provider .transport addresses errors parameters records
providers.fake: errors records
providers.ollama: .provider records
providers.openai: .connection .provider errors records
providers.origin: .connection addresses records
providers.provider: .connection .transport errors parameters records
providers.transport: .connection .origin errors records
measure:
measure.adaptive: .attempt records
measure.attempt: errors records
measure.batch: .calibration .dispatch .experiment .forecast .run .strategies batchfiles errors
    pacing parameters progress records report
measure.beside: recording
measure.calibration: .adaptive .attempt .beside .dispatch .forecast .machine .strategies
    contention errors pacing parameters progress recording records report workload
measure.copies: .attempt .slots .strategies
measure.dispatch: .adaptive .attempt .copies .lanes .lengths .slots .strategies contention errors
    records
measure.experiment: .calibration .run .strategies engines.pool errors parameters progress
    providers providers.discover recording records report workload
measure.forecast: .strategies pacing records
measure.lanes: .adaptive .attempt .lengths .slots contention pacing records
measure.lengths: records
measure.machine: records
measure.ruler: .attempt .dispatch .machine .strategies errors parameters providers records report
measure.run: .adaptive .calibration .forecast .machine .ruler .strategies contention errors pacing
    providers recording records report workload
measure.serve: .dispatch .lengths .run .strategies arrivals errors parameters records report
    serving
measure.slots: .lengths
measure.strategies: .slots errors parameters records
measure.stub:
measure.sweep: .experiment errors parameters records report workload
measure.wire: .attempt .dispatch .experiment .machine .strategies asked engines.llama engines.pool
    engines.sharded errors parameters points progress recording records report workload
simulate: .run .scenario
simulate.calibrate: .run .scenario contention errors measure.strategies pacing records stats
simulate.run: .scenario .server errors measure.adaptive measure.attempt measure.dispatch
    measure.lanes measure.lengths measure.slots measure.strategies records stats
simulate.scenario: arrivals errors measure.strategies report
simulate.server: .scenario measure.attempt
reading:
reading.belief: .phases records
reading.causes: .reading contention records stats
reading.compare: .reading records stats
reading.headline: .belief .order .phases .reading contention pacing records report stats
reading.many: .reading errors report stats
reading.order: .reading contention pacing records stats
reading.phases: records stats
reading.reading: .belief .causes .headline .tables errors records report stats
reading.tables: .headline .phases .reading errors pacing records report
reading.wire: points records
showing:
showing.charts: .documents .format .style .words reading.phases reading.reading reading.tables
    records stats
showing.curves: .charts .documents .format .style .words contention parameters reading.reading
    records stats
showing.documents: .format .warnings .words errors parameters reading.compare reading.many
    reading.phases reading.reading records report stats
showing.explorer: .charts .documents .format .notebooks .style errors parameters reading.reading
    report
showing.format:
showing.notebooks: errors report
showing.page: .notebooks .words
showing.served: .format .style .words parameters records serving
showing.simulated: .format .style errors
showing.site: .charts .documents .notebooks .page .style .words errors recording report
showing.style: reading.phases
showing.warnings: .format pacing reading.reading records stats
showing.wire: .format .style errors points reading.wire
showing.words: .format .warnings contention reading.many reading.phases reading.reading
    reading.tables records stats
"""


def folder(module: str) -> str:
    """The folder of a module; a folder is a module too: its `__init__`."""
    return module.partition(".")[0] if "." in module or module in FOLDERS else ""


def _allowed() -> dict[str, set[str]]:
    allowed = {name: set[str]() for name in FOLDERS}
    for line in ROOMS.replace("\n    ", " ").strip().splitlines():
        room, _, names = line.partition(":")
        allowed[room] = {folder(room) + n if n.startswith(".") else n for n in names.split()}
    return allowed


ALLOWED = _allowed()
FILES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
TEXTS = {module: path.read_text("utf-8") for module, path in FILES.items()}


def imports(text: str, inside: str) -> set[str]:
    """The full names of what a module imports, wherever it does; `inside` is its package."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = resolve_name("." * node.level + (node.module or ""), inside)
            within = {alias.name: f"{base}.{alias.name}" for alias in node.names}
            # `from . import report` names modules, `from .report import save` names one.
            found |= {n if n.removeprefix("poclib.") in FILES else base for n in within.values()}
    return found


def of_module(module: str) -> tuple[set[str], set[str]]:
    """The modules of ours and the outside packages that `module` imports."""
    inside = ".".join(["poclib", *FILES[module].parent.relative_to(PACKAGE).parts])
    names = imports(TEXTS[module], inside)
    ours = {name.removeprefix("poclib.") for name in names if name.startswith("poclib.")}
    return ours, {name.partition(".")[0] for name in names} - {"poclib"}


def test_imports_are_read_in_every_form() -> None:
    text = (
        "from .. import __version__, errors\nfrom ..records import Report\nimport poclib.stats\n"
        "import pandas.io\nfrom . import run\nfrom .attempt import Rules\n"
        "def late():\n    from poclib import report\n    from yaml import load\n"
    )
    ours = {"errors", "measure.attempt", "measure.run", "records", "report", "stats"}
    expected = {"poclib", "pandas.io", "yaml", *(f"poclib.{name}" for name in ours)}
    assert imports(text, "poclib.measure") == expected


@pytest.mark.parametrize("module", FILES)
def test_a_module_keeps_to_its_place_and_says_first_what_it_is_for(module: str) -> None:
    assert module in FREE or module in ALLOWED, f"{module}.py is new: add it to ROOMS"
    ours, outside = of_module(module)
    assert module in FREE or ours <= ALLOWED[module], f"{module}: {ours - ALLOWED[module]}"
    above = {folder(name) for name in ours} - FOLDERS[folder(module)] - {folder(module)}
    assert module in ON_TOP or not above, f"{module} reaches into {above}"
    for library, homes in ONLY_IN.items():
        assert library not in outside or {module, folder(module)} & homes, f"{library}: {homes}"
    words = ast.get_docstring(ast.parse(TEXTS[module]))
    assert words and words.splitlines()[0].endswith("."), f"{module}.py needs a first sentence"


def test_a_file_is_read_in_one_sitting() -> None:
    lengths = {module: len(text.splitlines()) for module, text in TEXTS.items()}
    print(f"poclib: {sum(lengths.values())} lines in {len(lengths)} files")
    assert {module: n for module, n in lengths.items() if n > LONGEST} == {}


def test_every_library_that_is_imported_is_declared() -> None:
    """A package that is only there because another one needs it may be gone tomorrow."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    declared = {canonicalize_name(Requirement(word).name) for group in groups for word in group}
    homes = packages_distributions()
    used = set().union(*(of_module(module)[1] for module in FILES)) - sys.stdlib_module_names
    assert [n for n in used if not declared & set(map(canonicalize_name, homes.get(n, [n])))] == []


# ---- What no committed file may hold ------------------------------------------------------


def machine_paths() -> str:
    """Of this machine; folders that many machines have, such as /tmp, would prove nothing."""
    here = {str(Path.home()), str(ROOT.parent), str(ROOT)} - {"/", "/tmp", tempfile.gettempdir()}
    return rf"(?<![\w.~-])({'|'.join(map(re.escape, here))})(?=[/\"'\s:,)]|$)"


INDEX_HOSTS = r"https?://[^\s\"')>]*(/simple\b|/packages/|\.whl\b|\.tar\.gz\b)|file:///"


@pytest.mark.parametrize("pattern", [machine_paths(), INDEX_HOSTS], ids=["path", "index"])
def test_no_file_names_a_path_of_this_machine_or_a_package_index(pattern: str) -> None:
    """In what git has or would add."""
    ask = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(ask, cwd=ROOT, capture_output=True, check=True, timeout=60).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this copy of the project is not a git repository")
    found: list[str] = []
    for path in (ROOT / name for name in listed.decode().split("\0") if name):
        data = path.read_bytes() if path.is_file() and path != Path(__file__) else b"\0"
        if b"\0" not in data:  # a text
            hits = re.finditer(pattern, data.decode(errors="replace"), re.M)
            found += [f"{path.relative_to(ROOT)}: {hit[0]}" for hit in hits]
    assert found == []


@pytest.mark.parametrize("notebook", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=str)
def test_a_committed_notebook_has_been_executed(notebook: Path) -> None:
    """nbval compares nothing in a cell that never ran, so a cleared notebook would pass."""
    cells = json.loads(notebook.read_text("utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code" and "".join(cell["source"])]
    assert code, "a notebook without code"
    counts = [cell["execution_count"] for cell in code]
    assert counts == list(range(1, len(code) + 1)), "run it from top to bottom and save it"
    assert not [o for cell in code for o in cell["outputs"] if o["output_type"] == "error"]


def test_the_readme_says_what_the_committed_reports_give() -> None:
    samples = reading.experiment("sample", ROOT / "data" / "reports")
    text = (ROOT / "README.md").read_text("utf-8")
    assert documents.readme(text, samples) == text
    for linked in re.findall(r"\]\(([^)]+)\)", text):
        assert (ROOT / linked).exists(), f"README.md links {linked}"
    for command in re.findall(r"\./run-poc\.sh (doctor|show|gate|lab|test|refresh)\b", text):
        assert command in cli.poc.commands or command in {"lab", "test"}
