"""The result of a parallel run: the sequential run's entries, and what is recorded besides."""

from __future__ import annotations

from typing import Any

import numpy as np

from sparsecore.experiment import result_of
from sparsecore.mlp import SparseMLP
from sparsecore.wasap import record as records
from sparsecore.wasap.server import FIELDS, ParameterServer, epoch_records


def result(
    model: SparseMLP,
    server: ParameterServer,
    run: dict[str, Any],
    own: list[dict[str, Any]],
    failed: dict[int, str],
    test: dict[str, float],
    right: np.ndarray,
    elapsed: float,
    threads: int,
) -> dict[str, Any]:
    """Return all there is to know of a run, as JSON types.

    `own` is what each rank says of itself, `failed` why others did not get to the end, `test` the
    final model's loss and accuracy, `right` on which test rows it is, `elapsed` the seconds of the
    whole run.
    """
    place, about = server.place, run["config"]
    workers, phase1_epochs = about["workers"], about["phase1_epochs"]
    rows = server.rows(phase1_epochs)
    epochs = epoch_records(rows, workers, server.updates_per_epoch)
    epochs += _phase2_records([entry.pop("epochs") for entry in own], workers)
    aside = float(place.fetch("aside").sum())
    phase1 = min(entry["seconds"]["phase1"] for entry in own)
    seconds = {
        # Tests and checkpoints are not training; what a rank spends on them is lost to all in part.
        "train": elapsed - aside / workers,
        "evaluate": sum(entry["seconds"]["evaluate"] for entry in own),
        "elapsed": elapsed,
        "phase1": phase1,
        "phase2": elapsed - phase1,
    }
    samples = float(rows.reshape(-1, len(FIELDS))[:, 0].sum())
    samples += about["n_train"] * (about["epochs"] - phase1_epochs)
    record = server.record() if about["algorithm"] == "wasap" else None
    updates = server.updates_per_epoch * phase1_epochs
    moved = sum(entry["bytes_moved"] for entry in own)
    return result_of(
        model,
        run,
        epochs,
        right=right,
        test_loss=test["loss"],
        seconds=seconds,
        samples_per_second=samples / seconds["train"],
        peak_rss_mb=max(entry["peak_rss_mb"] for entry in own),
        threads=threads,
        ranks=workers,
        parallel={
            "window": place.kind,
            "updates": updates,
            "updates_per_second": updates / phase1,
            "record": None if record is None else records.to_json(record),
            "staleness_histogram": [] if record is None else records.staleness_histogram(record),
            "bytes_moved": moved,
            "bytes_per_update": moved / max(1, sum(entry["updates"] for entry in own)),
            "failed_workers": [
                {"rank": rank, "cause": why} for rank, why in sorted(failed.items())
            ],
            "ranks": own,
        },
    )


def _phase2_records(own: list[list[dict[str, Any]]], workers: int) -> list[dict[str, Any]]:
    """Return the epochs of phase 2: means over the workers' copies, and each copy's accuracy."""
    result = []
    for epoch in zip(*own, strict=True):
        mean = {
            name: float(np.mean([copy[name] for copy in epoch]))
            for name in ("loss", "train_accuracy", "test_loss", "test_accuracy")
        }
        elapsed = max(copy["elapsed"] for copy in epoch)
        aside = sum(copy["aside"] for copy in epoch)
        result.append(
            {
                "epoch": epoch[0]["epoch"],
                "phase": 2,
                "nnz": epoch[0]["nnz"],
                **mean,
                "worker_test_accuracy": [copy["test_accuracy"] for copy in epoch],
                "pruned": 0,
                "replaced": sum(copy["replaced"] for copy in epoch),
                "seconds": {"elapsed": elapsed, "train": elapsed - aside / workers},
            }
        )
    return result
