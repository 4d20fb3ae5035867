"""``study``: the runs and measurements behind the book."""

import argparse
import itertools
from pathlib import Path
from typing import Any

from sparsecore.commands.options import given, names, numbers, refuse, say, sizes


def add(commands: Any) -> None:
    """Add the command to the command line."""
    sub = commands.add_parser(
        "study",
        help="list and run the studies behind the book's figures",
        description="List and run the studies behind the book's figures. Results are in the folder "
        "$SPARSECORE_RESULTS (an absolute path); without it, in book/results of the checkout that "
        "you work in; outside a checkout, in ./results.",
    )
    verbs = sub.add_subparsers(dest="verb", required=True, metavar="list | run | status")
    verbs.add_parser("list", help="list the studies and what they show").set_defaults(
        function=_list_studies
    )
    run = verbs.add_parser(
        "run",
        help="compute the missing results of a study; valid results are kept",
        description="Compute the missing results of a study. A result is saved as soon as its run "
        "ends. In the paper profile, a killed training run resumes from its checkpoint, unless it "
        "is a short parallel run; T-times resumes after its last complete round. Several such "
        "commands at the same time share the work.",
    )
    run.set_defaults(function=_run_study)
    run.add_argument("key", metavar="KEY", help="as `study list` shows it")
    run.add_argument(
        "--seeds", type=sizes, metavar="N,N,…", help="only these seeds (those of the profile)"
    )
    for name in ("datasets", "methods"):
        run.add_argument(f"--{name}", type=names, metavar="NAME,…", help="only these (all)")
    run.add_argument("--decays", type=numbers, metavar="λ,…", help="only these weight decays (all)")
    status = verbs.add_parser(
        "status", help="show which results are recorded, missing, of another recipe, or damaged"
    )
    status.set_defaults(function=_study_status)
    for verb in (run, status):
        verb.add_argument("--profile", help="quick or paper ($SPARSECORE_PROFILE, or else quick)")


def _measured() -> dict[str, Any]:
    """Return the modules of the measured studies, by key; each has `load` and `entries`."""
    from sparsecore.paper import estimator, reliability
    from sparsecore.paper.extreme import runs as extreme
    from sparsecore.paper.parallel import runs as parallel
    from sparsecore.paper.scaling import measure as scaling
    from sparsecore.paper.speed import measure as speed
    from sparsecore.paper.training import depth, times

    modules = (speed, parallel, scaling, extreme, depth, times, estimator, reliability)
    return {module.STUDY: module for module in modules}


def _list_studies(options: argparse.Namespace) -> None:
    from sparsecore.paper.training import conditions

    for study in conditions.STUDIES.values():
        print(f"{study.key:16} {study.content}")


def _run_study(options: argparse.Namespace) -> None:
    from sparsecore.paper.training import conditions, studies

    home = conditions.find(options.key).home.key
    if any(seed < 0 for seed in options.seeds or ()):
        raise ValueError(f"--seeds: expected integers of at least 0, got {options.seeds}")
    if (module := _measured().get(home)) is not None:
        parts = given(options, ("seeds", "datasets", "methods", "decays"))
        refuse(parts, f"{options.key} is measured as a whole; leave this option out")
        reasons: list[str] = []
        module.load(options.profile, reasons)
        if _show(options.key, module.entries(studies.current_profile(options.profile)), {}):
            for why in dict.fromkeys(reasons):
                print(f"  {why}")
            raise RuntimeError(f"{options.key}: measurements are missing; the reasons are above")
        return
    found = studies.load(
        options.key, options.profile, options.seeds, of_datasets=options.datasets,
        methods=options.methods, decays=options.decays,
    )  # fmt: skip
    for dataset, why in found.unavailable.items():
        say(f"{dataset}: {why}", "sparsecore study")
    if found.no_cluster:
        say(f"parallel runs: {found.no_cluster}", "sparsecore study")
    if not found.study.datasets:
        print(f"{options.key} needs no runs")
    study = found.study
    for dataset, decay, method in itertools.product(study.datasets, study.decays, study.methods):
        part = found.at(decay)
        runs = part.of(dataset, method)
        scores = ", ".join(f"{100 * run['test_accuracy']:.2f}" for run in runs)
        on = " on a surrogate" * part.surrogate(dataset)
        told = f"test accuracy{on} {scores} %" if runs else part.why_not(dataset, method)
        if runs or part.lacks(dataset, method) or decay == study.decays[0]:
            print(f"{dataset:18} λ {decay:<7g} {method:20} {told}")
    asked = study.conditions(found.profile, options.seeds)
    if lacking := [c.name for c in asked if studies.entry(c).look()[0] is None]:
        raise RuntimeError(f"not recorded: {', '.join(lacking)}; the reasons are above")


def _study_status(options: argparse.Namespace) -> None:
    from sparsecore.paper.store import current_profile, root
    from sparsecore.paper.training import conditions, studies

    profile, measured = current_profile(options.profile), _measured()
    print(f"results in {root() / profile}")
    seen: dict[Path, str] = {}  # studies share runs
    for study in conditions.STUDIES.values():
        if study.home.key in measured:
            _show(study.key, measured[study.home.key].entries(profile), seen)
            continue
        runs = [(condition, studies.entry(condition)) for condition in study.conditions(profile)]
        lacking = _show(study.key, [entry for _, entry in runs], seen)
        if lacking:
            seconds = studies.expected_seconds(c for c, entry in runs if entry.path in lacking)
            print(f"  these take about {seconds / 3600:.1f} hours on one core")


def _show(key: str, entries: list[Any], seen: dict[Path, str]) -> set[Path]:
    """Print the states of results, add them to `seen`; return the missing ones not yet printed."""
    states = {entry.path: seen.get(entry.path) or entry.look()[1] for entry in entries}
    lacking = {path: state for path, state in states.items() if state != "recorded"}
    print(f"{key:16} {len(states) - len(lacking)}/{len(states)} results recorded")
    if told := lacking.keys() & seen.keys():
        print(f"  {len(told)} more listed above")
    alike: dict[tuple[str, str], list[str]] = {}  # seeds, by kind of run and state
    for path, state in lacking.items():
        if path not in seen:
            kind, _, seed = path.stem.partition("-seed")
            alike.setdefault((kind, state), []).append(seed)
    for (kind, state), seeds in alike.items():
        print(f"  {kind}{'-seed' * any(seeds)}{','.join(seeds)}: {state}")
    seen |= states
    return lacking.keys() - told
