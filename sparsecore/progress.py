"""The state of a parallel run as a terminal shows it."""

from __future__ import annotations

import sys
from typing import Any

from tqdm.auto import tqdm


class EpochBar:
    """A progress bar over epochs, on standard error.

    Parameters
    ----------
    title : str
    epochs : int
    hidden : bool
        Show nothing: another rank does.
    """

    def __init__(self, title: str, epochs: int, *, hidden: bool = False) -> None:
        self._epochs = epochs
        self._bar = tqdm(
            total=epochs,
            desc=title,
            unit="epoch",
            bar_format="{l_bar}{bar}| {n:.1f}/{total} [{elapsed}{postfix}]",
            disable=hidden,
            file=sys.stderr,
            mininterval=0.2 if sys.stderr.isatty() else 10,  # a log is not flooded
        )

    def __call__(self, state: dict[str, Any]) -> None:
        """Show where the run stands."""
        accuracy = state["test_accuracy"]
        self._bar.set_postfix_str(
            f"phase {state['phase']}, {state['updates']} updates, staleness "
            f"{state['staleness']:.1f}" + (f", test {100 * accuracy:.2f} %" if accuracy else ""),
            refresh=False,
        )
        self._bar.update(state["epoch"] - self._bar.n)

    def finish(self) -> None:
        """Show that all epochs are done."""
        self._bar.update(self._epochs - self._bar.n)

    def close(self) -> None:
        """Leave the bar as it is."""
        self._bar.close()
