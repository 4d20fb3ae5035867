"""The differences from the authors' released code, and what they are worth: a table, a picture."""

import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from sparsecore.paper import forest
from sparsecore.paper.claims import FAILS, HOLDS, UNDECIDED, Check, measured
from sparsecore.paper.page import Column, Note, Picture, Table
from sparsecore.paper.store import NOTHING, Result
from sparsecore.paper.training import shown
from sparsecore.paper.training.effects import Runs, difference, pairs
from sparsecore.paper.training.studies import Results

FACTS = json.loads(Path(__file__).with_name("deviations.json").read_text())
_WORDS = {HOLDS: "released, λ = 0: better", FAILS: "ours, λ = 0.0002: better", UNDECIDED: "unclear"}


def _variants(recorded: Results, fact: Result) -> Iterator[tuple[Check, list[Runs], list[str]]]:
    """Yield what is compared, the runs of the released variant and of ours, and divergences."""
    for ways, name in itertools.product(fact.get("measured", ()), recorded.study.datasets):
        decays = {decay for _, decay in ways}
        decay = decays.pop() if len(decays) == 1 else None
        runs, lost = (
            [recorded.at(decay).of(name, method, diverged=diverged) for method, decay in ways]
            for diverged in (False, True)
        )
        about: Result = {"row": fact["subject"], "dataset": recorded.title(name), "decay": decay}
        if e := difference(*runs):
            outcome = {1: HOLDS, -1: FAILS, 0: UNDECIDED}[e.sign]
            found = measured(e, "points", shown.few(*runs))
            check = replace(found, **about, threshold=0.0, outcome=outcome)
        else:
            check = Check(**about, evidence=shown.gap(*runs) if all(runs) else None)
        told = [
            f"{check.where}: {len(some)} run{'s' * (len(some) > 1)} of {whose} variant diverged"
            for some, whose in zip(lost, ("the released", "our"), strict=True)
            if some
        ]
        yield check, runs, told


def figure(recorded: Results) -> Picture | Note:
    """Make F-deviations: the measured effects with their intervals."""
    found = [one for fact in FACTS for one in _variants(recorded, fact)]
    checks = [check for check, *_ in found if check.effect is not None]
    if not checks:
        return Note(shown.absent(recorded) or NOTHING["missing"])
    most = max(checks, key=lambda check: abs(check.effect or 0))
    both = {fact["subject"] for fact in FACTS if fact["ours"].startswith("both")}
    counts = [
        f"{sum(check.outcome != UNDECIDED for check in some)} of {len(some)}"
        for some in ([check for check in checks if (check.row in both) == ran] for ran in (0, 1))
    ]
    finding = (
        f"Where this book differs from the released code, {counts[0]} measured effects have an "
        f"uncorrected 95 % interval without 0; where it runs both variants, {counts[1]}. "
        "The largest, the released variant (λ = 0) minus ours (λ = 0.0002): "
        f"{most.row}, {most.where}: {most.evidence}. "
        + "".join(f"{check.row}, {text}. " for check, _, lost in found for text in lost)
    )
    caption = (
        "**What the differences are worth.** Final test accuracy, the released variant minus ours "
        "(weight decay: λ = 0 minus λ = 0.0002; LeakyReLU: slope 0.25 minus α); uncorrected 95 % "
        "intervals. Hollow: 0 is inside. What to see: how far filled marks are from the dashes."
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
            if check.evidence:
                effects.append(f"{check.where}: {check.evidence}")
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
