"""T-times: seconds per epoch of all methods, which take turns on one machine.

Runs side by side, or on several machines, yield accuracies but no times that can be compared.
"""

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

from sparsecore.files import atomic_write
from sparsecore.limits import cpu_count
from sparsecore.paper.store import Entry, Parts, Result, measured
from sparsecore.paper.training import on_cluster
from sparsecore.paper.training.conditions import METHODS, STUDIES, Condition, excluded
from sparsecore.paper.training.studies import cores, data_of, expected_seconds, training_seconds
from sparsecore.provenance import cpu_model, provenance, sources_sha256

STUDY = "T-times"
_ROUNDS = {"quick": 2, "paper": 5}
_TURN = 3.0  # seconds of training, roughly
# Pruned methods run their schedule in a tenth of the epochs, so that a turn has as many
# connections as an epoch has on average.
_SHORT = 10


def _parts(profile: str) -> Parts:
    names = STUDIES["T-main"].datasets if profile == "paper" else ("digits",)
    made, rounds = [Entry(STUDY, name, profile) for name in names], _ROUNDS[profile]
    return {e.name: (e, partial(measure, e.name, rounds, e.checkpoint("rounds"))) for e in made}


entries, recorded, load = measured(_parts)


def measure(dataset: str, rounds: int, checkpoint: Path) -> Result:
    """Train by each method in turn; return "rounds", seconds per epoch of each, and "cores"."""
    # Finished rounds are kept in `checkpoint`: an interrupted measurement resumes from there, if
    # the machine, the code, the methods and the data are the same.
    names = [m for m in STUDIES["T-main"].methods if excluded(dataset, m) is None]
    data = data_of(Condition("T-main", "paper", dataset, names[0], 0))
    same = {
        "cpu": cpu_model(), "cpus": cpu_count(), "sources": sources_sha256(),
        "data": data.content_hash, "methods": names,
    }  # fmt: skip
    found: Result = {"same": same, "rounds": {name: [] for name in names}, "cores": {}}
    if checkpoint.is_file():
        kept = json.loads(checkpoint.read_bytes())
        found = kept if kept.get("same") == same else found
    done = len(found["rounds"][names[0]])
    with on_cluster.kept():
        for number in range(done, 1 + rounds):
            cold = number == done  # warms up code, data and BLAS: short, and does not count
            for name in names[number % len(names) :] + names[: number % len(names)]:
                method, config = METHODS[name], _short(dataset, name)
                if cold:
                    config = config.with_values(epochs=min(config.epochs, 10))
                how: Any = {"seed": number, "observe": lambda model, epoch: {}, **method.options}
                _, run = method.run(data, config, **how)
                found["cores"][name] = cores(run)
                found["rounds"][name] += [training_seconds(run) / config.epochs] * (not cold)
            if not cold:
                with atomic_write(checkpoint) as file:
                    file.write(json.dumps(found).encode())
    about = {"provenance": provenance(1, data.content_hash)}
    return {name: found[name] for name in ("rounds", "cores")} | about


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
