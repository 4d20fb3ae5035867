"""Data that are always there: scikit-learn's digits, Madelon's generator, artificial data."""

from importlib.metadata import distribution

import numpy as np
from numpy.typing import NDArray

from sparsecore.config import integers
from sparsecore.datasets.dataset import Arrays, every_kth

_MADELON_SEED = 2005


def digits() -> Arrays:
    """Return scikit-learn's 8×8 digits, uint8, 0 … 16; every fifth row of a class is a test row."""
    # Importing scikit-learn takes two seconds, reading its file of digits a twentieth of one.
    file = distribution("scikit-learn").locate_file("sklearn/datasets/data/digits.csv.gz")
    try:
        table = np.loadtxt(str(file), np.uint8, delimiter=",")
    except OSError:  # a release with another layout
        from sklearn.datasets import load_digits

        table = np.column_stack(load_digits(return_X_y=True)).astype(np.uint8)
    X, y = table[:, :-1], table[:, -1].astype(np.int64)
    test = every_kth(y, 5)
    return X[~test], y[~test], X[test], y[test]


def madelon_generator() -> Arrays:
    """Draw 2000 and 600 rows of 500 float32 values with the design of Madelon."""
    # Guyon (2003): 32 Gaussian clusters on the vertices of a five-dimensional hypercube, 16 per
    # class at random; 15 linear combinations of the five features; 480 features of noise; 1 % of
    # the labels drawn anew. Nearest neighbours, a linear model and a random forest do about as well
    # as on Madelon itself (0.86, 0.63, 0.74; there 0.91, 0.60, 0.73).
    from sklearn.datasets import make_classification

    # If all vertices are used, scikit-learn deals them to two classes in order, so one coordinate
    # is the class. So here it draws 32 classes of one cluster each, and we pair them.
    X, cluster = make_classification(
        n_samples=2600, n_features=500, n_informative=5, n_redundant=15, n_classes=32,
        n_clusters_per_class=1, flip_y=0.01, class_sep=1.5, random_state=_MADELON_SEED,
    )  # fmt: skip
    y = np.random.default_rng(_MADELON_SEED).permutation(np.arange(32) % 2)[cluster]
    X, y = X.astype(np.float32), y.astype(np.int64)
    return X[:2000], y[:2000], X[2000:], y[2000:]


class Clusters:
    """Gaussian clusters on vertices of a hypercube, among features of noise."""

    # Cluster c is of class c % n_classes; its mean in the informative features, `columns`, is
    # `separation` times the vertex `signs[c]`.
    def __init__(
        self, n_features: int, n_classes: int, n_informative: int, clusters_per_class: int,
        separation: float, rng: np.random.Generator,
    ) -> None:  # fmt: skip
        n_clusters = n_classes * clusters_per_class
        integers(1, n_features).check("n_informative", n_informative)
        bits = min(n_informative, 30)  # enough vertices for any number of clusters
        if n_clusters > 1 << bits:
            raise ValueError(
                f"{n_clusters} clusters do not fit on the {1 << bits} vertices of {n_informative} "
                "informative features: raise n_informative"
            )
        vertices: set[int] = set()
        while len(vertices) < n_clusters:
            vertices.add(int(rng.integers(1 << bits)))
        signs = rng.choice(np.array([-1, 1], np.float32), (n_clusters, n_informative))
        for cluster, vertex in enumerate(sorted(vertices)):  # distinct in the first `bits` features
            signs[cluster, :bits] = [1 if vertex >> bit & 1 else -1 for bit in range(bits)]
        rng.shuffle(signs)
        self.n_features, self.n_classes, self.separation = n_features, n_classes, separation
        self.signs, self.columns = signs, np.sort(rng.choice(n_features, n_informative, False))

    def draw(
        self, n_rows: int, rng: np.random.Generator
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Draw rows and their classes, of equal size to within one row."""
        n_clusters = len(self.signs)
        y = rng.permutation(np.arange(n_rows, dtype=np.int64) % self.n_classes)
        cluster = y + self.n_classes * rng.integers(n_clusters // self.n_classes, size=n_rows)
        X = rng.standard_normal((n_rows, self.n_features), dtype=np.float32)
        X[:, self.columns] += np.float32(self.separation) * self.signs[cluster]
        return X, y


def artificial(
    n_features: int = 1024, n_train: int = 2000, n_test: int = 1000, n_classes: int = 2,
    n_informative: int = 32, clusters_per_class: int = 2, separation: float = 0.5,
    random_state: int = 0,
) -> Arrays:  # fmt: skip
    """Draw Gaussian clusters on hypercube vertices among features of noise.

    Parameters
    ----------
    n_features, n_informative : int
        Number of all features, and of those (at random places) that separate the clusters.
    n_train, n_test : int
        Rows of the two parts.
    n_classes, clusters_per_class : int
        Classes, of equal size to within one row, and their clusters.
    separation : float
        Half the side of the hypercube, in standard deviations of a cluster.
    random_state : int
        Seed.

    Returns
    -------
    X_train, y_train, X_test, y_test : ndarray
        Rows of float32 values, and their classes (int64).

    Raises
    ------
    ValueError
        If there are fewer vertices than clusters, or more informative features than features.

    Notes
    -----
    The design of scikit-learn's `make_classification`, without its float64 copies: O(n_rows ·
    n_features) time, and no memory beside the arrays.
    """
    rng = np.random.default_rng(random_state)
    design = Clusters(n_features, n_classes, n_informative, clusters_per_class, separation, rng)
    return (*design.draw(n_train, rng), *design.draw(n_test, rng))
