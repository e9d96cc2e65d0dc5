"""From the addresses of servers to a file of parameters, asking what only a person knows."""

import asyncio
import contextlib
import itertools
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from . import parameters, report
from .errors import ParameterError, PocError
from .providers import discover
from .providers.discover import Found
from .showing.format import listed, milliseconds, safe

# Loopback's best round trip is shorter on a busy machine too; a longer one is a tunnel's.
LOOPBACK_MS = 1.0
NAME = "my-pool"
FILE = """\
# The servers found at the addresses that were given to ./run-poc.sh. Edit it as you like, then
#   ./run-poc.sh doctor params/{name}.yaml     who answers, how fast, what to expect
#   ./run-poc.sh params/{name}.yaml            measure every strategy
# params/two-machines.yaml explains more settings. Git leaves this file out: it has addresses.

experiment: {name}
rounds: 5
prompts: 8
max_tokens: 40
{allowed}
providers:
{providers}"""


def file_of(words: Sequence[str], models: Sequence[str] = (), public: bool = False) -> Path:
    """The file of parameters for the servers at `words`, an old or a new one.

    `models`: one for all, or one for each. Raises `ParameterError` once all problems are told.
    """
    looked = asyncio.run(discover.look(words, public))
    servers = [one for one in looked if isinstance(one, Found)]
    for one in servers:
        has = one.models[0] if len(one.models) == 1 else f"{len(one.models)} models"
        click.echo(safe(f"{one.url}: {one.server}, {has}"), err=True)
    urls = Counter(one.url for one in servers)
    problems = [one for one in looked if isinstance(one, str)]
    problems += [f"{url} was given twice." for url, count in urls.items() if count > 1]
    chosen, problems = ([], problems) if problems else _chosen(servers, models)
    if len(problems) > 1:
        click.echo("\n".join(f"  {safe(problem)}" for problem in problems), err=True)
        problems = [f"{len(problems)} problems, each with what to do, stand above."]
    if problems:
        raise ParameterError(problems[0])
    wanted = [
        {"url": server.url, "kind": server.kind} | ({"model": model} if model else {})
        for server, model in zip(servers, chosen, strict=True)
    ]
    folder = report.root() / "params"
    there = (path for path in sorted(folder.glob(f"{NAME}*.yaml")) if _has(path, wanted))
    try:
        path = next(there, None) or _written(folder, servers, wanted)
    except OSError as error:
        raise ParameterError(f"no file can be written into params/: {error.strerror}.") from None
    model = f"Model: {listed(chosen)}. " if any(chosen) else ""
    click.echo(f"{model}The next time: ./run-poc.sh params/{path.name}\n", err=True)
    return path


def _chosen(servers: Sequence[Found], given: Sequence[str]) -> tuple[list[str | None], list[str]]:
    """The model of each server by its name there, and what keeps any from having one."""
    have = [{_key(name): name for name in server.models} for server in servers]
    choosing = [names for names, one in zip(have, servers, strict=True) if not one.any_model]
    if not given and choosing:
        common = [key for key in choosing[0] if all(key in names for names in choosing)]
        if len(common) > 1 and not sys.stdin.isatty():
            return [], [f"all have several models; choose one: --model {' or '.join(common[:9])}"]
        if len(common) > 1:
            common = [click.prompt("Which model", common[0], type=click.Choice(common), err=True)]
        # Else what most have; one of Ollama's if there are any, as these can be fetched.
        ollamas = [server for server in servers if server.kind == "ollama"]
        held = Counter(_key(name) for server in ollamas or servers for name in server.models)
        given = common or [name for name, _ in held.most_common(1)] or ["llama3.2:1b"]
    if len(given) not in (0, 1, len(servers)):
        return [], ["give --model once for all addresses, or once for each, in their order."]
    asked = [None] * len(servers) if not given else [*given] * (len(servers) // len(given))
    chosen, problems = list[str | None](), []
    for server, names, name in zip(servers, have, asked, strict=True):
        chosen.append(None if server.any_model else names.get(_key(name or "")))
        if not server.any_model and not chosen[-1]:
            cure = f"has: {', '.join(server.models[:9]) or 'none'}; start it with that one, or give"
            cure += " each address its own name of it, --model A --model B"
            cure = f"needs: ollama pull {name}" if server.kind == "ollama" else cure
            problems.append(f"{server.word} has no model {name}; that machine {cure}")
    return chosen, problems


def _key(name: str) -> str:
    """Equal for what is one model's name at several servers."""
    return name.lower().removesuffix(":latest")


def _role(server: Found) -> str:
    """local or remote; what answers at this machine's own address may be a tunnel."""
    if not server.own or server.round_trip_ms <= LOOPBACK_MS:
        return "local" if server.own else "remote"
    far = f"{server.word} is {milliseconds(server.round_trip_ms)} away, too far for this machine"
    if sys.stdin.isatty():
        tunnel = click.confirm(f"{safe(far)}. Is it a tunnel to another?", True, err=True)
        return "remote" if tunnel else "local"
    click.echo(f"{safe(far)}: taken as a tunnel to another (role: remote).", err=True)
    return "remote"


def _written(folder: Path, servers: Sequence[Found], wanted: Sequence[dict[str, Any]]) -> Path:
    roles, lines, public = [_role(server) for server in servers], "", []
    for number, (role, server) in enumerate(zip(roles, servers, strict=True)):
        # By what they are, never by where: names are in every report.
        name = f"{role}-{roles[:number].count(role) + 1}" if roles.count(role) > 1 else role
        public += [name] if server.public else []
        values = {"name": name, "role": role} | wanted[number]
        pairs = [f"{key}: {json.dumps(value)}" for key, value in values.items()]
        lines += "  - " + "\n    ".join(pairs) + "\n"
    allowed = f"allow_public: {json.dumps(public)}\n" if public else ""
    folder.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        path = folder / f"{NAME}{'' if number == 1 else f'-{number}'}.yaml"
        with contextlib.suppress(FileExistsError), path.open("x", encoding="utf-8") as file:
            file.write(FILE.format(name=path.stem, allowed=allowed, providers=lines))
            break
    return path


def _has(path: Path, wanted: Sequence[dict[str, Any]]) -> bool:
    """Whether a file of parameters has these servers, whatever else was changed in it."""
    with contextlib.suppress(OSError, ValueError, PocError, AttributeError, TypeError, KeyError):
        there = parameters.values(path.read_text("utf-8"), path.name)["providers"]
        return all(one.items() <= has.items() for has, one in zip(there, wanted, strict=True))
    return False
