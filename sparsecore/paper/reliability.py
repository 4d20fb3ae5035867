"""T-reliability: what was done to runs, files and models to break them, and what came of it.

The checks are tests that take too long for the suite; each writes its counts. The record keeps them.
"""

from __future__ import annotations

from sparsecore.paper.page import Column, Table
from sparsecore.paper.store import Entry, origin

STUDY = "T-reliability"
#: What a check does, and what holds if all is well; by the name of its result.
CHECKS = {
    "kills": ("Runs killed at random moments, then resumed", "the unbroken run's weights, bit for bit"),
    "interrupts": ("Ctrl-C at every moment", "the model as before or after a step"),
    "fuzz": ("Inputs that are wrong at random", "read right or refused with a clear error"),
    "leftovers": ("MPI jobs, some ended by force", "nothing left in memory, folders or processes"),
}  # fmt: skip
_SCHEMA = {"rows": [{"what": str, "tried": int, "held": int}]}


def entries(profile: str = "paper") -> list[Entry]:
    """Return where the counts of the checks are kept; there is one profile."""
    return [Entry(STUDY, name, "paper", lambda result: _SCHEMA) for name in CHECKS]


def table() -> Table:
    """Return a row for each thing tried: how often, and how often what is promised held."""
    rows, sources = [], []
    for entry in entries():
        if (result := entry.recorded()) is None:
            continue
        check, promise = CHECKS[entry.name]
        rows += [{"check": check, "promise": promise, **row} for row in result["rows"]]
        sources.append(f"{check}: {origin(result['provenance'])}.")
    failed = sum(row["tried"] - row["held"] for row in rows)
    columns = [
        Column("what was done", "check", number=False, once=True),
        Column("to", "what", number=False),
        Column("what is promised", "promise", number=False, once=True),
        Column("times", "tried", "{:,}"),
        Column("it held", "held", "{:,}"),
    ]
    caption = (
        f"**Attempts to break it.** {sum(row['tried'] for row in rows):,} attempts; the promise "
        f"failed in {failed:,}."
    )
    return Table.of(STUDY, rows, columns, caption, " ".join(sources))
