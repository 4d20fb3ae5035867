"""The record of a run's updates as it stands in a result, and the replay of a run from it.

A gradient depends on the model that the worker had pulled, and so on the order of the updates; the
record holds that order. A replay, in one process, keeps each worker's copy of the model as long as
the run did, and the weights come out the same to the last bit.
"""

from __future__ import annotations

import base64
import json
import os
import zlib
from typing import Any

import numpy as np

from sparsecore import checkpoint, experiment, train
from sparsecore.config import TrainConfig
from sparsecore.datasets import Dataset
from sparsecore.experiment import Shard
from sparsecore.mlp import SparseMLP
from sparsecore.progress import bar
from sparsecore.wasap.average import average
from sparsecore.wasap.place import Layout, Place
from sparsecore.wasap.plan import Plan
from sparsecore.wasap.server import FIELDS, ParameterServer, Record
from sparsecore.wasap.worker import Worker, shard_rows


def encode(array: np.ndarray) -> dict[str, Any]:
    """Return an array as JSON types: its dtype, length and compressed bytes in base 64."""
    packed = base64.b64encode(zlib.compress(np.ascontiguousarray(array).tobytes()))
    return {"dtype": array.dtype.str, "size": len(array), "zlib_base64": packed.decode()}


def decode(value: dict[str, Any]) -> np.ndarray:
    """Return the array that `encode` was given; raise a ValueError if the value is damaged."""
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


def identity(
    data: Dataset, config: TrainConfig, plan: Plan, seed: int, workers: int
) -> dict[str, Any]:
    """Return what tells a parallel run from others."""
    return experiment.identity(
        data, config, seed, algorithm=plan.algorithm, workers=workers, phase1=plan.phase1,
        phase1_epochs=plan.phase1_epochs(config.epochs), warmup=plan.warmup,
    )  # fmt: skip


def save_start(model: SparseMLP, path: str | os.PathLike[str], identity: dict[str, Any]) -> None:
    """Write the checkpoint from which a run, resumed, begins with `model` instead of a new one."""
    fresh = {"nnz_start": model.nnz, "restarts": [], "record": None, "elapsed": 0.0}
    checkpoint.save(model, path, {**identity, **fresh, "rows": encode(np.zeros(0))})


def staleness_histogram(record: Record) -> list[int]:
    """Return how many updates had staleness 0, 1, 2, ..."""
    return np.bincount(record.staleness).tolist() if len(record.staleness) else []


def read_result(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the JSON result of a run: the last line of what `--json` printed, or a whole file."""
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


def replay(
    data: Dataset,
    result: dict[str, Any],
    *,
    threads: int = 1,
    progress: bool = False,
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
    progress : bool
        Show a bar on standard error.

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
    config = TrainConfig(**{name: about[name] for name in TrainConfig().to_dict()})
    seed, n_workers, epochs = result["seed"], about["workers"], about["phase1_epochs"]
    record = from_json(result["parallel"]["record"])
    restarts = set(result["parallel"]["restarts"])
    failed = {entry["rank"] for entry in result["parallel"]["failed_workers"]}

    model = train.new_model(config, data.n_features, data.n_classes, seed)
    shards = shard_rows(data.y_train, n_workers, seed)
    per_epoch = sum(-(-len(rows) // config.batch_size) for rows in shards)
    updates = len(record.worker)
    layout = Layout(model.sizes, model.nnz, n_workers, updates, epochs, len(FIELDS))
    server = ParameterServer(Place(layout), config, seed, per_epoch, epochs)
    if updates != server.updates:
        raise ValueError(f"replay: expected {server.updates} updates in the record, got {updates}")
    server.publish(model)
    workers = [
        Worker(rank, Shard(data, rows, config, seed, rank), *server.pull(), config, seed, threads)
        for rank, rows in enumerate(shards)
    ]

    def pull(worker: Worker) -> None:
        worker.changed(server.pull(worker.model)[1])

    with bar(updates, "replay", unit="update", hidden=not progress) as shown:
        for ticket, rank in enumerate(record.worker.tolist()):
            if ticket in restarts:
                for worker in workers:
                    pull(worker)
            worker = workers[rank]
            gradient = worker.compute()
            update = server.push(gradient, worker.version, worker.model)
            assert update is not None
            worker.pushed(gradient, update)
            shown.update()
    models = []
    for worker in workers:
        if worker.rank not in failed:
            pull(worker)
            if epochs < config.epochs:
                with worker.trainer(epochs) as trainer:
                    for _ in trainer.epochs(worker.shard, worker.shard.labels):
                        pass
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
