"""The dense baseline: a network of the same layers with all connections, through BLAS.

The sequential trainer trains it, and only a step differs: a sparse network of density 1 computes
the same numbers up to rounding.
"""

from __future__ import annotations

import hashlib
import json
import os
from functools import cache, partial
from itertools import pairwise
from typing import Any

import numpy as np
from scipy.linalg.blas import sgemm
from threadpoolctl import ThreadpoolController

from sparsecore import checkpoint, experiment, seeds
from sparsecore.compiled.engine import aligned, metrics
from sparsecore.compiled.jit import jit
from sparsecore.compiled.kernels import Metrics, Rule, mix, noise_of
from sparsecore.config import TrainConfig
from sparsecore.datasets import Dataset
from sparsecore.files import atomic_write
from sparsecore.functions import ACTIVATIONS, INITIALIZERS
from sparsecore.provenance import loaded_blas
from sparsecore.samples import as_inputs
from sparsecore.seeds import Purpose
from sparsecore.train import sgd_rule

_jit = jit()
_PREDICT_ROWS = 1024


def run(
    data: Dataset, config: TrainConfig, *, seed: int = 0, threads: int = 1,
    checkpoint_path: str | os.PathLike[str] | None = None, resume: bool = False, **options: Any,
) -> tuple[DenseMLP, dict[str, Any]]:  # fmt: skip
    """Train a dense network, which cannot evolve, as `experiment.run` does; BLAS has `threads`."""
    model = DenseMLP(config, data.n_features, data.n_classes, seed)
    about = experiment.identity(data, config, seed)
    found = experiment.resumed(checkpoint_path, resume, about, model.restore)
    save = checkpoint_path and partial(model.save, checkpoint_path)
    result = experiment.fit(
        model, data, config, seed=seed, threads=threads, save=save, state=found and found[1],
        **options,
    )  # fmt: skip
    with _blas(threads):
        result["provenance"]["blas"] = loaded_blas()
    return model, result


class DenseMLP:
    """The network with all connections; `params` are those of a `SparseMLP` of density 1."""

    def __init__(self, config: TrainConfig, n_features: int, n_classes: int, seed: int) -> None:
        self.sizes = (n_features, *config.hidden, n_classes)
        hidden = range(1, len(self.sizes) - 1)
        self.slopes = [ACTIVATIONS[config.activation](n, config.alpha) for n in hidden]
        self.nnz = sum(a * b for a, b in pairwise(self.sizes))
        self.params = aligned(self.nnz + sum(self.sizes[1:]), np.float32)
        self.velocity = aligned(len(self.params), np.float32)
        rng = seeds.generator(seed, Purpose.WEIGHTS)
        for weights, _ in self.layers(self.params):
            n_out, n_in = weights.shape
            drawn = INITIALIZERS[config.init](n_in, n_out, n_in * n_out, rng)
            weights[:] = drawn.reshape(n_out, n_in)

    def layers(self, flat: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return views of a vector laid out like `params`: weights (n_out, n_in) and biases."""
        views, weight, bias = [], 0, self.nnz
        for n_in, n_out in pairwise(self.sizes):
            matrix = flat[weight : weight + n_in * n_out].reshape(n_out, n_in)
            views.append((matrix, flat[bias : bias + n_out]))
            weight, bias = weight + n_in * n_out, bias + n_out
        return views

    def new_engine(self, batch_size: int, threads: int = 1) -> DenseEngine:
        """Return an engine for the steps, with everything compiled and BLAS warmed up."""
        tiny = DenseMLP(TrainConfig(hidden=(4, 4)), 4, 2, seed=0)
        X, y, rows = np.zeros((2, 4), np.float32), np.zeros(2, np.int64), np.arange(2)
        rule = sgd_rule(TrainConfig(), 0)
        DenseEngine(tiny, 2, threads).train(rule, X, y, rows, 2, 0, metrics())
        return DenseEngine(self, batch_size, threads)

    def start_momentum(self) -> np.ndarray:
        """Return the velocity."""
        return self.velocity

    def decision_function(self, X: Any, threads: int = 1) -> np.ndarray:
        """Return the logits, float32, shape (n, n_classes)."""
        inputs = as_inputs(X, self.sizes[0])
        out = np.empty((len(inputs), self.sizes[-1]), np.float32)
        layers = self.layers(self.params)
        with _blas(threads):
            for first in range(0, len(inputs), _PREDICT_ROWS):
                rows = slice(first, first + _PREDICT_ROWS)
                act = inputs[rows].T
                for (weights, biases), slope in zip(layers, [*self.slopes, 1.0], strict=True):
                    act = weights @ act
                    _activate(act, biases, np.float32(slope), _NO_DROPOUT, 0, 0, None)
                out[rows] = act.T
        return out

    def save(self, path: str | os.PathLike[str], run: dict[str, Any]) -> None:
        """Write parameters, velocity and the state of the run that trains them to one file."""
        arrays = {"params": self.params, "velocity": self.velocity}
        with atomic_write(path, keep=True) as file:
            np.savez(file, allow_pickle=False, run=np.array(json.dumps(run)), **arrays)

    def restore(self, path: str | os.PathLike[str]) -> tuple[DenseMLP, dict[str, Any]]:
        """Read parameters and velocity from a file of `save`; return the state of the run, too."""
        with checkpoint.opened(path, "checkpoint of a dense run") as archive:
            self.params[:] = checkpoint.array(archive, "params")
            self.velocity[:] = checkpoint.array(archive, "velocity")
            return self, json.loads(str(checkpoint.array(archive, "run")))

    def weights_sha256(self) -> str:
        """Return the SHA-256 of sizes and parameters, as hexadecimal digits."""
        digest = hashlib.sha256(np.array(self.sizes, np.int64).tobytes())
        digest.update(self.params.view(np.uint8).data)
        return digest.hexdigest()


class DenseEngine:
    """Takes steps of a dense network, as `engine.Engine` does; 8 bytes per neuron and sample."""

    def __init__(self, model: DenseMLP, batch_size: int, threads: int) -> None:
        self._model, self._threads = model, threads
        self._inputs = np.empty((batch_size, model.sizes[0]), np.float32)
        self._act = [np.empty(n * batch_size, np.float32) for n in model.sizes[1:]]
        self._gain = [np.empty(n * batch_size, np.float32) for n in model.sizes[1:-1]]

    def train(
        self, rule: Rule, inputs: np.ndarray, labels: np.ndarray, rows: np.ndarray, batch_size: int,
        step: int, sums: Metrics,
    ) -> None:  # fmt: skip
        """Take momentum steps over ``inputs[rows]``; see `engine.Engine.train`."""
        with _blas(self._threads):
            for first in range(0, len(rows), batch_size):
                chosen = rows[first : first + batch_size]
                X = np.take(inputs, chosen, axis=0, out=self._inputs[: len(chosen)])
                self._step(rule, X, labels[chosen], step + first // batch_size, sums)

    def _step(
        self, rule: Rule, X: np.ndarray, labels: np.ndarray, step: int, sums: Metrics
    ) -> None:
        model, velocity, n = self._model, self._model.velocity, len(X)
        layers = model.layers(model.params)
        # Feature-major, as in the sparse kernels; the last batch of an epoch may be narrower.
        act = [X.T] + [a[: len(a) // len(self._inputs) * n].reshape(-1, n) for a in self._act]
        gain = [g[: len(g) // len(self._inputs) * n].reshape(-1, n) for g in self._gain]
        for layer, (weights, biases) in enumerate(layers):
            z = _product(weights, act[layer], act[layer + 1])
            if layer < len(gain):
                slope = np.float32(model.slopes[layer])
                _activate(z, biases, slope, rule, step, layer, gain[layer])
            else:
                _softmax_cross_entropy(z, biases, labels, sums.loss, sums.correct)

        rate = float(rule.learning_rate) / n
        for layer in range(len(layers) - 1, -1, -1):
            d, (v, v_bias) = act[layer + 1], model.layers(velocity)[layer]
            _product(d, act[layer].T, v, -rate, float(rule.momentum))
            if layer > 0:  # its inputs are no longer needed: their gradient takes their place
                below = _product(layers[layer][0].T, d, act[layer])
                np.multiply(below, gain[layer - 1], out=below)
            v_bias *= rule.momentum
            v_bias -= np.float32(rate) * d.sum(axis=1)
        _move(model.params, velocity, rule.weight_decay)
        sums.steps[0] += 1

    def close(self) -> None:
        """Do nothing: BLAS keeps its threads."""


_controller = cache(ThreadpoolController)  # finding the libraries takes milliseconds


def _blas(threads: int) -> Any:
    """Return a context in which BLAS uses that many threads."""
    return _controller().limit(limits=threads, user_api="blas")


def _product(
    a: np.ndarray, b: np.ndarray, out: np.ndarray, factor: float = 1.0, carry: float = 0.0
) -> np.ndarray:
    """Compute ``out <- carry out + factor a b`` in place; `a` and `b` are C- or F-contiguous."""
    # BLAS is column-major: it fills the transpose, the product of the transposes. A step's products
    # go to one library: idle threads of NumPy's and SciPy's would keep each other from the cores.
    first, last = ((x.T, False) if x.flags.c_contiguous else (x, True) for x in (b, a))
    sgemm(
        factor, first[0], last[0], beta=carry, c=out.T, trans_a=first[1], trans_b=last[1],
        overwrite_c=True,
    )  # fmt: skip
    return out


@_jit
def _activate(z, biases, slope, rule, step, layer, gain):
    """Turn products into activations, in place; keep each one's derivative in `gain`."""
    noise = noise_of(rule, step)
    key = mix(noise.key, layer)
    for row in range(z.shape[0]):
        bias, row_key = biases[row], np.uint32(mix(key, row))
        for column in range(z.shape[1]):
            value = z[row, column] + bias
            slope_here = noise.scale if value > 0 else noise.scale * slope
            # The same noise as the sparse kernels': `lanes.bernoulli`.
            h = np.uint32(np.uint32(np.uint32(column >> 1) * np.uint32(0x9E3779B1)) ^ row_key)
            h = np.uint32(np.uint32(h ^ (h >> np.uint32(16))) * np.uint32(0x7FEB352D))
            h = np.uint32(np.uint32(h ^ (h >> np.uint32(15))) * np.uint32(0x846CA68B))
            h = np.uint32(h ^ (h >> np.uint32(16)))
            half = np.uint16(h >> np.uint32(16 * (column & 1)))
            slope_here = slope_here if half >= noise.threshold else np.float32(0)
            z[row, column] = value * slope_here
            if gain is not None:
                gain[row, column] = slope_here


_NO_DROPOUT = Rule(np.float32(0), np.float32(0), np.float32(0), np.float32(0), np.uint64(0))


@_jit
def _softmax_cross_entropy(z, biases, labels, loss, correct):
    """Replace logits by the loss's gradient, in place; add up loss and correct samples."""
    n_classes, n = z.shape
    for column in range(n):
        best = 0
        for c in range(n_classes):
            z[c, column] += biases[c]
            if z[c, column] > z[best, column]:
                best = c
        top, total = z[best, column], 0.0
        label = labels[column]
        loss[0] += np.float64(top) - z[label, column]
        correct[0] += best == label
        for c in range(n_classes):
            z[c, column] = np.exp(z[c, column] - top)
            total += z[c, column]
        for c in range(n_classes):
            z[c, column] = np.float32(z[c, column] / total)
        z[label, column] -= np.float32(1)
        loss[0] += np.log(total)


@_jit
def _move(params, velocity, weight_decay):
    """Compute w <- w + v - lambda w."""
    for k in range(len(params)):
        params[k] += velocity[k] - weight_decay * params[k]
