"""A user's own table: from a file to a saved estimator, and from that to predictions."""

import csv
import io
import json
import os
import re
import subprocess
import sys
import warnings

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from sklearn.datasets import dump_svmlight_file
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline

from sparsecore import SparseMLPClassifier, SparseMLPRegressor, checkpoint
from sparsecore.__main__ import main
from sparsecore.datasets import tables
from sparsecore.estimator import saved

X = np.random.default_rng(0).standard_normal((40, 5))
LABELS = np.where(X[:, 0] > 0, "up", "down")
DATES = np.where(X[:, 0] > 0, "2020-01-01", "2020-01-02").astype("datetime64[D]")


def as_csv(X, y=None, names="abcde"):
    header = [*names, *([] if y is None else ["y"])]
    rows = [
        [*map(repr, map(float, row)), *([] if y is None else [y[i]])] for i, row in enumerate(X)
    ]
    return "\n".join(",".join(row) for row in [header, *rows]) + "\n"


def write(path, form, X, y):
    if form == "csv":
        path.write_text(as_csv(X, y), encoding="utf-8-sig")
    elif form == "npz":
        np.savez(path, X=X, y=y)
    else:
        dump_svmlight_file(X, y == "up", str(path), zero_based=False)


@pytest.mark.parametrize("form", ["csv", "npz", "svmlight"])
def test_from_a_file_to_predictions(form, tmp_path, capsys):
    data, model = tmp_path / f"train.{form}", tmp_path / "model.npz"
    write(data, form, X, LABELS)
    target = [] if form == "svmlight" else ["--target", "y"]
    args = ["--epochs", "20", "--hidden", "8", "--batch", "8", "--json", "--out", str(model)]
    assert main(["train", "--data", str(data), *target, "--test", str(data), *args]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["test_score"] == result["train_score"] > 0.8
    assert main(["predict", str(model), str(data), "--proba"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    classes = ["0", "1"] if form == "svmlight" else ["down", "up"]
    assert list(rows[0]) == ["prediction", *classes]
    known = dict(zip(["down", "up"], classes, strict=True))
    hits = np.mean([row["prediction"] == known[y] for row, y in zip(rows, LABELS, strict=True)])
    assert hits == pytest.approx(result["train_score"])


def test_an_estimator_of_named_columns_predicts_a_file_without_a_warning(tmp_path):
    frame = pd.DataFrame(X, columns=["a", " b", *"cde"])  # as pandas reads "a, b"
    saved.save(SparseMLPClassifier((8,), max_iter=2).fit(frame, LABELS), tmp_path / "m.npz")
    (tmp_path / "a.csv").write_text(as_csv(X[:, ::-1], names=["e", " d ", "c", "b", "a"]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert main(["predict", str(tmp_path / "m.npz"), str(tmp_path / "a.csv")]) == 0


def test_a_class_may_have_any_name(tmp_path, capsys):
    model, data = str(tmp_path / "m.npz"), str(tmp_path / "a.csv")
    (tmp_path / "a.csv").write_text(as_csv(X))
    y = np.where(X[:, 0] > 0, "prediction", "other")
    saved.save(SparseMLPClassifier((8,), max_iter=2).fit(X, y), model, tuple("abcde"))
    assert main(["predict", model, data, "--proba"]) == 0
    rows = list(csv.reader(io.StringIO(capsys.readouterr().out)))
    assert rows[0] == ["prediction", "other", "prediction"]
    assert {row[0] for row in rows[1:]} <= {*y} and all(0 < float(r[2]) < 1 for r in rows[1:])


def test_predictions_are_utf_8_in_any_locale(tmp_path):
    model, data = str(tmp_path / "m.npz"), str(tmp_path / "a.csv")
    (tmp_path / "a.csv").write_text(as_csv(X))
    y = np.where(X[:, 0] > 0, "赤", "青")
    saved.save(SparseMLPClassifier((8,), max_iter=2).fit(X, y), model, tuple("abcde"))
    command = [sys.executable, "-m", "sparsecore", "predict", model, data]
    env = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    out = subprocess.run(command, env=env, capture_output=True, check=True).stdout
    assert {*out.decode().split()} <= {"prediction", "赤", "青"}


def test_an_interrupted_fit_says_what_is_saved(tmp_path, interrupted_in, capsys):
    data, model = str(tmp_path / "a.csv"), str(tmp_path / "m.npz")
    (tmp_path / "a.csv").write_text(as_csv(X, LABELS))
    words = ["train", "--data", data, "--target", "y", "--hidden", "8", "--out", model]
    with interrupted_in(3):
        assert main(words) == 130
    assert f"the 3 completed epochs are saved in {model}" in capsys.readouterr().err
    assert saved.load(model)[0].n_iter_ == 3


def test_labels_of_a_test_file_may_be_of_another_number_type(tmp_path, capsys):
    train, test = tmp_path / "train.npz", tmp_path / "test.npz"
    y = (X[:, 0] > 0).astype(np.int64)
    command = ["train", "--data", str(train), "--target", "y", "--test", str(test)]
    command += ["--epochs", "2", "--hidden", "8", "--json"]
    for kinds in ((np.int64, np.float64), (np.float64, np.int64)):
        for path, kind in zip((train, test), kinds, strict=True):
            np.savez(path, X=X, y=y.astype(kind))
        assert main([*command, "--task", "classes"]) == 0
        result = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert result["test_score"] == result["train_score"]


def test_columns_are_found_by_name(tmp_path, capsys):
    data, model, other = (str(tmp_path / n) for n in ("a.csv", "m.npz", "b.csv"))
    (tmp_path / "a.csv").write_text(as_csv(X, [f"{v:.3f}" for v in 2 * X[:, 0]]))
    assert main(["train", "--data", data, "--target", "y", "--epochs", "9", "--hidden", "8",
                 "--out", model]) == 0  # fmt: skip
    assert "R2: training" in capsys.readouterr().out
    (tmp_path / "b.csv").write_text(as_csv(np.c_[X[:, ::-1], X[:, 0]], names="edcbaz"))
    found = []
    for file in (data, other):
        assert main(["predict", model, file]) == 0
        found.append(capsys.readouterr().out)
    assert found[0] == found[1]
    (tmp_path / "b.csv").write_text(as_csv(X[:, :4], names="abcd"))
    assert main(["predict", model, other]) == 1
    assert "b.csv, line 1: expected one column 'e', got" in capsys.readouterr().err
    assert main(["predict", model, data, "--proba"]) == 1


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("a.csv", "a,y\n1,0\n\n2\n", "a.csv, line 4: expected 2 values as in the header, got 1"),
        ("a.csv", "a,b,y\n1,2,0\n3,red,1\n", "column 'b': expected a finite number, got 'red'"),
        ("a.csv", "a,y\n1,0\n,1\n", "a.csv, line 3, column 'a': expected a finite number, got ''"),
        ("a.csv", "a,y\n1,0\n2,\n", "a.csv, line 3, column 'y': expected a value, got none"),
        ("a.csv", "a,x\n1,0\n", "a.csv, line 1: expected one column 'y', got ['a', 'x']"),
        ("a.csv", "\na,x\n1,0\n", "a.csv, line 2: expected one column 'y', got ['a', 'x']"),
        ("a.csv", "a,a,y\n1,0,1\n", "a.csv, line 1: expected one column 'a', got"),
        ("a.csv", "a,y\n", "a.csv: expected rows of inputs, got 0 of 1"),
        ("a.csv", "y\n1\n", "a.csv: expected rows of inputs, got 1 of 0"),
        ("a.csv", "a,y\n1_000,0\n2,1\n", "column 'a': expected a finite number, got '1_000'"),
        ("a.csv", 'a,y\n1,up\n2,"down\n3,up\n', "a.csv, after line 4: unexpected end of data"),
        ("a.csv", ",a,y\n0,1,0\n", "a.csv, line 1: expected a name for each column, got ['', "),
        ("a.svmlight", "1 1:2\n0 1:red\n", "line 2, entry 2: expected index:number, with an index"),
        ("a.svmlight", "1 4294967296:1\n", "and below 2³¹, got '4294967296:1'"),
        ("a.svmlight", "1 qid:1 2:1 1:1\n", "line 1, entry 4: expected index:number"),
        ("a.svmlight", "1 1:2 # a_b\n0 1:1_5\n", "line 2, entry 2: expected index:number"),
        ("a.svmlight", "up 1:1\n", "line 1, entry 1: expected a number, got 'up'"),
        ("a.txt", "", "expected a .csv, .npz, .svmlight or .libsvm file"),
        ("a.csv", "a,y\n1,0\n2,\xe9\n", "continuation byte; save it as UTF-8"),
        ("a.csv", "a,y\n1,0\n2, \n", "a.csv, line 3, column 'y': expected a value, got none"),
        ("a.csv", "a;y\n1;0\n", "one column 'y', got ['a;y']; separate the columns by commas"),
        ("a.npz", "a,y\n1,0\n", "a.npz: File is not a zip file"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_a_file_is_named(name, text, told, tmp_path, capsys):
    (tmp_path / name).write_text(text, encoding="latin-1")
    target = [] if name.endswith("svmlight") else ["--target", "y"]
    assert main(["train", "--data", str(tmp_path / name), *target]) == 1
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({"x": X}, "expected an array 'X', got ['x']"),
        ({"X": X}, "expected an array 'y', got ['X']"),
        ({"X": X[0], "y": LABELS}, "X: expected a matrix of numbers, got float64 of (5,)"),
        ({"X": X, "y": LABELS[1:]}, "y: expected 40 values, one per row, got (39,)"),
        ({"X": X, "y": DATES}, "y: expected numbers or texts, got datetime64[D]"),
        ({"X": X, "y": LABELS.astype("S")}, "y: expected numbers or texts, got |S4"),
        ({"X": X, "y": LABELS.astype(object)}, "allow_pickle=False; save texts with .astype(str)"),
    ],
)
def test_what_is_wrong_in_an_archive_is_named(arrays, told, tmp_path):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=rf"a\.npz: .*{re.escape(told)}"):
        tables.read(tmp_path / "a.npz", "y")


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["--data", "a.csv"], "--target: expected the name of the column"),
        (["--data", "a.csv", "--dataset", "digits"], "--dataset: not with --data"),
        (["--data", "a.csv", "--target", "y", "--augment"], "not with --data"),
        (["--target", "y"], "--target: expected --data FILE with it"),
        (["--data", "a.csv", "--target", ""], "--target: expected the name of the column"),
        (["--data", "a.csv", "--target", "y", "--test", ""], "expected a .csv"),
        (["--data", "a.csv", "--target", "y", "--resume"], "--resume: not with --data"),
        (
            ["--data", "a.csv", "--target", "y", "--alpha", "0.5"],
            "--alpha: expected --activation leaky-relu or all-relu, got relu",
        ),
        (
            ["--data", "c.csv", "--target", "y", "--test", "one.csv", "--task", "numbers"],
            "one.csv: R² needs at least two rows, got one",
        ),
        (["--data", "a.svmlight", "--target", "y"], "--target: not with svmlight files"),
        (
            ["--data", "a.svmlight", "--test", "a.csv"],
            "--test: expected a file of --data's kind, svmlight, got a.csv",
        ),
        (["--data", "a.csv", "--algorithm", "wasap"], "--data; in Python, sparsecore.wasap.run"),
        (["--data", "a.csv", "--prune-percentile", "5"], "--prune-percentile: expected --prune-"),
        (
            ["--data", "c.csv", "--target", "y", "--test", "a.csv"],
            "a.csv: expected integers as in c.csv, got text or",
        ),
        (
            ["--data", "a.csv", "--target", "y", "--epochs", "0"],
            "--epochs: expected an integer of at least 1 with --data, got 0",
        ),
        (["--data", "b.csv", "--target", "y"], "No such file or directory: 'b.csv'"),
        (
            ["--data", "a.csv", "--target", "y", "--test", "c.csv", "--out", "./c.csv"],
            "--out: expected a file other than that of --test, got c.csv",
        ),
        (
            ["--data", "a.csv", "--target", "y", "--task", "numbers"],
            "a.csv, row 1: expected a number to predict, got 'up'",
        ),
    ],
)
def test_options_that_do_not_fit_are_refused(args, told, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.csv").write_text(as_csv(X, LABELS))
    (tmp_path / "c.csv").write_text(as_csv(X, ["0", "1"] * 20))
    (tmp_path / "one.csv").write_text("\n" + as_csv(X[:1], ["0"]))
    assert main(["train", *args]) == 1
    assert told in capsys.readouterr().err


def test_many_integers_may_be_numbers(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.csv").write_text(as_csv(X.repeat(3, axis=0), [str(i // 2) for i in range(120)]))
    args = ["train", "--data", "a.csv", "--target", "y", "--epochs", "1", "--hidden", "8"]
    assert main(args) == main([*args, "--task", "numbers"]) == 0
    assert capsys.readouterr().err.count("to predict numbers: --task numbers") == 1


@pytest.mark.parametrize(
    ("texts", "classes", "numbers"),
    [
        ("01 1 1_0", ["01", "1", "1_0"], None),
        ("007 7 7.0 +7", ["007", "7", "7.0", "+7"], [7, 7, 7, 7]),
        ("1e1 10", ["1e1", "10"], [10, 10]),
        ("9007199254740993 9007199254740992", [2**53 + 1, 2**53], [2**53, 2**53]),
        ("9223372036854775808 1", ["9223372036854775808", "1"], [2**63, 1]),
        ("-1 0 10", [-1, 0, 10], [-1, 0, 10]),
        ("1.1 1.2 2.1", ["1.1", "1.2", "2.1"], [1.1, 1.2, 2.1]),
        ("\u0663 3", ["\u0663", "3"], None),
    ],
)
def test_classes_are_the_texts_as_they_stand(texts, classes, numbers, tmp_path):
    (tmp_path / "a.csv").write_text("a,y\n" + "".join(f"0,{t}\n" for t in texts.split()), "utf-8")
    y = tables.read(tmp_path / "a.csv", "y").y
    found = tables.learnable(y, None)
    assert found.tolist() == (numbers if found.dtype.kind == "f" else classes)
    assert (found.dtype.kind == "f") == (texts == "1.1 1.2 2.1")
    assert tables.learnable(y, "classes").tolist() == classes
    if numbers is None:
        with pytest.raises(ValueError, match="expected a number to predict, got"):
            tables.learnable(y, "numbers")
    else:
        assert tables.learnable(y, "numbers").tolist() == numbers


def test_several_labels_are_predicted_in_columns_of_their_own(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("a.npz", X=X, m=np.c_[X[:, 0] > 0, X[:, 1] > 0].astype(int))
    args = ["--target", "m", "--epochs", "1", "--hidden", "8", "--out", "m.npz"]
    assert main(["train", "--data", "a.npz", *args]) == 0
    capsys.readouterr()
    assert main(["predict", "m.npz", "a.npz", "--proba"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "prediction 0,prediction 1,0,1" and len(lines[1].split(",")) == 4


def test_an_interrupt_while_the_file_is_written_leaves_it(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.csv").write_text(as_csv(X, LABELS))
    calls, save = [], saved.save

    def interrupted_once(*args):
        calls.append(args)
        if len(calls) == 1:
            raise KeyboardInterrupt
        save(*args)

    monkeypatch.setattr(saved, "save", interrupted_once)
    args = ["--target", "y", "--epochs", "2", "--hidden", "8", "--out", "m.npz"]
    assert main(["train", "--data", "a.csv", *args]) == 130
    assert len(calls) == 2 and saved.load("m.npz")[0].n_iter_ == 2


@pytest.mark.parametrize("y", [LABELS, X[:, 0] > 0, X[:, :2], np.c_[X[:, 0] > 0, X[:, 1] > 0]])
def test_a_saved_estimator_predicts_and_goes_on_as_before(y, tmp_path):
    numbers = y.dtype.kind == "f"
    y = y.astype(int) if y.ndim == 2 and not numbers else y
    made = (SparseMLPRegressor if numbers else SparseMLPClassifier)(
        (8,), max_iter=3, random_state=0
    )
    made.fit(X, y)
    saved.save(made, tmp_path / "m.npz")
    twin, names = saved.load(tmp_path / "m.npz")
    assert names is None and twin.get_params() == made.get_params()
    np.testing.assert_array_equal(twin.predict(X), made.predict(X))
    np.testing.assert_array_equal(
        twin.partial_fit(X, y).predict(X), made.partial_fit(X, y).predict(X)
    )
    assert twin.n_iter_ == 4 and twin.model_.weights_sha256() == made.model_.weights_sha256()


def test_labels_take_no_more_memory_than_their_letters(tmp_path):
    made, path = SparseMLPClassifier((8,), max_iter=1).fit(X, LABELS), tmp_path / "m.npz"
    saved.save(made, path)
    model, run = checkpoint.load(path)
    run["estimator"]["classes"]["dtype"] = "<U50000000"
    checkpoint.save(model, path, run)
    twin, _ = saved.load(path)
    assert twin.classes_.dtype == made.classes_.dtype
    np.testing.assert_array_equal(twin.predict(X), made.predict(X))


def test_all_that_an_estimator_was_given_is_saved(tmp_path):
    frame = pd.DataFrame(X, columns=list("abcde"))
    made = SparseMLPClassifier(
        np.array([16, 16]), max_iter=np.int64(2), batch_size=np.int64(8), epsilon=np.float32(3),
        standardize=np.bool_(True), early_stopping=True, class_weight={"up": np.float32(9)},
        random_state=0,
    ).fit(frame, LABELS)  # fmt: skip
    made.model_.prune(60)
    made.model_ = made.model_.compact()
    saved.save(made, tmp_path / "m.npz")
    twin, names = saved.load(tmp_path / "m.npz")
    assert names == tuple("abcde")
    for name, value in made.get_params().items():
        assert np.array_equal(twin.get_params()[name], value), name
    assert twin.validation_scores_ == made.validation_scores_
    assert twin.best_validation_score_ == made.best_validation_score_ is not None
    with pytest.raises(ValueError, match="feature names should match"):
        twin.predict(frame[list("edcba")])
    for one in (made, twin):
        one.partial_fit(frame, LABELS)
        assert max(one.model_.sizes[1:-1]) < 16, "a compacted network goes on as it is"
    assert twin.model_.weights_sha256() == made.model_.weights_sha256()
    with pytest.raises(ValueError, match=r"got epsilon 9\.0, not 3\.0; set"):
        twin.set_params(epsilon=9.0).partial_fit(frame, LABELS)


@pytest.mark.parametrize(
    ("made", "y", "error", "told"),
    [
        (SparseMLPClassifier((8,)), None, NotFittedError, "is not fitted yet"),
        (make_pipeline(SparseMLPClassifier((8,))), None, TypeError, "expected one of SparseMLPCl"),
        (SparseMLPClassifier((8,), max_iter=1), DATES, TypeError, "labels to be saved, got"),
        (
            SparseMLPClassifier((8,), max_iter=1, random_state=np.random.RandomState(0)), LABELS,
            TypeError, "as parameters (see set_params) and labels to be saved, got RandomState",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_saved_is_named(made, y, error, told, tmp_path):
    if y is not None:
        made.fit(X, y)
    with pytest.raises(error, match=re.escape(told)):
        saved.save(made, tmp_path / "m.npz")
    assert not list(tmp_path.iterdir())


def test_a_network_alone_is_no_estimator(tmp_path):
    made = SparseMLPClassifier((8,), max_iter=1, random_state=0).fit(X, LABELS)
    checkpoint.save(made.model_, tmp_path / "m.npz")
    with pytest.raises(checkpoint.CheckpointError, match="a network, not an estimator"):
        saved.load(tmp_path / "m.npz")
    checkpoint.save(made.model_, tmp_path / "m.npz", {"estimator": {"kind": "SparseMLPClassifier"}})
    with pytest.raises(checkpoint.CheckpointError, match="not a whole estimator"):
        saved.load(tmp_path / "m.npz")


def test_classes_that_are_fractions_are_the_same_in_a_test_file(tmp_path, capsys):
    y = np.repeat([0.5, 1.0, 1.5], 20)
    np.savez(tmp_path / "train.npz", X=np.eye(3).repeat(20, 0), y=y)
    np.savez(tmp_path / "test.npz", X=np.eye(3)[[1] * 20], y=np.ones(20, int))
    files = ["--data", str(tmp_path / "train.npz"), "--test", str(tmp_path / "test.npz")]
    assert main(["train", *files, "--target", "y", "--task", "classes", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["test_score"] == 1
    np.savez(tmp_path / "test.npz", X=np.eye(3), y=["up"] * 3)
    assert main(["train", *files, "--target", "y"]) == 1
    assert "test.npz, row 1: expected a number to predict, got 'up'" in capsys.readouterr().err


def test_sparse_tables_stay_sparse(tmp_path):
    dump_svmlight_file(sp.csr_array(np.eye(4)), np.arange(4) / 2, str(tmp_path / "a.svmlight"))
    table = tables.read(tmp_path / "a.svmlight")
    assert sp.issparse(table.X) and table.y.dtype == np.float64


def test_a_part_of_a_sparse_file_has_the_same_columns(tmp_path):
    (tmp_path / "a.svmlight").write_text("1 2:5\n")  # neither the first column nor the last
    found = tables.read(tmp_path / "a.svmlight", n_features=4).X.toarray()
    np.testing.assert_array_equal(found, [[0, 0, 5, 0]])
    with pytest.raises(ValueError, match=r"a\.svmlight: expected 2 inputs, got 3"):
        tables.read(tmp_path / "a.svmlight", n_features=2)


def test_the_seed_determines_what_is_learnt_from_a_table(tmp_path, capsys):
    (tmp_path / "a.csv").write_text(as_csv(X, LABELS))
    args = ["train", "--data", str(tmp_path / "a.csv"), "--target", "y", "--epochs", "2"]
    found = []
    for seed in "334":
        assert main([*args, "--hidden", "8", "--json", "--seed", seed]) == 0
        found.append(json.loads(capsys.readouterr().out.splitlines()[-1])["weights_sha256"])
    assert found[0] == found[1] != found[2]


def test_large_targets_of_svmlight_stay_what_they_are(tmp_path):
    (tmp_path / "a.svmlight").write_text("1e19 0:1\n2e19 0:1\n")
    assert tables.read(tmp_path / "a.svmlight").y.tolist() == [1e19, 2e19]


def test_fractions_are_not_the_integers_below_them(tmp_path, capsys):
    y = (X[:, 0] > 0).astype(int)
    np.savez(tmp_path / "train.npz", X=X, y=y)
    np.savez(tmp_path / "test.npz", X=X, y=y + 0.5)
    files = ["--data", str(tmp_path / "train.npz"), "--test", str(tmp_path / "test.npz")]
    assert main(["train", *files, "--target", "y", "--epochs", "1", "--hidden", "8"]) == 1
    assert "expected integers as in" in capsys.readouterr().err


def test_threads_of_a_table_are_those_of_its_estimator(tmp_path, threads_seen):
    (tmp_path / "a.csv").write_text(as_csv(X, LABELS))
    args = ["--data", str(tmp_path / "a.csv"), "--target", "y", "--epochs", "1", "--hidden", "8"]
    assert main(["train", *args, "--threads", "2"]) == 0
    assert len(threads_seen) >= 2 and set(threads_seen) == {2}
