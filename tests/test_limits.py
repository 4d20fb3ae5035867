"""What a process may use: control groups, in made-up folders."""

import os

import psutil
import pytest

from sparsecore import limits
from sparsecore.extreme import budget

GIB = 2**30


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """Return a function that writes /proc/self/cgroup and the files of the groups."""

    def write(own, files):
        (tmp_path / "own").write_text(own)
        for name, text in files.items():
            path = tmp_path / "groups" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{text}\n")

    monkeypatch.setattr(limits, "OWN", tmp_path / "own")
    monkeypatch.setattr(limits, "GROUPS", tmp_path / "groups")
    return write


V2 = "0::/user.slice/job\n"


@pytest.mark.parametrize(
    ("own", "files", "cpus"),
    [
        (V2, {}, 8),
        (V2, {"user.slice/job/cpu.max": "max 100000"}, 8),
        (V2, {"user.slice/job/cpu.max": "150000 100000"}, 2),
        (V2, {"user.slice/job/cpu.max": "max 100000", "user.slice/cpu.max": "300000 100000"}, 3),
        (V2, {"cpu.max": "50000 100000"}, 1),  # a container sees its own group at the top
        (V2, {"user.slice/job/cpu.max": "9999999 100000"}, 8),
        (V2, {"user.slice/job/cpu.max": "garbage"}, 8),
        ("4:memory:/\n", {"cpu.max": "1000 10000"}, 8),  # groups of version 1 are not read
    ],
)
def test_cpus_are_those_of_the_affinity_and_the_quota(own, files, cpus, groups, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    groups(own, files)
    assert limits.cpu_count() == cpus


@pytest.mark.parametrize(
    ("own", "files", "gib"),
    [
        (V2, {}, 10),
        (V2, {"user.slice/job/memory.max": "max", "user.slice/job/memory.current": 5 * GIB}, 10),
        (V2, {"user.slice/job/memory.max": 7 * GIB, "user.slice/job/memory.current": 5 * GIB}, 2),
        (V2, {"user.slice/memory.max": 4 * GIB, "user.slice/memory.current": 5 * GIB}, 0),
        (
            V2,
            {
                "user.slice/job/memory.max": 7 * GIB,
                "user.slice/job/memory.current": 5 * GIB,
                "user.slice/job/memory.stat": f"anon 1\ninactive_file {4 * GIB}",
            },
            6,
        ),
    ],
)
def test_memory_is_what_machine_and_group_have_left(own, files, gib, groups, monkeypatch):
    class Machine:
        available = 10 * GIB

    monkeypatch.setattr(psutil, "virtual_memory", Machine)
    groups(own, files)
    assert limits.free_memory() == gib * GIB


def test_without_control_groups_the_machine_is_all(groups):
    assert 1 <= limits.cpu_count() <= os.cpu_count()  # the files are not there
    assert limits.free_memory() > 0


def test_a_plan_above_the_groups_limit_is_refused(groups):
    used = "user.slice/job/memory.current"
    groups(V2, {"user.slice/job/memory.max": 700 * 2**20, used: 690 * 2**20})
    plan = budget.plan((600, 3_000_000, 3_000_000, 2), 2.5, 4, 1)
    with pytest.raises(budget.OverBudgetError, match="free memory: expected at least"):
        plan.check(None)
