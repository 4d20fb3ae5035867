"""The command line: ``python -m sparsecore train | bench | data | study | extreme``.

Each command parses its options, calls one function of the library and prints; nothing is computed
here. Diagnostics go to standard error, so that standard output can be piped; a mistake in the
options ends with status 2, anything else that goes wrong with 1 and one line that says what.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sparsecore import __version__, datasets

if TYPE_CHECKING:
    from sparsecore.mlp import SparseMLP


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    parser = _parser()
    options = parser.parse_args(argv)
    try:
        options.function(options)
    except (ValueError, FloatingPointError, OSError, RuntimeError) as error:
        print(f"sparsecore {options.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"sparsecore {options.command}: interrupted", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sparsecore", description="Truly sparse multilayer perceptrons."
    )
    parser.add_argument("--version", action="version", version=f"sparsecore {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_train(commands)
    _add_bench(commands)
    _add_data(commands)
    _add_study(commands)
    _add_extreme(commands)
    return parser


# --- train ---------------------------------------------------------------------------------------


def _add_train(commands: Any) -> None:
    sub = commands.add_parser(
        "train",
        help="train a network on a data set",
        description="Train a truly sparse network. Hyperparameters that are not given are those of "
        "the study for the data set, as the book's table of hyperparameters has them.",
    )
    sub.set_defaults(function=_train)
    sub.add_argument(
        "--dataset", metavar="NAME", help=f"one of {', '.join(datasets.names())}; required"
    )
    group = sub.add_argument_group(
        "hyperparameters (default: the study's setting for the data set)"
    )
    group.add_argument(
        "--hidden",
        type=_sizes,
        metavar="N,N,…",
        help="neurons of the hidden layers (fashion-mnist: 1000,1000,1000)",
    )
    group.add_argument(
        "--epsilon", type=float, help="Erdős–Rényi sparsity, > 0 (fashion-mnist: 20)"
    )
    group.add_argument(
        "--density", type=float, help="connection probability in (0, 1] instead of --epsilon"
    )
    group.add_argument("--activation", help="all-relu, relu or leaky-relu (all-relu)")
    group.add_argument(
        "--alpha", type=float, help="negative slope of All-ReLU and LeakyReLU (fashion-mnist: 0.6)"
    )
    group.add_argument("--init", help="he_uniform, xavier or normal (fashion-mnist: he_uniform)")
    group.add_argument("--learning-rate", type=float, metavar="ETA", help="> 0 (0.01)")
    group.add_argument("--momentum", type=float, metavar="MU", help="in [0, 1) (0.9)")
    group.add_argument(
        "--weight-decay",
        type=float,
        metavar="LAMBDA",
        help="decoupled, per step, in [0, 1) (0.0002)",
    )
    group.add_argument(
        "--dropout",
        type=float,
        metavar="RATE",
        help="share of hidden activations dropped, in [0, 1) (0.3)",
    )
    group.add_argument(
        "--zeta",
        type=float,
        help="fraction of connections replaced after each epoch, in [0, 1) (0.3)",
    )
    group.add_argument(
        "--batch-size", type=int, metavar="N", help="samples a step (fashion-mnist: 128)"
    )
    group.add_argument(
        "--epochs", type=int, metavar="N", help="passes over the training data (500)"
    )
    group.add_argument(
        "--prune-from",
        type=int,
        metavar="EPOCH",
        help="prune by neuron importance from this epoch on (off)",
    )
    group.add_argument(
        "--prune-every", type=int, metavar="EPOCHS", help="epochs between prunings (10)"
    )
    group.add_argument(
        "--prune-percentile",
        type=float,
        metavar="P",
        help="importance percentile in [0, 100] that is pruned (20)",
    )
    group.add_argument(
        "--augment",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="shift, rotate and flip images (cifar10: on)",
    )
    sub.add_argument(
        "--limit", type=int, metavar="N", help="train on N rows, a stratified choice (all)"
    )
    sub.add_argument(
        "--seed", type=int, default=0, help="determines the result bit for bit (%(default)s)"
    )
    sub.add_argument(
        "--threads",
        type=int,
        default=1,
        help="threads; the result does not depend on them (%(default)s)",
    )
    parallel = sub.add_argument_group(
        "parallel training, one worker a rank (mpiexec -n 5 python -m sparsecore train …)"
    )
    parallel.add_argument(
        "--algorithm",
        choices=("sequential", "wasap", "wassp"),
        default="sequential",
        help="wasap: asynchronous, wassp: in lockstep (%(default)s)",
    )
    parallel.add_argument(
        "--phase1",
        type=float,
        default=0.7,
        metavar="SHARE",
        help="share of the epochs in which workers exchange gradients, in [0, 1] (%(default)s)",
    )
    parallel.add_argument(
        "--warmup",
        type=int,
        default=5,
        metavar="EPOCHS",
        help="wassp: epochs in which the learning rate rises to its K-fold (%(default)s)",
    )
    parallel.add_argument(
        "--window",
        choices=("auto", "shared", "remote"),
        default="auto",
        help="the server: in shared memory, or behind Get and Put (auto: shared on one node)",
    )
    parallel.add_argument(
        "--patience",
        type=float,
        default=5.0,
        metavar="SECONDS",
        help="silence after which a rank counts as lost (%(default)s)",
    )
    parallel.add_argument(
        "--replay",
        metavar="RESULT",
        help="repeat the asynchronous run of that JSON result in its recorded order, in one "
        "process; data set and hyperparameters are the result's",
    )
    sub.add_argument("--out", metavar="FILE", help="save the trained model there (.npz)")
    sub.add_argument(
        "--checkpoint",
        metavar="FILE",
        help="save the state of the run there after each epoch (.npz)",
    )
    sub.add_argument("--resume", action="store_true", help="go on from --checkpoint if it is there")
    sub.add_argument(
        "--json", action="store_true", help="print the result as one JSON object, the last line"
    )


def _train(options: argparse.Namespace) -> None:
    from sparsecore import experiment
    from sparsecore.paper import settings

    _check_common(options)
    if options.replay is not None:
        _replay(options)
        return
    if options.dataset is None:
        raise ValueError(f"--dataset: expected one of {', '.join(datasets.names())}, got none")
    base = settings.setting(options.dataset).config
    given = {
        name: value
        for name in base.to_dict()
        if (value := getattr(options, name, None)) is not None
    }
    config = base.with_values(**given)
    if options.resume and options.checkpoint is None:
        raise ValueError("--resume: expected --checkpoint FILE to go on from, got none")
    data = _loaded(options.dataset, options.limit, options.seed)
    if options.algorithm == "sequential":
        model, result = experiment.run(
            data,
            config,
            seed=options.seed,
            threads=options.threads,
            progress=True,
            checkpoint_path=options.checkpoint,
            resume=options.resume,
        )
        _report(model, result, options)
        return
    from sparsecore.wasap.job import job

    with job(options) as this_job:
        trained, found = this_job.train(data, config)
        if trained is not None and found is not None:
            _report(trained, found, options)


def _report(model: SparseMLP, result: dict[str, Any], options: argparse.Namespace) -> None:
    """Save and print what came of a training run."""
    from sparsecore import checkpoint

    if options.out is not None:
        checkpoint.save(model, options.out)
    if options.json:
        print(json.dumps(result), flush=True)
    else:
        print(model)
        print(
            f"test accuracy {100 * result['test_accuracy']:.2f} % "
            f"(best {100 * result['best_test_accuracy']:.2f} %), "
            f"{result['seconds']['train']:.1f} s of training, "
            f"{result['samples_per_second']:,.0f} samples/s",
            flush=True,
        )


def _loaded(name: str, limit: int | None, seed: int) -> datasets.Dataset:
    data = datasets.load(name)
    return data if limit is None else data.limited(limit, random_state=seed)


def _replay(options: argparse.Namespace) -> None:
    from sparsecore.wasap import command

    result = command.read_result(options.replay)
    config = result["config"]
    data = _loaded(config["dataset"], config["n_train"], result["seed"])
    report = command.replay(data, result, options.threads)
    if options.json:
        print(json.dumps(report))
    if not report["identical"]:
        raise RuntimeError(
            f"replay: weights have SHA-256 {report['weights_sha256']}, the result's are "
            f"{report['recorded_sha256']}: another version of the package or another kind of CPU"
        )
    if not options.json:
        print(
            f"replayed {report['updates']:,} updates: weights identical to the last bit "
            f"(SHA-256 {report['weights_sha256']})"
        )


# --- bench ---------------------------------------------------------------------------------------


def _add_bench(commands: Any) -> None:
    sub = commands.add_parser("bench", help="time full training steps on random data")
    sub.set_defaults(function=_bench)
    sub.add_argument(
        "--dims",
        type=_sizes,
        default=(784, 1000, 1000, 1000, 10),
        metavar="N,N,…",
        help="neurons per layer (784,1000,1000,1000,10)",
    )
    how = sub.add_mutually_exclusive_group()
    how.add_argument("--epsilon", type=float, help="Erdős–Rényi sparsity, > 0 (20)")
    how.add_argument("--density", type=float, help="connection probability in (0, 1] instead")
    sub.add_argument(
        "--batch", type=int, default=128, metavar="N", help="samples a step (%(default)s)"
    )
    sub.add_argument("--threads", type=int, default=1, help="threads (%(default)s)")
    sub.add_argument("--steps", type=int, metavar="N", help="steps that are timed (200)")
    sub.add_argument("--seed", type=int, default=0, help="of data and network (%(default)s)")
    sub.add_argument(
        "--peers",
        action="store_true",
        help="time all peers that are installed as well (pip install 'sparsecore[peers]')",
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
    from sparsecore.bench import bench

    _check_common(options)
    if options.parallel is not None:
        _bench_parallel(options)
        return
    if options.peers:
        _bench_peers(options)
        return
    if options.rounds is not None:
        raise ValueError("--rounds: expected --peers with it, got none; see --steps")
    result = bench(
        options.dims,
        epsilon=options.epsilon,
        density=options.density,
        batch_size=options.batch,
        threads=options.threads,
        steps=200 if options.steps is None else options.steps,
        seed=options.seed,
    )
    if options.json:
        print(json.dumps(result))
        return
    ms = result["ms_per_step"]
    print(f"{result['nnz']:,} connections, batch {options.batch}, {options.threads} thread(s)")
    print(f"training step  {ms['median']:.3f} ms (min {ms['min']:.3f}, p90 {ms['p90']:.3f})")
    print(f"rate           {result['gflops']:.1f} GFLOP/s")
    print(f"evolution      {result['evolution_ms']:.2f} ms")
    print(f"prediction     {result['predict_ms']:.3f} ms a batch")
    print(f"peak memory    {result['peak_rss_mb']:.0f} MiB")


def _bench_parallel(options: argparse.Namespace) -> None:
    from sparsecore import experiment
    from sparsecore.paper import settings
    from sparsecore.wasap import bench

    data = datasets.load(options.parallel)
    config = settings.setting(options.parallel).config.with_values(epochs=10)
    times = bench.locks()
    result = bench.against_sequential(
        data,
        config,
        range(options.seed, options.seed + 3),
        lambda seed: experiment.run(data, config, seed=seed)[1],
    )
    if result is None or times is None:  # not the rank that has them
        return
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
    from sparsecore.paper import contest
    from sparsecore.paper.peers import Problem

    if options.steps is not None:
        raise ValueError("--steps: with --peers turns are timed instead; see --rounds")
    if options.batch < 1:
        raise ValueError(f"--batch: expected an integer of at least 1, got {options.batch}")
    problem = Problem(
        options.dims,
        epsilon=options.epsilon,
        density=options.density,
        batch_size=options.batch,
        threads=options.threads,
        seed=options.seed,
    )
    result = contest.compare(
        problem,
        rounds=5 if options.rounds is None else options.rounds,
        progress=lambda line: print(line, file=sys.stderr, flush=True),
    )
    print(json.dumps(result) if options.json else contest.report(result))


# --- data ----------------------------------------------------------------------------------------


def _add_data(commands: Any) -> None:
    sub = commands.add_parser("data", help="list, fetch and verify the data sets")
    verbs = sub.add_subparsers(dest="verb", required=True, metavar="list | fetch | verify")
    verbs.add_parser("list", help="what there is, and whether this machine has it").set_defaults(
        function=_list_data
    )
    fetch = verbs.add_parser("fetch", help="bring a data set into the cache")
    fetch.add_argument("name", metavar="NAME")
    fetch.set_defaults(function=_fetch_data)
    verify = verbs.add_parser("verify", help="check the SHA-256 of the contents")
    verify.add_argument("name", metavar="NAME", nargs="?", help="all that are there if left out")
    verify.set_defaults(function=_verify_data)


def _list_data(options: argparse.Namespace) -> None:
    for name in datasets.names():
        facts = datasets.describe(name)
        here = "here" if datasets.available(name) else "to be fetched"
        print(
            f"{name:18} {facts['domain']:10} {facts['n_features']:>6} features "
            f"{facts['n_classes']:>3} classes {facts['n_train']:>7}/{facts['n_test']:<6} {here}"
        )


def _fetch_data(options: argparse.Namespace) -> None:
    print(f"{options.name}: {datasets.fetch(options.name)}")


def _verify_data(options: argparse.Namespace) -> None:
    names = (
        [options.name] if options.name else [n for n in datasets.names() if datasets.available(n)]
    )
    for name in names:
        for what, digest in datasets.verify(name).items():
            print(f"{name}: {what}: sha256 {digest}")


# --- study ---------------------------------------------------------------------------------------


def _add_study(commands: Any) -> None:
    sub = commands.add_parser("study", help="list and run the studies behind the book's figures")
    verbs = sub.add_subparsers(dest="verb", required=True, metavar="list | run | status")
    verbs.add_parser("list", help="the studies and what they show").set_defaults(
        function=_list_studies
    )
    run = verbs.add_parser("run", help="run what a study lacks; what is there and valid is kept")
    run.add_argument("key", metavar="KEY", help="as `study list` names it")
    run.add_argument("--seeds", type=_sizes, metavar="N,N,…", help="(those of the profile)")
    for name in ("datasets", "methods"):
        run.add_argument(f"--{name}", type=_names, metavar="NAME,…", help="only these (all)")
    run.set_defaults(function=_run_study)
    status = verbs.add_parser("status", help="which results are there, missing, stale or damaged")
    status.set_defaults(function=_study_status)
    for verb in (run, status):
        verb.add_argument("--profile", help="quick or paper ($SPARSECORE_PROFILE, or else quick)")


def _list_studies(options: argparse.Namespace) -> None:
    from sparsecore.paper import conditions

    for study in conditions.STUDIES.values():
        print(f"{study.key:16} {study.content}")


def _run_study(options: argparse.Namespace) -> None:
    from sparsecore.paper import conditions, studies

    measured_by = conditions.find(options.key).home.measured_by
    if measured_by:
        for name in ("seeds", "datasets", "methods"):
            if getattr(options, name) is not None:
                raise ValueError(f"--{name}: {options.key} is measured whole; expected none")
        print(importlib.import_module(measured_by).load(options.profile))
        return
    found = studies.load(
        options.key,
        options.profile,
        options.seeds,
        of_datasets=options.datasets,
        methods=options.methods,
    )
    if not found.study.datasets:
        print(f"{options.key} needs no run")
    for dataset in found.study.datasets:
        for method in found.study.methods:
            runs = found.of(dataset, method)
            scores = ", ".join(f"{100 * run['test_accuracy']:.2f}" for run in runs)
            absent = "not available on this machine"
            print(f"{dataset:18} {method:20} {f'test accuracy {scores} %' if runs else absent}")


def _study_status(options: argparse.Namespace) -> None:
    from sparsecore.paper import conditions, studies

    profile = conditions.current_profile(options.profile)
    for study in conditions.STUDIES.values():
        if study.home.measured_by:
            states = importlib.import_module(study.home.measured_by).FILES.look(profile)
        else:
            states = {c.name: studies.look(c)[1] for c in study.conditions(profile)}
        there = sum(state == "present" for state in states.values())
        print(f"{study.key:16} {there}/{len(states)} results of profile {profile}")
        for name, state in states.items():
            if state != "present":
                print(f"  {name}: {state}")


# --- extreme -------------------------------------------------------------------------------------


def _add_extreme(commands: Any) -> None:
    sub = commands.add_parser(
        "extreme",
        help="train a network of up to hundreds of millions of neurons",
        description="Train a truly sparse network on artificial data of 65,536 features and two "
        "classes, drawn batch by batch. The memory that it takes is planned and printed first. "
        "On two cores a step takes about 5 ns a connection.",
    )
    sub.set_defaults(function=_extreme)
    sub.add_argument(
        "--neurons", type=_whole, required=True, metavar="N", help="hidden neurons, such as 2e8"
    )
    sub.add_argument(
        "--hidden-layers", type=_whole, metavar="N", help="that share them equally (10)"
    )
    sub.add_argument(
        "--batch", dest="batch_size", type=_whole, metavar="N", help="samples a step, 1 to 64 (4)"
    )
    sub.add_argument("--steps", type=_whole, metavar="N", help="(50)")
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
        "--evolve-every", type=_whole, metavar="STEPS", help="steps between evolutions (25)"
    )
    sub.add_argument("--separation", type=float, help="of the classes, in standard deviations (1)")
    sub.add_argument(
        "--held-out", type=_whole, metavar="N", help="samples to test with, 0 for none (100)"
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
        help="under mpiexec: split every layer over the ranks, one thread each; needs --zeta 0",
    )
    sub.add_argument(
        "--seed", type=int, default=0, help="determines the result bit for bit (%(default)s)"
    )
    sub.add_argument(
        "--threads", type=int, help="threads; the result does not depend on them (all CPUs)"
    )
    sub.add_argument("--checkpoint", metavar="FILE", help="save the state of the run there (.npz)")
    sub.add_argument(
        "--checkpoint-every", type=_whole, default=25, metavar="STEPS", help="(%(default)s)"
    )
    sub.add_argument("--resume", action="store_true", help="go on from --checkpoint if it is there")
    sub.add_argument(
        "--json", action="store_true", help="print the result as one JSON object, the last line"
    )


def _extreme(options: argparse.Namespace) -> None:
    from sparsecore.extreme import budget, run
    from sparsecore.team import cpu_count

    if options.threads is None:
        options.threads = cpu_count()
    _check_common(options)
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
        _split(options, config)
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


def _split(options: argparse.Namespace, config: Any) -> None:
    from sparsecore.wasap import mpi, split

    if options.checkpoint is not None:
        raise ValueError("--split: expected no --checkpoint, a split network is not saved yet")
    result = split.run(mpi.world(), config, seed=options.seed, threads=1)
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


# --- shared --------------------------------------------------------------------------------------


def _sizes(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected integers separated by commas, such as 1000,1000, got {text!r}"
        ) from None


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _whole(text: str) -> int:
    try:
        value = float(text)
        if value == int(value):
            return int(value)
    except (ValueError, OverflowError):
        pass
    raise argparse.ArgumentTypeError(f"expected a whole number, such as 50 or 2e8, got {text!r}")


def _check_common(options: argparse.Namespace) -> None:
    from sparsecore.team import cpu_count  # not above: Numba takes half a second

    if options.threads < 1:
        raise ValueError(f"--threads: expected an integer of at least 1, got {options.threads}")
    if options.seed < 0:
        raise ValueError(f"--seed: expected an integer of at least 0, got {options.seed}")
    if options.threads > cpu_count():
        print(
            f"sparsecore: {options.threads} threads on {cpu_count()} CPUs will wait for each other",
            file=sys.stderr,
        )


if __name__ == "__main__":
    sys.exit(main())
