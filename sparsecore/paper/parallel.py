"""F-parallel and F-resources: the runs behind the pages on parallel training: run or load.

The same network, data, seeds and epochs, trained sequentially, by WASAP-SGD and by WASSP-SGD. The
parallel runs need a cluster of MPI engines, see `cluster.connect`; each run is one JSON file per
profile. Drawing is for `parallel_figures`.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsecore import checkpoint, cluster, datasets, experiment, wasap
from sparsecore.datasets import Dataset
from sparsecore.paper import results
from sparsecore.paper.results import ResultWarning
from sparsecore.paper.settings import setting
from sparsecore.paper.studies import current_profile
from sparsecore.train import TrainConfig

STUDY = "F-parallel"
DATASET = "fashion-mnist"
ALGORITHMS = ("sequential", "wasap", "wassp")

Result = dict[str, Any]


@dataclass(frozen=True)
class Effort:
    """How long a profile's runs are; None: as the setting has it, all rows."""

    workers: int
    epochs: int | None
    rows: int | None
    seeds: tuple[int, ...]


EFFORTS = {
    "quick": Effort(2, 10, 12_000, (0, 1)),
    "paper": Effort(5, None, None, (0, 1, 2)),
}


@dataclass(frozen=True)
class Parallel:
    """The runs of a profile.

    Attributes
    ----------
    profile : str
    runs : dict of str to list of dict
        Results per algorithm, one per seed.
    replay : dict
        What the replay of the first asynchronous run found.
    """

    profile: str
    runs: dict[str, list[Result]]
    replay: Result

    def first(self, algorithm: str) -> Result:
        """Return the run with the first seed."""
        return self.runs[algorithm][0]

    def __repr__(self) -> str:
        count = {algorithm: len(runs) for algorithm, runs in self.runs.items()}
        return f"<Parallel {self.profile}: {count}>"


def config_of(profile: str) -> TrainConfig:
    """Return the configuration of a profile's runs."""
    config, epochs = setting(DATASET).config, EFFORTS[profile].epochs
    return config if epochs is None else config.with_values(epochs=epochs)


def path_of(profile: str, name: str) -> Path:
    """Return the file of a run, or of the replay."""
    return results.root() / profile / STUDY / f"{name}.json"


def load(profile: str | None = None) -> Parallel:
    """Return all runs; make those that are missing or of other code or another machine.

    Parameters
    ----------
    profile : {"quick", "paper"}, optional
        See `studies.current_profile`.

    Raises
    ------
    ClusterError
        If a cluster is needed and cannot be had.
    DataNotAvailable
        If the data cannot be had.
    """
    profile = current_profile(profile)
    effort, config = EFFORTS[profile], config_of(profile)
    data = datasets.load(DATASET)
    found: dict[tuple[str, int], Result] = {}
    missing = []
    for seed in effort.seeds:
        for algorithm in ALGORITHMS:
            result = _read(profile, f"{algorithm}-seed{seed}")
            if result is None:
                missing.append((algorithm, seed))
            else:
                found[algorithm, seed] = result
    for algorithm, seed in missing:
        if algorithm == "sequential":
            found[algorithm, seed] = _written(
                profile,
                f"{algorithm}-seed{seed}",
                experiment.run(_limited(data, profile, seed), config, seed=seed)[1],
            )
    parallel = [(algorithm, seed) for algorithm, seed in missing if algorithm != "sequential"]
    if parallel:
        with cluster.connect(effort.workers) as workers:
            for algorithm, seed in parallel:
                _, result = cluster.train(
                    workers, config, DATASET, algorithm=algorithm, seed=seed, limit=effort.rows
                )  # fmt: skip
                found[algorithm, seed] = _written(profile, f"{algorithm}-seed{seed}", result)
    runs = {name: [found[name, seed] for seed in effort.seeds] for name in ALGORITHMS}
    return Parallel(profile, runs, _replayed(profile, data, runs["wasap"][0]))


def _replayed(profile: str, data: Dataset, result: Result) -> Result:
    """Replay an asynchronous run, or read what its replay found."""
    report = _read(profile, "replay")
    if report is None or report["recorded_sha256"] != result["weights_sha256"]:
        data = _limited(data, profile, result["seed"])
        report = _written(profile, "replay", wasap.replay(data, result)[1])
    return report


def _limited(data: Dataset, profile: str, seed: int) -> Dataset:
    rows = EFFORTS[profile].rows
    return data if rows is None else data.limited(rows, random_state=seed)


def _identity() -> Result:
    return {
        "study": STUDY,
        "code_sha256": results.code_sha256("sparsecore.wasap.phases", "sparsecore.experiment"),
    }


def _written(profile: str, name: str, result: Result) -> Result:
    result = {**_identity(), "name": name, **result}
    checkpoint.write_json(path_of(profile, name), result)
    return result


def _read(profile: str, name: str) -> Result | None:
    """Return a run's result if it is there, whole, and of this code."""
    path = path_of(profile, name)
    try:
        result = json.loads(path.read_bytes())
        if not isinstance(result, dict) or result.get("name") != name:
            raise ValueError("not a result of that run")
    except FileNotFoundError:
        return None
    except (ValueError, OSError) as error:
        warnings.warn(
            f"{path.name} of {STUDY}, {profile}: damaged: {error}; it is left out or run anew",
            ResultWarning,
            stacklevel=3,
        )
        return None
    fits = all(result.get(key) == value for key, value in _identity().items())
    return result if fits else None
