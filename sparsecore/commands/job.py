"""An MPI job of the command line: its ranks, its progress, and its end."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sparsecore.commands.options import fail, say, warn_of_twins
from sparsecore.config import TrainConfig
from sparsecore.datasets import Dataset
from sparsecore.progress import OutputClosedError, epoch_bar
from sparsecore.wasap import witness
from sparsecore.wasap.mpi import MPI
from sparsecore.wasap.phases import Outcome, run_on
from sparsecore.wasap.plan import Plan
from sparsecore.wasap.ranks import Ranks
from sparsecore.wasap.watch import ParallelError


@contextmanager
def job(shared: bool | None, patience: float, checkpoint: str | None) -> Iterator[Ranks]:
    """Take part in an MPI job; a rank that cannot continue prints why, and how to resume."""
    ranks = Ranks(shared=shared, patience=patience)
    here = {rank: pid for rank, (host, pid) in enumerate(ranks.facts) if host == ranks.host}
    first = min(here)
    own = witness.start(here, checkpoint, patience) if ranks.rank == first else None
    address = ranks.gathered(own)[first]

    def last_words() -> str:
        witness.tell(address, ranks.rank)
        return witness.resume_hint(checkpoint)

    ranks.watch.last_words = last_words
    status = 0
    try:
        try:
            yield ranks
        except OutputClosedError as error:
            status = 128 + signal.SIGPIPE
            ranks.stop(error)
        except Exception as error:
            status, hint = 1, last_words()
            # The cause of another error may be the checkpoint itself: no hint to resume from it.
            fail(ranks.rank, error, hint if type(error) is ParallelError else "")
            ranks.stop(error)
        together = ranks.arrive()
    except BaseException as error:  # also while it reports or waits for the others
        witness.tell(address, ranks.rank)
        ranks.stop(error)
        raise
    witness.tell(address, ranks.rank)
    if not together:  # others will never finalise MPI: exit without it, mpiexec ends the job
        if not status:
            status = int(0 in ranks.lost)  # rank 0 has the result
            lost = "; ".join(f"rank {rank} {why}" for rank, why in ranks.lost.items())
            if told := ranks.ended() or (lost and f"at the end {lost}"):
                say(told + last_words() * status)
            witness.tell(address, "all")
        os._exit(status)
    ranks.close()
    MPI.Finalize()
    if status:
        raise SystemExit(status)


def train(ranks: Ranks, data: Dataset, config: TrainConfig, plan: Plan, **options: Any) -> Outcome:
    """Train as `wasap.run` does, with a progress bar."""
    if ranks.rank == 0:
        _introduce(ranks, plan.algorithm, options["threads"])
    title = f"{data.name}, {plan.algorithm}"
    with epoch_bar(title, config.epochs, hidden=ranks.rank > 0) as show:
        model, result = run_on(ranks, data, config, plan, on_progress=show, **options)
    if result is not None:
        for lost in result["parallel"]["failed_workers"]:
            who, why = f"rank {lost['rank']}", lost["cause"]
            say(f"{who} was lost during the run: {why}; the others finished")
    return model, result


def _introduce(ranks: Ranks, algorithm: str, threads: int) -> None:
    """Print the ranks, and warn of too few workers or CPUs."""
    who = [f"rank {rank} = process {pid} on {host}" for rank, (host, pid) in enumerate(ranks.facts)]
    say(f"{ranks.size} worker(s): {', '.join(who)}")
    if ranks.size == 1:
        say(f"{algorithm} with one worker; for more: mpiexec -n 5 python -m sparsecore train …")
        remedy = "use this MPI's own mpiexec, or another of `srun --mpi=list`"
        warn_of_twins(f"this MPI and its launcher do not fit: {remedy}")
    here = sum(host == ranks.host for host, _ in ranks.facts)
    if here * threads > ranks.cpus:
        cpus = f"{ranks.cpus} CPUs on {ranks.host}"
        say(f"{here} workers with {threads} thread(s) each share {cpus}")
