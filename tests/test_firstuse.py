"""From addresses to a file of parameters, with servers on loopback that answer as real ones did."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import pty
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from replay import LLAMA, OLLAMA, VLLM, Answer, Replay, body, recorded

from poclib import addresses, cli, firstuse
from poclib.errors import ParameterError, Unreachable
from poclib.measure import experiment
from poclib.measure.strategies import STRATEGIES
from poclib.parameters import Parameters
from poclib.providers import discover

HTML = Answer(b"<html><title>A router's page</title></html>", headers={"content-type": "text/html"})
WANTS_KEY = recorded("llama-server/err_unauthorized")
CHAT = {"/api/chat": recorded("ollama/chat_stream")}


def ollama(*models: str, **more: object) -> dict[str, Answer]:
    listed = [{"name": name, "capabilities": ["completion"]} | more for name in models]
    return OLLAMA | CHAT | {"/api/tags": body({"models": listed})}


class Machines:
    """Servers in a thread of their own, so that what asks them may have its own loop."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._open: list[Replay] = []

    def _do(self, coroutine: object) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(30)  # type: ignore[arg-type]

    def add(self, answers: Answer | dict[str, Answer]) -> Replay:
        server = Replay(answers)
        self._do(server.__aenter__())
        self._open.append(server)
        return server

    def close(self) -> None:
        for server in self._open:
            self._do(server.__aexit__())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@pytest.fixture
def machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machines]:
    monkeypatch.setenv("POCLIB_HOME", str(tmp_path))
    monkeypatch.setattr(firstuse, "LOOPBACK_MS", 1e6)  # however busy this machine is
    monkeypatch.setattr("sys.stdin", io.StringIO())
    with contextlib.closing(Machines()) as made:
        yield made


def nothing_at() -> str:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{held.getsockname()[1]}"


def read(path: Path) -> Parameters:
    return Parameters.read(cli.read_yaml(path), path.name)


# ---- What is there ----------------------------------------------------------


def test_each_kind_is_told_by_what_it_answers(machines: Machines) -> None:
    owned = {"data": [{"id": "m", "owned_by": "somebody"}]}
    served = {
        "ollama": OLLAMA,
        "llama-server": LLAMA,
        "openai": VLLM,
        "openai ": {"/v1/models": body(owned)},
        "llama-server ": LLAMA | {"/v1/models": recorded("llama-server/router_models")},
    }
    urls = [machines.add(answers).url for answers in served.values()]
    found = asyncio.run(discover.look(urls))
    assert all(isinstance(one, discover.Found) for one in found), found
    assert [one.kind for one in found] == [kind.strip() for kind in served]
    assert [one.any_model for one in found] == [False, True, False, False, False]
    assert found[0].server == "Ollama 0.33.0-rc2"
    assert [list(one.models) for one in found[1:4]] == [["smollm2"], ["smollm2-135m"], ["m"]]
    assert all(one.own and not one.public and one.round_trip_ms > 0 for one in found)


def test_what_cannot_be_used_says_all_at_once_what_to_do(
    machines: Machines, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    odd = {"/api/version": body({"version": "1"}), "/api/tags": body({"models": ["x"]})}
    words = {
        nothing_at(): "is it running?",
        machines.add(HTML).url: "right port?",
        machines.add(odd).url: "right port?",
        machines.add(WANTS_KEY).url: "api_key_env",
        machines.add(LLAMA | {"/props": WANTS_KEY}).url: "api_key_env",
        machines.add(body({"error": "Loading model"}, 503)).url: "still loading",
        machines.add(Answer(b"SSH-2.0-x\r\n", ending="raw")).url: "port right?",
        "http://203.0.113.7:11434": "add --set allow_public=true",
        "ftp://box": "is not the address of a server",
        "box:99999": "is not the address of a server",
        "0.0.0.0:11434": "127.0.0.1, or its machine's own address",
    }
    with pytest.raises(ParameterError, match=f"{len(words)} problems"):
        firstuse.file_of(list(words))
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("  ")]
    for (word, said), line in zip(words.items(), lines, strict=True):
        assert word in line and said in line
    assert not (tmp_path / "params").exists()
    with pytest.raises(ParameterError, match=r"127.*is it running"):  # a single one is the error
        firstuse.file_of([nothing_at()])


def test_a_silent_address_is_waited_for_no_longer_than_the_limit(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(discover, "LIMIT_S", 0.2)
    (said,) = asyncio.run(discover.look([machines.add(Answer(ending="silent")).url]))
    assert isinstance(said, str) and "firewall" in said


@pytest.mark.parametrize(
    ("word", "urls"),
    [
        ("http://box:1234/", ["http://box:1234"]),
        ("http://box:1234/v1", ["http://box:1234"]),
        ("https://box", ["https://box"]),
        ("https://box/llm/v1/", ["https://box/llm"]),
        ("box:1234", ["http://box:1234"]),
        ("box.tail1234.ts.net", [f"http://box.tail1234.ts.net:{p}" for p in (11434, 8080, 8000)]),
        ("http://box", [*(f"http://box:{p}" for p in (11434, 8080, 8000)), "http://box"]),
        ("fd7a::1", [f"http://[fd7a::1]:{port}" for port in (11434, 8080, 8000)]),
        ("[::1]:8080", ["http://[::1]:8080"]),
    ],
)
def test_an_address_is_taken_as_people_write_it(word: str, urls: list[str]) -> None:
    assert addresses.is_one(word) and addresses.urls(word) == urls


@pytest.mark.parametrize("word", ["params/mine.yaml", "mine.yml", "a/b", "MY.YAML"])
def test_a_file_is_no_address(word: str) -> None:
    assert not addresses.is_one(word)


def test_a_host_alone_is_tried_at_the_usual_ports(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, gone = machines.add(LLAMA), nothing_at().rpartition(":")[2]
    monkeypatch.setattr(addresses, "USUAL_PORTS", (int(gone), there.port))
    found = asyncio.run(discover.look(["127.0.0.1"]))[0]
    assert isinstance(found, discover.Found) and found.url == there.url
    monkeypatch.setattr(addresses, "USUAL_PORTS", (int(gone), int(gone)))
    assert f":{gone}" in str(asyncio.run(discover.look(["127.0.0.1"]))[0])


# ---- A mesh's addresses -----------------------------------------------------


@pytest.mark.parametrize(
    ("own", "private"), [("100.64.0.9", True), ("100.127.255.1", True), ("192.168.1.5", False)]
)
def test_the_shared_range_is_private_to_who_has_an_address_in_it(
    own: str, private: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mesh gives this machine an address there; a carrier gives it to the house's router."""
    monkeypatch.setattr(addresses, "own_address", lambda _: own)
    for address in ("100.64.0.1", "100.127.255.254", "::ffff:100.100.1.1"):
        assert addresses.is_private(address) == private
    assert not addresses.is_private("100.128.0.1") and not addresses.is_private("100.63.255.255")
    assert addresses.is_own(own) and not addresses.is_own("100.64.0.1")


def test_no_way_there_is_no_address() -> None:
    assert addresses.own_address("127.0.0.1") == "127.0.0.1"
    assert addresses.own_address("fe80::1%no-such-interface") is None


# ---- The model and the file -------------------------------------------------


def test_one_model_in_common_is_taken_and_the_file_kept_for_the_next_time(
    machines: Machines, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = machines.add(ollama("own:7b", "llama3.2:latest", "gone-cloud"))
    other = machines.add(ollama("Llama3.2", "embedder") | {"/api/show": recorded("ollama/show")})
    path = firstuse.file_of([one.url, other.url])
    assert path == tmp_path / "params" / "my-pool.yaml"
    parameters = read(path)
    assert [(p.name, p.kind, p.url, p.model, p.role) for p in parameters.providers] == [
        ("local-1", "ollama", one.url, "llama3.2:latest", "local"),
        ("local-2", "ollama", other.url, "Llama3.2", "local"),
    ]
    assert parameters.experiment == "my-pool"
    assert "./run-poc.sh params/my-pool.yaml" in capsys.readouterr().err

    edited = path.read_text("utf-8").replace("rounds: 5", "rounds: 9")
    path.write_text(edited)
    assert firstuse.file_of([one.url, other.url]) == path and path.read_text("utf-8") == edited
    second = firstuse.file_of([one.url], ["own:7b"])
    assert second.name == "my-pool-2.yaml" and read(second).experiment == "my-pool-2"
    assert [p.name for p in read(second).providers] == ["local"]
    assert path.read_text("utf-8") == edited
    path.write_text("providers: nonsense")
    assert firstuse.file_of([one.url, other.url]).name == "my-pool-3.yaml"


def test_no_model_in_common_says_what_to_pull(
    machines: Machines, capsys: pytest.CaptureFixture[str]
) -> None:
    both, lacking = ollama("llama3.2:1b", "own:7b"), machines.add(ollama("other:3b"))
    words = [machines.add(both).url, lacking.url, machines.add(both).url]
    with pytest.raises(ParameterError, match=r"needs: ollama pull llama3.2:1b") as caught:
        firstuse.file_of(words)
    assert lacking.url in str(caught.value)
    with pytest.raises(ParameterError, match="2 problems"):
        firstuse.file_of(words[:2], ["qwen3:8b"])
    assert capsys.readouterr().err.count("ollama pull qwen3:8b") == 2
    with pytest.raises(ParameterError, match=r"ollama pull llama3.2:1b"):
        firstuse.file_of([machines.add(ollama()).url])
    with pytest.raises(ParameterError, match=r"has: smollm2-135m; start it with that one"):
        firstuse.file_of([words[0], machines.add(VLLM).url], ["own:7b"])


def test_several_models_in_common_need_a_word(machines: Machines) -> None:
    words = [machines.add(ollama("a:1b", "b:2b")).url, machines.add(ollama("b:2b", "a:1b")).url]
    with pytest.raises(ParameterError, match="choose one: --model a:1b or b:2b"):
        firstuse.file_of(words)
    assert [p.model for p in read(firstuse.file_of(words, ["b:2b"])).providers] == ["b:2b"] * 2
    with pytest.raises(ParameterError, match="once for all addresses, or once for each"):
        firstuse.file_of(words, ["a:1b"] * 3)
    with pytest.raises(ParameterError, match="given twice"):
        firstuse.file_of(words[:1] * 2)


def test_servers_of_unlike_kinds_have_names_of_their_own(machines: Machines) -> None:
    words = [machines.add(each).url for each in (ollama("smol:1b"), VLLM, LLAMA)]
    path = firstuse.file_of(words, ["smol:1b", "smollm2-135m", "whatever"])
    assert [p.model for p in read(path).providers] == ["smol:1b", "smollm2-135m", None]
    assert read(firstuse.file_of(words[2:])).providers[0].model is None


def test_a_tunnel_is_taken_as_remote_where_nobody_can_be_asked(
    machines: Machines, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(firstuse, "LOOPBACK_MS", 0.0)
    (provider,) = read(firstuse.file_of([machines.add(LLAMA).url])).providers
    assert (provider.name, provider.role) == ("remote", "remote")
    assert "taken as a tunnel" in capsys.readouterr().err


def test_a_person_at_a_terminal_is_asked(machines: Machines, tmp_path: Path) -> None:
    """Which model, and whether it is a tunnel: answered as a person would, by a real terminal."""
    words = [machines.add(ollama("a:1b", "b:2b")).url, machines.add(ollama("a:1b", "b:2b")).url]
    code = "import sys; from poclib import firstuse; firstuse.LOOPBACK_MS = 0.0; "
    code += "firstuse.file_of(sys.argv[1:])"
    ours, theirs = pty.openpty()
    os.write(ours, b"b:2b\nn\ny\n")
    command = [sys.executable, "-c", code, *words]
    done = subprocess.run(command, stdin=theirs, capture_output=True, text=True, timeout=60)
    os.close(theirs)
    os.close(ours)
    assert done.returncode == 0, done.stderr
    assert "Which model" in done.stderr and done.stderr.count("Is it a tunnel") == 2
    providers = read(tmp_path / "params" / "my-pool.yaml").providers
    assert [(p.model, p.role) for p in providers] == [("b:2b", "local"), ("b:2b", "remote")]


# ---- The commands, and `kind: auto` -----------------------------------------


def test_doctor_takes_addresses_and_says_what_to_expect(
    machines: Machines, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = [machines.add(ollama("smollm2:latest")).url for _ in range(2)]
    for asked in (words, [str(tmp_path / "params" / "my-pool.yaml")]):
        with contextlib.suppress(SystemExit):
            cli.main(["doctor", *asked])
        out, err = capsys.readouterr()
        count = len(STRATEGIES) - 1  # no router is there
        assert "Expect " in out and re.search(rf"{count} strategies takes about \d+ ", out), err
        assert "127.0.0.1" not in out


def test_a_kind_left_out_is_asked_for_when_the_pool_is_opened(machines: Machines) -> None:
    served = [OLLAMA, LLAMA, VLLM]
    given = {"providers": [
        {"name": f"m{number}", "url": machines.add(answers).url + "/v1"}
        for number, answers in enumerate(served)
    ]}  # fmt: skip
    given["providers"][0] |= {"kind": "auto", "model": "smollm2"}
    wanted = Parameters.read(given)
    assert [p.kind for p in wanted.providers] == ["auto"] * 3
    with experiment.open_pool(wanted) as pool:
        facts = [asyncio.run(sender.describe()) for sender, _ in pool]
    assert [(f.name, f.kind) for f in facts] == [
        ("m0", "ollama"), ("m1", "llama-server"), ("m2", "openai"),
    ]  # fmt: skip
    assert [f.model for f in facts] == ["smollm2", "smollm2", "smollm2-135m"]
    given["providers"] = [{"name": "a", "url": f"http://{nothing_at()}"}]
    with (
        pytest.raises(Unreachable, match="provider a: no connection") as caught,
        experiment.open_pool(Parameters.read(given)),
    ):
        pass
    assert "127.0.0.1" not in str(caught.value)


def test_a_folder_that_cannot_be_written_is_one_sentence(
    machines: Machines, tmp_path: Path
) -> None:
    (tmp_path / "params").write_text("a file where the folder should be")
    with pytest.raises(ParameterError, match="can be written into params/"):
        firstuse.file_of([machines.add(LLAMA).url])
