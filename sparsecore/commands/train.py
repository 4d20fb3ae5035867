"""``train``: one network on one data set, by one process or by the ranks of an MPI job."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from sparsecore import datasets
from sparsecore.commands.options import check_common, check_target, ranks_here, sizes

if TYPE_CHECKING:
    from sparsecore.mlp import SparseMLP

_WITH_REPLAY = ("command", "function", "default", "replay", "threads", "json")


def add(commands: Any) -> None:
    """Add the command to the command line."""
    sub = commands.add_parser(
        "train",
        help="train a network on a data set",
        description="Train a truly sparse network. Hyperparameters that are not given are those of "
        "the study for the data set, as the book's table of hyperparameters has them.",
    )
    sub.set_defaults(function=_train, default=sub.get_default)
    sub.add_argument(
        "--dataset", metavar="NAME", help=f"one of {', '.join(datasets.names())}; required"
    )
    group = sub.add_argument_group(
        "hyperparameters (default: the study's setting for the data set)"
    )
    group.add_argument(
        "--hidden",
        type=sizes,
        metavar="N,N,…",
        help="neurons of the hidden layers (fashion-mnist: 1000,1000,1000)",
    )
    density = group.add_mutually_exclusive_group()
    density.add_argument(
        "--epsilon",
        type=float,
        help="density, > 0: about ε (n_in + n_out) connections a layer (fashion-mnist: 20)",
    )
    density.add_argument(
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
        metavar="SHARE",
        help="share of the epochs in which workers exchange gradients, in [0, 1] (0.7)",
    )
    parallel.add_argument(
        "--warmup",
        type=int,
        metavar="EPOCHS",
        help="wassp: epochs in which the learning rate rises to its K-fold (5)",
    )
    parallel.add_argument(
        "--window",
        choices=("auto", "shared", "remote"),
        help="the server: in shared memory, or behind Get and Put (auto: shared on one node)",
    )
    parallel.add_argument(
        "--patience",
        type=float,
        metavar="SECONDS",
        help="silence after which a rank counts as lost (5)",
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
    from sparsecore import experiment, settings

    check_common(options)
    if options.replay is not None:
        for name, value in vars(options).items():
            if name not in _WITH_REPLAY and value != options.default(name):
                name = name.replace("_", "-")
                raise ValueError(f"--{name}: not with --replay, which says all by itself")
        _replay(options)
        return
    _check_parallel(options)
    if options.dataset is None:
        raise ValueError(f"--dataset: expected one of {', '.join(datasets.names())}, got none")
    base = settings.setting(options.dataset).config
    given = {
        name: value
        for name in base.to_dict()
        if (value := getattr(options, name, None)) is not None
    }
    config = base.with_values(**given)
    for name in ("prune_every", "prune_percentile"):
        if name in given and config.prune_from is None:
            name = name.replace("_", "-")
            raise ValueError(f"--{name}: expected --prune-from EPOCH with it, got none")
    if options.resume and options.checkpoint is None:
        raise ValueError("--resume: expected --checkpoint FILE to go on from, got none")
    for name in ("out", "checkpoint"):
        check_target(f"--{name}", getattr(options, name))
    data = _loaded(options.dataset, options.limit, options.seed)
    if data.surrogate:
        print(
            f"sparsecore train: {data.name} is a surrogate here, generated data of the same shape: "
            f"its accuracy says nothing (python -m sparsecore data fetch {data.name} tells where "
            "to put the real data)",
            file=sys.stderr,
        )
    if options.algorithm == "sequential":
        if ranks_here() > 1:
            print(
                "sparsecore train: every rank trains the same network by itself; to share the "
                "work: --algorithm wasap",
                file=sys.stderr,
            )
        model, result = experiment.run(
            data,
            config,
            seed=options.seed,
            threads=options.threads,
            progress=True,
            checkpoint_path=options.checkpoint,
            resume=options.resume,
        )
        _report(data, model, result, options)
        return
    from sparsecore.commands.job import job

    with job(options) as this_job:
        trained, found = this_job.train(data, config)
        if trained is not None and found is not None:
            _report(data, trained, found, options)


def _check_parallel(options: argparse.Namespace) -> None:
    """Fill in what a parallel run is told; refuse it where nothing is parallel."""
    from sparsecore.wasap.plan import Plan
    from sparsecore.wasap.watch import PATIENCE

    usual = Plan()
    for name, default in (
        ("phase1", usual.phase1),
        ("warmup", usual.warmup),
        ("window", "auto"),
        ("patience", PATIENCE),
    ):
        if getattr(options, name) is None:
            setattr(options, name, default)
        elif options.algorithm == "sequential":
            raise ValueError(f"--{name}: expected --algorithm wasap or wassp with it, got none")
        elif (name, options.algorithm) == ("warmup", "wasap"):
            raise ValueError("--warmup: expected --algorithm wassp with it, got wasap")
    if options.patience <= 0:
        raise ValueError(f"--patience: expected seconds above 0, got {options.patience}")
    if options.algorithm != "sequential":
        Plan(options.algorithm, options.phase1, options.warmup)  # refuses what is out of range


def _report(
    data: datasets.Dataset, model: SparseMLP, result: dict[str, Any], options: argparse.Namespace
) -> None:
    """Print and save what came of a training run."""
    from sparsecore import checkpoint

    if options.json:
        about = {"source": data.source, "surrogate": data.surrogate}
        print(json.dumps({**result, "data": about}), flush=True)
    else:
        print(model)
        print(
            f"test accuracy{' on a surrogate' * data.surrogate} "
            f"{100 * result['test_accuracy']:.2f} % "
            f"(best {100 * result['best_test_accuracy']:.2f} %), "
            f"{result['seconds']['train']:.1f} s of training, "
            f"{result['samples_per_second']:,.0f} samples/s",
            flush=True,
        )
    if options.out is not None:  # last: should it fail, the result is not lost
        checkpoint.save(model, options.out)


def _loaded(name: str, limit: int | None, seed: int) -> datasets.Dataset:
    data = datasets.load(name)
    return data if limit is None else data.limited(limit, random_state=seed)


def _replay(options: argparse.Namespace) -> None:
    from sparsecore.wasap.record import read_result, replay

    result = read_result(options.replay)
    config = result["config"]
    data = _loaded(config["dataset"], config["n_train"], result["seed"])
    report = replay(data, result, threads=options.threads, progress=True)[1]
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
