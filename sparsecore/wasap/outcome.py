"""The result of a parallel run, and the CPU and memory that each process uses."""

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import psutil

from sparsecore.experiment import result_of
from sparsecore.functions import cross_entropy
from sparsecore.mlp import SparseMLP
from sparsecore.wasap import record as records
from sparsecore.wasap.server import FIELDS, ParameterServer

_SAMPLES = 400  # when there are more, every other one is dropped and sampling slows down


def result(
    model: SparseMLP, server: ParameterServer, run: dict[str, Any], own: list[dict[str, Any]],
    failed: dict[int, str], logits: np.ndarray, labels: np.ndarray, elapsed: float, threads: int,
    **parallel: Any,
) -> dict[str, Any]:  # fmt: skip
    """Return the result of a run, as JSON types."""
    # `own`: the reports of the ranks that finished; `failed`: why the others did not; `logits`: the
    # final model's, of the test rows; `elapsed`: seconds of the whole run; `parallel`: the rest.
    about = run["config"]
    n_workers, phase1_epochs = about["workers"], about["phase1_epochs"]
    rows = server.place.fetch("epochs")
    epochs = phase1_records(rows, n_workers, server.updates_per_epoch)
    copies = zip(*(entry.pop("epochs") for entry in own), strict=True)
    epochs += [_phase2_record(epoch) for epoch in copies]
    aside = float(server.place.fetch("aside").sum())
    phase1 = min(entry["seconds"]["phase1"] for entry in own)
    seconds = {
        # Tests and checkpoints are not training: the ranks' mean time on them is subtracted.
        **_seconds(elapsed, aside, n_workers),
        "evaluate": sum(entry["seconds"]["evaluate"] for entry in own),
        "phase1": phase1,
        "phase2": elapsed - phase1,
    }
    shards = sum(entry["shard"] for entry in own)  # of the ranks that finished
    samples = float(rows[:, 0].sum()) + shards * (about["epochs"] - phase1_epochs)
    record = server.record()  # empty in lockstep
    moved, made = (sum(entry[name] for entry in own) for name in ("bytes_moved", "updates"))
    return result_of(
        model, run, epochs, right=logits.argmax(axis=1) == labels, seconds=seconds,
        test_loss=cross_entropy(logits, labels), samples_per_second=samples / seconds["train"],
        peak_rss_mb=max(entry["peak_rss_mb"] for entry in own), threads=threads, ranks=n_workers,
        parallel={
            "updates": server.updates, "updates_per_second": server.updates / phase1,
            "record": records.to_json(record) if about["algorithm"] == "wasap" else None,
            "staleness_histogram": np.bincount(record.staleness).tolist(), "bytes_moved": moved,
            "bytes_per_update": moved / made if made else None,  # updates since the run was resumed
            "failed_workers": [{"rank": r, "cause": why} for r, why in sorted(failed.items())],
            "ranks": own, **parallel,
        },
    )  # fmt: skip


def phase1_records(rows: np.ndarray, n_workers: int, per_epoch: int) -> list[dict[str, Any]]:
    """Return the epochs of phase 1 under the names of the sequential trainer's records."""
    records = []
    for number, row in enumerate(rows.reshape(-1, len(FIELDS)).tolist(), 1):
        value = dict(zip(FIELDS, row, strict=True))
        tested = math.isfinite(value["test_loss"])
        records.append({
            "epoch": number,
            "phase": 1,
            **{name: int(value[name]) for name in ("nnz", "pruned", "replaced")},
            "loss": value["loss"] / value["samples"],
            "train_accuracy": value["correct"] / value["samples"],
            **{name: value[name] if tested else None for name in ("test_loss", "test_accuracy")},
            **{name: value[name] / per_epoch for name in ("staleness", "accepted")},
            "seconds": _seconds(value["elapsed"], value["aside"], n_workers),
        })  # fmt: skip
    return records


def _phase2_record(copies: tuple[dict[str, Any], ...]) -> dict[str, Any]:
    """Return an epoch of phase 2: means over the workers' copies, and each copy's accuracy."""
    means = ("loss", "train_accuracy", "test_loss", "test_accuracy")
    elapsed = max(copy["elapsed"] for copy in copies)
    return {
        "epoch": copies[0]["epoch"], "phase": 2, "nnz": copies[0]["nnz"], "pruned": 0,
        **{name: float(np.mean([copy[name] for copy in copies])) for name in means},
        "worker_test_accuracy": [copy["test_accuracy"] for copy in copies],
        "replaced": sum(copy["replaced"] for copy in copies),
        "seconds": _seconds(elapsed, sum(copy["aside"] for copy in copies), len(copies)),
    }  # fmt: skip


def _seconds(elapsed: float, aside: float, n_workers: int) -> dict[str, float]:
    return {"elapsed": elapsed, "train": elapsed - aside / n_workers}


@contextmanager
def resources() -> Iterator[Callable[[], dict[str, list[float]]]]:
    """Sample this process's CPU and memory, first at 10 Hz; yield a function that gives them."""
    rows: list[tuple[float, float, float]] = []
    ended = threading.Event()

    def sample() -> None:
        process, start, pause = psutil.Process(), time.perf_counter(), 0.1
        process.cpu_percent()
        while not ended.wait(pause):
            now, memory = time.perf_counter() - start, process.memory_info().rss / 2**20
            rows.append((round(now, 2), round(process.cpu_percent(), 1), round(memory, 1)))
            if len(rows) > _SAMPLES:
                del rows[::2]
                pause *= 2

    def taken() -> dict[str, list[float]]:
        columns = np.reshape(list(rows), (-1, 3)).T.tolist()
        return dict(zip(("seconds", "cpu_percent", "rss_mb"), columns, strict=True))

    thread = threading.Thread(target=sample, name="resources", daemon=True)
    thread.start()
    try:
        yield taken
    finally:
        ended.set()
        thread.join()
