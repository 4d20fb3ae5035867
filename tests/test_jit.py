"""The compiled code on disk: complete stamp, no stale code, no race."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numba
import pytest
from numba.core.caching import CacheImpl
from test_project import MODULES, own_imports

import sparsecore
from sparsecore.compiled import jit

PACKAGE = Path(sparsecore.__file__).parent

RUN = """
import sys
import numpy as np
from sparsecore import topology
print(topology.importance(np.array([0, 2]), np.array([1, -2], np.float32))[0])
out = np.zeros(3, np.int64)
topology.transpose(np.array([0, 2]), np.array([0, 1], np.int32), out, *np.zeros((2, 2), np.int32))
print(out.tolist())
"""


def run(root: Path, cache: Path) -> subprocess.Popen[str]:
    env = {**os.environ, "PYTHONPATH": str(root), "NUMBA_CACHE_DIR": str(cache)}
    command = [sys.executable, "-c", RUN]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True, cwd=root)


def test_compiled_code_is_taken_from_this_folder_or_its_own():
    # What the stamp covers. Only modules right below the package are stamped alone.
    compiled = {
        path.relative_to(PACKAGE)
        for path in PACKAGE.rglob("*.py")
        if re.search(r"^from sparsecore.compiled.jit import ", path.read_text(), re.M)
    }
    assert Path("topology.py") in compiled
    for path in compiled:
        used = {MODULES[name].relative_to(PACKAGE) for name in own_imports(PACKAGE / path)}
        for other in used & compiled - {path}:
            assert other.parent.name == "compiled" or other.parent == path.parent != Path()


def test_processes_share_a_cache_agree_and_drop_the_code_of_older_sources(tmp_path):
    shutil.copytree(PACKAGE, tmp_path / "sparsecore", ignore=shutil.ignore_patterns("__pycache__"))
    cache = tmp_path / "cache"
    started = [run(tmp_path, cache) for _ in range(2)]
    answers = {process.communicate()[0] for process in started}
    assert answers == {"3.0\n[0, 1, 2]\n"}
    before = {path.name: path.stat().st_mtime_ns for path in cache.rglob("*.nbc")}
    assert before and len(before) == len(list(cache.rglob("*.nbc")))
    assert run(tmp_path, cache).communicate()[0] == "3.0\n[0, 1, 2]\n"
    assert before == {path.name: path.stat().st_mtime_ns for path in cache.rglob("*.nbc")}

    # A function that is compiled into another module's: Numba's own cache would miss the change.
    lanes = tmp_path / "sparsecore" / "compiled" / "lanes.py"
    lanes.write_text(lanes.read_text() + "\n# changed\n")
    assert run(tmp_path, cache).communicate()[0] == "3.0\n[0, 1, 2]\n"
    after = {path.name for path in cache.rglob("*.nbc")}
    assert not before.keys() & after and len(after) == len(before)


def test_a_stamp_is_that_of_the_kernels_which_this_process_has_loaded(monkeypatch):
    seen, read = [], Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: seen.append(path) or read(path))
    jit._stamp.__wrapped__(PACKAGE / "extreme" / "tiles.py")
    assert seen and {path.parent.name for path in seen} == {"extreme"}


def add_one(x):
    return x + 1


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    jit._warn.cache_clear()
    return tmp_path


def fresh():
    """Return the function as a new process finds it."""
    return jit.jit()(add_one)


@pytest.mark.parametrize("when", ["never", "later"])
def test_without_a_cache_code_is_compiled_and_that_is_said_once(folder, monkeypatch, when):
    functions = []
    if when == "never":
        monkeypatch.setattr(CacheImpl, "_locator_classes", [])
    else:
        functions = [fresh(), fresh()]
        [inner] = folder.iterdir()
        inner.rmdir()
        inner.touch()  # neither a folder nor to become one
    with pytest.warns(
        RuntimeWarning, match="compiled code cannot be kept.*NUMBA_CACHE_DIR"
    ) as told:
        functions = functions or [fresh(), fresh()]
        assert [function(1) for function in functions] == [2, 2]
    assert len(told) == 1


def test_disabled_compilation_is_refused_in_one_sentence(monkeypatch):
    monkeypatch.setattr(numba.config, "DISABLE_JIT", 1)
    with pytest.raises(RuntimeError, match="NUMBA_DISABLE_JIT: expected 0 or nothing, got 1"):
        fresh()
