"""What the command line does with several ranks: progress, warnings, and how a job ends."""

from __future__ import annotations

import json
import os
import sys
from argparse import Namespace
from typing import Any

from tqdm.auto import tqdm

from sparsecore import wasap
from sparsecore.datasets import Dataset
from sparsecore.mlp import SparseMLP
from sparsecore.team import cpu_count
from sparsecore.train import TrainConfig
from sparsecore.wasap.witness import witness


def train(
    data: Dataset, config: TrainConfig, options: Namespace
) -> tuple[SparseMLP, dict[str, Any]] | None:
    """Run with the command line's options; None on ranks other than 0.

    A rank that cannot go on prints why; if others can then never arrive at MPI's end, it ends
    the job. After a run that went on without a lost rank, `end` must be called.
    """
    from sparsecore.wasap import mpi

    ranks = mpi.Ranks()
    facts = ranks.facts()
    if ranks.rank == 0:
        _introduce(facts, options)
    bar = tqdm(
        total=config.epochs,
        desc=f"{data.name}, {options.algorithm}",
        unit="epoch",
        bar_format="{l_bar}{bar}| {n:.1f}/{total} [{elapsed}{postfix}]",
        disable=ranks.rank > 0,
        file=sys.stderr,
        mininterval=0.2 if sys.stderr.isatty() else 10,  # a log is not flooded
    )

    def show(state: dict[str, Any]) -> None:
        accuracy = state["test_accuracy"]
        bar.set_postfix_str(
            f"phase {state['phase']}, {state['updates']} updates, staleness "
            f"{state['staleness']:.1f}" + (f", test {100 * accuracy:.2f} %" if accuracy else ""),
            refresh=False,
        )
        bar.update(state["epoch"] - bar.n)

    here = {rank: pid for rank, (host, pid) in enumerate(facts) if host == ranks.host}
    resumable = options.checkpoint is not None
    hint = f"; --resume goes on from {options.checkpoint}" if resumable else ""
    try:
        with bar, witness(here if ranks.rank_on_node == 0 else {}, hint):
            model, result = wasap.run(
                data,
                config,
                wasap.Plan(options.algorithm, options.phase1, options.warmup),
                seed=options.seed,
                threads=options.threads,
                on_progress=show,
                checkpoint_path=options.checkpoint,
                resume=options.resume,
                patience=options.patience,
                shared={"auto": None, "shared": True, "remote": False}[options.window],
            )
            if result is not None:
                bar.update(config.epochs - bar.n)
    except Exception as error:
        print(f"sparsecore train: rank {ranks.rank}: {error}", file=sys.stderr, flush=True)
        if not ranks.barrier(limit=5.0):
            mpi.end_job(1)
        raise SystemExit(1) from None
    if result is None or model is None:
        return None
    for entry in result["parallel"]["failed_workers"]:
        print(
            f"sparsecore train: rank {entry['rank']} was lost on the way ({entry['cause']}); the "
            "others finished",
            file=sys.stderr,
        )
    return model, result


def end(result: dict[str, Any] | None) -> None:
    """End the job, if a rank is lost that MPI would wait for in vain."""
    from sparsecore.wasap import mpi

    if result is not None and result["parallel"]["lost"]:
        sys.stdout.flush()
        mpi.end_job(0)


def _introduce(facts: list[tuple[str, int]], options: Namespace) -> None:
    """Say who takes part, and warn of what makes a run slow."""
    who = ", ".join(
        f"rank {rank} = process {pid} on {host}" for rank, (host, pid) in enumerate(facts)
    )
    print(f"sparsecore train: {len(facts)} worker(s): {who}", file=sys.stderr)
    if len(facts) == 1:
        print(
            f"sparsecore train: {options.algorithm} with one worker; for more: "
            "mpiexec -n 5 python -m sparsecore train …",
            file=sys.stderr,
        )
    here = sum(host == facts[0][0] for host, _ in facts)
    if here * options.threads > cpu_count():
        print(
            f"sparsecore train: {here} workers with {options.threads} thread(s) each share "
            f"{cpu_count()} CPUs on {facts[0][0]}",
            file=sys.stderr,
        )
    sys.stderr.flush()


def read_result(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the JSON result of a run: the last line of what `--json` printed, or a whole file.

    Raises
    ------
    ValueError
        If it is not one.
    """
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


def replay(data: Dataset, result: dict[str, Any], threads: int) -> dict[str, Any]:
    """Replay a result with a progress bar; return the report."""
    with tqdm(
        desc="replay",
        unit="update",
        file=sys.stderr,
        mininterval=0.2 if sys.stderr.isatty() else 10,
    ) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        return wasap.replay(data, result, threads=threads, on_progress=show)[1]
