"""The ledger of the paper's claims: each with its rule, the evidence, and a verdict.

A claim is made of checks, each asked once: of every data set, and of both weight decays where
training depends on it. A check is a question with a rule that stands here and knows no result.
Results answer it: it holds, does not hold, or is undecided; without results it is not tested here
yet. What cannot be tested (a dense network that does not fit, a surrogate's accuracy) does not
count.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
from scipy.stats import fisher_exact

from sparsecore.paper.extreme.runs import BAT, Row
from sparsecore.paper.page import Column, Table
from sparsecore.paper.store import Result
from sparsecore.paper.training import conditions
from sparsecore.paper.training.effects import (
    CONFIDENCE,
    Effect,
    Runs,
    compared,
    counted,
    effect,
    holm,
    pairs,
    spread_of,
)
from sparsecore.paper.training.figures import flow_logs
from sparsecore.paper.training.shown import source
from sparsecore.paper.training.studies import (
    Results,
    cores,
    have_learnt,
    training_seconds,
)
from sparsecore.settings import DECAYS

HOLDS, FAILS, UNDECIDED, UNTESTED = "holds", "does not hold", "undecided", "not tested here yet"
IMPOSSIBLE = "cannot be tested"

MARGIN = 0.01  # of accuracy that may be lost where it is to be kept: one percentage point


@dataclass(frozen=True)
class Check:
    """One question to the results, on one data set, and the answer.

    `decay` is the weight decay, None where the answer does not depend on it. `seeds` are the number
    of runs of the method, and of what it is compared with. `effect` is in `unit`, "points" or "×",
    from `low` to `high`; `p` is two-sided, and `adjusted` for the number of a claim's checks.
    """

    question: str
    dataset: str | None = None
    decay: float | None = None
    seeds: str | None = None
    evidence: str | None = None
    effect: float | None = None
    low: float | None = None
    high: float | None = None
    unit: str | None = None
    p: float | None = None
    adjusted: float | None = None
    outcome: str = UNTESTED


def _measured(found: Effect | None, unit: str, seeds: str, note: str = "") -> Check:
    """Return the answer that an effect gives; it is decided when all of its claim's are there."""
    if found is None:
        return Check("", evidence="the runs do not differ at all", outcome=UNDECIDED, seeds=seeds)
    scaled = [100 * v if unit == "points" else math.exp(v) for v in vars(found).values()][:3]
    form = "{:+.2f} points [{:+.2f}, {:+.2f}]" if unit == "points" else "× {:.3g} [{:.3g}, {:.3g}]"
    p = 2 * min(found.p, 1 - found.p)
    outcome = HOLDS if found.p < 0.5 else FAILS
    return Check(
        "", seeds=seeds, evidence=form.format(*scaled) + note, effect=scaled[0], low=scaled[1],
        high=scaled[2], unit=unit, p=p, outcome=outcome,
    )  # fmt: skip


@dataclass(frozen=True)
class Evidence:
    """The results that answer: of L-claims, of T-extreme, of T-times."""

    results: Results
    extreme: Mapping[Row, Result] = field(default_factory=dict)
    times: Mapping[str, Result] = field(default_factory=dict)


Ask = Callable[[Evidence], list[Check]]


@dataclass(frozen=True)
class Claim:
    """A claim of the paper's abstract, the rule by which it holds, and what is asked of results."""

    key: str
    text: str
    rule: str
    questions: tuple[Ask, ...]

    def ask(self, evidence: Evidence) -> list[Check]:
        """Return the answers; those that chance alone could have given are undecided."""
        checks = [check for question in self.questions for check in question(evidence)]
        tested = [number for number, check in enumerate(checks) if check.p is not None]
        adjusted = holm([checks[number].p or 0.0 for number in tested])
        for number, p in zip(tested, adjusted, strict=True):
            decided = checks[number].outcome if p < 1 - CONFIDENCE else UNDECIDED
            checks[number] = replace(checks[number], adjusted=p, outcome=decided)
        return checks


# --- how two methods' runs are compared ----------------------------------------------------------

_SPARSE, _RELU, _PRUNED, _PARALLEL = "set-all-relu", "set-relu", "set-all-relu-pruned", "wasap"
Judge = Callable[[Runs, Runs], Check]


def _compare(question: str, methods: tuple[str, str], judge: Judge, timed: bool = False) -> Ask:
    """Return what asks a question about two methods on every data set.

    A question that is not about times is about what is learnt: surrogates do not count, nor does
    SET-All-ReLU where it is no better than guessing.
    """

    def answer(evidence: Evidence, results: Results, dataset: str) -> Check:
        def no(why: str, outcome: str = UNTESTED) -> Check:
            return Check("", evidence=why, outcome=outcome)

        for method in methods:
            if why := conditions.excluded(dataset, method):
                return no(why, IMPOSSIBLE)
            if not results.study.wanted(results.profile, dataset, method, results.decay):
                return no("not part of the study at this weight decay", IMPOSSIBLE)
        contest = evidence.times.get(dataset, {"rounds": {}})
        if timed and set(methods) <= contest["rounds"].keys():
            return judge(*([{**contest, "method": method}] for method in methods))
        lost, reference_lost = (results.diverged_of(dataset, method) for method in methods)
        if lost:
            return no(f"{len(lost)} run(s) diverged", FAILS)
        if reference_lost:
            return no(f"{len(reference_lost)} run(s) of what it is compared with diverged")
        first, second = (results.of(dataset, method) for method in methods)
        if not (first and second):
            return no("no runs")
        if timed and results.profile == "paper":
            return no("not timed by themselves yet")
        if not timed and first[0]["data"]["surrogate"]:
            return no("a surrogate's accuracy is no evidence", IMPOSSIBLE)
        if min(len(first), len(second)) < 2:
            return no("fewer than two seeds")
        if not timed and not have_learnt(results.of(dataset, _SPARSE)):
            return no("SET-All-ReLU has not learnt anything yet", UNDECIDED)
        return judge(first, second)

    def ask(evidence: Evidence) -> list[Check]:
        checks = []
        for dataset in evidence.results.study.datasets:
            for decay in [None] if timed else DECAYS:
                at = evidence.results.at(DECAYS[0] if decay is None else decay)
                found = replace(answer(evidence, at, dataset), question=question, decay=decay)
                checks.append(replace(found, dataset=at.title(dataset)))
        return checks

    return ask


def _more_accurate(first: Runs, second: Runs) -> Check:
    found, seeds = compared(first, second)
    return _measured(found, "points", seeds)


def _not_less_accurate(first: Runs, second: Runs) -> Check:
    found, seeds = compared(first, second, -MARGIN)
    left = np.mean([run["nnz_end"] / run["nnz_start"] for run in first])
    return _measured(found, "points", seeds, f"; {100 * left:.0f} % of the connections left")


def _larger(first: Sequence[float], second: Sequence[float], paired: bool) -> Check:
    """Judge whether values of `first` are larger, as a factor: times and flows are positive."""
    logs = np.log(first).tolist(), np.log(second).tolist()
    value = float(np.mean(logs[0]) - np.mean(logs[1]))
    return _measured(effect(value, spread_of(*logs, paired)), "×", counted(first, second))


def _faster(first: Runs, second: Runs, by_core: bool = True) -> Check:
    """Judge seconds × cores, or seconds: of turns in a contest, or of a quick build's runs."""
    if contest := first[0].get("rounds"):
        spent = [
            np.multiply(contest[m], first[0]["cores"][m] if by_core else 1).tolist()
            for m in (second[0]["method"], first[0]["method"])
        ]
        return _larger(spent[0], spent[1], True)
    spent = [
        [training_seconds(run) * (cores(run) if by_core else 1) for run in runs]
        for runs in (second, first)
    ]
    return _larger(spent[0], spent[1], False)


def _more_flow(first: Runs, second: Runs) -> Check:
    first, second, paired = pairs(first, second)
    flows = [10 ** flow_logs(runs)[:, 1:].mean(axis=1) for runs in (first, second)]
    return _larger(flows[0].tolist(), flows[1].tolist(), paired)


# --- how a run of an extreme network is judged ---------------------------------------------------


def _ask_extreme(evidence: Evidence) -> list[Check]:
    questions: dict[str, Callable[[Result, Mapping[Row, Result], Row], Check]] = {
        "its loss falls": _loss_falls,
        "it beats chance": _beats_chance,
        "its hidden layers learn": _beats_frozen,
    }
    large = {row: run for row, run in sorted(evidence.extreme.items()) if row.neurons >= BAT}
    if not large:
        return [Check(question) for question in questions]
    checks = []
    for row, run in large.items():
        if row.frozen:
            continue
        label = f"artificial, {row.neurons:.0e} neurons, {row.hidden_layers} hidden layer(s)"
        for question, judge in questions.items():
            if judge is _loss_falls or row.neurons == BAT:
                found = replace(judge(run, evidence.extreme, row), question=question)
                checks.append(replace(found, dataset=label))
    return checks


def _tested(p: float, evidence: str) -> Check:
    """Return the answer of a one-sided test."""
    both = 2 * min(p, 1 - p)
    outcome = HOLDS if p < 0.5 else FAILS
    return Check("", evidence=evidence, seeds="1", p=both, outcome=outcome)


def _loss_falls(run: Result, others: Mapping[Row, Result], row: Row) -> Check:
    if (found := run["trend"]) is None:
        return Check("", evidence="fewer than three steps")
    peak, there = run["peak_bytes"] / 2**30, run["provenance"]["memory_gib"]
    return _tested(
        found["p"],
        f"Kendall's τ {found['tau']:+.2f}, p = {found['p']:.1g}; {len(run['losses'])} steps with "
        f"{peak:.1f} of {there:.1f} GiB",
    )


def _beats_chance(run: Result, others: Mapping[Row, Result], row: Row) -> Check:
    if (found := run["test"]) is None:
        return Check("", evidence="no held-out samples")
    return _tested(
        found["p"],
        f"{found['correct']} of {found['n']} held-out samples right, p = {found['p']:.1g}",
    )


def _beats_frozen(run: Result, others: Mapping[Row, Result], row: Row) -> Check:
    control = others.get(replace(row, frozen=True))
    if control is None or not (run["test"] and control["test"]):
        return Check("", evidence="the control with frozen hidden layers is not recorded yet")
    right = [[one["test"]["correct"], one["test"]["n"] - one["test"]["correct"]]
             for one in (run, control)]  # fmt: skip
    p = float(fisher_exact(right, alternative="greater").pvalue)
    return _tested(
        p, f"{right[0][0]} of {sum(right[0])} right, {right[1][0]} with hidden layers frozen"
    )


# --- the claims ----------------------------------------------------------------------------------

CLAIMS = (
    Claim(
        "C1",
        "Truly sparse training, from scratch, without masks, in parallel, is faster than dense.",
        "On every data set SET-All-ReLU and WASAP take less time per epoch than the dense network, "
        "in seconds × cores; WASAP takes fewer seconds than SET-All-ReLU, and loses less than one "
        "percentage point of accuracy to it.",
        (
            _compare(
                "faster than dense", (_SPARSE, "dense"), _faster, timed=True
            ),
            _compare(
                "parallel training faster than dense", (_PARALLEL, "dense"), _faster, timed=True
            ),
            _compare(
                "parallel training faster than sequential, in seconds", (_PARALLEL, _SPARSE),
                partial(_faster, by_core=False), timed=True,
            ),
            _compare(
                "parallel training as accurate as sequential", (_PARALLEL, _SPARSE),
                _not_less_accurate,
            ),
        ),
    ),
    Claim(
        "C2",
        "All-ReLU favours the gradient flow, and so beats ReLU in sparse networks.",
        "On every data set the gradient flow, as a geometric mean over the epochs, and the final "
        "accuracy are higher with All-ReLU than with ReLU.",
        (
            _compare("more gradient flow than ReLU", (_SPARSE, _RELU), _more_flow),
            _compare("more accurate than ReLU", (_SPARSE, _RELU), _more_accurate),
        ),
    ),
    Claim(
        "C3",
        "Importance pruning removes redundant neurons' connections: fewer parameters, accuracy "
        "kept.",
        "On every data set pruning during training costs less than one percentage point of "
        "accuracy. (That fewer connections are left is so by construction.)",
        (_compare("accuracy kept", (_PRUNED, _SPARSE), _not_less_accurate),),
    ),
    Claim(
        "C4",
        "A network of the order of 5·10⁷ neurons can be trained.",
        "The loss of networks of at least 5·10⁷ neurons falls (Kendall's test for a trend); those "
        "of 5·10⁷ neurons are right on held-out samples more often than chance (binomial test), "
        "and than the same network with frozen hidden layers (Fisher's test).",
        (_ask_extreme,),
    ),
    Claim(
        "C5",
        "More accurate than SET with ReLU, and than dense, while being faster.",
        "On every data set SET-All-ReLU is more accurate than the dense network. (SET with ReLU is "
        "a check of C2, time of C1.)",
        (_compare("more accurate than dense", (_SPARSE, "dense"), _more_accurate),),
    ),
)  # fmt: skip


def verdict(checks: Sequence[Check]) -> str:
    """Return what checks say together; what cannot be tested does not count.

    "holds" if all do; "does not hold" if none does and all are decided; "not tested here yet" if
    none was tested; else in how many of the tested checks it holds, and what is open.
    """
    checks = [check for check in checks if check.outcome != IMPOSSIBLE]
    counts = {o: sum(c.outcome == o for c in checks) for o in (HOLDS, FAILS, UNDECIDED, UNTESTED)}
    tested = len(checks) - counts[UNTESTED]
    if not tested:
        return UNTESTED
    for outcome in (HOLDS, FAILS):
        if counts[outcome] == len(checks):
            return outcome
    parts = [f"holds in {counts[HOLDS]} of {tested} checks"]
    if counts[FAILS]:
        parts.append(f"does not in {counts[FAILS]}")
    if counts[UNDECIDED]:
        parts.append(f"undecided in {counts[UNDECIDED]}")
    if counts[UNTESTED]:
        parts.append(f"{counts[UNTESTED]} {UNTESTED}")
    return ", ".join(parts)


class Ledger:
    """All claims, judged by results of L-claims, and by runs of T-extreme and of T-times.

    The recorded results decide; what a build has of its own makes a ledger of its own. `checks` are
    the answers by claim, `verdicts` what they say together.
    """

    def __init__(
        self,
        results: Results,
        extreme: Mapping[Row, Result] | None = None,
        times: Mapping[str, Result] | None = None,
    ) -> None:
        self._evidence = Evidence(results, extreme or {}, times or {})
        self.checks = {claim.key: claim.ask(self._evidence) for claim in CLAIMS}
        self.verdicts = {key: verdict(checks) for key, checks in self.checks.items()}

    @property
    def _here(self) -> str:
        """What tells a quick build's ledger from the recorded one."""
        return "-here" * (self._evidence.results.profile == "quick")

    def at(self, key: str, decay: float) -> list[Check]:
        """Return a claim's checks at one weight decay, and those that do not depend on it."""
        return [check for check in self.checks[key] if check.decay in (decay, None)]

    def glue(self) -> None:
        """Offer the verdicts to other pages of the book, as "C1-verdict" to "C5-verdict"."""
        from myst_nb import glue

        for key, text in self.verdicts.items():
            glue(f"{key}-verdict", text, display=False)

    def table(self) -> Table:
        """Make L-claims: claim, rule, verdict at each weight decay."""
        rows = [
            {"claim": c.key, "text": c.text, "rule": c.rule, "verdict": self.verdicts[c.key]}
            | {f"verdict, λ = {decay:g}": verdict(self.at(c.key, decay)) for decay in DECAYS}
            for c in CLAIMS
        ]
        columns = (
            Column("claim", "claim", lambda row: f"**{row['claim']}** {row['text']}", number=False),
            Column("it holds if", "rule", number=False),
            *(
                Column(f"λ = {decay:g}", f"verdict, λ = {decay:g}", "**{}**", number=False)
                for decay in DECAYS
            ),
        )
        machines = sorted({run["provenance"]["cpu"] for run in self._evidence.extreme.values()})
        caption = (
            "**The claims and their verdicts**, at both weight decays λ. The rules know no result. "
            "A check is decided if chance would show such an effect in one of twenty times at most "
            "(two-sided t test, corrected by Holm for the claim's number of checks); else, and "
            "where SET-All-ReLU is no better than guessing, it is undecided."
        )
        sources = source(self._evidence.results) + (
            f" C4: recorded runs of T-extreme, {', '.join(machines)}." if machines else ""
        )
        return Table.of(f"L-claims{self._here}", rows, columns, caption, sources)

    def evidence(self) -> Table:
        """Make the second part of L-claims: every check with its numbers."""
        rows = [
            {"claim": key, **vars(check)} for key, checks in self.checks.items() for check in checks
        ]
        form = {"λ": "{:g}", "p (Holm)": "{:.2g}"}
        names = {"claim": "claim", "check": "question", "data set": "dataset", "λ": "decay"}
        names |= {"seeds": "seeds", "effect": "evidence"}
        names |= {"p (Holm)": "adjusted", "outcome": "outcome"}
        columns = [
            Column(title, name, form.get(title, "{}"), number=False, once=name == "claim")
            for title, name in names.items()
        ]
        caption = (
            "**The evidence.** Effects with their "
            f"{100 * CONFIDENCE:.0f} % confidence intervals in brackets, which count the spread "
            "over seeds (pairs, where runs start alike) and the test set's size. Seeds of the "
            "method, and of what it is compared with; of times, rounds."
        )
        return Table.of(f"L-claims-evidence{self._here}", rows, columns, caption)
