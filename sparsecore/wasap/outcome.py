"""The result of a parallel run: the sequential trainer's entries, and what is recorded besides."""

from __future__ import annotations

from typing import Any

import numpy as np

from sparsecore.mlp import SparseMLP
from sparsecore.wasap import record as records
from sparsecore.wasap.server import FIELDS, ParameterServer, epoch_records


def result(
    model: SparseMLP,
    server: ParameterServer,
    own: list[dict[str, Any]],
    failed: dict[int, str],
    about: dict[str, Any],
    test: tuple[float, float],
    elapsed: float,
) -> dict[str, Any]:
    """Return all there is to know of a run, as JSON types.

    Parameters
    ----------
    model : SparseMLP
        The final one.
    server : ParameterServer
        With the record of phase 1.
    own : list of dict
        What each rank says of itself; those that got to the end.
    failed : dict of int to str
        Ranks that did not, and why.
    about : dict
        The configuration.
    test : (loss, accuracy)
        Of the final model.
    elapsed : float
        Seconds of the whole run.
    """
    place, workers = server.place, about["workers"]
    rows = server.rows(about["phase1_epochs"])
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
    samples += about["n_train"] * (about["epochs"] - about["phase1_epochs"])
    tests = [epoch["test_accuracy"] for epoch in epochs if epoch["test_accuracy"] is not None]
    record = server.record() if about["algorithm"] == "wasap" else None
    updates = server.updates_per_epoch * about["phase1_epochs"]
    moved = sum(entry["bytes_moved"] for entry in own)
    return {
        "test_accuracy": test[1],
        "test_loss": test[0],
        "best_test_accuracy": max([*tests, test[1]]),
        "nnz_end": model.nnz,
        "seconds": seconds,
        "samples_per_second": samples / seconds["train"],
        "peak_rss_mb": max(entry["peak_rss_mb"] for entry in own),
        "weights_sha256": model.weights_sha256(),
        "epochs": epochs,
        "parallel": {
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
    }


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
