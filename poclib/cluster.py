"""A sweep's points on a Dask cluster, one a task. The files that come of them are the truth.

A point that measures needs a worker with the resource `measure`, one a machine, and its servers for
itself; one that is simulated needs a core.
"""

from __future__ import annotations

import json
import secrets
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from importlib import util
from pathlib import Path
from typing import Any

from . import __version__, recording, report
from .errors import ParameterError, PocError, RunFailed
from .measure import experiment
from .measure.beside import HERE, host
from .measure.sweep import AnyPoint, Point, Simulated
from .workload import texts

MEASURE = "measure"
CONNECT_S = 10


def work(point: AnyPoint, code: str = "") -> bytes:
    """What the file of a point is to hold. On a worker `code` is that of who asks for it."""
    if code and code != report.code():
        raise RunFailed("a worker that joined later has another poclib; update it and go on.")
    if isinstance(point, Simulated):
        from .simulate import point as simulated  # and SimPy, which only these need

        created, result = datetime.now(UTC).isoformat(), simulated(point.scenario)
        told: dict[str, Any] = {"format": report.SIMULATED, "created": created}
        told |= {"poclib": __version__, "scenario": point.scenario, "result": result}
        return json.dumps(told).encode() + b"\n"
    runs = report.root() / "data" / "runs"
    with recording.only_one(runs), tempfile.TemporaryDirectory() as folder:
        experiment.measure(point.parameters, folder=Path(folder))
        return (Path(folder) / point.file).read_bytes()


class Cluster(ExitStack):
    """Workers at `address`: local:N, tcp://… or tls://…, whose keys Dask's configuration names.

    Raises `ParameterError` or `RunFailed` where the cluster is not there, or not what the points
    need.
    """

    def __init__(self, address: str, points: Sequence[AnyPoint]) -> None:
        super().__init__()
        if not util.find_spec("distributed"):
            raise ParameterError("--cluster needs more packages: pip install 'poclib[cluster]'.")
        self.results: dict[str, Any] = {}
        self.measuring = any(isinstance(point, Point) for point in points)
        try:
            self.client = self._opened(address)
            self._check()
        except BaseException:
            self.close()
            raise

    def _opened(self, address: str) -> Any:
        from distributed import Client, LocalCluster

        scheme, _, rest = address.partition(":")
        self.here = scheme == "local"
        place: Any = address
        if scheme == "local" and rest.isdecimal() and 0 < int(rest) <= 1024:
            # On one machine points that measure come one after the other, so one does it.
            count, offer = (1, {MEASURE: 1}) if self.measuring else (int(rest), None)
            given = {"threads_per_worker": 1, "dashboard_address": "127.0.0.1:8787"}
            place = self.enter_context(LocalCluster(n_workers=count, resources=offer, **given))
        elif scheme not in ("tcp", "tls"):
            raise ParameterError(f"--cluster {address}: write local:4, tcp://… or tls://….")
        try:
            return self.enter_context(Client(place, timeout=CONNECT_S, set_as_default=False))
        except (OSError, RuntimeError, TypeError, ValueError) as error:
            raise RunFailed(
                f"--cluster {address}: no scheduler can be used there ({error}); start one, and "
                "for tls:// name its certificates to Dask (docs/cluster.md)."
            ) from None

    def _check(self) -> None:
        """Raise `RunFailed` unless all workers are there, and are what this side is."""
        workers: dict[str, Any] = self.client.scheduler_info(n_workers=-1)["workers"]
        if not workers:
            raise RunFailed("the cluster has no worker; start one: dask worker SCHEDULER.")
        told = self.client.get_versions(packages=["poclib"])
        codes = self.client.run(report.code, on_error="return")
        here = _known(told["client"], report.code()) | {"poclib": __version__}
        for address in workers:
            its = _known(told["workers"][address], codes.get(address))
            if other := [
                f"{what} {its[what]}, here {here[what]}" for what in here if its[what] != here[what]
            ]:
                raise RunFailed(f"the worker at {address} has {other[0]}; give all the same first.")
        if not self.measuring:
            return
        offering = Counter(one["host"] for one in workers.values() if one["resources"].get(MEASURE))
        if not offering:
            raise RunFailed(
                f'no worker may measure; start one a machine with --resources "{MEASURE}=1".'
            )
        if max(offering.values()) > 1:
            raise RunFailed(
                f"{max(offering, key=offering.__getitem__)} has several workers that measure, and "
                "they would disturb each other; start one there: --nworkers 1."
            )

    @property
    def dashboard(self) -> str:
        """Where Dask shows what goes on."""
        link: str = self.client.dashboard_link
        return link if util.find_spec("bokeh") else f"{link} (it needs bokeh beside the scheduler)"

    def ended(self, points: Sequence[AnyPoint]) -> Iterator[AnyPoint]:
        """Each point once its result is here, in the order in which they end.

        What a worker that dies was at is given to another. Points that share what they need, and
        on one machine all that measure, are handed out one after the other: when the one before
        has been seen to, its notebook, too.
        """
        from distributed import as_completed

        waiting, running = list(points), dict[Any, AnyPoint]()
        queue = as_completed(loop=self.client.loop)
        while waiting or running:
            busy = set[str]().union(*map(self._needs, running.values()))
            given, waiting = waiting, []
            for point in given:
                if busy & (needs := self._needs(point)):
                    waiting.append(point)
                    continue
                busy |= needs
                future = self._submitted(point)
                running[future] = point
                queue.add(future)
            future = next(queue)
            point = running.pop(future)
            self.results[point.name] = future
            yield point

    def _needs(self, point: AnyPoint) -> set[str]:
        """What no other point may use meanwhile: this machine, or those whose servers are asked."""
        if isinstance(point, Simulated):
            return set()
        urls = [one.url for one in point.parameters.providers if one.url]
        return {host(url) or url for url in urls} | ({HERE} if self.here else set())

    def _submitted(self, point: AnyPoint) -> Any:
        key, offer = f"{point.sweep}-{point.name}-{secrets.token_hex(4)}", None
        if isinstance(point, Point):
            p, offer = point.parameters, {MEASURE: 1}  # a file of prompts is here, not there
            prompts = p.prompts if isinstance(p.prompts, int) else texts(p.prompts)
            point = replace(point, parameters=p.model_copy(update={"prompts": prompts}))
        return self.client.submit(work, point, report.code(), key=key, resources=offer)

    def result(self, point: AnyPoint) -> bytes:
        """What a point that has ended gave. Raises its error."""
        from distributed import KilledWorker

        try:
            return bytes(self.results.pop(point.name).result())
        except PocError:
            raise
        except KilledWorker:
            raise RunFailed(f"{point.name}: every worker that tried it died.") from None
        except Exception as error:
            told = f"{type(error).__name__} on its worker: {error}"
            raise RunFailed(f"{point.name}: {told}") from None


def _known(told: Any, code: object) -> dict[str, str]:
    """What of Python and poclib must be the same on every side."""
    python = ".".join(str(told["host"]["python"]).split(".")[:2])
    packages = told["packages"]
    return {"python": python, "poclib": str(packages.get("poclib")), "source": str(code)[:8]}
