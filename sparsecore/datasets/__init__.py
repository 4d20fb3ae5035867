"""The data sets of the study: find, fetch, verify, load and augment them.

These public functions look in `$SPARSECORE_DATA/<name>/`, then in the user's cache, then at the
data set's mirrors; each refuses an unknown name with ValueError.
"""

from __future__ import annotations

from pathlib import Path

from sparsecore.datasets import registry, sources
from sparsecore.datasets.dataset import Dataset, hash_arrays
from sparsecore.datasets.generators import Arrays, artificial
from sparsecore.datasets.readers import DataCorrupt, DataError, Located, Parsed
from sparsecore.datasets.registry import Entry
from sparsecore.datasets.sources import DataNotAvailable, Tried

__all__ = [
    "DataCorrupt",
    "DataError",
    "DataNotAvailable",
    "Dataset",
    "artificial",
    "available",
    "describe",
    "fetch",
    "load",
    "names",
    "stands_in",
    "verify",
]

SURROGATE = "surrogate generator"


def names() -> tuple[str, ...]:
    """Return the names of all data sets."""
    return tuple(entry.name for entry in registry.ENTRIES)


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
    surrogate = "files or surrogate" if entry.files else "embedded"
    return {fact: getattr(entry, fact) for fact in same} | {
        "feature_shape": list(entry.feature_shape),
        "n_classes": len(entry.classes),
        "classes": list(entry.classes),
        "kind": "files" if entry.generate is None else surrogate,
        "files": [file.name for file in entry.files],
        "mirrors": [mirror.label for mirror in entry.mirrors],
        "sha256": entry.content_hash,
    }


def available(name: str) -> bool:
    """Tell whether `load(name)` would succeed without any download.

    The files' content is not read. For "leukemia" always True, since a surrogate stands in.
    """
    entry = registry.find(name)
    return entry.generate is not None or _locate(entry, []) is not None


def stands_in(name: str) -> bool:
    """Tell whether `load` would return a surrogate here: for "leukemia" without its file."""
    entry = registry.find(name)
    return entry.generate is not None and bool(entry.files) and _locate(entry, []) is None


def load(name: str) -> Dataset:
    """Load a data set, downloading it to the user's cache where it is not at hand.

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
        If a file is cut short or does not have the content that it should have.
    DataNotAvailable
        If no source has the data; it names each one tried, and what to do.

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
    place = _locate(entry, tried)
    if place is None and entry.generate is not None:
        return _generated(entry)
    label, located = place or _downloaded(entry, tried, asked=False)
    parsed = _read(entry, located)
    arrays = parsed.X_train, parsed.y_train, parsed.X_test, parsed.y_test
    return _dataset(entry, arrays, label, parsed.content_hash, parsed.classes)


def fetch(name: str) -> Path | None:
    """Make sure that the verified files of data set `name` are here; return their folder.

    None is returned for embedded data. A damaged file in the cache is replaced, one in the user's
    own folder raises DataCorrupt; if no source has the data, DataNotAvailable is raised.
    """
    entry = registry.find(name)
    if entry.read is None:
        return None
    tried: Tried = []
    place = _locate(entry, tried)
    cache = sources.cache_folder(entry.name)
    if place is not None:
        folder = place[1][0][1].parent
        try:
            _read(entry, place[1])
            return folder
        except DataCorrupt as error:
            if folder != cache or not entry.mirrors:
                raise
            tried.append((f"cache ({cache})", str(error)))
            Path(error.path).unlink(missing_ok=True)
    _, located = _downloaded(entry, tried, asked=True)
    _read(entry, located)
    return located[0][1].parent


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
        If a content is wrong, or the files are not here.
    """
    entry = registry.find(name)
    tried: Tried = []
    place = _locate(entry, tried)
    if place is not None:
        parsed = _read(entry, place[1])
        return {
            str(path): digest
            for (_, path), (_, digest) in zip(place[1], parsed.digests, strict=True)
        }
    if entry.generate is None:
        raise DataNotAvailable(name, tried, _remedy(entry))
    return {name: _generated(entry).content_hash}


def _locate(entry: Entry, tried: Tried) -> tuple[str, Located] | None:
    """Find all files of a data set in one local place."""
    if entry.read is None:
        return None
    for place in sources.places(entry.name, entry.subfolder, entry.mirrors, tried):
        located = place.look(entry.files, tried)
        if located is not None:
            return place.label, located
    return None


def _downloaded(entry: Entry, tried: Tried, asked: bool) -> tuple[str, Located]:
    """Bring the files into the cache, and find them there."""
    if entry.on_request and not asked:
        command = f"python -m sparsecore data fetch {entry.name}"
        reason = f"{entry.megabytes / 1000:.1f} GB are downloaded only on request: {command}"
        tried += [(mirror.label, reason) for mirror in entry.mirrors]
    elif sources.download(entry.name, entry.files, entry.mirrors, tried):
        place = sources.cache_place(entry.name)
        located = place.look(entry.files, tried)
        if located is not None:
            return place.label, located
    raise DataNotAvailable(entry.name, tried, _remedy(entry))


def _read(entry: Entry, located: Located) -> Parsed:
    """Read and check files; an error says how to replace a damaged one."""
    assert entry.read is not None
    first = located[0][1]
    try:
        parsed = entry.read(located)
        for (file, path), (_, digest) in zip(located, parsed.digests, strict=True):
            if file.sha256 is None:
                cached = path.parent == sources.cache_folder(entry.name)
                sources.check_pin(path, digest, keep=cached)
        n_train, n_test, columns = len(parsed.y_train), len(parsed.y_test), parsed.X_train.shape[1]
        rows_fit = entry.any_rows or (n_train, n_test) == (entry.n_train, entry.n_test)
        if columns != entry.n_features or not rows_fit:
            wanted = f"{entry.n_train} and {entry.n_test} rows of {entry.n_features} features"
            raise DataCorrupt(first, wanted, f"{n_train} and {n_test} rows of {columns}")
        if parsed.classes is not None and len(parsed.classes) != len(entry.classes):
            raise DataCorrupt(first, f"{len(entry.classes)} classes", f"{len(parsed.classes)}")
    except DataCorrupt as error:
        remedy = f"replace the file with the one from {entry.home}"
        if entry.on_request:  # a very large download
            remedy = f"correct the file; {entry.home} says what it has to hold"
        elif entry.mirrors:
            fetch = f"python -m sparsecore data fetch {entry.name}"
            remedy = f"delete the file and run `{fetch}`, or {remedy}"
        raise DataCorrupt(error.path, error.expected, error.got, error.remedy or remedy) from None
    except (ValueError, IndexError, OverflowError) as error:
        raise DataCorrupt(first, "a file of its format", str(error)) from None
    return parsed


def _dataset(
    entry: Entry, arrays: Arrays, source: str, digest: str, classes: tuple[str, ...] | None = None
) -> Dataset:
    X_train, y_train, X_test, y_test = arrays
    return Dataset(
        entry.name, X_train, X_test, y_train, y_test, classes or entry.classes,
        entry.feature_shape, entry.domain, source, digest, surrogate=source == SURROGATE,
    )  # fmt: skip


def _generated(entry: Entry) -> Dataset:
    """Make embedded data, or the surrogate of a data set that is missing."""
    assert entry.generate is not None
    arrays = entry.generate()
    digest = hash_arrays(*arrays)
    if entry.sha256 is not None and digest != entry.sha256:
        where, wanted = f"{entry.name} (embedded in scikit-learn)", f"SHA-256 {entry.sha256}"
        raise DataCorrupt(where, f"{wanted} of the arrays", digest, "reinstall scikit-learn")
    embedded = "scikit-learn" if entry.sha256 is not None else "generator"
    return _dataset(entry, arrays, SURROGATE if entry.files else embedded, digest)


def _remedy(entry: Entry) -> str:
    """Say how to put a data set's files in place by hand."""
    listed = ", ".join(file.name for file in entry.files)
    homes = [", ".join(m.urls) for m in entry.mirrors if isinstance(m, sources.Home)]
    return (
        f"To put the files in place by hand: download them ({', '.join(homes) or entry.home}), put "
        f"{listed} (gzipped or not) into a folder {entry.name}/, and set "
        f"{sources.ENVIRONMENT} to the folder above it; or put them into "
        f"{sources.cache_folder(entry.name)}. Then: python -m sparsecore data verify {entry.name}"
    )
