"""The site: an index and one page a notebook, from executed notebooks; it works in any folder.

Runs nothing. Pages load nothing from elsewhere and hold no script; every figure lies beside its
page as SVG and PNG. Whatever a notebook holds is scrubbed (`notebooks`) and cleaned first.
"""

from __future__ import annotations

import re
import shutil
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import bleach
import nbformat
from jinja2 import Environment, FileSystemLoader
from nbconvert import HTMLExporter
from nbconvert.preprocessors import ExtractOutputPreprocessor
from pygments.formatters import HtmlFormatter

from .. import recording, report
from ..records import Report
from . import notebooks as publish

TAGS = {
    *("a", "b", "blockquote", "br", "code", "dd", "del", "div", "dl", "dt", "em", "hr", "i", "li"),
    *("h1", "h2", "h3", "h4", "h5", "h6", "ol", "p", "pre", "s", "span", "strong", "sub", "sup"),
    *("details", "summary", "table", "tbody", "td", "th", "thead", "tr", "ul"),
}
ATTRIBUTES = {"*": ["class", "id", "title"], "a": ["href"], "td": ["align"], "th": ["align"]}
SVG, XLINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}"
NOT_DRAWN = {f"{SVG}{name}" for name in ("script", "foreignObject", "metadata", "a")}
OWN = ("#", "data:image/png;base64,")  # what an SVG may refer to
LINK = r'href="([\w.-]+)\.ipynb"'  # from one notebook to another beside it
FOLDER = Path(__file__).with_name("templates")
TEMPLATES = Environment(loader=FileSystemLoader(FOLDER), autoescape=True)


@dataclass(frozen=True)
class Row:
    """One line of the index: a saved report, by `name`, and the page that shows it, if any.

    `page` is relative to the site. A point of a sweep has the sweep's name, and `what` it is.
    """

    report: Report
    name: str
    date: str
    pool: str
    ratio: str
    verdict: str
    page: str = ""
    sweep: str = ""
    what: str = ""


def site(target: Path, groups: Mapping[str, Sequence[Path]], rows: Sequence[Row]) -> Path:
    """Render executed notebooks without running them; return the page to open.

    `groups` maps a folder of the site to its notebooks: an experiment's, or SWEEP/POINT. The old
    site is replaced only when the new one is whole. Raises `ReportError` where it cannot be
    written.
    """
    data = {row.page: f"reports/{row.name}.jsonl" for row in rows}
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
                    _write_page(notebook, fresh, place, listed, data.get(place))
                results = (one.with_name(report.RESULT) for one in notebooks)
                if result := next(filter(Path.is_file, results), None):
                    listed[f"{group}/{report.RESULT}"] = "All of it as text"
                    text = publish.clean(result.read_text("utf-8"), publish.secrets())
                    (fresh / group / report.RESULT).write_text(text, "utf-8")
                if "/" not in group:
                    lists[group] = listed
            for row in rows:
                # Written anew from validated records, never copied: nothing else can ride along.
                (fresh / "reports" / f"{row.name}.jsonl").write_bytes(recording.text(row.report))
            index = _rendered("index", title="poclib results", rows=rows, lists=lists)
            (fresh / "index.html").write_text(index, encoding="utf-8")
            if target.exists():
                shutil.rmtree(target)
            fresh.rename(target)
    return target / "index.html"


def page_of(groups: Mapping[str, Sequence[Path]], group: str, strategy: str) -> str:
    """The page of one strategy's notebook in `group`, relative to the site; "" without one."""
    slug = strategy.replace("-", "_")
    stems = (notebook.stem for notebook in groups.get(group, ()))
    return next((f"{group}/{s}.html" for s in stems if s.partition("_")[2] == slug), "")


def cleaned(element: object) -> str:
    """HTML from a notebook with only what a page needs: text, tables, code; no script."""
    return bleach.clean(
        str(element), tags=TAGS, attributes=ATTRIBUTES, protocols={"http", "https"}, strip=True
    )


def cleaned_svg(text: str) -> str | None:
    """An SVG with only what is drawn: nothing that runs, nothing that asks for anything.

    None where it cannot be read, or defines entities, which no chart of ours does.
    """
    if "<!ENTITY" in text:
        return None
    try:
        root = ET.fromstring(text)
    except ET.ParseError:
        return None
    for element in list(root.iter()):
        for child in list(element):
            if child.tag in NOT_DRAWN or not str(child.tag).startswith(SVG):
                element.remove(child)
        for key, value in list(element.attrib.items()):
            asks = key in ("href", f"{XLINK}href") and not value.startswith(OWN)
            if key.lower().startswith("on") or asks or re.search(r"url\(\s*['\"]?[^#'\"]", value):
                del element.attrib[key]
        if element.tag == f"{SVG}style" and re.search(r"@import|url\(", element.text or ""):
            element.text = ""
    ET.register_namespace("", SVG[1:-1])
    ET.register_namespace("xlink", XLINK[1:-1])
    return ET.tostring(root, encoding="unicode")


def _write_page(
    notebook: Path, site: Path, place: str, titles: Mapping[str, str], data: str | None
) -> None:
    """One notebook as the page at `place`, its figures beside it; it links other pages only."""
    executed = publish.scrub(nbformat.read(notebook, as_version=4))
    for output in (output for cell in executed.cells for output in cell.get("outputs", [])):
        shown, about = output.get("data", {}), output.get("metadata", {})
        if svg := cleaned_svg(shown.pop("image/svg+xml", "")):
            shown["image/svg+xml"] = svg
        for name in ("filename", "filenames"):  # which would decide where a figure is written
            about.pop(name, None)
    if computed := next(filter(publish.computed_title, executed.cells), None):
        executed.cells.remove(computed)  # it stands in for the first line
        first = executed.cells[0]
        first.source = "".join([f"# {titles[place]}", *first.source.partition("\n")[1:]])
    resources = {"output_files_dir": f"{notebook.stem}_files"}
    body, made = _exporter().from_notebook_node(executed, resources)
    known = {Path(page).stem for page in titles if Path(page).parent == Path(place).parent}
    body = re.sub(LINK, lambda link: f'href="{link[1]}.html"' * (link[1] in known), body)
    page = _rendered("page", title=titles[place], up="../" * place.count("/"), data=data, body=body)
    files = {**made["outputs"], Path(place).name: page.encode()}
    for name, content in files.items():
        target = (site / place).parent / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)


@cache
def _exporter() -> HTMLExporter:
    """One for all pages: it compiles its templates once, which takes as long as a page."""
    extract = ExtractOutputPreprocessor(
        output_filename_template="figure-{cell_index}-{index}{extension}",
        extract_output_types={"image/png", "image/svg+xml"},
    )
    return HTMLExporter(
        raw_template=(FOLDER / "notebook.html.j2").read_text("utf-8"),
        template_name="basic",
        sanitize_html=True,
        filters={"clean_html": cleaned},
        exclude_input_prompt=True,
        exclude_output_prompt=True,
        preprocessors=[extract],
    )


def _rendered(template: str, **given: Any) -> str:
    light, dark = (
        HtmlFormatter(style=style).get_style_defs(".highlight") for style in ("default", "monokai")
    )
    return TEMPLATES.get_template(f"{template}.html.j2").render(light=light, dark=dark, **given)
