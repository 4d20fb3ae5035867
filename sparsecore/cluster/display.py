"""The state of a run as a notebook shows it, or a terminal."""

from __future__ import annotations

from html import escape
from typing import Any

from IPython import get_ipython
from IPython.display import HTML, display

from sparsecore.progress import EpochBar


def new_display(title: str, epochs: int) -> Table | EpochBar:
    """Return what shows the state of a run: a table in a notebook, a progress bar elsewhere."""
    return EpochBar(title, epochs) if get_ipython() is None else Table(title)


class Table:
    """An output that is rewritten while a run lasts, and a clean one at the end."""

    def __init__(self, title: str) -> None:
        self._title, self._handle = title, None

    def __call__(self, state: dict[str, Any]) -> None:
        """Show where the run stands."""
        accuracy = state["test_accuracy"]
        rows = {
            "phase": state["phase"],
            "epoch": f"{state['epoch']:.1f} of {state['epochs']}",
            "test accuracy": "–" if accuracy is None else f"{100 * accuracy:.2f} %",
            "updates": f"{state['updates']:,} ({state['updates_per_second']:,.0f} per second)",
            "staleness": f"{state['staleness']:.2f}",
            "seconds": f"{state['elapsed']:.1f}",
        }
        self._show(self._title, rows)

    def finish(self, result: dict[str, Any]) -> None:
        """Show the outcome."""
        config, parallel = result["config"], result["parallel"]
        histogram = parallel["staleness_histogram"]
        staleness = sum(s * n for s, n in enumerate(histogram)) / max(1, sum(histogram))
        rows = {
            "test accuracy": f"{100 * result['test_accuracy']:.2f} %",
            "epochs": f"{config['epochs']}, of which {config['phase1_epochs']} in phase 1",
            "updates": f"{parallel['updates']:,}",
            "updates per second": f"{parallel['updates_per_second']:,.0f}",
            "mean staleness": f"{staleness:.2f}",
            "samples per second": f"{result['samples_per_second']:,.0f}",
            "seconds of training": f"{result['seconds']['train']:.1f}",
        }
        for lost in parallel["failed_workers"]:
            rows[f"rank {lost['rank']} lost"] = lost["cause"]
        self._show(f"{self._title}: {config['dataset']}", rows)

    def _show(self, title: str, rows: dict[str, Any]) -> None:
        body = "".join(f"<tr><td>{k}</td><td>{escape(str(v))}</td></tr>" for k, v in rows.items())
        page = HTML(f"<table><caption>{escape(title)}</caption>{body}</table>")
        if self._handle is None:
            self._handle = display(page, display_id=True)
        else:
            self._handle.update(page)
