"""How one comes by the results of a study: run or load.

Results that are there and still valid are read; what is missing, stale or damaged is computed and
written at once, so that an interruption loses only the run in progress. Which runs a study is made
of is said in `conditions`, files are those of `results`; how results are shown is for `figures` and
`tables`.
"""

from __future__ import annotations

import importlib
import json
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from sparsecore import datasets
from sparsecore.cluster import ClusterError
from sparsecore.config import TrainConfig
from sparsecore.datasets import DataError
from sparsecore.files import lock
from sparsecore.paper import results
from sparsecore.paper.results import ResultError, ResultWarning
from sparsecore.paper.training import on_cluster
from sparsecore.paper.training.conditions import (
    METHODS,
    Condition,
    Study,
    current_profile,
    excluded,
    find,
)
from sparsecore.provenance import provenance

Result = dict[str, Any]

NOT_AVAILABLE = "not available on this machine"
CODE_CHANGED = "stale: the code that trains has changed"


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
    no_cluster : str
        Why the parallel methods did not run; "" if they did.
    diverged : list of dict
        What the result files of runs hold that came to no end, because their loss did not stay
        finite.
    recorded : bool
        Read from what is recorded, to stand beside this build's own results.
    older : bool
        Some of it was made by an earlier state of the code, and today's has not repeated it.
    """

    study: Study
    profile: str
    runs: list[Result]
    unavailable: dict[str, str] = field(default_factory=dict)
    no_cluster: str = ""
    diverged: list[Result] = field(default_factory=list)
    recorded: bool = False
    older: bool = False

    def of(self, dataset: str, method: str) -> list[Result]:
        """Return the runs of a method on a data set, one per seed."""
        wanted = {"dataset": dataset, "method": method}
        return [run for run in self.runs if run["condition"] == wanted]

    def diverged_of(self, dataset: str, method: str) -> list[Result]:
        """Return the runs of a method on a data set that diverged."""
        wanted = {"dataset": dataset, "method": method}
        return [run for run in self.diverged if run["condition"] == wanted]

    def why_not(self, dataset: str, method: str) -> str:
        """Return why a method has no runs on a data set."""
        if METHODS[method].parallel and self.no_cluster:
            return f"not run: {self.no_cluster}"
        if self.diverged_of(dataset, method):
            return "all seeds diverged"
        return excluded(dataset, method) or NOT_AVAILABLE

    def lacks(self, dataset: str, method: str) -> bool:
        """Tell whether a method has nothing to show that the study asks for: not even failures."""
        found = self.of(dataset, method) or self.diverged_of(dataset, method)
        return not (found or excluded(dataset, method))

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
        blas = {library.split(" (")[0] for p in about for library in p.get("blas", [])}
        parts = [
            f"profile {self.profile}",
            f"seed{'s' * (len(seeds) > 1)} {_listed(seeds)}",
            f"sparsecore {_listed({p['sparsecore'] for p in about})}",
            *([f"commit {_listed(commits)}"] if commits else []),
            _listed({p["cpu"] for p in about}),
            f"threads: {_listed({p['threads'] for p in about})}",
            *([f"dense through {_listed(blas)}"] if blas else []),
        ]
        if repeated := [run["repeated"]["epochs"] for run in self.runs if "repeated" in run]:
            parts.append(
                f"{len(repeated)} of {len(self.runs)} runs made by earlier code, of which later "
                f"code repeats at least the first {min(repeated)} epochs to twelve digits"
            )
        if self.older:
            parts.append("some made by earlier code and not repeated")
        return ", ".join(parts) if self.runs else f"profile {self.profile}, no runs"

    def __repr__(self) -> str:
        missing = f", not available: {_listed(self.unavailable)}" if self.unavailable else ""
        return f"<Results {self.study.key}, {self.profile}: {len(self.runs)} runs{missing}>"


def _listed(values: Iterable[Any]) -> str:
    return ", ".join(str(value) for value in sorted(values))


def load(
    key: str,
    profile: str | None = None,
    seeds: Sequence[int] | None = None,
    *,
    of_datasets: Sequence[str] | None = None,
    methods: Sequence[str] | None = None,
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
    of_datasets, methods : sequence of str, optional
        Only these of the study's; all by default.
    progress : bool
        Show a bar that says how long is left.

    Returns
    -------
    Results

    Raises
    ------
    ValueError
        If the study, the profile, a data set or a method is unknown.

    Warns
    -----
    ResultWarning
        For a damaged or foreign file, with its name; it is replaced.
    """
    study, profile = find(key).part(of_datasets, methods), current_profile(profile)
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
    unavailable: dict[str, str] = {}
    no_cluster = ""
    with (
        on_cluster.kept(),
        work_bar(sum(c.work * c.config.epochs for c in todo), progress) as bar,
    ):
        for number, condition in enumerate(todo, 1):
            bar.set_description_str(f"{key} {number}/{len(todo)} {condition.name}")
            if condition.dataset not in unavailable:  # asking again could mean to wait again
                try:
                    with lock(condition.path.with_name(f".{condition.name}.lock")):
                        result, _ = look(condition)  # another process may have been faster
                        runs[condition] = result or _run(condition, bar.update)
                    if result is None:
                        continue
                except DataError as error:
                    unavailable[condition.dataset] = str(error)
                except ClusterError as error:
                    no_cluster = str(error)
            bar.total -= condition.work * condition.config.epochs
    ended, diverged = _sorted([runs[c] for c in conditions if c in runs])
    return Results(study, profile, ended, unavailable, no_cluster, diverged)


def work_bar(total: int, progress: bool) -> tqdm[Any]:
    """Return a bar of so much work, `Condition.work` an epoch, that says how long is left."""
    return tqdm(
        total=total,
        bar_format="{desc} {percentage:3.0f} % |{bar}| {elapsed} gone, {remaining} left",
        disable=not (progress and total),
        mininterval=0.5 if sys.stderr.isatty() else 10,  # a log is not flooded
    )


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
        result, state = read(condition)
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
        digest = data_sha256(condition.dataset)
        if digest not in (None, result["provenance"].get("data_sha256")):
            continue
        older |= not results.is_of(condition.code_sha256, result)
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
    result, state = read(condition)
    if result is None:
        return None, state
    if stale := _stale_config(condition, result):
        return None, stale
    if not results.is_of(condition.code_sha256, result):
        return None, CODE_CHANGED
    if data_sha256(condition.dataset) not in (None, result["provenance"].get("data_sha256")):
        return None, "stale: the data have changed"
    return result, "present"


def read(condition: Condition) -> tuple[Result | None, str]:
    """Read a condition's result file, whatever its age.

    Returns
    -------
    result : dict or None
    state : str
        "present", "missing", or "damaged" with the reason.
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


def data_of(condition: Condition) -> datasets.Dataset:
    """Return the rows that a condition trains on and is tested with.

    Raises
    ------
    DataError
        If the data cannot be had.
    """
    return _limited(_data(condition.dataset), **condition.limit)


def train(
    condition: Condition,
    config: TrainConfig,
    data: datasets.Dataset,
    on_epoch: Callable[[], Any],
) -> Result:
    """Train as a condition says, though perhaps with another configuration, and keep nothing.

    Parameters
    ----------
    condition : Condition
    config : TrainConfig
    data : Dataset
        As `data_of` gives them.
    on_epoch : callable
        Called after every epoch.

    Returns
    -------
    dict
        The runner's result.

    Raises
    ------
    ClusterError
        If a cluster is needed and fails.
    FloatingPointError
        If the run diverges.
    """
    observers = [make(config, data) for make in condition.observers]
    calls = 0

    def observe(model: Any) -> dict[str, Any]:
        nonlocal calls
        calls += 1
        if calls > 1:  # the first is before the first epoch
            on_epoch()
        return {name: value for see in observers for name, value in see(model).items()}

    method = METHODS[condition.method]
    runner = importlib.import_module(method.runner)
    _, result = runner.run(data, config, seed=condition.seed, observe=observe, **method.options)
    return dict(result)


def _run(condition: Condition, advance: Callable[[float], Any]) -> Result:
    data, config = data_of(condition), condition.config
    # Of the code as it is now: hours may pass, and meanwhile somebody may edit and commit.
    code_sha256, _ = condition.code_sha256, provenance(1, None)
    epochs = 0

    def on_epoch() -> None:
        nonlocal epochs
        epochs += 1
        advance(condition.work)

    try:
        result = train(condition, config, data, on_epoch)
    except FloatingPointError as error:  # a finding, and not to be computed again each time
        advance(condition.work * (config.epochs - epochs))
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
        "code_sha256": code_sha256,
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
    whole = {**about, **result}
    try:
        results.write(condition.path, whole)
    except OSError as error:
        warnings.warn(
            f"{condition.path.name} of {condition.study}, {condition.profile}: cannot be kept "
            f"({error}); set {results.ENVIRONMENT} to a folder that can be written",
            ResultWarning,
            stacklevel=3,
        )
        return json.loads(json.dumps(whole))  # as it would have been read
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
def data_sha256(name: str) -> str | None:
    """Return the hash of the data as they are; where it is pinned, without reading them.

    None if they are not here: a result of them is as good as it was.
    """
    pinned = datasets.describe(name)["sha256"]
    if pinned is not None:
        return str(pinned)
    try:
        return _data(name).content_hash
    except DataError:
        return None


_last_data: list[datasets.Dataset] = []


def _data(name: str) -> datasets.Dataset:
    """Return a data set; the last one is kept, since runs come data set by data set."""
    if not _last_data or _last_data[0].name != name:
        _last_data[:] = []  # before the next is read: two may not fit
        _last_data[:] = [datasets.load(name)]
    return _last_data[0]
