"""``study``: the runs and measurements behind the book."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from sparsecore.commands.options import given, names, sizes


def add(commands: Any) -> None:
    """Add the command to the command line."""
    sub = commands.add_parser("study", help="list and run the studies behind the book's figures")
    verbs = sub.add_subparsers(dest="verb", required=True, metavar="list | run | status")
    verbs.add_parser("list", help="the studies and what they show").set_defaults(
        function=_list_studies
    )
    run = verbs.add_parser("run", help="run what a study lacks; what is there and valid is kept")
    run.set_defaults(function=_run_study)
    run.add_argument("key", metavar="KEY", help="as `study list` names it")
    run.add_argument("--seeds", type=sizes, metavar="N,N,…", help="(those of the profile)")
    for name in ("datasets", "methods"):
        run.add_argument(f"--{name}", type=names, metavar="NAME,…", help="only these (all)")
    status = verbs.add_parser(
        "status", help="which results are recorded, missing, of another recipe, or damaged"
    )
    status.set_defaults(function=_study_status)
    for verb in (run, status):
        verb.add_argument("--profile", help="quick or paper ($SPARSECORE_PROFILE, or else quick)")


def _measured() -> dict[str, Any]:
    """Return the modules of the studies that are measured, by key; all load and list entries."""
    from sparsecore.paper.estimator import contest as estimator
    from sparsecore.paper.extreme import runs as extreme
    from sparsecore.paper.parallel import runs as parallel
    from sparsecore.paper.scaling import measure as scaling
    from sparsecore.paper.speed import measure as speed

    found = {module.STUDY: module for module in (speed, parallel, scaling, extreme, estimator)}
    return {**found, "F-resources": parallel}


def _list_studies(options: argparse.Namespace) -> None:
    from sparsecore.paper.training import conditions

    for study in conditions.STUDIES.values():
        print(f"{study.key:16} {study.content}")


def _run_study(options: argparse.Namespace) -> None:
    from sparsecore.paper.training import conditions, studies

    conditions.find(options.key)
    if (module := _measured().get(options.key)) is not None:
        for name in given(options, ("seeds", "datasets", "methods")):
            raise ValueError(f"--{name}: {options.key} is measured whole; expected none")
        module.load(options.profile)
        if _show(options.key, module.entries(studies.current_profile(options.profile))):
            raise RuntimeError(f"{options.key}: not all could be measured; see above")
        return
    found = studies.load(
        options.key,
        options.profile,
        options.seeds,
        of_datasets=options.datasets,
        methods=options.methods,
    )
    for dataset, why in found.unavailable.items():
        print(f"sparsecore study: {dataset}: {why}", file=sys.stderr)
    lacking = []
    if not found.study.datasets:
        print(f"{options.key} needs no run")
    for dataset in found.study.datasets:
        for method in found.study.methods:
            runs = found.of(dataset, method)
            scores = ", ".join(f"{100 * run['test_accuracy']:.2f}" for run in runs)
            told = f"test accuracy {scores} %" if runs else found.why_not(dataset, method)
            print(f"{dataset:18} {method:20} {told}")
            if found.lacks(dataset, method):
                lacking.append(f"{dataset} {method}")
    if lacking:
        raise RuntimeError(f"not run: {', '.join(lacking)}; the reasons are above")


def _study_status(options: argparse.Namespace) -> None:
    from sparsecore.paper.store import current_profile
    from sparsecore.paper.training import conditions, studies

    profile, measured = current_profile(options.profile), _measured()
    for study in conditions.STUDIES.values():
        if study.key in measured:
            entries = measured[study.key].entries(profile)
        else:
            entries = [studies.entry(condition) for condition in study.conditions(profile)]
        _show(study.key, entries)


def _show(key: str, entries: list[Any]) -> dict[str, str]:
    """Print the state of results; return those that are not recorded."""
    states = {entry.name: entry.look()[1] for entry in entries}
    lacking = {name: state for name, state in states.items() if state != "recorded"}
    print(f"{key:16} {len(states) - len(lacking)}/{len(states)} results recorded")
    for name, state in lacking.items():
        print(f"  {name}: {state}")
    return lacking
