"""The ledger of the paper's claims: each with its rule, the evidence, and a verdict.

A claim consists of checks: one per question and data set, and per weight decay where training
depends on it. The rule of a check is written here and does not depend on any result. By its
results a check holds, fails, or is undecided; without results it is not tested here yet. Checks
that are left out (a dense network that does not fit, a surrogate's accuracy) do not count.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import binom, combine_pvalues

from sparsecore.extreme.config import N_CLASSES
from sparsecore.paper.extreme.runs import BAT, Row
from sparsecore.paper.page import Column, Table
from sparsecore.paper.store import Result, origin
from sparsecore.paper.training import conditions, effects, shown
from sparsecore.paper.training.effects import CONFIDENCE, Effect, Runs, core_seconds, two_digits
from sparsecore.paper.training.figures import flow_logs, mean_flows, tenths
from sparsecore.paper.training.shown import clocked, epoch_seconds, points, sentence, source
from sparsecore.paper.training.studies import Results, have_learnt
from sparsecore.settings import DECAYS

HOLDS, FAILS, UNDECIDED, UNTESTED = "holds", "fails", "undecided", "not tested here yet"
LEFT_OUT = "left out"
_OPEN = UNTESTED, LEFT_OUT

MARGIN = 0.01  # accuracy is kept if less than this is lost: one percentage point


@dataclass(frozen=True)
class Check:
    """One question to the results, on one data set, and the answer."""

    question: str = ""
    row: str = ""  # its row in the grid
    dataset: str | None = None
    decay: float | None = None  # None where the answer does not depend on it
    seeds: str | None = None  # the numbers of runs of the method and of its reference
    evidence: str | None = None
    effect: float | None = None
    low: float | None = None
    high: float | None = None
    threshold: float = 1.0  # of the effect; 1 for a ratio
    unit: str | None = None  # of effect, low, high, threshold: "points", "×" or "%"
    p: float | None = None  # two-sided
    adjusted: float | None = None  # p, corrected for the number of the claim's tested checks
    outcome: str = UNTESTED

    @property
    def where(self) -> str:
        """The data set, and the weight decay if the answer depends on it."""
        return f"{self.dataset}" + ("" if self.decay is None else f" at λ = {self.decay:g}")


def _answer(p: float, evidence: str, other: float | None = None, **more: Any) -> Check:
    """Return a one-sided test's answer; it is provisional until `_ask` has corrected p."""
    # `other` is the p of the other side: for counts, the two add up to more than 1.
    other = 1 - p if other is None else other
    outcome = HOLDS if p < other else FAILS
    return Check(evidence=evidence, p=min(1.0, 2 * min(p, other)), outcome=outcome, **more)


def measured(found: Effect | None, unit: str, note: str = "") -> Check:
    """Return the answer that follows from an effect."""
    if found is None:
        return Check(evidence="nothing varies between runs", outcome=UNDECIDED)
    values = found.value, found.low, found.high
    scaled = [100 * v if unit == "points" else math.exp(v) for v in values]
    times = "× {} [{}, {}]".format
    text = points(found) if unit == "points" else times(*map(two_digits, scaled))
    about = dict(zip(("effect", "low", "high"), scaled, strict=True))
    return _answer(found.p, text + note, unit=unit, **about)


# --- how two methods' runs are compared ----------------------------------------------------------


def _difference(first: Runs, second: Runs, threshold: float = 0.0) -> Check:
    """Judge whether the first runs are more accurate than the second by more than `threshold`."""
    found = effects.difference(first, second, threshold=threshold)
    best = [shown.accuracy(runs, "best_test_accuracy") for runs in (first, second)]
    note = f"; at the best epochs {best[0] - best[1]:+.2f}"
    left = np.mean([run["nnz_end"] / run["nnz_start"] for run in first])
    if left < 1:  # at the best epoch there were more
        peaks = [max(run["epochs"], key=lambda e: e.get("test_accuracy", 0)) for run in first]
        then = np.mean([e["nnz"] / run["nnz_start"] for e, run in zip(peaks, first, strict=True)])
        note = f" with {100 * left:.0f} % of the connections{note} with {100 * then:.0f} %"
    if not all(any("test_right" in run for run in runs) for runs in (first, second)):
        note += "; test rows not paired"
    return replace(measured(found, "points", note), threshold=100 * threshold)


def _ratio(
    first: Any, second: Any, paired: bool, usual: float | None = None, note: str = ""
) -> Check:
    """Judge by their logarithms whether the values of `first` are larger; show the ratio."""
    if min(len(first), len(second)) < 2:
        return Check(evidence="fewer than two seeds")
    found = effects.log_ratio(first, second, paired)
    if found and usual:
        found = replace(found, value=math.log(usual))
    return measured(found, "×", note)


def _more_flow(first: Runs, second: Runs) -> Check:
    *_, paired = effects.pairs(first, second)
    ours, others = (10 ** tenths(flow_logs(runs))[0] for runs in (first, second))
    note = f"; in the first tenth of the epochs {_ratio(ours, others, paired).evidence}"
    return _ratio(mean_flows(first), mean_flows(second), paired, note=note)


# --- the claims ----------------------------------------------------------------------------------

_SPARSE, _RELU, _PRUNED, _PARALLEL = "set-all-relu", "set-relu", "set-all-relu-pruned", "wasap"


class Question(NamedTuple):
    """A question about two methods on every data set: about their runs, or about their times."""

    text: str
    first: str
    second: str
    judge: Callable[[Runs, Runs], Check] | None = None
    times: str = ""  # the "core-seconds" or "seconds" of an epoch
    row: str = ""  # in the grid; by default the text


class Claim(NamedTuple):
    """A claim of the paper's abstract, the rule by which it holds, and its questions."""

    key: str
    text: str
    rule: str
    questions: tuple[Question, ...] = ()  # none: the claim is about networks of extreme size


_kept = partial(_difference, threshold=-MARGIN)
CLAIMS = (
    Claim(
        "C1",
        "Truly sparse training, from scratch, without masks, in parallel, is faster than dense.",
        "On every data set, SET-All-ReLU and WASAP take fewer core-seconds (seconds × cores) per "
        "epoch than the dense network. WASAP takes fewer seconds than SET-All-ReLU, and loses less "
        "than one percentage point of accuracy against it. (Training is from scratch and without "
        "masks by construction.)",
        (
            Question("faster than dense", _SPARSE, "dense", times="core-seconds"),
            Question("parallel training faster than dense", _PARALLEL, "dense",
                     times="core-seconds", row="in parallel: faster than dense"),
            Question("parallel training faster than sequential, in seconds", _PARALLEL, _SPARSE,
                     times="seconds", row="in parallel: faster than sequential"),
            Question("parallel training loses less than one point of accuracy to sequential",
                     _PARALLEL, _SPARSE, _kept, row="in parallel: less than 1 point lost"),
        ),
    ),
    Claim(
        "C2",
        "All-ReLU favours the gradient flow, and so beats ReLU in sparse networks.",
        "On every data set, the gradient flow (its geometric mean over the epochs) and the final "
        "accuracy are higher with All-ReLU than with ReLU.",
        (
            Question("more gradient flow than ReLU", _SPARSE, _RELU, _more_flow,
                     row="All-ReLU: more gradient flow"),
            Question("more accurate than ReLU", _SPARSE, _RELU, _difference,
                     row="All-ReLU: more accurate"),
        ),
    ),
    Claim(
        "C3",
        "Importance pruning removes redundant neurons' connections: fewer parameters, accuracy "
        "kept.",
        "On every data set, pruning SET-All-ReLU during training by the sequential schedule costs "
        "less than one percentage point of accuracy. (Fewer connections are left by construction.)",
        (Question("pruning loses less than one point of accuracy", _PRUNED, _SPARSE, _kept,
                  row="pruning: less than 1 point lost"),),
    ),
    Claim(
        "C4",
        "A network of the order of 5·10⁷ neurons can be trained.",
        "The loss of networks of at least 5·10⁷ neurons falls (Kendall's test for a trend). "
        "Networks of 5·10⁷ neurons are right on held-out samples more often than chance (binomial "
        "test) and than the same networks with frozen hidden layers (sign test; it assumes the "
        "worst: that no sample is wrong in both, because the record has only counts). Seeds are "
        "combined: the trends' p values by Stouffer's method, the counts by their sums.",
    ),
    Claim(
        "C5",
        "More accurate than SET with ReLU, and than dense, while being faster.",
        "On every data set, SET-All-ReLU is more accurate than the dense network. The verdict also "
        "counts C2's checks of accuracy and C1's of SET-All-ReLU's time against dense.",
        (Question("more accurate than dense", _SPARSE, "dense", _difference),),
    ),
)  # fmt: skip


_OF_C5 = ("faster than dense", "All-ReLU: more accurate")  # rows of C1 and C2 that C5 also claims
_WORDS = {HOLDS: "hold{s}", FAILS: "fail{s}", UNDECIDED: "undecided", UNTESTED: "missing"}


def verdict(checks: Sequence[Check]) -> str:
    """Return the joint verdict of checks, and counts of outcomes; those left out do not count."""
    outcomes = [check.outcome for check in checks if check.outcome != LEFT_OUT]
    if len({*outcomes}) < 2:
        return next(iter(outcomes), UNTESTED)
    counts = ((outcomes.count(outcome), word) for outcome, word in _WORDS.items())
    told = ", ".join(f"{n} {word}".format(s="s" * (n == 1)) for n, word in counts if n)
    together = UNDECIDED if UNDECIDED in outcomes else "holds so far"
    return f"{'fails in some' if FAILS in outcomes else together}: {told}"


_TINY = "<\N{NO-BREAK SPACE}0.0001"  # how a smaller p is shown
_SIGNS = {FAILS: "✗", UNDECIDED: "?", HOLDS: "✓", UNTESTED: "–", LEFT_OUT: "n/a"}
_NUMBERS = {"points": "{:+.2f}".format, "×": lambda v: f"× {two_digits(v)}", "%": "{:.0f} %".format}


def sign(checks: Sequence[Check]) -> str:
    """Return checks in short: ✗ if one fails, else ? if one is undecided, else ✓; and a number."""
    # – if none is tested, n/a if all are left out; in brackets if some are missing. The number is
    # the first one's.
    mark, untested = _mark(checks), any(check.outcome == UNTESTED for check in checks)
    part = untested and mark not in (_SIGNS[UNTESTED], _SIGNS[LEFT_OUT])
    number = next((_NUMBERS[c.unit](c.effect) for c in checks if c.unit), "")
    number += "†" * any(" of " in str(check.seeds) for check in checks)  # runs are missing
    return f"{f'({mark})' if part else mark} {number}".strip().replace(" ", "\N{NO-BREAK SPACE}")


def _mark(checks: Sequence[Check]) -> str:
    outcomes = {check.outcome for check in checks}
    return next((mark for outcome, mark in _SIGNS.items() if outcome in outcomes), "")


def _held(checks: Sequence[Check]) -> str:
    """Return the sign of the checks that are tested, and how many of them hold."""
    tested = [check for check in checks if check.outcome not in _OPEN]
    held = sum(check.outcome == HOLDS for check in tested)
    counts = f" {held} of {len(tested)}".replace(" ", "\N{NO-BREAK SPACE}") * bool(tested)
    return _mark(tested or checks) + counts


# --- the ledger ----------------------------------------------------------------------------------


class Ledger:
    """All claims, judged by results of L-claims, and by runs of T-extreme and of T-times."""

    def __init__(
        self, results: Results, extreme: Mapping[Any, Result] | None = None,
        times: Mapping[str, Result] | None = None,
    ) -> None:  # fmt: skip
        self.results, self._times = results, times or {}
        self._extreme = {key: run for key, run in (extreme or {}).items() if isinstance(key, Row)}
        self.checks = {claim.key: self._ask(claim) for claim in CLAIMS}
        shared = [c for key in ("C1", "C2") for c in self.checks[key] if c.row in _OF_C5]
        self.verdicts = {
            key: verdict(checks + shared * (key == "C5")) for key, checks in self.checks.items()
        }

    def _ask(self, claim: Claim) -> list[Check]:
        """Return a claim's answers; those that chance alone could have given are undecided."""
        checks = [] if claim.questions else list(_extreme_answers(self._extreme))
        for question in claim.questions:
            for dataset in self.results.study.datasets:
                for decay in [None] if question.times else DECAYS:
                    at = self.results.at(DECAYS[0] if decay is None else decay)
                    found = self._compare(question, at, dataset)
                    checks.append(replace(
                        found, question=question.text, row=question.row or question.text,
                        dataset=self.results.title(dataset), decay=decay,
                    ))  # fmt: skip
        tested = [number for number, check in enumerate(checks) if check.p is not None]
        adjusted = effects.holm([checks[number].p or 0.0 for number in tested])
        for number, p in zip(tested, adjusted, strict=True):
            decided = checks[number].outcome if p < 1 - CONFIDENCE else UNDECIDED
            checks[number] = replace(checks[number], adjusted=p, outcome=decided)
        return checks

    def _compare(self, question: Question, results: Results, dataset: str) -> Check:
        """Answer a question on one data set at one weight decay."""
        methods = question.first, question.second
        if obstacle := self._obstacle(question, results, dataset):
            return Check(evidence=obstacle[0], outcome=obstacle[1])
        if question.judge is None:
            spent = epoch_seconds(results, dataset, self._times)
            own, other = (
                np.multiply(turns, used if question.times == "core-seconds" else 1)
                for turns, used in (spent[method] for method in methods)
            )
            usual, paired = core_seconds(other) / core_seconds(own), results.profile == "paper"
            rounds = f"{len(own)} rounds" if paired else f"{len(own)}, {len(other)}"
            return replace(_ratio(other, own, paired, usual), seeds=rounds)
        runs = [results.of(dataset, method) for method in methods]
        *used, _ = effects.pairs(*runs)  # all numbers are of the same seeds
        seeds = []
        for method, there, some in zip(methods, runs, used, strict=True):
            wanted = results.wanted(dataset, method)
            seeds.append(f"{len(some)}" + f" of {wanted}" * (len(there) < wanted))
        return replace(question.judge(*used), seeds=", ".join(seeds))

    def _obstacle(self, asked: Question, results: Results, dataset: str) -> tuple[str, str] | None:
        """Return why methods cannot or need not be compared, and the outcome; else None."""
        methods, judge = (asked.first, asked.second), asked.judge
        contest = results.profile == "paper"
        labels = {method: conditions.METHODS[method].label for method in methods}
        if judge and self.results.surrogate(dataset):
            return "what a network learns from a surrogate is no evidence", LEFT_OUT
        for method in methods:
            planned = results.wanted(dataset, method)
            if why := conditions.excluded(dataset, method):
                return why, LEFT_OUT
            if judge and planned < 1 + contest:
                told = f"{planned or 'no'} seed of {labels[method]} planned at this weight decay"
                return told, LEFT_OUT
        if not judge:
            timed = epoch_seconds(results, dataset, self._times).keys()
            why = "not timed side by side yet" if contest else "no runs"
            return None if timed >= set(methods) else (why, UNTESTED)
        lost, reference_lost = (results.of(dataset, method, diverged=True) for method in methods)
        if lost:
            return f"{len(lost)} run(s) diverged", FAILS
        if reference_lost:
            told = f"{len(reference_lost)} run(s) of the reference diverged"
            return told, UNDECIDED
        many = {label: len(results.of(dataset, method)) for method, label in labels.items()}
        if none := [label for label, n in many.items() if not n]:
            return f"no runs of {' and '.join(none)} yet", UNTESTED
        if min(many.values()) < 2 + contest:
            return f"fewer than {'three' if contest else 'two'} seeds", UNTESTED
        if not have_learnt(results.of(dataset, _SPARSE)):
            return "SET-All-ReLU is no better than guessing", UNDECIDED
        return None

    def _rows(self) -> Iterator[tuple[Claim, str, list[Check]]]:
        """Yield the rows of the grid: a claim, a name, and the row's checks."""
        for claim in CLAIMS:
            checks = self.checks[claim.key]
            for name in dict.fromkeys(check.row for check in checks):
                yield claim, name, [check for check in checks if check.row == name]

    def finding(self) -> str:
        """Name the rows of the grid that hold, that fail somewhere, and that are not decided."""
        starts = "Holds in every check so far", "Fails in some checks", "Not decided yet"
        groups: dict[str, list[str]] = {start: [] for start in starts}
        for claim, name, checks in self._rows():
            if outcomes := {check.outcome for check in checks} - {*_OPEN}:
                start = starts[1 if FAILS in outcomes else 2 if UNDECIDED in outcomes else 0]
                groups[start].append(f"{claim.key} {name}")
        told = (f"**{start}**: {', '.join(some)}." for start, some in groups.items() if some)
        return " ".join(told)

    def found(self, key: str, dataset: str, decay: float) -> str:
        """Return a claim's first evidence, for a data set and a weight decay."""
        about = self.results.title(dataset), decay
        return next(str(c.evidence) for c in self.checks[key] if (c.dataset, c.decay) == about)

    def grid(self) -> Table:
        """Make the grid of the first page: claims × data sets, a sign and a number in each cell."""
        titles = [self.results.title(dataset) for dataset in self.results.study.datasets]
        rows = []
        for claim, name, checks in self._rows():
            row: dict[str, Any] = {"claim": claim.key, "name": name, "held": _held(checks)}
            for title in (*titles, "artificial"):
                there = [c for c in checks if str(c.dataset).startswith(title)]
                at = ([c for c in there if c.decay in (decay, None)] for decay in DECAYS)
                row[title] = " / ".join(dict.fromkeys(filter(None, map(sign, at))))
            rows.append(row)
        link = "{{ref}}`{claim} <l-claims-{0}>` {name}"
        columns = [
            Column("claim", "", lambda r: link.format(r["claim"].lower(), **r), number=False),
            Column("tested checks that hold", "held", "**{}**", number=False),
            *(Column(title, title, number=False) for title in (*titles, "artificial")),
        ]
        cells = " ".join(text for row in rows for text in row.values())
        marks = *((mark, outcome) for outcome, mark in _SIGNS.items()), ("†", "seeds missing")
        legend = ", ".join(f"{mark} {meaning}" for mark, meaning in marks if mark in cells)
        caption = (
            f"**Outcome of the claims**: {legend}. Weight decay "
            f"{DECAYS[0]:g} / {DECAYS[1]:g}, or one for both. Numbers: points of accuracy gained; "
            "×, how many times as fast an epoch (against dense: in core-seconds) or as large a "
            "flow is; % right (C4's smallest network of ten layers)."
        )
        sources = "".join(self._sources())
        finding = f"{self.finding()}\n\n{shown.factors(self.results)}".strip()
        return Table.of("L-grid", rows, columns, caption, sources, finding)

    def table(self) -> Table:
        """Make L-claims: claim, rule, verdict."""
        rows = [
            {"claim": c.key, "text": c.text, "rule": c.rule, "verdict": self.verdicts[c.key]}
            for c in CLAIMS
        ]
        columns = (
            Column("claim", "", lambda row: f"**{row['claim']}** {row['text']}", number=False),
            Column("it holds if", "rule", number=False),
            Column("verdict: checks", "verdict", "**{}**", number=False),
        )
        caption = (
            "**The claims and their verdicts.** A check is decided if its corrected p value is "
            "below 5 %; it also fails if a run of the method diverges. Otherwise, and wherever "
            "SET-All-ReLU is no better than guessing, it is undecided."
        )
        key = f"L-claims{self.results.suffix}"
        return Table.of(key, rows, columns, caption, "".join(self._sources()), self.finding())

    def _sources(self) -> tuple[str, str]:
        """Return the origins of C4's runs, and of the other claims' runs."""
        runs = [run["provenance"] for run in self._extreme.values()]
        brains = sentence("C4: recorded runs of T-extreme", origin(runs)) * bool(runs)
        return brains, clocked(self._times) + source(self.results)

    def evidence(self, key: str) -> Table:
        """Make the second part of L-claims: the checks of a claim, with numbers."""
        timed = f"{DECAYS[0]:g} (timed)"  # times were measured at this weight decay only
        columns = [
            Column("check", "question", number=False, once=True),
            Column("data set", "dataset", number=False),
            Column("λ", "", lambda c: timed if c["decay"] is None else f"{c['decay']:g}", False),
            Column("seeds", "seeds", number=False), Column("effect", "evidence", number=False),
            Column("p (Holm)", "adjusted", lambda p: f"{p:.2g}" if p >= 1e-4 else _TINY, False),
            Column("outcome", "outcome", number=False),
        ]  # fmt: skip
        caption = (
            f"**The evidence on {key}.** Effects, with {100 * CONFIDENCE:.0f} % confidence "
            "intervals in brackets. Seeds: the method's, then its reference's (3 of 10: 3 are "
            "compared, 10 planned)."
        )
        if any(c.key == key and q.times for c in CLAIMS for q in c.questions):
            caption += " For times: the ratio of medians, the interval of geometric means."
        if key == "C4":
            caption = f"**The evidence on {key}.** Steps or held-out samples of all seeds count."
        checks = self.checks[key]
        rows = [{"claim": key, **vars(check)} for check in checks if check.outcome not in _OPEN]
        others: dict[str, dict[str, None]] = {}
        for check in (check for check in checks if check.outcome in _OPEN):
            others.setdefault(str(check.evidence), {})[check.where] = None
        told = "; ".join(f"{', '.join(where)} ({why})" for why, where in others.items())
        sources = sentence("Not tested", told) + self._sources()[key != "C4"]
        return Table.of(f"L-claims-{key}", rows, columns, caption, sources)


# --- how a run of an extreme network is judged ---------------------------------------------------

_LEARNT = ("its loss falls", "it beats chance", "its hidden layers learn")
_SIZE = "brain size trains"  # the row of the grid


def _extreme_answers(runs: Mapping[Row, Result]) -> Iterator[Check]:
    """Yield C4's checks, of networks that are large enough, each with all its seeds."""
    # The deepest first: it has runs at both weight decays, and the grid shows its number.
    ordered = sorted(runs, key=lambda row: (row.neurons, -row.hidden_layers, -row.decay, row.seed))
    large = [row for row in ordered if row.neurons >= BAT and not row.frozen]
    for row, seeds in groupby(large, key=lambda row: replace(row, seed=0)):
        layers = f"{row.hidden_layers} hidden layer{'s' * (row.hidden_layers > 1)}"
        label = f"artificial, {row.neurons / 1e6:g} million neurons, {layers}"
        answers = _learning([(runs[one], runs.get(replace(one, frozen=True))) for one in seeds])
        for question, answer in answers.items() if row.neurons == BAT else [*answers.items()][:1]:
            yield replace(answer, question=question, row=_SIZE, dataset=label, decay=row.decay)
    if not large:
        why = "no network of this size is recorded yet"
        yield from (Check(question, _SIZE, "artificial", evidence=why) for question in _LEARNT)


def _learning(runs: Sequence[tuple[Result, Result | None]]) -> dict[str, Check]:
    """Judge what networks have learnt, also against frozen hidden layers where recorded."""
    seeds, trends = str(len(runs)), [run["trend"] for run, _ in runs]
    told = ", ".join(f"{trend['tau']:+.2f}" for trend in trends)
    told = f"Kendall's τ {told}; {len(runs[0][0]['losses'])} steps"
    falling = np.clip([trend["p"] for trend in trends], 1e-16, 1 - 1e-16)
    p = float(combine_pvalues(falling, method="stouffer").pvalue)
    falls = _answer(p, told, seeds=seeds)
    right, n = (sum(run["test"][name] for run, _ in runs) for name in ("correct", "n"))
    told, odds = f"{right} of {n} held-out samples right", binom(n, 1 / N_CLASSES)
    p, worse = float(odds.sf(right - 1)), float(odds.cdf(right))
    chance = _answer(p, told, worse, seeds=seeds, effect=100 * right / n, unit="%")
    frozen = Check(evidence="the control with frozen hidden layers is not recorded yet")
    if pairs := [(run["test"], other["test"]) for run, other in runs if other]:
        # Both saw the same samples. Results do not say which ones each got wrong: at worst, none
        # is wrong in both.
        n = sum(own["n"] for own, _ in pairs)
        right = [sum(test["correct"] for test in some) for some in zip(*pairs, strict=True)]
        wrong = [n - many for many in right]
        worse, p = (float(binom.sf(many - 1, sum(wrong), 0.5)) for many in wrong)
        told = f"{right[0]} of {n} right, {right[1]} with hidden layers frozen"
        frozen = _answer(p, told, worse, seeds=str(len(pairs)))
    return dict(zip(_LEARNT, (falls, chance, frozen), strict=True))
