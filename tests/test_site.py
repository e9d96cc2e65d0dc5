"""The site in a real browser: on a phone and a desk, light and dark, from a plain folder."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlparse

import browser
import nbformat
import pytest
from conftest import of_others

from poclib import cli, report
from poclib.measure.strategies import STRATEGIES
from poclib.reading.reading import of
from poclib.showing import notebooks as publish
from poclib.showing import site as pages
from poclib.showing.documents import Entry

pytestmark = pytest.mark.slow
in_a_browser = pytest.mark.skipif(browser.found() is None, reason=browser.NONE_HERE)


# A router is nobody's by default: it has a notebook of its own.
SAMPLED = {name: one for name, one in STRATEGIES.items() if name != "through-router"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A fresh clone, and a sweep of one point, after `poc publish`."""
    root, home = report.root(), tmp_path_factory.mktemp("a place & more")
    for folder in ("notebooks", "data"):
        shutil.copytree(root / folder, home / folder, ignore=of_others)
    point = home / "data" / "runs" / "links" / "shared-queue-8-1a2b3c4d"
    point.mkdir(parents=True)
    (point.parent / "sweep.json").write_text(json.dumps({point.name: "max_tokens 8"}))
    shutil.copy(publish.strategy_notebook(), point / "03e_shared_queue.ipynb")
    shutil.copy(root / "data" / "reports" / "sample-shared-queue.jsonl", point)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POCLIB_HOME", str(home))
        patch.setenv("PYTHONPATH", f"{root}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
        cli.main(["publish"])
        yield home


def test_each_strategy_has_a_page_made_once(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    site = home / "site"
    index = (site / "index.html").read_text("utf-8")
    for name, strategy in SAMPLED.items():
        (page,) = (site / "sample").glob(f"03[a-z]_{name.replace('-', '_')}.html")
        text = " ".join(page.read_text("utf-8").split())
        assert re.findall("<h1[^>]*>([^<]*)<", text) == [strategy.question]
        assert f"sample-{name}.jsonl" in text and strategy.idea in text
        assert f'href="sample/{page.name}">page<' in index
    assert not list(site.rglob("*one_strategy*")), "a page has its strategy's name"
    capsys.readouterr()
    cli.main(["publish"])
    os.utime(home / "data" / "reports" / "sample-batched.jsonl")
    cli.main(["publish"])
    again = f"page of a sample: {STRATEGIES['batched'].question}\n"
    assert capsys.readouterr().err == again, "nothing else is executed again"


def test_every_link_leads_to_a_file_and_every_figure_is_there_twice(home: Path) -> None:
    site = home / "site"
    for page in site.rglob("*.html"):
        text = page.read_text("utf-8")
        for link in re.findall(r"(?:href|src)=[\"']([^\"'#]+)[\"']", text):
            if not link.startswith(("data:", *publish.ALLOWED)):
                assert (page.parent / unquote(link)).resolve().is_file(), f"{page.name}: {link}"
        figures = re.findall(r"<figure><img [^>]*src=\"([^\"]+)\.svg\"", text)
        assert len(figures) == text.count("<img")
        for figure in figures:
            assert (page.parent / f"{figure}.png").read_bytes().startswith(b"\x89PNG")
            assert f'href="{figure}.svg"' in text and f'href="{figure}.png"' in text
    assert "max_tokens 8" in (site / "index.html").read_text("utf-8")


VERDICT = "[...document.querySelectorAll('strong')].find(e => /Gate: [A-Z]+/.test(e.textContent))"


@in_a_browser
def test_on_a_phone_the_verdict_is_on_the_first_screen(home: Path) -> None:
    site = home / "site"
    (strategy,) = (site / "sample").glob("*_shared_queue.html")
    with browser.browser() as shown:
        for page in (site / "index.html", strategy, site / "sample" / "10_phase_0_result.html"):
            shown.open(page.as_uri(), 390)
            assert shown.tell(f"{VERDICT}.getBoundingClientRect().bottom") < 844, page.name


@in_a_browser
def test_the_switch_opens_all_code_and_a_terms_link_the_folded_glossary(home: Path) -> None:
    (page,) = (home / "site" / "sample").glob("*_shared_queue.html")
    with browser.browser() as shown:
        shown.open(page.as_uri(), 1280)
        seen = "[...document.querySelectorAll('.input')].filter(e => e.offsetHeight).length"
        outputs = "document.querySelectorAll('.output figure img').length"
        assert shown.tell(seen) == 0 < shown.tell(outputs)
        shown.tell("document.querySelector('#code').click()")
        assert shown.tell(seen) == shown.tell("document.querySelectorAll('.input').length") > 5
        entry = "document.querySelector(document.querySelector('a.term').hash)"
        assert shown.tell(f"{entry}.checkVisibility()") is False
        shown.tell("document.querySelector('a.term').click()")
        shown.until(f"{entry}.checkVisibility()")


@in_a_browser
@pytest.mark.parametrize("words", [[], ["sample"], ["10_phase_0_result"]])
def test_one_file_holds_all_that_it_shows_and_links_in_another_folder(
    home: Path, tmp_path: Path, words: list[str]
) -> None:
    file = tmp_path / "elsewhere.html"
    cli.main(["publish", "--one-file", *words, "-o", str(file)])
    with browser.browser() as shown:
        shown.open(file.as_uri(), 390)
        assert {url for url in shown.asked if url[:5] != "data:"} == {file.as_uri()}
        unsaid = "[...document.images].filter(i => i.alt.length < 30 || !i.naturalWidth).length"
        assert shown.tell(unsaid) == 0 < shown.tell("document.images.length")
        assert shown.tell("document.documentElement.scrollWidth") == 390
        links = "[...document.querySelectorAll('a[href]')].map(a => a.getAttribute('href'))"
        inner = [link for link in shown.tell(links) if not link.startswith(publish.ALLOWED)]
        ids = shown.tell("[...document.querySelectorAll('[id]')].map(e => e.id)")
        assert len(set(ids)) == len(ids) and {link.lstrip("#") for link in inner} <= set(ids)
        assert all(link.startswith("#") for link in inner)
        if words != ["10_phase_0_result"]:
            parts = shown.tell("document.querySelectorAll('main > details > div[id]').length")
            assert parts == len(SAMPLED) + 1
            page = "document.querySelector(document.querySelector('.index a').hash)"
            assert shown.tell(f"{page}.checkVisibility()") is False
            shown.tell("document.querySelector('.index a').click()")
            shown.until(f"{page}.checkVisibility()")
        assert shown.errors == []


def test_one_file_of_what_is_not_there_says_what_is(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        cli.main(["publish", "--one-file", "no-such"])
    told = capsys.readouterr().err
    assert "no-such" in told and "sample/10_phase_0_result" in told and "published" in told


@in_a_browser
def test_every_page_reads_on_a_phone_and_a_desk_and_asks_nobody(home: Path) -> None:
    site = home / "site"
    html = sorted(site.rglob("*.html"))
    assert len(html) == len(publish.notebooks()) - 1 + len(SAMPLED) + 2
    faults = []
    unsaid = "[...document.images].filter(i => i.alt.length < 30 || !i.naturalWidth)"
    with browser.browser() as shown:
        for page in html:
            for width, dark in ((390, True), (1280, False)):
                shown.open(page.as_uri(), width, dark=dark)
                if shown.tell("document.documentElement.scrollWidth") > width:
                    faults.append(f"{page.name} is wider than {width}")
            faults += shown.tell(f"{unsaid}.map(i => i.src)")
        assert shown.tell("document.documentElement.lang") == "en"
        printed = base64.b64decode(shown.call("Page.printToPDF", printBackground=False)["data"])
        assert printed.startswith(b"%PDF") and len(printed) > 20_000
        asked = [unquote(urlparse(url).path) for url in shown.asked if url[:5] != "data:"]
    assert faults + shown.errors == []
    assert [path for path in asked if site not in Path(path).parents] == []
    assert len(asked) > len(html)


EVIL = [
    "<script>window.planted = 1</script>",
    "<img src=x onerror='window.planted = 1'>",
    "<svg onload='window.planted = 1'><script>window.planted = 1</script></svg>",
    "<iframe srcdoc='<script>parent.planted = 1</script>'></iframe>",
    "<a href='javascript:void(window.planted = 1)'>click</a>",
    "<a href='java&#10;script:window.planted = 1'>click</a>",
    "<details open ontoggle='window.planted = 1'>x</details>",
    "<style>@import 'javascript:window.planted = 1';</style>",
    "<form action='javascript:window.planted = 1'><button>click</button></form>",
    "<math><mtext></p><script>window.planted = 1</script></mtext></math>",
    "<noscript><p title='</noscript><img src=x onerror=window.planted=1>'>",
]
PRESS = "document.querySelectorAll('a[href^=java i], button, summary').forEach(a => a.click())"


@in_a_browser
def test_what_an_untrusted_notebook_holds_runs_nothing_in_a_browser(tmp_path: Path) -> None:
    output, whole = nbformat.v4.new_output, "\n\n".join(EVIL)
    kinds = "text/html text/markdown text/latex text/plain image/svg+xml application/javascript"
    texts = [whole, *EVIL]
    outputs = [output("display_data", {kind: t}) for kind in kinds.split() for t in texts]
    outputs.append(output("stream", name="stdout", text=whole))
    cells = [
        nbformat.v4.new_markdown_cell(f"# A title {EVIL[0]}\n\n{whole}\n\n[x](javascript:alert)"),
        nbformat.v4.new_code_cell(f"# {whole}", outputs=outputs, execution_count=1),
    ]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "02_it.ipynb")
    told = {"experiment": EVIL[0], "strategy": EVIL[1], "source": EVIL[2], "notes": EVIL}
    reading = of(report.load("published-phase-0").model_copy(update=told))
    row = pages.Row(Entry("published-phase-0", reading))
    rows = [row, row._replace(sweep=EVIL[3], what=EVIL[4])]
    pages.site(tmp_path / "site", {"g": [tmp_path / "02_it.ipynb"]}, rows)
    (tmp_path / "site" / "one.html").write_text(pages.one_file(tmp_path / "site", rows)[1])
    (tmp_path / "as_it_is.html").write_text(f"<!doctype html><body>{whole}</body>")
    with browser.browser() as shown:
        shown.open((tmp_path / "as_it_is.html").as_uri(), 1280)
        assert shown.tell("String(window.planted)") == "1"  # were it not for what is done about it
        for page in ("g/02_it.html", "index.html", "one.html"):
            shown.open((tmp_path / "site" / page).as_uri(), 1280)
            shown.tell(f"{PRESS}, null")
            assert shown.tell("String(window.planted)") == "undefined"
            unsafe = "document.querySelectorAll('script, iframe, form, object').length"
            assert shown.tell(unsafe) == 0
