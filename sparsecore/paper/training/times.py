"""T-times: seconds per epoch of all methods, which take turns on one machine.

Runs beside each other, or on several machines, tell accuracies but no times.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

from sparsecore.paper.store import Entry, Measured, Parts, Result
from sparsecore.paper.training import on_cluster
from sparsecore.paper.training.conditions import METHODS, STUDIES, Condition, excluded
from sparsecore.paper.training.studies import cores, data_of, expected_seconds, training_seconds
from sparsecore.provenance import provenance

STUDY = "T-times"
_ROUNDS = {"quick": 2, "paper": 5}
_TURN = 3.0  # seconds of training, roughly
# Pruning goes through its schedule in a tenth of the epochs, so that a turn has the connections
# that an epoch has on average.
_SHORT = 10
_SCHEMA = {"rounds": dict, "cores": dict, "others": (int, float)}


def _parts(profile: str) -> Parts:
    names = STUDIES["T-main"].datasets if profile == "paper" else ("digits",)
    return {
        name: (Entry(STUDY, name, profile, _SCHEMA), partial(measure, name, _ROUNDS[profile]))
        for name in names
    }


_MEASURED = Measured(_parts)
entries, recorded, load = _MEASURED.entries, _MEASURED.recorded, _MEASURED.load


def measure(dataset: str, rounds: int, methods: tuple[str, ...] | None = None) -> Result:
    """Train by each method in turn; return "rounds", seconds per epoch of each, and "cores"."""
    names = [m for m in methods or STUDIES["T-main"].methods if excluded(dataset, m) is None]
    data = data_of(Condition("T-main", "paper", dataset, names[0], 0))
    turns: dict[str, list[float]] = {name: [] for name in names}
    used = {}
    with on_cluster.kept():
        for number in range(1 + rounds):
            for name in names[number % len(names) :] + names[: number % len(names)]:
                method, config = METHODS[name], _short(dataset, name)
                how: Any = {"seed": number, "observe": lambda model, epoch: {}, **method.options}
                _, run = method.run(data, config, **how)
                used[name] = cores(run)
                if number:  # in the first round code, data and BLAS are cold
                    turns[name].append(training_seconds(run) / config.epochs)
    return {"rounds": turns, "cores": used, "provenance": provenance(1, data.content_hash)}


def _short(dataset: str, method: str) -> Any:
    """Return a method's configuration with fewer epochs."""
    condition = Condition("T-main", "paper", dataset, method, 0)
    config = condition.config
    if config.prune_from is not None:
        names = "epochs", "prune_from", "prune_every"
        return config.with_values(**{name: getattr(config, name) // _SHORT for name in names})
    epochs = math.ceil(_TURN * config.epochs / expected_seconds([condition]))
    least = 10 if METHODS[method].parallel else 2  # both phases
    return config.with_values(epochs=min(max(epochs, least), config.epochs // _SHORT))
