"""The ledger: verdicts follow from results by the stated rules, and from nothing else."""

import base64
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from sparsecore.paper import claims, forest
from sparsecore.paper.claims import FAILS, HOLDS, LEFT_OUT, UNDECIDED, UNTESTED, Check
from sparsecore.paper.extreme.runs import BAT, Row
from sparsecore.paper.training import conditions, effects, shown
from sparsecore.paper.training.conditions import STUDIES, Study
from sparsecore.paper.training.observers import observe_gradient_flow
from sparsecore.paper.training.studies import Results

ABOUT = {"cpu": "a CPU", "cores": 2, "threads": 1, "ranks": 1, "packages": {}, "sparsecore": "0"}
DENSE_NNZ = 1000


def run(
    dataset, method, seed, accuracy, seconds=1.0, flow=1.0, nnz=(100, 100), surrogate=False,
    ranks=1, loss=1.0, decay=0.0002,
):  # fmt: skip
    # Times and flows that vary a little with the seed: without spread there is no interval.
    seconds, flow = seconds * 1.01**seed, flow * (1.001 if method == "set-relu" else 1.003) ** seed
    epochs = [{"epoch": 0, "nnz": nnz[0], "gradient_flow": 5.0}]
    epochs += [{"epoch": e, "nnz": nnz[0], "gradient_flow": flow, "loss": loss} for e in (1, 2)]
    return {
        "condition": {"dataset": dataset, "method": method},
        "seed": seed,
        "config": {"weight_decay": decay, "epochs": 2, "epsilon": 20},
        "test_accuracy": accuracy,
        "best_test_accuracy": accuracy + 0.01 * (method == "dense"),
        "seconds": {"train": seconds},
        "nnz_start": nnz[0],
        "nnz_end": nnz[1],
        "epochs": epochs,
        "data": {"surrogate": surrogate, "n_train": 10, "n_test": 100_000, "n_classes": 10},
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
    return Results(study, profile, runs)


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
        wasap=seeds(BETTER, seconds=0.8, ranks=2),
    )


def at(ledger, key, decay):
    """Return a claim's checks at one weight decay, and those that do not depend on it."""
    return [check for check in ledger.checks[key] if check.decay in (decay, None)]


def interval(a, b, paired):
    return effects.effect(np.mean(a) - np.mean(b), effects.spread_of(a, b, paired))


def test_intervals_are_scipy_s():
    a, b = [0.81, 0.84, 0.86], [0.80, 0.79]
    pairs = [(stats.ttest_ind(a, b, equal_var=False), interval(a, b, False))]
    pairs.append((stats.ttest_rel(a, [0.8, 0.79, 0.81]), interval(a, [0.8, 0.79, 0.81], True)))
    for reference, found in pairs:
        expected = reference.confidence_interval(effects.CONFIDENCE)
        assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
        assert 2 * found.p == pytest.approx(reference.pvalue)


def test_ratios_of_pairs_vary_only_between_pairs():
    times = [1.0, 2.0, 4.0], [2.0, 4.0, 8.0]
    assert effects.log_ratio(*times, paired=True) is None
    alone = effects.log_ratio(*times, paired=False)
    assert np.exp(alone.value) == pytest.approx(0.5) and alone.sign == 0


@pytest.mark.parametrize(
    ("low", "high", "sign"), [(0, 2, 0), (-2, 0, 0), (0.1, 2, 1), (-2, -1, -1)]
)
def test_an_interval_that_ends_at_0_includes_it(low, high, sign):
    assert effects.Effect(0.0, low, high, 0.5).sign == sign


@pytest.mark.parametrize(
    ("value", "text"), [(0.994, "0.99"), (1, "1.00"), (1.994, "1.99"), (2, "2.0"), (12.3, "12")]
)
def test_ratios_have_two_digits(value, text):
    assert effects.two_digits(value) == text


def test_what_does_not_vary_has_no_interval():
    assert interval([0.5, 0.5], [0.4, 0.4], False) is None
    assert interval([0.3] * 3, [0.1] * 3, False) is None, "what rounding leaves is no spread"
    equal = results(set_relu=seeds((0.5, 0.5)), set_all_relu=seeds((0.6, 0.6)))
    found = claims.Ledger(equal).checks["C2"][2]
    assert found.high - found.low > 0, "the test set is finite"
    n, p = 100_000, (0.5, 0.6)
    error = np.sqrt(sum(q * (1 - q) / n for q in p))
    assert found.high - found.low == pytest.approx(200 * 1.96 * error, rel=1e-3)


def test_pairs_are_of_one_seed_in_whatever_order_runs_come():
    found = results(set_relu=seeds((0.5, 0.6, 0.7, 0.8)), set_all_relu=seeds((0.9, 0.6, 0.7, 0.8)))
    first, second = (found.of("digits", name) for name in ("set-all-relu", "set-relu"))
    *both, paired = effects.pairs(first[:0:-1], second)  # seed 0 is missing
    assert paired and [[run["seed"] for run in some] for some in both] == [[1, 2, 3]] * 2
    for run in first:
        run["config"] = {**run["config"], "epsilon": 10}
    assert not effects.pairs(first, second)[2], "of another ε: no common start"


def test_all_numbers_of_a_comparison_are_of_the_same_seeds():
    few, many = (0.60, 0.61, 0.62), (0.58, 0.60, 0.61, 0.9, 0.9)
    found = results(set_relu=seeds(many), set_all_relu=seeds(few))
    check = claims.Ledger(found).checks["C2"][2]
    assert check.evidence.startswith("+1.33 points") and "best epochs +1.33" in check.evidence
    first, second = (found.of("digits", name) for name in ("set-all-relu", "set-relu"))
    assert [len(runs) for runs in effects.pairs(first, second)[:2]] == [3, 3]
    one, other, paired = effects.pairs(first[:3], second[1:])  # two in common, of three and four
    assert (len(one), len(other), paired) == (3, 4, False)
    assert effects.pairs(first[:2], second)[2], "two seeds are all that there are"


def test_rows_that_both_are_right_on_make_no_difference():
    rng = np.random.default_rng(0)
    right = rng.random(1000) < 0.8
    more = right | (rng.random(1000) < 0.05)
    first, second = (
        results(set_all_relu=seeds((more.mean(),) * 2)),
        results(set_relu=seeds((right.mean(),) * 2)),
    )
    runs = [first.of("digits", "set-all-relu"), second.of("digits", "set-relu")]
    for run in [*runs[0], *runs[1]]:
        run["data"]["n_test"] = 1000
    apart = effects.sampling_variance(*runs)
    for some, rows in zip(runs, (more, right), strict=True):
        for run in some:
            run["test_right"] = base64.b64encode(np.packbits(rows).tobytes()).decode()
    gained = (more & ~right).mean()
    assert effects.sampling_variance(*runs) == pytest.approx(gained * (1 - gained) / 999)
    assert effects.sampling_variance(*runs) < apart / 5
    del runs[0][1]["test_right"]
    assert effects.sampling_variance(*runs) < apart / 5, "one run of each tells which rows"
    noisy = more ^ (rng.random(1000) < 0.02)
    runs[1][1]["test_right"] = base64.b64encode(np.packbits(noisy).tobytes()).decode()
    both = effects.sampling_variance(*runs)
    del runs[1][0]["test_right"]
    assert both < effects.sampling_variance(*runs) < apart, "fewer runs: a larger variance"
    del runs[1][1]["test_right"]
    assert effects.sampling_variance(*runs) == apart


@pytest.mark.parametrize("gains", [(0.01, 0.02, 0.018), (0.01, 0.0101, 0.0102), (0.01, 0.01)])
def test_the_error_of_the_test_set_makes_no_comparison_surer(gains):
    ours = results(set_all_relu=seeds([0.5 + gain for gain in gains])).of("digits", "set-all-relu")
    others = results(set_relu=seeds((0.5,) * len(gains))).of("digits", "set-relu")
    alone = interval([0.5 + gain for gain in gains], [0.5] * len(gains), True)
    found = effects.difference(ours, others)
    for run in (*ours, *others):
        run["data"]["n_test"] = 10**9
    exact = effects.difference(ours, others)
    assert found.value == pytest.approx(exact.value) and found.p >= exact.p
    assert found.low <= exact.low and found.high >= exact.high
    if alone:  # the seeds differ
        assert exact.p == pytest.approx(alone.p)
        assert (exact.low, exact.high) == pytest.approx((alone.low, alone.high))


def test_holm_is_the_step_down_by_hand():
    # Sorted 0.01, 0.02, 0.04: 3 × 0.01, 2 × 0.02, 1 × 0.04.
    assert effects.holm([0.04, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert effects.holm([0.9, 0.8]) == [1.0, 1.0]


def test_several_checks_of_a_claim_are_corrected_for():
    # p of the accuracy alone is 0.04: with the flow, which decides nothing, it is 0.08.
    noisy = results(
        set_relu=[*seeds((0.5, 0.5, 0.5), flow=1.0)],
        set_all_relu=[
            {"accuracy": 0.5 + d, "flow": f} for d, f in ((0.012, 2), (0.014, 0.5), (0.022, 1))
        ],
    )
    flow, _, accuracy, _ = claims.Ledger(noisy).checks["C2"]
    assert 0.025 < accuracy.p < 0.05 and accuracy.adjusted == pytest.approx(2 * accuracy.p)
    assert accuracy.outcome == UNDECIDED and flow.p > accuracy.p


def test_verdicts_where_everything_holds():
    ledger = claims.Ledger(good())
    assert ledger.verdicts["C1"] == HOLDS, "a quick build has one weight decay"
    found = {key: claims.verdict(at(ledger, key, 0.0002)) for key in ledger.verdicts}
    assert found == {**dict.fromkeys(("C1", "C2", "C3", "C5"), HOLDS), "C4": UNTESTED}


def test_what_the_ledger_asks_of_runs_is_observed():
    observers = STUDIES["T-main"].observers
    for dataset in STUDIES["L-claims"].datasets:
        for method in ("set-relu", "set-all-relu"):
            assert observe_gradient_flow in observers[dataset, method], dataset


def test_without_results_nothing_is_tested():
    assert set(claims.Ledger(results()).verdicts.values()) == {UNTESTED}


def test_verdicts_turn_with_the_results():
    turned = results(
        dense=seeds(BETTER, seconds=0.1, nnz=(DENSE_NNZ, DENSE_NNZ)),
        set_relu=seeds(BETTER, flow=9.0),
        set_all_relu=seeds(WORSE, flow=3.0, nnz=(DENSE_NNZ, DENSE_NNZ)),
        set_all_relu_pruned=seeds((0.5, 0.51, 0.52), nnz=(100, 100)),
        wasap=seeds((0.5, 0.51, 0.52), seconds=4.0),
    )
    ledger = claims.Ledger(turned)
    tested = [c for checks in ledger.checks.values() for c in checks if c.decay != 0]
    assert [c.outcome for c in tested] == 4 * [FAILS] + 3 * [FAILS] + 3 * [UNTESTED] + [FAILS]
    assert {claims.verdict(at(ledger, key, 0.0002)) for key in ("C1", "C2", "C3", "C5")} == {FAILS}


def test_c5_counts_the_checks_that_it_shares():
    slow = results(
        dense=seeds(WORSE, seconds=0.1, nnz=(DENSE_NNZ, DENSE_NNZ)),
        set_relu=seeds(WORSE, flow=1.0),
        set_all_relu=seeds(BETTER, flow=3.0),
    )
    found = claims.Ledger(slow).verdicts
    assert claims.verdict(at(claims.Ledger(slow), "C2", 0.0002)) == HOLDS
    assert found["C5"].startswith("fails in some: 2 hold, 1 fails")


def test_an_interval_is_told_from_low_to_high():
    found = effects.Effect(0.0123, -0.0045, 0.0291, 0.1)
    assert shown.points(found) == "+1.23 points [-0.45, +2.91]"
    check = claims.measured(found, "points")
    assert (check.low, check.high) == pytest.approx((-0.45, 2.91))
    ratio = effects.Effect(*np.log([4, 2.5, 7]), 0.01)
    assert claims.measured(ratio, "×").evidence == "× 4.0 [2.5, 7.0]"


def test_what_the_first_page_quotes_is_of_its_data_set_and_weight_decay():
    there = good()
    study = replace(there.study, datasets=("madelon", "digits"))
    ledger = claims.Ledger(replace(there, study=study))
    assert ledger.found("C5", "digits", 0.0002).startswith("+20.00 points [")
    assert ledger.found("C5", "madelon", 0.0002) == "no runs of SET-All-ReLU and dense yet"
    none = "no seed of SET-All-ReLU planned at this weight decay"
    assert ledger.found("C5", "digits", 0.0) == none


def test_every_check_is_asked_once():
    checks = claims.Ledger(good()).checks
    asked = [(c.question, c.dataset, c.decay) for some in checks.values() for c in some]
    assert len(asked) == len(set(asked))
    assert {c.decay for c in checks["C1"]} == {None, 0.0002, 0.0}


def test_noise_decides_nothing():
    noisy = results(set_relu=seeds((0.5, 0.9)), set_all_relu=seeds((0.6, 0.9), flow=1.0))
    accuracy = claims.Ledger(noisy).checks["C2"][2]
    assert (accuracy.question, accuracy.outcome) == ("more accurate than ReLU", UNDECIDED)


def test_a_surrogate_s_accuracy_is_no_evidence_but_its_time_is():
    both = results(
        surrogate=True,
        dense=seeds(WORSE, seconds=9.0, nnz=(DENSE_NNZ, DENSE_NNZ)),
        set_relu=seeds(WORSE),
        set_all_relu=seeds(BETTER),
    )
    checks = claims.Ledger(both).checks
    assert {c.outcome for c in checks["C2"] if c.decay} == {LEFT_OUT}
    assert checks["C1"][0].outcome == HOLDS


def test_recorded_seconds_are_of_the_contest_only():
    recorded = replace(good(), profile="paper")
    [check] = [c for c in claims.Ledger(recorded).checks["C1"] if c.question == "faster than dense"]
    assert (check.outcome, check.evidence) == (UNTESTED, "not timed side by side yet")


def test_a_seed_decides_nothing():
    one = results(set_relu=seeds(BETTER[:1]), set_all_relu=seeds(WORSE[:1], flow=3.0))
    checks = at(claims.Ledger(one), "C2", 0.0002)
    assert {(c.outcome, c.evidence) for c in checks} == {(UNTESTED, "fewer than two seeds")}


def test_what_cannot_be_tested_does_not_count():
    there = good()
    study = replace(there.study, datasets=("digits", "madelon", "leukemia"))
    ledger = claims.Ledger(replace(there, study=study))
    faster = {c.dataset: c for c in ledger.checks["C1"] if c.question == "faster than dense"}
    assert faster["Madelon"].evidence == "no runs"
    leukemia = faster["Leukemia (MILE study), surrogate"]
    assert "16.8 GiB" in leukemia.evidence and leukemia.outcome == LEFT_OUT
    assert claims.verdict([Check("", outcome=o) for o in (HOLDS, LEFT_OUT)]) == HOLDS


def test_what_is_not_planned_with_two_seeds_cannot_be_tested():
    study = replace(STUDIES["L-claims"], datasets=("cifar10", "leukemia"))
    ledger = claims.Ledger(Results(study, "paper", []))
    why = {(c.dataset, c.decay): (c.outcome, c.evidence) for c in ledger.checks["C5"]}
    assert why["CIFAR-10", 0.0002] == (
        LEFT_OUT, "no seed of dense planned at this weight decay",
    )  # fmt: skip
    assert why["CIFAR-10", 0.0] == (LEFT_OUT, "1 seed of dense planned at this weight decay")
    surrogate = (LEFT_OUT, "what a network learns from a surrogate is no evidence")
    title = "Leukemia (MILE study), surrogate"
    assert {why[title, decay] for decay in (0.0002, 0.0)} == {surrogate}
    assert ledger.checks["C2"][0].evidence == "no runs of SET-All-ReLU and SET-ReLU yet"


def test_a_finding_names_the_rows_by_their_outcome_and_the_grid_counts():
    ledger = claims.Ledger(good())
    rows = "C1 faster than dense, C1 in parallel: faster than dense, "
    assert ledger.finding().startswith(f"**Holds in every check so far**: {rows}")
    assert "C4" not in ledger.finding(), "no runs of extreme size"
    told = "Not tested: artificial (no network of this size is recorded yet)."
    assert ledger.evidence("C4").sources.strip() == told
    assert ledger.table().finding == ledger.finding()
    assert ledger.grid().finding.startswith(f"{ledger.finding()}\n\n**Weight decay and activation")
    flow, *accurate = ledger.checks["C2"]
    ledger.checks["C2"] = [flow, replace(flow, outcome=FAILS), *accurate]
    assert "**Fails in some checks**: C2 All-ReLU: more gradient flow." in ledger.finding()
    held = ledger.grid().data.set_index("name")["held"].str.replace("\N{NO-BREAK SPACE}", " ")
    assert held["All-ReLU: more gradient flow"] == "✗ 1 of 2"
    assert held["faster than dense"] == "✓ 1 of 1" and held["brain size trains"] == "–"
    legend = ledger.grid().caption.partition(".")[0]
    assert legend.endswith(": ✗ fails, ✓ holds, – not tested here yet, n/a left out")
    ledger.checks["C2"] = [replace(flow, outcome=UNDECIDED), *accurate]
    told = "**Not decided yet**: C2 All-ReLU: more gradient flow."
    assert ledger.finding().endswith(told)


def test_weight_decay_and_activation_are_told_side_by_side():
    runs = good().runs
    none = seeds(WORSE, decay=0.0)
    runs += results(set_all_relu=none, set_relu=none).runs
    found = replace(good(), runs=runs)
    told = (
        "weight decay 0 instead of 0.0002 brings SET-All-ReLU -20.00 on Optical digits; All-ReLU "
        "instead of ReLU at weight decay 0.0002 brings +20.00 on Optical digits; All-ReLU instead "
        "of ReLU at weight decay 0 brings no clear change on Optical digits. "
    )
    assert shown.factors(found).endswith(f" uncorrected 95 % intervals: {told}")
    many = replace(found.study, datasets=("digits", "leukemia"))
    assert shown.factors(replace(found, study=many)) == shown.factors(found), "no surrogate"
    assert shown.factors(results(set_all_relu=seeds(BETTER[:1]))) == "", "one run"
    assert claims.Ledger(results()).grid().finding == ""


def test_a_cell_of_the_grid_has_both_weight_decays():
    runs = good().runs
    runs += [{**run, "config": {**run["config"], "weight_decay": 0.0}} for run in runs]
    some = [run for run in runs if run["condition"]["method"] in ("set-relu", "set-all-relu")]
    grid = claims.Ledger(replace(good(), profile="paper", runs=some)).grid().data
    cells = grid.set_index(["claim", "name"])["Optical digits"]
    assert cells["C2", "All-ReLU: more accurate"] == "✓\xa0+20.00†", "the same at both; 3 of 10"
    some = [run for run in some if run["config"]["weight_decay"]]
    grid = claims.Ledger(replace(good(), profile="paper", runs=some)).grid().data
    cells = grid.set_index(["claim", "name"])["Optical digits"]
    assert cells["C2", "All-ReLU: more accurate"] == "✓\xa0+20.00† / –"
    assert cells["C1", "faster than dense"] == "–", "the same at both"
    whole = claims.Ledger(good()).grid().data
    assert not whole["Optical digits"].str.contains("†").any(), "all planned seeds are there"


def test_what_diverged_does_not_hold():
    there = good()
    lost = [run for run in there.runs if run["condition"]["method"] == "set-all-relu"][:1]
    runs = [run for run in there.runs if run not in lost]
    ledger = claims.Ledger(replace(there, runs=runs, diverged=lost))
    assert {c.outcome for c in at(ledger, "C2", 0.0002)} == {FAILS}
    assert "1 run(s) diverged" in {c.evidence for c in ledger.checks["C2"]}
    assert {c.outcome for c in at(ledger, "C3", 0.0002)} == {UNDECIDED}


def test_times_are_those_of_the_contest_where_results_are_recorded():
    recorded = replace(good(), profile="paper")
    rounds = {"dense": [9.0, 9.1], "set-all-relu": [1.0, 1.0], "wasap": [0.8, 0.81]}
    contest = {"rounds": rounds, "cores": {"dense": 1, "set-all-relu": 1, "wasap": 2}}
    ledger = claims.Ledger(recorded, times={"digits": contest})
    checks = ledger.checks["C1"]
    assert [c.effect for c in checks[:3]] == pytest.approx([9.05, 9.05 / 1.61, 1 / 0.805], rel=1e-3)
    shown = ledger.evidence("C1").frame.loc[0, ["λ", "seeds"]]
    assert shown.tolist() == ["0.0002 (timed)", "2 rounds"]
    assert ledger.evidence("C2").frame["λ"][0] == "0.0002"
    rounds["dense"] = [15.0, 9.0, 9.1]  # the first round was disturbed
    rounds |= {"set-all-relu": [1.0, 1.0, 1.0], "wasap": [1.2, 1.21, 1.22]}
    checks = claims.Ledger(recorded, times={"digits": contest}).checks["C1"]
    assert checks[0].effect == pytest.approx(9.1) and checks[0].low < 9.1 < checks[0].high
    assert checks[0].evidence.startswith("× 9.1 [")
    assert checks[2].effect < 1


def extreme_run(correct, frozen):
    return {
        "profile": "paper", "losses": [1.0, 0.9, 0.8], "trend": {"tau": -1.0, "p": 0.001},
        "peak_bytes": 2**30, "test": {"n": 100, "correct": correct, "p": 1e-9},
        "provenance": {"memory_gib": 16.0, "cpu": "a CPU"},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("own", "right", "outcome"),
    [(97, 50, HOLDS), (97, 96, UNDECIDED), (97, None, UNTESTED), (100, 100, UNDECIDED),
     (50, 97, FAILS)],
)  # fmt: skip
def test_hidden_layers_must_do_better_than_frozen_ones(own, right, outcome):
    runs = {Row(BAT, 3): extreme_run(own, False)}
    if right is not None:
        runs[Row(BAT, 3, frozen=True)] = extreme_run(right, True)
    checks = {c.question: c for c in claims.Ledger(good(), extreme=runs).checks["C4"]}
    assert checks["its hidden layers learn"].outcome == outcome
    assert checks["it beats chance"].outcome == (HOLDS if own > 60 else UNDECIDED)
    assert checks["it beats chance"].p == pytest.approx(stats.binomtest(own, 100).pvalue)
    assert len(checks) == 3


@pytest.mark.parametrize(("p", "outcome"), [((0.0, 0.0), HOLDS), ((0.0, 1.0), UNDECIDED)])
def test_trends_that_chance_cannot_give_are_combined(p, outcome):
    runs = {Row(BAT, 3, seed=i): extreme_run(97, False) for i in range(2)}
    for run, value in zip(runs.values(), p, strict=True):
        run["trend"]["p"] = value  # 0 or 1 in double precision
    checks = {c.question: c for c in claims.Ledger(good(), extreme=runs).checks["C4"]}
    falls = checks["its loss falls"]
    assert falls.outcome == outcome and 0 < falls.p <= 1


def test_a_network_that_has_learnt_nothing_decides_nothing():
    # Of unequal classes the most frequent one is right more often than one in ten.
    guessing = {"accuracies": (0.310, 0.308, 0.312), "loss": 0.995 * np.log(10)}
    lost = {
        "dense": seeds(BETTER),
        "set_relu": seeds(BETTER, flow=1.0),
        "set_all_relu": seeds(**guessing, flow=3.0),
        "set_all_relu_pruned": seeds(BETTER, nnz=(100, 30)),
    }
    ledger = claims.Ledger(results(**lost))
    for key in ("C2", "C3", "C5"):
        assert {c.outcome for c in at(ledger, key, 0.0002)} == {UNDECIDED}
    # That ReLU learns nothing where All-ReLU does is what the claim says.
    lost |= {"set_all_relu": seeds(BETTER, flow=3.0), "set_relu": seeds(**guessing, flow=1.0)}
    ledger = claims.Ledger(results(**lost))
    assert [c.outcome for c in at(ledger, "C2", 0.0002)] == [HOLDS, HOLDS]


def test_evidence_is_computed_from_the_results():
    ledger = claims.Ledger(good())
    faster = ledger.checks["C1"][0]
    assert (faster.effect, faster.unit) == (pytest.approx(9), "×")
    assert faster.evidence.startswith("× 9.0 [")
    [accuracy] = [c for c in at(ledger, "C2", 0.0002) if "accurate" in c.question]
    # Seeds are pairs: the difference is the same for each, and only the test set's error is left.
    error = np.sqrt((0.901 * 0.099 + 0.701 * 0.299) / 100_000)
    assert accuracy.effect == pytest.approx(20)
    assert accuracy.high == pytest.approx(20 + 196 * error, rel=1e-3)
    [kept] = at(ledger, "C3", 0.0002)
    assert kept.evidence.endswith(
        "] with 30 % of the connections; at the best epochs +0.00 with 100 %; test rows not paired"
    )
    pruned = good()
    for run in pruned.of("digits", "set-all-relu-pruned"):
        for epoch, nnz, right in zip(run["epochs"], (100, 80, 30), (0.1, 0.95, 0.9), strict=True):
            epoch.update(nnz=nnz, test_accuracy=right)
    [kept] = at(claims.Ledger(pruned), "C3", 0.0002)
    assert "with 30 % of the connections; at the best epochs +0.00 with 80 %" in kept.evidence
    [dense] = at(ledger, "C5", 0.0002)
    assert dense.evidence.endswith("; at the best epochs +19.00; test rows not paired")
    [flow] = [c for c in at(ledger, "C2", 0.0002) if "flow" in c.question]
    assert flow.evidence.endswith("; in the first tenth of the epochs × 3.0 [3.0, 3.0]")


@pytest.mark.parametrize(("seconds", "ranks"), [(5.0, 2), (5.0, 5), (9.5, 1)])
def test_parallel_training_must_win_against_dense_on_as_many_cores(seconds, ranks):
    slow = results(
        dense=seeds(WORSE, seconds=9.0, nnz=(DENSE_NNZ, DENSE_NNZ)),
        set_all_relu=seeds(BETTER, seconds=1.0),
        wasap=seeds(BETTER, seconds=seconds, ranks=ranks),
    )
    check = claims.Ledger(slow).checks["C1"][1]
    assert (check.outcome, check.evidence[:6]) == (FAILS, "× 0.90" if ranks > 1 else "× 0.95")


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        ([HOLDS, HOLDS], HOLDS),
        ([FAILS, FAILS], FAILS),
        ([UNTESTED], UNTESTED),
        ([UNDECIDED], UNDECIDED),
        (
            [HOLDS, FAILS, UNDECIDED, UNTESTED],
            "fails in some: 1 holds, 1 fails, 1 undecided, 1 missing",
        ),
        ([HOLDS, HOLDS, UNDECIDED, LEFT_OUT], "undecided: 2 hold, 1 undecided"),
        ([HOLDS, UNTESTED], "holds so far: 1 holds, 1 missing"),
    ],
)
def test_verdict_of_checks(outcomes, expected):
    assert claims.verdict([Check("?", outcome=o) for o in outcomes]) == expected


def test_tables_hold_every_claim_and_every_check():
    ledger = claims.Ledger(good())
    table = ledger.table()
    assert table.data["claim"].tolist() == ["C1", "C2", "C3", "C4", "C5"]
    assert table.data.set_index("claim").loc["C2", "verdict"] == ledger.verdicts["C2"]
    for key, checks in ledger.checks.items():
        tested = [c for c in checks if c.outcome in (HOLDS, FAILS, UNDECIDED)]
        shown = ledger.evidence(key)
        assert len(shown.data) == len(tested)
        assert ("Not tested: " in shown.sources) == (len(tested) < len(checks))


def test_a_forest_draws_each_check_that_has_an_interval():
    ledger = claims.Ledger(good())
    picture = forest.figure(ledger)
    checks = [c for some in ledger.checks.values() for c in some if c.low is not None]
    drawn = [box for ax in picture.figure.axes for box in ax.containers]
    at = [(box.lines[0].get_xdata()[0], *box.lines[2][0].get_segments()[0][:, 0]) for box in drawn]
    expected = [(c.effect, c.low, c.high) for c in sorted(checks, key=lambda c: c.unit == "×")]
    np.testing.assert_allclose(at, expected)
    points, times = (
        {line.get_xdata()[0] for line in ax.lines if line.get_linestyle() == "--"}
        for ax in picture.figure.axes
    )
    assert (points, times) == ({0.0, -1.0}, {1.0})
    for ax in picture.figure.axes:
        rows = [box.lines[0].get_ydata()[0] for box in ax.containers]
        assert rows == ax.get_yticks().tolist()
    labels = [t.get_text() for ax in picture.figure.axes for t in ax.get_yticklabels()]
    assert labels == [
        c.dataset + (f" at λ = {c.decay:g}" if c.decay is not None else "")
        for c in sorted(checks, key=lambda c: c.unit == "×")
    ]
    noisy = results(set_relu=seeds((0.5, 0.9)), set_all_relu=seeds((0.6, 0.9), flow=1.0))
    points, _ = forest.figure(claims.Ledger(noisy)).figure.axes
    assert points.containers[0].lines[0].get_markerfacecolor() == "white", "undecided"
    median = claims.Check(row="a", effect=11.0, low=9.9, high=10.7, unit="×", outcome=HOLDS)
    [ax] = forest.drawn([[median]], dict.fromkeys((HOLDS, FAILS, UNDECIDED), "")).axes
    assert ax.containers[0].lines[0].get_xdata() == [11.0], "outside its interval"


def test_evidence_counts_the_seeds_that_are_used():
    fewer = results(dense=seeds(WORSE[:2]), set_all_relu=seeds(BETTER), set_relu=seeds(WORSE[:2]))
    ledger = claims.Ledger(fewer)
    assert at(ledger, "C5", 0.0002)[0].seeds == f"{len(BETTER)}, 2"
    assert [c.seeds for c in at(ledger, "C2", 0.0002)] == ["2, 2", "2, 2"], "pairs"
    planned = claims.Ledger(replace(fewer, profile="paper")).checks["C5"][0]
    assert (planned.outcome, planned.evidence) == (UNTESTED, "fewer than three seeds")
    enough = results(dense=seeds(WORSE), set_all_relu=seeds(BETTER), set_relu=seeds(WORSE))
    assert claims.Ledger(replace(enough, profile="paper")).checks["C5"][0].seeds == "3 of 10, 3"


def test_claims_are_judged_by_the_runs_of_the_main_table():
    study = STUDIES["L-claims"]
    assert study.home.key == "T-main"
    assert set(study.conditions("quick")) <= set(STUDIES["T-main"].conditions("quick"))
    assert conditions.find("L-claims") is study


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        ([HOLDS, FAILS, UNTESTED], "(✗) -2.00"),
        ([HOLDS, UNDECIDED], "? -2.00"),
        ([HOLDS, LEFT_OUT], "✓ -2.00"),
        ([UNTESTED, HOLDS], "(✓) -1.00"),
        ([UNTESTED, LEFT_OUT], "–"),
        ([LEFT_OUT], "n/a"),
        ([], ""),
    ],
)
def test_a_sign_counts_all_checks_and_its_number_is_the_first_s(outcomes, expected):
    checks = [
        Check("", outcome=outcome)
        if outcome in (UNTESTED, LEFT_OUT)
        else Check("", outcome=outcome, effect=number - 2.0, unit="points")
        for number, outcome in enumerate(outcomes)
    ]
    assert claims.sign(checks) == expected.replace(" ", "\N{NO-BREAK SPACE}")
