"""The studies: which runs each table and figure is made of, and how one comes by them: run or load.

A study is a list of conditions (method × data set × seed); the profile says how long each run is.
Results that are there and still valid are read; what is missing, stale or damaged is computed and
written at once, so that an interruption loses only the run in progress. Hyperparameters are those
of `settings`, files those of `results`; how results are shown is for `figures` and `tables`.
"""

from __future__ import annotations

import hashlib
import importlib
import itertools
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from sparsecore import datasets
from sparsecore.datasets import DataNotAvailable
from sparsecore.paper import results
from sparsecore.paper.observers import (
    ObserveGradientFlow,
    ObserveImportance,
    ObservePruning,
    Observer,
    ObserveTopology,
)
from sparsecore.paper.results import ResultError, ResultWarning
from sparsecore.paper.settings import setting
from sparsecore.provenance import provenance
from sparsecore.topology import erdos_renyi_density
from sparsecore.train import TrainConfig

ENVIRONMENT = "SPARSECORE_PROFILE"
PROFILES = ("quick", "paper")

Result = dict[str, Any]


@dataclass(frozen=True)
class Method:
    """A way of training: what it changes in a data set's setting, and what runs it.

    Attributes
    ----------
    label : str
        As figures and tables call it.
    changes : mapping
        Values of `TrainConfig` fields.
    runner : str
        A module whose ``run(data, config, seed=…, observe=…)`` returns a model and the result that
        `experiment.run` documents.
    """

    label: str
    changes: Mapping[str, Any]
    runner: str = "sparsecore.experiment"

    @property
    def dense(self) -> bool:
        """Whether all connections exist."""
        return self.runner == DENSE


DENSE = "sparsecore.paper.dense"

METHODS: dict[str, Method] = {
    "dense": Method("dense", {"activation": "relu", "zeta": 0.0}, DENSE),
    "set-relu": Method("SET-ReLU", {"activation": "relu"}),
    "set-leaky-relu": Method("SET-LeakyReLU", {"activation": "leaky-relu"}),
    "set-all-relu": Method("SET-All-ReLU", {"activation": "all-relu"}),
    "set-all-relu-pruned": Method(
        "SET-All-ReLU with importance pruning", {"activation": "all-relu", "prune_from": 200}
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

    Attributes
    ----------
    key : str
        As the book calls it.
    content : str
        What it shows, in one line.
    datasets, methods : tuple of str
        Every method runs on every data set, unless `excluded` says why not. Both empty: the study
        needs no run.
    seeds : mapping of str to tuple of int
        Per profile.
    quick : mapping
        Per data set, the fields of `TrainConfig` that the quick profile changes. The schedule of
        importance pruning is scaled to the epochs: from 40 % of them on, every tenth part.
    quick_rows : mapping
        Per data set, how many rows for training and for the test the quick profile takes at most.
    runs_of : str or None
        Key of the study whose runs these are; it also says how long they are and what is observed.
    observers : mapping
        Per (data set, method), who looks on.
    """

    key: str
    content: str
    datasets: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    seeds: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    quick: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    quick_rows: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    runs_of: str | None = None
    observers: Mapping[tuple[str, str], tuple[type[Observer], ...]] = field(default_factory=dict)

    @property
    def home(self) -> Study:
        """The study that owns the runs."""
        return STUDIES[self.runs_of] if self.runs_of else self

    def conditions(self, profile: str, seeds: Sequence[int] | None = None) -> list[Condition]:
        """Return the conditions of a profile, data set by data set."""
        chosen = self.home.seeds.get(profile, ()) if seeds is None else tuple(seeds)
        return [
            Condition(self.home.key, profile, dataset, method, seed)
            for dataset in self.datasets
            for seed in chosen
            for method in self.methods
            if excluded(dataset, method) is None
        ]


_SET = ("set-relu", "set-all-relu")
_REAL = ("fashion-mnist", "cifar10", "madelon", "higgs")


def _looked_on() -> dict[tuple[str, str], tuple[type[Observer], ...]]:
    """Return who observes T-main's runs: the figures about training are made of them, too."""
    found: dict[tuple[str, str], tuple[type[Observer], ...]] = {}
    for dataset in _REAL:
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
        Study("F-speed", "time per training step, the peers, the machine's ceilings; see `speed`"),
        Study(
            "T-main",
            "dense and sparse methods: accuracy, connections, time, speed against dense",
            datasets=(*_REAL, "leukemia", "digits"),
            methods=("dense", *_SET, "set-all-relu-pruned"),
            seeds={"quick": (0, 1), "paper": (0, 1, 2)},
            quick={
                "fashion-mnist": {"epochs": 10},
                "cifar10": {"epochs": 5},
                "madelon": {"epochs": 100},
                "higgs": {"epochs": 10},
                "leukemia": {"epochs": 2},
                "digits": {"epochs": 40},
            },
            quick_rows={
                "fashion-mnist": (10_000, 10_000),
                "cifar10": (2_000, 2_000),
                "higgs": (8_000, 4_000),
                "leukemia": (200, 100),
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
            quick={"fashion-mnist": {"epochs": 6}, "madelon": {"epochs": 60}},
            quick_rows={"fashion-mnist": (6_000, 4_000)},
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
            methods=("dense", *_SET, "set-all-relu-pruned"),
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
    def path(self) -> Path:
        """The result file."""
        return results.root() / self.profile / self.study / f"{self.name}.json"

    @property
    def config(self) -> TrainConfig:
        """The data set's setting, changed by the profile and then by the method."""
        config = setting(self.dataset).config
        changes = METHODS[self.method].changes
        if self.profile == "paper":
            return config.with_values(**changes)
        config = config.with_values(**STUDIES[self.study].quick.get(self.dataset, {}))
        if changes.get("prune_from") is not None:
            schedule = {"prune_from": 4 * config.epochs // 10, "prune_every": config.epochs // 10}
            changes = {**changes, **{name: max(1, epoch) for name, epoch in schedule.items()}}
        return config.with_values(**changes)

    @property
    def limit(self) -> dict[str, int | None]:
        """How many rows are taken at most, "train" and "test"; None: all."""
        rows = STUDIES[self.study].quick_rows.get(self.dataset)
        if self.profile == "paper" or rows is None:
            return {"train": None, "test": None}
        return {"train": rows[0], "test": rows[1]}

    @property
    def observers(self) -> tuple[type[Observer], ...]:
        """Who looks on."""
        return STUDIES[self.study].observers.get((self.dataset, self.method), ())

    @property
    def code_sha256(self) -> str:
        """Digest of the code that determines the result."""
        runner = METHODS[self.method].runner
        parts = [results.code_sha256(runner, "sparsecore.datasets.dataset")]
        parts += [observer.code_sha256() for observer in self.observers]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    @property
    def work(self) -> float:
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
        return nnz * (rows[0] + rows[1] / 3) + 5e7


@dataclass(frozen=True)
class Results:
    """The results of a study in one profile.

    Attributes
    ----------
    study : Study
    profile : str
    runs : list of dict
        What the result files hold.
    unavailable : frozenset of str
        Data sets that this machine cannot have.
    diverged : list of dict
        What the result files of runs hold that came to no end, because their loss did not stay
        finite.
    recorded : bool
        Read from what is recorded, to stand beside this build's own results.
    older : bool
        Some of it was computed by an earlier state of the code.
    """

    study: Study
    profile: str
    runs: list[Result]
    unavailable: frozenset[str] = frozenset()
    diverged: list[Result] = field(default_factory=list)
    recorded: bool = False
    older: bool = False

    def of(self, dataset: str, method: str) -> list[Result]:
        """Return the runs of a method on a data set, one per seed."""
        wanted = {"dataset": dataset, "method": method}
        return [run for run in self.runs if run["condition"] == wanted]

    @property
    def suffix(self) -> str:
        """What tells recorded results' figures from this build's own."""
        return "-recorded" if self.recorded else ""

    def title(self, dataset: str) -> str:
        """Return a data set's title; it says so if a surrogate stands in."""
        surrogate = any(
            run["data"]["surrogate"] for run in self.runs if run["condition"]["dataset"] == dataset
        )
        return str(datasets.describe(dataset)["title"]) + ", surrogate" * surrogate

    def epochs(self, dataset: str) -> int:
        """Return how many epochs the runs on a data set take."""
        return Condition(
            self.study.home.key, self.profile, dataset, self.study.methods[0], 0
        ).config.epochs

    def size(self, dataset: str) -> str:
        """Return how long the runs on a data set are, such as "10 epochs of 12,000 rows"."""
        rows = {
            run["data"]["n_train"] for run in self.runs if run["condition"]["dataset"] == dataset
        }
        of_rows = f" of {_listed(f'{n:,}' for n in rows)} rows" if rows else ""
        return f"{self.epochs(dataset)} epochs{of_rows}"

    @property
    def provenance(self) -> str:
        """One line: profile, seeds, code, machine."""
        seeds = sorted({run["seed"] for run in self.runs})
        about = [run["provenance"] for run in self.runs]
        commits = {
            p["commit"][:7] + " with changes" * p["commit"].endswith("+")
            for p in about
            if p.get("commit")
        }
        parts = [
            f"profile {self.profile}",
            f"seed{'s' * (len(seeds) > 1)} {_listed(seeds)}",
            f"sparsecore {_listed({p['sparsecore'] for p in about})}",
            *([f"commit {_listed(commits)}"] if commits else []),
            _listed({p["cpu"] for p in about}),
            f"threads: {_listed({p['threads'] for p in about})}",
        ]
        if self.older:
            parts.append("in part computed by an earlier state of the code")
        return ", ".join(parts) if self.runs else f"profile {self.profile}, no runs"

    def __repr__(self) -> str:
        missing = f", not available: {_listed(self.unavailable)}" if self.unavailable else ""
        return f"<Results {self.study.key}, {self.profile}: {len(self.runs)} runs{missing}>"


def _listed(values: Iterable[Any]) -> str:
    return ", ".join(str(value) for value in sorted(values))


def find(key: str) -> Study:
    """Return a study by its key.

    Raises
    ------
    ValueError
        If there is none; the message lists them.
    """
    if key not in STUDIES:
        raise ValueError(f"study: expected one of {', '.join(STUDIES)}, got {key!r}")
    return STUDIES[key]


def current_profile(profile: str | None = None) -> str:
    """Return `profile`, or else ``$SPARSECORE_PROFILE``, or else "quick".

    Raises
    ------
    ValueError
        If it is not one of `PROFILES`.
    """
    chosen = profile or os.environ.get(ENVIRONMENT) or "quick"
    if chosen not in PROFILES:
        where = "profile" if profile else f"${ENVIRONMENT}"
        raise ValueError(f"{where}: expected one of {', '.join(PROFILES)}, got {chosen!r}")
    return chosen


def load(
    key: str,
    profile: str | None = None,
    seeds: Sequence[int] | None = None,
    *,
    progress: bool = True,
) -> Results:
    """Return a study's results; run what is missing, stale or damaged.

    Parameters
    ----------
    key : str
        Such as "F-curves".
    profile : {"quick", "paper"}, optional
        See `current_profile`.
    seeds : sequence of int, optional
        Instead of those of the profile.
    progress : bool
        Show a bar that says how long is left.

    Returns
    -------
    Results

    Raises
    ------
    ValueError
        If the study or the profile is unknown.

    Warns
    -----
    ResultWarning
        For a damaged or foreign file, with its name; it is replaced.
    """
    study, profile = find(key), current_profile(profile)
    runs: dict[Condition, Result] = {}
    todo = []
    for condition in (conditions := study.conditions(profile, seeds)):
        result, state = look(condition)
        if result is not None:
            runs[condition] = result
            continue
        todo.append(condition)
        if state.startswith("damaged"):
            warnings.warn(
                f"{condition.path.name} of {condition.study}, {profile}: {state}; it is computed "
                f"anew",
                ResultWarning,
                stacklevel=2,
            )
    unavailable: set[str] = set()
    with tqdm(
        total=sum(c.work * c.config.epochs for c in todo),
        bar_format="{desc} {percentage:3.0f} % |{bar}| {elapsed} gone, {remaining} left",
        disable=not (progress and todo),
        mininterval=0.5 if sys.stderr.isatty() else 10,  # a log is not flooded
    ) as bar:
        for number, condition in enumerate(todo, 1):
            bar.set_description_str(f"{key} {number}/{len(todo)} {condition.name}")
            if condition.dataset not in unavailable:  # asking again could mean to wait again
                try:
                    runs[condition] = _run(condition, bar.update)
                    continue
                except DataNotAvailable:
                    unavailable.add(condition.dataset)
            bar.total -= condition.work * condition.config.epochs
    ended, diverged = _sorted([runs[c] for c in conditions if c in runs])
    return Results(study, profile, ended, frozenset(unavailable), diverged)


def _sorted(runs: Iterable[Result]) -> tuple[list[Result], list[Result]]:
    """Return the runs that came to their end, and those that diverged."""
    both: tuple[list[Result], list[Result]] = ([], [])
    for run in runs:
        both["diverged" in run].append(run)
    return both


def recorded(key: str) -> Results:
    """Return a study's recorded results of profile "paper", without running anything.

    Parameters
    ----------
    key : str

    Returns
    -------
    Results
        What is there and belongs to today's configuration. None if this build's own profile is
        "paper": `load` has them.

    Warns
    -----
    ResultWarning
        For a damaged or foreign file, with its name; it is left out.
    """
    study, runs, older = find(key), [], False
    for condition in study.conditions("paper") if current_profile() != "paper" else []:
        result, state = _read(condition)
        if result is None:
            if state.startswith("damaged"):
                warnings.warn(
                    f"{condition.path.name} of {condition.study}, paper: {state}; it is left out",
                    ResultWarning,
                    stacklevel=2,
                )
            continue
        if _stale_config(condition, result):
            continue
        # Without the data here the recorded result is all the more worth showing.
        digest = _data_sha256(condition.dataset)
        if digest not in (None, result["provenance"].get("data_sha256")):
            continue
        older |= result["code_sha256"] != condition.code_sha256
        runs.append(result)
    ended, diverged = _sorted(runs)
    return Results(study, "paper", ended, diverged=diverged, recorded=True, older=older)


def look(condition: Condition) -> tuple[Result | None, str]:
    """Look at a condition's result file without running anything.

    Returns
    -------
    result : dict or None
        None unless the file is valid.
    state : str
        "present", "missing", or "stale" or "damaged" with the reason.
    """
    result, state = _read(condition)
    if result is None:
        return None, state
    if stale := _stale_config(condition, result):
        return None, stale
    if result["code_sha256"] != condition.code_sha256:
        return None, "stale: the code that trains has changed"
    if result["provenance"].get("data_sha256") != _data_sha256(condition.dataset):
        return None, "stale: the data have changed"
    return result, "present"


def _read(condition: Condition) -> tuple[Result | None, str]:
    """Return a condition's result, whatever its age, or None and why not."""
    try:
        result = results.read(condition.path)
    except FileNotFoundError:
        return None, "missing"
    except (ResultError, OSError) as error:
        return None, f"damaged: {error}"
    identity = {
        "study": condition.study,
        "profile": condition.profile,
        "condition": {"dataset": condition.dataset, "method": condition.method},
        "seed": condition.seed,
    }
    for name, value in identity.items():
        if result[name] != value:
            return None, f"damaged: a result of another run ({name} {result[name]!r})"
    return result, "present"


def _stale_config(condition: Condition, result: Result) -> str:
    """Return in what the result's configuration is not today's; "" if it is."""
    config = {"dataset": condition.dataset, **condition.config.to_dict()}
    for name, value in config.items():
        if result["config"].get(name) != value:
            return f"stale: {name} was {result['config'].get(name)!r}, is now {value!r}"
    for part, limit in condition.limit.items():
        if result["limit"][part] != limit:
            was, now = (f"{n:,}" if n else "all" for n in (result["limit"][part], limit))
            return f"stale: rows ({part}) were {was}, are now {now}"
    return ""


def _run(condition: Condition, advance: Callable[[float], Any]) -> Result:
    data, config = _limited(_data(condition.dataset), **condition.limit), condition.config
    observers = [make(config, data) for make in condition.observers]
    calls = 0

    def observe(model: Any) -> dict[str, Any]:
        nonlocal calls
        calls += 1
        if calls > 1:  # the first is before the first epoch
            advance(condition.work)
        return {name: value for see in observers for name, value in see(model).items()}

    runner = importlib.import_module(METHODS[condition.method].runner)
    try:
        _, result = runner.run(data, config, seed=condition.seed, observe=observe)
    except FloatingPointError as error:  # a finding, and not to be computed again each time
        advance(condition.work * (config.epochs - max(0, calls - 1)))
        result = {
            "config": {"dataset": data.name, "n_train": len(data.y_train), **config.to_dict()},
            "seed": condition.seed,
            "diverged": str(error),
            "provenance": provenance(1, data.content_hash),
        }
    about = {
        "study": condition.study,
        "profile": condition.profile,
        "condition": {"dataset": condition.dataset, "method": condition.method},
        "limit": condition.limit,
        "code_sha256": condition.code_sha256,
        "data": {
            "title": datasets.describe(condition.dataset)["title"],
            "domain": data.domain,
            "n_features": data.n_features,
            "n_classes": data.n_classes,
            "n_train": len(data.y_train),
            "n_test": len(data.y_test),
            "source": data.source,
            "surrogate": data.surrogate,
        },
    }
    results.write(condition.path, {**about, **result})
    return results.read(condition.path)


def _limited(data: datasets.Dataset, train: int | None, test: int | None) -> datasets.Dataset:
    """Return so many rows at most: stratified for training, drawn at random for the test."""
    if train is not None and train < len(data.y_train):
        data = data.limited(train)
    if test is not None and test < len(data.y_test):
        rng = np.random.default_rng(0)
        rows = np.sort(rng.choice(len(data.y_test), test, replace=False))
        data = replace(data, X_test=data.X_test[rows], y_test=data.y_test[rows])
    return data


@cache
def _data_sha256(name: str) -> str | None:
    """Return the hash of the data as they are; where it is pinned, without reading them."""
    pinned = datasets.describe(name)["sha256"]
    if pinned is not None:
        return str(pinned)
    try:
        return _data(name).content_hash
    except DataNotAvailable:
        return None


_last_data: list[datasets.Dataset] = []


def _data(name: str) -> datasets.Dataset:
    """Return a data set; the last one is kept, since runs come data set by data set."""
    if not _last_data or _last_data[0].name != name:
        _last_data[:] = []  # before the next is read: two may not fit
        _last_data[:] = [datasets.load(name)]
    return _last_data[0]
