"""The structure of a layer against dense masks, sets and exact statistics."""

import tracemalloc
from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from sparsecore import SparseMLP, topology

# A chi-square test with a fixed seed either passes or fails for good; at this level a correct
# implementation had one chance in a thousand to be unlucky with its seed.
LEVEL = 1e-3


@st.composite
def layers(draw, max_side=9):
    """A layer as a boolean mask (n_out, n_in), its CSR structure and distinct nonzero weights."""
    shape = (draw(st.integers(1, max_side)), draw(st.integers(1, max_side)))
    mask = draw(hnp.arrays(bool, shape))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    nnz = int(mask.sum())
    # Magnitudes are distinct, so that "closest to zero" has one answer.
    data = (rng.permutation(nnz) + 1) * rng.choice([-1, 1], nnz)
    return mask, *csr(mask), data.astype(np.float32)


def csr(mask):
    indptr = np.concatenate([[0], np.cumsum(mask.sum(axis=1))])
    return indptr.astype(np.int64), np.nonzero(mask)[1].astype(np.int32)


def to_mask(indptr, indices, n_in):
    mask = np.zeros((len(indptr) - 1, n_in), bool)
    mask[np.repeat(np.arange(len(indptr) - 1), np.diff(indptr)), indices] = True
    return mask


def places(indptr, indices, n_in):
    return np.repeat(np.arange(len(indptr) - 1), np.diff(indptr)) * n_in + indices


# --- Erdős–Rényi ----------------------------------------------------------------------------------


@given(
    st.integers(1, 60),
    st.integers(1, 60),
    st.one_of(st.floats(1e-12, 1.0), st.just(1.0), st.just(5e-324)),
    st.integers(0, 2**63),
)
def test_erdos_renyi_is_a_valid_structure(n_in, n_out, density, seed):
    indptr, indices = topology.erdos_renyi(n_in, n_out, density, np.random.default_rng(seed))
    assert indptr.dtype == np.int64 and indices.dtype == np.int32
    assert len(indptr) == n_out + 1
    topology.check(indptr, indices, n_in)
    if density == 1:
        assert len(indices) == n_in * n_out
    again = topology.erdos_renyi(n_in, n_out, density, np.random.default_rng(seed))
    np.testing.assert_array_equal(indptr, again[0])
    np.testing.assert_array_equal(indices, again[1])


@pytest.mark.parametrize("density", [0.001, 0.03, 0.2, 0.5, 0.9, 0.999])
def test_erdos_renyi_connections_are_independent_coin_flips(density):
    n_in, n_out = 300, 400
    mask = to_mask(*topology.erdos_renyi(n_in, n_out, density, np.random.default_rng(1)), n_in)
    assert stats.binomtest(int(mask.sum()), mask.size, density).pvalue > LEVEL
    variance = density * (1 - density)
    for axis, count in ((0, n_in), (1, n_out)):
        # Each row's, and each column's, number of connections is binomial: with their deviations
        # squared, over the variance, a chi-square of as many degrees of freedom.
        sums, side = mask.sum(axis=axis), mask.shape[axis]
        statistic = np.sum((sums - side * density) ** 2) / (side * variance)
        tail = 2 * min(stats.chi2.cdf(statistic, count), stats.chi2.sf(statistic, count))
        assert tail > LEVEL
    # Neighbours in a row, and in a column, are uncorrelated: the mean of n products has deviation
    # 1 / sqrt(n).
    z = (mask - density) / np.sqrt(variance)
    for pairs in (z[:, 1:] * z[:, :-1], z[1:] * z[:-1]):
        assert abs(pairs.mean()) < stats.norm.isf(LEVEL / 2) / np.sqrt(pairs.size)


@pytest.mark.parametrize(("n_in", "n_out"), [(3, 2), (2, 3), (1, 5), (5, 1)])
def test_every_pattern_of_a_small_layer_is_as_likely_as_it_should_be(n_in, n_out):
    density, n_trials, cells = 0.4, 4000, n_in * n_out
    rng = np.random.default_rng(2)
    counts = np.zeros(2**cells)
    for _ in range(n_trials):
        mask = to_mask(*topology.erdos_renyi(n_in, n_out, density, rng), n_in)
        counts[int(mask.ravel() @ 2 ** np.arange(cells))] += 1
    ones = np.array([bin(pattern).count("1") for pattern in range(2**cells)])
    expected = n_trials * density**ones * (1 - density) ** (cells - ones)
    assert stats.chisquare(counts, expected).pvalue > LEVEL


def test_erdos_renyi_takes_memory_for_its_connections_only():
    n = 1_000_000
    tracemalloc.start()
    indptr, indices = topology.erdos_renyi(n, n, 1e-6, np.random.default_rng(0))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert stats.binom.sf(len(indices), n * n, 1e-6) > LEVEL / 2
    assert stats.binom.cdf(len(indices), n * n, 1e-6) > LEVEL / 2
    assert peak < 1.1 * (indptr.nbytes + indices.nbytes)


def test_density_from_epsilon():
    assert topology.erdos_renyi_density(784, 1000, 20) == 20 * 1784 / 784000
    assert topology.erdos_renyi_density(10, 10, 20) == 1.0


@pytest.mark.parametrize("epsilon", [0, -1.0, np.nan, np.inf])
def test_epsilon_is_positive(epsilon):
    with pytest.raises(ValueError, match="epsilon: expected a positive number, got"):
        topology.erdos_renyi_density(10, 10, epsilon)


@pytest.mark.parametrize("density", [0.0, -0.1, 1.5, np.nan])
def test_density_is_a_probability(density):
    with pytest.raises(ValueError, match=r"density: expected a number in \(0, 1\], got"):
        topology.erdos_renyi(3, 3, density, np.random.default_rng(0))


# --- check ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("indptr", "indices", "complaint"),
    [
        ([], [], "indptr: expected to run from 0 to nnz = 0"),
        ([1, 2], [0, 1], "indptr: expected to run from 0 to nnz = 2"),
        ([0, 1], [0, 1], "indptr: expected to run from 0 to nnz = 2"),
        ([0, 3], [0, 1], "indptr: expected to run from 0 to nnz = 2"),
        ([0, 2, 1, 3], [0, 1, 2], "indptr: decreases at row 1"),
        ([0, 4, 2], [0, 1], "indptr: decreases at row 1"),
        ([0, 1, 2], [0, 5], r"indices: 5 is outside \[0, 5\)"),
        ([0, 1, 2], [-1, 0], r"indices: -1 is outside \[0, 5\)"),
        ([0, 1], [5], r"indices: 5 is outside \[0, 5\)"),  # one alone
        ([0, 3], [1, -2, 9], r"indices: -2 is outside \[0, 5\)"),  # the first of two
        ([0, 2], [1, 1], "indices: row 0 is not strictly ascending"),
        ([0, 1, 1, 4], [4, 0, 3, 2], "indices: row 2 is not strictly ascending"),
        ([0, 0, 2, 2], [3, 3], "indices: row 1 is not strictly ascending"),
    ],
)
def test_check_names_the_damage(indptr, indices, complaint):
    with pytest.raises(ValueError, match=complaint):
        topology.check(np.array(indptr, np.int64), np.array(indices, np.int32), 5)


@pytest.mark.parametrize("n_out", [0, 1, 3])
def test_check_accepts_a_layer_without_connections(n_out):
    topology.check(np.zeros(n_out + 1, np.int64), np.zeros(0, np.int32), 5)


@given(layers(), st.data())
def test_check_finds_any_swap_and_any_repeat(layer, data):
    mask, indptr, indices, _ = layer
    rows = [j for j in range(len(mask)) if indptr[j + 1] - indptr[j] >= 2]
    if not rows:
        return
    row = data.draw(st.sampled_from(rows))
    k = data.draw(st.integers(int(indptr[row]), int(indptr[row + 1]) - 2))
    for damaged in ((indices[k + 1], indices[k]), (indices[k], indices[k])):
        bad = indices.copy()
        bad[k], bad[k + 1] = damaged
        with pytest.raises(ValueError, match=f"indices: row {row} is not strictly ascending"):
            topology.check(indptr, bad, mask.shape[1])


# --- transpose ------------------------------------------------------------------------------------


@given(layers(), st.sampled_from([np.int32, np.int64]))
def test_transpose_is_the_transpose(layer, place):
    mask, indptr, indices, data = layer
    out_indptr = np.full(mask.shape[1] + 1, -1, np.int64)
    out_indices, out_position = np.full(len(data), -1, np.int32), np.full(len(data), -1, place)
    topology.transpose(indptr, indices, out_indptr, out_indices, out_position)
    expected = csr(mask.T)
    np.testing.assert_array_equal(out_indptr, expected[0])
    np.testing.assert_array_equal(out_indices, expected[1])
    weights = np.zeros(mask.shape)
    weights[mask] = data
    np.testing.assert_array_equal(data[out_position], weights.T[mask.T])


# --- removal --------------------------------------------------------------------------------------


@given(layers(), st.one_of(st.floats(0, 1, exclude_max=True), st.sampled_from([0.3, 0.5, 0.1])))
def test_weakest_are_the_share_nearest_to_zero_of_each_sign(layer, zeta):
    data = layer[-1]
    drop = topology.weakest(data, zeta)
    for sign in (1, -1):
        mine = sorted((abs(w), i) for i, w in enumerate(data) if w * sign > 0)
        expected = {i for _, i in mine[: int(zeta * len(mine))]}
        assert {i for i in np.flatnonzero(drop) if data[i] * sign > 0} == expected


def test_weakest_counts_zeros_as_positive():
    data = np.array([0.0, 1.0, -1.0, -0.0, 2.0, -2.0], np.float32)
    np.testing.assert_array_equal(topology.weakest(data, 0.5), [1, 0, 1, 1, 0, 0])


def test_of_equal_weights_the_first_go():
    np.testing.assert_array_equal(np.flatnonzero(topology.weakest(np.ones(10), 0.3)), [0, 1, 2])
    data = np.array([3, 1, -2, 2, 2, 1, -2, 2, 9, -2], np.float32)
    np.testing.assert_array_equal(np.flatnonzero(topology.weakest(data, 0.6)), [1, 2, 3, 4, 5])


# --- regrowth -------------------------------------------------------------------------------------


@given(st.integers(0, 50), st.data())
def test_distinct_are_distinct_ascending_and_in_range(n, data):
    size = data.draw(st.integers(0, n))
    drawn = topology.distinct(n, size, np.random.default_rng(data.draw(st.integers(0, 2**32))))
    assert len(drawn) == size
    assert all(np.diff(drawn) > 0)
    assert size == 0 or (drawn[0] >= 0 and drawn[-1] < n)


@pytest.mark.parametrize(("n", "size"), [(7, 2), (7, 3), (7, 5), (5, 1), (6, 6)])
def test_distinct_makes_every_subset_equally_likely(n, size):
    rng, n_trials = np.random.default_rng(4), 6000
    subsets = {subset: 0 for subset in combinations(range(n), size)}
    for _ in range(n_trials):
        subsets[tuple(int(v) for v in topology.distinct(n, size, rng))] += 1
    if len(subsets) > 1:
        assert stats.chisquare(list(subsets.values())).pvalue > LEVEL


def test_distinct_of_a_huge_range_takes_little():
    drawn = topology.distinct(2**62, 1000, np.random.default_rng(0))
    assert len(np.unique(drawn)) == 1000
    assert stats.kstest(drawn / 2**62, "uniform").pvalue > LEVEL


@given(layers(), st.integers(0, 2**32), st.booleans(), st.data())
def test_replace_keeps_what_it_should_and_adds_as_many(layer, seed, momentum, data):
    mask, indptr, indices, weights = layer
    n_in, nnz = mask.shape[1], len(weights)
    rng = np.random.default_rng(seed)
    drop = rng.random(nnz) < data.draw(st.sampled_from([0.0, 0.2, 0.5, 1.0]))
    n_new = int(drop.sum())
    fresh = (1000 + np.arange(n_new)).astype(np.float32)
    velocity = (weights * 10) if momentum else None
    before = {
        p: (w, 10 * w)
        for p, w, gone in zip(places(indptr, indices, n_in), weights, drop, strict=True)
        if not gone
    }
    new = indptr.copy(), indices.copy(), weights.copy()
    topology.replace(drop, *new, velocity, n_in, fresh, rng)
    topology.check(new[0], new[1], n_in)
    assert len(new[1]) == nnz
    moved = np.zeros(nnz) if velocity is None else velocity
    after = dict(zip(places(new[0], new[1], n_in), zip(new[2], moved, strict=True), strict=True))
    assert len(after) == nnz, "a connection is there twice"
    for place, (w, v) in before.items():
        assert after[place][0] == w
        assert velocity is None or after[place][1] == v
    added = [after[place] for place in sorted(after) if place not in before]
    assert sorted(w for w, _ in added) == list(fresh)
    assert all(v == 0 for _, v in added)


def test_replace_in_a_full_layer_finds_the_places_it_made():
    indptr, indices = csr(np.ones((3, 4), bool))
    data, drop = np.arange(12, dtype=np.float32), np.zeros(12, bool)
    drop[[0, 5, 11]] = True
    topology.replace(
        drop, indptr, indices, data, None, 4, np.full(3, -1, np.float32), np.random.default_rng(0)
    )
    np.testing.assert_array_equal(data, np.where(drop, -1, np.arange(12)))
    topology.check(indptr, indices, 4)


def test_replace_is_uniform_over_the_vacant_places():
    rng = np.random.default_rng(5)
    mask = rng.random((5, 6)) < 0.4
    indptr, indices = csr(mask)
    nnz, n_trials = len(indices), 4000
    drop = np.arange(nnz) % 3 == 0
    kept = set(places(indptr, indices, 6)[~drop])
    vacant, size = [p for p in range(30) if p not in kept], int(drop.sum())
    counts = dict.fromkeys(vacant, 0)
    for _ in range(n_trials):
        new = indptr.copy(), indices.copy(), np.zeros(nnz, np.float32)
        topology.replace(drop, *new, None, 6, np.ones(size, np.float32), rng)
        for place in places(*new[:2], 6)[new[2] == 1]:
            counts[place] += 1  # a KeyError here: an occupied place was taken
    # Drawing `size` of N places without replacement spreads the counts less than a multinomial
    # does, by the finite population factor.
    observed, n = np.array(list(counts.values())), len(vacant)
    expected = n_trials * size / n
    statistic = np.sum((observed - expected) ** 2) / expected * (n - 1) / (n - size)
    tail = 2 * min(stats.chi2.cdf(statistic, n - 1), stats.chi2.sf(statistic, n - 1))
    assert tail > LEVEL


def test_replace_works_where_places_pass_32_bits():
    n_in = n_out = 100_000
    rng = np.random.default_rng(6)
    indptr, indices = topology.erdos_renyi(n_in, n_out, 1e-6, rng)
    data = np.ones(len(indices), np.float32)
    drop = rng.random(len(data)) < 0.5
    before = set(places(indptr, indices, n_in)[~drop])
    fresh = np.full(int(drop.sum()), 2, np.float32)
    topology.replace(drop, indptr, indices, data, None, n_in, fresh, rng)
    topology.check(indptr, indices, n_in)
    after = places(indptr, indices, n_in)
    assert before == set(after[data == 1])
    assert stats.kstest(after[data == 2] / (n_in * n_out), "uniform").pvalue > LEVEL


# --- importance and pruning -----------------------------------------------------------------------


@given(layers())
def test_importance_is_the_sum_of_magnitudes(layer):
    mask, indptr, _, data = layer
    weights = np.zeros(mask.shape)
    weights[mask] = data
    np.testing.assert_array_equal(topology.importance(indptr, data), np.abs(weights).sum(axis=1))


@given(layers(), st.floats(0, 100))
def test_unimportant_are_at_or_below_the_percentile(layer, percentile):
    mask, indptr, _, data = layer
    weak = topology.unimportant(indptr, data, percentile)
    strengths = [np.abs(data[a:b]).sum() for a, b in pairwise(indptr)]
    alive = [s for s, row in zip(strengths, mask, strict=True) if row.any()]
    for j, strength in enumerate(strengths):
        part = weak[indptr[j] : indptr[j + 1]]
        if len(part) == 0:
            continue
        # The percentile by its definition: linear between the two neighbouring order statistics.
        place = percentile / 100 * (len(alive) - 1)
        low, high = np.sort(alive)[[int(np.floor(place)), int(np.ceil(place))]]
        limit = low + (high - low) * (place - np.floor(place))
        if abs(strength - limit) > 1e-9 * max(
            limit, 1
        ):  # equality is tested below, without rounding
            assert set(part) == {percentile > 0 and strength < limit}


def test_unimportant_counts_living_neurons_only_and_takes_the_limit_itself():
    # Importances 1, 2, 3, 4, 5 and two dead neurons; the median of the living is 3.
    indptr = np.array([0, 1, 1, 2, 3, 5, 6, 6])
    data = np.array([1, -2, 3, 2, -2, 5], np.float32)
    np.testing.assert_array_equal(topology.unimportant(indptr, data, 50), [1, 1, 1, 0, 0, 0])
    np.testing.assert_array_equal(topology.unimportant(indptr, data, 25), [1, 1, 0, 0, 0, 0])
    assert not topology.unimportant(indptr, data, 0).any()
    assert topology.unimportant(indptr, data, 100).all()
    # Among all seven, 0 0 1 2 3 4 5, the median is 2.
    np.testing.assert_array_equal(topology.unimportant(indptr, data, 50, True), [1, 1, 0, 0, 0, 0])


def test_unimportant_in_a_layer_without_connections():
    assert len(topology.unimportant(np.zeros(4, np.int64), np.zeros(0, np.float32), 50)) == 0


@given(layers(), st.integers(0, 2**32))
def test_keep_only_leaves_the_others_out(layer, seed):
    mask, indptr, indices, data = layer
    keep = np.random.default_rng(seed).random(len(data)) < 0.5
    expected = mask.copy()
    expected[mask] = keep
    new = topology.keep_only(keep, indptr, indices)
    topology.check(*new, mask.shape[1])
    for got, want in zip(new, csr(expected), strict=True):
        np.testing.assert_array_equal(got, want)


# --- two topologies of one layer ------------------------------------------------------------------


@st.composite
def siblings(draw, n):
    shape = draw(st.integers(1, 7)), draw(st.integers(1, 7))
    masks = [draw(hnp.arrays(bool, shape)) for _ in range(n)]
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    values = [(rng.normal(size=shape) * mask).astype(np.float32) for mask in masks]
    return masks, values


@given(siblings(2))
def test_retain_valid_keeps_what_exists_in_both(pair):
    (old, new), (values, _) = pair
    out = np.full(int(new.sum()), np.nan, np.float32)
    kept = topology.retain_valid(*csr(old), values[old], *csr(new), out)
    assert kept == (old & new).sum()
    np.testing.assert_array_equal(out, values[new])


@given(st.integers(1, 4).flatmap(siblings))
def test_union_average_is_the_dense_mean(stack):
    masks, values = stack
    layers = [(*csr(mask), v[mask]) for mask, v in zip(masks, values, strict=True)]
    before = [tuple(a.copy() for a in layer) for layer in layers]
    indptr, indices, data = topology.union_average(layers)
    union = np.any(masks, axis=0)
    for got, want in zip((indptr, indices), csr(union), strict=True):
        np.testing.assert_array_equal(got, want)
        assert got.dtype == want.dtype
    total = np.zeros(union.shape)
    for v in values:
        total += v
    np.testing.assert_array_equal(data, (total / len(values)).astype(np.float32)[union])
    for layer, old in zip(layers, before, strict=True):
        for a, b in zip(layer, old, strict=True):
            np.testing.assert_array_equal(a, b)


@given(hnp.arrays(np.float32, st.integers(0, 20), elements=st.sampled_from([-2, -1, 0, 1, 3])))
def test_strongest_are_those_of_largest_magnitude(data):
    ranked = sorted(range(len(data)), key=lambda i: (-abs(data[i]), i))  # the first among equals
    for n in range(len(data) + 2):
        assert set(np.flatnonzero(topology.strongest(data, n))) == set(ranked[:n])


# --- new weights ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("init", "distribution"),
    [
        ("he_uniform", stats.uniform(-np.sqrt(6 / 50), 2 * np.sqrt(6 / 50))),
        ("xavier", stats.uniform(-np.sqrt(6 / 450), 2 * np.sqrt(6 / 450))),
        ("normal", stats.norm(0, 0.1)),
    ],
)
def test_new_weights_have_the_distribution_of_init(init, distribution):
    model = SparseMLP.erdos_renyi((50, 400, 3), density=0.5, init=init, random_state=7)
    assert stats.kstest(model[0].data, distribution.cdf).pvalue > LEVEL
    model.start_momentum()[:] = 1
    model.evolve(0.5, np.random.default_rng(8))
    grown = model[0].data[model[0].velocity == 0]
    assert abs(len(grown) - model[0].nnz / 2) <= 1  # half of each sign
    assert stats.kstest(grown, distribution.cdf).pvalue > LEVEL


@pytest.mark.parametrize("dtype", ["u1", "u4", "u8", "i1", "i4", "i8"])
def test_check_knows_unsigned_integers(dtype):
    good = np.array([0, 2, 4], dtype), np.array([0, 1, 2, 3], dtype)
    topology.check(*good, 4)
    for indices in ([1, 0, 2, 3], [1, 1, 2, 3]):  # the difference of unsigned numbers wraps
        with pytest.raises(ValueError, match="row 0 is not strictly ascending"):
            topology.check(good[0], np.array(indices, dtype), 4)
    with pytest.raises(ValueError, match="indptr: decreases at row 1"):
        topology.check(np.array([0, 5, 4], dtype), good[1], 4)


def test_check_compares_pointers_whose_differences_wrap():
    step = 6 * 10**18  # every difference is positive modulo 2^64
    indptr = np.array([0, step, 2 * step - 2**64, 4])
    assert (np.diff(indptr) > 0).all()
    with pytest.raises(ValueError, match="indptr: decreases at row 1"):
        topology.check(indptr, np.arange(4), 5)


@pytest.mark.parametrize("values", [[0.0, np.nan], [[0, 1]], ["a"], [True, False]])
def test_check_refuses_what_is_no_vector_of_integers(values):
    with pytest.raises(ValueError, match="indices: expected a vector of integers"):
        topology.check(np.array([0, len(values)]), np.array(values), 4)
    with pytest.raises(ValueError, match="indptr: expected a vector of integers"):
        topology.check(np.array(values), np.array([0]), 4)
