"""One model over several workers: what the wire carries is counted, and the law is found again."""

from __future__ import annotations

import http.server
import signal
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from poclib import points, report
from poclib.engines import llama, sharded
from poclib.engines.link import Count, EmulatedLink
from poclib.engines.pool import engine_pool
from poclib.errors import EngineError, ParameterError, ReportError
from poclib.measure import wire as measuring
from poclib.parameters import Link, Parameters, ProviderSettings
from poclib.points import Case, Point, Wire
from poclib.reading import wire as reading
from poclib.records import Request, RequestMarks
from poclib.showing import wire as showing

HOPS, BYTES = 2, 200_000
EXAMPLES = sorted((report.root() / "params" / "wire").glob("*.yaml"))
ABOUT: dict[str, Any] = {
    "created": "2026-01-02T03:04:05+00:00",
    "engine": "an engine",
    "model": "a model",
}
ABOUT |= {"layers": 30, "environment": {"cores": 2}}


# ---- The link ----------------------------------------------------------------------------------


def answering(listener: socket.socket, sizes: list[tuple[int, int]]) -> None:
    """Takes one connection: for each pair reads so many bytes, then sends so many."""
    with listener.accept()[0] as served:
        for question, answer in sizes:
            while question:
                question -= len(served.recv(question))
            served.sendall(bytes(answer))


def test_a_link_counts_questions_with_their_answers_and_bytes_each_way() -> None:
    exchanges = [(10, 3), (5, 1000), (1, 1)]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=answering, args=(listener, exchanges), daemon=True).start()
        link = EmulatedLink([listener.getsockname()], round_trip_ms=1)
        with socket.create_connection(("127.0.0.1", link.ports[0]), 10) as asked:
            for question, answer in exchanges:
                asked.sendall(bytes(question))
                while answer:
                    answer -= len(asked.recv(answer))
    (count,) = link.counts
    assert count.hops == 3 and count.bytes == (16, 1004)


def test_a_question_in_parts_is_one_and_its_target_was_busy_from_its_end_on() -> None:
    count = Count()
    for way, size, now_s in [(0, 5, 1.0), (0, 5, 2.0), (1, 7, 2.5), (1, 7, 9.0), (0, 1, 10.0)]:
        count.add(way, size, now_s)
    assert (count.hops, count.bytes, count.busy_s) == (1, (11, 14), 0.5)


# ---- Workers that are none ---------------------------------------------------------------------


@pytest.fixture
def web_server() -> Iterator[int]:
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


def test_a_port_that_is_no_worker_is_told_soon(
    web_server: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharded, "_ANSWER_S", 0.2)
    with pytest.raises(EngineError, match="worker 1 is no ggml-rpc-server"):
        sharded._asked("worker 1", ("127.0.0.1", web_server))


def test_a_worker_that_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharded, "_ANSWER_S", 0.05)
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        pytest.raises(EngineError, match="works for another coordinator"),
    ):
        sharded._asked("worker 1", silent.getsockname())


def test_a_worker_that_does_not_run_is_told_so() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(EngineError, match="worker 2 does not run there"):
        sharded._asked("worker 2", ("127.0.0.1", port))


@pytest.mark.parametrize("word", ["8.8.8.8:50052", "no-port", "127.0.0.1:", ":::x"])
def test_only_private_addresses_with_a_port_are_workers(word: str) -> None:
    with pytest.raises(ParameterError, match="provider p"):
        sharded.address("provider p", word)


def test_a_slow_or_small_worker_gets_fewer_layers() -> None:
    assert sharded.by_speed([1.0, 1.0], [9.0, 9.0]) == pytest.approx([0.5, 0.5])
    assert sharded.by_speed([1.0, 3.0], [9.0, 9.0]) == pytest.approx([0.75, 0.25])
    assert sharded.by_speed([1.0, 3.0], [0.4, 9.0]) == pytest.approx([0.4, 0.25])


def test_the_number_of_layers_stands_in_the_model(tmp_path: Path) -> None:
    model = tmp_path / "m.gguf"
    model.write_bytes(b"GGUF..llama.block_count" + struct.pack("<II", 4, 30) + b"more")
    assert sharded.layers(model) == 30
    model.write_bytes(b"GGUF")
    with pytest.raises(EngineError, match="no number of layers"):
        sharded.layers(model)


# ---- Parameters --------------------------------------------------------------------------------


def test_a_persons_workers_are_never_saved() -> None:
    shard = {"workers": 2, "at": ["10.0.0.5:1", "10.0.0.6:1"]}
    wanted = Parameters.read({"providers": [{"name": "s", "kind": "sharded", "shard": shard}]})
    assert "10.0.0" not in wanted.model_dump_json()


@pytest.mark.parametrize(
    "values",
    [
        {"kind": "sharded"},
        {"kind": "embedded", "shard": {}},
        {"kind": "sharded", "shard": {"workers": 2, "split": [1]}},
        {"kind": "sharded", "shard": {"at": ["10.0.0.5:1"]}},
        {"kind": "sharded", "shard": {}, "speed": 0.5},
        {"kind": "sharded", "shard": {}, "url": "http://127.0.0.1:1"},
    ],
)
def test_what_no_shard_can_be_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ParameterError):
        Parameters.read({"providers": [{"name": "s", **values}]})


@pytest.mark.parametrize(
    "path", sorted((report.root() / "params" / "wire").glob("*.yaml")), ids=str
)
def test_every_case_of_the_examples_can_be_asked_for(path: Path) -> None:
    for case in measuring.cases(path, ["127.0.0.1:50052"] if path.stem == "own" else ()):
        assert measuring._settings(case).shard
        Link.model_validate({key: getattr(case, key) for key in Link.model_fields})


def test_a_grid_is_every_combination_of_it(tmp_path: Path) -> None:
    file = tmp_path / "cases.yaml"
    file.write_text(
        "- {study: s, cases: [{name: a}, {name: b}], grid: {round_trip_ms: [0, 5], tokens: [8]}}\n"
    )
    got = [(case.name, case.round_trip_ms, case.tokens) for case in measuring.cases(file)]
    assert got == [("a", 0, 8), ("a", 5, 8), ("b", 0, 8), ("b", 5, 8)]
    file.write_text("- {study: s, round_trip: 5}\n")
    with pytest.raises(ParameterError, match=r"cases\.yaml.*round_trip"):
        measuring.cases(file)


# ---- The file ----------------------------------------------------------------------------------


def point(case: Case, token_ms: float, first_ms: float = 100.0) -> Point:
    """Of answers whose every token came after exactly `token_ms`, on a wire as `HOPS` says."""
    times = [first_ms + i * token_ms for i in range(case.tokens)]
    marks = RequestMarks(start_ms=0, first_token_ms=first_ms, end_ms=times[-1])
    row = Request(prompt=0, provider="p", marks=marks, token_ms=times, output_tokens=case.tokens)
    hops = HOPS // 2 * int(case.shard.get("workers", 1))
    first = 7, 50, 60
    later = hops * (case.tokens - 1), 0, BYTES * (case.tokens - 1)
    passed = first[0] + later[0], first[1] + later[1], first[2] + later[2]
    rows = [row] * case.in_flight
    return Point(case=case, requests=rows, passed=passed, passed_first=first)


def lawful(noise: float = 0.0) -> Wire:
    """A wire test whose tokens take 10 ms, 3 a stage, 1 round trip a hop, and `noise` of that."""
    found, sign = [], 1
    for workers, split in ((1, None), (2, [1.0, 1.0]), (2, [1.0, 2.0]), (4, [1.0] * 4)):
        for trip_ms in (0.0, 10.0, 50.0, 100.0):
            shard = {"workers": workers} | ({"split": split} if split else {})
            case = Case(study="law", shard=shard, round_trip_ms=trip_ms)
            sign = -sign
            took_ms = (10 + 3 * workers + workers * trip_ms) * (1 + sign * noise)
            found.append(point(case, took_ms))
    return Wire(ABOUT, found)


def test_points_are_read_as_they_were_written_and_a_torn_line_is_measured_again(
    tmp_path: Path,
) -> None:
    path, wire = tmp_path / "wire.jsonl", lawful()
    points.append(path, points.FORMAT | ABOUT)
    for each in wire.points:
        points.append(path, each)
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])  # as a kill would
    assert points.load(path).points == wire.points[:-1]
    points.append(path, wire.points[-1])
    assert points.load(path) == wire and path.read_bytes() == whole


@pytest.mark.parametrize("text", ["", "{}\n", '{"format":"poclib-wire","version":2}\n', "x\n"])
def test_what_is_no_wire_test_is_one_sentence(tmp_path: Path, text: str) -> None:
    path = tmp_path / "wire.jsonl"
    path.write_text(text)
    with pytest.raises(ReportError, match="no wire test"):
        points.load(path)


# ---- Reading -----------------------------------------------------------------------------------


def test_the_law_is_found_again_in_times_that_follow_it() -> None:
    rows = reading.lawful(reading.cases(lawful()))
    law = reading.fit(rows)
    assert (law.compute_ms, law.stage_ms, law.slope) == pytest.approx((10, 3, 1))
    assert law.r2 == pytest.approx(1) and law.n == 16
    for by in ("round_trip_ms", "split"):
        assert reading.left_out(rows, by)["farthest"].abs().max() < 1e-9
    split = reading.by_split(rows)
    assert list(split["hops"]) == [1, 2, 2, 4]
    assert list(split["fitted"]) == pytest.approx([1, 2, 2, 4])


def test_a_law_that_does_not_hold_says_so() -> None:
    rows = reading.lawful(reading.cases(lawful(noise=0.3)))
    assert reading.fit(rows).r2 < 0.99
    assert reading.left_out(rows, "split")["farthest"].abs().max() > 0.1


def test_bytes_cost_their_time_at_the_bandwidth_and_nothing_without_an_end() -> None:
    shard = {"workers": 2, "split": [1.0, 1.0]}
    narrow = Case(study="b", shard=shard, bandwidth_mbit_s=10.0)
    found = reading.cases(Wire(ABOUT, [point(narrow, 1.0), point(Case(study="b"), 1.0)]))
    assert list(reading.bytes_ms(found)) == pytest.approx([BYTES * 8 / 10e6 * 1000, 0])


def test_repeats_are_one_case_and_sequences_together_have_one_rate() -> None:
    case = Case(study="law", in_flight=2, tokens=11)
    found = reading.cases(Wire(ABOUT, [point(case, 10.0), point(case, 30.0)]))
    (row,) = found.to_dict("records")
    assert row["token_ms"] == 20 and row["ttft_ms"] == 100
    assert (row["low"], row["high"]) == pytest.approx((22 / 0.4, 22 / 0.2))
    assert row["rate"] == pytest.approx((22 / 0.4 + 22 / 0.2) / 2)


def test_what_is_said_and_drawn_is_what_was_measured() -> None:
    from matplotlib import pyplot as plt

    wire = lawful()
    found = reading.cases(wire)
    text = showing.finding(wire)
    assert "63 tokens a second side by side, 8.6 at a round trip of 50 ms" in text
    assert "waits for 2.0 of them" in text and "100.0 % of the variance" in text
    assert list(showing.predictions(found)["token_ms"]) == pytest.approx([17, 26, 36, 96, 196])
    figure, ax = plt.subplots()
    showing.law(ax, wire)
    assert showing.title(found) in str(ax.get_label())
    plt.close(figure)


def test_a_problem_is_told_beside_what_went_well() -> None:
    alone = Point(case=Case(study="memory", shard={"workers": 1}), problem="it did not fit")
    both = point(Case(study="memory", shard={"workers": 2}, tokens=11), 10.0)
    found = reading.cases(Wire(ABOUT, [alone, both]))
    told = showing.rows_of(found, "workers rate problem")
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in told.splitlines()]
    assert cells[0] == ["workers", "tokens a second", "problem"]
    assert cells[2:] == [["1", "-", "it did not fit"], ["2", "55", "-"]]


def test_too_few_cases_are_no_law() -> None:
    with pytest.raises(ReportError, match="two distances"):
        showing.finding(Wire(ABOUT, [point(Case(study="law"), 10.0)]))


# ---- Real engines ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sharing() -> str:
    """The label of an engine that shares a model here."""
    try:
        return measuring.sharing_engine()
    except EngineError:
        pytest.skip("no engine here shares a model: ./run-poc.sh wire gets one")


@pytest.mark.slow
def test_a_token_takes_as_many_hops_as_there_are_stages_and_at_least_their_round_trips(
    sharing: str, tmp_path: Path
) -> None:
    shard = {"workers": 2, "split": [1.0, 1.0]}
    wanted = [Case(study="s", shard=shard, round_trip_ms=ms, tokens=6) for ms in (0.0, 40.0)]
    wire = measuring.measure(tmp_path / "wire.jsonl", wanted)
    found = reading.cases(wire)
    assert list(found["hops"].round(3)) == [2, 2]
    assert found["token_ms"].iloc[1] >= 80 and wire.about["engine"] == sharing
    assert measuring.measure(tmp_path / "wire.jsonl", wanted) == wire, "nothing is measured twice"


@pytest.mark.slow
def test_what_no_worker_can_hold_two_can(sharing: str, tmp_path: Path) -> None:
    size = llama.find_model().stat().st_size // 2**20
    shards = [{"workers": 1}, {"workers": 2, "split": [1.0, 1.0]}]
    wanted = [
        Case(study="memory", shard=shard | {"worker_memory_mib": size - 3}, tokens=4)
        for shard in shards
    ]
    alone, both = measuring.measure(tmp_path / "wire.jsonl", wanted).points
    assert "not enough memory" in str(alone.problem)
    assert both.problem is None and both.requests[0].output_tokens == 4


@pytest.mark.slow
def test_a_worker_that_dies_ends_the_measurement_in_one_sentence_and_loses_no_point(
    sharing: str, tmp_path: Path
) -> None:
    import psutil

    wanted = [Case(study="s", shard={"workers": 2, "split": [1.0, 1.0]}, tokens=4)]
    wanted.append(wanted[0].model_copy({"tokens": 500, "round_trip_ms": 50.0}))
    path = tmp_path / "wire.jsonl"

    def kill(stage: str, done: int, total: int) -> None:
        """Once the long case is under way; a thread, since the measurement goes on."""
        threading.Timer(1.5, lambda: workers()[0].send_signal(signal.SIGKILL)).start()

    def workers() -> list[psutil.Process]:
        below = psutil.Process().children(recursive=True)
        return [each for each in below if "rpc-server" in each.name()]

    with pytest.raises(EngineError, match=r"worker 1 ended by SIGKILL") as ended:
        measuring.measure(path, wanted, progress=kill)
    assert str(ended.value).count("\n") == 0
    assert len(points.load(path).points) == 1
    assert workers() == []


@pytest.mark.slow
def test_a_worker_of_another_build_is_told(sharing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker of a person's own that says hello in another version of the protocol."""

    def other(listener: socket.socket) -> None:
        with listener.accept()[0] as served:
            for size, answer in ((33, bytes([1, 2, 3]) + bytes(25)), *[(13, bytes(16))] * 3):
                while size:
                    size -= len(served.recv(size))
                served.sendall(struct.pack("<Q", len(answer)) + answer)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=other, args=(listener,), daemon=True).start()
        shard = {"workers": 1, "at": [f"127.0.0.1:{listener.getsockname()[1]}"]}
        settings = {"name": "s", "kind": "sharded", "shard": shard}
        with (
            pytest.raises(EngineError, match=r"speaks protocol 1\.2\.3"),
            engine_pool([ProviderSettings.model_validate(settings)], 256, sharing),
        ):
            pass


def test_the_committed_wire_test_keeps_the_promises() -> None:
    wire = points.load(report.root() / "data" / "reports" / "wire" / "wire.jsonl")
    found = reading.cases(wire)
    law, rows = showing.law_of(found)
    assert law.r2 >= 0.95 and rows["round_trip_ms"].max() == 100
    for by in ("round_trip_ms", "split"):
        assert reading.left_out(rows, by)["mean"].abs().max() <= 10, "per cent"
    won = found[found["study"] == "wins back"].set_index("name")["token_ms"]
    # Tokens of all sequences together, once they are under way.
    assert 8 / won["8 sequences"] >= 4 / won[showing.BASE]
    assert all(row.answer is None for point in wire.points for row in point.requests)
