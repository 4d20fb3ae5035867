"""The ledger of the paper's claims: each with its rule, the evidence, and a verdict.

A claim is made of checks. A check is a question with a rule that stands here and knows no result.
Results answer it: it holds, does not hold, or is undecided; without results it is not tested here
yet. Surrogate data, and networks no better than chance, count as no evidence.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.stats import t as student

from sparsecore.paper.extreme.runs import BAT, Row
from sparsecore.paper.page import Column, Table
from sparsecore.paper.store import Result
from sparsecore.paper.training import conditions
from sparsecore.paper.training.figures import flow_logs
from sparsecore.paper.training.shown import source
from sparsecore.paper.training.studies import (
    Results,
    core_seconds,
    have_learnt,
    of_one_machine,
)

HOLDS, FAILS, UNDECIDED, UNTESTED = "holds", "does not hold", "undecided", "not tested here yet"

CONFIDENCE = 0.95
MARGIN = 0.01  # of accuracy that pruning may cost: one percentage point

Runs = list[Result]
Answer = tuple[str, str]  # evidence and outcome


@dataclass(frozen=True)
class Interval:
    """A difference of means over seeds, with its confidence interval."""

    difference: float
    low: float
    high: float


def welch(a: Sequence[float], b: Sequence[float]) -> Interval | None:
    """Return mean(a) - mean(b) with its confidence interval; None if one has less than two values.

    Welch (1947): the standard error is of both samples' variances, the degrees of freedom are
    Satterthwaite's. Samples without any spread have an interval of width 0.
    """
    if min(len(a), len(b)) < 2:
        return None
    difference = float(np.mean(a) - np.mean(b))
    parts = [float(np.var(x, ddof=1)) / len(x) for x in (a, b)]
    variance = sum(parts)
    if variance == 0:
        return Interval(difference, difference, difference)
    freedom = variance**2 / sum(p**2 / (len(x) - 1) for p, x in zip(parts, (a, b), strict=True))
    half = float(student.ppf((1 + CONFIDENCE) / 2, freedom)) * math.sqrt(variance)
    return Interval(difference, difference - half, difference + half)


def judged(interval: Interval | None, threshold: float = 0.0) -> str:
    """Return what an interval says of "more than `threshold`"."""
    if interval is None:
        return UNTESTED
    if interval.low > threshold:
        return HOLDS
    return FAILS if interval.high < threshold else UNDECIDED


@dataclass(frozen=True)
class Check:
    """One question to the results, on one data set, and the answer.

    `profile` is that of the results that answered, `seeds` the number of runs of the method, and of
    what it is compared with.
    """

    question: str
    dataset: str | None = None
    profile: str | None = None
    seeds: str | None = None
    evidence: str | None = None
    outcome: str = UNTESTED


@dataclass(frozen=True)
class Evidence:
    """The results that answer: of L-claims, the most trusted first, and runs of T-extreme."""

    sources: tuple[Results, ...]
    extreme: dict[Row, Result] = field(default_factory=dict)


Ask = Callable[[Evidence], list[Check]]


@dataclass(frozen=True)
class Claim:
    """A claim of the paper's abstract, the rule by which it holds, and what is asked of results."""

    key: str
    text: str
    rule: str
    questions: tuple[Ask, ...]

    def ask(self, evidence: Evidence) -> list[Check]:
        """Return the answers."""
        return [check for question in self.questions for check in question(evidence)]


# --- how two methods' runs are compared ----------------------------------------------------------

_SPARSE, _RELU, _PRUNED = "set-all-relu", "set-relu", "set-all-relu-pruned"


def _compare(
    question: str,
    methods: tuple[str, str],
    judge: Callable[[Runs, Runs], Answer],
    learning: bool = False,
) -> Ask:
    """Return what asks a question about two methods on every data set.

    The first source that can answer does. With `learning`, the question is about what is learnt:
    surrogates do not count, nor does SET-All-ReLU where it is no better than guessing.
    """

    def answer(results: Results, dataset: str) -> Answer:
        for method in methods:
            if why := conditions.excluded(dataset, method):
                return why, UNTESTED
        lost, reference_lost = (results.diverged_of(dataset, method) for method in methods)
        if lost:
            return f"{len(lost)} run(s) diverged", FAILS
        if reference_lost:
            return f"{len(reference_lost)} run(s) of what it is compared with diverged", UNTESTED
        first, second = (results.of(dataset, method) for method in methods)
        if not (first and second):
            return "no runs", UNTESTED
        if learning and first[0]["data"]["surrogate"]:
            return "a surrogate's accuracy is no evidence", UNTESTED
        if learning and not have_learnt(results.of(dataset, _SPARSE)):
            return "SET-All-ReLU has not learnt anything yet", UNDECIDED
        return judge(first, second)

    def ask(evidence: Evidence) -> list[Check]:
        checks = []
        for dataset in evidence.sources[0].study.datasets:
            for results in evidence.sources:
                found, outcome = answer(results, dataset)
                if outcome != UNTESTED:
                    break
            profile = seeds = None
            if outcome != UNTESTED:
                profile = results.profile
                seeds = ", ".join(str(len(results.of(dataset, method))) for method in methods)
            title = results.title(dataset)
            checks.append(Check(question, title, profile, seeds, found, outcome))
        return checks

    return ask


def _more_accurate(first: Runs, second: Runs, threshold: float = 0.0) -> Answer:
    found = welch(*([float(run["test_accuracy"]) for run in runs] for runs in (first, second)))
    if found is None:
        return "fewer than two seeds", UNTESTED
    values = (100 * v for v in (found.difference, found.low, found.high))
    return "{:+.2f} points [{:+.2f}, {:+.2f}]".format(*values), judged(found, threshold)


def _not_less_accurate(first: Runs, second: Runs) -> Answer:
    return _more_accurate(first, second, -MARGIN)


def _larger(first: Sequence[float], second: Sequence[float]) -> Answer:
    """Judge whether values of `first` are larger, as a factor: times and flows are positive."""
    found = welch(np.log(first).tolist(), np.log(second).tolist())
    if found is None:
        return "fewer than two seeds", UNTESTED
    values = (math.exp(v) for v in (found.difference, found.low, found.high))
    return "× {:.3g} [{:.3g}, {:.3g}]".format(*values), judged(found)


def _faster(first: Runs, second: Runs) -> Answer:
    timed = of_one_machine(second, first)
    if not all(timed):
        return "runs of different machines", UNTESTED
    evidence, outcome = _larger(*([core_seconds(run) for run in runs] for runs in timed))
    left_out = len(first) + len(second) - sum(map(len, timed))
    return evidence + f"; {left_out} run(s) of another machine left out" * bool(left_out), outcome


def _more_flow(first: Runs, second: Runs) -> Answer:
    return _larger(*((10 ** flow_logs(runs)[:, 1:].mean(axis=1)) for runs in (first, second)))


def _truly_sparse(first: Runs, second: Runs) -> Answer:
    """Judge whether there never were more connections than at the start: nothing hides a mask."""
    most = max(epoch["nnz"] / run["nnz_start"] for run in first for epoch in run["epochs"])
    density = np.mean([run["nnz_start"] for run in first]) / second[0]["nnz_start"]
    ok = most <= 1 and all(run["nnz_start"] < second[0]["nnz_start"] for run in first)
    return f"{100 * density:.2g} % of the dense weights", HOLDS if ok else FAILS


def _fewer(first: Runs, second: Runs) -> Answer:
    left, before = ([run["nnz_end"] / run["nnz_start"] for run in runs] for runs in (first, second))
    ok = max(left) < min(before)
    return f"{100 * np.mean(left):.0f} % of the connections left", HOLDS if ok else FAILS


# --- how a run of an extreme network is judged ---------------------------------------------------


def _ask_extreme(evidence: Evidence) -> list[Check]:
    questions = {
        "it is trained within its machine's memory": _within_memory,
        "its loss falls": _loss_falls,
        "it beats chance": _beats_chance,
    }
    large = {row: run for row, run in sorted(evidence.extreme.items()) if row.neurons >= BAT}
    if not large:
        return [Check(question) for question in questions]
    checks = []
    for row, run in large.items():
        label = f"artificial, {row.neurons:.0e} neurons, {row.hidden_layers} hidden layer(s)"
        for question, judge in questions.items():
            if judge is not _beats_chance or row.neurons == BAT:
                checks.append(Check(question, label, run["profile"], "1", *judge(run)))
    return checks


def _within_memory(run: Result) -> Answer:
    peak, there = run["peak_bytes"] / 2**30, run["provenance"]["memory_gib"]
    text = f"{len(run['losses'])} steps with {peak:.1f} of {there:.1f} GiB"
    return text, HOLDS if run["losses"] and peak <= there else FAILS


def _loss_falls(run: Result) -> Answer:
    found = run["trend"]
    if found is None:
        return "fewer than three steps", UNTESTED
    return f"Kendall's τ {found['tau']:+.2f}, p = {found['p']:.1g}", _by_p(found["p"])


def _beats_chance(run: Result) -> Answer:
    found = run["test"]
    if found is None:
        return "no held-out samples", UNTESTED
    text = f"{found['correct']} of {found['n']} held-out samples right, p = {found['p']:.1g}"
    return text, _by_p(found["p"])


def _by_p(p: float) -> str:
    """Judge by a one-sided test; what the other side would reject does not hold."""
    return HOLDS if p < 1 - CONFIDENCE else FAILS if p > CONFIDENCE else UNDECIDED


# --- the claims ----------------------------------------------------------------------------------

CLAIMS = (
    Claim(
        "C1",
        "Truly sparse training, from scratch, without masks, in parallel, is faster than dense.",
        "On every data set SET-All-ReLU never has more connections than it began with, and trains "
        "in less time than the dense network on as many cores; so does parallel training, in "
        "seconds × cores.",
        (
            _compare(
                "never more connections than at the start, fewer than dense",
                (_SPARSE, "dense"),
                _truly_sparse,
            ),
            _compare("training is faster than dense", (_SPARSE, "dense"), _faster),
            _compare("parallel training is faster than dense", ("wasap", "dense"), _faster),
        ),
    ),
    Claim(
        "C2",
        "All-ReLU favours the gradient flow, and so beats ReLU in sparse networks.",
        "On every data set the gradient flow, as a geometric mean over the epochs, and the final "
        "accuracy are higher with All-ReLU than with ReLU.",
        (
            _compare("more gradient flow than ReLU", (_SPARSE, _RELU), _more_flow, True),
            _compare("more accurate than ReLU", (_SPARSE, _RELU), _more_accurate, True),
        ),
    ),
    Claim(
        "C3",
        "Importance pruning removes redundant neurons' connections: fewer parameters, accuracy "
        "kept.",
        "On every data set pruning during training leaves fewer connections, and costs less than "
        "one percentage point of accuracy.",
        (
            _compare("fewer connections", (_PRUNED, _SPARSE), _fewer),
            _compare("accuracy kept", (_PRUNED, _SPARSE), _not_less_accurate, True),
        ),
    ),
    Claim(
        "C4",
        "A network of the order of 5·10⁷ neurons can be trained.",
        "Networks of at least 5·10⁷ neurons take training steps in their machine's memory; their "
        "loss falls (Kendall's test for a trend), and those of 5·10⁷ neurons are right on held-out "
        "samples more often than chance (binomial test), one-sided, at 5 %.",
        (_ask_extreme,),
    ),
    Claim(
        "C5",
        "More accurate than SET with ReLU, and than dense, while being faster.",
        "On every data set SET-All-ReLU is more accurate than SET-ReLU and than the dense network, "
        "and trains in less time than the dense network.",
        (
            _compare("more accurate than SET-ReLU", (_SPARSE, _RELU), _more_accurate, True),
            _compare("more accurate than dense", (_SPARSE, "dense"), _more_accurate, True),
            _compare("faster than dense", (_SPARSE, "dense"), _faster),
        ),
    ),
)


def verdict(checks: Sequence[Check]) -> str:
    """Return what checks say together.

    "holds" if all do; "does not hold" if none does and all are decided; "not tested here yet" if
    none was tested; else in how many of the tested checks it holds, and what is open.
    """
    counts = {o: sum(c.outcome == o for c in checks) for o in (HOLDS, FAILS, UNDECIDED, UNTESTED)}
    tested = len(checks) - counts[UNTESTED]
    if not tested:
        return UNTESTED
    for outcome in (HOLDS, FAILS):
        if counts[outcome] == len(checks):
            return outcome
    parts = [f"holds in {counts[HOLDS]} of {tested} checks{_at_full_length(checks)}"]
    if counts[FAILS]:
        parts.append(f"does not in {counts[FAILS]}")
    if counts[UNDECIDED]:
        parts.append(f"undecided in {counts[UNDECIDED]}")
    if counts[UNTESTED]:
        parts.append(f"{counts[UNTESTED]} {UNTESTED}")
    return ", ".join(parts)


def _at_full_length(checks: Sequence[Check]) -> str:
    """Say how many of the checks that full schedules answered hold, if others answered, too."""
    tested = [c for c in checks if c.outcome != UNTESTED]
    full = [c for c in tested if c.profile == "paper"]
    if len(full) in (0, len(tested)):
        return ""
    return f" ({sum(c.outcome == HOLDS for c in full)} of {len(full)} at full length)"


class Ledger:
    """All claims, judged by results of L-claims and by runs of T-extreme.

    `checks` are the answers by claim, `verdicts` what they say together.
    """

    def __init__(self, *sources: Results, extreme: dict[Row, Result] | None = None) -> None:
        self._evidence = Evidence(sources, extreme or {})
        self.checks = {claim.key: claim.ask(self._evidence) for claim in CLAIMS}
        self.verdicts = {key: verdict(checks) for key, checks in self.checks.items()}

    def glue(self) -> None:
        """Offer the verdicts to other pages of the book, as "C1-verdict" to "C5-verdict"."""
        from myst_nb import glue

        for key, text in self.verdicts.items():
            glue(f"{key}-verdict", text, display=False)

    def table(self) -> Table:
        """Make L-claims: claim, rule, verdict."""
        rows = [
            {"claim": c.key, "text": c.text, "rule": c.rule, "verdict": self.verdicts[c.key]}
            for c in CLAIMS
        ]
        columns = (
            Column("claim", "claim", lambda row: f"**{row['claim']}** {row['text']}", number=False),
            Column("it holds if", "rule", number=False),
            Column("verdict", "verdict", "**{}**", number=False),
        )
        machines = sorted({run["provenance"]["cpu"] for run in self._evidence.extreme.values()})
        caption = (
            "**The claims and their verdicts.** The rules know no result. A difference counts if "
            f"the {100 * CONFIDENCE:.0f} % confidence interval of the means over seeds (Welch) "
            "lies on one side; else the check is undecided, as it is where SET-All-ReLU is no "
            "better than guessing."
        )
        sources = source(*self._evidence.sources) + (
            f" C4: recorded runs of T-extreme, {', '.join(machines)}." if machines else ""
        )
        return Table.of("L-claims", rows, columns, caption, sources)

    def evidence(self) -> Table:
        """Make the second part of L-claims: every check with its numbers."""
        rows = [
            {"claim": key, **vars(check)} for key, checks in self.checks.items() for check in checks
        ]
        titles = ("claim", "check", "data set", "profile", "seeds", "evidence", "outcome")
        columns = [
            Column(title, name, number=False, once=name == "claim")
            for title, name in zip(titles, rows[0], strict=True)
        ]
        caption = (
            "**The evidence.** Differences and ratios of means over seeds, with their "
            f"{100 * CONFIDENCE:.0f} % confidence intervals in brackets; seeds of the method, and "
            "of what it is compared with. Recorded results decide where they can answer, else "
            "those of this build."
        )
        return Table.of("L-claims-evidence", rows, columns, caption)
