"""``study``: the runs and measurements behind the book."""

from __future__ import annotations

import argparse
import importlib
import sys
from typing import Any

from sparsecore.commands.options import names, sizes


def add(commands: Any) -> None:
    """Add the command to the command line."""
    sub = commands.add_parser("study", help="list and run the studies behind the book's figures")
    verbs = sub.add_subparsers(dest="verb", required=True, metavar="list | run | repeat | status")
    verbs.add_parser("list", help="the studies and what they show").set_defaults(
        function=_list_studies
    )
    run = verbs.add_parser("run", help="run what a study lacks; what is there and valid is kept")
    run.set_defaults(function=_run_study)
    repeat = verbs.add_parser(
        "repeat",
        help="train the first epochs of results that other code has made; those that are the same "
        "to twelve digits count as today's",
    )
    repeat.add_argument("--epochs", type=int, default=10, help="how many (10)")
    repeat.set_defaults(function=_repeat_study)
    for verb in (run, repeat):
        verb.add_argument("key", metavar="KEY", help="as `study list` names it")
        verb.add_argument("--seeds", type=sizes, metavar="N,N,…", help="(those of the profile)")
        for name in ("datasets", "methods"):
            verb.add_argument(f"--{name}", type=names, metavar="NAME,…", help="only these (all)")
    status = verbs.add_parser("status", help="which results are there, missing, stale or damaged")
    status.set_defaults(function=_study_status)
    for verb in (run, repeat, status):
        verb.add_argument("--profile", help="quick or paper ($SPARSECORE_PROFILE, or else quick)")


def _list_studies(options: argparse.Namespace) -> None:
    from sparsecore.paper.training import conditions

    for study in conditions.STUDIES.values():
        print(f"{study.key:16} {study.content}")


def _chosen(options: argparse.Namespace) -> dict[str, Any]:
    """Return what part of a study is asked for."""
    return {
        "profile": options.profile,
        "seeds": options.seeds,
        "of_datasets": options.datasets,
        "methods": options.methods,
    }


def _run_study(options: argparse.Namespace) -> None:
    from sparsecore.paper.training import conditions, studies

    measured_by = conditions.find(options.key).home.measured_by
    if measured_by:
        for name in ("seeds", "datasets", "methods"):
            if getattr(options, name) is not None:
                raise ValueError(f"--{name}: {options.key} is measured whole; expected none")
        print(importlib.import_module(measured_by).load(options.profile))
        return
    found = studies.load(options.key, **_chosen(options))
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


def _repeat_study(options: argparse.Namespace) -> None:
    from sparsecore.paper import repeat
    from sparsecore.paper.training import conditions

    if conditions.find(options.key).home.measured_by:
        raise ValueError(f"key: {options.key} is measured; expected a study of runs")
    found = repeat.repeat(
        options.key,
        **_chosen(options),
        epochs=options.epochs,
        on_result=lambda name, state: print(f"{name}: {state}", flush=True),
    )
    if not found:
        print(f"{options.key}: no result was made by other code than today's")
    if differing := [name for name, state in found.items() if state.startswith("differs")]:
        raise RuntimeError(f"not the same: {', '.join(differing)}; `study run` computes them anew")


def _study_status(options: argparse.Namespace) -> None:
    from sparsecore.paper.training import conditions, studies

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
