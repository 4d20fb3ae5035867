"""The built book as its reader has it: every page in a browser, wide and narrow, light and dark.

Needs the book (`.ci/run book`), Playwright and a Chromium on PATH; skipped without them. The folder
of the pages is `book/_build/html`, or what `SPARSECORE_BOOK` names. `.ci/run look` runs it.
"""

import os
import re
import shutil
import threading
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin

import pytest

browsers = pytest.importorskip(
    "playwright.sync_api", reason="Playwright is not installed: pip install -e '.[browser]'"
)
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
SITE = Path(os.environ.get("SPARSECORE_BOOK", Path(__file__).parent.parent / "book/_build/html"))
PAGES = sorted(path.relative_to(SITE).as_posix() for path in SITE.rglob("*.html"))
PAGES = [page for page in PAGES if not page.startswith("_") and page != "index.html"]
pytestmark = [
    pytest.mark.site,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH: apt-get install chromium"),
    pytest.mark.skipif(not PAGES, reason=f"no book in {SITE}: build it first (.ci/run book)"),
]
WIDE, NARROW = {"width": 1400, "height": 900}, {"width": 390, "height": 844}
LEAST = 8  # pixels: the letters of a figure on a narrow screen; indices are smaller
SETTLED = """async () => {
    if (window.MathJax?.startup) await MathJax.startup.promise;
    for (const image of document.images) {
        image.loading = "eager";
        await image.decode().catch(() => {});
    }
}"""
# What is wrong with a page, each thing in words.
FAULTS = """() => {
    const found = [];
    const words = (element) => element.outerHTML.slice(0, 90);
    for (const image of document.querySelectorAll("main img")) {
        if (!image.naturalWidth) found.push("not loaded: " + words(image));
        if (!image.hasAttribute("alt")) found.push("without alt: " + words(image));
    }
    for (const math of document.querySelectorAll("main .math")) {
        if (!math.querySelector("mjx-container") || math.querySelector("mjx-merror")) {
            found.push("not rendered: " + words(math));
        }
    }
    for (const button of document.querySelectorAll("button, a.btn")) {
        const name = button.getAttribute("aria-label") || button.title || button.textContent;
        if (!name.trim()) found.push("without a name: " + words(button));
    }
    for (const head of document.querySelectorAll("main th")) {
        if (!head.scope && !head.closest(".dataframe")) found.push("no scope: " + words(head));
    }
    if (!document.querySelector('meta[name="description"]')?.content) found.push("no description");
    if (!document.querySelector('link[rel="icon"]')) found.push("no favicon");
    for (const figure of document.querySelectorAll("figure:has(img[src^='data:image/svg'])")) {
        const files = [...figure.querySelectorAll("a[download]")].map((a) => a.download.slice(-3));
        const wanted = figure.id.includes("-here") ? "svg" : "svg pdf";
        if (files.join(" ") !== wanted) found.push(`${figure.id} offers ${files}, not ${wanted}`);
    }
    for (const table of document.querySelectorAll("#l-grid table, #t-main table")) {
        const hidden = table.scrollWidth - table.parentElement.clientWidth;
        if (hidden > 0) found.push(`${hidden} pixels of a table are hidden`);
    }
    const text = document.querySelector("article")?.innerText || "";
    const raw = text.match(/\\{(numref|cite:p|doc|ref|term|glue:text)\\}`/);
    if (raw) found.push("markup that is shown: " + raw[0]);
    return found;
}"""
LINKS = """() => ({
    ids: [...document.querySelectorAll("[id], a[name]")].map((e) => e.id || e.name),
    links: [...document.querySelectorAll("a[href]")].map((a) => a.getAttribute("href")),
})"""
# The smallest letters of each SVG figure, in pixels, apart from the tenth that are smaller still.
LETTERS = """async () => {
    const found = [];
    for (const image of document.querySelectorAll("main img[src*='svg']")) {
        const svg = await (await fetch(image.src)).text();
        const width = parseFloat((svg.match(/viewBox="0 0 ([\\d.]+)/) || [])[1]);
        const sizes = [...svg.matchAll(/scale\\(([\\d.]+) -[\\d.]+\\)/g)].map((m) => 100 * m[1]);
        if (!width || !sizes.length) continue;
        sizes.sort((a, b) => a - b);
        const size = sizes[Math.floor(sizes.length / 10)] * image.clientWidth / width;
        found.push([image.closest("figure")?.id || image.src.slice(-60), size]);
    }
    return found;
}"""


@contextmanager
def opened(**options):
    """Open a tab of a browser."""
    with browsers.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        yield chromium.new_page(**options)
        chromium.close()


def shoot(tab, name):
    """Take a picture of the page for people, if they ask for it."""
    if folder := os.environ.get("SPARSECORE_SCREENSHOTS"):
        tab.screenshot(path=Path(folder, f"{name.replace('/', '_')}.png"), full_page=True)


@pytest.fixture(scope="module")
def address():
    """Serve the book, as a web server does: a search reads the pages that it has found."""

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=SITE)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="module")
def tab(address):
    """A tab of a browser that notes errors, and what is asked of other hosts."""
    with opened(viewport=WIDE, color_scheme="light") as tab:
        tab.noted = []
        tab.on("console", lambda m: tab.noted.append(m.text) if m.type == "error" else None)
        tab.on("pageerror", lambda error: tab.noted.append(str(error)))
        tab.on("request", lambda r: tab.noted.append(r.url) if _elsewhere(r.url, address) else None)
        yield tab


def _elsewhere(url, address):
    return not url.startswith((address, "data:", "blob:"))


@pytest.fixture(scope="module")
def seen():
    """Anchors and links of the pages that have been looked at."""
    return {}


@pytest.mark.parametrize("page", PAGES)
def test_a_page(page, tab, address, seen):
    tab.noted.clear()
    tab.set_viewport_size(WIDE)
    tab.emulate_media(color_scheme="light")
    tab.goto(address + page)
    tab.evaluate(SETTLED)
    faults = [*tab.noted, *tab.evaluate(FAULTS)]
    seen[page] = tab.evaluate(LINKS)
    for size in (WIDE, NARROW):
        tab.set_viewport_size(size)
        for theme in ("light", "dark"):
            tab.emulate_media(color_scheme=theme)
            tab.wait_for_selector(f"html[data-theme={theme}]", state="attached", timeout=5000)
            over = tab.evaluate("document.documentElement.scrollWidth - innerWidth")
            if over > 0:
                faults.append(f"{over} pixels too wide at {size['width']}, {theme}")
            shoot(tab, f"{page}-{size['width']}-{theme}")
    small = [(name, round(size, 1)) for name, size in tab.evaluate(LETTERS) if size < LEAST]
    faults += [f"letters of {size} pixels: {name}" for name, size in small]
    assert not faults + tab.noted, "\n".join(faults + tab.noted)


def test_links_and_anchors_hold(seen):
    assert seen, "no page was looked at"
    broken = []
    for page, found in seen.items():
        for link in found["links"]:
            target, anchor = urldefrag(urljoin(f"http://book/{page}", link))
            if not target.startswith("http://book/"):
                continue
            name = unquote(target.removeprefix("http://book/"))
            name = "index.html" if name in ("", "index.html") else name.partition("?")[0]
            there = (SITE / name).is_file()
            if not there or (anchor and name in seen and unquote(anchor) not in seen[name]["ids"]):
                broken.append(f"{page}: {link}")
    assert not broken, "\n".join(sorted(set(broken)))


@pytest.mark.parametrize(
    "words, place",
    [
        ("WASAP", r"glossary\.html#term-WASAP-SGD|notebooks/overview\.html"),
        ("SparseMLPClassifier", r"api\.html#sparsecore\.SparseMLPClassifier$"),
        (
            "importance pruning",
            r"glossary\.html#term-importance-pruning|notebooks/importance\.html",
        ),
        ("evolution", r"glossary\.html#term-evolution|notebooks/t(opology|eaching)\.html"),
    ],
)
def test_a_search_leads_to_what_explains_it(words, place, tab, address):
    tab.set_viewport_size(WIDE)
    tab.goto(address + "glossary.html")
    tab.locator(".bd-sidebar-primary .search-button-field").click()
    field = tab.locator("#pst-search-dialog input")
    field.fill(words)
    field.press("Enter")
    first = tab.locator("#search-results li a").first
    first.wait_for()
    assert re.search(place, first.get_attribute("href"))


def test_the_search_stays_in_view(tab, address):
    tab.set_viewport_size({"width": 1400, "height": 500})
    tab.goto(address + "bibliography.html")
    sidebar, search = tab.locator(".bd-sidebar-primary"), ".bd-sidebar-primary .search-button-field"
    sidebar.evaluate("bar => bar.scrollTo(0, bar.scrollHeight)")
    tab.evaluate("scrollTo(0, document.body.scrollHeight)")
    assert 0 <= tab.locator(search).bounding_box()["y"] < 200
    tab.set_viewport_size(NARROW)
    assert tab.locator(".bd-header-article .search-button").is_visible()


def test_a_figure_is_enlarged_and_downloaded(tab, address):
    tab.set_viewport_size(NARROW)
    tab.goto(address + "notebooks/overview.html")
    tab.get_by_role("button", name="Enlarge").first.click()
    large = tab.locator("dialog.enlarged[open] img")
    wide = "async image => { await image.decode().catch(() => {}); return image.clientWidth; }"
    assert large.evaluate(wide) > NARROW["width"]
    tab.get_by_role("button", name="Close").click()
    assert not large.is_visible()
    with tab.expect_download() as download:
        tab.get_by_role("link", name="SVG").first.click()
    assert "<svg" in Path(download.value.path()).read_text()


def test_the_caption_of_a_table_stands_still(tab, address):
    tab.set_viewport_size(NARROW)
    tab.goto(address + "notebooks/playground.html")
    caption = tab.locator(".table-figure figcaption").first
    assert caption.bounding_box()["width"] <= NARROW["width"]
    assert not caption.locator("xpath=ancestor::table").count()


def test_commands_wrap_on_paper(tab, address):
    tab.set_viewport_size(WIDE)
    tab.goto(address + "notebooks/overview.html")
    tab.emulate_media(media="print")
    wide = "all => all.filter(pre => pre.scrollWidth > pre.clientWidth + 1).length"
    assert tab.locator("pre").evaluate_all(wide) == 0
    tab.emulate_media(media="screen")
