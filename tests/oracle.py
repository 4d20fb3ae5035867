"""The dense NumPy reference that the sparse core is tested against, with its own error bounds.

Everything is computed in float64 with dense matrices, from the formulas and without any of the
package's code. Beside each exact value runs a bound on how far a float32 computation of it may be
off (forward error analysis; Higham, "Accuracy and Stability of Numerical Algorithms", section 3.1):
a sum of n products in any order is off by at most gamma(n) = n u / (1 - n u) times the sum of the
products' magnitudes. Tolerances in the tests are these bounds, not numbers that were tuned. At the
end are the networks and batches that the tests of several modules use.
"""

from typing import NamedTuple

import numpy as np

from sparsecore.mlp import SparseMLP

U = float(np.finfo(np.float32).eps) / 2  # unit roundoff of float32
_TINY = 2.0**-149  # the smallest float32: what a product may lose by underflow
_MASK = 2**64 - 1


def gamma(n):
    return n * U / (1 - n * U)


class Value(NamedTuple):
    """A float64 array, and a bound on the error of its float32 counterpart."""

    exact: np.ndarray
    error: np.ndarray

    @property
    def size(self):
        """Largest magnitude that the float32 counterpart can have."""
        return np.abs(self.exact) + self.error

    def holds(self, computed):
        """Assert that `computed` lies within the bound."""
        excess = np.abs(np.asarray(computed, np.float64) - self.exact) - self.error
        worst = np.unravel_index(np.argmax(excess), excess.shape) if excess.size else ()
        assert np.all(excess <= 0), (
            f"{np.sum(~(excess <= 0))} of {excess.size} values are off; at {worst}: computed "
            f"{np.asarray(computed)[worst]}, exact {self.exact[worst]} within {self.error[worst]}"
        )


def given(array):
    """Take over float32 numbers, which are exact."""
    array = np.asarray(array, np.float64)
    return Value(array, np.zeros_like(array))


def product(a, b, terms):
    """Matrix product whose float32 counterpart rounds at most `terms` times along any path."""
    size_a, size_b = np.abs(a.exact), np.abs(b.exact)
    error = size_a @ b.error + a.error @ size_b + a.error @ b.error
    return Value(a.exact @ b.exact, error + gamma(terms) * (a.size @ b.size) + terms * _TINY)


def scaled(a, factor, roundings):
    """Multiply by a number, with some roundings."""
    exact = a.exact * factor
    error = a.error * abs(factor)
    return Value(exact, error + gamma(roundings) * (np.abs(exact) + error) + roundings * _TINY)


def added(a, b, roundings):
    return Value(a.exact + b.exact, a.error + b.error + gamma(roundings) * (a.size + b.size))


# --- the noise of dropout ------------------------------------------------------------------------


def mix(a, b):
    """The finaliser of splitmix64 (Steele, Lea and Flood, 2014), in Python integers."""
    h = (int(a) + 0x9E3779B97F4A7C15 * (int(b) + 1)) & _MASK
    h = ((h ^ (h >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    h = ((h ^ (h >> 27)) * 0x94D049BB133111EB) & _MASK
    return h ^ (h >> 31)


def bernoulli(key, columns, threshold):
    """Which columns are kept: half of lowbias32 (Wellons, 2018) of key and counter decides."""
    columns = np.asarray(columns, np.uint32)
    with np.errstate(over="ignore"):
        h = (columns >> 1) * np.uint32(0x9E3779B1) ^ np.uint32(key)
        h = (h ^ (h >> np.uint32(16))) * np.uint32(0x7FEB352D)
        h = (h ^ (h >> np.uint32(15))) * np.uint32(0x846CA68B)
        h = h ^ (h >> np.uint32(16))
    return np.where(columns % 2, h >> np.uint32(16), h & np.uint32(0xFFFF)) >= threshold


def kept(seed, step, layer, n_rows, n_columns, rate):
    """Dropout's mask of hidden layer `layer` (0, 1, ...): bool, shape (n_rows, n_columns)."""
    key = mix(mix(seed, step), layer)
    threshold = int(float(np.float32(rate)) * 2**16)
    columns = np.arange(n_columns)
    return np.array(
        [bernoulli(mix(key, r) & 0xFFFFFFFF, columns, threshold) for r in range(n_rows)]
    )


def stretch(rate):
    """The factor of inverted dropout, as a float32."""
    return float(np.float32(1 / (1 - float(np.float32(rate)))))


# --- the network ---------------------------------------------------------------------------------


def slope(activation, layer, alpha):
    """Negative slope of hidden layer `layer` (1, 2, ...), from its definition."""
    alpha = float(np.float32(alpha))
    return {"relu": 0.0, "leaky-relu": alpha, "all-relu": -alpha if layer % 2 else alpha}[
        activation
    ]


def dense(layer):
    """Weights and support of a `SparseLayer` as dense arrays of shape (n_out, n_in)."""
    rows = np.repeat(np.arange(layer.n_out), np.diff(layer.indptr))
    weights, support = np.zeros((layer.n_out, layer.n_in)), np.zeros((layer.n_out, layer.n_in), int)
    np.add.at(support, (rows, layer.indices), 1)
    assert support.max(initial=0) <= 1, "a connection is there twice"
    weights[rows, layer.indices] = layer.data
    return weights, support > 0


class Net:
    """A dense copy of a `SparseMLP`."""

    def __init__(self, model):
        layers = [dense(layer) for layer in model]
        self.support = [support for _, support in layers]
        self.weights = [given(weights) for weights, _ in layers]
        self.biases = [given(layer.bias) for layer in model]
        self.slopes = [slope(model.activation, i + 1, model.alpha) for i in range(len(model) - 1)]
        self.velocity = given(np.zeros(len(model.params)))

    def flat(self, weights, biases):
        """Lay values out as `SparseMLP.params`: weights in CSR order, then biases."""
        parts = [Value(w.exact[s], w.error[s]) for w, s in zip(weights, self.support, strict=True)]
        parts += biases
        return Value(
            np.concatenate([p.exact for p in parts]), np.concatenate([p.error for p in parts])
        )

    @property
    def params(self):
        return self.flat(self.weights, self.biases)

    @params.setter
    def params(self, value):
        start = 0
        for i, support in enumerate(self.support):
            stop = start + support.sum()
            exact, error = np.zeros(support.shape), np.zeros(support.shape)
            exact[support], error[support] = value.exact[start:stop], value.error[start:stop]
            self.weights[i], start = Value(exact, error), stop
        for i, support in enumerate(self.support):
            stop = start + len(support)
            self.biases[i], start = Value(value.exact[start:stop], value.error[start:stop]), stop
        assert start == len(value.exact)

    def masks(self, n, dropout, seed, step):
        sizes = [len(s) for s in self.support[:-1]]
        return [kept(seed, step, i, size, n, dropout) for i, size in enumerate(sizes)]

    def forward(self, X, dropout=0.0, seed=0, step=0):
        """Return inputs of each layer, pre-activations of each layer, and dropout's masks."""
        factor = stretch(dropout)
        masks = self.masks(len(X), dropout, seed, step) if dropout else None
        inputs, sums = [given(np.asarray(X, np.float32).T)], []
        for i, (w, b) in enumerate(zip(self.weights, self.biases, strict=True)):
            terms = self.support[i].sum(axis=1).max() + 1
            z = product(w, inputs[-1], terms)
            b = Value(b.exact[:, None], b.error[:, None])
            # The bias is where the float32 sum begins: it is rounded with every term.
            error = z.error + b.error + gamma(terms) * b.size
            z = Value(z.exact + b.exact, np.broadcast_to(error, z.exact.shape))
            sums.append(z)
            if i == len(self.weights) - 1:
                break
            exact = factor * np.where(z.exact > 0, z.exact, self.slopes[i] * z.exact)
            # f is Lipschitz, so a sign that float32 gets wrong is within this bound as well.
            steepest = factor * max(1.0, abs(self.slopes[i]))
            error = steepest * (z.error + gamma(2) * z.size)
            if masks is not None:
                exact, error = exact * masks[i], error * masks[i]
            inputs.append(Value(exact, error))
        return inputs, sums, masks

    def logits(self, X):
        z = self.forward(X)[1][-1]
        return Value(z.exact.T, z.error.T)

    def loss_and_gradient(self, X, y, dropout=0.0, seed=0, step=0):
        """Return mean cross-entropy, gradient laid out as `params`, and correct samples."""
        factor, n = stretch(dropout), len(X)
        inputs, sums, masks = self.forward(X, dropout, seed, step)
        z = sums[-1]
        top = z.exact.max(axis=0)
        log_norm = top + np.log(np.exp(z.exact - top).sum(axis=0))
        losses = log_norm - z.exact[y, np.arange(n)]
        # The loss's gradient in the logits, p - onehot, has a 1-norm of at most 2.
        slack = z.error.max(axis=0)
        loss = Value(
            np.mean(losses), np.mean(2 * slack) + 1e-14 * np.mean(log_norm - z.exact.min())
        )
        correct = int(np.sum(z.exact.argmax(axis=0) == y))

        p = np.exp(z.exact - log_norm)
        p[y, np.arange(n)] -= 1
        # Row c of the softmax's Jacobian has a 1-norm of 2 p (1 - p) <= 1/2; then one rounding.
        d = Value(p, np.broadcast_to(0.5 * slack, p.shape) + U * (1 + slack) + 1e-14)
        return loss, self.gradient(d, inputs, sums, masks, factor), correct

    def gradient(self, d, inputs, sums, masks=None, factor=1.0):
        """Return the mean gradient, laid out as `params`, from that in each sample's logits."""
        n = d.exact.shape[1]
        weights, biases = [None] * len(self.weights), [None] * len(self.weights)
        for i in range(len(self.weights) - 1, -1, -1):
            # Sum over the batch in blocks, each times the rounded 1/n, then added up.
            terms = 2 * n + 4
            g = product(d, Value(inputs[i].exact.T, inputs[i].error.T), terms)
            weights[i] = scaled(Value(g.exact * self.support[i], g.error), 1 / n, 1)
            ones = given(np.ones((n, 1)))
            g = product(d, ones, terms)
            biases[i] = scaled(Value(g.exact[:, 0], g.error[:, 0]), 1 / n, 1)
            if i == 0:
                break
            w, z = self.weights[i], sums[i - 1]
            acc = product(Value(w.exact.T, w.error.T), d, max(1, self.support[i].sum(axis=0).max()))
            s = self.slopes[i - 1]
            f = factor * np.where(z.exact > 0, 1.0, s)
            error = np.abs(f) * (acc.error + gamma(2) * acc.size)
            # Where z is within its error of the kink, float32 may be on the other side of it.
            unsure = np.abs(z.exact) <= z.error
            error = error + unsure * factor * abs(1 - s) * acc.size * (1 + gamma(2))
            keep = 1.0 if masks is None else masks[i - 1]
            d = Value(acc.exact * f * keep, error * keep)
        return self.flat(weights, biases)

    def step(self, X, y, learning_rate, momentum, weight_decay, dropout=0.0, seed=0, step=0):
        """Take one momentum step: v <- mu v - eta g; w <- w + v - lambda w."""
        eta, mu, decay = (float(np.float32(v)) for v in (learning_rate, momentum, weight_decay))
        loss, gradient, correct = self.loss_and_gradient(X, y, dropout, seed, step)
        # Each block of the batch adds to the velocity, with a rounding.
        roundings = len(X) + 2
        self.velocity = added(scaled(self.velocity, mu, 1), scaled(gradient, -eta, 2), roundings)
        params = self.params
        self.params = added(added(params, self.velocity, 2), scaled(params, -decay, 1), 2)
        return loss, correct


# --- what it is tried on -------------------------------------------------------------------------

SIZES = (37, 41, 29, 23, 7)


def network(sizes=SIZES, density=0.2, activation="all-relu", seed=0, alpha=0.6):
    """Make a network whose biases matter: they start at 0, and training moves them."""
    rng = np.random.default_rng(seed)
    model = SparseMLP.erdos_renyi(
        sizes, density=density, activation=activation, alpha=alpha, random_state=rng
    )
    model.biases[:] = rng.normal(0, 0.2, len(model.biases))
    return model


def batch(model, n, seed=1):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, model.sizes[0]), np.float32)
    return X, rng.integers(model.sizes[-1], size=n)
