"""Where a result comes from (commit, versions, machine), and how busy the machine was."""

import hashlib
import json
import platform
import resource
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
from threadpoolctl import threadpool_info

import sparsecore
from sparsecore.compiled import lanes
from sparsecore.limits import cpu_count

_PACKAGES = ("numpy", "scipy", "numba", "llvmlite", "scikit-learn", "mpi4py", "mpich")


@cache
def _commit() -> str | None:
    """Return the commit that the package runs from, "+" if changed; None outside a checkout."""
    root = Path(sparsecore.__file__).parent.parent

    def git(*words: str) -> str:
        command = ["git", "-C", str(root), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    if not (root / ".git").exists():
        return None
    try:
        return git("rev-parse", "HEAD") + "+" * bool(git("status", "--porcelain", "sparsecore"))
    except (OSError, subprocess.CalledProcessError):
        return None


@cache
def sources_sha256() -> str:
    """Return one hash of all the package's sources as they were on disk at the first call."""
    package, total = Path(sparsecore.__file__).parent, hashlib.sha256()
    for path in sorted(p for p in package.rglob("*") if p.suffix in (".py", ".c", ".json")):
        total.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes())
    return total.hexdigest()


def check_sources() -> None:
    """Raise a RuntimeError if the sources are no longer those of `sources_sha256`."""
    if sources_sha256.__wrapped__() != sources_sha256():
        raise RuntimeError("the package's sources changed during this run; start it again")


@cache
def cpu_model() -> str:
    """Return the CPU's name as the system gives it; with family and model if it has no number."""
    facts: dict[str, str] = {}
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            facts.setdefault(key.strip(), value.strip())
    name = facts.get("model name") or platform.processor() or platform.machine()
    # "AMD EPYC" alone, as on a virtual machine, may mean one CPU or another, twice as fast.
    if "cpu family" in facts and not any(letter.isdigit() for letter in name):
        name += f" (family {facts['cpu family']}, model {facts.get('model', '?')})"
    return name


def installed(package: str) -> str | None:
    """Return the version of a package, None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def loaded_blas() -> list[str]:
    """Return the matrix libraries that are loaded in this process, with kernel and threads."""
    kinds = ("internal_api", "version", "architecture")
    found = {
        f"{' '.join(filter(None, map(info.get, kinds)))} ({info['num_threads']} threads)"
        for info in threadpool_info()
        if info["user_api"] == "blas"
    }
    return sorted(found)


def differences(found: dict[str, Any], expected: dict[str, Any]) -> str:
    """Return how two descriptions differ, such as "alpha 0.6, not 0.7"; "" if they do not."""
    told = []
    for name in {**expected, **found}:
        one, other = found.get(name), expected.get(name)
        if isinstance(one, dict) and isinstance(other, dict):
            told.append(differences(one, other))
        elif one != other:
            told.append(f"{name} {one!r}, not {other!r}")
    return "; ".join(filter(None, told))


def check_alike(runs: Sequence[dict[str, Any]]) -> None:
    """Raise ValueError unless all ranks have the same run; name each that differs, and how."""
    texts = [json.dumps(run, sort_keys=True) for run in runs]
    usual = max(texts, key=texts.count)  # rank 0's, if no other is more frequent
    told = [
        f"rank {rank} has {differences(runs[rank], runs[texts.index(usual)])}"
        for rank, text in enumerate(texts)
        if text != usual
    ]
    if told:
        raise ValueError(
            f"the ranks were not started alike: {', and '.join(told)}; start all of them with the "
            "same options, data and code"
        )


def code() -> dict[str, Any]:
    """Return what ranks must share, besides their run, to compute the same bits."""
    return {
        "sparsecore": sparsecore.__version__, "sources": sources_sha256(),
        "numpy": version("numpy"), "numba": version("numba"), "lane_width": lanes.widest(),
    }  # fmt: skip


def busy_cpus(seconds: float = 0.5) -> float:
    """Return how many CPUs other processes use while this one sleeps for `seconds`."""
    return psutil.cpu_percent(seconds) / 100 * psutil.cpu_count()


def peak_bytes() -> int:
    """Return the peak resident memory of this process so far."""
    try:  # on Linux, `resource` may report the peak of the process that started this one
        status = Path("/proc/self/status").read_text()
        return 1024 * int(status.partition("VmHWM:")[2].split()[0])
    except (OSError, IndexError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak


def provenance(threads: int, data_hash: str | None, ranks: int = 1) -> dict[str, Any]:
    """Return the origin of a result, for its file, as JSON types."""
    mpi = sys.modules.get("mpi4py.MPI")  # importing it would start MPI
    return {
        "sparsecore": sparsecore.__version__, "commit": _commit(),
        "python": platform.python_version(),
        "packages": {name: v for name in _PACKAGES if (v := installed(name)) is not None},
        "platform": platform.platform(), "cpu": cpu_model(), "cores": cpu_count(),
        "lane_width": lanes.widest(),  # float32 values that a kernel carries in registers
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1), "threads": threads,
        "ranks": ranks, "data_sha256": data_hash,
        "mpi": mpi and " ".join(mpi.Get_library_version().splitlines()[0].split(",")[0].split()),
    }  # fmt: skip
