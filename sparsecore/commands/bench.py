"""``bench``: full training steps, alone, beside the peers, or by the ranks of an MPI job."""

import argparse
import json
import sys
from typing import Any

from sparsecore import datasets
from sparsecore.commands.options import check_common, given, hyperparameter, refuse, sizes
from sparsecore.config import HYPERPARAMETERS, TrainConfig, integers

_OPTIONS = (
    ("--dims", sizes, "N,N,…", "neurons per layer (784,1000,1000,1000,10)"),
    ("--threads", int, "THREADS", "threads (1)"),
    ("--steps", int, "N", "steps to time (500)"),
    ("--rounds", int, "N", "with --peers: rounds, in which each has a turn of half a second (5)"),
    ("--parallel", str, "DATASET", "under mpiexec: time ten epochs with all ranks and with one"),
)


def add(commands: Any) -> None:
    """Add the command to the command line."""
    sub = commands.add_parser("bench", help="time full training steps on random data")
    sub.set_defaults(function=_bench)
    for name, kind, metavar, help_text in _OPTIONS:
        sub.add_argument(name, type=kind, metavar=metavar, help=help_text)
    hyperparameter(sub, HYPERPARAMETERS["batch_size"])
    how = sub.add_mutually_exclusive_group()
    hyperparameter(how, HYPERPARAMETERS["epsilon"])
    hyperparameter(how, HYPERPARAMETERS["density"])
    seed = "seed of data and network; with --parallel, the first of three seeds (%(default)s)"
    sub.add_argument("--seed", type=int, default=0, help=seed)
    peers = "time all installed peers, too (pip install -e '.[peers]')"
    sub.add_argument("--peers", action="store_true", help=peers)
    sub.add_argument("--json", action="store_true", help="print one JSON object")


def _bench(options: argparse.Namespace) -> None:
    from sparsecore.bench import bench

    names = "dims", "epsilon", "density", "batch_size", "threads", "steps", "rounds"
    asked = given(options, names)
    options.threads = asked.get("threads", 1)
    check_common(options)
    if options.parallel is not None:
        more = (*asked, *["peers"] * options.peers)
        refuse(more, "not with --parallel, which trains the study's network")
        _bench_parallel(options)
        return
    integers(1).check("--steps", asked.get("steps", 1))
    dims = asked.get("dims", (784, 1000, 1000, 1000, 10))
    config = TrainConfig(**given(options, ("epsilon", "density", "batch_size")))
    network = dims, config, options.threads, options.seed
    if options.peers:
        _bench_peers(options, network)
        return
    refuse(given(options, ("rounds",)), "expected --peers with it, got none; see --steps")
    result = bench(*network, **given(options, ("steps",)))
    if options.json:
        print(json.dumps(result))
        return
    ms, threads = result["ms_per_step"], options.threads
    print(f"{result['nnz']:,} connections, batch {config.batch_size}, {threads} thread(s)")
    print(f"training step  {ms['median']:.3f} ms (min {ms['min']:.3f}, p90 {ms['p90']:.3f})")
    print(f"rate           {result['gflops']:.1f} GFLOP/s")
    print(f"evolution      {result['evolution_ms']:.2f} ms")
    print(f"prediction     {result['predict_ms']:.3f} ms per batch")
    if threads > 1:
        print(f"barrier        {result['meeting_us']:.2f} us")
    print(f"peak memory    {result['peak_rss_mb']:.0f} MiB")


def _bench_parallel(options: argparse.Namespace) -> None:
    from sparsecore import experiment, settings, wasap
    from sparsecore.paper.scaling import rounds
    from sparsecore.wasap.ranks import Ranks

    data, ranks = datasets.load(options.parallel), Ranks()
    config = settings.setting(options.parallel).config.with_values(epochs=10)
    seeds = range(options.seed, options.seed + 3)

    def alone(seed: int) -> dict[str, Any]:
        return experiment.run(data, config, seed=seed)[1]

    def together(seed: int) -> Any:
        ranks.barrier()  # while rank 0 trains alone, the others sleep here
        return wasap.run(data, config, seed=seed)[1]

    if ranks.rank:
        for seed in seeds:
            together(seed)
        ranks.close()
        return
    found = rounds.in_turns(seeds, alone, {("wasap", ranks.size): together})
    ranks.close()
    result = rounds.against_sequential(found, "wasap", ranks.size)
    if options.json:
        print(json.dumps({**result, "surrogate": data.surrogate}))
        return
    print("seed  sequential   parallel  ratio  gradient  lock  update")
    for entry in result["rounds"]:
        shares = "   ".join(f"{100 * share:3.0f} %" for share in entry["shares"].values())
        print(
            f"{entry['seed']:4}  {entry['sequential']:8,.0f}/s {entry['parallel']:8,.0f}/s   "
            f"{entry['ratio']:.2f}     {shares}"
        )
    ratio = result["ratio"]
    print(
        f"{result['workers']} workers: {ratio['median']:.2f} times the samples per second of one "
        f"thread ({ratio['min']:.2f} to {ratio['max']:.2f}), test accuracy"
        f"{' on a surrogate' * data.surrogate} {result['accuracy_difference']:+.2f} points"
    )


def _bench_peers(options: argparse.Namespace, network: Any) -> None:
    from sparsecore.paper.speed import contest
    from sparsecore.paper.speed.peers import Problem

    refuse(given(options, ("steps",)), "not with --peers, which times turns instead; see --rounds")
    result = contest.compare(
        Problem(*network), **given(options, ("rounds",)),
        progress=lambda line: print(line, file=sys.stderr, flush=True),
    )  # fmt: skip
    print(json.dumps(result) if options.json else contest.report(result))
