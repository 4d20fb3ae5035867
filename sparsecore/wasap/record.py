"""The record of a run's updates in a result, and the replay of the run from it.

A gradient depends on the model that the worker had pulled, and so on the order of the updates; the
record holds that order. A replay, in one process, keeps each worker's copy of the model as long as
the run did, so it ends with the same weights, to the last bit, on CPUs of the same lane width.
"""

import base64
import json
import os
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from sparsecore import checkpoint, experiment, train
from sparsecore.config import HYPERPARAMETERS, TrainConfig, integers
from sparsecore.datasets import Dataset
from sparsecore.mlp import SparseMLP
from sparsecore.progress import bar
from sparsecore.wasap.plan import HYPERPARAMETERS as PLANNED
from sparsecore.wasap.plan import Plan
from sparsecore.wasap.server import ParameterServer, Place, Record, average
from sparsecore.wasap.worker import Worker, shard_rows


def encode(array: np.ndarray) -> dict[str, Any]:
    """Return an array as JSON types: its dtype, length and compressed bytes in base 64."""
    packed = base64.b64encode(zlib.compress(np.ascontiguousarray(array).tobytes()))
    return {"dtype": array.dtype.str, "size": len(array), "zlib_base64": packed.decode()}


def decode(value: dict[str, Any]) -> np.ndarray:
    """Return the array that `encode` encoded; raise a ValueError if the value is damaged."""
    try:
        raw = zlib.decompress(base64.b64decode(value["zlib_base64"]))
        array = np.frombuffer(raw, np.dtype(value["dtype"]))
    except (KeyError, TypeError, ValueError, zlib.error) as error:
        raise ValueError(
            f"record: expected an encoded array ({error}); is this the result of a parallel run?"
        ) from error
    if len(array) != value.get("size"):
        raise ValueError(f"record: expected {value.get('size')} values, got {len(array)}")
    return array


def to_json(record: Record) -> dict[str, Any]:
    """Return a record as JSON types."""
    return {name: encode(values) for name, values in record._asdict().items()}


def from_json(value: dict[str, Any]) -> Record:
    """Return the record that `to_json` encoded; `staleness` and the rest are arrays again."""
    record = Record(
        *(decode(entry({"record": value}, f"record.{name}", dict)) for name in Record._fields)
    )
    kinds = [values.dtype.kind in "iu" for values in record[:2]]
    if not all(kinds) or len({len(values) for values in record}) != 1:
        found = {name: f"{v.dtype}[{len(v)}]" for name, v in record._asdict().items()}
        raise ValueError(f"record: expected integers, the same number in all entries, got {found}")
    return record


def entry(values: Any, name: str, kind: type) -> Any:
    """Return an entry of a result, such as "parallel.restarts"; check its type."""
    for part in name.split("."):
        values = values.get(part) if isinstance(values, dict) else None
    if not isinstance(values, kind):
        raise ValueError(f"{name}: expected {kind.__name__}, got {values!r:.50}")
    return values


def identity(
    data: Dataset, config: TrainConfig, plan: Plan, seed: int, n_workers: int
) -> dict[str, Any]:
    """Return what distinguishes a parallel run from others."""
    return experiment.identity(
        data, config, seed, algorithm=plan.algorithm, workers=n_workers, phase1=plan.phase1,
        phase1_epochs=plan.phase1_epochs(config.epochs), warmup=plan.warmup,
        # Older results lack them.
        **({"keep_rate": True} if plan.keep_rate else {}),
        **({"local_steps": plan.local_steps} if plan.local_steps > 1 else {}),
    )  # fmt: skip


def save_start(model: SparseMLP, path: str | os.PathLike[str], identity: dict[str, Any]) -> None:
    """Write a checkpoint from which a resumed run begins with `model` instead of a new one."""
    fresh = {"nnz_start": model.nnz, "restarts": [], "record": None, "elapsed": 0.0}
    checkpoint.save(model, path, {**identity, **fresh, "rows": encode(np.zeros(0))})


def read_result(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the JSON result of a run: the last line of what `--json` printed, or a whole file."""
    text = Path(path).read_text(encoding="utf-8", errors="replace")
    for candidate in (text, text.strip().rpartition("\n")[2]):
        with suppress(json.JSONDecodeError):
            result = json.loads(candidate)
            if isinstance(result, dict) and {"config", "weights_sha256"} <= result.keys():
                return result
    raise ValueError(f"{path}: expected the JSON result of a training run (train … --json > FILE)")


def replay(
    data: Dataset, result: dict[str, Any], *, threads: int = 1, progress: bool = False,
) -> tuple[SparseMLP, dict[str, Any]]:  # fmt: skip
    """Repeat the run that `result` records.

    Parameters
    ----------
    data : Dataset
        The run's data set.
    result : dict
        The result of an asynchronous run, as `run` returned it.
    threads : int
        Their number does not change the weights.
    progress : bool
        Show a bar on standard error.

    Returns
    -------
    model : SparseMLP
    report : dict
        "identical": whether the weights are the run's, bit for bit (as on CPUs of the same lane
        width), "weights_sha256" and "recorded_sha256", "staleness_agrees", "updates".

    Raises
    ------
    ValueError
        If the result is not from an asynchronous run or from other data, or an entry is damaged.
    """
    about = _about(data, result)
    recorded = entry(result, "weights_sha256", str)
    config = TrainConfig(**{name: about[name] for name in HYPERPARAMETERS if name in about})
    seed = integers(0).check("seed", result.get("seed"))
    n_workers = integers(1).check("workers", about["workers"])
    plan = Plan(**{name: about[name] for name in PLANNED if name in about})
    epochs = plan.phase1_epochs(config.epochs)
    integers(epochs, epochs).check("phase1_epochs", about["phase1_epochs"])
    record, restarts, failed = _history(result, n_workers)
    updates = len(record.worker)

    model = train.new_model(config, data.n_features, data.n_classes, seed)
    shards = shard_rows(data.y_train, n_workers, seed)
    per_epoch = sum(plan.updates(len(rows), config) for rows in shards)
    integers(per_epoch * epochs, per_epoch * epochs).check("updates in parallel.record", updates)
    place = Place(model.sizes, model.nnz, n_workers, updates, epochs)
    server = ParameterServer(place, config, seed, per_epoch, epochs, plan)
    server.publish(model)
    workers = [
        Worker(rank, experiment.Shard(data, rows, config, seed, rank), server, threads)
        for rank, rows in enumerate(shards)
    ]

    with bar(updates, "replay", unit="update", hidden=not progress) as shown:
        for ticket, rank in enumerate(record.worker.tolist()):
            if ticket in restarts:
                for worker in workers:
                    worker.pull()
            workers[rank].push(workers[rank].compute())
            shown.update()
    models = []
    for worker in workers:
        if worker.rank not in failed:
            worker.pull()
            with worker.trainer(epochs) as trainer:
                list(trainer.epochs(worker.shard, worker.shard.labels))
            models.append(worker.model)
        worker.close()
    merged, _ = average(models)
    digest = merged.weights_sha256()
    return merged, {
        "identical": digest == recorded, "weights_sha256": digest, "recorded_sha256": recorded,
        "staleness_agrees": bool(np.array_equal(server.record().staleness, record.staleness)),
        "updates": updates,
    }  # fmt: skip


def _about(data: Dataset, result: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration of a run; refuse a run that is synchronous or of other data."""
    about = entry(result, "config", dict)
    if about.get("algorithm") != "wasap":
        raise ValueError(
            f"replay: expected the result of an asynchronous run (algorithm wasap), got "
            f"{about.get('algorithm', 'sequential')!r}; other runs need only their seed"
        )
    if (used := entry(result, "provenance.data_sha256", str)) != data.content_hash:
        raise ValueError(
            f"replay: expected the run's data, with SHA-256 {used}; {data.name} here has "
            f"{data.content_hash}: put the run's files in place"
        )
    if missing := {*TrainConfig().to_dict(), "workers", "phase1", "phase1_epochs"} - about.keys():
        raise ValueError(f"config: expected the entries {', '.join(sorted(missing))}, got none")
    return about


def _history(result: dict[str, Any], n_workers: int) -> tuple[Record, set[int], set[int]]:
    """Return a run's record, the updates before which it was resumed, and the workers it lost."""
    record = from_json(entry(result, "parallel.record", dict))
    begun, updates = entry(result, "parallel.restarts", list), len(record.worker)
    restarts = {integers(0, updates).check("parallel.restarts", update) for update in begun}
    lost = entry(result, "parallel.failed_workers", list)
    ranks = (one.get("rank") if isinstance(one, dict) else one for one in lost)
    workers = integers(0, n_workers - 1)
    failed = {workers.check("parallel.failed_workers", rank) for rank in ranks}
    if len(failed) == n_workers:
        raise ValueError(f"parallel.failed_workers: expected fewer than {n_workers}, got all")
    for rank in np.unique(record.worker).tolist():
        workers.check("parallel.record.worker", rank)
    return record, restarts, failed
