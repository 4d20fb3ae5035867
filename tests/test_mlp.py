"""The model: its gradient by finite differences, its structure, and what changes it."""

import contextlib
import copy
import hashlib
import itertools
import pickle
import re
import tracemalloc

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import SIZES, Net, U, Value, batch, dense, gamma, network

from sparsecore import topology
from sparsecore.mlp import SparseMLP

ACTIVATIONS = ["all-relu", "relu", "leaky-relu"]


def assert_consistent(model):
    """Every layer is valid, and the transposed access tells the same as the rows do."""
    net = model.network
    assert model.nnz == len(net.weights) == sum(layer.nnz for layer in model)
    assert net.biases.base is model.params or np.shares_memory(net.biases, model.params)
    assert model.nnz == 0 or np.shares_memory(net.weights, model.params)
    pointer = 0
    for i, view in enumerate(model):
        topology.check(view.indptr, view.indices, view.n_in)
        assert len(view.indptr) == view.n_out + 1
        weights, support = dense(view)
        out_indptr = net.out_indptr[pointer : pointer + view.n_in + 1]
        part = slice(net.weight_start[i], net.weight_start[i + 1])
        np.testing.assert_array_equal(np.diff(out_indptr), support.sum(axis=0))
        np.testing.assert_array_equal(net.out_indices[part], np.nonzero(support.T)[1])
        np.testing.assert_array_equal(
            view.data[net.out_position[part]].astype(float), weights.T[support.T]
        )
        pointer += view.n_in + 1


# --- gradients by finite differences --------------------------------------------------------------


def moved(net, place, amount):
    """Return a copy of an oracle with one parameter moved."""
    twin = object.__new__(Net)
    twin.__dict__.update(net.__dict__)
    twin.weights, twin.biases = list(net.weights), list(net.biases)
    exact = net.params.exact.copy()
    exact[place] += amount
    twin.params = Value(exact, np.zeros_like(exact))
    return twin


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_oracles_gradient_is_that_of_its_loss(activation, dropout):
    model = network((7, 6, 5, 4, 3), 0.6, activation)
    X, y = batch(model, 4)
    net, h = Net(model), 1e-5
    noise = {"dropout": dropout, "seed": 3, "step": 7}
    _, gradient, _ = net.loss_and_gradient(X, y, **noise)
    _, sums, _ = net.forward(X, **noise)
    signs = [z.exact > 0 for z in sums[:-1]]
    checked = 0
    for place in range(len(model.params)):
        losses, logits = [], []
        for sign in (1, -1):
            other = moved(net, place, sign * h)
            losses.append(other.loss_and_gradient(X, y, **noise)[0].exact)
            there = other.forward(X, **noise)[1]
            # On one side of every kink the logits are affine in a single parameter.
            if any(np.any((z.exact > 0) != s) for z, s in zip(there[:-1], signs, strict=True)):
                break
            logits.append(there[-1].exact)
        else:
            # The loss is then log-sum-exp of affine functions, whose third derivative, a third
            # central moment of their slopes, is at most the cube of the slopes' range; and each
            # loss is rounded in float64.
            slopes = (logits[0] - logits[1]) / (2 * h)
            third = np.mean(np.ptp(slopes, axis=0) ** 3)
            rounding = 64 * np.finfo(float).eps * (1 + max(losses)) / h
            difference = (losses[0] - losses[1]) / (2 * h)
            assert abs(difference - gradient.exact[place]) <= h**2 * third / 6 + rounding
            checked += 1
    assert checked > 0.9 * len(model.params)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("n", [5, 32, 100])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_models_gradient_is_that_of_its_own_loss(activation, n, dropout):
    model = network(activation=activation)
    X, y = batch(model, n)
    noise = {"dropout": dropout, "seed": 11, "step": 2}
    _, gradient = model.loss_and_gradient(X, y, **noise)
    # Along the gradient itself the loss rises fastest, and no component can hide from the others.
    direction = gradient / np.linalg.norm(gradient)
    steps = np.float32(0.01) * direction
    start, losses, exact = model.params.copy(), [], []
    for sign in (1, -1):
        model.params[:] = start + sign * steps
        losses.append(model.loss_and_gradient(X, y, **noise)[0])
        exact.append(Net(model).loss_and_gradient(X, y, **noise)[0])
    model.params[:] = start
    true_steps = ((start + steps).astype(float) - (start - steps).astype(float)) / 2
    h = np.linalg.norm(true_steps)
    true_direction = true_steps / h
    difference = (losses[0] - losses[1]) / (2 * h)
    # Two things make a difference of the model's losses differ from its gradient: the losses' own
    # rounding, bounded by the oracle, and what a finite step sees of curvature and kinks, which is
    # what the exact loss's difference has as well.
    noise_bound = (exact[0].error + exact[1].error) / (2 * h)
    _, exact_gradient, _ = Net(model).loss_and_gradient(X, y, **noise)
    seen = (exact[0].exact - exact[1].exact) / (2 * h) - exact_gradient.exact @ true_direction
    tolerance = noise_bound + abs(seen) + exact_gradient.error @ np.abs(true_direction)
    slope = gradient.astype(float) @ true_direction
    assert abs(difference - slope) <= tolerance
    assert tolerance < 0.05 * slope, "a bound that allowed anything would test nothing"


# --- making and viewing ---------------------------------------------------------------------------


def test_erdos_renyi_has_the_densities_of_its_epsilon():
    sizes, epsilon = (300, 200, 100, 5), 5
    model = SparseMLP.erdos_renyi(sizes, epsilon=epsilon, random_state=0)
    for i in range(len(model)):
        n_in, n_out = sizes[i], sizes[i + 1]
        expected = min(n_in * n_out, epsilon * (n_in + n_out))
        # nnz is binomial; five deviations happen once in two million.
        assert abs(model[i].nnz - expected) <= 5 * np.sqrt(expected)
        assert model[i].density == model[i].nnz / (n_in * n_out)
        assert np.abs(model[i].data).max() <= np.float32(np.sqrt(6 / n_in))
    assert not model.biases.any()
    assert model[2].density == 1, "the output layer's epsilon allows all connections"
    assert_consistent(model)


def test_the_seed_determines_the_network():
    makes = [SparseMLP.erdos_renyi(SIZES, epsilon=3, random_state=s) for s in (1, 1, 2)]
    assert makes[0].weights_sha256() == makes[1].weights_sha256() != makes[2].weights_sha256()


def test_views_are_of_the_flat_vector():
    model = network()
    model.start_momentum()[:] = np.arange(len(model.params))
    start, bias = 0, model.nnz
    for view in model:
        np.testing.assert_array_equal(view.data, model.params[start : start + view.nnz])
        np.testing.assert_array_equal(view.velocity, np.arange(start, start + view.nnz))
        np.testing.assert_array_equal(view.bias, model.params[bias : bias + view.n_out])
        start, bias = start + view.nnz, bias + view.n_out
        weights, support = dense(view)
        np.testing.assert_array_equal(view.fan_in(), support.sum(axis=1))
        np.testing.assert_array_equal(view.fan_out(), support.sum(axis=0))
        np.testing.assert_allclose(view.input_strength(), np.abs(weights).sum(axis=0), rtol=1e-12)
        np.testing.assert_array_equal(view.to_scipy().toarray(), weights)
    assert bias == len(model.params)
    model[1].data[0] = 42
    assert model.params[model[0].nnz] == 42


@pytest.mark.parametrize("layer", [-1, 4, 100])
def test_a_layer_that_is_not_there(layer):
    with pytest.raises(IndexError, match=f"layer: expected 0 to 3, got {layer}"):
        network()[layer]


def test_repr_says_shape_density_nnz_and_bytes():
    model = SparseMLP.from_scipy([np.eye(3, 4), np.ones((2, 3))])
    assert repr(model).startswith("<SparseMLP 4-3-2, all-relu, density 0.5, nnz 9, ")
    assert repr(model).endswith("MiB>")


def test_the_hash_is_of_structure_and_parameters():
    model = network()
    digest = hashlib.sha256()
    for array in (model.network.sizes, model.network.indptr, model.network.indices, model.params):
        digest.update(array.tobytes())
    assert model.weights_sha256() == digest.hexdigest()
    twin = model.copy()
    assert twin.weights_sha256() == model.weights_sha256()
    twin.params[-1] += 1
    assert twin.weights_sha256() != model.weights_sha256()


def test_a_copy_is_independent():
    model = network()
    model.start_momentum()[:] = 1
    twin = model.copy()
    model.params[:] = 0
    model.velocity[:] = 2
    model.evolve(0.5, np.random.default_rng(0))
    reference = network()
    np.testing.assert_array_equal(twin.params, reference.params)
    np.testing.assert_array_equal(twin.network.indices, reference.network.indices)
    assert (twin.velocity == 1).all()
    assert (twin.activation, twin.alpha, twin.init) == (model.activation, model.alpha, model.init)
    assert_consistent(twin)


def test_networks_made_from_a_network_have_its_options():
    options = {"activation": "leaky-relu", "alpha": 0.1, "init": "normal"}
    model = SparseMLP.erdos_renyi((4, 3, 2), random_state=0, **options)
    made = model, model.copy(), model.compact(), SparseMLP.from_scipy(model.to_scipy(), **options)
    assert all(one.options == options for one in made)
    assert model.copy(alpha=0.3).options == {**options, "alpha": 0.3}


@given(st.lists(st.integers(1, 8), min_size=2, max_size=5), st.integers(0, 2**32))
@settings(max_examples=40)
def test_scipy_and_back(sizes, seed):
    rng = np.random.default_rng(seed)
    matrices = [
        sp.random_array((b, a), density=rng.random(), rng=rng, format=fmt).astype(np.float32)
        for a, b, fmt in zip(sizes[:-1], sizes[1:], ["coo", "csc", "csr", "csr"], strict=False)
    ]
    biases = [rng.normal(size=b).astype(np.float32) for b in sizes[1:]]
    model = SparseMLP.from_scipy(matrices, biases, activation="relu")
    assert model.sizes == tuple(sizes)
    assert_consistent(model)
    for matrix, back in zip(matrices, model.to_scipy(), strict=True):
        assert back.shape == matrix.shape and back.nnz == matrix.nnz
        np.testing.assert_array_equal(back.toarray(), matrix.toarray())
    np.testing.assert_array_equal(model.biases, np.concatenate(biases))


def test_from_scipy_keeps_stored_zeros_and_adds_duplicates():
    twice = sp.coo_array(([1.0, 2.0, 0.0], ([0, 0, 1], [1, 1, 0])), shape=(2, 2))
    model = SparseMLP.from_scipy([twice])
    assert model.nnz == 2, "a weight that happens to be zero is still a connection"
    model.to_scipy()[0].data[:] = 7  # a copy
    np.testing.assert_array_equal(model[0].data, [3, 0])


def test_from_scipy_leaves_its_argument_alone():
    arrays = np.array([1.0, 2.0, 3.0]), np.array([2, 0, 0]), np.array([0, 3])
    unsorted = sp.csr_array(tuple(a.copy() for a in arrays), shape=(1, 3))
    model = SparseMLP.from_scipy([unsorted])
    np.testing.assert_array_equal(model[0].data, [5, 1])
    for mine, before in zip(
        (unsorted.data, unsorted.indices, unsorted.indptr), arrays, strict=True
    ):
        np.testing.assert_array_equal(mine, before)
    model.params[:] = 0
    np.testing.assert_array_equal(unsorted.data, arrays[0])


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"epsilon": 0}, "epsilon: expected a positive number, got 0"),
        ({"epsilon": -3.0}, "epsilon: expected a positive number, got -3.0"),
        ({"density": 0.0}, r"density: expected a number in \(0, 1\], got 0.0"),
        ({"density": 1.01}, r"density: expected a number in \(0, 1\], got 1.01"),
        ({"density": 0.5, "epsilon": 2}, "epsilon or density, not both"),
        ({"activation": "gelu"}, "activation: expected one of relu, leaky-relu, all-relu, got 'ge"),
        ({"init": "zeros"}, "init: expected one of he_uniform, xavier, normal, got 'zeros'"),
        ({"alpha": np.nan}, "alpha: expected a finite float32 number, got nan"),
        ({"alpha": np.float16("inf")}, r"alpha: expected a finite float32 number, got np"),
        ({"alpha": 1e39}, r"alpha: expected a finite float32 number, got 1e\+39"),
        ({"init": ["he_uniform"]}, "init: expected one of he_uniform, xavier, normal, got .'he"),
        ({"activation": ["relu"]}, r"activation: expected one of .*, got \['relu'\]"),
        ({"sizes": (5,)}, r"sizes: expected at least an input and an output layer, got \[5\]"),
        ({"sizes": (5, 0, 2)}, r"sizes: expected an integer from 1 to .* got 0"),
        ({"sizes": (5, 2.5, 2)}, r"sizes: expected an integer from 1 to .* got 2.5"),
        ({"sizes": (2**31, 2)}, r"sizes: expected an integer from 1 to 2147483647, got 2147483648"),
    ],
)
def test_a_value_out_of_its_range_is_named(values, complaint):
    with pytest.raises(ValueError, match=complaint):
        SparseMLP.erdos_renyi(values.pop("sizes", (5, 4, 2)), **values)


@pytest.mark.parametrize("X", [np.zeros((3, 36)), np.zeros(37), np.zeros((2, 37, 1))])
def test_the_shape_of_the_inputs_is_checked(X):
    model = network()
    for call in (model.predict, model.predict_proba, model.decision_function):
        with pytest.raises(ValueError, match=r"X: expected shape \(n, 37\), got "):
            call(X)
    with pytest.raises(ValueError, match=r"X: expected shape \(n, 37\), got "):
        model.loss_and_gradient(X, np.zeros(len(X), int))


@pytest.mark.parametrize(
    ("matrices", "complaint"),
    [
        ([], "matrices: expected at least one"),
        ([np.ones(3)], r"matrices: expected at least one, each of shape \(fan_out, fan_in\)"),
        ([np.ones((3, 2)), np.ones((2, 4))], r"shapes \(3, 2\) and \(2, 4\) do not chain"),
        ([np.array([[np.nan, 1.0]])], "matrices: expected finite numbers, got nan"),
        ([np.array([[1e300, 1.0]])], "matrices, biases: expected finite numbers of at most 3.4e"),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow encountered in cast:RuntimeWarning")
def test_matrices_must_chain(matrices, complaint):
    with pytest.raises(ValueError, match=complaint):
        SparseMLP.from_scipy(matrices)


def test_what_is_not_finite_or_no_seed_is_named():
    with pytest.raises(ValueError, match="matrices, biases: expected finite numbers"):
        SparseMLP.from_scipy([np.ones((1, 2))], [np.array([np.nan])])
    with pytest.raises(ValueError, match="random_state: expected an integer of at least 0, got -1"):
        SparseMLP.erdos_renyi((3, 2), random_state=-1)


@pytest.mark.parametrize("lengths", [[1], [3, 1], [2, 3], [5]])
def test_biases_must_fit_the_sizes(lengths):
    biases = [np.ones(n) for n in lengths]
    complaint = f"biases: expected [3, 2] values in the layers, got {lengths}"
    with pytest.raises(ValueError, match=re.escape(complaint)):
        SparseMLP.from_scipy([np.ones((3, 2)), np.ones((2, 3))], biases)
    layers = SparseMLP.from_scipy([np.ones((3, 2)), np.ones((2, 3))])
    data = [layers[0].data, layers[1].data]
    with pytest.raises(ValueError, match=re.escape(complaint)):
        SparseMLP((2, 3, 2), layers.structures(), data, biases)
    for bad, found in (([0.0, 0.0], "[(), ()]"), ([np.ones((3, 1)), np.ones(2)], "[(3, 1), 2]")):
        with pytest.raises(ValueError, match=re.escape(f"in the layers, got {found}")):
            SparseMLP((2, 3, 2), layers.structures(), data, bad)


@pytest.mark.parametrize(
    ("y", "complaint"),
    [
        ([0, 1], r"y: expected shape \(3,\), one label per row of X, got \(2,\)"),
        ([[0], [1], [0]], r"y: expected shape \(3,\), one label per row of X, got \(3, 1\)"),
        ([0, 7, 0], "y: expected class indices from 0 to 6, got 7"),
        ([0, -1, 0], "y: expected class indices from 0 to 6, got -1"),
    ],
)
def test_labels_are_checked(y, complaint):
    with pytest.raises(ValueError, match=complaint):
        network().loss_and_gradient(np.zeros((3, 37)), np.array(y))


@pytest.mark.parametrize("y", [[0.5, 1.0, 2.0], [np.nan, 0, 1], [0.0, 1.0, 2**63]])
def test_labels_are_whole_numbers(y):
    X, model = np.zeros((3, 37)), network()
    assert model.loss_and_gradient(X, np.array([2.0, 0.0, 1.0]))
    with (
        pytest.raises(ValueError, match="y: expected class indices, got numbers that are not"),
        np.errstate(invalid="ignore"),
    ):
        model.loss_and_gradient(X, np.array(y))


@pytest.mark.parametrize(("row", "column"), [(-1, 0), (0, -1), (3, 0), (0, 37)])
def test_the_first_coordinate_outside_is_refused(row, column):
    X = sp.coo_array((np.ones(1), ([0], [0])), shape=(3, 37))
    X.coords = np.array([row], np.int32), np.array([column], np.int32)
    with pytest.raises(ValueError, match="X: has a coordinate outside its shape"):
        network().decision_function(X)


@pytest.mark.parametrize("dropout", [-0.1, 1.0, np.nan])
def test_dropout_is_checked(dropout):
    with pytest.raises(ValueError, match=f"dropout: expected a number in .0, 1., got {dropout}"):
        network().loss_and_gradient(np.zeros((1, 37)), np.zeros(1), dropout=dropout)


def test_threads_and_seeds_below_their_range_are_named():
    model = network()
    X, y = batch(model, 8)
    for threads in (-1, 1.5, "2"):
        with pytest.raises(ValueError, match="threads: expected an integer of at least 1, got "):
            model.predict(X, threads=threads)
    with pytest.raises(ValueError, match=r"seed: expected an integer from 0 to .*, got -1"):
        model.loss_and_gradient(X, y, dropout=0.5, seed=-1)
    with pytest.raises(ValueError, match=r"seed: expected an integer from 0 to .*, got 1\.5"):
        model.loss_and_gradient(X, y, dropout=0.5, seed=1.5)


def test_a_gradient_needs_a_sample():
    with pytest.raises(ValueError, match="X: expected at least one row, got none"):
        network().loss_and_gradient(np.zeros((0, 37)), np.zeros(0, int))


def replaced(name, value):
    return lambda model: setattr(model, name, value(model))


@pytest.mark.parametrize(
    "harm",
    [
        replaced("params", lambda model: model.params[:-1]),
        replaced("network", lambda model: model.network),
        replaced("sizes", lambda model: (10**6, *model.sizes[1:])),
        replaced("activation", lambda model: "relu"),
        replaced("alpha", lambda model: 9.0),
        replaced("init", lambda model: "none"),
        replaced("velocity", lambda model: np.zeros(len(model.params) - 1, np.float32)),
        replaced("velocity", lambda model: np.zeros((len(model.params), 1), np.float32)),
        lambda model: model.params.resize(3),
        lambda model: model.velocity.resize(3),
        lambda model: model.network.weight_start.fill(10**9),
        lambda model: model.network.indices.fill(10**6),
        lambda model: model.network.out_position.fill(-1),
        lambda model: model[0].indptr.fill(10**6),
        lambda model: model.structures()[0][1].fill(-1),
        lambda model: setattr(model.network.indices.flags, "writeable", True),
        lambda model: setattr(model[0].indptr.flags, "writeable", True),
        lambda model: setattr(model.network.indices, "dtype", np.int8),
        lambda model: setattr(model.network.weights, "dtype", np.uint8),
        lambda model: setattr(model.params, "dtype", np.uint8),
        lambda model: setattr(model.velocity, "dtype", np.float64),
    ],
)
def test_public_attributes_do_no_harm(harm):
    """Refused, or without effect: the kernels check no bounds."""
    model = network((37, 29, 24, 7), 0.2)
    model.start_momentum()[:] = 1
    X, y = batch(model, 32)
    expected = model.weights_sha256(), model.decision_function(X)
    with contextlib.suppress(AttributeError, ValueError):
        harm(model)
    assert_consistent(model)
    assert (model.velocity == 1).all()
    assert model.copy().weights_sha256() == model.weights_sha256() == expected[0]
    np.testing.assert_array_equal(model.decision_function(X), expected[1])
    model.loss_and_gradient(X, y)


def test_parameters_and_velocity_are_written_in_place():
    model = network()
    before = model.weights_sha256()
    model.params[:] = 2
    assert (model[0].data == 2).all() and (model.biases == 2).all()
    model[1].bias[:] = 3
    assert (model.biases == 3).any() and model.weights_sha256() != before
    model.start_momentum()[:] = 1
    values = np.arange(len(model.params))
    model.velocity = values
    values[:] = 0
    np.testing.assert_array_equal(model.velocity, np.arange(len(model.params)))
    assert model[0].velocity[3] == 3
    model.velocity = None
    assert model.velocity is None


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("weight_start", [0, 3], r"expected 3 integers that rise from 0 to 5, got \[0 3\]"),
        ("weight_start", [0, 3, 9], "weight_start: expected 3 integers that rise from 0 to 5"),
        ("weight_start", [0, 3.0, 5], "weight_start: expected 3 integers that rise from 0 to 5"),
        ("weight_start", [-1, 3, 5], "weight_start: expected 3 integers that rise from 0 to 5"),
        ("weight_start", [0, 6, 5], "weight_start: expected 3 integers that rise from 0 to 5"),
        ("weight_start", [0, 2**63, 5], "weight_start: expected 3 integers that rise from 0 to 5"),
        ("indptr", [0, 1, 2], r"indptr: expected 7 values, got shape \(3,\)"),
        ("indptr", [[0]], r"indptr: expected 7 values, got shape \(1, 1\)"),
        ("params", np.zeros(3), "params: expected 10 values, got 3"),
        ("params", np.zeros((10, 1)), r"params: expected 10 values, got shape \(10, 1\)"),
        ("sizes", (4, 0, 2), "sizes: expected an integer from 1"),
    ],
)
def test_flat_arrays_are_checked(name, value, complaint):
    good = {
        "sizes": (4, 3, 2), "weight_start": np.array([0, 3, 5]),
        "indptr": np.array([0, 1, 2, 3, 0, 1, 2]), "indices": np.array([0, 1, 2, 0, 1]),
        "params": np.arange(10.0),
    }  # fmt: skip
    np.testing.assert_array_equal(SparseMLP.from_flat(**good).params, np.arange(10))
    value = value if name == "sizes" else np.array(value)
    with pytest.raises(ValueError, match=complaint):
        SparseMLP.from_flat(**(good | {name: value}))


def test_structures_must_fit_the_sizes():
    good = [(np.array([0, 1, 2]), np.array([0, 1]))]
    with pytest.raises(ValueError, match="structures: expected 1 layers, got 2"):
        SparseMLP((2, 2), 2 * good, 2 * [np.ones(2)])
    for data, found in ([np.ones(2), np.ones(2)], "[2, 2]"), ([np.ones(3)], "[3]"):
        complaint = f"data: expected [2] values in the layers, got {found}"
        with pytest.raises(ValueError, match=re.escape(complaint)):
            SparseMLP((2, 2), good, data)
    complaint = "layer 0, indptr: expected shape (4,), got (3,)"
    with pytest.raises(ValueError, match=re.escape(complaint)):
        SparseMLP((2, 3), good, [np.ones(2)])
    with pytest.raises(ValueError, match=r"indices: 1 is outside \[0, 1\)"):
        SparseMLP((1, 2), good, [np.ones(2)])


# --- predictions ----------------------------------------------------------------------------------


def test_sparse_and_dense_inputs_give_the_same_bits():
    model = network()
    X = sp.random_array((50, SIZES[0]), density=0.2, rng=np.random.default_rng(0), dtype=np.float32)
    for fmt in ("csr", "csc", "coo"):
        np.testing.assert_array_equal(
            model.decision_function(X.asformat(fmt)), model.decision_function(X.toarray())
        )
    assert model.decision_function(sp.csr_array((0, SIZES[0]))).shape == (0, SIZES[-1])


def test_probabilities_are_the_softmax_of_the_logits():
    model = network()
    X, _ = batch(model, 40)
    logits = model.decision_function(X).astype(np.float64)
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    # exp of a float32 number is off by the argument's rounding and its own, a few units.
    limit = (np.ptp(logits, axis=1).max() + 8) * U
    np.testing.assert_allclose(model.predict_proba(X), p, rtol=limit)
    np.testing.assert_array_equal(model.predict(X), logits.argmax(axis=1))


# --- another topology, pickles --------------------------------------------------------------------


def test_a_network_survives_pickling():
    model = network(activation="leaky-relu", alpha=0.1)
    for velocity in (False, True):
        if velocity:
            model.start_momentum()[:] = np.arange(len(model.params))
        for twin in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model), copy.copy(model)):
            assert twin.weights_sha256() == model.weights_sha256()
            assert (twin.activation, twin.alpha) == ("leaky-relu", 0.1)
            assert (twin.velocity is None) != velocity
            assert not velocity or np.array_equal(twin.velocity, model.velocity)
            assert not np.shares_memory(twin.params, model.params)
            assert_consistent(twin)


def test_adopting_a_topology():
    model, other = network(seed=0), network(seed=1)
    other.start_momentum()[:] = np.arange(len(other.params))
    model.adopt(other.structures(), other.params, other.velocity)
    assert model.weights_sha256() == other.weights_sha256()
    np.testing.assert_array_equal(model.velocity, other.velocity)
    assert not np.shares_memory(model.params, other.params)
    assert_consistent(model)
    model.adopt(other.structures(), other.params)
    assert model.velocity is None, "momentum starts anew"
    with pytest.raises(ValueError, match=f"params: expected {len(other.params)} values, got 3"):
        model.adopt(other.structures(), np.zeros(3, np.float32))


# --- evolution ------------------------------------------------------------------------------------


def snapshot(view):
    return {
        (j, int(view.indices[k])): (view.data[k], view.velocity[k])
        for j in range(view.n_out)
        for k in range(view.indptr[j], view.indptr[j + 1])
    }


@given(
    st.lists(st.integers(1, 12), min_size=2, max_size=4),
    st.floats(0.01, 1.0),
    st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.9]),
    st.integers(0, 2**32),
)
def test_evolution_replaces_the_weakest_and_nothing_else(sizes, density, zeta, seed):
    rng = np.random.default_rng(seed)
    model = SparseMLP.erdos_renyi(sizes, density=density, random_state=rng)
    model.start_momentum()[:] = rng.normal(1, 0.1, len(model.params))
    before = [snapshot(layer) for layer in model]
    doomed = []
    for layer in before:
        doomed.append(set())
        for sign in (1, -1):
            mine = sorted((abs(w), place) for place, (w, _) in layer.items() if w * sign > 0)
            doomed[-1] |= {place for _, place in mine[: int(zeta * len(mine))]}
    doomed[-1] = set()  # the output layer stays as it is
    biases, bias_velocity = model.biases.copy(), model.velocity[model.nnz :].copy()
    replaced = model.evolve(zeta, rng)
    assert_consistent(model)
    assert replaced == sum(map(len, doomed))
    for i, layer in enumerate(before):
        after = snapshot(model[i])
        assert len(after) == len(layer)
        kept = layer.keys() - doomed[i]
        assert {place: after[place] for place in kept} == {place: layer[place] for place in kept}
        bound = np.float32(np.sqrt(6 / sizes[i]))
        for place in after.keys() - kept:
            w, v = after[place]
            assert v == 0 and abs(w) <= bound
    np.testing.assert_array_equal(model.biases, biases)
    np.testing.assert_array_equal(model.velocity[model.nnz :], bias_velocity)


def test_evolution_without_momentum():
    model = network()
    nnz = [layer.nnz for layer in model]
    assert model.evolve(0.3, np.random.default_rng(0)) > 0
    assert [layer.nnz for layer in model] == nnz
    assert_consistent(model)


def test_the_kernels_see_the_evolved_network():
    model = network()
    model.evolve(0.5, np.random.default_rng(0))
    X, y = batch(model, 32)
    Net(model).loss_and_gradient(X, y)[1].holds(model.loss_and_gradient(X, y)[1])
    Net(model).logits(X).holds(model.decision_function(X))


@pytest.mark.parametrize("sizes", [SIZES, SIZES[:1] + SIZES[-1:]])
def test_what_changes_the_topology_is_checked_first(sizes):
    model = SparseMLP.erdos_renyi(sizes, density=0.5, random_state=0)
    before = model.weights_sha256()
    for zeta in (-0.1, 1, 1.5, 1 - 2.0**-30, np.nan):
        with pytest.raises(ValueError, match=r"zeta: expected a number in \[0, 1\), got"):
            model.evolve(zeta, np.random.default_rng(0))
    for percentile in (-1, 100.5, np.nan):
        with pytest.raises(ValueError, match=r"percentile: expected a number in \[0, 100\], got"):
            model.prune(percentile)
    assert model.weights_sha256() == before


# --- importance pruning ---------------------------------------------------------------------------


@pytest.mark.parametrize("percentile", [0, 10, 50, 100])
@pytest.mark.parametrize("momentum", [False, True])
def test_pruning_takes_the_connections_of_unimportant_neurons(percentile, momentum):
    model = network()
    if momentum:
        model.start_momentum()[:] = np.arange(len(model.params))
    old = [dense(layer) for layer in model]
    moves = None if model.velocity is None else [snapshot(layer) for layer in model]
    nnz, biases = model.nnz, model.biases.copy()
    bias_velocity = None if model.velocity is None else model.velocity[nnz:].copy()
    expected = []
    for i, (weights, support) in enumerate(old):
        alive = support.any(axis=1)
        strength = np.abs(weights).sum(axis=1)
        gone = strength <= np.percentile(strength[alive], percentile)
        gone &= percentile > 0 and i < len(old) - 1
        expected.append(support & ~gone[:, None])
    removed = model.prune(percentile)
    assert_consistent(model)
    assert removed == nnz - model.nnz == nnz - sum(e.sum() for e in expected)
    for i, (weights, _) in enumerate(old):
        now, support = dense(model[i])
        np.testing.assert_array_equal(support, expected[i])
        np.testing.assert_array_equal(now, weights * expected[i])
        if moves is not None:
            after = snapshot(model[i])
            assert after == {place: moves[i][place] for place in after}
    np.testing.assert_array_equal(model.biases, biases)
    if bias_velocity is not None:
        np.testing.assert_array_equal(model.velocity[model.nnz :], bias_velocity)
    X, y = batch(model, 32)
    Net(model).loss_and_gradient(X, y)[1].holds(model.loss_and_gradient(X, y)[1])


def test_importance_of_hidden_layers():
    model = network()
    for layer in (1, 2, 3):
        strength = np.abs(dense(model[layer - 1])[0]).sum(axis=1)
        np.testing.assert_allclose(model.importance(layer), strength, rtol=1e-14)
    for layer in (0, 4):
        with pytest.raises(IndexError, match=f"layer: hidden layers are 1 to 3, got {layer}"):
            model.importance(layer)


# --- compact --------------------------------------------------------------------------------------


def assert_same_predictions(model, small):
    X, _ = batch(model, 32)
    # Constants are folded into float32 biases: sums of at most n_in + 1 products of the constant
    # (itself rounded once) and a weight. With that uncertainty on the original's biases, and the
    # small network's own rounding, both exact values are within reach of what is computed.
    net = Net(model)
    inputs = [i.size.max(axis=1) for i in net.forward(X)[0]]
    for i, w in enumerate(net.weights):
        b = net.biases[i]
        spread = np.abs(b.exact) + np.abs(w.exact) @ inputs[i]
        net.biases[i] = Value(b.exact, gamma(w.exact.shape[1] + 3) * spread)
    reach, own = net.logits(X), Net(small).logits(X)
    Value(reach.exact, reach.error + own.error).holds(small.decision_function(X))
    assert (reach.error + own.error).max() < 1e-3


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("percentile", [0, 30, 80, 100])
def test_compact_has_the_same_predictions(activation, percentile):
    model = network(activation=activation)
    model.prune(percentile)
    small = model.compact()
    assert_consistent(small)
    assert_same_predictions(model, small)
    assert (small.activation, small.alpha, small.init) == (activation, model.alpha, model.init)
    assert (small.sizes[0], small.sizes[-1]) == (model.sizes[0], model.sizes[-1])
    assert all(a <= b for a, b in zip(small.sizes, model.sizes, strict=True))
    if percentile >= 30:
        assert sum(small.sizes) < sum(model.sizes) and small.nnz < model.nnz
    if percentile == 100:
        assert small.sizes[1:-1] == (1, 1, 1) and small.nnz == 0
    for i in range(len(small) - 1):
        if small.sizes[i + 1] > 1:
            assert small[i].fan_in().all() and small[i + 1].fan_out().all()


@pytest.mark.parametrize("dead", [0, 1, 2, 3])
@pytest.mark.parametrize("n_layers", [1, 2, 4])
def test_compact_with_a_dead_layer(n_layers, dead):
    rng = np.random.default_rng(9)
    sizes = (*(6, 5, 4, 5)[:n_layers], 3)
    matrices = [rng.normal(size=(b, a)) for a, b in itertools.pairwise(sizes)]
    matrices[dead % n_layers][:] = 0
    biases = [rng.normal(size=n) for n in sizes[1:]]
    model = SparseMLP.from_scipy([sp.csr_array(m) for m in matrices], biases)
    small = model.compact()
    assert_same_predictions(model, small)
    # Behind a dead layer everything is constant, before it nothing matters.
    assert small.nnz == 0 and set(small.sizes[1:-1]) <= {1}


def test_compact_leaves_out_who_feeds_nobody():
    first, second = np.ones((3, 2)), np.array([[1.0, 0.0, 2.0]])
    model = SparseMLP.from_scipy([first, sp.csr_array(second)], [np.array([1, 2, 3]), np.zeros(1)])
    small = model.compact()
    assert small.sizes == (2, 2, 1)
    np.testing.assert_array_equal(small.biases, [1, 3, 0])
    np.testing.assert_array_equal(small[1].data, [1, 2])


def test_compact_of_a_network_without_dead_neurons_changes_nothing():
    model = network((10, 8, 4), 1.0)
    small = model.compact()
    assert small.weights_sha256() == model.weights_sha256()
    assert not np.shares_memory(small.params, model.params)


# --- gradient flow --------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("batch_size", [32, 100, 1024])
def test_gradient_flow_is_the_squared_norm_of_the_gradient(activation, batch_size):
    model = network(activation=activation)
    X, y = batch(model, 100)
    gradient = Net(model).loss_and_gradient(X, y)[1]
    flow = gradient.exact @ gradient.exact
    # (g + e)^2 - g^2 = 2 g e + e^2, in every component.
    bound = 2 * np.abs(gradient.exact) @ gradient.error + gradient.error @ gradient.error
    assert abs(model.gradient_flow(X, y, batch_size) - flow) <= bound < 1e-2 * flow
    assert model.gradient_flow(sp.coo_array(X), list(y), batch_size) == model.gradient_flow(
        X, y, batch_size
    )


def test_gradient_flow_checks_all_rows_before_it_computes():
    model = network()
    X, y = batch(model, 10)
    for rows, size in ((X[:0], 4), (X, 0), (X, -1)):
        with pytest.raises(ValueError, match=f"got {len(rows)} rows and batch_size {size}"):
            model.gradient_flow(rows, y[: len(rows)], size)
    with pytest.raises(ValueError, match=r"y: expected shape \(5,\), one label per row of X"):
        model.gradient_flow(X[:5], y, 5)


# --- memory ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(400, 300, 10), (2000, 3000, 5)])
def test_bytes_per_connection_and_per_neuron(shape):
    model = SparseMLP.erdos_renyi(shape, epsilon=20, random_state=0)
    pointers = 8 * 2 * len(model)  # one more pointer than neurons, both ways
    assert model.nbytes <= 16 * model.nnz + 24 * sum(shape) + pointers
    model.start_momentum()
    assert model.nbytes <= 20 * model.nnz + 24 * sum(shape) + pointers


def test_a_network_takes_little_more_than_itself_to_make():
    tracemalloc.start()
    model = SparseMLP.erdos_renyi((2000, 2000, 2000, 10), epsilon=50, random_state=0)
    model.start_momentum()
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # Connections dominate here, with 20 bytes each; what has no place in the total is a copy.
    assert held < 1.02 * model.nbytes
    assert model.nbytes < 20.5 * model.nnz
    # While it is laid out, weights and indices are there twice.
    assert peak < model.nbytes + 8 * model.nnz


def _broken(name, value, place=1):
    X = sp.csr_array(np.eye(5, 4, dtype=np.float32))
    array = getattr(X, name).copy()
    array[place] = value
    setattr(X, name, array)
    return X


@pytest.mark.parametrize(
    "wrong",
    [
        ("indices", 99), ("indices", -1), ("indptr", 10**6), ("indptr", -5),
        ("indptr", 0, -1), ("indptr", -(2**31), -1),  # SciPy takes it for empty
    ],
)  # fmt: skip
def test_a_sparse_matrix_that_points_outside_itself_is_refused(wrong):
    # C code follows these without looking: it read foreign memory, or crashed.
    model = SparseMLP.erdos_renyi((4, 3, 2), density=0.9, random_state=0)
    for use in (model.predict, model.decision_function, lambda X: SparseMLP.from_scipy([X])):
        with pytest.raises(ValueError, match="not a valid csr matrix: ind"):
            use(_broken(*wrong))
    with pytest.raises(ValueError, match="not a valid csr matrix"):
        model.loss_and_gradient(_broken(*wrong), np.zeros(5, int))
