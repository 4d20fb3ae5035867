"""The library behind the dense baselines: that it uses what the CPU has, and says so."""

import os
import subprocess
import sys

import pytest
from threadpoolctl import threadpool_limits

from sparsecore import datasets
from sparsecore.lanes import widest
from sparsecore.paper import blas, dense
from sparsecore.train import TrainConfig

PROGRAM = "import sparsecore.paper, numpy; print(*sparsecore.paper.blas.loaded_blas(), sep=chr(10))"


def loaded(**environment):
    """Return the BLAS that a new process loads after `sparsecore.paper`."""
    inherited = {k: v for k, v in os.environ.items() if k != "OPENBLAS_CORETYPE"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=inherited | environment, capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    return done.stdout


@pytest.mark.skipif(widest() < 128, reason="this CPU has no AVX-512")
def test_openblas_uses_avx512_where_there_is_any():
    found = loaded()
    if not found.startswith("openblas"):
        pytest.skip(f"NumPy brings another BLAS: {found}")
    assert "SkylakeX" in found
    assert "Haswell" in loaded(OPENBLAS_CORETYPE="Haswell")  # what the user chose stays


@pytest.mark.parametrize("flags", ["flags : sse2 avx2 fma", "Features : asimd", ""])
def test_nothing_is_asked_of_a_cpu_without_avx512(monkeypatch, tmp_path, flags):
    (tmp_path / "cpuinfo").write_text(f"model name : some CPU\n{flags}\n")
    monkeypatch.setattr(blas, "Path", lambda _: tmp_path / "cpuinfo")
    monkeypatch.delenv("OPENBLAS_CORETYPE", raising=False)
    blas.prefer_avx512()
    assert "OPENBLAS_CORETYPE" not in os.environ
    (tmp_path / "cpuinfo").unlink()
    blas.prefer_avx512()
    assert "OPENBLAS_CORETYPE" not in os.environ


def test_a_dense_result_names_its_library():
    config = TrainConfig(hidden=(8,), epochs=1, activation="relu", zeta=0.0)
    _, result = dense.run(datasets.load("digits"), config)
    with threadpool_limits(1):
        assert result["provenance"]["blas"] == blas.loaded_blas()
