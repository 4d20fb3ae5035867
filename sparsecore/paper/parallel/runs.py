"""F-parallel and F-resources: the same training sequentially, by WASAP-SGD and by WASSP-SGD."""

from functools import partial
from typing import Any, NamedTuple

from sparsecore import cluster, datasets, experiment, wasap
from sparsecore.config import TrainConfig
from sparsecore.paper.store import NOTHING, Entry, Parts, Result, measured
from sparsecore.paper.training import on_cluster
from sparsecore.settings import setting

STUDY = "F-parallel"
DATASET = "fashion-mnist"
ALGORITHMS = ("sequential", *wasap.ALGORITHMS)


class Effort(NamedTuple):
    """The length of a profile's runs; None: the setting's epochs, all rows."""

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
    return Entry(STUDY, f"{algorithm}-seed{seed}", profile, lambda: expected)


def _parts(profile: str) -> Parts:
    """Return the runs by algorithm and seed, and the replay of the first asynchronous one."""
    seeds = EFFORTS[profile].seeds
    runs = [(name, seed) for seed in seeds for name in ALGORITHMS]
    parts: Parts = {run: (entry(*run, profile), partial(_train, *run, profile)) for run in runs}
    first = parts["wasap", seeds[0]][0]

    def expected() -> Result:  # the weights that this run has now
        run = first.look()[0]
        return {"recorded_sha256": run and run["weights_sha256"]}

    replay = Entry(STUDY, "replay", profile, expected)
    parts["replay", seeds[0]] = replay, partial(_replay, first, seeds[0])
    return parts


def _rows(seed: int, profile: str) -> datasets.Dataset:
    return datasets.load(DATASET).limited(EFFORTS[profile].rows, seed)


_made: dict[tuple[int, str], Result] = {}  # for the replay, where results cannot be kept


def _train(algorithm: str, seed: int, profile: str) -> Result:
    config = config_of(profile)
    if algorithm == "sequential":
        return experiment.run(_rows(seed, profile), config, seed=seed, progress=True)[1]
    how = {"plan": wasap.Plan(algorithm), "seed": seed, "limit": EFFORTS[profile].rows}
    result = on_cluster.train(config, DATASET, **how)[1]
    if algorithm == "wasap":
        _made[seed, profile] = result
    return result


def _replay(first: Entry, seed: int) -> Result:
    if (run := first.recorded() or _made.get((seed, first.profile))) is None:
        raise cluster.ClusterError("there is no WASAP-SGD run to replay")
    return wasap.replay(_rows(seed, first.profile), run, progress=True)[1]


def _page(found: dict[Any, Result]) -> Result:
    """Return the runs by algorithm, of the seeds that all algorithms have, and their origin."""
    there = {part: result for part, result in found.items() if "missing" not in result}
    replays = [result for (name, _), result in there.items() if name == "replay"]
    seeds = dict.fromkeys(seed for _, seed in there)
    about = {"n_test": datasets.describe(DATASET)["n_test"]}
    whole = [seed for seed in seeds if all((name, seed) in there for name in ALGORITHMS)]
    if not (whole and replays):
        return next((result for result in found.values() if "missing" in result), NOTHING)
    runs = {
        name: [there[name, seed] | {"condition": {"method": name}, "data": about} for seed in whole]
        for name in ALGORITHMS
    }  # as the main table's
    first, size = runs["wasap"][0], "{epochs} epochs of {n_train:,} rows, {workers} workers."
    return {
        "profile": first["profile"], "seeds": whole,
        "origins": [run["provenance"] for some in runs.values() for run in some],
        "others": [run["others"] for some in runs.values() for run in some],
        "size": size.format_map(first["config"]), "runs": runs, "replay": replays[0],
    }  # fmt: skip


entries, *_ways = measured(_parts, _page)
recorded, load = (on_cluster.kept()(get) for get in _ways)
