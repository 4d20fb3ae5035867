"""Extreme networks: tiles drawn and evolved, sweeps, budget, runs, checkpoints."""

import io
import json
import mmap
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import oracle
import psutil
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare, kstest, uniform

from sparsecore import files, topology
from sparsecore.__main__ import main
from sparsecore.checkpoint import CheckpointError, CheckpointWarning
from sparsecore.compiled.lanes import Width
from sparsecore.compiled.team import Team
from sparsecore.extreme import budget, run, sweeps, tiles
from sparsecore.extreme.budget import OverBudgetError
from sparsecore.extreme.config import ExtremeConfig
from sparsecore.extreme.network import TiledMLP, read_checkpoint
from sparsecore.extreme.run import Stream
from sparsecore.extreme.tiles import Tiles
from sparsecore.mlp import SparseMLP

SIZES = (600, 1500, 1300, 900, 3)
ALPHA = 0.3
MAP_NORESERVE = 0x4000 if sys.platform == "linux" else 0  # of mmap from Python 3.13 on


@pytest.fixture(scope="module")
def team():
    with Team(1) as alone:  # nothing depends on threads, see below, and those that wait spin
        yield alone


def arrays(start):
    nnz = int(start[-1])
    kinds = np.uint16, np.uint16, np.float32, np.float32
    return Tiles(start.copy(), *(np.zeros(nnz, kind) for kind in kinds))


def drawn(n_in, n_out, density, team, seed=0, lanes=4):
    """Draw a layer; return its grid and tiles."""
    grid = tiles.grid(n_in, n_out, lanes)
    counts = np.random.default_rng(seed).binomial(tiles.cells(grid), density)
    layer = arrays(tiles.pointers(counts))
    tiles.draw(grid, layer, density, np.uint64(seed + 1), team)
    return grid, layer


def numbered(grid, layer):
    """Return each connection's cell in the whole layer; check the structure on the way."""
    tile = np.repeat(np.arange(grid.down * grid.across), np.diff(layer.start))
    rows = tile // grid.across * grid.side_out + layer.rows
    columns = tile % grid.across * grid.side_in + layer.columns
    assert layer.start[0] == 0 and layer.start[-1] == len(tile)
    assert (layer.rows < grid.side_out).all() and (layer.columns < grid.side_in).all()
    assert (rows < grid.n_out).all() and (columns < grid.n_in).all()
    within = tile * 2**40 + layer.rows.astype(np.int64) * grid.side_in + layer.columns
    assert (np.diff(within) > 0).all(), "ascending, and no connection twice"
    return rows * np.int64(grid.n_in) + columns


def network(seed=0, threads=1, alpha=ALPHA, **options):
    return TiledMLP(SIZES, epsilon=3, alpha=alpha, seed=seed, threads=threads, **options)


def to_scipy(layer, values):
    """Return a layer with these values of its connections, shape (n_out, n_in)."""
    grid = layer.grid
    places = np.divmod(numbered(grid, layer.tiles), grid.n_in)
    return sp.csr_array((values, places), shape=(grid.n_out, grid.n_in))


def to_mlp(net, alpha=ALPHA):
    """Return the same network in the library's ordinary form."""
    weights = [to_scipy(layer, layer.tiles.weights) for layer in net.layers]
    biases = [layer.biases for layer in net.layers]
    model = SparseMLP.from_scipy(weights, biases, activation="all-relu", alpha=alpha)
    parts = [to_scipy(layer, layer.tiles.velocity).data for layer in net.layers]
    model.start_momentum()[:] = np.concatenate([*parts, *(m.bias_velocity for m in net.layers)])
    return model


def rates(net, learning_rate):
    """Return the step size of each weight and bias: divided by its layer's mean fan-in."""
    fan_in = [layer.nnz / layer.grid.n_out for layer in net.layers]
    counts = [layer.nnz for layer in net.layers] + [layer.grid.n_out for layer in net.layers]
    return np.repeat([learning_rate / max(1.0, k) for k in 2 * fan_in], counts)


def samples(n=4, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, SIZES[0]), np.float32), rng.integers(SIZES[-1], size=n)


# --- selection -----------------------------------------------------------------------------------


@given(st.lists(st.floats(-2, 2, width=32)), st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.99]))
def test_the_cut_is_where_sorting_puts_it(values, zeta):
    weights = np.array(values, np.float32)
    with Team(1) as alone:
        cut, ties, dropped = tiles.weakest(weights, zeta, alone)
    total = 0
    for sign, own in enumerate((weights[~(weights < 0)], weights[weights < 0])):
        n_drop = int(zeta * len(own))
        total += n_drop
        if len(own) and n_drop < len(own):
            magnitude = cut[sign : sign + 1].view(np.float32)[0]
            ordered = np.sort(np.abs(own))
            assert magnitude == ordered[n_drop]
            assert (ordered < magnitude).sum() + ties[sign] == n_drop
    assert dropped == total


# --- drawing -------------------------------------------------------------------------------------


@given(st.integers(1, 1500), st.integers(1, 1500), st.sampled_from([0.001, 0.05, 0.24, 0.6, 1]))
@settings(max_examples=30)
def test_a_drawn_layer_is_valid(n_in, n_out, density):
    with Team(1) as alone:
        grid, layer = drawn(n_in, n_out, density, alone)
    numbered(grid, layer)
    fan_in = np.bincount(numbered(grid, layer) // n_in, minlength=n_out)
    limits = np.sqrt(6 / fan_in[numbered(grid, layer) // n_in])
    assert (np.abs(layer.weights) <= limits * (1 + 1e-6)).all()
    if density == 1:
        assert len(layer.weights) == n_in * n_out


@pytest.mark.parametrize("density", [0.02, 0.6])
def test_every_connection_is_as_likely(team, density):
    n_in, n_out, rounds = 5, 300, 400
    hits = np.zeros(n_in * n_out)
    for seed in range(rounds):
        hits[numbered(*drawn(n_in, n_out, density, team, seed))] += 1
    expected = rounds * density
    assert abs(hits.mean() - expected) < 5 * (expected / len(hits)) ** 0.5
    assert hits.var() == pytest.approx(expected * (1 - density), rel=0.2)
    blocks = hits.reshape(-1, 50).sum(axis=1)
    assert chisquare(blocks).pvalue > 1e-3


def test_weights_have_the_variance_of_the_neurons_own_fan_in(team):
    grid, layer = drawn(3000, 2000, 0.002, team)
    rows = numbered(grid, layer) // 3000
    fan_in = np.bincount(rows, minlength=2000)
    assert (layer.weights**2 * fan_in[rows]).mean() == pytest.approx(2, rel=0.05)


# --- evolution -----------------------------------------------------------------------------------


@given(
    st.integers(10, 900), st.integers(1, 900), st.sampled_from([0.01, 0.1, 0.25]),
    st.sampled_from([0.0, 0.3, 0.9]), st.booleans(),
)  # fmt: skip
@settings(max_examples=40)
def test_evolution(n_in, n_out, density, zeta, ties):
    with Team(1) as alone:
        grid, layer = drawn(n_in, n_out, density, alone)
        if ties:
            np.copyto(layer.weights, np.round(layer.weights * 2) / 2)
        layer.velocity[:] = np.arange(1, len(layer.velocity) + 1)
        before, cell = Tiles(*(a.copy() for a in layer)), numbered(grid, layer)
        rng = np.random.default_rng(1)
        spare = arrays(layer.start)
        replaced = tiles.evolve(grid, layer, spare, zeta, np.uint64(9), rng, alone)
    after = numbered(grid, layer)
    kept = layer.velocity > 0
    assert replaced == len(after) - kept.sum() == topology.weakest(before.weights, zeta).sum()
    place = layer.velocity[kept].astype(int) - 1
    assert (after[kept] == cell[place]).all()
    assert (layer.weights[kept] == before.weights[place]).all()
    gone = np.ones(len(cell), bool)
    gone[place] = False
    if ties:  # which of the equal ones go is a matter of order
        for sign in (before.weights < 0, ~(before.weights < 0)):
            own = np.abs(before.weights)
            if (gone & sign).any() and (~gone & sign).any():
                assert own[gone & sign].max() <= own[~gone & sign].min()
    else:
        assert (gone == topology.weakest(before.weights, zeta)).all()
    assert not np.isnan(layer.weights).any()


def test_new_places_are_uniform_over_the_vacant_ones(team):
    n_in, n_out, rounds = 40, 15, 200
    hits = np.zeros(n_in * n_out)
    grid, begin = drawn(n_in, n_out, 0.3, team, 5)
    before, weak = numbered(grid, begin), topology.weakest(begin.weights, 0.5)
    for seed in range(rounds):
        layer = Tiles(*(part.copy() for part in begin))
        rng = np.random.default_rng(seed)
        tiles.evolve(grid, layer, arrays(layer.start), 0.5, np.uint64(seed), rng, team)
        new = numbered(grid, layer)[layer.velocity == 0]
        hits[np.setdiff1d(new, before[~weak])] += 1
    possible = np.setdiff1d(np.arange(n_in * n_out), before[~weak])
    assert hits.sum() == hits[possible].sum() == rounds * weak.sum()
    assert chisquare(hits[possible]).pvalue > 1e-3


# --- sweeps --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "alpha, n, batch_size",
    [(ALPHA, n, size) for n, size in ((4, 4), (3, 4), (1, 4), (11, 16))]
    + [(0.0, 3, 4), (-ALPHA, 11, 16)],
)
def test_against_dense_numpy(alpha, n, batch_size):
    X, y = samples(n)
    with network(alpha=alpha, batch_size=batch_size, threads=2) as net:
        for layer in net.layers:
            layer.biases[:] = np.random.default_rng(2).normal(0, 0.2, len(layer.biases))
        reference = oracle.Net(to_mlp(net, alpha))
        reference.logits(X).holds(net.logits(X))
        _, gradient, _ = reference.loss_and_gradient(X, y)
        eta = rates(net, 0.5)
        net.step(X, y, learning_rate=0.5, momentum=0.0)
        velocity = to_mlp(net).velocity
        error = gradient.error + oracle.gamma(4) * gradient.size
        oracle.Value(-eta * gradient.exact, eta * error).holds(velocity)


def test_an_evolved_network_has_fresh_weights_and_computes_what_dense_numpy_does():
    X, _ = samples()
    with network() as net:
        for layer in net.layers:
            layer.tiles.velocity[:] = 1
        replaced = net.evolve(0.3, 1)
        grown = [layer.tiles.velocity == 0 for layer in net.layers]
        assert replaced == sum(new.sum() for new in grown)
        assert [new.any() for new in grown] == [True] * (len(grown) - 1) + [False]
        for layer, new in zip(net.layers[:-1], grown[:-1], strict=True):
            rows = numbered(layer.grid, layer.tiles) // layer.grid.n_in
            share = layer.tiles.weights * np.sqrt(np.bincount(rows)[rows] / 6)
            assert kstest(share[new], uniform(-1, 2).cdf).pvalue > 1e-3
        oracle.Net(to_mlp(net)).logits(X).holds(net.logits(X))


def test_frozen_hidden_layers_stay_as_they_are():
    X, y = samples()
    with network() as net:
        before = [layer.tiles.weights.copy() for layer in net.layers]
        net.step(X, y, 0.5, frozen=True)
        same = [
            np.array_equal(w, layer.tiles.weights)
            for w, layer in zip(before, net.layers, strict=True)
        ]
    assert same == [True] * (len(same) - 1) + [False]


def test_steps_follow_the_rule_and_the_ordinary_kernels():
    X, y = samples()
    with network() as net:
        eta, nets = rates(net, 0.5), [to_mlp(net)]
        nets[0].start_momentum()
        for _ in range(2):
            before = nets[-1]
            _, gradient = before.loss_and_gradient(X, y)
            net.step(X, y, 0.5, 0.9, 0.01)
            after = to_mlp(net)
            velocity = 0.9 * before.velocity - eta * gradient
            np.testing.assert_allclose(after.velocity, velocity, rtol=1e-4, atol=1e-7)
            expected = 0.99 * before.params + after.velocity
            np.testing.assert_allclose(after.params, expected, rtol=1e-5, atol=1e-7)
            nets.append(after)


@pytest.mark.parametrize("threads", [2, 3])
def test_nothing_depends_on_threads(threads):
    X, y = samples()
    with network() as one, network(threads=threads) as many:
        assert one.sha256() == many.sha256()
        for net in (one, many):
            net.step(X, y, 0.3)
            net.evolve(0.3, 1)
            net.step(X, y, 0.3)
        assert one.sha256() == many.sha256()


def test_strips_change_nothing_but_the_order_of_sums():
    X, y = samples()
    with network() as whole, network() as cut:
        for layer in cut.layers[:-1]:
            layer.cut(layer.nnz // 2)
            assert len(layer.row_strips) > 1 and len(layer.column_strips) > 1
        assert (whole.logits(X) == cut.logits(X)).all(), "a neuron's sum is in one strip"
        whole.step(X, y, 0.3)
        cut.step(X, y, 0.3)
        for a, b in zip(whole.layers, cut.layers, strict=True):
            np.testing.assert_array_equal(a.tiles.weights, b.tiles.weights)


def test_inputs_of_a_wrong_shape_are_refused():
    with network() as net:
        for shape in ((5, 600), (4, 601), (0, 600)):
            with pytest.raises(ValueError, match=r"X: expected shape \(1 to 4, 600\)"):
                net.logits(np.zeros(shape, np.float32))


@pytest.mark.parametrize("y", [[0, 1, 3, 0], [0, -1, 0, 0], [0, 1]])
def test_labels_out_of_range_are_refused(y):
    X = np.zeros((4, 600), np.float32)
    with network() as net, pytest.raises(ValueError, match="y: expected"):
        net.step(X, np.array(y), 0.1)


def test_a_change_that_was_interrupted_is_not_gone_on_from(tmp_path):
    X, y = np.zeros((4, 600), np.float32), np.zeros(4, int)
    with network() as net:
        uses = {
            "step": lambda progress=int: net.step(X, y, 0.1, progress=progress),
            "evolve": lambda progress=int: net.evolve(0.3, 1, progress),
            "logits": lambda: net.logits(X),
            "save": lambda: net.save(tmp_path / "net.npz", {}),
            "sha256": net.sha256,
        }
        for change, calls in (("step", 5), ("evolve", 1)):  # a step's first four are forward
            seen = []

            def interrupt(n, seen=seen, calls=calls):
                seen.append(n)
                if len(seen) == calls:
                    raise KeyboardInterrupt

            with pytest.raises(KeyboardInterrupt):
                uses[change](interrupt)
            for use in uses.values():
                with pytest.raises(RuntimeError, match="half changed: restore its checkpoint"):
                    use()
            net.restored()
        with pytest.raises(ValueError, match="zeta: expected a number"):
            net.evolve(1.5, 1)
        for use in uses.values():
            use()


# --- where integers end --------------------------------------------------------------------------


def test_coordinates_reach_the_last_of_16_bits(team):
    grid = tiles.grid(2**20, 2**20, 4)
    assert (grid.side_out, grid.side_in) == (2**16, 2**15)
    assert tiles.cells(grid).max() == 2**31, "more than an int32 holds"
    grid, layer = drawn(2**20, 2**20, 3e-7, team)
    cell = numbered(grid, layer)
    assert cell.max() > 2**39
    assert layer.rows.max() > 2**16 - 200 and layer.columns.max() > 2**15 - 200


def test_activations_beyond_the_reach_of_32_bits():
    """Neurons whose activations lie behind 2**31 floats, in memory that is never touched else."""
    n_in = 2**29 + 2**15
    try:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE
        memory = mmap.mmap(-1, 16 * n_in, flags=flags)
    except (AttributeError, OSError):
        pytest.skip("the system lends no 8 GiB of addresses")
    z = np.frombuffer(memory, np.float32)
    grid = tiles.grid(n_in, 1, 4)
    start = np.zeros(grid.across + 1, np.int64)
    start[-1] = 1
    layer = Tiles(
        start,
        np.zeros(1, np.uint16),
        np.array([2**15 - 1], np.uint16),
        np.array([2], np.float32),
        np.zeros(1, np.float32),
    )
    z[-4:] = 1, 2, -3, 4
    slots, out = np.zeros(64, np.float32), np.zeros(4, np.float32)
    aligned = slots[-slots.ctypes.data % 64 // 4 :][:4]
    strip = sweeps.Strip(0, 1, 0, grid.across, np.zeros(1, np.int64))
    with Team(1) as alone:
        head = Width(4), grid, layer, strip
        alone.walk(sweeps.send_inputs, *head, z, np.float32(1), aligned)
        alone.walk(sweeps.receive_inputs, *head, aligned, np.zeros(1, np.float32), out)
    assert out.tolist() == [2, 4, -6, 8]


# --- data ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 3, 5])
def test_odd_batches_favour_no_class(size):
    stream = Stream(0, 1.0, n_features=20)
    labels = np.concatenate([stream.batch(number, size)[1] for number in range(400)])
    # What is left of each batch is a fair coin: six standard deviations.
    assert abs(labels.mean() - 0.5) < 6 * 0.5 / (np.sqrt(400) * size)


def test_batches_are_balanced_standardised_and_repeatable():
    stream = Stream(0, 1.0, n_features=400)
    X, y = stream.batch(3, 2000)
    assert (np.bincount(y) == 1000).all()
    assert np.abs(X.mean(axis=0)).max() < 0.12 and np.abs(X.std(axis=0) - 1).max() < 0.1
    again = Stream(0, 1.0, n_features=400).batch(3, 2000)
    assert (again[0] == X).all() and (again[1] == y).all()
    for other in (stream.batch(4, 2000), stream.batch(3, 2000, held_out=True)):
        assert not (other[0] == X).any(axis=1).any()
    apart = np.abs(X[y == 0].mean(axis=0) - X[y == 1].mean(axis=0)) > 0.7
    assert 30 < apart.sum() < 70, "half of the informative quarter tells the classes apart"


# --- budget --------------------------------------------------------------------------------------


def test_the_plan_counts_every_array():
    sizes = (600, 30_000, 30_000, 2)
    plan = budget.plan(sizes, 2.5, 4, 1)
    with TiledMLP(sizes, epsilon=2.5) as net:
        assert net.nnz == pytest.approx(plan.connections, rel=0.02)
        n_bytes = sum(a.nbytes for _, a in net.arrays()) + sum(z.nbytes for z in net._z)
        n_bytes += len(net._workspace) + net._sums.nbytes
        biases = sum(m.biases.nbytes + m.bias_velocity.nbytes for m in net.layers)
        assert plan.items["biases and velocities, 8 bytes each"] == biases
    planned = plan.total - plan.items["program"]
    assert n_bytes == pytest.approx(planned, rel=0.06)
    assert "60,000 hidden neurons" in plan.table() and "in all" in plan.table()


def test_a_plan_is_printed_and_nothing_else_is_done(capsys, monkeypatch):
    monkeypatch.delattr(run, "run")
    assert main(["extreme", *QUICK, "--plan"]) == 0
    assert "in all" in capsys.readouterr().out
    assert main(["extreme", *QUICK, "--plan", "--memory-limit", "1MB"]) == 1
    assert "--memory-limit: expected at least" in capsys.readouterr().err


def test_more_ranks_than_rows_of_tiles_are_refused():
    with pytest.raises(ValueError, match=r"ranks: expected at most 1, .* got 2; start fewer"):
        tiles.spread([tiles.grid(10, 10, 4)], 2)


def test_a_plan_above_the_limit_is_refused():
    plan = budget.plan((600, 30_000, 2), 2.5, 4, 1)
    plan.check(2**40)
    with pytest.raises(OverBudgetError, match=r"--memory-limit: expected at least 0\.\d\d GiB"):
        plan.check(2**20)


def test_the_rats_plan_is_below_22_gib():
    config = ExtremeConfig(neurons=200_000_000)
    plan = budget.plan(config.sizes, config.epsilon, 4, 2)
    assert plan.total < 22 * budget.GIB
    assert config.sizes == (65_536, *[20_000_000] * 10, 2)


@pytest.mark.parametrize(
    "text, expected", [("22GiB", 22 * 2**30), ("500 MB", 5e8), ("1e9", 10**9), ("2.5k", 2560)]
)
def test_sizes_in_bytes(text, expected):
    assert budget.parse_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "GiB", "-1", "many", "1XB", "nan", "0", "1e999"])
def test_what_is_no_size(text):
    with pytest.raises(ValueError, match="expected a size such as 22GiB"):
        budget.parse_bytes(text)


# --- checkpoint ----------------------------------------------------------------------------------


def test_a_checkpoint_comes_back_bit_by_bit(tmp_path):
    path, X_y = tmp_path / "net.npz", samples()
    with network() as net, network(seed=1, empty=True) as twin:
        net.step(*X_y, 0.3)
        net.save(path, {"step": 1, "loss": 0.1})
        assert read_checkpoint(path) == {"step": 1, "loss": 0.1}
        with pytest.raises(CheckpointError, match="not a whole checkpoint"):
            read_checkpoint(path, twin)  # another seed, other numbers of connections
    with network() as net, network(empty=True) as twin:
        read_checkpoint(path, twin)
        net.step(*X_y, 0.3)
        assert twin.sha256() == net.sha256()
        for one in (net, twin):
            one.evolve(0.3, 2)
            one.step(*X_y, 0.3)
        assert twin.sha256() == net.sha256()


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_checkpoint_cut_short(tmp_path, share):
    path = tmp_path / "net.npz"
    with network() as net:
        net.save(path, {})
        path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
        with pytest.raises(CheckpointError, match=r"net\.npz: not a whole checkpoint"):
            read_checkpoint(path, net)


def test_a_flipped_bit_in_an_array_is_found(tmp_path):
    path = tmp_path / "net.npz"
    with network() as net:
        net.save(path, {})
        whole = bytearray(path.read_bytes())
        for place in np.random.default_rng(0).integers(2000, len(whole) - 5000, size=20):
            whole[place] ^= 1
            path.write_bytes(whole)
            with pytest.raises(CheckpointError, match="not a whole checkpoint"):
                read_checkpoint(path, net)
            whole[place] ^= 1


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("1.start", lambda a: np.where(np.arange(len(a)) == 1, -1, a)),
        ("1.start", lambda a: np.where(np.arange(len(a)) == 1, 10**12, a)),
        ("1.start", lambda a: a + 1),
        ("1.start", lambda a: a[::-1].copy()),
        ("1.rows", lambda a: np.full_like(a, 2**16 - 1)),
        ("1.columns", lambda a: np.full_like(a, 2**16 - 1)),
        ("1.columns", lambda a: a[::-1].copy()),
        ("1.rows", np.zeros_like),
        ("1.weights", lambda a: a * np.nan),
        ("0.velocity", lambda a: a + np.inf),
        ("0.biases", lambda a: a * np.nan),
        ("0.bias_velocity", lambda a: a - np.inf),
    ],
)
def test_a_checkpoint_whose_contents_are_no_network(tmp_path, name, change):
    path = tmp_path / "net.npz"
    with network() as net:
        net.save(path, {})
        with zipfile.ZipFile(path) as archive:
            members = {member: archive.read(member) for member in archive.namelist()}
        content = io.BytesIO()
        kept = np.load(io.BytesIO(members[f"{name}.npy"]))
        np.save(content, change(kept).astype(kept.dtype))
        with zipfile.ZipFile(path, "w") as archive:
            for member, bytes_ in (members | {f"{name}.npy": content.getvalue()}).items():
                archive.writestr(member, bytes_)
        with pytest.raises(CheckpointError, match=r"net\.npz: not a whole checkpoint of an ext"):
            read_checkpoint(path, net)
        with pytest.raises(RuntimeError, match="restore its checkpoint"):
            net.logits(samples()[0])


def test_of_two_checkpoints_the_older_one_is_used_if_an_array_is_damaged(tmp_path, monkeypatch):
    path, X_y = tmp_path / "net.npz", samples()
    with network() as net, network(empty=True) as twin:
        digests = []
        for step in range(3):
            net.save(path, {"step": step})
            digests.append(net.sha256())
            net.step(*X_y, 0.3)
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        with pytest.warns(CheckpointWarning, match=r"net\.npz\.previous"):
            assert read_checkpoint(path, twin) == {"step": 1}
        assert twin.sha256() == digests[1]
        monkeypatch.setattr(shutil, "disk_usage", lambda handle: SimpleNamespace(free=0))
        net.save(path, {"step": 3})
        net.save(path, {"step": 4})
        assert read_checkpoint(path, twin) == {"step": 4}
        assert read_checkpoint(files.previous(path)) == {"step": 3}


# --- runs ----------------------------------------------------------------------------------------

QUICK = "--neurons", "2e4", "--hidden-layers", "3", "--threads", "1"


def test_a_run_learns_within_its_budget():
    words = "extreme", "--neurons", "1e6", "--memory-limit", "1GiB", "--json"
    done = subprocess.run(
        [sys.executable, "-m", "sparsecore", *words], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert abs(result["peak_bytes"] - result["budget_bytes"]) < 4 * result["nnz"], "no array more"
    assert "activations, 16 bytes per neuron" in done.stderr
    assert len(result["losses"]) == len(result["step_seconds"]) == 50
    assert result["trend"]["tau"] < 0 and result["trend"]["p"] < 0.05
    assert result["test"]["n"] == 100 and result["test"]["p"] < 1e-3
    assert len(result["evolve_seconds"]) == 1


def test_a_run_does_not_go_on_from_another_s_checkpoint(tmp_path, capsys):
    words = "extreme", *QUICK, "--steps", "1", "--checkpoint", str(tmp_path / "run.npz"), "--resume"
    assert main([*words]) == 0
    assert main([*words, "--seed", "1"]) == 1
    assert "belongs to a run with seed 0, not 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words, complaint",
    [
        (("--memory-limit", "1MB"), "--memory-limit: expected at least"),
        (("--memory-limit", "much"), "expected a size such as 22GiB"),
        (("--batch", "65"), "batch_size: expected an integer from 1 to 64, got 65"),
        (("--epsilon", "0"), "epsilon: expected a positive number, got 0.0"),
        (("--epsilon", "1e4"), "use `python -m sparsecore train`"),
        (("--steps", "0"), "steps: expected an integer of at least 1, got 0"),
        (("--zeta", "1"), "zeta: expected a number in [0, 1), got 1.0"),
        (("--resume",), "--resume: expected --checkpoint FILE"),
        (("--checkpoint-every", "5"), "--checkpoint-every: expected --checkpoint FILE"),
        (("--plan", "--json"), "--json: not with --plan"),
        (
            ("--neurons", "2"),
            "neurons: expected an integer of at least 3, one per hidden layer, got 2",
        ),
        (("--steps", "1.5"), "expected a whole number, such as 50 or 2e8, got '1.5'"),
    ],
)
def test_mistakes_are_named_before_any_work(words, complaint, capsys, monkeypatch):
    monkeypatch.delattr(run, "_phase")
    try:
        status = main(["extreme", *QUICK, *words])
    except SystemExit as end:  # argparse's own
        status = end.code
    out, err = capsys.readouterr()
    assert status in (1, 2) and complaint in err and not out


@pytest.mark.parametrize("how", [{"held_out": 0}, {"steps": 1}])  # in training, and after it
def test_a_run_that_diverges_says_so(how):
    config = ExtremeConfig(neurons=3000, hidden_layers=2, learning_rate=1e20, **how)
    with pytest.raises(FloatingPointError, match="after step 1; a lower --learning-rate"):
        run.run(config)


def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(tmp_path):
    path = tmp_path / "run.npz"
    config = ExtremeConfig(neurons=3000, hidden_layers=2, steps=9, evolve_every=4, held_out=4)
    how = {"checkpoint_path": path, "checkpoint_every": 3}
    whole = run.run(config, **how)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.warns(CheckpointWarning, match="previous"):
        again = run.run(config, **how, resume=True)
    assert (again["weights_sha256"], again["losses"]) == (whole["weights_sha256"], whole["losses"])
    with pytest.raises(ValueError, match="checkpoint_every: expected an integer of at least 1"):
        run.run(config, checkpoint_path=path, checkpoint_every=0)

    # The checkpoint before may be another run's, of the same step.
    other = replace(config, learning_rate=0.5)
    run.run(other, checkpoint_path=files.previous(path), checkpoint_every=9)
    path.write_bytes(content)
    with pytest.warns(CheckpointWarning), pytest.raises(ValueError, match="belongs to a run with"):
        run.run(config, **how, resume=True)


def test_a_disk_without_room_for_a_checkpoint_is_refused_before_the_first_step(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    monkeypatch.setattr(run, "_step", None)
    config = ExtremeConfig(neurons=3000, hidden_layers=2, steps=4)
    with pytest.raises(OSError, match=r"expected a disk with [\d,]+ bytes free: .*run.npz"):
        run.run(config, checkpoint_path=tmp_path / "run.npz")


def test_a_disk_needs_room_for_the_last_two_checkpoints(tmp_path, monkeypatch):
    config, path = ExtremeConfig(neurons=3000, hidden_layers=2, steps=2), tmp_path / "run.npz"
    run.run(config, checkpoint_path=path, checkpoint_every=1)
    assert files.previous(path).exists()
    free = path.stat().st_size * 3 // 2
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    run.run(config, checkpoint_path=path, checkpoint_every=1)  # in place of those
    monkeypatch.setattr(run, "_step", None)
    with pytest.raises(OSError, match=r"expected a disk with [\d,]+ bytes free: .*new.npz"):
        run.run(config, checkpoint_path=tmp_path / "new.npz")


def test_a_frozen_run_trains_its_output_layer_alone(tmp_path):
    path = tmp_path / "run.npz"
    config = ExtremeConfig(neurons=3000, hidden_layers=2, steps=4, evolve_every=1, frozen=True)
    found = run.run(config, checkpoint_path=path, checkpoint_every=2)
    before, after = np.load(files.previous(path)), np.load(path)
    same = [np.array_equal(before[f"{n}.weights"], after[f"{n}.weights"]) for n in range(3)]
    assert same == [True, True, False] and not found["evolve_seconds"]


def test_trends():
    assert run.trend(np.linspace(1, 0, 20).tolist())["p"] < 1e-9
    assert run.trend(np.linspace(0, 1, 20).tolist())["p"] > 0.99
    assert run.trend([1.0, 0.5]) is None
    assert run.trend([0.7] * 5) is None, "no signal: the losses are all ln 2"


def test_layers_share_the_neurons():
    sizes = ExtremeConfig(neurons=1000, hidden_layers=3, epsilon=0.1).sizes
    assert sum(sizes[1:-1]) == 1000
    assert all(abs(a - b) <= 1 for a, b in pairwise(sizes[1:-1]))


# --- what a run is told ---


@pytest.mark.parametrize("change", [
    {"alpha": 0.3}, {"separation": 3.0}, {"momentum": 0.5}, {"weight_decay": 0.1}, {"epsilon": 2.0},
    {"learning_rate": 0.1}, {"zeta": 0.3}, {"evolve_every": 1}, {"batch_size": 8},
])  # fmt: skip
def test_every_hyperparameter_of_a_run_is_heeded(change):
    config = ExtremeConfig(neurons=3000, hidden_layers=2, steps=4, evolve_every=2, held_out=0)
    one, other = run.run(config), run.run(replace(config, **change))
    assert one["weights_sha256"] != other["weights_sha256"]


def test_the_seed_is_the_network_s_and_the_samples(monkeypatch):
    still = ExtremeConfig(
        neurons=3000, hidden_layers=2, steps=1, learning_rate=0, weight_decay=0, held_out=0
    )
    assert run.run(still)["weights_sha256"] != run.run(still, seed=1)["weights_sha256"]
    seen = []
    monkeypatch.setattr(run, "Stream", lambda seed, *rest: seen.append(seed) or Stream(seed, *rest))
    run.run(still, seed=1)
    assert seen == [1]


def test_layers_and_evolutions_draw_numbers_of_their_own():
    news = []
    for step in (1, 2):
        with TiledMLP((600, 600, 600, 600, 3), epsilon=3) as net:
            layers = net.layers[:3]
            places = [numbered(layer.grid, layer.tiles) for layer in layers]
            counts = {tuple(np.diff(layer.tiles.start)) for layer in layers}
            for layer in layers:
                layer.tiles.velocity[:] = 1
            net.evolve(0.3, step)
            news.append([numbered(m.grid, m.tiles)[m.tiles.velocity == 0] for m in layers])
    assert len(counts) == 3
    pairs = [(places[0], places[1]), (places[1], places[2]), *zip(*news, strict=True)]
    for one, other in pairs:  # about 1 % by chance
        assert len(np.intersect1d(one, other)) < 0.05 * len(one)


def test_without_a_limit_free_memory_and_the_process_s_own_are_one(monkeypatch):
    plan, own = budget.plan((600, 30_000, 2), 2.5, 4, 1), psutil.Process().memory_info().rss
    monkeypatch.setattr(budget, "free_memory", lambda: 0)
    with pytest.raises(OverBudgetError, match="free memory: expected at least"):
        plan.check(None)
    monkeypatch.setattr(budget, "free_memory", lambda: plan.total - own // 2)
    plan.check(None)


def test_checkpoints_are_as_frequent_as_the_command_says(tmp_path):
    path = tmp_path / "run.npz"
    words = "--steps", "4", "--held-out", "0", "--checkpoint", str(path), "--checkpoint-every", "2"
    assert main(["extreme", *QUICK, *words]) == 0
    assert files.previous(path).exists(), "after two steps; by default there is one at the end"
