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
from datetime import UTC, datetime
from importlib import import_module, util
from pathlib import Path
from typing import Any

from . import __version__, recording, report
from .errors import ParameterError, PocError, RunFailed
from .measure import experiment
from .measure.beside import host
from .measure.sweep import Point, Simulated
from .workload import texts

MEASURE = "measure"
CONNECT_S = 10


def work(point: Point | Simulated, code: str = "") -> bytes:
    """What the file of a point is to hold. On a worker `code` is that of who asks for it."""
    if code and code != report.code():
        raise RunFailed("a worker that joined later has another poclib; update it and go on.")
    if isinstance(point, Simulated):
        try:
            simulated = import_module("poclib.simulate").point(point.scenario)
        except ImportError:
            raise ParameterError("simulate: this poclib cannot simulate; update it.") from None
        told = {"format": report.SIMULATED, "created": datetime.now(UTC).isoformat()}
        told |= {"poclib": __version__, "scenario": point.scenario, "result": simulated}
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

    def __init__(self, address: str, points: Sequence[Point | Simulated]) -> None:
        super().__init__()
        if not util.find_spec("distributed"):
            raise ParameterError("--cluster needs more packages: pip install 'poclib[cluster]'.")
        from distributed import Client, LocalCluster

        measuring = any(isinstance(point, Point) for point in points)
        self.results: dict[str, Any] = {}
        place: Any = address
        scheme, _, rest = address.partition(":")
        if scheme == "local":
            if not rest.isdecimal() or not 1 <= int(rest) <= 1024:
                raise ParameterError(f"--cluster {address}: write local:4 for four workers.")
            # On one machine points that measure come one after the other, so one does it.
            given: dict[str, Any] = {"n_workers": 1 if measuring else int(rest)}
            given |= {"threads_per_worker": 1, "resources": {MEASURE: 1}}
            place = LocalCluster(**given, dashboard_address="127.0.0.1:8787")
            self.enter_context(place)
        elif scheme not in ("tcp", "tls"):
            raise ParameterError(f"--cluster {address}: write local:4, tcp://… or tls://….")
        try:
            self.client = self.enter_context(Client(place, timeout=CONNECT_S, set_as_default=False))
        except (OSError, TypeError, ValueError) as error:
            raise RunFailed(
                f"--cluster {address}: no scheduler can be used there ({error}); start one, and "
                "for tls:// name its certificates to Dask (docs/cluster.md)."
            ) from None
        try:
            self._check(measuring)
        except BaseException:
            self.close()
            raise

    def _check(self, measuring: bool) -> None:
        """Raise `RunFailed` unless all workers are there, and are what this side is."""
        workers: dict[str, Any] = self.client.scheduler_info(n_workers=-1)["workers"]
        if not workers:
            raise RunFailed("the cluster has no worker; start one: dask worker SCHEDULER.")
        told = self.client.get_versions(packages=["poclib"])
        codes = self.client.run(report.code, on_error="return")
        for address in workers:
            for what, mine, its in (
                ("Python", *(_python(one) for one in (told["client"], told["workers"][address]))),
                ("poclib", __version__, told["workers"][address]["packages"].get("poclib")),
                ("source of poclib", report.code()[:8], str(codes.get(address))[:8]),
            ):
                if mine != its:
                    raise RunFailed(
                        f"worker {workers[address].get('name', '')} at {address} has another "
                        f"{what} ({its or 'none'}, here {mine}); give all the same, then go on."
                    )
        offering = [one["host"] for one in workers.values() if one["resources"].get(MEASURE)]
        if measuring and not offering:
            offer = f'--resources "{MEASURE}=1"'
            raise RunFailed(f"no worker may measure; start one a machine with {offer}.")
        if measuring and (twice := [name for name, n in Counter(offering).items() if n > 1]):
            raise RunFailed(
                f"{twice[0]} has several workers that measure, and would disturb itself; start it "
                f"with one: --nworkers 1."
            )

    @property
    def dashboard(self) -> str:
        """Where Dask shows what goes on."""
        link: str = self.client.dashboard_link
        return link if util.find_spec("bokeh") else f"{link} (it needs bokeh beside the scheduler)"

    def ended(self, points: Sequence[Point | Simulated]) -> Iterator[Point | Simulated]:
        """Each point once its result is here, in the order in which they end.

        What a worker that dies was at is given to another; stopped, all that is under way is left.
        """
        from distributed import as_completed

        waiting, running, busy = list(points), dict[Any, Point | Simulated](), set[str]()
        queue = as_completed()
        try:
            while waiting or running:
                given, waiting = waiting, []
                for point in given:
                    if busy & (servers := _servers(point)):
                        waiting.append(point)
                        continue
                    busy |= servers
                    future = self._submitted(point)
                    running[future] = point
                    queue.add(future)
                future = next(queue)
                point = running.pop(future)
                busy -= _servers(point)
                self.results[point.name] = future
                yield point
        finally:
            self.client.cancel(list(running))

    def _submitted(self, point: Point | Simulated) -> Any:
        needs = None
        if isinstance(point, Point):
            needs, p = {MEASURE: 1}, point.parameters  # a file of prompts is here, not there
            fields = {"prompts": p.prompts if isinstance(p.prompts, int) else texts(p.prompts)}
            point = Point(point.sweep, point.name, point.label, p.model_copy(update=fields))
        key = f"{point.sweep}-{point.name}-{secrets.token_hex(4)}"
        return self.client.submit(work, point, report.code(), key=key, resources=needs)

    def result(self, point: Point | Simulated) -> bytes:
        """What a point that has ended gave. Raises its error."""
        from distributed import KilledWorker

        try:
            return bytes(self.results.pop(point.name).result())
        except PocError:
            raise
        except KilledWorker as error:
            raise RunFailed(f"{point.name}: every worker that tried it died ({error}).") from None
        except Exception as error:
            raise RunFailed(
                f"{point.name}: {type(error).__name__} on its worker: {error}"
            ) from None


def _python(told: Any) -> str:
    return ".".join(str(told["host"]["python"]).split(".")[:2])


def _servers(point: Point | Simulated) -> set[str]:
    """The machines whose servers a point asks, of which no other may ask meanwhile."""
    if isinstance(point, Simulated):
        return set()
    return {host(one.url) or one.url for one in point.parameters.providers if one.url}
