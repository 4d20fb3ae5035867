"""Figures and tables: numbers come from results, absences are said, notebooks stay thin."""

import ast
import csv
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("pandas")

from sparsecore import datasets
from sparsecore.datasets import DataNotAvailable
from sparsecore.paper import figures, results
from sparsecore.paper.page import Table
from sparsecore.paper.training import studies, tables
from sparsecore.paper.training.conditions import METHODS, SENSITIVITIES, STUDIES, Study
from sparsecore.paper.training.observers import ObserveTopology
from sparsecore.settings import CHOICE, READING, SETTINGS

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.fixture(scope="module")
def curves(tmp_path_factory):
    """Return results of two data sets, one of which this machine cannot have."""
    study = Study(
        "F-test",
        "",
        datasets=("digits", "madelon"),
        methods=("set-relu", "set-all-relu"),
        seeds={"quick": (0, 1)},
        quick={"digits": {"epochs": 3, "hidden": (40, 40, 40), "epsilon": 4}},
        observers={("digits", "set-all-relu"): (ObserveTopology,)},
    )
    load = datasets.load

    def without_madelon(name):
        if name == "madelon":
            raise DataNotAvailable(name, [], "put it into /somewhere/private")
        return load(name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(STUDIES, "F-test", study)
        patch.setenv(results.ENVIRONMENT, str(tmp_path_factory.mktemp("results")))
        patch.setattr(datasets, "load", without_madelon)
        yield studies.load("F-test", progress=False)
    studies._last_data.clear()


def topology_of(curves):
    study = Study("F-view", "", ("digits",), ("set-all-relu",), runs_of="F-test")
    runs = curves.of("digits", "set-all-relu")
    return studies.Results(study, curves.profile, runs)


def texts(figure):
    return [t.get_text() for ax in figure.axes for t in ax.texts]


def test_curves_draw_means_and_bands_of_the_results(curves):
    picture = figures.curves(curves)
    top = picture.figure.axes[0]
    for line, method in zip(top.lines, ("set-relu", "set-all-relu"), strict=True):
        per_seed = [
            [100 * e["test_accuracy"] for e in run["epochs"] if "test_accuracy" in e]
            for run in curves.of("digits", method)
        ]
        np.testing.assert_allclose(line.get_ydata(), np.mean(per_seed, axis=0))
        assert line.get_xdata().tolist() == [1, 2, 3]
        assert line.get_color() == figures.COLOURS[method]
    band = top.collections[0].get_paths()[0].vertices[:, 1]
    per_seed = np.array(per_seed)
    first = np.array(
        [
            [100 * e["test_accuracy"] for e in run["epochs"] if "test_accuracy" in e]
            for run in curves.of("digits", "set-relu")
        ]
    )
    low, high = (first.mean(0) + s * first.std(0, ddof=1) for s in (-1, 1))
    assert band.min() == pytest.approx(low.min())
    assert band.max() == pytest.approx(high.max())


def test_caption_holds_the_numbers_of_the_results(curves):
    caption = figures.curves(curves).caption
    for method in ("set-relu", "set-all-relu"):
        final = [100 * run["test_accuracy"] for run in curves.of("digits", method)]
        said = f"{np.mean(final):.1f} ± {np.std(final, ddof=1):.1f} % with {METHODS[method].label}"
        assert said in caption
    assert "profile quick, seeds 0, 1" in caption
    assert "(3 epochs of 1,437 rows)" in caption


def test_absent_data_are_said_and_no_path_is_shown(curves):
    picture = figures.curves(curves)
    assert texts(picture.figure).count("not available\non this machine") == 2
    assert "Not available on this machine: Madelon." in picture.caption
    empty = studies.Results(STUDIES["F-topology"], "quick", [], frozenset({"fashion-mnist"}))
    for draw in (figures.degrees, figures.pixels):
        picture = draw(empty)
        assert texts(picture.figure) == ["not available\non this machine"]
        assert "Fashion-MNIST" in picture.caption
        assert "/somewhere" not in picture.caption + picture.svg()


def test_degree_histograms_hold_all_neurons(curves):
    figure = figures.degrees(topology_of(curves)).figure
    sizes = [64, 40, 40, 40]
    for ax, neurons in zip(figure.axes, sizes[:3] + sizes[1:], strict=True):
        for line in ax.lines[:2]:
            assert np.sum(line.get_ydata()) == pytest.approx(100), neurons
    assert figure.axes[0].get_ylabel() == "share of neurons (%)"


def test_pixels_are_where_they_are_in_the_picture(curves):
    found = topology_of(curves)
    images = [ax.images[0].get_array() for ax in figures.pixels(found).figure.axes if ax.images]
    seen = [e for e in found.runs[0]["epochs"] if "topology" in e]
    assert len(images) == len(seen)
    for image, record in zip(images, seen, strict=True):
        assert image.shape == (8, 8)
        np.testing.assert_allclose(np.ravel(image), record["topology"]["input_strength"])


def test_a_picture_is_the_same_svg_every_time(curves):
    assert figures.curves(curves).svg() == figures.curves(curves).svg()


def test_every_method_has_a_colour_of_its_own():
    varied = {m for m in METHODS if m.rpartition("-")[0] in SENSITIVITIES}
    assert set(figures.COLOURS) == set(METHODS) - varied
    assert len(set(figures.COLOURS.values())) == len(figures.COLOURS)


def test_hyperparameters_are_the_settings_with_their_origins():
    table = tables.hyperparameters()
    shown = table.frame.set_index("data set")
    for name, setting in SETTINGS.items():
        row = shown.loc[datasets.describe(name)["title"]]
        for field, label in (("alpha", "α"), ("learning_rate", "η"), ("batch_size", "batch")):
            mark = {READING: "†", CHOICE: "‡"}.get(setting.origin(field), "")
            assert row[label] == f"{getattr(setting.config, field):g}{mark}"
    assert shown.loc["Fashion-MNIST", "architecture"] == "784-1000-1000-1000-10"
    common = tables.common_hyperparameters().frame.set_index("hyperparameter")["value"]
    assert common["weight decay λ, per step"] == "0.0002"
    assert common["importance pruning from epoch"] == "200"


def test_data_sets_table_says_what_is_not_there(monkeypatch):
    def absent(name):
        raise DataNotAvailable(name, [], "see /somewhere/private")

    real = datasets.load
    monkeypatch.setattr(datasets, "load", lambda n: real(n) if n == "digits" else absent(n))
    table = tables.data_sets()
    shown = table.frame.set_index("data set")
    assert shown.loc["Fashion-MNIST", "source"] == "not available on this machine"
    assert shown.loc["Fashion-MNIST", "SHA-256"] == "—"
    digits = real("digits")
    assert shown.loc["Optical digits", "training"] == f"{len(digits.y_train):,}"
    rows = {row["name"]: row for row in csv.DictReader(io.StringIO(table.csv()))}
    assert rows["digits"]["sha256"] == digits.content_hash
    assert "/somewhere" not in table._repr_markdown_() + table.latex()


def test_table_in_three_forms():
    import pandas as pd

    frame = pd.DataFrame({"ε": ["1 % | 2", "`a_b`"], "n": ["3", "4†"]})
    table = Table("T-x", frame, "**Cap** of `x_1`.", frame, ("n",))
    markdown = table._repr_markdown_()
    assert markdown.startswith("````{table} **Cap** of `x_1`.\n:name: T-x\n")
    assert r"| 1 % \| 2 | 3 |" in markdown
    assert "| :--- | ---: |" in markdown
    latex = table.latex()
    assert r"\begin{tabular}{lr}" in latex
    assert r"1 \% | 2 & 3" in latex
    assert r"\texttt{a\_b} & 4$^\dagger$" in latex
    assert r"\caption{\textbf{Cap} of \texttt{x\_1}.}" in latex
    html = table._repr_html_()
    assert "<b>Cap</b> of <code>x_1</code>." in html
    assert 'download="T-x.csv"' in html


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebooks_are_thin_and_without_outputs(path):
    cells = json.loads(path.read_text())["cells"]
    for cell in (c for c in cells if c["cell_type"] == "code"):
        assert cell["outputs"] == []
        assert cell["execution_count"] is None
        forbidden = (ast.FunctionDef, ast.ClassDef, ast.Lambda, ast.For, ast.While)
        assert not any(
            isinstance(n, forbidden) for n in ast.walk(ast.parse("".join(cell["source"])))
        )


def test_every_notebook_is_in_the_book():
    toc = (ROOT / "book" / "_toc.yml").read_text()
    listed = re.findall(r"notebooks/(\S+)", toc)
    assert sorted(listed) == [path.stem for path in NOTEBOOKS]
