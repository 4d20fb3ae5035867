"""The one decorator that compiles: Numba's `njit`, with machine code kept on disk safely.

Processes that compile at the same time overwrite each other's index file in Numba's own cache, and
may load one signature's code for another. That cache also ignores changes of functions that are
compiled into a function. So here each signature has its own file, named after its contents and the
sources it may be compiled from: nothing is shared, nobody waits, and nothing goes stale.
"""

import hashlib
import pickle
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from numba import config, njit
from numba.core.caching import FunctionCache, IndexDataCacheFile

from sparsecore.files import atomic_write

_HERE = Path(__file__).parent
#: The kernels' sources, as this process loads them.
_KERNELS = {path: path.read_bytes() for path in _HERE.glob("*.py")}


@cache
def _stamp(source: Path) -> str:
    """Digest a function's possible sources: this folder, and its own folder or module."""
    # A module right below the package is compiled from this folder and itself.
    own = [source] if source.parent == _HERE.parent else source.parent.glob("*.py")
    digest, texts = hashlib.sha256(), {path: path.read_bytes() for path in own} | _KERNELS
    for path in sorted(texts):
        digest.update(texts[path])
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
        with atomic_write(self._data_path(self._name(key))) as file:
            file.write(self._dump(data))

    def load(self, key: Any) -> Any:
        """Return one signature's code, or None if it is not there."""
        try:
            return pickle.loads(Path(self._data_path(self._name(key))).read_bytes())
        except OSError:
            return None

    def flush(self) -> None:
        """Forget nothing: names change with the sources."""


class _Cache(FunctionCache):
    """Numba's cache of a function, with files as above; where it cannot write, nothing is kept."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        stamp = _stamp(Path(function.__code__.co_filename))
        base = self._impl.filename_base
        self._cache_file = _SignatureFiles(self._cache_path, base, stamp)

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep the code, or warn that it cannot be kept."""
        try:
            super().save_overload(sig, data)
        except OSError as error:
            _warn(f"{self._cache_path}: {error.strerror or error}")


@cache
def _warn(why: str) -> None:
    warnings.warn(
        f"compiled code cannot be kept ({why}): each process compiles anew, for up to a minute; "
        "set NUMBA_CACHE_DIR to a folder that can be written",
        RuntimeWarning,
        stacklevel=2,
    )


def jit(
    *, inner: bool = False, keep: bool = True, **options: Any
) -> Callable[[Callable[..., Any]], Any]:
    """Return a decorator that compiles at the first call, with options of `numba.njit` added."""
    # Mark a function `inner` if only compiled code calls it: it gets no code for calls from Python,
    # which would be half of its code. Such a call would crash. With `keep` the code is cached.
    if config.DISABLE_JIT:
        raise RuntimeError(
            "NUMBA_DISABLE_JIT: expected 0 or nothing, got 1; unset it: the kernels exist only as "
            "compiled code"
        )
    options |= {"no_cpython_wrapper": inner, "no_cfunc_wrapper": True}

    def decorate(function: Callable[..., Any]) -> Any:
        dispatcher = njit(nogil=True, error_model="numpy", **options)(function)
        if keep:
            try:
                dispatcher._cache = _Cache(function)
            except RuntimeError:  # Numba found none that can be written
                _warn("no folder can be written")
        return dispatcher

    return decorate


# How loops are compiled: to be called from Python, or from compiled code alone. Without these two
# options a step takes 8 ms instead of 2. With `_nrt` (Numba's run time), every access to an array
# of a tuple counts references, atomically, in the inner loop; no array is made in these loops, so
# there is nothing to count. And without `forceinline` LLVM calls the inner loops' bodies.
kernel = jit(_nrt=False)
inner = jit(inner=True, _nrt=False)
inline = jit(inner=True, _nrt=False, forceinline=True)
