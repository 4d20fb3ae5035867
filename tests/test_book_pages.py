"""What the book's extension `pages` makes of a page, without a browser."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pages
import pytest

BOOK = Path(__file__).parent.parent / "book"
NOTEBOOKS = sorted((BOOK.parent / "notebooks").glob("*.ipynb"))

ACTIONS = {
    "GITHUB_REPOSITORY": "Somebody/sparse",
    "GITHUB_SERVER_URL": "https://github.com",
    "GITHUB_REF_NAME": "main",
}
TABLE = """<div class="pst-scrollable-table-container"><table class="table" id="t-a">
<caption><span>Table 1</span></caption>
<thead><tr><th class="head"><p>x</p></th></tr></thead>
</table>
</div>
<figure class="align-default" id="f-a">
<img alt="A line." src="data:image/svg+xml;base64,AAAA" />
<figcaption><p>A line.</p></figcaption>
</figure>"""


@pytest.mark.parametrize(
    "environ, url, branch, home",
    [
        (ACTIONS, "https://github.com/Somebody/sparse", "main", "https://somebody.github.io/sparse/"),
        (
            {**ACTIONS, "GITHUB_REPOSITORY": "somebody/somebody.github.io"},
            "https://github.com/somebody/somebody.github.io", "main", "https://somebody.github.io/",
        ),
        (
            {"GITHUB_REPOSITORY": "a/b", "GITHUB_SERVER_URL": "https://git.example",
             "GITHUB_REF_NAME": "12/merge"},
            "https://git.example/a/b", "main", "",
        ),
    ],
)  # fmt: skip
def test_a_ci_job_knows_its_repository(environ, url, branch, home):
    assert pages.repository(environ) == {"url": url, "branch": branch, "pages": home}


def test_elsewhere_nobody_does():
    assert pages.repository({"HOME": "/home/somebody"}) == {}


def test_captions_leave_the_box_that_scrolls_and_pictures_enter_one():
    body = pages.finished(TABLE)
    assert re.search(
        r'<figure class="table-figure" id="t-a"><figcaption>.*?</figcaption>'
        r'<div class="pst-scrollable-table-container"><table class="table"><?',
        body,
    )
    assert body.count("t-a") == 1
    assert '<th scope="col" class="head">' in body
    assert '<div class="picture"><img alt="A line."' in body
    assert [body.count(f"<{tag}") for tag in ("div", "figure", "table")] == [
        body.count(f"</{tag}>") for tag in ("div", "figure", "table")
    ]


CONF = """
extensions = ["myst_nb", "pages"]
html_theme = "sphinx_book_theme"
html_title = "A book"
nb_execution_mode = "off"
"""


def test_buttons_appear_where_the_repository_is_known(tmp_path):
    source = "# A\n\nWords that *stand*\nfirst. " + 30 * "More of them. " + "\n\nLast."
    cell = {"cell_type": "markdown", "id": "a", "metadata": {}, "source": source}
    kernel = {"name": "python3", "display_name": "Python 3"}
    notebook = {"cells": [cell], "metadata": {"kernelspec": kernel}}
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks/a.ipynb").write_text(
        json.dumps({**notebook, "nbformat": 4, "nbformat_minor": 5})
    )
    (tmp_path / "conf.py").write_text(CONF)
    (tmp_path / "index.md").write_text("# Start\n\n```{toctree}\nnotebooks/a\n```\n")
    subprocess.run(
        [sys.executable, "-m", "sphinx", "-q", tmp_path, tmp_path / "html"],
        env={**os.environ, **ACTIONS, "PYTHONPATH": str(BOOK / "_ext")}, check=True,
    )  # fmt: skip
    page = (tmp_path / "html/notebooks/a.html").read_text()
    [about] = re.findall(r'<meta name="description" content="([^"]*)">', page)
    assert about.startswith("Words that stand first. More") and about.endswith(" …")
    assert len(about) <= 162
    shown = [
        "https://github.com/Somebody/sparse",
        "https://mybinder.org/v2/gh/Somebody/sparse/main?urlpath=lab/tree/notebooks/a.ipynb",
        'property="og:image" content="https://somebody.github.io/sparse/_static/card.png"',
    ]
    assert [text for text in shown if text not in page] == []


def test_a_user_s_folder_gets_no_file_but_the_model():
    path = next(path for path in NOTEBOOKS if path.stem == "your_data")
    cells = json.loads(path.read_text())["cells"]
    code = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"][1:]  # the user's own
    assert set(re.findall(r'folder / "(.*?)"', "".join(code))) == {
        "train.csv", "test.csv", "model.npz",
    }  # fmt: skip
    assert "to_csv(folder" not in "".join(code)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_reads_well_without_the_book(path):
    """JupyterLab shows Sphinx's roles, and links without a text, as they are written."""
    cells = json.loads(path.read_text())["cells"]
    text = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    raw = re.findall(r"\{[a-z:]+\}`[^`]*`|\[\]\([^)]*\)", text)
    assert not raw
    for target in re.findall(r"\]\(([^):#]+\.ipynb)", text):
        assert (path.parent / target).is_file(), target
