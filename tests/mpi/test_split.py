"""Layers split over ranks: the same network, the same results to rounding."""

import numpy as np
import pytest

from sparsecore.extreme import run
from sparsecore.extreme.budget import lanes_for, plan
from sparsecore.extreme.config import ExtremeConfig
from sparsecore.extreme.network import TiledMLP

SIZES = (600, 1500, 1300, 900, 3)


def samples(seed):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((4, SIZES[0]), np.float32), rng.integers(SIZES[-1], size=4)


def test_a_split_network_trains_as_a_whole_one(comm):
    with (
        TiledMLP(SIZES, epsilon=3, alpha=0.3, seed=4) as whole,
        TiledMLP(SIZES, epsilon=3, alpha=0.3, seed=4, comm=comm) as ranks,
    ):
        parts = comm.allgather([layer.nnz for layer in ranks.layers])
        assert np.sum(parts, axis=0).tolist() == [layer.nnz for layer in whole.layers]
        for number in range(5):
            X, y = samples(number)
            expected = whole.step(X, y, 0.3, 0.9, 0.001)
            found = ranks.step(X, y, 0.3, 0.9, 0.001)
            if number == 0:
                assert (found == expected).all(), "nothing has been summed over ranks yet"
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
        for number, layer in enumerate(ranks.layers):
            full, own = whole.layers[number], layer.grid
            first = full.tiles.start[own.first * own.across]
            same = slice(first, first + layer.nnz)
            assert (layer.tiles.columns == full.tiles.columns[same]).all()
            np.testing.assert_allclose(
                layer.tiles.weights, full.tiles.weights[same], rtol=1e-4, atol=1e-5
            )
        if comm.size > 1:
            # In a step, three times all hidden activations, but for a rank's own.
            values = 3 * lanes_for(4) * sum(SIZES[1:-1]) * (1 - 1 / comm.size)
            sent = np.mean(comm.allgather(ranks.message_bytes))
            assert sent == pytest.approx(5 * 4 * values, rel=0.02)


def test_the_plan_counts_every_array_of_a_rank(comm):
    sizes = (600, 30_000, 30_000, 2)
    planned = plan(sizes, 2.5, 4, 1, comm.size)
    with TiledMLP(sizes, epsilon=2.5, comm=comm) as net:
        assert net.nnz == pytest.approx(planned.expected[comm.rank], rel=0.02)
        taken = net.nbytes + net._workspace.nbytes + net._whole.nbytes
        taken += sum(z.nbytes for z in net._z[1:])
    assert taken == pytest.approx(planned.n_bytes[comm.rank], rel=0.02)


def test_a_run_over_ranks(comm):
    config = ExtremeConfig(neurons=3000, hidden_layers=2, steps=12, zeta=0)
    result = run.run(config, comm=comm)
    assert result["ranks"] == len(result["peak_bytes"]) == comm.size
    assert len(result["losses"]) == 12 and np.isfinite(result["losses"]).all()
    assert result["test"]["n"] == 100
    hidden = sum(config.sizes[1:-1])
    each = np.mean(comm.allgather(result["message_bytes"]))
    expected = 3 * 4 * lanes_for(4) * hidden * (1 - 1 / comm.size)
    assert each == pytest.approx(expected, rel=0.02)
    with TiledMLP(config.sizes, epsilon=config.epsilon) as whole:
        assert result["nnz"] == whole.nnz
    with pytest.raises(ValueError, match="zeta: expected 0 for layers split over ranks"):
        run.run(ExtremeConfig(neurons=3000), comm=comm)
    with pytest.raises(ValueError, match="zeta: expected 0 for layers split over ranks"):
        run.plan(ExtremeConfig(neurons=3000), 1, comm)
    with pytest.raises(ValueError, match="checkpoint: a split network cannot be saved yet"):
        run.run(config, comm=comm, checkpoint_path="run.npz")
