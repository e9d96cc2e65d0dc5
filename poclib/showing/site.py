"""The site: an index and one page a notebook, from executed notebooks; it works in any folder.

Runs nothing. Pages load nothing from elsewhere and hold no script; every figure lies beside its
page as SVG and PNG. Whatever a notebook holds is scrubbed (`publish`) and cleaned first.
"""

from __future__ import annotations

import re
import shutil
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape as e
from pathlib import Path
from typing import Any

import bleach
import nbformat
from nbconvert import HTMLExporter
from nbconvert.preprocessors import ExtractOutputPreprocessor
from pygments.formatters import HtmlFormatter

from .. import recording, report
from ..errors import ReportError
from . import notebooks as publish

TAGS = {
    *("a", "b", "blockquote", "br", "code", "dd", "del", "div", "dl", "dt", "em", "hr", "i", "li"),
    *("h1", "h2", "h3", "h4", "h5", "h6", "ol", "p", "pre", "s", "span", "strong", "sub", "sup"),
    *("table", "tbody", "td", "th", "thead", "tr", "ul"),
}
ATTRIBUTES = {"*": ["class", "id", "title"], "a": ["href"], "td": ["align"], "th": ["align"]}
SVG, XLINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}"
NOT_DRAWN = {f"{SVG}{name}" for name in ("script", "foreignObject", "metadata", "a")}
OWN = ("#", "data:image/png;base64,")  # what an SVG may refer to
# Nothing is asked of any other place, whatever a notebook holds.
POLICY = "default-src 'none'; img-src 'self' file: data:; style-src 'unsafe-inline'"

# Pictures stand as files beside the page; all else is as nbconvert's plainest template has it.
TEMPLATE = r"""
{%- extends 'basic/index.html.j2' -%}
{%- macro picture(output) -%}
{%- set files = output.metadata.get('filenames', {}) -%}
{%- set svg, png = files.get('image/svg+xml'), files.get('image/png') -%}
{%- set said = (output | get_metadata('alt', 'image/png')) or 'A chart' -%}
<figure><img src="{{ (svg or png) | posix_path | escape_html }}" alt="{{ said | escape_html }}">
<figcaption>
{%- if svg %}<a href="{{ svg | posix_path | escape_html }}" download>SVG</a> {% endif -%}
{%- if png %}<a href="{{ png | posix_path | escape_html }}" download>PNG</a>{% endif -%}
</figcaption></figure>
{%- endmacro -%}
{%- block input_group -%}
{%- set name = 'Parameters' if 'parameters' in cell.metadata.get('tags', []) else 'Code' -%}
{%- if name == 'Parameters' or cell.source.count('\n') > 3 -%}
<details><summary>{{ name }}</summary>{{ super() }}</details>
{%- else -%}{{ super() }}{%- endif -%}
{%- endblock -%}
{%- block data_svg -%}{{ picture(output) }}{%- endblock -%}
{%- block data_png -%}{{ picture(output) }}{%- endblock -%}
"""

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; --page: #fff; --ink: #1c1c1c; }
@media (prefers-color-scheme: dark) { :root { --page: #16181b; --ink: #e6e6e6; } }
* { box-sizing: border-box; }
body { font: 1rem/1.55 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem;
  background: var(--page); color: var(--ink); overflow-wrap: break-word; }
a { color: #0b62b0; } @media (prefers-color-scheme: dark) { a { color: #7ab8ff; } }
nav { display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; margin-bottom: 1.5rem; }
h1 { font-size: 1.6rem; line-height: 1.25; } h2 { font-size: 1.2rem; margin-top: 2rem; }
figure { margin: 1rem 0; } figcaption { font-size: .8rem; }
figure img { max-width: 100%; height: auto; background: #fff; border-radius: 4px; display: block; }
pre { overflow-x: auto; padding: .6rem .8rem; background: var(--soft); font-size: .85rem; }
summary { cursor: pointer; font-size: .85rem; opacity: .8; }
code { font-size: .9em; overflow-wrap: anywhere; } pre code { overflow-wrap: normal; }
table { border-collapse: collapse; font-size: .9rem; display: block; overflow-x: auto; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: left; }
td { font-variant-numeric: tabular-nums; } td:first-child { white-space: nowrap; }
.index td:nth-child(n+4) { white-space: nowrap; }
.highlight { background: none; } .input_area pre { border-left: 3px solid var(--line); }
.anchor-link { display: none; }
.PASS { color: #00734d; font-weight: 600; } .FAIL { color: #b3261e; font-weight: 600; }
@media (prefers-color-scheme: dark) { .PASS { color: #5fd3a8; } .FAIL { color: #ff8a80; } }
@media (max-width: 44rem) { /* a phone: a row of the index becomes a card */
  .index thead { display: none; }
  .index, .index tbody, .index tr, .index td { display: block; overflow: visible; }
  .index tr { border-bottom: 1px solid var(--line); padding: .6rem 0; }
  .index td { border: 0; padding: .1rem 0; white-space: normal; }
  .index td::before { content: attr(data-label) ": "; opacity: .7; }
}
@media print {
  nav, figcaption { display: none; } body { max-width: none; padding: 0; font-size: 10pt; }
  pre { white-space: pre-wrap; } table { display: table; } a { color: inherit; }
  figure, tr, pre { break-inside: avoid; } h1, h2, h3 { break-after: avoid; }
}
"""


@dataclass(frozen=True)
class Row:
    """One line of the index: a report, what it found, and the page that shows it, if any.

    `name` is that of its file on the site; `source` where it is loaded from; `page` is relative
    to the site.
    """

    name: str
    date: str
    pool: str
    verdict: str
    ratio: str
    what: str = ""
    page: str = ""
    source: str | Path = ""


def site(
    target: Path,
    groups: Mapping[str, Sequence[Path]],
    rows: Sequence[Row],
    sweeps: Mapping[str, Sequence[Row]] | None = None,
) -> Path:
    """Render executed notebooks without running them; return the page to open.

    `groups` maps a folder of the site to its notebooks: an experiment's, or SWEEP/POINT, whose
    rows are in `sweeps` by sweep. The old site is replaced only when the new one is whole.
    Raises `ReportError` where it cannot be written.
    """
    sweeps = sweeps or {}
    everything = [*rows, *(row for found in sweeps.values() for row in found)]
    data = {row.page: f"reports/{row.name}.jsonl" for row in everything if row.page}
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".site-") as temporary:
            fresh = Path(temporary) / "site"
            fresh.mkdir()
            for group, found in groups.items():
                for notebook in found:
                    place = f"{group}/{notebook.stem}.html"
                    _write_page(notebook, fresh / place, place, data.get(place))
                if result := _result(found):
                    told = publish.clean(result.read_text("utf-8"), publish.secrets({}))
                    (fresh / group / report.RESULT).write_text(told, "utf-8")
            reports = fresh / "reports"
            reports.mkdir()
            for row in everything:
                # Written anew from validated records, never copied: nothing else can ride along.
                loaded = report.load(row.source or row.name)
                text = recording.text(loaded)
                (reports / f"{row.name}.jsonl").write_bytes(text)
            (fresh / "index.html").write_text(_index(groups, rows, sweeps), encoding="utf-8")
            if target.exists():
                shutil.rmtree(target)
            fresh.rename(target)
    except OSError as error:
        raise ReportError(
            f"{target.name}: the site cannot be written ({error.strerror})."
        ) from None
    return target / "index.html"


def page_of(groups: Mapping[str, Sequence[Path]], group: str, strategy: str) -> str:
    """The page of one strategy's notebook in `group`, relative to the site; "" without one."""
    slug = strategy.replace("-", "_")
    stems = (notebook.stem for notebook in groups.get(group, ()))
    return next((f"{group}/{s}.html" for s in stems if s.partition("_")[2] == slug), "")


def _result(notebooks: Sequence[Path]) -> Path | None:
    """The result in words that a run left beside its notebooks."""
    return next((f for n in notebooks if (f := n.with_name(report.RESULT)).is_file()), None)


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
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in NOT_DRAWN or not str(child.tag).startswith(SVG):
                parent.remove(child)
        for key, value in list(parent.attrib.items()):
            asks = key in ("href", f"{XLINK}href") and not value.startswith(OWN)
            if key.lower().startswith("on") or asks or re.search(r"url\(\s*['\"]?[^#'\"]", value):
                del parent.attrib[key]
        if parent.tag == f"{SVG}style" and re.search(r"@import|url\(", parent.text or ""):
            parent.text = ""
    ET.register_namespace("", SVG[1:-1])
    ET.register_namespace("xlink", XLINK[1:-1])
    return ET.tostring(root, encoding="unicode")


def _write_page(notebook: Path, target: Path, place: str, data: str | None) -> None:
    """One notebook as a page, its figures in a folder beside it."""
    executed = publish.scrub(nbformat.read(notebook, as_version=4), publish.secrets({}))
    for cell in executed.cells:
        for output in cell.get("outputs", []):
            shown = output.get("data", {})
            if "image/svg+xml" in shown:
                svg = cleaned_svg("".join(shown.pop("image/svg+xml")))
                shown.update({"image/svg+xml": svg} if svg else {})
            output.get("metadata", {}).pop("filenames", None)
            output.get("metadata", {}).pop("filename", None)
    if computed := next(filter(publish.computed_title, executed.cells), None):
        executed.cells.remove(computed)  # it stands in for the first line
        title, first = publish.computed_title(computed), executed.cells[0]
        first.source = "".join([title, *first.source.partition("\n")[1:]])
    extract = ExtractOutputPreprocessor(
        output_filename_template="figure-{cell_index}-{index}{extension}",
        extract_output_types={"image/png", "image/svg+xml"},
    )
    exporter = HTMLExporter(
        raw_template=TEMPLATE,
        template_name="basic",
        sanitize_html=True,
        filters={"clean_html": cleaned},
        exclude_input_prompt=True,
        exclude_output_prompt=True,
        preprocessors=[extract],
    )
    resources: dict[str, Any] = {"output_files_dir": f"{notebook.stem}_files"}
    body, made = exporter.from_notebook_node(executed, resources)
    target.parent.mkdir(parents=True, exist_ok=True)
    for name, content in made["outputs"].items():
        (target.parent / name).parent.mkdir(exist_ok=True)
        (target.parent / name).write_bytes(content)
    up = "../" * place.count("/")
    links = f"<a href='{up}index.html'>All results</a>"
    if data:
        links += f"<a href='{up}{e(data)}' download>This run's report (JSON lines)</a>"
    text = _wrapped(publish.title(notebook), f"<nav>{links}</nav><main>{body}</main>")
    target.write_text(text, encoding="utf-8")


def _index(
    groups: Mapping[str, Sequence[Path]],
    rows: Sequence[Row],
    sweeps: Mapping[str, Sequence[Row]],
) -> str:
    lists = "".join(
        f"<h2>Pages: {e(group)}</h2><ul>"
        + "".join(
            f"<li><a href='{e(group)}/{e(n.stem)}.html'>{e(publish.title(n))}</a></li>"
            for n in found
        )
        + (
            f"<li><a href='{e(group)}/{report.RESULT}'>All of it as text</a></li>"
            if _result(found)
            else ""
        )
        + "</ul>"
        for group, found in groups.items()
        if "/" not in group
    )
    swept = "".join(
        f"<h2>Sweep: {e(name)}</h2>{_table(found, 'Point')}" for name, found in sweeps.items()
    )
    intro = (
        "<h1>What is gained when prompts are spread over several machines?</h1>"
        "<p>Each ratio is the time of a strategy over the time of the fastest machine alone, "
        "median over rounds with a 95 % interval: below 1 is a gain.</p>"
    )
    table = _table(rows, "Experiment") if rows else "<p>No report is saved yet.</p>"
    return _wrapped("poclib results", f"<main>{intro}{table}{swept}{lists}</main>")


def _table(rows: Sequence[Row], what: str) -> str:
    header = ["Date", what, "Pool", "Ratio to baseline", "Gate", "See"]
    head = "".join(f"<th scope='col'>{e(one)}</th>" for one in header)
    body = ""
    for row in rows:
        page = f"<a href='{e(row.page)}'>page</a> · " if row.page else ""
        cells = [e(row.date), e(row.what or row.name), e(row.pool), e(row.ratio)]
        cells += [f"<span class='{e(row.verdict)}'>{e(row.verdict)}</span>"]
        cells += [f"{page}<a href='reports/{e(row.name)}.jsonl' download>report</a>"]
        body += "<tr>" + "".join(
            f"<td data-label='{e(label)}'>{cell}</td>"
            for label, cell in zip(header, cells, strict=True)
        )
        body += "</tr>"
    return f"<table class='index'><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _wrapped(heading: str, body: str) -> str:
    light = HtmlFormatter(style="default").get_style_defs(".highlight")
    dark = HtmlFormatter(style="monokai").get_style_defs(".highlight")
    code = f"{light}\n@media (prefers-color-scheme: dark) {{ {dark} }}"
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        "<link rel='icon' href='data:,'>"
        f"<title>{e(heading)}</title><style>{code}\n{STYLE}</style></head>"
        f"<body>{body}</body></html>"
    )
