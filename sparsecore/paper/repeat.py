"""Whether today's code computes what an earlier state of it computed.

A result of other code than today's is stale, though most changes of the code change no number. Its
first epochs are trained again: if all that was recorded of them, but for times, is the same to
twelve digits, the result says so and counts as today's. Where results are and what they hold is
said in `results`, training is the business of `studies`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tqdm.auto import tqdm

from sparsecore.datasets import DataError
from sparsecore.files import lock
from sparsecore.paper import results
from sparsecore.paper.training import studies
from sparsecore.paper.training.conditions import METHODS, Condition, current_profile, find
from sparsecore.paper.training.observers import ObservePruning
from sparsecore.provenance import provenance

EPOCHS = 10
# Weights are float32, so that another rounding anywhere shows up far above this. What observers sum
# up in float64, by way of BLAS, differs by less from machine to machine.
_TOLERANCE = 1e-12


def repeat(
    key: str,
    profile: str | None = None,
    seeds: Sequence[int] | None = None,
    *,
    of_datasets: Sequence[str] | None = None,
    methods: Sequence[str] | None = None,
    epochs: int = EPOCHS,
    progress: bool = True,
    on_result: Callable[[str, str], Any] | None = None,
) -> dict[str, str]:
    """Train the first epochs of a study's results that other code has made, and compare.

    Parameters
    ----------
    key, profile, seeds, of_datasets, methods, progress
        As for `studies.load`.
    epochs : int
        How many, at least 1; with importance pruning, until it has pruned once. A run that is no
        longer than that, or in which something is looked at only at the end, is repeated whole, and
        its final weights are compared as well.
    on_result : callable, optional
        Called with the name of each run and what came of it, as soon as it is known.

    Returns
    -------
    dict
        Per name of a run that was looked at: "repeated", or why not.

    Raises
    ------
    ValueError
        If the study, the profile, a data set, a method or the number of epochs is none.

    Notes
    -----
    A result that was repeated is written anew, with the digest of today's code; no other is
    touched. A parallel run cannot be repeated in part, since its second phase is a share of the
    whole.
    """
    if epochs < 1:
        raise ValueError(f"epochs: expected at least 1, got {epochs}")
    study, profile = find(key).part(of_datasets, methods), current_profile(profile)
    older = [
        condition
        for condition in study.conditions(profile, seeds)
        if studies.look(condition)[1] == studies.CODE_CHANGED
    ]
    lengths = {condition: _length(condition, epochs) for condition in older}
    found: dict[str, str] = {}
    unavailable: dict[str, str] = {}  # asking again could mean to wait again
    with studies.work_bar(sum(c.work * n for c, n in lengths.items()), progress) as bar:
        for number, condition in enumerate(older, 1):
            bar.set_description_str(f"{key} {number}/{len(older)} {condition.name}")
            done, work = bar.n, condition.work * lengths[condition]
            with lock(condition.path.with_name(f".{condition.name}.lock")):
                state = unavailable.get(condition.dataset)
                try:
                    state = state or _repeat(condition, lengths[condition], bar)
                except DataError as error:
                    # Its first line: the rest says how to get them.
                    state = f"not repeated: {str(error).splitlines()[0]}"
                    unavailable[condition.dataset] = state
            bar.total -= work - (bar.n - done)
            found[condition.name] = state
            if on_result is not None:
                on_result(condition.name, state)
    return found


def _length(condition: Condition, epochs: int) -> int:
    """Return how many epochs are trained, for so many to be compared; 0 if none can be."""
    config = condition.config
    if METHODS[condition.method].parallel:
        return 0
    if ObservePruning in condition.observers:  # it looks on at the end only
        return config.epochs
    if config.prune_from is not None:
        epochs = max(epochs, config.prune_from + 1)
    # The last epoch of a run is not like the others: nothing evolves after it.
    return min(epochs + 1, config.epochs)


def _repeat(condition: Condition, length: int, bar: tqdm[Any]) -> str:
    if METHODS[condition.method].parallel:
        return "not repeated: a parallel run cannot be in part"
    if studies.look(condition)[1] != studies.CODE_CHANGED:
        return "not repeated: another process has just written it"
    result, _ = studies.read(condition)
    assert result is not None
    if "diverged" in result:
        return "not repeated: it diverged"
    if studies.data_sha256(condition.dataset) not in (None, result["provenance"]["data_sha256"]):
        return "not repeated: the data have changed"
    code_sha256, commit = condition.code_sha256, provenance(1, None).get("commit")
    whole = length == condition.config.epochs
    try:
        again = studies.train(
            condition,
            condition.config.with_values(epochs=length),
            studies.data_of(condition),
            lambda: bar.update(condition.work),
        )
    except FloatingPointError as error:
        return f"differs: {error}"
    again = json.loads(json.dumps(again))
    compared = length + 1 if whole else length  # the record of epoch 0 counts, too
    differences = _differences(result["epochs"][:compared], again["epochs"][:compared], "epochs")
    if difference := next(differences, None):
        return f"differs: {difference}"
    if whole and result["weights_sha256"] != again["weights_sha256"]:
        return "differs: weights_sha256"
    result["repeated"] = {"code_sha256": code_sha256, "epochs": compared - 1, "commit": commit}
    results.write(condition.path, result)
    return "repeated"


def _differences(before: Any, now: Any, place: str) -> Iterator[str]:
    """Say in what two records differ, times left out."""
    if isinstance(before, dict) and isinstance(now, dict):
        for name in sorted(before.keys() | now.keys()):
            if not name.endswith("seconds"):
                yield from _differences(before.get(name), now.get(name), f"{place}.{name}")
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for number, (one, other) in enumerate(zip(before, now, strict=True)):
            yield from _differences(one, other, f"{place}[{number}]")
    elif isinstance(before, float) and isinstance(now, float):
        if not math.isclose(before, now, rel_tol=_TOLERANCE):
            yield f"{place} was {before!r}, is now {now!r}"
    elif before != now:
        yield f"{place} was {before!r:.60}, is now {now!r:.60}"
