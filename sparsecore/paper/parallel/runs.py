"""F-parallel and F-resources: the runs behind the pages on parallel training: run or load.

The same network, data, seeds and epochs, trained sequentially, by WASAP-SGD and by WASSP-SGD. The
parallel runs need a cluster of MPI engines, see `cluster.connect`; each run is one JSON file per
profile. Drawing is for `parallel_figures`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any

from sparsecore import cluster, datasets, experiment, wasap
from sparsecore.config import TrainConfig
from sparsecore.datasets import DataNotAvailable, Dataset
from sparsecore.paper import results
from sparsecore.paper.measurements import Measurements, used_by_others
from sparsecore.paper.training import on_cluster
from sparsecore.paper.training.conditions import current_profile
from sparsecore.settings import setting

STUDY = "F-parallel"
DATASET = "fashion-mnist"
ALGORITHMS = ("sequential", "wasap", "wassp")

Result = dict[str, Any]


@dataclass(frozen=True)
class Effort:
    """How long a profile's runs are; None: as the setting has it, all rows."""

    epochs: int | None
    rows: int | None
    seeds: tuple[int, ...]


EFFORTS = {
    "quick": Effort(10, 10_000, (0, 1)),
    "paper": Effort(None, None, (0, 1, 2)),
}


@dataclass(frozen=True)
class Parallel:
    """The runs of a profile.

    Attributes
    ----------
    profile : str
    runs : dict of str to list of dict
        Results per algorithm, one per seed; "others": CPUs that other processes used before it.
    replay : dict
        What the replay of the first asynchronous run found.
    missing : str
        Why there are no runs; "" if there are.
    recorded : Parallel or None
        The recorded runs of the `paper` profile; None if there are none, or these are they.
    """

    profile: str
    runs: dict[str, list[Result]]
    replay: Result
    missing: str = ""
    recorded: Parallel | None = None

    def versions(self) -> list[tuple[str, Parallel]]:
        """Return what has runs, the recorded one first, each with a title."""
        title = "recorded" if self.profile == "paper" else "this build"
        both = (("recorded", self.recorded), (title, self))
        return [(name, found) for name, found in both if found is not None and found.runs]

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


def _names(profile: str) -> list[str]:
    seeds = EFFORTS[profile].seeds
    return [*(f"{name}-seed{seed}" for seed in seeds for name in ALGORITHMS), "replay"]


def _code_sha256() -> str:
    """Return a digest of what trains, and of how long the runs are."""
    trained = results.code_sha256("sparsecore.wasap.phases", "sparsecore.experiment")
    settings = [config_of(profile).to_dict() for profile in EFFORTS]
    return hashlib.sha256(f"{trained}\0{EFFORTS}\0{settings}".encode()).hexdigest()


FILES = Measurements(STUDY, _code_sha256, _names)


def load(profile: str | None = None) -> Parallel:
    """Return all runs; make those that are missing or of other code or another machine.

    Parameters
    ----------
    profile : {"quick", "paper"}, optional
        See `conditions.current_profile`.

    Returns
    -------
    Parallel
        Without runs, and with the reason, where the data or a cluster cannot be had.
    """
    profile = current_profile(profile)
    recorded = None if profile == "paper" else _recorded()
    try:
        return replace(_load(profile), recorded=recorded)
    except DataNotAvailable:
        missing = "The runs need Fashion-MNIST."
    except cluster.ClusterError as error:
        missing = f"The runs need a cluster of MPI engines: {error}."
    return Parallel(profile, {}, {}, missing, recorded)


def _recorded() -> Parallel | None:
    """Read the runs of the `paper` profile, whatever their age: of seeds that all have run."""
    runs: dict[str, list[Result]] = {name: [] for name in ALGORITHMS}
    for seed in EFFORTS["paper"].seeds:
        found = {name: FILES.read(f"{name}-seed{seed}", "paper") for name in ALGORITHMS}
        for name, result in found.items():
            if result is not None and None not in found.values():
                runs[name].append(result)
    replay = FILES.read("replay", "paper")
    if replay is None or not runs["wasap"]:
        return None
    replayed = replay["recorded_sha256"] == runs["wasap"][0]["weights_sha256"]
    return Parallel("paper", runs, replay) if replayed else None


def _load(profile: str) -> Parallel:
    effort, config = EFFORTS[profile], config_of(profile)
    data = datasets.load(DATASET)
    found: dict[tuple[str, int], Result] = {}
    missing = []
    for seed in effort.seeds:
        for algorithm in ALGORITHMS:
            result = FILES.valid(f"{algorithm}-seed{seed}", profile)
            if result is None:
                missing.append((algorithm, seed))
            else:
                found[algorithm, seed] = result
    for algorithm, seed in missing:
        if algorithm == "sequential":
            others = used_by_others()
            rows = _limited(data, profile, seed)
            _, result = experiment.run(rows, config, seed=seed, progress=True)
            result["others"] = others
            found[algorithm, seed] = FILES.write(f"{algorithm}-seed{seed}", profile, result)
    parallel = [(algorithm, seed) for algorithm, seed in missing if algorithm != "sequential"]
    if parallel:
        with cluster.connect(on_cluster.n_workers()) as workers:
            for algorithm, seed in parallel:
                others = used_by_others()  # now the workers sleep
                _, result = cluster.train(
                    workers, config, DATASET, algorithm=algorithm, seed=seed, limit=effort.rows
                )  # fmt: skip
                result["others"] = others
                found[algorithm, seed] = FILES.write(f"{algorithm}-seed{seed}", profile, result)
    runs = {name: [found[name, seed] for seed in effort.seeds] for name in ALGORITHMS}
    return Parallel(profile, runs, _replayed(profile, data, runs["wasap"][0]))


def _replayed(profile: str, data: Dataset, result: Result) -> Result:
    """Replay an asynchronous run, or read what its replay found."""
    report = FILES.valid("replay", profile)
    if report is None or report["recorded_sha256"] != result["weights_sha256"]:
        data = _limited(data, profile, result["seed"])
        report = FILES.write("replay", profile, wasap.replay(data, result, progress=True)[1])
    return report


def _limited(data: Dataset, profile: str, seed: int) -> Dataset:
    rows = EFFORTS[profile].rows
    return data if rows is None else data.limited(rows, random_state=seed)
