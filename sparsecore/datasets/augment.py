"""Image augmentation: each image shifted, rotated, flipped and standardised in one pass."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from sparsecore.compiled.jit import jit


class ImageAugmentation:
    """Randomly shifted, rotated and flipped copies of a set of images, one set per epoch.

    Parameters
    ----------
    images : ndarray of uint8, shape (n, height * width * channels)
        Raw images, rows flattened in C order.
    shape : tuple of int
        (height, width) or (height, width, channels).
    mean, scale : ndarray of float32, shape (height * width * channels,)
        `Dataset.moments()`: results are (value - mean) / scale.
    shift : float
        Largest shift along each axis, as a fraction of the image's size, 0 … 1.
    rotation : float
        Largest rotation about the centre, in degrees, 0 … 180.
    flip : bool
        Flip every other image, at random, left to right.
    seed : int or SeedSequence
        Together with the epoch it determines every draw.

    Raises
    ------
    ValueError
        If a shape does not fit or a value is out of its range.

    Notes
    -----
    The defaults are the study's for CIFAR-10. Values between pixels are interpolated bilinearly;
    outside the image the nearest edge pixel counts. All calls use one buffer of 4 n · n_features
    bytes.
    """

    def __init__(
        self,
        images: NDArray[np.uint8],
        shape: tuple[int, ...],
        mean: NDArray[np.float32],
        scale: NDArray[np.float32],
        shift: float = 0.1,
        rotation: float = 10.0,
        flip: bool = True,
        seed: int | np.random.SeedSequence = 0,
    ) -> None:
        if images.dtype != np.uint8:
            raise ValueError(f"images are {images.dtype}: expected raw uint8 images")
        if len(shape) not in (2, 3) or images.ndim != 2 or images.shape[1] != math.prod(shape):
            raise ValueError(
                f"images of shape {images.shape} are not rows of {shape}: expected "
                "(height, width) or (height, width, channels) with as many values as a row"
            )
        if not 0 <= shift <= 1:
            raise ValueError(f"shift={shift}: expected a fraction of the image, 0 … 1")
        if not 0 <= rotation <= 180:
            raise ValueError(f"rotation={rotation}: expected degrees, 0 … 180")
        self.shape = (shape[0], shape[1], shape[2] if len(shape) == 3 else 1)
        self.images = np.ascontiguousarray(images).reshape(len(images), *self.shape)
        self.mean = np.ascontiguousarray(mean, dtype=np.float32).reshape(self.shape)
        self.scale = np.ascontiguousarray(scale, dtype=np.float32).reshape(self.shape)
        self.shift, self.rotation, self.flip = float(shift), float(rotation), bool(flip)
        self.seed = (
            seed if isinstance(seed, np.random.SeedSequence) else np.random.SeedSequence(seed)
        )
        self._out: NDArray[np.float32] | None = None

    def draw(self, epoch: int) -> NDArray[np.float64]:
        """Draw every image's shift down and right (pixels), rotation (radians, x to y), and flip.

        All four numbers are always drawn, so switching one off leaves the others as they are.
        """
        entropy, key = self.seed.entropy, (*self.seed.spawn_key, epoch)
        rng = np.random.default_rng(np.random.SeedSequence(entropy, spawn_key=key))
        moves = rng.random((len(self.images), 4))
        moves[:, :3] = 2 * moves[:, :3] - 1
        moves[:, 0] *= self.shift * self.shape[0]
        moves[:, 1] *= self.shift * self.shape[1]
        moves[:, 2] *= math.radians(self.rotation)
        moves[:, 3] = (moves[:, 3] < 0.5) & self.flip
        return moves

    def __call__(self, epoch: int) -> NDArray[np.float32]:
        """Return the augmented, standardised images of an epoch (from 0), float32, as rows.

        The buffer is overwritten by the next call. O(n · n_features), one thread, without the GIL.
        """
        if self._out is None:
            self._out = np.empty(self.images.shape, dtype=np.float32)
        resample(self.images, self.draw(epoch), self.mean, self.scale, self._out)
        return self._out.reshape(len(self.images), -1)


@jit()
def resample(images, moves, mean, scale, out):
    """Fill `out` with images that are flipped, then rotated about their centre, then shifted.

    Every output pixel looks up where it comes from, an affine function of (y, x): back by the
    shift, back by the rotation, mirrored.
    """
    n, height, width, channels = images.shape
    centre_y, centre_x = (height - 1) / 2, (width - 1) / 2
    for i in range(n):
        cos, sin = math.cos(moves[i, 2]), math.sin(moves[i, 2])
        mirror = -1.0 if moves[i, 3] != 0 else 1.0
        image = images[i]
        for y in range(height):
            from_centre_y = y - centre_y - moves[i, 0]
            for x in range(width):
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
