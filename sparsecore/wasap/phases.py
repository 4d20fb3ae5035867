"""A parallel run on all ranks, from data to result: set up, phase 1, phase 2, averaging.

The gradients of `worker` go to `server` or `lockstep`, which apply the updates.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sparsecore import checkpoint, experiment, train
from sparsecore.compiled.kernels import momentum_step
from sparsecore.config import TrainConfig
from sparsecore.datasets import Dataset
from sparsecore.datasets.dataset import hash_arrays
from sparsecore.files import check_writable
from sparsecore.mlp import SparseMLP
from sparsecore.provenance import check_alike, code, peak_bytes
from sparsecore.wasap import outcome
from sparsecore.wasap import record as records
from sparsecore.wasap.lockstep import Lockstep
from sparsecore.wasap.plan import Plan
from sparsecore.wasap.ranks import Ranks
from sparsecore.wasap.server import DONE, TESTED, ParameterServer, average, retained
from sparsecore.wasap.watch import PATIENCE, ParallelError, interrupts_held_back
from sparsecore.wasap.window import Window
from sparsecore.wasap.worker import Worker, shard_rows

_SHOWN_EVERY = 0.25  # seconds
_RECENT = 200  # updates over which staleness is averaged

Outcome = tuple[SparseMLP | None, dict[str, Any] | None]  # model and result, on rank 0


def run(
    data: Dataset, config: TrainConfig, plan: Plan | None = None, *, seed: int = 0,
    threads: int = 1, on_progress: Callable[[dict[str, Any]], None] | None = None,
    checkpoint_path: str | os.PathLike[str] | None = None, resume: bool = False, comm: Any = None,
    shared: bool | None = None, patience: float = PATIENCE,
) -> Outcome:  # fmt: skip
    """Train with one worker per rank; all ranks call this with the same arguments.

    Parameters
    ----------
    data : Dataset
        Raw values; they are split among the workers and standardised here.
    config : TrainConfig
    plan : Plan, optional
    seed : int
        Determines split and random streams; in lockstep, with as many ranks, also the weights.
    threads : int
        Threads per rank; use 1 where ranks share cores.
    on_progress : callable, optional
        Called on rank 0 several times per second with "phase", "epoch", "updates", "staleness" (of
        the last 200 updates) and "test_accuracy".
    checkpoint_path : path, optional
        File of the server's state, replaced atomically after every epoch of phase 1; in phase 2
        each worker writes its own state to ``<path>.worker<rank>``.
    resume : bool
        Resume from `checkpoint_path` if it exists, with the same number of workers.
    comm : mpi4py.MPI.Comm, optional
        Communicator of the run, which is duplicated; all ranks by default.
    shared : bool, optional
        Use shared memory for the server's window; by default if all ranks are on one node.
    patience : float
        Seconds without a sign of life after which a rank counts as lost.

    Returns
    -------
    model : SparseMLP or None
        None on ranks other than 0.
    result : dict or None
        The sequential run's entries (in "seconds" and "epochs" some differ), and "parallel":
        "updates", "record" (for `replay`), "staleness_histogram", "failed_workers", "ranks",
        "restarts" and others.

    Raises
    ------
    ParallelError
        If another rank fails or is lost; the message names the rank and the cause.
    ValueError, FloatingPointError
        As in the sequential run; the other ranks then raise ParallelError.
    """
    with interrupts_held_back(), closing(Ranks(comm, shared=shared, patience=patience)) as ranks:
        return run_on(
            ranks, data, config, plan or Plan(), seed=seed, threads=threads,
            on_progress=on_progress, checkpoint_path=checkpoint_path, resume=resume,
        )  # fmt: skip


def run_on(ranks: Ranks, data: Dataset, config: TrainConfig, plan: Plan, **options: Any) -> Outcome:
    """Train as `run` does, on ranks that stay in use."""
    this_run = _Run(ranks, data, config, plan, **options)
    try:
        this_run.prepare()
        with outcome.resources() as this_run.resources, this_run.window.served():
            return this_run.go()
    except BaseException as error:
        ranks.stop(error)
        raise
    finally:
        this_run.close()


@dataclass(eq=False)
class _Run:
    """One rank's part of a run; the fields are the arguments of `run`."""

    ranks: Ranks
    data: Dataset
    config: TrainConfig
    plan: Plan
    seed: int
    threads: int
    on_progress: Callable[[dict[str, Any]], None] | None
    checkpoint_path: str | os.PathLike[str] | None
    resume: bool

    # --- before ----------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Agree, load, split, compile, and open the window with the model in it."""
        data, config, plan = self.data, self.config, self.plan
        self.rank, self.n_workers = self.ranks.rank, self.ranks.size
        self.asynchronous = plan.algorithm == "wasap"
        self.phase1_epochs = plan.phase1_epochs(config.epochs)
        last = min(self.phase1_epochs, config.epochs - 1)
        if (config.prune_from or 0) > last:  # it would never happen
            told = f"at most {last}, the last epoch of phase 1 after which another comes"
            told = told if last else "None: no epoch of phase 1 comes before another"
            raise ValueError(f"prune_from: expected {told}, got {config.prune_from}")
        self.about = records.identity(data, config, plan, self.seed, self.n_workers)
        self.path = None if self.checkpoint_path is None else Path(self.checkpoint_path)
        self.phase2_path = self.path and self.path.with_name(f"{self.path.name}.worker{self.rank}")
        self.seconds = {"evaluate": 0.0, "checkpoint": 0.0}
        self.phase2_epochs: list[dict[str, Any]] = []
        self.resources: Any = None
        self.shown = 0.0  # when `on_progress` was last called
        files = {"checkpoint": self.path and str(self.path), "resume": self.resume}
        files["labels"] = hash_arrays(data.y_train)  # a subset keeps the hash of all rows
        check_alike(self.ranks.gathered({**self.about, **code(), **files}))
        model, state = self.ranks.together(self._start)
        known = {name: value for name, value in state.items() if name not in ("record", "rows")}
        nnz, before = self.ranks.gathered((model and model.nnz, known))[0]
        self.restarts, self.epochs_before = before["restarts"], before.get("epoch", 0)
        self.about |= {"nnz_start": before["nnz_start"], "restarts": self.restarts}
        self.ranks.together(self._load)
        updates = [plan.updates(n, config) for n in self._shard_sizes]
        # An epoch is all workers' updates together; in lockstep, a step of all of them.
        per_epoch = sum(updates) if self.asynchronous else max(updates)
        recorded = per_epoch * self.phase1_epochs if self.asynchronous else 0
        sizes = (data.n_features, *config.hidden, data.n_classes)
        self.window = Window(self.ranks, sizes, nnz, self.n_workers, recorded, self.phase1_epochs)
        self.server = ParameterServer(
            self.window, config, self.seed, per_epoch, self.phase1_epochs, plan
        )
        if model is not None:
            self.server.publish(model, state.get("record"), state.get("rows"))
        self.ranks.barrier()
        step = self.epochs_before * updates[self.rank]
        if self.asynchronous:
            step = int((self.server.record().worker == self.rank).sum())
        self.ranks.in_turns(self._compile)
        self.worker = Worker(self.rank, self.shard, self.server, self.threads, step)
        self.ranks.barrier()
        self.window.moved = 0
        self.server.start_clock(before["elapsed"])

    def _start(self) -> tuple[SparseMLP | None, dict[str, Any]]:
        """Return rank 0's new or saved model, and the state of the run so far."""
        if self.rank:
            return None, {}
        found = experiment.resumed(self.path, self.resume, self.about)
        if found is None:
            n_features, n_classes = self.data.n_features, self.data.n_classes
            model = train.new_model(self.config, n_features, n_classes, self.seed)
            return model, {"nnz_start": model.nnz, "restarts": [], "elapsed": 0.0}
        model, state = found
        done = state.get("epoch", 0)
        state["rows"] = records.decode(state["rows"])
        if state["record"] is not None:
            state["record"] = records.from_json(state["record"])
            done = len(state["record"].worker)
        state["restarts"] = [*state["restarts"], done]
        return model, state

    def _load(self) -> None:
        data = self.data
        self.X_test = experiment.checked_test_rows(data)
        rows = shard_rows(data.y_train, self.n_workers, self.seed)
        self._shard_sizes = [len(part) for part in rows]
        self.shard = experiment.Shard(data, rows[self.rank], self.config, self.seed, self.rank)
        cuts = len(data.y_test) * np.arange(self.rank, self.rank + 2) // self.n_workers
        self.test_part = slice(*cuts.tolist())  # this worker's, when it is tested together
        self.phase2_saved = self._phase2_checkpoint()

    def _phase2_checkpoint(self) -> tuple[SparseMLP, dict[str, Any]] | None:
        """Return this rank's saved model and state of phase 2, if any."""
        path = self.phase2_path
        if path is None:
            return None
        check_writable(path)
        begun = self.restarts and self.epochs_before == self.phase1_epochs
        if not (begun and path.exists()):
            return None
        try:
            model, found = checkpoint.latest(path)
            if found is None or found.get("rank") != self.rank or "origin" not in found:
                raise checkpoint.CheckpointError(f"{path}: not phase 2 of rank {self.rank}")
        except checkpoint.CheckpointError as error:
            text = f"{error}; if you delete it, rank {self.rank} begins phase 2 anew"
            raise checkpoint.CheckpointError(text) from error
        return model, found

    def _compile(self) -> None:
        """Compile everything before anything is timed."""
        worker = Worker(self.rank, self.shard, self.server, self.threads)
        try:
            worker.compute()
            begun = time.monotonic()
            self.shard(0)  # an epoch's first step augments the whole shard
            worker.compute()
            self.ranks.longest_step = time.monotonic() - begun
        except FloatingPointError:
            pass  # it will occur again where it is reported
        momentum_step(*np.zeros((4, 1), np.float32), *np.zeros(3, np.float32))
        tiny = SparseMLP.erdos_renyi((4, 4, 2), density=0.5, random_state=0)
        retained(tiny, tiny.params, tiny.structures())
        average([tiny, tiny])
        with train.Trainer(tiny, self.config.with_values(hidden=(4,))):
            pass
        for part in (slice(None), self.test_part):  # more rows have the same lanes
            worker.model.decision_function(self.X_test[part][:128], self.threads)
        worker.close()

    # --- the run ---------------------------------------------------------------------------------

    def go(self) -> Outcome:
        """Take this rank through both phases."""
        own: tuple[SparseMLP, dict[str, Any]] | None = None
        if self.rank == 0 and not self.phase1_epochs and not self.restarts:
            self._save(0)  # the start of phase 2; otherwise phase 1 saves it
        bound = not self.asynchronous  # in lockstep all workers are needed
        try:
            if self.asynchronous:
                self._phase1()
            else:
                self._phase1_in_lockstep()
            bound = False
            self.phase1_seconds = self.server.elapsed()
            self._phase2()
            own = self.worker.model, self._rank_report()
        except Exception as error:
            for_all = isinstance(error, (ParallelError, FloatingPointError))
            if for_all or self.ranks.failed or bound or self.n_workers == 1:
                raise
            self.ranks.leave(error)
        if self.rank == 0:
            return self._finish(own)
        if own is not None:
            own[0].velocity = None  # no longer needed
        self.window.send_result(own)
        return None, None

    def _phase1(self) -> None:
        """Push gradients until the epochs of phase 1 are done."""
        worker = self.worker
        while True:
            self.ranks.step()
            gradient = worker.compute()
            self.ranks.rest()
            update = worker.push(gradient)
            if update is None:
                break
            if update.model is not None:
                self._test_and_save(update.epoch, update.model)
            done = update.version.updates
            self._show(1, done / self.server.updates_per_epoch, done)
        worker.pull()

    def _test_and_save(self, epoch: int, model: SparseMLP) -> None:
        """Test and save the server's model as it was at the end of an epoch."""
        before = epoch - 1  # the rank that ended it saves its model first, or is lost
        with self._aside("evaluate"):
            while self.window.fetch("control")[TESTED] < before:
                last = before * self.server.updates_per_epoch - 1
                if int(self.window.fetch("worker", last, last + 1)[0]) in self.ranks.lost:
                    break
                time.sleep(1e-3)
                self.ranks.check()
            self.ranks.check()
        with self._for_all():  # the other ranks could not test or save it either
            self.server.tested(epoch, **self._test(model))
            if self.window.fetch("control")[TESTED] >= epoch:
                return  # the others counted this rank as lost and have moved on
            self._save(epoch)
        with self.window.locked():
            tested = max(epoch, self.window.fetch("control")[TESTED])
            self.window.write("control", tested, TESTED)

    def _phase1_in_lockstep(self) -> None:
        """Take the steps of phase 1 together."""
        worker, model = self.worker, self.worker.model
        lockstep = Lockstep(self.window, model, self._shard_sizes, self.config, self.plan)
        for epoch in range(self.epochs_before + 1, self.phase1_epochs + 1):
            trained = np.zeros(3)  # samples, loss, correct
            for step in range((epoch - 1) * lockstep.steps, epoch * lockstep.steps):
                values = None
                if lockstep.samples(step)[self.rank]:
                    self.ranks.step()
                    gradient = worker.compute()
                    self.ranks.rest()
                    worker.count(gradient)
                    trained += gradient.samples, gradient.loss, gradient.correct
                    values = gradient.values
                begun = time.perf_counter()
                lockstep.take_step(step, values)
                worker.seconds["update"] += time.perf_counter() - begun
                self._show(1, (step + 1) / lockstep.steps, step + 1)
            n_test = len(self.data.y_test[self.test_part])
            nothing = {"loss": 0.0, "accuracy": 0.0}  # there may be fewer rows than workers
            test = self._test(model, self.test_part) if n_test else nothing
            tested = n_test * test["loss"], n_test * test["accuracy"]
            own = [*trained, *tested, sum(self.seconds.values())]
            sums, nnz = np.sum(self.ranks.gathered(own), axis=0), model.nnz
            changed = lockstep.change_topology(self.seed, epoch)
            if self.rank == 0:
                row = [
                    *sums[:3], 0, lockstep.steps, nnz, changed["pruned"], changed["replaced"],
                    self.server.elapsed(), sums[5], *(sums[3:5] / len(self.data.y_test)),
                ]  # fmt: skip
                self.window.write("epochs", [row], epoch - 1)
                self.window.write("control", epoch, TESTED)
                self._save(epoch)

    def _phase2(self) -> None:
        """Train this worker's copy on its shard, without exchange."""
        worker, shard = self.worker, self.shard
        if self.phase1_epochs == self.config.epochs:
            return
        # Without a phase 1, other runs also begin with these weights.
        about = {name: self.about[name] for name in ("config", "seed", "data")}
        origin, state = {**about, "weights": worker.model.weights_sha256()}, None
        if self.phase2_saved is not None and self.phase2_saved[1]["origin"] == origin:
            worker.model, state = self.phase2_saved
            self.phase2_epochs = state["epochs"]
            self.server.start_clock(state["elapsed"])
        self.phase2_saved = None
        done = len(self.phase2_epochs) * len(shard)

        def test() -> dict[str, Any]:
            self.ranks.rest()
            return {f"test_{name}": value for name, value in self._test(worker.model).items()}

        def on_progress(samples: int, loss: float) -> None:
            nonlocal done
            self.ranks.step()
            self.ranks.check()
            done += samples
            self._show(2, self.phase1_epochs + done / len(shard), self.server.updates)

        with worker.trainer(self.phase1_epochs) as trainer:
            trainer.restore(state and state["progress"])
            self.ranks.step()
            for record in trainer.epochs(shard, shard.labels, test, on_progress):
                worker.samples += len(shard)
                record |= {"elapsed": self.server.elapsed(), "aside": sum(self.seconds.values())}
                self.phase2_epochs.append(record)
                if self.phase2_path is not None:
                    state = {
                        "rank": self.rank, "origin": origin, "progress": trainer.progress(),
                        "epochs": self.phase2_epochs,
                        "elapsed": record["elapsed"] - record["aside"],
                    }  # fmt: skip
                    with self._aside("checkpoint"):
                        checkpoint.save(worker.model, self.phase2_path, state)
                self.ranks.step()
            self.ranks.rest()

    # --- showing, testing, saving -----------------------------------------------------------------

    def _show(self, phase: int, epoch: float, updates: int) -> None:
        """Report the state of the run, if it is time."""
        now, staleness = time.perf_counter(), 0.0
        if self.rank or self.on_progress is None or now - self.shown < _SHOWN_EVERY:
            return
        self.shown = now
        tests = [record["test_accuracy"] for record in self.phase2_epochs]
        if phase == 1:
            if tested := self.window.fetch("control")[TESTED]:
                tests = self.window.fetch("epochs", tested - 1, tested)[:, -1].tolist()
            recent = self.window.fetch("staleness", max(0, updates - _RECENT), updates)
            staleness = float(recent.mean()) if len(recent) else 0.0
        state = {
            "phase": phase, "epoch": epoch, "updates": updates, "staleness": staleness,
            "test_accuracy": tests[-1] if tests else None,
        }  # fmt: skip
        with self._for_all():
            self.on_progress(state)

    def _test(self, model: SparseMLP, part: slice = slice(None)) -> dict[str, float]:
        with self._aside("evaluate"):
            X, y = self.X_test[part], self.data.y_test[part]
            return train.evaluate(model, X, y, self.config, self.threads)

    @contextmanager
    def _for_all(self) -> Iterator[None]:
        """End the run on all ranks if this fails: the fault is not this worker's."""
        try:
            yield
        except Exception as error:
            self.ranks.stop(error)
            raise

    @contextmanager
    def _aside(self, what: str) -> Iterator[None]:
        """Count the seconds in which this rank does not train; they are not the algorithm's."""
        before = time.perf_counter()
        yield
        self.seconds[what] += time.perf_counter() - before
        self.window.write("aside", sum(self.seconds.values()), self.rank)

    def _save(self, epoch: int) -> None:
        if self.path is None:
            return
        with self._aside("checkpoint"):
            aside = float(self.window.fetch("aside").sum()) / self.n_workers
            record = self.server.record(epoch * self.server.updates_per_epoch)
            run_state = {
                **self.about, "epoch": epoch, "elapsed": self.server.elapsed() - aside,
                "record": records.to_json(record) if self.asynchronous else None,
                "rows": records.encode(self.window.fetch("epochs", 0, epoch).ravel()),
            }  # fmt: skip
            checkpoint.save(self.worker.model, self.path, run_state)

    # --- the end ---------------------------------------------------------------------------------

    def _rank_report(self) -> dict[str, Any]:
        """Return this rank's entry in the result."""
        return {
            "rank": self.rank, "host": self.ranks.host, "pid": os.getpid(),
            "shard": len(self.shard), "updates": self.worker.updates,
            "samples": self.worker.samples, "bytes_moved": self.window.moved,
            "seconds": {
                **self.worker.seconds, **self.seconds, "phase1": self.phase1_seconds,
                "total": self.server.elapsed(),
            },
            "peak_rss_mb": round(peak_bytes() / 2**20, 1),
            "resources": self.resources(),
            "epochs": self.phase2_epochs,
        }  # fmt: skip

    def _finish(self, own: tuple[SparseMLP, dict[str, Any]] | None) -> Outcome:
        """Receive the others' models, average, test, and make the result."""
        arrived, failed = self.window.receive_results()
        if own is None:
            failed[0] = self.ranks.message(0)
        else:
            arrived[0] = own
        if not arrived:
            causes = [f"rank {rank}: {why}" for rank, why in sorted(failed.items())]
            raise ParallelError(f"no worker finished: {'; '.join(causes)}")
        models, ranks = map(list, zip(*(arrived[rank] for rank in sorted(arrived)), strict=True))
        merged, union_nnz = average(models)
        elapsed = self.server.elapsed()
        logits = train.outputs(merged, self.X_test, self.config, self.threads)
        result = outcome.result(
            merged, self.server, self.about, ranks, failed, logits, self.data.y_test, elapsed,
            self.threads, union_nnz=union_nnz, restarts=self.restarts,
            window="shared" if self.ranks.shared else "remote",
        )  # fmt: skip
        self.window.write("control", 1, DONE)
        return merged, result

    def close(self) -> None:
        """Free MPI's resources, if all ranks arrive here."""
        together = self.ranks.arrive()
        if hasattr(self, "worker"):
            self.worker.close()
        if together and hasattr(self, "window"):
            self.window.free()
