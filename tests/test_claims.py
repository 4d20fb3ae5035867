"""The ledger: verdicts follow from results by the stated rules, and from nothing else."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

pytest.importorskip("matplotlib")
pytest.importorskip("pandas")

from sparsecore.paper import claims
from sparsecore.paper.claims import FAILS, HOLDS, UNDECIDED, UNTESTED, Check, Interval
from sparsecore.paper.extreme import runs as extreme
from sparsecore.paper.training import conditions, studies
from sparsecore.paper.training.conditions import STUDIES, Study
from sparsecore.paper.training.observers import ObserveGradientFlow
from sparsecore.paper.training.studies import Results

ABOUT = {"cpu": "a CPU", "cores": 2, "threads": 1, "ranks": 1, "packages": {}, "sparsecore": "0"}
DENSE_NNZ = 1000


def run(
    dataset, method, seed, accuracy, seconds=1.0, flow=1.0, nnz=(100, 100), surrogate=False,
    ranks=1, loss=1.0,
):  # fmt: skip
    epochs = [{"epoch": 0, "nnz": nnz[0], "gradient_flow": 5.0}]
    epochs += [{"epoch": e, "nnz": nnz[0], "gradient_flow": flow, "loss": loss} for e in (1, 2)]
    return {
        "condition": {"dataset": dataset, "method": method},
        "seed": seed,
        "test_accuracy": accuracy,
        "seconds": {"train": seconds},
        "nnz_start": nnz[0],
        "nnz_end": nnz[1],
        "epochs": epochs,
        "data": {"surrogate": surrogate, "n_train": 10, "n_test": 1000, "n_classes": 10},
        "provenance": {**ABOUT, "ranks": ranks},
    }


def results(dataset="digits", profile="quick", surrogate=False, **values):
    """Return results of one data set; `values` are, per method, what `run` takes, per seed."""
    runs = [
        run(dataset, method.replace("_", "-"), seed, surrogate=surrogate, **one)
        for method, seeds in values.items()
        for seed, one in enumerate(seeds)
    ]
    study = Study("L-test", "", (dataset,), STUDIES["L-claims"].methods, runs_of="T-main")
    return Results(study, profile, runs, recorded=profile == "paper")


def seeds(accuracies, **same):
    return [{"accuracy": a, **same} for a in accuracies]


BETTER, WORSE = (0.900, 0.901, 0.902), (0.700, 0.701, 0.702)


def good():
    """Return results for which all that can be tested holds."""
    sparse = {"seconds": 1.0, "flow": 3.0}
    return results(
        dense=seeds(WORSE, seconds=9.0, nnz=(DENSE_NNZ, DENSE_NNZ)),
        set_relu=seeds(WORSE, flow=1.0),
        set_all_relu=seeds(BETTER, **sparse),
        set_all_relu_pruned=seeds(BETTER, nnz=(100, 30)),
        wasap=seeds(BETTER, seconds=4.0, ranks=2),
    )


def test_interval_is_scipy_s():
    a, b = [0.81, 0.84, 0.86], [0.80, 0.79]
    found = claims.welch(a, b)
    reference = stats.ttest_ind(a, b, equal_var=False).confidence_interval(claims.CONFIDENCE)
    assert found.low == pytest.approx(reference.low)
    assert found.high == pytest.approx(reference.high)
    assert found.difference == pytest.approx(np.mean(a) - np.mean(b))


def test_one_seed_says_nothing_and_equal_seeds_are_exact():
    assert claims.welch([0.9], [0.1, 0.2]) is None
    assert claims.judged(None) == UNTESTED
    assert claims.welch([0.5, 0.5], [0.4, 0.4]).low == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("low", "high", "threshold", "outcome"),
    [
        (0.1, 0.3, 0.0, HOLDS),
        (-0.1, 0.3, 0.0, UNDECIDED),
        (-0.3, -0.1, 0.0, FAILS),
        (-0.005, 0.3, -0.01, HOLDS),
        (-0.3, -0.02, -0.01, FAILS),
    ],
)
def test_outcome_of_an_interval(low, high, threshold, outcome):
    assert claims.judged(Interval((low + high) / 2, low, high), threshold) == outcome


def test_verdicts_where_everything_holds():
    verdicts = claims.Ledger(good()).verdicts
    assert verdicts == {
        "C1": HOLDS,
        "C2": HOLDS,
        "C3": HOLDS,
        "C4": UNTESTED,
        "C5": HOLDS,
    }


def test_what_the_ledger_asks_of_runs_is_observed():
    observers = STUDIES["T-main"].observers
    for dataset in STUDIES["L-claims"].datasets:
        for method in ("set-relu", "set-all-relu"):
            assert ObserveGradientFlow in observers[dataset, method], dataset


def test_without_results_nothing_is_tested():
    assert set(claims.Ledger(results()).verdicts.values()) == {UNTESTED}


def test_verdicts_turn_with_the_results():
    turned = results(
        dense=seeds(BETTER, seconds=0.1, nnz=(DENSE_NNZ, DENSE_NNZ)),
        set_relu=seeds(BETTER, flow=9.0),
        set_all_relu=seeds(WORSE, flow=3.0, nnz=(DENSE_NNZ, DENSE_NNZ)),
        set_all_relu_pruned=seeds((0.5, 0.51, 0.52), nnz=(100, 100)),
    )
    ledger = claims.Ledger(turned)
    tested = [c for checks in ledger.checks.values() for c in checks if c.outcome != UNTESTED]
    assert {c.outcome for c in tested} == {FAILS}
    assert ledger.verdicts["C2"] == ledger.verdicts["C3"] == ledger.verdicts["C5"] == FAILS


def test_noise_decides_nothing():
    noisy = results(set_relu=seeds((0.5, 0.9)), set_all_relu=seeds((0.6, 0.9), flow=1.0))
    accuracy = claims.Ledger(noisy).checks["C2"][1]
    assert (accuracy.question, accuracy.outcome) == ("more accurate than ReLU", UNDECIDED)


def test_a_surrogate_s_accuracy_is_no_evidence_but_its_time_is():
    both = results(
        surrogate=True,
        dense=seeds(WORSE, seconds=9.0, nnz=(DENSE_NNZ, DENSE_NNZ)),
        set_relu=seeds(WORSE),
        set_all_relu=seeds(BETTER),
    )
    checks = claims.Ledger(both).checks
    assert {c.outcome for c in checks["C2"]} == {UNTESTED}
    assert [c.outcome for c in checks["C5"]] == [UNTESTED, UNTESTED, HOLDS]


def test_recorded_results_decide_where_they_are():
    recorded = results(profile="paper", set_relu=seeds(BETTER), set_all_relu=seeds(WORSE, flow=3.0))
    ledger = claims.Ledger(recorded, good())
    c2 = ledger.checks["C2"]
    assert [(c.profile, c.outcome) for c in c2] == [("paper", HOLDS), ("paper", FAILS)]
    assert {c.profile for c in ledger.checks["C3"]} == {"quick"}


def test_recorded_results_that_cannot_answer_yet_leave_it_to_the_build_s_own():
    one_seed = results(
        profile="paper",
        set_relu=seeds(BETTER[:1]),
        set_all_relu=seeds(WORSE[:1], flow=3.0),
    )
    checks = claims.Ledger(one_seed, good()).checks["C2"]
    assert [(c.profile, c.outcome) for c in checks] == [("quick", HOLDS), ("quick", HOLDS)]


def test_data_sets_without_an_answer_are_named():
    there = good()
    study = replace(there.study, datasets=("digits", "madelon", "leukemia"))
    ledger = claims.Ledger(replace(there, study=study))
    assert ledger.verdicts["C2"] == f"holds in 2 of 2 checks, 4 {UNTESTED}"
    faster = {c.dataset: c for c in ledger.checks["C1"] if c.question.startswith("training")}
    assert faster["Madelon"].evidence == "no runs"
    assert "16.8 GiB" in faster["Leukemia (MILE study)"].evidence


def test_what_diverged_does_not_hold():
    there = good()
    lost = [run for run in there.runs if run["condition"]["method"] == "set-all-relu"][:1]
    runs = [run for run in there.runs if run not in lost]
    checks = claims.Ledger(replace(there, runs=runs, diverged=lost)).checks
    assert {c.outcome for c in checks["C2"]} == {FAILS}
    assert "1 run(s) diverged" in {c.evidence for c in checks["C2"]}
    assert {c.outcome for c in checks["C3"]} == {UNTESTED}


def test_times_of_different_machines_are_not_compared():
    there = good()
    for run in there.of("digits", "dense"):
        run["provenance"] = {**ABOUT, "cpu": "another CPU"}
    [check] = [c for c in claims.Ledger(there).checks["C5"] if c.question == "faster than dense"]
    assert (check.outcome, check.evidence) == (UNTESTED, "runs of different machines")


def test_only_times_of_one_machine_are_compared():
    there = good()
    whole = {c.question: c for c in claims.Ledger(there).checks["C5"]}["faster than dense"]
    there.of("digits", "dense")[0]["provenance"] = {**ABOUT, "cpu": "another CPU"}
    part = {c.question: c for c in claims.Ledger(there).checks["C5"]}["faster than dense"]
    assert (part.outcome, part.seeds) == (whole.outcome, whole.seeds)
    assert part.evidence.endswith("; 1 run(s) of another machine left out")
    assert "another machine" not in whole.evidence


def test_a_network_that_has_learnt_nothing_decides_nothing():
    # Of unequal classes the most frequent one is right more often than one in ten.
    guessing = {"accuracies": (0.310, 0.308, 0.312), "loss": 0.995 * np.log(10)}
    lost = {
        "dense": seeds(BETTER),
        "set_relu": seeds(BETTER, flow=1.0),
        "set_all_relu": seeds(**guessing, flow=3.0),
        "set_all_relu_pruned": seeds(BETTER, nnz=(100, 30)),
    }
    checks = claims.Ledger(results(**lost)).checks
    assert [c.outcome for c in checks["C2"]] == [UNDECIDED, UNDECIDED]
    assert [c.outcome for c in checks["C3"]] == [HOLDS, UNDECIDED]
    assert [c.outcome for c in checks["C5"][:2]] == [UNDECIDED, UNDECIDED]
    # That ReLU learns nothing where All-ReLU does is what the claim says.
    lost |= {"set_all_relu": seeds(BETTER, flow=3.0), "set_relu": seeds(**guessing, flow=1.0)}
    checks = claims.Ledger(results(**lost)).checks
    assert [c.outcome for c in checks["C2"]] == [HOLDS, HOLDS]


def test_a_verdict_says_how_much_of_it_is_of_full_length():
    full, short = (Check("", profile=p, outcome=HOLDS) for p in ("paper", "quick"))
    failed = replace(full, outcome=FAILS)
    assert claims.verdict([full, failed]) == "holds in 1 of 2 checks, does not in 1"
    assert claims.verdict([full, failed, short, Check("")]) == (
        f"holds in 2 of 3 checks (1 of 2 at full length), does not in 1, 1 {UNTESTED}"
    )


def test_evidence_is_computed_from_the_results():
    ledger = claims.Ledger(good())
    [faster] = [c for c in ledger.checks["C5"] if c.question == "faster than dense"]
    assert faster.evidence == "× 9 [9, 9]"
    [accuracy] = [c for c in ledger.checks["C5"] if "SET-ReLU" in c.question]
    found = claims.welch(BETTER, WORSE)
    assert accuracy.evidence == f"+20.00 points [{100 * found.low:+.2f}, {100 * found.high:+.2f}]"
    [kept] = [c for c in ledger.checks["C3"] if c.question == "fewer connections"]
    assert kept.evidence == "30 % of the connections left"


def test_more_connections_than_at_the_start_are_not_truly_sparse():
    grown = good()
    grown.of("digits", "set-all-relu")[1]["epochs"][-1]["nnz"] = 101
    assert claims.Ledger(grown).checks["C1"][0].outcome == FAILS


@pytest.mark.parametrize(("seconds", "ranks"), [(5.0, 2), (5.0, 5), (9.5, 1)])
def test_parallel_training_must_win_against_dense_on_as_many_cores(seconds, ranks):
    slow = results(
        dense=seeds(WORSE, seconds=9.0, nnz=(DENSE_NNZ, DENSE_NNZ)),
        set_all_relu=seeds(BETTER, seconds=1.0),
        wasap=seeds(BETTER, seconds=seconds, ranks=ranks),
    )
    [check] = [c for c in claims.Ledger(slow).checks["C1"] if c.question.startswith("parallel")]
    assert (check.outcome, check.evidence[:6]) == (FAILS, "× 0.9 " if ranks > 1 else "× 0.94")


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        ([HOLDS, HOLDS], HOLDS),
        ([FAILS, FAILS], FAILS),
        ([UNTESTED], UNTESTED),
        ([UNDECIDED], "holds in 0 of 1 checks, undecided in 1"),
        (
            [HOLDS, FAILS, UNDECIDED, UNTESTED],
            f"holds in 1 of 3 checks, does not in 1, undecided in 1, 1 {UNTESTED}",
        ),
    ],
)
def test_verdict_of_checks(outcomes, expected):
    assert claims.verdict([Check("?", outcome=o) for o in outcomes]) == expected


def test_tables_hold_every_claim_and_every_check():
    ledger = claims.Ledger(good())
    table = ledger.table()
    assert table.data["claim"].tolist() == ["C1", "C2", "C3", "C4", "C5"]
    assert table.data.set_index("claim").loc["C2", "verdict"] == ledger.verdicts["C2"]
    evidence = ledger.evidence().data
    assert len(evidence) == sum(len(c) for c in ledger.checks.values())


def test_evidence_counts_the_seeds_of_both_methods():
    fewer = results(dense=seeds(WORSE[:2]), set_all_relu=seeds(BETTER))
    evidence = claims.Ledger(fewer).evidence().data
    told = evidence.set_index(["claim", "question"])["seeds"]
    assert told["C5", "more accurate than dense"] == f"{len(BETTER)}, 2"
    assert np.isnan(told["C5", "more accurate than SET-ReLU"])  # there are no such runs


def test_claims_are_judged_by_the_runs_of_the_main_table():
    study = STUDIES["L-claims"]
    assert study.home.key == "T-main"
    assert set(study.conditions("quick")) <= set(STUDIES["T-main"].conditions("quick"))
    assert conditions.find("L-claims") is study


def test_the_readme_tells_the_verdicts_of_the_recorded_results():
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    ledger = claims.Ledger(studies.recorded("L-claims"), extreme=extreme.recorded())
    grid = "".join(
        f"| **{claim.key}** {claim.text} | {ledger.verdicts[claim.key]} |\n"
        for claim in claims.CLAIMS
    )
    assert grid in readme, f"put this grid there:\n{grid}"
