"""How two methods are compared: effects with their intervals, from runs with several seeds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.stats import t as student

from sparsecore.experiment import unpacked
from sparsecore.paper.store import Result

CONFIDENCE = 0.95

Runs = list[Result]


@dataclass(frozen=True)
class Effect:
    """An estimate with its interval, and the one-sided p of an effect of at most the threshold."""

    value: float
    low: float
    high: float
    p: float

    @property
    def sign(self) -> int:
        """1 if the interval lies above 0, -1 if it lies below, 0 if it includes 0."""
        return (self.low > 0) - (self.high < 0)


def effect(
    value: float, parts: Sequence[tuple[float, float]], threshold: float = 0.0
) -> Effect | None:
    """Return an effect whose error has parts: each a variance and its degrees of freedom."""
    # The sum's degrees of freedom are Satterthwaite's (Welch 1947). None if nothing varies: equal
    # seeds prove nothing. Rounding leaves a variance of about 1e-32 of equal values.
    variance = sum(part for part, _ in parts)
    if variance < 1e-20:
        return None
    freedom = variance**2 / sum(part**2 / degrees for part, degrees in parts)
    scale = math.sqrt(variance)
    half = float(student.ppf((1 + CONFIDENCE) / 2, freedom)) * scale
    p = float(student.sf((value - threshold) / scale, freedom))
    return Effect(value, value - half, value + half, p)


def log_ratio(first: Any, second: Any, paired: bool) -> Effect | None:
    """Return the effect on the logarithm of positive values; None without two seeds of each."""
    if min(len(first), len(second)) < 2:
        return None
    logs = np.log(first), np.log(second)
    return effect(float(logs[0].mean() - logs[1].mean()), spread_of(*logs, paired))


def spread_of(first: Any, second: Any, paired: bool) -> list[tuple[float, float]]:
    """Return the variances of the difference of two means over seeds, for `effect`."""
    samples = [np.subtract(first, second)] if paired else [np.asarray(first), np.asarray(second)]
    return [(float(np.var(x, ddof=1)) / len(x), len(x) - 1) for x in samples]


def holm(p: Sequence[float]) -> list[float]:
    """Return p values that are corrected for multiple tests (Holm 1979)."""
    found, least = [0.0] * len(p), 0.0
    for number, place in enumerate(np.argsort(p)):
        least = max(least, min(1.0, (len(p) - number) * p[place]))
        found[place] = least
    return found


def pairs(first: Runs, second: Runs) -> tuple[Runs, Runs, bool]:
    """Return runs to compare, and whether they are pairs: sparse runs of equal seed and ε."""
    # Pairs start from the same network. They need three common seeds, or two where one side has no
    # more; with fewer, all runs count.
    starts = [{run["seed"]: run for run in runs} for runs in (first, second)]
    common = sorted(starts[0].keys() & starts[1].keys())
    dense = any(run["condition"]["method"] == "dense" for run in (*first, *second))
    alike = len({run["config"]["epsilon"] for run in (*first, *second)}) == 1
    if dense or not alike or len(common) < max(2, min(3, len(first), len(second))):
        return first, second, False
    one, other = ([start[seed] for seed in common] for start in starts)
    return one, other, True


def sampling_variance(first: Runs, second: Runs) -> float:
    """Return the variance of a difference of mean accuracies from its test set's finite size."""
    # It is estimated from the runs that record their right rows.
    n = first[0]["data"]["n_test"]
    right = [
        [unpacked(run["test_right"], n) for run in runs if "test_right" in run]
        for runs in (first, second)
    ]
    if all(right):
        one, other = (np.mean(some, axis=0) for some in right)
        return float(np.var(one - other, ddof=1)) / n
    shares = (float(np.mean([run["test_accuracy"] for run in runs])) for runs in (first, second))
    return sum(share * (1 - share) for share in shares) / n


def core_seconds(turns: Sequence[float] | np.ndarray, cores: int = 1) -> float:
    """Return seconds × cores of an epoch: the median over rounds, one of which may be disturbed."""
    return float(np.median(turns)) * cores


def two_digits(value: float) -> str:
    """Show a ratio with two digits, or three from 1 to 2, where two would be coarse."""
    return f"{value:,.{max(0, 1 - math.floor(math.log10(value)) + (1 <= value < 2))}f}"


def difference(first: Runs, second: Runs, *, threshold: float = 0.0) -> Effect | None:
    """Return the difference of two methods' accuracies; None without two seeds of each."""
    if min(len(first), len(second)) < 2:
        return None
    first, second, paired = pairs(first, second)
    ours, others = ([float(run["test_accuracy"]) for run in runs] for runs in (first, second))
    sampling = sampling_variance(first, second), first[0]["data"]["n_test"] - 1
    seeds, value = spread_of(ours, others, paired), float(np.mean(ours) - np.mean(others))
    # The sum has more degrees of freedom than few seeds alone, and may promise more than they do:
    # the wider interval and the larger p count.
    found = [e for parts in (seeds, [*seeds, sampling]) if (e := effect(value, parts, threshold))]
    p = min((e.p for e in found), key=lambda p: abs(p - 0.5), default=0.5)
    return replace(max(found, key=lambda e: e.high), p=p) if found else None
