"""F-parallel and F-resources: the same training sequentially, by WASAP-SGD and by WASSP-SGD."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

from sparsecore import cluster, datasets, experiment, wasap
from sparsecore.config import TrainConfig
from sparsecore.datasets import Dataset
from sparsecore.paper.store import NOTHING, Entry, Result, at_hand, current_profile
from sparsecore.paper.training import on_cluster
from sparsecore.paper.training.studies import TRAINED
from sparsecore.provenance import busy_cpus
from sparsecore.settings import setting

STUDY = "F-parallel"
DATASET = "fashion-mnist"
ALGORITHMS = ("sequential", *wasap.ALGORITHMS)


class Effort(NamedTuple):
    """How long a profile's runs are; None: as the setting has it, all rows."""

    epochs: int | None
    rows: int | None
    seeds: tuple[int, ...]


EFFORTS = {"quick": Effort(6, 6_000, (0,)), "paper": Effort(None, None, (0, 1, 2))}


def config_of(profile: str) -> TrainConfig:
    """Return the configuration of a profile's runs."""
    config, epochs = setting(DATASET).config, EFFORTS[profile].epochs
    return config if epochs is None else config.with_values(epochs=epochs)


def entry(algorithm: str, seed: int, profile: str) -> Entry:
    """Return where a run is kept, and when it is valid."""
    config = {"dataset": DATASET, **config_of(profile).to_dict()}
    if (rows := EFFORTS[profile].rows) is not None:
        config["n_train"] = rows
    expected = {f"config.{name}": value for name, value in config.items()} | {"seed": seed}
    name = f"{algorithm}-seed{seed}"
    return Entry(STUDY, name, profile, TRAINED, lambda: expected)


def _replay_entry(run: Result) -> Entry:
    expected = {"recorded_sha256": run["weights_sha256"]}
    schema = {"identical": bool, "recorded_sha256": str, "weights_sha256": str, "updates": int}
    return Entry(STUDY, "replay", run["profile"], schema, lambda: expected)


def entries(profile: str) -> list[Entry]:
    """Return the results that a profile is made of."""
    found = [entry(name, s, profile) for s in EFFORTS[profile].seeds for name in ALGORITHMS]
    first = entry("wasap", EFFORTS[profile].seeds[0], profile).look()[0]
    return [*found, _replay_entry(first or {"weights_sha256": "", "profile": profile})]


def recorded() -> Result:
    """Return the recorded runs, of seeds that all algorithms have run, and their replay."""
    if current_profile() == "paper":
        return load()
    found = [[entry(n, s, "paper").recorded() for n in ALGORITHMS] for s in EFFORTS["paper"].seeds]
    whole = [[run for run in runs if run] for runs in found if all(runs)]
    replay = _replay_entry(whole[0][1]).recorded() if whole else None
    return _together("paper", whole, replay) if replay else NOTHING


def load(profile: str | None = None) -> Result:
    """Return a profile's runs and their replay; train what is missing."""
    return at_hand(partial(_load, current_profile(profile)))


def _together(profile: str, found: list[list[Result]], replay: Result) -> Result:
    """Return runs by algorithm, those of one seed each, with the replay and what is told of all."""
    runs = dict(zip(ALGORITHMS, map(list, zip(*found, strict=True)), strict=True))
    size = "{epochs} epochs of {n_train:,} rows, {workers} workers."
    return {
        "profile": profile,
        "provenance": runs["wasap"][0]["provenance"],
        "seeds": [run["seed"] for run in runs["wasap"]],
        "others": [run["others"] for one in found for run in one],  # CPUs that others used before
        "size": size.format_map(runs["wasap"][0]["config"]),
        "runs": runs,
        "replay": replay,
    }


def _load(profile: str) -> Result:
    """Return all runs; parallel ones share a cluster, which starts when the first needs it."""
    data, limit = datasets.load(DATASET), EFFORTS[profile].rows

    def rows(seed: int) -> Dataset:
        return data if limit is None else data.limited(limit, random_state=seed)

    def train(algorithm: str, seed: int) -> Result:
        others, config = busy_cpus(), config_of(profile)  # the workers of a cluster sleep now
        if algorithm == "sequential":
            _, result = experiment.run(rows(seed), config, seed=seed, progress=True)
        else:
            plan, workers = wasap.Plan(algorithm), on_cluster.workers()
            _, result = cluster.train(workers, config, DATASET, plan, seed=seed, limit=limit)
        return {**result, "others": others}

    with on_cluster.kept():
        found = [
            [entry(n, s, profile).obtain(partial(train, n, s)) for n in ALGORITHMS]
            for s in EFFORTS[profile].seeds
        ]
    first = found[0][1]
    replay = partial(wasap.replay, rows(first["seed"]), first, progress=True)
    return _together(profile, found, _replay_entry(first).obtain(lambda: replay()[1]))
