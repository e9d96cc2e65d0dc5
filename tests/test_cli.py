"""The command line as a person meets it: one sentence, an exit code, never a traceback."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import poclib
from poclib import __main__ as entry
from poclib import cli, report
from poclib.parameters import Parameters
from poclib.showing import notebooks as publish

Poc = Callable[..., tuple[int, str, str]]


@pytest.fixture
def poc(capsys: pytest.CaptureFixture[str]) -> Poc:
    """Run `poc` in this process; gives (exit code, standard output, standard error)."""

    def run(*arguments: str) -> tuple[int, str, str]:
        code = 0
        try:
            cli.main(arguments)
        except SystemExit as ended:
            code = int(ended.code or 0)
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return code, out, err

    return run


class _Pressed:
    """Ctrl-C at the moment in which the command is being loaded."""

    def find_spec(self, *_: object) -> None:
        raise KeyboardInterrupt


def test_ctrl_c_while_libraries_load_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delattr(poclib, "cli")
    monkeypatch.delitem(sys.modules, "poclib.cli")
    monkeypatch.setattr(sys, "meta_path", [_Pressed()])
    with pytest.raises(SystemExit) as ended:
        entry.main()
    assert ended.value.code == 130
    assert capsys.readouterr().err == "poc: interrupted before anything was measured.\n"


LOADED = """
import sys
from poclib import cli
try:
    cli.main(sys.argv[1:])
finally:
    print(*sys.modules)
"""
HEAVY = {"httpx", "IPython", "matplotlib", "nbconvert", "nbformat", "papermill"}
HEAVY |= {"numpy", "pandas"}


@pytest.mark.parametrize(
    "words", [["--help"], ["show"], ["show", "published-phase-0"], ["gate", "published-phase-0"]]
)
def test_a_command_that_only_reads_loads_no_heavy_library(words: list[str]) -> None:
    told = subprocess.run([sys.executable, "-c", LOADED, *words], capture_output=True, text=True)
    loaded = set(told.stdout.splitlines()[-1].split())
    assert "poclib.cli" in loaded and loaded & HEAVY == set()


def test_the_published_run_as_numbers_and_its_verdict(poc: Poc) -> None:
    code, out, _ = poc("show", "published-phase-0", "--json")
    numbers = json.loads(out)
    assert code == 0 and round(numbers["overhead_ratio"]["median"], 3) == 0.866
    code, out, _ = poc("gate", "published-phase-0")
    assert code == 2 and "INCONCLUSIVE" in out and "round" in out


KEYLESS = "{name: a, kind: llama-server, url: 'http://127.0.0.1:9', api_key_env: NO_K}"
BAD = [
    ("rouns: 3\nproviders: [{name: a}]", "rouns is not a parameter; did you mean rounds"),
    ("rounds: 3", "providers is missing"),
    ("rounds: many\nproviders: [{name: a}]", "rounds"),
    ("providers: [{name: a, kind: ollama, model: m}]", "provider a (kind ollama) needs a url"),
    ("providers: [{name: a}, {name: a}]", "names must differ"),
    ("providers: [{name: '../a'}]", "providers.0.name"),
    ("providers: [{name: a, kind: embeded}]", "providers.0.kind"),
    ("providers: [{name: a, engine: bare, batching: false}]", "exclude each other"),
    ("providers: [{name: a, engine: queueing, slots: 4}]", "a queueing engine has one slot"),
    ("rounds: [", "not valid YAML"),
    ("just text", "key: value"),
    ("x: !!python/object/apply:os.system ['true']", "not valid YAML"),
    ("providers: [{name: a, kind: llama-server, url: 'ftp://x'}]", "not an http address"),
    (f"providers: [{KEYLESS}]", "environment variable NO_K is not set"),
    (None, "cannot be read; in params/ there is"),
]


@pytest.mark.parametrize(("text", "sentence"), BAD)
@pytest.mark.parametrize("command", ["doctor", "run"])
def test_bad_parameters_are_one_sentence(
    poc: Poc, tmp_path: Path, command: str, text: str | None, sentence: str
) -> None:
    if text is not None:
        (tmp_path / "my.yaml").write_text(text)
    code, _, err = poc(command, str(tmp_path / "my.yaml"))
    assert code == 3 and sentence in err
    assert err.splitlines()[-1].startswith("poc: ") and err.count("\n") <= 2


def test_an_unreachable_provider_ends_a_run_at_its_first_strategy(poc: Poc, tmp_path: Path) -> None:
    # Port 9 of loopback: nobody listens there.
    given = "providers: [{name: shelf, kind: llama-server, url: 'http://127.0.0.1:9'}]"
    (tmp_path / "my.yaml").write_text(given)
    code, _, err = poc("run", str(tmp_path / "my.yaml"))
    assert code == 3 and "shelf" in err and "connection refused" in err
    assert "127.0.0.1" not in err and "[2/" not in err


@pytest.mark.parametrize("command", ["show", "gate", "rerun", "compare"])
def test_a_missing_report_is_one_sentence(poc: Poc, command: str) -> None:
    code, _, err = poc(command, "published-phase-1")
    assert code == 3 and "published-phase-1" in err and err.count("\n") == 1


def test_every_example_reads_and_its_keys_are_the_notebooks() -> None:
    declared = publish.declared(publish.strategy_notebook())
    examples = sorted((report.root() / "params").glob("*.yaml"))
    assert len(examples) >= 4
    for path in examples:
        values = cli.read_yaml(path)
        if "sweep" not in values:  # test_sweep reads those
            Parameters.read(values, path.name)
            assert values.keys() - {"notebooks", "serve"} <= declared.keys()
