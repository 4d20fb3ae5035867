"""Runs are killed, and jobs ended by force, many times: ``pytest -m endurance`` takes an hour.

With ``SPARSECORE_RECORD=1`` the counts are recorded for the book's page on reliability;
``SPARSECORE_ATTEMPTS`` is their number for each kind.
"""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from sparsecore import datasets, wasap
from sparsecore.cluster.engines import mpiexec, wait_until
from sparsecore.paper import reliability

pytestmark = [pytest.mark.endurance, pytest.mark.timeout(0)]
ATTEMPTS = int(os.environ.get("SPARSECORE_ATTEMPTS", 50))
COMMAND = [sys.executable, "-m", "sparsecore"]
DIGITS = "--dataset digits --limit 400 --hidden 40,30 --seed 3 --json".split()
TRAIN = [*COMMAND, "train", *DIGITS]
JOB = [mpiexec(), "-n", "2", *TRAIN, "--patience", "20"]
PRUNED = "--prune-from 3 --prune-every 5 --prune-percentile 3".split()
EXTREME = (
    "--neurons 6000 --hidden-layers 2 --steps 120 --evolve-every 7 --held-out 64 "
    "--checkpoint-every 2 --json"
).split()
RUNS = {
    "sequential runs": [*TRAIN, "--epochs", "400", *PRUNED],
    "extreme networks": [*COMMAND, "extreme", *EXTREME],
    "WASSP": [*JOB, "--algorithm", "wassp", "--epochs", "120"],
    "WASAP": [*JOB, "--algorithm", "wasap", "--epochs", "120"],
}


def start(command, **options):
    quiet = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    return subprocess.Popen(command, start_new_session=True, **quiet | options)


def result_of(process):
    """Wait for a run; return its result."""
    out, _ = process.communicate(timeout=900)
    assert process.returncode == 0
    return json.loads(out.splitlines()[-1])


def ranks(process):
    """Return the processes of a run that train."""
    whole = [process, *process.children(recursive=True)]
    words = [" ".join(each.cmdline()) for each in whole]
    return [p for p, w in zip(whole, words, strict=True) if w.startswith(sys.executable)]


def killed(command, path, rng):
    """Start a run and kill one of its processes, mostly after it has written; tell if it ran."""
    written = path.stat().st_mtime_ns if path.exists() else 0
    process = start(command)
    if rng.random() > 0.1:  # else within the start
        wait_until(
            lambda: (
                process.poll() is not None or (path.exists() and path.stat().st_mtime_ns > written)
            ),
            120,
        )
    time.sleep(0.8 * rng.random())
    victims = ranks(psutil.Process(process.pid)) if process.poll() is None else []
    if victims:
        rng.choice(victims).kill()
    process.communicate(timeout=600)  # of an asynchronous run a rank may go on
    return bool(victims)


@pytest.mark.parametrize("kind", RUNS)
def test_a_killed_run_resumes_as_if_nothing_had_been(kind, tmp_path):
    """Each run is killed three to six times, and then ends."""
    rng, command = random.Random(kind), RUNS[kind]
    whole = result_of(start([*command, "--checkpoint", str(tmp_path / "whole.npz")]))
    kills = survived = 0
    while kills < ATTEMPTS:
        path = tmp_path / f"{kills}" / "run.npz"
        path.parent.mkdir()
        resumed = [*command, "--checkpoint", str(path), "--resume"]
        more = sum(killed(resumed, path, rng) for _ in range(rng.randint(3, 6)))
        found = result_of(start(resumed))
        if kind == "WASAP":  # no two runs are alike, but its record says what it was
            data = datasets.load("digits").limited(400, random_state=3)
            same = wasap.replay(data, found)[1]["identical"]
        else:
            same = found["weights_sha256"] == whole["weights_sha256"]
        assert not list(path.parent.glob("*.tmp")), "what a dead writer left"
        shutil.rmtree(path.parent)
        kills, survived = kills + more, survived + more * same
        reliability.keep("kills", kind, kills, survived)
    assert survived == kills


def ours(tag):
    """Return the processes whose environment has the tag, without zombies."""
    found = []
    for process in psutil.process_iter():
        try:
            tagged = process.environ().get("SPARSECORE_TEST") == tag
            found += [process] if tagged and process.status() != psutil.STATUS_ZOMBIE else []
        except psutil.Error:
            pass
    return found


def segments(processes):
    """Return the names of the shared memory that processes have mapped."""
    found = set()
    for process in processes:
        try:
            maps = Path(f"/proc/{process.pid}/maps").read_text()
        except OSError:
            continue
        found |= set(re.findall(r"/dev/shm/(\S+)", maps))
    return found


def kill_server(process, whole):
    whole[0].kill()  # without a worker, the others would go on


def kill_all(process, whole):
    for each in whole:
        each.kill()


ENDS = {
    "that end": None,
    "whose server is killed": kill_server,
    "that are killed whole": kill_all,
    "whose mpiexec is killed": lambda process, whole: process.kill(),
    "that get SIGTERM": lambda process, whole: process.terminate(),
    "that get Ctrl-C": lambda process, whole: process.send_signal(signal.SIGINT),
}


@pytest.mark.parametrize("end", ENDS)
def test_jobs_in_a_row_leave_nothing(end, tmp_path):
    """Nobody can clean up after SIGKILL but the next job, so a job more comes last, and ends."""
    rng, path, attempts = random.Random(end), tmp_path / "run.npz", max(1, ATTEMPTS // 3)
    temporary, clean = tmp_path / "tmp", 0
    temporary.mkdir()
    before: set[str] = set()
    for number in range(attempts + 1):
        path.unlink(missing_ok=True)
        tag = f"{tmp_path}{number}"
        env = {**os.environ, "TMPDIR": str(temporary), "SPARSECORE_TEST": tag}
        act = ENDS[end] if number < attempts else None
        epochs = "3" if act is None else "100000"
        command = [*JOB, "--algorithm", ("wasap", "wassp")[number % 2], "--epochs", epochs]
        process = start([*command, "--checkpoint", str(path)], env=env, stdout=subprocess.DEVNULL)
        wait_until(lambda process=process: path.exists() or process.poll() is not None, 120)
        made = segments(ours(tag))
        time.sleep(0.5 * rng.random())
        if act is not None:
            act(process, ranks(psutil.Process(process.pid)))
        process.wait(60)
        wait_until(lambda tag=tag: not ours(tag), 15)
        left = [name for name in before if Path("/dev/shm", name).exists()] + ours(tag)
        clean, before = clean + (not left), made
        for each in ours(tag):
            each.kill()
        reliability.keep("jobs", f"jobs {end}", number + 1, clean)
    assert clean == attempts + 1
    assert not [*temporary.rglob("*"), *tmp_path.glob(".run*")]
