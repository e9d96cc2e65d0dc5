"""The command line as a person meets it: one sentence, an exit code, never a traceback."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import poclib
from poclib import __main__ as entry
from poclib import cli, report


@pytest.fixture
def poc(capsys: pytest.CaptureFixture[str]):  # type: ignore[no-untyped-def]
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


def _yaml(tmp_path: Path, text: str) -> str:
    path = tmp_path / "my.yaml"
    path.write_text(text)
    return str(path)


class _Pressed:
    """Ctrl-C at the moment in which the command is being loaded."""

    def find_spec(self, name: str, *_: object) -> None:
        if name == "poclib.cli":
            raise KeyboardInterrupt


def test_ctrl_c_while_libraries_load_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delattr(poclib, "cli")
    monkeypatch.delitem(sys.modules, "poclib.cli")
    monkeypatch.setattr(sys, "meta_path", [_Pressed(), *sys.meta_path])
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
HEAVY = {"aiohttp", "httpx", "IPython", "matplotlib", "nbconvert", "nbformat", "papermill"}


@pytest.mark.parametrize("words", [["--help"], ["show"], ["show", "REPORT"], ["gate", "REPORT"]])
def test_a_command_that_only_reads_loads_no_library_of_another(words: list[str]) -> None:
    given = [word.replace("REPORT", "published-phase-0") for word in words]
    told = subprocess.run([sys.executable, "-c", LOADED, *given], capture_output=True, text=True)
    loaded = set(told.stdout.splitlines()[-1].split())
    assert "poclib.cli" in loaded and loaded & HEAVY == set()


def test_the_published_run_as_numbers(poc) -> None:  # type: ignore[no-untyped-def]
    code, out, _ = poc("show", "published-phase-0", "--json")
    found = json.loads(out)
    assert code == 0
    assert round(found["overhead_ratio"]["median"], 3) == 0.866
    assert round(found["speedup"], 3) == 1.154
    remote = found["added_latency_ms"]["remote"]
    assert [round(remote[k], 1) for k in ("mean", "min", "max")] == [22.4, 13.1, 30.2]
    assert round(found["network_share"], 3) == 0.036
    assert round(found["efficiency"], 3) == 0.753


def test_one_round_is_inconclusive_and_says_so(poc) -> None:  # type: ignore[no-untyped-def]
    code, out, _ = poc("gate", "published-phase-0")
    assert code == 2
    assert "INCONCLUSIVE" in out and "round" in out


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
    (
        "providers: [{name: a, kind: llama-server, url: 'http://127.0.0.1:9', api_key_env: NO_K}]",
        "environment variable NO_K is not set",
    ),
]


@pytest.mark.parametrize(("text", "sentence"), BAD)
@pytest.mark.parametrize("command", ["doctor", "run"])
def test_bad_parameters_are_one_sentence(  # type: ignore[no-untyped-def]
    poc, tmp_path: Path, command: str, text: str, sentence: str
) -> None:
    code, _, err = poc(command, _yaml(tmp_path, text))
    assert code == 3
    assert sentence in err
    assert err.startswith("poc: ") and err.count("\n") == 1


def test_an_unreachable_provider_stops_a_run_before_it_starts(poc, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    # Port 9 of loopback: nobody listens there.
    text = "providers: [{name: shelf, kind: llama-server, url: 'http://127.0.0.1:9'}]"
    code, _, err = poc("run", _yaml(tmp_path, text))
    assert code == 3 and "shelf" in err and "connection refused" in err
    assert "127.0.0.1" not in err


def test_a_missing_parameter_file_lists_what_there_is(poc) -> None:  # type: ignore[no-untyped-def]
    code, _, err = poc("doctor", "params/nope.yaml")
    assert code == 3 and "cannot be read" in err


@pytest.mark.parametrize("command", ["show", "gate"])
def test_a_missing_report_is_one_sentence(poc, command: str) -> None:  # type: ignore[no-untyped-def]
    code, _, err = poc(command, "published-phase-1")
    assert code == 3 and "published-phase-1" in err and err.count("\n") == 1


def test_every_example_reads_and_declares_its_keys(poc) -> None:  # type: ignore[no-untyped-def]
    from poclib.parameters import Parameters
    from poclib.showing import notebooks as publish

    declared = {key for n in publish.notebooks() for key in publish.declared(n)}
    examples = sorted((report.root() / "params").glob("*.yaml"))
    assert len(examples) >= 4
    for path in examples:
        values = cli.read_yaml(path)
        if values.pop("sweep", None):
            continue  # test_sweep reads those
        Parameters.read(values, path.name)
        publish.check_keys(values.keys() - {"notebooks"}, declared, path.name)
