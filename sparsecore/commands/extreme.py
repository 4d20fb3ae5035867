"""``extreme``: networks of up to hundreds of millions of neurons."""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any

from sparsecore.commands.options import check_common, whole

_TOLD_SECONDS = 0.5  # for mpiexec to pass on what a rank said: an abort can overtake it


def add(commands: Any) -> None:
    """Add the command to the command line."""
    sub = commands.add_parser(
        "extreme",
        help="train a network of up to hundreds of millions of neurons",
        description="Train a truly sparse network on artificial data of 65,536 features and two "
        "classes, drawn batch by batch. The memory that it takes is planned and printed first. "
        "On two cores a step takes 7 to 9 ns a connection.",
    )
    sub.set_defaults(function=_extreme)
    sub.add_argument(
        "--neurons", type=whole, required=True, metavar="N", help="hidden neurons, such as 2e8"
    )
    sub.add_argument(
        "--hidden-layers", type=whole, metavar="N", help="that share them equally (10)"
    )
    sub.add_argument(
        "--batch", dest="batch_size", type=whole, metavar="N", help="samples a step, 1 to 64 (4)"
    )
    sub.add_argument("--steps", type=whole, metavar="N", help="(50)")
    sub.add_argument(
        "--epsilon",
        type=float,
        help="Erdős–Rényi sparsity, > 0; between layers of one width a neuron has 2 ε inputs (2.5)",
    )
    sub.add_argument("--alpha", type=float, help="negative slope of All-ReLU (0.05)")
    sub.add_argument(
        "--learning-rate",
        type=float,
        metavar="ETA",
        help=">= 0, divided by each layer's mean fan-in (0.2)",
    )
    sub.add_argument("--momentum", type=float, metavar="MU", help="in [0, 1) (0.9)")
    sub.add_argument(
        "--weight-decay", type=float, metavar="LAMBDA", help="per step, in [0, 1) (0.0002)"
    )
    sub.add_argument(
        "--zeta", type=float, help="fraction of connections that an evolution replaces (0.1)"
    )
    sub.add_argument(
        "--evolve-every", type=whole, metavar="STEPS", help="steps between evolutions (25)"
    )
    sub.add_argument("--separation", type=float, help="of the classes, in standard deviations (1)")
    sub.add_argument(
        "--held-out", type=whole, metavar="N", help="samples to test with, 0 for none (100)"
    )
    sub.add_argument(
        "--memory-limit",
        metavar="SIZE",
        help="such as 22GiB: a plan above it is refused (what is free)",
    )
    sub.add_argument("--plan", action="store_true", help="print the memory plan and stop")
    sub.add_argument(
        "--split",
        action="store_true",
        help="under mpiexec: split every layer over the ranks, one thread each; needs --zeta 0; "
        "--memory-limit is a rank's",
    )
    sub.add_argument(
        "--seed", type=int, default=0, help="determines the result bit for bit (%(default)s)"
    )
    sub.add_argument(
        "--threads", type=int, help="threads; the result does not depend on them (all CPUs)"
    )
    sub.add_argument("--checkpoint", metavar="FILE", help="save the state of the run there (.npz)")
    sub.add_argument(
        "--checkpoint-every", type=whole, default=25, metavar="STEPS", help="(%(default)s)"
    )
    sub.add_argument("--resume", action="store_true", help="go on from --checkpoint if it is there")
    sub.add_argument(
        "--json", action="store_true", help="print the result as one JSON object, the last line"
    )


def _extreme(options: argparse.Namespace) -> None:
    from sparsecore.compiled.team import cpu_count
    from sparsecore.extreme import budget, run

    if options.split and options.threads not in (None, 1):
        raise ValueError(f"--threads: with --split each rank has one, got {options.threads}")
    if options.threads is None:
        options.threads = cpu_count()
    check_common(options)
    if options.resume and options.checkpoint is None:
        raise ValueError("--resume: expected --checkpoint FILE to go on from, got none")
    if options.checkpoint_every < 1:
        raise ValueError(f"--checkpoint-every: expected at least 1, got {options.checkpoint_every}")
    names = run.ExtremeConfig.__dataclass_fields__
    given = {n: v for n in names if (v := getattr(options, n, None)) is not None}
    config = run.ExtremeConfig(**given)
    limit = None
    if options.memory_limit is not None:
        limit = budget.parse_bytes(options.memory_limit)
    if options.split:
        _split(options, config, limit)
        return
    if options.plan:
        plan = budget.plan(config.sizes, config.epsilon, config.batch_size, options.threads)
        print(plan.table())
        plan.check(limit)
        return
    result = run.run(
        config,
        seed=options.seed,
        threads=options.threads,
        memory_limit=limit,
        checkpoint_path=options.checkpoint,
        checkpoint_every=options.checkpoint_every,
        resume=options.resume,
        progress=True,
        announce=lambda plan: print(plan.table(), file=sys.stderr, flush=True),
    )
    if options.json:
        print(json.dumps(result), flush=True)
    else:
        print(run.report(result), flush=True)


def _split(options: argparse.Namespace, config: Any, limit: int | None) -> None:
    from sparsecore.extreme import budget, split
    from sparsecore.wasap import mpi

    if options.checkpoint is not None:
        raise ValueError("--split: expected no --checkpoint, a split network is not saved yet")
    world = mpi.world()
    plan = split.loads(config.sizes, config.epsilon, config.batch_size, world.size)
    needed = max(load.n_bytes for load in plan)
    if world.rank == 0:
        print(
            f"{config.neurons:,} hidden neurons on {world.size} ranks: at most "
            f"{needed / budget.GIB:.2f} GiB each, beside the program",
            file=sys.stderr,
        )
    if limit is not None and needed > limit:
        raise ValueError(
            f"--memory-limit: expected at least {needed / budget.GIB:.2f} GiB a rank, got "
            f"{limit / budget.GIB:.2f} GiB; start more ranks"
        )
    if options.plan:
        return
    try:
        result = split.run(world, config, seed=options.seed, threads=1)
    except ValueError:  # all ranks have it
        raise
    except Exception as error:
        if world.size > 1:  # the others wait for this rank inside MPI; nothing else wakes them
            print(f"sparsecore extreme: rank {world.rank}: {error}", file=sys.stderr, flush=True)
            time.sleep(_TOLD_SECONDS)
            world.Abort(1)
        raise
    if result is None:  # not the rank that has it
        return
    if options.json:
        print(json.dumps(result), flush=True)
        return
    losses, peak = result["losses"], max(result["peak_bytes"]) / 2**30
    print(
        f"{result['neurons']:,} hidden neurons on {result['ranks']} ranks, at most {peak:.2f} GiB "
        f"each; loss {losses[0]:.3f} at first, {losses[-1]:.3f} at last; a step exchanges "
        f"{result['message_bytes'] / 2**20:.0f} MiB in {result['message_seconds']:.2f} s"
    )
