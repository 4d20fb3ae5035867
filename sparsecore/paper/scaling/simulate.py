"""A discrete-event simulation of phase 1 with more workers than cores: a model, not a run."""

import heapq
import math
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np

from sparsecore.config import POSITIVE, integers, names, numbers
from sparsecore.wasap.plan import ALGORITHMS

# Round trips to a remote window that a push waits for: between taking and releasing the lock in
# `ParameterServer.push`, more of them when it meets a newer topology, and more at the end of an
# epoch. Half of taking the lock and half of releasing it make one more.
ROUND_TRIPS, ROUND_TRIPS_RETAINED, ROUND_TRIPS_EVOLVED = 11, 3, 6
_UPDATES, _STEPS = 6_000, 400
_AT_LEAST_1 = numbers("a number of at least 1", lambda v: v >= 1)
_SHARE = numbers("a number in [0, 1]", lambda v: 0 <= v <= 1)


@dataclass(frozen=True)
class Calibration:
    """The measured inputs of the simulation; times in seconds."""

    compute: float  # from the end of one push to the start of the next, mean
    lock: float  # to take a free lock
    update: float  # for which a push holds the lock, without an evolution, mean
    evolve: float  # extra for the push that ends an epoch
    retain: float  # extra for a push that meets a newer topology
    adopt: float  # for the worker to adopt that topology afterwards, without the lock
    reduce: float  # to add up in lockstep a worker's share of the gradients, one gradient in all
    term: float  # extra for each worker, in lockstep
    message: float  # for a small message between two processes of a machine
    bandwidth: float  # bytes per second, each way, of a large one
    n_params: int
    bytes_per_update: float  # moved by an update between worker and server
    samples_per_update: float
    updates_per_epoch: int
    # Quantiles, at equal distances from 0 to 1, of the time of a gradient relative to its mean.
    jitter: tuple[float, ...] = (1.0, 1.0)

    @property
    def alone(self) -> float:
        """Gradients per second of one worker that never waits, with the window in shared memory."""
        return 1 / (self.compute + self.lock + service(self, ONE_MACHINE))


class Interconnect(NamedTuple):
    """The network between workers and server."""

    name: str
    latency: float = 0.0  # seconds, one way
    # Bytes per second, each way, of every machine. None: one memory, and messages as measured.
    bandwidth: float | None = None

    def seconds(self, n_bytes: float) -> float:
        """Return the seconds to move `n_bytes` by one-sided access, without latency."""
        return 0.0 if self.bandwidth is None else n_bytes / self.bandwidth


#: No copies, no messages, and no limit to the memory's bandwidth: the most that is possible.
ONE_MACHINE = Interconnect("one machine, shared memory")
#: Assumptions, not measurements: nominal rates, and latencies between two programs.
NETWORKS = (
    ONE_MACHINE,
    Interconnect("InfiniBand, 200 Gbit/s, 2 µs", 2e-6, 200e9 / 8),
    Interconnect("Ethernet, 10 Gbit/s, 30 µs", 30e-6, 10e9 / 8),
)


class Scenario(NamedTuple):
    """How evenly the workers compute."""

    name: str
    jitter: bool = True  # whether times vary as measured, or are the mean
    slowest: float = 1.0  # how many times as long the first worker takes to compute a gradient
    pauses: float = 0.0  # probability that a gradient takes `pause` times as long
    pause: float = 1.0


EVEN = Scenario("all alike", jitter=False)
AS_MEASURED = Scenario("jitter as measured")
SCENARIOS = (
    EVEN,
    AS_MEASURED,
    Scenario("one worker at half speed", slowest=2.0),
    Scenario("1 gradient in 100 takes 10 times as long", pauses=0.01, pause=10.0),
)


@dataclass(frozen=True)
class Outcome:
    """The result of a simulation."""

    workers: int
    gradients_per_second: float  # of all workers together
    samples_per_second: float
    speedup: float  # over one worker that never waits (`Calibration.alone`)
    utilisation: float  # share of the time that the lock is held; in lockstep, of the exchange
    waiting: float  # share of the workers' time spent waiting for the lock, or the slowest
    staleness: float  # updates by others between a worker's pull and push, mean

    def __repr__(self) -> str:
        return (
            f"Simulation: {self.workers} worker(s), {self.samples_per_second:,.0f} samples/s, "
            f"{self.speedup:.2f} times one worker;\nlock or exchange busy {self.utilisation:.0%}, "
            f"workers waiting {self.waiting:.0%}, staleness {self.staleness:.1f}"
        )


@cache  # several pictures and tables need the same
def simulate(
    calibration: Calibration, workers: int, algorithm: str = "wasap",
    network: Interconnect = ONE_MACHINE, scenario: Scenario = AS_MEASURED, seed: int = 0,
) -> Outcome:  # fmt: skip
    """Simulate phase 1 of a parallel run in its steady state; a seed determines the outcome."""
    # Each worker has a core of its own and always a full batch: where there are more workers than
    # updates in an epoch, the data grow with them. Not in the model: cores share the memory's
    # bandwidth; requests for the lock load the server's network; evaluation. The first to ask gets
    # the lock: the order only decides whose gradient is stale.
    names(ALGORITHMS).check("algorithm", algorithm)
    integers(1).check("workers", workers)
    _SHARE.check("pauses", scenario.pauses)
    for name, value in (("slowest", scenario.slowest), ("pause", scenario.pause)):
        _AT_LEAST_1.check(name, value)
    if network.bandwidth is not None:
        POSITIVE.check("bandwidth", network.bandwidth)
    run, rng = _asynchronous if algorithm == "wasap" else _lockstep, np.random.default_rng(seed)
    rate, *shares = map(float, run(calibration, workers, network, scenario, rng))
    speedup = rate / calibration.alone
    return Outcome(workers, rate, rate * calibration.samples_per_update, speedup, *shares)


def service(calibration: Calibration, network: Interconnect) -> float:
    """Return the mean seconds that a push of a new gradient holds the lock, evolutions included."""
    push, evolve = _held(calibration, network)
    return push + evolve / calibration.updates_per_epoch


def saturation(calibration: Calibration, network: Interconnect) -> float:
    """Return how many workers saturate the server: while one computes, the others push."""
    busy = service(calibration, network)
    return (calibration.compute + calibration.lock + 2 * network.latency + busy) / busy


def exchange(calibration: Calibration, network: Interconnect, workers: int) -> float:
    """Return how many seconds a step in lockstep takes after the slowest worker's gradient."""
    # Gradients go from all to all at once; each worker adds up and updates its share; the new
    # parameters go round a ring. Before each exchange the workers meet, which takes a message for
    # every doubling of their number. An evolution, with its broadcast, is spread over the steps.
    c, others = calibration, workers - 1
    wire = c.bandwidth if network.bandwidth is None else network.bandwidth
    share = 4 * c.n_params / workers / wire
    hop = c.message + network.latency
    to_all = others * (c.message + share) + network.latency * (others > 0)
    ring = others * (hop + share)
    depth = math.ceil(math.log2(workers))
    meeting = depth * hop
    evolution = c.evolve + ring + depth * (hop + 12 * c.n_params / wire) + 2 * meeting
    own = c.reduce + workers * c.term + c.update / workers
    spread = evolution * workers / max(c.updates_per_epoch, workers)
    return to_all + own + ring + 2 * meeting + spread


def _held(c: Calibration, network: Interconnect) -> tuple[float, float]:
    """Return how many seconds a push holds the lock, and how many more if it ends an epoch."""
    trips = ROUND_TRIPS + 1  # of the lock: the reply to its taking, the request for its release
    push = c.update + 2 * trips * network.latency + network.seconds(c.bytes_per_update)
    sent = 2 * ROUND_TRIPS_EVOLVED * network.latency + network.seconds(12 * c.n_params)
    return push, c.evolve + sent


def _asynchronous(
    c: Calibration, workers: int, network: Interconnect, scenario: Scenario,
    rng: np.random.Generator,
) -> tuple[float, ...]:  # fmt: skip
    """Have workers compute and queue for the lock; return updates per second, and the shares."""
    first = max(_UPDATES // 10, 2 * workers)  # by then the common start is forgotten
    # With more workers than updates between two evolutions, the data grow.
    epoch, updates = max(c.updates_per_epoch, workers), first + max(_UPDATES, 6 * workers)
    updates += (first - updates) % epoch if epoch < updates - first else 0  # whole epochs
    factors = iter(_factors(c, scenario, (updates + workers,), rng).tolist())
    before = c.lock + 2 * network.latency
    push, evolve = _held(c, network)
    retain = c.retain + 2 * ROUND_TRIPS_RETAINED * network.latency
    retain += network.seconds(4 * c.n_params)
    compute = [c.compute * scenario.slowest, *[c.compute] * (workers - 1)]
    asking = [(own * next(factors) + before, rank) for rank, own in enumerate(compute)]
    heapq.heapify(asking)
    pulled, seen, version = [0] * workers, [0] * workers, 0
    free = busy = waited = stale = begun = 0.0
    for ticket in range(updates):
        asked, rank = heapq.heappop(asking)
        got = max(asked, free)
        old, ends = seen[rank] != version, (ticket + 1) % epoch == 0
        held = push + retain * old + evolve * ends
        if ticket == first:
            begun = free
        if ticket >= first:
            busy, waited, stale = busy + held, waited + got - asked, stale + ticket - pulled[rank]
        free, version = got + held, version + ends
        pulled[rank], seen[rank] = ticket + 1, version
        pause = compute[rank] * next(factors) + c.adopt * old + before
        heapq.heappush(asking, (free + pause, rank))
    seconds, made = free - begun, updates - first
    return made / seconds, busy / seconds, waited / (workers * seconds), stale / made


def _lockstep(
    c: Calibration, workers: int, network: Interconnect, scenario: Scenario,
    rng: np.random.Generator,
) -> tuple[float, ...]:  # fmt: skip
    """Have all workers wait for the slowest and exchange, step after step; return the same."""
    own = c.compute * _factors(c, scenario, (_STEPS, workers), rng)
    own[:, 0] *= scenario.slowest
    slowest, after = own.max(axis=1), exchange(c, network, workers)
    seconds = slowest.mean() + after
    waiting = (slowest - own.mean(axis=1)).mean() / seconds
    return workers / seconds, after / seconds, waiting, 0.0


def _factors(
    c: Calibration, scenario: Scenario, shape: tuple[int, ...], rng: np.random.Generator
) -> np.ndarray:
    """Draw times to compute a gradient, relative to the mean of those measured."""
    quantiles = np.array(c.jitter) if scenario.jitter else np.ones(2)
    at = np.linspace(0, 1, len(quantiles))
    factors = np.interp(rng.random(shape), at, quantiles / np.trapezoid(quantiles, at))
    if scenario.pauses:
        factors = np.where(rng.random(shape) < scenario.pauses, scenario.pause * factors, factors)
    return factors
