"""What the command line does with a result that is there: read it, and replay it."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from tqdm.auto import tqdm

from sparsecore import wasap
from sparsecore.datasets import Dataset


def read_result(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the JSON result of a run: the last line of what `--json` printed, or a whole file.

    Raises
    ------
    ValueError
        If it is not one.
    """
    with open(path, encoding="utf-8") as file:
        text = file.read()
    for candidate in (text, text.strip().rpartition("\n")[2]):
        try:
            result = json.loads(candidate)
        except json.JSONDecodeError:
            continue
        if isinstance(result, dict) and "config" in result and "weights_sha256" in result:
            return result
    raise ValueError(f"{path}: expected the JSON result of a training run (train … --json > FILE)")


def replay(data: Dataset, result: dict[str, Any], threads: int) -> dict[str, Any]:
    """Replay a result with a progress bar; return the report."""
    with tqdm(
        desc="replay",
        unit="update",
        file=sys.stderr,
        mininterval=0.2 if sys.stderr.isatty() else 10,
    ) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        return wasap.replay(data, result, threads=threads, on_progress=show)[1]
