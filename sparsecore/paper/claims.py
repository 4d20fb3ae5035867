"""The ledger of the paper's claims: each with its rule, the evidence, and a verdict.

A claim is made of checks, and a check is a question with a rule that is stated here and knows no
result: answered by results, it holds, does not hold, or is undecided; without results it is not
tested here yet. Nothing is typed by hand. Accuracy on a surrogate is no evidence, nor is what a
network does that has learnt nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from scipy.stats import t as student

from sparsecore.paper.extreme.runs import BAT, Row
from sparsecore.paper.page import Table
from sparsecore.paper.training import conditions
from sparsecore.paper.training.figures import flow_logs
from sparsecore.paper.training.studies import (
    Result,
    Results,
    core_seconds,
    have_learnt,
    of_one_machine,
)

HOLDS, FAILS, UNDECIDED, UNTESTED = "holds", "does not hold", "undecided", "not tested here yet"

CONFIDENCE = 0.95
_NOT_YET = "SET-All-ReLU has not learnt anything yet"
MARGIN = 0.01  # of accuracy that pruning may cost: one percentage point


@dataclass(frozen=True)
class Interval:
    """A difference of means over seeds, with its confidence interval."""

    difference: float
    low: float
    high: float


def welch(a: Sequence[float], b: Sequence[float]) -> Interval | None:
    """Return mean(a) - mean(b) with Welch's confidence interval; None without spread to judge by.

    Parameters
    ----------
    a, b : sequence of float
        One value a seed, at least two each.

    Notes
    -----
    Welch (1947): standard error of the difference from both samples' variances, degrees of freedom
    after Satterthwaite. Samples without any spread have an interval of width 0.
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
    """One question to the results, on one data set.

    Attributes
    ----------
    question : str
    dataset : str
        Title; "" if there is none.
    profile : str
        Of the results that answered.
    seeds : str
        How many runs there are: of the method, and of what it is compared with.
    evidence : str
        Numbers, computed; "" if there are none.
    outcome : str
        `HOLDS`, `FAILS`, `UNDECIDED` or `UNTESTED`.
    """

    question: str
    dataset: str = ""
    profile: str = ""
    seeds: str = ""
    evidence: str = ""
    outcome: str = UNTESTED


@dataclass(frozen=True)
class Claim:
    """A claim of the paper's abstract.

    Attributes
    ----------
    key : str
        "C1" to "C5".
    text : str
    rule : str
        When it holds.
    ask : callable
        Puts the questions to results.
    """

    key: str
    text: str
    rule: str
    ask: Callable[[Evidence], list[Check]]


@dataclass(frozen=True)
class Evidence:
    """The results that checks are answered from.

    Attributes
    ----------
    sources : tuple of Results
        The most trusted first: per data set, the first that can answer does.
    extreme : dict of Row to dict
        Runs of T-extreme.
    """

    sources: tuple[Results, ...]
    extreme: dict[Row, Result] = field(default_factory=dict)

    def compare(
        self,
        question: str,
        methods: tuple[str, str],
        judge: Callable[[list[Result], list[Result]], tuple[str, str]],
        accuracy: bool,
    ) -> list[Check]:
        """Ask a question on every data set.

        Parameters
        ----------
        question : str
        methods : (str, str)
            Whose runs are compared.
        judge : callable
            Makes evidence and outcome of the two methods' runs.
        accuracy : bool
            It is about accuracy: surrogates are left out.

        Returns
        -------
        list of Check
            One per data set.
        """
        checks = []
        for dataset in self.sources[0].study.datasets:
            for source in self.sources:
                evidence, outcome = _answer(source, dataset, methods, judge, accuracy)
                if outcome != UNTESTED:
                    break
            title = source.title(dataset)
            profile = seeds = ""
            if outcome != UNTESTED:
                profile = source.profile
                seeds = ", ".join(str(len(source.of(dataset, method))) for method in methods)
            checks.append(Check(question, title, profile, seeds, evidence, outcome))
        return checks


def _answer(
    source: Results,
    dataset: str,
    methods: tuple[str, str],
    judge: Callable[[list[Result], list[Result]], tuple[str, str]],
    accuracy: bool,
) -> tuple[str, str]:
    """Return what a source's runs say on one data set: evidence and outcome."""
    for method in methods:
        if why := conditions.excluded(dataset, method):
            return why, UNTESTED
    lost, reference_lost = (source.diverged_of(dataset, method) for method in methods)
    if lost:
        return f"{len(lost)} run(s) diverged", FAILS
    if reference_lost:
        return f"{len(reference_lost)} run(s) of what it is compared with diverged", UNTESTED
    first, second = (source.of(dataset, method) for method in methods)
    if not (first and second):
        return "no runs", UNTESTED
    if accuracy and first[0]["data"]["surrogate"]:
        return "a surrogate's accuracy is no evidence", UNTESTED
    return judge(first, second)


# --- how two methods' runs are compared ----------------------------------------------------------


def _accuracies(runs: list[Result]) -> list[float]:
    return [float(run["test_accuracy"]) for run in runs]


def _more_accurate(first: list[Result], second: list[Result]) -> tuple[str, str]:
    if not have_learnt(first):
        return _NOT_YET, UNDECIDED
    found = welch(_accuracies(first), _accuracies(second))
    return _points(found), judged(found)


def _not_less_accurate(first: list[Result], second: list[Result]) -> tuple[str, str]:
    if not have_learnt(second):
        return _NOT_YET, UNDECIDED
    found = welch(_accuracies(first), _accuracies(second))
    return _points(found), judged(found, -MARGIN)


def _points(found: Interval | None) -> str:
    if found is None:
        return "fewer than two seeds"
    values = (100 * v for v in (found.difference, found.low, found.high))
    return "{:+.2f} points [{:+.2f}, {:+.2f}]".format(*values)


def _factor(first: list[float], second: list[float]) -> tuple[str, str]:
    """Judge whether values of `first` are larger, as a factor: times and flows are positive."""
    found = welch(np.log(first).tolist(), np.log(second).tolist())
    if found is None:
        return "fewer than two seeds", UNTESTED
    values = (math.exp(v) for v in (found.difference, found.low, found.high))
    return "× {:.3g} [{:.3g}, {:.3g}]".format(*values), judged(found)


def _faster(first: list[Result], second: list[Result]) -> tuple[str, str]:
    timed = of_one_machine(second, first)
    if not all(timed):
        return "runs of different machines", UNTESTED
    evidence, outcome = _factor(*([core_seconds(run) for run in runs] for runs in timed))
    left_out = len(first) + len(second) - sum(map(len, timed))
    return evidence + f"; {left_out} run(s) of another machine left out" * bool(left_out), outcome


def _more_flow(first: list[Result], second: list[Result]) -> tuple[str, str]:
    if not have_learnt(first):
        return _NOT_YET, UNDECIDED
    return _factor(*((10 ** flow_logs(r)[:, 1:].mean(axis=1)).tolist() for r in (first, second)))


def _truly_sparse(first: list[Result], second: list[Result]) -> tuple[str, str]:
    """Judge whether there never were more connections than at the start: nothing hides a mask."""
    most = max(epoch["nnz"] / run["nnz_start"] for run in first for epoch in run["epochs"])
    density = np.mean([run["nnz_start"] for run in first]) / second[0]["nnz_start"]
    ok = most <= 1 and all(run["nnz_start"] < second[0]["nnz_start"] for run in first)
    return f"{100 * density:.2g} % of the dense weights", HOLDS if ok else FAILS


def _fewer(first: list[Result], second: list[Result]) -> tuple[str, str]:
    left = [a["nnz_end"] / a["nnz_start"] for a in first]
    before = [b["nnz_end"] / b["nnz_start"] for b in second]
    ok = max(left) < min(before)
    return f"{100 * np.mean(left):.0f} % of the connections left", HOLDS if ok else FAILS


# --- the claims ----------------------------------------------------------------------------------

_SPARSE, _RELU, _PRUNED = "set-all-relu", "set-relu", "set-all-relu-pruned"


def _c1(evidence: Evidence) -> list[Check]:
    return [
        *evidence.compare(
            "never more connections than at the start, fewer than dense",
            (_SPARSE, "dense"),
            _truly_sparse,
            False,
        ),
        *evidence.compare("training is faster than dense", (_SPARSE, "dense"), _faster, False),
        *evidence.compare(
            "parallel training is faster than dense", ("wasap", "dense"), _faster, False
        ),
    ]


def _c2(evidence: Evidence) -> list[Check]:
    pair = (_SPARSE, _RELU)
    return [
        *evidence.compare("more gradient flow than ReLU", pair, _more_flow, True),
        *evidence.compare("more accurate than ReLU", pair, _more_accurate, True),
    ]


def _c3(evidence: Evidence) -> list[Check]:
    pair = (_PRUNED, _SPARSE)
    return [
        *evidence.compare("fewer connections", pair, _fewer, False),
        *evidence.compare("accuracy kept", pair, _not_less_accurate, True),
    ]


def _c4(evidence: Evidence) -> list[Check]:
    large = {row: run for row, run in evidence.extreme.items() if row.neurons >= BAT}
    questions = "it is trained within its machine's memory", "its loss falls", "it beats chance"
    if not large:
        return [Check(question) for question in questions]
    checks = []
    for row, run in sorted(large.items()):
        answers = [_within_memory(run), _loss_falls(run)]
        answers += [_beats_chance(run)] if row.neurons == BAT else []
        label = f"artificial, {row.neurons:.0e} neurons, {row.hidden_layers} hidden layer(s)"
        checks += [
            Check(question, label, run["profile"], "1", *answer)
            for question, answer in zip(questions, answers, strict=False)
        ]
    return checks


def _within_memory(run: Result) -> tuple[str, str]:
    peak, there = run["peak_bytes"] / 2**30, run["provenance"]["memory_gib"]
    text = f"{len(run['losses'])} steps with {peak:.1f} of {there:.1f} GiB"
    return text, HOLDS if run["losses"] and peak <= there else FAILS


def _loss_falls(run: Result) -> tuple[str, str]:
    found = run["trend"]
    if found is None:
        return "fewer than three steps", UNTESTED
    return f"Kendall's τ {found['tau']:+.2f}, p = {found['p']:.1g}", _by_p(found["p"])


def _beats_chance(run: Result) -> tuple[str, str]:
    found = run["test"]
    if found is None:
        return "no held-out samples", UNTESTED
    text = f"{found['correct']} of {found['n']} held-out samples right, p = {found['p']:.1g}"
    return text, _by_p(found["p"])


def _by_p(p: float) -> str:
    """Judge by a one-sided test; what the other side would reject does not hold."""
    return HOLDS if p < 1 - CONFIDENCE else FAILS if p > CONFIDENCE else UNDECIDED


def _c5(evidence: Evidence) -> list[Check]:
    return [
        *evidence.compare("more accurate than SET-ReLU", (_SPARSE, _RELU), _more_accurate, True),
        *evidence.compare("more accurate than dense", (_SPARSE, "dense"), _more_accurate, True),
        *evidence.compare("faster than dense", (_SPARSE, "dense"), _faster, False),
    ]


CLAIMS = (
    Claim(
        "C1",
        "Truly sparse training, from scratch, without masks, in parallel, is faster than dense.",
        "On every data set SET-All-ReLU never has more connections than it began with, and trains "
        "in less time than the dense network on as many cores; so does parallel training, in "
        "seconds × cores.",
        _c1,
    ),
    Claim(
        "C2",
        "All-ReLU favours the gradient flow, and so beats ReLU in sparse networks.",
        "On every data set the gradient flow, as a geometric mean over the epochs, and the final "
        "accuracy are higher with All-ReLU than with ReLU.",
        _c2,
    ),
    Claim(
        "C3",
        "Importance pruning removes redundant neurons' connections: fewer parameters, accuracy "
        "kept.",
        "On every data set pruning during training leaves fewer connections, and costs less than "
        "one percentage point of accuracy.",
        _c3,
    ),
    Claim(
        "C4",
        "A network of the order of 5·10⁷ neurons can be trained.",
        "Networks of at least 5·10⁷ neurons take training steps in their machine's memory; their "
        "loss falls (Kendall's test for a trend), and those of 5·10⁷ neurons are right on held-out "
        "samples more often than chance (binomial test), one-sided, at 5 %.",
        _c4,
    ),
    Claim(
        "C5",
        "More accurate than SET with ReLU, and than dense, while being faster.",
        "On every data set SET-All-ReLU is more accurate than SET-ReLU and than the dense network, "
        "and trains in less time than the dense network.",
        _c5,
    ),
)


def verdict(checks: Sequence[Check]) -> str:
    """Return what checks say together.

    Returns
    -------
    str
        "holds" if all do; "does not hold" if none does and all are decided; "not tested here yet"
        if none was tested; else in how many of the tested checks it holds, and what is open.
    """
    counts = {o: sum(c.outcome == o for c in checks) for o in (HOLDS, FAILS, UNDECIDED, UNTESTED)}
    tested = len(checks) - counts[UNTESTED]
    if not tested:
        return UNTESTED
    if counts[HOLDS] == len(checks):
        return HOLDS
    if counts[FAILS] == len(checks):
        return FAILS
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
    full = [c for c in checks if c.outcome != UNTESTED and c.profile == "paper"]
    tested = sum(c.outcome != UNTESTED for c in checks)
    if len(full) in (0, tested):
        return ""
    return f" ({sum(c.outcome == HOLDS for c in full)} of {len(full)} at full length)"


class Ledger:
    """All claims, judged.

    Parameters
    ----------
    *sources : Results
        Of L-claims: recorded ones first, where they are to be preferred.
    extreme : dict of Row to dict, optional
        Runs of T-extreme, as `extreme.recorded` returns them.

    Attributes
    ----------
    checks : dict of str to list of Check
        By claim.
    """

    def __init__(self, *sources: Results, extreme: dict[Row, Result] | None = None) -> None:
        self._sources, self._extreme = sources, extreme or {}
        evidence = Evidence(sources, self._extreme)
        self.checks = {claim.key: claim.ask(evidence) for claim in CLAIMS}

    @property
    def verdicts(self) -> dict[str, str]:
        """Return each claim's verdict."""
        return {key: verdict(checks) for key, checks in self.checks.items()}

    def glue(self) -> None:
        """Offer the verdicts to other pages of the book, as "C1-verdict" to "C5-verdict"."""
        from myst_nb import glue

        for key, text in self.verdicts.items():
            glue(f"{key}-verdict", text, display=False)

    def table(self) -> Table:
        """Make L-claims: claim, rule, verdict."""
        rows = [
            {
                "claim": claim.key,
                "text": claim.text,
                "rule": claim.rule,
                "verdict": self.verdicts[claim.key],
            }
            for claim in CLAIMS
        ]
        plain = pd.DataFrame(rows)
        shown = pd.DataFrame(
            {
                "claim": [f"**{row['claim']}** {row['text']}" for row in rows],
                "it holds if": plain["rule"],
                "verdict": [f"**{v}**" for v in plain["verdict"]],
            }
        )
        caption = (
            "**The claims and their verdicts.** The rules stand in the code and know no result. "
            f'"Higher", "less" and "more" mean that the {100 * CONFIDENCE:.0f} % confidence '
            "interval of the difference between the means over seeds (Welch) lies on that side; "
            "where it does not, the check is undecided. So it is where SET-All-ReLU is no better "
            "than guessing (its training loss is above 99 % of the logarithm of the number of "
            "classes): then the schedule is too short to compare. "
            + " ".join(f"*Source: {s.provenance}.*" for s in self._sources if s.runs)
            + self._source_of_c4
        )
        return Table("L-claims", shown, caption, plain)

    @property
    def _source_of_c4(self) -> str:
        machines = sorted({run["provenance"]["cpu"] for run in self._extreme.values()})
        return f" *C4: recorded runs of T-extreme, {', '.join(machines)}.*" if machines else ""

    def evidence(self) -> Table:
        """Make the second part of L-claims: every check with its numbers."""
        rows = [
            {
                "claim": key,
                "check": check.question,
                "data set": check.dataset or "—",
                "profile": check.profile or "—",
                "seeds": check.seeds or "—",
                "evidence": check.evidence or "—",
                "outcome": check.outcome,
            }
            for key, checks in self.checks.items()
            for check in checks
        ]
        plain = pd.DataFrame(rows)
        caption = (
            "**The evidence.** Differences and ratios of means over seeds, with their "
            f"{100 * CONFIDENCE:.0f} % confidence intervals in brackets. Seeds: of the method, and "
            "of what it is compared with; few make wide intervals. Where results of profile paper "
            "are recorded and can answer (times on different machines cannot), they decide; else "
            "those of this build."
        )
        return Table("L-claims-evidence", plain.assign(claim=_once(rows)), caption, plain)


def _once(rows: list[dict[str, str]]) -> list[str]:
    return [
        row["claim"] if i == 0 or rows[i - 1]["claim"] != row["claim"] else ""
        for i, row in enumerate(rows)
    ]
