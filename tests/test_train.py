"""The trainer: epochs against the oracle, the schedule, and that a seed determines a run."""

import json
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
import scipy.sparse as sp
from oracle import Net, batch

from sparsecore import datasets, experiment, seeds, train
from sparsecore.config import TrainConfig
from sparsecore.extreme.config import ExtremeConfig
from sparsecore.mlp import SparseMLP
from sparsecore.samples import check_finite
from sparsecore.seeds import Purpose
from sparsecore.train import Trainer, new_model
from sparsecore.wasap.plan import Plan

N_FEATURES, N_CLASSES = 20, 4


def config(**changes):
    values = {"hidden": (30, 25), "epsilon": 4, "batch_size": 32, "epochs": 4, "zeta": 0.3}
    return TrainConfig(**(values | changes))


def data(n=203, seed=0):
    """Clusters: one centre a class, with noise."""
    rng = np.random.default_rng(seed)
    y = rng.integers(N_CLASSES, size=n)
    centres = 2 * rng.standard_normal((N_CLASSES, N_FEATURES))
    return (centres[y] + rng.standard_normal((n, N_FEATURES))).astype(np.float32), y


def fit(settings, X=None, y=None, *, seed=5, threads=1, epochs=None):
    """Train for some epochs and return the trainer, closed, with its history."""
    if X is None:
        X, y = data()
    model = new_model(settings, N_FEATURES, N_CLASSES, seed)
    history = []
    with Trainer(model, settings, seed=seed, threads=threads) as trainer:
        for _ in range(settings.epochs if epochs is None else epochs):
            history.append(trainer.run_epoch(X, y) | trainer.change_topology())
    return trainer, history


def assert_same(one, other):
    np.testing.assert_array_equal(one.model.network.indptr, other.model.network.indptr)
    np.testing.assert_array_equal(one.model.network.indices, other.model.network.indices)
    np.testing.assert_array_equal(one.model.params, other.model.params)
    np.testing.assert_array_equal(one.model.velocity, other.model.velocity)


# --- hyperparameters ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        (
            "hidden",
            [(10, 0), (2.5,), ("a",), "", b"ab", ((1, 2), 3), iter([3])],
            "integers of at least 1",
        ),
        ("epsilon", [0, -1.0, np.nan, np.inf, "20", 10**400], "a positive number"),
        ("density", [0, 1.5, -0.1, np.nan], r"a number in \(0, 1\]"),
        ("activation", ["tanh", "", None], "one of relu, leaky-relu, all-relu"),
        ("init", ["glorot", None], "one of he_uniform, xavier, normal"),
        ("alpha", [np.nan, np.inf, "0.6", 1e39, -(10**400)], "a finite float32 number"),
        ("learning_rate", [0, -0.1, np.nan, np.inf, None, 1e39], "a positive number"),
        ("momentum", [1, -0.1, 1.5, np.nan], r"a number in \[0, 1\)"),
        ("weight_decay", [1, -0.1, np.nan], r"a number in \[0, 1\)"),
        ("dropout", [1, 1 - 1e-9, 1e300, -0.1, np.nan], r"a number in \[0, 1\)"),
        ("zeta", [1, -0.1, 1.5, np.nan], r"a number in \[0, 1\)"),
        ("batch_size", [0, -5, 1.5, True], "an integer of at least 1"),
        ("epochs", [-1, 0.5, None], "an integer of at least 0"),
        ("prune_from", [0, -1, 1.5], "an epoch of at least 1, or None"),
        ("prune_every", [0, 2.5], "an integer of at least 1"),
        ("prune_percentile", [-1, 101, np.nan], r"a number in \[0, 100\]"),
    ],
)
def test_a_value_out_of_its_range_is_named(name, values, expected):
    for value in values:
        with pytest.raises(ValueError, match=f"{name}: expected {expected}, got ") as error:
            TrainConfig(**{name: value})
        assert repr(value) in str(error.value)
        with pytest.raises(ValueError, match=name):
            TrainConfig().with_values(**{name: value})


def test_the_limits_themselves_are_allowed():
    TrainConfig(
        hidden=(), density=1, momentum=0, weight_decay=0, dropout=0, zeta=0, epochs=0,
        batch_size=np.int64(1), learning_rate=np.float16(0.01), prune_from=1, prune_every=1,
        prune_percentile=100,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("values", "epochs"),
    [
        ({}, []),
        ({"prune_from": 3, "prune_every": 2}, [3, 5, 7, 9]),
        ({"prune_from": 1, "prune_every": 4}, [1, 5, 9]),
        ({"prune_from": 9, "prune_every": 10}, [9]),
        ({"prune_from": 10}, []),  # after the last epoch nothing changes
        ({"prune_from": 50}, []),
    ],
)
def test_pruning_is_due(values, epochs):
    settings = TrainConfig(epochs=10, **values)
    assert [e for e in range(1, 20) if settings.prunes_after(e)] == epochs


def test_a_new_model_is_what_config_and_seed_say():
    settings = config(activation="leaky-relu", alpha=0.2, init="xavier")
    model = new_model(settings, N_FEATURES, N_CLASSES, 3)
    assert model.sizes == (20, 30, 25, 4)
    assert (model.activation, model.alpha, model.init) == ("leaky-relu", 0.2, "xavier")
    again = new_model(settings, N_FEATURES, N_CLASSES, 3)
    other = new_model(settings, N_FEATURES, N_CLASSES, 4)
    assert model.weights_sha256() == again.weights_sha256() != other.weights_sha256()
    assert new_model(config(density=1.0), N_FEATURES, N_CLASSES, 0).density == 1


# --- seeds ----------------------------------------------------------------------------------------


def test_every_purpose_rank_and_epoch_has_its_own_numbers():
    addresses = [(0, p, r, e) for p in Purpose for r in range(3) for e in range(3)]
    addresses.append((1, Purpose.SHUFFLE, 0, 0))
    draws = {tuple(seeds.generator(*a).integers(2**63, size=4)) for a in addresses}
    assert len(draws) == len(addresses)
    for address in addresses[:5]:
        one, other = seeds.generator(*address), seeds.generator(*address)
        np.testing.assert_array_equal(one.random(5), other.random(5))
    assert len({int(seeds.key(s, Purpose.DROPOUT, r)) for s in range(5) for r in range(5)}) == 25


# --- epochs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [32, 64])
def test_an_epoch_is_the_oracles_steps_in_shuffled_order(batch_size):
    settings = config(batch_size=batch_size, weight_decay=0.01)
    X, y = data(80)
    model = new_model(settings, N_FEATURES, N_CLASSES, 5)
    net, step = Net(model), 0
    key = int(seeds.key(5, Purpose.DROPOUT))
    with Trainer(model, settings, seed=5) as trainer:
        record = trainer.run_epoch(X, y)
    order = seeds.generator(5, Purpose.SHUFFLE).permutation(len(y))
    correct, loss, error = 0, 0.0, 0.0
    for first in range(0, len(y), batch_size):
        part = order[first : first + batch_size]
        here, right = net.step(X[part], y[part], 0.01, 0.9, 0.01, settings.dropout, key, step)
        loss, error = loss + len(part) * here.exact, error + len(part) * here.error
        correct, step = correct + right, step + 1
    assert abs(record["loss"] - loss / len(y)) <= error / len(y) < 1e-3
    assert record["train_accuracy"] == correct / len(y)
    net.params.holds(model.params)
    net.velocity.holds(model.velocity)
    assert (trainer.epoch, trainer.step) == (1, step)


def test_training_learns():
    X, y = data(1203)
    trainer, history = fit(config(epochs=15, learning_rate=0.02), X[:1000], y[:1000])
    # The clusters are 6 standard deviations apart on average: nearest centre makes no mistakes.
    assert history[-1]["loss"] < history[0]["loss"]
    assert trainer.evaluate(X[1000:], y[1000:])["accuracy"] > 0.98


def test_evaluation_is_that_of_the_dense_network():
    trainer, _ = fit(config(), epochs=1)
    X, y = data(90, seed=3)
    result = trainer.evaluate(X, y)
    loss, _, correct = Net(trainer.model).loss_and_gradient(X, y)
    assert abs(result["loss"] - loss.exact) <= loss.error
    assert result["accuracy"] == correct / len(y)
    assert result == trainer.evaluate(sp.csr_array(X), y)


def test_every_epoch_has_an_order_of_its_own():
    # The trainer's second epoch is not its first one: same model, same data, no dropout.
    settings, results = config(dropout=0.0), []
    X, y = data()
    for epoch in (0, 1):
        model = new_model(settings, N_FEATURES, N_CLASSES, 5)
        with Trainer(model, settings, seed=5) as trainer:
            trainer.restore({"epoch": epoch, "step": 0, "seconds": trainer.seconds})
            trainer.run_epoch(X, y)
        results.append(model.weights_sha256())
    assert results[0] != results[1]


def test_a_rank_has_streams_of_its_own():
    X, y = data()
    results = []
    for rank in (0, 1, 1):
        model = new_model(config(), N_FEATURES, N_CLASSES, 5)
        with Trainer(model, config(), seed=5, rank=rank) as trainer:
            trainer.run_epoch(X, y)
            trainer.change_topology()
        results.append(model.weights_sha256())
    assert results[0] != results[1] == results[2]


def test_progress_is_reported_for_every_sample():
    X, y = data()
    calls = []
    with Trainer(new_model(config(), N_FEATURES, N_CLASSES, 5), config(), seed=5) as trainer:
        record = trainer.run_epoch(X, y, lambda n, loss: calls.append((n, loss)))
    assert sum(n for n, _ in calls) == len(y)
    assert calls[-1][1] == record["loss"]


def test_the_clock_runs_for_each_kind_of_work():
    trainer, _ = fit(config(), epochs=2)
    X, y = data()
    assert trainer.seconds["train"] > 0 and trainer.seconds["evolve"] > 0
    assert trainer.seconds["evaluate"] == 0
    trainer.evaluate(X, y)
    assert trainer.seconds["evaluate"] > 0


# --- the seed determines the run ------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [5, 32, 100])
def test_threads_do_not_change_a_bit(batch_size):
    settings = config(batch_size=batch_size, prune_from=1, prune_every=2, prune_percentile=15)
    runs = [fit(settings, threads=threads) for threads in (1, 2, 3)]
    assert any(h["pruned"] for h in runs[0][1]) and any(h["replaced"] for h in runs[0][1])
    for trainer, history in runs[1:]:
        assert_same(trainer, runs[0][0])
        assert history == runs[0][1]


def test_the_seed_determines_everything_and_matters():
    one, same, other = fit(config())[0], fit(config())[0], fit(config(), seed=6)[0]
    assert_same(one, same)
    assert one.model.weights_sha256() != other.model.weights_sha256()


def test_how_work_is_sliced_does_not_change_a_bit(monkeypatch):
    # The trainer hands the kernels as many steps as fit into some milliseconds.
    runs = []
    for seconds in (0.0, 1e9):
        monkeypatch.setattr(train, "_CALL_SECONDS", seconds)
        runs.append(fit(config(batch_size=8))[0])
    assert_same(*runs)


def test_sparse_and_dense_inputs_train_to_the_same_bits():
    X, y = data()
    X[np.random.default_rng(0).random(X.shape) < 0.7] = 0
    dense = fit(config(), X, y)[0]
    for form in (sp.csr_array, sp.csc_array, sp.coo_matrix):
        assert_same(fit(config(), form(X), y)[0], dense)


def test_a_run_goes_on_where_it_stood():
    settings = config(prune_from=2, prune_every=1)
    whole, history = fit(settings)
    X, y = data()
    for stop in (1, 2, 3):
        first, _ = fit(settings, epochs=stop)
        with Trainer(first.model.copy(), settings, seed=5) as second:
            second.restore(first.progress())
            rest = []
            while second.epoch < settings.epochs:
                rest.append(second.run_epoch(X, y) | second.change_topology())
        assert_same(second, whole)
        assert rest == history[stop:]
        assert second.progress()["step"] == whole.step


# --- topology -------------------------------------------------------------------------------------


def test_the_topology_evolves_after_every_epoch_but_the_last():
    settings = config(epochs=3)
    trainer, history = fit(settings)
    replaced = [h["replaced"] for h in history]
    assert replaced[0] > 0 and replaced[1] > 0 and replaced[2] == 0
    fresh = new_model(settings, N_FEATURES, N_CLASSES, 5)
    assert trainer.model.nnz == fresh.nnz
    assert not np.array_equal(trainer.model.network.indices, fresh.network.indices)


def test_zeta_of_zero_keeps_the_topology():
    trainer, history = fit(config(zeta=0.0))
    fresh = new_model(config(), N_FEATURES, N_CLASSES, 5)
    np.testing.assert_array_equal(trainer.model.network.indices, fresh.network.indices)
    assert not any(h["replaced"] for h in history)


def test_pruning_shrinks_for_good():
    settings = config(epochs=6, prune_from=2, prune_every=2, prune_percentile=30)
    trainer, history = fit(settings)
    assert [h["pruned"] > 0 for h in history] == [False, True, False, True, False, False]
    start = new_model(settings, N_FEATURES, N_CLASSES, 5).nnz
    assert trainer.model.nnz == start - sum(h["pruned"] for h in history)
    assert len(trainer.model.velocity) == len(trainer.model.params)


def test_everything_pruned_still_trains():
    # Without connections to the hidden neurons only the output layer is left to learn.
    settings = config(prune_from=1, prune_every=1, prune_percentile=100, epochs=4)
    hashes = []
    for epochs in (2, 3, 4):
        trainer, history = fit(settings, epochs=epochs)
        assert trainer.model.nnz == trainer.model[2].nnz
        assert all(np.isfinite(h["loss"]) for h in history)
        hashes.append(trainer.model.weights_sha256())
    assert len(set(hashes)) == 3, "the model goes on learning after a pruning that removed nothing"


def test_a_pruning_that_removes_nothing_changes_nothing():
    still = config(zeta=0.0, epochs=5)
    plain, _ = fit(still)
    pruned, history = fit(
        still.with_values(prune_from=2, prune_every=1, prune_percentile=0.0), epochs=5
    )
    assert not any(h["pruned"] for h in history)
    np.testing.assert_array_equal(plain.model.params, pruned.model.params)


def test_empty_neurons_count_in_the_percentile_if_told():
    how = {"epochs": 6, "zeta": 0.0, "prune_from": 2, "prune_every": 2, "prune_percentile": 30}
    own, released = (fit(config(**how, prune_counts_empty=told))[1] for told in (False, True))
    # Of all neurons the lowest 30 % are those that the first pruning left empty.
    assert own[3]["pruned"] > 0 == released[3]["pruned"]
    # Older results and checkpoints know nothing of the choice.
    assert "prune_counts_empty" not in config().to_dict()
    assert config(prune_counts_empty=True).to_dict()["prune_counts_empty"] is True


def test_numpy_numbers_become_plain_ones():
    settings = TrainConfig(
        hidden=np.array([3, 4]), batch_size=np.int64(8), epsilon=np.float32(2), epochs=np.int32(3),
        prune_from=np.int16(2), learning_rate=np.float64(0.5), augment=np.False_,
    )  # fmt: skip
    assert json.loads(json.dumps(settings.to_dict())) == settings.to_dict()
    assert TrainConfig(**json.loads(json.dumps(settings.to_dict()))) == settings
    assert settings.hidden == (3, 4) and settings.epsilon == 2.0
    plan = Plan("wassp", warmup=np.int64(3), keep_rate=np.True_)
    large = ExtremeConfig(neurons=np.int64(1000), frozen=np.False_)
    assert json.loads(json.dumps([vars(plan), vars(large)])) == [vars(plan), vars(large)]
    assert json.dumps(experiment.identity(datasets.load("digits"), settings, np.int64(3))["seed"])


def test_weights_that_diverge_in_the_last_step_are_an_error():
    X, y = data()
    with pytest.raises(FloatingPointError, match=r"weights became .* epoch 1; a lower learning_r"):
        fit(config(learning_rate=3e38, batch_size=len(y), epochs=1), 1000 * X, y)


@pytest.mark.parametrize("form", [np.asarray, sp.csr_array])
def test_slices_are_bounded(form, monkeypatch):
    monkeypatch.setattr(train, "DENSE_VALUES", 40 * N_FEATURES)
    settings = config(batch_size=8, epochs=30)
    monkeypatch.setattr(train, "_CALL_SECONDS", 1e9)  # any slice is a quick one
    X, y = data()
    handed = []
    with Trainer(new_model(settings, N_FEATURES, N_CLASSES, 5), settings) as trainer:
        original = trainer._engine.train

        def counted(rule, inputs, labels, rows, *rest):
            handed.append(len(rows))
            original(rule, inputs, labels, rows, *rest)

        monkeypatch.setattr(trainer._engine, "train", counted)
        for _ in range(4):
            trainer.run_epoch(form(X[:60]), y[:60])
        if form is sp.csr_array:  # no more rows are dense at a time
            assert handed[:3] == [8, 16, 32] and max(handed) == 40
        else:  # the rest of an epoch is not a reason for longer ones
            assert handed == [8, 16, 32, 4, 60, 60, 60]


@pytest.mark.parametrize("hidden", [(), (1,), (1, 1), (3, 1, 3)])
def test_small_networks_train_and_evolve(hidden):
    trainer, _ = fit(config(hidden=hidden, density=1.0))
    assert np.isfinite(trainer.model.params).all()
    assert trainer.model.density == 1


# --- errors ---------------------------------------------------------------------------------------


def test_a_diverging_loss_is_an_error_that_says_when():
    with pytest.raises(
        FloatingPointError, match=r"loss became .* in epoch \d.*learning_rate.*1000"
    ):
        fit(config(learning_rate=1000.0, epochs=50))


def test_logits_that_overflow_in_the_evaluation_are_an_error():
    X, y = data(32)
    settings = config(epochs=1)
    model = new_model(settings, N_FEATURES, N_CLASSES, 5)
    model.params[:] = 1e30  # finite, and so is the training loss that was computed before
    with (
        Trainer(model, settings, seed=5) as trainer,
        pytest.raises(FloatingPointError, match="logits became"),
    ):
        trainer.evaluate(1e10 * X, y)


@pytest.mark.parametrize(
    ("X", "y", "complaint"),
    [
        (np.zeros((5, 19)), np.zeros(5, int), r"X: expected shape \(n, 20\), got \(5, 19\)"),
        (np.zeros((5, 20)), np.zeros(4, int), r"y: expected shape \(5,\), .* got \(4,\)"),
        (np.zeros((5, 20)), np.full(5, 4), "y: expected class indices from 0 to 3, got 4"),
        (np.zeros((0, 20)), np.zeros(0, int), "X: expected at least one row to train on, got none"),
    ],
)
def test_what_does_not_fit_is_refused(X, y, complaint):
    with Trainer(new_model(config(), N_FEATURES, N_CLASSES, 5), config(), seed=5) as trainer:
        before = trainer.model.weights_sha256()
        with pytest.raises(ValueError, match=complaint):
            trainer.run_epoch(X, y)
        assert trainer.model.weights_sha256() == before


def test_what_a_trainer_is_made_of_cannot_be_replaced():
    """Buffers are as large as the batch that it was made for."""
    with Trainer(new_model(config(), N_FEATURES, N_CLASSES, 5), config()) as trainer:
        for name in ("model", "config", "seed", "threads", "rank"):
            with pytest.raises(AttributeError, match=f"{name}: cannot be replaced; make a new Tra"):
                setattr(trainer, name, getattr(trainer, name))
        trainer.epoch, trainer.step = 3, 7
        assert trainer.progress() | {"seconds": 0} == {"epoch": 3, "step": 7, "seconds": 0}


def test_a_trainer_follows_its_model():
    """Whoever changes the topology or drops the velocity, steps are taken on what there is."""
    X, y = data()
    networks = []
    for outside in (False, True):
        settings = config(zeta=0.0)
        with Trainer(new_model(settings, N_FEATURES, N_CLASSES, 5), settings, seed=5) as trainer:
            trainer.run_epoch(X, y)
            if outside:
                trainer.model.evolve(0.3, np.random.default_rng(0))
                trainer.model.velocity = None
                trainer.run_epoch(X, y)
            else:
                twin = trainer.model.copy()
                twin.evolve(0.3, np.random.default_rng(0))
                twin.velocity = None
                with Trainer(twin, settings, seed=5) as other:
                    other.restore(trainer.progress())
                    other.run_epoch(X, y)
                trainer = other
            networks.append(trainer)
    assert_same(*networks)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_check_finite_names_the_place(value):
    X = np.zeros((10, 4), np.float32)
    X[7, 2] = value
    X[8, 1] = np.nan
    with pytest.raises(
        ValueError, match=f"training data: .* got {value} at row 7, feature 2 .2 in"
    ):
        check_finite(X, "training data")
    with pytest.raises(
        ValueError, match=f"X: expected finite numbers, got {value} at stored value"
    ):
        check_finite(sp.csr_array(X))


def test_check_finite_accepts_what_is_finite():
    check_finite(np.full((10, 10), 1e308))  # whose sum is not
    check_finite(np.array([[1e308, -1e308], [1e308, 0]]))
    check_finite(np.full((3, 3), 255, np.uint8))
    check_finite(sp.csr_array((3, 3)))
    check_finite(np.zeros((0, 3)))


# --- memory ---------------------------------------------------------------------------------------


def test_an_epoch_allocates_one_layers_velocities_and_nothing_else_for_connections():
    model = SparseMLP.erdos_renyi((500, 500, 500, 10), density=0.5, random_state=0)
    settings = config(hidden=(500, 500), density=0.5, batch_size=8)
    X, y = batch(model, 64)
    with Trainer(model, settings) as trainer:
        trainer.run_epoch(X, y)
        tracemalloc.start()
        trainer.run_epoch(X, y)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    # The order of the samples, the generator, NumPy's buffer for a sum, and some Python objects.
    assert peak < 4 * max(layer.nnz for layer in model) + 100_000
    assert 100_000 < model.nnz


MEASURE = """
import numpy as np
from sparsecore.mlp import SparseMLP
from sparsecore.config import TrainConfig
from sparsecore.train import Trainer

def memory(field):
    with open("/proc/self/status") as status:
        return 1024 * next(int(line.split()[1]) for line in status if line.startswith(field))

def forget_peak():
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")

def run(width, depth, density):
    forget_peak()
    before = memory("VmRSS")
    config = TrainConfig(hidden=(width,) * depth, density=density, batch_size=8, epochs=2)
    X, y = np.zeros((16, width), np.float32), np.arange(16) % 2
    with Trainer(SparseMLP.erdos_renyi((width, *config.hidden, 2), density=density), config) as t:
        making = memory("VmHWM") - before
        forget_peak()
        t.run_epoch(X, y)
        epoch = memory("VmHWM") - before
        t.change_topology()
        t.run_epoch(X, y)
        t.evaluate(X, y)
        return t.model.nnz, making, epoch, memory("VmHWM") - before

run(40, 2, 0.5)  # compiles
print(*run(2000, 12, 0.125))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's /proc")
def test_peak_memory_of_training():
    done = subprocess.run(
        [sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True
    )
    nnz, making, epoch, evolved = map(int, done.stdout.split())
    n_layers = 13
    # Beside 20 bytes a connection and 24 a neuron: activations, 4 bytes and 2 bits a neuron and
    # sample; up to a huge page for each of the model's six arrays; some for the allocator.
    rest = 24 * 2000 * n_layers + 5 * 8 * 2000 * n_layers + 6 * 2**21 + 2**22
    assert nnz > 5_900_000
    assert epoch <= 20 * nnz + rest
    # While it is laid out, weights and indices are there twice.
    assert making <= 28 * nnz + rest
    # Evolution makes the new network beside the old, so that no interrupt finds half of it, and
    # needs temporaries for one layer: places and ranks of 8 bytes, what it merges.
    assert evolved <= 40 * nnz + rest + 6 * 2**21 + 100 * nnz / n_layers
