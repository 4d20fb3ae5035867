"""``train``: one network on one data set, by one process or by the ranks of an MPI job."""

import argparse
import json
from typing import Any

from sparsecore import datasets
from sparsecore.commands import options as shared
from sparsecore.commands import table
from sparsecore.config import HYPERPARAMETERS, integers, numbers
from sparsecore.wasap import plan

_WITH_REPLAY = ("command", "function", "default", "replay", "threads", "json")
_PLANNED = ("phase1", "warmup", "local_steps")
_WINDOWS = {"auto": None, "shared": True, "remote": False}


def add(commands: Any) -> None:
    """Add the command to the command line."""
    sub = commands.add_parser(
        "train",
        help="train a network on a data set",
        description="Train a truly sparse network. Hyperparameters that are not given have the "
        "study's values for the data set (see the book's table of hyperparameters). They come from "
        "the released code or are this project's choice; they are not tuned. Only weight decay may "
        "differ: it is 0 where held-out training rows favour 0 or, if none were held out, where "
        "all released code for the data set has 0 (see the book's page on weight decay).",
    )
    sub.set_defaults(function=_train, default=sub.get_default)
    known = f"one of {', '.join(datasets.names())}; required unless --data or --replay is given"
    sub.add_argument("--dataset", metavar="NAME", help=known)
    group = sub.add_argument_group("hyperparameters (in parentheses: the study's defaults)")
    density = group.add_mutually_exclusive_group()
    for name, about in HYPERPARAMETERS.items():
        part = density if name in ("epsilon", "density") else group
        shared.hyperparameter(part, about, shared.study_default(name))
    limit = "train on a stratified sample of N rows (all)"
    sub.add_argument("--limit", type=int, metavar="N", help=limit)
    parallel = sub.add_argument_group(
        "parallel training, one worker per rank (mpiexec -n 5 python -m sparsecore train …)"
    )
    option = parallel.add_argument
    option(
        "--algorithm", choices=("sequential", "wasap", "wassp"), default="sequential",
        help="wasap: asynchronous; wassp: synchronous, in lockstep (sequential)",
    )  # fmt: skip
    window = (
        "the server's memory: shared by the ranks of one node, or remote, through MPI's Get and "
        "Put (auto: shared if all ranks are on one node)"
    )
    option("--window", choices=tuple(_WINDOWS), help=window)
    for name in _PLANNED:
        shared.hyperparameter(parallel, plan.HYPERPARAMETERS[name])
    silence = "seconds without a sign of life after which a rank counts as lost (5)"
    option("--patience", type=float, metavar="SECONDS", help=silence)
    option(
        "--replay", metavar="RESULT",
        help="repeat an asynchronous run in its recorded order, in one process; data set and "
        "hyperparameters come from RESULT, the file with the run's --json output",
    )  # fmt: skip
    sub.add_argument("--out", metavar="FILE", help="save the trained model to FILE (.npz)")
    after = (
        "save the state of the run to FILE after each epoch (.npz); in phase 2 each worker writes "
        "FILE.worker<rank>"
    )
    sub.add_argument("--checkpoint", metavar="FILE", help=after)
    shared.result_options(
        sub,
        "data, hyperparameters and --seed must be as before; --epochs may differ if the epochs "
        "already done stay the same (in parallel: if phase 1 stays the same, too)",
        "; of an asynchronous run, only the initial weights",
        threads=1,
    )
    table.add_data(sub)


def _train(options: argparse.Namespace) -> None:
    from sparsecore import experiment, settings

    if options.data is not None:
        table.train(options)
        return
    alone = shared.given(options, ("target", "test", "task"))
    shared.refuse(alone, "expected --data FILE with it, got none")
    if options.replay is not None:
        more = (name for name in shared.changed(options) if name not in _WITH_REPLAY)
        shared.refuse(more, "not with --replay: the result gives data, seed and hyperparameters")
    shared.check_common(options)
    if options.replay is not None:
        _replay(options)
        return
    parallel = _plan(options)
    if options.dataset is None:
        own = "; for a table of your own: --data FILE"
        raise ValueError(f"--dataset: expected one of {', '.join(datasets.names())}, got none{own}")
    base = settings.setting(options.dataset).default
    chosen = shared.given(options, HYPERPARAMETERS)
    config = base.with_values(**chosen)
    shared.refuse_idle(options, config.epochs, config.prune_from, config.activation)
    how = {
        "seed": options.seed, "threads": options.threads, "checkpoint_path": options.checkpoint,
        "resume": options.resume,
    }  # fmt: skip
    if parallel is None:
        data = _load(options)
        shared.warn_of_twins("--algorithm wasap trains one network on all ranks")
        _report(data, *experiment.run(data, config, progress=True, **how), options)
        return
    from sparsecore.commands import job
    from sparsecore.wasap.watch import PATIENCE

    window, patience = _WINDOWS[options.window or "auto"], options.patience or PATIENCE
    with job.job(window, patience, options.checkpoint) as ranks:
        # The ranks have met: from here on, a rank that fails, is stopped or ends is named.
        data = ranks.together(lambda: _load(options))
        model, result = job.train(ranks, data, config, parallel, **how)
        if result is not None:
            _report(data, model, result, options)


def _load(options: argparse.Namespace) -> datasets.Dataset:
    """Return the data, after a check that the output files can be written."""
    shared.check_targets(options)
    data = datasets.load(options.dataset).limited(options.limit, options.seed)
    if data.surrogate:
        shared.say(
            f"{data.name} is a surrogate here, generated data of the same shape: its accuracy "
            "means nothing; to see where to put the real data: python -m sparsecore data fetch "
            f"{data.name}"
        )
    return data


def _plan(options: argparse.Namespace) -> Any:
    """Return the plan of a parallel run, None for a sequential one; refuse unsuitable options."""
    told = shared.given(options, (*_PLANNED, "window", "patience"))
    if options.algorithm == "sequential":
        shared.refuse(told, "expected --algorithm wasap or wassp with it, got sequential")
        return None
    if "warmup" in told and options.algorithm == "wasap" and told.get("local_steps", 1) == 1:
        raise ValueError(
            "--warmup: expected --algorithm wassp with it, or --local-steps of 2 or more, got wasap"
        )
    # The witness polls with this timeout in milliseconds: an int holds 2.1e6 seconds of them.
    numbers("seconds above 0 and at most 1e6", lambda v: 0 < v <= 1e6).check(
        "--patience", told.get("patience", 1)
    )
    return plan.Plan(options.algorithm, **shared.given(options, _PLANNED))


def _report(
    data: datasets.Dataset, model: Any, result: dict[str, Any], options: argparse.Namespace
) -> None:
    """Save the model and print the result of a training run."""
    from sparsecore import checkpoint

    try:
        if options.out is not None:
            checkpoint.save(model, options.out)
    finally:  # if saving fails, the result is printed all the same
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


def _replay(options: argparse.Namespace) -> None:
    from sparsecore.wasap.record import entry, read_result, replay

    result = read_result(options.replay)
    about = entry(result, "config", dict)
    limit = integers(1).check("n_train", about.get("n_train"))
    seed = integers(0).check("seed", result.get("seed"))
    data = datasets.load(entry(result, "config.dataset", str)).limited(limit, seed)
    report = replay(data, result, threads=options.threads, progress=True)[1]
    if options.json:
        print(json.dumps(report))
    if not report["identical"]:
        raise RuntimeError(
            f"replay: expected weights with SHA-256 {report['recorded_sha256']}, got "
            f"{report['weights_sha256']}: the run used another version of the package or "
            "another lane width (see the result's provenance)"
        )
    if not options.json:
        print(
            f"replayed {report['updates']:,} updates: bit-identical weights "
            f"(SHA-256 {report['weights_sha256']})"
        )
