"""The pictures of the pages on parallel training: the schematic, the runs, the ranks."""

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch

from sparsecore import wasap
from sparsecore.paper.page import Column, Note, Picture, Table
from sparsecore.paper.parallel.runs import ALGORITHMS, DATASET, config_of
from sparsecore.paper.store import NOTHING, Result
from sparsecore.paper.style import COLOURS, GREY, canvas, deviation, line, picture, shows, tag
from sparsecore.paper.training import shown
from sparsecore.paper.training.effects import difference, effect, pairs, spread_of
from sparsecore.paper.training.studies import Results, training_seconds
from sparsecore.settings import DECAYS

LABELS = {"sequential": "sequential training", "wasap": "WASAP-SGD", "wassp": "WASSP-SGD"}
_PARALLEL = ALGORITHMS[1:]
# The sequential runs are SET-All-ReLU's.
COLOUR = {name: COLOURS.get(name, COLOURS["set-all-relu"]) for name in ALGORITHMS}

_STYLES = dict(zip(DECAYS, ("-", shown.DASHED), strict=True))
_EARLY = 5  # first epochs of phase 2; later, memorised rows lower the training loss
_FEWEST = 3  # seeds for a clear effect
_RATES = {"wassp": "a K-th of the rate", "wassp-released": "the rate kept"}
_OF_PHASE2 = "before", "copies", "end", "change", "early", "rise"
_OF_RATES = (
    Column("data set", "title", number=False, once=True), Column("λ", "decay", "{:g}"),
    Column("phase 2 with", "rate", number=False), Column("seeds", "seeds"),
    Column(f"training loss, rise in {_EARLY} epochs (nats)", "early", "{:+.3f}"),
    Column("in all of phase 2", "rise", "{:+.3f}"),
    Column("phase 1 ends (%)", "before", "{:.2f}"), Column("final average (%)", "end", "{:.2f}"),
    Column("change (points)", "change", "{:+.2f}"),
)  # fmt: skip


# --- the schematic -------------------------------------------------------------------------------


def overview(workers: int = 3) -> Picture:
    """Draw the two phases: shards, workers, the server's window, averaging."""
    push, pull = COLOURS["set-relu"], COLOURS["set-all-relu"]
    with canvas(4.0) as figure:
        ax = figure.subplots()
        ax.set(xlim=(0, 16), ylim=(0, 8), xticks=[], yticks=[])
        ax.grid(False)
        ax.spines[:].set_visible(False)
        heights = np.linspace(6.2, 1.2, workers)
        middle = float(heights.mean())
        for x, title in ((1.2, "data"), (5.6, "phase 1: exchange"), (12.0, "phase 2: alone")):
            ax.text(x, 7.6, title, ha="center", weight="bold")
        ax.axvline(9.2, ymax=0.92, color=GREY, linestyle=(0, (4, 3)), linewidth=1)
        window = "server's\nwindow\n\nweights\nvelocity\ntopology"
        _box(ax, 7.4, middle, 1.9, 3.4, window, "#fff3d6")
        for rank, y in enumerate(heights):
            _box(ax, 1.2, y, 1.7, 0.9, f"shard {rank}", "#eeeeee")
            _box(ax, 4.0, y, 1.8, 0.9, f"worker {rank}", "#dbe9f6")
            _box(ax, 11.2, y, 2.3, 0.9, f"copy {rank}\nown evolution", "#dbe9f6")
            target = middle + (y - middle) * 0.45
            for start, end, colour in (
                ((2.05, y), (3.1, y), GREY),
                ((4.9, y + 0.15), (6.45, target + 0.15), push),
                ((6.45, target - 0.2), (4.9, y - 0.2), pull),
                ((8.35, target), (10.05, y), GREY),
                ((12.35, y), (13.3, middle + (y - middle) * 0.2), GREY),
            ):
                look = {"arrowstyle": "-|>", "mutation_scale": 10, "shrinkA": 2, "shrinkB": 2}
                ax.annotate("", end, start, arrowprops={**look, "color": colour, "linewidth": 1.2})
        _box(ax, 14.6, middle, 2.5, 1.9, "average\nover the union,\ncut to nnz", "#dff2e4")
        ax.text(5.7, 0.25, "push gradient", color=push, ha="right", fontsize=9)
        ax.text(5.9, 0.25, "pull weights", color=pull, ha="left", fontsize=9)
        ax.text(11.2, 0.25, "no exchange", color=GREY, ha="center", fontsize=9)
    caption = (
        "**WASAP-SGD in two phases.** In phase 1 every worker computes gradients on its shard and "
        "applies them, under a lock, to the weights in the server's window. In phase 2 it trains "
        "its own copy. What to see: in phase 1 gradients go to the server and weights come back; "
        "in phase 2 nothing is exchanged until the average."
    )
    alt = "Schematic: shards feed workers, which exchange gradients and weights with a window."
    return Picture("F-overview", figure, caption, alt)


def _box(ax: Axes, x: float, y: float, width: float, height: float, text: str, fill: str) -> None:
    corner, form = (x - width / 2, y - height / 2), "round,pad=0.05,rounding_size=0.15"
    look = {"boxstyle": form, "facecolor": fill, "edgecolor": GREY, "linewidth": 1}
    ax.add_patch(FancyBboxPatch(corner, width, height, **look))
    ax.text(x, y, text, ha="center", va="center", fontsize=9)


# --- the runs ------------------------------------------------------------------------------------


@picture(
    "F-parallel", across=2, sharey="row",
    legend=[line(COLOUR[name], LABELS[name]) for name in ALGORITHMS],
    caption="**Parallel training on Fashion-MNIST.** Test accuracy against epochs and against "
    "seconds of training, running means over epochs, means over seeds ± one standard deviation. "
    "Right of the dotted lines each worker trains alone, and a line is the mean of the copies; "
    "the dot is the averaged model. What to see: whether a line falls there. "
    f"λ = {config_of('paper').weight_decay:g}.",
    alt="Lines of test accuracy against epochs and against seconds, one colour per algorithm.",
)  # fmt: skip
def accuracy(axes: Any, found: Result, contests: Result | None = None) -> tuple[str, str]:
    """Draw test accuracy against epochs and against seconds."""
    left, right = axes
    ends: dict[str, float] = {}
    config = found["runs"]["wasap"][0]["config"]
    for name, runs in found["runs"].items():
        ends[name] = shown.accuracy(runs)
        epochs, tests = shown.over_epochs(runs, "test_accuracy", 100)
        tests = shown.smooth(tests)
        times = [[training_seconds(epoch) for epoch in run["epochs"]] for run in runs]
        for ax, x in ((left, epochs), (right, np.mean(times, axis=0))):
            shown.band(ax, x, tests, COLOUR[name])
            if name != "sequential":
                if ax is right:  # phase 2 begins at a different time for each
                    begins = np.interp(config["phase1_epochs"], epochs, x)
                    ax.axvline(begins, color=COLOUR[name], linestyle=":", linewidth=1)
                ax.plot(x[-1], ends[name], "o", color=COLOUR[name], markersize=5)
    shown.fit_from(left, config["epochs"] // 20)
    left.axvline(config["phase1_epochs"], color=GREY, linestyle=":", linewidth=1)
    where = {"xycoords": left.get_xaxis_transform()}
    tag(left, "each worker alone", (config["phase1_epochs"], 0), (4, 6), **where)
    left.set(xlabel="epoch", ylabel="test accuracy (%)")
    right.set(xlabel="seconds of training")
    told = ", ".join(f"{LABELS[name]} {end:.2f} %" for name, end in ends.items())
    finding = _beside_sequential(found["runs"], (contests or {}).get(DATASET, {}))
    return finding, f"Final test accuracy: {told}."


def _beside_sequential(runs: dict[str, list[Result]], contest: Result) -> str:
    """State speed and final accuracy relative to sequential training; the contest's speed, too."""
    pace = {n: np.mean([run["samples_per_second"] for run in some]) for n, some in runs.items()}
    base, claimed = "sequential", ""
    beside = " and ".join(f"{LABELS[n]} {shown.gap(runs[n], runs[base])}" for n in _PARALLEL)
    faster = " and ".join(f"{pace[n] / pace[base]:.2f} ({LABELS[n]})" for n in _PARALLEL)
    if spent := {name: np.median(turns) for name, turns in contest.get("rounds", {}).items()}:
        ratios = " and ".join(f"{spent['set-all-relu'] / spent[n]:.2f}" for n in _PARALLEL)
        claimed = f"; the claims' contest (T-times), of other epochs, has {ratios}"
    return (
        f"With {runs['wasap'][0]['config']['workers']} workers, samples per second of these runs "
        f"are {faster} times those of sequential training with one thread{claimed}. "
        f"Final accuracy minus sequential training's: {beside}."
    )


@shows()
def beside_main(found: Result, main: Results) -> Note:
    """Set the accuracies beside those of the main table."""
    at = main.at(found["runs"]["sequential"][0]["config"]["weight_decay"])
    base = at.of(DATASET, "set-all-relu")
    effects = ((n, difference(at.of(DATASET, n), base)) for n in _PARALLEL)
    told = " and ".join(f"{shown.points(e)} ({LABELS[n]})" for n, e in effects if e)
    text = shown.sentence("Final test accuracy there, minus the sequential trainer's", told)
    return Note(
        "[The main table](main.ipynb) has other runs of the same length, and seconds that were "
        f"measured separately: compare seconds within one figure only. {text}".strip()
    )


def _seen(runs: list[Result]) -> np.ndarray:
    """Return the values that `_OF_PHASE2` names, of accuracy and training loss, (seeds, 6)."""
    seen = []
    for run in runs:
        before, *late = run["epochs"][run["config"]["phase1_epochs"] - 1 :]
        # As phase 1 ends, the mean of the copies at the end, and their average; then rises.
        tests = [100 * one["test_accuracy"] for one in (before, late[-1], run)]
        rises = [some[-1]["loss"] - before["loss"] for some in (late[:_EARLY], late)]
        seen.append([*tests, tests[2] - tests[0], *rises])
    return np.array(seen)


def _cases(results: Results, name: str) -> list[tuple[float, str, np.ndarray]]:
    """Return the decays and methods that have runs, with `_seen` of the runs."""
    both = itertools.product(DECAYS, _PARALLEL)
    found = ((decay, method, results.at(decay).of(name, method)) for decay, method in both)
    return [(decay, method, _seen(runs)) for decay, method, runs in found if runs]


def _sign(changes: np.ndarray) -> int:
    """Return the sign of changes, one per seed; 0 for few seeds or an interval that includes 0."""
    if len(changes) < _FEWEST:
        return 0
    found = effect(float(np.mean(changes)), spread_of(changes, 0, True))
    return found.sign if found else 0


def _given_back(results: Results) -> str:
    """State how often copies lose accuracy, averaging regains it, and the training loss rises."""
    cases = [seen for n in results.datasets for *_, seen in _cases(results, n)]
    before, copies, end, _, rise, _ = np.transpose([seen.mean(axis=0) for seen in cases])
    lost, won = (sum(_sign(s[:, more] - s[:, 1]) > 0 for s in cases) for more in (0, 2))
    return (
        f"In phase 2 the copies lose test accuracy in {np.sum(copies < before)} of {len(cases)} "
        f"cases (data set, algorithm, λ), in {lost} beyond the 95 % interval over seeds. Their "
        f"average is more accurate in {np.sum(end > copies)} (in {won} beyond the interval), and "
        f"reaches phase 1's accuracy in {np.sum(end >= before)}. In {np.sum(rise > 0)} cases the "
        f"copies' training loss rises in the first {_EARLY} epochs."
    )


@shown.by_dataset(
    "F-average",
    alt="Test accuracy at the end of phase 1, of the copies and of their average, by data set.",
    caption="**What phase 2 and the average do.** Test accuracy at the end of phase 1; of the "
    "copies at the end of phase 2 (mean); and of the averaged model, which is the result. Means "
    "over seeds ± one standard deviation. What to see: whether averaging makes up for phase 2.",
    finding=_given_back, height=2.5, extra=0.3, across=3,
    needs=lambda found: found.keys() & {*_PARALLEL}, labels=("test accuracy (%)",),
    legend=lambda results: shown.lines(_PARALLEL, {f"λ = {d:g}": s for d, s in _STYLES.items()}),
)  # fmt: skip
def averaged(axes: Any, name: str, results: Results) -> str:
    """Draw the effect of phase 2 and the average on accuracy, a panel per data set; F-average."""
    [ax] = axes
    for place, (decay, method, seen) in enumerate(_cases(results, name)):
        tests, x = seen[:, :3], np.arange(3) + 0.07 * (place - 1.5)  # bars would hide each other
        look = {"color": COLOUR[method], "linestyle": _STYLES[decay], "marker": "o"}
        ax.errorbar(x, tests.mean(axis=0), deviation(tests), markersize=4, elinewidth=1, **look)
    ax.set_xticks(range(3), ("phase 1\nends", "mean of\nthe copies", "their\naverage"))
    return ""


def rate_kept(results: Results) -> Table | Note:
    """Make the table of WASSP's phase 2 at both learning rates, from T-deviations."""
    own = [run for run in results.runs if run["condition"]["method"] in _RATES]
    results, rows = replace(results, runs=own), list[dict[str, Any]]()
    for name, decay in itertools.product(results.datasets, DECAYS):
        at = results.at(decay)
        both, gone = ([at.of(name, m, diverged) for m in _RATES] for diverged in (False, True))
        if not all(map(any, zip(both, gone, strict=True))):
            continue  # there is nothing to compare
        *both, _ = pairs(*both)
        for rate, runs, lost in zip(_RATES.values(), both, gone, strict=True):
            seen = _seen(runs) if runs else np.empty((0, len(_OF_PHASE2)))
            values = seen.mean(axis=0).tolist() if runs else [None] * len(_OF_PHASE2)
            change, early = seen.T[3:5]
            rows.append({
                "dataset": name, "title": results.title(name), "decay": decay, "rate": rate,
                "seeds": f"{len(runs)}" + f", {len(lost)} diverged" * bool(lost),
                "diverged": len(lost), **dict(zip(_OF_PHASE2, values, strict=True)),
                "change clear": _sign(change) != 0, "early clear": _sign(early) > 0,
            })  # fmt: skip
    if not rows:
        return Note(NOTHING["missing"])

    def changed(row: dict[str, Any]) -> str:
        if row["change"] is None:
            return "every run diverges"
        by = f"{'gains' if row['change'] > 0 else 'loses'} {abs(row['change']):.2f} points"
        return f"it {by if row['change clear'] else 'does not clearly change'}"

    changes = [
        f"on {one['title']} at λ = {one['decay']:g} {changed(one)} if the rate falls to a K-th, "
        f"and {changed(other)} if the rate is kept"
        for one, other in zip(rows[::2], rows[1::2], strict=True)
        if any(row["change clear"] or row["change"] is None for row in (one, other))
    ]
    caption = (
        "**WASSP-SGD's phase 2 with two learning rates.** Phase 1 has the K-fold rate, and is the "
        "same in both on CPUs of the same lane width. Means over seeds, or over common seeds where "
        "there are enough. What to see: when the final average loses accuracy."
    )
    rises = [
        f"on {row['title']} at λ = {row['decay']:g} with {row['rate']}"
        for row in rows
        if row["early clear"]
    ]
    sources = shown.source(results, list(dict.fromkeys(row["dataset"] for row in rows)))
    start = "Test accuracy of the final average against the end of phase 1"
    finding = (
        f"{shown.sentence(start, '; '.join(changes))}No {'other ' * bool(changes)}change is clear "
        f"by the uncorrected 95 % interval over {_FEWEST} or more seeds. In phase 2's first "
        f"{_EARLY} epochs the training loss clearly rises {' and '.join(rises) or 'nowhere'}."
    )
    return Table.of("T-phase2", rows, _OF_RATES, caption, sources, finding)


@picture(
    "F-parallel-staleness", height=2.8,
    caption="**Staleness of WASAP-SGD's updates.** Staleness counts the updates that others "
    "made while a gradient was computed; first seed. What to see: the peak at the number of other "
    "workers.",
    alt="Bars: share of updates for each staleness.",
)  # fmt: skip
def staleness(ax: Axes, found: Result) -> tuple[str, str]:
    """Draw how many updates others made between a worker's pull and push."""
    run = found["runs"]["wasap"][0]
    workers, counts = run["config"]["workers"], np.array(run["parallel"]["staleness_histogram"])
    many = 2 * workers + 1  # the last bar has all from here on
    at = np.minimum(range(len(counts)), many)
    shares = 100 * np.bincount(at, counts, many + 1) / counts.sum()
    ax.bar_label(ax.bar(range(many + 1), shares, color=COLOUR["wasap"], width=0.8), fmt="{:.2g}")
    ax.set(xlabel="staleness (updates)", ylabel="share of updates (%)", ymargin=0.12)
    ax.set_xticks(range(many + 1), [*map(str, range(many)), f"{many} or more"])
    record = wasap.from_json(run["parallel"]["record"])
    lost = 100 * float((record.accepted < 1).mean())
    return (
        f"With {workers} workers gradients are {record.staleness.mean():.2f} updates old on "
        f"average, and {100 - shares[-1]:.1f} % are at most {many - 1} updates old.",
        f"The largest staleness is {record.staleness.max()}; {lost:.2f} % of the updates met a "
        "newer topology and lost part of their gradient.",
    )


@picture(
    "F-resources", across=2, down=2, height=4.4, sharex=True, sharey="col",
    legend=[*(line(COLOUR[name], LABELS[name]) for name in _PARALLEL),
            line(GREY, "rank 0"), line(GREY, "other ranks", shown.DASHED)],
    caption="**CPU and memory of every rank** during training, for the whole process (Python, "
    "compiled code, the rank's data); first seed. What to see: at 100 % a core is busy; below, a "
    "rank waits.",
    alt="Lines of CPU use and memory against seconds, a line per rank.",
)  # fmt: skip
def resources(axes: Any, found: Result) -> tuple[str, str]:
    """Draw the CPU and the memory of every rank over time."""
    used, most = [], []
    for name, row in zip(_PARALLEL, axes, strict=True):
        row[0].set_ylabel(f"{LABELS[name]}\nCPU (% of a core)")
        row[1].set_ylabel("memory (MiB)")
        for number, rank in enumerate(found["runs"][name][0]["parallel"]["ranks"]):
            samples, look = rank["resources"], {"color": COLOUR[name], "linewidth": 1.2}
            if not samples["seconds"]:
                continue  # the run was too short
            for ax, what in zip(row, ("cpu_percent", "rss_mb"), strict=True):
                style = shown.DASHED if number else "-"
                ax.plot(samples["seconds"], samples[what], linestyle=style, **look)
            used.append(float(np.mean(samples["cpu_percent"])))
            most.append(max(samples["rss_mb"]))
    for ax in axes[-1]:
        ax.set(xlabel="seconds", ylim=(0, 1.1 * ax.get_ylim()[1]))
    if not used:
        return "", "The runs were too short to be sampled."
    return (
        f"A rank uses {min(used):.0f} to {max(used):.0f} % of a core on average, and at most "
        f"{max(most):,.0f} MiB of memory.",
        "",
    )


@shows()
def replayed(found: Result) -> Note:
    """Report the result of the replay."""
    report = found["replay"]
    verdict = "bit-identical" if report["identical"] else "not those recorded"
    told = f"A replay in one process repeated {report['updates']:,} updates. Its weights are"
    return Note(f"{told} {verdict}.")
