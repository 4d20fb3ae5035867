"""The studies: which runs each table and figure is made of.

A study is a list of conditions (method × data set × seed); the profile says how long each run is.
Hyperparameters are those of `settings`; `studies` runs and loads them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sparsecore import datasets, experiment
from sparsecore.config import TrainConfig
from sparsecore.paper.training import dense, on_cluster
from sparsecore.paper.training.observers import (
    ObserveGradientFlow,
    ObserveImportance,
    ObservePruning,
    Observer,
    ObserveTopology,
)
from sparsecore.settings import setting
from sparsecore.topology import erdos_renyi_density


@dataclass(frozen=True)
class Method:
    """A way of training: what it changes in a data set's setting, and what runs it.

    ``run(data, config, seed=…, observe=…, **options)`` returns a model and the result that
    `experiment.run` documents.
    """

    label: str
    changes: Mapping[str, Any]
    run: Callable[..., Any] = experiment.run
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def dense(self) -> bool:
        """Whether all connections exist."""
        return self.run is dense.run

    @property
    def parallel(self) -> bool:
        """Whether a cluster trains."""
        return self.run is on_cluster.run


METHODS: dict[str, Method] = {
    "dense": Method("dense", {"activation": "relu", "zeta": 0.0}, dense.run),
    "set-relu": Method("SET-ReLU", {"activation": "relu"}),
    "set-leaky-relu": Method("SET-LeakyReLU", {"activation": "leaky-relu"}),
    "set-all-relu": Method("SET-All-ReLU", {"activation": "all-relu"}),
    "set-all-relu-pruned": Method(
        "SET-All-ReLU with importance pruning", {"activation": "all-relu", "prune_from": 200}
    ),
    "wassp": Method("WASSP", {"activation": "all-relu"}, on_cluster.run, {"algorithm": "wassp"}),
    "wasap": Method("WASAP", {"activation": "all-relu"}, on_cluster.run, {"algorithm": "wasap"}),
    "wasap-pruned": Method(
        "WASAP with importance pruning",
        {"activation": "all-relu", "prune_from": 200, "prune_every": 20, "prune_percentile": 10},
        on_cluster.run,
        {"algorithm": "wasap"},
    ),
}

# One hyperparameter at a time takes these values; its value in the setting is "set-all-relu"'s, and
# α = 0 is "set-relu".
SENSITIVITIES: dict[str, tuple[str, tuple[float, ...]]] = {
    "alpha": ("α", (0.2, 0.4, 0.8, 1.0)),
    "epsilon": ("ε", (5, 10, 40)),
    "zeta": ("ζ", (0.0, 0.1, 0.5)),
}
METHODS.update(
    {
        f"{name}-{value:g}": Method(
            f"SET-All-ReLU, {symbol} = {value:g}", {"activation": "all-relu", name: value}
        )
        for name, (symbol, values) in SENSITIVITIES.items()
        for value in values
    }
)


@dataclass(frozen=True)
class Study:
    """What a table or figure is made of.

    Every method runs on every data set, with the seeds of the profile, unless `excluded` says why
    not. A study without data sets needs no run.
    """

    key: str
    content: str
    datasets: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    seeds: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    # Per data set: the fields of the configuration that the quick profile changes, and how many
    # rows for training and for the test it takes at most.
    quick: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    quick_rows: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    # The study whose runs these are; it also says how long they are and what is observed.
    runs_of: str | None = None
    # The study whose runs of the same methods serve this one, too; its own are as long.
    shares_with: str | None = None
    observers: Mapping[tuple[str, str], tuple[type[Observer], ...]] = field(default_factory=dict)

    @property
    def home(self) -> Study:
        """The study that owns the runs, but for those of `shares_with`."""
        return STUDIES[self.runs_of] if self.runs_of else self

    def part(self, datasets: Sequence[str] | None, methods: Sequence[str] | None) -> Study:
        """Return the study with some of its data sets and methods, or all; name what it has not."""
        chosen: dict[str, Any] = {}
        for name, wanted in (("datasets", datasets), ("methods", methods)):
            there = getattr(self, name)
            for value in wanted or ():
                if value not in there:
                    raise ValueError(
                        f"{name}: expected one of {', '.join(there) or 'none'} ({self.key}), "
                        f"got {value!r}"
                    )
            chosen[name] = there if wanted is None else tuple(v for v in there if v in wanted)
        return replace(self, runs_of=self.home.key, **chosen)

    def conditions(self, profile: str, seeds: Sequence[int] | None = None) -> list[Condition]:
        """Return the conditions of a profile, data set by data set."""
        chosen = self.home.seeds.get(profile, ()) if seeds is None else tuple(seeds)
        return [
            Condition(self._owner(method), profile, dataset, method, seed)
            for dataset in self.datasets
            for seed in chosen
            for method in self.methods
            if excluded(dataset, method) is None
        ]

    def _owner(self, method: str) -> str:
        """Return the key of the study that owns a method's runs."""
        home, other = self.home, self.home.shares_with
        return other if other and method in STUDIES[other].methods else home.key


_SET = ("set-relu", "set-all-relu")
_REAL = ("fashion-mnist", "cifar10", "madelon", "higgs")


def _looked_on() -> dict[tuple[str, str], tuple[type[Observer], ...]]:
    """Return who observes T-main's runs: the figures about training are made of them, too."""
    found: dict[tuple[str, str], tuple[type[Observer], ...]] = {}
    for dataset in (*_REAL, "leukemia"):
        for method in (*_SET, "set-leaky-relu"):
            found[dataset, method] = (ObserveGradientFlow,)
    found["fashion-mnist", "set-all-relu"] += (ObserveTopology,)
    for dataset in ("fashion-mnist", "madelon"):
        found[dataset, "set-all-relu"] += (ObserveImportance, ObservePruning)
        found[dataset, "set-all-relu-pruned"] = (ObserveImportance,)
    return found


STUDIES: dict[str, Study] = {
    study.key: study
    for study in (
        Study("T-datasets", "the data sets: domain, features, classes, sizes, source, hash"),
        Study("T-hyper", "the hyperparameters, and where each value comes from"),
        Study("F-overview", "the schematic of WASAP-SGD"),
        Study(
            "F-speed",
            "time per training step, the peers, the machine's ceilings",
        ),
        Study(
            "F-parallel",
            "WASAP, WASSP and sequential against epochs and seconds; staleness; replay",
        ),
        Study("F-resources", "CPU and memory over time of each rank", runs_of="F-parallel"),
        Study(
            "F-scaling",
            "speed-up per worker, measured, and simulated to 1024",
        ),
        Study(
            "T-extreme",
            "up to 2·10⁸ neurons: memory, time, learning",
        ),
        Study("T-estimator", "the estimator's defaults on users' tables, and scikit-learn's"),
        Study(
            "T-main",
            "dense, sparse and parallel methods: accuracy, connections, time, speed against dense",
            datasets=(*_REAL, "leukemia", "digits"),
            methods=("dense", *_SET, "set-all-relu-pruned", "wassp", "wasap", "wasap-pruned"),
            seeds={"quick": (0, 1), "paper": (0, 1, 2)},
            quick={
                "fashion-mnist": {"epochs": 6},
                "cifar10": {"epochs": 4},
                "madelon": {"epochs": 60},
                "higgs": {"epochs": 6},
                "leukemia": {"epochs": 2},
                "digits": {"epochs": 40},
            },
            quick_rows={
                "fashion-mnist": (4_000, 2_000),
                "cifar10": (1_000, 500),
                "higgs": (3_000, 2_000),
                "leukemia": (100, 100),
            },
            observers=_looked_on(),
        ),
        Study(
            "F-curves",
            "accuracy and loss against epoch, ReLU and All-ReLU",
            datasets=(*_REAL, "leukemia", "digits"),
            methods=_SET,
            runs_of="T-main",
        ),
        Study(
            "F-gradient-flow",
            "gradient flow against epoch, ReLU, LeakyReLU and All-ReLU",
            datasets=_REAL,
            methods=("set-relu", "set-leaky-relu", "set-all-relu"),
            runs_of="T-main",
        ),
        Study(
            "F-alpha",
            "sensitivity to α, ε and ζ",
            datasets=("fashion-mnist", "madelon"),
            methods=(
                *_SET,
                *(f"{n}-{v:g}" for n, (_, vs) in SENSITIVITIES.items() for v in vs),
            ),
            seeds={"quick": (0, 1), "paper": (0, 1, 2)},
            shares_with="T-main",
        ),
        Study(
            "F-importance",
            "neuron importance over training; pruning by it during and after training",
            datasets=("fashion-mnist", "madelon"),
            methods=("set-all-relu", "set-all-relu-pruned"),
            runs_of="T-main",
        ),
        Study(
            "F-topology",
            "degrees before and after training; strength of the input pixels' connections",
            datasets=("fashion-mnist",),
            methods=("set-all-relu",),
            runs_of="T-main",
        ),
        Study(
            "L-claims",
            "the paper's claims: rule, evidence, verdict",
            datasets=(*_REAL, "leukemia"),
            methods=("dense", *_SET, "set-all-relu-pruned", "wasap"),
            runs_of="T-main",
        ),
    )
}

_MOST_BYTES = 4 * 2**30


def sizes(dataset: str) -> tuple[int, ...]:
    """Return the neurons per layer of a data set's network: features, hidden layers, classes."""
    facts: dict[str, Any] = datasets.describe(dataset)
    return (facts["n_features"], *setting(dataset).config.hidden, facts["n_classes"])


def excluded(dataset: str, method: str) -> str | None:
    """Return why a method does not run on a data set on any machine; None if it does."""
    name, _, value = method.rpartition("-")
    if name in SENSITIVITIES and getattr(setting(dataset).config, name) == float(value):
        return "not run: the setting's own value, which SET-All-ReLU has"
    if not METHODS[method].dense:
        return None
    n_bytes = 8 * sum(a * b for a, b in itertools.pairwise(sizes(dataset)))
    if n_bytes <= _MOST_BYTES:
        return None
    return f"not run: weights and velocity alone would take {n_bytes / 2**30:.1f} GiB"


@dataclass(frozen=True)
class Condition:
    """One run: where it belongs, and all that determines its configuration."""

    study: str
    profile: str
    dataset: str
    method: str
    seed: int

    @property
    def name(self) -> str:
        """The run's name, and its file's."""
        return f"{self.dataset}-{self.method}-seed{self.seed}"

    @property
    def _measure(self) -> Study:
        """The study that says how long runs are in the quick profile."""
        study = STUDIES[self.study]
        return STUDIES[study.shares_with] if study.shares_with else study

    @property
    def config(self) -> TrainConfig:
        """The data set's setting, changed by the profile and then by the method."""
        config = setting(self.dataset).config
        changes = METHODS[self.method].changes
        if self.profile == "paper":
            return config.with_values(**changes)
        # Importance pruning starts after 40 % of the epochs, then every tenth part (or fifth).
        config = config.with_values(**self._measure.quick.get(self.dataset, {}))
        if changes.get("prune_from") is not None:
            every = changes.get("prune_every", config.prune_every) * config.epochs / 100
            schedule = {"prune_from": 4 * config.epochs // 10, "prune_every": round(every)}
            changes = {**changes, **{name: max(1, epoch) for name, epoch in schedule.items()}}
        return config.with_values(**changes)

    @property
    def limit(self) -> dict[str, int | None]:
        """How many rows are taken at most, "train" and "test"; None: all."""
        rows = self._measure.quick_rows.get(self.dataset)
        if self.profile == "paper" or rows is None:
            return {"train": None, "test": None}
        return {"train": rows[0], "test": rows[1]}

    @property
    def observers(self) -> tuple[type[Observer], ...]:
        """Who looks on."""
        return STUDIES[self.study].observers.get((self.dataset, self.method), ())

    @property
    def work(self) -> int:
        """An epoch's work, for the progress bar: connections × samples, and what comes on top."""
        facts: dict[str, Any] = datasets.describe(self.dataset)
        layers = itertools.pairwise(sizes(self.dataset))
        if METHODS[self.method].dense:  # BLAS takes half as long for a weight
            nnz = 0.5 * sum(a * b for a, b in layers)
        else:
            epsilon = self.config.epsilon
            nnz = sum(erdos_renyi_density(a, b, epsilon) * a * b for a, b in layers)
        rows = [
            min(facts[f"n_{part}"], limit or facts[f"n_{part}"])
            for part, limit in self.limit.items()
        ]
        return round(nnz * (rows[0] + rows[1] / 3) + 5e7)


def find(key: str) -> Study:
    """Return a study by its key; a ValueError lists all keys."""
    if key not in STUDIES:
        raise ValueError(f"study: expected one of {', '.join(STUDIES)}, got {key!r}")
    return STUDIES[key]
