"""The differences from the authors' released code, and what they are worth: a table, a picture."""

import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from sparsecore.paper import forest
from sparsecore.paper.claims import FAILS, HOLDS, UNDECIDED, Check
from sparsecore.paper.page import Column, Note, Picture, Table
from sparsecore.paper.store import Result
from sparsecore.paper.training import shown
from sparsecore.paper.training.effects import Runs, difference, pairs
from sparsecore.paper.training.studies import Results

FACTS = json.loads(Path(__file__).with_name("deviations.json").read_text())
_WORDS = {HOLDS: "released, or λ = 0, better", FAILS: "ours better", UNDECIDED: "unclear"}


def _variants(recorded: Results, fact: Result) -> Iterator[tuple[Check, list[Runs], list[str]]]:
    """Yield what is compared, the runs of the released variant and of ours, and divergences."""
    for ways, name in itertools.product(fact.get("measured", ()), recorded.study.datasets):
        decays = {decay for _, decay in ways}
        decay = decays.pop() if len(decays) == 1 else None
        check = Check(row=fact["subject"], dataset=recorded.title(name), decay=decay, threshold=0.0)
        runs, lost = (
            [recorded.at(decay).of(name, method, diverged=diverged) for method, decay in ways]
            for diverged in (False, True)
        )
        told = [
            f"{check.where}: {len(some)} run{'s' * (len(some) > 1)} of {whose} variant diverged"
            for some, whose in zip(lost, ("the released", "our"), strict=True)
            if some
        ]
        yield check, runs, told


def figure(recorded: Results) -> Picture | Note:
    """Make F-deviations: the measured effects with their intervals."""
    checks, diverged = list[Check](), list[str]()
    for check, runs, lost in itertools.chain(*(_variants(recorded, fact) for fact in FACTS)):
        diverged += [f"{check.row}, {text}" for text in lost]
        if e := difference(*runs):
            checks.append(replace(
                check, effect=100 * e.value, low=100 * e.low, high=100 * e.high,
                evidence=shown.points(e), outcome={1: HOLDS, -1: FAILS, 0: UNDECIDED}[e.sign],
            ))  # fmt: skip
    if not checks:
        return Note(shown.absent(recorded))
    most = max(checks, key=lambda check: abs(check.effect or 0))
    clear = sum(check.outcome != UNDECIDED for check in checks)
    finding = (
        f"{clear} of {len(checks)} measured effects have an uncorrected 95 % interval without 0. "
        f"The largest: {most.row}, {most.where}: {most.evidence}. "
        + shown.sentence("", "; ".join(diverged))
    )
    caption = (
        "**What the differences are worth.** Final test accuracy, the released variant minus ours "
        "(weight decay: λ = 0 minus λ = 0.0002), with uncorrected 95 % intervals. Hollow: the "
        "interval includes 0. What to see: how far the filled marks lie from the dashed line."
    )
    alt = "Effect and interval of each measured difference from the released code, in points."
    drawing, sources = forest.drawn([checks], _WORDS), shown.source(recorded)
    return Picture("F-deviations", drawing, caption, alt, sources, finding)


def table(recorded: Results) -> Table:
    """Make T-deviations: the differences from the released code, and the measured effects."""
    rows = []
    for fact in FACTS:
        effects = []
        for check, runs, lost in _variants(recorded, fact):
            effects += lost
            if all(runs):
                effects.append(f"{check.where}: {shown.gap(*runs)}")
                left = [100 * np.mean([r["nnz_end"] / r["nnz_start"] for r in x])
                        for x in pairs(*runs)[:2]]  # fmt: skip
                if left[0] != left[1]:
                    effects[-1] += " ({:.0f} % of the connections left, not {:.0f} %)".format(*left)
        rows.append({**fact, "effect": "; ".join(effects or [fact["effect"]])})
    columns = [Column(t, t, number=False) for t in ("subject", "released", "ours", "effect")]
    caption = (
        "**Differences from the authors' released code.** Where runs of both variants are "
        "recorded, the effect is the released variant's final test accuracy minus ours (weight "
        "decay: λ = 0 minus λ = 0.0002), with its 95 % confidence interval."
    )
    return Table.of("T-deviations", rows, columns, caption, shown.source(recorded))
