"""The matrix library behind the dense baselines: which one it is, and that it does its best.

OpenBLAS up to 0.3.31 takes AMD's Zen 5 for a CPU without AVX-512, and products take twice as long
as they need to. It reads its environment once, when NumPy loads it.
"""

from __future__ import annotations

import os
from pathlib import Path

_AVX512 = {"avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl"}  # what SkylakeX stands for


def prefer_avx512() -> None:
    """Have OpenBLAS use AVX-512 on any x86 CPU that has it; call this before NumPy is imported.

    `OPENBLAS_CORETYPE`, where it is set already, is left as it is.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # another system than Linux: OpenBLAS decides
        return
    flags = next((line for line in lines if line.startswith("flags")), "")
    if set(flags.split()) >= _AVX512:
        os.environ.setdefault("OPENBLAS_CORETYPE", "SkylakeX")


def loaded_blas() -> list[str]:
    """Return the matrix libraries that are loaded in this process, with kernel and threads."""
    from threadpoolctl import threadpool_info

    return sorted(
        {
            " ".join(
                str(info[name])
                for name in ("internal_api", "version", "architecture")
                if info.get(name)
            )
            + f" ({info['num_threads']} threads)"
            for info in threadpool_info()
            if info["user_api"] == "blas"
        }
    )
