"""The record of a run's updates as it stands in a result, and the replay of a run from it.

A gradient depends on the model that the worker had pulled, and that on the order of the updates;
the record holds the order. In a replay, in one process, each worker's copy of the model waits as
it waited in the run, and the weights come out the same to the last bit.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

from sparsecore import train
from sparsecore.config import TrainConfig
from sparsecore.datasets import Dataset
from sparsecore.mlp import SparseMLP
from sparsecore.wasap.average import average
from sparsecore.wasap.place import Layout, Place
from sparsecore.wasap.server import FIELDS, ParameterServer, Record
from sparsecore.wasap.worker import Shard, Worker, shard_rows


def encode(array: np.ndarray) -> dict[str, Any]:
    """Return an array as JSON types: its dtype, length and compressed bytes in base 64."""
    packed = base64.b64encode(zlib.compress(np.ascontiguousarray(array).tobytes()))
    return {"dtype": array.dtype.str, "size": len(array), "zlib_base64": packed.decode()}


def decode(value: dict[str, Any]) -> np.ndarray:
    """Return the array that `encode` was given.

    Raises
    ------
    ValueError
        If the value is damaged.
    """
    try:
        raw = zlib.decompress(base64.b64decode(value["zlib_base64"]))
        array = np.frombuffer(raw, np.dtype(value["dtype"]))
    except (KeyError, TypeError, zlib.error) as error:
        raise ValueError(
            f"record: not an encoded array ({error}); is the file a result of a parallel run?"
        ) from error
    if len(array) != value["size"]:
        raise ValueError(f"record: expected {value['size']} values, got {len(array)}")
    return array


def to_json(record: Record) -> dict[str, Any]:
    """Return a record as JSON types."""
    return {name: encode(values) for name, values in record._asdict().items()}


def from_json(value: dict[str, Any]) -> Record:
    """Return the record that `to_json` was given; `staleness` and the rest are arrays again."""
    return Record(*(decode(value[name]) for name in Record._fields))


def staleness_histogram(record: Record) -> list[int]:
    """Return how many updates had staleness 0, 1, 2, ..."""
    return np.bincount(record.staleness).tolist() if len(record.staleness) else []


def replay(
    data: Dataset,
    result: dict[str, Any],
    *,
    threads: int = 1,
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[SparseMLP, dict[str, Any]]:
    """Repeat the run that `result` records.

    Parameters
    ----------
    data : Dataset
        The one of the run.
    result : dict
        Of an asynchronous run, as `run` returned it.
    threads : int
        The weights do not depend on it.
    on_progress : callable, optional
        Called with the updates done and all there are.

    Returns
    -------
    model : SparseMLP
    report : dict
        "identical": whether the weights are bit for bit the run's, "weights_sha256" and
        "recorded_sha256", "staleness_agrees", "updates".

    Raises
    ------
    ValueError
        If the result is not of an asynchronous run, or of other data.
    """
    about = result["config"]
    if about.get("algorithm") != "wasap":
        raise ValueError(
            f"replay: expected the result of an asynchronous run (algorithm wasap), got "
            f"{about.get('algorithm', 'sequential')!r}; other runs repeat from their seed alone"
        )
    if result["provenance"]["data_sha256"] != data.content_hash:
        raise ValueError(
            f"replay: the run's data have SHA-256 {result['provenance']['data_sha256']}, "
            f"{data.name} here has {data.content_hash}"
        )
    names = TrainConfig().to_dict()
    config = TrainConfig(**{name: about[name] for name in names})
    seed, n_workers, epochs = result["seed"], about["workers"], about["phase1_epochs"]
    record = from_json(result["parallel"]["record"])
    restarts = set(result["parallel"]["restarts"])
    failed = {entry["rank"] for entry in result["parallel"]["failed_workers"]}

    sizes = (data.n_features, *config.hidden, data.n_classes)
    model = train.new_model(config, data.n_features, data.n_classes, seed)
    shards = shard_rows(data.y_train, n_workers, seed)
    workers = [
        Worker(rank, Shard(data, rows, config, seed, rank), sizes, config, seed, threads)
        for rank, rows in enumerate(shards)
    ]
    per_epoch = sum(worker.batches for worker in workers)
    updates = len(record.worker)
    layout = Layout(sizes, model.nnz, n_workers, updates, epochs, len(FIELDS))
    server = ParameterServer(Place(layout), config, seed, per_epoch, epochs)
    if updates != server.updates:
        raise ValueError(f"replay: expected {server.updates} updates in the record, got {updates}")
    server.publish(model)

    for ticket, rank in enumerate(record.worker.tolist()):
        if ticket == 0 or ticket in restarts:
            for worker in workers:
                server.pull(worker)
        workers[rank].compute()
        server.push(workers[rank])
        if on_progress is not None:
            on_progress(ticket + 1, updates)
    models = []
    for worker in workers:
        if worker.rank not in failed:
            server.pull(worker)
            if epochs < config.epochs:
                worker.train_alone(epochs)
            models.append(worker.model)
        worker.close()
    merged = average(models)[0] if epochs < config.epochs else models[0]
    digest = merged.weights_sha256()
    return merged, {
        "identical": digest == result["weights_sha256"],
        "weights_sha256": digest,
        "recorded_sha256": result["weights_sha256"],
        "staleness_agrees": bool(np.array_equal(server.record().staleness, record.staleness)),
        "updates": updates,
    }
