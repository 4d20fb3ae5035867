"""Which peers there are, what a reader must know of each, and whether it can run here."""

from __future__ import annotations

import importlib.util
import subprocess
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from sparsecore.compiled.lanes import widest
from sparsecore.paper.speed import frameworks, peers
from sparsecore.paper.speed.peers import Adapter, Problem, compiler


@dataclass(frozen=True)
class Peer:
    """A way to train the problem, and what it does and does not do."""

    label: str
    note: str  # what a reader must know to compare fairly
    adapter: type[Adapter]
    packages: tuple[str, ...] = ("sparsecore",)  # modules that it needs
    distribution: str | None = None  # whose version is told, if not the last package's


_WHOLE = "Gather, forward, activation, dropout, loss, backward, momentum, weight decay"

PEERS: dict[str, Peer] = {
    "sparsecore": Peer("sparsecore", f"{_WHOLE}; sparse throughout.", peers.SparseCore),
    "c-loop": Peer(
        "C loop (yardstick)",
        "Forward, backward and momentum over the connections alone, hand-written for AVX-512: no "
        "gather, activation, dropout or loss. One thread, batches of 128.",
        peers.CLoop,
    ),
    "torch-csr": Peer(
        "PyTorch, CSR weights",
        f"{_WHOLE} (fused SGD); sparse products by MKL in an autograd function of ours, with a "
        "second, transposed matrix for the input gradient.",
        frameworks.TorchCSR,
        ("torch",),
    ),
    "sparselab": Peer(
        "sparselab",
        f"{_WHOLE} (fused SGD); its SparseLinear layers for PyTorch: padded CSR, AVX2 or NEON.",
        frameworks.TorchSparseLab,
        ("torch", "sparselab"),
    ),
    "sparseprop": Peer(
        "SparseProp",
        f"{_WHOLE} (fused SGD); its SparseLinear layers for PyTorch, compiled on this machine.",
        frameworks.TorchSparseProp,
        ("torch", "sparseprop"),
    ),
    "torch-dense": Peer(
        "PyTorch, dense",
        f"{_WHOLE} (fused SGD), with all weights, the absent ones too.",
        frameworks.TorchDense,
        ("torch",),
    ),
    "torch-masked": Peer(
        "PyTorch, masked",
        f"{_WHOLE} (fused SGD), dense; after each step the weights are multiplied by 0-1 masks.",
        frameworks.TorchMasked,
        ("torch",),
    ),
    "jax-dense": Peer(
        "JAX, dense",
        f"{_WHOLE}, dense, compiled as one function; noise from XLA's own generator.",
        frameworks.JaxDense,
        ("jax",),
    ),
    "numpy-dense": Peer(
        "NumPy, dense",
        f"{_WHOLE}, dense; products by BLAS, the rest element by element.",
        peers.NumPyDense,
        ("numpy",),
    ),
    "scikit-learn-dense": Peer(
        "scikit-learn, dense",
        "MLPClassifier: dense, ReLU in place of All-ReLU, no dropout, weight decay as a penalty.",
        peers.ScikitLearn,
        ("sklearn",),
        "scikit-learn",
    ),
}

THROUGH_BLAS = ("numpy-dense", "scikit-learn-dense")  # PyTorch and JAX bring their own


def absent(key: str, problem: Problem) -> str | None:
    """Return why a peer cannot be timed on a problem here, or None if it can."""
    if key not in PEERS:
        raise ValueError(f"peers: expected some of {', '.join(PEERS)}, got {key!r}")
    missing = [m for m in PEERS[key].packages if importlib.util.find_spec(m) is None]
    if missing:
        return f"{' and '.join(missing)} not installed"
    if key != "c-loop":
        return None
    if problem.batch_size != 128 or problem.threads != 1:
        return "written for batches of 128 and one thread"
    if widest() != 128:
        return "this CPU has no AVX-512"
    return None if compiler() else "no C compiler"


def installed_version(key: str) -> str:
    """Return the version of a peer, or of the compiler of the C loop."""
    if key == "c-loop":
        command = [str(compiler()), "-dumpfullversion"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return f"{Path(command[0]).name} {done.stdout.strip()}".strip()
    try:
        return version(PEERS[key].distribution or PEERS[key].packages[-1])
    except PackageNotFoundError:
        return "unknown"
