"""The parallel algorithm's parts against oracles, and MPI jobs as a user starts them."""

import json
import os
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from broken_job import blobs
from hypothesis import given
from hypothesis import strategies as st

from sparsecore import topology, wasap
from sparsecore.config import TrainConfig
from sparsecore.mlp import SparseMLP
from sparsecore.train import new_model
from sparsecore.wasap import average, record
from sparsecore.wasap.server import Record, retained
from sparsecore.wasap.worker import Worker, shard_rows

HERE = Path(__file__).parent


# --- merges --------------------------------------------------------------------------------------


def random_layer(seed, n_in=12, n_out=9, density=0.3):
    rng = np.random.default_rng(seed)
    indptr, indices = topology.erdos_renyi(n_in, n_out, density, rng)
    return indptr, indices, rng.standard_normal(len(indices)).astype(np.float32)


def dense(indptr, indices, data, n_in=12):
    matrix = np.zeros((len(indptr) - 1, n_in))
    matrix[np.repeat(np.arange(len(indptr) - 1), np.diff(indptr)), indices] = data
    return matrix


@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_retain_valid_keeps_what_exists_in_both(seed, other_seed):
    indptr, indices, values = random_layer(seed)
    new_indptr, new_indices, _ = random_layer(other_seed)
    out = np.full(len(new_indices), np.nan, np.float32)
    kept = topology.retain_valid(indptr, indices, values, new_indptr, new_indices, out)
    exists = dense(new_indptr, new_indices, 1) > 0
    expected = np.where(exists, dense(indptr, indices, values), 0)
    np.testing.assert_array_equal(dense(new_indptr, new_indices, out), expected)
    assert kept == np.sum(exists & (dense(indptr, indices, 1) > 0))


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=4))
def test_union_average_is_the_mean_with_zeros_for_what_is_missing(seeds):
    layers = [random_layer(seed) for seed in seeds]
    indptr, indices, mean = topology.union_average(layers)
    topology.check(indptr, indices, 12)
    expected = np.mean([dense(*layer) for layer in layers], axis=0)
    np.testing.assert_array_equal(dense(indptr, indices, mean), expected.astype(np.float32))
    union = np.any([dense(p, i, 1) > 0 for p, i, _ in layers], axis=0)
    assert len(indices) == union.sum()


def test_union_average_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        topology.union_average([])


@given(st.lists(st.integers(-3, 3), max_size=12), st.integers(0, 14))
def test_strongest_marks_the_largest_and_the_first_of_equals(values, n):
    data = np.array(values, np.float32)
    order = np.argsort(-np.abs(data), kind="stable")[:n]
    expected = np.zeros(len(data), bool)
    expected[order] = True
    np.testing.assert_array_equal(topology.strongest(data, n), expected)


def model(seed, sizes=(12, 9, 8, 3)):
    network = SparseMLP.erdos_renyi(sizes, density=0.4, random_state=seed)
    network.biases[:] = np.random.default_rng(seed).standard_normal(len(network.biases))
    return network


@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_averaging_equal_models_changes_nothing(n):
    network = model(0)
    merged, union_nnz = average.average([network.copy() for _ in range(n)])
    assert merged.weights_sha256() == network.weights_sha256()
    assert union_nnz == network.nnz


def test_average_is_cut_back_to_the_largest_weights_of_each_layer():
    first, second = model(0), model(0)
    second.evolve(0.5, np.random.default_rng(1))
    merged, union_nnz = average.average([first, second])
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


def test_phase_2_has_the_base_rate_or_as_released_the_k_fold_one():
    config = TrainConfig(hidden=(4,), prune_from=1)
    model = new_model(config, 5, 2, 0)
    worker = SimpleNamespace(config=config, model=model, seed=0, threads=1, rank=0, step=0)
    for factor in (1, 3):
        with Worker.trainer(worker, 0, factor) as trainer:
            assert trainer._rule.learning_rate == np.float32(factor * config.learning_rate)
            assert trainer.config.prune_from is None
    # Older results and checkpoints know nothing of the choice.
    assert "prune_counts_empty" not in config.to_dict()
    assert config.with_values(prune_counts_empty=True).to_dict()["prune_counts_empty"] is True


def test_gradient_of_an_older_topology_keeps_its_valid_part():
    old, new = model(0), model(0)
    new.evolve(0.4, np.random.default_rng(2))
    gradient = np.arange(1, len(old.params) + 1, dtype=np.float32)
    out, accepted = retained(old, gradient, new.structures())
    place_old, place_new, common = 0, 0, 0
    for layer in range(len(old)):
        a, b = old[layer], new[layer]
        before = dense(a.indptr, a.indices, gradient[place_old : place_old + a.nnz], a.n_in)
        after = dense(b.indptr, b.indices, out[place_new : place_new + b.nnz], b.n_in)
        exists = dense(b.indptr, b.indices, 1, b.n_in) > 0
        np.testing.assert_array_equal(after, np.where(exists, before, 0))
        common += np.sum(exists & (before > 0))
        place_old, place_new = place_old + a.nnz, place_new + b.nnz
    assert accepted == pytest.approx(common / old.nnz)
    np.testing.assert_array_equal(out[place_new:], gradient[place_old:])


# --- shards, plans, records ----------------------------------------------------------------------


@given(
    st.lists(st.integers(0, 4), min_size=7, max_size=90),
    st.integers(1, 7),
    st.integers(0, 10**6),
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


def test_more_workers_than_rows_are_refused():
    with pytest.raises(ValueError, match="4 workers cannot share 3 rows"):
        shard_rows(np.zeros(3, int), 4, 0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"algorithm": "fast"}, "algorithm: expected one of wasap, wassp, got 'fast'"),
        ({"phase1": 1.5}, "phase1: .* got 1.5"),
        ({"warmup": -1}, "warmup: .* got -1"),
    ],
)
def test_plan_is_checked(values, message):
    with pytest.raises(ValueError, match=message):
        wasap.Plan(**values)


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


def test_replay_refuses_a_synchronous_result():
    with pytest.raises(ValueError, match="repeat from their seed alone"):
        record.replay(None, {"config": {"algorithm": "wassp"}})


# --- jobs ----------------------------------------------------------------------------------------


def environment():
    bin_folder = str(Path(sys.executable).parent)
    return {**os.environ, "PATH": bin_folder + os.pathsep + os.environ["PATH"]}


def start(n, *arguments, options=()):
    return subprocess.Popen(
        ["mpiexec", *options, "-n", str(n), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )


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
@pytest.mark.parametrize("n", [2, 3])
def test_parallel_suite_passes(n):
    status, out, err = finished(
        start(n, sys.executable, "-m", "pytest", "-q", "--timeout", "100", HERE / "mpi"), 200
    )
    assert status == 0, out[-3000:] + err[-3000:]
    assert len(re.findall(r"\d+ passed", out)) == n
    assert "UCX" not in err  # nothing is left open at the end


@pytest.mark.mpi
@pytest.mark.parametrize("n", [2, 3])
def test_command_line_trains_and_replays(tmp_path, n):
    status, out, err = finished(
        start(n, *SPARSECORE, *TRAIN, "--algorithm", "wasap", "--epochs", 10)
    )
    assert status == 0, err
    assert out.count("\n") == 1, "only rank 0 prints"
    assert f"{n} worker(s): rank 0 = process" in err
    path = tmp_path / "result.json"
    path.write_text(out)
    command = [*SPARSECORE, "train", "--replay", str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "weights identical to the last bit" in done.stdout
    assert json.loads(out)["weights_sha256"] in done.stdout

    if n > 2:
        return
    # Another order of the same updates makes other weights.
    changed = json.loads(out)
    read = wasap.from_json(changed["parallel"]["record"])
    changed["parallel"]["record"] = record.to_json(read._replace(worker=read.worker[::-1]))
    path.write_text(json.dumps(changed))
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "another kind of CPU" in done.stderr


@pytest.mark.mpi
def test_one_rank_says_how_to_start_more():
    arguments = [*SPARSECORE, *TRAIN, "--algorithm", "wassp", "--epochs", "2"]
    done = subprocess.run(arguments, capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stderr
    assert "mpiexec -n 5" in done.stderr
    assert json.loads(done.stdout)["parallel"]["failed_workers"] == []


@pytest.mark.mpi
def test_wrong_option_is_one_message_and_ends_the_job():
    status, out, err = finished(
        start(2, *SPARSECORE, *TRAIN, "--algorithm", "wasap", "--phase1", "2"), 60
    )
    assert status == 1 and "test_accuracy" not in out
    assert "phase1: expected a share in [0, 1], got 2.0" in err
    assert "Traceback" not in err


# --- jobs that break -----------------------------------------------------------------------------

SILENT = "no sign of life for|is stopped"
GOES_ON, ENDS, IS_DONE = "goes on", "ends", "is done"
HANGS = [
    ("SIGSTOP", 1, "before MPI", ENDS),
    ("SIGSTOP", 1, "loading", ENDS),
    ("SIGSTOP", 1, "gradient", GOES_ON),
    ("sleep", 1, "gradient", GOES_ON),
    ("SIGSTOP", 1, "lock", ENDS),
    ("SIGSTOP", 0, "evolution", ENDS),
    ("SIGSTOP", 1, "test", GOES_ON),
    ("SIGSTOP", 1, "end of phase 1", GOES_ON),
    ("SIGSTOP", 1, "phase 2", GOES_ON),
    ("SIGSTOP", 0, "averaging", ENDS),
    ("SIGSTOP", 0, "printing", ENDS),
    ("SIGSTOP", 1, "exit", IS_DONE),
]


def job_of(how, rank, place, path, algorithm="wasap"):
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
    job, err = start(n, *command, options=options), ""
    too_late = threading.Timer(60, job.kill)
    too_late.start()
    while "breaks here" not in err:
        line = job.stderr.readline()
        assert line, f"the job ended before a rank broke: {err}{job.stdout.read()}"
        err += line
    too_late.cancel()
    begun = time.monotonic()
    status, out, rest = finished(job, 20)
    results = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    return status, results[0] if results else None, err + rest, time.monotonic() - begun


@pytest.fixture(scope="module")
def hung(request, tmp_path_factory):
    """What became of the jobs of `HANGS` that are asked for; they mostly wait, so do it at once."""
    name = "test_rank_that_hangs_is_left_behind_or_ends_the_job"
    cases = [i.callspec.params["case"] for i in request.session.items if i.originalname == name]
    paths = {case: tmp_path_factory.mktemp("hung") / "run.npz" for case in cases}
    with ThreadPoolExecutor(3) as pool:
        jobs = {case: pool.submit(broken, *job_of(*case[:3], paths[case])) for case in cases}
    return {case: (paths[case], jobs[case]) for case in cases}


@pytest.mark.mpi
@pytest.mark.parametrize("case", HANGS, ids=lambda case: "-".join(map(str, case)))
def test_rank_that_hangs_is_left_behind_or_ends_the_job(hung, case):
    _, rank, _, run = case
    path, job = hung[case]
    status, result, err, seconds = job.result()
    assert seconds < 10
    if run == GOES_ON:
        [lost] = result["parallel"]["failed_workers"]
        assert lost["rank"] == rank and re.search(SILENT, lost["cause"])
        assert f"rank {rank} was lost on the way: {lost['cause']}" in err
    else:
        assert status != 0
        assert (result is not None) == (run == IS_DONE)
        assert re.search(rf"rank {rank}\b.*({SILENT})", err), err
        assert (f"--resume goes on from {path}" in err) == (path.exists() and run == ENDS)


@pytest.mark.mpi
def test_rank_that_hangs_in_lockstep_ends_the_job(tmp_path):
    command = job_of("SIGSTOP", 1, "gradient", tmp_path / "run.npz", "wassp")
    status, result, err, seconds = broken(*command)
    assert seconds < 10
    assert status != 0 and result is None
    assert re.search(rf"rank 0: rank 1 .*({SILENT})", err), err


@pytest.mark.mpi
@pytest.mark.parametrize(("rank", "place"), [(0, "lock"), (1, "gradient"), (1, "phase 2")])
def test_killed_rank_ends_the_job_which_resumes(tmp_path, rank, place):
    path = tmp_path / "run.npz"
    status, result, err, seconds = broken(*job_of("SIGKILL", rank, place, path))
    assert seconds < 10
    assert status != 0 and result is None
    pid = re.search(rf"rank {rank} = process (\d+)", err)[1]
    assert f"rank {rank} (process {pid}) was killed or crashed; --resume goes on from {path}" in err

    status, out, err = finished(start(2, *job_of("", "", "nowhere", path), "--resume"))
    assert status == 0, err
    result = json.loads(out)
    assert [epoch["epoch"] for epoch in result["epochs"]] == list(range(1, 21))
    assert result["parallel"]["restarts"]
    assert record.replay(blobs(), result)[1]["identical"]


@pytest.mark.mpi
def test_run_goes_on_without_a_killed_rank_where_mpi_lets_it(tmp_path):
    # mpiexec kills all ranks when it finds one killed by a signal, whatever it is told; a shell in
    # between ends with a status instead. mpiexec tells it by a signal, which it must ignore.
    shell = "sh", "-c", "trap '' USR1; \"$@\"; exit $?", "rank"
    command = job_of("SIGKILL", 1, "gradient", tmp_path / "run.npz")
    _, result, err, _ = broken(*shell, *command, n=3, options=["-disable-auto-cleanup"])
    [lost] = result["parallel"]["failed_workers"]
    assert lost["rank"] == 1 and "is gone" in lost["cause"]
    assert re.search(r"rank 1 \(process \d+\) was killed or crashed", err)
    updates = np.bincount(wasap.from_json(result["parallel"]["record"]).worker)
    assert updates[1] < 100 and updates.sum() == result["parallel"]["updates"]
    assert record.replay(blobs(), result)[1]["identical"]


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
    command = ["mpiexec", "-n", "2", *map(str, job_of("", "", "nowhere", tmp_path / "run.npz"))]
    command += ["--epochs", "60", "--patience", "5"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    jobs = [subprocess.Popen([*CONTAINER, *command], env=environment(), **pipes) for _ in range(2)]
    ended = [finished(job) for job in jobs]
    assert [status for status, _, _ in ended] == [0, 0], ended
    pids = [[rank["pid"] for rank in json.loads(out)["parallel"]["ranks"]] for _, out, _ in ended]
    assert pids[0] == pids[1]


@pytest.mark.mpi
def test_nodes_may_share_a_machine(tmp_path):
    job = start(
        2, *job_of("", "", "nowhere", tmp_path / "run.npz"), "--patience", 5,
        options=("-genv", "MPIR_CVAR_NOLOCAL", "1"),
    )  # fmt: skip
    status, out, err = finished(job)
    assert status == 0, err
    assert json.loads(out)["parallel"]["window"] == "remote"


SPLIT_THAT_BREAKS = """
import sys
from mpi4py import MPI
from sparsecore.__main__ import main
from sparsecore.extreme import split

if MPI.COMM_WORLD.rank == 1:
    def step(self, *args, **options):
        raise OSError(12, "no memory left")

    split.SplitMLP.step = step
sys.exit(main(["extreme", "--neurons", "4096", "--hidden-layers", "2", "--split", "--zeta", "0"]))
"""


@pytest.mark.mpi
def test_a_split_network_ends_when_a_rank_cannot_go_on(tmp_path):
    script = tmp_path / "breaks.py"
    script.write_text(SPLIT_THAT_BREAKS)
    status, _, err = finished(start(2, sys.executable, script), limit=60)
    assert status != 0
    assert "rank 1: [Errno 12] no memory left" in err
