"""The studies: which runs each table and figure is made of (method × data set × seed)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sparsecore import datasets, experiment
from sparsecore.config import TrainConfig, names
from sparsecore.paper.training import dense, observers, on_cluster
from sparsecore.paper.training.observers import Make, observe_gradient_flow, observe_importance
from sparsecore.settings import DECAYS, setting
from sparsecore.topology import erdos_renyi_density
from sparsecore.wasap.plan import Plan


@dataclass(frozen=True)
class Method:
    """A way of training: its changes to a setting, and a runner like `experiment.run`."""

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


_ALL_RELU = {"activation": "all-relu"}
_PRUNED = {**_ALL_RELU, "prune_from": 200}
_WASSP = on_cluster.run, {"plan": Plan("wassp")}
_WASAP = on_cluster.run, {"plan": Plan("wasap")}
METHODS: dict[str, Method] = {
    "dense": Method("dense", {"activation": "relu", "zeta": 0.0}, dense.run),
    "set-relu": Method("SET-ReLU", {"activation": "relu"}),
    "set-leaky-relu": Method("SET-LeakyReLU", {"activation": "leaky-relu"}),
    "set-leaky-relu-0.25": Method(
        "SET-LeakyReLU, slope 0.25", {"activation": "leaky-relu", "alpha": 0.25}
    ),
    "set-all-relu": Method("SET-All-ReLU", _ALL_RELU),
    "set-all-relu-pruned": Method("SET-All-ReLU, pruned", _PRUNED),
    "set-all-relu-pruned-released": Method(
        "SET-All-ReLU, pruned by the released rule",
        {**_PRUNED, "prune_from": 211, "prune_counts_empty": True},
    ),
    "wassp": Method("WASSP", _ALL_RELU, *_WASSP),
    "wassp-released": Method(
        "WASSP, K-fold rate in phase 2", _ALL_RELU, on_cluster.run,
        {"plan": Plan("wassp", keep_rate=True)},
    ),
    "wasap": Method("WASAP", _ALL_RELU, *_WASAP),
    "wasap-pruned": Method(
        "WASAP, pruned", {**_PRUNED, "prune_every": 20, "prune_percentile": 10},
        *_WASAP,
    ),
}  # fmt: skip

# One hyperparameter at a time takes these values; its value in the setting is "set-all-relu"'s, and
# α = 0 is "set-relu".
SENSITIVITIES: dict[str, tuple[str, tuple[float, ...]]] = {
    "alpha": ("α", (0.2, 0.4, 0.8, 1.0)),
    "epsilon": ("ε", (5, 10, 40)),
    "zeta": ("ζ", (0.0, 0.1, 0.5)),
}
METHODS |= {
    f"{name}-{value:g}": Method(f"SET-All-ReLU, {symbol} = {value:g}", {**_ALL_RELU, name: value})
    for name, (symbol, values) in SENSITIVITIES.items()
    for value in values
}


@dataclass(frozen=True)
class Study:
    """The runs that a table or figure is made of: methods, data sets, weight decays and seeds."""

    key: str
    content: str
    datasets: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    decays: tuple[float, ...] = DECAYS[:1]
    seeds: Mapping[str, Sequence[int]] = field(default_factory=dict)
    n_seeds: Callable[[str, str, str, float], int] | None = None
    # Per data set: the fields of the configuration that the quick profile changes, and the most
    # rows that it uses for training and for the test.
    quick: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    quick_rows: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    # The study that owns the runs, except for methods and weight decays that it lacks. It also sets
    # the length of all runs, and the seeds if this study has none.
    runs_of: str | None = None
    # Train on nine tenths of the training rows, and test on the tenth: a choice needs no test rows.
    held_out: bool = False
    variants: tuple[str, ...] = ()  # more methods, for studies that take their runs from this one
    observers: Mapping[tuple[str, str], tuple[Make, ...]] = field(default_factory=dict)

    @property
    def home(self) -> Study:
        """The study that `runs_of` names, or this one."""
        return STUDIES[self.runs_of] if self.runs_of else self

    def part(self, **some: Sequence[Any] | None) -> Study:
        """Return the study with only some "datasets", "methods" or "decays"; None keeps all."""
        chosen: Any = {name: wanted for name, wanted in some.items() if wanted is not None}
        for name, wanted in chosen.items():
            there = getattr(self, name)
            for value in wanted:
                if value not in there:
                    raise ValueError(
                        f"{name}: expected one of {', '.join(map(str, there)) or 'none'} "
                        f"({self.key}), got {value!r}"
                    )
            chosen[name] = tuple(value for value in there if value in wanted)
        return replace(self, **chosen)

    def conditions(self, profile: str, seeds: Sequence[int] | None = None) -> list[Condition]:
        """Return the conditions of a profile, data set by data set; `seeds` replace the study's."""
        home, usual = self.home, self.seeds.get(profile) or self.home.seeds.get(profile, ())
        there = itertools.product((*home.methods, *home.variants), home.decays)
        owners = dict.fromkeys(there, home.key)  # of a method's runs; of others, this study
        return [
            Condition(owners.get((method, decay), self.key), profile, dataset, method, seed, decay)
            for dataset in self.datasets
            for decay in self.decays
            for number, seed in enumerate(usual if seeds is None else seeds)
            for method in self.methods
            if (number if seeds is None else 0) < self.wanted(profile, dataset, method, decay)
        ]

    def wanted(self, profile: str, dataset: str, method: str, decay: float) -> int:
        """Return how many of the profile's seeds are planned for a method."""
        if excluded(dataset, method) is not None:
            return 0
        count = self.n_seeds or self.home.n_seeds
        return 10**6 if count is None else count(profile, dataset, method, decay)


_SET = ("set-relu", "set-all-relu")
_REAL = ("fashion-mnist", "cifar10", "madelon", "higgs")
_HELD_OUT = ("fashion-mnist", "madelon", "higgs", "digits")

# Variants of T-main's methods, as the released code has them, and the data sets that they run on;
# none is part of a quick build.
_VARIANTS = {
    "set-leaky-relu-0.25": _REAL,
    "set-all-relu-pruned-released": ("fashion-mnist", "madelon"),
    "wassp-released": ("fashion-mnist", "higgs", "madelon"),
}
# Few seeds where a run takes hours; by whether weight decay is 0.
_CIFAR10 = {
    False: {"set-relu": 3, "set-all-relu": 3},
    True: {"dense": 1, "set-leaky-relu": 0, "set-leaky-relu-0.25": 1},
}


def _seeds_of_main(profile: str, dataset: str, method: str, decay: float) -> int:
    """Return the number of seeds of T-main's methods and their variants."""
    if dataset not in _VARIANTS.get(method, (dataset,)):
        return 0
    if profile == "quick":
        return int(decay == DECAYS[0] and method not in _VARIANTS)
    if dataset == "leukemia":  # a surrogate only yields times, which weight decay does not change
        return int(decay == DECAYS[0])
    if dataset == "cifar10":
        return _CIFAR10[decay == 0].get(method, 3 if decay == 0 else 0)
    if METHODS[method].dense or method in _VARIANTS or method == "set-leaky-relu":
        return 3
    return 5 if METHODS[method].parallel else 10


def _seeds_of_decay(profile: str, dataset: str, method: str, decay: float) -> int:
    """Return the number of seeds of F-decay's methods; a quick build shows one data set."""
    if profile == "quick":
        return int(dataset == "digits")
    if decay in DECAYS:  # T-main's runs
        return _seeds_of_main(profile, dataset, method, decay)
    if dataset == "cifar10":  # a run takes half an hour and more
        return 0
    return 1 if METHODS[method].dense else 3


_FIRST = {"quick": (0,), "paper": (0, 1, 2)}

# The observers of T-main's runs: the figures about training are made of these runs, too.
_ACTIVATIONS = ("set-relu", "set-leaky-relu", "set-leaky-relu-0.25", "set-all-relu")
_OBSERVERS: dict[tuple[str, str], tuple[Make, ...]] = {
    (dataset, method): (observe_gradient_flow,)
    for dataset in (*_REAL, "leukemia")
    for method in _ACTIVATIONS
}
_OBSERVERS["fashion-mnist", "set-all-relu"] += (observers.observe_topology,)
for _dataset in ("fashion-mnist", "madelon"):
    _OBSERVERS[_dataset, "set-all-relu"] += (observe_importance, observers.observe_pruning)
    _OBSERVERS[_dataset, "set-all-relu-pruned"] = (observe_importance,)

_STUDIES = (
    Study("T-datasets", "the data sets: domain, features, classes, sizes, source, hash"),
    Study("T-hyper", "the hyperparameters, and where each value comes from"),
    Study("F-overview", "the schematic of WASAP-SGD"),
    Study("F-speed", "time per training step, the peers, the machine's ceilings"),
    Study("F-parallel", "WASAP, WASSP and sequential over epochs and seconds; staleness; replay"),
    Study(
        "F-average", "accuracy before and after phase 2, and of the average",
        (*_REAL, "digits"), ("wasap", "wassp"), DECAYS, runs_of="T-main",
    ),
    Study("F-resources", "CPU and memory over time of each rank", runs_of="F-parallel"),
    Study("F-scaling", "speedup per worker, measured, and simulated to 1024"),
    Study("T-extreme", "up to 2·10⁸ neurons: memory, time, learning"),
    Study("T-reliability", "attempts to break runs, files and models"),
    Study("T-estimator", "the estimator's defaults on users' tables, and scikit-learn's"),
    Study("F-depth", "gradient flow at initialisation against depth and α"),
    Study("T-times", "seconds per epoch of all methods, which take turns on one machine"),
    Study(
        "T-main",
        "dense, sparse and parallel methods: accuracy, connections, time, speed against dense",
        (*_REAL, "leukemia", "digits"),
        ("dense", *_SET, "set-all-relu-pruned", "wassp", "wasap", "wasap-pruned"),
        DECAYS, {"quick": (0,), "paper": range(10)}, _seeds_of_main,
        quick={
            "fashion-mnist": {"epochs": 5}, "cifar10": {"epochs": 2}, "madelon": {"epochs": 40},
            "higgs": {"epochs": 6}, "leukemia": {"epochs": 2}, "digits": {"epochs": 40},
        },
        quick_rows={
            "fashion-mnist": (4_000, 2_000), "cifar10": (1_000, 500), "higgs": (3_000, 2_000),
            "leukemia": (100, 100),
        },
        observers=_OBSERVERS, variants=("set-leaky-relu", *_VARIANTS),
    ),
    Study(
        "F-curves", "accuracy and loss against epoch, ReLU and All-ReLU",
        (*_REAL, "digits"), _SET, DECAYS, runs_of="T-main",
    ),
    Study(
        "F-gradient-flow", "gradient flow against epoch, ReLU, LeakyReLU and All-ReLU", _REAL,
        _ACTIVATIONS, DECAYS, runs_of="T-main",
    ),
    Study(
        "F-alpha", "sensitivity to α, ε and ζ", ("fashion-mnist", "madelon"),
        ("dense", *_SET, *(f"{n}-{v:g}" for n, (_, vs) in SENSITIVITIES.items() for v in vs)),
        seeds=_FIRST, runs_of="T-main",
    ),
    Study(
        "F-decay", "accuracy against weight decay λ, dense, SET-ReLU and SET-All-ReLU",
        (*_REAL, "digits"), ("dense", *_SET), (0.0, 2e-6, 2e-5, 2e-4),
        n_seeds=_seeds_of_decay, runs_of="T-main",
    ),
    Study(
        "T-held-out", "accuracy on held-out training rows, with weight decay and without",
        _HELD_OUT, ("set-all-relu",), DECAYS, _FIRST, held_out=True,
        quick={name: {"epochs": 5} for name in _HELD_OUT},
        quick_rows={"fashion-mnist": (4_000, 2_000), "higgs": (3_000, 2_000)},
    ),
    Study(
        "T-deviations", "the differences from the released code, and their effects", _REAL,
        (*_ACTIVATIONS, "set-all-relu-pruned", "set-all-relu-pruned-released", "wassp",
         "wassp-released"), DECAYS, runs_of="T-main",
    ),
    Study(
        "F-importance", "neuron importance over training; pruning by it during and after training",
        (*_REAL, "digits"), ("set-all-relu", "set-all-relu-pruned"), DECAYS, runs_of="T-main",
    ),
    Study(
        "F-topology", "degrees before and after training; strength of input pixels' connections",
        ("fashion-mnist",), ("set-all-relu",), DECAYS, _FIRST, runs_of="T-main",
    ),
    Study(
        "L-claims", "the paper's claims: rule, evidence, verdict", (*_REAL, "leukemia"),
        ("dense", *_SET, "set-all-relu-pruned", "wasap"), DECAYS, runs_of="T-main",
    ),
)  # fmt: skip
STUDIES: dict[str, Study] = {study.key: study for study in _STUDIES}

_MOST_BYTES = 4 * 2**30


def sizes(dataset: str) -> tuple[int, ...]:
    """Return the neurons per layer of a data set's network: features, hidden layers, classes."""
    facts: dict[str, Any] = datasets.describe(dataset)
    return (facts["n_features"], *setting(dataset).config.hidden, facts["n_classes"])


def excluded(dataset: str, method: str) -> str | None:
    """Return why a method does not run on a data set on any machine; None if it does."""
    name, _, value = method.rpartition("-")
    if name in SENSITIVITIES and getattr(setting(dataset).config, name) == float(value):
        return "not run: it is the setting's value, so the runs are SET-All-ReLU's"
    if not METHODS[method].dense:
        return None
    n_bytes = 8 * sum(a * b for a, b in itertools.pairwise(sizes(dataset)))
    if n_bytes <= _MOST_BYTES:
        return None
    most = f"the study's limit is {_MOST_BYTES / 2**30:.0f} GiB"
    return f"not run: weights and velocity would take {n_bytes / 2**30:.1f} GiB, and {most}"


@dataclass(frozen=True)
class Condition:
    """One run: where it belongs, and all that determines its configuration."""

    study: str
    profile: str
    dataset: str
    method: str
    seed: int
    decay: float = DECAYS[0]

    @property
    def name(self) -> str:
        """The run's name, and its file's."""
        decay = "" if self.decay == DECAYS[0] else f"-decay{self.decay:g}"
        return f"{self.dataset}-{self.method}{decay}-seed{self.seed}"

    @property
    def config(self) -> TrainConfig:
        """The data set's setting, changed by the profile and then by the method."""
        config = setting(self.dataset).config.with_values(weight_decay=self.decay)
        changes = METHODS[self.method].changes
        if self.profile == "paper":
            return config.with_values(**changes)
        # Importance pruning starts after 40 % of the epochs, then every tenth part (or fifth).
        config = config.with_values(**STUDIES[self.study].home.quick.get(self.dataset, {}))
        if changes.get("prune_from") is not None:
            every = changes.get("prune_every", config.prune_every) * config.epochs / 100
            schedule = {"prune_from": 4 * config.epochs // 10, "prune_every": round(every)}
            changes = {**changes, **{name: max(1, epoch) for name, epoch in schedule.items()}}
        return config.with_values(**changes)

    @property
    def limit(self) -> dict[str, int | None]:
        """The most rows to use, "train" and "test"; None: all."""
        quick = {} if self.profile == "paper" else STUDIES[self.study].home.quick_rows
        train, test = quick.get(self.dataset, (None, None))
        return {"train": train, "test": test}

    @property
    def observers(self) -> tuple[Make, ...]:
        """The observers; only the figure of gradient flow needs more than three seeds."""
        found = STUDIES[self.study].observers.get((self.dataset, self.method), ())
        return tuple(see for see in found if self.seed < 3 or see is observe_gradient_flow)

    @property
    def work(self) -> int:
        """An epoch's work, for the progress bar: connections × samples, plus overhead."""
        facts: dict[str, Any] = datasets.describe(self.dataset)
        layers = itertools.pairwise(sizes(self.dataset))
        if METHODS[self.method].dense:  # BLAS takes half as long for a weight
            nnz = 0.5 * sum(a * b for a, b in layers)
        else:
            epsilon = self.config.epsilon
            nnz = sum(erdos_renyi_density(a, b, epsilon) * a * b for a, b in layers)
        train, test = (limit or facts[f"n_{part}"] for part, limit in self.limit.items())
        # Per step, moving all weights takes as long as about fifty samples.
        rows = min(train, facts["n_train"]) * (1 + 50 / self.config.batch_size)
        return round(nnz * (rows + min(test, facts["n_test"]) / 3) + 5e7)


def find(key: str) -> Study:
    """Return a study by its key; a ValueError lists all keys."""
    return STUDIES[names(STUDIES).check("study", key)]
