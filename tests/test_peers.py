"""The peers: each takes the steps that the dense oracle takes, so the comparison is of equals."""

import json
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from oracle import Net, Value, added, gamma, given, product, scaled

from sparsecore.bench import spread
from sparsecore.config import TrainConfig
from sparsecore.paper.speed import contest, peers
from sparsecore.paper.speed.contest import PEERS
from sparsecore.paper.speed.peers import Problem

SIZES = (20, 24, 16, 5)
PLAIN = {"density": 0.3, "dropout": 0.0, "weight_decay": 0.0, "learning_rate": 0.2}
LEARNERS = [key for key in PEERS if key != "c-loop"]
SPARSE = ("torch-csr", "sparselab", "sparseprop")
DECOUPLED = ("sparsecore", "blas-dense", "jax-dense")  # PyTorch and scikit-learn decay otherwise


def trainer(key, problem):
    if reason := PEERS[key].absent(problem):
        pytest.skip(reason)
    return PEERS[key](problem)


@pytest.mark.parametrize(
    "key, changed",
    [(key, {"batch_size": n}) for key in LEARNERS for n in (20, 32)]
    # With this epsilon the last layer has all its weights: theirs is dense, then.
    + [(key, {"batch_size": 20, "density": None, "epsilon": 4}) for key in SPARSE]
    + [(key, {"batch_size": 8, "weight_decay": 0.02}) for key in DECOUPLED],
)
def test_steps_are_those_of_the_dense_network(key, changed):
    """Learn one batch; the losses tell of forward, backward and update."""
    if key == "scikit-learn-dense":
        # It has ReLU only, whose slope jumps: a seed with no sum so near 0 that rounding decides.
        changed = {**changed, "activation": "relu", "seed": 30}
    seed = changed.pop("seed", 0)
    problem = Problem(SIZES, TrainConfig(**{**PLAIN, **changed}), seed=seed)
    made = trainer(key, problem)
    inputs, labels = problem.data
    net = Net(replace(problem).model)  # its own: ours is trained in place
    if key.endswith("-dense"):  # what is absent for us is a zero that learns for them
        net.support = [np.ones_like(support) for support in net.support]
        net.velocity = given(np.zeros(sum(s.size + len(s) for s in net.support)))
    rows = np.random.default_rng(5).integers(len(inputs), size=problem.config.batch_size)
    config = problem.config
    rule = (config.learning_rate, config.momentum, config.weight_decay)
    losses = []
    for _ in range(3):
        loss, _ = net.step(inputs[rows], labels[rows], *rule)
        # The oracle's bound is for a softmax in float64; others sum classes and samples in float32.
        more = gamma(config.batch_size + problem.sizes[-1] + 10) * 2 * (1 + loss.exact)
        losses.append(Value(loss.exact, loss.error + more))
        losses[-1].holds(made.train(rows))
    made.close()
    # A bound that a peer could meet without learning would show nothing.
    for before, after in pairwise(losses):
        assert before.exact - after.exact > 10 * (before.error + after.error)


@pytest.mark.parametrize("key", SPARSE)
def test_full_layers_of_sparse_peers_are_dense(key):
    made = trainer(key, Problem(SIZES, TrainConfig(epsilon=4)))
    kinds = [type(layer).__name__ for layer in made._layers]
    assert [kind == "Linear" for kind in kinds] == [False, False, True]


@pytest.mark.parametrize("key", LEARNERS)
def test_several_batches_a_call_give_the_mean_loss(key):
    problem = Problem(SIZES, TrainConfig(batch_size=8, activation="relu", **PLAIN))
    whole, single = trainer(key, problem), trainer(key, replace(problem))
    rows = np.arange(48)
    one_by_one = [single.train(batch) for batch in np.split(rows, 6)]
    assert whole.train(rows) == pytest.approx(np.mean(one_by_one), rel=1e-6)
    whole.close()
    single.close()


@pytest.mark.parametrize("key", [key for key in LEARNERS if key != "scikit-learn-dense"])
def test_dropout_is_applied(key):
    for dropout, n_losses in ((0.5, 4), (0.0, 1)):
        # Steps of next to nothing, without decay: noise alone makes losses differ.
        small = PLAIN | {"batch_size": 64, "dropout": dropout, "learning_rate": 1e-12}
        problem = Problem(SIZES, TrainConfig(**small))
        made = trainer(key, problem)
        assert len({made.train(np.arange(64)) for _ in range(4)}) == n_losses
        made.close()


def test_masked_weights_stay_absent():
    problem = Problem(SIZES, TrainConfig(batch_size=8, density=0.3))
    made = trainer("torch-masked", problem)
    made.train(np.arange(64))
    for layer, matrix in zip(made._layers, problem.model.to_scipy(), strict=True):
        weights = layer.weight.detach().numpy()
        assert np.all(weights[matrix.toarray() == 0] == 0)
        present = matrix.toarray() != 0
        assert np.any(weights[present] != matrix.toarray()[present])


# --- the yardstick ---


def test_c_loop_is_what_numpy_computes():
    problem = Problem((30, 41, 17, 6), TrainConfig(density=0.25, learning_rate=0.1))
    loop = trainer("c-loop", problem)
    rng = np.random.default_rng(2)
    loop.activations[0][:] = rng.standard_normal(loop.activations[0].shape)
    loop.gradients[-1][:] = rng.standard_normal(loop.gradients[-1].shape)
    for velocity in loop.velocities:
        velocity[:] = rng.standard_normal(len(velocity))
    old = [velocity.copy() for velocity in loop.velocities]
    matrices = problem.model.to_scipy()
    dense = [given(matrix.toarray()) for matrix in matrices]

    loop.forward()
    for i, weights in enumerate(dense):
        fan_in = int(np.diff(matrices[i].indptr).max())
        # Each layer is compared with the exact product of what C gave it.
        product(weights, given(loop.activations[i]), fan_in + 1).holds(loop.activations[i + 1])

    rate, momentum, decay = (float(np.float32(v)) for v in (0.01, 0.9, 0.05))
    loop.backward(rate, momentum, decay)
    for i, weights in enumerate(dense):
        dz = given(loop.gradients[i + 1])
        if i:
            fan_out = int(np.bincount(matrices[i].indices).max())
            product(given(weights.exact.T), dz, fan_out + 1).holds(loop.gradients[i])
        full = product(dz, given(loop.activations[i].T), problem.config.batch_size + 1)
        rows, columns = matrices[i].tocoo().coords
        g = Value(full.exact[rows, columns], full.error[rows, columns])
        v = added(scaled(given(old[i]), momentum, 1), scaled(g, -rate, 1), 2)
        v.holds(loop.velocities[i])
        w = given(matrices[i].data)
        added(added(w, v, 2), scaled(w, -decay, 1), 2).holds(loop.weights[i])


# --- comparing ---


def test_a_turn_tells_the_time_of_one_step(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(contest.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(contest.time, "process_time", lambda: now[0] / 2)

    def train(rows):
        now[0] += 0.004 * len(rows) / 10

    problem = SimpleNamespace(data=(None, np.zeros(80)), config=TrainConfig(batch_size=10))
    turn = contest.stopwatch(SimpleNamespace(problem=problem, train=train), 0.5)
    assert turn() == pytest.approx({"ms": 4.0, "cores": 0.5})


def test_comparison_is_interleaved_and_complete(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    few = {key: PEERS[key] for key in ("sparsecore", "blas-dense", "scikit-learn-dense")}
    monkeypatch.setattr(contest, "PEERS", few)
    problem = Problem(SIZES, TrainConfig(density=0.3, batch_size=8, learning_rate=1e-320))
    result = contest.compare(problem, rounds=3, seconds=0.02)
    assert list(result["peers"]) == ["sparsecore", "blas-dense"]
    assert result["nnz"] == problem.model.nnz
    for found in result["peers"].values():
        assert len(found["rounds"]) == 3
        assert found["low"] <= found["ms"] <= found["high"]
        assert found["ms"] == np.median(found["rounds"])
        assert found["peak_rss_mb"] > 10
        assert 0 < found["cores"] < 1.5, "one thread"
    assert result["peers"]["sparsecore"]["ratio"] == {"median": 1, "low": 1, "high": 1}
    ours, theirs = (np.array(p["rounds"]) for p in result["peers"].values())
    assert result["peers"]["blas-dense"]["ratio"] == spread(theirs / ours)
    [blas] = {line.split("(")[1] for line in result["peers"]["blas-dense"]["blas"]}
    assert blas == "1 threads)"
    assert "alpha" in result["absent"]["scikit-learn-dense"]["reason"], (
        "it refuses an infinite decay"
    )
    json.dumps(result)
    assert os.environ["OMP_NUM_THREADS"] == "7", "the peers' settings do not stay"
    assert "MKL_NUM_THREADS" not in os.environ


def test_a_peer_that_dies_in_a_turn_leaves_the_others_in_the_contest(monkeypatch):
    few = {key: PEERS[key] for key in ("sparsecore", "blas-dense")}
    monkeypatch.setattr(contest, "PEERS", few)
    turns = []

    def submit(pool, call, *asked):
        if call is contest._turn:
            turns.append(pool)
            if len(turns) == 3:  # the second round begins with the dense network
                call, asked = os._exit, (1,)
        return real(pool, call, *asked)

    real = ProcessPoolExecutor.submit
    monkeypatch.setattr(ProcessPoolExecutor, "submit", submit)
    result = contest.compare(Problem(SIZES, TrainConfig(density=0.3)), rounds=3, seconds=0.01)
    assert len(result["peers"]["sparsecore"]["rounds"]) == 3
    assert result["absent"]["blas-dense"]["reason"] == "failed: its process died"


def test_what_is_absent_has_a_reason(monkeypatch):
    for problem in (Problem(SIZES, TrainConfig(batch_size=64)), Problem(SIZES, threads=2)):
        assert PEERS["c-loop"].absent(problem) is not None  # it is for 128 and for one
    found = {"sparseprop": "1"}.get
    monkeypatch.setattr(peers, "installed", found)
    assert PEERS["torch-dense"].absent(Problem(SIZES)) == "torch not installed"
    assert PEERS["sparseprop"].absent(Problem(SIZES)) == "torch not installed"
    monkeypatch.setattr(peers, "installed", lambda name: "1")
    assert PEERS["torch-dense"].absent(Problem(SIZES)) is None
