"""T-reliability: what was done to runs, files and models to break them, and what came of it.

The attempts are tests that take too long for the suite: ``pytest -m "fuzz or endurance"`` with
``SPARSECORE_RECORD=1`` records what they count.
"""

import os

from sparsecore.paper import store
from sparsecore.paper.page import Column, Note, Table
from sparsecore.paper.style import source

STUDY = "T-reliability"
#: What is done, and what holds if all is well.
CHECKS = {
    "kills": ("Processes killed at random moments", "the resumed run ends as the unbroken one"),
    "jobs": ("MPI jobs ended in six ways", "nothing stays in memory, folders or processes"),
    "interrupts": ("Ctrl-C at chosen moments", "the model is the one before or after a step"),
    "fuzz": (
        "Inputs that are wrong at random",
        "each is read right, or refused with an error that names the fault",
    ),
}
_ROW = {"check": str, "what": str, "tried": int, "held": int}


def _entry(name: str) -> store.Entry:
    return store.Entry(STUDY, name, "paper", _ROW)


def entries(profile: str) -> list[store.Entry]:
    """Return what is recorded; there is no quick version."""
    paths = sorted((store.root() / profile / STUDY).glob("*.json"))
    return [_entry(path.stem) for path in paths if profile == "paper"]


def load(profile: str | None = None) -> None:
    """Say how to measure: it kills processes, which a build of the book should not."""
    raise RuntimeError(f'{STUDY}: SPARSECORE_RECORD=1 pytest -m "fuzz or endurance" records it')


def keep(check: str, what: str, tried: int, held: int) -> None:
    """Record how often something was tried, and how often the promise held, if that is wanted."""
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
        row["promise"] = "the record of the resumed run replays to its weights"
    columns = [
        Column("what was done", "done", number=False, once=True),
        Column("to", "what", number=False, show=lambda what: what.replace("1 threads", "1 thread")),
        Column("what is promised", "promise", number=False, once=True),
        Column("times", "tried", "{:,}"),
        Column("it held", "held", "{:,}"),
    ]
    told = []
    for inputs, what in ((False, "kills, interruptions and ends of jobs"), (True, "wrong inputs")):
        some = [row for row in rows if (row["check"] == "fuzz") == inputs]
        tried, held = (sum(row[name] for row in some) for name in ("tried", "held"))
        if some:
            told.append(f"{'all' if held == tried else f'{held:,} of'} {tried:,} {what}")
    finding = f"The promise held in {' and '.join(told)}."
    caption = "**Attempts to break it**, and how often the promise held."
    return Table.of(STUDY, rows, columns, caption, source(results), finding)
