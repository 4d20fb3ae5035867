"""T-reliability: attempts to break runs, files and models, and their outcomes.

The attempts are tests that take too long for the suite: ``pytest -m "fuzz or endurance"`` with
``SPARSECORE_RECORD=1`` records their counts.
"""

import os

from sparsecore.paper import store
from sparsecore.paper.page import Column, Note, Table
from sparsecore.paper.style import source

STUDY = "T-reliability"
#: The attempts, and what is promised of each.
CHECKS = {
    "kills": ("Processes killed at random moments", "the resumed run ends as if uninterrupted"),
    "jobs": ("MPI jobs ended in six ways", "no shared memory, folder or process is left"),
    "interrupts": ("Ctrl-C at chosen moments", "the model is as before or as after a step"),
    "fuzz": (
        "Inputs with random changes",
        "each is read correctly, or refused with an error that names the fault",
    ),
}


def _entry(name: str) -> store.Entry:
    return store.Entry(STUDY, name, "paper")


def entries(profile: str) -> list[store.Entry]:
    """Return the recorded results; there is no quick version."""
    paths = sorted((store.root() / profile / STUDY).glob("*.json"))
    return [_entry(path.stem) for path in paths if profile == "paper"]


def load(profile: str | None = None, reasons: list[str] | None = None) -> None:
    """Raise an error that says how to measure: a build of the book should not kill processes."""
    raise RuntimeError(f'{STUDY}: record it by SPARSECORE_RECORD=1 pytest -m "fuzz or endurance"')


def keep(check: str, what: str, tried: int, held: int) -> None:
    """If SPARSECORE_RECORD is set, record how often a thing was tried and its promise held."""
    if not os.environ.get("SPARSECORE_RECORD"):
        return
    entry = _entry(what.replace(" ", "-"))
    entry.path.unlink(missing_ok=True)
    entry.obtain(lambda: {"check": check, "what": what, "tried": tried, "held": held})


def table() -> Table | Note:
    """Return a row for each thing that was tried."""
    results = [result for entry in entries("paper") if (result := entry.recorded())]
    if not results:
        return Note(store.NOTHING["missing"])
    results.sort(key=lambda result: list(CHECKS).index(result["check"]))
    rows = [dict(zip(("done", "promise"), CHECKS[r["check"]], strict=True), **r) for r in results]
    for row in (row for row in rows if row["what"] == "WASAP"):  # no two such runs are alike
        row["promise"] = "a replay of the resumed run's record gives its weights"
    columns = [
        Column("attempt", "done", number=False, once=True),
        Column("on", "what", number=False, show=lambda what: what.replace("1 threads", "1 thread")),
        Column("promise", "promise", number=False, once=True),
        Column("times", "tried", "{:,}"),
        Column("promise held", "held", "{:,}"),
    ]
    told = []
    for inputs, what in ((False, "kills, interrupts and ended jobs"), (True, "changed inputs")):
        some = [row for row in rows if (row["check"] == "fuzz") == inputs]
        tried, held = (sum(row[name] for row in some) for name in ("tried", "held"))
        if some:
            told.append(f"{'all' if held == tried else f'{held:,} of'} {tried:,} {what}")
    finding = f"The promise held in {' and '.join(told)}."
    caption = "**Attempts to break runs, files and models**, and how often the promise held."
    return Table.of(STUDY, rows, columns, caption, source(results), finding)
