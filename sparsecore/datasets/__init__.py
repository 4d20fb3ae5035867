"""The data sets of the study: find, fetch, verify, load and augment them.

These public functions look in `$SPARSECORE_DATA/<name>/`, then in the user's cache, then at the
data set's mirrors; each refuses an unknown name with ValueError.
"""

import contextlib
import hashlib
from pathlib import Path

from sparsecore.datasets import registry, sources
from sparsecore.datasets.dataset import Arrays, Dataset, hash_arrays
from sparsecore.datasets.generators import artificial
from sparsecore.datasets.readers import DataCorrupt, DataError, DataFile, Located
from sparsecore.datasets.sources import DataNotAvailable, Listing, Tried

__all__ = [
    "DataCorrupt", "DataError", "DataNotAvailable", "Dataset", "artificial", "available",
    "describe", "fetch", "load", "names", "stands_in", "verify",
]  # fmt: skip

SURROGATE = "surrogate generator"


def names() -> tuple[str, ...]:
    """Return the names of all data sets."""
    return tuple(entry.name for entry in registry.LISTINGS)


def describe(name: str) -> dict[str, object]:
    """Return the static facts about a data set, without touching files or the network.

    Parameters
    ----------
    name : str
        One of `names()`.

    Returns
    -------
    dict
        JSON-serialisable: `name`, `title`, `domain`, `n_features`, `feature_shape`, `n_classes`,
        `classes`, `n_train`, `n_test`, `kind` ("files", "embedded" or "files or surrogate"),
        `files` (names), `mirrors` (labels, in order), `megabytes` (download; 0 if there is none),
        `on_request` (True where only `fetch` downloads, never `load`), `home`, `licence`,
        `citation`, `sha256` (pinned content hash, or None where the content may vary).
    """
    entry = registry.find(name)
    same = ("name", "title", "domain", "n_features", "n_train", "n_test", "megabytes", "on_request",
            "home", "licence", "citation")  # fmt: skip
    pinned = entry.files and all(file.sha256 for file in entry.files)
    surrogate = "files or surrogate" if entry.files else "embedded"
    return {fact: getattr(entry, fact) for fact in same} | {
        "feature_shape": list(entry.feature_shape), "n_classes": len(entry.classes),
        "classes": list(entry.classes), "kind": "files" if entry.generate is None else surrogate,
        "files": [file.name for file in entry.files],
        "mirrors": [mirror.label for mirror in entry.mirrors],
        "sha256": _content_hash(entry.files) if pinned else entry.sha256,
    }  # fmt: skip


def available(name: str) -> bool:
    """Return whether `load(name)` would succeed without any download.

    The files' content is not read. Always True for "leukemia", which has a surrogate.
    """
    entry = registry.find(name)
    return entry.generate is not None or sources.locate(entry, []) is not None


def stands_in(name: str) -> bool:
    """Return whether `load` would return a surrogate here: for "leukemia" without its file."""
    entry = registry.find(name)
    return entry.generate is not None and bool(entry.files) and sources.locate(entry, []) is None


def load(name: str) -> Dataset:
    """Load a data set; download it to the user's cache if it is not on this machine.

    Parameters
    ----------
    name : str
        One of `names()`.

    Returns
    -------
    Dataset
        Raw arrays (uint8 images, float32 otherwise) with names, provenance and content hash.

    Raises
    ------
    DataCorrupt
        If a file is cut short or has the wrong content.
    DataNotAvailable
        If no source has the data; the message names each source tried, and what to do.

    Notes
    -----
    Every load checks the content against its pinned SHA-256, where the content is fixed. HIGGS is
    never downloaded here (2.8 GB): `fetch` does that. Without its file, "leukemia" is a surrogate.

    Examples
    --------
    >>> from sparsecore import datasets
    >>> data = datasets.load("digits")
    >>> data.X_train.shape, data.feature_shape, data.n_classes
    ((1437, 64), (8, 8), 10)
    """
    entry = registry.find(name)
    tried: Tried = []
    place = sources.locate(entry, tried)
    if place is None and entry.generate is not None:
        return _generated(entry)
    return _read(entry, *(place or sources.download(entry, tried, asked=False)))[0]


def fetch(name: str) -> Path | None:
    """Make the verified files of a data set available; replace damaged ones in the cache.

    Parameters
    ----------
    name : str
        One of `names()`.

    Returns
    -------
    Path or None
        Folder of the files; None for embedded data.

    Raises
    ------
    DataNotAvailable
        If no source has the data.
    DataCorrupt
        If a damaged file is in the user's own folder, or in the cache and no mirror has it.
    """
    entry = registry.find(name)
    if not entry.files:
        return None
    tried: Tried = []
    if place := sources.locate(entry, tried):
        try:
            _read(entry, *place)
            return place.folder
        except DataCorrupt as error:
            if place.folder != sources.cache_folder(name) or not entry.mirrors:
                raise
            tried.append((place.label, str(error)))
            with contextlib.suppress(OSError):  # if it stays, `_read` says what is wrong with it
                Path(error.path).unlink()
    place = sources.download(entry, tried, asked=True)
    _read(entry, *place)
    return place.folder


def verify(name: str) -> dict[str, str]:
    """Check the content of a data set that is on this machine; nothing is downloaded.

    Returns
    -------
    dict
        SHA-256 of the content of each file, by path; of generated arrays, by the data set's name.
        Of a HIGGS file only the rows in use are read.

    Raises
    ------
    DataCorrupt, DataNotAvailable
        If a file has the wrong content, or is not on this machine.
    """
    entry = registry.find(name)
    tried: Tried = []
    if place := sources.locate(entry, tried):
        _, digest = _read(entry, *place)
        return {str(path): file.sha256 or digest for file, path in place.files}
    if entry.generate is None:
        raise sources.not_available(entry, tried)
    return {name: _generated(entry).content_hash}


def _read(entry: Listing, label: str, located: Located) -> tuple[Dataset, str]:
    """Read and check files; return their contents, and the hash of one without a published hash."""
    assert entry.read is not None
    first = located[0][1]
    try:
        arrays, digest, classes = entry.read(located)
        X, _, X_test, _ = arrays
        wanted, found = (entry.n_train, entry.n_test), (len(X), len(X_test))
        if X.shape[1] != entry.n_features or not (entry.any_rows or found == wanted):
            rows = "{} and {} rows of {}"
            expected = f"{rows.format(*wanted, entry.n_features)} features"
            raise DataCorrupt(first, expected, rows.format(*found, X.shape[1]))
        if classes is not None and len(classes) != len(entry.classes):
            raise DataCorrupt(first, f"{len(entry.classes)} classes", f"{len(classes)}")
        if digest:
            cached = first.parent == sources.cache_folder(entry.name)
            sources.check_pin(first, digest, keep=cached)
        content = _content_hash(entry.files, digest)
        return _dataset(entry, arrays, label, content, classes), digest
    except DataCorrupt as error:
        remedy = f"replace the file with the one from {entry.home}"
        if entry.on_request:  # a very large download
            remedy = f"correct the file; {entry.home} describes its content"
        elif entry.mirrors:
            fetch = f"python -m sparsecore data fetch {entry.name}"
            remedy = f"delete the file and run `{fetch}`, or {remedy}"
        raise DataCorrupt(error.path, error.expected, error.got, error.remedy or remedy) from None
    except (ValueError, IndexError, OverflowError) as error:
        raise DataCorrupt(first, "a file of its format", str(error)) from None


def _content_hash(files: tuple[DataFile, ...], digest: str = "") -> str:
    """Hash the hashes of all files, a line `hash  name` each, into one for the data set."""
    lines = (f"{file.sha256 or digest}  {file.name}\n" for file in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _dataset(
    entry: Listing, arrays: Arrays, source: str, digest: str, classes: tuple[str, ...] | None = None
) -> Dataset:
    X_train, y_train, X_test, y_test = arrays
    data = Dataset(
        entry.name, X_train, X_test, y_train, y_test, classes or entry.classes,
        entry.feature_shape, entry.domain, source, surrogate=source == SURROGATE,
    )  # fmt: skip
    return data.derived(digest)


def _generated(entry: Listing) -> Dataset:
    """Make embedded data, or the surrogate of a data set that is missing."""
    assert entry.generate is not None
    arrays = entry.generate()
    digest = hash_arrays(*arrays)
    if entry.sha256 is not None and digest != entry.sha256:
        where, wanted = f"{entry.name} (embedded in scikit-learn)", f"SHA-256 {entry.sha256}"
        raise DataCorrupt(where, f"{wanted} of the arrays", digest, "reinstall scikit-learn")
    embedded = "scikit-learn" if entry.sha256 is not None else "generator"
    return _dataset(entry, arrays, SURROGATE if entry.files else embedded, digest)
