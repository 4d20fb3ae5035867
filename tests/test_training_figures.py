"""T-main and the figures of training: what is shown are the numbers of the result files."""

import csv
import html
import io
import itertools
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("pandas")

from sparsecore import datasets, experiment
from sparsecore.datasets import DataNotAvailable
from sparsecore.paper import claims, page, store
from sparsecore.paper.style import COLOURS
from sparsecore.paper.training import (
    conditions,
    depth,
    figures,
    pruning,
    studies,
    tables,
    topology,
)
from sparsecore.paper.training.conditions import SENSITIVITIES, STUDIES, Condition, Study
from sparsecore.paper.training.observers import (
    ObserveGradientFlow,
    ObserveImportance,
    ObservePruning,
    ObserveTopology,
)

ROOT = Path(__file__).parent.parent
SMALL = {"epochs": 3, "hidden": (40, 40, 40), "epsilon": 4}
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
    everyone = (ObserveGradientFlow, ObserveImportance)
    observers = {("digits", m): everyone for m in METHODS[1:]}
    observers["digits", "set-all-relu"] += (ObservePruning, ObserveTopology)
    study = Study(
        "T-test",
        "",
        datasets=("digits", "madelon", "leukemia"),
        methods=METHODS,
        seeds={"quick": (0, 1)},
        quick={"digits": SMALL},
        observers=observers,
    )
    patch.setitem(STUDIES, "T-test", replace(study, datasets=("digits", "madelon")))
    found = studies.load("T-test", progress=False)
    return replace(found, study=study)


def view(main, *methods):
    study = Study("F-view", "", ("digits", "madelon"), methods, runs_of="T-test")
    return replace(main, study=study)


def texts(figure):
    return [t.get_text() for ax in figure.axes for t in ax.texts]


def mean_sd(values, digits, scale=1):
    mean = f"{scale * np.mean(values):.{digits}f}"
    if len(values) == 1:
        return mean
    return f"{mean}\xa0±\xa0{scale * np.std(values, ddof=1):.{digits}f}"


def accuracy(runs):
    return mean_sd([run["test_accuracy"] for run in runs], 1, 100)


def epoch_seconds(runs):
    spent = [run["seconds"]["train"] + run["seconds"].get("evolve", 0) for run in runs]
    values = [seconds / run["config"]["epochs"] for seconds, run in zip(spent, runs, strict=True)]
    return "\xa0±\xa0".join(f"{v:.3g}" for v in (np.mean(values), np.std(values, ddof=1)))


def test_recorded_times_are_those_of_the_contest(main):
    """A ratio divides what stands in the table: seconds of one machine, or there is none."""
    here = replace(main, profile="paper", recorded=True, unavailable={})
    contest = {
        "rounds": {"dense": [4.0, 6.0], "set-relu": [0.5, 0.5]},
        "cores": {"dense": 1, "set-relu": 2},
    }
    rows = tables.main(here, times={"digits": contest}).data.set_index("method")
    assert rows.loc["dense", "epoch_seconds"] == 5.0
    assert rows.loc["set-relu", "speed_against_dense"] == 5.0
    assert np.isnan(rows.loc["set-all-relu", "epoch_seconds"])
    assert tables.main(here).data["speed_against_dense"].isna().all()
    runs = [run for run in here.runs if run["condition"]["method"] != "dense"]
    rows = tables.main(replace(here, runs=runs), times={"digits": contest}).data
    assert rows["speed_against_dense"].isna().all(), "no dense row to divide by"


def test_the_main_table_has_a_block_per_weight_decay(main):
    study = replace(main.study, decays=(0.0002, 0.0))
    without = [
        {**run, "config": {**run["config"], "weight_decay": 0.0}, "test_accuracy": 0.5}
        for run in main.of("digits", "set-relu")
    ]
    both = replace(main, study=study, profile="paper", recorded=True, runs=main.runs + without)
    rows = tables.main(both).data
    assert rows["decay"].tolist() == [0.0002] * 5 + [0.0]
    assert rows["test_accuracy"].iloc[-1] == 0.5
    assert rows["test_accuracy"].iloc[1] == tables.main(main).data["test_accuracy"].iloc[1]


def test_what_has_not_learnt_is_said(main):
    changed = [json.loads(json.dumps(run)) for run in main.runs]
    for run in changed:
        if run["condition"]["method"] == "dense":
            run["epochs"][-1]["loss"] = np.log(10)
    guessing = (
        "No better than guessing yet, by their training loss: Optical digits, λ = 0.0002, dense."
    )
    assert guessing in tables.main(replace(main, runs=changed)).sources
    assert "No better than guessing" not in tables.main(main).sources


def files():
    """Return what the result files hold, read without the package."""
    found = [json.loads(path.read_text()) for path in store.root().glob("quick/T-test/*.json")]
    return [(run["condition"]["method"], run) for run in found]


def test_main_table_holds_the_numbers_of_the_files(main):
    table = tables.main(main)
    rows = table.frame[:5].set_index("method")
    labels = {m: conditions.METHODS[m].label for m in METHODS}
    seconds = {
        m: [r["seconds"]["train"] + r["seconds"]["evolve"] for n, r in files() if n == m]
        for m in METHODS
    }
    for method, label in labels.items():
        runs = [run for name, run in files() if name == method]
        assert len(runs) == 2
        row = rows.loc[label]
        assert row["last (%)"] == accuracy(runs)
        best = [run["best_test_accuracy"] for run in runs]
        assert row["best (%)"] == mean_sd(best, 1, 100)
        chosen = [experiment.chosen_accuracy(run["epochs"], 360) for run in runs]
        assert row["chosen (%)"] == mean_sd(chosen, 1, 100)
        assert row["nnz, start"] == f"{np.mean([r['nnz_start'] for r in runs]):,.0f}"
        assert row["nnz, end"] == f"{np.mean([r['nnz_end'] for r in runs]):,.0f}"
        assert row["s per epoch"] == epoch_seconds(runs)
        ratio = np.mean(seconds["dense"]) / np.mean(seconds[method])
        assert row["× dense"] == f"{ratio:.2f}"
    assert rows.loc["dense", "× dense"] == "1.00"
    assert "profile" not in table.frame


def test_main_table_says_what_is_missing_and_why(main):
    table = tables.main(main)
    shown = table.frame.assign(name=table.data["dataset"]).set_index("name")
    absent = shown.loc["madelon"]  # one row for all of its methods
    assert (absent["method"], absent["last (%)"]) == ("all methods", "not available")
    assert absent["× dense"] == "—"
    assert shown.loc["leukemia", "last (%)"].iloc[0] == "—"
    assert conditions.excluded("leukemia", "dense") in table.sources
    assert table.sources.count("Madelon, all methods: not available on this machine") == 1
    assert "3 epochs of 1,437 rows" in table.sources
    assert "/somewhere" not in table._repr_markdown_() + table.latex() + table.csv()


def test_main_table_as_latex_and_csv(main):
    table = tables.main(main)
    body = table.latex()
    plain = [r for r in csv.DictReader(io.StringIO(table.csv())) if r["dataset"] == "digits"]
    assert [r["method"] for r in plain] == list(METHODS)
    for row in plain:
        runs = [run for name, run in files() if name == row["method"]]
        mean = np.mean([r["test_accuracy"] for r in runs])
        assert float(row["test_accuracy"]) == pytest.approx(mean)
        assert f"{100 * mean:.1f}~$\\pm$" in body
    assert r"$\times$ dense" in body


def test_recorded_results_stand_beside_the_build_s_own(main):
    runs = [{**run, "test_accuracy": 0.5} for run in main.of("digits", "set-relu")]
    recorded = replace(main, profile="paper", runs=runs, recorded=True, unavailable={})
    table = tables.main(main, recorded)
    rows = table.data[table.data["method"] == "set-relu"]
    assert rows["profile"].tolist()[:2] == ["quick", "paper"]
    assert rows["test_accuracy"].tolist()[1] == 0.5
    assert (table.data["profile"] == "paper").sum() == 1, "only what is recorded has a row"
    assert table.sources.count("Runs: profile") == 2
    nothing = replace(recorded, runs=[])
    assert "profile" not in tables.main(main, nothing).frame
    picture = figures.curves(replace(recorded, study=view(main, "set-relu").study))
    markdown = picture._repr_markdown_()
    assert ":name: f-curves-recorded\n" in markdown
    assert f"\n:alt: {picture.alt}\n" in markdown and len(picture.alt.splitlines()) == 1
    assert picture.caption in markdown


def test_where_nothing_is_recorded_a_figure_is_a_note(main):
    nothing = replace(main, profile="paper", runs=[], recorded=True)
    for draw in (figures.curves, figures.gradient_flow, pruning.after_training):
        note = draw(nothing)
        assert isinstance(note, page.Note)
        assert "No results of profile paper are recorded for T-test yet." in note._repr_markdown_()


def test_curves_draw_means_and_bands_of_the_results(main):
    methods = ("set-relu", "set-all-relu")
    picture = figures.curves(view(main, *methods))
    top = picture.figure.axes[0]
    for line, band, method in zip(top.lines, top.collections, methods, strict=True):
        runs = [run for name, run in files() if name == method]
        seeds = [[100 * e["test_accuracy"] for e in run["epochs"][1:]] for run in runs]
        mean, sd = np.mean(seeds, axis=0), np.std(seeds, axis=0, ddof=1)
        np.testing.assert_allclose(line.get_ydata(), mean)
        assert line.get_xdata().tolist() == [1, 2, 3]
        assert line.get_color() == COLOURS[method]
        drawn = band.get_paths()[0].vertices[:, 1]
        assert drawn.min() == pytest.approx((mean - sd).min())
        assert drawn.max() == pytest.approx((mean + sd).max())
        final = [100 * run["test_accuracy"] for run in runs]
        said = f"{np.mean(final):.1f} ± {np.std(final, ddof=1):.1f} % with "
        assert said + conditions.METHODS[method].label in picture.sources
    assert "profile quick, seeds 0, 1" in picture.sources
    assert "(3 epochs of 1,437 rows)" in picture.sources
    assert picture.svg() == figures.curves(view(main, *methods)).svg(), "the same every time"


def test_absent_data_are_said_and_no_path_is_shown(main):
    picture = figures.curves(view(main, "set-relu"))
    assert texts(picture.figure) == 2 * ["not available\non this machine"]
    assert "Not available on this machine: Madelon." in picture.sources
    empty = studies.Results(STUDIES["F-topology"], "quick", [], {"fashion-mnist": "/somewhere"})
    for draw in (topology.degrees, topology.pixels):
        picture = draw(empty)
        assert texts(picture.figure) == ["not available\non this machine"]
        assert "Fashion-MNIST" in picture.caption
        assert "/somewhere" not in picture.caption + picture.svg()


def test_degree_histograms_hold_all_neurons(main):
    study = Study("F-view", "", ("digits",), ("set-all-relu",), runs_of="T-test")
    figure = topology.degrees(replace(main, study=study)).figure
    for ax in figure.axes:
        for line in ax.lines[:2]:
            assert np.sum(line.get_ydata()) == pytest.approx(100)
    assert len(figure.axes) == 6 and figure.axes[0].get_ylabel() == "share of neurons (%)"


def test_pixels_are_where_they_are_in_the_picture(main):
    study = Study("F-view", "", ("digits",), ("set-all-relu",), runs_of="T-test")
    runs = main.of("digits", "set-all-relu")
    picture = topology.pixels(replace(main, study=study, runs=runs))
    images = [ax.images[0].get_array() for ax in picture.figure.axes if ax.images]
    seen = [e for e in runs[0]["epochs"] if "topology" in e]
    assert len(images) == len(seen)
    for image, record in zip(images, seen, strict=True):
        assert image.shape == (8, 8)
        np.testing.assert_allclose(np.ravel(image), record["topology"]["input_strength"])


def test_gradient_flow_draws_geometric_means(main):
    methods = ("set-relu", "set-leaky-relu", "set-all-relu")
    picture = figures.gradient_flow(view(main, *methods))
    ax = picture.figure.axes[0]
    for line, method in zip(ax.lines, methods, strict=True):
        runs = [run for name, run in files() if name == method]
        flows = [[e["gradient_flow"] for e in run["epochs"]] for run in runs]
        np.testing.assert_allclose(line.get_ydata(), np.exp(np.log(flows).mean(axis=0)))
        assert line.get_color() == COLOURS[method]
    assert ax.get_yscale() == "log"
    assert "Not available on this machine: Madelon" in picture.sources


def test_pruning_figures_hold_the_numbers_of_the_files(main):
    shown = view(main, "set-all-relu", "set-all-relu-pruned")
    during = pruning.during_training(shown)
    pruned = [run for name, run in files() if name == "set-all-relu-pruned"]
    nnz = [[e["nnz"] / 1000 for e in r["epochs"]] for r in pruned]
    np.testing.assert_allclose(during.figure.axes[0].lines[1].get_ydata(), np.mean(nnz, axis=0))
    left = 100 * np.mean([r["nnz_end"] / r["nnz_start"] for r in pruned])
    assert f"{left:.0f} % of the connections are left" in during.sources

    after = pruning.after_training(shown)
    plain = [run for name, run in files() if name == "set-all-relu"]
    seen = [[p["test_accuracy"] for p in r["epochs"][-1]["post_pruning"]] for r in plain]
    np.testing.assert_allclose(
        after.figure.axes[0].lines[0].get_ydata(), 100 * np.mean(seen, axis=0)
    )
    assert after.figure.axes[0].lines[0].get_ydata()[0] == pytest.approx(
        100 * np.mean([r["test_accuracy"] for r in plain])
    )


def test_importance_histograms_hold_all_neurons(main):
    picture = pruning.importance(view(main, "set-all-relu", "set-all-relu-pruned"))
    panels = picture.figure.axes[:3]
    for ax in panels:
        outlines = ax.patches[::2]  # each is drawn as a line and as an area
        assert len(outlines) == 3
        for patch in outlines:
            values, edges, _ = patch.get_data()
            assert np.sum(values * np.diff(edges)) == pytest.approx(1)


def test_sensitivity_draws_every_value_and_the_setting_s_own(patch):
    study = Study(
        "F-test-alpha",
        "",
        datasets=("digits", "madelon"),
        methods=STUDIES["F-alpha"].methods,
        seeds={"quick": (0, 1)},
        quick={"digits": {**SMALL, "epochs": 1, "hidden": (20, 20), "epsilon": 10}},
    )
    patch.setitem(STUDIES, "F-test-alpha", study)
    found = studies.load("F-test-alpha", progress=False)
    picture = figures.sensitivity(found)
    alpha, epsilon, zeta = picture.figure.axes[:3]
    for ax, field, own in (
        (alpha, "alpha", [0, 0.6]),
        (epsilon, "epsilon", []),
        (zeta, "zeta", [0.3]),
    ):
        expected = sorted({*SENSITIVITIES[field][1], *own})
        [container] = ax.containers
        assert container.lines[0].get_xdata() == pytest.approx(expected)
    runs = found.of("digits", "zeta-0.5")
    assert container.lines[0].get_ydata()[-1] == pytest.approx(
        100 * np.mean([r["test_accuracy"] for r in runs])
    )
    assert "Digits" in picture.sources or "digits" in picture.sources


def test_every_sensitivity_changes_one_thing():
    base = Condition("F-alpha", "paper", "madelon", "set-all-relu", 0).config
    for field, (_, values) in SENSITIVITIES.items():
        for value in values:
            config = Condition("F-alpha", "paper", "madelon", f"{field}-{value:g}", 0).config
            assert config == base.with_values(**{field: value})


def test_the_built_table_holds_the_numbers_of_the_results():
    """The page in ``book/_build``, if there is one, against the result files it was built from."""
    built = ROOT / "book/_build/html/notebooks/main.html"
    if not built.is_file():
        pytest.skip("the book is not built")
    text = html.unescape(built.read_text())
    table = re.search(r'<table[^>]*id="t-main".*?</table>', text, re.DOTALL)
    assert table, "no table t-main on the page"
    cells = [
        [
            html.unescape(re.sub(r"<[^>]+>", "", c)).strip()
            for c in re.findall(r"<td.*?</td>", row, re.DOTALL)
        ]
        for row in re.findall(r"<tr.*?</tr>", table[0], re.DOTALL)
    ]
    rows = iter([row for row in cells if row])
    two_profiles = "<p>profile</p>" in table[0]
    folder = ROOT / "book/results"
    compared = 0
    for name in STUDIES["T-main"].datasets:
        absent = not list((folder / "quick" / "T-main").glob(f"{name}-*"))
        methods = STUDIES["T-main"].methods
        for decay, method in itertools.product(("", "-decay0"), methods):
            for profile in ("quick", "paper") if two_profiles else ("quick",):
                file = f"{name}-{method}{decay}-seed*.json"
                paths = sorted((folder / profile / "T-main").glob(file))
                if not paths and (profile == "paper" or decay or (absent and method != "dense")):
                    continue
                row = next(rows)
                runs = [json.loads(path.read_text()) for path in paths]
                label = "all methods" if absent and not runs else conditions.METHODS[method].label
                assert row[2] == label
                if not runs:
                    assert row[-7] in ("—", "not available")
                    continue
                assert row[-7] == accuracy(runs)
                assert row[-4] == f"{np.mean([r['nnz_start'] for r in runs]):,.0f}"
                assert row[-3] == f"{np.mean([r['nnz_end'] for r in runs]):,.0f}"
                compared += 1
    assert compared


def test_decay_draws_the_means_at_each_weight_decay(main):
    study = replace(view(main, "set-relu").study, decays=(0.0, 0.0002), datasets=("digits",))
    without = [
        {**run, "config": {**run["config"], "weight_decay": 0.0}, "test_accuracy": value}
        for run, value in zip(main.of("digits", "set-relu"), (0.5, 0.6), strict=True)
    ]
    found = replace(main, study=study, runs=main.runs + without)
    picture = figures.decay(found)
    [container] = picture.figure.axes[0].containers
    usual = np.mean([100 * run["test_accuracy"] for run in main.of("digits", "set-relu")])
    assert container.lines[0].get_ydata() == pytest.approx([55, usual])
    effects = tables.deviations(replace(found, study=replace(study, methods=METHODS))).data
    told = effects.set_index("subject")["effect"]
    assert told["Weight decay λ (decoupled, per step)"] == "the largest of all", "All-ReLU has one"
    runs = [run | {"condition": {"dataset": "digits", "method": "set-all-relu"}} for run in
            found.runs if run["condition"]["method"] == "set-relu"]  # fmt: skip
    effects = tables.deviations(replace(found, runs=runs)).data
    assert f"Optical digits: {55 - usual:+.2f} points [" in effects["effect"].iloc[0]


def test_depth_draws_geometric_means_and_says_them(monkeypatch):
    monkeypatch.setattr(depth, "DATASET", "digits")
    monkeypatch.setattr(depth, "DEPTHS", (1, 2))
    run = {"profile": "paper", **depth.measure(8, 2)}
    picture = depth.figure(store.Versions(run))
    flows = np.array(run["flows"]["all-relu"])
    np.testing.assert_allclose(run["flows"]["leaky-relu"][0][0], flows[0, 0])  # α = 0 is ReLU
    line = picture.figure.axes[1].lines[0]
    np.testing.assert_allclose(line.get_ydata(), np.exp(np.log(flows[1]).mean(axis=1)))
    ratio = np.exp(np.log(flows[0, 3]).mean() - np.log(flows[0, 0]).mean())
    assert f"All-ReLU is {ratio:.2g} times ReLU's" in picture.sources
    assert len(picture.caption.split()) <= 60
    assert isinstance(depth.figure(store.Versions(None, missing="no data")), page.Note)


def test_what_others_published_and_what_it_took(main):
    assert "mocanu2018" in tables.published().frame["source"].iloc[0]
    runs = [run for _, run in files()]
    folder = store.root() / "paper" / "T-test"
    folder.mkdir(parents=True)
    for number, run in enumerate(runs):
        (folder / f"{number}.json").write_text(json.dumps(run))
    total = tables.spent().data.set_index("study").loc["all"]
    seconds = sum(sum(run["seconds"].values()) for run in runs)
    assert (total["runs"], total["hours"]) == (len(runs), pytest.approx(seconds / 3600))


def test_methods_without_runs_are_left_out(main):
    """Runs that diverged, or that are not recorded yet, do not keep the others from being shown."""
    runs = main.of("digits", "set-all-relu")
    three = replace(view(main, "set-relu", "set-leaky-relu", "set-all-relu"), runs=runs)
    assert len(figures.gradient_flow(three).figure.axes[0].lines) == 1
    caption = figures.curves(three).sources
    assert "with SET-All-ReLU" in caption and "with SET-ReLU" not in caption
    pair = replace(view(main, "set-all-relu", "set-all-relu-pruned"), runs=runs)
    assert len(pruning.during_training(pair).figure.axes[0].lines) == 0
    assert len(pruning.after_training(pair).figure.axes[0].lines) == 1


@pytest.mark.parametrize(
    ("key", "draw"),
    [
        ("F-curves", figures.curves),
        ("F-gradient-flow", figures.gradient_flow),
        ("F-alpha", figures.sensitivity),
        ("F-importance", pruning.importance),
        ("F-importance", pruning.during_training),
        ("F-importance", pruning.after_training),
        ("F-topology", topology.degrees),
        ("F-topology", topology.pixels),
        ("T-main", tables.main),
        ("F-decay", figures.decay),
        ("T-deviations", tables.deviations),
        ("L-claims", lambda found: claims.Ledger(found).table()),
        ("L-claims", lambda found: claims.Ledger(found).evidence()),
    ],
)
def test_captions_of_recorded_results_are_short_and_name_no_machine(key, draw, monkeypatch):
    monkeypatch.setenv(store.FOLDER, str(ROOT / "book" / "results"))
    monkeypatch.setattr(studies, "data_sha256", lambda name: None)  # not to be downloaded
    shown = draw(studies.recorded(key))
    assert len(shown.caption.split()) <= 60
    assert not re.search(r"commit|EPYC|Xeon|profile", shown.caption)
    if key != "L-claims":
        assert "Runs: profile paper" in shown.sources
