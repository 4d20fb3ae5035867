"""An MPI job of the command line, from beginning to end: who takes part, progress, how it ends."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

from sparsecore.compiled.team import cpu_count
from sparsecore.config import TrainConfig
from sparsecore.datasets import Dataset
from sparsecore.mlp import SparseMLP
from sparsecore.progress import EpochBar
from sparsecore.wasap import mpi
from sparsecore.wasap.phases import run_on
from sparsecore.wasap.place import ParallelError
from sparsecore.wasap.plan import Plan
from sparsecore.wasap.processes import Witness, resume_hint
from sparsecore.wasap.ranks import Ranks


class Job:
    """An MPI job that trains; made by `job`.

    Parameters
    ----------
    ranks : Ranks
    options : argparse.Namespace
        Of the command line.
    """

    def __init__(self, ranks: Ranks, options: Namespace) -> None:
        self._ranks, self._options = ranks, options

    def train(
        self, data: Dataset, config: TrainConfig
    ) -> tuple[SparseMLP | None, dict[str, Any] | None]:
        """Train with a progress bar; return model and result on rank 0."""
        options = self._options
        title = f"{data.name}, {options.algorithm}"
        with closing(EpochBar(title, config.epochs, hidden=self._ranks.rank > 0)) as bar:
            model, result = run_on(
                self._ranks, data, config,
                Plan(options.algorithm, options.phase1, options.warmup),
                options.seed, options.threads, bar, options.checkpoint, options.resume,
            )  # fmt: skip
            if result is not None:
                bar.finish()
        for entry in result["parallel"]["failed_workers"] if result is not None else []:
            _say(f"rank {entry['rank']} was lost on the way: {entry['cause']}; the others finished")
        return model, result


@contextmanager
def job(options: Namespace) -> Iterator[Job]:
    """Take part in an MPI job as the command line's options say, from beginning to end.

    A rank that cannot go on prints why. If there are others that will never arrive at MPI's end,
    the process ends without it, and mpiexec ends the job.
    """
    ranks = Ranks(
        shared={"auto": None, "shared": True, "remote": False}[options.window],
        patience=options.patience,
    )
    witness = Witness({r: pid for r, (host, pid) in enumerate(ranks.facts) if host == ranks.host})
    if ranks.rank_on_node == 0:
        witness.start(options.checkpoint, options.patience)

    def last_words() -> str:
        witness.tell(ranks.rank)
        return resume_hint(options.checkpoint)

    ranks.watch.last_words = last_words
    status = 0
    try:
        if ranks.rank == 0:
            _introduce(ranks.facts, options)
        yield Job(ranks, options)
    except Exception as error:
        status = 1
        witness.tell(ranks.rank)
        hint = resume_hint(options.checkpoint) if isinstance(error, ParallelError) else ""
        _say(f"rank {ranks.rank}: {error}{hint}")
        ranks.stop(error)
    except BaseException:
        witness.tell(ranks.rank)
        raise
    sys.stdout.flush()
    together = ranks.arrive()
    witness.tell(ranks.rank)
    if together:
        ranks.close()
        mpi.finalize()
    elif not status:
        lost = ranks.all_lost()
        status = int(0 in lost)  # it has the result
        for rank, why in lost.items():
            _say(f"at the end rank {rank} {why}{last_words() if rank == 0 else ''}")
        witness.tell("all")
    if not together:
        os._exit(status)
    if status:
        raise SystemExit(status)


def _say(what: str) -> None:
    print(f"sparsecore train: {what}", file=sys.stderr, flush=True)


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
