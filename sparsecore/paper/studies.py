"""The studies: which runs each table and figure is made of, and how one comes by them: run or load.

A study is a list of conditions (method × data set × seed); the profile says how long each run is.
Results that are there and still valid are read; what is missing, stale or damaged is computed and
written at once, so that an interruption loses only the run in progress. Hyperparameters are those
of `settings`, files those of `results`; how results are shown is for `figures` and `tables`.
"""

from __future__ import annotations

import hashlib
import inspect
import itertools
import os
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from sparsecore import datasets, experiment
from sparsecore.datasets import DataNotAvailable
from sparsecore.mlp import SparseMLP
from sparsecore.paper import results
from sparsecore.paper.results import ResultError, ResultWarning
from sparsecore.paper.settings import setting
from sparsecore.topology import erdos_renyi_density
from sparsecore.train import TrainConfig

ENVIRONMENT = "SPARSECORE_PROFILE"
PROFILES = ("quick", "paper")

Result = dict[str, Any]
Observe = Callable[[SparseMLP], dict[str, Any]]


@dataclass(frozen=True)
class Method:
    """A way of training: what it changes in a data set's setting.

    Attributes
    ----------
    label : str
        As figures and tables call it.
    changes : mapping
        Values of `TrainConfig` fields.
    """

    label: str
    changes: Mapping[str, Any]


METHODS: dict[str, Method] = {
    "set-relu": Method("SET-ReLU", {"activation": "relu"}),
    "set-all-relu": Method("SET-All-ReLU", {"activation": "all-relu"}),
    "set-all-relu-pruned": Method(
        "SET-All-ReLU with importance pruning", {"activation": "all-relu", "prune_from": 200}
    ),
}


class ObserveTopology:
    """Observes degrees and input strengths at epochs 0, 1, 2, 5, 10, 20, 50, … and at the last.

    Parameters
    ----------
    config : TrainConfig
    """

    def __init__(self, config: TrainConfig) -> None:
        self._epoch = -1
        self._due = {0, config.epochs} | {k * 10**e for k in (1, 2, 5) for e in range(6)}

    def __call__(self, model: SparseMLP) -> dict[str, Any]:
        """Return "topology": per layer how many neurons have 0, 1, 2, … connections; strengths."""
        self._epoch += 1
        if self._epoch not in self._due:
            return {}
        layers = [model[layer] for layer in range(len(model))]
        first = layers[0]
        strength = np.bincount(first.indices, np.abs(first.data), minlength=first.n_in)
        outgoing = [np.bincount(layer.indices, minlength=layer.n_in) for layer in layers]
        return {
            "topology": {
                "fan_in": [np.bincount(np.diff(layer.indptr)).tolist() for layer in layers],
                "fan_out": [np.bincount(degrees).tolist() for degrees in outgoing],
                "input_strength": [float(f"{s:.4g}") for s in strength],
            }
        }


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
        Every method runs on every data set. Both empty: the study needs no run.
    seeds : mapping of str to tuple of int
        Per profile.
    quick : mapping
        Per data set, the fields of `TrainConfig` that the quick profile changes.
    runs_of : str or None
        Key of the study whose runs these are; it also says how long they are and what is observed.
    observers : mapping
        Per (data set, method), what makes the observer of a run from its configuration.
    """

    key: str
    content: str
    datasets: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    seeds: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    quick: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    runs_of: str | None = None
    observers: Mapping[tuple[str, str], Callable[[TrainConfig], Observe]] = field(
        default_factory=dict
    )

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
        ]


STUDIES: dict[str, Study] = {
    study.key: study
    for study in (
        Study("T-datasets", "the data sets: domain, features, classes, sizes, source, hash"),
        Study("T-hyper", "the hyperparameters, and where each value comes from"),
        Study(
            "F-curves",
            "accuracy and loss against epoch, ReLU and All-ReLU",
            datasets=("fashion-mnist", "madelon", "digits"),
            methods=("set-relu", "set-all-relu"),
            seeds={"quick": (0, 1, 2), "paper": (0, 1, 2)},
            quick={
                "fashion-mnist": {"epochs": 10},
                "madelon": {"epochs": 150},
                "digits": {"epochs": 40},
            },
            observers={("fashion-mnist", "set-all-relu"): ObserveTopology},
        ),
        Study(
            "F-topology",
            "degrees before and after training; strength of the input pixels' connections",
            datasets=("fashion-mnist",),
            methods=("set-all-relu",),
            runs_of="F-curves",
        ),
    )
}


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
        """The data set's setting, changed by the method and then by the profile."""
        config = setting(self.dataset).config.with_values(**METHODS[self.method].changes)
        if self.profile == "quick":
            config = config.with_values(**STUDIES[self.study].quick.get(self.dataset, {}))
        return config

    @property
    def observer(self) -> Callable[[TrainConfig], Observe] | None:
        """What makes the run's observer."""
        return STUDIES[self.study].observers.get((self.dataset, self.method))

    @property
    def code_sha256(self) -> str:
        """Digest of the code that determines the result."""
        trained = results.code_sha256("sparsecore.experiment", "sparsecore.datasets.dataset")
        if self.observer is None:
            return trained
        seen = results.essence(textwrap.dedent(inspect.getsource(self.observer)))
        return hashlib.sha256(f"{trained}\0{seen}".encode()).hexdigest()

    @property
    def work(self) -> float:
        """An epoch's work, for the progress bar: connections × samples, and what comes on top."""
        facts: dict[str, Any] = datasets.describe(self.dataset)
        config = self.config
        sizes = (facts["n_features"], *config.hidden, facts["n_classes"])
        layers = itertools.pairwise(sizes)
        nnz = sum(erdos_renyi_density(a, b, config.epsilon) * a * b for a, b in layers)
        return nnz * facts["n_train"] + 5e7


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
    """

    study: Study
    profile: str
    runs: list[Result]
    unavailable: frozenset[str] = frozenset()

    def of(self, dataset: str, method: str) -> list[Result]:
        """Return the runs of a method on a data set, one per seed."""
        wanted = {"dataset": dataset, "method": method}
        return [run for run in self.runs if run["condition"] == wanted]

    def epochs(self, dataset: str) -> int:
        """Return how many epochs the runs on a data set take."""
        return Condition(
            self.study.home.key, self.profile, dataset, self.study.methods[0], 0
        ).config.epochs

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
    FloatingPointError
        If a run diverges.

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
    return Results(
        study, profile, [runs[c] for c in conditions if c in runs], frozenset(unavailable)
    )


def look(condition: Condition) -> tuple[Result | None, str]:
    """Look at a condition's result file without running anything.

    Returns
    -------
    result : dict or None
        None unless the file is valid.
    state : str
        "present", "missing", or "stale" or "damaged" with the reason.
    """
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
    config = {"dataset": condition.dataset, **condition.config.to_dict()}
    for name, value in config.items():
        if result["config"].get(name) != value:
            return None, f"stale: {name} was {result['config'].get(name)!r}, is now {value!r}"
    if result["code_sha256"] != condition.code_sha256:
        return None, "stale: the code that trains has changed"
    if result["provenance"].get("data_sha256") != (_data_sha256(condition.dataset)):
        return None, "stale: the data have changed"
    return result, "present"


def _run(condition: Condition, advance: Callable[[float], Any]) -> Result:
    data, config = _data(condition.dataset), condition.config
    inner = condition.observer(config) if condition.observer else None
    calls = 0

    def observe(model: SparseMLP) -> dict[str, Any]:
        nonlocal calls
        calls += 1
        if calls > 1:  # the first is before the first epoch
            advance(condition.work)
        return inner(model) if inner else {}

    _, result = experiment.run(data, config, seed=condition.seed, observe=observe)
    about = {
        "study": condition.study,
        "profile": condition.profile,
        "condition": {"dataset": condition.dataset, "method": condition.method},
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
