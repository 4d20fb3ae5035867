"""The kernels against the dense oracle: forward, backward and update, in blocks and padded lanes.

Batch sizes are chosen for what they exercise: less than a block (1, 5, and 12 of 16 lanes), exactly
one (8, 32), several (130, 512), and blocks with padded lanes (5, 12, 100, 130).
"""

import numpy as np
import pytest
import scipy.sparse as sp
from oracle import SIZES, Net, Value, added, batch, gamma, given, mix, network, scaled
from oracle import stretch as stretched
from scipy import special

from sparsecore.compiled import engine, kernels, losses, programs
from sparsecore.compiled.arrays import sealed
from sparsecore.compiled.engine import aligned, lane_width
from sparsecore.compiled.kernels import Rule
from sparsecore.config import TrainConfig
from sparsecore.mlp import SparseMLP
from sparsecore.train import Trainer

BATCHES = [1, 5, 8, 12, 32, 100, 130, 512]
ACTIVATIONS = ["all-relu", "relu", "leaky-relu"]


def assert_gradient(model, n, dropout=0.0, seed=0, step=0):
    X, y = batch(model, n)
    loss, gradient = model.loss_and_gradient(X, y, dropout=dropout, seed=seed, step=step)
    exact_loss, exact, _ = Net(model).loss_and_gradient(X, y, dropout, seed, step)
    exact_loss.holds(loss)
    exact.holds(gradient)
    # A bound that allowed anything would test nothing.
    assert exact_loss.error < 1e-3 * exact_loss.exact
    assert np.median(exact.error) < 1e-3 * np.abs(exact.exact).max()


@pytest.mark.parametrize("n", BATCHES)
def test_logits_are_those_of_the_dense_network(n):
    model = network()
    X, _ = batch(model, n)
    Net(model).logits(X).holds(model.decision_function(X))


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("n", BATCHES)
def test_gradient_is_that_of_the_dense_network(n, dropout):
    assert_gradient(network(), n, dropout, seed=2**63 + 11, step=5)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("n", [5, 32, 100])
@pytest.mark.parametrize("kind", ["SOFTMAX", "SIGMOID", "SQUARED"])
def test_weighted_losses_have_the_gradient_of_the_dense_network(kind, n, dropout):
    model, code, rng = network(), getattr(losses, kind), np.random.default_rng(2)
    X, y = batch(model, n)
    weights, values = rng.random(n, np.float32), rng.random((n, SIZES[-1]), np.float32)
    if kind == "SOFTMAX":
        values = np.eye(SIZES[-1], dtype=np.float32)[y]
        aim = losses.Aim(code, labels=y, weights=weights)
    else:
        aim = losses.Aim(code, values=values, weights=weights)
    net = Net(model)
    inputs, sums, masks = net.forward(X, dropout, 3, 4)
    z, target = sums[-1].exact, values.T.astype(float)
    outputs, loss, steepest = {
        "SOFTMAX": (special.softmax(z, 0), special.logsumexp(z, 0) - (target * z).sum(0), 0.5),
        "SIGMOID": (special.expit(z), (np.logaddexp(0, z) - target * z).sum(0), 0.25),
        "SQUARED": (z, 0.5 * ((z - target) ** 2).sum(0), 1.0),
    }[kind]
    slack = sums[-1].error.max(axis=0)
    # At most six roundings: exp (two), sum, quotient, difference, weight.
    error = steepest * slack + gamma(6) * (np.abs(outputs) + np.abs(target) + slack)
    d = Value(weights * (outputs - target), weights * error)
    exact = net.gradient(d, inputs, sums, masks, stretched(dropout))
    gradient, seen = np.empty_like(model.params), engine.metrics()
    with model.new_engine(n) as runner:
        runner.gradient(gradient, rule(dropout, seed=3), X, aim, np.arange(n), 4, seen)
    exact.holds(gradient)
    assert seen.loss[0] == pytest.approx(weights @ loss, rel=1e-5)
    assert np.median(exact.error) < 1e-3 * np.abs(exact.exact).max()


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_at_every_depth(activation, depth, dropout):
    sizes = (19, *(17, 13, 11)[: depth - 1], 5)
    assert_gradient(network(sizes, 0.4, activation), 100, dropout)


@pytest.mark.parametrize("alpha", [-0.3, 0.0, 0.05, 1.0])
def test_any_slope(alpha):
    assert_gradient(network((12, 10, 9, 4), 0.5, alpha=alpha), 32, 0.3)


@pytest.mark.parametrize("sizes", [(1, 1, 1, 2), (9, 1, 9, 3), (1, 6, 1, 2), (3, 2)])
def test_layers_of_one_neuron(sizes):
    assert_gradient(network(sizes, 1.0), 5, 0.3)
    assert_gradient(network(sizes, 1.0), 100)


def test_dense_layers():
    assert_gradient(network((23, 19, 17, 5), 1.0), 128, 0.3)


def test_many_classes():
    assert_gradient(network((8, 16, 200), 0.5), 32, 0.2)


@pytest.mark.parametrize("empty", ["rows", "columns", "first", "middle", "last", "all"])
def test_neurons_and_layers_without_connections(empty):
    rng = np.random.default_rng(3)
    dense = [rng.normal(0, 1, (n_out, n_in)) for n_in, n_out in ((9, 8), (8, 7), (7, 4))]
    for i, w in enumerate(dense):
        if empty == "rows":
            w[::2] = 0
            w[-1] = 0
        elif empty == "columns":
            w[:, 1::2] = 0
            w[:, -1] = 0
        elif empty == "all" or i == ("first", "middle", "last").index(empty):
            w[:] = 0
    biases = [rng.normal(0, 1, len(w)) for w in dense]
    model = SparseMLP.from_scipy([sp.csr_array(w) for w in dense], biases)
    assert model.nnz == sum(np.count_nonzero(w) for w in dense)
    for n, dropout in ((5, 0.0), (100, 0.3)):
        X, y = batch(model, n)
        loss, gradient = model.loss_and_gradient(X, y, dropout=dropout)
        exact_loss, exact, _ = Net(model).loss_and_gradient(X, y, dropout)
        exact_loss.holds(loss)
        exact.holds(gradient)
        Net(model).logits(X).holds(model.decision_function(X))


def test_a_connection_of_weight_zero_has_a_gradient():
    model = network((6, 5, 3), 0.5)
    model[0].data[:] = 0
    model[1].data[0] = 0
    X, y = batch(model, 8)
    _, gradient = model.loss_and_gradient(X, y)
    Net(model).loss_and_gradient(X, y)[1].holds(gradient)
    assert gradient[model[0].nnz] != 0, "support and value are different things"


def test_a_preactivation_of_zero_takes_the_negative_side():
    # The input is zero, so every pre-activation of the first layer is its bias, 0.
    model = SparseMLP.from_scipy([np.eye(3), np.ones((2, 3))], activation="leaky-relu", alpha=0.25)
    X, y = np.zeros((5, 3), np.float32), np.zeros(5, int)
    _, gradient = model.loss_and_gradient(X, y)
    # Both logits are 0, d = p - onehot = (-1/2, 1/2), and W^T d = 0; with the second row's weights
    # zero, d for a hidden neuron is -1/2 times the slope.
    np.testing.assert_array_equal(gradient[9:12], 0)
    model = SparseMLP.from_scipy(
        [np.eye(3), np.array([[1, 1, 1], [0, 0, 0]])], activation="leaky-relu", alpha=0.25
    )
    _, gradient = model.loss_and_gradient(X, y)
    np.testing.assert_allclose(gradient[6:9], -0.125, rtol=1e-6)


def test_one_step_worked_by_hand():
    # x = 2, w1 = 0.5, b1 = 0: z = 1, h = 1; logits (1, 0) with w2 = (1, 0).
    model = SparseMLP.from_scipy([np.array([[0.5]]), sp.csr_array(([1.0, 0.0], [0, 0], [0, 1, 2]))])
    p = 1 / (1 + np.exp(-1.0))
    loss, gradient = model.loss_and_gradient(np.array([[2.0]]), np.array([1]))
    assert loss == pytest.approx(-np.log(1 - p), rel=1e-7)
    # d = (p, -p); dW2 = d h; dh = p; dW1 = p x; biases: p for the hidden neuron, d for the output.
    np.testing.assert_allclose(gradient, [2 * p, p, -p, p, p, -p], rtol=3e-7)


@pytest.mark.parametrize("scale", [1e3, 1e4])
def test_large_logits_do_not_overflow(scale):
    model = SparseMLP.from_scipy([np.array([[scale], [-scale], [0.0]])])
    X = np.array([[1.0], [-1.0], [0.0]], np.float32)
    loss, gradient = model.loss_and_gradient(X, np.array([1, 1, 2]))
    # exp(-scale) is 0 in float64 as well: the losses are 2 scale, 0 and log 3.
    assert loss == pytest.approx((2 * scale + np.log(3)) / 3, rel=1e-12)
    assert np.isfinite(gradient).all()


# --- widths ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("lanes", "n"), [(8, 100), (8, 512), (32, 5), (32, 33)])
def test_any_width_serves_any_batch(monkeypatch, lanes, n):
    monkeypatch.setattr(engine, "lane_width", lambda batch_size: lanes)
    model = network()
    assert_gradient(model, n, 0.3, seed=4, step=9)
    X, _ = batch(model, n)
    Net(model).logits(X).holds(model.decision_function(X))


def test_logits_do_not_depend_on_company():
    # A sample's sums run over connections in CSR order, in a lane of their own: same bits whatever
    # the block, the padding, the width and the thread.
    model = network()
    X, _ = batch(model, 450)
    together = model.decision_function(X)
    np.testing.assert_array_equal(model.decision_function(X, threads=2), together)
    np.testing.assert_array_equal(model.decision_function(X, threads=3), together)
    for first, last in ((0, 1), (17, 22), (98, 130), (449, 450)):
        np.testing.assert_array_equal(model.decision_function(X[first:last]), together[first:last])


def test_no_samples_no_logits():
    assert network().decision_function(np.zeros((0, SIZES[0]))).shape == (0, SIZES[-1])


def test_lane_width_pads_less_than_it_computes():
    for n in (*range(1, 140), 512, 1000, 4096):
        width = lane_width(n)
        assert width in (8, 16, 32, 64, 128)
        assert -(-n // width) * width < n + max(8, n)


def test_places_may_need_64_bits():
    # With more than 2**31 connections in a layer their places are int64, a compilation of its own.
    model = network((7, 6, 5, 3), 0.5)
    X, y = batch(model, 5)
    expected = model.loss_and_gradient(X, y, dropout=0.3)
    net = model._state.network
    assert net.out_position.dtype == np.int32
    wide = sealed(net.out_position.astype(np.int64))
    model._state = model._state._replace(network=net._replace(out_position=wide))
    loss, gradient = model.loss_and_gradient(X, y, dropout=0.3)
    assert loss == expected[0]
    np.testing.assert_array_equal(gradient, expected[1])


def unaligned(array):
    raw = np.zeros(array.nbytes + 1, np.uint8)
    view = raw[1:].view(array.dtype).reshape(array.shape)
    view[:] = array
    return view


def read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


FORMS = [
    read_only, unaligned, np.asfortranarray, lambda a: np.repeat(a, 2, axis=0)[::2],
    lambda a: np.repeat(a, 2, axis=-1)[..., ::2], lambda a: a.astype(np.float64),
    lambda a: a.astype(a.dtype.newbyteorder()), np.ndarray.tolist,
]  # fmt: skip


def test_no_form_of_the_data_compiles_a_kernel_anew():
    model = network()
    X, y = batch(model, 32)
    jitted = (
        programs.run_batches, programs.predict_range, kernels.misplaced, kernels.reorder
    )  # fmt: skip

    def use(X, y):
        twin = model.copy()
        config = TrainConfig(hidden=SIZES[1:-1], batch_size=32, zeta=0.0, dropout=0.0)
        with Trainer(twin, config, seed=1) as trainer:
            trainer.run_epoch(X, y)
        return model.decision_function(X), model.loss_and_gradient(X, y)[1], twin.params

    expected = use(X, y)
    known = [len(dispatcher.signatures) for dispatcher in jitted]
    for form in FORMS:
        for a, b in zip(use(form(X), form(y)), expected, strict=True):
            np.testing.assert_array_equal(a, b)
    assert [len(dispatcher.signatures) for dispatcher in jitted] == known


def squared(values=(32, 7), weights=(32,)):
    return losses.Aim(losses.SQUARED, values=np.zeros(values), weights=np.ones(weights))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"targets": np.full(32, 7)}, "rows: expected samples below 32 with labels below 7"),
        ({"targets": np.full(32, -1)}, "rows: expected samples below 32 with labels below 7"),
        ({"rows": np.array([0, 32])}, "rows: expected samples below 32 .*, got row 32"),
        ({"rows": np.array([-1])}, "rows: expected samples below 32 .*, got row -1"),
        ({"targets": np.zeros(31, int)}, r"labels: expected shape \(32,\), got \(31,\)"),
        ({"inputs": np.zeros((32, 36))}, "inputs: expected 37 features, got 36"),
        ({"inputs": np.zeros(32)}, r"expected an array of 2 dimensions, got shape \(32,\)"),
        ({"batch_size": 33}, "batch_size: expected 1 to 32, got 33"),
        ({"batch_size": 0}, "batch_size: expected 1 to 32, got 0"),
        ({"rows": np.zeros(33, int)}, "rows: expected 1 to 32, got 33"),
        ({"out": np.zeros(3, np.float32)}, "out: expected a contiguous float32 vector of"),
        ({"targets": squared((31, 7))}, r"values: expected shape \(32, 7\), got \(31, "),
        ({"targets": squared(weights=(31,))}, r"weights: expected shape \(32,\), got \(31,"),
    ],
)
def test_the_engine_checks_what_the_kernels_trust(changes, complaint):
    model = network()
    X, y = batch(model, 32)
    given = {"inputs": X, "targets": y, "rows": np.arange(32), "batch_size": 32} | changes
    out = given.pop("out", np.zeros_like(model.params))
    model.start_momentum()
    size, sums = given.pop("batch_size"), engine.metrics()
    with model.new_engine(32) as runner:
        if "out" not in changes and len(given["rows"]) <= 32:
            with pytest.raises(ValueError, match=complaint):
                runner.train(rule(), **given, batch_size=size, step=0, sums=sums)
        if "batch_size" not in changes:
            with pytest.raises(ValueError, match=complaint):
                runner.gradient(out, rule(), **given, step=0, sums=sums)


def test_buffers_begin_at_a_cache_line():
    for size in (1, 7, 1000):
        for dtype in (np.float32, np.uint8, np.int64):
            array = aligned(size, dtype)
            assert array.ctypes.data % 64 == 0
            assert array.shape == (size,) and array.dtype == dtype and not array.any()


# --- updates --------------------------------------------------------------------------------------

RULE = {"learning_rate": 0.05, "momentum": 0.9, "weight_decay": 0.01}


def rule(dropout=0.0, seed=0, **changes):
    values = RULE | changes
    return Rule(*(np.float32(v) for v in values.values()), np.float32(dropout), np.uint64(seed))


def train(model, X, y, batch_size, a_rule, rows=None, step=0, threads=1):
    rows = np.arange(len(X)) if rows is None else rows
    sums = engine.metrics()
    model.start_momentum()
    with model.new_engine(batch_size, threads) as runner:
        runner.train(a_rule, X, y, rows, batch_size, step, sums)
    return sums


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("n", BATCHES)
def test_a_momentum_step_is_that_of_the_dense_network(n, dropout):
    model = network()
    X, y = batch(model, n)
    # Not from rest: the velocity's own term counts.
    model.start_momentum()[:] = np.random.default_rng(5).normal(0, 0.01, len(model.params))
    oracle = Net(model)
    oracle.velocity = Value(model.velocity.astype(float), np.zeros(len(model.params)))
    before = model.params.astype(float)
    sums = train(model, X, y, n, rule(dropout, seed=3), step=8)
    loss, correct = oracle.step(X, y, **RULE, dropout=dropout, seed=3, step=8)
    Value(n * loss.exact, n * loss.error).holds(sums.loss[0])
    assert sums.correct[0] == correct
    oracle.velocity.holds(model.velocity)
    oracle.params.holds(model.params)
    moved = np.abs(oracle.params.exact - before)
    assert np.median(oracle.params.error) < 1e-3 * np.median(moved)


@pytest.mark.parametrize("batch_size", [5, 32, 130])
def test_several_steps_with_momentum_and_weight_decay(batch_size):
    # In one call, the last batch smaller than the others, rows in an order of their own.
    model = network()
    n = 3 * batch_size + 2
    X, y = batch(model, n + 10)
    rows = np.random.default_rng(6).permutation(n + 10)[:n]
    oracle, a_rule = Net(model), rule(0.3, seed=9)
    sums = train(model, X, y, batch_size, a_rule, rows, step=100)
    total = Value(np.zeros(()), np.zeros(()))
    for number, first in enumerate(range(0, n, batch_size)):
        part = rows[first : first + batch_size]
        loss, _ = oracle.step(X[part], y[part], **RULE, dropout=0.3, seed=9, step=100 + number)
        total = Value(total.exact + len(part) * loss.exact, total.error + len(part) * loss.error)
    assert number == 3 and len(part) == 2
    total.holds(sums.loss[0])
    oracle.velocity.holds(model.velocity)
    oracle.params.holds(model.params)
    # Each step rounds the parameter, which is most of the bound; it still tells the update.
    assert np.median(oracle.params.error) < 1e-2 * np.median(np.abs(oracle.velocity.exact))


def test_steps_in_one_call_are_the_steps_of_several():
    X, y = batch(network(), 96)
    models = [network(), network()]
    train(models[0], X, y, 32, rule(0.3))
    for number in range(3):
        rows = np.arange(32 * number, 32 * number + 32)
        train(models[1], X, y, 32, rule(0.3), rows, step=number)
    np.testing.assert_array_equal(models[0].params, models[1].params)
    np.testing.assert_array_equal(models[0].velocity, models[1].velocity)


def test_weight_decay_alone_shrinks_every_parameter():
    model = network()
    before = model.params.copy()
    X, y = batch(model, 8)
    train(model, X, y, 8, rule(learning_rate=0.0, weight_decay=0.25))
    np.testing.assert_array_equal(model.params, before - np.float32(0.25) * before)
    assert not model.velocity.any()


def test_momentum_alone_carries_every_parameter():
    model = network()
    before = model.params.copy()
    model.start_momentum()[:] = 1
    X, y = batch(model, 8)
    train(model, X, y, 8, rule(learning_rate=0.0, momentum=0.5, weight_decay=0.0))
    np.testing.assert_array_equal(model.velocity, np.float32(0.5))
    np.testing.assert_array_equal(model.params, before + np.float32(0.5))


@pytest.mark.parametrize("batch_size", [5, 32, 128, 130])
def test_threads_do_not_change_a_bit(batch_size):
    # Of 128 the last batch has 16: the lanes that a second thread takes forward are all padding.
    X, y = batch(network(), 400)
    results = []
    for threads in (1, 2, 3, 4):
        model = network()
        sums = train(model, X, y, batch_size, rule(0.3, seed=1), threads=threads)
        gradient, more = np.full_like(model.params, np.nan), engine.metrics()
        with model.new_engine(400, threads) as runner:
            runner.gradient(gradient, rule(0.3, seed=2), X, y, np.arange(400), 5, more)
        results.append((model.params, model.velocity, sums.loss, sums.correct, gradient, more.loss))
    assert np.isfinite(results[0][4]).all()
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_team_that_comes_and_goes_does_not_change_a_bit(monkeypatch):
    X, y = batch(network(), 400)
    crews = []

    class Whimsical:
        """One step a turn, by the team and by its first member in turn."""

        def __init__(self, size):
            self.size = self.members = size

        def units(self, most):
            return min(most, 1)

        def took(self, seconds):
            assert seconds > 0
            crews.append(self.members)
            self.members = 1 if self.members > 1 else self.size

    reference = network()
    sums = train(reference, X, y, 32, rule(0.3, seed=1))
    monkeypatch.setattr(engine, "Governor", Whimsical)
    model = network()
    changing = train(model, X, y, 32, rule(0.3, seed=1), threads=3)
    assert crews == [3, 1] * 6 + [3]
    np.testing.assert_array_equal(reference.params, model.params)
    np.testing.assert_array_equal(reference.velocity, model.velocity)
    np.testing.assert_array_equal(sums.loss, changing.loss)


@pytest.mark.parametrize("n", [5, 300])
def test_a_layer_swept_in_slices_takes_the_step_of_the_dense_network(n, monkeypatch):
    monkeypatch.setattr(engine, "_SLICE_BYTES", 512)
    monkeypatch.setattr(engine, "_SLICE_CONNECTIONS", 1)
    X, y = batch(network(), n)
    results = []
    for threads in (1, 2):
        model = network()
        with model.new_engine(n, threads) as runner:
            work = runner._now()[1][threads]
        assert work.forward_slices.max() > 1
        assert work.backward_slices[0] > 1
        assert work.backward_slices[1:].max() > 1
        oracle = Net(model)
        sums = train(model, X, y, n, rule(0.3, seed=3), step=8, threads=threads)
        oracle.step(X, y, **RULE, dropout=0.3, seed=3, step=8)
        oracle.velocity.holds(model.velocity)
        results.append((model.params, model.velocity, sums.loss))
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a, b)


def test_more_threads_than_neurons():
    results = []
    for threads in (1, 4):
        model = network((2, 1, 3, 2), 1.0)
        X, y = batch(model, 20)
        train(model, X, y, 8, rule(0.3), threads=threads)
        results.append(model.params)
    np.testing.assert_array_equal(*results)


def test_the_gradient_leaves_the_model_alone():
    model = network()
    X, y = batch(model, 32)
    model.start_momentum()[:] = 1
    before = model.params.copy()
    model.loss_and_gradient(X, y, dropout=0.3)
    np.testing.assert_array_equal(model.params, before)
    assert (model.velocity == 1).all()


def test_both_uses_of_the_kernels_agree():
    # The fused step from rest, without decay, moves the parameters by -eta times the gradient.
    model = network()
    X, y = batch(model, 100)
    _, gradient = model.loss_and_gradient(X, y, dropout=0.3, seed=0, step=2)
    train(model, X, y, 100, rule(0.3, momentum=0.0, weight_decay=0.0, learning_rate=0.5), step=2)
    exact = Net(network()).loss_and_gradient(X, y, 0.3, 0, 2)[1]
    assert np.all(np.abs(model.velocity + 0.5 * gradient) <= exact.error)


def test_the_momentum_step_over_flat_vectors_is_the_same_rule():
    rng = np.random.default_rng(2)
    w, v, g = rng.standard_normal((3, 1000)).astype(np.float32)
    eta, mu, decay = (float(np.float32(x)) for x in RULE.values())
    new_v = added(scaled(given(v), mu, 1), scaled(given(g), -eta, 1), 1)
    new_w = added(added(given(w), new_v, 1), scaled(given(w), -decay, 1), 1)
    out = np.empty_like(w)
    kernels.momentum_step(w, v, g, out, *(np.float32(x) for x in RULE.values()))
    new_v.holds(v)
    new_w.holds(w)
    np.testing.assert_array_equal(out, w)


# --- the noise of dropout -------------------------------------------------------------------------


def test_mix_is_splitmix():
    rng = np.random.default_rng(0)
    for a, b in rng.integers(0, 2**64, (100, 2), np.uint64):
        assert int(kernels.mix(a, b)) == mix(a, b)
    assert int(kernels.mix(np.uint64(3), 0)) == mix(3, 0)


def test_dropped_neurons_pass_nothing():
    # One hidden layer, weights to the output all 1, activations all 1: a logit counts the kept.
    n, hidden, rate = 100, 40, 0.3
    model = SparseMLP.from_scipy(
        [np.zeros((hidden, 3)), np.eye(2, hidden)], [np.ones(hidden), np.zeros(2)]
    )
    X, y = batch(model, n)
    _, gradient = model.loss_and_gradient(X, y, dropout=rate, seed=5, step=6)
    # The bias gradient of a hidden neuron that feeds nobody is 0, of the first two it is the mean
    # of d over the samples that kept it.
    Net(model).loss_and_gradient(X, y, rate, 5, 6)[1].holds(gradient)
    np.testing.assert_array_equal(gradient[model.nnz + 2 : model.nnz + hidden], 0)
    assert (gradient[model.nnz : model.nnz + 2] != 0).all()
