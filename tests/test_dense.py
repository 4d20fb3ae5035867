"""The dense baseline against the float64 oracle, the sparse network of density 1, and the loop."""

import numpy as np
import oracle
import pytest
from threadpoolctl import threadpool_limits

from sparsecore import checkpoint, datasets, experiment
from sparsecore.compiled.engine import metrics
from sparsecore.compiled.kernels import Rule
from sparsecore.config import TrainConfig
from sparsecore.paper.training import dense
from sparsecore.provenance import loaded_blas
from sparsecore.train import Trainer

SIZES = (11, 13, 9, 4)
RATE, MOMENTUM, DECAY = 0.05, 0.9, 0.01


def twins(activation="all-relu"):
    """Return a sparse network of density 1 and the dense one with the same parameters."""
    sparse = oracle.network(SIZES, density=1.0, activation=activation)
    config = TrainConfig(hidden=SIZES[1:-1], activation=activation, alpha=0.6)
    twin = dense.DenseMLP(config, SIZES[0], SIZES[-1], seed=0)
    twin.params[:] = sparse.params
    return sparse, twin


def rule(dropout, seed=5):
    values = (np.float32(v) for v in (RATE, MOMENTUM, DECAY, dropout))
    return Rule(*values, np.uint64(seed))


@pytest.mark.parametrize("rows", [16, 1000])  # in parts and as a whole
@pytest.mark.parametrize("activation", ["relu", "leaky-relu", "all-relu"])
def test_logits_against_oracle(activation, rows, monkeypatch):
    sparse, model = twins(activation)
    monkeypatch.setattr(dense, "_PREDICT_ROWS", rows)
    X, _ = oracle.batch(sparse, 50)
    oracle.Net(sparse).logits(X).holds(model.decision_function(X))


@pytest.mark.parametrize("activation", ["relu", "leaky-relu", "all-relu"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_steps_against_oracle(activation, dropout):
    sparse, model = twins(activation)
    net, sums = oracle.Net(sparse), metrics()
    engine = dense.DenseEngine(model, 16, threads=1)
    params, before = model.params, model.params.copy()
    losses, correct = 0.0, 0
    for step, n in enumerate((16, 16, 5)):  # an epoch's last batch is smaller
        X, y = oracle.batch(sparse, n, seed=step)
        engine.train(rule(dropout), X, y, np.arange(n), 16, step, sums)
        loss, hits = net.step(X, y, RATE, MOMENTUM, DECAY, dropout, 5, step)
        net.params.holds(model.params)
        net.velocity.holds(model.velocity)
        losses, correct = losses + n * loss.exact, correct + hits
    assert sums.loss[0] == pytest.approx(losses, rel=1e-5)
    assert sums.correct[0] == correct
    assert model.params is params and np.shares_memory(model.layers(params)[0][0], params)
    assert (params != before).mean() > 0.9


def test_an_epoch_is_the_sparse_one_of_density_1():
    config = TrainConfig(
        hidden=SIZES[1:-1], density=1.0, zeta=0.0, batch_size=8, epochs=2, learning_rate=0.02
    )
    sparse, model = twins()
    X, y = oracle.batch(sparse, 60)
    with Trainer(sparse, config, seed=3) as a, Trainer(model, config, seed=3) as b:
        for _ in range(config.epochs):
            first, second = a.run_epoch(X, y), b.run_epoch(X, y)
            assert a.change_topology() == b.change_topology() == {"pruned": 0, "replaced": 0}
            assert first["train_accuracy"] == second["train_accuracy"]
            assert first["loss"] == pytest.approx(second["loss"], rel=1e-5)
    # 16 steps apart, each of which may add some tens of roundings: the oracle bounds single steps.
    np.testing.assert_allclose(model.params, sparse.params, rtol=0, atol=16 * 64 * oracle.U)


def test_run_keeps_the_contract_of_the_sparse_run():
    data = datasets.load("digits")
    config = TrainConfig(
        hidden=(30, 20), epochs=3, batch_size=32, activation="relu", zeta=0.0, epsilon=5
    )
    model, result = dense.run(data, config, seed=1)
    _, sparse = experiment.run(data, config, seed=1)
    assert result.keys() == sparse.keys()
    with threadpool_limits(1):
        assert result["provenance"]["blas"] == loaded_blas()
    assert [e.keys() for e in result["epochs"]] == [e.keys() for e in sparse["epochs"]]
    assert result["config"] == sparse["config"]
    assert result["nnz_start"] == result["nnz_end"] == 64 * 30 + 30 * 20 + 20 * 10
    logits = model.decision_function(data.standardized().X_test)
    hits = logits.argmax(axis=1) == data.y_test
    assert result["test_accuracy"] == hits.mean() > 0.8
    assert result["weights_sha256"] == dense.run(data, config, seed=1)[1]["weights_sha256"]
    assert result["weights_sha256"] != dense.run(data, config, seed=2)[1]["weights_sha256"]


def test_a_damaged_checkpoint_leads_to_the_one_before(tmp_path):
    data, path = datasets.load("digits").limited(200), tmp_path / "run.npz"
    config = TrainConfig(hidden=(8,), epochs=3, zeta=0.0)
    _, whole = dense.run(data, config, checkpoint_path=path)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.warns(
        checkpoint.CheckpointWarning, match="falls back to .*previous, the checkpoint before it"
    ):
        _, again = dense.run(data, config, checkpoint_path=path, resume=True)
    assert again["weights_sha256"] == whole["weights_sha256"]
    with pytest.raises(ValueError, match="belongs to a run with seed 0, not 1"):
        dense.run(data, config, seed=1, checkpoint_path=path, resume=True)


@pytest.mark.parametrize(
    ("init", "limit"), [("he_uniform", (6 / 600) ** 0.5), ("xavier", (6 / 640) ** 0.5)]
)
def test_initial_weights_are_those_of_the_rule(init, limit):
    config = TrainConfig(hidden=(40,), init=init)
    model = dense.DenseMLP(config, 600, 10, seed=0)
    (first, bias), _ = model.layers(model.params)
    assert first.shape == (40, 600)
    assert 0.999 * limit < np.abs(first).max() <= limit
    assert not bias.any()
    again = dense.DenseMLP(config, 600, 10, seed=0)
    np.testing.assert_array_equal(model.params, again.params)


def test_inputs_that_do_not_fit_are_refused():
    model = twins()[1]
    with pytest.raises(ValueError, match=r"X: expected shape \(n, 11\), got \(2, 3\)"):
        model.decision_function(np.zeros((2, 3)))
