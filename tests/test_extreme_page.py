"""The extreme study: run or load, the claim's verdict, tables and pictures."""

import json
import re
import subprocess

import numpy as np
import pytest
from scipy import stats

from sparsecore.__main__ import main
from sparsecore.cluster import ClusterError
from sparsecore.extreme import budget
from sparsecore.extreme.config import ExtremeConfig
from sparsecore.paper import claims, store
from sparsecore.paper.claims import FAILS, HOLDS, UNDECIDED, UNTESTED
from sparsecore.paper.extreme import figures as extreme_figures
from sparsecore.paper.extreme import runs as extreme
from sparsecore.paper.extreme.runs import BAT, Row
from sparsecore.paper.page import Note
from sparsecore.paper.training.conditions import STUDIES
from sparsecore.paper.training.studies import Results

GIB = 2**30


def result(neurons=BAT, trend_p=1e-6, test_p=1e-9, peak=5 * GIB, **changes):
    """Return what a run of the command has in its result, as far as the page needs it."""
    found = {
        "profile": "paper", "seed": 0, "density": 1e-6, "nnz": 5 * neurons,
        "config": {
            "neurons": neurons, "hidden_layers": 10, "batch_size": 4, "steps": 4, "evolve_every": 2,
        },
        "budget": {"program": GIB, "weights, 4 bytes each": 3 * GIB},
        "budget_bytes": 4 * GIB, "peak_bytes": peak, "seconds": {"initialise": 3.0},
        "step_seconds": [neurons * 3e-8, neurons * 4e-8, neurons * 5e-8],
        "evolve_seconds": [2.0], "predict_seconds": [0.5], "seconds_per_sample": neurons * 1e-8,
        "losses": [0.8, 0.7, 0.5, 0.4], "trend": {"tau": -1.0, "p": trend_p},
        "test": {"n": 100, "correct": 90, "accuracy": 0.9, "p": test_p},
        "provenance": {
            "memory_gib": 24.0, "cpu": "a CPU", "cores": 2, "threads": 2, "commit": "abc",
            "sparsecore": "0",
        },
    }  # fmt: skip
    return found | changes


PARTS = {
    "split": {
        "whole": {"neurons": 9, "step_seconds": [1.0], "peak_bytes": GIB, "losses": [0.5]},
        "split": {
            "neurons": 9, "step_seconds": [0.6], "peak_bytes": [GIB // 2, GIB // 4],
            "losses": [0.500001], "message_bytes": 2**21, "message_seconds": 0.1,
        },
        "largest_difference": 1e-6,
    },
    "survival": {
        "whole": {"neurons": 9}, "identical": True, "file_bytes": GIB,
        "resumed": {"seconds": {"checkpoint": 4.0}, "weights_sha256": "0123456789"},
    },
}  # fmt: skip


def page(profile="paper", **changes):
    sizes = (5_000_000, BAT, 200_000_000) if profile == "paper" else (500_000, 5_000_000)
    found = {Row(n, 10): result(n, profile=profile, **changes) for n in sizes}
    about = {"profile": profile, "provenance": result()["provenance"]}
    return found | {name: part | about for name, part in PARTS.items()}


# --- the claim -----------------------------------------------------------------------------------


def checks(runs):
    nothing = Results(STUDIES["L-claims"], "paper", [])
    return claims.Ledger(nothing, extreme=runs).checks["C4"]


def verdicts(runs):
    return [check.outcome for check in checks(runs)]


FROZEN = {Row(BAT, 10, frozen=True): result(test={"n": 100, "correct": 60, "p": 0.03})}


@pytest.mark.parametrize(
    "neurons, changes, outcome",
    [
        (BAT, {}, [HOLDS, HOLDS, HOLDS]),
        (4 * BAT, {}, [HOLDS]),
        (BAT, {"trend_p": 0.3}, [UNDECIDED, HOLDS, HOLDS]),
        (BAT, {"trend_p": 0.99}, [FAILS, HOLDS, HOLDS]),
        (BAT, {"test": {"n": 100, "correct": 53, "p": 0.3}}, [HOLDS, UNDECIDED, UNDECIDED]),
        (BAT, {"test": {"n": 100, "correct": 30, "p": 0.99999}}, [HOLDS, FAILS, FAILS]),
    ],
)
def test_each_check_holds_for_good_runs_and_can_fail(neurons, changes, outcome):
    assert verdicts({Row(neurons, 10): result(neurons, **changes), **FROZEN}) == outcome


def test_good_runs_are_evidence_and_small_networks_none():
    both = checks({Row(BAT, 10): result(), Row(4 * BAT, 10): result(4 * BAT), **FROZEN})
    assert claims.verdict(both) == HOLDS
    for runs in ({}, {Row(BAT // 10, 10): result()}):
        assert set(verdicts(runs)) == {UNTESTED}


def test_the_table_s_columns_hold_what_their_titles_say():
    row = extreme_figures.table(page()).frame.iloc[0]  # 5 million neurons
    titles = ["GiB", "plan", "init", "sample", "epoch", "infer", "evolve"]
    assert row[titles].tolist() == ["5.00", "4.00", "3.0", "0.050", "0.60", "0.12", "2.0"]
    assert [extreme_figures._seconds(s) for s in (99.4, 99.6, 120.0)] == ["99", "100", "120"]


def test_seeds_are_judged_together_and_weight_decays_apart():
    def some(correct, p, **which):
        rows = [Row(BAT, 10, seed=seed, **which) for seed in range(len(correct))]
        tests = [{"n": 100, "correct": c, "p": one} for c, one in zip(correct, p, strict=True)]
        return {r: result(trend_p=t["p"], test=t) for r, t in zip(rows, tests, strict=True)}

    p = (0.06, 0.04, 0.05)  # none of them is enough alone, after the correction
    runs = some((60, 61, 59), p) | some((52, 50, 51), (0.3, 0.5, 0.4), frozen=True)
    alone = some((60,), p[:1], decay=0.0)
    fall, chance, frozen, *without = checks(runs | alone)
    together = stats.combine_pvalues(p, method="stouffer").pvalue
    assert fall.p == pytest.approx(2 * together)
    assert chance.p == pytest.approx(2 * stats.binom.sf(179, 300, 0.5))
    assert fall.evidence == "Kendall's τ -1.00, -1.00, -1.00; 4 steps"
    assert chance.evidence == "180 of 300 held-out samples right" and chance.effect == 60
    assert frozen.evidence == "180 of 300 right, 153 with hidden layers frozen"
    assert frozen.p == pytest.approx(2 * stats.binom.sf(146, 267, 0.5))
    assert [(c.seeds, c.decay) for c in (fall, chance, frozen)] == [("3", 0.0002)] * 3
    assert [(c.seeds, c.decay) for c in without[:2]] == [("1", 0.0)] * 2
    assert without[2].outcome == UNTESTED, "the control is of the other weight decay"
    assert len({row.name for row in runs | alone}) == len(runs | alone)
    mixed = checks(some((60, 61, 59), (1e-6, 0.9, 0.95)))
    assert mixed[0].outcome == UNDECIDED, "two of three losses rise"
    del runs[Row(BAT, 10, frozen=True, seed=2)]
    part = checks(runs)[2]
    told = "121 of 200 right, 102 with hidden layers frozen"
    assert (part.evidence, part.seeds) == (told, "2"), "of pairs only"


def test_what_is_recorded_bears_the_claim_out(monkeypatch, request):
    monkeypatch.setenv(store.FOLDER, str(request.config.rootpath / "book" / "results"))
    recorded = extreme.recorded()
    found = {row: recorded[row] for row in extreme.ROWS if row in recorded and row.neurons >= BAT}
    assert set(verdicts(found)) - {UNTESTED} == {HOLDS}  # the controls may be missing
    for run in found.values():
        assert 22 * GIB > run["peak_bytes"] == pytest.approx(run["budget_bytes"], rel=0.1)


# --- run or load ---------------------------------------------------------------------------------


ROW = Row(20_000, 2)


@pytest.fixture
def in_process(monkeypatch, capsys):
    """Commands that need no `mpiexec` run in this process."""
    apart = extreme._result

    def result(before, *size):
        if before:
            return apart(before, *size)
        assert main(extreme._command([], *size)[3:]) == 0
        return json.loads(capsys.readouterr().out)

    monkeypatch.setattr(extreme, "_result", result)


@pytest.fixture
def small(results, monkeypatch):
    monkeypatch.setattr(extreme, "ROWS", (ROW,))
    monkeypatch.setattr(extreme, "LIVE", (ROW,))
    monkeypatch.setattr(extreme, "PARTS", {})


def test_a_live_run_is_made_once(small, in_process):
    run = extreme.load("quick")[ROW]
    assert run["neurons"] == 20_000 and run["trend"] is not None
    assert run["provenance"]["packages"] and run["recipe"]
    assert extreme.networks(extreme.load("quick")) == [run]
    assert extreme.recorded() == {}


def test_what_needs_mpi_says_so_without_it(small, monkeypatch, capsys):
    def no_mpi(neurons):
        raise ClusterError("no MPI here")

    monkeypatch.setattr(store, "busy_cpus", lambda: 0.0)
    monkeypatch.setattr(extreme, "LIVE", ())
    monkeypatch.setattr(extreme, "PARTS", {"split": (no_mpi, {"quick": 1})})
    found = extreme.load("quick")
    assert "no MPI here" in extreme_figures.split(found).text
    assert main(["study", "run", "T-extreme"]) == 1
    assert "  split: missing\n  This cannot be measured here: no MPI" in capsys.readouterr().out


def test_a_run_that_fails_says_why(monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "one\nno memory\n")
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: failed)
    with pytest.raises(RuntimeError, match="no memory"):
        extreme._result([], 20_000, 2)


def test_a_network_that_does_not_fit_leaves_the_others_to_be_trained(small, monkeypatch, capsys):
    monkeypatch.setattr(extreme, "LIVE", (Row(10**10, 2), ROW))
    assert main(["study", "run", "T-extreme"]) == 1
    assert "free memory: expected at least" in capsys.readouterr().out
    assert [*extreme.load("quick")] == [ROW]


# --- tables and pictures -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "profile, rows, key, said",
    [
        ("paper", 3, "T-extreme", "Recorded (profile paper): seed 0, 2 cores of a CPU"),
        ("quick", 2, "T-extreme-here", "This build (profile quick): seed 0, 2 cores of a CPU"),
    ],
)
def test_the_table_has_a_row_for_every_run(profile, rows, key, said):
    table = extreme_figures.table(page(profile))
    assert (len(table.frame), table.key) == (rows, key)
    assert said in table.sources
    assert table.frame["right"][0] == "90/100"
    assert "a probability of at most 1e-09" in table.sources
    assert table.frame["loss"][0] == "0.60 → 0.60"
    assert table.data["nnz"].tolist() == [5 * n for n in table.data["neurons"]]
    assert table.finding.startswith("All networks are trained for an epoch of 16 samples. ")


@pytest.mark.parametrize(
    "name, changes, finding",
    [
        ("scaling", {}, "200,000,000 neurons, 4 times as many as a bat's brain: it takes 5.0 GiB"),
        ("scaling", {"peak_bytes": 7 * GIB}, "it takes 7.0 GiB of memory and 8 s per"),
        ("scaling", {}, "step, and it classifies 90 of 100 held-out samples correctly."),
        ("table", {}, "the memory used exceeded it by at most 25.0 %."),
        ("table", {"peak_bytes": 3 * GIB}, "the memory used never exceeded it."),
        (
            "losses",
            {},
            "The loss falls in 3 of the 3 largest networks with 10 hidden layers (Kend",
        ),
        (
            "losses",
            {"trend": {"tau": 0.1, "p": 0.4}},
            "The loss falls in 0 of the 3 largest",
        ),
    ],
)
def test_findings_are_computed(name, changes, finding):
    assert finding in getattr(extreme_figures, name)(page(**changes)).finding


@pytest.mark.parametrize(
    "name, changes, told",
    [
        ("split", {}, "a network of 9 neurons takes 50 % of the memory that one rank takes"),
        ("split", {}, "and a step 60 % of the time: 0.60 s instead of 1.0 s. Messages of 2 MiB"),
        ("split", {"largest_difference": 0.25}, "agree to 2e-01"),
        ("survival", {}, "A run of 9 neurons got SIGKILL after its first checkpoint (1.0 GiB"),
        ("survival", {}, "written in 4.0 s) and was resumed. In the end its weights, velocities"),
        ("survival", {}, "losses were those of an uninterrupted run, to the last bit."),
        ("survival", {"identical": False}, "losses were **not** those of an"),
    ],
)
def test_what_is_measured_beside_is_told(name, changes, told):
    found = page()
    found[name] |= changes
    assert told in getattr(extreme_figures, name)(found).text


@pytest.mark.parametrize("name", [*PARTS, "table", "scaling", "losses"])
def test_one_line_says_that_nothing_is_recorded(name):
    assert isinstance(getattr(extreme_figures, name)({}), Note)


def test_the_growth_is_measured():
    found = page()
    for run in extreme.networks(found):
        run["peak_bytes"] = run["nnz"] ** 2
    picture = extreme_figures.scaling(found)
    told = "exponents are 1.00 (seconds per training step) and 2.00 (GiB of memory)"
    assert told in picture.sources
    axes = picture.figure.axes
    labels = {text.get_text().split("\n")[0] for text in axes[0].texts}
    assert labels == set(extreme_figures.BRAINS)


def test_the_loss_is_drawn_for_deep_networks():
    picture = extreme_figures.losses(page() | FROZEN)
    assert picture.finding.endswith(
        "p < 0.05); 90 % of the held-out samples are classified correctly."
    )
    assert "200,000,000 neurons: Kendall's τ -1.00" in picture.sources
    assert len(picture.figure.axes[0].get_legend().get_texts()) == 3, "the controls are not drawn"
    assert np.allclose(picture.figure.axes[0].lines[0].get_ydata(), result()["losses"])


def test_the_projection_is_of_ranks_that_fit():
    told = extreme_figures.projection().text
    ranks = [int(n) for n in re.findall(r"neurons on (\d+)", told)]
    for neurons, most in zip((10**9, 2 * 10**9), ranks, strict=True):
        config = ExtremeConfig(neurons=neurons)
        totals = [
            budget.plan(config.sizes, config.epsilon, config.batch_size, 1, n).total
            for n in (most - 1, most)
        ]
        assert totals[0] > 22 * GIB >= totals[1]
    every = budget.plan((65_536, 20_000_000, 20_000_000, 2), 2.5, 4, 1, 3).expected
    assert every[2] > 1.05 * every[0], "it has the two outputs"


def test_a_killed_run_is_compared(in_process):
    found = extreme.survive(300_000)
    assert found["identical"] and found["file_bytes"] > 1_000_000


@pytest.mark.mpi
def test_two_ranks_are_compared(in_process):
    found = extreme.compare(20_000)
    assert found["largest_difference"] < 1e-4
    assert found["split"]["ranks"] == 2 and found["split"]["nnz"] == found["whole"]["nnz"]
