"""Lane operations of `kernels` against NumPy, for all its widths; `test_extreme` tests its own."""

import numpy as np
import pytest
from numba import njit
from numba.core.errors import TypingError
from oracle import bernoulli as numpy_bernoulli
from oracle import gamma, mix

from sparsecore.compiled import lanes
from sparsecore.compiled.lanes import Width

WIDTHS = [8, 16, 32, 64, 128]


@pytest.fixture(params=WIDTHS)
def n(request):
    return request.param


# Compiled for each width and kept in no file: Numba's cache would not notice a changed lanes.py.
@njit
def arithmetic(width, a, b, c, i, value, out, scalars):
    n = width.lanes
    x, y, z = lanes.load(width, a, i), lanes.load(width, b, i), lanes.load(width, c, i)
    lanes.store(out, i, x * y)
    lanes.store(out, i + n, lanes.fma(x, y, z))
    lanes.store(out, i + 2 * n, lanes.splat(width, value))
    lanes.store(out, i + 3 * n, lanes.select(lanes.positive(x), y, z))
    scalars[0] = lanes.total(lanes.partial_dot(x, y))
    scalars[1] = lanes.total(x)
    scalars[2], scalars[3], scalars[4], scalars[5] = lanes.totals(x, y, z, x * y)
    scalars[6] = lanes.fma(a[i], b[i], c[i])


@njit
def masks(width, a, bits, i, key, first, threshold, out, noise):
    n = width.lanes
    lanes.store_mask(bits, i, lanes.positive(lanes.load(width, a, 0)))
    one, zero = lanes.splat(width, np.float32(1)), lanes.splat(width, np.float32(0))
    lanes.store(out, 0, lanes.select(lanes.load_mask_across(width, width, bits, i, 0), one, zero))
    keep = lanes.bernoulli(width, key, first, threshold)
    lanes.store_mask(noise, 0, keep)
    lanes.store(out, n, lanes.select(keep, one, zero))


@njit
def element(array, index, value):
    before = lanes.at(array, index)
    lanes.put(array, index, value)
    return before


@njit
def fetched(array, index):
    lanes.prefetch_to_write(array, index)


@njit
def tile(width, inputs, rows, first, feature, out, place, step):
    lanes.copy_transposed(width, inputs, rows, first, feature, out, place, step)


@njit
def how_many(width):
    return width.lanes, lanes.tile_of(width)


class Sample:
    """Inputs of `arithmetic` at an odd offset, with sentinels around its outputs."""

    def __init__(self, n, a, b, c):
        offset = 3
        pad = np.full(offset, np.nan, np.float32)
        arrays = [np.concatenate([pad, v.astype(np.float32), pad]) for v in (a, b, c)]
        out = np.full(offset + 4 * n + offset, np.float32(77), np.float32)
        scalars = np.zeros(7, np.float32)
        arithmetic(Width(n), *arrays, offset, np.float32(-2.5), out, scalars)
        assert (out[:offset] == 77).all() and (out[-offset:] == 77).all(), "wrote outside its lanes"
        self.product, self.fma, self.splat, self.select = out[offset:-offset].reshape(4, n)
        self.dot, self.total, *self.totals, self.scalar_fma = scalars


def normals(n, seed=0):
    return np.random.default_rng(seed).standard_normal((3, n)).astype(np.float32)


def test_elementwise_operations_are_those_of_numpy(n):
    a, b, c = normals(n)
    got = Sample(n, a, b, c)
    np.testing.assert_array_equal(got.product, a * b)
    np.testing.assert_array_equal(got.splat, np.full(n, -2.5, np.float32))
    np.testing.assert_array_equal(got.select, np.where(a > 0, b, c))


def test_fma_rounds_once(n):
    # a b = 1 + 2^-11 + 2^-24 does not fit into 24 bits; rounded by itself the last term is lost.
    a = np.full(n, 1 + 2.0**-12)
    got = Sample(n, a, a, np.full(n, -(1 + 2.0**-11)))
    np.testing.assert_array_equal(got.fma, np.full(n, 2.0**-24, np.float32))
    assert got.scalar_fma == 2.0**-24
    # float64 holds the product exactly; its sum, rounded to float32, is the correctly rounded one
    # unless it lies within 2^-53 of a tie, which none of these does.
    a, b, c = normals(n).astype(np.float64)
    np.testing.assert_array_equal(Sample(n, a, b, c).fma, (a * b + c).astype(np.float32))


def test_reductions_take_every_lane_once_and_round_as_a_sum(n):
    # Sums of small integers are exact in any order. Powers of two would overflow; distinct values
    # tell a lane that is taken twice from one that is left out.
    rng = np.random.default_rng(1)
    a, b = rng.permutation(n) + 1, rng.permutation(n) - n // 2
    got = Sample(n, a, b, b)
    assert got.dot == np.dot(a, b)
    assert got.total == n * (n + 1) // 2
    assert got.totals == [a.sum(), b.sum(), b.sum(), np.dot(a, b)]
    for lane in range(n):
        e = np.eye(n)[lane]
        got = Sample(n, e, a, 3 * e)
        assert (got.dot, got.total) == (a[lane], 1)
        assert got.totals == [1, a.sum(), 3, a[lane]]

    a, b, c = normals(n, seed=2)
    got = Sample(n, a, b, c)
    a, b, c = (v.astype(np.float64) for v in (a, b, c))
    for value, terms in zip(
        [got.dot, got.total, *got.totals], [a * b, a, a, b, c, a * b], strict=True
    ):
        # n products and additions in any order: gamma(n) of the sum of magnitudes.
        assert abs(value - terms.sum()) <= gamma(n) * np.abs(terms).sum()


def test_positive_is_false_for_zeros_and_nan(n):
    special = np.array([0.0, -0.0, np.nan, np.inf, -np.inf, 1e-45, -1e-45, 1.0], np.float32)
    a = np.resize(special, n)
    got = Sample(n, a, np.ones(n), np.zeros(n))
    np.testing.assert_array_equal(got.select, np.resize([0, 0, 0, 1, 0, 1, 0, 1], n))


def test_masks_are_packed_a_bit_a_lane(n):
    a = normals(n, seed=3)[0]
    bits = np.full(1 + n // 8 + 1, 0xA5, np.uint8)
    out, noise = np.zeros(2 * n, np.float32), np.zeros(n // 8, np.uint8)
    zero = np.uint32(0)
    masks(Width(n), a, bits, 8, zero, zero, np.uint16(0), out, noise)
    np.testing.assert_array_equal(bits[1:-1], np.packbits(a > 0, bitorder="little"))
    assert bits[0] == bits[-1] == 0xA5
    np.testing.assert_array_equal(out[:n], a > 0)
    assert (out[n:] == 1).all(), "nothing is dropped with threshold 0"


@pytest.mark.parametrize("first", [0, 64, 2**32 - 128])
def test_bernoulli_is_half_the_hash_of_its_counter(n, first):
    bits, noise, out = np.zeros(n // 8, np.uint8), np.zeros(n // 8, np.uint8), np.zeros(2 * n, "f4")
    for key, share in ((0, 0.3), (0xDEADBEEF, 0.5), (123456789, 0.999)):
        threshold = int(share * 2**16)
        masks(
            Width(n), out[:n].copy(), bits, 0, np.uint32(key), np.uint32(first),
            np.uint16(threshold), out, noise,
        )  # fmt: skip
        expected = numpy_bernoulli(key, first + np.arange(n), threshold)
        np.testing.assert_array_equal(out[n:], expected)
        np.testing.assert_array_equal(noise, np.packbits(expected, bitorder="little"))


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5])
def test_bernoulli_drops_the_share_it_should(share):
    # That it is this hash is tested above; here: is the hash any good? Keys as the kernels make
    # them, columns as a batch has them. z-scores of 4 happen once in 16 000.
    n_keys, columns = 2000, np.arange(128)
    keys, threshold = [mix(7, k) & 0xFFFFFFFF for k in range(n_keys)], int(share * 2**16)
    keep = np.array([numpy_bernoulli(key, columns, threshold) for key in keys])
    spread = np.sqrt(share * (1 - share))
    assert abs((~keep).mean() - share) < 4 * spread / np.sqrt(keep.size)
    by_column = ((~keep).mean(axis=0) - share) / (spread / np.sqrt(n_keys))
    assert np.abs(by_column).max() < 4.5
    # Neighbouring columns, and neighbouring keys, are uncorrelated.
    centred = (~keep - share) / spread
    assert abs((centred[:, 1:] * centred[:, :-1]).mean()) < 4 / np.sqrt(keep.size)
    assert abs((centred[1:] * centred[:-1]).mean()) < 4 / np.sqrt(keep.size)


def test_a_tile_is_copied_transposed(n):
    side = lanes.tile_of(Width(n))
    assert n % side == 0
    rng = np.random.default_rng(8)
    inputs = rng.standard_normal((2 * side, side + 5)).astype(np.float32)
    rows = rng.permutation(2 * side)
    first, feature, place, step = 3, 4, 7, n + 1
    out = np.full(place + side * step + 5, 77, np.float32)
    tile(Width(n), inputs, rows, first, feature, out, place, step)
    expected = np.full_like(out, 77)
    places = place + step * np.arange(side)[:, None] + np.arange(side)
    expected[places] = inputs[rows[first : first + side], feature : feature + side].T
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("dtype", [np.float32, np.int32, np.int64])
def test_at_and_put_reach_one_element(dtype):
    array = np.arange(10, dtype=dtype)
    assert element(array, 4, dtype(99)) == 4
    np.testing.assert_array_equal(array, [0, 1, 2, 3, 99, 5, 6, 7, 8, 9])


@pytest.mark.parametrize("index", [0, 9, -1, 10**12])
def test_a_prefetch_changes_nothing_wherever_it_points(index):
    array = np.arange(10, dtype=np.float32)
    fetched(array, index)
    np.testing.assert_array_equal(array, np.arange(10))


def test_put_refuses_another_type():
    with pytest.raises(TypingError, match="put"):
        element(np.zeros(3, np.float32), 0, np.float64(1))


def test_a_width_knows_its_lanes(n):
    width = Width(n)
    assert width.lanes == n
    assert how_many(width) == (n, lanes.tile_of(width))


def test_a_width_is_a_power_of_two():
    assert lanes.widest() in WIDTHS
    for other in (0, 1, 2, 7, 12, 100, -8):
        with pytest.raises(ValueError, match=f"power of two and at least 4, got {other}"):
            Width(other)


@njit
def across(wide, width, array, bits, index, gap, out, store_at):
    value = lanes.load_across(wide, width, array, index, gap)
    lanes.store(out, 0, value)
    mask = lanes.load_mask_across(wide, width, bits, index, gap)
    nothing = lanes.splat(wide, np.float32(0))
    lanes.store(out, wide.lanes, lanes.select(mask, value, nothing))
    lanes.store_across(width, array, store_at, gap, value)


@pytest.mark.parametrize(("wide", "width"), [(128, 64), (128, 32), (64, 64), (32, 8), (16, 8)])
def test_wide_lanes_may_lie_in_pieces(wide, width):
    rng = np.random.default_rng(wide + width)
    array = rng.standard_normal(2048).astype(np.float32)
    bits = rng.integers(256, size=256).astype(np.uint8)
    out, before = np.zeros(2 * wide, np.float32), array.copy()
    index, gap, store_at = 16, 192, 1040
    across(lanes.Width(wide), lanes.Width(width), array, bits, index, gap, out, store_at)
    places = np.concatenate([np.arange(width) + k * gap for k in range(wide // width)])
    expected = before[index + places]
    np.testing.assert_array_equal(out[:wide], expected)
    kept = np.unpackbits(bits, bitorder="little")[index + places]
    np.testing.assert_array_equal(out[wide:], np.where(kept, expected, 0))
    np.testing.assert_array_equal(array[store_at + places], expected)
    untouched = np.ones(2048, bool)
    untouched[store_at + places] = False
    np.testing.assert_array_equal(array[untouched], before[untouched])
