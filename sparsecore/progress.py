"""Progress bars, made only here, and output streams that fail without harm."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any


class Unfailing:
    """A stream for diagnostics: text is dropped when the stream is full or closed."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write what can be written."""
        with self._trouble():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush what can be flushed."""
        with self._trouble():
            self._stream.flush()

    def _trouble(self) -> Any:
        return suppress(OSError, ValueError)  # a closed file is a ValueError

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class OutputClosedError(BrokenPipeError):
    """Nobody reads standard output any more, as with ``| head``."""


class Output(Unfailing):
    """A stream for results: errors name it, and a closed pipe raises `OutputClosedError`."""

    @contextmanager
    def _trouble(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError as error:
            raise OutputClosedError(*error.args) from None
        except OSError as error:
            error.filename = "standard output"
            raise


def bar(
    total: float | None, desc: str | None = None, *, hidden: bool = False, **options: Any
) -> Any:
    """Return tqdm's bar on standard error; `total` is None if it is unknown."""
    from tqdm.auto import tqdm  # imported on use: data commands show no bar

    own = sys.stderr is sys.__stderr__  # those of a notebook and of `main` do not fail
    hidden, file = hidden or sys.stderr is None, Unfailing(sys.stderr) if own else sys.stderr
    page = tqdm.__module__ == "tqdm.auto"  # a notebook's bar is redrawn in place
    pause = 0.2 if not hidden and (page or sys.stderr.isatty()) else 10  # s: a log is not flooded
    options["dynamic_ncols"] = True  # as wide as the terminal, or a notebook's page
    return tqdm(total=total, desc=desc, disable=hidden, file=file, mininterval=pause, **options)


@contextmanager
def epoch_bar(
    title: str, epochs: int, *, hidden: bool = False
) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Yield a function that shows a parallel run's state in a bar, unless `hidden`."""
    form = "{l_bar}{bar}| {n:.1f}/{total} [{elapsed}{postfix}]"
    with bar(epochs, title, unit="epoch", hidden=hidden, bar_format=form) as shown:

        def show(state: dict[str, Any]) -> None:
            accuracy = state["test_accuracy"]
            test = "" if accuracy is None else f", test {100 * accuracy:.2f} %"
            told = "phase {phase}, {updates} updates, staleness {staleness:.1f}".format_map(state)
            shown.set_postfix_str(told + test, refresh=False)
            shown.update(state["epoch"] - shown.n)

        yield show
        shown.update(epochs - shown.n)  # the last state came before the end
