"""The results of training studies: run or load them, and compare runs."""

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from sparsecore import datasets, experiment
from sparsecore.cluster import ClusterError
from sparsecore.compiled import lanes
from sparsecore.paper.store import NOT_AVAILABLE, Entry, Result, current_profile
from sparsecore.paper.training import on_cluster
from sparsecore.paper.training.conditions import METHODS, STUDIES, Condition, Study, excluded, find
from sparsecore.progress import bar
from sparsecore.provenance import provenance
from sparsecore.settings import DECAYS

# Facts about the data that a result copies from them.
_FACTS = ("domain", "n_features", "n_classes", "source", "surrogate")


def entry(condition: Condition, at_hand: bool = True) -> Entry:
    """Return where a result is kept, and when it is valid: with `at_hand`, for the data here."""

    def expected() -> dict[str, Any]:
        config = {"dataset": condition.dataset, **condition.config.to_dict()}
        name = condition.dataset
        digest = data_sha256(name) if at_hand else datasets.describe(name)["sha256"]
        return {
            "condition": {"dataset": condition.dataset, "method": condition.method},
            "seed": condition.seed,
            **{f"config.{name}": value for name, value in config.items()},
            **{f"limit.{part}": rows for part, rows in condition.limit.items()},
            # Where its data are not at hand, a result stays valid.
            **({} if digest is None else {"provenance.data_sha256": digest}),
        }

    return Entry(condition.study, condition.name, condition.profile, expected)


@dataclass(frozen=True)
class Results:
    """The results of a study in one profile."""

    study: Study
    profile: str
    runs: list[Result]
    #: Why data sets are not available here, by name; why parallel methods did not run, or "".
    unavailable: dict[str, str] = field(default_factory=dict)
    no_cluster: str = ""
    diverged: list[Result] = field(default_factory=list)  #: their loss did not stay finite

    @property
    def decay(self) -> float:
        """The weight decay of the runs that are shown."""
        return self.study.decays[0]

    def at(self, decay: float) -> "Results":
        """Return the results with one weight decay."""
        study = replace(self.study, decays=(decay,))
        runs, diverged = (_at(some, decay) for some in (self.runs, self.diverged))
        return replace(self, study=study, runs=runs, diverged=diverged)

    def of(self, dataset: str, method: str, diverged: bool = False) -> list[Result]:
        """Return the runs of a method on a data set with the first weight decay, one per seed."""
        runs = _at(self.on(dataset, diverged), self.decay)
        return [run for run in runs if run["condition"]["method"] == method]

    def on(self, dataset: str, diverged: bool = False) -> list[Result]:
        """Return all runs on a data set that finished, or those that diverged."""
        runs = self.diverged if diverged else self.runs
        return [run for run in runs if run["condition"]["dataset"] == dataset]

    def by_method(self, dataset: str) -> dict[str, list[Result]]:
        """Return the runs on a data set, as `of` does, of each method that has any."""
        found = {method: self.of(dataset, method) for method in self.study.methods}
        return {method: runs for method, runs in found.items() if runs}

    @property
    def datasets(self) -> list[str]:
        """The data sets that have runs."""
        return [name for name in self.study.datasets if self.on(name)]

    def why_not(self, dataset: str, method: str) -> str:
        """Return why a method has no runs on a data set."""
        if METHODS[method].parallel and self.no_cluster:
            return f"not run: {self.no_cluster}"
        if self.of(dataset, method, diverged=True):
            return "all seeds diverged"
        why = excluded(dataset, method) or "no run is planned"
        return NOT_AVAILABLE if self.wanted(dataset, method) else why

    def lacks(self, dataset: str, method: str) -> bool:
        """Return whether a method that the study plans has no results, not even diverged runs."""
        found = [self.of(dataset, method, diverged) for diverged in (False, True)]
        return not any(found) and self.wanted(dataset, method) > 0

    def wanted(self, dataset: str, method: str) -> int:
        """Return the number of seeds planned for a method on a data set."""
        return self.study.wanted(self.profile, dataset, method, self.decay)

    @property
    def suffix(self) -> str:
        """The end of the keys of a quick build's figures, and of those without weight decay."""
        other = len(self.study.decays) == 1 and self.decay != DECAYS[0]
        return "-here" * (self.profile == "quick") + f"-decay{self.decay:g}" * other

    def title(self, dataset: str) -> str:
        """Return a data set's title, with a note if a surrogate stands in."""
        return str(datasets.describe(dataset)["title"]) + ", surrogate" * self.surrogate(dataset)

    def surrogate(self, dataset: str) -> bool:
        """Return whether runs on a data set used a surrogate, or would without a user's files."""
        runs, kind = self.on(dataset), datasets.describe(dataset)["kind"]
        return bool(runs[0]["data"]["surrogate"] if runs else kind == "files or surrogate")

    def epochs(self, dataset: str) -> int:
        """Return the number of epochs of the runs on a data set."""
        home, method = self.study.home.key, self.study.methods[0]
        return Condition(home, self.profile, dataset, method, 0).config.epochs

    def __repr__(self) -> str:
        missing = f", not available: {', '.join(self.unavailable)}" if self.unavailable else ""
        return f"<Results {self.study.key}, {self.profile}: {len(self.runs)} runs{missing}>"


def _at(runs: list[Result], decay: float) -> list[Result]:
    return [run for run in runs if run["config"]["weight_decay"] == decay]


def load(
    key: str, profile: str | None = None, seeds: Sequence[int] | None = None, *,
    of_datasets: Sequence[str] | None = None, methods: Sequence[str] | None = None,
    decays: Sequence[float] | None = None,
) -> Results:  # fmt: skip
    """Return a study's results, or a part; run missing ones, wait for other processes last."""
    study = find(key).part(datasets=of_datasets, methods=methods, decays=decays)
    profile = current_profile(profile)
    conditions = study.conditions(profile, seeds)
    runs = {c: entry(c).look()[0] for c in conditions}
    todo = [c for c, result in runs.items() if result is None]
    unavailable: dict[str, str] = {}
    no_cluster, work = "", sum(c.work * c.config.epochs for c in todo)
    form = "{desc} {percentage:3.0f} % |{bar}| {elapsed} gone, {remaining} left"
    with on_cluster.kept(), bar(work, bar_format=form, hidden=not work) as shown:
        busy: list[Condition] = []
        for number, condition in enumerate(chain(todo, busy), 1):
            shown.set_description_str(f"{key} {number}/{len(todo) + len(busy)} {condition.name}")
            rest = shown.total - shown.n - condition.work * condition.config.epochs
            if condition.dataset not in unavailable:  # trying again could mean waiting again
                try:
                    run = partial(_run, condition, partial(_count_epoch, condition, shown, rest))
                    runs[condition] = entry(condition).obtain(run, wait=condition in busy)
                except BlockingIOError:
                    if condition in busy:  # it has waited: this is another error
                        raise
                    busy.append(condition)
                    continue
                except datasets.DataError as error:
                    unavailable[condition.dataset] = str(error)
                except ClusterError as error:
                    no_cluster = str(error)
            shown.total = shown.n + rest
    ended, diverged = _sorted(runs.values())
    return Results(study, profile, ended, unavailable, no_cluster, diverged)


def recorded(key: str) -> Results:
    """Return a study's valid results of profile "paper" without running anything."""
    # A build of profile "paper" shows these results, so it runs the missing ones.
    if current_profile() == "paper":
        return load(key)
    study = find(key)
    ended, diverged = _sorted(entry(c, False).recorded() for c in study.conditions("paper"))
    return Results(study, "paper", ended, diverged=diverged)


def _sorted(runs: Iterable[Result | None]) -> tuple[list[Result], list[Result]]:
    """Return the runs that finished, and those that diverged."""
    there = [run for run in runs if run is not None]
    return [r for r in there if "diverged" not in r], [r for r in there if "diverged" in r]


# --- running -------------------------------------------------------------------------------------


def _count_epoch(condition: Condition, shown: Any, rest: float, epoch: int) -> None:
    """Count an epoch's work in the bar; the epochs before a checkpoint are not to be done again."""
    shown.total = shown.n + condition.work * (condition.config.epochs - epoch + 1) + rest
    shown.update(condition.work)


def _run(condition: Condition, on_epoch: Callable[[int], Any]) -> Result:
    """Train a condition, and pass each epoch's number to `on_epoch`; divergence is a result."""
    config, method, data = condition.config, METHODS[condition.method], data_of(condition)
    observers = [make(config, data) for make in condition.observers]
    saved = _checkpoint(condition)
    kept = {"checkpoint_path": saved, "resume": True} if saved else {}
    if kept and not method.parallel:
        kept["checkpoint_every"] = 60.0

    def observe(model: Any, epoch: int) -> dict[str, Any]:
        if epoch:  # 0 is before the first one
            on_epoch(epoch)
        return {name: value for see in observers for name, value in see(model, epoch).items()}

    about = {
        "condition": {"dataset": condition.dataset, "method": condition.method},
        "limit": condition.limit,
        "data": {
            "title": datasets.describe(condition.dataset)["title"], "n_train": len(data.y_train),
            "n_test": len(data.y_test), **{name: getattr(data, name) for name in _FACTS},
        },
    }  # fmt: skip
    try:
        _, result = method.run(
            data, config, seed=condition.seed, observe=observe, **kept, **method.options
        )
        for record in result["epochs"]:  # files of hundreds of epochs: milliseconds are enough
            if "seconds" in record:
                record["seconds"] = {name: round(s, 3) for name, s in record["seconds"].items()}
        return {**about, **result}
    except FloatingPointError as error:
        known = {**experiment.identity(data, config, condition.seed), **about}
        return {**known, "diverged": str(error), "provenance": provenance(1, data.content_hash)}


def _checkpoint(condition: Condition) -> Path | None:
    """Return where a long run keeps its state; the name depends on all that must not change."""
    # Parallel runs write one after every epoch, which may take longer than a small network's.
    small = METHODS[condition.method].parallel and condition.work < 1e9
    if condition.profile == "quick" or small:
        return None
    workers = on_cluster.n_workers() if METHODS[condition.method].parallel else 1
    data = data_sha256(condition.dataset)
    about = f"{experiment.RECIPE} {lanes.widest()} {workers} {data} {condition.config}"
    digest = hashlib.sha256(about.encode()).hexdigest()[:8]
    return entry(condition).checkpoint(digest)


#: Seconds per unit of `Condition.work` on one core of a machine of 2023.
_SECONDS_PER_WORK = 4.5e-11


def expected_seconds(conditions: Iterable[Condition]) -> float:
    """Return roughly how many seconds runs take, one after the other."""
    return sum(_SECONDS_PER_WORK * c.work * c.config.epochs for c in conditions)


def data_of(condition: Condition) -> datasets.Dataset:
    """Return a condition's training rows, a stratified choice, and its test rows, a random one."""
    data, train, test = _data(condition.dataset), condition.limit["train"], condition.limit["test"]
    if STUDIES[condition.study].held_out:
        from sklearn.model_selection import train_test_split  # on use: a page starts without it

        X, X_test, y, y_test = train_test_split(
            data.X_train, data.y_train, test_size=0.1, random_state=0, stratify=data.y_train
        )
        data = data.derived(X_train=X, y_train=y, X_test=X_test, y_test=y_test)
    if train is not None and train < len(data.y_train):
        data = data.limited(train)
    if test is not None and test < len(data.y_test):
        rng = np.random.default_rng(0)
        rows = np.sort(rng.choice(len(data.y_test), test, replace=False))
        data = data.derived(X_test=data.X_test[rows], y_test=data.y_test[rows])
    return data


_known_sha256: dict[str, str] = {}


def data_sha256(name: str) -> str | None:
    """Return the hash of data, without reading them if it is pinned; None if they are not here."""
    if name not in _known_sha256:
        with suppress(datasets.DataError):  # they may be here the next time
            pinned = datasets.describe(name)["sha256"]
            _known_sha256[name] = _data(name).content_hash if pinned is None else str(pinned)
    return _known_sha256.get(name)


_last_data: list[datasets.Dataset] = []


def _data(name: str) -> datasets.Dataset:
    """Return a data set; the last one is kept, since runs come data set by data set."""
    if not _last_data or _last_data[0].name != name:
        _last_data[:] = []  # before the next is read: two may not fit
        _last_data[:] = [datasets.load(name)]
    return _last_data[0]


# --- comparing runs -------------------------------------------------------------------------------


def training_seconds(run: Result) -> float:
    """Return seconds of training, evolution included and tests not, of any kind of run."""
    # A parallel run's training time includes evolution; the others record it separately.
    return float(run["seconds"]["train"] + run["seconds"].get("evolve", 0.0))


def cores(run: Result) -> int:
    """Return the cores that a run trained on, to compare runs by seconds × cores."""
    about = run["provenance"]
    return int(min(about["ranks"] * about["threads"], about["cores"]))


def have_learnt(runs: list[Result]) -> bool:
    """Return whether the last epoch's training loss beats guessing; accuracy would not show it."""
    classes = runs[0]["data"]["n_classes"]
    loss = sum(run["epochs"][-1]["loss"] for run in runs) / len(runs)
    return bool(loss < 0.99 * math.log(classes))
