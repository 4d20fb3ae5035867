"""Inputs that are wrong in random ways: each is read right or refused, and nothing else happens.

Not part of the suite: ``pytest -m fuzz`` tries some in about a minute. ``SPARSECORE_FUZZ_INPUTS``
is the number of inputs per reader; with ``SPARSECORE_RECORD=1`` the counts are recorded for the
book. An input is made from the name of its reader and its number, so a failure repeats.
"""

from __future__ import annotations

import faulthandler
import gzip
import hashlib
import io
import json
import multiprocessing
import os
import resource
import signal
import tempfile
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import scipy.sparse as sp
from test_datasets import geo_text, higgs_text, idx, madelon_contents
from test_store import FOUND

from sparsecore import checkpoint, datasets
from sparsecore.datasets import registry, tables
from sparsecore.datasets.readers import DataFile
from sparsecore.estimator import SparseMLPClassifier, saved
from sparsecore.extreme import run, tiles
from sparsecore.extreme.config import ExtremeConfig
from sparsecore.extreme.network import TiledMLP, read_checkpoint
from sparsecore.mlp import SparseMLP
from sparsecore.paper import reliability, store

INPUTS = int(os.environ.get("SPARSECORE_FUZZ_INPUTS", 150))
MEMORY = 2**30  # bytes that an input may take beside the program
SECONDS = 10  # that it may take
ODD = [0, -1, 1, 2, 3, 7, 255, 256, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 10**9, 10**12, 2**62, 2**63]
ODD_FLOATS = [np.nan, np.inf, -np.inf, 1e300, -1e-300, 0.5, -0.0, 1e9]
ODD_JSON = [None, True, -1, 0, 1, 63, 10**9, 10**400, 0.5, 1e999, "", "relu", [], [1], {}, {"a": 1}]
DTYPES = ["u1", "i2", "u4", "i4", "u8", "i8", ">i4", "f4", "f8", "c8", "?", "U3", "S4", "M8[s]"]

Rng = np.random.Generator


class Reader(NamedTuple):
    """How inputs of a kind are made and read; `attempt` gets a generator and an empty folder."""

    attempt: Callable[[Rng, Path], Any]
    refusals: tuple[type[Exception], ...] = ()


# --- what goes wrong ------------------------------------------------------------------------------


def bytes_of(rng: Rng, content: bytes) -> bytes:
    """Return a content with some damage."""
    data = bytearray(content)
    for _ in range(rng.integers(1, 4)):
        at, length = (int(rng.integers(len(data) + 1)), int(rng.integers(1, 40)))
        how = rng.integers(7)
        if how == 0 and at < len(data):
            data[at] ^= 1 << int(rng.integers(8))
        elif how == 1:
            data[at : at + length] = rng.bytes(length)
        elif how == 2:
            del data[at : at + length]
        elif how == 3:
            data[at:at] = rng.bytes(length)
        elif how == 4:
            data[at:at] = data[at : at + length] * int(rng.integers(1, 50))
        elif how == 5:
            del data[at:]
        else:
            odd = ODD[rng.integers(len(ODD))] % 2**64
            data[at : at + 8] = odd.to_bytes(8, ["big", "little"][rng.integers(2)])
    return bytes(data)


def array_of(rng: Rng, array: np.ndarray) -> np.ndarray:
    """Return an array with a wrong value, order, length, shape or type."""
    array = np.array(array)
    how = rng.integers(8)
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if how <= 2 and array.size:
            values = ODD_FLOATS if array.dtype.kind == "f" and rng.random() < 0.8 else ODD
            value = values[rng.integers(len(values))]
            place = rng.integers(array.size)
            if array.dtype.kind in "iu":
                value = int(value) % 2 ** (8 * array.itemsize)
                value = np.array([value], f"u{array.itemsize}").astype(array.dtype)[0]
            array.reshape(-1)[place] = value
        elif how == 3:
            rng.shuffle(array.reshape(-1))
        elif how == 4:
            array = array.reshape(-1)[: rng.integers(array.size + 1)]
        elif how == 5:
            array = np.resize(array, int(rng.integers(1, 2 * array.size + 2)))
        elif how == 6:
            array = array.reshape([(1, -1), (-1, 1), (-1,)][rng.integers(3)])
        else:
            try:
                array = array.astype(DTYPES[rng.integers(len(DTYPES))])
            except (TypeError, ValueError):
                array = array[..., None]
    return array


def json_of(rng: Rng, value: Any) -> Any:
    """Return JSON with a wrong value somewhere."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        name = list(value)[rng.integers(len(value))]
        if rng.random() < 0.1:
            return {other: inner for other, inner in value.items() if other != name}
        return {**value, name: json_of(rng, value[name])}
    if isinstance(value, list) and value and rng.random() < 0.8:
        place = int(rng.integers(len(value)))
        return [*value[:place], json_of(rng, value[place]), *value[place + 1 :]]
    return ODD_JSON[rng.integers(len(ODD_JSON))]


def archive_of(rng: Rng, whole: bytes) -> bytes:
    """Return an archive of arrays with damage, or one whose checksums are right all the same."""
    if rng.random() < 0.4:
        return bytes_of(rng, whole)
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    names = list(members)
    rng.shuffle(names)
    for name in names[: rng.integers(1, 3)]:
        if name.endswith(".json"):
            members[name] = json.dumps(json_of(rng, json.loads(members[name]))).encode()
            continue
        if rng.random() < 0.2:
            members[name] = bytes_of(rng, members[name])
            continue
        array = np.load(io.BytesIO(members[name]))
        if name == "about.npy":
            array = np.array(json.dumps(json_of(rng, json.loads(str(array)))))
        else:
            array = array_of(rng, array)
        content = io.BytesIO()
        np.save(content, array)
        members[name] = content.getvalue()
        if rng.random() < 0.05:
            del members[name]
    made = io.BytesIO()
    kind = zipfile.ZIP_DEFLATED if rng.random() < 0.1 else zipfile.ZIP_STORED
    with zipfile.ZipFile(made, "w", kind) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return made.getvalue()


# --- models ---------------------------------------------------------------------------------------


def model() -> SparseMLP:
    made = SparseMLP.erdos_renyi((6, 5, 4, 3), density=0.6, random_state=0)
    made.start_momentum()[:] = 0.1
    return made


def use(made: SparseMLP) -> None:
    """Touch all memory that a network's arrays lead to."""
    X = np.ones((3, made.sizes[0]), np.float32)
    made.decision_function(X)
    made.loss_and_gradient(X, np.zeros(3, int))
    made.evolve(0.5, np.random.default_rng(0))
    made.prune(20)
    made.decision_function(X)
    made.compact()


@cache
def written(write: Callable[[Path], Any]) -> bytes:
    """Return what `write` writes."""
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / "file")
        return (Path(folder) / "file").read_bytes()


def save_model(path: Path) -> None:
    checkpoint.save(model(), path, {"epoch": 3})


def model_file(rng: Rng, folder: Path) -> None:
    path = folder / "model.npz"
    path.write_bytes(archive_of(rng, written(save_model)))
    use(checkpoint.load(path)[0])


def constructor(rng: Rng, folder: Path) -> None:
    made = model()
    layers = [made[layer] for layer in range(len(made))]
    parts = [
        [np.array(made.sizes)],
        *([layer.indptr.copy() for layer in layers], [layer.indices.copy() for layer in layers]),
        *([layer.data.copy() for layer in layers], [layer.bias.copy() for layer in layers]),
    ]
    for _ in range(rng.integers(1, 3)):
        part = parts[rng.integers(len(parts))]
        place = rng.integers(len(part))
        part[place] = array_of(rng, part[place])
    [sizes], indptr, indices, data, biases = parts
    if (
        sum(abs(float(n)) for n in np.ravel(sizes) if np.isreal(n) and sizes.dtype.kind in "iu")
        > 1e6
    ):
        sizes = np.array(made.sizes)  # a caller gets the memory that he asks for
    use(SparseMLP(sizes.tolist(), list(zip(indptr, indices, strict=True)), data, biases))


def matrices(rng: Rng, folder: Path) -> None:
    layers = model().to_scipy()
    layer = layers[rng.integers(len(layers))]
    name = ("indptr", "indices", "data")[rng.integers(3)]
    setattr(layer, name, array_of(rng, getattr(layer, name)))
    use(SparseMLP.from_scipy(layers))


def sparse_inputs(rng: Rng, folder: Path) -> None:
    X = sp.random_array((5, 6), density=0.5, rng=np.random.default_rng(0), format="csr")
    name = ("indptr", "indices", "data")[rng.integers(3)]
    setattr(X, name, array_of(rng, getattr(X, name)))
    model().decision_function(X)


# --- extreme checkpoints --------------------------------------------------------------------------

CONFIG = ExtremeConfig(neurons=600, hidden_layers=2, steps=6, evolve_every=4)
ABOUT = {"seed": 0, "config": asdict(CONFIG)}
STATE = {
    **ABOUT, "step": 4, "seconds": dict.fromkeys(run._PHASES, 1.0),
    "losses": [0.7] * 4, "step_seconds": [0.1] * 4, "evolve_seconds": [0.1],
}  # fmt: skip


def extreme_network() -> TiledMLP:
    return TiledMLP((60, 300, 300, 3), epsilon=4.0, seed=0)


def use_extreme(net: TiledMLP) -> None:
    X, y = np.ones((2, 60), np.float32), np.array([0, 1])
    net.step(X, y, 0.1)
    net.evolve(0.3, 1)
    net.step(X, y, 0.1)


def save_extreme(path: Path) -> None:
    with extreme_network() as net:
        net.save(path, STATE)


def extreme_file(rng: Rng, folder: Path) -> None:
    path = folder / "net.npz"
    path.write_bytes(archive_of(rng, written(save_extreme)))
    with extreme_network() as net:
        for found in (read_checkpoint(path), read_checkpoint(path, net)):
            checkpoint.check_resumed(path, found, ABOUT)
        use_extreme(net)


# --- data files -----------------------------------------------------------------------------------


def files_of(name: str) -> dict[str, bytes]:
    """Return small files in the form of a data set's."""
    rng = np.random.default_rng(0)
    names = [file.name for file in registry.find(name).files]
    if name == "fashion-mnist":
        arrays = [rng.integers(0, 256, (n, 28, 28), dtype=np.uint8) for n in (12, 10)]
        labels = [np.arange(n, dtype=np.uint8) % 10 for n in (12, 10)]
        contents = [idx(a) for pair in zip(arrays, labels, strict=True) for a in pair]
    elif name == "cifar10":
        contents = [bytes([n % 10]) + rng.bytes(3072) for n in range(6)]
    elif name == "madelon":
        return madelon_contents()[0]
    else:
        contents = [(higgs_text(62)[0] if name == "higgs" else geo_text()[0]).encode()]
    return dict(zip(names, contents, strict=True))


def data_files(name: str) -> Reader:
    """Return the reader of a data set's files, with the hashes of what damage has made of them."""
    entry = replace(registry.find(name), any_rows=True, classes=tuple("abcdef"))
    if name in ("fashion-mnist", "cifar10"):
        entry = replace(entry, classes=tuple("0123456789"))
    shapes = {"madelon": (500,), "leukemia": (130,)}
    entry = replace(entry, feature_shape=shapes.get(name, entry.feature_shape))

    def attempt(rng: Rng, folder: Path) -> None:
        contents = files_of(name)
        victim = list(contents)[rng.integers(len(contents))]
        packed = rng.random() < 0.5
        content = contents[victim]
        stored = dict(contents)
        if packed and rng.random() < 0.5:
            stored[victim] = bytes_of(rng, gzip.compress(content, mtime=0))
        else:
            content = contents[victim] = bytes_of(rng, content)
            stored[victim] = gzip.compress(content) if packed else content
        located = []
        for number, (file, content) in enumerate(contents.items()):
            path = folder / f"{number}{'.gz' * int(rng.integers(2))}"
            path.write_bytes(stored[file])
            digest = hashlib.sha256(content).hexdigest() if entry.files[0].sha256 else ""
            located.append((DataFile(file, digest, len(content)), path))
        files = tuple(file for file, _ in located)
        data, _ = datasets._read(replace(entry, files=files), "fuzz", located)
        data.scaled(data.X_test)

    return Reader(attempt, (datasets.DataCorrupt,))


# --- results --------------------------------------------------------------------------------------


ENTRY = store.Entry("F-test", "one", "paper")
OWN = {"study": "F-test", "name": "one", "profile": "paper", "recipe": store.RECIPE}


def save_result(path: Path) -> None:
    about = {"cpu": "a", "cores": 2, "python": "3"}
    store.write(path, {**OWN, "provenance": about, **FOUND})


def result_file(rng: Rng, folder: Path) -> None:
    os.environ[store.FOLDER] = str(folder)  # of a process of its own
    entry, whole = ENTRY, written(save_result)
    entry.path.parent.mkdir(parents=True)
    changed = json.dumps(json_of(rng, json.loads(whole))).encode()
    entry.path.write_bytes(bytes_of(rng, whole) if rng.random() < 0.5 else changed)
    found, state = entry.look()
    if found is None:
        raise store.ResultError(state)
    assert found == json.loads(whole)


# --- a user's tables, and what was trained on them -----------------------------------------------


def save_table(path: Path) -> None:
    np.savez(path.open("wb"), X=np.eye(6, 3), y=np.array(["up", "down"] * 3))


def save_csv(path: Path) -> None:
    path.write_text('a,b,y\n1.5,2,up\n3,-4e2,"down"\n5,6,up\n')


def save_svmlight(path: Path) -> None:
    path.write_text("1 qid:1 0:1.5 2:3 # first\n0 1:-4e2\n1 0:5 1:6 2:7\n")


def save_estimator(path: Path, texts: bool = True) -> None:
    X = np.random.default_rng(0).normal(size=(40, 3))
    y, up = (X[:, 0] > 0).astype(int), 1
    if texts:
        y, up = np.where(y, "up", "down"), "up"
    made = SparseMLPClassifier((4,), max_iter=2, early_stopping=True, class_weight={up: 2.0})
    saved.save(made.fit(X, y), path, ("a", "b", "c"))


def table_file(rng: Rng, folder: Path) -> None:
    kinds = {"csv": (save_csv, bytes_of), "npz": (save_table, archive_of)}
    kinds["svmlight"] = save_svmlight, bytes_of
    suffix = list(kinds)[rng.integers(3)]
    write, damaged = kinds[suffix]
    path = folder / f"table.{suffix}"
    path.write_bytes(damaged(rng, written(write)))
    found = tables.read(path, None if suffix == "svmlight" else "y")
    assert len(tables.learnable(found.y, None)) == found.X.shape[0]


def estimator_file(rng: Rng, folder: Path) -> None:
    path = folder / "model.npz"
    save = partial(save_estimator, texts=bool(rng.integers(2)))
    path.write_bytes(archive_of(rng, written(save)))
    saved.load(path)


REFUSED = (checkpoint.CheckpointError,)
READERS = {
    "model file": Reader(model_file, REFUSED),
    # weights that are finite, but too large, show as a loss that is not
    "extreme checkpoint": Reader(extreme_file, (*REFUSED, ValueError, FloatingPointError)),
    "constructor": Reader(constructor, (ValueError, TypeError)),
    "scipy matrices": Reader(matrices, (ValueError, TypeError)),
    "sparse inputs": Reader(sparse_inputs, (ValueError, TypeError)),
    **{f"{name} files": data_files(name) for name in
       ("fashion-mnist", "cifar10", "madelon", "higgs", "leukemia")},
    "result file": Reader(result_file, (store.ResultError,)),
    "your own table": Reader(table_file, (ValueError,)),
    "saved estimator": Reader(estimator_file, REFUSED),
}  # fmt: skip


# --- the pool -------------------------------------------------------------------------------------


def attempts(name: str, first: int, last: int, told: int) -> None:
    """Try inputs in a process of their own, and write a line about each to the handle `told`."""
    warnings.simplefilter("ignore")
    faulthandler.disable()  # the signal is told by the one who waits
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    reader = READERS[name]
    for number in range(first, last):
        rng = np.random.default_rng([zlib.crc32(name.encode()), number])
        signal.alarm(SECONDS)
        with tempfile.TemporaryDirectory() as folder:
            try:
                reader.attempt(rng, Path(folder))
                found = "read"
            except reader.refusals:
                found = "refused"
            except BaseException as error:
                found = f"{type(error).__name__}: {error}"[:300].replace("\n", " ")
        os.write(told, f"{found}\n".encode())
    signal.alarm(0)
    os._exit(0)


def tried(name: str, inputs: int, folder: Path) -> tuple[Counter[str], list[str]]:
    """Try inputs; return how many were read and refused, and what failed."""
    counts: Counter[str] = Counter()
    failures: list[str] = []
    path = folder / "told"
    done = 0
    while done < inputs:
        told = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        process = multiprocessing.get_context("fork").Process(
            target=attempts, args=(name, done, inputs, told)
        )
        process.start()
        process.join()
        os.close(told)
        lines = path.read_text().splitlines()
        for number, line in enumerate(lines, done):
            counts[line if line in ("read", "refused") else "failed"] += 1
            if line not in ("read", "refused"):
                failures.append(f"input {number}: {line}")
        done += len(lines)
        if done < inputs:
            code = process.exitcode or 0
            failures.append(f"input {done}: ended with {signal.Signals(-code).name if code else 0}")
            counts["failed"] += 1
            done += 1
    return counts, failures


@pytest.mark.fuzz
@pytest.mark.timeout(0)
@pytest.mark.parametrize("name", READERS)
def test_every_input_is_read_or_refused(name, tmp_path):
    # What is compiled and written here, the child processes inherit.
    for write in (
        save_model, save_extreme, save_result, save_csv, save_table, save_svmlight, save_estimator
    ):  # fmt: skip
        written(write)
    use(model())
    with extreme_network() as net:
        use_extreme(net)
        tiles.check(net.layers[0].grid, net.layers[0].tiles, net._team)
    counts, failures = tried(name, INPUTS, tmp_path)
    reliability.keep("fuzz", name, INPUTS, INPUTS - len(failures))
    assert counts.total() == INPUTS
    assert not failures, "\n".join(failures[:20])
    assert counts["refused"] > INPUTS / 20, "inputs that are wrong are refused"
