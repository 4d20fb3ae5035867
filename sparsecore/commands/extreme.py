"""``extreme``: networks of up to hundreds of millions of neurons."""

import argparse
import json
import sys
import time
from typing import Any

from sparsecore.commands import options as shared
from sparsecore.extreme.config import HYPERPARAMETERS, ExtremeConfig
from sparsecore.limits import cpu_count

_TOLD_SECONDS = 0.5  # for mpiexec to forward a rank's message: an abort can overtake it


def add(commands: Any) -> None:
    """Add the command to the command line."""
    sub = commands.add_parser(
        "extreme",
        help="train a network of up to hundreds of millions of neurons",
        description="Train a truly sparse network on artificial data of 65,536 features and two "
        "classes, drawn batch by batch. The memory plan is printed first. On two cores, a step "
        "of a large network takes 5 to 8 ns per connection.",
    )
    sub.set_defaults(function=_extreme)
    for about in HYPERPARAMETERS.values():
        shared.hyperparameter(sub, about)
    limit = "refuse a plan larger than SIZE, such as 22GiB (the free memory)"
    sub.add_argument("--memory-limit", metavar="SIZE", help=limit)
    sub.add_argument("--plan", action="store_true", help="print the memory plan and stop")
    sub.add_argument(
        "--split", action="store_true",
        help="under mpiexec: split every layer over the ranks, one thread each; needs --zeta 0; "
        "--memory-limit is per rank",
    )  # fmt: skip
    told = "save the run's state to FILE (.npz), on a disk with room for 36 bytes per connection"
    sub.add_argument("--checkpoint", metavar="FILE", help=told)
    sub.add_argument(
        "--checkpoint-every", type=shared.whole, metavar="STEPS",
        help="steps between two checkpoints (25)",
    )  # fmt: skip
    shared.result_options(sub, "all hyperparameters and --seed must be as before")


def _extreme(options: argparse.Namespace) -> None:
    from sparsecore.extreme import budget, run

    if options.split and options.threads not in (None, 1):
        raise ValueError(f"--threads: expected 1 per rank with --split, got {options.threads}")
    if options.threads is None:
        options.threads = 1 if options.split else cpu_count()
    shared.check_common(options)
    shared.check_targets(options)
    every = shared.given(options, ("checkpoint_every",))
    if options.checkpoint is None:
        shared.refuse(every, "expected --checkpoint FILE with it, got none")
    if options.plan and options.json:
        raise ValueError("--json: not with --plan, which prints a table")
    config = ExtremeConfig(**shared.given(options, HYPERPARAMETERS))
    limit = None if options.memory_limit is None else budget.parse_bytes(options.memory_limit)
    comm = None
    if options.split:
        from sparsecore.wasap.mpi import MPI

        comm = MPI.COMM_WORLD
    elif not options.plan:
        shared.warn_of_twins("--split trains one network on all ranks", "sparsecore extreme")
    first = comm is None or comm.rank == 0
    if options.plan:
        plan = run.plan(config, options.threads, comm)
        if first:
            print(plan.table(), file=sys.stderr if options.split else sys.stdout)
        plan.check(limit)
        return
    try:
        result = run.run(
            config, seed=options.seed, threads=options.threads, comm=comm, memory_limit=limit,
            checkpoint_path=options.checkpoint, **every, resume=options.resume, progress=first,
            announce=lambda plan: first and print(plan.table(), file=sys.stderr, flush=True),
        )  # fmt: skip
    except BaseException as error:
        # The others wait for this rank inside MPI; a ValueError is raised on all of them.
        if comm is not None and comm.size > 1 and not isinstance(error, ValueError):
            shared.fail(comm.rank, error, command="sparsecore extreme")  # an abort prints no cause
            time.sleep(_TOLD_SECONDS)
            comm.Abort(1)
        raise
    if first:
        print(json.dumps(result) if options.json else run.report(result), flush=True)
