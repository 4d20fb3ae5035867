"""F-scaling: the simulation against closed forms, what it is calibrated with, and its pictures."""

from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

from sparsecore import datasets
from sparsecore.config import TrainConfig
from sparsecore.experiment import Shard
from sparsecore.paper.parallel.figures import COLOUR
from sparsecore.paper.scaling import figures as scaling_figures
from sparsecore.paper.scaling import measure as scaling
from sparsecore.paper.scaling import rounds, simulate
from sparsecore.paper.scaling.simulate import EVEN, ONE_MACHINE, Scenario, exchange
from sparsecore.paper.store import NOTHING
from sparsecore.train import new_model
from sparsecore.wasap.server import ParameterServer, Place
from sparsecore.wasap.worker import Worker

# A worker that computes for 10 ms and a push of 1 ms: 11 workers keep the server busy.
PLAIN = simulate.Calibration(
    compute=0.01, lock=0.0, update=0.001, evolve=0.0, retain=0.0, adopt=0.0, reduce=0.0, term=0.0,
    message=0.0, bandwidth=1e9, n_params=1_000, bytes_per_update=16_000, samples_per_update=100,
    updates_per_epoch=500,
)  # fmt: skip
# Exponential times, of mean 1.
EXPONENTIAL = tuple(-np.log1p(-np.linspace(0, 1 - 1e-7, 20_001)))


# --- closed forms ---


@pytest.mark.parametrize("workers", [1, 2, 5, 10, 11, 12, 40, 300])
def test_even_workers_share_the_server_until_it_is_busy(workers):
    found = simulate.simulate(PLAIN, workers, scenario=EVEN)
    rate = min(workers / 0.011, 1 / 0.001)
    assert found.gradients_per_second == pytest.approx(rate, rel=1e-6)
    assert found.samples_per_second == pytest.approx(100 * rate, rel=1e-6)
    assert found.speedup == pytest.approx(rate / PLAIN.alone, rel=1e-6)
    assert found.utilisation == pytest.approx(rate * 0.001, rel=1e-6)
    assert simulate.saturation(PLAIN, ONE_MACHINE) == pytest.approx(11)
    assert found.staleness == pytest.approx(workers - 1, rel=1e-6)
    if workers == 1:
        assert PLAIN.alone == pytest.approx(1 / 0.011) and found.waiting == 0
        said = "Simulation: 1 worker(s), 9,091 samples/s, 1.00 times one worker;"
        assert repr(found).startswith(said)


@pytest.mark.parametrize("workers", [3, 10, 30])
def test_littles_law(workers):
    """The workers are computing, waiting or pushing: K = rate × (c + wait + s)."""
    uneven = replace(PLAIN, jitter=EXPONENTIAL)
    found = simulate.simulate(uneven, workers, seed=3)
    wait = found.waiting * workers / found.gradients_per_second
    cycle = 0.01 + wait + 0.001
    # The mean of 6,000 exponential times has a standard error of 1.3 %.
    assert found.gradients_per_second * cycle == pytest.approx(workers, rel=0.05)
    assert found.utilisation == pytest.approx(found.gradients_per_second * 0.001)


def test_exponential_times_are_a_machine_repair_queue():
    """With a constant service the asymptotes bound the rate; with two workers it is known.

    While one pushes for s, the other comes with probability 1 - exp(-s / c) and waits for what is
    left; a cycle's mean wait is s - c (1 - exp(-s / c)).
    """
    c, s = 0.001, 0.001
    uneven = replace(PLAIN, compute=c, update=s, jitter=EXPONENTIAL)
    # State after a departure: the other one waits with p, or computes, memoryless.
    p = 1 - np.exp(-s / c)
    between = s + (1 - p) * c / 2  # until the next departure: both compute, the first one comes
    found = np.mean(
        [simulate.simulate(uneven, 2, seed=seed).gradients_per_second for seed in range(4)]
    )
    assert found == pytest.approx(1 / between, rel=0.02)


def test_lockstep_takes_the_time_of_all_and_of_the_exchange():
    for workers in (1, 2, 7, 64):
        found = simulate.simulate(PLAIN, workers, "wassp", scenario=EVEN)
        step = 0.01 + exchange(PLAIN, ONE_MACHINE, workers)
        assert found.gradients_per_second == pytest.approx(workers / step)
        assert found.waiting == 0 and found.staleness == 0
    assert exchange(PLAIN, ONE_MACHINE, 1) == pytest.approx(0.001)


def test_lockstep_waits_for_the_largest_of_exponential_times():
    """The expected maximum of K exponential times is the harmonic number H(K)."""
    uneven = replace(PLAIN, update=1e-9, bandwidth=1e15, jitter=EXPONENTIAL)
    for workers in (2, 16, 128):
        rates = [
            simulate.simulate(uneven, workers, "wassp", seed=seed).gradients_per_second
            for seed in range(8)
        ]
        harmonic = np.sum(1 / np.arange(1, workers + 1))
        # 8 × 400 maxima, each with a standard deviation of at most 1.3 means.
        assert workers / np.mean(rates) / 0.01 == pytest.approx(harmonic, rel=0.07)


def test_workers_meet_and_exchange():
    """All-to-all, a ring of K - 1 messages, and twice ⌈log2 K⌉ to meet."""
    slow = replace(PLAIN, message=0.01, update=1e-12, bandwidth=1e15, updates_per_epoch=10**12)
    for workers, messages in ((1, 0), (2, 1 + 1 + 2), (5, 4 + 4 + 2 * 3), (8, 7 + 7 + 2 * 3)):
        assert exchange(slow, ONE_MACHINE, workers) == pytest.approx(0.01 * messages, abs=1e-9)
    # 16 (K - 1) / K bytes a parameter and step, sent and received: 8 each way.
    wide = replace(PLAIN, n_params=10_000_000, update=1e-12, updates_per_epoch=10**12)
    for workers in (2, 10):
        each_way = 8 * (workers - 1) / workers * wide.n_params
        assert exchange(wide, ONE_MACHINE, workers) == pytest.approx(each_way / 1e9, rel=1e-6)
    # Between machines: the network's latency for each message, one for all gradients; its rate.
    far, quick = simulate.Interconnect("far", 1e-3, 1e6), replace(slow, message=0.0)
    for workers, hops in ((1, 0), (2, 1 + 1 + 2), (5, 1 + 4 + 2 * 3)):
        moved = 8 * (workers - 1) / workers * quick.n_params / 1e6
        assert exchange(quick, far, workers) == pytest.approx(1e-3 * hops + moved, abs=1e-9)


@pytest.mark.parametrize(("workers", "depth"), [(1, 0), (2, 1), (8, 3)])
def test_an_evolution_is_broadcast(workers, depth):
    """It takes one more ring and, in a tree, 12 bytes a parameter; the workers meet twice."""
    rare = replace(PLAIN, message=0.01, bandwidth=1e6, evolve=0.5, updates_per_epoch=10**12)
    ring = (workers - 1) * (0.01 + 4 * rare.n_params / workers / 1e6)
    whole = 0.5 + ring + depth * (0.01 + 12 * rare.n_params / 1e6) + 2 * depth * 0.01
    often = replace(rare, updates_per_epoch=1)  # more workers: more data, one step an epoch
    more = exchange(often, ONE_MACHINE, workers) - exchange(rare, ONE_MACHINE, workers)
    assert more == pytest.approx(whole, rel=1e-6)


def test_a_slow_worker_costs_its_own_work_or_everybodys():
    slow = Scenario("slow", jitter=False, slowest=2.0)
    even, uneven = (simulate.simulate(PLAIN, 4, scenario=s) for s in (EVEN, slow))
    lost = even.gradients_per_second - uneven.gradients_per_second
    own = 1 / 0.011 - 1 / 0.021
    # Out of step with the others, it or one of them waits for a push at most, once in its cycle.
    assert own - 0.5 <= lost <= own + 0.001 / 0.021 / 0.011
    together = simulate.simulate(PLAIN, 4, "wassp", scenario=slow)
    step = 0.02 + exchange(PLAIN, ONE_MACHINE, 4)
    assert together.gradients_per_second == pytest.approx(4 / step)
    assert together.waiting == pytest.approx((0.02 - (0.02 + 3 * 0.01) / 4) / step)
    assert together.utilisation == pytest.approx(1 - 0.02 / step)
    full = [simulate.simulate(PLAIN, 40, scenario=s).gradients_per_second for s in (EVEN, slow)]
    assert full[1] == pytest.approx(full[0]), "a busy server does not notice"


def test_pauses_lengthen_the_mean():
    paused = Scenario("paused", jitter=False, pauses=0.25, pause=3.0)
    found = simulate.simulate(PLAIN, 1, scenario=paused)
    assert found.gradients_per_second == pytest.approx(1 / (0.015 + 0.001), rel=0.05)


def test_quantiles_are_relative_to_their_mean():
    found = simulate.simulate(replace(PLAIN, jitter=(2.0, 2.0)), 1)
    assert found.gradients_per_second == pytest.approx(PLAIN.alone)


def test_transfers_and_latencies_hold_the_lock():
    network = simulate.Interconnect("slow", 1e-4, 1e6)
    trips = 2 * (simulate.ROUND_TRIPS + 1)
    assert simulate.service(PLAIN, network) == pytest.approx(
        0.001 + trips * 1e-4 + 0.016
        + (2 * simulate.ROUND_TRIPS_EVOLVED * 1e-4 + 0.012) / PLAIN.updates_per_epoch
    )  # fmt: skip
    busy = simulate.simulate(PLAIN, 50, network=network, scenario=EVEN)
    assert busy.utilisation == pytest.approx(1, rel=1e-3)


def test_newer_topologies_make_a_busy_server_slower():
    evolving = replace(PLAIN, retain=0.004, evolve=0.1, updates_per_epoch=100)
    rates = [
        simulate.simulate(evolving, k, scenario=EVEN).gradients_per_second
        for k in (1, 20, 100, 300)
    ]
    assert rates[0] == pytest.approx(1 / (0.011 + 0.1 / 100), rel=1e-3)  # its own evolution
    # After an evolution all workers but the one that made it hold an older topology.
    assert rates[1] == pytest.approx(100 / (100 * 0.001 + 0.1 + 19 * 0.004), rel=1e-3)
    assert rates[2] == pytest.approx(100 / (100 * 0.001 + 0.1 + 99 * 0.004), rel=1e-3)
    # More workers than updates in an epoch: the data grow with them.
    assert rates[3] == pytest.approx(300 / (300 * 0.001 + 0.1 + 299 * 0.004), rel=1e-3)
    network = simulate.Interconnect("slow", 1e-4, 1e6)
    held = 100 * simulate.service(evolving, network)
    fetched = 0.004 + 2 * simulate.ROUND_TRIPS_RETAINED * 1e-4 + 4 * evolving.n_params / 1e6
    far = simulate.simulate(evolving, 20, network=network, scenario=EVEN).gradients_per_second
    assert far == pytest.approx(100 / (held + 19 * fetched), rel=1e-3)


def uneven(**changes):
    return simulate.simulate(PLAIN, 2, scenario=simulate.Scenario("uneven", **changes))


def test_seed_determines_the_outcome():
    uneven = replace(PLAIN, jitter=EXPONENTIAL)
    computed = simulate.simulate.__wrapped__  # not remembered
    for name in simulate.ALGORITHMS:
        run = partial(computed, uneven, 9, name, simulate.NETWORKS[1], simulate.AS_MEASURED)
        assert run(1) == run(1) != run(2)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: simulate.simulate(PLAIN, 0), "workers: expected an integer of at least 1, got 0"),
        (lambda: simulate.simulate(PLAIN, 2, "dense"), "algorithm: expected one of wasap, wassp"),
        (lambda: uneven(pauses=1.5), r"pauses: expected a number in \[0, 1\], got 1.5"),
        (lambda: uneven(pause=-3.0), "pause: expected a number of at least 1, got -3.0"),
        (lambda: uneven(slowest=np.nan), "slowest: expected a number of at least 1, got nan"),
        (
            lambda: simulate.simulate(PLAIN, 2, network=simulate.Interconnect("none", 0.0, 0.0)),
            "bandwidth: expected a positive number, got 0.0",
        ),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_noise_makes_no_update_negative():
    assert scaling.calibrate(made_up(evolve=1.0)).update > 0


# --- what is modelled is what is implemented ---


def test_round_trips_are_those_of_a_push():
    class Counting(Place):
        count = 0

        def fetch(self, *args):
            Counting.count += 1
            return super().fetch(*args)

        def store(self, *args):
            Counting.count += 1
            super().store(*args)

    data = datasets.load("digits").limited(128, random_state=0)
    config = TrainConfig(hidden=(20, 20), batch_size=32, epochs=4)
    model = new_model(config, data.n_features, data.n_classes, 0)
    place = Counting(model.sizes, model.nnz, 2, 12, 4)
    server = ParameterServer(place, config, 0, 3, 4)
    server.publish(model)
    workers = [Worker(k, Shard(data, np.arange(k, 128, 2), config, 0, k), server) for k in range(2)]
    counts = {}
    for step in (0, 1, 0, 1):  # the third ends an epoch, the fourth meets a newer topology
        worker = workers[step]
        gradient, version, before = worker.compute(), worker.version, Counting.count
        update = worker.push(gradient)
        made = Counting.count - before
        old = version.topology != update.version.topology
        counts["evolved" if update.epoch else "retained" if old else "plain"] = made
        worker.close()
    plain = counts["plain"]
    assert plain == simulate.ROUND_TRIPS
    assert counts["evolved"] - plain == simulate.ROUND_TRIPS_EVOLVED
    assert counts["retained"] - plain == simulate.ROUND_TRIPS_RETAINED


# --- calibration ---


def made_up(profile="quick", evolve=1e-3):
    """A measurement of round numbers: 1 ms of computing, 0.1 ms of lock, 0.2 ms of update."""

    def run(rate, workers, seed):
        seconds = {
            "gradient": 0.04, "lock": 0.005, "update": 0.01, "evaluate": 1.0, "checkpoint": 0.5,
            "phase1": 1.5 + 0.05 + 0.015,
        }  # fmt: skip
        rank = {"updates": 50, "samples": 5_000, "seconds": seconds}
        return {
            "seed": seed, "samples_per_second": rate * (1 + 0.1 * seed), "window": "shared",
            "bytes_per_update": 2e6, "staleness": workers - 1.0, "ranks": [rank] * workers,
        }  # fmt: skip

    return {
        "study": "F-scaling", "name": "measured", "profile": profile,
        "n_train": 1_000, "batch_size": 100, "epochs": 5,
        "others": [0.0, 0.1],
        "runs": {
            "sequential": {"1": [{"seed": 0, "samples_per_second": 80_000.0},
                                 {"seed": 1, "samples_per_second": 88_000.0}]},
            "wasap": {str(k): [run(76_000.0 * k, k, s) for s in (0, 1)] for k in (1, 2)},
            "wassp": {str(k): [run(60_000.0 * k, k, s) for s in (0, 1)] for k in (1, 2)},
        },
        "steps": {
            "gradient": [0.9e-3, 1e-3, 1.1e-3], "push": 1e-4, "retain": 3e-4, "adopt": 2e-4,
            "evolve": evolve, "reduce": 2e-5, "term": 1e-6, "n_params": 100_000, "n_gradients": 400,
        },
        "messages": {"seconds": 1e-6, "bytes_per_second": 5e9},
        "provenance": {"cpu": "a CPU", "cores": 2, "sparsecore": "0", "commit": None},
    }  # fmt: skip


def test_calibration_divides_the_time_of_one_worker():
    found = scaling.calibrate(made_up())
    assert found.compute == pytest.approx(1e-3)  # what is neither lock nor update nor set aside
    assert found.lock == pytest.approx(1e-4)
    assert found.update == pytest.approx(2e-4 - 4 / 50 * 1e-3)  # 4 evolutions in 50 updates
    assert (found.evolve, found.retain, found.bandwidth) == (1e-3, 3e-4, 5e9)
    assert (found.updates_per_epoch, found.samples_per_update) == (10, 100)
    assert found.jitter == pytest.approx((0.9, 1.0, 1.1))
    assert rounds.spent(made_up(), "wasap", 2)["compute"] == pytest.approx(1e-3)
    odd = made_up() | {"n_train": 950}
    slow = odd["runs"]["wasap"]["1"][1]
    [rank] = slow["ranks"]
    slow["ranks"] = [rank | {"seconds": rank["seconds"] | {"lock": 0.015, "phase1": 1.575}}]
    found = scaling.calibrate(odd)
    assert (found.updates_per_epoch, found.samples_per_update) == (10, 95)
    assert found.lock == pytest.approx(2e-4), "the median of 0.1 and 0.3 ms"


def test_speedups_are_those_of_the_same_round():
    assert rounds.speedups(made_up(), "wasap", 2).tolist() == pytest.approx([1.9, 1.9])
    assert rounds.workers_of(made_up(), "wassp") == [1, 2]
    assert [scaling.counts(n) for n in (1, 2, 6)] == [[1], [1, 2], [1, 2, 4, 6]]


def test_rounds_are_measured_in_turns_and_told(monkeypatch):
    monkeypatch.setattr(rounds, "busy_cpus", lambda: 0.1)
    calls = []

    def train(name, pace, accuracy, seed):
        calls.append((name, seed))
        found = {"seed": seed, "samples_per_second": pace, "test_accuracy": accuracy}
        if name != "alone":
            seconds = {"phase1": 2.0, "gradient": 1.0, "lock": 0.5, "update": 0.25}
            rank = {"updates": 5, "samples": 50, "seconds": seconds}
            found["parallel"] = {"bytes_per_update": 8.0, "ranks": [rank, rank]}
        return found

    found = rounds.in_turns(
        (3, 4), partial(train, "alone", 10.0, 0.5), {("wasap", 2): partial(train, "two", 18.0, 0.4)}
    )
    assert calls == [("alone", 3), ("two", 3), ("alone", 4), ("two", 4)]
    assert found["others"] == [0.1, 0.1]
    assert found["runs"]["wasap"]["2"][0]["bytes_per_update"] == 8.0
    told = rounds.against_sequential(found, "wasap", 2)
    assert told["ratio"] == {"median": 1.8, "min": 1.8, "max": 1.8}
    assert told["accuracy_difference"] == pytest.approx(-10)
    assert told["rounds"][1]["shares"] == {"gradient": 0.5, "lock": 0.25, "update": 0.125}
    found["runs"]["wasap"]["2"][1] |= {"samples_per_second": 30.0, "test_accuracy": 0.7}
    told = rounds.against_sequential(found, "wasap", 2)
    assert told["ratio"] == pytest.approx({"median": 2.4, "min": 1.8, "max": 3.0})
    assert told["accuracy_difference"] == pytest.approx(5) and told["others"] == [0.1, 0.1]


# --- run or load ---


def test_measured_in_turns_and_timed(one_worker, monkeypatch):
    monkeypatch.setattr(rounds, "busy_cpus", lambda: 0.1)  # it sleeps half a second
    monkeypatch.setattr(scaling, "DATASET", "digits")
    effort = scaling.Effort(epochs=2, rows=300, seeds=(0,), workers=2, steps=40)
    monkeypatch.setattr(scaling, "EFFORTS", {"quick": effort, "paper": effort})
    first = scaling.load("quick")
    assert one_worker == [("wasap", 0, 1.0), ("wassp", 0, 1.0)] * 2
    times = first["steps"]["gradient"]
    assert times == sorted(times) and times[0] > 0
    assert scaling.load("quick") == first and len(one_worker) == 4
    assert scaling.recorded() == NOTHING
    monkeypatch.setenv("SPARSECORE_PROFILE", "paper")
    monkeypatch.setattr(scaling, "_measure", lambda effort: {**first, "profile": "paper"})
    assert scaling.recorded()["profile"] == "paper", "such a build measures what is missing"


# --- pictures ---


@pytest.fixture(params=["paper", "quick"])
def found(request, short_simulations):
    return made_up(request.param)


def test_measured_speedup_is_drawn_and_told(found):
    picture = scaling_figures.measured(found)
    told = (
        "WASAP-SGD with 2 workers is 1.90 times as fast and WASSP-SGD with 2 workers is 1.50 times"
    )
    assert told in picture.finding
    assert f"profile {found['profile']}" in picture.sources and "<svg" in picture.svg()
    assert picture.key == ("F-scaling" if found["profile"] == "paper" else "F-scaling-here")
    [ax] = picture.figure.axes
    assert ax.lines[0].get_ydata() == pytest.approx([0.95, 1.9])
    assert ax.lines[0].get_color() == COLOUR["wasap"]


def test_simulations_say_that_they_are(found):
    calibrated = scaling.calibrate(found)
    simulated = scaling_figures.simulated(found)
    point = simulate.saturation(calibrated, ONE_MACHINE)
    assert f"shared memory K* = {point:.1f}" in simulated.sources
    rates = {k: simulate.simulate(calibrated, k).speedup for k in (1, 2, 4, 8)}
    assert max(rates.values()) == rates[8], "the most with full batches: 10 workers have one"
    assert f"peaks with at least 8 workers on one machine ({rates[8]:.1f})" in simulated.sources
    fast = {k: simulate.simulate(calibrated, k, "wasap", simulate.NETWORKS[2]) for k in rates}
    best = max(fast, key=lambda k: fast[k].speedup)
    none = ": no gain" * (fast[best].speedup <= 1)
    assert f"{best} workers over Ethernet ({fast[best].speedup:.1f}{none})" in simulated.sources
    assert f"is at most {max(rates.values()):.1f} (WASAP-SGD) and " in simulated.finding
    assert "One worker has 0.95 times the sequential trainer's" in simulated.finding
    off = simulate.simulate(calibrated, 2, "wassp").samples_per_second / 126_000 - 1
    assert f"with 2 workers it deviates by {100 * off:+.0f} % from the" in simulated.finding
    many = max(
        (simulate.simulate(calibrated, k, "wassp", network).speedup, k)
        for network in simulate.NETWORKS
        for k in rates
    )[1]
    told = f"{many} workers take steps of {100 * many} rows, {-(-10 // many)} per epoch"
    assert told in simulated.finding
    stragglers = scaling_figures.stragglers(found)
    pair = (simulate.simulate(calibrated, 8, "wassp", scenario=case) for case in
            (simulate.SCENARIOS[2], EVEN))  # fmt: skip
    slow, even = (outcome.gradients_per_second for outcome in pair)
    told = f", {round(100 * slow / even - 100):+d} % (WASSP-SGD); 1 gradient in 100"
    assert told in stragglers.finding
    for picture in (simulated, stragglers):
        assert picture.caption.startswith("**Simulation: ")
        assert len(picture.figure.axes) == 2
        assert all(ax.get_title().startswith("simulation: ") for ax in picture.figure.axes)


def test_nothing_to_show_says_why():
    for name in ("measured", "comparison", "simulated", "stragglers", "calibration", "another"):
        assert getattr(scaling_figures, name)({"missing": "no MPI"}).text == "no MPI"


def test_tables_set_simulation_beside_measurement(found):
    table = scaling_figures.comparison(found)
    assert len(table.data) == 4
    row = table.data.query("algorithm == 'WASAP-SGD' and workers == 2").iloc[-1]
    assert row["measured"] == pytest.approx(76_000 * 2 * 1.05)
    told = ["2", "159,600 (152,000–167,200)", "1.90", "1.00, 0.10, 0.20"]
    assert table.frame.loc[row.name].tolist()[1:5] == told
    calibrated = scaling.calibrate(found)
    expected = simulate.simulate(calibrated, 2).samples_per_second
    assert row["simulated"] == expected
    share = f"{expected / row['measured'] - 1:+.0%}".replace("-", "−")
    assert f"{expected:,.0f} ({share})" in table._repr_markdown_()
    assert f"{share[:-1]} % (WASAP-SGD × 2)".replace("−", "-") in table.finding
    assert "(WASAP-SGD × 1)" not in table.finding, "the model is calibrated on it"
    assert "\\begin{tabular}" in table.latex()


def test_every_measured_time_counts():
    slow = replace(PLAIN, lock=0.002, updates_per_epoch=100)
    network = simulate.Interconnect("slow", 1e-4, 1e6)
    held = simulate.service(slow, network)  # checked above
    cycle = 0.01 + 0.002 + 2e-4 + held
    alone = simulate.simulate(slow, 1, network=network, scenario=EVEN)
    assert alone.gradients_per_second == pytest.approx(1 / cycle, rel=1e-6)
    assert simulate.saturation(slow, network) == pytest.approx(cycle / held)
    assert slow.alone == pytest.approx(1 / 0.013)
    # After every evolution one of two workers adopts the other's topology.
    two = simulate.simulate(replace(PLAIN, adopt=0.1, updates_per_epoch=100), 2, scenario=EVEN)
    assert two.gradients_per_second == pytest.approx(2 / (0.011 + 0.1 / 100), rel=0.02)
    full = replace(PLAIN, reduce=0.002, term=0.003, evolve=0.5, bandwidth=1e15)
    for k in (1, 4):
        own = 0.002 + 0.003 * k + 0.001 / k + 0.5 * k / 500
        assert exchange(full, ONE_MACHINE, k) == pytest.approx(own)


def test_what_is_timed_is_told_apart(monkeypatch):
    class Told(Worker):
        def push(self, gradient):
            before, update = self.version, super().push(gradient)
            old = before.topology != update.version.topology
            return update._replace(held=8.0 if update.epoch else 3.0 if old else 1.0)

    config = TrainConfig(hidden=(20, 20), batch_size=32)
    with monkeypatch.context() as patch:
        patch.setattr(scaling, "Worker", Told)
        found = scaling.time_steps(datasets.load("digits").limited(300), config, 40)
    assert [found[name] for name in ("push", "retain", "evolve")] == [1, 2, 7]

    def timed(work, n=1):
        work()
        received, mean, _ = work.args
        assert (mean == len(received)).all()
        return np.full(n, 1e-6 * len(received) + 1e-9 * received.size)

    monkeypatch.setattr(scaling, "timed", timed)
    found = scaling._time_reduction(160_000)
    assert found == pytest.approx({"term": 1.001e-6, "reduce": 16 * 9_999e-9})

    @contextmanager
    def pair(n):
        swap = lambda out, other, recvbuf: None  # noqa: E731
        yield SimpleNamespace(rank=0, Barrier=lambda: None, Sendrecv=swap)

    monkeypatch.setattr("sparsecore.wasap.mpi.first_ranks", pair)
    monkeypatch.setattr(scaling, "timed", lambda work: [1e-6 + 1e-9 * work.args[0].nbytes])
    found = scaling._messages_on_engine(10**6)
    assert found == pytest.approx({"seconds": 1.008e-6, "bytes_per_second": 1e9}, rel=1e-4)
