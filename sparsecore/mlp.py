"""`SparseMLP`: the parameters of a truly sparse perceptron, and what can be asked of them.

All weights and biases are one flat float32 vector; layers are views of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import scipy.sparse as sp

from sparsecore import functions, topology
from sparsecore.compiled import engine
from sparsecore.compiled.kernels import Network, Rule
from sparsecore.functions import initial_weights, negative_slope

_INT32_MAX = np.iinfo(np.int32).max
#: Values of a sparse matrix's rows that are made dense at a time: 64 MiB.
DENSE_VALUES = 2**24


@dataclass(frozen=True)
class SparseLayer:
    """Views of one layer's arrays; row j of the CSR matrix is neuron j's incoming connections."""

    n_in: int
    n_out: int
    indptr: np.ndarray  #: int64, shape (n_out + 1,)
    indices: np.ndarray  #: int32, shape (nnz,), input neurons
    data: np.ndarray  #: float32, shape (nnz,), weights
    bias: np.ndarray  #: float32, shape (n_out,)
    velocity: np.ndarray | None  #: float32, shape (nnz,), of the weights; None before training

    @property
    def nnz(self) -> int:
        """Number of connections."""
        return len(self.data)

    @property
    def density(self) -> float:
        """Share of the possible connections that exist."""
        return self.nnz / (self.n_in * self.n_out)

    def fan_in(self) -> np.ndarray:
        """Return the number of incoming connections of each output neuron, int64."""
        return np.diff(self.indptr)

    def fan_out(self) -> np.ndarray:
        """Return the number of outgoing connections of each input neuron, int64."""
        return np.bincount(self.indices, minlength=self.n_in)

    def input_strength(self) -> np.ndarray:
        """Return each input neuron's sum of absolute weights of outgoing connections, float64."""
        return np.bincount(self.indices, np.abs(self.data), self.n_in)

    def to_scipy(self) -> sp.csr_array:
        """Return a copy of the weights as a CSR array of shape (n_out, n_in)."""
        arrays = (self.data.copy(), self.indices.copy(), self.indptr.copy())
        return sp.csr_array(arrays, shape=(self.n_out, self.n_in))


def split_layers(
    sizes: Sequence[int], weight_start: np.ndarray, indptr: np.ndarray, indices: np.ndarray
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return each layer's part of a network's flat pointers and indices, as views."""
    rows = np.cumsum([0, *(n + 1 for n in sizes[1:])])
    return [
        (indptr[a:b], indices[c:d])
        for (a, b), (c, d) in zip(pairwise(rows), pairwise(weight_start), strict=True)
    ]


def as_inputs(X: Any, n_features: int) -> Any:
    """Return `X` as contiguous float32 or CSR, checked for its number of features."""
    if sp.issparse(X):
        X = sp.csr_array(_checked_sparse("X", X), dtype=np.float32)
    else:
        X = np.ascontiguousarray(X, np.float32)
    if X.ndim != 2 or X.shape[1] != n_features:
        raise ValueError(f"X: expected shape (n, {n_features}), got {X.shape}")
    return X


def _checked_sparse(name: str, matrix: Any) -> Any:
    """Return a scipy.sparse matrix whose pointers and indices are in range: C code trusts them."""
    if matrix.format not in ("csr", "csc", "bsr"):
        matrix = matrix.tocoo()
        inside = [
            len(places) == 0 or (places.min() >= 0 and places.max() < length)
            for places, length in zip(matrix.coords, matrix.shape, strict=True)
        ]
        if not all(inside):
            raise ValueError(f"{name}: has a coordinate outside its shape {matrix.shape}")
        return matrix
    try:
        matrix.check_format(full_check=True)
    except ValueError as error:
        raise ValueError(f"{name}: not a valid {matrix.format} matrix: {error}") from None
    return matrix


def as_labels(y: Any, n: int, n_classes: int) -> np.ndarray:
    """Return `y` as int64, checked to be `n` class indices: the kernels index with them."""
    labels = np.asarray(y, np.int64)
    if labels.shape != (n,):
        raise ValueError(f"y: expected shape ({n},), one label a row of X, got {labels.shape}")
    outside = labels[(labels < 0) | (labels >= n_classes)]
    if len(outside):
        raise ValueError(f"y: expected class indices from 0 to {n_classes - 1}, got {outside[0]}")
    return labels


class SparseMLP:
    """A multilayer perceptron whose layers hold only the weights that exist.

    Make one with `SparseMLP.erdos_renyi` or `SparseMLP.from_scipy`. A value out of its range, or of
    the wrong shape, raises ValueError that names it, here and in every method.

    Parameters
    ----------
    sizes : sequence of int
        Neurons per layer: features, hidden layers, classes.
    structures : sequence of (indptr, indices)
        CSR structure of each layer; `topology.check` refuses an invalid one.
    data, biases : sequences of ndarray of float32
        Weights and biases of each layer; zeros if no biases are given.
    activation : {"all-relu", "relu", "leaky-relu"}
    alpha : float
        Slope of All-ReLU and LeakyReLU.
    init : {"he_uniform", "xavier", "normal"}
        How new connections are weighted when the topology evolves.

    Attributes
    ----------
    params : ndarray of float32, shape (nnz + number of biases,)
        All weights in CSR order, layer by layer, then all biases.
    velocity : ndarray of float32 or None
        Momentum's velocity, laid out like `params`; None until `start_momentum`.
    sizes : tuple of int

    Notes
    -----
    Memory: 16 bytes per connection (weight, index, transposed index and place), 20 with momentum,
    and 24 bytes per neuron.

    Examples
    --------
    >>> from sparsecore import SparseMLP
    >>> model = SparseMLP.erdos_renyi((64, 40, 30, 10), epsilon=5, random_state=0)
    >>> model.sizes, model[0].fan_in().shape
    ((64, 40, 30, 10), (40,))
    >>> nnz = model.nnz
    >>> pruned = model.prune(percentile=20)
    >>> nnz - model.nnz == pruned > 0
    True
    >>> model.compact().nnz <= model.nnz
    True
    """

    def __init__(
        self,
        sizes: Sequence[int],
        structures: Sequence[tuple[np.ndarray, np.ndarray]],
        data: Sequence[np.ndarray],
        biases: Sequence[np.ndarray] | None = None,
        *,
        activation: str = "all-relu",
        alpha: float = 0.6,
        init: str = "he_uniform",
    ) -> None:
        self.sizes = _checked_sizes(sizes)
        if not np.isfinite(alpha):
            raise ValueError(f"alpha: expected a finite number, got {alpha!r}")
        self.activation, self.alpha, self.init = activation, float(alpha), init
        initial_weights(init, 1, 1, 0, np.random.default_rng(0))  # an unknown name is refused here
        slopes = [negative_slope(activation, layer, alpha) for layer in range(1, len(self.sizes))]
        self._slopes = np.array(slopes, np.float32)
        self._bias_start = np.concatenate([[0], np.cumsum(self.sizes[1:])]).astype(np.int64)
        self.velocity: np.ndarray | None = None
        self._assemble(structures, data, None)
        if biases is not None:
            values = np.concatenate([np.asarray(b, np.float32) for b in biases])
            if len(values) != len(self.biases):
                raise ValueError(f"biases: expected {len(self.biases)} values, got {len(values)}")
            self.biases[:] = values

    @classmethod
    def from_flat(
        cls,
        sizes: Sequence[int],
        weight_start: np.ndarray,
        indptr: np.ndarray,
        indices: np.ndarray,
        params: np.ndarray,
        **options: Any,
    ) -> SparseMLP:
        """Make a network from arrays as those of `network`, and `params`; all are copied."""
        structures = split_layers(sizes, weight_start, indptr, indices)
        data = [params[a:b] for a, b in pairwise(weight_start)]
        return cls(sizes, structures, data, [params[weight_start[-1] :]], **options)

    @classmethod
    def erdos_renyi(
        cls,
        sizes: Sequence[int],
        *,
        epsilon: float | None = None,
        density: float | None = None,
        activation: str = "all-relu",
        alpha: float = 0.6,
        init: str = "he_uniform",
        random_state: int | np.random.Generator | None = None,
    ) -> SparseMLP:
        """Make a network with Erdős–Rényi topology and fresh weights.

        Parameters
        ----------
        sizes, activation, alpha, init
            See the class.
        epsilon : float, optional
            Sparsity: a layer's connection probability is min(1, epsilon (n_in + n_out) / (n_in
            n_out)). 20 unless `density` is given.
        density : float, optional
            The same probability in (0, 1] for all layers, instead of `epsilon`.
        random_state : int or Generator, optional
            Determines topology and weights.

        Notes
        -----
        Source: SET, Mocanu et al. 2018, equation 1. O(nnz + neurons) time and memory.
        """
        sizes = _checked_sizes(sizes)
        if epsilon is not None and density is not None:
            raise ValueError(f"give epsilon or density, not both (got {epsilon!r} and {density!r})")
        rng = np.random.default_rng(random_state)
        structures, data = [], []
        for n_in, n_out in pairwise(sizes):
            p = density
            if p is None:
                p = topology.erdos_renyi_density(n_in, n_out, 20 if epsilon is None else epsilon)
            structures.append(topology.erdos_renyi(n_in, n_out, p, rng))
            data.append(initial_weights(init, n_in, n_out, len(structures[-1][1]), rng))
        return cls(sizes, structures, data, activation=activation, alpha=alpha, init=init)

    @classmethod
    def from_scipy(
        cls,
        matrices: Sequence[Any],
        biases: Sequence[np.ndarray] | None = None,
        *,
        activation: str = "all-relu",
        alpha: float = 0.6,
        init: str = "he_uniform",
    ) -> SparseMLP:
        """Make a network from scipy.sparse matrices of shape (fan_out, fan_in), copied.

        A stored zero is a connection; duplicate entries are added up.
        """
        layers = [
            sp.csr_array(_checked_sparse("matrices", m) if sp.issparse(m) else m) for m in matrices
        ]
        # Sorting happens in place, and a CSR matrix of the caller's is not ours to sort.
        layers = [m if m.has_canonical_format else m.copy() for m in layers]
        for layer in layers:
            layer.sum_duplicates()
        if not layers:
            raise ValueError("matrices: expected at least one")
        for below, above in pairwise(layers):
            if above.shape[1] != below.shape[0]:
                raise ValueError(f"matrices: shapes {below.shape} and {above.shape} do not chain")
        sizes = [layers[0].shape[1], *(layer.shape[0] for layer in layers)]
        lengths = sizes[1:] if biases is None else [len(b) for b in biases]
        if lengths != sizes[1:]:
            raise ValueError(f"biases: expected {sizes[1:]} values in the layers, got {lengths}")
        return cls(
            sizes,
            [(layer.indptr, layer.indices) for layer in layers],
            [layer.data for layer in layers],
            biases,
            activation=activation,
            alpha=alpha,
            init=init,
        )

    def _assemble(
        self,
        structures: Sequence[tuple[np.ndarray, np.ndarray]],
        data: Sequence[np.ndarray],
        velocity: Sequence[np.ndarray] | None,
    ) -> None:
        """Lay the layers out in flat arrays; biases, and their velocities, keep their values."""
        n_layers = len(self.sizes) - 1
        if len(structures) != n_layers or len(data) != n_layers:
            raise ValueError(f"expected {n_layers} layers, got {len(structures)} and {len(data)}")
        for layer, (indptr, indices) in enumerate(structures):
            if len(indptr) != self.sizes[layer + 1] + 1 or len(indices) != len(data[layer]):
                raise ValueError(f"layer {layer}: pointers, indices and data do not fit the sizes")
            topology.check(indptr, indices, self.sizes[layer])
        counts = [len(d) for d in data]
        nnz, n_biases = sum(counts), sum(self.sizes[1:])
        old_biases = self.biases if hasattr(self, "params") else np.zeros(n_biases, np.float32)
        place = np.int32 if max(counts) <= _INT32_MAX else np.int64
        self.params = _flat([*data, old_biases], np.float32)
        if velocity is not None and self.velocity is not None:
            self.velocity = _flat([*velocity, self.velocity[-n_biases:]], np.float32)
        self._network = Network(
            sizes=np.array(self.sizes, np.int64),
            weight_start=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            bias_start=self._bias_start,
            weights=self.params[:nnz],
            biases=self.params[nnz:],
            indptr=_flat([indptr for indptr, _ in structures], np.int64),
            indices=_flat([indices for _, indices in structures], np.int32),
            out_indptr=np.zeros(sum(self.sizes[:-1]) + n_layers, np.int64),
            out_indices=np.empty(nnz, np.int32),
            out_position=np.empty(nnz, place),
            slopes=self._slopes,
        )
        for layer in range(n_layers):
            self._transpose(layer)

    def _transpose(self, layer: int) -> None:
        """Bring the transposed access of a layer up to date."""
        view, net = self[layer], self._network
        start = sum(self.sizes[:layer]) + layer
        part = slice(net.weight_start[layer], net.weight_start[layer + 1])
        topology.transpose(
            view.indptr,
            view.indices,
            net.out_indptr[start : start + view.n_in + 1],
            net.out_indices[part],
            net.out_position[part],
        )

    def __len__(self) -> int:
        return len(self.sizes) - 1

    def __getitem__(self, layer: int) -> SparseLayer:
        """Return views of a layer, counted from the input."""
        if not 0 <= layer < len(self):
            raise IndexError(f"layer: expected 0 to {len(self) - 1}, got {layer}")
        net = self._network
        part = slice(int(net.weight_start[layer]), int(net.weight_start[layer + 1]))
        biases = slice(int(self._bias_start[layer]), int(self._bias_start[layer + 1]))
        start, n_out = int(self._bias_start[layer]) + layer, self.sizes[layer + 1]
        return SparseLayer(
            n_in=self.sizes[layer],
            n_out=n_out,
            indptr=net.indptr[start : start + n_out + 1],
            indices=net.indices[part],
            data=net.weights[part],
            bias=net.biases[biases],
            velocity=None if self.velocity is None else self.velocity[part],
        )

    @property
    def network(self) -> Network:
        """The flat arrays, for `engine`; replaced by another tuple when nnz changes."""
        return self._network

    @property
    def biases(self) -> np.ndarray:
        """All biases, a view of `params`, float32."""
        return self.params[self.nnz :]

    @property
    def nnz(self) -> int:
        """Number of connections."""
        return len(self._network.weights)

    @property
    def density(self) -> float:
        """Share of the possible connections that exist."""
        possible = sum(a * b for a, b in pairwise(self.sizes))
        return self.nnz / possible

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays (parameters, structure, transposed access, velocity)."""
        net = self._network
        arrays = [self.params, net.indptr, net.indices, net.out_indptr, net.out_indices]
        arrays += [net.out_position] + ([] if self.velocity is None else [self.velocity])
        return sum(a.nbytes for a in arrays)

    def __repr__(self) -> str:
        shape = "-".join(map(str, self.sizes))
        return (
            f"<SparseMLP {shape}, {self.activation}, density {self.density:.3g}, "
            f"nnz {self.nnz:,}, {self.nbytes / 2**20:.1f} MiB>"
        )

    def to_scipy(self) -> list[sp.csr_array]:
        """Return copies of the layers as CSR arrays of shape (fan_out, fan_in)."""
        return [self[layer].to_scipy() for layer in range(len(self))]

    def __getstate__(self) -> dict[str, Any]:
        """Return what pickling and copying need: without views, which would be copied apart."""
        layers = [self[layer] for layer in range(len(self))]
        return {
            "sizes": self.sizes,
            "structures": [(v.indptr.copy(), v.indices.copy()) for v in layers],
            "data": [v.data.copy() for v in layers],
            "biases": [v.bias.copy() for v in layers],
            "options": {"activation": self.activation, "alpha": self.alpha, "init": self.init},
            "velocity": self.velocity,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        options, velocity = state.pop("options"), state.pop("velocity")
        SparseMLP.__init__(self, **state, **options)
        if velocity is not None:
            self.start_momentum()[:] = velocity

    def copy(self) -> SparseMLP:
        """Return an independent copy, velocity included."""
        twin = SparseMLP.__new__(SparseMLP)
        twin.__setstate__(self.__getstate__())
        return twin

    def weights_sha256(self) -> str:
        """Return the SHA-256 of structure and parameters, as hexadecimal digits."""
        digest = hashlib.sha256()
        net = self._network
        for array in (net.sizes, net.indptr, net.indices, self.params):
            digest.update(np.ascontiguousarray(array).view(np.uint8).data)
        return digest.hexdigest()

    def decision_function(self, X: Any, threads: int = 1) -> np.ndarray:
        """Return the logits, float32, shape (n, n_classes), of an ndarray or scipy.sparse `X`.

        The result does not depend on the number of threads. O(nnz n) time.
        """
        inputs = as_inputs(X, self.sizes[0])
        if not sp.issparse(inputs):
            return engine.logits(self._network, inputs, threads)
        rows = max(1, DENSE_VALUES // inputs.shape[1])
        parts = [
            engine.logits(self._network, inputs[first : first + rows].toarray(), threads)
            for first in range(0, inputs.shape[0], rows)
        ]
        return np.concatenate(parts) if parts else np.empty((0, self.sizes[-1]), np.float32)

    def predict_proba(self, X: Any, threads: int = 1) -> np.ndarray:
        """Return class probabilities, float32, shape (n, n_classes)."""
        return functions.probabilities(self.decision_function(X, threads))

    def predict(self, X: Any, threads: int = 1) -> np.ndarray:
        """Return the most probable class of each row, int64."""
        return self.decision_function(X, threads).argmax(axis=1)

    def loss_and_gradient(
        self, X: np.ndarray, y: np.ndarray, *, dropout: float = 0.0, seed: int = 0, step: int = 0
    ) -> tuple[float, np.ndarray]:
        """Return the mean cross-entropy over (X, y), as one batch, in nats, and its gradient.

        Parameters
        ----------
        X, y : ndarray, shapes (n, n_features) and (n,)
            Samples and their class indices.
        dropout : float in [0, 1)
        seed, step : int
            Determine which activations are dropped.

        Returns
        -------
        loss : float
        gradient : ndarray of float32
            Laid out like `params`: only existing connections have one.

        Notes
        -----
        O(nnz n) time, 4 bytes per neuron and sample.
        """
        inputs = as_inputs(X, self.sizes[0])
        labels = as_labels(y, len(inputs), self.sizes[-1])
        gradient, sums = np.empty_like(self.params), engine.metrics()
        zero = np.float32(0)
        rule = Rule(zero, zero, zero, np.float32(dropout), np.uint64(seed))
        with engine.Engine(self._network, len(inputs)) as runner:
            runner.gradient(gradient, rule, inputs, labels, np.arange(len(inputs)), step, sums)
        return float(sums.loss[0]) / len(inputs), gradient

    def gradient_flow(self, X: np.ndarray, y: np.ndarray, batch_size: int = 1024) -> float:
        """Return the squared norm of the loss's gradient over the existing parameters.

        It is the first-order decrease of the loss under a gradient step ("Truly Sparse Neural
        Networks at Scale"). Batches' gradients are summed in float64, so `batch_size` changes
        memory and rounding only.
        """
        mean = np.zeros(len(self.params))
        for first in range(0, len(X), batch_size):
            part = slice(first, first + batch_size)
            _, gradient = self.loss_and_gradient(X[part], y[part])
            mean += gradient * (len(X[part]) / len(X))
        return float(mean @ mean)

    def new_engine(self, batch_size: int, threads: int = 1) -> engine.Engine:
        """Return what runs this network's training steps, of up to `batch_size` samples."""
        return engine.Engine(self._network, batch_size, threads)

    def start_momentum(self) -> np.ndarray:
        """Return the velocity, allocated with zeros at the first call."""
        if self.velocity is None:
            self.velocity = engine.aligned(len(self.params), np.float32)
        return self.velocity

    def adopt(
        self,
        structures: Sequence[tuple[np.ndarray, np.ndarray]],
        params: np.ndarray,
        velocity: np.ndarray | None = None,
    ) -> None:
        """Copy another topology (`structures`, as in the class) and its parameters to this network.

        `params` and `velocity` are laid out like the attributes; without a velocity, momentum
        starts anew.
        """
        cuts = np.cumsum([0] + [len(indices) for _, indices in structures])
        expected = int(cuts[-1]) + sum(self.sizes[1:])
        if len(params) != expected:
            raise ValueError(f"params: expected {expected} values, got {len(params)}")
        self._assemble(structures, [params[a:b] for a, b in pairwise(cuts)], None)
        self.params[cuts[-1] :] = params[cuts[-1] :]
        self.velocity = None
        if velocity is not None:
            self.start_momentum()[:] = velocity

    def structures(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return each layer's (indptr, indices), views."""
        return [(self[layer].indptr, self[layer].indices) for layer in range(len(self))]

    def evolve(self, zeta: float, rng: np.random.Generator) -> int:
        """Replace the weakest connections of all layers but the output layer; return how many.

        Parameters
        ----------
        zeta : float
            Fraction in [0, 1) of the positive, and of the negative, weights.
        rng : numpy.random.Generator

        Notes
        -----
        Source: SET, Mocanu et al. 2018, algorithm 1. Kept connections keep their velocity, new ones
        start at 0 with fresh initial weights, at random places; nnz stays constant. O(nnz).
        """
        replaced = 0
        for layer in range(len(self) - 1):
            view = self[layer]
            drop = topology.weakest(view.data, zeta)
            fresh = initial_weights(self.init, view.n_in, view.n_out, int(drop.sum()), rng)
            topology.replace(
                drop, view.indptr, view.indices, view.data, view.velocity, view.n_in, fresh, rng
            )
            self._transpose(layer)
            replaced += len(fresh)
        return replaced

    def importance(self, layer: int) -> np.ndarray:
        """Return the importance of the neurons of hidden layer `layer` (1, 2, ...), float64."""
        if not 1 <= layer < len(self):
            raise IndexError(f"layer: hidden layers are 1 to {len(self) - 1}, got {layer}")
        view = self[layer - 1]
        return topology.importance(view.indptr, view.data)

    def prune(self, percentile: float) -> int:
        """Remove unimportant hidden neurons' incoming connections, for good; return how many.

        Parameters
        ----------
        percentile : float
            In [0, 100]. Of the neurons of a layer that still have connections, those whose
            importance is at or below this percentile lose theirs.

        Notes
        -----
        Source: "Truly Sparse Neural Networks at Scale", importance pruning. O(nnz).
        """
        views = [self[layer] for layer in range(len(self))]
        keeps = [~topology.unimportant(v.indptr, v.data, percentile) for v in views[:-1]]
        if all(keep.all() for keep in keeps):
            return 0  # the arrays stay where they are
        keeps.append(np.ones(views[-1].nnz, bool))
        before = self.nnz
        kept = list(zip(keeps, views, strict=True))
        self._assemble(
            [topology.keep_only(keep, v.indptr, v.indices) for keep, v in kept],
            [v.data[keep] for keep, v in kept],
            [v.velocity[keep] for keep, v in kept if v.velocity is not None] or None,
        )
        return before - self.nnz

    def compact(self) -> SparseMLP:
        """Return the equivalent network without the hidden neurons that no longer matter.

        A neuron without incoming connections is a constant, which is folded into the next layer's
        biases; one without outgoing connections is left out. A hidden layer keeps at least one
        neuron. Predictions are the same, to rounding. O(nnz).
        """
        weights = self.to_scipy()
        biases = [self[layer].bias.copy() for layer in range(len(self))]
        for layer in range(len(self) - 1):
            constant = np.diff(weights[layer].indptr) == 0
            value = np.where(biases[layer] > 0, 1, self._slopes[layer]) * biases[layer]
            biases[layer + 1] += weights[layer + 1] @ np.where(constant, value, np.float32(0))
            _remove(constant, layer, weights, biases)
        for layer in range(len(self) - 2, -1, -1):
            unused = np.bincount(weights[layer + 1].indices, minlength=len(biases[layer])) == 0
            _remove(unused, layer, weights, biases)
        return SparseMLP.from_scipy(
            weights, biases, activation=self.activation, alpha=self.alpha, init=self.init
        )


def _remove(
    gone: np.ndarray, layer: int, weights: list[sp.csr_array], biases: list[np.ndarray]
) -> None:
    """Remove neurons between two layers; if all would go, the first stays, disconnected."""
    below, above, keep = weights[layer], weights[layer + 1].tocsc(), ~gone
    if not keep.any():
        keep[0] = True
        above = sp.csc_array(above.shape, dtype=above.dtype)
        below = sp.csr_array(below.shape, dtype=below.dtype)
    places = np.flatnonzero(keep)
    weights[layer], biases[layer] = below[places], biases[layer][places]
    weights[layer + 1] = sp.csr_array(above[:, places])


def _checked_sizes(sizes: Sequence[int]) -> tuple[int, ...]:
    values = list(sizes)
    if len(values) < 2:
        raise ValueError(f"sizes: expected at least an input and an output layer, got {values}")
    for n in values:
        if not isinstance(n, (int, np.integer)) or not 1 <= n <= _INT32_MAX:
            expected = f"integers from 1 to {_INT32_MAX}"
            raise ValueError(f"sizes: expected {expected}, got {n!r} in {values}")
    return tuple(map(int, values))


def _flat(arrays: Sequence[np.ndarray], dtype: type) -> np.ndarray:
    """Concatenate into a cache-aligned vector."""
    out = engine.aligned(sum(len(a) for a in arrays), dtype)
    start = 0
    for array in arrays:
        out[start : start + len(array)] = array
        start += len(array)
    return out
