"""``bench``: full training steps, alone, beside the peers, or by the ranks of an MPI job."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from sparsecore import datasets
from sparsecore.commands.options import check_common, given, hyperparameter, sizes
from sparsecore.config import HYPERPARAMETERS

_DIMS = (784, 1000, 1000, 1000, 10)


def add(commands: Any) -> None:
    """Add the command to the command line."""
    sub = commands.add_parser("bench", help="time full training steps on random data")
    sub.set_defaults(function=_bench)
    sub.add_argument(
        "--dims", type=sizes, metavar="N,N,…", help="neurons per layer (784,1000,1000,1000,10)"
    )
    how = sub.add_mutually_exclusive_group()
    hyperparameter(how, HYPERPARAMETERS["epsilon"])
    hyperparameter(how, HYPERPARAMETERS["density"])
    sub.add_argument("--batch", type=int, metavar="N", help="samples per step (128)")
    sub.add_argument("--threads", type=int, help="threads (1)")
    sub.add_argument("--steps", type=int, metavar="N", help="steps that are timed (500)")
    sub.add_argument("--seed", type=int, default=0, help="of data and network (%(default)s)")
    sub.add_argument(
        "--peers",
        action="store_true",
        help="time all peers that are installed as well (pip install -e '.[peers]')",
    )
    sub.add_argument(
        "--rounds",
        type=int,
        metavar="N",
        help="with --peers: turns of each, half a second long (5)",
    )
    sub.add_argument(
        "--parallel",
        metavar="DATASET",
        help="under mpiexec: train it for ten epochs with all ranks (WASAP-SGD) and with one, in "
        "turns, three seeds; and time the server's lock",
    )
    sub.add_argument("--json", action="store_true", help="print one JSON object")


def _bench(options: argparse.Namespace) -> None:
    if options.parallel is not None:
        names = "dims", "epsilon", "density", "batch", "threads", "steps", "rounds"
        for name in given(options, names):
            raise ValueError(f"--{name}: not with --parallel, which trains the study's network")
        if options.peers:
            raise ValueError("--peers: not with --parallel")
    elif options.rounds is not None and not options.peers:
        raise ValueError("--rounds: expected --peers with it, got none; see --steps")
    for name, default in (("dims", _DIMS), ("batch", 128), ("threads", 1)):
        if getattr(options, name) is None:
            setattr(options, name, default)
    check_common(options)
    how = _bench_peers if options.peers else _bench_alone
    (how if options.parallel is None else _bench_parallel)(options)


def _bench_alone(options: argparse.Namespace) -> None:
    from sparsecore.bench import bench

    steps = 500 if options.steps is None else options.steps
    result = bench(options.dims, steps=steps, **_network(options))
    if options.json:
        print(json.dumps(result))
        return
    ms = result["ms_per_step"]
    print(f"{result['nnz']:,} connections, batch {options.batch}, {options.threads} thread(s)")
    print(f"training step  {ms['median']:.3f} ms (min {ms['min']:.3f}, p90 {ms['p90']:.3f})")
    print(f"rate           {result['gflops']:.1f} GFLOP/s")
    print(f"evolution      {result['evolution_ms']:.2f} ms")
    print(f"prediction     {result['predict_ms']:.3f} ms a batch")
    if options.threads > 1:
        print(f"threads meet   in {result['meeting_us']:.2f} us")
    print(f"peak memory    {result['peak_rss_mb']:.0f} MiB")


def _network(options: argparse.Namespace) -> dict[str, Any]:
    """Return what is trained, as the library's functions name it."""
    same = {name: getattr(options, name) for name in ("epsilon", "density", "threads", "seed")}
    return {**same, "batch_size": options.batch}


def _bench_parallel(options: argparse.Namespace) -> None:
    from sparsecore import experiment, settings, wasap
    from sparsecore.paper.scaling import rounds
    from sparsecore.wasap import bench
    from sparsecore.wasap.ranks import Ranks

    data = datasets.load(options.parallel)
    config = settings.setting(options.parallel).config.with_values(epochs=10)
    seeds = range(options.seed, options.seed + 3)
    times, ranks = bench.locks(), Ranks()

    def alone(seed: int) -> dict[str, Any]:
        return experiment.run(data, config, seed=seed)[1]

    def together(seed: int) -> Any:
        ranks.barrier()  # while rank 0 trains alone, the others sleep here
        return wasap.run(data, config, seed=seed)[1]

    if times is None:  # all ranks but the first
        for seed in seeds:
            together(seed)
        ranks.close()
        return
    found = rounds.in_turns(seeds, alone, {("wasap", ranks.size): together})
    ranks.close()
    result = rounds.against_sequential(found, "wasap", ranks.size)
    if options.json:
        print(json.dumps({**result, "locks": times}))
        return
    print("seed  sequential  parallel  ratio   accuracy  and parallel  gradient  lock  update")
    for entry in result["rounds"]:
        shares = "  ".join(f"{100 * share:3.0f} %" for share in entry["shares"].values())
        print(
            f"{entry['seed']:4}  {entry['sequential']:8,.0f}/s {entry['parallel']:8,.0f}/s  "
            f"{entry['ratio']:.2f}   {100 * entry['sequential_accuracy']:6.2f} %      "
            f"{100 * entry['parallel_accuracy']:6.2f} %     {shares}"
        )
    ratio = result["ratio"]
    print(
        f"{result['workers']} workers: {ratio['median']:.2f} times the samples per second of one "
        f"thread ({ratio['min']:.2f} to {ratio['max']:.2f}), test accuracy "
        f"{result['accuracy_difference']:+.2f} points"
    )
    for name, found in times.items():
        print(
            f"{name}: {found['updates_per_second']:,.0f} updates/s, waiting "
            f"{found['wait_us']['median']:.0f} us (90 %: {found['wait_us']['p90']:.0f})"
        )


def _bench_peers(options: argparse.Namespace) -> None:
    from sparsecore.paper.speed import contest
    from sparsecore.paper.speed.peers import Problem

    if options.steps is not None:
        raise ValueError("--steps: with --peers turns are timed instead; see --rounds")
    if options.batch < 1:
        raise ValueError(f"--batch: expected an integer of at least 1, got {options.batch}")
    result = contest.compare(
        Problem(options.dims, **_network(options)),
        rounds=5 if options.rounds is None else options.rounds,
        progress=lambda line: print(line, file=sys.stderr, flush=True),
    )
    print(json.dumps(result) if options.json else contest.report(result))
