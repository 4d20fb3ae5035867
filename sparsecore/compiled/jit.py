"""The one decorator that compiles: Numba's `njit`, with machine code kept on disk safely.

Processes that compile at the same time overwrite the index file of Numba's own cache for each
other, up to loading one signature's code for another; and it does not watch the functions that are
compiled into a function. So here each signature has a file of its own, named after its contents and
the sources it may be compiled from: nothing is shared, nobody waits, and nothing goes stale.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from numba import njit
from numba.core.caching import IndexDataCacheFile

_HERE = Path(__file__).parent


@cache
def _stamp(source: Path) -> str:
    """Digest what a function may be compiled from: this folder, and its own or its module."""
    own = [source] if source.parent == _HERE.parent else source.parent.glob("*.py")
    digest = hashlib.sha256()
    for path in sorted({*_HERE.glob("*.py"), *own}):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


class _SignatureFiles(IndexDataCacheFile):
    """A cache without an index: the name of a data file says what is in it."""

    def _name(self, key: Any) -> str:
        # The key's repr holds signature, CPU and options; Numba types have no stable pickle.
        digest = hashlib.sha256(repr((self._version, key)).encode()).hexdigest()[:16]
        base = self._index_name.removesuffix(".nbi")
        return f"{base}.{self._source_stamp}.{digest}.nbc"

    def save(self, key: Any, data: Any) -> None:
        """Write one signature's code, whole or not at all, and drop the code of older sources."""
        function = self._index_name.split("-")[0]  # its line follows, which moves
        for path in Path(self._cache_path).glob(f"{function}-*.nbc"):
            if f".{self._source_stamp}." not in path.name:
                path.unlink(missing_ok=True)
        self._save_data(self._name(key), data)

    def load(self, key: Any) -> Any:
        """Return one signature's code, or None."""
        try:
            return self._load_data(self._name(key))
        except (OSError, EOFError, pickle.UnpicklingError):
            return None

    def flush(self) -> None:
        """Forget nothing: names change with the sources."""


def jit(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Return a decorator that compiles at the first call, with options of `numba.njit` added."""
    options = {"nogil": True, "cache": True, "error_model": "numpy", **options}

    def decorate(function: Callable[..., Any]) -> Any:
        dispatcher = njit(**options)(function)
        files = getattr(dispatcher._cache, "_cache_file", None)
        if isinstance(files, IndexDataCacheFile):
            base = files._index_name.removesuffix(".nbi")
            stamp = _stamp(Path(function.__code__.co_filename))
            dispatcher._cache._cache_file = _SignatureFiles(files._cache_path, base, stamp)
        return dispatcher

    return decorate
