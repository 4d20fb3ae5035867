"""The parallel algorithm's parts against oracles, and MPI jobs as a user starts them."""

import copy
import itertools
import json
import os
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from broken_job import blobs
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_array

from sparsecore import bench, datasets, provenance, wasap
from sparsecore.__main__ import main
from sparsecore.cluster import mpiexec
from sparsecore.config import TrainConfig
from sparsecore.experiment import Shard
from sparsecore.limits import cpu_count
from sparsecore.mlp import SparseMLP
from sparsecore.train import new_model
from sparsecore.wasap import outcome, phases, ranks, record, shm
from sparsecore.wasap.mpi import MPI
from sparsecore.wasap.server import (
    FIELDS,
    TESTED,
    Gradient,
    ParameterServer,
    Place,
    Record,
    average,
    retained,
)
from sparsecore.wasap.worker import Worker, shard_rows

HERE = Path(__file__).parent
WASSP = {"config": {"algorithm": "wassp"}}


# --- merges --------------------------------------------------------------------------------------


def model(seed, sizes=(12, 9, 8, 3)):
    network = SparseMLP.erdos_renyi(sizes, density=0.4, random_state=seed)
    network.biases[:] = np.random.default_rng(seed).standard_normal(len(network.biases))
    return network


@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_averaging_equal_models_changes_nothing(n):
    network = model(0)
    merged, union_nnz = average([network.copy() for _ in range(n)])
    assert merged.weights_sha256() == network.weights_sha256()
    assert union_nnz == network.nnz


def test_average_is_cut_back_to_the_largest_weights_of_each_layer():
    first, second = model(0), model(0)
    second.evolve(0.5, np.random.default_rng(1))
    merged, union_nnz = average([first, second])
    assert merged.nnz == first.nnz < union_nnz
    for layer in range(len(first)):
        views = [m[layer] for m in (first, second)]
        mean = np.mean([m.to_scipy().toarray() for m in views], axis=0, dtype=np.float64)
        kept = merged[layer].to_scipy().toarray()
        assert merged[layer].nnz == first[layer].nnz
        np.testing.assert_array_equal(kept[kept != 0], mean.astype(np.float32)[kept != 0])
        cut = np.abs(mean[(kept == 0) & (mean != 0)])
        assert cut.max(initial=0) <= np.abs(kept[kept != 0]).min()
    np.testing.assert_allclose(merged.biases, (first.biases + second.biases) / 2, rtol=1e-6)


@pytest.mark.parametrize("local_steps", [1, 4])
def test_a_push_on_an_older_topology_moves_what_still_exists(local_steps):
    config = TrainConfig(hidden=(9, 8), epochs=2, weight_decay=0.0)
    start, records = model(0), []
    place = Place(start.sizes, start.nnz, 2, 4, 2)
    server = ParameterServer(place, config, 0, 2, 2, wasap.Plan(local_steps=local_steps))
    server.publish(start)
    (one, version), (two, old) = server.pull(), server.pull()
    values = np.arange(1, len(start.params) + 1, dtype=np.float32)
    two.start_momentum()[:] = values
    for _ in range(2):  # the second one ends an epoch: the topology evolves
        version = server.push(Gradient(0 * values, 0, 1, 0.0, 0), version, one).version
    before = server.pull()[0]
    kept, share = retained(start, values, before.structures())
    assert share < 1

    @contextmanager
    def released():  # whoever holds the lock next changes everything
        yield
        records.append(server.record())
        for name in ("indptr", "indices", "params", "velocity"):
            place.fetch(name).fill(0)

    place.locked = released
    server.push(Gradient(values, 1, 1, 0.0, 0), old, two)
    moved = kept / 3 if local_steps > 1 else -np.float32(config.learning_rate) * kept
    np.testing.assert_allclose(two.params, before.params + moved, rtol=1e-6, atol=1e-5)
    for here, there in zip(two.structures(), before.structures(), strict=True):
        np.testing.assert_array_equal(here[1], there[1])
    if local_steps > 1:
        np.testing.assert_array_equal(two.velocity, kept)
    assert records[0].staleness.tolist() == [0, 0, 2]
    assert records[0].accepted[2] == np.float32(share)


def test_an_epoch_s_record_is_that_of_all_workers():
    row = {
        "samples": 10, "loss": 5, "correct": 4, "staleness": 6, "accepted": 1.5, "nnz": 7,
        "pruned": 1, "replaced": 2, "elapsed": 9, "aside": 4, "test_loss": 0.5,
        "test_accuracy": 0.25,
    }  # fmt: skip
    assert tuple(row) == FIELDS
    [found] = outcome.phase1_records(np.array([*row.values()], float), 2, 3)
    assert found == {
        "epoch": 1, "phase": 1, "nnz": 7, "pruned": 1, "replaced": 2, "loss": 0.5,
        "train_accuracy": 0.4, "test_loss": 0.5, "test_accuracy": 0.25, "staleness": 2,
        "accepted": 0.5, "seconds": {"elapsed": 9, "train": 7},
    }  # fmt: skip
    one = {
        "epoch": 4, "nnz": 7, "replaced": 2, "loss": 0.5, "train_accuracy": 0.5,
        "test_loss": 1.0, "test_accuracy": 0.25, "elapsed": 9.0, "aside": 3.0,
    }  # fmt: skip
    other = one | {
        "replaced": 3, "loss": 1.5, "train_accuracy": 1.0, "test_loss": 2.0, "test_accuracy": 0.75,
        "elapsed": 8.0, "aside": 1.0,
    }  # fmt: skip
    assert outcome._phase2_record((one, other)) == {
        "epoch": 4, "phase": 2, "nnz": 7, "pruned": 0, "loss": 1.0, "train_accuracy": 0.75,
        "test_loss": 1.5, "test_accuracy": 0.5, "worker_test_accuracy": [0.25, 0.75],
        "replaced": 5, "seconds": {"elapsed": 9.0, "train": 7.0},
    }  # fmt: skip


def test_an_epoch_is_saved_after_the_one_before_and_never_over_a_newer_one():
    place, lost, looks, saved = Place((4, 3, 2), 5, 2, 8, 4), {}, [], []
    place.write("worker", [0, 1, 0, 0])

    def tested():
        return int(place.fetch("control")[TESTED])

    def check():
        looks.append(tested())
        place.write("control", max(1, tested()), TESTED)  # meanwhile another saves epoch 1

    run = SimpleNamespace(
        window=place, ranks=SimpleNamespace(lost=lost, check=check), _test=lambda model: {},
        server=SimpleNamespace(updates_per_epoch=2, tested=lambda epoch: None),
        _aside=lambda what: nullcontext(), _for_all=nullcontext, _save=saved.append,
    )  # fmt: skip

    def end(epoch):
        phases._Run._test_and_save(run, epoch, run)

    end(2)
    assert (looks, saved, tested()) == ([0, 1], [2], 2), "it has waited"
    end(1)  # the others took this rank for lost
    assert (saved, tested()) == ([2], 2)
    place.write("control", 0, TESTED)
    lost[1] = "has ended"  # who ended epoch 1
    looks.clear()
    end(2)
    assert looks == [0], "it waits for nobody"


def test_who_is_lost_after_a_slow_step_and_after_the_job_was_suspended(monkeypatch):
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(ranks, "time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr(ranks.watch, "trouble", lambda pid: None)
    own = ranks.Ranks.__new__(ranks.Ranks)
    own.rank, own.size, own.patience, own.shared, own.host = 0, 2, 1.0, True, "here"
    own.facts, own.lost, own.longest_step = [("here", 1), ("here", 2)], {}, 2.0
    own._step_began = own._step_known = 0.0
    own._rows, own._silence = np.zeros(2, ranks._ROW), np.zeros(2)
    own._known, own._others = np.zeros(2, int), np.array([False, True])
    own._looked = clock.now

    def look(after, beat=1):
        clock.now += after
        own._rows["beats"][1] += beat
        own._look()
        return int(own._rows["beats"][0])

    own.step()
    assert [look(0.2), look(8.0), look(1.0)] == [1, 2, 2], "5 × 2 s, less the others' patience"
    own.rest()
    assert own.longest_step == pytest.approx(9.2) and look(0.2) == 3
    look(3600, beat=0)
    assert not own.lost, "this rank has not listened either"
    for _ in range(4):
        look(0.2, beat=0)
    assert "no sign of life" in own.lost[1]
    own.longest_step = 2.0
    own.step()
    clock.now += 3600
    own.rest()
    assert own.longest_step == 10.0


def served(n_workers, plan=None):
    """Return a worker of several, whose update is an epoch of its rows, and its server."""
    data = datasets.load("digits").limited(128, random_state=0)
    config = TrainConfig(hidden=(20, 20), batch_size=32, epochs=4)
    start = new_model(config, data.n_features, data.n_classes, 0)
    place = Place(start.sizes, start.nnz, n_workers, 16, 4)
    server = ParameterServer(place, config, 0, 4, 4, plan)
    server.publish(start)
    return Worker(0, Shard(data, np.arange(64), config, 0), server), place


def test_local_steps_take_the_rate_of_the_warm_up(monkeypatch):
    (worker, _), rates = served(4, wasap.Plan(warmup=2, local_steps=2)), []
    with worker._engine as runner:
        monkeypatch.setattr(runner, "train", lambda rule, *_: rates.append(rule.learning_rate))
        for worker.step in range(4):
            worker.compute()
    own = worker.config.learning_rate
    np.testing.assert_allclose(rates, own * np.array([2.5, 4, 4, 4]), rtol=1e-6)


def test_a_worker_tells_waiting_for_the_lock_from_holding_it(monkeypatch):
    worker, place = served(1)
    clock = itertools.count()  # a second passes whenever somebody looks at it

    @contextmanager
    def late():
        for _ in range(100):
            next(clock)
        yield

    place.locked = late
    watch = SimpleNamespace(perf_counter=lambda: next(clock))
    monkeypatch.setattr("sparsecore.wasap.server.time", watch)
    with worker._engine:
        worker.push(worker.compute())
    assert (worker.seconds["lock"], worker.seconds["update"]) == (101, 1)


def test_threads_are_those_of_every_engine(threads_seen):
    data = datasets.load("digits").limited(200)
    config = TrainConfig(hidden=(20, 20), batch_size=32, epochs=2)
    _, result = wasap.run(data, config, threads=2, comm=MPI.COMM_SELF)
    assert threads_seen.count(1) == 1, "of a tiny network, to compile"
    assert set(threads_seen) == {1, 2} and len(threads_seen) > 5
    for use in (
        lambda: wasap.replay(data, result, threads=2),
        lambda: bench.bench((20, 10, 5), TrainConfig(epsilon=4, batch_size=32), threads=2, steps=3),
    ):
        threads_seen.clear()
        use()
        assert set(threads_seen) == {2}


def test_phase_2_has_the_base_rate_or_as_released_the_k_fold_one():
    config = TrainConfig(hidden=(4,), prune_from=1)
    model = new_model(config, 5, 2, 0)
    worker = SimpleNamespace(config=config, model=model, seed=0, threads=1, rank=0, step=0)
    worker.batches_before = lambda updates: updates
    worker.server = SimpleNamespace(place=SimpleNamespace(n_workers=3))
    for factor in (1, 3):
        worker.plan = wasap.Plan("wassp", keep_rate=factor > 1)
        with Worker.trainer(worker, 0) as trainer:
            assert trainer._rule.learning_rate == np.float32(factor * config.learning_rate)
            assert trainer.config.prune_from is None


def test_a_change_of_local_steps_that_is_one_update_old_counts_half():
    config = TrainConfig(hidden=(9, 8), batch_size=32, epochs=2, zeta=0.0)
    start = model(0)
    place = Place(start.sizes, start.nnz, 2, 16, 2)
    server = ParameterServer(place, config, 0, 8, 2, wasap.Plan(local_steps=4))
    server.publish(start)
    change = np.ones(len(start.params), np.float32)
    for rank, (own, version) in enumerate([server.pull(), server.pull()]):
        own.params[:] += change
        server.push(Gradient(change, rank, 1, 0.0, 0), version, own)
    np.testing.assert_allclose(server.pull()[0].params, start.params + 1.5, rtol=1e-6, atol=1e-6)


def test_gradient_of_an_older_topology_keeps_its_valid_part():
    old, new = model(0), model(0)
    new.evolve(0.4, np.random.default_rng(2))
    gradient = np.arange(1, len(old.params) + 1, dtype=np.float32)
    out, accepted = retained(old, gradient, new.structures())
    place_old, place_new, common = 0, 0, 0
    for layer in range(len(old)):
        a, b = old[layer], new[layer]
        shape, here, there = (a.n_out, a.n_in), gradient[place_old:], out[place_new:]
        before = csr_array((here[: a.nnz], a.indices, a.indptr), shape).toarray()
        after = csr_array((there[: b.nnz], b.indices, b.indptr), shape).toarray()
        exists = b.to_scipy().toarray() != 0
        np.testing.assert_array_equal(after, np.where(exists, before, 0))
        common += np.sum(exists & (before > 0))
        place_old, place_new = place_old + a.nnz, place_new + b.nnz
    assert accepted == pytest.approx(common / old.nnz)
    np.testing.assert_array_equal(out[place_new:], gradient[place_old:])


# --- shards, plans, records ----------------------------------------------------------------------


@given(
    st.lists(st.integers(0, 4), min_size=7, max_size=90), st.integers(1, 7), st.integers(0, 10**6)
)
def test_shards_hold_every_row_once_and_every_class_evenly(labels, n_workers, seed):
    labels = np.array(labels)
    shards = shard_rows(labels, n_workers, seed)
    np.testing.assert_array_equal(np.sort(np.concatenate(shards)), np.arange(len(labels)))
    assert max(map(len, shards)) - min(map(len, shards)) <= 1
    for label in range(5):
        shares = [np.sum(labels[rows] == label) for rows in shards]
        assert max(shares) - min(shares) <= 1
    assert all((np.diff(rows) > 0).all() for rows in shards)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: wasap.Plan("fast"), "algorithm: expected one of wasap, wassp, got 'fast'"),
        (lambda: wasap.Plan(phase1=1.5), "phase1: .* got 1.5"),
        (lambda: wasap.Plan(warmup=-1), "warmup: .* got -1"),
        (lambda: wasap.Plan(keep_rate=True), "keep_rate: expected False: WASAP without local"),
        (lambda: wasap.Plan(local_steps=2.0), "local_steps: .* integer of at least 1, got 2.0"),
        (lambda: shard_rows(np.zeros(3, int), 4, 0), r"expected at most 3 \(rows\), got 4"),
        (lambda: record.replay(None, WASSP), "other runs need only their seed"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_phase_1_is_seven_tenths_of_the_epochs():
    assert [wasap.Plan().phase1_epochs(n) for n in (0, 1, 2, 3, 10, 500)] == [0, 1, 1, 2, 7, 350]


@given(st.lists(st.integers(0, 300)))
def test_record_survives_json(values):
    array = np.array(values, np.int16)
    original = Record(array, array.astype(np.int32), array.astype(np.float32))
    read = record.from_json(json.loads(json.dumps(record.to_json(original))))
    for here, there in zip(read, original, strict=True):
        assert here.dtype == there.dtype
        np.testing.assert_array_equal(here, there)


@pytest.mark.parametrize("damage", [{"zlib_base64": "AAAA"}, {"size": 3}, {"dtype": None}])
def test_damaged_record_is_refused(damage):
    value = record.encode(np.arange(4, dtype=np.int16)) | damage
    with pytest.raises(ValueError, match="record"):
        record.decode(value)


@pytest.fixture(scope="module")
def recorded():
    config = TrainConfig(hidden=(20, 20), batch_size=32, epochs=2)
    return wasap.run(datasets.load("digits"), config, comm=MPI.COMM_SELF)[1]


def other_record(result, **arrays):
    read = wasap.from_json(result["parallel"]["record"])
    return record.to_json(read._replace(**arrays))


ZEROS = np.zeros(45, np.int16)
WRONG = [
    ("config", None),
    ("config.workers", "2"),
    ("config.workers", 0),
    ("config.zeta", "much"),
    ("config.phase1", None),
    ("config.phase1_epochs", 10**12),
    ("config.local_steps", "4"),
    ("config.local_steps", 4),  # too few updates would do
    ("seed", -1),
    ("provenance.data_sha256", None),
    ("parallel", []),
    ("parallel.record", None),
    ("parallel.record.worker", "AAAA"),
    ("parallel.record.worker.dtype", "O"),
    ("parallel.record.worker.size", None),
    ("parallel.record", {"worker": ZEROS - 1}),
    ("parallel.record", {"worker": np.where(np.arange(45) == 7, 3, ZEROS)}),
    ("parallel.record", {"worker": ZEROS.astype(np.float32)}),
    ("parallel.record", {"staleness": ZEROS[1:]}),
    ("parallel.restarts", [{}]),
    ("parallel.failed_workers", [1]),
    ("parallel.failed_workers", [{"rank": 0}]),
    ("weights_sha256", None),
]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_damaged_result_is_refused_before_it_is_replayed(recorded, name, value):
    result = copy.deepcopy(recorded)
    *path, last = name.split(".")
    if isinstance(value, dict):
        value = other_record(result, **value)
    place = result
    for part in path:
        place = place[part]
    place[last] = value
    words = name.split(".")[1:2] or [name]
    with pytest.raises(ValueError, match=f"record|{words[0]}"):
        record.replay(datasets.load("digits"), result)


def test_a_result_that_does_not_say_its_share_of_phase_1_is_not_replayed(recorded):
    result = copy.deepcopy(recorded)
    del result["config"]["phase1"]  # a default in its place could be another run's
    with pytest.raises(ValueError, match="config: expected the entries phase1, got none"):
        record.replay(datasets.load("digits"), result)


def test_ranks_that_differ_from_most_are_named():
    provenance.check_alike([{"a": {"b": 1}}] * 3)
    with pytest.raises(
        ValueError, match=r"alike: rank 0 has b 2, not 1, and rank 3 has c 5, not N"
    ):
        one, other, third = {"a": {"b": 1}}, {"a": {"b": 2}}, {"a": {"b": 1}, "c": 5}
        provenance.check_alike([other, one, one, third])
    with pytest.raises(ValueError, match="rank 1 has seed 7, not 0"):
        provenance.check_alike([{"seed": 0}, {"seed": 7}])


# --- shared memory -------------------------------------------------------------------------------


@pytest.mark.mpi
@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's /proc")
def test_segments_have_no_name_that_could_stay():
    assert MPI.Is_initialized()
    own = set(shm._NAME.findall(Path("/proc/self/maps").read_text()))
    assert own and not own & set(os.listdir("/dev/shm"))


def test_mpi_is_not_started_without_shared_memory(monkeypatch):
    monkeypatch.setenv("MPI_LOCALNRANKS", "5")
    monkeypatch.setenv("UCX_TLS", "")  # so that what is set here is taken back
    monkeypatch.delenv("UCX_TLS")
    monkeypatch.setattr(shm, "room", lambda: 2**23)
    shm.prepare()
    assert os.environ["UCX_TLS"] == "^posix"
    monkeypatch.setattr(shm, "room", lambda: 2**22)
    with pytest.raises(
        wasap.ParallelError, match=r"5 rank.* 6.9 MiB .* 4.0 MiB free: make it larg"
    ):
        shm.prepare()


# --- jobs ----------------------------------------------------------------------------------------


def start(n, *arguments, options=(), before=()):
    command = [mpiexec(), *options, "-n", n, *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*map(str, before), *map(str, command)], **pipes)


def finished(job, limit=120):
    try:
        out, err = job.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        job.kill()
        out, err = job.communicate()
        pytest.fail(f"the job did not end within {limit} s: {out[-2000:]}{err[-2000:]}")
    return job.returncode, out, err


TRAIN = ("train", "--dataset", "digits", "--hidden", "40,30", "--json")
SPARSECORE = (sys.executable, "-m", "sparsecore")


@pytest.mark.mpi
def test_parallel_suite_passes():
    command = (sys.executable, "-m", "pytest", "-q", "--timeout", "100", HERE / "mpi")
    status, out, err = finished(start(3, *command), 200)
    assert status == 0, out[-3000:] + err[-3000:]
    assert len(re.findall(r"\d+ passed", out)) == 3
    assert "UCX" not in err  # nothing is left open at the end


@pytest.mark.mpi
@pytest.mark.skipif(cpu_count() < 2, reason="needs a CPU for each rank")
def test_ranks_that_are_bound_to_cpus_of_their_own_share_none():
    train = (*TRAIN, "--algorithm", "wassp", "--epochs", 1)
    status, _, err = finished(start(2, *SPARSECORE, *train, options=("-bind-to", "hwthread")))
    assert status == 0 and "rank 1 = process" in err and "share" not in err


@pytest.mark.mpi
def test_command_line_trains_on_nodes_that_share_a_machine_and_replays(tmp_path, capsys):
    job = start(
        2, *SPARSECORE, *TRAIN, "--algorithm", "wasap", "--epochs", 10, "--patience", 5,
        options=("-genv", "MPIR_CVAR_NOLOCAL", "1"),
    )  # fmt: skip
    status, out, err = finished(job)
    assert status == 0, err
    assert out.count("\n") == 1, "only rank 0 prints"
    assert "2 worker(s): rank 0 = process" in err
    path, result = tmp_path / "result.json", json.loads(out)
    assert result["parallel"]["window"] == "remote"
    path.write_text(out)
    assert main(["train", "--replay", str(path)]) == 0
    told = capsys.readouterr().out
    assert "bit-identical weights" in told and result["weights_sha256"] in told

    # Another order of the same updates makes other weights.
    read = wasap.from_json(result["parallel"]["record"])
    result["parallel"]["record"] = record.to_json(read._replace(worker=read.worker[::-1]))
    path.write_text(json.dumps(result))
    assert main(["train", "--replay", str(path)]) == 1
    assert "another lane width" in capsys.readouterr().err


@pytest.mark.mpi
def test_one_rank_says_how_to_start_more(monkeypatch, capsys):
    monkeypatch.setattr(MPI, "Finalize", lambda: None)  # this process goes on
    assert main([*TRAIN, "--algorithm", "wassp", "--epochs", "2"]) == 0
    told = capsys.readouterr()
    assert "mpiexec -n 5" in told.err
    assert json.loads(told.out)["parallel"]["failed_workers"] == []


# --- jobs that break -----------------------------------------------------------------------------

SILENT = "no sign of life for|is stopped"
OTHERS = r"( or rank \d \(process \d+\))*"  # that mpiexec killed before anybody looked
GOES_ON, ENDS, IS_DONE = "goes on", "ends", "is done"
HANGS = [
    ("SIGSTOP", 1, "reading", ENDS),
    ("SIGSTOP", 1, "loading", ENDS),
    ("SIGSTOP", 1, "gradient", GOES_ON),
    ("sleep", 1, "gradient", GOES_ON),
    ("SIGSTOP", 1, "lock", ENDS),
    ("SIGSTOP", 0, "evolution", ENDS),
    ("SIGSTOP", 1, "test", GOES_ON),
    ("SIGSTOP", 1, "end of phase 1", GOES_ON),
    ("SIGSTOP", 1, "phase 2", GOES_ON),
    ("sleep", 1, "phase 2", GOES_ON),
    ("SIGSTOP", 0, "averaging", ENDS),
    ("SIGSTOP", 0, "printing", ENDS),
    ("SIGSTOP", 1, "exit", IS_DONE),
    ("SIGSTOP", 1, "gradient", ENDS, "wassp"),
]


def job_of(path, how="", rank="", place="nowhere", run=None, algorithm="wasap"):
    """Return the command of a job with a rank that breaks."""
    return (
        sys.executable, HERE / "broken_job.py", how, rank, place, "train", "--dataset", "digits",
        "--hidden", "40,30", "--json", "--algorithm", algorithm, "--epochs", 20, "--phase1", 0.5,
        "--patience", 1, "--checkpoint", path,
    )  # fmt: skip


def broken(*command, n=2, options=()):
    """Run such a job; return its status, result, diagnostics, and how long it went on.

    The result is None if the job printed none; the seconds count from where the rank broke.
    """
    job, err = start(n, *command, options=options), b""
    too_late = threading.Timer(60, job.kill)
    too_late.start()
    while not err.endswith(b"breaks here\n"):
        byte = os.read(job.stderr.fileno(), 1)  # what a buffer took, `finished` would not see
        assert byte, f"the job ended before a rank broke: {err}{job.stdout.read()}"
        err += byte
    too_late.cancel()
    begun = time.monotonic()
    status, out, rest = finished(job, 20)
    results = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    return status, results[0] if results else None, err.decode() + rest, time.monotonic() - begun


@pytest.fixture(scope="module")
def hung(request, tmp_path_factory):
    """What became of the jobs of `HANGS` that are asked for; they mostly wait, so do it at once."""
    name = "test_rank_that_hangs_is_left_behind_or_ends_the_job"
    cases = [i.callspec.params["case"] for i in request.session.items if i.originalname == name]
    paths = {case: tmp_path_factory.mktemp("hung") / "run.npz" for case in cases}
    with ThreadPoolExecutor(3) as pool:
        jobs = {case: pool.submit(broken, *job_of(paths[case], *case)) for case in cases}
    return {case: (paths[case], jobs[case]) for case in cases}


@pytest.mark.mpi
@pytest.mark.parametrize("case", HANGS, ids=lambda case: "-".join(map(str, case)))
def test_rank_that_hangs_is_left_behind_or_ends_the_job(hung, case):
    _, rank, _, run, *algorithm = case
    path, job = hung[case]
    status, result, err, seconds = job.result()
    assert seconds < 10
    if run == GOES_ON:
        [lost] = result["parallel"]["failed_workers"]
        assert lost["rank"] == rank and re.search(SILENT, lost["cause"])
        assert f"rank {rank} was lost during the run: {lost['cause']}" in err
    else:
        assert status != 0
        assert (result is not None) == (run == IS_DONE)
        teller = "rank 0: " if algorithm else ""  # in lockstep
        assert re.search(rf"{teller}rank {rank}\b.*({SILENT})", err), err
        assert (f"--resume continues from {path}" in err) == (path.exists() and run == ENDS)


# A program of one's own; here its second rank stops, or what it is shown raises on the first.
PROGRAM = """
import os, signal, sys
sys.path.insert(0, sys.argv[2])
from broken_job import before, blobs, places
from sparsecore import wasap
from sparsecore.config import TrainConfig
from sparsecore.limits import cpu_count
from sparsecore.wasap.mpi import MPI

def show(state):
    if sys.argv[1] == "raise":
        raise KeyError("a slip")

if sys.argv[1] == "stop" and MPI.COMM_WORLD.rank:
    before(places()["gradient"], lambda: os.kill(os.getpid(), signal.SIGSTOP))
config = TrainConfig(hidden=(40, 30), epochs=20, batch_size=32)
model, result = wasap.run(blobs(), config, on_progress=show, patience=1)
if model is not None:
    print("lost", [one["rank"] for one in result["parallel"]["failed_workers"]], flush=True)
"""


@pytest.mark.mpi
@pytest.mark.parametrize("how", ["stop", "raise"])
def test_a_program_of_one_s_own_ends_after_a_rank_is_lost_or_its_callback_raises(how, tmp_path):
    (tmp_path / "mine.py").write_text(PROGRAM)
    status, out, err = finished(start(2, sys.executable, tmp_path / "mine.py", how, HERE), 40)
    assert status, "the job ends, and not as if all had gone well"
    assert out == ("lost [1]\n" if how == "stop" else ""), "a callback's error is not a worker's"
    assert how == "stop" or "KeyError: 'a slip'" in err


@pytest.mark.mpi
def test_killed_rank_ends_the_job_which_resumes(tmp_path):
    path = tmp_path / "run.npz"
    for rank, place in ((0, "lock"), (1, "phase 2")):
        resume = ["--resume"] * path.exists()
        status, result, err, seconds = broken(*job_of(path, "SIGKILL", rank, place), *resume)
        assert seconds < 10
        assert status != 0 and result is None
        pid = re.search(rf"rank {rank} = process (\d+)", err)[1]
        told = (
            rf"rank {rank} \(process {pid}\){OTHERS} was killed or crashed; --resume continues from"
        )
        assert re.search(told + re.escape(f" {path}"), err), err

    status, out, err = finished(start(2, *job_of(path), "--resume"))
    assert status == 0, err
    result = json.loads(out)
    assert [epoch["epoch"] for epoch in result["epochs"]] == list(range(1, 21))
    assert len(result["parallel"]["restarts"]) == 2
    assert record.replay(blobs(), result)[1]["identical"]


@pytest.mark.mpi
@pytest.mark.parametrize(("rank", "place"), [(1, "reading"), (1, "phase 2"), (0, "printing")])
def test_terminated_rank_ends_the_job_as_ctrl_c_does(tmp_path, rank, place):
    path = tmp_path / "run.npz"
    status, result, err, seconds = broken(*job_of(path, "SIGTERM", rank, place))
    assert seconds < 10 and result is None
    assert status  # 143 is that rank's; mpiexec takes any of the ranks', or says that it killed one
    hint = f"; --resume continues from {path}" * (place != "reading")
    assert f"sparsecore train: terminated{hint}\n" in err
    assert f"rank {rank} was terminated" in err and "Traceback" not in err


@pytest.mark.mpi
def test_rank_that_hangs_before_the_ranks_meet_ends_the_job(tmp_path):
    status, result, err, seconds = broken(*job_of(tmp_path / "a", "SIGSTOP", 1, "starting"))
    assert status != 0 and result is None and seconds < 20
    assert re.search(r"Timeout.*wasap/mpi\.py", err, re.S), err


@pytest.mark.mpi
def test_run_goes_on_without_a_killed_rank_where_mpi_lets_it(tmp_path):
    # mpiexec kills all ranks when it finds one killed by a signal, whatever it is told; a shell in
    # between ends with a status instead. mpiexec tells it by a signal, which it must ignore.
    shell = "sh", "-c", "trap '' USR1; \"$@\"; exit $?", "rank"
    command = job_of(tmp_path / "run.npz", "SIGKILL", 1, "gradient")
    _, result, err, _ = broken(*shell, *command, n=3, options=["-disable-auto-cleanup"])
    [lost] = result["parallel"]["failed_workers"]
    assert lost["rank"] == 1 and "has ended" in lost["cause"]
    assert re.search(rf"rank 1 \(process \d+\){OTHERS} was killed or crashed", err)
    updates = np.bincount(wasap.from_json(result["parallel"]["record"]).worker)
    assert updates[1] < 100 and updates.sum() == result["parallel"]["updates"]
    assert record.replay(blobs(), result)[1]["identical"]


@pytest.mark.mpi
def test_bench_times_one_thread_and_all_ranks_in_turns():
    status, out, err = finished(start(2, *SPARSECORE, "bench", "--parallel", "digits", "--json"))
    assert status == 0, err
    result = json.loads(out)
    assert result["workers"] == 2 and [r["seed"] for r in result["rounds"]] == [0, 1, 2]
    for entry in result["rounds"]:
        assert entry["ratio"] == pytest.approx(entry["parallel"] / entry["sequential"])


@pytest.mark.parametrize("text", ['{"loss": 1}', "[]", "1"])
def test_what_is_no_result_is_not_replayed(tmp_path, text):
    for content in (text.encode(), b"PK\xff" + text.encode()):  # and of a model file
        (tmp_path / "run.json").write_bytes(content)
        with pytest.raises(ValueError, match=r"run\.json: expected the JSON result of a training"):
            record.read_result(tmp_path / "run.json")


# In containers process numbers begin anew, but sockets' names may be those of the whole machine.
CONTAINER = (
    "unshare", "--pid", "--ipc", "--fork", "--mount-proc",
    "sh", "-c", 'mount -t tmpfs tmpfs /dev/shm && exec "$@"', "container",
)  # fmt: skip


@pytest.mark.mpi
def test_jobs_that_see_the_same_process_numbers_do_not_clash(tmp_path):
    try:
        subprocess.run([*CONTAINER, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no permission to make namespaces")
    command = (*job_of(tmp_path / "run.npz"), "--patience", 5)
    jobs = [start(2, *command, before=CONTAINER) for _ in range(2)]
    ended = [finished(job) for job in jobs]
    assert [status for status, _, _ in ended] == [0, 0], ended
    pids = [[rank["pid"] for rank in json.loads(out)["parallel"]["ranks"]] for _, out, _ in ended]
    assert pids[0] == pids[1]


SPLIT_THAT_BREAKS = """
import signal, sys
from mpi4py import MPI
from sparsecore.__main__ import main
from sparsecore.extreme.network import TiledMLP

if MPI.COMM_WORLD.rank == 1:
    def exchange(self, *args):
        HARM

    TiledMLP._exchange = exchange
sys.exit(main(["extreme", "--neurons", "4096", "--hidden-layers", "2", "--split", "--zeta", "0"]))
"""


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("harm", "told"),
    [('raise OSError(12, "no memory left")', "[Errno 12] no memory left"),
     ("signal.raise_signal(signal.SIGTERM)", "terminated"),
     ("raise KeyboardInterrupt", "interrupted")],
)  # fmt: skip
def test_a_split_network_ends_when_a_rank_cannot_go_on(harm, told):
    program = SPLIT_THAT_BREAKS.replace("HARM", harm)
    status, _, err = finished(start(2, sys.executable, "-c", program), limit=60)
    assert status != 0
    assert f"rank 1: {told}" in err
