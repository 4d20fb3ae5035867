"""`SparseMLP`: the parameters of a truly sparse perceptron, and the operations on them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import scipy.sparse as sp

from sparsecore import functions, topology
from sparsecore.compiled import engine
from sparsecore.compiled.arrays import Fixed, sealed
from sparsecore.compiled.kernels import Network, Rule, State
from sparsecore.config import HYPERPARAMETERS, LARGEST, PERCENTILE, integers
from sparsecore.functions import ACTIVATIONS, INITIALIZERS
from sparsecore.samples import DENSE_VALUES, as_inputs, as_labels, check_finite, checked_sparse

_INT32_MAX = np.iinfo(np.int32).max
_NEURONS, _SEEDS = integers(1, _INT32_MAX), integers(0, 2**64 - 1)
Structures = Sequence[topology.Structure]  #: each layer's


@dataclass(frozen=True)
class SparseLayer:
    """Views of one layer's arrays; row j of the CSR matrix is neuron j's incoming connections.

    Weights, biases and velocities can be written; the structure cannot.
    """

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
        """Return the sum of each input neuron's absolute outgoing weights, float64."""
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


def _vector(name: str, values: Any, n: int) -> np.ndarray:
    """Return `n` values as float32."""
    vector = np.asarray(values, np.float32)
    if vector.shape != (n,):
        found = len(vector) if vector.ndim == 1 else f"shape {vector.shape}"
        raise ValueError(f"{name}: expected {n} values, got {found}")
    return vector


class SparseMLP(Fixed):
    """A multilayer perceptron whose layers hold only the weights that exist.

    Make one with `SparseMLP.erdos_renyi` or `SparseMLP.from_scipy`. ``model[i]`` is layer i as a
    `SparseLayer`, counted from 0 at the input; ``for layer in model`` visits all layers. A model of
    `experiment.run` or `wasap.run` expects standardised rows (`Dataset.scaled`). Here and in every
    method, a value out of range or of the wrong shape raises a ValueError that names it. An
    interrupt (Ctrl-C) never leaves a training step, an evolution, a pruning or `adopt` half done.

    Parameters
    ----------
    sizes : sequence of int
        Neurons per layer: features, hidden layers, classes.
    structures : sequence of (indptr, indices)
        CSR structure of each layer; `topology.check` refuses an invalid one.
    data, biases : sequences of ndarray of float32
        Weights and biases of each layer. Biases are 0 if left out.
    activation : {"all-relu", "relu", "leaky-relu"}, default="all-relu"
    alpha : float, default=0.6
        Slope of All-ReLU and LeakyReLU.
    init : {"he_uniform", "xavier", "normal"}, default="he_uniform"
        Distribution of the weights that `erdos_renyi` and evolution draw.

    Attributes
    ----------
    params : ndarray of float32, shape (nnz + number of biases,)
        All weights in CSR order, layer by layer, then all biases. A writable view, valid until the
        topology changes.
    velocity : ndarray of float32 or None
        Velocity of each parameter, laid out like `params` and also such a view; None until
        `start_momentum`. Assigned values are copied.
    sizes : tuple of int

    Notes
    -----
    Memory: 16 bytes per connection (weight, index, transposed index and place), 20 with momentum,
    and 24 bytes per neuron; twice that while the topology changes, because the new network is
    made beside the old one.

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

    FIXED = ("sizes", "activation", "alpha", "init")
    _state: State

    def __init__(
        self, sizes: Sequence[int], structures: Structures, data: Sequence[np.ndarray],
        biases: Sequence[np.ndarray] | None = None, *,
        activation: str = "all-relu", alpha: float = 0.6, init: str = "he_uniform",
    ) -> None:  # fmt: skip
        self.sizes = _checked_sizes(sizes)
        for name, value in {"activation": activation, "alpha": alpha, "init": init}.items():
            HYPERPARAMETERS[name].check(value)
        self.activation, self.alpha, self.init = activation, float(alpha), init
        biases = [np.zeros(n, np.float32) for n in self.sizes[1:]] if biases is None else biases
        nnz = [np.size(indices) for _, indices in structures]
        for name, given, expected in (("data", data, nnz), ("biases", biases, [*self.sizes[1:]])):
            lengths = [len(v) if np.ndim(v) == 1 else np.shape(v) for v in given]
            if lengths != expected:
                raise ValueError(f"{name}: expected {expected} values in the layers, got {lengths}")
        self.adopt(structures, np.concatenate([*data, *biases]))

    @classmethod
    def from_flat(
        cls, sizes: Sequence[int], weight_start: np.ndarray, indptr: np.ndarray,
        indices: np.ndarray, params: np.ndarray, *, velocity: np.ndarray | None = None,
        **options: Any,
    ) -> SparseMLP:  # fmt: skip
        """Make a network from arrays laid out as in `network` and `params`; all are copied."""
        sizes = _checked_sizes(sizes)
        n_pointers = sum(sizes[1:]) + len(sizes) - 1
        starts, nnz = np.asarray(weight_start), len(indices)
        if np.shape(indptr) != (n_pointers,):
            raise ValueError(f"indptr: expected {n_pointers} values, got shape {np.shape(indptr)}")
        fits = starts.shape == (len(sizes),) and starts.dtype.kind in "iu"
        if not fits or starts[0] != 0 or starts[-1] != nnz or (starts[1:] < starts[:-1]).any():
            expected = f"{len(sizes)} integers that rise from 0 to {nnz}"
            raise ValueError(f"weight_start: expected {expected}, got {starts}")
        structures = split_layers(sizes, starts, indptr, indices)
        params = _vector("params", params, nnz + sum(sizes[1:]))
        data = [params[a:b] for a, b in pairwise(starts)]
        biases = np.split(params[nnz:], np.cumsum(sizes[1:-1]))
        model = cls(sizes, structures, data, biases, **options)
        model.velocity = velocity
        return model

    @classmethod
    def erdos_renyi(
        cls, sizes: Sequence[int], *, epsilon: float | None = None, density: float | None = None,
        activation: str = "all-relu", alpha: float = 0.6, init: str = "he_uniform",
        random_state: int | np.random.Generator | None = None,
    ) -> SparseMLP:  # fmt: skip
        """Make a network with Erdős–Rényi topology and fresh weights.

        Parameters
        ----------
        sizes, activation, alpha, init
            See the class.
        epsilon : float, optional
            Erdős–Rényi ε: a layer's connection probability is min(1, epsilon (n_in + n_out) / (n_in
            n_out)). The default is 20, unless `density` is given.
        density : float, optional
            Connection probability of every layer, in (0, 1]; replaces `epsilon`.
        random_state : int or Generator, optional
            Determines topology and weights.

        Notes
        -----
        Source: SET, Mocanu et al. 2018, equation 1. O(nnz + neurons) time and memory.
        """
        sizes = _checked_sizes(sizes)
        if epsilon is not None and density is not None:
            raise ValueError(f"give epsilon or density, not both (got {epsilon!r} and {density!r})")
        HYPERPARAMETERS["init"].check(init)
        if not (random_state is None or isinstance(random_state, np.random.Generator)):
            integers(0).check("random_state", random_state)
        rng = np.random.default_rng(random_state)
        structures, data = [], []
        for n_in, n_out in pairwise(sizes):
            p = density
            if p is None:
                p = topology.erdos_renyi_density(n_in, n_out, 20 if epsilon is None else epsilon)
            structures.append(topology.erdos_renyi(n_in, n_out, p, rng))
            data.append(INITIALIZERS[init](n_in, n_out, len(structures[-1][1]), rng))
        return cls(sizes, structures, data, activation=activation, alpha=alpha, init=init)

    @classmethod
    def from_scipy(
        cls, matrices: Sequence[Any], biases: Sequence[np.ndarray] | None = None, *,
        activation: str = "all-relu", alpha: float = 0.6, init: str = "he_uniform",
    ) -> SparseMLP:  # fmt: skip
        """Make a network from matrices.

        Parameters
        ----------
        matrices : sequence of scipy.sparse, shape (fan_out, fan_in)
            Each layer's weights, copied to float32. A stored zero is a connection; duplicate
            entries are added up.
        biases : sequence of ndarray, shape (fan_out,), optional
            0 if left out.
        activation, alpha, init
            See the class.

        Raises
        ------
        ValueError
            If there is no matrix, a value is not finite, or the shapes do not chain.
        """
        layers = [
            sp.csr_array(checked_sparse("matrices", m) if sp.issparse(m) else m) for m in matrices
        ]
        # Duplicates are summed in place, so a caller's own CSR matrix is copied first.
        layers = [m if m.has_canonical_format else m.copy() for m in layers]
        if not layers or any(layer.ndim != 2 for layer in layers):
            raise ValueError("matrices: expected at least one, each of shape (fan_out, fan_in)")
        for layer in layers:
            check_finite(layer, "matrices", "a weight has to be a finite number")
            layer.sum_duplicates()
        for below, above in pairwise(layers):
            if above.shape[1] != below.shape[0]:
                raise ValueError(f"matrices: shapes {below.shape} and {above.shape} do not chain")
        sizes = [layers[0].shape[1], *(layer.shape[0] for layer in layers)]
        structures = [(layer.indptr, layer.indices) for layer in layers]
        model = cls(
            sizes, structures, [layer.data for layer in layers], biases,
            activation=activation, alpha=alpha, init=init,
        )  # fmt: skip
        if not np.isfinite(model.params).all():
            told = f"expected finite numbers of at most {LARGEST:.2g}"
            raise ValueError(f"matrices, biases: {told}")
        return model

    def __len__(self) -> int:
        return len(self.sizes) - 1

    def __iter__(self) -> Iterator[SparseLayer]:
        return map(self.__getitem__, range(len(self)))

    def __getitem__(self, layer: int) -> SparseLayer:
        """Return views of a layer, counted from the input."""
        if not 0 <= layer < len(self):
            raise IndexError(f"layer: expected 0 to {len(self) - 1}, got {layer}")
        net, _, velocity, _ = engine.settle(self._state)
        part = slice(int(net.weight_start[layer]), int(net.weight_start[layer + 1]))
        biases = slice(int(net.bias_start[layer]), int(net.bias_start[layer + 1]))
        start, n_out = biases.start + layer, self.sizes[layer + 1]
        structure = net.indptr[start : start + n_out + 1], net.indices[part]
        moved = None if velocity is None else velocity[part]
        weights = net.weights[part], net.biases[biases]
        return SparseLayer(self.sizes[layer], n_out, *structure, *weights, moved)

    @property
    def network(self) -> Network:
        """Views of the flat arrays; the structure is read-only."""
        return Network(*(array.view() for array in self._state.network))

    @property
    def params(self) -> np.ndarray:
        """All weights, then all biases."""
        return self._state.params.view()

    @property
    def velocity(self) -> np.ndarray | None:
        """The velocity of each parameter."""
        velocity = engine.settle(self._state).velocity
        return None if velocity is None else velocity.view()

    @velocity.setter
    def velocity(self, values: np.ndarray | None) -> None:
        own = None if values is None else _copy(_vector("velocity", values, len(self.params)))
        self._state = self._state._replace(velocity=own, transposed=np.zeros(1, bool))

    @property
    def biases(self) -> np.ndarray:
        """All biases, a view of `params`, float32."""
        return self.params[self.nnz :]

    @property
    def nnz(self) -> int:
        """Number of connections."""
        return len(self._state.network.weights)

    @property
    def density(self) -> float:
        """Share of the possible connections that exist."""
        return self.nnz / sum(a * b for a, b in pairwise(self.sizes))

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays (parameters, structure, transposed access, velocity)."""
        velocity = self._state.velocity  # not settled: another thread may be training
        return sum(a.nbytes for a in self._state.network) + getattr(velocity, "nbytes", 0)

    def __repr__(self) -> str:
        shape, size = "-".join(map(str, self.sizes)), f"{self.nbytes / 2**20:.1f} MiB"
        about = f"{self.activation}, density {self.density:.3g}, nnz {self.nnz:,}"
        return f"<SparseMLP {shape}, {about}, {size}>"

    def to_scipy(self) -> list[sp.csr_array]:
        """Return copies of the layers as CSR arrays of shape (fan_out, fan_in)."""
        return [layer.to_scipy() for layer in self]

    @property
    def options(self) -> dict[str, Any]:
        """The arguments `activation`, `alpha` and `init` that the network was made with."""
        return {"activation": self.activation, "alpha": self.alpha, "init": self.init}

    def __reduce__(self) -> tuple[Any, ...]:
        """Return how to make the network again, for pickles and copies."""
        # `_state` itself has views of these arrays, which would become separate copies.
        net = self.network
        flat = self.sizes, net.weight_start, net.indptr, net.indices, self.params
        return partial(SparseMLP.from_flat, velocity=self.velocity, **self.options), flat

    def copy(self, **options: Any) -> SparseMLP:
        """Return an independent copy, velocity included, with other `options` if given."""
        make, flat = self.__reduce__()
        return make(*flat, **options)

    def weights_sha256(self) -> str:
        """Return the SHA-256 of structure and parameters, as hexadecimal digits."""
        digest = hashlib.sha256()
        net = self._state.network
        for array in (net.sizes, net.indptr, net.indices, self.params):
            digest.update(np.ascontiguousarray(array).view(np.uint8).data)
        return digest.hexdigest()

    def decision_function(self, X: Any, threads: int = 1) -> np.ndarray:
        """Return the logits.

        Parameters
        ----------
        X : ndarray or scipy.sparse, shape (n, n_features)
        threads : int
            The result does not depend on it. O(nnz n) time with one thread.

        Returns
        -------
        ndarray of float32, shape (n, n_classes)
        """
        inputs = as_inputs(X, self.sizes[0])
        if not sp.issparse(inputs):
            return engine.logits(self._state.network, inputs, threads)
        rows = max(1, DENSE_VALUES // inputs.shape[1])
        parts = [
            engine.logits(self._state.network, inputs[first : first + rows].toarray(), threads)
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
        self, X: Any, y: np.ndarray, *, dropout: float = 0.0, seed: int = 0, step: int = 0
    ) -> tuple[float, np.ndarray]:
        """Return the mean cross-entropy of (X, y) as one batch, in nats, and its gradient.

        Parameters
        ----------
        X : ndarray or scipy.sparse, shape (n, n_features)
        y : ndarray, shape (n,)
            Class indices.
        dropout : float in [0, 1)
        seed, step : int
            Determine which activations are dropped.

        Returns
        -------
        loss : float
        gradient : ndarray of float32
            Laid out like `params`: only existing connections have a gradient.

        Notes
        -----
        O(nnz n) time, 4 bytes per neuron and sample.
        """
        HYPERPARAMETERS["dropout"].check(dropout)
        _SEEDS.check("seed", seed)
        inputs = as_inputs(X, self.sizes[0])
        inputs = inputs.toarray() if sp.issparse(inputs) else inputs
        labels = as_labels(y, len(inputs), self.sizes[-1])
        if not len(inputs):
            raise ValueError("X: expected at least one row, got none")
        gradient, sums = np.empty_like(self.params), engine.metrics()
        zero = np.float32(0)
        rule = Rule(zero, zero, zero, np.float32(dropout), np.uint64(seed))
        with self.new_engine(len(inputs)) as runner:
            runner.gradient(gradient, rule, inputs, labels, np.arange(len(inputs)), step, sums)
        return float(sums.loss[0]) / len(inputs), gradient

    def gradient_flow(self, X: Any, y: np.ndarray, batch_size: int = 1024) -> float:
        """Return the squared norm of the loss's gradient over the existing parameters.

        Parameters
        ----------
        X, y
            As in `loss_and_gradient`.
        batch_size : int
            Samples per partial gradient, summed in float64; affects only memory and rounding.

        Notes
        -----
        Source: Evci et al. (2022), "Gradient Flow in Sparse Neural Networks". It is the
        first-order decrease of the loss in a gradient step. O(nnz n) time.
        """
        X = as_inputs(X, self.sizes[0])
        n = X.shape[0]
        y = as_labels(y, n, self.sizes[-1])
        if n == 0 or batch_size < 1:
            got = f"{n} rows and batch_size {batch_size!r}"
            raise ValueError(f"X, batch_size: expected at least 1 row and batch_size 1, got {got}")
        mean = np.zeros(len(self.params))
        for first in range(0, n, batch_size):
            part = slice(first, first + batch_size)
            _, gradient = self.loss_and_gradient(X[part], y[part])
            mean += gradient * (len(y[part]) / n)
        return float(mean @ mean)

    def new_engine(self, batch_size: int, threads: int = 1) -> engine.Engine:
        """Return an engine for this network's training steps, of up to `batch_size` samples."""
        return engine.Engine(lambda: engine.settle(self._state), batch_size, threads)

    def start_momentum(self) -> np.ndarray:
        """Return the velocity; the first call allocates it, with zeros."""
        if self._state.velocity is None:
            self.velocity = np.zeros(len(self.params), np.float32)
        return self.velocity  # type: ignore[return-value]

    def adopt(
        self, structures: Structures, params: np.ndarray, velocity: np.ndarray | None = None
    ) -> None:
        """Replace topology and parameters by copies; without a velocity, momentum restarts."""
        if len(structures) != len(self):
            raise ValueError(f"structures: expected {len(self)} layers, got {len(structures)}")
        for layer, (indptr, indices) in enumerate(structures):
            expected, found = (self.sizes[layer + 1] + 1,), np.shape(indptr)
            if found != expected:
                raise ValueError(f"layer {layer}, indptr: expected shape {expected}, got {found}")
            topology.check(indptr, indices, self.sizes[layer])
        pointers, columns = zip(*structures, strict=True)
        starts = np.cumsum([0, *map(len, columns)], dtype=np.int64)
        n_params = int(starts[-1]) + sum(self.sizes[1:])
        params = _copy(_vector("params", params, n_params))
        moved = None if velocity is None else _copy(_vector("velocity", velocity, n_params))
        self._install(starts, _flat(pointers, np.int64), _flat(columns, np.int32), params, moved)

    def _install(
        self, starts: np.ndarray, indptr: np.ndarray, indices: np.ndarray, params: np.ndarray,
        velocity: np.ndarray | None,
    ) -> None:  # fmt: skip
        """Make these arrays the network's own; an interrupt comes before or after."""
        nnz, inputs = len(indices), np.cumsum([0, *(n + 1 for n in self.sizes[:-1])])
        place = np.int32 if np.diff(starts).max() <= _INT32_MAX else np.int64
        slopes = [ACTIVATIONS[self.activation](n, self.alpha) for n in range(1, len(self.sizes))]
        network = Network(
            sizes=np.array(self.sizes, np.int64),
            weight_start=starts,
            bias_start=np.cumsum([0, *self.sizes[1:]], dtype=np.int64),
            weights=params[:nnz],
            biases=params[nnz:],
            indptr=indptr,
            indices=indices,
            out_indptr=engine.aligned(int(inputs[-1]), np.int64),
            out_indices=engine.aligned(nnz, np.int32),
            out_position=engine.aligned(nnz, place),
            slopes=np.array(slopes, np.float32),
        )
        for layer, structure in enumerate(split_layers(self.sizes, starts, indptr, indices)):
            part, own = slice(*starts[layer : layer + 2]), slice(*inputs[layer : layer + 2])
            access = network.out_indptr[own], network.out_indices[part], network.out_position[part]
            topology.transpose(*structure, *access)
        self._state = _sealed(State(network, params, velocity, np.zeros(1, bool)))

    def structures(self) -> list[topology.Structure]:
        """Return each layer's (indptr, indices) as views."""
        return [(layer.indptr, layer.indices) for layer in self]

    def evolve(self, zeta: float, rng: np.random.Generator) -> int:
        """Replace the weakest connections of all layers but the output layer; return their number.

        Parameters
        ----------
        zeta : float
            Fraction of the positive weights, and of the negative ones, to replace; in [0, 1).
        rng : numpy.random.Generator

        Notes
        -----
        Source: SET, Mocanu et al. 2018, algorithm 1. Kept connections keep their velocity. New
        ones have random places, fresh initial weights and velocity 0. nnz stays constant. O(nnz).
        """
        HYPERPARAMETERS["zeta"].check(zeta)
        net, velocity, replaced = self.network, self.velocity, 0
        indptr, indices, params = map(_copy, (net.indptr, net.indices, self.params))
        velocity = None if velocity is None else _copy(velocity)
        structures = split_layers(self.sizes, net.weight_start, indptr, indices)
        for layer, (n_in, n_out) in enumerate(pairwise(self.sizes[:-1])):
            part = slice(*net.weight_start[layer : layer + 2])
            drop = topology.weakest(params[part], zeta)
            fresh = INITIALIZERS[self.init](n_in, n_out, int(drop.sum()), rng)
            own = None if velocity is None else velocity[part]
            topology.replace(drop, *structures[layer], params[part], own, n_in, fresh, rng)
            replaced += len(fresh)
        self._install(net.weight_start, indptr, indices, params, velocity)
        return replaced

    def importance(self, layer: int) -> np.ndarray:
        """Return the importance of the neurons of hidden layer `layer` (1, 2, ...), float64."""
        if not 1 <= layer < len(self):
            raise IndexError(f"layer: hidden layers are 1 to {len(self) - 1}, got {layer}")
        view = self[layer - 1]
        return topology.importance(view.indptr, view.data)

    def prune(self, percentile: float, counts_empty: bool = False) -> int:
        """Remove the inputs of unimportant hidden neurons for good; return how many connections.

        Parameters
        ----------
        percentile : float
            In [0, 100]. Of a layer's neurons that still have inputs, those at or below this
            percentile of importance lose them; 0 removes none.
        counts_empty : bool
            Take the percentile over all neurons of a layer; those without inputs count as 0.

        Notes
        -----
        Source: "Truly Sparse Neural Networks at Scale", importance pruning. O(nnz).
        """
        PERCENTILE.check("percentile", percentile)
        views = list(self)
        keeps = [
            ~topology.unimportant(v.indptr, v.data, percentile, counts_empty) for v in views[:-1]
        ]
        if all(keep.all() for keep in keeps):
            return 0  # the arrays stay where they are
        keeps.append(np.ones(views[-1].nnz, bool))
        kept = np.concatenate([*keeps, np.ones(len(self.biases), bool)])
        self.adopt(
            [topology.keep_only(k, v.indptr, v.indices) for k, v in zip(keeps, views, strict=True)],
            self.params[kept],
            None if self.velocity is None else self.velocity[kept],
        )
        return len(kept) - int(kept.sum())

    def compact(self) -> SparseMLP:
        """Return the equivalent network without the hidden neurons that no longer matter.

        A neuron without incoming connections is a constant, which is folded into the next layer's
        biases; a neuron without outgoing connections is left out. A hidden layer keeps at least
        one neuron. Predictions are the same, up to rounding. O(nnz).
        """
        weights = self.to_scipy()
        biases = [layer.bias.copy() for layer in self]
        for layer in range(len(self) - 1):
            constant = np.diff(weights[layer].indptr) == 0
            value = np.where(biases[layer] > 0, 1, self.network.slopes[layer]) * biases[layer]
            biases[layer + 1] += weights[layer + 1] @ np.where(constant, value, np.float32(0))
            _remove(constant, layer, weights, biases)
        for layer in range(len(self) - 2, -1, -1):
            unused = np.bincount(weights[layer + 1].indices, minlength=len(biases[layer])) == 0
            _remove(unused, layer, weights, biases)
        return SparseMLP.from_scipy(weights, biases, **self.options)


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


def _sealed(state: State) -> State:
    """Make the structure read-only for good: kernels rely on earlier checks."""
    net = state.network
    sealed_arrays = Network(*map(sealed, net))._replace(weights=net.weights, biases=net.biases)
    return state._replace(network=sealed_arrays)


def _checked_sizes(sizes: Sequence[int]) -> tuple[int, ...]:
    values = list(sizes)
    if len(values) < 2:
        raise ValueError(f"sizes: expected at least an input and an output layer, got {values}")
    return tuple(int(_NEURONS.check("sizes", n)) for n in values)


def _copy(array: np.ndarray) -> np.ndarray:
    return _flat([array], array.dtype)


def _flat(arrays: Sequence[np.ndarray], dtype: Any) -> np.ndarray:
    """Concatenate into a cache-aligned vector."""
    out = engine.aligned(sum(map(len, arrays)), dtype)
    return np.concatenate(arrays, out=out, casting="unsafe")
