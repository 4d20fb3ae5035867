"""Parallel runs on however many ranks there are; one is enough for the suite to pass."""

import dataclasses
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from sparsecore import checkpoint, datasets, experiment, provenance, seeds, train, wasap
from sparsecore.compiled import lanes
from sparsecore.compiled.engine import metrics
from sparsecore.compiled.kernels import Rule
from sparsecore.config import TrainConfig
from sparsecore.files import previous
from sparsecore.wasap import shm
from sparsecore.wasap.lockstep import Lockstep
from sparsecore.wasap.mpi import MPI
from sparsecore.wasap.server import TICKET, ParameterServer
from sparsecore.wasap.watch import NotStarted
from sparsecore.wasap.worker import Worker, shard_rows

SMALL = TrainConfig(
    hidden=(40, 30), epsilon=6, learning_rate=0.02, batch_size=32, epochs=5, dropout=0.2
)


alone = pytest.mark.skipif(MPI.COMM_WORLD.size > 1, reason="is for one rank")
together = pytest.mark.skipif(MPI.COMM_WORLD.size == 1, reason="is for several ranks")


@pytest.fixture(scope="module")
def digits():
    return datasets.load("digits").limited(450)


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(0)
    X = rng.integers(0, 256, (360, 48)).astype(np.uint8)
    y = (X[:, :24].mean(axis=1) > X[:, 24:].mean(axis=1)).astype(np.int64)
    return datasets.Dataset(
        name="pictures", X_train=X[:300], X_test=X[300:], y_train=y[:300], y_test=y[300:],
        feature_shape=(4, 4, 3),
    )  # fmt: skip


def staleness_by_hand(workers):
    """Each worker pulls where it pushes, so the updates since its last one were made by others."""
    last, result = {}, []
    for ticket, rank in enumerate(workers):
        result.append(ticket - last.get(rank, 0))
        last[rank] = ticket + 1
    return result


@pytest.mark.parametrize(
    "shared, augment, local_steps", [(True, False, 1), (False, True, 1), (False, False, 4)]
)
def test_asynchronous_run_is_recorded_and_replays_to_the_last_bit(
    comm, digits, pictures, shared, augment, local_steps
):
    config = SMALL.with_values(prune_from=2, prune_every=1, prune_percentile=10, augment=augment)
    data = pictures if augment else digits
    plan = wasap.Plan(local_steps=local_steps, keep_rate=local_steps > 1)
    model, result = wasap.run(data, config, plan, seed=3, shared=shared)
    if comm.rank:
        assert model is None and result is None
        return
    parallel = result["parallel"]
    assert parallel["window"] == ("shared" if shared else "remote")
    assert parallel["failed_workers"] == []
    batches = [-(-len(r) // 32) for r in shard_rows(data.y_train, comm.size, 3)]
    batches = [-(-n // local_steps) for n in batches]  # an update takes several, or what is left
    record = wasap.from_json(parallel["record"])
    assert len(record.worker) == parallel["updates"] == 4 * sum(batches)  # 0.7 * 5 rounds to 4
    assert record.staleness.tolist() == staleness_by_hand(record.worker.tolist())
    assert parallel["staleness_histogram"] == np.bincount(record.staleness).tolist()
    assert np.bincount(record.worker, minlength=comm.size).tolist() == [
        rank["updates"] for rank in parallel["ranks"]
    ]
    # Only a gradient that crosses the end of an epoch can lose connections.
    crossed = record.staleness > np.arange(len(record.worker)) % sum(batches)
    assert (record.accepted[~crossed] == 1).all()
    assert (record.accepted > 0).all()
    assert [epoch["epoch"] for epoch in result["epochs"]] == [1, 2, 3, 4, 5]
    assert [epoch["phase"] for epoch in result["epochs"]] == [1, 1, 1, 1, 2]
    assert result["nnz_end"] < result["nnz_start"]  # pruned after epochs 2, 3 and 4
    assert result["weights_sha256"] == model.weights_sha256()
    assert result["provenance"]["ranks"] == comm.size

    _, report = wasap.replay(data, result)
    assert report["identical"] and report["staleness_agrees"]
    found = train.evaluate(model, data.standardized().X_test, data.y_test, config)
    assert result["test_accuracy"] == found["accuracy"]
    assert result["test_loss"] == pytest.approx(found["loss"])
    assert len(result["epochs"][-1]["worker_test_accuracy"]) == comm.size


@alone
@pytest.mark.parametrize("augment", [False, True])
def test_one_worker_follows_the_sequential_trainer(digits, pictures, augment):
    data, config = pictures if augment else digits, SMALL.with_values(augment=augment)
    plan = wasap.Plan(phase1=0.4)  # phase 2 has three epochs: it evolves twice
    model, result = wasap.run(data, config, plan, seed=1, comm=MPI.COMM_SELF)
    expected, sequential = experiment.run(data, config, seed=1)
    for here, there in zip(model.structures(), expected.structures(), strict=True):
        np.testing.assert_array_equal(here[1], there[1])
    # 75 steps, each of which rounds a parameter by some units in the last place.
    np.testing.assert_allclose(model.params, expected.params, rtol=0, atol=2e-5)
    for here, there in zip(result["epochs"], sequential["epochs"], strict=True):
        assert here["loss"] == pytest.approx(there["loss"], rel=1e-4)
        assert here["test_accuracy"] == pytest.approx(there["test_accuracy"], abs=0.006)
        assert (here["nnz"], here["replaced"]) == (there["nnz"], there["replaced"])
    assert result["config"].items() >= sequential["config"].items()


@alone
@pytest.mark.parametrize("algorithm", wasap.ALGORITHMS)
def test_local_steps_of_one_worker_are_the_sequential_trainers(digits, algorithm):
    config = SMALL.with_values(prune_from=2, prune_every=1, prune_percentile=10)
    plan = wasap.Plan(algorithm, phase1=1.0, local_steps=4)  # of 15 batches
    _, result = wasap.run(digits, config, plan, seed=1, comm=MPI.COMM_SELF)
    _, sequential = experiment.run(digits, config, seed=1)
    assert result["weights_sha256"] == sequential["weights_sha256"]
    assert result["parallel"]["updates"] == 5 * 4
    assert [rank["samples"] for rank in result["parallel"]["ranks"]] == [5 * 450]
    for here, there in zip(result["epochs"], sequential["epochs"], strict=True):
        assert here["loss"] == pytest.approx(there["loss"])
        for name in ("nnz", "pruned", "replaced", "train_accuracy", "test_loss", "test_accuracy"):
            assert here[name] == pytest.approx(there[name]), name


def shuffled_shards(data, n_workers, seed, epoch):
    """Each worker's rows, in the order in which it takes them."""
    return [
        rows[seeds.generator(seed, seeds.Purpose.SHUFFLE, k, epoch).permutation(len(rows))]
        for k, rows in enumerate(shard_rows(data.y_train, n_workers, seed))
    ]


def by_local_steps(data, config, n_workers, seed, local_steps):
    """Train copies of a model side by side, and average them after so many steps of each."""
    scaled, size = data.standardized(), config.batch_size
    model = train.new_model(config, data.n_features, data.n_classes, seed)
    rate = np.float32(config.learning_rate * n_workers)
    rule = train.sgd_rule(config, seed)._replace(learning_rate=rate)
    for epoch in range(config.epochs):
        orders = shuffled_shards(data, n_workers, seed, epoch)
        copies = [model.copy() for _ in orders]
        for first in range(0, max(map(len, orders)), size * local_steps):
            mean = np.zeros(len(model.params))
            rows = [order[first : first + size * local_steps] for order in orders]
            for copy, part in zip(copies, rows, strict=True):
                copy.params[:], _ = model.params, copy.start_momentum()
                with copy.new_engine(size) as engine:
                    engine.train(rule, scaled.X_train, scaled.y_train, part, size, 0, metrics())
                mean += copy.params * (len(part) / sum(map(len, rows)))
            model.params[:] = mean
        model.start_momentum()[:] = np.average(
            [copy.velocity for copy in copies], axis=0, weights=list(map(len, orders))
        )
        train.change_topology(model, config, seed, 0, epoch + 1)
    return model


def in_large_batches(data, config, n_workers, seed):
    """Train sequentially on batches that hold the workers' batches one after the other."""
    scaled, size = data.standardized(), config.batch_size
    model = train.new_model(config, data.n_features, data.n_classes, seed)
    rate = np.float32(config.learning_rate * n_workers)
    decay, momentum = np.float32(config.weight_decay), np.float32(config.momentum)
    rule = Rule(rate, momentum, decay, np.float32(0), np.uint64(0))
    for epoch in range(config.epochs):
        orders = shuffled_shards(data, n_workers, seed, epoch)
        model.start_momentum()
        with model.new_engine(n_workers * size) as engine:
            for first in range(0, max(map(len, orders)), size):
                rows = np.concatenate([order[first : first + size] for order in orders])
                engine.train(rule, scaled.X_train, scaled.y_train, rows, len(rows), 0, metrics())
        train.change_topology(model, config, seed, 0, epoch + 1)
    return model


@pytest.mark.parametrize("local_steps", [1, 3])
def test_lockstep_follows_the_sequential_trainer_on_the_larger_batch(comm, digits, local_steps):
    # 450 rows do not divide evenly, so the last batches are smaller, and of unequal sizes.
    config = SMALL.with_values(dropout=0.0, epochs=3)
    plan = wasap.Plan("wassp", phase1=1.0, warmup=0, local_steps=local_steps)
    model, result = wasap.run(digits, config, plan, seed=2)
    if comm.rank:
        return
    if local_steps > 1:
        expected = by_local_steps(digits, config, comm.size, 2, local_steps)
    else:
        expected = in_large_batches(digits, config, comm.size, 2)
    for here, there in zip(model.structures(), expected.structures(), strict=True):
        np.testing.assert_array_equal(here[1], there[1])
    np.testing.assert_allclose(model.params, expected.params, rtol=0, atol=2e-5)
    losses = [epoch["loss"] for epoch in result["epochs"]]
    assert losses[2] < losses[1] < losses[0]  # it has moved by more than the tolerance


def test_lockstep_is_determined_by_the_seed(comm, pictures):
    config = SMALL.with_values(epochs=3, prune_from=1, prune_every=2, prune_percentile=10)
    hashes = []
    for shared, augment in ((True, True), (False, True), (True, True), (True, False)):
        _, result = wasap.run(
            pictures, config.with_values(augment=augment), wasap.Plan("wassp", warmup=2), seed=4,
            shared=shared,
        )  # fmt: skip
        hashes.append(result and result["weights_sha256"])
    assert comm.rank or hashes[0] == hashes[1] == hashes[2] != hashes[3]


def test_learning_rate_of_lockstep_rises_to_its_k_fold(comm, digits):
    window = SimpleNamespace(ranks=SimpleNamespace(rank=0, size=4))
    model = train.new_model(SMALL, 64, 10, 0)
    lockstep = Lockstep(window, model, [320, 320, 320, 310], SMALL, wasap.Plan())
    assert lockstep.steps == 10
    steps = 0, 24, 49, 50, 1000
    rates = [wasap.Plan().learning_rate(SMALL, 4, step, lockstep.steps) for step in steps]
    np.testing.assert_allclose(rates, [0.02 * 1.06, 0.05, 0.08, 0.08, 0.08], rtol=1e-6)


def break_gradients(monkeypatch, from_step, how):
    """Have this rank's gradients break."""
    original = Worker.compute

    def compute(self):
        if self.step >= from_step:
            how(self)
        return original(self)

    monkeypatch.setattr(Worker, "compute", compute)


def failing(*arguments):
    raise OSError("disk is gone")


@pytest.fixture
def path(comm, tmp_path):
    """Return the path of a run's checkpoint, the same on all ranks."""
    return comm.bcast(str(tmp_path / "run.npz"))


@pytest.fixture
def failed(comm, tmp_path):
    """Return the path of a file, the same on all ranks, that is there when one has failed."""
    return Path(comm.bcast(str(tmp_path / "failed")))


def wait_for(failed):
    """Return what has a worker wait: it may be done before another comes to fail."""

    def wait(worker):
        while not failed.exists():
            time.sleep(1e-3)

    return wait


@pytest.mark.parametrize("algorithm", ["wasap", "wassp"])
def test_nan_in_one_gradient_ends_the_run_on_all_ranks(
    comm, digits, monkeypatch, failed, algorithm
):
    last = comm.size - 1

    def poison(worker):
        failed.touch()
        worker.model.params[:] = np.nan

    if comm.rank == last:
        break_gradients(monkeypatch, 5, poison)
        expected, message = FloatingPointError, f"worker {last}: .* batch 6 is not finite"
    else:
        if algorithm == "wasap":  # in lockstep nobody is done before
            break_gradients(monkeypatch, 1, wait_for(failed))
        expected, message = wasap.ParallelError, f"rank {last} .*worker {last}: .* not finite"
    with pytest.raises(expected, match=message):
        wasap.run(digits, SMALL.with_values(epochs=50), wasap.Plan(algorithm), patience=60)


@pytest.mark.parametrize("failing_rank", [0, -1])
def test_run_goes_on_without_a_worker_that_raises(comm, digits, monkeypatch, failed, failing_rank):
    failing_rank %= comm.size

    def fail(worker):
        failed.touch()
        failing()

    here = comm.rank == failing_rank
    break_gradients(monkeypatch, 5 if here else 1, fail if here else wait_for(failed))
    if comm.size == 1:
        with pytest.raises(OSError, match="disk is gone"):
            wasap.run(digits, SMALL)
        return
    _, result = wasap.run(digits, SMALL, patience=60)
    if comm.rank:
        return
    lost = result["parallel"]["failed_workers"]
    assert [entry["rank"] for entry in lost] == [failing_rank]
    assert "disk is gone" in lost[0]["cause"]
    record = wasap.from_json(result["parallel"]["record"])
    assert np.sum(record.worker == failing_rank) == 5
    assert len(record.worker) == result["parallel"]["updates"]
    # Four epochs of phase 1 by all, one of phase 2 by those that are left.
    lost_rows = shard_rows(digits.y_train, comm.size, 0)[failing_rank]
    trained = 5 * len(digits.y_train) - len(lost_rows)
    rate = result["samples_per_second"]
    assert rate * result["seconds"]["train"] == pytest.approx(trained, rel=0.03)
    monkeypatch.undo()
    assert wasap.replay(digits, result)[1]["identical"]


@together
@pytest.mark.parametrize("algorithm", wasap.ALGORITHMS)
def test_a_worker_that_raises_in_phase_2_leaves_the_others(comm, digits, monkeypatch, algorithm):
    last = comm.size - 1
    if comm.rank == last:
        monkeypatch.setattr(train.Trainer, "run_epoch", failing)  # phase 1 has no trainer
    _, result = wasap.run(digits, SMALL, wasap.Plan(algorithm))
    if comm.rank:
        return
    [lost] = result["parallel"]["failed_workers"]
    assert lost["rank"] == last and "disk is gone" in lost["cause"]
    assert result["epochs"][-1]["epoch"] == SMALL.epochs


def test_a_worker_that_raises_in_lockstep_ends_the_run(comm, digits, monkeypatch):
    if comm.rank == comm.size - 1:
        break_gradients(monkeypatch, 5, failing)
    with pytest.raises((OSError, wasap.ParallelError), match="disk is gone"):
        wasap.run(digits, SMALL, wasap.Plan("wassp"))


def test_failure_under_the_lock_ends_the_run_on_all_ranks(comm, digits, monkeypatch, failed):
    change = train.change_topology

    def fail_once(*arguments):  # whoever completes an epoch first; the others could go on
        if failed.exists():
            return change(*arguments)
        failed.touch()
        return failing()

    monkeypatch.setattr(train, "change_topology", fail_once)
    with pytest.raises((OSError, wasap.ParallelError), match="disk is gone"):
        wasap.run(digits, SMALL)


def test_error_before_the_start_is_raised_on_all_ranks(comm, digits):
    data = digits
    if comm.rank == comm.size - 1:
        X = digits.X_train.astype(np.float32)
        X[3, 5] = np.inf
        data = digits.derived(X_train=X)
        expected, message = ValueError, "training data: .* row 3, feature 5"
    else:
        expected, message = wasap.ParallelError, f"rank {comm.size - 1} could not start"
    with pytest.raises(expected, match=message):
        wasap.run(data, SMALL)


@together
@pytest.mark.parametrize(
    ("other", "told"),
    [
        ({"seed": 7}, "seed 7, not 0"),
        ({"config": SMALL.with_values(activation="relu")}, "activation 'relu', not 'all-relu'"),
        ({"config": SMALL.with_values(epochs=9)}, "epochs 9, not 5; phase1_epochs 6, not 4"),
        ({"plan": wasap.Plan("wassp", phase1=0.5)}, "algorithm 'wassp', not 'wasap'; phase1 0.5, "),
        ({"plan": wasap.Plan(local_steps=2)}, "local_steps 2, not None"),
        ({"data": lambda d: dataclasses.replace(d, X_train=d.X_train + 1)}, "data '.*', not '"),
        (
            {
                "data": lambda d: dataclasses.replace(
                    d, X_train=d.X_train[:, 1:], X_test=d.X_test[:, 1:], feature_shape=()
                )
            },
            "data '.*', not '",
        ),
        ({"data": lambda d: d.limited(300)}, "n_train 300, not 450"),
        (
            {"data": lambda d: d.derived(X_train=d.X_train[::-1], y_train=d.y_train[::-1])},
            "labels '.*', not '",
        ),
        ({"resume": True}, "resume True, not False"),
        ({"shared": False}, "shared window False, not None"),
    ],
)
def test_ranks_that_are_not_started_alike_do_not_start(comm, digits, other, told):
    options = {"data": digits, "config": SMALL}
    if comm.rank == comm.size - 1:
        options |= other
        if "data" in other:
            options["data"] = other["data"](digits)
    with pytest.raises(ValueError, match=f"rank {comm.size - 1} has {told}"):
        wasap.run(**options)


@together
def test_pruning_that_would_begin_after_phase_1_is_refused(comm, digits):
    for plan in (None, wasap.Plan(phase1=1.0)):  # phase 1 has four epochs of five, or all
        with pytest.raises(ValueError, match="prune_from: expected at most 4, the last epoch of "):
            wasap.run(digits, SMALL.with_values(prune_from=5), plan)
    with pytest.raises(ValueError, match=r"prune_from: expected None: no epoch of .*, got 1"):
        wasap.run(digits, SMALL.with_values(prune_from=1), wasap.Plan(phase1=0.0))


def test_threads_and_patience_may_differ(comm, digits):
    def trained(algorithm, threads):
        plan = wasap.Plan(algorithm)
        return wasap.run(digits, SMALL, plan, threads=threads, patience=5 + comm.rank)[1]

    more = 2 - comm.rank % 2  # a job of one rank has two threads, too
    one, other, free = trained("wassp", 1), trained("wassp", more), trained("wasap", more)
    if comm.rank == 0:
        assert one["weights_sha256"] == other["weights_sha256"]
        assert wasap.replay(digits, free)[1]["identical"]


@together
@pytest.mark.parametrize(
    ("owner", "name", "value", "told"),
    [(provenance, "sources_sha256", "older", "sources 'older', not '[0-9a-f]{64}'"),
     (lanes, "widest", 8, r"lane_width 8, not \d+")],
)  # fmt: skip
def test_ranks_of_other_code_do_not_start(comm, digits, monkeypatch, owner, name, value, told):
    last = comm.size - 1
    if comm.rank == last:
        monkeypatch.setattr(owner, name, lambda: value)
    with pytest.raises(ValueError, match=f"rank {last} has {told}"):
        wasap.run(digits, SMALL)


def test_an_update_moves_the_bytes_that_are_documented(comm, digits):
    config, k = SMALL.with_values(zeta=0.0), comm.size
    for algorithm, each in (("wasap", 16), ("wassp", 16 * (k - 1) / k)):
        model, result = wasap.run(digits, config, wasap.Plan(algorithm, phase1=1.0))
        if comm.rank == 0:  # besides: an epoch's velocities, the last pull, the record
            found = result["parallel"]["bytes_per_update"] / len(model.params)
            assert each <= found < 1.2 * each + 0.5


@alone
def test_local_steps_of_one_worker_go_on_into_phase_2(digits):
    config = SMALL.with_values(zeta=0.0)  # no new topology brings the velocity to the server
    plan = wasap.Plan(phase1=0.4, local_steps=4)
    _, result = wasap.run(digits, config, plan, seed=1, comm=MPI.COMM_SELF)
    _, sequential = experiment.run(digits, config, seed=1)
    assert result["weights_sha256"] == sequential["weights_sha256"]


@pytest.mark.parametrize("harm", ["damaged", "another rank's"])
def test_damaged_file_of_a_worker_is_refused(comm, digits, path, harm):
    _, result = wasap.run(digits, SMALL, checkpoint_path=path)
    comm.Barrier()
    own = Path(f"{path}.worker{comm.rank}")
    if comm.rank == comm.size - 1:
        previous(own).unlink(missing_ok=True)
        if harm == "damaged":
            raw = bytearray(own.read_bytes())
            raw[len(raw) // 2] ^= 255
            own.write_bytes(raw)
        else:
            model, state = checkpoint.load(own)
            checkpoint.save(model, own, state | {"rank": comm.size})
            previous(own).unlink(missing_ok=True)
    comm.Barrier()
    told = "worker{0}.*; if you delete it, rank {0} begins phase 2 anew".format(comm.size - 1)
    with pytest.raises((checkpoint.CheckpointError, wasap.ParallelError), match=told):
        wasap.run(digits, SMALL, checkpoint_path=path, resume=True)
    comm.Barrier()
    if comm.rank == comm.size - 1:
        own.unlink()
    _, again = wasap.run(digits, SMALL, checkpoint_path=path, resume=True)
    assert comm.rank or again["weights_sha256"] == result["weights_sha256"]


@pytest.mark.parametrize("shared", [True, False])
def test_scarce_shared_memory_is_said_and_a_remote_window_needs_none(
    comm, digits, monkeypatch, shared
):
    monkeypatch.setattr(shm, "room", lambda: 2**20)
    if shared:
        with pytest.raises(
            wasap.ParallelError, match=r"needs 1\.\d MiB of shared .* 1\.0 MiB free"
        ):
            wasap.run(digits, SMALL, shared=True)
    else:
        _, result = wasap.run(digits, SMALL, shared=False)
        assert comm.rank or wasap.replay(digits, result)[1]["identical"]


def test_a_rank_that_cannot_begin_is_named(comm, digits):
    last = comm.rank == comm.size - 1
    with pytest.raises((AttributeError, wasap.ParallelError), match="no attribute 'name'"):
        wasap.run(None if last else digits, SMALL)
    comm.Barrier()


@together
def test_unequal_workers_slow_only_themselves(comm, digits, monkeypatch):
    others = comm.size - 1

    def wait(worker):  # until the others have made three updates each
        server = worker.server
        goal = min(server.updates, int(server.place.fetch("state")[TICKET]) + 3 * others)
        while int(server.place.fetch("state")[TICKET]) < goal:
            time.sleep(1e-3)

    if comm.rank == others:
        break_gradients(monkeypatch, 1, wait)  # at 0 it compiles, and nobody updates
    _, result = wasap.run(digits, SMALL.with_values(epochs=20), wasap.Plan(phase1=1.0))
    if comm.rank:
        return
    updates = [rank["updates"] for rank in result["parallel"]["ranks"]]
    assert sum(updates) == result["parallel"]["updates"]
    assert 3 * others * (updates[-1] - 1) <= sum(updates[:-1])


def stopped_run(digits, patch, due, path, plan):
    """Have a run stopped before it saves a state that is due."""
    save = checkpoint.save

    def stop_or_save(model, where, state):
        if due(state):
            raise FloatingPointError("stopped for the test")
        save(model, where, state)

    with patch.context() as patch:
        patch.setattr(checkpoint, "save", stop_or_save)
        with pytest.raises((FloatingPointError, wasap.ParallelError), match="stopped for the test"):
            wasap.run(digits, SMALL, plan, checkpoint_path=path)
    MPI.COMM_WORLD.Barrier()


def in_phase_2(state):
    """Tell a worker's own file, of its first epoch of phase 2, from the server's."""
    return "rank" in state


@pytest.mark.parametrize("local_steps", [1, 4])
def test_checkpoint_resumes_and_replays(comm, digits, monkeypatch, path, local_steps):
    plan = wasap.Plan(local_steps=local_steps)
    stopped_run(digits, monkeypatch, lambda state: state["epoch"] == 3, path, plan)
    other_data = dataclasses.replace(digits, X_train=digits.X_train + 1)
    for refused, name in (
        ({"data": other_data}, "data"),
        ({"config": SMALL.with_values(alpha=0.1)}, "alpha 0.6, not 0.1"),
        ({"config": SMALL.with_values(epochs=2)}, "epochs 5, not 2; 2 are done: phase 1"),
        ({"seed": 7}, "seed"),
    ):
        again = {"data": digits, "config": SMALL, "plan": plan, "seed": 0} | refused
        with pytest.raises((ValueError, NotStarted), match=f"belongs to a run with {name}"):
            wasap.run(**again, checkpoint_path=path, resume=True)
        comm.Barrier()
    longer = SMALL.with_values(epochs=6)
    _, result = wasap.run(digits, longer, plan, checkpoint_path=path, resume=True)
    if comm.rank:
        return
    with pytest.raises(ValueError, match="replay: expected the run's data, with SHA-256"):
        wasap.replay(other_data, result)
    updates = sum(
        -(-len(r) // (32 * local_steps)) for r in shard_rows(digits.y_train, comm.size, 0)
    )
    assert result["parallel"]["restarts"] == [2 * updates]
    assert [epoch["epoch"] for epoch in result["epochs"]] == [1, 2, 3, 4, 5, 6]
    assert wasap.replay(digits, result)[1]["identical"]
    if comm.size == 1:
        _, whole = wasap.run(digits, longer, plan, comm=MPI.COMM_SELF)
        assert whole["weights_sha256"] == result["weights_sha256"]


@pytest.mark.parametrize("algorithm", wasap.ALGORITHMS)
def test_a_run_whose_phase_1_is_over_may_have_a_longer_phase_2(
    comm, digits, monkeypatch, path, algorithm
):
    plan, longer = wasap.Plan(algorithm), SMALL.with_values(epochs=6)
    assert plan.phase1_epochs(longer.epochs) == plan.phase1_epochs(SMALL.epochs) == 4
    stopped_run(digits, monkeypatch, in_phase_2, path, plan)
    _, result = wasap.run(digits, longer, plan, checkpoint_path=path, resume=True)
    comm.Barrier()
    if algorithm == "wasap" and comm.size > 1:  # no two such runs are alike
        assert comm.rank or wasap.replay(digits, result)[1]["identical"]
        return
    _, whole = wasap.run(digits, longer, plan)
    assert comm.rank or result["weights_sha256"] == whole["weights_sha256"]


def test_phase_2_of_another_run_is_not_taken(comm, digits, monkeypatch, path):
    plan = wasap.Plan(phase1=0.0)
    wasap.run(digits, SMALL.with_values(learning_rate=0.1), plan, checkpoint_path=path)
    comm.Barrier()  # its workers' files stay, and begin with the same weights as the next run's

    def due(state):
        return len(state.get("epochs", ())) == 1

    stopped_run(digits, monkeypatch, due, path, plan)
    _, result = wasap.run(digits, SMALL, plan, checkpoint_path=path, resume=True)
    comm.Barrier()
    _, whole = wasap.run(digits, SMALL, plan)
    assert comm.rank or result["weights_sha256"] == whole["weights_sha256"]
    assert comm.rank or result["parallel"]["bytes_per_update"] is None, "it made none"


def test_in_lockstep_there_may_be_fewer_test_rows_than_workers(comm, digits):
    data = digits.derived(X_test=digits.X_test[:2], y_test=digits.y_test[:2])
    _, result = wasap.run(data, SMALL.with_values(epochs=2), wasap.Plan("wassp", phase1=1.0))
    if comm.rank == 0:
        assert {epoch["test_accuracy"] for epoch in result["epochs"]} <= {0.0, 0.5, 1.0}


def test_phase_2_of_other_weights_is_not_taken(comm, digits, monkeypatch, path):
    plan, original = wasap.Plan("wassp", phase1=0.4), train.new_model
    with monkeypatch.context() as earlier:  # as two asynchronous runs differ
        earlier.setattr(train, "new_model", lambda *args: original(*args[:-1], 7))
        wasap.run(digits, SMALL, plan, checkpoint_path=path)
    comm.Barrier()
    stopped_run(digits, monkeypatch, in_phase_2, path, plan)
    _, result = wasap.run(digits, SMALL, plan, checkpoint_path=path, resume=True)
    comm.Barrier()
    _, whole = wasap.run(digits, SMALL, plan)
    assert comm.rank or result["weights_sha256"] == whole["weights_sha256"]


def test_seconds_of_phase_2_before_a_restart_count(comm, digits, path):
    plan = wasap.Plan(phase1=0.0)
    wasap.run(digits, SMALL, plan, checkpoint_path=path)
    own = Path(f"{path}.worker{comm.rank}")
    model, state = checkpoint.load(own)
    checkpoint.save(model, own, state | {"elapsed": 5000.0})
    comm.Barrier()
    _, result = wasap.run(digits, SMALL, plan, checkpoint_path=path, resume=True)
    assert comm.rank or 5000 < result["seconds"]["elapsed"] < 5100


@pytest.mark.parametrize(
    "plan, done",
    [
        (wasap.Plan("wasap", phase1=0.0), 0),
        (wasap.Plan("wassp", phase1=0.0), 0),
        (wasap.Plan("wassp", phase1=0.8, local_steps=3), 2),
        (wasap.Plan("wassp", phase1=0.8), 2),
    ],
)
def test_a_run_that_its_seed_determines_resumes_as_it_was(
    comm, digits, monkeypatch, path, plan, done
):
    def due(state):
        return len(state.get("epochs", ())) == 4 or state.get("epoch") == 3

    with monkeypatch.context() as earlier:
        earlier.setattr(ParameterServer, "elapsed", lambda server: 1000.0)
        stopped_run(digits, monkeypatch, due, path, plan)
    _, result = wasap.run(digits, SMALL, plan, checkpoint_path=path, resume=True)
    comm.Barrier()
    _, whole = wasap.run(digits, SMALL, plan)
    if comm.rank:
        return
    assert result["parallel"]["restarts"] == [done]
    assert result["seconds"]["elapsed"] > 990, "what the first part took counts"
    assert result["weights_sha256"] == whole["weights_sha256"]
    assert [epoch["epoch"] for epoch in result["epochs"]] == [1, 2, 3, 4, 5]
