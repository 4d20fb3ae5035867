"""The artificial data of the extreme study: two Gaussian clusters among 65 536 features.

They lie as in scikit-learn's `make_classification`. A batch is drawn from the stream of its number
when it is needed, and never kept, so a resumed run sees the same samples.
"""

from __future__ import annotations

import numpy as np

from sparsecore import seeds
from sparsecore.datasets.generators import Clusters
from sparsecore.seeds import Purpose

N_FEATURES, N_CLASSES = 65_536, 2
_INFORMATIVE = 4  # one feature in so many


class Stream:
    """Batches without end; informative features lie `separation` deviations off their mean."""

    def __init__(self, seed: int, separation: float, n_features: int = N_FEATURES) -> None:
        rng = seeds.generator(seed, Purpose.SPLIT)
        informative = max(1, n_features // _INFORMATIVE)
        self._seed = seed
        self._design = Clusters(n_features, N_CLASSES, informative, 1, separation, rng)
        moved = separation * self._design.signs
        self._mean = moved.mean(axis=0)
        self._sd = np.sqrt(1 + moved.var(axis=0))

    def batch(
        self, number: int, size: int, held_out: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return batch `number` to train on, or to test on: X (size, n_features) float32, y int64.

        Every feature has mean 0 and variance 1; the classes are of equal size, to within one.
        """
        # Drawn in pairs: an odd batch would always have one more of the same class.
        rng = seeds.generator(self._seed, Purpose.SAMPLES, int(held_out), number)
        X, y = (array[:size] for array in self._design.draw(size + size % 2, rng))
        columns = self._design.columns
        X[:, columns] = (X[:, columns] - self._mean) / self._sd
        return X, y
