"""Image augmentation against slices, NumPy and scipy.ndimage."""

import numpy as np
import pytest
from scipy.ndimage import affine_transform

from sparsecore.datasets.augment import ImageAugmentation, resample


def images(n, shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, int(np.prod(shape))), dtype=np.uint8)


def moments(n_features):
    rng = np.random.default_rng(1)
    mean = rng.uniform(50, 200, n_features).astype(np.float32)
    return mean, rng.uniform(20, 90, n_features).astype(np.float32)


def moved(batch, down=0.0, right=0.0, angle=0.0, flip=0):
    """Run the kernel with one and the same move for all images, without standardisation."""
    out = np.empty(batch.shape, np.float32)
    moves = np.tile(np.array([down, right, angle, flip], float), (len(batch), 1))
    zero, one = np.zeros(batch.shape[1:], np.float32), np.ones(batch.shape[1:], np.float32)
    resample(batch, moves, zero, one, out)
    return out


@pytest.mark.parametrize("shape", [(6, 9, 1), (8, 5, 3)])
def test_everything_off_is_standardisation_alone(shape):
    X = images(5, shape)
    mean, scale = moments(X.shape[1])
    augmentation = ImageAugmentation(X, shape, mean, scale)
    augmentation.draw = lambda epoch: np.zeros((5, 4))
    out = augmentation(epoch=3)
    assert out.dtype == np.float32 and out.shape == X.shape
    np.testing.assert_array_equal(out, (X.astype(np.float32) - mean) / scale)


@pytest.mark.parametrize(
    ("down", "right", "flip"),
    [(2, 0, 0), (-3, 0, 0), (0, 4, 0), (1, -2, 0), (20, 0, 0), (0, 0, 1), (0, 2, 1)],
)
def test_whole_pixels_are_flipped_left_to_right_then_shifted_and_the_edge_repeated(
    down, right, flip
):
    batch = images(3, (7, 9, 3)).reshape(3, 7, 9, 3)
    rows, columns = np.clip(np.arange(7) - down, 0, 6), np.clip(np.arange(9) - right, 0, 8)
    flipped = batch[:, :, ::-1] if flip else batch
    expected = flipped[:, rows][:, :, columns]
    np.testing.assert_array_equal(moved(batch, down, right, flip=flip), expected)


@pytest.mark.parametrize("quarter", [1, 2, 3])
def test_quarter_turns_are_those_of_numpy(quarter):
    batch = images(2, (8, 8, 3)).reshape(2, 8, 8, 3)
    # weights are off by the rounding of cos and sin (1e-15) times 255: far below 1e-4
    np.testing.assert_allclose(
        moved(batch, angle=-quarter * np.pi / 2), np.rot90(batch, quarter, axes=(1, 2)), atol=1e-4
    )


@pytest.mark.parametrize("shape", [(12, 12, 3), (9, 14, 1)])
def test_drawn_moves_agree_with_scipy(shape):
    X = images(20, shape)
    mean, scale = moments(X.shape[1])
    augmentation = ImageAugmentation(X, shape, mean, scale, seed=5)
    got = augmentation(epoch=2).reshape(-1, *shape)
    centre = (np.array(shape[:2]) - 1) / 2
    for image, move, out in zip(X.reshape(-1, *shape), augmentation.draw(2), got, strict=True):
        if move[3]:
            image = image[:, ::-1]
        cos, sin = np.cos(move[2]), np.sin(move[2])
        matrix = np.array([[cos, -sin], [sin, cos]])
        offset = centre - matrix @ (centre + move[:2])
        planes = [
            affine_transform(image[..., c].astype(float), matrix, offset, order=1, mode="nearest")
            for c in range(shape[2])
        ]
        expected = (np.stack(planes, axis=-1) - mean.reshape(shape)) / scale.reshape(shape)
        # some ten float32 roundings of values below 256, over a scale of at least 20
        np.testing.assert_allclose(out, expected, atol=10 * 256 * 2**-24 / 20)


def test_draws_stay_in_range_and_use_it():
    X = images(4000, (10, 20, 1))
    mean, scale = moments(200)
    moves = ImageAugmentation(X, (10, 20, 1), mean, scale).draw(0)
    for column, limit in ((0, 1.0), (1, 2.0), (2, np.radians(10))):
        assert np.abs(moves[:, column]).max() <= limit
        # uniform on ±limit: its standard deviation is limit / √3; 4000 draws give it to about 1 %
        assert moves[:, column].std() == pytest.approx(limit / 3**0.5, rel=0.05)
    assert set(np.unique(moves[:, 3])) == {0, 1}
    assert moves[:, 3].mean() == pytest.approx(0.5, abs=0.04)  # five standard deviations


def test_seed_and_epoch_determine_the_result():
    X = images(30, (8, 8, 3))
    mean, scale = moments(192)

    def run(seed, epoch, rank=0):
        return ImageAugmentation(X, (8, 8, 3), mean, scale, seed, rank)(epoch).copy()

    first = run(7, 4)
    np.testing.assert_array_equal(first, run(7, 4))
    assert not np.array_equal(first, run(7, 5))
    assert not np.array_equal(first, run(8, 4))
    # an epoch does not depend on the epochs before it
    augmentation = ImageAugmentation(X, (8, 8, 3), mean, scale, seed=7)
    assert np.shares_memory(augmentation(0), augmentation(9)), "the buffer is used again"
    np.testing.assert_array_equal(augmentation(4), first)
    assert not np.array_equal(first, run(7, 4, rank=1)), "each worker draws its own"
    assert not np.array_equal(run(7, 4, rank=2), run(7, 4, rank=1))
    moves = ImageAugmentation(X, (8, 8, 3), mean, scale, 7, 2).draw(4)
    drawn = np.random.default_rng(np.random.SeedSequence(7, spawn_key=(2, 4))).random((30, 4))
    np.testing.assert_allclose(moves[:, 0], (2 * drawn[:, 0] - 1) * augmentation.largest[0])
