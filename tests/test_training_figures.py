"""Tables, and the figures of training: what is shown are the numbers of the result files."""

import ast
import base64
import csv
import html
import io
import itertools
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from scipy import stats

from sparsecore import datasets
from sparsecore.datasets import DataNotAvailable
from sparsecore.paper import deviations, page, store
from sparsecore.paper.page import Column, Table
from sparsecore.paper.style import COLOURS, GREY
from sparsecore.paper.training import (
    conditions,
    depth,
    effects,
    figures,
    pruning,
    shown,
    studies,
    tables,
    topology,
)
from sparsecore.paper.training import observers as observing
from sparsecore.paper.training.conditions import SENSITIVITIES, STUDIES, Condition, Study
from sparsecore.paper.training.effects import two_digits
from sparsecore.settings import CHOICE, READING, SETTINGS

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SMALL = {"epochs": 3, "hidden": (40, 40, 40), "epsilon": 4}
SPENT = ("train", "evolve")
METHODS = ("dense", "set-relu", "set-leaky-relu", "set-all-relu", "set-all-relu-pruned")


@pytest.fixture(scope="module")
def patch(tmp_path_factory):
    load = datasets.load

    def without_madelon(name):
        if name == "madelon":
            raise DataNotAvailable(name, [], "put it into /somewhere/private")
        return load(name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(store.FOLDER, str(tmp_path_factory.mktemp("results")))
        patch.delenv(store.PROFILE, raising=False)
        patch.setattr(datasets, "load", without_madelon)
        studies._last_data.clear()
        yield patch
    studies._last_data.clear()


@pytest.fixture(scope="module")
def main(patch):
    """Return results of all methods on one data set; this machine cannot have the other."""
    everyone = (observing.observe_gradient_flow, observing.observe_importance)
    observers = {("digits", m): everyone for m in METHODS[1:]}
    observers["digits", "set-all-relu"] += (observing.observe_pruning, observing.observe_topology)
    study = Study(
        "T-test", "", ("digits", "madelon", "leukemia"), METHODS, seeds={"quick": (0, 1)},
        quick={"digits": SMALL}, observers=observers,
    )  # fmt: skip
    patch.setitem(STUDIES, "T-test", replace(study, datasets=("digits", "madelon")))
    found = studies.load("T-test")
    return replace(found, study=study)


def view(main, *methods):
    study = Study("F-view", "", ("digits", "madelon"), methods, runs_of="T-test")
    return replace(main, study=study)


def mean_sd(values, digits, scale=1):
    shown = [scale * np.mean(values), *(scale * np.std(values, ddof=1) for _ in values[1:2])]
    return "\xa0±\xa0".join(f"{value:.{digits}f}" for value in shown)


def numbers(runs):
    """Return accuracy and connections of runs as the main table shows them."""
    ends = (np.mean([run[name] for run in runs]) for name in ("nnz_start", "nnz_end"))
    accuracy = mean_sd([run["test_accuracy"] for run in runs], 1, 100)
    return [accuracy, *(f"{nnz:,.0f}" for nnz in ends)]


def epoch_seconds(run):
    return sum(run["seconds"][stage] for stage in SPENT) / run["config"]["epochs"]


def test_recorded_times_are_those_of_the_contest(main):
    """A ratio divides what stands in the table: seconds of one machine, or there is none."""
    here = replace(main, profile="paper", unavailable={})
    contest = {
        "rounds": {"dense": [5.0, 4.9, 9.0], "set-relu": [0.5, 0.5, 0.5]},
        "cores": {"dense": 1, "set-relu": 2},
    }
    rows = tables.main(here, times={"digits": contest}).data.set_index("method")
    assert rows.loc["dense", "epoch_seconds"] == 5.0
    assert rows.loc["set-relu", "speed_against_dense"] == 5.0
    assert np.isnan(rows.loc["set-all-relu", "epoch_seconds"])
    assert tables.main(here).data["speed_against_dense"].isna().all()
    runs = [run for run in here.runs if run["condition"]["method"] != "dense"]
    rows = tables.main(replace(here, runs=runs), times={"digits": contest}).data
    assert rows["speed_against_dense"].dropna().tolist() == [1.0, 5.0], "no run of it is needed"
    assert np.isnan(rows.set_index("method").loc["dense", "test_accuracy"])


def test_the_main_table_has_a_block_per_weight_decay(main):
    study = replace(main.study, decays=(0.0002, 0.0))
    runs = main.runs + ending("set-relu", (0.5, 0.5), 0.0)
    both = replace(main, study=study, profile="paper", runs=runs, unavailable={})
    rows = tables.main(both).data
    assert rows["decay"].tolist() == [0.0002] * 5 + [0.0]
    assert rows["test_accuracy"].iloc[-1] == 0.5
    assert rows["test_accuracy"].iloc[1] == tables.main(main).data["test_accuracy"].iloc[1]


def test_times_are_shown_once_and_need_planned_runs():
    study = replace(STUDIES["T-main"], datasets=("cifar10",))
    of = lambda method: {"condition": {"dataset": "cifar10", "method": method}}  # noqa: E731
    about = {"seed": 0, "epochs": [], "data": {"n_test": 8, "n_train": 8, "surrogate": False}}
    about |= dict.fromkeys(("test_accuracy", "best_test_accuracy", "nnz_start", "nnz_end"), 0.5)
    about["provenance"] = {"ranks": 1, "cores": 1, "cpu": "a CPU"}
    runs = [about | of("set-relu") | {"config": {"weight_decay": decay}} for decay in (0.0002, 0.0)]
    contest = {"rounds": {method: [2.0] for method in study.methods}}
    contest["cores"] = dict.fromkeys(study.methods, 1)
    table = tables.main(studies.Results(study, "paper", runs), {"cifar10": contest})
    rows = table.data.assign(ratio=table.frame["× dense"], many=table.frame["seeds"])
    at = {decay: some.set_index("method") for decay, some in rows.groupby("decay")}
    first, second = at[0.0002], at[0.0]
    assert list(first.index) == ["dense", "set-relu", "set-all-relu"], "no other is planned there"
    assert first["many"].tolist() == ["0 (timed)", "1", "0 (timed)"]
    assert list(second.index) == ["set-relu", *study.methods[3:]]
    assert [*first["ratio"], *second["ratio"]] == ["1.00"] * 3 + [""] + ["1.00"] * 4
    assert second["speed_against_dense"].notna().all(), "of the CSV file's rows, each is whole"


def files(method, dataset="digits", folder="quick/T-test", root=None):
    """Return what the result files of a method hold, read without the package."""
    paths = ((root or store.root()) / folder).glob(f"{dataset}-{method}-seed*.json")
    return [json.loads(path.read_text()) for path in sorted(paths)]


def ending(method, values, decay=0.0002, **more):
    """Return runs of a method that end with these accuracies, and are otherwise SET-All-ReLU's."""
    more["condition"] = {"dataset": "digits", "method": method}
    both = zip(files("set-all-relu"), values, strict=True)
    return [
        {**run, **more, "config": {**run["config"], "weight_decay": decay}, "test_accuracy": value}
        for run, value in both
    ]


def test_main_table_holds_the_numbers_of_the_files(main):
    table = tables.main(main)
    rows = table.frame[:5].set_index("method")
    plain = [r for r in csv.DictReader(io.StringIO(table.csv())) if r["dataset"] == "digits"]
    plain = {row["method"]: row for row in plain}
    assert list(plain) == list(METHODS)
    dense = np.median([epoch_seconds(run) for run in files("dense")])
    for method in METHODS:
        runs, row = files(method), rows.loc[conditions.METHODS[method].label]
        assert len(runs) == 2
        best = mean_sd([run["best_test_accuracy"] for run in runs], 1, 100)
        chosen = np.mean([tables.chosen_accuracy(run["epochs"], 360) for run in runs])
        assert float(plain[method]["chosen_accuracy"]) == pytest.approx(chosen)
        last, start, end = numbers(runs)
        shown = ["last (%)", "best (%)", "nnz, start", "nnz, end"]
        assert row[shown].tolist() == [last, best, start, end]
        seconds = [epoch_seconds(run) for run in runs]
        median, sd = np.median(seconds), np.std(seconds, ddof=1)
        decimals = len(f"{median:#.3g}".partition(".")[2])
        assert row["s per epoch"] == f"{median:.{decimals}f}\xa0±\xa0{sd:.{decimals}f}"
        assert row["× dense"] == effects.two_digits(dense / median)
        mean = np.mean([run["test_accuracy"] for run in runs])
        assert float(plain[method]["test_accuracy"]) == pytest.approx(mean)
        assert f"{100 * mean:.1f}~$\\pm$" in table.latex()
    assert rows.loc["dense", "× dense"] == "1.00"
    assert r"$\times$ dense" in table.latex()
    assert "profile" not in table.frame


def test_the_chosen_epoch_is_judged_by_the_other_half():
    # Of 8 rows: right in the first half, and in all. The first chooses epoch 2, the second epoch 1.
    epochs = [{"test_half_correct": a, "test_accuracy": n / 8} for a, n in ((1, 5), (3, 4), (2, 4))]
    assert tables.chosen_accuracy([{"epoch": 0}, *epochs], 8) == (1 + 1) / 8
    assert tables.chosen_accuracy([*epochs, {"test_accuracy": 0.5}], 8) is None


def test_a_chosen_accuracy_says_on_how_many_runs_it_stands(main):
    first, second = main.of("digits", "set-relu")
    epochs = [{k: v for k, v in e.items() if k != "test_half_correct"} for e in second["epochs"]]
    table = tables.main(replace(main, runs=[first, second | {"epochs": epochs}]))
    chosen = tables.chosen_accuracy(first["epochs"], first["data"]["n_test"])
    assert table.frame["chosen (%)"][0] == f"{100 * chosen:.1f}\xa0(1)"
    assert "no row is held out from training" in table.caption
    assert "(" not in tables.main(main).frame["chosen (%)"][0], "all runs"


def test_main_table_says_what_is_missing_and_why(main):
    table = tables.main(main)
    shown = table.frame.assign(name=table.data["dataset"]).set_index("name")
    absent = shown.loc["madelon"]  # one row for all of its methods
    assert (absent["method"], absent["last (%)"]) == ("not available on this machine", "—")
    assert absent["seeds"] == absent["× dense"] == "—"
    assert "leukemia" not in shown.index, "nothing was asked of it"
    assert f", dense: {conditions.excluded('leukemia', 'dense')}. " in table.sources
    assert "3 epochs of 1,437 rows" in table.sources
    assert "/somewhere" not in table._repr_markdown_() + table.latex() + table.csv()


def test_the_build_s_own_results_have_another_name_and_come_after(main):
    dense, relu, sparse = (
        [{**run, "test_accuracy": value} for run in main.of("digits", method)]
        for method, value in (("dense", 0.5), ("set-relu", 0.25), ("set-all-relu", 0.75))
    )
    runs = dense + relu + sparse
    recorded = replace(main, profile="paper", runs=runs, unavailable={})
    table, own = tables.main(recorded), tables.main(main)
    assert (table.key, own.key) == ("T-main", "T-main-here")
    kept = table.data["test_accuracy"].tolist()
    assert kept == [0.5, 0.25, 0.75], "only what is recorded has a row"
    share = 100 * sparse[0]["nnz_end"] / dense[0]["nnz_end"]
    assert table.finding == "", "no times"
    told = f"{shown.gap(sparse, dense)} at λ = 0.0002, with {share:.2g} % of the "
    told += "connections. "
    assert figures.accuracies(recorded).finding.endswith(f"intervals: Optical digits {told}")
    runs += [{**run, "config": {"weight_decay": 0.0}} for run in dense[:1] + sparse]
    both = replace(recorded, study=replace(main.study, decays=(0.0002, 0.0)), runs=runs)
    told = told.replace(", with", ", +25.00 points (one run) at λ = 0, with")
    assert figures.accuracies(both).finding.endswith(f"intervals: Optical digits {told}")
    [speed] = own.data.query("dataset == 'digits' and method == 'set-all-relu'")[
        "speed_against_dense"
    ]
    told = f"divided by SET-All-ReLU: Optical digits × {effects.two_digits(speed)}."
    assert own.finding == f"Core-seconds per epoch, dense training {told}"
    alone = figures.accuracies(replace(recorded, runs=relu + sparse))
    assert alone.finding == "", "nothing to compare"
    assert own._repr_markdown_().startswith(f"{page.minus(own.finding)}\n\n")
    picture = figures.curves(replace(recorded, study=view(main, "set-relu").study))
    markdown = picture._repr_markdown_()
    assert ":name: f-curves\n" in markdown and page.minus(picture.finding) in picture._repr_html_()
    assert f"\n:alt: {picture.alt}\n" in markdown and len(picture.alt.splitlines()) == 1
    assert picture.caption in markdown
    [pdf] = re.findall(
        r'download="f-curves.pdf" href="data:application/pdf;base64,(.+?)"', markdown
    )
    assert (content := base64.b64decode(pdf)) == picture.pdf() and content.startswith(b"%PDF")
    here = figures.curves(view(main, "set-relu"))
    markdown = here._repr_markdown_()
    assert here.key == "F-curves-here" and ".pdf" not in markdown
    assert f"\n````\n\n{here.caption}" in markdown, "without a caption in it it has no number"
    assert f"{own.caption}\n\n````{{table}}\n:name: T-main-here\n" in own._repr_markdown_()


def test_where_nothing_is_recorded_a_figure_is_a_note(main):
    nothing = replace(main, profile="paper", runs=[])
    draws = (figures.curves, figures.gradient_flow, figures.early_and_late_flow)
    for draw in (*draws, pruning.after_training):
        note = draw(nothing)
        assert isinstance(note, page.Note)
        assert "Not recorded yet: Optical digits, Madelon, " in note._repr_markdown_()
    told = "an unknown number of points (not recorded yet)"
    assert shown.gap([], main.of("digits", "set-relu")) == told
    others = [run for run in main.runs if run["condition"]["method"] != "set-relu"]
    told = shown.absent(replace(main, profile="paper", runs=others))
    assert "Optical digits at λ = 0.0002 (SET-ReLU)" in told


def test_what_is_not_asked_for_or_diverged_is_not_called_missing(main):
    nothing = {"profile": "paper", "runs": [], "unavailable": {}}
    whole = replace(main, study=STUDIES["T-main"], **nothing)
    assert "Leukemia" in shown.absent(whole)
    assert "Leukemia" not in shown.absent(whole.at(0.0)), "a surrogate runs with one weight decay"
    told = shown.absent(replace(main, diverged=main.runs, **nothing))
    assert "Optical digits, Madelon" not in told
    assert "Diverged, and not shown: Optical digits with" in told


def test_curves_draw_means_and_bands_of_the_results(main):
    methods = ("set-relu", "set-all-relu")
    picture = figures.curves(view(main, *methods))
    gain, top = picture.figure.axes[:2]
    for line, band, method in zip(top.lines, top.collections, methods, strict=True):
        runs = files(method)
        seeds = [[100 * e["test_accuracy"] for e in run["epochs"][1:]] for run in runs]
        mean, sd = np.mean(seeds, axis=0), np.std(seeds, axis=0, ddof=1)
        np.testing.assert_allclose(line.get_ydata(), mean)
        assert line.get_xdata().tolist() == [1, 2, 3]
        assert line.get_color() == COLOURS[method]
        drawn = band.get_paths()[0].vertices[:, 1]
        assert drawn.min() == pytest.approx((mean - sd).min())
        assert drawn.max() == pytest.approx((mean + sd).max())
    bottom, drawn = picture.figure.axes[2], itertools.product(methods, ("test_loss", "loss"))
    for line, (method, name) in zip(bottom.lines, drawn, strict=True):
        mean = np.mean([[e[name] for e in run["epochs"][1:]] for run in files(method)], axis=0)
        np.testing.assert_allclose(line.get_ydata(), mean)
        assert (line.get_linestyle() == "--") == (name == "loss"), "dashed: training"
    ends = [[100 * run["test_accuracy"] for run in files(m)] for m in reversed(methods)]
    test = stats.ttest_rel(*ends)
    assert gain.lines[1].get_ydata()[-1] == pytest.approx(np.subtract(*ends).mean())
    drawn = gain.collections[0].get_paths()[0].vertices
    low, high = test.confidence_interval(0.95)
    last = drawn[drawn[:, 0] == 3][:, 1]
    assert (last.min(), last.max()) == pytest.approx((low, high))
    effect = effects.difference(*(files(method) for method in reversed(methods)))
    bar = gain.containers[0].lines[2][0].get_segments()[0][:, 1]
    assert bar == pytest.approx([100 * effect.low, 100 * effect.high]), "as the ledger has it"
    assert picture.finding.startswith("At the end SET-All-ReLU is more accurate than SET-ReLU on ")
    told = f"uncorrected 95 % intervals: Optical digits {shown.points(effect)} (2 seeds)."
    assert told in picture.finding
    assert "rows, up to 2 seeds. Runs: profile quick, " in picture.sources
    assert "Optical digits: 3 epochs of 1,437 rows, " in picture.sources
    assert picture.svg() == figures.curves(view(main, *methods)).svg(), "the same every time"


def test_long_curves_are_thinned_and_keep_their_ends():
    ax, x = Figure().subplots(), np.arange(1, 501)
    values = np.sin(x / 50) + np.array([[0.0], [1.0]])
    shown.band(ax, x, values, "black")
    drawn, means = ax.lines[0].get_data()
    assert len(drawn) == 84 and drawn[[0, -1]].tolist() == [1, 500]
    np.testing.assert_allclose(means, values.mean(axis=0)[drawn - 1])


def test_absent_data_are_said_and_no_path_is_shown(main):
    picture = figures.curves(view(main, "set-relu"))
    assert len(picture.figure.axes) == 3, "no empty panels"
    assert "Not available on this machine: Madelon." in picture.sources
    empty = studies.Results(STUDIES["F-topology"], "quick", [], {"fashion-mnist": "/somewhere"})
    for draw in (topology.degrees, topology.pixels):
        assert draw(empty) == page.Note("Not available on this machine: Fashion-MNIST. ")


def test_topology_s_figures_hold_all_neurons_and_pixels_where_they_are(main):
    study = Study("F-view", "", ("digits",), ("set-all-relu",), runs_of="T-test")
    runs = main.of("digits", "set-all-relu")
    axes = topology.degrees(replace(main, study=study)).figure.axes
    assert len(axes) == 6 and axes[0].get_ylabel() == "share of neurons (%)"
    for line in (line for ax in axes for line in ax.lines[:2]):
        assert np.sum(line.get_ydata()) == pytest.approx(100)

    picture = topology.pixels(replace(main, study=study, runs=runs))
    images = [ax.images[0].get_array() for ax in picture.figure.axes if ax.images]
    seen = [epoch["topology"] for epoch in runs[0]["epochs"] if "topology" in epoch]
    for image, record in zip(images, seen, strict=True):
        assert image.shape == (8, 8)
        np.testing.assert_allclose(np.ravel(image), record["input_strength"])
    neighbours = [
        (image[a], image[b])
        for image in (images[-1], images[-1].T)
        for a, b in itertools.pairwise(range(8))
    ]
    first, second = (np.ravel(some) for some in zip(*neighbours, strict=True))
    assert "at the end, means over 2 seeds." in picture.finding
    alone = topology.pixels(replace(main, study=study, runs=runs[:1])).finding
    assert f"to {stats.pearsonr(first, second)[0]:.2f} at the end." in alone
    widths = [
        [np.std(np.repeat(np.arange(len(h)), h)) for h in records[side][:3]]
        for side in ("fan_out", "fan_in")
        for records in (seen[0], seen[-1])
    ]
    wider = np.divide(widths[1], widths[0]), np.divide(widths[3], widths[2])
    alone = topology.degrees(replace(main, study=study, runs=runs[:1]))
    finding, sides = alone.finding, [*seen[0]["fan_out"][:3], *seen[0]["fan_in"][:3]]
    for ax, h in zip(alone.figure.axes, sides, strict=True):
        x, y = ax.lines[0].get_data()
        mean = np.average(np.arange(len(h)), weights=h)
        assert np.average(x, weights=y) == pytest.approx(mean, abs=1.5)  # bins of four
    for ratios, start, end, word in zip(
        wider, widths[::2], widths[1::2], ("outgoing", "incoming"), strict=True
    ):
        most = np.argmax(ratios)
        told = rf"for {word} connections of [\w ]+ \(from {start[most]:.1f} to {end[most]:.1f}\)"
        assert re.search(told, finding)


def test_gradient_flow_draws_geometric_means(main):
    methods = ("set-relu", "set-leaky-relu", "set-all-relu")
    picture = figures.gradient_flow(view(main, *methods))
    top, ax = picture.figure.axes
    logs = {}
    for line, method in zip(ax.lines, methods, strict=True):
        runs = files(method)
        flows = [[e["gradient_flow"] for e in run["epochs"]] for run in runs]
        logs[method] = np.log(flows).mean(axis=0)
        np.testing.assert_allclose(line.get_ydata(), np.exp(logs[method]))
        assert line.get_color() == COLOURS[method]
    for line, method in zip(top.lines, methods[:2], strict=False):
        ratio = np.exp(logs["set-all-relu"] - logs[method])
        np.testing.assert_allclose(line.get_ydata(), ratio)
    assert ax.get_yscale() == "log"
    assert "Not available on this machine: Madelon" in picture.sources
    over = np.exp((logs["set-all-relu"] - logs["set-relu"])[1:].mean())
    each = [
        np.log([[e["gradient_flow"] for e in run["epochs"][1:]] for run in files(m)]).mean(axis=1)
        for m in ("set-all-relu", "set-relu")
    ]
    low, high = np.exp(stats.ttest_rel(*each).confidence_interval(0.95))
    assert f"× {two_digits(over)} [{two_digits(low)}, {two_digits(high)}]" in picture.finding


def test_a_flow_that_falls_behind_is_said(main):
    flows = {"set-relu": [1.0] * 4, "set-all-relu": [1.0, 4.0, 0.1, 0.1]}
    runs = [
        {**run, "epochs": [
            {"epoch": e, "gradient_flow": flow, "train_accuracy": 0.96}
            for e, flow in enumerate(flows[run["condition"]["method"]])
        ]}
        for run in main.runs if run["condition"]["method"] in flows
    ]  # fmt: skip
    finding = figures.gradient_flow(replace(view(main, *flows), runs=runs)).finding
    told = "× 0.34, no interval (first tenth × 4.0, last × 0.10)"
    assert told in finding
    alone = [run for run in runs if run["seed"] == 0]  # as a quick build has: no interval
    assert "× 0.34" in figures.gradient_flow(replace(view(main, *flows), runs=alone)).finding

    def counted(runs):
        text = figures.early_and_late_flow(replace(view(main, *flows), runs=runs)).text
        return [int(number) for number in re.findall(r"\bin (\d+)", text)]

    for run in runs:  # now the ratios vary between seeds
        if run["condition"]["method"] == "set-all-relu":
            for epoch in run["epochs"]:
                epoch["gradient_flow"] *= 1 + run["seed"] / 100
    assert counted(alone) == [1, 0, 0, 0, 0, 0], "one seed has no interval"
    assert counted(runs) == [1, 1, 0, 0, 0, 1]


def test_cost_draws_means_against_the_contest_s_seconds(main):
    recorded = replace(main, profile="paper", unavailable={})
    contest = {"rounds": {m: [2.0, 3.0, 9.0] for m in METHODS}, "cores": dict.fromkeys(METHODS, 2)}
    contest["rounds"]["dense"] = [6.0, 6.0, 6.0]
    picture = figures.cost(recorded, {"digits": contest})
    drawn = {box.lines[0].get_color(): box for box in picture.figure.axes[0].containers}
    for method in METHODS:
        mark, _, [bars] = drawn[COLOURS[method]].lines
        ends = [100 * run["test_accuracy"] for run in files(method)]
        seconds = (6 if method == "dense" else 3) * 2 * SMALL["epochs"]
        assert mark.get_xydata() == pytest.approx(np.array([[seconds, np.mean(ends)]]))
        assert np.ptp(bars.get_segments()[0][:, 1]) == pytest.approx(2 * np.std(ends, ddof=1))
    gap = shown.gap(files("set-all-relu"), files("dense"))
    assert (
        f"uncorrected 95 % intervals: Optical digits {gap} at λ = 0.0002, with " in picture.finding
    )
    assert "(dense: 2.0 times the core-seconds per epoch). " in picture.finding
    assert not figures.cost(recorded, {}).figure.axes[0].containers, "no seconds of one machine"


def test_how_soon_dense_is_as_accurate_is_drawn_and_told(main):
    def with_curves(**curves):
        runs = []
        for method, found in curves.items():
            for run, curve in zip(files(method.replace("_", "-")), found, strict=True):
                epochs = [
                    e | {"test_accuracy": a} for e, a in zip(run["epochs"][1:], curve, strict=True)
                ]
                runs.append({**run, "epochs": epochs, "test_accuracy": curve[-1]})
        return replace(main, profile="paper", unavailable={}, runs=runs)

    sparse = [[0.3, 0.7, 0.9], [0.4, 0.95, 0.7]]
    recorded = with_curves(dense=[[0.5, 0.9, 0.6], [0.7, 0.8, 0.9]], set_all_relu=sparse)
    contest = {"rounds": {m: [2.0] for m in METHODS}, "cores": dict.fromkeys(METHODS, 1)}
    contest["rounds"]["dense"] = [6.0]
    picture = figures.reach(recorded, {"digits": contest})
    drawn = {one.get_color(): one for one in picture.figure.axes[0].lines}
    np.testing.assert_allclose(drawn[COLOURS["dense"]].get_xydata(), [[6, 60], [12, 85], [18, 75]])
    assert drawn[GREY].get_ydata() == pytest.approx([80, 80])
    start = "When dense first reaches SET-All-ReLU's final accuracy, by means over seeds: "
    told = "Optical digits after 2 epochs (SET-All-ReLU: 2), in 3.0 times the core-seconds, at λ = "
    assert picture.finding == f"{start}{told}0.0002 (2 seeds). "
    assert figures.reach(recorded, {}).finding == "", "no seconds of one machine"
    # Each run reaches it once, but never the mean, which is drawn.
    worse = with_curves(dense=[[0.5, 0.81, 0.6], [0.81, 0.7, 0.7]], set_all_relu=sparse)
    finding = figures.reach(worse, {"digits": contest}).finding
    alone = "in 2 of 2 runs, not in their mean,"
    assert finding == f"{start}Optical digits {alone} at λ = 0.0002 (2 seeds). "
    # At λ = 0 dense never reaches it; other curves, dashed, and another dotted line.
    never = with_curves(dense=[[0.5, 0.6, 0.6], [0.7, 0.7, 0.7]], set_all_relu=sparse).runs[1:]
    runs = [{**run, "config": {**run["config"], "weight_decay": 0.0}} for run in never]
    both = replace(main.study, decays=(0.0002, 0.0))
    both = replace(recorded, study=both, runs=recorded.runs + runs)
    picture = figures.reach(both, {"digits": contest})
    styles = [(one.get_color(), one.get_linestyle()) for one in picture.figure.axes[0].lines]
    curves = [(COLOURS["dense"], "-"), (COLOURS["set-all-relu"], "-"), (GREY, ":")]
    assert styles[:2] + styles[3:5] == curves[:2] + [(colour, "--") for colour, _ in curves[:2]]
    assert [colour for colour, _ in styles[2::3]] == [GREY, GREY]
    told += "0.0002 (2 seeds), and not at all at λ = 0 (one run). "
    assert picture.finding == start + told
    same = replace(both, runs=[*worse.runs, *runs])
    told = f"Optical digits {alone} at λ = 0.0002 (2 seeds), and not at all at λ = 0 (one run). "
    assert figures.reach(same, {"digits": contest}).finding == start + told


def test_accuracies_are_drawn_and_told_beside_the_dense_ones(main):
    picture = figures.accuracies(replace(main, profile="paper", unavailable={}))
    [ax] = picture.figure.axes
    means = [np.mean([100 * run["test_accuracy"] for run in files(m)]) for m in METHODS]
    assert [box.lines[0].get_xdata()[0] for box in ax.containers] == pytest.approx(means)
    rows = [box.lines[0].get_ydata()[0] for box in ax.containers]
    assert rows == pytest.approx(np.arange(len(METHODS)) - 0.17)
    gap = shown.gap(files("set-all-relu"), files("dense"))
    assert (
        f"uncorrected 95 % intervals: Optical digits {gap} at λ = 0.0002, with " in picture.finding
    )


def test_what_either_rule_of_pruning_leaves_is_told(main):
    runs = ending("set-all-relu-pruned-released", (0.6, 0.61), nnz_start=100, nnz_end=40)
    runs += ending("set-all-relu-pruned", (0.8, 0.82), nnz_start=100, nnz_end=30)
    found = deviations.table(replace(view(main, "set-all-relu-pruned"), runs=runs)).data
    told = found.set_index("subject")["effect"]["Importance pruning: percentile, first epoch"]
    assert told.startswith("Optical digits at λ = 0.0002: -20.50 points [")
    assert told.endswith("] (2 seeds) (40 % of the connections left, not 30 %)")


def test_how_far_a_trained_network_can_be_pruned_is_told(main):
    names = ("percentile", "test_accuracy", "nnz", "compact_nbytes", "compact_seconds")
    values = (
        (0, 0.9, 100, 1000, 2.0), (10, 0.895, 60, 300, 1.0), (20, 0.7, 50, 200, 0.8),
        (30, 0.9, 40, 100, 0.4),
    )  # fmt: skip
    seen = [dict(zip(names, v, strict=True)) | {"nbytes": 1000, "seconds": 2.0} for v in values]
    runs = [
        run | {"epochs": [*run["epochs"][:-1], run["epochs"][-1] | {"post_pruning": seen}]}
        for run in main.of("digits", "set-all-relu")
    ]
    picture = pruning.after_training(replace(view(main, "set-all-relu"), runs=runs))
    told = "up to percentile 10, where 60 % of the connections are left and the compact network "
    assert f"{told}takes 30 % of the memory and 50 % of the time" in picture.finding
    lines = picture.figure.axes[1].lines
    assert [line.get_ydata()[1] for line in lines] == pytest.approx([60, 30, 50])
    seen[1]["test_accuracy"] = 0.8
    picture = pruning.after_training(replace(view(main, "set-all-relu"), runs=runs))
    assert picture.finding.endswith("on Optical digits not even up to percentile 10. ")


def test_a_surrogate_s_accuracy_is_neither_shown_nor_drawn(main):
    runs = [{**run, "data": {**run["data"], "surrogate": True}} for run in main.runs]
    found = replace(main, runs=runs)
    row = tables.main(found).frame.iloc[0]
    assert row[["last (%)", "best (%)", "chosen (%)"]].tolist() == ["—"] * 3
    assert row["× dense"] == "1.00", "its times count"
    for draw in (figures.accuracies, figures.cost):
        assert isinstance(draw(found), page.Note)


def test_an_effect_that_may_be_0_is_not_called_clear(main):
    one = replace(view(main, "set-all-relu").study, datasets=("digits",), decays=(0.0, 0.0002))
    runs = ending("set-all-relu", (0.5, 0.9)) + ending("set-all-relu", (0.6, 0.7), 0.0)
    found = replace(main, study=one, runs=runs)
    assert ": on Optical digits no clear change (at the best" in figures.decay(found).finding
    assert "; where it runs both variants, 0 of 1. " in deviations.figure(found).finding
    three = replace(one, decays=(0.0, 2e-6, 0.0002))
    low, high = ending("set-all-relu", (0.7, 0.71)), ending("set-all-relu", (0.8, 0.81), 0.0)
    for between, is_told in (((0.9, 0.92), True), ((0.75, 0.99), False)):
        some = low + high + ending("set-all-relu", between, 2e-6)
        told = figures.decay(replace(main, study=three, runs=some)).finding
        assert ("better than both: SET-All-ReLU +10.50 points [" in told) == is_told
        assert ("a λ between" in told) == is_told
    for ours, more, less in (((0.9, 0.92), 1, 0), ((0.1, 0.12), 0, 1), ((0.5, 0.9), 0, 0)):
        runs = ending("set-all-relu", ours) + ending("set-relu", (0.6, 0.61))
        told = figures.curves(replace(view(main, "set-relu", "set-all-relu"), runs=runs)).finding
        assert f"SET-ReLU on {more} of 1 data sets and less accurate on {less}, by" in told


def test_pruning_figures_hold_the_numbers_of_the_files(main):
    results = view(main, "set-all-relu", "set-all-relu-pruned")
    during = pruning.during_training(results)
    pruned = files("set-all-relu-pruned")
    nnz = [[e["nnz"] / 1000 for e in r["epochs"]] for r in pruned]
    np.testing.assert_allclose(during.figure.axes[0].lines[1].get_ydata(), np.mean(nnz, axis=0))
    left = 100 * np.mean([r["nnz_end"] / r["nnz_start"] for r in pruned])
    plain = files("set-all-relu")
    gains = [
        [100 * (e["test_accuracy"] - f["test_accuracy"]) for e, f in zip(*epochs, strict=True)]
        for epochs in zip(*([r["epochs"][1:] for r in s] for s in (pruned, plain)), strict=True)
    ]
    gain = during.figure.axes[1].lines[1].get_ydata()
    np.testing.assert_allclose(gain, np.mean(gains, axis=0), atol=1e-9)
    effect = shown.points(effects.difference(pruned, plain))
    assert f"Optical digits {left:.0f} %, {effect}" in during.finding

    some = [{**r, "epochs": r["epochs"][:-1]} if r["seed"] else r for r in results.runs]
    [line] = pruning.after_training(replace(results, runs=some)).figure.axes[0].lines[:1]
    [alone] = [r for r in plain if r["seed"] == 0]
    assert line.get_ydata()[0] == pytest.approx(100 * alone["test_accuracy"]), "one has seen it"
    [line] = pruning.after_training(results).figure.axes[0].lines[:1]
    seen = [[p["test_accuracy"] for p in r["epochs"][-1]["post_pruning"]] for r in plain]
    np.testing.assert_allclose(line.get_ydata(), 100 * np.mean(seen, axis=0))
    unpruned = 100 * np.mean([r["test_accuracy"] for r in plain])
    assert line.get_ydata()[0] == pytest.approx(unpruned)


def test_importance_histograms_hold_all_neurons(main):
    picture = pruning.importance(view(main, "set-all-relu", "set-all-relu-pruned"))
    for ax in picture.figure.axes[:3]:
        outlines = ax.patches[::2]  # each is drawn as a line and as an area
        assert len(outlines) == 3
        for patch in outlines:
            values, edges, _ = patch.get_data()
            assert np.sum(values * np.diff(edges)) == pytest.approx(1)
    [first, *_, last] = [
        [np.repeat(np.arange(40) + 0.5, layer["counts"]) for layer in e["importance"]]
        for e in main.of("digits", "set-all-relu")[0]["epochs"]
        if "importance" in e
    ]
    ends = zip(first, last, strict=True)
    changes = [abs(np.log(stats.variation(a) / stats.variation(b))) for a, b in ends]
    most = int(np.argmax(changes))
    tails = f"skewness from {stats.skew(first[most]):+.1f} to {stats.skew(last[most]):+.1f}"
    assert f"in hidden layer {most + 1}, " in picture.finding and tails in picture.finding


def test_sensitivity_draws_every_value_and_the_setting_s_own(patch):
    small = {**SMALL, "epochs": 1, "hidden": (20, 20), "epsilon": 10}
    study = Study(
        "F-test-alpha", "", ("digits", "madelon"), STUDIES["F-alpha"].methods,
        seeds={"quick": (0,)}, quick={"digits": small},
    )  # fmt: skip
    patch.setitem(STUDIES, "F-test-alpha", study)
    found = studies.load("F-test-alpha")
    picture = figures.sensitivity(found)
    alpha, epsilon, zeta = picture.figure.axes[:3]
    for ax, field, own in (
        (alpha, "alpha", [0, 0.6]), (epsilon, "epsilon", []), (zeta, "zeta", [0.3]),
    ):  # fmt: skip
        expected = sorted({*SENSITIVITIES[field][1], *own})
        [container] = ax.containers
        assert container.lines[0].get_xdata() == pytest.approx(expected)
    [run] = found.of("digits", "zeta-0.5")
    assert container.lines[0].get_ydata()[-1] == pytest.approx(100 * run["test_accuracy"])
    assert "digits" in picture.sources.lower()

    # The best value of each is told, with its sign; so is what evolution brings.
    ends = {"zeta-0": 0.7, "alpha-0.8": 0.95}
    apart = [
        run | {"test_accuracy": ends.get(run["condition"]["method"], 0.9)}
        for run in found.runs
        if run["condition"]["dataset"] == "digits"
    ]
    told = figures.sensitivity(replace(found, runs=apart)).finding
    assert "(ζ = 0.3 instead of 0) changes it by +20.00 points (one run)" in told
    assert (
        "value but at α = 0.8 (+5.00 points (one run))" in told and "70.0 to 90.0 % over ζ" in told
    )

    # Of equal means none is higher, and a value of which a run diverged is marked.
    runs = [
        run | {"test_accuracy": 0.9}
        for run in found.runs
        if run["condition"]["dataset"] == "digits"
    ]
    lost = [runs[0] | {"condition": {"dataset": "digits", "method": "zeta-0.5"}, "diverged": "nan"}]
    picture = figures.sensitivity(replace(found, runs=runs, diverged=lost))
    assert "no other value has a higher mean" in picture.finding
    assert [text.get_text() for text in picture.figure.axes[2].texts] == ["diverged"]
    told = (
        "Diverged, and not shown: Optical digits with SET-All-ReLU, ζ = 0.5 (seed 0, λ = 0.0002)."
    )
    assert told in picture.sources
    assert "diverge with" not in picture.finding, "another run of it ended"
    left = [run for run in runs if run["condition"]["method"] != "zeta-0.5"]
    told = figures.sensitivity(replace(found, runs=left, diverged=lost)).finding
    assert told.endswith("; all runs diverge with ζ = 0.5. ")


def test_every_sensitivity_changes_one_thing():
    base = Condition("F-alpha", "paper", "madelon", "set-all-relu", 0).config
    for field, (_, values) in SENSITIVITIES.items():
        for value in values:
            config = Condition("F-alpha", "paper", "madelon", f"{field}-{value:g}", 0).config
            assert config == base.with_values(**{field: value})


@pytest.mark.site
def test_the_built_table_holds_the_numbers_of_the_results():
    """The page in ``book/_build``, if there is one, against the result files it was built from."""
    built = ROOT / "book/_build/html/notebooks/main.html"
    if not built.is_file():
        pytest.skip("the book is not built")
    found = []
    for tag, key in (("figure", "t-main"), ("table", "t-main-here")):  # the latter has no number
        found += re.findall(rf'<{tag}[^>]* id="{key}".*?</{tag}>', built.read_text(), re.DOTALL)
    assert len(found) == 2, "no table t-main, or none of this build, on the page"
    cell = r"<td.*?</td>"
    rows = [
        [html.unescape(re.sub(r"<[^>]+>", "", c)).strip() for c in re.findall(cell, row, re.DOTALL)]
        for row in "".join(found).split("</tr>")
    ]
    study, compared = STUDIES["T-main"], 0
    # A quick build shows one weight decay; runs at the other are the decay page's.
    for profile, decay in (("quick", ""), ("paper", ""), ("paper", "-decay0")):
        for name, method in itertools.product(study.datasets, study.methods):
            found = files(method + decay, name, f"{profile}/T-main", ROOT / "book/results")
            if found:
                last, *nnz = numbers(found)
                if found[0]["data"]["surrogate"]:
                    last = "—"  # its accuracy says nothing
                expected = [conditions.METHODS[method].label, last, *nnz]
                shown = [[row[2], row[4], *row[-4:-2]] for row in rows if len(row) > 6]
                assert expected in shown, (name, method)
                compared += 1
    assert compared


def test_decay_draws_the_means_at_each_weight_decay(main):
    study = replace(view(main, "set-relu").study, decays=(0.0, 0.0002), datasets=("digits",))
    found = replace(main, study=study, runs=main.runs + ending("set-relu", (0.99, 0.9901), 0.0))
    picture = figures.decay(found)
    [container] = picture.figure.axes[0].containers
    usual = np.mean([100 * run["test_accuracy"] for run in main.of("digits", "set-relu")])
    assert container.lines[0].get_ydata() == pytest.approx([99.005, usual])
    change = f"{99.005 - usual:+.2f} points ["
    start = (
        "Final accuracy, λ = 0 minus λ = 0.0002, uncorrected 95 % intervals: on Optical digits "
        "SET-ReLU "
    )
    assert picture.finding.startswith(start + change)
    best = [np.mean([100 * run["best_test_accuracy"] for run in runs])
            for runs in (files("set-all-relu"), files("set-relu"))]  # fmt: skip
    told = f"] (at the best epochs SET-ReLU {best[0] - best[1]:+.2f}). "
    assert picture.finding.endswith(told)
    alike = [{**run, "config": {**run["config"], "weight_decay": 0.0}} for run in main.runs]
    same = replace(main, study=study, runs=[*main.runs, *alike])
    told = ": on Optical digits no clear change (at the best epochs SET-ReLU +0.00). "
    assert figures.decay(same).finding.endswith(told)
    one = [run for run in [*main.runs, *alike] if run["seed"] == 0]
    assert figures.decay(replace(same, runs=one)).finding == "", "one seed compares nothing"
    single = figures.decay(replace(found, runs=found.runs[:-1])).figure.axes[0]
    [hollow] = [line for line in single.lines if line.get_markerfacecolor() == "white"]
    assert hollow.get_xydata().tolist() == [[0, 99]], "one run is left"
    none = figures.decay(replace(found, runs=main.runs))
    assert none.text.startswith("This is not recorded yet"), "nothing to compare"
    effects = deviations.table(replace(found, study=replace(study, methods=METHODS))).data
    told = effects.set_index("subject")["effect"]
    assert told["Weight decay λ (decoupled, per step)"] == "not measured yet", "All-ReLU has one"
    runs = [run | {"condition": {"dataset": "digits", "method": "set-all-relu"}} for run in
            found.runs if run["condition"]["method"] == "set-relu"]  # fmt: skip
    effects = deviations.table(replace(found, runs=runs)).data
    assert f"Optical digits: {99.005 - usual:+.2f} points [" in effects["effect"].iloc[0]
    picture = deviations.figure(replace(found, runs=runs))
    start = "; where it runs both variants, 1 of 1. The largest, the released variant (λ = 0) "
    start += "minus ours (λ = 0.0002): Weight decay λ (decoupled, per step), Optical digits: "
    assert start in picture.finding
    [[container]] = [ax.containers for ax in picture.figure.axes]
    assert container.lines[0].get_xdata() == pytest.approx([99.005 - usual])
    none = deviations.figure(replace(found, runs=[], profile="paper"))
    assert none.text.startswith("Not recorded yet")


def test_depth_draws_geometric_means_and_says_them(monkeypatch):
    monkeypatch.setattr(depth, "DATASET", "digits")
    monkeypatch.setattr(depth, "DEPTHS", (1, 2, 3))
    run = {"profile": "paper", **depth.measure(8, 2)}
    picture = depth.figure(run)
    flows = np.array(run["flows"]["all-relu"])
    np.testing.assert_allclose(run["flows"]["leaky-relu"][0][0], flows[0, 0])  # α = 0 is ReLU
    line = picture.figure.axes[1].lines[0]
    means = np.exp(np.log(flows[1]).mean(axis=1))
    np.testing.assert_allclose(line.get_ydata(), means / means[0])
    ratio = np.exp(np.log(flows[0, 3]).mean() - np.log(flows[0, 0]).mean())
    assert f"1 hidden layers {ratio:.2g} times ReLU's" in picture.finding
    depths = [int(found) for found in re.findall(r"with (\d+) hidden", picture.finding)]
    assert depths == run["depths"] and picture.key == "F-depth"
    over = np.log(flows[:, 3]).mean(axis=1) - np.log(run["flows"]["leaky-relu"])[:, 3].mean(axis=1)
    assert picture.finding.endswith(f"than LeakyReLU at {np.sum(over > 0)} of 3.")
    made = {name: np.ones((3, 6, 2)) for name in run["flows"]}
    made["all-relu"][:2, 3] = [[2, 2], [0.5, 0.5]]
    made["leaky-relu"][2, 3] = 0.5
    flat = {name: values.tolist() for name, values in made.items()}
    told = depth.figure({**run, "flows": flat}).finding
    assert "with 3 hidden layers 1 times ReLU's and 2 times LeakyReLU's" in told
    assert "than ReLU at 1 of 3 depths, and than LeakyReLU at 2 of 3." in told
    assert depth.figure({**run, "profile": "quick"}).key == "F-depth-here"
    assert len(picture.caption.split()) <= 60
    assert depth.figure({"missing": "no data"}) == page.Note("no data")


def test_what_weight_decay_brings_on_held_out_rows_is_told():
    run = {
        "condition": {"dataset": "digits", "method": "set-all-relu"}, "seed": 0,
        "config": {"weight_decay": 0.0002}, "data": {"surrogate": False}, "test_accuracy": 0.75,
    }  # fmt: skip
    without = run | {"config": {"weight_decay": 0.0}, "test_accuracy": 0.875}
    study = replace(STUDIES["T-held-out"], datasets=("digits", "madelon"))
    told = tables.held_out(studies.Results(study, "paper", [run, without])).text
    assert "intervals): Optical digits +12.50 points (one run). `train` uses" in told
    assert "; so λ = 0 on: none. Without held-out rows" in told, "of these two"
    whole = studies.Results(STUDIES["T-held-out"], "paper", [run, without])
    told = tables.held_out(whole).text
    assert told.endswith("λ = 0 where all released code for the data set does: CIFAR-10. ")
    assert "Not recorded yet: Optical" in tables.held_out(studies.Results(study, "paper", [])).text


def test_what_is_missing_of_the_main_table_is_counted():
    study = STUDIES["T-main"]
    planned = len(study.conditions("paper"))
    run = {
        "condition": {"dataset": "cifar10", "method": "dense"}, "config": {"weight_decay": 0.0},
        "data": {"surrogate": False}, "seconds": {"train": 3600.0, "evaluate": 1800.0},
        "provenance": {"ranks": 1, "threads": 2, "cores": 2, "cpu": "a CPU"},
    }  # fmt: skip
    run["seed"], main = 0, studies.Results(study, "paper", [])
    main.runs.append(run)
    more = run | {"config": {"weight_decay": 2e-6}}
    decay = studies.Results(STUDIES["F-decay"], "paper", [run, more])
    last = tables.coverage(main, decay).data.iloc[-1]
    assert (last["title"], last["recorded"], last["hours"]) == ("F-decay", 1, 3.0), "its own"
    held = run | {"config": {"weight_decay": 0.0, "n_train": 9}}
    apart = studies.Results(STUDIES["T-held-out"], "paper", [held])
    last = tables.coverage(main, apart).data.iloc[-1]
    assert (last["recorded"], last["hours"]) == (1, 3.0), "of fewer rows: another run"
    table = tables.coverage(main)
    assert table.data["planned"].sum() == planned
    row = table.data[(table.data["title"] == "CIFAR-10") & (table.data["decay"] == 0)].iloc[0]
    assert (row["recorded"], row["missing"].split("; ")[0]) == (1, "SET-ReLU")
    assert row["hours"] == table.data["hours"].sum() == 3.0, "1.5 hours of two cores"
    told = f"Of the main table's {planned} planned runs, 1 are recorded. They took 3 core-hours"
    assert table.finding == f"{told}; all runs of this table took 3."
    brain = {"seconds": {"train": 1800.0, "evolve": 900.0, "evaluate": 900.0}}
    brain["provenance"] = run["provenance"] | {"cpu": "CPU 9"}
    lost = [{"diverged": "", "provenance": run["provenance"]}, {"whole": {}}]
    team = {"seconds": {"train": 1800.0, "evaluate": 3600.0}}  # half an hour of tests on each rank
    team["provenance"] = run["provenance"] | {"ranks": 2, "threads": 1, "cpu": "CPU 9"}
    table = tables.compute([main, decay], [brain, team], lost)
    assert table.data.to_numpy().tolist() == [["CPU 9", 2, 4.0], ["a CPU", 2, 6.0]], "each run once"
    told = "With F-parallel and T-extreme, recorded runs took 10 core-hours in all."
    assert table.finding == told
    assert len(table.caption.split()) <= 60 and tables.compute([]).frame.empty


def test_methods_without_runs_are_left_out(main):
    """Runs that diverged, or that are not recorded yet, do not keep the others from being shown."""
    runs = main.of("digits", "set-all-relu")
    three = replace(view(main, "set-relu", "set-leaky-relu", "set-all-relu"), runs=runs)
    assert len(figures.gradient_flow(three).figure.axes[1].lines) == 1
    assert len(figures.curves(three).figure.axes[1].lines) == 1
    pair = replace(view(main, "set-all-relu", "set-all-relu-pruned"), runs=runs)
    told = f"{store.NOTHING['missing']} Not available on this machine: Madelon."
    assert pruning.during_training(pair).text == told
    assert len(pruning.after_training(pair).figure.axes[0].lines) == 2  # and a point less


# --- tables and notebooks ---


def test_every_method_has_a_colour_of_its_own():
    varied = {m for m in conditions.METHODS if m.rpartition("-")[0] in SENSITIVITIES}
    assert set(COLOURS) == set(conditions.METHODS) - varied
    assert len(set(COLOURS.values())) == len(COLOURS)


def test_hyperparameters_are_the_settings_with_their_origins():
    table = tables.hyperparameters()
    shown = table.frame.set_index("data set")
    for name, setting in SETTINGS.items():
        row = shown.loc[datasets.describe(name)["title"]]
        for field, label in (("alpha", "α"), ("learning_rate", "η"), ("batch_size", "batch")):
            mark = {READING: "†", CHOICE: "‡"}.get(setting.origin(field), "")
            assert row[label] == f"{getattr(setting.config, field):g}{mark}"
    assert shown.loc["Fashion-MNIST", "architecture"] == "784-1000-1000-1000-10"
    unmarked = shown.map(lambda value: not str(value).endswith(("†", "‡"))).to_numpy().sum()
    assert f" {unmarked} are from the released code, " in table.finding
    common = tables.common_hyperparameters().frame.set_index("hyperparameter")["value"]
    assert common["weight decay λ, per step"] == "0, 0.0002"
    assert common["importance pruning from epoch"] == "200"
    own = [sum(str(cell).endswith(mark) for cell in shown.to_numpy().flat) for mark in "†‡"]
    assert table.finding.endswith(f", {own[0]} are {READING} and {own[1]} {CHOICE}.")
    assert common["parallel: epochs between prunings"] == "20"
    assert common["parallel: pruned up to this percentile"] == "10"
    assert common["parallel: share of the epochs in phase 1"] == "0.7"


def test_data_sets_table_says_what_is_not_there(monkeypatch):
    def absent(name):
        raise DataNotAvailable(name, [], "see /somewhere/private")

    real = datasets.load
    monkeypatch.setattr(datasets, "load", lambda n: real(n) if n == "digits" else absent(n))
    table = tables.data_sets(studies.Results(STUDIES["T-main"], "paper", []))
    shown = table.frame.set_index("data set")
    assert shown.loc["Fashion-MNIST", "source, hash"] == "github.com (not here)"
    assert "Fashion-MNIST: not available on this machine;" in table.sources
    digits = real("digits")
    assert shown.loc["Optical digits", "training"] == f"{len(digits.y_train):,}"
    rows = {row["name"]: row for row in csv.DictReader(io.StringIO(table.csv()))}
    assert rows["digits"]["sha256"] == digits.content_hash
    assert "(1,437, 360)" in table.sources
    assert shown.loc["Optical digits", "source, hash"].endswith(f", `{digits.content_hash[:8]}`")
    assert "/somewhere" not in table._repr_markdown_() + table.latex()
    used = (("digits", 100, 360), ("madelon", 2000, 600))
    runs = [{"condition": {"dataset": d}, "data": {"n_train": a, "n_test": b}} for d, a, b in used]
    told = tables.data_sets(studies.Results(STUDIES["T-main"], "paper", runs)).finding
    assert "Optical digits (training, test: 100, 360 of 1,437, 360)" in told
    assert "Fashion-MNIST (no run yet)" in told and "Madelon (" not in told


def test_a_table_is_made_of_rows_and_columns():
    columns = (
        Column("group", "group", number=False, once=True),
        Column("n", "n", "{:,}"),
        Column("both", "", lambda row: f"{row['group']}{row['n']}", number=False),
    )
    rows = [{"group": "a", "n": 1000}, {"group": "a", "n": None}, {"group": "b", "n": 2}]
    table = Table.of("T-x", rows, columns, "")
    assert table.frame.to_dict("list") == {
        "group": ["a", "", "b"], "n": ["1,000", "—", "2"], "both": ["a1000", "aNone", "b2"],
    }  # fmt: skip
    assert table.numbers == ("n",)
    assert table.csv().splitlines() == ["group,n", "a,1000.0", "a,", "b,2.0"]


def test_table_in_three_forms():
    frame = pd.DataFrame({"ε": ["1 % | 2", "`a_b`"], "n": ["3", "4†"]})
    table = Table("T-x", frame, "**Cap** of `x_1`.", frame, ("n",))
    markdown = table._repr_markdown_()
    assert markdown.startswith("````{table} **Cap** of `x_1`.\n:name: T-x\n")
    assert r"| 1 % \| 2 | 3 |" in markdown
    assert "| :--- | ---: |" in markdown
    latex = table.latex()
    assert r"\begin{tabular}{lr}" in latex
    assert r"1 \% $|$ 2 & 3" in latex
    assert r"\texttt{a\_b} & 4$^\dagger$" in latex
    assert r"\caption{\textbf{Cap} of \texttt{x\_1}.}" in latex
    html = table._repr_html_()
    assert "<b>Cap</b> of <code>x_1</code>." in html
    assert 'download="T-x.csv"' in html


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebooks_load_call_and_show_and_are_committed_without_outputs(path):
    functions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
    forbidden = (*functions, ast.For, ast.While)
    for cell in json.loads(path.read_text())["cells"]:
        if cell["cell_type"] == "code":
            tree = ast.parse("".join(cell["source"]))
            assert not any(isinstance(node, forbidden) for node in ast.walk(tree))
            assert not cell["outputs"] and cell["execution_count"] is None, "run nbstripout on it"
            about = cell["metadata"]
            if "hide-input" in (tags := about.get("tags", [])) and "remove-output" not in tags:
                # else its figure is code to the book
                assert about["mystnb"]["markdown_format"] == "myst", cell["id"]
