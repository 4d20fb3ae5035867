"""Runs and pictures of the pages on parallel training, on small data without a cluster."""

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest

from sparsecore.cluster import ClusterError
from sparsecore.config import TrainConfig
from sparsecore.paper import deviations, store
from sparsecore.paper.parallel import figures as parallel_figures
from sparsecore.paper.parallel import runs as parallel
from sparsecore.paper.training.conditions import STUDIES
from sparsecore.paper.training.studies import Results
from sparsecore.settings import DECAYS

SMALL = TrainConfig(hidden=(20, 20), batch_size=32, epochs=4)


@pytest.fixture
def trained(one_worker, monkeypatch):
    """The recorded runs, trained here on a busy machine; return the calls for it."""
    small = parallel.Effort(4, 300, (0, 1))
    monkeypatch.setattr(parallel, "DATASET", "digits")
    monkeypatch.setattr(parallel_figures, "DATASET", "digits")
    monkeypatch.setattr(parallel, "EFFORTS", {"quick": small, "paper": small})
    monkeypatch.setattr(parallel, "config_of", lambda profile: SMALL)
    monkeypatch.setattr(store, "busy_cpus", lambda: 1.5)
    assert parallel.load("paper")["replay"]["identical"]
    monkeypatch.setattr(store, "busy_cpus", lambda: 0.1)
    return one_worker


def test_a_run_that_fails_beside_whole_seeds_says_why(trained, monkeypatch):
    def fails(*asked):
        raise ClusterError("no engines")

    monkeypatch.setattr(parallel, "_train", fails)
    parallel.entry("wassp", 1, "paper").path.unlink()
    reasons = []
    assert parallel.load("paper", reasons)["seeds"] == [0]
    assert reasons == ["This cannot be measured here: no engines."]


def test_runs_are_made_in_turns_shown_and_told(trained):
    found = parallel.load("paper")
    assert trained == [(name, seed, 0.7) for seed in (0, 1) for name in ("wasap", "wassp")]
    accuracy = parallel_figures.accuracy(found)
    left = accuracy.figure.axes[0]
    low, high = left.get_ylim()
    for runs in found["runs"].values():
        mean = sum(run["test_accuracy"] for run in runs) / len(runs)
        assert f"{100 * mean:.2f} %" in accuracy.sources
        assert low < 100 * mean < high
    assert len(left.lines) == 3 + 2 + 1  # means, a dot per parallel algorithm, the phases
    tests = [[e["test_accuracy"] for e in run["epochs"]] for run in found["runs"]["sequential"]]
    assert left.lines[0].get_ydata() == pytest.approx(100 * np.mean(tests, axis=0))
    spent = [
        [e["seconds"]["train"] + e["seconds"]["evolve"] for e in run["epochs"]]
        for run in found["runs"]["sequential"]
    ]
    drawn = accuracy.figure.axes[1].lines[0].get_xdata()
    assert drawn == pytest.approx(np.mean(spent, axis=0))
    for dot, name in ((left.lines[2], "wasap"), (left.lines[4], "wassp")):
        end = 100 * np.mean([run["test_accuracy"] for run in found["runs"][name]])
        assert dot.get_xydata() == pytest.approx(np.array([[4, end]]))
        assert dot.get_color() == parallel_figures.COLOUR[name]
    staleness = parallel_figures.staleness(found)
    heights = [bar.get_height() for bar in staleness.figure.axes[0].patches]
    assert heights == [100.0, 0, 0, 0]  # one worker is never stale
    assert "are 0.00 updates old on average, and 100.0 % are" in staleness.finding
    assert "bit-identical" in parallel_figures.replayed(found).text
    differs = {**found, "replay": {"identical": False, "updates": 12}}
    told = "repeated 12 updates. Its weights are not those recorded."
    assert told in parallel_figures.replayed(differs).text


def test_what_is_found_follows_from_the_runs(trained, monkeypatch):
    found = deepcopy(parallel.load("paper"))
    pace, ends = {"sequential": 100, "wasap": 150, "wassp": 80}, (0.9, 0.92, 0.87)
    for (name, runs), end in zip(found["runs"].items(), ends, strict=True):
        for run in runs:
            run |= {"samples_per_second": pace[name], "test_accuracy": end}
            del run["test_right"]  # of another accuracy
            run["provenance"]["cpu"] = "a slow CPU"
            run["seconds"] = {"train": 1000.0}
        for record, loss in zip(runs[0]["epochs"], (0.5, 0.4, 0.3, 0.2), strict=True):
            record |= {"test_accuracy": 1 - loss, "loss": loss}
        runs[1]["epochs"] = runs[0]["epochs"]
        for number, rank in enumerate(runs[0].get("parallel", {"ranks": ()})["ranks"]):
            rank["resources"] = {"seconds": [1], "cpu_percent": [97.0 - number], "rss_mb": [300.0]}
    runs = found["runs"]["wasap"]
    runs[0]["config"]["workers"] = 2
    runs[0]["parallel"]["staleness_histogram"] = [0, 8, 0, 0, 0, 1, 1]
    told = parallel_figures.accuracy(found).finding
    assert (
        "samples per second of these runs are 1.50 (WASAP-SGD) and 0.80 (WASSP-SGD) times those of"
        " sequential training with one thread. Final" in told
    )
    turns = {"set-all-relu": [4.0, 3.0, 9.0], "wasap": [2.0], "wassp": [5.0]}
    claimed = "; the claims' contest (T-times), of other epochs, has 2.00 and 0.80. Final"
    assert claimed in parallel_figures.accuracy(found, {"digits": {"rounds": turns}}).finding
    assert "training's: WASAP-SGD +2.00 points [" in told
    assert "] (2 seeds) and WASSP-SGD -3.00 points" in told
    bars = parallel_figures.staleness(found)
    assert [bar.get_height() for bar in bars.figure.axes[0].patches] == [0, 80, 0, 0, 0, 20]
    assert "80.0 % are at most 4 updates old" in bars.finding
    used = parallel_figures.resources(found)
    told = "A rank uses 97 to 97 % of a core on average, and at most 300 MiB of memory."
    assert used.finding == told
    lines = [[line.get_ydata().tolist() for line in ax.lines] for ax in used.figure.axes]
    assert lines == [[[97.0]], [[300.0]], [[97.0]], [[300.0]]]

    empty = Results(replace(STUDIES["T-deviations"], datasets=("digits",)), "paper", [])
    told = parallel_figures.beside_main(found, empty).text
    assert told.endswith("separately: compare seconds within one figure only.")
    runs = [
        {**run, "seed": seed, "condition": {"dataset": "digits", "method": method},
         "data": {"n_test": 1000}, "test_accuracy": accuracies[seed],
         "config": {"weight_decay": 0.0002, "epsilon": 9}}
        for method, accuracies in (("wassp", (0.8, 0.8)), ("set-all-relu", (0.82, 0.8)),
                                   ("wasap", (0.7, 0.71)))
        for seed, run in enumerate(runs)
    ]  # fmt: skip
    main = replace(empty, runs=runs)
    note = parallel_figures.beside_main(found, main)
    told = note.text
    assert "minus the sequential trainer's: −10.50 points [" in note._repr_markdown_()
    assert "] (WASAP-SGD) and -1.00 points [" in told and told.endswith("] (WASSP-SGD).")


def test_phase_2_and_the_average_are_shown_for_every_data_set():
    def run(dataset, method, decay, *tests, losses=(0.5, 0.6)):
        epochs = [{"test_accuracy": t, "loss": v} for t, v in zip(tests, losses, strict=False)]
        return {
            "condition": {"dataset": dataset, "method": method}, "seed": 0, "epochs": epochs,
            "test_accuracy": tests[-1], "nnz_start": 9, "nnz_end": 9,
            "config": {"phase1_epochs": 1, "weight_decay": decay, "epsilon": 9},
            "data": {"surrogate": False, "n_train": 9},
            "provenance": {"cpu": "a", "cores": 1, "threads": 1, "sparsecore": "0"},
        }  # fmt: skip

    runs = [
        run("digits", "wasap", 0.0002, 0.9, 0.8, 0.95),
        run("digits", "wassp", 0.0, 0.9, 0.92, 0.85, losses=(0.5, 0.4)),
        *(run("madelon", "wasap", 0.0, *tests) for tests in
          ((0.7, 0.6, 0.7), (0.71, 0.61, 0.72), (0.69, 0.6, 0.69))),
    ]  # fmt: skip
    picture = parallel_figures.averaged(Results(STUDIES["F-average"], "paper", runs))
    assert len(picture.figure.axes) == 2, "madelon has no run with weight decay"
    first, second = picture.figure.axes[0].lines
    assert first.get_ydata() == pytest.approx([90, 80, 95])
    assert second.get_ydata() == pytest.approx([90, 92, 85])
    assert "lose test accuracy in 2 of 3 cases" in picture.finding
    assert ", in 1 beyond the 95 % interval over seeds" in picture.finding, "of three seeds"
    told = (
        "accurate in 2 (in 1 beyond the interval), and reaches phase 1's accuracy in 2. In 2 cases"
    )
    assert told in picture.finding
    nothing = parallel_figures.averaged(Results(STUDIES["F-average"], "paper", []))
    assert "Not recorded yet: Fashion-MNIST, " in nothing.text

    # WASSP's phase 2 at both rates, where both are recorded; a run that diverged has no numbers.
    runs = [
        run("madelon", "wassp", 0.0002, *[0.9] * 8, losses=(0.5, *[0.55] * 5, 0.4, 0.4)),
        run("madelon", "wassp-released", 0.0002, 0.9, 0.92, 0.85, losses=(0.5, 0.45, 0.7)),
        run("madelon", "wassp", 0.0, 0.9, 0.92, 0.85, losses=(0.5, 0.4)),
        run("higgs", "wassp", 0.0, 0.9, 0.92, 0.85),
    ]
    lost = [run("madelon", "wassp-released", 0.0, 0.9, 0.92, 0.85) | {"diverged": "nan"}]
    study = STUDIES["T-deviations"]
    table = parallel_figures.rate_kept(Results(study, "paper", runs, diverged=lost))
    assert table.data["seeds"].tolist() == ["1", "1", "1", "0, 1 diverged"]
    assert table.data["rise"].dropna().tolist() == pytest.approx([-0.1, 0.2, -0.1])
    assert table.data["early"].dropna().tolist() == pytest.approx([0.05, 0.2, -0.1])
    assert table.data["change"].dropna().tolist() == pytest.approx([0, -5, -5])
    unclear = "No change is clear by the uncorrected 95 % interval over 3 or more seeds. "
    nowhere = f"{unclear}In phase 2's first 5 epochs the training loss clearly rises nowhere."
    diverges = (
        "on Madelon at λ = 0 it does not clearly change if the rate falls to a K-th, and every "
    )
    assert f": {diverges}run diverges if the rate is kept. No other change" in table.finding
    assert table.finding.endswith("rises nowhere."), "of one seed nothing follows"

    def told_of(rises, **gains):  # at λ = 0.0002, by method
        seeds = [
            run("madelon", method, decay, 0.9,
                0.9 + seed / 1e4 + gains.get(method, 0) * bool(decay),
                losses=(0.5, 0.5 + rise + 1e-4 * seed)) | {"seed": seed}
            for (method, decay), rise in rises.items() for seed in range(3)
        ]  # fmt: skip
        return parallel_figures.rate_kept(Results(study, "paper", seeds)).finding

    ways = {(method, decay): -0.1 for method in ("wassp", "wassp-released") for decay in DECAYS}
    rises = "clearly rises on Madelon at λ = 0.0002 with a K-th of the rate"
    up = ways | {("wassp", 0.0002): 0.1}
    assert told_of(up).endswith(f"{rises}.")
    more = f"{rises} and on Madelon at λ = 0 with the rate kept."
    assert told_of(up | {("wassp-released", 0.0): 0.1}).endswith(more)
    assert told_of(ways) == nowhere
    changes = told_of(ways, **{"wassp": -0.02, "wassp-released": 0.01})
    assert changes == (
        "Test accuracy of the final average against the end of phase 1: on Madelon at λ = 0.0002 "
        "it loses 1.99 points if the rate falls to a K-th, and it gains 1.01 points if the rate is "
        f"kept. {nowhere.replace('No', 'No other')}"
    )
    more = [{**runs[0], "seed": seed} for seed in (0, 1)]
    table = parallel_figures.rate_kept(Results(study, "paper", [*more, *runs[1:2]]))
    assert table.data["seeds"].tolist() == ["2", "1"], "one seed in common is too few to pair"
    more += [{**runs[1], "seed": seed} for seed in (0, 1, 2)]
    table = parallel_figures.rate_kept(Results(study, "paper", more))
    assert table.data["seeds"].tolist() == ["2", "2"]
    assert "recorded yet" in parallel_figures.rate_kept(Results(study, "paper", runs[3:])).text
    effects = deviations.table(Results(study, "paper", runs, diverged=lost)).data["effect"]
    told = "-5.00 points (one run); Madelon at λ = 0: 1 run of the released variant diverged"
    assert effects[1] == f"Madelon at λ = 0.0002: {told}"


def test_the_build_s_runs_stand_apart(trained, monkeypatch):
    recorded, here = parallel.recorded(), parallel.load("quick")
    assert [found["profile"] for found in (recorded, here)] == ["paper", "quick"]
    for show in ("accuracy", "staleness", "resources"):
        above, below = (getattr(parallel_figures, show)(found) for found in (recorded, here))
        assert below.key == f"{above.key}-here"
    for show in (parallel_figures.accuracy, parallel_figures.resources):
        assert "Other processes used 1.5 CPUs" in show(recorded).sources
        assert "Other processes used" not in show(here).sources, "the build's machine is quiet"
    assert parallel_figures.replayed(here).text.count("identical") == 1

    # Only seeds that all algorithms have are compared, and only a replay of these runs is told.
    parallel.entry("wassp", 1, "paper").path.unlink()
    first = parallel.recorded()
    with monkeypatch.context() as build:  # of profile paper: it trains what is missing
        build.setenv(store.PROFILE, "paper")
        assert parallel.recorded()["seeds"] == recorded["seeds"]
    parallel.entry("wassp", 1, "paper").path.unlink()
    assert all([run["seed"] for run in runs] == [0] for runs in first["runs"].values())
    replay = parallel.entries("paper")[-1]
    replay.path.unlink()
    replay.obtain(lambda: {**first["replay"], "recorded_sha256": "another"})
    assert parallel.recorded() == store.NOTHING


def test_what_cannot_be_run_is_one_line(trained, monkeypatch):
    def connect(n):
        raise parallel.cluster.ClusterError("no MPI here")

    monkeypatch.setattr(parallel.cluster, "connect", connect)
    here = parallel.load("quick")
    assert "profile paper" in parallel_figures.resources(parallel.recorded()).sources
    parallel.entries("paper")[-1].path.unlink()
    for empty, why in ((parallel.recorded(), "This is not recorded"), (here, "no MPI here")):
        for show in ("accuracy", "staleness", "resources", "replayed"):
            assert why in getattr(parallel_figures, show)(empty).text
        assert why in parallel_figures.beside_main(empty, None).text


def test_schematic_shows_every_worker():
    picture = parallel_figures.overview(4)
    texts = {text.get_text() for text in picture.figure.axes[0].texts}
    assert {f"worker {rank}" for rank in range(4)} <= texts
    assert picture.svg() == parallel_figures.overview(4).svg()
