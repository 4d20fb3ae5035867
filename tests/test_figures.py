"""Pages: tables in three forms, tables of facts, colours; notebooks stay thin."""

import ast
import csv
import io
import json
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("pandas")

from sparsecore import datasets
from sparsecore.datasets import DataNotAvailable
from sparsecore.paper.page import Column, Table
from sparsecore.paper.style import COLOURS
from sparsecore.paper.training import tables
from sparsecore.paper.training.conditions import METHODS, SENSITIVITIES
from sparsecore.settings import CHOICE, READING, SETTINGS

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))


def test_every_method_has_a_colour_of_its_own():
    varied = {m for m in METHODS if m.rpartition("-")[0] in SENSITIVITIES}
    assert set(COLOURS) == set(METHODS) - varied
    assert len(set(COLOURS.values())) == len(COLOURS)


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
    assert common["weight decay λ, per step"] == "0, 0.0002"
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


def test_a_table_is_made_of_rows_and_columns():
    columns = (
        Column("group", "group", number=False, once=True),
        Column("n", "n", "{:,}"),
        Column("both", "", lambda row: f"{row['group']}{row['n']}", number=False),
    )
    rows = [{"group": "a", "n": 1000}, {"group": "a", "n": None}, {"group": "b", "n": 2}]
    table = Table.of("T-x", rows, columns, "")
    assert table.frame.to_dict("list") == {
        "group": ["a", "", "b"], "n": ["1,000", "—", "2"], "both": ["a1000", "aNone", "b2"],
    }  # fmt: skip
    assert table.numbers == ("n",)
    assert table.csv().splitlines() == ["group,n", "a,1000.0", "a,", "b,2.0"]


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
def test_notebooks_load_call_and_show(path):
    forbidden = (ast.FunctionDef, ast.ClassDef, ast.Lambda, ast.For, ast.While)
    for cell in json.loads(path.read_text())["cells"]:
        if cell["cell_type"] == "code":
            tree = ast.parse("".join(cell["source"]))
            assert not any(isinstance(node, forbidden) for node in ast.walk(tree))
