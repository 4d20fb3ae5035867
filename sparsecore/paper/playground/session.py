"""Runs that are started, stopped, changed, continued and compared, in a thread beside the notebook.

Nothing of widgets is known here. What a run shows while it trains is its network of the last epoch
that has ended, which nothing changes any more: who stops and goes on loses no more than an epoch.
"""

from __future__ import annotations

import tempfile
import threading
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sparsecore import checkpoint, cluster, datasets, experiment, train, wasap
from sparsecore.config import TrainConfig
from sparsecore.datasets import Dataset
from sparsecore.datasets.dataset import standardize
from sparsecore.mlp import SparseMLP
from sparsecore.settings import setting
from sparsecore.wasap import record as records
from sparsecore.wasap.outcome import phase1_records

_FIXED = ("hidden", "epsilon", "density", "init")  # what a network was made with


@dataclass(eq=False)
class Run:
    """A run: what it was told, the records of its epochs, its network at the start and now."""

    number: int
    dataset: str
    config: TrainConfig
    workers: int
    algorithm: str
    seed: int
    state: str = "waiting"
    epochs: list[dict[str, Any]] = field(default_factory=list)
    told: list[str] = field(default_factory=list)  #: what is not as in the study
    before: SparseMLP | None = None
    model: SparseMLP | None = None

    @property
    def done(self) -> int:
        """Epochs that have ended."""
        return len(self.epochs)


class Session:
    """Runs of one notebook, of which one trains at a time; with more than one worker, on a cluster.

    `close` ends what trains, and a cluster that was started for it.
    """

    def __init__(self) -> None:
        self.runs: list[Run] = []
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._clusters = ExitStack()
        self._cluster: cluster.Cluster | None = None

    @property
    def running(self) -> bool:
        """Whether a run trains."""
        return self._thread is not None and self._thread.is_alive()

    def start(
        self, dataset: str = "digits", *, workers: int = 1, algorithm: str = "wasap",
        seed: int = 0, **values: Any,
    ) -> Run:  # fmt: skip
        """Start a new run; `values` are hyperparameters that differ from the study's setting."""
        self._check_idle()
        study = setting(dataset).config
        run = Run(len(self.runs) + 1, dataset, study, 1, "wasap", seed)
        self._change(run, study.with_values(**values), workers, algorithm)
        self.runs.append(run)
        self._begin(run)
        return run

    def go_on(self, run: Run, *, workers: int = 1, algorithm: str = "wasap", **values: Any) -> Run:
        """Go on with a run that was stopped or is finished, with some of its values changed."""
        self._check_idle()
        for name in _FIXED:
            old = getattr(run.config, name)
            if values.get(name, old) != old:
                raise ValueError(
                    f"{name}: expected {old!r}, with which run {run.number} has started, got "
                    f"{values[name]!r}; start a new run for that"
                )
        config = run.config.with_values(**values)
        if config.epochs <= run.done:
            raise ValueError(
                f"epochs: expected more than the {run.done} that run {run.number} has done, got "
                f"{config.epochs}"
            )
        self._change(run, config, workers, algorithm)
        self._begin(run)
        return run

    def stop(self) -> None:
        """Stop the run that trains, within a part of a second."""
        self._stopping.set()
        self.wait()

    def wait(self, seconds: float | None = None) -> None:
        """Wait until nothing trains, or so many seconds."""
        if self._thread is not None:
            self._thread.join(seconds)

    def close(self) -> None:
        """Stop, and let the cluster go."""
        self.stop()
        self._leave_cluster()

    def _leave_cluster(self) -> None:
        self._cluster = None
        self._clusters.close()

    def _change(self, run: Run, config: TrainConfig, workers: int, algorithm: str) -> None:
        """Take over what is new, and note it."""
        was, found = run.config.to_dict(), []
        for name, value in config.to_dict().items():
            if value != was[name] and name != "epochs":
                found.append(f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}")
        ranks = [
            f"{n} workers ({name})" if n > 1 else "1 worker"
            for n, name in ((run.workers, run.algorithm), (workers, algorithm))
        ]
        if ranks[0] != ranks[1]:
            found.append(ranks[1])
        if found:
            since = f"from epoch {run.done + 1} " if run.done else ""
            run.told.append(since + ", ".join(found))
        run.config, run.workers, run.algorithm = config, workers, algorithm

    def _check_idle(self) -> None:
        if self.running:
            raise RuntimeError("a run trains: stop it, or wait until it has ended")

    def _begin(self, run: Run) -> None:
        self._stopping.clear()
        run.state = "loading data"
        self._thread = threading.Thread(target=self._train, args=(run,), daemon=True)
        self._thread.start()

    def _train(self, run: Run) -> None:
        try:
            data = datasets.load(run.dataset)
            if run.model is None:
                experiment.check_data(data)
                run.before = train.new_model(run.config, data.n_features, data.n_classes, run.seed)
                run.model = run.before.copy()
            (self._train_here if run.workers == 1 else self._train_on_engines)(run, data)
            run.state = "finished"
        except KeyboardInterrupt:
            run.state = "stopped"
        except Exception as error:  # a thread's exception would be seen by nobody
            run.state = f"failed: {error}"
            if isinstance(error, cluster.ClusterError):
                self._leave_cluster()

    def _check(self, *_: Any) -> None:
        if self._stopping.is_set():
            raise KeyboardInterrupt

    def _train_here(self, run: Run, data: Dataset) -> None:
        assert run.model is not None
        config, model = run.config, _as_configured(run.model, run.config)
        inputs = experiment.Shard(data, slice(None), config, run.seed)
        X_test = standardize(data.X_test, *data.moments())
        with train.Trainer(model, config, seed=run.seed) as trainer:
            trainer.epoch, trainer.step = run.done, run.done * -(-len(inputs) // config.batch_size)

            def test() -> dict[str, Any]:
                found = trainer.evaluate(X_test, data.y_test)
                return {f"test_{name}": value for name, value in found.items()}

            run.state = "training"
            for record in trainer.epochs(inputs, inputs.labels, test, self._check):
                run.model = model.copy()
                run.epochs.append(record)

    def _train_on_engines(self, run: Run, data: Dataset) -> None:
        """Take the epochs that are left as a parallel run of their own, from the network as it is.

        What it saves after each epoch is what is seen of it; in phase 2 that is the first worker's.
        """
        assert run.model is not None
        earlier, config = list(run.epochs), run.config
        since = config.prune_from and config.prune_from - run.done
        if since is not None and since < 1:
            since = since % config.prune_every or config.prune_every
        config = config.with_values(epochs=config.epochs - run.done, prune_from=since)
        plan, seed = wasap.Plan(run.algorithm), run.seed + run.done
        run.state = f"connecting to {run.workers} MPI engines"
        if self._cluster is None or self._cluster.n < run.workers:
            self._leave_cluster()
            self._cluster = self._clusters.enter_context(cluster.connect(run.workers))
        with tempfile.TemporaryDirectory(prefix="sparsecore-") as folder:
            path = Path(folder, "run.npz")
            about = records.identity(data, config, plan, seed, run.workers)
            records.save_start(_as_configured(run.model, config), path, about)
            own = path.with_name(f"{path.name}.worker0")

            def look(_: Any) -> None:
                self._check()
                run.state = "training"
                run.model, found = checkpoint.load(path)
                assert found is not None
                rows = phase1_records(records.decode(found["rows"]), run.workers, 1)
                if own.exists():
                    run.model, found = checkpoint.load(own)
                    assert found is not None
                    rows += found["epochs"]
                run.epochs = earlier + rows

            model, result = cluster.train(
                self._cluster.first(run.workers), config, run.dataset, algorithm=run.algorithm,
                seed=seed, checkpoint_path=path, resume=True, on_progress=look,
            )  # fmt: skip
        result["epochs"][-1]["test_accuracy"] = result["test_accuracy"]  # of the average
        run.model, run.epochs = model, earlier + result["epochs"]


def _as_configured(model: SparseMLP, config: TrainConfig) -> SparseMLP:
    """Return a copy of a network with the activation that is configured now."""
    net = model.network
    twin = SparseMLP.from_flat(
        model.sizes, net.weight_start, net.indptr, net.indices, model.params,
        activation=config.activation, alpha=config.alpha, init=config.init,
    )  # fmt: skip
    if model.velocity is not None:
        twin.start_momentum()[:] = model.velocity
    return twin
