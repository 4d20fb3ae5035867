"""Image augmentation: each image shifted, rotated, flipped and standardised in one pass."""

import math

import numpy as np
from numpy.typing import NDArray

from sparsecore.compiled.jit import jit

# The study's values for CIFAR-10: largest shift (share of the image) and rotation (degrees).
_SHIFT, _ROTATION = 0.1, 10.0


class ImageAugmentation:
    """Shifted, rotated and flipped copies of images, drawn anew in each epoch from `seed`."""

    # `images` are flattened to rows; `shape` is (height, width, channels).
    def __init__(
        self, images: NDArray[np.uint8], shape: tuple[int, ...], mean: NDArray[np.float32],
        scale: NDArray[np.float32], seed: int = 0, rank: int = 0,
    ) -> None:  # fmt: skip
        self.images = np.ascontiguousarray(images).reshape(-1, *shape)
        self.mean, self.scale = mean.reshape(shape), scale.reshape(shape)
        self.largest = _SHIFT * shape[0], _SHIFT * shape[1], math.radians(_ROTATION)
        self.seed, self.rank = seed, rank
        self._out = np.empty(self.images.shape, dtype=np.float32)

    def draw(self, epoch: int) -> NDArray[np.float64]:
        """Draw every image's shift down and right (pixels), rotation (radians), and flip."""
        # Worker 0 draws what the sequential trainer draws.
        key = (self.rank, epoch) if self.rank else (epoch,)
        rng = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=key))
        moves = rng.random((len(self.images), 4))
        moves[:, :3] = (2 * moves[:, :3] - 1) * self.largest
        moves[:, 3] = moves[:, 3] < 0.5
        return moves

    def __call__(self, epoch: int) -> NDArray[np.float32]:
        """Return an epoch's images (from 0), standardised; valid until the next call."""
        resample(self.images, self.draw(epoch), self.mean, self.scale, self._out)
        return self._out.reshape(len(self.images), -1)


@jit()
def resample(images, moves, mean, scale, out):
    """Fill `out` with images that are flipped, then rotated about their centre, then shifted."""
    n, height, width, channels = images.shape
    centre_y, centre_x = (height - 1) / 2, (width - 1) / 2
    for i in range(n):
        cos, sin = math.cos(moves[i, 2]), math.sin(moves[i, 2])
        mirror = -1.0 if moves[i, 3] != 0 else 1.0
        image = images[i]
        for y in range(height):
            from_centre_y = y - centre_y - moves[i, 0]
            for x in range(width):
                # where the pixel comes from: back by the shift and the rotation, then mirrored
                from_centre_x = x - centre_x - moves[i, 1]
                source_y = centre_y + cos * from_centre_y - sin * from_centre_x
                source_x = centre_x + mirror * (sin * from_centre_y + cos * from_centre_x)
                # the nearest edge pixel stands for everything beyond the edge
                source_y = min(max(source_y, 0.0), height - 1.0)
                source_x = min(max(source_x, 0.0), width - 1.0)
                top, left = int(source_y), int(source_x)
                below, right = min(top + 1, height - 1), min(left + 1, width - 1)
                wy, wx = np.float32(source_y - top), np.float32(source_x - left)
                for c in range(channels):
                    a, b = np.float32(image[top, left, c]), np.float32(image[top, right, c])
                    d, e = np.float32(image[below, left, c]), np.float32(image[below, right, c])
                    upper = a + wx * (b - a)
                    lower = d + wx * (e - d)
                    value = upper + wy * (lower - upper)
                    out[i, y, x, c] = (value - mean[y, x, c]) / scale[y, x, c]
