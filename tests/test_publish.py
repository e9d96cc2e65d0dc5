"""What leaves through a page or an executed notebook, and what must not."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest

from poclib import report
from poclib.errors import ParameterError, ReportError
from poclib.reading.reading import of
from poclib.showing import notebooks as publish
from poclib.showing import page as one_page
from poclib.showing import site as pages
from poclib.showing import words
from poclib.showing.documents import Entry

ADDRESS = "http://192.168.77.20:11434"
PUBLISHED = report.load("published-phase-0")
ROW = pages.Row(Entry("published-phase-0", of(PUBLISHED)))
output = nbformat.v4.new_output


def saved(
    folder: Path,
    *outputs: nbformat.NotebookNode,
    source: str = "1 + 1",
    name: str = "02_it.ipynb",
) -> Path:
    """A notebook of a title and one executed cell."""
    heading = nbformat.v4.new_markdown_cell("# What is gained?\n\nA definition.")
    code = nbformat.v4.new_code_cell(source, outputs=list(outputs), execution_count=1)
    code.metadata["execution"] = {"iopub.execute_input": "2026"}
    notebook = nbformat.v4.new_notebook(cells=[heading, code])
    notebook.metadata["papermill"] = {"duration": 3}
    nbformat.write(notebook, folder / name)
    return folder / name


def page_of(path: Path, folder: Path) -> str:
    """The page that the site in `folder` makes of one notebook."""
    pages.site(folder / "site", {"g": [path]}, [])
    return (folder / "site" / "g" / f"{path.stem}.html").read_text("utf-8")


SVG = """<?xml version="1.0"?>
<!DOCTYPE svg PUBLIC "-//W3C//DTD SVG 1.1//EN" "http://www.w3.org/Graphics/SVG/1.1/DTD/svg11.dtd">
<svg xmlns:xlink="http://www.w3.org/1999/xlink" xmlns="http://www.w3.org/2000/svg" onload="x()">
<script>x()</script><defs><path id="m" d="M 0 0"/></defs>
<style>@import url(http://10.1.2.3/x.css);</style>
<a xlink:href="http://10.1.2.3/"><text>link</text></a><foreignObject><b>b</b></foreignObject>
<use xlink:href="#m"/><use xlink:href="other.svg#m"/><image href="http://10.1.2.3/i.png"/>
<path clip-path="url(#m)" fill="url(http://10.1.2.3/p)"/><text onclick="x()">PLANTED</text></svg>
"""


def chart(svg: str, alt: str = "A finding.") -> nbformat.NotebookNode:
    data = {"image/png": "iVBORw0KGgo=", "image/svg+xml": svg, "text/plain": "<Figure>"}
    about = {kind: {"alt": alt} for kind in ("image/png", "image/svg+xml")}
    return output("display_data", data, metadata=about)


def test_a_picture_on_the_site_keeps_what_is_drawn_and_nothing_else(tmp_path: Path) -> None:
    picture = chart(SVG)
    picture.metadata["filename"] = "../../escaped.png"
    picture.metadata["filenames"] = {"image/png": "../../escaped.png"}
    page_of(saved(tmp_path, picture), tmp_path)
    assert not list(tmp_path.rglob("escaped*"))
    (file,) = (tmp_path / "site").rglob("*.svg")
    drawn = file.read_text("utf-8")
    assert "PLANTED" in drawn and '"#m"' in drawn and "url(#m)" in drawn
    for word in ("script", "onload", "onclick", "10.1.2.3", "other.svg", "import", "foreign", "<a"):
        assert word not in drawn
    assert file.with_suffix(".png").read_bytes() == b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize("svg", ["<svg", '<!DOCTYPE x [<!ENTITY a "b">]><svg>&a;</svg>', ""])
def test_a_picture_that_cannot_be_read_is_left_out(tmp_path: Path, svg: str) -> None:
    page = page_of(saved(tmp_path, chart(svg)), tmp_path)
    assert not list((tmp_path / "site").rglob("*.svg"))
    assert '<img alt="A finding." src="02_it_files/figure-1-0.png"' in page


def test_secrets_are_gone_from_a_notebook_and_its_page(tmp_path: Path) -> None:
    """From the page of a bare papermill run too, which nobody has scrubbed; and so are times."""
    secrets = [ADDRESS, str(report.root().resolve()), f"{Path.home()}/x"]
    text = " ".join([*secrets, "kept"])
    outputs = [
        output("stream", name="stderr", text="a progress bar"),
        output("stream", name="stdout", text=text),
        output("display_data", {"text/html": f"<b>{text}</b>"}),
        chart(SVG.replace("PLANTED", text), text),
    ]
    path = saved(tmp_path, *outputs, source=f"providers = [dict(url='{text}')]")
    path.with_name(report.RESULT).write_text(f"# Phase 0 result\n{text}\n")
    page_of(path, tmp_path)
    index = (tmp_path / "site" / "index.html").read_text("utf-8")
    assert f'href="g/{report.RESULT}"' in index
    publish.scrub_file(path)
    written = [path, *(file for file in (tmp_path / "site").rglob("*") if file.is_file())]
    assert {file.suffix for file in written} == {".ipynb", ".html", ".svg", ".png", ".md"}
    for file in written:
        left = file.read_bytes().decode(errors="replace")
        traces = [*secrets, "a progress bar", '"papermill"', "iopub"]
        assert not [trace for trace in traces if trace in left], file.name
        assert file.suffix == ".png" or file.name == "index.html" or "kept" in left


def test_a_widget_leaves_no_trace_and_a_link_leads_to_a_page_or_nowhere(tmp_path: Path) -> None:
    """Its state may hold what nobody scrubbed, and no page can bring it to life."""
    widget = {publish.WIDGET: {"model_id": "PLANTED"}, "text/plain": "VBox(PLANTED)"}
    links = "[this](02_it.ipynb) and [that](09_gone.ipynb)"
    outputs = [output("display_data", data) for data in (widget, {"text/markdown": links})]
    path = saved(tmp_path, *outputs)
    notebook = nbformat.read(path, as_version=4)
    notebook.metadata["widgets"] = {"state": "PLANTED"}
    nbformat.write(notebook, path)
    page = page_of(path, tmp_path)
    assert 'href="02_it.html">this<' in page and "that" in page and "ipynb" not in page
    publish.scrub_file(path)
    assert "PLANTED" not in page + path.read_text("utf-8")


def test_a_computed_title_is_the_only_one_and_one_switch_opens_all_code(tmp_path: Path) -> None:
    code = page_of(saved(tmp_path, source="PLANTED = 1"), tmp_path)
    assert "PLANTED" in code and code.count('class="input"') == code.count("type='checkbox'") == 1
    path = saved(tmp_path, output("display_data", {"text/markdown": "# Why <b>?"}))
    assert publish.title(path) == "Why <b>?"
    page = page_of(path, tmp_path)
    assert page.count("<h1") == 1 and "A definition." in page
    assert "What is gained?" not in page and "<title>Why &lt;b&gt;?</title>" in page
    assert ">Why &lt;b&gt;?</a>" in (tmp_path / "site" / "index.html").read_text("utf-8")


TERMS = {"ratio": "one over another", "round": "both, once", "round trip": 'there & "back"'}
ENTRIES = "".join(f'<dt id="{one_page.anchor(term)}">{term}</dt>' for term in TERMS)


def told(body: str) -> str:
    """`body` with its terms linked, less the glossary that stood behind it."""
    return one_page.linked(f"{body}<details>{ENTRIES}</details>", TERMS).partition("<details>")[0]


def link(term: str, shown: str) -> str:
    quoted = {"round trip": "'there &amp; \"back\"'"}.get(term, f'"{TERMS[term]}"')
    return f'<a class="term" href="#{one_page.anchor(term)}" title={quoted}>{shown}</a>'


def test_a_terms_first_use_in_prose_leads_to_its_entry() -> None:
    body = "<h2>Round</h2><p>A round trip, Rounds, <b>rounds</b>, ratios.</p><li>a ratio</li>"
    trip, rounds = link("round trip", "round trip"), link("round", "Rounds")
    linked = f"<p>A {trip}, {rounds}, <b>rounds</b>, {link('ratio', 'ratios')}.</p>"
    assert told(body) == f"<h2>Round</h2>{linked}<li>a ratio</li>"


@pytest.mark.parametrize(
    "body",
    [
        "<p>around, rounded, rationale</p>",
        "<h1>ratio</h1><table><tr><th>ratio</th></tr></table>",
        '<p><a href="x">ratio</a> <code>ratio</code></p><pre>ratio</pre>',
        "<details><p>a ratio</p></details>",
    ],
)
def test_what_is_no_prose_is_left_alone(body: str) -> None:
    assert one_page.linked(body + f"<dl>{ENTRIES}</dl>", TERMS) == body + f"<dl>{ENTRIES}</dl>"


def test_a_page_without_an_entry_has_no_link_to_it() -> None:
    assert one_page.linked("<p>a ratio</p>", TERMS) == "<p>a ratio</p>"


def test_the_projects_own_glossary_is_linked_on_a_page(tmp_path: Path) -> None:
    glossary = output("display_data", {"text/markdown": words.glossary()})
    prose = output("display_data", {"text/markdown": "The makespan of a router."})
    page = page_of(saved(tmp_path, prose, glossary), tmp_path)
    for term in ("makespan", "router"):
        assert f'href="#term-{term}"' in page and page.count(f'id="term-{term}"') == 1


def test_a_sweeps_points_are_listed_with_what_they_stand_for(tmp_path: Path) -> None:
    groups = {"grid/point-1": [saved(tmp_path, name="03c_serial_per_provider.ipynb")]}
    page = pages.page_of(groups, "grid/point-1", "serial-per-provider")
    assert pages.page_of(groups, "grid/point-1", "per-provider") == ""
    row = ROW._replace(page=page, sweep="grid", what="speed 0.5")
    text = pages.site(tmp_path / "site", groups, [row]).read_text("utf-8")
    assert "<b>grid</b>" in text and ">speed 0.5<" in text and f'href="{page}"' in text
    shown = (tmp_path / "site" / page).read_text("utf-8")
    assert "href='../../index.html'" in shown
    assert "href='../../reports/published-phase-0.jsonl' download" in shown


def test_a_page_needs_nothing_from_elsewhere_and_runs_no_foreign_script(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script><img src=x onerror=alert(2)><p>fine</p>"
    page = page_of(saved(tmp_path, output("display_data", {"text/html": evil})), tmp_path)
    assert "fine" in page and "<script" not in page and "<img" not in page
    for html in (page, (tmp_path / "site" / "index.html").read_text("utf-8")):
        assert not re.search(r"(?:src|href)=['\"]?(?:https?:)?//", html)
        assert "@import" not in html


def test_the_index_is_escaped_and_survives_a_failed_rendering(tmp_path: Path) -> None:
    path = saved(tmp_path)
    point = ROW._replace(sweep="<i>sweep", what="<i>what")
    page = pages.site(tmp_path / "site", {"g": [path]}, [ROW, point])
    text = page.read_text("utf-8")
    assert 'href="g/02_it.html">What is gained?<' in text
    assert "&lt;i&gt;sweep" in text and "&lt;i&gt;what" in text and "<i>" not in text
    copied = report.load(tmp_path / "site" / "reports" / "published-phase-0.jsonl")
    assert copied == PUBLISHED.model_copy(update={"version": 4})
    with pytest.raises(ReportError):
        pages.site(tmp_path / "site", {"g": [tmp_path / "no-such.ipynb"]}, [])
    assert page.read_text("utf-8") == text


@pytest.mark.parametrize("pattern", ["../*", "/tmp/*", "a/b", "**", "..", "", "*/*", "a.b", "x\n"])
def test_parameters_choose_among_the_projects_notebooks_only(pattern: str) -> None:
    names = [path.stem for path in publish.notebooks("0[0-2]_[ms]*")]
    assert names == ["00_start", "02_meet_the_pool"]
    with pytest.raises(ParameterError):
        publish.notebooks(pattern)
