"""The site: a front page, and one page a notebook (`page`), which works in any folder.

Runs nothing. The newest experiment's answer comes first, the samples' only after a person's own.
"""

from __future__ import annotations

import base64
import posixpath
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from math import inf
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from bs4 import BeautifulSoup

from .. import recording, report
from ..errors import ReportError
from . import charts, page, style, words
from . import notebooks as publish
from .documents import Entry

FRONT = "index.html"


class Row(NamedTuple):
    """A saved report, and the page that shows it, if any, relative to the site.

    A point of a sweep has the sweep's name, and `what` it is.
    """

    entry: Entry
    page: str = ""
    sweep: str = ""
    what: str = ""

    @property
    def own(self) -> bool:
        """Whether it was measured by whoever publishes: no sample, and not the published run."""
        made = self.entry.reading.report
        return made.experiment != "sample" and "published" not in made.environment

    @property
    def ratio(self) -> float:
        """What it is sorted by; those without a ratio are last."""
        return self.entry.reading.headline.overhead_ratio.median or inf


def site(target: Path, groups: Mapping[str, Sequence[Path]], rows: Sequence[Row]) -> Path:
    """Render executed notebooks without running them; return the page to open.

    `groups` maps a folder of the site to its notebooks: an experiment's, or SWEEP/POINT. The old
    site is replaced only when the new one is whole. Raises `ReportError` where it cannot be
    written.
    """
    data = {row.page: f"reports/{row.entry.name}.jsonl" for row in rows}
    lists: dict[str, dict[str, str]] = {}
    with report.explained(target.name, "written"):
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".site-") as temporary:
            fresh = Path(temporary) / "site"
            (fresh / "reports").mkdir(parents=True)
            for group, notebooks in groups.items():
                pages = {f"{group}/{one.stem}.html": one for one in notebooks}
                listed = {place: publish.title(one) for place, one in pages.items()}
                for place, notebook in pages.items():
                    page.write(notebook, fresh, place, listed, data.get(place))
                results = (one.with_name(report.RESULT) for one in notebooks)
                if result := next(filter(Path.is_file, results), None):
                    listed[f"{group}/{report.RESULT}"] = "All of it as text"
                    text = publish.clean(result.read_text("utf-8"), publish.secrets())
                    (fresh / group / report.RESULT).write_text(text, "utf-8")
                if "/" not in group:
                    lists[group] = listed
            for row in rows:
                # Written anew from validated records, never copied: nothing else can ride along.
                facts = recording.text(row.entry.reading.report)
                (fresh / "reports" / f"{row.entry.name}.jsonl").write_bytes(facts)
            front = page.rendered("poclib results", _front(fresh, rows, lists))
            (fresh / FRONT).write_text(front, encoding="utf-8")
            if target.exists():
                shutil.rmtree(target)
            fresh.rename(target)
    return target / FRONT


def page_of(groups: Mapping[str, Sequence[Path]], group: str, strategy: str) -> str:
    """The page of one strategy's notebook in `group`, relative to the site; "" without one."""
    slug = strategy.replace("-", "_")
    stems = (notebook.stem for notebook in groups.get(group, ()))
    return next((f"{group}/{s}.html" for s in stems if s.partition("_")[2] == slug), "")


def one_file(site: Path, rows: Sequence[Row], name: str = "") -> tuple[str, str]:
    """A name, and HTML with its pictures in it: a page of `site`, or what an experiment found.

    That is its answer, then its pages folded; without a `name` of the experiment that the front
    page begins with. Raises `ReportError` where there is none.
    """
    pages = sorted(path.relative_to(site).as_posix() for path in site.rglob("*.html"))
    experiments, wanted = _experiments(rows), name.removesuffix(".html")
    places = [one for one in pages if wanted and f"/{one}".endswith(f"/{wanted}.html")]
    if len(places) == 1:
        return Path(wanted).name, page.rendered(wanted, _inside(site, places[0], places))
    name = name or next(iter(experiments), "")
    if not (alike := experiments.get(name)):
        there = ", ".join([*experiments, *(one.removesuffix(".html") for one in pages)])
        raise ReportError(f"{name or 'no report'}: no one page or experiment; there is: {there}.")
    places = [one for one in pages if one.startswith(f"{name}/") and "_result" in one]
    places += [row.page for row in alike if row.page]
    with tempfile.TemporaryDirectory() as temporary:
        front = Path(temporary) / FRONT
        front.write_text(f"<main>{_answer(front.parent, alike)}</main>", "utf-8")
        parts = [_inside(front.parent, FRONT, places)]
    parts += [_inside(site, place, places) for place in places]
    return name, page.rendered(name, "".join(parts))


def _inside(site: Path, place: str, places: Sequence[str]) -> str:
    """A page as a part of a file that holds `places`; folded, where it is one of several."""
    main = BeautifulSoup((site / place).read_text("utf-8"), "html.parser").select("main")[0]
    part = {one: f"part{number}" for number, one in enumerate(places)}
    for figure in main.select("figure"):
        files = [(site / place).parent / unquote(str(a["href"])) for a in figure.select("a")]
        least = min(files, key=lambda path: path.stat().st_size)
        kind = {".svg": "svg+xml"}.get(least.suffix, "png")
        coded = base64.b64encode(least.read_bytes()).decode()
        figure.select("img")[0]["src"] = f"data:image/{kind};base64,{coded}"
        figure.select("figcaption")[0].decompose()
    for marked in main.select("[id]"):
        marked["id"] = f"{part.get(place, 'front')}-{marked['id']}"
    for link in main.select("a[href]"):
        path, _, mark = str(link["href"]).partition("#")
        to = posixpath.normpath(f"{place}/../{path}") if path else place
        if to in part or to == place:
            link["href"] = "-".join(filter(None, (f"#{part.get(to, 'front')}", mark)))
        elif ":" not in path:
            link.decompose() if link.has_attr("download") else link.unwrap()  # it is not here
    if place not in part or len(part) == 1:
        return main.decode_contents()
    title = main.select("h1")[0].extract().get_text().rstrip("¶")
    told = {"title": title, "id": part[place], "opened": "_result" in place}
    return page.text("part", **told, body=main.decode_contents())


def _front(folder: Path, rows: Sequence[Row], lists: Mapping[str, Mapping[str, str]]) -> str:
    """The front page; the picture on it is written into `folder`."""
    experiments, sweeps = _experiments(rows), _grouped(row for row in rows if row.sweep)
    newest = next(iter(experiments), "")
    answer = _answer(folder, experiments.pop(newest)) if newest else ""
    lists = dict(sorted(lists.items(), key=lambda one: (one[0] == "sample", one[0] != newest)))
    told = {"answer": answer, "experiments": experiments, "sweeps": sweeps, "lists": lists}
    body = page.text("index", glossary=words.glossary(), **told)
    return page.linked(publish.clean(body, publish.secrets()), words.GLOSSARY)


def _experiments(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows of each experiment, the best first; a person's own newest experiment first."""
    found = _grouped(row for row in rows if not row.sweep)  # as they come: the newest first
    order = sorted(found, key=lambda name: not found[name][0].own)
    return {name: sorted(found[name], key=lambda row: row.ratio) for name in order}


def _grouped(rows: Iterable[Row]) -> dict[str, list[Row]]:
    found = dict[str, list[Row]]()
    for row in rows:
        found.setdefault(row.sweep or row.entry.reading.report.experiment, []).append(row)
    return found


def _answer(folder: Path, rows: Sequence[Row]) -> str:
    """What an experiment found: its verdict, its picture, written into `folder`, its strategies."""
    import matplotlib
    from matplotlib.figure import Figure

    readings = [row.entry.reading for row in rows]
    with matplotlib.rc_context(style.STYLE):
        figure = Figure(figsize=(8, 2.2 + 0.32 * len(rows)))
        charts.ratios(figure.gca(), [reading.headline for reading in readings])
        svg, about = style.picture("svg", figure)
        (folder / "ratios.svg").write_text(svg, "utf-8")
        (folder / "ratios.png").write_bytes(style.picture("png", figure)[0])
    told = {"answer": words.answer(*readings), "trust": words.trust(readings), **about}
    return page.text("answer", rows=rows, **told)
