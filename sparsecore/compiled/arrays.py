"""Checks and views of a caller's arrays, for kernels that check nothing."""

from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

import numpy as np

T = TypeVar("T")


def reads(array: Any, dtype: type, ndim: int = 1) -> np.ndarray:
    """Return an array as kernels read it: always one type, so no kernel is compiled again."""
    array = np.require(array, dtype, ["C", "A", "E"])
    if array.ndim != ndim:
        raise ValueError(f"expected an array of {ndim} dimensions, got shape {array.shape}")
    view = array.view()
    view.flags.writeable = False  # Numba has a separate type for writable arrays
    return view


def sealed(array: np.ndarray) -> np.ndarray:
    """Return a view that nobody can make writable again."""
    if not array.flags.writeable:
        return array
    return np.frombuffer(array.data.toreadonly(), array.dtype)


class Fixed:
    """Base of classes whose attributes in `FIXED` are set once: buffers and checks use them."""

    FIXED: ClassVar[tuple[str, ...]] = ()

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.FIXED and name in self.__dict__:
            raise AttributeError(f"{name}: cannot be replaced; make a new {type(self).__name__}")
        object.__setattr__(self, name, value)


class Closing:
    """Base of classes whose objects are closed at the end of a ``with``."""

    close: Callable[[], None]

    def __enter__(self: T) -> T:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
