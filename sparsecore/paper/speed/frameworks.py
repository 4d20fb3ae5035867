"""The peers that are written for PyTorch or JAX, which are imported when one is made."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from sparsecore.paper.speed.peers import Adapter, Problem


class TorchDense(Adapter):
    """`torch.nn.Linear` layers."""

    def __init__(self, problem: Problem) -> None:
        import torch

        super().__init__(problem)
        self._torch = torch
        torch.set_num_threads(problem.threads)
        torch.manual_seed(problem.seed)
        inputs, labels = problem.data
        self._inputs, self._labels = torch.from_numpy(inputs), torch.from_numpy(labels)
        self._layers = torch.nn.ModuleList(self._make_layers())
        self._optimizer = torch.optim.SGD(
            self._layers.parameters(),
            lr=problem.learning_rate,
            momentum=problem.momentum,
            weight_decay=problem.weight_decay / problem.learning_rate,
            fused=True,
        )

    def _make_layers(self) -> list[Any]:
        return [self._linear(weights, bias) for weights, bias in self.problem.dense()]

    def _linear(self, weights: np.ndarray, bias: np.ndarray) -> Any:
        torch = self._torch
        linear = torch.nn.Linear(weights.shape[1], weights.shape[0])
        with torch.no_grad():
            linear.weight.copy_(torch.from_numpy(weights))
            linear.bias.copy_(torch.from_numpy(bias))
        return linear

    def _logits(self, x: Any) -> Any:
        functional = self._torch.nn.functional
        for layer, slope in zip(self._layers, self.problem.slopes, strict=False):
            x = functional.leaky_relu(layer(x), slope)  # with -alpha it is All-ReLU
            x = functional.dropout(x, self.problem.dropout)
        return self._layers[-1](x)

    def step(self, rows: np.ndarray) -> Any:
        """Take a step on one batch."""
        chosen = self._torch.from_numpy(rows)
        self._optimizer.zero_grad(set_to_none=True)
        logits = self._logits(self._inputs[chosen])
        loss = self._torch.nn.functional.cross_entropy(logits, self._labels[chosen])
        loss.backward()
        self._optimizer.step()
        return loss.detach()


class TorchMasked(TorchDense):
    """Dense layers whose weights are multiplied by a mask after each step."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        matrices = problem.model.to_scipy()
        for matrix in matrices:
            matrix.data[:] = 1
        self._masks = [self._torch.from_numpy(matrix.toarray()) for matrix in matrices]

    def step(self, rows: np.ndarray) -> Any:
        """Take a step on one batch, and mask the weights."""
        loss = super().step(rows)
        with self._torch.no_grad():
            for layer, mask in zip(self._layers, self._masks, strict=True):
                layer.weight.mul_(mask)
        return loss


class TorchSparseProp(TorchDense):
    """`SparseLinear` layers of the package SparseProp."""

    def _make_layers(self) -> list[Any]:
        from sparseprop.modules import SparseLinear

        return [SparseLinear.from_dense(linear) for linear in super()._make_layers()]


class TorchSparseLab(TorchDense):
    """`SparseLinear` layers of the package sparselab, which are given our connections."""

    def _linear(self, weights: np.ndarray, bias: np.ndarray) -> Any:
        import sparselab

        torch = self._torch
        linear = sparselab.SparseLinear(weights.shape[1], weights.shape[0])
        # It draws connections of its own, and has no way to be given others but this.
        linear._csr = sparselab.PaddedCSR.from_dense(torch.from_numpy(weights))
        linear._values = torch.nn.Parameter(torch.from_numpy(np.asarray(linear._csr.values)))
        with torch.no_grad():
            linear.bias.copy_(torch.from_numpy(bias))
        return linear


class TorchCSR(TorchDense):
    """CSR weights, multiplied by PyTorch's own sparse products (MKL), feature-major.

    Forward is a product with the CSR matrix, the input gradient one with its transpose, kept as a
    second CSR matrix (the transpose of the first takes five times as long), and the weight gradient
    a sampled product.
    """

    def _make_layers(self) -> list[Any]:
        import torch

        linear = _csr_linear()

        class CsrLinear(torch.nn.Module):
            def __init__(self, matrix: Any, bias: np.ndarray) -> None:
                super().__init__()
                places = matrix.copy()
                places.data = np.arange(1, matrix.nnz + 1, dtype=np.float64)
                transposed = places.T.tocsr()
                self.values = torch.nn.Parameter(torch.from_numpy(matrix.data))
                self.bias = torch.nn.Parameter(torch.from_numpy(bias))
                self.structure = (
                    torch.from_numpy(matrix.indptr.astype(np.int32)),
                    torch.from_numpy(matrix.indices),
                    torch.from_numpy(transposed.indptr.astype(np.int32)),
                    torch.from_numpy(transposed.indices.astype(np.int32)),
                    torch.from_numpy(transposed.data.astype(np.int64) - 1),
                    matrix.shape,
                )

            def forward(self, x: Any) -> Any:
                return linear.apply(x, self.values, self.bias, self.structure)

        layers = zip(self.problem.model.to_scipy(), self.problem.dense(), strict=True)
        return [CsrLinear(matrix, bias) for matrix, (_, bias) in layers]

    def _logits(self, x: Any) -> Any:
        return super()._logits(x.t().contiguous()).t()


def _csr_linear() -> Any:
    """Return the autograd function of `TorchCSR`; torch must be there to define it."""
    import torch

    warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta", UserWarning)

    def matrix(indptr: Any, indices: Any, values: Any, shape: tuple[int, int]) -> Any:
        return torch.sparse_csr_tensor(indptr, indices, values, shape, check_invariants=False)

    class CsrLinear(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any, values: Any, bias: Any, structure: Any) -> Any:
            ctx.save_for_backward(x, values)
            ctx.structure = structure
            z = matrix(structure[0], structure[1], values, structure[5]) @ x
            return z.add_(bias[:, None])

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> Any:
            (dz,), (x, values) = gradients, ctx.saved_tensors
            indptr, indices, t_indptr, t_indices, places, shape = ctx.structure
            dz = dz.contiguous()
            dx = None
            if ctx.needs_input_grad[0]:
                dx = matrix(t_indptr, t_indices, values[places], shape[::-1]) @ dz
            nothing = matrix(indptr, indices, torch.zeros_like(values), shape)
            dw = torch.sparse.sampled_addmm(nothing, dz, x.t(), beta=0.0)
            return dx, dw.values(), dz.sum(dim=1), None

    return CsrLinear


class JaxDense(Adapter):
    """Dense matrices; the whole step is one function compiled by XLA."""

    def __init__(self, problem: Problem) -> None:
        import jax
        import jax.numpy as jnp

        super().__init__(problem)
        p = problem

        def mean_loss(params: Any, key: Any, x: Any, y: Any) -> Any:
            for (w, b), slope in zip(params, p.slopes, strict=False):
                z = x @ w + b
                x = jnp.where(z > 0, z, slope * z)
                if p.dropout:
                    key, now = jax.random.split(key)
                    x = jnp.where(jax.random.bernoulli(now, 1 - p.dropout, x.shape), x, 0)
                    x = x / (1 - p.dropout)
            w, b = params[-1]
            logs = jax.nn.log_softmax(x @ w + b)
            return -jnp.mean(jnp.take_along_axis(logs, y[:, None], axis=1))

        def step(params: Any, velocity: Any, key: Any, rows: Any, x: Any, y: Any) -> Any:
            key, now = jax.random.split(key)
            loss, gradient = jax.value_and_grad(mean_loss)(params, now, x[rows], y[rows])
            velocity = jax.tree.map(
                lambda v, g: p.momentum * v - p.learning_rate * g, velocity, gradient
            )
            params = jax.tree.map(lambda w, v: w + v - p.weight_decay * w, params, velocity)
            return params, velocity, key, loss

        self._step = jax.jit(step, donate_argnums=(0, 1, 2))
        params = [(jnp.asarray(w.T), jnp.asarray(b)) for w, b in p.dense()]
        # The generator that XLA has of its own: JAX's default costs more than the products.
        key = jax.random.key(p.seed, impl="unsafe_rbg")
        self._state = [params, jax.tree.map(jnp.zeros_like, params), key]
        self._data = [jnp.asarray(array) for array in p.data]

    def step(self, rows: np.ndarray) -> Any:
        """Take a step on one batch."""
        *self._state, loss = self._step(*self._state, rows, *self._data)
        return loss
