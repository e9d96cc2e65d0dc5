"""One executed notebook as a page: scrubbed, cleaned, its terms explained where they stand.

Runs nothing. A page loads nothing from elsewhere and holds no script; its figures lie beside it.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import bleach
import nbformat
from bs4 import BeautifulSoup
from jinja2 import Environment, FileSystemLoader
from nbconvert import HTMLExporter
from nbconvert.filters import markdown2html
from nbconvert.preprocessors import ExtractOutputPreprocessor
from pygments.formatters import HtmlFormatter

from . import notebooks as publish
from . import words

TAGS = {
    *("a", "blockquote", "br", "code", "dd", "del", "details", "div", "dl", "dt", "em", "hr", "i"),
    *("b", "h1", "h2", "h3", "h4", "h5", "h6", "li", "ol", "p", "pre", "s", "span", "strong"),
    *("sub", "summary", "sup", "table", "tbody", "td", "th", "thead", "tr", "ul"),
}
ATTRIBUTES = {"*": ["class", "id", "title"], "a": ["href"], "td": ["align"], "th": ["align"]}
SVG, XLINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}"
NOT_DRAWN = {f"{SVG}{name}" for name in ("script", "foreignObject", "metadata", "a")}
OWN = ("#", "data:image/png;base64,")  # what an SVG may refer to
LINK = r'href="([\w.-]+)\.ipynb"'  # from one notebook to another beside it
FOLDER = Path(__file__).with_name("templates")
TEMPLATES = Environment(loader=FileSystemLoader(FOLDER), autoescape=True)
TEMPLATES.filters["markdown"] = lambda text: cleaned(markdown2html(text))
PROSE, NOT_PROSE = ["p", "li"], ["a", "code", "pre", "details", "table", "nav"]


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


def anchor(term: str) -> str:
    """The id of a term's entry in a glossary."""
    return "term-" + re.sub(r"\W+", "-", term.lower())


def linked(body: str, terms: Mapping[str, str]) -> str:
    """`body` where each term's first use in prose leads to its entry, if it has one there.

    What the term means is the link's title; of terms within each other the longest is meant.
    """
    page = BeautifulSoup(body, "html.parser")
    left = {term for term in terms if page.find(id=anchor(term))}
    forms = {f: one for one in left for f in (one, f"{one}s", re.sub("y$", "ies", one))}
    longest = "|".join(map(re.escape, sorted(forms, key=len, reverse=True)))
    for text in page.find_all(string=re.compile(rf"\b({longest})\b", re.I) if left else []):
        if not text.find_parent(PROSE) or text.find_parent(NOT_PROSE):
            continue
        parts, end = list[Any](), 0
        for use in re.finditer(rf"\b({longest})\b", text, re.I):
            if (term := forms[use[0].lower()]) in left:
                left.remove(term)
                told = {"href": f"#{anchor(term)}", "title": terms[term], "class": "term"}
                link = page.new_tag("a", attrs=told, string=use[0])
                parts, end = [*parts, text[end : use.start()], link], use.end()
        text.replace_with(*parts, text[end:])
    return str(page)


def write(
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
    beside = {"output_files_dir": f"{notebook.stem}_files"}
    body, made = _exporter().from_notebook_node(executed, beside)
    known = {Path(page).stem for page in titles if Path(page).parent == Path(place).parent}
    body = re.sub(LINK, lambda link: f'href="{link[1]}.html"' * (link[1] in known), body)
    body = linked(body, words.GLOSSARY)
    page = rendered(titles[place], body, up="../" * place.count("/"), data=data)
    for name, content in {**made["outputs"], Path(place).name: page.encode()}.items():
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


def text(template: str, **given: Any) -> str:
    """What a template makes of the values, which it escapes."""
    return TEMPLATES.get_template(f"{template}.html.j2").render(**given)


def rendered(title: str, body: str, **given: Any) -> str:
    """A whole page around `body`, which is HTML that can be trusted."""
    light, dark = (
        HtmlFormatter(style=style).get_style_defs(".highlight") for style in ("default", "monokai")
    )
    return text("page", title=title, body=body, light=light, dark=dark, **given)
