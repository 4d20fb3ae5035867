"""The book's cache: a notebook is executed anew if and only if what it was made from changed."""

import fcntl
import importlib.metadata
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import execution_key
import nbformat
import pytest
import side_by_side
import yaml

BOOK = Path(__file__).parent.parent / "book"


def test_digest_sees_content_names_and_only_the_patterns_wherever_that_is(tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    for place in (here, there):
        (place / "sub").mkdir(parents=True)
        (place / "a.py").write_text("1")
        (place / "sub/b.py").write_text("2")
    first = execution_key.digest_files(here, ["**/*.py"])
    (there / "c.txt").write_text("not a source")
    assert execution_key.digest_files(there, ["**/*.py"]) == first
    (here / "sub/b.py").write_text("3")
    second = execution_key.digest_files(here, ["**/*.py"])
    (here / "sub/b.py").rename(here / "sub/d.py")
    third = execution_key.digest_files(here, ["**/*.py"])
    assert len({first, second, third}) == 3


def test_versions_follow_the_package_metadata():
    versions = execution_key.required_versions("truly-sparse")
    assert versions["numpy"] == importlib.metadata.version("numpy")
    assert {"numba", "scipy", "mpi4py", "matplotlib", "sparseprop"} <= versions.keys()
    assert "truly-sparse" not in versions
    assert versions.keys().isdisjoint({"pytest", "ruff", "mypy", "jupyterlab", "playwright"})


def test_code_key_sees_the_settings_of_its_package_alone_and_names_one_that_is_missing():
    plain = execution_key.code_key("sparsecore", "truly-sparse", {"OTHER": "1"})
    assert plain == execution_key.code_key("sparsecore", "truly-sparse", {})
    other = execution_key.code_key("sparsecore", "truly-sparse", {"SPARSECORE_DATA": "somewhere"})
    assert {k for k in plain if plain[k] != other[k]} == {"settings"}
    with pytest.raises(ModuleNotFoundError, match=r"no_such_package.*pip install"):
        execution_key.code_key("no_such_package", "truly-sparse", {})


def test_changed_compares_code_with_the_start_and_files_with_the_end_of_the_last_build(tmp_path):
    state = {"sources": "1", "files": "1"}

    def build():
        return execution_key.ExecutionKey(
            tmp_path / "cache",
            lambda: {"sources": state["sources"]},
            lambda: {"files": state["files"]},
        )

    key = build()
    assert key.changed() == ["files", "sources"], "a first build"
    key.record()
    state["files"] = "2"  # the build wrote results
    key.record()
    assert build().changed() == []

    key = build()
    state["sources"] = "2"  # edited while the build ran: its notebooks saw the old sources
    key.record()
    assert build().changed() == ["sources"]

    (tmp_path / "cache" / execution_key.STATE_FILE).write_text("{cut sho")
    assert build().changed() == ["files", "sources"]


# --- whole builds, with the book's own configuration and a package of one line ---


CHAPTERS = "- file: b\n- file: c\n- file: d\n"
GLUE = "from myst_nb import glue\nimport toy\nglue('answer', toy.answer, display=False)"


TOY_DATA = """
from pathlib import Path
names = lambda: ['d']
available = lambda name: True
stands_in = lambda name: not Path(__file__).with_name('d.csv').exists()
"""


class Book:
    """A small book beside a package `toy`: page a glues `toy.answer`, page b shows it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.build_dir = root / "book/_build"
        config = yaml.safe_load((BOOK / "_config.yml").read_text())
        config["sphinx"]["local_extensions"]["execution_key"] = str(BOOK / "_ext")
        for name in ("package", "distribution"):
            config["sphinx"]["config"][f"execution_key_{name}"] = "toy"
        self.write("book/_config.yml", yaml.safe_dump(config))
        self.write("book/_static/favicon.svg", "<svg/>")
        self.write("book/references.bib", (BOOK / "references.bib").read_text())
        self.write("book/_toc.yml", "format: jb-book\nroot: a\nchapters:\n" + CHAPTERS)
        self.write("book/c.md", "# C\n\n$x^2$\n\n```{bibliography}\n```\n")
        self.write("lib/toy-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: toy\nVersion: 1\n")
        self.write("lib/toy/__init__.py", "answer = 41\n")
        self.write("lib/toy/datasets.py", TOY_DATA)
        self.notebook("a", GLUE)
        self.notebook("b", "print('b')", "Answer: {glue:text}`a.ipynb::answer:.0f`.")

    def write(self, name: str, text: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def notebook(self, name: str, code: str, text: str = "Text.") -> None:
        cells = [
            nbformat.v4.new_markdown_cell(f"# {name}\n\n{text}", id="text"),
            nbformat.v4.new_code_cell(code, id="code"),
        ]
        kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nb = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})
        self.write(f"book/{name}.ipynb", nbformat.writes(nb))

    def build(self) -> tuple[int, list[str], str]:
        """Build as a newcomer does: by the program's path, the environment not activated."""
        environ = {k: v for k, v in os.environ.items() if not k.startswith(("TOY_", "GITHUB_"))}
        environ |= {"PYTHONPATH": str(self.root / "lib"), "PYTHONDONTWRITEBYTECODE": "1"}
        environ |= {"PATH": os.defpath, "TMPDIR": str(self.root)}  # Sphinx logs errors there
        program = Path(sys.executable).with_name("jupyter-book")
        done = subprocess.run(
            [program, "build", "book", "-W", "-n", "--keep-going"],
            cwd=self.root, env=environ, text=True, capture_output=True, timeout=300,
        )  # fmt: skip
        log = done.stdout + done.stderr
        found = set(re.findall(r"(\w+)\.ipynb: Execut(?:ed|ing) notebook", log))
        return done.returncode, sorted(found), log

    def page(self, name: str) -> str:
        return re.sub(r"<[^>]+>", "", (self.build_dir / f"html/{name}.html").read_text())


@pytest.mark.slow
def test_book_executes_what_has_changed_and_fails_when_a_notebook_fails(tmp_path):
    book = Book(tmp_path)

    def expect(*executed: str, answer: int) -> str:
        status, found, log = book.build()
        assert (status, found) == (0, [*executed]), log
        assert f"Answer: {answer}." in book.page("b"), "a glued value reaches the page showing it"
        return log

    book.notebook("d", "raise ValueError('on purpose')")
    status, executed, log = book.build()
    assert status != 0 and "on purpose" in log
    assert executed == ["a", "b", "d"]

    book.notebook("a", GLUE.replace("toy.answer", "toy.answer + 1"))
    # While a build is at work there is no state that the next one could take for the last.
    unknown = "assert not [*Path('.').rglob('execution_key.json')]"
    book.notebook("d", f"from pathlib import Path; print('d'); {unknown}")
    # b has not changed, and was executed although another notebook failed
    assert "2 of 2 side by side" in expect("a", "d", answer=42)

    book.write("lib/toy/__init__.py", "answer = 42\n")
    book.write("book/results/paper/study/run.json", json.dumps({"accuracy": 1}))
    book.write("lib/toy/d.csv", "")  # in place of a surrogate
    book.write("book/results/quick/study/run.json", "{}")
    told = "changed: data, quick, recorded, sources; every"
    assert told in expect("a", "b", "d", answer=43)

    with (book.build_dir / "build.lock").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        status, executed, log = book.build()
    assert status and not executed and "another build of this book is at work: wait" in log

    # no page asks another machine for anything: the book is read without a network
    html = "".join(p.read_text() for p in (book.build_dir / "html").glob("*.html"))
    assert "_static/mathjax/" in html
    assert not re.findall(r"<(?:script|img|iframe)[^>]+src=\"(?:https?:)?//[^\"]+", html)
    assert not re.findall(r"<link[^>]+stylesheet[^>]+href=\"(?:https?:)?//[^\"]+", html)
    assert "mybinder" not in html, "nobody knows the repository"


def test_what_measures_times_has_the_machine_for_itself(tmp_path, monkeypatch):
    config = yaml.safe_load((BOOK / "_config.yml").read_text())["sphinx"]["config"]
    assert all((BOOK / f"{name}.ipynb").is_file() for name in config["execution_alone"])
    for name in "abc":
        cells = [nbformat.v4.new_code_cell(f"'{name}'")]
        nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / f"{name}.ipynb")
    seen, ended = [], SimpleNamespace(time=0.0, err=ValueError(), nb=None)

    def executed(pair):
        seen.append(pair[0].stem)
        return pair[0], ended

    monkeypatch.setattr(side_by_side, "_executed", executed)
    monkeypatch.setattr(side_by_side.os, "cpu_count", lambda: 2)
    cache = SimpleNamespace(execution_cache_path=tmp_path / "cache")
    env = SimpleNamespace(mystnb_config=cache, doc2path=lambda name: tmp_path / f"{name}.ipynb")
    app = SimpleNamespace(config=SimpleNamespace(execution_alone=["c"]))
    monkeypatch.delenv("SPARSECORE_PROFILE", raising=False)
    side_by_side._execute(app, env, ["a", "b", "c"])
    assert sorted(seen) == ["a", "b"]
    monkeypatch.setenv("SPARSECORE_PROFILE", "paper")
    side_by_side._execute(app, env, ["a", "b", "c"])
    assert len(seen) == 2, "any page may measure"
